"""A client's connection: the handshake, frames in and out, heartbeats, and its channels."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from pika import frame, spec

from . import handshake
from .channel import Channel
from .closing import ChannelClosing, Closing, ConnectionClosing
from .contents import Content
from .frames import HEADER, NoSuchMethod, bad_frame, decode_method, make, name_of, printable, shown, split
from .handshake import CHANNEL_MAX, FRAME_MAX, PROTOCOL_HEADER, PROTOCOL_HEADERS
from .outgoing import Outgoing

if TYPE_CHECKING:
    from .server import Server

#: Seconds for the handshake, and for the client's last word.
_HANDSHAKE = 10.0
_GOODBYE = 5.0
#: Bytes that wait for a client to read them, from which on it is sent no more messages; and from which on it
#: is not listened to either: answers alone have come to so much.
_MUCH = 2**20
_TOO_MUCH = 64 * 2**20

_AFTER_HANDSHAKE = {"running", "closing", "closed"}
_LOGIN_REFUSED = 403
_FRAME_ERROR = 501
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
        self.vhost = next(iter(server.vhosts.values()))  # until it says which one
        self.replies = server.replies
        self.channels: dict[int, Channel] = {}
        self._transport: asyncio.Transport
        self._state = "header"
        self._closing_channels: set[int] = set()
        self._capabilities: set[str] = set()
        self._frame_max = FRAME_MAX
        self._channel_max = CHANNEL_MAX
        self._buffer = bytearray()
        self._outgoing = Outgoing(server, self._send_confirms, self._after_writing)
        self._outgoing.frozen = server.frozen
        self._confirming: dict[Channel, None] = {}
        self._full = False  # consumers wait until the client has read: _MUCH
        self._deaf = False  # so does all that the client says: _TOO_MUCH
        self._heard = 0.0  # when the client said something last, by the monotonic clock
        self._timers: list[asyncio.TimerHandle] = []
        self._beat: asyncio.TimerHandle | None = None  # the next heartbeat
        self._blocked = False  # it published while there was no memory

    # What asyncio says

    def connection_made(self, transport: asyncio.BaseTransport) -> None:  # noqa: D102
        self._transport = self._outgoing.transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=_MUCH)
        self._server.connections[self] = None
        self._later(_HANDSHAKE, self._give_up_handshake)
        self.listen()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002, D102
        if self._state != "closed":
            self._server.event(f"{self.name} went without a goodbye")
        self._end()
        self._server.connections.pop(self, None)

    def data_received(self, data: bytes) -> None:  # noqa: D102
        self._heard = time.monotonic()
        self._buffer += data
        self._outgoing.hold()  # to the end of this, and then in one piece
        try:
            self._read()
        except Closing as closing:
            if closing.code == _FRAME_ERROR:
                self._buffer.clear()  # nobody knows where the next frame begins
            self._close(closing)
        except NoSuchMethod as exc:
            self._server.event(f"{self.name} was hung up on: there is no method {exc}")
            self.drop()
        except Exception as exc:  # a bug: this client is told, and the others go on
            self._server.failed(exc)
            self._close(ConnectionClosing(541, ""))
        self._outgoing.flush()

    def resume_writing(self) -> None:  # noqa: D102
        self._after_writing()

    def _after_writing(self) -> None:
        """See what the client may have, and say, now."""
        size = self._outgoing.size
        if self._deaf != (size > (_MUCH if self._deaf else _TOO_MUCH)):
            self._deaf = not self._deaf
            self.listen()
        if self._full and size < _MUCH:
            self._full = False
            for channel in list(self.channels.values()):
                channel.serve()

    # Frames in

    def _read(self) -> None:
        buffer = self._buffer
        if self._state == "header":
            if len(buffer) < 8 and any(header.startswith(buffer) for header in PROTOCOL_HEADERS):
                return
            self._protocol_header(bytes(buffer[:8]))
            del buffer[:8]
        for kind, number, payload in split(buffer, self._frame_max):
            if self._state != "closed":
                self._frame(kind, number, payload)

    def _protocol_header(self, header: bytes) -> None:
        if header not in PROTOCOL_HEADERS:
            self._server.event(f"{self.peer} speaks something else: {header!r}")
            self._transport.write(PROTOCOL_HEADER)
            self._state = "closed"
            self._transport.close()
            return
        self._state = "start-ok"
        payload = handshake.start(self._server.properties)
        self._outgoing.add(
            HEADER.pack(spec.FRAME_METHOD, 0, len(payload)) + payload + bytes([spec.FRAME_END])
        )

    def _frame(self, kind: int, number: int, payload: bytes) -> None:
        if kind == spec.FRAME_HEARTBEAT:
            if number:
                raise ConnectionClosing(505, f"type {kind}, all octets = {shown(payload)}")
            return
        if kind not in (spec.FRAME_METHOD, spec.FRAME_HEADER, spec.FRAME_BODY):
            raise bad_frame(kind, payload, "unknown_frame")
        method: Any = decode_method(payload) if kind == spec.FRAME_METHOD else None
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
                self.send(number, make(spec.Channel.CloseOk)())
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
                self.send(number, make(spec.Channel.CloseOk)())
            elif method.INDEX != spec.Channel.CloseOk.INDEX:
                channel.method(method)
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
        self.send(number, make(spec.Channel.OpenOk)())

    # The connection's own methods

    def _connection_method(self, method: Any) -> None:
        index = method.INDEX
        if index == spec.Connection.Close.INDEX:
            self._server.event(f"{self.name} closed")
            self._end()
            self.send(0, make(spec.Connection.CloseOk)())
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
        self._server.event(f"{self.name} has a new secret: {name_of(method.reason)}")
        self.send(0, make(spec.Connection.UpdateSecretOk)())

    def _start_ok(self, method: Any) -> None:
        properties = method.client_properties or {}
        capabilities = properties.get("capabilities")
        if isinstance(capabilities, dict):
            self._capabilities = {name for name, has in capabilities.items() if has}
        given = properties.get("connection_name")
        if given:
            self.name = f"{self.peer} ({printable(given)})"
        user, password = handshake.credentials(str(method.mechanism), _bytes(method.response))
        if self._server.users.get(user) != password:
            self._server.event(f"{self.name} was refused: user name or password")
            closing = ConnectionClosing(
                _LOGIN_REFUSED,
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
        tune = make(spec.Connection.Tune)(
            channel_max=self._channel_max, frame_max=self._frame_max, heartbeat=self._server.heartbeat
        )
        self.send(0, tune)

    def _tune_ok(self, method: Any) -> None:
        handshake.check_negotiated("frame_max", method.frame_max, self._frame_max, spec.FRAME_MIN_SIZE)
        handshake.check_negotiated("channel_max", method.channel_max, self._channel_max, 0)
        self._frame_max, self._channel_max = method.frame_max, method.channel_max
        if method.heartbeat:
            self._heartbeat(method.heartbeat)
        self._state = "opening"

    def _connection_open(self, method: Any) -> None:
        name = name_of(method.virtual_host)
        if name not in self._server.vhosts:
            raise ConnectionClosing(530, f"vhost {name} not found")
        self.vhost = self._server.vhosts[name]
        self._state = "running"
        self.send(0, make(spec.Connection.OpenOk)())
        self._server.event(f"{self.name} opened, as {self.user!r}")

    def knows(self, capability: str) -> bool:
        """Whether the client said that it has a capability."""
        return capability in self._capabilities

    # Time

    def _later(self, seconds: float, callback: Callable[[], object]) -> None:
        self._timers.append(self._server.loop.call_later(seconds, callback))

    def _give_up_handshake(self) -> None:
        if self._outgoing.frozen:
            self._later(_HANDSHAKE, self._give_up_handshake)
        elif self._state not in _AFTER_HANDSHAKE:
            self._server.event(f"{self.name} did not get through the handshake in {_HANDSHAKE:g} s")
            self.drop()

    def _heartbeat(self, seconds: float) -> None:
        """Send something in each half of the interval, and hang up on a client that is silent for two."""
        self._heard = time.monotonic()

        def beat() -> None:
            now = time.monotonic()
            if self._state == "closed" or self._transport.is_closing():
                return
            if now - self._heard > 2 * seconds and self._listens:
                self._server.event(f"{self.name} was silent for {2 * seconds:g} s")
                self.drop()
                return
            if now - self._outgoing.said >= seconds / 2:
                self._outgoing.add(frame.Heartbeat().marshal())
            self._beat = self._server.loop.call_later(seconds / 2, beat)

        self._beat = self._server.loop.call_later(seconds / 2, beat)

    # Frames out

    def send(self, channel: int, method: Any, content: Content | None = None) -> None:
        """Send a method, with a message if there is one."""
        if content is None:
            self._outgoing.add(frame.Method(channel, method).marshal())
        else:
            self._outgoing.add(content.frames(channel, method, self._frame_max))

    def is_reading(self) -> bool:
        """Whether the client takes what it is sent."""
        self._full = self._full or self._outgoing.size >= _MUCH
        return not self._full

    def confirm_later(self, channel: Channel) -> None:
        """Confirms go out together, at the end of a turn."""
        self._confirming[channel] = None
        self._outgoing.soon()

    def _send_confirms(self) -> None:
        if not self._confirming or self._server.holds_confirms:
            return
        channels, self._confirming = list(self._confirming), {}
        for channel in channels:
            confirms, channel.confirms = channel.confirms, []
            if channel.number in self.channels:
                for tag, multiple, ack in self._server.arrange(confirms):
                    kind = spec.Basic.Ack if ack else spec.Basic.Nack
                    self.send(channel.number, make(kind)(delivery_tag=tag, multiple=multiple))

    @property
    def memory(self) -> int:
        """Bytes that are kept for it, apart from what is in queues."""
        return self._outgoing.size + sum(channel.memory for channel in self.channels.values())

    @property
    def watched(self) -> bool:
        """Whether somebody wants to hear of each message."""
        return self._server.watches

    def event(self, what: str) -> None:
        """Tell what the client does."""
        self._server.event(f"{self.name}: {what}")

    def takes_nacked(self) -> bool:
        """Whether the next message is one that the broker was told to nack."""
        return self._server.takes_nacked()

    # Faults

    @property
    def _listens(self) -> bool:
        return not (self._deaf or self._outgoing.frozen or self._blocked)

    def listen(self) -> None:
        """Read on, if nothing speaks against it."""
        if self._transport.is_closing():
            return
        # Whoever was not listened to may have been alive.
        self._heard = time.monotonic()
        (self._transport.resume_reading if self._listens else self._transport.pause_reading)()
        self._outgoing.flush()

    def freeze(self, frozen: bool) -> None:
        """Answer nothing and close nothing, or go on."""
        self._outgoing.frozen = frozen
        self.listen()

    def block(self) -> None:
        """It publishes, and the broker has no memory for that."""
        if self._blocked:
            return
        self._blocked = True
        if self.knows("connection.blocked"):
            self.send(0, make(spec.Connection.Blocked)(reason="low on memory"))
        self._server.loop.call_soon(self.listen)

    def unblock(self) -> None:
        """The broker has memory again."""
        if self._blocked:
            self._blocked = False
            if self.knows("connection.blocked"):
                self.send(0, make(spec.Connection.Unblocked)())
            self.listen()

    # The end

    def close_channel(self, number: int, closing: Closing) -> None:
        """Close a channel, and tell the client why."""
        self._server.event(f"{self.name}: channel {number} closed: {closing.code} {closing.text}")
        self._end_channel(number)
        self._closing_channels.add(number)
        self.send(
            number,
            make(spec.Channel.Close)(
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
            self.drop()
            return
        self._server.event(f"{self.name} was closed: {closing.code} {closing.text}")
        self._end()
        self._state = "closing"
        class_id, method_id = closing.method
        self.send(
            0,
            make(spec.Connection.Close)(
                reply_code=closing.code, reply_text=closing.text, class_id=class_id, method_id=method_id
            ),
        )
        self._later(_GOODBYE, self.drop)

    def close_by_force(self, code: int, detail: str) -> None:
        """The broker, or who runs it, wants it closed."""
        if self._state == "running":
            self._close(ConnectionClosing(code, detail))
        else:
            self.drop()

    def _end(self) -> None:
        channels, self.channels = list(self.channels.values()), {}
        for channel in channels:
            channel.end()
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        if self._beat is not None:
            self._beat.cancel()
        for vhost in self._server.vhosts.values():
            vhost.connection_ended(self)

    def _hang_up(self) -> None:
        self._state = "closed"
        self._outgoing.close()

    def drop(self) -> None:
        """Hang up, as a network does: without a word."""
        self._state = "closed"
        with contextlib.suppress(OSError):  # the peer was quicker
            # Now: abort() closes the socket at the next turn of the loop, and who asked may look before.
            self._transport.get_extra_info("socket").shutdown(socket.SHUT_RDWR)
        self._transport.abort()


def _last_method(method: Any) -> tuple[int, int]:
    """Class and method, for a Close: which one it was about."""
    index = spec.Basic.Publish.INDEX if method is None else method.INDEX
    return index >> 16, index & 0xFFFF


def _bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


#: What is expected on channel 0 in each state, but for the connection's end.
_METHODS: dict[str, tuple[int, Callable[[ClientConnection, Any], None]]] = {
    "start-ok": (spec.Connection.StartOk.INDEX, ClientConnection._start_ok),
    "tune-ok": (spec.Connection.TuneOk.INDEX, ClientConnection._tune_ok),
    "opening": (spec.Connection.Open.INDEX, ClientConnection._connection_open),
    "running": (spec.Connection.UpdateSecret.INDEX, ClientConnection._update_secret),
}
