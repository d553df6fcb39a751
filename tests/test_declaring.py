"""What an app has registered is at the broker when it is needed, and what stands there is left alone."""

from __future__ import annotations

import gc
import logging
import os
import subprocess
import sys
import uuid
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pika
import pytest
from flask import Flask
from pika import exceptions as pika_errors
from pika import frame, spec
from pika.adapters.blocking_connection import BlockingChannel

from flask_pika import (
    BrokerUnavailable,
    Message,
    Pika,
    PublishRefused,
    Queue,
    Retry,
    TopologyMismatch,
    Unroutable,
)
from flask_pika.declaring import Preparation
from flask_pika.topology import Topology
from tests.conftest import Node, wait_for
from tools.embedded_node import EmbeddedNode
from tools.proxy import Proxy


def name(kind: str = "q") -> str:
    """A name that nothing else has."""
    return f"declaring-{kind}-{uuid.uuid4().hex[:12]}"


def make(params: object, mode: str | None = None) -> Pika:
    app = Flask("shop")
    app.config.update(
        FLASK_PIKA_PARAMS=params,
        FLASK_PIKA_DECLARE=mode,
        FLASK_PIKA_PUBLISHER_PARAMS={"timeout": 30},
    )
    _apps.append(app)
    return Pika(app)


_apps: list[Flask] = []


@pytest.fixture(autouse=True)
def _keep_apps() -> None:
    _apps.clear()


class Bare:
    """A broker, with nothing of Flask-Pika in between."""

    def __init__(self, url: str) -> None:
        self.connection = pika.BlockingConnection(pika.URLParameters(url))
        self._channel: BlockingChannel | None = None

    @property
    def channel(self) -> BlockingChannel:
        if self._channel is None or not self._channel.is_open:
            self._channel = self.connection.channel()
        return self._channel

    def has(self, queue: str, **options: Any) -> bool:
        """Whether there is a queue; with options, whether it is this one."""
        return self._answers(lambda: self.channel.queue_declare(queue, passive=not options, **options))

    def is_gone(self, queue: str) -> bool:
        """Whether there is no such queue; one that is another connection's own is there."""
        try:
            return not self.has(queue)
        except pika_errors.ChannelClosedByBroker as closed:
            if closed.reply_code != 405:
                raise
            return False

    def has_exchange(self, exchange: str) -> bool:
        return self._answers(lambda: self.channel.exchange_declare(exchange, passive=True))

    def _answers(self, ask: Callable[[], object]) -> bool:
        try:
            ask()
        except pika_errors.ChannelClosedByBroker as closed:
            if closed.reply_code not in (404, 406):
                raise
            return False
        return True

    def holds(self, queue: str, number: int) -> None:
        """Wait until a queue has so many messages.

        RabbitMQ says 0 of a quorum queue that does not answer it within a quarter of a second.
        """

        def count() -> int:
            return int(self.channel.queue_declare(queue, passive=True).method.message_count)

        wait_for(lambda: count() == number, lambda: f"{number} messages in {queue}: {count()}")

    def routes(self, exchange: str, key: str, queue: str, headers: dict[str, Any] | None = None) -> bool:
        """Whether a message comes from an exchange to a queue."""
        channel = self.connection.channel()
        channel.confirm_delivery()
        properties = pika.BasicProperties(headers=headers)
        try:
            channel.basic_publish(exchange, key, b"", properties, mandatory=True)
        except pika_errors.UnroutableError:
            return False
        finally:
            channel.close()
        wait_for(lambda: self.channel.basic_get(queue, True)[0] is not None, f"the message in {queue}")
        return True


@pytest.fixture
def bare(everyday: Node) -> Iterator[Bare]:
    made = Bare(everyday.url)
    yield made
    if made.connection.is_open:
        made.connection.close()


class Counting(Proxy):
    """A proxy that counts what clients call."""

    def __init__(self, target: int) -> None:
        super().__init__(target)
        self._data: dict[int, bytes] = {}
        self.calls: Counter[str] = Counter()

    def passes(self, connection: int, to_target: bool, data: bytes) -> None:
        if not to_target:
            return
        if connection not in self._data:
            data = data.removeprefix(b"AMQP\x00\x00\x09\x01")
        self._data[connection] = data = self._data.get(connection, b"") + data
        at = 0
        while True:
            consumed, found = frame.decode_frame(data[at:])
            if not consumed:
                break
            at += consumed
            if isinstance(found, frame.Method):
                self.calls[found.method.NAME] += 1
        self._data[connection] = data[at:]

    @property
    def declared(self) -> int:
        return sum(
            self.calls[one.NAME] for one in (spec.Queue.Declare, spec.Exchange.Declare, spec.Queue.Bind)
        )


