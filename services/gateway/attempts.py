"""One request's way to an answer: which credential it is sent with, what each answer means, and when it is sent again.

Another credential is tried at once, each at most once; then, after a wait, one of those that may yet work. Everything happens
before the first byte: an answer below 400 is handed over unread, an error only when it is the one the caller is to see.
"""

import asyncio
import logging
import math
import random
import time
from typing import Final

import msgspec

from libs.common.config import GatewayConfig
from libs.common.errors import Overloaded, RelayError
from libs.common.events import Attempt
from libs.common.metrics import Metrics
from libs.common.upstreams import Kind
from services.gateway import verdict
from services.gateway.headers import value
from services.gateway.pool import Credential, Pool
from services.gateway.upstream import Call, Response, is_packed, read_whole
from services.gateway.verdict import Verdict

_log: Final = logging.getLogger("relay.attempts")
_BUSY: Final = "The upstream is busy. Nothing was charged; please try again in a few seconds."
_RETRY_AFTER_S_MAX: Final = 60
_RETRY_AFTER_S_UNKNOWN: Final = 5
_REQUEST_ID_CHARS_MAX: Final = 128


class Sent(msgspec.Struct, frozen=True):
    """The upstream's answer."""

    response: Response
    """Below 400: still to be read and then closed."""
    body: bytes | None = None
    """Of an error that the caller may see, whole; None for anything else."""


class _Refused(msgspec.Struct, frozen=True):
    """How the last attempt ended."""

    verdict: Verdict
    answer: Sent | None = None
    failure: RelayError | None = None
    """There is no answer, or not all of it."""


