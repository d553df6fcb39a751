"""Queues: the messages that wait, who is served, and what becomes of messages that may not wait. Pure.

An entry is *ready*, or *unacked* (with a consumer, or fetched), and leaves when it is settled, purged,
expired or pushed out. Ready entries stand in the order in which they came, by priority; what is requeued goes
back to where it stood.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from .arguments import QueueSettings, parse_expiration
from .clock import Clock, Timer
from .contents import Content
from .letters import Letters
from .line import Entry, Line
from .tables import Field, Table


class Consumer(Protocol):
    """Who gets a queue's messages."""

    tag: str
    priority: int
    exclusive: bool
    offset: Field | None  # where to begin with a stream
    channel: Any

    def can_take(self) -> bool:
        """Whether one more may be sent: prefetch, and the client's reading."""
        ...

    def deliver(self, queue: Queue, entry: Entry) -> None:
        """Send it."""

    def cancelled(self) -> None:
        """The queue is gone."""


class Keeper(Protocol):
    """Who keeps the queues: the virtual host."""

    def dead_letter(self, queue: Queue, entry: Entry, reason: str) -> None:
        """The queue gives an entry up."""

    def remove(self, queue: Queue) -> None:
        """The queue is not needed any more."""


class Queue:
    """One queue.

    :param owner: the connection whose own it is (exclusive), or None.
    """

    def __init__(
        self,
        name: str,
        arguments: Table,
        settings: QueueSettings,
        *,
        durable: bool,
        auto_delete: bool,
        owner: object,
        keeper: Keeper,
        clock: Clock,
    ) -> None:
        self.name = name
        self.arguments = arguments
        self.settings = settings
        self.durable = durable
        self.auto_delete = auto_delete
        self.owner = owner
        self.deleted = False
        self.consumers: list[Consumer] = []
        self.unacked: dict[Entry, None] = {}
        self.letters = Letters()  #: which :class:`~.forwarding.Forwarding` takes care of
        self._keeper = keeper
        self._clock = clock
        self._line = Line()
        self._lent = 0  # bytes in memory of the unacked ones
        self._is_full = False  # of a queue that rejects: see _has_no_room()
        self._position = 0  # of the entry that came last
        self._expiry: tuple[float, Timer] | None = None  # of the next head: when, and what wakes us then
        self._unused: Timer | None = None  # which ends an x-expires, if there is one
        self.touch()

    @property
    def count(self) -> int:
        """How many messages are ready."""
        self._drop_expired()
        return self._line.count

    @property
    def memory(self) -> int:
        """How many bytes its messages take, the unacked ones and those it gave up among them."""
        return self._line.weight + self._lent + self.letters.weight

    def _lend(self, entry: Entry) -> None:
        self.unacked[entry] = None
        self._lent += entry.content.weight

    def _take_back(self, entry: Entry) -> None:
        if entry in self.unacked:
            del self.unacked[entry]
            self._lent -= entry.content.weight

    def ready(self) -> list[Entry]:
        """The messages that are ready, in order."""
        self._drop_expired()
        return list(self._line)

    # Coming in

    def publish(self, content: Content) -> bool:
        """Take a message; False when the queue is full and rejects."""
        self._drop_expired()
        if self._has_no_room(content.size):
            if self.settings.overflow == "reject-publish-dlx":
                self._keeper.dead_letter(self, self._entry(content), "maxlen")
            return False
        entry = self._entry(content)
        if not self._line.count and self._hand_over(entry):
            return True  # also with a TTL of 0, or a max-length of 0
        self._line.append(entry)
        if self.settings.overflow == "drop-head":
            self._drop_surplus()
        else:
            self._is_full = self._is_full or self._is_beyond(0, 0)
        self._drop_expired()
        return True

    def _drop_surplus(self) -> None:
        while self._line.count and self._is_beyond(0, 0):
            self._keeper.dead_letter(self, self._line.pop(), "maxlen")

    def _entry(self, content: Content) -> Entry:
        settings = self.settings
        ttl = settings.message_ttl
        own = parse_expiration(content.text("expiration"))
        if own is not None:
            ttl = own if ttl is None else min(ttl, own)
        self._position += 1
        priority = min(content.number("priority") or 0, settings.max_priority)
        expires_at = None if ttl is None else self._clock.time() + ttl / 1000
        return Entry(content, self._position, priority, expires_at)

    def _has_no_room(self, size: int) -> bool:
        """Whether one more of this size is to be rejected."""
        if self.settings.overflow == "drop-head":
            return False
        if self.settings.kind == "classic":
            return self._is_beyond(1, size)
        # A quorum queue is full with one too many, until it is down to four fifths of what it may have.
        self._is_full = self._is_full and self._is_beyond(0, 0, 0.8)
        return self._is_full

    def _is_beyond(self, count: int, size: int, share: float = 1) -> bool:
        """Whether it has more than it may, or than a share of that, with so many and so much in addition."""
        settings = self.settings
        count += self._line.count + self.letters.count
        size += self._line.bytes + self.letters.bytes
        return (settings.max_length is not None and count > int(settings.max_length * share)) or (
            settings.max_length_bytes is not None and size > int(settings.max_length_bytes * share)
        )

    # Going out

    def serve(self) -> None:
        """Deliver what is ready to whoever can take it."""
        while self._line.count and self.consumers:
            self._drop_expired()
            if not self._line.count:
                break
            entry = self._line.pop()
            if not self._hand_over(entry):
                self._line.put_back(entry)
                break
        self._watch_expiry()

    def _hand_over(self, entry: Entry) -> bool:
        consumer = self._next_consumer() if self.consumers else None
        if consumer is None:
            return False
        self._lend(entry)
        consumer.deliver(self, entry)
        return True

    def _next_consumer(self) -> Consumer | None:
        """Of those with the highest priority that can take something, the one that waited longest."""
        candidates = self.consumers[:1] if self.settings.single_active_consumer else self.consumers
        chosen: Consumer | None = None
        for consumer in candidates:
            if (chosen is None or consumer.priority > chosen.priority) and consumer.can_take():
                chosen = consumer
        if chosen is not None and len(candidates) > 1:
            self.consumers.remove(chosen)
            self.consumers.append(chosen)
        return chosen

    def fetch(self) -> Entry | None:
        """The first message, for Basic.Get."""
        self.touch()
        self._drop_expired()
        if not self._line.count:
            return None
        entry = self._line.pop()
        self._lend(entry)
        self._watch_expiry()
        return entry

    # Settling

    def ack(self, entry: Entry) -> None:
        """It is done with."""
        self._take_back(entry)

    def reject(self, entry: Entry) -> None:
        """Nobody wants it."""
        self._take_back(entry)
        if not self.deleted:
            self._keeper.dead_letter(self, entry, "rejected")

    def requeue(self, entries: Iterable[Entry]) -> None:
        """They go back to where they stood."""
        limit = self.settings.delivery_limit
        # From the last to the first: each is then put before those that are there already.
        for entry in sorted(entries, key=lambda one: one.position, reverse=True):
            self._take_back(entry)
            entry.returns += 1
            if self.deleted:
                continue
            if limit is not None and entry.returns > limit:
                self._keeper.dead_letter(self, entry, "delivery_limit")
            else:
                self._line.put_back(entry)
        if not self.deleted:
            self.serve()
            if self.settings.overflow == "drop-head":
                self._drop_surplus()

    def shown(self, entry: Entry, fetched: bool = False) -> Content:
        """The message as a consumer sees it; or who fetches it, whom RabbitMQ tells of no returns, too."""
        if self.settings.kind != "quorum" or not (entry.returns or fetched):
            return entry.content
        count = Field("long", entry.returns)
        return entry.content.with_headers({**entry.content.headers, "x-delivery-count": count})

    # Consumers

    def add_consumer(self, consumer: Consumer) -> None:
        """From now on it is served."""
        self.consumers.append(consumer)
        self.touch()
        self.serve()

    def remove_consumer(self, consumer: Consumer) -> None:
        """Not any more."""
        if consumer in self.consumers:
            self.consumers.remove(consumer)
            self.consumer_left()

    def leave(self, channel: object) -> None:
        """All consumers of a channel are gone; :meth:`consumer_left` is to follow."""
        self.consumers = [one for one in self.consumers if one.channel is not channel]

    def consumer_left(self) -> None:
        """A consumer was taken away: the others go on, or there is none."""
        if self.deleted:
            return
        if self.consumers:
            self.serve()
        elif self.auto_delete:
            self._keeper.remove(self)
        else:
            self.touch()

    @property
    def is_exclusively_consumed(self) -> bool:
        """Whether a consumer has it for itself."""
        return any(consumer.exclusive for consumer in self.consumers)

    # Ends

    def purge(self) -> int:
        """Forget what is ready; how many that was."""
        count = self.count
        self._line = Line()
        self._watch_expiry()
        return count

    def delete(self) -> int:
        """The queue is gone, its consumers are told; how many messages were ready."""
        count = self.count
        self.deleted = True
        self._line = Line()
        self.letters.drop()
        self._watch_expiry()
        self.touch()
        consumers, self.consumers = self.consumers, []
        for consumer in consumers:
            consumer.cancelled()
        return count

    def touch(self) -> None:
        """It was used: x-expires counts from now, unless it has consumers, or is gone."""
        if self._unused is not None:
            self._unused.cancel()
            self._unused = None
        if self.settings.expires is not None and not self.consumers and not self.deleted:
            self._unused = self._clock.call_later(
                self.settings.expires / 1000, lambda: self._keeper.remove(self)
            )

    # Expiry: from the head alone, as RabbitMQ's classic queues do it

    def _drop_expired(self) -> None:
        if self._expiry is None and not any(entry.expires_at is not None for entry in self._line.heads()):
            return
        now = self._clock.time()
        for head in self._line.heads():
            entry: Entry | None = head
            while entry is not None and entry.expires_at is not None:
                if entry.expires_at > now:
                    break
                self._line.take(entry)
                self._keeper.dead_letter(self, entry, "expired")
                entry = next((one for one in self._line.heads() if one.priority == head.priority), None)
        self._watch_expiry()

    def _watch_expiry(self) -> None:
        """Look again when the next head expires."""
        times = [entry.expires_at for entry in self._line.heads() if entry.expires_at is not None]
        due = min(times, default=None)
        if self._expiry is not None and self._expiry[0] == due:
            return
        if self._expiry is not None:
            self._expiry[1].cancel()
            self._expiry = None
        if due is not None:
            delay = max(0.0, due - self._clock.time())
            self._expiry = (due, self._clock.call_later(delay, self._expire))

    def _expire(self) -> None:
        self._expiry = None
        try:
            self._drop_expired()
        finally:
            self._watch_expiry()
