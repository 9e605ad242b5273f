"""One admitted message request, from the first byte sent upstream to the event that says what it cost.

Whatever happens in between, `run` ends with exactly one `UsageRecorded`: its `finally` is the only place that makes one.
"""

import asyncio
import logging
import time
from typing import Final

import httpx2
import msgspec
from starlette.types import Receive, Send

from libs.common.balances import Granted
from libs.common.errors import InternalError, RelayError, UpstreamFailed
from libs.common.events import UsageRecorded
from libs.common.metrics import Metrics
from libs.common.runtime import spawn
from services.gateway import asgi, masks, outcome
from services.gateway.admission import Principal
from services.gateway.headers import caller_response, client_family, value
from services.gateway.meter import GzipMeter, JsonMeter, Meter, Reading, StreamMeter
from services.gateway.outcome import Ending
from services.gateway.peek import Ask
from services.gateway.publisher import Publisher
from services.gateway.screen import ErrorScreen
from services.gateway.upstream import Call, Upstream, explain

_log: Final = logging.getLogger("relay.exchange")
_PLAIN: Final = frozenset({b"", b"identity"})
_ZIPPED: Final = frozenset({b"gzip", b"x-gzip", b"deflate"})
_ODD_ANSWER: Final = "The upstream sent an answer this relay cannot read. Nothing was charged."
_OWN_FAULT: Final = (
    "The relay failed while it handled this request. Nothing is charged that the upstream did not report."
)


class Drains:
    """How many upstream streams are being read to their end although their caller has left."""

    def __init__(self, metrics: Metrics, *, count_max: int, seconds: float) -> None:
        self.count = 0
        self.count_max = count_max
        self.seconds = seconds
        metrics.gauge("relay_drains_in_progress", lambda: self.count)


class Services(msgspec.Struct, frozen=True, kw_only=True):
    """What an exchange works with; one per process."""

    upstream: Upstream
    publisher: Publisher
    metrics: Metrics
    drains: Drains
    price_book_version: str
    error_body_bytes_max: int


