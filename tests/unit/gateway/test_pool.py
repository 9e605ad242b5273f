"""The pool of one gateway: who gets which credential, what takes one out, and what goes on while Redis is away."""

import asyncio
import logging
from typing import Any, Final

import httpx2
import pytest

from libs.common import redisclient
from libs.common.config import ConfigError, GatewayConfig
from libs.common.metrics import Metrics
from libs.common.runtime import running
from libs.common.upstreams import Upstreams
from services.gateway.pool import Pool
from tests.unit.gateway.pools import ACCOUNT, Rig

pytestmark = pytest.mark.anyio
ACCOUNTS: Final = [f"acct_{number:032x}" for number in range(300)]


def chosen(rig: Rig) -> dict[str, str]:
    found = {account: rig.pool.choose(account) for account in ACCOUNTS}
    return {account: credential.id for account, credential in found.items() if credential is not None}


async def test_when_one_is_out_only_its_accounts_move_and_they_come_back() -> None:
    rig = Rig(["a", "b", "c"])
    before = chosen(rig)
    rig.pool.failed(rig.named("b"), "rate", retry_after_s=20)
    during = chosen(rig)
    assert "b" not in during.values()
    assert all(during[account] == name for account, name in before.items() if name != "b")
    rig.pass_time(20.1)
    rig.pool.succeeded(rig.named("b"))
    assert chosen(rig) == before


async def test_those_who_move_go_to_the_least_loaded_by_weight() -> None:
    rig = Rig({"a": {}, "b": {"weight": 4}, "c": {}})
    account = next(account for account, name in chosen(rig).items() if name == "a")
    rig.pool.failed(rig.named("a"), "auth")
    counts = {"b": 0, "c": 0}
    for number in range(50):
        credential = rig.pool.choose(account)
        assert credential is not None and await rig.pool.enter(credential, f"req_{number}")
        counts[credential.id] += 1
    assert counts == {"b": 40, "c": 10}


async def test_a_barred_one_is_not_chosen() -> None:
    rig = Rig(["a", "b"])
    assert rig.pool.choose(ACCOUNT, {rig.named(rig.first)}) is not rig.named(rig.first)
    assert rig.pool.choose(ACCOUNT, {rig.named("a"), rig.named("b")}) is None


async def test_an_account_with_a_credential_of_its_own_uses_no_other() -> None:
    rig = Rig({"a": {}, "own": {"account_id": ACCOUNT}})
    assert rig.first == "own" and set(chosen(rig).values()) == {"a"}
    rig.pool.failed(rig.named("own"), "auth")
    assert rig.pool.choose(ACCOUNT) is None


async def test_a_cap_holds_for_one_gateway_without_redis() -> None:
    rig = Rig({"a": {"in_flight_max": 2}})
    credential = rig.named("a")
    assert [await rig.pool.enter(credential, f"req_{number}") for number in range(2)] == [True, True]
    assert rig.pool.choose(ACCOUNT) is None and not await rig.pool.enter(credential, "req_2")
    rig.pool.leave(credential, "req_0")
    assert rig.pool.choose(ACCOUNT) is credential


async def test_there_is_one_way_for_each_proxy_and_all_are_closed() -> None:
    closed: list[str] = []

    class Way(httpx2.MockTransport):
        async def aclose(self) -> None:
            closed.append("")

    made: list[str] = []

    def way(proxy_url: str) -> Way:
        made.append(proxy_url)
        return Way(lambda _: httpx2.Response(200))

    config = GatewayConfig(
        upstreams='[{"api_key":"1"},{"api_key":"2"},{"api_key":"3","proxy_url":"http://p:1"},{"api_key":"4","proxy_url":"http://p:1"}]'
    )
    pool = Pool(config, transport_for=way, metrics=Metrics())
    await pool.aclose()
    assert (made, len(closed)) == (["", "http://p:1"], 2)


async def test_a_way_that_cannot_be_built_leaves_the_others_working(caplog: pytest.LogCaptureFixture) -> None:
    def way(proxy_url: str) -> httpx2.AsyncBaseTransport:
        if proxy_url:
            raise ValueError("bad proxy http://user:word@p")
        return httpx2.MockTransport(lambda _: httpx2.Response(200))

    metrics = Metrics()
    config = GatewayConfig(upstreams='[{"api_key":"1"},{"api_key":"2","proxy_url":"http://user:word@p:1"}]')
    with caplog.at_level(logging.ERROR):
        pool = Pool(config, transport_for=way, metrics=metrics)
    assert pool.count(ACCOUNT) == 1 == metrics.value("relay_upstream_credentials")
    assert metrics.value("relay_upstream_alarms_total", "unusable") == 1
    assert "env-2" in caplog.text and "word" not in caplog.text


