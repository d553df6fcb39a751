"""Retries while workers and brokers are killed: each message ends handled, or dead, and none is lost."""

from __future__ import annotations

import collections
import contextlib
import itertools
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import pika
import pytest

from flask_pika import Delivery, Pika, Retry
from flask_pika.retry import dead_queue, waiting_queue
from flask_pika.worker import Worker
from tests.apps.retries import RETRY, as_it_says
from tests.conftest import wait_for
from tests.ledger import Ledger, Run
from tests.test_publisher import _keep_apps, messages, plain, publishing  # noqa: F401 - a fixture
from tests.test_worker_outage import comes_to, left, publish_bodies
from tests.test_worker_processes import Command, Start
from tests.test_worker_processes import hold as hold
from tests.test_worker_processes import start as start
from tools.rabbitmq_node import RabbitMQNode


class Names:
    """A queue's and its others'. Another one for each test: RabbitMQ 3.10 cannot always make a quorum queue
    anew that was deleted a moment ago, or that it had before it was killed.
    """

    numbers = itertools.count()

    def __init__(self, retry: Retry = RETRY) -> None:
        self.queue = f"retries-{next(self.numbers)}"
        self.dead = dead_queue(self.queue).name
        self.waiting = [waiting_queue(self.queue, delay).name for delay in retry.delays]

    def delete(self, node: RabbitMQNode) -> None:
        with plain(node) as ch:
            for name in (self.queue, *self.waiting, self.dead):
                ch.queue_delete(name)

    def is_idle(self, node: RabbitMQNode) -> bool:
        """Whether nothing is left to be handled, nor waits; the worker, if there is one, has said so."""
        with plain(node) as ch:
            return not any(
                ch.queue_declare(name, passive=True).method.message_count
                for name in (self.queue, *self.waiting)
            )

    def has_heard_all(self, node: RabbitMQNode) -> None:
        """Wait until the broker has no message of the queue any more, acked or not.

        A quorum queue of RabbitMQ 3.10 forgets acks that come right before their connection's end.
        """
        wait_for(
            lambda: f"{self.queue}\t0" in node.ctl("list_queues", "name", "messages").splitlines(),
            "all acks are there",
        )

    def holds_nothing(self, node: RabbitMQNode, ledger: Ledger) -> bool:
        """Whether no message is left to be handled, nor waits, nor is on its way between the two."""
        begun = ledger.begun()
        # Twice: one may go from a queue that is still to be looked at to one that was.
        for _ in range(2):
            lines = node.ctl("list_queues", "name", "messages").splitlines()  # with what is in workers' hands
            if not {f"{name}\t0" for name in (self.queue, *self.waiting)} <= set(lines):
                return False
            if not self.is_idle(node):  # and this is of this moment
                return False
        return ledger.begun() == begun

    def are_declared(self, node: RabbitMQNode, worker: Command) -> None:
        names = (self.queue, *self.waiting, self.dead)
        wait_for(lambda: all(exists(node, name) for name in names), lambda: worker.said, 60)

    def consumers(self, node: RabbitMQNode) -> int:
        """How many ask for the queue's messages."""
        with plain(node) as ch:
            count: int = ch.queue_declare(self.queue, passive=True).method.consumer_count
            return count

    def dead_letters(self, node: RabbitMQNode) -> list[tuple[str, dict[str, Any]]]:
        """Their ids and headers; there are none afterwards."""
        return [
            (body.decode().split(" ")[0], properties.headers)
            for _, properties, body in messages(node, self.dead)
        ]


@pytest.fixture
def names(node: RabbitMQNode) -> Iterator[Names]:
    made = Names()
    yield made
    made.delete(node)


def exists(node: RabbitMQNode, queue: str) -> bool:
    with plain(node) as ch:
        try:
            ch.queue_declare(queue, passive=True)
        except pika.exceptions.ChannelClosedByBroker:
            return False
        return True


def commits(ledger: Ledger) -> dict[str, int]:
    """How often each message's handler came to its end."""
    return collections.Counter(run.id for run in ledger.of("committed"))


# The worker is killed


