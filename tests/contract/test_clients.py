"""Clients that nobody here wrote do with the embedded broker what they do with RabbitMQ."""

from __future__ import annotations

import asyncio
import importlib
import threading
from collections.abc import Callable
from typing import Any

import pika
import pytest
from pika import exceptions as pika_errors
from pika.adapters.asyncio_connection import AsyncioConnection

from tests.conftest import wait_for
from tests.contract.helpers import Peer, name

NOWHERE = "contract-nowhere"


def client(module: str) -> Any:
    """A client's module; not by an import statement, as type checkers run where none is installed."""
    try:
        return importlib.import_module(module)
    except ImportError:  # aio-pika on Python 3.10, where amqpstorm wants an older pamqp
        pytest.skip(f"{module} cannot be installed beside the others on this Python")


def test_pikas_blocking_connection(broker: Peer) -> None:
    connection = pika.BlockingConnection(broker.parameters())
    ch, q = connection.channel(), name()
    ch.queue_declare(q, exclusive=True)
    ch.confirm_delivery()
    for body in (b"got", b"acked", b"nacked"):
        ch.basic_publish("", q, body, pika.BasicProperties(headers={"a": 1}), mandatory=True)
    with pytest.raises(pika_errors.UnroutableError):
        ch.basic_publish("", NOWHERE, b"", mandatory=True)
    assert ch.basic_get(q, auto_ack=True)[2] == b"got"
    seen: list[tuple[bytes, bool]] = []
    for method, properties, came in ch.consume(q, inactivity_timeout=60):
        assert method is not None
        assert properties is not None
        assert properties.headers == {"a": 1}
        assert came is not None
        seen.append((came, method.redelivered))
        if came == b"nacked" and not method.redelivered:
            ch.basic_nack(method.delivery_tag)
        else:
            ch.basic_ack(method.delivery_tag)
        if len(seen) == 3:
            break
    assert seen == [(b"acked", False), (b"nacked", False), (b"nacked", True)]
    ch.cancel()
    connection.close()


class Script:
    """What one of pika's asynchronous connections does, step by step; then it closes."""

    def __init__(self, parameters: pika.ConnectionParameters, make: Callable[..., Any]) -> None:
        self.q = name()
        self.got: list[tuple[str, bytes]] = []
        self.closed: Exception | None = None
        self.end: Callable[[], object] = lambda: None
        self.connection = make(
            parameters,
            on_open_callback=lambda connection: connection.channel(on_open_callback=self.opened),
            on_open_error_callback=lambda _connection, error: self.over(error),
            on_close_callback=lambda _connection, error: self.over(error),
        )

    def over(self, error: Exception) -> None:
        self.closed = error
        self.end()

    def opened(self, channel: Any) -> None:
        self.channel = channel
        channel.add_on_return_callback(lambda _ch, _method, _props, body: self.note("returned", body))
        channel.confirm_delivery(self.confirmed, callback=lambda _frame: self.declare())

    def declare(self) -> None:
        self.channel.queue_declare(self.q, exclusive=True, callback=lambda _frame: self.publish())

    def publish(self) -> None:
        self.channel.basic_publish("", NOWHERE, b"returned", mandatory=True)
        for body in (b"got", b"consumed"):
            self.channel.basic_publish("", self.q, body)

    def confirmed(self, method_frame: Any) -> None:
        self.note("confirmed", b"")
        if method_frame.method.delivery_tag == 3:
            self.channel.basic_get(self.q, self.fetched)

    def fetched(self, channel: Any, method: Any, _properties: Any, body: bytes) -> None:
        self.note("got", body)
        channel.basic_nack(method.delivery_tag)
        channel.basic_consume(self.q, self.delivered)

    def delivered(self, channel: Any, method: Any, _properties: Any, body: bytes) -> None:
        self.note("redelivered" if method.redelivered else "delivered", body)
        channel.basic_ack(method.delivery_tag)
        if body == b"consumed":
            self.connection.close()

    def note(self, what: str, body: bytes) -> None:
        self.got.append((what, body))

    def check(self) -> None:
        assert isinstance(self.closed, pika_errors.ConnectionClosedByClient), self.closed
        assert [one for one in self.got if one[0] != "confirmed"] == [
            ("returned", b"returned"),
            ("got", b"got"),
            ("redelivered", b"got"),
            ("delivered", b"consumed"),
        ]
        assert ("confirmed", b"") in self.got


def test_pikas_select_connection(broker: Peer) -> None:
    script = Script(broker.parameters(), pika.SelectConnection)
    script.end = script.connection.ioloop.stop
    script.connection.ioloop.call_later(60, script.connection.ioloop.stop)
    script.connection.ioloop.start()
    script.connection.ioloop.close()
    script.check()


