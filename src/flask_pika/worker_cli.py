"""``flask pika worker``: the command, its banner, and what it ends with."""

from __future__ import annotations

import importlib
import logging
import os
import socket
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

import click
from flask import Flask
from flask.cli import ScriptInfo

from .consumer import Consumer, choose
from .errors import ConfigError, SetupError
from .extension import states_of
from .health import Health, HealthServer
from .processes import Supervisor, answer_parent
from .runner import ExitCode, Runner, health_of
from .state import State, close_all
from .worker import DRAIN_TIMEOUT, THREADS, Worker


class Options(NamedTuple):
    """What the command was told."""

    threads: int
    processes: int
    drain_timeout: float
    health_host: str
    health_port: int | None


class _Ends(click.ClickException):
    """Ends the command with one line, and an exit code of ours."""

    def __init__(self, code: ExitCode, text: str) -> None:
        super().__init__(text)
        vars(self)["exit_code"] = int(code)  # click has it as a class's


class Plan(NamedTuple):
    """What to run, of one ``Pika`` object."""

    state: State
    consumers: list[Consumer]


def run(info: ScriptInfo, queues: Sequence[str], options: Options, reload: bool) -> NoReturn:
    """Do what the command does, and exit."""
    if reload:
        _reloading(info, queues, options)
    app, plans, health = _begin(info, queues, options)
    if options.processes == 1:
        code: int = _run_one(app, plans, options, health)
    else:
        supervisor = Supervisor(
            options.processes,
            lambda line: _run_child(app, plans, options, line),
            options.drain_timeout,
            health,
        )
        code = supervisor.run()
    if code in (ExitCode.DRAIN_TIMEOUT, ExitCode.REFUSED):
        # A handler's thread, or one that it has begun, may never end, and the interpreter waits for some.
        close_all()
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)
    raise SystemExit(code)


def _begin(
    info: ScriptInfo, queues: Sequence[str], options: Options
) -> tuple[Flask, list[Plan], HealthServer | None]:
    """Load the app, find out what to run, listen for health requests, and say so."""
    app = _load(info)
    plans = _plans(app, queues, options.processes)
    health = _health_server(options)
    _banner(app, plans, options, health)
    return app, plans, health


def _load(info: ScriptInfo) -> Flask:
    try:
        app = info.load_app()
    except (ConfigError, SetupError) as exc:
        raise _Ends(ExitCode.CONFIGURATION, str(exc)) from exc
    _set_up_logging()  # now: the app may have said how
    return app


def _plans(app: Flask, queues: Sequence[str], processes: int) -> list[Plan]:
    states = states_of(app)
    if not states:
        raise _Ends(ExitCode.CONFIGURATION, "this app has no Pika object: call Pika(app) or init_app(app)")
    try:
        registered = {state: state.registry.of(app) for state in states.values()}
    except SetupError as exc:
        raise _Ends(ExitCode.CONFIGURATION, str(exc)) from exc
    known = [consumer for consumers in registered.values() for consumer in consumers]
    if not known:
        raise _Ends(
            ExitCode.NOTHING_TO_CONSUME,
            'this app has no consumers: register one with @fpika.consumer("queue"), in a module that the app'
            " imports",
        )
    try:
        choose(known, queues)
    except SetupError as exc:
        raise _Ends(ExitCode.NOTHING_TO_CONSUME, str(exc)) from exc
    # Not what that has chosen: of brokers that have a queue of the same name, each is meant.
    plans = [
        Plan(state, [one for one in consumers if not queues or one.queue in queues])
        for state, consumers in registered.items()
    ]
    for plan in plans:
        for consumer in plan.consumers:
            if processes > 1 and consumer.exclusive:
                raise _Ends(
                    ExitCode.CONFIGURATION,
                    f"queue {consumer.queue!r} has an exclusive consumer, of which there can be one:"
                    " --processes can't be more than 1",
                )
    return [plan for plan in plans if plan.consumers]


def _workers(app: Flask, plans: Sequence[Plan], options: Options) -> list[Worker]:
    try:
        return [
            plan.state.make_worker(app, plan.consumers, options.threads, options.drain_timeout)
            for plan in plans
        ]
    except SetupError as exc:  # an async handler, without what runs it
        raise _Ends(ExitCode.CONFIGURATION, str(exc)) from exc


def _run_one(app: Flask, plans: Sequence[Plan], options: Options, health: HealthServer | None) -> ExitCode:
    workers = _workers(app, plans, options)
    runner = Runner(workers, options.drain_timeout)
    runner.catch_signals()
    if health is not None:
        health.health = health_of(workers)
        health.start()
    try:
        return runner.run()
    finally:
        if health is not None:
            health.stop()


