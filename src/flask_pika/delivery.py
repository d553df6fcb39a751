"""A delivery: a message as a handler gets it, and how it may be settled."""

from __future__ import annotations

import enum
import json
from collections.abc import Callable
from typing import Any

from flask import current_app, has_app_context
from pika.spec import BasicProperties

from .encoded import EncodedProperties
from .errors import SettlementError, UndecodableMessage


class Action(enum.Enum):
    """How a delivery is settled, and what that is in AMQP."""

    ACK = "acked"  #: Basic.Ack: it is done
    REJECT = "rejected"  #: Basic.Reject: to the queue's dead-letter exchange, if it has one
    REQUEUE = "requeued"  #: Basic.Reject with requeue: an attempt, to a quorum queue's delivery limit
    RETRY = "retried"  #: Basic.Ack, when a copy waits for the next attempt
    DEAD = "dead-lettered"  #: Basic.Ack, when a copy is among the dead letters
    GIVE_BACK = "given back"  #: Basic.Nack with requeue: to RabbitMQ 4, not an attempt


#: What the names of headers about a failure begin with: see :mod:`flask_pika.failures`.
FAILURE = "x-failure-"
_HAS_FAILED = FAILURE.encode()  # is in the properties of a message that failed before

#: Takes what becomes of a delivery: its tag, and the action.
Settle = Callable[[int, Action], object]


