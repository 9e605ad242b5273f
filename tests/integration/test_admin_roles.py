"""Role × route on real stores: whoever is not in the table is refused by 403, everybody else never is."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final, get_args

import pytest

from libs.common import clock, ids
from libs.common.entities import Scope
from services.admin.access import MEMBERS, Role
from services.admin.resource import Operation
from tests import apart
from tests.integration.accounting_rig import Rig
from tests.integration.admin_people import BY_ID, Person, admin_from, ask, invited, service_token, signed_in
from tests.integration.admin_rig import PROBLEM, Admin
from tests.integration.admin_roles import LETTERS, OPEN, TABLE, roles_of

pytestmark = pytest.mark.anyio
ROLES: Final = tuple(LETTERS.values())
SCOPES: Final[tuple[Scope, ...]] = get_args(Scope)
ENDS_SESSION: Final = "signing_in_sign_out"


@dataclass(frozen=True)
class World:
    """An account, and somebody of every role."""

    admin: Admin
    account_id: str
    people: dict[Role, Person]

    async def status(self, operation: Operation, token: str | None) -> int:
        """How a call with the smallest input is answered: nothing comes of it, for its ids are nobody's."""
        answer = await ask(self.admin, operation, {"account_id": self.account_id}, token=token)
        if not answer.is_success:
            assert answer.headers["content-type"] == PROBLEM, (operation.id, answer.text)
            assert answer.json()["status"] == answer.status_code
        return answer.status_code


nats_url, redis_url = apart.nats_url, apart.redis_url
"""Prices are everybody's: what is published here must not be seen by other tests."""


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def world(nats_url: str, redis_url: str, clickhouse_url: str) -> AsyncIterator[World]:
    async with Rig.over(nats_url, redis_url, clickhouse_url) as rig, admin_from(rig, "127.0.1.1") as admin:
        account_id = await admin.new_account()
        people = {}
        for role in ROLES:
            side, _, name = role.partition(":")
            people[role] = await signed_in(admin, name, account_id if side == "account" else "")
        yield World(admin, account_id, people)


def wanted(operation: Operation) -> frozenset[Role]:
    """Whom the table lets in; of an operation that it does not know yet (test_routes.py says so), what the code says."""
    return roles_of(operation.id) if operation.id in TABLE else operation.roles or frozenset()


@pytest.mark.parametrize("role", ROLES)
async def test_a_role_may_what_the_table_says(world: World, role: Role) -> None:
    token = world.people[role].token
    wrong = []
    for operation in BY_ID.values():
        if operation.id in (*OPEN, ENDS_SESSION):
            continue
        status = await world.status(operation, token)
        if (status == 403) == (role in wanted(operation)) or status == 401 or status >= 500:
            wrong.append((operation.id, status))
    assert not wrong


@pytest.mark.parametrize("role", ROLES)
async def test_everybody_ends_his_own_session_and_no_other(world: World, role: Role) -> None:
    person, admin = world.people[role], world.admin
    body = {"email": person.email, "password": "a long pass phrase"}
    session = await admin.done("POST", "/sessions", json=body)
    assert (session["role"], session["actor"]) == (role, person.id)
    assert await world.status(BY_ID[ENDS_SESSION], session["token"]) == 200
    assert await world.status(BY_ID["signing_in_me"], session["token"]) == 401
    me = await admin.done("GET", "/me", token=person.token)
    assert (me["role"], me["actor"], me["account_id"] or "") == (role, person.id, person.account_id)


async def test_without_a_token_only_what_is_open(world: World) -> None:
    for operation in BY_ID.values():
        status = await world.status(operation, None)
        reached = 400 if operation.body else 200
        assert status == (reached if operation.id in OPEN else 401), operation.id


@pytest.mark.parametrize("role", ["operator:owner", "operator:finance", "account:admin", "account:billing"])
async def test_a_service_token_reaches_its_scope_within_its_role(world: World, role: Role) -> None:
    side, _, name = role.partition(":")
    account_id = world.account_id if side == "account" else ""
    reached: dict[Scope, set[str]] = {}
    for scope in SCOPES:
        token = await service_token(world.admin, name, [scope], account_id)
        statuses = await asyncio.gather(*(world.status(one, token) for one in _closed()))
        assert not any(status == 401 or status >= 500 for status in statuses)
        reached[scope] = {one.id for one, status in zip(_closed(), statuses, strict=True) if status != 403}
    for scope in SCOPES:
        assert reached[scope] == {one.id for one in _closed() if one.scope == scope and role in wanted(one)}, scope


