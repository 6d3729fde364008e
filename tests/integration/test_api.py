"""REST over real HTTP: every answer and every refusal."""

from __future__ import annotations

import asyncio
import json
import signal
from datetime import UTC, datetime, timedelta

import pytest

from ledger.build import Again, Build, Reason, State
from ledger.collected import CollectsItself
from ledger.connection import ANSWER_TIMEOUT
from ledger.errors import LedgerUnavailable
from ledger.logbook import Line
from ledger.settings import Settings
from ledger.store import Ledger
from producer.api import following, health
from producer.submit import submit_build_async
from tests.integration.front_door import served
from tests.requests import NOW, make_request, request_fields

MINUTE = timedelta(minutes=1)


@pytest.fixture
async def api(ledger, settings):
    async with served(ledger, settings) as client:
        yield client


async def submitted(api, **changes) -> str:
    answer = await api.post("/v1/builds", json=request_fields(**changes))
    assert answer.status_code == 201, answer.text
    return answer.json()["id"]


async def test_submit_show_and_list(api):
    build = await submitted(api)
    shown = (await api.get(f"/v1/builds/{build}")).json()
    assert shown["state"] == "queued"
    assert "its turn" in shown["waits_for"]
    assert shown["request"]["destinations"] == request_fields()["destinations"]
    second = await submitted(api)
    page = (await api.get("/v1/builds", params={"project": "demo", "limit": 1})).json()
    assert [entry["id"] for entry in page["builds"]] == [second]
    rest = (await api.get("/v1/builds", params={"cursor": page["cursor"]})).json()
    assert [entry["id"] for entry in rest["builds"]] == [build]
    assert (await api.get("/v1/builds", params={"state": "failed"})).json()["builds"] == []


async def test_an_idempotency_key_gives_the_first_build(api):
    first = await api.post("/v1/builds", json=request_fields(), headers={"Idempotency-Key": "k"})
    again = await api.post("/v1/builds", json=request_fields(), headers={"Idempotency-Key": "k"})
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json()["id"] == again.json()["id"]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "said"),
    [
        ("POST", "/v1/builds", request_fields(priority=1000), 400, "priority"),
        ("POST", "/v1/builds", [1], 400, "request"),
        ("POST", "/v1/builds", request_fields(destinations=["elsewhere.example.com/x:1"]), 403, "policy.destinations"),
        ("POST", "/v1/builds", request_fields(project="nope"), 404, "projects file"),
        ("GET", "/v1/builds/nope", None, 404, "crabpot list"),
        ("GET", "/v1/builds/nope/logs", None, 404, "crabpot list"),
        ("POST", "/v1/builds/nope/cancel", None, 404, "crabpot list"),
        ("GET", "/v1/builds?state=odd", None, 400, "queued"),
        ("GET", "/v1/builds?limit=0", None, 400, "limit"),
        ("GET", "/v1/builds?limit=%C2%B2", None, 400, "limit"),
        ("GET", "/v1/builds?cursor=garbage", None, 400, "cursor"),
        ("GET", "/v1/builds?sate=queued", None, 400, "sate"),
        ("GET", "/v1/builds/nope?follow=1&timeout=never", None, 400, "timeout"),
        ("GET", "/v1/builds/nope/logs?attempt=0", None, 400, "attempt"),
        ("GET", "/nowhere", None, 404, "not part of the API"),
        ("DELETE", "/v1/builds", None, 405, "not part of the API"),
    ],
)
async def test_a_refusal_is_a_problem_that_says_what_to_do(api, method, path, body, status, said):
    answer = await api.request(method, path, json=body)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert said in answer.json()["detail"]


async def test_a_bad_idempotency_key_names_itself(api):
    answer = await api.post("/v1/builds", json=request_fields(), headers={"Idempotency-Key": "k" * 300})
    assert (answer.status_code, answer.json()["problems"][0]["path"]) == (400, "idempotency_key")


