"""Programs and processes of a benchmark: where they are, what CPU time and memory they took, which core they may use."""

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Final

import psutil

_LEAST_PRIORITY: Final = 19
_CORES: Final = frozenset(os.sched_getaffinity(0))


class BenchFailed(Exception):
    """An answer was not 200, or the ledger does not hold what was served. No figure of such a run may be used."""


def program(name: str) -> str:
    """A program that a package has put beside this interpreter, or one on PATH."""
    beside = Path(sysconfig.get_path("scripts")) / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise BenchFailed(f"{name} is not installed; run `make setup`")
    return found


def first_line(path: str, argument: str) -> str:
    """The first line of what a program says of itself."""
    done = subprocess.run([path, argument], capture_output=True, text=True, check=True, timeout=20)
    return (done.stdout + done.stderr).splitlines()[0]


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and its children so far."""
    process = psutil.Process(pid)
    times = [member.cpu_times() for member in family(pid)]
    ended = process.cpu_times()
    return float(sum(time.user + time.system for time in times) + ended.children_user + ended.children_system)


def resident_bytes(pid: int) -> int:
    """Memory of a process and its children that is not swapped out."""
    return sum(int(member.memory_info().rss) for member in family(pid))


def family(pid: int) -> list[psutil.Process]:
    """A process and its children."""
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def measured_core() -> set[int]:
    """The core of whatever is measured."""
    return {max(_CORES)}


def other_cores() -> set[int]:
    """Those of load, upstream and stores; the same one where there is only one."""
    return set(_CORES) - measured_core() or measured_core()


def pin(pid: int) -> None:
    """Bind all threads of a process and its children to the measured core; what they start from now on inherits it."""
    for member in family(pid):
        for thread in member.threads():
            os.sched_setaffinity(thread.id, measured_core())


def yield_to_others(pid: int) -> None:
    """Let a process have the CPU only when nobody else wants it."""
    for member in family(pid):
        member.nice(_LEAST_PRIORITY)
