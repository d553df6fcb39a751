"""Publishing through a real broker: what each caller is told, and what is in the queue."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pika
import pytest
from flask import Flask
from pika import exceptions as pika_errors

from flask_pika import (
    AuthenticationRefused,
    BrokerBlocked,
    BrokerUnavailable,
    FlaskPikaError,
    InvalidMessage,
    Message,
    Nacked,
    Pika,
    PublisherClosed,
    PublisherFull,
    PublishManyFailed,
    PublishRefused,
    PublishTimeout,
    PublishUnknown,
    Unroutable,
    signals,
)
from tests.conftest import Node, make_app, wait_for
from tools.rabbitmq_node import RabbitMQNode, free_port

#: What a loaded machine may add to a close(): less than the five seconds that it would wait by default.
SLACK = 4.5
#: Seconds that are more than any of the deadlines that are tested, and less than those that there would be
#: without them.
IN_TIME = 30.0


def publishing(params: object, **publisher: object) -> Pika:
    app = Flask("shop")
    app.config.update(FLASK_PIKA_PARAMS=params, FLASK_PIKA_PUBLISHER_PARAMS=publisher)
    fpika = Pika(app)
    _apps.append(app)
    return fpika


_apps: list[Flask] = []


@pytest.fixture(autouse=True)
def _keep_apps() -> None:
    _apps.clear()  # and not after the test: what is still there is closed then, at once


@contextlib.contextmanager
def plain(node: Node) -> Iterator[Any]:
    """A channel that has nothing to do with Flask-Pika."""
    connection = pika.BlockingConnection(pika.URLParameters(node.url))
    yield connection.channel()
    connection.close()


@pytest.fixture
def queue(everyday: Node) -> Iterator[str]:
    with plain(everyday) as ch:
        ch.queue_declare("published")
        ch.queue_purge("published")
    yield "published"
    with plain(everyday) as ch:
        ch.queue_delete("published")


def contents(node: Node, queue: str) -> list[bytes]:
    """What is in a queue; it is empty afterwards."""
    return [body for _, _, body in messages(node, queue)]


def messages(node: Node, queue: str) -> list[tuple[Any, Any, bytes]]:
    found = []
    with plain(node) as ch:
        while (got := ch.basic_get(queue, auto_ack=True))[0] is not None:
            found.append(got)
    return found


def link_of(fpika: Pika) -> Any:
    return fpika._state().publisher()._outbox._link


def know_why(fpika: Pika) -> None:
    """Have the publisher try to connect, and wait until it knows why it cannot."""
    with contextlib.suppress(BrokerUnavailable):
        fpika.publish(b"", timeout=0.01)
    wait_for(lambda: link_of(fpika).error is not None, "the end of the first attempt")


def in_threads(work: Any, threads: int) -> None:
    running = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(100)
        assert not thread.is_alive(), "it hangs"


# What is sent


def test_a_message_that_was_published_is_there(everyday: Node, queue: str, both_ways: str) -> None:
    fpika = publishing(everyday.params)
    before = int(time.time())
    ids = [
        fpika.publish({"id": 1}, routing_key=queue),
        fpika.publish("tëxt", routing_key=queue, headers={"a": [1, "b", None]}, priority=5, expiration=60),
        fpika.publish(b"raw", routing_key=queue, message_id="mine", timestamp=7, delivery_mode=1),
        fpika.publish(Message(b"", routing_key=queue, type="t")),
        fpika.publish(
            b"x", routing_key=queue, properties=pika.BasicProperties(app_id="a", expiration="9000")
        ),
    ]
    got = messages(everyday, queue)
    assert [properties.message_id for _, properties, _ in got] == ids
    assert ids[2] == "mine"
    assert len(set(ids)) == 5
    assert [body for _, _, body in got] == [b'{"id": 1}', "tëxt".encode(), b"raw", b"", b"x"]
    first, second, third, fourth, fifth = (properties for _, properties, _ in got)
    assert (first.content_type, first.delivery_mode) == ("application/json", 2)
    assert before <= first.timestamp <= time.time()
    assert second.content_type == "text/plain; charset=utf-8"
    assert (second.headers, second.priority, second.expiration) == ({"a": [1, "b", None]}, 5, "60000")
    assert (third.timestamp, third.delivery_mode, third.content_type) == (7, 1, "application/octet-stream")
    assert fourth.type == "t"
    assert (fifth.app_id, fifth.expiration, fifth.delivery_mode) == ("a", "9000", 2)
    assert fpika.stats().publisher.confirmed == 5


def test_json_is_the_apps_own(everyday: Node, queue: str) -> None:
    fpika = publishing(everyday.params)
    (app,) = _apps
    app.json.dumps = lambda *_args, **_kwargs: "mine"  # type: ignore[method-assign]
    fpika.publish([1], routing_key=queue)
    with app.app_context():
        fpika.publish([1], routing_key=queue)
    assert contents(everyday, queue) == [b"mine", b"mine"]


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({"body": {1, 2}}, "set"),
        ({"body": b"", "headers": {"x": {1}}}, r"headers\['x'\]"),
        ({"body": b"", "routing_key": "k" * 256}, "routing_key has 256 bytes"),
        ({"body": b"", "priority": 300}, "priority is 300"),
        ({"body": b"", "prioriti": 3}, "did you mean 'priority'"),
        ({"body": b"", "headers": {"big": "x" * 200_000}}, "frame"),
        ({"body": Message(b""), "routing_key": "q"}, "Message says all about itself"),
    ],
)
def test_what_amqp_cannot_carry_costs_nobody_anything(everyday: Node, about: Any, said: str) -> None:
    fpika = publishing(everyday.params)
    body = about.pop("body")
    for verb in (fpika.publish, fpika.submit):
        with pytest.raises(InvalidMessage, match=said):
            verb(body, **about)
    stats = fpika.stats().publisher
    assert (stats.pending, stats.pending_bytes) == (0, 0)


@pytest.mark.parametrize("timeout", [-1, float("nan"), "1", True])
def test_a_timeout_that_is_none_is_refused(everyday: Node, timeout: Any) -> None:
    with pytest.raises(ValueError, match="timeout"):
        publishing(everyday.params).publish(b"", timeout=timeout)


def test_a_body_larger_than_the_bound_passes_alone(everyday: Node, queue: str, both_ways: str) -> None:
    fpika = publishing(everyday.params, max_bytes=1000)
    fpika.publish(b"x" * 3_000_000, routing_key=queue)
    assert contents(everyday, queue) == [b"x" * 3_000_000]


# What the callers are told


def test_a_message_that_reaches_no_queue_is_an_error_or_may_be(everyday: Node, both_ways: str) -> None:
    fpika = publishing(everyday.params)
    with pytest.raises(Unroutable, match="312 NO_ROUTE") as caught:
        fpika.publish(b"", routing_key="nowhere", message_id="lost")
    assert (caught.value.reply_code, caught.value.message_id) == (312, "lost")
    assert isinstance(caught.value, pika_errors.UnroutableError)
    assert isinstance(caught.value, FlaskPikaError)
    assert fpika.publish(b"", routing_key="nowhere", mandatory=False)
    stats = fpika.stats().publisher
    assert (stats.returned, stats.confirmed, stats.pending) == (1, 1, 0)


def test_a_queue_that_is_full_and_rejects_nacks(everyday: Node, both_ways: str) -> None:
    fpika = publishing(everyday.params)
    with plain(everyday) as ch:
        arguments = {"x-max-length": 1, "x-overflow": "reject-publish"}
        ch.queue_declare("small", arguments=arguments)
        fpika.publish(b"1", routing_key="small")
        with pytest.raises(Nacked) as caught:
            fpika.publish(b"2", routing_key="small")
        assert isinstance(caught.value, pika_errors.NackError)
        ch.queue_delete("small")
    assert fpika.stats().publisher.nacked == 1


def test_a_missing_exchange_fails_its_own_messages_and_no_other(
    everyday: Node, queue: str, both_ways: str
) -> None:
    fpika = publishing(everyday.params)
    wrong = {3, 50, 51, 299}
    many = [
        Message(b"%d" % n, exchange="missing" if n in wrong else "", routing_key=queue) for n in range(300)
    ]
    with pytest.raises(PublishManyFailed) as caught:
        fpika.publish_many(many, timeout=30)
    report = caught.value.report
    assert {failure.index for failure in report.failed} == wrong
    assert report.confirmed == 300 - len(wrong)
    for failure in report.failed:
        assert isinstance(failure.error, PublishRefused)
        assert isinstance(failure.error, pika_errors.ChannelClosedByBroker)
        assert failure.error.reply_code == 404
        assert "no exchange 'missing'" in failure.error.reply_text
    assert {int(body) for body in contents(everyday, queue)} == set(range(300)) - wrong
    # Once it exists, it is trusted again.
    with plain(everyday) as ch:
        ch.exchange_declare("missing")
        for _ in range(3):
            fpika.publish(b"", exchange="missing", mandatory=False)
        ch.exchange_delete("missing")


def test_an_error_that_names_no_exchange_finds_the_one_at_fault(everyday: Node, queue: str) -> None:
    fpika = publishing(everyday.params)
    many = [
        Message(b"%d" % n, routing_key=queue, user_id="somebody else" if n == 77 else "guest")
        for n in range(200)
    ]
    with pytest.raises(PublishManyFailed) as caught:
        fpika.publish_many(many, timeout=30)
    (failure,) = caught.value.report.failed
    assert failure.index == 77
    assert isinstance(failure.error, PublishRefused)
    assert failure.error.reply_code == 406
    assert {int(body) for body in contents(everyday, queue)} == set(range(200)) - {77}


def test_what_was_never_sent_says_so(both_ways: str) -> None:
    fpika = publishing({"host": "127.0.0.1", "port": free_port()}, timeout=60)
    know_why(fpika)
    began = time.monotonic()
    with pytest.raises(BrokerUnavailable, match=r"not sent before its deadline: .*connection refused"):
        fpika.publish(b"", timeout=0.5)
    future = fpika.submit(b"", timeout=0.5)
    with pytest.raises(BrokerUnavailable):
        future.result(IN_TIME)
    with pytest.raises(PublishManyFailed) as caught:
        fpika.publish_many([Message(b"")] * 3, timeout=2)
    assert time.monotonic() - began < IN_TIME
    assert [type(failure.error) for failure in caught.value.report.failed] == [BrokerUnavailable] * 3
    assert isinstance(caught.value.report.failed[0].error, pika_errors.AMQPConnectionError)
    assert fpika.stats().publisher.pending == 0


def test_refused_credentials_are_told_at_once(everyday: Node) -> None:
    fpika = publishing({**everyday.params, "password": "s3cret-wrong"})
    began = time.monotonic()
    with pytest.raises(AuthenticationRefused) as caught:
        fpika.publish(b"", timeout=30)
    assert time.monotonic() - began < 20
    assert "s3cret" not in str(caught.value)


def test_what_was_sent_and_not_confirmed_is_unknown(fragile_node: RabbitMQNode) -> None:
    fpika = publishing(fragile_node.params, timeout=60)
    fpika.publish(b"", routing_key="nowhere", mandatory=False)
    with fragile_node.frozen():
        began = time.monotonic()
        future = fpika.submit(b"", timeout=3)  # time enough to be sent
        with pytest.raises(PublishTimeout, match="unknown") as caught:
            fpika.publish(b"", routing_key="nowhere", message_id="m", timeout=3)
        with pytest.raises(PublishTimeout):
            future.result(IN_TIME)
        assert time.monotonic() - began < IN_TIME
        assert caught.value.message_id == "m"
        assert isinstance(caught.value, PublishUnknown)
        assert isinstance(caught.value, TimeoutError)
    fpika.publish(b"", mandatory=False)
    wait_for(lambda: fpika.stats().publisher.pending == 0, "what nobody waits for is settled, too")


def test_without_retry_a_lost_connection_is_told_as_unknown(fragile_node: RabbitMQNode) -> None:
    fpika = publishing(fragile_node.params)
    fpika.publish(b"", mandatory=False)
    told: list[BaseException] = []

    def publish(number: int) -> None:
        with pytest.raises(PublishUnknown) as caught:
            fpika.publish(b"", retry=False, mandatory=False, timeout=30)
        told.append(caught.value)

    with fragile_node.frozen():
        thread = threading.Thread(target=publish, args=(0,))
        thread.start()
        wait_for(lambda: _in_flight(fpika) == 1, "it is sent")
        fragile_node.kill()
        thread.join(30)
    assert len(told) == 1
    assert not isinstance(told[0], PublishTimeout)


def test_a_full_publisher_says_so_in_time_and_serves_in_order(fragile_node: RabbitMQNode) -> None:
    fpika = publishing(fragile_node.params, max_messages=2, timeout=60)
    fpika.publish(b"", mandatory=False)
    with fragile_node.frozen():
        futures = [fpika.submit(b"", mandatory=False, timeout=60) for _ in range(2)]
        began = time.monotonic()
        with pytest.raises(PublisherFull, match=r"2 messages of .*max_messages is 2"):
            fpika.publish(b"", timeout=0.3)
        with pytest.raises(PublisherFull):
            fpika.submit(b"", timeout=0.3)
        assert time.monotonic() - began < IN_TIME
        late: list[str] = []
        waits = threading.Thread(target=lambda: late.append(fpika.publish(b"", mandatory=False, timeout=60)))
        waits.start()
    for future in futures:
        assert future.result(60)
    waits.join(60)
    assert len(late) == 1
    assert fpika.stats().publisher.pending == 0


def test_submit_says_itself_why_there_was_no_room() -> None:
    fpika = publishing({"host": "127.0.0.1", "port": free_port()}, max_messages=1, drain_timeout=0.1)
    first = fpika.submit(b"", timeout=60)
    wait_for(lambda: link_of(fpika).error is not None, "the broker is away")
    with pytest.raises(BrokerUnavailable, match="connection refused"):
        fpika.submit(b"", timeout=0.1)
    fpika.close()
    for verb in (fpika.publish, fpika.submit):
        with pytest.raises(PublisherClosed):
            verb(b"")
    assert isinstance(first.exception(0), BrokerUnavailable)


def test_bytes_are_bounded_too(fragile_node: RabbitMQNode) -> None:
    fpika = publishing(fragile_node.params, max_bytes=10_000)
    fpika.publish(b"", mandatory=False)
    with fragile_node.frozen():
        future = fpika.submit(b"x" * 9_000, mandatory=False, timeout=60)
        with pytest.raises(PublisherFull, match="max_bytes 10000"):
            fpika.publish(b"x" * 5_000, timeout=0.2)
    assert future.result(60)


def test_a_blocked_broker_is_told_in_time_and_everything_goes_on_after(fragile_node: RabbitMQNode) -> None:
    fpika = publishing(fragile_node.params, timeout=60)
    heard: list[str] = []
    (app,) = _apps

    def on_blocked(_sender: Flask, **_: object) -> None:
        heard.append("blocked")

    def on_unblocked(_sender: Flask, **_: object) -> None:
        heard.append("unblocked")

    with signals.blocked.connected_to(on_blocked, app), signals.unblocked.connected_to(on_unblocked, app):
        fpika.publish(b"", mandatory=False)
        fragile_node.ctl("set_vm_memory_high_watermark", "0.00001")
        try:

            def is_blocked() -> bool:
                # Who publishes is told; not the first one, when the alarm has not reached its connection yet.
                with contextlib.suppress(PublishTimeout, BrokerUnavailable):
                    fpika.publish(b"", mandatory=False, timeout=1)
                return fpika.stats().publisher.state == "blocked"

            wait_for(is_blocked, "the broker blocks")
            began = time.monotonic()
            with pytest.raises(BrokerBlocked, match="memory or disk") as caught:
                fpika.publish(b"", mandatory=False, timeout=0.5)
            assert time.monotonic() - began < IN_TIME
            assert isinstance(caught.value, pika_errors.ConnectionBlockedTimeout)
            future = fpika.submit(b"", mandatory=False, timeout=60)
        finally:
            fragile_node.ctl("set_vm_memory_high_watermark", "0.4")
        assert future.result(60)
        assert heard == ["blocked", "unblocked"]


def test_an_empty_id_is_none_and_the_outcome_is_the_messages(everyday: Node) -> None:
    fpika = publishing(everyday.params)
    with pytest.raises(Unroutable) as caught:
        fpika.publish(b"", routing_key="nowhere", message_id="")
    assert len(caught.value.message_id) == 32


def test_without_retry_one_bad_message_makes_the_others_unknown_and_says_why(everyday: Node) -> None:
    fpika = publishing(everyday.params)
    fpika.publish(b"", mandatory=False)
    many = [Message(b"", mandatory=False, user_id="x" if n == 5 else "guest") for n in range(10)]
    all_read = threading.Event()

    def read() -> Iterator[Message]:
        link_of(fpika).call(lambda: all_read.wait(30))  # all are sent at once then
        yield from many
        all_read.set()

    with pytest.raises(PublishManyFailed) as caught:
        fpika.publish_many(read(), retry=False, timeout=60)
    errors = {failure.index: failure.error for failure in caught.value.report.failed}
    assert isinstance(errors[5], PublishUnknown)
    assert "406 PRECONDITION_FAILED" in str(errors[5])
    assert all(isinstance(error, PublishUnknown) for error in errors.values())


def test_messages_to_a_missing_exchange_leave_room_for_others(everyday: Node, queue: str) -> None:
    fpika = publishing(everyday.params, max_messages=200, timeout=30)
    bad = [fpika.submit(b"", exchange="missing") for _ in range(150)]
    for number in range(100):
        fpika.publish(b"%d" % number, routing_key=queue)
    for future in bad:
        with pytest.raises(PublishRefused):
            future.result(30)
    assert len(contents(everyday, queue)) == 100


def test_one_channel_is_not_enough_for_the_publisher_whatever_the_pool_needs(everyday: Node) -> None:
    fpika = publishing({**everyday.params, "channel_max": 1})
    with pytest.raises(PublishRefused):
        fpika.publish(b"", exchange="missing")
    with pytest.raises(PublishRefused):
        fpika.submit(b"", exchange="missing").result(30)
    assert fpika.stats().publisher.reconnects == 0


# Many


def test_many_are_read_lazily_and_all_settled(everyday: Node, queue: str, both_ways: str) -> None:
    fpika = publishing(everyday.params)
    read = 0

    def generate() -> Iterator[Message]:
        nonlocal read
        for number in range(5000):
            read += 1
            assert read - len(confirmed) <= 5000
            yield Message(b"%d" % number, routing_key=queue)

    confirmed: list[int] = []
    report = fpika.publish_many(generate(), window=50, timeout=60)
    assert (report.confirmed, report.failed, report.complete) == (5000, [], True)
    assert [int(body) for body in contents(everyday, queue)] == list(range(5000)), "in order"


def test_no_more_than_the_window_is_on_its_way(fragile_node: RabbitMQNode) -> None:
    fpika = publishing(fragile_node.params)
    fpika.publish(b"", mandatory=False)
    read: list[int] = []

    def generate() -> Iterator[Message]:
        for number in range(1000):
            read.append(number)
            yield Message(b"", mandatory=False)

    thread = threading.Thread(target=lambda: fpika.publish_many(generate(), window=10, timeout=60))
    with fragile_node.frozen():
        thread.start()
        wait_for(lambda: fpika.stats().publisher.pending == 10, "the window is full")
        assert len(read) <= 20, "what is read ahead is a part of a window"
        assert fpika.stats().publisher.pending == 10
    thread.join(60)
    assert len(read) == 1000


def test_what_fails_of_many_is_named_by_its_place(everyday: Node, queue: str) -> None:
    fpika = publishing(everyday.params)
    many = [
        Message(b"0", routing_key=queue),
        Message(b"1", routing_key="nowhere"),
        Message({1}, routing_key=queue),
        "no message",
        Message(b"4", routing_key=queue),
    ]
    with pytest.raises(PublishManyFailed, match=r"3 of 5 messages failed; .*number 1") as caught:
        fpika.publish_many(many)  # type: ignore[arg-type]
    report = caught.value.report
    assert (report.confirmed, report.complete) == (2, True)
    assert [(failure.index, type(failure.error)) for failure in report.failed] == [
        (1, Unroutable),
        (2, InvalidMessage),
        (3, InvalidMessage),
    ]
    assert contents(everyday, queue) == [b"0", b"4"]


def test_many_end_at_their_deadline(fragile_node: RabbitMQNode) -> None:
    fpika = publishing(fragile_node.params, timeout=60)
    fpika.publish(b"", mandatory=False)

    def endless() -> Iterator[Message]:
        yield Message(b"", mandatory=False)
        wait_for(lambda: _in_flight(fpika), "the first one is sent")
        while True:
            yield Message(b"", mandatory=False)

    with fragile_node.frozen():
        began = time.monotonic()
        with pytest.raises(PublishManyFailed, match="not read to its end") as caught:
            fpika.publish_many(endless(), timeout=0.5, window=10)
        assert time.monotonic() - began < IN_TIME
    report = caught.value.report
    assert not report.complete
    assert report.confirmed == 0
    assert all(isinstance(failure.error, (PublishTimeout, BrokerUnavailable)) for failure in report.failed)
    assert any(isinstance(failure.error, PublishTimeout) for failure in report.failed)
    wait_for(lambda: fpika.stats().publisher.pending == 0, "all is settled")


def test_what_comes_slowly_is_sent_as_it_comes(everyday: Node, queue: str) -> None:
    fpika = publishing(everyday.params)

    read = 0

    def slow() -> Iterator[Message]:
        nonlocal read
        with plain(everyday) as ch:

            def is_there() -> bool:
                return bool(ch.queue_declare(queue, passive=True).method.message_count == read)

            for burst in (1, 1, 3, 200):
                for _ in range(burst):
                    read += 1
                    yield Message(b"", routing_key=queue)
                wait_for(is_there, "what was read is in the queue before any more is")

    assert fpika.publish_many(slow(), timeout=60).confirmed == 205


def test_what_comes_slowly_is_sent_as_it_comes_though_an_earlier_message_is_stuck(
    fragile_node: RabbitMQNode,
) -> None:
    fpika = publishing(fragile_node.params)
    fpika.publish(b"", mandatory=False)
    with fragile_node.frozen():
        stuck = fpika.submit(b"", mandatory=False, timeout=60)
        wait_for(lambda: fpika.stats().publisher.pending == 1, "it is on its way")

        def slow() -> Iterator[Message]:
            yield Message(b"", mandatory=False)
            wait_for(lambda: _in_flight(fpika) == 2, "what was read is sent")
            yield Message(b"", mandatory=False)
            wait_for(lambda: _in_flight(fpika) == 3, "what was read is sent")

        with pytest.raises(PublishManyFailed):
            fpika.publish_many(slow(), timeout=1)
    assert stuck.result(60)


def _in_flight(fpika: Pika) -> int:
    return len(fpika._state().publisher()._outbox._ledger.main)


def test_the_deadline_of_many_holds_between_slow_messages(everyday: Node) -> None:
    fpika = publishing(everyday.params)
    read: list[int] = []

    def slow() -> Iterator[Message]:
        for number in range(60):
            read.append(number)
            time.sleep(0.05)  # the slowness is the point
            yield Message(b"", mandatory=False)

    with pytest.raises(PublishManyFailed, match="not read to its end"):
        fpika.publish_many(slow(), timeout=0.3)
    assert len(read) < 60


def test_what_failed_of_many_is_told_though_a_receiver_holds_the_publisher_up(everyday: Node) -> None:
    fpika = publishing(everyday.params)
    (app,) = _apps
    go_on = threading.Event()

    def hold_up(_sender: object, **_: object) -> None:
        go_on.wait(30)

    fpika.publish(b"", mandatory=False)
    with signals.returned.connected_to(hold_up, app):
        with pytest.raises(PublishManyFailed) as caught:
            fpika.publish_many([Message(b"", routing_key="nowhere")] * 20, timeout=3)
        go_on.set()
        fpika.close()
    assert caught.value.report.confirmed == 0
    assert len(caught.value.report.failed) == 20


@pytest.mark.parametrize("count", [10, 100, 3000])
def test_an_iterable_that_raises_is_heard_when_what_was_read_before_is_in_the_queue(
    everyday: Node, queue: str, count: int
) -> None:
    fpika = publishing(everyday.params)

    def broken() -> Iterator[Message]:
        for _ in range(count):
            yield Message(b"", routing_key=queue)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fpika.publish_many(broken(), timeout=60)
    stats = fpika.stats().publisher
    assert (stats.pending, stats.confirmed) == (0, count)
    assert len(contents(everyday, queue)) == count


def test_an_iterable_that_raises_is_heard_at_the_deadline_at_the_latest(fragile_node: RabbitMQNode) -> None:
    fpika = publishing(fragile_node.params, timeout=60)
    fpika.publish(b"", mandatory=False)

    def broken() -> Iterator[Message]:
        yield Message(b"", mandatory=False)
        raise ZeroDivisionError

    with fragile_node.frozen():
        began = time.monotonic()
        with pytest.raises(ZeroDivisionError):
            fpika.publish_many(broken(), timeout=0.3)
        assert time.monotonic() - began < IN_TIME


def test_what_interrupts_an_iterable_is_heard_at_once(fragile_node: RabbitMQNode) -> None:
    fpika = publishing(fragile_node.params)
    fpika.publish(b"", mandatory=False)

    def interrupted() -> Iterator[Message]:
        yield Message(b"", mandatory=False)
        raise KeyboardInterrupt

    with fragile_node.frozen():
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            fpika.publish_many(interrupted(), timeout=60)
        assert time.monotonic() - began < IN_TIME


@pytest.mark.parametrize("window", [0, -1, True, 1.5])
def test_a_window_that_is_none_is_refused(everyday: Node, window: Any) -> None:
    with pytest.raises(ValueError, match="window"):
        publishing(everyday.params).publish_many([], window=window)


def test_a_window_of_one_works(everyday: Node, queue: str) -> None:
    fpika = publishing(everyday.params)
    assert fpika.publish_many((Message(b"", routing_key=queue) for _ in range(20)), window=1).confirmed == 20


# Futures


def test_a_future_can_be_awaited(everyday: Node, queue: str) -> None:
    fpika = publishing(everyday.params)

    async def publish() -> list[str]:
        futures = [fpika.submit(b"x", routing_key=queue) for _ in range(20)]
        return list(await asyncio.gather(*map(asyncio.wrap_future, futures)))

    assert len(set(asyncio.run(publish()))) == 20
    assert len(contents(everyday, queue)) == 20


def test_in_the_publishers_own_thread_only_submit_works(everyday: Node, queue: str) -> None:
    fpika = publishing(everyday.params)
    errors: list[BaseException] = []
    again: list[Any] = []
    done = threading.Event()

    def callback(_future: object) -> None:
        if threading.current_thread() is threading.main_thread() or done.is_set():
            return  # the message was confirmed before its future had this callback
        for verb in (lambda: fpika.publish(b""), lambda: fpika.publish_many([])):
            try:
                verb()
            except RuntimeError as exc:
                errors.append(exc)
        again.append(fpika.submit(b"again", routing_key=queue))
        done.set()

    def is_called_there() -> bool:
        fpika.submit(b"first", routing_key=queue).add_done_callback(callback)
        return done.is_set()

    wait_for(is_called_there, "a callback in the publisher's thread")
    assert again[0].result(30)
    assert len(errors) == 2
    assert "use submit()" in str(errors[0])


def test_what_interrupts_the_publishers_own_work_does_not_wait_for_itself(everyday: Node) -> None:
    fpika = publishing(everyday.params)
    outbox: Any = fpika._state().publisher()._outbox
    with outbox._lock:  # as a signal handler finds it, between two instructions of a critical section
        for verb in (lambda: fpika.publish(b""), lambda: fpika.submit(b""), lambda: fpika.publish_many([])):
            with pytest.raises(RuntimeError, match="wait for itself"):
                verb()
    assert fpika.stats().publisher.pending == 0
    fpika.publish(b"", mandatory=False)


def test_without_a_thread_to_be_had_a_publish_fails_and_the_next_one_tries_again(
    everyday: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    fpika = publishing(everyday.params)

    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with pytest.raises(BrokerUnavailable):
            fpika.publish(b"", mandatory=False, timeout=0.1)
    assert fpika.stats().publisher.pending == 0
    fpika.publish(b"", mandatory=False)


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt(), ZeroDivisionError()])
def test_a_callback_that_raises_ends_nothing(everyday: Node, error: BaseException) -> None:
    fpika = publishing(everyday.params)
    called = threading.Event()

    def callback(_future: object) -> None:
        if threading.current_thread() is not threading.main_thread():
            called.set()
            raise error

    def is_called_there() -> bool:
        fpika.submit(b"", mandatory=False, timeout=30).add_done_callback(callback)
        return called.is_set()

    wait_for(is_called_there, "a callback in the publisher's thread")
    fpika.publish(b"", mandatory=False)
    assert fpika.stats().publisher.reconnects == 0


def test_a_future_ends_though_its_app_is_gone() -> None:
    _app, fpika = make_app({"host": "127.0.0.1", "port": free_port()})
    future = fpika.submit(b"", timeout=60)
    del _app, fpika
    gc.collect()
    with pytest.raises(BrokerUnavailable):
        future.result(30)


def test_close_does_not_wait_for_what_nobody_waits_for() -> None:
    fpika = publishing({"host": "127.0.0.1", "port": free_port()}, drain_timeout=60)
    with pytest.raises(BrokerUnavailable):
        fpika.publish(b"", timeout=0.1)
    began = time.monotonic()
    fpika.close()
    assert time.monotonic() - began < 30


@contextlib.contextmanager
def silent_peer(accepts: bool) -> Iterator[int]:
    """A port that takes connections and says nothing, or that does not even take them."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=10 if accepts else 0))
        port = server.getsockname()[1]
        for _ in range(0 if accepts else 4):  # its queue is full then, and the system drops what comes
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        yield port


