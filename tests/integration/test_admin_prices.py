"""Price books over the API: draft, difference, publication with a time; the public list; models nobody has priced."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import httpx2
import pytest

from libs.common import clock, ids, rediskeys
from services.admin.prices import books
from services.admin.prices.new_models import NewModels
from tests import apart
from tests.integration.accounting_rig import Rig
from tests.integration.admin_rig import Admin

pytestmark = pytest.mark.anyio
LEAD_S = 0.3
DRAFT = "/price-draft"


nats_url, redis_url = apart.nats_url, apart.redis_url
"""Prices are everybody's: what is published here must not be seen by other tests."""


@pytest.fixture
async def rig(nats_url: str, redis_url: str, clickhouse_url: str) -> AsyncIterator[Rig]:
    async with Rig.over(nats_url, redis_url, clickhouse_url) as made:
        yield made


@pytest.fixture
async def admin(rig: Rig) -> AsyncIterator[Admin]:
    urls = (rig.config.nats_url, rig.config.redis_url, rig.config.clickhouse_url)
    async with Admin.over(*urls, price_lead_seconds=LEAD_S) as made:
        await made.done("DELETE", DRAFT)
        yield made
        await made.done("DELETE", DRAFT)


def row(price: str = "3.00") -> dict[str, Any]:
    rates = {
        "input": price,
        "output": "15.00",
        "cache_write_5m": "3.75",
        "cache_write_1h": "6.00",
        "cache_read": "0.30",
    }
    return {
        "rates": rates, "context_tokens_max": 200_000, "output_tokens_max": 64_000, "hold_output_tokens_max": 8_192,
    }  # fmt: skip


async def test_draft_difference_publication(admin: Admin, rig: Rig) -> None:
    model = f"claude-test-{ids.uuid7_hex()[-12:]}"
    assert (await admin.done("GET", DRAFT))["differences"] == []
    assert "changes nothing" in await admin.refused("POST", f"{DRAFT}/publish", 409, json={"note": "n"})
    draft = await admin.done("PUT", f"{DRAFT}/models/{model}", json=row())
    (difference,) = draft["differences"]
    assert (difference["model"], difference["change"]) == (model, "added")
    assert difference["fields"]["rates.input"] == [None, "3.00"]
    listed = (await admin.done("GET", "/models"))["data"]
    assert model not in [one["id"] for one in listed]
    soon = (clock.utc_now() + timedelta(seconds=0.05)).isoformat()
    body = {"note": "a new model", "effective_at": soon}
    assert "ahead or more" in await admin.refused("POST", f"{DRAFT}/publish", 422, json=body)
    at = clock.utc_now() + timedelta(seconds=1)
    name = {b"idempotency-key": ids.uuid7_hex().encode()}
    body = {"note": "a new model", "effective_at": at.isoformat()}
    published = await admin.done("POST", f"{DRAFT}/publish", headers=name, json=body)
    assert await admin.done("POST", f"{DRAFT}/publish", headers=name, json=body) == published
    await admin.refused("POST", f"{DRAFT}/publish", 422, headers=name, json={"note": "another"})
    assert (await admin.done("GET", "/prices/current"))["version"] != published["version"]
    entry = (await rig.redis.hget(rediskeys.price_books(), published["version"])).decode()
    assert json.loads(entry.split(" ", 2)[2])["version"] == published["version"]
    await asyncio.sleep(1.1)
    current = await admin.done("GET", "/models")
    assert current["version"] == published["version"]
    assert model in [one["id"] for one in current["data"]]
    shown = await admin.done("GET", f"/prices/{published['version']}")
    assert (shown["is_current"], shown["models"][model]["rates"]["input"]) == (True, "3.00")
    assert (await admin.done("GET", DRAFT))["base_version"] == published["version"]
    earlier = {"note": "back", "effective_at": at.isoformat()}
    await admin.done("DELETE", f"{DRAFT}/models/{model}")
    await admin.refused("POST", f"{DRAFT}/publish", 422, json=earlier)


