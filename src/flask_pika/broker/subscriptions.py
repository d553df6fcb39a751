"""Subscriptions: the consumers of a channel, and what they have and have not settled."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from .line import Entry
from .queues import Queue
from .tables import Field

if TYPE_CHECKING:
    from .channel import Channel


class Subscription:
    """A consumer of one queue, on one channel."""

    def __init__(
        self,
        channel: Channel,
        tag: str,
        queue: Queue,
        *,
        no_ack: bool,
        exclusive: bool,
        priority: int,
        offset: Field | None,
    ) -> None:
        self.channel = channel
        self.tag = tag
        self.queue = queue
        self.no_ack = no_ack
        self.exclusive = exclusive
        self.priority = priority
        self.offset = offset
        self.prefetch = channel.prefetch
        self.unacked = 0

    def can_take(self) -> bool:
        """Whether one more may be sent."""
        channel = self.channel
        if not channel.client.is_reading():
            return False
        return self.no_ack or (
            (not self.prefetch or self.unacked < self.prefetch)
            and (not channel.prefetch_of_all or channel.unacked_of_all < channel.prefetch_of_all)
        )

    def deliver(self, queue: Queue, entry: Entry) -> None:
        """Send a message."""
        self.channel.deliver(self, queue, entry)

    def cancelled(self) -> None:
        """The queue is gone."""
        self.channel.subscription_ended(self)


class Unacked(NamedTuple):
    """A message that the client has and has not settled."""

    queue: Queue
    entry: Entry
    subscription: Subscription | None  # None: fetched by Basic.Get


def acked(taken: Iterable[Unacked]) -> None:
    """They are done with."""
    for unacked in taken:
        unacked.queue.ack(unacked.entry)


def rejected(taken: Iterable[Unacked]) -> None:
    """Nobody wants them."""
    for unacked in taken:
        unacked.queue.reject(unacked.entry)


def requeued(taken: Iterable[Unacked]) -> None:
    """They go back to their queues."""
    by_queue: dict[Queue, list[Entry]] = {}
    for unacked in taken:
        by_queue.setdefault(unacked.queue, []).append(unacked.entry)
    for queue, entries in by_queue.items():
        queue.requeue(entries)
