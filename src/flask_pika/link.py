"""A link: one connection to the broker, kept open in a thread of its own, for all threads to share."""

from __future__ import annotations

import enum
import logging
import random
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from pika import exceptions as pika_errors
from pika.adapters.select_connection import IOLoop, SelectConnection

from . import pika_internals
from .backoff import Backoff
from .connecting import Failure, TooFewChannels, explain, refuses_channels, resolve, unavailable, unresolved
from .errors import BrokerRefused, BrokerUnavailable
from .nodes import Node

logger = logging.getLogger("flask_pika.connection")

#: Seconds that a name lookup may take, where the node has no bound of its own.
_LOOK_UP = 10.0
#: How often in a heartbeat a link looks whether anything came.
_LOOKS = 4
#: Seconds between two looks, where there are no heartbeats.
_LOOK_EVERY = 5.0
#: Seconds of rest after an error that nobody foresaw: it must not become a loop that does nothing else.
_AFTER_AN_ERROR = 0.1
#: Seconds after which a connection that was of use has lived: what ends it is a new trouble.
_LIVED = 5.0
#: Seconds for the thread to end, when a goodbye took too long.
_HARD_STOP = 1.0


class LinkState(enum.Enum):
    """Where a link is::

        stopped --start()--> connecting --> ready <--> blocked
                               ^    |         |           |
                               |    v         v           v
                               backing off <--------------+
        any of them --stop()--> draining --> stopped

    Any failure ends in back-off with jitter, and then another attempt.
    """

    STOPPED = "stopped"
    CONNECTING = "connecting"
    READY = "ready"
    BLOCKED = "blocked"  #: open, and the broker takes no messages, for want of memory or disk
    BACKING_OFF = "backing off"
    DRAINING = "draining"


class LinkUser(Protocol):
    """Who uses a link. All of it is called in the link's thread, and must not wait for anything."""

    def link_ready(self, connection: SelectConnection) -> None:
        """There is a new connection, and nothing on it yet."""

    def link_lost(self, error: Exception) -> None:
        """The connection is gone, with all that was on it."""

    def link_failed(self, error: BrokerUnavailable) -> None:
        """No node could be connected to; the next attempt comes after a back-off."""

    def link_ended(self) -> None:
        """The thread ends, whatever ended it."""

    def link_blocked(self, blocked: bool) -> None:
        """The broker takes no messages, or takes them again."""


