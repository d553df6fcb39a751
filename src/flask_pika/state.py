"""What one app has of one ``Pika`` object: settings; and in each process, pool, publisher and workers."""

from __future__ import annotations

import atexit
import dataclasses
import functools
import importlib
import logging
import os
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from flask import Flask, g, has_app_context, has_request_context, request

from .config import Settings
from .connecting import Connected, connect, connection_name
from .consumer import Consumer, Registry, check_retry
from .declaring import Preparation
from .errors import PoolClosed, TopologyError
from .gate import Gate
from .keeper import Keeper
from .lease import PooledChannel
from .outbox import Outbox, PublisherStats
from .ping import Pong, ping
from .pool import ChannelPool, PoolStats
from .provision import Finding, check, declare, together
from .publisher import Publisher
from .recordings import EVERY_APPS, Recordings
from .recovery import Recovery
from .retry import dead_queue, waiting_queue
from .slot import Slot
from .steps import Step, all_queues, all_steps, steps_for
from .subscriber import ConsumerStats
from .topology import Exchange, Queue, Topology
from .worker import Worker

if TYPE_CHECKING:
    from .testing.recorder import Recorder

logger = logging.getLogger("flask_pika.pool")

#: Seconds that publishing the copy of a failed message may take, at the least. When nobody knows whether the
#: broker has it, another copy is made: there should be few.
_COPY = 20.0
#: Seconds that the interpreter's exit may spend on goodbyes to the broker, for each app.
AT_EXIT = 1.0


@dataclass(frozen=True)
class Stats(PoolStats):
    """The pool's numbers, the publisher's, and the consumers'."""

    publisher: PublisherStats  #: see :class:`flask_pika.PublisherStats`
    consumers: tuple[ConsumerStats, ...] = ()  #: see :class:`flask_pika.ConsumerStats`


class _InProcess(NamedTuple):
    """What one process has."""

    pool: ChannelPool[Slot]
    keeper: Keeper
    publisher: Publisher
    finalizers: tuple[weakref.finalize[..., Any], ...]


