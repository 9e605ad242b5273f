"""The mirror: newest wins, whoever brings it; the real stream is in the integration tests."""

import asyncio

import pytest
from nats.aio.client import Client

from libs.common import events
from libs.common.entities import ServiceToken
from libs.common.events import Account, ApiKey, ControlChanged, Credit, Entity
from services.admin.access import Principal, may
from services.admin.mirror import Mirror
from services.admin.passwords import Passwords
from services.admin.problems import Unavailable

HEX = "0" * 31


def change(entity: Entity) -> bytes:
    return events.encode_control(ControlChanged(entity=entity, actor="", reason="", at_ms=1))


def account(name: str) -> Account:
    return Account(id=f"acct_{HEX}1", name=name, created_at_ms=1)


def test_an_old_change_that_comes_late_changes_nothing() -> None:
    mirror = Mirror(Client())
    mirror.take(change(account("two")), 2)
    mirror.take(change(account("one")), 1)
    found = mirror.get(Account, f"acct_{HEX}1")
    assert found is not None and found.name == "two" and mirror.version(Account, found.id) == 2
    mirror.take(change(account("three")), 3)
    assert mirror.all(Account) == [account("three")]


def test_what_is_of_an_account_is_in_order() -> None:
    mirror = Mirror(Client())
    for number in (3, 1, 2):
        key = ApiKey(id=f"key_{HEX}{number}", account_id="a", name="k", created_at_ms=1, sha256="", hint="")
        mirror.take(change(key), number)
    assert [one.id[-1] for one in mirror.of_account(ApiKey, "a")] == ["1", "2", "3"]
    assert mirror.of_account(ApiKey, "b") == []


def test_what_is_kept_elsewhere_or_unreadable_is_passed_over() -> None:
    mirror = Mirror(Client())
    mirror.take(change(Credit(id="cred_1", account_id="a", amount_nanos=1, reason="", created_at_ms=1)), 1)
    mirror.take(b"\xff", 2)
    mirror.take(b"{}", 3)
    assert not mirror.is_whole and mirror.all(Account) == []


def test_tokens_are_found_by_hash() -> None:
    mirror = Mirror(Client())
    token = ServiceToken(id=f"tok_{HEX}1", name="t", created_at_ms=1, sha256="s", hint="", role="viewer", scopes=())
    mirror.take(change(token), 1)
    assert mirror.token("s") == token and mirror.token("x") is None


def test_roles_and_scopes() -> None:
    person = Principal(actor="", role="operator:viewer")
    program = Principal(actor="", role="operator:viewer", scopes=frozenset({"usage:read"}))
    roles = frozenset({person.role})
    assert may(person, roles, None) and may(person, roles, "usage:read")
    assert may(program, roles, "usage:read")
    assert not may(program, roles, None) and not may(program, roles, "money:read")
    assert not may(person, frozenset(), "usage:read")
    assert Principal(actor="memb_1", role="account:developer", account_id="a").only_member_id == "memb_1"
    assert Principal(actor="memb_1", role="account:admin", account_id="a").only_member_id == ""


@pytest.mark.anyio
async def test_not_everybody_waits() -> None:
    passwords = Passwords()
    found = await asyncio.gather(*(passwords.is_right("x", "no hash") for _ in range(100)), return_exceptions=True)
    assert sum(isinstance(one, Unavailable) for one in found) == 36
    assert not await passwords.is_right("x", "no hash")


@pytest.mark.anyio
async def test_passwords() -> None:
    passwords = Passwords()
    hashed = await passwords.hash("correct horse battery")
    assert hashed.startswith("$argon2id$") and hashed != await passwords.hash("correct horse battery")
    assert await passwords.is_right("correct horse battery", hashed)
    assert not await passwords.is_right("another", hashed)
    assert not await passwords.is_right("", "") and not await passwords.is_right("x", "no hash")
