"""Which images a cluster's objects name, and who says so: pure.

What runs is more than pods. A cron job that is suspended, or a deployment that is to be rolled back, needs its image later; so the templates
of whatever makes pods count, with the revisions that Kubernetes keeps of them. What custom resources hold is not known here: only their pods,
and the objects below, are seen.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ledger.references import ImageReference, marked_name
from worker.cluster.workloads import Workload

Json = Mapping[str, Any]

_REVISION = "deployment.kubernetes.io/revision"
_WORDS = {
    Workload.DEPLOYMENT: "deployment",
    Workload.STATEFUL_SET: "stateful set",
    Workload.DAEMON_SET: "daemon set",
    Workload.CRON_JOB: "cron job",
    Workload.JOB: "job",
    Workload.REPLICA_SET: "replica set",
    Workload.REPLICATION_CONTROLLER: "replication controller",
    Workload.CONTROLLER_REVISION: "controller revision",
    Workload.POD: "pod",
}
_RANKS = {kind: rank for rank, kind in enumerate(_WORDS)}
_HUB = ("docker.io", "index.docker.io", "registry-1.docker.io")
_CONTAINERS = ("containers", "initContainers", "ephemeralContainers")
_STATUSES = tuple(f"{kind[:-1]}Statuses" for kind in _CONTAINERS)
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_HOST = r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)*|\[[0-9a-fA-F:.%]+\])(?::[0-9]+)?"
_PULLABLE = re.compile(
    rf"(?:{_HOST}/)?{_COMPONENT}(?:/{_COMPONENT})*(?::[A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}})?(?:@[A-Za-z][A-Za-z0-9+._-]*:[0-9a-zA-Z]{{32,}})?"
)
"""What a kubelet takes for an image's name (distribution's grammar, which is wider than ours: ports with zeros, other digests)."""
_LONGEST = 1024
"""Characters; the grammar's own limits add up to half of it."""
_ID = re.compile(r"(?:.*[/@])?(?:sha256:)?([0-9a-f]{64})")
"""An `imageID`: `repository@sha256:…`, with `docker-pullable://` before it or not, `docker://sha256:…`, or only the hexadecimal digits (CRI-O)."""


class ImageNotUnderstood(ValueError):
    """An image that a kubelet could pull has a name by which it cannot be found in a registry here."""


@dataclass(frozen=True, slots=True)
class Holder:
    """One object, and the marks of the images that it names (see `ImageReference.mark`)."""

    kind: Workload
    who: str
    """As `deployment shop/web`, for people."""
    marks: tuple[str, ...]
    deployment: str | None = None
    """A replica set's deployment, by its identity, and which of its revisions this is."""
    revision: int = 0
    idle: bool = False
    """It is only there to be rolled back to."""


def read_holder(kind: Workload, found: Json) -> Holder | None:
    """What of an object counts; None where it names no image. ImageNotUnderstood."""
    metadata, spec = found["metadata"], found.get("spec") or {}
    who = f"{_WORDS[kind]} {metadata.get('namespace', '')}/{metadata['name']}"
    deployment, revision, idle = None, 0, False
    ids: tuple[str, ...] = ()
    match kind:
        case Workload.POD:
            pod, ids = spec, tuple(_ids(found.get("status") or {}))
        case Workload.CRON_JOB:
            pod = _template(((spec.get("jobTemplate") or {}).get("spec")) or {})
            who += " (suspended)" if spec.get("suspend") else ""
        case Workload.CONTROLLER_REVISION:
            # Its data is the patch that brings the template back. Other controllers than Kubernetes' own keep the like.
            pod = _template(((found.get("data") or {}).get("spec")) or {})
            owner = _owner(metadata)
            if owner is not None:
                kinds = {"StatefulSet": "stateful set", "DaemonSet": "daemon set"}
                word = kinds.get(owner["kind"], owner["kind"])
                who = f"{word} {metadata.get('namespace', '')}/{owner['name']}, revision {found.get('revision', '?')}"
        case Workload.REPLICA_SET:
            pod, owner = _template(spec), _owner(metadata)
            number = str((metadata.get("annotations") or {}).get(_REVISION, ""))
            if owner is not None and owner["kind"] == "Deployment" and number.isascii() and number.isdigit():
                who, revision = f"deployment {metadata.get('namespace', '')}/{owner['name']}, revision {number}", int(number)
                deployment, idle = owner["uid"], spec.get("replicas") == 0
        case _:
            pod = _template(spec)
    marks = dict.fromkeys((*(mark for text in _images(pod) if (mark := _mark(text, who))), *ids))
    return Holder(kind, who, tuple(marks), deployment, revision, idle) if marks else None


