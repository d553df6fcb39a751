"""Scenarios 6: a hundred threads on a pool of four, who do with it all that one should not."""

from __future__ import annotations

import contextlib
import copy
import os
import queue
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pika
import pytest
from flask import Flask
from pika.adapters.blocking_connection import BlockingChannel, BlockingConnection

from flask_pika import Pika, PooledChannel, PoolTimeout
from flask_pika.keeper import Keeper
from flask_pika.pool import ChannelPool
from flask_pika.slot import Slot
from flask_pika.state import all_states
from tests.conftest import make_app
from tests.faults import misuse
from tests.faults.lab import params_of
from tests.faults.misuse import SIZE, THREADS, Crowd, Kind, Lender
from tests.faults.report import Report
from tests.faults.searching import told
from tools.rabbitmq_node import RabbitMQNode

pytestmark = [pytest.mark.broker, pytest.mark.faults, pytest.mark.timeout(600)]

#: Of all that is random here. Set it to the number in a failure's message to have the same again.
SEED = int(os.environ.get("FAULTS_SEED") or random.randrange(2**32))
NAME = "a hundred threads on a pool of four: all that one should not do"
SETTING = f"a node, {THREADS} threads"
QUEUE = "misused"
POOL: dict[str, object] = {"pool_size": SIZE, "confirm_delivery": True, "pool_timeout": 60}
#: Seconds that a loan is held: with so many, it takes a minute.
LEASES, HOLD, MINUTE = 10_000, 0.025, 60.0
#: Seconds that a checkout may take with a stand-in, which may have lost all permits.
SHORT = 1.0


class Lending:
    """A ``Pika`` object, for the crowd."""

    def __init__(self, fpika: Pika) -> None:
        self._fpika = fpika
        self.channel = fpika.channel
        self.return_channel = fpika.return_channel
        self.return_broken_channel = fpika.return_broken_channel

    def in_use(self) -> int:
        return self._fpika.stats().in_use

    def close(self) -> None:
        told.info("%r %s", self._fpika, self._fpika.stats())
        self._fpika.close()


@pytest.fixture
def broker(node: RabbitMQNode) -> RabbitMQNode:
    """A node with an empty queue for the crowd."""
    with operator(node) as channel:
        channel.queue_delete(QUEUE)
        channel.queue_declare(QUEUE, durable=True)
    return node


@contextlib.contextmanager
def operator(node: RabbitMQNode) -> Iterator[BlockingChannel]:
    connection = BlockingConnection(pika.URLParameters(node.url))
    try:
        yield connection.channel()
    finally:
        connection.close()


def depth(node: RabbitMQNode) -> int:
    with operator(node) as channel:
        return int(channel.queue_declare(QUEUE, passive=True).method.message_count)


@pytest.mark.timeout(900)
def test_no_permit_is_lost_and_nothing_lent_twice(
    round_: int, broker: RabbitMQNode, report: Report, request: pytest.FixtureRequest
) -> None:
    short = request.config.getoption("--faults") == "short"
    began = time.monotonic()
    app, fpika = make_app(params_of(broker), POOL)
    crowd = Crowd(
        Lending(fpika),
        app,
        QUEUE,
        kinds=misuse.KINDS,
        seed=SEED + round_,
        leases=800 if short else LEASES,
        hold=0.002 if short else HOLD,
        patience=60.0,
    ).run()
    crowd.check()
    assert short or time.monotonic() - began >= MINUTE
    assert set(crowd.done) == {kind.__name__ for kind in misuse.KINDS}
    assert crowd.refused["PoolTimeout"], "nobody waited in vain"
    there = depth(broker)
    assert crowd.confirmed <= there <= crowd.confirmed + crowd.unknown
    report.add(6, NAME, setting=SETTING, tried=crowd.lent, accepted=crowd.confirmed, refused=crowd.refused)


# Stand-ins


@dataclass(frozen=True)
class StandIn:
    """A pool that is broken on purpose.

    :ivar breaks: does it, and gives what is to be undone in the end.
    :ivar kinds: what shows it, and what does not.
    :ivar shows: what is found.
    """

    breaks: Callable[[pytest.MonkeyPatch], Callable[[], object]]
    kinds: tuple[Kind, ...]
    shows: str
    pool: dict[str, object] | None = None
    publishes: bool = True


def _nothing(*args: object) -> None:
    pass


def loses_permits(patch: pytest.MonkeyPatch) -> Callable[[], object]:
    """The permit of a connection that is given up goes with it."""
    gives_back = ChannelPool._give_back

    def give_back(self: Any, slot: Any, connected: bool, discarded: bool = False) -> None:
        if connected:
            gives_back(self, slot, connected, discarded)

    patch.setattr(ChannelPool, "_give_back", give_back)
    return _nothing


def takes_twice(patch: pytest.MonkeyPatch) -> Callable[[], object]:
    """What is returned twice is in the pool twice."""
    gives_up = PooledChannel.give_up

    def give_up(self: PooledChannel, broken: bool = False) -> bool:
        again = self.__dict__.pop("_again", None)
        self.__dict__["_again"] = copy.copy(self.__dict__.get("_slot"))
        if not gives_up(self, broken) and again is not None:
            with self._pool._lock:
                self._pool._idle.append(again)
        return True

    patch.setattr(PooledChannel, "give_up", give_up)
    return _nothing


