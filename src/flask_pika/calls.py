"""What a call on a lent channel leaves behind, so that the next borrower finds nothing of it."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from pika import exceptions as pika_errors

from .slot import Slot, Traces

Args = tuple[Any, ...]
Kwargs = dict[str, Any]

# What a call leaves behind. A call that is not here, of a later pika for example, counts as ON_CHANNEL, and a
# private attribute as ON_CONNECTION, because nobody knows what is done with it.
_STATELESS = (
    "basic_publish",
    "exchange_bind",
    "exchange_declare",
    "exchange_delete",
    "exchange_unbind",
    "queue_declare",
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
TRACES: dict[str, Traces] = {
    **dict.fromkeys((*_STATELESS, *_ON_A_QUEUE, *_SETTLING), Traces.NONE),
    **dict.fromkeys(_ON_CHANNEL, Traces.ON_CHANNEL),
}
# Raised by pika while it checks or encodes the arguments, before the first byte is sent.
_ARGUMENT_ERRORS = (
    TypeError,
    ValueError,
    struct.error,
    pika_errors.ShortStringTooLong,
    pika_errors.UnsupportedAMQPFieldException,
)


def invoke(slot: Slot, name: str, args: Args, kwargs: Kwargs) -> Any:
    """Call a method of the lent channel, and note what it leaves behind."""
    before = _BEFORE.get(name)
    if before is not None:
        before(slot, name, args, kwargs)
    traces = TRACES.get(name, Traces.ON_CHANNEL)
    if traces > slot.traces:
        slot.traces = traces
    try:
        result = getattr(slot.channel, name)(*args, **kwargs)
        after = _AFTER.get(name)
        if after is not None:
            after(slot, name, result, args, kwargs)
    except BaseException as exc:
        slot.traces = max(slot.traces, _traces_of_error(name, exc))
        raise
    return result


def _traces_of_error(name: str, exc: BaseException) -> Traces:
    if isinstance(exc, pika_errors.UnroutableError):
        return Traces.NONE  # the broker's word on one message: the channel goes on in step
    if isinstance(exc, pika_errors.NackError):
        return Traces.ON_CHANNEL  # it may nack for as long as it lives: see flask_pika.nacks
    if isinstance(exc, _ARGUMENT_ERRORS):
        # A call that expects an answer may have made itself ready for it.
        return Traces.NONE if name == "basic_publish" or name in _SETTLING else Traces.ON_CHANNEL
    if isinstance(exc, pika_errors.ChannelClosedByBroker):
        return Traces.ON_CHANNEL
    # Interrupted: the answer may still come, to whoever calls next.
    return Traces.ON_CONNECTION


def _argument(args: Args, kwargs: Kwargs, place: int, name: str, default: Any) -> Any:
    return args[place] if len(args) > place else kwargs.get(name, default)


def _before_publish(slot: Slot, _name: str, args: Args, kwargs: Kwargs) -> None:
    if _argument(args, kwargs, 4, "mandatory", False) and not slot.confirms:
        slot.traces = max(slot.traces, Traces.ON_CHANNEL)  # it may come back after the return


def _before_declare(slot: Slot, _name: str, args: Args, kwargs: Kwargs) -> None:
    slot.queue_declared = True
    if _argument(args, kwargs, 3, "exclusive", False):
        slot.traces = Traces.ON_CONNECTION  # such a queue lives as long as its connection


def _before_queue(slot: Slot, name: str, args: Args, kwargs: Kwargs) -> None:
    if not slot.queue_declared and _argument(args, kwargs, 0, "queue", None) == "":
        # AMQP 0-9-1, queue.bind: "the last declared queue on the channel", which was another borrower's.
        raise ValueError(
            f"{name}(queue='') means the queue declared last on this channel, and you declared none"
        )


def _before_settling(slot: Slot, name: str, args: Args, kwargs: Kwargs) -> None:
    if not _settled_tags(slot, name, args, kwargs):
        # The broker will close the channel, after the return perhaps: 406, unknown delivery tag.
        slot.traces = max(slot.traces, Traces.ON_CHANNEL)


def _after_get(slot: Slot, _name: str, result: Any, args: Args, kwargs: Kwargs) -> None:
    if result[0] is not None and not _argument(args, kwargs, 1, "auto_ack", False):
        slot.unacked.add(result[0].delivery_tag)


def _after_settling(slot: Slot, name: str, _result: Any, args: Args, kwargs: Kwargs) -> None:
    slot.unacked -= _settled_tags(slot, name, args, kwargs)


def _settled_tags(slot: Slot, name: str, args: Args, kwargs: Kwargs) -> set[int]:
    """Which of the channel's unacked deliveries an ack, nack or reject is about."""
    tag = _argument(args, kwargs, 0, "delivery_tag", 0)
    if name == "basic_reject" or not _argument(args, kwargs, 1, "multiple", False):
        return slot.unacked & {tag}
    # AMQP 0-9-1, basic.ack: multiple is "up to and including", and with tag 0 all that are outstanding.
    return {one for one in slot.unacked if tag == 0 or one <= tag}


# Calls whose arguments, or results, decide what they leave behind.
_BEFORE: dict[str, Callable[[Slot, str, Args, Kwargs], None]] = {
    "basic_publish": _before_publish,
    "queue_declare": _before_declare,
    **dict.fromkeys(_ON_A_QUEUE, _before_queue),
    **dict.fromkeys(_SETTLING, _before_settling),
}
_AFTER: dict[str, Callable[[Slot, str, Any, Args, Kwargs], None]] = {
    "basic_get": _after_get,
    **dict.fromkeys(_SETTLING, _after_settling),
}


def advance(slot: Slot, _name: str, args: Args, _kwargs: Kwargs) -> Any:
    """Go on with the generator that ``consume()`` of the lent channel gave; None at its end."""
    (generator,) = args
    try:
        return next(generator, None)
    except BaseException as exc:
        slot.traces = max(slot.traces, _traces_of_error("consume", exc))
        raise
