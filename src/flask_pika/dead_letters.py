"""A dead letter: what it says about its failure, whether it is meant, and how it is revived. Pure."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pika import BasicProperties

from .delivery import FAILURE
from .encoded import EncodedProperties
from .errors import UndecodableMessage
from .failures import revived
from .message import PROPERTIES

#: What RabbitMQ puts to what it delivers, and is not the message's; the second one from 4.3 on.
_COUNTS = ("x-delivery-count", "x-acquired-count")


@dataclass(frozen=True)
class Failure:
    """Why a message is among the dead letters; None is what nobody has said."""

    time: str | None = None
    attempts: int | None = None
    reason: str | None = None
    type: str | None = None
    message: str | None = None
    exchange: str | None = None
    routing_key: str | None = None


@dataclass(frozen=True)
class Letter:
    """A dead letter.

    :ivar place: which one of the queue it is, counted from 1.
    :ivar tag: its delivery tag.
    :ivar encoded: its properties as they came, but for what is the delivery's alone.
    """

    place: int
    tag: int
    exchange: str
    routing_key: str
    properties: BasicProperties
    encoded: bytes
    body: bytes

    @property
    def headers(self) -> Mapping[Any, Any]:
        """The headers; empty when there are none."""
        return self.properties.headers or {}

    @property
    def failure(self) -> Failure:
        """What the worker has written onto it, or the broker, which dead-lettered it."""
        headers = self.headers
        death, _first = _deaths(headers)
        by_worker = f"{FAILURE}reason" in headers
        attempts = headers.get(f"{FAILURE}attempts")
        exchange, key = _origin(headers)
        return Failure(
            _text(headers.get(f"{FAILURE}last-time") if by_worker else death.get("time")),
            attempts if isinstance(attempts, int) else None,
            _text(headers.get(f"{FAILURE}reason") if by_worker else death.get("reason")),
            _text(headers.get(f"{FAILURE}type")),
            _text(headers.get(f"{FAILURE}message")),
            exchange,
            key,
        )

    def matches(self, wanted: Iterable[tuple[str, str]]) -> bool:
        """Whether its headers, or properties where there are no such headers, have all of these values."""
        return all(as_text(self._value(name)) == value for name, value in wanted)

    def _value(self, name: str) -> Any:
        if name not in self.headers and name in PROPERTIES and name != "headers":
            return getattr(self.properties, name)
        return self.headers.get(name)

    def revived(self) -> EncodedProperties:
        """Its properties as if it had never failed, with where it was first published to.

        :raises UndecodableMessage: it has none.
        """
        result = revived(EncodedProperties(self.encoded))
        exchange, key = _origin(self.headers)
        if exchange is not None and key is not None:
            result.put({f"{FAILURE}exchange": exchange, f"{FAILURE}routing-key": key})
        return result


def _origin(headers: Mapping[Any, Any]) -> tuple[str | None, str | None]:
    """Exchange and routing key that a message was first published with."""
    if f"{FAILURE}exchange" in headers:
        return _text(headers[f"{FAILURE}exchange"]), _text(headers.get(f"{FAILURE}routing-key"))
    _last, first = _deaths(headers)
    keys = first.get("routing-keys")
    return _text(first.get("exchange")), _text(keys[0]) if isinstance(keys, list) and keys else None


def _deaths(headers: Mapping[Any, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The last of its x-deaths, and the first one. RabbitMQ puts the last one first."""
    deaths = headers.get("x-death")
    tables = [one for one in deaths if isinstance(one, Mapping)] if isinstance(deaths, list) else []
    return (tables[0], tables[-1]) if tables else ({}, {})


def without_count(properties: BasicProperties, encoded: bytes) -> bytes:
    """Take off what is the delivery's, not the message's."""
    headers: Any = properties.headers
    if headers:
        for name in _COUNTS:
            headers.pop(name, None)
        properties.headers = headers or None
    try:
        kept = EncodedProperties(encoded)
    except UndecodableMessage:
        return encoded
    kept.leave_out_headers(lambda name: name in _COUNTS)
    return b"".join(kept.encode())


def _text(value: Any) -> str | None:
    return None if value is None else as_text(value)


def as_text(value: Any) -> str:
    """A header's value, as one writes it on a command line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime.datetime):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return "" if value is None else str(value)
