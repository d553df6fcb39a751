"""The runner: workers in one process, from their start until a signal has them drained."""

from __future__ import annotations

import contextlib
import enum
import logging
import os
import queue
import signal
import time
from collections.abc import Callable, Sequence
from types import FrameType

from .health import Health
from .worker import Worker

logger = logging.getLogger("flask_pika.worker")


class ExitCode(enum.IntEnum):
    """What ``flask pika worker`` ends with."""

    DRAINED = 0  #: told to end, and all handlers were done
    CONFIGURATION = 2  #: of the app or of the command is wrong
    DRAIN_TIMEOUT = 3  #: told to end, and handlers were not done in time
    NOTHING_TO_CONSUME = 4  #: no consumer is registered, or none for a queue that was named
    REFUSED = 5  #: the broker refused the credentials or the virtual host at the start
    AT_ONCE = 130  #: a second Ctrl-C


#: The signals that end it.
ENDING = (signal.SIGTERM, signal.SIGINT)

#: Seconds between two looks whether a signal has come.
_LOOK = 1.0


class Runner:
    """Runs workers in this process until :meth:`end` is called, or a signal comes."""

    def __init__(self, workers: Sequence[Worker], drain_timeout: float) -> None:
        self._workers = workers
        self._drain_timeout = drain_timeout
        # Why it is to end; nothing, when a broker refused a worker. Its put() may be called by a signal
        # handler, whatever this process is in the middle of.
        self._told: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._interrupts = 0

    def catch_signals(self, interrupts: bool = True) -> None:
        """SIGTERM and SIGINT end it; a second SIGINT, at once. In the main thread.

        :param interrupts: whether SIGINT is for this process, and not for its parent.
        """
        signal.signal(signal.SIGTERM, lambda *_: self.end("SIGTERM"))
        if interrupts:
            signal.signal(signal.SIGINT, self._interrupted)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)  # a parent had them wait

    def _interrupted(self, _number: int, _frame: FrameType | None) -> None:
        self._interrupts += 1
        if self._interrupts > 1:
            os.write(2, b"Left at once: what was not settled comes again.\n")
            os._exit(ExitCode.AT_ONCE)
        self.end("SIGINT")

    def end(self, why: str) -> None:
        """Drain, soon. May be called by a signal handler."""
        self._told.put(why)

    def run(self) -> ExitCode:
        """Start the workers, and wait for their end."""
        for worker in self._workers:
            worker.on_refused = lambda: self._told.put("")
            worker.start()
        why = self._wait()
        refused = next((worker.refused for worker in self._workers if worker.refused is not None), None)
        if refused is not None and not why:
            logger.error("%s", refused)
            self._drain()  # the workers of other brokers
            return ExitCode.REFUSED
        running = sum(worker.running for worker in self._workers)
        logger.info("%s: draining; %d handlers run", why, running)
        return self._drain()

    def _wait(self) -> str:
        """Why it ends: what :meth:`end` was told; nothing, when a broker refused a worker."""
        while True:
            # A signal that comes while the process is stopped may be given to another thread, which wakes
            # nobody: Python calls its handler in this one, when that does something.
            with contextlib.suppress(queue.Empty):
                return self._told.get(timeout=_LOOK)

    def _drain(self) -> ExitCode:
        deadline = time.monotonic() + self._drain_timeout
        for worker in self._workers:  # all of them, before the first is waited for
            worker.drain()
        done = [worker.stop(max(0.0, deadline - time.monotonic())) for worker in self._workers]
        return ExitCode.DRAINED if all(done) else ExitCode.DRAIN_TIMEOUT


def health_of(workers: Sequence[Worker]) -> Callable[[], Health]:
    """What these workers say of their health."""

    def health() -> Health:
        return Health(
            live=all(worker.is_live for worker in workers),
            ready=all(worker.is_ready for worker in workers),
            consumers=[
                {"queue": one.queue, "state": one.state, "error": one.error}
                for worker in workers
                for one in worker.stats()
            ],
        )

    return health
