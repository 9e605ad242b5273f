"""What is said: prose, thinking, a call of a tool, or a quotation of its result. Pure: the same prompt, the same answer."""

import json
import re
import zlib
from dataclasses import dataclass, field
from typing import Any, Final

from libs.localstack.simulator.invoice import Usage
from libs.localstack.simulator.samples import sample
from libs.localstack.simulator.tokens import InputUsage, bounded, text_tokens

Body = dict[str, Any]
_SENTENCES: Final = (
    "The harbour was quiet before sunrise, and the boats lay in two long rows. ",
    "Nobody remembered who had painted the lighthouse white — or why. ",
    "A letter from Kraków said that snow had fallen on the first of May: 12 cm in one night. ",
    "“We count what we carry,” said the captain, “and we carry what we count.” ",
    "In the café they served 茶 and thin slices of Käsekuchen until the lamps went out. ",
    "By noon the wind had turned; ten small flags pointed north-east ⛵🌊. ",
    "Each crate had a number, and each number stood once in the book. ",
)
_THOUGHTS: Final = (
    "The question is clear. I will answer it in order, check the figures — one by one — and keep it short. "
)
_SIGNATURE: Final = "EpADCokBCA8YAipAsfSSBF77IhHThF" + "c2ltdWxhdGVk" * 12 + "GAE="
_TOKENS_MIN, _TOKENS_SPREAD, _THINKING_TOKENS = 20, 100, 24
_QUOTED_CHARS_MAX: Final = 4000
_USE_TOOL: Final = re.compile(r"use the (\S+) tool(?:\s+with\b[^{}]{0,60}(?=\{))?", re.IGNORECASE)
_REMINDER: Final = re.compile(r"<system-reminder>.*?</system-reminder>", re.DOTALL)


@dataclass
class Answer:
    """A message, before it becomes JSON or a stream."""

    id: str
    asked: str
    model: str
    blocks: list[dict[str, Any]]
    usage_start: Usage | None
    usage_end: Usage | None
    """As `message_delta` has it."""
    stop_reason: str = "end_turn"
    stop_sequence: str | None = None
    stop_details: dict[str, Any] | None = None
    declined_models: list[str] = field(default_factory=list)
    model_last: str = ""
    """The model a JSON answer names where it is not the one a stream begins with."""
    piece_chars: int = 0
    """Characters of each delta of a stream; 0 for the usual mixture."""

    @property
    def content_empty(self) -> bool:
        """No block, or one empty text."""
        return not self.blocks or self.blocks == [text_block("")]

    @property
    def usage(self) -> Usage | None:
        """As a JSON answer has it."""
        if self.usage_start is None or self.usage_end is None:
            return None
        return {**self.usage_start, **self.usage_end}

    def said(self) -> int:
        """Output tokens of what stands in the blocks, at least one."""
        return max(1, sum(_block_tokens(block) for block in self.blocks))


def ordinary(body: Body, *, name: str, model: str, max_tokens: int, spent: InputUsage, wanted: int | None) -> Answer:
    """The answer of a request that fulfils `errors.check_prompt`; `wanted` is its length in tokens, None to choose one."""
    answer = Answer(f"msg_{name}", body["model"], model, [], None, None)
    if max_tokens > _THINKING_TOKENS:
        _think(answer, body)
    _speak(answer, body, max(1, max_tokens - _thinking_tokens(answer)), wanted)
    answer.usage_start = _usage_start(body, spent, min(4, answer.said()))
    answer.usage_end = {
        "input_tokens": spent.uncached,
        "cache_creation_input_tokens": spent.written_5m + spent.written_1h,
        "cache_read_input_tokens": spent.read,
        "output_tokens": answer.said(),
    }
    if answer.blocks[0]["type"] == "thinking":
        answer.usage_end["output_tokens_details"] = {"thinking_tokens": _thinking_tokens(answer)}
    return answer


def text_block(text: str) -> dict[str, Any]:
    """A block of text."""
    return {"type": "text", "text": text}


