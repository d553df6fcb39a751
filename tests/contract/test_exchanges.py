"""Exchanges: what they are, and when a declaration is refused."""

from __future__ import annotations

from typing import Any

import pika
import pytest
from pika import spec
from pika.adapters.blocking_connection import BlockingChannel

from tests.contract.conftest import Connect
from tests.contract.helpers import (
    bodies,
    closes,
    disconnects,
    exchange,
    exchange_exists,
    name,
    publish,
    queue,
    touch,
)
from tests.contract.raw import Wire

TYPES = ["direct", "fanout", "topic", "headers"]


@pytest.mark.parametrize("kind", TYPES)
def test_an_exchange_of_each_type_can_be_declared_again_as_it_is(ch: BlockingChannel, kind: str) -> None:
    fresh = exchange(ch, kind, durable=True)
    ch.exchange_declare(fresh, kind, durable=True)
    ch.exchange_declare(fresh, passive=True)


def test_a_passive_declaration_looks_at_the_name_only(ch: BlockingChannel) -> None:
    fresh = exchange(ch, "fanout", durable=True)
    ch.exchange_declare(fresh, "topic", passive=True, internal=True, arguments={"x": 1})


def test_a_passive_declaration_of_a_missing_exchange_is_refused_with_404(ch: BlockingChannel) -> None:
    missing = name()
    with closes(404, f"NOT_FOUND - no exchange '{missing}' in vhost '/'"):
        ch.exchange_declare(missing, passive=True)


def test_an_unknown_type_closes_the_connection_with_503(ch: BlockingChannel) -> None:
    with disconnects(503, "COMMAND_INVALID - unknown exchange type 'x-nonsense'"):
        ch.exchange_declare(name(), "x-nonsense")


def test_a_passive_declaration_does_not_care_for_an_unknown_type(ch: BlockingChannel) -> None:
    ch.exchange_declare("amq.direct", "x-nonsense", passive=True)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            {"exchange_type": "topic"},
            "'type' for exchange '{}' in vhost '/': received 'topic' but current is 'direct'",
        ),
        (
            {"durable": True},
            "'durable' for exchange '{}' in vhost '/': received 'true' but current is 'false'",
        ),
        (
            {"auto_delete": True},
            "'auto_delete' for exchange '{}' in vhost '/': received 'true' but current is 'false'",
        ),
        (
            {"internal": True},
            "'internal' for exchange '{}' in vhost '/': received 'true' but current is 'false'",
        ),
        (
            {"arguments": {"alternate-exchange": "b"}},
            (
                "'alternate-exchange' for exchange '{}' in vhost '/': "
                "received the value 'b' of type 'longstr' but current is none"
            ),
        ),
    ],
)
def test_an_exchange_declared_otherwise_is_refused_with_406(
    ch: BlockingChannel, change: dict[str, Any], text: str
) -> None:
    fresh = exchange(ch)
    with closes(406, "PRECONDITION_FAILED - inequivalent arg " + text.format(fresh)):
        ch.exchange_declare(fresh, **{"exchange_type": "direct", **change})


def test_another_alternate_exchange_is_refused_with_406(ch: BlockingChannel) -> None:
    fresh = exchange(ch, arguments={"alternate-exchange": "a"})
    with closes(
        406,
        f"PRECONDITION_FAILED - inequivalent arg 'alternate-exchange' for exchange '{fresh}' in vhost '/': "
        "received 'b' but current is 'a'",
    ):
        ch.exchange_declare(fresh, arguments={"alternate-exchange": "b"})


def test_a_dropped_alternate_exchange_is_refused_with_406(ch: BlockingChannel) -> None:
    fresh = exchange(ch, arguments={"alternate-exchange": "a"})
    with closes(
        406,
        f"PRECONDITION_FAILED - inequivalent arg 'alternate-exchange' for exchange '{fresh}' in vhost '/': "
        "received none but current is the value 'a' of type 'longstr'",
    ):
        ch.exchange_declare(fresh)


def test_an_alternate_exchange_that_is_no_string_is_refused_with_406(ch: BlockingChannel) -> None:
    fresh = name()
    with closes(
        406,
        "PRECONDITION_FAILED - invalid type 'signedint' for arg 'alternate-exchange' "
        f"in exchange '{fresh}' in vhost '/'",
    ):
        ch.exchange_declare(fresh, arguments={"alternate-exchange": 5})


