"""A worker on a broker: what becomes of each message, whatever handlers, queues and connections do."""

from __future__ import annotations

import collections
import contextlib
import gc
import itertools
import logging
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pika
import pytest
from flask import Flask, g

from flask_pika import (
    AuthenticationRefused,
    ConsumerStats,
    Delivery,
    Pika,
    PoolClosed,
    Reject,
    Requeue,
    SettlementError,
    Worker,
    signals,
)
from flask_pika.broker import Broker
from flask_pika.link import Link
from tests.conftest import Node, make_app, wait_for
from tools.rabbitmq_node import free_port

CONSUMER_LOG = "flask_pika.consumer"


class Desk:
    """A broker with some queues, as somebody sees it who has nothing to do with Flask-Pika."""

    names = itertools.count()

    def __init__(self, url: str, params: object) -> None:
        self._connection = pika.BlockingConnection(pika.URLParameters(url))
        self.channel: Any = self._connection.channel()
        self.channel.confirm_delivery()
        self._queues: list[str] = []
        self.app, self.fpika = make_app(params)

    def queue(self, **arguments: object) -> str:
        """A new queue."""
        name = f"worker-{next(self.names)}"
        self._queues.append(name)
        self.declare(name, **arguments)
        return name

    def declare(self, name: str, **arguments: object) -> None:
        arguments = {f"x-{key.replace('_', '-')}": value for key, value in arguments.items()}
        self.channel.queue_declare(name, durable=True, arguments=arguments)

    def delete(self, name: str) -> None:
        self.channel.queue_delete(name)

    def with_dead_letters(self) -> tuple[str, str]:
        """A queue, and the one for what it rejects."""
        dead = self.queue()
        return self.queue(dead_letter_exchange="", dead_letter_routing_key=dead), dead

    def fill(self, queue: str, bodies: Iterable[object]) -> None:
        for body in bodies:
            data = body if isinstance(body, bytes) else str(body).encode()
            self.channel.basic_publish(
                "", queue, data, pika.BasicProperties(message_id=f"id-{str(body)[:20]}")
            )

    def ready(self, queue: str) -> int:
        """How many messages wait in the queue: not those that somebody has and has not settled."""
        return int(self.channel.queue_declare(queue, passive=True).method.message_count)

    def take(self, queue: str) -> list[str]:
        """What is in the queue; it is empty afterwards."""
        return [body.decode() for _, _, body in self.take_whole(queue)]

    def take_whole(self, queue: str) -> list[tuple[Any, Any, bytes]]:
        found = []
        while (got := self.channel.basic_get(queue, auto_ack=True))[0] is not None:
            found.append(got)
        return found

    def close(self) -> None:
        self.channel = self._connection.channel()
        for name in self._queues:
            self.channel.queue_delete(name)
        self._connection.close()


@pytest.fixture
def desk(everyday: Node) -> Iterator[Desk]:
    made = Desk(everyday.url, everyday.params)
    yield made
    made.close()


@pytest.fixture
def broker() -> Iterator[Broker]:
    """One for faults."""
    with Broker() as made:
        yield made


@pytest.fixture
def faulty(broker: Broker) -> Iterator[Desk]:
    made = Desk(broker.url, broker.url)
    yield made
    # Its own connection may have been cut.
    with contextlib.suppress(pika.exceptions.AMQPError):
        made.close()


