"""Deliveries out of a stream of frames: each one once, whole and in order, and everything else is pika's."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Any

import pika
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pika import exceptions as pika_errors
from pika import frame, spec

from flask_pika.deliver_frames import Arrival, DeliverFrames

WATCHED = (1, 3)
FRAME_MAX = 4096
# Type, channel, size and end.
AROUND = 8

basic: Any = spec.Basic  # pika's generated classes are not annotated
NAMES = st.text(max_size=20)
PROPERTIES = st.builds(
    pika.BasicProperties,
    content_type=st.none() | NAMES,
    message_id=st.none() | NAMES,
    headers=st.none() | st.dictionaries(NAMES, st.integers(0, 9) | NAMES, max_size=2),
    priority=st.none() | st.integers(0, 255),
)
# In so many pieces, each in a frame of its own; none of them: a body of 0 bytes, which takes no frame.
PIECES = st.lists(st.binary(min_size=1, max_size=30), max_size=4)


class Item:
    """What a channel sends in one go: its frames, and what is to come of them."""

    def __init__(self, number: int, frames: list[bytes], arrival: Arrival | None = None) -> None:
        self.number = number
        self.frames = frames
        self.arrival = arrival  # None: it is the others'

    def history(self) -> History:
        if self.arrival is None:
            return [(each, each) for each in self.frames]
        return [*((each, None) for each in self.frames[:-1]), (self.frames[-1], (self.number, self.arrival))]

    def __repr__(self) -> str:
        return f"<{len(self.frames)} frames, {self.arrival}>"


def content(number: int, method: Any, properties: Any, pieces: list[bytes]) -> list[bytes]:
    """A method and its content, as pika has them as bytes."""
    size = sum(map(len, pieces))
    return [
        frame.Method(number, method).marshal(),
        frame.Header(number, size, properties).marshal(),
        *(frame.Body(number, piece).marshal() for piece in pieces),
    ]


def delivery(
    number: int,
    tag: int = 1,
    redelivered: bool = False,
    exchange: str = "e",
    routing_key: str = "k",
    consumer_tag: str = "c",
    properties: Any = None,
    pieces: list[bytes] | None = None,
) -> Item:
    properties = pika.BasicProperties() if properties is None else properties
    pieces = [b"body"] if pieces is None else pieces
    method = basic.Deliver(consumer_tag, tag, redelivered, exchange, routing_key)
    arrival = (tag, redelivered, exchange, routing_key, b"".join(properties.encode()), b"".join(pieces))
    return Item(number, content(number, method, properties, pieces), arrival if number in WATCHED else None)


@st.composite
def items(draw: st.DrawFn, number: int) -> Item:
    """Anything that a broker may send on a channel."""
    kind = draw(st.sampled_from(["delivery", "delivery", "delivery", "return", "get", "method"]))
    if kind == "method":
        method = draw(
            st.sampled_from([basic.QosOk(), basic.ConsumeOk("c"), basic.Ack(5, True), basic.Cancel("c")])
        )
        return Item(number, [frame.Method(number, method).marshal()])
    properties, pieces = draw(PROPERTIES), draw(PIECES)
    exchange, routing_key = draw(NAMES), draw(NAMES)
    if kind == "return":
        return Item(
            number, content(number, basic.Return(312, "NO_ROUTE", exchange, routing_key), properties, pieces)
        )
    tag, redelivered = draw(st.integers(1, 2**64 - 1)), draw(st.booleans())
    if kind == "get":
        method = basic.GetOk(tag, redelivered, exchange, routing_key, 3)
        return Item(number, content(number, method, properties, pieces))
    return delivery(number, tag, redelivered, exchange, routing_key, draw(NAMES), properties, pieces)


#: Frames in their order, and with each what comes of it: others' bytes, a delivery, or nothing yet.
History = list[tuple[bytes, Any]]


@st.composite
def histories(draw: st.DrawFn) -> History:
    """Frames in an order that AMQP allows.

    AMQP 0-9-1, section 4.2.6: the frames of one content follow each other on their channel, and between them
    may be any of other channels.
    """
    lines: dict[int, History] = {0: [(HEARTBEAT, HEARTBEAT)] * draw(st.integers(0, 3))}
    for number in (1, 2, 3):
        lines[number] = [
            pair for item in draw(st.lists(items(number), max_size=6)) for pair in item.history()
        ]
    history: History = []
    while ready := [number for number, line in lines.items() if line]:
        history.append(lines[draw(st.sampled_from(ready))].pop(0))
    return history


HEARTBEAT = frame.Heartbeat().marshal()


class Observer:
    """Who gets what comes out."""

    def __init__(self, frame_max: int = FRAME_MAX) -> None:
        self.log: list[Any] = []
        self.watch = {number: self.watcher(number) for number in WATCHED}
        self.frames = DeliverFrames(self.watch, self.others_get, frame_max)

    def others_get(self, data: bytes) -> None:
        self.log.append(data)

    def watcher(self, number: int) -> Callable[[list[Arrival]], None]:
        def arrived(arrivals: list[Arrival]) -> None:
            assert arrivals
            self.log += [(number, arrival) for arrival in arrivals]

        return arrived

    @property
    def others(self) -> bytes:
        return b"".join(each for each in self.log if isinstance(each, bytes))

    @property
    def deliveries(self) -> list[tuple[int, Arrival]]:
        return [each for each in self.log if not isinstance(each, bytes)]


def merged(log: list[Any]) -> list[Any]:
    """The log, with the others' bytes joined that nothing stands between."""
    out: list[Any] = []
    for each in log:
        if out and isinstance(each, bytes) and isinstance(out[-1], bytes):
            out[-1] += each
        else:
            out.append(each)
    return out