def test_arguments_that_mean_nothing_do_not_count(ch: BlockingChannel) -> None:
    fresh = exchange(ch, arguments={"colour": "red"})
    ch.exchange_declare(fresh, arguments={"colour": "blue"})
    ch.exchange_declare(fresh)


@pytest.mark.parametrize(
    ("predeclared", "kind"),
    [
        ("amq.direct", "direct"),
        ("amq.fanout", "fanout"),
        ("amq.topic", "topic"),
        ("amq.headers", "headers"),
        ("amq.match", "headers"),
    ],
)
def test_the_predeclared_exchanges_are_there_and_durable(
    ch: BlockingChannel, predeclared: str, kind: str
) -> None:
    ch.exchange_declare(predeclared, passive=True)
    ch.exchange_declare(predeclared, kind, durable=True)


def test_a_predeclared_exchange_declared_otherwise_is_refused_with_406(ch: BlockingChannel) -> None:
    with closes(
        406,
        "PRECONDITION_FAILED - inequivalent arg 'durable' for exchange 'amq.direct' in vhost '/': "
        "received 'false' but current is 'true'",
    ):
        ch.exchange_declare("amq.direct", "direct")


def test_a_reserved_name_is_refused_with_403(ch: BlockingChannel) -> None:
    reserved = "amq." + name()
    with closes(403, f"ACCESS_REFUSED - exchange name '{reserved}' contains reserved prefix 'amq.*'"):
        ch.exchange_declare(reserved)


def test_a_reserved_name_that_is_missing_is_404_when_declared_passively(ch: BlockingChannel) -> None:
    reserved = "amq." + name()
    with closes(404, f"NOT_FOUND - no exchange '{reserved}' in vhost '/'"):
        ch.exchange_declare(reserved, passive=True)


@pytest.mark.parametrize("passive", [False, True])
def test_the_default_exchange_cannot_be_declared(wire: Wire, passive: bool) -> None:
    wire.send(spec.Exchange.Declare(exchange="", passive=passive, durable=True))
    wire.expect_channel_close(
        403, "ACCESS_REFUSED - operation not permitted on the default exchange", spec.Exchange.Declare
    )


def test_a_line_feed_is_stripped_from_a_name(ch: BlockingChannel) -> None:
    fresh = name()
    ch.exchange_declare(f"{fresh}\n")
    ch.exchange_declare(fresh, passive=True)


# -- delete


def test_a_deleted_exchange_is_gone(ch: BlockingChannel, connection: pika.BlockingConnection) -> None:
    fresh = exchange(ch)
    ch.exchange_delete(fresh)
    assert not exchange_exists(connection, fresh)


def test_deleting_a_missing_exchange_is_no_error(ch: BlockingChannel) -> None:
    ch.exchange_delete(name())


def test_an_exchange_in_use_is_not_deleted_if_unused(ch: BlockingChannel) -> None:
    fresh = exchange(ch)
    ch.queue_bind(queue(ch), fresh, "k")
    with closes(406, f"PRECONDITION_FAILED - exchange '{fresh}' in vhost '/' in use"):
        ch.exchange_delete(fresh, if_unused=True)


def test_an_unused_exchange_is_deleted_if_unused(
    ch: BlockingChannel, connection: pika.BlockingConnection
) -> None:
    fresh = exchange(ch)
    ch.exchange_bind(fresh, "amq.direct", "k")  # it is in use as a source only
    ch.exchange_delete(fresh, if_unused=True)
    assert not exchange_exists(connection, fresh)


def test_a_predeclared_exchange_cannot_be_deleted(ch: BlockingChannel) -> None:
    with closes(403, "ACCESS_REFUSED - deletion of system exchange 'amq.topic' in vhost '/' not allowed"):
        ch.exchange_delete("amq.topic")


def test_the_default_exchange_cannot_be_deleted(wire: Wire) -> None:
    wire.send(spec.Exchange.Delete(exchange=""))
    wire.expect_channel_close(
        403, "ACCESS_REFUSED - operation not permitted on the default exchange", spec.Exchange.Delete
    )


def test_a_deleted_exchange_takes_its_bindings_along(ch: BlockingChannel) -> None:
    fresh, q = exchange(ch), queue(ch)
    ch.queue_bind(q, fresh, "k")
    ch.exchange_delete(fresh)
    ch.exchange_declare(fresh)
    publish(ch, fresh, "k")
    assert bodies(ch, q) == []


# -- auto-delete and internal


