"""rabbitmq-pika-flask: ``sync_send()``, which makes a connection for each message, without confirms."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from benchmarks.peers.base import PATIENCE, Call, Case, NotOffered, Peer, Tally, load

PACKAGES = ["rabbitmq-pika-flask", "pika", "Flask"]


class RabbitmqPikaFlask(Peer):
    ONE_IN_FLIGHT = "has no confirms"

    def _open(self, case: Case) -> Any:
        flask, extension = load("flask"), load("rabbitmq_pika_flask")
        self.app = flask.Flask("benchmark")
        self.app.config.update(MQ_URL=case.url, MQ_EXCHANGE=EXCHANGE)
        return extension.RabbitMQ(self.app, QUEUE_PREFIX, body_parser=json.loads)

    def in_thread(self) -> AbstractContextManager[object]:
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def publisher(self, case: Case) -> Iterator[tuple[Call, Call]]:
        if case.confirm:
            raise NotOffered("has no confirms")
        if case.pooled:
            raise NotOffered("has no pool, and a connection for each message")
        mq, body = self._open(case), case.body.decode()
        yield lambda: mq.sync_send(body, case.queue, delivery_mode=2), lambda: None

    @contextlib.contextmanager
    def waiting(self, case: Case) -> Iterator[list[Call]]:
        with self.publisher(Case(case, confirm=False)) as (call, _flush):
            yield [call] * case.threads

    def consume(self, case: Case, tally: Tally) -> None:
        mq = self._open(case)

        def work(routing_key: str, body: object) -> None:
            if case.pause:
                time.sleep(case.pause)
            tally()

        mq.queue(case.queue)(work)
        tally.full.wait(PATIENCE)
        time.sleep(0.2)  # the last one is acknowledged after its handler, in a thread that never ends


#: The queue that it consumes is called for this and the handler.
QUEUE_PREFIX = "bench"
#: It knows no default exchange. The one that started this process has bound the queue to it.
EXCHANGE = "rabbitmq-pika-flask"


def make(options: dict[str, Any], ask: Callable[[], None]) -> Peer:
    return RabbitmqPikaFlask(options, ask)
