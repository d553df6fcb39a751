"""What a borrower holds: pika's channel, for as long as it is lent, and a note of what it left behind."""

from __future__ import annotations

import struct
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, cast

from pika import exceptions as pika_errors

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
_Args = tuple[Any, ...]
_Kwargs = dict[str, Any]

# What a call leaves behind. A call that is not here, of a later pika for example, counts as ON_CHANNEL, and a
# private attribute as ON_CONNECTION, because nobody knows what is done with it.
_STATELESS = (
    "basic_publish",
    "exchange_bind",
    "exchange_declare",
    "exchange_delete",
    "exchange_unbind",
)
# These take a queue first, whose empty name means "the last one that was declared on this channel".
_ON_A_QUEUE = ("basic_get", "queue_bind", "queue_delete", "queue_purge", "queue_unbind")
_SETTLING = ("basic_ack", "basic_nack", "basic_reject")
_ON_CHANNEL = (
    "add_on_cancel_callback",
    "add_on_return_callback",
    "basic_cancel",
    "basic_consume",
    "basic_qos",
    "basic_recover",
    "cancel",
    "close",
    "confirm_delivery",
    "consume",
    "flow",
    "get_waiting_message_count",
    "start_consuming",
    "stop_consuming",
    "tx_commit",
    "tx_rollback",
    "tx_select",
)
_TRACES: dict[str, Traces] = {
    **dict.fromkeys((*_STATELESS, *_ON_A_QUEUE, *_SETTLING, "queue_declare"), Traces.NONE),
    **dict.fromkeys(_ON_CHANNEL, Traces.ON_CHANNEL),
}
# Calls whose arguments or results decide what they leave behind.
_WATCHED = frozenset((*_ON_A_QUEUE, *_SETTLING, "basic_consume", "consume", "queue_declare"))

# The broker's word on one message. The channel goes on in step.
_VERDICTS = (pika_errors.UnroutableError, pika_errors.NackError)
# Raised by pika while it checks or encodes the arguments, before the first byte is sent.
_ARGUMENT_ERRORS = (
    TypeError,
    ValueError,
    struct.error,
    pika_errors.ShortStringTooLong,
    pika_errors.UnsupportedAMQPFieldException,
)
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


_Invoke = Callable[[Slot, str, _Args, _Kwargs], Any]


class PooledChannel(_Channel):
    """A pika ``BlockingChannel`` that is lent: yours from ``channel()`` until its return.

    It has the methods and attributes of the channel that it stands for, and looks each one up when it is
    called, so that tools that patch channels keep working. As pika's own, it is for one thread at a time. It
    can be used in a ``with`` block, which returns it.

    After the return every call raises :class:`~flask_pika.ChannelReturned`, in every thread. What was called
    decides what becomes of the channel, so that the next borrower finds nothing of it: calls without state
    leave it as it is; confirm or tx mode, qos, consumers, callbacks and unacked deliveries cost it the
    channel; an exclusive queue, timers, and a call that was interrupted cost it the connection.
    """

    _pool: ChannelPool[Slot]
    _busy: bool
    _context: dict[PooledChannel, str] | None

    def __init__(
        self,
        pool: ChannelPool[Slot],
        slot: Slot,
        context: dict[PooledChannel, str] | None = None,
        where: str = "",
    ) -> None:
        """
        :param context: the channels of the app context that it was borrowed in, which return it at the end.
        :param where: what borrowed it, in words.
        """
        self._pool = pool
        self._busy = False
        self._context = context
        # In __dict__, whose pop() is atomic: of two threads that return the same channel, one gets it.
        self.__dict__["_slot"] = slot
        if context is not None:
            context[self] = where

    # Calls

    def _guarded(self, invoke: _Invoke, name: str, args: _Args, kwargs: _Kwargs) -> Any:
        # _busy is set before the slot is read, and give_up() takes the slot before it reads _busy: either
        # this call finds no slot, or the return finds that a call is under way.
        nested, self._busy = self._busy, True
        try:
            return invoke(self._lent_slot(), name, args, kwargs)
        finally:
            self._busy = nested
            if not nested and "_taken" in self.__dict__:
                self._finish_return()

    def _later(self, invoke: _Invoke, name: str) -> Callable[..., Any]:
        return lambda *args, **kwargs: self._guarded(invoke, name, args, kwargs)

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
            return self._later(_invoke, name)
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
        self.__dict__["_taken"] = slot
        if broken or self._busy:
            slot.traces = Traces.ON_CONNECTION
        if not self._busy:
            self._finish_return()
        # Else a call is under way, in another thread or below this one (a callback): it ends the return.
        return True

    def _finish_return(self) -> None:
        # Caller and returner may both come here; pop() lets one of them through.
        slot: Slot | None = self.__dict__.pop("_taken", None)
        if slot is not None:
            self._pool.release(slot)

    def __del__(self) -> None:
        # Dropped without a return. The collector may strike anywhere, so this only leaves word.
        slot: Slot | None = self.__dict__.get("_slot")
        if slot is not None:
            self._pool.orphans.append(slot)

    def __repr__(self) -> str:
        slot: Slot | None = self.__dict__.get("_slot")
        return f"<PooledChannel {'returned' if slot is None else repr(slot.channel)}>"


