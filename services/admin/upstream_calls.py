"""Calls of the control plane to the Claude API: its model list, which costs nothing; to try a credential, to find new models."""

import time
from typing import Annotated, Any, Final

import httpx2
import msgspec

from libs.common.events import UpstreamCredential
from libs.common.sealing import UpstreamSecret

_SECONDS: Final = 10.0
_PAGES_MAX: Final = 10
_ANSWER_BYTES_MAX: Final = 4 * 1024 * 1024
_VERSION: Final = "2023-06-01"
_Count = Annotated[int, msgspec.Meta(ge=0)]


class Listed(msgspec.Struct):
    """A model as the upstream lists it."""

    id: str
    max_input_tokens: _Count | None = None
    max_tokens: _Count | None = None


class Tried(msgspec.Struct, frozen=True):
    """How a call went."""

    status: int
    """0 if no answer came."""
    detail: str
    """Why it was no success, in our own words; empty if it was."""
    duration_ms: int
    models: list[Listed]


class _Page(msgspec.Struct):
    data: list[Listed]
    has_more: bool = False
    last_id: str | None = None


async def list_models(
    credential: UpstreamCredential, secret: UpstreamSecret, *, transport: httpx2.AsyncBaseTransport | None = None
) -> Tried:
    """All models of the upstream. Raises nothing: what goes wrong is what was to be found out."""
    began = time.monotonic()
    models: list[Listed] = []
    try:
        async with httpx2.AsyncClient(
            transport=transport,
            proxy=secret.proxy_url or None if transport is None else None,
            trust_env=False,
            follow_redirects=False,
            timeout=_SECONDS,
        ) as client:
            after = ""
            for _ in range(_PAGES_MAX):
                status, page = await _page(client, credential, secret, after)
                if isinstance(page, str):
                    return Tried(status, page, _ms(began), [])
                models += page.data
                if not page.has_more or not page.last_id:
                    break
                after = page.last_id
    except (httpx2.HTTPError, OSError, ValueError) as error:
        return Tried(0, f"No answer: {type(error).__name__}.", _ms(began), [])
    return Tried(200, "", _ms(began), models)


async def _page(
    client: httpx2.AsyncClient, credential: UpstreamCredential, secret: UpstreamSecret, after: str
) -> tuple[int, _Page | str]:
    parameters: dict[str, Any] = {"limit": 1000} | ({"after_id": after} if after else {})
    headers = {"x-api-key": secret.api_key, "anthropic-version": _VERSION}
    answer = await client.get(f"{credential.base_url}/v1/models", params=parameters, headers=headers)
    if answer.status_code != 200:
        return answer.status_code, _reason(answer.status_code)
    if len(answer.content) > _ANSWER_BYTES_MAX:
        return answer.status_code, "The model list is too long."
    try:
        return 200, msgspec.json.decode(answer.content, type=_Page)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return 200, "The answer is no model list."


def _reason(status: int) -> str:
    match status:
        case 401 | 403:
            return "The upstream does not take this API key."
        case 429:
            return "The upstream limits this API key now."
        case _ if status >= 500:
            return "The upstream has trouble."
    return f"The upstream answered {status}."


def _ms(began: float) -> int:
    return int((time.monotonic() - began) * 1000)
