"""What the projects file may say about old images: which may go at all, and which of them stay.

Nothing goes by default. A tag may be deleted only where a pattern of `delete` names it and no rule of `keep` keeps it: each rule only ever
adds to what stays, so that a rule more never costs an image. What the rules mean for real tags is decided in `worker/retention/`.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ledger.fields import Duration, Frozen, checked
from ledger.patterns import branch_template, repository_pattern, tag_pattern
from ledger.quantities import parse_duration

TagPattern = Annotated[str, checked(tag_pattern)]
RepositoryPattern = Annotated[str, checked(repository_pattern)]
BranchTemplate = Annotated[str, checked(branch_template)]
_KINDS = ("last", "within", "pulled", "matching", "versions")


class Keep(Frozen):
    """One reason to stay; each rule is one of `last`, `within`, `pulled`, `matching` and `versions`."""

    last: Annotated[int, Field(ge=1)] | None = None
    """The newest so many images by the time of their push, with all their tags; of equal times all stay."""
    per_branch: BranchTemplate | None = None
    """With `last`: so many of each branch. The branch is that of our push; of other tags what a template as `{branch}-{short_sha}` finds."""
    within: Duration | None = None
    """Everything that was pushed within this time."""
    pulled: Duration | None = None
    """Everything that was pulled or pushed within this time, and all of which the registry does not tell when it was pulled."""
    matching: Annotated[tuple[TagPattern, ...], Field(min_length=1)] | None = None
    """Every tag that one of these patterns names."""
    versions: Annotated[int, Field(ge=1)] | None = None
    """The highest so many versions (`1.2.3`, `v1.2.3`), with the tags `1.2` and `1` that go with them."""
    per: Literal["major", "minor"] | None = None
    """With `versions`: so many of each major (1.x) or minor (1.2.x) line."""
    suffixes: bool = False
    """With `versions`: also tags as `1.2.3-alpine` and `1.2.3-rc.1`; they stay and go with their version."""
    tags: tuple[TagPattern, ...] = ()
    """Only these tags are looked at by the rule; none: all."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        given = [kind for kind in _KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(f"each rule is one of {', '.join(_KINDS)}, and this one is {' and '.join(given) or 'none'}")
        if self.per_branch is not None and self.last is None:
            raise ValueError("per_branch: goes with `last` only")
        if (self.per or self.suffixes) and self.versions is None:
            raise ValueError("per, suffixes: go with `versions` only")
        if self.tags and self.matching:
            raise ValueError("tags: the patterns of `matching` say it already")
        return self


class Retention(Frozen):
    """The policy of some repositories. In each project the first that names a repository is its policy."""

    repositories: Annotated[tuple[RepositoryPattern, ...], Field(min_length=1)]
    """Repositories with their registry, as registry.example.com/team/app; `*` is any text without '/', `**` any text."""
    delete: tuple[TagPattern, ...] = ()
    """Tags that may be deleted; all others stay."""
    keep: tuple[Keep, ...] = ()
    protect: tuple[TagPattern, ...] = ()
    """Tags that stay whatever becomes of the rules."""
    delete_untagged_after: Duration | None = None
    """How long an image without a tag stays; unset: for ever. Parts of images that stay do so in any case."""
    minimum: Annotated[int, Field(ge=1)] = 1
    """So many of the newest images always stay: the last tag is never deleted."""
    grace: Duration = "1d"
    """What was pushed within this time stays, whatever the rules say."""
    max_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """The largest part of a repository's tags that one plan deletes; the oldest go first."""
    max_count: Annotated[int, Field(ge=1)] = 1000
    """The most tags and untagged images of a repository that one plan deletes."""
    undo: Duration = "7d"
    """How long what a plan took away can be put back; only then is it deleted for good. `0s`: at once."""
    apply: Literal["review", "automatic"] = "review"
    """Whether somebody approves each plan, or the night's run applies it."""
    used_by_no_cluster: bool = False
    """No cluster runs these images, so that none is asked before a plan is applied automatically."""

    @model_validator(mode="after")
    def _keeps_something(self) -> Self:
        if self.delete and not self.keep:
            raise ValueError("keep: `delete` names tags, so say which of them stay, as `keep: [{last: 10}]`")
        if self.keep and not self.delete:
            raise ValueError('delete: rules to keep need tags that may go, as `delete: ["*"]`')
        return self

    @property
    def asks_for_pulls(self) -> bool:
        """Whether it matters when tags were pulled."""
        return any(rule.pulled is not None for rule in self.keep)

    @property
    def grace_age(self) -> timedelta:
        return timedelta(seconds=parse_duration(self.grace))

    @property
    def undo_time(self) -> timedelta:
        return timedelta(seconds=parse_duration(self.undo))

    @property
    def untagged_age(self) -> timedelta | None:
        return None if self.delete_untagged_after is None else timedelta(seconds=parse_duration(self.delete_untagged_after))
