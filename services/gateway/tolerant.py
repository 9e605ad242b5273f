"""A JSON scanner for what the fast decoder refuses: it finds the members of the top-level object and judges nothing inside.

Slow (half a microsecond a bracket) and rarely used: nesting deeper than a decoder's stack, `NaN`, values that are no JSON.
Its patterns never backtrack, so that no body costs more than its length.
"""

import json
import re
from typing import Final

DEPTH_MAX: Final = 100_000
MEMBERS_MAX: Final = 10_000
BRACKETS_MAX: Final = 500_000
_SPACE: Final = re.compile(rb"[ \t\n\r]*+")
_STRING: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_SCALAR: Final = re.compile(rb"(?:-?\d[\d.eE+-]*+|true|false|null)")
_BRACKET: Final = re.compile(
    rb'(?:[^"{}\[\]]++|"[^"\\]*+(?:\\.[^"\\]*+)*+")*+(?:(?P<open>[{\[])|(?P<close>[}\]]))?', re.DOTALL
)
"""Whatever stands before the next bracket, and the bracket; matches everywhere, without one where there is none."""


class NotAnObject(ValueError):
    """The text is not one JSON object; the message says where it stops being one."""


def top_level(text: bytes) -> list[tuple[str, bytes]]:
    """(name, raw value) of each member of the top-level object, in order, duplicates included. Raises NotAnObject."""
    at = _expect(text, _skip(text, 0), b"{")
    members: list[tuple[str, bytes]] = []
    brackets_left = BRACKETS_MAX
    at = _skip(text, at)
    if text[at : at + 1] == b"}":
        return _ended(text, at + 1, members)
    while True:
        name, at = _name(text, _skip(text, at))
        start = _skip(text, _expect(text, _skip(text, at), b":"))
        end, brackets = _value_end(text, start, brackets_left)
        brackets_left -= brackets
        members.append((name, text[start:end]))
        if len(members) > MEMBERS_MAX:
            raise NotAnObject(f"more than {MEMBERS_MAX} fields")
        at = _skip(text, end)
        if text[at : at + 1] == b"}":
            return _ended(text, at + 1, members)
        at = _expect(text, at, b",")


def _ended(text: bytes, at: int, members: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    if _skip(text, at) != len(text):
        raise NotAnObject(f"text follows it at byte {at}")
    return members


def _skip(text: bytes, at: int) -> int:
    match = _SPACE.match(text, at)
    assert match is not None  # it matches the empty string
    return match.end()


def _expect(text: bytes, at: int, mark: bytes) -> int:
    if text[at : at + 1] != mark:
        raise NotAnObject(f"expected {mark.decode()!r} at byte {at}")
    return at + 1


def _name(text: bytes, at: int) -> tuple[str, int]:
    match = _STRING.match(text, at)
    if match is None:
        raise NotAnObject(f"expected a name at byte {at}")
    try:
        return str(json.loads(match[0].decode("utf-8", "surrogatepass"))), match.end()
    except ValueError:
        raise NotAnObject(f"unreadable name at byte {at}") from None


def _value_end(text: bytes, at: int, brackets_max: int) -> tuple[int, int]:
    """Where the value ends, and how many brackets it has."""
    mark = text[at : at + 1]
    if mark in (b"{", b"["):
        return _container_end(text, at + 1, brackets_max)
    match = _STRING.match(text, at) if mark == b'"' else _SCALAR.match(text, at)
    if match is None:
        raise NotAnObject(f"expected a value at byte {at}")
    return match.end(), 0


def _container_end(text: bytes, at: int, brackets_max: int) -> tuple[int, int]:
    depth = 1
    for count, match in enumerate(_BRACKET.finditer(text, at), start=2):
        if match.lastgroup == "open":
            depth += 1
        elif match.lastgroup == "close":
            depth -= 1
        else:
            raise NotAnObject(f"a bracket is not closed, or a string is not, after byte {match.start()}")
        if not depth:
            return match.end(), count
        if depth > DEPTH_MAX:
            raise NotAnObject(f"nested deeper than {DEPTH_MAX} levels")
        if count > brackets_max:
            raise NotAnObject(f"more than {BRACKETS_MAX} brackets")
    raise AssertionError("the pattern matches everywhere")