async def test_a_record_that_cannot_be_read_hides_no_other(api, ledger):
    first, odd, last = await submitted(api), await submitted(api), await submitted(api)
    await ledger.connection.command("HSET", ledger.connection.keys.build(odd), "state", "from the future")
    found = (await api.get("/v1/builds", params={"limit": 2})).json()
    assert [entry["id"] for entry in found["builds"]] == [last]
    rest = (await api.get("/v1/builds", params={"limit": 2, "cursor": found["cursor"]})).json()
    assert [entry["id"] for entry in rest["builds"]] == [first]


async def test_a_fault_of_ours_is_a_problem_too(ledger, settings, monkeypatch):
    async def broken(*_: object) -> None:
        raise RuntimeError("nobody foresaw this")

    monkeypatch.setattr(ledger, "read", broken)
    async with served(ledger, settings) as api:
        answer = await api.get("/v1/builds/x")
    assert (answer.status_code, answer.headers["content-type"]) == (500, "application/problem+json")
    assert "nobody foresaw" not in answer.text


async def test_following_ends_with_its_time(api):
    build = await submitted(api)
    async with asyncio.timeout(10):
        answer = await api.get(f"/v1/builds/{build}", params={"follow": "1", "timeout": "0.5"})
    assert [json.loads(line)["state"] for line in answer.text.splitlines()] == ["queued", "queued"]


async def test_a_large_request_is_refused(api):
    assert (await api.post("/v1/builds", content=b"x" * (2 << 20))).status_code == 413


async def test_a_waiting_build_is_cancelled_at_once(api):
    build = await submitted(api)
    assert (await api.post(f"/v1/builds/{build}/cancel")).json()["state"] == "cancelled"
    again = await api.post(f"/v1/builds/{build}/cancel")
    assert again.status_code == 409
    assert "ended already" in again.json()["detail"]


async def test_a_running_builds_cancel_is_a_flag_that_is_due_at_once(api, ledger):
    build = await submitted(api)
    await ledger.transition(await ledger.admit(MINUTE), State.RUNNING, due=MINUTE)
    for _ in range(2):
        assert (await api.post(f"/v1/builds/{build}/cancel")).json()["state"] == "running"
    record = await ledger.read(build)
    assert record.cancel_requested is not None
    assert await ledger.due() == [build]


async def test_it_is_too_late_once_tags_are_moved(api, ledger):
    build = await submitted(api)
    running = await ledger.transition(await ledger.admit(MINUTE), State.RUNNING, due=MINUTE)
    publishing = await ledger.transition(running, State.PUBLISHING, due=MINUTE)
    await ledger.transition(publishing, State.PUBLISHING, due=MINUTE, moving_tags=True)
    answer = await api.post(f"/v1/builds/{build}/cancel")
    assert (answer.status_code, "too late" in answer.json()["detail"]) == (409, True)


async def test_a_build_is_followed_to_its_end(api, ledger):
    build = await submitted(api)
    states = []
    async with asyncio.timeout(10), api.stream("GET", f"/v1/builds/{build}", params={"follow": "1"}) as answer:
        async for line in answer.aiter_lines():
            states.append(json.loads(line)["state"])
            record = await ledger.read(build)
            if record.state is State.QUEUED:
                await ledger.admit(MINUTE)
            elif record.state is State.STARTING:
                await ledger.transition(record, State.RUNNING, due=MINUTE)
            elif record.state is State.RUNNING:
                await ledger.transition(record, State.FAILED, due=None, reason=Reason.BUILD_FAILED)
    assert (states[0], states[-1]) == ("queued", "failed")


