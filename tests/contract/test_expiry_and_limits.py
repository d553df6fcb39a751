"""Messages and queues that expire, queues that are full, and priorities."""

from __future__ import annotations

import itertools
import time
from typing import Any

import pika
import pytest
from pika import frame, spec
from pika.adapters.blocking_connection import BlockingChannel

from tests.conftest import wait_for
from tests.contract.conftest import Connect
from tests.contract.helpers import (
    Inbox,
    bodies,
    count,
    dead_letters_to,
    exists,
    fetch,
    fill,
    get,
    has,
    lapse,
    name,
    publish,
    queue,
    send,
    touch,
    until,
)
from tests.contract.raw import Wire

SHORT = 30
LONG = 600_000


# -- time to live


def test_a_message_expires_with_its_queues_ttl(ch: BlockingChannel) -> None:
    end = queue(ch)
    q = queue(ch, {"x-message-ttl": SHORT, **dead_letters_to(end)})
    send(ch, q, b"x")
    assert fetch(ch, end).body == b"x"
    assert bodies(ch, q) == []


def test_a_message_expires_with_its_own_ttl(ch: BlockingChannel) -> None:
    end = queue(ch)
    q = queue(ch, dead_letters_to(end))
    send(ch, q, b"1", b"2", expiration=str(SHORT))
    send(ch, q, b"3")
    assert [fetch(ch, end).body for _ in range(2)] == [b"1", b"2"]
    assert bodies(ch, q) == [b"3"]


@pytest.mark.parametrize(("of_queue", "of_message"), [(SHORT, LONG), (LONG, SHORT)])
def test_the_lower_ttl_counts(ch: BlockingChannel, of_queue: int, of_message: int) -> None:
    end = queue(ch)
    q = queue(ch, {"x-message-ttl": of_queue, **dead_letters_to(end)})
    send(ch, q, b"x", expiration=str(of_message))
    fetch(ch, end)


def test_a_queue_with_a_ttl_and_no_dead_letter_exchange_just_drops(ch: BlockingChannel) -> None:
    q = queue(ch, {"x-message-ttl": SHORT})
    send(ch, q, b"x")
    lapse(ch, SHORT * 2)
    assert bodies(ch, q) == []


@pytest.mark.parametrize(("arguments", "properties"), [({"x-message-ttl": 0}, {}), ({}, {"expiration": "0"})])
def test_a_ttl_of_zero_drops_what_no_consumer_takes_at_once(
    ch: BlockingChannel, arguments: dict[str, Any], properties: dict[str, Any]
) -> None:
    q = queue(ch, arguments)
    send(ch, q, b"lost", **properties)
    assert ch.basic_get(q) == (None, None, None)
    inbox = Inbox(ch, q)
    send(ch, q, b"taken", **properties)
    inbox.wait(1)
    assert inbox.bodies == [b"taken"]


def test_a_message_expires_from_the_head_only(ch: BlockingChannel) -> None:
    q = queue(ch)
    send(ch, q, b"1")
    send(ch, q, b"2", expiration="1")
    lapse(ch, 50)
    has(ch, q, 2)
    assert fetch(ch, q).body == b"1"
    assert ch.basic_get(q) == (None, None, None)


def test_what_a_consumer_holds_does_not_expire(ch: BlockingChannel) -> None:
    q = queue(ch)
    inbox = Inbox(ch, q)
    send(ch, q, b"x", expiration=str(SHORT))
    inbox.wait(1)
    lapse(ch, SHORT * 2)
    ch.basic_ack(inbox.got[0].tag)
    touch(ch)


def test_what_was_held_too_long_expires_when_it_is_requeued(ch: BlockingChannel) -> None:
    end = queue(ch)
    q = queue(ch, dead_letters_to(end))
    inbox = Inbox(ch, q)
    send(ch, q, b"x", expiration=str(SHORT))
    inbox.wait(1)
    ch.basic_cancel(inbox.tag)
    lapse(ch, SHORT * 2)
    ch.basic_nack(inbox.got[0].tag)
    assert fetch(ch, end).body == b"x"


def test_the_expiration_stays_on_a_message_that_is_delivered_in_time(ch: BlockingChannel) -> None:
    q = queue(ch)
    send(ch, q, b"x", expiration=str(LONG))
    assert fetch(ch, q).properties.expiration == str(LONG)


# -- queues that expire


def consumed(wire: Wire, expires: int) -> str:
    """Declare a queue, and consume from it as ``c``, in one piece: it is not to expire in between."""
    q = name()
    declare = spec.Queue.Declare(queue=q, exclusive=True, arguments={"x-expires": expires})
    consume = spec.Basic.Consume(queue=q, consumer_tag="c")
    wire.send_bytes(b"".join(frame.Method(1, method).marshal() for method in (declare, consume)))
    wire.expect(spec.Queue.DeclareOk)
    wire.expect(spec.Basic.ConsumeOk)
    return q


