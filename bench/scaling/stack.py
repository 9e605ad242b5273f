"""The relay with four gateways behind nginx: its processes, their CPU time and memory, loads, and the ledger at the end.

Gateways are replicas as Kubernetes runs them: processes that share Redis and NATS, each with a spool of its own.
"""

import asyncio
import contextlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import httpx2
import msgspec
import psutil
import redis

from bench.rig import BenchFailed, relay_config
from bench.scaling.load import Plan, Report
from libs.common import streams, subjects
from libs.localstack.process import Process, free_port, http_answers, port_answers
from libs.localstack.run import LocalRelay

REPLICAS: Final = 4
SHARED: Final = (1, 2, 4)
"""How many of them nginx has behind each of its ports."""
COST_NANOS: Final = 2_325_000
"""25 input and 150 output tokens of claude-sonnet-4-6: what the upstream says of every answer."""
WIDE: Final = {"rpm": 10**9, "itpm": 10**9, "otpm": 10**9, "in_flight": 10**6}
NGINX_MISSING: Final = "nginx is not installed: apt-get install nginx-light (or your system's package of that name)"
_CREDIT_USD: Final = "100000.00"
_READY_S: Final = 30
_SETTLED_S: Final = 60
_LOAD_S_MAX: Final = 120
_CROWDED_MAX: Final = 12
_SETTINGS: Final = {"RELAY_KEEP_ALIVE_SECONDS": "3600", "RELAY_UPSTREAM_CONNECTIONS_MAX": "9000"}
"""Of all gateways, so that what is open stays open while it is measured."""
_BESIDE: Final = ("redis", "nats", "accounting", "clickhouse")
_NGINX: Final = """daemon off; master_process off; pid {home}/nginx.pid; error_log {home}/error.log; worker_rlimit_nofile 8192;
events {{ worker_connections 4096; }}
http {{
  access_log off; client_max_body_size 33m; keepalive_requests 100000000;
  client_body_temp_path {home}/body; proxy_temp_path {home}/proxy; fastcgi_temp_path {home}/fastcgi;
  uwsgi_temp_path {home}/uwsgi; scgi_temp_path {home}/scgi;
{servers}
}}
"""
_NGINX_SERVER: Final = """  upstream replicas_{count} {{ least_conn; keepalive 512; keepalive_requests 100000000; {members} }}
  server {{ listen 127.0.0.1:{port} backlog=4096; location / {{
    proxy_pass http://replicas_{count}; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $host;
    proxy_buffering off; proxy_request_buffering off; proxy_read_timeout 660s; add_header x-replica $upstream_addr always;
  }} }}"""


@dataclass(frozen=True)
class Run:
    """One load and what it cost, until the last of its requests was settled."""

    report: Report
    cpu_s: dict[str, float]
    """By process."""
    wall_s: float
    counts: dict[str, int]
    """Messages and their bytes in the stream of events; scripts that Redis ran, and times it read from a connection."""

    @property
    def requests(self) -> int:
        """Answers of whatever status."""
        return sum(self.report.statuses.values())

    def us(self, name: str, idle: Mapping[str, float] | None = None) -> float:
        """CPU of one process for each request; less what it uses unasked, CPU seconds a second, where that is given."""
        unasked_s = idle[name] * self.wall_s if idle else 0.0
        return (self.cpu_s[name] - unasked_s) / self.requests * 1e6

    def each(self, name: str) -> float:
        """A count for each request."""
        return self.counts[name] / self.requests

    @property
    def gateways_us(self) -> float:
        """CPU of all gateways for each request."""
        return sum(self.us(name) for name in self.cpu_s if name.startswith("gateway"))