async def test_a_log_is_followed_over_a_retry_to_the_end(api, ledger):
    build = await submitted(api)

    async def live():
        first = await ledger.transition(await ledger.admit(MINUTE), State.RUNNING, due=MINUTE)
        await ledger.logs.append(build, 1, [Line(NOW, "one")])
        await ledger.logs.append(build, 1, [], complete=True)
        await ledger.transition(first, State.QUEUED, due=MINUTE, again=Again(timedelta(0)))
        while (second := await ledger.admit(MINUTE)) is None:
            await asyncio.sleep(0.01)
        await ledger.logs.append(build, 2, [Line(NOW, "two"), Line(NOW, "three")])
        await ledger.transition(second, State.FAILED, due=None)
        await ledger.logs.append(build, 2, [], complete=True)

    async with asyncio.timeout(20), api.stream("GET", f"/v1/builds/{build}/logs", params={"follow": "1"}) as answer:
        task = asyncio.create_task(live())
        text = "".join([chunk async for chunk in answer.aiter_text()])
        await task
    assert text == "one\ntwo\nthree\n"
    stored = await api.get(f"/v1/builds/{build}/logs", params={"attempt": 1, "timestamps": 1})
    assert stored.text == "2026-11-23T12:00:00.000+00:00 one\n"
    assert (await api.get(f"/v1/builds/{build}/logs")).text == "two\nthree\n"
    assert (await api.get(f"/v1/builds/{build}/logs", params={"attempt": 9})).status_code == 404


async def test_a_token_guards_everything_but_hooks_and_health(ledger, redis_url):
    async with served(ledger, Settings(redis_url=redis_url, api_token="t0ken")) as client:
        assert (await client.get("/v1/builds")).status_code == 401
        assert (await client.get("/metrics")).status_code == 401
        assert (await client.get("/v1/builds", headers={"Authorization": "Bearer wrong"})).status_code == 401
        assert (await client.get("/v1/builds", headers={"Authorization": "Bearer t0ken"})).status_code == 200
        assert (await client.get("/healthz")).status_code == 200
        assert (await client.get("/readyz")).status_code == 200
        assert (await client.post("/webhooks/github")).status_code == 400
    assert "t0ken" not in repr(Settings(api_token="t0ken"))


async def test_without_a_token_only_loopback_names_are_answered(api):
    assert (await api.get("/v1/builds", headers={"Host": "evil.example.com"})).status_code == 403
    assert (await api.get("/v1/builds", headers={"Host": "localhost:8080"})).status_code == 200


async def test_metrics_tell_of_the_ledger(api, ledger):
    await submitted(api)
    await submitted(api)
    await ledger.admit(MINUTE)
    text = (await api.get("/metrics")).text
    for line in (
        'crabpot_builds{state="queued"} 1.0',
        'crabpot_builds{state="starting"} 1.0',
        "crabpot_slots_taken 1.0",
        "crabpot_leader 0.0",
    ):
        assert line in text
    assert 'crabpot_http_request_seconds_count{method="POST",route="/v1/builds",status="201"}' in text