def test_an_unused_queue_expires(
    ch: BlockingChannel, connection: pika.BlockingConnection, wire: Wire
) -> None:
    used = consumed(wire, 1000)
    unused = queue(ch, {"x-expires": 50})
    # To ask for it by a declaration would be to use it.
    until(ch, lambda: not publishes(ch, unused), "the end of the queue")
    assert not exists(connection, unused)
    lapse(ch, 1200)
    assert publishes(ch, used)


def publishes(ch: BlockingChannel, to: str) -> bool:
    """Whether a queue takes a message, which is no use of it."""
    further = ch.connection.channel()
    further.confirm_delivery()
    try:
        further.basic_publish("", to, b"", mandatory=True)
    except pika.exceptions.UnroutableError:
        return False
    finally:
        further.close()
    return True


def test_a_queue_expires_though_it_has_messages(ch: BlockingChannel) -> None:
    q = queue(ch, {"x-expires": 50})
    send(ch, q, b"x")
    until(ch, lambda: not publishes(ch, q), "the end of the queue")


def test_a_queue_expires_when_its_last_consumer_left(ch: BlockingChannel, wire: Wire) -> None:
    q = consumed(wire, 1000)
    wire.send(spec.Basic.Cancel(consumer_tag="c")).expect(spec.Basic.CancelOk)
    until(ch, lambda: not publishes(ch, q), "the end of the queue")


def test_using_a_queue_puts_its_end_off(connect: Connect) -> None:
    # Where somebody stood still for long, they were not used in time: it is tried again.
    wait_for(lambda: is_put_off(connect().channel()), "three seconds without a pause", timeout=90)


def is_put_off(ch: BlockingChannel) -> bool:
    """Whether it is; False, when it is not known."""
    moments = [time.monotonic()]
    arguments = {"x-expires": 2000}
    got, declared, looked_at = (queue(ch, arguments) for _ in range(3))
    end = queue(ch)
    witness = queue(ch, {"x-message-ttl": 3000, **dead_letters_to(end)})
    send(ch, witness, b"x")

    def used() -> bool:
        moments.append(time.monotonic())
        ch.basic_get(got)
        ch.queue_declare(declared, exclusive=True, arguments=arguments)
        ch.queue_declare(looked_at, passive=True)
        return count(ch, end) == 1

    try:
        until(ch, used, "the witness's end")  # longer than the queues would have lived unused
        assert publishes(ch, got)
        assert publishes(ch, declared)
        assert publishes(ch, looked_at)
    except (AssertionError, pika.exceptions.ChannelClosedByBroker):
        moments.append(time.monotonic())
        if max(later - before for before, later in itertools.pairwise(moments)) < 1.5:
            raise
        return False
    return True


# -- limits


def test_a_full_queue_drops_its_oldest(ch: BlockingChannel) -> None:
    q = queue(ch, {"x-max-length": 2})
    send(ch, q, b"1", b"2", b"3", b"4")
    assert bodies(ch, q) == [b"3", b"4"]


def test_a_length_of_zero_keeps_nothing(ch: BlockingChannel) -> None:
    q = queue(ch, {"x-max-length": 0})
    send(ch, q, b"lost")
    assert bodies(ch, q) == []
    inbox = Inbox(ch, q)
    send(ch, q, b"taken")
    inbox.wait(1)


@pytest.mark.parametrize(
    ("limit", "kept"),
    [
        (10, [b"5555", b"666666"]),
        (9, [b"666666"]),
        (5, []),
        (100, [b"1", b"22", b"333", b"4444", b"5555", b"666666"]),
    ],
)
def test_a_queue_with_too_many_bytes_drops_its_oldest(
    ch: BlockingChannel, limit: int, kept: list[bytes]
) -> None:
    q = queue(ch, {"x-max-length-bytes": limit})
    send(ch, q, b"1", b"22", b"333", b"4444", b"5555", b"666666", message_id="not counted")
    assert bodies(ch, q) == kept


def test_the_nearer_of_both_limits_counts(ch: BlockingChannel) -> None:
    q = queue(ch, {"x-max-length": 3, "x-max-length-bytes": 4})
    send(ch, q, b"1", b"2", b"3", b"4")
    assert bodies(ch, q) == [b"2", b"3", b"4"]
    send(ch, q, b"11", b"22", b"33")
    assert bodies(ch, q) == [b"22", b"33"]


def test_what_is_unsettled_does_not_count(ch: BlockingChannel) -> None:
    q = queue(ch, {"x-max-length": 1})
    send(ch, q, b"1")
    held = get(ch, q)
    send(ch, q, b"2")
    has(ch, q, 1)
    ch.basic_nack(held.tag)  # back at the head, and too many
    assert bodies(ch, q) == [b"2"]


@pytest.mark.parametrize("overflow", ["reject-publish", "reject-publish-dlx"])
def test_a_full_queue_that_rejects_refuses_with_a_nack(ch: BlockingChannel, overflow: str) -> None:
    q = queue(ch, {"x-max-length": 1, "x-overflow": overflow})
    ch.confirm_delivery()
    ch.basic_publish("", q, b"1")
    with pytest.raises(pika.exceptions.NackError):
        ch.basic_publish("", q, b"2")
    assert bodies(ch, q) == [b"1"]
    ch.basic_publish("", q, b"3")