@pytest.fixture
def counting(everyday: Node) -> Iterator[Counting]:
    with Counting(everyday.port) as proxy:
        yield proxy


def through(proxy: Proxy) -> dict[str, object]:
    return {"host": "127.0.0.1", "port": proxy.port, "stack_timeout": 60, "socket_timeout": 60}


# -- fpika.declare()


def test_declare_makes_all_that_is_registered_and_a_second_one_changes_nothing(
    everyday: Node, bare: Bare
) -> None:
    fpika = make(everyday.params)
    e, f, h, q, s = name("e"), name("f"), name("h"), name(), name("s")
    orders = fpika.exchange(e, "topic", alternate_exchange=f"{e}-lost")
    # Whatever the order: its alternate exchange, and what it is bound to, come later.
    fpika.exchange(f, "fanout", bind=[(orders, "order.#"), ("amq.topic", f"{f}.key")])
    fpika.exchange(f"{e}-lost", "fanout")
    people = fpika.exchange(h, "headers")
    bind = [(f, ""), (people, {"country": "de", "x-age": 5}, "all-with-x"), (f"{e}-lost", "")]
    fpika.queue(q, bind=bind, dead_letter=True)
    fpika.queue(s, type="stream", max_age="7D")
    fpika.consumer(q, retry=Retry(attempts=3))(print)
    fpika.declare()
    waiting = [f"{q}.retry.1000ms", f"{q}.retry.2000ms"]
    for queue in (q, f"{q}.dead", s, *waiting):
        assert bare.has(queue), queue
    assert bare.routes(e, "order.created", q)
    assert bare.routes("amq.topic", f"{f}.key", q)
    assert bare.routes(h, "", q, {"country": "de", "x-age": 5})
    assert not bare.routes(h, "", q, {"country": "de", "x-age": 6})
    assert bare.routes(e, "something else", q), "by the alternate exchange"
    fpika.publish(b"stays", routing_key=q)
    fpika.declare()
    bare.holds(q, 1)


def test_a_queue_with_other_arguments_is_reported_and_left_alone(everyday: Node, bare: Bare) -> None:
    fpika = make(everyday.params)
    q, other, e, t = name(), name(), name("e"), name("t")
    stands: dict[str, Any] = {"durable": True, "arguments": {"x-max-length": 5}}
    bare.channel.queue_declare(q, **stands)
    bare.channel.exchange_declare(t, "direct", durable=True)
    bare.channel.basic_publish("", q, b"kept")
    bare.holds(q, 1)
    fpika.exchange(e, "topic")
    fpika.queue(q, type="classic", max_length=6, bind=[(e, "key")])
    fpika.exchange(t, "topic")
    fpika.queue(other, bind=[(e, "key")])
    with pytest.raises(TopologyMismatch) as caught:
        fpika.declare()
    said = str(caught.value)
    assert said.startswith(
        f"2 problems: exchange '{t}' is there with another type: 'direct' at the broker, and"
    )
    assert (
        f"queue '{q}' is there with another x-max-length: '5' at the broker, and '6' here. RabbitMQ" in said
    )
    assert "'type'" in caught.value.reply_text, "the first one's"
    assert bare.has(q, **stands)
    bare.holds(q, 1)
    assert bare.routes(e, "key", other), "what is well goes on"
    bare.holds(q, 1)  # it must not be bound, either


@pytest.mark.parametrize("mode", ["auto", "check", "never"])
def test_declare_declares_whatever_the_app_does_by_itself(everyday: Node, bare: Bare, mode: str) -> None:
    fpika, q = make(everyday.params, mode), name()
    fpika.queue(q)
    fpika.declare()
    assert bare.has(q)


