"""The control plane as a process of its own, on loopback: it can be killed at a named point, and started again."""

import contextlib
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import httpx2

from libs.common import ids, rediskeys, subjects
from services.admin.app import PREFIX
from tests.e2e.relay import Service, environment_of, free_port
from tests.integration.accounting_rig import Rig
from tests.integration.admin_rig import SECRETS_KEY, TOKEN, check

_STARTED_S: Final = 60


class AdminProcess:
    """One process at one address, and calls with the admin token."""

    def __init__(self, rig: Rig, logs: Path) -> None:
        self.rig = rig
        self._port = free_port()
        self._logs = logs
        self.url = f"http://127.0.0.1:{self._port}"
        self.client = httpx2.AsyncClient(base_url=self.url, timeout=30, trust_env=False)
        self.service = self._service()

    @classmethod
    @contextlib.asynccontextmanager
    async def over(cls, rig: Rig, logs: Path) -> AsyncIterator["AdminProcess"]:
        """Started; its chores are left to nobody, so that only calls change something."""
        await rig.redis.set(rediskeys.lock("chores"), "a test", ex=600)
        process = cls(rig, logs)
        try:
            process.start()
            # with an operator there, a start writes no set-up link
            body = {"name": "x", "email": f"{ids.uuid7_hex()}@example.com", "role": "viewer"}
            await process.done("POST", "/operators", json=body)
            yield process
        finally:
            await process.client.aclose()
            process.service.stop()
            await rig.redis.delete(rediskeys.lock("chores"))

    def start(self, failpoints: str = "", secrets_key: str = SECRETS_KEY) -> None:
        """Start it and wait until it has found its stores; `failpoints`: where it shall die."""
        self.is_special = bool(failpoints) or secrets_key != SECRETS_KEY
        self.service = self._service(failpoints, secrets_key).start().wait_ready()

    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self.service.process.poll() is None

    def restart(self, failpoints: str = "", secrets_key: str = SECRETS_KEY) -> None:
        """End it as one should, and start it again."""
        self.service.stop()
        self.start(failpoints, secrets_key)

    def was_killed(self) -> bool:
        """Whether it died by the failure point."""
        return self.service.process.wait(_STARTED_S) == -signal.SIGKILL

    async def send(self, method: str, path: str, *, token: str = TOKEN, **options: Any) -> httpx2.Response:
        """A call under /api/v1; what is answered is as the document says."""
        headers = {"authorization": f"Bearer {token}", **options.pop("headers", {})}
        answer = await self.client.request(method, PREFIX + path, headers=headers, **options)
        check(method, path, answer)
        return answer

    async def done(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        """A call that succeeds; its answer."""
        answer = await self.send(method, path, **options)
        assert answer.is_success, answer.text
        return dict(answer.json())

    async def new_account(self, usd: str | None = None) -> str:
        """An account, with a credit."""
        account_id = str((await self.done("POST", "/accounts", json={"name": "test"}))["id"])
        if usd is not None:
            await self.done("POST", f"/accounts/{account_id}/credits", json={"amount_usd": usd, "reason": "test"})
        return account_id

    async def last_sequence(self) -> int:
        """Of the log of changes."""
        return int((await self.rig.jetstream.stream_info(subjects.STREAM_CONTROL)).state.last_seq)

    def _service(self, failpoints: str = "", secrets_key: str = SECRETS_KEY) -> Service:
        config = self.rig.config
        settings = {
            "RELAY_NATS_URL": config.nats_url,
            "RELAY_REDIS_URL": config.redis_url,
            "RELAY_CLICKHOUSE_URL": config.clickhouse_url,
            "RELAY_ADMIN_TOKEN": TOKEN,
            "RELAY_ADMIN_PORT": str(self._port),
            "RELAY_SECRETS_KEY": secrets_key,
            "RELAY_FAILPOINTS": failpoints,
        }
        return Service(
            "admin",
            "services.admin",
            port=self._port,
            environment=environment_of(settings),
            logs=self._logs,
            ready="/readyz",
        )


def from_address(process: AdminProcess, address: str) -> httpx2.AsyncClient:
    """A client at another address of this machine: tries are counted by address."""
    transport = httpx2.AsyncHTTPTransport(local_address=address)
    return httpx2.AsyncClient(base_url=process.url, timeout=30, transport=transport, trust_env=False)
