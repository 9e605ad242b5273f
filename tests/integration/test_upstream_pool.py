"""Several gateways, one Redis: what one finds out of an upstream credential the others act on, and caps hold for all together."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any, Final

import pytest

from libs.common import ids, redisclient
from libs.common.events import UpstreamCredential
from libs.common.runtime import running
from libs.common.scripts import Scripts
from libs.common.sealing import Sealer, UpstreamSecret, new_key
from libs.common.upstreams import CLOSED, Upstreams
from services.gateway.pool import Credential, Pool
from tests.unit.gateway.pools import CALL, Rig, error, ok

pytestmark = [pytest.mark.anyio, pytest.mark.redis_suite]
SEALER: Final = Sealer(new_key())


class Site:
    """Two gateways, and an operator; every test has an account and credentials of its own."""

    def __init__(self, redis: Any, others: list[Any]) -> None:
        self.redis = redis
        self.operator = Upstreams(redis)
        self.account_id = ids.new_account_id()
        self.rigs = [Rig([], upstreams=Upstreams(one, Scripts(one))) for one in others]
        for rig in self.rigs:
            rig.pool._sealer = SEALER
        self.version = 0

    @property
    def pools(self) -> list[Pool]:
        return [rig.pool for rig in self.rigs]

    async def put(self, upstream_id: str, api_key: str = "", *, sealer: Sealer = SEALER, **fields: Any) -> None:
        """A credential dedicated to the account of this test, so that those of other tests do not matter."""
        self.version += 1
        secret = UpstreamSecret(api_key=api_key or f"key-{upstream_id}")
        credential = UpstreamCredential(
            id=upstream_id,
            name="main",
            created_at_ms=1,
            base_url="https://api",
            sealed=sealer.seal(upstream_id, secret),
            hint="",
            account_id=self.account_id,
            **fields,
        )
        await self.operator.put(credential, self.version)

    async def refresh(self) -> None:
        await settled()
        for pool in self.pools:
            await pool.refresh()

    def seen(self, upstream_id: str) -> list[Credential]:
        return [one for rig in self.rigs for one in rig.pool._credentials if one.id == upstream_id]

    def states(self, upstream_id: str) -> list[str]:
        return [one.breaker.state(self.pools[0].now_ms()) for one in self.seen(upstream_id)]


async def settled() -> None:
    """Until what was found out is in Redis."""
    while any(task.get_name() in ("report-upstream", "scripts-flush") for task in running()):
        await asyncio.sleep(0.005)


@pytest.fixture
async def site(redis_url: str) -> AsyncIterator[Site]:
    async with contextlib.AsyncExitStack() as stack:
        clients = [redisclient.connect(redis_url, try_seconds=redisclient.TRY_S_UNHURRIED) for _ in range(3)]
        for client in clients:
            stack.push_async_callback(client.aclose)
        yield Site(clients[0], clients[1:])
        await settled()


async def sent(site: Site, number: int, request_id: str = "req_1") -> int:
    attempts = site.rigs[number].attempts(request_id, site.account_id)
    try:
        return (await attempts.send(CALL)).response.status
    finally:
        attempts.release()


async def test_credentials_come_change_and_go_without_a_restart(site: Site) -> None:
    one, two = ids.new_upstream_id(), ids.new_upstream_id()
    assert [pool.count(site.account_id) for pool in site.pools] == [0, 0]
    await site.put(one)
    await site.refresh()
    assert await sent(site, 0) == 200 and site.rigs[0].asked == [one]
    await site.put(two)
    await site.put(one, status="disabled")
    await site.refresh()
    assert await sent(site, 1) == 200 and site.rigs[1].asked == [two]
    await site.put(two, status="deleted")
    await site.refresh()
    assert [pool.choose(site.account_id) for pool in site.pools] == [None, None]


async def test_what_one_gateway_finds_the_other_acts_on(site: Site) -> None:
    one, two = ids.new_upstream_id(), ids.new_upstream_id()
    await site.put(one)
    await site.put(two)
    await site.refresh()
    bad = site.pools[0].choose(site.account_id)
    assert bad is not None
    for rig in site.rigs:
        rig.tell(bad.id, error(401))
    assert await sent(site, 0) == 200
    await site.refresh()
    assert site.states(bad.id) == ["open", "open"]
    assert await sent(site, 1) == 200 and bad.id not in site.rigs[1].asked
    assert site.rigs[1].metrics.value("relay_upstream_open_breakers") >= 1


async def test_a_gateway_that_starts_knows_what_is_out(site: Site, redis_url: str) -> None:
    one = ids.new_upstream_id()
    await site.put(one)
    await site.refresh()
    site.pools[0].failed(site.seen(one)[0], "hold")
    await settled()
    redis = redisclient.connect(redis_url, try_seconds=redisclient.TRY_S_UNHURRIED)
    late = Rig([], upstreams=Upstreams(redis))
    late.pool._sealer = SEALER
    await late.pool.refresh()
    assert late.state(one) == "open" and late.pool.choose(site.account_id) is None
    await redis.aclose()


async def test_a_new_key_is_used_at_once_whatever_the_old_one_had_done(site: Site) -> None:
    one = ids.new_upstream_id()
    await site.put(one, "key-old")
    await site.refresh()
    for rig in site.rigs:
        rig.tell("old", error(401))
    with pytest.raises(Exception, match="busy"):
        await sent(site, 0)
    await site.refresh()
    old = site.seen(one)[0]
    await site.put(one, "key-new")
    site.pools[0].failed(old, "auth")  # an answer that was still on its way
    await site.refresh()
    assert site.states(one) == ["closed", "closed"]
    assert [await sent(site, number) for number in (0, 1)] == [200, 200]


async def test_failures_in_a_row_count_over_all_gateways(site: Site) -> None:
    one = ids.new_upstream_id()
    await site.put(one)
    await site.refresh()
    for number in range(5):
        assert site.states(one) == ["closed", "closed"]
        site.pools[number % 2].failed(site.seen(one)[number % 2], "server")
        await settled()
    await site.refresh()
    assert site.states(one) == ["open", "open"]


async def test_one_gateway_at_a_time_tries_and_all_learn_that_it_works(site: Site) -> None:
    one, two = ids.new_upstream_id(), ids.new_upstream_id()
    await site.put(one)
    await site.put(two)
    await site.refresh()
    bad = site.seen(one)[0]
    site.pools[0].failed(bad, "auth")
    await settled()
    field = f"{bad.way.name.id}@{bad.way.name.generation}"
    await site.redis.hset("{upstreams}breakers", field, "auth 0 1 1000 2000 0")
    await site.refresh()
    assert site.states(one) == ["half_open", "half_open"]
    entered = await asyncio.gather(
        *(pool.enter(credential, f"req_{number}") for number in range(10)
          for pool, credential in zip(site.pools, site.seen(one), strict=True))
    )  # fmt: skip
    assert sum(entered) == 1
    site.pools[entered.index(True) % 2].succeeded(site.seen(one)[entered.index(True) % 2])
    await site.refresh()
    assert [credential.breaker for credential in site.seen(one)] == [CLOSED, CLOSED]


async def test_a_cap_holds_for_all_gateways_together_and_the_rest_goes_elsewhere(site: Site) -> None:
    capped, free = ids.new_upstream_id(), ids.new_upstream_id()
    await site.put(capped, in_flight_max=3)
    await site.put(free)
    await site.refresh()
    every = [site.rigs[number % 2].attempts(f"req_{number}", site.account_id) for number in range(40)]
    for rig in site.rigs:
        rig.tell(capped, ok())
    for answer in await asyncio.gather(*(one.send(CALL) for one in every)):
        assert answer.response.status == 200
    taken = [one for one in every if one.made[-1].upstream_id == capped]
    first_is_capped = selection_of(site) == capped
    assert len(taken) == 3 if first_is_capped else len(taken) <= 3
    assert await site.operator.in_flight([capped]) == [len(taken)]
    for one in every:
        one.release()
    await settled()
    assert await site.operator.in_flight([capped]) == [0]


def selection_of(site: Site) -> str:
    return site.pools[0]._options(site.account_id)[0].id


async def test_slots_of_long_requests_are_kept_and_those_of_a_dead_gateway_are_not(site: Site) -> None:
    capped = ids.new_upstream_id()
    await site.put(capped, in_flight_max=5)
    await site.refresh()
    for pool in site.pools:
        pool._lease_s = 0.4
    for number, pool in enumerate(site.pools):
        assert await pool.enter(site.seen(capped)[number], f"req_{number}")
    for _ in range(6):
        await asyncio.sleep(0.14)
        await site.pools[0].refresh()  # the other one is dead
    assert await site.operator.in_flight([capped]) == [1]


async def test_a_cancelled_request_leaves_no_slot(site: Site) -> None:
    capped = ids.new_upstream_id()
    await site.put(capped, in_flight_max=5)
    await site.refresh()
    entering = asyncio.ensure_future(site.pools[0].enter(site.seen(capped)[0], "req_1"))
    await asyncio.sleep(0)
    entering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await entering
    await settled()
    assert await site.operator.in_flight([capped]) == [0]
    assert site.seen(capped)[0].in_flight == 0


async def test_one_that_cannot_be_opened_is_left_out_and_the_operator_is_told_once(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    shut, good = ids.new_upstream_id(), ids.new_upstream_id()
    await site.put(shut, sealer=Sealer(new_key()))
    await site.put(good)
    with caplog.at_level(logging.ERROR, logger="relay.pool"):
        await site.refresh()
        await site.put(good, weight=2)
        await site.refresh()
    assert site.pools[0].count(site.account_id) == 1
    told = [record.getMessage() for record in caplog.records if shut in record.getMessage()]
    assert len(told) == 2  # once for each gateway
    assert "RELAY_SECRETS_KEY" in told[0]


async def test_a_credential_that_did_not_change_keeps_what_is_known_of_it(site: Site) -> None:
    one = ids.new_upstream_id()
    await site.put(one)
    await site.refresh()
    before = site.seen(one)
    await site.put(ids.new_upstream_id())
    await site.refresh()
    assert [now is then for now, then in zip(site.seen(one), before, strict=True)] == [True, True]