def reads(data: bytes, cuts: list[int]) -> Iterator[bytes]:
    at = 0
    for cut in [*sorted(cut % (len(data) + 1) for cut in cuts), len(data)]:
        if at < cut:
            yield data[at:cut]
        at = cut


CUTS = st.lists(st.integers(0, 2**16), max_size=12)


def outcome(history: History) -> list[Any]:
    return merged([event for _, event in history if event is not None])


@settings(max_examples=200, deadline=None)
@given(history=histories(), cuts=CUTS)
def test_each_watched_delivery_arrives_once_and_everything_else_is_others(
    history: History, cuts: list[int]
) -> None:
    data = b"".join(each for each, _ in history)
    observer = Observer()
    taken = sum(observer.frames.feed(read) for read in reads(data, cuts))
    assert merged(observer.log) == outcome(history)
    assert taken == len(data) - len(observer.others), "the heartbeat counts what came"


@settings(max_examples=60, deadline=None)
@given(history=histories())
def test_a_byte_at_a_time_is_enough_and_what_has_come_whole_is_not_held_back(history: History) -> None:
    observer = Observer()
    for count, (data, _) in enumerate(history, 1):
        for at in range(len(data)):
            observer.frames.feed(data[at : at + 1])
        assert merged(observer.log) == outcome(history[:count])
        assert not observer.frames._held
        assert len(observer.frames._incomplete) <= len(WATCHED)


def test_deliveries_of_one_read_come_in_one_list() -> None:
    lists: list[list[Arrival]] = []
    frames = DeliverFrames({1: lists.append}, lambda _data: pytest.fail("not theirs"), FRAME_MAX)
    some = [delivery(1, tag) for tag in range(1, 101)]
    frames.feed(b"".join(b"".join(each.frames) for each in some))
    assert lists == [[each.arrival for each in some]]


def test_who_watches_no_more_gets_no_more() -> None:
    observer = Observer()
    first, second = delivery(1, 1), delivery(1, 2)
    observer.frames.feed(b"".join(first.frames))
    del observer.watch[1]
    observer.frames.feed(b"".join(second.frames))
    assert observer.log == [(1, first.arrival), b"".join(second.frames)]


def test_bytes_that_are_no_utf_8_can_be_shown() -> None:
    raw = b"".join(delivery(1, routing_key="kkkk").frames).replace(b"\x04kkkk", b"\x04\xff\xfe\x00k")
    observer = Observer()
    observer.frames.feed(raw)
    ((_, arrival),) = observer.deliveries
    assert arrival[3].encode("utf-8", "surrogateescape") == b"\xff\xfe\x00k"


# What no broker sends


class PikasEyes(Observer):
    """Has the others' bytes read by pika, as a connection does."""

    buffer = b""

    def others_get(self, data: bytes) -> None:
        self.buffer += data
        while self.buffer:
            size, decoded = frame.decode_frame(self.buffer)
            if decoded is None:
                return
            self.log.append(self.buffer[:size])
            self.buffer = self.buffer[size:]


