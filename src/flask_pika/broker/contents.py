"""A message as a broker has it: where it was sent, its header as it came, and its body."""

from __future__ import annotations

import struct
from typing import Any

from pika import frame, spec
from pika.spec import BasicProperties

from . import tables
from .arguments import parse_expiration
from .closing import precondition_failed
from .tables import Table

_OVERHEAD = spec.FRAME_HEADER_SIZE + spec.FRAME_END_SIZE
_END = bytes([spec.FRAME_END])
_FRAME = struct.Struct(">BHI")
# A content header: class, weight, body size, flags (AMQP 0-9-1, section 4.2.6.1).
_HEADER = struct.Struct(">HHQH")


# A message's properties in their order, by their flags' bits, and as what each is encoded: a short string, a
# table, or so many octets (AMQP 0-9-1, section 1.8.1).
_SHORT, _TABLE = -1, -2
_PROPERTIES = [
    (1 << 15, _SHORT),  # content type
    (1 << 14, _SHORT),  # content encoding
    (1 << 13, _TABLE),  # headers
    (1 << 12, 1),  # delivery mode
    (1 << 11, 1),  # priority
    (1 << 10, _SHORT),  # correlation id
    (1 << 9, _SHORT),  # reply to
    (1 << 8, _SHORT),  # expiration
    (1 << 7, _SHORT),  # message id
    (1 << 6, 8),  # timestamp
    (1 << 5, _SHORT),  # type
    (1 << 4, _SHORT),  # user id
    (1 << 3, _SHORT),  # app id
    (1 << 2, _SHORT),  # cluster id
]


def _check_properties(header: bytes) -> int:
    """Where a content header has its table of headers; 0 when it has none.

    Pika decodes what is cut off as if it were whole.

    :raises tables.Malformed: the properties go beyond its end.
    """
    found = 0
    try:
        flags, at = _HEADER.unpack_from(header)[3], _HEADER.size
        for bit, encoding in _PROPERTIES:
            if not flags & bit:
                continue
            if encoding == _SHORT:
                at += 1 + header[at]
            elif encoding == _TABLE:
                found = at
                at += 4 + int.from_bytes(header[at : at + 4], "big")
            else:
                at += encoding
    except (IndexError, struct.error) as exc:
        raise tables.Malformed("the properties are cut off") from exc
    if at > len(header):
        raise tables.Malformed("the properties are cut off")
    return found


class Content:
    """A message: immutable, and shared by all queues that it is in.

    :param header: a content header frame's payload. It is kept and sent as it came: no property loses its
        type on the way.
    :raises tables.Malformed: it is none.
    """

    __slots__ = ("body", "exchange", "header", "headers", "properties", "routing_key")

    def __init__(self, exchange: str, routing_key: str, header: bytes, body: bytes) -> None:
        self.exchange = exchange
        self.routing_key = routing_key
        self.header = header
        self.body = body
        make: Any = BasicProperties  # pika's generated classes are not annotated
        self.properties: BasicProperties = make()
        headers_at = _check_properties(header)
        try:
            self.properties.decode(header, _HEADER.size - 2)
        except Exception as exc:  # of many types
            raise tables.Malformed(f"the properties cannot be decoded: {exc!r}") from exc
        self.headers: Table = tables.decode(header, headers_at)[0] if headers_at else {}

    def changed(
        self,
        exchange: str,
        routing_key: str,
        headers: Table,
        **properties: Any,
    ) -> Content:
        """The same message with other headers and properties, sent elsewhere."""
        make: Any = BasicProperties
        changed = make()
        changed.decode(self.header, _HEADER.size - 2)
        changed.headers = {}  # whose place is where the flags say that there are some
        for name, value in properties.items():
            setattr(changed, name, value)
        blank = _HEADER.pack(changed.INDEX, 0, len(self.body), 0)[:-2] + b"".join(changed.encode())
        at = _check_properties(blank)
        header = blank[:at] + tables.encode(headers) + blank[at + 4 :]
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
            _FRAME.pack(spec.FRAME_HEADER, channel, len(self.header)),
            self.header,
            _END,
        ]
        body = self.body
        step = frame_max - _OVERHEAD if frame_max else max(1, len(body))
        for start in range(0, len(body), step):
            part = body if len(body) <= step else body[start : start + step]
            pieces += (_FRAME.pack(spec.FRAME_BODY, channel, len(part)), part, _END)
        return b"".join(pieces)

    def with_headers(self, headers: Table, **properties: Any) -> Content:
        """The same message with other headers and properties."""
        return self.changed(self.exchange, self.routing_key, headers, **properties)


def check_publishable(content: Content, user: str) -> None:
    """Refuse what RabbitMQ refuses of a message.

    :param user: who publishes it.
    """
    claimed = content.properties.user_id
    if claimed is not None and claimed != user:
        raise precondition_failed(f"user_id property set to '{claimed}' but authenticated user was '{user}'")
    parse_expiration(content.properties.expiration)
    for name in ("CC", "BCC"):
        field = content.headers.get(name)
        if field is not None and field.kind != "array":
            why = f'{{unacceptable_type_in_header,"{name}",{field.kind}}}'
            raise precondition_failed(f"invalid message: {why}")
