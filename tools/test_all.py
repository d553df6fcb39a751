"""Run the tests on every Python 3.10 or newer that this machine has, in parts, some of them at a time.

Needs nothing but the standard library. Which Pythons: those that answer to ``python3.10``, ``python3.11`` and
so on, and those that pyenv has. ``PYTHONS="python3.12 python3.13"`` in the environment names them instead.

On the newest one, tests of everyday use run on RabbitMQ, the embedded broker's contract on both, and tests of
pages in a browser. On the oldest, the first two are on the embedded broker, and the last are left out, with
the longest. Tests of processes and forks are on RabbitMQ everywhere. Those in between leave the contract out,
and the tests of outages and of a worker's processes, which mostly wait for RabbitMQ to start. The fault lab
runs in its short form, on the newest alone.

With ``--wheel PATH`` first, that wheel is tested, not the checkout: on each Python, in an environment of its
own, as those in between are. ``make test-wheel`` builds one, and tests it.
"""

from __future__ import annotations

import concurrent.futures
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

_OLDEST, _NEWEST = 10, 20
_AT_A_TIME = 2  # each is a process that mostly waits, and a RabbitMQ node or two


def _version_of(python: str) -> tuple[int, int] | None:
    try:
        done = subprocess.run(
            [python, "-c", "import sys; print(*sys.version_info[:2])"],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None  # a pyenv shim of a version that is not switched on, for one
    major, minor = done.stdout.split()
    return int(major), int(minor)


def find_pythons() -> dict[str, str]:
    """Version to interpreter, oldest first."""
    named = os.environ.get("PYTHONS", "").split()
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    candidates = named or [
        sys.executable,
        *(f"python3.{minor}" for minor in range(_OLDEST, _NEWEST)),
        *(str(path / "bin" / "python") for path in sorted(pyenv.glob("3.*"))),
    ]
    found: dict[tuple[int, int], str] = {}
    for python in candidates:
        version = _version_of(python)
        if version is not None and version >= (3, _OLDEST):
            found.setdefault(version, python)
        elif named:
            sys.exit(f"{python} is not a Python 3.{_OLDEST} or newer")
    return {f"{major}.{minor}": found[major, minor] for major, minor in sorted(found)}


_ROOT = Path(__file__).parent.parent
_CONTRACT = "tests/contract"
_FAULTS = "tests/faults"
#: Which commands a page names is the same on every Python.
_PAGES = "tests/test_document_commands.py"
_AT_THE_ENDS = (
    *(f"tests/{path.name}" for path in sorted((_ROOT / "tests").glob("test_*outage.py"))),
    "tests/test_worker_processes.py",
    "tests/test_retry_outage.py",
)
_THOUSANDS = "test_through_two_processes_each_of_100000_messages_is_handled_once_or_dead_once"
_LONGEST = (
    "tests/test_documents.py::test_the_benchmarks_run",
    f"tests/test_worker_processes.py::{_THOUSANDS}",
)


class Part(NamedTuple):
    """Some of the tests, on one Python."""

    version: str
    what: str
    arguments: list[str]


def parts_for(versions: Sequence[str], *, of_wheel: bool = False) -> list[Part]:
    """What to run, those that take longest first."""
    oldest, newest = versions[0], versions[-1]
    older = ["--everyday=embedded", "-m", "not browser", f"--ignore={_FAULTS}"]
    older += [f"--deselect={test}" for test in _LONGEST]
    middle = [*older, *(f"--ignore={path}" for path in (_CONTRACT, _PAGES, *_AT_THE_ENDS))]
    if of_wheel:
        return [Part(version, "the wheel", ["--installed", *middle]) for version in versions]
    parts = [
        Part(newest, "all but the contract", [f"--ignore={_CONTRACT}", f"--ignore={_FAULTS}"]),
        Part(newest, "the fault lab", [_FAULTS]),
        Part(newest, "the contract", [_CONTRACT]),
    ]
    if oldest != newest:
        parts.insert(2, Part(oldest, "all but the longest", older))
    parts += [Part(version, "all but contract and outages", middle) for version in versions[1:-1]]
    return parts


class Making(NamedTuple):
    """Of what the environment for one Python is made, and of whose making this is the lock."""

    python: str
    wheel: str | None
    lock: threading.Lock


def run_part(part: Part, making: Making, ports: queue.Queue[str], more: Sequence[str]) -> tuple[int, str]:
    """Make the environment for one Python, one at a time, and run pytest in it; exit code and output."""
    venv = f".venvs/{part.version}" + ("-wheel" if making.wheel else "")
    wheel = [making.wheel] if making.wheel else []
    with making.lock:
        code, output = _run("scripts/make-venv", making.python, venv, "test", *wheel)
    if code:
        return code, output
    pytest = (f"{venv}/bin/python", "-m", "pytest", "-p", "no:cacheprovider")
    own = ports.get()
    code, told = _run(*pytest, *part.arguments, *more, ports=own)
    ports.put(own)
    return code, output + told


def _run(*command: str, ports: str = "") -> tuple[int, str]:
    done = subprocess.run(
        command,
        env={**os.environ, **({"TEST_PORTS": ports} if ports else {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def main() -> int:
    wheel, more = None, sys.argv[1:]
    if more[:1] == ["--wheel"]:
        wheel, more = os.path.abspath(more[1]), more[2:]
    os.chdir(_ROOT)
    pythons = find_pythons()
    if not pythons:
        sys.exit(f"no Python 3.{_OLDEST} or newer was found")
    print(f"Testing on Python {', '.join(pythons)}, {_AT_A_TIME} parts at a time", flush=True)
    failed = set()
    began = time.monotonic()
    making = {version: Making(python, wheel, threading.Lock()) for version, python in pythons.items()}
    ports: queue.Queue[str] = queue.Queue()  # a range for each of those that run at a time
    for number in range(_AT_A_TIME):
        ports.put(f"{20000 + 5000 * number}-{25000 + 5000 * number}")
    with concurrent.futures.ThreadPoolExecutor(_AT_A_TIME) as pool:
        runs = {
            pool.submit(run_part, part, making[part.version], ports, more): part
            for part in parts_for(list(pythons), of_wheel=wheel is not None)
        }
        for run in concurrent.futures.as_completed(runs):
            code, output = run.result()
            part = runs[run]
            after = time.monotonic() - began
            print(f"\n== Python {part.version} ({pythons[part.version]}), {part.what}, after {after:.0f} s")
            print(output, flush=True)
            if code:
                failed.add(part.version)
    verdict = f"Failed on Python {', '.join(sorted(failed))}" if failed else "All tests passed"
    print(f"{verdict}; {len(pythons)} Pythons in {time.monotonic() - began:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
