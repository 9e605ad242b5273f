"""The control plane's operations without stores: a log of changes in memory, and calls checked against the OpenAPI document."""

import json
import re
from collections.abc import Sequence
from typing import Any, Final, Self

import msgspec
from jsonschema import Draft202012Validator
from nats.aio.client import Client

from libs.common import events, redisclient
from libs.common.balances import Balances
from libs.common.events import ControlChanged
from libs.common.scripts import Scripts
from libs.common.sealing import Sealer
from libs.common.standing import Standings
from libs.common.upstreams import Shared, Upstreams
from services.admin import openapi
from services.admin.access import Principal
from services.admin.app import OPERATIONS, PREFIX
from services.admin.control import By, Control, Found, Put
from services.admin.ledger import Ledger, Row
from services.admin.mirror import Mirror
from services.admin.notices.senders import Senders, SenderSettings
from services.admin.passwords import Passwords
from services.admin.problems import Conflict, Problem, Unprocessable
from services.admin.resource import Call, Context, Operation
from services.admin.sessions import Sessions

DOCUMENT: Final[dict[str, Any]] = openapi.document(OPERATIONS, prefix=PREFIX)
NOBODY: Final = "redis://127.0.0.1:1/0"


class MemoryControl(Control):
    """The log of changes as a list: a change is compared with the latest version of its entity, then set."""

    def __init__(self) -> None:
        self.log: list[bytes] = []
        self.mirror = Mirror(Client())
        self.mirror.whole.set()

    async def find(self, kind: type[Any], entity_id: str) -> Found[Any] | None:
        found = self._latest().get(entity_id)
        assert found is None or isinstance(found.entity, kind)
        return found

    async def first(self, kind: type[Any], entity_id: str, request: str) -> Any | None:
        for payload in self.log:
            event = events.decode_control(payload)
            if event.entity.id == entity_id:
                if event.request != request:
                    raise Unprocessable("This Idempotency-Key was used for another request.")
                return event.entity
        return None

    async def list_all(self, kind: type[Any]) -> list[Found[Any]]:
        return [one for _, one in sorted(self._latest().items()) if isinstance(one.entity, kind)]

    async def put_all(self, puts: Sequence[Put], *, by: By) -> list[Found[Any]]:
        latest = self._latest()
        for entity, over in puts:
            stands = latest.get(entity.id)
            if (stands.version if stands else 0) != (over.version if over else 0):
                raise Conflict("It was changed by somebody else in the meantime; read it again.")
        for entity, over in puts:
            change = ControlChanged(
                entity=entity,
                actor=by.actor,
                reason=by.reason,
                at_ms=1,
                address=by.address,
                request=by.request,
                previous=over.sha256 if over else "",
            )
            self.log.append(events.encode_control(change))
            self.mirror.take(self.log[-1], len(self.log))
        latest = self._latest()
        return [latest[entity.id] for entity, _ in puts]

    def _latest(self) -> dict[str, Found[Any]]:
        found = {}
        for number, payload in enumerate(self.log, 1):
            entity = events.decode_control(payload).entity
            found[entity.id] = Found(entity, number, events.payload_sha256(payload))
        return found


class MemoryLedger(Ledger):
    """An archive that is never behind."""

    def __init__(self, control: MemoryControl) -> None:
        self._control = control

    async def entities(self, kind: str, account_id: str, *, after: str = "", limit: int = 1_000_000) -> list[Row]:
        found = [one.entity for one in self._control._latest().values()]
        found = [one for one in found if getattr(one, "account_id", "") == account_id]
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
            standings=Standings(Scripts(redisclient.connect(NOBODY)), lambda _: ""),
            sealer=Sealer(",".join(secrets_keys)),
            pool=pool,
            mirror=control.mirror,
            passwords=Passwords(),
            sessions=Sessions(redisclient.connect(NOBODY)),
            senders=Senders(SenderSettings()),
            public_url="http://admin",
        )
        return cls(context, control, pool)

    async def send(self, method: str, path: str, body: Any = None) -> tuple[int, dict[str, Any]]:
        """Status and answer, the latter as the document says."""
        operation, parameters = _operation(method, path)
        try:
            answer = await operation.handler(self.context, _call(operation, path, parameters, body))
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


def _call(operation: Operation, path: str, parameters: dict[str, str], body: Any) -> Call:
    payload = b"" if body is None else msgspec.json.encode(body)
    messages = [{"type": "http.request", "body": payload, "more_body": False}]
    scope = {
        "type": "http",
        "method": operation.method,
        "path": path,
        "path_params": parameters,
        "query_string": b"",
        "headers": [],
    }

    async def receive() -> Any:
        return messages.pop(0)

    return Call(scope, receive, Principal(actor="test", role="operator:owner"), operation.id)
