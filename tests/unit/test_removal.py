"""What stands against removing images that somebody names."""

from __future__ import annotations

import pytest

from ledger.errors import ImageInUse, ManifestUnknown, RegistryError
from ledger.references import ImageReference
from tests.unit.inventories import NAME, digest, holding, image, index, tag
from worker.removal import judge

PLACE = ImageReference.parse(NAME)


def judged(inventory, *names, pins=None):
    named = [PLACE.with_digest(digest(name[1:])) if name.startswith("@") else PLACE.with_tag(name) for name in names]
    return judge(PLACE, inventory.repositories[0], named, pins or {})


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
        judge(PLACE, SHARED.repositories[0], [PLACE], {})
    with pytest.raises(RegistryError, match="503"):
        judged(holding(image("a"), tag("1", "a"), trouble="503"), "1")


def test_what_is_pinned_stays():
    inventory = holding(image("amd"), index("both", "amd"), image("b"), tag("amd", "amd"), tag("both", "both"), tag("b", "b"))
    for mark, names in ((f"{NAME}:both", ("both",)), (digest("both"), ("both",)), (digest("amd"), ("both",)), (f"{NAME}:b", ("b",))):
        with pytest.raises(ImageInUse, match=r"is pinned \(the audit\).*unpin"):
            judged(inventory, *names, pins={mark: "the audit"})
    assert judged(inventory, "b", pins={f"{NAME}:amd": "the audit", digest("both"): "the audit"}).digests == ((digest("b"), ("b",)),)
