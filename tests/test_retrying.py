"""Retries and dead letters on a broker: when a message comes again, to whom, and where it ends."""

from __future__ import annotations

import collections
import contextlib
import itertools
import logging
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pika
import pytest

from flask_pika import Delivery, Reject, Requeue, Retry, RetryLater, failures
from flask_pika.backoff import Backoff
from flask_pika.broker import Broker
from flask_pika.encoded import EncodedProperties
from flask_pika.retry import dead_queue, waiting_queue
from tests.conftest import Node, wait_for
from tests.test_worker import Desk, Gate, Handled, lines_of, stats_of, working
from tests.test_worker import _patient_goodbye as _patient_goodbye

CONSUMER_LOG = "flask_pika.consumer"
#: A broker's timer counts whole milliseconds, on a clock of its own.
TOLERANCE = 0.002
QUICK = Retry(attempts=3, delay=0.02, factor=2)


class RetryDesk(Desk):
    """A desk whose queues may have others for their retries and dead letters."""

    def work(
        self, kind: str = "quorum", retry: Retry = QUICK, more: Iterable[float] = (), **about: Any
    ) -> str:
        """A queue; all of its others are deleted at the end.

        :param more: delays that handlers ask for, besides those of ``retry``.
        """
        queue = self.queue(queue_type=kind, **about)
        self._queues += [waiting_queue(queue, delay).name for delay in (*retry.delays, *more)]
        self._queues.append(dead_queue(queue).name)
        return queue

    def dead(self, queue: str, count: int) -> list[tuple[Any, Any, bytes]]:
        """The dead letters of a queue, when there are so many; it is empty afterwards."""
        name = dead_queue(queue).name
        wait_for(lambda: self.ready(name) >= count, lambda: f"{count} in {name}: {self.ready(name)}")
        found = self.take_whole(name)
        assert len(found) == count
        return found

    def is_idle(self, queue: str, retry: Retry = QUICK, more: Iterable[float] = ()) -> None:
        """Nothing of it is left anywhere but among the dead letters; after the worker's end."""
        for name in (queue, *(waiting_queue(queue, delay).name for delay in (*retry.delays, *more))):
            assert self.ready(name) == 0, name


@pytest.fixture
def desk(everyday: Node) -> Iterator[RetryDesk]:
    made = RetryDesk(everyday.url, everyday.params)
    yield made
    made.close()


@pytest.fixture
def faulty() -> Iterator[tuple[RetryDesk, Broker]]:
    """On a broker for faults."""
    with Broker() as broker:
        desk = RetryDesk(broker.url, broker.url)
        yield desk, broker
        with contextlib.suppress(pika.exceptions.AMQPError):  # the connection may have been cut
            desk.close()


@dataclass
class Arrival:
    """One run of a handler."""

    text: str
    attempt: int
    exchange: str
    routing_key: str
    redelivered: bool
    encoded: bytes
    came: float
    ended: float = 0.0


class Failing:
    """A handler that fails, for each message as often as is said, and notes when it ran.

    :param times: how often; for all, or by their bodies.
    """

    def __init__(
        self,
        times: int | dict[str, int] = 1000,
        error: Callable[[], BaseException] = ZeroDivisionError,
    ) -> None:
        self._times = times
        self._error = error
        self.arrivals: collections.deque[Arrival] = collections.deque()
        self.handled = Handled()

    def __call__(self, delivery: Delivery) -> None:
        arrival = self.note(delivery)
        if self.fails(delivery):
            arrival.ended = time.monotonic()
            raise self._error()
        self.handled.append(delivery.text)

    def note(self, delivery: Delivery) -> Arrival:
        arrival = Arrival(
            delivery.text,
            delivery.attempt,
            delivery.exchange,
            delivery.routing_key,
            delivery.redelivered,
            b"".join(delivery.encoded().encode()),
            time.monotonic(),
        )
        self.arrivals.append(arrival)
        return arrival

    def fails(self, delivery: Delivery) -> bool:
        times = self._times if isinstance(self._times, int) else self._times.get(delivery.text, 0)
        return delivery.attempt <= times

    def wait_for(self, count: int) -> list[Arrival]:
        wait_for(lambda: len(self.arrivals) >= count, lambda: f"{count} runs: {list(self.arrivals)}")
        return list(self.arrivals)


