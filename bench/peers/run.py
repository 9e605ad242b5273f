"""LiteLLM's proxy and Portkey's gateway, running in front of the same upstream as ours, each in one process on the proxies' core.

Both speak the Messages API and are told to hand it on as it is. What is set for LiteLLM is what its page on production says:
one uvicorn worker (uvloop is its default), no debug output, no .env, a master key; no database, so that no request waits for one.
Neither is given this environment: no credential, no HTTP proxy, and nothing it would fetch from the internet when it starts.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import httpx2

from bench import rig
from bench.peers import install
from bench.rig import BenchFailed, Kind, Proxy
from libs.localstack.process import Process, free_port, http_answers

_MODEL: Final = "claude-sonnet-4-6"
_MASTER_KEY: Final = "sk-bench-peer"
_UPSTREAM_KEY: Final = "sk-ant-bench"
_READY_S: Final = 90
_LITELLM: Final = {
    "LITELLM_MODE": "PRODUCTION",
    "LITELLM_LOG": "ERROR",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True",
    "LITELLM_LOCAL_AUTOROUTER_PRESETS": "True",
    "LITELLM_LOCAL_BLOG_POSTS": "True",
    "LITELLM_LOCAL_POLICY_TEMPLATES": "True",
}


@contextlib.contextmanager
def running(home: Path, upstream_url: str) -> Iterator[list[Proxy]]:
    """Both peers, once each has answered JSON and SSE as the upstream does. Raises BenchFailed or ProcessFailed."""
    program, script = install.litellm(), install.portkey()
    with contextlib.ExitStack() as stack:
        peers = [_start_litellm(stack, program, home, upstream_url), _start_portkey(stack, script, home, upstream_url)]
        for peer in peers:
            _check(peer, upstream_url)
            rig.pin(peer.pid)
        yield peers


def _start_litellm(stack: contextlib.ExitStack, program: Path, home: Path, upstream_url: str) -> Proxy:
    port = free_port()
    settings = {
        "model_list": [
            {
                "model_name": _MODEL,
                "litellm_params": {
                    "model": f"anthropic/{_MODEL}",
                    "api_base": upstream_url,
                    "api_key": _UPSTREAM_KEY,
                },
            }
        ],
        "general_settings": {"master_key": _MASTER_KEY},
        "litellm_settings": {"request_timeout": 600, "set_verbose": False, "json_logs": True},
    }
    config = home / "litellm.yaml"
    config.write_text(json.dumps(settings))  # which is YAML too
    command = [str(program), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1", "--config", str(config)]
    process = _start(stack, "litellm", command, home, _LITELLM, f"http://127.0.0.1:{port}/health/readiness")
    return Proxy(
        "litellm", f"http://127.0.0.1:{port}", process.pid, {}, headers={"authorization": f"Bearer {_MASTER_KEY}"}
    )


def _start_portkey(stack: contextlib.ExitStack, script: Path, home: Path, upstream_url: str) -> Proxy:
    port = free_port()
    loopback = Path(__file__).with_name("loopback.cjs")
    command = [shutil.which("node") or "node", "--require", str(loopback), str(script), f"--port={port}", "--headless"]
    environment = {"NODE_ENV": "production", "TRUSTED_CUSTOM_HOSTS": "127.0.0.1"}
    process = _start(stack, "portkey", command, home, environment, f"http://127.0.0.1:{port}/")
    told = {"x-portkey-provider": "anthropic", "x-portkey-custom-host": f"{upstream_url}/v1"}
    return Proxy("portkey", f"http://127.0.0.1:{port}", process.pid, {}, headers=told)


def _start(
    stack: contextlib.ExitStack, name: str, command: list[str], home: Path, settings: dict[str, str], ready_url: str
) -> Process:
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), **settings}
    process = Process.start(name, command, log=home / f"{name}.log", environment=environment)
    stack.callback(process.stop)
    return process.wait_until(http_answers(ready_url), seconds=_READY_S)


def _check(peer: Proxy, upstream_url: str) -> None:
    """Raise BenchFailed unless a JSON answer and a stream through the peer say what the upstream itself says."""
    upstream = Proxy("upstream", upstream_url, 0, {})
    kinds: tuple[Kind, ...] = ("json", "sse")
    for kind in kinds:
        found, expected = _ask(peer, kind), _ask(upstream, kind)
        if found != expected:
            raise BenchFailed(
                f"{peer.name} answers {kind} with {str(found)[:300]}, the upstream with {str(expected)[:300]}"
            )


def _ask(proxy: Proxy, kind: Kind) -> object:
    request = {"model": _MODEL, "max_tokens": 1024, "stream": kind == "sse"}
    body = json.dumps({**request, "messages": [{"role": "user", "content": "Hello"}]}, separators=(",", ":"))
    headers = {
        "x-api-key": _UPSTREAM_KEY,
        "anthropic-version": "2023-06-01",
        "content-type": "application/json",
        **proxy.headers,
    }
    with httpx2.Client(timeout=30, trust_env=False) as client:
        answer = client.post(proxy.url + proxy.path, content=body, headers=headers)
    if answer.status_code != 200:
        raise BenchFailed(f"{proxy.name} answers {kind} with {answer.status_code}: {answer.text[:300]}")
    return answer.json() if kind == "json" else events(answer.text)


def events(stream: str) -> list[Any]:
    """The data of each event of a stream, in order."""
    return [json.loads(line[5:]) for line in stream.splitlines() if line.startswith("data:")]
