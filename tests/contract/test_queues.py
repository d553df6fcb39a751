"""Queues: what they are, who may use them, and when a declaration is refused."""

from __future__ import annotations

import re
from typing import Any

import pika
import pytest
from pika import spec
from pika.adapters.blocking_connection import BlockingChannel

from tests.contract.conftest import Connect
from tests.contract.helpers import (
    Inbox,
    bodies,
    closes,
    consumers,
    count,
    exists,
    get,
    has,
    name,
    publish,
    queue,
    send,
    until,
)
from tests.contract.raw import Wire


def locked(q: str) -> str:
    return (
        f"RESOURCE_LOCKED - cannot obtain exclusive access to locked queue '{q}' in vhost '/'. It could be "
        "originally declared on another connection or the exclusive property value does not match that of "
        "the original declaration."
    )


# -- declaring


def test_declare_ok_counts_what_is_ready_and_who_consumes(ch: BlockingChannel) -> None:
    q = name()
    ok = ch.queue_declare(q, exclusive=True).method
    assert (ok.queue, ok.message_count, ok.consumer_count) == (q, 0, 0)
    send(ch, q, b"1", b"2", b"3")
    get(ch, q)  # unsettled: not ready
    has(ch, q, 2)
    ok = ch.queue_declare(q, exclusive=True).method
    assert (ok.queue, ok.message_count, ok.consumer_count) == (q, 2, 0)
    Inbox(ch, q)
    Inbox(ch, q)
    has(ch, q, 0)
    ok = ch.queue_declare(q, passive=True).method
    assert (ok.message_count, ok.consumer_count) == (0, 2)


def test_a_queue_without_a_name_is_given_one(ch: BlockingChannel) -> None:
    given = ch.queue_declare("", exclusive=True).method.queue
    assert re.fullmatch(r"amq\.gen-[A-Za-z0-9_-]{22}", given)
    assert ch.queue_declare("", exclusive=True).method.queue != given


def test_an_empty_name_means_the_last_declared_queue(ch: BlockingChannel) -> None:
    q = ch.queue_declare("", exclusive=True).method.queue
    ch.queue_bind("", "amq.direct", q)
    send(ch, q, b"1", b"2")
    assert ch.basic_get("", True)[2] == b"1"
    assert ch.queue_purge("").method.message_count == 1
    assert Inbox(ch, "").tag
    ch.queue_unbind("", "amq.direct", q)
    ch.queue_delete("")


def test_an_empty_key_with_an_empty_name_is_the_queues_name_in_a_binding(ch: BlockingChannel) -> None:
    q = ch.queue_declare("", exclusive=True).method.queue
    # pika would put the name in of its own accord, were the key None.
    ch.queue_bind("", "amq.direct", "")
    publish(ch, "amq.direct", q, b"x")
    assert bodies(ch, q) == [b"x"]


def test_a_passive_declaration_of_an_empty_name_is_refused_with_404(ch: BlockingChannel) -> None:
    queue(ch)
    with closes(404, "NOT_FOUND - no queue '' in vhost '/'"):
        ch.queue_declare("", passive=True)


def test_a_passive_declaration_makes_a_queue_the_last_declared(ch: BlockingChannel) -> None:
    first, _second = queue(ch), queue(ch)
    ch.queue_declare(first, passive=True)
    send(ch, first, b"x")
    assert ch.basic_get("", True)[2] == b"x"


@pytest.mark.parametrize("verb", ["basic_get", "queue_purge", "queue_delete"])
def test_an_empty_name_before_any_declaration_is_refused_with_404(ch: BlockingChannel, verb: str) -> None:
    with closes(404, "NOT_FOUND - no previously declared queue"):
        getattr(ch, verb)("")


def test_a_passive_declaration_looks_at_the_name_only(ch: BlockingChannel) -> None:
    q = queue(ch)
    ch.queue_declare(q, passive=True, durable=True, exclusive=False, arguments={"x-expires": 5})