def pauses(arrivals: Sequence[Arrival]) -> list[float]:
    """Between a failure and the next attempt."""
    return [after.came - before.ended for before, after in itertools.pairwise(arrivals)]


def no_earlier(arrivals: Sequence[Arrival], delays: Sequence[float]) -> None:
    assert len(arrivals) == len(delays) + 1
    for pause, delay in zip(pauses(arrivals), delays, strict=True):
        assert pause >= delay - TOLERANCE, (pauses(arrivals), delays)


# As configured


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize(
    ("kind", "error"),
    [("classic", lambda: ZeroDivisionError("of\x00 zero")), ("quorum", lambda: SystemExit(3))],
)
def test_a_message_comes_as_often_as_is_said_and_never_too_early_and_then_is_dead(
    desk: RetryDesk, kind: str, error: Callable[[], BaseException]
) -> None:
    retry = Retry(attempts=4, delay=0.05, factor=2, max_delay=0.12)
    queue, failing = desk.work(kind, retry), Failing(error=error)
    desk.fpika.consumer(queue, retry=retry)(failing)
    with working(desk.fpika, threads=1) as worker:
        before = time.time()
        desk.fill(queue, ["poor"])
        ((method, properties, body),) = desk.dead(queue, 1)
        after = time.time()
        wait_for(lambda: stats_of(worker).dead == 1, "its count")
        assert worker.is_ready
    arrivals = list(failing.arrivals)
    assert [one.attempt for one in arrivals] == [1, 2, 3, 4]
    no_earlier(arrivals, [0.05, 0.1, 0.12])
    assert not any(one.redelivered for one in arrivals)
    stats = stats_of(worker)
    assert (stats.retried, stats.dead, stats.failed, stats.handled, stats.rejected) == (3, 1, 4, 0, 0)
    desk.is_idle(queue, retry)
    # As documented.
    assert body == b"poor"
    assert properties.message_id == "id-poor"
    headers = properties.headers
    headers.pop("x-delivery-count", None)  # a quorum queue's own
    traceback = headers.pop("x-failure-traceback")
    assert traceback.startswith("Traceback")
    assert "test_retrying.py" in traceback
    times = [headers.pop(f"x-failure-{which}-time") for which in ("first", "last")]
    assert time.strftime("%Y-%m-%dT%H:%M", time.gmtime(before)) <= times[0] < times[1]
    assert times[1] <= time.strftime("%Y-%m-%dT%H:%M:%S.999+00:00", time.gmtime(after))
    assert "(pid " in headers.pop("x-failure-host")
    assert headers == {
        "x-failure-attempts": 4,
        "x-failure-type": type(error()).__name__,
        "x-failure-message": str(error()),
        "x-failure-exchange": "",
        "x-failure-routing-key": queue,
        "x-failure-queue": queue,
        "x-failure-reason": "attempts",
    }
    assert method.routing_key == f"{queue}.dead"


@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_each_message_is_handled_once_in_the_end(desk: RetryDesk, kind: str) -> None:
    queue = desk.work(kind)
    times = {f"{n}": n % 5 for n in range(100)}  # more than two are too many
    failing = Failing(times)
    desk.fpika.consumer(queue, retry=QUICK)(failing)
    desk.fill(queue, times)
    with working(desk.fpika) as worker:
        dead = {body.decode() for _, _, body in desk.dead(queue, 40)}
        failing.handled.wait_for(60)
        wait_for(lambda: stats_of(worker).in_flight == 0, "all are settled")
    assert sorted(failing.handled) == sorted(text for text, n in times.items() if n <= 2)
    assert dead == {text for text, n in times.items() if n > 2}
    runs = collections.Counter(one.text for one in failing.arrivals)
    assert runs == {text: min(n + 1, 3) for text, n in times.items()}
    desk.is_idle(queue)


