"""What goes through RabbitMQ: a message for each order, in a durable queue."""

from __future__ import annotations

from flask import current_app

from flask_pika import FlaskPikaError, Pika, Unroutable

from .database import Order, advance, session

fpika = Pika()
QUEUE = "orders"


def declare_queue() -> None:
    with fpika.channel() as channel:
        channel.queue_declare(QUEUE, durable=True)


def send(order: Order) -> None:
    """Publish an order that is committed, and call it queued when the broker has it.

    It is committed before, lest the worker hear of an order that is not there. So there may be one that the
    broker has not, or not surely: that stays "unsent", in the database, until it is sent again.
    """
    try:
        try:
            _publish(order)
        except Unroutable:  # a broker that is new here
            declare_queue()
            _publish(order)
    except FlaskPikaError as exc:
        current_app.logger.warning("Order %s stays unsent: %s", order.id, exc)
        return
    # The worker may have been quicker: what is done stays done.
    advance(order.id, "queued")
    session().commit()


def _publish(order: Order) -> None:
    # The id alone: what the worker has to know of an order is in the database.
    fpika.publish({"id": order.id}, routing_key=QUEUE, message_id=str(order.id))
