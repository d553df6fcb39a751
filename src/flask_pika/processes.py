"""Several worker processes, and the parent that starts, watches and restarts them."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import selectors
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import FrameType

from .backoff import Backoff
from .health import Health, HealthServer
from .runner import ENDING, ExitCode

logger = logging.getLogger("flask_pika.worker")

#: Exits that another process would only repeat.
_FINAL = (ExitCode.CONFIGURATION, ExitCode.NOTHING_TO_CONSUME, ExitCode.REFUSED)
#: Seconds after which a process has lived: its end is the first failure again.
_LIVED = 10.0
#: Seconds for a child to tell its health.
_ANSWER = 1.0
#: Seconds beyond the drain timeout after which a child that is to leave is killed.
_GRACE = 5.0
#: Seconds between two looks, at the most: selectors take no more than some.
_LOOK = 3600.0
#: The longest of the answers.
_LINE = 2**20


@dataclass
class _Child:
    pid: int
    line: socket.socket  #: asks for its health; its end tells the child that the parent is gone
    began: float


@dataclass
class _Seat:
    """A place for one process; who sits there changes."""

    child: _Child | None = None
    failures: int = 0
    restart_at: float = 0.0


@dataclass
class Supervisor:
    """Runs ``work`` in several forked processes, until a signal ends them.

    It has no threads, since a fork copies none: it waits for signals, ends of children and health requests in
    one place.

    :param processes: how many.
    :param work: in a child, given the parent's line: its exit code.
    :param drain_timeout: seconds that a child may take to leave.
    """

    processes: int
    work: Callable[[socket.socket], int]
    drain_timeout: float
    health_server: HealthServer | None = None
    backoff: Backoff = field(default_factory=lambda: Backoff(0.1, 30.0))
    _seats: list[_Seat] = field(default_factory=list)
    _draining: bool = False
    _kill_at: float = 0.0
    _interrupts: int = 0
    _code: int = ExitCode.DRAINED

    def run(self) -> int:
        """The exit code: the parent's, and in a child, the child's."""
        self._seats = [_Seat() for _ in range(self.processes)]
        woken, wake = socket.socketpair()
        for end in (woken, wake):
            end.setblocking(False)
        # Written to by Python when any signal comes, so that none is missed between a look and a wait.
        signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: self._drain())
        signal.signal(signal.SIGINT, self._interrupted)
        waiting = selectors.DefaultSelector()
        waiting.register(woken, selectors.EVENT_READ)
        if self.health_server is not None:
            self.health_server.health = self.health
            waiting.register(self.health_server, selectors.EVENT_READ)
        closing: list[selectors.BaseSelector | socket.socket] = [waiting, woken, wake]
        while True:
            for seat in self._seats:
                self._reap(seat)
                if not self._draining and seat.child is None and time.monotonic() >= seat.restart_at:
                    line = self._fork(seat)
                    if line is not None:
                        if self.health_server is not None:
                            self.health_server.server_close()
                        self._leave(closing)
                        return self.work(line)
            if self._draining and all(seat.child is None for seat in self._seats):
                self._leave(closing)
                return self._code
            for key, _ in waiting.select(self._patience()):
                if key.fileobj is woken:
                    while _read(woken):
                        pass
                elif self.health_server is not None:
                    # In this thread, and within a bound: a fork copies none of the others.
                    self.health_server.handle_request()

    @staticmethod
    def _leave(closing: Iterable[selectors.BaseSelector | socket.socket]) -> None:
        """Close what the parent waits with; in a child, its copies."""
        signal.set_wakeup_fd(-1)
        for one in closing:
            one.close()

    # Children

    def _fork(self, seat: _Seat) -> socket.socket | None:
        """Start a process; in it, its line to the parent, and signals blocked until it has handlers."""
        # A child that got a signal before it has handlers of its own would do as its parent does.
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
        if self._draining:  # told to just now, when there was nobody in this seat to be told
            signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
            return None
        try:
            mine, its = socket.socketpair()
            pid = os.fork()
        except OSError as exc:  # no more processes, or files
            signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
            logger.warning("no worker process can be started: %s; trying on", exc)
            seat.failures += 1
            seat.restart_at = time.monotonic() + self.backoff.delay(seat.failures)
            return None
        if pid == 0:
            mine.close()
            for other in self._seats:
                if other.child is not None:
                    other.child.line.close()
            # Ctrl-C at a terminal is for all: the parent says what it means.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            return its
        its.close()
        seat.child = _Child(pid, mine, time.monotonic())
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
        return None

    def _reap(self, seat: _Seat) -> None:
        child = seat.child
        if child is None:
            return
        if self._draining and time.monotonic() >= self._kill_at:
            os.kill(child.pid, signal.SIGKILL)
            os.waitpid(child.pid, 0)
            code: int = ExitCode.DRAIN_TIMEOUT
        else:
            pid, status = os.waitpid(child.pid, os.WNOHANG)
            if pid == 0:
                return
            code = os.waitstatus_to_exitcode(status)
        seat.child = None
        child.line.close()
        if self._draining:
            if code != ExitCode.DRAINED and self._code == ExitCode.DRAINED:
                self._code = code if code > 0 else ExitCode.DRAIN_TIMEOUT
            return
        if code in _FINAL and not self._any_has_lived():
            self._code = code
            self._drain()
            return
        seat.failures = 1 if time.monotonic() - child.began > _LIVED else seat.failures + 1
        delay = self.backoff.delay(seat.failures)
        seat.restart_at = time.monotonic() + delay
        logger.warning(
            "worker process %d ended: %s; another one starts in %.1f s", child.pid, _how(code), delay
        )

    def _any_has_lived(self) -> bool:
        """Whether there are children that work, so that what one has met is no fault of the configuration."""
        now = time.monotonic()
        return any(seat.child is not None and now - seat.child.began > _LIVED for seat in self._seats)

    def _drain(self) -> None:
        """Tell all to leave. Called by a signal handler, too."""
        if self._draining:
            return
        self._kill_at = time.monotonic() + self.drain_timeout + _GRACE
        self._draining = True
        self._tell(signal.SIGTERM)

    def _interrupted(self, _number: int, _frame: FrameType | None) -> None:
        self._interrupts += 1
        if self._interrupts > 1:
            self._tell(signal.SIGKILL)
            os._exit(ExitCode.AT_ONCE)
        self._drain()

    def _tell(self, number: signal.Signals) -> None:
        for seat in self._seats:
            if seat.child is not None:
                # It may have ended, and the signal have come while that was being noted.
                with contextlib.suppress(ProcessLookupError):
                    os.kill(seat.child.pid, number)

    def _patience(self) -> float | None:
        now = time.monotonic()
        if self._draining:
            return min(max(0.0, self._kill_at - now), _LOOK)
        waits = [seat.restart_at - now for seat in self._seats if seat.child is None]
        return min(max(0.0, min(waits)), _LOOK) if waits else None

    # Health

    def health(self) -> Health:
        """What all children say of theirs; one that does not answer in time is not live."""
        answers = [_ask(seat.child) for seat in self._seats]
        return Health(
            live=all(answer is None or answer.live for answer in answers),
            ready=not self._draining and all(answer is not None and answer.ready for answer in answers),
            consumers=[one for answer in answers if answer is not None for one in answer.consumers],
        )


def _how(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):  # one of the real-time signals
        return signal.Signals(-code).name
    return f"signal {-code}"


def _read(sock: socket.socket) -> bool:
    try:
        return bool(sock.recv(4096))
    except BlockingIOError:
        return False


def _ask(child: _Child | None) -> Health | None:
    """None: there is no child at the moment; another one will start."""
    if child is None:
        return None
    try:
        child.line.setblocking(False)
        while _read(child.line):  # an answer that came too late
            pass
        child.line.settimeout(_ANSWER)
        child.line.sendall(b"?")
        with child.line.makefile("rb") as answers:
            return Health(**json.loads(answers.readline(_LINE)))
    except (OSError, ValueError):
        return Health(live=False, ready=False)


def answer_parent(line: socket.socket, health: Callable[[], Health], gone: Callable[[], object]) -> None:
    """In a child: tell the parent the health whenever it asks, in a thread; ``gone`` is called at its end."""

    def listen() -> None:
        try:
            while line.recv(1):
                line.sendall(health().as_json() + b"\n")
        except OSError:
            pass
        gone()

    threading.Thread(target=listen, name="flask-pika-line", daemon=True).start()
