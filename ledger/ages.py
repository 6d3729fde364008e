"""When an image can have been pushed: between the first image that there was, and now."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

_FIRST_IMAGE = datetime(2013, 3, 1, tzinfo=UTC)
"""Docker was first shown in March 2013. An older image's date is none: year 1, 1970 and 1980 are what reproducible builds write."""
_SKEW = timedelta(minutes=10)
"""How far a clock may be ahead of ours; a later date is none either."""


def credible(at: datetime | None, now: datetime) -> datetime | None:
    """The time where it can be one; None for a date before there were images, and for one yet to come."""
    return None if at is None or at < _FIRST_IMAGE or is_to_come(at, now) else at


def is_to_come(at: datetime, now: datetime) -> bool:
    """Whether a time is later than clocks differ."""
    return at > now + _SKEW
