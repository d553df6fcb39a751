"""What a user writes, for the type checkers alone: mypy strict and basedpyright read it, nothing runs it."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from flask import Flask
from typing_extensions import assert_type

from flask_pika import (
    ConsumerStats,
    Delivery,
    Exchange,
    Outcome,
    Pika,
    PooledChannel,
    Queue,
    Reject,
    Stats,
    Worker,
)


def use(app: Flask) -> None:
    fpika = Pika(app, config_prefix="AUDIT_PIKA")
    fpika.init_app(app)
    assert_type(fpika.channel(), PooledChannel)
    assert_type(fpika.channel(timeout=2.5), PooledChannel)
    with fpika.channel() as ch:
        assert_type(ch, PooledChannel)
        # To a type checker it is pika's channel.
        ch.basic_publish(exchange="exchange", routing_key="routing_key", body=b"message")
        assert_type(ch.is_open, bool)
    fpika.return_channel(ch)
    fpika.return_broken_channel(ch)
    assert_type(fpika.stats(), Stats)
    assert_type(fpika.stats().in_use, int)
    fpika.close()


def declare(fpika: Pika) -> None:
    orders = fpika.exchange("orders", type="topic", alternate_exchange="lost")
    assert_type(orders, Exchange)
    queue = fpika.queue("q", bind=[(orders, "key"), orders, ("people", {"vip": True}, "any")], max_length=5)
    assert_type(queue, Queue)
    assert_type(fpika.queue("clicks", type="stream", max_age="7D").arguments, Mapping[str, Any])
    fpika.declare(timeout=5)
    fpika.consumer(queue)(print)


def consume(fpika: Pika) -> None:
    @fpika.consumer("orders", prefetch=16, on_error="requeue-once")
    def handle(delivery: Delivery) -> None:
        if delivery.message_id is None:
            raise Reject("without an id")

    @fpika.consumer("clicks", batch=100)
    async def store(deliveries: list[Delivery]) -> int:
        return len(deliveries)

    # The function stays what it was.
    takes_async(store)
    assert_type(fpika.run_consumer(handle, {"id": 1}, headers={"tenant": "a"}), Outcome)
    with fpika.worker("orders", threads=2) as worker:
        assert_type(worker, Worker)
    assert_type(worker.stop(), bool)
    assert_type(fpika.stats().consumers, tuple[ConsumerStats, ...])


def takes_async(handler: Callable[[list[Delivery]], Coroutine[Any, Any, int]]) -> None:
    """Takes what a function was before it was registered."""
