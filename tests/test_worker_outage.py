"""A worker while brokers are killed, stopped, frozen and cut off, and queues are deleted under it."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from flask_pika import Delivery, Message
from flask_pika.worker import Worker
from tests.conftest import wait_for
from tests.ledger import Ledger, Run
from tests.test_publisher import _keep_apps, plain, publishing  # noqa: F401 - a fixture
from tests.wiretap import Wiretap
from tools.rabbitmq_node import RabbitMQNode

THREADS = 8
FOR_EVER = 1_000_000


@contextlib.contextmanager
def queues(node: RabbitMQNode, *names: str, arguments: dict[str, Any] | None = None) -> Iterator[None]:
    """Durable queues, which are empty."""
    with plain(node) as ch:
        for name in names:
            ch.queue_delete(name)
            ch.queue_declare(name, durable=True, arguments=arguments)
    node.sync()
    yield
    with plain(node) as ch:
        for name in names:
            ch.queue_delete(name)


@pytest.fixture
def work(fragile_node: RabbitMQNode) -> Iterator[str]:
    with queues(fragile_node, "work"):
        yield "work"


class Handler:
    """A handler that keeps the ledger, and goes on as long as it has permits; then it holds what it has.

    A ``with`` block's end lets it go, so that a test that fails does so at once.
    """

    def __init__(self, ledger: Ledger, permits: int = FOR_EVER) -> None:
        self._ledger = ledger
        self._permits = threading.Semaphore(permits)

    def allow(self, more: int = FOR_EVER) -> None:
        self._permits.release(more)

    def __call__(self, delivery: Delivery) -> None:
        with self._ledger.run(delivery):
            assert self._permits.acquire(timeout=100)

    def __enter__(self) -> Handler:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.allow()


def publish(node: RabbitMQNode, queue: str, count: int, prefix: str = "") -> list[str]:
    """Publish numbered messages; their ids, all of which the broker has confirmed."""
    return publish_bodies(node, queue, [f"{prefix}{number:05}" for number in range(count)])


def publish_bodies(node: RabbitMQNode, queue: str, bodies: Sequence[str]) -> list[str]:
    fpika = publishing(node.params, timeout=60)
    report = fpika.publish_many(Message(body, routing_key=queue) for body in bodies)
    fpika.close()
    assert report.confirmed == len(bodies)
    return [body.split(" ")[0] for body in bodies]


def left(node: RabbitMQNode, queue: str) -> int:
    """How many messages wait in a queue; those that a consumer has do not count."""
    with plain(node) as ch:
        count: int = ch.queue_declare(queue, passive=True).method.message_count
        return count


def is_ready(worker: Worker) -> Callable[[], bool]:
    return lambda: worker.is_ready


def all_hold(ledger: Ledger, committed: int, running: int = THREADS) -> list[Run]:
    """Wait until the handlers have used their permits up, and hold what they have: the runs of that."""
    wait_for(
        lambda: (ledger.counts().get("committed", 0), len(ledger.of(None))) == (committed, running),
        lambda: f"{committed} are committed, and {running} held: {ledger.counts()}",
        60,
    )
    return ledger.of(None)


def comes_to(node: RabbitMQNode, queue: str, count: int, what: str) -> None:
    wait_for(lambda: left(node, queue) == count, lambda: f"{what}: {left(node, queue)}, not {count}")


def has_begun(ledger: Ledger, count: int) -> None:
    wait_for(lambda: ledger.begun() >= count, lambda: f"{count} have begun: {ledger.counts()}", 60)


def has_the_same_tags(tap: Wiretap, connection: int, held: Sequence[Run]) -> None:
    """Wait until this connection has delivered under all tags that handlers hold from the one before.

    What they settle now would settle others, which nobody has begun, if it were settled there.
    """
    tags = {run.tag for run in held}
    wait_for(
        lambda: tags <= {one.tag for one in tap.delivered if one.connection == connection},
        lambda: f"deliveries of {sorted(tags)} on connection {connection}",
        60,
    )


def no_thread_is_between(ledger: Ledger, since: float) -> None:
    """Wait until each thread has begun what it had taken before: it is at a run, or has begun another one.

    :param since: when nothing more of the connection before could be taken.
    """

    def all_have_begun() -> bool:
        last = {run.thread: run for run in ledger.runs}
        return len(last) == THREADS and all(
            run.outcome is None or run.begun >= since for run in last.values()
        )

    wait_for(all_have_begun, lambda: f"{THREADS} threads have begun: {ledger.counts()}", 60)


def broker_has_heard_of(tap: Wiretap, done: int, prefetch: int) -> None:
    """Wait until the broker has: it has delivered as many more as were acked."""
    wait_for(
        lambda: len(tap.delivered) == done + prefetch,
        lambda: f"{done} acks are heard: {len(tap.delivered)} are delivered, not {done + prefetch}",
    )


def all_are_committed(ledger: Ledger, published: Sequence[str]) -> None:
    wait_for(lambda: ledger.committed >= set(published), lambda: f"all: {ledger.counts()}", 60)


def test_a_broker_that_is_killed_mid_flow_loses_nothing_and_the_worker_goes_on(
    fragile_node: RabbitMQNode, work: str, ledger: Ledger, both_ways: str
) -> None:
    handler = Handler(ledger, permits=30)
    with Wiretap(fragile_node.port) as tap:
        fpika = publishing({**fragile_node.params, "port": tap.port})
        fpika.consumer(work, prefetch=50)(handler)
        published = publish(fragile_node, work, 1000)
        with fpika.worker(threads=THREADS) as worker, handler:
            held = all_hold(ledger, committed=30)
            with ledger.disturbance():
                fragile_node.kill()
                wait_for(lambda: not worker.is_ready, "it has noticed")
            fragile_node.start()
            wait_for(is_ready(worker), "it consumes again")
            has_the_same_tags(tap, 2, held)
            handler.allow()
            published += publish(fragile_node, work, 200, "later-")
            all_are_committed(ledger, published)
        tap.check(ledger, broker_heard_all=False)
        assert tap.connections == 2
    ledger.check_all(published)
    again = {before.id for before, _ in ledger.check_twice()}
    assert again >= {run.id for run in held}, "what ran at the kill was acked nowhere, so it comes again"
    assert left(fragile_node, work) == 0
    assert worker.stats()[0].state == "stopped"


def test_a_broker_that_is_stopped_in_order_hears_of_all_that_was_done(
    fragile_node: RabbitMQNode, work: str, ledger: Ledger
) -> None:
    handler = Handler(ledger, permits=30)
    with Wiretap(fragile_node.port) as tap:
        fpika = publishing({**fragile_node.params, "port": tap.port})
        fpika.consumer(work, prefetch=50)(handler)
        published = publish(fragile_node, work, 1000)
        with fpika.worker(threads=THREADS) as worker, handler:
            held = all_hold(ledger, committed=30)
            broker_has_heard_of(tap, 30, prefetch=50)
            with ledger.disturbance():
                fragile_node.stop()
                wait_for(lambda: not worker.is_ready, "it has noticed")
            fragile_node.start()
            has_the_same_tags(tap, 2, held)
            handler.allow()
            all_are_committed(ledger, published)
        tap.check(ledger)
    ledger.check_all(published)
    assert {before.id for before, _ in ledger.check_twice()} == {run.id for run in held}
    assert left(fragile_node, work) == 0


def test_connections_that_an_operator_closes_cost_no_more_than_what_was_in_flight(
    fragile_node: RabbitMQNode, work: str, ledger: Ledger
) -> None:
    handler = Handler(ledger, permits=0)
    prefetch, rounds = 20, 3
    with Wiretap(fragile_node.port) as tap:
        fpika = publishing({**fragile_node.params, "port": tap.port})
        fpika.consumer(work, prefetch=prefetch)(handler)
        published = publish(fragile_node, work, 1000)
        with fpika.worker(threads=THREADS) as worker, handler:
            for number in range(rounds):
                handler.allow(200)
                has_begun(ledger, 200 * number + 100)
                with ledger.disturbance():
                    fragile_node.ctl("close_all_connections", "an operator's whim")
                    wait_for(lambda: tap.connections == number + 2, "it connects anew")  # noqa: B023
                    wait_for(is_ready(worker), "it consumes")
                    # One may have taken a message just before, and begin a moment after that is noticed.
                    no_thread_is_between(ledger, time.monotonic())
            handler.allow()
            all_are_committed(ledger, published)
        tap.check(ledger, broker_heard_all=False)
        assert tap.connections == 1 + rounds
    ledger.check_all(published)
    assert len(ledger.check_twice()) <= prefetch * rounds
    assert left(fragile_node, work) == 0


def test_handlers_that_take_three_heartbeats_keep_the_connection_and_hold_up_nobody(
    fragile_node: RabbitMQNode, work: str, ledger: Ledger, both_ways: str
) -> None:
    heartbeat, slow = 4, THREADS - 1  # the connection is to outlive a RabbitMQ that stands still for 3 s
    handler = Handler(ledger, permits=0)
    with Wiretap(fragile_node.port) as tap, queues(fragile_node, "slow"):
        fpika = publishing({**fragile_node.params, "port": tap.port, "heartbeat": heartbeat})
        fpika.consumer(work)(Handler(ledger))
        fpika.consumer("slow")(handler)
        published = publish(fragile_node, "slow", slow, "slow-")
        with fpika.worker(threads=THREADS), handler:
            all_hold(ledger, committed=0, running=slow)
            began, beats = time.monotonic(), tap.beats
            # Nothing else comes at first: heartbeats are all that says that the broker is there.
            wait_for(lambda: time.monotonic() > began + 3 * heartbeat, "three heartbeats")
            assert tap.connections == 1, "the connection was lost"
            wait_for(lambda: tap.beats >= beats + 3, "heartbeats are sent")
            while time.monotonic() < began + 4 * heartbeat:
                some = publish(fragile_node, work, 100, f"{time.monotonic()}-")
                all_are_committed(ledger, some)
                published += some
            assert len(ledger.of(None)) == slow, "they are still at it"
            handler.allow()
            all_are_committed(ledger, published)
        assert tap.connections == 1, "the connection was lost"
        tap.check(ledger)
        assert {one.outcome for one in tap.delivered} == {"acked"}
    ledger.check_all(published)
    assert not ledger.check_twice()
    assert len(ledger.runs) == len(published)


def test_a_queue_that_is_deleted_and_made_again_is_consumed_again_and_the_others_go_on(
    fragile_node: RabbitMQNode, work: str, ledger: Ledger, caplog: pytest.LogCaptureFixture, both_ways: str
) -> None:
    handler = Handler(ledger, permits=10)
    with Wiretap(fragile_node.port) as tap, queues(fragile_node, "passing"), plain(fragile_node) as ch:
        fpika = publishing({**fragile_node.params, "port": tap.port})
        fpika.consumer("passing", prefetch=10)(handler)
        fpika.consumer(work)(Handler(ledger))
        publish(fragile_node, "passing", 100, "gone-")

        def state() -> str:
            return next(one.state for one in worker.stats() if one.queue == "passing")

        with fpika.worker(threads=THREADS) as worker, handler, caplog.at_level(logging.INFO, "flask_pika"):
            all_hold(ledger, committed=10)
            ch.queue_delete("passing")
            wait_for(lambda: state() == "backing off", "it hears of it")
            assert not worker.is_ready
            # Those that run return and are acked, though there is no such queue.
            handler.allow()
            wait_for(lambda: not ledger.of(None), "the rest of what it had is done")
            steady = publish(fragile_node, work, 200, "steady-")
            all_are_committed(ledger, steady)
            wait_for(lambda: "404" in str(worker.stats()[0].error), "it asks whether it is back")

            ch.queue_declare("passing", durable=True)
            wait_for(is_ready(worker), "it consumes again")
            again = publish(fragile_node, "passing", 200, "new-")
            all_are_committed(ledger, again)
        assert tap.connections == 1, "the others had to suffer"
        tap.check(ledger)
    assert not ledger.check_twice()
    assert ledger.committed >= {*steady, *again}
    assert 10 + THREADS <= len([one for one in ledger.committed if one.startswith("gone-")]) <= 20
    lines = [record.getMessage() for record in caplog.records if record.name == "flask_pika.consumer"]
    assert len([line for line in lines if "does not consume" in line]) == 1, lines
    assert len([line for line in lines if "again" in line and "consumes" in line]) == 1, lines


def test_with_a_prefetch_of_1_there_is_one_at_a_time_in_order(
    fragile_node: RabbitMQNode, work: str, ledger: Ledger
) -> None:
    with Wiretap(fragile_node.port) as tap:
        fpika = publishing({**fragile_node.params, "port": tap.port})
        fpika.consumer(work, prefetch=1)(Handler(ledger))
        published = publish(fragile_node, work, 300)
        with fpika.worker(threads=THREADS):
            all_are_committed(ledger, published)
        tap.check(ledger)
        assert tap.most_unsettled == 1
    assert [run.id for run in ledger.runs] == published
    assert not ledger.check_twice()
    assert left(fragile_node, work) == 0


def test_with_a_prefetch_of_1000_there_are_never_more(
    fragile_node: RabbitMQNode, work: str, ledger: Ledger
) -> None:
    handler = Handler(ledger, permits=0)
    with Wiretap(fragile_node.port) as tap:
        fpika = publishing({**fragile_node.params, "port": tap.port})
        fpika.consumer(work, prefetch=1000)(handler)
        published = publish(fragile_node, work, 2500)
        with fpika.worker(threads=THREADS) as worker, handler:
            wait_for(lambda: tap.unsettled == 1000, "as many as it may have")
            wait_for(lambda: worker.stats()[0].in_flight == 1000, "which have come")
            assert left(fragile_node, work) == 1500
            handler.allow(1)
            wait_for(lambda: len(tap.delivered) == 1001, "one more, for one that is done")
            handler.allow()
            all_are_committed(ledger, published)
        tap.check(ledger)
        assert tap.most_unsettled == 1000
    ledger.check_all(published)
    assert not ledger.check_twice()
    assert len(ledger.runs) == 2500
    assert left(fragile_node, work) == 0


def test_a_connection_that_goes_silent_is_noticed_within_the_heartbeat_and_all_is_handled_over_another(
    fragile_node: RabbitMQNode, work: str, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    heartbeat, prefetch = 4, 50
    handler = Handler(ledger, permits=30)
    with Wiretap(fragile_node.port) as first, Wiretap(fragile_node.port) as second:
        about = {**fragile_node.params, "heartbeat": heartbeat, "stack_timeout": 5}
        fpika = publishing([{**about, "port": tap.port} for tap in (first, second)])
        fpika.consumer(work, prefetch=prefetch)(handler)
        published = publish(fragile_node, work, 1000)
        with fpika.worker(threads=THREADS) as worker, handler:
            held = all_hold(ledger, committed=30)
            used, spare = (first, second) if first.connections else (second, first)
            assert (used.connections, spare.connections) == (1, 0)
            with ledger.disturbance():
                used.silence()
                # Handlers end while nobody knows yet that their acks get nowhere.
                handler.allow(4)
                all_hold(ledger, committed=34)
                wait_for(lambda: not worker.is_ready, "it notices")
            # Pika would notice, too, two heartbeats later. Who says this counts looks: no clock is asked.
            assert f"RabbitMQ has been silent for {heartbeat} s" in caplog.text
            has_the_same_tags(spare, 1, ledger.of(None))
            handler.allow()
            all_are_committed(ledger, published)
        assert spare.connections == 1
        for tap in (used, spare):
            tap.check(ledger)
    ledger.check_all(published)
    again = {before.id for before, _ in ledger.check_twice()}
    assert {run.id for run in held} <= again
    assert len(again) <= prefetch
    assert left(fragile_node, work) == 0


def test_a_broker_that_freezes_and_thaws_gets_its_worker_back(
    fragile_node: RabbitMQNode, work: str, ledger: Ledger
) -> None:
    handler = Handler(ledger, permits=30)
    fpika = publishing({**fragile_node.params, "heartbeat": 4, "stack_timeout": 5})
    fpika.consumer(work, prefetch=50)(handler)
    published = publish(fragile_node, work, 1000)
    with fpika.worker(threads=THREADS) as worker, handler:
        all_hold(ledger, committed=30)
        with ledger.disturbance():
            with fragile_node.frozen():
                wait_for(lambda: not worker.is_ready, "it notices")
            handler.allow()
            wait_for(is_ready(worker), "it is back")
        all_are_committed(ledger, published)
    ledger.check_all(published)
    assert len(ledger.check_twice()) <= 50
    assert left(fragile_node, work) == 0


def test_when_its_node_is_gone_the_worker_goes_to_the_next_of_the_list(
    fragile_node: RabbitMQNode, node: RabbitMQNode, ledger: Ledger
) -> None:
    handler = Handler(ledger, permits=30)
    with queues(node, "everywhere"), queues(fragile_node, "everywhere"), contextlib.ExitStack() as stack:
        proxies = {one: Wiretap(one.port) for one in (fragile_node, node)}
        ends = {one: stack.enter_context(contextlib.ExitStack()) for one in proxies}
        for one, tap in proxies.items():
            ends[one].enter_context(tap)
        fpika = publishing([{**one.params, "port": tap.port} for one, tap in proxies.items()])
        fpika.consumer("everywhere", prefetch=50)(handler)
        # Two brokers that know nothing of each other: what one of them has, the other can't deliver.
        there = {one: publish(one, "everywhere", 500, f"{one.port}-") for one in proxies}
        with fpika.worker(threads=THREADS) as worker, handler:
            all_hold(ledger, committed=30)
            used, spare = (fragile_node, node) if proxies[fragile_node].connections else (node, fragile_node)
            assert proxies[spare].connections == 0
            broker_has_heard_of(proxies[used], 30, prefetch=50)
            with ledger.disturbance():
                ends[used].close()  # whoever connects there is refused from now on
                wait_for(lambda: proxies[spare].connections == 1, "it goes to the other one")
            handler.allow()
            all_are_committed(ledger, there[spare])
            assert worker.is_ready
        for tap in proxies.values():
            tap.check(ledger)
        assert not ledger.check_twice()
        assert ledger.committed <= {*there[used], *there[spare]}
        # What it had acked is gone there, and all else is still there.
        assert left(spare, "everywhere") == 0
        acked = [one for one in proxies[used].delivered if one.outcome == "acked"]
        comes_to(used, "everywhere", 500 - len(acked), "the broker has the rest back")
