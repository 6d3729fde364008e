"""Promotions as values: what may be asked for, what a policy allows of it, and the events that tell of one."""

from __future__ import annotations

import json

import pytest
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from jsonschema import Draft202012Validator

from ledger.errors import PolicyDenied, RequestInvalid
from ledger.events import promotion_finished, promotion_published
from ledger.policy import Policy, check_promotion
from ledger.promotion import Promotion, PromotionRequest, PromotionState
from ledger.schema import schemas
from tests.requests import NOW

DIGEST = "sha256:" + "a" * 64
APP, PROD = "registry.example.com/team/app", "registry.example.com/prod/app"
FIELDS = {"project": "demo", "image": f"{APP}@{DIGEST}", "targets": [f"{APP}:stable", f"{PROD}:1.2.3"]}


def make(**changes) -> PromotionRequest:
    return PromotionRequest.parse({**FIELDS, **changes})


@pytest.mark.parametrize(
    ("changes", "path", "said"),
    [
        ({"image": f"{APP}:latest"}, "image", "must name a digest"),
        ({"image": f"{APP}@sha256:abc"}, "image", "64 lower-case hexadecimal"),
        ({"image": f"app@{DIGEST}"}, "image", "name the registry"),
        ({"image": f"https://{APP}@{DIGEST}"}, "image", "without a scheme"),
        ({"image": 7}, "image", ""),
        ({"targets": []}, "targets", "at least one"),
        ({"targets": [f"{APP}:x{n}" for n in range(51)]}, "targets", "at most 50"),
        ({"targets": [APP]}, "targets.0", "must name a tag"),
        ({"targets": [f"{APP}:a", f"{APP}@{DIGEST}"]}, "targets.1", "must name a tag"),
        ({"targets": [f"{APP}:a:b"]}, "targets.0", "the tag"),
        ({"targets": [f"{APP}:a/b"]}, "targets.0", ""),
        ({"targets": [f"{APP}:.a"]}, "targets.0", "the tag"),
        ({"targets": ["registry.example.com/Team/app:1"]}, "targets.0", "lower-case"),
        ({"targets": [f"{APP}:a", f"{APP}:a"]}, "targets", "named twice"),
        ({"targets": [f"{APP}:a", "other.example.com/app:a"]}, "targets", "one registry at a time"),
        ({"project": "No Such"}, "project", ""),
        ({"by": "a\nb"}, "by", ""),
        ({"schema_version": 2}, "schema_version", ""),
        ({"colour": "red"}, "colour", ""),
    ],
)
def test_garbage_is_refused_with_the_name_of_the_field(changes, path, said):
    with pytest.raises(RequestInvalid) as caught:
        make(**changes)
    assert [problem.path for problem in caught.value.problems] == [path]
    assert said in str(caught.value)


@pytest.mark.parametrize("missing", list(FIELDS))
def test_what_is_missing_is_named(missing):
    with pytest.raises(RequestInvalid, match=f"{missing}: got nothing; must be given"):
        PromotionRequest.parse({name: value for name, value in FIELDS.items() if name != missing})


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'"x"', b"\xff", b'{"project": NaN}'])
def test_a_body_that_is_no_request(body):
    with pytest.raises(RequestInvalid):
        PromotionRequest.parse(body)


def test_only_full_versions_never_move():
    given = make(targets=[f"{APP}:{tag}" for tag in ("1.2.3", "v1.2.3-rc.1", "1.2", "stable", "0123456789abcdef")])
    assert [image.tag for image in given.fixed] == ["1.2.3", "v1.2.3-rc.1"]


@pytest.mark.parametrize(
    ("policy", "paths"),
    [
        (Policy(), ["targets.0", "targets.1", "image"]),
        (Policy(destinations=(APP,)), ["targets.1"]),
        (Policy(destinations=(PROD,)), ["targets.0", "image"]),
        (Policy(destinations=(PROD,), promoted=(APP,)), ["targets.0"]),
        (Policy(promoted=("**",)), ["targets.0", "targets.1"]),
        (Policy(destinations=(APP, PROD)), []),
        (Policy(destinations=("registry.example.com/*",)), ["targets.0", "targets.1", "image"]),
    ],
)
def test_a_promotion_goes_only_where_the_policy_says_and_comes_only_from_there(policy, paths):
    try:
        check_promotion(make(), policy)
    except PolicyDenied as error:
        assert [problem.path for problem in error.problems] == paths
        for problem in error.problems:
            assert f"policy.{'promoted' if problem.path == 'image' else 'destinations'}" in problem.allowed
    else:
        assert not paths


@pytest.mark.parametrize("state", [state for state in PromotionState if state.final])
def test_its_events_are_valid_and_always_the_same(state):
    request = make(by="ada")
    promotion = Promotion(id="p1", request=request, sequence=7, created=NOW, state=state, message="why", overtaken=(f"{APP}:stable",))
    told = [*(promotion_published(promotion, image) for image in request.images), promotion_finished(promotion)]
    for text in told:
        Draft202012Validator(schemas()["promotion-event.json"], format_checker=Draft202012Validator.FORMAT_CHECKER).validate(
            json.loads(text)
        )
        JSONFormat().read(CloudEvent, text)
        assert json.loads(text)["data"]["customData"]["by"] == "ada"
    published, _, finished = map(json.loads, told)
    assert published["type"] == "dev.cdevents.artifact.published.0.3.0"
    assert published["subject"] == f"pkg:oci/app@sha256%3A{'a' * 64}?repository_url={APP}"
    assert published["source"] == "/crabpot/projects/demo"
    assert published["data"]["customData"]["from"] == f"{APP}@{DIGEST}"
    assert finished["data"]["customData"]["outcome"] == {"promoted": "success", "overtaken": "cancel", "failed": "failure"}[state]
    assert [json.loads(text)["id"] for text in told] == [f"p1.published.{APP}:stable", f"p1.published.{PROD}:1.2.3", "p1.finished"]
