"""Channels on a real RabbitMQ: the API to the letter, and nothing of one borrower reaches the next."""

from __future__ import annotations

import gc
import logging
import select
import socket
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pika
import pytest
from flask import Flask
from pika import exceptions as pika_errors

from flask_pika import ChannelReturned, PoolClosed, PooledChannel, PoolTimeout, SetupError, pika_internals
from flask_pika import Pika as FPika
from tests.conftest import Node, make_app, wait_for

POOL: dict[str, object] = {"pool_size": 2}

pytestmark = pytest.mark.usefixtures("patient")


@pytest.fixture
def queue(everyday: Node) -> str:
    """An empty, durable queue."""
    connection = pika.BlockingConnection(pika.URLParameters(everyday.url))
    channel = connection.channel()
    channel.queue_delete("work")
    channel.queue_declare("work", durable=True)
    connection.close()
    return "work"


def contents(node: Node, queue: str) -> list[bytes]:
    """What is in a queue, taken out by a connection of its own."""
    connection = pika.BlockingConnection(pika.URLParameters(node.url))
    try:
        bodies = []
        while (found := connection.channel().basic_get(queue, auto_ack=True))[0] is not None:
            assert found[2] is not None
            bodies.append(found[2])
        return bodies
    finally:
        connection.close()


def test_the_original_api_to_the_letter(everyday: Node, queue: str) -> None:
    app = Flask("original")
    app.config["FLASK_PIKA_PARAMS"] = {
        "host": "127.0.0.1",
        "username": "guest",
        "password": "guest",
        "port": everyday.port,
        "virtual_host": "/",
    }
    app.config["FLASK_PIKA_POOL_PARAMS"] = {"pool_size": 8, "pool_recycle": 600}
    fpika = FPika()
    fpika.init_app(app)

    ch = fpika.channel()
    ch.exchange_declare("exchange")
    ch.queue_bind(queue, "exchange", "routing_key")
    ch.basic_publish(exchange="exchange", routing_key="routing_key", body="message")  # type: ignore[arg-type]
    fpika.return_channel(ch)
    ch = fpika.channel()
    fpika.return_broken_channel(ch)
    with fpika.channel() as ch:
        assert ch.basic_get(queue, auto_ack=True)[2] == b"message"
        ch.exchange_delete("exchange")
    assert fpika.stats().in_use == 0


@pytest.mark.parametrize("pool", [None, POOL], ids=["unpooled", "pooled"])
def test_publish_and_get(everyday: Node, queue: str, pool: dict[str, object] | None) -> None:
    _app, fpika = make_app(everyday.params, pool)
    for number in range(20):
        with fpika.channel() as ch:
            ch.basic_publish("", queue, b"%d" % number)
    # Its channels are not in confirm mode: a question on the same channel comes after the publishes.
    wait_for(lambda: depth(fpika, queue) == 20, "20 messages")
    assert contents(everyday, queue) == [b"%d" % number for number in range(20)]
    assert fpika.stats().opened == (1 if pool else fpika.stats().opened)


def depth(fpika: FPika, queue: str) -> int:
    with fpika.channel() as ch:
        return int(ch.queue_declare(queue, passive=True).method.message_count)


def test_unpooled_a_return_closes_the_connection(everyday: Node, both_ways: str) -> None:
    _app, fpika = make_app(
        {**everyday.params, "client_properties": {"connection_name": f"unpooled-{both_ways}"}}
    )
    with fpika.channel() as ch:
        assert ch.is_open
        assert everyday.connections().count(f"unpooled-{both_ways}") == 1
    assert fpika.stats().open == 0
    wait_for(lambda: f"unpooled-{both_ways}" not in everyday.connections(), "the connection is closed")


def test_an_operator_recognises_the_connections(everyday: Node) -> None:
    import os

    _app, fpika = make_app(everyday.params, POOL, name="webshop")
    with fpika.channel():
        assert f"webshop on {socket.gethostname()} (pid {os.getpid()})" in everyday.connections()


