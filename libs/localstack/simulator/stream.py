"""A message as the API writes it: one JSON object, or events. Pure."""

import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from libs.localstack.simulator.answers import Answer
from libs.localstack.simulator.invoice import Usage

_PIECE_CHARS: Final = (5, 23, 31, 17, 28)
_PING: Final = b'event: ping\ndata: {"type": "ping"}\n\n'


@dataclass(frozen=True)
class Event:
    """Bytes, and what the invoice takes down once they are written."""

    data: bytes
    chars: int = 0
    usage: Usage | None = None
    stop_reason: str = ""
    declined: tuple[str, ...] = ()
    last: bool = False


def padded(value: dict[str, Any]) -> bytes:
    """JSON with odd spaces before the last brace, as the API sends it; as many as its checksum says."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")
    return text[:-1] + b" " * (zlib.crc32(text) % 16) + b"}"


def whole(answer: Answer, *, extra: dict[str, Any]) -> Event:
    """The JSON answer. `extra` are fields nobody knows."""
    content = [] if answer.content_empty else answer.blocks
    message = _message(answer, content, answer.usage) | {"model": answer.model_last or answer.model} | extra
    return Event(
        padded(message),
        usage=answer.usage,
        stop_reason=answer.stop_reason,
        declined=tuple(answer.declined_models),
        last=True,
    )


def events(answer: Answer) -> list[Event]:
    """The stream, event by event."""
    start = _message(answer, [], answer.usage_start) | dict.fromkeys(("stop_reason", "stop_sequence", "stop_details"))
    found = [Event(_frame("message_start", message=start), usage=answer.usage_start)]
    for index, block in enumerate(answer.blocks):
        found += _block_events(index, block, answer)
        if index == 0:
            found.insert(2, Event(_PING))
    stop = {name: getattr(answer, name) for name in ("stop_reason", "stop_sequence", "stop_details")}
    usage = {} if answer.usage_end is None else {"usage": answer.usage_end}
    delta = _frame("message_delta", delta=stop, **usage)
    found.append(Event(delta, usage=answer.usage_end, stop_reason=answer.stop_reason))
    found.append(Event(_frame("message_stop"), last=True))
    return found


def error_event(error_type: str, message: str, request_id: str) -> Event:
    """An error inside a stream."""
    error = {"details": None, "type": error_type, "message": message}
    return Event(_frame("error", error=error, request_id=request_id))


def unknown_event() -> Event:
    """One that no client knows."""
    return Event(_frame("hologram", hologram={"depth": 3}))


def _message(answer: Answer, content: list[dict[str, Any]], usage: Usage | None) -> dict[str, Any]:
    message: dict[str, Any] = {"model": answer.model, "id": answer.id, "type": "message", "role": "assistant"}
    message |= {"content": content, "stop_reason": answer.stop_reason, "stop_sequence": answer.stop_sequence}
    message["stop_details"] = answer.stop_details
    return message if usage is None else message | {"usage": usage}


def _block_events(index: int, block: dict[str, Any], answer: Answer) -> Iterator[Event]:
    declined = tuple(answer.declined_models) if block["type"] == "fallback" else ()
    yield Event(_frame("content_block_start", index=index, content_block=_opening(block)), declined=declined)
    for delta, chars in _deltas(block, answer.piece_chars):
        yield Event(_frame("content_block_delta", index=index, delta=delta), chars)
    yield Event(_frame("content_block_stop", index=index))


def _opening(block: dict[str, Any]) -> dict[str, Any]:
    """What `content_block_start` shows of a block whose content comes in deltas."""
    match block["type"]:
        case "text":
            return {**block, "text": ""}
        case "thinking":
            return {**block, "thinking": "", "signature": ""}
        case "tool_use" | "server_tool_use":
            return {**block, "input": {}}
        case "compaction":
            return {**block, "content": None}
    return block


def _deltas(block: dict[str, Any], piece_chars: int) -> Iterator[tuple[dict[str, Any], int]]:
    """(delta, the characters it says)."""
    match block["type"]:
        case "text":
            for piece in _pieces(block["text"], piece_chars):
                yield {"type": "text_delta", "text": piece}, len(piece)
        case "thinking":
            for piece in _pieces(block["thinking"], piece_chars):
                yield {"type": "thinking_delta", "thinking": piece}, len(piece)
            yield {"type": "signature_delta", "signature": block["signature"]}, 0
        case "tool_use" | "server_tool_use":
            for piece in ["", *_pieces(json.dumps(block["input"], ensure_ascii=False), piece_chars)]:
                yield {"type": "input_json_delta", "partial_json": piece}, len(piece)
        case "compaction":
            yield {"type": "compaction_delta", "content": block["content"]}, 0


def _pieces(text: str, piece_chars: int) -> Iterator[str]:
    place, number = 0, 0
    while place < len(text):
        size = piece_chars or _PIECE_CHARS[number % len(_PIECE_CHARS)]
        yield text[place : place + size]
        place += size
        number += 1


def _frame(kind: str, **fields: Any) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (kind.encode(), padded({"type": kind, **fields}))