def test_one_attempt_is_none_again(desk: RetryDesk) -> None:
    retry = Retry(attempts=1)
    queue, failing = desk.work(retry=retry), Failing()
    desk.fpika.consumer(queue, retry=retry)(failing)
    desk.fill(queue, ["once"])
    with working(desk.fpika):
        ((_, properties, _),) = desk.dead(queue, 1)
    assert properties.headers["x-failure-attempts"] == 1
    assert len(failing.arrivals) == 1


def test_two_consumers_of_one_exchange_do_not_see_each_others_retries(desk: RetryDesk) -> None:
    first, second = desk.work("classic"), desk.work("quorum")
    failing, other = Failing(2), Failing({"b": 1})
    desk.channel.exchange_declare("two", "topic", durable=True)
    for queue in (first, second):
        desk.channel.queue_bind(queue, "two", "order.#")
    desk.fpika.consumer(first, retry=QUICK)(failing)
    desk.fpika.consumer(second, retry=QUICK)(other)
    with working(desk.fpika):
        for text in "abc":
            desk.channel.basic_publish("two", f"order.{text}", text.encode())
        failing.handled.wait_for(3)
        other.handled.wait_for(3)
    desk.channel.exchange_delete("two")
    runs = collections.Counter(one.text for one in failing.arrivals)
    assert runs == {"a": 3, "b": 3, "c": 3}
    assert collections.Counter(one.text for one in other.arrivals) == {"a": 1, "b": 2, "c": 1}
    # Nor does a handler see that it came another way.
    for one in (*failing.arrivals, *other.arrivals):
        assert (one.exchange, one.routing_key) == ("two", f"order.{one.text}")
    desk.is_idle(first)
    desk.is_idle(second)
    assert desk.ready(f"{first}.dead") == desk.ready(f"{second}.dead") == 0


def test_what_fails_in_order_comes_again_in_order(desk: RetryDesk) -> None:
    queue, failing = desk.work(), Failing(1)
    retry = Retry(attempts=2, delay=0.3)
    desk._queues.append(waiting_queue(queue, 0.3).name)
    desk.fpika.consumer(queue, prefetch=1, retry=retry)(failing)
    texts = [str(n) for n in range(30)]
    desk.fill(queue, texts)
    with working(desk.fpika):
        failing.handled.wait_for(30)
    assert list(failing.handled) == texts


# At once to the dead letters


@pytest.mark.parametrize(
    ("body", "error", "reason"),
    [
        (b"never", Reject("never good"), "rejected"),
        (b"{", None, "undecodable"),
        (b"\xff", None, "undecodable"),
    ],
)
@pytest.mark.parametrize("has_retry", [True, False])
def test_what_never_gets_better_is_dead_at_once(
    desk: RetryDesk, body: bytes, error: Exception | None, reason: str, has_retry: bool
) -> None:
    queue = desk.work()
    runs: list[int] = []

    @desk.fpika.consumer(queue, retry=QUICK if has_retry else None)
    def handle(delivery: Delivery) -> None:
        runs.append(delivery.attempt)
        if error is not None:
            raise error
        _ = delivery.json

    if not has_retry:
        # As it stands, which is otherwise: that is said, and nothing changed.
        desk.fpika.queue(queue, dead_letter=True)
    desk.fill(queue, [body])
    with working(desk.fpika):
        ((_, properties, found),) = desk.dead(queue, 1)
    assert (found, runs) == (body, [1])
    headers = properties.headers
    assert (headers["x-failure-reason"], headers["x-failure-attempts"]) == (reason, 1)
    assert headers["x-failure-type"] == ("Reject" if error else "UndecodableMessage")
    if error:
        assert headers["x-failure-message"] == "never good"


# A handler's own word