class Link:
    """A connection that is kept open: it reconnects to whichever node answers, until it is stopped.

    :param name: what operators see of it.
    :param channels: how many the user needs at a time, at the most; a broker that allows fewer refuses.
    :param spare: and how many more it uses, where it may.
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        name: str,
        user: LinkUser,
        channels: int,
        spare: int = 0,
        backoff: Backoff | None = None,
    ) -> None:
        self._nodes = nodes
        self._name = name
        self._user = user
        self._channels = channels
        self._spare = spare
        self._backoff = backoff or Backoff()
        self._thread: threading.Thread | None = None
        #: Whether the thread runs, or ran.
        self.started = False
        #: Set by anybody, the garbage collector too, which may take no lock: stop at the next look.
        self.forsaken = False
        #: Read by any thread, written by the link's.
        self.state = LinkState.STOPPED
        #: Why there is no connection, if anything is known; read by any thread, written by the link's, and by
        #: who cannot start it.
        self.error: BrokerUnavailable | None = None

        # All below is the link's thread's alone, once it runs.
        self._loop: IOLoop
        self._services: Any
        self._forgotten = False
        self._connection: SelectConnection | None = None
        self._attempt = 0  # counts them, so that an answer to an earlier one is known as such
        self._to_try: list[tuple[Node, str | None]] = []  # a node, and its address when it is known
        self._failures: list[tuple[Node, Failure]] = []
        self._failed_rounds = 0
        self._useful_since: float | None = None  # of the monotonic clock
        self._stopping = False
        self._over = False  # the loop's last turn is done
        self._cut_off = False  # in the middle of its goodbye
        self._received = 0
        self._silent_looks = 0

    # For any thread

    def start(self) -> None:
        """Start the thread, which connects. Once: afterwards it does nothing. By one thread at a time.

        :raises RuntimeError: the system has no more threads; it can be tried again.
        :raises OSError: nor more files.
        """
        if self.started:
            return
        self._loop = IOLoop()
        # Whose the loop is: a signal handler's exception may strike when the thread is on its way, and nobody
        # can say whether it comes. Who acquires this first decides.
        begun = threading.Lock()
        try:
            # Not by its start(), which ends at each error: a poller that it can't make anew, for want of a
            # descriptor, leaves it in a state in which it never starts again.
            self._loop.activate_poller()
            self._services = pika_internals.services(self._loop)
            self._loop.add_callback_threadsafe(self.guarded(self._begin_round))
            self._thread = threading.Thread(
                target=self._run, args=(begun,), name="flask-pika-link", daemon=True
            )
            self._thread.start()
            self.started = True
        except BaseException:
            self.started = not begun.acquire(blocking=False)
            if not self.started:
                self._thread = None
                self._loop.close()
            raise

    def call(self, callback: Callable[[], object]) -> None:
        """Have a function called in the link's thread, soon; never, when the link is stopped before."""
        self._soon(self.guarded(callback))

    def _soon(self, callback: Callable[[], None]) -> None:
        """As call(), of what is guarded already."""
        try:
            self._loop.add_callback_threadsafe(callback)
        except Exception:
            # Of what type is pika's secret: the loop was closed by the link's end.
            logger.debug("%s: a call came after the end", self._name, exc_info=True)

    def call_later(self, seconds: float, callback: Callable[[], object]) -> None:
        """In the link's thread only: call a function later."""
        self._loop.call_later(seconds, self.guarded(callback))

    @property
    def is_own_thread(self) -> bool:
        """Whether the caller is the link's thread, which nobody may keep waiting."""
        return self._thread is threading.current_thread()

    def stop(self, within: float) -> bool:
        """Say goodbye to the broker, which may take ``within`` seconds, and end the thread.

        :returns: whether the broker answered, or there was none: then it has had all that was sent.
        """
        if not self.started or self._thread is None or self.is_own_thread:
            return True
        self.call(self._stop)
        self._thread.join(min(within, threading.TIMEOUT_MAX))
        answered = not self._thread.is_alive()
        if not answered:
            self.call(self._end)
            self._thread.join(_HARD_STOP)
        return answered and not self._cut_off

    def forget(self) -> None:
        """In a forked child: close the child's copy of the socket, which is the parent's, without a word.

        Under gevent, the child has a copy of the link's greenlet as well: it ends, and reads nothing.
        """
        self._forgotten = self._stopping = True
        if self._connection is not None:
            pika_internals.close_socket(self._connection)

    # The thread

    def _run(self, begun: threading.Lock) -> None:
        if not begun.acquire(blocking=False):
            return  # who started it was interrupted, and has given it up
        while not self._over:
            try:
                self._loop.poll()
                self._loop.process_timeouts()
            except BaseException as exc:
                if self._forgotten:
                    return
                # Out of pika, not out of a callback of ours: those are guarded.
                logger.exception("%s: an error escaped from the I/O loop", self._name)
                self._drop(exc)
                time.sleep(_AFTER_AN_ERROR)
        if self._forgotten:
            return  # what the loop has belongs to the parent, too
        self.state = LinkState.STOPPED
        if self._connection is not None:  # there was no time for a goodbye
            pika_internals.close_socket(self._connection)
        self._loop.close()
        self._user.link_ended()

    def _end(self) -> None:
        """The turn that the loop is in is its last one."""
        self._over = True

    def guarded(self, callback: Callable[..., object]) -> Callable[..., None]:
        """A callback that raises ends the connection, and not the thread."""

        def careful(*args: Any) -> None:
            if self._forgotten:
                raise SystemExit  # a copy of the link's greenlet, in a forked child
            try:
                callback(*args)
            except BaseException as exc:
                logger.exception("%s: a bug in Flask-Pika, please report it", self._name)
                self._drop(exc)

        return careful

    def _of_this_attempt(self, callback: Callable[..., object]) -> Callable[..., None]:
        """As guarded(), and ignored when this attempt, or the connection that it led to, is over."""
        attempt = self._attempt

        def current(*args: Any) -> None:
            if attempt == self._attempt:
                callback(*args)

        return self.guarded(current)

    # Connecting: a round goes over all nodes, in a shuffled order, and all their addresses

    def _begin_round(self) -> None:
        if self.forsaken:
            self._stop()
        if self._stopping or self._connection is not None:
            return
        self.state = LinkState.CONNECTING
        self._failures = []
        self._to_try = [(node, None) for node in random.sample(self._nodes, len(self._nodes))]
        self._try_next()

    def _try_next(self) -> None:
        self._attempt += 1
        if self._stopping:
            return
        if not self._to_try:
            self._end_round()
            return
        node, address = self._to_try.pop(0)
        if address is not None:
            self._dial(node, address)
            return
        resolved = self._of_this_attempt(lambda answer: self._resolved(node, answer))
        late = self._of_this_attempt(lambda: self._resolved(node, None))
        self._loop.call_later(node.connect_timeout or _LOOK_UP, late)
        resolve(node, lambda answer: self._soon(lambda: resolved(answer)))

    def _resolved(self, node: Node, answer: list[str] | OSError | None) -> None:
        if isinstance(answer, list):
            self._to_try[:0] = [(node, address) for address in answer]
        else:
            self._failures.append((node, unresolved(answer)))
        self._try_next()

    def _dial(self, node: Node, address: str) -> None:
        failed = self._of_this_attempt(lambda _connection, exc: self._refused(node, exc))
        parameters = node.parameters(
            address=address, connection_name=self._name, timeout=node.connect_timeout or _LOOK_UP
        )
        # Callers have deadlines of their own; a broker that is blocked for an hour needs no reconnects.
        parameters.blocked_connection_timeout = None
        # A lower setting is for the pool, whose connections have one channel each.
        parameters.channel_max = max(self._channels + self._spare, parameters.channel_max)
        try:
            # Pika would find out in a callback of its own that there is no descriptor left, and never tell.
            socket.socket().close()
            self._connection = pika_internals.asynchronous()(
                parameters,
                on_open_callback=self._of_this_attempt(lambda _connection: self._open()),
                on_open_error_callback=failed,
                on_close_callback=self._of_this_attempt(lambda _connection, exc: self._lost(exc)),
                custom_ioloop=self._services,
            )
        except Exception as exc:  # before any callback could be called
            self._refused(node, exc)

    def _refused(self, node: Node, exc: BaseException) -> None:
        self._connection = None
        if self._stopping:
            self._end()
            return
        failure = explain(exc, node.tls)
        failure.__cause__ = exc
        self._failures.append((node, failure))
        self._try_next()

    def _end_round(self) -> None:
        self._back_off()
        self._fail(unavailable(self._failures))

    def _fail(self, error: BrokerUnavailable) -> None:
        # A refusal is another incident than the loss before it: it does not pass by itself.
        news = isinstance(error, BrokerRefused) and not isinstance(self.error, BrokerRefused)
        if self.error is None or news:
            logger.warning("%s: RabbitMQ is unavailable, trying on with back-off: %s", self._name, error)
        self.error = error
        self._user.link_failed(error)

    def _back_off(self) -> None:
        self.state = LinkState.BACKING_OFF
        self._failed_rounds += 1
        self.call_later(self._backoff.delay(self._failed_rounds), self._begin_round)

    # Connected

    def _open(self) -> None:
        connection = self._connection
        if connection is None:
            raise RuntimeError("a connection opened that nobody has")
        if connection.params.channel_max < self._channels:
            self._drop(TooFewChannels(connection.params.channel_max, self._channels))
            return
        connection.add_on_connection_blocked_callback(
            self._of_this_attempt(lambda *_: self._set_blocked(True))
        )
        connection.add_on_connection_unblocked_callback(
            self._of_this_attempt(lambda *_: self._set_blocked(False))
        )
        self.state = LinkState.READY
        self._received, self._silent_looks = -1, 0
        self._useful_since = None
        self._listen()
        self._user.link_ready(connection)

    def works(self) -> None:
        """In the link's thread: the connection is of use. Until it has been for a while, back-off grows."""
        if self._useful_since is None:
            self._useful_since = time.monotonic()
        if self.error is not None:
            logger.warning("%s: RabbitMQ is back", self._name)
            self.error = None

    def _set_blocked(self, blocked: bool) -> None:
        self.state = LinkState.BLOCKED if blocked else LinkState.READY
        what = "takes no messages, for want of memory or disk" if blocked else "takes messages again"
        logger.warning("%s: RabbitMQ %s", self._name, what)
        self._user.link_blocked(blocked)

    def _listen(self) -> None:
        """Notice a peer that is silent for a heartbeat and a quarter.

        RabbitMQ beats each half of one, and leaves a beat out when it has sent something else in that half.
        Pika's own check takes up to three times as long. Looks are counted, not seconds: a process that was
        stopped for a minute must not blame its peer.
        """
        connection = self._connection
        if connection is None:
            return
        if self.forsaken:
            self._stop()
            return
        agreed = connection.params.heartbeat
        heartbeat = agreed if isinstance(agreed, int) else 0
        received = pika_internals.bytes_received(connection)
        self._silent_looks = self._silent_looks + 1 if received == self._received else 0
        self._received = received
        if heartbeat and received and self._silent_looks > _LOOKS:
            self._silent_looks = 0
            logger.warning("%s: RabbitMQ has been silent for %d s", self._name, heartbeat)
            self._drop(pika_errors.AMQPHeartbeatTimeout(f"nothing came for {heartbeat} s"))
        pause = heartbeat / _LOOKS if heartbeat else _LOOK_EVERY
        self._loop.call_later(pause, self._of_this_attempt(self._listen))

    def _lost(self, exc: Exception) -> None:
        self._connection = None
        self._attempt += 1
        if self._useful_since is not None and time.monotonic() - self._useful_since > _LIVED:
            self._failed_rounds = 0
        if self._stopping:
            self._cut_off = not isinstance(exc, pika_errors.ConnectionClosedByClient)
            self._end()
            self._user.link_lost(exc)
            return
        no_channel = self._useful_since is None and refuses_channels(exc)
        if self.error is None and not no_channel:
            self.error = BrokerUnavailable(f"the connection to RabbitMQ was lost: {explain(exc, False)}")
            self.error.__cause__ = exc
            logger.warning("%s: %s", self._name, self.error)
        self._back_off()
        self._user.link_lost(exc)
        if no_channel:
            error = BrokerRefused(
                f"RabbitMQ takes the connection, and no channel on it: {explain(exc, False)}"
            )
            error.__cause__ = exc
            self._fail(error)

    def _drop(self, exc: BaseException) -> None:
        """End the connection without a goodbye; ``_lost``, or ``_refused``, follows."""
        if self._connection is not None:
            pika_internals.abort(self._connection, exc)
        elif not self._stopping:
            self._back_off()

    def _stop(self) -> None:
        self._stopping = True
        self.state = LinkState.DRAINING
        connection = self._connection
        if connection is None or pika_internals.is_shaking_hands(connection):
            # Pika fails at a goodbye in the middle of the handshake. The thread closes the socket.
            self._end()
        elif not (connection.is_closing or connection.is_closed):
            connection.close()  # _lost, or _refused, follows, and stops the loop
