"""A configuration of gunicorn with which each request leaves something behind: the soak must notice."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterable
from typing import Any

import pika

#: Bytes that each request leaves, and of how many one leaves a connection with a channel.
_BYTES = 100_000
_EVERY = 20
#: So many connections are enough to be seen.
_MOST = 200

_kept: list[object] = []
_connections: list[pika.BlockingConnection] = []


def post_worker_init(worker: Any) -> None:
    """What gunicorn calls in each of its workers."""
    worker.wsgi = _leaking(worker.wsgi)


def _leaking(app: Callable[..., Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
    numbers = itertools.count()

    def leaks(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        _kept.append(b"x" * _BYTES)
        if next(numbers) % _EVERY == 0 and len(_connections) < _MOST:
            node = json.loads(os.environ["FLASK_PIKA_PARAMS"])[0]
            credentials = pika.PlainCredentials(node["username"], node["password"])
            found = pika.BlockingConnection(
                pika.ConnectionParameters(node["host"], node["port"], credentials=credentials)
            )
            found.channel()
            _connections.append(found)
        return app(environ, start_response)

    return leaks
