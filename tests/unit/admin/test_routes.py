"""Nothing is let in by default: every route of the real router is an operation with roles, or is typed here by hand."""

import inspect

import msgspec
import pytest
from starlette.responses import Response
from starlette.routing import Route

from libs.common.config import AdminConfig
from services.admin.access import MEMBERS, OPERATORS
from services.admin.app import OPEN_PATHS, PREFIX, create_app
from services.admin.resource import Call, Context, Operation, respond
from services.admin.routes import OPERATIONS
from tests.integration.admin_roles import BOUNDLESS, LETTERS, OPEN, TABLE, roles_of

NOTHING_OF_ANYBODY = {"/api/openapi.json", "/healthz", "/readyz", "/", "/link"}
ROUTES = create_app(AdminConfig(admin_token="operator-token-0123")).routes


def path_of(operation: Operation) -> str:
    return operation.path if operation.at_root else PREFIX + operation.path


def test_every_route_is_an_operation_or_open() -> None:
    operations = {(path_of(one), one.method) for one in OPERATIONS}
    for route in ROUTES:
        assert type(route) is Route, f"{route}: a mount or a socket is looked at by nobody"
        for method in (route.methods or set()) - {"HEAD"}:
            assert (route.path, method) in operations or (route.path in NOTHING_OF_ANYBODY and method == "GET")
    assert NOTHING_OF_ANYBODY == OPEN_PATHS


def test_no_operation_is_hidden_by_another_route() -> None:
    """A path such as /keys/{key_id} would take /keys/new, if it stood before it."""
    routes = [route for route in ROUTES if isinstance(route, Route)]
    for operation in OPERATIONS:
        scope = {"type": "http", "method": operation.method, "path": path_of(operation), "headers": []}
        first = next(route for route in routes if route.matches(scope)[0].value == 2)
        assert first.name == operation.id


def test_only_the_operations_typed_here_are_open() -> None:
    assert {one.id for one in OPERATIONS if one.roles is None} == OPEN
    for one in OPERATIONS:
        assert one.roles is None or one.roles, f"{one.id} is for nobody"


def test_whoever_is_bound_to_an_account_names_it_in_the_path() -> None:
    for one in OPERATIONS:
        if one.roles and one.roles & MEMBERS:
            assert "{account_id}" in one.path or one.id in BOUNDLESS, one.id


def test_names_are_unique() -> None:
    names = [one.id for one in OPERATIONS]
    assert len(names) == len(set(names))
    places = [(one.method, path_of(one)) for one in OPERATIONS]
    assert len(places) == len(set(places))


def test_the_table_knows_every_role() -> None:
    assert set(LETTERS.values()) == OPERATORS | MEMBERS


def test_the_table_says_what_the_code_says() -> None:
    written = {one.id: one.roles for one in OPERATIONS if one.roles is not None}
    assert written == {name: roles_of(name) for name in TABLE}


def test_what_changes_something_needs_a_scope_of_its_own() -> None:
    """A token that may only read changes nothing."""
    for one in OPERATIONS:
        if one.scope is not None:
            assert one.scope.endswith(":read") == (one.method == "GET"), one.id


async def handler(_: Context, __: Call) -> Response:
    return respond(None)


def test_no_operation_without_roles() -> None:
    field = next(one for one in msgspec.structs.fields(Operation) if one.name == "roles")
    assert field.required
    with pytest.raises(TypeError, match="roles"):
        Operation(method="GET", path="/x", handler=handler, summary="x")  # type: ignore[call-arg]
    assert Operation(method="GET", path="/x", handler=handler, summary="x", roles=None).roles is None


def test_every_handler_takes_a_call_whose_caller_is_known() -> None:
    """A plain Request has no principal, so a handler of it could not ask who calls."""
    for one in OPERATIONS:
        kinds = [parameter.annotation for parameter in inspect.signature(one.handler).parameters.values()]
        assert kinds == [Context, Call], one.id
