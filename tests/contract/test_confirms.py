"""Confirms and transactions."""

from __future__ import annotations

import pika
import pytest
from pika import spec
from pika.adapters.blocking_connection import BlockingChannel

from tests.contract.helpers import bodies, closes, count, get, name, queue, send
from tests.contract.raw import Wire


def confirmed(wire: Wire, number: int) -> list[int]:
    """The tags that were confirmed, until that many are."""
    tags: list[int] = []
    while len(tags) < number:
        ack = wire.expect(spec.Basic.Ack)
        first = (max(tags, default=0) + 1) if ack.multiple else ack.delivery_tag
        tags += range(first, ack.delivery_tag + 1)
    return tags


def test_tags_count_from_one_on_each_channel_from_where_it_was_selected(wire: Wire) -> None:
    q = wire.declare()
    wire.publish("", q)  # before: not counted
    wire.send(spec.Confirm.Select()).expect(spec.Confirm.SelectOk)
    for _ in range(3):
        wire.publish("", q)
    assert confirmed(wire, 3) == [1, 2, 3]
    wire.open_channel(2)
    wire.send(spec.Confirm.Select(), 2).expect(spec.Confirm.SelectOk, 2)
    wire.publish("", q, channel=2)
    assert wire.expect(spec.Basic.Ack, 2).delivery_tag == 1


def test_selecting_again_changes_nothing(wire: Wire) -> None:
    q = wire.declare()
    wire.send(spec.Confirm.Select()).expect(spec.Confirm.SelectOk)
    wire.publish("", q)
    assert confirmed(wire, 1) == [1]
    wire.send(spec.Confirm.Select()).expect(spec.Confirm.SelectOk)
    wire.publish("", q)
    assert wire.expect(spec.Basic.Ack).delivery_tag == 2


def test_select_can_go_without_an_answer(wire: Wire) -> None:
    q = wire.declare()
    wire.send(spec.Confirm.Select(nowait=True)).publish("", q)
    assert wire.expect(spec.Basic.Ack).delivery_tag == 1


def test_an_unroutable_message_is_confirmed(wire: Wire) -> None:
    wire.send(spec.Confirm.Select()).expect(spec.Confirm.SelectOk)
    wire.publish("amq.direct", name())
    assert wire.expect(spec.Basic.Ack).delivery_tag == 1


def test_a_return_comes_before_its_confirm(wire: Wire) -> None:
    wire.send(spec.Confirm.Select()).expect(spec.Confirm.SelectOk)
    wire.publish("amq.direct", name(), b"x", mandatory=True)
    returned, _, body = wire.expect_content(spec.Basic.Return)
    assert (returned.reply_code, returned.reply_text, body) == (312, "NO_ROUTE", b"x")
    assert wire.expect(spec.Basic.Ack).delivery_tag == 1


def test_every_one_of_many_is_confirmed_once(wire: Wire) -> None:
    q = wire.declare()
    wire.send(spec.Confirm.Select()).expect(spec.Confirm.SelectOk)
    for _ in range(500):
        wire.publish("", q, b"x")
    assert confirmed(wire, 500) == list(range(1, 501))


def test_a_message_is_in_its_queue_before_its_confirm(ch: BlockingChannel, other: BlockingChannel) -> None:
    q = queue(ch, exclusive=False, auto_delete=True)
    other.confirm_delivery()
    for number in range(1, 21):
        other.basic_publish("", q, b"x")
        assert count(ch, q) == number
    ch.queue_delete(q)


def test_a_persistent_message_in_a_durable_queue_is_confirmed(ch: BlockingChannel) -> None:
    q = queue(ch, durable=True)
    ch.confirm_delivery()
    ch.basic_publish("", q, b"x", pika.BasicProperties(delivery_mode=2))
    assert bodies(ch, q) == [b"x"]


def test_a_message_for_several_queues_is_confirmed_once(wire: Wire) -> None:
    first, second = wire.declare(), wire.declare()
    wire.send(spec.Confirm.Select()).expect(spec.Confirm.SelectOk)
    wire.send(spec.Basic.Publish(exchange="", routing_key=first))
    wire.send_header(0, headers={"CC": [second]}, delivery_mode=2)
    assert wire.expect(spec.Basic.Ack).delivery_tag == 1
    wire.check()  # nothing else came


