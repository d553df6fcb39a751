"""The worker's part: ``flask --app examples/orders pika worker`` runs it."""

from __future__ import annotations

import time
from uuid import UUID

from flask import current_app

from flask_pika import Delivery, Reject

from .database import Order, advance, session
from .messages import QUEUE, fpika


# A message is lost when it is rejected, as this queue has no dead-letter exchange. An error that passes, such
# as a database that is locked for long, is worth a second try.
@fpika.consumer(QUEUE, prefetch=8, on_error="requeue-once")
def make_tea(delivery: Delivery) -> None:
    """Make an order's tea. Its message comes at least once, and what it does is done once.

    It is acked after this has returned, and so after the commit. Whoever dies in between leaves it to be
    delivered again.
    """
    order = session().get(Order, UUID(delivery.json["id"]))
    if order is None:
        raise Reject("there is no such order")
    if order.state == "done":
        current_app.logger.info("Order %s is done already", order.id)
        return
    session().commit()  # ends the transaction of this look: the work below takes its time

    boil(order)

    # What else the work has to write belongs into this transaction, and is to be written only if this says
    # that nobody else was quicker: the same message may be in two workers' hands, when a connection was lost.
    advance(order.id, "done")
    session().commit()


def boil(order: Order) -> None:
    """What takes so long that no browser is to wait for it."""
    current_app.logger.info("Order %s: %d x %s", order.id, order.cups, order.tea)
    time.sleep(current_app.config["ORDERS_SECONDS"])