def test_a_passive_declaration_of_a_missing_queue_is_refused_with_404(ch: BlockingChannel) -> None:
    missing = name()
    with closes(404, f"NOT_FOUND - no queue '{missing}' in vhost '/'"):
        ch.queue_declare(missing, passive=True)


def test_a_reserved_name_is_refused_with_403(ch: BlockingChannel) -> None:
    reserved = "amq." + name()
    with closes(403, f"ACCESS_REFUSED - queue name '{reserved}' contains reserved prefix 'amq.*'"):
        ch.queue_declare(reserved)


def test_a_reserved_name_that_is_missing_is_404_when_declared_passively(ch: BlockingChannel) -> None:
    reserved = "amq." + name()
    with closes(404, f"NOT_FOUND - no queue '{reserved}' in vhost '/'"):
        ch.queue_declare(reserved, passive=True)


def test_a_server_given_name_cannot_be_declared_again(ch: BlockingChannel) -> None:
    q = ch.queue_declare("", exclusive=True).method.queue
    ch.queue_declare(q, passive=True)
    with closes(403, f"ACCESS_REFUSED - queue name '{q}' contains reserved prefix 'amq.*'"):
        ch.queue_declare(q, exclusive=True)


def test_line_feeds_are_stripped_from_a_name(wire: Wire) -> None:
    q = name()
    wire.send(spec.Queue.Declare(queue=f"{q}\r\n", exclusive=True))
    assert wire.expect(spec.Queue.DeclareOk).queue == q


def test_an_exclusive_queue_declared_as_another_on_its_connection_is_refused_with_405(
    ch: BlockingChannel,
) -> None:
    q = queue(ch)
    with closes(405, locked(q)):
        ch.queue_declare(q)


def test_a_shared_queue_declared_exclusive_is_refused_with_405(ch: BlockingChannel) -> None:
    q = queue(ch, exclusive=False, auto_delete=True)
    with closes(405, locked(q)):
        ch.queue_declare(q, exclusive=True, auto_delete=True)


# -- purge and delete


def test_a_purge_takes_what_is_ready_and_counts_it(ch: BlockingChannel) -> None:
    q = queue(ch)
    send(ch, q, b"1", b"2", b"3")
    unsettled = get(ch, q)
    assert ch.queue_purge(q).method.message_count == 2
    has(ch, q, 0)
    ch.basic_nack(unsettled.tag)
    assert bodies(ch, q) == [b"1"]


@pytest.mark.parametrize("verb", ["queue_purge", "basic_get"])
def test_using_a_missing_queue_is_refused_with_404(ch: BlockingChannel, verb: str) -> None:
    missing = name()
    with closes(404, f"NOT_FOUND - no queue '{missing}' in vhost '/'"):
        getattr(ch, verb)(missing)


def test_a_delete_counts_what_was_ready(ch: BlockingChannel, connection: pika.BlockingConnection) -> None:
    q = queue(ch)
    send(ch, q, b"1", b"2", b"3")
    get(ch, q)
    assert ch.queue_delete(q).method.message_count == 2
    assert not exists(connection, q)


def test_deleting_a_missing_queue_counts_none(ch: BlockingChannel) -> None:
    assert ch.queue_delete(name(), if_unused=True, if_empty=True).method.message_count == 0


def test_a_queue_in_use_is_not_deleted_if_unused(ch: BlockingChannel) -> None:
    q = queue(ch)
    Inbox(ch, q)
    with closes(406, f"PRECONDITION_FAILED - queue '{q}' in vhost '/' in use"):
        ch.queue_delete(q, if_unused=True)


def test_a_queue_with_messages_is_not_deleted_if_empty(ch: BlockingChannel) -> None:
    q = queue(ch)
    send(ch, q, b"x")
    with closes(406, f"PRECONDITION_FAILED - queue '{q}' in vhost '/' not empty"):
        ch.queue_delete(q, if_empty=True)


