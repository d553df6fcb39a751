"""The limit: frames written to a bare socket and read from it, with as little work as they allow."""

from __future__ import annotations

import socket
import struct
import time

from pika import frame, spec

_FRAME_MAX = 131072
#: Of a body, in one frame.
_PIECE = _FRAME_MAX - spec.FRAME_HEADER_SIZE - spec.FRAME_END_SIZE
_ACK = struct.pack(">I", spec.Basic.Ack.INDEX)
_DELIVER = struct.pack(">I", spec.Basic.Deliver.INDEX)


class BareSocket:
    """A connection to RabbitMQ that publishes the same message and counts its confirms, or counts deliveries.

    One thing at a time: ``publish()`` or ``write()`` as often as you like, or ``consume()`` once.
    """

    def __init__(self, port: int, confirm: bool = True) -> None:
        self._sock = socket.create_connection(("127.0.0.1", port))
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = b""
        self._tag = 0
        self._settled = 0  # all up to this tag
        self._early: set[int] = set()  # and these, that came out of order
        self._sock.sendall(frame.ProtocolHeader().marshal())
        self._wait_for(spec.Connection.Start)
        self._send(0, spec.Connection.StartOk({}, "PLAIN", b"\0guest\0guest", "en_US"))
        self._wait_for(spec.Connection.Tune)
        self._send(0, spec.Connection.TuneOk(10, _FRAME_MAX, 0))
        self._send(0, spec.Connection.Open("/"))
        self._wait_for(spec.Connection.OpenOk)
        self._send(1, spec.Channel.Open())
        self._wait_for(spec.Channel.OpenOk)
        if confirm:
            self._send(1, spec.Confirm.Select())
            self._wait_for(spec.Confirm.SelectOk)

    @staticmethod
    def encoded(exchange: str, routing_key: str, body: bytes) -> bytes:
        """The frames of a message, with the properties that publish() gives to it; mandatory if it can be."""
        properties = spec.BasicProperties(
            content_type="application/octet-stream", delivery_mode=2, message_id="0" * 32, timestamp=1
        )
        return b"".join(
            (
                frame.Method(
                    1,
                    spec.Basic.Publish(exchange=exchange, routing_key=routing_key, mandatory=not exchange),
                ).marshal(),
                frame.Header(1, len(body), properties).marshal(),
                *(frame.Body(1, body[at : at + _PIECE]).marshal() for at in range(0, len(body), _PIECE)),
            )
        )

    def publish(self, message: bytes, times: int = 1, window: int = 1) -> None:
        """Publish what was encoded, ``window`` in flight, and wait for the last confirm."""
        last = self._tag + times
        while (confirmed := self._settled + len(self._early)) < last:
            room = min(last, confirmed + window) - self._tag
            # In large pieces: one by one, as confirms come, both sides do nothing but take turns.
            if room >= min(window // 4 + 1, last - self._tag) > 0:
                self._sock.sendall(message * room)
                self._tag += room
            self._read_confirms()

    def write(self, message: bytes) -> None:
        """Publish what was encoded, on a connection without confirms."""
        self._sock.sendall(message)

    def flush(self, queue: str) -> None:
        """Return when the broker has read all that was written."""
        self._send(1, spec.Queue.Declare(queue=queue, passive=True))
        self._wait_for(spec.Queue.DeclareOk)

    def _read_confirms(self) -> None:
        data = self._buffer + self._sock.recv(65536)
        at, end = 0, len(data) - 20
        while at <= end:  # a Basic.Ack is 7 + 4 + 8 + 1 + 1 bytes
            if data[at + 7 : at + 11] != _ACK:
                raise RuntimeError(f"expected a Basic.Ack, got {data[at:]!r}")
            tag = int.from_bytes(data[at + 11 : at + 19], "big")
            if data[at + 19]:  # multiple: all up to this one
                self._settled = tag
                self._early = {early for early in self._early if early > tag}
            elif tag == self._settled + 1:
                self._settled = tag
                while self._settled + 1 in self._early:
                    self._settled += 1
                    self._early.remove(self._settled)
            else:
                self._early.add(tag)
            at += 21
        self._buffer = data[at:]

    def consume(self, queue: str, count: int, prefetch: int) -> float:
        """Count that many deliveries, and acknowledge them in groups: messages per second after the first."""
        self._send(1, spec.Basic.Qos(prefetch_count=prefetch))
        self._wait_for(spec.Basic.QosOk)
        self._send(1, spec.Basic.Consume(queue=queue, consumer_tag="bare"))
        self._wait_for(spec.Basic.ConsumeOk)
        taken = settled = first = 0
        began = ended = 0.0
        while taken < count:
            taken += self._count_deliveries()
            ended = time.perf_counter()
            if taken and not first:
                began, first = ended, taken
            if taken - settled >= min(prefetch // 4, count - settled):
                self._send(1, spec.Basic.Ack(taken, multiple=True))  # the tags of a channel go up by one
                settled = taken
            if taken < count:
                self._buffer += self._sock.recv(65536)
        self._send(1, spec.Channel.Close(200, "", 0, 0))
        self._wait_for(spec.Channel.CloseOk)  # it has read the acknowledgements
        return (taken - first) / max(ended - began, 1e-6)

    def _count_deliveries(self) -> int:
        data, at, found = self._buffer, 0, 0
        while len(data) - at > 7:  # type, channel, size; payload; end
            size = int.from_bytes(data[at + 3 : at + 7], "big")
            if len(data) - at < size + 8:
                break
            found += data[at] == spec.FRAME_METHOD and data[at + 7 : at + 11] == _DELIVER
            at += size + 8
        self._buffer = data[at:]
        return found

    def _send(self, channel: int, method: object) -> None:
        self._sock.sendall(frame.Method(channel, method).marshal())  # type: ignore[type-var]

    def _wait_for(self, kind: type) -> None:
        while True:
            used, found = frame.decode_frame(self._buffer)
            self._buffer = self._buffer[used:]
            if found is None:
                self._buffer += self._sock.recv(65536)
            elif isinstance(getattr(found, "method", None), kind):
                return

    def close(self) -> None:
        self._sock.close()
