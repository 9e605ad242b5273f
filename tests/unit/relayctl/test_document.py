"""The document is kept for an hour, and never keeps a command from being known."""

import copy
from pathlib import Path

import pytest

from libs.relayctl.client import Client
from libs.relayctl.document import FRESH_MS, Documents
from libs.relayctl.failures import Trouble
from tests.unit.relayctl.conftest import Ctl
from tests.unit.relayctl.samples import DOCUMENT, Reply, Server, answers, operation


class Clock:
    """Moved by the test."""

    now_ms = 1_000_000

    def __call__(self) -> int:
        return self.now_ms


def test_it_is_kept_for_an_hour_and_asked_for_by_its_etag(server: Server, home: Path) -> None:
    now = Clock()
    client = Client(server.url, "", timeout_seconds=5)
    documents = Documents(client, home, now_ms=now)
    server.etag = '"v1"'
    assert not documents.read().may_be_behind
    server.document = {"openapi": "3.1.0", "paths": {}}  # the same ETag: it is not read again
    assert documents.read().may_be_behind
    now.now_ms += FRESH_MS
    read = documents.read()
    assert read.table.commands and not read.may_be_behind
    server.etag = '"v2"'
    assert documents.read().table.commands
    assert not documents.read(anew=True).table.commands
    client.close()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"form": 1}', '{"form": 1, "etag": "", "read_at_ms": 1, "document": []}']
)
def test_a_broken_cache_is_none(server: Server, home: Path, text: str) -> None:
    client = Client(server.url, "", timeout_seconds=5)
    documents = Documents(client, home)
    documents.read()
    (file,) = home.glob("*.json")
    assert file.stat().st_mode & 0o777 == 0o600
    file.write_text(text)
    assert not documents.read().may_be_behind
    client.close()


def test_a_cache_that_cannot_be_written_is_none(server: Server, home: Path) -> None:
    (home / "file").write_text("")
    client = Client(server.url, "", timeout_seconds=5)
    documents = Documents(client, home / "file")
    assert documents.read().table.commands
    client.close()


@pytest.mark.parametrize("document", [[], {}, {"openapi": "2.0"}, {"openapi": "3.1.0", "paths": {"/a": {"get": 1}}}])
def test_a_server_that_is_no_control_plane(server: Server, home: Path, document: object) -> None:
    server.document = document  # type: ignore[assignment]
    client = Client(server.url, "", timeout_seconds=5)
    with pytest.raises(Trouble):
        Documents(client, home).read()
    client.close()


def test_a_new_command_is_known_at_once(ctl: Ctl, server: Server) -> None:
    assert ctl("report", "--help").code == 0
    assert ctl("report", "burn").code == 2
    newer = copy.deepcopy(DOCUMENT)
    newer["paths"]["/v1/report"]["delete"] = operation("report_burn", responses=answers(json_of="Cart"))
    server.document = newer
    assert ctl("report", "burn", "--help").out.startswith("usage: relayctl report burn")
    server.replies = [Reply(b'{"id": "ash"}')]
    assert ctl("report", "burn").out == "id: ash\n"


def test_refresh_reads_it_anew(ctl: Ctl, server: Server) -> None:
    assert ctl("--help").code == 0
    server.document = {"openapi": "3.1.0", "paths": {}}
    server.replies = [Reply(b"x", media="text/csv")]
    assert ctl("report", "show").out == "x"
    assert ctl("--refresh", "report", "show").code == 2