def names_nobody(patch: pytest.MonkeyPatch) -> Callable[[], object]:
    patch.setattr(ChannelPool, "_why_not", lambda self, patience: PoolTimeout("no channel is free"))
    return _nothing


def leaves_sockets(patch: pytest.MonkeyPatch) -> Callable[[], object]:
    """A connection that is given up is forgotten, and not closed."""
    kept: list[Any] = []

    def forget(self: Slot, within: float = 0.0) -> None:
        if self._connection is not None:
            kept.append(self._connection)
        self.forget()

    patch.setattr(Slot, "close", forget)
    return lambda: close_all(kept)


def leaves_a_thread(patch: pytest.MonkeyPatch) -> Callable[[], object]:
    keepers: list[Keeper] = []
    stop = Keeper.stop
    patch.setattr(Keeper, "stop", lambda self: keepers.append(self))
    return lambda: [stop(keeper) for keeper in keepers]


def close_all(connections: list[BlockingConnection]) -> None:
    for connection in connections:
        with contextlib.suppress(pika.exceptions.AMQPError):
            connection.close()


STAND_INS = {
    "a broken return loses its permit": StandIn(
        loses_permits, (misuse.returned, misuse.returned_as_broken), "permit lost"
    ),
    "returned twice, lent twice": StandIn(
        takes_twice, (misuse.returned, misuse.returned_twice), "lent twice", publishes=False
    ),
    "no probe": StandIn(
        lambda _patch: _nothing,
        (misuse.returned, misuse.killed_and_not_noticed),
        "lent dead",
        {"pool_pre_ping": False},
    ),
    "a timeout names nobody": StandIn(names_nobody, (misuse.returned,), "holders not named"),
    "a broken one stays open": StandIn(
        leaves_sockets, (misuse.returned, misuse.returned_as_broken), "a socket is left"
    ),
    "the keeper stays": StandIn(leaves_a_thread, (misuse.returned,), "a thread is left"),
}


def a_stand_ins_crowd(
    lender: Lender, app: Flask, kinds: tuple[Kind, ...], publishes: bool, shows: str
) -> Crowd:
    """It goes on until it has been shown: where it is busy, some starve before, which says nothing."""
    return Crowd(
        lender,
        app,
        QUEUE,
        kinds=kinds,
        seed=SEED,
        leases=400,
        hold=0.001,
        patience=SHORT,
        impatient=0.5,
        publishes=publishes,
        until=shows,
    ).run()


@pytest.mark.parametrize("name", STAND_INS)
def test_a_stand_in_is_caught(
    name: str, broker: RabbitMQNode, report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in = STAND_INS[name]
    app, fpika = make_app(params_of(broker), {**POOL, **(stand_in.pool or {})})
    with monkeypatch.context() as patch:
        undo = stand_in.breaks(patch)
        crowd = a_stand_ins_crowd(Lending(fpika), app, stand_in.kinds, stand_in.publishes, stand_in.shows)
    undo()
    put_right()
    caught(name, stand_in.shows, crowd, report)


def put_right() -> None:
    """What a stand-in left: the pool's books do not balance, and its connections may be open."""
    for state in all_states():
        pool = state.pool()
        for slot in {*pool._idle, *pool._lent}:
            slot.close()
        pool._idle.clear()
        pool._lent.clear()


def caught(name: str, shows: str, crowd: Crowd, report: Report) -> None:
    assert shows in crowd.findings, f"{name!r} was not caught; FAULTS_SEED={SEED}; found: {crowd.findings}"
    report.add_caught(6, NAME, name, f"{len(crowd.findings[shows]):,} {shows}")


class PlainQueue:
    """How pools are written at first, this package's too, once: channels in a queue, and nothing noted."""

    def __init__(self, node: RabbitMQNode) -> None:
        self._node = node
        self._free: queue.Queue[BlockingChannel | None] = queue.Queue()
        self._opened: list[BlockingConnection] = []
        for _ in range(SIZE):
            self._free.put(None)

    def channel(self, timeout: float | None = None) -> BlockingChannel:
        try:
            found = self._free.get(timeout=timeout)
        except queue.Empty:
            raise PoolTimeout("0 are in use, as far as anybody knows") from None
        if found is None or not found.is_open:
            connection = BlockingConnection(pika.URLParameters(self._node.url))
            self._opened.append(connection)
            return connection.channel()
        return found

    def return_channel(self, channel: BlockingChannel) -> None:
        self._free.put(channel)

    def return_broken_channel(self, channel: BlockingChannel) -> None:
        self._free.put(None)

    def in_use(self) -> int:
        return max(0, SIZE - self._free.qsize())

    def close(self) -> None:
        close_all(self._opened)


@pytest.mark.parametrize(
    ("how", "kinds", "shows"),
    [
        ("forgotten", (misuse.returned, misuse.dropped), "permit lost"),
        ("returned twice", (misuse.returned, misuse.returned_twice), "lent twice"),
    ],
)
def test_a_plain_queue_is_caught(
    how: str, kinds: tuple[Kind, ...], shows: str, broker: RabbitMQNode, report: Report
) -> None:
    crowd = a_stand_ins_crowd(PlainQueue(broker), Flask("plain"), kinds, publishes=False, shows=shows)
    caught(f"a plain queue of channels, {how}", shows, crowd, report)
