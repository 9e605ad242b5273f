"""How calls travel to Redis: together, in bounded portions, and each answered whatever becomes of the others."""

import asyncio
import gc
import hashlib
import logging
from typing import Any, Final, cast

import hiredis
import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, ResponseError

from libs.common.runtime import spawn
from libs.common.scripts import Scripts, StoreRefused, StoreUnavailable, heed

pytestmark = pytest.mark.anyio

OK: Final = [b"OK"]
TIMEOUT_S: Final = 5


class Connection:
    """The library's, to `Server`: its transport parses what is written, and hands the protocol the server's replies."""

    def __init__(self, server: "Server") -> None:
        self._server = server
        self._writer = self._parser = self.transport = self
        self._protocol = asyncio.Protocol()

    async def connect(self) -> None:
        if self._server.fails is not None:
            raise self._server.fails

    async def disconnect(self, nowait: bool) -> None: ...

    def parse_error(self, text: str) -> Exception:
        return NoScriptError(text) if text.startswith("NOSCRIPT") else ResponseError(text)

    def get_protocol(self) -> asyncio.Protocol:
        return self._protocol

    def set_protocol(self, protocol: asyncio.Protocol) -> None:
        self._protocol = protocol

    def write(self, packed: bytes) -> None:
        reader = hiredis.Reader()
        reader.feed(packed)
        calls = []
        while (call := reader.gets()) is not False:
            calls.append(tuple(call))
        spawn(self._answer(calls), name="test-redis")

    def abort(self) -> None: ...

    async def _answer(self, calls: list[tuple[Any, ...]]) -> None:
        try:
            self._protocol.data_received(b"".join(await self._server.run(calls)))
        except (RedisConnectionError, OSError) as error:
            self._protocol.connection_lost(error)


class Pool:
    """The pool of a client, as far as lines are made from it."""

    def __init__(self, server: "Server") -> None:
        self.connection_kwargs: dict[str, Any] = {}
        self._in_use_connections: set[Connection] = set()
        self._server = server

    def connection_class(self, **settings: Any) -> Connection:
        return Connection(self._server)


class Server:
    """Redis, as far as `Scripts` sees it: answers by key, notes what it executed."""

    def __init__(self) -> None:
        self.connection_pool = Pool(self)
        self.pipelines: list[int] = []
        self.executed: list[str] = []
        self.under_way = self.under_way_max = self.loads = 0
        self.forgetful: set[str] = set()
        """Keys whose calls are answered NOSCRIPT until scripts are loaded."""
        self.refused: set[str] = set()
        self.hold = asyncio.Event()
        self.hold.set()
        self.fails: Exception | None = None

    async def run(self, calls: list[tuple[Any, ...]]) -> list[bytes]:
        self.pipelines.append(len(calls))
        self.under_way += 1
        self.under_way_max = max(self.under_way, self.under_way_max)
        try:
            await self.hold.wait()
            if self.fails is not None:
                raise self.fails
            return [self._reply(call) for call in calls]
        finally:
            self.under_way -= 1

    def _reply(self, call: tuple[Any, ...]) -> bytes:
        key = call[3].decode()
        if call[0] == b"EVAL":
            assert b"redis.call" in call[1]
            self.loads += 1
            self.forgetful.clear()
        if key in self.forgetful:
            return b"-NOSCRIPT No matching script\r\n"
        if key in self.refused:
            return b"-WRONGTYPE\r\n"
        self.executed.append(key)
        return b"*1\r\n$2\r\nOK\r\n"


