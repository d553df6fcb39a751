"""The app that the lab puts under load: a view that publishes, and a consumer that keeps a ledger.

``STAND_IN`` in the environment breaks it on purpose, as people break it by accident; the lab must notice.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from dataclasses import asdict
from pathlib import Path

import pika.exceptions
from flask import Flask
from flask.typing import ResponseReturnValue

from flask_pika import Delivery, FlaskPikaError, Pika
from flask_pika.delivery import ManualDelivery
from tests.faults import mishaps
from tests.ledger import Ledger

fpika = Pika()


def create_app() -> Flask:
    """Configured by the environment: FLASK_PIKA_*; QUEUE, EXCHANGE, LEDGER (path), WORK (seconds), STAND_IN;
    PASSWORD_FILE, which counts when it is there, as orchestrators give secrets; and PLACE and WALL_CLOCK, of
    which ``mishaps.py`` tells."""
    # The more is written, the more is searched for secrets.
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(process)d %(message)s"
    )
    logging.getLogger("flask_pika").setLevel(logging.DEBUG)
    app = Flask("lab")
    if "WALL_CLOCK" in os.environ:
        mishaps.falsify_clock(Path(os.environ["PLACE"]))
    app.config.from_prefixed_env()
    with contextlib.suppress(FileNotFoundError):
        password = Path(os.environ.get("PASSWORD_FILE", os.devnull)).read_text()
        for node in app.config["PIKA_PARAMS"] if password else ():
            node["password"] = password
    fpika.init_app(app)
    queue, stand_in = os.environ["QUEUE"], os.environ.get("STAND_IN", "")
    exchange = os.environ.get("EXCHANGE", "")

    def send(id_: str) -> None:
        fpika.publish(id_, exchange=exchange, routing_key=queue, message_id=id_)

    @app.post("/publish/<id_>")
    def publish(id_: str) -> ResponseReturnValue:
        if stand_in == "answers first":
            mishaps.publish_later(app, lambda: send(id_))
            return {"id": id_}
        if stand_in == "wall clock":
            mishaps.publish_by_wall_clock(fpika, id_, queue)
            return {"id": id_}
        if stand_in == "no confirms":
            with fpika.channel() as ch:
                ch.basic_publish(exchange, queue, id_.encode())
            return {"id": id_}
        send(id_)
        return {"id": id_}

    @app.post("/pool/<id_>")
    def through_the_pool(id_: str) -> ResponseReturnValue:
        with fpika.channel() as ch:
            ch.basic_publish(exchange, queue, id_.encode(), mandatory=True)
        return {"id": id_}

    @app.get("/stats")
    def stats() -> ResponseReturnValue:
        return {"pid": os.getpid(), "repr": repr(fpika), **asdict(fpika.stats())}

    @app.errorhandler(FlaskPikaError)
    @app.errorhandler(pika.exceptions.AMQPError)
    def refused(exc: Exception) -> ResponseReturnValue:
        app.logger.warning("refused: %s", exc)
        if stand_in == "swallows errors":
            return {"text": str(exc)}
        return {"error": type(exc).__name__, "text": str(exc), "repr": repr(exc)}, 503

    mishaps.add_views(app, fpika, queue, send, stand_in)
    consume(queue, stand_in)
    return app


def consume(queue: str, stand_in: str) -> None:
    """A handler that takes ``WORK`` seconds."""
    ledger = Ledger(Path(os.environ["LEDGER"]))
    seconds = float(os.environ["WORK"])

    def work(delivery: Delivery) -> None:
        with ledger.run(delivery):
            time.sleep(seconds)

    if stand_in == "ack first":

        @fpika.consumer(queue, prefetch=32, ack="manual")
        def acks_first(delivery: ManualDelivery) -> None:
            delivery.ack()
            work(delivery)

    else:
        fpika.consumer(queue, prefetch=32)(work)


def create_used_app() -> Flask:
    """The app, which has published before its server forks."""
    app = create_app()
    with app.app_context():
        fpika.publish(b"", routing_key="nowhere", mandatory=False)
        with fpika.channel():
            pass
    return app
