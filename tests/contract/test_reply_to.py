"""Direct reply-to: answers without a queue."""

from __future__ import annotations

import re

import pytest
from pika import spec
from pika.adapters.blocking_connection import BlockingChannel

from tests.contract.conftest import Connect
from tests.contract.helpers import Inbox, closes, fetch, publish, queue, touch, until
from tests.contract.raw import Wire

REPLY_TO = "amq.rabbitmq.reply-to"


def test_an_answer_comes_to_the_channel_that_asked(ch: BlockingChannel, other: BlockingChannel) -> None:
    requests = queue(ch, exclusive=False)
    answers = Inbox(ch, REPLY_TO, auto_ack=True)
    publish(ch, "", requests, b"question", reply_to=REPLY_TO, correlation_id="7")
    asked = fetch(other, requests)
    assert re.fullmatch(r"amq\.rabbitmq\.reply-to\.[A-Za-z0-9+/=._-]+", asked.properties.reply_to)
    publish(other, "", asked.properties.reply_to, b"answer", correlation_id=asked.properties.correlation_id)
    came = answers.wait(1)[0]
    assert (came.body, came.properties.correlation_id) == (b"answer", "7")
    assert (came.method.exchange, came.method.routing_key) == ("", asked.properties.reply_to)
    assert (came.method.redelivered, came.tag, came.method.consumer_tag) == (False, 1, answers.tag)
    ch.queue_delete(requests)


def test_several_answers_come_to_one_question(ch: BlockingChannel) -> None:
    q, answers = queue(ch), Inbox(ch, REPLY_TO, auto_ack=True)
    publish(ch, "", q, reply_to=REPLY_TO)
    address = fetch(ch, q).properties.reply_to
    for body in (b"1", b"2"):
        publish(ch, "", address, body)
    answers.wait(2)
    assert answers.bodies == [b"1", b"2"]


def test_the_address_is_the_channels_own_for_as_long_as_it_consumes(ch: BlockingChannel) -> None:
    q = queue(ch)
    Inbox(ch, REPLY_TO, auto_ack=True)
    for _ in range(2):
        publish(ch, "", q, reply_to=REPLY_TO)
    assert fetch(ch, q).properties.reply_to == fetch(ch, q).properties.reply_to


def test_it_must_be_consumed_without_acks(ch: BlockingChannel) -> None:
    with closes(406, "PRECONDITION_FAILED - reply consumer cannot acknowledge"):
        Inbox(ch, REPLY_TO)


def test_a_channel_consumes_it_once(ch: BlockingChannel) -> None:
    Inbox(ch, REPLY_TO, auto_ack=True)
    with closes(406, "PRECONDITION_FAILED - reply consumer already set"):
        Inbox(ch, REPLY_TO, auto_ack=True)


def test_asking_without_consuming_is_refused_with_406(ch: BlockingChannel) -> None:
    with closes(406, "PRECONDITION_FAILED - fast reply consumer does not exist"):
        publish(ch, "", "k", reply_to=REPLY_TO)
        touch(ch)


def test_it_can_be_consumed_again_after_a_cancel(ch: BlockingChannel) -> None:
    ch.basic_cancel(Inbox(ch, REPLY_TO, auto_ack=True).tag)
    Inbox(ch, REPLY_TO, auto_ack=True)


def test_its_declaration_is_answered_though_there_is_no_queue(ch: BlockingChannel) -> None:
    ok = ch.queue_declare(REPLY_TO, passive=True).method
    assert (ok.queue, ok.message_count, ok.consumer_count) == (REPLY_TO, 0, 1)


def test_the_address_of_one_who_listens_can_be_declared_passively(
    ch: BlockingChannel, other: BlockingChannel
) -> None:
    q = queue(ch)
    Inbox(ch, REPLY_TO, auto_ack=True)
    publish(ch, "", q, reply_to=REPLY_TO)
    address = fetch(ch, q).properties.reply_to
    # From another channel: RabbitMQ 3.10 closes the connection with 541 if a channel asks for its own.
    ok = other.queue_declare(address, passive=True).method
    assert (ok.queue, ok.message_count, ok.consumer_count) == (address, 0, 1)


def test_the_address_of_one_who_left_is_no_queue(ch: BlockingChannel, connect: Connect) -> None:
    q, asking = queue(ch), connect()
    asker = asking.channel()
    Inbox(asker, REPLY_TO, auto_ack=True)
    publish(asker, "", q, reply_to=REPLY_TO)
    address = fetch(ch, q).properties.reply_to
    asking.close()
    publish(ch, "", address, b"nobody")  # dropped
    with closes(404, f"NOT_FOUND - no queue '{address}' in vhost '/'"):
        ch.queue_declare(address, passive=True)


def test_a_mandatory_answer_to_one_who_left_comes_back(ch: BlockingChannel, connect: Connect) -> None:
    q, asking = queue(ch), connect()
    asker = asking.channel()
    Inbox(asker, REPLY_TO, auto_ack=True)
    publish(asker, "", q, reply_to=REPLY_TO)
    address = fetch(ch, q).properties.reply_to
    asking.close()
    returned: list[spec.Basic.Return] = []
    ch.add_on_return_callback(lambda _ch, method, _properties, _body: returned.append(method))
    ch.basic_publish("", address, b"nobody", mandatory=True)
    until(ch, lambda: returned, "the return")
    assert (returned[0].reply_code, returned[0].reply_text) == (312, "NO_ROUTE")


def test_an_answer_is_confirmed(wire: Wire) -> None:
    q = wire.declare()
    wire.send(spec.Basic.Consume(queue=REPLY_TO, consumer_tag="c", no_ack=True)).expect(spec.Basic.ConsumeOk)
    wire.send(spec.Basic.Publish(exchange="", routing_key=q)).send_header(0, reply_to=REPLY_TO)
    wire.send(spec.Basic.Get(queue=q, no_ack=True))
    address = wire.expect_content(spec.Basic.GetOk)[1].reply_to
    wire.open_channel(2).send(spec.Confirm.Select(), 2).expect(spec.Confirm.SelectOk, 2)
    wire.publish("", address, b"x", channel=2)
    came = {}
    for _ in range(2):
        frame = wire.read()
        came[type(frame.method)] = frame.channel_number
        if isinstance(frame.method, spec.Basic.Deliver):
            assert wire.read().body_size == 1
            assert wire.read().fragment == b"x"
    assert came == {spec.Basic.Deliver: 1, spec.Basic.Ack: 2}


@pytest.mark.parametrize("address", [REPLY_TO + ".nonsense", REPLY_TO + "."])
def test_an_address_that_is_none_is_dropped(ch: BlockingChannel, address: str) -> None:
    publish(ch, "", address, b"x")
    touch(ch)


def test_another_reply_to_is_left_alone(ch: BlockingChannel) -> None:
    q = queue(ch)
    publish(ch, "", q, reply_to="somewhere")
    assert fetch(ch, q).properties.reply_to == "somewhere"
