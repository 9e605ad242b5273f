"""A further gateway on the stores of a running relay: how soon it is ready, and one whose upstream speaks TLS."""

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from bench.programs import BenchFailed, pin
from bench.proxies import READY_S, Proxy
from bench.rig import Rig
from libs.localstack.process import Process, free_port, http_answers

_LOOK_S: Final = 0.005


@contextlib.contextmanager
def running(
    rig: Rig, home: Path, name: str, *, upstream_url: str, authorities: Path | None = None
) -> Iterator[tuple[Proxy, float]]:
    """A gateway, and the seconds from its start to its first 200 of /readyz. Its account and ledger are those of the rig."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RELAY_", "ANTHROPIC_"))}
    environment |= {
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
        "RELAY_GATEWAY_PORT": str(port),
        "RELAY_NATS_URL": rig.run["nats_url"],
        "RELAY_REDIS_URL": rig.run["redis_url"],
        "RELAY_SECRETS_KEY": rig.run["secrets_key"],
        "RELAY_SPOOL_DIRECTORY": str(home / f"spool-{name}"),
        "RELAY_UPSTREAM_API_KEY": "sk-ant-bench",
        "RELAY_UPSTREAM_URL": upstream_url,
    }
    if authorities is not None:
        environment["SSL_CERT_FILE"] = str(authorities)
    is_ready = http_answers(f"{url}/readyz")
    started = time.monotonic()
    command = [sys.executable, "-m", "services.gateway"]
    process = Process.start(name, command, log=home / f"{name}.log", environment=environment)
    try:
        while not is_ready():
            if time.monotonic() - started > READY_S or not process.is_running():
                raise BenchFailed(f"{name} did not become ready:\n{process.log_tail()}")
            time.sleep(_LOOK_S)
        seconds = time.monotonic() - started
        pin(process.pid)
        yield replace(rig.relay, url=url, pid=process.pid), seconds
    finally:
        process.stop()
