"""No account reads, lists, changes or even learns of another's objects, whatever it puts where (P12)."""

import base64
import itertools
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Final

import pytest

from libs.common import ids, subjects
from libs.common.pricing import price_event
from services.accounting.rows import usage_row
from services.admin.access import MEMBERS
from services.admin.resource import Operation
from tests.integration.accounting_rig import Rig
from tests.integration.admin_bodies import body_of
from tests.integration.admin_people import (
    BY_ID,
    Person,
    admin_from,
    ask,
    parameters_of,
    service_token,
    signed_in,
    some_id,
)
from tests.integration.admin_rig import Admin
from tests.unit.accounting.samples import recorded

pytestmark = pytest.mark.anyio
HEADERS: Final = {"if-match": '"1"', "idempotency-key": "the same"}
CONTROL_KINDS: Final = ("account", "member", "key", "token", "credit", "login", "channel", "rule", "incident")


@dataclass
class Side:
    """An account with everything an account can have. Its names and secrets carry its mark."""

    mark: str
    account_id: str
    owner: Person
    developer: Person
    objects: dict[str, list[str]] = field(default_factory=dict)
    """Name of a path parameter → ids."""
    code: str = ""

    @property
    def all_ids(self) -> set[str]:
        """What no other account may ever see."""
        return {self.account_id, self.mark, *itertools.chain(*self.objects.values())}


@dataclass
class World:
    """Two accounts."""

    rig: Rig
    admin: Admin
    ours: Side
    theirs: Side

    async def state(self) -> dict[str, bytes]:
        """Everything of the other account in the log of changes and in Redis, byte for byte."""
        found: dict[str, bytes] = {}
        for kind, name in itertools.product(CONTROL_KINDS, sorted(self.theirs.all_ids)):
            if ids_or_none(name):
                found |= await self._last(subjects.control_subject(kind, name))
        async for key in self.rig.redis.scan_iter(count=1000):
            if any(one in key.decode() for one in self.theirs.all_ids):
                found[key.decode()] = await self.rig.redis.dump(key)
        return found

    async def _last(self, subject: str) -> dict[str, bytes]:
        state = await self.rig.jetstream.stream_info(subjects.STREAM_CONTROL, subjects_filter=subject)
        if not state.state.subjects:
            return {}
        message = await self.rig.jetstream.get_last_msg(subjects.STREAM_CONTROL, subject)
        return {subject: b"%d %s" % (message.seq or 0, message.data or b"")}

    async def last_sequence(self) -> int:
        """Of the log of changes."""
        return int((await self.rig.jetstream.stream_info(subjects.STREAM_CONTROL)).state.last_seq)


def ids_or_none(text: str) -> bytes | None:
    try:
        return ids.id_bytes(text)
    except ValueError:
        return None


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def world(nats_url: str, redis_url: str, clickhouse_url: str) -> AsyncIterator[World]:
    async with Rig.over(nats_url, redis_url, clickhouse_url) as rig, admin_from(rig, "127.0.1.2") as admin:
        yield World(rig, admin, await furnished(rig, admin), await furnished(rig, admin))


@pytest.fixture(autouse=True)
async def nothing_of_theirs_changes(world: World) -> AsyncIterator[None]:
    before = await world.state()
    assert len(before) > 15, "nothing would be compared"
    yield
    assert await world.state() == before


async def furnished(rig: Rig, admin: Admin) -> Side:
    """An account with everything."""
    account_id, mark = await admin.new_account("100.00"), f"mark{ids.uuid7_hex()}"
    owner = await signed_in(admin, "owner", account_id)
    side = Side(mark, account_id, owner, await signed_in(admin, "developer", account_id))
    path, objects = f"/accounts/{account_id}", side.objects
    member = await admin.done("POST", f"{path}/members", json={"name": mark})
    objects["member_id"] = [side.owner.id, side.developer.id, member["id"]]
    keys = [
        await admin.done("POST", f"{path}/keys", json={"name": mark, "tag": mark, "member_id": one})
        for one in (None, side.developer.id, member["id"])
    ]
    await admin.done("DELETE", f"{path}/keys/{keys[-1]['id']}")
    objects["key_id"] = [key["id"] for key in keys]
    body = {"name": mark, "role": "admin", "scopes": ["keys:read"]}
    objects["token_id"] = [(await admin.done("POST", f"{path}/tokens", json=body))["id"]]
    codes = await admin.done("POST", "/codes", json={"count": 1, "amount_usd": "3", "reason": mark, "uses_max": 1})
    side.code = codes["codes"][0]
    credit = await admin.done("POST", f"{path}/redemptions", json={"code": side.code}, token=side.owner.token)
    objects["credit_id"] = [credit["credit_id"]]
    event = recorded(
        account_id, key_id=keys[1]["id"], member_id=side.developer.id, upstream_request_id=f"req_011C{ids.uuid7_hex()}"
    )
    await rig.ledger.append_usage([usage_row(event, price_event(event))])
    objects["request_id"] = [event.request_id, event.upstream_request_id]
    return await with_more(admin, side)


