"""Sessions and links that are over, void, used or made up: none of them lets anybody in, and nothing changes."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import pytest

from libs.common import clock, events, ids, rediskeys, subjects
from libs.common.events import ControlChanged, Member
from services.admin import sessions
from services.admin.resources import signing_in
from tests.integration.accounting_rig import Rig, until
from tests.integration.admin_people import PASSWORD, Person, admin_from, invited, service_token, signed_in
from tests.integration.admin_rig import Admin

pytestmark = pytest.mark.anyio
GONE: Final = "This link was used, was replaced by a newer one, or is too old. Ask for a new one."


@dataclass(frozen=True)
class World:
    """An account with somebody who leads it."""

    rig: Rig
    admin: Admin
    account_id: str
    owner: Person

    @property
    def members(self) -> str:
        return f"/accounts/{self.account_id}/members"

    async def accept(self, token: str, **more: Any) -> int:
        """How the use of a link is answered; a refusal changes nothing."""
        before = await self.last_sequence()
        body = {"token": token, "password": PASSWORD} | more
        answer = await self.admin.send("POST", "/links/accept", token="", json=body)
        assert answer.is_success or await self.last_sequence() == before
        assert answer.status_code != 404 or answer.json()["detail"] == GONE  # in the same words, whatever the reason is
        return answer.status_code

    async def is_over(self, token: str) -> bool:
        """Whether a token lets nobody in, neither to read nor to write."""
        before = await self.last_sequence()
        answers = [
            await self.admin.send("GET", "/me", token=token),
            await self.admin.send("GET", f"/accounts/{self.account_id}/keys", token=token),
            await self.admin.send("POST", f"/accounts/{self.account_id}/keys", json={"name": "x"}, token=token),
        ]
        return {one.status_code for one in answers} == {401} and await self.last_sequence() == before

    async def last_sequence(self) -> int:
        """Of the log of changes."""
        return int((await self.rig.jetstream.stream_info(subjects.STREAM_CONTROL)).state.last_seq)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def world(nats_url: str, redis_url: str, clickhouse_url: str) -> AsyncIterator[World]:
    async with Rig.over(nats_url, redis_url, clickhouse_url) as rig, admin_from(rig, "127.0.1.3") as admin:
        account_id = await admin.new_account(None)
        yield World(rig, admin, account_id, await signed_in(admin, "owner", account_id))


def link_of(answer: dict[str, Any]) -> str:
    """The token of a link that was answered."""
    return str((answer.get("link") or answer)["url"].partition("#")[2])


async def test_a_link_works_once_and_only_the_newest(world: World) -> None:
    name, email, first = await invited(world.admin, "developer", world.account_id)
    second = link_of(await world.admin.done("POST", f"{world.members}/{name}/link"))
    assert await world.accept(first) == 404
    assert await world.accept(second, email="another@example.com") == 409
    assert await world.accept(second, email=email.upper()) == 201
    assert await world.accept(second) == 404


async def test_a_link_used_by_many_at_once_lets_one_in(world: World) -> None:
    _, _, token = await invited(world.admin, "developer", world.account_id)
    body = {"token": token, "password": PASSWORD}
    answers = await asyncio.gather(*(world.admin.send("POST", "/links/accept", json=body, token="") for _ in range(4)))
    statuses = sorted(answer.status_code for answer in answers)
    assert statuses[0] == 201 and set(statuses[1:]) <= {404, 409}


@pytest.mark.parametrize("method", ["PATCH", "DELETE"])
async def test_a_link_of_somebody_disabled_or_deleted(world: World, method: str) -> None:
    name, _, token = await invited(world.admin, "developer", world.account_id)
    body = {"status": "disabled"} if method == "PATCH" else None
    await world.admin.done(method, f"{world.members}/{name}", json=body)
    assert await world.accept(token) == 404


async def test_a_link_that_is_too_old(world: World) -> None:
    name, _, token = await invited(world.admin, "developer", world.account_id)
    found = await world.rig.jetstream.get_last_msg(subjects.STREAM_CONTROL, subjects.control_subject("member", name))
    member = events.decode_control(found.data or b"").entity
    assert isinstance(member, Member)
    old = msgspec.structs.replace(member, sign_in=msgspec.structs.replace(member.sign_in, link_expires_at_ms=1))
    await _rewrite(world, old)
    assert await world.accept(token) == 404


async def test_links_that_are_none(world: World) -> None:
    member, account = ids.new_member_id(), world.account_id
    real, _, token = await invited(world.admin, "developer", world.account_id)
    secret = token.partition(".")[2]
    for text in (
        "rli_",
        "rli_.",
        ".",
        "x",
        f"rli_{member}.{secret}",
        f"rli_{account}.{secret}",
        f"rli_{real}",
        f"rli_{real}.",
        f"rli_{real}.{secret[:-1]}",
        f"rli_{real}.{secret}.x",
        f"rli_{real.upper()}.{secret}",
        f"rli_memb_*.{secret}",
        f"rli_>.{secret}",
        f"rli_{real}\x00.{secret}",
        "rli_oper_" + "0" * 32 + ".",
        "rss_" + secret,
        "é漢😀",
        "'; DROP TABLE usage; --",
    ):
        assert await world.accept(text) == 404, text
    assert await world.accept("x" * 201) == 400
    assert await world.accept(token) == 201


async def test_a_new_address_makes_the_link_and_the_password_before_void(world: World) -> None:
    person = await signed_in(world.admin, "developer", world.account_id)
    path = f"{world.members}/{person.id}"
    moved = {"email": f"{ids.uuid7_hex()}@example.com"}
    assert (await world.admin.done("PATCH", path, json=moved))["status"] == "invited"
    assert await world.is_over(person.token)
    for email in (person.email, moved["email"]):
        body = {"email": email, "password": PASSWORD}
        assert (await world.admin.send("POST", "/sessions", json=body, token="")).status_code == 401


async def test_a_disabled_member_is_not_enabled_by_a_new_address(world: World) -> None:
    person = await signed_in(world.admin, "developer", world.account_id)
    path, moved = f"{world.members}/{person.id}", {"email": f"{ids.uuid7_hex()}@example.com"}
    await world.admin.refused("PATCH", path, 409, json=moved | {"status": "disabled"})
    await world.admin.done("PATCH", path, json={"status": "disabled"})
    await world.admin.refused("PATCH", path, 409, json=moved)
    assert (await world.admin.done("GET", path))["status"] == "disabled"


async def test_a_link_that_was_out_when_its_owner_was_disabled_is_void_for_good(world: World) -> None:
    for role, account_id, path in (("developer", world.account_id, world.members), ("viewer", "", "/operators")):
        name, _, token = await invited(world.admin, role, account_id)
        for status in ("disabled", "active"):
            await world.admin.done("PATCH", f"{path}/{name}", json={"status": status})
            assert await world.accept(token) == 404, (role, status)
        await world.admin.done("PATCH", f"{path}/{name}", json={"status": "disabled"})
        await world.admin.refused("POST", f"{path}/{name}/link", 409)


async def test_sessions_that_are_over(world: World) -> None:
    """Signed out; expired in Redis; after another password; after another role; disabled; deleted."""
    admin = world.admin

    async def expired(person: Person) -> None:
        assert await world.rig.redis.delete(rediskeys.session(sessions.sha256(person.token)))

    async def signed_out(person: Person) -> None:
        await admin.done("DELETE", "/sessions/current", token=person.token)

    async def other_password(person: Person) -> None:
        body = {"old": PASSWORD, "new": "another long pass phrase"}
        await asyncio.sleep(0.002)  # a session of the same millisecond is not older
        await admin.done("PUT", "/me/password", json=body, token=person.token)

    async def changed(person: Person, body: dict[str, Any]) -> None:
        await asyncio.sleep(0.002)
        await admin.done("PATCH", f"{world.members}/{person.id}", json=body)

    async def deleted(person: Person) -> None:
        await admin.done("DELETE", f"{world.members}/{person.id}")

    for end in (
        expired,
        signed_out,
        other_password,
        deleted,
        lambda one: changed(one, {"status": "disabled"}),
        lambda one: changed(one, {"role": "billing"}),
    ):
        person = await signed_in(admin, "developer", world.account_id)
        assert (await admin.done("GET", "/me", token=person.token))["actor"] == person.id
        await end(person)
        assert await world.is_over(person.token)


async def test_a_sign_in_that_is_overtaken_by_a_new_password_lets_nobody_in(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old password was compared before the new one stood, the session began after."""
    person = await signed_in(world.admin, "developer", world.account_id)
    link = link_of(await world.admin.done("POST", f"{world.members}/{person.id}/link"))
    compared, changed = asyncio.Event(), asyncio.Event()
    is_right = world.admin.context.passwords.is_right

    async def slow(password: str, password_hash: str) -> bool:
        right = await is_right(password, password_hash)
        compared.set()
        await changed.wait()
        return right

    monkeypatch.setattr(world.admin.context.passwords, "is_right", slow)
    body = {"email": person.email, "password": PASSWORD}

    async def change() -> None:
        await compared.wait()
        assert await world.accept(link, password="another long pass phrase") == 201
        changed.set()

    answer, _ = await asyncio.gather(world.admin.send("POST", "/sessions", json=body, token=""), change())
    assert answer.status_code == 201
    assert await world.is_over(answer.json()["token"])


