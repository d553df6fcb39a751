"""Streams: queues whose messages stay, and are read by as many consumers as there are, each from its place.

RabbitMQ drops a stream's oldest messages by whole segments, of 500 MB unless told otherwise. This broker's
streams end with it before that, and drop nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from .closing import ConnectionClosing
from .contents import Content
from .line import Entry
from .queues import Consumer, Queue
from .tables import Field, is_integer, text_of


class Stream(Queue):
    """One stream. An entry's position, less one, is its offset."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self._entries: list[Entry] = []
        self._came: list[float] = []  # in seconds since 1970
        self._bytes = 0
        self._next: dict[Consumer, int] = {}  # the offset that each consumer reads next

    @property
    def count(self) -> int:
        """How many messages there are."""
        return len(self._entries)

    @property
    def memory(self) -> int:
        """How many bytes they take."""
        return self._bytes

    def ready(self) -> list[Entry]:
        """All messages, in order."""
        return list(self._entries)

    def publish(self, content: Content) -> bool:
        """Take a message."""
        self._entries.append(Entry(content, len(self._entries) + 1, 0, None))
        self._came.append(time.time())
        self._bytes += content.weight
        self.serve()
        return True

    def serve(self) -> None:
        """Deliver to each consumer what it has not had."""
        for consumer in self.consumers:
            while self._next[consumer] < len(self._entries) and consumer.can_take():
                entry = self._entries[self._next[consumer]]
                self._next[consumer] += 1
                consumer.deliver(self, entry)

    def add_consumer(self, consumer: Consumer) -> None:
        """From now on it is served, from where it wants to begin."""
        self._next[consumer] = self._first(consumer.offset)
        super().add_consumer(consumer)

    def remove_consumer(self, consumer: Consumer) -> None:
        """Not any more."""
        super().remove_consumer(consumer)
        self._next.pop(consumer, None)

    def leave(self, channel: object) -> None:
        """All consumers of a channel are gone."""
        super().leave(channel)
        self._next = {consumer: self._next[consumer] for consumer in self.consumers}

    def _first(self, wanted: Field | None) -> int:
        """Where to begin: https://www.rabbitmq.com/docs/streams#consuming"""
        if wanted is None:
            return len(self._entries)
        if is_integer(wanted):
            return max(0, int(wanted.value))
        if wanted.kind == "timestamp":
            return sum(came < wanted.value for came in self._came)
        word = text_of(wanted.value) if wanted.kind == "longstr" else ""
        places = {"first": 0, "last": max(0, len(self._entries) - 1), "next": len(self._entries)}
        if word in places:
            return places[word]
        seconds = parse_age(word)
        if seconds is None:
            raise ConnectionClosing(541, "")
        return sum(came < time.time() - seconds for came in self._came)

    def shown(self, entry: Entry, fetched: bool = False) -> Content:  # noqa: ARG002
        """The message as a consumer sees it."""
        offset = Field("long", entry.position - 1)
        return entry.content.with_headers({**entry.content.headers, "x-stream-offset": offset})

    def requeue(self, entries: Iterable[Entry]) -> None:
        """It stays where it is, whatever becomes of those that were read."""


_UNITS = {"Y": 31_536_000, "M": 2_592_000, "D": 86_400, "h": 3600, "m": 60, "s": 1}


def parse_age(text: str) -> int | None:
    """Seconds, from RabbitMQ's "7D" and the like; None when it is nothing of that kind."""
    number, unit = text[:-1], text[-1:]
    if unit not in _UNITS or not (number.isascii() and number.isdigit()):
        return None
    return int(number) * _UNITS[unit]
