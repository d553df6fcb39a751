"""A subscription: one consumer on one channel of one connection; what it delivered is settled on it alone."""

from __future__ import annotations

import collections
import functools
import os
from collections.abc import Callable
from typing import Any, Protocol

from pika import BasicProperties, frame, spec
from pika import exceptions as pika_errors
from pika.adapters.select_connection import SelectConnection

from . import pika_internals
from .consumer import Consumer
from .deliver_frames import Arrival
from .delivery import Action, Delivery, ManualDelivery
from .errors import SettlementError
from .settlements import Settlements


class Owner(Protocol):
    """Who has a subscription. All but ``arm`` is called in the link's thread."""

    def subscribed(self, subscription: Subscription, /) -> None:
        """The broker delivers from now on."""

    def arrived(self, subscription: Subscription, deliveries: list[Delivery], /) -> None:
        """Deliveries came."""

    def cancelled(self, subscription: Subscription, /) -> None:
        """The broker delivers no more; the channel is open, and what was delivered can be settled."""

    def closed(self, subscription: Subscription, error: Exception, /) -> None:
        """The channel is gone, or never came to be; with its connection, or by the broker's will."""

    def forgotten(self, tag: int, /) -> Action:
        """Nobody has a manual delivery any more that nobody settled; how it is to be."""
        ...

    def settled(self, action: Action, /) -> None:
        """A delivery was settled on the wire, and not by an ack."""

    def arm(self) -> None:
        """There is something to settle: have :meth:`Subscription.flush` called. In any thread."""


