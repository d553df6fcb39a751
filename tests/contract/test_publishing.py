"""Publishing: what is routed, returned or refused, and what a message keeps on its way."""

from __future__ import annotations

import datetime
import struct
from decimal import Decimal
from typing import Any

import pika
import pytest
from pika import spec
from pika.adapters.blocking_connection import BlockingChannel

from tests.contract.conftest import Connect
from tests.contract.helpers import (
    Delivery,
    bodies,
    closes,
    count,
    exchange,
    fetch,
    name,
    publish,
    queue,
    send,
    touch,
    until,
)
from tests.contract.raw import Wire

EVERY_PROPERTY: dict[str, Any] = {
    "content_type": "application/json",
    "content_encoding": "gzip",
    "headers": {"a": 1},
    "delivery_mode": 2,
    "priority": 7,
    "correlation_id": "correlation",
    "reply_to": "reply",
    "expiration": "600000",
    "message_id": "id",
    "timestamp": 1700000000,
    "type": "type",
    "user_id": "guest",
    "app_id": "app",
    "cluster_id": "cluster",
}


def returns(ch: BlockingChannel) -> list[Delivery]:
    got: list[Delivery] = []
    ch.add_on_return_callback(
        lambda _ch, method, properties, body: got.append(Delivery(method, properties, body))
    )
    return got


# -- routing


def test_an_unroutable_message_is_dropped(ch: BlockingChannel) -> None:
    publish(ch, "amq.direct", name(), b"x")
    touch(ch)


def test_an_unroutable_mandatory_message_comes_back_whole(ch: BlockingChannel) -> None:
    got, key = returns(ch), name()
    ch.basic_publish("amq.direct", key, b"body", pika.BasicProperties(**EVERY_PROPERTY), mandatory=True)
    until(ch, lambda: got, "the return")
    method = got[0].method
    assert (method.reply_code, method.reply_text) == (312, "NO_ROUTE")
    assert (method.exchange, method.routing_key) == ("amq.direct", key)
    assert got[0].body == b"body"
    assert got[0].properties.__dict__ == pika.BasicProperties(**EVERY_PROPERTY).__dict__


def test_a_routed_mandatory_message_does_not_come_back(ch: BlockingChannel) -> None:
    got, q = returns(ch), queue(ch)
    ch.basic_publish("", q, b"x", mandatory=True)
    assert fetch(ch, q).body == b"x"
    assert got == []


def test_publishing_to_a_missing_exchange_closes_the_channel_with_404(ch: BlockingChannel) -> None:
    missing = name()
    with closes(404, f"NOT_FOUND - no exchange '{missing}' in vhost '/'"):
        publish(ch, missing, "k")
        touch(ch)


def test_publishing_to_a_missing_queue_through_the_default_exchange_is_no_error(ch: BlockingChannel) -> None:
    publish(ch, "", name())
    touch(ch)


def test_immediate_closes_the_connection_with_540(wire: Wire) -> None:
    wire.publish("", "k", b"x", immediate=True)
    wire.expect_connection_close(540, "NOT_IMPLEMENTED - immediate=true", spec.Basic.Publish)


@pytest.mark.parametrize("size", [0, 1, 131064, 131065, 1_000_000])
def test_a_body_of_any_size_comes_as_it_was(ch: BlockingChannel, size: int) -> None:
    q, body = queue(ch), bytes(index * 7 % 256 for index in range(size % 1000)) + b"x" * (size - size % 1000)
    send(ch, q, body)
    assert fetch(ch, q).body == body


