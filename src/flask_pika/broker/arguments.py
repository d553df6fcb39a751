"""What the arguments of a queue say, checked as RabbitMQ checks them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields

from .closing import precondition_failed
from .tables import Field, Table, is_integer, text_of

#: Milliseconds that RabbitMQ's timers can count to: ten years.
_LONGEST = 315_360_000_000
#: Bytes of a stream's file, at the most.
_LARGEST_SEGMENT = 3_000_000_000
_AT_LEAST_ONCE = "at-least-once"


@dataclass(frozen=True)
class QueueSettings:
    """The arguments that this broker acts on."""

    kind: str = "classic"  #: or quorum, or stream
    message_ttl: int | None = None  #: milliseconds that a message stays
    expires: int | None = None  #: milliseconds that the queue stays unused
    max_length: int | None = None
    max_length_bytes: int | None = None
    overflow: str = "drop-head"
    dead_letter_exchange: str | None = None
    dead_letter_routing_key: str | None = None
    dead_letter_strategy: str = "at-most-once"
    max_priority: int = 0
    single_active_consumer: bool = False
    delivery_limit: int | None = None

    @property
    def at_least_once(self) -> bool:
        """Whether dead letters stay until they have come: with no other overflow, RabbitMQ keeps them."""
        return self.dead_letter_strategy == _AT_LEAST_ONCE and self.overflow == "reject-publish"


def integer(field: Field) -> int:
    """A whole number of any width.

    :raises ValueError: RabbitMQ's words for what it is instead.
    """
    if not is_integer(field):
        raise ValueError(f'"expected integer, got {field.kind}"')
    return int(field.value)


def _not_negative(field: Field) -> int:
    value = integer(field)
    if value < 0:
        raise ValueError(f"{{value_negative,{value}}}")
    return value


def _milliseconds(field: Field) -> int:
    value = _not_negative(field)
    if value > _LONGEST:
        raise ValueError(f"{{value_too_large,{value}}}")
    return value


def _positive(field: Field) -> int:
    value = _not_negative(field)
    if value == 0:
        raise ValueError("{value_zero,0}")
    return value


def _expires(field: Field) -> int:
    _positive(field)
    return _milliseconds(field)


def _priority(field: Field) -> int:
    value = _not_negative(field)
    if value > 255:
        raise ValueError(f"{{max_value_exceeded,{value}}}")
    return value


def _text(field: Field) -> str:
    if field.kind != "longstr":
        raise ValueError(f"{{unacceptable_type,{field.kind}}}")
    return text_of(field.value)


def _bool(field: Field) -> bool:
    if field.kind != "bool":
        raise ValueError(f"{{unacceptable_type,{field.kind}}}")
    return bool(field.value)


def _one_of(words: tuple[str, ...], otherwise: str) -> Callable[[Field], str]:
    """A check that takes these words alone.

    :param otherwise: RabbitMQ's words for anything else, with ``{}`` where they repeat it.
    """

    def check(field: Field) -> str:
        value = _text(field)
        if value not in words:
            raise ValueError(otherwise.format(value))
        return value

    return check


def _version(field: Field) -> int:
    value = integer(field)
    if value not in (1, 2):
        raise ValueError(f"\"unsupported queue version '{value}'\"")
    return value


def _age(field: Field) -> str:
    value = _text(field)
    if not re.fullmatch(r"0*[1-9][0-9]*[YMDhms]", value):
        raise ValueError("invalid_max_age")
    return value


_ALL = ("classic", "quorum", "stream")
_kind = _one_of(_ALL, "\"unsupported queue type '{}'\"")
_strategy = _one_of(("at-most-once", _AT_LEAST_ONCE), "invalid_dlx_strategy")
_overflow = _one_of(("drop-head", "reject-publish", "reject-publish-dlx"), "invalid_overflow")
_mode = _one_of(("default", "lazy"), "\"unsupported queue mode '{}'\"")
_locator = _one_of(("client-local", "balanced", "random", "least-leaders"), "invalid_queue_locator_arg")

# Each argument that RabbitMQ 3.10 knows: how it is checked, and the types of queues that take it.
_KNOWN: dict[str, tuple[Callable[[Field], object], tuple[str, ...]]] = {
    "x-queue-type": (_kind, _ALL),
    "x-expires": (_expires, ("classic", "quorum")),
    "x-message-ttl": (_milliseconds, ("classic", "quorum")),
    "x-dead-letter-exchange": (_text, ("classic", "quorum")),
    "x-dead-letter-routing-key": (_text, ("classic", "quorum")),
    "x-dead-letter-strategy": (_strategy, ("quorum",)),
    "x-max-length": (_not_negative, ("classic", "quorum")),
    "x-max-length-bytes": (_not_negative, _ALL),
    "x-max-in-memory-length": (_not_negative, ("quorum",)),
    "x-max-in-memory-bytes": (_not_negative, ("quorum",)),
    "x-max-priority": (_priority, ("classic",)),
    "x-overflow": (_overflow, ("classic", "quorum")),
    "x-queue-mode": (_mode, ("classic",)),
    "x-queue-version": (_version, ("classic",)),
    "x-single-active-consumer": (_bool, ("classic", "quorum")),
    "x-delivery-limit": (_not_negative, ("quorum",)),
    "x-quorum-initial-group-size": (_positive, ("quorum",)),
    "x-initial-cluster-size": (_positive, ("stream",)),
    "x-max-age": (_age, ("stream",)),
    "x-stream-max-segment-size-bytes": (_not_negative, ("stream",)),
    "x-queue-leader-locator": (_locator, ("quorum", "stream")),
}
_FIELDS = {name: name.removeprefix("x-").replace("-", "_") for name in _KNOWN}


def read_queue_arguments(arguments: Table, where: str) -> QueueSettings:
    """What a queue's arguments say.

    :param where: which queue, in the words of RabbitMQ's errors.
    :raises ChannelClosing: one is wrong.
    """
    values: dict[str, object] = {}
    for argument, (check, _types) in _KNOWN.items():
        if argument not in arguments:
            continue
        field = arguments[argument]
        if argument == "x-dead-letter-exchange" and field.kind != "longstr":
            raise precondition_failed(f"invalid type '{field.kind}' for arg '{argument}' in {where}")
        try:
            values[_FIELDS[argument]] = check(field)
        except ValueError as exc:
            raise precondition_failed(f"invalid arg '{argument}' for {where}: {exc}") from exc
    kind = values.pop("queue_type", "classic")
    for argument, (_check, types) in _KNOWN.items():
        if argument in arguments and kind not in types:
            raise precondition_failed(
                f"invalid arg '{argument}' for {where} of queue type rabbit_{kind}_queue"
            )
    if "dead_letter_routing_key" in values and "dead_letter_exchange" not in values:
        raise precondition_failed(
            f"invalid arg 'x-dead-letter-routing-key' for {where}: routing_key_but_no_dlx_defined"
        )
    segment = values.get("stream_max_segment_size_bytes")
    if isinstance(segment, int) and segment > _LARGEST_SEGMENT:
        raise precondition_failed("Exceeded max value for x-stream-max-segment-size-bytes")
    known = {field.name for field in fields(QueueSettings)}
    acted_on = {name: value for name, value in values.items() if name in known}
    if kind == "quorum" and acted_on.get("overflow") == "reject-publish-dlx":
        acted_on["overflow"] = "drop-head"  # which RabbitMQ 3.10 makes of it
    return QueueSettings(kind=str(kind), **acted_on)  # type: ignore[arg-type]


def refuse_unsupported(where: str, kind: str, durable: bool, exclusive: bool, auto_delete: bool) -> None:
    """Quorum queues and streams are durable, and nobody's own."""
    wrong = {"non-durable": not durable, "exclusive-owner": exclusive, "auto-delete": auto_delete}
    for name, is_so in wrong.items():
        if is_so and kind != "classic":
            raise precondition_failed(f"invalid property '{name}' for {where}")