def test_a_full_queue_that_rejects_drops_what_asks_for_no_confirm(ch: BlockingChannel) -> None:
    q = queue(ch, {"x-max-length": 2, "x-overflow": "reject-publish"})
    send(ch, q, b"1", b"2", b"3")
    assert bodies(ch, q) == [b"1", b"2"]


def test_a_queue_that_rejects_looks_at_the_bytes_it_has_before(ch: BlockingChannel) -> None:
    q = queue(ch, {"x-max-length-bytes": 4, "x-overflow": "reject-publish"})
    ch.confirm_delivery()
    ch.basic_publish("", q, b"123")
    with pytest.raises(pika.exceptions.NackError):
        ch.basic_publish("", q, b"456")


def test_one_queue_that_rejects_is_a_nack_for_the_message(wire: Wire) -> None:
    full, roomy = wire.declare({"x-max-length": 1, "x-overflow": "reject-publish"}), wire.declare()
    wire.send(spec.Confirm.Select()).expect(spec.Confirm.SelectOk)
    wire.publish("", full)
    assert wire.expect(spec.Basic.Ack).delivery_tag == 1
    wire.send(spec.Basic.Publish(exchange="", routing_key=roomy)).send_header(0, headers={"CC": [full]})
    assert wire.expect(spec.Basic.Nack).delivery_tag == 2
    wire.send(spec.Basic.Get(queue=roomy, no_ack=True)).expect_content(spec.Basic.GetOk)


# -- priorities


def put(ch: BlockingChannel, q: str, *priorities: int | None) -> None:
    for index, priority in enumerate(priorities):
        publish(ch, "", q, b"%d" % index, priority=priority)
    has(ch, q, len(priorities))


@pytest.mark.parametrize(
    ("priorities", "order"),
    [
        ([1, 3, 2], b"120"),
        ([2, 2, 2], b"012"),
        ([None, 1, 0], b"102"),  # none is zero
        ([5, 200, 4], b"012"),  # more than the queue's is the queue's
        ([0, 5, 0, 5], b"1302"),
    ],
)
def test_a_higher_priority_comes_first(
    ch: BlockingChannel, priorities: list[int | None], order: bytes
) -> None:
    q = queue(ch, {"x-max-priority": 5})
    put(ch, q, *priorities)
    assert b"".join(bodies(ch, q)) == order


def test_a_queue_without_priorities_ignores_them(ch: BlockingChannel) -> None:
    q = queue(ch)
    put(ch, q, 1, 9, 5)
    assert bodies(ch, q) == [b"0", b"1", b"2"]


def test_a_message_keeps_the_priority_it_was_given(ch: BlockingChannel) -> None:
    q = queue(ch, {"x-max-priority": 5})
    put(ch, q, 200)
    assert fetch(ch, q).properties.priority == 200


def test_a_consumer_gets_the_highest_priority_first(ch: BlockingChannel) -> None:
    q = queue(ch, {"x-max-priority": 5})
    put(ch, q, 1, 3, 2)
    inbox = Inbox(ch, q)
    inbox.wait(3)
    assert inbox.bodies == [b"1", b"2", b"0"]


def test_a_full_queue_drops_the_highest_priority_first(ch: BlockingChannel) -> None:
    q = queue(ch, {"x-max-priority": 5, "x-max-length": 2})
    for index, priority in enumerate([1, 5, 3, 0]):
        publish(ch, "", q, b"%d" % index, priority=priority)
    assert bodies(ch, q) == [b"0", b"3"]  # it drops its head, which is what would be delivered next


def test_a_requeued_message_goes_back_among_its_priority(ch: BlockingChannel) -> None:
    q = queue(ch, {"x-max-priority": 5})
    put(ch, q, 1, 1, 4)
    first, second = get(ch, q), get(ch, q)
    assert (first.body, second.body) == (b"2", b"0")
    ch.basic_nack(second.tag)
    ch.basic_nack(first.tag)
    assert bodies(ch, q) == [b"2", b"0", b"1"]


def test_expired_messages_go_at_every_priority(ch: BlockingChannel) -> None:
    end = queue(ch)
    q = queue(ch, {"x-max-priority": 5, "x-message-ttl": SHORT, **dead_letters_to(end)})
    for priority in (0, 3, 5):
        publish(ch, "", q, b"x", priority=priority)
    assert sorted(fetch(ch, end).properties.priority or 0 for _ in range(3)) == [0, 3, 5]


def test_a_purge_takes_every_priority(ch: BlockingChannel) -> None:
    q = queue(ch, {"x-max-priority": 5})
    put(ch, q, 1, 3, 2)
    assert ch.queue_purge(q).method.message_count == 3
    fill(ch, q, b"x")