def _run_child(app: Flask, plans: Sequence[Plan], options: Options, line: socket.socket) -> ExitCode:
    workers = _workers(app, plans, options)
    runner = Runner(workers, options.drain_timeout)
    runner.catch_signals(interrupts=False)
    answer_parent(line, health_of(workers), lambda: runner.end("the parent process is gone"))
    return runner.run()


def _health_server(options: Options) -> HealthServer | None:
    if options.health_port is None:
        return None
    try:
        return HealthServer(options.health_host, options.health_port, lambda: Health(live=True, ready=False))
    except OSError as exc:
        where = f"{options.health_host}:{options.health_port}"
        raise _Ends(
            ExitCode.CONFIGURATION, f"--health-port: cannot listen on {where}: {exc.strerror or exc}"
        ) from exc


def _reloading(info: ScriptInfo, queues: Sequence[str], options: Options) -> NoReturn:
    """For development: begin anew whenever a file of the app changes."""

    def serve() -> None:  # in a thread: werkzeug's reloader has the main one
        try:
            app, plans, health = _begin(info, queues, options)
            workers = _workers(app, plans, options)
            if health is not None:
                health.health = health_of(workers)
                health.start()
            for worker in workers:
                worker.start()
        except click.ClickException as exc:
            exc.show()
        except Exception:  # the app's own, at its import: the next change may mend it
            traceback.print_exc()

    # Not public, and what `flask run` itself uses; nobody else needs it.
    importlib.import_module("werkzeug._reloader").run_with_reloader(serve)
    raise SystemExit(ExitCode.DRAINED)


def _set_up_logging() -> None:
    """Where nobody has said how to log, say on stderr what happens; without pika's own account of it."""
    if logging.getLogger().handlers:
        return
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(process)d %(message)s"
    )
    logging.getLogger("pika").setLevel(logging.CRITICAL + 1)


def _banner(app: Flask, plans: Sequence[Plan], options: Options, health: HealthServer | None) -> None:
    lines = [f"Flask-Pika worker of app {app.name!r} (pid {os.getpid()})"]
    for plan in plans:
        lines.append(f"  broker   {', '.join(map(str, plan.state.settings.nodes))}")
        width = max(len(consumer.queue) for consumer in plan.consumers)
        lines += [f"  queue    {one.queue:<{width}}  {_about(one)}" for one in plan.consumers]
    processes = f"{options.processes} processes, each with " if options.processes > 1 else ""
    lines.append(f"  threads  {processes}{options.threads}; at the end they have {options.drain_timeout:g} s")
    if health is not None:
        lines.append(f"  health   {health.url}/live and {health.url}/ready")
    lines.append("SIGTERM or Ctrl-C drains; a second Ctrl-C leaves at once.")
    click.echo("\n".join(lines))


def _about(consumer: Consumer) -> str:
    parts = [consumer.place, f"prefetch {consumer.prefetch}"]
    if consumer.ack != "auto":
        parts.append(f"ack {consumer.ack}")
    if consumer.on_error != "reject":
        parts.append(f"on error {consumer.on_error}")
    if consumer.batch is not None:
        parts.append(f"batches of {consumer.batch}")
    return ", ".join(parts)


def make_command(seconds: click.ParamType[Any]) -> click.Command:
    """The command.

    :param seconds: the type of an option that is a time.
    """

    @click.command("worker")
    @click.argument("queues", metavar="[QUEUE]...", nargs=-1)
    @click.option(
        "--threads",
        type=click.IntRange(1, 10_000),
        default=THREADS,
        show_default=True,
        help="Handlers that may run at a time, in each process.",
    )
    @click.option(
        "--processes",
        type=click.IntRange(1, 1000),
        default=1,
        show_default=True,
        help="Processes, which a parent starts, watches and restarts.",
    )
    @click.option(
        "--drain-timeout",
        type=seconds,
        default=DRAIN_TIMEOUT,
        show_default=True,
        help="Seconds that handlers that run have at the end.",
    )
    @click.option("--health-port", type=click.IntRange(0, 65535), help="Answer /live and /ready there.")
    @click.option(
        "--health-host", default="127.0.0.1", show_default=True, help="The address to answer them on."
    )
    @click.option("--reload", is_flag=True, help="Begin anew when a file changes; for development.")
    @click.pass_context
    def worker_command(context: click.Context, /, queues: tuple[str, ...], reload: bool, **told: Any) -> None:
        """Consume the queues that have a consumer, or those named, until SIGTERM or Ctrl-C.

        \b
        Ends with
          0  when told to, and all handlers were done
          2  a wrong configuration, of the app or of this command
          3  when told to, and handlers were not done in time
          4  nothing to consume: no consumer, or none for a queue that was named
          5  the broker refused the credentials or the virtual host at the start
        130  a second Ctrl-C
        """
        options = Options(**told)
        if reload and options.processes > 1:
            raise click.UsageError("--reload is for one process; leave --processes out")
        run(context.ensure_object(ScriptInfo), queues, options, reload)

    return worker_command
