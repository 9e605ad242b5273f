"""What is sent, what it costs, and when an answer is whole. Shared by the load generators, the fake upstream and the rig.

The upstream is told by a word in the body how to answer, since a body reaches it whichever proxy stands between.
"""

import json
import random
from collections import Counter
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final, Literal
from urllib.parse import urlsplit

Kind = Literal["json", "body", "sse", "burst", "mix", "stamped", "held"]
EVENTS: Final = 62
"""Of every streaming answer."""
MODEL: Final = "claude-sonnet-4-6"
PLAIN_USD: Final = Decimal("0.002325")
"""25 input and 150 output tokens: what bench/upstream.py says of an answer."""
CACHED_USD: Final = Decimal("0.005925")
"""The same with 12,000 tokens read from a cache."""
CACHE_READ_TOKENS: Final = 12_000
BURST: Final = "[burst]"
CACHED: Final = "[cached]"
STAMPED: Final = "[stamped]"
HELD: Final = "[held]"
RELEASE: Final = "[release]"
"""Ends every answer that is held."""
MIX_SEED: Final = 6
_MIX_BODIES: Final = 40
_MIX_CACHED: Final = 12
_MIX_BYTES: Final = (50_000, 150_000)
_LARGE_BODY_BYTES: Final = 400_000
_OK: Final = b"HTTP/1.1 200"
_TEXT: Final = 'the quick relay reads a copy of what it forwards and counts every token, "as is".'
_HEADERS: Final = {"anthropic-version": "2023-06-01", "content-type": "application/json", "user-agent": "bench"}
_SDK_HEADERS: Final = {
    **_HEADERS,
    "accept": "application/json",
    "accept-encoding": "gzip, deflate",
    "anthropic-beta": "claude-code-20250219,interleaved-thinking-2025-05-14,fine-grained-tool-streaming-2025-05-14",
    "anthropic-dangerous-direct-browser-access": "true",
    "user-agent": "claude-cli/2.0.31 (external, cli)",
    "x-app": "cli",
    "x-stainless-arch": "x64",
    "x-stainless-helper-method": "stream",
    "x-stainless-lang": "js",
    "x-stainless-os": "Linux",
    "x-stainless-package-version": "0.60.0",
    "x-stainless-retry-count": "0",
    "x-stainless-runtime": "node",
    "x-stainless-runtime-version": "v22.11.0",
    "x-stainless-timeout": "600",
}


def is_stream(kind: Kind) -> bool:
    """Whether its answers are SSE."""
    return kind not in ("json", "body")


def requests(kind: Kind, url: str, path: str, headers: Mapping[str, str]) -> list[bytes]:
    """The requests of a kind, whole; the n-th to be sent is the n-th of them, and after the last comes the first."""
    common = _SDK_HEADERS if kind == "mix" else _HEADERS
    lines = {"host": urlsplit(url).netloc, **common, **headers}
    head = f"POST {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    bodies = [json.dumps(body, separators=(",", ":")).encode() for body in _bodies(kind)]
    return [f"{head}content-length: {len(body)}\r\n\r\n".encode() + body for body in bodies]


def costs(kind: Kind, count: int) -> Counter[Decimal]:
    """How many of the first `count` requests cost how much."""
    if kind != "mix":
        return Counter({PLAIN_USD: count})
    cached = _mix_cached()
    return Counter(CACHED_USD if cached[number % _MIX_BODIES] else PLAIN_USD for number in range(count))


def is_whole(answer: bytearray, *, stream: bool) -> bool:
    """Whether the last byte has come. Refusals are no streams, whatever was asked for."""
    if stream and answer.startswith(_OK):
        return answer.endswith(b"0\r\n\r\n")
    end = answer.find(b"\r\n\r\n")
    if end < 0:
        return False
    length = content_length(answer[:end])
    return answer.endswith(b"0\r\n\r\n") if length is None else len(answer) >= end + 4 + length


def is_right(answer: bytearray, *, stream: bool) -> bool:
    """Whether a whole answer is a 200, and its stream one that was not cut off."""
    return answer.startswith(_OK) and stream is (b'"message_stop"' in answer)


def content_length(head: bytes | bytearray) -> int | None:
    """What a head says of the body; None: nothing."""
    lowered = head.lower()
    at = lowered.find(b"content-length:")
    return int(lowered[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else None


def _bodies(kind: Kind) -> list[dict[str, Any]]:
    marks = {"burst": BURST, "stamped": STAMPED, "held": HELD}
    if kind == "mix":
        return _mix()
    text = marks.get(kind, "") + "Hello, Claude. " * 60
    if kind == "body":
        text *= _LARGE_BODY_BYTES // len(text)
    messages = [{"role": "user", "content": text}]
    return [{"model": MODEL, "max_tokens": 1024, "stream": is_stream(kind), "messages": messages}]


def _mix() -> list[dict[str, Any]]:
    """Like those of Claude Code in the middle of a conversation: system, tools, results of tools, marks for the cache."""
    chance = random.Random(MIX_SEED)
    return [_conversation(chance, cached=cached) for cached in _mix_cached()]


def _mix_cached() -> list[bool]:
    cached = [number < _MIX_CACHED for number in range(_MIX_BODIES)]
    random.Random(MIX_SEED).shuffle(cached)
    return cached


def _conversation(chance: random.Random, *, cached: bool) -> dict[str, Any]:
    for_cache = {"cache_control": {"type": "ephemeral"}}
    names = ("Bash", "Read", "Edit", "Write", "Glob", "Grep", "Task", "WebFetch", "TodoWrite")
    tools = [{"name": name, "description": _text(chance, 1_500), "input_schema": _schema(chance)} for name in names]
    system = [{"type": "text", "text": _text(chance, 12_000), **for_cache}]
    messages: list[dict[str, Any]] = [{"role": "user", "content": CACHED if cached else "Hello, Claude."}]
    left = chance.randint(*_MIX_BYTES) - len(json.dumps([tools, system]))
    for number in range(1_000):
        called = {"type": "tool_use", "id": f"toolu_{number:03}", "name": "Read", "input": {"file_path": "app.py"}}
        text = _text(chance, min(left, chance.randint(1_000, 8_000)))
        result = {"type": "tool_result", "tool_use_id": called["id"], "content": text}
        messages += [{"role": "assistant", "content": [called]}, {"role": "user", "content": [result]}]
        left -= len(text) + 250
        if left <= 250:
            result |= for_cache
            break
    return {
        "model": MODEL,
        "max_tokens": 8192,
        "stream": True,
        "metadata": {"user_id": "user_bench_account__session_bench"},
        "system": system,
        "tools": tools,
        "messages": messages,
    }


def _schema(chance: random.Random) -> dict[str, Any]:
    fields = {
        name: {"type": "string", "description": _text(chance, 150)} for name in ("file_path", "pattern", "prompt")
    }
    return {"type": "object", "properties": fields, "required": ["file_path"], "additionalProperties": False}


def _text(chance: random.Random, size: int) -> str:
    """Words and lines, with what JSON must escape."""
    words = chance.choices(_TEXT.split(), k=max(1, size // 6))
    return "".join(word + (" " if number % 12 else "\n") for number, word in enumerate(words))[: max(size, 1)]
