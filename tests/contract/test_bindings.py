"""Bindings: which messages they let through, and when one is refused."""

from __future__ import annotations

from typing import Any

import pytest
from pika.adapters.blocking_connection import BlockingChannel

from tests.contract.helpers import bodies, closes, exchange, fetch, name, publish, queue, send

LOCKED = "ACCESS_REFUSED - operation not permitted on the default exchange"


def test_binding_twice_is_binding_once(ch: BlockingChannel) -> None:
    e, q = exchange(ch), queue(ch)
    ch.queue_bind(q, e, "k")
    ch.queue_bind(q, e, "k")
    publish(ch, e, "k", b"once")
    assert bodies(ch, q) == [b"once"]
    ch.queue_unbind(q, e, "k")
    publish(ch, e, "k", b"gone")
    assert bodies(ch, q) == []


def test_a_message_comes_once_to_a_queue_that_several_bindings_lead_to(ch: BlockingChannel) -> None:
    e, inner, q = exchange(ch, "topic"), exchange(ch, "fanout"), queue(ch)
    ch.queue_bind(q, e, "#")
    ch.queue_bind(q, e, "a.*")
    ch.exchange_bind(inner, e, "a.b")
    ch.queue_bind(q, inner)
    publish(ch, e, "a.b", b"once")
    assert bodies(ch, q) == [b"once"]


def test_a_circle_of_exchanges_delivers_once(ch: BlockingChannel) -> None:
    first, second, q = exchange(ch, "fanout"), exchange(ch, "fanout"), queue(ch)
    ch.exchange_bind(first, second)
    ch.exchange_bind(second, first)
    ch.queue_bind(q, first)
    publish(ch, second, "", b"once")
    assert bodies(ch, q) == [b"once"]


def test_a_copy_goes_to_every_queue_that_is_bound(ch: BlockingChannel) -> None:
    e, queues = exchange(ch), [queue(ch), queue(ch)]
    for q in queues:
        ch.queue_bind(q, e, "k")
    publish(ch, e, "k", b"x")
    assert [bodies(ch, q) for q in queues] == [[b"x"], [b"x"]]


@pytest.mark.parametrize(("kind", "expected"), [("direct", [b"exact"]), ("fanout", [b"exact", b"other"])])
def test_direct_compares_keys_and_fanout_does_not(
    ch: BlockingChannel, kind: str, expected: list[bytes]
) -> None:
    e, q = exchange(ch, kind), queue(ch)
    ch.queue_bind(q, e, "k")
    publish(ch, e, "k", b"exact")
    publish(ch, e, "K", b"other")
    assert bodies(ch, q) == expected


def test_a_direct_key_knows_no_wildcards(ch: BlockingChannel) -> None:
    e, q = exchange(ch), queue(ch)
    ch.queue_bind(q, e, "#")
    publish(ch, e, "a")
    publish(ch, e, "#", b"literal")
    assert bodies(ch, q) == [b"literal"]


@pytest.mark.parametrize(
    ("pattern", "taken", "left"),
    [
        ("a.b", ["a.b"], ["a", "a.b.c", "a.B", ".a.b", "a.b."]),
        ("*", ["a"], ["", "a.b", "."]),  # an empty key is no word, a dot divides two empty ones
        ("#", ["", "a", "a.b", ".", "..", "a..b"], []),
        ("a.*", ["a.b", "a."], ["a", "a.b.c", "b.a"]),
        ("*.a", ["b.a", ".a"], ["a", "a.b", "c.b.a"]),
        ("a.#", ["a", "a.", "a.b", "a.b.c"], ["", "b", "b.a", "ab"]),
        ("#.a", ["a", ".a", "b.a", "c.b.a"], ["a.b", ""]),
        ("a.*.c", ["a.b.c", "a..c"], ["a.c", "a.b.b.c"]),
        ("a.#.c", ["a.c", "a.b.c", "a.b.b.c", "a..c"], ["a", "c", "a.c.b"]),
        ("*.#", ["a", "a.b", "."], [""]),
        ("#.*", ["a", "a.b"], [""]),
        ("#.#", ["", "a", "a.b"], []),
        ("*.*", ["a.b", "."], ["", "a", "a.b.c"]),
        ("#.b.#", ["b", "a.b", "b.c", "a.b.c", "b.b"], ["", "a", "a.c"]),
        ("#.a.#.b", ["a.b", "x.a.y.b", "a.a.b.b"], ["a", "b.a"]),
        ("", [""], ["a", "."]),
        (".", ["."], ["", "a", "a.b"]),
        ("a*", ["a*"], ["ab", "a"]),
        ("a#.b", ["a#.b"], ["a.b", "ax.b"]),
    ],
)
def test_a_topic_pattern_takes_what_it_matches(
    ch: BlockingChannel, pattern: str, taken: list[str], left: list[str]
) -> None:
    e, q = exchange(ch, "topic"), queue(ch)
    ch.queue_bind(q, e, pattern)
    for key in taken + left:
        publish(ch, e, key, key.encode())
    assert bodies(ch, q) == [key.encode() for key in taken]