async def test_a_service_token_makes_none_that_may_more(world: World) -> None:
    for role, account_id in (("owner", ""), ("admin", world.account_id)):
        token = await service_token(world.admin, role, ["tokens:write", "keys:read"], account_id)
        path = f"/accounts/{account_id}/tokens" if account_id else "/tokens"
        for scopes, status in ((["keys:write"], 422), (["keys:read", "money:write"], 422), (["keys:read"], 201)):
            body = {"name": "t", "role": role, "scopes": scopes}
            assert (await world.admin.send("POST", path, json=body, token=token)).status_code == status
        await world.admin.refused("POST", path, 400, json=body | {"scopes": []}, token=token)
        await world.admin.refused("POST", path, 400, json=body | {"scopes": ["everything"]}, token=token)


async def test_a_service_token_makes_none_that_outlives_it(world: World) -> None:
    soon, later = clock.unix_ms() + 3_600_000, clock.unix_ms() + 7_200_000
    for role, path in (("owner", "/tokens"), ("admin", f"/accounts/{world.account_id}/tokens")):
        body = {"name": "t", "role": role, "scopes": ["tokens:write"], "expires_at": clock.iso_utc(soon)}
        token = (await world.admin.done("POST", path, json=body))["token"]
        for expires_at, status in ((None, 422), (clock.iso_utc(later), 422), (clock.iso_utc(soon), 201)):
            answer = await world.admin.send("POST", path, json=body | {"expires_at": expires_at}, token=token)
            assert answer.status_code == status, answer.text


async def test_a_service_token_is_given_no_link_that_may_do_more(world: World) -> None:
    """By the link it could sign in as somebody whom no scope bounds."""
    members = f"/accounts/{world.account_id}/members"
    admin = world.admin
    for role, account_id, path in (("owner", "", "/operators"), ("admin", world.account_id, members)):
        few = await service_token(admin, role, ["operators:write", "members:write", "members:read"], account_id)
        whole = await service_token(admin, role, list(SCOPES), account_id)
        name, _, _ = await invited(admin, "admin" if account_id else "viewer", account_id)
        body = {"name": "x", "role": "admin" if account_id else "owner"}
        for token, status in ((few, 403), (whole, 201)):
            new = body | {"email": f"{ids.uuid7_hex()}@example.com"}
            for where, sent in ((path, new), (f"{path}/{name}/link", None)):
                answer = await admin.send("POST", where, token=token, json=sent)
                assert answer.status_code == status, (where, answer.text)
        if account_id:
            await admin.done("POST", path, token=few, json=body)


async def test_a_service_token_is_no_person(world: World) -> None:
    """It has no session to end and no password to change, whatever its scopes are."""
    token = await service_token(world.admin, "owner", list(SCOPES))
    assert await world.status(BY_ID["signing_in_sign_out"], token) == 403
    assert await world.status(BY_ID["signing_in_change_password"], token) == 403


async def test_no_role_of_an_account_reaches_beyond_it(world: World) -> None:
    elsewhere = await world.admin.new_account(None)
    for operation in BY_ID.values():
        if "{account_id}" not in operation.path:
            continue
        for role in sorted(MEMBERS):
            token = world.people[role].token
            answer = await ask(world.admin, operation, {"account_id": elsewhere}, token=token)
            assert answer.status_code == 404, (operation.id, role)


FIELDS: Final = [
    ({"multiplier": "1"}, "OF"),
    ({"status": "active"}, "OS"),
    ({"limits": {"rpm": 100}}, "OS"),
    ({"name": "a new name"}, "OFS oa"),
    ({"time_zone": "UTC"}, "OFS oa"),
    ({"on_disconnect": "drain"}, "OFS oa"),
    ({"name": "n", "multiplier": "1", "limits": {}}, "O"),
]
"""A part of a change of an account, and who may make it."""


async def test_fields_of_an_account_have_roles_of_their_own(world: World) -> None:
    for body, letters in FIELDS:
        for letter, role in LETTERS.items():
            token = world.people[role].token
            answer = await world.admin.send("PATCH", f"/accounts/{world.account_id}", json=body, token=token)
            assert (answer.status_code == 200) == (letter in letters), (body, role, answer.text)
            assert answer.status_code in (200, 403)


async def test_only_owners_deal_with_owners(world: World) -> None:
    members, admin = f"/accounts/{world.account_id}/members", world.admin
    leader, owner = world.people["account:admin"], world.people["account:owner"]
    for body in ({"role": "developer"}, {"name": "x"}, {"status": "disabled"}, {"email": "x@example.com"}):
        await admin.refused("PATCH", f"{members}/{owner.id}", 403, json=body, token=leader.token)
    await admin.refused("PATCH", f"{members}/{leader.id}", 403, json={"role": "owner"}, token=leader.token)
    await admin.refused("DELETE", f"{members}/{owner.id}", 403, token=leader.token)
    await admin.refused("POST", f"{members}/{owner.id}/link", 403, token=leader.token)
    await admin.refused("POST", members, 403, json={"name": "x", "role": "owner"}, token=leader.token)
    await admin.refused("PATCH", f"{members}/{owner.id}", 409, json={"role": "admin"}, token=owner.token)


def _closed() -> list[Operation]:
    return [one for one in BY_ID.values() if one.roles is not None]