def test_no_channel_is_ever_with_two_borrowers(everyday: Node) -> None:
    _app, fpika = make_app(everyday.params, {"pool_size": 4})
    users: dict[int, int] = {}
    doubles = []

    def work() -> None:
        for turn in range(50):
            ch = fpika.channel()
            key = id(ch.__dict__["_slot"])
            if users.setdefault(key, threading.get_ident()) != threading.get_ident():
                doubles.append(key)
            ch.basic_publish("", "nowhere", b"x")
            del users[key]
            if turn % 10 == 9:
                fpika.return_broken_channel(ch)
            else:
                fpika.return_channel(ch)

    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not doubles
    stats = fpika.stats()
    assert (stats.in_use, stats.waiting, stats.timeouts) == (0, 0, 0)
    assert stats.open <= 4
    assert stats.discarded == 16 * 5


def test_a_full_pool_names_who_holds_it(everyday: Node) -> None:
    app, fpika = make_app(everyday.params, {"pool_size": 1})

    @app.get("/")
    def holder() -> str:
        with fpika.channel(), pytest.raises(PoolTimeout) as caught:
            fpika.channel(timeout=0.05)
        return str(caught.value)

    message = app.test_client().get("/").text
    assert "endpoint 'holder'" in message
    assert f"thread {threading.current_thread().name}" in message
    assert isinstance(PoolTimeout("x"), pika_errors.AMQPConnectionError)


@pytest.mark.parametrize("timeout", [-1, float("nan"), float("inf"), "1", True])
def test_a_timeout_that_is_none_is_refused(everyday: Node, timeout: Any) -> None:
    _app, fpika = make_app(everyday.params, POOL)
    with pytest.raises(ValueError, match="timeout"):
        fpika.channel(timeout=timeout)


# What a borrower may leave, and how the next one would notice.


def leave_confirm_mode(ch: Any, queue: str) -> None:
    ch.confirm_delivery()


def leave_tx_mode(ch: Any, queue: str) -> None:
    ch.tx_select()
    ch.basic_publish("", queue, b"never committed")


def leave_unacked(ch: Any, queue: str) -> None:
    assert ch.basic_get(queue)[0] is not None


def leave_consumer(ch: Any, queue: str) -> None:
    ch.basic_consume(queue, lambda *_: None)


def leave_qos_and_consumer_generator(ch: Any, queue: str) -> None:
    ch.basic_qos(prefetch_count=1)
    next(ch.consume(queue, inactivity_timeout=5))


def leave_closed_by_404(ch: Any, queue: str) -> None:
    with pytest.raises(pika_errors.ChannelClosedByBroker):
        ch.queue_declare("no-such-queue", passive=True)


def leave_closed_by_406(ch: Any, queue: str) -> None:
    with pytest.raises(pika_errors.ChannelClosedByBroker):
        ch.queue_declare(queue, durable=False)


def leave_a_404_that_arrived_after_the_return(ch: Any, queue: str) -> None:
    sock = ch.__dict__["_slot"].channel.connection._impl._transport._sock
    ch.basic_publish("no-such-exchange", queue, b"x")
    # Read by nobody, as when the channel is returned at once and the broker's answer comes a moment later.
    wait_for(lambda: select.select([sock], [], [], 0)[0], "the broker's answer")


def leave_an_ack_of_nothing(ch: Any, queue: str) -> None:
    ch.basic_ack(4711)


def leave_exclusive_queue(ch: Any, queue: str) -> None:
    ch.queue_declare("mine-alone", exclusive=True)


def leave_closed(ch: Any, queue: str) -> None:
    ch.close()


def leave_connection_closed(ch: Any, queue: str) -> None:
    ch.connection.close()


def leave_return_callback(ch: Any, queue: str) -> None:
    ch.add_on_return_callback(lambda *_: pytest.fail("another borrower's callback"))


def leave_declared_queue(ch: Any, queue: str) -> None:
    ch.queue_declare("declared-last", auto_delete=True)


LEAVE = [value for name, value in sorted(globals().items()) if name.startswith("leave_")]


