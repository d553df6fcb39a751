"""The handshake: what the broker says of itself, who may come in, and what is agreed. Pure."""

from __future__ import annotations

import struct

from pika import spec

from . import tables
from .closing import ConnectionClosing
from .tables import Field, Table, text_of

#: AMQP 0-9-1, section 4.2.2.
PROTOCOL_HEADER = b"AMQP\x00\x00\x09\x01"
#: What clients may begin with: that, or what the first ones of AMQP 0-9-1 said.
PROTOCOL_HEADERS = (PROTOCOL_HEADER, b"AMQP\x01\x01\x09\x01")
#: What the broker offers; a client may ask for less.
CHANNEL_MAX = 2047
FRAME_MAX = spec.FRAME_MAX_SIZE

_CAPABILITIES = (
    "authentication_failure_close",
    "basic.nack",
    "connection.blocked",
    "consumer_cancel_notify",
    "consumer_priorities",
    "direct_reply_to",
    "exchange_exchange_bindings",
    "per_consumer_qos",
    "publisher_confirms",
)


def start(properties: Table) -> bytes:
    """The payload of Connection.Start, with the broker's properties.

    Not by pika, to which all texts are alike: clients expect the types that RabbitMQ sends.
    """
    capabilities = {name: Field("bool", True) for name in _CAPABILITIES}
    payload = struct.pack(">IBB", spec.Connection.Start.INDEX, 0, 9)
    payload += tables.encode({"capabilities": Field("table", capabilities), **properties})
    for text in (b"PLAIN AMQPLAIN", b"en_US"):  # mechanisms and locales
        payload += struct.pack(">I", len(text)) + text
    return payload


def credentials(mechanism: str, response: bytes) -> tuple[str, str]:
    """User name and password, from SASL's PLAIN, or RabbitMQ's AMQPLAIN."""
    if mechanism == "PLAIN":
        try:
            _identity, user, password = response.split(b"\0")
        except ValueError as exc:
            raise ConnectionClosing(502, "PLAIN auth info is malformed") from exc
        return text_of(user), text_of(password)
    if mechanism == "AMQPLAIN":
        try:
            table = tables.decode(struct.pack(">I", len(response)) + response)[0]
            return text_of(table["LOGIN"].value), text_of(table["PASSWORD"].value)
        except (tables.Malformed, KeyError, AttributeError) as exc:
            raise ConnectionClosing(502, "AMQPLAIN auth info is malformed") from exc
    raise ConnectionClosing(504, f"unknown authentication mechanism '{mechanism}'")


def check_negotiated(what: str, value: int, ours: int, lowest: int) -> None:
    """Refuse what the client wants more, or less, of than there may be; 0 means without a limit."""
    if ours and (value > ours or value == 0):
        problem = f"negotiated {what} = {value} is higher than the maximum allowed value ({ours})"
        raise ConnectionClosing(530, problem)
    if value < lowest:
        problem = f"negotiated {what} = {value} is lower than the minimum allowed value ({lowest})"
        raise ConnectionClosing(530, problem)
