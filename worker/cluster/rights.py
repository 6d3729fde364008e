"""Asking a cluster what our own account may do there."""

from __future__ import annotations

from worker.cluster.answers import failure_of
from worker.cluster.connection import Api

_REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"


async def is_allowed(api: Api, namespace: str, verb: str, resource: str, subresource: str = "", *, group: str = "", name: str = "") -> bool:
    """Whether we may do something in a namespace; with a name, to that object. ClusterError."""
    wanted = {"namespace": namespace, "verb": verb, "group": group, "resource": resource, "subresource": subresource, "name": name}
    attributes = {key: value for key, value in wanted.items() if value}
    review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "spec": {"resourceAttributes": attributes}}
    answer = await api.call("POST", _REVIEWS, body=review)
    if not answer.ok or answer.body is None:
        raise failure_of(answer, "ask for our rights")
    return bool(answer.body["status"].get("allowed"))


def told(verb: str, resource: str, subresource: str = "", name: str = "") -> str:
    """A right in words, as "patch deployments registry" or "get pods/log"."""
    return f"{verb} {resource}{'/' if subresource else ''}{subresource}{f' {name}' if name else ''}"
