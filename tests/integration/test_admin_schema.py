"""What is generated from the OpenAPI document, sent to the real server: no failure of ours, every answer as documented."""

import os
import secrets
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase
from schemathesis import APIOperation, Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from libs.common import ids
from tests import apart
from tests.integration.accounting_rig import Rig
from tests.integration.admin_bodies import API_KEY
from tests.integration.admin_people import BY_ID, PASSWORD
from tests.integration.admin_process import AdminProcess, from_address
from tests.integration.admin_rig import TOKEN

pytestmark = pytest.mark.anyio
SEED: Final = int(os.environ.get("RELAY_TEST_SEED") or secrets.randbelow(2**32))
ADDRESS: Final = "127.0.3.1"
SECONDS_MAX: Final = 50.0
CHECKS: Final = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
]
ORDER: Final = ("get", "post", "put", "patch", "delete")
"""What ends things comes last, so that there is something for the others."""


@dataclass(frozen=True)
class Caller:
    """Whose token is sent, and ids that exist for him."""

    name: str
    token: str
    path_parameters: dict[str, str]
    examples: int
    mode: GenerationMode = GenerationMode.POSITIVE
    ends_session: bool = True


class Bearer(AuthBase):
    """Sets the token last, whatever was generated in its place."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["authorization"] = f"Bearer {self._token}"
        return request


class From(HTTPAdapter):
    """Calls from an address of its own: tries are counted by address."""

    def init_poolmanager(self, *arguments: Any, **options: Any) -> Any:
        return super().init_poolmanager(*arguments, **options, source_address=(ADDRESS, 0))


nats_url, redis_url = apart.nats_url, apart.redis_url
"""Prices are everybody's: what is published here must not be seen by other tests."""


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def process(
    nats_url: str, redis_url: str, clickhouse_url: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[AdminProcess]:
    async with (
        Rig.over(nats_url, redis_url, clickhouse_url) as rig,
        AdminProcess.over(rig, tmp_path_factory.mktemp("admin")) as made,
    ):
        before = await upstreams(made)
        yield made
        for name in await upstreams(made) - before:  # a gateway of another test would send requests there
            await made.done("DELETE", f"/upstreams/{name}")


async def upstreams(process: AdminProcess) -> set[str]:
    """Ids of those that are not deleted."""
    return {one["id"] for one in (await process.done("GET", "/upstreams"))["data"] if one["status"] != "deleted"}


async def furnished(process: AdminProcess) -> tuple[dict[str, str], str]:
    """An account with something of each kind, and its owner's token."""
    account_id = await process.new_account("50.00")
    path, email = f"/accounts/{account_id}", f"{ids.uuid7_hex()}@example.com"
    found = {"account_id": account_id, "month": "2026-11"}
    person = await process.done("POST", f"{path}/members", json={"name": "Ada", "role": "owner", "email": email})
    token = person["link"]["url"].partition("#")[2]
    async with from_address(process, ADDRESS) as client:
        link = {"token": token, "password": PASSWORD}
        session = (await client.post("/api/v1/links/accept", json=link)).raise_for_status().json()
    operator = {"name": "x", "email": f"{ids.uuid7_hex()}@example.com", "role": "viewer"}
    scoped = {"name": "t", "role": "billing", "scopes": ["money:read"]}
    for name, place, body in (
        ("member_id", f"{path}/members", {"name": "Grace"}),
        ("key_id", f"{path}/keys", {"name": "k"}),
        ("token_id", f"{path}/tokens", scoped),
        ("operator_id", "/operators", operator),
        ("upstream_id", "/upstreams", {"name": "u", "api_key": API_KEY, "base_url": "http://127.0.0.1:1"}),
    ):
        found[name] = (await process.done("POST", place, json=body))["id"]
    return found, session["token"]


async def callers(process: AdminProcess) -> list[Caller]:
    theirs, owner = await furnished(process)
    again, _ = await furnished(process)
    return [
        Caller("an operator, with ids that exist", TOKEN, again, 5),
        Caller("an operator, with anything", TOKEN, {}, 2),
        Caller("an operator, with what the document forbids", TOKEN, again, 4, GenerationMode.NEGATIVE),
        Caller("an owner of an account", owner, theirs, 3, ends_session=False),
        Caller("an owner of an account, with what the document forbids", owner, theirs, 2, GenerationMode.NEGATIVE),
        Caller("nobody", "rss_nobody", {}, 1),
    ]


async def test_every_answer_is_as_the_document_says(process: AdminProcess) -> None:
    print(f"RELAY_TEST_SEED={SEED}")
    document = (await process.client.get("/api/openapi.json")).json()
    found = list(schemathesis.openapi.from_dict(document).get_all_operations())
    operations = [one.ok() for one in found if isinstance(one, Ok)]
    assert len(operations) == len(found) == len(BY_ID)
    operations.sort(key=lambda one: (ORDER.index(one.method), "sessions" in one.path))
    last = operations[-1]  # ends the session that is used
    assert last.path.endswith("/sessions/current")
    began, statuses = time.monotonic(), defaultdict[str, Counter[int]](Counter)
    with requests.Session() as session:
        session.trust_env = False
        session.mount("http://", From())
        for caller in await callers(process):
            of_caller = Counter[int]()
            for operation in operations if caller.ends_session else operations[:-1]:
                if time.monotonic() - began < SECONDS_MAX:
                    seen = fuzz(process, session, operation, caller)
                    statuses[operation.label] += seen
                    of_caller += seen
            print(f"{caller.name}: {of_caller}")
    total = sum(statuses.values(), Counter[int]())
    print(f"{total.total()} calls of {len(statuses)} operations in {time.monotonic() - began:.0f} s: {total}")
    assert len(statuses) == len(operations), "too slow to have shown anything"
    assert sum(1 for seen in statuses.values() if {200, 201} & set(seen)) > len(operations) / 2, statuses
    assert process.is_running()


def fuzz(
    process: AdminProcess, session: requests.Session, operation: APIOperation[Any, Any, Any, Any], caller: Caller
) -> Counter[int]:
    """Call an operation with what is generated; how it was answered."""
    names = {one.name for one in operation.path_parameters}
    known = {name: value for name, value in caller.path_parameters.items() if name in names}
    strategy = operation.as_strategy(caller.mode, path_parameters=known or None)
    statuses = Counter[int]()

    @seed(SEED)
    @settings(
        max_examples=caller.examples,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=strategy)
    def send(case: Case[Any]) -> None:
        answer = case.call(base_url=process.url, session=session, auth=Bearer(caller.token), timeout=30)
        statuses[answer.status_code] += 1
        assert answer.status_code != 500, f"{caller.name}, seed {SEED}: {case.as_curl_command()}"
        case.validate_response(answer, checks=CHECKS)

    try:
        send()
    except Unsatisfiable:
        assert caller.mode is GenerationMode.NEGATIVE, (
            operation.label
        )  # nothing can be forbidden where nothing is taken
    except schemathesis.errors.SchemathesisError as error:  # such as: nothing can be forbidden where nothing is taken
        print(f"{operation.label}, {caller.name}: {error}")
    return statuses
