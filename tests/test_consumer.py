"""Consumers as they are registered, and what becomes of a delivery, whatever its handler does."""

from __future__ import annotations

import asyncio
import enum
import functools
import io
import json
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pika
import pytest
from flask import Blueprint, Flask, current_app, g

from flask_pika import (
    Action,
    Delivery,
    DeliveryFilter,
    InvalidMessage,
    Message,
    Pika,
    Reject,
    Requeue,
    SettlementError,
    SetupError,
    UndecodableMessage,
    signals,
)
from flask_pika.consumer import Consumer, choose
from flask_pika.handling import handle as run_handler
from flask_pika.handling import log_failure, tell
from flask_pika.retry import Decision

SECRET = "s3cret-body"
CONSUMER_LOG = "flask_pika.consumer"


@pytest.fixture
def app() -> Flask:
    return Flask("shop")


@pytest.fixture
def fpika(app: Flask) -> Pika:
    app.config["FLASK_PIKA_PARAMS"] = {"host": "127.0.0.1", "port": 1}  # nobody connects
    return Pika(app)


def nothing(delivery: Delivery) -> None:
    """A handler."""


def other(delivery: Delivery) -> None:
    """Another one."""


# Registration


def test_a_handler_stays_the_function_that_it_is(fpika: Pika) -> None:
    assert fpika.consumer("orders")(nothing) is nothing


def taking(parameters: str) -> Callable[..., Any]:
    made: Callable[..., Any] = eval(f"lambda {parameters}: None")
    return made


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({"queue": ""}, r"queue is ''.*name of a queue.*255 bytes"),
        ({"queue": None}, "queue is None"),
        ({"queue": b"orders"}, r"queue is b'orders'"),
        ({"queue": "q" * 256}, "255 bytes"),
        ({"queue": "ö" * 128}, "255 bytes"),
        ({"queue": "\ud800"}, "queue is '.ud800'"),
        ({"handler": 5}, "'orders'.* int.*expected a function of one delivery"),
        ({"handler": None}, "expected a function of one delivery"),
        ({"handler": Delivery}, "expected a function of one delivery"),
        ({"handler": taking("")}, r"takes \(\).*a function of one delivery"),
        ({"handler": taking("a, b")}, r"takes \(a, b\).*a function of one delivery"),
        ({"handler": taking("*, a")}, r"takes \(\*, a\).*a function of one delivery"),
        ({"handler": taking(""), "batch": 2}, "a function of one list of deliveries"),
        ({"prefetch": 0}, "prefetch is 0; expected a number from 1 to 65535"),
        ({"prefetch": 65_536}, "prefetch is 65536"),
        ({"prefetch": True}, "prefetch is True"),
        ({"prefetch": "16"}, "prefetch is '16'"),
        ({"prefetch": 1.0}, "prefetch is 1.0"),
        ({"ack": "Auto"}, "ack is 'Auto'; expected 'auto' or 'manual' or 'none'"),
        ({"ack": None}, "ack is None"),
        ({"ack": True}, "ack is True"),
        ({"ack": ["auto"]}, "ack is .'auto'."),
        ({"on_error": "requeue"}, "on_error is 'requeue'; expected 'reject' or 'requeue-once'"),
        ({"exclusive": 1}, "exclusive is 1; expected True or False"),
        ({"exclusive": "yes"}, "exclusive is 'yes'; expected True or False"),
        ({"exclusive": None}, "exclusive is None; expected True or False"),
        ({"batch": 0}, "batch is 0; expected a number from 1"),
        ({"batch": -1}, "batch is -1; expected"),
        ({"batch": True}, "batch is True; expected"),
        ({"batch": "10"}, "batch is '10'; expected"),
        ({"batch": 20, "prefetch": 10}, "batch is 20; expected a number from 1 to prefetch, which is 10"),
        ({"batch": 70_000}, "batch is 70000; expected"),
        ({"batch_wait": -1}, "batch_wait is -1; expected seconds, from 0 to 3600"),
        ({"batch_wait": float("nan")}, "batch_wait is nan"),
        ({"batch_wait": float("inf")}, "batch_wait is inf"),
        ({"batch_wait": "1"}, "batch_wait is '1'"),
        ({"batch_wait": None}, "batch_wait is None"),
        ({"arguments": [1]}, "arguments is .*list.*expected a dict"),
        ({"arguments": {"x-priority": object()}}, "arguments.*x-priority"),
        ({"arguments": {5: 1}}, "arguments.*5"),
        ({"blueprint": "shop"}, r"blueprint is .*str.*expected a flask.Blueprint"),
    ],
    ids=str,
)
def test_what_is_wrong_is_named_with_what_is_expected(fpika: Pika, about: dict[str, Any], said: str) -> None:
    about = dict(about)
    queue, handler = about.pop("queue", "orders"), about.pop("handler", nothing)
    with pytest.raises(SetupError, match=said):
        fpika.consumer(queue, **about)(handler)
    with pytest.raises(SetupError, match="nothing to consume"):
        fpika.worker()


