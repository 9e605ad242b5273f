"""Random JSON texts, streams and ways to cut them; nothing of it went through a JSON library, so it may look like anything."""

import random
from typing import Final

from tests.e2e.wire import Headers

MODEL: Final = "claude-sonnet-4-6"
USAGE: Final = b'{"input_tokens":10,"output_tokens":5}'
ANSWER: Final = (
    b'{"model":"claude-sonnet-4-6","content":[{"type":"text","text":"Hi"}],"stop_reason":"end_turn","usage":%s   }'
    % USAGE
)
BODY: Final = b'{"model":"%s","max_tokens":50,"stream":true,"messages":[]}' % MODEL.encode()
JSON: Final[Headers] = [(b"content-type", b"application/json")]
SSE: Final[Headers] = [(b"Content-Type", b"text/event-stream; charset=utf-8")]
_SPACES: Final = (b"", b"", b"", b" ", b"\n", b"\t", b"\r\n", b"   \n  ")
_NUMBERS: Final = (
    b"0",
    b"-0",
    b"1e400",
    b"-12345678901234567890123",
    b"0.1e-7",
    b"3.141592653589793238462643",
    b"2E+3",
)
_ESCAPES: Final = (
    rb"\"",
    rb"\\",
    rb"\/",
    rb"\b\f\n\r\t",
    rb"\u0000",
    rb"\u00e9",
    rb"\ud83d\ude00",
    rb"\uD800",
    rb"\udfff!",
)
_TEXTS: Final = (
    "Hello",
    "naïve",
    "你好，世界",
    "😀",
    "\x7f",
    "\u2028",
    "data: x",
    "event: error",
    "}{",
    "[",
    "sk-x-",
    " ",
)


class Texts:
    """JSON texts from one source of chance."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance

    def request(self) -> bytes:
        """A body that names a model once, somewhere among fields nobody knows, some of them twice."""
        members = [self._member(4) for _ in range(self._chance.randrange(8))]
        members += members[: self._chance.randrange(3)]
        members += [
            self._name(b'"model"') + b'"' + MODEL.encode() + b'"',
            self._name(b'"max_tokens"') + str(self._chance.randrange(1, 9000)).encode(),
            self._name(b'"messages"') + self._value(5),
        ]
        self._chance.shuffle(members)
        return self._space() + b"{" + b",".join(members) + b"}" + self._space()

    def _member(self, depth: int) -> bytes:
        return self._name(b'"x' + self._string()[1:]) + self._value(depth)

    def _name(self, text: bytes) -> bytes:
        return self._space() + text + self._space() + b":" + self._space()

    def _value(self, depth: int) -> bytes:
        kind = self._chance.randrange(8 if depth else 5)
        if kind < 3:
            value = self._string()
        elif kind < 5:
            value = self._chance.choice((*_NUMBERS, b"true", b"false", b"null"))
        elif kind == 5:
            value = b"{" + b",".join(self._member(depth - 1) for _ in range(self._chance.randrange(5))) + b"}"
        else:
            value = b"[" + b",".join(self._value(depth - 1) for _ in range(self._chance.randrange(5))) + b"]"
        return self._space() + value + self._space()

    def _string(self) -> bytes:
        pieces = []
        for _ in range(self._chance.randrange(6)):
            pieces.append(self._chance.choice(_ESCAPES))
            pieces.append(self._chance.choice(_TEXTS).encode() * self._chance.randrange(1, 30))
        return b'"' + b"".join(pieces) + b'"'

    def _space(self) -> bytes:
        return self._chance.choice(_SPACES)

    def stream(self) -> bytes:
        """A whole answer as events, with comments, events nobody knows, and lines that end in either way."""
        end = self._chance.choice((b"\n", b"\r\n"))
        events = [
            event(
                b"message_start",
                b'{"type":"message_start","message":{"model":"%s","usage":%s}}' % (MODEL.encode(), USAGE),
            )
        ]
        events += [self._event() for _ in range(self._chance.randrange(12))]
        events.append(
            event(
                b"message_delta",
                b'{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":7}}',
            )
        )
        events.append(event(b"message_stop", b'{"type": "message_stop" }'))
        return b"".join(events).replace(b"\n", end)

    def _event(self) -> bytes:
        text = self._string()
        return self._chance.choice(
            (
                event(b"ping", b'{"type": "ping"}'),
                b": a comment\n\n",
                event(b"content_block_delta", b'{"type":"content_block_delta","delta":{"text":%s}}' % text),
                event(b"an_event_nobody_knows", b'{"type":"an_event_nobody_knows","x":%s}' % text),
                event(b"error_of_a_kind", b'{"type":"error_of_a_kind","x":%s}' % text),
                b"data: {}\n\n",
            )
        )

    def cut(self, data: bytes) -> list[bytes]:
        """Into pieces: single bytes, or a few large ones, or all at once."""
        size = self._chance.choice((1, 3, 50, 2000, len(data) or 1))
        pieces, at = [], 0
        while at < len(data):
            step = self._chance.randint(1, size)
            pieces.append(data[at : at + step])
            at += step
        return pieces


def event(name: bytes, data: bytes) -> bytes:
    """One event of a stream."""
    return b"event: " + name + b"\ndata: " + data + b"\n\n"
