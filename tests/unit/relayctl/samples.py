"""A small document that has every form of option, and a server that says what a test tells it to."""

import contextlib
import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

TEXT: Final = {"type": "string"}
NULL: Final = {"type": "null"}
_COLOUR: Final = {"enum": ["red", "green"]}
SCHEMAS: Final[dict[str, Any]] = {
    "Wheel": {
        "type": "object",
        "properties": {"size": {"anyOf": [{"type": "integer"}, NULL]}, "tyre": {"$ref": "#/components/schemas/Tyre"}},
        "required": [],
    },
    "Tyre": {"type": "object", "properties": {"maker": TEXT}, "required": ["maker"]},
    "NewCart": {
        "type": "object",
        "properties": {
            "owner_id": {"anyOf": [TEXT, NULL]},
            "name": TEXT,
            "wheel": {"$ref": "#/components/schemas/Wheel"},
            "spare": {"anyOf": [{"$ref": "#/components/schemas/Wheel"}, NULL]},
            "colour": {"anyOf": [_COLOUR, {"enum": ["blue"]}]},
            "tags": {"anyOf": [{"type": "array", "items": TEXT}, NULL]},
            "parts": {"type": "array", "items": {"$ref": "#/components/schemas/Wheel"}},
            "sold": {"type": "boolean"},
            "pin": {"type": "string", "writeOnly": True},
            "json": TEXT,
            "limit": {"type": "integer", "minimum": 1, "maximum": 5, "default": 3},
        },
        "required": ["name"],
    },
    "Cart": {
        "type": "object",
        "properties": {
            "shop_id": TEXT, "id": TEXT, "name": TEXT, "wheel": {"$ref": "#/components/schemas/Wheel"},
            "weight": {"type": "integer"}, "token": TEXT,
        },
    },
    "CartPage": {
        "type": "object",
        "properties": {
            "data": {"type": "array", "items": {"$ref": "#/components/schemas/Cart"}},
            "next_cursor": {"anyOf": [TEXT, NULL]},
        },
    },
}  # fmt: skip


def answers(*, json_of: str = "", text_of: str = "", status: str = "200") -> dict[str, Any]:
    """The responses of an operation."""
    content: dict[str, Any] = {text_of: {"schema": TEXT}} if text_of else {}
    if json_of:
        content["application/json"] = {"schema": {"$ref": f"#/components/schemas/{json_of}"}}
    return {"400": {"content": {"application/problem+json": {}}}, status: {"content": content}}


def operation(name: str, *, tag: str = "", **more: Any) -> dict[str, Any]:
    """An operation that needs a token."""
    return {
        "operationId": name,
        "summary": f"Do {name}",
        **({"tags": [tag]} if tag else {}),
        "security": [{"token": []}],
        **more,
    }


def query(name: str, schema: Mapping[str, Any] = TEXT) -> dict[str, Any]:
    """A query parameter."""
    return {"name": name, "in": "query", "description": f"100% of {name}", "schema": schema}


def header(name: str) -> dict[str, Any]:
    """A header."""
    return {"name": name, "in": "header", "description": "", "schema": TEXT}


SHOP: Final = {"name": "shop_id", "in": "path", "required": True, "schema": TEXT}
BODY: Final = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/NewCart"}}}}
DOCUMENT: Final[dict[str, Any]] = {
    "openapi": "3.1.0",
    "paths": {
        "/v1/shops/{shop_id}/hand-carts": {
            "post": operation(
                "hand_carts_create", tag="hand_carts", parameters=[SHOP, query("dry"), header("Idempotency-Key")],
                requestBody=BODY, responses=answers(json_of="Cart", status="201"),
            ),
            "get": operation(
                "hand_carts_list_all", tag="hand_carts", responses=answers(json_of="CartPage"),
                parameters=[
                    SHOP, query("colours", {"type": "array", "items": TEXT}), query("colours[]"), query("limit"), query("cursor"),
                ],
            ),
        },
        "/v1/shops/{shop_id}/hand-carts/{cart_id}": {
            "get": operation("hand_carts_show", tag="hand_carts", responses=answers(json_of="Cart")),
            "delete": operation(
                "hand_carts_delete", tag="hand_carts", parameters=[header("If-Match")], responses=answers(json_of="Cart")
            ),
        },
        "/v1/report": {"get": operation("report_show", responses=answers(text_of="text/csv"))},
        "/v1/sessions": {
            "post": operation("signing_in_sign_in", tag="signing_in", responses=answers(json_of="Cart")) | {"security": []},
            "delete": operation("signing_in_sign_out", tag="signing_in", responses=answers(json_of="Cart")),
        },
        "/v1/me": {"get": operation("signing_in_me", tag="signing_in", responses=answers(json_of="Cart"))},
    },
    "components": {"schemas": SCHEMAS},
}  # fmt: skip


@dataclass
class Call:
    """What came."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Reply:
    """What is answered. `cut`: the connection breaks before the end of the body."""

    body: bytes = b"{}"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    media: str = "application/json"
    cut: bool = False
    wait_s: float = 0.0


class Server:
    """Answers `/api/openapi.json` with its document, and everything else with the next of `replies`."""

    def __init__(self) -> None:
        self.document = DOCUMENT
        self.etag = ""
        self.replies: list[Reply] = []
        self.calls: list[Call] = []
        self.url = ""
        self.over = threading.Event()

    def reply(self, call: Call) -> Reply:
        """What to answer. Documents are not counted among the calls."""
        if call.path == "/api/openapi.json":
            if self.etag and call.headers.get("if-none-match") == self.etag:
                return Reply(b"", 304)
            return Reply(json.dumps(self.document).encode(), headers={"etag": self.etag} if self.etag else {})
        self.calls.append(call)
        return self.replies.pop(0)


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    """A server on a free port."""
    server = Server()

    class Handler(BaseHTTPRequestHandler):
        def do(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            reply = server.reply(Call(self.command, self.path, headers, body))
            server.over.wait(reply.wait_s)
            self.send_response(reply.status)
            length = len(reply.body) + (10 if reply.cut else 0)
            shown = {"content-length": str(length), "content-type": reply.media, **reply.headers}
            for name, value in shown.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(reply.body)

        do_GET = do_POST = do_PATCH = do_DELETE = do

        def log_message(self, *_: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server.url = f"http://127.0.0.1:{http.server_address[1]}"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        http.shutdown()
        thread.join()
        http.server_close()
