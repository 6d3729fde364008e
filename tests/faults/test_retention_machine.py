"""Retention against a model, on real registries: whatever is pushed, pinned, planned, applied, undone, purged, collected and killed in any
order, no byte that anything needs is ever lost.
"""

from __future__ import annotations

import asyncio
import itertools
import subprocess
from collections import Counter
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from ledger.adoption import start
from ledger.bin import BinEntry
from ledger.chores import ChoreState
from ledger.references import ImageReference
from ledger.settings import Settings
from ledger.shelf import Pushed
from tests.faults.points import Point, points
from tests.faults.registry_model import RegistryModel
from tests.integration.registry_kinds import KINDS as KINDS_OF_REGISTRY
from tests.integration.registry_kinds import Kind
from tests.integration.registry_server import DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, RegistryServer
from tests.integration.retention_site import OLD, RetentionSite, retention_site
from worker.chores import go_on
from worker.kinds import KINDS
from worker.registry.manifests import ACCEPT, DOCKER_LIST
from worker.retention.decisions import Action, read_plan
from worker.retention.protection import QUARANTINE

pytestmark = pytest.mark.thorough

BEGINNING = datetime(2025, 1, 1, tzinfo=UTC)
TAGS = st.sampled_from(["latest", "v1", "v2", "main-1", "main-2", "x"])
WHICH = st.integers(0, 1000)
"""Of what there is, the n-th (modulo)."""
PACE = st.sampled_from([1, 1, 1, 0, None])
"""Hours after the last push on record; None: past us."""
LIES = st.sampled_from([OLD, OLD, OLD, OLD, None, "0001-01-01T00:00:00Z", "1970-01-01T00:00:00Z", "2999-01-01T00:00:00Z"])
POLICIES: list[dict[str, Any]] = [
    {"delete": ["*"], "keep": [{"last": 1}]},
    {"delete": ["*"], "keep": [{"last": 2}], "protect": ["latest"], "delete_untagged_after": "0s"},
    {"delete": ["*"], "keep": [{"matching": ["v*"]}], "delete_untagged_after": "0s"},
    {"delete": ["main-*", "x"], "keep": [{"last": 1, "tags": ["main-*"]}]},
]
HEADERS = {"Accept": ACCEPT}
_numbers = itertools.count()


class Killed(BaseException):
    """As SIGKILL: nothing catches it, and what it interrupts cleans nothing up."""


