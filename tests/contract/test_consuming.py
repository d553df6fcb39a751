"""Consumers: who gets what, until when, and how much at once."""

from __future__ import annotations

import re
from typing import Any

import pika
import pytest
from pika import spec
from pika.adapters.blocking_connection import BlockingChannel

from tests.contract.conftest import Connect
from tests.contract.helpers import Inbox, closes, consumers, disconnects, fill, has, name, queue, send, until
from tests.contract.raw import Wire


def use_refused(q: str) -> str:
    return f"ACCESS_REFUSED - queue '{q}' in vhost '/' in exclusive use"


# -- tags


def test_a_consumer_without_a_tag_is_given_one(wire: Wire) -> None:
    wire.declare()
    wire.send(spec.Basic.Consume(queue="", consumer_tag=""))
    given = wire.expect(spec.Basic.ConsumeOk).consumer_tag
    assert re.fullmatch(r"amq\.ctag-[A-Za-z0-9_-]{22}", given)


def test_a_tag_in_use_closes_the_connection_with_530(wire: Wire) -> None:
    wire.declare()
    wire.send(spec.Basic.Consume(queue="", consumer_tag="mine")).expect(spec.Basic.ConsumeOk)
    wire.send(spec.Basic.Consume(queue="", consumer_tag="mine"))
    wire.expect_connection_close(
        530, "NOT_ALLOWED - attempt to reuse consumer tag 'mine'", spec.Basic.Consume
    )


def test_a_tag_may_be_used_on_every_channel(wire: Wire) -> None:
    q = wire.declare()
    wire.open_channel(2)
    for channel in (1, 2):
        wire.send(spec.Basic.Consume(queue=q, consumer_tag="mine"), channel)
        assert wire.expect(spec.Basic.ConsumeOk, channel).consumer_tag == "mine"


def test_a_cancelled_tag_may_be_used_again(ch: BlockingChannel) -> None:
    q = queue(ch)
    for _ in range(2):
        ch.basic_consume(q, lambda *_: None, consumer_tag="mine")
        ch.basic_cancel("mine")


def test_consume_ok_comes_before_the_first_delivery(wire: Wire) -> None:
    q = wire.declare()
    wire.publish("", q, b"x")
    wire.send(spec.Basic.Consume(queue=q, consumer_tag="mine")).expect(spec.Basic.ConsumeOk)
    delivery, _, body = wire.expect_content(spec.Basic.Deliver)
    assert (delivery.consumer_tag, delivery.delivery_tag, delivery.redelivered) == ("mine", 1, False)
    assert (delivery.exchange, delivery.routing_key, body) == ("", q, b"x")


# -- cancel


def test_cancelling_answers_with_the_tag_even_when_it_is_unknown(wire: Wire) -> None:
    wire.send(spec.Basic.Cancel(consumer_tag="never"))
    assert wire.expect(spec.Basic.CancelOk).consumer_tag == "never"


def test_a_cancelled_consumer_gets_nothing_more_and_keeps_what_it_has(wire: Wire) -> None:
    q = wire.declare()
    wire.send(spec.Basic.Consume(queue=q, consumer_tag="mine")).expect(spec.Basic.ConsumeOk)
    wire.publish("", q, b"1")
    wire.expect_content(spec.Basic.Deliver)
    wire.send(spec.Basic.Cancel(consumer_tag="mine")).expect(spec.Basic.CancelOk)
    wire.publish("", q, b"2")
    wire.send(spec.Basic.Ack(1))
    wire.send(spec.Basic.Get(queue=q))
    assert wire.expect_content(spec.Basic.GetOk)[2] == b"2"


def test_consumers_are_told_when_their_queue_is_deleted(
    connect: Connect, ch: BlockingChannel, other: BlockingChannel
) -> None:
    q, told = queue(ch, exclusive=False), []
    for channel in (ch, other):
        channel.add_on_cancel_callback(lambda frame: told.append(frame.method.consumer_tag))
    tags = {Inbox(ch, q).tag, Inbox(ch, q).tag}
    tag = Inbox(other, q).tag
    connect().channel().queue_delete(q)
    until(ch, lambda: tags <= set(told), "both cancels")
    until(other, lambda: tag in told, "the cancel")
    assert len(told) == 3


