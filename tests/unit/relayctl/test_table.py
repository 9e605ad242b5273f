"""The table of commands: of a small document, and of the real one, of which nothing may be missing."""

from collections import Counter

import pytest

from libs.relayctl import parser
from libs.relayctl.table import Command, Table
from services.admin import openapi
from services.admin.app import OPERATIONS, PREFIX
from tests.unit.relayctl.samples import DOCUMENT, answers, operation

SMALL = Table.of(DOCUMENT)
REAL = Table.of(openapi.document(OPERATIONS, prefix=PREFIX))


def command(resource: str, verb: str) -> Command:
    found = SMALL.find(resource, verb)
    assert found is not None
    return found


def test_an_operation_is_a_resource_and_a_verb() -> None:
    create = command("hand-carts", "create")
    assert (create.method, create.path, create.positionals) == ("POST", "/v1/shops/{shop_id}/hand-carts", ["shop_id"])
    assert create.has_body and not create.is_open and not create.is_list
    assert command("report", "show").media == ["text/csv"]
    assert command("signing-in", "sign-in").is_open


def test_list_all_is_list_and_its_whole_name_will_do() -> None:
    listing = command("hand-carts", "list")
    assert listing is command("hand-carts", "list-all")
    assert listing.is_list and listing.page_by == "cursor"
    assert SMALL.find("hand-carts", "lists") is None


def test_two_lists_of_a_resource_do_not_hide_each_other() -> None:
    both = {
        f"/{name}": {"get": operation(f"carts_{name}", tag="carts", responses=answers())}
        for name in ("list_all", "list_page")
    }
    assert [one.verb for one in Table.of({"paths": both}).commands] == ["list", "list-page"]


def test_a_table_shows_what_tells_and_a_secret_last() -> None:
    assert command("hand-carts", "list").columns == ["id", "name", "weight", "token"]


def test_names_do_not_clash() -> None:
    flags = [one.flag for one in command("hand-carts", "create").options]
    assert "--body.json" in flags and "--json" not in flags
    assert "--limit" in flags and max(Counter(flags).values()) == 1
    assert [one.flag for one in command("hand-carts", "list").options] == ["--colours", "--limit", "--cursor"]


def test_a_path_that_is_no_path_is_left_out() -> None:
    paths = {
        "@elsewhere.example/": {"get": operation("carts_show")},
        "/v1": {"parameters": {}, "trace": operation("x_y")},
    }
    assert not Table.of({"paths": paths}).commands


def test_every_operation_has_a_command() -> None:
    assert sorted(one.id for one in REAL.commands) == sorted(one.id for one in OPERATIONS)
    assert len({one.words for one in REAL.commands}) == len(OPERATIONS)


@pytest.mark.parametrize("one", REAL.commands, ids=lambda one: one.words)
def test_every_command_has_help(one: Command, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parser.command_parser(one).parse_all(["--help"])
    shown = capsys.readouterr().out
    assert end.value.code == 0
    assert shown.startswith(f"usage: relayctl {one.words}")
    assert "".join(one.summary.split()) in "".join(shown.split())
    assert all(name.upper() in shown for name in one.positionals)
    assert all(option.flag in shown for option in one.options if not option.is_parent)


@pytest.mark.parametrize("one", [one for one in REAL.commands if one.is_list], ids=lambda one: one.words)
def test_every_list_follows_its_pages(one: Command) -> None:
    """A list without a page has its whole in one answer."""
    assert one.page_by or not any(option.path == ("limit",) for option in one.options if option.place == "query")


def test_the_words_of_the_documentation() -> None:
    for resource, verb in (
        ("keys", "create"), ("accounts", "list"), ("requests", "list-of-account"), ("tokens", "create-relay"),
        ("key-batches", "rotate"), ("statements", "show"),
    ):  # fmt: skip
        assert REAL.find(resource, verb), (resource, verb)
