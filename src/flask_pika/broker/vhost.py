"""The virtual host: its exchanges, queues and bindings, and the way of a message between them. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from .arguments import compare_arguments, read_queue_arguments, refuse_unsupported
from .clock import Clock
from .closing import ChannelClosing, ConnectionClosing, not_found, not_implemented, precondition_failed
from .contents import Content
from .exchanges import TYPES, Destination, Exchange, check_headers_binding
from .forwarding import Forwarding
from .frames import counted, fresh_token
from .line import Entry
from .queues import Queue
from .streams import Stream
from .tables import Field, Table

_PREDECLARED = {
    "amq.direct": "direct",
    "amq.fanout": "fanout",
    "amq.topic": "topic",
    "amq.headers": "headers",
    "amq.match": "headers",
}
# What RabbitMQ compares when a queue is declared again. Other arguments mean nothing to it.
_COMPARED = (
    "x-expires",
    "x-message-ttl",
    "x-dead-letter-exchange",
    "x-dead-letter-routing-key",
    "x-dead-letter-strategy",
    "x-max-length",
    "x-max-length-bytes",
    "x-max-priority",
    "x-overflow",
    "x-queue-mode",
    "x-queue-version",
    "x-single-active-consumer",
    "x-delivery-limit",
    "x-max-age",
    "x-stream-max-segment-size-bytes",
    "x-queue-leader-locator",
    "x-quorum-initial-group-size",
    "x-initial-cluster-size",
    "x-max-in-memory-length",
    "x-max-in-memory-bytes",
)


class VirtualHost:
    """One virtual host.

    :param event: told in words of what happens.
    :param watches: whether it is told of each message, too.
    :param retry: seconds from when a dead letter that no queue took is tried again.
    """

    def __init__(
        self,
        name: str,
        clock: Clock,
        retry: float,
        event: Callable[[str], object] = lambda _text: None,
        watches: bool = False,
    ) -> None:
        self.name = name
        self._watches = watches
        self.exchanges: dict[str, Exchange] = {}
        self.queues: dict[str, Queue] = {}
        self._clock = clock
        self._event = event
        self._forwarding = Forwarding(self, clock, retry, event if watches else None)
        for exchange, kind in _PREDECLARED.items():
            self.exchanges[exchange] = Exchange(
                exchange, kind, durable=True, auto_delete=False, internal=False, arguments={}
            )

    # Exchanges

    def exchange(self, name: str) -> Exchange:
        """The exchange of this name, which is not the default one."""
        if name not in self.exchanges:
            raise not_found("exchange", name, self.name)
        return self.exchanges[name]

    def declare_exchange(
        self,
        name: str,
        kind: str,
        *,
        passive: bool,
        durable: bool,
        auto_delete: bool,
        internal: bool,
        arguments: Table,
    ) -> None:
        """Exchange.Declare."""
        name = _stripped(name)
        if passive:
            refuse_default(name)
            self.exchange(name)
            return
        if kind not in TYPES:
            raise ConnectionClosing(503, f"unknown exchange type '{kind}'")
        refuse_default(name)
        where = f"exchange '{name}' in vhost '{self.name}'"
        current = self.exchanges.get(name)
        if current is None:
            if name.startswith("amq."):
                raise ChannelClosing(403, f"exchange name '{name}' contains reserved prefix 'amq.*'")
            alternate = arguments.get("alternate-exchange")
            if alternate is not None and alternate.kind != "longstr":
                raise precondition_failed(
                    f"invalid type '{alternate.kind}' for arg 'alternate-exchange' in {where}"
                )
            self.exchanges[name] = Exchange(
                name, kind, durable=durable, auto_delete=auto_delete, internal=internal, arguments=arguments
            )
            self._event(f"exchange {name!r} declared: {kind}")
            return
        _compare(where, "type", kind, current.kind)
        _compare(where, "durable", durable, current.durable)
        _compare(where, "auto_delete", auto_delete, current.auto_delete)
        _compare(where, "internal", internal, current.internal)
        compare_arguments(where, ["alternate-exchange"], arguments, current.arguments)

    def delete_exchange(self, name: str, if_unused: bool) -> None:
        """Exchange.Delete."""
        name = _stripped(name)
        refuse_default(name)
        if name in _PREDECLARED:
            raise ChannelClosing(
                403, f"deletion of system exchange '{name}' in vhost '{self.name}' not allowed"
            )
        if name not in self.exchanges:
            return
        if if_unused and self.exchanges[name].is_used:
            raise precondition_failed(f"exchange '{name}' in vhost '{self.name}' in use")
        self._remove_exchange(name)

    def _remove_exchange(self, name: str) -> None:
        del self.exchanges[name]
        self._event(f"exchange {name!r} deleted")
        self._forget(Destination(False, name))

    def _forget(self, destination: Destination) -> None:
        """Take away all bindings to it, and the exchanges that were there for them alone, and so on."""
        gone = [destination]
        while gone:
            leaving = gone.pop()
            for exchange in list(self.exchanges.values()):
                if exchange.forget(leaving) and exchange.auto_delete and not exchange.is_used:
                    del self.exchanges[exchange.name]
                    self._event(f"exchange {exchange.name!r} deleted")
                    gone.append(Destination(False, exchange.name))

    # Bindings

    def bind(
        self, destination: Destination, source: str, routing_key: str, arguments: Table, owner: object
    ) -> None:
        """Queue.Bind and Exchange.Bind.

        :param owner: who asks.
        """
        refuse_default(source)
        exchange = self.exchange(source)
        if destination.is_queue:
            self.queue(destination.name, owner)
        else:
            refuse_default(destination.name)
            self.exchange(destination.name)
        if exchange.kind == "headers":
            check_headers_binding(arguments)
        exchange.bind(destination, routing_key, arguments)
        self._event(f"{_said(destination)} bound to exchange {source!r} with key {routing_key!r}")

    def unbind(
        self, destination: Destination, source: str, routing_key: str, arguments: Table, owner: object
    ) -> None:
        """Queue.Unbind and Exchange.Unbind: no error where there is nothing to unbind.

        :param owner: who asks.
        """
        refuse_default(source)
        if not destination.is_queue:
            refuse_default(destination.name)
        exchange = self.exchanges.get(source)
        if exchange is None or not exchange.has(destination, routing_key, arguments):
            return
        if destination.is_queue:
            self.queue(destination.name, owner)
        if exchange.unbind(destination, routing_key, arguments):
            self._event(f"{_said(destination)} unbound from exchange {source!r} with key {routing_key!r}")
            if exchange.auto_delete and not exchange.is_used:
                self._remove_exchange(exchange.name)

    # Queues

    def queue(self, name: str, owner: object = None) -> Queue:
        """The queue of this name.

        :param owner: who asks, for an exclusive queue; None where that does not matter.
        """
        if name not in self.queues:
            raise not_found("queue", name, self.name)
        queue = self.queues[name]
        if owner is not None and queue.owner not in (None, owner):
            raise self._locked(name)
        return queue

    def _locked(self, name: str) -> ChannelClosing:
        return ChannelClosing(
            405,
            f"cannot obtain exclusive access to locked queue '{name}' in vhost '{self.name}'. It could be"
            " originally declared on another connection or the exclusive property value does not match that"
            " of the original declaration.",
        )

    def declare_queue(
        self,
        name: str,
        owner: object,
        *,
        passive: bool,
        durable: bool,
        exclusive: bool,
        auto_delete: bool,
        arguments: Table,
    ) -> Queue:
        """Queue.Declare."""
        name = _stripped(name)
        if passive:
            queue = self.queue(name, owner)
            queue.touch()
            return queue
        where = f"queue '{name}' in vhost '{self.name}'"
        settings = read_queue_arguments(arguments, where)
        if name.startswith("amq."):
            raise ChannelClosing(403, f"queue name '{name}' contains reserved prefix 'amq.*'")
        current = self.queues.get(name)
        if current is not None:
            self._check_equivalence(current, owner, durable, exclusive, auto_delete, arguments)
            current.touch()
            return current
        refuse_unsupported(where, settings.kind, durable, exclusive, auto_delete)
        name = name or f"amq.gen-{fresh_token()}"
        queue = self.queues[name] = (Stream if settings.kind == "stream" else Queue)(
            name,
            arguments,
            settings,
            durable=durable,
            auto_delete=auto_delete,
            owner=owner if exclusive else None,
            keeper=self,
            clock=self._clock,
        )
        self._event(f"queue {queue.name!r} declared")
        return queue

    def _check_equivalence(
        self,
        current: Queue,
        owner: object,
        durable: bool,
        exclusive: bool,
        auto_delete: bool,
        arguments: Table,
    ) -> None:
        where = f"queue '{current.name}' in vhost '{self.name}'"
        if current.owner not in (None, owner) or exclusive != (current.owner is not None):
            raise self._locked(current.name)
        _compare(where, "durable", durable, current.durable)
        _compare(where, "auto_delete", auto_delete, current.auto_delete)
        classic = Field("longstr", b"classic")
        compare_arguments(
            where,
            ["x-queue-type"],
            arguments if current.settings.kind != "classic" else {"x-queue-type": classic, **arguments},
            {"x-queue-type": classic, **current.arguments},
        )
        compare_arguments(where, _COMPARED, arguments, current.arguments)

    def delete_queue(self, name: str, owner: object, *, if_unused: bool, if_empty: bool) -> int:
        """Queue.Delete; how many messages were ready."""
        if name not in self.queues:
            return 0
        queue = self.queue(name, owner)
        where = f"queue '{name}' in vhost '{self.name}'"
        for flag, wanted in (("if-unused", if_unused), ("if-empty", if_empty)):
            if wanted and queue.settings.kind == "quorum":
                raise not_implemented(
                    f"cannot delete {where}. queue.delete operations with {flag} flag set are not supported"
                    " by quorum queues"
                )
        if if_empty and queue.count:
            raise precondition_failed(f"{where} not empty")
        if if_unused and queue.consumers:
            raise precondition_failed(f"{where} in use")
        count = queue.count
        self.remove(queue)
        return count

    def remove(self, queue: Queue) -> None:
        """A queue is gone, and its bindings with it."""
        if self.queues.get(queue.name) is not queue:
            return
        del self.queues[queue.name]
        self._event(f"queue {queue.name!r} deleted")
        self._forget(Destination(True, queue.name))
        queue.delete()

    def connection_ended(self, owner: object) -> None:
        """Its exclusive queues go with it."""
        for queue in [queue for queue in self.queues.values() if queue.owner is owner]:
            self.remove(queue)

    # Messages

    def publish(self, content: Content, routing_keys: list[str]) -> tuple[bool, bool]:
        """Give a message to all queues that it goes to; whether there was one, and whether all took it."""
        queues = self.route(content, content.exchange, routing_keys)
        if self._watches:
            self._event(_said_of(content, queues))
        taken = [queue.publish(content) for queue in queues]
        return bool(queues), all(taken)

    def has_exchange(self, name: str) -> bool:
        """Whether there is such an exchange; the default one there always is."""
        return name == "" or name in self.exchanges

    def route(self, content: Content, exchange: str, routing_keys: Iterable[str]) -> list[Queue]:
        """The queues that a message goes to from an exchange, each once."""
        keys = list(routing_keys)
        if exchange == "":
            return [self.queues[key] for key in dict.fromkeys(keys) if key in self.queues]
        found: dict[Queue, None] = {}
        seen = {exchange}
        ways = [exchange]
        while ways:
            current = self.exchanges.get(ways.pop())
            if current is None:
                continue
            destinations = current.route(content, keys)
            if not destinations and current.alternate is not None:
                destinations = [Destination(False, current.alternate)]
            for destination in destinations:
                if destination.is_queue:
                    if destination.name in self.queues:
                        found[self.queues[destination.name]] = None
                elif destination.name not in seen:
                    seen.add(destination.name)
                    ways.append(destination.name)
        return list(found)

    def dead_letter(self, queue: Queue, entry: Entry, reason: str) -> None:
        """A queue gives a message up: it goes to the queue's dead-letter exchange, if there is one."""
        exchange = queue.settings.dead_letter_exchange
        if self._watches:
            to = "dropped" if exchange is None else f"a dead letter to exchange {exchange!r}"
            where = f"in {queue.name!r}"
            what = counted(entry.content.size, f"byte {where} is", f"bytes {where} are")
            self._event(f"{what} {reason}: {to}")
        self._forwarding.bury(queue, entry, reason)


def _said_of(content: Content, queues: list[Queue]) -> str:
    where = ", ".join(repr(queue.name) for queue in queues) or "no queue"
    to = f"exchange {content.exchange!r} with key {content.routing_key!r}"
    return f"{counted(content.size, 'byte', 'bytes')} to {to}: to {where}"


def _said(destination: Destination) -> str:
    return f"{'queue' if destination.is_queue else 'exchange'} {destination.name!r}"


def _stripped(name: str) -> str:
    """RabbitMQ takes line ends out of the names that it is given."""
    return name.replace("\r", "").replace("\n", "")


def refuse_default(name: str) -> None:
    """The default exchange is as it is."""
    if name == "":
        raise ChannelClosing(403, "operation not permitted on the default exchange")


def _compare(where: str, what: str, received: object, current: object) -> None:
    if received != current:
        shown = [str(one).lower() if isinstance(one, bool) else one for one in (received, current)]
        raise precondition_failed(
            f"inequivalent arg '{what}' for {where}: received '{shown[0]}' but current is '{shown[1]}'"
        )
