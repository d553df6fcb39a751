"""A process that has no file descriptor left: errors that say so; and when it has some again, it goes on."""

from __future__ import annotations

from collections.abc import Iterator

import pika
import pytest

from flask_pika import BrokerUnavailable, FlaskPikaError
from flask_pika.broker import Broker
from tests.conftest import make_app, wait_for
from tests.descriptors import no_descriptors

pytestmark = pytest.mark.usefixtures("both_ways")


@pytest.fixture
def broker() -> Iterator[Broker]:
    with Broker() as started:
        connection = pika.BlockingConnection(pika.URLParameters(started.url))
        connection.channel().queue_declare("orders")
        connection.close()
        yield started


def test_publisher_that_cannot_connect_any_more_says_why_and_goes_on(broker: Broker) -> None:
    app, fpika = make_app(broker.url)
    with app.app_context():
        for _ in range(3):
            fpika.publish("before", routing_key="orders")
            link = fpika._state().publisher()._outbox._link
            with no_descriptors():
                broker.drop_connections()
                wait_for(lambda link=link: "Too many" in str(link.error), "an attempt in vain")  # type: ignore[misc]
                with pytest.raises(BrokerUnavailable, match="Too many open files"):
                    fpika.publish("meanwhile", routing_key="orders", timeout=1.0)
        fpika.publish("after", routing_key="orders")


def test_publisher_that_was_never_connected_says_why_and_goes_on(broker: Broker) -> None:
    app, fpika = make_app(broker.url)
    with app.app_context():
        with no_descriptors(), pytest.raises(FlaskPikaError, match="Too many open files"):
            fpika.publish("meanwhile", routing_key="orders", timeout=1.0)
        fpika.publish("after", routing_key="orders")


def test_pool_that_cannot_connect_says_why_and_goes_on(broker: Broker) -> None:
    app, fpika = make_app(broker.url)
    with app.app_context():
        with no_descriptors(), pytest.raises(BrokerUnavailable, match="Too many open files"), fpika.channel():
            pass
        with fpika.channel() as ch:
            ch.basic_publish("", "orders", b"after")
