"""The parts of `make run` that need no processes (those: tests/e2e/test_make_run.py)."""

import json
import stat
from pathlib import Path

import pytest

from libs.localstack import config as settings
from libs.localstack import run


def test_what_is_written_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    for value in ({"api_key": "first"}, {"api_key": "second"}):
        run._write_private(path, value)
        assert json.loads(path.read_bytes()) == value
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.json"]


def test_a_directory_belongs_to_one_run_at_a_time(tmp_path: Path) -> None:
    with run._Lock(tmp_path / "lock"), pytest.raises(run.AlreadyRunning), run._Lock(tmp_path / "lock"):
        pass
    with run._Lock(tmp_path / "lock"):
        pass


@pytest.mark.parametrize(
    ("given", "url", "key"),
    [
        ({}, "", ""),
        ({"ANTHROPIC_API_KEY": "sk-ant-1"}, settings.ANTHROPIC_URL, "sk-ant-1"),
        ({"RELAY_UPSTREAM_API_KEY": "sk-ant-2", "ANTHROPIC_API_KEY": "sk-ant-1"}, settings.ANTHROPIC_URL, "sk-ant-2"),
        ({"RELAY_UPSTREAM_URL": "http://127.0.0.1:1"}, "http://127.0.0.1:1", ""),
    ],
)
def test_which_upstream(given: dict[str, str], url: str, key: str) -> None:
    config = settings.load({**given, "PATH": "/bin"})
    assert (config.upstream_url, config.upstream_api_key) == (url, key)
    assert dict(config.environment) == {"PATH": "/bin"}  # the credential is the gateway's alone


def test_an_empty_variable_is_one_that_is_not_set() -> None:
    empty = dict.fromkeys(("RELAY_HOME", "RELAY_GATEWAY_PORT", "RELAY_UPSTREAM_URL", "RELAY_ADMIN_TOKEN"), "")
    config, unset = settings.load(empty), settings.load({})
    assert (config.home, config.gateway_port, config.upstream_url) == (
        unset.home,
        unset.gateway_port,
        unset.upstream_url,
    )


@pytest.mark.parametrize("port", ["abc", "65536", "-1", "8080.5", "²", "٣"])
def test_a_port_that_is_none_is_named(port: str) -> None:
    with pytest.raises(ValueError, match="RELAY_ADMIN_PORT must be a port number"):
        settings.load({"RELAY_ADMIN_PORT": port})