class Attempts:
    """See the module's docstring. Who makes one calls `release` at the end, whatever happened."""

    __slots__ = (
        "_account_id",
        "_barred",
        "_config",
        "_counted",
        "_doubted",
        "_free",
        "_held",
        "_last",
        "_metrics",
        "_pool",
        "_request_id",
        "_retries",
        "_started",
        "_stopped",
        "_tried",
        "_wake",
        "made",
        "sent",
        "upstream_request_id",
    )

    def __init__(
        self,
        pool: Pool,
        config: GatewayConfig,
        metrics: Metrics,
        *,
        account_id: str,
        request_id: str,
        free: bool = False,
    ) -> None:
        """`free`: it is not a message, and the upstream's rate limit for it says nothing of the one for messages."""
        self._pool = pool
        self._config = config
        self._metrics = metrics
        self._account_id = account_id
        self._request_id = request_id
        self._free = free
        self._held: Credential | None = None
        self._tried: set[Credential] = set()
        self._barred: set[Credential] = set()
        """Of those tried, the ones that would refuse it again."""
        self._counted: set[Credential] = set()
        """One request is one failure in a row, however often it is sent."""
        self._doubted: list[tuple[Credential, Kind]] = []
        self._last: _Refused | None = None
        self._retries = 0
        self._started = time.monotonic()
        self._stopped = False
        self._wake: asyncio.Event | None = None
        self.made: list[Attempt] = []
        """So far, for the ledger; true at any time."""
        self.sent = False
        """Whether the upstream may be working for it: it went out, and no error came back."""
        self.upstream_request_id = ""
        """Of the last answer."""

    @property
    def status(self) -> int:
        """The upstream's last HTTP status; 0 if no answer came."""
        return self.made[-1].status if self.made else 0

    def stop(self) -> None:
        """Nobody waits for the answer any more: no further attempt; a wait ends at once."""
        self._stopped = True
        if self._wake is not None:
            self._wake.set()

    def release(self) -> None:
        """The request has ended with the credential it was sent with last."""
        if self._held is not None:
            self._pool.leave(self._held, self._request_id)
            self._held = None

    async def send(self, call: Call) -> Sent:
        """An answer for the caller. Raises RelayError, ready for him: his answer is none of the upstream's."""
        again = True
        while not self._stopped:
            credential = await self._find(again=again)
            if credential is None:
                if not await self._wait():
                    break
                again = True
            elif (sent := await self._try(credential, call)) is not None:
                return sent
            else:
                again = False
        return self._give_up()

    async def _find(self, *, again: bool) -> Credential | None:
        """One that was not tried yet; or `again` one that was, and in the end one that is out for failures only."""
        found = await self._enter(self._tried)
        if found is None and again:
            found = await self._enter(self._barred)
            if found is None and (credential := self._pool.last_resort(self._account_id, self._barred)) is not None:
                found = await self._begin(credential, anyway=True)
        return found

    async def _enter(self, but: set[Credential]) -> Credential | None:
        credential = self._pool.choose(self._account_id, but)
        if credential is None:
            return None
        # else it is full, or somebody else tries it
        return await self._begin(credential) or await self._enter(but | {credential})

    async def _begin(self, credential: Credential, *, anyway: bool = False) -> Credential | None:
        if not await self._pool.enter(credential, self._request_id, anyway=anyway):
            return None
        self._held = credential
        return credential

    async def _try(self, credential: Credential, call: Call) -> Sent | None:
        """One attempt: the answer for the caller, or None if another may be made. Raises RelayError."""
        if self.made:
            again = "same" if self.made[-1].upstream_id == credential.id else "other"
            self._metrics.add("relay_upstream_retries_total", again)
        self.sent = False
        started, status, error = time.monotonic(), 0, "left"
        try:
            response = await credential.upstream.send(call, on_sent=self._note_sent)
            status, error = response.status, ""
        except RelayError as failure:
            error = verdict.name_of_failure(failure.__cause__)
            self._failed(credential, failure)
            return None
        finally:
            self.made.append(
                Attempt(
                    upstream_id=credential.id,
                    status=status,
                    error=error,
                    duration_us=int((time.monotonic() - started) * 1_000_000),
                )
            )
        self.upstream_request_id = value(response.headers, b"request-id").decode("ascii", "replace")[
            :_REQUEST_ID_CHARS_MAX
        ]
        if status >= 400:
            return await self._refused(credential, response)
        if status < 300:
            self._works(credential)
        return Sent(response)

    def _note_sent(self) -> None:
        self.sent = True

    def _failed(self, credential: Credential, failure: RelayError) -> None:
        """No answer came. Raises it, if it may not be sent again."""
        found = verdict.of_failure(failure.__cause__)
        if found.kind is not None:
            self._blame(credential, found.kind, found)
        if found.again == "no":
            raise failure
        self._metrics.add("relay_upstream_errors_total", type(failure).__name__)
        self._go_on(credential, _Refused(found, failure=failure))

    async def _refused(self, credential: Credential, response: Response) -> Sent | None:
        """An error came: read it whole, so that it can be judged before any of it is shown."""
        status, body, failure = response.status, b"", None
        try:
            body = await read_whole(response, bytes_max=self._config.error_body_bytes_max)
        except RelayError as error:
            failure = error
        finally:
            await response.aclose()
        self.sent = False
        self._metrics.add("relay_upstream_errors_total", str(status))
        found = verdict.of_answer(status, response.headers, body, packed=is_packed(response))
        if found.kind is None:
            self._works(credential)
        else:
            self._blame(credential, found.kind, found)
        refused = _Refused(found, Sent(response, body), failure)
        if found.again == "no":
            return self._shown(refused)
        self._go_on(credential, refused)
        return None

    def _go_on(self, credential: Credential, refused: _Refused) -> None:
        self.release()
        self._last = refused
        self._tried.add(credential)
        if refused.verdict.again == "elsewhere":
            self._barred.add(credential)

    def _blame(self, credential: Credential, kind: Kind, found: Verdict) -> None:
        """Hold it against the credential: once, and not before it is sure."""
        if found.doubtful:
            self._doubted.append((credential, kind))
            return
        if kind == "rate" and self._free:
            return
        if kind in ("server", "connect") and not credential.breaker.until_ms:
            if credential in self._counted:
                return
            self._counted.add(credential)
        self._pool.failed(credential, kind, retry_after_s=found.retry_after_s)

    def _works(self, credential: Credential) -> None:
        """It took the request: what others said of it was about themselves."""
        self._pool.succeeded(credential)
        if self._doubted:
            for other, kind in self._doubted:
                self._pool.failed(other, kind)
            self._doubted = []

    async def _wait(self) -> bool:
        """Wait for one of those that may yet work; False if there is none, or no time for it."""
        config = self._config
        wait_s = self._pool.wait_s(self._account_id, self._barred)
        if wait_s is None or self._retries >= config.upstream_retries_max:
            return False
        told_s = (self._last.verdict.retry_after_s if self._last is not None else None) or 0.0
        wait_s = max(wait_s, min(told_s, config.upstream_retry_after_seconds_max))
        wait_s += random.uniform(0, config.upstream_retry_seconds * 2**self._retries)  # noqa: S311 - jitter
        if time.monotonic() - self._started + wait_s > config.upstream_retries_seconds_max:
            return False
        self._retries += 1
        self._wake = asyncio.Event()
        try:
            await asyncio.wait_for(self._wake.wait(), wait_s)
        except TimeoutError:
            return True
        return False

    def _give_up(self) -> Sent:
        for credential, kind in self._doubted:  # none took the request: it may be its own fault
            self._pool.failed(credential, "server", trouble=kind)
        self._doubted = []
        if self._last is None:
            self._pool.count(self._account_id)
            raise self._busy()
        return self._shown(self._last)

    def _shown(self, refused: _Refused) -> Sent:
        """The last answer as the caller sees it. Raises RelayError."""
        if refused.verdict.masked is not None:
            self._metrics.add("relay_upstream_masked_total", str(self.status))
            _log.warning("%s: the upstream answered %d; the caller sees 529", self._request_id, self.status)
            raise self._busy()
        if refused.failure is not None:
            raise self._busy() if refused.answer is None else refused.failure
        assert refused.answer is not None  # there is one or the other
        return refused.answer

    def _busy(self) -> Overloaded:
        soonest_s = self._pool.back_in_s(self._account_id)
        seconds = _RETRY_AFTER_S_UNKNOWN if soonest_s is None else math.ceil(soonest_s)
        return Overloaded(_BUSY, retry_after_s=min(max(seconds, 1), _RETRY_AFTER_S_MAX))
