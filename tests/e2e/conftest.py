"""One relay for all end-to-end tests of a session; each test makes its own account."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final

import pytest

from libs.localstack.stores import start_clickhouse, start_nats, start_redis
from tests.e2e.herd import HoldingUpstream, Size, learned_size
from tests.e2e.relay import UPSTREAM_KEY, Gateway, Relay, free_port, running_relay
from tests.e2e.store import Store
from tests.e2e.wire import Caller, ScriptedUpstream

QUICK: Final = {"RELAY_DRAIN_SECONDS": "3", "RELAY_BATCH_SECONDS": "0.05", "RELAY_REAP_SECONDS": "1"}


@pytest.fixture(scope="session")
def stores(nats_url: str, redis_url: str, clickhouse_url: str) -> dict[str, str]:
    """The stores' addresses as settings."""
    return {"RELAY_NATS_URL": nats_url, "RELAY_REDIS_URL": redis_url, "RELAY_CLICKHOUSE_URL": clickhouse_url}


@pytest.fixture(scope="session")
def relay(stores: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relay]:
    """A running relay with the simulator as its upstream, and short times so that their ends can be seen."""
    logs: Path = tmp_path_factory.mktemp("relay-logs")
    with running_relay(stores, logs, **QUICK) as running:
        yield running


@pytest.fixture(scope="session")
def own_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """The Redis of `own_relay`."""
    store = Store(start_redis, tmp_path_factory.mktemp("redis"))
    yield store
    store.close()


@pytest.fixture(scope="session")
def own_nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """The NATS of `own_relay`."""
    store = Store(start_nats, tmp_path_factory.mktemp("nats"))
    yield store
    store.close()


@pytest.fixture(scope="session")
def own_clickhouse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """The ClickHouse of `own_relay`."""
    store = Store(start_clickhouse, tmp_path_factory.mktemp("clickhouse"))
    yield store
    store.close()


@pytest.fixture(scope="session")
def own_relay(
    own_redis: Store, own_nats: Store, own_clickhouse: Store, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Relay]:
    """A second relay, for tests that take its stores away or end its processes."""
    own = {
        "RELAY_REDIS_URL": f"redis://127.0.0.1:{own_redis.port}/0",
        "RELAY_NATS_URL": f"nats://127.0.0.1:{own_nats.port}",
        "RELAY_CLICKHOUSE_URL": f"http://127.0.0.1:{own_clickhouse.port}/relay",
    }
    small_batches = {"RELAY_BATCH_MESSAGES_MAX": "20", "RELAY_BATCH_SECONDS": "0.05", "RELAY_REAP_SECONDS": "1"}
    with running_relay(own, tmp_path_factory.mktemp("logs"), **small_batches) as running:
        yield running


@pytest.fixture(scope="module")
def upstream() -> Iterator[ScriptedUpstream]:
    """An upstream that does what a test says."""
    scripted = ScriptedUpstream()
    yield scripted
    scripted.close()


@pytest.fixture(scope="module")
def scripted_gateway(relay: Relay, upstream: ScriptedUpstream) -> Iterator[Gateway]:
    """A gateway in front of that upstream, on the same stores as the relay; its drains outlast any test."""
    with relay.second_gateway(upstream.url, RELAY_DRAIN_SECONDS="60") as running:
        yield running


@pytest.fixture(scope="module")
def gateway(scripted_gateway: Gateway) -> Gateway:
    """The gateway that a module is about; a module that wants other settings has its own."""
    return scripted_gateway


@pytest.fixture
def caller(gateway: Gateway) -> Iterator[Caller]:
    """A connection to that gateway."""
    with Caller.to(gateway.url) as connection:
        yield connection


@pytest.fixture(scope="module")
def account(relay: Relay) -> tuple[str, str]:
    """(account id, key) for the tests of a module."""
    return relay.new_account()


@pytest.fixture
def key(account: tuple[str, str]) -> bytes:
    """The key of that account."""
    return account[1].encode()


@pytest.fixture
def nothing_happens(
    relay: Relay, gateway: Gateway, account: tuple[str, str], upstream: ScriptedUpstream
) -> Iterator[None]:
    """Nothing is forwarded, charged, left behind, or written to the log that should not be."""
    before, forwarded = relay.spent_nanos(account[0]), len(upstream.requests)
    yield
    assert len(upstream.requests) == forwarded
    gateway.wait_at_rest()
    assert relay.spent_nanos(account[0]) == before
    text = gateway.service.log_text
    assert "Traceback" not in text and UPSTREAM_KEY not in text and "sk-cr-" not in text


@pytest.fixture(scope="module")
def holding_port() -> int:
    """Where `holding` listens while a test runs: gateways are told before it does."""
    return free_port()


@pytest.fixture
async def holding(anyio_backend: str, holding_port: int) -> AsyncIterator[HoldingUpstream]:
    """An upstream that keeps every request waiting until a test lets it go."""
    async with HoldingUpstream.serving(holding_port) as upstream:
        yield upstream


@pytest.fixture(scope="module")
def size(relay: Relay) -> Size:
    """What the herd's request takes at admission, as the relay itself tells it."""
    return learned_size(relay)
