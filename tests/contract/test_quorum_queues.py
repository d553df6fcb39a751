"""Quorum queues: what they add, and what they and streams refuse."""

from __future__ import annotations

from typing import Any

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel

from tests.contract.conftest import Declare
from tests.contract.helpers import (
    Inbox,
    bodies,
    closes,
    confirmed,
    dead_letters_to,
    disconnects,
    fetch,
    get,
    has,
    name,
    queue,
)


def test_a_quorum_queue_keeps_messages_in_order(
    ch: BlockingChannel, pub: BlockingChannel, typed: Declare
) -> None:
    q = typed("quorum")
    confirmed(pub, q, b"1", b"2", b"3")
    has(ch, q, 3)
    assert [fetch(ch, q).body for _ in range(3)] == [b"1", b"2", b"3"]
    assert ch.basic_get(q) == (None, None, None)


def test_a_quorum_queue_counts_earlier_deliveries(
    ch: BlockingChannel, pub: BlockingChannel, typed: Declare
) -> None:
    q = typed("quorum")
    confirmed(pub, q, b"x")
    seen = []
    for _ in range(3):
        came = get(ch, q)
        seen.append((came.method.redelivered, came.headers.get("x-delivery-count")))
        ch.basic_nack(came.tag)
    assert seen == [(False, 0), (True, 1), (True, 2)]


def test_a_message_beyond_the_delivery_limit_is_dropped(
    ch: BlockingChannel, pub: BlockingChannel, typed: Declare
) -> None:
    q = typed("quorum", x_delivery_limit=2)
    confirmed(pub, q, b"x")
    for _ in range(3):
        ch.basic_nack(get(ch, q).tag)
    has(ch, q, 0)
    assert ch.basic_get(q) == (None, None, None)


def test_a_message_beyond_the_delivery_limit_is_a_dead_letter(
    ch: BlockingChannel, pub: BlockingChannel, typed: Declare
) -> None:
    end = queue(ch)
    q = typed("quorum", x_delivery_limit=1, **dead_letters_to(end))
    confirmed(pub, q, b"x")
    for _ in range(2):
        ch.basic_reject(get(ch, q).tag, requeue=True)
    came = fetch(ch, end)
    (table,) = came.headers["x-death"]
    assert (table["reason"], table["count"], table["queue"]) == ("delivery_limit", 1, q)
    assert came.headers["x-first-death-reason"] == "delivery_limit"
    assert "x-delivery-count" not in came.headers


def test_a_rejected_message_of_a_quorum_queue_is_a_dead_letter(
    ch: BlockingChannel, pub: BlockingChannel, typed: Declare
) -> None:
    end = queue(ch)
    q = typed("quorum", **dead_letters_to(end))
    confirmed(pub, q, b"x")
    ch.basic_reject(get(ch, q).tag, requeue=False)
    assert fetch(ch, end).headers["x-death"][0]["reason"] == "rejected"


def test_a_closed_channel_counts_as_a_delivery(
    ch: BlockingChannel, pub: BlockingChannel, typed: Declare, connection: pika.BlockingConnection
) -> None:
    q, further = typed("quorum"), connection.channel()
    confirmed(pub, q, b"x")
    get(further, q)
    further.close()
    came = fetch(ch, q)
    assert (came.method.redelivered, came.headers["x-delivery-count"]) == (True, 1)


def test_a_full_quorum_queue_drops_its_oldest(
    ch: BlockingChannel, pub: BlockingChannel, typed: Declare
) -> None:
    q = typed("quorum", x_max_length=2)
    confirmed(pub, q, b"1", b"2", b"3")
    has(ch, q, 2)
    assert [fetch(ch, q).body for _ in range(2)] == [b"2", b"3"]


def test_a_quorum_queue_bounds_its_consumers_by_prefetch(
    ch: BlockingChannel, pub: BlockingChannel, typed: Declare
) -> None:
    q = typed("quorum")
    confirmed(pub, q, b"1", b"2", b"3")
    ch.basic_qos(prefetch_count=1)
    inbox = Inbox(ch, q)
    for number in (1, 2, 3):
        inbox.wait(number)
        ch.basic_ack(inbox.got[-1].tag)
    assert inbox.bodies == [b"1", b"2", b"3"]


def test_a_quorum_queue_has_one_active_consumer_if_told(
    ch: BlockingChannel, pub: BlockingChannel, typed: Declare
) -> None:
    q = typed("quorum", x_single_active_consumer=True)
    first, second = Inbox(ch, q), Inbox(ch, q)
    confirmed(pub, q, b"1")
    first.wait(1)
    ch.basic_cancel(first.tag)
    confirmed(pub, q, b"2")
    second.wait(1)
    assert (first.bodies, second.bodies) == ([b"1"], [b"2"])


