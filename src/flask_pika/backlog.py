"""The backlog: deliveries that wait for a handler thread, and threads that wait for deliveries."""

from __future__ import annotations

import collections
import queue
import threading
from collections.abc import Callable, Hashable, Iterable
from typing import Generic, TypeVar

U = TypeVar("U")


class Backlog(Generic[U]):
    """Units of work in lines, one for each consumer; whose turn it is goes round, so that none waits for all
    that another one has.

    What may wait is bounded by the consumers' prefetch, not here.
    """

    def __init__(self) -> None:
        # A ticket for each unit, and one for each thread at the end: True to look, False to leave.
        self._tickets: queue.SimpleQueue[bool] = queue.SimpleQueue()

        # All below is shared, and touched only under the lock.
        self._lock = threading.Lock()
        self._lines: dict[Hashable, collections.deque[U]] = {}
        self._turns: collections.deque[collections.deque[U]] = collections.deque()  # lines that are not empty
        self._running = 0

    def put(self, consumer: Hashable, units: list[U]) -> None:
        """Add units to a consumer's line."""
        with self._lock:
            line = self._lines.setdefault(consumer, collections.deque())
            if units and not line:
                self._turns.append(line)
            line.extend(units)
        for _ in units:
            self._tickets.put(True)

    def take(self) -> U | None:
        """Wait for the next unit, which runs until :meth:`done`; None: there will be no more."""
        while self._tickets.get():
            with self._lock:
                if self._turns:
                    line = self._turns.popleft()
                    unit = line.popleft()
                    if line:
                        self._turns.append(line)
                    self._running += 1
                    return unit
        return None

    def done(self) -> None:
        """A unit that was taken runs no more."""
        with self._lock:
            self._running -= 1

    @property
    def running(self) -> int:
        """How many units were taken and are not done."""
        return self._running

    def withdraw(self, which: Callable[[U], object] = lambda _unit: True) -> list[U]:
        """Take out units that nobody has begun. Their tickets lead to nothing."""
        with self._lock:
            out: list[U] = []
            for line in self._lines.values():
                out += filter(which, line)
                kept = [unit for unit in line if not which(unit)]
                line.clear()
                line.extend(kept)
            self._turns = collections.deque(line for line in self._turns if line)
            return out

    def end(self, threads: Iterable[object]) -> None:
        """Let each of these threads leave, when it has come to the end of what waits."""
        for _ in threads:
            self._tickets.put(False)
