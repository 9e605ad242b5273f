"""Paths that cost nothing: count_tokens and the model list. A valid key is asked for, a balance is not; there is no row."""

import asyncio
from typing import Any, Final

import httpx2
import msgspec
from starlette.types import Receive, Send

from libs.common.errors import NotFound, UpstreamFailed
from libs.common.metrics import Metrics
from libs.common.pricebook import PriceBook
from libs.common.runtime import spawn
from services.gateway import asgi, masks
from services.gateway.exchange import is_packed, read_whole
from services.gateway.headers import Headers, caller_response
from services.gateway.upstream import Call, Upstream

_ANSWER_BYTES_MAX: Final = 8 * 1024 * 1024
_ODD_ANSWER: Final = "The upstream sent an answer this relay cannot read; please try again."
_ODD_LIST: Final = "The upstream sent a model list this relay cannot read; please try again."


class _Entry(msgspec.Struct):
    id: str


_decode_list: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_entries: Final = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_entry: Final = msgspec.json.Decoder(_Entry).decode


class FreePaths:
    """Forwards what is free, and shows of the upstream's models only those on offer here."""

    def __init__(self, upstream: Upstream, book: PriceBook, metrics: Metrics) -> None:
        self._upstream = upstream
        self._book = book
        self._metrics = metrics

    async def forward(self, call: Call, receive: Receive, send: Send, request_id: str) -> None:
        """Pass an answer byte for byte."""
        response, body = await self._fetch(call, receive)
        await _answer(send, response, body, request_id)

    async def model(self, call: Call, model: str, receive: Receive, send: Send, request_id: str) -> None:
        """One model, if we price it."""
        if self._book.find(model) is None:
            raise NotFound(f"model: {model}")
        await self.forward(call, receive, send, request_id)

    async def models(self, call: Call, receive: Receive, send: Send, request_id: str) -> None:
        """The upstream's list less what has no price here; each entry as the upstream wrote it."""
        response, body = await self._fetch(call, receive)
        if response.status_code == 200:
            try:
                body = self._on_offer(body)
            except (msgspec.MsgspecError, UnicodeDecodeError):
                raise UpstreamFailed(_ODD_LIST) from None
        await _answer(send, response, body, request_id)

    def _on_offer(self, body: bytes) -> bytes:
        page: dict[str, Any] = dict(_decode_list(body))
        entries = _decode_entries(page["data"]) if "data" in page else []
        page["data"] = [entry for entry in entries if self._book.find(_decode_entry(entry).id) is not None]
        return msgspec.json.encode(page)

    async def _fetch(self, call: Call, receive: Receive) -> tuple[httpx2.Response, bytes]:
        response, body = await self._read_while_caller_waits(call, receive)
        if 300 <= response.status_code < 400:
            raise UpstreamFailed(_ODD_ANSWER)
        if response.status_code >= 400:
            self._metrics.add("relay_upstream_errors_total", str(response.status_code))
            masked = masks.masked_answer(response.status_code, body, packed=is_packed(response))
            if masked is not None:
                raise masked
        return response, body

    async def _read(self, call: Call) -> tuple[httpx2.Response, bytes]:
        response = await self._upstream.send(call)
        try:
            return response, await read_whole(response, bytes_max=_ANSWER_BYTES_MAX)
        finally:
            await response.aclose()

    async def _read_while_caller_waits(self, call: Call, receive: Receive) -> tuple[httpx2.Response, bytes]:
        """Raises CallerLeft, with the upstream let go, when nobody waits for the answer any more."""
        deadline = asyncio.timeout(None)

        async def watch() -> None:
            await asgi.until_disconnect(receive)
            deadline.reschedule(asyncio.get_running_loop().time())

        watching = spawn(watch(), name="watch-caller")
        try:
            async with deadline:
                return await self._read(call)
        except TimeoutError:
            if deadline.expired():
                raise asgi.CallerLeft from None
            raise
        finally:
            watching.cancel()


async def _answer(send: Send, response: httpx2.Response, body: bytes, request_id: str) -> None:
    status = response.status_code
    headers: Headers = [
        pair
        for pair in caller_response(response.headers.raw, status, relay_request_id=request_id.encode())
        if pair[0] != b"content-length"
    ]
    headers.append((b"content-length", str(len(body)).encode()))
    await asgi.answer(send, status, headers, body)