async def test_settings_that_cannot_be_read_are_refused() -> None:
    with pytest.raises(ConfigError):
        Pool(GatewayConfig(upstreams="["), transport_for=lambda _: httpx2.AsyncBaseTransport(), metrics=Metrics())


async def test_open_breakers_are_counted() -> None:
    rig = Rig(["a", "b", "c"])
    assert (rig.metrics.value("relay_upstream_credentials"), rig.metrics.value("relay_upstream_open_breakers")) == (
        3,
        0,
    )
    rig.pool.failed(rig.named("a"), "auth")
    rig.pool.failed(rig.named("b"), "server")
    assert rig.metrics.value("relay_upstream_open_breakers") == 1
    rig.pass_time(31)
    assert rig.metrics.value("relay_upstream_open_breakers") == 1  # half open is not yet well
    rig.pool.succeeded(rig.named("a"))
    assert rig.metrics.value("relay_upstream_open_breakers") == 0


@pytest.mark.parametrize("kind", ["auth", "hold", "spend", "rate"])
async def test_a_success_that_was_sent_before_changes_nothing(kind: Any) -> None:
    rig = Rig(["a"])
    for _ in range(5):
        rig.pool.failed(rig.named("a"), kind)
    rig.pool.succeeded(rig.named("a"))
    assert rig.state("a") == "open"


async def test_seconds_until_one_is_back_and_until_one_may_be_asked() -> None:
    rig = Rig(["a", "b"])
    a, b = rig.named("a"), rig.named("b")
    assert rig.pool.back_in_s(ACCOUNT) == rig.pool.wait_s(ACCOUNT) == 0
    rig.pool.failed(a, "auth")
    rig.pool.failed(b, "rate", retry_after_s=12)
    assert rig.pool.back_in_s(ACCOUNT) == pytest.approx(12, abs=0.1)
    assert rig.pool.wait_s(ACCOUNT) is None
    rig.pass_time(13)
    assert (rig.pool.back_in_s(ACCOUNT), rig.pool.wait_s(ACCOUNT), rig.pool.wait_s(ACCOUNT, {b})) == (0, 0, None)
    assert await rig.pool.enter(b, "req_1")
    assert (rig.pool.wait_s(ACCOUNT), rig.pool.choose(ACCOUNT)) == (1.0, None)  # somebody tries it
    assert Rig({"c": {"account_id": "acct_other"}}).pool.back_in_s(ACCOUNT) is None


async def test_what_is_out_for_failures_only_is_the_last_resort() -> None:
    rig = Rig(["a", "b"])
    for _ in range(5):
        rig.pool.failed(rig.named("a"), "server")
    rig.pool.failed(rig.named("b"), "auth")
    assert rig.pool.choose(ACCOUNT) is None
    assert rig.pool.last_resort(ACCOUNT) is rig.named("a")
    assert rig.pool.last_resort(ACCOUNT, {rig.named("a")}) is None
    unreachable = Rig(["a", "b"])
    for name, kind in {"a": "connect", "b": "server"}.items():
        for _ in range(5):
            unreachable.pool.failed(unreachable.named(name), kind)  # type: ignore[arg-type]
    assert unreachable.pool.last_resort(ACCOUNT) is unreachable.named("b")
    assert await rig.pool.enter(rig.named("a"), "req_1", anyway=True)
    rig.pool.succeeded(rig.named("a"))
    assert (rig.state("a"), rig.state("b")) == ("closed", "open")


async def test_the_accounts_it_remembers_are_bounded() -> None:
    rig = Rig(["a"])
    for number in range(10_050):
        rig.pool.choose(f"acct_{number}")
    assert len(rig.pool._choices) <= 10_000


async def test_while_redis_is_away_everything_goes_on_with_what_is_known() -> None:
    redis = redisclient.connect("redis://127.0.0.1:1/0")
    rig = Rig({"a": {"in_flight_max": 2}, "b": {}}, upstreams=Upstreams(redis))
    following = asyncio.ensure_future(rig.pool.run())
    rig.pool.failed(rig.named("b"), "auth")
    assert rig.state("b") == "open"
    capped = rig.named("a")
    assert [await rig.pool.enter(capped, f"req_{number}") for number in range(2)] == [True, True]
    assert not await rig.pool.enter(capped, "req_2")
    rig.pool.leave(capped, "req_0")
    rig.pass_time(31)
    assert [await rig.pool.enter(rig.named("b"), f"req_{number}") for number in range(3)] == [True, False, False]
    rig.pool.succeeded(rig.named("b"))
    while any(task.get_name() == "report-upstream" for task in running()):
        await asyncio.sleep(0.01)
    assert (rig.state("b"), capped.in_flight, rig.named("b").in_flight) == ("closed", 1, 1)
    following.cancel()
    await redis.aclose()
