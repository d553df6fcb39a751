"""The embedded broker itself: its life, a look inside, faults on demand, and peers that behave badly.

What it does with AMQP is in ``tests/contract``.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import random
import socket
import struct
import subprocess
import sys
import threading
import types
from collections.abc import Iterator
from typing import Any

import pika
import pytest
from flask import Flask
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pika import exceptions as pika_errors
from pika import frame, spec

from flask_pika import (
    BrokerBlocked,
    BrokerUnavailable,
    ConfigError,
    Message,
    Nacked,
    Pika,
    PublishTimeout,
    PublishUnknown,
)
from flask_pika.broker import Broker, BrokerError, shared_broker, stop_shared_brokers
from flask_pika.broker.outgoing import Outgoing
from flask_pika.broker.server import Server
from tests.conftest import make_app, wait_for
from tests.contract.helpers import Peer
from tests.contract.raw import HEADER, Wire
from tools.rabbitmq_node import free_port


@pytest.fixture
def broker() -> Iterator[Broker]:
    with Broker() as started:
        yield started


@contextlib.contextmanager
def raw(broker: Broker, **options: Any) -> Iterator[Any]:
    """A channel of pika's own."""
    parameters = pika.URLParameters(broker.url)
    for name, value in options.items():
        setattr(parameters, name, value)
    connection = pika.BlockingConnection(parameters)
    try:
        yield connection.channel()
    finally:
        with contextlib.suppress(pika_errors.AMQPError):
            connection.close()


_apps: list[Flask] = []


@pytest.fixture(autouse=True)
def _keep_apps() -> Iterator[None]:
    yield
    _apps.clear()


def publishing(broker: Broker, **publisher: Any) -> Pika:
    app = Flask("shop")
    app.config["FLASK_PIKA_PARAMS"] = {"host": "127.0.0.1", "port": broker.port, "stack_timeout": 60}
    app.config["FLASK_PIKA_PUBLISHER_PARAMS"] = {"timeout": 30, **publisher}
    fpika = Pika(app)
    _apps.append(app)
    return fpika


def publish_until_blocked(fpika: Pika, body: bytes, **about: Any) -> None:
    """One message after the other, each when the last one is confirmed, until the broker takes no more."""
    futures = [fpika.submit(body, **about)]

    def is_blocked() -> bool:
        if futures[-1].done():
            futures[-1].result()
            futures.append(fpika.submit(body, **about))
        return fpika.stats().publisher.state == "blocked"

    wait_for(is_blocked, "the broker blocks")


# Its life


def test_who_comes_as_it_begins_to_refuse_is_not_left_open() -> None:
    # Not one that the system may give to a client, which would connect to itself.
    with Broker(port=free_port()) as broker:
        for _ in range(50):
            over = threading.Event()
            clients: list[socket.socket] = []

            def come() -> None:
                while not over.is_set() and len(clients) < 50:  # noqa: B023
                    with contextlib.suppress(OSError):
                        clients.append(socket.create_connection(("127.0.0.1", broker.port), 10))  # noqa: B023

            coming = threading.Thread(target=come)
            coming.start()
            broker.refuse()
            broker.accept()
            over.set()
            coming.join()
            for client in clients:
                client.close()
            gc.collect()  # what is left open warns, which is an error


def test_it_is_there_in_its_block_and_gone_after_it() -> None:
    with Broker() as broker:
        with raw(broker) as ch:
            assert ch.is_open
        assert broker.url == f"amqp://guest:guest@127.0.0.1:{broker.port}/%2F"
        assert repr(broker) == f"<Broker on 127.0.0.1 port {broker.port}>"
        with pytest.raises(BrokerError, match="started already"):
            broker.start()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", broker.port), 5)
    assert repr(broker) == "<Broker stopped>"
    with pytest.raises(BrokerError, match="does not run"):
        _ = broker.connections
    broker.stop()  # again


def test_a_port_that_is_taken_is_said_so(broker: Broker) -> None:
    with pytest.raises(BrokerError, match=f"cannot listen on 127.0.0.1 port {broker.port}: Address already"):
        Broker(port=broker.port).start()


def test_a_stop_hangs_up_on_everybody_at_once() -> None:
    with Broker() as broker:
        connection = pika.BlockingConnection(pika.URLParameters(broker.url))
        channel = connection.channel()
        channel.queue_declare("q", arguments={"x-expires": 10_000_000})
    with pytest.raises(pika_errors.AMQPConnectionError):
        channel.queue_declare("q")


def test_it_listens_on_loopback_alone_unless_told_otherwise(broker: Broker) -> None:
    assert broker.host == "127.0.0.1"
    with Broker("::1") as other:
        assert other.url == f"amqp://guest:guest@[::1]:{other.port}/%2F"
        with raw(other) as ch:
            assert ch.is_open


