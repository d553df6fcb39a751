"""Peers that speak no AMQP, or too much of it, and a proxy that puts words into a broker's mouth."""

from __future__ import annotations

import contextlib
import itertools
import random
import socket
import struct
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pika import frame, spec

from tools.proxy import Proxy

_MB = 2**20
#: The header of a frame of four gigabytes.
FOUR_GIGABYTES = b"\x01\x00\x00\xff\xff\xff\xff"
#: So much of it comes, where it does.
ENDLESS = 16 * _MB
#: Seconds that a peer waits for a client's word, and that it holds a connection open without one.
_PATIENCE = 60.0


def method(channel: int, of: Any) -> bytes:
    return frame.Method(channel, of).marshal()


def raw(kind: int, channel: int, payload: bytes, end: int = spec.FRAME_END) -> bytes:
    return struct.pack(">BHI", kind, channel, len(payload)) + payload + bytes([end])


_DELIVER: Any = spec.Basic.Deliver
_basic: Any = spec.Basic
_queue: Any = spec.Queue
_channel: Any = spec.Channel
_connection: Any = spec.Connection


#: What is delivered that nobody published.
INVENTED = b"x" * 10


def words(randoms: int, seed: int = 8) -> dict[str, bytes]:
    """What a peer may say that no client has asked for, by what it is; so many times, random bytes."""
    deliver = method(1, _DELIVER("nobody", 1, False, "", "q"))
    returned = method(1, _basic.Return(312, "NO_ROUTE", "", "q"))
    header = raw(spec.FRAME_HEADER, 1, struct.pack(">HHQH", 60, 0, 10, 0))
    found = {
        "HTTP": b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: 3\r\n\r\nno\n",
        "another version of AMQP": b"AMQP\x00\x01\x00\x00",
        "a truncated frame": method(1, _queue.DeclareOk("q", 0, 0))[:9],
        "a frame of 4 GB, a thousand bytes of it": FOUR_GIGABYTES + b"x" * 1000,
        "a body of 4 GB, a thousand bytes of it": b"\x03\x00\x01\xff\xff\xff\xf0" + b"x" * 1000,
        "a frame one byte longer than agreed": struct.pack(">BHI", 3, 1, 131072 - 7) + b"x" * 1000,
        "a frame without its end": raw(1, 1, b"\x00\x3c\x00\x50" + bytes(9), end=0),
        "a frame of no known type": raw(77, 1, b"what"),
        "an empty method": raw(1, 1, b""),
        "a method of no class": raw(1, 1, b"\xff\xff\xff\xff"),
        "a method without its arguments": raw(1, 1, struct.pack(">HH", 60, 60)),
        "a method with a cut argument": raw(1, 1, struct.pack(">HH", 50, 11) + b"\xffq"),
        "a heartbeat on a channel": raw(8, 1, b""),
        "Queue.DeclareOk": method(1, _queue.DeclareOk("q", 0, 0)),
        "Basic.GetEmpty": method(1, _basic.GetEmpty("")),
        "Basic.CancelOk": method(1, _basic.CancelOk("nobody")),
        "Basic.Publish": method(1, _basic.Publish(0, "", "q")),
        "Channel.OpenOk": method(1, _channel.OpenOk()),
        "Channel.CloseOk": method(1, _channel.CloseOk()),
        "Channel.Open": method(9, _channel.Open()),
        "Channel.OpenOk on no channel": method(999, _channel.OpenOk()),
        "Basic.Ack on no channel": method(999, _basic.Ack(1)),
        "Basic.Ack on channel 0": method(0, _basic.Ack(1)),
        "Basic.Nack of what was never published": method(1, _basic.Nack(2**62)),
        "Connection.Start": method(0, _connection.Start(server_properties={}, mechanisms="PLAIN")),
        "Connection.Tune": method(0, _connection.Tune(1, 4096, 1)),
        "Connection.OpenOk": method(0, _connection.OpenOk()),
        "Connection.CloseOk": method(0, _connection.CloseOk()),
        "Connection.Secure": method(0, _connection.Secure("who?")),
        "a delivery for no consumer": deliver + header + raw(3, 1, INVENTED),
        "a delivery without a header": deliver + raw(3, 1, b"x" * 10),
        "a delivery with half a body": deliver
        + header
        + raw(3, 1, b"x" * 5)
        + method(1, _basic.GetEmpty("")),
        "a delivery with too much body": deliver + header + raw(3, 1, b"x" * 99),
        "a delivery that promises 2**63 bytes": deliver
        + raw(2, 1, struct.pack(">HHQH", 60, 0, 2**63, 0))
        + raw(3, 1, b"x"),
        "a delivery on no channel": method(999, _DELIVER("nobody", 1, False, "", "q")),
        "a header alone": header,
        "a body alone": raw(3, 1, b"x" * 10),
        "a header of no class": raw(2, 1, struct.pack(">HHQH", 7, 0, 10, 0)),
        "a header with properties that are none": deliver + raw(2, 1, struct.pack(">HHQH", 60, 0, 1, 0xFFF8)),
        "a return of nothing": returned + raw(2, 1, struct.pack(">HHQH", 60, 0, 0, 0)),
        "a return without a header": returned + method(1, _basic.GetEmpty("")),
    }
    chance = random.Random(seed)
    for number in range(randoms):
        found[f"random bytes {number}"] = chance.randbytes(chance.choice((1, 7, 8, 64, 4096, 100_000)))
    return found