def test_the_parentheses_may_not_be_forgotten(fpika: Pika) -> None:
    with pytest.raises(SetupError, match=r'@fpika.consumer\("orders"\)'):

        @fpika.consumer  # type: ignore[arg-type]
        def handle(delivery: Delivery) -> None: ...


class Shop:
    def handle(self, delivery: Delivery) -> None: ...

    def __call__(self, delivery: Delivery) -> None: ...


@pytest.mark.parametrize(
    "handler",
    [
        Shop().handle,
        Shop(),
        functools.partial(lambda _queue, _delivery: None, "x"),
        taking("delivery, more=1"),
        taking("*all"),
        functools.wraps(nothing)(lambda *args: None),
        [].append,
        print,
    ],
    ids=str,
)
def test_anything_that_takes_one_delivery_is_a_handler(fpika: Pika, handler: Callable[..., Any]) -> None:
    fpika.consumer("orders")(handler)
    assert fpika.worker().consumers[0].handler is handler
    assert fpika.stats().consumers[0].handler


class Names(str, enum.Enum):
    ORDERS = "orders"
    MAIL = "orders.email"


def test_a_queue_may_be_named_by_an_enum(fpika: Pika) -> None:
    fpika.consumer(Names.ORDERS)(nothing)
    fpika.consumer(fpika.queue(Names.MAIL))(other)
    names = [str(consumer.queue) for consumer in fpika.worker().consumers]
    assert names == ["orders", "orders.email"]


def test_what_is_not_said_has_defaults(fpika: Pika) -> None:
    fpika.consumer("plain")(nothing)
    fpika.consumer("batches", batch=100)(nothing)
    fpika.consumer("small-batches", batch=2)(nothing)
    plain, batches, small = fpika.worker().consumers
    assert (plain.prefetch, plain.ack, plain.on_error, plain.batch) == (16, "auto", "reject", None)
    assert (plain.exclusive, plain.arguments, plain.blueprint) == (False, {}, None)
    assert (batches.prefetch, batches.batch, batches.batch_wait) == (100, 100, 0.5)
    assert small.prefetch == 16


def test_arguments_that_change_later_are_not_those_that_were_given(fpika: Pika) -> None:
    arguments = {"x-priority": 1}
    fpika.consumer("orders", arguments=arguments)(nothing)
    arguments["x-priority"] = 2
    assert fpika.worker().consumers[0].arguments == {"x-priority": 1}


def test_a_queue_has_one_consumer(fpika: Pika) -> None:
    fpika.consumer("orders")(nothing)
    with pytest.raises(SetupError, match=r"'orders' has two consumers.*nothing.*other"):
        fpika.consumer("orders")(other)
    assert [one.handler for one in fpika.worker().consumers] == [nothing]


def test_two_handlers_of_one_decorator_are_two(fpika: Pika) -> None:
    def logged(handler: Callable[[Delivery], None]) -> Callable[[Delivery], None]:
        def inner(delivery: Delivery) -> None:  # without functools.wraps
            handler(delivery)

        return inner

    fpika.consumer("orders")(logged(nothing))
    fpika.consumer("orders")(logged(nothing))  # a factory, for the second time
    with pytest.raises(SetupError, match="'orders' has two consumers"):
        fpika.consumer("orders")(logged(other))


def test_a_factory_may_be_called_twice_and_the_last_one_counts() -> None:
    fpika = Pika()

    def create_app() -> tuple[Flask, Callable[[Delivery], None]]:
        app = Flask("shop")
        app.config["FLASK_PIKA_PARAMS"] = {"host": "127.0.0.1", "port": 1}
        fpika.init_app(app)

        @fpika.consumer("orders")
        def handle(delivery: Delivery) -> None: ...

        return app, handle

    first, _ = create_app()
    second, handle = create_app()
    for app in (first, second):
        with app.app_context():
            (consumer,) = fpika.worker().consumers
            assert consumer.handler is handle
            assert fpika.run_consumer(handle, b"").acked