def test_its_users_and_virtual_hosts_are_those_it_was_told() -> None:
    with Broker(users={"me": "s/cret"}, virtual_hosts=["shop"], heartbeat=7) as broker:
        assert broker.url == f"amqp://me:s%2Fcret@127.0.0.1:{broker.port}/shop"
        with raw(broker) as ch:
            ch.queue_declare("q")
            assert ch.connection._impl.params.heartbeat == 7
        assert list(broker.queues) == ["q"]
        with pytest.raises(pika_errors.ProbableAuthenticationError):
            pika.BlockingConnection(pika.ConnectionParameters("127.0.0.1", broker.port))


def test_a_queue_can_be_looked_into(broker: Broker) -> None:
    with raw(broker) as ch:
        ch.queue_declare("orders")
        ch.basic_publish("", "orders", b'{"id": 1}', pika.BasicProperties(headers={"tenant": "a"}))
        ch.basic_publish("", "orders", b"text")
        orders = broker.queues["orders"]
        first, second = orders.wait_for(2)
        assert (first.json, first.headers, first.routing_key, first.exchange) == (
            {"id": 1},
            {"tenant": "a"},
            "orders",
            "",
        )
        assert (second.text, second.headers, second.redelivered) == ("text", {}, False)
        method, _, _ = ch.basic_get("orders")
        assert [message.body for message in orders.messages] == [b"text"]
        assert [message.body for message in orders.unacked] == [b'{"id": 1}']
        ch.basic_nack(method.delivery_tag)
        assert orders.wait_for(lambda messages: len(messages) == 2)[0].redelivered
        ch.basic_consume("orders", lambda *_: None)
        assert orders.consumers == 1
        assert "amq.topic" in broker.exchanges
        assert len(broker.connections) == 1
        with pytest.raises(TimeoutError, match="'orders' did not come to that in 0 s: it has 0 messages"):
            orders.wait_for(1, timeout=0)
        ch.queue_delete("orders")
        with pytest.raises(KeyError):
            _ = orders.messages
    with pytest.raises(KeyError):
        _ = broker.queues["orders"]
    assert len(broker.queues) == 0


def test_dead_letters_that_stay_with_their_queue_can_be_looked_into() -> None:
    told: list[str] = []
    with Broker(dead_letter_retry=0.05, memory=1000, event=told.append) as broker, raw(broker) as ch:
        arguments = {
            "x-queue-type": "quorum",
            "x-overflow": "reject-publish",
            "x-dead-letter-strategy": "at-least-once",
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": "end",
            "x-message-ttl": 1,
        }
        ch.queue_declare("q", durable=True, arguments=arguments)
        ch.basic_publish("", "q", b"x" * 1234)
        wait_for(lambda: broker.queues["q"].dead_letters, "it is dead")
        assert broker.queues["q"].messages == []
        (kept,) = broker.queues["q"].dead_letters
        assert (kept.body, kept.routing_key, kept.headers) == (b"x" * 1234, "q", {})
        wait_for(lambda: any("more than the 1,000" in line for line in told), "it takes memory")
        ch.queue_declare("end")
        assert broker.queues["end"].wait_for(1)[0].headers["x-death"][0]["queue"] == "q"
        assert broker.queues["q"].dead_letters == []
    text = "1,234 bytes stay with 'q': nowhere to go; tried again in 0.05 s"
    assert told.count(text) == 1


def test_a_chain_of_queues_that_keep_their_dead_letters_is_as_long_as_one_likes(broker: Broker) -> None:
    kept = {
        "x-queue-type": "quorum",
        "x-overflow": "reject-publish",
        "x-dead-letter-strategy": "at-least-once",
        "x-dead-letter-exchange": "",
        "x-message-ttl": 0,
    }
    with raw(broker) as ch:
        for number in range(300):
            key = {"x-dead-letter-routing-key": str(number + 1)}
            ch.queue_declare(str(number), durable=True, arguments={**kept, **key})
        ch.queue_declare("300")
        ch.basic_publish("", "0", b"x")
        (came,) = broker.queues["300"].wait_for(1)
        assert len(came.headers["x-death"]) == 300


@pytest.mark.parametrize("seconds", [0, -1.0, float("nan")])
def test_dead_letters_are_not_tried_again_at_no_time(seconds: float) -> None:
    with pytest.raises(BrokerError, match="expected seconds, more than 0"):
        Broker(dead_letter_retry=seconds)


def test_events_are_told_in_words_and_a_listener_that_fails_harms_nobody() -> None:
    told: list[str] = []
    with Broker(event=told.append) as broker, raw(broker) as ch:
        ch.queue_declare("q")
        ch.basic_publish("", "q", b"x" * 1234)
        ch.queue_delete("q")
    assert told[0].endswith("opened, as 'guest'")
    assert told[1:4] == [
        "queue 'q' declared",
        "1,234 bytes to exchange '' with key 'q': to 'q'",
        "queue 'q' deleted",
    ]

    def fail(_event: str) -> None:
        raise BrokenPipeError

    with Broker(event=fail) as broker, raw(broker) as ch:
        assert ch.queue_declare("q").method.queue == "q"


# embedded://


@pytest.fixture
def _shared() -> Iterator[None]:
    yield
    stop_shared_brokers()


