"""What Flask-Pika uses of pika that is not public API: all of it is here, with the public way behind it.

Pika's blocking calls have no deadline, a connection cannot be dropped without a conversation with its peer,
and the cheapest public probe costs 8 µs. All three need the socket or the I/O loop inside a
``BlockingConnection``. Where a later pika has them no more (checked below, at import), calls are bounded by
heartbeat and ``blocked_connection_timeout`` alone, the probe is the public one, and a goodbye to a peer that
does not answer goes on in a thread that nobody waits for.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import select
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

from pika import exceptions as pika_errors
from pika.adapters.blocking_connection import BlockingConnection

logger = logging.getLogger("flask_pika.connection")


def _check() -> bool:
    """Whether this pika assigns the attributes that are read below."""
    try:
        from pika.adapters.base_connection import BaseConnection
        from pika.adapters.utils.io_services_utils import _AsyncTransportBase
    except ImportError:
        return False
    wanted: list[tuple[type, str]] = [
        (BlockingConnection, "_impl"),
        (BaseConnection, "_transport"),
        (_AsyncTransportBase, "_sock"),
    ]
    # A tracing tool may have wrapped an __init__, and hidden its code: then the public way is taken.
    codes = [(getattr(vars(owner).get("__init__"), "__code__", None), name) for owner, name in wanted]
    return all(code is not None and name in code.co_names for code, name in codes)


AVAILABLE = _check()


class DeadlineReached(Exception):
    """A call into pika was ended by :func:`bounded`. The connection is in no known state: drop it."""


@contextlib.contextmanager
def bounded(connection: BlockingConnection, seconds: float) -> Iterator[None]:
    """Calls into ``connection`` in this block end with :class:`DeadlineReached` after ``seconds``.

    A timer of the connection's own I/O loop raises it, which is safe only because the connection is dropped
    afterwards.
    """
    loop = _impl(connection).ioloop if AVAILABLE else None
    if loop is None:
        yield
        return
    timer = loop.call_later(max(0.0, seconds), _raise_deadline)
    try:
        yield
    finally:
        loop.remove_timeout(timer)


def arrivals(connection: BlockingConnection) -> Callable[[], object] | None:
    """A function that says, in half a microsecond, whether the peer has sent or closed anything unread."""
    sock = _socket(connection)
    if sock is None or not hasattr(select, "poll"):
        return None
    poller = select.poll()
    poller.register(sock.fileno(), select.POLLIN)  # errors and hang-ups are always reported
    return functools.partial(poller.poll, 0)


def drop(connection: BlockingConnection) -> None:
    """Close the connection's socket now, without a word to the peer."""
    sock = _socket(connection)
    if sock is None:
        if connection.is_open:
            threading.Thread(
                target=_say_goodbye, args=(connection,), name="flask-pika-goodbye", daemon=True
            ).start()
        return
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    # Pika now sees the end of the stream, as if the peer had gone, and frees what it holds.
    with contextlib.suppress(pika_errors.AMQPError):
        connection.process_data_events(0)


def server_properties(connection: BlockingConnection) -> dict[str, Any]:
    """What the broker said of itself in Connection.Start; empty when it can't be had."""
    return dict(_impl(connection).server_properties or {}) if AVAILABLE else {}


def _impl(connection: BlockingConnection) -> Any:
    return getattr(connection, "_impl")  # noqa: B009 - hidden from type checkers, which know no such thing


def _socket(connection: BlockingConnection) -> socket.socket | None:
    if not AVAILABLE:
        return None
    transport = _impl(connection)._transport
    sock: socket.socket | None = None if transport is None else transport._sock
    return sock


def _raise_deadline() -> None:
    raise DeadlineReached


def _say_goodbye(connection: BlockingConnection) -> None:
    try:
        connection.close()
    except Exception as exc:
        logger.debug("a connection was closed without a goodbye: %r", exc)