async def test_everything_of_a_disabled_account_is_shut(world: World) -> None:
    admin = world.admin
    account_id = await admin.new_account(None)
    person, body = await signed_in(admin, "owner", account_id), {"name": "x"}
    token = await service_token(admin, "admin", ["keys:read", "keys:write"], account_id)
    await admin.done("PATCH", f"/accounts/{account_id}", json={"status": "disabled"})
    for one in (person.token, token):
        assert (await admin.send("POST", f"/accounts/{account_id}/keys", json=body, token=one)).status_code == 401
    await admin.done("PATCH", f"/accounts/{account_id}", json={"status": "active"})
    assert (await admin.send("POST", f"/accounts/{account_id}/keys", json=body, token=token)).status_code == 201


async def test_tokens_that_are_made_up_deleted_or_expired(world: World) -> None:
    path = f"/accounts/{world.account_id}/tokens"
    body = {"name": "t", "role": "admin", "scopes": ["keys:read", "keys:write"]}
    made = await world.admin.done("POST", path, json=body)
    assert (await world.admin.send("GET", f"/accounts/{world.account_id}/keys", token=made["token"])).is_success
    await world.admin.done("DELETE", f"{path}/{made['id']}")
    digest = sessions.sha256(made["token"])
    for text in (made["token"], "rst_", "rst_" + "x" * 43, digest, f"rst_{digest}", "rss_", "rss_*", made["id"]):
        assert await world.is_over(text), text
    soon = await world.admin.done("POST", path, json=body | {"expires_at": _soon()})

    async def expired() -> bool:
        return await world.is_over(soon["token"])

    await until(expired, seconds=10)


