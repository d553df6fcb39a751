"""Declaring what an app needs: the steps, in their order; and doing them, on a link's connection."""

from __future__ import annotations

import collections
import logging
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from pika import exceptions as pika_errors
from pika.adapters.select_connection import SelectConnection

from .config import Declare
from .errors import TopologyMismatch
from .topology import Exchange, Queue, Topology

logger = logging.getLogger("flask_pika.topology")

#: RabbitMQ's words for a 406: which argument, of what, and both values.
_INEQUIVALENT = re.compile(
    r"inequivalent arg '(?P<argument>[^']*)' for (?P<what>\w+) '(?P<name>.*)' in vhost '.*': "
    r"received (?P<here>.*?) but current is (?P<there>.*)$"
)


class Step(NamedTuple):
    """One method of AMQP's, as pika's channels have it."""

    what: str  #: for people
    method: str
    arguments: dict[str, Any]
    thing: Exchange | Queue

    @property
    def passive(self) -> Step | None:
        """The same, changing nothing; a binding cannot be asked for."""
        if not self.method.endswith("_declare"):
            return None
        name = next(iter(self.arguments))
        return self._replace(arguments={name: self.arguments[name], "passive": True})


def steps_for(exchanges: Sequence[Exchange], queues: Sequence[Queue]) -> list[Step]:
    """What declares these, bindings last: they need both ends."""
    steps = [
        Step(
            str(one),
            "exchange_declare",
            {
                "exchange": one.name,
                "exchange_type": one.type,
                "durable": one.durable,
                "auto_delete": one.auto_delete,
                "internal": one.internal,
                "arguments": dict(one.arguments),
            },
            one,
        )
        for one in exchanges
        if not one.is_predeclared
    ]
    steps += [
        Step(
            str(one),
            "queue_declare",
            {
                "queue": one.name,
                "durable": one.durable,
                "exclusive": one.exclusive,
                "auto_delete": one.auto_delete,
                "arguments": dict(one.arguments),
            },
            one,
        )
        for one in queues
    ]
    things: tuple[Exchange | Queue, ...] = (*exchanges, *queues)
    for thing in things:
        for binding in thing.bindings:
            arguments: dict[str, Any] = {
                "routing_key": binding.routing_key,
                "arguments": dict(binding.arguments),
            }
            if isinstance(thing, Queue):
                method, ends = "queue_bind", {"queue": thing.name, "exchange": binding.exchange}
            else:
                method, ends = "exchange_bind", {"destination": thing.name, "source": binding.exchange}
            steps.append(Step(f"the binding of {thing} to {binding}", method, {**ends, **arguments}, thing))
    return steps


def mismatch(step: Step, error: Exception) -> TopologyMismatch:
    """What the broker's refusal of a step means, and what to do."""
    code, text = getattr(error, "reply_code", 0), getattr(error, "reply_text", str(error))
    found = _INEQUIVALENT.search(text)
    if found is not None:
        advice = (
            f"{step.what} is there with another {found['argument']}: it is {_plain(found['there'])} at the"
            f" broker, and {_plain(found['here'])} here. RabbitMQ changes no {found['what']} that exists:"
            " register it as it is, or delete it there when it is empty, or give it another name"
        )
    elif code == 404:
        advice = f"{step.what} is not there ({text})"
    elif code in (403, 405):
        advice = (
            f"{step.what} cannot be declared ({code} {text}); grant the permission, or have somebody else"
            " declare it, and say FLASK_PIKA_DECLARE = 'check' or 'never'"
        )
    else:
        advice = f"{step.what} cannot be declared ({code} {text})"
    made = TopologyMismatch(advice, reply=(code, text))
    made.__cause__ = error
    return made


def _plain(value: str) -> str:
    """``the value '5' of type 'signedint'`` is ``'5'``."""
    return re.sub(r"^the value (.*) of type '\w+'$", r"\1", value)


class Declaring:
    """Does steps on a link's connection, one after the other. In the link's thread only.

    It has a channel of its own, which a step that fails costs; the others go on.

    :param guarded: what every callback is wrapped in.
    :param done: called at the end, with what went wrong; never, when the connection is lost before.
    """

    def __init__(
        self,
        connection: SelectConnection,
        guarded: Callable[[Callable[..., object]], Callable[..., Any]],
        steps: Iterable[Step],
        done: Callable[[list[TopologyMismatch]], object],
    ) -> None:
        self._connection = connection
        self._guarded = guarded
        self._steps = collections.deque(steps)
        self._done = done
        self._doing: Step | None = None
        self._problems: list[TopologyMismatch] = []
        self._channel: Any = None
        self._open()

    def _open(self) -> None:
        self._connection.channel(on_open_callback=self._guarded(self._opened))

    def _opened(self, channel: Any) -> None:
        self._channel = channel
        channel.add_on_close_callback(self._guarded(self._closed))
        self._next()

    def _next(self) -> None:
        if not self._steps:
            self._doing = None
            self._channel.close()
            self._done(self._problems)
            return
        self._doing = step = self._steps.popleft()
        method = getattr(self._channel, step.method)
        method(**step.arguments, callback=self._guarded(lambda _ok: self._next()))

    def _closed(self, _channel: object, error: Exception) -> None:
        if self._doing is None or isinstance(error, pika_errors.AMQPConnectionError):
            return
        self._problems.append(mismatch(self._doing, error))
        self._open()


class Preparation:
    """Has all that is registered declared on a link's connection: at its beginning, and when there is more.

    In the link's thread only. What fails is logged, once, and stops nobody: most of what an app publishes and
    consumes works all the same.

    :param mode: as ``FLASK_PIKA_DECLARE`` has it.
    :param more: queues that are not registered, and belong to what is.
    """

    def __init__(
        self, topology: Topology, mode: Declare, more: Callable[[], Sequence[Queue]] = lambda: ()
    ) -> None:
        self._topology = topology
        self._mode = mode
        self._more = more
        self._declared = -1  # the topology's version
        self._told = ""

    @property
    def is_due(self) -> bool:
        """Whether something is registered that was not declared on this connection."""
        return self._topology.version != self._declared and self._mode != "never"

    def forget(self) -> None:
        """There is another connection, or something is gone that was declared."""
        self._declared = -1

    def _steps(self) -> list[Step]:
        queues = {queue.name: queue for queue in (*self._more(), *self._topology.queues)}
        return steps_for(self._topology.exchanges, list(queues.values()))

    def begin(
        self,
        connection: SelectConnection,
        guarded: Callable[[Callable[..., object]], Callable[..., Any]],
        done: Callable[[], object],
    ) -> None:
        """Declare it, and call ``done``, whatever came of it; unless the connection is lost before."""
        version, steps = self._topology.version, self._steps()
        if self._mode == "never":
            steps = []
        if self._mode == "check":
            steps = [passive for step in steps if (passive := step.passive) is not None]
        if not steps:
            self._declared = version
            done()
            return

        def ended(problems: list[TopologyMismatch]) -> None:
            self._declared = version
            self._tell(problems)
            done()

        Declaring(connection, guarded, steps, ended)

    def _tell(self, problems: list[TopologyMismatch]) -> None:
        told = "; ".join(map(str, problems))
        if told and told != self._told:
            logger.error("not all that is registered is at the broker as it should be: %s", told)
        self._told = told
