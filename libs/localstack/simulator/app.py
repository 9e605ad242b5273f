"""The routes: the API's own, and `/_sim/…`, where tests look at what happened."""

import base64
import hashlib
import secrets
from collections import OrderedDict
from typing import Any, Final
from urllib.parse import parse_qs

import msgspec

from libs.localstack.simulator import catalogue, errors, scenarios, tokens
from libs.localstack.simulator.delivery import send_error, send_json
from libs.localstack.simulator.errors import ApiError
from libs.localstack.simulator.http import Exchange, Request, Server
from libs.localstack.simulator.messages import Messages

_RECEIVED_MAX: Final = 20_000
_RECEIVED_BYTES_MAX: Final = 64 * 1024 * 1024
_PAGE_DEFAULT: Final = 20


class Simulator:
    """The whole of it. `api_key` empty: any credential will do."""

    def __init__(self, *, api_key: str = "", gap_ms: int = 0) -> None:
        self.server = Server(self._answer)
        self._api_key = api_key
        self._gap_ms = gap_ms
        self._process = secrets.token_hex(4)
        self._requests = 0
        self._reset()

    def _reset(self) -> None:
        self._messages = Messages(gap_ms=self._gap_ms)
        self.received: OrderedDict[str, Request] = OrderedDict()
        self._received_bytes = 0

    async def _answer(self, request: Request, exchange: Exchange) -> None:
        if request.path.startswith(b"/_sim/"):
            self._answer_sim(request, exchange)
            return
        self._requests += 1
        request_id = f"req_sim{self._process}{self._requests:08d}"
        self._keep(request_id, request)
        route = (request.method, request.path)
        if route == ("POST", b"/v1/messages"):
            await self._messages.answer(request, exchange, request_id, self._refusal(request))
            return
        try:
            send_json(exchange, request_id, self._free(request))
        except ApiError as error:
            send_error(exchange, request_id, error)

    def _free(self, request: Request) -> dict[str, Any]:
        """What costs nothing. Raises ApiError."""
        if request.path == b"/api/hello" and request.method in ("GET", "HEAD"):
            return {"message": "hello"}
        if not request.path.startswith(b"/v1/"):
            raise errors.standard(404)
        refusal = self._refusal(request)
        if refusal is not None:
            raise refusal
        line, sim_id = request.header(b"x-sim-scenario"), request.header(b"x-sim-id")
        errors.raise_asked_for(self._messages.script.scenario(line, sim_id=sim_id, api_key=request.api_key))
        if (request.method, request.path) == ("POST", b"/v1/messages/count_tokens"):
            body = errors.object_of(request.header(b"content-type"), request.body)
            errors.check_prompt(body)
            return {"input_tokens": tokens.count(body)}
        if request.method == "GET" and request.path.startswith(b"/v1/models"):
            return self._models(request)
        raise errors.standard(404)

    def _models(self, request: Request) -> dict[str, Any]:
        name = request.path.removeprefix(b"/v1/models").removeprefix(b"/").decode("latin-1")
        if not name:
            query = parse_qs(request.query.decode("latin-1"))
            limit = query.get("limit", [str(_PAGE_DEFAULT)])[0]
            if not limit.isdecimal() or not 1 <= int(limit) <= 1000:
                raise ApiError(400, "limit: Input should be between 1 and 1000")
            return catalogue.page(limit=int(limit), after=query.get("after_id", [""])[0])
        if name not in catalogue.MODELS:
            raise ApiError(404, f"model: {name}")
        return catalogue.entry(name)

    def _refusal(self, request: Request) -> ApiError | None:
        """What is wrong with the credential."""
        if not request.api_key:
            return ApiError(401, "x-api-key header is required")
        return errors.standard(401) if self._api_key and request.api_key != self._api_key else None

    def _keep(self, request_id: str, request: Request) -> None:
        self.received[request_id] = request
        self._received_bytes += len(request.body)
        while len(self.received) > _RECEIVED_MAX or self._received_bytes > _RECEIVED_BYTES_MAX:
            _, oldest = self.received.popitem(last=False)
            self._received_bytes -= len(oldest.body)

    def _answer_sim(self, request: Request, exchange: Exchange) -> None:
        value = self._sim(request, exchange)
        body = msgspec.json.encode({"error": "not found"} if value is None else value)
        exchange.start(404 if value is None else 200, [(b"content-type", b"application/json")], length=len(body))
        exchange.send(body)

    def _sim(self, request: Request, exchange: Exchange) -> dict[str, Any] | None:
        name = request.path.removeprefix(b"/_sim/").decode("latin-1")
        match request.method, name.partition("/")[0]:
            case "GET", "invoice":
                query = parse_qs(request.query.decode("latin-1"))
                return self._messages.invoice.shown(query.get("sim_id", [""])[0])
            case "GET", "scenarios":
                return {"scenarios": scenarios.SCENARIOS}
            case "GET", "requests":
                received = self.received.get(name.partition("/")[2])
                return None if received is None else _shown(received)
            case "GET", "connections":
                return self._connections(exchange)
            case "POST", "reset":
                self._reset()
                return {}
        return None

    def _connections(self, exchange: Exchange) -> dict[str, Any]:
        """Without the connection that asks."""
        others = self.server.connections - {exchange.connection}
        return {
            "open": len(others),
            "busy": sum(connection.busy for connection in others),
            "accepted": self.server.accepted,
            "streams_running": self._messages.streams_running,
        }


def _shown(request: Request) -> dict[str, Any]:
    return {
        "method": request.method,
        "target": request.target.decode("latin-1"),
        "headers": [[name.decode("latin-1"), value.decode("latin-1")] for name, value in request.headers],
        "body": base64.b64encode(request.body).decode(),
        "sha256": hashlib.sha256(request.body).hexdigest(),
    }
