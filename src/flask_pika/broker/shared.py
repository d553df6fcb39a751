"""The brokers that ``FLASK_PIKA_PARAMS = "embedded://name"`` stands for: one for each name, in each process.

They are started at the first need. A forked child uses those that its parent had started, by their port.
"""

from __future__ import annotations

import logging
import os
import threading

from .embedded import Broker

logger = logging.getLogger("flask_pika.broker")

_lock = threading.Lock()
_brokers: dict[str, Broker] = {}  # touched only under the lock


def shared_broker(name: str) -> Broker:
    """The broker of this name; started, if nobody needed it before."""
    with _lock:
        known = _brokers.get(name)
        if known is not None:
            return known
    # Outside of the lock: it does I/O. Of two that start one, the first one stays.
    fresh = Broker().start()
    with _lock:
        kept = _brokers.setdefault(name, fresh)
    if kept is not fresh:
        fresh.stop()
        return kept
    logger.warning(
        "embedded://%s is the embedded broker, on port %d of this process: for demos and tests, nothing is"
        " kept on disk",
        name,
        fresh.port,
    )
    return fresh


def stop_shared_brokers() -> None:
    """Stop all of them, with what is in them; the next need starts new ones."""
    with _lock:
        brokers = list(_brokers.values())
        _brokers.clear()
    for broker in brokers:
        broker.stop()


def _renew_lock() -> None:
    # Another thread of the parent may have held it at the fork.
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)
