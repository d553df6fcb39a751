"""Messages as bytes: what is written is what pika would write, and what a plain client receives."""

from __future__ import annotations

import datetime
import os
import random
import time
from typing import Any

import pika
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pika import frame, spec

from flask_pika import InvalidMessage, Message, wire
from flask_pika.message import checked_properties
from flask_pika.wire import ID_LENGTH, Envelope, Envelopes, make_ids
from tests.conftest import make_app
from tools.rabbitmq_node import RabbitMQNode

UTC = datetime.timezone.utc
SMALL = 4096
# Type, channel, size and end.
AROUND = 8
ID = "0123456789abcdef" * 2

# What stands where an id and a time will: nobody's header may be taken for it.
PLACEHOLDERS = st.sampled_from([wire._STAMP, wire._STAMP[1:], wire._STAMP * 2, wire._ID.encode()])
TEXTS = st.text(max_size=60) | st.just(wire._ID)
MOMENTS = st.datetimes(datetime.datetime(1970, 1, 1), timezones=st.just(UTC)).map(
    lambda moment: moment.replace(microsecond=0)
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | TEXTS
    | st.binary(max_size=40)
    | PLACEHOLDERS
    | MOMENTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
NAMED = st.fixed_dictionaries(
    {},
    optional={
        "content_type": TEXTS,
        "content_encoding": TEXTS,
        "headers": st.dictionaries(TEXTS, VALUES, max_size=4),
        "delivery_mode": st.sampled_from([1, 2]),
        "priority": st.integers(0, 255),
        "correlation_id": TEXTS,
        "reply_to": TEXTS,
        "expiration": st.integers(0, 4_294_967),
        "type": TEXTS,
        "user_id": TEXTS,
        "app_id": TEXTS,
        "cluster_id": TEXTS,
    },
)
# Most messages have ids and times that are made for them.
STAMPS: st.SearchStrategy[dict[str, Any]] = st.just({}) | st.fixed_dictionaries(
    {}, optional={"message_id": TEXTS.filter(len), "timestamp": st.integers(0, 2**63 - 1)}
)
EDGES = [0, 1, SMALL - AROUND - 1, SMALL - AROUND, SMALL - AROUND + 1, SMALL, 2 * (SMALL - AROUND), 20_000]
BODIES = (
    st.binary(max_size=100)
    | PLACEHOLDERS
    | st.builds(
        lambda size, seed: random.Random(seed).randbytes(size), st.sampled_from(EDGES), st.integers(0, 9)
    )
)


def marshalled_by_pika(
    envelope: Envelope, channel: int, frame_max: int, properties: pika.BasicProperties, body: bytes
) -> bytes:
    publish = spec.Basic.Publish(
        exchange=envelope.exchange, routing_key=envelope.routing_key, mandatory=envelope.mandatory
    )
    step = frame_max - AROUND
    parts = [body[start : start + step] for start in range(0, len(body), step)]
    return b"".join(
        [
            frame.Method(channel, publish).marshal(),
            frame.Header(channel, len(body), properties).marshal(),
            *(frame.Body(channel, part).marshal() for part in parts),
        ]
    )


def frames_in(data: bytes, frame_max: int) -> list[Any]:
    found = []
    while data:
        size, decoded = frame.decode_frame(data)
        assert decoded is not None, "a frame is cut short"
        assert size <= frame_max
        found.append(decoded)
        data = data[size:]
    return found


def check_written(
    envelope: Envelope,
    named: dict[str, Any],
    channel: int,
    frame_max: int,
    stamp: tuple[str, int],
    body: bytes,
) -> None:
    """What the envelope writes is one message, this one, to pika as it reads and as it writes."""
    message_id, timestamp = stamp
    before: list[bytes] = [b"of others"]
    envelope.write(before, channel, frame_max, message_id, timestamp, body)
    assert before.pop(0) == b"of others"
    data = b"".join(before)

    expected = checked_properties(named, None, "text/plain")
    expected.message_id = named.get("message_id", message_id)
    expected.timestamp = named.get("timestamp", timestamp)
    method, header, *bodies = frames_in(data, frame_max)
    assert isinstance(method.method, spec.Basic.Publish)
    assert method.method.exchange == envelope.exchange
    assert method.method.routing_key == envelope.routing_key
    assert method.method.mandatory is envelope.mandatory
    assert isinstance(header, frame.Header)
    assert header.body_size == len(body)
    assert header.properties == expected
    assert all(isinstance(each, frame.Body) for each in bodies)
    assert b"".join(each.fragment for each in bodies) == body
    assert {each.channel_number for each in (method, header, *bodies)} == {channel}

    assert envelope.complete(message_id, timestamp) == expected
    assert data == marshalled_by_pika(envelope, channel, frame_max, expected, body)


@settings(max_examples=400, deadline=None)
@given(
    exchange=TEXTS,
    routing_key=TEXTS,
    mandatory=st.booleans(),
    named=NAMED,
    own=STAMPS,
    frame_max=st.sampled_from([SMALL, 131_072]),
    messages=st.lists(
        st.tuples(st.sampled_from([1, 7]), st.integers(0, 2**63 - 1), BODIES), min_size=1, max_size=4
    ),
)
def test_what_is_written_is_what_pika_would_write(
    exchange: str,
    routing_key: str,
    mandatory: bool,
    named: dict[str, Any],
    own: dict[str, Any],
    frame_max: int,
    messages: list[tuple[int, int, bytes]],
) -> None:
    named = named | own
    envelope = Envelope(exchange, routing_key, mandatory, checked_properties(named, None, "text/plain"))
    assume(envelope.size <= frame_max)
    new_id = make_ids(os.urandom)
    # One envelope for all: the first message's id, time, body and channel must not show in the next.
    for channel, timestamp, body in messages:
        check_written(envelope, named, channel, frame_max, (new_id(), timestamp), body)


@pytest.mark.parametrize("size", EDGES)
def test_bodies_of_every_critical_size_are_written_whole(size: int) -> None:
    named = {"headers": {"a": "b"}, "type": "t"}
    envelope = Envelope("e", "k", True, checked_properties(named, None, "text/plain"))
    for channel in (1, 7, 1):
        check_written(envelope, named, channel, SMALL, (ID, 5), bytes(size))


@pytest.mark.parametrize(
    "named",
    [
        {"headers": {"h": wire._STAMP}},
        {"headers": {"h": b"x" + wire._STAMP + b"x", "i": [wire._STAMP, {"j": wire._STAMP}]}},
        {"headers": {wire._ID: wire._ID}, "correlation_id": wire._ID, "app_id": wire._ID},
        {"message_id": wire._ID},
        {"message_id": wire._ID, "timestamp": wire._TIME},
        {"timestamp": wire._TIME},
    ],
)
def test_what_looks_like_the_placeholder_is_sent_as_it_is(named: dict[str, Any]) -> None:
    envelope = Envelope("", "q", True, checked_properties(named, None, "text/plain"))
    for channel in (1, 7):
        for body in (b"", b"body", wire._STAMP):
            check_written(envelope, named, channel, SMALL, (ID, 5), body)


def test_an_id_of_another_length_is_written_whole() -> None:
    envelope = Envelope("", "q", True, checked_properties({}, None, "text/plain"))
    for message_id in ("", "short", "x" * 255, ID):
        check_written(envelope, {}, 1, SMALL, (message_id, 5), b"body")


# What is remembered


def find(envelopes: Envelopes, routing_key: Any = "k", **changes: Any) -> Envelope:
    arguments: dict[str, Any] = {
        "exchange": "e",
        "mandatory": True,
        "content_type": "text/plain",
        "properties": None,
    }
    named = {name: value for name, value in changes.items() if name not in arguments}
    arguments.update((name, value) for name, value in changes.items() if name in arguments)
    return envelopes.find(routing_key=routing_key, named=named, **arguments)


def test_equal_messages_share_an_envelope_and_others_do_not() -> None:
    envelopes = Envelopes(131_072)
    differences: list[dict[str, Any]] = [
        {},
        {"routing_key": "other"},
        {"exchange": "other"},
        {"exchange": "k", "routing_key": "e"},
        {"mandatory": False},
        {"content_type": "application/json"},
        {"priority": 1},
        {"priority": 2},
        {"delivery_mode": 1},
        {"type": "e"},
        {"app_id": "e"},
        {"priority": 1, "type": "e"},
    ]
    found = [find(envelopes, **changes) for changes in differences]
    assert len({id(envelope) for envelope in found}) == len(found)
    assert [find(envelopes, **changes) for changes in differences] == found
    for changes, envelope in zip(differences, found, strict=True):
        assert (envelope.exchange, envelope.routing_key, envelope.mandatory) == (
            changes.get("exchange", "e"),
            changes.get("routing_key", "k"),
            changes.get("mandatory", True),
        )
        named = {
            name: value
            for name, value in changes.items()
            if name not in {"exchange", "routing_key", "mandatory", "content_type"}
        }
        content_type = changes.get("content_type", "text/plain")
        assert envelope.properties == checked_properties(named, None, content_type)


@pytest.mark.parametrize(
    "own",
    [
        {"headers": {}},
        {"headers": {"a": 1}},
        {"message_id": "m"},
        {"correlation_id": "c"},
        {"timestamp": 1},
        {"properties": pika.BasicProperties(type="t")},
    ],
    ids=lambda own: next(iter(own)),
)
def test_what_is_each_messages_own_is_not_remembered(own: dict[str, Any]) -> None:
    envelopes = Envelopes(131_072)
    assert find(envelopes, **own) is not find(envelopes, **own)
    assert not envelopes._known


def test_headers_that_are_changed_later_are_not_those_that_were_given() -> None:
    envelopes = Envelopes(131_072)
    headers = {"a": 1}
    first = find(envelopes, headers=headers)
    headers["a"] = 2
    second = find(envelopes, headers=headers)
    assert (first.properties.headers, second.properties.headers) == ({"a": 1}, {"a": 2})


@pytest.mark.parametrize(
    "wrong",
    [
        {"routing_key": "x" * 256},
        {"routing_key": None},
        {"routing_key": ["k"]},
        {"exchange": 5},
        {"mandatory": None},
        {"priority": 256},
        {"priority": [1]},
        {"delivery_mode": {}},
        {"expiration": -1},
        {"unknown": 1},
        {"headers": 5},
        {"headers": {"long": "x" * 131_072}},
    ],
    ids=str,
)
def test_what_is_wrong_is_wrong_every_time(wrong: dict[str, Any]) -> None:
    envelopes = Envelopes(131_072)
    for _ in range(3):
        with pytest.raises(InvalidMessage):
            find(envelopes, **wrong)
    assert not envelopes._known


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ({"priority": 1}, {"priority": True}),
        ({"priority": 1}, {"priority": 1.0}),
        ({"delivery_mode": 1}, {"delivery_mode": True}),
        ({"mandatory": False}, {"mandatory": 0}),
        ({"mandatory": True}, {"mandatory": 1}),
    ],
    ids=str,
)
def test_what_is_wrong_is_wrong_though_it_is_equal_to_what_is_right(
    right: dict[str, Any], wrong: dict[str, Any]
) -> None:
    envelopes = Envelopes(131_072)
    assert find(envelopes, **right) is find(envelopes, **right)
    with pytest.raises(InvalidMessage):
        find(envelopes, **wrong)