def test_pikas_asyncio_connection(broker: Peer) -> None:
    async def run() -> Script:
        ended = asyncio.Event()
        script = Script(broker.parameters(), AsyncioConnection)
        script.end = ended.set
        await asyncio.wait_for(ended.wait(), 60)
        return script

    asyncio.run(run()).check()


def test_kombu(broker: Peer) -> None:
    kombu = client("kombu")
    url = f"amqp://{broker.username}:{broker.password}@{broker.host}:{broker.port}//"
    with kombu.Connection(url, transport_options={"confirm_publish": True}) as connection:
        exchange = kombu.Exchange(name("e"), "topic", durable=False, auto_delete=True)
        q = kombu.Queue(name(), exchange, routing_key="a.#", exclusive=True)
        returned: list[object] = []
        producer = connection.Producer(serializer="json", on_return=lambda *about: returned.append(about[0]))
        # It waits for the confirm, before which the return comes.
        producer.publish({}, exchange="", routing_key=NOWHERE, mandatory=True)
        assert len(returned) == 1
        for number in range(3):
            producer.publish(
                {"number": number}, exchange=exchange, routing_key="a.b", declare=[q], headers={"h": "v"}
            )
        first = q(connection.channel()).get()
        assert (first.payload, first.headers["h"]) == ({"number": 0}, "v")
        first.requeue()
        seen: list[tuple[int, bool]] = []

        def on_message(body: dict[str, int], message: Any) -> None:
            seen.append((body["number"], message.delivery_info["redelivered"]))
            if body["number"] == 1 and not message.delivery_info["redelivered"]:
                message.requeue()
            else:
                message.ack()

        with connection.Consumer([q], callbacks=[on_message], accept=["json"]):
            while len(seen) < 4:
                connection.drain_events(timeout=30)
        assert sorted(seen) == [(0, True), (1, False), (1, True), (2, False)]


def test_amqpstorm(broker: Peer) -> None:
    amqpstorm = client("amqpstorm")
    connection = amqpstorm.Connection(broker.host, broker.username, broker.password, port=broker.port)
    with connection, connection.channel() as channel:
        q = name()
        channel.queue.declare(q, exclusive=True)
        channel.confirm_deliveries()
        for body in ("got", "acked", "rejected"):
            assert channel.basic.publish(body, q, properties={"headers": {"a": "b"}}, mandatory=True)
        got = channel.basic.get(q)
        assert (got.body, got.properties["headers"]) == ("got", {"a": "b"})
        got.ack()
        seen: list[tuple[str, bool]] = []

        def on_message(message: Any) -> None:
            seen.append((message.body, message.redelivered))
            if message.body == "rejected" and not message.redelivered:
                message.reject(requeue=True)
            else:
                message.ack()
            if len(seen) == 3:
                channel.stop_consuming()

        channel.basic.consume(on_message, q)
        channel.start_consuming()
        assert seen == [("acked", False), ("rejected", False), ("rejected", True)]
        # On a channel of its own: amqpstorm 2.11 takes what was returned for the next delivery.
        with connection.channel() as another:
            another.confirm_deliveries()
            with pytest.raises(amqpstorm.AMQPMessageError):
                another.basic.publish("", NOWHERE, mandatory=True)
    wait_for(lambda: not any("amqpstorm" in one.name for one in threading.enumerate()), "its thread ends")


def test_aio_pika(broker: Peer) -> None:
    aio_pika = client("aio_pika")
    url = f"amqp://{broker.username}:{broker.password}@{broker.host}:{broker.port}/"

    async def run() -> list[tuple[bytes, bool]]:
        seen: list[tuple[bytes, bool]] = []
        connection = await aio_pika.connect(url)
        async with connection:
            channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
            queue = await channel.declare_queue(name(), exclusive=True)
            for body in (b"got", b"acked", b"nacked"):
                await channel.default_exchange.publish(
                    aio_pika.Message(body, headers={"a": 1}), routing_key=queue.name
                )
            with pytest.raises(aio_pika.exceptions.PublishError):
                await channel.default_exchange.publish(aio_pika.Message(b""), routing_key=NOWHERE)
            got = await queue.get()
            assert (got.body, got.headers) == (b"got", {"a": 1})
            await got.ack()
            async with queue.iterator() as messages:
                async for message in messages:
                    seen.append((message.body, message.redelivered))
                    if message.body == b"nacked" and not message.redelivered:
                        await message.nack()
                    else:
                        await message.ack()
                    if len(seen) == 3:
                        break
        return seen

    seen = asyncio.run(asyncio.wait_for(run(), 60))
    assert seen == [(b"acked", False), (b"nacked", False), (b"nacked", True)]
