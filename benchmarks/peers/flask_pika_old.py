"""Flask-Pika 0.3.8, with a pika of today: the one that it asks for is a syntax error since Python 3.7."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.peers.base import HOST, PATIENCE, POOL, Call, Case, Peer, load
from benchmarks.peers.raw_pika import publishing

PACKAGES = ["Flask-Pika", "pika", "Flask"]


class FlaskPikaOld(Peer):
    """With the option ``pool`` false, without it: each thread holds a channel, on a connection of its own."""

    def _open(self, case: Case) -> Any:
        # It was written for a pika that took a number of seconds here, and for a logger with warn().
        warnings.simplefilter("ignore")
        app = load("flask").Flask("benchmark")
        app.config["FLASK_PIKA_PARAMS"] = {
            "host": HOST,
            "port": case.port,
            "username": "guest",
            "password": "guest",
        }
        app.config["FLASK_PIKA_POOL_PARAMS"] = {"pool_size": POOL, "pool_recycle": int(PATIENCE) * 10}
        if not case.pooled and "how" in case:
            app.config["FLASK_PIKA_POOL_PARAMS"] = None
        return load("flask_pika").Pika(app)

    @contextlib.contextmanager
    def checkout(self, case: Case) -> Iterator[Call]:
        fpika = self._open(case)

        def call() -> None:
            with fpika.channel():
                pass

        yield call

    @contextlib.contextmanager
    def publisher(self, case: Case) -> Iterator[tuple[Call, Call]]:
        fpika = self._open(case)

        def pooled() -> None:
            channel = fpika.channel()
            with channel:
                publishing(channel, case)()

        def flush() -> None:
            with fpika.channel() as channel:
                channel.queue_declare(case.queue, passive=True)

        if case.pooled:
            yield pooled, flush
            return
        held = fpika.channel()
        if case.confirm:
            held.confirm_delivery()
        yield publishing(held, case), lambda: held.queue_declare(case.queue, passive=True)
        held.connection.close()

    @contextlib.contextmanager
    def waiting(self, case: Case) -> Iterator[list[Call]]:
        if self.options.get("pool", True):
            with self.publisher(Case(case, how="pooled")) as (call, _flush):
                yield [call] * case.threads
            return
        with contextlib.ExitStack() as stack:
            held = Case(case, how="held")
            yield [stack.enter_context(self.publisher(held))[0] for _ in range(case.threads)]


def make(options: dict[str, Any], ask: Callable[[], None]) -> Peer:
    return FlaskPikaOld(options, ask)
