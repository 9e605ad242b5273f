"""One admitted message request, from the first byte sent upstream to the event that says what it cost.

Whatever happens in between, `run` ends with exactly one `UsageRecorded`: its `finally` is the only place that makes one.
"""

import asyncio
import logging
import time
from typing import Any, Final

import httpx2
import msgspec

from libs.common.config import GatewayConfig
from libs.common.errors import InternalError, RelayError, UpstreamFailed
from libs.common.events import UsageRecorded
from libs.common.leases import Granted
from libs.common.metrics import Metrics
from libs.common.pricing import Unpriced, price_event
from libs.common.usage import UsageUnreadable
from services.gateway import masks, outcome, ratelimits, recovery
from services.gateway.admission import Request
from services.gateway.asgi import answer_of
from services.gateway.attempts import Attempts
from services.gateway.headers import caller_response, value
from services.gateway.keeper import LeaseKeeper
from services.gateway.meter import GzipMeter, JsonMeter, Meter, Reading, StreamMeter
from services.gateway.outcome import Ending, Verdict
from services.gateway.outlet import Outlet
from services.gateway.pool import Pool
from services.gateway.publisher import Publisher
from services.gateway.screen import ErrorScreen
from services.gateway.spool import Spool
from services.gateway.upstream import Call, Response, explain

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

    pool: Pool
    keeper: LeaseKeeper
    publisher: Publisher
    spool: Spool
    metrics: Metrics
    drains: Drains
    config: GatewayConfig