def test_an_exchange_type_that_no_plugin_has_costs_nothing_else(everyday: Node, bare: Bare) -> None:
    # The broker closes the connection over it.
    fpika, e, q = make(everyday.params), name("e"), name()
    fpika.exchange(e, "x-unheard-of")
    fpika.queue(q)
    with pytest.raises(
        TopologyMismatch, match=f"exchange '{e}' cannot be declared .503.*is a plugin's"
    ) as caught:
        fpika.declare()
    assert caught.value.reply_code == 503
    assert bare.has(q)


def test_a_binding_to_what_is_nowhere_is_told(everyday: Node) -> None:
    fpika, q = make(everyday.params), name()
    fpika.queue(q, bind=[(f"{q}-nowhere", "key")])
    with pytest.raises(TopologyMismatch) as caught:
        fpika.declare()
    assert str(caught.value) == (
        f"the binding of queue '{q}' to exchange '{q}-nowhere' by 'key' cannot be made (404 NOT_FOUND - no"
        f" exchange '{q}-nowhere' in vhost '/'); each end of it must be registered, or be there"
    )


def test_declare_without_a_broker_says_so() -> None:
    fpika = make("amqp://127.0.0.1:1")
    fpika.queue("q")
    with pytest.raises(BrokerUnavailable):
        fpika.declare()
    with pytest.raises(ValueError, match="timeout is -1"):
        fpika.declare(-1)


def test_a_recording_has_whatever_is_declared(everyday: Node, bare: Bare) -> None:
    fpika, q = make(everyday.params), name()
    fpika.queue(q)
    with fpika.record_messages():
        fpika.declare()
    assert not bare.has(q)


# -- The publisher


def test_what_is_registered_is_there_before_the_first_message(everyday: Node, bare: Bare) -> None:
    fpika, e, q = make(everyday.params), name("e"), name()
    fpika.queue(q, bind=[(e, "key")], dead_letter=True)
    fpika.exchange(e)
    assert fpika.publish(b"", exchange=e, routing_key="key")
    bare.holds(q, 1)
    assert bare.has(f"{q}.dead"), "or what is rejected is lost before a worker begins"


def test_what_is_registered_later_is_declared_before_the_next_message(everyday: Node, bare: Bare) -> None:
    fpika, q, late = make(everyday.params), name(), name()
    fpika.queue(q)
    fpika.publish(b"", routing_key=q)
    fpika.queue(late)
    fpika.publish(b"", routing_key=late)
    bare.holds(late, 1)


def test_nothing_is_declared_while_messages_go(counting: Counting) -> None:
    fpika, e, q = make(through(counting)), name("e"), name()
    fpika.queue(q, bind=[(fpika.exchange(e), "key")])
    fpika.publish(b"", exchange=e, routing_key="key")
    assert counting.declared == 3
    for _ in range(100):
        fpika.publish(b"", exchange=e, routing_key="key")
    fpika.publish_many(Message(b"", exchange=e, routing_key="key") for _ in range(900))
    assert counting.calls[spec.Basic.Publish.NAME] == 1001
    assert counting.declared == 3


def test_an_exchange_that_is_deleted_under_the_app_comes_back(everyday: Node, bare: Bare) -> None:
    fpika, e, q = make(everyday.params), name("e"), name()
    fpika.queue(q, bind=[(fpika.exchange(e), "key")])
    fpika.publish(b"", exchange=e, routing_key="key")
    bare.channel.exchange_delete(e)
    with pytest.raises(PublishRefused, match="404"):
        fpika.publish(b"", exchange=e, routing_key="key")
    for _ in range(5):
        fpika.publish(b"", exchange=e, routing_key="key")
    bare.holds(q, 6)


def test_an_exchange_that_nobody_registered_has_nothing_declared(counting: Counting) -> None:
    fpika, q = make(through(counting)), name()
    fpika.queue(q)
    for _ in range(5):
        with pytest.raises(PublishRefused, match="404"):
            fpika.publish(b"", exchange=f"{q}-nowhere", routing_key="key")
    assert counting.declared == 1
    fpika.publish(b"", routing_key=q)


def drop() -> None:
    """Cut the publisher's connection, and wait for the next one."""
    outbox: Any = next(iter(_apps[0].extensions["flask_pika"].values())).publisher()._outbox
    link = outbox._link
    old = link._connection
    link.call(lambda: link._drop(pika_errors.AMQPConnectionError("cut by a test")))
    wait_for(
        lambda: link._connection not in (old, None) and link.state.value == "ready", "the next connection"
    )


