"""Streams: a log that is read again and again."""

from __future__ import annotations

import re
from typing import Any

import pytest
from pika.adapters.blocking_connection import BlockingChannel

from tests.contract.conftest import Declare
from tests.contract.helpers import Inbox, closes, confirmed, disconnects, name, touch


def test_a_stream_is_read_again_and_again(ch: BlockingChannel, pub: BlockingChannel, typed: Declare) -> None:
    q = typed("stream")
    confirmed(pub, q, b"1", b"2", b"3")
    ch.basic_qos(prefetch_count=10)
    for _ in range(2):
        inbox = Inbox(ch, q, arguments={"x-stream-offset": "first"})
        inbox.wait(3)
        assert inbox.bodies == [b"1", b"2", b"3"]
        assert [delivery.headers["x-stream-offset"] for delivery in inbox.got] == [0, 1, 2]
        for delivery in inbox.got:
            ch.basic_ack(delivery.tag)
        ch.basic_cancel(inbox.tag)


@pytest.mark.parametrize(
    ("offset", "expected"), [("first", [b"0", b"1", b"2"]), (1, [b"1", b"2"]), (2, [b"2"])]
)
def test_a_stream_is_read_from_an_offset(
    ch: BlockingChannel, pub: BlockingChannel, typed: Declare, offset: object, expected: list[bytes]
) -> None:
    q = typed("stream")
    confirmed(pub, q, b"0", b"1", b"2")
    ch.basic_qos(prefetch_count=10)
    inbox = Inbox(ch, q, arguments={"x-stream-offset": offset})
    inbox.wait(len(expected))
    assert inbox.bodies == expected


@pytest.mark.parametrize("arguments", [None, {"x-stream-offset": "next"}])
def test_without_an_offset_a_stream_is_read_from_now_on(
    ch: BlockingChannel, pub: BlockingChannel, typed: Declare, arguments: dict[str, Any] | None
) -> None:
    q = typed("stream")
    confirmed(pub, q, b"before")
    ch.basic_qos(prefetch_count=10)
    inbox = Inbox(ch, q, arguments=arguments)
    confirmed(pub, q, b"after")
    inbox.wait(1)
    assert inbox.bodies == [b"after"]


def test_a_stream_gives_more_as_its_messages_are_acknowledged(
    ch: BlockingChannel, pub: BlockingChannel, typed: Declare
) -> None:
    q = typed("stream")
    confirmed(pub, q, b"1", b"2")
    ch.basic_qos(prefetch_count=1)
    inbox = Inbox(ch, q, arguments={"x-stream-offset": "first"})
    inbox.wait(1)
    ch.basic_ack(inbox.got[0].tag)
    inbox.wait(2)
    assert inbox.bodies == [b"1", b"2"]


def test_a_stream_refuses_a_consumer_without_prefetch_with_406(ch: BlockingChannel, typed: Declare) -> None:
    q = typed("stream")
    with closes(
        406, f"PRECONDITION_FAILED - consumer prefetch count is not set for 'queue '{q}' in vhost '/''"
    ):
        Inbox(ch, q)


def test_a_stream_refuses_a_consumer_without_acks_with_540(ch: BlockingChannel, typed: Declare) -> None:
    q = typed("stream")
    ch.basic_qos(prefetch_count=1)
    with disconnects(
        540,
        "NOT_IMPLEMENTED - automatic acknowledgement not supported by stream queues "
        f"queue '{q}' in vhost '/'",
    ):
        Inbox(ch, q, auto_ack=True)


def test_a_stream_refuses_a_get_with_540(ch: BlockingChannel, typed: Declare) -> None:
    q = typed("stream")
    with disconnects(
        540,
        f"NOT_IMPLEMENTED - basic.get not supported by stream queues queue '{q}' in vhost '/'",
    ):
        ch.basic_get(q)


def test_a_stream_refuses_a_purge_with_540(ch: BlockingChannel, typed: Declare) -> None:
    q = typed("stream")
    with disconnects(
        540,
        f"NOT_IMPLEMENTED - queue.purge not supported by stream queues queue '{q}' in vhost '/'",
    ):
        ch.queue_purge(q)


def test_a_stream_refuses_a_rejection_with_540(
    ch: BlockingChannel, pub: BlockingChannel, typed: Declare
) -> None:
    q = typed("stream")
    confirmed(pub, q, b"x")
    ch.basic_qos(prefetch_count=1)
    inbox = Inbox(ch, q, arguments={"x-stream-offset": "first"})
    inbox.wait(1)
    with disconnects(
        540,
        "NOT_IMPLEMENTED - basic.nack and basic.reject not supported by stream queues "
        f"queue '{q}' in vhost '/'",
    ):
        ch.basic_reject(inbox.got[0].tag, requeue=False)
        touch(ch)


def test_a_stream_refuses_a_global_prefetch_with_540(ch: BlockingChannel, typed: Declare) -> None:
    q = typed("stream")
    ch.basic_qos(prefetch_count=1)
    ch.basic_qos(prefetch_count=1, global_qos=True)
    with disconnects(540, f"NOT_IMPLEMENTED - queue '{q}' in vhost '/' does not support global qos"):
        Inbox(ch, q)


def test_an_offset_that_is_none_closes_the_connection_with_541(ch: BlockingChannel, typed: Declare) -> None:
    q = typed("stream")
    ch.basic_qos(prefetch_count=1)
    with disconnects(541, "INTERNAL_ERROR"):
        Inbox(ch, q, arguments={"x-stream-offset": "somewhere"})


@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_an_offset_is_refused_where_there_is_no_stream(
    ch: BlockingChannel, typed: Declare, kind: str
) -> None:
    q = typed(kind)
    with closes(406, re.compile(r"PRECONDITION_FAILED - .*x-stream-offset.*")):
        Inbox(ch, q, arguments={"x-stream-offset": "first"})


def test_a_stream_without_age_is_refused_with_406(ch: BlockingChannel) -> None:
    q = name()
    why = f"PRECONDITION_FAILED - invalid arg 'x-max-age' for queue '{q}' in vhost '/': invalid_max_age"
    with closes(406, why):
        ch.queue_declare(q, durable=True, arguments={"x-queue-type": "stream", "x-max-age": "0s"})


def test_a_streams_files_have_three_gigabytes_at_the_most(ch: BlockingChannel, typed: Declare) -> None:
    typed("stream", x_stream_max_segment_size_bytes=3_000_000_000)
    arguments = {"x-queue-type": "stream", "x-stream-max-segment-size-bytes": 3_000_000_001}
    with closes(406, "PRECONDITION_FAILED - Exceeded max value for x-stream-max-segment-size-bytes"):
        ch.queue_declare(name(), durable=True, arguments=arguments)
