"""Assembly: a Basic.Publish, its header and its body's frames, put together in their order. Pure."""

from __future__ import annotations

from typing import Any, NamedTuple

from pika import spec

from .closing import ConnectionClosing, precondition_failed

#: RabbitMQ's max_message_size.
LARGEST_MESSAGE = 134_217_728


class Assembled(NamedTuple):
    """A message that came whole."""

    publish: Any  #: the Basic.Publish
    header: bytes
    body: bytes


class Assembly:
    """What came of a channel's next message.

    Each method gives the message when it is whole, and raises :class:`ConnectionClosing` at what has no place
    there (AMQP 0-9-1, section 4.2.6).
    """

    def __init__(self) -> None:
        self._publish: Any = None
        self._header: bytes | None = None
        self._body: list[bytes] = []
        self._missing = 0

    @property
    def memory(self) -> int:
        """Bytes that have come so far."""
        return sum(map(len, self._body))

    def begin(self, publish: Any) -> None:
        """A Basic.Publish came."""
        self._publish = publish

    def expect_method(self) -> None:
        """Another method came."""
        if self._header is not None:
            raise _unexpected("content body")
        if self._publish is not None:
            raise _unexpected("content header", " for class 60")

    def header(self, payload: bytes) -> Assembled | None:
        """A content header came."""
        if self._header is not None:
            raise _unexpected("content body")
        if self._publish is None:
            raise _unexpected("method", frame=" frame")
        of_class = int.from_bytes(payload[:2], "big")
        if of_class != spec.Basic.INDEX:
            expected = "expected content header for class 60"
            raise ConnectionClosing(505, f"{expected}, got one for class {of_class} instead")
        size = int.from_bytes(payload[4:12], "big")
        if size > LARGEST_MESSAGE:
            # RabbitMQ reads it all before it says so.
            self._publish = None
            raise precondition_failed(
                f"message size {size} is larger than configured max size {LARGEST_MESSAGE}"
            )
        self._header, self._body, self._missing = payload, [], size
        return self._whole()

    def body(self, payload: bytes) -> Assembled | None:
        """A piece of a body came."""
        if self._header is None:
            self.expect_method()
            raise _unexpected("method", frame=" frame")
        self._missing -= len(payload)
        # As RabbitMQ does: one that is longer than it should be is never whole.
        if self._missing >= 0:
            self._body.append(payload)
        return self._whole()

    def _whole(self) -> Assembled | None:
        if self._missing or self._header is None:
            return None
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        whole = Assembled(self._publish, self._header, body)
        self._publish, self._header, self._body = None, None, []
        return whole


def _unexpected(expected: str, more: str = "", frame: str = "") -> ConnectionClosing:
    return ConnectionClosing(505, f"expected {expected}{more}{frame}, got non {expected} frame instead")
