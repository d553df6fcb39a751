"""What a user says of exchanges and queues, checked: what RabbitMQ 3.10 to 4 take, and nothing else. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args

from pika import data as pika_data

from .errors import LONGEST_DELAY, InvalidMessage, TopologyError
from .message import check_table, check_text
from .params import is_finite, type_of
from .topology import DEAD, PREDECLARED, Binding, Exchange, Overflow, Queue, QueueType, Strategy

#: Attempts that a quorum queue with ``dead_letter=True`` gives a message, whose worker dies each time, say.
DELIVERY_LIMIT = 20
_TYPES = ("direct", "topic", "fanout", "headers")
#: The largest whole number of AMQP's tables.
_MOST = 2**63 - 1
#: Bytes of a table: with its method, it is one frame, of which RabbitMQ takes 128 KiB unless told otherwise.
_LONGEST_TABLE = 100_000
_MATCHES = ("all", "any", "all-with-x", "any-with-x")


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
    _short(where, "type", type)
    for option, value in (("durable", durable), ("auto_delete", auto_delete), ("internal", internal)):
        _check_bool(where, option, value)
    table = _table(where, arguments)
    if "alternate-exchange" in table:
        raise TopologyError(f"{where}: arguments['alternate-exchange'] has an option: alternate_exchange")
    if alternate_exchange is not None:
        table["alternate-exchange"] = _name_of(where, "alternate_exchange", alternate_exchange)
    made = Exchange(
        name, type, bool(durable), bool(auto_delete), bool(internal), table, _bindings(where, bind)
    )
    if made.is_predeclared:
        _check_predeclared(where, made)
    return made


def _check_predeclared(where: str, made: Exchange) -> None:
    known = PREDECLARED.get(made.name)
    if known is None and not made.name.startswith("amq.rabbitmq."):
        raise TopologyError(f"{where}: RabbitMQ keeps names that begin with 'amq.' for itself")
    if known not in (None, made.type):
        raise TopologyError(f"{where}: type is {made.type!r}; RabbitMQ has it, and it is {known!r}")
    if made.arguments or not made.durable or made.auto_delete or made.internal:
        raise TopologyError(f"{where} is RabbitMQ's own: name, type and bind are all that can be said of it")


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
    if kind not in get_args(QueueType):
        raise TopologyError(f"{where}: type is {kind!r}; expected 'quorum', 'classic' or 'stream'")
    flags = {option: said.pop(option) for option in ("durable", "exclusive", "auto_delete")}
    for option, value in flags.items():
        _check_bool(where, option, value)
    _check_bool(where, "dead_letter", dead_letter)
    _check_flags(where, kind, **flags)
    # The type is always said: what a queue is when nothing is said is up to the virtual host.
    table = {"x-queue-type": kind, **_further(where, kind, _table(where, arguments))}
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
        wrong = [
            f"{name}=True" for name, so in (("exclusive", exclusive), ("auto_delete", auto_delete)) if so
        ]
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
    said["dead_letter_routing_key"] = _short(where, f"the name of the queue {DEAD!r}", name + DEAD)
    if kind != "quorum":
        return
    if said.get("delivery_limit") is None:
        said["delivery_limit"] = DELIVERY_LIMIT
    if said.get("dead_letter_strategy") is None and said.get("overflow") in (None, "reject-publish"):
        # Nothing of it is lost, whoever crashes in between.
        said["dead_letter_strategy"], said["overflow"] = "at-least-once", "reject-publish"


_CLASSIC, _QUORUM, _STREAM = ("classic",), ("quorum",), ("stream",)
_BOTH, _ALL = ("classic", "quorum"), ("classic", "quorum", "stream")
#: Each option: its argument at the broker, and the types of queues that take it.
_OPTIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "message_ttl": ("x-message-ttl", _BOTH),
    "expires": ("x-expires", _BOTH),
    "max_length": ("x-max-length", _BOTH),
    "max_length_bytes": ("x-max-length-bytes", _ALL),
    "overflow": ("x-overflow", _BOTH),
    "delivery_limit": ("x-delivery-limit", _QUORUM),
    "dead_letter_exchange": ("x-dead-letter-exchange", _BOTH),
    "dead_letter_routing_key": ("x-dead-letter-routing-key", _BOTH),
    "dead_letter_strategy": ("x-dead-letter-strategy", _QUORUM),
    "single_active_consumer": ("x-single-active-consumer", _BOTH),
    "max_priority": ("x-max-priority", _CLASSIC),
    "max_age": ("x-max-age", _STREAM),
    "max_segment_size": ("x-stream-max-segment-size-bytes", _STREAM),
}
_BY_ARGUMENT = {"x-queue-type": "type", **{argument: option for option, (argument, _) in _OPTIONS.items()}}
_WORDS: dict[str, tuple[str, ...]] = {
    "overflow": get_args(Overflow),
    "dead_letter_strategy": get_args(Strategy),
}
_NUMBERS: dict[str, tuple[int, int]] = {
    "max_length": (0, _MOST),
    "max_length_bytes": (0, _MOST),
    "delivery_limit": (0, _MOST),
    "max_priority": (0, 255),
    "max_segment_size": (0, 3_000_000_000),
}
#: What else RabbitMQ looks at: the types of queues that take it, and what it may be: a range, or words.
_FURTHER: dict[str, tuple[tuple[str, ...], range | tuple[str, ...]]] = {
    "x-queue-leader-locator": (
        ("quorum", "stream"),
        ("client-local", "balanced", "random", "least-leaders"),
    ),
    "x-queue-version": (_CLASSIC, range(2, 3)),
    "x-quorum-initial-group-size": (_QUORUM, range(1, 2**31)),
    "x-initial-cluster-size": (_STREAM, range(1, 2**31)),
    "x-stream-filter-size-bytes": (_STREAM, range(16, 256)),
    "x-max-in-memory-length": (_QUORUM, range(2**31)),
    "x-max-in-memory-bytes": (_QUORUM, range(2**31)),
}
#: What RabbitMQ 4.3 does not take any more, and why.
_GONE = {
    "x-queue-mode": "all classic queues write early to disk, and that is all that it said",
    "x-queue-master-locator": "x-queue-leader-locator is for quorum queues and streams",
    "x-ha-policy": "classic queues have no mirrors any more; quorum queues have replicas",
}


def _further(where: str, kind: str, table: dict[str, Any]) -> dict[str, Any]:
    """Check arguments that were given by RabbitMQ's names, and give them back."""
    for argument, value in table.items():
        option = _BY_ARGUMENT.get(argument)
        if option is not None:
            raise TopologyError(f"{where}: arguments[{argument!r}] has an option: {option}")
        if argument in _GONE:
            raise TopologyError(
                f"{where}: arguments[{argument!r}] is nothing that RabbitMQ 4 knows: {_GONE[argument]}"
            )
        if argument not in _FURTHER:
            continue
        kinds, allowed = _FURTHER[argument]
        if kind not in kinds:
            raise TopologyError(
                f"{where}: arguments[{argument!r}] is for {_said_of(kinds)}, not a {kind} one"
            )
        if isinstance(allowed, range):
            expected = f"a number from {allowed[0]} to {allowed[-1]}" if len(allowed) > 1 else str(allowed[0])
            right = isinstance(value, int) and not isinstance(value, bool) and value in allowed
        else:
            expected, right = " or ".join(allowed), isinstance(value, str) and value in allowed
        if not right:
            raise TopologyError(f"{where}: arguments[{argument!r}] is {value!r}; expected {expected}")
    return table