@pytest.mark.usefixtures("_shared")
def test_an_embedded_url_starts_one_broker_for_each_name(caplog: pytest.LogCaptureFixture) -> None:
    apps = [make_app(url, {"pool_size": 1}) for url in ("embedded://", "embedded://", "embedded://other")]
    with caplog.at_level(logging.WARNING, logger="flask_pika"):
        for app, fpika in apps:
            with app.app_context(), fpika.channel() as ch:
                ch.queue_declare("q")
                fpika.publish(b"x", routing_key="q")
    assert len(shared_broker("").queues["q"].messages) == 2
    assert len(shared_broker("other").queues["q"].messages) == 1
    lines = [record.getMessage() for record in caplog.records if record.name == "flask_pika.broker"]
    assert len(lines) == 2
    assert all("nothing is kept on disk" in line for line in lines)
    assert "embedded://other" in repr(apps[2][1])


@pytest.mark.usefixtures("_shared")
def test_threads_that_need_it_at_once_get_the_same_one() -> None:
    found: list[Broker] = []
    start = threading.Barrier(8)

    def work() -> None:
        start.wait()
        found.append(shared_broker("same"))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(found) == 8
    assert len(set(found)) == 1


@pytest.mark.parametrize("url", ["embedded://a/b", "embedded://user:s3cret@host", "embedded://a?x=1"])
def test_an_embedded_url_with_more_than_a_name_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="FLASK_PIKA_PARAMS is an embedded://") as caught:
        make_app(url)
    assert "s3cret" not in str(caught.value)


FORK = """
import os, sys
from flask import Flask
from flask_pika import Pika
from flask_pika.broker import shared_broker

app = Flask("forking")
app.config["FLASK_PIKA_PARAMS"] = "embedded://"
app.config["FLASK_PIKA_POOL_PARAMS"] = {"pool_size": 1}
fpika = Pika(app)
with fpika.channel() as ch:
    ch.queue_declare("q")
fpika.publish(b"parent", routing_key="q")
children = []
for _ in range(3):
    pid = os.fork()
    if not pid:
        fpika.publish(b"child", routing_key="q")
        with fpika.channel() as ch:
            assert ch.queue_declare("q", passive=True).method.message_count >= 1
        sys.exit(0)
    children.append(pid)
assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0, 0]
fpika.publish(b"parent", routing_key="q")
print(sorted(message.text for message in shared_broker("").queues["q"].messages))
"""


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", *arguments, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_forked_children_use_their_parents_broker() -> None:
    # Python 3.12 and newer warn of any fork with threads.
    done = run_python(FORK, "-W", "ignore::DeprecationWarning")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "['child', 'child', 'child', 'parent', 'parent']\n"


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_child_keeps_no_copy_of_the_listening_socket(broker: Broker) -> None:
    with raw(broker):
        (ready, say_ready), (looked, say_looked) = os.pipe(), os.pipe()
        pid = os.fork()
        if not pid:  # pragma: no cover
            os.close(say_looked)
            os.write(say_ready, b"x")
            os.read(looked, 1)  # until the parent has looked
            os._exit(0)
        os.close(looked)
        try:
            os.read(ready, 1)
            broker.stop()
            with pytest.raises(OSError, match="refused"):
                socket.create_connection(("127.0.0.1", broker.port), 5)
        finally:
            os.close(say_looked)
            os.waitpid(pid, 0)
            os.close(ready)
            os.close(say_ready)


GEVENT = """
from gevent import monkey
monkey.patch_all()
import gevent
from flask import Flask
from flask_pika import Pika
from flask_pika.broker import shared_broker

app = Flask("green")
app.config["FLASK_PIKA_PARAMS"] = "embedded://"
fpika = Pika(app)
with fpika.channel() as ch:
    ch.queue_declare("q")
jobs = [gevent.spawn(fpika.publish, b"x", routing_key="q") for _ in range(20)]
gevent.joinall(jobs, raise_error=True)
print(len(shared_broker("").queues["q"].messages))
"""


def test_it_works_under_gevents_monkey_patching() -> None:
    done = run_python(GEVENT, "-W", "ignore::DeprecationWarning")
    assert (done.returncode, done.stdout) == (0, "20\n"), done.stderr


def test_the_command_runs_it_until_it_is_told_to_end() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "flask", "pika", "broker", "--port=0"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        assert process.stdout is not None
        first = process.stdout.readline()
        assert "Nothing is kept on disk" in first
        url = first.split("listens on ")[1].split(". ")[0]
        with pika.BlockingConnection(pika.URLParameters(url)) as connection:
            connection.channel().queue_declare("q")
        assert process.stdout.readline().endswith("opened, as 'guest'\n")
        assert process.stdout.readline().endswith("queue 'q' declared\n")
    finally:
        process.terminate()
        rest, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert rest.endswith("The embedded broker has ended; what it had is gone.\n")


# Faults on demand


