"""Whole commands against a small server: what is sent, what is shown, and how it ends."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from libs.relayctl import client
from tests.unit.relayctl.conftest import TOKEN, Ctl
from tests.unit.relayctl.samples import Reply, Server


def page(*names: str, following: str | None = None) -> Reply:
    items = [{"id": f"i-{name}", "name": name, "wheel": {"size": 1}, "weight": 1.50, "token": None} for name in names]
    return Reply(json.dumps({"data": items, "next_cursor": following}).encode())


def test_a_call_is_sent_as_it_was_asked_for(ctl: Ctl, server: Server) -> None:
    server.replies = [Reply(b'{"id":"c1"}', 201)]
    ended = ctl(
        "hand-carts",
        "create",
        "a/b ?é",
        "--name",
        "漢字",
        "--wheel.size",
        "3",
        "--dry",
        "yes&no",
        "--idempotency-key",
        "k 1",
    )
    assert (ended.code, ended.out, ended.err) == (0, "id: c1\n", "")
    (call,) = server.calls
    assert (call.method, call.path) == ("POST", "/v1/shops/a%2Fb%20%3F%C3%A9/hand-carts?dry=yes%26no")
    assert json.loads(call.body) == {"name": "漢字", "wheel": {"size": 3}}
    assert call.headers["authorization"] == f"Bearer {TOKEN}"
    assert call.headers["idempotency-key"] == "k 1"


@pytest.mark.parametrize(("given", "sent"), [("42", '"42"'), ('"42"', '"42"'), ("*", "*")])
def test_a_version_needs_no_quotes(ctl: Ctl, server: Server, given: str, sent: str) -> None:
    server.replies = [Reply()]
    assert ctl("hand-carts", "delete", "s", "c", "--if-match", given).code == 0
    assert (server.calls[0].headers["if-match"], server.calls[0].body) == (sent, b"")


def test_a_body_is_sent_as_it_is(ctl: Ctl, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "body.json").write_bytes(b' {"any":  1.10}')
    server.replies = [Reply(), Reply()]
    assert ctl("hand-carts", "create", "s", "--body", str(tmp_path / "body.json")).code == 0
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"[]\n")))
    assert ctl("hand-carts", "create", "s", "--body", "-").code == 0
    assert [call.body for call in server.calls] == [b' {"any":  1.10}', b"[]\n"]
    for words in (["--body", "nowhere"], ["--body", "-", "--name", "n"]):
        assert ctl("hand-carts", "create", "s", *words).code == 2


def test_every_page_is_followed(ctl: Ctl, server: Server) -> None:
    server.replies = [page("a", following="c1"), page("bb漢", "c\x1b[2J", following="c2"), page()]
    ended = ctl("hand-carts", "list", "s", "--colours", "red", "--colours", "blue", "--limit", "2")
    assert ended.code == 0
    assert ended.out.splitlines() == [
        "ID   NAME  WEIGHT  TOKEN",
        "i-a  a     1.5     -",
        "i-bb漢      bb漢      1.5     -",
        "i-c\\x1b[2J  c\\x1b[2J  1.5     -",
    ]
    assert [call.path.partition("?")[2] for call in server.calls] == [
        "colours=red&colours=blue&limit=2" + more for more in ("", "&cursor=c1", "&cursor=c2")
    ]


def test_json_is_the_servers(ctl: Ctl, server: Server) -> None:
    server.replies = [
        Reply(b'{"data":[{"id":"1","n":1.50},{"id":"\\u00e9"}],"next_cursor":"x"}'),
        Reply(b'{"data":[{"a":[1,\n2]}],"next_cursor":null}'),
        Reply(b'{"id":  "\\u00e9","n":1.50}'),
    ]
    listed = ctl("hand-carts", "list", "s", "--json").out
    assert listed == '{"id":"1","n":1.50}\n{"id":"\\u00e9"}\n{"a":[1, 2]}\n'
    assert ctl("hand-carts", "show", "s", "c", "--json").out == '{"id":  "\\u00e9","n":1.50}\n'


def test_pages_can_be_limited_and_do_not_turn_in_a_circle(ctl: Ctl, server: Server) -> None:
    server.replies = [page("a", following="c1"), *[page("b", following="c2")] * 2]
    ended = ctl("hand-carts", "list", "s", "--limit-pages", "1", "--columns", "wheel.size")
    assert (ended.out, ended.err) == ("WHEEL.SIZE\n1\n", "there is more: --cursor c1\n")
    circle = ctl("hand-carts", "list", "s", "--cursor", "c1")
    assert circle.code == 4 and "the same page again" in circle.err
    assert [call.path.partition("?")[2] for call in server.calls[1:]] == ["cursor=c1", "cursor=c2"]
    assert ctl("hand-carts", "list", "s", "--limit-pages", "0").code == 2


def test_one_thing_is_keys_and_values(ctl: Ctl, server: Server) -> None:
    value = {
        "id": "c",
        "wheel": {"size": None},
        "tags": ["a", "b"],
        "sold": True,
        "lines": [{"a": 1, "b": {"c": "漢"}}, {"a": 22}],
    }
    server.replies = [Reply(json.dumps(value).encode(), headers={"etag": '"7"'})]
    assert ctl("hand-carts", "show", "s", "c").out == (
        'id: c\nwheel.size: -\ntags: a, b\nsold: yes\nlines:\n  a   b.c\n  1   漢\n  22  -\netag: "7"\n'
    )


def test_text_is_streamed_to_a_file_that_is_whole_or_not_there(ctl: Ctl, server: Server, tmp_path: Path) -> None:
    target = tmp_path / "report.csv"
    csv = b"a,b\r\n" * 50_000
    server.replies = [
        Reply(csv, media="text/csv"),
        Reply(csv, media="text/csv"),
        Reply(b"half", media="text/csv", cut=True),
    ]
    assert ctl("report", "show").out.encode() == csv
    assert ctl("report", "show", "--output", str(target)).out == ""
    assert target.read_bytes() == csv and target.stat().st_mode & 0o777 == 0o600
    assert ctl("report", "show", "--output", str(target)).code == 4
    assert target.read_bytes() == csv and list(tmp_path.glob(".*.part")) == []
    assert ctl("report", "show", "--output", str(tmp_path / "no" / "file")).code == 2
    assert len(server.calls) == 3


@pytest.mark.parametrize(
    ("status", "code"),
    [(400, 1), (404, 1), (409, 1), (412, 1), (429, 1), (401, 3), (403, 3), (302, 4), (500, 4), (503, 4)],
)
def test_a_refusal_is_an_exit_code_and_a_sentence(ctl: Ctl, server: Server, status: int, code: int) -> None:
    problem = {"title": "t", "status": status, "detail": f"It is so. {TOKEN} \x1b[1m"}
    server.replies = [Reply(json.dumps(problem).encode(), status, media="application/problem+json")]
    ended = ctl("hand-carts", "delete", "s", "c")
    assert (ended.code, ended.out) == (code, "")
    assert "It is so. [secret] \\x1b[1m" in ended.err or status == 302


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'"x"', b"{}", b'{"detail'])
def test_a_refusal_that_is_no_problem(ctl: Ctl, server: Server, body: bytes) -> None:
    server.replies = [Reply(body, 404)]
    assert ctl("hand-carts", "delete", "s", "c").err == "relayctl: the server answers 404 Not Found\n"


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"data": 1}', b"{}"])
def test_a_list_that_is_none(ctl: Ctl, server: Server, body: bytes) -> None:
    server.replies = [Reply(body)]
    assert ctl("hand-carts", "list", "s").code == 4


def test_only_a_get_is_tried_again(ctl: Ctl, server: Server) -> None:
    server.replies = [Reply(status=503), Reply(status=500), Reply(b'{"id":"c"}')]
    assert ctl("hand-carts", "show", "s", "c").out == "id: c\n"
    server.replies = [Reply(status=503)] * 3
    assert ctl("hand-carts", "show", "s", "c").code == 4
    server.replies = [Reply(status=503)]
    assert ctl("hand-carts", "delete", "s", "c").code == 4
    assert len(server.calls) == 7


def test_a_server_that_is_silent(ctl: Ctl, server: Server) -> None:
    server.replies = [Reply(wait_s=60)]
    ended = ctl("--timeout", "0.3", "hand-carts", "delete", "s", "c")
    assert ended.code == 4
    assert "does not answer in time" in ended.err and "It may have been done" in ended.err


def test_a_server_that_is_not_there(ctl: Ctl) -> None:
    ended = ctl("--url", "http://127.0.0.1:9", "keys", "list")
    assert ended.code == 4
    assert "no connection to http://127.0.0.1:9" in ended.err
    helped = ctl("--url", "http://127.0.0.1:9", "--help")
    assert helped.code == 0 and "login" in helped.out and "does not answer" in helped.out


def test_without_a_token_nothing_is_sent(ctl: Ctl, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RELAYCTL_TOKEN")
    ended = ctl("hand-carts", "list", "s")
    assert (ended.code, server.calls) == (3, [])
    assert "relayctl login" in ended.err


def test_secrets_are_asked_for_and_never_shown(ctl: Ctl, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("s3cret-pin\n"))
    server.replies = [Reply(b'{"detail": "pin s3cret-pin and sk-cr-0123456789abcdef are bad"}', 422)]
    ended = ctl("hand-carts", "create", "s", "--name", "n", "--pin", "-")
    assert json.loads(server.calls[0].body)["pin"] == "s3cret-pin"
    assert ended.err == "relayctl: pin [secret] and [secret] are bad\n"


def test_a_secret_that_is_not_given_is_not_sent(ctl: Ctl, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    ended = ctl("hand-carts", "create", "s", "--name", "n", "--pin", "-")
    assert (ended.code, ended.err, server.calls) == (2, "relayctl: pin is empty\n", [])


def test_nobody_reads(server: Server, home: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    server.replies = [page("a")]
    environment = {"HOME": str(home), "RELAYCTL_URL": server.url, "RELAYCTL_TOKEN": TOKEN}
    command = [sys.executable, "-m", "libs.relayctl", "hand-carts", "list", "s"]
    ended = subprocess.run(command, env=environment, stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (141, b"")


def test_empty_and_dotted_path_parameters_are_no_parameters(ctl: Ctl, server: Server) -> None:
    for word in ("", ".", ".."):
        assert ctl("hand-carts", "show", "s", word).code == 2
    assert ctl("hand-carts", "delete", "s", "c", "--if-match", "1\n2").code == 2
    assert server.calls == []


def test_interrupted_is_130(ctl: Ctl, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(client.Client, "open", interrupted)
    assert ctl("hand-carts", "list", "s").code == 130


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "which resource?"),
        (["hand-carts"], "which verb?"),
        (["hand-cart"], "there is no resource hand-cart; is it hand-carts you mean?"),
        (["hand-carts", "lst"], "hand-carts has no verb lst; is it list you mean?"),
        (["hand-carts", "list"], "SHOP_ID"),
        (["hand-carts", "list", "s", "--url", "http://x"], "it goes before the resource"),
        (["--url", "ftp://x", "hand-carts"], "must be like https://relay.example.com"),
        (["--url", "https://me:s3cret@x", "hand-carts"], "must be like https://relay.example.com"),
        (["--timeout", "-1", "hand-carts"], "seconds"),
        (["--context", "nowhere", "hand-carts"], "there is no context nowhere"),
    ],
)
def test_wrong_usage_is_2(ctl: Ctl, words: list[str], told: str) -> None:
    ended = ctl(*words)
    assert (ended.code, ended.out) == (2, "")
    assert told in ended.err and "s3cret" not in ended.err


HELPED = (
    ["--help"],
    ["hand-carts", "--help"],
    ["hand_carts", "create", "-h"],
    ["login", "--help"],
    ["-h", "report", "show"],
)


@pytest.mark.parametrize("words", HELPED)
def test_help_is_for_everybody(ctl: Ctl, server: Server, words: list[str]) -> None:
    ended = ctl(*words)
    assert (ended.code, ended.err, server.calls) == (0, "", [])
    assert ended.out.startswith("usage: relayctl")


def test_the_overview_has_every_resource(ctl: Ctl) -> None:
    assert "hand-carts  create, list, show, delete" in ctl("--help").out


def test_a_token_of_any_form_is_struck_out(ctl: Ctl, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELAYCTL_TOKEN", "the operators own")
    assert ctl("report", "show").code == 2
    monkeypatch.setenv("RELAYCTL_TOKEN", "the-operators-own")
    server.replies = [Reply(b'{"detail": "the-operators-own is bad"}', 401)]
    assert ctl("report", "show").err == "relayctl: [secret] is bad\n"


@pytest.mark.parametrize("answer", [b"[]", b"1", b'{"data": 3}', b"null", b'{"data": [1, null]}'])
def test_an_answer_of_another_form_is_no_crash(
    ctl: Ctl, server: Server, answer: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server of another version, or something else at its address."""
    for words in (("hand-carts", "list", "s"), ("hand-carts", "create", "s", "--name", "n"), ("whoami",)):
        server.replies = [Reply(answer)] * 3
        assert ctl(*words).code in (0, 4)
    server.replies = [Reply(answer)] * 3
    monkeypatch.setattr(sys, "stdin", io.StringIO("a password\n"))
    ended = ctl("login", "--email", "a@example.com")
    assert ended.code == 4 and "a password" not in ended.err


def test_a_full_disk_is_no_answer_of_the_server(server: Server, home: Path) -> None:
    """Its code is not 1, which says that the server refused, and there is no traceback."""
    server.replies = [page("a" * 100_000)]
    environment = {**os.environ, "RELAYCTL_URL": server.url, "RELAYCTL_TOKEN": TOKEN, "HOME": str(home)}
    with Path("/dev/full").open("wb") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "libs.relayctl", "hand-carts", "list", "s"],
            env=environment, stdout=full, stderr=subprocess.PIPE, timeout=60, check=False,
        )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (
        4,
        b"relayctl: standard output cannot be written: No space left on device\n",
    )