def test_a_consumer_that_deletes_its_queue_is_told_too(wire: Wire) -> None:
    q = wire.declare()
    wire.send(spec.Basic.Consume(queue=q, consumer_tag="mine")).expect(spec.Basic.ConsumeOk)
    wire.send(spec.Queue.Delete(queue=q))
    came = {type(wire.read().method) for _ in range(2)}
    assert came == {spec.Basic.Cancel, spec.Queue.DeleteOk}


def test_a_client_that_cannot_be_told_is_not_told(dial: Any) -> None:
    wire = dial()
    wire.greet()
    wire.start_ok("\0guest\0guest", capabilities={})
    tune = wire.expect(spec.Connection.Tune, 0)
    wire.tune_ok(tune.channel_max, tune.frame_max).open_host().expect(spec.Connection.OpenOk, 0)
    wire.open_channel(1)
    q = wire.declare()
    wire.send(spec.Basic.Consume(queue=q, consumer_tag="mine")).expect(spec.Basic.ConsumeOk)
    wire.send(spec.Queue.Delete(queue=q)).expect(spec.Queue.DeleteOk)
    wire.check()


# -- what is refused


def test_consuming_from_a_missing_queue_is_refused_with_404(ch: BlockingChannel) -> None:
    missing = name()
    with closes(404, f"NOT_FOUND - no queue '{missing}' in vhost '/'"):
        Inbox(ch, missing)


def test_consuming_alone_is_refused_while_others_consume(ch: BlockingChannel) -> None:
    q = queue(ch)
    Inbox(ch, q)
    with closes(403, use_refused(q)):
        Inbox(ch, q, exclusive=True)


def test_consuming_is_refused_while_another_consumes_alone(
    ch: BlockingChannel, other: BlockingChannel
) -> None:
    q = queue(ch, exclusive=False, auto_delete=True)
    alone = Inbox(ch, q, exclusive=True)
    with closes(403, use_refused(q)):
        Inbox(other, q)
    ch.basic_cancel(alone.tag)


def test_a_queue_is_free_again_when_its_only_consumer_goes(ch: BlockingChannel) -> None:
    q = queue(ch)
    ch.basic_cancel(Inbox(ch, q, exclusive=True).tag)
    Inbox(ch, q, exclusive=True)
    assert consumers(ch, q) == 1


def test_a_get_is_possible_beside_a_consumer_that_consumes_alone(ch: BlockingChannel) -> None:
    q = queue(ch)
    Inbox(ch, q, exclusive=True)
    assert ch.basic_get(q) == (None, None, None)


@pytest.mark.parametrize(("priority", "kind"), [("high", "longstr"), (True, "bool"), ([1], "array")])
def test_a_priority_that_is_no_integer_is_refused_with_406(
    ch: BlockingChannel, priority: object, kind: str
) -> None:
    q = queue(ch)
    why = f'"expected integer, got {kind}"'
    with closes(406, f"PRECONDITION_FAILED - invalid arg 'x-priority' for queue '{q}' in vhost '/': {why}"):
        Inbox(ch, q, arguments={"x-priority": priority})


# -- who gets what


def test_consumers_take_turns(ch: BlockingChannel) -> None:
    q = queue(ch)
    first, second, third = Inbox(ch, q), Inbox(ch, q), Inbox(ch, q)
    send(ch, q, *[b"%d" % number for number in range(6)])
    for inbox in (first, second, third):
        inbox.wait(2)
    assert [first.bodies, second.bodies, third.bodies] == [[b"0", b"3"], [b"1", b"4"], [b"2", b"5"]]


