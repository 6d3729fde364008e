"""What retention tells while it works on a real registry, held against the schema of its events."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from jsonschema import ValidationError

from ledger.adoption import start
from ledger.events import RegistryEvent
from tests.event_schemas import validate
from tests.integration.registry_server import run_registry
from tests.integration.retention_site import OLD, RECENT, RetentionSite, retention_site


@pytest.fixture
async def site(settings, tmp_path: Path, redis_server) -> AsyncIterator[RetentionSite]:
    with run_registry(tmp_path / "registry") as registry:
        async with retention_site(settings, registry, "told/app") as site:
            await site.settle()
            yield site


async def test_every_event_of_retention_is_as_its_schema_says(site: RetentionSite) -> None:
    site.registry.push_image(site.repository, "new", layers=(b"new",), created=RECENT)
    site.registry.push_image(site.repository, "old", layers=(b"old",), created=OLD)
    first = await site.plan()
    await site.apply(first)
    await site.undo(first)
    await site.unpin_all()
    await site.apply(await site.plan())
    await site.window_ends()
    await site.purge()
    await start(site.ledger, site.name, {})
    await site.run(f"adopt:{site.name}")
    events = await site.events("")
    assert {event["type"] for event in events} == set(RegistryEvent)
    for event in events:
        validate(event, "registry-event.json")
        data = event["data"].get("customData") or event["data"]
        for wrong in ({**data, "more": 1}, {name: value for name, value in data.items() if name not in ("plan", "adopted")}):
            body = {**event["data"], "customData": wrong} if "customData" in event["data"] else wrong
            with pytest.raises(ValidationError):
                validate({**event, "data": body}, "registry-event.json")