class Exchange:
    """See the module's docstring."""

    def __init__(
        self, services: Services, *, request_id: str, principal: Principal, ask: Ask, granted: Granted, call: Call
    ) -> None:
        self._services = services
        self._request_id = request_id
        self._principal = principal
        self._ask = ask
        self._granted = granted
        self._call = call
        self._started = time.monotonic()
        self._first_byte_us = 0
        self._status = 0
        self._upstream_request_id = ""
        self._bytes_in = len(call.body)
        self._bytes_out = 0
        self._reading = Reading()
        self._ending = Ending.BROKE
        self._sent = False
        self._answer_begun = False
        self._answer_ended = False
        self._caller_left = False
        self._draining = False
        self._deadline = asyncio.timeout(None)

    async def run(self, receive: Receive, send: Send) -> None:
        """Relay the request and record what it used."""
        watch = spawn(self._watch_caller(receive), name="watch-caller")
        try:
            async with self._deadline:
                await self._relay(send)
        except asyncio.CancelledError:
            self._ending = Ending.SHUT_DOWN
            raise
        except RelayError as error:
            await self._fail(send, error)
        except Exception as error:  # noqa: BLE001 - whatever it was, the request ends in one event
            if isinstance(error, TimeoutError) and self._deadline.expired():
                # what never went out, because there was no connection yet, is nobody's work
                self._ending = Ending.ABANDONED if self._sent else Ending.BROKE
            else:
                _log.exception("exchange %s failed", self._request_id)
                await self._fail(send, InternalError(_OWN_FAULT))
        finally:
            watch.cancel()
            self._services.drains.count -= self._draining
            self._record()

    async def _watch_caller(self, receive: Receive) -> None:
        await asgi.until_disconnect(receive)
        if self._answer_ended:  # the server says "disconnect" after a whole answer too
            return
        self._caller_left = True
        drains = self._services.drains
        now = asyncio.get_running_loop().time()
        if self._granted.on_disconnect == "cancel" or drains.count >= drains.count_max:
            self._deadline.reschedule(now)
            return
        self._draining = True
        drains.count += 1
        self._deadline.reschedule(now + drains.seconds)

    async def _relay(self, send: Send) -> None:
        response = await self._services.upstream.send(self._call, on_sent=self._note_sent)
        self._call = msgspec.structs.replace(self._call, body=b"")  # megabytes, and a stream may last for minutes
        try:
            self._status = response.status_code
            headers = response.headers.raw
            self._upstream_request_id = value(headers, b"request-id").decode("ascii", "replace")[:128]
            if self._status >= 400:
                await self._relay_error(response, send)
            elif self._status >= 300:
                raise UpstreamFailed(_ODD_ANSWER)
            elif self._is_stream(value(headers, b"content-type")):
                await self._relay_stream(response, send)
            else:
                await self._relay_json(response, send)
        finally:
            await response.aclose()

    def _is_stream(self, content_type: bytes) -> bool:
        media_type = content_type.partition(b";")[0].strip().lower()
        return media_type == b"text/event-stream" or (not media_type and self._ask.stream)

    def _note_sent(self) -> None:
        self._sent = True

    async def _relay_error(self, response: httpx2.Response, send: Send) -> None:
        body = await read_whole(response, bytes_max=self._services.error_body_bytes_max)
        self._services.metrics.add("relay_upstream_errors_total", str(self._status))
        masked = masks.masked_answer(self._status, body, packed=is_packed(response))
        if masked is not None:
            self._services.metrics.add("relay_upstream_masked_total", str(self._status))
            _log.warning("%s: upstream answered %d; the caller sees %d", self._request_id, self._status, masked.status)
            raise masked
        self._ending = Ending.ANSWERED
        await self._begin(response, send)
        await self._pass(send, body)
        await self._send_last(send, b"")

    async def _relay_json(self, response: httpx2.Response, send: Send) -> None:
        meter = self._metered(JsonMeter(self._services.metrics), response)
        await self._begin(response, send)
        try:
            async for chunk in response.stream:  # type: ignore[union-attr]
                await self._pass(send, chunk)
                meter.feed(chunk)
        except httpx2.TransportError as error:
            raise explain(error) from error
        self._ending = Ending.ANSWERED
        try:
            await self._send_last(send, b"")
        finally:
            meter.end()

    async def _relay_stream(self, response: httpx2.Response, send: Send) -> None:
        stream_meter = StreamMeter(self._services.metrics)
        meter = self._metered(stream_meter, response)
        screen = ErrorScreen()
        await self._begin(response, send, keep_length=False)  # an event of ours may have to follow
        try:
            async for chunk in response.stream:  # type: ignore[union-attr]
                try:
                    if passed := screen.feed(chunk):
                        await self._pass(send, passed)
                finally:  # what came from the upstream counts, also if the time was up while the caller did not take it
                    meter.feed(chunk)
        except httpx2.TransportError as error:
            _log.warning("%s: upstream broke inside a stream: %s", self._request_id, type(error).__name__)
            self._services.metrics.add("relay_upstream_errors_total", "broken_stream")
        if held := screen.flush():  # an error event that the upstream did not end
            await self._pass(send, held)
        meter.end()
        if self._reading.complete:
            self._ending = Ending.ANSWERED
        self._services.metrics.add("relay_upstream_masked_total", "event", screen.masked)
        await self._end_stream(send, at_boundary=meter is stream_meter and stream_meter.at_boundary)

    async def _end_stream(self, send: Send, *, at_boundary: bool) -> None:
        """End politely only what is whole, or what the upstream itself has called an error."""
        if self._reading.complete or self._reading.error_type:
            await self._send_last(send, b"")
        elif at_boundary:
            await self._send_last(send, masks.broken_stream_event(self._request_id))
        # else: returning without the last chunk makes the server break the connection, which no client takes for success

    def _metered(self, meter: StreamMeter | JsonMeter, response: httpx2.Response) -> Meter:
        coding = value(response.headers.raw, b"content-encoding").lower()
        self._reading = meter.reading
        if coding in _PLAIN:
            return meter
        if coding in _ZIPPED:
            return GzipMeter(meter, self._services.metrics)
        raise UpstreamFailed(_ODD_ANSWER)

    async def _begin(self, response: httpx2.Response, send: Send, *, keep_length: bool = True) -> None:
        self._answer_begun = True
        if self._caller_left:
            return
        headers = caller_response(response.headers.raw, self._status, relay_request_id=self._request_id.encode())
        if not keep_length:
            headers = [pair for pair in headers if pair[0] != b"content-length"]
        await send({"type": "http.response.start", "status": self._status, "headers": headers})

    async def _pass(self, send: Send, chunk: bytes) -> None:
        if not self._first_byte_us:
            self._first_byte_us = self._elapsed_us()
        self._bytes_out += len(chunk)
        if not self._caller_left:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})

    async def _send_last(self, send: Send, chunk: bytes) -> None:
        self._answer_ended = True
        if not self._caller_left:
            await send({"type": "http.response.body", "body": chunk, "more_body": False})

    async def _fail(self, send: Send, error: RelayError) -> None:
        """Answer with an error, or, when the answer has begun, leave it visibly broken."""
        self._services.metrics.add("relay_upstream_errors_total", type(error).__name__)
        if not self._answer_begun and not self._caller_left:
            await asgi.answer_error(send, error, self._request_id)

    def _elapsed_us(self) -> int:
        return int((time.monotonic() - self._started) * 1_000_000)

    def _record(self) -> None:
        reading, ask = self._reading, self._ask
        verdict = outcome.judge(self._ending, self._status, reading, input_estimated_tokens=ask.input_estimated_tokens)
        metrics = self._services.metrics
        metrics.add("relay_outcomes_total", verdict.outcome)
        if self._ending is Ending.ANSWERED and self._status < 400 and reading.usage is None:
            metrics.add("relay_usage_missing_total")
            _log.error("upstream answered %s without a usage: recorded as free", self._request_id)
        self._services.publisher.record(
            UsageRecorded(
                request_id=self._request_id,
                account_id=self._principal.account_id,
                key_id=self._principal.key_id,
                path=self._call.target.partition(b"?")[0].decode("ascii"),
                model_asked=ask.model,
                model_answered=reading.model or ask.model,
                stream=ask.stream,
                status=self._status,
                outcome=verdict.outcome,
                usage=verdict.usage,
                stop_reason=reading.stop_reason,
                cache_ttl_1h=ask.cache_ttl_1h,
                declined_models=tuple(reading.declined_models),
                price_book_version=self._services.price_book_version,
                multiplier_ppm=self._granted.multiplier_ppm,
                upstream_request_id=self._upstream_request_id,
                first_byte_us=self._first_byte_us,
                duration_us=self._elapsed_us(),
                bytes_in=self._bytes_in,
                bytes_out=self._bytes_out,
                client=client_family(self._call.headers),
            )
        )


async def read_whole(response: httpx2.Response, *, bytes_max: int) -> bytes:
    """A body, whole, so that it can be judged before any of it is shown. Raises RelayError."""
    chunks: list[bytes] = []
    size = 0
    try:
        async for chunk in response.stream:  # type: ignore[union-attr]
            size += len(chunk)
            if size > bytes_max:
                raise UpstreamFailed(_ODD_ANSWER)
            chunks.append(chunk)
    except httpx2.TransportError as error:
        raise explain(error) from error
    return b"".join(chunks)


def is_packed(response: httpx2.Response) -> bool:
    """Whether a body has a content coding, which was never asked for: it cannot be judged by its bytes."""
    return value(response.headers.raw, b"content-encoding").lower() not in _PLAIN
