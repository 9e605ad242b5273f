"""HTTP/1.1 by hand on both sides of the relay: a caller who sees every byte and its time, and an upstream that plays a script.

Everything blocks, with a time limit; the upstream answers each connection in a thread of its own.
"""

import contextlib
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, Self

Headers = list[tuple[bytes, bytes]]
WAIT_S: Final = 20.0
_READ_BYTES: Final = 1 << 18


class Broken(Exception):
    """The other side ended the connection before what it had begun was whole."""


@dataclass
class Head:
    """The first line and the headers, names and order as they came."""

    start: bytes
    headers: Headers

    @property
    def status(self) -> int:
        """Of an answer."""
        return int(self.start.split(b" ")[1])

    def get(self, name: bytes) -> bytes | None:
        """The only value of a header, None if it is absent."""
        values = [value for key, value in self.headers if key.lower() == name]
        assert len(values) <= 1, self.headers
        return values[0] if values else None


class Wire:
    """A connection, and what was read from it and not yet looked at."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(WAIT_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = connection
        self._ahead = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave."""
        self.socket.close()

    def reset(self) -> None:
        """Leave without a word of farewell."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def send(self, data: bytes) -> None:
        """All of it."""
        self.socket.sendall(data)

    def some(self) -> bytes:
        """What comes next, b"" at the end."""
        data, self._ahead = self._ahead, b""
        return data or self.socket.recv(_READ_BYTES)

    def wait_readable(self) -> None:
        """Until something is there to be read, or the end. Raises TimeoutError after the socket's time limit."""
        if not self._ahead:
            self._ahead = self.socket.recv(_READ_BYTES)

    def until(self, mark: bytes) -> bytes:
        """Up to and with `mark`. Raises Broken."""
        data = self.some()
        while mark not in data:
            more = self.socket.recv(_READ_BYTES)
            if not more:
                raise Broken(data)
            data += more
        end = data.index(mark) + len(mark)
        self._ahead = data[end:]
        return data[:end]

    def exactly(self, size: int) -> bytes:
        """That many bytes. Raises Broken."""
        pieces: list[bytes] = []
        left = size
        while left:
            data = self.some()
            if not data:
                raise Broken(b"".join(pieces))
            pieces.append(data[:left])
            self._ahead = data[left:]
            left -= len(pieces[-1])
        return b"".join(pieces)

    def head(self) -> Head:
        """The next head. Raises Broken."""
        start, *lines = self.until(b"\r\n\r\n")[:-4].split(b"\r\n")
        pairs = [line.partition(b":") for line in lines]
        return Head(start, [(name, value.strip()) for name, _, value in pairs])

    def wait_hung_up(self) -> None:
        """Until the other side has ended the connection, without reading what it sends."""
        poll = select.poll()
        poll.register(self.socket, select.POLLRDHUP)
        poll.poll(WAIT_S * 1000)
        self.close()

    def wait_closed(self) -> None:
        """Until the other side has ended the connection; fails if it says something instead."""
        with contextlib.suppress(ConnectionResetError):
            said = self.some()
            assert said == b"", said


