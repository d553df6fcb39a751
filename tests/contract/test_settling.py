"""Acks, nacks and rejects, and what becomes of what nobody settled."""

from __future__ import annotations

from typing import Any

import pika
import pytest
from pika import spec
from pika.adapters.blocking_connection import BlockingChannel

from tests.contract.conftest import Connect
from tests.contract.helpers import Inbox, bodies, closes, fetch, fill, get, has, queue, send, touch
from tests.contract.raw import Wire


def unknown(tag: int) -> str:
    return f"PRECONDITION_FAILED - unknown delivery tag {tag}"


def held(ch: BlockingChannel, of: str, number: int) -> list[int]:
    """Take so many messages, without settling them."""
    return [get(ch, of).tag for _ in range(number)]


# -- what is settled


def test_an_ack_settles_one(ch: BlockingChannel, connection: pika.BlockingConnection) -> None:
    q, further = queue(ch), connection.channel()
    fill(ch, q, b"1", b"2", b"3")
    tags = held(further, q, 3)
    further.basic_ack(tags[1])
    further.close()
    assert bodies(ch, q) == [b"1", b"3"]


def test_a_multiple_ack_settles_all_up_to_its_tag(
    ch: BlockingChannel, connection: pika.BlockingConnection
) -> None:
    q, further = queue(ch), connection.channel()
    fill(ch, q, b"1", b"2", b"3")
    tags = held(further, q, 3)
    further.basic_ack(tags[1], multiple=True)
    further.close()
    assert bodies(ch, q) == [b"3"]


def test_a_multiple_ack_of_tag_zero_settles_everything_over_all_queues(
    ch: BlockingChannel, connection: pika.BlockingConnection
) -> None:
    first, second, further = queue(ch), queue(ch), connection.channel()
    fill(ch, first, b"1", b"2")
    fill(ch, second, b"3")
    held(further, first, 2)
    held(further, second, 1)
    further.basic_ack(0, multiple=True)
    further.close()
    assert bodies(ch, first) + bodies(ch, second) == []


def test_a_multiple_ack_of_tag_zero_with_nothing_to_settle_is_no_error(ch: BlockingChannel) -> None:
    ch.basic_ack(0, multiple=True)
    touch(ch)


def test_settling_out_of_order_is_possible(ch: BlockingChannel, connection: pika.BlockingConnection) -> None:
    q, further = queue(ch), connection.channel()
    fill(ch, q, b"1", b"2", b"3")
    tags = held(further, q, 3)
    for tag in reversed(tags):
        further.basic_ack(tag)
    further.close()
    assert bodies(ch, q) == []


@pytest.mark.parametrize(
    "verb",
    [
        lambda ch, tag: ch.basic_nack(tag, requeue=False),
        lambda ch, tag: ch.basic_reject(tag, requeue=False),
    ],
    ids=["nack", "reject"],
)
def test_what_is_refused_without_requeue_is_gone(
    ch: BlockingChannel, connection: pika.BlockingConnection, verb: Any
) -> None:
    q, further = queue(ch), connection.channel()
    fill(ch, q, b"1", b"2")
    verb(further, held(further, q, 1)[0])
    further.close()
    assert bodies(ch, q) == [b"2"]


def test_a_multiple_nack_requeues_all_up_to_its_tag(ch: BlockingChannel) -> None:
    q = queue(ch)
    fill(ch, q, b"1", b"2", b"3")
    tags = held(ch, q, 3)
    ch.basic_nack(tags[1], multiple=True)
    assert bodies(ch, q) == [b"1", b"2"]


def test_a_multiple_nack_of_tag_zero_requeues_everything(ch: BlockingChannel) -> None:
    q = queue(ch)
    fill(ch, q, b"1", b"2", b"3")
    held(ch, q, 3)
    ch.basic_nack(0, multiple=True)
    assert bodies(ch, q) == [b"1", b"2", b"3"]


# -- tags that nobody has


@pytest.mark.parametrize(
    ("settle", "by"),
    [
        (lambda ch: ch.basic_ack(7), spec.Basic.Ack),
        (lambda ch: ch.basic_ack(7, multiple=True), spec.Basic.Ack),
        (lambda ch: ch.basic_nack(7), spec.Basic.Nack),
        (lambda ch: ch.basic_nack(7, multiple=True), spec.Basic.Nack),
        (lambda ch: ch.basic_reject(7), spec.Basic.Reject),
    ],
    ids=["ack", "ack multiple", "nack", "nack multiple", "reject"],
)
def test_settling_an_unknown_tag_closes_the_channel_with_406(
    ch: BlockingChannel, settle: Any, by: Any
) -> None:
    with closes(406, unknown(7)):
        settle(ch)
        touch(ch)


