"""The JSON Schemas of what crosses the wire, written to ledger/schemas/ by `python -m ledger.schema` and kept in the repository.

A test compares them with the code, so that a change of the wire is seen in review.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ledger.build import Build, BuildRequest, State
from ledger.events import (
    CDEVENTS_VERSION,
    OUTCOMES,
    PROMOTION_OUTCOMES,
    QUEUE_SOURCE,
    CollectionEvent,
    EventType,
    PromotionEvent,
    QueueEvent,
    RegistryEvent,
)
from ledger.projects import Projects
from ledger.promotion import Promotion, PromotionRequest, PromotionState

FOLDER = Path(__file__).parent / "schemas"
_TEXT = {"type": "string", "minLength": 1}
_TEXTS = {"type": "array", "items": _TEXT}
_COUNT = {"type": "integer", "minimum": 0}


def schemas() -> dict[str, dict[str, Any]]:
    """Every schema by its file's name."""
    return {
        "request.json": _titled(BuildRequest.model_json_schema(), "A build request"),
        "build.json": _titled(Build.model_json_schema(), "A build's record"),
        "projects.json": _titled(Projects.model_json_schema(), "The projects file"),
        "event.json": _event(),
        "promotion-request.json": _titled(PromotionRequest.model_json_schema(), "A promotion's request"),
        "promotion.json": _titled(Promotion.model_json_schema(), "A promotion's record"),
        "promotion-event.json": _promotion_event(),
        "queue-event.json": _queue_event(),
        "registry-event.json": _registry_event(),
        "collection-event.json": _collection_event(),
    }


def _titled(schema: dict[str, Any], title: str) -> dict[str, Any]:
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": title}


def _event() -> dict[str, Any]:
    custom = {
        "build": _TEXT,
        "project": _TEXT,
        "state": {"enum": [str(state) for state in State]},
        "attempt": {"type": "integer", "minimum": 0},
        "outcome": {"enum": sorted(set(OUTCOMES.values()))},
        **{key: {"type": "string"} for key in ("reason", "message", "ref", "commit", "image", "digest")},
        "destinations": {"type": "array", "items": _TEXT},
    }
    required = ["build", "project", "state", "attempt", "destinations"]
    return _titled(_cd_event([str(kind) for kind in EventType], _object(custom, required)), "An event of a build")


def _promotion_event() -> dict[str, Any]:
    custom = {
        **dict.fromkeys(("promotion", "project", "from", "digest", "by", "image", "message"), _TEXT),
        "state": {"enum": [str(state) for state in PromotionState]},
        "sequence": {"type": "integer", "minimum": 1},
        "outcome": {"enum": sorted(set(PROMOTION_OUTCOMES.values()))},
        "targets": {"type": "array", "items": _TEXT},
        "overtaken": {"type": "array", "items": _TEXT},
    }
    required = ["promotion", "project", "state", "sequence", "from", "digest"]
    return _titled(_cd_event([str(kind) for kind in PromotionEvent], _object(custom, required)), "An event of a promotion")


def _cd_event(kinds: list[str], custom: dict[str, Any]) -> dict[str, Any]:
    """A CloudEvent 1.0 in JSON with a CDEvent in it; what both say must be equal is checked by the tests, which a schema cannot."""
    context = {
        "specversion": {"const": CDEVENTS_VERSION},
        "id": _TEXT,
        "source": {**_TEXT, "format": "uri-reference"},
        "type": {"enum": kinds},
        "timestamp": {"type": "string", "format": "date-time"},
    }
    subject = {"id": _TEXT, "source": {**_TEXT, "format": "uri-reference"}, "content": _object({"artifactId": _TEXT}, required=[])}
    data = {
        "context": _object(context),
        "subject": _object(subject),
        "customData": custom,
        "customDataContentType": {"const": "application/json"},
    }
    return _cloud_event({"enum": kinds}, {**_TEXT, "format": "uri-reference"}, _object(data))