def test_a_consumer_with_a_higher_priority_goes_first_while_it_may(ch: BlockingChannel) -> None:
    q = queue(ch)
    ch.basic_qos(prefetch_count=2)
    low, high = Inbox(ch, q), Inbox(ch, q, arguments={"x-priority": 10})
    lowest = Inbox(ch, q, arguments={"x-priority": -1})
    send(ch, q, b"1", b"2", b"3", b"4", b"5")
    high.wait(2)
    low.wait(2)
    lowest.wait(1)
    assert [high.bodies, low.bodies, lowest.bodies] == [[b"1", b"2"], [b"3", b"4"], [b"5"]]


def test_messages_come_in_their_order(ch: BlockingChannel) -> None:
    q = queue(ch)
    sent = [b"%d" % number for number in range(300)]
    send(ch, q, *sent[:150])
    inbox = Inbox(ch, q, auto_ack=True)
    send(ch, q, *sent[150:])
    assert [delivery.body for delivery in inbox.wait(300)] == sent


def test_what_needs_no_ack_is_gone_when_it_is_sent(ch: BlockingChannel, other: BlockingChannel) -> None:
    q = queue(ch, exclusive=False)
    send(ch, q, b"x")
    Inbox(other, q, auto_ack=True).wait()
    other.close()
    ch.queue_delete(q, if_empty=True)


def test_no_local_is_ignored(wire: Wire) -> None:
    q = wire.declare()
    wire.send(spec.Basic.Consume(queue=q, no_local=True, consumer_tag="c")).expect(spec.Basic.ConsumeOk)
    wire.publish("", q, b"x")
    assert wire.expect_content(spec.Basic.Deliver)[2] == b"x"


def test_delivery_tags_count_over_all_consumers_of_a_channel(ch: BlockingChannel) -> None:
    inboxes = [Inbox(ch, queue(ch)) for _ in range(3)]
    for inbox in inboxes:
        send(ch, inbox.of, b"x")
        inbox.wait()
    assert [inbox.got[0].tag for inbox in inboxes] == [1, 2, 3]


# -- prefetch


def test_prefetch_bounds_what_each_later_consumer_holds(ch: BlockingChannel) -> None:
    q = queue(ch)
    before = Inbox(ch, q)
    ch.basic_cancel(before.tag)
    ch.basic_qos(prefetch_count=2)
    fill(ch, q, *[b"%d" % number for number in range(6)])
    first, second = Inbox(ch, q), Inbox(ch, q)
    first.settle(b"0", b"1")
    second.settle(b"2", b"3")
    ch.basic_ack(first.got[0].tag)
    first.wait(3)
    assert first.bodies == [b"0", b"1", b"4"]


def test_a_consumer_keeps_the_prefetch_that_it_began_with(ch: BlockingChannel) -> None:
    q = queue(ch)
    fill(ch, q, b"1", b"2", b"3")
    ch.basic_qos(prefetch_count=1)
    inbox = Inbox(ch, q)
    ch.basic_qos(prefetch_count=5)
    inbox.settle(b"1")


# RabbitMQ 4.x refuses global_qos by default: the next three.
def test_a_global_prefetch_bounds_a_channel(ch: BlockingChannel) -> None:
    first, second = queue(ch), queue(ch)
    ch.basic_qos(prefetch_count=3, global_qos=True)
    fill(ch, first, b"1", b"2")
    fill(ch, second, b"3", b"4")
    one = Inbox(ch, first)
    one.settle(b"1", b"2")
    two = Inbox(ch, second)
    two.settle(b"3")
    ch.basic_ack(one.got[0].tag)
    two.wait(2)


def test_a_global_prefetch_is_raised_for_the_consumers_that_are_there(ch: BlockingChannel) -> None:
    q = queue(ch)
    ch.basic_qos(prefetch_count=1, global_qos=True)
    fill(ch, q, b"1", b"2", b"3", b"4")
    inbox = Inbox(ch, q)
    inbox.settle(b"1")
    ch.basic_qos(prefetch_count=3, global_qos=True)
    inbox.wait(3)
    inbox.settle(b"1", b"2", b"3")
    ch.basic_qos(prefetch_count=0, global_qos=True)
    inbox.wait(4)