@pytest.fixture
def env(names: Names, tmp_path: Path) -> dict[str, object]:
    """For the app in tests.apps.retries."""
    return {
        "app": "tests.apps.retries",
        "QUEUE": names.queue,
        "KIND": "quorum",
        "LIMIT": 20,
        "PREFETCH": 1,
        "KILLED": tmp_path / "killed",
    }


@pytest.mark.parametrize("kind", ["classic", "quorum"])
@pytest.mark.parametrize(("fails", "ends"), [(1, "committed"), (4, "dead")])
def test_a_worker_that_is_killed_between_copy_and_ack_loses_nothing(
    node: RabbitMQNode,
    names: Names,
    ledger: Ledger,
    start: Start,
    env: dict[str, Any],
    tmp_path: Path,
    kind: str,
    fails: int,
    ends: str,
) -> None:
    worker = start("--processes=2", "--threads=1", **{**env, "KIND": kind})
    names.are_declared(node, worker)
    publish_bodies(node, names.queue, ["1", f"2 doomed fails:{fails}", "3"])
    # The copy goes its way, and so does the original, which was acked nowhere.
    if ends == "committed":
        expected = {"1": 1, "2": 2, "3": 1}
        wait_for(lambda: commits(ledger) == expected, lambda: f"{commits(ledger)}\n{worker.said[-3000:]}", 60)
    else:
        wait_for(lambda: left(node, names.dead) == 2, lambda: worker.said[-3000:], 60)
    assert (tmp_path / "killed").exists()
    worker.says("SIGKILL")  # a parent that hears of it when it is told to end does not end with 0
    names.has_heard_all(node)
    assert worker.ends() == 0, worker.said
    assert names.is_idle(node)
    found = names.dead_letters(node)
    assert [one for one, _ in found] == ([] if ends == "committed" else ["2", "2"])
    assert [run.redelivered for run in ledger.runs if run.id == "2"].count(True) == 1
    if ends == "dead":
        assert commits(ledger) == {"1": 1, "3": 1}
        assert {headers["x-failure-attempts"] for _, headers in found} == {4}


def test_what_kills_its_worker_each_time_ends_among_the_dead_letters(
    node: RabbitMQNode,
    names: Names,
    ledger: Ledger,
    start: Start,
    env: dict[str, Any],
    tmp_path: Path,
) -> None:
    limit = 2
    worker = start(
        "--processes=2",
        "--threads=1",
        **{**env, "LIMIT": limit},
    )
    names.are_declared(node, worker)
    published = publish_bodies(node, names.queue, ["poison poison", *(f"{n} fails:1" for n in range(20))])
    wait_for(lambda: len(commits(ledger)) == 20, lambda: f"{ledger.counts()}\n{worker.said[-3000:]}", 60)
    comes_to(node, names.dead, 1, "it is dead")
    wait_for(lambda: worker.said.count("SIGKILL") == limit + 1, lambda: worker.said[-3000:])
    names.has_heard_all(node)
    assert worker.ends() == 0, worker.said
    assert names.is_idle(node)
    ((one, headers),) = names.dead_letters(node)
    assert one == "poison"
    assert headers["x-death"][0]["reason"] == "delivery_limit"
    assert sum(run.id == "poison" for run in ledger.runs) == limit + 1
    # With one delivery at a time, nothing else was in the hands of who was killed.
    assert commits(ledger) == dict.fromkeys(published[1:], 1)


def test_workers_that_are_killed_again_and_again_lose_nothing(
    node: RabbitMQNode,
    names: Names,
    ledger: Ledger,
    start: Start,
    env: dict[str, Any],
    hold: Path,
) -> None:
    count = 1500
    plan = planned(count, seed=1)
    worker = start("--processes=2", **{**env, "PREFETCH": 20})
    names.are_declared(node, worker)
    # However fast they are, something is left when they are killed.
    published = publish_bodies(node, names.queue, last_held(bodies(plan), 2 * 20))
    held = set(published[-2 * 20 :])
    for number in range(4):
        had = ledger.begun()
        wait_for(
            lambda: ledger.begun() >= had + 200 or any(run.id in held for run in ledger.runs),  # noqa: B023
            lambda: worker.said[-3000:],
            60,
        )
        wait_for(lambda: len(worker.children) == 2, lambda: worker.said[-3000:], 60)
        os.kill(worker.children[number % 2], signal.SIGKILL)
        wait_for(lambda: worker.said.count("SIGKILL") > number, lambda: worker.said[-3000:], 60)  # noqa: B023
    hold.touch()
    all_end(names, node, ledger, plan, worker)
    # Of some there are two dead letters: as many as there should be, before the last one has died.
    wait_for(lambda: names.holds_nothing(node, ledger), lambda: worker.said[-3000:], 60)
    assert worker.ends() == 0, worker.said[-3000:]
    assert worker.said.count("SIGKILL") >= 4
    assert names.is_idle(node)
    committed, dead = commits(ledger), collections.Counter(one for one, _ in names.dead_letters(node))
    assert set(committed) == {one for one in published if plan[one] < RETRY.attempts}
    assert set(dead) == {one for one in published if plan[one] >= RETRY.attempts}
    # Of four that were killed, each had no more than its prefetch.
    again = sum(committed.values()) + sum(dead.values()) - count
    assert again <= 4 * 20


