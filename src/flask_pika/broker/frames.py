"""Frames, methods and names: between what is on the wire and what pika makes of it."""

from __future__ import annotations

import base64
import os
import struct
from collections.abc import Iterator
from typing import Any

from pika import spec

from . import tables
from .closing import ConnectionClosing
from .tables import Table, text_of

#: A frame's header: type, channel, size (AMQP 0-9-1, section 4.2.3).
HEADER = struct.Struct(">BHI")
#: Bytes of a frame around its payload.
OVERHEAD = spec.FRAME_HEADER_SIZE + spec.FRAME_END_SIZE


def split(buffer: bytearray, frame_max: int) -> Iterator[tuple[int, int, bytes]]:
    """Take the whole frames off the front of a buffer: type, channel and payload of each.

    :raises ConnectionClosing: there is something else.
    """
    at = 0
    try:
        while len(buffer) - at >= HEADER.size:
            kind, number, size = HEADER.unpack_from(buffer, at)
            if size > frame_max:  # RabbitMQ does not count what surrounds it
                raise bad_frame(kind, b"", f"{{frame_too_large,{size},{frame_max - OVERHEAD}}}")
            end = at + HEADER.size + size
            if len(buffer) <= end:
                return
            payload = bytes(buffer[at + HEADER.size : end])
            if buffer[end] != spec.FRAME_END:
                raise bad_frame(kind, payload, f"{{invalid_frame_end_marker,{buffer[end]}}}")
            at = end + 1
            yield kind, number, payload
    finally:
        del buffer[:at]


def bad_frame(kind: int, payload: bytes, problem: str) -> ConnectionClosing:
    """The error for a frame that is none."""
    which = "all" if len(payload) <= 16 else "first 16"
    return ConnectionClosing(501, f"type {kind}, {which} octets = {shown(payload[:16])}: {problem}")


def shown(data: bytes) -> str:
    """Bytes as Erlang prints them."""
    if data and all(32 <= octet < 127 for octet in data):
        return f'<<"{data.decode()}">>'
    return f"<<{','.join(map(str, data))}>>"


class NoSuchMethod(Exception):
    """RabbitMQ hangs up on such a client, without a word."""


#: How many short strings and octets of bits stand before a method's table of arguments.
_BEFORE_ARGUMENTS = {
    spec.Exchange.Declare.INDEX: (2, 1),
    spec.Exchange.Bind.INDEX: (3, 1),
    spec.Exchange.Unbind.INDEX: (3, 1),
    spec.Queue.Declare.INDEX: (1, 1),
    spec.Queue.Bind.INDEX: (3, 1),
    spec.Queue.Unbind.INDEX: (3, 0),
    spec.Basic.Consume.INDEX: (2, 1),
}
_OCTETS_BEFORE_NAMES = 6  # class, method, and the ticket that nobody uses any more


def decode_method(payload: bytes) -> Any:
    """A method frame's payload as pika's method; its arguments as a table with types.

    :raises NoSuchMethod: AMQP has none.
    :raises ConnectionClosing: it is cut off.
    """
    index = int.from_bytes(payload[:4], "big")
    kind: Any = spec.methods.get(index)
    if kind is None or len(payload) < 4:
        raise NoSuchMethod(f"{index >> 16}.{index & 0xFFFF}")
    # Of all methods, this one's constructor has required arguments (pika 1.4.4).
    method: Any = kind(b"", b"") if index == spec.Connection.UpdateSecret.INDEX else kind()
    try:
        method.decode(payload, 4)
        if index in _BEFORE_ARGUMENTS:
            method.arguments = _arguments(index, payload)
    except Exception as exc:  # of many types
        raise ConnectionClosing(501, f"cannot decode {shown(payload[4:])}") from exc
    return method


def _arguments(index: int, payload: bytes) -> Table:
    strings, bits = _BEFORE_ARGUMENTS[index]
    at = _OCTETS_BEFORE_NAMES
    for _ in range(strings):
        at += 1 + payload[at]
    return tables.decode(payload, at + bits)[0]


def name_of(value: object) -> str:
    """A name from a method; pika leaves bytes as they are when they are no UTF-8."""
    return text_of(value) if isinstance(value, bytes) else str(value)


def make(method: Any) -> Any:
    """A method's class, to be called: pika's generated classes are not annotated."""
    return method


def fresh_token() -> str:
    """What names that the broker gives end with."""
    return base64.urlsafe_b64encode(os.urandom(16)).decode().rstrip("=")


def printable(name: object) -> str:
    """A client's name for itself goes to terminals and logs."""
    return "".join(char if char.isprintable() else "?" for char in name_of(name))


def counted(number: int, one: str, many: str) -> str:
    """So many of something, for logs: ``1 byte``, ``2,000 bytes``."""
    return f"{number:,} {one if number == 1 else many}"