def test_dropped_connections_are_made_again_and_nothing_is_lost(broker: Broker) -> None:
    fpika = publishing(broker)
    with raw(broker) as ch:
        ch.queue_declare("q", durable=True)
    stopped = threading.Event()
    sent: list[str] = []

    def work() -> None:
        while not stopped.is_set():
            sent.append(fpika.publish(b"x", routing_key="q"))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(5):
        more = len(sent) + 50
        wait_for(lambda more=more: len(sent) > more, "messages are confirmed")  # type: ignore[misc]
        broker.drop_connections()
    stopped.set()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    there = {message.properties.message_id for message in broker.queues["q"].messages}
    assert set(sent) <= there
    assert fpika.stats().publisher.reconnects >= 1
    fpika.close()


def test_connections_closed_by_an_operator_say_so(broker: Broker) -> None:
    with raw(broker) as ch:
        broker.close_connections()
        with pytest.raises(pika_errors.ConnectionClosedByBroker) as caught:
            ch.queue_declare("q")
    assert (caught.value.reply_code, caught.value.reply_text) == (
        320,
        "CONNECTION_FORCED - broker forced connection closure",
    )


def test_who_connects_is_refused_until_it_accepts_again(broker: Broker) -> None:
    _app, fpika = make_app({"host": "127.0.0.1", "port": broker.port}, {"pool_size": 1})
    broker.refuse()
    broker.refuse()
    with pytest.raises(BrokerUnavailable, match="refused"):
        fpika.channel(timeout=5)
    broker.accept()
    broker.accept()
    with fpika.channel(timeout=30) as ch:
        assert ch.is_open


def test_a_frozen_broker_answers_nothing_and_closes_nothing(broker: Broker) -> None:
    fpika = publishing(broker)
    with raw(broker) as ch:
        ch.queue_declare("q")
    fpika.publish(b"before", routing_key="q")
    broker.freeze()
    future = fpika.submit(b"frozen", routing_key="q", timeout=60)

    def is_sent() -> bool:
        with pytest.raises((PublishTimeout, BrokerUnavailable)) as caught:
            fpika.publish(b"", mandatory=False, timeout=0.2)
        return caught.type is PublishTimeout  # not before the link's thread has had its turn

    wait_for(is_sent, "a message that is on its way, and not confirmed")
    with socket.create_connection((broker.host, broker.port), 30) as fresh:  # the system takes it
        fresh.sendall(HEADER)
        fresh.settimeout(0.1)
        with pytest.raises(TimeoutError):
            fresh.recv(1)
        broker.thaw()
        fresh.settimeout(30)
        assert fresh.recv(1) == b"\x01"
    assert future.result(60)
    assert fpika.stats().publisher.reconnects == 0
    fpika.close()


def test_a_blocked_broker_tells_who_publishes_and_listens_to_the_others(broker: Broker) -> None:
    fpika = publishing(broker)
    fpika.publish(b"", mandatory=False)
    broker.block()
    fpika.submit(b"", mandatory=False)  # the one that meets the alarm is on the wire
    wait_for(lambda: fpika.stats().publisher.state == "blocked", "the broker blocks")
    with pytest.raises(BrokerBlocked):
        fpika.publish(b"", mandatory=False, timeout=0.2)
    with raw(broker) as ch:
        assert ch.queue_declare("q").method.queue == "q"
    broker.unblock()
    fpika.publish(b"", mandatory=False)
    fpika.close()


def test_messages_beyond_the_memory_make_publishers_wait_until_there_is_room() -> None:
    with Broker(memory=100_000) as broker, raw(broker) as reader:
        reader.queue_declare("q")
        fpika = publishing(broker)
        publish_until_blocked(fpika, b"x" * 10_000, routing_key="q")
        with pytest.raises(BrokerBlocked):
            fpika.publish(b"x", routing_key="q", timeout=0.2)
        assert len(broker.queues["q"].messages) >= 10
        reader.queue_purge("q")
        fpika.publish(b"x", routing_key="q")
        fpika.close()


def test_the_next_messages_are_nacked_and_no_others(broker: Broker) -> None:
    fpika = publishing(broker)
    broker.nack_next(2)
    for _ in range(2):
        with pytest.raises(Nacked):
            fpika.publish(b"", mandatory=False, retry=False)
    fpika.publish(b"", mandatory=False, retry=False)
    broker.nack_next()  # of two, the second one is believed when it comes a second later
    fpika.publish(b"", routing_key="other", mandatory=False)  # a nack for a moment is tried again
    stats = fpika.stats().publisher
    assert (stats.nacked, stats.retried, stats.confirmed) == (2, 1, 2)
    fpika.close()


def test_a_delay_puts_off_every_answer_and_keeps_their_order(broker: Broker) -> None:
    with raw(broker) as ch:
        ch.queue_declare("q")
        broker.delay(0.05)
        for number in range(3):
            ch.basic_publish("", "q", b"%d" % number)
        inbox: list[bytes] = []
        ch.basic_consume("q", lambda _ch, _method, _properties, body: inbox.append(body), auto_ack=True)
        broker.delay(0)
        ch.queue_declare("q", passive=True)
        ch.connection.process_data_events(0)
        assert inbox == [b"0", b"1", b"2"]


