"""START HERE. The life of a request to /v1/messages: entered in the invoice, judged, answered, written as the scenario wants."""

import hashlib
from typing import Any

from libs.localstack.simulator import errors, scenarios, stream, variants
from libs.localstack.simulator.answers import Answer, ordinary
from libs.localstack.simulator.delivery import send_answer, send_error
from libs.localstack.simulator.errors import ApiError
from libs.localstack.simulator.http import Exchange, PeerGone, Request
from libs.localstack.simulator.invoice import Entry, Invoice
from libs.localstack.simulator.scenarios import Scenario, Script
from libs.localstack.simulator.stream import Event
from libs.localstack.simulator.tokens import PromptCache

_PIECEWISE = frozenset({"one_byte", "split_utf8"})
_LENGTH_IS_NOT_TOKENS = frozenset({"cache_1h", "long_context"})


class Messages:
    """Answers message requests; remembers the prompts it has cached."""

    def __init__(self, *, gap_ms: int = 0) -> None:
        self.invoice = Invoice()
        self.script = Script()
        self.streams_running = 0
        self._gap_ms = gap_ms
        self._cache = PromptCache()

    async def answer(self, request: Request, exchange: Exchange, request_id: str, refused: ApiError | None) -> None:
        """Answer one; `refused` is what its credential earned it. Raises PeerGone."""
        entry = Entry(
            upstream_request_id=request_id,
            sim_id=request.header(b"x-sim-id"),
            path=request.target.decode("latin-1"),
            body_received_sha256=hashlib.sha256(request.body).hexdigest(),
            api_key_end=request.api_key[-4:],
        )
        self.invoice.add(entry)
        try:
            await self._answer(request, exchange, entry, refused)
        except PeerGone:
            entry.client_gone = True
            raise
        finally:
            entry.close(exchange.body_sha256)

    async def _answer(self, request: Request, exchange: Exchange, entry: Entry, refused: ApiError | None) -> None:
        try:
            if refused is not None:
                raise refused
            scenario, events = self._decide(request, entry)
        except ApiError as error:
            entry.status = error.status
            send_error(exchange, entry.upstream_request_id, error)
        else:
            await self._deliver(exchange, entry, scenario, events)

    async def _deliver(self, exchange: Exchange, entry: Entry, scenario: Scenario, events: list[Event]) -> None:
        self.streams_running += entry.stream
        try:
            gap_ms = 200 if scenario.name == "slow" else 0 if scenario.name in _PIECEWISE else self._gap_ms
            await send_answer(exchange, entry, events, scenario, gap_ms=gap_ms)
        finally:
            self.streams_running -= entry.stream

    def _decide(self, request: Request, entry: Entry) -> tuple[Scenario, list[Event]]:
        """What to say. Raises ApiError."""
        body = errors.object_of(request.header(b"content-type"), request.body)
        entry.model_asked = str(body.get("model") or "")
        entry.stream = body.get("stream") is True
        entry.scenario = scenarios.line_of(request.header(b"x-sim-scenario"), body)
        scenario = self.script.scenario(entry.scenario, sim_id=entry.sim_id, api_key=request.api_key)
        return scenario, self._events(body, entry, scenario, request)

    def _events(self, body: dict[str, Any], entry: Entry, scenario: Scenario, request: Request) -> list[Event]:
        model = errors.check_prompt(body)
        max_tokens = errors.check_max_tokens(body)
        errors.raise_asked_for(scenario, stream=entry.stream)
        wanted = scenario.number("tokens", -1) if scenario.name not in _LENGTH_IS_NOT_TOKENS else -1
        answer = ordinary(
            body,
            name=entry.upstream_request_id.removeprefix("req_"),
            model=model,
            max_tokens=max_tokens,
            spent=self._cache.use(f"{request.api_key} {model}", body),
            wanted=None if wanted < 0 else wanted,
        )
        variants.apply(answer, scenario)
        return _spelled(answer, entry, scenario)


def _spelled(answer: Answer, entry: Entry, scenario: Scenario) -> list[Event]:
    """One event for JSON, many for a stream."""
    entry.content_empty = answer.content_empty
    if entry.stream:
        entry.model_answered = answer.model
        return stream.events(answer)
    entry.model_answered = answer.model_last or answer.model
    extra = {"hologram": {"depth": 3}} if scenario.name == "unknown_event" else {}
    return [stream.whole(answer, extra=extra)]