@pytest.fixture(autouse=True)
def _patient_goodbye(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop waits for a broker that stands still: else what was settled may get nowhere, or be seen late."""
    monkeypatch.setattr("flask_pika.worker._GOODBYE", 60.0)


class Gate:
    """What handlers wait at."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self.waiting: collections.deque[str] = collections.deque()

    def wait(self, delivery: Delivery) -> None:
        self.waiting.append(delivery.text)
        assert self._event.wait(60), "nobody opened it"

    def open(self) -> None:
        self._event.set()

    def wait_for(self, count: int) -> None:
        wait_for(lambda: len(self.waiting) >= count, lambda: f"{count} at the gate: {list(self.waiting)}")


@contextlib.contextmanager
def working(
    fpika: Pika, *gates: Gate, threads: int = 4, queues: Iterable[str] = (), ready: bool = True
) -> Iterator[Worker]:
    """A worker that consumes; the gates are opened at its end, so that a test that fails does not wait."""
    worker = fpika.worker(*queues, threads=threads)
    try:
        with worker:
            try:
                if ready:
                    wait_for(lambda: worker.is_ready, lambda: f"ready: {worker.stats()}")
                yield worker
            finally:
                for gate in gates:
                    gate.open()
    finally:
        wait_for(lambda: worker.running == 0, "the end of the handlers")


class Handled(collections.deque[str]):
    """The bodies that were handled, by any thread, in the order of their ends."""

    def wait_for(self, count: int) -> None:
        wait_for(lambda: len(self) >= count, lambda: f"{count} handled: {list(self)}")


def numbers(count: int) -> list[str]:
    return [str(number) for number in range(count)]


def stats_of(worker: Worker) -> ConsumerStats:
    (stats,) = worker.stats()
    return stats


def stop_in_thread(worker: Worker, within: float | None = None) -> tuple[threading.Thread, list[bool]]:
    results: list[bool] = []
    thread = threading.Thread(target=lambda: results.append(worker.stop(within)))
    thread.start()
    return thread, results


def lines_of(caplog: pytest.LogCaptureFixture, part: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if part in record.getMessage()]


# Each message, once


@pytest.mark.usefixtures("both_ways")
def test_every_message_is_handled_once(desk: Desk) -> None:
    first, second = desk.queue(), desk.queue()
    handled = Handled()
    desk.fill(first, numbers(300))

    @desk.fpika.consumer(first, prefetch=100)
    def handle_first(delivery: Delivery) -> None:
        handled.append(f"first {delivery.text}")

    @desk.fpika.consumer(second, prefetch=7)
    def handle_second(delivery: Delivery) -> None:
        handled.append(f"second {delivery.text}")

    with working(desk.fpika, threads=8) as worker:
        desk.fill(second, numbers(300))
        handled.wait_for(600)
    assert sorted(handled) == sorted(f"{which} {n}" for which in ("first", "second") for n in range(300))
    assert [one.handled for one in worker.stats()] == [300, 300]
    assert [one.in_flight for one in worker.stats()] == [0, 0]
    assert (desk.take(first), desk.take(second)) == ([], [])


@pytest.mark.usefixtures("both_ways")
def test_a_delivery_is_what_was_published(desk: Desk) -> None:
    queue = desk.queue()
    bodies = [b"", b"x", bytes(range(256)) * 4_000, b"last"]
    got: list[Delivery] = []
    desk.fpika.consumer(queue, prefetch=1)(got.append)
    properties = pika.BasicProperties(
        message_id="m", headers={"tenant": "ä", "n": 1}, content_type="x/y", timestamp=7, reply_to="r"
    )
    with working(desk.fpika):
        for body in bodies:
            desk.channel.basic_publish("amq.fanout" if body == b"last" else "", queue, body, properties)
            if body == b"last":
                desk.channel.queue_bind(queue, "amq.fanout")
                desk.channel.basic_publish("amq.fanout", "any key", body, properties)
        wait_for(lambda: len(got) == len(bodies), "all")
    assert [delivery.body for delivery in got] == bodies
    assert [(one.exchange, one.routing_key) for one in got] == [("", queue)] * 3 + [("amq.fanout", "any key")]
    assert [delivery.delivery_tag for delivery in got] == [1, 2, 3, 4]
    for delivery in got:
        assert (delivery.queue, delivery.redelivered) == (queue, False)
        assert delivery.headers == {"tenant": "ä", "n": 1}
        assert (delivery.message_id, delivery.content_type) == ("m", "x/y")
        assert (delivery.timestamp, delivery.reply_to) == (7, "r")


@pytest.mark.usefixtures("both_ways")
def test_what_ends_out_of_order_is_acked_and_what_runs_is_not(desk: Desk) -> None:
    queue, gate, handled = desk.queue(), Gate(), Handled()
    desk.fill(queue, numbers(40))

    @desk.fpika.consumer(queue, prefetch=3)
    def handle(delivery: Delivery) -> None:
        if delivery.text == "0":
            gate.wait(delivery)
        handled.append(delivery.text)

    with working(desk.fpika, gate) as worker:
        # With a prefetch of 3 they come only if those before them were acked.
        handled.wait_for(39)
        wait_for(lambda: stats_of(worker).in_flight == 1, "their acks")
        assert not worker.stop(0.0)
    # And the one that runs was not, with its neighbours.
    assert desk.take(queue) == ["0"]


def test_a_prefetch_of_one_runs_one_at_a_time_in_order(desk: Desk) -> None:
    queue, handled = desk.queue(), Handled()
    running: list[str] = []
    most: list[int] = []
    desk.fill(queue, numbers(100))

    @desk.fpika.consumer(queue, prefetch=1)
    def handle(delivery: Delivery) -> None:
        running.append(delivery.text)
        most.append(len(running))
        handled.append(delivery.text)
        running.remove(delivery.text)

    with working(desk.fpika, threads=8):
        handled.wait_for(100)
    assert list(handled) == numbers(100)
    assert max(most) == 1


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("prefetch", [1, 5])
def test_the_prefetch_bounds_what_is_not_settled(desk: Desk, prefetch: int) -> None:
    queue, other, gate, handled = desk.queue(), desk.queue(), Gate(), Handled()
    desk.fill(queue, numbers(20))
    desk.fpika.consumer(queue, prefetch=prefetch)(gate.wait)

    @desk.fpika.consumer(other)
    def handle(delivery: Delivery) -> None:
        handled.append(delivery.text)

    with working(desk.fpika, gate, threads=2 * prefetch + 1) as worker:
        gate.wait_for(prefetch)
        # What else the broker would have sent is there when the answer to this is.
        desk.fill(other, ["after"])
        handled.wait_for(1)
        assert desk.ready(queue) == 20 - prefetch
        assert len(gate.waiting) == prefetch
        assert worker.stats()[0].in_flight == prefetch
        gate.open()
        gate.wait_for(20)
    assert desk.take(queue) == []


def test_consumers_take_turns(desk: Desk) -> None:
    many, few, gate, handled = desk.queue(), desk.queue(), Gate(), Handled()

    def handle(delivery: Delivery) -> None:
        gate.wait(delivery)
        handled.append(delivery.text)

    desk.fpika.consumer(many, prefetch=100)(handle)
    desk.fpika.consumer(few, prefetch=100)(handle)
    with working(desk.fpika, gate, threads=1) as worker:
        desk.fill(many, [f"many {n}" for n in range(50)])
        gate.wait_for(1)
        desk.fill(few, [f"few {n}" for n in range(10)])
        # Not "they are here": they are counted a moment before they wait.
        wait_for(lambda: worker._backlog._tickets.qsize() == 59, "all others to wait for the thread")
        gate.open()
        handled.wait_for(60)
    whose = [text.split()[0] for text in handled]
    assert whose[1:21] in (["many", "few"] * 10, ["few", "many"] * 10)
    assert handled[0] == "many 0"


def test_each_message_has_an_app_context_of_its_own(desk: Desk) -> None:
    queue, handled = desk.queue(), Handled()
    ended: collections.deque[tuple[str, bool]] = collections.deque()
    fresh: collections.deque[bool] = collections.deque()

    @desk.app.teardown_appcontext
    def teardown(exc: BaseException | None) -> None:
        ended.append((g.text, exc is not None))

    @desk.fpika.consumer(queue)
    def handle(delivery: Delivery) -> None:
        fresh.append("text" not in g)
        g.text = delivery.text
        handled.append(delivery.text)
        if delivery.text == "7":
            raise Reject

    desk.fill(queue, numbers(50))
    with working(desk.fpika):
        handled.wait_for(50)
    assert sorted(ended) == sorted((n, n == "7") for n in numbers(50))
    assert all(fresh)


def test_the_ack_comes_after_the_end_of_the_app_context(desk: Desk) -> None:
    """What a database session does then may fail."""
    queue, gate = desk.queue(), Gate()
    desk.fill(queue, ["0"])

    @desk.app.teardown_appcontext
    def teardown(_exc: BaseException | None) -> None:
        gate.wait(g.delivery)

    @desk.fpika.consumer(queue)
    def handle(delivery: Delivery) -> None:
        g.delivery = delivery

    with working(desk.fpika, gate) as worker:
        gate.wait_for(1)
        assert not worker.stop(0.0)
    assert desk.take(queue) == ["0"]


def test_a_slow_handler_holds_nobody_else(desk: Desk) -> None:
    slow, quick, gate, handled = desk.queue(), desk.queue(), Gate(), Handled()
    desk.fpika.consumer(slow, prefetch=1)(gate.wait)

    @desk.fpika.consumer(quick)
    def handle(delivery: Delivery) -> None:
        handled.append(delivery.text)

    with working(desk.fpika, gate, threads=2):
        desk.fill(slow, ["slow"])
        gate.wait_for(1)
        desk.fill(quick, numbers(100))
        handled.wait_for(100)
    assert desk.take(slow) == []


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt(), ZeroDivisionError()], ids=repr)
def test_whatever_a_handler_raises_its_thread_goes_on(
    desk: Desk, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    queue, handled = desk.queue(), Handled()

    @desk.fpika.consumer(queue)
    def handle(delivery: Delivery) -> None:
        handled.append(delivery.text)
        if delivery.text != "last":
            raise error

    desk.fill(queue, ["first", "second", "last"])
    with working(desk.fpika, threads=1) as worker:
        handled.wait_for(3)
        assert worker.is_live
    assert (stats_of(worker).failed, stats_of(worker).handled, stats_of(worker).rejected) == (2, 1, 2)
    assert len(lines_of(caplog, "failed at message id-")) == 2
    assert desk.take(queue) == []


def test_an_async_handler_handles(desk: Desk) -> None:
    queue, handled = desk.queue(), Handled()

    @desk.fpika.consumer(queue)
    async def handle(delivery: Delivery) -> None:
        handled.append(delivery.text)

    desk.fill(queue, numbers(20))
    with working(desk.fpika):
        handled.wait_for(20)
    assert sorted(handled) == sorted(numbers(20))


@pytest.mark.usefixtures("both_ways")
def test_a_handler_publishes(desk: Desk) -> None:
    first, second, handled = desk.queue(), desk.queue(), Handled()

    @desk.fpika.consumer(first)
    def forward(delivery: Delivery) -> None:
        desk.fpika.publish(delivery.body, routing_key=second)

    @desk.fpika.consumer(second)
    def handle(delivery: Delivery) -> None:
        with desk.fpika.channel() as ch:
            ch.queue_declare(first, passive=True)
        handled.append(delivery.text)

    with working(desk.fpika):
        desk.fill(first, numbers(50))
        handled.wait_for(50)
    assert sorted(handled) == sorted(numbers(50))
    assert (desk.take(first), desk.take(second)) == ([], [])


@pytest.mark.parametrize("error", [None, ZeroDivisionError()], ids=repr)
def test_what_was_handled_is_not_kept(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, error: Exception | None
) -> None:
    """Nor by a thread that waits for the next one: it may be of a hundred megabytes."""
    monkeypatch.setattr(logging.getLogger(CONSUMER_LOG), "disabled", True)  # caplog keeps errors
    queue = desk.queue()
    marks: collections.deque[weakref.ref[object]] = collections.deque()

    class Mark:
        pass

    @desk.fpika.consumer(queue)
    def handle(delivery: Delivery) -> None:
        mark: Any = Mark()
        delivery.properties.cluster_id = mark
        marks.append(weakref.ref(mark))
        if error is not None:
            raise ZeroDivisionError

    gc.disable()
    try:
        with working(desk.fpika, threads=2) as worker:
            desk.fill(queue, numbers(3))
            wait_for(lambda: len(marks) == 3, "all")
            wait_for(lambda: not any(mark() for mark in marks), "their end, without the garbage collector")
            wait_for(lambda: stats_of(worker).in_flight == 0, "the acks")
    finally:
        gc.enable()


# What handlers say


@pytest.mark.usefixtures("both_ways")
def test_what_is_requeued_comes_again(desk: Desk) -> None:
    queue, handled = desk.queue(), Handled()

    @desk.fpika.consumer(queue)
    def handle(delivery: Delivery) -> None:
        handled.append(f"{delivery.text} {delivery.redelivered}")
        if not delivery.redelivered:
            raise Requeue("not yet")

    desk.fill(queue, ["0"])
    with working(desk.fpika) as worker:
        handled.wait_for(2)
    assert list(handled) == ["0 False", "0 True"]
    stats = stats_of(worker)
    assert (stats.requeued, stats.handled, stats.failed, stats.rejected) == (1, 1, 0, 0)
    assert desk.take(queue) == []


@pytest.mark.usefixtures("both_ways")
def test_what_is_rejected_goes_to_the_dead_letter_exchange(desk: Desk) -> None:
    queue, dead = desk.with_dead_letters()

    @desk.fpika.consumer(queue)
    def handle(delivery: Delivery) -> None:
        if delivery.text in ("3", "4"):
            raise Reject("too old")

    desk.fill(queue, numbers(10))
    with working(desk.fpika) as worker:
        wait_for(lambda: desk.ready(dead) == 2, "the dead letters")
        wait_for(lambda: stats_of(worker).handled == 8, "the others")
    found = desk.take_whole(dead)
    assert sorted(body for _, _, body in found) == [b"3", b"4"]
    assert {properties.headers["x-death"][0]["reason"] for _, properties, _ in found} == {"rejected"}
    stats = stats_of(worker)
    assert (stats.rejected, stats.requeued, stats.failed) == (2, 0, 0)
    assert desk.take(queue) == []


@pytest.mark.parametrize(("on_error", "times"), [("reject", 1), ("requeue-once", 2)])
def test_a_handler_that_fails_always_ends_in_the_dead_letter_exchange(
    desk: Desk, on_error: Any, times: int
) -> None:
    queue, dead = desk.with_dead_letters()
    handled = Handled()

    @desk.fpika.consumer(queue, on_error=on_error)
    def handle(delivery: Delivery) -> None:
        handled.append(str(delivery.redelivered))
        raise ZeroDivisionError

    desk.fill(queue, ["poison"])
    with working(desk.fpika) as worker:
        wait_for(lambda: desk.ready(dead) == 1, "the dead letter")
    assert list(handled) == ["False", "True"][:times]
    assert desk.take(dead) == ["poison"]
    stats = stats_of(worker)
    assert (stats.failed, stats.requeued, stats.rejected, stats.handled) == (times, times - 1, 1, 0)


# Settling by hand


@pytest.mark.usefixtures("both_ways")
def test_any_thread_may_settle_later_and_in_any_order(desk: Desk) -> None:
    queue, dead = desk.with_dead_letters()
    kept: collections.deque[Delivery] = collections.deque()
    desk.fpika.consumer(queue, ack="manual", prefetch=4)(kept.append)
    desk.fill(queue, numbers(8))
    with working(desk.fpika) as worker:
        wait_for(lambda: len(kept) == 4, "as many as may be unsettled")
        wait_for(lambda: worker.running == 0, "the handlers' ends")
        assert (stats_of(worker).in_flight, desk.ready(queue)) == (4, 4)
        by_text = {delivery.text: delivery for delivery in kept}

        def settle() -> None:
            by_text["3"].ack()
            by_text["1"].reject()
            by_text["2"].nack(requeue=False)

        thread = threading.Thread(target=settle)
        thread.start()
        thread.join()
        wait_for(lambda: len(kept) == 7, "three more")
        with pytest.raises(SettlementError):
            by_text["3"].ack()
        with pytest.raises(SettlementError):
            by_text["1"].nack()
        by_text["0"].ack()
        wait_for(lambda: len(kept) == 8, "the last one")
        for delivery in list(kept)[4:]:
            delivery.ack()
        assert worker.stop()
    assert desk.take(queue) == []
    assert sorted(desk.take(dead)) == ["1", "2"]


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("verb", ["nack", "reject"])
def test_what_is_put_back_by_hand_comes_again(desk: Desk, verb: str) -> None:
    queue, handled = desk.queue(), Handled()

    @desk.fpika.consumer(queue, ack="manual")
    def handle(delivery: Delivery) -> None:
        handled.append(str(delivery.redelivered))
        if delivery.redelivered:
            delivery.ack()
        else:
            getattr(delivery, verb)(requeue=True)

    desk.fill(queue, ["0"])
    with working(desk.fpika) as worker:
        handled.wait_for(2)
    assert list(handled) == ["False", "True"]
    assert stats_of(worker).requeued == 1
    assert desk.take(queue) == []


@pytest.mark.usefixtures("both_ways")
def test_a_delivery_that_is_forgotten_is_rejected_and_told_once(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    queue, dead = desk.with_dead_letters()

    @desk.fpika.consumer(queue, ack="manual")
    def handle(delivery: Delivery) -> None:
        if delivery.text != "forgotten":
            delivery.ack()

    desk.fill(queue, ["0", "1", "forgotten"])
    with working(desk.fpika) as worker:
        wait_for(lambda: desk.ready(dead) == 1, "the dead letter")
        wait_for(lambda: stats_of(worker).in_flight == 0, "the others")
        assert worker.stop()
    assert desk.take(dead) == ["forgotten"]
    (line,) = lines_of(caplog, "forgot delivery")
    assert repr(queue) in line
    assert desk.take(queue) == []


def test_a_worker_waits_for_who_settles_by_hand(desk: Desk) -> None:
    queue = desk.queue()
    kept: collections.deque[Delivery] = collections.deque()
    desk.fpika.consumer(queue, ack="manual")(kept.append)
    desk.fill(queue, numbers(2))
    with working(desk.fpika) as worker:
        wait_for(lambda: len(kept) == 2, "both")
        thread, results = stop_in_thread(worker)
        wait_for(lambda: stats_of(worker).state == "draining", "the drain")
        for delivery in kept:
            delivery.ack()
        thread.join(60)
    assert results == [True]
    assert desk.take(queue) == []


@pytest.mark.usefixtures("both_ways")
def test_with_ack_none_it_is_acked_before_its_handler_ends(desk: Desk) -> None:
    queue, gate = desk.queue(), Gate()
    desk.fpika.consumer(queue, ack="none", prefetch=1)(gate.wait)
    desk.fill(queue, numbers(3))
    with working(desk.fpika, gate, threads=2) as worker:
        # With a prefetch of 1, the second one comes only when the first one is acked.
        gate.wait_for(2)
        wait_for(lambda: desk.ready(queue) == 0, "the third one to wait for a thread")
        wait_for(lambda: stats_of(worker).in_flight == 1, "the second one's ack")
        assert not worker.stop(0.0)
    assert desk.take(queue) == ["2"]


# Batches


@pytest.mark.usefixtures("both_ways")
def test_a_batch_comes_when_it_is_full(desk: Desk) -> None:
    queue = desk.queue()
    batches: collections.deque[list[str]] = collections.deque()

    @desk.fpika.consumer(queue, batch=5, batch_wait=3600)
    def handle(deliveries: list[Delivery]) -> None:
        batches.append([delivery.text for delivery in deliveries])

    with working(desk.fpika) as worker:
        desk.fill(queue, numbers(3))
        wait_for(lambda: stats_of(worker).in_flight == 3, "three to be here")
        assert not batches
        desk.fill(queue, numbers(12)[3:])
        wait_for(lambda: len(batches) == 2, "two batches")
        wait_for(lambda: stats_of(worker).in_flight == 2, "two that wait for others")
        # Those that were never handled go back at once, and where they were.
        assert worker.stop()
    assert sorted(batches) == [numbers(5), numbers(10)[5:]]
    assert stats_of(worker).handled == 10
    assert desk.take(queue) == ["10", "11"]


def test_a_batch_that_is_not_full_comes_after_its_time(desk: Desk) -> None:
    queue = desk.queue()
    batches: collections.deque[list[str]] = collections.deque()

    @desk.fpika.consumer(queue, batch=100, batch_wait=0.1)
    def handle(deliveries: list[Delivery]) -> None:
        batches.append([delivery.text for delivery in deliveries])

    def handled() -> int:
        return sum(map(len, batches))

    with working(desk.fpika):
        desk.fill(queue, numbers(3))
        wait_for(lambda: handled() == 3, "three")
        desk.fill(queue, numbers(5)[3:])
        wait_for(lambda: handled() == 5, "two more")
    assert desk.take(queue) == []


def test_batches_have_one_timer_however_many_they_are(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = desk.queue()
    timers: collections.deque[float] = collections.deque()
    call_later = Link.call_later

    def noted(self: Link, seconds: float, callback: Callable[[], object]) -> None:
        if seconds > 3000:
            timers.append(seconds)
        call_later(self, seconds, callback)

    monkeypatch.setattr(Link, "call_later", noted)

    @desk.fpika.consumer(queue, batch=2, batch_wait=3600)
    def handle(deliveries: list[Delivery]) -> None:
        """Nothing to do."""

    with working(desk.fpika) as worker:
        for count in range(1, 20, 2):  # each with one that waits for another, which comes next
            desk.fill(queue, numbers(1))
            wait_for(lambda count=count: stats_of(worker).in_flight == 1, "one to be here")  # type: ignore[misc]
            desk.fill(queue, numbers(1))
            wait_for(lambda count=count: stats_of(worker).handled == count + 1, "two to be handled")  # type: ignore[misc]
    assert len(timers) == 1


def test_a_batch_is_settled_together(desk: Desk) -> None:
    queue, dead = desk.with_dead_letters()

    @desk.fpika.consumer(queue, batch=5, batch_wait=3600)
    def handle(deliveries: list[Delivery]) -> None:
        if deliveries[0].text == "5":
            raise Reject

    desk.fill(queue, numbers(15))
    with working(desk.fpika) as worker:
        wait_for(lambda: desk.ready(dead) == 5 and stats_of(worker).handled == 10, "all")
    assert sorted(desk.take(dead), key=int) == numbers(10)[5:]
    assert desk.take(queue) == []


# Queues that come and go


def failures(worker: Worker, place: int = 0) -> int:
    return worker._subscribers[place]._failures


@pytest.mark.usefixtures("both_ways")
def test_a_missing_queue_is_told_once_and_consumed_when_it_is_there(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    queue, other, handled = desk.queue(), desk.queue(), Handled()
    desk.delete(queue)

    def handle(delivery: Delivery) -> None:
        handled.append(delivery.text)

    desk.fpika.consumer(queue)(handle)
    desk.fpika.consumer(other)(handle)
    with working(desk.fpika, ready=False) as worker:
        wait_for(lambda: failures(worker) >= 3, "some attempts")
        desk.fill(other, ["meanwhile"])
        handled.wait_for(1)
        missing, there = worker.stats()
        assert missing.state in ("backing off", "subscribing")
        assert "404 NOT_FOUND" in missing.error
        assert (there.state, there.error) == ("consuming", "")
        assert (worker.is_live, worker.is_ready) == (True, False)
        desk.declare(queue)
        desk.fill(queue, ["there"])
        handled.wait_for(2)
        wait_for(lambda: worker.is_ready, "ready")
        assert worker.stats()[0].error == ""
    assert list(handled) == ["meanwhile", "there"]
    assert len(lines_of(caplog, f"does not consume queue {queue!r}, and goes on trying: 404")) == 1
    assert len(lines_of(caplog, f"consumes queue {queue!r} again")) == 1
    assert not lines_of(caplog, repr(other))


@pytest.mark.usefixtures("both_ways")
def test_a_queue_that_is_deleted_and_made_again_is_consumed_again(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    queue, other, gate, handled = desk.queue(), desk.queue(), Gate(), Handled()

    def handle(delivery: Delivery) -> None:
        if delivery.text == "held":
            gate.wait(delivery)
        handled.append(delivery.text)

    desk.fpika.consumer(queue)(handle)
    desk.fpika.consumer(other)(handle)
    with working(desk.fpika, gate) as worker:
        desk.fill(queue, ["before", "held"])
        handled.wait_for(1)
        gate.wait_for(1)
        desk.delete(queue)
        wait_for(lambda: worker.stats()[0].state != "consuming", "the broker's word")
        desk.fill(other, ["meanwhile"])
        handled.wait_for(2)
        desk.declare(queue)
        desk.fill(queue, ["after"])
        handled.wait_for(3)
        wait_for(lambda: worker.is_ready, "ready")
        gate.open()  # which settles what came from the queue that is gone
        handled.wait_for(4)
        desk.fill(queue, ["last"])
        handled.wait_for(5)
        assert worker.stop()
    assert list(handled) == ["before", "meanwhile", "after", "held", "last"]
    told = lines_of(caplog, f"does not consume queue {queue!r}")
    assert "queue was deleted" in told[0]
    assert len(told) <= 2, "and once more, if an attempt came before the new queue"
    assert not lines_of(caplog, repr(other))
    assert desk.take(queue) == []


def test_an_exclusive_queue_of_somebody_else_is_consumed_when_it_is_free(
    desk: Desk, everyday: Node, caplog: pytest.LogCaptureFixture
) -> None:
    queue, handled = desk.queue(), Handled()
    desk.delete(queue)

    @desk.fpika.consumer(queue)
    def handle(delivery: Delivery) -> None:
        handled.append(delivery.text)

    with pika.BlockingConnection(pika.URLParameters(everyday.url)) as owner:
        owner.channel().queue_declare(queue, exclusive=True)
        with working(desk.fpika, ready=False) as worker:
            wait_for(lambda: failures(worker) >= 2, "some attempts")
            assert "405 RESOURCE_LOCKED" in stats_of(worker).error
            owner.close()
            desk.declare(queue)
            desk.fill(queue, ["free"])
            handled.wait_for(1)
        owner = pika.BlockingConnection(pika.URLParameters(everyday.url))
        owner.close()
    assert len(lines_of(caplog, "goes on trying: 405")) == 1


def test_an_exclusive_consumer_waits_for_the_queue(desk: Desk) -> None:
    queue, handled = desk.queue(), Handled()

    @desk.fpika.consumer(queue, exclusive=True)
    def handle(delivery: Delivery) -> None:
        handled.append(delivery.text)

    tag = desk.channel.basic_consume(queue, lambda *_: None)
    with working(desk.fpika, ready=False) as worker:
        wait_for(lambda: failures(worker) >= 2, "some attempts")
        assert "403 ACCESS_REFUSED" in stats_of(worker).error
        desk.channel.basic_cancel(tag)
        wait_for(lambda: worker.is_ready, "ready")
        desk.fill(queue, ["0"])
        handled.wait_for(1)


# The end


@pytest.mark.usefixtures("both_ways")
def test_what_nobody_has_begun_goes_back_at_once_and_where_it_was(desk: Desk) -> None:
    queue, gate = desk.queue(), Gate()
    desk.fill(queue, numbers(30))
    desk.fpika.consumer(queue, prefetch=20)(gate.wait)
    with working(desk.fpika, gate, threads=1) as worker:
        gate.wait_for(1)
        wait_for(lambda: stats_of(worker).in_flight == 20, "as many as may be unsettled")
        thread, results = stop_in_thread(worker)
        # While the handler runs.
        wait_for(lambda: desk.ready(queue) == 29, "those that were not begun")
        assert (worker.running, results) == (1, [])
        gate.open()
        thread.join(60)
    assert results == [True]
    assert list(gate.waiting) == ["0"]
    assert desk.take(queue) == numbers(30)[1:]


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
def test_a_stop_in_the_middle_loses_nothing_and_nothing_acked_comes_again(
    desk: Desk, queue_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # For the acks that a quorum queue of RabbitMQ 3.10 puts off: more than its node may stand still.
    monkeypatch.setattr("flask_pika.worker._PUT_OFF", 3.0 if queue_type == "quorum" else 0.5)
    queue, handled = desk.queue(queue_type=queue_type), Handled()
    desk.fill(queue, numbers(400))

    @desk.fpika.consumer(queue, prefetch=50)
    def handle(delivery: Delivery) -> None:
        handled.append(delivery.text)

    for _ in range(3):
        before = len(handled)
        with working(desk.fpika, ready=False) as worker:
            handled.wait_for(min(400, before + 40))
            assert worker.stop()
    rest = desk.take(queue)
    assert sorted([*handled, *rest], key=int) == numbers(400)
    if queue_type == "classic":  # a quorum queue has what came back in the order in which it came
        assert rest == sorted(rest, key=int)


@pytest.mark.usefixtures("both_ways")
def test_a_handler_that_is_not_done_in_time_has_its_message_come_again(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    queue, gate, handled = desk.queue(), Gate(), Handled()
    desk.fill(queue, numbers(3))

    @desk.fpika.consumer(queue)
    def handle(delivery: Delivery) -> None:
        if delivery.text == "1":
            gate.wait(delivery)
        handled.append(delivery.text)

    with working(desk.fpika, gate) as worker:
        gate.wait_for(1)
        handled.wait_for(2)
        wait_for(lambda: stats_of(worker).in_flight == 1, "the others' acks")
        assert worker.stop(0.05) is False
        assert worker.stop() is False, "what it was"
        assert stats_of(worker).state == "stopped"
        (redelivered,) = desk.take_whole(queue)
        assert (redelivered[2], redelivered[0].redelivered) == (b"1", True)
        gate.open()
        handled.wait_for(3)
    assert desk.take(queue) == []
    assert len(lines_of(caplog, "not done in time")) == 1
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_what_comes_after_a_stop_stays_in_the_queue(desk: Desk) -> None:
    queue, handled = desk.queue(), Handled()

    @desk.fpika.consumer(queue)
    def handle(delivery: Delivery) -> None:
        handled.append(delivery.text)

    with working(desk.fpika) as worker:
        assert worker.stop()
        assert worker.stop()
        desk.fill(queue, numbers(2))
        assert stats_of(worker).state == "stopped"
        assert not worker.is_ready
    assert desk.take(queue) == numbers(2)
    assert not handled


def test_a_handler_cannot_stop_its_worker(desk: Desk) -> None:
    queue = desk.queue()
    errors: list[Exception] = []
    desk.fill(queue, ["0"])

    @desk.fpika.consumer(queue)
    def handle(delivery: Delivery) -> None:
        try:
            worker.stop()
        except RuntimeError as exc:
            errors.append(exc)

    worker = desk.fpika.worker()
    with worker:
        wait_for(lambda: errors, "the error")
        assert worker.is_live
    assert "it would wait for itself" in str(errors[0])
    assert desk.take(queue) == []


def test_a_worker_is_started_once(desk: Desk) -> None:
    queue = desk.queue()
    desk.fpika.consumer(queue)(lambda _: None)
    with working(desk.fpika) as worker:
        with pytest.raises(RuntimeError, match="started before"):
            worker.start()
        assert worker.is_ready
    with pytest.raises(RuntimeError, match="make another one"):
        worker.start()


def test_a_worker_is_live_while_it_starts(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A probe that comes early has nobody restart it."""
    desk.fpika.consumer(desk.queue())(lambda _: None)
    worker = desk.fpika.worker(threads=3)
    start = threading.Thread.start
    found = [worker.is_live]

    def probed(thread: threading.Thread) -> None:
        found.append(worker.is_live)
        start(thread)
        found.append(worker.is_live)

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", probed)
        worker.start()
    assert worker.stop()
    assert len(found) >= 1 + 2 * 3
    assert all(found)


def test_a_worker_that_was_stopped_before_its_start_does_not_start(desk: Desk) -> None:
    """It could never be stopped again."""
    desk.fpika.consumer(desk.queue())(lambda _: None)
    worker = desk.fpika.worker()
    assert worker.stop()
    with pytest.raises(RuntimeError, match="make another one"):
        worker.start()
    assert stats_of(worker).state != "consuming"


def test_close_stops_the_workers_and_refuses_others(desk: Desk) -> None:
    queue, gate = desk.queue(), Gate()
    desk.fill(queue, numbers(2))

    @desk.fpika.consumer(queue, prefetch=1)
    def handle(delivery: Delivery) -> None:
        gate.wait(delivery)
        desk.fpika.publish(b"published", routing_key=queue)

    worker = desk.fpika.worker(threads=1).start()
    gate.wait_for(1)
    closing = threading.Thread(target=desk.fpika.close)
    closing.start()
    wait_for(lambda: stats_of(worker).state == "draining", "the drain")
    gate.open()
    closing.join(60)
    assert stats_of(worker).state == "stopped"
    assert desk.take(queue) == ["1", "published"]
    with pytest.raises(PoolClosed):
        desk.fpika.worker()


# Numbers and signals


def test_stats_tell_what_was_done(desk: Desk) -> None:
    queue, idle, gate = desk.queue(), desk.queue(), Gate()

    def handle(delivery: Delivery) -> None:
        if delivery.text == "gate":
            gate.wait(delivery)
        elif delivery.text == "reject":
            raise Reject
        elif delivery.text == "requeue" and not delivery.redelivered:
            raise Requeue
        elif delivery.text == "fail":
            raise ZeroDivisionError

    desk.fpika.consumer(queue)(handle)
    desk.fpika.consumer(idle)(handle)
    assert [(one.state, one.in_flight) for one in desk.fpika.stats().consumers] == [("stopped", 0)] * 2
    with working(desk.fpika, gate, queues=[queue]) as worker:
        desk.fill(queue, ["good", "good", "reject", "requeue", "fail", "gate"])
        gate.wait_for(1)
        wait_for(
            lambda: (stats_of(worker).in_flight, stats_of(worker).handled) == (1, 3),
            lambda: f"the others' end: {worker.stats()}",
        )
        running, other = desk.fpika.stats().consumers
        assert running == stats_of(worker)
        assert (running.queue, running.state, running.error) == (queue, "consuming", "")
        assert running.handler == f"{__name__}.test_stats_tell_what_was_done.<locals>.handle"
        assert (running.handled, running.failed, running.requeued, running.rejected) == (3, 1, 1, 2)
        assert 0 < running.mean_time <= running.max_time
        assert (other.queue, other.state) == (idle, "stopped")
        # What the others did is settled a moment before their threads are free.
        wait_for(lambda: worker.running == 1, "the one at the gate alone")
    assert desk.fpika.stats().consumers[0].handled == 4


def test_signals_tell_what_comes_and_what_became_of_it(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    queue = desk.queue()
    heard: collections.deque[tuple[str, Flask, str, Any]] = collections.deque()
    error = ZeroDivisionError()

    def listener(name: str) -> Callable[..., None]:
        def listen(sender: Flask, delivery: Delivery, seconds: float = 0.0, error: Any = None) -> None:
            assert seconds >= 0
            heard.append((name, sender, delivery.text, error))
            raise OSError("a receiver that raises")

        return listen

    @desk.fpika.consumer(queue)
    def handle(delivery: Delivery) -> None:
        if delivery.text == "bad":
            raise error

    listeners = {name: listener(name) for name in ("received", "handled", "handling_failed")}
    with contextlib.ExitStack() as stack:
        for name, function in listeners.items():
            stack.enter_context(getattr(signals, name).connected_to(function, sender=desk.app))
        with working(desk.fpika, threads=1) as worker:
            desk.fill(queue, ["good", "bad"])
            wait_for(lambda: len(heard) == 4, "all")
    assert list(heard) == [
        ("received", desk.app, "good", None),
        ("handled", desk.app, "good", None),
        ("received", desk.app, "bad", None),
        ("handling_failed", desk.app, "bad", error),
    ]
    assert (stats_of(worker).handled, stats_of(worker).failed) == (1, 1)
    assert len(lines_of(caplog, "a receiver of the signal")) == 4
    assert desk.take(queue) == []


def test_a_receiver_that_exits_ends_no_thread(desk: Desk) -> None:
    queue, handled = desk.queue(), Handled()

    def receiver(_sender: Flask, delivery: Delivery, **_about: Any) -> None:
        handled.append(delivery.text)
        raise SystemExit

    desk.fpika.consumer(queue)(lambda _: None)
    with signals.handled.connected_to(receiver, sender=desk.app), working(desk.fpika, threads=1) as worker:
        desk.fill(queue, numbers(3))
        handled.wait_for(3)
        assert worker.is_live
        assert worker.stop()
    assert desk.take(queue) == []


# A broker that fails


def lose(broker: Broker, worker: Worker) -> None:
    """Have the worker lose its connection, and notice it: otherwise it may be back before anybody looks."""
    broker.refuse()
    broker.drop_connections()
    wait_for(lambda: not worker.is_ready, "the loss")
    broker.accept()


@pytest.mark.usefixtures("both_ways")
def test_after_a_lost_connection_consumers_resume(
    broker: Broker, faulty: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    first, second, handled = faulty.queue(), faulty.queue(), Handled()

    def handle(delivery: Delivery) -> None:
        handled.append(delivery.text)

    for queue in (first, second):
        faulty.fpika.consumer(queue)(handle)
    with working(faulty.fpika) as worker:
        for turn in range(3):
            caplog.clear()
            written = worker._frames_written
            assert bool(written) == bool(turn)
            lose(broker, worker)
            # By it, its end knows whether the broker has had much to settle.
            assert worker._frames_written == written, "what was written over a connection before counts, too"
            wait_for(lambda: worker.is_ready, lambda: f"ready again: {worker.stats()}")
            for queue in (first, second):
                faulty.fpika.publish(f"{queue} {turn}", routing_key=queue)
            handled.wait_for(2 * (turn + 1))
            # At the broker: what was written here may be lost with the connection.
            wait_for(lambda: not any(broker.queues[queue].unacked for queue in (first, second)), "the acks")
            lost = [line for line in lines_of(caplog, ": worker: ") if "lost" in line]
            assert len(lost) == 1, "one line per incident"
    assert sorted(handled) == sorted(f"{queue} {turn}" for queue in (first, second) for turn in range(3))
    assert not broker.queues[first].messages


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("fault", ["drop", "close", "channel"])
def test_what_came_on_an_old_channel_is_not_settled_on_a_new_one(
    broker: Broker, faulty: Desk, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    queue, first, second, handled = faulty.queue(), Gate(), Gate(), Handled()

    @faulty.fpika.consumer(queue)
    def handle(delivery: Delivery) -> None:
        if delivery.text == "held":
            (second if delivery.redelivered else first).wait(delivery)
        handled.append(f"{delivery.text} {delivery.redelivered}")

    def held() -> bool:
        return [message.text for message in broker.queues[queue].unacked] == ["held"]

    with working(faulty.fpika, first, second) as worker:
        faulty.fill(queue, ["held"])
        first.wait_for(1)
        if fault == "drop":
            broker.drop_connections()
        elif fault == "close":
            broker.close_connections()
        else:
            broker.close_channel()
        second.wait_for(1)
        # The same tag, 1, on the new channel.
        first.open()
        handled.wait_for(1)
        wait_for(lambda: worker.running == 1, "its end")
        faulty.fpika.publish("after", routing_key=queue)
        handled.wait_for(2)
        wait_for(held, "the ack of what came after, and of nothing else")
        wait_for(lambda: stats_of(worker).in_flight == 1, "the same here")
        assert worker.is_ready
        caplog.clear()
        second.open()
        handled.wait_for(3)
        wait_for(lambda: not broker.queues[queue].unacked, "the ack")
        assert worker.is_ready
    assert list(handled) == ["held False", "after False", "held True"]
    assert not broker.queues[queue].messages
    assert not caplog.records, "no channel was closed over it"


@pytest.mark.usefixtures("both_ways")
def test_by_hand_nothing_of_an_old_connection_is_settled_on_a_new_one(broker: Broker, faulty: Desk) -> None:
    queue = faulty.queue()
    kept: list[Delivery] = []
    faulty.fpika.consumer(queue, ack="manual")(kept.append)
    with working(faulty.fpika) as worker:
        faulty.fill(queue, ["0"])
        wait_for(lambda: len(kept) == 1, "the first time")
        broker.drop_connections()
        wait_for(lambda: len(kept) == 2, "the second time")
        kept[0].ack()
        with pytest.raises(SettlementError):
            kept[0].reject()
        faulty.fpika.publish("1", routing_key=queue)
        wait_for(lambda: len(kept) == 3, "another one")
        kept[2].ack()
        wait_for(lambda: len(broker.queues[queue].unacked) == 1, "its ack")
        assert broker.queues[queue].unacked[0].text == "0"
        kept[1].ack()
        wait_for(lambda: not broker.queues[queue].unacked, "the ack on the connection that it came from")
        assert worker.is_ready
    assert not broker.queues[queue].messages


@pytest.mark.usefixtures("both_ways")
def test_what_nobody_had_begun_is_not_handled_twice_after_a_loss(broker: Broker, faulty: Desk) -> None:
    queue, gate, handled = faulty.queue(), Gate(), Handled()
    faulty.fill(queue, numbers(10))

    @faulty.fpika.consumer(queue)
    def handle(delivery: Delivery) -> None:
        gate.wait(delivery)
        handled.append(delivery.text)

    with working(faulty.fpika, gate, threads=1) as worker:
        wait_for(lambda: stats_of(worker).in_flight == 10, "all")
        gate.wait_for(1)
        lose(broker, worker)
        wait_for(lambda: worker.is_ready and stats_of(worker).in_flight == 10, "all, again")
        gate.open()
        handled.wait_for(11)
        wait_for(lambda: not broker.queues[queue].unacked, "the acks")
    assert collections.Counter(handled) == {"0": 2} | dict.fromkeys(numbers(10)[1:], 1)
    assert not broker.queues[queue].messages


@pytest.mark.usefixtures("both_ways")
def test_a_batch_that_was_gathered_is_forgotten_with_its_connection(broker: Broker, faulty: Desk) -> None:
    queue = faulty.queue()
    batches: collections.deque[list[str]] = collections.deque()

    @faulty.fpika.consumer(queue, batch=3, batch_wait=3600)
    def handle(deliveries: list[Delivery]) -> None:
        batches.append([delivery.text for delivery in deliveries])

    faulty.fill(queue, numbers(2))
    with working(faulty.fpika) as worker:
        wait_for(lambda: stats_of(worker).in_flight == 2, "two")
        lose(broker, worker)
        wait_for(lambda: worker.is_ready and stats_of(worker).in_flight == 2, "two, again")
        faulty.fpika.publish("2", routing_key=queue)
        wait_for(lambda: batches, "a batch")
    assert list(batches) == [numbers(3)]
    assert not broker.queues[queue].messages


@pytest.mark.usefixtures("both_ways")
def test_a_channel_that_is_closed_is_its_consumers_own_affair(
    broker: Broker, faulty: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    other, first, second = faulty.queue(), faulty.queue(), faulty.queue()
    gate, handled = Gate(), Handled()
    faulty.fpika.consumer(other)(lambda _: None)
    faulty.fpika.consumer(second)(gate.wait)

    @faulty.fpika.consumer(first)
    def handle(delivery: Delivery) -> None:
        handled.append(delivery.text)

    with working(faulty.fpika, gate) as worker:
        faulty.fill(second, ["held"])
        gate.wait_for(1)
        for turn in range(3):
            caplog.clear()
            # The third one's: nobody else has so many channels.
            broker.close_channel(number=3)
            faulty.fill(first, [turn])
            handled.wait_for(turn + 1)
            wait_for(lambda: worker.is_ready, "ready again")
            assert len(lines_of(caplog, f"does not consume queue {first!r}, and goes on trying: 541")) == 1
            assert len(lines_of(caplog, f"consumes queue {first!r} again")) == 1
            assert not lines_of(caplog, repr(second))
            wait_for(lambda: not broker.queues[first].unacked, "its ack")
        assert [one.in_flight for one in worker.stats()] == [0, 1, 0]
        assert list(gate.waiting) == ["held"]
        gate.open()
        wait_for(lambda: not broker.queues[second].unacked, "the ack on the channel that went on")
    assert list(handled) == numbers(3)


def test_a_broker_that_is_frozen_is_noticed_and_consumed_again(broker: Broker, faulty: Desk) -> None:
    """Not the public way: what is not noticed by the link is noticed by pika, but that takes long."""
    # Not 1: after two heartbeats, the broker hangs up on who stood still.
    params = {"host": "127.0.0.1", "port": broker.port, "heartbeat": 2}
    app, fpika = make_app(params, name="patient")
    queue, handled, gate = faulty.queue(), Handled(), Gate()

    @fpika.consumer(queue)
    def handle(delivery: Delivery) -> None:
        if not delivery.redelivered:
            gate.wait(delivery)
        handled.append(f"{delivery.text} {delivery.redelivered}")

    with working(fpika, gate) as worker:
        faulty.fill(queue, ["held"])
        gate.wait_for(1)
        broker.freeze()
        wait_for(lambda: not worker.is_ready, "somebody to notice")
        broker.thaw()
        wait_for(lambda: worker.is_ready, "ready again")
        handled.wait_for(1)
        gate.open()
        handled.wait_for(2)
        wait_for(lambda: not broker.queues[queue].unacked, "the ack")
    assert list(handled) == ["held True", "held False"]
    assert not broker.queues[queue].messages
    assert app is not None


@pytest.mark.usefixtures("both_ways")
def test_a_broker_that_is_away_is_waited_for(
    broker: Broker, faulty: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    queue, handled = faulty.queue(), Handled()

    @faulty.fpika.consumer(queue)
    def handle(delivery: Delivery) -> None:
        handled.append(delivery.text)

    with working(faulty.fpika) as worker:
        broker.refuse()
        broker.drop_connections()
        wait_for(lambda: worker._link._failed_rounds >= 3, "some attempts")
        assert stats_of(worker).state == "connecting"
        assert worker.is_live
        broker.accept()
        wait_for(lambda: worker.is_ready, "ready again")
        faulty.fpika.publish("0", routing_key=queue)
        handled.wait_for(1)
    assert len(lines_of(caplog, ": worker: RabbitMQ is back")) == 1


def test_a_worker_whose_broker_is_away_stops_at_once() -> None:
    _app, fpika = make_app({"host": "127.0.0.1", "port": free_port()})
    fpika.consumer("orders")(lambda _: None)
    worker = fpika.worker().start()
    wait_for(lambda: worker._link.error is not None, "an attempt")
    assert stats_of(worker).state == "connecting"
    assert worker.stop()
    assert stats_of(worker).state == "stopped"


def test_a_stop_during_a_loss_waits_for_who_runs(broker: Broker, faulty: Desk) -> None:
    queue, gate = faulty.queue(), Gate()
    faulty.fill(queue, numbers(3))
    faulty.fpika.consumer(queue)(gate.wait)
    with working(faulty.fpika, gate, threads=1) as worker:
        gate.wait_for(1)
        broker.refuse()
        broker.drop_connections()
        wait_for(lambda: stats_of(worker).state == "connecting", "the loss")
        thread, results = stop_in_thread(worker)
        wait_for(lambda: stats_of(worker).state == "draining", "the drain")
        assert results == []
        gate.open()
        thread.join(60)
    assert results == [True]
    assert [message.text for message in broker.queues[queue].messages] == numbers(3)


def test_a_stop_during_a_loss_tells_that_one_was_not_done(broker: Broker, faulty: Desk) -> None:
    queue, gate = faulty.queue(), Gate()
    faulty.fill(queue, ["0"])
    faulty.fpika.consumer(queue)(gate.wait)
    with working(faulty.fpika, gate) as worker:
        gate.wait_for(1)
        broker.refuse()
        broker.drop_connections()
        wait_for(lambda: stats_of(worker).state == "connecting", "the loss")
        # Nothing is unsettled any more, and yet somebody works.
        assert worker.stats()[0].in_flight == 0
        assert worker.stop(0.3) is False


def test_a_connection_that_is_lost_during_a_drain_is_not_resumed(broker: Broker, faulty: Desk) -> None:
    queue, gate = faulty.queue(), Gate()
    faulty.fill(queue, numbers(3))
    faulty.fpika.consumer(queue)(gate.wait)
    with working(faulty.fpika, gate, threads=1) as worker:
        gate.wait_for(1)
        thread, results = stop_in_thread(worker)
        wait_for(lambda: stats_of(worker).state == "draining", "the drain")
        broker.drop_connections()
        wait_for(lambda: len(broker.queues[queue].messages) == 3, "all to be back")
        wait_for(lambda: any("worker" in name for name in broker.connections), "the connection")
        gate.open()
        thread.join(60)
        assert broker.queues[queue].consumers == 0
    assert results == [True]
    assert list(gate.waiting) == ["0"]
    assert [message.text for message in broker.queues[queue].messages] == numbers(3)


def test_refused_credentials_are_told_once_and_tried_again(everyday: Node) -> None:
    assert isinstance(everyday.params, dict)
    _app, fpika = make_app({**everyday.params, "password": "wrong-s3cret"})
    fpika.consumer("orders")(lambda _: None)
    worker = fpika.worker()
    told: list[int] = []
    worker.on_refused = lambda: told.append(1)
    with worker:
        wait_for(lambda: worker._link._failed_rounds >= 2, "two attempts")
        assert isinstance(worker.refused, AuthenticationRefused)
        assert "wrong-s3cret" not in str(worker.refused)
        assert told == [1]
        assert (worker.is_live, worker.is_ready) == (True, False)


def test_a_worker_knows_what_operators_see_of_it(desk: Desk, everyday: Node) -> None:
    desk.fpika.consumer(desk.queue())(lambda _: None)
    with working(desk.fpika):
        wait_for(
            lambda: any(
                name.startswith("shop") and name.endswith(": worker") for name in everyday.connections()
            ),
            lambda: f"its name: {everyday.connections()}",
        )