def _option(where: str, kind: str, table: dict[str, Any], option: str, value: Any) -> None:
    argument, kinds = _OPTIONS[option]
    if kind not in kinds:
        raise TopologyError(f"{where}: {option} is for {_said_of(kinds)}, and this is a {kind} one")
    table[argument] = _value(where, option, value)


def _said_of(kinds: Sequence[str]) -> str:
    return f"{' and '.join(kinds)} queues" if kinds != _STREAM else "streams"


def _value(where: str, option: str, value: Any) -> Any:
    if option in ("message_ttl", "expires"):
        least = 0.001 if option == "expires" else 0
        if not is_finite(value) or not least <= value <= LONGEST_DELAY:
            raise TopologyError(
                f"{where}: {option} is {value!r}; expected seconds, from {least} to {LONGEST_DELAY}"
            )
        return round(value * 1000)
    if option in _WORDS:
        if not isinstance(value, str) or value not in _WORDS[option]:
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
        # RabbitMQ refuses 0, and what is no number of ASCII.
        if not isinstance(value, str) or not re.fullmatch(r"0*[1-9][0-9]{0,9}[YMDhms]", value):
            raise TopologyError(
                f"{where}: max_age is {value!r}; expected a number and a unit (Y, M, D, h, m, s), such as"
                " '7D' or '12h'"
            )
        return value
    least, most = _NUMBERS[option]
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise TopologyError(f"{where}: {option} is {value!r}; expected a number from {least} to {most}")
    return value