@pytest.mark.parametrize(
    ("leave", "confirm"),
    [
        pytest.param(leave, confirm, id=f"{leave.__name__}-{'confirm' if confirm else 'plain'}")
        for leave in LEAVE
        for confirm in (False, True)
        # RabbitMQ refuses tx on a confirmed channel, and a confirmed publish waits for its 404.
        if not confirm or leave not in (leave_tx_mode, leave_a_404_that_arrived_after_the_return)
    ],
)
def test_nothing_of_one_borrower_reaches_the_next(
    everyday: Node, queue: str, leave: Callable[[Any, str], None], confirm: bool, both_ways: str
) -> None:
    _app, fpika = make_app(everyday.params, {"pool_size": 1, "confirm_delivery": confirm})
    with fpika.channel() as ch:
        ch.basic_publish("", queue, b"first")
    with fpika.channel() as ch:
        leave(ch, queue)

    for _ in range(3):
        with fpika.channel() as ch:
            assert ch.consumer_tags == []
            # Not another's confirm mode: then it would raise UnroutableError; and not missing confirms.
            if confirm:
                with pytest.raises(pika_errors.UnroutableError):
                    ch.basic_publish("", "no-such-queue", b"x", mandatory=True)
            else:
                ch.basic_publish("", "no-such-queue", b"x", mandatory=True)
            ch.basic_publish("", queue, b"next")
            assert not ch.connection.process_data_events(0)  # type: ignore[func-returns-value]
            with pytest.raises(ValueError, match="declared none"):
                ch.basic_get("")
    # Not somebody's unacked delivery, uncommitted publish or exclusive queue.
    wait_for(lambda: depth(fpika, queue) == 4, "four messages, all ready")
    assert contents(everyday, queue).count(b"next") == 3

    def is_gone() -> bool:  # with its connection, whose goodbye may be said by a thread of its own
        with pytest.raises(pika_errors.ChannelClosedByBroker) as caught, fpika.channel() as ch:
            ch.queue_declare("mine-alone", passive=True)
        return bool(caught.value.reply_code == 404)

    wait_for(is_gone, "nobody has the exclusive queue")
    assert fpika.stats().open == 1


def test_a_channel_costs_a_channel_and_not_a_connection(everyday: Node, queue: str) -> None:
    _app, fpika = make_app(everyday.params, {"pool_size": 1})
    for leave in (leave_confirm_mode, leave_closed_by_404, leave_consumer, leave_closed):
        with fpika.channel() as ch:
            leave(ch, queue)
    with fpika.channel():
        pass
    assert fpika.stats().opened == 1
    with fpika.channel() as ch:
        leave_exclusive_queue(ch, queue)
    with fpika.channel():
        pass
    assert (fpika.stats().opened, fpika.stats().discarded) == (2, 1)


def test_confirmed_channels_tell_what_became_of_the_message(everyday: Node, queue: str) -> None:
    _app, fpika = make_app(everyday.params, {"pool_size": 1, "confirm_delivery": True})
    with pytest.raises(pika_errors.UnroutableError), fpika.channel() as ch:
        ch.basic_publish("", "no-such-queue", b"x", mandatory=True)
    with fpika.channel() as ch:
        ch.basic_publish("", queue, b"x", mandatory=True)
    assert contents(everyday, queue) == [b"x"]
    assert fpika.stats().opened == 1, "a returned message does not cost the connection"


def test_an_interrupted_confirm_does_not_vouch_for_the_next_message(everyday: Node, queue: str) -> None:
    _app, fpika = make_app(everyday.params, {"pool_size": 1, "confirm_delivery": True})

    def interrupt() -> None:
        raise KeyboardInterrupt

    with fpika.channel() as ch:
        ch.connection.call_later(0, lambda: None)
        raw = ch.__dict__["_slot"].channel
        # A signal that arrives while the confirm is waited for.
        raw.connection._impl.ioloop.call_later(0, interrupt)
        with pytest.raises(KeyboardInterrupt):
            ch.basic_publish("", queue, b"in doubt")
    with pytest.raises(pika_errors.UnroutableError), fpika.channel() as ch:
        ch.basic_publish("", "no-such-queue", b"refused", mandatory=True)
    assert fpika.stats().opened == 2


