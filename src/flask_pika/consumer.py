"""What a consumer is: a queue, its handler, and what becomes of a delivery that fails; and their registry."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeGuard

from flask import Blueprint, Flask

from .delivery import Action, Delivery
from .errors import InvalidMessage, Reject, Requeue, SetupError
from .message import SHORT, check_table, check_text
from .params import is_finite, nearest, type_of
from .retry import Decision, Retry, check_names, decide
from .topology import Queue

Ack = Literal["auto", "manual", "none"]
OnError = Literal["reject", "requeue-once"]
#: Deliveries that may be unsettled, when nothing is said.
PREFETCH = 16
_NO_RETRY = "a stream gives what is tried again to all its consumers, as one more message; leave retry out"
#: AMQP 0-9-1, Basic.Qos: the prefetch count is a short. 0 would be any number.
_MOST = 2**16 - 1


def _code_of(handler: object, depth: int = 3) -> object:
    """A function's code, and that of the functions that it is made of, by decorators.

    :param depth: how far to follow them: functions may hold each other in a circle.
    """
    code = getattr(handler, "__code__", None)
    if code is None:
        return handler
    cells = getattr(handler, "__closure__", None) or ()
    inside: list[object] = []
    for cell in cells if depth else ():
        with contextlib.suppress(ValueError):  # an empty one
            if hasattr(cell.cell_contents, "__code__"):
                inside.append(_code_of(cell.cell_contents, depth - 1))
    return code, tuple(inside)


@dataclass(frozen=True, eq=False)
class Consumer:
    """A queue and its handler: see :meth:`flask_pika.Pika.consumer`."""

    queue: str
    handler: Callable[..., Any]
    prefetch: int = PREFETCH
    ack: Ack = "auto"
    on_error: OnError = "reject"
    batch: int | None = None
    batch_wait: float = 0.5
    exclusive: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)
    blueprint: Blueprint | None = None
    retry: Retry | None = None
    #: Whether its queue is registered as a stream.
    stream: bool = False

    @property
    def name(self) -> str:
        """The handler's."""
        handler = inspect.unwrap(self.handler)
        return getattr(handler, "__qualname__", type(handler).__qualname__)

    @property
    def place(self) -> str:
        """The handler's module and name."""
        return f"{getattr(inspect.unwrap(self.handler), '__module__', '?')}.{self.name}"

    @property
    def code(self) -> object:
        """What the handler is made of: the same each time that an app factory defines it anew."""
        return _code_of(self.handler)

    @property
    def is_stream(self) -> bool:
        """Whether its queue is a stream, as far as can be known: nothing can be rejected there."""
        return self.stream or _read_as_stream(self.arguments)

    def is_of(self, app: Flask) -> bool:
        """Whether this app consumes it: one of a blueprint, where that is registered."""
        return self.blueprint is None or self.blueprint in app.blueprints.values()

    def decide(self, delivery: Delivery, error: BaseException | None, has_dead_letters: bool) -> Decision:
        """What becomes of a delivery whose handler has returned, or raised. Once for each: a manual one that
        is settled here can't be settled by its handler any more.

        :param has_dead_letters: whether there is a ``<queue>.dead`` for it.
        """
        return decide(self.retry, has_dead_letters, self._action(delivery, error), delivery, error)

    def _action(self, delivery: Delivery, error: BaseException | None) -> Action | None:
        """The same, if there were neither ``retry`` nor dead letters. None: it is settled, or will be."""
        if self.ack == "none":
            return None
        if self.ack == "manual" and (error is None or not delivery.take()):
            return None
        if error is None:
            return Action.ACK
        if isinstance(error, Requeue):
            return Action.REQUEUE
        if isinstance(error, Reject) or self.on_error == "reject" or delivery.redelivered:
            return Action.REJECT
        return Action.REQUEUE


def make_consumer(
    queue: object,
    handler: object,
    *,
    prefetch: object,
    ack: object,
    on_error: object,
    batch: object,
    batch_wait: object,
    exclusive: object,
    arguments: object,
    blueprint: object,
    retry: object,
) -> Consumer:
    """A consumer of what a user wrote.

    :raises SetupError: names what is wrong, and what is expected.
    """
    queue = check_queue(queue)
    where = f"the consumer of queue {queue!r}"
    if not callable(handler) or inspect.isclass(handler):
        raise SetupError(f"{where}: the handler is {type_of(handler)}; expected a function of one delivery")
    _check_parameters(where, handler, batch)
    if prefetch is None:
        prefetch = min(max(PREFETCH, batch), _MOST) if isinstance(batch, int) else PREFETCH
    if not _whole(prefetch, _MOST):
        raise SetupError(f"{where}: prefetch is {prefetch!r}; expected a number from 1 to {_MOST}")
    if batch is not None and not _whole(batch, prefetch):
        raise SetupError(
            f"{where}: batch is {batch!r}; expected a number from 1 to prefetch, which is {prefetch}:"
            " the broker sends no more than that"
        )
    if not is_finite(batch_wait) or not 0 <= batch_wait <= 3600:  # type: ignore[operator]
        raise SetupError(f"{where}: batch_wait is {batch_wait!r}; expected seconds, from 0 to 3600")
    for name, value, good in (
        ("ack", ack, ("auto", "manual", "none")),
        ("on_error", on_error, ("reject", "requeue-once")),
        ("exclusive", exclusive, (True, False)),
    ):
        # With the type: 1 is equal to True.
        if value not in good or isinstance(value, bool) is not isinstance(good[0], bool):
            expected = " or ".join(map(repr, good))
            raise SetupError(f"{where}: {name} is {value!r}; expected {expected}")
    try:
        arguments = {} if arguments is None else check_table("arguments", arguments)
    except InvalidMessage as exc:
        raise SetupError(f"{where}: {exc}") from exc
    if blueprint is not None and not isinstance(blueprint, Blueprint):
        raise SetupError(f"{where}: blueprint is {type_of(blueprint)}; expected a flask.Blueprint")
    if retry is not None:
        if not isinstance(retry, Retry):
            raise SetupError(f"{where}: retry is {type_of(retry)}; expected flask_pika.Retry(...)")
        if ack == "none":
            raise SetupError(f"{where}: with ack='none' it is acked before it fails; leave retry out")
        if _read_as_stream(arguments):
            raise SetupError(f"{where}: {_NO_RETRY}")
        check_names(queue, retry)
    return Consumer(
        queue,
        handler,
        prefetch,
        ack,  # type: ignore[arg-type] # checked above
        on_error,  # type: ignore[arg-type]
        batch,
        float(batch_wait),  # type: ignore[arg-type]
        exclusive,  # type: ignore[arg-type]
        arguments,
        blueprint,
        retry,
    )