@pytest.mark.parametrize(
    ("arguments", "taken", "left"),
    [
        (
            {"a": 1, "b": "x"},
            [{"a": 1, "b": "x"}, {"a": 1, "b": "x", "c": 3}],
            [{}, {"a": 1}, {"a": 2, "b": "x"}],
        ),
        ({"x-match": "all", "a": 1, "b": 2}, [{"a": 1, "b": 2}], [{"a": 1}, {"b": 2}]),
        (
            {"x-match": "any", "a": 1, "b": 2},
            [{"a": 1}, {"b": 2}, {"a": 9, "b": 2}],
            [{}, {"c": 1}, {"a": 2}],
        ),
        ({}, [{}, {"a": 1}], []),
        ({"x-match": "all"}, [{}, {"a": 1}], []),
        ({"x-match": "any"}, [], [{}, {"a": 1}]),
        # A binding's arguments that begin with x- do not count, unless all-with-x or any-with-x says so.
        ({"x-match": "all", "a": 1, "x-b": 2}, [{"a": 1}, {"a": 1, "x-b": 3}], [{"x-b": 2}]),
        ({"x-match": "any", "a": 1, "x-b": 2}, [{"a": 1}], [{"x-b": 2}]),
        ({"x-match": "all-with-x", "a": 1, "x-b": 2}, [{"a": 1, "x-b": 2}], [{"a": 1}, {"x-b": 2}]),
        ({"x-match": "any-with-x", "a": 1, "x-b": 2}, [{"a": 1}, {"x-b": 2}], [{"x-b": 3}, {}]),
        # No value asks for the header only. Values are compared, not the names of their types.
        ({"a": None}, [{"a": 1}, {"a": "x"}, {"a": None}], [{}, {"b": 1}]),
        ({"a": 1}, [{"a": 1}], [{"a": "1"}, {"a": True}]),
        ({"a": 1}, [{"a": 1}], [{"a": 2**40}]),
        ({"a": True}, [{"a": True}], [{"a": False}, {"a": 1}]),
        ({"a": "x"}, [{"a": "x"}, {"a": b"x"}], [{"a": "X"}, {"A": "x"}]),
        ({"a": {"b": 1}}, [{"a": {"b": 1}}], [{"a": {"b": 2}}, {"a": {}}]),
        ({"a": [1, 2]}, [{"a": [1, 2]}], [{"a": [2, 1]}]),
    ],
)
def test_a_headers_binding_takes_what_it_matches(
    ch: BlockingChannel, arguments: dict[str, Any], taken: list[dict[str, Any]], left: list[dict[str, Any]]
) -> None:
    e, q = exchange(ch, "headers"), queue(ch)
    ch.queue_bind(q, e, "the key does not count", arguments=arguments)
    for headers in taken + left:
        publish(ch, e, "k", repr(headers).encode(), headers=headers)
    assert bodies(ch, q) == [repr(headers).encode() for headers in taken]


def test_a_message_without_headers_is_one_with_none(ch: BlockingChannel) -> None:
    e, q = exchange(ch, "headers"), queue(ch)
    ch.queue_bind(q, e, arguments={"x-match": "all"})
    publish(ch, e, "k", b"bare")
    assert bodies(ch, q) == [b"bare"]


def test_bindings_with_other_arguments_are_other_bindings(ch: BlockingChannel) -> None:
    e, q = exchange(ch, "headers"), queue(ch)
    ch.queue_bind(q, e, arguments={"a": 1})
    ch.queue_bind(q, e, arguments={"a": 2})
    ch.queue_unbind(q, e, arguments={"a": 1})
    publish(ch, e, "", b"1", headers={"a": 1})
    publish(ch, e, "", b"2", headers={"a": 2})
    assert bodies(ch, q) == [b"2"]


def test_a_wrong_x_match_value_is_refused_with_406(ch: BlockingChannel) -> None:
    e, q = exchange(ch, "headers"), queue(ch)
    with closes(
        406,
        'PRECONDITION_FAILED - Invalid x-match field value <<"some">>; '
        "expected all, any, all-with-x, or any-with-x",
    ):
        ch.queue_bind(q, e, arguments={"x-match": "some"})


def test_an_x_match_of_another_type_is_refused_with_406(ch: BlockingChannel) -> None:
    e, q = exchange(ch, "headers"), queue(ch)
    with closes(
        406, "PRECONDITION_FAILED - Invalid x-match field type signedint (value 1); expected longstr"
    ):
        ch.queue_bind(q, e, arguments={"x-match": 1})


# -- what is missing


def test_binding_a_missing_queue_is_refused_with_404(ch: BlockingChannel) -> None:
    missing = name()
    with closes(404, f"NOT_FOUND - no queue '{missing}' in vhost '/'"):
        ch.queue_bind(missing, "amq.direct", "k")


