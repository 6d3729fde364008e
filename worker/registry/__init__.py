"""Image registries: the client that confirms digests and sets tags, and where its credentials come from.

`wire` speaks HTTP and knows errors, `auth` answers challenges, `credentials` finds what to answer with, `manifests` reads what
comes back, and `client` is what the steps use.
"""

from worker.registry.client import RegistryClient
from worker.registry.credentials import Anonymous, ByRegistry, Credential, Credentials, DockerConfig, DockerConfigFile
from worker.registry.manifests import Descriptor, Manifest
from worker.registry.wire import Timeouts

__all__ = [
    "Anonymous",
    "ByRegistry",
    "Credential",
    "Credentials",
    "Descriptor",
    "DockerConfig",
    "DockerConfigFile",
    "Manifest",
    "RegistryClient",
    "Timeouts",
]