def _invoke(slot: Slot, name: str, args: _Args, kwargs: _Kwargs) -> Any:
    """Call a method of the lent channel, and note what it leaves behind."""
    watched = name in _WATCHED
    if watched:
        _watch_arguments(slot, name, args, kwargs)
    traces = _TRACES.get(name, Traces.ON_CHANNEL)
    if traces > slot.traces:
        slot.traces = traces
    try:
        result = getattr(slot.channel, name)(*args, **kwargs)
    except BaseException as exc:
        slot.traces = max(slot.traces, _traces_of_error(name, exc))
        raise
    if watched:
        _watch_result(slot, name, args, kwargs, result)
    return result


def _traces_of_error(name: str, exc: BaseException) -> Traces:
    if isinstance(exc, _VERDICTS):
        return Traces.NONE
    if isinstance(exc, _ARGUMENT_ERRORS):
        # A call that expects an answer may have made itself ready for it.
        return Traces.NONE if name == "basic_publish" or name in _SETTLING else Traces.ON_CHANNEL
    if isinstance(exc, pika_errors.ChannelClosedByBroker):
        return Traces.ON_CHANNEL
    # Interrupted: the answer may still come, to whoever calls next.
    return Traces.ON_CONNECTION


def _argument(args: _Args, kwargs: _Kwargs, place: int, name: str, default: Any) -> Any:
    return args[place] if len(args) > place else kwargs.get(name, default)


def _watch_arguments(slot: Slot, name: str, args: _Args, kwargs: _Kwargs) -> None:
    if name == "queue_declare":
        slot.queue_declared = True
        if _argument(args, kwargs, 3, "exclusive", False):
            slot.traces = Traces.ON_CONNECTION  # such a queue lives as long as its connection
    elif name in _SETTLING:
        tags = _settled_tags(slot, name, args, kwargs)
        if not tags:
            # The broker will close the channel, after the return perhaps: 406, unknown delivery tag.
            slot.traces = max(slot.traces, Traces.ON_CHANNEL)
    elif not slot.queue_declared and _argument(args, kwargs, 0, "queue", None) == "":
        # AMQP 0-9-1, queue.bind: "the last declared queue on the channel", which was another borrower's.
        raise ValueError(
            f"{name}(queue='') means the queue declared last on this channel, and you declared none"
        )


def _watch_result(slot: Slot, name: str, args: _Args, kwargs: _Kwargs, result: Any) -> None:
    if name == "basic_get":
        if result[0] is not None and not _argument(args, kwargs, 1, "auto_ack", False):
            slot.unacked.add(result[0].delivery_tag)
    elif name in _SETTLING:
        slot.unacked -= _settled_tags(slot, name, args, kwargs)


def _settled_tags(slot: Slot, name: str, args: _Args, kwargs: _Kwargs) -> set[int]:
    """Which of the channel's unacked deliveries an ack, nack or reject is about."""
    tag = _argument(args, kwargs, 0, "delivery_tag", 0)
    if name == "basic_reject" or not _argument(args, kwargs, 1, "multiple", False):
        return slot.unacked & {tag}
    # AMQP 0-9-1, basic.ack: multiple is "up to and including", and with tag 0 all that are outstanding.
    return {one for one in slot.unacked if tag == 0 or one <= tag}


def _forward(name: str) -> Callable[..., Any]:
    def method(self: PooledChannel, *args: Any, **kwargs: Any) -> Any:
        return self._guarded(_invoke, name, args, kwargs)

    method.__name__ = name
    method.__qualname__ = f"PooledChannel.{name}"
    method.__doc__ = f"See :meth:`pika.adapters.blocking_connection.BlockingChannel.{name}`."
    return method


# Real methods: __getattr__ would make a partial for each call.
for _name in _TRACES:
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
            return lease._later(_invoke_connection, name)
        return found

    def __setattr__(self, name: str, value: object) -> None:
        slot = self.__dict__["_lease"]._lent_slot()
        slot.traces = Traces.ON_CONNECTION
        setattr(_connection_of(slot), name, value)

    def __repr__(self) -> str:
        return f"<connection of {self.__dict__['_lease']!r}>"


def _connection_of(slot: Slot) -> Any:
    return cast("_Channel", slot.channel).connection


def _invoke_connection(slot: Slot, name: str, args: _Args, kwargs: _Kwargs) -> Any:
    try:
        return getattr(_connection_of(slot), name)(*args, **kwargs)
    except BaseException:
        slot.traces = Traces.ON_CONNECTION
        raise
