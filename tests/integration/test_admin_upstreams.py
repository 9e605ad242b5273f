"""Upstream credentials on real stores: what gateways find in Redis, what the operator sees of it, and no secret anywhere."""

import logging
from collections.abc import AsyncIterator
from typing import Any, Final

import pytest

from libs.common.sealing import Sealer
from libs.common.upstreams import Name, Stored, Upstreams
from tests.integration.accounting_rig import Rig, until
from tests.integration.admin_rig import SECRETS_KEY, Admin

pytestmark = pytest.mark.anyio
API_KEY: Final = "sk-ant-api03-0123456789abcdefWXYZ"
OTHER_KEY: Final = "sk-ant-api03-fedcba9876543210QRST"
PROXY: Final = "http://relay:pass-word@127.0.0.1:3128"


@pytest.fixture
async def rig(nats_url: str, redis_url: str, clickhouse_url: str) -> AsyncIterator[Rig]:
    async with Rig.over(nats_url, redis_url, clickhouse_url) as made:
        yield made


@pytest.fixture
async def admin(rig: Rig) -> AsyncIterator[Admin]:
    urls = (rig.config.nats_url, rig.config.redis_url, rig.config.clickhouse_url)
    async with Admin.over(*urls) as made:
        yield made


async def new_upstream(admin: Admin, **fields: Any) -> dict[str, Any]:
    return await admin.done("POST", "/upstreams", json={"name": "main", "api_key": API_KEY, **fields})


async def stored(rig: Rig, upstream_id: str) -> Stored | None:
    """As gateways find it."""
    shared = await Upstreams(rig.redis).read_all()
    return next((one for one in shared.credentials if one.credential.id == upstream_id), None)


async def test_gateways_find_what_the_operator_set(admin: Admin, rig: Rig) -> None:
    account_id = await admin.new_account(None)
    made = await new_upstream(admin, weight=3, in_flight_max=9, account_id=account_id, proxy_url=PROXY)
    found = await stored(rig, made["id"])
    assert found is not None
    credential = found.credential
    assert (credential.weight, credential.in_flight_max, credential.account_id) == (3, 9, account_id)
    secret = Sealer(SECRETS_KEY).open(credential.id, credential.sealed)
    assert (secret.api_key, secret.proxy_url) == (API_KEY, PROXY)
    path = f"/upstreams/{made['id']}"
    await admin.done("PATCH", path, json={"status": "disabled", "api_key": OTHER_KEY})
    found = await stored(rig, made["id"])
    assert found is not None and found.credential.status == "disabled"
    assert Sealer(SECRETS_KEY).open(made["id"], found.credential.sealed).api_key == OTHER_KEY
    await admin.done("DELETE", path)
    assert await stored(rig, made["id"]) is None


async def test_a_list_is_right_after_every_change(admin: Admin) -> None:
    first, second = await new_upstream(admin), await new_upstream(admin)
    await admin.done("PATCH", f"/upstreams/{first['id']}", json={"name": "new"})
    await admin.done("DELETE", f"/upstreams/{second['id']}")
    listed = {one["id"]: one for one in (await admin.done("GET", "/upstreams"))["data"]}
    assert (listed[first["id"]]["name"], listed[second["id"]]["status"]) == ("new", "deleted")


async def test_the_operator_sees_a_breaker_and_closes_it_by_a_change(admin: Admin, rig: Rig) -> None:
    made = await new_upstream(admin, in_flight_max=2)
    path, shared = f"/upstreams/{made['id']}", Upstreams(rig.redis)
    found = await stored(rig, made["id"])
    assert found is not None
    await shared.failed(Name(made["id"], str(found.version)), "auth")
    assert await shared.take(made["id"], "req_1", in_flight_max=2, lease_s=60)
    shown = await admin.done("GET", path)
    assert (shown["breaker"]["state"], shown["breaker"]["reason"], shown["in_flight"]) == ("open", "auth", 1)
    assert shown["breaker"]["since"] < shown["breaker"]["until"]
    mended = await admin.done("PATCH", path, json={"api_key": OTHER_KEY})
    assert (mended["breaker"]["state"], mended["in_flight"]) == ("closed", 1)


async def test_no_secret_is_in_a_store_a_log_or_an_answer(
    admin: Admin, rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    made = await new_upstream(admin, proxy_url=PROXY)
    path = f"/upstreams/{made['id']}"
    answers = [(await admin.send("PATCH", path, json={"proxy_url": PROXY, "weight": 2})).text]
    answers.append((await admin.send("PATCH", path, json={"api_key": API_KEY, "proxy_url": "x:pass-word"})).text)
    answers.append((await admin.send("POST", "/upstreams", json={"name": "x", "api_key": f"{API_KEY} "})).text)
    answers.append((await admin.send("GET", "/upstreams")).text)
    message = await rig.jetstream.get_last_msg("CONTROL", f"control.upstream.{made['id']}")
    kept = await rig.redis.hget("{upstreams}credentials", made["id"])
    assert kept is not None and b"sealed" in kept
    everything = repr((answers, message.data, kept)) + caplog.text
    for secret in (API_KEY, "pass-word", SECRETS_KEY):
        assert secret not in everything


async def test_without_redis_a_credential_is_kept_and_applied_later(rig: Rig) -> None:
    urls = (rig.config.nats_url, "redis://127.0.0.1:1/0", rig.config.clickhouse_url)
    async with Admin.over(*urls, wait=False) as lonely:

        async def connected() -> bool:
            return bool((await lonely.client.get("/readyz")).json()["nats"])

        await until(connected)
        made = await new_upstream(lonely)
        assert made["breaker"] is None
    assert await stored(rig, made["id"]) is None

    async def applied() -> bool:
        return await stored(rig, made["id"]) is not None

    async with rig.worker():
        await until(applied)
