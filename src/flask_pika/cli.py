"""The ``flask pika`` commands."""

from __future__ import annotations

import click
from flask import current_app
from flask.cli import AppGroup

from .errors import BrokerUnavailable
from .extension import states_of

pika_cli = AppGroup("pika", help="RabbitMQ: what the app has of it, and how it is.")


@pika_cli.command("ping")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=10.0,
    show_default=True,
    help="Seconds for each broker, all in all.",
)
def ping_command(timeout: float) -> None:
    """Connect to each broker of the app, and say what answers and how fast.

    Exits 1 when one does not, with a line that says why.
    """
    states = states_of(current_app)
    if not states:
        raise click.ClickException("this app has no Pika object: call Pika(app) or init_app(app)")
    failed = False
    for prefix, state in states.items():
        label = f"{prefix}: " if len(states) > 1 else ""
        try:
            pong = state.ping(timeout)
        except BrokerUnavailable as exc:
            failed = True
            click.echo(f"{label}{exc}", err=True)
        else:
            click.echo(f"{label}{pong.node} is {pong.product}, round trip {pong.round_trip * 1e3:.2f} ms")
    if failed:
        raise SystemExit(1)
