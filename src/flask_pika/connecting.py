"""How a connection is made: addresses, nodes in turn, names, deadlines, clear errors.

:func:`connect` opens the blocking ones of pool, ping and dead letters. A link opens its own, step by step in
its thread, with the same name lookup and the same words for what goes wrong.
"""

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

from . import pika_internals
from .errors import (
    AuthenticationRefused,
    BrokerRefused,
    BrokerUnavailable,
    ProtocolMismatch,
    TLSRefused,
    VirtualHostRefused,
)
from .nodes import Node

logger = logging.getLogger("flask_pika.connection")

#: The other side's word against it. TLS 1.3 is agreed on before a client's certificate is looked at: pika has
#: only the text left of what comes then.
_ALERT = re.compile(r"\[SSL: (\w+_ALERT_\w+)\]")


def connection_name(app_name: str) -> str:
    """What an operator reads in RabbitMQ's list of connections: the app, the host, the process."""
    return f"{app_name} on {socket.gethostname()} (pid {os.getpid()})"


class Connected(NamedTuple):
    """An open connection, and the node that took it."""

    connection: BlockingConnection
    node: Node


def connect(nodes: Sequence[Node], name: str, deadline: float) -> Connected:
    """A new connection to one of the nodes, which are tried in a shuffled order until the deadline.

    :param name: the connection's name, for operators.
    :param deadline: of the monotonic clock; covers name lookup, TCP, TLS and AMQP, over all nodes.
    :raises BrokerUnavailable: or its subclass when all nodes gave the same kind of answer; the message names
        each node and its cause.
    """
    failures: list[tuple[Node, Failure]] = []
    for node in random.sample(nodes, len(nodes)):
        for attempt in range(node.attempts):
            if attempt:
                time.sleep(max(0.0, min(node.retry_delay, deadline - time.monotonic())))
            if failures and time.monotonic() >= deadline:
                break
            try:
                return Connected(_connect_node(node, name, deadline), node)
            except Failure as failure:
                failures.append((node, failure))
    raise unavailable(failures)


def unavailable(failures: Sequence[tuple[Node, Failure]]) -> BrokerUnavailable:
    """The error for attempts that all failed."""
    kinds = {failure.kind for _, failure in failures}
    kind = kinds.pop() if len(kinds) == 1 else BrokerUnavailable
    reasons = "; ".join(dict.fromkeys(f"{node}: {failure}" for node, failure in failures))
    error = kind(f"cannot connect to RabbitMQ: {reasons}")
    error.__cause__ = failures[-1][1].__cause__
    return error


class Failure(Exception):
    """Why one attempt failed, in words; ``__cause__`` is what pika or the system raised."""

    def __init__(self, reason: str, kind: type[BrokerUnavailable] = BrokerUnavailable) -> None:
        super().__init__(reason)
        self.kind = kind


def _connect_node(node: Node, name: str, deadline: float) -> BlockingConnection:
    last: Failure | None = None
    for address in _addresses(node, deadline):
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise last or Failure("no time was left to connect")
        parameters = node.parameters(address=address, connection_name=name, timeout=remaining)
        try:
            return BlockingConnection(parameters, **pika_internals.blocking())
        except Exception as exc:  # pika lets errors of several families through, AssertionError too
            last = explain(exc, parameters.ssl_options is not None)
            last.__cause__ = exc
    raise last or Failure("the name has no address")


