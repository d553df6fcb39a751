"""The ``flask pika`` commands: ``ping``, ``publish`` and ``broker``; the others have modules of their own."""

from __future__ import annotations

import contextlib
import importlib
import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import click
from flask import current_app
from flask.cli import AppGroup
from pika import exceptions as pika_errors

from .dead_cli import make_group as make_dead_group
from .errors import BrokerUnavailable, PublishManyFailed
from .extension import states_of
from .message import Message
from .publisher import Failure
from .state import State
from .topology_cli import make_commands as make_topology_commands
from .worker_cli import make_command as make_worker_command

pika_cli = AppGroup("pika", help="RabbitMQ: what the app has of it, and how it is.")


class _Seconds(click.FloatRange):
    """A finite number of seconds; click takes "nan" for a number in any range."""

    name = "seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        seconds = super().convert(value, param, ctx)
        if not math.isfinite(seconds):
            self.fail(f"{value!r} is not a finite number of seconds", param, ctx)
        return seconds


def _states() -> dict[str, State]:
    """The app's, of which there is one at least. From here on, only the command says what goes wrong."""
    # An app that logs would get pika's account of it, too, with a traceback.
    logging.getLogger("pika").setLevel(logging.CRITICAL + 1)
    logging.getLogger("flask_pika").setLevel(logging.CRITICAL + 1)
    states = states_of(current_app)
    if not states:
        raise click.ClickException("this app has no Pika object: call Pika(app) or init_app(app)")
    return states


def _state(config_prefix: str | None) -> State:
    """The one that is meant."""
    states = _states()
    if config_prefix is None and len(states) > 1:
        raise click.UsageError(f"this app has several Pika objects, say --config-prefix: {', '.join(states)}")
    if config_prefix is not None and config_prefix not in states:
        raise click.BadParameter(f"this app has {', '.join(states)}", param_hint="--config-prefix")
    return states[config_prefix] if config_prefix else next(iter(states.values()))


@pika_cli.command("ping")
@click.option(
    "--timeout",
    type=_Seconds(min=0, min_open=True),
    default=10.0,
    show_default=True,
    help="Seconds for each broker, all in all.",
)
def ping_command(timeout: float) -> None:
    """Connect to each broker of the app, and say what answers and how fast.

    Exits 1 when one does not, with a line that says why.
    """
    states = _states()
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


pika_cli.add_command(make_worker_command(_Seconds(min=0)))
pika_cli.add_command(make_dead_group(_state, _Seconds(min=0, min_open=True)))


for _command in make_topology_commands(
    lambda prefix: _states() if prefix is None else {prefix: _state(prefix)}, _Seconds(min=0, min_open=True)
):
    pika_cli.add_command(_command)


@pika_cli.command("broker", with_appcontext=False)
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=5672, show_default=True, help="0 for any free one."
)
def broker_command(host: str, port: int) -> None:
    """Run the embedded broker by itself, until Ctrl-C: for demos and tests.

    Prints a line for each thing that happens. Keeps nothing on disk.
    """
    # Not an import statement at the top: nobody else needs asyncio, which takes its time.
    broker_module = importlib.import_module("flask_pika.broker")
    began = time.monotonic()

    def tell(event: str) -> None:
        click.echo(f"{time.monotonic() - began:9.3f} s  {event}")

    ended = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: ended.set())
    try:
        with broker_module.Broker(host, port, event=tell) as broker:
            click.echo(
                f"The embedded broker listens on {broker.url}. Nothing is kept on disk. Ctrl-C ends it."
            )
            # With a timeout: without one, Python on some systems does not hear Ctrl-C.
            while not ended.wait(3600):
                pass
    except broker_module.BrokerError as exc:
        raise click.ClickException(str(exc)) from exc
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)
    click.echo("The embedded broker has ended; what it had is gone.")


#: Lines that are handed over at a time, at the most, each such chunk with its own timeout.
_CHUNK = 1000
#: Bytes that are read at a time, at the most.
_READ = 2**20
#: Failures that are told one by one.
_TOLD = 10
#: Bytes from which on the input is long, and a progress bar is shown to a person.
_LONG = 1_000_000


def _header(_context: click.Context, _param: click.Parameter, given: tuple[str, ...]) -> dict[str, str]:
    headers = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise click.BadParameter(f"{text!r} is not of the form name=value")
        headers[name] = value
    return headers


