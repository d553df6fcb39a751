"""Recovery: a copy of what failed, to wait for another attempt or among the dead letters, before its ack."""

from __future__ import annotations

import datetime
import logging
from collections.abc import Callable

from pika import BasicProperties

from . import failures
from .consumer import Consumer
from .delivery import Action, Delivery
from .errors import InvalidMessage, Reject, UndecodableMessage, Unroutable
from .message import Message
from .retry import Decision, dead_queue, rounded, waiting_queue
from .topology import Queue

logger = logging.getLogger("flask_pika.consumer")


class Recovery:
    """Publishes copies, in the handler's thread, which waits for the broker's confirm. So in every crash in
    between, the broker has the original, or the copy, or both.

    :param publish: publishes a message, confirmed.
    :param declare: declares a queue, which may exist.
    """

    def __init__(
        self,
        publish: Callable[[Message], object],
        declare: Callable[[Queue], object],
        now: Callable[[], datetime.datetime] = lambda: datetime.datetime.now(datetime.timezone.utc),
    ) -> None:
        self._publish = publish
        self._declare = declare
        self._now = now

    def settle(
        self, consumer: Consumer, delivery: Delivery, error: BaseException, decision: Decision
    ) -> Action | None:
        """Do what was decided; how the delivery itself is to be settled."""
        if decision.action not in (Action.RETRY, Action.DEAD):
            return decision.action
        if decision.action is Action.RETRY:
            configured = () if consumer.retry is None else consumer.retry.delays
            delay = decision.delay if decision.delay in configured else rounded(decision.delay)
            queue = waiting_queue(consumer.queue, delay)
            properties = failures.retried(delivery, error, self._now())
        else:
            queue = dead_queue(consumer.queue)
            properties = failures.dead(delivery, error, _reason(consumer, error), self._now())
        try:
            self._copy(delivery, queue, properties)
        except InvalidMessage as exc:
            logger.error("%r cannot be copied to %s, and is rejected: %s", delivery, queue, exc)  # noqa: TRY400
            return Action.REJECT
        except Exception as exc:
            logger.error("%r was not copied to %s, and goes back: %s", delivery, queue, exc)  # noqa: TRY400
            return Action.GIVE_BACK
        return decision.action

    def _copy(self, delivery: Delivery, queue: Queue, properties: BasicProperties) -> None:
        message = Message(delivery.body, routing_key=queue.name, properties=properties)
        try:
            self._publish(message)
        except InvalidMessage:
            # Too long for a frame, with what was put to it.
            if properties.headers.pop(failures.TRACEBACK, None) is None:
                raise
            self._copy(delivery, queue, properties)
        except Unroutable:
            # A delay that a handler asked for, or somebody deleted the queue.
            self._declare(queue)
            self._publish(message)


def _reason(consumer: Consumer, error: BaseException) -> str:
    if isinstance(error, UndecodableMessage):
        return "undecodable"
    if isinstance(error, Reject) or consumer.retry is None:
        return "rejected"
    return "attempts"
