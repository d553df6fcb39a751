"""The line of a queue: its ready messages, in the order in which they are served. Pure."""

from __future__ import annotations

import bisect
import collections
from collections.abc import Iterator

from .contents import Content


class Entry:
    """A message in one queue."""

    __slots__ = ("content", "expires_at", "position", "priority", "returns")

    def __init__(self, content: Content, position: int, priority: int, expires_at: float | None) -> None:
        self.content = content
        self.position = position
        self.priority = priority
        self.expires_at = expires_at
        #: How often it came back.
        self.returns = 0

    @property
    def redelivered(self) -> bool:
        """Whether somebody had it before."""
        return self.returns > 0


class _Lane:
    """The entries of one priority: those that came back, by their position, before those that never left.

    Entries leave in the order in which they came, so whatever comes back came before all that never left.
    """

    __slots__ = ("fresh", "returned")

    def __init__(self) -> None:
        self.fresh: collections.deque[Entry] = collections.deque()
        self.returned: list[Entry] = []  # the last one is the first in the line

    def __iter__(self) -> Iterator[Entry]:
        yield from reversed(self.returned)
        yield from self.fresh

    @property
    def head(self) -> Entry | None:
        if self.returned:
            return self.returned[-1]
        return self.fresh[0] if self.fresh else None


class Counted:
    """How many entries there are, and how large they are."""

    def __init__(self) -> None:
        self.count = 0
        self.bytes = 0  #: of the bodies, as RabbitMQ counts
        self.weight = 0  #: of all that is in memory

    def _count(self, entry: Entry, by: int) -> None:
        self.count += by
        self.bytes += by * entry.content.size
        self.weight += by * entry.content.weight


class Line(Counted):
    """The ready entries of a queue, in the order in which they are served."""

    def __init__(self) -> None:
        super().__init__()
        self._lanes: dict[int, _Lane] = {}
        self._order: list[_Lane] = []

    def __iter__(self) -> Iterator[Entry]:
        for lane in self._order:
            yield from lane

    def _of(self, priority: int) -> _Lane:
        if priority not in self._lanes:
            self._lanes[priority] = _Lane()
            self._order = [self._lanes[one] for one in sorted(self._lanes, reverse=True)]
        return self._lanes[priority]

    def append(self, entry: Entry) -> None:
        """At the end of its priority's."""
        self._of(entry.priority).fresh.append(entry)
        self._count(entry, 1)

    def put_back(self, entry: Entry) -> None:
        """To where it stood."""
        bisect.insort(self._of(entry.priority).returned, entry, key=lambda one: -one.position)
        self._count(entry, 1)

    def heads(self) -> list[Entry]:
        """The first entry of each priority."""
        return [head for lane in self._order if (head := lane.head) is not None]

    def take(self, entry: Entry) -> None:
        """Take a head away."""
        lane = self._lanes[entry.priority]
        if lane.returned:
            lane.returned.pop()
        else:
            lane.fresh.popleft()
        self._count(entry, -1)

    def pop(self) -> Entry:
        """Take the very first one away."""
        entry = self.heads()[0]
        self.take(entry)
        return entry
