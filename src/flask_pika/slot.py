"""A slot: one connection with one channel, and what its borrowers left on them."""

from __future__ import annotations

import enum
import logging
import os
import time
from collections.abc import Callable

from pika import exceptions as pika_errors
from pika.adapters.blocking_connection import BlockingChannel, BlockingConnection

from . import pika_internals
from .config import GOODBYE
from .connecting import Connected, no_channel
from .errors import BrokerUnavailable
from .gate import Gate
from .nodes import Node

logger = logging.getLogger("flask_pika.connection")

#: Seconds that a look at an idle connection may take, which is microseconds.
SERVE = 0.5
#: Seconds that a broker which has accepted the connection may take to open a channel on it.
CHANNEL_OPEN = 5.0


class Traces(enum.IntEnum):
    """What a borrower left behind, from nothing to what only a new connection is rid of."""

    NONE = 0
    ON_CHANNEL = 1  # confirm or tx mode, qos, consumers, callbacks, unacked deliveries, a closed channel
    ON_CONNECTION = 2  # exclusive queues, timers, callbacks, a call that was interrupted


#: Opens a connection until a deadline.
Dial = Callable[[float], Connected]


class Slot:
    """One connection with one channel, or the permit to open them.

    A slot has one user at a time (a borrower, the keeper, or whoever closes the pool), and only that one
    calls its methods. The pool decides who it is.
    """

    __slots__ = (
        "_arrivals",
        "_confirm_delivery",
        "_connection",
        "_dial",
        "_gate",
        "_node",
        "_pid",
        "born",
        "channel",
        "queue_declared",
        "traces",
        "unacked",
    )

    def __init__(self, dial: Dial, gate: Gate, confirm_delivery: bool = False) -> None:
        self._dial = dial
        self._gate = gate
        self._confirm_delivery = confirm_delivery
        self._connection: BlockingConnection | None = None
        self._node: Node | None = None
        self._arrivals: Callable[[], object] | None = None
        self._pid = 0
        #: When it connected, of the monotonic clock; 0.0 when it is not connected.
        self.born = 0.0
        self.channel: BlockingChannel | None = None
        self._begin_channel(None)

    def _begin_channel(self, channel: BlockingChannel | None) -> None:
        self.channel = channel
        # What flask_pika.calls notes of the borrower's calls; traces and unacked are read by clean().
        self.traces = Traces.NONE
        self.unacked: set[int] = set()
        self.queue_declared = False

    @property
    def confirms(self) -> bool:
        """Whether its channels come in confirm mode."""
        return self._confirm_delivery

    @property
    def is_open(self) -> bool:
        """Whether channel and connection were open when I/O last ran on them. Does no I/O."""
        return self.channel is not None and self.channel.is_open

    @property
    def is_connected(self) -> bool:
        """Whether the connection was open when I/O last ran on it. Does no I/O."""
        return self._connection is not None and self._connection.is_open

    def open(self, *, asked_at: float, deadline: float) -> bool:
        """Open a channel until the deadline, on a new connection if need be; whether it was a new one.

        :raises BrokerUnavailable: the slot is then closed, and can be opened again.
        """
        try:
            if self.is_connected:
                try:
                    self._open_channel(deadline)
                    return False
                except BrokerUnavailable as exc:
                    logger.debug("a connection was dropped, it took no new channel: %s", exc)
            self.abandon()
            # With the channel: a broker that takes connections and refuses channels is not up.
            self._gate.run(lambda: self._open_anew(deadline), asked_at=asked_at, deadline=deadline)
            return True
        except BaseException:
            # Also when the wait was interrupted: nobody knows what the peer will still answer.
            self.abandon()
            raise

    def _open_anew(self, deadline: float) -> None:
        try:
            self._open_both(deadline)
        except BrokerUnavailable as exc:
            if not isinstance(exc.__cause__, pika_errors.StreamLostError):
                raise
            # The network failed between the two. That refuses nobody, and all nodes may be there: once more.
            logger.debug("a new connection was lost before its channel was open: %s", exc)
            self.abandon()
            self._open_both(deadline)

    def _open_both(self, deadline: float) -> None:
        self._connection, self._node = self._dial(deadline)
        self._arrivals = pika_internals.arrivals(self._connection)
        self._pid = os.getpid()
        self.born = time.monotonic()
        self._open_channel(deadline)

    def _open_channel(self, deadline: float) -> None:
        connection = self._connection
        assert connection is not None
        try:
            within = min(deadline - time.monotonic(), CHANNEL_OPEN)
            with pika_internals.bounded(connection, within):
                channel = connection.channel()
                if self._confirm_delivery:
                    channel.confirm_delivery()
        except pika_internals.DeadlineReached as exc:
            raise BrokerUnavailable(
                f"{self._node} took the connection, and opened no channel in time"
            ) from exc
        except Exception as exc:  # of several families, AssertionError too
            raise no_channel(exc, self._node) from exc
        self._begin_channel(channel)

    def probe(self) -> bool:
        """Whether the channel is alive, as far as what has arrived from the broker tells.

        Sees an end of stream, a reset, Connection.Close and Channel.Close. Half a microsecond when nothing
        has arrived.
        """
        if not self.is_open:
            return False
        if self._arrivals is not None and not self._arrivals():
            return True
        return self.serve() and self.is_open

    def serve(self) -> bool:
        """Let the connection read what came and send its heartbeats; whether it is still there."""
        connection = self._connection
        if connection is None or self._pid != os.getpid():
            return False
        try:
            with pika_internals.bounded(connection, SERVE):  # it writes, too, and a frozen peer reads nothing
                connection.process_data_events(0)
                # Where the end of a channel was still to be dealt with, that was all, and nothing was read.
                if connection.is_open:
                    connection.process_data_events(0)
        except Exception as exc:
            # A lost connection, mostly. What a callback raised that some borrower left is no better.
            logger.debug("an idle connection was lost: %r", exc)
            return False
        return connection.is_open

    def clean(self, within: float = GOODBYE) -> bool:
        """Take away what the last borrower left, in ``within`` seconds; whether a connection remains.

        The traces decide: nothing to do, a new channel (opened when the slot is next lent), or a new
        connection.
        """
        if self.traces is Traces.NONE and not self.unacked:
            self.queue_declared = False
            return True  # alive or not: the probe at the next checkout will tell
        if self.traces is Traces.ON_CONNECTION or not self.is_connected:
            self.close(within)
            return False
        return self._close_channel(within)

    def _close_channel(self, within: float) -> bool:
        connection, channel = self._connection, self.channel
        if connection is None or self._pid != os.getpid():
            self.forget()
            return False
        try:
            if channel is not None and channel.is_open:
                with pika_internals.bounded(connection, within):
                    # Unacked deliveries go back to their queues with the channel.
                    channel.close()
        except pika_errors.ChannelClosed:
            pass  # the broker was faster
        except BaseException as exc:
            self.abandon()
            if not isinstance(exc, Exception):
                raise
            logger.debug("a connection was dropped, its channel did not close: %r", exc)
            return False
        self._begin_channel(None)
        return True

    def close(self, within: float = GOODBYE) -> None:
        """Close the connection with a goodbye that takes ``within`` seconds at most. Never raises."""
        connection = self._connection
        if connection is None or self._pid != os.getpid():
            self.forget()
            return
        try:
            if connection.is_open:
                if not pika_internals.AVAILABLE:
                    return  # drop() says goodbye in a thread, because nothing here could bound it
                with pika_internals.bounded(connection, within):
                    connection.close()
        except Exception as exc:
            logger.debug("a connection was dropped without a goodbye: %r", exc)
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Drop the connection without waiting for anything."""
        connection = self._connection
        self.forget()
        if connection is not None:
            pika_internals.drop(connection)

    def forget(self) -> None:
        """Let go of the connection without touching it, as in a forked child, where it is the parent's."""
        self._connection = None
        self._arrivals = None
        self.born = 0.0
        self._begin_channel(None)
