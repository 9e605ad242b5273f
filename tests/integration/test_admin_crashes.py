"""What is sent again after a crash has happened once, and is answered alike; what is sent by many at once, too."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Final

import httpx2
import pytest

from libs.common import ids, sealing
from services.admin.app import PREFIX
from tests.integration.accounting_rig import Rig, until
from tests.integration.admin_process import AdminProcess, from_address
from tests.integration.admin_rig import SECRETS_KEY

pytestmark = pytest.mark.anyio
POINTS: Final = {"control_publishing": 1, "control_published": 0}
"""Where it dies → how many changes are left to be made by the call that is sent again."""
USD: Final = 10**9


@dataclass
class Case:
    """One mutation, sent until it is answered."""

    name: str
    path: str
    body: dict[str, Any]
    changes: int
    """Messages in the log of changes that it makes, once."""
    other: dict[str, Any] | None = None
    """Another body; None: it has no Idempotency-Key, the body itself names what is done once."""
    token: dict[str, str] = field(default_factory=dict)
    method: str = "POST"
    key: str = field(default_factory=ids.uuid7_hex)

    async def send(self, process: AdminProcess, body: dict[str, Any] | None = None) -> httpx2.Response:
        headers = {"idempotency-key": self.key} if self.other is not None else {}
        return await process.send(self.method, self.path, json=body or self.body, headers=headers, **self.token)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def rig(nats_url: str, redis_url: str, clickhouse_url: str) -> AsyncIterator[Rig]:
    async with Rig.over(nats_url, redis_url, clickhouse_url) as made:
        yield made


@pytest.fixture(scope="module")
async def shared(rig: Rig, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[AdminProcess]:
    async with AdminProcess.over(rig, tmp_path_factory.mktemp("admin")) as made:
        yield made


@pytest.fixture
async def process(shared: AdminProcess) -> AdminProcess:
    """One for all tests, alive and unarmed."""
    if shared.is_special or not shared.is_running():
        shared.restart()
    return shared


async def cases(process: AdminProcess) -> tuple[str, list[Case]]:
    """An account, and everything that moves its money or makes keys."""
    account_id = await process.new_account("10.00")
    path = f"/accounts/{account_id}"
    code = (await process.done("POST", "/codes", json={"count": 1, "amount_usd": "2.25", "reason": "x"}))["codes"][0]
    scoped = {"name": "t", "role": "billing", "scopes": ["money:write"]}
    billing = (await process.done("POST", f"{path}/tokens", json=scoped))["token"]
    old = await process.done("POST", f"{path}/keys", json={"name": "old"})
    codes = {"count": 3, "amount_usd": "1", "reason": "promotion", "uses_max": 5}
    person = {"name": "Ada", "role": "developer", "email": f"{ids.uuid7_hex()}@example.com"}
    return account_id, [
        Case(
            "credit", f"{path}/credits", {"amount_usd": "1.5", "reason": "x"}, 1, {"amount_usd": "1.6", "reason": "x"}
        ),
        Case("codes", "/codes", codes, 3, codes | {"count": 4}),
        Case("redemption", f"{path}/redemptions", {"code": code}, 2, token={"token": billing}),
        Case("key", f"{path}/keys", {"name": "one"}, 1, {"name": "two"}),
        Case(
            "key batch", f"{path}/key-batches", {"keys": [{"name": "a"}, {"name": "b"}]}, 2, {"keys": [{"name": "a"}]}
        ),
        Case("rotation", f"{path}/keys/{old['id']}/rotate", {}, 2, {"overlap_seconds": 1}),
        Case("invitation", f"{path}/members", person, 2, person | {"role": "admin"}),
    ]


@pytest.mark.parametrize("point", POINTS)
async def test_a_call_that_is_sent_again_after_a_crash_has_happened_once(process: AdminProcess, point: str) -> None:
    account_id, listed = await cases(process)
    process.restart(f"{point}=kill@1")
    for case in listed:
        before = await process.last_sequence()
        with pytest.raises(httpx2.TransportError):
            await case.send(process)
        assert process.was_killed(), case.name
        assert await process.last_sequence() == before + (0 if POINTS[point] else case.changes), case.name
        process.start(f"{point}=kill@{POINTS[point] + 1}")  # one start for two: it dies again at the next case's call
        answers = [await case.send(process) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [201, 201], (case.name, answers[0].text)
        assert answers[0].json() == answers[1].json(), case.name
        if case.other is not None:
            assert (await case.send(process, case.other)).status_code == 422, case.name
        assert await process.last_sequence() == before + case.changes, case.name
    process.restart()
    await adds_up(process, account_id, 10 * USD + 1_500_000_000 + 2_250_000_000)


@pytest.mark.parametrize("name", ["credit", "codes", "redemption", "key", "key batch", "rotation", "invitation"])
async def test_many_at_once_are_one(process: AdminProcess, name: str) -> None:
    """Twenty; of a code no more than an account may try in a quarter of an hour."""
    _, listed = await cases(process)
    case = next(one for one in listed if one.name == name)
    before = await process.last_sequence()
    answers = await asyncio.gather(*(case.send(process) for _ in range(10 if name == "redemption" else 20)))
    assert {answer.status_code for answer in answers} == {201}, {answer.text for answer in answers}
    first = answers[0].json()
    assert all(answer.json() == first for answer in answers)
    assert await process.last_sequence() == before + case.changes


async def test_a_key_that_is_answered_again_works(process: AdminProcess) -> None:
    """The secret of the second answer is the one whose hash stands in the log."""
    account_id = await process.new_account()
    case = Case("key", f"/accounts/{account_id}/keys", {"name": "one"}, 1, {})
    made = [(await case.send(process)).json() for _ in range(2)]
    listed = (await process.done("GET", f"/accounts/{account_id}/keys"))["data"]
    assert [one["id"] for one in listed] == [made[0]["id"]]
    assert made[1]["key"].startswith(listed[0]["hint"].removesuffix("…"))


async def test_a_new_secrets_key_in_front_changes_no_answer(process: AdminProcess) -> None:
    _, listed = await cases(process)
    kept = [one for one in listed if one.name in ("codes", "key", "key batch", "rotation", "invitation")]
    answers = [(await case.send(process)).json() for case in kept]
    before = await process.last_sequence()
    process.restart(secrets_key=f"{sealing.new_key()},{SECRETS_KEY}")
    assert [(await case.send(process)).json() for case in kept] == answers
    assert await process.last_sequence() == before


async def test_two_operators_change_one_limit_at_once(process: AdminProcess) -> None:
    account_id = await process.new_account()
    path = f"/accounts/{account_id}"
    for round_number in range(1, 11):
        etag = (await process.send("GET", path)).headers["etag"]
        answers = await asyncio.gather(
            *(
                process.send("PATCH", path, json={"limits": {"rpm": rpm}}, headers={"if-match": etag})
                for rpm in (round_number, 1000 + round_number)
            )
        )
        assert sorted(answer.status_code for answer in answers) == [200, 412], [answer.text for answer in answers]
        (won,) = (answer.json()["limits"] for answer in answers if answer.status_code == 200)
        assert (await process.done("GET", path))["limits"] == won


async def redeemed(process: AdminProcess, number: int, account_id: str, token: str, code: str) -> httpx2.Response:
    """Somebody redeems a code, from an address of his own, until it is decided."""
    async with from_address(process, f"127.0.2.{number + 1}") as client:
        while True:
            answer = await client.post(
                f"{PREFIX}/accounts/{account_id}/redemptions",
                json={"code": code},
                headers={"authorization": f"Bearer {token}"},
            )
            if answer.status_code != 409:
                return answer


async def test_thirty_accounts_redeem_one_code_at_once(process: AdminProcess) -> None:
    uses, accounts = 20, [await process.new_account() for _ in range(30)]
    scoped = {"name": "t", "role": "billing", "scopes": ["money:write"]}
    tokens = [(await process.done("POST", f"/accounts/{one}/tokens", json=scoped))["token"] for one in accounts]
    body = {"count": 1, "amount_usd": "7", "reason": "launch", "uses_max": uses}
    code = (await process.done("POST", "/codes", json=body))["codes"][0]
    callers = list(zip(range(30), accounts, tokens, strict=True))
    before = await process.last_sequence()
    answers = await asyncio.gather(*(redeemed(process, *caller, code) for caller in callers))
    assert sorted(answer.status_code for answer in answers) == [201] * uses + [404] * (30 - uses)
    assert await process.last_sequence() == before + 2 * uses
    again = await asyncio.gather(*(redeemed(process, *caller, code.lower().replace("-", " ")) for caller in callers))
    assert [answer.json() for answer in again] == [answer.json() for answer in answers]
    assert await process.last_sequence() == before + 2 * uses
    granted = [(await process.done("GET", f"/accounts/{one}/balance"))["granted_usd"] for one in accounts]
    assert granted == ["7.00" if answer.status_code == 201 else "0.00" for answer in answers]


async def adds_up(process: AdminProcess, account_id: str, granted: int) -> None:
    """With accounting running, archive and balance come to the same sum."""
    rig = process.rig

    async def agree() -> bool:
        balance = await rig.balance(account_id)
        statement = f"SELECT sum(amount_nanos) FROM credits FINAL WHERE account_id = '{account_id}'"
        ((archived,),) = await rig.ledger.query(statement)
        return balance is not None and (balance.available, int(archived)) == (granted, granted)

    async with rig.worker():
        await until(agree)
