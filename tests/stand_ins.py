"""Stand-ins for time, for connections and for peers, for what nothing real can show."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from flask_pika.errors import BrokerUnavailable


class Clock:
    """Time that passes only when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class World:
    """A broker as slots see it, with a count of what is open."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.numbers = itertools.count()
        self.up = True
        self.connected: set[StandInSlot] = set()
        self.most_connected = 0
        self.interrupt: BaseException | None = None

    def new_slot(self) -> StandInSlot:
        return StandInSlot(self)


class StandInSlot:
    """Does what a Slot does, without a broker."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.number = next(world.numbers)
        self.born = 0.0
        self.broken = False

    @property
    def is_connected(self) -> bool:
        return self in self.world.connected

    @property
    def is_open(self) -> bool:
        return self.is_connected

    def open(self, *, asked_at: float, deadline: float) -> bool:
        if self.world.interrupt is not None:
            raise self.world.interrupt
        if not self.world.up:
            self.forget()
            raise BrokerUnavailable("the stand-in is down")
        self.world.connected.add(self)
        self.world.most_connected = max(self.world.most_connected, len(self.world.connected))
        self.born = self.world.clock()
        return True

    def probe(self) -> bool:
        return self.serve()

    def serve(self) -> bool:
        if not self.world.up:
            self.forget()
        return self.is_connected

    def clean(self, within: float = 0.0) -> bool:
        if self.broken:
            self.close()
        self.broken = False
        return self.is_connected

    def close(self, within: float = 0.0) -> None:
        self.forget()

    def forget(self) -> None:
        self.world.connected.discard(self)
        self.born = 0.0


class Holder:
    """What holds a slot, and can be dropped."""


def gone() -> weakref.ref[object]:
    """A reference to a holder that is not there any more."""
    return weakref.ref(Holder())


class StandInChannel:
    """Answers to any method, and raises what it is told to."""

    is_open = True
    is_closed = False
    channel_number = 1

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.error: BaseException | None = None
        self.during: Callable[[], object] = lambda: None
        self.result: Any = None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)

        def method(*args: Any, **kwargs: Any) -> Any:
            self.calls.append(name)
            self.during()
            if self.error is not None:
                raise self.error
            return self.result

        return method


@contextlib.contextmanager
def peer(*answers: bytes) -> Iterator[int]:
    """Something else on a port: it answers whatever comes with these bytes in turn, and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    taken, _ = server.accept()
                    with taken, contextlib.suppress(OSError):
                        for answer in answers:
                            taken.recv(4096)
                            taken.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join(10)