class RetentionMachine(RuleBasedStateMachine):
    """One repository's life."""

    settings: Settings
    registry: RegistryServer
    kind: Kind
    folder: Path
    happened: Counter[str]

    def __init__(self) -> None:
        super().__init__()
        self.loop, self.stack = asyncio.new_event_loop(), AsyncExitStack()
        repository = f"machine{next(_numbers)}/app"
        self.site: RetentionSite = self.run(self.stack.enter_async_context(retention_site(self.settings, self.registry, repository)))
        self.run(self.site.ledger.connection.command("FLUSHALL"))
        self.repository, self.http = repository, self.registry.http()
        self.model = RegistryModel(self.site.name)
        self.pins: set[str] = set()
        self.running: set[str] = set()
        self.clock = BEGINNING
        self.looked = False
        self.plans: dict[str, set[tuple[str, str]]] = {}
        """What each plan may take away: tags, with their digests."""
        self.policy = POLICIES[0]
        self.changed = False
        """Whether retention has changed anything since garbage was collected."""

    def run(self, coroutine: Any) -> Any:
        return self.loop.run_until_complete(coroutine)

    def teardown(self) -> None:
        self.http.close()
        self.run(self.stack.aclose())
        self.loop.close()

    # What people do

    @initialize(
        policy=st.sampled_from(POLICIES),
        images=st.lists(st.tuples(TAGS, st.integers(0, 5), LIES, st.booleans(), PACE), min_size=5, max_size=9),
        indexes=st.lists(st.tuples(TAGS, st.lists(WHICH, min_size=1, max_size=3), st.booleans(), PACE), max_size=2),
        about=st.lists(st.tuples(WHICH, st.integers(0, 4)), max_size=2),
        ours=st.sampled_from([True, True, True, False]),
    )
    def begin(self, policy: dict[str, Any], images: list[Any], indexes: list[Any], about: list[tuple[int, int]], ours: bool) -> None:
        """A repository that was there before, where we may have made all pushes."""
        self.change_policy(policy)
        self.report(set())
        for *image, pace in images:
            self.push(*image, 1 if ours and pace is None else pace)
        for *index, pace in indexes:
            self.push_index(*index, 1 if ours and pace is None else pace)
        for which, kind in about:
            self.refer(which, kind) if kind < 3 else self.sign(which, ".sig")

    @rule(policy=st.sampled_from(POLICIES))
    def change_policy(self, policy: dict[str, Any]) -> None:
        self.policy = policy
        self.run(self.site.settle(policy, clusters={"prod": {"token": {"env": "PROD_TOKEN"}}}))

    @rule(tag=TAGS, content=st.integers(0, 5), created=LIES, docker=st.booleans(), pace=PACE)
    def push(self, tag: str, content: int, created: str | None, docker: bool, pace: int | None) -> None:
        if not self.free(tag):
            return
        media_type = DOCKER_MANIFEST if docker else OCI_MANIFEST
        layers = (b"base", b"content %d" % content)
        raw = self.registry.push_image(self.repository, tag, layers=layers, created=created, media_type=media_type)
        self.record(tag, self.model.add(raw, tag, dated=created == OLD), pace)

    @rule(tag=TAGS, which=WHICH, pace=PACE)
    def retag(self, tag: str, which: int, pace: int | None) -> None:
        if self.model.manifests and self.free(tag):
            digest = self.pick(which)
            self.put(tag, digest)
            self.record(tag, digest, pace)

    @rule(tag=TAGS, which=st.lists(WHICH, min_size=1, max_size=3), docker=st.booleans(), pace=PACE)
    def push_index(self, tag: str, which: list[int], docker: bool, pace: int | None) -> None:
        if self.model.manifests and self.free(tag):
            chosen = dict(zip(("linux/amd64", "linux/arm64", "linux/arm/v7"), map(self.pick, which), strict=False))
            children = {platform: self.model.manifests[digest].raw for platform, digest in chosen.items()}
            media_type = DOCKER_LIST if docker else OCI_INDEX
            raw = self.registry.push_index(self.repository, tag, children, media_type=media_type)
            self.record(tag, self.model.add(raw, tag), pace)

    @rule(content=st.integers(0, 5))
    def push_without_a_tag(self, content: int) -> None:
        raw = self.registry.push_image(self.repository, None, layers=(b"base", b"content %d" % content), created=OLD)
        self.model.add(raw, dated=True)

    @rule(which=WHICH, kind=st.integers(0, 2))
    def refer(self, which: int, kind: int) -> None:
        if self.model.manifests:
            subject = self.model.manifests[self.pick(which)].raw
            self.model.add(self.registry.push_referrer(self.repository, subject, artifact_type=f"application/vnd.test.{kind}"))

    @rule(which=WHICH, ending=st.sampled_from([".sig", ".att", ""]))
    def sign(self, which: int, ending: str) -> None:
        if self.model.manifests:
            tag = self.pick(which).replace(":", "-") + ending
            if self.free(tag):
                raw = self.registry.push_image(self.repository, tag, layers=(f"about {tag}".encode(),))
                self.model.add(raw, tag)

    @rule(which=WHICH, by_name=st.booleans())
    def pin(self, which: int, by_name: bool) -> None:
        if mark := self.mark(which, by_name):
            self.run(self.site.ledger.shelf.pin(mark, "ada"))
            self.pins.add(mark)

    @precondition(lambda self: self.pins)
    @rule()
    def unpin_all(self) -> None:
        self.run(self.site.unpin_all())
        self.pins.clear()

    @rule(which=st.lists(st.tuples(WHICH, st.booleans()), max_size=1))
    def deploy(self, which: list[tuple[int, bool]]) -> None:
        self.report({mark for number, by_name in which if (mark := self.mark(number, by_name))})

    # What retention does

    @rule(age=st.sampled_from([timedelta(0), timedelta(minutes=10)]))
    def plan(self, age: timedelta) -> None:
        """`age`: what was seen within it is not asked for again, so the plan may be made of what is no longer so."""
        with patch("worker.retention.planning._TAG_AGE", age):
            sha = self.run(self.site.plan())
        if not self.looked:
            self.looked = True
            self.model.undated = set(self.model.tags)
        decided = [one for one in self.decided(sha) if one.action is not Action.KEEP]
        spared = self.spared()
        wrong = {one.tag for one in decided if one.tag in spared and not age}
        assert not wrong, f"planned to take {wrong}, which must stay"
        self.happened["untouched"] += len(spared) == len(self.model.tags) > 1
        self.plans[sha] = {(one.tag, one.digest) for one in decided if one.tag}
        self.look()

    @rule(at=st.one_of(st.none(), st.integers(0, 8)))
    def adopt(self, at: int | None) -> None:
        """What nobody knows the age of counts from now on."""
        chore = f"adopt:{self.site.name}"
        self.run(start(self.site.ledger, self.site.name, {}))
        self.go(chore, at, "killed")
        if not self.run(self.site.ledger.chores.read(chore)).progress["unread"]:
            self.looked = True
            self.model.undated.clear()
        self.look()

    @precondition(lambda self: self.plans)
    @rule(which=WHICH, at=st.one_of(st.none(), st.integers(0, 40)), how=st.sampled_from(["killed", "killed", "pushed", "indexed"]))
    def apply(self, which: int, at: int | None, how: str) -> None:
        sha = list(self.plans)[which % len(self.plans)]
        self.run(self.site.approve(sha))
        planned = self.plans.pop(sha)
        may = planned & set(self.model.tags.items())
        may = {(tag, digest) for tag, digest in may if tag not in self.spared()}
        self.go(f"apply:{sha}", at, how)
        gone = self.look(may={tag for tag, _ in may})
        self.happened["tags gone"] += len(gone)

    @rule(at=st.one_of(st.none(), st.integers(0, 40)))
    def retire(self, at: int | None) -> None:
        """As a night does."""
        self.plan(timedelta(0))
        planned, before = list(self.plans.values())[-1], self.model.tags
        self.apply(len(self.plans) - 1, at, "killed")
        assert before.keys() - self.model.tags.keys() == {tag for tag, _ in planned}

    @precondition(lambda self: self.bin())
    @rule(which=WHICH, at=st.one_of(st.none(), st.integers(0, 20)))
    def undo(self, which: int, at: int | None) -> None:
        entries = self.bin()
        sha = entries[which % len(entries)].plan
        mine = [entry for entry in entries if entry.plan == sha]
        back = {tag: entry.digest for entry in mine for tag in entry.tags if tag not in self.model.tags}
        at_home = {tag for entry in mine for tag in entry.tags if self.model.tags.get(tag, entry.digest) == entry.digest}
        self.run(self.site.ledger.chores.start(f"undo:{sha}", self.registry.host))
        self.go(f"undo:{sha}", at, "killed")
        self.look(back=back)
        assert back.items() <= self.model.tags.items()
        self.happened["tags back"] += len(back)
        self.pins |= {f"{self.site.name}:{tag}" for tag in at_home}
        assert not [entry for entry in self.bin() if entry.plan == sha]

    @precondition(lambda self: self.bin())
    @rule(at=st.one_of(st.none(), st.integers(0, 30)), how=st.sampled_from(["killed", "killed", "indexed"]))
    def purge(self, at: int | None, how: str) -> None:
        self.run(self.site.window_ends())
        due = {entry.digest for entry in self.bin() if entry.goes}
        self.run(self.site.ledger.chores.start(f"purge:{self.registry.host}", self.registry.host))
        self.go(f"purge:{self.registry.host}", at, how)
        gone = {digest for digest in self.model.manifests if not self.there(f"manifests/{digest}")}
        assert gone <= due
        missed = gone & self.model.must_stay(self.marks)
        assert not missed, [(self.model.manifests[digest], self.model.tags, self.model.above(digest)) for digest in missed]
        self.happened["digests gone"] += len(gone)
        self.happened["digests rescued"] += len(due - gone)
        for digest in gone:
            del self.model.manifests[digest]
        self.look()

    @precondition(lambda self: self.kind.program != "zot" and self.model.manifests and self.changed)
    @rule()
    def collect_garbage(self) -> None:
        """As a night's collection does, in which everything is done by the registry's own program."""
        assert self.kind.binary
        config = self.folder / "config.yml"
        subprocess.run([self.kind.binary, "garbage-collect", config], check=True, capture_output=True)
        for known in self.model.manifests.values():
            assert all(self.there(f"blobs/{blob}") for blob in known.blobs)
        self.look()
        self.changed = False
        self.happened["collections"] += 1

    # What must be true

    def look(self, may: set[str] | None = None, back: dict[str, str] | None = None) -> set[str]:
        """Hold the registry against the model. `may`: tags that may be gone, and are then; `back`: tags that may be back. The gone ones."""
        found, expected = self.site_state(), {**self.model.tags, **(back or {})}
        gone = expected.keys() - found.keys()
        assert gone <= (may or set()), f"lost: {gone - (may or set())}"
        assert all(expected.get(tag) == digest for tag, digest in found.items())
        for tag in self.model.tags.keys() ^ found.keys():
            self.model.undated.discard(tag)
        self.model.tags = found
        self.changed = True
        for digest in self.model.manifests:
            assert self.there(f"manifests/{digest}"), f"{digest} is gone"
        for digest in self.model.must_stay(self.marks):
            answer = self.http.get(f"{self.repository}/manifests/{digest}", headers=HEADERS)
            assert answer.content == self.model.manifests[digest].raw
        return gone

    # Small things

    @property
    def marks(self) -> set[str]:
        return self.pins | self.running

    def spared(self) -> set[str]:
        known = self.run(self.site.ledger.shelf.pushes(self.site.name))
        return self.model.spared(self.policy, self.marks, {tag: (one.digest, one.at) for tag, one in known.items()})

    def decided(self, sha: str) -> list[Any]:
        made = read_plan(self.run(self.site.ledger.plans.text(sha)), sha)
        return [one for repository in made.repositories for one in repository.decisions]

    def site_state(self) -> dict[str, str]:
        """The tags that people see, and their digests."""
        answer = self.http.get(f"{self.repository}/tags/list")
        names = (answer.json().get("tags") or []) if answer.status_code == 200 else []
        heads = {
            tag: self.http.head(f"{self.repository}/manifests/{tag}", headers=HEADERS) for tag in names if not tag.startswith(QUARANTINE)
        }
        return {tag: head.headers["docker-content-digest"] for tag, head in heads.items() if head.status_code == 200}

    def there(self, path: str) -> bool:
        return self.http.head(f"{self.repository}/{path}", headers=HEADERS).status_code == 200

    def free(self, tag: str) -> bool:
        """Whether a tag may be put somewhere else; zot forgets a manifest that loses its last tag so."""
        before = self.model.tags.get(tag)
        return not (self.kind.forgets_untagged and before and list(self.model.tags.values()).count(before) == 1)

    def pick(self, which: int) -> str:
        digests = list(self.model.manifests)
        return digests[which % len(digests)]

    def mark(self, which: int, by_name: bool) -> str | None:
        """A tag's name, or a digest: that of a tag, or any."""
        tags = sorted(self.model.tags)
        if not tags:
            return None
        tag = tags[which % len(tags)]
        if by_name:
            return f"{self.site.name}:{tag}"
        return self.model.tags[tag] if which % 4 else self.pick(which)

    def put(self, tag: str, digest: str) -> None:
        known = self.model.manifests[digest]
        url = f"{self.repository}/manifests/{tag}"
        self.http.put(url, content=known.raw, headers={"Content-Type": known.media_type}).raise_for_status()
        self.model.put(tag, digest)

    def record(self, tag: str, digest: str, pace: int | None) -> None:
        if pace is not None:
            self.clock += timedelta(hours=pace)
            image = ImageReference.parse(f"{self.site.name}:{tag}")
            self.run(self.site.ledger.shelf.record_push([image], Pushed(digest, self.clock, None)))

    def report(self, marks: set[str]) -> None:
        self.running = marks
        self.run(self.site.ledger.usage.store("prod", dict.fromkeys(marks, "a pod"), self.run(self.site.ledger.now())))

    def bin(self) -> list[BinEntry]:
        return list(self.run(self.site.ledger.bin.entries(self.site.name)))

    def go(self, chore: str, at: int | None, how: str) -> None:
        """Go on with a chore to its end; at the n-th effect something happens."""
        passed = 0

        def act(point: Point) -> None:
            nonlocal passed
            if point.is_effect:
                passed += 1
                if passed - 1 == at:
                    self.happened[how] += 1
                    self.meanwhile(how, passed)

        if at is not None:
            with points(act):
                try:
                    self.run(go_on(self.site.place, chore, KINDS))
                except* Killed:
                    pass
            self.run(self.site.claim_is_over(chore))
            for digest in self.model.must_stay(self.marks) if how == "killed" and not chore.startswith("purge") else ():
                assert self.there(f"manifests/{digest}")
        self.run(self.site.run(chore))
        ended = self.run(self.site.ledger.chores.read(chore))
        assert ended.state is not ChoreState.STOPPED, ended.said

    def meanwhile(self, how: str, number: int) -> None:
        if how == "killed":
            raise Killed
        if self.model.manifests and how == "pushed":
            self.put(f"meanwhile-{number}", self.pick(number))
        if self.model.manifests and how == "indexed":
            digest = self.pick(number)
            if self.there(f"manifests/{digest}"):
                child = {"linux/amd64": self.model.manifests[digest].raw}
                raw = self.registry.push_index(self.repository, f"meanwhile-{number}", child)
                self.model.add(raw, f"meanwhile-{number}")


@pytest.mark.parametrize("kind", KINDS_OF_REGISTRY)
def test_no_byte_is_lost_that_anything_needs(settings: Settings, tmp_path: Path, kind: str) -> None:
    with KINDS_OF_REGISTRY[kind].run(tmp_path) as server:

        class Machine(RetentionMachine):
            registry, folder, happened = server, tmp_path, Counter[str]()

        Machine.settings, Machine.kind = settings, KINDS_OF_REGISTRY[kind]
        quick = hypothesis_settings(max_examples=12, stateful_step_count=30, suppress_health_check=list(HealthCheck))
        run_state_machine_as_test(Machine, settings=quick)
        assert Machine.happened["tags gone"], Machine.happened
