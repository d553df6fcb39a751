"""The documents: what in them can be run, and a look whether all of it was."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import flask_pika

ROOT = Path(__file__).parent.parent
#: All of them; those of docs/ that are made by a run of something are no one's to run.
DOCUMENTS = [
    *("README.md", "CONTRIBUTING.md", "examples/orders/README.md"),
    *(
        f"docs/{path.name}"
        for path in sorted((ROOT / "docs").glob("*.md"))
        if path.stem not in ("benchmarks", "reliability")
    ),
]


class Block(NamedTuple):
    """A fenced block."""

    language: str
    text: str


def blocks_of(document: str) -> list[Block]:
    """Its fenced blocks, but for those that are Sphinx's."""
    found = re.findall(r"^```([^\n]*)\n(.*?)^```$", (ROOT / document).read_text(), re.M | re.S)
    return [Block(language, text) for language, text in found if not language.startswith("{")]


def python_of(document: str) -> list[str]:
    return [text for language, text in blocks_of(document) if language == "python"]


def commands_of(document: str) -> list[str]:
    """The commands that a block shows at a prompt."""
    texts = [text for language, text in blocks_of(document) if not language]
    return [line[2:] for text in texts for line in text.splitlines() if line.startswith("$ ")]


class Page:
    """What of one document a test has still to run."""

    def __init__(self, document: str, what: str) -> None:
        self.document = document
        self.left = python_of(document) if what == "python" else commands_of(document)

    def take(self, count: int = 1) -> list[str]:
        """The next ones, in their order."""
        assert len(self.left) >= count, f"{self.document} has less than a test wants to run"
        taken, self.left = self.left[:count], self.left[count:]
        return taken

    def rest(self) -> list[str]:
        """All that are left."""
        return self.take(len(self.left))

    def next(self, beginning: str = "") -> str:
        """The next one, which begins like this."""
        (one,) = self.take()
        assert one.startswith(beginning), f"{self.document}: {one!r} came, not {beginning!r}"
        return one

    def answer_to(self, command: str) -> str:
        """What the document shows after a command."""
        text = (ROOT / self.document).read_text()
        return re.split(r"^(?:\$ |```)", text.split(f"$ {command}\n", 1)[1], maxsplit=1, flags=re.M)[0]


#: Documents, and what of them a test runs: filled by :func:`runs`.
RUN: set[tuple[str, str]] = set()


def runs(document: str, what: str = "python") -> tuple[str, list[Any]]:
    """For ``pytest.mark.parametrize``: the test's ``page`` is this document, and it runs all of it."""
    RUN.add((document, what))
    return "page", [pytest.param((document, what), id=document)]


@pytest.fixture
def page(request: pytest.FixtureRequest) -> Iterator[Page]:
    """A document, all of whose blocks, or commands, the test runs."""
    one = Page(*request.param)
    yield one
    assert not one.left, f"{one.document}: this was not run: {one.left}"


class Terminal:
    """Where commands are run as they stand: in a directory, with this Python's programs first.

    :param replaced: what of a command cannot be as it stands, such as a port that may be taken.
    """

    def __init__(self, directory: Path, replaced: dict[str, str] | None = None, **env: str) -> None:
        self.directory = directory
        self._replaced = replaced or {}
        path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
        clean = {name: value for name, value in os.environ.items() if not name.startswith("FLASK_")}
        # With the package that is tested: what is in the checkout, or the wheel.
        package = Path(flask_pika.__file__).parent.parent
        self.env = {**clean, "PATH": path, "PYTHONPATH": str(package), "PYTHONUNBUFFERED": "1", **env}

    def _as_run(self, command: str) -> str:
        for given, instead in self._replaced.items():
            command = command.replace(given, instead)
        return command

    def run(self, command: str, *, stdin: str = "", code: int = 0) -> str:
        """Run it to its end; what it said on both of its outputs."""
        done = subprocess.run(
            ["bash", "-c", self._as_run(command)],
            cwd=self.directory,
            env=self.env,
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == code, f"{command!r} ended with {done.returncode}:\n{done.stdout}"
        return done.stdout

    @contextlib.contextmanager
    def running(self, command: str) -> Iterator[Callable[[], str]]:
        """Run it in the background, and stop it with SIGTERM; gives what tells what it has said."""
        log = self.directory / f"log-{len(list(self.directory.iterdir()))}"
        with log.open("wb") as output:
            process = subprocess.Popen(
                ["bash", "-c", f"exec env {self._as_run(command)}"],  # env: NAME=value may come first
                cwd=self.directory,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            yield log.read_text
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)  # longer than gunicorn gives its workers
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                raise