def test_a_handler_says_when(desk: RetryDesk) -> None:
    retry, asked = Retry(attempts=4, delay=0.01), [0.123, None, 0]
    queue = desk.work(retry=retry, more=[0.13, 0.001])
    failing = Failing()

    @desk.fpika.consumer(queue, retry=retry)
    def handle(delivery: Delivery) -> None:
        arrival = failing.note(delivery)
        if delivery.attempt <= len(asked):
            arrival.ended = time.monotonic()
            raise RetryLater("busy", delay=asked[delivery.attempt - 1])
        failing.handled.append(delivery.text)

    desk.fill(queue, ["a"])
    with working(desk.fpika) as worker:
        failing.handled.wait_for(1)
        assert stats_of(worker).failed == 0
        wait_for(lambda: stats_of(worker).retried == 3, "its count, which may come after the copy")
    no_earlier(list(failing.arrivals), [0.13, 0.02, 0.001])
    desk.is_idle(queue, retry, [0.13, 0.001])


def test_a_delay_that_is_none_is_the_handlers_failure(desk: RetryDesk) -> None:
    queue, handled = desk.work(), Handled()

    @desk.fpika.consumer(queue, retry=QUICK)
    def handle(delivery: Delivery) -> None:
        if delivery.attempt == 1:
            raise RetryLater(delay=float("nan"))
        handled.append(delivery.text)

    desk.fill(queue, ["a"])
    with working(desk.fpika) as worker:
        handled.wait_for(1)
        assert stats_of(worker).failed == 1


def test_a_requeue_is_no_attempt(desk: RetryDesk) -> None:
    queue, failing = desk.work("classic"), Failing()

    @desk.fpika.consumer(queue, retry=QUICK)
    def handle(delivery: Delivery) -> None:
        failing.note(delivery)
        if len(failing.arrivals) < 5:
            raise Requeue
        failing.handled.append(delivery.text)

    desk.fill(queue, ["a"])
    with working(desk.fpika):
        failing.handled.wait_for(1)
    assert {one.attempt for one in failing.arrivals} == {1}


def test_one_bad_message_of_a_batch_takes_no_other_with_it(desk: RetryDesk) -> None:
    retry = Retry(attempts=2, delay=0.02)
    queue = desk.work(retry=retry)
    batches: list[list[tuple[str, int]]] = []
    handled = Handled()

    @desk.fpika.consumer(queue, retry=retry, batch=3, batch_wait=60)
    def handle(deliveries: list[Delivery]) -> None:
        batches.append([(delivery.text, delivery.attempt) for delivery in deliveries])
        if "bad" in (delivery.text for delivery in deliveries):
            raise ValueError("bad")
        handled.extend(delivery.text for delivery in deliveries)

    with working(desk.fpika, threads=1) as worker:
        desk.fill(queue, ["a", "bad", "b"])
        assert [body for _, _, body in desk.dead(queue, 1)] == [b"bad"]
        handled.wait_for(2)
        wait_for(lambda: stats_of(worker).dead == 1, "it is counted")
        assert stats_of(worker).retried == 3
    assert batches[0] == [("a", 1), ("bad", 1), ("b", 1)]
    assert sorted(batches[1:]) == [[("a", 2)], [("b", 2)], [("bad", 2)]]
    desk.is_idle(queue, retry)


def test_a_manual_delivery_is_tried_again_unless_it_was_settled(desk: RetryDesk) -> None:
    queue, failing = desk.work(), Failing()

    @desk.fpika.consumer(queue, retry=QUICK, ack="manual")
    def handle(delivery: Delivery) -> None:
        failing.note(delivery)
        if delivery.text == "acked" or delivery.attempt == 2:
            delivery.ack()
            failing.handled.append(delivery.text)
        raise ValueError(delivery.text)

    desk.fill(queue, ["acked", "failing"])
    with working(desk.fpika):
        failing.handled.wait_for(2)
    assert sorted((one.text, one.attempt) for one in failing.arrivals) == [
        ("acked", 1),
        ("failing", 1),
        ("failing", 2),
    ]
    desk.is_idle(queue)
    assert desk.ready(f"{queue}.dead") == 0


# What is kept


