"""The ledger of unconfirmed publishes: one true outcome for each, whatever broker, network and callers do."""

from __future__ import annotations

import itertools
import random
import sys
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from flask_pika import confirms
from flask_pika.confirms import Lane, Ledger, Outcome, Publish
from flask_pika.nacks import Nacks
from tests.stand_ins import Clock

GOOD = ("", "good")
MAY_BE_MISSING = ("missing", "gone")
# What is sent there ends the whole connection.
POISON = "poison"
SYNTAX = (503, "COMMAND_INVALID - unimplemented method")
NO_ROUTE = (312, "NO_ROUTE")
# The bounds of the ledger that is put through random histories.
MOST = 30
MOST_BYTES = 120


class Note(Publish):
    """A publish without a message."""

    __slots__ = ("exchange", "message_id", "number", "retry", "routing_key", "size")

    def __init__(
        self, number: int, exchange: str = "", *, message_id: str = "", retry: bool = True, size: int = 1
    ) -> None:
        super().__init__()
        self.number = number
        self.exchange = exchange
        self.routing_key = "key"
        self.message_id = message_id or f"id-{number}"
        self.retry = retry
        self.size = size

    def __repr__(self) -> str:
        return f"<{self.number} to {self.exchange!r}, {self.outcome}>"


def not_found(exchange: str) -> str:
    return f"NOT_FOUND - no exchange '{exchange}' in vhost '/'"


class Wire:
    """A channel as the broker sees it: what came on it and has no confirm, by a count of the broker's own."""

    def __init__(self, ledger: Ledger[Note], lane: Lane[Note]) -> None:
        self.ledger = ledger
        self.lane = lane
        self.reopened()

    def reopened(self) -> None:
        self.count = 0
        self.flying: dict[int, Note] = {}
        self.returned: set[int] = set()  # tags

    def came(self, notes: Iterable[Note]) -> None:
        for note in notes:
            self.count += 1
            self.flying[self.count] = note


