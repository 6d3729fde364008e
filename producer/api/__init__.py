"""The REST API and the webhooks as one application: `create_app`."""

from producer.api.app import create_app

__all__ = ["create_app"]
