"""Which acks are sent: each delivery is settled once, as it was asked for, and none that is worked on."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from flask_pika.settlements import Settlements

ACKED, OTHERWISE = "acked", "otherwise"


class BrokerChannel:
    """A channel as RabbitMQ has it: it closes over a tag that it does not know (406)."""

    def __init__(self) -> None:
        self.delivered = 0
        self.unsettled: set[int] = set()
        self.became: dict[int, str] = {}

    def deliver(self, count: int) -> None:
        tags = range(self.delivered + 1, self.delivered + count + 1)
        self.unsettled.update(tags)
        self.delivered += count

    def settle(self, tags: set[int], how: str) -> None:
        assert tags <= self.unsettled, "PRECONDITION_FAILED - unknown delivery tag"
        self.unsettled -= tags
        self.became.update(dict.fromkeys(tags, how))

    def ack(self, tag: int, multiple: bool) -> None:
        assert tag in self.unsettled, "PRECONDITION_FAILED - unknown delivery tag"
        covered = {each for each in self.unsettled if each <= tag} if multiple else {tag}
        self.settle(covered, ACKED)


def deliver(ours: Settlements, channel: BrokerChannel, count: int) -> None:
    before = channel.delivered
    channel.deliver(count)
    for tag in range(before + 1, channel.delivered + 1):
        ours.arrived(tag)


def flush(ours: Settlements, channel: BrokerChannel, asked: dict[int, str]) -> int:
    """Settle as a subscription does; how many acks it took."""
    acked = [tag for tag, how in asked.items() if how == ACKED]
    otherwise = [tag for tag, how in asked.items() if how == OTHERWISE]
    acks = ours.settle(acked, iter(otherwise))
    for tag in otherwise:  # these first
        channel.settle({tag}, OTHERWISE)
    if acks.up_to:
        channel.ack(acks.up_to, True)
    for tag in acks.singles:
        channel.ack(tag, False)
    return bool(acks.up_to) + len(acks.singles)


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[int, list[tuple[int, str]]]]:
    """Rounds: so many are delivered, and these of the unsettled ones, by their place, are settled so."""
    how = st.sampled_from([ACKED, ACKED, ACKED, OTHERWISE])
    chosen = st.lists(st.tuples(st.integers(0, 30), how), max_size=12)
    # Mostly the oldest, as threads do, or anywhere.
    oldest = st.integers(0, 12).flatmap(
        lambda count: st.lists(how, min_size=count, max_size=count).map(
            lambda hows: [(0, one) for one in hows]
        )
    )
    return draw(st.lists(st.tuples(st.integers(0, 12), chosen | oldest), min_size=1, max_size=12))


@settings(max_examples=200, deadline=None)
@given(history=histories())
def test_every_tag_is_settled_once_and_as_it_was_asked_for(
    history: list[tuple[int, list[tuple[int, str]]]],
) -> None:
    ours, channel = Settlements(), BrokerChannel()
    wanted: dict[int, str] = {}
    for count, choices in history:
        deliver(ours, channel, count)
        left = sorted(channel.unsettled)
        asked: dict[int, str] = {}
        for place, how in choices:
            if left:
                asked[left.pop(place % len(left))] = how
        wanted |= asked
        sent = flush(ours, channel, asked)
        # What was not asked for is still somebody's work; what was, is done.
        assert channel.became == wanted
        assert channel.unsettled == set(left)
        # One ack covers all below the lowest that is worked on, whatever became of them.
        lowest = min(left, default=channel.delivered + 1)
        acked = [tag for tag, how in asked.items() if how == ACKED]
        assert sent == any(tag < lowest for tag in acked) + sum(tag > lowest for tag in acked)
        assert len(ours) == len(left)


def test_many_in_a_row_take_one_ack_each_time() -> None:
    ours, channel = Settlements(), BrokerChannel()
    for _ in range(50):
        deliver(ours, channel, 100)
        asked: dict[int, Any] = dict.fromkeys(sorted(channel.unsettled, reverse=True), ACKED)
        assert flush(ours, channel, asked) == 1
    assert not channel.unsettled


def test_nothing_takes_nothing() -> None:
    assert Settlements().settle([], []) == (0, [])


def test_the_last_one_of_a_row_may_not_be_an_ack() -> None:
    ours, channel = Settlements(), BrokerChannel()
    deliver(ours, channel, 4)
    assert flush(ours, channel, {1: OTHERWISE, 2: ACKED, 3: ACKED, 4: OTHERWISE}) == 1
    deliver(ours, channel, 1)
    assert flush(ours, channel, {5: ACKED}) == 1
    assert channel.became == {1: OTHERWISE, 2: ACKED, 3: ACKED, 4: OTHERWISE, 5: ACKED}


def test_one_that_is_worked_on_for_long_holds_up_no_ack() -> None:
    # Were it to walk all since the stuck one, these would be 5,000,000,000 steps.
    ours, channel = Settlements(), BrokerChannel()
    deliver(ours, channel, 1)
    for number in range(2, 100_002):
        deliver(ours, channel, 1)
        acks = ours.settle([number], [])
        assert acks == (0, [number])
        assert len(ours._line) < 200, "what is done with is forgotten"
    assert ours.settle([1], []) == (1, [])
    deliver(ours, channel, 1)
    assert ours.settle([100_002], []) == (100_002, [])
