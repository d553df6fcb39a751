"""The pool's decisions, with stand-ins for connections and time."""

from __future__ import annotations

import logging
import re
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from flask_pika import BrokerUnavailable, PoolClosed, PoolTimeout
from flask_pika.borrowers import Borrower, Waiter
from flask_pika.config import UNPOOLED, PoolSettings
from flask_pika.pool import ChannelPool, PoolStats
from tests.conftest import wait_for
from tests.stand_ins import Clock, Holder, StandInSlot, World, gone


class Pooled:
    """A pool over stand-ins."""

    def __init__(self, settings: PoolSettings | None = None, **given: Any) -> None:
        self.clock = Clock()
        self.world = World(self.clock)
        settings = settings or PoolSettings(**{"pool_size": 2, **given})
        self.pool: ChannelPool[StandInSlot] = ChannelPool(
            settings, self.world.new_slot, label="amqp://h", clock=self.clock
        )

    @property
    def stats(self) -> PoolStats:
        return self.pool.stats()

    def in_thread(self, timeout: float = 30) -> Checkout:
        before = self.stats.waiting
        checkout = Checkout(self.pool, timeout)
        wait_for(lambda: checkout.done or self.stats.waiting > before, "a checkout to be served or to wait")
        return checkout


class Checkout:
    """A checkout in a thread of its own."""

    def __init__(self, pool: ChannelPool[StandInSlot], timeout: float) -> None:
        self.slot: StandInSlot | None = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(pool, timeout), name="customer")
        self._thread.start()

    def _run(self, pool: ChannelPool[StandInSlot], timeout: float) -> None:
        try:
            self.slot = pool.checkout(timeout, "endpoint 'buy'")
        except BaseException as exc:
            self.error = exc

    @property
    def done(self) -> bool:
        return not self._thread.is_alive()

    def result(self) -> StandInSlot:
        self._thread.join(30)
        assert self.done, "the checkout hangs"
        if self.error is not None:
            raise self.error
        assert self.slot is not None
        return self.slot


def test_opens_when_needed_and_reuses_the_last_returned() -> None:
    pooled = Pooled(pool_size=3)
    assert pooled.stats.open == 0
    a, b = pooled.pool.checkout(), pooled.pool.checkout()
    assert pooled.stats.opened == 2
    pooled.pool.release(a)
    pooled.pool.release(b)
    assert pooled.pool.checkout() is b, "last in, first out: what is not needed may rest"
    assert pooled.pool.checkout() is a
    assert pooled.stats.opened == 2


def test_never_more_than_the_size_are_connected() -> None:
    pooled = Pooled(pool_size=2)
    held = [pooled.pool.checkout(), pooled.pool.checkout()]
    with pytest.raises(PoolTimeout):
        pooled.pool.checkout(timeout=0)
    assert pooled.world.most_connected == 2
    for slot in held:
        pooled.pool.release(slot)


def test_the_timeout_tells_size_use_waiting_and_who_holds_the_rest() -> None:
    pooled = Pooled(pool_size=1)
    held = pooled.in_thread().result()
    pooled.clock.now += 12
    with pytest.raises(PoolTimeout) as caught:
        pooled.pool.checkout(timeout=0)
    message = str(caught.value)
    assert "within 0 s" in message
    assert "1 at a time, 1 are in use, 0 more callers wait" in message
    assert re.search(r"endpoint 'buy' in thread \d+ for 12\.0 s", message), message
    assert "amqp://h" in message
    assert pooled.stats.timeouts == 1
    pooled.pool.release(held)


def test_a_crowd_of_holders_does_not_make_a_crowd_of_an_error() -> None:
    pooled = Pooled(pool_size=30)
    held = [pooled.pool.checkout() for _ in range(30)]
    with pytest.raises(PoolTimeout, match="and 20 more"):
        pooled.pool.checkout(timeout=0)
    for slot in held:
        pooled.pool.release(slot)


def test_waiters_are_served_in_order_and_nobody_overtakes() -> None:
    pooled = Pooled(pool_size=1)
    held = pooled.pool.checkout()
    queue = [pooled.in_thread() for _ in range(5)]
    for waiter in queue:
        assert not waiter.done
        pooled.pool.release(held)
        held = waiter.result()
        with pytest.raises(PoolTimeout):
            pooled.pool.checkout(timeout=0)
    pooled.pool.release(held)
    assert pooled.stats.idle == 1


def test_a_waiter_that_gave_up_leaves_nothing_behind() -> None:
    pooled = Pooled(pool_size=1)
    held = pooled.pool.checkout()
    with pytest.raises(PoolTimeout):
        pooled.pool.checkout(timeout=0)
    assert pooled.stats.waiting == 0
    pooled.pool.release(held)
    assert (pooled.stats.idle, pooled.stats.in_use, pooled.stats.open) == (1, 0, 1)


