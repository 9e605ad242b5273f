"""The audit log: every change with before and after, without secrets; and a chain that shows what was touched."""

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from libs.common import clock, streams
from libs.common.events import Account, ApiKey, ControlChanged
from libs.localstack.process import free_port
from libs.localstack.stores import start_nats
from services.admin import audit_chain
from services.admin.ledger import Ledger, Row
from services.admin.problems import Unavailable
from tests.integration.accounting_rig import Rig, until
from tests.integration.admin_people import signed_in
from tests.integration.admin_rig import Admin

pytestmark = pytest.mark.anyio


@pytest.fixture
async def rig(redis_url: str, clickhouse_url: str, tmp_path: Path) -> AsyncIterator[Rig]:
    """A log of its own, so that all of it can be verified."""
    port = free_port()
    process = start_nats(tmp_path / "nats", tmp_path, port=port)
    try:
        async with Rig.over(f"nats://127.0.0.1:{port}", redis_url, clickhouse_url) as made, made.worker():
            await made.ledger.run("TRUNCATE TABLE control")
            yield made
    finally:
        process.stop()


@pytest.fixture
async def admin(rig: Rig) -> AsyncIterator[Admin]:
    async with Admin.over(rig.config.nats_url, rig.config.redis_url, rig.config.clickhouse_url) as made:
        yield made


async def test_every_change_is_told_with_before_and_after(admin: Admin) -> None:
    account_id = await admin.new_account("5")
    body = {"name": "renamed", "reason": "they asked for it"}
    await admin.done("PATCH", f"/accounts/{account_id}", json=body)
    key = await admin.done("POST", f"/accounts/{account_id}/keys", json={"name": "k"})

    async def there() -> bool:
        return len((await admin.done("GET", f"/accounts/{account_id}/audit"))["data"]) == 4

    await until(there)
    found = (await admin.done("GET", f"/accounts/{account_id}/audit"))["data"]
    assert [one["kind"] for one in found] == ["key", "account", "credit", "account"]
    changed = found[1]
    assert (changed["before"]["name"], changed["after"]["name"]) == ("test", "renamed")
    assert (changed["reason"], changed["actor"], changed["address"]) == (
        "they asked for it",
        "admin-token",
        "127.0.0.1",
    )
    assert changed["previous"] == found[3]["sha256"] != ""
    assert found[3]["before"] is None
    assert key["key"] not in str(found) and found[0]["after"]["sha256"] == "…"
    searched = await admin.done("GET", f"/audit?text=asked%20for&account_id={account_id}")
    assert [one["sequence"] for one in searched["data"]] == [changed["sequence"]]
    page = await admin.done("GET", f"/audit?account_id={account_id}&limit=3")
    rest = await admin.done("GET", f"/audit?account_id={account_id}&limit=3&cursor={page['next_cursor']}")
    assert [one["sequence"] for one in page["data"] + rest["data"]] == [one["sequence"] for one in found]
    lines = (await admin.send("GET", f"/audit/export?account_id={account_id}")).text.splitlines()
    assert len(lines) == 4
    await admin.refused("GET", "/audit?cursor=x", 400)


async def test_a_search_does_not_look_at_what_is_hidden(admin: Admin) -> None:
    """Else whoever may search could find a password's hash letter by letter."""
    person = await signed_in(admin, "finance")
    key = await admin.done("POST", f"/accounts/{await admin.new_account(None)}/keys", json={"name": "findable"})

    async def found(text: str) -> list[str]:
        listed = await admin.done("GET", "/audit", params={"text": text})
        return [one["entity_id"] for one in listed["data"]]

    async def there() -> bool:
        return await found("findable") == [key["id"]]

    await until(there)
    assert person.id in await found(person.email)
    digest = hashlib.sha256(key["key"].encode()).hexdigest()
    for text in ("$argon2id$", '"password_hash":"$a', digest, digest[:8], f'"sha256":"{digest[:4]}'):
        assert await found(text) == [], text


async def test_an_account_is_not_told_of_its_upstream(admin: Admin) -> None:
    """Nor of a part of its key, in none of the ways to ask."""
    account_id = await admin.new_account(None)
    body = {"name": "theirs", "api_key": "sk-ant-0123456789abWXYZ", "account_id": account_id}
    upstream = await admin.done("POST", "/upstreams", json=body)
    owner = await signed_in(admin, "owner", account_id)
    path = f"/accounts/{account_id}/audit"

    async def there() -> bool:
        kinds = [one["kind"] for one in (await admin.done("GET", path))["data"]]
        return kinds.count("upstream") == 1 and kinds.count("member") == 2

    await until(there)
    for query in ("", "/export", "?kind=upstream", f"?entity_id={upstream['id']}", "?text=WXYZ"):
        answer = await admin.send("GET", path + query, token=owner.token)
        assert answer.is_success and "WXYZ" not in answer.text and upstream["id"] not in answer.text, query


