"""A channel: what a client asks of the broker, and what it is answered."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

from pika import spec

from . import tables
from .arguments import integer, not_implemented, parse_expiration
from .closing import ChannelClosing, ConnectionClosing, precondition_failed
from .contents import Content
from .exchanges import Destination
from .queues import Entry, Queue
from .tables import Field, Table, raw_of, text_of
from .vhost import VirtualHost

#: RabbitMQ's max_message_size.
LARGEST_MESSAGE = 134_217_728
_REPLY_TO = "amq.rabbitmq.reply-to"
_OCTETS_BEFORE_NAMES = 6  # class, method, and the ticket that nobody uses any more

# How many short strings and octets of bits stand before a method's table of arguments.
_BEFORE_ARGUMENTS = {
    spec.Exchange.Declare.INDEX: (2, 1),
    spec.Exchange.Bind.INDEX: (3, 1),
    spec.Exchange.Unbind.INDEX: (3, 1),
    spec.Queue.Declare.INDEX: (1, 1),
    spec.Queue.Bind.INDEX: (3, 1),
    spec.Queue.Unbind.INDEX: (3, 0),
    spec.Basic.Consume.INDEX: (2, 1),
}


def _arguments(index: int, payload: bytes) -> Table:
    strings, bits = _BEFORE_ARGUMENTS[index]
    at = _OCTETS_BEFORE_NAMES
    for _ in range(strings):
        at += 1 + payload[at]
    return tables.decode(payload, at + bits)[0]


class Client(Protocol):
    """The connection that a channel is on."""

    vhost: VirtualHost
    user: str
    replies: dict[str, Channel]  # of the whole broker: who waits for direct replies

    def send(self, channel: int, method: Any, content: Content | None = None) -> None:
        """Send a method, with a message if there is one."""

    def is_reading(self) -> bool:
        """Whether the client takes what it is sent."""

    def confirm_later(self, channel: Channel) -> None:
        """The channel has something to confirm, soon."""

    def takes_nacked(self) -> bool:
        """Whether the next message is one that the broker was told to nack."""

    def knows(self, capability: str) -> bool:
        """Whether the client said that it has a capability."""


class Subscription:
    """A consumer of one queue, on one channel."""

    def __init__(
        self,
        channel: Channel,
        tag: str,
        queue: Queue,
        *,
        no_ack: bool,
        exclusive: bool,
        priority: int,
        offset: Field | None,
    ) -> None:
        self.channel = channel
        self.tag = tag
        self.queue = queue
        self.no_ack = no_ack
        self.exclusive = exclusive
        self.priority = priority
        self.offset = offset
        self.prefetch = channel.prefetch
        self.unacked = 0

    def can_take(self) -> bool:
        """Whether one more may be sent."""
        channel = self.channel
        if not channel.client.is_reading():
            return False
        return self.no_ack or (
            (not self.prefetch or self.unacked < self.prefetch)
            and (not channel.prefetch_of_all or channel.unacked_of_all < channel.prefetch_of_all)
        )

    def deliver(self, queue: Queue, entry: Entry) -> None:
        """Send a message."""
        self.channel.deliver(self, queue, entry)

    def cancelled(self) -> None:
        """The queue is gone."""
        self.channel.subscription_ended(self)


class Unacked(NamedTuple):
    """A message that the client has and has not settled."""

    queue: Queue
    entry: Entry
    subscription: Subscription | None  # None: fetched by Basic.Get


class _Settlement(NamedTuple):
    """What a transaction will do at its end."""

    unacked: list[tuple[int, Unacked]]
    settle: Callable[[list[Unacked]], object]


class Channel:
    """One open channel of a client."""

    def __init__(self, client: Client, number: int) -> None:
        self.client = client
        self.number = number
        self.prefetch = 0  # of each consumer that begins from now on
        self.prefetch_of_all = 0
        self.unacked_of_all = 0
        self.confirms: list[tuple[int, bool]] = []  # delivery tag, and whether it is an ack: not sent yet
        self._vhost = client.vhost
        self._subscriptions: dict[str, Subscription] = {}
        self._unacked: dict[int, Unacked] = {}
        self._deliveries = 0
        self._publishes: int | None = None  # None: not in confirm mode
        self._transaction: list[tuple[spec.Basic.Publish, Content] | _Settlement] | None = None
        self._last_queue: str | None = None
        self._reply_tag: str | None = None
        self._reply_token = ""
        self._publishing: spec.Basic.Publish | None = None
        self._header: bytes | None = None
        self._body: list[bytes] = []
        self._missing = 0

    # Frames

    def method(self, method: Any, payload: bytes) -> None:
        """A method came.

        :param payload: it as it came.
        """
        self._expect_no_content()
        index = method.INDEX
        if index == spec.Basic.Publish.INDEX:
            if method.immediate:
                raise not_implemented("immediate=true")
            self._publishing = method
            return
        handler = _HANDLERS.get(index)
        if handler is None:
            raise ConnectionClosing(503, "unimplemented method")
        if index in _BEFORE_ARGUMENTS:
            method.arguments = _arguments(index, payload)
        handler(self, method)

    def _expect_no_content(self) -> None:
        if self._header is not None:
            raise _unexpected("content body")
        if self._publishing is not None:
            raise _unexpected("content header", " for class 60")

    def content_header(self, payload: bytes) -> None:
        """A content header came."""
        if self._header is not None:
            raise _unexpected("content body")
        if self._publishing is None:
            raise _unexpected("method")
        of_class = int.from_bytes(payload[:2], "big")
        if of_class != spec.Basic.INDEX:
            expected = "expected content header for class 60"
            raise ConnectionClosing(505, f"{expected}, got one for class {of_class} instead")
        size = int.from_bytes(payload[4:12], "big")
        if size > LARGEST_MESSAGE:
            self._publishing = None
            raise precondition_failed(
                f"message size {size} is larger than configured max size {LARGEST_MESSAGE}"
            )
        self._header, self._body, self._missing = payload, [], size
        if size == 0:
            self._complete(self._publishing, payload)

    def content_body(self, payload: bytes) -> None:
        """A piece of a body came."""
        if self._publishing is None or self._header is None:
            self._expect_no_content()
            raise _unexpected("method")
        self._missing -= len(payload)
        # As RabbitMQ does: one that is longer than it should be is never complete.
        if self._missing >= 0:
            self._body.append(payload)
        if self._missing == 0:
            self._complete(self._publishing, self._header)

    def _complete(self, publish: spec.Basic.Publish, header: bytes) -> None:
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._publishing = self._header = None
        self._body = []
        try:
            content = Content(_text(publish.exchange), _text(publish.routing_key), header, body)
        except tables.Malformed as exc:
            raise ConnectionClosing(541, "") from exc
        self._publish(publish, content)

    # Publishing

    def _publish(self, method: spec.Basic.Publish, content: Content) -> None:
        if content.exchange != "":
            exchange = self._vhost.exchange(content.exchange)
            if exchange.internal:
                where = f"exchange '{content.exchange}' in vhost '{self._vhost.name}'"
                raise ChannelClosing(403, f"cannot publish to internal {where}")
        self._check_properties(content)
        content = self._with_reply_address(content)
        if self._transaction is not None:
            self._transaction.append((method, content))
            return
        tag = 0
        if self._publishes is not None:
            tag = self._publishes = self._publishes + 1
        if tag and self.client.takes_nacked():
            self._confirm(tag, False)
            return
        taken = self._route(method, content)
        if tag:
            self._confirm(tag, taken)

    def _confirm(self, tag: int, ack: bool) -> None:
        self.confirms.append((tag, ack))
        self.client.confirm_later(self)

    def _check_properties(self, content: Content) -> None:
        user = content.properties.user_id
        if user is not None and _text(user) != self.client.user:
            raise precondition_failed(
                f"user_id property set to '{_text(user)}' but authenticated user was '{self.client.user}'"
            )
        parse_expiration(content.properties.expiration)
        for name in ("CC", "BCC"):
            field = content.headers.get(name)
            if field is not None and field.kind != "array":
                why = f'{{unacceptable_type_in_header,"{name}",{field.kind}}}'
                raise precondition_failed(f"invalid message: {why}")

    def _with_reply_address(self, content: Content) -> Content:
        if content.properties.reply_to != _REPLY_TO:
            return content
        if self._reply_tag is None:
            raise precondition_failed("fast reply consumer does not exist")
        return content.with_headers(content.headers, reply_to=f"{_REPLY_TO}.{self._reply_token}")

    def _route(self, method: spec.Basic.Publish, content: Content) -> bool:
        """Give a message to its queues; whether all took it."""
        keys = content.routing_keys()
        if "BCC" in content.headers:
            content = content.with_headers(
                {name: field for name, field in content.headers.items() if name != "BCC"}
            )
        routed, taken = self._vhost.publish(content, keys)
        if not routed and content.exchange == "" and content.routing_key.startswith(f"{_REPLY_TO}."):
            routed = self._reply(content)
        if not routed and method.mandatory:
            self.client.send(
                self.number,
                _make(spec.Basic.Return)(
                    reply_code=spec.NO_ROUTE,
                    reply_text="NO_ROUTE",
                    exchange=raw_of(content.exchange),
                    routing_key=raw_of(content.routing_key),
                ),
                content,
            )
        return taken

    def _reply(self, content: Content) -> bool:
        waiting = self.client.replies.get(content.routing_key.removeprefix(f"{_REPLY_TO}."))
        if waiting is None or waiting._reply_tag is None:
            return False
        waiting._deliveries += 1
        waiting.client.send(
            waiting.number,
            _make(spec.Basic.Deliver)(
                consumer_tag=raw_of(waiting._reply_tag),
                delivery_tag=waiting._deliveries,
                redelivered=False,
                exchange=raw_of(content.exchange),
                routing_key=raw_of(content.routing_key),
            ),
            content,
        )
        return True

    # Delivering

    def deliver(self, subscription: Subscription, queue: Queue, entry: Entry) -> None:
        """Send a message to a consumer."""
        tag = self._hand_out(queue, entry, subscription)
        content = queue.shown(entry)
        self.client.send(
            self.number,
            _make(spec.Basic.Deliver)(
                consumer_tag=raw_of(subscription.tag),
                delivery_tag=tag,
                redelivered=entry.redelivered,
                exchange=raw_of(content.exchange),
                routing_key=raw_of(content.routing_key),
            ),
            content,
        )

    def _hand_out(
        self, queue: Queue, entry: Entry, subscription: Subscription | None, no_ack: bool = False
    ) -> int:
        self._deliveries += 1
        if no_ack or (subscription is not None and subscription.no_ack):
            queue.ack(entry)
            return self._deliveries
        self._unacked[self._deliveries] = Unacked(queue, entry, subscription)
        if subscription is not None:
            subscription.unacked += 1
            self.unacked_of_all += 1
        return self._deliveries

    def _get(self, method: spec.Basic.Get) -> None:
        queue = self._queue(method.queue)
        self._refuse_stream(queue, "basic.get")
        entry = queue.fetch()
        if entry is None:
            self.client.send(self.number, _make(spec.Basic.GetEmpty)())
            return
        tag = self._hand_out(queue, entry, None, method.no_ack)
        content = queue.shown(entry, fetched=True)
        self.client.send(
            self.number,
            _make(spec.Basic.GetOk)(
                delivery_tag=tag,
                redelivered=entry.redelivered,
                exchange=raw_of(content.exchange),
                routing_key=raw_of(content.routing_key),
                message_count=queue.count,
            ),
            content,
        )

    # Consuming

    def _consume(self, method: spec.Basic.Consume) -> None:
        tag = _text(method.consumer_tag) or f"amq.ctag-{_token()}"
        if tag in self._subscriptions or tag == self._reply_tag:
            raise ConnectionClosing(530, f"attempt to reuse consumer tag '{tag}'")
        if _text(method.queue) == _REPLY_TO:
            self._await_replies(method, tag)
            return
        queue = self._queue(method.queue)
        where = f"queue '{queue.name}' in vhost '{self._vhost.name}'"
        if queue.settings.kind != "classic" and self.prefetch_of_all:
            raise not_implemented(f"{where} does not support global qos")
        if queue.settings.kind == "stream":
            if method.no_ack:
                raise not_implemented(f"automatic acknowledgement not supported by stream queues {where}")
            if not self.prefetch:
                raise precondition_failed(f"consumer prefetch count is not set for '{where}'")
        alone = method.exclusive and (queue.consumers or queue.settings.single_active_consumer)
        if queue.is_exclusively_consumed or alone:
            raise ChannelClosing(403, f"{where} in exclusive use")
        try:
            priority = integer(method.arguments.get("x-priority", Field("long", 0)))
        except ValueError as exc:
            raise precondition_failed(f"invalid arg 'x-priority' for {where}: {exc}") from exc
        subscription = Subscription(
            self,
            tag,
            queue,
            no_ack=method.no_ack,
            exclusive=method.exclusive,
            priority=priority,
            offset=method.arguments.get("x-stream-offset"),
        )
        self._subscriptions[tag] = subscription
        self._answer(method, _make(spec.Basic.ConsumeOk)(consumer_tag=raw_of(tag)))
        queue.add_consumer(subscription)

    def _await_replies(self, method: spec.Basic.Consume, tag: str) -> None:
        """https://www.rabbitmq.com/docs/direct-reply-to"""
        if not method.no_ack:
            raise precondition_failed("reply consumer cannot acknowledge")
        if self._reply_tag is not None:
            raise precondition_failed("reply consumer already set")
        self._reply_tag, self._reply_token = tag, _token()
        self.client.replies[self._reply_token] = self
        self._answer(method, _make(spec.Basic.ConsumeOk)(consumer_tag=raw_of(tag)))

    def _stop_replies(self) -> None:
        self.client.replies.pop(self._reply_token, None)
        self._reply_tag = None

    def _cancel(self, method: spec.Basic.Cancel) -> None:
        tag = _text(method.consumer_tag)
        subscription = self._subscriptions.pop(tag, None)
        self._answer(method, _make(spec.Basic.CancelOk)(consumer_tag=raw_of(tag)))
        if subscription is not None:
            subscription.queue.remove_consumer(subscription)
        elif tag == self._reply_tag:
            self._stop_replies()

    def subscription_ended(self, subscription: Subscription) -> None:
        """Its queue is gone: the client is told, if it knows how to hear that."""
        self._subscriptions.pop(subscription.tag, None)
        if self.client.knows("consumer_cancel_notify"):
            self.client.send(
                self.number, _make(spec.Basic.Cancel)(consumer_tag=raw_of(subscription.tag), nowait=True)
            )

    def serve(self) -> None:
        """Something changed that kept consumers from taking more."""
        for queue in dict.fromkeys(one.queue for one in self._subscriptions.values()):
            queue.serve()

    def _qos(self, method: spec.Basic.Qos) -> None:
        if method.prefetch_size:
            raise not_implemented(f"prefetch_size!=0 ({method.prefetch_size})")
        if method.global_qos:
            self.prefetch_of_all = method.prefetch_count
            self.client.send(self.number, _make(spec.Basic.QosOk)())
            self.serve()
        else:
            self.prefetch = method.prefetch_count
            self.client.send(self.number, _make(spec.Basic.QosOk)())

    # Settling

    def _ack(self, method: spec.Basic.Ack) -> None:
        self._settle(self._take(method.delivery_tag, method.multiple), _acked)

    def _nack(self, method: spec.Basic.Nack) -> None:
        self._give_back(self._take(method.delivery_tag, method.multiple), method.requeue)

    def _reject(self, method: spec.Basic.Reject) -> None:
        self._give_back(self._take(method.delivery_tag, False), method.requeue)

    def _give_back(self, taken: list[tuple[int, Unacked]], requeue: bool) -> None:
        for _tag, unacked in taken:
            self._refuse_stream(unacked.queue, "basic.nack and basic.reject")
        self._settle(taken, _requeued if requeue else _rejected)

    def _take(self, tag: int, multiple: bool) -> list[tuple[int, Unacked]]:
        if multiple and tag == 0:
            tags = list(self._unacked)
        elif tag not in self._unacked:
            raise precondition_failed(f"unknown delivery tag {tag}")
        else:
            tags = [one for one in self._unacked if one <= tag] if multiple else [tag]
        return [(one, self._unacked.pop(one)) for one in tags]

    def _settle(self, taken: list[tuple[int, Unacked]], settle: Callable[[list[Unacked]], object]) -> None:
        if self._transaction is not None:
            self._transaction.append(_Settlement(taken, settle))
            return
        self._settle_now([unacked for _tag, unacked in taken], settle)

    def _settle_now(self, taken: list[Unacked], settle: Callable[[list[Unacked]], object]) -> None:
        waited = bool(self.prefetch_of_all)
        for unacked in taken:
            if unacked.subscription is not None:
                unacked.subscription.unacked -= 1
                self.unacked_of_all -= 1
        settle(taken)
        if waited:
            self.serve()
        else:
            for queue in dict.fromkeys(one.queue for one in taken):
                queue.serve()

    def _recover(self, method: spec.Basic.Recover | spec.Basic.RecoverAsync) -> None:
        if not method.requeue:
            raise not_implemented("requeue=false")
        if method.INDEX == spec.Basic.Recover.INDEX:
            self.client.send(self.number, _make(spec.Basic.RecoverOk)())
        self._settle_now(self._take_all(), _requeued)

    def _take_all(self) -> list[Unacked]:
        taken, self._unacked = list(self._unacked.values()), {}
        return taken

    # Confirm and tx

    def _confirm_select(self, method: spec.Confirm.Select) -> None:
        if self._transaction is not None:
            raise precondition_failed("cannot switch from tx to confirm mode")
        if self._publishes is None:
            self._publishes = 0
        self._answer(method, _make(spec.Confirm.SelectOk)())

    def _tx_select(self, _method: spec.Tx.Select) -> None:
        if self._publishes is not None:
            raise precondition_failed("cannot switch from confirm to tx mode")
        if self._transaction is None:
            self._transaction = []
        self.client.send(self.number, _make(spec.Tx.SelectOk)())

    def _tx_commit(self, _method: spec.Tx.Commit) -> None:
        for done in self._end_transaction():
            if isinstance(done, _Settlement):
                self._settle_now([unacked for _tag, unacked in done.unacked], done.settle)
            else:
                self._route(*done)
        self.client.send(self.number, _make(spec.Tx.CommitOk)())

    def _tx_rollback(self, _method: spec.Tx.Rollback) -> None:
        for done in self._end_transaction():
            if isinstance(done, _Settlement):
                self._unacked.update(done.unacked)
        self._unacked = dict(sorted(self._unacked.items()))
        self.client.send(self.number, _make(spec.Tx.RollbackOk)())

    def _end_transaction(self) -> list[tuple[spec.Basic.Publish, Content] | _Settlement]:
        if self._transaction is None:
            raise precondition_failed("channel is not transactional")
        done, self._transaction = self._transaction, []
        return done

    # Declaring

    def _queue(self, name: object) -> Queue:
        return self._vhost.queue(self._named(name), self.client)

    def _refuse_stream(self, queue: Queue, verb: str) -> None:
        if queue.settings.kind == "stream":
            where = f"queue '{queue.name}' in vhost '{self._vhost.name}'"
            raise not_implemented(f"{verb} not supported by stream queues {where}")

    def _named(self, name: object) -> str:
        """A queue's name; the empty one means the queue that was declared last on this channel."""
        text = _text(name)
        if text:
            return text
        if self._last_queue is None:
            raise ChannelClosing(404, "no previously declared queue")
        return self._last_queue

    def _exchange_declare(self, method: spec.Exchange.Declare) -> None:
        self._vhost.declare_exchange(
            _text(method.exchange),
            _text(method.type),
            passive=method.passive,
            durable=method.durable,
            auto_delete=method.auto_delete,
            internal=method.internal,
            arguments=method.arguments,
        )
        self._answer(method, _make(spec.Exchange.DeclareOk)())

    def _exchange_delete(self, method: spec.Exchange.Delete) -> None:
        self._vhost.delete_exchange(_text(method.exchange), method.if_unused)
        self._answer(method, _make(spec.Exchange.DeleteOk)())

    def _exchange_bind(self, method: spec.Exchange.Bind) -> None:
        destination = Destination(False, _text(method.destination))
        self._vhost.bind(
            destination, _text(method.source), _text(method.routing_key), method.arguments, self.client
        )
        self._answer(method, _make(spec.Exchange.BindOk)())

    def _exchange_unbind(self, method: spec.Exchange.Unbind) -> None:
        destination = Destination(False, _text(method.destination))
        self._vhost.unbind(
            destination, _text(method.source), _text(method.routing_key), method.arguments, self.client
        )
        self._answer(method, _make(spec.Exchange.UnbindOk)())

    def _queue_declare(self, method: spec.Queue.Declare) -> None:
        name = _text(method.queue)
        if method.passive and name.startswith(_REPLY_TO):
            self._reply_declare(method, name)
            return
        queue = self._vhost.declare_queue(
            name,
            self.client,
            passive=method.passive,
            durable=method.durable,
            exclusive=method.exclusive,
            auto_delete=method.auto_delete,
            arguments=method.arguments,
        )
        self._last_queue = queue.name
        self._declared(method, queue.name, queue.count, len(queue.consumers))

    def _reply_declare(self, method: spec.Queue.Declare, name: str) -> None:
        token = name.removeprefix(f"{_REPLY_TO}.")
        if name != _REPLY_TO and token not in self.client.replies:
            raise ChannelClosing(404, f"no queue '{name}' in vhost '{self._vhost.name}'")
        self._declared(method, name, 0, 1)

    def _declared(self, method: spec.Queue.Declare, name: str, messages: int, consumers: int) -> None:
        self._answer(
            method,
            _make(spec.Queue.DeclareOk)(queue=raw_of(name), message_count=messages, consumer_count=consumers),
        )

    def _queue_bind(self, method: spec.Queue.Bind) -> None:
        self._change_binding(method, self._vhost.bind)
        self._answer(method, _make(spec.Queue.BindOk)())

    def _queue_unbind(self, method: spec.Queue.Unbind) -> None:
        self._change_binding(method, self._vhost.unbind)
        self.client.send(self.number, _make(spec.Queue.UnbindOk)())

    def _change_binding(self, method: Any, change: Callable[..., object]) -> None:
        name, key = self._named(method.queue), _text(method.routing_key)
        if not method.queue and not key:
            key = name
        change(Destination(True, name), _text(method.exchange), key, method.arguments, self.client)

    def _queue_purge(self, method: spec.Queue.Purge) -> None:
        queue = self._queue(method.queue)
        self._refuse_stream(queue, "queue.purge")
        count = queue.purge()
        self._answer(method, _make(spec.Queue.PurgeOk)(message_count=count))

    def _queue_delete(self, method: spec.Queue.Delete) -> None:
        count = self._vhost.delete_queue(
            self._named(method.queue), self.client, if_unused=method.if_unused, if_empty=method.if_empty
        )
        self._answer(method, _make(spec.Queue.DeleteOk)(message_count=count))

    def _access_request(self, _method: spec.Access.Request) -> None:
        # Of AMQP 0-8; RabbitMQ answers it still.
        self.client.send(self.number, _make(spec.Access.RequestOk)(ticket=1))

    def _flow(self, method: spec.Channel.Flow) -> None:
        if not method.active:
            raise not_implemented("active=false")
        self.client.send(self.number, _make(spec.Channel.FlowOk)(active=True))

    def _answer(self, method: Any, answer: Any) -> None:
        if not method.nowait:
            self.client.send(self.number, answer)

    # The end

    def end(self) -> None:
        """The channel is gone: what was not settled goes back to its queues."""
        subscriptions, self._subscriptions = list(self._subscriptions.values()), {}
        for subscription in subscriptions:
            # One by one, but none of them gets what the others give back.
            subscription.queue.consumers = [
                one for one in subscription.queue.consumers if one is not subscription
            ]
        if self._reply_tag is not None:
            self._stop_replies()
        taken = self._take_all()
        for done in self._transaction or ():
            if isinstance(done, _Settlement):
                taken += [unacked for _tag, unacked in done.unacked]
        _requeued(taken)
        for queue in dict.fromkeys(one.queue for one in subscriptions):
            queue.consumer_left()