def test_a_blueprint_is_consumed_where_it_is_registered() -> None:
    fpika = Pika()
    shop, admin = Blueprint("shop", __name__), Blueprint("admin", __name__)
    fpika.consumer("orders", blueprint=shop)(nothing)
    fpika.consumer("orders", blueprint=admin)(other)
    fpika.consumer("all")(nothing)
    apps = []
    for blueprints in ([], [shop], [admin], [shop, admin]):
        app = Flask("app")
        app.config["FLASK_PIKA_PARAMS"] = {"host": "127.0.0.1", "port": 1}
        fpika.init_app(app)
        for blueprint in blueprints:
            app.register_blueprint(blueprint)
        apps.append(app)
    consumed = []
    for app in apps[:3]:
        with app.app_context():
            consumed.append([(one.queue, one.handler) for one in fpika.worker().consumers])
            assert [one.queue for one in fpika.stats().consumers] == [queue for queue, _ in consumed[-1]]
    assert consumed == [
        [("all", nothing)],
        [("orders", nothing), ("all", nothing)],
        [("orders", other), ("all", nothing)],
    ]
    with apps[3].app_context(), pytest.raises(SetupError, match="'orders' has two consumers"):
        fpika.worker()


def test_a_blueprint_may_be_registered_after_its_consumer_and_under_another_name(
    app: Flask, fpika: Pika
) -> None:
    shop = Blueprint("shop", __name__)
    fpika.consumer("orders", blueprint=shop)(nothing)
    with pytest.raises(SetupError, match="nothing to consume"):
        fpika.worker()
    app.register_blueprint(shop, name="other")
    assert fpika.worker().consumers[0].queue == "orders"


def test_a_worker_is_for_the_queues_that_are_named(fpika: Pika) -> None:
    for queue in ("orders", "audit", "clicks"):
        fpika.consumer(queue)(nothing)
    assert [one.queue for one in fpika.worker().consumers] == ["orders", "audit", "clicks"]
    assert [one.queue for one in fpika.worker("clicks", "orders", "clicks").consumers] == ["clicks", "orders"]
    with pytest.raises(SetupError, match="queue 'ordrs' has no consumer; did you mean 'orders'"):
        fpika.worker("ordrs")
    with pytest.raises(SetupError, match="'x' has no consumer"):
        choose([], ["x"])


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({"threads": 0}, "threads is 0; expected"),
        ({"threads": True}, "threads is True; expected"),
        ({"threads": "8"}, "threads is '8'; expected"),
        ({"drain_timeout": -1}, "drain_timeout is -1; expected seconds"),
        ({"drain_timeout": float("nan")}, "drain_timeout is nan; expected seconds"),
        ({"drain_timeout": None}, "drain_timeout is None; expected seconds"),
    ],
    ids=str,
)
def test_a_worker_says_what_is_wrong_before_it_starts(fpika: Pika, about: Any, said: str) -> None:
    fpika.consumer("orders")(nothing)
    with pytest.raises(ValueError, match=said):
        fpika.worker(**about)


# What becomes of a delivery


def raising(error: BaseException) -> Callable[[Delivery], None]:
    def handle(delivery: Delivery) -> None:
        raise error

    return handle


@pytest.mark.parametrize("redelivered", [False, True])
@pytest.mark.parametrize("on_error", ["reject", "requeue-once"])
@pytest.mark.parametrize(
    ("error", "action"),
    [
        (None, Action.ACK),
        (Reject("no"), Action.REJECT),
        (Requeue(), Action.REQUEUE),
        (ZeroDivisionError("oh"), None),
        (SystemExit(3), None),
        (KeyboardInterrupt(), None),
        (GeneratorExit(), None),
    ],
    ids=repr,
)
def test_the_outcome_is_what_the_handler_says(
    fpika: Pika, error: BaseException | None, action: Action | None, on_error: Any, redelivered: bool
) -> None:
    handler = nothing if error is None else raising(error)
    fpika.consumer("orders", on_error=on_error)(handler)
    outcome = fpika.run_consumer(handler, b"", redelivered=redelivered)
    if action is None:
        action = Action.REQUEUE if on_error == "requeue-once" and not redelivered else Action.REJECT
    assert outcome.actions == (action,)
    assert outcome.error is error
    assert (outcome.acked, outcome.rejected, outcome.requeued) == (
        action is Action.ACK,
        action is Action.REJECT,
        action is Action.REQUEUE,
    )


