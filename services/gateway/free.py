"""Paths that cost nothing: count_tokens and the model list. A valid key is asked for, a balance is not; there is no row."""

import asyncio
from typing import Any, Final

import msgspec
from starlette.types import Receive, Send

from libs.common.config import GatewayConfig
from libs.common.errors import NotFound, UpstreamFailed
from libs.common.leases import Checked
from libs.common.metrics import Metrics
from libs.common.pricebook import PriceBook
from libs.common.runtime import spawn
from services.gateway import asgi, ratelimits
from services.gateway.attempts import Attempts, Sent
from services.gateway.headers import Headers, caller_response
from services.gateway.pool import Pool
from services.gateway.upstream import Call, Response, read_whole

_ANSWER_BYTES_MAX: Final = 8 * 1024 * 1024
_ODD_ANSWER: Final = "The upstream sent an answer this relay cannot read; please try again."
_ODD_LIST: Final = "The upstream sent a model list this relay cannot read; please try again."


class _Entry(msgspec.Struct):
    id: str


_decode_list: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_entries: Final = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_entry: Final = msgspec.json.Decoder(_Entry).decode


class Visit(msgspec.Struct, frozen=True):
    """One request here, and what its key may do."""

    request_id: str
    account_id: str
    checked: Checked
    book: PriceBook


class FreePaths:
    """Forwards what is free, and shows of the upstream's models only those on offer here."""

    def __init__(self, pool: Pool, config: GatewayConfig, metrics: Metrics) -> None:
        self._pool = pool
        self._config = config
        self._metrics = metrics

    async def forward(self, call: Call, receive: Receive, send: Send, visit: Visit) -> None:
        """Pass an answer byte for byte."""
        response, body = await self._fetch(call, receive, visit)
        await _answer(send, response, body, visit)

    async def model(self, call: Call, model: str, receive: Receive, send: Send, visit: Visit) -> None:
        """One model, if we price it and the key may use it."""
        if not _is_on_offer(model, visit):
            raise NotFound(f"model: {model}")
        await self.forward(call, receive, send, visit)

    async def models(self, call: Call, receive: Receive, send: Send, visit: Visit) -> None:
        """The upstream's list less what has no price here or is not for this key; each entry as the upstream wrote it."""
        response, body = await self._fetch(call, receive, visit)
        if response.status == 200:
            try:
                body = _on_offer(body, visit)
            except (msgspec.MsgspecError, UnicodeDecodeError):
                raise UpstreamFailed(_ODD_LIST) from None
        await _answer(send, response, body, visit)

    async def _fetch(self, call: Call, receive: Receive, visit: Visit) -> tuple[Response, bytes]:
        """The answer, whole. Raises CallerLeft, with the upstream let go, when nobody waits for it any more."""
        attempts = Attempts(
            self._pool,
            self._config,
            self._metrics,
            account_id=visit.account_id,
            request_id=visit.request_id,
            free=True,
        )
        deadline = asyncio.timeout(None)

        async def watch() -> None:
            await asgi.until_disconnect(receive)
            deadline.reschedule(asyncio.get_running_loop().time())

        watching = spawn(watch(), name="watch-caller")
        try:
            async with deadline:
                return await _read(await attempts.send(call))
        except TimeoutError:
            if deadline.expired():
                raise asgi.CallerLeft from None
            raise
        finally:
            watching.cancel()
            attempts.release()


def _on_offer(body: bytes, visit: Visit) -> bytes:
    page: dict[str, Any] = dict(_decode_list(body))
    entries = _decode_entries(page["data"]) if "data" in page else []
    page["data"] = [entry for entry in entries if _is_on_offer(_decode_entry(entry).id, visit)]
    return msgspec.json.encode(page)


def _is_on_offer(model: str, visit: Visit) -> bool:
    row, allowed = visit.book.find(model), visit.checked.models
    return row is not None and (not allowed or row.id in allowed)


async def _read(sent: Sent) -> tuple[Response, bytes]:
    response = sent.response
    try:
        if sent.body is not None:
            return response, sent.body
        if response.status >= 300:
            raise UpstreamFailed(_ODD_ANSWER)
        return response, await read_whole(response, bytes_max=_ANSWER_BYTES_MAX)
    finally:
        await response.aclose()


async def _answer(send: Send, response: Response, body: bytes, visit: Visit) -> None:
    status = response.status
    headers: Headers = [
        pair
        for pair in caller_response(response.headers, status, relay_request_id=visit.request_id.encode())
        if pair[0] != b"content-length"
    ]
    headers += ratelimits.headers(visit.checked.figures)
    headers.append((b"content-length", str(len(body)).encode()))
    await asgi.answer(send, status, headers, body)
