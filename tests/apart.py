"""NATS and Redis of a test module's own: for tests that publish what every other test would see, such as prices."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from libs.localstack.process import free_port
from libs.localstack.stores import start_nats, start_redis
from tests.gates import open_gates


@contextlib.contextmanager
def nats_apart(directory: Path) -> Iterator[str]:
    """A server without streams."""
    port = free_port()
    process = start_nats(directory / "nats", directory, port=port)
    try:
        yield f"nats://127.0.0.1:{port}"
    finally:
        process.stop()


@contextlib.contextmanager
def redis_apart(directory: Path) -> Iterator[str]:
    """An empty server, open as one is in a new installation."""
    port = free_port()
    process = start_redis(directory / "redis", directory, port=port)
    try:
        url = f"redis://127.0.0.1:{port}/0"
        open_gates(url)
        yield url
    finally:
        process.stop()