class Client:
    """Scripts with a short name for a call."""

    def __init__(self, server: Server) -> None:
        self._scripts = Scripts(cast("Redis", server))

    def ask(self, name: str) -> "asyncio.Future[Any]":
        return self._scripts.call("settle", 1, name)


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow this machine is, what gathers has not waited for too long."""
    monkeypatch.setattr("libs.common.scripts._GATHER_S", float(TIMEOUT_S))


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_calls_of_one_turn_travel_together() -> None:
    server = Server()
    client = Client(server)
    results = await asyncio.gather(*(client.ask(f"acct_{number}") for number in range(20)))
    assert results == [OK] * 20
    assert server.pipelines == [20]


async def test_many_calls_travel_in_portions() -> None:
    server = Server()
    client = Client(server)
    await asyncio.gather(*(client.ask(f"acct_{number}") for number in range(3000)))
    assert max(server.pipelines) == 256
    assert sorted(server.executed) == sorted(f"acct_{number}" for number in range(3000))


async def test_whoever_waits_is_not_kept_for_a_pipeline_that_is_under_way() -> None:
    server = Server()
    client = Client(server)
    server.hold.clear()
    calls = [client.ask("acct_1")]
    await turns(3)
    calls.append(client.ask("acct_2"))
    await turns(3)
    assert server.pipelines == [1, 1]
    server.hold.set()
    async with asyncio.timeout(TIMEOUT_S):
        await asyncio.gather(*calls)


async def test_while_redis_is_slow_calls_gather_behind_eight_pipelines() -> None:
    """Not one connection a call, until the pool is empty and callers are refused for nothing."""
    server = Server()
    client = Client(server)
    server.hold.clear()
    calls = []
    for number in range(30):
        calls.append(client.ask(f"acct_{number}"))
        await asyncio.sleep(0.003)
    assert server.under_way == 8
    server.hold.set()
    async with asyncio.timeout(TIMEOUT_S):
        await asyncio.gather(*calls)
    assert server.under_way_max == 8
    assert len(server.executed) == 30
    assert len(server.pipelines) == 9


async def test_only_what_was_not_done_is_asked_again() -> None:
    """Scripts were lost in the middle of a pipeline: what came before was done, and a second time would be once too often."""
    server = Server()
    server.forgetful = {"acct_1", "acct_3"}
    client = Client(server)
    await asyncio.gather(*(client.ask(f"acct_{number}") for number in range(5)))
    assert sorted(server.executed) == [f"acct_{number}" for number in range(5)]
    assert server.pipelines == [5, 2]
    assert server.loads == 1


async def test_an_error_of_one_call_is_its_own() -> None:
    server = Server()
    server.refused = {"acct_1"}
    client = Client(server)
    results = await asyncio.gather(*(client.ask(f"acct_{n}") for n in range(3)), return_exceptions=True)
    assert results[0] == results[2] == OK
    assert isinstance(results[1], StoreRefused)


async def test_a_caller_who_leaves_takes_nobody_with_him() -> None:
    server = Server()
    client = Client(server)
    server.hold.clear()
    calls = [(client.ask(f"acct_{number}")) for number in range(3)]
    await asyncio.sleep(0)
    calls[0].cancel()  # before it travels
    await asyncio.sleep(0.01)
    calls[1].cancel()  # while it travels
    server.hold.set()
    async with asyncio.timeout(TIMEOUT_S):
        assert await calls[2] == OK
    assert calls[0].cancelled() and calls[1].cancelled()
    assert await client.ask("acct_9") == OK


@pytest.mark.parametrize("error", [RedisConnectionError("refused"), TimeoutError("late"), OSError("reset")])
async def test_without_redis_everyone_is_told_those_who_wait_too(error: Exception) -> None:
    server = Server()
    client = Client(server)
    server.hold.clear()
    server.fails = error
    calls = []
    for number in range(20):
        calls.append(client.ask(f"acct_{number}"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    server.hold.set()
    async with asyncio.timeout(TIMEOUT_S):
        results = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(result, StoreUnavailable) for result in results)
    assert sum(server.pipelines) < 20
    server.fails = None
    assert await client.ask("acct_1") == OK


async def test_nobody_waits_for_ever_whatever_happens(caplog: pytest.LogCaptureFixture) -> None:
    server = Server()
    client = Client(server)
    server.fails = RuntimeError("nobody foresaw this")
    async with asyncio.timeout(TIMEOUT_S):
        with pytest.raises(StoreUnavailable):
            await client.ask("acct_1")
    await asyncio.sleep(0)
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    server.fails = None
    assert await client.ask("acct_1") == OK


async def test_a_call_nobody_waits_for_is_made_and_its_failure_is_no_complaint(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = Server()
    client = Client(server)
    heed(client.ask("acct_1"))
    await asyncio.sleep(0.01)
    assert server.executed == ["acct_1"]
    server.fails = TimeoutError("late")
    heed(client.ask("acct_2"))
    await asyncio.sleep(0.01)
    gc.collect()
    assert caplog.records == []


async def test_a_script_begins_with_what_it_includes() -> None:
    admit = Scripts(cast("Redis", Server()))._source("admit")[1]
    assert admit.index(b"local function periods_at") < admit.index(b"local time = redis.call('TIME')")
    assert hashlib.sha1(admit).hexdigest() == Scripts(cast("Redis", Server()))._source("admit")[0]


async def test_a_patient_call_travels_with_the_next_one_and_before_it(unhurried: None) -> None:
    server = Server()
    scripts = Scripts(cast("Redis", server))
    patient = scripts.call("settle", 1, "acct_patient", patient=True)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert server.pipelines == []
    await scripts.call("settle", 1, "acct_hasty")
    assert patient.done()
    assert (server.pipelines, server.executed) == ([2], ["acct_patient", "acct_hasty"])


async def test_a_patient_call_does_not_leave_alone_because_a_pipeline_is_back(unhurried: None) -> None:
    server = Server()
    scripts = Scripts(cast("Redis", server))
    server.hold.clear()
    first = scripts.call("settle", 1, "acct_first")
    await turns(3)
    patient = scripts.call("settle", 1, "acct_patient", patient=True)
    server.hold.set()
    await first
    await turns(3)
    assert not patient.done()
    await scripts.call("settle", 1, "acct_hasty")
    assert patient.done()
    assert server.pipelines == [1, 2]


async def test_a_patient_call_does_not_wait_for_long() -> None:
    server = Server()
    scripts = Scripts(cast("Redis", server))
    async with asyncio.timeout(0.5):
        await scripts.call("settle", 1, "acct_1", patient=True)
    heed(scripts.call("settle", 1, "acct_2", patient=True))
    await scripts.drain()
    assert server.executed == ["acct_1", "acct_2"]