class Caller(Wire):
    """A client of the relay."""

    @classmethod
    def to(cls, url: str) -> Self:
        """Connect to `http://host:port`."""
        host, _, port = url.removeprefix("http://").partition(":")
        return cls(socket.create_connection((host, int(port)), WAIT_S))

    def post(self, path: str, headers: Headers, body: bytes, *, pieces: list[bytes] | None = None) -> None:
        """Send a request, its body by length, or in chunks where `pieces` are given."""
        framing = (b"transfer-encoding", b"chunked") if pieces is not None else (b"content-length", b"%d" % len(body))
        lines = [
            b"POST %s HTTP/1.1" % path.encode(),
            *(b"%s: %s" % pair for pair in [(b"host", b"relay"), *headers, framing]),
        ]
        head = b"\r\n".join(lines) + b"\r\n\r\n"
        if pieces is None:
            self.send(head + body)
            return
        self.send(head)
        for piece in pieces:
            self.send(b"%x\r\n%s\r\n" % (len(piece), piece))
        self.send(b"0\r\n\r\n")

    def pieces(self, head: Head) -> Iterator[bytes]:
        """The body as it comes. Raises Broken, where the connection ends before the body does."""
        length = head.get(b"content-length")
        if head.get(b"transfer-encoding") == b"chunked":
            while size := int(self.until(b"\r\n"), 16):
                yield self.exactly(size + 2)[:-2]
            assert self.until(b"\r\n") == b"\r\n"
        elif length is not None:
            left = int(length)
            while left:
                data = self.some()
                if not data:
                    raise Broken(f"{left} bytes are missing")
                piece, self._ahead = data[:left], data[left:]
                left -= len(piece)
                yield piece
        else:
            while data := self.some():
                yield data

    def all_that_comes(self) -> tuple[bytes, bool]:
        """The body of an answer as far as it comes, and whether that is all of it."""
        received = b""
        try:
            for piece in self.pieces(self.head()):
                received += piece
        except (Broken, ConnectionResetError):
            return received, False
        return received, True

    def answer(self) -> tuple[Head, bytes]:
        """A whole answer."""
        head = self.head()
        return head, b"".join(self.pieces(head))


@dataclass
class Received:
    """A request as the upstream got it."""

    head: Head
    body: bytes


Script = Callable[[Wire, Received], None]
"""Answers one request. It closes the wire where the connection is to end; a caller who leaves it meets as OSError."""


@dataclass
class ScriptedUpstream:
    """Answers every request as `script` says."""

    script: Script | None = None
    early: Script | None = None
    """Answers as soon as a head is there; the body stays unread until the relay hangs up."""
    requests: list[Received] = field(default_factory=list)
    running: int = 0
    """Scripts under way."""
    failures: list[BaseException] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._wires: list[Wire] = []
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """End every connection; what went wrong inside a script is raised here."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for wire in self._wires:
            with contextlib.suppress(OSError):
                wire.socket.shutdown(socket.SHUT_RDWR)
            wire.close()
        assert not self.failures, self.failures

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                wire = Wire(self._listener.accept()[0])
                self._wires.append(wire)
                threading.Thread(target=self._serve, args=(wire,), daemon=True).start()

    def _serve(self, wire: Wire) -> None:
        wire.socket.settimeout(None)  # an idle connection is no failure
        try:
            while wire.socket.fileno() >= 0:
                head = wire.head()
                if self.early is not None:
                    self.early(wire, Received(head, b""))
                    wire.wait_hung_up()
                    return
                request = Received(head, wire.exactly(int(head.get(b"content-length") or 0)))
                self.requests.append(request)
                self._play(wire, request)
        except (Broken, OSError):
            wire.close()
        except BaseException as failure:  # noqa: BLE001 - `close` raises it where the test sees it
            self.failures.append(failure)
            wire.close()

    def _play(self, wire: Wire, request: Received) -> None:
        with self._lock:
            self.running += 1
        try:
            assert self.script is not None
            self.script(wire, request)
        finally:
            with self._lock:
                self.running -= 1


def playing(status: int, headers: Headers, pieces: list[bytes], *, framing: str = "chunked") -> Script:
    """A script that writes the pieces one by one: `chunked`, by `length`, or until `eof`."""

    def script(wire: Wire, _: Received) -> None:
        wire.send(head_bytes(status, headers, framing=framing, size=sum(map(len, pieces))))
        for piece in pieces:
            wire.send(chunk(piece) if framing == "chunked" else piece)
        if framing == "chunked":
            wire.send(b"0\r\n\r\n")
        if framing == "eof":
            wire.close()

    return script


def head_bytes(status: int, headers: Headers, *, framing: str = "chunked", size: int = 0) -> bytes:
    """The head of an answer."""
    framed = {
        "chunked": [(b"Transfer-Encoding", b"chunked")],
        "length": [(b"Content-Length", b"%d" % size)],
        "eof": [(b"Connection", b"close")],
    }[framing]
    return b"\r\n".join([b"HTTP/1.1 %d X" % status, *(b"%s: %s" % pair for pair in [*headers, *framed])]) + b"\r\n\r\n"


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body."""
    return b"%x\r\n%s\r\n" % (len(data), data) if data else b""