class Exchange:
    """See the module's docstring."""

    def __init__(self, services: Services, *, request: Request, granted: Granted, call: Call, outlet: Outlet) -> None:
        self._services = services
        self._request = request
        self._request_id = request.id
        self._granted = granted
        self._limit_headers = ratelimits.headers(granted.figures)
        self._call = call
        self._outlet = outlet
        self._attempts = Attempts(
            services.pool,
            services.config,
            services.metrics,
            account_id=request.principal.account_id,
            request_id=request.id,
        )
        self._started = time.monotonic()
        self._first_byte_us = 0
        self._bytes_out = 0
        self._reading = Reading()
        self._meter: Meter
        self._screen: ErrorScreen | None = None
        self._ending = Ending.BROKE
        self._answer_begun = False
        self._answer_ended = False
        self._caller_left = False
        self._draining = False
        self._input_known = False
        self._deadline: asyncio.TimerHandle | None = None
        """For who has left. No `asyncio.timeout`: entering one would cost every request for the few."""
        self._time_is_up = False
        self._task: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Relay the request and record what it used."""
        self._task = asyncio.current_task()
        try:
            self._outlet.watch(self._on_caller_left)
            await self._relay()
        except asyncio.CancelledError:
            if not self._was_time_alone():
                self._ending = Ending.SHUT_DOWN
                raise
            # what never went out, because there was no connection yet, is nobody's work
            self._ending = Ending.ABANDONED if self._attempts.sent else Ending.BROKE
        except RelayError as error:
            await self._fail(error)
        except Exception:  # noqa: BLE001 - whatever it was, the request ends in one event
            _log.exception("exchange %s failed", self._request_id)
            await self._fail(InternalError(_OWN_FAULT))
        finally:
            self._outlet.unwatch()
            self._end_deadline()
            self._services.drains.count -= self._draining
            self._attempts.release()
            self._record()

    def _on_caller_left(self) -> None:
        if self._answer_ended:  # other servers say "disconnect" after a whole answer too
            return
        self._caller_left = True
        self._attempts.stop()
        drains, loop = self._services.drains, asyncio.get_running_loop()
        if self._granted.on_disconnect == "cancel" or drains.count >= drains.count_max:
            self._deadline = loop.call_later(0, self._expire)
            return
        self._draining = True
        drains.count += 1
        self._services.keeper.drain(self._granted.lease)
        self._deadline = loop.call_later(drains.seconds, self._expire)

    def _expire(self) -> None:
        assert self._task is not None
        self._time_is_up = True
        self._task.cancel()

    def _was_time_alone(self) -> bool:
        """Whether a cancellation was ours, and nobody else's who came at the same time."""
        assert self._task is not None
        return self._time_is_up and self._task.cancelling() == 1

    def _end_deadline(self) -> None:
        """Take a cancellation of ours back also where it came to nothing: `asyncio.wait_for` that is done swallows it."""
        if self._deadline is not None:
            self._deadline.cancel()
        if self._time_is_up and self._task is not None:
            self._task.uncancel()

    async def _relay(self) -> None:
        sent = await self._attempts.send(self._call)
        self._call = msgspec.structs.replace(self._call, body=b"")  # megabytes, and a stream may last for minutes
        response = sent.response
        try:
            if sent.body is not None:
                self._ending = Ending.ANSWERED
                self._begin(response)
                if sent.body:
                    self._pass(sent.body)
                await self._end()
            elif response.status >= 300:
                raise UpstreamFailed(_ODD_ANSWER)
            elif self._is_stream(value(response.headers, b"content-type")):
                await self._relay_stream(response)
            else:
                await self._relay_json(response)
        finally:
            await response.aclose()

    def _is_stream(self, content_type: bytes) -> bool:
        media_type = content_type.partition(b";")[0].strip().lower()
        return media_type == b"text/event-stream" or (not media_type and self._request.ask.stream)

    async def _relay_json(self, response: Response) -> None:
        self._meter = self._metered(JsonMeter(self._services.metrics), response)
        self._begin(response)
        await self._drained()
        try:
            await response.pour(self._take, self._outlet)
        except httpx2.TransportError as error:
            raise explain(error) from error
        self._ending = Ending.ANSWERED
        try:
            await self._end()
        finally:
            self._meter.end()

    async def _relay_stream(self, response: Response) -> None:
        stream_meter = StreamMeter(self._services.metrics)
        self._meter = meter = self._metered(stream_meter, response)
        self._screen = screen = ErrorScreen()
        self._begin(response, keep_length=False)  # an event of ours may have to follow
        await self._drained()
        try:
            await response.pour(self._take, self._outlet)
        except httpx2.TransportError as error:
            _log.warning("%s: upstream broke inside a stream: %s", self._request_id, type(error).__name__)
            self._services.metrics.add("relay_upstream_errors_total", "broken_stream")
        if held := screen.flush():  # an error event that the upstream did not end
            self._pass(held)
        meter.end()
        if self._reading.complete:
            self._ending = Ending.ANSWERED
        self._services.metrics.add("relay_upstream_masked_total", "event", screen.masked)
        await self._end_stream(at_boundary=meter is stream_meter and stream_meter.at_boundary)

    async def _end_stream(self, *, at_boundary: bool) -> None:
        """End politely only what is whole, or what the upstream itself has called an error."""
        if self._reading.complete or self._reading.error_type:
            await self._end()
        elif at_boundary:
            self._pass(masks.broken_stream_event(self._request_id))
            await self._end()
        else:  # returning without the last chunk makes the server break the connection, which no client takes for success
            await self._drained()

    def _take(self, chunk: bytes) -> bool:
        """A piece of the upstream's answer, called in the read that brought it: out it goes, and then it is looked at.

        Whether the caller's end is full.
        """
        screen = self._screen
        passed = chunk if screen is None else screen.feed(chunk)
        is_full = self._pass(passed) if passed else False
        self._meter.feed(chunk)
        if not self._input_known and screen is not None and self._reading.usage_start is not None:
            self._note_start(self._reading.usage_start)
        return is_full

    def _metered(self, meter: StreamMeter | JsonMeter, response: Response) -> Meter:
        coding = value(response.headers, b"content-encoding").lower()
        self._reading = meter.reading
        if coding in _PLAIN:
            return meter
        if coding in _ZIPPED:
            return GzipMeter(meter, self._services.metrics)
        raise UpstreamFailed(_ODD_ANSWER)

    def _begin(self, response: Response, *, keep_length: bool = True) -> None:
        self._answer_begun = True
        if self._caller_left:
            return
        headers = caller_response(response.headers, response.status, relay_request_id=self._request_id.encode())
        headers += self._limit_headers
        if not keep_length:
            headers = [pair for pair in headers if pair[0] != b"content-length"]
        self._outlet.begin(response.status, headers)

    def _pass(self, chunk: bytes) -> bool:
        if not self._first_byte_us:
            self._first_byte_us = self._elapsed_us()
        self._bytes_out += len(chunk)
        return not self._caller_left and self._outlet.write(chunk)

    async def _end(self) -> None:
        await self._drained()
        self._answer_ended = True
        if not self._caller_left:
            self._outlet.end()
            await self._drained()

    async def _drained(self) -> None:
        if not self._caller_left and self._outlet.is_full:
            await self._outlet.drained()

    async def _fail(self, error: RelayError) -> None:
        """Answer with an error, or, when the answer has begun, leave it visibly broken."""
        self._services.metrics.add("relay_upstream_errors_total", type(error).__name__)
        if not self._answer_begun and not self._caller_left:
            status, headers, body = answer_of(error, self._request_id)
            self._outlet.begin(status, headers + self._limit_headers)
            self._outlet.write(body)
            await self._end()

    def _elapsed_us(self) -> int:
        return int((time.monotonic() - self._started) * 1_000_000)

    def _note_start(self, usage: dict[str, Any]) -> None:
        """`message_start` has told the true input: from now on it counts instead of the estimate."""
        self._input_known = True
        self._services.spool.usage(self._request_id, recovery.usage_note(self._reading.model, usage))
        input_tokens, _ = outcome.tokens_for_limits(usage)
        self._services.keeper.correct(self._granted.lease, input_tokens)

    def _record(self) -> None:
        reading, ask = self._reading, self._request.ask
        status = self._attempts.status
        verdict = outcome.judge(self._ending, status, reading, input_estimated_tokens=ask.input_estimated_tokens)
        metrics = self._services.metrics
        metrics.add("relay_outcomes_total", verdict.outcome)
        if self._ending is Ending.ANSWERED and status < 400 and reading.usage is None:
            metrics.add("relay_usage_missing_total")
            _log.error("upstream answered %s without a usage: recorded as free", self._request_id)
        event = self._event(verdict)
        self._services.publisher.record(event)
        input_tokens, output_tokens = outcome.tokens_for_limits(verdict.usage)
        self._services.keeper.finish(
            self._granted.lease, input_tokens=input_tokens, output_tokens=output_tokens, cost_nanos=_cost(event)
        )

    def _event(self, verdict: Verdict) -> UsageRecorded:
        reading, request = self._reading, self._request
        return UsageRecorded(
            request_id=request.id,
            account_id=request.principal.account_id,
            key_id=request.principal.key_id,
            member_id=self._granted.lease.member_id,
            path=request.path,
            model_asked=request.ask.model,
            model_answered=reading.model or request.ask.model,
            stream=request.ask.stream,
            status=self._attempts.status,
            outcome=verdict.outcome,
            usage=verdict.usage,
            stop_reason=reading.stop_reason,
            cache_ttl_1h=request.ask.cache_ttl_1h,
            declined_models=tuple(reading.declined_models),
            price_book_version=request.book.version,
            multiplier_ppm=self._granted.multiplier_ppm,
            upstream_request_id=self._attempts.upstream_request_id,
            tries=tuple(self._attempts.made),
            first_byte_us=self._first_byte_us,
            duration_us=self._elapsed_us(),
            bytes_in=request.bytes_in,
            bytes_out=self._bytes_out,
            client=request.client,
        )


def _cost(event: UsageRecorded) -> int | None:
    """What will be settled; None where accounting will have to decide."""
    try:
        return price_event(event).total_nanos
    except (Unpriced, UsageUnreadable, LookupError):
        return None
