"""Stands between a client and the gateway, passes every byte, and remembers which requests came; or where nobody must come.

The ledger has no row for a refusal, so how often a refused client asks is counted here.
"""

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import httptools

_CHUNK_BYTES: Final = 64 * 1024


@dataclass
class Seen:
    """One request: its method, target and headers (names in lower case)."""

    method: str
    target: str
    headers: dict[str, str]

    @property
    def path(self) -> str:
        """The target without its query."""
        return self.target.partition("?")[0]


@dataclass
class Recorder:
    """A listening socket, and what came to it."""

    url: str
    requests: list[Seen] = field(default_factory=list)
    raw: list[bytes] = field(default_factory=list)
    """First bytes of connections that were not to be passed on."""

    def messages(self) -> list[Seen]:
        """The requests that cost money."""
        return [seen for seen in self.requests if seen.path == "/v1/messages"]


@contextlib.contextmanager
def recording(gateway_url: str | None) -> Iterator[Recorder]:
    """Listen, and pass on to the gateway; without one, close every connection after its first bytes."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    recorder = Recorder(f"http://127.0.0.1:{listener.getsockname()[1]}")
    address = ("127.0.0.1", int(gateway_url.rpartition(":")[2])) if gateway_url else None
    threading.Thread(target=_accept, args=(listener, recorder, address), daemon=True).start()
    try:
        yield recorder
    finally:
        listener.close()


def _accept(listener: socket.socket, recorder: Recorder, address: tuple[str, int] | None) -> None:
    while True:
        try:
            client, _ = listener.accept()
        except OSError:  # closed: the recording is over
            return
        if address is None:
            with client, contextlib.suppress(OSError):
                client.settimeout(5)
                recorder.raw.append(client.recv(_CHUNK_BYTES))
            continue
        gateway = socket.create_connection(address)
        parser = _Reading(recorder).parser
        threading.Thread(target=_pump, args=(client, gateway, parser), daemon=True).start()
        threading.Thread(target=_pump, args=(gateway, client, None), daemon=True).start()


def _pump(source: socket.socket, target: socket.socket, parser: httptools.HttpRequestParser | None) -> None:
    try:
        while data := source.recv(_CHUNK_BYTES):
            if parser is not None:
                parser.feed_data(data)
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:  # one side has reset its connection: so does the other
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


class _Reading:
    """httptools' callbacks for one connection."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self.parser = httptools.HttpRequestParser(self)

    def on_message_begin(self) -> None:
        self._target = b""
        self._headers: dict[str, str] = {}

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        method = self.parser.get_method().decode()
        self._recorder.requests.append(Seen(method, self._target.decode("latin-1"), self._headers))