def test_closed_channels_are_opened_anew(broker: Broker, caplog: pytest.LogCaptureFixture) -> None:
    fpika = publishing(broker)
    fpika.publish(b"", mandatory=False)
    with raw(broker) as ch:
        broker.close_channel(406, "as you wish", number=1)
        with pytest.raises(pika_errors.ChannelClosedByBroker, match="PRECONDITION_FAILED - as you wish"):
            ch.queue_declare("q")
    # What is alone on a channel when its end is read is taken for the cause of it.
    wait_for(lambda: "the broker closed a channel of the publisher" in caplog.text, "the publisher knows")
    fpika.publish(b"", mandatory=False)
    assert fpika.stats().publisher.reconnects == 0
    fpika.close()


@pytest.mark.parametrize(
    "how", [{}, {"backwards": True}, {"shuffled": True}, {"together": True}], ids=lambda how: "".join(how)
)
def test_confirms_in_any_order_and_grouping_settle_what_they_name(
    broker: Broker, how: dict[str, bool], both_ways: str
) -> None:
    fpika = publishing(broker)
    with raw(broker) as ch:
        ch.queue_declare("q")
    fpika.publish(b"", mandatory=False)
    broker.hold_confirms()
    futures = [fpika.submit(b"%d" % number, routing_key="q") for number in range(100)]
    broker.queues["q"].wait_for(100)
    assert not any(future.done() for future in futures)
    broker.release_confirms(**how)
    assert len({future.result(30) for future in futures}) == 100
    fpika.publish(b"", mandatory=False)
    fpika.close()


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({}, [(1, False), (2, False), (3, False)]),
        ({"backwards": True}, [(3, False), (2, False), (1, False)]),
        ({"together": True}, [(3, True)]),
    ],
    ids=["one by one", "backwards", "together"],
)
def test_confirms_are_released_as_they_were_asked_for(
    broker: Broker, how: dict[str, bool], told: list[tuple[int, bool]]
) -> None:
    wire = Wire(Peer("embedded", broker.host, broker.port)).login().open_channel(1)
    wire.send(spec.Confirm.Select()).expect(spec.Confirm.SelectOk)
    broker.hold_confirms()
    for _ in range(3):
        wire.publish("", "nowhere")
    wire.check()
    broker.release_confirms(**how)
    acks = [wire.expect(spec.Basic.Ack) for _ in told]
    assert [(ack.delivery_tag, ack.multiple) for ack in acks] == told
    wire.hang_up()


def test_without_retry_what_a_drop_leaves_unconfirmed_is_unknown(broker: Broker) -> None:
    fpika = publishing(broker)
    fpika.publish(b"", mandatory=False)
    with raw(broker) as ch:
        ch.queue_declare("q")
    broker.hold_confirms()
    future = fpika.submit(b"", routing_key="q", retry=False)
    broker.queues["q"].wait_for(1)
    broker.drop_connections()
    with pytest.raises(PublishUnknown):
        future.result(30)
    broker.release_confirms()
    fpika.close()


# Peers that behave badly


def test_a_message_of_a_hundred_megabytes_arrives_whole(broker: Broker) -> None:
    body = os.urandom(1 << 20) * 100
    with raw(broker) as ch, raw(broker) as other:
        ch.queue_declare("q")
        ch.confirm_delivery()
        ch.basic_publish("", "q", body)
        assert other.queue_declare("q", passive=True).method.message_count == 1
        assert ch.basic_get("q", auto_ack=True)[2] == body


def test_thousands_of_channels_live_side_by_side(broker: Broker) -> None:
    wires = [Wire(Peer("embedded", broker.host, broker.port)).login() for _ in range(2)]
    for wire in wires:
        for number in range(1, 1500):
            wire.send(spec.Channel.Open(), number)
        for number in range(1, 1500):
            wire.expect(spec.Channel.OpenOk, number)
    for wire in wires:
        wire.check(1499).hang_up()
    wait_for(lambda: not broker.connections, "they are gone")


def test_who_does_not_read_is_sent_no_more_than_it_can_take(broker: Broker) -> None:
    with raw(broker) as ch:
        ch.queue_declare("q")
        ch.confirm_delivery()
        for _ in range(300):  # thirty megabytes
            ch.basic_publish("", "q", b"x" * 100_000)
        slow = Wire(Peer("embedded", broker.host, broker.port)).login().open_channel(1)
        slow.send(spec.Basic.Consume(queue="q", no_ack=True)).expect(spec.Basic.ConsumeOk)
        for _ in range(30):
            ch.basic_publish("", "q", b"x" * 100_000)
        assert len(broker.queues["q"].messages) > 100, "what it cannot take stays in the queue"
        assert slow.read() is not None
        assert ch.queue_declare("q", passive=True).method.message_count >= 0, "the others go on"
        slow.hang_up()
    wait_for(lambda: not broker.connections, "they are gone")


