"""Signing in and out, contexts, and whose token goes where."""

import io
import json
import sys
from pathlib import Path

import pytest

from libs.relayctl import config
from libs.relayctl.failures import Misuse
from tests.unit.relayctl.conftest import Ctl
from tests.unit.relayctl.samples import Reply, Server

KEPT = "rss_kept-kept-kept-kept"
SESSION = json.dumps({"actor": "oper_1", "token": KEPT, "expires_at": "2026-12-01T00:00:00Z"}).encode()


@pytest.fixture(autouse=True)
def no_token(ctl: Ctl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RELAYCTL_TOKEN")


def typed(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


def sign_in(ctl: Ctl, server: Server, monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    typed(monkeypatch, "me@example.com\nlong-password\n")
    server.replies = [Reply(SESSION, 201)]
    ended = ctl("login", *words)
    assert (ended.code, ended.out) == (0, "")
    assert "as oper_1 until 2026-12-01" in ended.err and KEPT not in ended.err
    server.calls.clear()


def test_a_session_is_kept_used_and_ended(
    ctl: Ctl, server: Server, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed(monkeypatch, "me@example.com\nlong-password\n")
    server.replies = [Reply(SESSION, 201)]
    assert ctl("login").code == 0
    assert json.loads(server.calls.pop().body) == {"email": "me@example.com", "password": "long-password"}
    file = home / ".config" / "relayctl" / "config.json"
    assert file.stat().st_mode & 0o777 == 0o600 and file.parent.stat().st_mode & 0o777 == 0o700
    server.replies = [Reply(b'{"actor": "oper_1"}'), Reply(b'{"actor":"oper_1"}'), Reply(b'{"done": true}')]
    assert ctl("whoami").out == f"actor: oper_1\nurl: {server.url}\ncontext: default\n"
    assert ctl("whoami", "--json").out == '{"actor":"oper_1"}\n'
    assert ctl("logout").code == 0
    assert {call.headers["authorization"] for call in server.calls} == {f"Bearer {KEPT}"}
    assert KEPT not in file.read_text()
    assert ctl("whoami").code == ctl("logout").code == 3


def test_a_wrong_password_is_3_and_keeps_nothing(
    ctl: Ctl, server: Server, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed(monkeypatch, "wrong-password\n")
    server.replies = [Reply(b'{"detail": "wrong-password does not fit"}', 401)]
    ended = ctl("login", "--email", "me@example.com")
    assert (ended.code, ended.err) == (3, "relayctl: [secret] does not fit\n")
    assert not (home / ".config").exists()


def test_a_token_may_be_kept_too(ctl: Ctl, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    typed(monkeypatch, "rst_0123456789abcdef\n")
    server.replies = [Reply(b'{"actor": "tok_1"}'), Reply(b'{"detail": "no session"}', 400)]
    assert ctl("login", "--with-token").code == 0
    assert "ended where it was made" in ctl("logout").err
    assert [call.headers["authorization"] for call in server.calls] == ["Bearer rst_0123456789abcdef"] * 2
    typed(monkeypatch, "two words\n")
    assert ctl("login", "--with-token").code == 2


def test_a_token_goes_to_no_other_server(ctl: Ctl, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    sign_in(ctl, server, monkeypatch)
    other = server.url.replace("127.0.0.1", "localhost")
    assert ctl("--url", other, "hand-carts", "list", "s").code == 3
    assert ctl("--url", other, "logout").code == 2
    assert server.calls == []


def test_contexts(ctl: Ctl, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    sign_in(ctl, server, monkeypatch)
    sign_in(ctl, server, monkeypatch, "--context", "prod")
    monkeypatch.delenv("RELAYCTL_URL")
    rows = [line.split() for line in ctl("context").out.splitlines()]
    assert [row[:3] for row in rows[1:]] == [["default", "no", server.url], ["prod", "yes", server.url]]
    assert ctl("context", "default").code == 0
    assert ctl("context", "nowhere").code == 2
    server.replies = [Reply(b"{}")]
    assert ctl("--context", "prod", "whoami").out.endswith("context: prod\n")
    server.replies = [Reply(b"{}")]
    assert ctl("whoami").out.endswith("context: default\n")


def test_a_server_that_is_away_does_not_keep_one_signed_in(
    ctl: Ctl, server: Server, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign_in(ctl, server, monkeypatch)
    server.replies = [Reply(status=500)]
    ended = ctl("logout")
    assert ended.code == 4 and "lasts until 2026-12-01" in ended.err
    assert KEPT not in (home / ".config" / "relayctl" / "config.json").read_text()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"current": "a", "contexts": []}', '{"current": "a", "contexts": {"a": {}}}']
)
def test_a_broken_file_is_told(home: Path, text: str) -> None:
    file = home / ".config" / "relayctl" / "config.json"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    with pytest.raises(Misuse, match="cannot be read"):
        config.load({"HOME": str(home)})


def test_the_environment_wins_over_the_context(home: Path) -> None:
    file = home / ".config" / "relayctl" / "config.json"
    config.save(file, config.Contexts().with_context("a", config.Context(url="https://a.example", token="t1")))
    base = {"HOME": str(home)}
    assert config.load(base).url == "https://a.example" and config.load(base).token == "t1"
    other = config.load({**base, "RELAYCTL_URL": "https://b.example/x/"})
    assert (other.url, other.token) == ("https://b.example/x", "")
    assert config.load({**base, "RELAYCTL_TOKEN": "t2"}).token == "t2"
    assert config.load({"HOME": str(home), "XDG_CONFIG_HOME": str(home / "x")}).url == config.URL_DEFAULT
    assert "t1" not in repr(config.load(base))
    with pytest.raises(Misuse) as failure:
        config.load({**base, "RELAYCTL_TOKEN": "s3cret\nx"})
    assert "s3cret" not in str(failure.value)