class InterruptiblePool(ChannelPool[StandInSlot]):
    """Its waits end as a signal or a gevent.Timeout would end them: before or after being served."""

    before: Callable[[], object] = staticmethod(lambda: None)

    def _wait(self, waiter: Any, seconds: float) -> None:
        self.before()
        raise KeyboardInterrupt


@pytest.mark.parametrize("served_first", [False, True])
def test_an_interrupted_waiter_leaves_nothing_and_takes_nothing(served_first: bool) -> None:
    clock = Clock()
    pool = InterruptiblePool(PoolSettings(pool_size=1), World(clock).new_slot, clock=clock)
    held = pool.checkout()
    if served_first:
        pool.before = lambda: pool.release(held)
    with pytest.raises(KeyboardInterrupt):
        pool.checkout()
    if not served_first:
        pool.release(held)
    assert (pool.stats().idle, pool.stats().in_use, pool.stats().waiting) == (1, 0, 0)
    assert pool.checkout() is held
    pool.release(held)


def test_a_late_slot_of_an_interrupted_waiter_goes_to_the_next_in_the_queue() -> None:
    pooled = Pooled(pool_size=1)
    held = pooled.pool.checkout()
    next_one: list[Checkout] = []

    def wait(waiter: Any, seconds: float) -> None:
        del pooled.pool._wait
        next_one.append(pooled.in_thread())
        pooled.pool.release(held)  # goes to the interrupted one, which is first
        raise KeyboardInterrupt

    pooled.pool._wait = wait  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        pooled.pool.checkout()
    assert next_one[0].result() is held
    pooled.pool.release(held)


def test_a_connection_that_fails_to_open_gives_its_permit_back() -> None:
    pooled = Pooled(pool_size=1)
    pooled.world.up = False
    for _ in range(3):
        with pytest.raises(BrokerUnavailable):
            pooled.pool.checkout()
    assert pooled.stats.open == 0
    pooled.world.up = True
    pooled.pool.release(pooled.pool.checkout())


def test_an_interrupted_open_gives_its_permit_to_the_next_waiter() -> None:
    pooled = Pooled(pool_size=1)
    held = pooled.pool.checkout()
    queue = [pooled.in_thread() for _ in range(2)]
    pooled.world.interrupt = KeyboardInterrupt()
    held.broken = True
    pooled.pool.release(held)
    with pytest.raises(KeyboardInterrupt):
        queue[0].result()
    with pytest.raises(KeyboardInterrupt):
        queue[1].result()
    assert pooled.stats.open == 0
    pooled.world.interrupt = None
    pooled.pool.release(pooled.pool.checkout())


def test_a_dead_slot_is_replaced_at_checkout() -> None:
    pooled = Pooled(pool_size=1)
    slot = pooled.pool.checkout()
    pooled.pool.release(slot)
    pooled.world.connected.clear()  # the broker closed it
    again = pooled.pool.checkout()
    assert again.is_open
    assert (pooled.stats.opened, pooled.stats.discarded) == (2, 1)
    pooled.pool.release(again)


@pytest.mark.parametrize(("age", "recycled"), [(599, 0), (601, 1)])
def test_a_channel_past_its_age_is_replaced_at_checkout(age: float, recycled: int) -> None:
    pooled = Pooled(pool_size=1, pool_recycle=600)
    pooled.pool.release(pooled.pool.checkout())
    pooled.clock.now += age
    pooled.pool.release(pooled.pool.checkout())
    assert pooled.stats.recycled == recycled
    assert pooled.stats.opened == 1 + recycled
    assert pooled.stats.discarded == 0
    assert len(pooled.world.connected) == 1


def test_overflow_is_opened_when_needed_and_closed_at_return() -> None:
    pooled = Pooled(pool_size=1, max_overflow=2)
    held = [pooled.pool.checkout() for _ in range(3)]
    with pytest.raises(PoolTimeout):
        pooled.pool.checkout(timeout=0)
    for slot in held:
        pooled.pool.release(slot)
    assert pooled.stats.idle == pooled.stats.open == len(pooled.world.connected) == 1


def test_overflow_goes_to_a_waiter_before_it_is_closed() -> None:
    pooled = Pooled(pool_size=1, max_overflow=1)
    held = [pooled.pool.checkout(), pooled.pool.checkout()]
    waiter = pooled.in_thread()
    pooled.pool.release(held[1])
    assert waiter.result() is held[1]
    assert pooled.stats.opened == 2
    pooled.pool.release(held[0])
    pooled.pool.release(held[1])


