"""Events, and messages that carry them, as accounting meets them."""

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from nats.aio.client import Client
from nats.aio.msg import Msg

from libs.common import clock, ids
from libs.common.events import Account, ApiKey, ControlChanged, Credit, Entity, RefusalsCounted, UsageRecorded
from libs.common.leases import Admission
from tests.contract.fakes import MemoryBalances

ONE_TOKEN_NANOS: Final = 3_000
"""What one input token of claude-sonnet-4-6 costs: 3 dollars a million."""


def recorded(account_id: str = "acct_1", tokens: int = 1, **changes: Any) -> UsageRecorded:
    """An event that costs `tokens` × ONE_TOKEN_NANOS."""
    fields: dict[str, Any] = {
        "request_id": ids.new_request_id(),
        "account_id": account_id,
        "key_id": "key_1",
        "path": "/v1/messages",
        "model_asked": "claude-sonnet-4-6",
        "model_answered": "claude-sonnet-4-6",
        "stream": False,
        "status": 200,
        "outcome": "measured",
        "usage": {"input_tokens": tokens, "output_tokens": 0},
        "price_book_version": "2026-11-22",
        "multiplier_ppm": 1_000_000,
    }
    return UsageRecorded(**(fields | changes))


def refused(account_id: str = "acct_1", **changes: Any) -> RefusalsCounted:
    """What a gateway has counted of one key in the minute before this one."""
    fields: dict[str, Any] = {
        "account_id": account_id,
        "key_id": "key_1",
        "reason": "budget",
        "minute": clock.unix_ms() // 60_000 - 1,
        "gateway_id": "g1",
        "refused": 1,
    }
    return RefusalsCounted(**(fields | changes))


def request_id_at(time_ms: int) -> str:
    """An id of ours from that time."""
    return f"req_{time_ms:012x}{ids.uuid7_hex()[12:]}"


def changed(entity: Entity, **changes: Any) -> ControlChanged:
    """A control event about an entity."""
    fields: dict[str, Any] = {"entity": entity, "actor": "test", "reason": "test", "at_ms": clock.unix_ms()}
    return ControlChanged(**(fields | changes))


def account(account_id: str = "acct_1", **changes: Any) -> Account:
    """An account."""
    fields: dict[str, Any] = {"id": account_id, "name": "test", "created_at_ms": clock.unix_ms()}
    return Account(**(fields | changes))


def credit(account_id: str = "acct_1", amount_nanos: int = 10**9, **changes: Any) -> Credit:
    """A credit."""
    fields: dict[str, Any] = {"id": ids.new_credit_id(), "account_id": account_id, "amount_nanos": amount_nanos}
    return Credit(**(fields | {"reason": "test", "created_at_ms": clock.unix_ms()} | changes))


def api_key(account_id: str, **changes: Any) -> ApiKey:
    """A key."""
    key_id = ids.new_key_id()
    fields: dict[str, Any] = {"id": key_id, "account_id": account_id, "name": "test", "created_at_ms": clock.unix_ms()}
    sha256 = hashlib.sha256(key_id.encode()).hexdigest()
    return ApiKey(**(fields | {"sha256": sha256, "hint": "test"} | changes))


def admission(account_id: str, key_id: str, **changes: Any) -> Admission:
    """A request that holds little."""
    fields: dict[str, Any] = {
        "request_id": ids.new_request_id(),
        "account_id": account_id,
        "key_id": key_id,
        "address": "0" * 32,
        "models": ("claude-sonnet-4-6",),
        "input_tokens": 1,
        "hold_nanos": ONE_TOKEN_NANOS,
        "memo": b"{}",
    }
    return Admission(**(fields | changes))


def with_accounts(*account_ids: str) -> MemoryBalances:
    """Balances that know these accounts."""
    balances = MemoryBalances()
    for account_id in account_ids:
        balances.put_account(account_id, 1, {"status": "active", "multiplier_ppm": "1000000", "on_disconnect": "drain"})
    return balances


class Wire(Client):
    """A connection to nobody, that notes what was published on it."""

    def __init__(self) -> None:
        super().__init__()
        self.published: list[tuple[str, bytes]] = []

    async def publish(
        self, subject: str, payload: bytes = b"", reply: str = "", headers: dict[str, str] | None = None
    ) -> None:
        self.published.append((subject, payload))

    def answers_to(self, message: Msg) -> list[bytes]:
        """The acknowledgements of a message; nats-py's positive one is empty."""
        return [payload for subject, payload in self.published if subject == message.reply]


def delivered(
    wire: Wire,
    payload: bytes,
    *,
    deliveries: int = 1,
    age_s: float = 0,
    sequence: int = 1,
    subject: str = "usage.v1.p00",
) -> Msg:
    """A message as JetStream delivers it."""
    stored = datetime.now(UTC) - timedelta(seconds=age_s)
    reply = f"$JS.ACK.USAGE.accounting.{deliveries}.{sequence}.{sequence}.{int(stored.timestamp() * 1e9)}.0"
    return Msg(_client=wire, subject=subject, reply=reply, data=payload)