def test_a_publish_that_closes_its_channel_is_not_confirmed(wire: Wire) -> None:
    wire.send(spec.Confirm.Select()).expect(spec.Confirm.SelectOk)
    missing = name()
    wire.publish(missing, "k")
    wire.expect_channel_close(404, f"NOT_FOUND - no exchange '{missing}' in vhost '/'", spec.Basic.Publish)


# -- transactions


def test_what_was_published_in_a_transaction_waits_for_its_commit(ch: BlockingChannel) -> None:
    q = queue(ch)
    ch.tx_select()
    send(ch, q, b"1", b"2")
    assert bodies(ch, q) == []
    ch.tx_commit()
    assert bodies(ch, q) == [b"1", b"2"]


def test_what_was_published_before_a_rollback_never_comes(ch: BlockingChannel) -> None:
    q = queue(ch)
    ch.tx_select()
    send(ch, q, b"1")
    ch.tx_rollback()
    send(ch, q, b"2")
    ch.tx_commit()
    assert bodies(ch, q) == [b"2"]


def test_a_closed_channel_rolls_back(ch: BlockingChannel, connection: pika.BlockingConnection) -> None:
    q, further = queue(ch), connection.channel()
    further.tx_select()
    send(further, q, b"1")
    further.close()
    assert bodies(ch, q) == []


def test_an_ack_in_a_transaction_waits_for_its_commit(
    ch: BlockingChannel, connection: pika.BlockingConnection
) -> None:
    q, further = queue(ch), connection.channel()
    send(ch, q, b"1", b"2")
    further.tx_select()
    further.basic_ack(get(further, q).tag)
    further.tx_commit()
    further.basic_ack(get(further, q).tag)
    further.close()
    assert bodies(ch, q) == [b"2"]


def test_a_rolled_back_ack_can_be_made_again(ch: BlockingChannel) -> None:
    q = queue(ch)
    send(ch, q, b"x")
    ch.tx_select()
    tag = get(ch, q).tag
    ch.basic_ack(tag)
    ch.tx_rollback()
    assert bodies(ch, q) == []  # it is still unsettled, and not requeued
    ch.basic_nack(tag)
    ch.tx_commit()
    assert bodies(ch, q) == [b"x"]


def test_select_again_keeps_what_is_pending(ch: BlockingChannel) -> None:
    q = queue(ch)
    ch.tx_select()
    send(ch, q, b"x")
    ch.tx_select()
    ch.tx_commit()
    assert bodies(ch, q) == [b"x"]


def test_an_unroutable_mandatory_message_comes_back_at_the_commit(wire: Wire) -> None:
    wire.send(spec.Tx.Select()).expect(spec.Tx.SelectOk)
    wire.publish("amq.direct", name(), b"x", mandatory=True)
    wire.send(spec.Tx.Commit())
    wire.expect_content(spec.Basic.Return)
    wire.expect(spec.Tx.CommitOk)


@pytest.mark.parametrize("method", [spec.Tx.Commit, spec.Tx.Rollback])
def test_ending_a_transaction_that_was_not_begun_is_refused_with_406(
    wire: Wire, method: type[spec.Tx.Commit | spec.Tx.Rollback]
) -> None:
    wire.send(method())
    wire.expect_channel_close(406, "PRECONDITION_FAILED - channel is not transactional", method)


def test_confirms_in_a_transaction_are_refused_with_406(ch: BlockingChannel) -> None:
    ch.tx_select()
    with closes(406, "PRECONDITION_FAILED - cannot switch from tx to confirm mode"):
        ch.confirm_delivery()


def test_a_transaction_among_confirms_is_refused_with_406(ch: BlockingChannel) -> None:
    ch.confirm_delivery()
    with closes(406, "PRECONDITION_FAILED - cannot switch from confirm to tx mode"):
        ch.tx_select()


def test_publishing_to_a_missing_exchange_in_a_transaction_is_refused_at_once(wire: Wire) -> None:
    wire.send(spec.Tx.Select()).expect(spec.Tx.SelectOk)
    missing = name()
    wire.publish(missing, "k")
    wire.expect_channel_close(404, f"NOT_FOUND - no exchange '{missing}' in vhost '/'")
    wire.open_channel(1).check()
