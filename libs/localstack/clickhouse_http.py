"""chDB, the real ClickHouse engine, behind ClickHouse's HTTP interface, so that clickhouse-connect is the only client.

`python -m libs.localstack.clickhouse_http DIRECTORY PORT`. One process owns the directory; queries run one after another in
one thread. For a local stack and tests: no users, no sessions, no limits but one on the size of a request; answers are not
compressed, and an empty result comes without the names of its columns.
"""

import asyncio
import gzip
import re
import shutil
import sys
import tempfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import lz4.frame
from chdb import session
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from libs.common import serving

_INFILE: Final = " FROM INFILE ''"
_BODY_BYTES_MAX: Final = 256 * 1024 * 1024
_INSERT_NATIVE: Final = re.compile(rb"\s*INSERT\s.*?\sFORMAT\s+Native\s*?\n", re.IGNORECASE | re.DOTALL)
_FORMAT: Final = re.compile(r"\sFORMAT\s+(\w+)\s*;?\s*$", re.IGNORECASE)
_BOUNDARY: Final = re.compile(r"multipart/form-data;.*boundary=\"?([^\";]+)", re.IGNORECASE)
_FIELD: Final = re.compile(rb'name="([^"]+)"')
_ERROR_CODE: Final = re.compile(r"Code: (\d+)")
_NOT_SETTINGS: Final = frozenset(
    {
        "query",
        "database",
        "query_id",
        "session_id",
        "session_timeout",
        "default_format",
        "compress",
        "decompress",
        "enable_http_compression",
        "client_protocol_version",
        "wait_end_of_query",
        "send_progress_in_http_headers",
        "http_headers_progress_interval_ms",
        "user",
        "password",
        "quota_key",
        "session_check",
        "role",
    }
)
_SETTING: Final = re.compile(r"[a-z][a-z0-9_]{0,80}")
_DATABASE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,60}")


class Engine:
    """The engine and its one thread."""

    def __init__(self, directory: Path, database: str = "relay") -> None:
        self._inserts = directory / "inserts"
        shutil.rmtree(self._inserts, ignore_errors=True)  # what a killed process left
        self._inserts.mkdir(parents=True)
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="chdb")
        self._session = self._threads.submit(session.Session, str(directory)).result()
        self._threads.submit(self._query, f"CREATE DATABASE IF NOT EXISTS {database}", "Native", {}, "").result()

    async def query(self, sql: str, output_format: str, parameters: dict[str, str], database: str) -> bytes:
        """Run a statement in a database (empty: the one in use). Raises RuntimeError with ClickHouse's text."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._query, sql, output_format, parameters, database)

    async def insert(self, sql: str, data: bytes, database: str) -> None:
        """Run `INSERT INTO …` with its data in Native format, which goes through a file of the engine's own directory."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._threads, self._insert, sql, data, database)

    def close(self) -> None:
        """Flush and close the directory."""
        self._threads.submit(self._session.close).result()
        self._threads.shutdown()

    def _query(self, sql: str, output_format: str, parameters: dict[str, str], database: str) -> bytes:
        """`USE` and the statement in one turn of the thread: between two turns another request may use another one."""
        if database:
            self._session.query(f"USE {database}", "Native")
        result: Any = self._session.query(sql, output_format, params=parameters)
        return bytes(result.bytes() or b"")

    def _insert(self, sql: str, data: bytes, database: str) -> None:
        with tempfile.NamedTemporaryFile(suffix=".native", dir=self._inserts) as file:
            file.write(data)
            file.flush()
            self._query(sql.replace(_INFILE, f" FROM INFILE '{_quoted(file.name)}'"), "Native", {}, database)


def create_app(engine: Engine) -> Starlette:
    """ClickHouse's `/ping` and `/`."""

    async def ping(_: Request) -> Response:
        return PlainTextResponse("Ok.\n")

    async def root(request: Request) -> Response:
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > _BODY_BYTES_MAX:
                return PlainTextResponse("Code: 241. DB::Exception: the request is too large", status_code=413)
        try:
            return await _run(engine, request, _unpacked(bytes(body), request.headers.get("content-encoding", "")))
        except (RuntimeError, ValueError, OSError) as error:
            return _failed(str(error))

    return Starlette(routes=[Route("/ping", ping), Route("/", root, methods=["GET", "POST"])])


