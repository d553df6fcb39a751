"""A message as a broker has it: where it was sent, its header as it came, and its body."""

from __future__ import annotations

import struct
from typing import Any

from pika import frame, spec
from pika.spec import BasicProperties

from . import tables
from .arguments import parse_expiration
from .closing import precondition_failed
from .frames import HEADER, OVERHEAD
from .tables import Table

_FRAME_END = bytes([spec.FRAME_END])
# A content header: class, weight, body size, flags (AMQP 0-9-1, section 4.2.6.1).
_CONTENT_HEADER = struct.Struct(">HHQH")

# A message's properties in their order, by their flags' bits, and as what each is encoded: a short string, a
# table, or so many octets (AMQP 0-9-1, section 1.8.1).
_SHORT, _TABLE = -1, -2
_PROPERTIES = [
    ("content_type", 1 << 15, _SHORT),
    ("content_encoding", 1 << 14, _SHORT),
    ("headers", 1 << 13, _TABLE),
    ("delivery_mode", 1 << 12, 1),
    ("priority", 1 << 11, 1),
    ("correlation_id", 1 << 10, _SHORT),
    ("reply_to", 1 << 9, _SHORT),
    ("expiration", 1 << 8, _SHORT),
    ("message_id", 1 << 7, _SHORT),
    ("timestamp", 1 << 6, 8),
    ("type", 1 << 5, _SHORT),
    ("user_id", 1 << 4, _SHORT),
    ("app_id", 1 << 3, _SHORT),
    ("cluster_id", 1 << 2, _SHORT),
]


def _split(header: bytes) -> dict[str, bytes]:
    """The properties of a content header, each as it is encoded.

    Not by pika, which decodes what is cut off as if it were whole, and knows fewer types than RabbitMQ.

    :raises tables.Malformed: they go beyond its end.
    """
    raw: dict[str, bytes] = {}
    try:
        flags, at = _CONTENT_HEADER.unpack_from(header)[3], _CONTENT_HEADER.size
        for name, bit, encoding in _PROPERTIES:
            if not flags & bit:
                continue
            if encoding == _SHORT:
                end = at + 1 + header[at]
            elif encoding == _TABLE:
                end = at + 4 + int.from_bytes(header[at : at + 4], "big")
            else:
                end = at + encoding
            raw[name] = header[at:end]
            at = end
    except (IndexError, struct.error) as exc:
        raise tables.Malformed("the properties are cut off") from exc
    if at > len(header):
        raise tables.Malformed("the properties are cut off")
    return raw


class Content:
    """A message: immutable, and shared by all queues that it is in.

    :param header: a content header frame's payload. It is kept and sent as it came: no property loses its
        type on the way.
    :raises tables.Malformed: it is none.
    """

    __slots__ = ("_raw", "body", "exchange", "header", "headers", "routing_key")

    def __init__(self, exchange: str, routing_key: str, header: bytes, body: bytes) -> None:
        self.exchange = exchange
        self.routing_key = routing_key
        self.header = header
        self.body = body
        self._raw = _split(header)
        raw_headers = self._raw.get("headers")
        self.headers: Table = tables.decode(raw_headers)[0] if raw_headers is not None else {}

    def text(self, name: str) -> str | None:
        """A property that is a short string; None when it is not there."""
        raw = self._raw.get(name)
        return None if raw is None else tables.text_of(raw[1:])

    def number(self, name: str) -> int | None:
        """A property that is a number; None when it is not there."""
        raw = self._raw.get(name)
        return None if raw is None else int.from_bytes(raw, "big")

    @property
    def properties(self) -> BasicProperties:
        """All of them, as pika decodes them, to be looked at: a new object each time."""
        make: Any = BasicProperties  # pika's generated classes are not annotated
        properties = make()
        properties.decode(self.header, _CONTENT_HEADER.size - 2)  # from the flags on
        result: BasicProperties = properties
        return result

    def changed(self, exchange: str, routing_key: str, headers: Table, **texts: str | None) -> Content:
        """The same message with other headers, and other short strings (or none), sent elsewhere."""
        raw = {**self._raw, "headers": tables.encode(headers)}
        for name, text in texts.items():
            raw.pop(name, None)
            if text is not None:
                encoded = tables.raw_of(text)
                raw[name] = bytes([len(encoded)]) + encoded
        flags = sum(bit for name, bit, _encoding in _PROPERTIES if name in raw)
        pieces = [raw[name] for name, _bit, _encoding in _PROPERTIES if name in raw]
        header = _CONTENT_HEADER.pack(spec.Basic.INDEX, 0, len(self.body), flags) + b"".join(pieces)
        return Content(exchange, routing_key, header, self.body)

    def routing_keys(self) -> list[str]:
        """All keys that it is routed by: its own, and those in the headers CC and BCC.

        https://www.rabbitmq.com/docs/sender-selected
        """
        keys = [self.routing_key]
        for name in ("CC", "BCC"):
            if name in self.headers:
                further = self.headers[name].value
                keys += [tables.text_of(key.value) for key in further if key.kind == "longstr"]
        return keys

    @property
    def size(self) -> int:
        """Bytes of its body, which is what RabbitMQ counts."""
        return len(self.body)

    def frames(self, channel: int, method: Any, frame_max: int) -> bytes:
        """All its frames, with the method that brings it first."""
        pieces = [
            frame.Method(channel, method).marshal(),
            HEADER.pack(spec.FRAME_HEADER, channel, len(self.header)),
            self.header,
            _FRAME_END,
        ]
        body = self.body
        step = frame_max - OVERHEAD if frame_max else max(1, len(body))
        for start in range(0, len(body), step):
            part = body if len(body) <= step else body[start : start + step]
            pieces += (HEADER.pack(spec.FRAME_BODY, channel, len(part)), part, _FRAME_END)
        return b"".join(pieces)

    def with_headers(self, headers: Table, **texts: str | None) -> Content:
        """The same message with other headers, and other short strings."""
        return self.changed(self.exchange, self.routing_key, headers, **texts)

    @property
    def weight(self) -> int:
        """Bytes that it takes in memory, about."""
        return len(self.header) + len(self.body)


def check_publishable(content: Content, user: str) -> None:
    """Refuse what RabbitMQ refuses of a message.

    :param user: who publishes it.
    """
    claimed = content.text("user_id")
    if claimed is not None and claimed != user:
        raise precondition_failed(f"user_id property set to '{claimed}' but authenticated user was '{user}'")
    parse_expiration(content.text("expiration"))
    mode = content.number("delivery_mode")
    if mode not in (None, 1, 2):
        raise precondition_failed(f"invalid message: {{delivery_mode_unknown,{mode}}}")
    for name in ("CC", "BCC"):
        field = content.headers.get(name)
        if field is not None and field.kind != "array":
            why = f'{{unacceptable_type_in_header,"{name}",{field.kind}}}'
            raise precondition_failed(f"invalid message: {why}")