def test_a_get_and_its_ack_cost_nothing(everyday: Node, queue: str) -> None:
    _app, fpika = make_app(everyday.params, {"pool_size": 1})
    for _ in range(3):
        with fpika.channel() as ch:
            ch.basic_publish("", queue, b"x")
            number = ch.channel_number
        with fpika.channel() as ch:
            wait_for(lambda ch=ch: ch.queue_declare(queue, passive=True).method.message_count, "it")  # type: ignore[misc]
            method, _, _ = ch.basic_get(queue)
            assert method is not None
            ch.basic_ack(method.delivery_tag)
            raw = ch.__dict__["_slot"].channel
        with fpika.channel() as ch:
            assert ch.__dict__["_slot"].channel is raw, "the same channel, not a new one"
            assert ch.channel_number == number
    assert contents(everyday, queue) == []


# Contexts and apps


def test_a_forgotten_channel_comes_home_with_the_app_context(
    everyday: Node, caplog: pytest.LogCaptureFixture
) -> None:
    app, fpika = make_app(everyday.params, {"pool_size": 1})
    kept = []

    @app.get("/forget")
    def forget() -> str:
        kept.append(fpika.channel())
        return "ok"

    client = app.test_client()
    for _ in range(3):
        with caplog.at_level(logging.WARNING, logger="flask_pika"):
            assert client.get("/forget").status_code == 200
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 3
    assert all("endpoint 'forget'" in line for line in lines)
    for ch in kept:
        with pytest.raises(ChannelReturned):
            ch.basic_publish("", "q", b"")
    assert fpika.stats().opened == 1


def test_a_view_that_raises_loses_no_channel(everyday: Node) -> None:
    app, fpika = make_app(everyday.params, {"pool_size": 1})

    @app.get("/fail")
    def fail() -> str:
        with fpika.channel():
            raise ZeroDivisionError

    for _ in range(5):
        assert app.test_client().get("/fail").status_code == 500
    assert (fpika.stats().opened, fpika.stats().in_use) == (1, 0)


@pytest.mark.parametrize("end", [leave_closed_by_404, leave_confirm_mode], ids=["404", "confirm mode"])
def test_a_connection_that_ended_is_not_lent_whatever_became_of_a_channel_on_it(
    everyday: Node, queue: str, both_ways: str, end: Callable[[Any, str], None]
) -> None:
    # Pika keeps a channel's end to be dealt with, and then returns before it has read anything.
    _app, fpika = make_app(everyday.params, {"pool_size": 1})
    with fpika.channel() as ch:
        end(ch, queue)
    with fpika.channel() as ch:
        sock = ch.__dict__["_slot"].channel.connection._impl._transport._sock
        assert fpika.stats().opened == 1
        sock.shutdown(socket.SHUT_RDWR)
    with fpika.channel() as ch:
        ch.queue_declare(queue, passive=True)
    assert fpika.stats().opened == 2


def test_a_long_app_context_remembers_only_what_is_lent(everyday: Node) -> None:
    from flask import g

    app, fpika = make_app(everyday.params, POOL)
    with app.app_context():
        for _ in range(100):
            with fpika.channel():
                pass
        assert not g.get("_flask_pika_FLASK_PIKA")


def test_dropped_channels_come_home_without_a_context(
    everyday: Node, caplog: pytest.LogCaptureFixture
) -> None:
    _app, fpika = make_app(everyday.params, {"pool_size": 1})
    for _ in range(3):
        fpika.channel().basic_publish("", "nowhere", b"x")
        gc.collect()
    with fpika.channel():
        pass
    assert fpika.stats().opened == 1
    assert "never returned" in caplog.text


def test_unpooled_dropped_channels_come_home_too(everyday: Node) -> None:
    # The keeper looks each second. With a heartbeat of 1, the broker would give up who stands still for two.
    _app, fpika = make_app({**everyday.params, "heartbeat": 4})
    fpika.channel().queue_declare("dropped", exclusive=True)
    gc.collect()
    wait_for(lambda: fpika.stats().open == 0, "the channel is closed by itself")


