"""How a handler is run: in an app context of its own, and what its outcome does to the deliveries."""

from __future__ import annotations

import collections
import contextlib
import contextvars
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from flask import Flask

from . import signals
from .consumer import Consumer
from .delivery import Action, Delivery
from .errors import Reject, Requeue, RetryLater, SetupError
from .retry import Decision

logger = logging.getLogger("flask_pika.consumer")

#: What the handler that runs in this thread, or task, is about.
_current: contextvars.ContextVar[Delivery | None] = contextvars.ContextVar(
    "flask_pika_delivery", default=None
)


@dataclass(frozen=True)
class Outcome:
    """What became of what a handler was given."""

    #: For each delivery, how it is settled; None: the handler did not, and sees to it later.
    actions: tuple[Action | None, ...]
    #: What the handler raised, if anything.
    error: BaseException | None = None
    #: Seconds until the next attempt, when it is retried.
    delay: float = 0.0

    @property
    def acked(self) -> bool:
        """Whether all of it was."""
        return set(self.actions) == {Action.ACK}

    @property
    def rejected(self) -> bool:
        """Whether all of it was."""
        return set(self.actions) == {Action.REJECT}

    @property
    def retried(self) -> bool:
        """Whether all of it waits for another attempt."""
        return set(self.actions) == {Action.RETRY}

    @property
    def dead(self) -> bool:
        """Whether all of it goes to ``<queue>.dead``."""
        return set(self.actions) == {Action.DEAD}

    @property
    def requeued(self) -> bool:
        """Whether all of it was."""
        return set(self.actions) <= {Action.REQUEUE, Action.GIVE_BACK}


def bound_handler(app: Flask, consumer: Consumer) -> Callable[..., Any]:
    """The handler as the app calls it: one that is async, in an event loop of its own.

    :raises SetupError: it is async, and Flask's ``async`` extra is not installed.
    """
    try:
        bound: Callable[..., Any] = app.ensure_sync(consumer.handler)
    except RuntimeError as exc:  # Flask's own word on what to install
        raise SetupError(f"the handler {consumer.place} is async: {exc}") from exc
    return bound


def handle(
    app: Flask, consumer: Consumer, handler: Callable[..., Any], deliveries: Sequence[Delivery]
) -> BaseException | None:
    """Run a handler in an app context of its own; what it raised, or what the context's end did."""
    first = deliveries[0]
    try:
        with about(first), app.app_context():
            if signals.received.receivers:
                for delivery in deliveries:
                    signals.send(signals.received, lambda: app, delivery=delivery)
            handler(first if consumer.batch is None else list(deliveries))
    except BaseException as exc:
        # SystemExit as well: it would end the thread, and nobody else.
        return exc
    else:
        return None


@contextlib.contextmanager
def about(delivery: Delivery) -> Iterator[None]:
    """What is logged in this block is about this delivery: see :class:`DeliveryFilter`."""
    token = _current.set(delivery)
    try:
        yield
    finally:
        _current.reset(token)


def log_failure(
    consumer: Consumer, deliveries: Sequence[Delivery], exc: BaseException, decisions: Sequence[Decision]
) -> None:
    """Say what a handler raised, at what, and what becomes of it."""
    what = "; ".join(map(_identity, deliveries[:3])) + ("; ..." if len(deliveries) > 3 else "")
    becomes = collections.Counter(
        _becomes(consumer, delivery, decision)
        for delivery, decision in zip(deliveries, decisions, strict=True)
    )
    said = "; ".join(becomes)
    if len(becomes) > 1:  # a batch, of which some have failed before
        said = "; ".join(f"{count} of them: {text}" for text, count in becomes.items())
    with about(deliveries[0]):
        _say(consumer, what, exc, said, decisions[0])


def _becomes(consumer: Consumer, delivery: Delivery, decision: Decision) -> str:
    if decision.action is not Action.RETRY or consumer.retry is None:
        return _BECOMES.get(decision.action, "")
    attempt = f"attempt {delivery.attempt} of {consumer.retry.attempts}"
    return f"{attempt}, the next one is in {decision.delay:g} s"


def _say(consumer: Consumer, what: str, exc: BaseException, becomes: str, decision: Decision) -> None:
    if isinstance(exc, RetryLater) and consumer.retry is None and decision.action is not None:
        logger.error(
            "%s cannot put off %s: %s; %s. For RetryLater, register it with"
            " @fpika.consumer(%r, retry=Retry(...))",
            consumer.name,
            what,
            exc,
            becomes,
            consumer.queue,
        )
    elif isinstance(exc, Reject):
        logger.warning("%s rejects %s: %s; %s", consumer.name, what, exc, becomes)
    elif isinstance(exc, RetryLater) and decision.action is Action.DEAD:
        logger.warning("%s puts off %s once too often: %s; %s", consumer.name, what, exc, becomes)
    elif isinstance(exc, (Requeue, RetryLater)):
        verb = "requeues" if isinstance(exc, Requeue) else "puts off"
        logger.info("%s %s %s: %s; %s", consumer.name, verb, what, exc, becomes)
    else:
        logger.error("%s failed at %s; %s", consumer.name, what, becomes, exc_info=exc)


_BECOMES = {
    None: "its handler has settled it, or it was acked before",
    Action.REJECT: "it is rejected",
    Action.REQUEUE: "it goes back to the queue",
    Action.DEAD: "it goes to the dead letters",
}


def _identity(delivery: Delivery) -> str:
    message_id = None
    with contextlib.suppress(Exception):  # properties that cannot be decoded, which may be why it failed
        message_id = delivery.message_id
    again = ", redelivered" if delivery.redelivered else ""
    return (
        f"message {message_id or 'without an id'} of queue {delivery.queue!r}"
        f" (exchange {delivery.exchange!r}, routing key {delivery.routing_key!r}{again})"
    )


def tell(app: Flask, deliveries: Sequence[Delivery], error: BaseException | None, seconds: float) -> None:
    """Tell whoever listens to signals what became of deliveries."""
    signal = signals.handled if error is None else signals.handling_failed
    if not signal.receivers:
        return
    details = {"seconds": seconds} if error is None else {"seconds": seconds, "error": error}
    for delivery in deliveries:
        signals.send(signal, lambda: app, delivery=delivery, **details)


class DeliveryFilter(logging.Filter):
    """Lets log lines of a handler say which message they are about: ``%(queue)s`` and ``%(message_id)s``.

    Add it to a logging handler; outside of a consumer's handler, both are ``-``. In a batch, it is the first
    message's.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record pass, with these attributes."""
        delivery = _current.get()
        record.queue = record.message_id = "-"
        if delivery is not None:
            record.queue = delivery.queue
            with contextlib.suppress(Exception):  # properties that cannot be decoded
                record.message_id = delivery.message_id or "-"
        return True
