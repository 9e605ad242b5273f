"""The control plane on real stores: accounts, keys, credits, balances, receipts."""

import asyncio
import logging
from collections.abc import AsyncIterator

import msgspec
import pytest

from libs.common import apikeys, ids, rediskeys
from libs.common.directory import Directory
from libs.common.events import Attempt, Outcome, UsageRecorded
from libs.common.leases import Granted, Refused
from libs.common.pricing import price_event
from libs.common.upstreams import Upstreams
from services.accounting.ledger import Ledger
from services.accounting.rows import usage_row
from tests.integration.accounting_rig import Rig, until
from tests.integration.admin_rig import TOKEN, Admin, admitted
from tests.unit.accounting.samples import recorded

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


async def terms(rig: Rig, account_id: str, key_id: str) -> tuple[int | str, str]:
    """Multiplier and what happens on a hang-up; or the reason of a refusal."""
    match await admitted(rig.redis, account_id, key_id):
        case Granted() as granted:
            return granted.multiplier_ppm, granted.on_disconnect
        case Refused() as refused:
            return refused.reason, refused.detail


async def test_an_account_a_credit_and_a_key(admin: Admin, rig: Rig) -> None:
    created = await admin.done("POST", "/accounts", json={"name": "Zoë's team 漢字 😀"})
    account_id = created["id"]
    assert (created["name"], created["status"], created["multiplier"]) == ("Zoë's team 漢字 😀", "active", "1")
    zero = {"available_usd": "0.00", "held_usd": "0.00", "spent_usd": "0.00", "granted_usd": "0.00"}
    assert await admin.balance(account_id) == zero
    body = {"amount_usd": "10.00", "reason": "welcome"}
    entry = await admin.done("POST", f"/accounts/{account_id}/credits", json=body)
    assert (entry["amount_usd"], entry["reason"], entry["account_id"]) == ("10.00", "welcome", account_id)
    assert (await admin.balance(account_id))["available_usd"] == "10.00"
    key = await admin.done("POST", f"/accounts/{account_id}/keys", json={"name": "laptop"})
    assert apikeys.is_well_formed(key["key"].encode())
    assert key["key"].startswith(key["hint"].removesuffix("…"))
    found = await Directory(rig.redis, rig.balances, Upstreams(rig.redis)).find_key(
        apikeys.hash_key(key["key"].encode())
    )
    assert found == (account_id, key["id"])
    assert await terms(rig, account_id, key["id"]) == (1_000_000, "drain")
    assert await admin.done("GET", f"/accounts/{account_id}") == created


@pytest.mark.parametrize("amount", ["0.000000001", "9000000", "1.5", "123456.789012345"])
async def test_amounts_are_exact(admin: Admin, amount: str) -> None:
    account_id = await admin.new_account(amount)
    assert float((await admin.balance(account_id))["granted_usd"]) == float(amount)
    await admin.done(
        "POST", f"/accounts/{account_id}/credits", json={"amount_usd": f"-{amount}", "reason": "taken back"}
    )
    assert (await admin.balance(account_id))["available_usd"] == "0.00"


async def test_a_key_is_switched_off_at_once_and_deleted_for_good(admin: Admin, rig: Rig) -> None:
    account_id = await admin.new_account()
    key_id = (await admin.done("POST", f"/accounts/{account_id}/keys", json={"name": "k"}))["id"]
    path = f"/accounts/{account_id}/keys/{key_id}"
    for status in ("disabled", "active"):
        assert (await admin.done("PATCH", path, json={"status": status}))["status"] == status
        wanted = ("key", "disabled") if status == "disabled" else (1_000_000, "drain")
        assert await terms(rig, account_id, key_id) == wanted
    assert (await admin.done("DELETE", path))["status"] == "deleted"
    assert await terms(rig, account_id, key_id) == ("key", "deleted")
    for method, body in (("PATCH", {"status": "active"}), ("DELETE", None)):
        await admin.refused(method, path, 404, json=body)


async def test_an_account_is_changed_in_parts(admin: Admin, rig: Rig) -> None:
    account_id = await admin.new_account()
    key_id = (await admin.done("POST", f"/accounts/{account_id}/keys", json={"name": "k"}))["id"]
    path = f"/accounts/{account_id}"
    changed_to = await admin.done("PATCH", path, json={"multiplier": "1.25", "on_disconnect": "cancel"})
    assert (changed_to["multiplier"], changed_to["on_disconnect"], changed_to["name"]) == ("1.25", "cancel", "test")
    assert await terms(rig, account_id, key_id) == (1_250_000, "cancel")
    await admin.done("PATCH", path, json={"status": "disabled"})
    assert await terms(rig, account_id, key_id) == ("account", "disabled")
    assert (await admin.done("GET", path))["multiplier"] == "1.25"
    for multiplier in ("0", "100", "0.000001", "99.999999"):
        assert (await admin.done("PATCH", path, json={"multiplier": multiplier}))["multiplier"] == multiplier