def _registry_event() -> dict[str, Any]:
    """What retention does: each kind tells something else. An artifact that is deleted is a CDEvent."""
    totals = {**dict.fromkeys(("repositories", "keep", "untag", "delete", "digests", "freed"), _COUNT), "review": _TEXTS}
    told: dict[str, dict[str, Any]] = {
        RegistryEvent.PLANNED: totals,
        RegistryEvent.UNTAGGED: {"image": _TEXT, "digest": _TEXT},
        RegistryEvent.APPLIED: {"approved_by": _TEXT, **dict.fromkeys(("untagged", "binned", "skipped"), _COUNT)},
        RegistryEvent.UNDONE: dict.fromkeys(("returned", "left", "lost"), _COUNT),
    }
    source = {"type": "string", "pattern": "^/crabpot/registries/."}
    kinds = [_cloud_event({"const": str(kind)}, source, _object({"plan": _TEXT, **data})) for kind, data in told.items()]
    adopted = {
        **dict.fromkeys(("repositories", "empty", "ageless", "untagged", "strays", "unread"), _COUNT),
        "adopted": _TEXT,
        "tags": {"type": "object", "additionalProperties": _COUNT},
        "listed": {"type": "boolean"},
    }
    kinds.append(_cloud_event({"const": str(RegistryEvent.ADOPTED)}, source, _object(adopted)))
    deleted = _object({"plan": _TEXT, "image": _TEXT, "tags": _TEXTS})
    kinds.append(_cd_event([str(RegistryEvent.DELETED)], deleted))
    return _titled({"oneOf": kinds}, "An event of retention in a registry")


def _collection_event() -> dict[str, Any]:
    """How a collection of garbage begins and ends."""
    counts = {
        "dry": _or_null(_object(dict.fromkeys(("marked", "eligible", "bytes", "unsized"), _COUNT))),
        "verified": _or_null(_object(dict.fromkeys(("repositories", "manifests", "blobs"), _COUNT))),
        "swept": {"type": "boolean"},
        "sweeps": _COUNT,
    }
    told: dict[str, dict[str, Any]] = {
        CollectionEvent.PLANNED: counts,
        CollectionEvent.STARTED: {},
        CollectionEvent.FINISHED: counts,
        CollectionEvent.FAILED: {**counts, "trouble": _TEXT},
    }
    source, run = {"const": QUEUE_SOURCE}, {"registry": _TEXT, "run": _TEXT}
    kinds = [_cloud_event({"const": str(kind)}, source, _object({**run, **data})) for kind, data in told.items()]
    return _titled({"oneOf": kinds}, "An event of a collection of garbage")


def _queue_event() -> dict[str, Any]:
    """A CloudEvent 1.0 in JSON of what happens to no build alone."""
    mended = {
        "type": "object",
        "additionalProperties": _object({"count": {"type": "integer", "minimum": 1}, "subjects": {"type": "array", "items": _TEXT}}),
    }
    data = _object({"scope": _TEXT, "limit": _COUNT, "mended": mended}, required=[])
    return _titled(_cloud_event({"enum": [str(kind) for kind in QueueEvent]}, {"const": QUEUE_SOURCE}, data), "An event of the queue")


def _cloud_event(kind: dict[str, Any], source: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    """A CloudEvent 1.0 in JSON."""
    envelope = {
        "specversion": {"const": "1.0"},
        "id": _TEXT,
        "source": source,
        "type": kind,
        "subject": _TEXT,
        "time": {"type": "string", "format": "date-time"},
        "datacontenttype": {"const": "application/json"},
        "data": data,
    }
    return _object(envelope)


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


def _object(properties: dict[str, Any], required: list[str] | None = None) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": sorted(properties) if required is None else required,
        "additionalProperties": False,
    }


def text_of(schema: dict[str, Any]) -> str:
    return json.dumps(schema, indent=2, sort_keys=True) + "\n"


if __name__ == "__main__":
    for name, schema in schemas().items():
        (FOLDER / name).write_text(text_of(schema))