async def test_readiness_is_redis_s(own_redis, projects):
    ledger = Ledger.open(Settings(redis_url=own_redis.url))
    await ledger.store_projects(projects)
    async with served(ledger, Settings(redis_url=own_redis.url)) as client:
        assert (await client.get("/readyz")).status_code == 200
        await ledger.connection.command("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        unfit = await client.get("/readyz")
        assert (unfit.status_code, "noeviction" in unfit.text) == (503, True)
        own_redis.kill()
        away = await client.post("/v1/builds", json=request_fields())
        assert (away.status_code, away.headers["retry-after"]) == (503, "5")
        assert (await client.get("/healthz")).status_code == 200
    await ledger.close()


async def test_followers_outlast_a_redis_that_is_restarted(own_redis, projects):
    ledger = Ledger.open(Settings(redis_url=own_redis.url))
    await ledger.store_projects(projects)
    async with served(ledger, Settings(redis_url=own_redis.url)) as client:
        build = await submitted(client)
        await ledger.transition(await ledger.admit(MINUTE), State.RUNNING, due=MINUTE)
        await ledger.logs.append(build, 1, [Line(NOW, "one")])
        followed = asyncio.Event()

        async def states() -> list[str]:
            async with client.stream("GET", f"/v1/builds/{build}", params={"follow": "1"}) as answer:
                return [json.loads(line)["state"] async for line in answer.aiter_lines()]

        async def log() -> str:
            text = ""
            async with client.stream("GET", f"/v1/builds/{build}/logs", params={"follow": "1"}) as answer:
                async for chunk in answer.aiter_text():
                    text += chunk
                    followed.set()
            return text

        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            told, read = group.create_task(states()), group.create_task(log())
            await followed.wait()
            own_redis.kill()
            with pytest.raises(LedgerUnavailable):
                await ledger.read(build)
            own_redis.start()
            await ledger.logs.append(build, 1, [Line(NOW, "two")], complete=True)
            await ledger.transition(await ledger.read(build), State.FAILED, due=None, reason=Reason.BUILD_FAILED)
        assert (told.result()[0], told.result()[-1]) == ("running", "failed")
        assert read.result() == "one\ntwo\n"
    await ledger.close()


async def test_a_log_that_is_complete_is_not_waited_for_when_its_build_ends(ledger, monkeypatch):
    """As of every success: the log ends with the container, and the build once it is published."""
    build = await submit_build_async(make_request(), ledger=ledger)
    running = await ledger.transition(await ledger.admit(MINUTE), State.RUNNING, due=MINUTE)
    await ledger.logs.append(build.id, 1, [Line(NOW, "one")], complete=True)
    waits = []

    async def silent(*_):
        waits.append(1)
        return True

    monkeypatch.setattr(following.LogFollower, "_silent", silent)
    read = following.LogFollower(ledger, running, None).lines()
    async with asyncio.timeout(10):
        assert [line.text for line in await anext(read)] == ["one"]
        assert await anext(read) == []
        await ledger.transition(running, State.FAILED, due=None, reason=Reason.BUILD_FAILED)
        assert [batch async for batch in read if batch] == []
    assert not waits


async def ended_attempt(ledger, *, ran: bool) -> Build:
    """A build that failed at once: in a container, or before there was one."""
    build = await submit_build_async(make_request(), ledger=ledger)
    starting = await ledger.admit(MINUTE)
    runs = tuple(run.model_copy(update={"started": NOW if ran else None}) for run in starting.current.runs)
    attempts = starting.with_attempt(starting.current.model_copy(update={"runs": runs}))
    ended = await ledger.transition(starting, State.FAILED, due=None, reason=Reason.BUILD_FAILED, attempts=attempts)
    assert ended.id == build.id
    return ended


async def test_a_follower_waits_for_a_log_that_comes_after_the_end(ledger, monkeypatch):
    """The end of a build does not wait for its log: what was lost on the way to Redis is sent again."""
    ended, looks, read = await ended_attempt(ledger, ran=True), 0, ledger.logs.read

    async def late(*arguments, **options):
        nonlocal looks
        looks += 1
        if looks == 2:
            await ledger.logs.append(ended.id, 1, [Line(NOW, "late")], complete=True)
        return await read(*arguments, **options)

    monkeypatch.setattr(ledger.logs, "read", late)
    async with asyncio.timeout(10):
        assert [line.text async for batch in following.LogFollower(ledger, ended, None).lines() for line in batch] == ["late"]


async def test_a_follower_does_not_wait_for_the_log_of_what_never_ran(ledger, monkeypatch):
    monkeypatch.setattr(following, "LATE", 3600.0)
    ended = await ended_attempt(ledger, ran=False)
    async with asyncio.timeout(10):
        assert [line async for batch in following.LogFollower(ledger, ended, None).lines() for line in batch] == []


async def test_a_follower_of_a_log_without_an_end_ends(ledger, monkeypatch):
    """It was dropped, since there are too many. However long it is waited for, no single question to Redis takes longer than an answer may."""
    monkeypatch.setattr(following, "LATE", 1.5)
    ended, read = await ended_attempt(ledger, ran=True), ledger.logs.read

    async def asked(*arguments, block):
        assert block < ANSWER_TIMEOUT / 2
        return await read(*arguments, block=block)

    monkeypatch.setattr(ledger.logs, "read", asked)
    async with asyncio.timeout(10):
        assert [line async for batch in following.LogFollower(ledger, ended, None).lines() for line in batch] == []


async def test_a_follower_says_that_redis_stayed_away(own_redis, projects, monkeypatch):
    monkeypatch.setattr(following, "PATIENCE", 0.0)
    ledger = Ledger.open(Settings(redis_url=own_redis.url))
    await ledger.store_projects(projects)
    async with served(ledger, Settings(redis_url=own_redis.url)) as client:
        build = await submitted(client)
        await ledger.transition(await ledger.admit(MINUTE), State.RUNNING, due=MINUTE)
        await ledger.logs.append(build, 1, [Line(NOW, "one")])
        text = ""
        async with asyncio.timeout(30), client.stream("GET", f"/v1/builds/{build}/logs", params={"follow": "1"}) as answer:
            async for chunk in answer.aiter_text():
                text += chunk
                own_redis.kill()
    assert text.startswith("one\ncrabpot: the log breaks off here: Redis did not answer")
    await ledger.close()


async def test_readiness_does_not_wait_for_a_redis_that_hangs(own_redis, monkeypatch):
    async with served(Ledger.open(Settings(redis_url=own_redis.url)), Settings(redis_url=own_redis.url)) as client:
        assert (await client.get("/readyz")).status_code == 200
        monkeypatch.setattr(health, "_READY_SECONDS", 0.2)
        own_redis.process.send_signal(signal.SIGSTOP)
        try:
            hangs = await client.get("/readyz")
        finally:
            own_redis.process.send_signal(signal.SIGCONT)
    assert (hangs.status_code, "0.2 s" in hangs.text) == (503, True)


async def test_an_ended_build_is_built_again(api, ledger):
    first = await submitted(api, priority=3)
    early = await api.post(f"/v1/builds/{first}/retry")
    assert (early.status_code, "still queued" in early.json()["detail"]) == (409, True)
    await ledger.transition(await ledger.read(first), State.FAILED, due=None, reason=Reason.BUILD_FAILED)
    again = await api.post(f"/v1/builds/{first}/retry")
    assert (again.status_code, again.json()["state"]) == (201, "queued")
    assert again.headers["location"] == f"/v1/builds/{again.json()['id']}" != f"/v1/builds/{first}"
    assert (await ledger.read(again.json()["id"])).request == (await ledger.read(first)).request
    assert (await api.post("/v1/builds/nobody/retry")).status_code == 404


async def test_a_held_registry_is_told(api, ledger):
    await ledger.holds.take(["registry.example.com"], "a collection", timedelta(minutes=1))
    build = (await api.post("/v1/builds", json=request_fields())).json()["id"]
    assert (
        "the registry registry.example.com, which is under maintenance since" in (await api.get(f"/v1/builds/{build}")).json()["waits_for"]
    )
    assert [(hold["registry"], hold["by"]) for hold in (await api.get("/v1/limits")).json()["holds"]] == [
        ("registry.example.com", "a collection")
    ]


async def test_collections_are_started_and_listed(api, ledger, projects):
    own = CollectsItself(registry="harbor.example.com", kind="own")
    await ledger.store_projects(projects.model_copy(update={"collect": (own,)}))
    begun = await api.post("/v1/collections", json={"registry": "harbor.example.com", "kind": "plan"})
    assert (begun.status_code, begun.json()["name"], begun.json()["state"]) == (202, "weigh:harbor.example.com", "waiting")
    assert (await api.post("/v1/collections", json={"registry": "harbor.example.com", "kind": "plan"})).status_code == 200
    assert [one["name"] for one in (await api.get("/v1/collections")).json()["collections"]] == ["weigh:harbor.example.com"]
    unknown = await api.post("/v1/collections", json={"registry": "other.example.com"})
    assert unknown.status_code == 404
    assert "name it under `collect`" in unknown.json()["detail"]
    assert (await api.post("/v1/collections", json={"registry": "harbor.example.com", "kind": "x"})).json()["problems"][0]["path"] == "kind"


async def test_limits_and_pauses(api):
    def of(answer, scope):
        assert answer.status_code == 200, answer.text
        return next(row for row in answer.json()["limits"] if row["scope"] == scope)

    build = await submitted(api)
    assert of(await api.get("/v1/limits"), "project/demo") == {
        "scope": "project/demo", "limit": 2, "file": 2, "by_hand": None, "taken": 0, "paused": None,
    }  # fmt: skip
    assert of(await api.put("/v1/limits/project/demo", json={"limit": 0}), "project/demo")["limit"] == 0
    waiting = (await api.get(f"/v1/builds/{build}")).json()["waits_for"]
    assert waiting == "the project's limit: 0 of 0 run; 0 of the project go before it"
    assert of(await api.delete("/v1/limits/project/demo"), "project/demo")["by_hand"] is None
    assert of(await api.put("/v1/pauses/all"), "all")["paused"] is not None
    assert "a pause of all since" in (await api.get(f"/v1/builds/{build}")).json()["waits_for"]
    assert of(await api.delete("/v1/pauses/all"), "all")["paused"] is None


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "said"),
    [
        ("PUT", "/v1/limits/demo", {"limit": 1}, 400, "project/NAME"),
        ("PUT", "/v1/limits/project/nobody", {"limit": 1}, 404, "nobody"),
        ("PUT", "/v1/limits/all", {"limit": "many"}, 400, "limit"),
        ("PUT", "/v1/limits/all", {"limit": -1}, 400, "limit"),
        ("PUT", "/v1/limits/all", {"limits": 1}, 400, "limit"),
        ("PUT", "/v1/limits/all", None, 400, "request"),
        ("PUT", "/v1/pauses/keys/demo", None, 400, "limited, not paused"),
        ("POST", "/v1/limits/all", {"limit": 1}, 405, "POST"),
    ],
)
async def test_a_limit_that_is_none(api, method, path, body, status, said):
    answer = await api.request(method, path, json=body) if body else await api.request(method, path)
    assert (answer.status_code, said in answer.text) == (status, True), answer.text


