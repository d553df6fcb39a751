"""The publisher: what ``publish()``, ``submit()`` and ``publish_many()`` do in the callers' threads.

From here, a message goes as a job (``jobs.py``) to the outbox (``outbox.py``: is there room?) and its ledger
(``confirms.py``: what is not confirmed); then, in the link's thread, to the dispatcher (``dispatcher.py``:
what may go now) and onto the wire (``carrier.py``). The broker's confirm comes back the same way, and ends as
the job's verdict. ``docs/design.md`` has all that function by function.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

from .config import PublisherSettings
from .errors import FlaskPikaError, InvalidMessage, PublisherClosed, PublishManyFailed
from .jobs import Job, Part, Promised, Run, Waited
from .message import Message, encode_body
from .nodes import Node
from .outbox import Outbox, PublisherStats
from .params import type_of
from .wire import Envelopes, make_ids, now

#: For how many messages at a time publish_many() waits to have room in its window.
_STEP = 64
#: Seconds after which a caller that waits makes sure that the link's thread was told.
_SOON = 0.1

J = TypeVar("J", bound=Job)


@dataclass(frozen=True)
class Failure:
    """A message of a ``publish_many()`` that failed."""

    index: int  #: its place in the iterable, from 0
    error: Exception  #: what ``publish()`` would have raised


@dataclass(frozen=True)
class PublishReport:
    """What became of the messages of a ``publish_many()``."""

    confirmed: int  #: how many the broker has
    failed: Sequence[Failure]  #: the others, in the iterable's order
    complete: bool  #: whether the iterable was read to its end before the deadline


class Publisher:
    """Takes messages from any thread, and tells each caller what became of its own.

    :param nodes: of which the one with the shortest frames says how long properties may be.
    :param make_outbox: what takes the messages, given their envelopes.
    """

    def __init__(
        self,
        settings: PublisherSettings,
        nodes: Sequence[Node],
        make_outbox: Callable[[Envelopes], Outbox],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._envelopes = Envelopes(min(node.frame_max for node in nodes))
        self._make_id = make_ids(os.urandom)
        self._outbox = make_outbox(self._envelopes)

    def publish(
        self, message: Message, dumps: Callable[[object], str], timeout: float | None, retry: bool
    ) -> str:
        """See :meth:`flask_pika.Pika.publish`."""
        if self._outbox.is_own_thread or self._outbox.is_interrupted:
            raise self._would_wait("publish")
        job = self._job(Waited, message, dumps, self._deadline(timeout), retry)
        job.done = threading.Lock()
        job.done.acquire()
        try:
            self._outbox.admit(job)
            if not job.done.acquire(timeout=min(_SOON, self._patience(job.deadline))):
                self._outbox.nudge()
                job.done.acquire(timeout=self._patience(job.deadline))
        except FlaskPikaError as exc:
            self._outbox.signal(job, exc)
            raise
        except BaseException:
            # A KeyboardInterrupt or a gevent.Timeout.
            self._outbox.give_up([job])
            raise
        if job.outcome is None:
            self._outbox.give_up([job])
        error = job.verdict()
        self._outbox.signal(job, error)
        if error is not None:
            raise error
        return job.message_id

    def submit(
        self, message: Message, dumps: Callable[[object], str], timeout: float | None, retry: bool
    ) -> Future[str]:
        """See :meth:`flask_pika.Pika.submit`."""
        if self._outbox.is_interrupted:
            raise self._would_wait("submit")
        job = self._job(Promised, message, dumps, self._deadline(timeout), retry)
        job.future = Future()
        job.future.set_running_or_notify_cancel()  # it cannot be taken back
        try:
            self._outbox.admit(job)
        except FlaskPikaError as exc:
            self._outbox.signal(job, exc)
            raise
        return job.future

    def publish_many(
        self,
        messages: Iterable[Message],
        dumps: Callable[[object], str],
        timeout: float | None,
        window: int,
        retry: bool,
    ) -> PublishReport:
        """See :meth:`flask_pika.Pika.publish_many`."""
        if self._outbox.is_own_thread or self._outbox.is_interrupted:
            raise self._would_wait("publish_many")
        deadline = self._deadline(timeout)
        run = Run()
        failed: dict[int, Exception] = {}
        step = max(1, min(_STEP, window // 2))
        count, complete = 0, True
        try:
            for index, message in enumerate(messages):
                count += 1
                try:
                    part = self._job(Part, message, dumps, deadline, retry)
                    part.run, part.index = run, index
                    self._hand_over(part, window, step)
                except PublisherClosed as exc:
                    failed[index] = exc
                    complete = False
                    break
                except FlaskPikaError as exc:
                    failed[index] = exc
                if self._clock() >= deadline:
                    complete = False
                    break
            self._wait_for(run, 0, deadline)
        except Exception:
            # The iterable's own. What was read before is settled, as it is at the iterable's end.
            self._wait_for(run, 0, deadline)
            raise
        finally:
            # What is not settled is given up; what is settled, and was not told yet, is looked at below.
            left = list(run.on_their_way.values())
            self._outbox.finish(self._outbox.give_up(left))
        for part in (*left, *run.failures):
            error = part.verdict()
            if error is not None:
                failed[part.index] = error
        return self._report(count, failed, complete)

    @staticmethod
    def _report(count: int, failed: dict[int, Exception], complete: bool) -> PublishReport:
        failures = [Failure(index, failed[index]) for index in sorted(failed)]
        report = PublishReport(count - len(failures), failures, complete)
        if complete and not failures:
            return report
        text = f"{len(failures)} of {count} messages failed"
        if not complete:
            text += "; the iterable was not read to its end in time"
        if failures:
            text += f"; the first one is number {failures[0].index}: {failures[0].error}"
        raise PublishManyFailed(text, report) from (failures[0].error if failures else None)

    def _hand_over(self, part: Part, window: int, step: int) -> None:
        """Admit a part when the window and the bounds have room for it.

        At once, each by itself: nobody knows when the iterable yields the next one.
        """
        run = part.run
        try:
            if len(run.on_their_way) >= window and not self._wait_for(run, window - step, part.deadline):
                raise self._outbox.never_sent()
            run.on_their_way[part.index] = part
            self._outbox.admit(part)
        except FlaskPikaError as exc:
            run.on_their_way.pop(part.index, None)
            self._outbox.signal(part, exc)
            raise

    def _wait_for(self, run: Run, at_most: int, deadline: float) -> bool:
        """Wait until no more than ``at_most`` of a run are on their way; whether it came to that in time."""
        while len(run.on_their_way) > at_most:
            run.enough = at_most
            run.waits = True
            if len(run.on_their_way) <= run.enough:  # settled before anybody knew that this waits
                break
            try:
                run.news.get(timeout=min(_SOON, self._patience(deadline)))
            except queue.Empty:
                if self._clock() >= deadline:
                    break
                self._outbox.nudge()
        run.waits = False
        return len(run.on_their_way) <= at_most

    def _job(
        self, kind: type[J], message: Message, dumps: Callable[[object], str], deadline: float, retry: bool
    ) -> J:
        if not isinstance(message, Message):
            raise InvalidMessage(f"{type_of(message)} is no Message; expected flask_pika.Message(body, ...)")
        body, content_type = encode_body(message.body, dumps)
        envelope = self._envelopes.find(
            message.exchange,
            message.routing_key,
            message.mandatory,
            content_type,
            message.named,
            message.properties,
        )
        message_id = envelope.properties.message_id or self._make_id()
        return kind(envelope, body, message_id, now(), deadline, retry)

    def _deadline(self, timeout: float | None) -> float:
        return self._clock() + (self._settings.timeout if timeout is None else timeout)

    def _patience(self, deadline: float) -> float:
        return min(max(0.0, deadline - self._clock()), threading.TIMEOUT_MAX)

    @staticmethod
    def _would_wait(name: str) -> RuntimeError:
        return RuntimeError(
            f"{name}() was called in the publisher's own thread, by a future's callback or a signal's"
            " receiver, or by a signal handler that interrupted the publisher: it would wait for itself. In"
            " callbacks and receivers, use submit()"
        )

    def stats(self) -> PublisherStats:
        """The numbers of this moment: cheap, and without I/O."""
        return self._outbox.stats()

    def close(self, within: float) -> None:
        """Take nothing new; wait ``within`` seconds for what is pending; tell the rest, and leave."""
        self._outbox.close(within)

    def forget(self) -> None:
        """In a forked child: let go of what is the parent's, without touching it."""
        self._outbox.forget()

    def forsake(self) -> None:
        """Nobody can use it any more: its thread ends by itself, soon. Takes no lock."""
        self._outbox.forsake()