def test_a_queue_whose_messages_are_all_unsettled_counts_as_empty(ch: BlockingChannel) -> None:
    q = queue(ch)
    send(ch, q, b"x")
    get(ch, q)
    ch.queue_delete(q, if_empty=True)


def test_a_queue_that_is_in_use_and_not_empty_is_named_not_empty(ch: BlockingChannel) -> None:
    q = queue(ch)
    ch.basic_qos(prefetch_count=1)
    send(ch, q, b"1", b"2")
    Inbox(ch, q)
    with closes(406, f"PRECONDITION_FAILED - queue '{q}' in vhost '/' not empty"):
        ch.queue_delete(q, if_unused=True, if_empty=True)


# -- exclusive and auto-delete


@pytest.mark.parametrize(
    "use",
    [
        lambda ch, q: ch.queue_declare(q, exclusive=True),
        lambda ch, q: ch.queue_declare(q, passive=True),
        lambda ch, q: ch.queue_delete(q),
        lambda ch, q: ch.queue_purge(q),
        lambda ch, q: ch.queue_bind(q, "amq.direct", "k"),
        lambda ch, q: ch.queue_unbind(q, "amq.direct", "k"),
        lambda ch, q: ch.basic_get(q),
        lambda ch, q: Inbox(ch, q),
    ],
    ids=["declare", "passive", "delete", "purge", "bind", "unbind", "get", "consume"],
)
def test_an_exclusive_queue_is_locked_for_other_connections(
    ch: BlockingChannel, other: BlockingChannel, use: Any
) -> None:
    q = queue(ch)
    ch.queue_bind(q, "amq.direct", "k")
    with closes(405, locked(q)):
        use(other, q)


def test_unbinding_another_connections_queue_from_where_it_is_not_bound_is_no_error(
    ch: BlockingChannel, other: BlockingChannel
) -> None:
    other.queue_unbind(queue(ch), "amq.direct", "k")


def test_an_exclusive_queue_takes_messages_from_anyone(ch: BlockingChannel, other: BlockingChannel) -> None:
    q = queue(ch)
    other.confirm_delivery()
    other.basic_publish("", q, b"x", mandatory=True)
    assert bodies(ch, q) == [b"x"]


def test_an_exclusive_queue_serves_every_channel_of_its_connection(
    ch: BlockingChannel, connection: pika.BlockingConnection
) -> None:
    q = queue(ch)
    ch.close()
    assert count(connection.channel(), q) == 0


def test_an_exclusive_queue_ends_with_its_connection_even_when_durable(
    connection: pika.BlockingConnection, ch: BlockingChannel, connect: Connect
) -> None:
    owner = connect()
    q = queue(owner.channel(), durable=True)
    owner.close()
    until(ch, lambda: not exists(connection, q), "the end of the queue")


def test_an_auto_delete_queue_ends_with_its_last_consumer(
    ch: BlockingChannel, connection: pika.BlockingConnection
) -> None:
    q = queue(ch, exclusive=False, auto_delete=True)
    first, second = Inbox(ch, q), Inbox(ch, q)
    ch.basic_cancel(first.tag)
    assert exists(connection, q)
    ch.basic_cancel(second.tag)
    until(ch, lambda: not exists(connection, q), "the end of the queue")


def test_an_auto_delete_queue_ends_with_its_last_consumers_channel(
    ch: BlockingChannel, connection: pika.BlockingConnection
) -> None:
    q = queue(ch, exclusive=False, auto_delete=True)
    further = connection.channel()
    Inbox(further, q)
    further.close()
    until(ch, lambda: not exists(connection, q), "the end of the queue")


def test_an_auto_delete_queue_that_was_never_consumed_from_stays(
    connection: pika.BlockingConnection, ch: BlockingChannel, connect: Connect
) -> None:
    owner = connect()
    q = queue(owner.channel(), exclusive=False, auto_delete=True)
    owner.close()
    assert consumers(ch, q) == 0
    ch.queue_delete(q)
