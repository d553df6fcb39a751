"""A message's properties as bytes: passed on as they came, but for what is said to change. Pure.

Pika's decoding is no way to make a copy: of a header that is a float it keeps the whole number, it knows one
length of whole numbers, and what it does not know fails.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any

from pika import data as pika_data
from pika.spec import BasicProperties

from .errors import UndecodableMessage

#: In the order of AMQP 0-9-1's Basic class (section 1.8.1): the first one's flag is the highest bit.
_NAMES = (
    "content_type",
    "content_encoding",
    "headers",
    "delivery_mode",
    "priority",
    "correlation_id",
    "reply_to",
    "expiration",
    "message_id",
    "timestamp",
    "type",
    "user_id",
    "app_id",
    "cluster_id",
)
_FLAGS = {name: 1 << (15 - at) for at, name in enumerate(_NAMES)}
_KNOWN = sum(_FLAGS.values())
#: Bytes of those that are numbers. All others but the headers are short strings.
_WIDTHS = {"delivery_mode": 1, "priority": 1, "timestamp": 8}
#: Bytes of each type of value in a table, by its letter, as RabbitMQ and pika read them.
_VALUES = {b"t": 1, b"b": 1, b"B": 1, b"s": 2, b"U": 2, b"u": 2, b"I": 4, b"i": 4, b"f": 4}
_VALUES |= {b"l": 8, b"L": 8, b"d": 8, b"T": 8, b"D": 5, b"V": 0}
#: Types of values that have their length before them, in 4 bytes.
_LONG_VALUES = (b"S", b"x", b"A", b"F")


class EncodedProperties(BasicProperties):
    """What the publisher sends as it came, but for what is left out or put in here.

    Of pika's attributes it has two, for the publisher, which makes what is None: ``message_id``, by which the
    broker's returns are known, so that one is sent in any case; and ``timestamp``, of which none is made.

    :raises UndecodableMessage: the bytes are no properties.
    """

    def __init__(self, encoded: bytes) -> None:
        init: Any = super().__init__  # pika's generated classes are not annotated
        init()
        try:
            self._fields, self._table = _parse(encoded)
        except (struct.error, IndexError, ValueError) as exc:
            raise UndecodableMessage("the message's properties cannot be decoded") from exc
        self.timestamp = 0  # not None: what came, if any, is among the fields
        given = self._fields.get("message_id", b"\0")
        if len(given) > 1:
            self.message_id = pika_data.decode_short_string(given, 0)[0]
        self._fields.pop("message_id", None)

    def leave_out(self, *names: str) -> None:
        """Have properties no more."""
        for name in names:
            self._fields.pop(name, None)

    def leave_out_headers(self, which: Callable[[str], object]) -> None:
        """Have some headers no more."""
        for key in [key for key in self._table if which(_text(key))]:
            del self._table[key]

    def put(self, headers: Mapping[str, str | int]) -> None:
        """Have these headers. What is lone surrogates in them are the bytes that they stand for."""
        for name, value in headers.items():
            if isinstance(value, str):
                data = value.encode("utf-8", "surrogateescape")
                self._table[name.encode()] = b"S" + struct.pack(">I", len(data)) + data
            else:
                pieces: list[bytes] = []
                pika_data.encode_value(pieces, value)
                self._table[name.encode()] = b"".join(pieces)

    def values(self, prefix: str) -> dict[str, Any]:
        """The values of headers that begin so, by the rest of their names; without what cannot be decoded."""
        found: dict[str, Any] = {}
        for key, data in self._table.items():
            name = _text(key)
            if name.startswith(prefix):
                try:
                    value = pika_data.decode_value(data, 0)[0]
                except Exception:  # noqa: S112 - of many types
                    continue
                if data[:1] == b"S" and isinstance(value, bytes):
                    value = _text(value)
                found[name[len(prefix) :]] = value
        return found

    def encode(self) -> list[bytes]:
        """As pika's own has it: the flags, and what they announce."""
        fields = dict(self._fields)
        if self._table:
            table = b"".join(bytes([len(key)]) + key + value for key, value in self._table.items())
            fields["headers"] = struct.pack(">I", len(table)) + table
        if self.message_id:
            data = self.message_id if isinstance(self.message_id, bytes) else self.message_id.encode()
            fields["message_id"] = bytes([len(data)]) + data
        flags = sum(_FLAGS[name] for name in fields)
        pieces = [struct.pack(">H", flags)]
        pieces += [fields[name] for name in _NAMES if name in fields]
        return pieces


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _parse(encoded: bytes) -> tuple[dict[str, bytes], dict[bytes, bytes]]:
    (flags,) = struct.unpack_from(">H", encoded)
    if flags & ~_KNOWN:
        raise ValueError("flags that AMQP 0-9-1 does not have")
    at = 2
    fields: dict[str, bytes] = {}
    table: dict[bytes, bytes] = {}
    for name in _NAMES:
        if not flags & _FLAGS[name]:
            continue
        if name == "headers":
            (length,) = struct.unpack_from(">I", encoded, at)
            table = _parse_table(encoded, at + 4, at + 4 + length)
            at += 4 + length
            continue
        width = _WIDTHS.get(name) or 1 + encoded[at]
        fields[name] = encoded[at : at + width]
        at += width
    if at != len(encoded):
        raise ValueError("another length than that of the properties")
    return fields, table


def _parse_table(encoded: bytes, at: int, end: int) -> dict[bytes, bytes]:
    table: dict[bytes, bytes] = {}
    while at < end:
        begin = at + 1 + encoded[at]
        key = encoded[at + 1 : begin]
        kind = encoded[begin : begin + 1]
        at = begin + 1
        if kind in _LONG_VALUES:
            (length,) = struct.unpack_from(">I", encoded, at)
            at += 4 + length
        elif kind in _VALUES:
            at += _VALUES[kind]
        else:
            raise ValueError("a type of value that is not known")
        table[key] = encoded[begin:at]
    if at != end:
        raise ValueError("another length than that of the headers")
    return table
