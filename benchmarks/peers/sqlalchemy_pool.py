"""SQLAlchemy's QueuePool, over connections that cost nothing: what a pool takes at the least."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.peers.base import POOL, Call, Case, Peer, load

PACKAGES = ["SQLAlchemy"]


class _Connection:
    """What the pool holds, at its cheapest."""

    def rollback(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class SQLAlchemyPool(Peer):
    @contextlib.contextmanager
    def checkout(self, case: Case) -> Iterator[Call]:
        pool = load("sqlalchemy.pool").QueuePool(_Connection, pool_size=POOL)
        yield lambda: pool.connect().close()


def make(options: dict[str, Any], ask: Callable[[], None]) -> Peer:
    return SQLAlchemyPool(options, ask)
