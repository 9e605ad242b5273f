"""The log of changes: the real one, and the one in memory that unit tests stand on, behave alike."""

from collections.abc import AsyncIterator

import msgspec
import pytest

from libs.common import clock, ids, redisclient, sealing, streams
from libs.common.balances import Balances
from libs.common.directory import Directory
from libs.common.events import Account, Member, UpstreamCredential
from libs.common.upstreams import Upstreams
from services.admin.control import By, Control, Found
from services.admin.mirror import Mirror
from services.admin.problems import Conflict, Unprocessable
from tests.unit.admin.desk import MemoryControl

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["memory", "nats"])
async def control(request: pytest.FixtureRequest, nats_url: str, redis_url: str) -> AsyncIterator[Control]:
    if request.param == "memory":
        yield MemoryControl()
        return
    broker = await streams.connect(nats_url, name="test")
    redis = redisclient.connect(redis_url)
    await streams.create(broker.jetstream(), replicas=1, bytes_max=2**30)
    yield Control(broker, Directory(redis, Balances(redis), Upstreams(redis)), Mirror(broker))
    await redis.aclose()
    await broker.close()


def member(name: str = "Zoë") -> Member:
    return Member(id=ids.new_member_id(), account_id=ids.new_account_id(), name=name, created_at_ms=clock.unix_ms())


def upstream(name: str) -> UpstreamCredential:
    made = ids.new_upstream_id()
    sealed = sealing.Sealer(sealing.new_key()).seal(
        made, sealing.UpstreamSecret(api_key="sk-ant-" + "x" * 20, proxy_url="")
    )
    return UpstreamCredential(
        id=made, name=name, created_at_ms=clock.unix_ms(), base_url="http://127.0.0.1:1", sealed=sealed, hint="xxxx"
    )


BY = By(actor="test", address="", reason="test")


async def test_what_was_put_is_found(control: Control) -> None:
    first = member()
    found = await control.put(first, over=None, by=BY)
    assert found.entity == first
    assert await control.find(Member, first.id) == found
    assert await control.find(Account, ids.new_account_id()) is None


async def test_a_change_needs_the_present_version(control: Control) -> None:
    first = member()
    found = await control.put(first, over=None, by=BY)
    second = msgspec.structs.replace(first, name="new")
    later = await control.put(second, over=found, by=BY)
    stale: list[Found[Member] | None] = [None, found]
    for one in stale:
        with pytest.raises(Conflict):
            await control.put(first, over=one, by=BY)
    assert await control.find(Member, first.id) == later


async def test_all_or_none_and_the_first_state(control: Control) -> None:
    one, two = member("one"), member("two")
    by = msgspec.structs.replace(BY, request="r")
    found = await control.put_all([(one, None), (two, None)], by=by)
    with pytest.raises(Conflict):
        await control.put_all([(member("three"), None), (one, None)], by=BY)
    await control.put(msgspec.structs.replace(one, name="uno"), over=found[0], by=BY)
    assert await control.first(Member, one.id, "r") == one
    assert await control.first(Member, ids.new_member_id(), "r") is None
    with pytest.raises(Unprocessable):
        await control.first(Member, one.id, "another")


async def test_all_of_a_kind_are_listed_as_they_are_now(control: Control) -> None:
    made = [upstream("a"), upstream("b"), upstream("c")]
    found = [await control.put(one, over=None, by=BY) for one in made]
    made[1] = msgspec.structs.replace(made[1], name="B")
    await control.put(made[1], over=found[1], by=BY)
    await control.put(member(), over=None, by=BY)
    listed = await control.list_all(UpstreamCredential)
    names = [one.entity.id for one in listed]
    assert names == sorted(names)
    assert [one.entity for one in listed if one.entity in made] == sorted(made, key=lambda one: one.id)
    for one in listed:
        assert await control.find(UpstreamCredential, one.entity.id) == one
