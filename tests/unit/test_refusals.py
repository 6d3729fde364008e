"""What a cluster's no to a create means: the very answers of Kubernetes 1.36 (data/answers)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ledger.errors import ClusterError, LaunchRefused, NoRoom
from worker.cluster.answers import Answer, refusal_of

ANSWERS = Path(__file__).parent / "data" / "answers"


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        ("quota", NoRoom, "exceeded quota: builds"),
        ("admission-webhook", LaunchRefused, "images come from registry.example.com only"),
        ("admission-policy", LaunchRefused, "pods must run as non-root"),
        ("pod-security", LaunchRefused, "runAsNonRoot"),
    ],
)
def test_a_definite_no(name: str, error: type[ClusterError], said: str) -> None:
    recorded = json.loads((ANSWERS / f"{name}.json").read_text())
    found = refusal_of(Answer(recorded["status"], recorded["body"]))
    assert type(found) is error
    assert said in str(found)


def test_a_webhook_that_is_away_refuses_nothing() -> None:
    recorded = json.loads((ANSWERS / "admission-webhook-away.json").read_text())
    assert refusal_of(Answer(recorded["status"], recorded["body"])) is None
