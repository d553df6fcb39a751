"""A TCP proxy that can go silent: it swallows what comes, and closes nothing, as a network that loses it."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from typing import TypeVar

P = TypeVar("P", bound="Proxy")


class Proxy:
    """Stands before a loopback port, in a ``with`` block: what connects to ``port`` is connected to it."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._server = socket.create_server(("127.0.0.1", 0))
        self._woken, self._waker = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._others: dict[socket.socket, socket.socket] = {}
        self._numbers: dict[
            socket.socket, tuple[int, bool]
        ] = {}  # which connection, and whether to the target
        self._thread = threading.Thread(target=self._serve, name="proxy")
        self._silent = False
        self.port: int = self._server.getsockname()[1]
        #: How many have connected.
        self.connections = 0

    def silence(self) -> None:
        """From now on nothing passes, in neither direction; who connects is taken, and hears nothing."""
        self._silent = True

    def passes(self, connection: int, to_target: bool, data: bytes) -> None:
        """For who listens in: this is about to be passed on. Connections are counted from 1."""

    def __enter__(self: P) -> P:
        for source in (self._server, self._woken):
            self._selector.register(source, selectors.EVENT_READ)
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._waker.close()
        self._thread.join()
        for one in (self._server, self._woken, *self._others):
            one.close()
        self._selector.close()

    def _serve(self) -> None:
        while True:
            for key, _ in self._selector.select():
                source = key.fileobj
                if source is self._woken:
                    return
                if source is self._server:
                    self._take()
                elif isinstance(source, socket.socket):
                    self._pass_on(source)

    def _take(self) -> None:
        client, _ = self._server.accept()
        try:
            target = socket.create_connection(("127.0.0.1", self._target))
        except OSError:  # nobody is there, as the client shall see
            client.close()
            return
        self.connections += 1
        for one, other in ((client, target), (target, client)):
            self._others[one] = other
            self._numbers[one] = (self.connections, one is client)
            self._selector.register(one, selectors.EVENT_READ)

    def _pass_on(self, source: socket.socket) -> None:
        data = b""
        with contextlib.suppress(ConnectionError):
            data = source.recv(65536)
        if not data:
            self._selector.unregister(source)
        if self._silent:
            return
        with contextlib.suppress(OSError):
            if data:
                self.passes(*self._numbers[source], data)
                self._others[source].sendall(data)
            else:
                self._others[source].shutdown(socket.SHUT_WR)