# The books balance


def planned(count: int, seed: int) -> dict[str, int]:
    """How often each message fails: of a tenth, a random number of times, which may be too often."""
    chance = random.Random(seed)
    return {
        f"{number:05}": chance.randint(1, RETRY.attempts + 1) if chance.random() < 0.1 else 0
        for number in range(count)
    }


def bodies(plan: dict[str, int]) -> list[str]:
    return [f"{one} fails:{times}" if times else one for one, times in plan.items()]


def last_held(texts: list[str], count: int) -> list[str]:
    """The handlers of the last ones wait: however fast the workers are, these are not done."""
    return [*texts[:-count], *(f"{text} hold" for text in texts[-count:])]


def all_end(names: Names, node: RabbitMQNode, ledger: Ledger, plan: dict[str, int], worker: Command) -> None:
    good = sum(times < RETRY.attempts for times in plan.values())
    wait_for(lambda: len(ledger.committed) == good, lambda: f"{ledger.counts()}\n{worker.said[-3000:]}", 120)
    wait_for(lambda: left(node, names.dead) >= len(plan) - good, "the others are dead", 60)


@pytest.mark.timeout(300)
def test_of_10000_messages_of_which_a_tenth_fail_each_is_handled_once_or_dead_once(
    node: RabbitMQNode,
    names: Names,
    ledger: Ledger,
    start: Start,
    env: dict[str, Any],
    hold: Path,
) -> None:
    """Two processes, which are told to end in the middle of it, and two others; nobody is killed."""
    plan = planned(10_000, seed=2)
    # A classic one: see has_heard_all().
    settings = {**env, "KIND": "classic", "PREFETCH": 100}
    worker = start("--processes=2", **settings)
    names.are_declared(node, worker)
    published = publish_bodies(node, names.queue, last_held(bodies(plan), 2 * 100))

    def processes() -> int:
        return len({run.pid for run in ledger.runs})

    wait_for(lambda: ledger.begun() >= 3_000 and processes() == 2, lambda: worker.said[-3000:], 60)
    worker.send(signal.SIGTERM)
    wait_for(lambda: not names.consumers(node), lambda: worker.said[-3000:], 60)
    hold.touch()  # what it has begun
    assert worker.ends() == 0, worker.said[-3000:]
    assert len({run.id for run in ledger.runs}) < len(published), "it was in the middle of it"
    hold.unlink()  # so that there is something left for the second one of these as well
    worker = start("--processes=2", **settings)
    wait_for(lambda: processes() == 4, lambda: worker.said[-3000:], 60)
    hold.touch()
    all_end(names, node, ledger, plan, worker)
    names.has_heard_all(node)
    assert worker.ends() == 0, worker.said[-3000:]
    assert names.is_idle(node)
    found = names.dead_letters(node)
    dead = [one for one, _ in found]
    assert sorted(dead) == sorted(one for one in published if plan[one] >= RETRY.attempts), "each once"
    assert commits(ledger) == {one: 1 for one in published if plan[one] < RETRY.attempts}, more_than_once(
        ledger
    )
    runs = collections.Counter(run.id for run in ledger.runs)
    assert runs == {one: min(times + 1, RETRY.attempts) for one, times in plan.items()}, "no run too many"
    assert not ledger.of(None)
    assert processes() == 4
    for _, headers in found:
        assert (headers["x-failure-attempts"], headers["x-failure-type"]) == (RETRY.attempts, "RuntimeError")
        assert headers["x-failure-message"] == "as the message says"
    ledger.check_all(published, dead)


