"""amqpstorm: a channel that is held, or one for each thread on one connection; or amqpstorm-pool."""

from __future__ import annotations

import contextlib
import datetime
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.peers.base import (
    HOST,
    NAMED,
    PATIENCE,
    POOL,
    PREFETCH,
    Call,
    Case,
    NotOffered,
    Peer,
    Tally,
    load,
)

PACKAGES = ["amqpstorm", "AMQPStorm-Pool"]


class Storm(Peer):
    """With the option ``pool``, by amqpstorm-pool."""

    def _connect(self, case: Case) -> Any:
        return load("amqpstorm").Connection(HOST, "guest", "guest", port=case.port, heartbeat=0)

    def _publish(self, case: Case) -> Callable[[Any], object]:
        # It takes no number for a time.
        named = {**NAMED, "timestamp": datetime.datetime.fromtimestamp(1, datetime.timezone.utc)}
        body, queue, exchange = case.body, case.queue, case.exchange
        mandatory = case.confirm and not exchange
        return lambda channel: channel.basic.publish(body, queue, exchange, named, mandatory)

    @contextlib.contextmanager
    def _pool(self, case: Case) -> Iterator[Any]:
        if not self.options.get("pool"):
            raise NotOffered("has no pool")

        made_here: list[Any] = []

        def create() -> Any:
            connection = self._connect(case)
            made_here.append(connection)
            make = connection.channel

            def channel(*args: Any, **kwargs: Any) -> Any:
                made = make(*args, **kwargs)
                if case.confirm:
                    made.confirm_deliveries()
                return made

            connection.channel = channel
            return connection

        yield load("amqpstorm_pool").QueuedPool(
            create=create, max_size=POOL, max_overflow=0, timeout=PATIENCE, recycle=3600, stale=3600
        )
        for connection in made_here:  # it has no such thing itself
            connection.close()

    @contextlib.contextmanager
    def checkout(self, case: Case) -> Iterator[Call]:
        with self._pool(case) as pool:

            def call() -> None:
                with pool.acquire() as connection:
                    connection.channel  # noqa: B018 - it is made when it is first asked for

            yield call

    @contextlib.contextmanager
    def publisher(self, case: Case) -> Iterator[tuple[Call, Call]]:
        publish = self._publish(case)
        if case.pooled:
            with self._pool(case) as pool:

                def pooled() -> None:
                    with pool.acquire() as connection:
                        publish(connection.channel)

                def flush() -> None:
                    with pool.acquire() as connection:
                        connection.channel.queue.declare(case.queue, passive=True)

                yield pooled, flush
            return
        if self.options.get("pool"):
            raise NotOffered("is a pool, and what it lends is amqpstorm's")
        with self._connect(case) as connection, connection.channel() as channel:
            if case.confirm:
                channel.confirm_deliveries()
            yield lambda: publish(channel), lambda: channel.queue.declare(case.queue, passive=True)

    @contextlib.contextmanager
    def waiting(self, case: Case) -> Iterator[list[Call]]:
        if self.options.get("pool"):
            with self.publisher(Case(case, how="pooled")) as (call, _flush):
                yield [call] * case.threads
            return
        publish = self._publish(case)
        with self._connect(case) as connection:
            calls: list[Call] = []
            for _ in range(case.threads):
                channel = connection.channel()
                channel.confirm_deliveries()
                calls.append(lambda channel=channel: publish(channel))  # type: ignore[misc]
            yield calls

    def consume(self, case: Case, tally: Tally) -> None:
        if self.options.get("pool"):
            raise NotOffered("is a pool, and what it lends is amqpstorm's")
        with self._connect(case) as connection, connection.channel() as channel:
            tally.at_the_end = channel.stop_consuming

            def handle(message: Any) -> None:
                json.loads(message.body)
                if case.pause:
                    time.sleep(case.pause)
                message.ack()
                tally()

            channel.basic.qos(PREFETCH)
            channel.basic.consume(handle, case.queue)
            channel.start_consuming()


def make(options: dict[str, Any], ask: Callable[[], None]) -> Peer:
    return Storm(options, ask)