def test_the_message_is_the_same_but_for_what_is_said_about_its_failure(desk: RetryDesk) -> None:
    queue, failing = desk.work(), Failing()
    body = bytes(range(256)) * 2000  # more than a frame
    headers = {
        b"float": b"d" + struct.pack(">d", 0.1),
        b"short": b"s" + struct.pack(">h", -5),
        b"bytes": b"x\x00\x00\x00\x02\xff\xfe",
        b"none": b"V",
        b"table": b"F\x00\x00\x00\x0b\x01d" + b"d" + struct.pack(">d", 1.5),
    }
    table = b"".join(bytes([len(name)]) + name + value for name, value in headers.items())
    make: Any = pika.BasicProperties
    named = {
        "correlation_id": "c",
        "reply_to": "amq.nowhere",
        "priority": 5,
        "timestamp": 7,
        "type": "t",
        "app_id": "a",
        "delivery_mode": 1,
    }
    plain = b"".join(make(headers={}, **named, user_id="guest", expiration="60000").encode())
    given = EncodedProperties(plain)
    given._table = headers_of = dict(headers)
    assert table in b"".join(given.encode())

    @desk.fpika.consumer(queue, retry=Retry(attempts=4, delay=0.01, factor=1))
    def handle(delivery: Delivery) -> None:
        assert delivery.body == body
        failing.arrivals.append(
            Arrival("", delivery.attempt, "", "", False, b"".join(delivery.encoded().encode()), 0)
        )
        raise ValueError("again")

    desk._queues.append(waiting_queue(queue, 0.01).name)
    with working(desk.fpika):
        desk.channel.basic_publish("", queue, body, given)
        ((_, _, found),) = desk.dead(queue, 1)
    assert found == body
    first, second, third, fourth = (EncodedProperties(one.encoded) for one in failing.arrivals)
    made = second.message_id
    assert made, "the copy has an id, for returns"
    for number, copy in enumerate((second, third, fourth), 1):
        assert copy.message_id == made
        deaths = copy.values("x-death")[""]
        assert (len(deaths), deaths[0]["count"], deaths[0]["reason"]) == (1, 1, "expired"), "it does not grow"
        assert copy.values("x-failure-")["attempts"] == number
        copy.message_id = None
        copy.leave_out_headers(
            lambda name: name.startswith(("x-failure-", "x-death", "x-first-death-", "x-last-"))
        )
        first.leave_out("user_id", "expiration")
        first.leave_out_headers(lambda name: name.startswith("x-delivery"))
        copy.leave_out_headers(lambda name: name.startswith("x-delivery"))
        assert set(copy._table) == set(first._table) == set(headers_of)
        assert copy.values("") == first.values("")
        assert copy._fields == first._fields


def test_what_is_replayed_begins_anew_and_says_where_it_came_from(desk: RetryDesk) -> None:
    queue, failing = desk.work(), Failing()
    desk.channel.queue_bind(queue, "amq.topic", "order.*")
    desk.fpika.consumer(queue, retry=QUICK)(failing)
    with working(desk.fpika):
        desk.channel.basic_publish("amq.topic", "order.new", b"a")
        ((_, properties, body),) = desk.dead(queue, 1)
        again = failures.revived(EncodedProperties(b"".join(properties.encode())))
        desk.channel.basic_publish("", queue, body, again)
        desk.dead(queue, 1)
    assert [one.attempt for one in failing.arrivals] == [1, 2, 3] * 2
    assert {(one.exchange, one.routing_key) for one in failing.arrivals} == {("amq.topic", "order.new")}


# Queues that are not as they should be


def test_queues_that_somebody_deleted_are_made_again(desk: RetryDesk) -> None:
    queue, failing = desk.work(), Failing(1)
    desk.fpika.consumer(queue, retry=QUICK)(failing)
    with working(desk.fpika) as worker:
        desk.delete(waiting_queue(queue, 0.02).name)
        desk.fill(queue, ["a"])
        failing.handled.wait_for(1)
        desk.delete(dead_queue(queue).name)
        desk.channel.basic_publish("", queue, b"b", pika.BasicProperties(headers={"x-failure-attempts": -1}))
        failing.handled.wait_for(2)
        failing._times = 1000
        desk.fill(queue, ["c"])
        wait_for(lambda: stats_of(worker).dead == 1, "it is there again")
        ((_, _, body),) = desk.dead(queue, 1)
    assert body == b"c"
    # With what makes it one.
    desk.declare(
        waiting_queue(queue, 0.02).name,
        **{key[2:].replace("-", "_"): value for key, value in waiting_queue(queue, 0.02).arguments.items()},
    )