def more_than_once(ledger: Ledger) -> list[list[Run]]:
    """The runs of messages that were handled more than once."""
    again = {one for one, times in commits(ledger).items() if times > 1}
    return [[run for run in ledger.runs if run.id == one] for one in again]


# The broker is killed


class Shop:
    """A worker in this process, on a node that will be killed."""

    def __init__(self, node: RabbitMQNode, ledger: Ledger, kind: str, retry: Retry) -> None:
        self.node = node
        self.ledger = ledger
        self.names = Names(retry)
        self.fpika: Pika = publishing(node.params, timeout=60)
        self.fpika.queue(self.names.queue, type=kind, dead_letter=True)  # type: ignore[arg-type]
        #: While it is cleared, handlers wait before they do anything.
        self.may_go = threading.Event()
        self.may_go.set()

        @self.fpika.consumer(self.names.queue, retry=retry)
        def work(delivery: Delivery) -> None:
            with ledger.run(delivery):
                assert self.may_go.wait(100)
                as_it_says(delivery)

    @contextlib.contextmanager
    def works(self) -> Iterator[Worker]:
        worker = self.fpika.worker(threads=4)
        with worker:
            try:
                wait_for(lambda: worker.is_ready, "it consumes", 60)
                self.node.sync()
                yield worker
            finally:
                self.may_go.set()

    def publish(self, texts: Sequence[str]) -> list[str]:
        return publish_bodies(self.node, self.names.queue, texts)

    def restart(self, worker: Worker, meanwhile: Callable[[], object] = lambda: None) -> None:
        """Kill the broker, and start it again, when the worker has seen it."""
        with self.ledger.disturbance():
            self.node.kill()
            wait_for(lambda: not worker.is_ready, "it has noticed")
        meanwhile()
        self.node.start()
        wait_for(lambda: worker.is_ready, "it consumes again", 60)

    def is_done(self, worker: Worker, ids: Collection[str]) -> None:
        wait_for(lambda: self.ledger.committed >= set(ids), lambda: f"{ids}: {self.ledger.counts()}", 60)
        wait_for(lambda: not worker.stats()[0].in_flight, "all is settled")
        wait_for(lambda: worker.running == 0, "and counted, by threads that were on their way back")
        wait_for(lambda: self.names.is_idle(self.node), "nothing waits")


KINDS = pytest.mark.parametrize("kind", ["classic", "quorum"])


@KINDS
def test_a_broker_that_is_killed_while_a_handler_fails_has_it_tried_again_once(
    fragile_node: RabbitMQNode, ledger: Ledger, kind: str
) -> None:
    shop = Shop(fragile_node, ledger, kind, RETRY)
    shop.may_go.clear()
    with shop.works() as worker:
        shop.publish(["a fails:1"])
        wait_for(lambda: ledger.begun() == 1, "it is handled")
        shop.restart(worker, meanwhile=shop.may_go.set)
        shop.is_done(worker, ["a"])
        # The one that failed without a connection made no copy; the one that came again did.
        assert worker.stats()[0].retried == 1
    assert [run.redelivered for run in ledger.runs] == [False, True, False]
    assert commits(ledger) == {"a": 1}


@KINDS
@pytest.mark.parametrize(("fails", "ends"), [(1, "committed"), (9, "dead")])
def test_a_broker_that_is_killed_between_copy_and_ack_has_both(
    fragile_node: RabbitMQNode, ledger: Ledger, kind: str, fails: int, ends: str
) -> None:
    shop = Shop(fragile_node, ledger, kind, Retry(attempts=2 if ends == "committed" else 1, delay=0.02))
    copied, go_on = threading.Event(), threading.Event()
    with shop.works() as worker:
        publish = worker._recovery._publish

        def and_wait(message: Any) -> None:
            publish(message)
            if not copied.is_set():
                copied.set()
                assert go_on.wait(100)

        worker._recovery._publish = and_wait
        try:
            shop.publish([f"a fails:{fails}"])
            assert copied.wait(60)
            shop.restart(worker)
        finally:
            go_on.set()
        if ends == "committed":
            wait_for(lambda: commits(ledger) == {"a": 2}, lambda: f"both: {ledger.counts()}", 60)
            shop.is_done(worker, ["a"])
        else:
            comes_to(fragile_node, shop.names.dead, 2, "both are dead")
            shop.is_done(worker, [])
    assert [one for one, _ in shop.names.dead_letters(fragile_node)] == (
        [] if ends == "committed" else ["a", "a"]
    )
    assert not ledger.of(None)


