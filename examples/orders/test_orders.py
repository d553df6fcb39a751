"""How an app like this is tested, with no broker and with the embedded one: pytest examples/orders"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import func, select
from werkzeug.test import TestResponse

from flask_pika import Message, Outcome
from flask_pika.broker import Broker
from orders import create_app, work
from orders.database import Order, advance, create, session
from orders.messages import QUEUE, declare_queue, fpika
from orders.work import make_tea

MakeApp = Callable[..., Flask]


@pytest.fixture
def make_app(tmp_path: Path) -> Iterator[MakeApp]:
    """Makes the app, with a database of the test's own."""
    made: list[Flask] = []

    def make(broker: str, publisher: dict[str, float] | None = None) -> Flask:
        app = create_app(
            {
                "PIKA_PARAMS": broker,
                "PIKA_PUBLISHER_PARAMS": publisher,
                "ORDERS_DATABASE": str(tmp_path / "orders.sqlite"),
                "ORDERS_SECONDS": 0,
                "TESTING": True,
            }
        )
        with app.app_context():
            create()
        made.append(app)
        return app

    yield make
    for app in made:
        with app.app_context():
            fpika.close()
        app.extensions["orders"].dispose()


@pytest.fixture
def app(make_app: MakeApp) -> Flask:
    """The app, for tests in which it needs no broker."""
    return make_app("amqp://nobody.invalid")


@pytest.fixture
def boiled(monkeypatch: pytest.MonkeyPatch) -> list[Order]:
    """The orders that the worker has worked on."""
    orders: list[Order] = []
    monkeypatch.setattr(work, "boil", orders.append)
    return orders


def place(client: FlaskClient, order_id: object, **fields: str) -> TestResponse:
    """Fill in the form and send it."""
    filled_in = {"id": str(order_id), "customer": "Ann", "tea": "Assam", "cups": "2"}
    return client.post("/orders", data={**filled_in, **fields})


def add_order(app: Flask) -> UUID:
    """An order in the database, of which nobody was told."""
    with app.app_context():
        order = Order(id=uuid4(), customer="Ann", tea="Assam", cups=2)
        session().add(order)
        session().commit()
        return order.id


def deliver(app: Flask, order_id: UUID, redelivered: bool = False) -> Outcome:
    """Have the consumer handle a message."""
    with app.app_context():
        return fpika.run_consumer(make_tea, {"id": order_id}, redelivered=redelivered)


@contextmanager
def worker(app: Flask) -> Iterator[None]:
    """What ``flask pika worker`` runs, in this process."""
    with app.app_context():
        made = fpika.worker()
    with made:
        yield


def state_of(app: Flask, order_id: UUID) -> str:
    with app.app_context():
        return session().get_one(Order, order_id).state


def count(app: Flask) -> int | None:
    with app.app_context():
        return session().scalar(select(func.count()).select_from(Order))


# With no broker: what the app publishes is recorded, and the consumer is called.


def test_an_order_is_stored_and_published(app: Flask, pika_messages: list[Message]) -> None:
    order_id = uuid4()
    answer = place(app.test_client(), order_id)
    assert (answer.status_code, answer.location) == (303, f"/#order-{order_id}")
    (message,) = pika_messages
    assert (message.routing_key, message.json) == ("orders", {"id": str(order_id)})
    assert message.properties is not None
    assert message.properties.delivery_mode == 2, "it survives a restart of the broker"
    assert state_of(app, order_id) == "queued"


def test_the_same_form_sent_twice_is_one_order(app: Flask, pika_messages: list[Message]) -> None:
    order_id = uuid4()
    client = app.test_client()
    assert place(client, order_id).status_code == place(client, order_id).status_code == 303
    assert count(app) == len(pika_messages) == 1


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("customer", " ", "Please give a name"),
        ("customer", "x" * 41, "Please give a name"),
        ("tea", "Coffee", "Please choose"),
        ("cups", "0", "Please order"),
        ("cups", "13", "Please order"),
        ("cups", "many", "Please order"),
    ],
)
def test_what_is_wrong_with_a_form_is_said_and_the_rest_is_kept(
    app: Flask, pika_messages: list[Message], field: str, value: str, says: str
) -> None:
    answer = place(app.test_client(), uuid4(), **{"tea": "Sencha", field: value})
    assert answer.status_code == 422
    assert says in answer.text
    assert f'aria-describedby="{field}-error"' in answer.text
    assert field == "customer" or 'value="Ann"' in answer.text
    assert field == "tea" or "<option selected>Sencha" in answer.text
    assert not pika_messages
    assert count(app) == 0


def test_a_form_without_its_id_is_refused(app: Flask) -> None:
    assert place(app.test_client(), "7").status_code == 400


@pytest.mark.usefixtures("pika_messages")
def test_what_users_write_is_text_and_never_html(app: Flask) -> None:
    client = app.test_client()
    place(client, uuid4(), customer="<b>Ann</b>")
    page = client.get("/").text
    assert "&lt;b&gt;Ann" in page
    assert "<b>" not in page


