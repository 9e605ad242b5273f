"""A replica that is cut off from the log of changes does not let in, for ever, who was let in before."""

from pathlib import Path

import pytest

from libs.localstack.process import free_port
from libs.localstack.stores import start_nats
from services.admin import mirror
from tests.integration.accounting_rig import Rig, until
from tests.integration.admin_people import service_token
from tests.integration.admin_rig import Admin

pytestmark = pytest.mark.anyio


async def test_nobody_is_let_in_by_what_may_be_old(
    redis_url: str, clickhouse_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    process = start_nats(tmp_path / "nats", tmp_path, port=port)
    url = f"nats://127.0.0.1:{port}"
    try:
        async with Rig.over(url, redis_url, clickhouse_url), Admin.over(url, redis_url, clickhouse_url) as admin:
            token = await service_token(admin, "viewer", ["usage:read"])
            assert (await admin.send("GET", "/me", token=token)).status_code == 200
            process.stop()
            monkeypatch.setattr(mirror, "_SILENT_S", 1.0)

            async def is_out() -> bool:
                return (await admin.send("GET", "/me", token=token)).status_code == 503

            try:
                await until(is_out, seconds=10)
                assert (await admin.send("GET", "/me")).status_code == 200  # the admin token stands in no log
            finally:  # nothing here can be closed without it
                monkeypatch.setattr(mirror, "_SILENT_S", 30.0)
                process = start_nats(tmp_path / "nats", tmp_path, port=port)

            async def is_in() -> bool:
                return (
                    await admin.send("GET", "/me", token=token)
                ).status_code == 200 and admin.context.mirror.is_fresh

            await until(is_in, seconds=30)
    finally:
        process.stop()