async def test_changes_at_once_do_not_overwrite_each_other(admin: Admin) -> None:
    account_id = await admin.new_account(None)
    path = f"/accounts/{account_id}"
    answers = await asyncio.gather(*(admin.send("PATCH", path, json={"name": f"name {n}"}) for n in range(12)))
    done = [answer.json()["name"] for answer in answers if answer.status_code == 200]
    assert {answer.status_code for answer in answers} == {200, 409}
    assert (await admin.done("GET", path))["name"] in done


async def test_an_idempotency_key_makes_one_credit(admin: Admin) -> None:
    account_id = await admin.new_account(None)
    path, body = f"/accounts/{account_id}/credits", {"amount_usd": "9000000", "reason": "invoice 7"}
    headers = {b"idempotency-key": "Rechnung 7 — é".encode("latin-1", "replace")}
    answers = await asyncio.gather(*(admin.done("POST", path, json=body, headers=headers) for _ in range(6)))
    answers.append(await admin.done("POST", path, json=body, headers=headers))
    assert all(answer == answers[0] for answer in answers)
    assert (await admin.balance(account_id))["granted_usd"] == "9000000.00"
    other = body | {"amount_usd": "7"}
    await admin.refused("POST", path, 422, json=other, headers=headers)
    elsewhere = await admin.new_account(None)
    await admin.done("POST", f"/accounts/{elsewhere}/credits", json=other, headers=headers)


async def test_no_credit_beyond_what_an_account_may_hold(admin: Admin) -> None:
    account_id = await admin.new_account("9000000")
    path = f"/accounts/{account_id}/credits"
    assert "9,000,000" in await admin.refused("POST", path, 422, json={"amount_usd": "0.01", "reason": "more"})
    for amount in ("-9000000", "-9000000"):
        await admin.done("POST", path, json={"amount_usd": amount, "reason": "less"})
    await admin.refused("POST", path, 422, json={"amount_usd": "-0.01", "reason": "less"})
    assert (await admin.balance(account_id))["available_usd"] == "-9000000.00"


async def test_what_admin_did_not_apply_accounting_does(admin: Admin, rig: Rig) -> None:
    """Redis forgets an account as it would if admin had died between publish and apply; the log still has it."""
    account_id = await admin.new_account("3.00")
    await rig.redis.delete(rediskeys.account(account_id), rediskeys.credits_taken(account_id))
    assert "Try again" in await admin.refused("GET", f"/accounts/{account_id}/balance", 503)
    async with rig.worker():
        await rig.settled(account_id, 0, 0, granted=3 * 10**9)
    assert (await admin.balance(account_id))["available_usd"] == "3.00"


def receipt_event(account_id: str, **changes: object) -> UsageRecorded:
    outcome: Outcome = "measured"
    known = {
        "outcome": outcome,
        "upstream_request_id": f"req_011C{ids.uuid7_hex()}",
        "member_id": "memb_1",
        "client": "curl",
    }
    return recorded(account_id, key_id=ids.new_key_id(), **(known | changes))  # type: ignore[arg-type]


async def archive(ledger: Ledger, *events: UsageRecorded) -> None:
    await ledger.append_usage([usage_row(event, price_event(event)) for event in events])


async def test_a_receipt_by_our_id_or_the_upstreams(admin: Admin, rig: Rig) -> None:
    usage = {"input_tokens": 1000, "output_tokens": 10}
    tries = (Attempt(upstream_id="env", status=529, duration_us=5), Attempt(upstream_id="upst_1", status=200))
    event = receipt_event(ids.new_account_id(), usage=usage, bytes_in=2**60, tries=tries)
    await archive(rig.ledger, event)
    receipt = await admin.done("GET", f"/requests/{event.request_id}")
    assert receipt == await admin.done("GET", f"/requests/{event.upstream_request_id}")
    for name in ("request_id", "version", "account_id", "key_id", "path", "model_asked", "model_answered", "stream"):
        assert receipt[name] == getattr(event, name)
    for name in ("status", "outcome", "usage", "price_book_version", "upstream_request_id", "member_id", "client"):
        assert receipt[name] == getattr(event, name)
    assert receipt["bytes_in"] == 2**60
    assert receipt["attempts"] == [msgspec.to_builtins(one) for one in tries]
    names = ("class", "quantity", "unit_price_usd_per_mtok", "amount_usd")
    lines = [tuple(line[name] for name in names) for line in receipt["lines"]]
    assert lines == [("input", 1000, "3.00", "0.003"), ("output", 10, "15.00", "0.00015")]
    assert (receipt["total_usd"], receipt["total_nanos"]) == ("0.00315", 3_150_000)
    correction = receipt_event(event.account_id, request_id=event.request_id, version=4, usage={"input_tokens": 1})
    await archive(rig.ledger, correction)
    assert (await admin.done("GET", f"/requests/{event.request_id}"))["version"] == 4