@KINDS
def test_a_broker_that_is_killed_while_messages_wait_brings_each_again_once(
    fragile_node: RabbitMQNode, ledger: Ledger, kind: str
) -> None:
    # Longer than it takes to see that all wait, and to kill the broker: what rabbitmqctl says of a quorum
    # queue is up to 5 s old.
    delay = 20.0
    shop = Shop(fragile_node, ledger, kind, Retry(attempts=2, delay=delay))
    with shop.works() as worker:
        ids = shop.publish([f"{n} fails:1" for n in range(10)])
        wait_for(lambda: left(fragile_node, shop.names.waiting[0]) == 10, "they wait")
        shop.names.has_heard_all(fragile_node)
        assert ledger.counts() == {"raised": 10}, "none has come again"
        shop.restart(worker)
        shop.is_done(worker, ids)
    assert set(commits(ledger)) == set(ids)
    if kind == "quorum":  # a classic one has an ack on disk some time later, and forgets it until then
        assert len(ledger.runs) == 20, "each came again once"
    for one in ids:
        first, *others = (run for run in ledger.runs if run.id == one)
        assert first.ended is not None
        for run in others:
            assert run.redelivered or run.begun - first.ended >= delay - 0.002


@KINDS
def test_a_broker_that_is_killed_while_messages_go_back_loses_none(
    fragile_node: RabbitMQNode, ledger: Ledger, kind: str
) -> None:
    """Some have come again, some are on their way, some wait, and some have not failed yet."""
    shop = Shop(fragile_node, ledger, kind, Retry(attempts=2, delay=0.3))
    with shop.works() as worker:
        ids = shop.publish([f"{n:03} fails:1" for n in range(400)])
        wait_for(lambda: len(ledger.committed) >= 20, lambda: f"some are back: {ledger.counts()}", 60)
        shop.restart(worker)
        shop.is_done(worker, ids)
    committed = commits(ledger)
    assert set(committed) == set(ids)
    assert shop.names.dead_letters(fragile_node) == []


def test_a_broker_that_is_killed_keeps_its_dead_letters(fragile_node: RabbitMQNode, ledger: Ledger) -> None:
    shop = Shop(fragile_node, ledger, "quorum", Retry(attempts=1))
    with shop.works() as worker:
        ids = shop.publish([f"{n} fails:1" for n in range(10)])
        comes_to(fragile_node, shop.names.dead, 10, "all are dead")
        shop.names.has_heard_all(fragile_node)
        began = time.time()
        shop.restart(worker)
        shop.publish(["later"])
        shop.is_done(worker, ["later"])
    found = shop.names.dead_letters(fragile_node)
    assert sorted(one for one, _ in found) == sorted(ids)
    limit = time.strftime("%Y-%m-%dT%H:%M:%S.999+00:00", time.gmtime(began))
    for _, headers in found:
        assert headers["x-failure-reason"] == "attempts"
        assert headers["x-failure-last-time"] <= limit, "as it died then"


def test_a_handler_that_fails_while_the_broker_is_away_holds_no_thread(
    fragile_node: RabbitMQNode, ledger: Ledger
) -> None:
    shop = Shop(fragile_node, ledger, "quorum", RETRY)
    shop.may_go.clear()
    with shop.works() as worker:
        shop.publish([f"{n} fails:1" for n in range(4)])
        wait_for(lambda: ledger.begun() == 4, "they are handled")

        def fail() -> None:
            began = time.monotonic()
            shop.may_go.set()
            wait_for(lambda: worker.running == 0, "the threads are free")
            # The publisher would wait for 60 s.
            assert time.monotonic() - began < 20

        shop.restart(worker, meanwhile=fail)
        shop.is_done(worker, [str(n) for n in range(4)])
    assert commits(ledger) == {str(n): 1 for n in range(4)}
