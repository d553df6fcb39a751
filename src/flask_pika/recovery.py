"""Recovery: a copy of what failed, to wait for another attempt or among the dead letters, before its ack."""

from __future__ import annotations

import datetime
import logging
from collections.abc import Callable

from . import failures
from .consumer import Consumer
from .delivery import Action, Delivery
from .encoded import EncodedProperties
from .errors import InvalidMessage, Reject, UndecodableMessage, Unroutable
from .handling import about
from .message import Message
from .retry import Decision, dead_queue, rounded, waiting_queue
from .topology import Queue

logger = logging.getLogger("flask_pika.consumer")


class Recovery:
    """Publishes a copy of what failed, in the handler's thread, which waits for the broker's confirm.

    So whatever crashes in between, the broker has the original, or the copy, or both.

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
        """Do what was decided; how the delivery itself is to be settled.

        ``GIVE_BACK``: it could not be done. It is to be tried again, as long as the delivery can be settled.
        """
        if decision.action not in (Action.RETRY, Action.DEAD):
            return decision.action
        with about(delivery):
            try:
                return self._settle(consumer, delivery, error, decision)
            except Exception as exc:
                name = dead_queue(consumer.queue).name
                if decision.action is Action.RETRY:
                    name = self._waiting(consumer, decision).name
                logger.error("%r was not copied to queue %r, and will be: %s", delivery, name, exc)  # noqa: TRY400
                return Action.GIVE_BACK

    def _settle(
        self, consumer: Consumer, delivery: Delivery, error: BaseException, decision: Decision
    ) -> Action:
        reason = _reason(consumer, error)
        if decision.action is Action.RETRY:
            properties = failures.retried(delivery, error, self._now())
            if self._copy(delivery, self._waiting(consumer, decision), properties):
                return Action.RETRY
            logger.error(
                "%r has headers that leave no room for those about its failure; it goes to the dead letters",
                delivery,
            )
            reason = "too-long"
        queue = dead_queue(consumer.queue)
        properties = failures.dead(delivery, error, reason, self._now())
        if not self._copy(delivery, queue, properties):
            logger.error("%r has headers that are too long, and is copied to %s without", delivery, queue)
            failures.leave_out_all_others(properties)
            self._send(delivery, queue, properties)
        return Action.DEAD

    @staticmethod
    def _waiting(consumer: Consumer, decision: Decision) -> Queue:
        configured = () if consumer.retry is None else consumer.retry.delays
        delay = decision.delay if decision.delay in configured else rounded(decision.delay)
        return waiting_queue(consumer.queue, delay)

    def _copy(self, delivery: Delivery, queue: Queue, properties: EncodedProperties) -> bool:
        """Whether it could be sent: not, when headers are too long for a frame, even without the longest."""
        while True:
            try:
                self._send(delivery, queue, properties)
            except InvalidMessage:
                if not failures.shorten(properties):
                    return False
            else:
                return True

    def _send(self, delivery: Delivery, queue: Queue, properties: EncodedProperties) -> None:
        message = Message(delivery.body, routing_key=queue.name, properties=properties)
        try:
            self._publish(message)
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