def test_binding_to_a_missing_exchange_is_refused_with_404(ch: BlockingChannel) -> None:
    missing, q = name(), queue(ch)
    with closes(404, f"NOT_FOUND - no exchange '{missing}' in vhost '/'"):
        ch.queue_bind(q, missing, "k")


def test_of_a_missing_exchange_and_a_missing_queue_the_exchange_is_named(ch: BlockingChannel) -> None:
    e, q = name("e"), name("q")
    with closes(404, f"NOT_FOUND - no exchange '{e}' in vhost '/'"):
        ch.queue_bind(q, e, "k")


def test_binding_from_a_missing_exchange_is_refused_with_404(ch: BlockingChannel) -> None:
    missing = name()
    with closes(404, f"NOT_FOUND - no exchange '{missing}' in vhost '/'"):
        ch.exchange_bind("amq.fanout", missing, "k")


def test_binding_a_missing_exchange_is_refused_with_404(ch: BlockingChannel) -> None:
    missing = name()
    with closes(404, f"NOT_FOUND - no exchange '{missing}' in vhost '/'"):
        ch.exchange_bind(missing, "amq.fanout", "k")


def test_unbinding_what_is_not_bound_is_no_error(ch: BlockingChannel) -> None:
    ch.queue_unbind(queue(ch), "amq.direct", "never")
    ch.exchange_unbind("amq.fanout", "amq.direct", "never")


def test_unbinding_with_another_key_leaves_the_binding(ch: BlockingChannel) -> None:
    e, q = exchange(ch, "fanout"), queue(ch)
    ch.queue_bind(q, e, "k")
    ch.queue_unbind(q, e, "other")
    publish(ch, e, "", b"x")
    assert bodies(ch, q) == [b"x"]


def test_unbinding_a_missing_queue_is_no_error(ch: BlockingChannel) -> None:
    ch.queue_unbind(name(), "amq.direct", "k")


def test_unbinding_from_a_missing_exchange_is_no_error(ch: BlockingChannel) -> None:
    ch.queue_unbind(queue(ch), name(), "k")


def test_unbinding_missing_exchanges_is_no_error(ch: BlockingChannel) -> None:
    ch.exchange_unbind(name(), name(), "k")


# -- the default exchange


def test_every_queue_is_bound_to_the_default_exchange_by_its_name(ch: BlockingChannel) -> None:
    q = queue(ch)
    send(ch, q, b"x")
    assert bodies(ch, q) == [b"x"]


def test_a_queue_cannot_be_bound_to_the_default_exchange(ch: BlockingChannel) -> None:
    q = queue(ch)
    with closes(403, LOCKED):
        ch.queue_bind(q, "", "k")


def test_a_queue_cannot_be_unbound_from_the_default_exchange(ch: BlockingChannel) -> None:
    q = queue(ch)
    with closes(403, LOCKED):
        ch.queue_unbind(q, "", q)


@pytest.mark.parametrize(("destination", "source"), [("", "amq.direct"), ("amq.direct", "")])
@pytest.mark.parametrize("verb", ["exchange_bind", "exchange_unbind"])
def test_an_exchange_cannot_be_bound_to_the_default_exchange(
    ch: BlockingChannel, verb: str, destination: str, source: str
) -> None:
    with closes(403, LOCKED):
        getattr(ch, verb)(destination, source, "k")


# -- exchange to exchange


def test_an_unbound_exchange_gets_nothing_more(ch: BlockingChannel) -> None:
    source, inner, q = exchange(ch), exchange(ch, "fanout"), queue(ch)
    ch.exchange_bind(inner, source, "k")
    ch.exchange_bind(inner, source, "k")
    ch.queue_bind(q, inner)
    publish(ch, source, "k", b"1")
    ch.exchange_unbind(inner, source, "k")
    publish(ch, source, "k", b"2")
    assert bodies(ch, q) == [b"1"]


def test_the_message_keeps_its_first_exchange_and_key(ch: BlockingChannel) -> None:
    source, inner, q = exchange(ch), exchange(ch, "fanout"), queue(ch)
    ch.exchange_bind(inner, source, "k")
    ch.queue_bind(q, inner)
    publish(ch, source, "k")
    method = fetch(ch, q).method
    assert (method.exchange, method.routing_key) == (source, "k")


def test_an_exchange_bound_to_itself_delivers_once(ch: BlockingChannel) -> None:
    e, q = exchange(ch, "fanout"), queue(ch)
    ch.exchange_bind(e, e)
    ch.queue_bind(q, e)
    publish(ch, e, "", b"x")
    assert bodies(ch, q) == [b"x"]


def test_a_deleted_queue_takes_its_bindings_along(ch: BlockingChannel) -> None:
    q = queue(ch)
    ch.queue_bind(q, "amq.topic", q)
    ch.queue_delete(q)
    ch.queue_declare(q, exclusive=True)
    publish(ch, "amq.topic", q)
    assert bodies(ch, q) == []
