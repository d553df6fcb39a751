"""A tea counter: orders come by a form, and a worker makes the tea. README.md says how to run it."""

from __future__ import annotations

from pathlib import Path

import click
from flask import Flask

from flask_pika import BrokerUnavailable

from . import database
from .counter import counter
from .messages import QUEUE, declare_queue, fpika
from .work import make_tea

__all__ = ["create_app", "make_tea"]


def create_app(config: dict[str, object] | None = None) -> Flask:
    """The app, of the web server and of the worker. It connects to nothing.

    Its configuration may come from the environment: FLASK_PIKA_PARAMS, FLASK_ORDERS_DATABASE and
    FLASK_ORDERS_SECONDS.
    """
    app = Flask(__name__, instance_path=str(Path(__file__).with_name("instance")))
    app.config["PIKA_PARAMS"] = "amqp://guest:guest@127.0.0.1:5672/%2F"
    # Somebody looks at a browser that waits.
    app.config["PIKA_PUBLISHER_PARAMS"] = {"timeout": 3}
    app.config["ORDERS_DATABASE"] = str(Path(app.instance_path) / "orders.sqlite")
    app.config["ORDERS_SECONDS"] = 2  # for an order's tea
    app.config.from_prefixed_env()
    app.config.from_mapping(config)

    database.init_app(app)
    fpika.init_app(app)
    app.register_blueprint(counter)

    @app.cli.command("init")
    def init() -> None:
        """Make the database and the queue, where there is none. Run it before all else."""
        database.create()
        try:
            declare_queue()
        except BrokerUnavailable as exc:
            raise click.ClickException(str(exc)) from exc
        click.echo(f"Ready: the queue {QUEUE!r}, and the database {app.config['ORDERS_DATABASE']}")

    return app
