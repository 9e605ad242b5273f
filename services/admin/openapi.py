"""The OpenAPI 3.1 document, made from the operations and their types."""

import re
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from services.admin.problems import CONTENT_TYPE, ProblemBody
from services.admin.resource import Operation

_REF: Final = "#/components/schemas/{name}"
_STATUSES: Final = ("400", "404", "503")
_STATUSES_OF_CALLERS: Final = ("401", "403")
_STATUSES_OF_CHANGES: Final = ("409", "413", "422")
_ETAG: Final = {"ETag": {"description": "Version of what is answered, for If-Match", "schema": {"type": "string"}}}


def document(operations: Sequence[Operation], *, prefix: str) -> dict[str, Any]:
    """The document; `prefix` stands before every path that is not the whole."""
    types = [
        ProblemBody,
        *(one.answer for one in operations if one.answer),
        *(one.body for one in operations if one.body),
    ]
    _, schemas = msgspec.json.schema_components(types, ref_template=_REF)
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        path = operation.path if operation.at_root else prefix + operation.path
        paths.setdefault(path, {})[operation.method.lower()] = _operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Claude API relay: control plane", "version": "1"},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def reference(operations: Sequence[Operation], *, prefix: str) -> str:
    """All operations as a table of Markdown: what docs/api-reference.md has."""
    lines = [
        "# All operations",
        "",
        "Made by `python -m services.admin api-reference`; the whole of it, with types, is `/api/openapi.json`.",
        "",
        "| operation | what | roles | scope of a service token |",
        "|---|---|---|---|",
    ]
    for one in operations:
        path = one.path if one.at_root else prefix + one.path
        roles = "everybody" if one.roles is None else ", ".join(sorted(one.roles))
        lines.append(f"| `{one.method} {path}` | {one.summary} | {roles} | {one.scope or 'none: for people'} |")
    return "\n".join(lines) + "\n"


def _operation(operation: Operation) -> dict[str, Any]:
    problem = {"description": "Problem", "content": {CONTENT_TYPE: {"schema": _reference(ProblemBody)}}}
    statuses = set(_STATUSES) | (set(_STATUSES_OF_CHANGES) if operation.method != "GET" else set())
    if operation.roles is not None:
        statuses |= set(_STATUSES_OF_CALLERS)
    if "If-Match" in operation.headers:
        statuses.add("412")
    described: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": operation.id,
        "tags": [operation.resource],
        "parameters": [*_path_parameters(operation), *_other_parameters(operation)],
        "responses": {
            str(operation.status): {"description": "Done", "headers": _ETAG, "content": _content(operation)},
            **dict.fromkeys(sorted(statuses), problem),
            "default": problem | {"description": "Any other failure, the relay's own included: always a problem"},
        },
        "security": [] if operation.roles is None else [{"token": []}],
        "x-roles": sorted(operation.roles or ()),
        "x-scope": operation.scope,
    }
    if operation.body is not None:
        described["requestBody"] = {"required": True, "content": _json(operation.body)}
    return described


def _content(operation: Operation) -> dict[str, Any]:
    text = {media: {"schema": {"type": "string"}} for media in operation.media}
    return (_json(operation.answer) if operation.answer is not None else {}) | text


def _path_parameters(operation: Operation) -> list[dict[str, Any]]:
    names = re.findall(r"{(\w+)}", operation.path)
    return [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names]


def _other_parameters(operation: Operation) -> list[dict[str, Any]]:
    text = {"type": "string"}
    listed = {"type": "array", "items": text}
    queries = [
        {
            "name": name, "in": "query", "description": meaning,
            "schema": listed if name in operation.repeatable else text,
        }
        for name, meaning in operation.query.items()
    ]  # fmt: skip
    headers = [
        {"name": name, "in": "header", "description": meaning, "schema": text}
        for name, meaning in operation.headers.items()
    ]
    return queries + headers


def _json(kind: type) -> dict[str, Any]:
    return {"application/json": {"schema": _reference(kind)}}


def _reference(kind: type) -> dict[str, str]:
    return {"$ref": _REF.format(name=kind.__name__)}