def test_consuming_from_a_channel_that_nobody_else_holds(everyday: Node, queue: str) -> None:
    _app, fpika = make_app(everyday.params, {"pool_size": 1})
    with fpika.channel() as ch:
        for number in range(3):
            ch.basic_publish("", queue, b"%d" % number)
    bodies = []
    for method, _, body in fpika.channel().consume(queue, auto_ack=True, inactivity_timeout=60):
        assert method is not None
        bodies.append(body)
        gc.collect()
        with pytest.raises(PoolTimeout):
            fpika.channel(timeout=0)
        if len(bodies) == 3:
            break
    assert bodies == [b"0", b"1", b"2"]
    gc.collect()
    with fpika.channel() as ch:
        assert ch.basic_get(queue)[0] is None


def test_a_callback_may_return_the_channel_that_it_was_given(everyday: Node, queue: str) -> None:
    _app, fpika = make_app(everyday.params, {"pool_size": 1})

    def on_message(channel: PooledChannel, method: Any, properties: Any, body: bytes) -> None:
        channel.queue_declare("of-the-callback", exclusive=True)
        channel.stop_consuming()
        fpika.return_channel(channel)
        assert not channel.is_open

    ch = fpika.channel()
    ch.basic_publish("", queue, b"x")
    ch.basic_consume(queue, on_message, auto_ack=True)  # type: ignore[arg-type]
    ch.start_consuming()
    with fpika.channel() as ch, pytest.raises(pika_errors.ChannelClosedByBroker, match="NOT_FOUND"):
        ch.queue_declare("of-the-callback", passive=True)


def test_a_message_that_comes_back_does_not_reach_the_next_borrower(everyday: Node) -> None:
    _app, fpika = make_app(everyday.params, {"pool_size": 1})
    came_back: list[bytes] = []
    for _ in range(5):
        with fpika.channel() as ch:
            ch.basic_publish("", "no-such-queue", b"mine", mandatory=True)
        with fpika.channel() as ch:
            ch.add_on_return_callback(lambda *args: came_back.append(args[-1]))
            ch.queue_declare("round-trip", exclusive=True)
            ch.connection.process_data_events()
    assert not came_back


def test_a_channel_whose_owner_and_another_thread_called_comes_home(everyday: Node) -> None:
    _app, fpika = make_app(everyday.params, {"pool_size": 1})
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for _ in range(5):
            ch = fpika.channel()
            connection = ch.connection
            called = 0

            def count() -> None:
                nonlocal called
                called += 1

            def call(connection: Any = connection, count: Any = count) -> None:
                for _ in range(300):
                    connection.add_callback_threadsafe(count)

            thread = threading.Thread(target=call)
            thread.start()
            while thread.is_alive() or called < 300:
                connection.process_data_events(0)
            thread.join()
            fpika.return_channel(ch)
            assert fpika.stats().in_use == 0
    finally:
        sys.setswitchinterval(before)


@pytest.mark.parametrize("params", [{"host": "localhost"}, {"host": "127.0.0.1"}])
def test_a_timeout_may_be_as_long_as_anybody_likes(everyday: Node, params: dict[str, object]) -> None:
    _app, fpika = make_app({**everyday.params, **params}, {"pool_size": 1, "pool_timeout": 1e10})
    with fpika.channel():
        pass


def test_one_app_needs_no_context_and_several_do(everyday: Node) -> None:
    fpika = FPika()
    with pytest.raises(SetupError, match="init_app"):
        fpika.channel()
    apps: list[Flask] = []
    for name in ("one", "two"):
        app = Flask(name)
        app.config["FLASK_PIKA_PARAMS"] = everyday.params
        app.config["FLASK_PIKA_POOL_PARAMS"] = {"pool_size": 1 + len(apps)}
        fpika.init_app(app)
        apps.append(app)
        if len(apps) == 1:
            with fpika.channel():
                pass
    with pytest.raises(RuntimeError, match=r"'one', 'two'.*app\.app_context\(\)"):
        fpika.channel()
    with apps[0].app_context():
        assert fpika.stats().size == 1
    with apps[1].app_context(), fpika.channel() as ch:
        assert fpika.stats().size == 2
        assert "two on " in " ".join(everyday.connections())
    fpika.return_channel(ch)  # knows where it belongs
    stranger = Flask("stranger")
    with stranger.app_context(), pytest.raises(SetupError, match="'stranger'"):
        fpika.channel()


