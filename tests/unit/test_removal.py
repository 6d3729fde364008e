"""What stands against removing images that somebody names."""

from __future__ import annotations

import pytest

from ledger.errors import ImageInUse, ManifestUnknown, RegistryError
from ledger.references import ImageReference
from tests.unit.inventories import NAME, digest, holding, image, index, tag
from worker.removal import judge
from worker.retention.protection import Protected

PLACE = ImageReference.parse(NAME)


def judged(inventory, *names, protected=Protected()):
    named = [PLACE.with_digest(digest(name[1:])) if name.startswith("@") else PLACE.with_tag(name) for name in names]
    return judge(PLACE, inventory.repositories[0], named, protected)


SHARED = holding(image("a"), image("b"), tag("1", "a"), tag("latest", "a"), tag("2", "b"))


def test_a_digest_goes_when_each_of_its_tags_is_named():
    assert judged(SHARED, "1", "latest").digests == ((digest("a"), ("1", "latest")),)
    assert judged(SHARED, "2").digests == ((digest("b"), ("2",)),)
    assert judged(SHARED, "1", "latest", "2", "@a").digests == ((digest("a"), ("1", "latest")), (digest("b"), ("2",)))


@pytest.mark.parametrize("names", [("1",), ("latest",), ("@a",), ("@a", "1"), ("2", "1")])
def test_tags_that_share_it_stand_against_it_unless_named(names):
    with pytest.raises(ImageInUse, match="is also"):
        judged(SHARED, *names)


def test_a_part_of_an_index_goes_only_after_it():
    inventory = holding(image("amd"), index("both", "amd"), index("outer", "both"), tag("amd", "amd"), tag("both", "outer"))
    with pytest.raises(ImageInUse, match=f"part of the index {digest('both')}"):
        judged(inventory, "amd")
    with pytest.raises(ImageInUse, match="part of the index"):
        judged(inventory, "@both")
    assert [one for one, _ in judged(inventory, "amd", "@both", "both").digests] == [digest("outer"), digest("both"), digest("amd")]


def test_signatures_left_behind_are_named():
    about = digest("a").replace(":", "-")
    inventory = holding(image("a"), image("s"), tag("1", "a"), tag(f"{about}.sig", "s"))
    assert judged(inventory, "1").orphans == (f"{about}.sig",)
    assert judged(inventory, "1", f"{about}.sig").orphans == ()


def test_what_is_not_there_or_was_not_read():
    for name in ("none", "@none"):
        with pytest.raises(ManifestUnknown):
            judged(SHARED, name)
    with pytest.raises(ManifestUnknown, match="name a tag"):
        judge(PLACE, SHARED.repositories[0], [PLACE], Protected())
    with pytest.raises(RegistryError, match="503"):
        judged(holding(image("a"), tag("1", "a"), trouble="503"), "1")


def test_what_is_used_stays():
    inventory = holding(image("amd"), index("both", "amd"), image("b"), tag("amd", "amd"), tag("both", "both"), tag("b", "b"))
    for mark, names in ((f"{NAME}:both", ("both",)), (digest("both"), ("both",)), (digest("amd"), ("both",)), (f"{NAME}:b", ("b",))):
        with pytest.raises(ImageInUse, match=r"stays \(pinned: the audit\).*unpin"):
            judged(inventory, *names, protected=Protected(pinned={mark: "the audit"}))
        with pytest.raises(ImageInUse, match=r"stays \(running: pod shop/web\)$"):
            judged(inventory, *names, protected=Protected(running={mark: "pod shop/web"}))
    others = Protected(pinned={f"{NAME}:amd": "the audit"}, in_flight={digest("both"): "build 1"})
    assert judged(inventory, "b", protected=others).digests == ((digest("b"), ("b",)),)


def test_what_runs_by_the_digest_of_its_configuration_stays():
    inventory = holding(image("a"), tag("a", "a"))
    configuration = inventory.repositories[0].manifests[0].blobs[0].digest
    with pytest.raises(ImageInUse, match="pod shop/web"):
        judged(inventory, "a", protected=Protected(running={configuration: "pod shop/web"}))