@pika_cli.command("publish")
@click.option("--exchange", default="", help="The exchange; by default the one that routes to queues.")
@click.option("--routing-key", default="", help="The routing key, which may be a queue's name.")
@click.option("--header", "headers", multiple=True, callback=_header, metavar="NAME=VALUE", help="A header.")
@click.option("--content-type", default=None, help="Default: application/octet-stream.")
@click.option("--lines", is_flag=True, help="A message for each line, not one for the whole input.")
@click.option(
    "--mandatory/--no-mandatory",
    default=True,
    show_default=True,
    help="Whether it is a failure when no queue takes a message.",
)
@click.option(
    "--timeout",
    type=_Seconds(min=0, min_open=True),
    default=10.0,
    show_default=True,
    help="Seconds for a message; with --lines, for what has come of them, up to a thousand at a time.",
)
@click.option("--config-prefix", default=None, help="Which Pika object, when the app has several.")
@click.argument("file", type=click.File("rb"), default="-")
def publish_command(
    file: BinaryIO,
    lines: bool,
    timeout: float,
    config_prefix: str | None,
    **about: Any,
) -> None:
    """Publish FILE, or standard input, and wait for the broker's confirms.

    Prints how many messages were confirmed. Exits 1 when one was not, with a line for each of the first ten
    that says why. With --lines, what has come is sent, though the input pauses; Ctrl-C ends it, with exit 1.
    """
    publisher = _state(config_prefix).publisher()

    def message(body: bytes) -> Message:
        return Message(body, **about)

    confirmed = failed = number = unknown = before = 0
    stopped = interrupted = False
    try:
        with _progress(file) as moved:
            chunks = _chunks(file) if lines else iter([[file.read()]])
            while not stopped and (chunk := next(chunks, [])):
                before, unknown = publisher.stats().confirmed, len(chunk)
                failures: list[Failure] = []
                try:
                    report = publisher.publish_many(
                        map(message, chunk), current_app.json.dumps, timeout, _CHUNK, retry=True
                    )
                except PublishManyFailed as exc:
                    report = exc.report
                    failures = list(report.failed)
                # All at once: a Ctrl-C must find either all or nothing of it done.
                confirmed, failed, unknown = (
                    confirmed + report.confirmed,
                    failed + len(chunk) - report.confirmed,
                    0,
                )
                for failure in failures[: max(0, _TOLD - failed + len(failures))]:
                    place = f"line {number + failure.index + 1}: " if lines else ""
                    click.echo(f"{place}{failure.error}", err=True)
                # What is wrong with a message is wrong with that one; a broker that is away, with all.
                stopped = any(isinstance(one.error, pika_errors.AMQPConnectionError) for one in failures)
                number += len(chunk)
                moved(sum(map(len, chunk)) + len(chunk))
            stopped = stopped and next(chunks, None) is not None
    except KeyboardInterrupt:
        interrupted = True
        if unknown:  # nothing else is published in this process
            known = min(unknown, publisher.stats().confirmed - before)
            confirmed, unknown = confirmed + known, unknown - known
    more = f", {unknown} unknown" if unknown else ""
    more += "; interrupted" if interrupted else ""
    more += "; the rest of the input was not read" if stopped or interrupted else ""
    click.echo(f"{confirmed} confirmed, {failed} failed{more}")
    if failed or interrupted:
        raise SystemExit(1)


def _chunks(file: BinaryIO) -> Iterator[list[bytes]]:
    """The lines that have come, a number of them at a time. A stream that pauses holds none of them back."""
    read: Callable[[int], bytes] = getattr(file, "read1", file.read)
    pieces: list[bytes] = []
    while data := read(_READ):
        first, *others = data.split(b"\n")
        pieces.append(first)
        if others:
            lines = [line.rstrip(b"\r") for line in (b"".join(pieces), *others[:-1])]
            pieces = others[-1:]
            for start in range(0, len(lines), _CHUNK):
                yield lines[start : start + _CHUNK]
    if last := b"".join(pieces):
        yield [last.rstrip(b"\r")]


@contextlib.contextmanager
def _progress(file: BinaryIO) -> Iterator[Callable[[int], object]]:
    """What to tell of bytes that were published; it draws a bar when a person waits for many."""
    size = 0
    with contextlib.suppress(OSError, ValueError):  # no real file
        size = os.fstat(file.fileno()).st_size
    if size < _LONG or not sys.stderr.isatty():
        yield lambda _size: None
        return
    with click.progressbar(length=size, label="Publishing", file=sys.stderr) as bar:
        yield bar.update