@pytest.mark.parametrize("kind", ["quorum", "stream"])
@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"durable": False}, "invalid property 'non-durable' for queue '{}' in vhost '/'"),
        ({"exclusive": True}, "invalid property 'exclusive-owner' for queue '{}' in vhost '/'"),
        ({"auto_delete": True}, "invalid property 'auto-delete' for queue '{}' in vhost '/'"),
    ],
    ids=["transient", "exclusive", "auto-delete"],
)
def test_only_durable_shared_queues_can_be_of_these_types(
    ch: BlockingChannel, kind: str, options: dict[str, bool], text: str
) -> None:
    q = name()
    with closes(406, "PRECONDITION_FAILED - " + text.format(q)):
        ch.queue_declare(q, arguments={"x-queue-type": kind}, **{"durable": True, **options})


@pytest.mark.parametrize(
    ("kind", "argument", "value"),
    [
        ("quorum", "x-max-priority", 5),
        ("quorum", "x-queue-mode", "lazy"),
        ("quorum", "x-max-age", "1h"),
        ("quorum", "x-stream-max-segment-size-bytes", 5),
        ("stream", "x-max-priority", 5),
        ("stream", "x-message-ttl", 5),
        ("stream", "x-expires", 5),
        ("stream", "x-max-length", 5),
        ("stream", "x-dead-letter-exchange", "x"),
        ("stream", "x-overflow", "drop-head"),
        ("stream", "x-single-active-consumer", True),
        ("stream", "x-delivery-limit", 5),
    ],
)
def test_these_types_refuse_arguments_of_others(
    ch: BlockingChannel, kind: str, argument: str, value: object
) -> None:
    q = name()
    with closes(
        406,
        f"PRECONDITION_FAILED - invalid arg '{argument}' for queue '{q}' in vhost '/' "
        f"of queue type rabbit_{kind}_queue",
    ):
        ch.queue_declare(q, durable=True, arguments={"x-queue-type": kind, argument: value})


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            {"x-queue-type": "stream", "x-max-age": "1x"},
            "invalid arg 'x-max-age' for queue '{}' in vhost '/': invalid_max_age",
        ),
        (
            {"x-queue-type": "stream", "x-max-age": 1},
            "invalid arg 'x-max-age' for queue '{}' in vhost '/': {{unacceptable_type,signedint}}",
        ),
    ],
    ids=repr,
)
def test_an_argument_that_is_no_good_is_refused_with_406(
    ch: BlockingChannel, arguments: dict[str, Any], text: str
) -> None:
    q = name()
    with closes(406, "PRECONDITION_FAILED - " + text.format(q)):
        ch.queue_declare(q, durable=True, arguments=arguments)


def test_a_quorum_queue_declared_classic_is_refused_with_406(ch: BlockingChannel, typed: Declare) -> None:
    q = typed("quorum")
    with closes(
        406,
        f"PRECONDITION_FAILED - inequivalent arg 'x-queue-type' for queue '{q}' in vhost '/': "
        "received 'classic' but current is 'quorum'",
    ):
        ch.queue_declare(q, durable=True, arguments={"x-queue-type": "classic"})


def test_a_quorum_queue_declared_without_a_type_is_refused_with_406(
    ch: BlockingChannel, typed: Declare
) -> None:
    q = typed("quorum")
    with closes(
        406,
        f"PRECONDITION_FAILED - inequivalent arg 'x-queue-type' for queue '{q}' in vhost '/': "
        "received none but current is the value 'quorum' of type 'longstr'",
    ):
        ch.queue_declare(q, durable=True)


def test_a_quorum_queue_refuses_a_global_prefetch_with_540(ch: BlockingChannel, typed: Declare) -> None:
    q = typed("quorum")
    ch.basic_qos(prefetch_count=1, global_qos=True)
    with disconnects(540, f"NOT_IMPLEMENTED - queue '{q}' in vhost '/' does not support global qos"):
        Inbox(ch, q)


def test_a_quorum_queue_cannot_be_deleted_if_unused(ch: BlockingChannel, typed: Declare) -> None:
    q = typed("quorum")
    Inbox(ch, q)
    with disconnects(
        540,
        f"NOT_IMPLEMENTED - cannot delete queue '{q}' in vhost '/'. "
        "queue.delete operations with if-unused flag set are not supported by quorum queues",
    ):
        ch.queue_delete(q, if_unused=True)


