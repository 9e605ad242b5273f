"""NATS and Redis of a test module's own: for tests that publish what every other test would see, such as prices."""

from collections.abc import Iterator

import pytest

from libs.localstack.process import free_port
from libs.localstack.stores import start_nats, start_redis
from tests.gates import open_gates


@pytest.fixture(scope="module")
def nats_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server without streams."""
    port, directory = free_port(), tmp_path_factory.mktemp("nats")
    process = start_nats(directory / "data", directory, port=port)
    try:
        yield f"nats://127.0.0.1:{port}"
    finally:
        process.stop()


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An empty server, open as one is in a new installation."""
    port, directory = free_port(), tmp_path_factory.mktemp("redis")
    process = start_redis(directory / "data", directory, port=port)
    try:
        url = f"redis://127.0.0.1:{port}/0"
        open_gates(url)
        yield url
    finally:
        process.stop()
