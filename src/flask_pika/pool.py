"""The pool: which slot goes to whom, and when.

Everything is decided under one lock, and nothing else happens there: what has to be opened, probed or closed
is done outside, on a slot that this thread then owns. No critical section waits or switches greenlets, so
under gevent the lock is never contended, and a ``gevent.Timeout`` can strike only in a wait.

A slot is always in exactly one of these places:

1. ``_idle``: open, nobody uses it;
2. ``_lent``: lent to a borrower, or on its way to or from one (being opened, probed, cleaned, closed);
3. ``_kept``: in the hands of the keeper, for the microseconds that a heartbeat takes.

Their sum is bounded by the limit. A waiter waits only when ``_idle`` is empty, so that the first in the queue
is always the next to be served, and nobody overtakes it.
"""

from __future__ import annotations

import collections
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, NamedTuple, Protocol, TypeVar

from .config import PoolSettings
from .errors import PoolClosed, PoolTimeout

logger = logging.getLogger("flask_pika.pool")

#: Seconds that closing a whole pool may spend on goodbyes.
CLOSING = 2.0
#: How many borrowers a PoolTimeout names.
_NAMED = 10


class Holds(Protocol):
    """What the pool needs of a slot: see :class:`flask_pika.slot.Slot`."""

    born: float

    @property
    def is_open(self) -> bool: ...  # noqa: D102 - as all of these, there
    @property
    def is_connected(self) -> bool: ...  # noqa: D102
    def open(self, *, asked_at: float, deadline: float) -> bool: ...  # noqa: D102
    def probe(self) -> bool: ...  # noqa: D102
    def serve(self) -> bool: ...  # noqa: D102
    def clean(self) -> bool: ...  # noqa: D102
    def close(self, within: float = ...) -> None: ...  # noqa: D102
    def forget(self) -> None: ...  # noqa: D102


S = TypeVar("S", bound=Holds)


@dataclass(frozen=True)
class PoolStats:
    """The pool at one moment, and what it has done since the process began to use it."""

    size: int  #: channels that are kept open, at the most (``pool_size``)
    open: int  #: slots in existence: idle, in use, or being opened or closed
    idle: int  #: open, and nobody uses them
    in_use: int  #: lent, or on their way to or from a borrower
    waiting: int  #: threads that wait for a channel
    opened: int  #: connections opened
    recycled: int  #: connections closed for their age
    discarded: int  #: connections given up: lost, broken, or left in a state that nobody else may have
    timeouts: int  #: checkouts that found no free channel before their deadline


class Borrower(NamedTuple):
    """Who holds a slot, for the error that others get."""

    where: str  # an endpoint, or what else the checkout was made from
    thread: int  # its identifier; the name is looked up when somebody wants to read it
    since: float

    def describe(self, now: float) -> str:
        """Who this is, in words."""
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        name = names.get(self.thread, self.thread)  # one that has ended, or a greenlet, has no name
        return (
            f"{self.where or 'code outside of an app context'} in thread {name} for {now - self.since:.1f} s"
        )


class _Waiter(Generic[S]):
    """A place in the queue. ``slot`` is written under the pool's lock, before ``served`` is released."""

    __slots__ = ("borrower", "served", "slot")

    def __init__(self, borrower: Borrower) -> None:
        self.borrower = borrower
        self.slot: S | None = None
        # A held lock is the lightest thing to wait for with a timeout.
        self.served = threading.Lock()
        self.served.acquire()


