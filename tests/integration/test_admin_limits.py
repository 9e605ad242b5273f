"""What an operator sets is what admission obeys, for the very next request: limits, members, and what a key may do."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from libs.common import clock, ids
from libs.common.leases import Admission, Granted, Leases, Refused
from tests.integration.accounting_rig import Rig
from tests.integration.admin_rig import Admin, admitted

pytestmark = pytest.mark.anyio


@pytest.fixture
async def rig(nats_url: str, redis_url: str, clickhouse_url: str) -> AsyncIterator[Rig]:
    async with Rig.over(nats_url, redis_url, clickhouse_url) as made:
        yield made


@pytest.fixture
async def admin(rig: Rig) -> AsyncIterator[Admin]:
    urls = (rig.config.nats_url, rig.config.redis_url, rig.config.clickhouse_url)
    async with Admin.over(*urls) as made:
        yield made


class Case:
    """An account with a member and his key."""

    def __init__(self, rig: Rig, admin: Admin, account_id: str, member_id: str, key_id: str) -> None:
        self.rig, self.admin = rig, admin
        self.account_id, self.member_id, self.key_id = account_id, member_id, key_id
        self.account = f"/accounts/{account_id}"
        self.member = f"{self.account}/members/{member_id}"
        self.key = f"{self.account}/keys/{key_id}"

    async def set(self, path: str, **fields: Any) -> None:
        await self.admin.done("PATCH", path, json=fields)

    async def refused(self, **asked: Any) -> tuple[str, str]:
        """Why a request is refused, and whose limit it was; empty if it is not."""
        decision = await admitted(self.rig.redis, self.account_id, self.key_id, **asked)
        return (decision.reason, decision.scope) if isinstance(decision, Refused) else ("", "")


@pytest.fixture
async def case(rig: Rig, admin: Admin) -> Case:
    account_id = await admin.new_account()
    member = await admin.done("POST", f"/accounts/{account_id}/members", json={"name": "Zoë"})
    body = {"name": "laptop", "member_id": member["id"]}
    key = await admin.done("POST", f"/accounts/{account_id}/keys", json=body)
    made = Case(rig, admin, account_id, member["id"], key["id"])
    assert await made.refused() == ("", "")
    return made


@pytest.mark.parametrize("scope", ["account", "member", "key"])
async def test_a_budget_is_in_force_at_once_and_gone_at_once(case: Case, scope: str) -> None:
    path = getattr(case, scope)
    for period in ("day", "week", "month", "total"):
        await case.set(path, limits={f"budget_{period}_usd": "0"})
        assert await case.refused() == ("budget", scope)
        await case.set(path, limits={f"budget_{period}_usd": None})
        assert await case.refused() == ("", "")


async def test_a_member_is_stopped_with_his_keys(case: Case) -> None:
    await case.set(case.member, status="disabled")
    assert await case.refused() == ("member", "member")
    await case.set(case.member, status="active")
    assert await case.refused() == ("", "")
    await case.admin.done("DELETE", case.member)
    assert await case.refused() == ("member", "member")
    await case.set(case.key, member_id=None)
    assert await case.refused() == ("", "")


async def test_a_key_for_some_models(case: Case) -> None:
    await case.set(case.key, models=["claude-haiku-4-5-20251001"])
    assert await case.refused() == ("model", "key")
    assert await case.refused(models=("claude-haiku-4-5",)) == ("", "")
    await case.set(case.key, models=None)
    assert await case.refused() == ("", "")


async def test_a_key_for_some_addresses(case: Case) -> None:
    await case.set(case.key, ip_allowlist=["192.0.2.0/24", "2001:db8::/32"])
    assert await case.refused() == ("address", "key")
    for address in ("0" * 20 + "ffffc0000201", "20010db8" + "0" * 24):
        assert await case.refused(address=address) == ("", "")
    await case.set(case.key, ip_allowlist=["::ffff:127.0.0.0/104"])
    assert await case.refused() == ("", "")


async def test_a_key_for_some_time(case: Case) -> None:
    await case.set(case.key, expires_at="2099-01-01T00:00:00Z")
    assert await case.refused() == ("", "")
    await case.set(case.key, expires_at=clock.iso_utc(clock.unix_ms() - 1_000))
    assert await case.refused() == ("expired", "key")


async def test_limits_of_an_account_have_defaults(case: Case) -> None:
    decision = await admitted(case.rig.redis, case.account_id, case.key_id)
    assert isinstance(decision, Granted)
    figures = decision.figures
    assert figures.requests is not None and figures.requests.limit == 1_000
    await case.set(case.account, limits={"rpm": 7})
    decision = await admitted(case.rig.redis, case.account_id, case.key_id)
    assert isinstance(decision, Granted)
    assert decision.figures.requests is not None and decision.figures.requests.limit == 7


async def test_what_is_held_is_in_the_balance(case: Case) -> None:
    """granted = available + held + spent."""
    leases = Leases(case.rig.redis)
    admission = Admission(
        request_id=ids.new_request_id(),
        account_id=case.account_id,
        key_id=case.key_id,
        address="0" * 32,
        models=("claude-sonnet-4-6",),
        input_tokens=1,
        hold_nanos=1_500_000_000,
        memo=b"{}",
    )
    decision = await leases.admit(admission)
    assert isinstance(decision, Granted)
    shown = await case.admin.balance(case.account_id)
    assert shown == {"available_usd": "8.50", "held_usd": "1.50", "spent_usd": "0.00", "granted_usd": "10.00"}
    await leases.void(decision.lease)
    assert (await case.admin.balance(case.account_id))["held_usd"] == "0.00"
