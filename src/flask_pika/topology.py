"""What an app says it needs at the broker: exchanges, queues and bindings; checked, and kept. Pure."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, NamedTuple

from .errors import InvalidMessage, TopologyError
from .message import SHORT, check_table
from .params import is_finite, type_of

ExchangeType = str
QueueType = Literal["quorum", "classic", "stream"]
Overflow = Literal["drop-head", "reject-publish", "reject-publish-dlx"]
Strategy = Literal["at-most-once", "at-least-once"]

#: What is put to a queue's name for the queue of its dead letters.
DEAD = ".dead"
#: Attempts that a quorum queue with ``dead_letter=True`` gives a message, whose worker dies each time, say.
DELIVERY_LIMIT = 20
_TYPES = ("direct", "topic", "fanout", "headers")
#: RabbitMQ's timers count milliseconds; ten years of them.
_LONGEST = 315_360_000
_MOST = 2**63 - 1


class Binding(NamedTuple):
    """From an exchange to a queue, or to another exchange."""

    exchange: str
    routing_key: str = ""
    arguments: Mapping[str, Any] = {}

    def __str__(self) -> str:
        more = f" with {dict(self.arguments)}" if self.arguments else ""
        return f"{self.exchange!r} by {self.routing_key!r}{more}"


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


Bind = Iterable[tuple[Any, ...]]


def make_exchange(
    name: object,
    type: object,  # noqa: A002 - AMQP's name for it
    *,
    durable: object,
    auto_delete: object,
    internal: object,
    alternate_exchange: object,
    bind: object,
    arguments: object,
) -> Exchange:
    """An exchange of what a user wrote.

    :raises TopologyError: names what is wrong, and what is expected.
    """
    name = _name("an exchange", name)
    where = f"exchange {name!r}"
    if not isinstance(type, str) or not (type in _TYPES or type.startswith("x-")):
        raise TopologyError(f"{where}: type is {type!r}; expected {', '.join(_TYPES)}, or a plugin's x-...")
    for option, value in (("durable", durable), ("auto_delete", auto_delete), ("internal", internal)):
        _check_bool(where, option, value)
    table = _table(where, arguments)
    if alternate_exchange is not None:
        _put(where, table, "alternate-exchange", _name_of(where, "alternate_exchange", alternate_exchange))
    made = Exchange(
        name, type, bool(durable), bool(auto_delete), bool(internal), table, _bindings(where, bind)
    )
    if made.is_predeclared and (made.arguments or not durable or auto_delete or internal):
        raise TopologyError(f"{where} is RabbitMQ's own: name and type are all that can be said of it")
    return made


def make_queue(name: object, *, bind: object, dead_letter: object, arguments: object, **said: Any) -> Queue:
    """A queue of what a user wrote.

    :param said: the options of :meth:`flask_pika.Pika.queue`; None is what was not said.
    :raises TopologyError: names what is wrong, or contradicts itself, or is refused by RabbitMQ 4.
    """
    name = _name("a queue", name)
    where = f"queue {name!r}"
    if name.startswith("amq."):
        raise TopologyError(f"{where}: RabbitMQ keeps names that begin with 'amq.' for itself")
    kind = said.pop("type")
    if kind not in ("quorum", "classic", "stream"):
        raise TopologyError(f"{where}: type is {kind!r}; expected 'quorum', 'classic' or 'stream'")
    flags = {option: said.pop(option) for option in ("durable", "exclusive", "auto_delete")}
    for option, value in flags.items():
        _check_bool(where, option, value)
    _check_bool(where, "dead_letter", dead_letter)
    _check_flags(where, kind, **flags)
    table = _table(where, arguments)
    if kind != "classic":  # which is what RabbitMQ makes when nothing is said
        _put(where, table, "x-queue-type", kind)
    if dead_letter:
        _dead_letters(where, name, kind, said)
    for option, value in said.items():
        if value is not None:
            _option(where, kind, table, option, value)
    _check_together(where, kind, said)
    return Queue(
        name, kind, arguments=table, bindings=_bindings(where, bind), dead_letter=bool(dead_letter), **flags
    )


def _check_flags(where: str, kind: str, durable: bool, exclusive: bool, auto_delete: bool) -> None:
    if kind != "classic":
        wrong = [name for name, is_so in (("exclusive", exclusive), ("auto_delete", auto_delete)) if is_so]
        wrong += [] if durable else ["durable=False"]
        if wrong:
            raise TopologyError(
                f"{where}: a {kind} queue is durable and nobody's own, and {', '.join(wrong)} contradicts"
                ' that; use type="classic"'
            )
    elif not durable and not exclusive:
        raise TopologyError(
            f"{where}: RabbitMQ 4 refuses transient queues that are not exclusive; leave durable=False out,"
            " or say exclusive=True"
        )


def _dead_letters(where: str, name: str, kind: str, said: dict[str, Any]) -> None:
    """What ``dead_letter=True`` stands for."""
    if kind == "stream":
        raise TopologyError(f"{where}: a stream keeps what was rejected, and has no dead letters")
    for option in ("dead_letter_exchange", "dead_letter_routing_key"):
        if said.get(option) is not None:
            raise TopologyError(f"{where}: dead_letter=True is a dead_letter_exchange; say one of the two")
    said["dead_letter_exchange"] = ""
    said["dead_letter_routing_key"] = name + DEAD
    if kind != "quorum":
        return
    if said.get("delivery_limit") is None:
        said["delivery_limit"] = DELIVERY_LIMIT
    if said.get("dead_letter_strategy") is None and said.get("overflow") in (None, "reject-publish"):
        # Nothing of it is lost, whoever crashes in between.
        said["dead_letter_strategy"], said["overflow"] = "at-least-once", "reject-publish"


#: Each option: its argument at the broker, and the types of queues that take it.
_OPTIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "message_ttl": ("x-message-ttl", ("classic", "quorum")),
    "expires": ("x-expires", ("classic", "quorum")),
    "max_length": ("x-max-length", ("classic", "quorum")),
    "max_length_bytes": ("x-max-length-bytes", ("classic", "quorum", "stream")),
    "overflow": ("x-overflow", ("classic", "quorum")),
    "delivery_limit": ("x-delivery-limit", ("quorum",)),
    "dead_letter_exchange": ("x-dead-letter-exchange", ("classic", "quorum")),
    "dead_letter_routing_key": ("x-dead-letter-routing-key", ("classic", "quorum")),
    "dead_letter_strategy": ("x-dead-letter-strategy", ("quorum",)),
    "single_active_consumer": ("x-single-active-consumer", ("classic", "quorum")),
    "max_priority": ("x-max-priority", ("classic",)),
    "max_age": ("x-max-age", ("stream",)),
    "max_segment_size": ("x-stream-max-segment-size-bytes", ("stream",)),
}
_WORDS: dict[str, tuple[str, ...]] = {
    "overflow": ("drop-head", "reject-publish", "reject-publish-dlx"),
    "dead_letter_strategy": ("at-most-once", "at-least-once"),
}


def _option(where: str, kind: str, table: dict[str, Any], option: str, value: Any) -> None:
    argument, kinds = _OPTIONS[option]
    if kind not in kinds:
        raise TopologyError(
            f"{where}: {option} is for {' and '.join(kinds)} queues, and this is a {kind} one"
        )
    _put(where, table, argument, _value(where, option, value))


def _value(where: str, option: str, value: Any) -> Any:
    if option in ("message_ttl", "expires"):
        least = 0.001 if option == "expires" else 0
        if not is_finite(value) or not least <= value <= _LONGEST:
            raise TopologyError(
                f"{where}: {option} is {value!r}; expected seconds, from {least} to {_LONGEST}"
            )
        return max(round(value * 1000), 1 if least else 0)
    if option in _WORDS:
        if value not in _WORDS[option]:
            raise TopologyError(f"{where}: {option} is {value!r}; expected {' or '.join(_WORDS[option])}")
        return value
    if option == "dead_letter_exchange":
        return _name_of(where, option, value)
    if option == "dead_letter_routing_key":
        return _short(where, option, value)
    if option == "single_active_consumer":
        _check_bool(where, option, value)
        return value
    if option == "max_age":
        if not isinstance(value, str) or not re.fullmatch(r"[0-9]+[YMDhms]", value):
            raise TopologyError(
                f"{where}: max_age is {value!r}; expected a number and a unit, such as '7D' or '12h'"
            )
        return value
    most = 255 if option == "max_priority" else _MOST
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise TopologyError(f"{where}: {option} is {value!r}; expected a number from 0 to {most}")
    return value


def _check_together(where: str, kind: str, said: Mapping[str, Any]) -> None:
    """What RabbitMQ takes, each by itself, and makes no sense together."""
    if said.get("dead_letter_routing_key") is not None and said.get("dead_letter_exchange") is None:
        raise TopologyError(
            f"{where}: a dead_letter_routing_key without a dead_letter_exchange leads nowhere"
        )
    if kind == "quorum" and said.get("overflow") == "reject-publish-dlx":
        raise TopologyError(
            f"{where}: reject-publish-dlx is for classic queues; a quorum queue has reject-publish"
        )
    if said.get("dead_letter_strategy") == "at-least-once":
        if said.get("dead_letter_exchange") is None:
            raise TopologyError(f"{where}: dead_letter_strategy is for a queue with a dead_letter_exchange")
        if said.get("overflow") != "reject-publish":
            raise TopologyError(
                f"{where}: dead_letter_strategy='at-least-once' works with overflow='reject-publish' alone"
            )
    bounded = said.get("max_length") is not None or said.get("max_length_bytes") is not None
    if (
        said.get("overflow") is not None
        and not bounded
        and said.get("dead_letter_strategy") != "at-least-once"
    ):
        raise TopologyError(f"{where}: overflow is for a queue with max_length or max_length_bytes")


def _name(what: str, value: object) -> str:
    if not isinstance(value, str) or not value:
        raise TopologyError(f"{what}'s name is {value!r}; expected text")
    return _short(f"{what} called {value[:40]!r}", "name", value)


def _name_of(where: str, option: str, value: object) -> str:
    return value.name if isinstance(value, Exchange) else _short(where, option, value)


def _short(where: str, option: str, value: object) -> str:
    if not isinstance(value, str):
        raise TopologyError(f"{where}: {option} is {type_of(value)}; expected text")
    try:
        length = len(value.encode())
    except UnicodeError:
        raise TopologyError(f"{where}: {option} has lone surrogates, which cannot be sent") from None
    if length > SHORT:
        raise TopologyError(f"{where}: {option} has {length} bytes; AMQP carries {SHORT} at the most")
    return value


def _check_bool(where: str, option: str, value: object) -> None:
    if not isinstance(value, bool):
        raise TopologyError(f"{where}: {option} is {value!r}; expected True or False")


def _table(where: str, arguments: object) -> dict[str, Any]:
    try:
        return {} if arguments is None else check_table("arguments", arguments)
    except InvalidMessage as exc:
        raise TopologyError(f"{where}: {exc}") from exc


def _put(where: str, table: dict[str, Any], argument: str, value: object) -> None:
    if argument in table and table[argument] != value:
        raise TopologyError(
            f"{where}: arguments[{argument!r}] is {table[argument]!r}, and an option says {value!r}"
        )
    table[argument] = value


def _bindings(where: str, bind: object) -> tuple[Binding, ...]:
    if isinstance(bind, (str, bytes, Mapping)) or not isinstance(bind, Iterable):
        raise TopologyError(
            f"{where}: bind is {type_of(bind)}; expected a list such as [(exchange, 'routing.key')]"
        )
    return tuple(_binding(where, one) for one in bind)


def _binding(where: str, one: object) -> Binding:
    expected = "expected (exchange, routing key), or (exchange, {headers}) and a third, 'all' or 'any'"
    if isinstance(one, Exchange):
        one = (one, "")
    if not isinstance(one, Sequence) or isinstance(one, (str, bytes)) or not 2 <= len(one) <= 3:
        raise TopologyError(f"{where}: a binding is {one!r}; {expected}")
    exchange = _name_of(where, "a binding's exchange", one[0])
    if not exchange:
        raise TopologyError(
            f"{where}: the default exchange has each queue bound by its name, and takes no others"
        )
    if isinstance(one[1], Mapping):
        match = one[2] if len(one) == 3 else "all"
        if match not in ("all", "any"):
            raise TopologyError(f"{where}: a binding by headers has {match!r}; expected 'all' or 'any'")
        return Binding(exchange, "", {**_table(where, one[1]), "x-match": match})
    arguments = _table(where, one[2]) if len(one) == 3 else {}
    return Binding(exchange, _short(where, "a binding's routing key", one[1]), arguments)


class Topology:
    """The exchanges and queues of one ``Pika`` object, for all of its apps."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._exchanges: dict[str, Exchange] = {}
        self._queues: dict[str, Queue] = {}
        #: Grows with each thing that is registered, so that who has declared all knows that there is more.
        self.version = 0

    def add(self, thing: Exchange | Queue) -> None:
        """Register it; once more, when it is the same.

        :raises TopologyError: it was registered before, and differently.
        """
        kept: dict[str, Any] = self._exchanges if isinstance(thing, Exchange) else self._queues
        with self._lock:
            known = kept.get(thing.name)
            if known == thing:
                return
            if known is not None:
                raise TopologyError(f"{thing} is registered twice, differently: {_differences(known, thing)}")
            kept[thing.name] = thing
            self.version += 1

    @property
    def exchanges(self) -> list[Exchange]:
        """In the order of registration."""
        return list(self._exchanges.values())

    @property
    def queues(self) -> list[Queue]:
        """In the order of registration."""
        return list(self._queues.values())

    def queue(self, name: str) -> Queue | None:
        """The queue of this name, if it is registered."""
        return self._queues.get(name)


def _differences(first: Any, second: Any) -> str:
    return "; ".join(
        f"{one.name} is {getattr(first, one.name)!r} and {getattr(second, one.name)!r}"
        for one in fields(first)
        if getattr(first, one.name) != getattr(second, one.name)
    )
