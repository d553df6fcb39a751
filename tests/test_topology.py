"""What an app says it needs: what is refused, and why; what is the same; and how it is shown. Pure."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pika
import pytest
from flask import Flask
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pika import exceptions as pika_errors
from pika.adapters.blocking_connection import BlockingChannel

from flask_pika import Binding, Exchange, Pika, Queue, TopologyError, TopologyMismatch
from flask_pika.steps import all_steps, mismatch, steps_for
from flask_pika.topology import Topology
from flask_pika.topology_view import dot, text
from tests.conftest import Node

Wrong = dict[str, Any]


def fresh() -> Pika:
    return Pika()


# -- Defaults, and what options become


def test_the_defaults_are_what_rabbitmq_4_wants() -> None:
    fpika = fresh()
    assert fpika.queue("q") == Queue("q", "quorum", True, False, False, {"x-queue-type": "quorum"})
    assert fpika.exchange("e") == Exchange("e", "direct", True, False, False, {})


def test_the_type_is_always_said() -> None:
    # What a queue is when nothing is said is up to the virtual host, from RabbitMQ 3.11 on.
    assert fresh().queue("q", type="classic").arguments == {"x-queue-type": "classic"}


def test_each_option_is_an_argument_and_seconds_are_milliseconds() -> None:
    fpika = fresh()
    orders = fpika.exchange("orders", type="topic", alternate_exchange=fpika.exchange("lost", "fanout"))
    assert orders.arguments == {"alternate-exchange": "lost"}
    quorum = fpika.queue(
        "quorum",
        message_ttl=1.5,
        expires=60,
        max_length=10,
        max_length_bytes=2**40,
        overflow="reject-publish",
        delivery_limit=3,
        dead_letter_exchange=orders,
        dead_letter_routing_key="dead",
        dead_letter_strategy="at-least-once",
        single_active_consumer=True,
        arguments={"x-queue-leader-locator": "balanced", "own": {"a": [1, None]}},
    )
    assert quorum.arguments == {
        "x-queue-type": "quorum",
        "x-queue-leader-locator": "balanced",
        "own": {"a": [1, None]},
        "x-message-ttl": 1500,
        "x-expires": 60_000,
        "x-max-length": 10,
        "x-max-length-bytes": 2**40,
        "x-overflow": "reject-publish",
        "x-delivery-limit": 3,
        "x-dead-letter-exchange": "orders",
        "x-dead-letter-routing-key": "dead",
        "x-dead-letter-strategy": "at-least-once",
        "x-single-active-consumer": True,
    }
    stream = fpika.queue("stream", type="stream", max_age="7D", max_segment_size=10**6, max_length_bytes=1)
    assert stream.arguments == {
        "x-queue-type": "stream",
        "x-max-age": "7D",
        "x-stream-max-segment-size-bytes": 10**6,
        "x-max-length-bytes": 1,
    }
    assert fpika.queue("classic", type="classic", max_priority=5).arguments["x-max-priority"] == 5


@pytest.mark.parametrize(
    ("more", "arguments"),
    [
        (
            {},
            {
                "x-delivery-limit": 20,
                "x-dead-letter-strategy": "at-least-once",
                "x-overflow": "reject-publish",
            },
        ),
        (
            {"delivery_limit": 3},
            {
                "x-delivery-limit": 3,
                "x-dead-letter-strategy": "at-least-once",
                "x-overflow": "reject-publish",
            },
        ),
        # at-least-once wants reject-publish: who wants otherwise has otherwise.
        ({"max_length": 5, "overflow": "drop-head"}, {"x-max-length": 5, "x-overflow": "drop-head"}),
        ({"dead_letter_strategy": "at-most-once"}, {"x-dead-letter-strategy": "at-most-once"}),
        ({"type": "classic"}, {}),
    ],
)
def test_dead_letter_is_a_queue_to_which_nothing_is_lost(more: Wrong, arguments: Wrong) -> None:
    queue = fresh().queue("q", dead_letter=True, **more)
    limit = {"x-delivery-limit": 20} if "type" not in more else {}
    assert queue.arguments == {
        **limit,
        **arguments,
        "x-queue-type": more.get("type", "quorum"),
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": "q.dead",
    }
    assert queue.dead == "q.dead"


def test_bindings_have_many_forms() -> None:
    fpika = fresh()
    orders, people = fpika.exchange("orders", "topic"), fpika.exchange("people", "headers")
    all_of = fpika.exchange("all", "fanout", bind=[(orders, "#")])
    queue = fpika.queue(
        "q",
        bind=[
            (orders, "order.*"),
            all_of,
            ("amq.topic", "a.b"),
            (people, {"country": "de"}),
            (people, {"country": "de", "x-age": 1}, "any-with-x"),
            Binding("elsewhere", "k", {"x-weight": 1}),
            Binding("amq.match", "", {"a": 1, "x-match": "any"}),
        ],
    )
    assert queue.bindings == (
        Binding("orders", "order.*"),
        Binding("all"),
        Binding("amq.topic", "a.b"),
        Binding("people", "", {"country": "de", "x-match": "all"}),
        Binding("people", "", {"country": "de", "x-age": 1, "x-match": "any-with-x"}),
        Binding("elsewhere", "k", {"x-weight": 1}),
        Binding("amq.match", "", {"a": 1, "x-match": "any"}),
    )
    assert all_of.bindings == (Binding("orders", "#"),)


# -- What is refused, and why


@pytest.mark.parametrize(
    ("name", "options", "why"),
    [
        ("", {}, "a queue's name is ''; expected text"),
        (None, {}, "a queue's name is None"),
        ("q" * 256, {}, "name has 256 bytes; AMQP carries 255"),
        ("a\nb", {}, "RabbitMQ takes line ends out of names"),
        ("\ud800", {}, "lone surrogates"),
        ("amq.q", {}, "names that begin with 'amq.'"),
        ("q", {"type": "mirrored"}, "type is 'mirrored'; expected 'quorum', 'classic' or 'stream'"),
        (
            "q",
            {"durable": False},
            'a quorum queue is durable and nobody\'s own, and durable=False.*"classic"',
        ),
        ("q", {"exclusive": True, "auto_delete": True}, "exclusive=True, auto_delete=True contradicts"),
        ("q", {"type": "stream", "exclusive": True}, "a stream queue is durable and nobody's own"),
        ("q", {"type": "classic", "durable": False}, "RabbitMQ 4 refuses transient queues"),
        ("q", {"durable": 1}, "durable is 1; expected True or False"),
        ("q", {"message_ttl": -1}, "message_ttl is -1; expected seconds, from 0 to 315360000"),
        ("q", {"message_ttl": float("nan")}, "message_ttl is nan"),
        ("q", {"message_ttl": "1s"}, "message_ttl is '1s'"),
        ("q", {"message_ttl": True}, "message_ttl is True"),
        ("q", {"message_ttl": 315_360_001}, "message_ttl is 315360001"),
        ("q", {"expires": 0}, "expires is 0; expected seconds, from 0.001"),
        ("q", {"max_length": -1}, "max_length is -1; expected a number from 0"),
        ("q", {"max_length": 1.5}, "max_length is 1.5"),
        ("q", {"max_length": True}, "max_length is True"),
        ("q", {"max_length_bytes": 2**63}, "max_length_bytes is"),
        ("q", {"overflow": "drop-tail", "max_length": 1}, "overflow is 'drop-tail'; expected drop-head or"),
        ("q", {"overflow": "reject-publish"}, "overflow is for a queue with max_length"),
        ("q", {"overflow": "reject-publish-dlx", "max_length": 1}, "a quorum queue has reject-publish"),
        (
            "q",
            {"type": "classic", "overflow": "reject-publish-dlx", "max_length": 1},
            "reject-publish-dlx is for a queue with a dead_letter_exchange",
        ),
        ("q", {"type": "classic", "delivery_limit": 3}, "delivery_limit is for quorum queues"),
        ("q", {"delivery_limit": -1}, "delivery_limit is -1"),
        ("q", {"dead_letter_exchange": 5}, "dead_letter_exchange is an int; expected text"),
        ("q", {"dead_letter_exchange": "x" * 256}, "dead_letter_exchange has 256 bytes"),
        ("q", {"dead_letter_routing_key": "k"}, "without a dead_letter_exchange leads nowhere"),
        ("q", {"dead_letter_strategy": "at-most-once"}, "is for a queue with a dead_letter_exchange"),
        ("q", {"dead_letter_strategy": "never", "dead_letter_exchange": "x"}, "expected at-most-once or"),
        (
            "q",
            {"dead_letter_strategy": "at-least-once", "dead_letter_exchange": "x"},
            "works with overflow='reject-publish' alone",
        ),
        (
            "q",
            {"type": "classic", "dead_letter_strategy": "at-most-once", "dead_letter_exchange": "x"},
            "dead_letter_strategy is for quorum queues",
        ),
        ("q", {"dead_letter": 1}, "dead_letter is 1"),
        ("q", {"dead_letter": True, "dead_letter_exchange": "x"}, "say one of the two"),
        ("q", {"dead_letter": True, "type": "stream"}, "a stream keeps what was rejected"),
        ("q" * 251, {"dead_letter": True}, "the name of the queue '.dead' has 256 bytes"),
        ("q", {"single_active_consumer": "yes"}, "single_active_consumer is 'yes'"),
        ("q", {"type": "stream", "single_active_consumer": True}, "is for classic and quorum queues"),
        ("q", {"max_priority": 5}, "max_priority is for classic queues, and this is a quorum one"),
        ("q", {"type": "classic", "max_priority": 256}, "expected a number from 0 to 255"),
        ("q", {"max_age": "7D"}, "max_age is for streams, and this is a quorum one"),
        ("q", {"type": "stream", "max_age": "7 days"}, "max_age is '7 days'; expected a number and a unit"),
        ("q", {"type": "stream", "max_age": "0D"}, "max_age is '0D'"),
        ("q", {"type": "stream", "max_age": 7}, "max_age is 7"),
        ("q", {"type": "stream", "max_segment_size": 3_000_000_001}, "from 0 to 3000000000"),
        ("q", {"type": "stream", "message_ttl": 1}, "message_ttl is for classic and quorum queues"),
        ("q", {"arguments": {"x-max-length": 5}}, "arguments\\['x-max-length'\\] has an option: max_length"),
        ("q", {"arguments": {"x-queue-type": "quorum"}}, "has an option: type"),
        ("q", {"arguments": {"x-queue-mode": "lazy"}}, "nothing that RabbitMQ 4 knows: all classic queues"),
        ("q", {"arguments": {"x-queue-master-locator": "random"}}, "nothing that RabbitMQ 4 knows"),
        ("q", {"type": "classic", "arguments": {"x-queue-version": 1}}, "is 1; expected 2"),
        ("q", {"arguments": {"x-queue-version": 2}}, "is for classic queues, not a quorum one"),
        (
            "q",
            {"arguments": {"x-queue-leader-locator": "here"}},
            "is 'here'; expected client-local or balanced",
        ),
        ("q", {"arguments": {"x-quorum-initial-group-size": 0}}, "expected a number from 1"),
        ("q", {"arguments": {"a": object()}}, "arguments\\['a'\\] is an object that cannot be sent"),
        ("q", {"arguments": {"a" * 256: 1}}, "256 bytes"),
        ("q", {"arguments": {"a": "x" * 200_000}}, "fit into a frame"),
        ("q", {"arguments": [("a", 1)]}, "arguments is a list; expected a dict"),
        ("q", {"bind": "orders"}, "bind is a str; expected a list"),
        ("q", {"bind": ["orders"]}, "a binding is 'orders'; expected"),
        ("q", {"bind": [("orders",)]}, "expected \\(exchange, routing key\\)"),
        ("q", {"bind": [("", "key")]}, "the default exchange has each queue bound by its name"),
        ("q", {"bind": [("orders", 5)]}, "routing key is an int"),
        ("q", {"bind": [("orders", "k" * 256)]}, "routing key has 256 bytes"),
        ("q", {"bind": [("orders", {"a": 1}, "some")]}, "has 'some'; expected all or any"),
        ("q", {"bind": [("orders", {"a": 1, "x-match": "any"})]}, "'x-match' is its third"),
        ("q", {"bind": [("orders", {"x-a": 1})]}, "does not look unless it is told 'all-with-x'"),
        ("q", {"bind": [("orders", {}, "any")]}, "by any of no headers lets no message pass"),
        ("q", {"bind": [("amq.headers", "key")]}, "at which a headers exchange does not look"),
        ("q", {"bind": [("amq.topic", {"a": 1})]}, "is by headers, at which a topic exchange does not look"),
    ],
)
def test_a_queue_that_makes_no_sense_is_refused(name: Any, options: Wrong, why: str) -> None:
    fpika = fresh()
    with pytest.raises(TopologyError, match=why):
        fpika.queue(name, **options)
    assert not fpika._topology.queues, "what was refused must not be there"


@pytest.mark.parametrize(
    ("name", "options", "why"),
    [
        ("", {}, "an exchange's name is ''"),
        ("a\r", {}, "RabbitMQ takes line ends out of names"),
        ("e", {"type": "queue"}, "type is 'queue'; expected direct, topic, fanout, headers, or a plugin's"),
        ("e", {"type": "x-" + "a" * 254}, "type has 256 bytes"),
        ("e", {"internal": None}, "internal is None"),
        ("e", {"alternate_exchange": 1}, "alternate_exchange is an int"),
        ("e", {"arguments": {"alternate-exchange": "x"}}, "has an option: alternate_exchange"),
        ("amq.mine", {}, "names that begin with 'amq.'"),
        ("amq.topic", {}, "type is 'direct'; RabbitMQ has it, and it is 'topic'"),
        ("amq.topic", {"type": "topic", "durable": False}, "is RabbitMQ's own"),
        ("amq.topic", {"type": "topic", "alternate_exchange": "x"}, "is RabbitMQ's own"),
        ("e", {"bind": [("", "k")]}, "the default exchange"),
    ],
)
def test_an_exchange_that_makes_no_sense_is_refused(name: Any, options: Wrong, why: str) -> None:
    fpika = fresh()
    with pytest.raises(TopologyError, match=why):
        fpika.exchange(name, **options)
    assert not fpika._topology.exchanges


def test_a_binding_is_checked_though_its_exchange_is_registered_later() -> None:
    fpika = fresh()
    fpika.queue("q", bind=[("orders", "order.created")])
    with pytest.raises(TopologyError, match=r"queue 'q'.*headers exchange does not look"):
        fpika.exchange("orders", "headers")
    fpika.exchange("orders", "topic")


# -- The same twice


def test_the_same_twice_is_fine_and_there_once() -> None:
    fpika = fresh()
    apps = [Flask("one"), Flask("two")]

    def create_app(app: Flask) -> None:  # as factories and blueprints do
        fpika.init_app(app)
        orders = fpika.exchange("orders", "topic", arguments={"a": 1, "b": 2})
        fpika.queue("q", bind=[(orders, "a"), (orders, "b")], arguments={"a": 1, "b": 2})
        # The order is of no importance.
        fpika.exchange("orders", "topic", arguments={"b": 2, "a": 1})
        fpika.queue("q", bind=[(orders, "b"), (orders, "a"), (orders, "b")], arguments={"b": 2, "a": 1})

    for app in apps:
        create_app(app)
    assert len(fpika._topology.exchanges) == len(fpika._topology.queues) == 1
    assert fpika._topology.version == 2, "what was there is not declared again"


ALL_OF = "exchange 'e' by '' with {{'a': {}, 'x-match': 'all'}}"


@pytest.mark.parametrize(
    ("first", "second", "shows"),
    [
        ({}, {"type": "classic"}, "type is 'quorum' and 'classic'"),
        ({"message_ttl": 1}, {"message_ttl": 2}, "its argument 'x-message-ttl' is 1000 and 2000"),
        ({"message_ttl": 1}, {}, "its argument 'x-message-ttl' is 1000 and not there"),
        ({"arguments": {"a": 1}}, {"arguments": {"a": True}}, "its argument 'a' is 1 and True"),
        ({}, {"bind": [("e", "k")]}, "it is bound to nothing and to exchange 'e' by 'k'"),
        (
            {"bind": [("e", {"a": 1})]},
            {"bind": [("e", {"a": 2})]},
            f"it is bound to {ALL_OF.format(1)} and to {ALL_OF.format(2)}",
        ),
        (
            {"type": "classic", "auto_delete": True},
            {"type": "classic", "exclusive": True},
            "exclusive is False and True; auto_delete is True and False",
        ),
    ],
)
def test_the_same_name_differently_is_an_error_that_shows_both(
    first: Wrong, second: Wrong, shows: str
) -> None:
    fpika = fresh()
    fpika.queue("q", **first)
    with pytest.raises(TopologyError) as caught:
        fpika.queue("q", **second)
    assert str(caught.value) == f"queue 'q' is registered twice, differently: {shows}"
    fpika.queue("q", **first)


def test_an_exchange_and_a_queue_may_have_one_name() -> None:
    fpika = fresh()
    orders = fpika.exchange("orders")
    fpika.queue("orders", bind=[orders])
    with pytest.raises(TopologyError, match="exchange 'orders' is registered twice, differently: type is"):
        fpika.exchange("orders", "topic")


# -- Steps


def test_bindings_come_last_and_what_is_rabbitmqs_own_is_not_declared() -> None:
    fpika = fresh()
    own = fpika.exchange("amq.topic", "topic", bind=[("orders", "#")])
    queue = fpika.queue("q", bind=[(own, "a")])
    late = fpika.exchange("orders", "topic")
    steps = steps_for([own, late], [queue])
    assert [(step.method, step.thing.name) for step in steps] == [
        ("exchange_declare", "orders"),
        ("queue_declare", "q"),
        ("exchange_bind", "amq.topic"),
        ("queue_bind", "q"),
    ]


def test_an_exclusive_queue_is_declared_by_its_own_connection_alone() -> None:
    fpika = fresh()
    fpika.queue("replies", type="classic", exclusive=True, bind=[("amq.topic", "a")])
    assert all_steps(fpika._topology, []) == []
    assert len(all_steps(fpika._topology, [], own=["replies"])) == 2


def test_a_registered_queue_goes_before_one_that_is_made_up() -> None:
    topology = Topology()
    mine, made_up = Queue("q.dead", arguments={"mine": 1}), Queue("q.dead")
    topology.add(mine)
    assert [step.thing for step in all_steps(topology, [made_up])] == [mine]


ADVICE = (
    "RabbitMQ changes no queue that exists: register it as it is, or delete it there once it is empty, or"
    " give it another name"
)
Q = "PRECONDITION_FAILED - inequivalent arg 'x-max-length' for queue 'q' in vhost '/': received "


@pytest.mark.parametrize(
    ("code", "reply", "says"),
    [
        (
            406,
            f"{Q}'6' but current is '5'",
            f"queue 'q' is there with another x-max-length: '5' at the broker, and '6' here. {ADVICE}",
        ),
        (
            406,
            f"{Q}none but current is the value '5' of type 'signedint'",
            "queue 'q' is there with another x-max-length: '5' at the broker, and none here.",
        ),
        # RabbitMQ's words have 255 bytes at the most.
        (
            406,
            "PRECONDITION_FAILED - inequivalent arg 'x-max-length' for queue 'qqq",
            "another x-max-length: (",
        ),
        (406, "PRECONDITION_FAILED - something", "queue 'q' cannot be declared (406 PRECONDITION_FAILED"),
        (404, "NOT_FOUND - no queue 'q' in vhost '/'", "queue 'q' is not there; 'flask pika declare'"),
        (403, "ACCESS_REFUSED - no", "grant the permission to configure it"),
        (405, "RESOURCE_LOCKED - no", "queue 'q' is another connection's own"),
    ],
)
def test_a_refusal_says_what_to_do(code: int, reply: str, says: str) -> None:
    (step,) = steps_for([], [Queue("q")])
    error = pika_errors.ChannelClosedByBroker(code, reply)
    problem = mismatch(step, error)
    assert says in str(problem)
    assert isinstance(problem, TopologyMismatch)
    assert (problem.reply_code, problem.reply_text, problem.__cause__) == (code, reply, error)


# -- Shown


def odd() -> tuple[list[Exchange], list[Queue]]:
    fpika = fresh()
    orders = fpika.exchange("orders", "topic", alternate_exchange="lost")
    fpika.exchange("all", "fanout", durable=False, internal=True, bind=[(orders, "#")])
    fpika.queue('a "b"\\n', bind=[(orders, "x&amp;y"), ("nowhere", {"k": "v"}, "any")], dead_letter=True)
    fpika.queue("\x1b[31mred", dead_letter_exchange="lost", dead_letter_routing_key="k")
    return fpika._topology.exchanges, [*fpika._topology.queues, Queue('a "b"\\n.dead')]


def test_the_topology_is_shown_as_text() -> None:
    assert "\n".join(text(*odd())) == "\n".join(
        [
            "exchange orders: topic",
            "  what no binding wants: to exchange lost",
            '  alternate-exchange = "lost"',
            "exchange all: fanout, internal, transient",
            "  bound to exchange orders by #",
            'queue a "b"\\n: quorum',
            "  bound to exchange orders by x&amp;y",
            '  bound to exchange nowhere by any of {"k": "v"}',
            '  dead letters: to queue a "b"\\n.dead',
            '  x-overflow = "reject-publish"',
            "  x-delivery-limit = 20",
            '  x-dead-letter-exchange = ""',
            '  x-dead-letter-routing-key = "a \\"b\\"\\\\n.dead"',
            '  x-dead-letter-strategy = "at-least-once"',
            "queue '\\x1b[31mred': quorum",
            "  dead letters by k: to exchange lost",
            '  x-dead-letter-exchange = "lost"',
            '  x-dead-letter-routing-key = "k"',
            'queue a "b"\\n.dead: quorum',
        ]
    )


def test_the_graph_has_every_way_and_no_name_ends_a_string() -> None:
    lines = list(dot('the "shop"', *odd()))
    assert lines == [
        'digraph "the \\"shop\\"" {',
        "  rankdir=LR;",
        '  n0 [shape=ellipse, label="orders\\ntopic"];',
        '  n1 [shape=ellipse, label="all\\nfanout, internal, transient"];',
        '  n2 [shape=box, label="a \\"b\\"\\\\n\\nquorum"];',
        "  n3 [shape=box, label=\"'\\\\x1b[31mred'\\nquorum\"];",
        '  n4 [shape=box, label="a \\"b\\"\\\\n.dead\\nquorum"];',
        '  n5 [shape=ellipse, label="lost\\nnot registered", style=dashed];',
        '  n0 -> n5 [label="what no binding wants", style=dashed];',
        '  n0 -> n1 [label="#", style=solid];',
        '  n0 -> n2 [label="x&amp;amp;y", style=solid];',
        '  n6 [shape=ellipse, label="nowhere\\nnot registered", style=dashed];',
        '  n6 -> n2 [label="any of {\\"k\\": \\"v\\"}", style=solid];',
        '  n2 -> n4 [label="dead letters", style=dashed];',
        '  n3 -> n5 [label="dead letters by k", style=dashed];',
        "}",
    ]


# -- What is let through, RabbitMQ takes


@pytest.fixture(scope="module")
def declarer(everyday: Node) -> Iterator[Callable[[], BlockingChannel]]:
    """Channels to a broker, each time one that is open."""
    connection = pika.BlockingConnection(pika.URLParameters(everyday.url))
    channels = [connection.channel()]

    def current() -> BlockingChannel:
        if not channels[-1].is_open:
            channels.append(connection.channel())
        return channels[-1]

    yield current
    connection.close()


_numbers = st.one_of(st.sampled_from([0, 1, 255, 256, 2**31, 2**63 - 1, 2**63, -1]), st.integers())
_seconds = st.one_of(st.sampled_from([0, 0.0004, 0.001, 315_360_000, 315_360_001, -1]), st.floats())
_names = st.text(st.characters(), max_size=20)
_anything = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**63 - 1), st.text(max_size=5), st.binary()),
    lambda some: st.one_of(
        st.lists(some, max_size=3), st.dictionaries(st.text(max_size=5), some, max_size=3)
    ),
    max_leaves=5,
)
_arguments = st.dictionaries(
    st.sampled_from(
        [
            "x-queue-leader-locator",
            "x-queue-master-locator",
            "x-queue-mode",
            "x-queue-version",
            "x-quorum-initial-group-size",
            "x-initial-cluster-size",
            "x-max-in-memory-length",
            "x-stream-filter-size-bytes",
            "own",
        ]
    ),
    st.one_of(st.sampled_from(["balanced", "lazy", "min-masters", "random", 1, 2, 16, 0]), _anything),
    max_size=2,
)
_bindings = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["amq.topic", "amq.direct", "amq.fanout"]), _names),
        st.tuples(
            st.sampled_from(["amq.headers", "amq.match"]),
            st.dictionaries(st.text(max_size=5), _anything, max_size=3),
            st.sampled_from(["all", "any", "all-with-x", "any-with-x", "none"]),
        ),
    ),
    max_size=2,
)
_OPTIONS: dict[str, st.SearchStrategy[Any]] = {
    "durable": st.sampled_from([True, True, False]),
    "auto_delete": st.booleans(),
    "exclusive": st.booleans(),
    "dead_letter": st.booleans(),
    "message_ttl": _seconds,
    "expires": _seconds,
    "max_length": _numbers,
    "max_length_bytes": _numbers,
    "overflow": st.sampled_from(["drop-head", "reject-publish", "reject-publish-dlx"]),
    "delivery_limit": _numbers,
    "dead_letter_exchange": _names,
    "dead_letter_routing_key": _names,
    "dead_letter_strategy": st.sampled_from(["at-most-once", "at-least-once"]),
    "single_active_consumer": st.booleans(),
    "max_priority": _numbers,
    "max_age": st.from_regex(r"\A[0-9]{1,4}[YMDhms]\Z"),
    "max_segment_size": _numbers,
    "arguments": _arguments,
    "bind": _bindings,
}
#: Few at a time: nearly all that say more contradict themselves.
_queues = st.sets(st.sampled_from(sorted(_OPTIONS)), max_size=4).flatmap(
    lambda some: st.fixed_dictionaries(
        {"type": st.sampled_from(["quorum", "classic", "stream"]), **{name: _OPTIONS[name] for name in some}}
    )
)


@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@given(name=_names, options=_queues)
def test_a_queue_that_is_let_through_is_taken_by_the_broker(
    declarer: Callable[[], BlockingChannel], name: str, options: Wrong
) -> None:
    try:
        made = fresh().queue(f"{uuid.uuid4().hex[:8]}{name}", **options)
    except TopologyError:
        return
    channel = declarer()
    # What expires within the minute may be gone before it is bound, and while it is declared again.
    stays = made.arguments.get("x-expires", 60_000) >= 60_000
    for _ in range(2 if stays else 1):  # and it is the same to the broker, when it is declared again
        for step in steps_for([], [made]):
            if stays or not step.is_binding:
                getattr(channel, step.method)(**step.arguments)
    channel.queue_delete(made.name)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    name=st.one_of(_names, st.sampled_from(["amq.topic", "amq.foo"])),
    options=st.fixed_dictionaries(
        {"type": st.sampled_from(["direct", "topic", "fanout", "headers"])},
        optional={
            "durable": st.booleans(),
            "auto_delete": st.booleans(),
            "internal": st.booleans(),
            "alternate_exchange": _names,
            "arguments": st.dictionaries(st.text(max_size=5), _anything, max_size=2),
            "bind": _bindings,
        },
    ),
)
def test_an_exchange_that_is_let_through_is_taken_by_the_broker(
    declarer: Callable[[], BlockingChannel], name: str, options: Wrong
) -> None:
    try:
        made = fresh().exchange(
            name if name.startswith("amq.") else f"{uuid.uuid4().hex[:8]}{name}", **options
        )
    except TopologyError:
        return
    channel = declarer()
    for step in [*steps_for([made], [])] * 2:
        getattr(channel, step.method)(**step.arguments)
    for binding in made.bindings:
        channel.exchange_unbind(made.name, binding.exchange, binding.routing_key, dict(binding.arguments))
    if not made.is_predeclared:
        channel.exchange_delete(made.name)
