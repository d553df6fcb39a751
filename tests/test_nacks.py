"""Which nacks are believed: a stuck channel fails nothing that another one takes; a full queue says no."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flask_pika import nacks as nacks_module
from flask_pika.backoff import Backoff
from flask_pika.confirms import Lane, Ledger, Outcome, Publish
from flask_pika.nacks import SURELY, Nacks
from tests.stand_ins import Clock

STEP = 0.01
#: As the publisher has them.
MOST_RETIRING = 4


class Note(Publish):
    """A publish without a message."""

    __slots__ = (
        "accepted",
        "at",
        "exchange",
        "message_id",
        "number",
        "retry",
        "routing_key",
        "sent_at",
        "size",
        "told",
    )

    def __init__(self, number: int, key: str, at: float, retry: bool) -> None:
        super().__init__()
        self.number, self.at, self.retry = number, at, retry
        self.exchange, self.routing_key, self.message_id = "", key, str(number)
        self.size = 1
        self.told = 0.0
        self.sent_at: list[float] = []
        self.accepted = 0

    def __repr__(self) -> str:
        return f"<{self.number} to {self.routing_key}, {self.outcome}>"


class Rig:
    """A ledger, what drives it in the link's thread, and a broker, on a clock.

    A channel is stuck with a queue when its first message to it came while that had no leader.
    """

    def __init__(self, seed: int = 0, rtt: float = 0.005) -> None:
        self.chance = random.Random(seed)
        self.rtt = rtt
        self.clock = Clock()
        self.start = self.clock.now
        self.nacks: Nacks[Note] = Nacks(
            self.clock, Backoff(nacks_module.BACKOFF.first, nacks_module.BACKOFF.longest, self.chance.random)
        )
        self.ledger: Ledger[Note] = Ledger(100_000, 10**9, self.nacks)
        self.leader_from: dict[str, float] = {}  # when a queue has a leader; always, when it is not here
        self.full: set[str] = set()
        self.silent: set[str] = set()
        self.notes: list[Note] = []
        self.opened = 1
        self.most_retiring = 0
        self._channels: dict[Lane[Note], dict[str, bool]] = {}
        self._tags: dict[Lane[Note], int] = {}
        self._confirms: list[tuple[float, int, Lane[Note], int, bool]] = []
        self._successor_at: float | None = None

    def add(self, key: str, retry: bool = True, exchange: str = "") -> Note:
        note = Note(len(self.notes), key, self.clock.now, retry)
        note.exchange = exchange
        self.notes.append(note)
        self.ledger.add(note)
        return note

    def step(self) -> None:
        self.clock.now += STEP
        while self._confirms and self._confirms[0][0] <= self.clock.now:
            _, _, lane, tag, ack = heapq.heappop(self._confirms)
            for note in self.ledger.settle(lane, tag, False, ack):
                note.told = self.clock.now
        self._try_again()
        for note in self.ledger.take(1000, 10**9):
            self._publish(note)

    def _try_again(self) -> None:
        """What the dispatcher does."""
        if self._successor_at is not None:
            if self._successor_at <= self.clock.now:
                self._successor_at = None
                self.opened += 1
                self.ledger.renew(self.clock.now)
                self.ledger.try_again()
        elif self.nacks.has_tries and self.nacks.when() <= self.clock.now:
            main = self.ledger.main
            if len(self.ledger.retiring) < MOST_RETIRING and self.nacks.wants_new(main.number, main.opened):
                self._successor_at = self.clock.now + 2 * self.rtt
            else:
                self.ledger.try_again()
        self.most_retiring = max(self.most_retiring, len(self.ledger.retiring))

    def _publish(self, note: Note) -> None:
        lane = self.ledger.main
        self._tags[lane] = tag = self._tags.get(lane, 0) + 1
        key, now = note.routing_key, self.clock.now
        note.sent_at.append(now)
        queues = self._channels.setdefault(lane, {})
        stuck = queues.setdefault(key, now < self.leader_from.get(key, 0.0))
        ack = not stuck and key not in self.full
        note.accepted += ack
        if key not in self.silent:
            when = now + self.rtt * (1 + self.chance.random() * 20 * (ack and self.chance.random() < 0.1))
            heapq.heappush(self._confirms, (when, len(self._confirms) + tag, lane, tag, ack))

    def run(self, seconds: float, each: Callable[[], object] = lambda: None) -> None:
        end = self.clock.now + seconds
        while self.clock.now < end:
            each()
            self.step()


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    leaderless=st.lists(st.floats(0.0, 0.8 * SURELY), min_size=1, max_size=4),
    rtt=st.sampled_from([0.001, 0.01, 0.05]),
    rate=st.sampled_from([0.05, 0.5, 3.0]),
    retry=st.sampled_from([1.0, 0.5]),
    full=st.integers(0, 2),
)
def test_a_stuck_channel_fails_nothing_that_another_one_takes(
    seed: int, leaderless: list[float], rtt: float, rate: float, retry: float, full: int
) -> None:
    rig = Rig(seed, rtt)
    keys = [f"q{number}" for number in range(len(leaderless))]
    rig.leader_from = {key: rig.start + 0.05 + seconds for key, seconds in zip(keys, leaderless, strict=True)}
    rig.full = {f"full{number}" for number in range(full)}
    keys += ["good", *sorted(rig.full)]

    def come() -> None:
        for _ in range(int(rate) + (rig.chance.random() < rate % 1)):
            rig.add(rig.chance.choice(keys), rig.chance.random() < retry)

    rig.run(3.0, come)
    late = [rig.add(key, bool(rig.chance.getrandbits(1))) for key in keys]
    rig.run(5.0)
    for note in rig.notes:
        allowed = {Outcome.CONFIRMED}
        if note.routing_key in rig.full:
            allowed = {Outcome.NACKED}
        elif not note.retry:
            allowed.add(Outcome.NACKED)
        assert note.outcome in allowed
        assert note.accepted == (note.outcome is Outcome.CONFIRMED), "twice, or never"
        assert note.retry or len(note.sent_at) == 1, "at most once was twice"
        if note.outcome is Outcome.CONFIRMED:
            assert note.told - note.at < 3.0 * SURELY + 40 * rtt
    for note in late:
        assert (note.outcome is Outcome.CONFIRMED) == (note.routing_key not in rig.full), "it is stuck"
    for key in keys[: len(leaderless)]:
        order = [note for note in rig.notes if note.routing_key == key and note.retry]
        times = [note.sent_at[-1] for note in order]
        assert times == sorted(times), "the order was lost"
    assert (rig.ledger.messages, rig.ledger.bytes) == (0, 0)
    assert rig.most_retiring <= MOST_RETIRING


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32), every=st.integers(1, 300), queues=st.integers(1, 3))
def test_a_full_queue_fails_each_message_the_first_within_two_seconds_the_others_at_once(
    seed: int, every: int, queues: int
) -> None:
    rig = Rig(seed)
    rig.full = {f"full{number}" for number in range(queues)}
    count = 0

    def come() -> None:
        nonlocal count
        count += 1
        rig.add("good")
        if count % every == 0:
            rig.add(f"full{rig.chance.randrange(queues)}")

    rig.run(20.0, come)
    rig.run(3.0)
    for key in rig.full:
        notes = [note for note in rig.notes if note.routing_key == key]
        assert all(note.outcome is Outcome.NACKED for note in notes)
        if not notes:
            continue
        verdict = notes[0].told
        assert SURELY <= verdict - notes[0].at < 2.0
        for note in notes:
            if note.at > verdict:
                assert note.told - note.at < 0.05
                assert len(note.sent_at) == 1
    assert all(note.outcome is Outcome.CONFIRMED for note in rig.notes if note.routing_key == "good")
    # A few at the beginning; afterwards, one in a second at the most.
    assert rig.opened < 6 * queues + 21


@pytest.mark.parametrize("seed", range(20))
def test_a_leader_that_is_back_in_a_third_of_a_second_costs_less_than_one(seed: int) -> None:
    rig = Rig(seed)
    rig.leader_from["q"] = rig.start + 0.3
    note = rig.add("q")
    rig.run(0.8)
    assert note.outcome is Outcome.CONFIRMED


def test_what_was_refused_too_early_is_taken_within_a_second_of_its_leaders_return() -> None:
    rig = Rig()
    rig.leader_from["q"] = rig.start + 10.0  # no majority for long
    rig.run(15.0, lambda: rig.add("q"))
    early = [note for note in rig.notes if note.at < rig.start + 8.0]
    late = [note for note in rig.notes if rig.start + 11.2 < note.at < rig.start + 14.0]
    assert {note.outcome for note in early} == {Outcome.NACKED}
    assert {note.outcome for note in late} == {Outcome.CONFIRMED}


def test_a_queue_that_takes_one_now_and_then_says_no_at_once_and_costs_no_channels() -> None:
    rig = Rig()
    first = rig.add("q")
    rig.full = {"q"}
    rig.run(0.02)
    rig.full = set()
    rig.run(1.0)
    assert first.outcome is Outcome.CONFIRMED
    opened = rig.opened
    for number in range(200):
        rig.full = set() if number % 10 == 0 else {"q"}
        note = rig.add("q")
        rig.run(0.03)
        assert note.outcome is (Outcome.NACKED if rig.full else Outcome.CONFIRMED)
    assert rig.opened == opened


@pytest.mark.parametrize("takes", [0.5, 0.1])
def test_a_queue_that_takes_one_now_and_then_says_no_at_once_also_while_another_one_has_channels_replaced(
    takes: float,
) -> None:
    rig = Rig()
    notes: list[Note] = []

    def come() -> None:
        rig.full = {"full"} if rig.chance.random() < takes else {"full", "q"}
        rig.add("full")
        notes.append(rig.add("q"))

    rig.run(20.0, come)
    waits = sorted(note.told - note.at for note in notes if note.outcome is not None)
    assert len(waits) > len(notes) - 10
    assert waits[len(waits) * 9 // 10] < 0.05
    assert rig.opened < 6 * 2 + 21


def test_a_trial_that_has_no_answer_holds_up_nobody() -> None:
    rig = Rig()
    rig.full = {"q"}
    trial, other = rig.add("q"), rig.add("q")
    rig.run(0.05)
    assert [len(note.sent_at) for note in (trial, other)] == [1, 1]
    rig.silent = {"q"}
    rig.run(nacks_module.PATIENCE + 0.3)
    assert [len(note.sent_at) for note in (trial, other)] == [2, 2]


def test_who_gives_up_in_line_was_nacked_and_is_not_sent() -> None:
    rig = Rig()
    rig.full = {"q"}
    sent = rig.add("q")
    rig.run(0.03)
    behind, last = rig.add("q"), rig.add("q")
    rig.run(0.01)
    assert rig.ledger.unsettled() == [sent, behind, last]
    assert rig.ledger.give_up([sent, behind]) == [sent, behind]
    assert [sent.outcome, behind.outcome] == [Outcome.NACKED, Outcome.NACKED]
    assert rig.ledger.unsettled() == [last]
    rig.full = set()
    rig.run(2.0)
    assert last.outcome is Outcome.CONFIRMED
    assert [len(note.sent_at) for note in (sent, behind, last)] == [1, 0, 1]
    assert (rig.ledger.messages, rig.ledger.bytes) == (0, 0)


def test_a_trial_whose_caller_gives_up_before_it_is_sent_makes_way_for_the_next() -> None:
    rig = Rig()
    rig.full = {"q"}
    trial, other = rig.add("q"), rig.add("q")
    rig.run(0.03)
    rig.clock.now += 1.0
    rig.ledger.try_again()  # it waits to be sent
    rig.ledger.give_up([trial])
    rig.full = set()
    rig.run(2.0)
    assert (trial.outcome, other.outcome) == (Outcome.NACKED, Outcome.CONFIRMED)
    assert rig.ledger.messages == 0


def test_a_lost_connection_puts_all_back_in_its_order_and_begins_anew() -> None:
    rig = Rig()
    rig.full = {"q"}
    first, second = rig.add("q"), rig.add("q")
    rig.run(0.03)
    behind, elsewhere = rig.add("q"), rig.add("good")
    assert rig.ledger.take(10, 10) == [elsewhere]
    assert rig.ledger.connection_lost() == []
    assert rig.ledger.take(10, 10) == [first, second, elsewhere, behind]
    assert not rig.nacks.has_tries
    assert not behind.nacked, "it was never sent, which is all that is known"
    assert not behind.held
    assert rig.ledger.settle(rig.ledger.main, 0, True, True) == [first, second, elsewhere, behind]
    assert (rig.ledger.messages, rig.ledger.bytes) == (0, 0)


def test_what_is_unconfirmed_when_its_channel_is_replaced_is_confirmed_there_and_not_sent_again() -> None:
    rig = Rig()
    first, second = rig.add("q"), rig.add("other")
    assert rig.ledger.take(10, 10) == [first, second]
    old = rig.ledger.renew(1.0)
    third = rig.add("other")
    assert rig.ledger.take(10, 10) == [third]
    assert (rig.ledger.retiring, rig.ledger.unsettled()) == ([old], [first, second, third])
    assert rig.ledger.settle(old, 2, True, True) == [first, second]
    assert rig.ledger.retiring == []
    assert rig.ledger.settle(rig.ledger.main, 1, False, True) == [third]
    assert rig.ledger.messages == 0


@pytest.mark.parametrize("blame", [None, (503, "COMMAND_INVALID")])
def test_a_lost_connection_takes_the_channels_that_are_being_replaced_with_it(
    blame: tuple[int, str] | None,
) -> None:
    rig = Rig()
    first, second = rig.add("q"), rig.add("q")
    rig.ledger.take(1, 10)
    rig.ledger.renew(1.0)
    rig.ledger.take(1, 10)
    assert rig.ledger.connection_lost(blame) == []
    assert rig.ledger.retiring == []
    if blame is None:
        assert rig.ledger.take(10, 10) == [first, second]
    else:
        assert rig.ledger.take_suspects() == [first, second], "nobody says which channel it was"


def test_a_channel_that_is_closed_while_it_is_replaced_says_which_one_was_at_fault() -> None:
    rig = Rig()
    note = rig.add("q")
    rig.ledger.take(1, 10)
    old = rig.ledger.renew(1.0)
    assert rig.ledger.channel_closed(old, 404, "NOT_FOUND - no exchange '' in vhost '/'") == [note]
    assert (note.outcome, rig.ledger.retiring) == (Outcome.REFUSED, [])


def test_what_is_remembered_is_bounded() -> None:
    rig = Rig()
    for number in range(3 * nacks_module.MOST):
        rig.full.add(f"q{number}")
        rig.add(f"q{number}", retry=False)
        rig.ledger.settle(rig.ledger.main, len(rig.ledger.take(1, 10)) and number + 1, False, False)
    rig.run(3.0)
    assert not rig.nacks.holds_any
    assert len(rig.nacks._remembered) <= nacks_module.MOST
    assert len(rig.nacks._proven) <= nacks_module.MOST


def test_a_trial_that_its_connection_took_with_it_stays_before_what_is_in_line_behind_it() -> None:
    rig = Rig()
    rig.full = {"q"}
    notes = [rig.add("q") for _ in range(3)]
    rig.run(0.03)
    rig.clock.now += 0.2
    rig.ledger.renew(rig.clock.now)
    rig.ledger.try_again()
    assert rig.ledger.take(10, 10) == notes[:1], "the trial"
    assert rig.ledger.connection_lost() == []
    assert rig.ledger.take(10, 10) == notes


def test_a_full_queue_whose_nacks_take_longer_than_patience_is_believed_soon() -> None:
    rig = Rig(rtt=1.2 * nacks_module.PATIENCE)
    rig.full = {"q"}
    note = rig.add("q")
    rig.run(10.0)
    assert note.outcome is Outcome.NACKED
    assert len(note.sent_at) <= 3


def test_a_full_queue_is_believed_where_no_new_channel_is_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "MOST_RETIRING", 0)
    rig = Rig()
    rig.full = {"q"}
    note = rig.add("q")
    rig.run(6.0)
    assert note.outcome is Outcome.NACKED
    assert rig.opened == 1
    note = rig.add("q")
    rig.run(0.05)
    assert note.outcome is Outcome.NACKED, "and then at once"


def test_a_full_queue_behind_as_many_routing_keys_as_messages_says_no_at_once_and_costs_few_channels() -> (
    None
):
    rig = Rig()
    count = 0

    def come() -> None:
        nonlocal count
        count += 1
        rig.full.add(f"user.{count}.updated")
        rig.add(f"user.{count}.updated", exchange="events")
        rig.add("good", exchange="others")

    rig.run(10.0, come)
    rig.run(1.0)
    notes = [note for note in rig.notes if note.exchange == "events"]
    assert all(note.outcome is Outcome.NACKED for note in notes)
    assert all(note.told - note.at < 0.05 for note in notes if note.at > rig.start + 2.5)
    assert all(note.outcome is Outcome.CONFIRMED for note in rig.notes if note.exchange == "others")
    assert rig.opened < 60 + 11, "a few at the beginning, then one in a second"
    opened = rig.opened
    rig.run(nacks_module.QUIET + 1.0)
    note = rig.add("user.1.updated", exchange="events")
    rig.full.clear()
    rig.clock.now += STEP
    rig.leader_from["user.1.updated"] = rig.clock.now + 0.3
    rig.run(1.0)
    assert note.outcome is Outcome.CONFIRMED, "it is as good as any again"
    assert rig.opened > opened