def test_any_number_of_addresses_takes_a_bounded_memory() -> None:
    envelopes = Envelopes(131_072)
    for number in range(5_000):
        assert find(envelopes, f"reply.{number}").routing_key == f"reply.{number}"
        assert len(envelopes._known) <= 1_000
    assert find(envelopes, "reply.1").routing_key == "reply.1"


def test_properties_that_fit_are_written_within_the_frame() -> None:
    envelopes = Envelopes(SMALL)
    longest = 0
    for size in range(SMALL - 200, SMALL):
        try:
            envelope = find(envelopes, headers={"h": "x" * size})
        except InvalidMessage:
            break
        longest = size
        check_written(envelope, {"headers": {"h": "x" * size}}, 1, SMALL, (ID, 5), b"body")
    assert SMALL - 200 < longest < SMALL - 1
    with pytest.raises(InvalidMessage, match=r"headers, have about \d+ bytes; .* carries 4096$"):
        find(envelopes, headers={"h": "x" * SMALL})


def test_a_broker_with_shorter_frames_forgets_what_may_not_fit() -> None:
    envelopes = Envelopes(131_072)
    plain = find(envelopes)
    assert envelopes.shorten(131_072)
    assert envelopes.shorten(200_000)
    assert find(envelopes) is plain
    long = {"headers": {"h": "x" * 5_000}}
    find(envelopes, **long)
    assert not envelopes.shorten(SMALL)
    with pytest.raises(InvalidMessage):
        find(envelopes, **long)


