"""How many tokens a request has, by a rule of the simulator's own, and the prompt cache with the API's arithmetic."""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

_BYTES_PER_TOKEN: Final = 3.5
_BLOCK_OVERHEAD: Final = 3
_IMAGE_TOKENS: Final = 1600
_CACHEABLE_MIN: Final = 1024
_TTL_S: Final = {"5m": 300.0, "1h": 3600.0}
BREAKPOINTS_MAX: Final = 4


@dataclass(frozen=True)
class Block:
    """A piece of the prompt, in prompt order."""

    tokens: int
    digest: bytes
    ttl: str
    """`5m` or `1h` where a cache breakpoint stands behind it, else empty."""


@dataclass(frozen=True)
class InputUsage:
    """How the input of a request splits."""

    uncached: int
    read: int
    written_5m: int
    written_1h: int

    @property
    def total(self) -> int:
        """All of it: what count_tokens says."""
        return self.uncached + self.read + self.written_5m + self.written_1h


def blocks(body: dict[str, Any]) -> list[Block]:
    """Tools, system, messages: the order in which the API caches."""
    return [_block(value) for value in _pieces(body)]


def count(body: dict[str, Any]) -> int:
    """Input tokens of a request."""
    return sum(block.tokens for block in blocks(body))


def _pieces(body: dict[str, Any]) -> Iterator[Any]:
    yield from body.get("tools") or []
    system = body.get("system") or []
    yield from [system] if isinstance(system, str) else system
    for message in body.get("messages") or []:
        content = message.get("content") or ""
        yield from [content] if isinstance(content, str) else content


def _block(value: Any) -> Block:
    control = value.get("cache_control") if isinstance(value, dict) else None
    plain = {key: item for key, item in value.items() if key != "cache_control"} if isinstance(value, dict) else value
    text = json.dumps(plain, sort_keys=True, ensure_ascii=False)
    media = isinstance(value, dict) and value.get("type") in ("image", "document")
    tokens = _IMAGE_TOKENS if media else math.ceil(len(text.encode("utf-8", "replace")) / _BYTES_PER_TOKEN)
    ttl = (control.get("ttl") or "5m") if isinstance(control, dict) else ""
    return Block(tokens + _BLOCK_OVERHEAD, hashlib.sha256(text.encode("utf-8", "replace")).digest(), ttl)


class PromptCache:
    """Prefixes by (workspace, model), with expiry; a hit renews it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._expiries: dict[bytes, tuple[float, float]] = {}

    def use(self, scope: str, body: dict[str, Any]) -> InputUsage:
        """Read the longest cached prefix, write what the breakpoints behind it ask for."""
        now = self._clock()
        digest = hashlib.sha256(scope.encode())
        total = read = 0
        writes: list[tuple[int, str, bytes]] = []
        for block in blocks(body):
            digest.update(block.digest)
            total += block.tokens
            if not block.ttl or total < _CACHEABLE_MIN:
                continue
            name = digest.digest()
            expires, ttl_s = self._expiries.get(name, (0.0, 0.0))
            if expires > now:
                read = total
                self._expiries[name] = (now + ttl_s, ttl_s)
                writes.clear()
            else:
                writes.append((total, block.ttl, name))
        written = {"5m": 0, "1h": 0}
        reached = read
        for until, ttl, name in writes:
            written[ttl] += until - reached
            reached = until
            self._expiries[name] = (now + _TTL_S[ttl], _TTL_S[ttl])
        return InputUsage(total - reached, read, written["5m"], written["1h"])


def text_tokens(text: str) -> int:
    """Output tokens of a text."""
    return math.ceil(len(text) / 4)
