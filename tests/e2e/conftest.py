"""One relay for all end-to-end tests of a session; each test makes its own account."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.relay import Relay, running_relay


@pytest.fixture(scope="session")
def stores(nats_url: str, redis_url: str, clickhouse_url: str) -> dict[str, str]:
    """The stores' addresses as settings."""
    return {"RELAY_NATS_URL": nats_url, "RELAY_REDIS_URL": redis_url, "RELAY_CLICKHOUSE_URL": clickhouse_url}


@pytest.fixture(scope="session")
def relay(stores: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relay]:
    """A running relay with the simulator as its upstream, and a short drain so that its cap can be seen."""
    logs: Path = tmp_path_factory.mktemp("relay-logs")
    with running_relay(stores, logs, RELAY_DRAIN_SECONDS="3") as running:
        yield running
