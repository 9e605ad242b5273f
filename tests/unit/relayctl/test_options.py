"""Options from schemas, and bodies from options."""

from typing import Any

import pytest

from libs.relayctl import options, parser
from libs.relayctl.failures import Misuse
from libs.relayctl.table import Command, Table
from services.admin import openapi
from services.admin.app import OPERATIONS, PREFIX
from tests.unit.relayctl.samples import DOCUMENT

CREATE = next(one for one in Table.of(DOCUMENT).commands if one.id == "hand_carts_create")
REAL = Table.of(openapi.document(OPERATIONS, prefix=PREFIX))


def body(*words: str, command: Command = CREATE) -> dict[str, Any]:
    given = parser.command_parser(command).parse_all(["s1", *words])
    return options.body_of(command.body_options, vars(given))


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ([], {}),
        (["--owner-id", "o"], {"owner_id": "o"}),
        (["--owner_id=a_b"], {"owner_id": "a_b"}),
        (["--owner-id", "null"], {"owner_id": None}),
        (["--no-owner-id"], {"owner_id": None}),
        (["--wheel.size", "12"], {"wheel": {"size": 12}}),
        (["--wheel.size", "-3"], {"wheel": {"size": -3}}),
        (["--no-wheel.size"], {"wheel": {"size": None}}),
        (["--wheel.size=null", "--wheel.tyre.maker", "null"], {"wheel": {"size": None, "tyre": {"maker": "null"}}}),
        (["--no-spare"], {"spare": None}),
        (["--spare.size", "1"], {"spare": {"size": 1}}),
        (["--colour", "blue"], {"colour": "blue"}),
        (["--tags", "a", "--tags", "b"], {"tags": ["a", "b"]}),
        (["--tags", "null"], {"tags": None}),
        (["--no-tags"], {"tags": None}),
        (["--parts", '{"size": 1}', "--parts", "{}"], {"parts": [{"size": 1}, {}]}),
        (["--sold"], {"sold": True}),
        (["--no-sold"], {"sold": False}),
        (["--body.json", "x"], {"json": "x"}),
        (["--limit", "5"], {"limit": 5}),
    ],
)
def test_what_is_given_is_what_is_sent(words: list[str], wanted: dict[str, Any]) -> None:
    assert body("--name", "n", *words) == {"name": "n", **wanted}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "missing: --name"),
        (["--name", "n", "--wheel.size", "1.5"], "a whole number is wanted"),
        (["--name", "n", "--wheel.size", "١"], "a whole number is wanted"),
        (["--name", "n", "--colour", "pink"], "one of red, green, blue is wanted"),
        (["--name", "n", "--parts", "{"], "JSON is wanted"),
        (["--name", "n", "--tags", "a", "--tags", "null"], "do not go together"),
        (["--name", "n", "--no-spare", "--spare.size", "1"], "spare is null already"),
        (["--nam", "n"], "unknown option --nam"),
        (["--name", "n", "--json=1"], "ignored explicit argument"),
        (["--name", "n", "more"], "too many arguments"),
        (["--name"], "expected one argument"),
    ],
)
def test_what_is_wrong_is_told(words: list[str], told: str) -> None:
    with pytest.raises(Misuse, match=told):
        body(*words)


def test_a_wrong_value_is_not_repeated() -> None:
    for words in (["--name", "n", "--wheel.size", "s3cret"], ["--pinn=s3cret"], ["--name", "n", "s3cret"]):
        with pytest.raises(Misuse) as failure:
            body(*words)
        assert "s3cret" not in f"{failure.value} {failure.value.usage}"


def test_a_schema_that_leads_to_itself_ends() -> None:
    schemas = {"Node": {"type": "object", "properties": {"next": {"$ref": "#/components/schemas/Node"}}}}
    found = options.of_body(schemas["Node"], schemas)
    assert [one.kind for one in found] == ["json"]
    assert options.resolve({"$ref": "#/components/schemas/A"}, {"A": {"$ref": "#/components/schemas/A"}})


def real(operation_id: str) -> Command:
    found = REAL.by_id(operation_id)
    assert found is not None
    return found


def test_an_object_that_must_be_there_may_be_empty() -> None:
    assert body("--ids", "k1", command=real("key_batches_change")) == {"ids": ["k1"], "change": {}}


def test_a_key_of_the_real_document() -> None:
    words = [
        "--name",
        "laptop",
        "--limits.rpm",
        "60",
        "--limits.budget-day-usd",
        "1.50",
        "--tag",
        "team-a",
        "--no-models",
    ]
    assert body(*words, command=real("keys_create")) == {
        "name": "laptop", "limits": {"rpm": 60, "budget_day_usd": "1.50"}, "tag": "team-a", "models": None,
    }  # fmt: skip