@pytest.mark.parametrize("accepts", [True, False], ids=["handshake", "tcp"])
def test_close_while_it_connects_is_quick_and_leaves_nothing(
    accepts: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with silent_peer(accepts) as port:
        fpika = publishing({"host": "127.0.0.1", "port": port}, drain_timeout=0.1)
        future = fpika.submit(b"", timeout=60)
        link = link_of(fpika)
        wait_for(lambda: link._connection is not None, "it dials")
        if accepts:
            wait_for(lambda: link._connection.bytes_sent, "the handshake has begun")
        began = time.monotonic()
        fpika.close()
        assert time.monotonic() - began < 0.1 + SLACK
        wait_for(lambda: not link._thread.is_alive(), "its thread's end")
    assert isinstance(future.exception(0), BrokerUnavailable)
    assert all(record.exc_info is None for record in caplog.records), "nothing is a bug"


def test_a_peer_that_says_nothing_is_told_as_one(both_ways: str) -> None:
    with silent_peer(accepts=True) as port:
        fpika = publishing({"host": "127.0.0.1", "port": port, "stack_timeout": 0.2})
        know_why(fpika)
        with pytest.raises(BrokerUnavailable, match="timed out before the connection was open"):
            fpika.publish(b"", timeout=0.1)


def test_close_in_the_publishers_own_thread_is_refused(everyday: Node) -> None:
    fpika = publishing(everyday.params)
    errors: list[BaseException] = []

    def callback(_future: object) -> None:
        if threading.current_thread() is not threading.main_thread():
            try:
                fpika.close()
            except RuntimeError as exc:
                errors.append(exc)

    def is_called_there() -> bool:
        fpika.submit(b"", mandatory=False).add_done_callback(callback)
        return bool(errors)

    wait_for(is_called_there, "a callback in the publisher's thread")
    fpika.publish(b"", mandatory=False)


def test_without_files_to_be_had_a_publish_fails_and_the_next_one_tries_again(
    everyday: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    fpika = publishing(everyday.params)

    def refuse() -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr("flask_pika.link.IOLoop", refuse)
        with pytest.raises(BrokerUnavailable, match="Too many open files"):
            fpika.publish(b"", mandatory=False, timeout=0.1)
    assert fpika.stats().publisher.pending == 0
    fpika.publish(b"", mandatory=False)


def again(fpika: Pika) -> None:
    fpika.publish(b"", mandatory=False)


def many_at_once(fpika: Pika) -> None:
    assert fpika.publish_many([Message(b"", mandatory=False)], timeout=10).confirmed == 1


@pytest.mark.parametrize("publish", [again, many_at_once])
def test_an_interrupt_between_the_word_and_the_telling_costs_one_publish_at_the_most(
    everyday: Node, monkeypatch: pytest.MonkeyPatch, publish: Callable[[Pika], None]
) -> None:
    fpika = publishing(everyday.params)
    fpika.publish(b"", mandatory=False)
    outbox: Any = fpika._state().publisher()._outbox

    def interrupt() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(outbox, "_wake", interrupt)
        with pytest.raises(KeyboardInterrupt):
            fpika.publish(b"", mandatory=False)
    publish(fpika)
    wait_for(lambda: fpika.stats().publisher.pending == 0, "nothing is left behind")


def test_an_interrupt_while_the_link_is_told_costs_one_publish_at_the_most(everyday: Node) -> None:
    fpika = publishing(everyday.params)
    outbox: Any = fpika._state().publisher()._outbox

    class Interrupting(set[int]):
        def add(self, ident: int) -> None:
            super().add(ident)
            if not interrupted:  # by a signal handler, after the instruction
                interrupted.append(True)
                raise KeyboardInterrupt

    interrupted: list[bool] = []
    outbox._telling = Interrupting()
    with pytest.raises(KeyboardInterrupt):
        fpika.publish(b"", mandatory=False)
    fpika.publish(b"", mandatory=False)
    wait_for(lambda: fpika.stats().publisher.pending == 0, "nothing is left behind")


def test_a_future_ends_though_no_thread_can_be_had_to_watch_its_deadline(
    everyday: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    fpika = publishing(everyday.params)

    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        future = fpika.submit(b"", mandatory=False, timeout=60)
        with pytest.raises(PublishManyFailed) as caught:
            fpika.publish_many([Message(b"")] * 3, timeout=60)
    with pytest.raises(BrokerUnavailable, match=r"nothing was sent: can't start new thread"):
        future.result(10)
    assert [type(failure.error) for failure in caught.value.report.failed] == [BrokerUnavailable] * 3
    assert fpika.stats().publisher.pending == 0
    assert fpika.submit(b"", mandatory=False).result(30)


@pytest.mark.parametrize("runs", [True, False], ids=["when it runs", "before it runs"])
def test_an_interrupt_while_the_links_thread_starts_leaves_one_link(
    everyday: Node, monkeypatch: pytest.MonkeyPatch, runs: bool
) -> None:
    fpika = publishing(everyday.params)
    start = threading.Thread.start
    held_up: list[threading.Thread] = []

    def interrupted(thread: threading.Thread) -> None:
        if runs:
            start(thread)
            wait_for(lambda: fpika.stats().publisher.state != "stopped", "it runs")
        held_up.append(thread)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fpika.publish(b"", mandatory=False)
    (thread,) = held_up
    if not runs:
        start(thread)  # the system got to it later
        thread.join(30)
        assert not thread.is_alive(), "it was given up"
    fpika.publish(b"", mandatory=False)
    assert sum(thread.name == "flask-pika-link" for thread in threading.enumerate()) == 1
    wait_for(lambda: len(everyday.connections()) == 1, "one connection, and the end of earlier tests' ones")
    fpika.close()


# Signals


def test_signals_tell_what_became_of_messages_and_connection(everyday: Node, queue: str) -> None:
    fpika = publishing(everyday.params)
    (app,) = _apps
    heard: list[tuple[str, Any]] = []
    with contextlib.ExitStack() as stack:
        for name in ("published", "returned", "failed", "connected", "disconnected"):

            def listen(sender: Flask, _name: str = name, **about: Any) -> None:
                assert sender is app
                heard.append((_name, about.get("message_id")))
                raise ZeroDivisionError  # and breaks nothing

            stack.enter_context(getattr(signals, name).connected_to(listen, app))
        fpika.publish(b"", routing_key=queue, message_id="1")
        with pytest.raises(Unroutable):
            fpika.publish(b"", routing_key="nowhere", message_id="2")
        with pytest.raises(PublishRefused):
            fpika.publish(b"", exchange="missing", message_id="3")
        fpika.submit(b"", routing_key=queue, message_id="4").result(30)
        fpika.publish_many([Message(b"", routing_key=queue, message_id="5")])
        wait_for(lambda: len(heard) == 6, "the last one is signalled by the publisher's thread")
        fpika.close()
    assert heard[0] == ("connected", None)
    assert sorted(heard[1:6], key=lambda one: str(one[1])) == [
        ("published", "1"),
        ("returned", "2"),
        ("failed", "3"),
        ("published", "4"),
        ("published", "5"),
    ]


# Several, and the end


def test_each_app_and_each_prefix_has_a_publisher_of_its_own(everyday: Node, queue: str) -> None:
    app = Flask("two")
    app.config.update(FLASK_PIKA_PARAMS=everyday.params, AUDIT_PIKA_PARAMS=everyday.url)
    fpika, audit = Pika(app), Pika(app, config_prefix="AUDIT_PIKA")
    other = Flask("other")
    other.config.update(FLASK_PIKA_PARAMS=everyday.params)
    fpika.init_app(other)
    with app.app_context():
        fpika.publish(b"1", routing_key=queue)
        audit.publish(b"2", routing_key=queue)
        audit.publish(b"3", routing_key=queue)
        assert (fpika.stats().publisher.confirmed, audit.stats().publisher.confirmed) == (1, 2)
    with other.app_context():
        fpika.publish(b"4", routing_key=queue)
        assert fpika.stats().publisher.confirmed == 1
    with pytest.raises(RuntimeError, match=r"app\.app_context\(\)"):
        fpika.publish(b"")
    names = everyday.connections()
    assert sum(name.startswith("two on ") and name.endswith(": publisher") for name in names) == 2
    assert sum(name.startswith("other on ") for name in names) == 1


def test_all_threads_share_one_connection(everyday: Node, queue: str) -> None:
    fpika = publishing(everyday.params)

    def work(number: int) -> None:
        for at in range(50):
            fpika.publish(b"%d %d" % (number, at), routing_key=queue)

    in_threads(work, 16)
    wait_for(lambda: len(everyday.connections()) == 1, "one connection, and the end of earlier tests' ones")
    got = [tuple(map(int, body.split())) for body in contents(everyday, queue)]
    assert len(got) == len(set(got)) == 800
    for number in range(16):
        assert [at for n, at in got if n == number] == list(range(50)), "each thread's in its order"


def test_after_close_nothing_is_taken_and_what_was_pending_is_there(everyday: Node, queue: str) -> None:
    fpika = publishing(everyday.params, timeout=60, drain_timeout=60)
    futures = [fpika.submit(b"x", routing_key=queue) for _ in range(500)]
    fpika.close()
    assert all(future.done() and future.result() for future in futures)
    for verb in (lambda: fpika.publish(b""), lambda: fpika.submit(b"")):
        with pytest.raises(PublisherClosed):
            verb()
    with pytest.raises(PublishManyFailed):
        fpika.publish_many([Message(b"")])
    assert len(contents(everyday, queue)) == 500
    fpika.close()


def test_close_tells_what_it_could_not_send(caplog: pytest.LogCaptureFixture) -> None:
    fpika = publishing({"host": "127.0.0.1", "port": free_port()}, drain_timeout=0.3)
    futures = [fpika.submit(b"x", timeout=60) for _ in range(7)]
    began = time.monotonic()
    with caplog.at_level(logging.WARNING, logger="flask_pika"):
        fpika.close()
    assert time.monotonic() - began < 0.3 + SLACK
    for future in futures:
        with pytest.raises(BrokerUnavailable):
            future.result(0)
    assert "7 messages were not confirmed before the publisher's end: 7 never sent, 0 unknown" in caplog.text


def test_an_app_can_go_and_its_publisher_goes_with_it(everyday: Node, queue: str) -> None:
    # Its thread looks each second. With a heartbeat of 1, the broker would give up who stands still for two.
    _app, fpika = make_app({**everyday.params, "heartbeat": 4}, None, "passing")
    fpika.publish(b"", routing_key=queue)
    assert any(name.startswith("passing") for name in everyday.connections())
    del _app, fpika
    gc.collect()
    wait_for(
        lambda: not any(name.startswith("passing") for name in everyday.connections()),
        "the connection closes",
    )


def test_the_state_is_told_at_a_glance_and_no_secret(everyday: Node) -> None:
    fpika = publishing(everyday.params)
    stats = fpika.stats().publisher
    assert (stats.state, stats.pending, stats.reconnects) == ("stopped", 0, 0)
    fpika.publish(b"", mandatory=False)
    assert fpika.stats().publisher.state == "ready"
    assert "guest" not in repr(fpika) + repr(fpika.stats())
