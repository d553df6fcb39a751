"""Scenarios 8, the peers: something else at the broker's port, and words that no broker says."""

from __future__ import annotations

import contextlib
import functools
import itertools
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pika
import pytest

from flask_pika import Delivery, Pika, pika_internals
from flask_pika.backoff import Backoff
from tests.conftest import wait_for
from tests.faults.books import Books, Rules
from tests.faults.crowd import Crowd, OwnQueue, Way, new_app
from tests.faults.peers import FOUR_GIGABYTES, INVENTED, Impostor, Memory, Script, Switch, scripts, words
from tests.faults.report import Report
from tests.faults.searching import PASSWORD, USER, told
from tests.ledger import Disturbance, Ledger, Run
from tools.rabbitmq_node import RabbitMQNode

pytestmark = [pytest.mark.broker, pytest.mark.faults, pytest.mark.timeout(900)]

GROUP = 8
CLIENTS = 8
#: Seconds that a publish may take; and a heartbeat, of which a call into a channel may take three.
TIMEOUT, HEARTBEAT = 2.0, 2
LONGEST = TIMEOUT + 3 * HEARTBEAT
#: Bytes that this process may have grown by, whatever it was told: far below what it was told.
MEMORY = 48 * 2**20
#: What a call may say that ended when the peer was there; on a channel, also in pika's words.
NAMED = {
    "AMQPConnectionError",
    "AMQPHeartbeatTimeout",
    "BrokerRefused",
    "BrokerUnavailable",
    "ChannelClosedByBroker",
    "ChannelWrongStateError",
    "ConnectionClosedByBroker",
    "ConnectionWrongStateError",
    "NackError",
    "Nacked",
    "PoolTimeout",
    "ProtocolMismatch",
    "PublishRefused",
    "PublishTimeout",
    "PublishUnknown",
    "StreamLostError",
    "UnroutableError",
}
names = itertools.count()


