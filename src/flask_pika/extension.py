"""``Pika``: the object that users hold. One state per app, and the verbs that they call."""

from __future__ import annotations

import math
import weakref

from flask import Flask, current_app, has_app_context

from .config import DEFAULT_PREFIX, read_settings
from .errors import ForeignChannel, SetupError
from .lease import PooledChannel
from .pool import PoolStats
from .state import State

_EXTENSION = "flask_pika"


class Pika:
    """RabbitMQ for a Flask app: pika's blocking channels, from a pool.

    ::

        fpika = Pika(app)              # or fpika = Pika(), and fpika.init_app(app) in the factory

        with fpika.channel() as ch:
            ch.basic_publish(exchange="", routing_key="queue", body="message")

    :param app: call :meth:`init_app` on it.
    :param config_prefix: the configuration is read from ``<prefix>_PARAMS`` and ``<prefix>_POOL_PARAMS``. A
        second object with a prefix of its own serves a second broker in the same app.
    """

    def __init__(self, app: Flask | None = None, *, config_prefix: str = DEFAULT_PREFIX) -> None:
        self._prefix = config_prefix
        self._app_refs: list[weakref.ref[Flask]] = []
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Read the app's configuration and register with it. Connects to nothing.

        :raises ConfigError: a value is wrong; the message names its key.
        :raises SetupError: the app has such an object already.
        """
        if self._prefix in states_of(app):
            raise SetupError(
                f"init_app was called before on {app!r} for a Pika object with the prefix"
                f" {self._prefix!r}; use that object, or give this one a config_prefix of its own"
            )
        state = State(read_settings(app.config, self._prefix), app.name, self._prefix)
        app.teardown_appcontext(state.end_of_context)
        app.extensions.setdefault(_EXTENSION, {})[self._prefix] = state
        self._app_refs = [weakref.ref(known) for known in (*self._apps(), app)]

    def channel(self, timeout: float | None = None) -> PooledChannel:
        """A channel for this caller alone, until it is returned or the app context ends.

        Use it in a ``with`` block, or hand it to :meth:`return_channel`.

        :param timeout: seconds that this may take, with waiting, connecting and all. Default:
            ``pool_timeout`` (30).
        :raises PoolTimeout: all channels were in use until then.
        :raises BrokerUnavailable: no node of the broker could be connected to.
        :raises PoolClosed: :meth:`close` was called for this app.
        """
        if timeout is not None and not (_is_number(timeout) and timeout >= 0):
            raise ValueError(f"timeout is {timeout!r}; expected seconds, 0 or more")
        return self._state().lend(timeout)

    def return_channel(self, channel: PooledChannel) -> None:
        """Give a channel back to the pool it came from, whichever thread or object borrowed it.

        The second return of the same channel does nothing.

        :raises ForeignChannel: ``channel()`` did not lend this object; nothing was done with it.
        """
        _ours(channel).give_up()

    def return_broken_channel(self, channel: PooledChannel) -> None:
        """Give back a channel that is known to be broken: its connection is closed, never lent again.

        :raises ForeignChannel: as :meth:`return_channel`.
        """
        _ours(channel).give_up(broken=True)

    def stats(self) -> PoolStats:
        """The pool's numbers in this process: cheap, and without I/O."""
        return self._state().pool().stats()

    def close(self) -> None:
        """Close this app's idle connections, and refuse new checkouts from now on.

        Channels that are lent stay usable, and are closed at their return. Takes two seconds at most.
        """
        self._state().close()

    def _apps(self) -> list[Flask]:
        return [app for ref in self._app_refs if (app := ref()) is not None]

    def _state(self) -> State:
        if has_app_context():
            state = states_of(current_app).get(self._prefix)
            if state is None:
                raise SetupError(
                    f"the current app, {current_app.name!r}, does not have this Pika object; call"
                    f" init_app(app) on it (its config_prefix is {self._prefix!r})"
                )
            return state
        apps = self._apps()
        if len(apps) == 1:
            return states_of(apps[0])[self._prefix]
        if not apps:
            raise SetupError("this Pika object serves no app; call init_app(app), and keep the app alive")
        names = ", ".join(sorted(repr(app.name) for app in apps))
        raise SetupError(
            f"this Pika object serves {len(apps)} apps ({names}), and there is no app context to tell"
            " which one is meant; use 'with app.app_context():'"
        )

    def __repr__(self) -> str:
        pools = [states_of(app)[self._prefix].pool() for app in self._apps()]
        return f"<Pika {self._prefix} {pools!r}>"


def states_of(app: Flask) -> dict[str, State]:
    """What an app has of its Pika objects, by their prefix."""
    states: dict[str, State] = app.extensions.get(_EXTENSION, {})
    return states


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _ours(channel: object) -> PooledChannel:
    if isinstance(channel, PooledChannel):
        return channel
    raise ForeignChannel(
        f"a {type(channel).__name__} was returned, which channel() did not lend; return what channel()"
        " gave, and close channels that you opened yourself"
    )
