"""kombu: a ``Producer`` that is held, or one of its pool; a ``ConsumerMixin`` in one thread."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.peers.base import NAMED, PATIENCE, POOL, PREFETCH, Call, Case, Peer, Tally, load


class Kombu(Peer):
    """Options: ``transport``, librabbitmq's; ``pool``, which is checked out: producers, or connections."""

    def _connection(self, case: Case) -> Any:
        transport = self.options.get("transport", "pyamqp")
        options = {"confirm_publish": True} if case.confirm else {}
        return load("kombu").Connection(
            case.url.replace("amqp", transport, 1), heartbeat=0, transport_options=options
        )

    @contextlib.contextmanager
    def _pool(self, case: Case) -> Iterator[Any]:
        pools = load("kombu.pools")
        pools.set_limit(POOL)
        kind = pools.connections if self.options.get("pool") == "connections" else pools.producers
        with self._connection(case) as connection:
            yield kind[connection]
            pools.reset()

    def _publish(self, case: Case) -> Callable[[Any], object]:
        properties = {**NAMED, "retry": False, "mandatory": case.confirm and not case.exchange}
        del properties["content_type"]
        body, queue, exchange = case.body, case.queue, case.exchange

        def publish(producer: Any) -> object:
            return producer.publish(
                body,
                routing_key=queue,
                exchange=exchange,
                content_type="application/octet-stream",
                content_encoding="binary",
                **properties,
            )

        return publish

    @contextlib.contextmanager
    def checkout(self, case: Case) -> Iterator[Call]:
        # It is made when it is first asked for.
        channel = "default_channel" if self.options.get("pool") == "connections" else "channel"
        with self._pool(case) as pool:

            def call() -> None:
                with pool.acquire(block=True) as lent:
                    getattr(lent, channel)

            yield call

    @contextlib.contextmanager
    def publisher(self, case: Case) -> Iterator[tuple[Call, Call]]:
        publish = self._publish(case)
        if case.pooled:
            with self._pool(case) as pool:

                def pooled() -> None:
                    with pool.acquire(block=True) as producer:
                        publish(producer)

                def flush() -> None:
                    with pool.acquire(block=True) as producer:
                        producer.channel.queue_declare(case.queue, passive=True)

                yield pooled, flush
            return
        with self._connection(case) as connection, connection.Producer() as producer:
            yield lambda: publish(producer), lambda: producer.channel.queue_declare(case.queue, passive=True)

    @contextlib.contextmanager
    def waiting(self, case: Case) -> Iterator[list[Call]]:
        publish = self._publish(case)
        with self._pool(case) as pool:

            def pooled() -> None:
                with pool.acquire(block=True, timeout=PATIENCE) as producer:
                    publish(producer)

            yield [pooled] * case.threads

    def consume(self, case: Case, tally: Tally) -> None:
        kombu = load("kombu")
        mixins: Any = load("kombu.mixins")

        class Worker(mixins.ConsumerMixin):  # type: ignore[misc]
            def __init__(self, connection: Any) -> None:
                self.connection = connection

            def get_consumers(self, consumer: Any, _channel: object) -> list[Any]:
                queue = kombu.Queue(case.queue, no_declare=True)
                return [consumer([queue], prefetch_count=PREFETCH, accept=["json"], callbacks=[self.handle])]

            def handle(self, _body: object, message: Any) -> None:
                if case.pause:
                    time.sleep(case.pause)
                tally()  # the body came parsed
                message.ack()

            def end(self) -> None:
                self.should_stop = True

        with self._connection(Case(case, confirm=False)) as connection:
            worker = Worker(connection)
            tally.at_the_end = worker.end
            worker.run()


PACKAGES = ["kombu", "amqp"]


def make(options: dict[str, Any], ask: Callable[[], None]) -> Peer:
    return Kombu(options, ask)
