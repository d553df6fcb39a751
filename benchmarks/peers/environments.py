"""The peers' environments: one for those that get on with each other, and one for each of the others."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

from benchmarks.peers.workloads import HERE, Candidate

ROOT = Path(__file__).parent.parent.parent
#: Seconds that pip may take.
_PATIENCE = 600.0


class Missing(Exception):
    """A candidate cannot be run; the text says why."""


class Environments:
    """Interpreters by the environment's name; each is made when it is first asked for.

    :param alone: nothing is made: who can be run by this interpreter is, the others are left out.
    """

    def __init__(self, alone: bool) -> None:
        self._alone = alone
        self._known: dict[str, str | Missing] = {HERE: sys.executable}

    def python(self, candidate: Candidate) -> str:
        """Its interpreter, or :class:`Missing`."""
        if self._alone:
            if candidate.package and importlib.util.find_spec(candidate.package) is None:
                raise Missing("is not installed here")
            return sys.executable
        name = candidate.environment
        if name not in self._known:
            self._known[name] = _make(name)
        found = self._known[name]
        if isinstance(found, Missing):
            raise found
        return found


def _make(name: str) -> str | Missing:
    venv = ROOT / ".venvs" / f"peers-{name}"
    done = subprocess.run(
        [ROOT / "scripts" / "make-venv", sys.executable, venv, f"peers/{name}"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=_PATIENCE,
    )
    if not done.returncode:
        return str(venv / "bin" / "python")
    said = done.stdout + done.stderr
    # pip tells what went wrong in the midst of a traceback, and what it makes of it at the end.
    errors = re.findall(r"^\s*(?:\w+Error|ERROR|error): .*$", said, re.M) or said.splitlines()[-1:] or [""]
    told = next((line for line in errors if "Error: " in line), errors[0])
    return Missing(f"does not install: {clean(told)}")


def environ(candidate: Candidate) -> dict[str, str]:
    """What a candidate's process finds. Of the names that are imported, only one Flask-Pika has its place."""
    path = [str(ROOT)]
    if candidate.environment == HERE:
        path.insert(0, str(ROOT / "src"))
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), "PYTHONDONTWRITEBYTECODE": "1"}


def clean(error: str) -> str:
    """An error without this machine's paths, and without names of others, in one line."""
    line = " ".join(error.split())
    line = re.sub(r"host='[^']*'", "host='...'", line)
    line = re.sub(r"https?://(?!127\.)\S+", "...", line)
    return re.sub(r"(?:/[\w.+@-]+)+/(?=[\w.+@-]*)", "", line)[:300]