async def with_more(admin: Admin, side: Side) -> Side:
    """What operations of later days can make, as far as the smallest body makes it."""
    for operation in BY_ID.values():
        for parameter in parameters_of(operation):
            if parameter in ("account_id", *side.objects) or "{account_id}" not in operation.path:
                continue
            makes = next((o for o in BY_ID.values() if f"{o.path}/{{{parameter}}}" == operation.path and o.body), None)
            if makes is not None:
                answer = await ask(
                    admin, makes, {"account_id": side.account_id}, token=side.owner.token, json=body_of(makes)
                )
                side.objects[parameter] = [answer.json()["id"]] if answer.is_success else []
    return side


def mixtures(operation: Operation, ours: Side, theirs: Side) -> list[dict[str, str]]:
    """Every way to fill its path in which something is theirs."""
    names = [name for name in parameters_of(operation) if name != "account_id"]
    choices = [[*ours.objects.get(name, [])[:1], *theirs.objects.get(name, [])] or [some_id(name)] for name in names]
    return [
        {"account_id": account_id, **dict(zip(names, values, strict=True))}
        for account_id in (ours.account_id, theirs.account_id)
        for values in itertools.product(*choices)
        if account_id == theirs.account_id or any(value in theirs.all_ids for value in values)
    ]


BOUND: Final = [one for one in BY_ID.values() if "{account_id}" in one.path]
UNBOUND: Final = [
    one for one in BY_ID.values() if parameters_of(one) and one not in BOUND and not (one.roles or MEMBERS) & MEMBERS
]


async def refusals(world: World, operation: Operation, token: str) -> set[tuple[int, str]]:
    """Status and words of every mixture."""
    found = set()
    for values in mixtures(operation, world.ours, world.theirs):
        for headers in ({}, HEADERS):
            body = body_of(operation)
            options: dict[str, Any] = {"headers": headers} | ({} if body is None else {"json": body})
            answer = await ask(world.admin, operation, values, token=token, **options)
            found.add((answer.status_code, answer.json()["detail"]))
    return found


@pytest.mark.parametrize("operation", BOUND, ids=lambda one: one.id)
async def test_what_is_anothers_does_not_exist(world: World, operation: Operation) -> None:
    before = await world.last_sequence()
    found = await refusals(world, operation, world.ours.owner.token)
    assert {status for status, _ in found} == {404}, found
    for values in mixtures(operation, world.ours, world.theirs):
        if values["account_id"] == world.theirs.account_id:
            answer = await ask(world.admin, operation, values, token=world.ours.developer.token)
            assert answer.status_code == 404
    assert await world.last_sequence() == before


async def test_a_member_sees_nothing_that_is_in_no_account(world: World) -> None:
    """The words are the same, whether the thing exists or not."""
    for operation in UNBOUND:
        (parameter,) = parameters_of(operation)
        answers = set()
        for name in [*world.theirs.objects.get(parameter, []), ids.new_id("x")]:
            answer = await ask(world.admin, operation, {parameter: name}, token=world.ours.owner.token)
            answers.add((answer.status_code, answer.text))
        assert len(answers) == 1 and answers.pop()[0] == 403, operation.id


async def test_a_path_of_one_account_leads_an_operator_to_nothing_of_another(world: World) -> None:
    token = await service_token(world.admin, "owner", ["members:write", "keys:write", "tokens:write", "usage:read"])
    for operation in BOUND:
        for values in mixtures(operation, world.ours, world.theirs):
            is_mixed = values["account_id"] == world.ours.account_id
            if is_mixed and operation.scope in ("members:write", "keys:write", "tokens:write"):
                answer = await ask(world.admin, operation, values, token=token, json=body_of(operation))
                assert answer.status_code == 404, (operation.id, answer.text)


@pytest.mark.parametrize("operation", [one for one in BOUND if one.method == "GET"], ids=lambda one: one.id)
async def test_nothing_of_theirs_is_in_what_we_read(world: World, operation: Operation) -> None:
    names = [name for name in parameters_of(operation) if name != "account_id"]
    for values in itertools.product(*(world.ours.objects.get(name, [""]) for name in names)):
        filled = {"account_id": world.ours.account_id, **dict(zip(names, values, strict=True))}
        for token in (world.ours.owner.token, world.ours.developer.token):
            answer = await ask(world.admin, operation, filled, token=token)
            assert answer.status_code < 500
            assert not [one for one in world.theirs.all_ids if one in answer.text]


async def test_lists_show_what_is_ours(world: World) -> None:
    """So that the test above compares something."""
    path, token = f"/accounts/{world.ours.account_id}", world.ours.owner.token
    for name, parameter in (("members", "member_id"), ("keys", "key_id"), ("tokens", "token_id")):
        listed = (await world.admin.done("GET", f"{path}/{name}", token=token))["data"]
        assert [one["id"] for one in listed] == sorted(world.ours.objects[parameter])
    rows = (await world.admin.done("GET", f"{path}/requests", token=token))["data"]
    assert [row["request_id"] for row in rows] == world.ours.objects["request_id"][:1]


