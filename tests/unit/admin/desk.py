"""The control plane's operations without stores: a log of changes in memory, and calls checked against the OpenAPI document."""

import json
import re
from collections.abc import Sequence
from typing import Any, Final, Self

import msgspec
from jsonschema import Draft202012Validator
from starlette.requests import Request

from libs.common import events, redisclient
from libs.common.balances import Balances
from libs.common.events import ControlChanged, Entity
from libs.common.sealing import Sealer
from libs.common.upstreams import Shared, Upstreams
from services.admin import openapi
from services.admin.app import OPERATIONS, PREFIX
from services.admin.control import Control
from services.admin.ledger import Ledger, Row
from services.admin.problems import Conflict, Problem
from services.admin.resource import Context, Operation

DOCUMENT: Final[dict[str, Any]] = openapi.document(OPERATIONS, prefix=PREFIX)
NOBODY: Final = "redis://127.0.0.1:1/0"


class MemoryControl(Control):
    """The log of changes as a list: a change is compared with the latest version of its entity, then set."""

    def __init__(self) -> None:
        self.log: list[bytes] = []

    async def find(self, kind: type[Any], entity_id: str) -> tuple[Any, int] | None:
        latest = {event.entity.id: (event.entity, version) for version, event in self._read()}
        found = latest.get(entity_id)
        assert found is None or isinstance(found[0], kind)
        return found

    async def list_all(self, kind: type[Any]) -> list[tuple[Any, int]]:
        latest = {event.entity.id: (event.entity, version) for version, event in self._read()}
        return [latest[name] for name in sorted(latest) if isinstance(latest[name][0], kind)]

    async def put(self, entity: Entity, *, version: int, actor: str, reason: str) -> int:
        found = await self.find(type(entity), entity.id)
        if (found[1] if found else 0) != version:
            raise Conflict("It was changed by somebody else in the meantime; read it again.")
        self.log.append(events.encode_control(ControlChanged(entity=entity, actor=actor, reason=reason, at_ms=1)))
        return len(self.log)

    def _read(self) -> list[tuple[int, ControlChanged]]:
        return [(number, events.decode_control(payload)) for number, payload in enumerate(self.log, 1)]


class MemoryLedger(Ledger):
    """An archive that is never behind."""

    def __init__(self, control: MemoryControl) -> None:
        self._control = control

    async def entities(self, kind: str, account_id: str) -> list[Row]:
        latest = {event.entity.id: event.entity for _, event in self._control._read()}
        found = [one for one in latest.values() if getattr(one, "account_id", "") == account_id]
        encoded = [(one.id, msgspec.json.encode(one).decode()) for one in found]
        return [{"entity_id": name, "entity": text} for name, text in encoded if json.loads(text)["type"] == kind]


class MemoryPool(Upstreams):
    """What all gateways know of the upstreams, as a test has it."""

    def __init__(self) -> None:
        self.shared = Shared(0, [], {})
        self.slots: dict[str, int] = {}

    async def read_all(self) -> Shared:
        return self.shared

    async def in_flight(self, credential_ids: Sequence[str]) -> list[int]:
        return [self.slots.get(name, 0) for name in credential_ids]


class Desk:
    """Calls an operation as the router would."""

    def __init__(self, context: Context, control: MemoryControl, pool: MemoryPool) -> None:
        self.context = context
        self.control = control
        self.pool = pool

    @classmethod
    def opened(cls, *secrets_keys: str, control: MemoryControl | None = None) -> Self:
        """With these keys for secrets, on a log of its own unless one is given."""
        control, pool = control or MemoryControl(), MemoryPool()
        context = Context(
            control=control,
            ledger=MemoryLedger(control),
            balances=Balances(redisclient.connect(NOBODY)),
            sealer=Sealer(",".join(secrets_keys)),
            pool=pool,
            admin_token="",
        )
        return cls(context, control, pool)

    async def send(self, method: str, path: str, body: Any = None) -> tuple[int, dict[str, Any]]:
        """Status and answer, the latter as the document says."""
        operation, parameters = _operation(method, path)
        try:
            answer = await operation.handler(self.context, _request(method, path, parameters, body))
        except Problem as problem:
            return problem.status, json.loads(bytes(problem.response().body))
        value = json.loads(bytes(answer.body))
        assert answer.status_code == operation.status
        schema = {**DOCUMENT, "$ref": f"#/components/schemas/{operation.answer.__name__}"}
        Draft202012Validator(schema).validate(value)
        return answer.status_code, value

    async def done(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        """The answer of a call that succeeds."""
        status, answer = await self.send(method, path, body)
        assert status < 300, answer
        return answer

    async def refused(self, method: str, path: str, status: int, body: Any = None) -> str:
        """The detail of a problem of that status. Nothing was changed."""
        before = len(self.control.log)
        found, answer = await self.send(method, path, body)
        assert found == status, (found, answer)
        assert len(self.control.log) == before
        return str(answer["detail"])

    async def new_account(self) -> str:
        """An account's id."""
        return str((await self.done("POST", "/accounts", {"name": "test"}))["id"])


def _operation(method: str, path: str) -> tuple[Operation, dict[str, str]]:
    for operation in OPERATIONS:
        pattern = re.sub(r"{(\w+)}", r"(?P<\1>[^/]*)", operation.path)
        if operation.method == method and (match := re.fullmatch(pattern, path)):
            return operation, match.groupdict()
    raise AssertionError(f"there is no {method} {path}")


def _request(method: str, path: str, parameters: dict[str, str], body: Any) -> Request:
    payload = b"" if body is None else msgspec.json.encode(body)
    messages = [{"type": "http.request", "body": payload, "more_body": False}]
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "path_params": parameters,
        "query_string": b"",
        "headers": [],
    }

    async def receive() -> Any:
        return messages.pop(0)

    return Request(scope, receive)
