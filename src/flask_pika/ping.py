"""Whether the broker answers, which one it is, and how fast."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic, perf_counter

from pika import exceptions as pika_errors

from . import pika_internals
from .connecting import Connected, connect
from .errors import BrokerUnavailable
from .gate import Gate
from .nodes import Node
from .slot import Slot


@dataclass(frozen=True)
class Pong:
    """A broker's answer."""

    node: str  #: the node that answered, as a URL without secrets
    product: str  #: what it calls itself, with its version: ``RabbitMQ 3.10.8``
    round_trip: float  #: seconds that a request on an open channel took


def ping(nodes: Sequence[Node], name: str, timeout: float) -> Pong:
    """Connect to one of the nodes, measure a round trip, and leave; ``timeout`` seconds in all.

    :raises BrokerUnavailable: says why not.
    """
    asked_at = monotonic()
    deadline = asked_at + timeout
    answered: list[Connected] = []

    def dial(until: float) -> Connected:
        answered.append(connect(nodes, name, until))
        return answered[-1]

    slot = Slot(dial, Gate())
    try:
        slot.open(asked_at=asked_at, deadline=deadline)
        connection, node = answered[-1]
        assert slot.channel is not None
        try:
            with pika_internals.bounded(connection, deadline - monotonic()):
                began = perf_counter()
                slot.channel.basic_qos(prefetch_count=1)
                round_trip = perf_counter() - began
        except (pika_internals.DeadlineReached, pika_errors.AMQPError) as exc:
            raise BrokerUnavailable(f"{node} took the connection, and did not answer: {exc!r}") from exc
        about = pika_internals.server_properties(connection)
    finally:
        slot.close()
    product = " ".join(_text(about.get(key)) for key in ("product", "version")).strip()
    return Pong(node=str(node), product=product or "an AMQP 0-9-1 broker", round_trip=round_trip)


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value or "")