async def test_wrong_passwords_are_counted(world: World) -> None:
    """By address of e-mail: after ten nobody gets in for a while, with the right one either."""
    person = await signed_in(world.admin, "developer", world.account_id)
    wrong = {"email": person.email, "password": "not the right one"}
    statuses = [(await world.admin.send("POST", "/sessions", json=wrong, token="")).status_code for _ in range(11)]
    assert statuses == [401] * 10 + [429]
    answer = await world.admin.send("POST", "/sessions", json=wrong | {"password": PASSWORD}, token="")
    assert answer.status_code == 429 and int(answer.headers["retry-after"]) > 60


async def test_who_guesses_is_stopped_where_he_is_and_keeps_nobody_out_elsewhere(world: World) -> None:
    """A machine has the whole /64 that its IPv6 address is in."""
    rig, person = world.rig, await signed_in(world.admin, "developer", world.account_id)
    wrong = {"email": person.email, "password": "not the right one"}
    statuses = []
    for address in ("2001:db8:7:7::1", "2001:db8:7:7::2"):
        async with admin_from(rig, address) as guesser:
            statuses += [(await guesser.send("POST", "/sessions", json=wrong, token="")).status_code for _ in range(6)]
    assert statuses == [401] * 10 + [429] * 2
    assert (
        await world.admin.send("POST", "/sessions", json=wrong | {"password": PASSWORD}, token="")
    ).status_code == 201


async def test_guesses_from_everywhere_are_counted_together(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signing_in, "_TRIES_OF_EMAIL_ANYWHERE_MAX", 1)
    wrong = {"email": f"{ids.uuid7_hex()}@example.com", "password": "not the right one"}
    statuses = []
    for address in ("127.0.9.1", "127.0.9.2"):
        async with admin_from(world.rig, address) as guesser:
            statuses.append((await guesser.send("POST", "/sessions", json=wrong, token="")).status_code)
    assert statuses == [401, 429]


async def _rewrite(world: World, member: Member) -> None:
    change = ControlChanged(entity=member, actor="test", reason="test", at_ms=1)
    subject = subjects.control_subject("member", member.id)
    await world.rig.publish_bytes(subject, events.encode_control(change), subjects.STREAM_CONTROL)


def _soon() -> str:
    return clock.iso_utc(clock.unix_ms() + 1500)