async def test_the_chain_shows_what_was_touched(admin: Admin, rig: Rig) -> None:
    account_id = await admin.new_account("5")
    for number in range(3):
        await admin.done("PATCH", f"/accounts/{account_id}", json={"name": f"name {number}"})
    broker, ledger = await streams.connect(rig.config.nats_url, name="test"), Ledger(rig.config.clickhouse_url)

    async def verdict(expected: str = "") -> audit_chain.Verdict:
        return await audit_chain.verify(broker.jetstream(), ledger, expected=expected)

    async def sound() -> bool:
        return not (await verdict()).faults

    try:
        await until(sound)
        first = await verdict()
        assert first.changes == first.last_sequence > 0
        await admin.done("PATCH", f"/accounts/{account_id}", json={"name": "later"})
        await until(sound)
        assert (await verdict(first.head)).expected_found
        assert not (await verdict("0" * 64)).expected_found
        touched = (
            "INSERT INTO control SELECT * REPLACE ('0' AS sha256, now64(3) + 60 AS recorded_at) FROM control FINAL"
        )
        await rig.ledger.run(f"{touched} WHERE entity_id = '{account_id}' LIMIT 1")
        assert any("differs between archive and log" in fault for fault in (await verdict()).faults)
        await rig.ledger.run(f"ALTER TABLE control DELETE WHERE entity_id = '{account_id}' SETTINGS mutations_sync = 2")
        assert any("is not in the archive" in fault for fault in (await verdict()).faults)
    finally:
        await ledger.close()
        await streams.close(broker)


async def test_a_change_that_was_put_in_from_outside_shows(admin: Admin, rig: Rig) -> None:
    account_id = await admin.new_account(None)
    found = await admin.context.control.find(*_account(account_id))
    assert found is not None
    broker, ledger = await streams.connect(rig.config.nats_url, name="test"), Ledger(rig.config.clickhouse_url)
    try:
        await rig.change(_forged(found.entity))
        verdict = await audit_chain.verify(broker.jetstream(), ledger)
        assert any("does not follow the one before" in fault for fault in verdict.faults)
    finally:
        await ledger.close()
        await streams.close(broker)


async def test_a_search_does_not_find_what_is_not_shown(admin: Admin, rig: Rig) -> None:
    """Else whoever may search could guess a hash sign by sign."""
    account_id = await admin.new_account(None)
    name = 'sha256 of a "word"'
    key = await admin.done("POST", f"/accounts/{account_id}/keys", json={"name": name})
    found = await admin.context.control.find(ApiKey, key["id"])
    assert found is not None
    path = f"/accounts/{account_id}/audit"

    async def hits(text: str) -> int:
        return len((await admin.done("GET", path, params={"text": text}))["data"])

    async def there() -> bool:
        return await hits(key["id"]) == 1

    await until(there)
    assert await hits("sha256 of a") == 1
    for hidden in (found.entity.sha256, found.entity.sha256[:8], f'"sha256":"{found.entity.sha256[:1]}'):
        assert await hits(hidden) == 0, hidden


async def test_an_export_that_cannot_begin_is_a_problem(admin: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the beginning of an answer that breaks off."""

    async def away(sql: str, parameters: object) -> list[Row]:
        raise Unavailable("away")

    monkeypatch.setattr(admin.context.ledger, "query", away)
    await admin.refused("GET", "/audit/export", 503)


async def test_a_change_from_outside_that_names_none_before_shows(admin: Admin, rig: Rig) -> None:
    """As one of before there was a chain would: but there is one by now."""
    account_id = await admin.new_account(None)
    await admin.done("PATCH", f"/accounts/{account_id}", json={"name": "chained"})
    found = await admin.context.control.find(*_account(account_id))
    assert found is not None
    await rig.change(msgspec.structs.replace(_forged(found.entity), previous=""))
    assert any("does not follow the one before" in fault for fault in (await _verdict(rig)).faults)


@pytest.mark.parametrize(
    "touched",
    [
        "'mallory' AS actor",
        "replaceAll(entity, 'test', 'rest') AS entity",
        "'1.2.3.4' AS address",
        "'' AS sha256, 'x' AS reason",
    ],
)
async def test_an_archive_that_tells_something_else_shows(admin: Admin, rig: Rig, touched: str) -> None:
    """The hash beside it is that of the log still, or is gone."""
    account_id = await admin.new_account(None)

    async def sound() -> bool:
        return not (await _verdict(rig)).faults

    await until(sound)
    changed = f"SELECT * REPLACE ({touched}, now64(3) + 60 AS recorded_at) FROM control FINAL"
    await rig.ledger.run(f"INSERT INTO control {changed} WHERE entity_id = '{account_id}'")
    assert any("differs between archive and log" in fault for fault in (await _verdict(rig)).faults)


async def test_a_log_that_ends_too_soon_shows(admin: Admin, rig: Rig) -> None:
    """What was archived and is not there any more: the log was put back to how it was."""
    await admin.new_account(None)

    async def sound() -> bool:
        return not (await _verdict(rig)).faults

    await until(sound)
    later = "SELECT * REPLACE (sequence + 1000 AS sequence) FROM control FINAL"
    await rig.ledger.run(f"INSERT INTO control {later} ORDER BY sequence DESC LIMIT 1")
    assert any("of the archive are missing in the log" in fault for fault in (await _verdict(rig)).faults)


async def _verdict(rig: Rig) -> audit_chain.Verdict:
    broker, ledger = await streams.connect(rig.config.nats_url, name="test"), Ledger(rig.config.clickhouse_url)
    try:
        return await audit_chain.verify(broker.jetstream(), ledger)
    finally:
        await ledger.close()
        await streams.close(broker)


def _account(account_id: str) -> tuple[type[Account], str]:
    return Account, account_id


def _forged(account: Account) -> ControlChanged:
    return ControlChanged(entity=account, actor="mallory", reason="", at_ms=clock.unix_ms(), previous="f" * 64)
