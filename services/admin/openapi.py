"""The OpenAPI 3.1 document, made from the operations and their types."""

import re
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from services.admin.problems import CONTENT_TYPE, ProblemBody
from services.admin.resource import Operation

_REF: Final = "#/components/schemas/{name}"
_PROBLEM_STATUSES: Final = ("400", "401", "404", "503")
_PROBLEM_STATUSES_OF_CHANGES: Final = ("409", "413", "422")


def document(operations: Sequence[Operation], *, prefix: str) -> dict[str, Any]:
    """The document; `prefix` stands before every path."""
    types = [ProblemBody, *(one.answer for one in operations), *(one.body for one in operations if one.body)]
    _, schemas = msgspec.json.schema_components(types, ref_template=_REF)
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(prefix + operation.path, {})[operation.method.lower()] = _operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Claude API relay: control plane", "version": "1"},
        "paths": paths,
        "security": [{"token": []}],
        "components": {
            "schemas": schemas,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(operation: Operation) -> dict[str, Any]:
    problem = {"description": "Problem", "content": {CONTENT_TYPE: {"schema": _reference(ProblemBody)}}}
    statuses = _PROBLEM_STATUSES + (_PROBLEM_STATUSES_OF_CHANGES if operation.method != "GET" else ())
    described: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": f"{operation.handler.__module__.rpartition('.')[2]}_{operation.handler.__name__}",
        "parameters": [*_path_parameters(operation), *_other_parameters(operation)],
        "responses": {
            str(operation.status): {"description": "Done", "content": _json(operation.answer)},
            **dict.fromkeys(statuses, problem),
            "default": problem | {"description": "Any other failure, the relay's own included: always a problem"},
        },
    }
    if operation.body is not None:
        described["requestBody"] = {"required": True, "content": _json(operation.body)}
    return described


def _path_parameters(operation: Operation) -> list[dict[str, Any]]:
    names = re.findall(r"{(\w+)}", operation.path)
    return [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names]


def _other_parameters(operation: Operation) -> list[dict[str, Any]]:
    places = {"query": operation.query, "header": operation.headers}
    return [
        {"name": name, "in": place, "description": meaning, "schema": {"type": "string"}}
        for place, parameters in places.items()
        for name, meaning in parameters.items()
    ]


def _json(kind: type) -> dict[str, Any]:
    return {"application/json": {"schema": _reference(kind)}}


def _reference(kind: type) -> dict[str, str]:
    return {"$ref": _REF.format(name=kind.__name__)}
