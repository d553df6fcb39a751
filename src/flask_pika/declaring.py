"""Declaring what an app needs on a link's connection, the publisher's or a worker's, before all else."""

from __future__ import annotations

import collections
import logging
import re
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from pika import exceptions as pika_errors
from pika.adapters.select_connection import SelectConnection
from pika.spec import ACCESS_REFUSED

from .config import Declare
from .errors import TopologyMismatch
from .steps import OVER_ONE_STEP, Step, all_steps, is_unlike, mismatch, no_answer
from .topology import Exchange, Queue, Topology

logger = logging.getLogger("flask_pika.topology")

#: Seconds that all of it may take: a queue that does not answer must not stop everything else.
_PATIENCE = 10.0

_NO_EXCHANGE = re.compile(r"no exchange '(.*)' in vhost", re.S)

Guarded = Callable[[Callable[..., object]], Callable[..., Any]]


class Declaring:
    """Does steps on a link's connection, one after the other. In the link's thread only.

    It has a channel of its own, which a step that fails costs; the others go on.

    :param guarded: what every callback is wrapped in.
    :param done: called at the end, with what went wrong; never, when the connection is lost before.
    :param costly: called with a step that the broker closed the connection over.
    """

    def __init__(
        self,
        connection: SelectConnection,
        guarded: Guarded,
        steps: Iterable[Step],
        done: Callable[[list[TopologyMismatch]], object],
        costly: Callable[[Step, TopologyMismatch], object],
    ) -> None:
        self._connection = connection
        self._guarded = guarded
        self._steps = collections.deque(steps)
        self._done = done
        self._costly = costly
        #: What is under way.
        self.doing: Step | None = None
        #: What went wrong.
        self.problems: list[TopologyMismatch] = []
        #: Names of what could not be declared.
        self.unmade: set[str] = set()
        self._unlike: list[Exchange | Queue] = []
        self._channel: Any = None
        self._open()

    def _open(self) -> None:
        if self._connection.is_open:
            self._connection.channel(on_open_callback=self._guarded(self._opened))

    def _opened(self, channel: Any) -> None:
        self._channel = channel
        channel.add_on_close_callback(self._guarded(self._closed))
        self._next()

    def _next(self) -> None:
        while self._steps and self._steps[0].leaves_alone(self._unlike):
            self._steps.popleft()
        if not self._steps:
            self.doing = None
            self._channel.close()
            self._done(self.problems)
            return
        self.doing = step = self._steps.popleft()
        method = getattr(self._channel, step.method)
        method(**step.arguments, callback=self._guarded(lambda _ok: self._did(step)))

    def _did(self, step: Step) -> None:
        if step.then is not None:
            self._steps.appendleft(step.then)
        self._next()

    def _closed(self, _channel: object, error: Exception) -> None:
        step, self.doing = self.doing, None
        if step is None:
            return
        problem = mismatch(step, error)
        if isinstance(error, pika_errors.AMQPConnectionError):
            if problem.reply_code in OVER_ONE_STEP:
                self._costly(step, problem)
            return
        # Who may not declare it may use it all the same.
        if step.stage != "compare" or problem.reply_code != ACCESS_REFUSED:
            self.problems.append(problem)
            self.unmade.add(step.thing.name)
            if is_unlike(problem):
                self._unlike.append(step.thing)
        # Soon: pika has not put the old channel's number back yet.
        self._connection.ioloop.call_later(0, self._guarded(self._open))


class Preparation:
    """Has all that is registered declared on a link's connection: at its beginning, and when there is more.

    In the link's thread only. What fails is logged, once, and stops nobody: most of what an app publishes and
    consumes works all the same.

    :param mode: as ``FLASK_PIKA_DECLARE`` has it.
    :param more: queues that are not registered, and belong to what is. It must not hold on to the app's
        state, which could never go then.
    :param own: names of exclusive queues that this connection is to have.
    """

    def __init__(
        self,
        topology: Topology,
        mode: Declare,
        more: Callable[[], Sequence[Queue]] = lambda: (),
        own: Iterable[str] = (),
    ) -> None:
        self._topology = topology
        self._mode = mode
        self._more = more
        self._own = frozenset(own) if mode == "auto" else frozenset()
        self._declared = -1  # the topology's version
        self._told = ""  # what was logged last
        self._connection: Callable[[], object] = lambda: None  # a weak reference
        # Steps that the broker closed the connection over: left out, until it is lost for another reason.
        self._refused: list[tuple[Step, TopologyMismatch]] = []
        self._was_costly = False  # whether the latest connection was closed over one
        self._unmade: set[str] = set()  # names of what could not be declared
        self._waiting: list[Callable[[], object]] = []  # for the end of what is under way

    @property
    def is_due(self) -> bool:
        """Whether something is registered that was not declared on this connection."""
        return self._topology.version != self._declared

    def forget(self) -> None:
        """There is another connection, or something is gone that was declared."""
        self._declared = -1

    def misses(self, text: str) -> bool:
        """Whether a 404 of this text is about an exchange that is registered, and is to be declared again."""
        found = _NO_EXCHANGE.search(text)
        if found is not None and found[1] in self._unmade:  # it could not be made, and cannot now, it seems
            return False
        return found is not None and self._topology.exchange(found[1]) is not None

    def has_queue(self, name: str) -> bool:
        """Whether it declares a queue of this name."""
        return self._mode == "auto" and (
            self._topology.queue(name) is not None or any(queue.name == name for queue in self._more())
        )

    def _steps(self) -> list[Step]:
        if self._mode == "never":
            return []
        steps = all_steps(self._topology, self._more(), self._own)
        if self._mode == "check":
            return [step.check for step in steps if not step.is_binding]
        return steps

    def begin(self, connection: SelectConnection, guarded: Guarded, done: Callable[[], object]) -> None:
        """Declare it, and call ``done``, whatever came of it; unless the connection is lost before."""
        if self._connection() is not connection:
            self._connection = weakref.ref(connection)
            if not self._was_costly:
                self._refused = []
            self._was_costly = False
            self._waiting = []
        self._waiting.append(done)
        if len(self._waiting) > 1:  # it is under way
            return
        version = self._topology.version
        refused = [step for step, _problem in self._refused]
        steps = [step for step in self._steps() if step not in refused and step.then not in refused]

        is_over = False

        def ended(problems: list[TopologyMismatch]) -> None:
            nonlocal is_over
            if is_over:  # given up
                return
            is_over = True
            self._unmade = {step.thing.name for step, _ in self._refused}
            if declaring is not None:
                self._unmade |= declaring.unmade
            self._declared = version
            self._tell([problem for _step, problem in self._refused] + problems)
            waiting, self._waiting = self._waiting, []
            for one in waiting:
                one()

        declaring: Declaring | None = None
        if not steps:
            ended([])
            return
        # Two names for one: to a type checker, the first one, which ended() looks at, may still be None.
        declaring = begun = Declaring(connection, guarded, steps, ended, self._costly)

        def give_up() -> None:
            if not is_over and self._connection() is connection:
                ended([*begun.problems, no_answer(begun.doing, _PATIENCE)])

        connection.ioloop.call_later(_PATIENCE, guarded(give_up))

    def _costly(self, step: Step, problem: TopologyMismatch) -> None:
        self._was_costly = True
        self._refused.append((step, problem))

    def _tell(self, problems: list[TopologyMismatch]) -> None:
        told = "; ".join(map(str, problems))
        if told and told != self._told:
            logger.error("not all that is registered is at the broker as it should be: %s", told)
        elif self._told and not told:
            logger.warning("all that is registered is at the broker now")
        self._told = told
