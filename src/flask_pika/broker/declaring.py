"""Declaring: what a channel does with exchanges, queues and bindings."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pika import spec

from .closing import ChannelClosing
from .exchanges import Destination
from .frames import counted, make, name_of
from .tables import raw_of

if TYPE_CHECKING:
    from .channel import Channel

#: https://www.rabbitmq.com/docs/direct-reply-to
REPLY_TO = "amq.rabbitmq.reply-to"


def _exchange_declare(channel: Channel, method: Any) -> None:
    channel.vhost.declare_exchange(
        name_of(method.exchange),
        name_of(method.type),
        passive=method.passive,
        durable=method.durable,
        auto_delete=method.auto_delete,
        internal=method.internal,
        arguments=method.arguments,
    )
    channel.answer(method, make(spec.Exchange.DeclareOk)())


def _exchange_delete(channel: Channel, method: Any) -> None:
    channel.vhost.delete_exchange(name_of(method.exchange), method.if_unused)
    channel.answer(method, make(spec.Exchange.DeleteOk)())


def _exchange_bind(channel: Channel, method: Any) -> None:
    destination = Destination(False, name_of(method.destination))
    channel.vhost.bind(
        destination, name_of(method.source), name_of(method.routing_key), method.arguments, channel.client
    )
    channel.answer(method, make(spec.Exchange.BindOk)())


def _exchange_unbind(channel: Channel, method: Any) -> None:
    destination = Destination(False, name_of(method.destination))
    channel.vhost.unbind(
        destination, name_of(method.source), name_of(method.routing_key), method.arguments, channel.client
    )
    channel.answer(method, make(spec.Exchange.UnbindOk)())


def _queue_declare(channel: Channel, method: Any) -> None:
    name = name_of(method.queue)
    if method.passive and name.startswith(REPLY_TO):
        _reply_declare(channel, method, name)
        return
    queue = channel.vhost.declare_queue(
        name,
        channel.client,
        passive=method.passive,
        durable=method.durable,
        exclusive=method.exclusive,
        auto_delete=method.auto_delete,
        arguments=method.arguments,
    )
    channel.last_queue = queue.name
    _declared(channel, method, queue.name, queue.count, len(queue.consumers))


def _reply_declare(channel: Channel, method: Any, name: str) -> None:
    token = name.removeprefix(f"{REPLY_TO}.")
    if name != REPLY_TO and token not in channel.client.replies:
        raise ChannelClosing(404, f"no queue '{name}' in vhost '{channel.vhost.name}'")
    _declared(channel, method, name, 0, 1)


def _declared(channel: Channel, method: Any, name: str, messages: int, consumers: int) -> None:
    channel.answer(
        method,
        make(spec.Queue.DeclareOk)(queue=raw_of(name), message_count=messages, consumer_count=consumers),
    )


def _queue_bind(channel: Channel, method: Any) -> None:
    _change_binding(channel, method, channel.vhost.bind)
    channel.answer(method, make(spec.Queue.BindOk)())


def _queue_unbind(channel: Channel, method: Any) -> None:
    _change_binding(channel, method, channel.vhost.unbind)
    channel.client.send(channel.number, make(spec.Queue.UnbindOk)())


def _change_binding(channel: Channel, method: Any, change: Callable[..., object]) -> None:
    name, key = channel.named(method.queue), name_of(method.routing_key)
    if not method.queue and not key:
        key = name
    change(Destination(True, name), name_of(method.exchange), key, method.arguments, channel.client)


def _queue_purge(channel: Channel, method: Any) -> None:
    queue = channel.queue(method.queue)
    channel.refuse_stream(queue, "queue.purge")
    count = queue.purge()
    channel.client.event(f"{queue.name!r} is purged of {counted(count, 'message', 'messages')}")
    channel.answer(method, make(spec.Queue.PurgeOk)(message_count=count))


def _queue_delete(channel: Channel, method: Any) -> None:
    count = channel.vhost.delete_queue(
        channel.named(method.queue), channel.client, if_unused=method.if_unused, if_empty=method.if_empty
    )
    channel.answer(method, make(spec.Queue.DeleteOk)(message_count=count))


HANDLERS: dict[int, Callable[[Channel, Any], None]] = {
    spec.Exchange.Declare.INDEX: _exchange_declare,
    spec.Exchange.Delete.INDEX: _exchange_delete,
    spec.Exchange.Bind.INDEX: _exchange_bind,
    spec.Exchange.Unbind.INDEX: _exchange_unbind,
    spec.Queue.Declare.INDEX: _queue_declare,
    spec.Queue.Bind.INDEX: _queue_bind,
    spec.Queue.Unbind.INDEX: _queue_unbind,
    spec.Queue.Purge.INDEX: _queue_purge,
    spec.Queue.Delete.INDEX: _queue_delete,
}