def test_what_is_gone_comes_back_with_the_next_connection(everyday: Node, bare: Bare) -> None:
    fpika, e, q = make(everyday.params), name("e"), name()
    fpika.queue(q, bind=[(fpika.exchange(e), "key")])
    fpika.publish(b"", exchange=e, routing_key="key")
    bare.channel.exchange_delete(e)
    bare.channel.queue_delete(q)
    drop()
    wait_for(lambda: bare.has(q), "the queue")
    fpika.publish(b"", exchange=e, routing_key="key")
    bare.holds(q, 1)


def test_the_publisher_goes_on_though_something_is_unlike_and_says_so_once(
    everyday: Node, bare: Bare, caplog: pytest.LogCaptureFixture
) -> None:
    fpika, unlike, q = make({**everyday.params, "channel_max": 3}), [name() for _ in range(8)], name()
    for one in unlike:
        bare.channel.queue_declare(one, durable=True)
        fpika.queue(one)
    fpika.queue(q)
    fpika.publish(b"", routing_key=q)
    drop()
    fpika.publish(b"", routing_key=q)
    fpika.queue(name())
    fpika.publish(b"", routing_key=q)
    bare.holds(q, 3)
    (record,) = [one for one in caplog.records if one.name == "flask_pika.topology"]
    assert record.levelno == logging.ERROR
    for one in unlike:
        assert f"queue '{one}' is there with another x-queue-type" in record.getMessage()
        bare.channel.queue_delete(one)
    drop()
    fpika.publish(b"", routing_key=q)
    assert "all that is registered is at the broker now" in caplog.messages
    assert all(map(bare.has, unlike))
    assert not [one for one in caplog.records if "bug" in one.getMessage()]


def test_the_publisher_leaves_alone_what_is_bound_to_something_unlike(everyday: Node, bare: Bare) -> None:
    fpika, e, q = make(everyday.params), name("e"), name()
    bare.channel.queue_declare(q, durable=True)
    fpika.queue(q, bind=[(fpika.exchange(e), "key")])
    with pytest.raises(Unroutable):
        fpika.publish(b"", exchange=e, routing_key="key")