def test_what_is_not_to_be_declared_is_not(desk: RetryDesk, caplog: pytest.LogCaptureFixture) -> None:
    desk.app, desk.fpika = remade(desk, declare="never")
    queue, failing = desk.work(), Failing()
    desk.fpika.consumer(queue, retry=QUICK)(failing)
    with working(desk.fpika):
        desk.fill(queue, ["a"])
        wait_for(lambda: len(lines_of(caplog, "FLASK_PIKA_DECLARE is 'never'")) >= 2, "it tries again")
    assert len(failing.arrivals) == 1, "what is tried again is the copy"
    assert desk.take(queue) == ["a"], "nothing is lost"


def remade(desk: Desk, declare: str = "auto", **publisher: Any) -> tuple[Any, Any]:
    from flask import Flask

    from flask_pika import Pika

    app = Flask("shop")
    app.config["FLASK_PIKA_PARAMS"] = desk.app.config["FLASK_PIKA_PARAMS"]
    app.config["FLASK_PIKA_DECLARE"] = declare
    app.config["FLASK_PIKA_PUBLISHER_PARAMS"] = publisher
    return app, Pika(app)


def test_what_cannot_be_copied_is_copied_later_and_not_handled_again(
    desk: RetryDesk, caplog: pytest.LogCaptureFixture
) -> None:
    # A delivery that went back would count, for the queue's limit, each time.
    queue, failing = desk.work(delivery_limit=1), Failing()
    full = dead_queue(queue).name
    desk.declare(full, queue_type="classic", max_length=1, overflow="reject-publish")
    desk.fill(full, ["in the way"])
    desk.fpika.consumer(queue, retry=Retry(attempts=1))(failing)
    desk.fill(queue, ["a"])
    said = f"was not copied to queue '{full}', and will be: the broker did not take"
    with working(desk.fpika):
        wait_for(lambda: len(lines_of(caplog, said)) >= 4, "it tries again")
        tries = [one.created for one in caplog.records if said in one.getMessage()]
        # Doubling from 0.1 s, each shortened by up to a half.
        for (before, after), least in zip(itertools.pairwise(tries), (0.05, 0.1, 0.2), strict=False):
            assert after - before >= least - TOLERANCE
        assert desk.take(full) == ["in the way"]
        ((_, _, body),) = desk.dead(queue, 1)
    assert body == b"a"
    assert len(failing.arrivals) == 1
    assert desk.take(queue) == []


def test_the_end_does_not_wait_for_what_is_held(desk: RetryDesk) -> None:
    queue, failing = desk.work(), Failing()
    full = dead_queue(queue).name
    desk.declare(full, queue_type="classic", max_length=0, overflow="reject-publish")
    desk.fpika.consumer(queue, retry=Retry(attempts=1))(failing)
    with working(desk.fpika) as worker:
        subscriber = worker._subscribers[0]
        subscriber._backoff = Backoff(600.0, 600.0)  # it holds for minutes now
        desk.fill(queue, ["a"])
        failing.wait_for(1)
        wait_for(lambda: subscriber._held, "it is held")
        wait_for(lambda: worker.running == 0, "by no thread")
        assert worker.stop(), "which has less time than that"
    assert len(failing.arrivals) == 1
    assert desk.take(queue) == ["a"]


# While the broker is not as it should be


