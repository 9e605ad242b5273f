"""The only place that speaks HTTP: one call, its retries, and what an answer that is no success means."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import httpx2

from libs.relayctl import text
from libs.relayctl.failures import Failure, NotAllowed, Refused, Trouble

_CONNECT_S: Final = 10.0
_TRIES_OF_GET: Final = 3
_BACK_OFF_S: Final = 0.5
_RETRY_AFTER_S_MAX: Final = 10.0
_ANSWER_BYTES_MAX: Final = 256 << 20
_DETAIL_CHARS_MAX: Final = 4000
_OPEN_END: Final = "It may have been done: look before you send it again."
Query = Sequence[tuple[str, str]]


class Client:
    """Calls of one server. `secrets` are struck out of whatever goes wrong."""

    def __init__(
        self,
        url: str,
        token: str,
        *,
        timeout_seconds: float,
        secrets: Sequence[str] = (),
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.url = url
        self.has_token = bool(token)
        self._secrets = [token, *secrets]
        self._headers = {"user-agent": "relayctl", **(bearer(token) if token else {})}
        timeout = httpx2.Timeout(timeout_seconds, connect=min(_CONNECT_S, timeout_seconds))
        self._client = httpx2.Client(timeout=timeout, follow_redirects=False)
        self._sleep = sleep

    def hide(self, secret: str) -> None:
        """Strike this out, too."""
        self._secrets.append(secret)

    def close(self) -> None:
        """Its connections."""
        self._client.close()

    @contextlib.contextmanager
    def open(
        self,
        method: str,
        path: str,
        *,
        query: Query = (),
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> Iterator[httpx2.Response]:
        """An answer that is a success (or 304), its body not read yet. Raises Refused, NotAllowed, Trouble.

        A GET that finds no connection or a 5xx answer is tried three times; nothing else is sent twice.
        """
        sent = {**self._headers, **(headers or {})}
        if body is not None:
            sent["content-type"] = "application/json"
        build = self._client.build_request
        with self._trouble(method):
            request = build(method, self.url + path, params=list(query) or None, headers=sent, content=body)
            response = self._sent(request, _TRIES_OF_GET if method == "GET" else 1)
            try:
                if not response.is_success and response.status_code != 304:
                    raise self._failure(response)
                yield response
            finally:
                response.close()

    def read(self, response: httpx2.Response) -> bytes:
        """The whole body. Raises Trouble."""
        data = bytearray()
        for piece in response.iter_bytes():
            data += piece
            if len(data) > _ANSWER_BYTES_MAX:
                raise Trouble(f"the answer is longer than {_ANSWER_BYTES_MAX} bytes")
        return bytes(data)

    def _sent(self, request: httpx2.Request, tries: int) -> httpx2.Response:
        for number in range(1, tries + 1):
            wait_s = _BACK_OFF_S * 2 ** (number - 1)
            try:
                response = self._client.send(request, stream=True)
            except httpx2.TransportError:
                if number == tries:
                    raise
            else:
                if response.status_code < 500 or number == tries:
                    return response
                wait_s = max(wait_s, _retry_after(response))
                response.close()
            self._sleep(wait_s)
        raise AssertionError("the last try returns or raises")

    @contextlib.contextmanager
    def _trouble(self, method: str) -> Iterator[None]:
        try:
            yield
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            raise Trouble(f"no connection to {self.url}: {self.clean(str(error))}") from None
        except httpx2.TimeoutException:
            raise Trouble(self._cut(f"{self.url} does not answer in time", method)) from None
        except httpx2.HTTPError as error:
            words = f"the connection to {self.url} broke: {self.clean(str(error))}"
            raise Trouble(self._cut(words, method)) from None
        except httpx2.InvalidURL:
            raise Trouble(f"{self.url} cannot be called") from None

    def _cut(self, words: str, method: str) -> str:
        return words if method == "GET" else f"{words}. {_OPEN_END}"

    def _failure(self, response: httpx2.Response) -> Failure:
        status = response.status_code
        detail = self._detail(response)
        if status in (401, 403):
            return NotAllowed(detail)
        if 400 <= status < 500:
            return Refused(detail)
        if status >= 500:
            return Trouble(f"{detail} (status {status})")
        return Trouble(f"{self.url} answers with status {status}: is this the control plane?")

    def _detail(self, response: httpx2.Response) -> str:
        try:
            value: Any = json.loads(self.read(response))
            detail = value["detail"] if "detail" in value else value["error"]["message"]
            return self.clean(str(detail)[:_DETAIL_CHARS_MAX])
        except (ValueError, KeyError, TypeError):
            return f"the server answers {response.status_code} {self.clean(response.reason_phrase)}".rstrip()

    def clean(self, words: str) -> str:
        """Words for the terminal: no secret, nothing that moves the cursor."""
        return text.plain(text.without_secrets(words, self._secrets))


def bearer(token: str) -> dict[str, str]:
    """The header that says who calls."""
    return {"authorization": f"Bearer {token}"}


def _retry_after(response: httpx2.Response) -> float:
    value = response.headers.get("retry-after", "")
    return min(float(value), _RETRY_AFTER_S_MAX) if value.isascii() and value.isdigit() else 0.0