# Ids


def test_ids_are_unique_and_of_one_length() -> None:
    makers = [make_ids(os.urandom) for _ in range(10)]
    ids = [make() for make in makers for _ in range(5_000)]
    assert len(set(ids)) == len(ids)
    assert {len(message_id) for message_id in ids} == {ID_LENGTH}
    assert all(message_id.isascii() for message_id in ids)


def test_ids_of_two_processes_differ_in_eighty_random_bits() -> None:
    asked = []

    def random_bytes(count: int) -> bytes:
        asked.append(count)
        return b"\xab" * count

    assert make_ids(random_bytes)().startswith("ab" * 10)
    assert asked == [10]


# The whole way, through a real broker


LETTERS = "abc xyz ÄÖ ☃ 𝄞 ' \" \\ \n \x01"


def random_text(chance: random.Random, longest: int = 40) -> str:
    return "".join(chance.choices(LETTERS, k=chance.randrange(longest)))


def random_value(chance: random.Random, depth: int = 0) -> Any:
    kind = chance.randrange(7 if depth > 2 else 9)
    if kind == 7:
        return [random_value(chance, depth + 1) for _ in range(chance.randrange(4))]
    if kind == 8:
        return {f"{number}ö": random_value(chance, depth + 1) for number in range(chance.randrange(4))}
    return [
        None,
        chance.random() < 0.5,
        chance.randrange(-(2**63), 2**63),
        chance.randrange(-100, 100),
        random_text(chance),
        chance.randbytes(chance.randrange(20)),
        datetime.datetime.fromtimestamp(chance.randrange(2**33), UTC),
    ][kind]