@pytest.mark.parametrize("multiple", [False, True])
def test_settling_twice_closes_the_channel_with_406(ch: BlockingChannel, multiple: bool) -> None:
    q = queue(ch)
    send(ch, q, b"x")
    tag = get(ch, q).tag
    ch.basic_ack(tag)
    with closes(406, unknown(tag)):
        ch.basic_ack(tag, multiple)
        touch(ch)


def test_settling_twice_is_refused_even_when_others_are_held(ch: BlockingChannel) -> None:
    q = queue(ch)
    fill(ch, q, b"1", b"2", b"3")
    tags = held(ch, q, 3)
    ch.basic_ack(tags[1])
    with closes(406, unknown(tags[1])):
        ch.basic_ack(tags[1])
        touch(ch)


def test_a_multiple_ack_of_a_settled_tag_is_refused_even_when_earlier_ones_are_held(
    ch: BlockingChannel,
) -> None:
    q = queue(ch)
    fill(ch, q, b"1", b"2", b"3")
    tags = held(ch, q, 3)
    ch.basic_ack(tags[1])
    with closes(406, unknown(tags[1])):
        ch.basic_ack(tags[1], multiple=True)
        touch(ch)


def test_tag_zero_alone_is_unknown(ch: BlockingChannel) -> None:
    with closes(406, unknown(0)):
        ch.basic_ack(0)
        touch(ch)


def test_a_tag_belongs_to_its_channel(ch: BlockingChannel, connection: pika.BlockingConnection) -> None:
    q, further = queue(ch), connection.channel()
    send(ch, q, b"x")
    tag = get(ch, q).tag
    with closes(406, unknown(tag)):
        further.basic_ack(tag)
        touch(further)
    ch.basic_ack(tag)
    touch(ch)


def test_a_delivery_outlives_its_queue(ch: BlockingChannel) -> None:
    q = queue(ch)
    fill(ch, q, b"1", b"2")
    first, second = held(ch, q, 2)
    ch.queue_delete(q)
    ch.basic_ack(first)
    ch.basic_nack(second)
    touch(ch)


# -- requeue


def test_a_requeued_message_goes_back_to_its_place(ch: BlockingChannel) -> None:
    q = queue(ch)
    fill(ch, q, b"1", b"2", b"3", b"4")
    tags = held(ch, q, 3)
    ch.basic_nack(tags[1])
    assert fetch(ch, q).body == b"2"
    ch.basic_nack(tags[2])
    ch.basic_reject(tags[0])
    assert bodies(ch, q) == [b"1", b"3", b"4"]


def test_only_what_was_requeued_is_redelivered(ch: BlockingChannel) -> None:
    q = queue(ch)
    fill(ch, q, b"1", b"2")
    ch.basic_nack(get(ch, q).tag)
    came = [fetch(ch, q) for _ in range(2)]
    assert [(delivery.body, delivery.method.redelivered) for delivery in came] == [
        (b"1", True),
        (b"2", False),
    ]


def test_a_consumer_gets_what_it_requeues_again(ch: BlockingChannel) -> None:
    q = queue(ch)
    inbox = Inbox(ch, q)
    send(ch, q, b"x")
    inbox.wait(1)
    ch.basic_reject(inbox.got[0].tag, requeue=True)
    inbox.wait(2)
    again = inbox.got[1]
    assert (again.body, again.method.redelivered, again.tag) == (b"x", True, 2)


def test_a_closed_channel_requeues_in_order(ch: BlockingChannel, connection: pika.BlockingConnection) -> None:
    q, further = queue(ch), connection.channel()
    fill(ch, q, b"1", b"2", b"3", b"4")
    held(further, q, 3)
    further.close()
    came = [fetch(ch, q) for _ in range(4)]
    assert [delivery.body for delivery in came] == [b"1", b"2", b"3", b"4"]
    assert [delivery.method.redelivered for delivery in came] == [True, True, True, False]


def test_a_channel_that_the_broker_closes_requeues(
    ch: BlockingChannel, connection: pika.BlockingConnection
) -> None:
    q, further = queue(ch), connection.channel()
    fill(ch, q, b"1", b"2")
    held(further, q, 2)
    with closes(406, unknown(9)):
        further.basic_ack(9)
        touch(further)
    has(ch, q, 2)
    assert bodies(ch, q) == [b"1", b"2"]