@pytest.fixture
def full(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--faults") == "full")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Back-off is short: many peers are to be met."""
    monkeypatch.setattr(Backoff, "delay", lambda _self, _failures: 0.02)


def params_at(port: int) -> dict[str, object]:
    about = {"host": "127.0.0.1", "port": port, "username": USER, "password": PASSWORD}
    return {**about, "heartbeat": HEARTBEAT}


@contextlib.contextmanager
def ways_through(port: int, queue: str) -> Iterator[list[Way]]:
    """For each client an app of its own: half of them publish, half do so on a channel of the pool."""
    params = params_at(port) | {"stack_timeout": TIMEOUT, "socket_timeout": TIMEOUT}
    apps = [new_app(params, TIMEOUT) for _ in range(CLIENTS)]

    def publish(fpika: Pika, one: str) -> None:
        fpika.publish(one, routing_key=queue, message_id=one)

    def through_the_pool(fpika: Pika, one: str) -> None:
        with fpika.channel(timeout=TIMEOUT) as ch:
            ch.basic_publish("", queue, one.encode(), mandatory=True)

    try:
        yield [
            functools.partial(publish if number % 2 else through_the_pool, fpika)
            for number, (_app, fpika) in enumerate(apps)
        ]
    finally:
        for _app, fpika in apps:
            told.info("%r %s", fpika, fpika.stats())
            fpika.close()


def books_of(
    crowd: Crowd,
    grace: float,
    disturbed: Disturbance,
    left: Sequence[str],
    returns: Sequence[float] = (),
    runs: Sequence[Run] = (),
) -> Books:
    return Books(Rules(LONGEST, grace, NAMED), crowd.answers, runs, [disturbed], returns, left)


# At connect time

AT_CONNECT = "something else at the broker's port, at each stage of connecting"


def meet_impostors(
    node: RabbitMQNode, plan: list[Script], make_ways: Callable[[int, str], Any], grace: float
) -> tuple[Books, int]:
    """The broker is replaced by an impostor, and comes back; what became of all, and the memory it took."""
    queue = f"impostors-{next(names)}"
    with OwnQueue(node.url, queue) as own, Switch(node.port) as switch, Impostor(plan) as impostor:
        disturbed = Disturbance(time.monotonic())  # from here on: two seconds are soon over where it is busy
        with make_ways(switch.port, queue) as ways, Crowd(ways) as crowd:
            crowd.all_go_on()
            memory = Memory()
            switch.aim(impostor.port)
            wait_for(lambda: impostor.served >= len(plan), lambda: f"{impostor.served} of {len(plan)}", 600)
            grown = memory.grown
            switch.aim(node.port)
            returned = time.monotonic()
            crowd.goes_on()
            crowd.stop()
            disturbed.ended = time.monotonic()
        left = [body.decode() for _, body in own.take()]
        assert impostor.served >= len(plan)
    return books_of(crowd, grace, disturbed, left, [returned]), grown


@pytest.mark.usefixtures("impatient")
def test_something_else_at_the_port(
    round_: int, node: RabbitMQNode, report: Report, grace: float, full: bool
) -> None:
    plan = scripts(words(100 if full else 8, seed=round_), stages=5 if full else 1, seed=round_)
    random.Random(round_).shuffle(plan)
    books, grown = meet_impostors(node, plan, ways_through, grace)
    about = f"{CLIENTS} threads; {len(plan)} times at a connect"
    report.add_books(GROUP, AT_CONNECT, about, books)
    books.check()
    assert grown < MEMORY


@contextlib.contextmanager
def naive_ways(port: int, queue: str) -> Iterator[list[Way]]:
    """A connection of pika's for each message, without a bound."""
    params = pika.ConnectionParameters(
        "127.0.0.1",
        port,
        heartbeat=0,
        stack_timeout=None,
        socket_timeout=None,
        blocked_connection_timeout=None,
    )

    def publish(one: str) -> None:
        connection = pika.BlockingConnection(params)
        try:
            connection.channel().basic_publish("", queue, one.encode())
        finally:
            connection.close()

    yield [publish] * CLIENTS


def test_clients_without_a_bound_are_caught(node: RabbitMQNode, report: Report) -> None:
    silent = [Script(b"", stage) for stage in range(2)]
    queue = f"impostors-{next(names)}"
    with OwnQueue(node.url, queue) as own, Impostor(silent) as impostor, Switch(impostor.port) as switch:
        with naive_ways(switch.port, queue) as ways, Crowd(ways) as crowd:
            disturbed = Disturbance(time.monotonic())
            wait_for(lambda: impostor.met >= CLIENTS, "all of them connected")
            # They wait for ever, so this much longer than they may is what there is to see.
            over = time.monotonic() + LONGEST + 1
            wait_for(lambda: time.monotonic() > over, "their time", LONGEST + 30)
            assert not crowd.answers
            switch.aim(node.port)
            crowd.goes_on(1)
            disturbed.ended = time.monotonic()
            crowd.stop()
        left = [body.decode() for _, body in own.take()]
    found = books_of(crowd, 0.0, disturbed, left).findings()
    assert "later than its deadline" in found, found
    how = f"{len(found['later than its deadline'])} later than their deadline"
    report.add_caught(GROUP, AT_CONNECT, "no bound on connecting", how)


@pytest.mark.usefixtures("impatient")
def test_memory_without_a_bound_is_caught(
    node: RabbitMQNode, report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pika_internals, "_CAN_LIMIT_FRAMES", False)
    monkeypatch.setitem(globals(), "TIMEOUT", 10.0)
    endless = Script(FOUR_GIGABYTES, 0, endless=True)
    _books, grown = meet_impostors(node, [endless] * CLIENTS, ways_through, 0.0)
    assert grown > MEMORY
    report.add_caught(GROUP, AT_CONNECT, "frames of any size", f"{grown / 2**20:.0f} MB kept")


# In the middle of a session

IN_SESSION = "words that no broker says, in the middle of a session with one"


class Consuming:
    """A worker on the queue, and its ledger, in a ``with`` block."""

    def __init__(self, port: int, queue: str, ledger: Ledger) -> None:
        self.app, self.fpika = new_app(params_at(port), TIMEOUT)

        @self.fpika.consumer(queue, prefetch=32)
        def handle(delivery: Delivery) -> None:
            with ledger.run(delivery):
                pass

        self.worker = self.fpika.worker(threads=2)

    def __enter__(self) -> Consuming:
        self.worker.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        told.info("%r %r %s", self.worker, self.fpika, self.worker.stats())
        self.worker.stop()
        self.fpika.close()


def interrupt(
    node: RabbitMQNode,
    said: Mapping[str, bytes],
    ledger: Ledger,
    grace: float,
    patience: float = 120.0,
) -> tuple[Books, int, list[str]]:
    """Say each of these to all clients, while messages are under way; also, after what nothing went on."""
    queue = f"interrupted-{next(names)}"
    stuck, returns = [], []
    with OwnQueue(node.url, queue) as own, Switch(node.port) as switch:
        disturbed = Disturbance(time.monotonic())
        with (
            ways_through(switch.port, queue) as ways,
            Consuming(switch.port, queue, ledger),
            Crowd(ways) as crowd,
        ):
            crowd.all_go_on()
            memory = Memory()
            for name, one in said.items():
                assert switch.say(one) >= 1
                returns.append(time.monotonic())
                try:
                    crowd.goes_on(2 * CLIENTS, patience)
                except AssertionError:
                    stuck.append(name)
                    switch.cut()
            grown = memory.grown
            crowd.goes_on()
            crowd.stop()
            disturbed.ended = time.monotonic()
            accepted = {one.id for one in crowd.answers if one.accepted}
            wait_for(lambda: accepted <= ledger.committed, lambda: f"{accepted - ledger.committed}", 120)
        left = [body.decode() for _, body in own.take()]
    # A broker that delivers what nobody published is believed: nothing in AMQP could tell.
    runs = [run for run in ledger.runs if run.id != INVENTED.decode()]
    return books_of(crowd, grace, disturbed, left, returns, runs), grown, stuck


@pytest.mark.usefixtures("impatient")
def test_words_that_no_broker_says(
    round_: int, node: RabbitMQNode, report: Report, ledger: Ledger, grace: float, full: bool
) -> None:
    said = words(100 if full else 4, seed=round_)
    books, grown, stuck = interrupt(node, said, ledger, grace)
    assert not stuck
    about = f"{CLIENTS} threads; {len(said)} times to all of them and a worker"
    report.add_books(GROUP, IN_SESSION, about, books)
    books.check()
    assert grown < MEMORY


@pytest.mark.usefixtures("impatient")
def test_who_waits_for_four_gigabytes_is_caught(
    node: RabbitMQNode, report: Report, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pika_internals, "_CAN_LIMIT_FRAMES", False)
    monkeypatch.setitem(globals(), "HEARTBEAT", 0)
    _books, _grown, stuck = interrupt(node, {"4 GB": FOUR_GIGABYTES}, ledger, 0.0, patience=3 * TIMEOUT)
    assert stuck
    report.add_caught(GROUP, IN_SESSION, "frames of any size, no heartbeat", "nothing goes on")