async def test_rows_are_listed_page_by_page(admin: Admin, rig: Rig) -> None:
    account_id = ids.new_account_id()
    sent = [receipt_event(account_id) for _ in range(7)]
    await archive(rig.ledger, *sent, *sent[:3], receipt_event(ids.new_account_id()))
    newest_first = sorted((event.request_id for event in sent), reverse=True)
    found: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        page = await admin.done("GET", "/requests", params={"account_id": account_id, "limit": "3", **cursor})
        found += [row["request_id"] for row in page["data"]]
        if page["next_cursor"] is None:
            break
        cursor = {"cursor": page["next_cursor"]}
    assert found == newest_first
    one = sent[4]
    page = await admin.done("GET", "/requests", params={"key_id": one.key_id})
    assert [row["request_id"] for row in page["data"]] == [one.request_id]


async def test_rows_are_found_by_time(admin: Admin, rig: Rig) -> None:
    event = receipt_event(ids.new_account_id())
    await archive(rig.ledger, event)
    time_ms = ids.id_time_ms(event.request_id)
    time = (await admin.done("GET", f"/requests/{event.request_id}"))["time"]

    async def count(**period: str) -> int:
        page = await admin.done("GET", "/requests", params={"account_id": event.account_id, **period})
        return len(page["data"])

    assert await count(**{"from": str(time_ms), "to": str(time_ms + 1)}) == 1
    assert await count(**{"from": time}) == 1
    assert await count(to=time) == await count(to=str(time_ms)) == 0
    assert await count(**{"from": str(time_ms + 1)}) == 0
    assert await count(**{"from": "2020-01-01", "to": "2099-12-31T23:59:59+01:00"}) == 1
    assert await count(**{"from": "2099-01-01", "to": "2020-01-01"}) == 0


async def test_keys_are_listed_as_they_were_made_deleted_ones_too(admin: Admin) -> None:
    account_id = await admin.new_account(None)
    path = f"/accounts/{account_id}/keys"
    made = [(await admin.done("POST", path, json={"name": f"k{number}"}))["id"] for number in range(3)]
    await admin.done("DELETE", f"{path}/{made[1]}")
    first = await admin.done("GET", f"{path}?limit=2")
    rest = await admin.done("GET", f"{path}?limit=2&cursor={first['next_cursor']}")
    listed = first["data"] + rest["data"]
    assert [one["id"] for one in listed] == sorted(made) and rest["next_cursor"] is None
    assert {one["id"] for one in listed if one["status"] == "deleted"} == {made[1]}
    assert not [one for one in listed if "sha256" in one or "key" in one]


async def test_the_secret_of_a_key_is_kept_nowhere(admin: Admin, rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    account_id = await admin.new_account(None)
    key = await admin.done("POST", f"/accounts/{account_id}/keys", json={"name": "k"})
    secret = key["key"].encode()
    async with rig.worker():
        pass
    stored = await rig.redis.get(rediskeys.key_hash(apikeys.hash_key(secret)))
    entity = await rig.redis.hgetall(rediskeys.api_key(account_id, key["id"]))
    message = await rig.jetstream.get_last_msg("CONTROL", f"control.key.{key['id']}")
    kept = b"%r %r %r" % (stored, entity, message.data)
    assert apikeys.hash_key(secret).encode() in kept
    assert secret not in kept and secret[10:] not in kept
    assert key["key"] not in caplog.text and TOKEN not in caplog.text


async def test_without_its_stores_it_says_so_and_changes_nothing(rig: Rig) -> None:
    """Started beside nothing at all: every answer is a problem, at once, and it never hangs."""
    nobody = "127.0.0.1:1"
    urls = (f"nats://{nobody}", f"redis://{nobody}/0", f"http://{nobody}/relay")
    account_id = ids.new_account_id()
    async with asyncio.timeout(10), Admin.over(*urls, wait=False) as lonely:
        assert not await lonely.is_ready()
        await lonely.refused("POST", "/accounts", 503, json={"name": "x"})
        for path in (f"/accounts/{account_id}", f"/accounts/{account_id}/balance", "/requests", "/requests/req_1"):
            await lonely.refused("GET", path, 503)
        answer = await lonely.send("POST", f"/accounts/{account_id}/keys", json={"name": "x"})
        assert answer.headers["retry-after"] == "2"


async def test_without_redis_a_change_is_made_and_applied_later(rig: Rig) -> None:
    urls = (rig.config.nats_url, "redis://127.0.0.1:1/0", rig.config.clickhouse_url)
    async with Admin.over(*urls, wait=False) as admin:

        async def connected() -> bool:
            return bool((await admin.client.get("/readyz")).json()["nats"])

        await until(connected)
        account_id = await admin.new_account("5.00")
        await admin.refused("GET", f"/accounts/{account_id}/balance", 503)
    async with rig.worker():
        await rig.settled(account_id, 0, 0, granted=5 * 10**9)
