"""FastStream: a ``RabbitBroker``, over aio-pika; tasks in the place of threads."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
from collections.abc import Callable
from typing import Any

from benchmarks.peers.base import PATIENCE, PREFETCH, AsyncPeer, Case, NotOffered, Peer, Session, Tally, load

PACKAGES = ["faststream", "aio-pika"]


class FastStream(AsyncPeer):
    _broker: Any = None

    @contextlib.asynccontextmanager
    async def session(self, case: Case) -> Session:
        if case.pooled:
            raise NotOffered("has no pool")
        rabbit = load("faststream.rabbit")
        broker = rabbit.RabbitBroker(
            case.url, logger=None, default_channel=rabbit.Channel(publisher_confirms=case.confirm)
        )
        body, queue, is_fresh = case.body, case.queue, case.is_fresh
        exchange = rabbit.RabbitExchange(case.exchange, declare=False) if case.exchange else None
        when = datetime.datetime.fromtimestamp(1, datetime.timezone.utc)

        async def publish() -> None:
            await broker.publish(
                case.body if is_fresh else body,
                routing_key=queue,
                exchange=exchange,
                mandatory=case.confirm and not exchange,
                persist=True,
                content_type="application/octet-stream",
                message_id="0" * 32,
                timestamp=when,
            )

        self._broker = broker
        await broker.connect()
        try:
            yield publish
        finally:
            await broker.stop()

    async def flush(self, case: Case) -> None:
        if not case.confirm:
            await self._broker.declare_queue(load("faststream.rabbit").RabbitQueue(case.queue, declare=False))

    async def consume_async(self, case: Case, tally: Tally) -> None:
        rabbit = load("faststream.rabbit")
        broker = rabbit.RabbitBroker(
            case.url, logger=None, default_channel=rabbit.Channel(prefetch_count=PREFETCH)
        )
        over = asyncio.Event()
        tally.at_the_end = over.set

        async def handle(_message: dict[str, Any]) -> None:
            if case.pause:
                await asyncio.sleep(case.pause)
            tally()  # the body came parsed

        queue = rabbit.RabbitQueue(case.queue, durable=bool(case.get("durable")), declare=False)
        broker.subscriber(queue)(handle)
        await broker.start()
        await asyncio.wait_for(over.wait(), PATIENCE)
        await asyncio.sleep(0.1)  # the last ones are acknowledged after their handlers
        await broker.stop()


def make(options: dict[str, Any], ask: Callable[[], None]) -> Peer:
    return FastStream(options, ask)