def resolve(node: Node, answer: Callable[[list[str] | OSError], object]) -> None:
    """Find the node's addresses; ``answer`` is called with them, by another thread unless it is known now.

    The system's resolver has no deadline. Whoever waits for the answer has.
    """
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(node.host)
        answer([node.host])
        return

    def look_up() -> None:
        try:
            found = socket.getaddrinfo(node.host, node.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as exc:
            answer(exc if isinstance(exc, OSError) else OSError(str(exc)))
        else:
            answer(list(dict.fromkeys(str(entry[4][0]) for entry in found)))

    # A daemon: a resolver that never answers costs a thread, and not the caller or the exit.
    try:
        threading.Thread(target=look_up, name="flask-pika-resolve", daemon=True).start()
    except RuntimeError:  # no more threads, or the interpreter's end
        look_up()


def unresolved(error: OSError | None) -> Failure:
    """Why there are no addresses; None when there was no answer in time."""
    if error is None:
        return Failure("the host's name was not resolved in time")
    failure = Failure(f"the host's name does not resolve ({error.strerror or error})")
    failure.__cause__ = error
    return failure


def _addresses(node: Node, deadline: float) -> list[str]:
    answer: queue.SimpleQueue[list[str] | OSError] = queue.SimpleQueue()
    resolve(node, answer.put)
    try:
        result = answer.get(timeout=min(max(0.0, deadline - time.monotonic()), threading.TIMEOUT_MAX))
    except queue.Empty:
        raise unresolved(None) from None
    if isinstance(result, OSError):
        raise unresolved(result)
    return result


def no_channel(exc: Exception, node: Node | None) -> BrokerUnavailable:
    """The error for a connection that opened, and on which no channel could be opened."""
    failure = explain(exc, tls=False)
    return failure.kind(f"no channel could be opened on {node}: {failure}")


class TooFewChannels(Exception):
    """A broker's ``channel_max``, as agreed on, is less than what a connection is for needs."""

    def __init__(self, agreed: int, needed: int) -> None:
        super().__init__(f"channel_max is {agreed}, and {needed} are needed on a connection")


def explain(exc: BaseException, tls: bool) -> Failure:
    """Say in words why pika could not connect. Measured with pika 1.4.4 and RabbitMQ 3.10."""
    exc = _innermost(exc)
    text = str(exc) or repr(exc)
    # "ConnectionClosedByBroker: (403) 'ACCESS_REFUSED - ...'" inside pika's own sentence.
    reply = re.search(r"\((?P<code>\d{3})\) ['\"](?P<text>.*?)['\"]$", text)
    code, said = (reply["code"], f"{reply['code']} {reply['text']}") if reply else ("", "")
    if isinstance(exc, (pika_errors.ConnectionClosed, pika_errors.ChannelClosed)):
        code, said = str(exc.reply_code), f"{exc.reply_code} {exc.reply_text}"
    if isinstance(exc, TooFewChannels):
        return Failure(text, BrokerRefused)
    if code == "403" or isinstance(exc, pika_errors.AuthenticationError):
        return Failure(f"user name or password refused ({said or text})", AuthenticationRefused)
    if code == "530":
        # AMQP 0-9-1, not-allowed: the virtual host is missing, full, or not for this user; or a limit.
        kind = VirtualHostRefused if "vhost" in said or "virtual host" in said else BrokerRefused
        what = "virtual host refused" if kind is VirtualHostRefused else "refused"
        return Failure(f"{what} ({said})", kind)
    if said:
        return Failure(f"closed by the broker ({said})")
    if isinstance(exc, ssl.SSLCertVerificationError):
        reason = f"TLS: the broker's certificate is not accepted ({exc.verify_message})"
        return Failure(reason, TLSRefused)
    if tls and (alert := _ALERT.search(text)):
        reason = f"TLS: the broker refused ({alert[1]}); does it want a client certificate, or another one?"
        return Failure(reason, TLSRefused)
    if isinstance(exc, ssl.SSLEOFError):
        return Failure("the connection was lost while TLS was agreed on")
    if isinstance(exc, ssl.SSLError):
        reason = f"TLS failed ({exc.reason or text}); is this the broker's TLS port?"
        return Failure(reason, TLSRefused)
    if isinstance(exc, pika_errors.IncompatibleProtocolError):
        # Hanging up may overtake an alert about the client's certificate.
        tls_hint = ", and is a client certificate wanted" if tls else ", and one without TLS"
        return Failure(
            "what listens there hung up, or answered, without speaking AMQP 0-9-1"
            f" (is this the broker's AMQP port{tls_hint}?)",
            ProtocolMismatch,
        )
    if isinstance(exc, pika_errors.ProbableAuthenticationError):
        return Failure("the connection was lost while logging in")
    if isinstance(exc, pika_errors.ProbableAccessDeniedError):
        return Failure("the connection was lost while the virtual host was opened")
    if isinstance(exc, ConnectionRefusedError):
        return Failure("connection refused")
    if isinstance(exc, pika_errors.AMQPHeartbeatTimeout):
        return Failure(f"no sign of life from the broker ({exc})")
    # Pika ends an asynchronous connection's opening by itself when its time is over.
    aborted = isinstance(exc, pika_errors.ConnectionOpenAborted)
    if aborted or "Timeout" in type(exc).__name__ or isinstance(exc, TimeoutError):
        return Failure("timed out before the connection was open")
    if isinstance(exc, OSError):
        return Failure(exc.strerror or str(exc) or type(exc).__name__)
    if isinstance(exc, pika_errors.AMQPConnectionError):
        return Failure(str(exc) or type(exc).__name__)
    if isinstance(exc, pika_errors.MethodNotImplemented):  # publisher confirms
        return Failure(f"the broker cannot do what is wanted of it ({text})", BrokerRefused)
    if isinstance(exc, pika_errors.ProtocolSyntaxError):
        # This one alone says what is wrong with a frame's shape; others repeat what is in it.
        why = f": {text}" if isinstance(exc, pika_errors.InvalidFrameError) else ""
        return Failure(f"what came from there is no AMQP 0-9-1 ({type(exc).__name__}{why})", ProtocolMismatch)
    # Not what a broker or a network does. An encoder's error repeats what it could not encode.
    return Failure(f"pika raised {type(exc).__name__}")


def refuses_channels(exc: BaseException) -> bool:
    """Whether a connection was closed over a channel more than its user, or the node, may have.

    RabbitMQ's own words: other connection errors have the same code, 530.
    """
    if isinstance(exc, TooFewChannels):
        return True
    if not isinstance(exc, pika_errors.ConnectionClosedByBroker):
        return False
    return exc.reply_code == 530 and "number of channels" in exc.reply_text


def _innermost(exc: BaseException) -> BaseException:
    """Pika wraps errors as an attribute or the only argument of others; of several, the last one counts."""
    for _ in range(8):
        several = getattr(exc, "exceptions", None)
        only = exc.args[0] if len(exc.args) == 1 else None
        inner = several[-1] if several else getattr(exc, "exception", None) or only
        if not isinstance(inner, BaseException):
            break
        exc = inner
    return exc
