"""The server: listens, keeps the connections, and has faults on demand. All in the broker's thread."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import socket
import sys
import weakref
from collections.abc import Callable, Mapping
from importlib import metadata

from .channel import Channel
from .closing import ChannelClosing
from .connection import ClientConnection
from .tables import Field, Table, longstr
from .vhost import VirtualHost

logger = logging.getLogger("flask_pika.broker")

#: Seconds between two looks at how much memory the messages take.
_LOOK_EVERY = 0.1


def _version() -> str:
    try:
        return metadata.version("flask-pika")
    except metadata.PackageNotFoundError:  # run from a source tree, for one
        return "unknown"


class Server:
    """One broker's clients and virtual hosts.

    :param event: told in words of what happens.
    :param watches: whether it is told of each message, too.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        users: Mapping[str, str],
        vhosts: tuple[str, ...],
        heartbeat: int,
        memory: int,
        dead_letter_retry: float,
        event: Callable[[str], object],
        watches: bool,
    ) -> None:
        self.loop = loop
        self.users = users
        self.heartbeat = heartbeat
        self.event = event
        self.watches = watches
        self.vhosts = {name: VirtualHost(name, loop, dead_letter_retry, event, watches) for name in vhosts}
        self.connections: dict[ClientConnection, None] = {}
        self.replies: dict[str, Channel] = {}
        self.properties: Table = {
            "product": longstr("Flask-Pika's embedded broker"),
            "version": longstr(_version()),
            "platform": longstr(f"Python {sys.version.split()[0]}"),
            "information": longstr("In memory only, for demos and tests"),
            "cluster_name": Field("longstr", b"embedded"),
        }
        self.listening: socket.socket | None = None
        self._opening: set[asyncio.Task[None]] = set()  # or nobody would hold them
        self._memory = memory
        self._too_much = False
        self._looks: asyncio.TimerHandle | None = None
        # Faults
        self.delay = 0.0
        self.holds_confirms = False
        self._told_to_block = False
        self.frozen = False
        self._to_nack = 0
        self._arrangement = (False, False, True)  # backwards, shuffled, together

    # Listening

    def listen(self, listening: socket.socket) -> None:
        """Take connections."""
        self.listening = listening
        self._await_clients()
        if self._looks is None:
            self._look()

    def _await_clients(self) -> None:
        if self.listening is None:
            return
        if self.frozen:  # it leaves them to the system
            self.loop.remove_reader(self.listening)
        else:
            # Not sock_accept(): what it has taken stays open when it is cancelled in that moment.
            self.loop.add_reader(self.listening, self._accept, self.listening)

    def _accept(self, listening: socket.socket) -> None:
        try:
            client, address = listening.accept()
        except (BlockingIOError, ConnectionAbortedError):  # it is gone again
            return
        except OSError as exc:  # no more files: others may close theirs
            logger.warning("a connection could not be taken: %s", exc)
            self.loop.remove_reader(listening)
            self.loop.call_later(_LOOK_EVERY, self._await_clients)
            return
        client.setblocking(False)
        with contextlib.suppress(OSError):  # of one that is gone again
            # Answers are small, and each is waited for.
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sockets.add(client)

        def opened(opening: asyncio.Task[None]) -> None:
            self._opening.discard(opening)
            if opening.cancelled():  # at the broker's end
                client.close()

        opening = self.loop.create_task(self._open(client, f"{address[0]}:{address[1]}"))
        self._opening.add(opening)
        opening.add_done_callback(opened)

    async def _open(self, client: socket.socket, peer: str) -> None:
        await self.loop.connect_accepted_socket(lambda: ClientConnection(self, peer), client)

    def refuse(self) -> None:
        """Take no more connections: who tries is refused."""
        if self.listening is not None:
            self.loop.remove_reader(self.listening)
            self.listening.close()
        self.listening = None

    def stop(self) -> None:
        """Hang up on everybody."""
        self.refuse()
        if self._looks is not None:
            self._looks.cancel()
        for connection in list(self.connections):
            connection.drop()
        for vhost in self.vhosts.values():
            for queue in list(vhost.queues.values()):
                queue.delete()  # with its timers

    def failed(self, exc: Exception) -> None:
        """There is a bug."""
        logger.error("a bug in Flask-Pika's embedded broker, please report it", exc_info=exc)

    # Memory

    @property
    def is_alarmed(self) -> bool:
        """Whether publishers are to wait."""
        return self._told_to_block or self._too_much

    def _look(self) -> None:
        stored = sum(queue.memory for vhost in self.vhosts.values() for queue in vhost.queues.values())
        stored += sum(connection.memory for connection in self.connections)
        too_much = stored > self._memory
        if too_much != self._too_much:
            self._too_much = too_much
            how = "more than" if too_much else "less again than"
            self.event(f"the messages take {stored:,} bytes, {how} the {self._memory:,} that they may")
            self._unblock_if_possible()
        self._looks = self.loop.call_later(_LOOK_EVERY, self._look)

    def _unblock_if_possible(self) -> None:
        if not self.is_alarmed:
            for connection in list(self.connections):
                connection.unblock()

    # Faults

    def drop_connections(self) -> None:
        """Hang up on everybody, as a network does: without a word."""
        for connection in list(self.connections):
            connection.drop()

    def close_connections(self, code: int, text: str) -> None:
        """Close all connections as RabbitMQ does when it is shut down, or an operator wants it."""
        for connection in list(self.connections):
            connection.close_by_force(code, text)

    def close_channels(self, code: int, text: str, number: int | None) -> None:
        """Close channels, as over an error."""
        for connection in list(self.connections):
            for channel in [one for one in connection.channels if number in (None, one)]:
                connection.close_channel(channel, ChannelClosing(code, text))

    def freeze(self, frozen: bool) -> None:
        """Answer nothing, or go on."""
        self.frozen = frozen
        self._await_clients()
        for connection in list(self.connections):
            connection.freeze(frozen)

    def block(self, blocked: bool) -> None:
        """Raise RabbitMQ's memory alarm, or clear it."""
        self._told_to_block = blocked
        self._unblock_if_possible()

    def nack_next(self, count: int) -> None:
        """The next messages on channels in confirm mode are not taken."""
        self._to_nack = count

    def takes_nacked(self) -> bool:
        """Whether the next message is one of them."""
        if not self._to_nack:
            return False
        self._to_nack -= 1
        return True

    def hold_confirms(self) -> None:
        """Confirm nothing until :meth:`release_confirms`."""
        self.holds_confirms = True

    def release_confirms(self, *, backwards: bool, shuffled: bool, together: bool) -> None:
        """Confirm what was held back, in one of several ways, and then as always."""
        self.holds_confirms = False
        usual, self._arrangement = self._arrangement, (backwards, shuffled, together)
        for connection in list(self.connections):
            connection.listen()
        self._arrangement = usual

    def arrange(self, confirms: list[tuple[int, bool]]) -> list[tuple[int, bool, bool]]:
        """How confirms are told: delivery tag, whether it is about all before it as well, whether an ack."""
        backwards, shuffled, together = self._arrangement
        if not together:
            single = [(tag, False, ack) for tag, ack in confirms]
            if backwards:
                single.reverse()
            if shuffled:
                random.shuffle(single)
            return single
        # With "multiple" a confirm is about all before it that are not settled: that must be its own alone.
        told: list[tuple[int, bool, bool]] = []
        for tag, ack in confirms:
            if told and told[-1][0] == tag - 1 and told[-1][2] == ack:
                told[-1] = (tag, True, ack)
            else:
                told.append((tag, False, ack))
        return told


#: The clients' sockets, which a forked child closes: it has copies of them.
sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
