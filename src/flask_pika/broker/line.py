"""The line of a queue: its ready messages, in the order in which they are served. Pure."""

from __future__ import annotations

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


class Line:
    """The ready entries of a queue, in the order in which they are served."""

    def __init__(self) -> None:
        self._by_priority: dict[int, collections.deque[Entry]] = {}
        self._order: list[int] = []
        self.count = 0
        self.bytes = 0

    def __iter__(self) -> Iterator[Entry]:
        for priority in self._order:
            yield from self._by_priority[priority]

    def _of(self, priority: int) -> collections.deque[Entry]:
        if priority not in self._by_priority:
            self._by_priority[priority] = collections.deque()
            self._order = sorted(self._by_priority, reverse=True)
        return self._by_priority[priority]

    def append(self, entry: Entry) -> None:
        """At the end of its priority's."""
        self._of(entry.priority).append(entry)
        self._count(entry, 1)

    def put_back(self, entry: Entry) -> None:
        """To where it stood: before all that came later. Few came earlier, and came back before it."""
        line = self._of(entry.priority)
        earlier = []
        while line and line[0].position < entry.position:
            earlier.append(line.popleft())
        line.appendleft(entry)
        line.extendleft(reversed(earlier))
        self._count(entry, 1)

    def heads(self) -> list[Entry]:
        """The first entry of each priority."""
        return [line[0] for priority in self._order if (line := self._by_priority[priority])]

    def take(self, entry: Entry) -> None:
        """Take a head away."""
        self._by_priority[entry.priority].popleft()
        self._count(entry, -1)

    def pop(self) -> Entry:
        """Take the very first one away."""
        entry = self.heads()[0] if len(self._order) > 1 else self._by_priority[self._order[0]][0]
        self.take(entry)
        return entry

    def _count(self, entry: Entry, by: int) -> None:
        self.count += by
        self.bytes += by * entry.content.size
