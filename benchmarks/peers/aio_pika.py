"""aio-pika: a channel that is held, or one of its pool; tasks in the place of threads."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
from collections.abc import Callable
from typing import Any

from benchmarks.peers.base import NAMED, PATIENCE, POOL, PREFETCH, AsyncPeer, Case, Peer, Session, Tally, load

PACKAGES = ["aio-pika", "aiormq"]


class AioPika(AsyncPeer):
    _flush: Any = None

    @contextlib.asynccontextmanager
    async def session(self, case: Case) -> Session:
        aio_pika = load("aio_pika")
        connection = await aio_pika.connect(case.url + "?heartbeat=0")
        body, queue, exchange, is_fresh = case.body, case.queue, case.exchange, case.is_fresh
        named = {**NAMED, "timestamp": datetime.datetime.fromtimestamp(1, datetime.timezone.utc)}
        mandatory = case.confirm and not exchange

        async def publish_to(to: Any) -> None:
            message = aio_pika.Message(case.body if is_fresh else body, **named)
            await to.publish(message, queue, mandatory=mandatory)

        async def make() -> Any:
            return await connection.channel(publisher_confirms=case.confirm)

        async with connection:
            if case.pooled:
                pool = aio_pika.pool.Pool(make, max_size=POOL)

                async def pooled() -> None:
                    async with pool.acquire() as channel:
                        await publish_to(channel.default_exchange)

                self._flush = pool
                yield pooled
                return
            channel = await make()
            self._flush = channel
            held = channel.default_exchange
            if exchange:
                held = await channel.get_exchange(exchange, ensure=False)
            yield lambda: publish_to(held)

    async def flush(self, case: Case) -> None:
        if case.confirm:
            return
        if case.pooled:
            async with self._flush.acquire() as channel:
                await channel.declare_queue(case.queue, passive=True)
        else:
            await self._flush.declare_queue(case.queue, passive=True)

    async def consume_async(self, case: Case, tally: Tally) -> None:
        aio_pika = load("aio_pika")
        over = asyncio.Event()
        tally.at_the_end = over.set
        async with await aio_pika.connect(case.url + "?heartbeat=0") as connection:
            channel = await connection.channel()
            await channel.set_qos(prefetch_count=PREFETCH)
            queue = await channel.get_queue(case.queue, ensure=False)

            async def handle(message: Any) -> None:
                json.loads(message.body)
                if case.pause:
                    await asyncio.sleep(case.pause)
                await message.ack()
                tally()

            await queue.consume(handle)
            await asyncio.wait_for(over.wait(), PATIENCE)


def make(options: dict[str, Any], ask: Callable[[], None]) -> Peer:
    return AioPika(options, ask)
