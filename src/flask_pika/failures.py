"""What is written onto a message that failed, as headers, so that it says why; and taken off again.

On each: ``x-failure-attempts``, how often its handler has failed; ``x-failure-first-time`` and
``x-failure-last-time``, in UTC; ``x-failure-type`` and ``x-failure-message``, of the last exception;
``x-failure-exchange``, ``x-failure-routing-key`` and ``x-failure-queue``, where it was published to and
where it failed. On dead letters also ``x-failure-reason``, ``x-failure-traceback``, shortened, and
``x-failure-host``.

All else is as it was, byte for byte, but for: ``user_id``, as which only that user may publish;
``expiration``, within which it was delivered; the headers ``CC`` and ``BCC``, which would route the copy
elsewhere; and the broker's own about earlier dead-lettering and delivery counts.
"""

from __future__ import annotations

import datetime
import os
import socket
import traceback
from typing import Any

from pika import BasicProperties

from .delivery import FAILURE, Delivery
from .encoded import EncodedProperties
from .errors import UndecodableMessage

#: Characters of an exception's message, and of a traceback: headers have to fit in one frame.
_MESSAGE, _TRACEBACK = 500, 4000
#: As AMQP has whole numbers for certain.
_MOST = 2**31 - 1
_ORIGIN = (f"{FAILURE}exchange", f"{FAILURE}routing-key")
_NOT_KEPT = ("user_id", "expiration")
#: What RabbitMQ has put on a message, and puts on the copy anew; and what would route the copy elsewhere.
_BROKERS = ("x-death", "x-first-death-", "x-last-death-", "x-delivery-count", "x-acquired-count")
_ROUTING = ("CC", "BCC")


def retried(delivery: Delivery, error: BaseException, now: datetime.datetime) -> EncodedProperties:
    """The properties of a copy that waits for its next attempt."""
    return _copy(delivery, _about(delivery, error, now))


def dead(delivery: Delivery, error: BaseException, reason: str, now: datetime.datetime) -> EncodedProperties:
    """The properties of a copy among the dead letters."""
    about = _about(delivery, error, now)
    about["reason"] = reason
    about["host"] = f"{socket.gethostname()} (pid {os.getpid()})"
    # Without the frame of ours that called the handler.
    where = error.__traceback__ and (error.__traceback__.tb_next or error.__traceback__)
    try:
        text = "".join(traceback.format_exception(type(error), error, where))
    except Exception as exc:  # of an exception that somebody made
        text = f"(it cannot be formatted: {type(exc).__qualname__})"
    about["traceback"] = _shortened(text, _TRACEBACK)
    return _copy(delivery, about)


def shorten(properties: EncodedProperties) -> bool:
    """Leave out what is long and may be left out; whether there was anything."""
    for name in ("traceback", "message"):
        if properties.values(FAILURE + name):
            properties.leave_out_headers(lambda header: header == FAILURE + name)  # noqa: B023
            return True
    return False


def leave_out_all_others(properties: EncodedProperties) -> None:
    """Leave out the headers that the message came with."""
    properties.leave_out_headers(lambda name: not name.startswith(FAILURE))


def revived(properties: EncodedProperties) -> EncodedProperties:
    """The properties of a dead letter, made those of one that is to be handled as if it had never failed."""
    properties.leave_out(*_NOT_KEPT)
    # Where it came from is still so.
    properties.leave_out_headers(lambda name: _is_about_the_past(name) and name not in _ORIGIN)
    return properties


def _about(delivery: Delivery, error: BaseException, now: datetime.datetime) -> dict[str, str | int]:
    moment = now.astimezone(datetime.timezone.utc).isoformat(timespec="milliseconds")
    try:
        text = str(error)
    except Exception as exc:  # of an exception that somebody made
        text = f"(it has no text: {type(exc).__qualname__})"
    return {
        "attempts": min(delivery.attempt, _MOST),
        "first-time": str(delivery.failure.get("first-time", moment)),
        "last-time": moment,
        "type": _shortened(type(error).__qualname__, _MESSAGE),
        "message": _shortened(text, _MESSAGE),
        "exchange": delivery.exchange,
        "routing-key": delivery.routing_key,
        "queue": delivery.queue,
    }


def _copy(delivery: Delivery, about: dict[str, str | int]) -> EncodedProperties:
    try:
        result = delivery.encoded()
    except UndecodableMessage:  # there is nothing to pass on but the body, which is to outlive a restart
        make: Any = BasicProperties  # pika's generated classes are not annotated
        result = EncodedProperties(b"".join(make(delivery_mode=2).encode()))
    result.leave_out(*_NOT_KEPT)
    result.leave_out_headers(_is_about_the_past)
    result.put({FAILURE + name: value for name, value in about.items()})
    return result


def _is_about_the_past(header: str) -> bool:
    return header.startswith((*_BROKERS, FAILURE)) or header in _ROUTING


def _shortened(text: str, length: int) -> str:
    """Its beginning, and more of its end, where the exception is."""
    # What cannot be encoded would make the copy fail.
    text = text.encode("utf-8", "backslashreplace").decode()
    if len(text) <= length:
        return text
    begin = length // 4
    return f"{text[:begin]}\n...\n{text[-(length - begin - 5) :]}"
