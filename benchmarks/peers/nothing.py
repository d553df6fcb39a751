"""A view that does nothing: what gunicorn, Flask and the machine take by themselves."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.peers.base import Call, Case, Peer

PACKAGES = ["Flask", "gunicorn"]


class Nothing(Peer):
    @contextlib.contextmanager
    def waiting(self, case: Case) -> Iterator[list[Call]]:
        yield [lambda: None] * case.threads


def make(options: dict[str, Any], ask: Callable[[], None]) -> Peer:
    return Nothing(options, ask)