class LedgerHistory(RuleBasedStateMachine):
    """What may happen to a ledger, in any order. The model below knows nothing of how the ledger does it."""

    has_nacks = False  # and so an order that is a matter of each destination's own

    @initialize(seed=st.integers(0, 2**32), names_it=st.booleans(), generous=st.booleans())
    def begin(self, seed: int, names_it: bool, generous: bool) -> None:
        self.ledger: Ledger[Note] = self.make_ledger()
        self.main = Wire(self.ledger, self.ledger.main)
        self.suspects = Wire(self.ledger, self.ledger.suspects)
        self.wires: tuple[Wire, ...] = (self.main, self.suspects)
        self.notes: list[Note] = []
        self.outcomes: dict[Note, Outcome] = {}  # as first seen
        self.told: set[Note] = set()  # whose callers have heard, or have stopped waiting
        self.left: set[Note] = set()  # whose callers have stopped waiting
        self.times_sent: dict[Note, int] = {}
        self.missing = set(MAY_BE_MISSING)
        self.diverted: set[str] = set()
        self.retried = 0
        # How the broker behaves at the end.
        self.chance = random.Random(seed)
        self.names_it = names_it
        self.generous = generous

    def make_ledger(self) -> Ledger[Note]:
        return Ledger(MOST, MOST_BYTES)

    # The model

    def at_fault(self, note: Note) -> bool:
        return note.exchange in self.missing or note.exchange == POISON

    def first_at_fault(self, wire: Wire, kinds: Iterable[str]) -> Note | None:
        return next((note for note in wire.flying.values() if note.exchange in kinds), None)

    def flying(self) -> list[Note]:
        return [note for wire in self.wires for note in wire.flying.values()]

    def unsettled(self) -> set[Note]:
        return set(self.notes) - self.outcomes.keys()

    def learn(self, settled: list[Note], expected: dict[Note, set[Outcome | None]]) -> None:
        """These were affected, each with one of the outcomes expected of it, and nothing else was."""
        assert len(set(settled)) == len(settled), "settled twice"
        for note in settled:
            assert note in expected, "settled without a reason"
            assert note.outcome is not None
            assert note not in self.outcomes, "settled twice"
            if note not in self.left:
                assert note not in self.told
                self.told.add(note)
        for note, allowed in expected.items():
            assert note.outcome in allowed
            if note.outcome is not None:
                self.outcomes[note] = note.outcome
                assert note in settled or note in self.left, "its caller was not told"

    def sent(self, wire: Wire, notes: list[Note]) -> None:
        for note in notes:
            assert note not in self.flying(), "in flight twice"
            assert note not in self.outcomes, "sent after it was settled"
            assert note not in self.left, "sent, and nobody wants to know"
            self.times_sent[note] = self.times_sent.get(note, 0) + 1
            assert note.retry or self.times_sent[note] == 1, "at most once was twice"
        wire.came(notes)

    def confirm(self, wire: Wire, tag: int, multiple: bool, ack: bool) -> None:
        covered = [each for each in wire.flying if each == tag or (multiple and (each <= tag or not tag))]
        expected: dict[Note, set[Outcome | None]] = {}
        for each in covered:
            note = wire.flying.pop(each)
            allowed: set[Outcome | None] = {Outcome.CONFIRMED} if ack else self.after_a_nack(note)
            expected[note] = {Outcome.RETURNED} if ack and each in wire.returned else allowed
            if wire is self.suspects:
                self.diverted.discard(note.exchange)
        self.learn(self.ledger.settle(wire.lane, tag, multiple, ack), expected)

    def after_a_nack(self, note: Note) -> set[Outcome | None]:
        return {Outcome.NACKED}

    def after_giving_up(self, note: Note) -> set[Outcome]:
        return {Outcome.GIVEN_UP}

    def lost(self, wire: Wire) -> dict[Note, set[Outcome | None]]:
        """The wire is cut, for a reason that has nothing to do with what was on it."""
        expected: dict[Note, set[Outcome | None]] = {}
        for tag, note in wire.flying.items():
            if tag in wire.returned:
                expected[note] = {Outcome.RETURNED}
            elif note in self.left:
                expected[note] = {Outcome.GIVEN_UP}
            else:
                expected[note] = {None if note.retry else Outcome.UNKNOWN}
        wire.reopened()
        return expected

    def close_channel(self, wire: Wire, names_it: bool) -> None:
        culprit = self.first_at_fault(wire, self.missing)
        assert culprit is not None
        alone = len(wire.flying) == 1
        expected = self.lost(wire)
        if alone:
            expected[culprit] = {Outcome.REFUSED}
            if names_it:  # what is suspected, and goes to the same exchange, need not be tried any more
                for note in self.unsettled() - set(self.flying()) - expected.keys():
                    if note.exchange == culprit.exchange:
                        expected[note] = {None, Outcome.REFUSED}
        elif names_it and wire is not self.suspects:
            self.diverted.add(culprit.exchange)
        text = not_found(culprit.exchange) if names_it else "NOT_FOUND"
        self.learn(self.ledger.channel_closed(wire.lane, 404, text), expected)

    def cut_connection(self, blame: tuple[int, str] | None) -> None:
        expected: dict[Note, set[Outcome | None]] = {}
        for wire in self.wires:
            expected |= self.lost(wire)
        if blame is not None:
            for note, allowed in expected.items():
                if note.exchange == POISON:
                    allowed.add(Outcome.REFUSED)
        self.learn(self.ledger.connection_lost(blame), expected)

    # What may happen

    @rule(
        exchanges=st.lists(st.sampled_from([*GOOD, *MAY_BE_MISSING, POISON]), min_size=2, max_size=10),
        message_id=st.sampled_from(["", "", "same"]),
        retry=st.sampled_from([True, True, False]),
        size=st.integers(0, 9),
    )
    def add(self, exchanges: list[str], message_id: str, retry: bool, size: int) -> None:
        for exchange in exchanges:
            pending = self.unsettled()
            in_bounds = len(pending) < MOST and sum(note.size for note in pending) + size <= MOST_BYTES
            assert self.ledger.fits(size) == (in_bounds or not pending)
            if not self.ledger.fits(size):
                return
            note = Note(len(self.notes), exchange, message_id=message_id, retry=retry, size=size)
            self.ledger.add(note)
            self.notes.append(note)

    @rule(messages=st.integers(3, 20), size=st.integers(9, 90))
    def take(self, messages: int, size: int) -> None:
        flying = self.main.flying
        latest = max((note.number for note in flying.values()), default=-1)
        taken = self.ledger.take(messages, size)
        self.sent(self.main, taken)
        assert not {note.exchange for note in taken} & self.diverted, "it takes others with it"
        numbers = [latest, *(note.number for note in taken)]
        assert numbers == sorted(numbers) or self.has_nacks, "the order was lost"
        if taken:
            assert len(flying) <= messages
            assert len(flying) == 1 or sum(note.size for note in flying.values()) <= size

    @precondition(lambda self: self.ledger.has_suspects and not self.suspects.flying)
    @rule()
    def take_suspects(self) -> None:
        taken = self.ledger.take_suspects()
        assert taken
        self.sent(self.suspects, taken)

    @precondition(lambda self: self.flying())
    @rule(lane=st.integers(0, 3), which=st.integers(0, 11), multiple=st.booleans(), ack=st.booleans())
    def broker_confirms(self, lane: int, which: int, multiple: bool, ack: bool) -> None:
        wire = self.wires[lane % len(self.wires)]
        able = []
        for tag, note in wire.flying.items():
            if self.at_fault(note):
                break  # what comes after it was never looked at
            able.append(tag)
        if not able:
            return
        tag = able[which % len(able)]
        if multiple and which == 11 and len(able) == len(wire.flying):
            tag = 0  # all
        if any(each == tag or multiple for each in wire.returned & wire.flying.keys()):
            ack = True  # the broker has done what it should with these
        self.confirm(wire, tag, multiple, ack)

    @rule(lane=st.sampled_from([0, 1]), past=st.integers(0, 4), multiple=st.booleans(), ack=st.booleans())
    def broker_speaks_of_what_is_not_there(self, lane: int, past: int, multiple: bool, ack: bool) -> None:
        wire = self.wires[lane]
        first = min(wire.flying, default=wire.count + 1)
        multiple = multiple and first > 1
        tags = [first - 1] if multiple else [0, first - 1, wire.count + 1, wire.count + 1000]
        self.confirm(wire, tags[past % len(tags)], multiple, ack)
        self.ledger.returned(wire.lane, "never seen", "", "key", NO_ROUTE)

    @precondition(lambda self: self.flying())
    @rule(lane=st.integers(0, 3), which=st.integers(0, 11))
    def broker_returns(self, lane: int, which: int) -> None:
        wire = self.wires[lane % len(self.wires)]
        able = [
            tag for tag, note in wire.flying.items() if note.exchange in GOOD and tag not in wire.returned
        ]
        if not able:
            return
        note = wire.flying[able[which % len(able)]]
        # Of two that look the same, it is the first.
        tag = next(
            tag
            for tag in able
            if wire.flying[tag].message_id == note.message_id and wire.flying[tag].exchange == note.exchange
        )
        wire.returned.add(tag)
        self.ledger.returned(wire.lane, note.message_id, note.exchange, note.routing_key, NO_ROUTE)

    @precondition(lambda self: self.first_at_fault(self.main, self.missing))
    @rule(names_it=st.booleans())
    def broker_closes_the_main_channel(self, names_it: bool) -> None:
        self.close_channel(self.main, names_it)

    @precondition(lambda self: self.first_at_fault(self.suspects, self.missing))
    @rule(names_it=st.booleans())
    def broker_closes_the_channel_for_suspects(self, names_it: bool) -> None:
        self.close_channel(self.suspects, names_it)

    @precondition(lambda self: any(note.exchange == POISON for note in self.flying()))
    @rule()
    def broker_closes_the_connection(self) -> None:
        self.cut_connection(SYNTAX)

    @precondition(lambda self: self.flying())
    @rule()
    def connection_is_lost(self) -> None:
        self.cut_connection(None)

    @rule(exchange=st.sampled_from(MAY_BE_MISSING))
    def exchange_comes_or_goes(self, exchange: str) -> None:
        self.missing ^= {exchange}

    @precondition(lambda self: self.notes)
    @rule(which=st.lists(st.integers(0, 100), min_size=1, max_size=4), late=st.booleans())
    def callers_give_up(self, which: list[int], late: bool) -> None:
        # The ledger may be asked too late, when some of them are settled.
        those = self.notes if late else self.ledger.unsettled() or self.notes
        chosen = list({those[number % len(those)]: None for number in which})
        due = [note for note in chosen if note not in self.outcomes and note not in self.left]
        flying = self.flying()
        assert self.ledger.give_up(chosen) == due
        for note in due:
            self.left.add(note)
            self.told.add(note)
            assert note.sent == bool(self.times_sent.get(note))
            if note not in flying:
                assert note.outcome in self.after_giving_up(note)
                self.outcomes[note] = note.outcome

    def in_line(self) -> bool:
        return False

    @invariant()
    def books_balance(self) -> None:
        if not hasattr(self, "ledger"):
            return
        for note in self.notes:
            assert note.outcome is self.outcomes.get(note), "an outcome changed"
        pending = self.unsettled()
        assert self.ledger.messages == len(pending)
        assert self.ledger.bytes == sum(note.size for note in pending)
        for wire in self.wires:
            assert len(wire.lane) == len(wire.flying)
            assert wire.lane.bytes == sum(note.size for note in wire.flying.values())
        at_rest = pending - set(self.flying())
        has_some = self.ledger.waits or self.ledger.has_suspects or self.in_line()
        assert has_some == bool(at_rest), "one is lost, or too many"
        asked = self.ledger.unsettled()
        assert len(asked) == len(set(asked))
        assert set(asked) == pending - self.left
        assert self.told == self.left | self.outcomes.keys()
        assert not any(note.reply for note in pending if note not in self.flying())

    # A healthy broker, at the end

    def serve(self, wire: Wire) -> None:
        """It confirms what came, up to the first that it cannot take, over which it closes what it must."""
        ready: list[int] = []
        fault: Note | None = None
        for tag, note in wire.flying.items():
            if self.at_fault(note):
                fault = note
                break
            ready.append(tag)
        if fault is None or self.generous:
            self.chance.shuffle(ready)
            for tag in ready:
                if tag in wire.flying:
                    self.confirm(wire, tag, self.chance.random() < 0.2, True)
        if fault is not None and fault.exchange == POISON:
            self.cut_connection(SYNTAX)
        elif fault is not None:
            self.close_channel(wire, self.names_it)

    def time_passes(self) -> None:
        """At a broker that is healthy, too."""

    def teardown(self) -> None:
        if not hasattr(self, "ledger"):
            return
        self.missing = set(MAY_BE_MISSING)
        rest = [note for note in self.notes if note not in self.told]
        before = {note for wire in self.wires for tag, note in wire.flying.items() if tag in wire.returned}
        # Each round settles one at the least, or cuts a group of suspects in two.
        for _ in range(3 * len(rest) + 20):
            self.take(10, 50)
            if self.ledger.has_suspects and not self.suspects.flying:
                self.take_suspects()
            # The suspects first: only then is it certain whom a lost connection is to be blamed on.
            self.serve(self.suspects)
            for wire in self.wires:
                self.serve(wire)
            self.time_passes()
            self.books_balance()
            if not self.ledger.messages:
                break
        assert (self.ledger.messages, self.ledger.bytes) == (0, 0), "it does not end"
        for note in rest:
            allowed = {Outcome.CONFIRMED, Outcome.RETURNED} if note in before else {Outcome.CONFIRMED}
            if self.at_fault(note):
                allowed = {Outcome.REFUSED}
            if not note.retry:
                allowed.add(Outcome.UNKNOWN)
            assert note.outcome in allowed


