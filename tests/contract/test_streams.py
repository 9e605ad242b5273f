"""What the services rely on in JetStream: streams as configured, compare-and-set by subject, repetitions that are none."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import nats.errors
import pytest
from nats.aio.client import Client
from nats.js.api import PubAck, StreamConfig
from nats.js.client import JetStreamContext
from nats.js.errors import APIError

from libs.common import events, ids, streams, subjects
from libs.common.events import Account
from libs.common.streams import StreamMissing
from libs.localstack.process import free_port
from libs.localstack.stores import start_nats
from services.admin.control import By, Control
from services.admin.mirror import Mirror
from services.admin.problems import Conflict, Unavailable, Unprocessable
from tests.unit.accounting.samples import account
from tests.unit.accounting.test_control import Applied

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def empty_nats_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server without streams."""
    directory: Path = tmp_path_factory.mktemp("nats")
    port = free_port()
    process = start_nats(directory, directory / "logs", port=port)
    yield f"nats://127.0.0.1:{port}"
    process.stop()


@pytest.fixture
async def broker(nats_url: str) -> AsyncIterator[Client]:
    connected = await streams.connect(nats_url, name="test")
    await streams.create(connected.jetstream(), replicas=1, bytes_max=2**28)
    yield connected
    await connected.close()


async def test_streams_are_made_once_and_checked(empty_nats_url: str) -> None:
    broker = await streams.connect(empty_nats_url, name="test")
    jetstream = broker.jetstream()
    with pytest.raises(StreamMissing, match="USAGE does not exist"):
        await streams.check(jetstream)
    for _ in range(2):
        await streams.create(jetstream, replicas=1, bytes_max=2**20)
    await streams.check(jetstream)
    for name in ("USAGE", "CONTROL", "DLQ"):
        config = (await jetstream.stream_info(name)).config
        assert config.deny_delete and config.deny_purge and config.max_bytes == 2**20
        with pytest.raises(APIError):
            await jetstream.purge_stream(name)
        with pytest.raises(APIError):
            await jetstream.delete_msg(name, 1)
    await broker.close()


async def test_a_full_stream_takes_more_once_the_next_bootstrap_has_raised_its_size(tmp_path: Path) -> None:
    port = free_port()
    process = start_nats(tmp_path, tmp_path / "logs", port=port)
    broker = await streams.connect(f"nats://127.0.0.1:{port}", name="test")
    jetstream, event = broker.jetstream(), b"x" * 40_000
    await streams.create(jetstream, replicas=1, bytes_max=50_000)
    await jetstream.publish("usage.v1.p00", event)
    with pytest.raises(APIError, match="maximum bytes exceeded"):
        await jetstream.publish("usage.v1.p00", event)
    await streams.create(jetstream, replicas=1, bytes_max=100_000)
    await jetstream.publish("usage.v1.p00", event)
    await streams.create(jetstream, replicas=1, bytes_max=10_000)
    info = await jetstream.stream_info(subjects.STREAM_USAGE)
    assert (info.config.max_bytes, info.state.messages) == (100_000, 2)
    await streams.check(jetstream)
    await broker.close()
    process.stop()


async def test_a_stream_of_another_make_is_not_taken(tmp_path: Path) -> None:
    port = free_port()
    process = start_nats(tmp_path, tmp_path / "logs", port=port)
    broker = await streams.connect(f"nats://127.0.0.1:{port}", name="test")
    jetstream = broker.jetstream()
    await jetstream.add_stream(StreamConfig(name="USAGE", subjects=["usage.>"], max_age=60))
    await streams.create(jetstream, replicas=1, bytes_max=2**20)
    with pytest.raises(StreamMissing, match="USAGE"):
        await streams.check(jetstream)
    await broker.close()
    process.stop()


@pytest.mark.alone
async def test_publishing_while_away_fails_at_once(tmp_path: Path) -> None:
    port = free_port()
    process = start_nats(tmp_path, tmp_path / "logs", port=port)
    broker = await streams.connect(f"nats://127.0.0.1:{port}", name="test")
    process.stop()
    while broker.is_connected:
        await asyncio.sleep(0.01)
    started = time.monotonic()
    with pytest.raises(nats.errors.Error):
        await broker.jetstream().publish("usage.v1.p00", b"", timeout=5)
    assert time.monotonic() - started < 1
    await streams.close(broker)
    await streams.close(broker)
    await streams.close(Client())


async def send(jetstream: JetStreamContext, entity_id: str, expected: int, message_id: str) -> PubAck:
    headers = {"Nats-Expected-Last-Subject-Sequence": str(expected), "Nats-Msg-Id": message_id}
    subject = subjects.control_subject("account", entity_id)
    return await jetstream.publish(subject, b"{}", stream=subjects.STREAM_CONTROL, headers=headers)


async def test_compare_and_set(broker: Client) -> None:
    jetstream, entity_id = broker.jetstream(), ids.new_account_id()
    first = await send(jetstream, entity_id, 0, f"{entity_id}:a")
    for message_id in ("a", "b"):  # also for a repetition: the server compares before it looks for those
        with pytest.raises(APIError) as caught:
            await send(jetstream, entity_id, 0, f"{entity_id}:{message_id}")
        assert caught.value.err_code == 10071
    assert (await send(jetstream, entity_id, first.seq, f"{entity_id}:c")).seq > first.seq


