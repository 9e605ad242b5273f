"""The models the simulator offers, in the shape of the API's own list."""

from typing import Any, Final

_ALIASES: Final = {
    "claude-haiku-4-5": "claude-haiku-4-5-20251001",
    "claude-sonnet-4-5": "claude-sonnet-4-5-20250929",
    "claude-sonnet-4": "claude-sonnet-4-20250514",
    "claude-sonnet-4-0": "claude-sonnet-4-20250514",
    "claude-opus-4-1": "claude-opus-4-1-20250805",
    "claude-opus-4": "claude-opus-4-20250514",
    "claude-opus-4-0": "claude-opus-4-20250514",
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
MODELS: Final = (*_PLAIN, *_ALIASES, *dict.fromkeys(_ALIASES.values()))
"""Every name the API knows; an alias is listed under its own name."""
OUTPUT_TOKENS_MAX: Final = 128_000


def answering_model(asked: str) -> str | None:
    """The id a response carries for the one asked for: an alias is answered by its dated model. None for an unknown model."""
    return _ALIASES.get(asked, asked) if asked in MODELS else None


def page(*, limit: int, after: str) -> dict[str, Any]:
    """`GET /v1/models`: entries behind the id `after`, at most `limit`."""
    start = MODELS.index(after) + 1 if after in MODELS else 0
    shown = MODELS[start : start + limit]
    return {
        "data": [entry(name) for name in shown],
        "has_more": start + limit < len(MODELS),
        "first_id": shown[0] if shown else None,
        "last_id": shown[-1] if shown else None,
    }


def entry(model: str) -> dict[str, Any]:
    """One entry."""
    return {
        "type": "model",
        "id": model,
        "display_name": model.replace("-", " ").title(),
        "created_at": "2026-01-01T00:00:00Z",
        "lifecycle": "active",
        "max_input_tokens": 1_000_000 if model == "claude-sonnet-4-6" else 200_000,
        "max_tokens": OUTPUT_TOKENS_MAX,
        "capabilities": {"image_input": {"supported": True}, "thinking": {"supported": True}},
    }