def random_properties(chance: random.Random) -> dict[str, Any]:
    makers: dict[str, Any] = {
        "content_type": lambda: random_text(chance),
        "content_encoding": lambda: random_text(chance),
        "headers": lambda: {f"h{number}": random_value(chance) for number in range(chance.randrange(5))},
        "delivery_mode": lambda: chance.choice([1, 2]),
        "priority": lambda: chance.randrange(256),
        "correlation_id": lambda: random_text(chance),
        "reply_to": lambda: random_text(chance),
        "expiration": lambda: chance.randrange(1_000, 4_000_000),
        "message_id": lambda: random_text(chance) or "id",
        "timestamp": lambda: chance.randrange(2**63),
        "type": lambda: random_text(chance),
        "user_id": lambda: "guest",  # the broker checks it
        "app_id": lambda: random_text(chance),
        "cluster_id": lambda: random_text(chance),
    }
    return {name: make() for name, make in makers.items() if chance.random() < 0.3}


def random_body(chance: random.Random, number: int) -> bytes:
    if number in {100, 200, 300}:
        return chance.randbytes(5 * 2**20)
    if number % 500 == 7:
        return chance.randbytes(chance.randrange(100_000, 400_000))
    return chance.randbytes(chance.choice([0, 1, chance.randrange(100), chance.randrange(5_000)]))


@pytest.mark.usefixtures("both_ways")
def test_random_messages_arrive_as_they_were_sent(node: RabbitMQNode) -> None:
    chance = random.Random(20_240_501)
    count = 10_000
    sent = [(random_properties(chance), random_body(chance, number)) for number in range(count)]
    assert sum(len(body) for _, body in sent) < 60 * 2**20
    began = int(time.time())
    with pika.BlockingConnection(pika.URLParameters(node.url)) as connection:
        channel = connection.channel()
        queue = channel.queue_declare("", exclusive=True).method.queue
        _, fpika = make_app(node.params)
        messages = (Message(body, routing_key=queue, **named) for named, body in sent)
        report = fpika.publish_many(messages, timeout=100)
        assert (report.confirmed, report.failed, report.complete) == (count, [], True)

        arrived: list[tuple[Any, bytes | None]] = []
        for _, properties, body in channel.consume(queue, auto_ack=True, inactivity_timeout=20):
            arrived.append((properties, body))
            if properties is None or len(arrived) == count:
                break
        assert not channel.get_waiting_message_count()
    made: set[str] = set()
    for (named, body), (properties, arrived_body) in zip(sent, arrived, strict=True):
        assert arrived_body == body
        expected = checked_properties(named, None, "application/octet-stream")
        if expected.message_id is None:
            expected.message_id = properties.message_id
            made.add(properties.message_id)
            assert len(properties.message_id) == ID_LENGTH
        if expected.timestamp is None:
            expected.timestamp = properties.timestamp
            assert began <= properties.timestamp <= time.time()
        assert properties == expected
    assert len(made) == sum("message_id" not in named for named, _ in sent)
