"""celery: a task that is sent by a producer of its pool; a worker of 8 threads, which acknowledges late."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.peers.base import POOL, PREFETCH, Call, Case, Figures, Peer, Tally, load

PACKAGES = ["celery", "kombu", "amqp"]


def ignore(_message: object) -> None:
    """Do nothing. celery takes no lambda."""


class Celery(Peer):
    """Its worker has as many threads as the option of that name says."""

    def _open(self, case: Case, handle: Callable[[object], None] = ignore) -> tuple[Any, Any]:
        app = load("celery").Celery("bench", broker=case.url)
        queue = load("kombu").Queue(case.queue, durable=bool(case.get("durable")))
        app.conf.update(
            broker_heartbeat=0,
            broker_pool_limit=POOL,
            broker_transport_options={"confirm_publish": True} if case.confirm else {},
            task_default_queue=case.queue,
            task_queues=[queue],
            worker_prefetch_multiplier=math.ceil(PREFETCH / self.threads),
            worker_redirect_stdouts=False,
            worker_enable_remote_control=False,
        )
        return app, app.task(handle, name="handle", acks_late=True, ignore_result=True)

    @contextlib.contextmanager
    def publisher(self, case: Case) -> Iterator[tuple[Call, Call]]:
        app, task = self._open(case)
        text = case.body.decode()
        if not case.pooled:
            with app.connection_for_write() as connection, app.amqp.Producer(connection) as held:
                yield (
                    lambda: task.apply_async((text,), producer=held),
                    lambda: held.channel.queue_declare(case.queue, passive=True),
                )
            app.close()
            return

        def flush() -> None:
            with app.producer_or_acquire() as producer:
                producer.channel.queue_declare(case.queue, passive=True)

        yield lambda: task.apply_async((text,)), flush
        app.close()
        load("kombu.pools").reset()

    @contextlib.contextmanager
    def waiting(self, case: Case) -> Iterator[list[Call]]:
        with self.publisher(Case(case, how="pooled")) as (call, _flush):
            yield [call] * case.threads

    def do_fill(self, case: Case, count: int) -> Figures:
        app, task = self._open(Case(case, confirm=False))
        text = case.body.decode()
        with app.connection_for_write() as connection, app.amqp.Producer(connection) as producer:
            for _ in range(count):
                task.apply_async((text,), producer=producer)
            producer.channel.queue_declare(case.queue, passive=True)
        return {"count": count}

    def consume(self, case: Case, tally: Tally) -> None:
        def handle(_message: object) -> None:
            if case.pause:
                time.sleep(case.pause)
            tally()  # the message came parsed

        # That is how it is told to end in order: when its tasks have ended, and are acknowledged.
        tally.at_the_end = lambda: os.kill(os.getpid(), signal.SIGTERM)
        app, _task = self._open(Case(case, confirm=False), handle)
        with contextlib.suppress(SystemExit):
            app.worker_main(["--quiet", "worker", "--pool=threads", f"--concurrency={self.threads}"])


def make(options: dict[str, Any], ask: Callable[[], None]) -> Peer:
    return Celery(options, ask)