def test_an_app_context_of_its_own_ends_with_each_run(app: Flask, fpika: Pika) -> None:
    ended: list[Any] = []
    seen: list[Any] = []
    app.teardown_appcontext(lambda exc: ended.append((g.get("mine"), exc)))
    error = ZeroDivisionError()

    @fpika.consumer("orders")
    def handle(delivery: Delivery) -> None:
        seen.append((current_app._get_current_object(), g.get("mine")))  # type: ignore[attr-defined]
        g.mine = delivery.text
        if delivery.text == "bad":
            raise error

    with app.app_context():
        g.mine = "the caller's"
        for body in ("first", "bad", "last"):
            fpika.run_consumer(handle, body)
            assert g.mine == "the caller's"
    assert seen == [(app, None)] * 3
    assert ended == [("first", None), ("bad", error), ("last", None), ("the caller's", None)]


def test_an_app_context_that_raises_as_it_ends_has_failed(
    app: Flask, fpika: Pika, caplog: pytest.LogCaptureFixture
) -> None:
    """What a database session raises at its end, for one: the handler's work may not be done."""
    error = OSError("at the end")

    @app.teardown_appcontext
    def teardown(_exc: BaseException | None) -> None:
        raise error

    fpika.consumer("orders")(nothing)
    fpika.consumer("again", on_error="requeue-once")(other)
    outcome = fpika.run_consumer(nothing, b"")
    assert (outcome.rejected, outcome.error) == (True, error)
    assert fpika.run_consumer(other, b"").requeued
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]


# Settling by hand


def test_a_handler_may_settle_itself(fpika: Pika) -> None:
    verbs: dict[str, tuple[Callable[[Delivery], None], Action]] = {
        "ack": (lambda delivery: delivery.ack(), Action.ACK),
        "nack": (lambda delivery: delivery.nack(), Action.GIVE_BACK),
        "nack-not": (lambda delivery: delivery.nack(requeue=False), Action.REJECT),
        "reject": (lambda delivery: delivery.reject(), Action.REJECT),
        "reject-not": (lambda delivery: delivery.reject(requeue=True), Action.REQUEUE),
    }
    for queue, (handler, action) in verbs.items():
        fpika.consumer(queue, ack="manual")(handler)
        outcome = fpika.run_consumer(handler, b"")
        assert (outcome.actions, outcome.error) == ((action,), None)
        assert outcome.requeued == (action in (Action.GIVE_BACK, Action.REQUEUE))


def test_a_second_settle_is_an_error_in_the_handler_and_the_first_one_counts(fpika: Pika) -> None:
    second: list[Any] = []

    @fpika.consumer("audit", ack="manual")
    def handle(delivery: Delivery) -> None:
        delivery.ack()
        for verb in (delivery.ack, delivery.nack, delivery.reject):
            with pytest.raises(SettlementError, match="settled before") as caught:
                verb()
            second.append(caught.value)

    outcome = fpika.run_consumer(handle, b"")
    assert (outcome.acked, outcome.error) == (True, None)
    assert len(second) == 3
    assert isinstance(second[0], RuntimeError)


def test_of_many_threads_that_settle_one_does(fpika: Pika) -> None:
    results: list[object] = []

    @fpika.consumer("audit", ack="manual")
    def handle(delivery: Delivery) -> None:
        together = threading.Barrier(8)

        def settle() -> None:
            together.wait(30)
            try:
                delivery.ack()
                results.append("settled")
            except SettlementError as exc:
                results.append(exc)

        threads = [threading.Thread(target=settle) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)

    for _ in range(20):
        results.clear()
        assert fpika.run_consumer(handle, b"").acked
        assert len(results) == 8
        assert results.count("settled") == 1


def test_what_is_not_settled_is_the_handlers_for_later(fpika: Pika) -> None:
    kept: list[Delivery] = []

    @fpika.consumer("later", ack="manual")
    def later(delivery: Delivery) -> None:
        kept.append(delivery)

    outcome = fpika.run_consumer(later, b"")
    assert outcome.actions == (None,)
    assert (outcome.acked, outcome.rejected, outcome.requeued) == (False, False, False)
    kept[0].ack()
    with pytest.raises(SettlementError):
        kept[0].ack()


@pytest.mark.parametrize("on_error", ["reject", "requeue-once"])
def test_a_handler_that_settles_itself_and_raises(fpika: Pika, on_error: Any) -> None:
    def settled(delivery: Delivery) -> None:
        delivery.ack()
        raise OSError

    def unsettled(delivery: Delivery) -> None:
        raise OSError

    kept: list[Delivery] = []

    def kept_and_unsettled(delivery: Delivery) -> None:
        kept.append(delivery)
        raise Requeue

    for handler in (settled, unsettled, kept_and_unsettled):
        fpika.consumer(handler.__name__, ack="manual", on_error=on_error)(handler)
    outcome = fpika.run_consumer(settled, b"")
    assert outcome.acked
    assert isinstance(outcome.error, OSError)
    assert fpika.run_consumer(unsettled, b"").actions == (
        Action.REJECT if on_error == "reject" else Action.REQUEUE,
    )
    assert fpika.run_consumer(kept_and_unsettled, b"").requeued
    with pytest.raises(SettlementError):  # the worker did
        kept[0].ack()


