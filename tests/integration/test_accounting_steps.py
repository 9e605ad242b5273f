"""A worker that fails or dies between any two of its steps: one row, one debit for each event, in whatever order they come."""

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final, get_args

import msgspec
import pytest

from libs.common import failpoints
from libs.common.events import UsageRecorded
from libs.common.failpoints import Name
from libs.localstack.process import free_port
from libs.localstack.stores import start_nats
from tests.e2e.relay import Service, environment_of
from tests.e2e.store import Store
from tests.integration.accounting_rig import Rig
from tests.unit.accounting.samples import ONE_TOKEN_NANOS, recorded

pytestmark = pytest.mark.anyio
STEPS: Final[tuple[Name, ...]] = (
    "priced",
    "reminded",
    "appended",
    "settled",
    "marked",
    "acknowledged_some",
    "control_archived",
    "control_applied",
    "control_credited",
)
EVENTS: Final = 30


@pytest.fixture(scope="module")
def own_nats_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A JetStream that no other worker reads from: who is to die at a step must come to it."""
    store = Store(start_nats, tmp_path_factory.mktemp("nats"))
    yield f"nats://127.0.0.1:{store.port}"
    store.close()


@pytest.fixture
async def rig(own_nats_url: str, redis_url: str, clickhouse_url: str) -> AsyncIterator[Rig]:
    async with Rig.over(own_nats_url, redis_url, clickhouse_url) as made:
        yield made


def nth(step: Name) -> int:
    """The second time that it is passed; changes of control may all be in one batch."""
    return 1 if step.startswith("control") else 2


async def story(rig: Rig, chance: random.Random) -> tuple[str, int]:
    """An account, and events in up to four versions, in any order and grouping, twice: (account, what it must have spent)."""
    account_id = await rig.new_account()
    sent: list[UsageRecorded] = []
    due = 0
    for _ in range(EVENTS):
        first = recorded(account_id, chance.randint(1, 50), version=chance.randint(1, 3))
        versions = [first]
        for _ in range(chance.randint(0, 2)):
            usage = {"input_tokens": chance.randint(1, 50), "output_tokens": 0}
            versions.append(msgspec.structs.replace(versions[-1], version=versions[-1].version + 1, usage=usage))
        due += int(versions[-1].usage["input_tokens"]) * ONE_TOKEN_NANOS
        sent += versions
    for _ in range(2):
        chance.shuffle(sent)
        rest = list(sent)
        while rest:
            await rig.publish([rest.pop() for _ in range(min(len(rest), chance.randint(1, 6)))], again=True)
    return account_id, due


def worker(rig: Rig, logs: Path, **settings: str) -> Service:
    """A worker process."""
    port = free_port()
    environment = environment_of(
        {
            "RELAY_NATS_URL": rig.config.nats_url,
            "RELAY_REDIS_URL": rig.config.redis_url,
            "RELAY_CLICKHOUSE_URL": rig.config.clickhouse_url,
            "RELAY_BATCH_SECONDS": "0.05",
            "RELAY_BATCH_MESSAGES_MAX": "10",
            "RELAY_ACCOUNTING_PORT": str(port),
        }
    )
    return Service(
        "accounting", "services.accounting", port=port, environment=environment | settings, logs=logs, ready="/readyz"
    )


@pytest.mark.parametrize("step", STEPS)
async def test_a_worker_that_dies_at_a_step_is_made_up_for_by_the_next(rig: Rig, tmp_path: Path, step: Name) -> None:
    doomed = worker(rig, tmp_path, RELAY_FAILPOINTS=f"{step}=kill@{nth(step)}").start()
    try:
        doomed.wait_ready()
        await rig.shorten_ack_wait()
        account_id, due = await story(rig, random.Random(step))
        assert await asyncio.to_thread(doomed.process.wait, 30) == -signal.SIGKILL
    finally:
        doomed.kill()
    async with rig.worker():
        await rig.shorten_ack_wait()
        await rig.settled(account_id, EVENTS, due)


@pytest.mark.parametrize("step", STEPS)
async def test_a_step_that_fails_is_done_again(rig: Rig, step: Name) -> None:
    failpoints.arm_all(f"{step}=error@{nth(step)}")
    try:
        async with rig.worker():
            await rig.shorten_ack_wait()
            account_id, due = await story(rig, random.Random(f"{step} fails"))
            await rig.settled(account_id, EVENTS, due)
    finally:
        failpoints.disarm()


async def test_several_workers_of_which_one_dies_and_one_stands_still(rig: Rig, tmp_path: Path) -> None:
    three = [worker(rig, tmp_path).start() for _ in range(3)]
    try:
        for one in three:
            one.wait_ready()
        await rig.shorten_ack_wait()
        chance = random.Random(12)
        stories = [await story(rig, chance) for _ in range(3)]
        three[0].kill()
        three[1].signal(signal.SIGSTOP)
        stories += [await story(rig, chance) for _ in range(2)]
        await asyncio.sleep(2.5)  # longer than an acknowledgement is waited for: others get what it has in hand
        three[1].signal(signal.SIGCONT)
        for account_id, due in stories:
            await rig.settled(account_id, EVENTS, due)
    finally:
        for one in three[1:]:
            one.signal(signal.SIGCONT)
            one.stop()


def test_every_failure_point_has_a_name_and_a_place() -> None:
    """And a setting that names none is refused."""
    command = ["git", "grep", "-ho", 'failpoints.reach("[a-z_]*")', "--", "services", "libs"]
    root = Path(__file__).parent.parent.parent
    found = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False).stdout
    if found:
        assert {line.split('"')[1] for line in found.splitlines()} == set(get_args(Name))
    with pytest.raises(ValueError, match="no failure point"):
        failpoints.arm_all("nowhere=kill@1")
    environment = os.environ | {"RELAY_FAILPOINTS": "nowhere=kill@1"}
    done = subprocess.run(
        [sys.executable, "-m", "services.accounting"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and "RELAY_FAILPOINTS" in done.stderr
