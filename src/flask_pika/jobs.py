"""What a publisher does for its callers: one message each, and who is told when it is settled."""

from __future__ import annotations

import queue
import threading
from concurrent.futures import Future
from dataclasses import dataclass, field

from .confirms import Outcome, Publish
from .errors import Nacked, PublishRefused, PublishTimeout, PublishUnknown, Unroutable
from .wire import Envelope


class Job(Publish):
    """One message on its way to the broker."""

    __slots__ = ("body", "deadline", "envelope", "error", "message_id", "retry", "size", "timestamp")

    def __init__(
        self, envelope: Envelope, body: bytes, message_id: str, timestamp: int, deadline: float, retry: bool
    ) -> None:
        # Publish's, in place: this is called for every message.
        self.outcome = None
        self.sent = False
        self.abandoned = False
        self.known = False
        self.lane = None
        self.nacked = False
        self.held = False
        self.reply = None
        self.envelope = envelope
        self.body = body
        self.message_id = message_id
        self.timestamp = timestamp
        self.deadline = deadline
        self.retry = retry
        self.size = len(body) + envelope.size
        self.error: Exception | None = None

    @property
    def exchange(self) -> str:  # type: ignore[override]  # noqa: D102
        return self.envelope.exchange

    @property
    def routing_key(self) -> str:  # type: ignore[override]  # noqa: D102
        return self.envelope.routing_key

    @property
    def mandatory(self) -> bool:  # type: ignore[override]  # noqa: D102
        return self.envelope.mandatory

    def finish(self) -> None:
        """Tell whoever waits that it is settled. Once; waits for nothing."""
        raise NotImplementedError

    def verdict(self) -> Exception | None:
        """What its caller is to be told; None when the broker has the message."""
        if self.error is None and self.outcome is not Outcome.CONFIRMED:
            self.error = self._error()
        return self.error

    def _error(self) -> Exception:
        envelope = self.envelope
        where = f"the message {self.message_id!r} to exchange {envelope.exchange!r}"
        where += f" with routing key {envelope.routing_key!r}"
        reply = self.reply or (0, "")
        if self.outcome is Outcome.RETURNED:
            return Unroutable(
                f"{where} reached no queue: the broker returned it ({reply[0]} {reply[1]}). Bind a queue, or"
                " publish with mandatory=False",
                self.message_id,
                reply,
            )
        if self.outcome is Outcome.NACKED and not self.sent:
            return Nacked(
                f"{where} was not sent: the broker nacked what came before it there until its deadline",
                self.message_id,
            )
        if self.outcome is Outcome.NACKED:
            return Nacked(f"the broker did not take {where}: a queue is full, or failed", self.message_id)
        if self.outcome is Outcome.REFUSED:
            return PublishRefused(
                f"the broker closed the channel over {where}: {reply[0]} {reply[1]}", self.message_id, reply
            )
        if self.outcome is Outcome.UNKNOWN and self.reply is not None:
            return PublishUnknown(
                f"{where} was sent, and the broker closed the channel, over it or another one"
                f" ({reply[0]} {reply[1]}): it is unknown whether the broker has it",
                self.message_id,
            )
        if self.outcome is Outcome.UNKNOWN:
            return PublishUnknown(
                f"{where} was sent, and the connection was lost before its confirm: it is unknown whether the"
                " broker has it",
                self.message_id,
            )
        return PublishTimeout(
            f"{where} was sent, and not confirmed in time: it is unknown whether the broker has it",
            self.message_id,
        )


class Waited(Job):
    """A message that a thread waits for."""

    __slots__ = ("done",)

    done: threading.Lock  # a held lock is the lightest thing to wait for with a timeout

    def finish(self) -> None:  # noqa: D102
        self.done.release()


class Promised(Job):
    """A message that a future stands for."""

    __slots__ = ("future",)

    future: Future[str]

    def finish(self) -> None:  # noqa: D102
        error = self.verdict()
        if error is None:
            self.future.set_result(self.message_id)
        else:
            self.future.set_exception(error)


class Part(Job):
    """One of the messages of a ``publish_many()``."""

    __slots__ = ("index", "run")

    index: int
    run: Run

    def finish(self) -> None:  # noqa: D102
        run = self.run
        if run.on_their_way.pop(self.index, None) is None:
            return  # the run has ended, and looked itself
        if self.outcome is not Outcome.CONFIRMED:
            run.failures.append(self)
        if run.waits and len(run.on_their_way) <= run.enough:
            run.waits = False
            run.news.put(None)


@dataclass
class Run:
    """One ``publish_many()``. Each operation on its containers is atomic."""

    on_their_way: dict[int, Part] = field(default_factory=dict)  # by their index
    failures: list[Part] = field(default_factory=list)
    enough: int = 0  # the caller wants to be told when no more than this many are on their way
    waits: bool = False  # set by the caller, and cleared by who tells it
    news: queue.SimpleQueue[None] = field(default_factory=queue.SimpleQueue)
