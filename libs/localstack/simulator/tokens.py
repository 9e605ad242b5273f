"""How many tokens a request has, by a rule of the simulator's own, and the prompt cache with the API's arithmetic."""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

_BYTES_PER_TOKEN: Final = 3.5
_CHARS_PER_TOKEN: Final = 4
_BLOCK_OVERHEAD: Final = 3
_MEDIA_TOKENS: Final = 1600
_CACHEABLE_MIN: Final = 1024
_BLOCKS_LOOKED_AT: Final = 20
_PREFIXES_MAX: Final = 100_000
TTL_S: Final = {"5m": 300.0, "1h": 3600.0}


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
    found = [_block(place, value) for place, value in _pieces(body)]
    automatic = body.get("cache_control")
    if automatic and not found[-1].ttl:
        found[-1] = replace(found[-1], ttl=automatic.get("ttl") or "5m")
    return found


def count(body: dict[str, Any]) -> int:
    """Input tokens of a request."""
    return sum(block.tokens for block in blocks(body))


def text_tokens(text: str) -> int:
    """Output tokens of a text."""
    return math.ceil(len(text) / _CHARS_PER_TOKEN)


def bounded(text: str, tokens: int) -> str:
    """The part of a text that has at most so many tokens."""
    return text[: tokens * _CHARS_PER_TOKEN]


def cache_controls(body: dict[str, Any]) -> list[Any]:
    """Every cache breakpoint of a request, in prompt order, the automatic one at its end last."""
    found = []
    for _, value in _pieces(body):
        if isinstance(value, dict):
            inner = value.get("content")
            nested = [item for item in inner if isinstance(item, dict)] if isinstance(inner, list) else []
            found += [item["cache_control"] for item in [*nested, value] if item.get("cache_control")]
    return [*found, body["cache_control"]] if body.get("cache_control") else found


def _pieces(body: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for tool in body.get("tools") or []:
        yield "tool", tool
    for text in _listed(body.get("system")):
        yield "system", text
    for message in body.get("messages") or []:
        for item in _listed(message.get("content")):
            yield str(message.get("role")), item


def _listed(content: Any) -> list[Any]:
    """A string is the same to the cache as a list of one text."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return content if isinstance(content, list) else []


def _block(place: str, value: Any) -> Block:
    media: list[bytes] = []
    text = json.dumps([place, _plain(value, media)], sort_keys=True, ensure_ascii=False).encode("utf-8", "replace")
    tokens = math.ceil(len(text) / _BYTES_PER_TOKEN) + _BLOCK_OVERHEAD + _MEDIA_TOKENS * len(media)
    controls = cache_controls({"tools": [value]})
    ttl = (controls[-1].get("ttl") or "5m") if controls else ""
    return Block(tokens, hashlib.sha256(text + b"".join(media)).digest(), ttl)


def _plain(value: Any, media: list[bytes]) -> Any:
    """The value without its breakpoints, and without the data of images and documents, whose digests go to `media`."""
    if isinstance(value, list):
        return [_plain(item, media) for item in value]
    if not isinstance(value, dict):
        return value
    source = value.get("source")
    if value.get("type") in ("image", "document") and isinstance(source, dict) and source.get("type") != "text":
        media.append(hashlib.sha256(json.dumps(source, sort_keys=True).encode()).digest())
        value = {**value, "source": ""}
    return {name: _plain(item, media) for name, item in value.items() if name != "cache_control"}


class PromptCache:
    """Prefixes by scope (workspace and model), with expiry; a hit renews it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._entries: dict[bytes, tuple[float, float]] = {}
        """Digest of a prefix → (when it expires, its time to live in seconds)."""

    def use(self, scope: str, body: dict[str, Any]) -> InputUsage:
        """Read the longest cached prefix, write what the breakpoints behind it ask for.

        As the API documents it: a breakpoint looks for a cached prefix at 20 blocks, its own being the first; at least
        1,024 tokens are needed; a breakpoint behind the hit writes from the last one up to itself.
        """
        now, digest, total = self._clock(), hashlib.sha256(scope.encode()), 0
        prefixes: list[tuple[int, bytes, str]] = []
        for block in blocks(body):
            digest.update(block.digest)
            total += block.tokens
            prefixes.append((total, digest.digest(), block.ttl))
        points = [place for place, (upto, _, ttl) in enumerate(prefixes) if ttl and upto >= _CACHEABLE_MIN]
        hit = max((self._hit(prefixes, point, now) for point in points), default=-1)
        reached = read = prefixes[hit][0] if hit >= 0 else 0
        written = {"5m": 0, "1h": 0}
        for upto, name, ttl in (prefixes[point] for point in points if point > hit):
            written[ttl] += upto - reached
            reached = upto
            self._keep(name, now, TTL_S[ttl])
        return InputUsage(total - reached, read, written["5m"], written["1h"])

    def _hit(self, prefixes: list[tuple[int, bytes, str]], point: int, now: float) -> int:
        """The last block of the longest cached prefix a breakpoint finds, renewed; -1 for none."""
        for place in range(point, max(point - _BLOCKS_LOOKED_AT, -1), -1):
            name = prefixes[place][1]
            expires, ttl_s = self._entries.get(name, (0.0, 0.0))
            if expires > now:
                self._keep(name, now, ttl_s)
                return place
        return -1

    def _keep(self, name: bytes, now: float, ttl_s: float) -> None:
        self._entries.pop(name, None)
        if len(self._entries) >= _PREFIXES_MAX:
            del self._entries[next(iter(self._entries))]  # the one that was not used for longest
        self._entries[name] = (now + ttl_s, ttl_s)
