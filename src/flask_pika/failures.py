"""What is written onto a message that failed, as headers, so that it says why; and taken off again.

On each: ``x-failure-attempts``, how often its handler has failed; ``x-failure-first-time`` and
``x-failure-last-time``, in UTC; ``x-failure-type`` and ``x-failure-message``, of the last exception;
``x-failure-exchange``, ``x-failure-routing-key`` and ``x-failure-queue``, where it was published to and
where it failed. On dead letters also ``x-failure-reason``, ``x-failure-traceback``, shortened, and
``x-failure-host``.
"""

from __future__ import annotations

import copy
import datetime
import os
import socket
import traceback
from typing import Any

from pika import BasicProperties

from .delivery import FAILURE, Delivery
from .message import PROPERTIES

#: Characters of an exception's message, and of a traceback: headers have to fit in one frame.
_MESSAGE, _TRACEBACK = 500, 4000
#: The header that may be left out, when all of them are too long.
TRACEBACK = f"{FAILURE}traceback"
#: What RabbitMQ has put on a message, and puts on the copy anew; and what would route the copy elsewhere.
_BROKERS = ("x-death", "x-first-death-", "x-last-death-", "x-delivery-count")
_ROUTING = ("CC", "BCC")


def retried(delivery: Delivery, error: BaseException, now: datetime.datetime) -> BasicProperties:
    """The properties of a copy that waits for its next attempt."""
    return _copy(delivery, _about(delivery, error, now))


def dead(delivery: Delivery, error: BaseException, reason: str, now: datetime.datetime) -> BasicProperties:
    """The properties of a copy among the dead letters."""
    about = _about(delivery, error, now)
    about["reason"] = reason
    about["host"] = f"{socket.gethostname()} (pid {os.getpid()})"
    # Without the frame of ours that called the handler.
    where = error.__traceback__ and (error.__traceback__.tb_next or error.__traceback__)
    text = "".join(traceback.format_exception(type(error), error, where))
    about["traceback"] = _shortened(text, _TRACEBACK)
    return _copy(delivery, about)


def revived(properties: BasicProperties) -> BasicProperties:
    """The properties of a dead letter that is to be handled again, as if it had never failed."""
    result = _properties(properties, {})
    for name in ("exchange", "routing-key"):  # where it came from is still so
        value = (properties.headers or {}).get(FAILURE + name)
        if value is not None:
            result.headers[FAILURE + name] = value
    return result


def _about(delivery: Delivery, error: BaseException, now: datetime.datetime) -> dict[str, Any]:
    moment = now.astimezone(datetime.timezone.utc).isoformat(timespec="milliseconds")
    try:
        before = delivery.headers
    except ValueError:  # they cannot be decoded
        before = {}
    return {
        "attempts": delivery.attempt,
        "first-time": before.get(f"{FAILURE}first-time", moment),
        "last-time": moment,
        "type": type(error).__qualname__,
        "message": _shortened(str(error), _MESSAGE),
        "exchange": delivery.exchange,
        "routing-key": delivery.routing_key,
        "queue": delivery.queue,
    }


def _copy(delivery: Delivery, about: dict[str, Any]) -> BasicProperties:
    try:
        properties = delivery.properties
    except ValueError:
        make: Any = BasicProperties  # pika's generated classes are not annotated
        properties = make(delivery_mode=2)
    return _properties(properties, about)


def _properties(properties: BasicProperties, about: dict[str, Any]) -> BasicProperties:
    make: Any = BasicProperties
    # Not user_id: the broker takes a message as this user's alone. Not expiration: it was delivered in time.
    names = (name for name in PROPERTIES if name not in ("headers", "user_id", "expiration"))
    result: BasicProperties = make(**{name: getattr(properties, name) for name in names})
    headers = {
        name: copy.deepcopy(value)
        for name, value in (properties.headers or {}).items()
        if not name.startswith((*_BROKERS, FAILURE)) and name not in _ROUTING
    }
    headers.update((FAILURE + name, value) for name, value in about.items())
    result.headers = headers
    return result


def _shortened(text: str, length: int) -> str:
    """Its beginning, and more of its end, where the exception is."""
    # What cannot be encoded would make the copy fail.
    text = text.encode("utf-8", "backslashreplace").decode()
    if len(text) <= length:
        return text
    begin = length // 4
    return f"{text[:begin]}\n...\n{text[-(length - begin - 5) :]}"
