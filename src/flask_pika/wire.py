"""Messages as bytes: pika's encoding, done once for all messages that differ in id, time and body alone."""

from __future__ import annotations

import copy
import itertools
import struct
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from pika import frame, spec
from pika.spec import BasicProperties

from .errors import InvalidMessage
from .message import check_address, checked_properties

#: Bytes of a frame that are not payload: type, channel, size, end (AMQP 0-9-1, section 4.2.3).
_OVERHEAD = spec.FRAME_HEADER_SIZE + spec.FRAME_END_SIZE
_END = bytes([spec.FRAME_END])
_LONG = struct.Struct(">I").pack
_LONG_LONG = struct.Struct(">Q").pack

#: How long the ids are that this module makes.
ID_LENGTH = 32
# They stand where an id and a time will be, in an encoding that is taken apart at them.
_ID = "\x01flask-pika: a message id, 32 long"[:ID_LENGTH]
_TIME = 0x7EED_F1A5_C0DE_0001
_STAMP = bytes([ID_LENGTH]) + _ID.encode() + _LONG_LONG(_TIME)


class _Cut(NamedTuple):
    """An encoded message, cut where messages differ: ``head | size of body | middle | id, time | tail``."""

    head: bytes
    middle: bytes
    tail: bytes


class Envelope:
    """Where a message goes and with which properties: all but its body, id and time.

    :param properties: as checked; without a message id or timestamp of its own it is *stamped*: each message
        gets an id of this module's, and its time.
    """

    __slots__ = ("_cuts", "exchange", "mandatory", "properties", "routing_key", "size", "stamped")

    def __init__(self, exchange: str, routing_key: str, mandatory: bool, properties: BasicProperties) -> None:
        self.exchange = exchange
        self.routing_key = routing_key
        self.mandatory = mandatory
        self.properties = properties
        self.stamped = properties.message_id is None and properties.timestamp is None
        self._cuts: dict[int, _Cut | None] = {}  # by channel number; None where it cannot be cut
        #: Bytes that it adds to a body's, about: 60 for id, time, and what else is in the frames.
        self.size = len(frame.Header(1, 0, properties).marshal()) + len(exchange) + len(routing_key) + 60

    def complete(self, message_id: str, timestamp: int) -> BasicProperties:
        """The properties of one message."""
        whole = copy.copy(self.properties)
        if whole.message_id is None:
            whole.message_id = message_id
        if whole.timestamp is None:
            whole.timestamp = timestamp
        return whole

    def check(self, frame_max: int) -> None:
        """Refuse properties that fit into no frame: a broker ends the connection over one that is too long.

        :raises InvalidMessage: says so.
        """
        if self.size > frame_max:
            raise InvalidMessage(
                f"the properties, with their headers, have about {self.size} bytes; a frame of this"
                f" connection carries {frame_max}"
            )

    def write(
        self, pieces: list[bytes], channel: int, frame_max: int, message_id: str, timestamp: int, body: bytes
    ) -> None:
        """Append a message's frames to ``pieces``: out of what is encoded already, where that can be cut."""
        size = len(body)
        try:
            cut = self._cuts[channel]
        except KeyError:
            cut = self._cuts[channel] = self._cut(channel) if self.stamped else None
        if cut is not None and len(message_id) == ID_LENGTH and 0 < size <= frame_max - _OVERHEAD:
            pieces += (
                cut.head,
                _LONG_LONG(size),
                cut.middle,
                message_id.encode("ascii"),
                _LONG_LONG(timestamp),
                cut.tail,
                _LONG(size),
                body,
                _END,
            )
            return
        pieces.append(self._method(channel))
        pieces.append(frame.Header(channel, size, self.complete(message_id, timestamp)).marshal())
        step = frame_max - _OVERHEAD
        for start in range(0, size, step):
            part = body[start : start + step]
            pieces += (struct.pack(">BHI", spec.FRAME_BODY, channel, len(part)), part, _END)

    def _method(self, channel: int) -> bytes:
        make: Any = spec.Basic.Publish  # pika's generated classes are not annotated
        publish = make(exchange=self.exchange, routing_key=self.routing_key, mandatory=self.mandatory)
        return frame.Method(channel, publish).marshal()

    def _cut(self, channel: int) -> _Cut | None:
        header = frame.Header(channel, 0, self.complete(_ID, _TIME)).marshal()
        at = spec.FRAME_HEADER_SIZE + 4  # class and weight come before the size
        rest = header[at + 8 :]
        if rest.count(_STAMP) != 1:
            return None  # somebody's header looks the same
        middle, tail = rest.split(_STAMP)
        return _Cut(
            head=self._method(channel) + header[:at],
            middle=middle + _STAMP[:1],
            tail=tail + struct.pack(">BH", spec.FRAME_BODY, channel),
        )


# What differs from message to message, or can't be compared: not worth remembering.
_EACH_ITS_OWN = {"correlation_id", "headers", "message_id", "timestamp"}


class Envelopes:
    """The envelopes that were used lately. For any number of threads: a dict's operations are atomic."""

    _MOST = 1000

    def __init__(self, frame_max: int) -> None:
        self._frame_max = frame_max
        self._known: dict[object, Envelope] = {}

    def shorten(self, frame_max: int) -> bool:
        """A broker's frames are this long at the most; whether all envelopes so far fit into them."""
        if frame_max >= self._frame_max:
            return True
        self._frame_max = frame_max
        self._known.clear()
        return False

    def find(
        self,
        exchange: str,
        routing_key: str,
        mandatory: bool,
        content_type: str,
        named: Mapping[str, Any],
        properties: BasicProperties | None,
    ) -> Envelope:
        """The envelope for a message; a new one where what is in it can't be compared, such as headers.

        :raises InvalidMessage: AMQP cannot carry it.
        """
        key: tuple[object, ...] | None = None
        if properties is None and _EACH_ITS_OWN.isdisjoint(named):
            # With the types: 1 is equal to True and to 1.0, which are wrong where it is right.
            key = (exchange, routing_key, mandatory, type(mandatory), content_type)
            if named:
                key += (*named, *(values := named.values()), *map(type, values))
            try:
                return self._known[key]
            except KeyError:
                pass
            except TypeError:  # what can't be hashed is wrong: the checks below will say how
                key = None
        check_address(exchange, routing_key, mandatory)
        envelope = Envelope(
            exchange, routing_key, mandatory, checked_properties(named, properties, content_type)
        )
        envelope.check(self._frame_max)
        if key is not None:
            if len(self._known) >= self._MOST:
                self._known.clear()
            self._known[key] = envelope
        return envelope


def now() -> int:
    """A message's time: seconds since 1970, which is all that AMQP has."""
    return int(time.time())


def make_ids(random: Callable[[int], bytes]) -> Callable[[], str]:
    """A function that makes message ids: 80 random bits of this process, and a count.

    A tenth of what uuid4() costs. One per process: a forked child must not share it.
    """
    prefix = random(10).hex()
    numbers = itertools.count()
    return lambda: f"{prefix}{next(numbers):012x}"
