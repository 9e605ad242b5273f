"""Five hundred callers at once over four gateways, and a limit that fits exactly seven: seven are in flight, never one more.

What a request holds is more than it costs, so what is spent tells nothing: only what is held keeps the eighth away.
"""

import asyncio
import itertools
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any, Final

import pytest

from libs.common import money
from tests.e2e.bodies import MODEL
from tests.e2e.herd import Herd, HoldingUpstream, Size, request, until
from tests.e2e.leaving import USAGE_FINAL
from tests.e2e.relay import Gateway, Relay
from tests.invoice_fold import cost_nanos

pytestmark = [pytest.mark.alone, pytest.mark.anyio, pytest.mark.redis_suite]
GATEWAYS: Final = 4
CALLERS: Final = 500
FITTING: Final = 7
RUNS: Final = 20
COST_NANOS: Final = cost_nanos(USAGE_FINAL, model_asked=MODEL, model_answered=MODEL)
WIDE: Final = {"rpm": 10**6, "itpm": 10**9, "otpm": 10**9, "in_flight": 10**4}
TOLD: Final = {
    "balance": "is free while others are in flight",
    "budget": "A part of it is held by requests in flight",
    "in_flight": f"has {FITTING} requests in flight, and may have {FITTING}",
    "requests": f"may use {FITTING} requests a minute; 0 are left",
    "input": "input tokens a minute .* This request needs about",
}


@dataclass(frozen=True)
class Terms:
    """An account that lets seven through."""

    credit_nanos: int
    limits: dict[str, Any]


@pytest.fixture(scope="module")
def gateways(relay: Relay, holding_port: int) -> Iterator[list[Gateway]]:
    with relay.gateways(GATEWAYS, f"http://127.0.0.1:{holding_port}") as running:
        yield running


@pytest.fixture
async def herd(anyio_backend: str, gateways: list[Gateway], holding: HoldingUpstream) -> AsyncIterator[Herd]:
    async with Herd.of(CALLERS, gateways) as callers:
        yield callers


def terms(kind: str, size: Size, *, slack: int) -> Terms:
    """`slack` is less than a whole request."""
    fitting = FITTING * size.hold_nanos + slack
    plenty = 1000 * size.hold_nanos
    match kind:
        case "balance":
            return Terms(fitting, WIDE)
        case "budget":
            return Terms(plenty, WIDE | {"budget_month_usd": money.format_usd(fitting)})
        case "in_flight":
            return Terms(plenty, WIDE | {"in_flight": FITTING})
        case "requests":
            return Terms(plenty, WIDE | {"rpm": FITTING})
        case _:
            return Terms(plenty, WIDE | {"itpm": FITTING * size.input_tokens})


@pytest.mark.parametrize("kind", TOLD)
async def test_exactly_as_many_pass_as_fit(
    relay: Relay, herd: Herd, holding: HoldingUpstream, size: Size, kind: str
) -> None:
    assert size.hold_nanos > COST_NANOS
    granted: dict[str, int] = {}
    for slack in itertools.islice(itertools.cycle((0, size.hold_nanos - 1)), RUNS):
        given = terms(kind, size, slack=slack)
        credit_usd = money.format_usd(given.credit_nanos)
        account, key = await asyncio.to_thread(relay.new_account, credit_usd=credit_usd, limits=given.limits)
        granted[account] = given.credit_nanos
        await race(herd, holding, key, TOLD[kind])
    for account, credit_nanos in granted.items():
        await asyncio.to_thread(check_books, relay, account, credit_nanos)


async def race(herd: Herd, upstream: HoldingUpstream, key: str, told: str) -> None:
    """All ask at once; each is refused or held by the upstream, and only then anybody is answered."""
    upstream.hold()
    herd.ask(request(key))
    await until(
        lambda: len(herd.answered()) + upstream.open == CALLERS, lambda: f"{herd.statuses()}, {upstream.open} open"
    )
    assert (upstream.open, upstream.open_max) == (FITTING, FITTING), herd.statuses()
    for refused in herd.answered():
        assert refused.status == 429, refused
        assert re.search(told, refused.error["message"]), refused
        assert 1 <= int(refused.headers[b"retry-after"]) <= 60
    upstream.let_go()
    await herd.all_answered()
    assert herd.statuses() == {200: FITTING, 429: CALLERS - FITTING}


def check_books(relay: Relay, account: str, credit_nanos: int) -> None:
    """A row for each that was let in, none for the others; nothing is held; what is gone is what the rows say."""
    rows = relay.rows(account, FITTING)
    assert {(row["outcome"], row["total_nanos"]) for row in rows} == {("measured", COST_NANOS)}
    assert len({row["request_id"] for row in rows}) == FITTING
    balance = {name: money.parse_usd(amount) for name, amount in relay.balance(account).items()}
    assert balance == {
        "granted_usd": credit_nanos,
        "spent_usd": FITTING * COST_NANOS,
        "held_usd": 0,
        "available_usd": credit_nanos - FITTING * COST_NANOS,
    }