def test_who_reads_again_gets_the_rest(broker: Broker) -> None:
    with raw(broker) as ch:
        ch.queue_declare("q")
        ch.confirm_delivery()
        for number in range(100):
            ch.basic_publish("", "q", b"%d" % number + b" " * 100_000)
        slow = Wire(Peer("embedded", broker.host, broker.port)).login().open_channel(1)
        slow.send(spec.Basic.Consume(queue="q", no_ack=True)).expect(spec.Basic.ConsumeOk)
        bodies = [slow.expect_content(spec.Basic.Deliver)[2] for _ in range(100)]
        assert [int(body) for body in bodies] == list(range(100))
        slow.hang_up()


def test_who_is_sent_much_may_still_publish(broker: Broker) -> None:
    with raw(broker) as ch:
        ch.queue_declare("q")
        ch.queue_declare("other")
        ch.confirm_delivery()
        for _ in range(200):
            ch.basic_publish("", "q", b"x" * 100_000)
        deaf = Wire(Peer("embedded", broker.host, broker.port)).login().open_channel(1)
        deaf.send(spec.Basic.Consume(queue="q", no_ack=True)).expect(spec.Basic.ConsumeOk)
        for _ in range(100):  # and it reads nothing meanwhile
            deaf.publish("", "other", b"x" * 100_000)
        broker.queues["other"].wait_for(100)
        deaf.hang_up()


@pytest.mark.parametrize("kept", ["unacked", "headers"])
def test_what_counts_as_memory_is_all_that_is_kept(kept: str) -> None:
    with Broker(memory=1_000_000) as broker, raw(broker) as ch:
        ch.queue_declare("q")
        if kept == "unacked":
            ch.basic_consume("q", lambda *_: None)
        done = threading.Event()

        def read() -> None:
            while not done.is_set():
                ch.connection.process_data_events(0.05)

        reader = threading.Thread(target=read)
        reader.start()
        fpika = publishing(broker)
        headers = {"h": "x" * 50_000} if kept == "headers" else {}
        body = b"" if kept == "headers" else b"x" * 50_000
        publish_until_blocked(fpika, body, routing_key="q", headers=headers)
        done.set()
        reader.join(30)
        ch.connection.close()
        with raw(broker) as other:
            other.queue_purge("q")
        fpika.publish(b"", mandatory=False)
        fpika.close()


def test_a_chain_of_auto_delete_exchanges_goes_as_a_whole(broker: Broker) -> None:
    with raw(broker) as ch:
        ch.queue_declare("end")
        for number in range(600):
            ch.exchange_declare(f"e{number}", "fanout", auto_delete=True)
            if number:
                ch.exchange_bind(f"e{number}", f"e{number - 1}")
        ch.queue_bind("end", "e599")
        ch.queue_delete("end")
        assert not [name for name in broker.exchanges if name.startswith("e")]


def test_a_topic_of_many_wildcards_takes_no_longer_than_others(broker: Broker) -> None:
    # Tried one way after the other, this takes minutes; nothing else is answered meanwhile.
    with raw(broker) as ch:
        ch.queue_declare("q")
        ch.queue_bind("q", "amq.topic", "#.a" + ".#.a" * 9 + ".#.b")
        ch.confirm_delivery()
        ch.basic_publish("amq.topic", ".".join("a" * 100), b"")
        assert broker.queues["q"].messages == []
        ch.basic_publish("amq.topic", ".".join("a" * 100 + "b"), b"")
        assert len(broker.queues["q"].messages) == 1


def test_messages_given_back_one_by_one_stand_where_they_stood(broker: Broker) -> None:
    with raw(broker) as ch:
        ch.queue_declare("q")
        for number in range(2000):
            ch.basic_publish("", "q", b"%d" % number)
        tags = [ch.basic_get("q")[0].delivery_tag for _ in range(1000)]
        for tag in [*tags[500:], *reversed(tags[:500])]:
            ch.basic_nack(tag)
        messages = broker.queues["q"].wait_for(2000)
        assert [int(message.body) for message in messages] == list(range(2000))
        assert [message.redelivered for message in messages] == [True] * 1000 + [False] * 1000


def test_a_death_that_a_client_made_up_harms_nothing(broker: Broker) -> None:
    with raw(broker) as ch:
        ch.queue_declare("dead")
        dead = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead", "x-message-ttl": 1}
        ch.queue_declare("q", arguments=dead)
        for count in ("many", 2**63 - 1, None):
            made_up = [{"queue": "q", "reason": "expired", "count": count}]
            ch.basic_publish("", "q", b"x", pika.BasicProperties(headers={"x-death": made_up}))
        assert len(broker.queues["dead"].wait_for(3)) == 3


def test_a_stream_forgets_the_consumers_of_a_channel_that_ends(broker: Broker) -> None:
    with raw(broker) as ch:
        ch.queue_declare("s", durable=True, arguments={"x-queue-type": "stream"})
        ch.basic_qos(prefetch_count=1)
        ch.basic_consume("s", lambda *_: None)
        known: Any = broker._look(lambda vhost: vhost.queues["s"])
        assert len(known._next) == 1
        broker.drop_connections()  # as pika says goodbye, it cancels first
        wait_for(lambda: not broker.connections, "the broker let the connection go")
    assert not known._next