async def test_a_row_must_be_sound(admin: Admin) -> None:
    path = f"{DRAFT}/models/claude-x"
    for price in ("0", "-1", "1.23456", "free", "1e3", ""):
        await admin.refused("PUT", path, 422, json=row(price))
    odd = row() | {"hold_output_tokens_max": 64_001}
    assert "hold cap" in await admin.refused("PUT", path, 422, json=odd)
    await admin.refused("PUT", path, 400, json=row() | {"more": 1})
    await admin.refused("PUT", f"{DRAFT}/models/Not%20A%20Model", 404, json=row())
    await admin.refused("DELETE", path, 404)
    assert (await admin.done("GET", DRAFT))["differences"] == []


async def test_two_work_on_the_draft_at_once(admin: Admin) -> None:
    await admin.done("PUT", f"{DRAFT}/models/claude-a", json=row())
    read = await admin.send("GET", DRAFT)
    match = {b"if-match": read.headers["etag"].encode()}
    await admin.done("PUT", f"{DRAFT}/models/claude-b", headers=match, json=row())
    await admin.refused("PUT", f"{DRAFT}/models/claude-c", 412, headers=match, json=row())
    await admin.refused("POST", f"{DRAFT}/publish", 412, headers=match, json={"note": "n"})


async def test_where_the_book_departs_from_the_public_list(admin: Admin) -> None:
    answer = await admin.done("GET", "/price-departures")
    departures = {one["model"]: one for one in answer["departures"]}
    assert departures["claude-opus-4-7"]["fields"]["rates.input"] == ["5.00", "15.00"]
    assert departures["claude-sonnet-4-6"]["fields"]["long_context.input"] == [None, "6.00"]
    assert "claude-haiku-4-5" not in departures


async def test_models_without_a_price_get_a_row_that_somebody_must_look_at(admin: Admin) -> None:
    model = f"claude-haiku-{ids.uuid7_hex()[-10:]}"
    body = {"name": "u", "base_url": "http://127.0.0.1:9", "api_key": "sk-ant-" + "x" * 30}
    upstream = await admin.done("POST", "/upstreams", json=body)
    seen = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        seen.append((str(request.url), request.headers["x-api-key"]))
        models = [{"id": model, "max_input_tokens": 500_000, "max_tokens": 9_000}, {"id": "claude-haiku-4-5-20251001"}]
        return httpx2.Response(200, json={"data": models, "has_more": False})

    await NewModels(admin.context, transport=httpx2.MockTransport(answer)).run()
    assert ("http://127.0.0.1:9/v1/models?limit=1000", body["api_key"]) in seen
    draft = await admin.done("GET", DRAFT)
    assert draft["unreviewed"] == [model]
    (difference,) = draft["differences"]
    assert difference["fields"]["context_tokens_max"] == [None, 500_000]
    assert difference["fields"]["output_tokens_max"] == [None, 9_000]
    assert model in await admin.refused("POST", f"{DRAFT}/publish", 409, json={"note": "n"})
    before = (await admin.send("GET", DRAFT)).headers["etag"]
    await NewModels(admin.context, transport=httpx2.MockTransport(answer)).run()
    assert (await admin.send("GET", DRAFT)).headers["etag"] == before
    await admin.done("PUT", f"{DRAFT}/models/{model}", json=row())
    assert (await admin.done("GET", DRAFT))["unreviewed"] == []
    tried = await admin.done("POST", f"/upstreams/{upstream['id']}/test")
    assert (tried["ok"], tried["status"]) == (False, None)
    await admin.done("DELETE", f"/upstreams/{upstream['id']}")


async def test_the_draft_is_one_and_fresh_ones_begin_with_the_last_book(admin: Admin) -> None:
    found = await books.all_books(admin.context.control)
    draft, _ = await books.draft(admin.context.control)
    assert draft.base_version == found[-1].version and draft.id == books.DRAFT_ID


async def test_books_published_in_one_second_have_versions_of_their_own(admin: Admin, rig: Rig) -> None:
    """Of two under one version only the first would ever count."""
    made = []
    for number in range(1, 5):
        await admin.done("PUT", f"{DRAFT}/models/claude-{ids.uuid7_hex()[-12:]}", json=row())
        at = (clock.utc_now() + timedelta(seconds=LEAD_S + number / 5)).isoformat()
        made.append(await admin.done("POST", f"{DRAFT}/publish", json={"note": "n", "effective_at": at}))
    versions = [one["version"] for one in made]
    assert len(set(versions)) == 4
    assert all(await rig.redis.hmget(rediskeys.price_books(), versions))
