"""What declares a topology: the steps, in their order; and what the broker's refusal of one means. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

from pika.spec import ACCESS_REFUSED, NOT_FOUND, RESOURCE_LOCKED

from .errors import TopologyMismatch
from .topology import Exchange, Queue, Topology

#: AMQP's connection errors that one declaration can cause: an exchange type that no plugin has, say.
OVER_ONE_STEP = (501, 502, 503, 504, 505, 506, 530, 540, 541)
#: RabbitMQ's words for a 406: which argument, of what, and both values.
_INEQUIVALENT = re.compile(r"inequivalent arg '([^']*)' for \w+ '")
_VALUES = re.compile(r"' in vhost '.*': received (.*?) but current is (.*)$", re.S)
_VALUE = re.compile(r"^the value ('.*') of type '\w+'$", re.S)


class Step(NamedTuple):
    """One method of AMQP's, as pika's channels have it."""

    method: str
    arguments: dict[str, Any]
    thing: Exchange | Queue
    #: ``look`` asks whether it is there; ``compare``, of what is there, whether it is the same.
    stage: Literal["declare", "look", "compare", "bind"] = "declare"
    exchange: str = ""  #: that a binding is to
    text: str = ""  #: a binding, for people
    then: Step | None = None  #: what comes next, when this is well

    @property
    def what(self) -> str:
        """What it is about."""
        return self.text or str(self.thing)

    @property
    def is_binding(self) -> bool:
        """Whether it is one: these cannot be asked for."""
        return self.stage == "bind"

    def leaves_alone(self, unlike: Iterable[Exchange | Queue]) -> bool:
        """Whether it is not to be done: a binding, of which one end is not what it should be."""
        return self.is_binding and any(
            one == self.thing or (isinstance(one, Exchange) and one.name == self.exchange) for one in unlike
        )

    @property
    def check(self) -> Step:
        """Whether the thing is there, and then, whether it is the same. Both change nothing.

        The first is a passive declaration, of which RabbitMQ looks at the name alone. What is there can be
        declared again: RabbitMQ compares, and refuses what differs.
        """
        name = next(iter(self.arguments))
        asked = {name: self.arguments[name], "passive": True}
        return self._replace(arguments=asked, stage="look", then=self._replace(stage="compare"))


def steps_for(exchanges: Iterable[Exchange], queues: Iterable[Queue]) -> list[Step]:
    """What declares these, bindings last: they need both ends."""
    exchanges, queues = list(exchanges), list(queues)
    steps = [_exchange_step(one) for one in exchanges if not one.is_predeclared]
    steps += [_queue_step(one) for one in queues]
    things: Sequence[Exchange | Queue] = (*exchanges, *queues)
    steps += [step for thing in things for step in _binding_steps(thing)]
    return steps


def all_queues(topology: Topology, more: Iterable[Queue]) -> list[Queue]:
    """Those that are registered, and others that belong to them, of which a registered one goes first."""
    return list({queue.name: queue for queue in (*more, *topology.queues)}.values())


def all_steps(topology: Topology, more: Iterable[Queue], own: Iterable[str] = ()) -> list[Step]:
    """What declares everything.

    :param more: as in :func:`all_queues`.
    :param own: the exclusive queues that are wanted: each is its connection's, and nobody else sees it.
    """
    queues = all_queues(topology, more)
    return steps_for(topology.exchanges, [one for one in queues if not one.exclusive or one.name in own])


def _exchange_step(one: Exchange) -> Step:
    arguments = {
        "exchange": one.name,
        "exchange_type": one.type,
        "durable": one.durable,
        "auto_delete": one.auto_delete,
        "internal": one.internal,
        "arguments": dict(one.arguments),
    }
    return Step("exchange_declare", arguments, one)


def _queue_step(one: Queue) -> Step:
    arguments = {
        "queue": one.name,
        "durable": one.durable,
        "exclusive": one.exclusive,
        "auto_delete": one.auto_delete,
        "arguments": dict(one.arguments),
    }
    return Step("queue_declare", arguments, one)


def _binding_steps(thing: Exchange | Queue) -> Iterable[Step]:
    for binding in thing.bindings:
        if isinstance(thing, Queue):
            method, ends = "queue_bind", {"queue": thing.name, "exchange": binding.exchange}
        else:
            method, ends = "exchange_bind", {"destination": thing.name, "source": binding.exchange}
        arguments = {**ends, "routing_key": binding.routing_key, "arguments": dict(binding.arguments)}
        yield Step(method, arguments, thing, "bind", binding.exchange, f"the binding of {thing} to {binding}")


def mismatch(step: Step, error: Exception) -> TopologyMismatch:
    """What the broker's refusal of a step means, and what to do."""
    code, text = getattr(error, "reply_code", 0), getattr(error, "reply_text", str(error))
    found, values = _INEQUIVALENT.search(text), _VALUES.search(text)
    said = f"{code} {text}"
    if found is not None:
        kind = "queue" if isinstance(step.thing, Queue) else "exchange"
        both = f"({said})"  # of a long name, RabbitMQ's words are cut short
        if values is not None:
            both = f"{_plain(values[2])} at the broker, and {_plain(values[1])} here"
        advice = (
            f"{step.what} is there with another {found[1]}: {both}. RabbitMQ changes no {kind} that exists:"
            f" register it as it is, or delete it there{' once it is empty' if kind == 'queue' else ''}, or"
            " give it another name"
        )
    elif step.is_binding:
        advice = f"{step.what} cannot be made ({said}){_about_binding(step, code)}"
    elif code == NOT_FOUND:
        advice = f"{step.what} is not there; 'flask pika declare' declares it"
    elif code == RESOURCE_LOCKED:
        advice = f"{step.what} is another connection's own ({said}); give it another name"
    elif code == ACCESS_REFUSED:
        advice = (
            f"{step.what} cannot be declared ({said}); grant the permission to configure it, or have somebody"
            " else declare it, and say FLASK_PIKA_DECLARE = 'check' or 'never'"
        )
    elif isinstance(step.thing, Exchange) and step.thing.type.startswith("x-"):
        advice = f"{step.what} cannot be declared ({said}); its type, {step.thing.type!r}, is a plugin's"
    else:
        advice = f"{step.what} cannot be declared ({said})"
    made = TopologyMismatch(advice, reply=(code, text))
    made.__cause__ = error
    return made


def is_unlike(problem: TopologyMismatch) -> bool:
    """Whether the thing is there, and is another."""
    return _INEQUIVALENT.search(problem.reply_text) is not None


def _about_binding(step: Step, code: int) -> str:
    if code == NOT_FOUND:
        return "; each end of it must be registered, or be there"
    if code == ACCESS_REFUSED:
        return f"; grant the permissions to write to {step.thing}, and to read {step.exchange!r}"
    return ""


def _plain(value: str) -> str:
    """``the value '5' of type 'signedint'`` is ``'5'``; ``none``, where none is given, stays."""
    return _VALUE.sub(r"\1", value)


def no_answer(step: Step | None, seconds: float) -> TopologyMismatch:
    """What it means that a step, or the channel for it, had no answer for so long."""
    what = "a channel to declare on" if step is None else step.what
    return TopologyMismatch(f"there was no answer within {seconds:g} s to: {what}; the rest was not declared")
