"""A TCP proxy that does what networks and stuck hosts do to connections: it cuts, freezes, delays, loses.

It stands before a port on loopback. One thread does it all, and it alone touches the connections. The
controls may be called from any thread; each is in force when it returns, and to repeat it changes nothing.
"""

from __future__ import annotations

import contextlib
import random
import selectors
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import TypeVar

from tools.rabbitmq_node import free_port

P = TypeVar("P", bound="Proxy")

_CHUNK = 65536
#: Bytes of one direction that may wait here, before it leaves the rest with the sender. What is delayed is on
#: its way, and no reason to stop the sender.
_ROOM = 1 << 20
_ROOM_DELAYED = 64 << 20


class _Way:
    """One direction of a connection: what was read from ``source``, and is to be written to ``sink``."""

    def __init__(self, source: socket.socket, sink: socket.socket, to_target: bool) -> None:
        self.source, self.sink, self.to_target = source, sink, to_target
        #: What came when; ``b""`` is the end.
        self.waiting: deque[tuple[float, bytes]] = deque()
        self.size = 0
        #: It was taken out of ``waiting``, and its sink has not taken it yet.
        self.piece = b""
        #: Until then nothing is written, where there is a limit.
        self.free_at = 0.0
        #: Whether the sink takes nothing for now.
        self.blocked = False
        #: Whether the source may still say something.
        self.reading = True
        #: Whether nothing more is let in: what comes is swallowed.
        self.sealed = False
        #: Whether nothing more is passed on, and no end.
        self.ended = False

    def put(self, data: bytes) -> None:
        if not self.sealed:
            self.waiting.append((time.monotonic(), data))
            self.size += len(data)

    def seal(self) -> None:
        """After what waits, pass on the end."""
        self.put(b"")
        self.sealed = True

    def drop(self) -> None:
        """Pass on nothing more, and no end."""
        self.waiting.clear()
        self.size, self.piece = 0, b""
        self.sealed = self.ended = True
        self.blocked = False

    def take(self, most: int, delay: float, now: float) -> bytes:
        """What is first, and what is due with it, up to so many bytes; ``b""`` is the end."""
        taken: list[bytes] = []
        while True:
            at, data = self.waiting.popleft()
            if len(data) > most:
                self.waiting.appendleft((at, data[most:]))
                data = data[:most]
            taken.append(data)
            most -= len(data)
            self.size -= len(data)
            if not most or not self.waiting or not self.waiting[0][1] or self.waiting[0][0] + delay > now:
                return b"".join(taken)


class _Connection:
    """A client's socket, and the one to the target."""

    def __init__(self, client: socket.socket, target: socket.socket) -> None:
        self.client, self.target = client, target
        self.to_target = _Way(client, target, True)
        self.to_client = _Way(target, client, False)
        self.ways = (self.to_target, self.to_client)
        #: 0, until the target has taken it.
        self.number = 0

    @property
    def is_over(self) -> bool:
        return not any(way.reading or not way.ended for way in self.ways)


