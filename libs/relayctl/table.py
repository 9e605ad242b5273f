"""START HERE. The table of commands, made from the OpenAPI document: `keys_create` is `relayctl keys create`. Pure.

A resource is an operation's tag, a verb the rest of its id with dashes. `list_all` and `list_page` are `list`.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

from libs.relayctl import options
from libs.relayctl.options import Option, Schema, Schemas

JSON: Final = "application/json"
METHODS: Final = ("get", "post", "put", "patch", "delete")
PAGES: Final[Mapping[str, str]] = {"cursor": "next_cursor", "page": "next_page", "after_id": "last_id"}
"""Query parameter of the next page, and the field of an answer that holds it."""
OURS: Final = frozenset({"--accept", "--body", "--columns", "--help", "--json", "--limit-pages", "--output"})
"""Options every command has; a field of the same name is `--body.NAME`."""
_COLUMNS_MIN: Final = 3
_COLUMNS_MAX: Final = 7
_SECRETS: Final = ("key", "token", "code", "secret")
_TELLING: Final = (
    *_SECRETS, "id", "request_id", "time", "name", "email", "kind", "role", "hint", "tag", "model_answered", "outcome",
    "amount_usd", "total_usd", "uses", "uses_max", "status", "reason", "expires_at", "created_at",
)  # fmt: skip
_SHORT: Final = {"list-all": "list", "list-page": "list"}


@dataclass(frozen=True, kw_only=True)
class Command:
    """One operation."""

    id: str
    resource: str
    verb: str
    method: str
    path: str
    summary: str
    positionals: Sequence[str]
    """Names of the path's parameters, in their order."""
    options: Sequence[Option] = ()
    has_body: bool = False
    is_open: bool = False
    """It needs no token."""
    media: Sequence[str] = ()
    """Media types of its answer."""
    is_list: bool = False
    """Its answer has `data`, a list."""
    columns: Sequence[str] = ()
    """What a list shows of each; empty: each is shown whole, for it is no row of a table."""
    page_by: str = ""
    """Query parameter of the next page."""
    roles: Sequence[str] = ()

    @property
    def words(self) -> str:
        """As it is typed."""
        return f"{self.resource} {self.verb}"

    @cached_property
    def body_options(self) -> Sequence[Option]:
        """Those of its body."""
        return [one for one in self.options if one.place == "body"]


class Table:
    """Every command of a document."""

    def __init__(self, commands: Iterable[Command]) -> None:
        self.commands = tuple(commands)

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> "Table":
        """The table of a document. What it cannot make sense of is left out."""
        schemas: Schemas = document.get("components", {}).get("schemas", {})
        made: dict[tuple[str, str], Command] = {}
        for path, method, operation in _operations(document):
            command = _command(path, method, operation, schemas)
            short = _SHORT.get(command.verb, command.verb)
            if (command.resource, short) in made:
                short = command.verb
            made[command.resource, short] = replace(command, verb=short)
        return cls(made.values())

    @property
    def resources(self) -> list[str]:
        """In the document's order."""
        return list(dict.fromkeys(one.resource for one in self.commands))

    def of_resource(self, resource: str) -> list[Command]:
        """Its commands; none if there is no such resource."""
        return [one for one in self.commands if one.resource == resource]

    def find(self, resource: str, verb: str) -> Command | None:
        """The command that is typed so; the whole name of an operation will do."""
        by_verb = next((one for one in self.of_resource(resource) if one.verb == verb), None)
        return by_verb or self.by_id(f"{resource}_{verb}".replace("-", "_"))

    def by_id(self, operation_id: str) -> Command | None:
        """The command of an operation."""
        return next((one for one in self.commands if one.id == operation_id), None)


def _operations(document: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    for path, operations in document.get("paths", {}).items():
        for method, operation in operations.items():
            if path.startswith("/") and method in METHODS and operation.get("operationId"):
                yield path, method, operation


def _command(path: str, method: str, operation: Mapping[str, Any], schemas: Schemas) -> Command:
    operation_id = str(operation["operationId"])
    resource = str((operation.get("tags") or [operation_id.partition("_")[0]])[0])
    verb = operation_id.removeprefix(resource).strip("_") or method
    body = operation.get("requestBody", {}).get("content", {}).get(JSON, {}).get("schema")
    parameters = _parameters(operation)
    queries = {str(one["name"]) for one in parameters if one["in"] == "query"}
    content = _content(operation)
    item = _item(content.get(JSON, {}).get("schema", {}), schemas)
    positionals = re.findall(r"{(\w+)}", path)
    return Command(
        id=operation_id,
        resource=options.dashed(resource),
        verb=options.dashed(verb),
        method=method.upper(),
        path=path,
        summary=str(operation.get("summary", "")),
        positionals=positionals,
        options=_without_clashes(
            [
                *(options.of_parameter(one, schemas) for one in parameters),
                *(options.of_body(options.resolve(body, schemas), schemas) if body is not None else ()),
            ]
        ),
        has_body=body is not None,
        is_open=operation.get("security") == [],
        media=list(content),
        is_list=bool(item),
        columns=_columns(item, positionals, schemas),
        page_by=next((name for name in PAGES if name in queries and method == "get"), ""),
        roles=operation.get("x-roles", ()),
    )


def _parameters(operation: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Queries and headers; of `x` and `x[]` the former, which is another spelling."""
    found = [one for one in operation.get("parameters", ()) if one.get("in") in ("query", "header")]
    names = {str(one["name"]) for one in found}
    return [one for one in found if str(one["name"]).removesuffix("[]") not in names - {str(one["name"])}]


def _content(operation: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of the answer that is a success."""
    done = [one for status, one in operation.get("responses", {}).items() if str(status).startswith("2")]
    content: Mapping[str, Any] = done[0].get("content", {}) if done else {}
    return content


def _item(schema: Schema, schemas: Schemas) -> Schema:
    """What a list is a list of; nothing, if it is no list."""
    data = options.resolve(schema, schemas).get("properties", {}).get("data", {})
    return options.resolve(data.get("items", {}), schemas) if data.get("type") == "array" else {}


def _columns(item: Schema, positionals: Sequence[str], schemas: Schemas) -> list[str]:
    """A few that tell most: no objects and lists, and nothing that is in the path already."""
    kinds = {
        name: options.without_null(one, schemas)[0]
        for name, one in item.get("properties", {}).items()
        if name not in positionals
    }
    scalar = [
        name for name, one in kinds.items() if "enum" in one or one.get("type") in ("string", "integer", "boolean")
    ]
    if len(scalar) < min(_COLUMNS_MIN, len(kinds)):
        return []
    telling = [name for name in _TELLING if name in scalar]
    filled = (telling + [name for name in scalar if name not in telling])[:_COLUMNS_MAX]
    return sorted(filled, key=lambda name: name in _SECRETS)  # a secret is long: it stands last


def _without_clashes(found: Sequence[Option]) -> list[Option]:
    """No two options of one name: a field that is called as a parameter or as an option of ours is `--body.NAME`."""
    taken = set(OURS)
    kept = []
    for option in found:
        flag = option.flag if option.flag not in taken else f"--{option.place}.{option.flag[2:]}"
        if flag not in taken:
            taken.add(flag)
            kept.append(replace(option, flag=flag))
    return kept