def test_both_prefetches_bind_together(ch: BlockingChannel) -> None:
    q = queue(ch)
    ch.basic_qos(prefetch_count=2)
    ch.basic_qos(prefetch_count=3, global_qos=True)
    fill(ch, q, b"1", b"2", b"3", b"4")
    first, second = Inbox(ch, q), Inbox(ch, q)
    first.settle(b"1", b"2")
    second.settle(b"3")


def test_prefetch_does_not_bound_a_get_nor_a_consumer_without_acks(ch: BlockingChannel) -> None:
    q = queue(ch)
    ch.basic_qos(prefetch_count=1)
    fill(ch, q, b"1", b"2", b"3", b"4")
    ch.basic_get(q)
    ch.basic_get(q)
    inbox = Inbox(ch, q, auto_ack=True)
    inbox.settle(b"3", b"4")


def test_a_prefetch_size_closes_the_connection_with_540(ch: BlockingChannel) -> None:
    with disconnects(540, "NOT_IMPLEMENTED - prefetch_size!=0 (1)"):
        ch.basic_qos(prefetch_size=1)


# -- channel flow, and the end


def test_stopping_the_flow_closes_the_connection_with_540(wire: Wire) -> None:
    wire.send(spec.Channel.Flow(active=True))
    assert wire.expect(spec.Channel.FlowOk).active
    wire.send(spec.Channel.Flow(active=False))
    wire.expect_connection_close(540, "NOT_IMPLEMENTED - active=false", spec.Channel.Flow)


def test_a_closed_channels_consumers_are_gone(
    ch: BlockingChannel, connection: pika.BlockingConnection
) -> None:
    q, further = queue(ch), connection.channel()
    Inbox(further, q)
    assert consumers(ch, q) == 1
    further.close()
    until(ch, lambda: consumers(ch, q) == 0, "the end of the consumer")
    send(ch, q, b"x")
    has(ch, q, 1)


# -- one consumer at a time


def single(ch: BlockingChannel, **options: Any) -> str:
    return queue(ch, {"x-single-active-consumer": True}, **options)


def test_only_one_consumer_is_active_until_it_is_cancelled(ch: BlockingChannel) -> None:
    q = single(ch)
    first, second, third = Inbox(ch, q), Inbox(ch, q), Inbox(ch, q)
    send(ch, q, b"1", b"2")
    first.wait(2)
    second.settle()
    ch.basic_cancel(first.tag)
    send(ch, q, b"3")
    second.wait(1)
    third.settle()
    assert first.bodies == [b"1", b"2"]


def test_another_consumer_becomes_active_when_the_connection_of_the_first_ends(
    ch: BlockingChannel, connect: Connect
) -> None:
    q, holder = single(ch, exclusive=False), connect()
    first = Inbox(holder.channel(), q)
    second = Inbox(ch, q)
    send(ch, q, b"1", b"2")
    first.wait(2)
    holder.close()
    second.wait(2)
    assert [(delivery.body, delivery.method.redelivered) for delivery in second.got] == [
        (b"1", True),
        (b"2", True),
    ]
    ch.queue_delete(q)


def test_the_active_consumer_stays_so_beside_one_of_higher_priority(ch: BlockingChannel) -> None:
    # On a classic queue. RabbitMQ 4.x's quorum queues let the higher priority take over.
    q = single(ch)
    first, second = Inbox(ch, q), Inbox(ch, q, arguments={"x-priority": 10})
    send(ch, q, b"1")
    first.wait(1)
    second.settle()


def test_consuming_alone_from_a_queue_with_one_active_consumer_is_refused_with_403(
    ch: BlockingChannel,
) -> None:
    q = single(ch)
    with closes(403, use_refused(q)):
        Inbox(ch, q, exclusive=True)