def test_a_worker_ends_in_time_though_its_copies_are_not_confirmed(faulty: tuple[RetryDesk, Broker]) -> None:
    desk, broker = faulty
    desk.app, desk.fpika = remade(desk, timeout=60)
    queue, failing = desk.work(), Failing()
    desk.fpika.consumer(queue, retry=QUICK)(failing)
    desk.fill(queue, ["first"])
    with working(desk.fpika) as worker:
        failing.wait_for(3)  # it is connected, and all is declared
        desk.dead(queue, 1)
        broker.hold_confirms()
        desk.channel = desk._connection.channel()  # which waits for no confirms
        desk.fill(queue, ["a"])
        failing.wait_for(4)
        began = time.monotonic()
        assert not worker.stop(0.3)
        assert time.monotonic() - began < 20
        waits = {body.text for body in broker.queues[queue].messages}
        copies = {body.text for body in broker.queues[waiting_queue(queue, 0.02).name].messages}
        assert "a" in waits | copies, "one of the two"
        wait_for(lambda: "a" in {body.text for body in broker.queues[queue].messages}, "it is back")
        broker.release_confirms()


@pytest.mark.usefixtures("both_ways")
def test_of_what_its_lost_connection_brings_again_no_copy_is_made(faulty: tuple[RetryDesk, Broker]) -> None:
    desk, broker = faulty
    queue, failing, gate = desk.work(), Failing(), Gate()

    @desk.fpika.consumer(queue, retry=QUICK)
    def handle(delivery: Delivery) -> None:
        failing.note(delivery)
        if len(failing.arrivals) == 1:
            gate.wait(delivery)
            raise ValueError("too late")
        failing.handled.append(delivery.text)

    desk.fill(queue, ["a"])
    with working(desk.fpika, gate) as worker:
        gate.wait_for(1)
        broker.drop_connections()
        failing.handled.wait_for(1)
        gate.open()
        wait_for(lambda: worker.running == 0, "it has failed")
        wait_for(lambda: stats_of(worker).in_flight == 0, "all is settled")
    assert [(one.attempt, one.redelivered) for one in failing.arrivals] == [(1, False), (1, True)]
    for name in (queue, waiting_queue(queue, 0.02).name, dead_queue(queue).name):
        assert not broker.queues[name].messages


def test_a_batch_that_cannot_be_copied_now_is_copied_later(
    faulty: tuple[RetryDesk, Broker], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flask_pika.state._COPY", 0.2)
    desk, broker = faulty
    desk.app, desk.fpika = remade(desk, timeout=0.2)
    queue = desk.work()
    seen: list[list[str]] = []

    @desk.fpika.consumer(queue, retry=QUICK, batch=10, batch_wait=60)
    def handle(deliveries: list[Delivery]) -> None:
        seen.append([delivery.text for delivery in deliveries])
        if len(seen) == 1:
            broker.block()
            # So that the publisher is told that it is blocked, and sends no copy that it has no time for.
            desk.fpika.publish(b"", routing_key="nobody", mandatory=False, timeout=60)
            raise ValueError("all")

    desk.fill(queue, [str(n) for n in range(10)])
    with working(desk.fpika) as worker:
        wait_for(lambda: lines_of(caplog, "was not copied"), "it is tried")
        monkeypatch.setattr("flask_pika.state._COPY", 60.0)
        broker.unblock()
        wait_for(lambda: len(seen) == 11 and stats_of(worker).in_flight == 0, "they are handled")
    assert sorted(seen[1:]) == [[text] for text in seen[0]]


def test_a_recording_takes_no_copies(desk: RetryDesk) -> None:
    queue, failing = desk.work(), Failing(1)
    desk.fpika.consumer(queue, retry=QUICK)(failing)
    with desk.app.app_context(), working(desk.fpika), desk.fpika.record_messages() as sent:
        desk.fill(queue, ["a"])
        failing.handled.wait_for(1)
    assert sent == []


def test_what_a_handler_did_is_in_the_log_with_its_message(
    desk: RetryDesk, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, CONSUMER_LOG)
    queue, failing = desk.work(), Failing()
    desk.fpika.consumer(queue, retry=QUICK)(failing)
    desk.fill(queue, ["a"])
    with working(desk.fpika):
        desk.dead(queue, 1)
    lines = [line for line in lines_of(caplog, "failed at message id-a") if f"queue '{queue}'" in line]
    assert [line.rpartition("; ")[2] for line in lines] == [
        "attempt 1 of 3, the next one is in 0.02 s",
        "attempt 2 of 3, the next one is in 0.04 s",
        "it goes to the dead letters",
    ]
