"""A store that belongs to the tests that take it away."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

from libs.localstack.process import Process
from tests.e2e.relay import free_port


class Store:
    """A store of this module's own, that can be taken away and given back with its data."""

    def __init__(self, start: Callable[..., Process], directory: Path) -> None:
        self._start = start
        self._directory = directory
        self.port = free_port()
        self.process = self._started()

    def give_back(self) -> None:
        """Start it again, or let it go on."""
        if self.process.is_running():
            os.kill(self.process.pid, signal.SIGCONT)
        else:
            self.process = self._started()

    def kill(self) -> None:
        """kill -9: nobody listens any more."""
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.stop()

    def freeze(self) -> None:
        """It keeps its connections and says nothing."""
        os.kill(self.process.pid, signal.SIGSTOP)

    def close(self) -> None:
        """End it for good."""
        self.give_back()
        self.process.stop()

    def _started(self) -> Process:
        return self._start(self._directory, self._directory / "logs", port=self.port)
