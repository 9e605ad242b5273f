"""The OpenAPI document: whole, valid, and about every operation."""

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from jsonschema import Draft202012Validator

from services.admin import openapi
from services.admin.app import OPERATIONS, PREFIX
from services.admin.problems import (
    BadInput,
    Conflict,
    Missing,
    Problem,
    TooLarge,
    Unauthorized,
    Unavailable,
    Unprocessable,
    WrongMethod,
)

DOCUMENT = openapi.document(OPERATIONS, prefix=PREFIX)
BY_PATH = {(one.method, one.path if one.at_root else PREFIX + one.path): one for one in OPERATIONS}


def walk(value: Any) -> list[Any]:
    """Every object inside."""
    inside = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    return [value, *(one for part in inside for one in walk(part))]


def test_every_path_of_the_issue_is_there() -> None:
    wanted = {
        ("post", "/accounts"),
        ("post", "/accounts/{account_id}/credits"),
        ("post", "/accounts/{account_id}/keys"),
        ("get", "/accounts/{account_id}/balance"),
        ("get", "/requests"),
        ("get", "/requests/{request_id}"),
        ("post", "/accounts/{account_id}/members"),
        ("patch", "/accounts/{account_id}/members/{member_id}"),
        ("patch", "/accounts/{account_id}/keys/{key_id}"),
        ("post", "/upstreams"),
        ("patch", "/upstreams/{upstream_id}"),
    }
    found = {(method, path.removeprefix(PREFIX)) for path, one in DOCUMENT["paths"].items() for method in one}
    assert wanted <= found


def test_every_reference_leads_somewhere() -> None:
    for one in walk(DOCUMENT):
        if isinstance(one, dict) and "$ref" in one:
            assert one["$ref"].rpartition("/")[2] in DOCUMENT["components"]["schemas"]


@pytest.mark.parametrize("name", DOCUMENT["components"]["schemas"])
def test_schemas_are_schemas(name: str) -> None:
    Draft202012Validator.check_schema(DOCUMENT["components"]["schemas"][name])


def test_operations_are_whole() -> None:
    names = []
    for path, operations in DOCUMENT["paths"].items():
        for method, operation in operations.items():
            names.append(operation["operationId"])
            known = BY_PATH[method.upper(), path]
            assert (operation["x-roles"], operation["x-scope"]) == (sorted(known.roles or ()), known.scope)
            given = {one["name"] for one in operation["parameters"] if one["in"] == "path"}
            assert given == set(re.findall(r"{(\w+)}", path))
            assert {"default"} <= set(operation["responses"])
            assert ("401" in operation["responses"]) == (operation["security"] != [])
            assert "requestBody" not in operation or method in ("post", "patch", "put")
            assert ("409" in operation["responses"]) == (method != "get")
    assert len(names) == len(set(names))


def test_headers_and_queries_are_described() -> None:
    credit = DOCUMENT["paths"][f"{PREFIX}/accounts/{{account_id}}/credits"]["post"]
    assert [one["name"] for one in credit["parameters"] if one["in"] == "header"] == ["Idempotency-Key"]
    listing = DOCUMENT["paths"][f"{PREFIX}/requests"]["get"]["parameters"]
    wanted = {"account_id", "key_id", "member_id", "model", "outcome", "client", "from", "to", "limit", "cursor"}
    assert {one["name"] for one in listing} == wanted
    assert all(one["description"] for one in listing)


SCHEMAS = DOCUMENT["components"]["schemas"]


def takes_null(schema: dict[str, Any]) -> bool:
    return {"type": "null"} in schema.get("anyOf", [])


