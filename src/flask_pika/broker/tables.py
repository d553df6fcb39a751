"""AMQP's tables with the types of their fields, which pika's decoder forgets and a broker has to keep.

RabbitMQ compares arguments by type and value, and names the types in its errors; a header that passes a
dead-letter exchange must leave as the type that it came in.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, NamedTuple


class Malformed(Exception):
    """These bytes are no table."""


class Field(NamedTuple):
    """A value and its type, by the name that RabbitMQ gives it."""

    kind: str
    value: Any

    def same_as(self, other: Field) -> bool:
        """Whether RabbitMQ takes them for equal: the width of a number does not count."""
        return (_type_class(self.kind), self.value) == (_type_class(other.kind), other.value)


Table = dict[str, Field]

# AMQP 0-9-1, section 4.2.1, with RabbitMQ's errata: the letter, RabbitMQ's name for it, and its layout.
_FIXED = {
    b"t": ("bool", struct.Struct(">?")),
    b"b": ("byte", struct.Struct(">b")),
    b"B": ("unsignedbyte", struct.Struct(">B")),
    b"s": ("short", struct.Struct(">h")),
    b"u": ("unsignedshort", struct.Struct(">H")),
    b"I": ("signedint", struct.Struct(">i")),
    b"i": ("unsignedint", struct.Struct(">I")),
    b"L": ("long", struct.Struct(">q")),  # as RabbitMQ, which sends it as the next one
    b"l": ("long", struct.Struct(">q")),
    b"f": ("float", struct.Struct(">f")),
    b"d": ("double", struct.Struct(">d")),
    b"T": ("timestamp", struct.Struct(">Q")),
    b"D": ("decimal", struct.Struct(">BI")),
}
_LETTERS = {kind: (letter, layout) for letter, (kind, layout) in _FIXED.items()}
_INTEGERS = {"byte", "unsignedbyte", "short", "unsignedshort", "signedint", "unsignedint", "long"}
_LENGTH = struct.Struct(">I")


def text_of(value: bytes) -> str:
    """Bytes that are meant to be read. Names may be any bytes: what is no UTF-8 is kept as it is."""
    return value.decode("utf-8", "surrogateescape")


def raw_of(text: str) -> bytes:
    """The bytes again."""
    return text.encode("utf-8", "surrogateescape")


def longstr(text: str) -> Field:
    """A text."""
    return Field("longstr", raw_of(text))


def _type_class(kind: str) -> str:
    """Types that are compared as one: all numbers of a kind, and texts with bytes."""
    if kind in _INTEGERS or kind == "decimal":
        return "int"
    return {"double": "float", "binary": "longstr"}.get(kind, kind)


def is_integer(field: Field) -> bool:
    """Whether a field is a whole number, of any width."""
    return field.kind in _INTEGERS


def decode(data: bytes, at: int = 0) -> tuple[Table, int]:
    """The table at a place in ``data``, and the place after it.

    :raises Malformed: there is none.
    """
    try:
        return _table(data, at)
    except (struct.error, RecursionError, UnicodeError) as exc:
        raise Malformed(str(exc)) from exc


def _table(data: bytes, at: int) -> tuple[Table, int]:
    at, end = _span(data, at)
    table: Table = {}
    while at < end:
        length = data[at]
        name = text_of(data[at + 1 : at + 1 + length])
        table[name], at = _value(data, at + 1 + length)
    if at != end:
        raise Malformed("a table's last field goes beyond its end")
    return table, at


def _span(data: bytes, at: int) -> tuple[int, int]:
    """Where something with a length before it begins, and ends."""
    start = at + _LENGTH.size
    end = start + int(_LENGTH.unpack_from(data, at)[0])
    if end > len(data):
        raise Malformed("a field goes beyond the end of its frame")
    return start, end


def _value(data: bytes, at: int) -> tuple[Field, int]:
    letter = data[at : at + 1]
    at += 1
    if letter in _FIXED:
        kind, layout = _FIXED[letter]
        first, *more = layout.unpack_from(data, at)
        return Field(kind, (first, *more) if more else first), at + layout.size
    if letter == b"V":
        return Field("void", None), at
    if letter == b"F":
        table, at = _table(data, at)
        return Field("table", table), at
    start, end = _span(data, at)
    if letter == b"S":
        return Field("longstr", data[start:end]), end
    if letter == b"x":
        return Field("binary", data[start:end]), end
    if letter != b"A":
        raise Malformed(f"a field has the unknown type {letter!r}")
    at, items = start, []
    while at < end:
        item, at = _value(data, at)
        items.append(item)
    if at != end:
        raise Malformed("an array's last item goes beyond its end")
    return Field("array", items), at


def encode(table: Table) -> bytes:
    """A table as bytes."""
    pieces = []
    for name, field in table.items():
        raw = raw_of(name)
        pieces += [bytes([len(raw)]), raw, _encoded(field)]
    return _with_length(b"".join(pieces))


def _with_length(data: bytes) -> bytes:
    return _LENGTH.pack(len(data)) + data


def _encoded(field: Field) -> bytes:
    kind, value = field
    if kind in _LETTERS:
        letter, layout = _LETTERS[kind]
        return letter + (layout.pack(*value) if isinstance(value, tuple) else layout.pack(value))
    variable: dict[str, Callable[[], bytes]] = {
        "void": lambda: b"V",
        "longstr": lambda: b"S" + _with_length(value),
        "binary": lambda: b"x" + _with_length(value),
        "table": lambda: b"F" + encode(value),
        "array": lambda: b"A" + _with_length(b"".join(map(_encoded, value))),
    }
    return variable[kind]()
