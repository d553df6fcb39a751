"""The gate before the broker: while it is away, one attempt probes for everybody."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from .backoff import Backoff
from .errors import BrokerUnavailable

logger = logging.getLogger("flask_pika.connection")

T = TypeVar("T")

#: Seconds after which a probe that nobody heard of again is taken for interrupted.
_LONGEST_PROBE = 30.0


class Gate:
    """Who may try to connect, and when. One per pool.

    Up (nothing failed since the last success), everyone passes. Down, one caller at a time passes, after a
    back-off, and the rest wait for what it finds out:

    1. it succeeds: the gate is up, everyone passes;
    2. it fails: whoever had asked before it began fails with it, at once. Who asked later waits for the next
       attempt, so that nobody is refused on evidence older than the question, and the first checkout after
       the broker's return works;
    3. it is interrupted, or cut off by its own caller's deadline: that says nothing about the broker, and the
       next caller tries.

    So a hundred threads on a broker that swallows packets wait for one or two connect times, not a hundred,
    and a broker that comes back meets one connection per process first.
    """

    def __init__(
        self,
        backoff: Backoff | None = None,
        clock: Callable[[], float] = time.monotonic,
        label: str = "RabbitMQ",
    ) -> None:
        self._label = label
        self._backoff = backoff or Backoff()
        self._clock = clock
        # All below is shared, and touched only under this condition's lock.
        self._changed = threading.Condition()  # reentrant: a finalizer may come here from in here
        self._error: BrokerUnavailable | None = None  # None: up
        self._failures = 0
        self._down_since = 0.0
        self._failed_began = 0.0  # when the newest attempt that failed began
        self._retry_at = 0.0
        # Not a bool: a signal handler's exception may end a probe before it can say so.
        self._probing_until = 0.0

    def run(self, connect: Callable[[], T], *, asked_at: float, deadline: float) -> T:
        """Call ``connect`` when it is this caller's turn. Both times are the clock's.

        :raises BrokerUnavailable: ``connect`` failed, or another attempt did that began after ``asked_at``,
            or the back-off ends after the deadline.
        """
        began, probes = self._enter(asked_at, deadline)
        try:
            result = connect()
        except BrokerUnavailable as exc:
            if self._clock() < deadline:
                self._leave_failed(exc, began, probes)
            else:
                self._leave_undecided(probes)
            raise
        except BaseException:
            self._leave_undecided(probes)
            raise
        self._leave_connected()
        return result

    def _enter(self, asked_at: float, deadline: float) -> tuple[float, bool]:
        with self._changed:
            while self._error is not None:
                now = self._clock()
                if self._failed_began >= asked_at or now >= deadline:
                    raise self._again(self._error) from self._error
                if now < self._probing_until:
                    self._wait(min(deadline, self._probing_until) - now)
                elif now >= self._retry_at:
                    self._probing_until = min(deadline, now + _LONGEST_PROBE)
                    return now, True
                elif self._retry_at >= deadline:
                    raise self._again(self._error) from self._error
                else:
                    self._wait(self._retry_at - now)
            return self._clock(), False

    def _wait(self, seconds: float) -> None:
        self._changed.wait(min(seconds, threading.TIMEOUT_MAX))

    def _leave_undecided(self, probed: bool) -> None:
        if probed:
            with self._changed:
                self._probing_until = 0.0
                self._changed.notify_all()

    def _leave_failed(self, error: BrokerUnavailable, began: float, probed: bool) -> None:
        with self._changed:
            now = self._clock()
            news = self._error is None
            if news:
                self._down_since, self._failures = now, 0
            self._error = self._again(error)  # without the traceback, and what its frames hold
            self._failed_began = max(self._failed_began, began)
            if news or probed:  # attempts that ran side by side are one failure, not eight
                self._failures += 1
                self._retry_at = now + self._backoff.delay(self._failures)
            if probed:
                self._probing_until = 0.0
            self._changed.notify_all()
        if news:
            logger.warning("%s is unavailable, trying on with back-off: %s", self._label, error)

    def _leave_connected(self) -> None:
        with self._changed:
            was_down = self._error is not None
            away = self._clock() - self._down_since
            self._error = None
            self._probing_until = 0.0
            self._changed.notify_all()
        if was_down:
            logger.warning("%s is back after %.1f s", self._label, away)

    @staticmethod
    def _again(error: BrokerUnavailable) -> BrokerUnavailable:
        # Not the same object: two threads that raise it would write into one traceback.
        return type(error)(*error.args)