@pytest.mark.parametrize("ack", ["auto", "none"])
@pytest.mark.parametrize("verb", ["ack", "nack", "reject"])
def test_where_the_worker_settles_the_handler_may_not(fpika: Pika, ack: Any, verb: str) -> None:
    @fpika.consumer("orders", ack=ack)
    def handle(delivery: Delivery) -> None:
        with pytest.raises(SettlementError, match=r'raise Reject or Requeue.*ack="manual"'):
            getattr(delivery, verb)()

    outcome = fpika.run_consumer(handle, b"")
    assert (outcome.acked, outcome.error) == (True, None)


@pytest.mark.parametrize("error", [Reject("no"), Requeue(), OSError()], ids=repr)
def test_with_ack_none_it_is_acked_whatever_the_handler_does(fpika: Pika, error: Exception) -> None:
    handler = raising(error)
    fpika.consumer("clicks", ack="none", on_error="requeue-once")(handler)
    outcome = fpika.run_consumer(handler, b"")
    assert (outcome.acked, outcome.error) == (True, error)


# Batches


def test_a_batch_is_a_list_that_is_settled_together(fpika: Pika) -> None:
    got: list[list[str]] = []

    @fpika.consumer("batch", batch=10)
    def handle(deliveries: list[Delivery]) -> None:
        assert type(deliveries) is list
        got.append([delivery.text for delivery in deliveries])
        if "bad" in got[-1]:
            raise Reject("one is bad")

    outcome = fpika.run_consumer(handle, ["a", "b", "c"])
    assert outcome.actions == (Action.ACK,) * 3
    outcome = fpika.run_consumer(handle, ("a", "bad"))
    assert outcome.actions == (Action.REJECT,) * 2
    assert outcome.rejected
    assert fpika.run_consumer(handle, b"alone").acked
    assert fpika.run_consumer(handle, [{"id": 1}]).acked
    assert got == [["a", "b", "c"], ["a", "bad"], ["alone"], ['{"id": 1}']]


def test_without_batch_a_list_is_one_body(fpika: Pika) -> None:
    got: list[Any] = []

    @fpika.consumer("orders")
    def handle(delivery: Delivery) -> None:
        got.append(delivery.json)

    fpika.run_consumer(handle, [1, 2])
    assert got == [[1, 2]]


def test_a_batch_that_is_settled_by_hand_is_settled_one_by_one(fpika: Pika) -> None:
    @fpika.consumer("batch", batch=10, ack="manual")
    def handle(deliveries: list[Delivery]) -> None:
        deliveries[2].ack()
        deliveries[0].reject()
        if len(deliveries) == 4:
            raise OSError

    outcome = fpika.run_consumer(handle, [b""] * 3)
    assert outcome.actions == (Action.REJECT, None, Action.ACK)
    assert (outcome.acked, outcome.rejected, outcome.requeued) == (False, False, False)
    assert fpika.run_consumer(handle, [b""] * 4).actions == (
        Action.REJECT,
        Action.REJECT,
        Action.ACK,
        Action.REJECT,
    )


def test_requeue_once_looks_at_each_delivery_of_a_batch(fpika: Pika) -> None:
    handler = raising(OSError())
    fpika.consumer("batch", batch=10, on_error="requeue-once")(handler)
    assert fpika.run_consumer(handler, [b"", b""]).requeued
    assert fpika.run_consumer(handler, [b"", b""], redelivered=True).rejected


def test_an_empty_batch_is_none(fpika: Pika) -> None:
    fpika.consumer("batch", batch=10)(nothing)
    with pytest.raises(InvalidMessage, match="a batch has one message or more"):
        fpika.run_consumer(nothing, [])


# Async handlers


def test_a_handler_may_be_async(app: Flask, fpika: Pika) -> None:
    got: list[object] = []

    @fpika.consumer("orders")
    async def handle(delivery: Delivery) -> None:
        await asyncio.sleep(0)
        got.append((delivery.text, current_app._get_current_object()))  # type: ignore[attr-defined]
        if delivery.text == "bad":
            raise Reject("no")

    assert fpika.run_consumer(handle, "good").acked
    assert fpika.run_consumer(handle, "bad").rejected
    assert got == [("good", app), ("bad", app)]


