"""pika: a ``BlockingChannel`` that is held; from threads, one for each, on a connection of its own."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.peers.base import HOST, NAMED, PREFETCH, Call, Case, NotOffered, Peer, Tally, load

PACKAGES = ["pika"]


def connect(case: Case) -> Any:
    """A connection without heartbeats: it may be idle."""
    pika = load("pika")
    return pika.BlockingConnection(pika.ConnectionParameters(HOST, case.port, heartbeat=0))


def publishing(channel: Any, case: Case) -> Call:
    properties = load("pika").BasicProperties(**NAMED)
    exchange, queue, body, mandatory = (
        case.exchange,
        case.queue,
        case.body,
        case.confirm and not case.exchange,
    )
    return lambda: channel.basic_publish(exchange, queue, body, properties, mandatory)


class RawPika(Peer):
    @contextlib.contextmanager
    def publisher(self, case: Case) -> Iterator[tuple[Call, Call]]:
        if case.pooled:
            raise NotOffered("has no pool")
        with contextlib.closing(connect(case)) as connection:
            channel = connection.channel()
            if case.confirm:
                channel.confirm_delivery()
            yield publishing(channel, case), lambda: channel.queue_declare(case.queue, passive=True)

    @contextlib.contextmanager
    def waiting(self, case: Case) -> Iterator[list[Call]]:
        with contextlib.ExitStack() as stack:
            calls = []
            for _ in range(case.threads):
                channel = stack.enter_context(contextlib.closing(connect(case))).channel()
                channel.confirm_delivery()
                calls.append(publishing(channel, case))
            yield calls

    def consume(self, case: Case, tally: Tally) -> None:
        with contextlib.closing(connect(case)) as connection:
            channel = connection.channel()
            tally.at_the_end = channel.stop_consuming

            def handle(channel: Any, method: Any, _properties: object, body: bytes) -> None:
                json.loads(body)
                if case.pause:
                    time.sleep(case.pause)
                tally()
                channel.basic_ack(method.delivery_tag)

            channel.basic_qos(prefetch_count=PREFETCH)
            channel.basic_consume(case.queue, handle)
            channel.start_consuming()


def make(options: dict[str, Any], ask: Callable[[], None]) -> Peer:
    return RawPika(options, ask)
