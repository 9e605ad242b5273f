"""The models the simulator offers, in the shape of the API's own list."""

from typing import Any, Final

_ALIASES: Final = {
    "claude-haiku-4-5": "claude-haiku-4-5-20251001",
    "claude-sonnet-4-5": "claude-sonnet-4-5-20250929",
    "claude-sonnet-4": "claude-sonnet-4-20250514",
    "claude-opus-4-1": "claude-opus-4-1-20250805",
    "claude-opus-4": "claude-opus-4-20250514",
}
_PLAIN: Final = (
    "claude-opus-4-7",
    "claude-sonnet-4-6",
    "claude-fable-5-2",
    "claude-fable-5-1",
    "claude-fable-5",
    "claude-opus-5-5",
    "claude-opus-5",
    "claude-opus-4-8",
    "claude-opus-4-6",
    "claude-opus-4-5",
    "claude-sonnet-5-5",
    "claude-sonnet-5",
    "claude-haiku-5-5",
    "claude-unpriced-1",
)
MODELS: Final = (*_PLAIN, *_ALIASES.values())


def answering_model(asked: str) -> str | None:
    """The id a response carries for the one asked for; None for an unknown model."""
    if asked in _ALIASES:
        return _ALIASES[asked]
    return asked if asked in MODELS else None


def listed() -> list[dict[str, Any]]:
    """Entries of `GET /v1/models`; an alias is shown under its own name."""
    return [entry(name) for name in (*_PLAIN, *_ALIASES, *_ALIASES.values())]


def entry(model: str) -> dict[str, Any]:
    """One entry."""
    name = model.removeprefix("claude-").replace("-", " ").title()
    return {
        "type": "model",
        "id": model,
        "display_name": f"Claude {name}",
        "created_at": "2026-01-01T00:00:00Z",
        "max_input_tokens": 200_000,
        "max_tokens": 64_000,
        "capabilities": {"vision": {"supported": True}},
    }
