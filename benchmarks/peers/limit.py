"""The limit: frames encoded once, on a bare socket; confirms and deliveries are counted, and nothing else."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.bare_socket import BareSocket
from benchmarks.peers.base import PREFETCH, Call, Case, Figures, NotOffered, Peer

PACKAGES: list[str] = []


class Limit(Peer):
    @contextlib.contextmanager
    def publisher(self, case: Case) -> Iterator[tuple[Call, Call]]:
        if case.pooled:
            raise NotOffered("has one socket, and no pool")
        message = BareSocket.encoded(case.exchange, case.queue, case.body)
        with contextlib.closing(BareSocket(case.port, case.confirm)) as bare:
            if case.confirm:
                yield lambda: bare.publish(message), lambda: None
            else:
                yield lambda: bare.write(message), lambda: bare.flush(case.queue)

    @contextlib.contextmanager
    def waiting(self, case: Case) -> Iterator[list[Call]]:
        with contextlib.ExitStack() as stack:
            sockets = [
                stack.enter_context(contextlib.closing(BareSocket(case.port))) for _ in range(case.threads)
            ]
            message = BareSocket.encoded(case.exchange, case.queue, case.body)
            yield [lambda bare=bare: bare.publish(message) for bare in sockets]  # type: ignore[misc]

    @contextlib.contextmanager
    def bulk(self, case: Case, count: int) -> Iterator[Call]:
        message = BareSocket.encoded(case.exchange, case.queue, case.body)
        with contextlib.closing(BareSocket(case.port)) as bare:
            yield lambda: bare.publish(message, count, case.window)

    def do_consume(self, case: Case, count: int) -> Figures:
        if case.pause:
            raise NotOffered("has no handler")
        with contextlib.closing(BareSocket(case.port)) as bare:
            cpu = time.process_time()
            rate = bare.consume(case.queue, count, PREFETCH)
            return {"count": count, "seconds": count / rate, "cpu": time.process_time() - cpu}


def make(options: dict[str, Any], ask: Callable[[], None]) -> Peer:
    return Limit(options, ask)
