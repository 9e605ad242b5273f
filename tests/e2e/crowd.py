"""Many callers at once, each with one request of a plan: some leave, some read to the end, whatever end it is."""

import asyncio
import contextlib
import socket
import struct
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

import httpx2

from tests.e2e.plans import Plan
from tests.e2e.relay import Relay
from tests.e2e.waiting import PLAIN, WAIT_S

AT_ONCE: Final = 50
SETTINGS: Final[tuple[dict[str, str], ...]] = (
    {},
    {"multiplier": "1.25"},
    {"on_disconnect": "cancel"},
    {"multiplier": "0.333333"},
)
"""Of the accounts of a crowd."""
CANCELLING: Final = 2
"""Which of them cancels when a caller leaves."""
RESET: Final = struct.pack("ii", 1, 0)


@dataclass
class Account:
    """One account of the test, with what is known of it at the end."""

    id: str
    keys: list[str]
    multiplier_ppm: int
    rows: dict[int, dict[str, Any]] = field(default_factory=dict)
    """By the length of the request's body."""


def new_account(relay: Relay, settings: dict[str, str]) -> Account:
    account, key = relay.new_account(credit_usd="5000.00", **settings)
    ppm = round(float(settings.get("multiplier", "1")) * 10**6)
    return Account(account, [key, relay.new_key(account)["key"]], ppm)


class Crowd:
    """The callers."""

    def __init__(self, relay: Relay, accounts: list[Account]) -> None:
        self._gateway = urlsplit(relay.gateway_url)
        self._simulator = relay.simulator_url
        self._accounts = accounts
        self._places = asyncio.Semaphore(AT_ONCE)
        self.received: dict[int, bytes] = {}
        """What each caller had read when it was over, head included."""

    async def run(self, plans: list[Plan]) -> None:
        """All of them."""
        async with httpx2.AsyncClient(verify=PLAIN) as self._http, asyncio.TaskGroup() as group:
            for plan in plans:
                group.create_task(self._ask(plan))

    def statuses(self) -> Counter[int]:
        """Of the answers, how many each."""
        return Counter(int(answer[9:12] or 0) for answer in self.received.values())

    async def _ask(self, plan: Plan) -> None:
        async with self._places, asyncio.timeout(WAIT_S):
            reader, writer = await asyncio.open_connection(self._gateway.hostname, self._gateway.port)
            writer.write(request_of(plan, self._accounts[plan.account].keys[plan.key]))
            try:
                self.received[plan.number] = await self._read(plan, reader)
            finally:
                if plan.leave and plan.number % 3:
                    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                writer.transport.abort()

    async def _read(self, plan: Plan, reader: asyncio.StreamReader) -> bytes:
        if plan.leave == "before":
            while not await self._is_invoiced(plan):
                await asyncio.sleep(0.02)
            return b""
        if plan.leave == "inside":
            return await reader.readuntil(b"\r\n\r\n") + await reader.readuntil(b"\n\n")
        pieces: list[bytes] = []
        with contextlib.suppress(ConnectionResetError):
            while piece := await reader.read(1 << 18):
                pieces.append(piece)
        return b"".join(pieces)

    async def _is_invoiced(self, plan: Plan) -> bool:
        answer = await self._http.get(f"{self._simulator}/_sim/invoice", params={"sim_id": plan.sim_id})
        return bool(answer.json()["entries"])


def request_of(plan: Plan, key: str) -> bytes:
    """As it goes over the wire, on a connection of its own."""
    lines = [
        "POST /v1/messages HTTP/1.1",
        "host: relay",
        "connection: close",
        "content-type: application/json",
        f"content-length: {len(plan.body)}",
        f"x-api-key: {key}",
        f"x-sim-id: {plan.sim_id}",
    ]
    lines += [f"x-sim-scenario: {plan.scenario}"] if plan.scenario else []
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + plan.body