def test_without_what_async_needs_that_is_said_before_any_message(
    fpika: Pika, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "asgiref.sync", None)

    @fpika.consumer("orders")
    async def handle(delivery: Delivery) -> None: ...

    with pytest.raises(SetupError, match=r"handle is async: Install Flask with the 'async' extra"):
        fpika.worker()
    with pytest.raises(SetupError, match="handle is async"):
        fpika.run_consumer(handle, b"")


# What a handler sees


def seen(fpika: Pika, body: object, **about: Any) -> Delivery:
    kept: list[Delivery] = []

    @fpika.consumer("orders")
    def handle(delivery: Delivery) -> None:
        kept.append(delivery)

    outcome = fpika.run_consumer(handle, body, **about)
    assert outcome.acked
    return kept[0]


def test_a_delivery_has_what_was_published(fpika: Pika) -> None:
    delivery = seen(
        fpika,
        {"id": 1},
        exchange="shop",
        routing_key="order.created",
        redelivered=True,
        headers={"tenant": "a"},
        message_id="m",
        correlation_id="c",
        reply_to="r",
        type="t",
        timestamp=7,
        expiration=60,
        priority=5,
    )
    assert (delivery.body, delivery.text, delivery.json) == (b'{"id": 1}', '{"id": 1}', {"id": 1})
    assert (delivery.queue, delivery.exchange, delivery.routing_key) == ("orders", "shop", "order.created")
    assert (delivery.redelivered, delivery.delivery_tag, delivery.headers) == (True, 1, {"tenant": "a"})
    assert (delivery.message_id, delivery.correlation_id, delivery.reply_to) == ("m", "c", "r")
    assert (delivery.type, delivery.timestamp, delivery.content_type) == ("t", 7, "application/json")
    assert (delivery.properties.expiration, delivery.properties.priority) == ("60000", 5)
    assert delivery.properties.delivery_mode == 2


def test_a_delivery_has_defaults(fpika: Pika) -> None:
    delivery = seen(fpika, b"raw")
    assert (delivery.exchange, delivery.routing_key, delivery.redelivered) == ("", "orders", False)
    assert (delivery.headers, delivery.correlation_id, delivery.reply_to, delivery.type) == (
        {},
        None,
        None,
        None,
    )
    assert delivery.message_id
    assert delivery.timestamp
    assert delivery.headers is delivery.headers
    assert seen(fpika, b"", routing_key="").routing_key == ""


def test_a_message_says_all_about_itself(fpika: Pika) -> None:
    delivery = seen(fpika, b"", properties=pika.BasicProperties(app_id="shop"))
    assert delivery.properties.app_id == "shop"
    delivery = seen(fpika, Message("text", exchange="e", routing_key="k", headers={"a": 1}), routing_key="")
    assert (delivery.text, delivery.exchange, delivery.routing_key) == ("text", "e", "k")
    assert delivery.headers == {"a": 1}


def test_a_message_needs_no_routing_key_beside_it(fpika: Pika) -> None:
    delivery = seen(fpika, Message("text", exchange="e", routing_key="k"))
    assert (delivery.text, delivery.exchange, delivery.routing_key) == ("text", "e", "k")


def test_what_a_handler_does_to_headers_stays_with_it(fpika: Pika) -> None:
    headers = {"n": [1]}
    delivery = seen(fpika, b"", headers=headers)
    delivery.headers["n"].append(2)
    assert headers == {"n": [1]}


def test_encoded_properties_are_decoded_for_who_looks() -> None:
    properties: Any = pika.BasicProperties(message_id="m", headers={"a": 1})
    delivery = Delivery("q", 1, False, "e", "k", b"".join(properties.encode()), b"")
    assert delivery.properties == properties
    assert delivery.properties is delivery.properties


def test_json_is_the_apps_own(app: Flask, fpika: Pika) -> None:
    app.json.loads = lambda *_args, **_kwargs: "mine"  # type: ignore[method-assign]
    got: list[Any] = []

    @fpika.consumer("orders")
    def handle(delivery: Delivery) -> None:
        got.append(delivery.json)

    fpika.run_consumer(handle, b"{}")
    assert got == ["mine"]
    assert Delivery("q", 1, False, "", "", b"", b'{"a": 1}').json == {"a": 1}


