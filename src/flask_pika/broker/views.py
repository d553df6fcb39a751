"""A look into the broker's queues, from any thread."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from .contents import Content
from .queues import Queue
from .vhost import VirtualHost

T = TypeVar("T")


class Ask(Protocol):
    """Has something read in the broker's thread."""

    def __call__(self, question: Callable[[VirtualHost], T], /) -> T:
        """What it read."""
        ...


@dataclass(frozen=True, repr=False)
class StoredMessage:
    """A message as it waits in a queue."""

    body: bytes
    exchange: str
    routing_key: str
    properties: Any  #: a ``pika.BasicProperties``, yours to change
    redelivered: bool = False

    @property
    def text(self) -> str:
        """The body as UTF-8."""
        return self.body.decode()

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def headers(self) -> dict[str, Any]:
        """The headers; empty when there are none."""
        return dict(self.properties.headers or {})

    def __repr__(self) -> str:
        # Without the body and the properties, which may be secrets.
        return (
            f"<StoredMessage of {len(self.body)} bytes to exchange {self.exchange!r} with routing key"
            f" {self.routing_key!r}>"
        )


#: Messages as the broker has them, and whether each is redelivered.
_Found = list[tuple[Content, bool]]


class QueueView:
    """A look into one queue, as it is at each call."""

    def __init__(self, ask: Ask, name: str) -> None:
        self._ask = ask
        self.name = name

    def _read(self, read: Callable[[Queue], T]) -> T:
        def look(vhost: VirtualHost) -> T:
            queue = vhost.queues.get(self.name)
            if queue is None:
                raise KeyError(f"there is no queue {self.name!r}")
            return read(queue)

        return self._ask(look)

    @property
    def messages(self) -> list[StoredMessage]:
        """Those that wait for somebody, in order."""
        return _stored(self._read(_ready))

    @property
    def unacked(self) -> list[StoredMessage]:
        """Those that somebody has and has not settled."""
        return _stored(
            self._read(lambda queue: [(queue.shown(entry), entry.redelivered) for entry in queue.unacked])
        )

    @property
    def dead_letters(self) -> list[StoredMessage]:
        """Those that it gave up, and keeps until the queues that they go to take them: at-least-once."""
        return _stored(
            self._read(
                lambda queue: [(letter.entry.content, letter.entry.redelivered) for letter in queue.letters]
            )
        )

    @property
    def consumers(self) -> int:
        """How many consumers there are."""
        return self._read(lambda queue: len(queue.consumers))

    def wait_for(
        self, condition: int | Callable[[list[StoredMessage]], object], timeout: float = 10.0
    ) -> list[StoredMessage]:
        """Wait until messages are there, or until a condition on them holds; the messages.

        :param condition: that many messages at least, and for 0 none at all; or a function of the messages.
        :param timeout: seconds that this may take.
        :raises TimeoutError: it did not come to that.
        """
        deadline = time.monotonic() + timeout
        while True:
            if isinstance(condition, int):
                count, found = self._read(_counted(condition))
                messages = None if found is None else _stored(found)
            else:
                there = self.messages
                count, messages = len(there), there if condition(there) else None
            if messages is not None:
                return messages
            if time.monotonic() >= deadline:
                raise TimeoutError(
                    f"queue {self.name!r} did not come to that in {timeout:g} s: it has {count} messages"
                )
            time.sleep(0.005)

    def __repr__(self) -> str:
        return f"<QueueView {self.name!r}>"


def _ready(queue: Queue) -> _Found:
    return [(queue.shown(entry), entry.redelivered) for entry in queue.ready()]


def _counted(wanted: int) -> Callable[[Queue], tuple[int, _Found | None]]:
    """A look that copies the messages only when there are as many as wanted: it is repeated until then."""

    def look(queue: Queue) -> tuple[int, _Found | None]:
        count = queue.count
        # At least, for a number: nobody asks for 0 to be told that some are left.
        good = count >= wanted if wanted else not count
        # In one look with the count: a moment later, somebody may have taken some.
        return count, _ready(queue) if good else None

    return look


def _stored(found: _Found) -> list[StoredMessage]:
    """In the caller's thread, which the broker's need not wait for."""
    return [
        StoredMessage(
            content.body,
            content.exchange,
            content.routing_key,
            content.properties,
            redelivered,
        )
        for content, redelivered in found
    ]


class Queues(Mapping[str, QueueView]):
    """The queues of the broker, by name."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask

    def _names(self) -> list[str]:
        return self._ask(lambda vhost: list(vhost.queues))

    def __getitem__(self, name: str) -> QueueView:
        if name not in self._names():
            raise KeyError(name)
        return QueueView(self._ask, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names())

    def __len__(self) -> int:
        return len(self._names())
