"""A TCP proxy that does what networks do: it cuts, resets, freezes, delays, drips, and goes silent."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import TypeVar

P = TypeVar("P", bound="Proxy")

#: Bytes that wait in a direction, from which on its source is read no more; a delay may have more under way.
_MUCH = 2**20
_MUCH_DELAYED = 64 * 2**20
_READ = 65536
#: Seconds for the proxy's thread to do what it is told.
_PATIENCE = 30.0
#: Seconds to connect to the target: one that is stopped, its backlog full, must not keep the proxy waiting.
_CONNECT = 5.0
#: How often it is read what a peer had sent, before an orderly end.
_LAST_READS = 64
_RST = struct.pack("ii", 1, 0)  # SO_LINGER: on, no time: close() sends a reset


class _Pipe:
    """One direction of a connection: what was read, and when it may go on."""

    def __init__(self, source: socket.socket, sink: socket.socket, number: int, to_target: bool) -> None:
        self.source, self.sink, self.number, self.to_target = source, sink, number, to_target
        #: When each piece is due, and the piece; an empty one is the end.
        self.waiting: collections.deque[tuple[float, bytes]] = collections.deque()
        self.size = 0
        self.ended = False  # nothing more comes from the source
        self.shut = False  # nothing more goes to the sink
        self.not_before = 0.0  # when the next drop may fall


class Proxy:
    """Stands before a loopback port, in a ``with`` block: what connects to ``port`` is connected to it.

    Whatever it is told takes effect before the call returns, for the connections that there are and, but for
    ends, for those that come. Where nobody listens at the target, who connects is hung up on.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._server = socket.create_server(("127.0.0.1", 0))
        self._server.setblocking(False)  # who had connected may have gone
        self._listening = True
        self.port: int = self._server.getsockname()[1]
        self._woken, self._waker = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._thread = threading.Thread(target=self._serve, name="proxy", daemon=True)
        self._orders: collections.deque[Callable[[], None]] = collections.deque()
        # What follows belongs to the proxy's thread.
        #: By its source.
        self._pipes: dict[socket.socket, _Pipe] = {}
        self._ending = self._silent = self._frozen = False
        self._delay = 0.0
        self._drop, self._every = 0, 0.0
        #: How many have connected.
        self.connections = 0

    # What it does

    def cut(self) -> None:
        """End the connections that there are, in order: both sides see an end."""
        self._order(lambda: self._end_all(reset=False))

    def reset(self, number: int | None = None) -> None:
        """End the connections that there are with a reset; or this one alone, counted from 1."""
        self._order(lambda: self._end_all(reset=True, number=number))

    def refuse(self) -> None:
        """Take no connections: who connects is refused. Those that there are go on."""
        self._order(self._stop_listening)

    def accept(self) -> None:
        """Take connections again, on the same port."""
        self._order(self._listen)

    def freeze(self) -> None:
        """Nothing passes, and nothing is lost: what comes waits, and who connects hears nothing."""
        self._order(lambda: self._set(frozen=True))

    def thaw(self) -> None:
        """What waited passes on."""
        self._order(lambda: self._set(frozen=False))

    def silence(self) -> None:
        """From now on what comes is swallowed, in both directions; who connects hears nothing."""
        self._order(lambda: self._set(silent=True))

    def restore(self) -> None:
        """Let pass what comes, as at first. After a silence, connections have a hole in them, and end."""
        self._order(self._restore)

    def delay(self, seconds: float) -> None:
        """All that comes arrives so much later, in each direction. It limits no throughput."""
        self._order(lambda: self._set(delay=seconds))

    def drip(self, size: int, every: float) -> None:
        """No more than so many bytes pass at a time, every so many seconds, each way; 0: as they come."""
        self._order(lambda: self._set(drop=size, every=every))

    def limit(self, rate: float) -> None:
        """So many bytes pass in a second, in each direction and of each connection."""
        self.drip(max(1, int(rate / 100)), 0.01)

    def half_close(self, *, to_target: bool) -> None:
        """End one direction of the connections that there are; the other goes on."""

        def work() -> None:
            for pipe in self._pipes.values():
                if pipe.to_target is to_target:
                    self._shut(pipe)

        self._order(work)

    def passes(self, connection: int, to_target: bool, data: bytes) -> None:
        """For who listens in: this has come, to be passed on. Connections are counted from 1."""

    # Its life

    def __enter__(self: P) -> P:
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._thread.start()
        self._order(self._register_server)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._order(lambda: self._set(ending=True))
        self._thread.join()
        for one in (self._server, self._woken, self._waker, *self._pipes):
            one.close()
        self._selector.close()

    def _order(self, work: Callable[[], None]) -> None:
        """Have this done in the proxy's thread, and wait until it is."""
        done: concurrent.futures.Future[None] = concurrent.futures.Future()

        def carry_out() -> None:
            try:
                work()
            except BaseException as exc:
                done.set_exception(exc)
            else:
                done.set_result(None)

        self._orders.append(carry_out)
        self._waker.send(b"!")
        done.result(_PATIENCE)

    def _set(self, **what: object) -> None:
        for name, value in what.items():
            setattr(self, f"_{name}", value)

    # In its thread

    def _serve(self) -> None:
        while not self._ending:
            for key, mask in self._selector.select(self._arrange()):
                if key.fileobj is self._woken:
                    self._woken.recv(4096)
                elif key.fileobj is self._server:
                    self._take()
                elif mask & selectors.EVENT_READ and key.fileobj in self._pipes:
                    self._read(self._pipes[key.fileobj])
            for pipe in list(self._pipes.values()):
                self._pass_on(pipe)
            while self._orders:
                self._orders.popleft()()

    def _arrange(self) -> float | None:
        """Wait for what each socket is to do next; seconds until a piece is due."""
        now = time.monotonic()
        masks = dict.fromkeys(self._pipes, 0)
        due = []
        for pipe in self._pipes.values():
            if self._frozen:
                continue
            if not pipe.ended and pipe.size < (_MUCH_DELAYED if self._delay else _MUCH):
                masks[pipe.source] |= selectors.EVENT_READ
            if pipe.waiting and not pipe.shut:
                at = max(pipe.waiting[0][0], pipe.not_before)
                if at <= now:
                    masks[pipe.sink] |= selectors.EVENT_WRITE
                else:
                    due.append(at)
        known = self._selector.get_map()
        for one, mask in masks.items():
            if not mask:
                if one in known:
                    self._selector.unregister(one)
            elif one not in known:
                self._selector.register(one, mask)
            elif known[one].events != mask:
                self._selector.modify(one, mask)
        return max(0.0, min(due) - now) if due else None

    def _take(self) -> None:
        try:
            client, _ = self._server.accept()
        except OSError:  # it has gone already
            return
        try:
            target = socket.create_connection(("127.0.0.1", self._target), _CONNECT)
        except OSError:  # nobody is there, as the client shall see
            client.close()
            return
        self.connections += 1
        for source, sink in ((client, target), (target, client)):
            source.setblocking(False)
            source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._pipes[source] = _Pipe(source, sink, self.connections, source is client)

    def _read(self, pipe: _Pipe) -> None:
        data = b""
        try:
            data = pipe.source.recv(_READ)
        except BlockingIOError:
            return
        except OSError:
            pass
        pipe.ended = not data
        if pipe.shut:
            self._end_if_over(pipe)
        if self._silent or pipe.shut:
            return
        if data:
            self.passes(pipe.number, pipe.to_target, data)
        pipe.waiting.append((time.monotonic() + self._delay, data))
        pipe.size += len(data)

    def _pass_on(self, pipe: _Pipe) -> None:
        while pipe.waiting and not pipe.shut and not self._frozen:
            now = time.monotonic()
            due, data = pipe.waiting[0]
            if max(due, pipe.not_before) > now:
                return
            if not data:
                self._shut(pipe)
                return
            try:
                sent = pipe.sink.send(data[: self._drop or None])
            except BlockingIOError:
                return
            except OSError:  # it has gone, and will be read to its end, too
                self._shut(pipe)
                return
            pipe.waiting.popleft()
            if data[sent:]:
                pipe.waiting.appendleft((due, data[sent:]))
            pipe.size -= sent
            if self._drop:
                pipe.not_before = now + self._every

    def _shut(self, pipe: _Pipe) -> None:
        """Nothing more goes this way."""
        pipe.shut = True
        pipe.waiting.clear()
        pipe.size = 0
        with contextlib.suppress(OSError):
            pipe.sink.shutdown(socket.SHUT_WR)
        self._end_if_over(pipe)

    def _end_if_over(self, pipe: _Pipe) -> None:
        """When nothing comes and nothing goes any more, in neither direction."""
        back = self._pipes.get(pipe.sink)
        if back is not None and all(one.shut and one.ended for one in (pipe, back)):
            self._end(pipe, reset=False)

    def _end_all(self, *, reset: bool, number: int | None = None) -> None:
        for pipe in [pipe for pipe in self._pipes.values() if pipe.to_target]:
            if number in (None, pipe.number):
                self._end(pipe, reset=reset)

    def _end(self, pipe: _Pipe, *, reset: bool) -> None:
        for one in (pipe.source, pipe.sink):
            if one in self._selector.get_map():
                self._selector.unregister(one)
            self._pipes.pop(one, None)
            if reset:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST)
            else:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
                    # Linux makes a reset of a close() that leaves something unread.
                    for _ in range(_LAST_READS):
                        if not one.recv(_READ):
                            break
            one.close()

    def _register_server(self) -> None:
        self._selector.register(self._server, selectors.EVENT_READ)

    def _stop_listening(self) -> None:
        if self._listening:
            self._selector.unregister(self._server)
            self._server.close()
            # Bound, and not listening: who connects is refused, and nobody else gets the port.
            self._server = socket.socket()
            self._server.setblocking(False)
            self._server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._server.bind(("127.0.0.1", self.port))
            self._listening = False

    def _listen(self) -> None:
        if not self._listening:
            self._server.listen()
            self._listening = True
            self._register_server()

    def _restore(self) -> None:
        if self._silent:
            self._end_all(reset=False)
        self._set(silent=False, frozen=False, delay=0.0, drop=0, every=0.0)
        self._listen()
