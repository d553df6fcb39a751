"""``Pika``: the object that users hold. One state per app, and the verbs that they call."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from flask import Blueprint, Flask, current_app, has_app_context
from pika import BasicProperties

from .config import DEFAULT_PREFIX, read_settings
from .consumer import Ack, OnError, Registry, check_queue, choose, make_consumer
from .errors import ForeignChannel, InvalidMessage, SetupError
from .handling import Outcome
from .lease import PooledChannel
from .message import Message
from .params import is_finite
from .publisher import PublishReport
from .rehearsal import rehearse
from .retry import Retry
from .state import State, Stats
from .topology import (
    Bind,
    Exchange,
    ExchangeType,
    Overflow,
    Queue,
    QueueType,
    Strategy,
    Topology,
)
from .topology_checks import make_exchange, make_queue
from .worker import DRAIN_TIMEOUT, THREADS, Worker

H = TypeVar("H", bound=Callable[..., Any])

_EXTENSION = "flask_pika"


class Pika:
    """RabbitMQ for a Flask app: publishing, consuming, and pika's blocking channels from a pool.

    ::

        fpika = Pika(app)  # or fpika = Pika(), and fpika.init_app(app) in the factory

        fpika.publish({"id": 1}, routing_key="orders")  # returns when the broker has it

    One object may serve several apps. Its methods are about the app whose context is current, or about the
    only one that it serves; otherwise they raise :exc:`SetupError`.

    :param app: call :meth:`init_app` on it.
    :param config_prefix: the configuration is read from ``<prefix>_PARAMS``, ``<prefix>_POOL_PARAMS``,
        ``<prefix>_PUBLISHER_PARAMS`` and ``<prefix>_DECLARE``. A second object with a prefix of its own
        serves a second broker in the same app.
    """

    def __init__(self, app: Flask | None = None, *, config_prefix: str = DEFAULT_PREFIX) -> None:
        self._prefix = config_prefix
        self._app_refs: list[weakref.ref[Flask]] = []
        # An app's states know by it whose they are, without holding on to this object.
        self._identity = object()
        self._registry = Registry()
        self._topology = Topology()
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Read the app's configuration and register with it. Connects to nothing.

        :param app: whose configuration is read, once, and not changed.
        :raises ConfigError: a value is wrong; the message names its key.
        :raises SetupError: the app has such an object already.
        """
        if self._prefix in states_of(app):
            raise SetupError(
                f"init_app was called before on {app!r} for a Pika object with the prefix"
                f" {self._prefix!r}; use that object, or give this one a config_prefix of its own"
            )
        settings = read_settings(app.config, self._prefix)
        state = State(settings, app, self._prefix, self._identity, self._registry, self._topology)
        app.teardown_appcontext(state.end_of_context)
        app.extensions.setdefault(_EXTENSION, {})[self._prefix] = state
        self._app_refs = [weakref.ref(known) for known in (*self._apps(), app)]

    def channel(self, timeout: float | None = None) -> PooledChannel:
        """A channel for this caller alone, until it is returned or the app context ends.

        Use it in a ``with`` block, or hand it to :meth:`return_channel`.

        :param timeout: seconds that this may take, with waiting, connecting and all. Default:
            ``pool_timeout`` (30).
        :raises PoolTimeout: all channels were in use until then.
        :raises BrokerUnavailable: no node of the broker could be connected to.
        :raises PoolClosed: :meth:`close` was called for this app.
        """
        _check_timeout(timeout)
        return self._state().lend(timeout)

    def return_channel(self, channel: PooledChannel) -> None:
        """Give a channel back to the pool it came from, whichever thread or object borrowed it.

        The second return of the same channel does nothing. Takes one second at the most, whatever the broker
        does, and raises none of its errors.

        :param channel: what :meth:`channel` gave.
        :raises ForeignChannel: ``channel()`` did not lend this object; nothing was done with it.
        """
        _ours(channel).give_up()

    def return_broken_channel(self, channel: PooledChannel) -> None:
        """Give back a channel that is known to be broken: its connection is closed, never lent again.

        :param channel: what :meth:`channel` gave.
        :raises ForeignChannel: as :meth:`return_channel`.
        """
        _ours(channel).give_up(broken=True)

    def publish(
        self,
        body: object,
        *,
        exchange: str = "",
        routing_key: str = "",
        mandatory: bool = True,
        timeout: float | None = None,
        retry: bool = True,
        properties: BasicProperties | None = None,
        **named: Any,
    ) -> str:
        """Publish a message, and return its id once the broker has it. From any thread.

        :param body: bytes and str as they are; anything else goes through the app's JSON provider. Or a
            :class:`Message`, and nothing else about it.
        :param exchange: the default exchange (``""``) routes to the queue that the routing key names.
        :param routing_key: 255 bytes at the most.
        :param mandatory: whether it is an error when no queue takes the message.
        :param timeout: seconds that this may take, with waiting for room, connecting, confirm and retries.
            Default: the ``timeout`` of ``FLASK_PIKA_PUBLISHER_PARAMS`` (10).
        :param retry: whether it is sent again, under the same id, when the connection is lost before its
            confirm: it then arrives at least once. With False, at most once.
        :param properties: a ``pika.BasicProperties`` instead of named ones.
        :param named: AMQP's properties: see :class:`Message`.
        :raises InvalidMessage: AMQP cannot carry it. Nothing was sent.
        :raises BrokerUnavailable: no node could be connected to in time. Nothing was sent.
        :raises BrokerBlocked: the broker took no messages until then. Nothing was sent.
        :raises PublisherFull: too much was pending until then. Nothing was sent.
        :raises Nacked: the broker did not take it.
        :raises Unroutable: no queue took it.
        :raises PublishRefused: the broker closed the channel over it: no such exchange, or no permission.
        :raises PublishTimeout: it was sent, and nobody knows what became of it.
        :raises PublishUnknown: the same, because the connection was lost, and ``retry`` is False.
        :raises PublisherClosed: :meth:`close` was called. Nothing was sent.
        :raises RuntimeError: a future's callback, or a signal's receiver, called it, in the publisher's own
            thread; or a signal handler that interrupted the publisher.
        """
        state, dumps = self._publishing(timeout)
        message = _message(body, exchange, routing_key, mandatory, properties, named)
        return state.publisher().publish(message, dumps, timeout, retry)

    def submit(
        self,
        body: object,
        *,
        exchange: str = "",
        routing_key: str = "",
        mandatory: bool = True,
        timeout: float | None = None,
        retry: bool = True,
        properties: BasicProperties | None = None,
        **named: Any,
    ) -> Future[str]:
        """Publish a message, and return a future for its id at once.

        Everything is as in :meth:`publish`, whose errors are the future's, once the message has its place
        among those that are pending. What is wrong before that is raised here. When its deadline passes, a
        future has its error within a tenth of a second. Its callbacks run in the publisher's thread, which
        they must not keep waiting. It cannot be cancelled.

        :param body: as :meth:`publish` has it; and so are all of the others.
        :param exchange: the exchange's name.
        :param routing_key: 255 bytes at the most.
        :param mandatory: whether it is an error when no queue takes the message.
        :param timeout: seconds until the future has its result, at the most. Default: the ``timeout`` of
            ``FLASK_PIKA_PUBLISHER_PARAMS`` (10).
        :param retry: whether it is sent again when the connection is lost before its confirm.
        :param properties: a ``pika.BasicProperties`` instead of named ones.
        :param named: AMQP's properties: see :class:`Message`.
        :raises InvalidMessage: AMQP cannot carry it.
        :raises PublisherFull: there was no room until the deadline, which this waits for; and no connection,
            ``BrokerUnavailable``, or a broker that takes no messages, ``BrokerBlocked``, when that is why.
        :raises PublisherClosed: :meth:`close` was called.
        :raises RuntimeError: a signal handler called it, which interrupted the publisher in its own thread.
        """
        state, dumps = self._publishing(timeout)
        message = _message(body, exchange, routing_key, mandatory, properties, named)
        return state.publisher().submit(message, dumps, timeout, retry)

    def publish_many(
        self,
        messages: Iterable[Message],
        *,
        timeout: float | None = None,
        window: int = 1000,
        retry: bool = True,
    ) -> PublishReport:
        """Publish many messages, with up to ``window`` of them on their way at a time, and wait for all.

        :param messages: read as they are needed: a generator of a million takes no more memory than of ten.
        :param timeout: seconds for all of them. Default: the ``timeout`` of ``FLASK_PIKA_PUBLISHER_PARAMS``
            (10).
        :param window: how many may be on their way at a time.
        :param retry: whether what was on its way when the connection was lost is sent again.
        :raises ValueError: ``window`` is no number from 1 on.
        :raises PublishManyFailed: some failed, or the time was over; its ``report`` says which, and why. What
            the iterable itself raises comes through, when what was read before is settled or its time over.
        """
        if not isinstance(window, int) or isinstance(window, bool) or window < 1:
            raise ValueError(f"window is {window!r}; expected a number of messages, 1 or more")
        state, dumps = self._publishing(timeout)
        return state.publisher().publish_many(messages, dumps, timeout, window, retry)

    def _publishing(self, timeout: float | None) -> tuple[State, Callable[[object], str]]:
        _check_timeout(timeout)
        return self._state(), self._app().json.dumps

    def exchange(
        self,
        name: str,
        type: ExchangeType = "direct",  # noqa: A002 - AMQP's name for it
        *,
        durable: bool = True,
        auto_delete: bool = False,
        internal: bool = False,
        alternate_exchange: Exchange | str | None = None,
        bind: Bind = (),
        arguments: Mapping[str, Any] | None = None,
    ) -> Exchange:
        """Say that the app needs an exchange. It is declared when it is needed: see ``FLASK_PIKA_DECLARE``.

        ::

            orders = fpika.exchange("orders", type="topic")

        :param name: its name at the broker.
        :param type: ``direct``, ``topic``, ``fanout``, ``headers``, or a plugin's ``x-...``.
        :param durable: whether it is kept over a restart of the broker.
        :param auto_delete: whether it is gone with its last binding.
        :param internal: whether nobody can publish to it, and only exchanges be bound to it.
        :param alternate_exchange: gets what no binding of this one wants.
        :param bind: exchanges that it gets messages from: see :meth:`queue`.
        :param arguments: what has no option here, such as a plugin's.
        :raises TopologyError: it contradicts itself, or what was registered under this name.
        """
        made = make_exchange(
            name,
            type,
            durable=durable,
            auto_delete=auto_delete,
            internal=internal,
            alternate_exchange=alternate_exchange,
            bind=bind,
            arguments=arguments,
        )
        self._topology.add(made)
        return made

    def queue(
        self,
        name: str,
        *,
        type: QueueType = "quorum",  # noqa: A002 - RabbitMQ's name for it
        bind: Bind = (),
        dead_letter: bool = False,
        durable: bool = True,
        exclusive: bool = False,
        auto_delete: bool = False,
        message_ttl: float | None = None,
        expires: float | None = None,
        max_length: int | None = None,
        max_length_bytes: int | None = None,
        overflow: Overflow | None = None,
        delivery_limit: int | None = None,
        dead_letter_exchange: Exchange | str | None = None,
        dead_letter_routing_key: str | None = None,
        dead_letter_strategy: Strategy | None = None,
        single_active_consumer: bool | None = None,
        max_priority: int | None = None,
        max_age: str | None = None,
        max_segment_size: int | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> Queue:
        """Say that the app needs a queue. It is declared when it is needed: see ``FLASK_PIKA_DECLARE``.

        ::

            fpika.queue("orders.email", bind=[(orders, "order.created")], dead_letter=True)
            fpika.queue("clicks", type="stream", max_age="7D")

        :param name: its name at the broker.
        :param type: ``quorum``, ``classic`` or ``stream``.
        :param bind: ``(exchange, routing key)``, or ``(exchange, {headers})`` and a third, ``"all"`` or
            ``"any"``, for each binding. An exchange is what :meth:`exchange` gave, or a name.
        :param dead_letter: whether what is rejected goes to a queue ``<name>.dead``, which is declared, too;
            and, of a quorum queue, what was delivered 20 times (``delivery_limit``) to workers that died.
        :param durable: whether it is kept over a restart of the broker. False only with ``exclusive``.
        :param exclusive: for one connection, and gone with it.
        :param auto_delete: whether it is gone with its last consumer.
        :param message_ttl: seconds that a message waits.
        :param expires: seconds that the queue stays when nobody uses it.
        :param max_length: messages that it has room for.
        :param max_length_bytes: bytes of messages that it has room for.
        :param overflow: what a full queue does: ``drop-head``, ``reject-publish``, ``reject-publish-dlx``.
        :param delivery_limit: how often a message is delivered, before it is a dead letter.
        :param dead_letter_exchange: gets its dead letters, instead of ``dead_letter``.
        :param dead_letter_routing_key: with which routing key. Default: the message's own.
        :param dead_letter_strategy: ``at-least-once`` loses nothing; with ``dead_letter``, it is so.
        :param single_active_consumer: whether one consumer at a time gets messages, and the others wait.
        :param max_priority: of a classic queue, the highest priority that it knows, up to 255.
        :param max_age: of a stream's messages, such as ``"7D"``: Y, M, D, h, m or s.
        :param max_segment_size: bytes of a file of the stream's.
        :param arguments: what RabbitMQ knows besides, such as ``{"x-queue-leader-locator": "balanced"}``.
        :raises TopologyError: it contradicts itself, or is refused by RabbitMQ 4, or by what was registered
            under this name.
        """
        made = make_queue(
            name,
            type=type,
            bind=bind,
            dead_letter=dead_letter,
            durable=durable,
            exclusive=exclusive,
            auto_delete=auto_delete,
            message_ttl=message_ttl,
            expires=expires,
            max_length=max_length,
            max_length_bytes=max_length_bytes,
            overflow=overflow,
            delivery_limit=delivery_limit,
            dead_letter_exchange=dead_letter_exchange,
            dead_letter_routing_key=dead_letter_routing_key,
            dead_letter_strategy=dead_letter_strategy,
            single_active_consumer=single_active_consumer,
            max_priority=max_priority,
            max_age=max_age,
            max_segment_size=max_segment_size,
            arguments=arguments,
        )
        self._topology.add(made)
        return made

    def consumer(
        self,
        queue: str | Queue,
        *,
        prefetch: int | None = None,
        ack: Ack = "auto",
        on_error: OnError = "reject",
        batch: int | None = None,
        batch_wait: float = 0.5,
        exclusive: bool = False,
        arguments: Mapping[str, Any] | None = None,
        blueprint: Blueprint | None = None,
        retry: Retry | None = None,
    ) -> Callable[[H], H]:
        """Register a function that handles a queue's deliveries, in ``flask pika worker``.

        ::

            @fpika.consumer("orders", prefetch=16)
            def handle(delivery):
                order = delivery.json

        Each delivery is handled in a thread, in an app context of its own; an ``async`` function, in an event
        loop of its own. It is acked when the handler has returned and its app context has ended. A handler
        that raises :exc:`Reject` or :exc:`Requeue` has it rejected, or put back.

        :param queue: its name, or what :meth:`queue` gave.
        :param prefetch: how many deliveries may be unsettled at a time, those that wait for a thread
            included. Default: 16, or ``batch`` when that is more.
        :param ack: ``"auto"``: when the handler has returned. ``"manual"``: the handler calls
            :meth:`Delivery.ack`, ``nack()`` or ``reject()``, once, from any thread, now or later. ``"none"``:
            before the handler runs, whatever it does: at most once.
        :param on_error: what becomes of a delivery whose handler raises anything else: ``"reject"``, to the
            queue's dead-letter exchange, if it has one; or ``"requeue-once"``: back to the queue, unless it
            was redelivered already.
        :param batch: the handler gets a list of up to this many deliveries, which are settled together.
        :param batch_wait: seconds after which it gets those that are there.
        :param exclusive: whether this is to be the queue's only consumer, at the broker.
        :param arguments: of AMQP's ``basic.consume``, such as ``{"x-priority": 10}``.
        :param blueprint: only apps that have this blueprint registered consume it.
        :param retry: what fails is tried again, after delays, and ends in ``<queue>.dead``.
        :raises SetupError: a value is wrong, or the queue has another consumer.
        """
        check_queue(queue)  # now: without parentheses, it is the handler, and nobody would register it

        def register(handler: H) -> H:
            self._registry.add(
                make_consumer(
                    queue,
                    handler,
                    prefetch=prefetch,
                    ack=ack,
                    on_error=on_error,
                    batch=batch,
                    batch_wait=batch_wait,
                    exclusive=exclusive,
                    arguments=arguments,
                    blueprint=blueprint,
                    retry=retry,
                )
            )
            return handler

        return register

    def worker(self, *queues: str, threads: int = THREADS, drain_timeout: float = DRAIN_TIMEOUT) -> Worker:
        """What ``flask pika worker`` runs, in background threads of this process. Start it, or use ``with``.

        :param queues: which to consume, of those that have a consumer. Default: all.
        :param threads: how many handlers may run at a time.
        :param drain_timeout: seconds that its end waits for handlers that run.
        :raises SetupError: there is no consumer, or none for one of the queues.
        """
        state, app = self._state(), self._app()
        return state.make_worker(app, choose(self._registry.of(app), queues), threads, drain_timeout)

    def run_consumer(
        self,
        handler: Callable[..., Any],
        body: object,
        *,
        exchange: str = "",
        routing_key: str | None = None,
        redelivered: bool = False,
        properties: BasicProperties | None = None,
        **named: Any,
    ) -> Outcome:
        """Run a consumer's handler as a worker would, with no broker, and tell what it came to. For tests.

        ::

            assert fpika.run_consumer(handle, {"id": 1}).acked

        :param handler: a function that was registered with :meth:`consumer`.
        :param body: what :meth:`publish` takes; for a consumer with ``batch``, a list of them.
        :param exchange: where it was published to.
        :param routing_key: default: the queue's name.
        :param redelivered: whether it was delivered before.
        :param properties: a ``pika.BasicProperties`` instead of named ones.
        :param named: AMQP's properties: see :class:`Message`.
        :raises InvalidMessage: AMQP cannot carry it.
        :raises SetupError: the handler is not registered.
        """
        state, app = self._state(), self._app()
        consumer = self._registry.find(handler)
        bodies = body if consumer.batch is not None and isinstance(body, (list, tuple)) else [body]
        if not bodies:
            raise InvalidMessage("a batch has one message or more")
        messages = []
        for one in bodies:
            default = "" if isinstance(one, Message) else consumer.queue
            key = default if routing_key is None else routing_key
            messages.append(_message(one, exchange, key, True, properties, named))
        return rehearse(app, consumer, messages, redelivered, state.has_dead_letters(consumer))

    def declare(self, timeout: float | None = None) -> None:
        """Declare all exchanges, queues and bindings now, those of the consumers' retries included.

        For scripts and tests, and whatever ``FLASK_PIKA_DECLARE`` says: without it, they are declared when
        they are needed. What stands already is left as it is. It goes on after what fails.

        :param timeout: as for :meth:`channel`.
        :raises TopologyMismatch: something stands and is another, or cannot be declared; it says all of that.
        :raises BrokerUnavailable: no node of the broker could be connected to.
        """
        _check_timeout(timeout)
        self._state().declare(timeout)

    def record_messages(self) -> AbstractContextManager[list[Message]]:
        """Record what the app publishes, instead of sending it, until the ``with`` block ends. For tests.

        ::

            with fpika.record_messages() as sent:
                client.post("/orders", json={"id": 1})
            assert sent[0].json == {"id": 1}

        Nothing connects. What ``publish()``, ``submit()``, ``publish_many()`` and ``channel()`` are given, by
        any thread, is in the list, and confirmed; what is wrong with a message raises as ever. Bodies are
        bytes, properties a ``pika.BasicProperties`` with the defaults filled in. On the channels, everything
        can be declared and nothing be got. Recordings may be nested: each has all.
        """
        return self._state().recordings.record()

    def stats(self) -> Stats:
        """The numbers of pool, publisher and consumers in this process: cheap, and without I/O."""
        return self._state().stats()

    def close(self) -> None:
        """Stop this app's workers, close its idle connections, and refuse new checkouts from now on.

        Channels that are lent stay usable, and are closed at their return. Waits for handlers that run, each
        worker's ``drain_timeout`` at the most; for what is pending at the publisher, ``drain_timeout`` (5)
        seconds at the most, and for goodbyes, another five at the most.
        """
        self._state().close()

    def _apps(self) -> list[Flask]:
        return [app for ref in self._app_refs if (app := ref()) is not None]

    def _app(self) -> Flask:
        """The app that :meth:`_state` is about: to be asked after it, which has said that there is one."""
        if has_app_context():
            app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]
            return app
        return self._apps()[0]

    def _state(self) -> State:
        if has_app_context():
            state = states_of(current_app).get(self._prefix)
            if state is None or state.owner is not self._identity:
                has = ", but another with the same prefix" if state else ""
                raise SetupError(
                    f"the current app, {current_app.name!r}, does not have this Pika object"
                    f" (config_prefix {self._prefix!r}){has}; call init_app(app) with it"
                )
            return state
        apps = self._apps()
        if len(apps) == 1:
            return states_of(apps[0])[self._prefix]
        if not apps:
            raise SetupError("this Pika object serves no app; call init_app(app), and keep the app alive")
        names = ", ".join(sorted(repr(app.name) for app in apps))
        raise SetupError(
            f"this Pika object serves {len(apps)} apps ({names}), and there is no app context to tell"
            " which one is meant; use 'with app.app_context():'"
        )

    def __repr__(self) -> str:
        pools = [states_of(app)[self._prefix].pool() for app in self._apps()]
        return f"<Pika {self._prefix} {pools!r}>"


def states_of(app: Flask) -> dict[str, State]:
    """What an app has of its Pika objects, by their prefix."""
    states: dict[str, State] = app.extensions.get(_EXTENSION, {})
    return states


def _check_timeout(timeout: object) -> None:
    if timeout is not None and not (is_finite(timeout) and timeout >= 0):  # type: ignore[operator]
        raise ValueError(f"timeout is {timeout!r}; expected seconds, 0 or more")


def _message(
    body: object,
    exchange: str,
    routing_key: str,
    mandatory: bool,
    properties: BasicProperties | None,
    named: dict[str, Any],
) -> Message:
    if not isinstance(body, Message):
        return Message(
            body,
            exchange=exchange,
            routing_key=routing_key,
            mandatory=mandatory,
            properties=properties,
            **named,
        )
    if named or properties is not None or (exchange, routing_key, mandatory) != ("", "", True):
        raise InvalidMessage("a Message says all about itself; give exchange, routing key, properties to it")
    return body


def _ours(channel: object) -> PooledChannel:
    if isinstance(channel, PooledChannel):
        return channel
    raise ForeignChannel(
        f"a {type(channel).__name__} was returned, which channel() did not lend; return what channel()"
        " gave, and close channels that you opened yourself"
    )
