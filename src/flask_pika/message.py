"""A message: its body as bytes, where it goes, and its properties, checked before anything is sent."""

from __future__ import annotations

import copy
import datetime
import json
from collections.abc import Callable, Mapping
from typing import Any

from pika import DeliveryMode
from pika import data as pika_data
from pika.spec import BasicProperties

from .encoded import EncodedProperties
from .errors import InvalidMessage
from .params import is_finite, nearest, type_of

#: AMQP 0-9-1, section 4.2.5.3: the length of a short string is one octet.
SHORT = 255
# RabbitMQ's timers are 32-bit milliseconds; it closes the channel over more.
_LONGEST_EXPIRATION = (2**32 - 1) / 1000
# Properties that are short strings.
_TEXT = (
    "content_type",
    "content_encoding",
    "correlation_id",
    "reply_to",
    "message_id",
    "type",
    "user_id",
    "app_id",
    "cluster_id",
)
#: All properties of a message, by their names in AMQP.
PROPERTIES = (*_TEXT, "headers", "delivery_mode", "priority", "expiration", "timestamp")


class Message:
    """A message to be published: what :meth:`flask_pika.Pika.publish` takes, as one object.

    ::

        Message({"id": 1}, exchange="orders", routing_key="order.created", headers={"tenant": "a"})

    :param body: bytes and str as they are; anything else goes through the app's JSON provider.
    :param exchange: the exchange's name; the default exchange routes to the queue named by the routing key.
    :param routing_key: 255 bytes at the most.
    :param mandatory: whether it is an error when no queue takes the message.
    :param properties: a ``pika.BasicProperties`` instead of named properties.
    :param named: properties by their AMQP names: ``content_type``, ``content_encoding``, ``headers``,
        ``delivery_mode`` (2, persistent, by default), ``priority``, ``correlation_id``, ``reply_to``,
        ``expiration`` (in seconds), ``message_id`` and ``timestamp`` (made when not given), ``type``,
        ``user_id``, ``app_id``, ``cluster_id``.
    """

    __slots__ = ("body", "exchange", "mandatory", "named", "properties", "routing_key")

    def __init__(
        self,
        body: object,
        *,
        exchange: str = "",
        routing_key: str = "",
        mandatory: bool = True,
        properties: BasicProperties | None = None,
        **named: Any,
    ) -> None:
        self.body = body
        self.exchange = exchange
        self.routing_key = routing_key
        self.mandatory = mandatory
        self.properties = properties
        self.named = named

    @property
    def headers(self) -> dict[str, Any]:
        """The headers; empty when there are none."""
        given = self.named.get("headers") if self.properties is None else self.properties.headers
        return dict(given or {})

    @property
    def text(self) -> str:
        """The body as text: bytes are UTF-8, and what is neither bytes nor text is JSON."""
        if isinstance(self.body, str):
            return self.body
        if isinstance(self.body, (bytes, bytearray, memoryview)):
            return bytes(self.body).decode()
        return json.dumps(self.body)

    @property
    def json(self) -> Any:
        """The body as JSON has it."""
        return json.loads(self.text)

    def __repr__(self) -> str:
        # Without the body, which may be a secret.
        return f"<Message to exchange {self.exchange!r} with routing key {self.routing_key!r}>"


def encode_body(body: object, dumps: Callable[[object], str]) -> tuple[bytes, str]:
    """The body's bytes, and its content type.

    :raises InvalidMessage: it cannot be encoded.
    """
    if isinstance(body, bytes):
        return body, "application/octet-stream"
    try:
        if isinstance(body, (bytearray, memoryview)):
            return bytes(body), "application/octet-stream"
        if isinstance(body, str):
            return body.encode(), "text/plain; charset=utf-8"
        return dumps(body).encode(), "application/json"
    except (TypeError, ValueError, RecursionError) as exc:
        # A UnicodeEncodeError's own text repeats the body.
        why = "it has lone surrogates" if isinstance(exc, UnicodeError) else str(exc)
        raise InvalidMessage(f"the body is {type_of(body)} and cannot be encoded: {why}") from exc


def check_address(exchange: object, routing_key: object, mandatory: object) -> None:
    """Refuse what a Basic.Publish cannot carry.

    :raises InvalidMessage: names the field.
    """
    for name, value in (("exchange", exchange), ("routing_key", routing_key)):
        check_text(name, value)
    if not isinstance(mandatory, bool):
        raise InvalidMessage(f"mandatory is {_shown(mandatory)}; expected True or False")