@pytest.mark.parametrize(
    ("look", "cause"),
    [("json", json.JSONDecodeError), ("json", UnicodeDecodeError), ("text", UnicodeDecodeError)],
)
def test_a_body_that_is_none_fails_its_handler_and_is_not_shown(
    fpika: Pika, caplog: pytest.LogCaptureFixture, look: str, cause: type[Exception]
) -> None:
    body = SECRET.encode() + (b"\xff" if cause is UnicodeDecodeError else b"")

    @fpika.consumer("orders")
    def handle(delivery: Delivery) -> None:
        getattr(delivery, look)

    outcome = fpika.run_consumer(handle, body)
    assert outcome.rejected
    assert isinstance(outcome.error, UndecodableMessage)
    assert isinstance(outcome.error.__cause__, cause)
    assert SECRET not in caplog.text


def test_properties_that_cannot_be_decoded_fail_their_handler_and_no_more(
    caplog: pytest.LogCaptureFixture,
) -> None:
    delivery = Delivery("q", 1, False, "e", "k", b"\x20\x00\x00\x00\x00\x10\x01", b"body")
    app = Flask("shop")
    got: list[bytes] = []
    assert run_handler(app, Consumer("q", nothing), lambda one: got.append(one.body), [delivery]) is None
    assert got == [b"body"]
    error = run_handler(app, Consumer("q", nothing), lambda one: one.headers, [delivery])
    assert isinstance(error, UndecodableMessage)
    log_failure(Consumer("q", nothing), [delivery], error, [Decision(Action.REJECT)])
    assert "message without an id of queue 'q'" in caplog.text


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({"body": {1}}, "set"),
        ({"body": b"", "prioriti": 1}, "did you mean 'priority'"),
        ({"body": b"", "routing_key": "k" * 256}, "routing_key has 256 bytes"),
        ({"body": Message(b""), "headers": {}}, "Message says all about itself"),
    ],
    ids=str,
)
def test_what_amqp_cannot_carry_is_never_delivered(fpika: Pika, about: Any, said: str) -> None:
    fpika.consumer("orders")(nothing)
    with pytest.raises(InvalidMessage, match=said):
        fpika.run_consumer(nothing, about.pop("body"), **about)


def test_a_method_of_an_object_is_found_by_its_name(fpika: Pika) -> None:
    class Shop:
        def __init__(self) -> None:
            self.seen: list[str] = []

        def handle(self, delivery: Delivery) -> None:
            self.seen.append(delivery.text)

    shop, another = Shop(), Shop()
    fpika.consumer("orders")(shop.handle)
    assert fpika.run_consumer(shop.handle, "tea").acked
    assert shop.seen == ["tea"]
    with pytest.raises(SetupError, match="is no handler"):
        fpika.run_consumer(another.handle, "tea")


def test_a_function_that_nobody_registered_is_no_consumer(fpika: Pika) -> None:
    with pytest.raises(SetupError, match=r"nothing .*is no handler.*@fpika.consumer"):
        fpika.run_consumer(nothing, b"")


def test_a_delivery_shows_its_address_and_no_secret(fpika: Pika) -> None:
    delivery = seen(fpika, SECRET, exchange="shop", routing_key="k", headers={"password": SECRET})
    shown = repr(delivery)
    assert shown == "<Delivery 1 of queue 'orders', from exchange 'shop' with routing key 'k'>"


# Signals


@pytest.fixture
def heard() -> Iterator[list[tuple[Any, ...]]]:
    """What was heard: the signal, the sender, and what it was about."""
    log: list[tuple[Any, ...]] = []

    def listener(name: str) -> Callable[..., None]:
        return lambda sender, **about: log.append((name, sender, about))

    listeners = {name: listener(name) for name in ("received", "handled", "handling_failed")}
    for name, function in listeners.items():
        getattr(signals, name).connect(function)
    yield log
    for name, function in listeners.items():
        getattr(signals, name).disconnect(function)


def test_signals_tell_what_comes_and_what_becomes_of_it(fpika: Pika, app: Flask) -> None:
    """In a worker the last two are told: see tests/test_worker.py."""
    log: list[tuple[str, Any, str]] = []

    def received(sender: Flask, delivery: Delivery) -> None:
        assert current_app._get_current_object() is sender  # type: ignore[attr-defined]
        log.append(("received", sender, delivery.text))

    @fpika.consumer("orders", batch=2)
    def handle(deliveries: list[Delivery]) -> None:
        log.extend(("handler", app, delivery.text) for delivery in deliveries)

    with signals.received.connected_to(received):
        fpika.run_consumer(handle, ["a", "b"])
    assert log == [
        ("received", app, "a"),
        ("received", app, "b"),
        ("handler", app, "a"),
        ("handler", app, "b"),
    ]