class Subscription:
    """One consumer on one channel. In the link's thread only, but for :meth:`settle`, :meth:`settle_all` and
    ``is_open``.

    :param tag: what the broker knows the consumer by; operators see it.
    :param guarded: what every callback is wrapped in.
    :param watch: where deliveries are watched for, by channel number.
    """

    def __init__(
        self,
        consumer: Consumer,
        tag: str,
        owner: Owner,
        connection: SelectConnection,
        guarded: Callable[[Callable[..., object]], Callable[..., Any]],
        watch: dict[int, Callable[[list[Arrival]], object]],
    ) -> None:
        self.consumer = consumer
        self._tag = tag
        self._owner = owner
        self._connection = connection
        self._guarded = guarded
        self._watch = watch
        self._channel: Any = None
        self._pid = os.getpid()
        #: How many frames have settled something. Written by the link's thread, read by any.
        self.written = 0
        #: Whether what it delivered can be settled. Read by any thread.
        self.is_open = True
        self._settlements = Settlements()
        # Filled by any thread, emptied by the link's; a deque's methods are atomic.
        self._settled: collections.deque[tuple[int, Action]] = collections.deque()
        self._forgotten: collections.deque[int] = collections.deque()
        connection.channel(on_open_callback=guarded(self._opened))

    @property
    def outstanding(self) -> int:
        """How many deliveries are not settled on the wire."""
        return len(self._settlements) if self.is_open else 0

    # Any thread

    def settle(self, tag: int, action: Action) -> None:
        """Settle a delivery, soon. After the connection's end, nothing: the broker delivers it again.

        :raises SettlementError: in a child that the handler forked.
        """
        if os.getpid() != self._pid:
            raise SettlementError("this process inherited the delivery by a fork; its parent settles it")
        self._settled.append((tag, action))
        self._owner.arm()

    def settle_all(self, deliveries: list[Delivery], actions: list[Action | None]) -> None:
        """Settle what the handler does not settle itself, when the owner is armed."""
        self._settled.extend(
            (delivery.delivery_tag, action)
            for delivery, action in zip(deliveries, actions, strict=True)
            if action is not None
        )

    # The link's thread: subscribing

    def _opened(self, channel: Any) -> None:
        self._channel = channel
        channel.add_on_close_callback(self._guarded(self._closed))
        channel.add_on_cancel_callback(self._guarded(lambda _frame: self._owner.cancelled(self)))
        if pika_internals.AVAILABLE:
            self._watch[channel.channel_number] = self._guarded(self._arrived)
        # For each consumer, not for the channel: RabbitMQ 4 refuses global QoS.
        channel.basic_qos(
            prefetch_count=self.consumer.prefetch, callback=self._guarded(lambda _ok: self.subscribe())
        )

    def subscribe(self) -> None:
        """Ask for deliveries; again, after the broker has cancelled it."""
        if not self._can_be_written_to:
            return
        self._channel.basic_consume(
            self.consumer.queue,
            self._guarded(self._message),
            exclusive=self.consumer.exclusive,
            consumer_tag=self._tag,
            arguments=dict(self.consumer.arguments),
            callback=self._guarded(lambda _ok: self._owner.subscribed(self)),
        )

    def unsubscribe(self) -> None:
        """Ask for no more. What is on its way arrives nevertheless."""
        if self._can_be_written_to and self._tag in self._channel.consumer_tags:
            self._channel.basic_cancel(self._tag, callback=self._guarded(lambda _ok: None))

    @property
    def _can_be_written_to(self) -> bool:
        return self.is_open and self._channel is not None and bool(self._channel.is_open)

    def lost(self) -> None:
        """The connection is gone."""
        self.is_open = False

    def _closed(self, channel: Any, error: Exception) -> None:
        self._watch.pop(channel.channel_number, None)
        was_open, self.is_open = self.is_open, False
        by_whom = (pika_errors.AMQPConnectionError, pika_errors.ChannelClosedByClient)  # with its connection
        if was_open and not isinstance(error, by_whom):
            self._owner.closed(self, error)

    # The link's thread: deliveries

    def _message(self, _channel: Any, method: Any, properties: BasicProperties, body: bytes) -> None:
        # The public way, and what came while pika was in the middle of a frame.
        about = (method.delivery_tag, bool(method.redelivered), method.exchange, method.routing_key)
        self._take([self._make(*about, properties, body)])

    def _arrived(self, arrivals: list[Arrival]) -> None:
        self._take([self._make(*arrival) for arrival in arrivals])

    def _take(self, deliveries: list[Delivery]) -> None:
        for delivery in deliveries:
            if not delivery.exchange and delivery.routing_key == self.consumer.queue:
                delivery.restore()
            self._settlements.arrived(delivery.delivery_tag)
        self._owner.arrived(self, deliveries)

    @functools.cached_property
    def _make(self) -> Callable[..., Delivery]:
        if self.consumer.ack == "manual":
            return functools.partial(
                ManualDelivery, self.consumer.queue, settle=self.settle, forgotten=self._forgotten.append
            )
        return functools.partial(Delivery, self.consumer.queue)

    # The link's thread: settling

    def flush(self) -> None:
        """Write what was settled since the last time."""
        while self._forgotten:
            tag = self._forgotten.popleft()
            self._settled.append((tag, self._owner.forgotten(tag)))
        if not self._settled:
            return
        acked: list[int] = []
        otherwise: dict[int, Action] = {}
        # Not "while self._settled": other threads may fill it as quickly as this empties it.
        for _ in range(len(self._settled)):
            tag, action = self._settled.popleft()
            if action in _ACKED:
                acked.append(tag)
            elif self._settlements.knows(tag):
                otherwise[tag] = action
        if not self._can_be_written_to:
            return
        for action in otherwise.values():
            self._owner.settled(action)
        unsent: list[int] = []
        if self.consumer.is_stream:
            # It keeps everything in its place, so there is nothing to reject or give back: RabbitMQ closes
            # the connection over that (540). An ack lets it send more.
            unsent = [tag for tag, action in otherwise.items() if action is Action.GIVE_BACK]
            acked += [tag for tag, action in otherwise.items() if action is not Action.GIVE_BACK]
            otherwise = {}
        up_to, singles = self._settlements.settle(acked, (*otherwise, *unsent))
        others = [_method(tag, action) for tag, action in otherwise.items()]
        acks = [_basic.Ack(up_to, multiple=True)] if up_to else []
        acks += [_basic.Ack(tag) for tag in singles]
        # An ack that covers what is not acked comes after that. Otherwise the acks come first: a quorum queue
        # may put off what comes on the heels of many others, and when the channel was closed meanwhile, as at
        # a drain's end, acked messages came again (seen on RabbitMQ 3.10; not with the acks first).
        methods = others + acks if any(tag < up_to for tag in otherwise) else acks + others
        if methods:
            self.written += len(methods)
            self._send(methods)

    def _send(self, methods: list[Any]) -> None:
        channel = self._channel
        if pika_internals.AVAILABLE:
            number = channel.channel_number
            data = b"".join(frame.Method(number, method).marshal() for method in methods)
            pika_internals.write(self._connection, data)
            return
        for method in methods:
            if isinstance(method, spec.Basic.Ack):
                channel.basic_ack(method.delivery_tag, method.multiple)
            elif isinstance(method, spec.Basic.Reject):
                channel.basic_reject(method.delivery_tag, method.requeue)
            else:
                channel.basic_nack(method.delivery_tag, requeue=True)


#: What is an ack on the wire.
_ACKED = (Action.ACK, Action.RETRY, Action.DEAD)
_basic: Any = spec.Basic  # pika's generated classes are not annotated


def _method(tag: int, action: Action) -> Any:
    if action is Action.GIVE_BACK:
        return _basic.Nack(tag, multiple=False, requeue=True)
    return _basic.Reject(tag, requeue=action is Action.REQUEUE)
