"""The one place that opens a pika connection: addresses, nodes in turn, names, deadlines, clear errors."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import queue
import random
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from pika import exceptions as pika_errors
from pika.adapters.blocking_connection import BlockingConnection

from .errors import (
    AuthenticationRefused,
    BrokerUnavailable,
    ProtocolMismatch,
    TLSRefused,
    VirtualHostRefused,
)
from .nodes import Node

logger = logging.getLogger("flask_pika.connection")


def connection_name(app_name: str) -> str:
    """What an operator reads in RabbitMQ's list of connections: the app, the host, the process."""
    return f"{app_name} on {socket.gethostname()} (pid {os.getpid()})"


class Connected(NamedTuple):
    """An open connection, and the node that took it."""

    connection: BlockingConnection
    node: Node


def connect(
    nodes: Sequence[Node],
    name: str,
    deadline: float,
    clock: Callable[[], float] = time.monotonic,
) -> Connected:
    """A new connection to one of the nodes, which are tried in a shuffled order until the deadline.

    :param name: the connection's name, for operators.
    :param deadline: in the clock's time; covers name lookup, TCP, TLS and AMQP, over all nodes.
    :raises BrokerUnavailable: or its subclass when all nodes gave the same kind of answer; the message names
        each node and its cause.
    """
    failures: list[tuple[Node, _Failure]] = []
    for node in random.sample(nodes, len(nodes)):
        for attempt in range(node.attempts):
            if attempt:
                time.sleep(max(0.0, min(node.retry_delay, deadline - clock())))
            if failures and clock() >= deadline:
                break
            try:
                return Connected(_connect_node(node, name, deadline, clock), node)
            except _Failure as failure:
                failures.append((node, failure))
    kinds = {failure.kind for _, failure in failures}
    kind = kinds.pop() if len(kinds) == 1 else BrokerUnavailable
    reasons = "; ".join(dict.fromkeys(f"{node}: {failure}" for node, failure in failures))
    cause = failures[-1][1].__cause__
    raise kind(f"cannot connect to RabbitMQ: {reasons}") from cause


class _Failure(Exception):
    """Why one attempt failed, in words; ``__cause__`` is what pika or the system raised."""

    def __init__(self, reason: str, kind: type[BrokerUnavailable] = BrokerUnavailable) -> None:
        super().__init__(reason)
        self.kind = kind


def _connect_node(node: Node, name: str, deadline: float, clock: Callable[[], float]) -> BlockingConnection:
    last: _Failure | None = None
    for address in _addresses(node, deadline, clock):
        remaining = deadline - clock()
        if remaining <= 0:
            raise last or _Failure("no time was left to connect")
        parameters = node.parameters(address=address, connection_name=name, timeout=remaining)
        try:
            return BlockingConnection(parameters)
        except Exception as exc:  # pika lets errors of several families through, AssertionError too
            last = _explain(exc, parameters.ssl_options is not None)
            last.__cause__ = exc
    raise last or _Failure("the name has no address")


def _addresses(node: Node, deadline: float, clock: Callable[[], float]) -> list[str]:
    """The node's addresses, found within the deadline: the system's resolver has none of its own."""
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(node.host)
        return [node.host]

    answer: queue.SimpleQueue[list[str] | OSError] = queue.SimpleQueue()

    def resolve() -> None:
        try:
            found = socket.getaddrinfo(node.host, node.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as exc:
            answer.put(exc if isinstance(exc, OSError) else OSError(str(exc)))
        else:
            answer.put(list(dict.fromkeys(str(entry[4][0]) for entry in found)))

    # A daemon: a resolver that never answers costs a thread, and not the caller or the exit.
    threading.Thread(target=resolve, name="flask-pika-resolve", daemon=True).start()
    try:
        result = answer.get(timeout=max(0.0, deadline - clock()))
    except queue.Empty:
        raise _Failure("the host's name was not resolved in time") from None
    if isinstance(result, OSError):
        raise _Failure(f"the host's name does not resolve ({result.strerror or result})") from result
    return result


def _explain(exc: BaseException, tls: bool) -> _Failure:
    """Say in words why pika could not connect. Measured with pika 1.4.4 and RabbitMQ 3.10."""
    text = str(exc) or repr(exc)
    # "ConnectionClosedByBroker: (403) 'ACCESS_REFUSED - ...'" inside pika's own sentence.
    reply = re.search(r"\((?P<code>\d{3})\) ['\"](?P<text>.*?)['\"]$", text)
    said = f"{reply['code']} {reply['text']}" if reply else text
    if isinstance(exc, pika_errors.ConnectionClosedByBroker):
        said = f"{exc.reply_code} {exc.reply_text}"
    if isinstance(
        exc, (pika_errors.ProbableAuthenticationError, pika_errors.AuthenticationError)
    ) or said.startswith("403"):
        return _Failure(f"user name or password refused ({said})", AuthenticationRefused)
    if isinstance(exc, pika_errors.ProbableAccessDeniedError) or said.startswith("530"):
        return _Failure(f"virtual host refused ({said})", VirtualHostRefused)
    if isinstance(exc, ssl.SSLCertVerificationError):
        reason = f"TLS: the broker's certificate is not accepted ({exc.verify_message})"
        return _Failure(reason, TLSRefused)
    if isinstance(exc, ssl.SSLError) and not isinstance(exc, ssl.SSLEOFError):
        reason = f"TLS failed ({exc.reason or text}); is this the broker's TLS port?"
        return _Failure(reason, TLSRefused)
    if isinstance(exc, pika_errors.IncompatibleProtocolError):
        tls_hint = "" if tls else ", and one without TLS"
        return _Failure(
            "what listens there hung up, or answered, without speaking AMQP 0-9-1"
            f" (is this the broker's AMQP port{tls_hint}?)",
            ProtocolMismatch,
        )
    inner = _innermost(exc)
    if isinstance(inner, ConnectionRefusedError):
        return _Failure("connection refused")
    if "Timeout" in type(inner).__name__ or isinstance(inner, TimeoutError):
        return _Failure("timed out before the connection was open")
    if isinstance(inner, OSError):
        return _Failure(inner.strerror or str(inner) or repr(inner))
    return _Failure(str(inner) or repr(inner))


def _innermost(exc: BaseException) -> BaseException:
    """Pika wraps errors as an attribute or as the only argument of others."""
    for _ in range(5):
        inner = getattr(exc, "exception", None) or (exc.args[0] if len(exc.args) == 1 else None)
        if not isinstance(inner, BaseException):
            break
        exc = inner
    return exc