def marks_of(holders: Iterable[Holder], revisions: int) -> dict[str, str]:
    """Each image by its mark, and who needs it. Of a deployment's replica sets the newest so many count, and whichever is to have pods.

    Where several need an image, the one is told that people know best: a deployment before its pods.
    """
    everyone = sorted(holders, key=lambda one: (_RANKS[one.kind], one.who))
    known: dict[str, list[int]] = {}
    for one in everyone:
        if one.deployment is not None:
            known.setdefault(one.deployment, []).append(one.revision)
    oldest = {deployment: sorted(numbers)[-revisions:][0] for deployment, numbers in known.items()}
    found: dict[str, str] = {}
    for one in everyone:
        if one.deployment is None or not one.idle or one.revision >= oldest[one.deployment]:
            for mark in one.marks:
                found.setdefault(mark, one.who)
    return found


def under_all_names(marks: Mapping[str, str], registries: Iterable[tuple[str, ...]]) -> dict[str, str]:
    """The same, and each mark with a tag under the other names of its registry too: nodes may pull by another than policies use. Docker Hub's are
    known; `registries` has those of others. A digest needs no name.
    """
    known = [tuple(marked_name(name) for name in names) for names in (_HUB, *registries)]
    others = {name: names for names in known for name in names}
    found = dict(marks)
    for mark, who in marks.items():
        host, _, rest = mark.partition("/")
        for name in others.get(host, ()):
            found.setdefault(f"{name}/{rest}", who)
    return found


def _template(spec: Json) -> Json:
    """The pod that a controller's spec makes."""
    found: Json = (spec.get("template") or {}).get("spec") or {}
    return found


def _owner(metadata: Json) -> Json | None:
    return next((owner for owner in metadata.get("ownerReferences") or () if owner.get("controller")), None)


def _images(pod: Json) -> Iterator[str]:
    """Every image that a pod's spec names, those of its volumes among them."""
    for kind in _CONTAINERS:
        for container in pod.get(kind) or ():
            yield container.get("image") or ""
    for volume in pod.get("volumes") or ():
        yield (volume.get("image") or {}).get("reference") or ""


def _ids(status: Json) -> Iterator[str]:
    """The digests that a pod's containers run by: of a manifest or an index, or of the image's configuration, which `Web.meant` finds by it.

    What is no digest (empty before the image is pulled; a virtual kubelet's own words) is left out: a pod that is moved pulls what its spec names,
    and that counts.
    """
    for kind in _STATUSES:
        for one in status.get(kind) or ():
            if known := _ID.fullmatch(one.get("imageID") or ""):
                yield f"sha256:{known[1]}"


def _mark(text: str, who: str) -> str | None:
    """How an image is named here. None: by this name nothing is ever pulled, so nothing in a registry is meant.

    A kubelet refuses what is not in its grammar (InvalidImageName), as `registry.example.com/app:` of a template that had no tag: that is told
    to whoever made it, and must not hold up a registry. What is in its grammar but not in ours might be in the registry: ImageNotUnderstood.
    """
    if len(text) > _LONGEST or not _PULLABLE.fullmatch(text):
        return None
    try:
        return ImageReference.parse(_qualified(text)).mark
    except ValueError as error:
        raise ImageNotUnderstood(
            f"the {who} names the image {text[:200]!r}, and which that is in a registry is not known: {error}"
        ) from None


def _qualified(text: str) -> str:
    """An image's name with its registry, as a kubelet completes it: Docker Hub, and there `library/` for a bare name."""
    host, slash, path = text.partition("/")
    if not slash or not ("." in host or ":" in host or host == "localhost" or host != host.lower()):
        host, path = "docker.io", text
    if host.lower() in ("docker.io", "index.docker.io"):
        host = "docker.io"
    if host == "docker.io" and "/" not in path.partition("@")[0]:
        path = f"library/{path}"
    return f"{host}/{path}"
