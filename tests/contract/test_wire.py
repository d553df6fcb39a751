"""What is on the wire: frames in their order, and what becomes of clients that send others."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from pika import spec

from tests.contract.helpers import name
from tests.contract.raw import Wire

NO_METHOD = "UNEXPECTED_FRAME - expected method frame, got non method frame instead"
NO_HEADER = "UNEXPECTED_FRAME - expected content header for class 60, got non content header frame instead"
NO_BODY = "UNEXPECTED_FRAME - expected content body, got non content body frame instead"


def method(class_id: int, method_id: int, arguments: bytes = b"") -> bytes:
    return struct.pack(">HH", class_id, method_id) + arguments


# -- channels


def test_opening_a_channel_twice_closes_the_connection_with_504(wire: Wire) -> None:
    wire.send(spec.Channel.Open())
    wire.expect_connection_close(504, "CHANNEL_ERROR - second 'channel.open' seen", spec.Channel.Open)


@pytest.mark.parametrize(
    "method",
    [
        spec.Queue.Declare(queue="q"),
        spec.Basic.Ack(1),
        spec.Channel.Close(200, "", 0, 0),
        spec.Channel.CloseOk(),
        spec.Tx.Select(),
    ],
    ids=lambda method: method.NAME,
)
def test_a_channel_that_is_not_open_closes_the_connection_with_504(wire: Wire, method: Any) -> None:
    wire.send(method, 7)
    wire.expect_connection_close(504, "CHANNEL_ERROR - expected 'channel.open'", type(method))


def test_publishing_on_a_channel_that_is_not_open_closes_the_connection_with_504(wire: Wire) -> None:
    wire.publish("", "k", b"body", 7)
    wire.expect_connection_close(504, "CHANNEL_ERROR - expected 'channel.open'", spec.Basic.Publish)


def test_a_heartbeat_on_a_channel_closes_the_connection_with_505(wire: Wire) -> None:
    wire.send_frame(spec.FRAME_HEARTBEAT, 1, b"")
    wire.expect_connection_close(505, "UNEXPECTED_FRAME - type 8, all octets = <<>>")


def test_content_on_a_channel_that_is_not_open_closes_the_connection_with_505(wire: Wire) -> None:
    wire.send_header(5, channel=7)
    wire.expect_connection_close(505, NO_METHOD)


def test_a_channels_method_on_channel_zero_closes_the_connection_with_504(wire: Wire) -> None:
    wire.send(spec.Queue.Declare(queue="q"), 0)
    wire.expect_connection_close(
        504, "CHANNEL_ERROR - unexpected method in connection state running", spec.Queue.Declare
    )


def test_a_connections_method_on_a_channel_closes_the_connection_with_503(wire: Wire) -> None:
    wire.send(spec.Connection.Open("/"), 1)
    wire.expect_connection_close(503, "COMMAND_INVALID - unimplemented method", spec.Connection.Open)


@pytest.mark.parametrize(
    "method",
    [
        spec.Channel.OpenOk(),
        spec.Basic.GetEmpty(),
        spec.Queue.DeclareOk("q", 0, 0),
        spec.Basic.ConsumeOk("c"),
    ],
    ids=lambda method: method.NAME,
)
def test_a_brokers_method_from_a_client_closes_the_connection(wire: Wire, method: Any) -> None:
    wire.send(method)
    wire.expect_connection_close(503, "COMMAND_INVALID - unimplemented method", type(method))


@pytest.mark.parametrize(
    ("channel", "class_id", "method_id"), [(1, 60, 999), (1, 99, 10), (1, 0, 0), (0, 10, 999)]
)
def test_an_unknown_method_ends_the_connection(
    wire: Wire, channel: int, class_id: int, method_id: int
) -> None:
    wire.send_frame(spec.FRAME_METHOD, channel, method(class_id, method_id))
    wire.expect_end()  # RabbitMQ says no word


def test_cut_arguments_close_the_connection_with_501(wire: Wire) -> None:
    wire.send_frame(spec.FRAME_METHOD, 1, method(50, 10, b"\x00\x00\x05ab"))
    wire.expect_connection_close(501, "FRAME_ERROR - cannot decode <<0,0,5,97,98>>")


def test_a_closed_channel_passes_over_all_but_the_answer_to_its_close(wire: Wire) -> None:
    missing, q = name(), name()
    wire.publish(missing, "k", b"body")
    wire.expect(spec.Channel.Close)
    wire.publish("", "k", b"more").send(spec.Queue.Declare(queue=q, auto_delete=True))
    wire.send(spec.Channel.CloseOk())
    wire.open_channel(1)
    wire.send(spec.Queue.Declare(queue=q, passive=True))
    wire.expect_channel_close(404, f"NOT_FOUND - no queue '{q}' in vhost '/'", spec.Queue.Declare)


def test_a_channel_may_be_opened_again_after_an_error(wire: Wire) -> None:
    for _ in range(3):
        missing = name()
        wire.send(spec.Queue.Purge(queue=missing))
        wire.expect_channel_close(404, f"NOT_FOUND - no queue '{missing}' in vhost '/'", spec.Queue.Purge)
        wire.open_channel(1).check()


def test_an_error_on_one_channel_leaves_the_others(wire: Wire) -> None:
    wire.open_channel(2)
    missing = name()
    wire.publish(missing, "k")
    wire.expect_channel_close(404, f"NOT_FOUND - no exchange '{missing}' in vhost '/'", spec.Basic.Publish)
    wire.check(2)


def test_a_client_may_close_its_channel_while_the_broker_does(wire: Wire) -> None:
    wire.publish(name(), "k").send(spec.Channel.Close(200, "bye", 0, 0))
    came = {type(wire.read().method) for _ in range(2)}
    assert came == {spec.Channel.Close, spec.Channel.CloseOk}
    wire.send(spec.Channel.CloseOk())
    wire.open_channel(1).check()


# -- content


def test_a_method_where_a_header_is_due_closes_the_connection_with_505(wire: Wire) -> None:
    wire.send(spec.Basic.Publish(exchange="", routing_key="k"))
    wire.send(spec.Queue.Declare(queue="q"))
    wire.expect_connection_close(505, NO_HEADER)


def test_a_body_where_a_header_is_due_closes_the_connection_with_505(wire: Wire) -> None:
    wire.send(spec.Basic.Publish(exchange="", routing_key="k"))
    wire.send_body(b"x")
    wire.expect_connection_close(505, NO_HEADER)


def test_a_method_where_a_body_is_due_closes_the_connection_with_505(wire: Wire) -> None:
    wire.send(spec.Basic.Publish(exchange="", routing_key="k")).send_header(5)
    wire.send(spec.Queue.Declare(queue="q"))
    wire.expect_connection_close(505, NO_BODY)


def test_a_second_header_closes_the_connection_with_505(wire: Wire) -> None:
    wire.send(spec.Basic.Publish(exchange="", routing_key="k")).send_header(5).send_header(5)
    wire.expect_connection_close(505, NO_BODY)


def test_a_header_of_another_class_closes_the_connection_with_505(wire: Wire) -> None:
    wire.send(spec.Basic.Publish(exchange="", routing_key="k"))
    wire.send_frame(spec.FRAME_HEADER, 1, struct.pack(">HHQH", 50, 0, 0, 0))
    wire.expect_connection_close(
        505, "UNEXPECTED_FRAME - expected content header for class 60, got one for class 50 instead"
    )


def test_a_larger_body_than_announced_closes_the_connection_at_the_next_method(wire: Wire) -> None:
    wire.send(spec.Basic.Publish(exchange="", routing_key="k")).send_header(3).send_body(b"abcd")
    wire.send(spec.Queue.Declare(queue="q"))
    wire.expect_connection_close(505, NO_BODY)


def test_a_body_where_a_method_is_due_closes_the_connection_with_505(wire: Wire) -> None:
    wire.send_body(b"x")
    wire.expect_connection_close(505, NO_METHOD)


def test_a_header_where_a_method_is_due_closes_the_connection_with_505(wire: Wire) -> None:
    wire.send_header(5)
    wire.expect_connection_close(505, NO_METHOD)


def test_a_body_may_come_in_frames_of_any_size(wire: Wire) -> None:
    q = wire.declare()
    wire.send(spec.Basic.Publish(exchange="", routing_key=q)).send_header(6)
    for fragment in (b"a", b"", b"bcd", b"ef"):
        wire.send_body(fragment)
    wire.send(spec.Basic.Get(queue=q, no_ack=True))
    assert wire.expect_content(spec.Basic.GetOk)[2] == b"abcdef"


def test_content_of_two_channels_may_be_interleaved(wire: Wire) -> None:
    q = wire.open_channel(2).declare()
    for channel in (1, 2):
        wire.send(spec.Basic.Publish(exchange="", routing_key=q), channel)
    for channel in (1, 2):
        wire.send_header(2, channel)
    for _ in range(2):
        for channel in (1, 2):
            wire.send_body(b"%d" % channel, channel)
    for channel in (1, 2):
        wire.check(channel)
    got = set()
    for _ in range(2):
        wire.send(spec.Basic.Get(queue=q, no_ack=True))
        got.add(wire.expect_content(spec.Basic.GetOk)[2])
    assert got == {b"11", b"22"}


def test_a_message_without_a_body_has_no_body_frame(wire: Wire) -> None:
    q = wire.declare()
    wire.publish("", q).send(spec.Basic.Get(queue=q, no_ack=True))
    assert wire.expect_content(spec.Basic.GetOk)[2] == b""
    wire.check()


def test_frames_may_come_byte_by_byte(wire: Wire) -> None:
    payload = method(40, 10, b"\x00\x00\x0aamq.direct\x06direct\x01\x00\x00\x00\x00")
    for byte in struct.pack(">BHI", 1, 1, len(payload)) + payload + b"\xce":
        wire.send_bytes(bytes([byte]))
    wire.expect(spec.Exchange.DeclareOk)


# -- frames that are none


def test_a_wrong_end_octet_closes_the_connection_with_501(wire: Wire) -> None:
    wire.send_frame(spec.FRAME_METHOD, 1, method(20, 10, b"\x00"), end=0)
    close = wire.expect(spec.Connection.Close, 0)
    assert (close.reply_code, close.reply_text) == (
        501,
        "FRAME_ERROR - type 1, all octets = <<0,20,0,10,0>>: {invalid_frame_end_marker,0}",
    )


def test_an_unknown_kind_of_frame_closes_the_connection_with_501(wire: Wire) -> None:
    wire.send_frame(9, 1, b"abc")
    wire.expect_connection_close(501, 'FRAME_ERROR - type 9, all octets = <<"abc">>: unknown_frame')


def test_a_second_protocol_header_closes_the_connection(wire: Wire) -> None:
    wire.send_bytes(b"AMQP\x00\x00\x09\x01")
    close = wire.expect(spec.Connection.Close, 0)
    assert (close.reply_code, close.reply_text) == (
        501,
        "FRAME_ERROR - type 65, all octets = <<>>: {frame_too_large,1342177289,131064}",
    )


def test_a_malformed_property_list_closes_the_connection_with_541(wire: Wire) -> None:
    wire.send(spec.Basic.Publish(exchange="", routing_key="k"))
    wire.send_frame(spec.FRAME_HEADER, 1, struct.pack(">HHQH", 60, 0, 0, 0x8000) + b"\x09ab")
    wire.expect_connection_close(541, "INTERNAL_ERROR")


# -- no-wait


def test_no_wait_has_no_answer(wire: Wire) -> None:
    q, e = name(), name()
    wire.send(spec.Exchange.Declare(exchange=e, type="fanout", nowait=True))
    wire.send(spec.Queue.Declare(queue=q, exclusive=True, nowait=True))
    wire.send(spec.Queue.Bind(queue=q, exchange=e, nowait=True))
    wire.publish(e, "", b"x")
    wire.send(spec.Basic.Consume(queue=q, consumer_tag="c", nowait=True))
    assert wire.expect_content(spec.Basic.Deliver)[2] == b"x"
    wire.send(spec.Basic.Cancel(consumer_tag="c", nowait=True))
    wire.send(spec.Queue.Purge(queue=q, nowait=True))
    wire.send(spec.Queue.Delete(queue=q, nowait=True))
    wire.send(spec.Exchange.Bind(destination=e, source="amq.direct", nowait=True))
    wire.send(spec.Exchange.Unbind(destination=e, source="amq.direct", nowait=True))
    wire.send(spec.Exchange.Delete(exchange=e, nowait=True))
    wire.check()


def test_an_error_without_wait_is_an_error_still(wire: Wire) -> None:
    missing = name()
    wire.send(spec.Queue.Declare(queue=missing, passive=True, nowait=True))
    wire.expect_channel_close(404, f"NOT_FOUND - no queue '{missing}' in vhost '/'", spec.Queue.Declare)


def test_access_request_is_answered(wire: Wire) -> None:
    wire.send(spec.Access.Request(realm="/data"))
    assert wire.expect(spec.Access.RequestOk).ticket == 1
