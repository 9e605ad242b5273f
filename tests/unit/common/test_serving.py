"""How a service ends: cleanly after a signal, with a code that says so when it never began."""

import signal
import subprocess
import sys
import textwrap
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from libs.common import serving
from libs.localstack.process import Process, free_port, http_answers

ROOT: Final = Path(__file__).parent.parent.parent.parent
PROGRAM: Final = """
    import contextlib, sys
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route
    from libs.common import serving

    @contextlib.asynccontextmanager
    async def lifespan(app):
        if "fail" in sys.argv:
            raise OSError("a store is away")
        print("began", flush=True)
        yield
        print("ended", flush=True)

    async def hello(request):
        return PlainTextResponse("hello")

    app = Starlette(routes=[Route("/", hello)], lifespan=lifespan)
    serving.run(serving.plain_server(app, host="127.0.0.1", port=int(sys.argv[1])), log_level="info")
    print("returned", flush=True)
"""


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., Process]:
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(PROGRAM))

    def started(*arguments: str) -> Process:
        environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
        command = [sys.executable, str(program), *arguments]
        return Process.start("program", command, log=tmp_path / "log", environment=environment)

    return started


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(start: Callable[..., Process], number: signal.Signals) -> None:
    port = free_port()
    process = start(str(port)).wait_until(http_answers(f"http://127.0.0.1:{port}/"), seconds=10)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/") as answer:
        assert "server" not in answer.headers
    process._child.send_signal(number)
    assert process._child.wait(10) == 0
    lines = process.log_tail().splitlines()
    assert [line for line in lines if " " not in line] == ["began", "ended", "returned"]


def test_what_never_began_does_not_end_well(start: Callable[..., Process]) -> None:
    process = start(str(free_port()), "fail")
    assert process._child.wait(10) == serving.EXIT_NOT_STARTED
    assert "a store is away" in process.log_tail()
    assert "returned" not in process.log_tail()


def test_a_port_that_is_taken(start: Callable[..., Process]) -> None:
    port = free_port()
    first = start(str(port)).wait_until(http_answers(f"http://127.0.0.1:{port}/"), seconds=10)
    second = start(str(port))
    assert second._child.wait(10) != 0
    assert first.stop()


def test_services_say_what_is_wrong_with_their_settings() -> None:
    for service, variable in (("admin", "RELAY_ADMIN_TOKEN"), ("accounting", "RELAY_BATCH_SECONDS")):
        environment = {"PYTHONPATH": str(ROOT), "PATH": "", "RELAY_BATCH_SECONDS": "soon", "RELAY_ADMIN_TOKEN": "short"}
        command = [sys.executable, "-m", f"services.{service}"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=20, check=False)
        assert (done.returncode, done.stdout) == (2, "")
        assert variable in done.stderr
        assert len(done.stderr.splitlines()) == 1
