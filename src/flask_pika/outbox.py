"""The outbox: gets the messages of all threads to the broker over one link, and hears what became of them."""

from __future__ import annotations

import collections
import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from . import signals
from .config import PublisherSettings
from .confirms import Lane, Ledger, Outcome
from .declaring import Preparation
from .dispatcher import CHANNELS, SPARE_CHANNELS, Dispatcher
from .errors import (
    BrokerBlocked,
    BrokerUnavailable,
    PublisherClosed,
    PublisherFull,
    Unroutable,
)
from .jobs import Job, Promised, Waited
from .link import Link, LinkState
from .nacks import Nacks
from .nodes import Node
from .pika_internals import Confirm
from .wire import Envelopes

logger = logging.getLogger("flask_pika.publisher")

#: What may be on the wire without a confirm: enough for any round trip, and it keeps pika's buffer small.
_IN_FLIGHT = 5_000
_IN_FLIGHT_BYTES = 8 * 2**20
#: Seconds after which the link's thread is told again, though it was told before.
_ARMED = 0.05
#: Seconds for the goodbye to the broker.
_GOODBYE = 1.0


@dataclass(frozen=True)
class PublisherStats:
    """The publisher at one moment, and what it has done since the process began to use it."""

    #: Of its link: ``stopped``, ``connecting``, ``ready``, ``blocked``, ``backing off``, ``draining``
    state: str = LinkState.STOPPED.value
    pending: int = 0  #: messages that are not settled
    pending_bytes: int = 0  #: and their bytes
    confirmed: int = 0  #: messages that the broker took
    nacked: int = 0  #: that it did not take, and that were not sent again
    returned: int = 0  #: that reached no queue
    #: times that one was put back to be sent again: its connection or channel was lost, or it was nacked and
    #: that was not believed
    retried: int = 0
    reconnects: int = 0  #: connections after the first


class _Place:
    """A place in the queue for room. ``admitted`` is written under the outbox's lock."""

    __slots__ = ("admitted", "job", "served")

    def __init__(self, job: Job) -> None:
        self.job = job
        self.admitted = False
        self.served = threading.Lock()
        self.served.acquire()


