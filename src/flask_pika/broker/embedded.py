"""``Broker``: the embedded broker as tests and demos hold it, from any thread."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import os
import socket
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TypeVar
from urllib.parse import quote

from . import server as servers
from .server import Server
from .vhost import VirtualHost
from .views import Queues, QueueView

logger = logging.getLogger("flask_pika.broker")

T = TypeVar("T")
B = TypeVar("B", bound="Broker")

#: Seconds that a call into the broker's thread may take, which nobody but its bugs makes wait.
_PATIENCE = 30.0


class BrokerError(Exception):
    """The embedded broker cannot do that."""


class Broker:
    """An AMQP 0-9-1 broker on a loopback port, in a thread of this process. It keeps nothing on disk.

    ::

        with Broker() as broker:
            app.config["FLASK_PIKA_PARAMS"] = broker.url

    :param host: the address to listen on. Anybody who reaches it can log in as guest.
    :param port: 0 for any free one.
    :param users: passwords by user names.
    :param virtual_hosts: their names. The first one is in the URL.
    :param heartbeat: seconds that it proposes to clients; 0 for none.
    :param memory: bytes of messages from which on publishers have to wait, as at RabbitMQ's memory alarm.
    :param dead_letter_retry: seconds from when a dead letter that no queue took is tried again, with the
        strategy at-least-once. RabbitMQ's ``dead_letter_worker_publisher_confirm_timeout``.
    :param event: called with a line for each thing that happens, each message among them, in the broker's
        thread. The logger ``flask_pika.broker`` has the same lines, as INFO; those about messages only
        where ``event`` is given.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        users: Mapping[str, str] | None = None,
        virtual_hosts: Sequence[str] = ("/",),
        heartbeat: int = 60,
        memory: int = 2**30,
        dead_letter_retry: float = 180.0,
        event: Callable[[str], object] | None = None,
    ) -> None:
        self.host = host
        self._wanted_port = port
        self._users = dict(users) if users is not None else {"guest": "guest"}
        if isinstance(virtual_hosts, str) or not virtual_hosts:
            raise BrokerError(f"virtual_hosts is {virtual_hosts!r}; expected one name or more, in a list")
        self.virtual_host = virtual_hosts[0]
        self._virtual_hosts = tuple(virtual_hosts)
        self._heartbeat = heartbeat
        self._memory = memory
        if not dead_letter_retry > 0:
            raise BrokerError(f"dead_letter_retry is {dead_letter_retry!r}; expected seconds, more than 0")
        self._dead_letter_retry = dead_letter_retry
        self._event = event
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server: Server | None = None
        self._port = 0
        self._pid = 0

    # Life

    def start(self: B) -> B:
        """Listen. Takes some milliseconds.

        :raises BrokerError: it cannot listen there, or was started before.
        """
        if self._thread is not None:
            raise BrokerError("this broker was started already")
        listening = self._listen(self._wanted_port)
        self._port = int(listening.getsockname()[1])
        self._pid = os.getpid()
        started: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._thread = threading.Thread(
            target=self._run, args=(listening, started), name="flask-pika-broker", daemon=True
        )
        self._thread.start()
        _running.add(self)
        try:
            started.result(_PATIENCE)
        except Exception as exc:
            self._thread = None
            _running.discard(self)
            raise BrokerError(f"the broker's thread failed as it began: {exc!r}") from exc
        return self

    def _listen(self, port: int) -> socket.socket:
        if not 0 <= port <= 65_535:
            raise BrokerError(f"cannot listen on port {port}; expected one from 1 to 65535, or 0 for any")
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        try:
            listening = socket.create_server((self.host, port), family=family, backlog=1024)
        except OSError as exc:
            number = getattr(exc, "errno", None) or 0
            why = os.strerror(number) if number > 0 else str(exc)
            raise BrokerError(
                f"cannot listen on {self.host} port {port}: {why}; choose another one, or 0"
            ) from exc
        listening.setblocking(False)
        return listening

    def _run(self, listening: socket.socket, started: concurrent.futures.Future[None]) -> None:
        loop = asyncio.SelectorEventLoop()  # not a proactor: the server uses add_reader()
        try:
            self._loop = loop
            self._server = Server(
                loop,
                users=self._users,
                vhosts=self._virtual_hosts,
                heartbeat=self._heartbeat,
                memory=self._memory,
                dead_letter_retry=self._dead_letter_retry,
                event=self._say,
                watches=self._event is not None,
            )
            self._server.listen(listening)
            loop.call_soon(started.set_result, None)
            loop.run_forever()
        except BaseException as exc:
            if started.done():
                raise
            started.set_exception(exc)
        finally:
            self._server.stop() if self._server is not None else listening.close()
            _finish(loop)

    def _say(self, text: str) -> None:
        logger.info("%s", text)
        if self._event is not None:
            try:
                self._event(text)
            except Exception as exc:  # a terminal that was closed, for one: nobody listens any more
                logger.warning("the embedded broker's events are told no more: %r", exc)
                self._event = None

    def stop(self) -> None:
        """Hang up on everybody, and forget everything."""
        thread, loop = self._thread, self._loop
        if thread is None or loop is None or self._pid != os.getpid():
            return
        self._thread = None
        _running.discard(self)
        with contextlib.suppress(RuntimeError):  # the loop has ended by itself
            loop.call_soon_threadsafe(loop.stop)
        if thread is not threading.current_thread():  # as in an event's callback
            thread.join(_PATIENCE)

    def __enter__(self: B) -> B:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    # Where it is

    @property
    def port(self) -> int:
        """Where it listens, since :meth:`start`."""
        return self._port

    @property
    def url(self) -> str:
        """For ``FLASK_PIKA_PARAMS``, and any other client."""
        user, password = next(iter(self._users.items()), ("", ""))
        host = f"[{self.host}]" if ":" in self.host else self.host
        return (
            f"amqp://{quote(user, safe='')}:{quote(password, safe='')}@{host}:{self.port}"
            f"/{quote(self.virtual_host, safe='')}"
        )

    # A look inside

    @property
    def queues(self) -> Mapping[str, QueueView]:
        """The queues, by name: ``broker.queues["orders"].messages``."""
        return Queues(self._look)

    @property
    def exchanges(self) -> list[str]:
        """The names of the exchanges."""
        return self._ask(lambda server: list(server.vhosts[self.virtual_host].exchanges))

    @property
    def connections(self) -> list[str]:
        """The open connections, by address and name."""
        return self._ask(lambda server: [connection.name for connection in server.connections])

    # Faults

    def drop_connections(self) -> None:
        """Hang up on everybody, as a network does: without a word."""
        self._ask(Server.drop_connections)

    def close_connections(self, code: int = 320, text: str = "broker forced connection closure") -> None:
        """Close all connections as RabbitMQ does at its shutdown, or an operator by hand.

        :param code: AMQP's reply code.
        :param text: and its words.
        """
        self._ask(lambda server: server.close_connections(code, text))

    def close_channel(self, code: int = 541, text: str = "on demand", *, number: int | None = None) -> None:
        """Close channels as over an error.

        :param code: AMQP's reply code.
        :param text: and its words.
        :param number: those with this number; None for all.
        """
        self._ask(lambda server: server.close_channels(code, text, number))

    def refuse(self) -> None:
        """Stop listening: who connects is refused. Open connections go on."""
        self._ask(Server.refuse)

    def accept(self) -> None:
        """Listen again, on the same port."""

        def listen(server: Server) -> None:
            if server.listening is None:
                server.listen(self._listen(self._port))

        self._ask(listen)

    def freeze(self) -> None:
        """Answer nothing, and close nothing, as a host that is stuck."""
        self._ask(lambda server: server.freeze(True))

    def thaw(self) -> None:
        """Go on."""
        self._ask(lambda server: server.freeze(False))

    def block(self) -> None:
        """Raise RabbitMQ's memory alarm: who publishes is told so, and not listened to."""
        self._ask(lambda server: server.block(True))

    def unblock(self) -> None:
        """Clear it."""
        self._ask(lambda server: server.block(False))

    def nack_next(self, count: int = 1) -> None:
        """Nack the next messages on channels in confirm mode, and drop them.

        :param count: how many.
        """
        self._ask(lambda server: server.nack_next(count))

    def delay(self, seconds: float) -> None:
        """Answer everything later.

        :param seconds: how much later; 0 for at once.
        """

        def set_delay(server: Server) -> None:
            server.delay = seconds

        self._ask(set_delay)

    def hold_confirms(self) -> None:
        """Confirm nothing until :meth:`release_confirms`."""
        self._ask(Server.hold_confirms)

    def release_confirms(
        self, *, backwards: bool = False, shuffled: bool = False, together: bool = False
    ) -> None:
        """Confirm what was held back, each by itself in the order of publishing; and then as always.

        :param backwards: the last one first.
        :param shuffled: in a random order.
        :param together: as few confirms as can be, each for several messages.
        """
        self._ask(
            lambda server: server.release_confirms(backwards=backwards, shuffled=shuffled, together=together)
        )

    def _look(self, question: Callable[[VirtualHost], T]) -> T:
        return self._ask(lambda server: question(server.vhosts[self.virtual_host]))

    def _ask(self, question: Callable[[Server], T]) -> T:
        """Have something done in the broker's thread."""
        loop, server = self._loop, self._server
        if self._thread is None or loop is None or server is None:
            raise BrokerError("this broker does not run: start() it, or use it in a 'with' block")
        if self._pid != os.getpid():
            raise BrokerError("this broker runs in the parent process, which alone can look into it")
        if self._thread is threading.current_thread():  # an event's callback, which may not wait for itself
            return question(server)
        answer: concurrent.futures.Future[T] = concurrent.futures.Future()

        def work() -> None:
            try:
                answer.set_result(question(server))
            except BaseException as exc:
                answer.set_exception(exc)

        try:
            loop.call_soon_threadsafe(work)
        except RuntimeError as exc:
            raise BrokerError("this broker was just stopped") from exc
        return answer.result(_PATIENCE)

    def _forget(self) -> None:
        """In a forked child: close its copies of the sockets, which are the parent's."""
        if self._server is not None and self._server.listening is not None:
            self._server.listening.close()

    def __repr__(self) -> str:
        state = f"on {self.host} port {self.port}" if self._thread is not None else "stopped"
        return f"<Broker {state}>"


def _finish(loop: asyncio.AbstractEventLoop) -> None:
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
    loop.run_until_complete(asyncio.sleep(0))  # the transports' last callbacks
    loop.close()


_running: weakref.WeakSet[Broker] = weakref.WeakSet()


def _forget_all() -> None:
    for broker in list(_running):
        broker._forget()
    for client in list(servers.sockets):
        client.close()


os.register_at_fork(after_in_child=_forget_all)
