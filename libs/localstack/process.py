"""Child processes that log to a file, are waited for until they answer, and die with their parent."""

import contextlib
import ctypes
import random
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, Self

_PR_SET_PDEATHSIG: Final = 1
_LOG_TAIL_BYTES: Final = 3000
_direct: Final = urllib.request.build_opener(urllib.request.ProxyHandler({}))
_libc: Final = ctypes.CDLL(None, use_errno=True)


class ProcessFailed(Exception):
    """A child did not start, or died; the message ends with the last lines of its log."""


_PORTS: Final = range(10_240, 22_000)
"""Below those the kernel gives to connections, and so are these and 10,000 more, which Redis Cluster uses."""
_given: Final[set[int]] = set()


def free_port() -> int:
    """A loopback port nobody listens on at this moment, and that was not given out here before.

    At random, so that processes which look for ports at the same time do not find the same one.
    """
    while True:
        port = random.SystemRandom().choice(_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            if port not in _given:
                probe.bind(("127.0.0.1", port))
                _given.add(port)
                return port


class Process:
    """One child."""

    def __init__(self, name: str, child: "subprocess.Popen[bytes]", log: Path) -> None:
        self.name = name
        self.log = log
        self._child = child

    @classmethod
    def start(
        cls, name: str, command: Sequence[str], *, log: Path, environment: Mapping[str, str] | None = None
    ) -> Self:
        """Start a command in a session of its own, so that a Ctrl-C reaches only us and we end it in order.

        It dies with the *thread* that calls this (that is what the kernel looks at): call it from one that stays.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        return cls(name, child, log)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._child.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._child.poll()

    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._child.poll() is None

    def wait_until(self, ready: Callable[[], bool], *, seconds: float) -> Self:
        """Wait until `ready()`; raise ProcessFailed if it dies before, or does not get there in time."""
        deadline = time.monotonic() + seconds
        while not ready():
            if not self.is_running():
                raise ProcessFailed(f"{self.name} ended with code {self._child.returncode}:\n{self.log_tail()}")
            if time.monotonic() > deadline:
                raise ProcessFailed(f"{self.name} was not ready within {seconds:.0f} s:\n{self.log_tail()}")
            time.sleep(0.05)
        return self

    def stop(self, *, seconds: float = 15) -> bool:
        """SIGTERM, wait, SIGKILL. Whether it ended by itself."""
        if self.is_running():
            self._child.send_signal(signal.SIGTERM)
        try:
            self._child.wait(seconds)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
            return False
        return True

    def log_tail(self) -> str:
        """The last lines it wrote."""
        return self.log.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace")


def http_answers(url: str) -> Callable[[], bool]:
    """A check for `wait_until`: GET answers 200."""

    def check() -> bool:
        try:
            with _direct.open(url, timeout=2) as answer:
                return bool(answer.status == 200)
        except (OSError, urllib.error.URLError):
            return False

    return check


def port_answers(port: int) -> Callable[[], bool]:
    """A check for `wait_until`: something accepts connections."""

    def check() -> bool:
        with socket.socket() as probe:
            probe.settimeout(1)
            return probe.connect_ex(("127.0.0.1", port)) == 0

    return check


def _die_with_parent() -> None:
    """In the child: SIGKILL when the parent is gone, however it went."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
