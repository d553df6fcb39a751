"""pika-pool, with a pika of today: the one that it asks for is a syntax error since Python 3.7."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.peers.base import PATIENCE, POOL, Call, Case, NotOffered, Peer, load
from benchmarks.peers.raw_pika import connect, publishing

PACKAGES = ["pika-pool", "pika"]


class PikaPool(Peer):
    def __init__(self, options: dict[str, Any], ask: Callable[[], None]) -> None:
        super().__init__(options, ask)
        self._made: list[Any] = []

    def _open(self, case: Case) -> Any:
        def create() -> Any:
            connection = connect(case)
            self._made.append(connection)
            if case.confirm:
                # It makes the channel itself, when it is first asked for.
                make = connection.channel

                def channel() -> Any:
                    made = make()
                    made.confirm_delivery()
                    return made

                connection.channel = channel
            return connection

        return load("pika_pool").QueuedPool(
            create=create, max_size=POOL, max_overflow=0, timeout=PATIENCE, recycle=3600, stale=3600
        )

    @contextlib.contextmanager
    def checkout(self, case: Case) -> Iterator[Call]:
        pool = self._open(case)

        def call() -> None:
            with pool.acquire() as connection:
                connection.channel  # noqa: B018 - it is made when it is first asked for

        yield call
        self._close()

    def _close(self) -> None:
        """It has no such thing itself."""
        while self._made:
            self._made.pop().close()

    @contextlib.contextmanager
    def publisher(self, case: Case) -> Iterator[tuple[Call, Call]]:
        if not case.pooled:
            raise NotOffered("is a pool, and what it lends is raw pika's")
        with self._pool(case) as pair:
            yield pair

    @contextlib.contextmanager
    def _pool(self, case: Case) -> Iterator[tuple[Call, Call]]:
        pool = self._open(case)

        def call() -> None:
            with pool.acquire() as connection:
                publishing(connection.channel, case)()

        def flush() -> None:
            with pool.acquire() as connection:
                connection.channel.queue_declare(case.queue, passive=True)

        yield call, flush
        self._close()

    @contextlib.contextmanager
    def waiting(self, case: Case) -> Iterator[list[Call]]:
        with self._pool(case) as (call, _flush):
            yield [call] * case.threads


def make(options: dict[str, Any], ask: Callable[[], None]) -> Peer:
    return PikaPool(options, ask)