def test_a_body_beyond_the_limit_closes_the_channel_with_406(wire: Wire) -> None:
    # RabbitMQ 3.10 looks at the size when it has the whole message; the limit is 16 MiB in 4.x.
    size, fragment = 2**27 + 1, b"x" * 131064
    wire.send(spec.Basic.Publish(exchange="", routing_key="k")).send_header(size)
    for _ in range(size // len(fragment)):
        wire.send_body(fragment)
    wire.send_body(b"x" * (size % len(fragment)))
    wire.expect_channel_close(
        406,
        "PRECONDITION_FAILED - message size 134217729 is larger than configured max size 134217728",
        spec.Basic.Publish,
    )


# -- properties


def test_every_property_comes_as_it_was(ch: BlockingChannel) -> None:
    q = queue(ch)
    send(ch, q, b"x", **EVERY_PROPERTY)
    assert fetch(ch, q).properties.__dict__ == pika.BasicProperties(**EVERY_PROPERTY).__dict__


def test_a_message_without_properties_gets_none(ch: BlockingChannel) -> None:
    q = queue(ch)
    send(ch, q, b"x")
    assert fetch(ch, q).properties.__dict__ == pika.BasicProperties().__dict__


@pytest.mark.parametrize(
    "value",
    [
        "text",
        "",
        "å∫ç",
        "x" * 5000,
        b"bytes\x00\xff",
        True,
        False,
        0,
        -1,
        2**31 - 1,
        -(2**31),
        2**40,
        -(2**63),
        Decimal("3.14"),
        Decimal(100),
        datetime.datetime(2024, 2, 29, 12, 30, 15, tzinfo=datetime.timezone.utc),
        None,
        {},
        {"nested": {"deeper": [1, "two", None, {"three": 3}]}},
        [],
        [1, "two", True, None, b"x", [2**40]],
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_header_comes_as_it_was(ch: BlockingChannel, value: object) -> None:
    q = queue(ch)
    send(ch, q, b"x", headers={"h": value})
    came = fetch(ch, q).headers["h"]
    assert came == value
    assert isinstance(came, type(value))


@pytest.mark.parametrize(
    "encoded",
    [
        b"b\xff",  # signed byte
        b"B\xff",  # unsigned byte
        b"s\xff\xfe",  # signed short
        b"u\xff\xfe",  # unsigned short
        b"i\xff\xff\xff\xfe",  # unsigned int
        b"f\x3f\x80\x00\x00",  # float
        b"d\x3f\xf0\x00\x00\x00\x00\x00\x00",  # double
    ],
)
def test_a_header_keeps_its_type_on_the_wire(wire: Wire, encoded: bytes) -> None:
    q = wire.declare()
    table = b"\x01h" + encoded
    properties = b"\x20\x00" + len(table).to_bytes(4, "big") + table
    header = b"\x00\x3c\x00\x00" + (0).to_bytes(8, "big") + properties
    wire.send(spec.Basic.Publish(exchange="", routing_key=q)).send_frame(spec.FRAME_HEADER, 1, header)
    wire.send(spec.Basic.Get(queue=q, no_ack=True)).expect(spec.Basic.GetOk)
    raw = wire.read_raw()
    assert raw is not None
    assert raw[2] == header


@pytest.mark.parametrize("mode", [1, 2])
def test_the_delivery_mode_comes_as_it_was(ch: BlockingChannel, mode: int) -> None:
    q = queue(ch)
    send(ch, q, b"x", delivery_mode=mode)
    assert fetch(ch, q).properties.delivery_mode == mode


def test_another_users_id_is_refused_with_406(ch: BlockingChannel) -> None:
    with closes(
        406, "PRECONDITION_FAILED - user_id property set to 'somebody' but authenticated user was 'guest'"
    ):
        publish(ch, "", "k", user_id="somebody")
        touch(ch)


@pytest.mark.parametrize(
    ("expiration", "why"),
    [
        ("soon", "no_integer"),
        ("", "no_integer"),
        ("-1", "{value_negative,-1}"),
        ("1.5", '{leftover_string,".5"}'),
        ("5 ", '{leftover_string," "}'),
        (" 5", "no_integer"),
        ("5s", '{leftover_string,"s"}'),
    ],
)
def test_an_expiration_that_is_no_number_is_refused_with_406(
    ch: BlockingChannel, expiration: str, why: str
) -> None:
    with closes(406, f"PRECONDITION_FAILED - invalid expiration '{expiration}': {why}"):
        publish(ch, "", "k", expiration=expiration)
        touch(ch)


# -- CC and BCC


def test_cc_and_bcc_are_further_routing_keys(ch: BlockingChannel) -> None:
    to, cc, bcc = queue(ch), queue(ch), queue(ch)
    publish(ch, "", to, b"x", headers={"CC": [cc], "BCC": [bcc], "kept": 1})
    for q in (to, cc, bcc):
        came = fetch(ch, q)
        assert came.body == b"x"
        assert came.method.routing_key == to
        assert came.headers == {"CC": [cc], "kept": 1}  # nobody sees the BCC


def test_a_queue_that_is_named_twice_gets_one(ch: BlockingChannel) -> None:
    q = queue(ch)
    publish(ch, "", q, b"x", headers={"CC": [q, q], "BCC": [q]})
    assert bodies(ch, q) == [b"x"]


def test_cc_alone_makes_a_message_routable(ch: BlockingChannel) -> None:
    q = queue(ch)
    ch.confirm_delivery()
    ch.basic_publish("", name(), b"x", pika.BasicProperties(headers={"CC": [q]}), mandatory=True)
    assert bodies(ch, q) == [b"x"]


def test_cc_counts_for_a_topic_exchange(ch: BlockingChannel) -> None:
    q, e = queue(ch), exchange(ch, "topic")
    ch.queue_bind(q, e, "a.*")
    publish(ch, e, "none", b"x", headers={"CC": ["a.b"]})
    assert bodies(ch, q) == [b"x"]


@pytest.mark.parametrize("header", ["CC", "BCC"])
def test_a_cc_that_is_no_list_is_refused_with_406(ch: BlockingChannel, header: str) -> None:
    why = f'{{unacceptable_type_in_header,"{header}",longstr}}'
    with closes(406, f"PRECONDITION_FAILED - invalid message: {why}"):
        publish(ch, "", "k", headers={header: "k"})
        touch(ch)


def test_a_cc_of_something_else_than_strings_is_passed_over(ch: BlockingChannel) -> None:
    q = queue(ch)
    publish(ch, "", name(), b"x", headers={"CC": [1, None, q]})
    assert bodies(ch, q) == [b"x"]


# -- get


def test_an_empty_queue_gives_nothing(ch: BlockingChannel) -> None:
    assert ch.basic_get(queue(ch)) == (None, None, None)


def test_a_get_tells_how_many_are_left(ch: BlockingChannel) -> None:
    q = queue(ch)
    ch.queue_bind(q, "amq.direct", q)
    for body in (b"1", b"2"):
        publish(ch, "amq.direct", q, body)
    came = [fetch(ch, q, auto_ack=False) for _ in range(2)]
    assert [c.method.message_count for c in came] == [1, 0]
    assert [c.method.delivery_tag for c in came] == [1, 2]
    assert [(c.method.exchange, c.method.routing_key, c.method.redelivered) for c in came] == [
        ("amq.direct", q, False)
    ] * 2


def test_a_get_without_ack_is_settled_and_counts_in_the_tags(ch: BlockingChannel) -> None:
    q = queue(ch)
    send(ch, q, b"1", b"2")
    assert fetch(ch, q, auto_ack=True).tag == 1
    assert fetch(ch, q, auto_ack=False).tag == 2
    with closes(406, "PRECONDITION_FAILED - unknown delivery tag 1"):
        ch.basic_ack(1)
        touch(ch)


def test_what_was_got_before_its_channel_closed_comes_again_as_redelivered(
    connection: pika.BlockingConnection, ch: BlockingChannel
) -> None:
    q, further = queue(ch), connection.channel()
    send(ch, q, b"x")
    assert not fetch(further, q, auto_ack=False).method.redelivered
    further.close()
    assert fetch(ch, q).method.redelivered


def test_a_durable_queue_keeps_what_a_closed_connection_published(
    ch: BlockingChannel, connect: Connect
) -> None:
    publisher = connect()
    q = queue(publisher.channel(), exclusive=False, durable=True)
    send(publisher.channel(), q, b"x", delivery_mode=2)
    publisher.close()
    assert fetch(ch, q).body == b"x"
    assert count(ch, q) == 0
    ch.queue_delete(q)


@pytest.mark.parametrize("mode", [0, 3])
def test_an_unknown_delivery_mode_is_refused_with_406(wire: Wire, mode: int) -> None:
    wire.send(spec.Basic.Publish(exchange="", routing_key="k")).send_header(0, delivery_mode=mode)
    wire.expect_channel_close(
        406, f"PRECONDITION_FAILED - invalid message: {{delivery_mode_unknown,{mode}}}", spec.Basic.Publish
    )


@pytest.mark.parametrize("header", [b"\x01at" + b"T" + bytes([0, 0, 1, 0, 0, 0, 0, 0]), b"\x01aL" + bytes(8)])
def test_headers_that_pika_cannot_read_are_carried(wire: Wire, header: bytes) -> None:
    wire.send(spec.Queue.Declare(queue="", exclusive=True))
    q = wire.expect(spec.Queue.DeclareOk).queue
    header = header.replace(b"\x01at", b"\x01a")
    table = struct.pack(">I", len(header)) + header
    payload = struct.pack(">HHQH", 60, 0, 1, 1 << 13) + table
    wire.send(spec.Basic.Publish(exchange="", routing_key=q)).send_frame(2, 1, payload)
    wire.send_body(b"x").send(spec.Basic.Get(queue=q, no_ack=True)).expect(spec.Basic.GetOk)
    came = wire.read_raw()
    assert came is not None
    assert came[2].replace(b"L", b"l") == payload.replace(b"L", b"l")