@dataclass(frozen=True)
class Script:
    """What a peer does with one connection.

    :ivar stage: how far it is as a broker, before it says ``words``: 0, not at all; 4, a channel is open.
    :ivar hangs_up: whether it then ends the connection, or says nothing more.
    :ivar endless: whether bytes follow, as many as are taken.
    """

    words: bytes
    stage: int
    hangs_up: bool = False
    endless: bool = False


def scripts(said: dict[str, bytes], stages: int, seed: int = 8) -> list[Script]:
    """For each of these, so many connections, at the different stages."""
    chance = random.Random(seed)
    found = [
        Script(one, stage, chance.random() < 0.5)
        for one in said.values()
        for stage in chance.sample(range(5), stages)
    ]
    return [*found, *(Script(FOUR_GIGABYTES, stage, endless=True) for stage in range(5))]


class Impostor:
    """Listens on ``port``, and follows a script with each connection in turn, in a ``with`` block."""

    def __init__(self, plan: Sequence[Script]) -> None:
        self._plan = itertools.cycle(plan)
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        #: How many scripts were followed to their end, and how many as far as their words.
        self.served = self.met = 0
        #: Those that were cut short by the client.
        self.cut_short = 0
        self._ended = False
        self._threads: list[threading.Thread] = []
        self._main = threading.Thread(target=self._serve, name="impostor")

    def __enter__(self) -> Impostor:
        self._main.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._ended = True
        self._server.shutdown(socket.SHUT_RDWR)
        self._main.join()
        self._server.close()
        with self._lock:
            for one in self._open:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while not self._ended:
                client, _ = self._server.accept()
                with self._lock:
                    self._open.add(client)
                thread = threading.Thread(target=self._follow, args=(client, next(self._plan)))
                self._threads.append(thread)
                thread.start()

    def _follow(self, client: socket.socket, script: Script) -> None:
        client.settimeout(_PATIENCE)
        done = False
        try:
            if done := self._play(client, script):
                client.sendall(script.words)
                with self._lock:
                    self.met += 1
                if script.endless:
                    self._say_much(client)
                elif not script.hangs_up:
                    while client.recv(65536):
                        pass
        except OSError:
            pass
        finally:
            with self._lock:
                self._open.discard(client)
                self.served += done
                self.cut_short += not done
            client.close()

    @staticmethod
    def _say_much(client: socket.socket) -> None:
        for _ in range(ENDLESS // 65536):
            client.sendall(bytes(65536))

    @staticmethod
    def _play(client: socket.socket, script: Script) -> bool:
        """Be a broker, as far as the stage; whether the client came along."""
        heard = b""
        for place, (wanted, answer) in enumerate(_HANDSHAKE[: script.stage + 1]):
            while wanted not in heard:
                more = client.recv(65536)
                if not more:
                    return False
                heard += more
            if place < script.stage:
                client.sendall(answer)
        return True


def _is(of: Any) -> bytes:
    return struct.pack(">I", of.INDEX)


#: What a client says, and what a broker answers.
_HANDSHAKE: list[tuple[bytes, bytes]] = [
    (
        b"AMQP\x00\x00\x09\x01",
        method(
            0,
            _connection.Start(
                server_properties={"capabilities": {"publisher_confirms": True, "basic.nack": True}},
                mechanisms="PLAIN",
            ),
        ),
    ),
    (_is(spec.Connection.StartOk), method(0, _connection.Tune(2047, 131072, 2))),
    (_is(spec.Connection.Open), method(0, _connection.OpenOk())),
    (_is(spec.Channel.Open), method(1, _channel.OpenOk())),
    (_is(spec.Confirm.Select), b""),
]


class Switch(Proxy):
    """A proxy whose target can be exchanged, and that says to clients what its target did not."""

    def aim(self, target: int) -> None:
        """Who connects from now on is connected to this port; the others see their end."""

        def act() -> None:
            self._target = target

        self._order(act)
        self.cut()

    def say(self, data: bytes) -> int:
        """Say this to each client; how many there are."""
        told = []

        def act() -> None:
            for one in self._chosen(None):
                one.to_client.put(data)
                told.append(one)

        self._order(act)
        return len(told)


class Memory:
    """The most memory that this process has had since a moment, as Linux counts it."""

    def __init__(self) -> None:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # proc(5): the peak is what there is now
        self._before = self._peak()

    @staticmethod
    def _peak() -> int:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM:"))

    @property
    def grown(self) -> int:
        """Bytes."""
        return self._peak() - self._before