class State:
    """What one app has of one ``Pika`` object. It has a weak reference to the app, which can go."""

    def __init__(
        self,
        settings: Settings,
        app: Flask,
        prefix: str,
        owner: object,
        registry: Registry,
        topology: Topology,
    ) -> None:
        self.settings = settings
        #: The consumers of the ``Pika`` object.
        self.registry = registry
        #: Its exchanges and queues.
        self.topology = topology
        self._app = weakref.ref(app)
        #: What the ``Pika`` object that made it is known by.
        self.owner = owner
        self._app_name = app.name
        self._context_key = f"_flask_pika_{prefix}"  # on g: the channels borrowed in this app context
        self._takes_workers = True
        self._closed = False
        #: Where this app's messages are kept instead of being sent.
        self.recordings = Recordings()
        # By process id: a child begins anew, before it takes a lock that the parent held at the fork.
        self._used: dict[int, _InProcess] = {}
        self._recorded_by: dict[int, Recorder] = {}
        self._workers: dict[int, weakref.WeakSet[Worker]] = {}
        _states.add(self)

    # What this process has

    def pool(self) -> ChannelPool[Slot]:
        """This process's pool; made when first asked for, without I/O."""
        return self._mine().pool

    def publisher(self) -> Publisher:
        """This process's publisher, which connects when first used; or what records in its stead."""
        recorder = self._recorder()
        return recorder.publisher if recorder is not None else self._mine().publisher

    def _recorder(self) -> Recorder | None:
        if not (self.recordings.lists or EVERY_APPS.lists):
            return None
        return self._recorded_by.get(os.getpid()) or self._begin_recorder()

    def _begin_recorder(self) -> Recorder:
        # Not an import statement at the top: it is for tests alone.
        module = importlib.import_module("flask_pika.testing.recorder")
        made = module.Recorder(self.settings, self._app, lambda: (*self.recordings.lists, *EVERY_APPS.lists))
        # setdefault(), as in _begin().
        mine = self._recorded_by.setdefault(os.getpid(), made)
        if self._closed:
            mine.close()
        return mine

    def _mine(self) -> _InProcess:
        return self._used.get(os.getpid()) or self._begin()

    def _begin(self) -> _InProcess:
        self.forget_parent()
        # setdefault() is atomic: of two threads that begin, both get the one.
        mine = self._used.setdefault(os.getpid(), self._make())
        if self._closed:
            mine.pool.close()
            mine.publisher.close(0.0)
        return mine

    def _make(self) -> _InProcess:
        settings = self.settings
        name = connection_name(self._app_name)
        label = ", ".join(map(str, settings.nodes))
        gate = Gate(label=label)

        def dial(deadline: float) -> Connected:
            return connect(settings.nodes, name, deadline)

        keeper = Keeper(_keeping_interval(settings))
        pool = ChannelPool(
            settings.pool,
            lambda: Slot(dial, gate, settings.pool.confirm_delivery),
            label=label,
            on_open=lambda: keeper.start(pool),
        )
        more = functools.partial(_queues_of, self.topology, ())
        preparation = Preparation(self.topology, settings.declare, more)
        publisher = Publisher(
            settings.publisher,
            settings.nodes,
            lambda envelopes: Outbox(
                settings.publisher,
                settings.nodes,
                f"{name}: publisher",
                envelopes,
                self._app,
                preparation,
            ),
        )
        # When the app is gone, their threads close what is left: the collector must not wait for a broker.
        finalizers = (weakref.finalize(self, keeper.stop), weakref.finalize(self, publisher.forsake))
        for finalizer in finalizers:
            finalizer.atexit = False
        return _InProcess(pool, keeper, publisher, finalizers)

    def forget_parent(self) -> None:
        """Let go of what another process opened, without touching it."""
        mine = os.getpid()
        for pid in [pid for pid in self._used if pid != mine]:
            inherited = self._used.pop(pid, None)
            if inherited is not None:
                inherited.pool.forget()
                inherited.publisher.forget()
                for finalizer in inherited.finalizers:
                    finalizer.detach()
        for pid in [pid for pid in self._recorded_by if pid != mine]:
            recorder = self._recorded_by.pop(pid, None)
            if recorder is not None:
                recorder.pool.forget()
        for pid in [pid for pid in self._workers if pid != mine]:
            for worker in self._workers.pop(pid, ()):
                worker.forget()

    # Workers

    def make_worker(
        self, app: Flask, consumers: Sequence[Consumer], threads: int, drain_timeout: float
    ) -> Worker:
        """A worker for some of the app's consumers, which is stopped when this is closed."""
        if not self._takes_workers:
            raise PoolClosed(f"close() was called for {self._app_name!r}; its workers do not start any more")
        for consumer in consumers:
            check_retry(consumer, self.topology.queue(consumer.queue))
        streams = {queue.name for queue in self.topology.queues if queue.type == "stream"}
        consumers = [dataclasses.replace(one, stream=one.queue in streams) for one in consumers]
        name = f"{connection_name(self._app_name)}: worker"
        more = functools.partial(_queues_of, self.topology, consumers)
        own = [consumer.queue for consumer in consumers]
        worker = Worker(
            app,
            consumers,
            self.settings.nodes,
            name,
            Preparation(self.topology, self.settings.declare, more, own),
            Recovery(
                # Not to a recording: what waits there would never come back.
                lambda message: self._mine().publisher.publish(
                    message, app.json.dumps, max(_COPY, self.settings.publisher.timeout), retry=True
                ),
                self._declare_queue,
            ),
            self.has_dead_letters,
            threads,
            drain_timeout,
        )
        self._workers.setdefault(os.getpid(), weakref.WeakSet()).add(worker)
        return worker

    def has_dead_letters(self, consumer: Consumer) -> bool:
        """Whether there is a ``<queue>.dead`` for what fails."""
        queue = self.topology.queue(consumer.queue)
        return consumer.retry is not None or (queue is not None and queue.dead_letter)

    def _my_workers(self) -> list[Worker]:
        return list(self._workers.get(os.getpid(), ()))

    # Exchanges and queues

    def things(self) -> tuple[list[Exchange], list[Queue]]:
        """All that the app needs, the queues of its consumers included.

        :raises SetupError: the consumers are not well.
        """
        return self.topology.exchanges, all_queues(self.topology, self._more())

    def _more(self) -> list[Queue]:
        app = self._app()
        return _queues_of(self.topology, [] if app is None else self.registry.of(app))

    def steps(self) -> list[Step]:
        """What declares it all, but for exclusive queues: each is its connection's."""
        return all_steps(self.topology, self._more())

    def declared(self, timeout: float | None) -> Iterator[Finding]:
        """Declare it, as it is iterated over, whatever ``FLASK_PIKA_DECLARE`` says."""
        return declare(self.steps(), lambda: self.lend(timeout))

    def checked(self, timeout: float | None) -> Iterator[Finding]:
        """Look at it, and change nothing."""
        return check(self.steps(), lambda: self.lend(timeout))

    def declare(self, timeout: float | None) -> None:
        """Declare it all.

        :raises TopologyMismatch: something could not be.
        """
        problems = [found.problem for found in self.declared(timeout) if found.problem is not None]
        if problems:
            raise together(problems)

    def _declare_queue(self, queue: Queue) -> None:
        queue = self.topology.queue(queue.name) or queue
        mode = self.settings.declare
        if mode != "auto":
            raise TopologyError(
                f"{queue} is not there, and FLASK_PIKA_DECLARE is {mode!r}; have it declared with"
                f" {dict(queue.arguments)}"
            )
        with PooledChannel(self.pool()).borrow(None) as channel:
            for step in steps_for([], [queue]):
                getattr(channel, step.method)(**step.arguments)

    # Channels

    def lend(self, timeout: float | None) -> PooledChannel:
        """A channel for this caller; it comes home with the app context, if there is one."""
        recorder = self._recorder()
        pool = recorder.pool if recorder is not None else self.pool()
        if not has_app_context():
            return PooledChannel(pool).borrow(timeout)
        lent: dict[PooledChannel, str] = g.setdefault(self._context_key, {})
        return PooledChannel(pool, lent, _where()).borrow(timeout)

    def end_of_context(self, _exc: BaseException | None) -> None:
        """Bring home what was borrowed in this app context and not returned."""
        lent: dict[PooledChannel, str] = g.pop(self._context_key, {})
        for channel, where in list(lent.items()):
            if channel.give_up():
                logger.warning(
                    "a channel borrowed in %s was not returned before its app context ended; it was now."
                    " Use 'with channel()', or return_channel()",
                    where,
                )

    # Its end, and a look at it

    def ping(self, timeout: float) -> Pong:
        """Connect anew, measure a round trip, and leave: see :func:`flask_pika.ping.ping`."""
        return ping(self.settings.nodes, connection_name(self._app_name), timeout)

    def close(self) -> None:
        """Stop the workers, then the publisher, then the pool: see :meth:`flask_pika.Pika.close`."""
        self._takes_workers = False
        for worker in self._my_workers():  # whose handlers may publish until they are done
            worker.stop()
        self._closed = True
        mine = self._mine()
        mine.publisher.close(self.settings.publisher.drain_timeout)
        mine.pool.close()
        mine.keeper.stop()
        mine.keeper.join(1.0)
        recorder = self._recorded_by.get(os.getpid())
        if recorder is not None:
            recorder.close()

    def close_at_exit(self) -> None:
        """Let handlers go, send what was submitted, and close what is idle, quickly."""
        for worker in self._my_workers():
            worker.stop(AT_EXIT)
        mine = self._used.get(os.getpid())
        if mine is not None:
            mine.publisher.close(self.settings.publisher.drain_timeout)
            mine.pool.close(AT_EXIT)

    def stats(self) -> Stats:
        """The numbers of this process."""
        mine = self._mine()
        return Stats(
            **vars(mine.pool.stats()), publisher=mine.publisher.stats(), consumers=self._consumer_stats()
        )

    def _consumer_stats(self) -> tuple[ConsumerStats, ...]:
        """Of each consumer that the app has, in a worker or not."""
        stats = [one for worker in self._my_workers() for one in worker.stats()]
        # Of several workers, one that is stopped says least.
        running = {one.queue: one for one in sorted(stats, key=lambda one: one.state != "stopped")}
        app = self._app()
        registered = [] if app is None else self.registry.of(app)
        return tuple(
            running.get(consumer.queue) or ConsumerStats(consumer.queue, consumer.place)
            for consumer in registered
        )


