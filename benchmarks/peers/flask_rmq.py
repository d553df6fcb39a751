"""Flask-RMQ: a ``Producer``, which has a connection for each thread, and confirms; a ``Consumer``."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from benchmarks.peers.base import HOST, NAMED, PREFETCH, Call, Case, NotOffered, Peer, Tally, load

PACKAGES = ["Flask-RMQ", "pika", "Flask"]


class FlaskRMQ(Peer):
    app: Any = None

    def _open(self, case: Case) -> Any:
        self.app = load("flask").Flask("benchmark")
        self.app.config["RABBITMQ_CONNECTIONS"] = {"default": {"HOST": HOST, "PORT": case.port}}
        return load("flask_rmq").FlaskRMQ(self.app)

    def in_thread(self) -> AbstractContextManager[object]:
        context: AbstractContextManager[object] = (
            self.app.app_context() if self.app else contextlib.nullcontext()
        )
        return context

    def _publishing(self, case: Case) -> Call:
        self._open(case)
        # Each way as it says: no queue is declared, and the default exchange takes it there.
        producer = load("flask_rmq").Producer(exchange=case.exchange)
        body, queue = case.body, case.queue
        properties = load("pika").BasicProperties(**NAMED)
        return lambda: producer.publish(body, queue, properties)

    @contextlib.contextmanager
    def publisher(self, case: Case) -> Iterator[tuple[Call, Call]]:
        if not case.confirm:
            raise NotOffered("confirms always")
        if case.pooled:
            raise NotOffered("has no pool, and a connection for each thread")
        call = self._publishing(case)
        with self.app.app_context():
            yield call, lambda: None
            self._close()

    def _close(self) -> None:
        load("flask_rmq.connections").get_connection_manager().close_thread_connections()

    @contextlib.contextmanager
    def waiting(self, case: Case) -> Iterator[list[Call]]:
        yield [self._publishing(case)] * case.threads

    def consume(self, case: Case, tally: Tally) -> None:
        self._open(case)
        stop = threading.Event()
        tally.at_the_end = stop.set
        consumer = load("flask_rmq").Consumer(case.queue, prefetch_count=PREFETCH)

        @consumer  # type: ignore[untyped-decorator]
        def handle(channel: Any, method: Any, _properties: object, body: bytes) -> None:
            json.loads(body)
            if case.pause:
                time.sleep(case.pause)
            tally()
            channel.basic_ack(method.delivery_tag)

        with self.app.app_context():
            consumer.consume(stop)
            self._close()


def make(options: dict[str, Any], ask: Callable[[], None]) -> Peer:
    return FlaskRMQ(options, ask)
