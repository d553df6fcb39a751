"""What a borrower holds: pika's channel, for as long as it is lent, and a note of what it left behind."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, cast

from .calls import TRACES, Args, Kwargs, advance, invoke
from .errors import ChannelReturned
from .pool import ChannelPool
from .slot import Slot, Traces

if TYPE_CHECKING:
    # To whoever writes code, and to its type checker, it is pika's channel.
    from pika.adapters.blocking_connection import BlockingChannel as _Channel
    from pika.adapters.blocking_connection import BlockingConnection
else:
    _Channel = object

_Self = TypeVar("_Self", bound="PooledChannel")

# Which argument is a function that pika calls with its own channel first.
_CALLBACKS = {"add_on_return_callback": (0, "callback"), "basic_consume": (1, "on_message_callback")}

# What a connection can be asked for without a trace.
_CONNECTION_STATELESS = frozenset(
    (
        "basic_nack",
        "basic_nack_supported",
        "consumer_cancel_notify",
        "consumer_cancel_notify_supported",
        "exchange_exchange_bindings",
        "exchange_exchange_bindings_supported",
        "is_closed",
        "is_open",
        "process_data_events",
        "publisher_confirms",
        "publisher_confirms_supported",
        "sleep",
    )
)


_Invoke = Callable[[Slot, str, Args, Kwargs], Any]


class PooledChannel(_Channel):
    """A pika ``BlockingChannel`` that is lent: yours from ``channel()`` until its return.

    It has the methods and attributes of the channel that it stands for, and looks each one up when it is
    called, so that tools that patch channels keep working. As pika's own, it is for one thread at a time. It
    can be used in a ``with`` block, which returns it.

    After the return every call raises :exc:`~flask_pika.ChannelReturned`, in every thread. What was called
    decides what becomes of the channel, so that the next borrower finds nothing of it: calls without state
    leave it as it is; confirm or tx mode, qos, consumers, callbacks and unacked deliveries cost it the
    channel; an exclusive queue, timers, and a call that was interrupted cost it the connection.
    """

    _pool: ChannelPool[Slot]
    _calls: list[None]
    _context: dict[PooledChannel, str] | None
    _where: str

    def __init__(
        self, pool: ChannelPool[Slot], context: dict[PooledChannel, str] | None = None, where: str = ""
    ) -> None:
        """
        :param context: the channels of the app context that it is borrowed in, which return it at the end.
        :param where: what borrows it, in words.
        """
        self._pool = pool
        # One entry for each call under way, in whichever thread. append() and pop() are atomic.
        self._calls = []
        self._context = context
        self._where = where

    def borrow(self: _Self, timeout: float | None) -> _Self:
        """Check out a slot, once. It is taken back when this object is gone."""
        slot = self._pool.checkout(timeout, self._where, weakref.ref(self))
        # In __dict__, whose pop() is atomic: of two threads that return the same channel, one gets it.
        self.__dict__["_slot"] = slot
        if self._context is not None:
            self._context[self] = self._where
        return self

    # Calls

    def _guarded(self, invoke: _Invoke, name: str, args: Args, kwargs: Kwargs) -> Any:
        # The call is noted before the slot is read, and give_up() takes the slot before it looks for calls:
        # either this call finds no slot, or the return finds that a call is under way.
        self._calls.append(None)
        try:
            return invoke(self._lent_slot(), name, args, kwargs)
        finally:
            self._calls.pop()
            if not self._calls and "_taken" in self.__dict__:
                self._finish_return()

    def _call(self, name: str, args: Args, kwargs: Kwargs) -> Any:
        if name in _CALLBACKS:
            args, kwargs = self._as_own(_CALLBACKS[name], args, kwargs)
        result = self._guarded(invoke, name, args, kwargs)
        return _Consumption(self, result) if name == "consume" else result

    def _as_own(self, place: tuple[int, str], args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
        """Arguments whose callback is given this object for a channel; nobody watches pika's own."""
        number, name = place
        callback = args[number] if len(args) > number else kwargs.get(name)
        if not callable(callback):
            return args, kwargs  # pika will say so
        this = weakref.ref(self)  # pika's channel holds the callback, and must not keep a dropped lease

        def with_own(_channel: object, *rest: Any) -> Any:
            return callback(this(), *rest)

        if len(args) > number:
            return (*args[:number], with_own, *args[number + 1 :]), kwargs
        return args, {**kwargs, name: with_own}

    def _lent_slot(self) -> Slot:
        slot: Slot | None = self.__dict__.get("_slot")
        if slot is None:
            raise ChannelReturned(
                "this channel was returned and is no longer yours; borrow another with channel()"
            )
        if slot.channel is None:
            raise ChannelReturned(
                "this channel was borrowed before a fork and is the parent process's; borrow another"
                " with channel()"
            )
        return slot

    def __getattr__(self, name: str) -> Any:
        # Only for what is not defined here: a later pika's methods, a tool's additions, pika's internals.
        if name.startswith("__") or name in ("_slot", "_taken"):
            raise AttributeError(name)
        slot = self._lent_slot()
        found = getattr(slot.channel, name)
        if name.startswith("_"):
            slot.traces = Traces.ON_CONNECTION
        elif callable(found):
            return lambda *args, **kwargs: self._call(name, args, kwargs)
        return found

    @property
    def is_open(self) -> bool:
        """Whether the channel is yours, and was open when I/O last ran on it."""
        slot: Slot | None = self.__dict__.get("_slot")
        return slot is not None and slot.is_open

    @property
    def is_closed(self) -> bool:
        """Whether the channel was returned, or is closed."""
        return not self.is_open

    @property
    def connection(self) -> BlockingConnection:
        """The channel's connection. After a call that may leave something on it, it is not lent again."""
        return cast("BlockingConnection", _LentConnection(self))

    def __int__(self) -> int:
        return self.channel_number

    # Return

    def __enter__(self: _Self) -> _Self:
        self._lent_slot()
        return self

    def __exit__(  # type: ignore[override]
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.give_up()

    def give_up(self, broken: bool = False) -> bool:
        """Return the channel; False when it had been returned before, and nothing was done."""
        slot: Slot | None = self.__dict__.pop("_slot", None)
        if slot is None:
            return False
        if self._context is not None:
            self._context.pop(self, None)
        if broken or self._calls:
            slot.traces = Traces.ON_CONNECTION
        self.__dict__["_taken"] = slot  # not the borrower's any more, and not the pool's yet
        if not self._calls:
            self._finish_return()
        # Else a call is under way, in another thread or below this one (a callback): it ends the return.
        return True

    def _finish_return(self) -> None:
        # Caller and returner may both come here; pop() lets one of them through.
        slot: Slot | None = self.__dict__.pop("_taken", None)
        if slot is not None:
            self._pool.release(slot)

    def __repr__(self) -> str:
        slot: Slot | None = self.__dict__.get("_slot")
        return f"<PooledChannel {'returned' if slot is None else repr(slot.channel)}>"


class _Consumption:
    """What ``consume()`` gives: pika's generator, run as calls of the lease, which it keeps."""

    def __init__(self, lease: PooledChannel, generator: Any) -> None:
        self._lease = lease
        self._generator = generator

    def __iter__(self) -> _Consumption:
        return self

    def __next__(self) -> Any:
        found = self._lease._guarded(advance, "__next__", (self._generator,), {})
        if found is None:
            raise StopIteration
        return found

    def close(self) -> None:
        """End it; see ``cancel()``, which also gives back what was fetched."""
        self._generator.close()


def _forward(name: str) -> Callable[..., Any]:
    def method(self: PooledChannel, *args: Any, **kwargs: Any) -> Any:
        return self._call(name, args, kwargs)

    method.__name__ = name
    method.__qualname__ = f"PooledChannel.{name}"
    method.__doc__ = f"See :meth:`pika.adapters.blocking_connection.BlockingChannel.{name}`."
    return method


# Real methods: __getattr__ would make a function for each call.
for _name in TRACES:
    setattr(PooledChannel, _name, _forward(_name))


class _LentConnection:
    """The connection of a lent channel. It keeps the lease alive, and ends with it."""

    def __init__(self, channel: PooledChannel) -> None:
        self.__dict__["_lease"] = channel

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        lease: PooledChannel = self.__dict__["_lease"]
        slot = lease._lent_slot()
        if name not in _CONNECTION_STATELESS:
            slot.traces = Traces.ON_CONNECTION
        found = getattr(_connection_of(slot), name)
        if callable(found):
            return lambda *args, **kwargs: lease._guarded(_invoke_connection, name, args, kwargs)
        return found

    def __setattr__(self, name: str, value: object) -> None:
        slot = self.__dict__["_lease"]._lent_slot()
        slot.traces = Traces.ON_CONNECTION
        setattr(_connection_of(slot), name, value)

    def __enter__(self) -> _LentConnection:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self.is_open:
            self.close()  # as pika's does

    def __repr__(self) -> str:
        return f"<connection of {self.__dict__['_lease']!r}>"


def _connection_of(slot: Slot) -> Any:
    return cast("_Channel", slot.channel).connection


def _invoke_connection(slot: Slot, name: str, args: Args, kwargs: Kwargs) -> Any:
    try:
        return getattr(_connection_of(slot), name)(*args, **kwargs)
    except BaseException:
        slot.traces = Traces.ON_CONNECTION
        raise
