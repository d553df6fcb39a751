"""A rehearsal: a consumer's handler, run as a worker would run it, with no broker."""

from __future__ import annotations

import os
from collections.abc import Sequence

from flask import Flask

from .consumer import Consumer
from .delivery import Action, Delivery, ManualDelivery
from .handling import Outcome, bound_handler, handle, log_failure
from .message import Message, check_address, checked_properties, encode_body
from .wire import make_ids, now


def rehearse(
    app: Flask,
    consumer: Consumer,
    messages: Sequence[Message],
    redelivered: bool,
    has_dead_letters: bool,
) -> Outcome:
    """What becomes of deliveries of these messages. See :meth:`flask_pika.Pika.run_consumer`."""
    delay = 0.0
    settled: dict[int, Action] = {}
    deliveries = [
        _delivery(app, consumer, tag, message, redelivered, settled)
        for tag, message in enumerate(messages, 1)
    ]
    if consumer.ack == "none":
        settled.update((delivery.delivery_tag, Action.ACK) for delivery in deliveries)
    error = handle(app, consumer, bound_handler(app, consumer), deliveries)
    decisions = [consumer.decide(delivery, error, has_dead_letters) for delivery in deliveries]
    if error is not None:
        log_failure(consumer, deliveries, error, decisions)
    for delivery, decision in zip(deliveries, decisions, strict=True):
        if decision.action is not None:
            settled[delivery.delivery_tag] = decision.action
            delay = max(delay, decision.delay)
    return Outcome(tuple(settled.get(delivery.delivery_tag) for delivery in deliveries), error, delay)


def _delivery(
    app: Flask, consumer: Consumer, tag: int, message: Message, redelivered: bool, settled: dict[int, Action]
) -> Delivery:
    check_address(message.exchange, message.routing_key, message.mandatory)
    body, content_type = encode_body(message.body, app.json.dumps)
    properties = checked_properties(message.named, message.properties, content_type)
    properties.message_id = properties.message_id or make_ids(os.urandom)()
    properties.timestamp = properties.timestamp or now()
    about = (consumer.queue, tag, redelivered, message.exchange, message.routing_key, properties, body)
    if consumer.ack == "manual":
        return ManualDelivery(*about, settle=settled.__setitem__, forgotten=lambda _tag: None)
    return Delivery(*about)