LedgerHistory.TestCase.settings = settings(max_examples=500, stateful_step_count=40, deadline=None)
TestLedgerHistory = LedgerHistory.TestCase


class NackedHistory(LedgerHistory):
    """The same, where nacks are not believed at once, and channels are replaced meanwhile."""

    has_nacks = True

    def make_ledger(self) -> Ledger[Note]:
        self.clock = Clock()
        self.nacks: Nacks[Note] = Nacks(self.clock)
        self.nacked: set[Note] = set()  # as their last word
        return Ledger(MOST, MOST_BYTES, self.nacks)

    def after_a_nack(self, note: Note) -> set[Outcome | None]:
        if note in self.left or not note.retry:
            return {Outcome.NACKED}
        self.nacked.add(note)
        return {None, Outcome.NACKED}

    def after_giving_up(self, note: Note) -> set[Outcome]:
        if note in self.nacked:
            return {Outcome.NACKED}
        return {Outcome.GIVEN_UP} if self.times_sent.get(note) else {Outcome.GIVEN_UP, Outcome.NACKED}

    def sent(self, wire: Wire, notes: list[Note]) -> None:
        super().sent(wire, notes)
        self.nacked.difference_update(notes)

    def cut_connection(self, blame: tuple[int, str] | None) -> None:
        super().cut_connection(blame)
        self.wires = (self.main, self.suspects)

    def in_line(self) -> bool:
        waiting = self.nacks.unsettled()
        assert len(waiting) == len(set(waiting))
        return bool(waiting)

    @rule(seconds=st.sampled_from([0.05, 0.2, 0.9, 1.5, 40.0]))
    def pass_time(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule()
    def time_passes(self) -> None:
        """As the dispatcher does it."""
        self.clock.now += 1.0
        self.wires = (
            self.main,
            self.suspects,
            *(wire for wire in self.wires[2:] if wire.flying),
        )
        assert [wire.lane for wire in self.wires[2:]] == self.ledger.retiring
        main = self.main.lane
        if len(self.ledger.retiring) < 2 and self.nacks.wants_new(main.number, main.opened):
            assert self.ledger.renew(self.clock.now) is main
            old, self.main = self.main, Wire(self.ledger, self.ledger.main)
            self.wires = (self.main, self.suspects, *self.wires[2:], *([old] if old.flying else []))
        self.ledger.try_again()


NackedHistory.TestCase.settings = settings(max_examples=500, stateful_step_count=40, deadline=None)
TestNackedHistory = NackedHistory.TestCase


# What the ledger promises, one by one


def ledger_with(notes: Iterable[Note]) -> Ledger[Note]:
    ledger: Ledger[Note] = Ledger(max_messages=10_000, max_bytes=10_000)
    for note in notes:
        ledger.add(note)
    return ledger


def in_flight(*exchanges: str, **kwargs: Any) -> tuple[Ledger[Note], list[Note]]:
    """A ledger with one message to each of these exchanges, all of them on the main lane."""
    notes = [Note(number, exchange, **kwargs) for number, exchange in enumerate(exchanges)]
    ledger = ledger_with(notes)
    assert ledger.take(10_000, 10_000) == notes
    return ledger, notes


def suspects_taken(ledger: Ledger[Note]) -> list[int]:
    return [note.number for note in ledger.take_suspects()]


def outcomes(notes: list[Note]) -> list[Outcome | None]:
    return [note.outcome for note in notes]


def test_acks_settle_what_they_name_in_any_order() -> None:
    ledger, notes = in_flight("", "", "", "")
    assert ledger.settle(ledger.main, 3, False, True) == [notes[2]]
    assert ledger.settle(ledger.main, 2, True, False) == notes[:2]
    assert ledger.settle(ledger.main, 3, True, True) == []
    assert ledger.settle(ledger.main, 0, True, True) == [notes[3]]
    assert outcomes(notes) == [Outcome.NACKED, Outcome.NACKED, Outcome.CONFIRMED, Outcome.CONFIRMED]
    assert (ledger.messages, ledger.bytes, len(ledger.main)) == (0, 0, 0)


def test_an_ack_for_nothing_changes_nothing() -> None:
    ledger, notes = in_flight("", "")
    for tag in (0, 3, 2**63):
        assert ledger.settle(ledger.main, tag, False, True) == []
    assert ledger.settle(ledger.suspects, 1, False, True) == []
    assert ledger.settle(ledger.suspects, 0, True, True) == []
    assert outcomes(notes) == [None, None]
    assert ledger.messages == 2


def test_a_multiple_after_many_single_acks_has_only_the_rest_to_walk() -> None:
    # Were it to walk all there ever was, these would be 5,000,000,000 steps.
    lane: Lane[Note] = Lane()
    for number in range(100_000):
        lane.add(Note(number))
        tag = number + 1
        assert [note.number for note in lane.pop(tag, number % 2 == 0)] == [number]
    assert (len(lane), lane.bytes) == (0, 0)


def test_a_return_has_only_what_is_in_flight_to_walk_though_one_message_is_stuck() -> None:
    # Were it to walk all since the stuck one, these would be 5,000,000,000 steps.
    lane: Lane[Note] = Lane()
    lane.add(Note(0))
    for number in range(1, 100_000):
        note = Note(number)
        lane.add(note)
        assert lane.returned(note.message_id, note.exchange, note.routing_key) is note
        assert lane.pop(number + 1, False) == [note]


def test_a_new_channel_counts_from_one_again() -> None:
    losses: list[Callable[[Ledger[Note]], object]] = [
        lambda ledger: ledger.connection_lost(),
        lambda ledger: ledger.connection_lost(SYNTAX),
        lambda ledger: ledger.channel_closed(ledger.main, 404, not_found("missing")),
    ]
    for lose in losses:
        ledger, _ = in_flight("", "missing", "")
        ledger.settle(ledger.main, 1, False, True)
        lose(ledger)
        while ledger.waits or ledger.has_suspects:
            for lane, taken in (
                (ledger.main, ledger.take(10, 10)),
                (ledger.suspects, ledger.take_suspects()),
            ):
                for tag in range(1, len(taken) + 1):
                    assert len(ledger.settle(lane, tag, False, True)) == 1
                lane.end()
        assert ledger.messages == 0


def test_a_new_connection_counts_from_one_on_the_lane_of_suspects_too() -> None:
    ledger, _ = in_flight("missing", "", "missing")
    ledger.channel_closed(ledger.main, 404, not_found("missing"))
    assert suspects_taken(ledger) == [0]
    ledger.settle(ledger.suspects, 1, False, True)
    # That lane is idle now, and the connection ends over what is on the other one.
    ledger.take(10, 10)
    ledger.connection_lost(SYNTAX)
    while group := ledger.take_suspects():
        assert ledger.settle(ledger.suspects, len(group), True, True) == group
    assert ledger.messages == 0


def test_a_return_and_its_ack_belong_together() -> None:
    ledger, notes = in_flight("", "good", "")
    ledger.returned(ledger.main, "id-1", "good", "key", NO_ROUTE)
    assert ledger.settle(ledger.main, 3, True, True) == notes
    assert outcomes(notes) == [Outcome.CONFIRMED, Outcome.RETURNED, Outcome.CONFIRMED]
    assert notes[1].reply == NO_ROUTE


@pytest.mark.parametrize(
    "about", [("other", "", "key"), ("id-0", "good", "key"), ("id-0", "", "other")], ids=str
)
def test_a_return_is_matched_by_id_exchange_and_key(about: tuple[str, str, str]) -> None:
    ledger, notes = in_flight("")
    ledger.returned(ledger.main, *about, NO_ROUTE)
    ledger.settle(ledger.main, 1, False, True)
    assert outcomes(notes) == [Outcome.CONFIRMED]


def test_two_returns_of_one_id_are_two_messages() -> None:
    ledger, notes = in_flight("", "", "", message_id="same")
    ledger.returned(ledger.main, "same", "", "key", NO_ROUTE)
    ledger.returned(ledger.main, "same", "", "key", NO_ROUTE)
    ledger.settle(ledger.main, 0, True, True)
    assert outcomes(notes) == [Outcome.RETURNED, Outcome.RETURNED, Outcome.CONFIRMED]


def test_a_return_is_the_brokers_word_even_when_its_ack_never_comes() -> None:
    ledger, notes = in_flight("", "")
    ledger.returned(ledger.main, "id-0", "", "key", NO_ROUTE)
    assert ledger.connection_lost() == [notes[0]]
    assert outcomes(notes) == [Outcome.RETURNED, None]
    assert ledger.take(10, 10) == [notes[1]]


def test_what_was_in_flight_goes_again_before_what_waits_and_in_order() -> None:
    notes = [Note(number) for number in range(6)]
    ledger = ledger_with(notes)
    ledger.take(4, 100)
    ledger.settle(ledger.main, 2, False, True)
    assert ledger.connection_lost() == []
    assert ledger.retried == 3
    assert [note.number for note in ledger.take(10, 100)] == [0, 2, 3, 4, 5]


def test_at_most_once_is_unknown_after_a_loss_and_waits_when_it_was_never_sent() -> None:
    notes = [Note(number, retry=False) for number in range(2)]
    ledger = ledger_with(notes)
    ledger.take(1, 100)
    assert ledger.connection_lost() == [notes[0]]
    assert outcomes(notes) == [Outcome.UNKNOWN, None]
    assert ledger.take(10, 100) == [notes[1]]
    assert ledger.retried == 0


def test_what_is_alone_when_its_channel_closes_was_at_fault() -> None:
    ledger, notes = in_flight("missing")
    assert ledger.channel_closed(ledger.main, 404, "NOT_FOUND") == notes
    assert outcomes(notes) == [Outcome.REFUSED]
    assert notes[0].reply == (404, "NOT_FOUND")


def test_what_went_to_the_exchange_that_the_broker_names_goes_one_by_one_and_the_rest_goes_on() -> None:
    ledger, notes = in_flight("good", "guarded", "", "guarded")
    text = "ACCESS_REFUSED - access to exchange 'guarded' in vhost '/' refused for user 'u'"
    assert ledger.channel_closed(ledger.main, 403, text) == []
    assert ledger.take(10, 100) == [notes[0], notes[2]]
    for number in (1, 3):
        assert suspects_taken(ledger) == [number]
        assert ledger.channel_closed(ledger.suspects, 403, text) == [notes[number]]
    assert outcomes(notes) == [None, Outcome.REFUSED, None, Outcome.REFUSED]


def test_what_waits_for_its_turn_at_an_exchange_that_does_not_exist_need_not_wait() -> None:
    ledger, notes = in_flight("missing", "good", "missing", "other", "missing")
    ledger.channel_closed(ledger.main, 404, not_found("missing"))
    assert suspects_taken(ledger) == [0]
    assert set(ledger.channel_closed(ledger.suspects, 404, not_found("missing"))) == {
        notes[0],
        notes[2],
        notes[4],
    }
    assert not ledger.has_suspects
    assert ledger.take(10, 100) == [notes[1], notes[3]]
    assert notes[4].reply == (404, not_found("missing"))


def test_the_default_exchange_has_another_name_in_the_brokers_words() -> None:
    ledger, notes = in_flight("good", "")
    text = "ACCESS_REFUSED - access to exchange 'amq.default' in vhost '/' refused for user 'u'"
    ledger.channel_closed(ledger.main, 403, text)
    assert ledger.take(10, 100) == [notes[0]]
    assert suspects_taken(ledger) == [1]


@pytest.mark.parametrize("fault", range(8))
def test_when_nobody_is_named_halves_isolate_the_one_at_fault(fault: int) -> None:
    ledger, notes = in_flight(*[""] * 8)
    ledger.channel_closed(ledger.main, 406, "PRECONDITION_FAILED")
    closings = 0
    while group := ledger.take_suspects():
        if notes[fault] in group:
            closings += 1
            ledger.channel_closed(ledger.suspects, 406, "PRECONDITION_FAILED")
        else:
            ledger.settle(ledger.suspects, len(group), True, True)
            ledger.suspects.end()
    assert closings == 4, "8, 4, 2, 1"
    expected: list[Outcome | None] = [Outcome.CONFIRMED] * 8
    expected[fault] = Outcome.REFUSED
    assert outcomes(notes) == expected


def test_an_exchange_is_suspected_until_it_takes_a_message() -> None:
    ledger, _ = in_flight("missing", "")
    ledger.channel_closed(ledger.main, 404, not_found("missing"))
    ledger.settle(ledger.main, len(ledger.take(10, 100)), True, True)
    later = [Note(10, "missing"), Note(11, "good"), Note(12, "missing")]
    for note in later:
        ledger.add(note)
    assert ledger.take(10, 100) == [later[1]], "the others would take it with them"
    assert suspects_taken(ledger) == [0]
    ledger.settle(ledger.suspects, 1, False, True)  # somebody has declared it
    last = Note(13, "missing")
    ledger.add(last)
    assert ledger.take(10, 100) == [last]


def test_a_connection_that_ends_over_one_message_blames_nobody_else() -> None:
    ledger, notes = in_flight("good", "missing", "good")
    ledger.channel_closed(ledger.main, 404, not_found("good"))
    assert suspects_taken(ledger) == [0]
    # An innocent is alone on its lane, and the one at fault is on the other lane, in company.
    ledger.add(Note(3, POISON))
    ledger.take(10, 100)
    ledger.connection_lost(SYNTAX)
    assert notes[0].outcome is None


def test_what_ends_connections_is_found_while_others_publish_on() -> None:
    ledger, notes = in_flight("good", POISON, "good", "good")
    connections = 0
    while notes[1].outcome is None:
        connections += 1
        assert connections < 10, "it ends one connection after the other"
        ledger.connection_lost(SYNTAX)
        ledger.add(Note(10 + connections))
        ledger.take(10, 100)
        group = ledger.take_suspects()
        while group and notes[1] not in group:
            ledger.settle(ledger.suspects, 0, True, True)
            group = ledger.take_suspects()
    assert outcomes(notes).count(Outcome.REFUSED) == 1


def test_who_gives_up_takes_only_what_is_not_in_flight_along() -> None:
    notes = [Note(number, size=5) for number in range(4)]
    ledger = ledger_with(notes)
    ledger.take(2, 100)
    assert ledger.give_up([notes[0], notes[2]]) == [notes[0], notes[2]]
    assert ledger.give_up([notes[0], notes[2]]) == []
    assert outcomes(notes) == [None, None, Outcome.GIVEN_UP, None]
    assert (ledger.messages, ledger.bytes) == (3, 15), "what is in flight counts"
    assert set(ledger.unsettled()) == {notes[1], notes[3]}
    assert ledger.connection_lost() == [], "nobody is there to be told"
    assert outcomes(notes) == [Outcome.GIVEN_UP, None, Outcome.GIVEN_UP, None]
    assert ledger.take(10, 100) == [notes[1], notes[3]]


def test_an_exception_between_any_two_instructions_of_a_caller_leaves_the_counts_right_in_the_end() -> None:
    for at in itertools.count():
        notes = [Note(number, size=5) for number in range(4)]
        ledger = ledger_with(notes[:3])
        ledger.take(1, 100)

        def come_and_go(ledger: Ledger[Note] = ledger, notes: list[Note] = notes) -> None:
            ledger.add(notes[3])
            ledger.give_up(notes[1:])

        interrupted = interrupted_at(at, come_and_go)
        ledger.give_up(notes[1:])
        taken = ledger.take(10, 100)
        assert all(note.outcome is None for note in taken), "settled, and sent"
        ledger.settle(ledger.main, 0, True, True)
        assert ledger.take(10, 100) == []
        assert (ledger.messages, ledger.bytes) == (0, 0), f"after an interrupt at instruction {at}"
        if not interrupted:
            break
    assert at > 50


def interrupted_at(number: int, call: Callable[[], object]) -> bool:
    """Whether a call was interrupted before this instruction of the ledger's, as by a signal handler."""
    left = number

    def trace(frame: FrameType, event: str, _arg: object) -> Any:
        nonlocal left
        if frame.f_code.co_filename != confirms.__file__:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            left -= 1
            if left < 0:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys._getframe().f_trace_opcodes = True  # Python 3.12 looks for one such frame when tracing begins
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


def test_a_suspect_can_be_given_up() -> None:
    ledger, notes = in_flight("", "", "")
    ledger.channel_closed(ledger.main, 406, "PRECONDITION_FAILED")
    ledger.give_up(notes[:2])
    assert suspects_taken(ledger) == [2]
    ledger.channel_closed(ledger.suspects, 406, "PRECONDITION_FAILED")
    assert outcomes(notes) == [Outcome.GIVEN_UP, Outcome.GIVEN_UP, Outcome.REFUSED]
    assert not ledger.has_suspects


def test_room_is_bounded_by_count_and_by_bytes_but_one_may_be_larger() -> None:
    ledger: Ledger[Note] = Ledger(max_messages=2, max_bytes=10)
    assert ledger.fits(1000), "it could never be sent otherwise"
    ledger.add(Note(0, size=4))
    assert ledger.fits(6)
    assert not ledger.fits(7)
    ledger.add(Note(1, size=0))
    assert not ledger.fits(0)


def test_the_lane_is_bounded_by_count_and_by_bytes_but_one_may_be_larger() -> None:
    notes = [Note(0, size=50), Note(1, size=6), Note(2, size=4), Note(3, size=1), Note(4, size=1)]
    ledger = ledger_with(notes)
    assert ledger.take(10, 10) == notes[:1]
    assert ledger.take(10, 10) == []
    ledger.settle(ledger.main, 1, False, True)
    assert ledger.take(10, 10) == notes[1:3]
    ledger.settle(ledger.main, 2, False, True)
    assert ledger.take(2, 10) == notes[3:4]
    assert ledger.take(2, 10) == []