@pytest.mark.parametrize("settings", [UNPOOLED, PoolSettings(pool_size=1, max_overflow=-1)])
def test_without_a_bound_nobody_waits(settings: PoolSettings) -> None:
    pooled = Pooled(settings)
    held = [pooled.pool.checkout(timeout=0) for _ in range(50)]
    for slot in held:
        pooled.pool.release(slot)
    assert pooled.stats.open == settings.pool_size


def test_discarded_slots_are_closed_and_replaced() -> None:
    pooled = Pooled(pool_size=1)
    slot = pooled.pool.checkout()
    slot.broken = True
    pooled.pool.release(slot)
    assert not pooled.world.connected
    assert (pooled.stats.open, pooled.stats.discarded) == (0, 1)
    pooled.pool.release(pooled.pool.checkout())


def test_an_interrupted_return_gives_the_permit_back() -> None:
    pooled = Pooled(pool_size=1)
    slot = pooled.pool.checkout()

    def interrupted(within: float = 0.0) -> bool:
        raise KeyboardInterrupt

    slot.clean = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        pooled.pool.release(slot)
    assert pooled.stats.open == 0


def test_close_refuses_checkouts_wakes_waiters_and_closes_at_return() -> None:
    pooled = Pooled(pool_size=2)
    held, idle = pooled.pool.checkout(), pooled.pool.checkout()
    pooled.pool.release(idle)
    pooled.pool.close()
    pooled.pool.close()
    assert not idle.is_connected
    assert held.is_connected, "what is lent stays usable"
    with pytest.raises(PoolClosed, match="closed"):
        pooled.pool.checkout()
    pooled.pool.release(held)
    assert not pooled.world.connected
    assert pooled.stats.open == 0


def test_close_wakes_those_who_wait() -> None:
    pooled = Pooled(pool_size=1)
    held = pooled.pool.checkout()
    waiters = [pooled.in_thread() for _ in range(3)]
    pooled.pool.close()
    for waiter in waiters:
        with pytest.raises(PoolClosed):
            waiter.result()
    pooled.pool.release(held)
    assert pooled.stats.timeouts == 0


def test_the_keeper_serves_what_is_idle_and_drops_what_died() -> None:
    pooled = Pooled(pool_size=3)
    held = [pooled.pool.checkout() for _ in range(3)]
    for slot in held:
        pooled.pool.release(slot)
    pooled.world.connected.discard(held[1])
    pooled.pool.tend()
    assert pooled.stats.idle == 2
    assert pooled.stats.discarded == 1
    assert [pooled.pool.checkout(), pooled.pool.checkout()] == [held[2], held[0]], "in their old order"


def test_a_checkout_while_the_keeper_has_the_slot_waits_for_it_and_opens_nothing() -> None:
    pooled = Pooled(pool_size=2)
    slot = pooled.pool.checkout()
    pooled.pool.release(slot)
    checkouts: list[Checkout] = []

    def serve() -> bool:
        checkouts.append(pooled.in_thread())
        assert not checkouts[0].done
        assert "1 idle" in repr(pooled.pool)
        return True

    slot.serve = serve  # type: ignore[method-assign]
    pooled.pool.tend()
    del slot.serve
    assert checkouts[0].result() is slot
    assert pooled.stats.opened == 1
    pooled.pool.release(slot)


def test_a_dropped_channel_comes_home_and_is_named(caplog: pytest.LogCaptureFixture) -> None:
    pooled = Pooled(pool_size=1)
    holder = Holder()
    slot = pooled.pool.checkout(where="endpoint 'sell'", holder=weakref.ref(holder))
    with pytest.raises(PoolTimeout):
        pooled.pool.checkout(timeout=0)
    del holder
    with caplog.at_level(logging.WARNING):
        assert pooled.pool.checkout(timeout=0) is slot
    assert "endpoint 'sell'" in caplog.text
    pooled.pool.release(slot)


def test_a_waiter_that_was_interrupted_before_it_could_leave_costs_nothing() -> None:
    pooled = Pooled(pool_size=1)
    slot = pooled.pool.checkout()
    ghost = Waiter[StandInSlot](Borrower("interrupted", 0, 0.0, gone()))
    pooled.pool._waiting.append(ghost)
    pooled.pool.release(slot)
    assert ghost.slot is slot, "it was served, and nobody is there"
    pooled.pool.release(pooled.pool.checkout(timeout=0))
    assert pooled.stats.in_use == 0


