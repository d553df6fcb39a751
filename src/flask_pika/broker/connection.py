"""A client's connection: the handshake, frames in and out, heartbeats, and its channels."""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from pika import frame, spec

from . import tables
from .channel import Channel
from .closing import ChannelClosing, Closing, ConnectionClosing
from .contents import Content
from .tables import Field, Table, text_of

if TYPE_CHECKING:
    from .server import Server

#: AMQP 0-9-1, section 4.2.2.
PROTOCOL_HEADER = b"AMQP\x00\x00\x09\x01"
#: What clients may begin with: that, or what the first ones of AMQP 0-9-1 said.
PROTOCOL_HEADERS = (PROTOCOL_HEADER, b"AMQP\x01\x01\x09\x01")
_HEADER = struct.Struct(">BHI")
_OVERHEAD = spec.FRAME_HEADER_SIZE + spec.FRAME_END_SIZE
#: What the broker offers; a client may ask for less.
CHANNEL_MAX = 2047
FRAME_MAX = spec.FRAME_MAX_SIZE
#: Seconds for the handshake, and for the client's last word.
_HANDSHAKE = 10.0
_GOODBYE = 5.0
#: Bytes that wait to be read by the client, before it is sent no more messages, and listened to no more.
_MUCH = 2**20

CAPABILITIES = (
    "authentication_failure_close",
    "basic.nack",
    "connection.blocked",
    "consumer_cancel_notify",
    "consumer_priorities",
    "direct_reply_to",
    "exchange_exchange_bindings",
    "per_consumer_qos",
    "publisher_confirms",
)
_AFTER_HANDSHAKE = {"running", "closing"}
_LOGIN_REFUSED = 403
#: What RabbitMQ says before the connection is open. Over all else it hangs up without a word.
_TOLD_BEFORE = {(_LOGIN_REFUSED, "start-ok"), (530, "opening")}