@settings(max_examples=200, deadline=None)
@given(
    history=histories(),
    garbage=st.binary(min_size=1, max_size=60)
    | st.builds(
        lambda kind, number, size, rest: struct.pack(">BHI", kind, number, size) + rest,
        st.integers(0, 9),
        st.integers(0, 4),
        st.integers(0, 2**32 - 1),
        st.binary(max_size=20),
    ),
    place=st.integers(0, 99),
    cuts=CUTS,
)
def test_garbage_is_an_error_or_is_pikas_and_is_not_hoarded(
    history: History, garbage: bytes, place: int, cuts: list[int]
) -> None:
    place %= len(history) + 1
    before = b"".join(each for each, _ in history[:place])
    data = before + garbage + b"".join(each for each, _ in history[place:])
    observer = PikasEyes()
    came = 0
    try:
        for read in reads(data, [*cuts, len(before)]):
            came += len(read)
            observer.frames.feed(read)
            if came == len(before):
                assert merged(observer.log) == outcome(history[:place])
            assert len(observer.frames._held) < FRAME_MAX
    except Exception:  # of many types, and any of them ends the connection
        assert came > len(before), "what was good was not taken as such"
        assert merged(observer.log)[: len(outcome(history[:place])) - 1] == outcome(history[:place])[:-1]


@pytest.mark.parametrize("number", [0, 1, 2, 9])
@pytest.mark.parametrize("size", [FRAME_MAX - AROUND + 1, 2**20, 2**32 - 1])
def test_a_frame_that_is_longer_than_agreed_is_not_waited_for(number: int, size: int) -> None:
    observer = Observer()
    good = delivery(1)
    with pytest.raises(pika_errors.InvalidFrameError, match=str(size)):
        observer.frames.feed(b"".join(good.frames) + struct.pack(">BHI", 3, number, size) + b"x")


@pytest.mark.parametrize("frame_max", [FRAME_MAX, 2**17])
def test_a_frame_as_long_as_agreed_is(frame_max: int) -> None:
    body = b"x" * (frame_max - AROUND)
    good = delivery(1, pieces=[body, body])
    observer = Observer(frame_max)
    for read in reads(b"".join(good.frames), list(range(0, 3 * frame_max, 1000))):
        observer.frames.feed(read)
    assert observer.log == [(1, good.arrival)]


def test_a_frame_without_its_end_is_pikas_which_says_so() -> None:
    observer = PikasEyes()
    first, second = delivery(1, 1), delivery(1, 2)
    broken = second.frames[0][:-1] + b"\x00"
    with pytest.raises(pika_errors.InvalidFrameError):
        observer.frames.feed(b"".join(first.frames) + broken + b"".join(first.frames))
    assert observer.log == [(1, first.arrival)]


@pytest.mark.parametrize("cut", range(4, 30))
def test_a_delivery_that_is_cut_short_inside_of_its_frame_is_an_error(cut: int) -> None:
    """Whatever follows it in memory is no part of it."""
    whole = basic.Deliver("tag", 1, False, "exchange", "key")
    encoded = struct.pack(">I", whole.INDEX) + b"".join(whole.encode())
    assert len(encoded) == 30
    short = encoded[:cut]
    data = struct.pack(">BHI", 1, 1, len(short)) + short + b"\xce" + b"".join(delivery(1).frames)
    observer = Observer()
    with pytest.raises((pika_errors.AMQPError, struct.error, IndexError)):
        observer.frames.feed(data)
    assert not observer.log


@pytest.mark.parametrize(
    "wrong",
    [
        [0, 2],  # a body without a header
        [0, 1, 1],  # two headers
        [0, 1, 2, 2],  # a body longer than the header says
    ],
    ids=str,
)
def test_contents_that_do_not_fit_together_are_errors(wrong: list[int]) -> None:
    parts = delivery(1, pieces=[b"12345678"]).frames
    parts[1:2] = [frame.Header(1, 12, pika.BasicProperties()).marshal()]
    observer = Observer()
    with pytest.raises(pika_errors.AMQPError):
        observer.frames.feed(b"".join(parts[place] for place in wrong))
    assert not observer.log


def test_bodies_without_end_and_no_header_are_not_hoarded() -> None:
    observer = Observer()
    observer.frames.feed(delivery(1).frames[0])
    with pytest.raises(pika_errors.AMQPError):
        observer.frames.feed(frame.Body(1, b"").marshal())
