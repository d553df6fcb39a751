"""Random histories of a pool: no double lend, no lost permit, no starved waiter, in any order of events."""

from __future__ import annotations

import threading
from collections import deque
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    precondition,
    rule,
)

from flask_pika import BrokerUnavailable, PoolTimeout
from flask_pika.config import PoolSettings
from flask_pika.pool import ChannelPool
from tests.conftest import wait_for
from tests.stand_ins import Clock, StandInSlot, World, gone


class SteppedPool(ChannelPool[StandInSlot]):
    """Waits that the test can end as a signal would."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.interrupted: set[int] = set()  # by thread

    def _wait(self, waiter: Any, seconds: float) -> None:
        waiter.served.acquire(timeout=seconds)
        if threading.get_ident() in self.interrupted:
            raise KeyboardInterrupt


class Customer:
    """A checkout that waits, in a thread of its own."""

    def __init__(self, pool: SteppedPool) -> None:
        self.slot: StandInSlot | None = None
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, args=(pool,), daemon=True)
        self.thread.start()

    def _run(self, pool: SteppedPool) -> None:
        try:
            # Longer than any time that passes: it reads the clock once more when it is seen to wait.
            self.slot = pool.checkout(1e6)
        except BaseException as exc:
            self.error = exc

    @property
    def done(self) -> bool:
        return not self.thread.is_alive()


class PoolHistory(RuleBasedStateMachine):
    """What may happen to a pool, in any order."""

    lent: Bundle[StandInSlot] = Bundle("lent")

    @initialize(size=st.integers(1, 3), overflow=st.integers(0, 2))
    def begin(self, size: int, overflow: int) -> None:
        self.clock = Clock()
        self.world = World(self.clock)
        self.limit = size + overflow
        options = PoolSettings(pool_size=size, max_overflow=overflow, pool_recycle=100)
        self.pool = SteppedPool(options, self.world.new_slot, clock=self.clock)
        self.held: set[StandInSlot] = set()
        self.queue: deque[Customer] = deque()

    def took(self, slot: StandInSlot) -> StandInSlot:
        assert slot not in self.held, "lent twice"
        assert slot.is_open, "lent dead"
        self.held.add(slot)
        return slot

    def settle(self) -> None:
        """Every permit that became free goes to the first in the queue, and to nobody else."""
        while self.queue:
            free = self.limit - len(self.held)
            first = self.queue[0]
            if not free:
                assert not first.done, "served without a permit"
                return
            wait_for(lambda first=first: first.done, "the first in the queue is served")  # type: ignore[misc]
            self.queue.popleft()
            if first.slot is None:
                # Its turn came while the broker was down: that is an answer, and the permit goes on.
                assert isinstance(first.error, BrokerUnavailable)
                assert not self.world.up
            else:
                self.took(first.slot)

    @precondition(lambda self: len(self.held) < self.limit and not self.queue)
    @rule(target=lent)
    def checkout(self) -> Any:
        try:
            return self.took(self.pool.checkout(0))
        except BrokerUnavailable:
            assert not self.world.up
            return None

    @precondition(lambda self: len(self.held) == self.limit)
    @rule()
    def checkout_in_vain(self) -> None:
        try:
            self.pool.checkout(0)
        except PoolTimeout:
            return
        raise AssertionError("more than the limit")

    @precondition(lambda self: len(self.held) == self.limit and len(self.queue) < 4)
    @rule()
    def wait(self) -> None:
        waiting = self.pool.stats().waiting
        self.queue.append(Customer(self.pool))
        wait_for(lambda: self.pool.stats().waiting == waiting + 1, "it waits")

    @precondition(lambda self: self.queue)
    @rule(which=st.integers(0, 3))
    def interrupt_a_waiter(self, which: int) -> None:
        customer = self.queue[which % len(self.queue)]
        ident = customer.thread.ident
        assert ident is not None
        self.pool.interrupted.add(ident)
        waiter = list(self.pool._waiting)[which % len(self.queue)]
        waiter.served.release()
        wait_for(lambda: customer.done, "the interrupted waiter leaves")
        assert isinstance(customer.error, KeyboardInterrupt)
        self.pool.interrupted.discard(ident)  # identifiers come again
        self.queue.remove(customer)
        assert self.pool.stats().waiting == len(self.queue)

    @rule(slot=consumes(lent), broken=st.booleans())
    def release(self, slot: StandInSlot | None, broken: bool) -> None:
        if slot is not None and slot in self.held:
            self.give_back(slot, broken)

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0, 9), broken=st.booleans(), dropped=st.booleans())
    def release_any(self, which: int, broken: bool, dropped: bool) -> None:
        slot = sorted(self.held, key=lambda slot: slot.number)[which % len(self.held)]
        if dropped:
            self.held.remove(slot)
            self.pool._lent[slot] = self.pool._lent[slot]._replace(holder=gone())
            self.pool.tend()
            self.settle()
        else:
            self.give_back(slot, broken)

    def give_back(self, slot: StandInSlot, broken: bool) -> None:
        self.held.remove(slot)
        slot.broken = broken
        self.pool.release(slot)
        self.settle()

    @rule()
    def tend(self) -> None:
        self.pool.tend()

    @rule(up=st.booleans())
    def broker(self, up: bool) -> None:
        self.world.up = up

    @rule(which=st.integers(0, 9))
    def a_connection_dies(self, which: int) -> None:
        idle = sorted(self.world.connected - self.held, key=lambda slot: slot.number)
        if idle:
            self.world.connected.discard(idle[which % len(idle)])

    @rule(seconds=st.sampled_from([1, 60, 101]))
    def time_passes(self, seconds: int) -> None:
        self.clock.now += seconds

    @invariant()
    def books_balance(self) -> None:
        if not hasattr(self, "pool"):
            return
        stats = self.pool.stats()
        assert stats.in_use == len(self.held)
        assert stats.waiting == len(self.queue)
        assert stats.open <= self.limit
        assert self.world.most_connected <= self.limit
        assert stats.idle <= stats.size
        assert not stats.waiting or stats.open == self.limit, "someone waits, and a permit is free"

    def teardown(self) -> None:
        if not hasattr(self, "pool"):
            return
        self.world.up = True
        while self.held:
            self.give_back(min(self.held, key=lambda slot: slot.number), broken=False)
        assert not self.queue
        slots = [self.pool.checkout(0) for _ in range(self.limit)]
        assert len(set(slots)) == self.limit, "a permit was lost"
        for slot in slots:
            self.pool.release(slot)
        self.pool.close()
        assert not self.world.connected
        assert self.pool.stats().open == 0


PoolHistory.TestCase.settings = settings(max_examples=400, stateful_step_count=40, deadline=None)
TestPoolHistory = PoolHistory.TestCase
