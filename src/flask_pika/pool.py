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
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from .borrowers import Borrower, Waiter
from .config import GOODBYE, PoolSettings
from .errors import PoolClosed, PoolTimeout

logger = logging.getLogger("flask_pika.pool")

#: Seconds that closing a whole pool may spend on goodbyes.
CLOSING = 2.0
#: How many borrowers a PoolTimeout names.
_NAMED = 10


class SlotLike(Protocol):
    """What the pool needs of a slot: see :class:`flask_pika.slot.Slot`."""

    born: float

    @property
    def is_open(self) -> bool: ...  # noqa: D102 - as all of these, there
    @property
    def is_connected(self) -> bool: ...  # noqa: D102
    def open(self, *, asked_at: float, deadline: float) -> bool: ...  # noqa: D102
    def probe(self) -> bool: ...  # noqa: D102
    def serve(self) -> bool: ...  # noqa: D102
    def clean(self, within: float = ...) -> bool: ...  # noqa: D102
    def close(self, within: float = ...) -> None: ...  # noqa: D102
    def forget(self) -> None: ...  # noqa: D102


S = TypeVar("S", bound=SlotLike)


class _Turn:
    """The holder of slots that the pool itself works on: a local variable of the method that does.

    When that method is interrupted, it is gone, and so the slots count as dropped: they are taken back.
    """


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
        # Slots that were returned by code which interrupted this very pool: see _is_interrupted().
        self._late: collections.deque[S] = collections.deque()
        # Set without the lock, too, by code which interrupted this very pool, and never back.
        self._closed = False

        # All below is shared, and touched only under the lock.
        self._lock = threading.RLock()
        self._idle: list[S] = []  # last in, first out: what is not needed stays at the bottom
        self._lent: dict[S, Borrower] = {}
        self._kept: set[S] = set()
        self._waiting: collections.deque[Waiter[S]] = collections.deque()
        self._opened = self._recycled = self._discarded = self._timeouts = 0

    # Checkout

    def checkout(
        self, timeout: float | None = None, where: str = "", holder: weakref.ref[object] | None = None
    ) -> S:
        """A slot with an open channel, for this caller alone, within ``timeout`` seconds.

        :param timeout: default: the pool's ``pool_timeout``.
        :param where: what the caller is, for the error that others get when they wait in vain.
        :param holder: what will return the slot. When it is gone, the slot is taken back.
        :raises PoolTimeout: every slot was in use until then.
        :raises PoolClosed: the pool was closed.
        :raises BrokerUnavailable: no node could be connected to.
        """
        if self._is_interrupted():
            raise PoolTimeout(
                "a signal handler or a finalizer asked for a channel while its own thread was at work in the"
                " pool, and would wait for itself"
            )
        asked_at = self._clock()
        patience = self._settings.pool_timeout if timeout is None else timeout
        deadline = asked_at + min(patience, threading.TIMEOUT_MAX)
        if self._late or (self._lent and not self._idle):  # read without the lock: a hint will do
            self._take_back(deadline)
        borrower = Borrower(where, threading.get_ident(), asked_at, holder)
        slot = self._acquire(borrower, patience, deadline)
        try:
            self._prepare(slot, asked_at, deadline)
        except BaseException:
            try:
                slot.close()  # a slot that could not be opened has nothing to close
            finally:
                self._give_back(slot, connected=False)
            raise
        return slot

    def _acquire(self, borrower: Borrower, patience: float, deadline: float) -> S:
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
            waiter: Waiter[S] = Waiter(borrower)
            self._waiting.append(waiter)

        try:
            # Outside the lock. A KeyboardInterrupt or a gevent.Timeout may end it as well.
            self._wait(waiter, max(0.0, deadline - self._clock()))
        except BaseException:
            late = self._stop_waiting(waiter)
            if late is not None:
                self._give_back(late, connected=late.is_connected)
            raise
        served = self._stop_waiting(waiter)
        if served is None:
            raise self._why_not(patience)
        return served

    def _wait(self, waiter: Waiter[S], seconds: float) -> None:
        waiter.served.acquire(timeout=seconds)

    def _stop_waiting(self, waiter: Waiter[S]) -> S | None:
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
            slot.close(min(GOODBYE, max(0.0, deadline - self._clock())))
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
        self._release(slot, GOODBYE)

    def _release(self, slot: S, within: float) -> None:
        if self._is_interrupted():
            self._late.append(slot)
            return
        if not self._settings.pool_size or self._closed:  # nobody will have it: no need to clean it
            try:
                slot.close(within)
            finally:
                self._give_back(slot, connected=False)
            return
        try:
            connected = slot.clean(within)
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

    def _is_interrupted(self) -> bool:
        """Whether this thread is in one of the critical sections, at this moment, further down its stack.

        Python may run anything between two instructions: a signal handler, or the garbage collector, which
        closes a suspended generator, and the ``with channel()`` in it. It must not wait for the lock, nor
        change what is half changed.
        """
        return self._lock._is_owned()  # type: ignore[attr-defined,no-any-return] # as threading.Condition does

    def _take_back(self, deadline: float | None = None) -> None:
        """Bring home the slots that nobody can return, because their holders are gone.

        Dropped without a return, mostly. Or interrupted by a signal handler's exception between two
        instructions of checkout or return. Goodbyes end at the deadline, if there is one.
        """
        # Critical section: from here on they are this thread's.
        with self._lock:
            # Not emptied before they are this thread's. More may come at its end, by a finalizer, meanwhile.
            count = len(self._late)
            late = {self._late[at] for at in range(count)}
            lost = {slot: who for slot, who in self._lent.items() if slot in late or who.is_gone}
            turn = self._book(lost, "the pool, which takes it back")
            for _ in range(count):
                self._late.popleft()
        try:
            for slot, borrower in lost.items():
                if slot not in late and not borrower.is_pool:
                    logger.warning(
                        "a channel was dropped and never returned, borrowed by %s; use 'with channel()', or"
                        " return_channel()",
                        borrower.describe(self._clock()),
                    )
                within = GOODBYE if deadline is None else min(GOODBYE, deadline - self._clock())
                self._release(slot, max(0.0, within))
        finally:
            del turn  # a traceback would keep it

    def _book(self, slots: Iterable[S], where: str) -> _Turn:
        """Under the lock: note the slots as lent to the caller, for as long as it keeps what this returns."""
        turn = _Turn()
        me = Borrower(where, threading.get_ident(), self._clock(), weakref.ref(turn), is_pool=True)
        self._lent.update(dict.fromkeys(slots, me))
        return turn

    # Upkeep

    def tend(self) -> None:
        """Serve the idle connections' heartbeats, one by one, and drop those that died. The keeper's work."""
        self._take_back()
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
            turn = self._book([slot], "the pool's keeper")
        try:
            self._give_back(slot, connected=alive, discarded=not alive)
        finally:
            del turn

    def close(self, within: float = CLOSING) -> None:
        """Lend nothing from now on; close what is idle, with goodbyes that take ``within`` seconds in all.

        What is lent is closed at its return. Waiters get :class:`PoolClosed`. Closing twice does nothing.
        """
        self._closed = True
        if self._is_interrupted():  # by a signal handler; what is idle is closed at the interpreter's exit
            return
        # Critical section: nobody is served any more, and the idle slots are this thread's.
        with self._lock:
            slots, self._idle = self._idle, []
            turn = self._book(slots, "close()")
            waiters = list(self._waiting)
            self._waiting.clear()
            for waiter in waiters:
                waiter.served.release()
        deadline = self._clock() + within
        try:
            for slot in slots:
                try:
                    slot.close(max(0.0, deadline - self._clock()))
                finally:
                    self._give_back(slot, connected=False)
        finally:
            del turn

    def forget(self) -> None:
        """In a forked child: let go of every connection, which is the parent's, without touching any.

        Takes no lock, which a thread of the parent may have held: this thread is the only one here. What is
        lent still comes home, to a pool that nobody uses.
        """
        self._lock = threading.RLock()
        for slot in [*self._idle, *self._lent, *self._kept]:
            slot.forget()

    # A look at it

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
