"""The worker: runs an app's consumers on one link, with handler threads, until it is told to stop."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType

from flask import Flask
from pika.adapters.select_connection import SelectConnection

from . import pika_internals
from .backlog import Backlog
from .consumer import Consumer
from .declaring import Preparation
from .deliver_frames import Arrival
from .delivery import Action, Delivery
from .errors import AuthenticationRefused, BrokerUnavailable, SetupError, VirtualHostRefused
from .handling import bound_handler, handle, log_failure, tell
from .link import Link
from .nodes import Node
from .params import is_finite
from .recovery import Recovery
from .retry import Decision
from .subscriber import ConsumerStats, Failed, Subscriber, Unit
from .subscription import Subscription

logger = logging.getLogger("flask_pika.consumer")

#: Handler threads, when nothing is said.
THREADS = 8
#: Seconds that stop() gives to handlers that run, when nothing is said.
DRAIN_TIMEOUT = 30.0
#: Seconds after which the link's thread is told again, though it was told before.
_ARMED = 0.05
#: Seconds between two signs of life of the link's thread.
_TICK = 1.0
#: Seconds without one after which it is not alive: a handler may hold Python's lock for a while.
_DEAD = 30.0
#: Seconds for an ack to be written; the link's thread is never busy for that long.
_WRITTEN = 10.0
#: Frames that settle something, within a second or two, of which a quorum queue may put off the last ones.
_MUCH = 25
#: Seconds for that, before the goodbye.
_PUT_OFF = 0.5
#: Seconds for the goodbye to the broker, at the least.
_GOODBYE = 2.0


class Worker:
    """Runs consumers in background threads, until :meth:`stop`. A ``with`` block starts and stops it.

    ::

        with fpika.worker(threads=4):
            ...

    It is made by :meth:`flask_pika.Pika.worker`, and may be started once.
    """

    def __init__(
        self,
        app: Flask,
        consumers: Sequence[Consumer],
        nodes: Sequence[Node],
        name: str,
        preparation: Preparation,
        recovery: Recovery,
        has_dead_letters: Callable[[Consumer], bool],
        threads: int = THREADS,
        drain_timeout: float = DRAIN_TIMEOUT,
    ) -> None:
        if not consumers:
            raise SetupError("there is nothing to consume; register a consumer with @fpika.consumer")
        if not isinstance(threads, int) or isinstance(threads, bool) or threads < 1:
            raise ValueError(f"threads is {threads!r}; expected a number, 1 or more")
        if not is_finite(drain_timeout) or drain_timeout < 0:
            raise ValueError(f"drain_timeout is {drain_timeout!r}; expected seconds, 0 or more")
        self._app = app
        self._preparation = preparation
        self._recovery = recovery
        self._has_dead_letters = has_dead_letters
        self.nodes = nodes
        self.threads = threads
        self.drain_timeout = drain_timeout
        self._pid = os.getpid()
        self._backlog: Backlog[Unit] = Backlog()
        self._link = Link(nodes, name, self, channels=len(consumers) + 1)
        self._subscribers = [
            Subscriber(
                consumer,
                bound_handler(app, consumer),
                _tag(app, consumer),
                self._link,
                self._backlog,
                self.arm,
                self._declare_again,
            )
            for consumer in consumers
        ]
        self._handlers: list[threading.Thread] = []
        self._begun = 0  # how many of them were started
        self._armed_until = 0.0
        self._ticked = time.monotonic()
        # What _frames_written was at the last tick, and at the one before.
        self._frames_at_tick = self._frames_a_tick_before = 0
        self._draining = False
        self._drained = threading.Event()
        self._left = 0  # deliveries that are not settled, at the last look
        # Reentrant: a signal handler may stop what is being stopped.
        self._stopping = threading.RLock()
        self._stopped: bool | None = None
        self._was_connected = False
        #: Set when the broker refused the credentials or the virtual host, before it ever let the worker in.
        #: The worker goes on trying; who runs it may think otherwise.
        self.refused: BrokerUnavailable | None = None
        #: Called once, in the link's thread, when ``refused`` is set.
        self.on_refused: Callable[[], object] = lambda: None

    @property
    def consumers(self) -> list[Consumer]:
        """What it consumes."""
        return [one.consumer for one in self._subscribers]

    # Any thread

    def start(self) -> Worker:
        """Start the threads, which connect and consume; it does not wait for that. Connects for ever.

        :raises RuntimeError: it was started before, or made before a fork; or the system has no more threads.
        """
        if os.getpid() != self._pid:
            raise RuntimeError("this worker was made in another process; make it after the fork")
        if self._link.started or self._stopped is not None:
            raise RuntimeError("this worker was started before, or stopped; make another one")
        for one in self._subscribers:
            one.state = "connecting"
        self._link.start()
        self._link.call(self._tick)
        try:
            for number in range(self.threads):
                thread = threading.Thread(target=self._work, name=f"flask-pika-handler-{number}", daemon=True)
                # Known before it runs: its first handler may ask whether it is one of these.
                self._handlers.append(thread)
                thread.start()
                self._begun += 1
        except RuntimeError:
            self._handlers.pop()
            self.stop(0.0)
            raise
        return self

    def drain(self) -> None:
        """Begin to stop, and do not wait: :meth:`stop` does. Takes nothing new from now on."""
        if self._link.started:
            self._link.call(self._drain)

    def stop(self, within: float | None = None) -> bool:
        """Drain: take nothing new, give back what no handler has begun, wait for those that run, and leave.

        :param within: seconds that handlers may go on. Default: the worker's ``drain_timeout``.
        :returns: whether all of them were done, and the broker has heard of it. Those that were not run on,
            in daemon threads, and what they were about comes again, to another worker.
        :raises RuntimeError: a handler called it, which would wait for itself.
        """
        if self._link.is_own_thread or threading.current_thread() in self._handlers:
            raise RuntimeError(
                "stop() was called by a handler or a signal's receiver: it would wait for itself"
            )
        deadline = time.monotonic() + (self.drain_timeout if within is None else within)
        with self._stopping:
            if self._stopped is None:
                done = self._stop(deadline)
                if self._stopped is None:  # a signal handler may have stopped it meanwhile
                    self._stopped = done
                    self._drained.set()  # who was interrupted by that waits no more
            return self._stopped

    def _stop(self, deadline: float) -> bool:
        if not self._link.started:
            return True
        self.drain()
        drained = self._drained.wait(max(0.0, min(deadline - time.monotonic(), threading.TIMEOUT_MAX)))
        if self._stopped is not None:
            return self._stopped
        # What was settled goes first: the goodbye follows it on the wire.
        self._link.call(self._flush)
        if self._has_settled_much:
            # A quorum queue of RabbitMQ 3.10 puts off what comes on the heels of 32 others (its
            # quorum_commands_soft_limit), for some milliseconds, and forgets it when the channel ends
            # meanwhile: what was acked would come again.
            time.sleep(_PUT_OFF)
        answered = self._link.stop(max(_GOODBYE, deadline - time.monotonic()))
        self._backlog.end(self._handlers)
        if not drained:
            logger.warning(
                "%d handlers were not done in time, and %d deliveries not settled; they come again",
                self.running,
                self._left,
            )
            return False
        for thread in self._handlers:
            thread.join(_GOODBYE)
        if not answered:
            logger.warning("RabbitMQ does not answer; what was acked last may come again")
        return answered

    def __enter__(self) -> Worker:
        return self.start()

    def __exit__(
        self, _type: type[BaseException] | None, _value: BaseException | None, _tb: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def _frames_written(self) -> int:
        """How many frames have settled something."""
        return sum(one.written for one in self._subscribers)

    @property
    def _has_settled_much(self) -> bool:
        """Whether the broker has had much to settle within the last second or two."""
        return self._frames_written - self._frames_a_tick_before > _MUCH

    @property
    def running(self) -> int:
        """How many handlers run now."""
        return self._backlog.running

    @property
    def is_live(self) -> bool:
        """Whether its threads do their work, or could."""
        begun = self._handlers[: self._begun]
        return time.monotonic() - self._ticked < _DEAD and all(thread.is_alive() for thread in begun)

    @property
    def is_ready(self) -> bool:
        """Whether every consumer consumes."""
        return self.is_live and all(one.state == "consuming" for one in self._subscribers)

    def stats(self) -> list[ConsumerStats]:
        """The numbers of each consumer at this moment: cheap, and without I/O."""
        return [one.stats() for one in self._subscribers]

    def arm(self) -> None:
        """There is something to settle: tell the link's thread, unless it is about to look."""
        # No lock: set before the telling, and cleared by that thread before it looks, so what is settled when
        # this is set will be seen. Not a bool: who sets it may be interrupted before the telling.
        now = time.monotonic()
        if now >= self._armed_until:
            self._armed_until = now + _ARMED
            self._link.call(self._flush)

    def forget(self) -> None:
        """In a forked child: let go of the connection, which is the parent's, without a word."""
        self._link.forget()

    # The handler threads

    def _work(self) -> None:
        while (unit := self._backlog.take()) is not None:
            try:
                self._run(*unit)
            except BaseException:  # a signal's receiver may exit, too
                logger.exception("the work on a delivery was cut short")
            # Nor is it kept while this thread waits: it may be large, and nobody's else.
            del unit
            if os.getpid() != self._pid:
                return  # a handler forked, and the child came back from it: the message is the parent's
            self._backlog.done()
            self.arm()

    def _run(
        self,
        subscriber: Subscriber,
        subscription: Subscription,
        deliveries: list[Delivery],
        failed: Failed | None,
    ) -> None:
        if not subscription.is_open:
            return  # the broker delivers them again
        consumer = subscriber.consumer
        if failed is not None:
            self._settle(subscriber, subscription, deliveries, failed.error, [failed.decision])
            return
        if consumer.ack == "none" and not self._ack_first(subscription, deliveries):
            return
        began = time.perf_counter()
        error = handle(self._app, consumer, subscriber.handler, deliveries)
        seconds = time.perf_counter() - began
        if os.getpid() != self._pid:
            return
        has_dead_letters = error is not None and self._has_dead_letters(consumer)
        decisions = [consumer.decide(delivery, error, has_dead_letters) for delivery in deliveries]
        if error is not None:
            log_failure(consumer, deliveries, error, decisions)
        subscriber.note(len(deliveries), error, seconds)
        self._settle(subscriber, subscription, deliveries, error, decisions)
        try:
            tell(self._app, deliveries, error, seconds)
        finally:
            # Its traceback leads back to here: until a garbage collection, it would keep the deliveries.
            del error

    def _settle(
        self,
        subscriber: Subscriber,
        subscription: Subscription,
        deliveries: list[Delivery],
        error: BaseException | None,
        decisions: list[Decision],
    ) -> None:
        """Make the copies that are to be made, and settle what needs none, or has one now."""
        actions: list[Action | None] = []
        cannot = False
        for delivery, decision in zip(deliveries, decisions, strict=True):
            action = decision.action
            if error is not None and action in (Action.RETRY, Action.DEAD):
                if not subscription.is_open:  # it is delivered again: with a copy, there would be two
                    return
                # When one of a batch was waited for in vain, not each of the others, too.
                if not cannot:
                    action = self._recovery.settle(subscriber.consumer, delivery, error, decision)
                    cannot = action is Action.GIVE_BACK
                if cannot:
                    subscriber.hold(subscription, delivery, Failed(error, decision))
                    action = None
            actions.append(action)
        subscription.settle_all(deliveries, actions)
        if error is not None:
            subscriber.note_copies(actions)

    def _ack_first(self, subscription: Subscription, deliveries: list[Delivery]) -> bool:
        """Have deliveries acked, and wait until it is written: their handler may end the process.

        Whether that was done; if not, the broker delivers them again.
        """
        subscription.settle_all(deliveries, [Action.ACK] * len(deliveries))
        written = threading.Event()

        def write() -> None:
            self._flush()
            # A turn later: over TLS, or by the public way, it is written in between.
            self._link.call(written.set)

        self._link.call(write)
        return written.wait(_WRITTEN) and subscription.is_open

    # The link's thread

    def _tick(self) -> None:
        self._ticked = time.monotonic()
        self._frames_a_tick_before, self._frames_at_tick = self._frames_at_tick, self._frames_written
        self._link.call_later(_TICK, self._tick)
        self._flush()

    def _flush(self) -> None:
        self._armed_until = 0.0
        for one in self._subscribers:
            one.flush()
        if self._draining and not self._drained.is_set():
            self._left = sum(one.outstanding for one in self._subscribers)
            if not self._left and not self._backlog.running:
                self._drained.set()

    def _drain(self) -> None:
        if self._draining:
            return
        self._draining = True
        for one in self._subscribers:
            one.drain()
        self._flush()

    # What the link says: see flask_pika.link.LinkUser

    def link_ready(self, connection: SelectConnection) -> None:
        """There is a connection: subscribe all."""
        self._was_connected = True
        watch: dict[int, Callable[[list[Arrival]], object]] = {}
        if pika_internals.AVAILABLE:
            pika_internals.watch_deliveries(connection, watch)

        def prepared() -> None:
            for one in self._subscribers:
                one.connected(connection, watch)

        self._preparation.forget()
        self._preparation.begin(connection, self._link.guarded, prepared)

    def _declare_again(self, connection: SelectConnection, queue: str, done: Callable[[], object]) -> None:
        """A queue is gone: declare it again, with all that belongs to it, if it is registered."""
        if self._preparation.has_queue(queue):
            self._preparation.begin(connection, self._link.guarded, done)
        else:
            done()

    def link_lost(self, error: Exception) -> None:  # noqa: ARG002, D102
        for one in self._subscribers:
            one.lost()
        self._flush()

    def link_failed(self, error: BrokerUnavailable) -> None:  # noqa: D102
        refused = isinstance(error, (AuthenticationRefused, VirtualHostRefused))
        if refused and not self._was_connected and self.refused is None:
            self.refused = error
            self.on_refused()

    def link_ended(self) -> None:  # noqa: D102
        for one in self._subscribers:
            one.ended()

    def link_blocked(self, blocked: bool) -> None:
        """Nothing changes: a worker publishes nothing on its connection."""


def _tag(app: Flask, consumer: Consumer) -> str:
    """What operators see of a consumer; one on each channel, so it need not be unique."""
    tag = f"{app.name}.{consumer.name} (pid {os.getpid()})"
    return tag.encode()[:255].decode(errors="ignore")
