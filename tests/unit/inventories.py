"""Inventories to judge: short ways to make one by hand, and hypothesis's random ones, with everything in them that other tools lost."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import strategies as st

from ledger.retention import Retention
from worker.registry.manifests import DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST
from worker.retention.decisions import Action, Plan
from worker.retention.inventory import Blob, Inventory, Origin, Repository, Stored, Tag
from worker.retention.plan import plan
from worker.retention.policy import Policies
from worker.retention.protection import QUARANTINE, Protected

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
NAME = "registry.example.com/team/app"
ALL: dict[str, Any] = {"delete": ["*"], "grace": "0s", "max_share": 1.0, "max_count": 10**6}
"""A policy that spares nothing but what its rules keep."""


def digest(name: object) -> str:
    return "sha256:" + hashlib.sha256(repr(name).encode()).hexdigest()


def days(count: float) -> datetime:
    """So many days ago."""
    return NOW - timedelta(days=count)


def image(name: object, *layers: str, size: int = 100, **more: Any) -> Stored:
    blobs = tuple(Blob(digest(("layer", layer)), 1000) for layer in layers) or (Blob(digest(("layer", name)), 1000),)
    return Stored(**{"digest": digest(name), "media_type": OCI_MANIFEST, "size": size, "blobs": blobs, **more})


def index(name: object, *children: object) -> Stored:
    return Stored(digest=digest(name), media_type=OCI_INDEX, size=50, children=tuple(digest(child) for child in children))


def tag(name: str, of: object, at: datetime | None = None, **more: Any) -> Tag:
    return Tag(name=name, digest=digest(of), pushed=at, origin=Origin.PUSH if at else None, **more)


def holding(*things: Stored | Tag, name: str = NAME, trouble: str | None = None, untags: bool = True) -> Inventory:
    return Inventory(
        registry="registry.example.com",
        taken=NOW,
        untags=untags,
        repositories=(
            Repository(
                name=name,
                tags=tuple(thing for thing in things if isinstance(thing, Tag)),
                manifests=tuple(thing for thing in things if isinstance(thing, Stored)),
                trouble=trouble,
            ),
        ),
    )


def policy(**fields: Any) -> Policies:
    return Policies((("team", Retention(repositories=(NAME,), **{**ALL, **fields})),))


def judge(inventory: Inventory, policies: Policies, protected: Protected | None = None, now: datetime = NOW) -> Plan:
    return plan(inventory, policies, protected or Protected(), now)


def tags_of(made: Plan, action: Action) -> set[str]:
    """The tags of which a plan decides so."""
    return {one.tag for repository in made.repositories for one in repository.of(action) if one.tag is not None}


def goes(made: Plan) -> set[str]:
    """The digests that a plan deletes, by repository."""
    return {f"{repository.name}@{one}" for repository in made.repositories for one in repository.deletions}


def why(made: Plan, tag: str) -> list[str]:
    """The reasons of the decision about a tag, in words."""
    [found] = [one for repository in made.repositories for one in repository.decisions if one.tag == tag]
    return [str(reason) for reason in found.reasons]


_LIES = st.sampled_from([None, datetime(1, 1, 1, tzinfo=UTC), datetime(1970, 1, 1, tzinfo=UTC), NOW + timedelta(days=400)])
_HONEST = st.integers(0, 60).map(days)
NEVER = datetime(1, 1, 1, tzinfo=UTC)
"""How a registry says that something was never pulled."""
_PULLS = st.one_of(st.none(), st.just(NEVER), _HONEST, _LIES)
_NAMES = st.sampled_from(
    [
        "latest",
        "v1.0.0",
        "v1.0.1",
        "v1.1.0",
        "1.2.3",
        "1.2",
        "1",
        "v2.0.0-rc.1",
        "main-0123abc",
        "main-4567def",
        "fix-0123abc",
        "x",
        "y",
        "z",
    ]
)


@st.composite
def repositories(draw: Any, name: str = NAME, *, honest: bool = False) -> Repository:
    """A repository: images with shared layers, indexes of them and of each other, referrers, cosign's tags, quarantine, lies about time."""
    images = [
        image(number, *draw(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=3, unique=True)), size=draw(st.integers(1, 99)))
        for number in range(draw(st.integers(1, 6)))
    ]
    found = list(images)
    for number in range(draw(st.integers(0, 4))):
        children = draw(st.lists(st.sampled_from(found), min_size=1, max_size=3))
        absent = [digest("absent")] * draw(st.integers(0, 1))
        found.append(
            Stored(
                digest=digest(("index", number)), media_type=OCI_INDEX, size=10, children=(*(child.digest for child in children), *absent)
            )
        )
    for number in range(draw(st.integers(0, 3))):
        subject = draw(st.sampled_from([*(one.digest for one in found), digest("unknown subject")]))
        found.append(image(("referrer", number), draw(st.sampled_from("abgh")), subject=subject))
    times = _HONEST if honest or draw(st.integers(0, 5)) else st.one_of(_HONEST, _LIES)
    tags = {
        tag_name: Tag(
            name=tag_name,
            digest=draw(st.sampled_from(found)).digest,
            pushed=draw(times),
            branch=draw(st.sampled_from([None, None, "main", "fix"])),
            pulled=draw(_PULLS),
        )
        for tag_name in draw(st.lists(_NAMES, min_size=draw(st.integers(0, 6)), max_size=12, unique=True))
    }
    for one in draw(st.lists(st.sampled_from([*(one.digest for one in found), digest("unknown subject")]), max_size=3, unique=True)):
        signature = image(("signature", one, draw(st.integers(0, 1))), "sig")
        if signature not in found:
            found.append(signature)
        name_of = one.replace(":", "-") + draw(st.sampled_from([".sig", ".att", ".sbom", ""]))
        tags[name_of] = Tag(name=name_of, digest=signature.digest, pushed=draw(times))
    if draw(st.integers(0, 4)) == 4:
        tags["bin"] = Tag(name=f"{QUARANTINE}1", digest=draw(st.sampled_from(found)).digest)
    untagged = st.one_of(st.none(), _HONEST)
    manifests = [
        Stored(
            digest=one.digest,
            media_type=one.media_type if not one.blobs or draw(st.booleans()) else DOCKER_MANIFEST,
            size=one.size,
            blobs=one.blobs,
            children=one.children,
            subject=one.subject,
            untagged_since=draw(untagged),
        )
        for one in found
    ]
    if not honest and draw(st.integers(0, 19)) == 19:
        manifests.append(Stored(digest=digest("strange"), media_type="application/x-strange", size=1))
    trouble = "the list of tags ended early" if not honest and draw(st.integers(0, 19)) == 19 else None
    untold = draw(st.sampled_from([None, None, "it tells no pull times"]))
    return Repository(name=name, tags=tuple(tags.values()), manifests=tuple(manifests), trouble=trouble, untold=untold)