def _unexpected(expected: str, more: str = "") -> ConnectionClosing:
    frame = " frame" if expected == "method" else ""
    return ConnectionClosing(505, f"expected {expected}{more}{frame}, got non {expected} frame instead")


def _acked(taken: Iterable[Unacked]) -> None:
    for unacked in taken:
        unacked.queue.ack(unacked.entry)


def _rejected(taken: Iterable[Unacked]) -> None:
    for unacked in taken:
        unacked.queue.reject(unacked.entry)


def _requeued(taken: Iterable[Unacked]) -> None:
    by_queue: dict[Queue, list[Entry]] = {}
    for unacked in taken:
        by_queue.setdefault(unacked.queue, []).append(unacked.entry)
    for queue, entries in by_queue.items():
        queue.requeue(entries)


def _text(value: object) -> str:
    """A name from a method; pika leaves bytes as they are when they are no UTF-8."""
    return text_of(value) if isinstance(value, bytes) else str(value)


def _token() -> str:
    return base64.urlsafe_b64encode(os.urandom(16)).decode().rstrip("=")


def _make(method: Any) -> Any:
    """Pika's generated classes are not annotated."""
    return method


_HANDLERS: dict[int, Callable[[Channel, Any], None]] = {
    spec.Access.Request.INDEX: Channel._access_request,
    spec.Channel.Flow.INDEX: Channel._flow,
    spec.Exchange.Declare.INDEX: Channel._exchange_declare,
    spec.Exchange.Delete.INDEX: Channel._exchange_delete,
    spec.Exchange.Bind.INDEX: Channel._exchange_bind,
    spec.Exchange.Unbind.INDEX: Channel._exchange_unbind,
    spec.Queue.Declare.INDEX: Channel._queue_declare,
    spec.Queue.Bind.INDEX: Channel._queue_bind,
    spec.Queue.Unbind.INDEX: Channel._queue_unbind,
    spec.Queue.Purge.INDEX: Channel._queue_purge,
    spec.Queue.Delete.INDEX: Channel._queue_delete,
    spec.Basic.Qos.INDEX: Channel._qos,
    spec.Basic.Consume.INDEX: Channel._consume,
    spec.Basic.Cancel.INDEX: Channel._cancel,
    spec.Basic.Get.INDEX: Channel._get,
    spec.Basic.Ack.INDEX: Channel._ack,
    spec.Basic.Nack.INDEX: Channel._nack,
    spec.Basic.Reject.INDEX: Channel._reject,
    spec.Basic.Recover.INDEX: Channel._recover,
    spec.Basic.RecoverAsync.INDEX: Channel._recover,
    spec.Confirm.Select.INDEX: Channel._confirm_select,
    spec.Tx.Select.INDEX: Channel._tx_select,
    spec.Tx.Commit.INDEX: Channel._tx_commit,
    spec.Tx.Rollback.INDEX: Channel._tx_rollback,
}