def test_handled_and_failed_are_told_of_each_delivery(
    fpika: Pika, app: Flask, heard: list[tuple[Any, ...]]
) -> None:
    deliveries = [Delivery("q", tag, False, "e", "k", b"", b"") for tag in (1, 2)]
    error = OSError()
    tell(app, deliveries, None, 0.5)
    tell(app, deliveries[:1], error, 0.25)
    assert heard == [
        ("handled", app, {"delivery": deliveries[0], "seconds": 0.5}),
        ("handled", app, {"delivery": deliveries[1], "seconds": 0.5}),
        ("handling_failed", app, {"delivery": deliveries[0], "seconds": 0.25, "error": error}),
    ]


def test_a_receiver_that_raises_breaks_nothing(fpika: Pika, caplog: pytest.LogCaptureFixture) -> None:
    def receiver(_sender: Flask, **_about: Any) -> None:
        raise ZeroDivisionError

    fpika.consumer("orders")(nothing)
    with signals.received.connected_to(receiver):
        assert fpika.run_consumer(nothing, b"").acked
    assert "a receiver of the signal 'received' raised" in caplog.text


# Logs


@pytest.mark.parametrize(
    ("error", "level", "said"),
    [
        (Reject("too old"), "WARNING", "rejects message m1 of queue 'orders'"),
        (Requeue("not yet"), "INFO", "requeues message m1 of queue 'orders'"),
        (ZeroDivisionError("oh"), "ERROR", "failed at message m1 of queue 'orders'"),
        (SystemExit(3), "ERROR", "failed at message m1 of queue 'orders'"),
    ],
    ids=repr,
)
def test_what_fails_is_one_line_that_says_which_and_never_what(
    fpika: Pika, caplog: pytest.LogCaptureFixture, error: BaseException, level: str, said: str
) -> None:
    caplog.set_level(logging.DEBUG, CONSUMER_LOG)
    handler = raising(error)
    fpika.consumer("orders")(handler)
    fpika.run_consumer(
        handler,
        SECRET,
        exchange="shop",
        routing_key="k",
        redelivered=True,
        message_id="m1",
        headers={"password": SECRET},
    )
    (record,) = caplog.records
    assert (record.name, record.levelname) == (CONSUMER_LOG, level)
    message = record.getMessage()
    assert said in message
    assert "exchange 'shop', routing key 'k', redelivered" in message
    assert handler.__qualname__ in message
    assert SECRET not in caplog.text
    if level == "ERROR":
        assert record.exc_info is not None
        assert record.exc_info[1] is error
    else:
        assert record.exc_info is None
        assert str(error) in message


def test_the_line_of_a_long_batch_is_short(fpika: Pika, caplog: pytest.LogCaptureFixture) -> None:
    handler = raising(Reject("no"))
    fpika.consumer("batch", batch=100)(handler)
    fpika.run_consumer(handler, [b""] * 100)
    (record,) = caplog.records
    assert record.getMessage().count("message ") == 3
    assert "; ...: no" in record.getMessage()


def test_what_succeeds_says_nothing(fpika: Pika, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    fpika.consumer("orders")(nothing)
    fpika.run_consumer(nothing, b"")
    assert not [record for record in caplog.records if record.name.startswith("flask_pika")]


def test_a_filter_lets_log_lines_say_which_message_they_are_about(fpika: Pika) -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.addFilter(DeliveryFilter())
    handler.setFormatter(logging.Formatter("%(queue)s %(message_id)s %(message)s"))
    mine = logging.getLogger("tests.mine")
    mine.addHandler(handler)
    mine.setLevel(logging.INFO)
    consumer_log = logging.getLogger(CONSUMER_LOG)
    consumer_log.addHandler(handler)

    @fpika.consumer("orders")
    def handle(delivery: Delivery) -> None:
        mine.info("handler")
        thread = threading.Thread(target=mine.info, args=("a thread of its own",))
        thread.start()
        thread.join()
        raise OSError

    @fpika.consumer("async")
    async def async_handle(delivery: Delivery) -> None:
        mine.info("task")

    try:
        mine.info("before")
        fpika.run_consumer(handle, b"", message_id="m1")
        fpika.run_consumer(async_handle, b"", message_id="m2")
        mine.info("after")
    finally:
        mine.removeHandler(handler)
        consumer_log.removeHandler(handler)
    lines = [line for line in stream.getvalue().splitlines() if line.startswith(("-", "orders", "async"))]
    assert lines[:3] == ["- - before", "orders m1 handler", "- - a thread of its own"]
    assert lines[3].startswith("orders m1 ")
    assert "failed at message m1" in lines[3]
    assert lines[4:] == ["async m2 task", "- - after"]