def test_an_auto_delete_exchange_goes_with_its_last_binding(
    ch: BlockingChannel, connection: pika.BlockingConnection
) -> None:
    fresh, q = exchange(ch, auto_delete=True), queue(ch)
    ch.queue_bind(q, fresh, "a")
    ch.queue_bind(q, fresh, "b")
    ch.queue_unbind(q, fresh, "a")
    assert exchange_exists(connection, fresh)
    ch.queue_unbind(q, fresh, "b")
    assert not exchange_exists(connection, fresh)


def test_an_auto_delete_exchange_that_was_never_bound_stays(
    ch: BlockingChannel, connection: pika.BlockingConnection, connect: Connect
) -> None:
    further = connect()
    fresh = exchange(further.channel(), auto_delete=True)
    further.close()
    assert exchange_exists(connection, fresh)


def test_an_auto_delete_exchange_goes_with_the_queue_that_it_is_bound_to(
    ch: BlockingChannel, connection: pika.BlockingConnection
) -> None:
    fresh, q = exchange(ch, auto_delete=True), queue(ch)
    ch.queue_bind(q, fresh, "a")
    ch.queue_delete(q)
    assert not exchange_exists(connection, fresh)


def test_auto_delete_goes_on_along_a_chain_of_exchanges(
    ch: BlockingChannel, connection: pika.BlockingConnection
) -> None:
    first, second, q = exchange(ch, auto_delete=True), exchange(ch, auto_delete=True), queue(ch)
    ch.exchange_bind(second, first, "k")
    ch.queue_bind(q, second, "k")
    ch.queue_delete(q)
    assert not exchange_exists(connection, second)
    assert not exchange_exists(connection, first)


def test_publishing_to_an_internal_exchange_is_refused_with_403(ch: BlockingChannel) -> None:
    fresh = exchange(ch, internal=True)
    with closes(403, f"ACCESS_REFUSED - cannot publish to internal exchange '{fresh}' in vhost '/'"):
        publish(ch, fresh, "k")
        touch(ch)


def test_an_internal_exchange_takes_what_another_exchange_gives_it(ch: BlockingChannel) -> None:
    source, inner, q = exchange(ch), exchange(ch, "fanout", internal=True), queue(ch)
    ch.exchange_bind(inner, source, "k")
    ch.queue_bind(q, inner)
    publish(ch, source, "k", b"in")
    assert bodies(ch, q) == [b"in"]


# -- alternate exchanges


def test_what_no_binding_takes_goes_to_the_alternate_exchange(ch: BlockingChannel) -> None:
    alternate, routed, rest = exchange(ch, "fanout"), queue(ch), queue(ch)
    main = exchange(ch, arguments={"alternate-exchange": alternate})
    ch.queue_bind(routed, main, "known")
    ch.queue_bind(rest, alternate)
    publish(ch, main, "known", b"known")
    publish(ch, main, "other", b"other")
    assert bodies(ch, routed) == [b"known"]
    assert bodies(ch, rest) == [b"other"]


def test_alternate_exchanges_chain(ch: BlockingChannel) -> None:
    last, q = exchange(ch, "fanout"), queue(ch)
    middle = exchange(ch, arguments={"alternate-exchange": last})
    first = exchange(ch, arguments={"alternate-exchange": middle})
    ch.queue_bind(q, last)
    ch.confirm_delivery()
    ch.basic_publish(first, "k", b"x", mandatory=True)  # routed in the end: not returned
    assert bodies(ch, q) == [b"x"]


def test_a_circle_of_alternate_exchanges_ends(ch: BlockingChannel) -> None:
    first, second = name(), name()
    ch.exchange_declare(first, arguments={"alternate-exchange": second})
    ch.exchange_declare(second, arguments={"alternate-exchange": first})
    ch.confirm_delivery()
    with pytest.raises(pika.exceptions.UnroutableError):
        ch.basic_publish(first, "k", b"x", mandatory=True)


def test_a_missing_alternate_exchange_loses_the_message(ch: BlockingChannel) -> None:
    main = exchange(ch, arguments={"alternate-exchange": name()})
    ch.confirm_delivery()
    with pytest.raises(pika.exceptions.UnroutableError):
        ch.basic_publish(main, "k", b"x", mandatory=True)


def test_the_default_exchange_takes_nothing_as_an_alternate(ch: BlockingChannel) -> None:
    q, main = queue(ch), exchange(ch, arguments={"alternate-exchange": ""})
    publish(ch, main, q, b"x")
    assert bodies(ch, q) == []
