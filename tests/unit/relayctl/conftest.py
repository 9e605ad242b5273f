"""A server of one's own, and relayctl in a home of its own."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from libs.relayctl import app, client
from tests.unit.relayctl.samples import Server, serving

TOKEN = "rss_0123456789abcdefghij"


@dataclass(frozen=True)
class Ended:
    """A command that has ended."""

    code: int
    out: str
    err: str


Ctl = Callable[..., Ended]


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as made:
        yield made


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("XDG_CONFIG_HOME", "XDG_CACHE_HOME", "RELAYCTL_URL", "RELAYCTL_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(client, "_BACK_OFF_S", 0.001)
    return tmp_path


@pytest.fixture
def ctl(server: Server, home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Ctl:
    """A command against the server, signed in."""
    monkeypatch.setenv("RELAYCTL_URL", server.url)
    monkeypatch.setenv("RELAYCTL_TOKEN", TOKEN)

    def run(*words: str) -> Ended:
        code = app.main(words)
        seen = capfd.readouterr()
        return Ended(code, seen.out, seen.err)

    return run
