"""The dead letters that a quorum queue keeps until the queues that they go to have them. Pure.

As RabbitMQ 3.10's ``rabbit_fifo_dlx`` has it: they do not count as ready, are not purged and do not expire,
but take room in the queue.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator

from .clock import Timer
from .contents import Content
from .line import Counted, Entry

#: How many are under way at once; those behind them wait, wherever they go. RabbitMQ's own number.
_AT_ONCE = 32


class Letter:
    """One of them."""

    __slots__ = ("buried", "entry", "keys", "reason", "sent_at", "settled")

    def __init__(self, entry: Entry, reason: str) -> None:
        self.entry = entry
        self.reason = reason
        self.buried: Content = entry.content  #: as it goes to the dead-letter exchange, once it is under way
        self.keys: list[str] = []
        self.settled: set[str] = set()  #: the names of the queues that have it
        self.sent_at: float | None = None  #: None while there was no queue for it


class Letters(Counted):
    """All of one queue."""

    def __init__(self) -> None:
        super().__init__()
        self._waiting: collections.deque[Letter] = collections.deque()
        self._under_way: dict[Letter, None] = {}
        self.timer: Timer | None = None  #: when those under way are tried again

    def __iter__(self) -> Iterator[Letter]:
        yield from self._under_way
        yield from self._waiting

    def add(self, entry: Entry, reason: str) -> None:
        """The queue gave it up."""
        self._waiting.append(Letter(entry, reason))
        self._count(entry, 1)

    def next(self) -> Letter | None:
        """The next one that goes; None when there is none, or too many are under way."""
        if not self._waiting or len(self._under_way) >= _AT_ONCE:
            return None
        letter = self._waiting.popleft()
        self._under_way[letter] = None
        return letter

    def under_way(self) -> list[Letter]:
        """Those that went and did not come everywhere."""
        return list(self._under_way)

    def settle(self, letter: Letter) -> None:
        """It is everywhere."""
        if letter in self._under_way:  # and not dropped in the meantime
            del self._under_way[letter]
            self._count(letter.entry, -1)

    def drop(self) -> None:
        """The queue is gone, and they with it."""
        self._waiting.clear()
        self._under_way.clear()
        self.count = self.bytes = self.weight = 0
        self.stop_timer()

    def stop_timer(self) -> None:
        """Nothing is to be tried again."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
