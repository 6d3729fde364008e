"""Events: valid by our schema and by an independent reader, CloudEvents' envelope and CDEvents' context alike, ids deterministic."""

from __future__ import annotations

import json
from datetime import datetime

import pytest
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from jsonschema import Draft202012Validator

from ledger.build import Reason, State
from ledger.events import EventType, event, queued
from ledger.references import ImageReference
from ledger.schema import FOLDER, schemas, text_of
from tests.requests import make_build

DIGEST = "sha256:" + "a" * 64


def told(kind: EventType, **changes):
    return json.loads(
        event(kind, make_build(**changes), image=ImageReference.parse("r.example.com/a/demo:1") if kind is EventType.PUBLISHED else None)
    )


@pytest.mark.parametrize("kind", list(EventType))
@pytest.mark.parametrize(
    "changes", [{}, {"state": State.SUCCEEDED, "digest": DIGEST}, {"state": State.FAILED, "reason": Reason.BUILD_FAILED, "message": "no"}]
)
def test_every_event_is_valid(kind, changes):
    text = event(kind, make_build(**changes))
    Draft202012Validator(schemas()["event.json"], format_checker=Draft202012Validator.FORMAT_CHECKER).validate(json.loads(text))
    read = JSONFormat().read(CloudEvent, text)
    context = json.loads(text)["data"]["context"]
    assert (read.get_id(), read.get_source(), read.get_type()) == (context["id"], context["source"], context["type"])
    assert read.get_time() == datetime.fromisoformat(context["timestamp"])
    assert read.get_subject() == json.loads(text)["data"]["subject"]["id"]


def test_the_first_event_is_as_all_others():
    """It is said before there is a record; nobody could tell."""
    build = make_build()
    without_time = [{**json.loads(text), "time": None} for text in (queued(build.id, build.request), event(EventType.QUEUED, build))]
    for one in without_time:
        one["data"]["context"]["timestamp"] = None
    assert without_time[0] == without_time[1]


def test_a_repeat_has_the_same_id_and_another_event_has_not():
    first = told(EventType.STARTED, attempt=1)
    assert told(EventType.STARTED, attempt=1)["id"] == first["id"]
    others = [told(EventType.STARTED, attempt=2), told(EventType.FINISHED, attempt=1)]
    assert len({first["id"], *(other["id"] for other in others)}) == 3


@pytest.mark.parametrize(
    ("state", "outcome"),
    [(State.SUCCEEDED, "success"), (State.FAILED, "failure"), (State.CANCELLED, "cancel"), (State.SUPERSEDED, "cancel")],
)
def test_a_finished_event_says_the_outcome(state, outcome):
    assert told(EventType.FINISHED, state=state)["data"]["customData"]["outcome"] == outcome


def test_a_published_artifact_is_a_purl():
    published = told(EventType.PUBLISHED, state=State.SUCCEEDED, digest=DIGEST)
    assert published["subject"] == f"pkg:oci/demo@sha256%3A{'a' * 64}?repository_url=registry.example.com/team/demo"
    assert published["data"]["customData"]["image"] == "r.example.com/a/demo:1"


@pytest.mark.parametrize("name", list(schemas()))
def test_the_schemas_in_the_repository_are_the_codes(name):
    assert (FOLDER / name).read_text() == text_of(schemas()[name]), "run `make schemas` and commit what changed"