async def test_a_full_queue_says_when_to_try_again(api, ledger, projects):
    demo = projects.projects["demo"].model_copy(update={"max_queued": 1})
    await ledger.store_projects(projects.model_copy(update={"projects": {"demo": demo}}))
    await submitted(api)
    refused = await api.post("/v1/builds", json=request_fields())
    assert (refused.status_code, refused.headers["retry-after"], "max_queued" in refused.text) == (429, "30", True)


async def test_an_estimate_comes_from_recent_builds(api, ledger):
    for _ in range(3):
        build = await submitted(api)
        run = await ledger.transition(await ledger.admit(MINUTE), State.RUNNING, due=MINUTE, started=datetime.now(UTC) - 2 * MINUTE)
        assert (await api.get(f"/v1/builds/{build}")).json().get("estimate") is None
        await ledger.transition(run, State.PUBLISHING, due=MINUTE)
    builds = [await submitted(api) for _ in range(6)]
    for _ in range(2):
        await ledger.admit(MINUTE)
    told = (await api.get(f"/v1/builds/{builds[5]}")).json()
    assert told["position"] == 3
    starts, ends = (
        [datetime.fromisoformat(told["estimate"][f"{what}_{side}"]) for side in ("after", "before")] for what in ("starts", "ends")
    )
    now = datetime.now(UTC)
    assert now < starts[0] < starts[1] < now + 8 * MINUTE
    assert ends[0] - starts[0] >= 2 * MINUTE - timedelta(seconds=1)