def test_the_worker_makes_the_tea(app: Flask, boiled: list[Order]) -> None:
    order_id = add_order(app)
    assert deliver(app, order_id).acked
    assert state_of(app, order_id) == "done"
    assert [order.id for order in boiled] == [order_id]


def test_a_message_that_comes_twice_is_acked_and_does_nothing(app: Flask, boiled: list[Order]) -> None:
    order_id = add_order(app)
    assert deliver(app, order_id).acked
    assert deliver(app, order_id, redelivered=True).acked
    assert len(boiled) == 1


def test_of_two_workers_with_the_same_message_one_moves_the_order(app: Flask) -> None:
    order_id = add_order(app)
    both = threading.Barrier(2)

    def advance_it(_number: int) -> bool:
        with app.app_context():
            assert session().get_one(Order, order_id).state == "unsent"
            both.wait(60)
            moved = advance(order_id, "done")
            session().commit()
            return moved

    with ThreadPoolExecutor(2) as workers:
        assert sorted(workers.map(advance_it, range(2))) == [False, True]


def test_an_order_never_goes_back(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    def publish_to_a_quick_worker(body: dict[str, UUID], **_about: str) -> None:
        assert deliver(app, body["id"]).acked

    # Before publish() has returned.
    monkeypatch.setattr(fpika, "publish", publish_to_a_quick_worker)
    order_id = uuid4()
    assert place(app.test_client(), order_id).status_code == 303
    assert state_of(app, order_id) == "done"


def test_an_order_that_is_not_there_is_rejected(app: Flask) -> None:
    assert deliver(app, uuid4()).rejected


def test_what_goes_wrong_is_tried_again_once(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_order: Order) -> None:
        raise RuntimeError("the kettle is broken")

    monkeypatch.setattr(work, "boil", fail)
    order_id = add_order(app)
    assert deliver(app, order_id).requeued
    assert deliver(app, order_id, redelivered=True).rejected
    assert state_of(app, order_id) == "unsent"


# With the embedded broker: all of it, and the broker's failures.


def test_an_order_is_done_when_the_worker_has_had_it(make_app: MakeApp, pika_broker: Broker) -> None:
    app = make_app(pika_broker.url)
    with app.app_context():
        declare_queue()
    client = app.test_client()
    order_id = uuid4()
    place(client, order_id)
    assert client.get(f"/states?id={order_id}").json == {str(order_id): "queued"}
    with worker(app):
        pika_broker.queues[QUEUE].wait_for(lambda _messages: state_of(app, order_id) == "done")
    assert client.get(f"/states?id={order_id}").json == {str(order_id): "done"}
    assert pika_broker.queues[QUEUE].messages == pika_broker.queues[QUEUE].unacked == []


def test_the_queue_is_declared_when_there_is_none(make_app: MakeApp, pika_broker: Broker) -> None:
    order_id = uuid4()
    place(make_app(pika_broker.url).test_client(), order_id)
    (message,) = pika_broker.queues[QUEUE].wait_for(1)
    assert message.json == {"id": str(order_id)}


def test_without_a_broker_the_order_is_kept_and_can_be_sent_again(
    make_app: MakeApp, pika_broker: Broker
) -> None:
    app = make_app(pika_broker.url, publisher={"timeout": 3})
    client = app.test_client()
    order_id = uuid4()
    pika_broker.refuse()
    answer = place(client, order_id)
    assert answer.status_code == 303
    assert state_of(app, order_id) == "unsent"
    page = client.get(answer.location or "").text
    assert "the kitchen could not be reached" in page
    (send_again,) = re.findall(r'action="(/orders/.+?/send)"', page)

    pika_broker.accept()
    for _press in range(10):  # the publisher is back within a second, and the app waits for three here
        assert client.post(send_again).status_code == 303
        if state_of(app, order_id) != "unsent":
            break
    assert len(pika_broker.queues[QUEUE].wait_for(1)) == 1
    assert state_of(app, order_id) == "queued"
    assert "could not be reached" not in client.get("/").text


def test_an_order_whose_confirm_got_lost_is_unsent_and_may_be_done_all_the_same(
    make_app: MakeApp, pika_broker: Broker
) -> None:
    app = make_app(pika_broker.url, publisher={"timeout": 3})
    with app.app_context():
        declare_queue()
    client = app.test_client()
    order_id = uuid4()
    pika_broker.hold_confirms()
    place(client, order_id)
    assert state_of(app, order_id) == "unsent", "nobody knows"
    pika_broker.release_confirms()
    client.post(f"/orders/{order_id}/send")
    assert len(pika_broker.queues[QUEUE].wait_for(2)) == 2
    with worker(app):
        pika_broker.queues[QUEUE].wait_for(lambda _messages: state_of(app, order_id) == "done")
