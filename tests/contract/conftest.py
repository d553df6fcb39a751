"""The two brokers that keep the contract, and connections to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel

from flask_pika.broker import Broker
from tests.contract.helpers import Peer, queue
from tests.contract.raw import Wire

Connect = Callable[..., pika.BlockingConnection]
Declare = Callable[..., str]

#: Seconds until a dead letter that no queue took is tried again; RabbitMQ is told so where it counts.
RETRY = 1.0


@pytest.fixture(scope="session", params=[pytest.param("rabbitmq", marks=pytest.mark.broker), "embedded"])
def broker(request: pytest.FixtureRequest) -> Iterator[Peer]:
    """A RabbitMQ node, then the embedded broker."""
    if request.param == "rabbitmq":
        node = request.getfixturevalue("node")
        yield Peer("rabbitmq", "127.0.0.1", node.port)
    else:
        with Broker(dead_letter_retry=RETRY) as embedded:
            yield Peer("embedded", embedded.host, embedded.port)


@pytest.fixture
def connect(broker: Peer) -> Iterator[Connect]:
    """Open connections; they are closed when the test ends."""
    opened: list[pika.BlockingConnection] = []

    def one_more(**overrides: Any) -> pika.BlockingConnection:
        opened.append(pika.BlockingConnection(broker.parameters(**overrides)))
        return opened[-1]

    yield one_more
    for connection in opened:
        if connection.is_open:
            connection.close()


@pytest.fixture
def connection(connect: Connect) -> pika.BlockingConnection:
    return connect()


@pytest.fixture
def ch(connection: pika.BlockingConnection) -> BlockingChannel:
    return connection.channel()


@pytest.fixture
def other(connect: Connect) -> BlockingChannel:
    """A channel on a connection of its own."""
    return connect().channel()


@pytest.fixture
def dial(broker: Peer) -> Iterator[Callable[[], Wire]]:
    """Bare sockets to the broker; they are closed when the test ends."""
    opened: list[Wire] = []

    def one_more() -> Wire:
        opened.append(Wire(broker))
        return opened[-1]

    yield one_more
    for wire in opened:
        wire.hang_up()


@pytest.fixture
def wire(dial: Callable[[], Wire]) -> Wire:
    """A connection by hand, logged in, with channel 1 open."""
    return dial().login().open_channel(1)


@pytest.fixture
def typed(ch: BlockingChannel, connect: Connect) -> Iterator[Declare]:
    """Declare queues of a type; they are deleted when the test ends, as they cannot be exclusive."""
    declared: list[str] = []

    def declare(kind: str, **arguments: Any) -> str:
        dashed = {key.replace("_", "-"): value for key, value in arguments.items()}
        declared.append(queue(ch, {"x-queue-type": kind, **dashed}, exclusive=False, durable=True))
        return declared[-1]

    yield declare
    last = connect().channel()  # the test's own connection may be closed
    for q in declared:
        last.queue_delete(q)


@pytest.fixture
def pub(connection: pika.BlockingConnection) -> BlockingChannel:
    """A channel that waits for its confirms."""
    channel = connection.channel()
    channel.confirm_delivery()
    return channel
