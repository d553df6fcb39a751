"""kombu over librabbitmq, rabbitmq-c's client for Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.peers.base import Peer, load
from benchmarks.peers.kombu import Kombu

PACKAGES = ["librabbitmq", "kombu"]


def make(options: dict[str, Any], ask: Callable[[], None]) -> Peer:
    load("librabbitmq")
    return Kombu({**options, "transport": "librabbitmq"}, ask)
