"""What every test may use: real stores of its own, the recorded corpus, and a guard against any other network."""

import ipaddress
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.stores import TestStores, start_stores

_LOOPBACK_NAMES: Final = frozenset({"localhost", "localhost.localdomain"})
_CLEARED: Final = ("ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL", "ANTHROPIC_AUTH_TOKEN")
_real_connect = socket.socket.connect


def pytest_configure(config: pytest.Config) -> None:
    """No credential of the machine is ever used, and no proxy."""
    for name in list(os.environ):
        if name in _CLEARED or name.lower().endswith("_proxy") or name.startswith("RELAY_UPSTREAM"):
            del os.environ[name]
    socket.socket.connect = _guarded_connect  # type: ignore[method-assign, assignment]


def pytest_report_header(config: pytest.Config) -> str:
    """Say where the corpus is read from, or that it is not there."""
    folder = _corpus_folder()
    return f"corpus: {folder}" if (folder / "index.json").exists() else f"corpus: NOT FOUND at {folder}"


def _guarded_connect(self: socket.socket, address: Any) -> None:
    if self.family in (socket.AF_INET, socket.AF_INET6):
        host = address[0]
        if host not in _LOOPBACK_NAMES and not ipaddress.ip_address(host).is_loopback:
            raise AssertionError(f"a test tried to connect to {host}")
    _real_connect(self, address)


@pytest.fixture
def anyio_backend() -> str:
    """Async tests run on asyncio, as the services do."""
    return "asyncio"


@pytest.fixture(scope="session")
def stores_running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestStores]:
    """NATS, Redis and ClickHouse for the whole session: local processes, or containers if RELAY_TEST_STACK says so."""
    directory = tmp_path_factory.mktemp("stores")
    with start_stores(directory) as stores:
        yield stores
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def nats_url(stores_running: TestStores) -> str:
    """A JetStream server. Streams do not exist before a bootstrap."""
    return stores_running.nats_url


@pytest.fixture(scope="session")
def redis_url(stores_running: TestStores) -> str:
    """A Redis server. Tests use fresh ids instead of flushing."""
    return stores_running.redis_url


@pytest.fixture(scope="session")
def clickhouse_url(stores_running: TestStores) -> str:
    """ClickHouse's HTTP interface with a database."""
    return stores_running.clickhouse_url


@pytest.fixture(scope="session")
def corpus() -> Path:
    """The recorded responses. They are not part of the repository: without them the golden streams cover the same shapes."""
    folder = _corpus_folder()
    if not (folder / "index.json").exists():
        if "CI" in os.environ:
            pytest.fail(f"the recorded corpus is not at {folder}")
        pytest.skip(f"the recorded corpus is not at {folder}; set RELAY_CORPUS")
    return folder


def _corpus_folder() -> Path:
    default = Path(__file__).parent.parent.parent / "shared" / "fixtures"
    return Path(os.environ.get("RELAY_CORPUS", default))