def test_what_may_be_absent_and_what_may_be_null() -> None:
    limits = SCHEMAS["LimitsChange"]
    assert limits["required"] == [] and all(takes_null(one) for one in limits["properties"].values())
    change = SCHEMAS["KeyChange"]
    assert change["required"] == [] and change["additionalProperties"] is False
    nullable = {name for name, one in change["properties"].items() if takes_null(one)}
    assert nullable == {"member_id", "models", "ip_allowlist", "expires_at", "tag"}
    assert SCHEMAS["NewKey"]["required"] == ["name"]
    view = SCHEMAS["KeyView"]
    assert set(view["required"]) == set(view["properties"]) >= nullable
    shown = {name for name, one in view["properties"].items() if takes_null(one)}
    assert shown == nullable | {"deleted_at", "replaced_by"}
    assert SCHEMAS["AccountChange"]["properties"]["limits"] == {"$ref": "#/components/schemas/LimitsChange"}


def test_secrets_are_written_and_never_read() -> None:
    for name in ("NewUpstream", "UpstreamChange"):
        text = msgspec.json.encode(SCHEMAS[name]["properties"]).decode()
        assert text.count('"writeOnly":true') == 2
    assert not {"api_key", "proxy_url", "sealed"} & set(SCHEMAS["UpstreamView"]["properties"])


@pytest.mark.parametrize(
    "kind", [BadInput, Unauthorized, Missing, WrongMethod, Conflict, TooLarge, Unprocessable, Unavailable, Problem]
)
def test_problems_have_their_schema(kind: type[Problem]) -> None:
    answer = kind("what happened")
    response = answer.response()
    schema = {**DOCUMENT, "$ref": "#/components/schemas/ProblemBody"}
    Draft202012Validator(schema).validate({"title": kind.title, "status": kind.status, "detail": "what happened"})
    assert (response.status_code, response.headers["content-type"]) == (kind.status, "application/problem+json")


def test_a_problem_may_carry_headers() -> None:
    assert WrongMethod("no", allow="GET").response().headers["allow"] == "GET"
    assert Unavailable("no").response().headers["retry-after"] == "2"


DOCS = Path(__file__).parent.parent.parent.parent / "docs"
GUIDE = (DOCS / "api.md").read_text()
SECTION = re.compile(r"^### (GET|POST|PATCH|PUT|DELETE) (\S+)\n(.*?)(?=^##|\Z)", re.MULTILINE | re.DOTALL)
SECTIONS = {(method, path): text for method, path, text in SECTION.findall(GUIDE)}


def test_the_reference_is_that_of_this_code() -> None:
    assert (DOCS / "api-reference.md").read_text() == openapi.reference(OPERATIONS, prefix=PREFIX)


def test_the_guide_shows_operations_that_there_are() -> None:
    assert SECTIONS.keys() <= BY_PATH.keys()
    shown = {BY_PATH[section].handler.__module__ for section in SECTIONS}
    assert shown == {one.handler.__module__ for one in OPERATIONS}, "a resource without an example"


@pytest.mark.parametrize("section", SECTIONS, ids=" ".join)
def test_the_guides_examples_are_what_is_sent_and_answered(section: tuple[str, str]) -> None:
    text, operation = SECTIONS[section], BY_PATH[section]
    (command,) = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    method = re.search(r"-X (\w+)", command)
    assert (method[1] if method else "GET") == operation.method
    assert ('-H "Authorization: Bearer $TOKEN"' in command) == (operation.roles is not None)
    sent = re.search(r"-d '(.*?)'", command, re.DOTALL)
    assert (sent is not None) == (operation.body is not None)
    if sent is not None and operation.body is not None:
        msgspec.json.decode(sent[1], type=operation.body)
    answers = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    assert bool(answers) == (operation.answer is not None)
    for answer in answers:
        schema = {**DOCUMENT, "$ref": f"#/components/schemas/{operation.answer.__name__}"}
        Draft202012Validator(schema).validate(msgspec.json.decode(answer))
    for name in [*operation.query, *operation.headers]:
        assert f"`{name}`" in text or name.endswith("[]") or name in ("limit", "cursor", "If-Match"), name
