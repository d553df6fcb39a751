"""A channel: what a client asks of the broker, and what it is answered."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from itertools import takewhile
from typing import Any, NamedTuple

from pika import spec

from . import declaring
from .arguments import integer
from .assembly import Assembled, Assembly
from .client import Client
from .closing import ChannelClosing, ConnectionClosing, not_implemented, precondition_failed
from .contents import Content, check_publishable
from .declaring import REPLY_TO
from .frames import counted, fresh_token, make, name_of
from .line import Entry
from .queues import Queue
from .replies import Replies
from .subscriptions import Subscription, Unacked, acked, rejected, requeued
from .tables import Field, Malformed, raw_of


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
        self.vhost = client.vhost
        self._watched = client.watched
        self._subscriptions: dict[str, Subscription] = {}
        # By their tags, which ascend; from whose front it is quick to take.
        self._unacked: OrderedDict[int, Unacked] = OrderedDict()
        self._deliveries = 0
        self._publishes: int | None = None  # None: not in confirm mode
        self._transaction: list[tuple[spec.Basic.Publish, Content] | _Settlement] | None = None
        self.last_queue: str | None = None
        self._replies = Replies(self)
        self._assembly = Assembly()

    @property
    def memory(self) -> int:
        """Bytes that came and are in no queue."""
        waiting = (done[1].weight for done in self._transaction or () if not isinstance(done, _Settlement))
        return self._assembly.memory + sum(waiting)

    # Frames

    def method(self, method: Any) -> None:
        """A method came."""
        self._assembly.expect_method()
        if method.INDEX == spec.Basic.Publish.INDEX:
            if method.immediate:
                raise not_implemented("immediate=true")
            self._assembly.begin(method)
            return
        handler = _HANDLERS.get(method.INDEX)
        if handler is None:
            raise ConnectionClosing(503, "unimplemented method")
        handler(self, method)

    def content_header(self, payload: bytes) -> None:
        """A content header came."""
        self._publish(self._assembly.header(payload))

    def content_body(self, payload: bytes) -> None:
        """A piece of a body came."""
        self._publish(self._assembly.body(payload))

    # Publishing

    def _publish(self, whole: Assembled | None) -> None:
        if whole is None:
            return
        method = whole.publish
        exchange_name, key = name_of(method.exchange), name_of(method.routing_key)
        try:
            content = Content(exchange_name, key, whole.header, whole.body)
        except Malformed as exc:
            raise ConnectionClosing(541, "") from exc
        if content.exchange != "":
            exchange = self.vhost.exchange(content.exchange)
            if exchange.internal:
                where = f"exchange '{content.exchange}' in vhost '{self.vhost.name}'"
                raise ChannelClosing(403, f"cannot publish to internal {where}")
        check_publishable(content, self.client.user)
        content = self._replies.addressed(content)
        if self._transaction is not None:
            self._transaction.append((method, content))
            return
        tag = 0
        if self._publishes is not None:
            tag = self._publishes = self._publishes + 1
        if tag and self.client.takes_nacked():
            self.client.event(f"message {tag} of channel {self.number} is nacked on demand")
            self._confirm(tag, False)
            return
        taken = self._route(method, content)
        if tag:
            self._confirm(tag, taken)

    def _confirm(self, tag: int, ack: bool) -> None:
        self.confirms.append((tag, ack))
        self.client.confirm_later(self)

    def _route(self, method: spec.Basic.Publish, content: Content) -> bool:
        """Give a message to its queues; whether all took it."""
        keys = content.routing_keys()
        if "BCC" in content.headers:
            content = content.with_headers(
                {name: field for name, field in content.headers.items() if name != "BCC"}
            )
        routed, taken = self.vhost.publish(content, keys)
        routed = routed or self._replies.give(content)
        if not routed and method.mandatory:
            self.client.send(
                self.number,
                make(spec.Basic.Return)(
                    reply_code=spec.NO_ROUTE,
                    reply_text="NO_ROUTE",
                    exchange=raw_of(content.exchange),
                    routing_key=raw_of(content.routing_key),
                ),
                content,
            )
        return taken

    # Delivering

    def deliver(self, subscription: Subscription, queue: Queue, entry: Entry) -> None:
        """Send a message to a consumer."""
        tag = self._hand_out(queue, entry, subscription)
        self._send_delivery(subscription.tag, tag, entry.redelivered, queue.shown(entry))

    def deliver_reply(self, content: Content) -> None:
        """Send an answer to whom it is for."""
        self._deliveries += 1
        self._send_delivery(self._replies.tag or "", self._deliveries, False, content)

    def _send_delivery(self, consumer_tag: str, tag: int, redelivered: bool, content: Content) -> None:
        self.client.send(
            self.number,
            make(spec.Basic.Deliver)(
                consumer_tag=raw_of(consumer_tag),
                delivery_tag=tag,
                redelivered=redelivered,
                exchange=raw_of(content.exchange),
                routing_key=raw_of(content.routing_key),
            ),
            content,
        )

    def _hand_out(
        self, queue: Queue, entry: Entry, subscription: Subscription | None, no_ack: bool = False
    ) -> int:
        self._deliveries += 1
        if self._watched:
            size = counted(entry.content.size, "byte", "bytes")
            self.client.event(f"gets {size} from {queue.name!r}, delivery {self._deliveries}")
        if no_ack or (subscription is not None and subscription.no_ack):
            queue.ack(entry)
            return self._deliveries
        self._unacked[self._deliveries] = Unacked(queue, entry, subscription)
        if subscription is not None:
            subscription.unacked += 1
            self.unacked_of_all += 1
        return self._deliveries

    def _get(self, method: spec.Basic.Get) -> None:
        queue = self.queue(method.queue)
        self.refuse_stream(queue, "basic.get")
        entry = queue.fetch()
        if entry is None:
            self.client.send(self.number, make(spec.Basic.GetEmpty)())
            return
        tag = self._hand_out(queue, entry, None, method.no_ack)
        content = queue.shown(entry, fetched=True)
        self.client.send(
            self.number,
            make(spec.Basic.GetOk)(
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
        tag = name_of(method.consumer_tag) or f"amq.ctag-{fresh_token()}"
        if tag in self._subscriptions or tag == self._replies.tag:
            raise ConnectionClosing(530, f"attempt to reuse consumer tag '{tag}'")
        if name_of(method.queue) == REPLY_TO:
            self._replies.begin(tag, method.no_ack)
            self.answer(method, make(spec.Basic.ConsumeOk)(consumer_tag=raw_of(tag)))
            return
        queue = self.queue(method.queue)
        where = f"queue '{queue.name}' in vhost '{self.vhost.name}'"
        if queue.settings.kind != "classic" and self.prefetch_of_all:
            raise not_implemented(f"{where} does not support global qos")
        offset = method.arguments.get("x-stream-offset")
        if offset is not None and queue.settings.kind != "stream":
            raise precondition_failed(
                f"invalid arg 'x-stream-offset' for {where} of queue type rabbit_{queue.settings.kind}_queue"
            )
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
            offset=offset,
        )
        self._subscriptions[tag] = subscription
        self.client.event(f"consumes from {queue.name!r} as {tag!r}")
        self.answer(method, make(spec.Basic.ConsumeOk)(consumer_tag=raw_of(tag)))
        queue.add_consumer(subscription)

    def _cancel(self, method: spec.Basic.Cancel) -> None:
        tag = name_of(method.consumer_tag)
        subscription = self._subscriptions.pop(tag, None)
        self.client.event(f"consumes no more as {tag!r}")
        self.answer(method, make(spec.Basic.CancelOk)(consumer_tag=raw_of(tag)))
        if subscription is not None:
            subscription.queue.remove_consumer(subscription)
        elif tag == self._replies.tag:
            self._replies.end()

    def subscription_ended(self, subscription: Subscription) -> None:
        """Its queue is gone: the client is told, if it knows how to hear that."""
        self._subscriptions.pop(subscription.tag, None)
        if self.client.knows("consumer_cancel_notify"):
            self.client.send(
                self.number, make(spec.Basic.Cancel)(consumer_tag=raw_of(subscription.tag), nowait=True)
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
            self.client.send(self.number, make(spec.Basic.QosOk)())
            self.serve()
        else:
            self.prefetch = method.prefetch_count
            self.client.send(self.number, make(spec.Basic.QosOk)())

    # Settling

    def _ack(self, method: spec.Basic.Ack) -> None:
        self._settle(self._take(method.delivery_tag, method.multiple), acked)

    def _nack(self, method: spec.Basic.Nack) -> None:
        self._give_back(self._take(method.delivery_tag, method.multiple), method.requeue)

    def _reject(self, method: spec.Basic.Reject) -> None:
        self._give_back(self._take(method.delivery_tag, False), method.requeue)

    def _give_back(self, taken: list[tuple[int, Unacked]], requeue: bool) -> None:
        for _tag, unacked in taken:
            self.refuse_stream(unacked.queue, "basic.nack and basic.reject")
        self._settle(taken, requeued if requeue else rejected)

    def _take(self, tag: int, multiple: bool) -> list[tuple[int, Unacked]]:
        if multiple and tag == 0:
            tags = list(self._unacked)
        elif tag not in self._unacked:
            raise precondition_failed(f"unknown delivery tag {tag}")
        else:
            tags = list(takewhile(lambda one: one <= tag, self._unacked)) if multiple else [tag]
        return [(one, self._unacked.pop(one)) for one in tags]

    def _settle(self, taken: list[tuple[int, Unacked]], settle: Callable[[list[Unacked]], object]) -> None:
        if self._transaction is not None:
            self._transaction.append(_Settlement(taken, settle))
            return
        self._settle_now([unacked for _tag, unacked in taken], settle)

    def _settle_now(self, taken: list[Unacked], settle: Callable[[list[Unacked]], object]) -> None:
        if self._watched:
            # In the log, what was done has its function's name: acked, rejected, requeued.
            self.client.event(f"has {settle.__name__} {counted(len(taken), 'delivery', 'deliveries')}")
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
            self.client.send(self.number, make(spec.Basic.RecoverOk)())
        self._settle_now(self._take_all(), requeued)

    def _take_all(self) -> list[Unacked]:
        taken, self._unacked = list(self._unacked.values()), OrderedDict()
        return taken

    # Confirm and tx

    def _confirm_select(self, method: spec.Confirm.Select) -> None:
        if self._transaction is not None:
            raise precondition_failed("cannot switch from tx to confirm mode")
        if self._publishes is None:
            self._publishes = 0
        self.answer(method, make(spec.Confirm.SelectOk)())

    def _tx_select(self, _method: spec.Tx.Select) -> None:
        if self._publishes is not None:
            raise precondition_failed("cannot switch from confirm to tx mode")
        if self._transaction is None:
            self._transaction = []
        self.client.send(self.number, make(spec.Tx.SelectOk)())

    def _tx_commit(self, _method: spec.Tx.Commit) -> None:
        for done in self._end_transaction():
            if isinstance(done, _Settlement):
                self._settle_now([unacked for _tag, unacked in done.unacked], done.settle)
            else:
                self._route(*done)
        self.client.send(self.number, make(spec.Tx.CommitOk)())

    def _tx_rollback(self, _method: spec.Tx.Rollback) -> None:
        for done in self._end_transaction():
            if isinstance(done, _Settlement):
                self._unacked.update(done.unacked)
        self._unacked = OrderedDict(sorted(self._unacked.items()))
        self.client.send(self.number, make(spec.Tx.RollbackOk)())

    def _end_transaction(self) -> list[tuple[spec.Basic.Publish, Content] | _Settlement]:
        if self._transaction is None:
            raise precondition_failed("channel is not transactional")
        done, self._transaction = self._transaction, []
        return done

    # Declaring

    def queue(self, name: object) -> Queue:
        """The queue of this name, if this client may use it."""
        return self.vhost.queue(self.named(name), self.client)

    def refuse_stream(self, queue: Queue, verb: str) -> None:
        """Streams are not for that."""
        if queue.settings.kind == "stream":
            where = f"queue '{queue.name}' in vhost '{self.vhost.name}'"
            raise not_implemented(f"{verb} not supported by stream queues {where}")

    def named(self, name: object) -> str:
        """A queue's name; the empty one means the queue that was declared last on this channel."""
        text = name_of(name)
        if text:
            return text
        if self.last_queue is None:
            raise ChannelClosing(404, "no previously declared queue")
        return self.last_queue

    def _access_request(self, _method: spec.Access.Request) -> None:
        # Of AMQP 0-8; RabbitMQ answers it still.
        self.client.send(self.number, make(spec.Access.RequestOk)(ticket=1))

    def _flow(self, method: spec.Channel.Flow) -> None:
        if not method.active:
            raise not_implemented("active=false")
        self.client.send(self.number, make(spec.Channel.FlowOk)(active=True))

    def answer(self, method: Any, answer: Any) -> None:
        """Send an answer, if the client wants one."""
        if not method.nowait:
            self.client.send(self.number, answer)

    # The end

    def end(self) -> None:
        """The channel is gone: what was not settled goes back to its queues."""
        subscriptions, self._subscriptions = list(self._subscriptions.values()), {}
        queues = list(dict.fromkeys(one.queue for one in subscriptions))
        for queue in queues:
            # All of them before the first message goes back: none of them is to get what others give back.
            queue.leave(self)
        if self._replies.tag is not None:
            self._replies.end()
        taken = self._take_all()
        for done in self._transaction or ():
            if isinstance(done, _Settlement):
                taken += [unacked for _tag, unacked in done.unacked]
        requeued(taken)
        for queue in queues:
            queue.consumer_left()


_HANDLERS: dict[int, Callable[[Channel, Any], None]] = {
    **declaring.HANDLERS,
    spec.Access.Request.INDEX: Channel._access_request,
    spec.Channel.Flow.INDEX: Channel._flow,
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
