"""Every Redis key of the ledger. The Lua under ledger/lua/ builds the same names from the same prefix.

The braces make all keys one hash slot, which is what scripts that touch many of them need on a Redis Cluster.
"""

from __future__ import annotations

from dataclasses import dataclass

from ledger.build import State


@dataclass(frozen=True, slots=True)
class Keys:
    """The names, for one prefix."""

    prefix: str

    @property
    def root(self) -> str:
        """What each key begins with; handed to every script."""
        return f"{{{self.prefix}}}:"

    @property
    def identity(self) -> str:
        """Which ledger this is: a random text, made once."""
        return f"{self.root}identity"

    @property
    def sequence(self) -> str:
        """Number: the place in the order of all pushes and promotions that was given last."""
        return f"{self.root}seq"

    def build(self, build: str) -> str:
        """Hash: the record. Also the Pub/Sub channel that tells of its changes."""
        return f"{self.root}b:{build}"

    def index(self, project: str | None, state: State) -> str:
        """Sorted set, all scores 0: build ids, which are in order of time."""
        return f"{self.root}i:{project or ''}:{state}"

    def queue(self, project: str) -> str:
        """Sorted set: the project's builds that may be admitted, best first."""
        return f"{self.root}q:{project}"

    def slots(self, project: str = "") -> str:
        """Sorted set: `build/attempt/platform` -> when the slot was taken (ms). Without a project: all slots."""
        return f"{self.root}slots:{project}"

    def class_slots(self, capacity_class: str) -> str:
        """The same for a capacity class."""
        return f"{self.root}slots|class|{capacity_class}"

    def key_slots(self, project: str, key: str) -> str:
        """The same for a project's concurrency key."""
        return f"{self.root}slots|key|{project}|{key}"

    @property
    def limits(self) -> str:
        """Hash: scope -> how many slots, as the projects file says. See `ledger.limits.Scope.field`."""
        return f"{self.root}limits"

    @property
    def limits_set(self) -> str:
        """Hash: the same as set by hand, which goes before the file."""
        return f"{self.root}limits:set"

    @property
    def paused(self) -> str:
        """Hash: scope -> since when nothing of it is admitted (ms)."""
        return f"{self.root}paused"

    @property
    def gates(self) -> str:
        """Hash: what admissions look at, made of the three: scope -> the limit that holds; `p|` and a scope -> since when it is paused; `h|` and a registry -> its hold."""
        return f"{self.root}gates"

    @property
    def shares(self) -> str:
        """Hash: '' -> the virtual time of the last admission (ms); a project -> its own; `cost|` and a project -> how long its builds hold
        a slot (ms); `weight|` and a project -> its weight.
        """
        return f"{self.root}shares"

    @property
    def holds(self) -> str:
        """Hash: registry -> `since until who` (ms) of its hold: what writes to it is not admitted. Also in `gates`, under `h|`."""
        return f"{self.root}holds"

    @property
    def holds_until(self) -> str:
        """Sorted set: held registries -> when their holds end by themselves (ms)."""
        return f"{self.root}holds:until"

    def lanes(self, registry: str) -> str:
        """Set: `project|class|lane` of the lanes that are not empty and whose builds write to a registry. The same of a project's concurrency
        key is behind `lanes|key|PROJECT|KEY`.
        """
        return f"{self.root}lanes:{registry}"

    def turns(self, capacity_class: str) -> str:
        """Sorted set: projects that have builds of the class to admit and are below their limit -> virtual time (ms that they held slots,
        divided by their weight); the least goes next.
        """
        return f"{self.root}turns:{capacity_class}"

    @property
    def classes(self) -> str:
        """Hash: capacity class -> how many projects have builds of it waiting."""
        return f"{self.root}classes"

    @property
    def due(self) -> str:
        """Sorted set: unfinished builds -> when the leader looks at them again (ms)."""
        return f"{self.root}due"

    @property
    def delayed(self) -> str:
        """Sorted set: queued builds that may not be admitted yet -> from when on (ms)."""
        return f"{self.root}delayed"

    @property
    def finished(self) -> str:
        """Sorted set: finished builds -> when they are forgotten (ms)."""
        return f"{self.root}finished"

    @property
    def events(self) -> str:
        """Stream: one field `event`, a CloudEvent's JSON."""
        return f"{self.root}events"

    @property
    def projects(self) -> str:
        """Hash: project -> its part of the projects file, as JSON."""
        return f"{self.root}projects"

    @property
    def site(self) -> str:
        """What the projects file says that is no project's, as JSON."""
        return f"{self.root}site"

    @property
    def project_versions(self) -> str:
        """Hash: project -> a short digest of what `projects` holds."""
        return f"{self.root}projects:versions"

    def accepted(self, project: str) -> str:
        """Hash: Git ref -> the commit last accepted for it."""
        return f"{self.root}accepted:{project}"

    def log(self, build: str, attempt: int) -> str:
        """Stream: chunks of an attempt's log."""
        return f"{self.root}log:{build}:{attempt}"

    @property
    def logs(self) -> str:
        """Sorted set: `build:attempt` -> when its log was last written; sizes are in `log_sizes`."""
        return f"{self.root}logs"

    @property
    def log_sizes(self) -> str:
        """Hash: `build:attempt` -> bytes; '' -> bytes of all."""
        return f"{self.root}logs:sizes"

    def tags(self, repository: str) -> str:
        """Hash: tag -> `sequence digest by`, what the tag is wanted to be; by: a build, or `promotion:` and its id."""
        return f"{self.root}tags:{repository}"

    @property
    def unsettled(self) -> str:
        """Sorted set: builds whose mutable tags are to be looked at once more -> when (ms)."""
        return f"{self.root}tags:unsettled"

    @property
    def full(self) -> str:
        """Exists while memory is short: nothing is taken in, so that what runs can end."""
        return f"{self.root}full"

    @property
    def mended(self) -> str:
        """List: what the steps have mended and no event has told yet, each `what build`."""
        return f"{self.root}mended"

    def pauses(self, field: str) -> str:
        """List: the last pauses of a scope, or holds of a registry (`h|` and its host), that have ended, each `since until` (ms)."""
        return f"{self.root}pauses:{field}"

    def lease(self, name: str) -> str:
        """Hash: owner, fence; expires when it is not renewed."""
        return f"{self.root}lease:{name}"

    def evidence(self, registry: str) -> str:
        """Hash: repository -> what its tags needed before a collection (zlib JSON); '' -> the run that wrote it. Expires."""
        return f"{self.root}evidence:{registry}"

    # Chores and schedules

    def chore(self, name: str) -> str:
        """Hash: registry, state, progress (JSON), fence, until when it is held (ms), said, tries, times."""
        return f"{self.root}chore:{name}"

    @property
    def chores(self) -> str:
        """Sorted set: chores that have not ended -> when a worker is to come (ms)."""
        return f"{self.root}chores"

    @property
    def chores_ended(self) -> str:
        """Sorted set: chores that have ended -> when (ms)."""
        return f"{self.root}chores:ended"

    @property
    def chores_active(self) -> str:
        """Hash: registry -> the chore that is under way there."""
        return f"{self.root}chores:active"

    @property
    def schedules(self) -> str:
        """Hash: schedule -> its last occurrence that was taken (ms)."""
        return f"{self.root}schedules"

    # Registries. A repository is named with its registry.

    def seen(self, repository: str) -> str:
        """What the last survey saw of a repository: zlib of JSON."""
        return f"{self.root}reg:seen:{repository}"

    @property
    def manifests(self) -> str:
        """Hash: digest -> media type, a line end, zlib of the manifest's bytes."""
        return f"{self.root}reg:manifests"

    @property
    def manifests_used(self) -> str:
        """Sorted set: digest -> when a survey last asked for its manifest or age (ms)."""
        return f"{self.root}reg:manifests:used"

    @property
    def created(self) -> str:
        """Hash: digest -> what the image says of its age (ISO 8601), empty where it says nothing."""
        return f"{self.root}reg:created"

    def pushes(self, repository: str) -> str:
        """Hash: tag -> our last push of it: JSON of digest, time (ms), branch."""
        return f"{self.root}reg:pushes:{repository}"

    def told(self, repository: str) -> str:
        """Hash: tag -> when it was pushed (ms), as somebody says who has the repository adopted. It goes once that is done."""
        return f"{self.root}reg:told:{repository}"

    @property
    def pins(self) -> str:
        """Hash: digest, or registry/repository:tag -> why it is pinned."""
        return f"{self.root}reg:pins"

    @property
    def pinned_by(self) -> str:
        """Hash: the same -> JSON of the image as it was named, who pinned it, when (ms)."""
        return f"{self.root}reg:pins:by"

    def plan(self, sha256: str) -> str:
        """Hash: text (zlib), registry, made (ms), state, totals (JSON), approved_by, despite."""
        return f"{self.root}reg:plan:{sha256}"

    def plans(self, registry: str) -> str:
        """Sorted set: a registry's plans -> when they were made (ms)."""
        return f"{self.root}reg:plans:{registry}"

    @property
    def planned(self) -> str:
        """Set: the registries that have plans."""
        return f"{self.root}reg:planned"

    def report(self, sha256: str) -> str:
        """Hash: `registry/repository:tag` or `registry/repository@digest` -> what became of it, when a plan was applied or undone."""
        return f"{self.root}reg:report:{sha256}"

    def bin(self, repository: str) -> str:
        """Hash: `plan digest` -> JSON of what the plan took away there."""
        return f"{self.root}reg:bin:{repository}"

    def bins(self, registry: str) -> str:
        """Set: the repositories of a registry that have something in the bin."""
        return f"{self.root}reg:bins:{registry}"

    def usage(self, cluster: str) -> str:
        """JSON: what a cluster said it runs, and when."""
        return f"{self.root}reg:usage:{cluster}"