class Stack:
    """What runs, and what it was asked so far."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._upstream_port = free_port()
        self._config = relay_config(home, f"http://127.0.0.1:{self._upstream_port}", _SETTINGS)
        self._relay = LocalRelay(self._config)
        self._started: list[Process] = []
        self.served = 0
        """Requests that were admitted: each must be a row."""
        self.crowded = 0
        """Runs thrown away because Redis did not get the CPU to answer a gateway in time (redisclient.TRY_S)."""

    @classmethod
    @contextlib.contextmanager
    def running(cls, home: Path) -> Iterator[Self]:
        """All of it; `home` holds state and logs. Raises ProcessFailed, or BenchFailed where nginx is missing."""
        program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
        if program is None:
            raise BenchFailed(NGINX_MISSING)
        stack = cls(home)
        try:
            stack._start(program)
            yield stack
        finally:
            for process in reversed(stack._started):
                process.stop()
            stack._relay.stop()

    def _start(self, nginx: str) -> None:
        command = [sys.executable, "-m", "bench.scaling.upstream", str(self._upstream_port)]
        upstream = Process.start("upstream", command, log=self._home / "upstream.log")
        self._started.append(upstream.wait_until(port_answers(self._upstream_port), seconds=_READY_S))
        self.addresses = self._relay.start()
        self.gateways = {"gateway-1": self.addresses["gateway_url"]}
        self.pids = {name: self.addresses["pids"][name] for name in _BESIDE} | {
            "gateway-1": self.addresses["pids"]["gateway"]
        }
        for number in range(2, REPLICAS + 1):
            self._start_gateway(f"gateway-{number}")
        self._start_nginx(nginx)
        self.redis = redis.Redis.from_url(self.addresses["redis_url"])
        self.admin = httpx2.Client(
            base_url=f"{self.addresses['admin_url']}/api/v1",
            headers={"authorization": f"Bearer {self.addresses['admin_token']}"},
            timeout=30,
            trust_env=False,
        )
        self._accounting_url = f"http://127.0.0.1:{_listens_on(self.pids['accounting'])}/metrics"

    def _start_gateway(self, name: str) -> None:
        port = free_port()
        environment = {
            **self._config.environment,
            "RELAY_HOST": "127.0.0.1",
            "RELAY_GATEWAY_PORT": str(port),
            "RELAY_REDIS_URL": self.addresses["redis_url"],
            "RELAY_NATS_URL": self.addresses["nats_url"],
            "RELAY_SECRETS_KEY": self.addresses["secrets_key"],
            "RELAY_UPSTREAM_URL": self.addresses["upstream_url"],
            "RELAY_UPSTREAM_API_KEY": "sk-ant-bench",
            "RELAY_SPOOL_DIRECTORY": str(self._home / f"spool-{name}"),
        }
        command = [sys.executable, "-m", "services.gateway"]
        gateway = Process.start(name, command, log=self._home / f"{name}.log", environment=environment)
        self._started.append(gateway)
        self.gateways[name] = f"http://127.0.0.1:{port}"
        self.pids[name] = gateway.pid
        gateway.wait_until(http_answers(f"{self.gateways[name]}/readyz"), seconds=_READY_S)

    def _start_nginx(self, program: str) -> None:
        home = self._home / "nginx"
        home.mkdir()
        ports = {count: free_port() for count in SHARED}
        addresses = [url.removeprefix("http://") for url in self.gateways.values()]
        servers = []
        for count, port in ports.items():
            members = " ".join(f"server {address} max_fails=0;" for address in addresses[:count])
            servers.append(_NGINX_SERVER.format(count=count, port=port, members=members))
        config = home / "nginx.conf"
        config.write_text(_NGINX.format(home=home, servers="\n".join(servers)))
        nginx = Process.start("nginx", [program, "-p", str(home), "-c", str(config)], log=self._home / "nginx.log")
        self._started.append(nginx.wait_until(port_answers(ports[SHARED[0]]), seconds=_READY_S))
        self.pids["nginx"] = nginx.pid
        self.shared = {count: f"http://127.0.0.1:{port}" for count, port in ports.items()}

    def account(self, limits: Mapping[str, int] = WIDE) -> str:
        """A new account with more money than a bench can spend."""
        account_id = str(self._create("/accounts", {"name": "bench", "limits": dict(limits)})["id"])
        self._create(f"/accounts/{account_id}/credits", {"amount_usd": _CREDIT_USD, "reason": "bench"})
        return account_id

    def key(self, account_id: str, limits: Mapping[str, int] | None = None) -> tuple[str, str]:
        """(key, its id) of a new key, made as a customer makes one."""
        made = self._create(f"/accounts/{account_id}/keys", {"name": "bench", "limits": dict(limits or {})})
        return str(made["key"]), str(made["id"])

    def _create(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        return dict(self.admin.post(path, json=dict(body)).raise_for_status().json())

    def measure(self, plan: Plan, *, refused: int | None = 0) -> Run:
        """Send a load and wait until it is settled. Raises BenchFailed unless all answers are whole, and only so many of them are
        429 (None: any number) and the others 200. A run with a 529 is repeated, a few times in all: see `crowded`."""
        while True:
            run = self._run_once(plan)
            if "529" not in run.report.statuses:
                self._check(plan, run.report, refused)
                return run
            self.crowded += 1
            if self.crowded > _CROWDED_MAX:
                raise BenchFailed(f"{plan.url}: this machine is too busy: {run.report}")

    def _run_once(self, plan: Plan) -> Run:
        counted = self.counts()
        before, started = self.cpu(), time.perf_counter()
        report = send(plan)
        self.served += report.statuses.get("200", 0)
        self.wait_settled()
        spent_s = {name: seconds - before[name] for name, seconds in self.cpu().items()}
        wall_s = time.perf_counter() - started
        return Run(report, spent_s, wall_s, {name: now - counted[name] for name, now in self.counts().items()})

    def counts(self) -> dict[str, int]:
        """What `Run.counts` names, so far."""
        messages, message_bytes = asyncio.run(_stored(self.addresses["nats_url"]))
        return {
            "messages": messages,
            "message_bytes": message_bytes,
            "scripts": int(self.redis.info("commandstats")["cmdstat_evalsha"]["calls"]),
            "reads": int(self.redis.info("stats")["total_reads_processed"]),
        }

    def _check(self, plan: Plan, report: Report, refused: int | None) -> None:
        answers = sum(report.statuses.values())
        others = {status: count for status, count in report.statuses.items() if status not in ("200", "429")}
        wrong = refused is not None and report.statuses.get("429", 0) != refused
        if report.cut or others or wrong or answers != plan.requests:
            raise BenchFailed(f"{plan.url}{plan.path}: {report}")

    @contextlib.contextmanager
    def holding(self, plan: Plan, *, rows: bool) -> Iterator[None]:
        """Meanwhile the connections of a plan that holds are open. `rows`: each of them is a request that will be a row."""
        child = subprocess.Popen(_command(plan), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        try:
            if child.stdout.readline() != "holding\n":
                raise BenchFailed(f"{plan.url}: {plan.connections} connections could not be opened")
            yield
            if rows:
                self.release()
            output, _ = child.communicate(timeout=_LOAD_S_MAX)
        finally:
            child.kill()
            child.wait()
        report = msgspec.json.decode(output.splitlines()[-1], type=Report)
        self._check(plan, report, 0)
        self.served += report.statuses["200"] if rows else 0

    def release(self) -> None:
        """Let the upstream end the streams it holds."""
        httpx2.get(f"http://127.0.0.1:{self._upstream_port}/release", trust_env=False).raise_for_status()

    def wait_settled(self) -> None:
        """Until accounting has settled everything that was served. Raises BenchFailed if it does not, or settles more."""
        deadline = time.monotonic() + _SETTLED_S
        while (settled := self._settled()) != self.served:
            if time.monotonic() > deadline or settled > self.served:
                raise BenchFailed(f"{self.served} requests were served and {settled} settled")
            time.sleep(0.05)

    def _settled(self) -> int:
        text = httpx2.get(self._accounting_url, trust_env=False).text
        return sum(int(line.split()[-1]) for line in text.splitlines() if line.startswith("relay_events_settled_total"))

    def cpu(self) -> dict[str, float]:
        """Seconds of each process so far, all its threads, to the nanosecond (Linux: clock_getcpuclockid)."""
        return {name: time.clock_gettime((~pid << 3) | 2) for name, pid in self.pids.items()}

    def idle_cpu(self, seconds: float) -> dict[str, float]:
        """CPU seconds a second of each process while nothing is asked."""
        before = self.cpu()
        time.sleep(seconds)
        return {name: (spent - before[name]) / seconds for name, spent in self.cpu().items()}

    def rss(self, name: str) -> int:
        """Bytes of memory of a process."""
        return int(psutil.Process(self.pids[name]).memory_info().rss)

    def check_ledger(self) -> None:
        """Raise BenchFailed unless each request served has one row at the right cost, and Redis has taken as much."""
        query = "SELECT count(), uniqExact(request_id), sum(total_nanos) FROM usage FINAL FORMAT JSONCompact"
        base, _, database = self.addresses["clickhouse_url"].rpartition("/")
        answer = httpx2.post(base, params={"database": database}, content=query, timeout=60, trust_env=False)
        rows, requests, cost = (int(value) for value in json.loads(answer.raise_for_status().text)["data"][0])
        pipeline = self.redis.pipeline(transaction=False)
        for account in self.redis.scan_iter("*}account:*", count=10_000):
            pipeline.hmget(account, "spent", "held")
        balances = pipeline.execute()
        spent, held = sum(int(one[0]) for one in balances), sum(int(one[1]) for one in balances)
        expected = self.served * COST_NANOS
        if not rows == requests == self.served or not cost == spent == expected or held:
            raise BenchFailed(f"{self.served=} {rows=} {requests=} {expected=} {cost=} {spent=} {held=}")


def send(plan: Plan) -> Report:
    """Run a load to its end, in a process of its own."""
    done = subprocess.run(_command(plan), capture_output=True, text=True, timeout=_LOAD_S_MAX, check=False)
    if done.returncode != 0:
        raise BenchFailed(f"the load against {plan.url} failed:\n{done.stderr[-2000:]}")
    return msgspec.json.decode(done.stdout, type=Report)


def _command(plan: Plan) -> list[str]:
    return [sys.executable, "-m", "bench.scaling.load", msgspec.json.encode(plan).decode()]


async def _stored(url: str) -> tuple[int, int]:
    broker = await streams.connect(url, name="bench")
    state = (await broker.jetstream().stream_info(subjects.STREAM_USAGE)).state
    await streams.close(broker)
    return state.messages, state.bytes


def _listens_on(pid: int) -> int:
    connections = psutil.Process(pid).net_connections("tcp4")
    return int(next(one.laddr.port for one in connections if one.status == psutil.CONN_LISTEN))
