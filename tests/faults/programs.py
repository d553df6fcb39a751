"""The programs under load: web servers and workers, each with a log file that the lab can read."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from tests.other_processes import children
from tools.demo import _answers
from tools.rabbitmq_node import free_port

ROOT = Path(__file__).parent.parent.parent
_APP = "tests.faults.app:create_app()"
_USED = "tests.faults.app:create_used_app()"
_GUNICORN = (sys.executable, "-m", "gunicorn", "--bind=127.0.0.1:{port}", "--graceful-timeout=30")
_GTHREAD = (*_GUNICORN, "--worker-class=gthread", "--workers=2", "--threads=4")
_GEVENT = (*_GUNICORN, "--worker-class=gevent", "--workers=2")
_UWSGI = (
    str(Path(sys.executable).parent / "uwsgi"),
    f"--virtualenv={sys.prefix}",
    "--http-socket=127.0.0.1:{port}",
    "--master",
    "--need-app",
    "--enable-threads",
    "--processes=2",
    "--threads=4",
    "--die-on-term",
)
#: How each server is told to run the app; further options go before the last part.
SERVERS: Mapping[str, tuple[str, ...]] = {
    "gunicorn gthread": (*_GTHREAD, _APP),
    "gunicorn gthread, preload": (*_GTHREAD, "--preload", _USED),
    "gunicorn gevent": (*_GEVENT, _APP),
    "gunicorn gevent, preload": (*_GEVENT, "--preload", _USED),
    "waitress": (
        sys.executable,
        "-m",
        "waitress",
        "--listen=127.0.0.1:{port}",
        "--threads=8",
        "--call",
        "tests.faults.app:create_app",
    ),
    # The one loads the app before it forks, the other in each process.
    "uWSGI": (*_UWSGI, f"--module={_USED}"),
    "uWSGI, lazy apps": (*_UWSGI, "--lazy-apps", f"--module={_APP}"),
}
P = TypeVar("P", bound="Program")


def members(session: int) -> set[int]:
    """The processes of a session, but for those that are dead already."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                # After the name: state, parent, group, session.
                state, _, _, its = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
                if int(its) == session and state != "Z":
                    found.add(int(entry.name))
    return found


class Program:
    """A process in a session of its own, which is ended with all its children, in a ``with`` block."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], log: Path) -> None:
        self._command, self._env, self.log = command, env, log
        self._process: subprocess.Popen[bytes] | None = None
        #: The processes that were still there after its end in order, when the ``with`` block is over.
        self.left_over: set[int] = set()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def children(self) -> set[int]:
        return children(self.pid)

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self: P) -> P:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=ROOT,
                env={**os.environ, **self._env, "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def stop(self, timeout: float = 60.0) -> int:
        """End it as an operator does; its exit code."""
        assert self._process is not None
        if self.is_running:
            self.signal(signal.SIGTERM)
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self._command} does not end:\n{self.said[-4000:]}") from None

    def __enter__(self: P) -> P:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        if self._process is None:
            return
        session = self._process.pid
        if self.is_running:
            # In order first: what it says then is part of what the lab reads.
            self.signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(60)
        self.left_over = members(session)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(session, signal.SIGKILL)
        self._process.wait()


class WebServer(Program):
    """A server of :data:`SERVERS`; up when the ``with`` block begins."""

    def __init__(self, kind: str, env: Mapping[str, str], log: Path, options: Sequence[str] = ()) -> None:
        self.port = free_port()
        *command, app = (part.format(port=self.port) for part in SERVERS[kind])
        super().__init__([*command, *options, app], env, log)

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> WebServer:
        super().start()
        deadline = time.monotonic() + 60
        while not _answers(self.base):
            assert self.is_running, f"it did not start:\n{self.said}"
            assert time.monotonic() < deadline, f"it does not answer:\n{self.said}"
            time.sleep(0.02)
        return self


class WorkerProgram(Program):
    """``flask pika worker``."""

    def __init__(self, env: Mapping[str, str], log: Path, options: Sequence[str] = ()) -> None:
        worker = ("-m", "flask", "--app", "tests.faults.app", "pika", "worker")
        super().__init__([sys.executable, *worker, *options], env, log)