async def test_a_stream_that_is_not_there_is_an_error(broker: Client) -> None:
    with pytest.raises((nats.errors.Error, APIError)):
        await broker.jetstream().publish("control.account.x", b"", stream="NO_SUCH_STREAM")


def by(reason: str) -> By:
    return By(actor="test", address="", reason=reason)


def control_over(broker: Client) -> Control:
    return Control(broker, Applied(), Mirror(broker))  # type: ignore[arg-type]


async def test_control_finds_and_puts(broker: Client) -> None:
    control = control_over(broker)
    entity = account(ids.new_account_id())
    assert await control.find(type(entity), entity.id) is None
    found = await control.put(entity, over=None, by=by("created"))
    assert await control.find(type(entity), entity.id) == found
    with pytest.raises(Conflict):
        await control.put(entity, over=None, by=by("again"))
    assert (await control.put(entity, over=found, by=by("changed"))).version > found.version


async def test_several_change_together_or_not_at_all(broker: Client) -> None:
    control = control_over(broker)
    one, two, three = (account(ids.new_account_id()) for _ in range(3))
    found = await control.put_all([(one, None), (two, None)], by=by("created"))
    assert [await control.find(Account, each.entity.id) for each in found] == found
    with pytest.raises(Conflict):
        await control.put_all([(three, None), (one, found[0]), (two, None)], by=by("the last one is late"))
    assert await control.find(Account, three.id) is None
    assert await control.find(Account, one.id) == found[0]


async def test_each_change_names_the_one_before(broker: Client) -> None:
    control = control_over(broker)
    entity = account(ids.new_account_id())
    found = await control.put(entity, over=None, by=by("created"))
    await control.put(entity, over=found, by=by("changed"))
    jetstream, subject = broker.jetstream(), subjects.control_subject("account", entity.id)
    last = await jetstream.get_last_msg(subjects.STREAM_CONTROL, subject)
    first = await jetstream.get_msg(subjects.STREAM_CONTROL, found.version)
    assert events.decode_control(last.data or b"").previous == events.payload_sha256(first.data or b"") != ""
    assert events.decode_control(first.data or b"").previous == ""


async def test_the_same_request_finds_what_it_has_made(broker: Client) -> None:
    control = control_over(broker)
    entity = account(ids.new_account_id())
    assert await control.first(Account, entity.id, "r1") is None
    made = msgspec.structs.replace(by("created"), request="r1")
    found = await control.put(entity, over=None, by=made)
    await control.put(msgspec.structs.replace(entity, name="new"), over=found, by=by("changed"))
    assert await control.first(Account, entity.id, "r1") == entity
    with pytest.raises(Unprocessable, match="another request"):
        await control.first(Account, entity.id, "r2")


class Deaf(Client):
    """A connection over which all is stored, and whose first acknowledgements get lost."""

    def __init__(self, broker: Client, lost: int) -> None:
        self._real = broker
        self.lost = lost

    def __getattribute__(self, name: str) -> Any:
        own = ("_real", "lost", "request")
        return object.__getattribute__(self, name) if name in own else getattr(self._real, name)

    async def request(self, subject: str, *sent: Any, **options: Any) -> Any:
        answer = await self._real.request(subject, *sent, **options)
        if subject.startswith("control."):
            self.lost -= 1
            if self.lost >= 0:
                raise nats.errors.TimeoutError
        return answer


@pytest.mark.parametrize("count", [1, 3])
async def test_a_change_whose_acknowledgement_is_lost_is_made_once(broker: Client, count: int) -> None:
    entities = [account(ids.new_account_id()) for _ in range(count)]
    control = control_over(Deaf(broker, lost=1))
    found = await control.put_all([(one, None) for one in entities], by=by("created"))
    assert [await control.find(Account, one.id) for one in entities] == found
    control = control_over(Deaf(broker, lost=1))
    with pytest.raises(Conflict):
        await control.put_all([(one, None) for one in entities], by=by("too late"))


async def test_when_no_answer_comes_nobody_says_that_nothing_was_changed(broker: Client) -> None:
    control = control_over(Deaf(broker, lost=2))
    with pytest.raises(Unavailable, match="may have been made or not"):
        await control.put(account(ids.new_account_id()), over=None, by=by("created"))
    nobody = control_over(Client())
    with pytest.raises(Unavailable, match="nothing was changed"):
        await nobody.put(account(), over=None, by=by(""))
    with pytest.raises(Unavailable):
        await nobody.find(Account, "acct_1")


async def test_a_stream_of_an_older_release_learns_to_take_batches(broker: Client) -> None:
    jetstream = broker.jetstream()
    config = (await jetstream.stream_info(subjects.STREAM_CONTROL)).config
    config.allow_atomic = False
    await jetstream.update_stream(config)
    with pytest.raises(streams.StreamMissing, match="allow_atomic"):
        await streams.check(jetstream)
    await streams.create(jetstream, replicas=1, bytes_max=2**30)
    await streams.check(jetstream)
