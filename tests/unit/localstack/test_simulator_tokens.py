"""The prompt cache's arithmetic, for any prompt: what is read, written and neither adds up, and the documented rules hold."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from libs.localstack.simulator.tokens import Block, PromptCache, blocks, bounded, cache_controls, count, text_tokens

CONTROL = st.sampled_from([None, None, {"type": "ephemeral"}, {"type": "ephemeral", "ttl": "1h"}])
TEXTS = st.tuples(st.integers(0, 4000), st.sampled_from("abc"), CONTROL)


class Clock:
    """A clock for tests."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def text(size: int, letter: str, control: Any) -> dict[str, Any]:
    block: dict[str, Any] = {"type": "text", "text": letter * size}
    return block if control is None else {**block, "cache_control": control}


@st.composite
def prompts(draw: st.DrawFn) -> dict[str, Any]:
    """Up to 4 breakpoints, the hours before the minutes, as the API demands."""
    drawn = draw(st.lists(TEXTS, min_size=1, max_size=8))
    controls = sorted((control for *_, control in drawn if control), key=lambda control: control.get("ttl", "5m"))[:4]
    content = [text(size, letter, controls.pop(0) if control and controls else None) for size, letter, control in drawn]
    split = draw(st.integers(0, len(content) - 1))
    return {"system": content[:split], "messages": [{"role": "user", "content": content[split:]}]}


def points(found: list[Block]) -> list[tuple[int, str]]:
    """(tokens up to it, time to live) of each breakpoint that counts."""
    upto, kept = 0, []
    for block in found:
        upto += block.tokens
        if block.ttl and upto >= 1024:
            kept.append((upto, block.ttl))
    return kept


@given(st.lists(prompts(), min_size=1, max_size=4))
def test_any_sequence_adds_up(sequence: list[dict[str, Any]]) -> None:
    clock = Clock()
    cache = PromptCache(clock)
    for number, body in enumerate(sequence):
        first, again = cache.use("a", body), cache.use("a", body)
        kept = points(blocks(body))
        last = kept[-1][0] if kept else 0
        assert first.total == again.total == count(body)
        assert min(first.uncached, first.read, first.written_5m, first.written_1h) >= 0
        assert first.read + first.written_5m + first.written_1h == last == again.read
        assert again.written_5m == again.written_1h == 0 and again.uncached == first.uncached
        hour = max((upto for upto, ttl in kept if ttl == "1h"), default=0)
        assert first.written_1h == max(0, hour - first.read)
        assert cache.use(f"another workspace {number}", body).read == 0


@given(prompts())
def test_what_expired_is_written_again(body: dict[str, Any]) -> None:
    clock = Clock()
    cache = PromptCache(clock)
    first = cache.use("a", body)
    clock.now += 3601
    assert cache.use("a", body) == first


def test_a_hit_renews_five_minutes() -> None:
    clock = Clock()
    cache = PromptCache(clock)
    body = {"messages": [{"role": "user", "content": [text(8000, "a", {"type": "ephemeral"})]}]}
    written = cache.use("a", body).written_5m
    for _ in range(3):
        clock.now += 299
        assert cache.use("a", body).read == written
    clock.now += 301
    assert cache.use("a", body).written_5m == written


def test_less_than_1024_tokens_are_not_cached() -> None:
    body = {"messages": [{"role": "user", "content": [text(3300, "a", {"type": "ephemeral"})]}]}
    assert count(body) < 1024
    cache = PromptCache()
    assert cache.use("a", body) == cache.use("a", body) and cache.use("a", body).uncached == count(body)


def conversation(turns: int) -> dict[str, Any]:
    """The breakpoint moves on to the newest message, as Claude Code moves it."""
    content = [text(6000 if turn == 0 else 400, "abc"[turn % 3], None) for turn in range(turns)]
    content[-1]["cache_control"] = {"type": "ephemeral"}
    return {"messages": [{"role": "user", "content": [item]} for item in content]}


def test_a_conversation_reads_what_the_turn_before_has_written() -> None:
    cache, before = PromptCache(), 0
    for turns in range(1, 60, 19):
        usage = cache.use("a", conversation(turns))
        assert usage.read == before and usage.uncached == 0
        before = usage.total


def test_a_breakpoint_looks_at_twenty_blocks_and_no_further() -> None:
    cache = PromptCache()
    cache.use("a", conversation(1))
    assert cache.use("a", conversation(21)).read == 0
    cache.use("b", conversation(1))
    assert cache.use("b", conversation(20)).read > 0


def test_a_string_is_a_list_of_one_text_and_breakpoints_are_not_content() -> None:
    as_text = {"system": "x" * 9000, "messages": [{"role": "user", "content": "Hi"}]}
    marked = text(9000, "x", {"type": "ephemeral"})
    as_list = {"system": [marked], "messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]}
    assert [block.digest for block in blocks(as_text)] == [block.digest for block in blocks(as_list)]
    nested = {"type": "tool_result", "tool_use_id": "1", "content": [marked]}
    body = {"messages": [{"role": "user", "content": [nested]}]}
    assert cache_controls(body) == [marked["cache_control"]] and blocks(body)[0].ttl == "5m"


def test_automatic_caching_stands_behind_the_last_block() -> None:
    body = {**conversation(3), "cache_control": {"type": "ephemeral", "ttl": "1h"}}
    body["messages"][-1]["content"][0].pop("cache_control")
    assert PromptCache().use("a", body).written_1h == count(body)


def test_two_images_differ() -> None:
    def image(data: str) -> dict[str, Any]:
        source = {"type": "base64", "media_type": "image/png", "data": data}
        return {"messages": [{"role": "user", "content": [{"type": "image", "source": source}]}]}

    assert count(image("aaaa")) == count(image("b" * 100_000))
    assert blocks(image("aaaa"))[0].digest != blocks(image("bbbb"))[0].digest


@given(st.text(), st.integers(1, 50))
def test_a_bounded_text_is_within_its_bound(text: str, tokens: int) -> None:
    assert text_tokens(bounded(text, tokens)) <= tokens and text.startswith(bounded(text, tokens))
