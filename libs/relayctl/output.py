"""What is shown: the server's own bytes, or tables and `key: value` for people; progress only where a terminal sees it."""

import contextlib
import json
import os
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final, TextIO

from libs.relayctl import text
from libs.relayctl.failures import Misuse

_CELL_WIDTH_MAX: Final = 48
_NOTHING: Final = "-"


class Sink:
    """Where a command's answer goes."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw

    def write(self, data: bytes) -> None:
        """Bytes as they are."""
        self._raw.write(data)

    def line(self, words: str) -> None:
        """A line for people."""
        self._raw.write(words.encode(errors="replace") + b"\n")

    def flush(self) -> None:
        """So that it is seen before more comes."""
        self._raw.flush()


@contextlib.contextmanager
def opened(path: str) -> Iterator[Sink]:
    """Standard output, or a file that is there only when it is whole. Raises Misuse."""
    if path in ("", "-"):
        yield Sink(sys.stdout.buffer)
        sys.stdout.buffer.flush()
        return
    target = Path(path)
    draft = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            yield Sink(file)
        draft.replace(target)
    except OSError as error:
        raise Misuse(f"{path} cannot be written: {error.strerror}") from None
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()


class Progress:
    """One line on standard error that is overwritten; nothing where that is no terminal."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._shown = 0

    def show(self, words: str) -> None:
        """In the place of the words before."""
        if self._stream.isatty():
            self._stream.write(f"\r{words.ljust(self._shown)}")
            self._stream.flush()
            self._shown = len(words)

    def clear(self) -> None:
        """As if there had been none."""
        if self._shown:
            self._stream.write("\r" + " " * self._shown + "\r")
            self._stream.flush()
            self._shown = 0


class Rows:
    """A table that is written page by page: columns grow where they must, and never shrink."""

    def __init__(self, sink: Sink, columns: Sequence[str]) -> None:
        self._sink = sink
        self._columns = columns
        self._widths = [0] * len(columns)
        self._has_head = False

    def add(self, items: Sequence[Mapping[str, Any]]) -> None:
        """A page."""
        lines = [[_short(cell(_at(item, name))) for name in self._columns] for item in items]
        if not self._has_head:
            lines.insert(0, [name.upper() for name in self._columns])
            self._has_head = True
        self._widths = [max([wide, *map(text.width, cells)]) for wide, *cells in zip(self._widths, *lines, strict=True)]
        for line in lines:
            self._sink.line(text.aligned(line, self._widths))


def _at(item: Any, name: str) -> Any:
    """A field; a dot leads inside."""
    for part in name.split("."):
        item = item.get(part) if isinstance(item, dict) else None
    return item


def items_writer(sink: Sink, columns: Sequence[str]) -> Callable[[Sequence[Any]], None]:
    """What writes a page of a list: as rows of a table, or one below the other."""
    if columns:
        return Rows(sink, columns).add

    def write(items: Sequence[Any]) -> None:
        for item in items:
            write_one(sink, item)
            sink.line("")

    return write


def write_one(sink: Sink, value: Any, *, etag: str = "") -> None:
    """`key: value`, one a line; a dot leads inside, and a list of objects is a table of its own."""
    for name, inner in _flat(value).items():
        if isinstance(inner, list) and any(isinstance(one, dict) for one in inner):
            sink.line(f"{name}:")
            _write_inside(sink, [_flat(one) for one in inner])
        else:
            sink.line(f"{name}: {cell(inner)}" if name else cell(inner))
    if etag:
        sink.line(f"etag: {text.plain(etag)}")


def _write_inside(sink: Sink, items: Sequence[Mapping[str, Any]]) -> None:
    """A table, two columns to the right; what is empty in every row is left out."""
    names = [name for name in dict.fromkeys(name for item in items for name in item)
             if any(item.get(name) not in (None, "", [], {}) for item in items)]  # fmt: skip
    lines = [names, *([cell(item.get(name)) for name in names] for item in items)]
    widths = [max(map(text.width, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        sink.line("  " + text.aligned(line, widths))


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    """Objects inside, as fields with a dot in their name."""
    if not isinstance(value, dict) or not value:
        return {path: value}
    flat: dict[str, Any] = {}
    for name, inner in value.items():
        flat |= _flat(inner, f"{path}.{text.plain(name)}" if path else text.plain(name))
    return flat


def cell(value: Any) -> str:
    """A value in words."""
    match value:
        case None | [] | {}:
            return _NOTHING
        case bool():
            return "yes" if value else "no"
        case list():
            return ", ".join(cell(one) for one in value)
        case dict():
            return text.plain(json.dumps(value, ensure_ascii=False))
    return text.plain(str(value))


def _short(words: str) -> str:
    """Long words cut, but for those without a space: an id or a secret is of no use without its end."""
    if text.width(words) <= _CELL_WIDTH_MAX or " " not in words:
        return words
    return text.cut(words, _CELL_WIDTH_MAX - 1).rstrip() + "…"