async def test_ids_of_theirs_in_a_body_are_like_ids_of_nobody(world: World) -> None:
    ours, theirs, admin = world.ours, world.theirs, world.admin
    path, token, before = f"/accounts/{ours.account_id}", ours.owner.token, await world.last_sequence()
    key = ours.objects["key_id"][0]
    for member in theirs.objects["member_id"]:
        for method, place, body in (
            ("POST", "keys", lambda one: {"name": "x", "member_id": one}),
            ("PATCH", f"keys/{key}", lambda one: {"member_id": one}),
            ("POST", "key-batches", lambda one: {"keys": [{"name": "y"}, {"name": "x", "member_id": one}]}),
            ("PATCH", "key-batches", lambda one: {"ids": [key], "change": {"member_id": one}}),
        ):
            told = await admin.refused(method, f"{path}/{place}", 422, json=body(member), token=token)
            nobody = await admin.refused(method, f"{path}/{place}", 422, json=body(ids.new_member_id()), token=token)
            assert told == nobody
    for foreign in theirs.objects["key_id"]:
        for listed in ([foreign], [key, foreign], [foreign, key]):
            change = {"ids": listed, "change": {"name": "taken over"}}
            await admin.refused("PATCH", f"{path}/key-batches", 404, json=change, token=token)
    assert await world.last_sequence() == before


async def test_a_code_that_they_used_up_is_no_code(world: World) -> None:
    path, token = f"/accounts/{world.ours.account_id}/redemptions", world.ours.owner.token
    told = await world.admin.refused("POST", path, 404, json={"code": world.theirs.code}, token=token)
    assert told == await world.admin.refused("POST", path, 404, json={"code": "NO-CODE"}, token=token)


async def test_filters_and_cursors_of_theirs_find_nothing_of_theirs(world: World) -> None:
    ours, theirs, admin = world.ours, world.theirs, world.admin
    path, token = f"/accounts/{ours.account_id}", ours.owner.token
    for place, name in (("keys", "member_id"), ("requests", "member_id"), ("requests", "key_id")):
        for value in theirs.objects[name]:
            assert (await admin.done("GET", f"{path}/{place}", params={name: value}, token=token))["data"] == []
    assert (await admin.done("GET", f"{path}/keys", params={"tag": theirs.mark}, token=token))["data"] == []
    for place in ("keys", "members", "tokens", "credits", "requests"):
        await admin.refused("GET", f"{path}/{place}", 400, params={"account_id": theirs.account_id}, token=token)
        for one in sorted(one for one in theirs.all_ids if ids_or_none(one)):
            cursor = base64.urlsafe_b64encode(one.encode()).decode().rstrip("=")
            answer = await admin.send("GET", f"{path}/{place}", params={"cursor": cursor}, token=token)
            assert answer.status_code in (200, 400) and not any(name in answer.text for name in theirs.all_ids - {one})


async def test_the_same_idempotency_key_elsewhere_is_another_call(world: World) -> None:
    """It neither fails for theirs nor answers with it: keys and their secrets differ."""
    headers, secrets = {b"idempotency-key": b"a number that both use"}, set()
    sides = {side.account_id: side.owner.token for side in (world.ours,)}
    sides[await world.admin.new_account(None)] = ""
    for account_id, token in sides.items():
        said = {"token": token} if token else {}
        for path in ("keys", "key-batches"):
            body = {"name": "x"} if path == "keys" else {"keys": [{"name": "x"}]}
            made = await world.admin.done("POST", f"/accounts/{account_id}/{path}", json=body, headers=headers, **said)
            secrets.add(made["key"] if path == "keys" else made["data"][0]["key"])
    assert len(secrets) == 4


async def test_a_developer_has_his_own_and_no_colleagues_keys(world: World) -> None:
    """Not by the id, and not by using the same Idempotency-Key for the same body."""
    ours, admin = world.ours, world.admin
    path, colleague = f"/accounts/{ours.account_id}/keys", await signed_in(admin, "developer", ours.account_id)
    for key in ours.objects["key_id"]:
        for method, more, body in (
            ("GET", "", None),
            ("PATCH", "", {"name": "mine"}),
            ("DELETE", "", None),
            ("POST", "/rotate", {}),
            ("POST", "/restore", None),
        ):
            await admin.refused(method, f"{path}/{key}{more}", 404, json=body, token=colleague.token)
    assert (await admin.done("GET", path, token=colleague.token))["data"] == []
    headers = {b"idempotency-key": b"laptop"}
    made = [
        await admin.done("POST", path, json={"name": "laptop"}, headers=headers, token=token)
        for token in (ours.developer.token, colleague.token, ours.owner.token)
    ]
    assert len({one["key"] for one in made}) == 3
    assert [one["member_id"] for one in made] == [ours.developer.id, colleague.id, None]