def test_what_is_delayed_keeps_its_order_when_it_is_due_during_a_freeze() -> None:
    written: list[bytes] = []

    async def scenario() -> None:
        server: Any = types.SimpleNamespace(loop=asyncio.get_running_loop(), delay=0.01)
        outgoing = Outgoing(server, lambda: None, lambda: None)
        transport: Any = types.SimpleNamespace(
            write=written.append, is_closing=lambda: False, get_write_buffer_size=lambda: 0
        )
        outgoing.transport = transport
        for piece in (b"1", b"2"):
            outgoing.add(piece)
            outgoing.flush()
        outgoing.frozen = True
        await asyncio.sleep(0.05)
        outgoing.add(b"3")
        outgoing.frozen = False
        outgoing.flush()
        await asyncio.sleep(0.05)
        assert outgoing.size == 0

    asyncio.run(scenario())
    assert b"".join(written) == b"123"


def test_client_properties_of_any_kind_are_taken(broker: Broker) -> None:
    wire = Wire(Peer("embedded", broker.host, broker.port))
    wire.greet()
    properties = {"capabilities": "all", "connection_name": "a\x1b[31m\nb"}
    wire.send(spec.Connection.StartOk(properties, "PLAIN", "\0guest\0guest", "en_US"), 0)
    wire.expect(spec.Connection.Tune, 0)
    assert broker.connections[0].endswith("(a?[31m?b)")
    wire.hang_up()


def test_who_watches_is_told_of_each_message_in_and_out() -> None:
    told: list[str] = []
    with Broker(event=told.append) as broker, raw(broker) as ch:
        ch.queue_declare("q", arguments={"x-max-length": 1})
        ch.basic_publish("", "q", b"1")
        ch.basic_publish("", "q", b"22")
        ch.basic_ack(ch.basic_get("q")[0].delivery_tag)
        ch.basic_cancel(ch.basic_consume("q", lambda *_: None))
        ch.queue_purge("q")
    text = "\n".join(told)
    for said in (
        "1 byte in 'q' is maxlen: dropped",
        "gets 2 bytes from 'q', delivery 1",
        "has acked 1 delivery",
        "consumes from 'q' as ",
        "consumes no more as ",
        "'q' is purged of 0 messages",
    ):
        assert said in text


def test_an_event_may_look_into_the_broker() -> None:
    seen: list[int] = []
    watched = Broker(event=lambda _event: seen.append(len(watched.queues)))
    with watched, raw(watched) as ch:
        ch.queue_declare("q")
    assert 1 in seen


def test_what_is_wrong_is_said_at_once(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    with raw(broker), pytest.raises(ValueError, match="999 is no reply code"):
        broker.close_channel(999)
    with pytest.raises(BrokerError, match=r"cannot listen on no\.such\.host\.invalid"):
        Broker("no.such.host.invalid").start()
    with pytest.raises(BrokerError, match="port 70000"):
        Broker(port=70_000).start()
    with pytest.raises(BrokerError, match="virtual_hosts"):
        Broker(virtual_hosts="shop")

    def fail(*_args: object, **_kwargs: object) -> None:
        raise RuntimeError("as it begins")

    monkeypatch.setattr("flask_pika.broker.embedded.Server", fail)
    with pytest.raises(BrokerError, match="as it begins"):
        Broker().start()


def test_a_virtual_host_that_it_was_not_told_of_is_not_there() -> None:
    with (
        Broker(virtual_hosts=["shop"]) as broker,
        pytest.raises(pika_errors.AMQPConnectionError, match="vhost / not found"),
    ):
        pika.BlockingConnection(pika.ConnectionParameters("127.0.0.1", broker.port))


def test_a_frozen_broker_stays_frozen_whatever_else_is_done(broker: Broker) -> None:
    broker.refuse()
    broker.freeze()
    broker.accept()
    with socket.create_connection((broker.host, broker.port), 30) as fresh:
        fresh.sendall(HEADER)
        fresh.settimeout(0.1)
        with pytest.raises(TimeoutError):
            fresh.recv(1)
        broker.thaw()
        fresh.settimeout(30)
        assert fresh.recv(1) == b"\x01"


def test_what_a_vanished_client_had_comes_back(broker: Broker) -> None:
    with raw(broker) as ch:
        ch.queue_declare("q")
        ch.basic_publish("", "q", b"x")
        lost = Wire(Peer("embedded", broker.host, broker.port)).login().open_channel(1)
        lost.send(spec.Basic.Get(queue="q")).expect_content(spec.Basic.GetOk)
        lost.hang_up()
        assert broker.queues["q"].wait_for(1)[0].redelivered


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(512),
        random.Random(1).randbytes(4096),
        HEADER + b"\x01\x00\x00\xff\xff\xff\xff" + bytes(100),  # a frame of four gigabytes
        HEADER + random.Random(2).randbytes(4096),
    ],
    ids=["http", "tls", "random", "four-gigabytes", "random-frames"],
)
def test_garbage_on_the_port_is_hung_up_on(broker: Broker, garbage: bytes) -> None:
    with raw(broker) as ch, socket.create_connection((broker.host, broker.port), 30) as peer:
        with contextlib.suppress(OSError):
            peer.sendall(garbage)
            while peer.recv(4096):
                pass
        assert ch.queue_declare("q").method.queue == "q"