@st.composite
def inventories(draw: Any, *, honest: bool = False) -> Inventory:
    names = [NAME, f"{NAME}-other"][: draw(st.integers(1, 2))]
    return Inventory(
        registry="registry.example.com",
        taken=NOW,
        repositories=tuple(draw(repositories(name, honest=honest)) for name in names),
        untags=draw(st.booleans()),
    )


_PATTERNS = st.lists(st.sampled_from(["v*", "main-*", "latest", "/[0-9.]+/", "x", "*-*"]), min_size=1, max_size=2).map(tuple)
RULES = st.one_of(
    st.builds(lambda last, tags: {"last": last, "tags": tags}, st.integers(1, 4), st.one_of(st.just(()), _PATTERNS)),
    st.builds(lambda last: {"last": last, "per_branch": "{branch}-{short_sha}"}, st.integers(1, 2)),
    st.builds(lambda within: {"within": f"{within}d"}, st.integers(0, 60)),
    st.builds(lambda pulled, tags: {"pulled": f"{pulled}d", "tags": tags}, st.integers(0, 60), st.one_of(st.just(()), _PATTERNS)),
    st.builds(lambda matching: {"matching": matching}, _PATTERNS),
    st.builds(
        lambda versions, per, suffixes: {"versions": versions, "per": per, "suffixes": suffixes},
        st.integers(1, 2),
        st.sampled_from([None, "major", "minor"]),
        st.booleans(),
    ),
)


@st.composite
def policies(draw: Any, **fixed: Any) -> dict[str, Any]:
    """The fields of a policy for every repository of `inventories`."""
    fields = {
        "repositories": (f"{NAME}*",),
        "delete": draw(st.sampled_from([("*",), ("*",), ("main-*", "v*", "x"), ("/[a-z]+/",)])),
        "keep": tuple(draw(st.lists(RULES, min_size=1, max_size=3))),
        "protect": draw(st.sampled_from([(), (), ("latest",), ("*.sig",)])),
        "delete_untagged_after": draw(st.sampled_from([None, "0s", "10d"])),
        "minimum": draw(st.integers(1, 3)),
        "grace": draw(st.sampled_from(["0s", "0s", "1d", "20d"])),
        "max_share": draw(st.sampled_from([1.0, 0.5, 0.2])),
        "max_count": draw(st.sampled_from([1000, 3, 1])),
        "apply": draw(st.sampled_from(["review", "automatic"])),
    }
    return fields | fixed


@st.composite
def protections(draw: Any, inventory: Inventory) -> Protected:
    marks = [manifest.digest for repository in inventory.repositories for manifest in repository.manifests]
    marks += [f"{repository.name}:{tag.name}" for repository in inventory.repositories for tag in repository.tags]
    marks += [digest("absent"), digest("elsewhere"), f"{NAME}:elsewhere"]

    def some() -> Any:
        return dict.fromkeys(draw(st.lists(st.sampled_from(marks), max_size=2)), "somebody")

    return Protected(running=some(), pinned=some(), in_flight=some(), answered=("c1",))