def test_init_app_twice_is_an_error_and_changes_nothing(everyday: Node) -> None:
    app, fpika = make_app(everyday.params, POOL)
    with pytest.raises(RuntimeError, match="before"):
        fpika.init_app(app)
    with pytest.raises(RuntimeError, match="config_prefix"):
        FPika(app)
    with fpika.channel():
        pass


def test_an_object_does_not_borrow_from_anothers_pool_by_the_same_prefix(everyday: Node) -> None:
    app, fpika = make_app(everyday.params, POOL)
    other = FPika()
    with app.app_context():
        with pytest.raises(SetupError, match="another with the same prefix; call init_app"):
            other.channel()
        with fpika.channel():
            pass


def test_two_brokers_in_one_app(everyday: Node) -> None:
    app = Flask("two")
    app.config["FLASK_PIKA_PARAMS"] = everyday.params
    app.config["AUDIT_PIKA_PARAMS"] = everyday.url
    app.config["AUDIT_PIKA_POOL_PARAMS"] = {"pool_size": 3}
    fpika, audit = FPika(app), FPika(app, config_prefix="AUDIT_PIKA")
    assert (fpika.stats().size, audit.stats().size) == (0, 3)
    with app.app_context(), fpika.channel() as one, audit.channel() as other:
        assert (fpika.stats().in_use, audit.stats().in_use) == (1, 1)
        fpika.return_channel(other)  # by the wrong object: it goes home all the same
        assert audit.stats().in_use == 0
        assert one.is_open


def test_an_app_can_go_and_its_connections_go_with_it(everyday: Node) -> None:
    app, fpika = make_app(everyday.params, POOL, name="short-lived")
    with fpika.channel():
        pass
    gone = weakref.ref(app)
    del app
    gc.collect()
    assert gone() is None, "something keeps the app alive"
    wait_for(lambda: "short-lived" not in " ".join(everyday.connections()), "its connections are closed")
    with pytest.raises(SetupError, match="keep the app alive"):
        fpika.channel()


def test_close_closes_what_is_idle_and_refuses_checkouts(everyday: Node, both_ways: str) -> None:
    _app, fpika = make_app(everyday.params, POOL, name=f"closing-{both_ways}")
    held, idle = fpika.channel(), fpika.channel()
    fpika.return_channel(idle)
    fpika.close()
    fpika.close()
    with pytest.raises(PoolClosed):
        fpika.channel()
    assert held.queue_declare("still-usable", auto_delete=True)
    fpika.return_channel(held)
    assert fpika.stats().open == 0
    wait_for(lambda: f"closing-{both_ways}" not in " ".join(everyday.connections()), "all closed")


def test_a_dropped_connection_is_closed_and_tells_nobody_of_what_had_come(everyday: Node, queue: str) -> None:
    connection = pika.BlockingConnection(pika.URLParameters(everyday.url))
    channel: Any = connection.channel()
    for _ in range(100):
        channel.basic_publish("", queue, b"x" * 10_000)
    told: list[object] = []
    channel.basic_consume(queue, lambda *delivered: told.append(delivered))
    channel.queue_declare(queue, passive=True)  # answered behind some of them
    pika_internals.drop(connection)
    assert not connection.is_open
    assert not told


def test_raw_channels_are_not_taken(everyday: Node) -> None:
    connection = pika.BlockingConnection(pika.URLParameters(everyday.url))
    _app, fpika = make_app(everyday.params, POOL)
    raw = connection.channel()
    with pytest.raises(TypeError, match="BlockingChannel"):
        fpika.return_channel(raw)  # type: ignore[arg-type]
    assert raw.is_open
    connection.close()