class Delivery:
    """A message that the broker delivered.

    :ivar body: its bytes.
    :ivar exchange: where it was published to; empty for the default exchange.
    :ivar routing_key: with which routing key.
    :ivar redelivered: whether it was delivered before, to whomever, and not acked.
    :ivar delivery_tag: the broker's number for it, on its channel.
    :ivar queue: the queue that it came from.
    """

    __slots__ = (
        "_content",
        "_decoded",
        "_settle",
        "_unsettled",
        "body",
        "delivery_tag",
        "exchange",
        "queue",
        "redelivered",
        "routing_key",
    )

    def __init__(
        self,
        queue: str,
        delivery_tag: int,
        redelivered: bool,
        exchange: str,
        routing_key: str,
        content: bytes | BasicProperties,
        body: bytes,
        settle: Settle | None = None,
    ) -> None:
        self.queue = queue
        self.delivery_tag = delivery_tag
        self.redelivered = redelivered
        self.exchange = exchange
        self.routing_key = routing_key
        self.body = body
        self._content = content  # the properties, as they came
        self._decoded: BasicProperties | None = None
        self._settle = settle
        # Of several threads that pop it, one has it.
        self._unsettled = [True] if settle is not None else []

    @property
    def properties(self) -> BasicProperties:
        """All of AMQP's properties, as pika has them."""
        decoded = self._decoded
        if decoded is None:  # now that somebody looks
            decoded = self._decoded = self._decode()
        return decoded

    def _decode(self) -> BasicProperties:
        content = self._content
        if not isinstance(content, bytes):
            return content
        make: Any = BasicProperties  # pika's generated classes are not annotated
        try:
            decoded: BasicProperties = make().decode(content)
        except Exception as exc:  # of many types
            raise UndecodableMessage("the message's properties cannot be decoded") from exc
        return decoded

    def encoded(self) -> EncodedProperties:
        """All of AMQP's properties as they came, whatever the handler did to those that it has; for a copy.

        :raises UndecodableMessage: they are none.
        """
        content: Any = self._content
        return EncodedProperties(content if isinstance(content, bytes) else b"".join(content.encode()))

    @property
    def failure(self) -> dict[str, Any]:
        """What is written onto it about its last failure: see :mod:`flask_pika.failures`."""
        content = self._content
        if isinstance(content, bytes) and _HAS_FAILED not in content:  # as nearly all
            return {}
        try:
            found = self.encoded().values(FAILURE)
        except UndecodableMessage:
            return {}
        # Of another queue's consumer, when a handler passed the headers on: nothing to this one.
        return found if found.get("queue", self.queue) == self.queue else {}

    def restore(self) -> None:
        """Say of a message that comes from the retries, or was replayed, where it was first published to."""
        failure = self.failure
        exchange, routing_key = failure.get("exchange"), failure.get("routing-key")
        if isinstance(exchange, str) and isinstance(routing_key, str):
            self.exchange, self.routing_key = exchange, routing_key

    @property
    def attempt(self) -> int:
        """Which attempt this is, of a consumer with ``retry``, counted from 1."""
        before = self.failure.get("attempts")
        return before + 1 if isinstance(before, int) and before > 0 else 1

    @property
    def headers(self) -> dict[str, Any]:
        """The headers; empty when there are none."""
        properties: Any = self.properties
        if properties.headers is None:
            properties.headers = {}
        headers: dict[str, Any] = properties.headers
        return headers

    @property
    def message_id(self) -> str | None:
        """The publisher's id for it."""
        return self._text("message_id")

    @property
    def correlation_id(self) -> str | None:
        """What the publisher relates it to."""
        return self._text("correlation_id")

    @property
    def reply_to(self) -> str | None:
        """The queue for an answer."""
        return self._text("reply_to")

    @property
    def content_type(self) -> str | None:
        """The body's type, such as ``application/json``."""
        return self._text("content_type")

    @property
    def type(self) -> str | None:
        """The publisher's name for this kind of message."""
        return self._text("type")

    @property
    def timestamp(self) -> int | None:
        """When it was published: seconds since 1970."""
        seconds: int | None = self.properties.timestamp
        return seconds

    @property
    def text(self) -> str:
        """The body as text, of UTF-8.

        :raises UndecodableMessage: it is none.
        """
        try:
            return self.body.decode()
        except UnicodeDecodeError as exc:
            raise UndecodableMessage(f"the body of {len(self.body)} bytes is no UTF-8") from exc

    @property
    def json(self) -> Any:
        """The body as JSON has it, by the app's JSON provider.

        :raises UndecodableMessage: it is no JSON.
        """
        loads = current_app.json.loads if has_app_context() else json.loads
        try:
            return loads(self.body)
        except (ValueError, RecursionError) as exc:
            raise UndecodableMessage(f"the body of {len(self.body)} bytes is no JSON: {exc}") from exc

    def _text(self, name: str) -> str | None:
        value: str | None = getattr(self.properties, name)
        return value

    def ack(self) -> None:
        """It is done. For consumers with ``ack="manual"``, once, from any thread.

        :raises SettlementError: it was settled before, or the worker does that.
        """
        self._take_and_settle(Action.ACK)

    def nack(self, requeue: bool = True) -> None:
        """It is not done: back to the queue; or as :meth:`reject` has it.

        :param requeue: False: to the queue's dead-letter exchange, if it has one.
        :raises SettlementError: as :meth:`ack`.
        """
        self._take_and_settle(Action.GIVE_BACK if requeue else Action.REJECT)

    def reject(self, requeue: bool = False) -> None:
        """It will never be done: to the queue's dead-letter exchange, if it has one; or back to the queue.

        :param requeue: True: back to the queue, which a quorum queue counts as an attempt.
        :raises SettlementError: as :meth:`ack`.
        """
        self._take_and_settle(Action.REQUEUE if requeue else Action.REJECT)

    def _take_and_settle(self, action: Action) -> None:
        if self._settle is None:
            raise SettlementError(
                "the worker settles this delivery, when its handler has returned; raise Reject or Requeue, or"
                ' register the consumer with ack="manual"'
            )
        if not self.take():
            raise SettlementError("this delivery was settled before; each is settled once")
        self._settle(self.delivery_tag, action)

    def take(self) -> bool:
        """Whether a manual delivery is still to be settled; from now on, it is not."""
        try:
            return self._unsettled.pop()
        except IndexError:
            return False

    def __repr__(self) -> str:
        # Without body, properties or headers, which may be secrets.
        return (
            f"<Delivery {self.delivery_tag} of queue {self.queue!r}, from exchange {self.exchange!r} with"
            f" routing key {self.routing_key!r}>"
        )


class ManualDelivery(Delivery):
    """A delivery that its handler settles.

    :param forgotten: told the tag, when the delivery is gone and was not settled. It may take no lock.
    """

    __slots__ = ("_forgotten",)

    def __init__(
        self,
        queue: str,
        delivery_tag: int,
        redelivered: bool,
        exchange: str,
        routing_key: str,
        content: bytes | BasicProperties,
        body: bytes,
        settle: Settle,
        forgotten: Callable[[int], object],
    ) -> None:
        super().__init__(queue, delivery_tag, redelivered, exchange, routing_key, content, body, settle)
        self._forgotten = forgotten

    def __del__(self) -> None:
        if self.take():
            self._forgotten(self.delivery_tag)
