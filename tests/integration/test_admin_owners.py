"""The last owner: whoever asks, on whatever replica, somebody is left who can sign in and make others."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.integration.accounting_rig import Rig, until
from tests.integration.admin_people import admin_from, signed_in
from tests.integration.admin_rig import Admin

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def replicas(nats_url: str, redis_url: str, clickhouse_url: str) -> AsyncIterator[tuple[Admin, Admin]]:
    async with (
        Rig.over(nats_url, redis_url, clickhouse_url) as rig,
        admin_from(rig, "127.0.1.21") as one,
        admin_from(rig, "127.0.1.22") as other,
    ):
        yield one, other


async def test_two_owners_who_make_each_other_less_do_not_both_succeed(replicas: tuple[Admin, Admin]) -> None:
    first, second = replicas
    account_id = await first.new_account(None)
    path = f"/accounts/{account_id}/members"
    ada, bob = [await signed_in(first, "owner", account_id) for _ in range(2)]
    await until(lambda: _is_in(second, bob.token))
    answers = await asyncio.gather(
        first.send("PATCH", f"{path}/{bob.id}", json={"role": "billing"}, token=ada.token),
        second.send("PATCH", f"{path}/{ada.id}", json={"role": "billing"}, token=bob.token),
    )
    assert sorted(one.status_code for one in answers) == [200, 409]


async def test_an_owner_who_never_set_a_password_does_not_count(replicas: tuple[Admin, Admin]) -> None:
    admin, _ = replicas
    account_id = await admin.new_account(None)
    path = f"/accounts/{account_id}/members"
    owner = await signed_in(admin, "owner", account_id)
    await admin.done("POST", path, json={"name": "nobody", "role": "owner"})
    detail = await admin.refused("PATCH", f"{path}/{owner.id}", 409, json={"role": "admin"}, token=owner.token)
    assert "last owner" in detail
    await signed_in(admin, "owner", account_id)
    await admin.done("PATCH", f"{path}/{owner.id}", json={"role": "admin"}, token=owner.token)


async def _is_in(admin: Admin, token: str) -> bool:
    return (await admin.send("GET", "/me", token=token)).status_code == 200
