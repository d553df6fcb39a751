"""Queue arguments: which are taken, which are refused, and which count when a queue is declared again."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any

import pytest
from pika.adapters.blocking_connection import BlockingChannel

from tests.contract.helpers import closes, name, queue


@pytest.mark.parametrize(
    ("arguments", "of", "why"),
    [
        ({"x-message-ttl": -1}, "x-message-ttl", "{value_negative,-1}"),
        ({"x-message-ttl": 315360000001}, "x-message-ttl", "{value_too_large,315360000001}"),
        ({"x-expires": 2**40}, "x-expires", f"{{value_too_large,{2**40}}}"),
        ({"x-message-ttl": "5"}, "x-message-ttl", '"expected integer, got longstr"'),
        ({"x-message-ttl": b"5"}, "x-message-ttl", '"expected integer, got binary"'),
        ({"x-message-ttl": True}, "x-message-ttl", '"expected integer, got bool"'),
        ({"x-message-ttl": None}, "x-message-ttl", '"expected integer, got void"'),
        ({"x-message-ttl": Decimal("1.5")}, "x-message-ttl", '"expected integer, got decimal"'),
        ({"x-message-ttl": {}}, "x-message-ttl", '"expected integer, got table"'),
        ({"x-message-ttl": []}, "x-message-ttl", '"expected integer, got array"'),
        ({"x-message-ttl": datetime(2020, 1, 1)}, "x-message-ttl", '"expected integer, got timestamp"'),
        ({"x-expires": 0}, "x-expires", "{value_zero,0}"),
        ({"x-expires": -1}, "x-expires", "{value_negative,-1}"),
        ({"x-expires": "5"}, "x-expires", '"expected integer, got longstr"'),
        ({"x-max-length": -1}, "x-max-length", "{value_negative,-1}"),
        ({"x-max-length": -(2**40)}, "x-max-length", "{value_negative,-1099511627776}"),
        ({"x-max-length": "5"}, "x-max-length", '"expected integer, got longstr"'),
        ({"x-max-length-bytes": -1}, "x-max-length-bytes", "{value_negative,-1}"),
        ({"x-max-length-bytes": "5"}, "x-max-length-bytes", '"expected integer, got longstr"'),
        ({"x-max-priority": -1}, "x-max-priority", "{value_negative,-1}"),
        ({"x-max-priority": 256}, "x-max-priority", "{max_value_exceeded,256}"),
        ({"x-max-priority": "5"}, "x-max-priority", '"expected integer, got longstr"'),
        ({"x-overflow": "drop-tail"}, "x-overflow", "invalid_overflow"),
        ({"x-overflow": 1}, "x-overflow", "{unacceptable_type,signedint}"),
        (
            {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": 1},
            "x-dead-letter-routing-key",
            "{unacceptable_type,signedint}",
        ),
        ({"x-dead-letter-routing-key": "k"}, "x-dead-letter-routing-key", "routing_key_but_no_dlx_defined"),
        ({"x-single-active-consumer": "yes"}, "x-single-active-consumer", "{unacceptable_type,longstr}"),
        ({"x-single-active-consumer": 1}, "x-single-active-consumer", "{unacceptable_type,signedint}"),
        ({"x-queue-mode": "fast"}, "x-queue-mode", "\"unsupported queue mode 'fast'\""),
        ({"x-queue-mode": 1}, "x-queue-mode", "{unacceptable_type,signedint}"),
        ({"x-queue-version": 3}, "x-queue-version", "\"unsupported queue version '3'\""),
        ({"x-queue-type": "nonsense"}, "x-queue-type", "\"unsupported queue type 'nonsense'\""),
        ({"x-queue-type": 1}, "x-queue-type", "{unacceptable_type,signedint}"),
    ],
    ids=repr,
)
def test_an_argument_that_is_no_good_is_refused_with_406(
    ch: BlockingChannel, arguments: dict[str, Any], of: str, why: str
) -> None:
    q = name()
    with closes(406, f"PRECONDITION_FAILED - invalid arg '{of}' for queue '{q}' in vhost '/': {why}"):
        ch.queue_declare(q, exclusive=True, arguments=arguments)


def test_a_dead_letter_exchange_that_is_no_string_is_refused_with_406(ch: BlockingChannel) -> None:
    q = name()
    with closes(
        406,
        "PRECONDITION_FAILED - invalid type 'signedint' for arg 'x-dead-letter-exchange' "
        f"in queue '{q}' in vhost '/'",
    ):
        ch.queue_declare(q, exclusive=True, arguments={"x-dead-letter-exchange": 1})


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("x-delivery-limit", 5),
        ("x-quorum-initial-group-size", 3),
        ("x-dead-letter-strategy", "at-least-once"),
        ("x-max-in-memory-length", 5),
        ("x-max-in-memory-bytes", 5),
        ("x-max-age", "1h"),
        ("x-stream-max-segment-size-bytes", 5),
        ("x-initial-cluster-size", 1),
        ("x-queue-leader-locator", "client-local"),
    ],
)
def test_a_classic_queue_refuses_arguments_of_other_types_of_queues(
    ch: BlockingChannel, argument: str, value: object
) -> None:
    q = name()
    with closes(
        406,
        f"PRECONDITION_FAILED - invalid arg '{argument}' for queue '{q}' in vhost '/' "
        "of queue type rabbit_classic_queue",
    ):
        ch.queue_declare(q, exclusive=True, arguments={argument: value})


@pytest.mark.parametrize(
    "arguments",
    [
        {"x-message-ttl": 0},
        {"x-message-ttl": 2**32 - 1},
        {"x-message-ttl": 315360000000},
        {"x-expires": 2**31},
        {"x-max-length": 0},
        {"x-max-length": 2**40},
        {"x-max-length-bytes": 0},
        {"x-max-priority": 0},
        {"x-max-priority": 255},
        {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": ""},
        {"x-queue-mode": "lazy"},
        {"x-single-active-consumer": False},
        {"x-overflow": "reject-publish-dlx"},
    ],
    ids=repr,
)
def test_an_argument_at_the_end_of_its_range_is_taken(ch: BlockingChannel, arguments: dict[str, Any]) -> None:
    queue(ch, arguments)


@pytest.mark.parametrize(
    ("first", "then", "text"),
    [
        (
            {},
            {"durable": True},
            "'durable' for queue '{}' in vhost '/': received 'true' but current is 'false'",
        ),
        (
            {"durable": True},
            {},
            "'durable' for queue '{}' in vhost '/': received 'false' but current is 'true'",
        ),
        (
            {},
            {"auto_delete": True},
            "'auto_delete' for queue '{}' in vhost '/': received 'true' but current is 'false'",
        ),
        (
            {"auto_delete": True},
            {},
            "'auto_delete' for queue '{}' in vhost '/': received 'false' but current is 'true'",
        ),
        (
            {},
            {"arguments": {"x-max-length": 5}},
            (
                "'x-max-length' for queue '{}' in vhost '/': "
                "received the value '5' of type 'signedint' but current is none"
            ),
        ),
        (
            {"arguments": {"x-max-length": 5}},
            {},
            (
                "'x-max-length' for queue '{}' in vhost '/': "
                "received none but current is the value '5' of type 'signedint'"
            ),
        ),
        (
            {"arguments": {"x-max-length": 5}},
            {"arguments": {"x-max-length": 6}},
            "'x-max-length' for queue '{}' in vhost '/': received '6' but current is '5'",
        ),
        (
            {"arguments": {"x-message-ttl": 60000}},
            {"arguments": {"x-message-ttl": 60001}},
            "'x-message-ttl' for queue '{}' in vhost '/': received '60001' but current is '60000'",
        ),
        (
            {"arguments": {"x-dead-letter-exchange": "a"}},
            {"arguments": {"x-dead-letter-exchange": "b"}},
            "'x-dead-letter-exchange' for queue '{}' in vhost '/': received 'b' but current is 'a'",
        ),
        (
            {},
            {"arguments": {"x-dead-letter-exchange": "b"}},
            (
                "'x-dead-letter-exchange' for queue '{}' in vhost '/': "
                "received the value 'b' of type 'longstr' but current is none"
            ),
        ),
        (
            {"arguments": {"x-queue-version": 2}},
            {},
            (
                "'x-queue-version' for queue '{}' in vhost '/': "
                "received none but current is the value '2' of type 'signedint'"
            ),
        ),
        (
            {"arguments": {"x-max-priority": 5}},
            {"arguments": {"x-max-priority": 6}},
            "'x-max-priority' for queue '{}' in vhost '/': received '6' but current is '5'",
        ),
        (
            {"arguments": {"x-queue-type": "classic"}},
            {"arguments": {"x-queue-type": "quorum"}, "durable": True},
            "'durable' for queue '{}' in vhost '/': received 'true' but current is 'false'",
        ),
        (
            {"arguments": {"x-overflow": "drop-head"}},
            {"arguments": {"x-overflow": "reject-publish"}},
            "'x-overflow' for queue '{}' in vhost '/': received 'reject-publish' but current is 'drop-head'",
        ),
        (
            {},
            {"arguments": {"x-single-active-consumer": True}},
            (
                "'x-single-active-consumer' for queue '{}' in vhost '/': "
                "received the value 'true' of type 'bool' but current is none"
            ),
        ),
    ],
)
def test_a_queue_declared_otherwise_is_refused_with_406(
    ch: BlockingChannel, first: dict[str, Any], then: dict[str, Any], text: str
) -> None:
    q = queue(ch, **{"exclusive": False, **first})
    with closes(406, "PRECONDITION_FAILED - inequivalent arg " + text.format(q)):
        ch.queue_declare(q, **then)


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ({}, {"colour": "red"}),
        ({"colour": "red"}, {"colour": "blue"}),
        ({"x-max-length": 5}, {"x-max-length": 5, "x-something": 1}),
        ({"x-queue-type": "classic"}, {}),
        ({}, {"x-queue-type": "classic"}),
        # The width of an integer does not count.
        ({"x-expires": 600000}, {"x-expires": 600000}),
    ],
)
def test_these_arguments_make_no_difference(
    ch: BlockingChannel, first: dict[str, Any], then: dict[str, Any]
) -> None:
    q = queue(ch, first)
    ch.queue_declare(q, exclusive=True, arguments=then)
