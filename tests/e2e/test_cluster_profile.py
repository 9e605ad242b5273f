"""`make run PROFILE=cluster`, and gateways that are restarted one after another behind a balancer.

HAProxy is needed. Where CI is set that is required; elsewhere these tests are reported as skipped.
"""

import asyncio
import contextlib
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, Literal

import httpx2
import psutil
import pytest

from libs.localstack.balancer import set_state, start_balancer
from tests.e2e.herd import Herd, HoldingUpstream, request, until
from tests.e2e.relay import Gateway, Relay, Service, environment_of, free_port
from tests.e2e.waiting import PLAIN, wait_until

STREAMS: Final = 500
MORE: Final = 50
START_S: Final = 60.0
ASKED: Final = 25
BODY: Final = {"model": "claude-sonnet-4-6", "max_tokens": 20, "messages": [{"role": "user", "content": "Hi"}]}


@pytest.fixture(scope="module", autouse=True)
def haproxy() -> None:
    if shutil.which("haproxy") is None and not Path("/usr/sbin/haproxy").exists():
        if "CI" in os.environ:
            pytest.fail("haproxy is not installed")
        pytest.skip("not run: haproxy is not installed")


@dataclass
class Cluster:
    """What `make run` has told of itself."""

    home: Path
    output: Path

    @property
    def told(self) -> dict[str, Any]:
        return dict(json.loads((self.home / "run.json").read_bytes()))

    def kill(self, name: str) -> None:
        """kill -9."""
        os.kill(self.told["pids"][name], signal.SIGKILL)
        wait_until(lambda: f"{name} has ended" in self.output.read_text(), f"{name} is missed")

    def admin(self, path: str, **query: str) -> dict[str, Any]:
        """GET of the control plane."""
        told = self.told
        headers = {"authorization": f"Bearer {told['admin_token']}"}
        url = f"{told['admin_url']}/api/v1{path}"
        return dict(httpx2.get(url, params=query, headers=headers, timeout=30, verify=PLAIN).raise_for_status().json())

    def ask(self, *, stream: bool) -> str:
        """A request, repeated while its sender is told to try again, as clients do. The id of the one that succeeded."""
        told, deadline = self.told, time.monotonic() + START_S
        while True:
            with contextlib.suppress(httpx2.TransportError):
                body = BODY | {"stream": stream}
                headers = {"x-api-key": told["api_key"]}
                answer = httpx2.post(
                    f"{told['gateway_url']}/v1/messages", json=body, headers=headers, timeout=20, verify=PLAIN
                )
                if answer.status_code == 200:
                    return str(answer.headers["x-relay-request-id"])
                assert answer.status_code in (429, 502, 503, 529), answer.text
            assert time.monotonic() < deadline, "nobody answers any more"
            time.sleep(0.2)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    output = tmp_path / "output"
    environment = environment_of({"RELAY_HOME": str(tmp_path / "home"), "RELAY_PROFILE": "cluster"})
    environment |= {"RELAY_GATEWAY_PORT": "0", "RELAY_ADMIN_PORT": "0", "RELAY_LEASE_SECONDS": "5"}
    with output.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "libs.localstack", "run"], env=environment, stdout=file, stderr=subprocess.STDOUT
        )
    try:
        wait_until(lambda: "Ctrl-C stops" in output.read_text(), lambda: output.read_text()[-2000:], START_S)
        yield Cluster(tmp_path / "home", output)
    finally:
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        assert process.wait(START_S) == 0
        assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]


def test_a_node_of_everything_may_die(cluster: Cluster) -> None:
    told = cluster.told
    assert len(told["pids"]) == 3 + 6 + 1 + 1 + 2 + 1 + 3 + 1
    succeeded = [cluster.ask(stream=bool(number % 2)) for number in range(ASKED)]
    for name in ("nats-1", "redis-1", "gateway-1", "accounting-1"):
        cluster.kill(name)
        succeeded += [cluster.ask(stream=bool(number % 2)) for number in range(ASKED)]
    rows: list[dict[str, Any]] = []

    def settled() -> bool:
        with contextlib.suppress(httpx2.HTTPStatusError, httpx2.TransportError):
            page = cluster.admin("/requests", account_id=told["account_id"], limit="1000")
            rows[:] = page["data"]
            balance = cluster.admin(f"/accounts/{told['account_id']}/balance")
            spent = sum(row["total_nanos"] for row in rows)
            return Decimal(balance["held_usd"]) == 0 and Decimal(balance["spent_usd"]) * 10**9 == spent
        return False

    def complete() -> bool:
        return settled() and set(succeeded) <= {row["request_id"] for row in rows}

    wait_until(complete, lambda: f"{len(rows)} rows of {len(succeeded)}", 90)
    assert len({row["request_id"] for row in rows}) == len(rows)


def behind_balancer(gateways: list[Gateway], tmp_path: Path, admin_port: int) -> tuple[Any, Gateway]:
    port = free_port()
    names = {f"gateway-{number}": int(one.url.rpartition(":")[2]) for number, one in enumerate(gateways)}
    process = start_balancer(tmp_path / "balancer", tmp_path, port=port, admin_port=admin_port, gateways=names)
    service = Service("balancer", "none", port=port, environment={}, logs=tmp_path, ready="/")
    return process, Gateway(service)


@pytest.mark.alone
@pytest.mark.anyio
async def test_a_rolling_restart_cuts_no_stream_and_refuses_nobody(
    relay: Relay, holding: HoldingUpstream, holding_port: int, tmp_path: Path
) -> None:
    account, key = await asyncio.to_thread(relay.new_account, credit_usd="5000.00")
    upstream = f"http://127.0.0.1:{holding_port}"
    with relay.gateways(3, upstream, RELAY_SHUTDOWN_SECONDS="15") as gateways:
        admin_port = free_port()
        process, balancer = behind_balancer(gateways, tmp_path, admin_port)
        try:
            for number, one in enumerate(gateways):
                set_to = functools.partial(set_state, admin_port, f"gateway-{number}")
                await _restarted(one, balancer, holding, key, set_to)
        finally:
            process.stop()
        rows = await asyncio.to_thread(relay.rows, account, 3 * (STREAMS + MORE), wait_s=60)
    assert {row["outcome"] for row in rows} == {"measured"}


async def _restarted(
    one: Gateway,
    balancer: Gateway,
    upstream: HoldingUpstream,
    key: str,
    set_to: Callable[[Literal["drain", "ready"]], None],
) -> None:
    """Told to end while five hundred streams are open, a third of them its own; more callers come while it ends."""
    async with Herd.of(STREAMS, [balancer]) as herd:
        upstream.hold()
        herd.ask(request(key, stream=True))
        await until(lambda: upstream.open == STREAMS, lambda: f"{upstream.open} open, {herd.statuses()}")
        set_to("drain")  # as a rolling update does, before it says SIGTERM
        one.service.ask_to_stop()
        async with Herd.of(MORE, [balancer]) as others:
            others.ask(request(key, stream=True))
            await until(lambda: upstream.open == STREAMS + MORE, lambda: f"{upstream.open} open, {others.statuses()}")
            assert one.service.process.poll() is None  # it waits for its streams
            upstream.let_go()
            answers = [*await herd.all_answered(), *await others.all_answered()]
    assert {answer.status for answer in answers} == {200}
    assert all(b"event: message_stop" in answer.body for answer in answers)
    await until(lambda: one.service.process.poll() is not None, lambda: "it ends")
    one.service.start().wait_ready()
    set_to("ready")
