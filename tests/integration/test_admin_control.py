"""The log of changes: the real one, and the one in memory that unit tests stand on, behave alike."""

from collections.abc import AsyncIterator

import pytest

from libs.common import clock, ids, redisclient, sealing, streams
from libs.common.balances import Balances
from libs.common.directory import Directory
from libs.common.events import Account, Member, UpstreamCredential
from libs.common.upstreams import Upstreams
from services.admin.control import Control
from services.admin.problems import Conflict
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
    yield Control(broker, Directory(redis, Balances(redis), Upstreams(redis)))
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


async def test_what_was_put_is_found(control: Control) -> None:
    first = member()
    version = await control.put(first, version=0, actor="test", reason="created")
    assert await control.find(Member, first.id) == (first, version)
    assert await control.find(Account, ids.new_account_id()) is None


async def test_a_change_needs_the_present_version(control: Control) -> None:
    first = member()
    version = await control.put(first, version=0, actor="test", reason="created")
    second = Member(**{name: getattr(first, name) for name in first.__struct_fields__} | {"name": "new"})
    later = await control.put(second, version=version, actor="test", reason="changed")
    for stale in (0, version):
        with pytest.raises(Conflict):
            await control.put(first, version=stale, actor="test", reason="late")
    assert await control.find(Member, first.id) == (second, later)


async def test_all_of_a_kind_are_listed_as_they_are_now(control: Control) -> None:
    made = [upstream("a"), upstream("b"), upstream("c")]
    for one in made:
        await control.put(one, version=0, actor="test", reason="created")
    found = await control.find(UpstreamCredential, made[1].id)
    assert found is not None
    values = {name: getattr(made[1], name) for name in made[1].__struct_fields__}
    made[1] = UpstreamCredential(**values | {"name": "B"})
    await control.put(made[1], version=found[1], actor="test", reason="changed")
    await control.put(member(), version=0, actor="test", reason="created")
    listed = await control.list_all(UpstreamCredential)
    assert [one.id for one, _ in listed] == sorted(one.id for one, _ in listed)
    assert [one for one, _ in listed if one in made] == sorted(made, key=lambda one: one.id)
    for one, version in listed:
        assert await control.find(UpstreamCredential, one.id) == (one, version)