def test_what_runs_in_the_middle_of_the_pools_work_does_not_wait_for_itself() -> None:
    # The garbage collector closes a generator, or a signal handler runs, while the lock is held.
    pooled = Pooled(pool_size=2)
    held, other = pooled.pool.checkout(), pooled.pool.checkout()
    count = pooled.pool._count
    seen: list[object] = []

    def interrupted() -> int:
        pooled.pool._count = count  # type: ignore[method-assign]
        pooled.pool.release(other)
        seen.append(pooled.stats.in_use)
        with pytest.raises(PoolTimeout, match="would wait for itself"):
            pooled.pool.checkout()
        return count()

    pooled.pool._count = interrupted  # type: ignore[method-assign]
    thread = threading.Thread(target=pooled.pool.release, args=(held,), daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive(), "it waits for itself"
    assert seen
    assert {pooled.pool.checkout(timeout=0), pooled.pool.checkout(timeout=0)} == {held, other}
    pooled.pool.release(held)
    pooled.pool.release(other)


def test_a_pool_that_is_closed_in_the_middle_of_its_own_work_lends_no_more() -> None:
    pooled = Pooled(pool_size=2)
    held = pooled.pool.checkout()
    count = pooled.pool._count

    def interrupted() -> int:
        pooled.pool._count = count  # type: ignore[method-assign]
        pooled.pool.close()
        return count()

    pooled.pool._count = interrupted  # type: ignore[method-assign]
    pooled.pool.release(held)
    with pytest.raises(PoolClosed):
        pooled.pool.checkout()
    pooled.pool.close()
    assert pooled.stats.open == 0


def test_goodbyes_to_what_others_dropped_end_at_the_callers_deadline() -> None:
    pooled = Pooled(pool_size=1)
    holder = Holder()
    slot = pooled.pool.checkout(holder=weakref.ref(holder))
    goodbyes: list[float] = []

    def clean(within: float = 9.0) -> bool:
        goodbyes.append(within)
        return True

    slot.clean = clean  # type: ignore[method-assign]
    del holder
    pooled.pool.release(pooled.pool.checkout(timeout=0.25))
    assert goodbyes[0] == 0.25


@pytest.mark.parametrize("work", ["take back", "close"])
def test_what_the_pools_own_work_leaves_when_it_is_interrupted_comes_home(
    work: str, caplog: pytest.LogCaptureFixture
) -> None:
    pooled = Pooled(pool_size=3)
    holders = [Holder() for _ in range(3)]
    slots = [pooled.pool.checkout(holder=weakref.ref(holder)) for holder in holders]

    def interrupt(within: float = 0.0) -> bool:
        del slots[0].clean, slots[0].close
        raise KeyboardInterrupt

    slots[0].clean = slots[0].close = interrupt  # type: ignore[method-assign, assignment]
    if work == "take back":
        holders.clear()
        with pytest.raises(KeyboardInterrupt) as kept:
            pooled.pool.tend()
    else:
        del slots[0].clean
        for slot in slots:
            pooled.pool.release(slot)
        slots[0].clean = interrupt  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt) as kept:
            pooled.pool.close()
    assert kept.traceback, "as a debugger holds on to it"
    caplog.clear()
    pooled.pool.tend()
    assert pooled.stats.in_use == 0
    assert not caplog.records, "nobody dropped a channel"


def test_a_late_return_that_is_taken_back_survives_an_interrupt() -> None:
    pooled = Pooled(pool_size=2)
    slots = [pooled.pool.checkout() for _ in range(2)]
    pooled.pool._late.extend(slots)  # by code that interrupted the pool itself
    clock = pooled.pool._clock

    def interrupt() -> float:
        pooled.pool._clock = clock
        raise KeyboardInterrupt

    pooled.pool._clock = interrupt
    with pytest.raises(KeyboardInterrupt):
        pooled.pool.tend()
    pooled.pool.tend()
    assert pooled.stats.in_use == 0


def test_nothing_is_opened_probed_cleaned_or_closed_under_the_lock() -> None:
    pooled = Pooled(pool_size=1, pool_recycle=5)
    names = ("open", "probe", "serve", "clean", "close")
    seen = set()

    class Watched(StandInSlot):
        def __getattribute__(self, name: str) -> Any:
            if name in names:
                assert not pooled.pool._is_interrupted(), f"{name} under the lock"
                seen.add(name)
            return super().__getattribute__(name)

    pooled.pool._new_slot = lambda: Watched(pooled.world)
    for _ in range(2):
        slot = pooled.pool.checkout()
        waiter = pooled.in_thread()
        pooled.pool.release(slot)
        pooled.pool.release(waiter.result())
        pooled.pool.tend()
        pooled.clock.now += 6
    pooled.pool.close()
    assert seen == set(names)


def test_the_repr_tells_the_state() -> None:
    pooled = Pooled(pool_size=2)
    slot = pooled.pool.checkout()
    assert repr(pooled.pool) == "<ChannelPool amqp://h: 1 in use, 0 idle, 2 at the most, 0 waiting>"
    pooled.pool.release(slot)
    pooled.pool.close()
    assert "closed" in repr(pooled.pool)
