"""The gate: who may connect while the broker is away."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import pytest

from flask_pika import BrokerUnavailable
from flask_pika.backoff import Backoff
from flask_pika.gate import Gate
from tests.conftest import wait_for
from tests.stand_ins import Clock


def refuse() -> None:
    raise BrokerUnavailable("down")


def test_delays_double_up_to_a_bound_and_are_jittered() -> None:
    none = Backoff(first=1, longest=8, random=lambda: 0.0)
    assert [none.delay(n) for n in (1, 2, 3, 4, 5, 5000)] == [1, 2, 4, 8, 8, 8]
    most = Backoff(first=1, longest=8, random=lambda: 1.0)
    assert [most.delay(n) for n in (1, 4)] == [0.5, 4]
    assert len({Backoff().delay(5) for _ in range(20)}) > 1


class Gated:
    """A gate with a clock of its own, and no jitter."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.gate = Gate(Backoff(first=1, longest=8, random=lambda: 0.0), self.clock)
        self.attempts = 0

    def ask(self, connect: Callable[[], object] = lambda: "connected", patience: float = 100) -> object:
        def counted() -> object:
            self.attempts += 1
            return connect()

        now = self.clock()
        return self.gate.run(counted, asked_at=now, deadline=now + patience)


def test_up_everyone_passes_side_by_side() -> None:
    gated = Gated()
    inside = threading.Barrier(4)
    threads = [threading.Thread(target=gated.ask, args=(inside.wait,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert gated.attempts == 4


def test_within_the_back_off_nobody_connects_whose_deadline_ends_before_it() -> None:
    gated = Gated()
    with pytest.raises(BrokerUnavailable):
        gated.ask(refuse)
    gated.clock.now += 0.5
    with pytest.raises(BrokerUnavailable, match="down"):
        gated.ask(patience=0.4)
    assert gated.attempts == 1


def test_the_first_who_asks_after_the_back_off_connects_though_others_failed() -> None:
    gated = Gated()
    with pytest.raises(BrokerUnavailable):
        gated.ask(refuse)
    gated.clock.now += 1.1
    assert gated.ask() == "connected"
    assert gated.ask() == "connected"


def test_back_off_grows_with_each_failed_probe_and_begins_anew_after_a_success() -> None:
    gated = Gated()
    for delay in (1, 2, 4, 8, 8):
        with pytest.raises(BrokerUnavailable):
            gated.ask(refuse)
        gated.clock.now += delay - 0.1
        attempts = gated.attempts
        with pytest.raises(BrokerUnavailable):
            gated.ask(patience=0.05)
        assert gated.attempts == attempts, "too early"
        gated.clock.now += 0.2
    assert gated.ask() == "connected"
    with pytest.raises(BrokerUnavailable):
        gated.ask(refuse)
    gated.clock.now += 1.1
    assert gated.ask() == "connected"


def probe_with_waiters(outcome: Callable[[], object], waiters: int) -> tuple[Gated, list[object]]:
    """One probe is under way, ``waiters`` threads wait for it, then it ends."""
    gated = Gated()
    with pytest.raises(BrokerUnavailable):
        gated.ask(refuse)
    gated.clock.now += 1.1
    probing, go_on = threading.Event(), threading.Event()
    results: list[object] = []

    def probe() -> object:
        probing.set()
        assert go_on.wait(60)
        return outcome()

    asked = gated.clock()

    def ask(connect: Callable[[], object]) -> None:
        try:
            results.append(gated.gate.run(connect, asked_at=asked, deadline=asked + 60))
        except BaseException as exc:
            results.append(exc)

    threads = [threading.Thread(target=ask, args=(probe,))]
    threads[0].start()
    assert probing.wait(10)
    threads += [threading.Thread(target=ask, args=(lambda: "connected",)) for _ in range(waiters)]
    for thread in threads[1:]:
        thread.start()
    wait_for(lambda: len(gated.gate._changed._waiters) == waiters, "all wait")  # type: ignore[attr-defined]
    go_on.set()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    return gated, results


def test_down_one_probes_and_a_hundred_share_its_failure() -> None:
    _, results = probe_with_waiters(refuse, 100)
    assert len(results) == 101
    assert all(isinstance(result, BrokerUnavailable) for result in results)
    assert len({id(result) for result in results}) == 101, "nobody raises another thread's exception"


def test_down_one_probes_and_all_pass_when_it_succeeds() -> None:
    _, results = probe_with_waiters(lambda: "connected", 20)
    assert results == ["connected"] * 21


def test_an_interrupted_probe_says_nothing_and_the_next_one_tries() -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    _, results = probe_with_waiters(interrupt, 3)
    assert sum(isinstance(result, KeyboardInterrupt) for result in results) == 1
    assert results.count("connected") == 3


def test_a_probe_that_its_own_deadline_cut_off_says_nothing() -> None:
    gated = Gated()

    def too_slow() -> None:
        gated.clock.now += 1
        refuse()

    with pytest.raises(BrokerUnavailable):
        gated.ask(too_slow, patience=0.5)
    assert gated.ask(patience=0.1) == "connected", "the broker is up, for all that anybody knows"


def test_a_probe_that_ended_without_a_word_does_not_close_the_gate_for_ever() -> None:
    gated = Gated()
    with pytest.raises(BrokerUnavailable):
        gated.ask(refuse)
    gated.clock.now += 1.1
    now = gated.clock()
    gated.gate._enter(now, now + 1000)  # and a signal handler's exception strikes before the attempt
    gated.clock.now += 31
    assert gated.ask() == "connected"


def test_an_outage_does_not_keep_what_the_failed_attempt_held() -> None:
    gated = Gated()
    with pytest.raises(BrokerUnavailable):
        gated.ask(refuse)
    assert gated.gate._error is not None
    assert gated.gate._error.__traceback__ is None


def test_nobody_is_refused_on_evidence_older_than_the_question() -> None:
    gated = Gated()
    with pytest.raises(BrokerUnavailable):
        gated.ask(refuse)
    gated.clock.now += 1.1
    probing, go_on = threading.Event(), threading.Event()

    def probe() -> None:
        probing.set()
        assert go_on.wait(60)
        refuse()

    def failing_probe() -> None:
        with pytest.raises(BrokerUnavailable):
            gated.ask(probe)

    first = threading.Thread(target=failing_probe)
    first.start()
    assert probing.wait(10)
    gated.clock.now += 5  # asks while the probe is under way, which then fails
    late: list[object] = []
    asking = threading.Thread(target=lambda: late.append(gated.ask()))
    asking.start()
    wait_for(lambda: len(gated.gate._changed._waiters) == 1, "it waits")  # type: ignore[attr-defined]
    go_on.set()
    first.join(10)
    gated.clock.now += 10
    asking.join(20)
    assert late == ["connected"]


def test_an_outage_is_two_lines_in_the_log_however_many_callers(caplog: pytest.LogCaptureFixture) -> None:
    gated = Gated()
    with caplog.at_level(logging.INFO, logger="flask_pika.connection"):  # an embedded broker logs, too
        for _ in range(5):
            with pytest.raises(BrokerUnavailable):
                gated.ask(refuse)
            gated.clock.now += 9
        gated.ask()
        gated.ask()
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2
    assert "unavailable" in lines[0]
    assert "back after 45.0 s" in lines[1]
