"""Text for a terminal: nothing in it moves the cursor, columns are aligned, secrets are struck out. Pure."""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Final

_SECRET: Final = re.compile(r"\b(sk-[a-z]{2,4}-|rs[st]_|rli_)[\w.-]{12,}")
_STRUCK_OUT: Final = "[secret]"
_TURNING: Final = "\u202a\u202b\u202d\u202e\u2066\u2067\u2068"
"""What makes a line read the other way round."""
_NO_WIDTH: Final = frozenset({"Mn", "Me", "Cf"})


def plain(text: str) -> str:
    """Without control characters: what others named must not write to the terminal."""
    return "".join(one if _is_harmless(one) else one.encode("unicode_escape").decode() for one in text)


def _is_harmless(character: str) -> bool:
    return unicodedata.category(character) not in {"Cc", "Cs", "Zl", "Zp"} and character not in _TURNING


def without_secrets(text: str, known: Iterable[str]) -> str:
    """The text with these secrets, and whatever looks like one of the relay's, struck out."""
    for secret in known:
        if len(secret) >= 4:
            text = text.replace(secret, _STRUCK_OUT)
    return _SECRET.sub(_STRUCK_OUT, text)


def width(text: str) -> int:
    """How many columns of a terminal it takes."""
    return sum(map(_width, text))


def cut(text: str, columns: int) -> str:
    """As much of its beginning as fits."""
    taken = 0
    for number, one in enumerate(text):
        taken += _width(one)
        if taken > columns:
            return text[:number]
    return text


def _width(character: str) -> int:
    if unicodedata.category(character) in _NO_WIDTH:
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    """One line of a table, with nothing after its last cell."""
    padded = [cell + " " * max(0, wide - width(cell)) for cell, wide in zip(cells, widths, strict=True)]
    return "  ".join(padded).rstrip()