def check_queue(queue: object) -> str:
    """A queue's name, as it can be sent; of one that is registered, too.

    :raises SetupError: it is none.
    """
    name = queue.name if isinstance(queue, Queue) else queue
    with contextlib.suppress(InvalidMessage):
        if text := check_text("queue", name):
            # A plain str: an enum's member, which is one as well, has another text of its own.
            return str.__str__(text)
    raise SetupError(
        f"a consumer's queue is {queue!r}; expected the name of a queue, of up to {SHORT} bytes;"
        ' @consumer needs one: @fpika.consumer("orders")'
    )


def _whole(value: object, most: int) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


def _read_as_stream(arguments: Mapping[str, Any]) -> bool:
    """Whether these are arguments of ``basic.consume`` that only streams have."""
    return any(name.startswith("x-stream-") for name in arguments)


def _check_parameters(where: str, handler: Callable[..., Any], batch: object) -> None:
    """A handler that cannot be called would have its first message fail, and every one after it."""
    try:
        signature = inspect.signature(handler)
    except (TypeError, ValueError):  # a builtin
        return
    try:
        signature.bind(object())
    except TypeError as exc:
        what = "list of deliveries" if batch is not None else "delivery"
        raise SetupError(
            f"{where}: the handler takes {signature}; expected a function of one {what}"
        ) from exc


class Registry:
    """The consumers of one ``Pika`` object, for all of its apps."""

    def __init__(self) -> None:
        self._consumers: dict[tuple[str, int | None], Consumer] = {}

    def add(self, consumer: Consumer) -> None:
        """Register a consumer. A factory that is called twice registers the same one twice: the last counts.

        :raises SetupError: the queue has another one.
        """
        key = (consumer.queue, None if consumer.blueprint is None else id(consumer.blueprint))
        known = self._consumers.get(key)
        if known is not None and known.code != consumer.code:
            raise _two_consumers(known, consumer)
        self._consumers[key] = consumer

    def of(self, app: Flask) -> Sequence[Consumer]:
        """What this app consumes, in the order of registration.

        :raises SetupError: two for one queue: RabbitMQ would give each half of the messages.
        """
        found: dict[str, Consumer] = {}
        for consumer in self._consumers.values():
            if consumer.is_of(app):
                if consumer.queue in found:
                    raise _two_consumers(found[consumer.queue], consumer)
                found[consumer.queue] = consumer
        return list(found.values())

    def find(self, handler: object) -> Consumer:
        """The consumer that has this handler.

        :raises SetupError: there is none.
        """
        for consumer in self._consumers.values():
            if consumer.handler == handler:  # of an object's method, there is a new one each time
                return consumer
        raise SetupError(f"{handler!r} is no handler of this Pika object; register it with @fpika.consumer")


def check_retry(consumer: Consumer, queue: Queue | None) -> None:
    """Whether a queue, as it is registered, is one whose deliveries can be tried again, if they are to be.

    :raises SetupError: it is not.
    """
    if consumer.retry is None or queue is None:
        return
    if queue.type == "stream":
        raise SetupError(f"the consumer of queue {consumer.queue!r}: {_NO_RETRY}")
    if "x-dead-letter-exchange" not in queue.arguments:
        raise SetupError(
            f"the consumer of queue {consumer.queue!r} has retry=, and the queue has no dead letters, so what"
            " kills its worker again and again would be lost; register it with dead_letter=True"
        )


def choose(consumers: Sequence[Consumer], queues: Sequence[str]) -> list[Consumer]:
    """The consumers of these queues; all of them, when no queue is named.

    :raises SetupError: a queue has none.
    """
    known = {consumer.queue: consumer for consumer in consumers}
    for queue in queues:
        if queue not in known:
            raise SetupError(f"queue {queue!r} has no consumer; {nearest(queue, known)}")
    return [known[queue] for queue in dict.fromkeys(queues)] if queues else list(consumers)


def _two_consumers(first: Consumer, second: Consumer) -> SetupError:
    return SetupError(
        f"queue {first.queue!r} has two consumers, {first.place} and {second.place}, each of which would get"
        " a part of the messages; use one, or a queue for each"
    )