def test_no_more_channels_are_taken_than_the_broker_gives(
    everyday: Node, bare: Bare, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flask_pika.outbox.CHANNELS", 2)  # as if a third were taken, by suspects
    fpika, q, unlike = make({**everyday.params, "channel_max": 2}), name(), [name() for _ in range(3)]
    fpika.queue(q)
    fpika.publish(b"", routing_key=q)
    for one in unlike:
        bare.channel.queue_declare(one, durable=True)
        fpika.queue(one)
    fpika.publish(b"", routing_key=q)
    bare.holds(q, 2)
    assert not [one for one in caplog.records if "bug" in one.getMessage()]


def test_a_declaration_that_costs_the_connection_is_not_tried_for_ever(
    counting: Counting, bare: Bare, caplog: pytest.LogCaptureFixture
) -> None:
    fpika, e, q = make(through(counting)), name("e"), name()
    fpika.exchange(e, "x-unheard-of")
    fpika.queue(q, bind=[("amq.direct", q)])
    fpika.publish(b"", routing_key=q)
    assert counting.connections == 2
    assert f"exchange '{e}' cannot be declared (503 COMMAND_INVALID" in caplog.text
    fpika.queue(name())
    for _ in range(3):
        fpika.publish(b"", routing_key=q)
    assert counting.connections == 2, "it was tried again"
    bare.holds(q, 4)


def test_an_apps_end_is_not_held_up_by_what_it_declares(everyday: Node) -> None:
    fpika, q = make(everyday.params), name()
    fpika.queue(q, dead_letter=True)
    fpika.publish(b"", routing_key=q)
    gone = weakref.ref(next(iter(_apps[0].extensions["flask_pika"].values())))
    _apps.clear()
    del fpika
    wait_for(lambda: gc.collect() >= 0 and gone() is None, "the end of the app's state")


class StandInConnection:
    """Opens a channel when it is told to, on which every declaration is well at once."""

    is_open = True

    def __init__(self) -> None:
        self.opening: list[Callable[[Any], object]] = []
        self.declared: list[str] = []

    def channel(self, on_open_callback: Callable[[Any], object]) -> None:
        self.opening.append(on_open_callback)

    @property
    def ioloop(self) -> StandInConnection:
        return self

    def call_later(self, seconds: float, callback: object) -> None:
        """It is well before any time is over."""

    def add_on_close_callback(self, callback: object) -> None:
        pass

    def queue_declare(self, queue: str, callback: Callable[[object], object], **_options: object) -> None:
        self.declared.append(queue)
        callback(None)

    def close(self) -> None:
        pass


def test_two_that_want_it_declared_at_one_time_wait_for_the_same_declaring() -> None:
    topology, connection, done = Topology(), StandInConnection(), list[str]()
    topology.add(Queue("q"))
    preparation = Preparation(topology, "auto")
    for who in ("first", "second"):
        preparation.begin(connection, lambda callback: callback, lambda who=who: done.append(who))  # type: ignore[arg-type,misc]
    (opened,) = connection.opening
    assert not done
    opened(connection)
    assert (connection.declared, done) == (["q"], ["first", "second"])
    # One that was under way on a connection that is gone is nothing to wait for.
    preparation.begin(connection, lambda callback: callback, lambda: done.append("lost"))  # type: ignore[arg-type]
    another = StandInConnection()
    preparation.begin(another, lambda callback: callback, lambda: done.append("third"))  # type: ignore[arg-type]
    another.opening[0](another)
    assert done == ["first", "second", "third"]


# -- FLASK_PIKA_DECLARE


def test_check_declares_nothing_and_says_what_is_missing_and_what_differs(
    counting: Counting, bare: Bare, caplog: pytest.LogCaptureFixture
) -> None:
    fpika, missing, unlike, q, e = make(through(counting), "check"), name(), name(), name(), name("e")
    bare.channel.queue_declare(unlike, durable=True)
    bare.channel.queue_declare(q, durable=True, arguments={"x-queue-type": "quorum"})
    fpika.exchange(e)
    fpika.queue(missing, bind=[(e, "key")])
    fpika.queue(unlike)
    fpika.queue(q)
    fpika.publish(b"", routing_key=q)
    (said,) = [one.getMessage() for one in caplog.records if one.name == "flask_pika.topology"]
    assert said.count(" is not there;") == 2
    assert f"exchange '{e}' is not there" in said
    assert f"queue '{missing}' is not there" in said
    assert f"queue '{unlike}' is there with another x-queue-type" in said
    assert f"queue '{q}'" not in said
    assert not bare.has(missing)
    assert not bare.has_exchange(e)
    assert counting.calls[spec.Queue.Bind.NAME] == 0


def test_never_looks_at_nothing(counting: Counting, bare: Bare) -> None:
    fpika, q = make(through(counting), "never"), name()
    fpika.queue(q)
    with pytest.raises(Unroutable):
        fpika.publish(b"", routing_key=q)
    fpika.consumer(q)(print)
    with fpika.worker():
        wait_for(lambda: fpika.stats().consumers[0].state == "backing off", "the worker")
    assert counting.declared == 0
    assert not bare.has(q)


# -- The worker


def test_a_worker_has_its_queues_when_it_begins(everyday: Node, bare: Bare) -> None:
    fpika, q, e = make(everyday.params), name(), name("e")
    fpika.queue(q, bind=[(fpika.exchange(e), "key")], dead_letter=True)
    got: list[bytes] = []
    fpika.consumer(q, retry=Retry(attempts=2))(lambda delivery: got.append(delivery.body))
    with fpika.worker():
        wait_for(lambda: fpika.stats().consumers[0].state == "consuming", "the worker")
        assert bare.has(f"{q}.dead")
        assert bare.has(f"{q}.retry.1000ms")
        bare.channel.basic_publish(e, "key", b"x")
        wait_for(lambda: got == [b"x"], "the message")


def test_a_queue_that_is_deleted_under_its_worker_comes_back(
    everyday: Node, bare: Bare, caplog: pytest.LogCaptureFixture
) -> None:
    fpika, qs, e = make(everyday.params), [name(), name()], name("e")
    got: list[bytes] = []
    for q in qs:
        fpika.queue(q, bind=[(fpika.exchange(e, "fanout"), "")])
        fpika.consumer(q)(lambda delivery: got.append(delivery.body))
    with fpika.worker():
        for _ in range(2):
            wait_for(lambda: {one.state for one in fpika.stats().consumers} == {"consuming"}, "the worker")
            for q in qs:
                bare.channel.queue_delete(q)
            wait_for(lambda: all(map(bare.has, qs)), "the queues")
        wait_for(lambda: {one.state for one in fpika.stats().consumers} == {"consuming"}, "the worker")
        bare.channel.basic_publish(e, "", b"x")
        wait_for(lambda: got == [b"x", b"x"], "the message, in both")


def test_an_exclusive_queue_is_its_workers(everyday: Node, bare: Bare) -> None:
    fpika, q, e = make(everyday.params), name(), name("e")
    fpika.queue(q, type="classic", exclusive=True, bind=[(fpika.exchange(e), "key")])
    got: list[bytes] = []
    fpika.consumer(q)(lambda delivery: got.append(delivery.body))
    with pytest.raises(Unroutable):  # the publisher does not take it for itself
        fpika.publish(b"", exchange=e, routing_key="key")
    fpika.declare()
    with fpika.worker():
        wait_for(lambda: fpika.stats().consumers[0].state == "consuming", "the worker")
        fpika.publish(b"x", exchange=e, routing_key="key")
        wait_for(lambda: got == [b"x"], "the message")
    # The worker waits a second for its goodbye to be answered; then the broker learns of its end by itself.
    wait_for(lambda: bare.is_gone(q), "the end of the queue")


# -- The commands

APP = """
from flask import Flask
from flask_pika import Pika, Retry

app = Flask("shop")
app.config.from_prefixed_env()
fpika = Pika(app)
orders = fpika.exchange("{0}orders", type="topic")
fpika.queue("{0}email", bind=[(orders, "order.created")], dead_letter=True)
fpika.queue("{0}audit", type="classic", max_length=5, bind=[("amq.headers", {{"country": "{0}"}})])


@fpika.consumer("{0}email", retry=Retry(attempts=2))
def handle(delivery): ...
"""
SECOND = """
other = Pika(app, config_prefix="AUDIT_PIKA")
other.queue("{0}second", type="classic", exclusive=True)
other.queue("{0}third")
"""


class Shop:
    """An app in a file, and the commands of it."""

    def __init__(self, place: Path, url: str, more: str = "") -> None:
        self.prefix = name("c") + "-"
        self.place = place
        self.env = {**os.environ, "FLASK_PIKA_PARAMS": url, "FLASK_AUDIT_PIKA_PARAMS": url}
        (place / "app.py").write_text((APP + more).format(self.prefix))

    def __call__(self, *command: str, exits: int = 0) -> str:
        """What a command prints, without the prefix."""
        done = subprocess.run(
            [sys.executable, "-m", "flask", "--app", "app", "pika", *command],
            cwd=self.place,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=110,
            check=False,
        )
        said = done.stdout + done.stderr
        assert done.returncode == exits, said
        assert "Traceback" not in said, said
        return said.replace(self.prefix, "")


@pytest.fixture
def shop(tmp_path: Path, everyday: Node) -> Shop:
    return Shop(tmp_path, everyday.url)


def table(said: str) -> list[list[str]]:
    return [
        line.split()
        for line in said.splitlines()
        if line.split()[:1] in (["queue"], ["exchange"], ["binding"])
    ]


def test_the_command_declares_and_says_what_was_made_and_what_stood(shop: Shop, bare: Bare) -> None:
    bare.channel.exchange_declare(f"{shop.prefix}orders", "topic", durable=True)
    said = shop("declare")
    assert table(said) == [
        ["exchange", "orders", "topic", "stood"],
        ["queue", "email.dead", "quorum", "made"],
        ["queue", "email.retry.1000ms", "quorum", "made"],
        ["queue", "email", "quorum", "made"],
        ["queue", "audit", "classic", "made"],
        ["binding", "orders", "->", "queue", "email", "order.created", "bound"],
        ["binding", "amq.headers", "->", "queue", "audit", "all", "of", '{"country":', '""}', "bound"],
    ]
    assert "1 stood, 4 made, 2 bound" in said
    assert bare.routes(f"{shop.prefix}orders", "order.created", f"{shop.prefix}email")
    assert "5 stood, 2 bound" in shop("declare"), "the second time, all of it stands"


def test_check_changes_nothing_and_exits_1_with_the_differences(shop: Shop, bare: Bare) -> None:
    said = shop("declare", "--check", exits=1)
    assert "5 missing, 2 cannot be seen" in said
    assert "queue 'email' is not there; 'flask pika declare' declares it" in said
    assert not bare.has(f"{shop.prefix}email")
    bare.channel.queue_declare(f"{shop.prefix}audit", durable=True, arguments={"x-max-length": 6})
    said = shop("declare", exits=1)
    assert "4 made, 1 differs, 1 bound, 1 left alone" in said
    said = shop("declare", "--check", exits=1)
    assert "4 stood, 1 differs, 2 cannot be seen" in said
    assert "AMQP shows no bindings" in said
    assert (
        "queue 'audit' is there with another x-max-length: '6' at the broker, and '5' here. RabbitMQ" in said
    )
    bare.channel.queue_delete(f"{shop.prefix}audit")
    shop("declare")
    assert "5 stood, 2 cannot be seen" in shop("declare", "--check")


def test_a_dry_run_connects_to_nothing(tmp_path: Path) -> None:
    said = Shop(tmp_path, "amqp://127.0.0.1:1")("declare", "--dry-run")
    assert [row[:3] for row in table(said)][:3] == [
        ["exchange", "orders", "topic"],
        ["queue", "email.dead", "quorum"],
        ["queue", "email.retry.1000ms", "quorum"],
    ]
    assert "x-delivery-limit=20" in said
    assert "x-max-length=5" in said


@pytest.mark.parametrize("option", ["--check", "--timeout=5"])
def test_without_a_broker_the_command_says_so_in_one_line(tmp_path: Path, option: str) -> None:
    said = Shop(tmp_path, "amqp://127.0.0.1:1")("declare", option, exits=1)
    assert said == "cannot connect to RabbitMQ: amqp://127.0.0.1:1/%2F: connection refused\n"


def test_several_pika_objects_are_told_apart(tmp_path: Path, everyday: Node, bare: Bare) -> None:
    shop = Shop(tmp_path, everyday.url, SECOND)
    assert "third" not in shop("declare", "--config-prefix", "FLASK_PIKA")
    said = shop("declare", "--config-prefix", "AUDIT_PIKA")
    assert next(row[1:] for row in table(said)) == ["third", "quorum", "made"]
    assert "queue second is exclusive: the worker that consumes it declares it" in said
    assert "email" not in said
    said = shop("declare", "--check")
    assert said.index("FLASK_PIKA:") < said.index("email") < said.index("AUDIT_PIKA:") < said.index("third")
    assert "this app has FLASK_PIKA, AUDIT_PIKA" in shop("declare", "--config-prefix", "NONE", exits=2)
    assert not bare.has(f"{shop.prefix}second")


def test_an_app_without_topology_has_nothing_to_declare(tmp_path: Path) -> None:
    shop = Shop(tmp_path, "amqp://127.0.0.1:1")
    (tmp_path / "app.py").write_text(
        "from flask import Flask\nfrom flask_pika import Pika\napp = Flask('shop')\nPika(app)\n"
    )
    for command in (("declare",), ("declare", "--check"), ("topology",)):
        assert shop(*command) == "nothing is registered: see fpika.exchange() and fpika.queue()\n"


def test_the_topology_is_printed_and_drawn_without_a_broker(tmp_path: Path) -> None:
    shop = Shop(tmp_path, "amqp://127.0.0.1:1")
    said = shop("topology")
    assert "queue email: quorum\n  bound to exchange orders by order.created\n" in said
    assert "  to be tried again: to queue email.retry.1000ms\n" in said
    assert "queue email.retry.1000ms: quorum\n  after 1 s: to queue email\n" in said
    drawn = shop("topology", "--dot")
    assert drawn.startswith('digraph "shop" {\n')
    assert drawn.endswith("}\n")
    for label in ("order.created", "dead letters", "to be tried again", "after 1 s"):
        assert f'[label="{label}"' in drawn


def test_what_is_wrong_with_the_pool_or_a_dead_broker_is_one_line(everyday: Node, tmp_path: Path) -> None:
    if not isinstance(everyday, EmbeddedNode):
        pytest.skip("faults on demand are the embedded broker's")
    shop = Shop(tmp_path, everyday.url)
    everyday.broker.freeze()
    try:
        said = shop("declare", "--timeout", "1", exits=1)
    finally:
        everyday.broker.thaw()
    assert len(said.splitlines()) == 1, said
