"""What an app says it needs at the broker: exchanges, queues and bindings; kept, once each. Pure."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, NamedTuple

from .errors import TopologyError

ExchangeType = str  #: direct, topic, fanout, headers, or a plugin's, which begins with x-
QueueType = Literal["quorum", "classic", "stream"]
Overflow = Literal["drop-head", "reject-publish", "reject-publish-dlx"]
Strategy = Literal["at-most-once", "at-least-once"]
Bind = Iterable[Any]  #: what a user binds to; topology_checks makes a Binding of each

#: What is put to a queue's name for the queue of its dead letters.
DEAD = ".dead"
#: Between a queue's name and a delay, in the name of a queue in which its retries wait.
RETRY = ".retry."
#: What every virtual host has.
PREDECLARED = {
    "amq.direct": "direct",
    "amq.fanout": "fanout",
    "amq.topic": "topic",
    "amq.headers": "headers",
    "amq.match": "headers",
}


class Binding(NamedTuple):
    """From an exchange to a queue, or to another exchange."""

    exchange: str
    routing_key: str = ""
    arguments: Mapping[str, Any] = {}

    def __str__(self) -> str:
        more = f" with {dict(self.arguments)}" if self.arguments else ""
        return f"exchange {self.exchange!r} by {self.routing_key!r}{more}"


@dataclass(frozen=True)
class Exchange:
    """An exchange, as an app needs it: see :meth:`flask_pika.Pika.exchange`."""

    name: str
    type: ExchangeType = "direct"
    durable: bool = True
    auto_delete: bool = False
    internal: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)
    bindings: tuple[Binding, ...] = ()

    @property
    def is_predeclared(self) -> bool:
        """Whether every virtual host has it: it cannot be declared otherwise, or at all."""
        return self.name == "" or self.name.startswith("amq.")

    def __str__(self) -> str:
        return f"exchange {self.name!r}"


@dataclass(frozen=True)
class Queue:
    """A queue, as an app needs it: see :meth:`flask_pika.Pika.queue`."""

    name: str
    type: QueueType = "quorum"
    durable: bool = True
    exclusive: bool = False
    auto_delete: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)
    bindings: tuple[Binding, ...] = ()
    #: Whether ``<name>.dead`` belongs to it.
    dead_letter: bool = False

    @property
    def dead(self) -> str:
        """The queue of its dead letters."""
        return self.name + DEAD

    def __str__(self) -> str:
        return f"queue {self.name!r}"


class Topology:
    """The exchanges and queues of one ``Pika`` object, for all of its apps."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._exchanges: dict[str, Exchange] = {}
        self._queues: dict[str, Queue] = {}
        #: Grows with each thing that is registered, so that who has declared all knows that there is more.
        self.version = 0

    def add(self, thing: Exchange | Queue) -> None:
        """Register it, unless the same is registered already.

        :raises TopologyError: it was registered before, and differently; or a binding makes no sense.
        """
        kept: dict[str, Any] = self._exchanges if isinstance(thing, Exchange) else self._queues
        with self._lock:
            known = kept.get(thing.name)
            if known is not None:
                differences = "; ".join(_differences(known, thing))
                if differences:
                    raise TopologyError(f"{thing} is registered twice, differently: {differences}")
                return
            self._check_bindings(thing)
            kept[thing.name] = thing
            self.version += 1

    def _check_bindings(self, thing: Exchange | Queue) -> None:
        """A binding and its exchange, whichever is registered first."""
        for binding in thing.bindings:
            _check_binding(thing, binding, self._exchanges.get(binding.exchange))
        if isinstance(thing, Exchange):
            others: tuple[Exchange | Queue, ...] = (*self._exchanges.values(), *self._queues.values())
            for other in others:
                for binding in other.bindings:
                    if binding.exchange == thing.name:
                        _check_binding(other, binding, thing)

    @property
    def exchanges(self) -> list[Exchange]:
        """In the order of registration."""
        return list(self._exchanges.values())

    @property
    def queues(self) -> list[Queue]:
        """In the order of registration."""
        return list(self._queues.values())

    def exchange(self, name: str) -> Exchange | None:
        """The exchange of this name, if it is registered."""
        return self._exchanges.get(name)

    def queue(self, name: str) -> Queue | None:
        """The queue of this name, if it is registered."""
        return self._queues.get(name)


def _check_binding(thing: Exchange | Queue, binding: Binding, exchange: Exchange | None) -> None:
    kind = PREDECLARED.get(binding.exchange) if exchange is None else exchange.type
    by_headers = "x-match" in binding.arguments
    if kind in ("direct", "topic", "fanout") and by_headers:
        raise TopologyError(
            f"{thing}: its binding to exchange {binding.exchange!r} is by headers, at which a {kind} exchange"
            " does not look; give a routing key, or have an exchange of type 'headers'"
        )
    if kind == "headers" and binding.routing_key and not by_headers:
        raise TopologyError(
            f"{thing}: its binding to exchange {binding.exchange!r} is by a routing key, at which a headers"
            " exchange does not look: it would pass every message; give a dict of headers"
        )


_MISSING = object()


def _differences(first: Exchange | Queue, second: Exchange | Queue) -> Iterator[str]:
    """What differs, in words; with both values. 1 and True differ, as they do in AMQP."""
    for one in fields(first):
        here, there = getattr(first, one.name), getattr(second, one.name)
        if one.name == "arguments":
            # The type of a queue is told as such.
            for key in (key for key in {**here, **there} if key != "x-queue-type"):
                values = [table.get(key, _MISSING) for table in (here, there)]
                if _typed(values[0]) != _typed(values[1]):
                    shown = ["not there" if value is _MISSING else repr(value) for value in values]
                    yield f"its argument {key!r} is {shown[0]} and {shown[1]}"
        elif one.name == "bindings":
            if {*map(_typed, here)} != {*map(_typed, there)}:
                shown = [", ".join(map(str, bindings)) or "nothing" for bindings in (here, there)]
                yield f"it is bound to {shown[0]} and to {shown[1]}"
        elif here != there:
            yield f"{one.name} is {here!r} and {there!r}"


def _typed(value: Any) -> Any:
    """Something that is equal to another's, when AMQP carries the same for both."""
    if isinstance(value, Mapping):
        return frozenset((key, _typed(one)) for key, one in value.items())
    if isinstance(value, (list, tuple)):
        return tuple(map(_typed, value))
    return type(value), value
