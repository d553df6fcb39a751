"""The quickstart: one view publishes a message, another gets the next one.

flask --app examples/quickstart/app run

Without a configuration, it uses the embedded broker: nothing has to be installed for it.
"""

from __future__ import annotations

from flask import Flask, request
from flask.typing import ResponseReturnValue

from flask_pika import BrokerUnavailable, Pika, PoolTimeout, PublishUnknown

fpika = Pika()


def create_app(config: dict[str, object] | None = None) -> Flask:
    """The app. Its configuration may come from the environment: FLASK_PIKA_PARAMS=amqp://..."""
    app = Flask("quickstart")
    app.config["PIKA_PARAMS"] = "embedded://"  # a broker in this process, for trying it out
    app.config["PIKA_POOL_PARAMS"] = {"pool_size": 8}
    app.config["QUEUE"] = "quickstart"
    app.config.from_prefixed_env()
    app.config.from_mapping(config)
    queue = str(app.config["QUEUE"])
    fpika.init_app(app)

    @app.post("/messages")
    def publish() -> ResponseReturnValue:
        with fpika.channel() as ch:
            ch.queue_declare(queue, durable=True)
        message_id = fpika.publish(request.get_data(as_text=True), routing_key=queue)
        return {"published": request.get_data(as_text=True), "message_id": message_id}, 201

    @app.get("/messages/next")
    def get_next() -> ResponseReturnValue:
        with fpika.channel() as ch:
            ch.queue_declare(queue, durable=True)
            method, _, body = ch.basic_get(queue, auto_ack=True)
        if method is None or body is None:
            return {"error": "the queue is empty"}, 404
        return {"message": body.decode(), "left": method.message_count}

    @app.errorhandler(BrokerUnavailable)
    @app.errorhandler(PoolTimeout)
    @app.errorhandler(PublishUnknown)
    def no_broker(error: Exception) -> ResponseReturnValue:
        return {"error": str(error)}, 503, {"Retry-After": "1"}

    return app
