"""One command done: the call it makes, and what is shown of the answer."""

import getpass
import json
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import httpx2
import msgspec

from libs.relayctl import options, output, parser, table
from libs.relayctl.client import Client
from libs.relayctl.config import Settings
from libs.relayctl.document import Documents
from libs.relayctl.failures import DONE, Misuse, NotAllowed, Trouble
from libs.relayctl.options import Option
from libs.relayctl.output import Progress, Sink
from libs.relayctl.table import Command

_BODY_BYTES_MAX: Final = 16 << 20


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A call as it is sent."""

    path: str
    query: list[tuple[str, str]]
    headers: dict[str, str]
    body: bytes | None


class Session:
    """What commands work with, the hand-made ones too."""

    def __init__(self, settings: Settings, *, timeout_seconds: float) -> None:
        self.settings = settings
        self.client = Client(settings.url, settings.token, timeout_seconds=timeout_seconds)
        self.documents = Documents(self.client, settings.cache_directory)
        self.progress = Progress(sys.stderr)

    def run(self, command: Command, arguments: Namespace) -> int:
        """Call and show. Raises Failure."""
        asked = self._asked(command, vars(arguments))
        if not command.is_open and not self.client.has_token:
            raise NotAllowed("not signed in: relayctl login, or set RELAYCTL_TOKEN")
        with output.opened(arguments.output) as sink:
            try:
                if command.is_list and command.method == "GET":
                    self._show_list(command, asked, arguments, sink)
                else:
                    self._show(command, asked, arguments, sink)
            finally:
                self.progress.clear()
        return DONE

    # -- what is asked -----------------------------------------------------------------------------------------------

    def _asked(self, command: Command, given: dict[str, Any]) -> Asked:
        for option in command.options:
            if option.is_secret and option.dest in given:
                given[option.dest] = self._secret(option, given[option.dest])
        query: list[tuple[str, str]] = []
        headers: dict[str, str] = {}
        for option in command.options:
            value = given.get(option.dest)
            if value is not None and option.place == "query":
                query.extend((option.path[0], _text(one)) for one in (value if option.is_list else [value]))
            elif value is not None and option.place == "header":
                headers[option.path[0]] = _header(option, _text(value))
        if accept := given.get("accept"):
            headers["accept"] = accept
        body = _body(command, given) if command.has_body else None
        return Asked(path=_path(command, given), query=query, headers=headers, body=body)

    def _secret(self, option: Option, value: Any) -> Any:
        """The value itself, so that it is never shown; `-` asks for it."""
        if value == "-":
            value = ask_secret(option.flag)
        if isinstance(value, str):
            self.client.hide(value)
        return value

    # -- what is shown -----------------------------------------------------------------------------------------------

    def _show(self, command: Command, asked: Asked, arguments: Namespace, sink: Sink) -> None:
        with self.client.open(
            command.method, asked.path, query=asked.query, headers=asked.headers, body=asked.body
        ) as response:
            if not parser.is_json(response.headers.get("content-type", "")):
                self._stream(response, sink, to_file=arguments.output not in ("", "-"))
                return
            data, etag = self.client.read(response), response.headers.get("etag", "")
        if arguments.json:
            sink.write(data if data.endswith(b"\n") else data + b"\n")
        elif command.is_list:
            items = [msgspec.json.decode(item) for item in _items(_raw(data))]
            output.items_writer(sink, arguments.columns or command.columns)(items)
        else:
            output.write_one(sink, decoded(data), etag=etag)

    def _stream(self, response: httpx2.Response, sink: Sink, *, to_file: bool) -> None:
        size = 0
        for piece in response.iter_bytes():
            sink.write(piece)
            size += len(piece)
            if to_file:
                self.progress.show(f"{size:,} bytes …")

    def _show_list(self, command: Command, asked: Asked, arguments: Namespace, sink: Sink) -> None:
        write = output.items_writer(sink, arguments.columns or command.columns)
        shown = 0
        for items in self._pages(command, asked, getattr(arguments, "limit_pages", None)):
            self.progress.clear()
            if arguments.json:
                for item in items:
                    sink.write(bytes(item).replace(b"\n", b" ") + b"\n")
            else:
                write([msgspec.json.decode(item) for item in items])
            sink.flush()
            shown += len(items)
            self.progress.show(f"{shown:,} so far …")

    def _pages(self, command: Command, asked: Asked, pages_max: int | None) -> Iterator[list[msgspec.Raw]]:
        """Items of every page, as the bytes that came."""
        following: str | None = None
        number = 0
        while number == 0 or following:
            query = [one for one in asked.query if one[0] != command.page_by] if following else asked.query
            turned = [*query, (command.page_by, following)] if following else query
            with self.client.open(command.method, asked.path, query=turned, headers=asked.headers) as response:
                answer = _raw(self.client.read(response))
            yield _items(answer)
            number += 1
            before, following = following, _following(command, answer)
            if following and following == before:
                raise Trouble("the server gives the same page again and again")
            if following and number == pages_max:
                self.progress.clear()
                sys.stderr.write(f"there is more: --{options.dashed(command.page_by)} {following}\n")
                return


def ask_secret(what: str) -> str:
    """From the terminal without an echo, or a line of standard input. Raises Misuse where there is nothing."""
    name = what.lstrip("-")
    try:
        secret = getpass.getpass(f"{name}: ") if sys.stdin.isatty() else sys.stdin.readline().rstrip("\r\n")
    except EOFError:
        secret = ""
    if not secret:
        raise Misuse(f"{name} is empty")
    return secret


def _path(command: Command, given: Mapping[str, Any]) -> str:
    path = command.path
    for name in command.positionals:
        value = str(given[f"{parser.PATH_PREFIX}{name}"])
        if value in ("", ".", ".."):
            raise Misuse(f"{name.upper()} is empty")
        path = path.replace(f"{{{name}}}", quote(value, safe=""))
    return path


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _header(option: Option, value: str) -> str:
    """A version may be given as it is read: 42 is "42"."""
    if not value.isascii() or not value.isprintable():
        raise Misuse(f"{option.flag} takes printable ASCII")
    return f'"{value}"' if option.path[0].lower() == "if-match" and value.isdigit() else value


def _body(command: Command, given: Mapping[str, Any]) -> bytes:
    source = given.get("body")
    if source is None:
        return json.dumps(options.body_of(command.body_options, given), ensure_ascii=False).encode(errors="replace")
    if any(one.dest in given for one in command.body_options):
        raise Misuse("--body is the whole body: no field goes with it")
    try:
        with sys.stdin.buffer if source == "-" else Path(source).open("rb") as file:
            data = file.read(_BODY_BYTES_MAX + 1)
    except OSError as error:
        raise Misuse(f"{source} cannot be read: {error.strerror}") from None
    if len(data) > _BODY_BYTES_MAX:
        raise Misuse(f"{source} is longer than {_BODY_BYTES_MAX} bytes")
    return data


def decoded(data: bytes) -> Any:
    """JSON in values. Raises Trouble."""
    try:
        return msgspec.json.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise Trouble("the server's answer is no JSON") from None


def _raw(data: bytes) -> dict[str, msgspec.Raw]:
    try:
        return msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise Trouble("the server's answer is no JSON object") from None


def _items(answer: Mapping[str, msgspec.Raw]) -> list[msgspec.Raw]:
    try:
        return msgspec.json.decode(answer["data"], type=list[msgspec.Raw])
    except (msgspec.MsgspecError, KeyError):
        raise Trouble("the server's answer is no list") from None


def _following(command: Command, answer: Mapping[str, msgspec.Raw]) -> str | None:
    """What leads to the next page, if there is one."""
    if not command.page_by or bytes(answer.get("has_more", b"")) == b"false":
        return None
    raw = answer.get(table.PAGES[command.page_by])
    value = msgspec.json.decode(raw) if raw is not None else None
    return value if isinstance(value, str) and value else None
