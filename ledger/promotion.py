"""A promotion: an image that is there already gets further tags, perhaps in another repository or registry, without being built again.

The request never changes; the record does, and is what the chore that does the work (`ledger/chores.py`) keeps of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, StringConstraints, ValidationError, model_validator

from ledger.errors import RequestInvalid
from ledger.fields import Frozen, Image, Project
from ledger.references import ImageReference, is_fixed
from ledger.request import problems_of


def _digested(text: str) -> str:
    if ImageReference.parse(text).digest is None:
        raise ValueError(f"{text[:200]!r} must name a digest, as registry.example.com/team/app@sha256:…; a tag may move while it is copied")
    return text


def _tagged(text: str) -> str:
    reference = ImageReference.parse(text)
    if reference.tag is None or reference.digest is not None:
        raise ValueError(f"{text[:200]!r} must name a tag and no digest, as registry.example.com/team/app:stable")
    return text


class PromotionRequest(Frozen):
    """What is asked for."""

    schema_version: Literal[1] = 1
    project: Project
    """Whose policy must allow it, and whose credentials are used."""
    image: Annotated[Image, AfterValidator(_digested)]
    """What is promoted, by its digest: an image, or an index with all its platforms."""
    targets: Annotated[tuple[Annotated[Image, AfterValidator(_tagged)], ...], Field(max_length=50)]
    """Which tags it gets, in repositories of one registry."""
    by: Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]{1,200}$")] | None = None
    """Who asks, for the record."""

    @model_validator(mode="after")
    def _coherent(self) -> Self:
        if not self.targets:
            raise ValueError("targets: name at least one image with its tag")
        if len(set(self.targets)) < len(self.targets):
            raise ValueError("targets: the same image is named twice")
        if len({image.registry for image in self.images}) > 1:
            raise ValueError("targets: name tags of one registry at a time; another registry's are another promotion")
        return self

    @classmethod
    def parse(cls, data: Mapping[str, Any] | str | bytes) -> Self:
        """A request from JSON or a mapping. RequestInvalid names each bad field."""
        try:
            return cls.model_validate_json(data) if isinstance(data, str | bytes) else cls.model_validate(data)
        except ValidationError as error:
            raise RequestInvalid(problems_of(error)) from None

    @cached_property
    def source(self) -> ImageReference:
        return ImageReference.parse(self.image)

    @property
    def digest(self) -> str:
        assert self.source.digest
        return self.source.digest

    @cached_property
    def images(self) -> tuple[ImageReference, ...]:
        """The targets."""
        return tuple(map(ImageReference.parse, self.targets))

    @property
    def registry(self) -> str:
        """That of the targets."""
        return self.images[0].registry

    @property
    def repositories(self) -> tuple[str, ...]:
        """The targets' repositories, with their registry."""
        return tuple(dict.fromkeys(image.name for image in self.images))

    @property
    def fixed(self) -> tuple[ImageReference, ...]:
        """The targets that never move once they are set: full versions."""
        return tuple(image for image in self.images if is_fixed(image.tag or "", commit=None, ref=None))


class PromotionState(StrEnum):
    """Where a promotion stands."""

    WAITING = "waiting"  # a worker copies, or will
    PROMOTED = "promoted"  # final: every target was set
    OVERTAKEN = "overtaken"  # final: some target stood at a later push's image already, and was left there
    FAILED = "failed"  # final

    @property
    def final(self) -> bool:
        return self is not PromotionState.WAITING


class Promotion(Frozen):
    """The record of one promotion."""

    schema_version: Literal[1] = 1
    id: str
    request: PromotionRequest
    sequence: int
    """Its place among all pushes and promotions, given when it was taken in: it moves no tag that a later one has moved."""
    created: datetime
    """When it was taken in, by Redis's clock."""
    state: PromotionState = PromotionState.WAITING
    moving: bool = False
    """It has begun to move tags."""
    doubtful: bool = False
    """A step was stopped while it moved tags, and may yet wake up: so they are looked at once more after the end."""
    tries: int = 0
    """How often a worker has begun with it."""
    promoted: tuple[str, ...] = ()
    """The targets that were set."""
    overtaken: tuple[str, ...] = ()
    """Those that stood at a later push's image already, and were left there."""
    message: str | None = None
    """What went wrong or is waited for, for people."""

    @property
    def chore(self) -> str:
        return chore_of(self.id)

    @property
    def moved_tags(self) -> tuple[ImageReference, ...]:
        """Those of its targets that move from push to push."""
        return tuple(image for image in self.request.images if image not in self.request.fixed)

    def to_progress(self) -> dict[str, Any]:
        """As its chore keeps it."""
        return self.model_dump(mode="json", exclude_none=True)

    def changed(self, **changes: Any) -> Self:
        return self.model_copy(update=changes)


def chore_of(promotion: str) -> str:
    """The name of the chore that does a promotion's work."""
    return f"promote:{promotion}"
