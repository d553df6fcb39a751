"""The backlog: each unit is taken once, consumers take turns, and threads leave at the end."""

from __future__ import annotations

import collections
import random
import threading
from collections.abc import Callable, Iterable

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from flask_pika.backlog import Backlog
from tests.conftest import wait_for

#: A unit in these tests: its consumer, and its number there.
Unit = tuple[str, int]
CONSUMERS = ("a", "b", "c")


def units(consumer: str, numbers: Iterable[int]) -> list[Unit]:
    return [(consumer, number) for number in numbers]


def in_threads(threads: int, work: Callable[[int], object]) -> list[threading.Thread]:
    running = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(threads)]
    for thread in running:
        thread.start()
    return running


def join(running: list[threading.Thread]) -> None:
    for thread in running:
        thread.join(60)
        assert not thread.is_alive(), "it hangs"


class BacklogHistory(RuleBasedStateMachine):
    """What one thread may do. A consumer's units stay in order, and none waits longer than a round."""

    @initialize()
    def begin(self) -> None:
        self.backlog: Backlog[Unit] = Backlog()
        self.waiting: dict[str, list[Unit]] = {name: [] for name in CONSUMERS}
        self.number = 0
        self.running = 0
        # For each consumer that has something: of whom something was taken since it had its last turn.
        self.since: dict[str, list[str]] = {}

    @rule(consumer=st.sampled_from(CONSUMERS), count=st.integers(0, 5))
    def put(self, consumer: str, count: int) -> None:
        new = units(consumer, range(self.number, self.number + count))
        self.number += count
        self.backlog.put(consumer, new)
        self.waiting[consumer] += new
        if new:
            self.since.setdefault(consumer, [])

    @precondition(lambda self: any(self.waiting.values()))
    @rule()
    def take(self) -> None:
        taken = self.backlog.take()
        assert taken is not None
        consumer = taken[0]
        assert taken == self.waiting[consumer].pop(0), "another one was before it"
        self.running += 1
        del self.since[consumer]
        for passed_over in self.since.values():
            assert consumer not in passed_over, "it had its turn, and another one waits"
            passed_over.append(consumer)
        if self.waiting[consumer]:
            self.since[consumer] = []

    @precondition(lambda self: self.running)
    @rule()
    def done(self) -> None:
        self.backlog.done()
        self.running -= 1

    @rule(consumer=st.sampled_from(CONSUMERS), modulus=st.integers(1, 3))
    def withdraw(self, consumer: str, modulus: int) -> None:
        def which(unit: Unit) -> bool:
            return unit[0] == consumer and unit[1] % modulus == 0

        mine = self.waiting[consumer]
        assert self.backlog.withdraw(which) == list(filter(which, mine))
        mine[:] = [unit for unit in mine if not which(unit)]
        if not mine:
            self.since.pop(consumer, None)

    @rule()
    def withdraw_all(self) -> None:
        found = self.backlog.withdraw()
        assert sorted(found) == sorted(unit for line in self.waiting.values() for unit in line)
        assert all(units(name, sorted(n for c, n in found if c == name)) for name in {c for c, _ in found})
        for line in self.waiting.values():
            line.clear()
        self.since.clear()

    @invariant()
    def counts(self) -> None:
        if hasattr(self, "backlog"):
            assert self.backlog.running == self.running

    def teardown(self) -> None:
        if not hasattr(self, "backlog"):
            return
        left = sum(map(len, self.waiting.values()))
        self.backlog.end(range(3))
        for _ in range(left):
            self.take()
        # Nothing more: tickets of what was withdrawn lead to nothing, and each thread leaves.
        assert [self.backlog.take() for _ in range(3)] == [None] * 3


BacklogHistory.TestCase.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
TestBacklogHistory = BacklogHistory.TestCase


def test_turns_go_round_between_consumers() -> None:
    backlog: Backlog[Unit] = Backlog()
    backlog.put("many", units("many", range(100)))
    assert backlog.take() == ("many", 0)
    backlog.put("few", units("few", range(2)))
    backlog.put("one", units("one", range(1)))
    taken = [backlog.take() for _ in range(7)]
    assert taken == [
        *units("many", [1]),
        *units("few", [0]),
        *units("one", [0]),
        *units("many", [2]),
        *units("few", [1]),
        *units("many", [3, 4]),
    ]


def test_with_many_threads_nothing_is_lost_and_nothing_is_taken_twice() -> None:
    backlog: Backlog[Unit] = Backlog()
    each, consumers, threads = 2_000, 4, 8
    taken: collections.deque[Unit] = collections.deque()
    withdrawn: collections.deque[Unit] = collections.deque()

    def work(_: int) -> None:
        while (unit := backlog.take()) is not None:
            assert backlog.running >= 1
            taken.append(unit)
            backlog.done()

    def produce(number: int) -> None:
        chance = random.Random(number)
        at = 0
        while at < each:
            count = chance.randrange(1, 20)
            backlog.put(number, units(str(number), range(at, min(each, at + count))))
            at += count

    def take_out(number: int) -> None:
        for _ in range(200):
            withdrawn.extend(backlog.withdraw(lambda unit: unit[0] == str(number) and unit[1] % 7 == 0))

    working = in_threads(threads, work)
    join(in_threads(consumers, produce) + in_threads(consumers, take_out))
    backlog.end(working)
    join(working)
    everything = [*taken, *withdrawn]
    assert len(everything) == len(set(everything)) == each * consumers
    assert all(number % 7 == 0 for _, number in withdrawn)
    assert backlog.running == 0


def test_a_thread_that_waits_is_woken_for_each_unit() -> None:
    backlog: Backlog[Unit] = Backlog()
    taken: list[Unit] = []
    both = threading.Barrier(3)

    def work(_: int) -> None:
        unit = backlog.take()
        assert unit is not None
        taken.append(unit)
        both.wait(60)  # which neither passes before the other has its unit, too

    working = in_threads(2, work)
    backlog.put("a", units("a", range(2)))
    both.wait(60)
    join(working)
    assert sorted(taken) == units("a", range(2))
    assert backlog.running == 2


def test_what_is_withdrawn_is_not_running_and_what_runs_is_not_withdrawn() -> None:
    backlog: Backlog[Unit] = Backlog()
    backlog.put("a", units("a", range(3)))
    assert backlog.take() == ("a", 0)
    assert backlog.withdraw() == units("a", [1, 2])
    assert backlog.running == 1
    assert backlog.withdraw() == []
    # The line is as good as new.
    backlog.put("a", units("a", [3]))
    assert backlog.take() == ("a", 3)


def test_threads_leave_at_the_end_when_nothing_waits_any_more() -> None:
    backlog: Backlog[Unit] = Backlog()
    backlog.put("a", units("a", range(10)))
    taken: collections.deque[Unit | None] = collections.deque()

    def work(_: int) -> None:
        while (unit := backlog.take()) is not None:
            taken.append(unit)

    backlog.end(range(3))
    join(in_threads(3, work))
    assert sorted(filter(None, taken)) == units("a", range(10))


def test_a_withdrawal_ends_no_thread_and_keeps_none_from_leaving() -> None:
    backlog: Backlog[Unit] = Backlog()
    taken: collections.deque[Unit] = collections.deque()

    def work(_: int) -> None:
        while (unit := backlog.take()) is not None:
            taken.append(unit)

    backlog.put("a", units("a", range(50)))
    assert len(backlog.withdraw()) == 50
    working = in_threads(2, work)
    backlog.put("b", units("b", range(2)))
    wait_for(lambda: len(taken) == 2, "the units after those that were withdrawn")
    backlog.end(working)
    join(working)
