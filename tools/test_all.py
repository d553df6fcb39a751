"""Run the tests on every Python 3.10 or newer that this machine has, two of them at a time.

Needs nothing but the standard library. Which Pythons: those that answer to ``python3.10``, ``python3.11`` and
so on, and those that pyenv has. ``PYTHONS="python3.12 python3.13"`` in the environment names them instead.

On the newest one, tests of everyday use run on RabbitMQ, the embedded broker's contract on both, and tests of
pages in a browser. On the others, the first two are on the embedded broker, and the last are left out. Tests
of processes and forks are on RabbitMQ everywhere, and those of outages, which mostly wait for RabbitMQ to
start, and of a worker's processes, on the oldest and the newest; the longest of them on the newest alone.
"""

from __future__ import annotations

import concurrent.futures
import os
import subprocess
import sys
import time
from pathlib import Path

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


_AT_THE_ENDS = (
    "tests/test_outage.py",
    "tests/test_publisher_outage.py",
    "tests/test_worker_outage.py",
    "tests/test_worker_processes.py",
)
_LONGEST = (
    "tests/test_worker_processes.py"
    "::test_through_two_processes_each_of_100000_messages_is_handled_once_or_dead_once"
)


def arguments_for(version: str, versions: list[str]) -> list[str]:
    """What pytest is told, after which comes what this program was told."""
    arguments: list[str] = []
    if version != versions[-1]:
        arguments += ["--everyday=embedded", "-m", "not browser", f"--deselect={_LONGEST}"]
    if version not in (versions[0], versions[-1]):
        arguments += [f"--ignore={path}" for path in _AT_THE_ENDS]
    return [*arguments, *sys.argv[1:]]


def run_tests(version: str, python: str, arguments: list[str]) -> tuple[int, str]:
    """Make the environment for one Python and run pytest in it; exit code and output."""
    venv = f".venvs/{version}"
    output = ""
    for command in (
        ["scripts/make-venv", python, venv, "test"],
        [f"{venv}/bin/python", "-m", "pytest", "-p", "no:cacheprovider", *arguments],
    ):
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        output += done.stdout
        if done.returncode:
            return done.returncode, output
    return 0, output


def main() -> int:
    os.chdir(Path(__file__).parent.parent)
    pythons = find_pythons()
    if not pythons:
        sys.exit(f"no Python 3.{_OLDEST} or newer was found")
    print(f"Testing on Python {', '.join(pythons)}, {_AT_A_TIME} at a time", flush=True)
    ends = {next(iter(pythons)), list(pythons)[-1]}
    failed = []
    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(_AT_A_TIME) as pool:
        runs = {
            pool.submit(run_tests, version, python, arguments_for(version, list(pythons))): version
            # The newest and the oldest first, which take longest.
            for version, python in sorted(pythons.items(), key=lambda one: one[0] not in ends)
        }
        for run in concurrent.futures.as_completed(runs):
            code, output = run.result()
            print(f"\n== Python {runs[run]} ({pythons[runs[run]]}), after {time.monotonic() - began:.0f} s")
            print(output, flush=True)
            if code:
                failed.append(runs[run])
    verdict = f"Failed on Python {', '.join(failed)}" if failed else "All tests passed"
    print(f"{verdict}; {len(pythons)} Pythons in {time.monotonic() - began:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
