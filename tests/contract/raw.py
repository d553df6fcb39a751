"""A client that sends what it is told to, frame by frame, right or wrong."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from typing import Any, TypeVar

from pika import amqp_object, frame, spec

from tests.contract.helpers import PATIENCE, Peer, Text, same

HEADER = b"AMQP\x00\x00\x09\x01"  # AMQP 0-9-1, section 4.2.2: the protocol header
CAPABILITIES = {
    "authentication_failure_close": True,
    "basic.nack": True,
    "connection.blocked": True,
    "consumer_cancel_notify": True,
    "publisher_confirms": True,
}

M = TypeVar("M", bound=amqp_object.Method)


class Wire:
    """One socket to a broker. Every wait has a limit; the end of the stream reads as None."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self._socket = socket.create_connection((peer.host, peer.port), PATIENCE)
        self._buffer = b""
        self.tune = spec.Connection.Tune()

    # -- sending

    def send_bytes(self, data: bytes) -> Wire:
        self._socket.sendall(data)
        return self

    def send(self, method: amqp_object.Method, channel: int = 1) -> Wire:
        return self.send_bytes(frame.Method(channel, method).marshal())

    def send_header(self, size: int, channel: int = 1, **properties: Any) -> Wire:
        return self.send_bytes(frame.Header(channel, size, spec.BasicProperties(**properties)).marshal())

    def send_body(self, fragment: bytes, channel: int = 1) -> Wire:
        return self.send_bytes(frame.Body(channel, fragment).marshal())

    def send_frame(self, kind: int, channel: int, payload: bytes, end: int = 0xCE) -> Wire:
        return self.send_bytes(struct.pack(">BHI", kind, channel, len(payload)) + payload + bytes([end]))

    def publish(self, exchange: str, key: str, body: bytes = b"", channel: int = 1, **flags: bool) -> Wire:
        self.send(spec.Basic.Publish(exchange=exchange, routing_key=key, **flags), channel)
        self.send_header(len(body), channel)
        return self.send_body(body, channel) if body else self

    # -- reading

    def read_raw(self, timeout: float = PATIENCE) -> tuple[int, int, bytes] | None:
        """The next frame as type, channel and payload, or None at the end of the stream."""
        deadline = time.monotonic() + timeout
        while True:
            if len(self._buffer) >= 7:
                kind, channel, size = struct.unpack(">BHI", self._buffer[:7])
                if len(self._buffer) >= size + 8:
                    payload, self._buffer = self._buffer[7 : size + 7], self._buffer[size + 8 :]
                    return kind, channel, payload
            if not self._receive(deadline):
                return None

    def read(self, timeout: float = PATIENCE) -> Any:
        """The next frame that is no heartbeat, as pika has it, or None at the end of the stream."""
        while (raw := self.read_raw(timeout)) is not None:
            kind, channel, payload = raw
            if kind != spec.FRAME_HEARTBEAT:
                data = struct.pack(">BHI", kind, channel, len(payload)) + payload + b"\xce"
                return frame.decode_frame(data)[1]
        return None

    def expect(self, method: type[M], channel: int = 1) -> M:
        """The next frame is this method, on this channel."""
        came = self.read()
        assert came is not None, f"the broker hung up instead of {method.NAME}"
        assert isinstance(came, frame.Method), came
        assert isinstance(came.method, method), came
        assert came.channel_number == channel
        return came.method

    def expect_content(self, method: type[M], channel: int = 1) -> tuple[M, spec.BasicProperties, bytes]:
        """The next frames are this method with its content."""
        came = self.expect(method, channel)
        header = self.read()
        assert isinstance(header, frame.Header)
        body = b""
        while len(body) < header.body_size:
            fragment = self.read()
            assert isinstance(fragment, frame.Body)
            body += fragment.fragment
        return came, header.properties, body

    def expect_bytes(self, expected: bytes) -> Wire:
        """The next bytes are these."""
        deadline = time.monotonic() + PATIENCE
        while len(self._buffer) < len(expected) and self._receive(deadline):
            pass
        assert self._buffer[: len(expected)] == expected
        self._buffer = self._buffer[len(expected) :]
        return self

    def expect_end(self) -> None:
        """Nothing more comes but heartbeats: the broker closes the stream."""
        assert self.read() is None

    def expect_channel_close(self, code: int, text: Text, by: Any = None) -> Wire:
        """The broker closes channel 1, for the sake of this method, and the connection goes on."""
        close = self.expect(spec.Channel.Close)
        assert close.reply_code == code, close
        same(close.reply_text, text)
        if by is not None:
            assert (close.class_id, close.method_id) == divmod(by.INDEX, 1 << 16)
        return self.send(spec.Channel.CloseOk())

    def expect_connection_close(self, code: int, text: Text, by: Any = None) -> None:
        """The broker closes the connection, for the sake of this method, and then the stream."""
        close = self.expect(spec.Connection.Close, 0)
        assert close.reply_code == code, close
        same(close.reply_text, text)
        if by is not None:
            assert (close.class_id, close.method_id) == divmod(by.INDEX, 1 << 16)
        self.send(spec.Connection.CloseOk(), 0)
        self.expect_end()

    # -- the handshake

    def greet(self) -> spec.Connection.Start:
        return self.send_bytes(HEADER).expect(spec.Connection.Start, 0)

    def start_ok(
        self, response: str, mechanism: str = "PLAIN", capabilities: dict[str, bool] | None = None
    ) -> Wire:
        properties = {"capabilities": CAPABILITIES if capabilities is None else capabilities}
        return self.send(spec.Connection.StartOk(properties, mechanism, response, "en_US"), 0)

    def authenticate(self) -> spec.Connection.Tune:
        """As far as the broker's Tune."""
        self.greet()
        self.start_ok(f"\0{self.peer.username}\0{self.peer.password}")
        self.tune = self.expect(spec.Connection.Tune, 0)
        return self.tune

    def tune_ok(self, channel_max: int = 0, frame_max: int = 0, heartbeat: int = 0) -> Wire:
        return self.send(spec.Connection.TuneOk(channel_max, frame_max, heartbeat), 0)

    def open_host(self, virtual_host: str | None = None) -> Wire:
        return self.send(spec.Connection.Open(virtual_host or self.peer.virtual_host), 0)

    def login(self, channel_max: int | None = None, frame_max: int | None = None, heartbeat: int = 0) -> Wire:
        """The whole handshake; what is not given is as the broker suggests."""
        tune = self.authenticate()
        self.tune_ok(
            tune.channel_max if channel_max is None else channel_max,
            tune.frame_max if frame_max is None else frame_max,
            heartbeat,
        )
        self.open_host().expect(spec.Connection.OpenOk, 0)
        return self

    def open_channel(self, channel: int = 1) -> Wire:
        self.send(spec.Channel.Open(), channel).expect(spec.Channel.OpenOk, channel)
        return self

    def declare(self, arguments: dict[str, Any] | None = None, channel: int = 1) -> str:
        """Declare an exclusive queue; the broker names it."""
        self.send(spec.Queue.Declare(queue="", exclusive=True, arguments=arguments), channel)
        return str(self.expect(spec.Queue.DeclareOk, channel).queue)

    def check(self, channel: int = 1) -> Wire:
        """The channel answers."""
        self.send(spec.Exchange.Declare(exchange="amq.direct", passive=True), channel)
        self.expect(spec.Exchange.DeclareOk, channel)
        return self

    def end(self) -> None:
        """Say that nothing more comes; there may be something to read still."""
        self._socket.shutdown(socket.SHUT_WR)

    def hang_up(self) -> None:
        self._socket.close()

    def _receive(self, deadline: float) -> bool:
        self._socket.settimeout(max(deadline - time.monotonic(), 0.001))
        with contextlib.suppress(ConnectionResetError):
            data = self._socket.recv(1 << 16)
            self._buffer += data
            return bool(data)
        return False
