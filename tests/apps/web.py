"""An app for servers and scripts of the tests: it publishes, and tells what its pool looks like."""

from __future__ import annotations

import os
from dataclasses import asdict

from flask import Flask
from flask.typing import ResponseReturnValue

from flask_pika import Pika

fpika = Pika()


def create_app() -> Flask:
    """Configured by the environment: FLASK_PIKA_PARAMS, FLASK_PIKA_POOL_PARAMS."""
    app = Flask("web")
    app.config.from_prefixed_env()
    fpika.init_app(app)

    @app.post("/publish/<queue>/<body>")
    def publish(queue: str, body: str) -> ResponseReturnValue:
        with fpika.channel() as ch:
            ch.basic_publish("", queue, body.encode(), mandatory=True)
        return {"pid": os.getpid()}

    @app.post("/confirm/<queue>/<body>")
    def confirm(queue: str, body: str) -> ResponseReturnValue:
        return {"pid": os.getpid(), "id": fpika.publish(body, routing_key=queue)}

    @app.get("/stats")
    def stats() -> ResponseReturnValue:
        return {"pid": os.getpid(), **asdict(fpika.stats())}

    return app


def create_used_app() -> Flask:
    """An app whose pool was used before the server forks its workers."""
    app = create_app()
    with app.app_context(), fpika.channel() as ch:
        ch.basic_publish("", "preload", b"from the master", mandatory=True)
        fpika.publish(b"from the master", routing_key="nowhere", mandatory=False)
    return app
