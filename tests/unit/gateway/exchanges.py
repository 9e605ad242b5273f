"""A caller and an upstream made of lists of bytes, for tests of what happens between them."""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx2
from nats.js.api import PubAck
from starlette.types import Message

from libs.common import events, pricebook
from libs.common.config import GatewayConfig
from libs.common.events import UsageRecorded
from libs.common.leases import Figures, Granted, Lease, Window
from libs.common.metrics import Metrics
from services.gateway import recovery
from services.gateway.admission import Principal, Request
from services.gateway.exchange import Drains, Exchange, Services
from services.gateway.outlet import AsgiOutlet
from services.gateway.peek import peek
from services.gateway.pool import Pool
from services.gateway.publisher import Publisher
from services.gateway.spool import Spool
from services.gateway.upstream import Call

BODY = b'{"model":"claude-sonnet-4-6","max_tokens":100,"messages":[{"role":"user","content":"Hello"}]}'
START = (
    b'event: message_start\ndata: {"type":"message_start","message":{"model":"claude-sonnet-4-6",'
    b'"usage":{"input_tokens":11,"output_tokens":2}}}\n\n'
)
TEXT = (
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
    b'"delta":{"type":"text_delta","text":"nine chars"}}\n\n'
)
DELTA = (
    b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn"},'
    b'"usage":{"output_tokens":40}}\n\n'
)
STOP = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
SSE = {"content-type": "text/event-stream"}
JSON = {"content-type": "application/json"}

Step = bytes | Exception | asyncio.Event


class Script(httpx2.AsyncByteStream):
    """An upstream's body, step by step: bytes to send, an event to wait for, an error to break off with."""

    def __init__(self, *steps: Step) -> None:
        self.steps = steps
        self.closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for step in self.steps:
            if isinstance(step, Exception):
                raise step
            if isinstance(step, asyncio.Event):
                await step.wait()
            else:
                yield step

    async def aclose(self) -> None:
        self.closed = True


Answer = Callable[[httpx2.Request], Coroutine[None, None, httpx2.Response]]


def answer(
    status: int = 200, headers: dict[str, str] | None = None, *, body: Script, before: asyncio.Event | None = None
) -> Answer:
    """An upstream that answers so, once `before` is set."""

    async def handler(request: httpx2.Request) -> httpx2.Response:
        request.extensions["sent"]()
        if before is not None:
            await before.wait()
        return httpx2.Response(status, headers={"request-id": "req_up", **(headers or JSON)}, stream=body)

    return handler


class Caller:
    """The caller's side of one exchange."""

    def __init__(self) -> None:
        self.left = asyncio.Event()
        self.messages: list[Message] = []
        self.takes_nothing = False

    async def receive(self) -> Message:
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if self.takes_nothing and message["type"] == "http.response.body":
            await asyncio.Event().wait()
        self.messages.append(message)

    @property
    def status(self) -> int:
        return int(self.messages[0]["status"])

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.messages[0]["headers"])

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages[1:])

    @property
    def ended(self) -> bool:
        """Whether the answer came to a clean end."""
        return bool(self.messages) and not self.messages[-1].get("more_body", True)

    async def until(self, *, bodies: int) -> None:
        """Wait until so many body messages have come."""
        async with asyncio.timeout(5):
            while len(self.messages) - 1 < bodies:
                await asyncio.sleep(0)


class Log:
    """JetStream that takes everything."""

    def __init__(self) -> None:
        self.events: list[UsageRecorded] = []

    async def publish(
        self, subject: str, payload: bytes, timeout: float | None, stream: str | None, headers: dict[str, str] | None
    ) -> PubAck:
        self.events += events.decode_usage(payload)
        return PubAck(stream="USAGE", seq=1)


class Keeper:
    """Notes what is done with the lease."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []

    def correct(self, lease: Lease, input_tokens: int) -> None:
        self.told.append(("correct", input_tokens))

    def drain(self, lease: Lease) -> None:
        self.told.append(("drain", None))

    def finish(self, lease: Lease, *, input_tokens: int, output_tokens: int, cost_nanos: int | None) -> None:
        self.told.append(("finish", (input_tokens, output_tokens, cost_nanos)))


REQUEST = Request(
    id="req_019aa0000000700080000000000000ff",
    principal=Principal("acct_1", "key_1"),
    address="0" * 32,
    ask=peek(BODY),
    book=pricebook.load(),
    models=("claude-sonnet-4-6",),
    path="/v1/messages",
    client="curl",
    bytes_in=len(BODY),
)


_spools: list[Spool] = []


def spool_of_its_own(metrics: Metrics) -> Spool:
    """A spool in a new directory; it goes when the test is over (conftest.py)."""
    spool = Spool(Path(tempfile.mkdtemp()), metrics, bytes_max=2**20)
    spool.begin([])
    _spools.append(spool)
    return spool


def remove_spools() -> None:
    """Close and remove those of the last test."""
    while _spools:
        spool = _spools.pop()
        asyncio.run(spool.aclose())
        shutil.rmtree(spool.directory)


class Bench:
    """One exchange between a caller and a scripted upstream."""

    def __init__(
        self,
        upstream: Answer,
        *,
        on_disconnect: Any = "drain",
        drain_s: float = 5.0,
        drains_max: int = 10,
        retries_max: int = 0,
    ) -> None:
        self.metrics = Metrics()
        self.caller = Caller()
        self.log = Log()
        self.spool = spool_of_its_own(self.metrics)
        self.spool.open(REQUEST.id, recovery.open_note("memb_1", 1_000_000, b"{}"))
        self.publisher = Publisher(self.log, self.metrics, self.spool)
        self.drains = Drains(self.metrics, count_max=drains_max, seconds=drain_s)
        self.keeper = Keeper()
        config = GatewayConfig(
            upstream_url="http://upstream",
            upstream_api_key="sk-ant-operator",
            upstream_retries_max=retries_max,
            upstream_retry_seconds=0.01,
            error_body_bytes_max=10_000,
        )
        services = Services(
            pool=Pool(config, transport_for=lambda _: httpx2.MockTransport(upstream), metrics=self.metrics),
            keeper=self.keeper,  # type: ignore[arg-type]
            publisher=self.publisher,
            spool=self.spool,
            metrics=self.metrics,
            drains=self.drains,
            config=config,
        )
        self.exchange = Exchange(
            services,
            request=REQUEST,
            granted=Granted(
                lease=Lease("acct_1", "key_1", "memb_1", REQUEST.id),
                multiplier_ppm=1_000_000,
                on_disconnect=on_disconnect,
                hold_nanos=1,
                figures=Figures(Window(1000, 999, 1_764_000_000), None, None),
            ),
            call=Call(method="POST", target=b"/v1/messages", headers=[(b"x-api-key", b"sk-cr-caller")], body=BODY),
            outlet=AsgiOutlet(self.caller.receive, self.caller.send),
        )

    def start(self) -> "asyncio.Task[None]":
        """Run it in a task."""
        return asyncio.get_running_loop().create_task(self.exchange.run())

    async def run(self) -> UsageRecorded:
        """Run it to its end; the one event it left."""
        async with asyncio.timeout(5):
            await self.exchange.run()
        return await self.recorded()

    async def recorded(self) -> UsageRecorded:
        """The one event of the exchange."""
        assert await self.publisher.flush(5) == 0
        (event,) = self.log.events
        return event