def test_a_quorum_queue_cannot_be_deleted_if_empty(
    ch: BlockingChannel, pub: BlockingChannel, typed: Declare
) -> None:
    q = typed("quorum")
    confirmed(pub, q, b"x")
    with disconnects(
        540,
        f"NOT_IMPLEMENTED - cannot delete queue '{q}' in vhost '/'. "
        "queue.delete operations with if-empty flag set are not supported by quorum queues",
    ):
        ch.queue_delete(q, if_empty=True)


def test_a_quorum_queue_is_purged(ch: BlockingChannel, pub: BlockingChannel, typed: Declare) -> None:
    q = typed("quorum")
    confirmed(pub, q, b"1", b"2")
    has(ch, q, 2)
    assert ch.queue_purge(q).method.message_count == 2
    assert bodies(ch, q) == []


def test_a_quorum_queue_gives_its_consumers_no_count_at_first(
    ch: BlockingChannel, pub: BlockingChannel, typed: Declare
) -> None:
    q = typed("quorum")
    inbox = Inbox(ch, q)
    confirmed(pub, q, b"x")
    inbox.wait(1)
    ch.basic_nack(inbox.got[0].tag)
    inbox.wait(2)
    assert [delivery.headers.get("x-delivery-count") for delivery in inbox.got] == [None, 1]


@pytest.mark.parametrize(
    ("argument", "why"),
    [
        ("x-dead-letter-strategy", "invalid_dlx_strategy"),
        ("x-queue-leader-locator", "invalid_queue_locator_arg"),
    ],
)
def test_a_quorum_queue_refuses_a_strategy_that_there_is_not(
    ch: BlockingChannel, argument: str, why: str
) -> None:
    q = name()
    with closes(406, f"PRECONDITION_FAILED - invalid arg '{argument}' for queue '{q}' in vhost '/': {why}"):
        ch.queue_declare(q, durable=True, arguments={"x-queue-type": "quorum", argument: "foo"})


def test_a_quorum_queue_told_to_reject_and_dead_letter_drops_its_oldest(
    ch: BlockingChannel, pub: BlockingChannel, typed: Declare
) -> None:
    q = typed("quorum", x_max_length=1, x_overflow="reject-publish-dlx")
    confirmed(pub, q, b"1", b"2", b"3")
    has(ch, q, 1)
    assert fetch(ch, q).body == b"3"


@pytest.mark.parametrize(("most", "again"), [(0, 0), (1, 0), (2, 1), (5, 4), (10, 8)])
def test_a_quorum_queue_that_rejects_has_one_too_many_then_waits_for_room(
    ch: BlockingChannel, pub: BlockingChannel, typed: Declare, most: int, again: int
) -> None:
    q = typed("quorum", x_max_length=most, x_overflow="reject-publish")
    confirmed(pub, q, *[b"x"] * (most + 1))
    for left in range(most, again - 1, -1):
        with pytest.raises(pika.exceptions.NackError):
            confirmed(pub, q, b"x")
        fetch(ch, q)
        has(ch, q, left)
    confirmed(pub, q, b"x")
    has(ch, q, again + 1)


_AT_LEAST_ONCE = {
    "x-dead-letter-exchange": "",
    "x-overflow": "reject-publish",
    "x-dead-letter-strategy": "at-least-once",
}


@pytest.mark.parametrize(
    ("kind", "first", "then", "argument"),
    [
        ("quorum", _AT_LEAST_ONCE, {"x-dead-letter-strategy": "at-most-once"}, "x-dead-letter-strategy"),
        ("quorum", {"x-delivery-limit": 4}, {"x-delivery-limit": 5}, "x-delivery-limit"),
        (
            "quorum",
            {"x-queue-leader-locator": "balanced"},
            {"x-queue-leader-locator": "client-local"},
            "x-queue-leader-locator",
        ),
        ("stream", {"x-max-age": "1D"}, {"x-max-age": "2D"}, "x-max-age"),
        (
            "stream",
            {"x-stream-max-segment-size-bytes": 1000},
            {"x-stream-max-segment-size-bytes": 2000},
            "x-stream-max-segment-size-bytes",
        ),
    ],
)
def test_what_quorum_queues_and_streams_add_is_compared_too(
    ch: BlockingChannel,
    typed: Declare,
    kind: str,
    first: dict[str, Any],
    then: dict[str, Any],
    argument: str,
) -> None:
    q = typed(kind, **first)
    with closes(
        406,
        f"PRECONDITION_FAILED - inequivalent arg '{argument}' for queue '{q}' in vhost '/': received"
        f" '{then[argument]}' but current is '{first[argument]}'",
    ):
        ch.queue_declare(q, durable=True, arguments={"x-queue-type": kind, **first, **then})
