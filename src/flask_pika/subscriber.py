"""A subscriber: keeps one consumer subscribed, on whichever connection there is, and counts what it does."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from pika import exceptions as pika_errors
from pika.adapters.select_connection import SelectConnection
from pika.spec import NOT_FOUND

from .backlog import Backlog
from .backoff import Backoff
from .consumer import Consumer
from .deliver_frames import Arrival
from .delivery import Action, Delivery
from .errors import Reject, Requeue, RetryLater
from .link import Link
from .retry import Decision
from .subscription import Subscription

logger = logging.getLogger("flask_pika.consumer")


@dataclass(frozen=True)
class ConsumerStats:
    """A consumer at one moment, and what it has done since its worker began."""

    queue: str
    handler: str  #: its module and name
    #: ``stopped``, ``connecting``, ``subscribing``, ``consuming``, ``backing off``, ``draining``
    state: str = "stopped"
    in_flight: int = 0  #: deliveries that are not settled: their handler runs, or they wait for a thread
    handled: int = 0  #: deliveries whose handler returned
    failed: int = 0  #: whose handler raised, and not ``Reject``, ``Requeue`` or ``RetryLater``
    requeued: int = 0  #: that went back to the queue
    retried: int = 0  #: of which a copy waits for another attempt, or has waited
    dead: int = 0  #: of which a copy is among the dead letters
    rejected: int = 0  #: that were rejected: the queue's dead-letter exchange has them, if there is one
    mean_time: float = 0.0  #: seconds of a handler's run
    max_time: float = 0.0  #: and of the longest one
    error: str = ""  #: why it does not consume, if that is known


#: Has a queue that is gone declared again on a connection, and then calls a function.
DeclareAgain = Callable[[SelectConnection, str, Callable[[], object]], object]


class Failed(NamedTuple):
    """A delivery whose handler has failed, and of which a copy is still to be made."""

    error: BaseException
    decision: Decision


#: Some deliveries for one run of the handler, and where they came from; or one that has had its run.
Unit = tuple["Subscriber", Subscription, list[Delivery], Failed | None]


class Subscriber:
    """One consumer in a worker. In the link's thread only, but for what is said to be for any thread."""

    def __init__(
        self,
        consumer: Consumer,
        handler: Callable[..., Any],
        tag: str,
        link: Link,
        backlog: Backlog[Unit],
        arm: Callable[[], None],
        declare_again: DeclareAgain,
    ) -> None:
        self.consumer = consumer
        #: The handler as the app calls it.
        self.handler = handler
        self._tag = tag
        self._link = link
        self._backlog = backlog
        self.arm = arm
        self._declare_again = declare_again
        self._backoff = Backoff(0.1, 5.0)  # for subscribing, and for copies
        self._is_missing = False  # the queue
        self._connection: SelectConnection | None = None
        self._watch: dict[int, Callable[[list[Arrival]], object]] = {}
        self._subscription: Subscription | None = None
        self._failures = 0  # to subscribe, in a row
        self._draining = False
        self._written_before = 0  # frames, by the subscriptions before
        self._gathered: list[Delivery] = []  # a batch that is not full
        self._held: list[tuple[Subscription, Delivery, Failed]] = []  # to be copied, in a moment
        self._copies_failed = 0  # in a row; set to 0 by any thread
        self._gathered_since = 0.0  # the first of it
        self._timed: Subscription | None = None  # whose batch is timed: one timer, not one for each batch
        #: Read by any thread.
        self.state = "stopped"  # until its worker starts
        self._error = ""
        self._requeued = self._rejected = 0

        # All below is shared, and touched only under the lock.
        self._lock = threading.Lock()
        self._handled = self._failed = self._runs = self._retried = self._dead = 0
        self._time = self._longest = 0.0

    # The link's thread: subscribing

    def connected(
        self, connection: SelectConnection, watch: dict[int, Callable[[list[Arrival]], object]]
    ) -> None:
        """There is a new connection."""
        self._connection, self._watch = connection, watch
        self._subscribe()

    def lost(self) -> None:
        """The connection is gone, and with it what was delivered: the broker delivers it again."""
        self._connection = None
        self._forget_subscription()
        self.state = "draining" if self._draining else "connecting"

    def ended(self) -> None:
        """There will be no other one."""
        self.lost()
        self.state = "stopped"

    def _forget_subscription(self) -> None:
        gone = self._subscription
        if gone is not None:
            self._written_before += gone.written
        self._subscription = self._timed = None
        self._gathered = []
        self._held = []
        if gone is not None:
            gone.lost()
            self._backlog.withdraw(lambda unit: unit[1] is gone)

    def _subscribe(self) -> None:
        if self._draining or self._connection is None:
            return
        self.state = "subscribing"
        if self._subscription is not None and self._subscription.is_open:
            self._subscription.subscribe()
            return
        try:
            self._subscription = Subscription(
                self.consumer, self._tag, self, self._connection, self._link.guarded, self._watch
            )
        except pika_errors.AMQPError as exc:  # no channel is free
            self._failed_with(f"no channel can be opened: {exc}")

    def _failed_with(self, why: str) -> None:
        before, self._error = self._error, why
        self.state = "backing off"
        if why != before:
            # One warning until it consumes again: a queue that was deleted is then one that is not found.
            logger.log(
                logging.DEBUG if before else logging.WARNING,
                "%s does not consume queue %r, and goes on trying: %s",
                self.consumer.name,
                self.consumer.queue,
                why,
            )
        self._failures += 1
        connection = self._connection

        def subscribe() -> None:
            if self._connection is connection and self.state == "backing off":
                self._subscribe()

        def again() -> None:
            if self._connection is not connection or connection is None or self.state != "backing off":
                return
            missing, self._is_missing = self._is_missing, False
            if missing:
                self._declare_again(connection, self.consumer.queue, subscribe)
            else:
                self._subscribe()

        self._link.call_later(self._backoff.delay(self._failures), again)

    # What a subscription says: see flask_pika.subscription.Owner

    def subscribed(self, subscription: Subscription) -> None:
        """The broker delivers from now on."""
        self._link.works()
        if self._draining:
            subscription.unsubscribe()
            return
        failed, self._error = bool(self._error), ""
        self._failures = 0
        self.state = "consuming"  # after that, and before the log: who asks is told nothing that is over
        if failed:
            logger.warning("%s consumes queue %r again", self.consumer.name, self.consumer.queue)

    def cancelled(self, _subscription: Subscription) -> None:
        """The queue was deleted, or lost."""
        self._is_missing = True
        if not self._draining:
            self._failed_with("the broker ended the consumer: its queue was deleted, or moved")

    def closed(self, subscription: Subscription, error: Exception) -> None:
        """The broker closed the channel: the queue does not exist, is another's, or may not be read; ..."""
        if subscription is not self._subscription:
            return
        self._forget_subscription()
        self._link.works()  # the broker answers
        if not self._draining:
            code, text = getattr(error, "reply_code", 0), getattr(error, "reply_text", str(error))
            self._is_missing = code == NOT_FOUND
            self._failed_with(f"{code} {text}")
        self.arm()  # there may be nothing left to wait for

    def forgotten(self, tag: int) -> Action:
        """A manual delivery that nobody can settle any more: as if its handler had failed."""
        logger.error(
            "%s forgot delivery %d of queue %r, which is rejected: with ack='manual', each delivery is to be"
            " settled",
            self.consumer.name,
            tag,
            self.consumer.queue,
        )
        return Action.REJECT

    def settled(self, action: Action) -> None:
        """A delivery was settled on the wire, and not by an ack."""
        if action is Action.REJECT:
            self._rejected += 1
        elif action is Action.REQUEUE or not self._draining:  # a manual nack
            self._requeued += 1

    def arrived(self, subscription: Subscription, deliveries: list[Delivery]) -> None:
        """Deliveries came: give them to the threads, when there are enough for a batch."""
        if self._draining:
            self._give_back(subscription, deliveries)
            return
        size = self.consumer.batch
        if size is None:
            self._backlog.put(self, [(self, subscription, [delivery], None) for delivery in deliveries])
            return
        if self.consumer.retry is not None:
            # What has failed before has a run of its own, or it would take all of its batch with it again.
            again = [delivery for delivery in deliveries if delivery.attempt > 1]
            self._backlog.put(self, [(self, subscription, [delivery], None) for delivery in again])
            deliveries = [delivery for delivery in deliveries if delivery not in again]
        began = not self._gathered
        gathered = self._gathered + deliveries
        whole = len(gathered) - len(gathered) % size
        if whole:
            began = True
            self._backlog.put(
                self, [(self, subscription, gathered[at : at + size], None) for at in range(0, whole, size)]
            )
        self._gathered = gathered[whole:]
        if self._gathered and began:
            self._gathered_since = time.monotonic()
            if self._timed is not subscription:
                self._time_batch(subscription, self.consumer.batch_wait)

    def _time_batch(self, subscription: Subscription, seconds: float) -> None:
        self._timed = subscription
        self._link.call_later(seconds, lambda: self._batch_has_waited(subscription))

    def _batch_has_waited(self, subscription: Subscription) -> None:
        if subscription is not self._subscription:
            return
        self._timed = None
        if not self._gathered:
            return
        left = self._gathered_since + self.consumer.batch_wait - time.monotonic()
        if left > 0:  # it was full, and went; what is here now came later
            self._time_batch(subscription, left)
            return
        gathered, self._gathered = self._gathered, []
        self._backlog.put(self, [(self, subscription, gathered, None)])

    # The link's thread: settling, and the end

    def flush(self) -> None:
        """Write what was settled."""
        if self._subscription is not None:
            self._subscription.flush()

    @property
    def outstanding(self) -> int:
        """How many deliveries the broker waits for. Any thread may ask."""
        subscription = self._subscription  # once: the link's thread may change it meanwhile
        return 0 if subscription is None else subscription.outstanding

    @property
    def written(self) -> int:
        """How many frames have settled something. Any thread may ask."""
        subscription = self._subscription
        return self._written_before + (0 if subscription is None else subscription.written)

    def drain(self) -> None:
        """Take nothing new, and give back what nobody has begun."""
        self._draining = True
        self.state = "draining"
        subscription = self._subscription
        if subscription is None:
            return
        # In this order: what is given back must not come again.
        subscription.unsubscribe()
        gathered, self._gathered = self._gathered, []
        for unit in self._backlog.withdraw(lambda unit: unit[0] is self):
            gathered += unit[2]
        self._give_back(subscription, gathered)
        for held in list(self._held):
            self._let_go(held)

    def _hold(self, subscription: Subscription, delivery: Delivery, failed: Failed) -> None:
        held = (subscription, delivery, failed)
        self._held.append(held)
        self._copies_failed += 1
        if self._draining:
            self._let_go(held)
        else:
            self._link.call_later(self._backoff.delay(self._copies_failed), lambda: self._let_go(held))

    def _let_go(self, held: tuple[Subscription, Delivery, Failed]) -> None:
        if held not in self._held:
            return  # at the end, or lost with its connection
        self._held.remove(held)
        subscription, delivery, failed = held
        if self._draining:
            self._give_back(subscription, [delivery])
        else:
            self._backlog.put(self, [(self, subscription, [delivery], failed)])

    def _give_back(self, subscription: Subscription, deliveries: list[Delivery]) -> None:
        for delivery in deliveries:
            delivery.take()
        subscription.settle_all(deliveries, [Action.GIVE_BACK] * len(deliveries))
        self.arm()

    # Any thread

    def hold(self, subscription: Subscription, delivery: Delivery, failed: Failed) -> None:
        """Try again to make a copy, in a moment. At the end, the delivery goes back.

        Not at once: it would come again at once, and be handled again, as often as the broker can deliver it,
        which for a quorum queue has a limit.
        """
        self._link.call(lambda: self._hold(subscription, delivery, failed))

    def note(self, count: int, error: BaseException | None, seconds: float) -> None:
        """A run of the handler has ended."""
        failed = error is not None and not isinstance(error, (Reject, Requeue, RetryLater))
        # Critical section: some sums.
        with self._lock:
            self._runs += 1
            self._time += seconds
            self._longest = max(self._longest, seconds)
            if error is None:
                self._handled += count
            elif failed:
                self._failed += count

    def note_copies(self, actions: list[Action | None]) -> None:
        """What became of deliveries whose handler has failed."""
        with self._lock:
            self._retried += actions.count(Action.RETRY)
            self._dead += actions.count(Action.DEAD)
        if Action.RETRY in actions or Action.DEAD in actions:
            self._copies_failed = 0

    def stats(self) -> ConsumerStats:
        """The numbers of this moment."""
        with self._lock:
            return ConsumerStats(
                self.consumer.queue,
                self.consumer.place,
                self.state,
                self.outstanding,
                self._handled,
                self._failed,
                self._requeued,
                self._retried,
                self._dead,
                self._rejected,
                self._time / self._runs if self._runs else 0.0,
                self._longest,
                self._error or self._no_connection(),
            )

    def _no_connection(self) -> str:
        error = self._link.error
        return "" if error is None or self.state == "consuming" else str(error)
