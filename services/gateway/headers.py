"""Which headers cross the relay, in either direction. Rules: PROTOCOL.md, section 3.

Header lists are ASGI's: pairs of lower-case name and value, both bytes.
"""

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
    b"forwarded",
    b"via",
    b"x-real-ip",
    b"true-client-ip",
}
_REQUEST_DROPPED_PREFIXES: Final = (b"x-forwarded-", b"cf-", b"x-relay-")
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
_RETRY_AFTER_STATUSES: Final = frozenset({429, 503, 529})
_CLIENTS: Final = (
    (b"claude-cli/", "claude-code"),
    (b"Anthropic/Python", "anthropic-python"),
    (b"AsyncAnthropic/Python", "anthropic-python"),
    (b"Anthropic/JS", "anthropic-typescript"),
    (b"opencode/", "opencode"),
    (b"ai-sdk/", "ai-sdk"),
    (b"Cline/", "cline"),
    (b"RooCode/", "roo-code"),
    (b"Zed/", "zed"),
    (b"litellm/", "litellm"),
    (b"curl/", "curl"),
)


def upstream_request(headers: Headers, *, credential: bytes, connection_listed: frozenset[bytes]) -> Headers:
    """The caller's headers as the upstream gets them: ours instead of his credential, nothing about the way here."""
    kept = [
        pair
        for pair in headers
        if pair[0] not in _REQUEST_DROPPED
        and not pair[0].startswith(_REQUEST_DROPPED_PREFIXES)
        and pair[0] not in connection_listed
    ]
    kept.append((b"x-api-key", credential))
    kept.append((b"accept-encoding", b"identity"))
    return kept


def caller_response(headers: Headers, status: int, *, relay_request_id: bytes) -> Headers:
    """The upstream's headers as the caller gets them."""
    kept = [
        (name, value)
        for raw_name, value in headers
        if (name := raw_name.lower()) in _RESPONSE_KEPT or (name == b"retry-after" and status in _RETRY_AFTER_STATUSES)
    ]
    kept.append((b"x-relay-request-id", relay_request_id))
    return kept


def credential(headers: Headers) -> bytes | None:
    """The key of a request: `x-api-key`, else `Authorization: Bearer`, as at Anthropic; None if there is neither."""
    bearer: bytes | None = None
    for name, value in headers:
        if name == b"x-api-key" and value:
            return value
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            bearer = value[7:].strip()
    return bearer or None


def value(headers: Headers, name: bytes) -> bytes:
    """The first value of a header, b"" if it is absent."""
    return next((found for key, found in headers if key.lower() == name), b"")


def client_family(headers: Headers) -> str:
    """Which program calls, from `user-agent`; `other` for those we do not know, and `` without one."""
    agent = value(headers, b"user-agent")
    for prefix, family in _CLIENTS:
        if agent.startswith(prefix):
            return family
    return "other" if agent else ""