def _queues_of(topology: Topology, consumers: Iterable[Consumer]) -> list[Queue]:
    """The queues that belong to consumers and to registered queues, and are not registered themselves."""
    found: dict[str, Queue] = {}
    for queue in topology.queues:
        if queue.dead_letter:
            found[queue.dead] = dead_queue(queue.name)
    for consumer in consumers:
        if consumer.retry is not None:
            made = [waiting_queue(consumer.queue, delay) for delay in consumer.retry.delays]
            found.update((one.name, one) for one in (dead_queue(consumer.queue), *made))
    return list(found.values())


def _where() -> str:
    if not has_request_context():
        return "an app context"
    return f"endpoint {request.endpoint!r}" if request.endpoint else "a request without an endpoint"


def _keeping_interval(settings: Settings) -> float:
    """Seconds between two rounds of the keeper: a quarter of the shortest heartbeat, 5 at the most.

    Where the broker decides on the heartbeat, or a function of the user's does, it may be any number.
    """
    unknown = 1.0
    beats = [unknown * 4 if node.heartbeat is None else node.heartbeat for node in settings.nodes]
    return min([5.0, *(beat / 4 for beat in beats if beat)])


_states: weakref.WeakSet[State] = weakref.WeakSet()


def all_states() -> list[State]:
    """The states that are in use in this process."""
    return list(_states)


def _forget_parents() -> None:
    for state in all_states():
        state.forget_parent()


def close_all() -> None:
    """What is done at the interpreter's end."""
    for state in all_states():
        state.close_at_exit()


os.register_at_fork(after_in_child=_forget_parents)
atexit.register(close_all)