class Proxy:
    """Stands before a loopback port, in a ``with`` block: what connects to ``port`` is connected to it.

    Where nobody listens at the target, clients are taken and see the end. A side that is reset is for the
    other side one that ends.

    Delays and limits are those of each connection, in each direction. A control with a ``number`` is about
    that connection alone, if it is still there; they are counted from 1, as ``passes()`` is told.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        # It never listens: while no other does, this keeps the port from everybody else.
        self._keeper = self._bind_free()
        self.port: int = self._keeper.getsockname()[1]
        #: How many have connected, and the target has taken them.
        self.connections = 0

        # Below, all but the orders is the thread's.
        self._listening: socket.socket | None = None
        self._connections: list[_Connection] = []
        self._watched: dict[socket.socket, int] = {}
        self._selector = selectors.DefaultSelector()
        self._silent = self._frozen = self._leaving = False
        self._delay = 0.0
        self._piece, self._seconds_per_byte = _CHUNK, 0.0

        self._woken, self._waker = socket.socketpair()
        self._woken.setblocking(False)
        self._waker.setblocking(False)
        self._thread = threading.Thread(target=self._serve, name="proxy")
        self._lock = threading.Lock()
        # What the thread shall do, and whether it takes no more of it: touched only under the lock.
        self._orders: list[tuple[Callable[[], None], Future[None]]] = []
        self._ended = False

        self._listen()

    # For who listens in

    def passes(self, connection: int, to_target: bool, data: bytes) -> None:
        """For who listens in: this is about to be passed on. Connections are counted from 1."""

    @property
    def present(self) -> list[int]:
        """The numbers of the connections that there are."""
        return [one.number for one in list(self._connections) if one.number]

    # Ends

    def cut(self, number: int | None = None) -> None:
        """End the connections that there are with a FIN to both sides; what waits is lost."""
        self._order(lambda: self._end_all(number, _finish))

    def reset(self, number: int | None = None) -> None:
        """End the connections that there are with a RST to both sides; what waits is lost."""
        self._order(lambda: self._end_all(number, _reset))

    def reset_one(self) -> int | None:
        """Reset a connection chosen at random; its number, or None if there is none."""
        chosen = random.choice(self.present or [None])
        if chosen is not None:
            self.reset(chosen)
        return chosen

    def half_close(self, *, to_target: bool, number: int | None = None) -> None:
        """Pass on a FIN in one direction, after what waits, and nothing after it; the other goes on."""

        def act() -> None:
            for one in self._chosen(number):
                (one.to_target if to_target else one.to_client).seal()

        self._order(act)

    def refuse(self) -> None:
        """Take no new connections: who tries is refused. Those that there are go on."""
        self._order(self._stop_listening)

    def accept(self) -> None:
        """After :meth:`refuse`: take new connections again."""
        self._order(self._listen)

    # Obstacles

    def silence(self) -> None:
        """From now on nothing passes, and no end, in neither direction: it is swallowed.

        Who connects is taken, and hears nothing.
        """

        def act() -> None:
            self._silent = True
            for one in self._connections:
                for way in one.ways:
                    way.drop()

        self._order(act)

    def freeze(self) -> None:
        """As a host that is stuck: nothing passes, and nothing is lost. Senders are blocked in the end.

        The system takes who connects. Time goes on: what is delayed meanwhile comes when it thaws.
        """

        def act() -> None:
            self._frozen = True

        self._order(act)

    def thaw(self) -> None:
        """After :meth:`freeze`: all that waited is passed on."""

        def act() -> None:
            self._frozen = False

        self._order(act)

    def delay(self, seconds: float) -> None:
        """Each byte arrives so much later, and as fast; what is on its way as well. 0: no delay."""

        def act() -> None:
            self._delay = seconds

        self._order(act)

    def limit(self, rate: float) -> None:
        """Pass on so many bytes per second at the most, in pieces of a hundredth of a second. 0: no limit."""
        if rate:
            size = max(1, int(rate / 100))
            self.drip(size, size / rate)
        else:
            self.drip(0, 0)

    def drip(self, size: int, every: float) -> None:
        """Pass on so few bytes at a time, and as many in so many seconds at the most. 0: no limit."""
        pace = (size, every / size) if size else (_CHUNK, 0.0)

        def act() -> None:
            if (self._piece, self._seconds_per_byte) != pace:
                self._piece, self._seconds_per_byte = pace
                for one in self._connections:
                    for way in one.ways:
                        way.free_at = 0.0

        self._order(act)

    def restore(self) -> None:
        """End all obstacles, and take connections. After a silence they have a hole in them, and are cut."""

        def act() -> None:
            if self._silent:
                self._end_all(None, _finish)
            self._silent = self._frozen = False
            self._delay = 0.0
            self._listen()

        self._order(act)
        self.limit(0)

    # Orders

    def _order(self, act: Callable[[], None]) -> None:
        order: Future[None] = Future()
        with self._lock:
            if self._ended:
                return
            self._orders.append((act, order))
            with contextlib.suppress(BlockingIOError):  # there is enough to wake it
                self._waker.send(b"!")
        # What passes() orders is done when it has returned.
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            order.result()

    def _obey(self) -> None:
        with self._lock:
            orders, self._orders = self._orders, []
        for act, order in orders:
            try:
                act()
            except OSError as exc:  # the port is taken, for one: whose order it was shall know
                order.set_exception(exc)
            else:
                order.set_result(None)

    def __enter__(self: P) -> P:
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        def act() -> None:
            self._leaving = True

        self._order(act)
        self._thread.join()
        for one in (self._keeper, self._woken, self._waker):
            one.close()

    # The thread

    def _serve(self) -> None:
        try:
            while True:
                self._obey()  # before anything is passed on
                if self._leaving:
                    return
                for key, events in self._selector.select(self._turn()):
                    if key.fileobj is self._woken:
                        with contextlib.suppress(BlockingIOError):
                            self._woken.recv(4096)
                    elif key.fileobj is self._listening:
                        for client in self._arrived():
                            self._connect(client)
                    elif isinstance(key.fileobj, socket.socket):
                        self._is_ready(key.data, key.fileobj, events)
        finally:
            with self._lock:
                self._ended = True
            for _, order in self._orders:
                order.set_result(None)
            if self._listening is not None:
                self._listening.close()
            for one in self._connections:
                one.client.close()
                one.target.close()
            self._connections.clear()
            self._selector.close()

    def _turn(self) -> float | None:
        """Pass on what may pass now, and watch what matters; the seconds until more may pass."""
        now = time.monotonic()
        due: list[float] = []
        if self._listening is not None:
            self._watch(self._listening, 0 if self._frozen else selectors.EVENT_READ)
        for one in list(self._connections):
            if one.number and not self._frozen:
                due += [at for way in one.ways if (at := self._pass_on(one, way, now)) is not None]
            if one.is_over:
                self._end(one, _finish)
            else:
                self._watch(one.client, self._matters(one, one.to_target, one.to_client), one)
                self._watch(one.target, self._matters(one, one.to_client, one.to_target), one)
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _pass_on(self, one: _Connection, way: _Way, now: float) -> float | None:
        """Write what is due, as far as the sink takes it; when more will be."""
        while not way.ended and not way.blocked:
            if not way.piece:
                if not way.waiting:
                    return None
                at = max(way.waiting[0][0] + self._delay, way.free_at)
                if at > now:
                    return at
                way.piece = way.take(self._piece, self._delay, now)
                if not way.piece:
                    with contextlib.suppress(OSError):
                        way.sink.shutdown(socket.SHUT_WR)
                    way.drop()
                    return None
                way.free_at = now + len(way.piece) * self._seconds_per_byte
                self.passes(one.number, way.to_target, way.piece)
            try:
                way.piece = way.piece[way.sink.send(way.piece) :]
            except BlockingIOError:
                way.blocked = True
            except OSError:  # who reads from that sink hears of it, and passes on an end
                way.drop()
        return None

    def _matters(self, one: _Connection, source_of: _Way, sink_of: _Way) -> int:
        """What to watch a socket for. What nobody would act upon, the selector would tell again and again."""
        if self._frozen:
            return 0
        if not one.number:
            return selectors.EVENT_WRITE if source_of is one.to_client else 0
        events = selectors.EVENT_WRITE if sink_of.blocked else 0
        room = _ROOM_DELAYED if self._delay else _ROOM
        if source_of.reading and (source_of.sealed or source_of.size < room):
            events |= selectors.EVENT_READ
        return events

    def _watch(self, sock: socket.socket, events: int, data: _Connection | None = None) -> None:
        known = self._watched.get(sock, 0)
        if events == known:
            return
        self._watched[sock] = events
        if not events:
            self._selector.unregister(sock)
            del self._watched[sock]
        elif not known:
            self._selector.register(sock, events, data)
        else:
            self._selector.modify(sock, events, data)

    def _is_ready(self, one: _Connection, sock: socket.socket, events: int) -> None:
        if not one.number:
            try:
                sock.getpeername()
            except OSError:  # nobody is there, as the client shall see
                self._end(one, _finish)
            else:
                self.connections += 1
                one.number = self.connections
            return
        source_of, sink_of = one.ways if sock is one.client else one.ways[::-1]
        if events & selectors.EVENT_WRITE:
            sink_of.blocked = False
        if events & selectors.EVENT_READ:
            try:
                data = sock.recv(_CHUNK)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if data:
                source_of.put(data)
            else:
                source_of.reading = False
                source_of.seal()

    # Taking connections, and ending them

    def _bind_free(self) -> socket.socket:
        while True:
            with contextlib.suppress(OSError):  # another one was faster
                return self._bind(free_port())

    @staticmethod
    def _bind(port: int) -> socket.socket:
        bound = socket.socket()
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(("127.0.0.1", port))
            bound.setblocking(False)
        except OSError:
            bound.close()
            raise
        return bound

    def _listen(self) -> None:
        if self._listening is None:
            listening = self._bind(self.port)
            listening.listen(128)
            self._listening = listening

    def _stop_listening(self) -> None:
        if self._listening is not None:
            for client in self._arrived():  # they were there before
                self._connect(client)
            self._watch(self._listening, 0)
            self._listening.close()
            self._listening = None

    def _arrived(self) -> Iterator[socket.socket]:
        """Those that the system has taken."""
        while self._listening is not None:
            try:
                client, _ = self._listening.accept()
            except BlockingIOError:
                return
            except ConnectionError:  # it has left
                continue
            client.setblocking(False)
            yield client

    def _connect(self, client: socket.socket) -> None:
        target = socket.socket()
        target.setblocking(False)
        target.connect_ex(("127.0.0.1", self._target))  # what came of it, it tells when it is ready
        one = _Connection(client, target)
        for sock in (client, target):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._silent:
            for way in one.ways:
                way.drop()
        self._connections.append(one)

    def _chosen(self, number: int | None) -> list[_Connection]:
        return [one for one in self._connections if number in (None, one.number)]

    def _end_all(self, number: int | None, how: Callable[[socket.socket], None]) -> None:
        for one in self._chosen(number):
            self._end(one, how)
        if number is None:
            for client in self._arrived():
                how(client)

    def _end(self, one: _Connection, how: Callable[[socket.socket], None]) -> None:
        self._connections.remove(one)
        for sock in (one.client, one.target):
            self._watch(sock, 0)
            how(sock)


def _finish(sock: socket.socket) -> None:
    """Close it with a FIN."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_WR)
        # To close what was not read is a RST. Who goes on sending gets one anyway.
        for _ in range(256):
            if not sock.recv(_CHUNK):
                break
    sock.close()


def _reset(sock: socket.socket) -> None:
    """Close it with a RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