def checked_properties(
    named: Mapping[str, Any], properties: BasicProperties | None, content_type: str
) -> BasicProperties:
    """A message's properties for the wire, with the defaults filled in.

    :raises InvalidMessage: names the property.
    """
    if properties is None:
        result = _defaults(content_type)
        for name, value in named.items():
            if name not in PROPERTIES:
                raise InvalidMessage(f"a message has no property {name!r}; {nearest(name, PROPERTIES)}")
            if value is not None and (name, value) != ("message_id", ""):  # an empty id is none
                setattr(result, name, _checked(name, value))
        return result
    if isinstance(properties, EncodedProperties):
        return properties
    if not isinstance(properties, BasicProperties):
        raise InvalidMessage(f"properties is {type_of(properties)}; expected pika.BasicProperties")
    if named:
        raise InvalidMessage(f"give properties, or {', '.join(named)} by name, not both")
    result = _defaults(content_type)
    for name in PROPERTIES:
        value = getattr(properties, name)
        if value is None or (name, value) == ("message_id", ""):
            continue
        if name == "expiration":  # milliseconds as text, as AMQP has it
            if not (isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 10):
                raise InvalidMessage("properties.expiration is no text of milliseconds, such as '60000'")
            value = int(value) / 1000
        setattr(result, name, _checked(name, value))
    return result


def _defaults(content_type: str) -> BasicProperties:
    make: Any = BasicProperties  # pika's generated classes are not annotated
    result: BasicProperties = make(content_type=content_type, delivery_mode=2)
    return result


def _checked(name: str, value: Any) -> Any:
    if name in _TEXT:
        return check_text(name, value)
    if name == "headers":
        return check_table("headers", value)
    if name == "timestamp":
        return _timestamp(value)
    if name == "expiration":
        if not is_finite(value) or not 0 <= value <= _LONGEST_EXPIRATION:
            raise InvalidMessage(
                f"expiration is {_shown(value)}; expected seconds, from 0 to {_LONGEST_EXPIRATION:.0f}"
            )
        return str(round(value * 1000))
    if isinstance(value, DeliveryMode):
        value = value.value
    lowest, highest = (1, 2) if name == "delivery_mode" else (0, 255)
    if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest:
        raise InvalidMessage(f"{name} is {_shown(value)}; expected a number from {lowest} to {highest}")
    return int(value)


def check_text(name: str, value: object) -> str:
    """What AMQP is to carry as a short string.

    :raises InvalidMessage: it cannot; names it.
    """
    if not isinstance(value, str):
        raise InvalidMessage(f"{name} is {type_of(value)}; expected text")
    try:
        length = len(value.encode())
    except UnicodeError:
        raise InvalidMessage(f"{name} has lone surrogates, which cannot be sent") from None
    if length > SHORT:
        raise InvalidMessage(f"{name} has {length} bytes; AMQP carries {SHORT} at the most")
    return value


def check_table(table: str, value: object) -> dict[str, Any]:
    """A copy of what AMQP is to carry as a table.

    :raises InvalidMessage: it cannot; names the key.
    """
    if not isinstance(value, Mapping):
        raise InvalidMessage(f"{table} is {type_of(value)}; expected a dict")
    for name, header in value.items():
        check_text(f"{table}: the key {_shown(name)}"[:80], name)  # of a long one, the beginning will do
        try:
            pika_data.encode_table([], {name: header})
        except Exception:  # of many types, and with the value in its message
            raise InvalidMessage(
                f"{table}[{name!r}] is {type_of(header)} that cannot be sent; expected what pika has a type"
                " for: text, bytes, whole numbers of 64 bits, Decimal, bool, None, datetime, and lists and"
                " dicts of these"
            ) from None
    return copy.deepcopy(dict(value))  # it is encoded later, by another thread


def _timestamp(value: object) -> int:
    if isinstance(value, datetime.datetime):
        if value.tzinfo is None:
            raise InvalidMessage("timestamp is a datetime without a time zone; expected one that has it")
        value = int(value.timestamp())
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise InvalidMessage(f"timestamp is {_shown(value)}; expected seconds since 1970, or a datetime")
    return value


def _shown(value: object) -> str:
    try:
        return repr(value)
    except Exception:  # an int of more digits than Python prints
        return type_of(value)
