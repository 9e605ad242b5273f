"""Which headers cross the relay, in either direction. Rules: PROTOCOL.md, section 3.

Header lists are ASGI's: pairs of lower-case name and value, both bytes.
"""

import re
from functools import lru_cache
from typing import Final

Headers = list[tuple[bytes, bytes]]

_HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
_REQUEST_DROPPED: Final = _HOP_BY_HOP | {
    b"x-api-key",
    b"authorization",
    b"host",
    b"content-length",
    b"expect",
    b"accept-encoding",
    b"cookie",
    b"anthropic-workspace-id",
    b"anthropic-user-profile-id",
    b"anthropic-organization-id",
    b"forwarded",
    b"via",
    b"x-forwarded",
    b"x-real-ip",
    b"x-client-ip",
    b"x-cluster-client-ip",
    b"true-client-ip",
    b"x-http-method-override",
    b"x-rewrite-url",
    b"http2-settings",
    b"max-forwards",
    b"cdn-loop",
    b"range",
}
"""Who pays and who calls is said by us; the way here is nobody's business; the body's length is counted anew."""
_REQUEST_DROPPED_PREFIXES: Final = (b"if-", b"x-forwarded-", b"x-original-", b"x-envoy-", b"cf-", b"x-relay-")
_RESPONSE_KEPT: Final = frozenset(
    {
        b"content-type",
        b"content-length",
        b"content-encoding",
        b"request-id",
        b"x-should-retry",
        b"cache-control",
        b"content-disposition",
    }
)
_PRINTABLE: Final = re.compile(rb"[\t\x20-\x7e]*")
_RETRY_AFTER_STATUSES: Final = frozenset({429, 503, 529})
_RETRY_AFTER_SECONDS_MAX: Final = 60
"""SDKs sleep for as long as they are told, a day if need be (PROTOCOL.md, section 1)."""
_RETRY_AFTER: Final = re.compile(rb"[0-9]{1,9}")
_NAMES_MAX: Final = 256
"""What is remembered of names and agents has a bound, because callers choose them: a head has 32 KB, so 8 MB at most."""
_CLIENTS: Final = {
    b"claude-cli": "claude-code",
    b"claude-code": "claude-code",
    b"Anthropic/Python": "anthropic-python",
    b"AsyncAnthropic/Python": "anthropic-python",
    b"Anthropic/JS": "anthropic-typescript",
    b"opencode": "opencode",
    b"ai-sdk": "ai-sdk",
    b"Cline": "cline",
    b"RooCode": "roo-code",
    b"Zed": "zed",
    b"litellm": "litellm",
    b"curl": "curl",
}
"""By the product at the head of `user-agent`; of Anthropic's SDKs with the language behind it."""


def upstream_request(headers: Headers, *, credential: bytes, connection_listed: frozenset[bytes]) -> Headers:
    """The caller's headers as the upstream gets them: ours instead of his credential, nothing about the way here."""
    kept = [pair for pair in headers if _is_forwarded(pair[0]) and pair[0] not in connection_listed]
    kept.append((b"x-api-key", credential))
    kept.append((b"accept-encoding", b"identity"))
    return kept


@lru_cache(maxsize=_NAMES_MAX)
def _is_forwarded(name: bytes) -> bool:
    if name in _REQUEST_DROPPED or name.startswith(_REQUEST_DROPPED_PREFIXES):
        return False
    return name.replace(b"_", b"-") not in _REQUEST_DROPPED  # some servers take one for the other


def caller_response(headers: Headers, status: int, *, relay_request_id: bytes) -> Headers:
    """The upstream's headers as the caller gets them: an allowlist, printable ASCII only."""
    kept = [
        (name, sent)
        for raw_name, sent in headers
        if (name := raw_name.lower()) in _RESPONSE_KEPT and _PRINTABLE.fullmatch(sent)
    ]
    if status in _RETRY_AFTER_STATUSES and _RETRY_AFTER.fullmatch(seconds := value(headers, b"retry-after")):
        kept.append((b"retry-after", str(min(int(seconds), _RETRY_AFTER_SECONDS_MAX)).encode()))
    kept.append((b"x-relay-request-id", relay_request_id))
    return kept


def credential(headers: Headers) -> bytes | None:
    """The key of a request: `x-api-key`, else `Authorization: Bearer`, as at Anthropic; None if there is neither."""
    bearer = b""
    for name, sent in headers:
        if name == b"x-api-key" and (key := sent.strip()):
            return key
        if name == b"authorization":
            scheme, _, token = sent.strip().partition(b" ")
            bearer = token.strip() if scheme.lower() == b"bearer" else b""
    return bearer or None


def value(headers: Headers, name: bytes) -> bytes:
    """The first value of a header, b"" if it is absent."""
    for key, found in headers:
        if key.lower() == name:
            return found
    return b""


def by_name(headers: Headers) -> dict[bytes, bytes]:
    """The first value of each header of a request: where more than one is looked for, this is cheaper than `value`."""
    return dict(reversed(headers))


@lru_cache(maxsize=_NAMES_MAX)
def client_family(agent: bytes) -> str:
    """Which program calls, from its `user-agent`; `other` for those we do not know, and `` without one."""
    if not agent:
        return ""
    product, _, rest = agent.partition(b"/")
    if product.endswith(b"Anthropic"):
        product += b"/" + rest.partition(b" ")[0]
    return _CLIENTS.get(product, "other")
