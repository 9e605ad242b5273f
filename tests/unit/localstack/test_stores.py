"""The local stores: configured as production wants them, with state that outlives them, and none left behind."""

import json
import socket
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from libs.localstack import stores
from libs.localstack.process import Process, ProcessFailed, free_port, port_answers
from libs.localstack.stores import Stores, start_nats, start_redis


def ask_redis(port: int, command: str) -> str:
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(command.encode() + b"\r\n")
        return connection.recv(4096).decode()


def test_redis_keeps_what_it_was_told_and_evicts_nothing(tmp_path: Path) -> None:
    port = free_port()
    process = start_redis(tmp_path, tmp_path / "logs", port=port)
    wanted = {"appendonly": "yes", "appendfsync": "everysec", "maxmemory-policy": "noeviction", "bind": "127.0.0.1"}
    for name, value in wanted.items():
        assert f"\r\n{value}\r\n" in ask_redis(port, f"CONFIG GET {name}")
    assert ask_redis(port, "SET x 5") == "+OK\r\n"
    assert process.stop()
    process = start_redis(tmp_path, tmp_path / "logs", port=port)
    assert ask_redis(port, "GET x") == "$1\r\n5\r\n"
    process.stop()


def test_nats_syncs_before_it_acknowledges(tmp_path: Path) -> None:
    port = free_port()
    process = start_nats(tmp_path / "it's here", tmp_path / "logs", port=port)
    monitor = next(line for line in process.log_tail().splitlines() if "Starting http monitor on" in line).split()[-1]
    with urllib.request.urlopen(f"http://{monitor}/varz") as answer:
        variables: dict[str, Any] = json.load(answer)
    assert variables["jetstream"]["config"]["sync_always"] is True
    assert variables["host"] == "127.0.0.1"
    process.stop()


def test_if_one_store_does_not_start_none_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> Process:
        raise ProcessFailed("no luck")

    monkeypatch.setattr(stores, "start_clickhouse", fails)
    local = Stores(tmp_path, tmp_path / "logs")
    with pytest.raises(ProcessFailed, match="no luck"):
        local.start()
    assert local.processes == []
    for url in (local.nats_url, local.redis_url):
        port = urlsplit(url).port
        assert port is not None and not port_answers(port)()


def test_a_program_that_is_not_installed() -> None:
    with pytest.raises(FileNotFoundError, match="make setup"):
        stores.binary("no-such-server")
