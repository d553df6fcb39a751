"""Deliveries out of a stream of frames, many at a time: the quick way around pika's objects for each. Pure.

AMQP 0-9-1, section 4.2.3: a frame is a type, a channel, a size, a payload and an end octet; section 4.2.6:
a Basic.Deliver is followed by a header frame, and by as many body frames as that one's size takes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping

from pika import exceptions as pika_errors
from pika import spec

#: What arrived: delivery tag, redelivered, exchange, routing key, encoded properties, body.
Arrival = tuple[int, bool, str, str, bytes, bytes]

_HEAD = struct.Struct(">BHI")
_OVERHEAD = spec.FRAME_HEADER_SIZE + spec.FRAME_END_SIZE
_DELIVER = struct.pack(">I", spec.Basic.Deliver.INDEX)
_TAG = struct.Struct(">QBB")  # delivery tag, redelivered, and the length of the exchange's name
#: A content header: class, weight, body size; then property flags and properties.
_CONTENT = struct.Struct(">HHQ")


class _Incomplete:
    """A delivery whose body is still on its way."""

    __slots__ = ("about", "missing", "pieces", "properties")

    def __init__(self, about: tuple[int, bool, str, str]) -> None:
        self.about = about
        self.properties: bytes | None = None  # None: the header is still to come
        self.missing = 0
        self.pieces: list[bytes] = []


class DeliverFrames:
    """Takes bytes as they come; hands deliveries to who watches for them, the rest to ``others``, in order.

    :param watch: by channel number, who gets that channel's deliveries, in lists.
    :param others: gets whole frames, and what is no frame.
    :param frame_max: the size that was agreed on for frames.
    """

    def __init__(
        self,
        watch: Mapping[int, Callable[[list[Arrival]], object]],
        others: Callable[[bytes], object],
        frame_max: int,
    ) -> None:
        self._watch = watch
        self._others = others
        self._frame_max = frame_max
        self._held = b""
        self._incomplete: dict[int, _Incomplete] = {}

    def feed(self, data: bytes) -> int:
        """Take what came; how many bytes of it ``others`` will never see.

        :raises Exception: of many types: it makes no sense, and the connection is of no use any more.
        """
        if self._held:
            data, self._held = self._held + data, b""
        watch, incomplete = self._watch, self._incomplete
        at, size, taken = 0, len(data), 0
        others_from = 0  # what is from here to `at` is for the others
        arrived: list[Arrival] = []
        channel = -1  # whose these are
        while size - at >= _OVERHEAD:
            kind, number, length = _HEAD.unpack_from(data, at)
            begin = at + spec.FRAME_HEADER_SIZE
            end = begin + length
            if end >= size:
                if end - at >= self._frame_max:  # it would be waited for, and for what follows it, too
                    raise pika_errors.InvalidFrameError(
                        f"a frame of {length} bytes began; {self._frame_max} were agreed on"
                    )
                break
            if number in watch and data[end] == spec.FRAME_END:
                if kind == spec.FRAME_METHOD and data.startswith(_DELIVER, begin):
                    incomplete[number] = _Incomplete(_about(data, begin + len(_DELIVER), end))
                    ours = True
                else:
                    ours = number in incomplete and kind in (spec.FRAME_HEADER, spec.FRAME_BODY)
            else:
                ours = False
            if not ours:
                at = end + 1
                if data[end] != spec.FRAME_END:  # no frame at all; who handles it says so
                    at = size
                continue
            if others_from < at:
                self._hand_over(channel, arrived)
                arrived = []
                self._others(data[others_from:at])
            at = others_from = end + 1
            taken += length + _OVERHEAD
            if kind != spec.FRAME_METHOD:
                found = self._complete(incomplete[number], kind, data[begin:end])
                if found is not None:
                    del incomplete[number]
                    if number != channel:
                        self._hand_over(channel, arrived)
                        channel, arrived = number, []
                    arrived.append(found)
        self._hand_over(channel, arrived)
        if others_from < at:
            self._others(data[others_from:at])
        self._held = data[at:]
        return taken

    @staticmethod
    def _complete(one: _Incomplete, kind: int, payload: bytes) -> Arrival | None:
        """The delivery, when this was its last frame."""
        if (kind == spec.FRAME_HEADER) is not (one.properties is None):
            raise pika_errors.UnexpectedFrameError("a header and then bodies were expected")
        if kind == spec.FRAME_HEADER:
            _class, _weight, one.missing = _CONTENT.unpack_from(payload)
            one.properties = payload[_CONTENT.size :]
        else:
            one.pieces.append(payload)
            one.missing -= len(payload)
        if one.missing:
            if one.missing < 0:
                raise pika_errors.BodyTooLongError(-one.missing, 0)
            return None
        body = one.pieces[0] if len(one.pieces) == 1 else b"".join(one.pieces)
        return (*one.about, one.properties or b"", body)

    def _hand_over(self, channel: int, arrived: list[Arrival]) -> None:
        if arrived:
            self._watch[channel](arrived)


def _about(data: bytes, at: int, end: int) -> tuple[int, bool, str, str]:
    """Delivery tag, redelivered, exchange and routing key, of a Basic.Deliver's arguments."""
    at += 1 + data[at]  # the consumer tag: there is one consumer on a channel
    tag, redelivered, length = _TAG.unpack_from(data, at)
    at += _TAG.size
    exchange = data[at : at + length]
    at += length + 1
    routing_key = data[at : at + data[at - 1]]
    if at + len(routing_key) != end:
        raise pika_errors.InvalidFrameError("a Basic.Deliver of another length than its arguments")
    # AMQP does not say what a short string's bytes are. Whatever they are, they can be shown.
    return (
        tag,
        redelivered & 1 == 1,
        exchange.decode("utf-8", "surrogateescape"),
        routing_key.decode("utf-8", "surrogateescape"),
    )
