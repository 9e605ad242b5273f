"""Children: waited for, heard, ended in time, and gone when their parent is."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from libs.localstack.process import Process, ProcessFailed, free_port, http_answers, port_answers
from tests.unit.common.test_serving import ROOT

SLEEPER = "import time; print('awake', flush=True); time.sleep(60)"
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('awake', flush=True); time.sleep(60)"
)


def started(tmp_path: Path, program: str) -> Process:
    process = Process.start("child", [sys.executable, "-c", program], log=tmp_path / "logs" / "log")
    return process.wait_until(lambda: "awake" in process.log_tail(), seconds=10)


def test_a_child_is_ended(tmp_path: Path) -> None:
    process = started(tmp_path, SLEEPER)
    assert process.is_running()
    assert os.getpgid(process.pid) == process.pid  # a Ctrl-C at the terminal does not reach it
    assert process.stop()
    assert not process.is_running()
    assert process.stop()


def test_a_stubborn_child_is_killed(tmp_path: Path) -> None:
    process = started(tmp_path, STUBBORN)
    assert not process.stop(seconds=0.2)
    assert not process.is_running()


def test_a_child_that_dies_tells_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(ProcessFailed, match=r"child ended with code 7:\n.*no luck") as caught:
        Process.start("child", [sys.executable, "-c", "print('no luck'); exit(7)"], log=tmp_path / "log").wait_until(
            lambda: False, seconds=10
        )
    assert "child" in str(caught.value)


def test_a_child_that_takes_too_long(tmp_path: Path) -> None:
    process = started(tmp_path, SLEEPER)
    with pytest.raises(ProcessFailed, match="not ready within 0 s"):
        process.wait_until(lambda: False, seconds=0.1)
    process.stop()


def test_a_child_dies_with_its_parent(tmp_path: Path) -> None:
    """Even if the parent is killed without a word."""
    program = tmp_path / "parent.py"
    program.write_text(
        textwrap.dedent(f"""
            import sys, time
            from pathlib import Path
            from libs.localstack.process import Process
            child = Process.start("child", [sys.executable, "-c", {SLEEPER!r}], log=Path({str(tmp_path / "log")!r}))
            print(child.pid, flush=True)
            time.sleep(60)
        """)
    )
    environment = {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, program], stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.send_signal(signal.SIGKILL)
    wait(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def test_ports_and_addresses() -> None:
    port = free_port()
    assert not port_answers(port)()
    assert not http_answers(f"http://127.0.0.1:{port}/")()


def wait(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