def _check_together(where: str, kind: str, said: Mapping[str, Any]) -> None:
    """What RabbitMQ takes, each by itself, and makes no sense together."""
    overflow, strategy = said.get("overflow"), said.get("dead_letter_strategy")
    has_dead_letters = said.get("dead_letter_exchange") is not None
    if said.get("dead_letter_routing_key") is not None and not has_dead_letters:
        raise TopologyError(
            f"{where}: a dead_letter_routing_key without a dead_letter_exchange leads nowhere"
        )
    if kind == "quorum" and overflow == "reject-publish-dlx":
        raise TopologyError(
            f"{where}: reject-publish-dlx is for classic queues; a quorum queue has reject-publish"
        )
    if strategy is not None and not has_dead_letters:
        raise TopologyError(f"{where}: dead_letter_strategy is for a queue with a dead_letter_exchange")
    if strategy == "at-least-once" and overflow != "reject-publish":
        raise TopologyError(
            f"{where}: dead_letter_strategy='at-least-once' works with overflow='reject-publish' alone"
        )
    bounded = said.get("max_length") is not None or said.get("max_length_bytes") is not None
    if overflow is not None and not bounded and strategy != "at-least-once":
        raise TopologyError(f"{where}: overflow is for a queue with max_length or max_length_bytes")
    if overflow == "reject-publish-dlx" and not has_dead_letters:
        raise TopologyError(f"{where}: reject-publish-dlx is for a queue with a dead_letter_exchange")


def _name(what: str, value: object) -> str:
    if not isinstance(value, str) or not value:
        raise TopologyError(f"{what}'s name is {value!r}; expected text")
    where = f"{what} called {value[:40]!r}"
    if "\n" in value or "\r" in value:
        raise TopologyError(f"{where}: RabbitMQ takes line ends out of names; leave them out")
    return _short(where, "name", str.__str__(value))  # of an enum's member, its value


def _name_of(where: str, option: str, value: object) -> str:
    return value.name if isinstance(value, Exchange) else _short(where, option, value)


def _short(where: str, option: str, value: object) -> str:
    try:
        return check_text(option, value)
    except InvalidMessage as exc:
        raise TopologyError(f"{where}: {exc}") from exc


def _check_bool(where: str, option: str, value: object) -> None:
    if not isinstance(value, bool):
        raise TopologyError(f"{where}: {option} is {value!r}; expected True or False")


def _table(where: str, arguments: object) -> dict[str, Any]:
    if arguments is None:
        return {}
    try:
        table = check_table("arguments", arguments)
    except InvalidMessage as exc:
        raise TopologyError(f"{where}: {exc}") from exc
    length: int = pika_data.encode_table([], table)
    if length > _LONGEST_TABLE:
        raise TopologyError(f"{where}: arguments have {length} bytes; {_LONGEST_TABLE} fit into a frame")
    return table


def _bindings(where: str, bind: object) -> tuple[Binding, ...]:
    if isinstance(bind, (str, bytes, Mapping, Exchange)) or not isinstance(bind, Iterable):
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
    third = one[2] if len(one) == 3 else None
    if isinstance(one[1], Mapping):
        return Binding(exchange, "", _by_headers(where, one[1], "all" if third is None else third))
    key = _short(where, "a binding's routing key", one[1])
    table = _table(where, third)
    if "x-match" in table:  # a Binding
        table = _by_headers(where, {k: v for k, v in table.items() if k != "x-match"}, table["x-match"])
    return Binding(exchange, key, table)


def _by_headers(where: str, headers: Mapping[str, Any], match: object) -> dict[str, Any]:
    if not isinstance(match, str) or match not in _MATCHES:
        raise TopologyError(f"{where}: a binding by headers has {match!r}; expected {' or '.join(_MATCHES)}")
    if "x-match" in headers:
        raise TopologyError(f"{where}: a binding's 'x-match' is its third: (exchange, headers, 'any')")
    table = _table(where, headers)
    ignored = [name for name in table if name.startswith("x-")]
    if ignored and not match.endswith("-with-x"):
        raise TopologyError(
            f"{where}: a binding by headers has {ignored[0]!r}, at which RabbitMQ does not look unless it is"
            f" told {match + '-with-x'!r}"
        )
    if not table and match.startswith("any"):
        raise TopologyError(f"{where}: a binding by any of no headers lets no message pass")
    return {**table, "x-match": match}
