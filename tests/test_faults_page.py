"""What ``docs/faults.md`` says is raised and logged when a fault comes is: on the embedded broker."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from typing import Any

import pika
import pytest
from flask import Flask

from flask_pika import Pika, errors
from flask_pika.broker import Broker
from tests.conftest import wait_for
from tests.test_reference import page_of, rows_of

ROWS = [row for row in rows_of(page_of("faults")) if len(row) == 4]


def row_of(beginning: str) -> list[str]:
    return next(row for row in ROWS if row[0].startswith(beginning))


class Shop:
    """An app on a broker that does as it is told."""

    def __init__(self, broker: Broker, caplog: pytest.LogCaptureFixture) -> None:
        self.broker = broker
        self.app = Flask("shop")
        self.app.config["FLASK_PIKA_PARAMS"] = broker.url
        self.app.config["FLASK_PIKA_POOL_PARAMS"] = {"pool_size": 1}
        # What is to pass its deadline has one of its own: nothing else may.
        self.app.config["FLASK_PIKA_PUBLISHER_PARAMS"] = {"timeout": 30, "max_messages": 1}
        self.fpika = Pika(self.app)
        self.caplog = caplog
        with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
            connection.channel().queue_declare("orders", durable=True)
        self.fpika.publish(b"", routing_key="orders")

    def publish(self, **about: Any) -> str:
        return self.fpika.publish(b"", **{"routing_key": "orders", **about})

    def is_logged(self, row: list[str]) -> None:
        """All lines that the row shows."""
        for logger, level, line in re.findall(r"`(flask_pika\.\w+)` (\w+) `([^`]+)`", row[2]):
            pattern = re.sub(r"(?:\\\.){3}", ".+", re.escape(line))
            wait_for(
                lambda name=logger, at=level, like=pattern: any(  # type: ignore[misc]
                    (record.name, record.levelname) == (name, at) and re.fullmatch(like, record.getMessage())
                    for record in self.caplog.records
                ),
                lambda line=line: f"{line} in {self.caplog.messages}",  # type: ignore[misc]
            )


@pytest.fixture
def shop(pika_broker: Broker, caplog: pytest.LogCaptureFixture) -> Shop:
    return Shop(pika_broker, caplog)


def lost(shop: Shop) -> None:
    shop.broker.refuse()
    shop.broker.drop_connections()
    wait_for(lambda: shop.fpika.stats().publisher.state == "backing off", "the loss to be noticed")
    shop.publish(timeout=0.5)


def full(shop: Shop) -> None:
    shop.broker.hold_confirms()
    shop.fpika.submit(b"", routing_key="orders")
    shop.publish(timeout=0.2)


def at_once(shop: Shop) -> None:
    shop.broker.hold_confirms()
    future = shop.fpika.submit(b"", routing_key="orders", retry=False, timeout=30)
    shop.broker.queues["orders"].wait_for(2)  # the first one was the shop's
    shop.broker.drop_connections()
    future.result(20)


def held_back(shop: Shop) -> None:
    shop.broker.hold_confirms()

    def is_in_time() -> None:
        with contextlib.suppress(errors.BrokerUnavailable):  # the link's thread had no turn: it was not sent
            shop.publish(timeout=0.2)

    wait_for(is_in_time, "a message that is sent, and not confirmed in time")


def blocked(shop: Shop) -> None:
    shop.broker.block()
    shop.publish()  # who publishes nothing is not told
    wait_for(lambda: shop.fpika.stats().publisher.state == "blocked", "the alarm to be told")
    shop.publish(timeout=0.5)


def nacked(shop: Shop) -> None:
    with shop.fpika.channel() as ch:
        ch.queue_declare("full", arguments={"x-max-length": 0, "x-overflow": "reject-publish"})
    shop.publish(routing_key="full")


def cut_off(shop: Shop) -> None:
    with shop.fpika.channel() as ch:
        shop.broker.close_connections()
        ch.queue_declare("orders", passive=True)


def away(shop: Shop) -> None:
    shop.broker.refuse()
    shop.broker.drop_connections()
    shop.fpika.channel(timeout=20)  # at once: an attempt that its deadline cuts off says nothing


def all_lent(shop: Shop) -> None:
    with shop.fpika.channel():
        shop.fpika.channel(timeout=0.2)


def returned(shop: Shop) -> None:
    with shop.fpika.channel() as ch:
        pass
    ch.queue_declare("orders", passive=True)


@pytest.mark.parametrize(
    ("beginning", "error", "provoke"),
    [
        ("the connection is lost; a broker or node is restarted", errors.BrokerUnavailable, lost),
        ("the same, with `retry=False`", errors.PublishUnknown, at_once),
        ("a quorum queue has lost its majority", errors.PublishTimeout, held_back),
        ("a memory or disk alarm: the broker blocks", errors.BrokerBlocked, blocked),
        ("more is published", errors.PublisherFull, full),
        ("the exchange does not exist", errors.PublishRefused, lambda shop: shop.publish(exchange="none")),
        ("no queue is bound", errors.Unroutable, lambda shop: shop.publish(routing_key="none")),
        ("the queue is full, and rejects", errors.Nacked, nacked),
        ("a property is wrong", errors.InvalidMessage, lambda shop: shop.publish(priority="high")),
        (
            "the connection is lost while the channel is lent",
            pika.exceptions.ConnectionClosedByBroker,
            cut_off,
        ),
        ("the broker is away", errors.BrokerUnavailable, away),
        ("all channels are lent", errors.PoolTimeout, all_lent),
        ("used after its return", errors.ChannelReturned, returned),
    ],
)
def test_a_fault_is_raised_and_logged_as_the_page_says(
    shop: Shop, beginning: str, error: type[Exception], provoke: Callable[[Shop], object]
) -> None:
    row = row_of(beginning)
    with pytest.raises(error) as caught:
        provoke(shop)
    assert type(caught.value) is error
    assert f"`{error.__name__}`" in row[1], row
    shop.broker.release_confirms()
    shop.broker.unblock()
    shop.broker.accept()
    shop.publish(timeout=20)  # and it is back by itself
    with shop.fpika.channel(timeout=20):
        shop.is_logged(row)


def test_a_channel_that_is_not_returned_is_logged_as_the_page_says(shop: Shop) -> None:
    with shop.app.test_request_context():
        shop.fpika.channel()
    shop.is_logged(row_of("a channel is not returned"))


def test_a_broker_that_nobody_ever_reached_is_logged_as_the_page_says(
    pika_broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    shop = Shop(pika_broker, caplog)
    other = Flask("other")
    other.config["FLASK_PIKA_PARAMS"] = pika_broker.url
    pika_broker.refuse()
    fpika = Pika(other)

    def is_refused() -> bool:
        with pytest.raises(errors.BrokerUnavailable) as caught:
            fpika.publish(b"", routing_key="orders", timeout=0.5)
        return "connection refused" in str(caught.value)  # not before it was tried

    wait_for(is_refused, "an attempt to connect")
    shop.is_logged(row_of("nobody listens"))


@pytest.mark.parametrize(
    ("beginning", "body"),
    [("a handler raises", b"{}"), ("a body is no JSON", b"none"), ("the queue does not", None)],
)
def test_a_workers_fault_is_logged_as_the_page_says(shop: Shop, beginning: str, body: bytes | None) -> None:
    @shop.fpika.consumer("orders" if body else "missing")
    def handle(delivery: Any) -> None:
        raise ValueError(delivery.json["missing"])

    with shop.fpika.worker(threads=1):
        if body:
            shop.fpika.publish(body, routing_key="orders")
        row = row_of(beginning)
        # "The same" is the row above.
        shop.is_logged(ROWS[ROWS.index(row) - 1] if row[2] == "the same" else row)