def prose(tokens: int, seed: int) -> str:
    """So many tokens of text."""
    text, place = "", seed
    while text_tokens(text) <= tokens:
        text += _SENTENCES[place % len(_SENTENCES)] * (1 + tokens // 2000)
        place += 1
    return bounded(text, tokens)


def _think(answer: Answer, body: Body) -> None:
    thinking = body.get("thinking")
    if isinstance(thinking, dict) and thinking.get("type") in ("enabled", "adaptive"):
        text = "" if thinking.get("display") == "omitted" else _THOUGHTS
        answer.blocks.append({"type": "thinking", "thinking": text, "signature": _SIGNATURE})


def _speak(answer: Answer, body: Body, tokens_max: int, wanted: int | None) -> None:
    prompt, results = _last_turn(body)
    call = _tool_call(body, prompt, len(results))
    if call is not None:
        answer.blocks.append(text_block(f"I will use the {call[0]} tool."))
        use = {"type": "tool_use", "id": f"toolu_{answer.id[4:]}", "name": call[0], "input": call[1]}
        answer.blocks.append({**use, "caller": {"type": "direct"}})
        answer.stop_reason = "tool_use"
        return
    text = _text(body, prompt, results, None if wanted is None else min(wanted, tokens_max + 1))
    if text_tokens(text) > tokens_max:
        text, answer.stop_reason = bounded(text, tokens_max), "max_tokens"
    for stop in body.get("stop_sequences") or []:
        if stop in text:
            text, answer.stop_reason, answer.stop_sequence = text.partition(stop)[0], "stop_sequence", stop
    answer.blocks.append(text_block(text))


def _text(body: Body, prompt: str, results: list[str], wanted: int | None) -> str:
    if results:
        return f"The tool answered: {results[0][:_QUOTED_CHARS_MAX]}"
    config = body.get("output_config")
    form = (config.get("format") if isinstance(config, dict) else None) or body.get("output_format")
    if isinstance(form, dict) and form.get("type") == "json_schema":
        return json.dumps(sample(form.get("schema")), ensure_ascii=False)
    seed = zlib.crc32(prompt.encode("utf-8", "replace"))
    return prose(_TOKENS_MIN + seed % _TOKENS_SPREAD if wanted is None else wanted, seed)


def _last_turn(body: Body) -> tuple[str, list[str]]:
    """Text of the last user message that has any, system reminders aside; the tools' results since then, newest first."""
    results: list[str] = []
    for message in reversed(body["messages"]):
        content = message["content"]
        blocks = [text_block(content)] if isinstance(content, str) else content
        if message.get("role") != "user":
            continue
        told = [_result_text(block) for block in blocks if block.get("type") == "tool_result"]
        if told:
            results.append("\n".join(told))
            continue
        texts = [str(block.get("text")) for block in blocks if block.get("type") == "text"]
        text = _REMINDER.sub("", "\n".join(texts)).strip()
        if text:
            return text, results
    return "", results


def _result_text(block: dict[str, Any]) -> str:
    content = block.get("content")
    if isinstance(content, list):
        return "\n".join(str(item.get("text", item.get("type"))) for item in content if isinstance(item, dict))
    return str(content or "")


def _tool_call(body: Body, prompt: str, done: int) -> tuple[str, Any] | None:
    """(name, input) of the tool that is asked for, by the prompt (each `use the NAME tool` in turn) or by `tool_choice`."""
    schemas = {tool.get("name"): tool.get("input_schema") or {} for tool in body.get("tools") or []}
    choice = body.get("tool_choice")
    choice = choice if isinstance(choice, dict) else {}
    if choice.get("type") == "none":
        return None
    asked = [match for match in _USE_TOOL.finditer(prompt) if match[1] in schemas]
    if done < len(asked):
        match = asked[done]
        return match[1], _given_input(prompt[match.end() :]) or sample(schemas[match[1]]) or {}
    forced = choice.get("name") if choice.get("type") == "tool" else next(iter(schemas), None)
    if not done and choice.get("type") in ("tool", "any") and forced in schemas:
        return str(forced), sample(schemas[forced]) or {}
    return None


def _given_input(text: str) -> Any:
    try:
        return json.JSONDecoder().raw_decode(text)[0] if text.startswith("{") else None
    except ValueError:
        return None


def _block_tokens(block: dict[str, Any]) -> int:
    said = [block.get("text", ""), block.get("thinking", "")]
    if block["type"] in ("tool_use", "server_tool_use"):
        said.append(json.dumps(block["input"]))
    if block["type"] == "thinking":
        return _THINKING_TOKENS
    return sum(text_tokens(text) for text in said)


def _thinking_tokens(answer: Answer) -> int:
    return sum(_block_tokens(block) for block in answer.blocks if block["type"] == "thinking")


def _usage_start(body: Body, spent: InputUsage, output_tokens: int) -> Usage:
    usage: Usage = {
        "input_tokens": spent.uncached,
        "cache_creation_input_tokens": spent.written_5m + spent.written_1h,
        "cache_read_input_tokens": spent.read,
        "cache_creation": {
            "ephemeral_5m_input_tokens": spent.written_5m,
            "ephemeral_1h_input_tokens": spent.written_1h,
        },
        "output_tokens": output_tokens,
        "service_tier": "standard",
        "inference_geo": "us" if body.get("inference_geo") == "us" else "global",
    }
    return {**usage, "speed": "fast"} if body.get("speed") == "fast" else usage