class ClientConnection(asyncio.Protocol):
    """One client. Everything happens in the broker's thread.

    States: ``header``, ``start-ok``, ``tune-ok``, ``opening`` (each named for what is expected next), then
    ``running``, ``closing`` (Connection.Close was sent), ``closed``.
    """

    def __init__(self, server: Server, peer: str) -> None:
        self._server = server
        self.peer = peer
        self.name = peer
        self.user = ""
        self.vhost = server.vhosts["/"]
        self.replies = server.replies
        self.channels: dict[int, Channel] = {}
        self._transport: asyncio.Transport
        self._state = "header"
        self._closing_channels: set[int] = set()
        self._capabilities: Table = {}
        self._frame_max = FRAME_MAX
        self._channel_max = CHANNEL_MAX
        self._buffer = bytearray()
        self._out: list[bytes] = []
        self._flushing = False
        self._confirming: dict[Channel, None] = {}
        self._reading = True
        self._heard = self._said = 0.0
        self._timers: list[asyncio.TimerHandle] = []
        # Faults
        self.frozen = False
        self.blocked = False
        self._write_at = 0.0

    # What asyncio says

    def connection_made(self, transport: asyncio.BaseTransport) -> None:  # noqa: D102
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=_MUCH)
        self._server.connections[self] = None
        self._later(_HANDSHAKE, self._give_up_handshake)

    def connection_lost(self, _exc: Exception | None) -> None:  # noqa: D102
        if self._state != "closed":
            self._server.event(f"{self.name} went without a goodbye")
        self._end()
        self._server.connections.pop(self, None)

    def data_received(self, data: bytes) -> None:  # noqa: D102
        self._heard = time.monotonic()
        self._buffer += data
        self._flushing = True  # at the end of this, in one piece
        try:
            self._read()
        except Closing as closing:
            self._close(closing)
        except _NoSuchMethod as exc:
            self._server.event(f"{self.name} was hung up on: there is no method {exc}")
            self._abort()
        except Exception as exc:  # a bug: this client is told, and the others go on
            self._server.failed(exc)
            self._close(ConnectionClosing(541, ""))
        self._flush()

    def pause_writing(self) -> None:  # noqa: D102
        self._reading = False
        self._transport.pause_reading()

    def resume_writing(self) -> None:  # noqa: D102
        self._reading = True
        self.listen()
        for channel in list(self.channels.values()):
            channel.serve()

    # Frames in

    def _read(self) -> None:
        at, buffer = 0, self._buffer
        try:
            if self._state == "header":
                if len(buffer) < 8 and any(header.startswith(buffer) for header in PROTOCOL_HEADERS):
                    return
                self._protocol_header(bytes(buffer[:8]))
                at = 8
            while len(buffer) - at >= _HEADER.size and self._state != "closed":
                kind, number, size = _HEADER.unpack_from(buffer, at)
                if size > self._frame_max:  # RabbitMQ does not count what surrounds it
                    raise _bad_frame(kind, b"", f"{{frame_too_large,{size},{self._frame_max - _OVERHEAD}}}")
                end = at + _HEADER.size + size
                if len(buffer) <= end:
                    return
                payload = bytes(buffer[at + _HEADER.size : end])
                if buffer[end] != spec.FRAME_END:
                    raise _bad_frame(kind, payload, f"{{invalid_frame_end_marker,{buffer[end]}}}")
                at = end + 1
                self._frame(kind, number, payload)
        finally:
            del buffer[:at]
            if self._state == "closed":
                buffer.clear()

    def _protocol_header(self, header: bytes) -> None:
        if header not in PROTOCOL_HEADERS:
            self._server.event(f"{self.peer} speaks something else: {header!r}")
            self._transport.write(PROTOCOL_HEADER)
            self._state = "closed"
            self._transport.close()
            return
        self._state = "start-ok"
        capabilities = {name: Field("bool", True) for name in CAPABILITIES}
        properties = {"capabilities": Field("table", capabilities), **self._server.properties}
        # Not by pika, to which all texts are alike: clients expect what RabbitMQ sends.
        start = struct.pack(">IBB", spec.Connection.Start.INDEX, 0, 9) + tables.encode(properties)
        for text in (b"PLAIN AMQPLAIN", b"en_US"):
            start += struct.pack(">I", len(text)) + text
        self._write(_HEADER.pack(spec.FRAME_METHOD, 0, len(start)) + start + bytes([spec.FRAME_END]))

    def _frame(self, kind: int, number: int, payload: bytes) -> None:
        if kind == spec.FRAME_HEARTBEAT:
            if number:
                raise ConnectionClosing(505, f"type {kind}, all octets = {_shown(payload)}")
            return
        if kind not in (spec.FRAME_METHOD, spec.FRAME_HEADER, spec.FRAME_BODY):
            raise _bad_frame(kind, payload, "unknown_frame")
        method: Any = _decode(payload) if kind == spec.FRAME_METHOD else None
        if number == 0:
            if method is None:
                raise ConnectionClosing(505, "expected method frame, got non method frame instead")
            self._connection_method(method)
        elif self._state == "running":
            self._channel_frame(number, kind, method, payload)
        elif self._state != "closing":
            raise ConnectionClosing(504, "a channel before the connection was open")

    def _channel_frame(self, number: int, kind: int, method: Any, payload: bytes) -> None:
        if number in self._closing_channels:
            if method is not None and method.INDEX == spec.Channel.CloseOk.INDEX:
                self._closing_channels.discard(number)
            elif method is not None and method.INDEX == spec.Channel.Close.INDEX:
                self.send(number, _make(spec.Channel.CloseOk)())
            return
        try:
            channel = self.channels.get(number)
            if channel is None:
                self._open_channel(number, method)
                return
            if method is None:
                if self._server.is_alarmed:
                    self.block()
                (channel.content_header if kind == spec.FRAME_HEADER else channel.content_body)(payload)
            elif method.INDEX == spec.Channel.Open.INDEX:
                raise ConnectionClosing(504, "second 'channel.open' seen")
            elif method.INDEX == spec.Channel.Close.INDEX:
                self._end_channel(number)
                self.send(number, _make(spec.Channel.CloseOk)())
            elif method.INDEX != spec.Channel.CloseOk.INDEX:
                channel.method(method, payload)
        except ChannelClosing as closing:
            closing.method = _last_method(method)
            self.close_channel(number, closing)
        except ConnectionClosing as closing:
            closing.method = _last_method(method)
            raise

    def _open_channel(self, number: int, method: Any) -> None:
        if method is None:
            raise ConnectionClosing(505, "expected method frame, got non method frame instead")
        if method.INDEX != spec.Channel.Open.INDEX:
            raise ConnectionClosing(504, "expected 'channel.open'")
        if self._channel_max and number > self._channel_max:
            raise ConnectionClosing(
                530,
                f"number of channels opened ({len(self.channels)}) has reached the negotiated channel_max"
                f" ({self._channel_max})",
            )
        self.channels[number] = Channel(self, number)
        self.send(number, _make(spec.Channel.OpenOk)())

    # The connection's own methods

    def _connection_method(self, method: Any) -> None:
        index = method.INDEX
        if index == spec.Connection.Close.INDEX:
            self._server.event(f"{self.name} closed")
            self._end()
            self.send(0, _make(spec.Connection.CloseOk)())
            self._hang_up()
        elif self._state == "closing":
            if index == spec.Connection.CloseOk.INDEX:
                self._hang_up()
        else:
            expected, handle = _METHODS[self._state]
            try:
                if index != expected:
                    raise ConnectionClosing(504, f"unexpected method in connection state {self._state}")
                handle(self, method)
            except ConnectionClosing as closing:
                if closing.code != _LOGIN_REFUSED:
                    closing.method = _last_method(method)
                raise

    def _update_secret(self, method: Any) -> None:
        self._server.event(f"{self.name} has a new secret: {text_of(_bytes(method.reason))}")
        self.send(0, _make(spec.Connection.UpdateSecretOk)())

    def _start_ok(self, method: Any) -> None:
        properties = method.client_properties or {}
        for name, value in (properties.get("capabilities") or {}).items():
            self._capabilities[name] = Field("bool", bool(value))
        given = properties.get("connection_name")
        if given:
            self.name = f"{self.peer} ({given})"
        user, password = _credentials(str(method.mechanism), _bytes(method.response))
        if self._server.users.get(user) != password:
            self._server.event(f"{self.name} was refused: user name or password")
            closing = ConnectionClosing(
                403,
                f"Login was refused using authentication mechanism {method.mechanism}."
                " For details see the broker logfile.",
            )
            if self.knows("authentication_failure_close"):
                raise closing
            self._state = "closed"
            self._transport.close()
            return
        self.user = user
        self._state = "tune-ok"
        tune = _make(spec.Connection.Tune)(
            channel_max=self._channel_max, frame_max=self._frame_max, heartbeat=self._server.heartbeat
        )
        self.send(0, tune)

    def _tune_ok(self, method: Any) -> None:
        _check_negotiated("frame_max", method.frame_max, self._frame_max, spec.FRAME_MIN_SIZE)
        _check_negotiated("channel_max", method.channel_max, self._channel_max, 0)
        self._frame_max, self._channel_max = method.frame_max, method.channel_max
        if method.heartbeat:
            self._heartbeat(method.heartbeat)
        self._state = "opening"

    def _connection_open(self, method: Any) -> None:
        name = text_of(_bytes(method.virtual_host))
        if name not in self._server.vhosts:
            raise ConnectionClosing(530, f"vhost {name} not found")
        self.vhost = self._server.vhosts[name]
        self._state = "running"
        self.send(0, _make(spec.Connection.OpenOk)())
        self._server.event(f"{self.name} opened, as {self.user!r}")

    def knows(self, capability: str) -> bool:
        """Whether the client said that it has a capability."""
        return capability in self._capabilities and bool(self._capabilities[capability].value)

    # Time

    def _later(self, seconds: float, callback: Callable[[], object]) -> None:
        self._timers.append(self._server.loop.call_later(seconds, callback))

    def _give_up_handshake(self) -> None:
        if self._state not in _AFTER_HANDSHAKE and self._state != "closed":
            self._server.event(f"{self.name} did not get through the handshake in {_HANDSHAKE:g} s")
            self._abort()

    def _heartbeat(self, seconds: float) -> None:
        """Send something in each half of the interval, and hang up on a client that is silent for two."""
        self._heard = time.monotonic()

        def beat() -> None:
            now = time.monotonic()
            if self._state == "closed" or self._transport.is_closing():
                return
            if now - self._heard > 2 * seconds and not (self.frozen or self.blocked) and self._reading:
                self._server.event(f"{self.name} was silent for {2 * seconds:g} s")
                self._abort()
                return
            if now - self._said >= seconds / 2:
                self._write(frame.Heartbeat().marshal())
            self._timers[:] = [self._server.loop.call_later(seconds / 2, beat)]

        self._later(seconds / 2, beat)

    # Frames out

    def send(self, channel: int, method: Any, content: Content | None = None) -> None:
        """Send a method, with a message if there is one."""
        if content is None:
            self._write(frame.Method(channel, method).marshal())
        else:
            self._write(content.frames(channel, method, self._frame_max))

    def _write(self, data: bytes) -> None:
        self._out.append(data)
        if not self._flushing:
            self._flushing = True
            self._server.loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Write what one turn of the loop has brought, in one piece."""
        self._flushing = False
        self._send_confirms()
        if self.frozen or not self._out:
            return
        data = b"".join(self._out)
        self._out.clear()
        self._said = time.monotonic()
        if self._server.delay or self._write_at > self._said:
            self._write_at = max(self._write_at, self._said + self._server.delay)
            self._server.loop.call_later(self._write_at - self._said, self._transport.write, data)
        else:
            self._transport.write(data)

    def flush_and(self, then: Callable[[], object]) -> None:
        """Write what there is, then do something."""
        self._flush()
        if self._server.delay:
            self._later(self._server.delay, then)
        else:
            then()

    def is_reading(self) -> bool:
        """Whether the client takes what it is sent."""
        return self._reading

    def confirm_later(self, channel: Channel) -> None:
        """Confirms go out together, at the end of a turn."""
        self._confirming[channel] = None
        if not self._flushing:
            self._flushing = True
            self._server.loop.call_soon(self._flush)

    def _send_confirms(self) -> None:
        if not self._confirming or self._server.holds_confirms:
            return
        channels, self._confirming = list(self._confirming), {}
        for channel in channels:
            confirms, channel.confirms = channel.confirms, []
            if channel.number in self.channels:
                for tag, multiple, ack in self._server.arrange(confirms):
                    make = _make(spec.Basic.Ack if ack else spec.Basic.Nack)
                    self.send(channel.number, make(delivery_tag=tag, multiple=multiple))

    def takes_nacked(self) -> bool:
        """Whether the next message is one that the broker was told to nack."""
        return self._server.takes_nacked()

    # Faults

    def listen(self) -> None:
        """Read on, if nothing speaks against it."""
        stopped = self.frozen or self.blocked or not self._reading
        if self._transport.is_closing():
            return
        (self._transport.pause_reading if stopped else self._transport.resume_reading)()
        if not self.frozen:
            self._flush()

    def freeze(self, frozen: bool) -> None:
        """Answer nothing and close nothing, or go on."""
        self.frozen = frozen
        self.listen()

    def block(self) -> None:
        """It publishes, and the broker has no memory for that."""
        if self.blocked:
            return
        self.blocked = True
        if self.knows("connection.blocked"):
            self.send(0, _make(spec.Connection.Blocked)(reason="low on memory"))
        self._server.loop.call_soon(self.listen)

    def unblock(self) -> None:
        """The broker has memory again."""
        if self.blocked:
            self.blocked = False
            if self.knows("connection.blocked"):
                self.send(0, _make(spec.Connection.Unblocked)())
            self.listen()

    # The end

    def close_channel(self, number: int, closing: Closing) -> None:
        """Close a channel, and tell the client why."""
        self._server.event(f"{self.name}: channel {number} closed: {closing.code} {closing.text}")
        self._end_channel(number)
        self._closing_channels.add(number)
        self.send(
            number,
            _make(spec.Channel.Close)(
                reply_code=closing.code,
                reply_text=closing.text,
                class_id=closing.method[0],
                method_id=closing.method[1],
            ),
        )

    def _end_channel(self, number: int) -> None:
        self._send_confirms()
        self.channels.pop(number).end()

    def _close(self, closing: Closing) -> None:
        """Close the connection, and tell the client why."""
        told = self._state == "running" or (closing.code, self._state) in _TOLD_BEFORE
        if self._state in ("closing", "closed") or not told:
            self._server.event(f"{self.name} was hung up on: {closing.code} {closing.text}")
            self._abort()
            return
        self._server.event(f"{self.name} was closed: {closing.code} {closing.text}")
        self._end()
        self._state = "closing"
        class_id, method_id = closing.method
        self.send(
            0,
            _make(spec.Connection.Close)(
                reply_code=closing.code, reply_text=closing.text, class_id=class_id, method_id=method_id
            ),
        )
        self._later(_GOODBYE, self._abort)

    def close_by_force(self, code: int, detail: str) -> None:
        """The broker, or who runs it, wants it closed."""
        if self._state == "running":
            self._close(ConnectionClosing(code, detail))
        else:
            self._abort()

    def _end(self) -> None:
        channels, self.channels = list(self.channels.values()), {}
        for channel in channels:
            channel.end()
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        for vhost in self._server.vhosts.values():
            vhost.connection_ended(self)

    def _hang_up(self) -> None:
        self._state = "closed"
        self.flush_and(self._transport.close)

    def _abort(self) -> None:
        self._state = "closed"
        self._transport.abort()

    def drop(self) -> None:
        """Hang up, as a network does: without a word."""
        self._abort()


class _NoSuchMethod(Exception):
    """RabbitMQ hangs up on such a client, without a word."""


def _decode(payload: bytes) -> Any:
    index = int.from_bytes(payload[:4], "big")
    kind: Any = spec.methods.get(index)
    if kind is None or len(payload) < 4:
        raise _NoSuchMethod(f"{index >> 16}.{index & 0xFFFF}")
    # Of all methods, this one's constructor has required arguments (pika 1.4.4).
    method: Any = kind(b"", b"") if index == spec.Connection.UpdateSecret.INDEX else kind()
    try:
        return method.decode(payload, 4)
    except Exception as exc:  # of many types
        raise ConnectionClosing(501, f"cannot decode {_shown(payload[4:])}") from exc


def _bad_frame(kind: int, payload: bytes, problem: str) -> ConnectionClosing:
    which = "all" if len(payload) <= 16 else "first 16"
    return ConnectionClosing(501, f"type {kind}, {which} octets = {_shown(payload[:16])}: {problem}")


def _shown(data: bytes) -> str:
    """Bytes as Erlang prints them."""
    if data and all(32 <= octet < 127 for octet in data):
        return f'<<"{data.decode()}">>'
    return f"<<{','.join(map(str, data))}>>"


def _credentials(mechanism: str, response: bytes) -> tuple[str, str]:
    """User name and password, from SASL's PLAIN, or RabbitMQ's AMQPLAIN."""
    if mechanism == "PLAIN":
        try:
            _identity, user, password = response.split(b"\0")
        except ValueError as exc:
            raise ConnectionClosing(502, "PLAIN auth info is malformed") from exc
        return text_of(user), text_of(password)
    if mechanism == "AMQPLAIN":
        try:
            table = tables.decode(struct.pack(">I", len(response)) + response)[0]
            return text_of(table["LOGIN"].value), text_of(table["PASSWORD"].value)
        except (tables.Malformed, KeyError, AttributeError) as exc:
            raise ConnectionClosing(502, "AMQPLAIN auth info is malformed") from exc
    raise ConnectionClosing(504, f"unknown authentication mechanism '{mechanism}'")


def _check_negotiated(what: str, value: int, ours: int, lowest: int) -> None:
    if ours and (value > ours or value == 0):
        problem = f"negotiated {what} = {value} is higher than the maximum allowed value ({ours})"
        raise ConnectionClosing(530, problem)
    if value < lowest:
        problem = f"negotiated {what} = {value} is lower than the minimum allowed value ({lowest})"
        raise ConnectionClosing(530, problem)


def _last_method(method: Any) -> tuple[int, int]:
    """Class and method, for a Close: which one it was about."""
    index = spec.Basic.Publish.INDEX if method is None else method.INDEX
    return index >> 16, index & 0xFFFF


def _bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


def _make(method: Any) -> Any:
    """Pika's generated classes are not annotated."""
    return method


#: What is expected on channel 0 in each state, but for the connection's end.
_METHODS: dict[str, tuple[int, Callable[[ClientConnection, Any], None]]] = {
    "start-ok": (spec.Connection.StartOk.INDEX, ClientConnection._start_ok),
    "tune-ok": (spec.Connection.TuneOk.INDEX, ClientConnection._tune_ok),
    "opening": (spec.Connection.Open.INDEX, ClientConnection._connection_open),
    "running": (spec.Connection.UpdateSecret.INDEX, ClientConnection._update_secret),
}