METHODS = sorted(spec.methods)
FRAMES = st.one_of(
    st.builds(
        lambda kind, channel, payload: struct.pack(">BHI", kind, channel, len(payload)) + payload + b"\xce",
        st.sampled_from([1, 2, 3, 8, 9]),
        st.integers(0, 3),
        st.one_of(
            st.binary(max_size=64),
            st.builds(
                lambda index, arguments: struct.pack(">I", index) + arguments,
                st.sampled_from(METHODS),
                st.binary(max_size=40),
            ),
        ),
    ),
    st.builds(
        lambda channel, method: frame.Method(channel, method).marshal(),
        st.integers(1, 3),
        st.sampled_from(
            [
                spec.Channel.Open(),
                spec.Channel.Close(200, "", 0, 0),
                spec.Channel.CloseOk(),
                spec.Queue.Declare(queue="fuzz", auto_delete=True),
                spec.Queue.Bind(queue="fuzz", exchange="amq.topic", routing_key="#"),
                spec.Basic.Publish(exchange="amq.topic", routing_key="a"),
                spec.Basic.Consume(queue="fuzz", consumer_tag="c"),
                spec.Basic.Get(queue="fuzz"),
                spec.Basic.Ack(1, True),
                spec.Basic.Nack(0, True, True),
                spec.Basic.Recover(True),
                spec.Tx.Select(),
                spec.Tx.Rollback(),
                spec.Confirm.Select(),
            ]
        ),
    ),
    st.builds(
        lambda channel, body: (
            frame.Header(channel, len(body), spec.BasicProperties()).marshal()
            + (frame.Body(channel, body).marshal() if body else b"")
        ),
        st.integers(1, 3),
        st.binary(max_size=20),
    ),
    st.binary(max_size=30),
    st.builds(
        lambda headers: (
            frame.Method(1, spec.Basic.Publish(exchange="amq.headers", routing_key="fuzz")).marshal()
            + frame.Header(1, 0, spec.BasicProperties(headers=headers, expiration="0")).marshal()
        ),
        st.dictionaries(
            st.sampled_from(["x-death", "CC", "BCC", "a", "x-match"]),
            st.recursive(
                st.one_of(st.none(), st.booleans(), st.integers(-(2**31), 2**31), st.text(max_size=5)),
                lambda inner: st.one_of(
                    st.lists(inner, max_size=3),
                    st.dictionaries(st.sampled_from(["queue", "reason", "count"]), inner, max_size=3),
                ),
                max_leaves=5,
            ),
            max_size=3,
        ),
    ),
)


def test_random_frames_never_stop_it_or_hang_it(caplog: pytest.LogCaptureFixture) -> None:
    with Broker() as broker, raw(broker, heartbeat=0) as ch:

        @settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
        @given(st.lists(FRAMES, max_size=12), st.booleans())
        def fuzz(frames: list[bytes], logged_in: bool) -> None:
            wire = Wire(Peer("embedded", broker.host, broker.port))
            if logged_in:
                wire.login().open_channel(1)
            else:
                wire.send_bytes(HEADER)
            with contextlib.suppress(OSError):
                wire.send_bytes(b"".join(frames))
                wire.end()
                while wire.read_raw() is not None:
                    pass
            wire.hang_up()
            assert ch.queue_declare("alive", exclusive=True).method.queue == "alive"

        fuzz()
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert not [record for record in errors if not record.name.startswith("pika.")]


def test_publish_many_works_through_it(broker: Broker, both_ways: str) -> None:
    fpika = publishing(broker)
    with raw(broker) as ch:
        ch.queue_declare("q")
    fpika.publish_many(Message(b"%d" % number, routing_key="q") for number in range(3000))
    assert [int(message.body) for message in broker.queues["q"].messages] == list(range(3000))
    fpika.close()


def test_who_has_dropped_the_connections_finds_them_ended(broker: Broker) -> None:
    with socket.create_connection(("127.0.0.1", broker.port), 30) as peer:
        peer.sendall(HEADER)
        assert peer.recv(7)[0] == 1, "it listens"
        peer.settimeout(10)

        def drop_and_look(server: Server) -> None:
            # In the same turn of the broker's loop, so that nothing is done about it later on. The system may
            # take a moment to pass the end on.
            server.drop_connections()
            with contextlib.suppress(ConnectionError):  # an end as good as any
                while peer.recv(65536):  # TimeoutError: it is still open
                    pass

        broker._ask(drop_and_look)