def compare_arguments(what: str, keys: Iterable[str], new: Table, current: Table) -> None:
    """Refuse to declare what is there with other arguments.

    :param what: it, in the words of RabbitMQ's errors.
    """
    for key in keys:
        received, stands = new.get(key), current.get(key)
        if received == stands or (received and stands and received.same_as(stands)):
            continue
        if received is None or stands is None:
            said = f"received {_with_type(received)} but current is {_with_type(stands)}"
        else:
            said = f"received '{_shown(received)}' but current is '{_shown(stands)}'"
        raise precondition_failed(f"inequivalent arg '{key}' for {what}: {said}")


def _with_type(field: Field | None) -> str:
    return "none" if field is None else f"the value '{_shown(field)}' of type '{field.kind}'"


def _shown(field: Field) -> str:
    if isinstance(field.value, bytes):
        return text_of(field.value)
    return str(field.value).lower() if isinstance(field.value, bool) else str(field.value)


_DIGITS = 20  # Python refuses to read numbers of thousands
_NUMBER = re.compile(r"[+-]?[0-9]+")


def parse_expiration(text: object) -> int | None:
    """A message's expiration property, in milliseconds.

    :raises ChannelClosing: it is no number that RabbitMQ takes.
    """
    if text is None:
        return None
    value = text_of(text) if isinstance(text, bytes) else str(text)
    number = _NUMBER.match(value)
    if number is None:
        why = "no_integer"
    elif number.end() < len(value):
        why = f'{{leftover_string,"{value[number.end() :]}"}}'
    elif len(value) > _DIGITS or int(value) > _LONGEST:
        why = f"{{value_too_large,{value}}}"
    elif int(value) < 0:
        why = f"{{value_negative,{int(value)}}}"
    else:
        return int(value)
    raise precondition_failed(f"invalid expiration '{value}': {why}")
