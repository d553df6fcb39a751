"""A proxy that reads along what a broker delivers, and what is settled: when, and on which connection."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Any

from pika import frame, spec

from tests.ledger import Ledger
from tools.proxy import Proxy

_HEADER = len(b"AMQP\x00\x00\x09\x01")  # AMQP 0-9-1, section 4.2.2: what a client sends first


@dataclass
class Delivered:
    """One delivery on the wire."""

    id: str
    connection: int
    channel: int
    tag: int
    redelivered: bool
    at: float
    #: ``acked``, ``rejected``, ``requeued``, ``given back``; None: it was not settled.
    outcome: str | None = None
    settled: float | None = None


@dataclass
class _Stream:
    """One direction of one connection."""

    data: bytes
    delivering: dict[int, Any] = field(default_factory=dict)  # by channel
    beats: int = 0


class Wiretap(Proxy):
    """Stands between a worker and its broker, and keeps what it hears.

    What it has heard was passed on, and is on no other connection. Its clock is the ledger's.
    """

    def __init__(self, target: int) -> None:
        super().__init__(target)
        self._streams: dict[tuple[int, bool], _Stream] = {}

        # All below is shared, and touched only under the lock.
        self._lock = threading.Lock()
        self._delivered: list[Delivered] = []
        self._unsettled: dict[tuple[int, int], dict[int, Delivered]] = {}
        self._most: dict[tuple[int, int], int] = {}
        self._wrong: list[str] = []

    def passes(self, connection: int, to_target: bool, data: bytes) -> None:
        key = (connection, to_target)
        stream = self._streams.get(key)
        if stream is None:
            stream = self._streams[key] = _Stream(b"")
            if to_target:
                data = data[_HEADER:]  # loopback brings it in one piece
        stream.data += data
        now = time.monotonic()
        at = 0
        while True:
            consumed, found = frame.decode_frame(stream.data[at:])
            if not consumed:
                break
            at += consumed
            with self._lock:
                self._hear(connection, to_target, stream, found, now)
        stream.data = stream.data[at:]

    def _hear(self, connection: int, to_target: bool, stream: _Stream, found: Any, now: float) -> None:
        if isinstance(found, frame.Heartbeat):
            stream.beats += 1
        elif isinstance(found, frame.Body) and found.channel_number in stream.delivering:
            self._deliver(connection, stream.delivering.pop(found.channel_number), found, now)
        elif isinstance(found, frame.Method):
            method = found.method
            key = (connection, found.channel_number)
            if isinstance(method, spec.Basic.Deliver):
                stream.delivering[found.channel_number] = method
            elif isinstance(method, spec.Basic.Ack):
                self._settle(key, method.delivery_tag, method.multiple, "acked", now)
            elif isinstance(method, spec.Basic.Nack):
                what = "given back" if method.requeue else "rejected"
                self._settle(key, method.delivery_tag, method.multiple, what, now)
            elif isinstance(method, spec.Basic.Reject):
                what = "requeued" if method.requeue else "rejected"
                self._settle(key, method.delivery_tag, False, what, now)

    def _deliver(self, connection: int, method: Any, found: Any, now: float) -> None:
        one = Delivered(
            found.fragment.decode().split(" ")[0],
            connection,
            found.channel_number,
            method.delivery_tag,
            bool(method.redelivered),
            now,
        )
        self._delivered.append(one)
        key = (connection, found.channel_number)
        unsettled = self._unsettled.setdefault(key, {})
        unsettled[method.delivery_tag] = one
        self._most[key] = max(self._most.get(key, 0), len(unsettled))

    def _settle(self, key: tuple[int, int], tag: int, multiple: bool, outcome: str, now: float) -> None:
        unsettled = self._unsettled.get(key, {})
        tags = [known for known in unsettled if known <= tag] if multiple else [tag]
        if tag not in unsettled:
            self._wrong.append(
                f"tag {tag} is {outcome} on {key}, where it is settled, or was never delivered"
            )
            return
        for known in tags:
            one = unsettled.pop(known)
            one.outcome, one.settled = outcome, now

    # For tests

    @property
    def delivered(self) -> list[Delivered]:
        with self._lock:
            return list(self._delivered)

    @property
    def unsettled(self) -> int:
        """How many deliveries of all connections were never settled, or not yet."""
        with self._lock:
            return sum(map(len, self._unsettled.values()))

    @property
    def most_unsettled(self) -> int:
        """How many were not settled at a time, on one channel, at the most."""
        with self._lock:
            return max(self._most.values(), default=0)

    @property
    def beats(self) -> int:
        """How many heartbeats clients have sent."""
        with self._lock:
            return sum(stream.beats for (_, to_target), stream in self._streams.items() if to_target)

    def check(self, ledger: Ledger, broker_heard_all: bool = True) -> None:
        """Each was settled once at the most, on its own channel, and as its handler came out, after that.

        What was given back, no handler had begun. What was done never came again, if the broker was neither
        killed nor hung up by itself, so that it has heard of it.
        """
        runs: dict[tuple[str, int], list[Any]] = {}
        for run in ledger.runs:
            runs.setdefault((run.id, run.tag), []).append(run)
        assert not self._wrong, self._wrong[:3]
        expected = {"acked": {"committed"}, "rejected": {"raised"}, "requeued": {"requeued", "raised"}}
        done: set[str] = set()
        for one in self.delivered:
            assert one.id not in done, f"it came again, and was done: {one}"
            if one.settled is None:
                continue
            if broker_heard_all and one.outcome in ("acked", "rejected"):
                done.add(one.id)
            between = [run for run in runs.get((one.id, one.tag), []) if one.at <= run.begun <= one.settled]
            if one.outcome == "given back":
                assert not between, f"given back, though a handler had begun: {one}, {between}"
                continue
            well = [
                run
                for run in between
                if run.outcome in expected[str(one.outcome)]
                and run.ended is not None
                and run.ended <= one.settled
            ]
            assert well, f"{one.outcome} before its handler had returned: {one}, {between}"
