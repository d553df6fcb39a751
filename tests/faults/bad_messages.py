"""Messages that make no sense, by chance, and always the same: to be published, and as they are delivered."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import random
import struct
from collections.abc import Callable, Iterator
from typing import Any

# For a publisher


@dataclasses.dataclass
class Publish:
    """What is given to ``publish()``.

    :ivar field: which part of it is, or may be, wrong.
    """

    number: int
    field: str
    body: object = "hostile"
    given: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def marker(self) -> str:
        return f"hostile-{self.number}"

    @property
    def mark(self) -> str:
        """The property that tells which one it is."""
        return "type" if self.field == "app_id" else "app_id"


def nested(depth: int, make: Callable[[Any], Any]) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = make(value)
    return value


def _circle() -> list[Any]:
    circle: list[Any] = []
    circle.append(circle)
    return circle


TEXTS = (
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
#: Values for what is to be text.
_TEXTS: list[Any] = [5, 1.5, b"bytes", ["list"], {}, object(), "x" * 256, "é" * 128, "\ud800", "x" * 255]
_TEXTS += ["\x00\x01", "\n\r", "é" * 127, "😀", "'; DROP TABLE", "%s%n", " "]
_NUMBERS: list[Any] = [
    -1,
    3,
    256,
    2**31,
    2**64,
    10**400,
    "1",
    1.5,
    float("nan"),
    float("inf"),
    True,
    [],
    b"1",
]
_HEADERS: list[Any] = [
    5,
    "text",
    ["a"],
    {5: 1},
    {"": 1},
    {"é" * 128: 1},
    {"x" * 128: 1},
    {"x" * 256: 1},
    {"\ud800": 1},
    {"k": "\ud800"},
    {"k": object()},
    {"k": {1, 2}},
    {"k": 2**63},
    {"k": 2**63 - 1},
    {"k": -(2**70)},
    {"k": 1.5},
    {"k": float("nan")},
    {"k": decimal.Decimal("1.25")},
    {"k": decimal.Decimal("NaN")},
    {"k": decimal.Decimal("1e99")},
    {"k": datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc)},
    {"k": datetime.datetime(1, 1, 1, tzinfo=datetime.timezone.utc)},
    {"k": None, "l": True, "m": b"\xff\xfe", "n": [1, "a", {"b": []}]},
    {"k": "x" * 100_000},
    {"k": "x" * 200_000},
    {f"k{n}": n for n in range(2000)},
    {"k": nested(30, lambda inner: {"k": inner})},
    {"k": nested(30, lambda inner: [inner])},
    {"k": nested(5000, lambda inner: {"k": inner})},
    {"k": nested(5000, lambda inner: [inner])},
    {"CC": "no list"},
    {"CC": [5]},
    {"BCC": {"a": 1}},
    {"x-death": "never"},
    {"x-death": [{"count": -1}]},
    {"x-delivery-count": "many"},
    {"x-failure-attempts": -1},
]
_BODIES: list[Any] = [
    object(),
    {1, 2},
    "\ud800",
    {"k": "\ud800"},
    {"k": object()},
    {(1, 2): 3},
    _circle(),
    nested(100_000, lambda inner: [inner]),
    10**5000,
    1 + 2j,
    float("nan"),
    {"k": float("inf")},
    None,
    True,
    b"",
    b"\x00\xff\xce" * 50_000,
    bytearray(b"array"),
    memoryview(b"strided")[::2],
    "",
    "é😀" * 1000,
    {"nested": [1, {"a": None}]},
    lambda: None,
    Exception("no body"),
]
_ADDRESSES: list[Any] = [5, None, "x" * 256, "\ud800", b"key", []]
_OTHERS: dict[str, list[Any]] = {
    "mandatory": ["yes", 1, None, []],
    "routing_key": _ADDRESSES,
    "exchange": _ADDRESSES,
    "colour": [1],
    "Headers": [{}],
    "content-type": ["a"],
    "properties": [5, "text", {}, object()],
}


def publishes(count: int, seed: int) -> Iterator[Publish]:
    chance = random.Random(seed)
    for number in range(count):
        kind = chance.choice(("text", "number", "headers", "body", "other"))
        if kind == "text":
            name = chance.choice(TEXTS)
            yield Publish(number, name, given={name: chance.choice(_TEXTS)})
        elif kind == "number":
            name = chance.choice(("delivery_mode", "priority", "expiration", "timestamp"))
            yield Publish(number, name, given={name: chance.choice(_NUMBERS)})
        elif kind == "headers":
            yield Publish(number, "headers", given={"headers": chance.choice(_HEADERS)})
        elif kind == "body":
            yield Publish(number, "body", body=chance.choice(_BODIES))
        else:
            name = chance.choice(list(_OTHERS))
            yield Publish(number, name, given={name: chance.choice(_OTHERS[name])})


# As a consumer meets them


@dataclasses.dataclass
class Raw:
    """A message whose properties are these bytes: AMQP 0-9-1, section 4.2.6.1, flags and then values."""

    properties: bytes
    body: bytes


def short(data: bytes) -> bytes:
    return bytes([len(data)]) + data


def table(*pairs: tuple[bytes, bytes]) -> bytes:
    inside = b"".join(short(key) + value for key, value in pairs)
    return struct.pack(">I", len(inside)) + inside


def long_text(data: bytes) -> bytes:
    return b"S" + struct.pack(">I", len(data)) + data


def array(*values: bytes) -> bytes:
    inside = b"".join(values)
    return b"A" + struct.pack(">I", len(inside)) + inside


def number(value: int) -> bytes:
    return b"l" + struct.pack(">q", value)


#: Values of headers, with the octet that says their type.
_VALUES: list[bytes] = [
    b"V",
    b"t\x01",
    b"t\x07",
    b"b\xff",
    b"B\xff",
    b"s\xff\xff",
    b"u\xff\xff",
    b"I\x80\x00\x00\x00",
    b"i\xff\xff\xff\xff",
    number(-(2**63)),
    b"f" + struct.pack(">f", -0.0),
    b"d" + struct.pack(">d", 5e-324),
    b"D\xff" + struct.pack(">i", -1),
    b"T" + b"\xff" * 8,
    b"T" + struct.pack(">Q", 2**62),
    b"x" + struct.pack(">I", 3) + b"\xff\x00\xfe",
    long_text(b"\xff\xfe\xfd"),
    long_text(b"x" * 100_000),
    long_text(b""),
    array(),
    array(b"V", long_text(b"a"), b"F" + table()),
    b"F" + table(),
    nested(60, lambda inner: b"F" + table((b"k", inner if inner != 1 else b"V"))),
    nested(60, lambda inner: array(inner if inner != 1 else b"V")),
    b"L" + b"\xff" * 8,  # of no client's that RabbitMQ's errata know
]
#: Those that RabbitMQ ends a connection over, or a channel: no consumer meets them.
_NOT_TAKEN: list[tuple[bytes, bytes]] = [
    (b"k", b"f" + struct.pack(">f", float("nan"))),
    (b"k", b"d" + struct.pack(">d", float("inf"))),
    (b"k", b"Q\x00"),
    (b"k", b"\x00"),
    (b"CC", long_text(b"no list")),
    (b"BCC", number(-1)),
]
_NAMES: list[bytes] = [
    b"k",
    b"",
    b"\xff\xfe",
    b"x" * 128,
    b"x-death",
    b"x-delivery-count",
    b"x-acquired-count",
    b"x-first-death-queue",
    b"x-last-death-reason",
    b"x-failure-attempts",
    b"x-failure-queue",
    b"x-failure-exchange",
    b"x-failure-routing-key",
    b"x-failure-first-time",
    b"x-failure-traceback",
    b"x-stream-offset",
    b"traceparent",
]
_SHORTS = [b"", b"\xff" * 255, b"\x00", b"application/json", b"gzip", b"text/plain; charset=utf-99", b"\xc3"]
_CONTENTS: list[bytes] = [
    b"",
    b"\xff\xfe\xfd",
    b"{",
    b"[" * 100_000,
    b'{"a": ' * 5000 + b"1" + b"}" * 5000,
    b"1" * 100_000,
    b'"\\ud800"',
    b"NaN",
    b"\x1f\x8b\x08\x00broken gzip",
    b"\xce" * 200_000,
    b"\x00",
    "\N{BYTE ORDER MARK}{}".encode("utf-16"),
]
# The flags of the properties, in their order.
_CONTENT_TYPE, _CONTENT_ENCODING, _HEADERS_FLAG, _MODE, _PRIORITY = (
    1 << 15,
    1 << 14,
    1 << 13,
    1 << 12,
    1 << 11,
)
_CORRELATION, _REPLY, _EXPIRATION, _ID, _TIMESTAMP, _TYPE = 1 << 10, 1 << 9, 1 << 8, 1 << 7, 1 << 6, 1 << 5
_SHORT_FLAGS = (_CONTENT_TYPE, _CONTENT_ENCODING, _CORRELATION, _REPLY, _ID, _TYPE)


def raws(count: int, seed: int, queue: str, without: bytes = b"") -> Iterator[Raw]:
    """Hostile messages; some of them no broker takes.

    :param without: a header that none of them has.
    """
    chance = random.Random(seed)
    headers = [name for name in _NAMES if name != without]
    own = [
        (b"x-failure-queue", long_text(queue.encode())),
        (b"x-failure-exchange", long_text(b"\xff\xfe")),
        (b"x-failure-routing-key", long_text(b"r" * 10_000)),
    ]
    for _ in range(count):
        values: dict[int, bytes] = {}
        for flag in chance.sample(_SHORT_FLAGS, chance.randint(0, 3)):
            values[flag] = short(chance.choice(_SHORTS))
        if chance.random() < 0.1:
            values[_TIMESTAMP] = struct.pack(">Q", chance.choice((0, 2**63, 2**64 - 1)))
        if chance.random() < 0.1:
            values[_MODE] = bytes([chance.choice((0, 1, 2, 2, 2, 2, 9))])
        if chance.random() < 0.1:
            values[_PRIORITY] = b"\xff"
        if chance.random() < 0.02:
            values[_EXPIRATION] = short(b"soon")
        if chance.random() < 0.7:
            pairs = [(chance.choice(headers), chance.choice(_VALUES)) for _ in range(chance.randint(0, 4))]
            if chance.random() < 0.3:
                pairs += [*own, (b"x-failure-attempts", chance.choice(_VALUES))]
            if chance.random() < 0.03:
                pairs.append(chance.choice(_NOT_TAKEN))
            values[_HEADERS_FLAG] = table(*pairs)
        flags = sum(values)
        data = b"".join(values[flag] for flag in sorted(values, reverse=True))
        if chance.random() < 0.02:
            data = data[: len(data) // 2]
        if chance.random() < 0.01:
            flags |= 1  # more flags would follow
        yield Raw(struct.pack(">H", flags) + data, chance.choice(_CONTENTS))