def test_a_dropped_connection_requeues(ch: BlockingChannel, wire: Wire) -> None:
    q = queue(ch, exclusive=False)
    fill(ch, q, b"1", b"2")
    for _ in range(2):
        wire.send(spec.Basic.Get(queue=q)).expect_content(spec.Basic.GetOk)
    wire.hang_up()  # without a word
    has(ch, q, 2)
    came = [fetch(ch, q) for _ in range(2)]
    assert [(delivery.body, delivery.method.redelivered) for delivery in came] == [(b"1", True), (b"2", True)]
    ch.queue_delete(q)


def test_a_cancelled_consumers_deliveries_stay_with_the_channel(
    ch: BlockingChannel, wire: Wire, connect: Connect
) -> None:
    q = queue(ch, exclusive=False)
    fill(ch, q, b"x")
    wire.send(spec.Basic.Consume(queue=q, consumer_tag="c")).expect(spec.Basic.ConsumeOk)
    wire.expect_content(spec.Basic.Deliver)
    wire.send(spec.Basic.Cancel(consumer_tag="c")).expect(spec.Basic.CancelOk)
    assert bodies(ch, q) == []
    wire.send(spec.Basic.Nack(delivery_tag=1))
    assert fetch(ch, q).method.redelivered
    ch.queue_delete(q)


# -- recover


def test_recover_requeues_what_the_channel_holds(ch: BlockingChannel) -> None:
    q = queue(ch)
    fill(ch, q, b"1", b"2", b"3")
    held(ch, q, 2)
    ch.basic_recover(requeue=True)
    came = [fetch(ch, q) for _ in range(3)]
    assert [delivery.body for delivery in came] == [b"1", b"2", b"3"]
    assert [delivery.method.redelivered for delivery in came] == [True, True, False]


def test_what_was_recovered_cannot_be_settled(ch: BlockingChannel) -> None:
    q = queue(ch)
    fill(ch, q, b"1")
    tag = held(ch, q, 1)[0]
    ch.basic_recover(requeue=True)
    with closes(406, unknown(tag)):
        ch.basic_ack(tag)
        touch(ch)


def test_recover_gives_a_consumer_its_messages_again(ch: BlockingChannel) -> None:
    q = queue(ch)
    inbox = Inbox(ch, q)
    send(ch, q, b"1", b"2")
    inbox.wait(2)
    ch.basic_recover(requeue=True)
    inbox.wait(4)
    assert inbox.bodies == [b"1", b"2", b"1", b"2"]
    assert [delivery.tag for delivery in inbox.got] == [1, 2, 3, 4]


def test_recover_without_requeue_closes_the_connection_with_540(wire: Wire) -> None:
    wire.send(spec.Basic.Recover(requeue=False))
    wire.expect_connection_close(540, "NOT_IMPLEMENTED - requeue=false", spec.Basic.Recover)


def test_recover_async_requeues_without_an_answer(wire: Wire) -> None:
    q = wire.declare()
    wire.publish("", q, b"x")
    wire.send(spec.Basic.Get(queue=q)).expect_content(spec.Basic.GetOk)
    wire.send(spec.Basic.RecoverAsync(requeue=True))
    wire.send(spec.Basic.Get(queue=q))
    again, _, body = wire.expect_content(spec.Basic.GetOk)
    assert (again.redelivered, body) == (True, b"x")


def test_recover_async_without_requeue_closes_the_connection_with_540(wire: Wire) -> None:
    wire.send(spec.Basic.RecoverAsync(requeue=False))
    wire.expect_connection_close(540, "NOT_IMPLEMENTED - requeue=false", spec.Basic.RecoverAsync)


# -- in a transaction


def test_a_nack_in_a_transaction_requeues_at_its_commit(ch: BlockingChannel) -> None:
    q = queue(ch)
    fill(ch, q, b"x")
    ch.tx_select()
    ch.basic_nack(get(ch, q).tag)
    assert bodies(ch, q) == []
    ch.tx_commit()
    assert bodies(ch, q) == [b"x"]


def test_an_unknown_tag_in_a_transaction_is_refused_at_once(ch: BlockingChannel) -> None:
    ch.tx_select()
    with closes(406, unknown(7)):
        ch.basic_ack(7)
        touch(ch)
