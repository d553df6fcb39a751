"""Outgoing: what is to be written to one client, the frames of one turn of the loop in one piece."""

from __future__ import annotations

import asyncio
import collections
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .server import Server


class Outgoing:
    """One client's.

    :param before: called before each write; it may add to it.
    :param after: called after each write: there may be room for more.
    """

    def __init__(self, server: Server, before: Callable[[], object], after: Callable[[], object]) -> None:
        self._server = server
        self._before = before
        self._after = after
        self._pieces: list[bytes] = []
        self._delayed: collections.deque[bytes] = collections.deque()
        self._due = 0  # how many of these were to be written while it was frozen
        self._size = 0  # of the pieces, and of what is delayed
        self._scheduled = False
        self._write_at = 0.0  # the last one that is delayed
        #: When something was written last, by the monotonic clock.
        self.said = 0.0
        #: Whether nothing is written, until it is False again.
        self.frozen = False
        self.transport: asyncio.Transport

    def add(self, data: bytes) -> None:
        """Write it soon."""
        self._pieces.append(data)
        self._size += len(data)
        self.soon()

    @property
    def size(self) -> int:
        """Bytes that the system has not taken yet."""
        return self._size + self.transport.get_write_buffer_size()

    def soon(self) -> None:
        """There will be something to write at the end of this turn."""
        if not self._scheduled:
            self._scheduled = True
            self._server.loop.call_soon(self.flush)

    def hold(self) -> None:
        """Write nothing before the next :meth:`flush`, which the caller sees to."""
        self._scheduled = True

    def flush(self) -> None:
        """Write what there is."""
        self._before()
        self._scheduled = False
        if self.frozen:
            return
        while self._due:
            self._due -= 1
            self._write(self._delayed.popleft())
        if not self._pieces:
            return
        data = b"".join(self._pieces)
        self._pieces.clear()
        self.said = time.monotonic()
        if self._server.delay or self._delayed:
            # In their order, also when the delay has become shorter.
            self._write_at = max(self._write_at, self.said + self._server.delay)
            self._delayed.append(data)
            self._server.loop.call_later(self._write_at - self.said, self._write_delayed)
        else:
            self._write(data)

    def _write_delayed(self) -> None:
        if self.frozen:
            self._due += 1
        else:
            self._write(self._delayed.popleft())

    def _write(self, data: bytes) -> None:
        self._size -= len(data)
        if not self.transport.is_closing():
            self.transport.write(data)
            self._after()

    def close(self) -> None:
        """Write what there is, and hang up."""
        self.flush()
        later = max(self._server.delay, self._write_at - time.monotonic())
        if later > 0:
            self._server.loop.call_later(later, self.transport.close)
        else:
            self.transport.close()