class Outbox:
    """Takes jobs from any thread, and tells each when it is settled.

    :param envelopes: told when a broker wants shorter frames.
    :param sender: the app, for signals.
    :param preparation: what is declared before anything is sent.
    """

    def __init__(
        self,
        settings: PublisherSettings,
        nodes: Sequence[Node],
        name: str,
        envelopes: Envelopes,
        sender: Callable[[], Any],
        preparation: Preparation,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._sender = sender
        self._clock = clock
        self._dispatcher = Dispatcher(self, envelopes, sender, preparation)
        self._link = self._dispatcher.link = Link(nodes, name, self._dispatcher, CHANNELS, SPARE_CHANNELS)
        # Link.start() is for one thread at a time, and does I/O: so not under the lock below.
        self._starting = threading.RLock()
        #: Threads that are telling the link's, and hold a lock of pika's. set's methods are atomic.
        self._telling: set[int] = set()

        # All below is shared, and touched only under the lock.
        self._lock = threading.RLock()
        self._nacks: Nacks[Job] = Nacks(clock)
        self._ledger: Ledger[Job] = Ledger(settings.max_messages, settings.max_bytes, self._nacks)
        self._places: collections.deque[_Place] = collections.deque()
        # Until when the link's thread is known to look by itself. Not a bool: a signal handler's exception
        # may strike between the word that it is told, and the telling.
        self._armed_until = 0.0
        # Futures that somebody has to watch the deadline of. Not a count: a signal handler's exception
        # between two instructions would make it wrong for good.
        self._promised: set[Job] = set()
        self._closed = False  # nothing comes in any more; set without the lock, read by any thread
        self._ended = False  # somebody is at the rest of close()
        self._emptied: threading.Event | None = None  # set when nobody waits any more, and close() need not
        self._counts = dict.fromkeys(Outcome, 0)
        self._connections = 0

    # For any thread: coming in, and giving up

    @property
    def is_own_thread(self) -> bool:
        """Whether the caller is the link's thread: a future's callback, or a signal's receiver."""
        return self._link.is_own_thread

    @property
    def is_interrupted(self) -> bool:
        """Whether this thread is in one of the critical sections, at this moment, further down its stack.

        Python may run anything between two instructions: a signal handler, or a generator that the garbage
        collector closes. It must not change what is half changed.
        """
        owned: bool = self._lock._is_owned()  # type: ignore[attr-defined] # as threading.Condition does
        return owned or threading.get_ident() in self._telling

    def admit(self, job: Job) -> None:
        """Put a job into the ledger as soon as there is room for it."""
        # Critical section: is there room, and nobody who came before?
        with self._lock:
            if self._closed:
                raise self._closed_error()
            place: _Place | None = None
            wake = False
            if not self._places and self._ledger.fits(job.size):
                self._add(job)
                wake = self._arm()
            elif self._link.is_own_thread:  # which would make the room that it waits for
                raise self._full()
            else:
                place = _Place(job)
                self._places.append(place)
        if wake:
            self._wake()
        if place is None:
            return
        try:
            # Outside the lock. A KeyboardInterrupt or a gevent.Timeout may end it as well.
            place.served.acquire(timeout=min(max(0.0, job.deadline - self._clock()), threading.TIMEOUT_MAX))
        except BaseException:
            if self._leave(place):
                self.give_up([job])
            raise
        if not self._leave(place):
            if self._closed:
                raise self._closed_error()
            if self._link.state is LinkState.BLOCKED or self._link.error is not None:
                raise self.never_sent()
            raise self._full()

    def _leave(self, place: _Place) -> bool:
        """From here on nobody admits this one; whether somebody did, even in the last moment."""
        with self._lock:
            if not place.admitted and place in self._places:
                self._places.remove(place)
            return place.admitted

    def _add(self, job: Job) -> None:
        if isinstance(job, Promised):
            self._promised.add(job)
        self._ledger.add(job)

    def _arm(self) -> bool:
        """Under the lock: whether the link's thread is still to be told that there is something to do."""
        now = self._clock()
        wake = now >= self._armed_until
        if wake:
            self._armed_until = now + _ARMED
        return wake

    def _wake(self) -> None:
        ident = threading.get_ident()
        try:
            self._telling.add(ident)
            if not self._link.started:
                with self._starting:
                    self._link.start()
            self._link.call(self._dispatcher.look)
            return
        except (OSError, RuntimeError) as exc:
            # No more threads or files, or the interpreter's end. Who comes next tries again.
            self._armed_until = 0.0
            error = BrokerUnavailable(f"the publisher's thread cannot be started; nothing was sent: {exc}")
            error.__cause__ = exc
            self._link.error = error
            logger.warning("the publisher's thread cannot be started: %s", exc)
        finally:
            self._telling.discard(ident)
        # That thread is who watches the deadlines, and who would tell.
        self.finish(self.give_up(self.unsettled(), error))

    def nudge(self) -> None:
        """Tell the link's thread, in case somebody was interrupted who was about to."""
        with self._lock:
            wake = self._ledger.waits and self._arm()
        if wake:
            self._wake()

    def _make_room(self) -> bool:
        """Under the lock: admit who waits for room, in order; whether the link's thread is to be told."""
        wake = False
        while self._places and self._ledger.fits(self._places[0].job.size):
            place = self._places.popleft()
            self._add(place.job)
            place.admitted = True
            place.served.release()
            wake = self._arm() or wake
        return wake

    def give_up(self, jobs: Sequence[Job], error: Exception | None = None) -> list[Job]:
        """Nobody waits for these any more; those that were not settled, with the error to be told.

        :param error: default: that there was no time, and whether they were sent.
        """
        with self._lock:
            gone = self._ledger.give_up(jobs)
            self._promised.difference_update(gone)
            for job in gone:
                # Now: the broker's word may still come, for nobody.
                if error is not None:
                    job.error = error
                else:
                    job.error = self._why_given_up(job)
            self._counts[Outcome.NACKED] += sum(job.outcome is Outcome.NACKED for job in gone)
            # What is given up may have been what the rest waited for.
            wake = self._make_room() or (self._ledger.waits and self._arm())
            self._look_if_empty()
        if wake:
            self._wake()
        return gone

    def _why_given_up(self, job: Job) -> Exception | None:
        known = job.sent or job.outcome is Outcome.NACKED
        return job.verdict() if known else self.never_sent()

    def unsettled(self) -> list[Job]:
        """The jobs whose callers still wait."""
        with self._lock:
            return self._ledger.unsettled()

    @staticmethod
    def _closed_error() -> PublisherClosed:
        return PublisherClosed("the publisher was closed, by close() or the process's end; nothing was sent")

    def _full(self) -> PublisherFull:
        settings, ledger = self._settings, self._ledger
        return PublisherFull(
            f"no room before the deadline: {ledger.messages} messages of {ledger.bytes} bytes are pending"
            f" (max_messages is {settings.max_messages}, max_bytes {settings.max_bytes}; the link is"
            f" {self._link.state.value}). Nothing was sent"
        )

    def never_sent(self) -> BrokerUnavailable:
        """Why a message that waited in vain was not sent."""
        state, error = self._link.state, self._link.error
        if state is LinkState.BLOCKED:
            return BrokerBlocked(
                "RabbitMQ takes no messages, for want of memory or disk, and took none before the deadline;"
                " nothing was sent"
            )
        if error is None:
            return BrokerUnavailable(
                f"the message was not sent before its deadline; the link is {state.value}"
            )
        result = type(error)(f"the message was not sent before its deadline: {error}")
        result.__cause__ = error
        return result

    # For any thread: a look at it, and its end

    def stats(self) -> PublisherStats:
        """The numbers of this moment. Holds the lock for the microsecond that it takes to read them."""
        with self._lock:
            return PublisherStats(
                state=self._link.state.value,
                pending=self._ledger.messages,
                pending_bytes=self._ledger.bytes,
                confirmed=self._counts[Outcome.CONFIRMED],
                nacked=self._counts[Outcome.NACKED],
                returned=self._counts[Outcome.RETURNED],
                retried=self._ledger.retried,
                reconnects=max(0, self._connections - 1),
            )

    def forsake(self) -> None:
        """Nobody can use it any more: its thread ends by itself, soon. Takes no lock."""
        self._link.forsaken = True

    def close(self, within: float) -> None:
        """Take nothing new; wait ``within`` seconds for what is pending; tell the rest, and leave."""
        if self.is_own_thread:
            raise RuntimeError("close() was called in the publisher's own thread, and would wait for itself")
        self._closed = True
        if self.is_interrupted:  # by a signal handler; the rest follows at the interpreter's end
            return
        # Critical section: nothing comes in any more.
        with self._lock:
            if self._ended:
                return
            self._ended = True
            places, self._places = list(self._places), collections.deque()
            for place in places:
                place.served.release()
            self._emptied = emptied = threading.Event()
            self._look_if_empty()
        emptied.wait(within)
        self.give_up_the_rest()
        self._link.stop(_GOODBYE)

    def _look_if_empty(self) -> None:
        """Under the lock: whoever waits for the end need not wait for what nobody waits for."""
        if self._emptied is not None and not self._ledger.unsettled():
            self._emptied.set()

    def give_up_the_rest(self) -> None:
        """Nothing is sent any more: tell who still waits, and log how many these are."""
        rest = self.give_up(self.unsettled())
        self.finish(rest)
        if rest:
            nacked = sum(job.outcome is Outcome.NACKED for job in rest)
            never_sent = sum(not job.sent and job.outcome is not Outcome.NACKED for job in rest)
            logger.warning(
                "%d messages were not confirmed before the publisher's end: %d never sent, %d unknown%s",
                len(rest),
                never_sent,
                len(rest) - never_sent - nacked,
                f", {nacked} nacked" if nacked else "",
            )

    def forget(self) -> None:
        """In a forked child: let go of the connection, which is the parent's, without a word."""
        self._link.forget()

    # For the dispatcher, in the link's thread

    def take(self, main_ready: bool, suspects_ready: bool) -> tuple[list[Job], list[Job]]:
        """What goes on the wire now: on the main lane, and on the one for suspects, where they are ready."""
        with self._lock:
            return self._take(main_ready, suspects_ready)

    def _take(self, main_ready: bool, suspects_ready: bool) -> tuple[list[Job], list[Job]]:
        self._armed_until = 0.0
        ledger = self._ledger
        jobs = ledger.take(_IN_FLIGHT, _IN_FLIGHT_BYTES) if main_ready and ledger.waits else []
        return jobs, ledger.take_suspects() if suspects_ready and not len(ledger.suspects) else []

    def settle(
        self, lane: Lane[Job], confirms: list[Confirm], main_ready: bool, suspects_ready: bool
    ) -> tuple[list[Job], list[Job], list[Job]]:
        """What the broker's confirms on one of the lanes settle, and what goes in its place, as in take()."""
        settled: list[Job] = []
        with self._lock:
            for tag, multiple, ack in confirms:
                settled += self._ledger.settle(lane, tag, multiple, ack)
            self._note(settled)
            return (settled, *self._take(main_ready, suspects_ready))

    def returned(
        self, lane: Lane[Job], message_id: str, exchange: str, routing_key: str, reply: tuple[int, str]
    ) -> None:
        """A Basic.Return on one of the lanes."""
        with self._lock:
            self._ledger.returned(lane, message_id, exchange, routing_key, reply)

    def channel_closed(self, lane: Lane[Job], code: int, text: str) -> list[Job]:
        """The broker closed one of the lanes' channels; what that settled."""
        with self._lock:
            return self._note(self._ledger.channel_closed(lane, code, text))

    def connected(self) -> None:
        """There is a new connection."""
        with self._lock:
            self._connections += 1

    def connection_lost(self, blame: tuple[int, str] | None) -> list[Job]:
        """The connection is gone; what that settled."""
        with self._lock:
            return self._note(self._ledger.connection_lost(blame))

    @property
    def has_suspects(self) -> bool:
        """Whether a lane for suspects is needed. Without the lock: who comes now will be looked for again."""
        return self._ledger.has_suspects

    @property
    def has_promised(self) -> bool:
        """Whether there are futures to be watched; without the lock, as has_suspects."""
        return bool(self._promised)

    def late(self) -> list[Job]:
        """The futures' jobs whose deadline has passed, and which nobody needs to watch any more."""
        moment = self._clock()
        with self._lock:
            late = [job for job in self._promised if job.deadline <= moment]
            self._promised.difference_update(late)
            return late

    # Nacks that are not believed; see flask_pika.nacks

    @property
    def main_lane(self) -> Lane[Job]:
        """The lane of the main channel: the link's thread alone makes another one of it."""
        return self._ledger.main

    @property
    def suspects_lane(self) -> Lane[Job]:
        """The lane of the channel for suspects."""
        return self._ledger.suspects

    @property
    def has_tries(self) -> bool:
        """Whether there will be something to do about them; without the lock, as has_suspects."""
        return self._nacks.has_tries

    def next_try(self) -> float:
        """In how many seconds that is."""
        with self._lock:
            return max(0.0, self._nacks.when() - self._clock())

    def wants_new_channel(self) -> bool:
        """Whether what is to be done about them now wants a new main channel."""
        with self._lock:
            return self._nacks.wants_new(self._ledger.main.number, self._ledger.main.opened)

    def renew(self) -> Lane[Job]:
        """The main channel has a successor, just opened; the lane of the earlier one."""
        with self._lock:
            return self._ledger.renew(self._clock())

    def try_again(self) -> None:
        """Put back what was nacked, and whose time has come."""
        with self._lock:
            self._ledger.try_again()

    def _note(self, settled: list[Job]) -> list[Job]:
        """Under the lock: the ledger has settled these, so there is room."""
        for job in settled:
            self._counts[job.outcome] += 1  # type: ignore[index]
        if self._promised:
            self._promised.difference_update(settled)
        self._make_room()
        self._look_if_empty()
        return settled

    # Telling

    def finish(self, jobs: Iterable[Job]) -> None:
        """Tell the jobs' callers, and whoever listens to signals."""
        heard = signals.anybody_listens()
        for job in jobs:
            try:
                job.finish()
                if heard and not isinstance(job, Waited):  # whose own thread signals it
                    self.signal(job, job.verdict())
            except BaseException:
                # A future's callback, or a receiver, that wants to end the thread: this one is not its own.
                logger.exception("a callback of a message's future raised")

    def signal(self, job: Job, error: Exception | None) -> None:
        """Tell whoever listens what became of a message."""
        if signals.anybody_listens():
            envelope = job.envelope
            about = {
                "message_id": job.message_id,
                "exchange": envelope.exchange,
                "routing_key": envelope.routing_key,
            }
            if error is None:
                signals.send(signals.published, self._sender, **about)
            elif isinstance(error, Unroutable):
                signals.send(signals.returned, self._sender, error=error, **about)
            else:
                signals.send(signals.failed, self._sender, error=error, **about)
