"""The API's errors: their exact shapes, which requests it refuses, and the refusals a scenario asks for."""

import json
from dataclasses import dataclass, field, replace
from typing import Any, Final

from libs.localstack.simulator import catalogue, tokens
from libs.localstack.simulator.scenarios import SCENARIOS, Scenario

ORGANIZATION_ID: Final = "5f1c1a5e-7a11-4b0b-9c3d-510000000001"
BODY_BYTES_MAX: Final = 32 * 1024 * 1024
_BREAKPOINTS_MAX: Final = 4
_TYPES: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_MESSAGES: Final = {
    401: "invalid x-api-key",
    402: "Your organization's credit balance is too low to access the API. Please go to Plans & Billing.",
    403: "Your API key does not have permission to use the specified resource.",
    404: "The requested resource could not be found.",
    413: "Request exceeds the maximum size",
    429: (
        "This request would exceed your organization's rate limit of 30,000 input tokens per minute "
        f"(org: {ORGANIZATION_ID}, model: claude-sonnet-4-6). For details, refer to: "
        "https://docs.claude.com/en/api/rate-limits. You can see the response headers for current usage."
    ),
    500: "Internal server error",
    504: "Request timed out",
    529: "Overloaded",
}
_SPEND: Final = "You have reached your specified API usage limits. You will regain access on 2026-12-01 at 00:00 UTC."
_ENFORCED: Final = (
    "You have reached your API usage limits: your organization has crossed its monthly API usage threshold, set based on "
    "your organization's API tier. You will regain access on 2026-12-01 at 00:00 UTC."
)
_HOLD: Final = f"This organization ({ORGANIZATION_ID}) has been placed on hold. Please contact support."


@dataclass
class ApiError(Exception):
    """An answer with an HTTP status of 400 or more."""

    status: int
    message: str
    type: str = ""
    details: dict[str, Any] | None = None
    headers: dict[str, str] = field(default_factory=dict)

    def body(self, request_id: str) -> dict[str, Any]:
        """As the API writes it."""
        error: dict[str, Any] = {"type": self.type or type_of(self.status), "message": self.message}
        if self.details is not None:
            error["details"] = self.details
        return {"type": "error", "error": error, "request_id": request_id}


def type_of(status: int) -> str:
    """The API's name for a status."""
    return _TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")


def status_of(error_type: str) -> int:
    """The status that has this type; 500 for one nobody knows."""
    return next((status for status, name in _TYPES.items() if name == error_type), 500)


def standard(status: int, message: str = "", *, retry_after: str = "") -> ApiError:
    """The API's usual answer of that status."""
    headers = {"x-should-retry": "true"} if status in (408, 409, 429) or status >= 500 else {}
    if retry_after or status in (429, 503, 529):
        headers["retry-after"] = retry_after or "1"
    return ApiError(status, message or _MESSAGES.get(status, "Error"), headers=headers)


def raise_asked_for(scenario: Scenario, *, stream: bool = False) -> None:
    """Raise the error a scenario wants in place of an answer."""
    retry_after = scenario.text("retry_after", "")
    match scenario.name:
        case "error":
            raise standard(scenario.number("status", 500), scenario.text("message", ""), retry_after=retry_after)
        case "spend_limit":
            raise ApiError(400, _SPEND)
        case "enforced_spend_limit":
            raise ApiError(429, _ENFORCED, details={"error_code": "enforced_spend_limit_reached"})
        case "on_hold":
            raise ApiError(403, _HOLD, details={"error_code": "organization_on_hold"})
        case "overloaded":
            raise standard(529, retry_after=retry_after)
        case "error_event" if not stream:
            kind = scenario.text("type", _TYPES[529])
            raise replace(standard(status_of(kind), scenario.text("message", "")), type=kind)
        case name if name and name not in SCENARIOS:
            raise ApiError(400, f"x-sim-scenario: there is no {name!r}")


def object_of(content_type: str, body: bytes) -> dict[str, Any]:
    """The body as JSON. Raises ApiError."""
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise ApiError(400, "content-type: must be application/json")
    if len(body) > BODY_BYTES_MAX:
        raise standard(413)
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"The request body is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ApiError(400, "Input should be a valid dictionary")
    return value


def check_prompt(body: dict[str, Any]) -> str:
    """What every request with a prompt must fulfil; the model that answers. Raises ApiError."""
    model = body.get("model")
    if not isinstance(model, str):
        raise ApiError(400, "model: Field required")
    answering = catalogue.answering_model(model)
    if answering is None:
        raise ApiError(404, f"model: {model}")
    _check_messages(body.get("messages"))
    for name, kind in (("tools", dict), ("system", dict), ("stop_sequences", str)):
        value = body.get(name)
        if not (value is None or _is_list_of(value, kind) or (name == "system" and isinstance(value, str))):
            raise ApiError(400, f"{name}: Input should be a valid list")
    if not all(isinstance(tool.get("name", ""), str) for tool in body.get("tools") or []):
        raise ApiError(400, "tools: Input does not match the expected shape.")
    _check_breakpoints(tokens.cache_controls(body))
    return answering


def check_max_tokens(body: dict[str, Any]) -> int:
    """How much may be said. Raises ApiError."""
    value = body.get("max_tokens")
    if value is None:
        raise ApiError(400, "max_tokens: Field required")
    if type(value) is not int:
        raise ApiError(400, "max_tokens: Input should be a valid integer")
    if value < 1:
        raise ApiError(400, "max_tokens: must be greater than or equal to 1")
    if value > catalogue.OUTPUT_TOKENS_MAX:
        raise ApiError(
            400,
            f"max_tokens: {value} > {catalogue.OUTPUT_TOKENS_MAX}, which is the maximum allowed number of output tokens "
            f"for {body['model']}",
        )
    return value


def _check_messages(messages: Any) -> None:
    if messages is None:
        raise ApiError(400, "messages: Field required")
    if not isinstance(messages, list) or not messages:
        raise ApiError(400, "messages: at least one message is required")
    for place, message in enumerate(messages):
        content = message.get("content") if isinstance(message, dict) else None
        if not isinstance(content, str) and not _is_list_of(content, dict):
            raise ApiError(400, f"messages.{place}: Input does not match the expected shape.")


def _check_breakpoints(controls: list[Any]) -> None:
    if len(controls) > _BREAKPOINTS_MAX:
        raise ApiError(
            400, f"A maximum of {_BREAKPOINTS_MAX} blocks with cache_control may be provided. Found {len(controls)}."
        )
    ttls = [(control.get("ttl") or "5m") if isinstance(control, dict) else None for control in controls]
    if not set(ttls) <= set(tokens.TTL_S):
        raise ApiError(400, "cache_control.ttl: Input should be '5m' or '1h'")
    if ttls != sorted(ttls, key=str):
        raise ApiError(400, "a ttl='1h' cache_control block must not come after a ttl='5m' cache_control block.")


def _is_list_of(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(isinstance(item, kind) for item in value)
