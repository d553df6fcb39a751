"""dramatiq: a message that is sent, with a channel for each thread; a worker with 8 threads."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.peers.base import (
    HOST,
    PATIENCE,
    PREFETCH,
    Call,
    Case,
    Figures,
    NotOffered,
    Peer,
    Tally,
    load,
)

PACKAGES = ["dramatiq", "pika"]
#: It declares its queues itself, durable ones.
QUEUE = "dramatiq"


class Dramatiq(Peer):
    """Its worker has as many threads as the option of that name says."""

    def _open(self, case: Case, handle: Callable[[object], None] = lambda _message: None) -> tuple[Any, Any]:
        os.environ["dramatiq_queue_prefetch"] = str(PREFETCH)  # noqa: SIM112 - read when it is imported
        dramatiq = load("dramatiq")
        broker = load("dramatiq.brokers.rabbitmq").RabbitmqBroker(
            confirm_delivery=case.confirm, parameters=[{"host": HOST, "port": case.port, "heartbeat": 0}]
        )
        return broker, dramatiq.actor(handle, actor_name="handle", queue_name=QUEUE, broker=broker)

    @contextlib.contextmanager
    def publisher(self, case: Case) -> Iterator[tuple[Call, Call]]:
        if case.pooled:
            raise NotOffered("has a channel for each thread, and no pool")
        broker, actor = self._open(case)
        text = case.body.decode()
        yield lambda: actor.send(text), lambda: broker.get_queue_message_counts(QUEUE)
        self._close(broker)

    @contextlib.contextmanager
    def waiting(self, case: Case) -> Iterator[list[Call]]:
        with self.publisher(case) as (call, _flush):
            yield [call] * case.threads

    def _close(self, broker: Any) -> None:
        broker.flush(QUEUE)
        broker.close()

    def do_fill(self, case: Case, count: int) -> Figures:
        broker, actor = self._open(Case(case, confirm=False))
        text = case.body.decode()
        for _ in range(count):
            actor.send(text)
        broker.get_queue_message_counts(QUEUE)  # an answer on the same channel: it has read them all
        broker.close()
        return {"count": count}

    def consume(self, case: Case, tally: Tally) -> None:
        def handle(_message: object) -> None:
            if case.pause:
                time.sleep(case.pause)
            tally()  # the message came parsed

        broker, _actor = self._open(Case(case, confirm=False), handle)
        worker = load("dramatiq").Worker(broker, worker_threads=self.threads)
        worker.start()
        tally.full.wait(PATIENCE)
        worker.stop()
        broker.close()


def make(options: dict[str, Any], ask: Callable[[], None]) -> Peer:
    return Dramatiq(options, ask)
