"""Other processes, as ``/proc`` has them: children, ends, and stops."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tests.conftest import wait_for


def children(pid: int) -> set[int]:
    try:
        return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
    except OSError:
        return set()


def is_there(pid: int) -> bool:
    """Whether a process runs; one that is dead, and waits for a parent that does not ask, does not."""
    return _state(Path(f"/proc/{pid}")) not in "ZX"


def stop(pid: int) -> None:
    """Send SIGSTOP, and wait until it has taken effect: a moment later, and in each thread another one."""
    os.kill(pid, signal.SIGSTOP)
    wait_for(
        lambda: all(_state(thread) in "TZX" for thread in Path(f"/proc/{pid}/task").iterdir()),
        f"the stop of all threads of {pid}",
    )


def _state(process: Path) -> str:
    """A letter, as in proc(5); of what is not there, that of the dead."""
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"
