"""What one app has of one ``Pika`` object: its settings, and a pool in each process that uses it."""

from __future__ import annotations

import atexit
import logging
import os
import weakref

from flask import g, has_app_context, has_request_context, request
from pika.adapters.blocking_connection import BlockingConnection

from .config import Settings
from .connecting import connect, connection_name
from .gate import Gate
from .keeper import Keeper
from .lease import PooledChannel
from .ping import Pong, ping
from .pool import ChannelPool
from .slot import Slot

logger = logging.getLogger("flask_pika.pool")

#: Seconds that the interpreter's exit may spend on goodbyes to the broker, for each app.
AT_EXIT = 1.0


class State:
    """What one app has of one ``Pika`` object. It knows the app by its name alone, so that the app can go."""

    def __init__(self, settings: Settings, app_name: str, prefix: str) -> None:
        self.settings = settings
        self._app_name = app_name
        self._context_key = f"_flask_pika_{prefix}"  # on g: the channels borrowed in this app context
        self._closed = False
        # By process id: a child begins anew, before it takes a lock that the parent held at the fork.
        self._pools: dict[int, tuple[ChannelPool[Slot], Keeper]] = {}
        _states.add(self)

    def pool(self) -> ChannelPool[Slot]:
        """This process's pool; made when first asked for, without I/O."""
        mine = self._pools.get(os.getpid())
        return self._begin()[0] if mine is None else mine[0]

    def _begin(self) -> tuple[ChannelPool[Slot], Keeper]:
        self.forget_parent()
        # setdefault() is atomic: of two threads that begin, both get the one pool.
        pool, keeper = self._pools.setdefault(os.getpid(), self._make())
        if self._closed:
            pool.close()
        return pool, keeper

    def _make(self) -> tuple[ChannelPool[Slot], Keeper]:
        settings, gate = self.settings, Gate()
        name = connection_name(self._app_name)

        def open_connection(*, asked_at: float, deadline: float) -> BlockingConnection:
            return gate.run(
                lambda: connect(settings.nodes, name, deadline).connection,
                asked_at=asked_at,
                deadline=deadline,
            )

        def on_open() -> None:
            if settings.pool.pool_size:
                keeper.start(pool)

        keeper = Keeper(_keeping_interval(settings))
        pool = ChannelPool(
            settings.pool,
            lambda: Slot(open_connection, settings.pool.confirm_delivery),
            label=", ".join(map(str, settings.nodes)),
            on_open=on_open,
        )
        # When the app is gone, the keeper closes what is left: the collector must not wait for a broker.
        weakref.finalize(self, keeper.stop).atexit = False
        return pool, keeper

    def forget_parent(self) -> None:
        """Let go of what another process opened, without touching it."""
        mine = os.getpid()
        for pid in [pid for pid in self._pools if pid != mine]:
            inherited = self._pools.pop(pid, None)
            if inherited is not None:
                inherited[0].forget()

    def lend(self, timeout: float | None) -> PooledChannel:
        """A channel for this caller; it comes home with the app context, if there is one."""
        pool = self.pool()
        if not has_app_context():
            return PooledChannel(pool, pool.checkout(timeout))
        where = f"endpoint {request.endpoint!r}" if has_request_context() else "an app context"
        lent: dict[PooledChannel, str] = g.setdefault(self._context_key, {})
        return PooledChannel(pool, pool.checkout(timeout, where), lent, where)

    def end_of_context(self, _exc: BaseException | None) -> None:
        """Bring home what was borrowed in this app context and not returned."""
        lent: dict[PooledChannel, str] = g.pop(self._context_key, {})
        for channel, where in list(lent.items()):
            if channel.give_up():
                logger.warning(
                    "a channel borrowed in %s was not returned before its app context ended; it was now."
                    " Use 'with channel()', or return_channel()",
                    where,
                )

    def ping(self, timeout: float) -> Pong:
        """Connect anew, measure a round trip, and leave: see :func:`flask_pika.ping.ping`."""
        return ping(self.settings.nodes, connection_name(self._app_name), timeout)

    def close(self) -> None:
        """Close the idle connections, refuse checkouts; what is lent is closed at its return."""
        self._closed = True
        self.pool().close()
        _, keeper = self._pools[os.getpid()]
        keeper.stop()
        keeper.join(1.0)

    def close_at_exit(self) -> None:
        """Close what is idle, quickly."""
        mine = self._pools.get(os.getpid())
        if mine is not None:
            mine[0].close(AT_EXIT)


def _keeping_interval(settings: Settings) -> float:
    """Seconds between two rounds of the keeper: a quarter of the shortest heartbeat, 5 at the most.

    Where the broker decides on the heartbeat, or a function of the user's does, it may be any number.
    """
    unknown = 1.0
    beats = [unknown * 4 if node.heartbeat is None else node.heartbeat for node in settings.nodes]
    return min([5.0, *(beat / 4 for beat in beats if beat)])


_states: weakref.WeakSet[State] = weakref.WeakSet()


def all_states() -> list[State]:
    """The states that are in use in this process."""
    return list(_states)


def _forget_parents() -> None:
    for state in all_states():
        state.forget_parent()


def _close_all() -> None:
    for state in all_states():
        state.close_at_exit()


os.register_at_fork(after_in_child=_forget_parents)
atexit.register(_close_all)
