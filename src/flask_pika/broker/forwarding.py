"""The way of dead letters: at most once, or until the queues that they go to have them. Pure.

https://www.rabbitmq.com/docs/quorum-queues#dead-lettering, and for what it leaves open, RabbitMQ 3.10's own
``rabbit_fifo_dlx_worker``.
"""

from __future__ import annotations

import collections
import time
from collections.abc import Callable, Iterable
from typing import Protocol

from . import dead_letters
from .clock import Clock
from .contents import Content
from .frames import counted
from .letters import Letter
from .line import Entry
from .queues import Queue


class Router(Protocol):
    """Who knows which queues a message goes to: the virtual host."""

    def has_exchange(self, name: str) -> bool:
        """Whether there is such an exchange."""
        ...

    def route(self, content: Content, exchange: str, routing_keys: Iterable[str]) -> list[Queue]:
        """The queues that a message goes to from an exchange, each once."""
        ...


class Forwarding:
    """Takes the dead letters of all queues to where they go.

    :param retry: seconds from when a letter that not all queues took is tried again.
    :param event: told of such letters in words; or None.
    """

    def __init__(
        self, router: Router, clock: Clock, retry: float, event: Callable[[str], object] | None = None
    ) -> None:
        self._router = router
        self._clock = clock
        self._retry = retry
        self._event = event
        # Not one in the other: a chain of queues is as long as its makers like.
        self._jobs: collections.deque[Callable[[], object]] = collections.deque()
        self._works = False

    def bury(self, queue: Queue, entry: Entry, reason: str) -> None:
        """A queue gives a message up."""
        if queue.settings.dead_letter_exchange is None:
            return
        if queue.settings.at_least_once:
            queue.letters.add(entry, reason)
            self._do(lambda: self._forward(queue))
        else:
            letter = Letter(entry, reason)
            _write(queue, letter)
            self._do(lambda: self._publish(letter))

    def _do(self, job: Callable[[], object]) -> None:
        self._jobs.append(job)
        if self._works:
            return
        self._works = True
        try:
            while self._jobs:
                self._jobs.popleft()()
        finally:
            self._works = False

    def _publish(self, letter: Letter) -> None:
        """At most once."""
        for target in self._route(letter):
            if not _is_cycle(letter, target):
                target.publish(letter.buried)

    def _route(self, letter: Letter) -> list[Queue]:
        return self._router.route(letter.buried, letter.buried.exchange, letter.keys)

    # At least once

    def _forward(self, queue: Queue) -> None:
        """Send what waits, as far as not too many are under way."""
        while (letter := queue.letters.next()) is not None:
            _write(queue, letter)
            targets = [target for target in self._route(letter) if not _is_cycle(letter, target)]
            if targets and self._send(queue, letter, targets, targets):
                continue
            if self._event is not None:
                what = counted(letter.buried.size, "byte stays", "bytes stay")
                why = "a queue takes no more" if targets else "nowhere to go"
                self._event(f"{what} with {queue.name!r}: {why}; tried again in {self._retry:g} s")
        self._watch(queue)

    def _send(self, queue: Queue, letter: Letter, targets: list[Queue], missing: list[Queue]) -> bool:
        """Give a letter to queues; it is done with when all that it was missing in have it: whether it is."""
        letter.sent_at = self._clock.time()
        letter.settled.update([target.name for target in targets if target.publish(letter.buried)])
        done = letter.settled.issuperset(target.name for target in missing)
        if done:
            queue.letters.settle(letter)
        return done

    def _watch(self, queue: Queue) -> None:
        letters = queue.letters
        if not letters.under_way():
            letters.stop_timer()
        elif letters.timer is None:
            letters.timer = self._clock.call_later(
                self._retry, lambda: self._do(lambda: self._send_again(queue))
            )

    def _send_again(self, queue: Queue) -> None:
        """Time has passed. Only that: RabbitMQ does not look at what is declared and bound, either."""
        queue.letters.timer = None
        exchange = queue.settings.dead_letter_exchange
        if exchange is not None and self._router.has_exchange(exchange):
            now = self._clock.time()
            for letter in queue.letters.under_way():
                if letter.sent_at is None or letter.sent_at + self._retry <= now:
                    self._try_again(queue, letter)
        self._forward(queue)

    def _try_again(self, queue: Queue, letter: Letter) -> None:
        routed = self._route(letter)
        if not routed and letter.settled:
            queue.letters.settle(letter)  # it is not routed any more to those that did not take it
            return
        missing = [target for target in routed if target.name not in letter.settled]
        targets = [target for target in missing if not _is_cycle(letter, target)]
        if targets:
            # Among the missing may be one that it would come back to, and never does: so in RabbitMQ.
            self._send(queue, letter, targets, missing)


def _write(queue: Queue, letter: Letter) -> None:
    exchange, key = queue.settings.dead_letter_exchange or "", queue.settings.dead_letter_routing_key
    content = letter.entry.content
    letter.keys = content.routing_keys() if key is None else [key]
    letter.buried = dead_letters.bury(
        content, queue.name, letter.reason, exchange, key, timestamp=int(time.time())
    )


def _is_cycle(letter: Letter, target: Queue) -> bool:
    return dead_letters.is_cycle(letter.buried, target.name)