class ChannelPool(Generic[S]):
    """Lends slots, each to one borrower at a time, in the order in which they asked.

    :param new_slot: makes a slot that is not open yet; does no I/O.
    :param label: the broker's name in errors and logs, without secrets.
    :param on_open: called, without the lock, when a connection was opened: there is something to keep.
    """

    def __init__(
        self,
        settings: PoolSettings,
        new_slot: Callable[[], S],
        *,
        label: str = "",
        clock: Callable[[], float] = time.monotonic,
        on_open: Callable[[], object] = lambda: None,
    ) -> None:
        self._settings = settings
        self._new_slot = new_slot
        self._label = label
        self._clock = clock
        self._on_open = on_open
        #: Slots whose borrower was garbage-collected. Only appended to without the lock, which a collector
        #: may not take: it can strike while this very thread holds it.
        self.orphans: collections.deque[S] = collections.deque()

        # All below is shared, and touched only under the lock.
        self._lock = threading.Lock()
        self._idle: list[S] = []  # last in, first out: what is not needed stays at the bottom
        self._lent: dict[S, Borrower] = {}
        self._kept: set[S] = set()
        self._waiting: collections.deque[_Waiter[S]] = collections.deque()
        self._closed = False
        self._opened = self._recycled = self._discarded = self._timeouts = 0

    # Checkout

    def checkout(self, timeout: float | None = None, where: str = "") -> S:
        """A slot with an open channel, for this caller alone, within ``timeout`` seconds.

        :param timeout: default: the pool's ``pool_timeout``.
        :param where: what the caller is, for the error that others get when they wait in vain.
        :raises PoolTimeout: every slot was in use until then.
        :raises PoolClosed: the pool was closed.
        :raises BrokerUnavailable: no node could be connected to.
        """
        asked_at = self._clock()
        patience = self._settings.pool_timeout if timeout is None else timeout
        deadline = asked_at + patience
        if self.orphans:
            self._adopt_orphans()
        borrower = Borrower(where, threading.get_ident(), asked_at)
        slot = self._acquire(borrower, patience)
        try:
            self._prepare(slot, asked_at, deadline)
        except BaseException:
            try:
                slot.close()  # a slot that could not be opened has nothing to close
            finally:
                self._give_back(slot, connected=False)
            raise
        return slot

    def _acquire(self, borrower: Borrower, patience: float) -> S:
        # Critical section: is a slot free, may there be one more, or has this caller to wait?
        with self._lock:
            if self._closed:
                raise self._closed_error()
            if self._idle:
                slot = self._idle.pop()
                self._lent[slot] = borrower
                return slot
            # A slot in the keeper's hands comes back at once: one waiter for each is better off waiting.
            if len(self._waiting) >= len(self._kept) and self._count() < self._settings.limit:
                slot = self._new_slot()
                self._lent[slot] = borrower
                return slot
            waiter: _Waiter[S] = _Waiter(borrower)
            self._waiting.append(waiter)

        try:
            # Outside the lock. A KeyboardInterrupt or a gevent.Timeout may end it as well.
            self._wait(waiter, min(max(0.0, patience), threading.TIMEOUT_MAX))
        except BaseException:
            late = self._stop_waiting(waiter)
            if late is not None:
                self._give_back(late, connected=late.is_connected)
            raise
        served = self._stop_waiting(waiter)
        if served is None:
            raise self._why_not(patience)
        return served

    def _wait(self, waiter: _Waiter[S], seconds: float) -> None:
        waiter.served.acquire(timeout=seconds)

    def _stop_waiting(self, waiter: _Waiter[S]) -> S | None:
        """From here on nobody serves this waiter; what it was given until now, even in the last moment."""
        with self._lock:
            if waiter.slot is None and waiter in self._waiting:
                self._waiting.remove(waiter)
            return waiter.slot

    def _why_not(self, patience: float) -> PoolClosed | PoolTimeout:
        # Critical section: who holds the slots now?
        with self._lock:
            if self._closed:
                return self._closed_error()
            self._timeouts += 1
            holders = sorted(self._lent.values(), key=lambda borrower: borrower.since)
            waiting = len(self._waiting)
        now = self._clock()
        named = "; ".join(holder.describe(now) for holder in holders[:_NAMED])
        more = f"; and {len(holders) - _NAMED} more" if len(holders) > _NAMED else ""
        return PoolTimeout(
            f"no channel became free within {patience:g} s: {self._label} lends"
            f" {self._settings.limit:g} at a time, {len(holders)} are in use, {waiting} more callers wait."
            f" Held by: {named}{more}. Return channels sooner, or raise pool_size or pool_timeout"
        )

    def _closed_error(self) -> PoolClosed:
        return PoolClosed(f"the pool for {self._label} was closed and lends no more channels")

    def _prepare(self, slot: S, asked_at: float, deadline: float) -> None:
        """Make sure that the channel is open, alive and young enough. I/O: outside the lock."""
        settings = self._settings
        was_connected = slot.born != 0.0
        recycled = 0 <= settings.pool_recycle < asked_at - slot.born and was_connected
        if recycled:
            slot.close()
        elif slot.probe() if settings.pool_pre_ping else slot.is_open:
            return
        opened = slot.open(asked_at=asked_at, deadline=deadline)
        if opened:
            with self._lock:
                self._opened += 1
                self._recycled += recycled
                self._discarded += was_connected and not recycled
            self._on_open()

    # Return

    def release(self, slot: S) -> None:
        """Take a slot back from its borrower, clean it, and lend it to the next. Raises no broker's error."""
        try:
            connected = slot.clean()
        except BaseException:
            self.discard(slot)
            raise
        self._give_back(slot, connected, discarded=not connected)

    def discard(self, slot: S) -> None:
        """Take a slot back and close its connection; the permit is free when that is done."""
        try:
            slot.close()
        finally:
            self._give_back(slot, connected=False, discarded=True)

    def _give_back(self, slot: S, connected: bool, discarded: bool = False) -> None:
        """Let go of a slot that this thread owns: to the first waiter, to the idle ones, or for good."""
        # Critical section: where does the slot go?
        with self._lock:
            self._discarded += discarded
            if self._waiting:
                waiter = self._waiting.popleft()
                waiter.slot = slot
                self._lent[slot] = waiter.borrower
                waiter.served.release()
                return
            if not connected:
                del self._lent[slot]
                return
            surplus = self._closed or self._count() > self._settings.pool_size
            if not surplus:
                del self._lent[slot]
                self._idle.append(slot)
                return
        try:
            slot.close()
        finally:
            self._give_back(slot, connected=False)

    def _adopt_orphans(self) -> None:
        """Bring home the slots whose borrowers were garbage-collected without a return."""
        while self.orphans:
            try:
                slot = self.orphans.popleft()
            except IndexError:  # another thread was faster
                return
            with self._lock:
                borrower = self._lent.get(slot)
            if borrower is None:
                continue
            logger.warning(
                "a channel was dropped and never returned, borrowed by %s; use 'with channel()', or"
                " return_channel()",
                borrower.describe(self._clock()),
            )
            self.release(slot)

    # Upkeep

    def tend(self) -> None:
        """Serve the idle connections' heartbeats, one by one, and drop those that died. The keeper's work."""
        self._adopt_orphans()
        with self._lock:
            todo = list(self._idle)
        for slot in todo:
            # Critical section: is it still idle? Then nobody gets it until it is back.
            with self._lock:
                if slot not in self._idle:
                    continue
                place = self._idle.index(slot)
                del self._idle[place]
                self._kept.add(slot)
            alive = False
            try:
                alive = slot.serve()
                if not alive:
                    slot.close()
            finally:
                self._end_keeping(slot, place, alive)

    def _end_keeping(self, slot: S, place: int, alive: bool) -> None:
        # Critical section: back to its place among the idle, unless somebody waits.
        with self._lock:
            self._kept.remove(slot)
            if alive and not self._waiting and not self._closed:
                self._idle.insert(place, slot)
                return
            self._lent[slot] = Borrower("the pool's keeper", threading.get_ident(), self._clock())
        self._give_back(slot, connected=alive, discarded=not alive)

    def close(self, within: float = CLOSING) -> None:
        """Lend nothing from now on; close what is idle, with goodbyes that take ``within`` seconds in all.

        What is lent is closed at its return. Waiters get :class:`PoolClosed`. Closing twice does nothing.
        """
        # Critical section: nobody is served any more, and the idle slots are this thread's.
        with self._lock:
            self._closed = True
            slots, self._idle = self._idle, []
            closer = Borrower("close()", threading.get_ident(), self._clock())
            self._lent.update(dict.fromkeys(slots, closer))
            waiters = list(self._waiting)
            self._waiting.clear()
            for waiter in waiters:
                waiter.served.release()
        deadline = self._clock() + within
        for slot in slots:
            try:
                slot.close(max(0.0, deadline - self._clock()))
            finally:
                self._give_back(slot, connected=False)

    def forget(self) -> None:
        """In a forked child: let go of every connection, which is the parent's, without touching any.

        Takes no lock, which a thread of the parent may have held: this thread is the only one here. What is
        lent still comes home, to a pool that nobody uses.
        """
        self._lock = threading.Lock()
        for slot in [*self._idle, *self._lent, *self._kept]:
            slot.forget()

    # A look at it

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._closed

    def _count(self) -> int:
        return len(self._idle) + len(self._lent) + len(self._kept)

    def stats(self) -> PoolStats:
        """The numbers of this moment. Holds the lock for the microsecond that it takes to read them."""
        with self._lock:
            return PoolStats(
                size=self._settings.pool_size,
                open=self._count(),
                idle=len(self._idle) + len(self._kept),
                in_use=len(self._lent),
                waiting=len(self._waiting),
                opened=self._opened,
                recycled=self._recycled,
                discarded=self._discarded,
                timeouts=self._timeouts,
            )

    def __repr__(self) -> str:
        now = self.stats()
        state = "closed" if self._closed else f"{now.in_use} in use, {now.idle} idle"
        return (
            f"<ChannelPool {self._label}: {state}, {self._settings.limit:g} at the most,"
            f" {now.waiting} waiting>"
        )