async def _run(engine: Engine, request: Request, body: bytes) -> Response:
    query = dict(request.query_params)
    if boundary := _BOUNDARY.search(request.headers.get("content-type", "")):
        query |= _fields(body, boundary[1].encode())
        body = b""
    sql, data = query.get("query", ""), body
    if not sql:
        head = _INSERT_NATIVE.match(body)
        sql, data = (body[: head.end()].decode(), body[head.end() :]) if head else (body.decode(), b"")
    database = query.get("database", "")
    if database and not _DATABASE.fullmatch(database):
        raise ValueError("Code: 81. DB::Exception: not a database name")
    if data and sql.lstrip()[:6].upper() == "INSERT":
        await engine.insert(f"{_FORMAT.sub('', sql)}{_INFILE}{_settings(query)} FORMAT Native", data, database)
        return _answer(b"", "Native", request)
    wanted = _FORMAT.search(sql)
    output_format = (
        wanted[1]
        if wanted
        else request.headers.get("x-clickhouse-format") or query.get("default_format", "TabSeparated")
    )
    sql = _FORMAT.sub("", sql)
    if sql.lstrip()[:6].upper() == "SELECT" and not re.search(r"\sSETTINGS\s", sql, re.IGNORECASE):
        sql += _settings(query)
    parameters = {name.removeprefix("param_"): value for name, value in query.items() if name.startswith("param_")}
    result = await engine.query(sql, output_format, parameters, database)
    return _answer(result, output_format, request)


def _fields(body: bytes, boundary: bytes) -> dict[str, str]:
    """Of a form: the client sends one when the parameters are too long for a URL."""
    found = {}
    for part in body.split(b"--" + boundary)[1:-1]:
        head, _, value = part.partition(b"\r\n\r\n")
        if name := _FIELD.search(head):
            found[name[1].decode()] = value.removesuffix(b"\r\n").decode()
    return found


def _settings(query: dict[str, str]) -> str:
    """Settings of the URL as a SETTINGS clause; empty if there are none."""
    chosen = {
        name: value
        for name, value in query.items()
        if name not in _NOT_SETTINGS and not name.startswith("param_") and _SETTING.fullmatch(name)
    }
    pairs = ", ".join(f"{name} = '{_quoted(value)}'" for name, value in chosen.items())
    return f" SETTINGS {pairs}" if pairs else ""


def _quoted(value: str) -> str:
    return value.replace("\\", "\\\\").replace("'", "\\'")


def _answer(result: bytes, output_format: str, request: Request) -> Response:
    headers = {
        "X-ClickHouse-Summary": "{}",
        "X-ClickHouse-Query-Id": request.query_params.get("query_id", ""),
        "X-ClickHouse-Format": output_format,
        "X-ClickHouse-Timezone": "UTC",
    }
    return Response(result, headers=headers)


def _failed(text: str) -> Response:
    code = _ERROR_CODE.search(text)
    headers = {"X-ClickHouse-Exception-Code": code[1] if code else "1"}
    return PlainTextResponse(text if code else f"Code: 1. DB::Exception: {text}", status_code=500, headers=headers)


def _unpacked(body: bytes, coding: str) -> bytes:
    match coding:
        case "":
            return body
        case "gzip":
            return gzip.decompress(body)
        case "deflate":
            return zlib.decompress(body)
        case "lz4":
            return bytes(lz4.frame.decompress(body))  # type: ignore[attr-defined]
        case _:
            raise ValueError(f"Code: 38. DB::Exception: content-encoding {coding} is not supported here")


def main(directory: str, port: str) -> None:
    """Serve until SIGTERM, then close the engine."""
    Path(directory).mkdir(parents=True, exist_ok=True)
    engine = Engine(Path(directory))
    try:
        serving.run(serving.plain_server(create_app(engine), host="127.0.0.1", port=int(port)), log_level="warning")
    finally:
        engine.close()


if __name__ == "__main__":
    main(*sys.argv[1:3])
