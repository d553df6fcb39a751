"""``flask pika declare`` and ``flask pika topology``: what an app needs at the broker, made and shown."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import click
from flask import current_app
from flask.cli import with_appcontext
from pika import exceptions as pika_errors

from .errors import BrokerUnavailable, PoolTimeout, SetupError
from .state import State
from .steps import Step
from .topology import Queue
from .topology_view import dot, shown, text, value_shown

#: Gives the app's states, by their prefix: all, or the one that is meant.
States = Callable[[str | None], Mapping[str, State]]

_NOTHING = "nothing is registered: see fpika.exchange() and fpika.queue()"
#: Of a step's outcome, for people.
_WORDS = {
    "made": "made",
    "stood": "stood",
    "bound": "bound",
    "missing": "missing",
    "unlike": "differs",
    "refused": "refused",
    "left": "left alone",
    "there": "there, but its arguments cannot be compared without the permission to configure it",
    "unseen": "cannot be seen",
}


def _declare(state: State, how: str, timeout: float) -> bool:
    """Do what the command was told, of one ``Pika`` object; whether all is well."""
    steps = state.steps()
    if not steps:
        click.echo(_NOTHING)
    if how == "dry-run":
        for step in steps:
            click.echo(f"{_row(step, steps)}  {_details(step)}".rstrip())
        _tell_exclusive(state)
        return True
    problems, counts = [], collections.Counter[str]()
    for found in state.checked(timeout) if how == "check" else state.declared(timeout):
        word = _WORDS[found.outcome]
        counts[word] += 1
        click.echo(f"{_row(found.step, steps)}  {word}")
        if found.problem is not None:
            problems.append(found.problem)
    _tell_exclusive(state)
    if steps:
        click.echo(", ".join(f"{number} {word.partition(',')[0]}" for word, number in counts.items()))
    if counts[_WORDS["unseen"]]:
        click.echo("AMQP shows no bindings: 'flask pika declare' makes those that are missing.")
    for problem in problems:
        click.echo(str(problem), err=True)
    return not problems


def _row(step: Step, steps: list[Step]) -> str:
    cells = _cells(step)
    widths = [max(map(len, column)) for column in zip(*map(_cells, steps), strict=True)]
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))


def _cells(step: Step) -> tuple[str, str, str]:
    kind = "queue" if isinstance(step.thing, Queue) else "exchange"
    if not step.is_binding:
        return kind, shown(step.thing.name), step.thing.type
    headers = {name: value for name, value in step.arguments["arguments"].items() if name != "x-match"}
    by = shown(step.arguments["routing_key"])
    if len(headers) < len(step.arguments["arguments"]):
        by = f"{step.arguments['arguments']['x-match']} of {value_shown(headers)}"
    return "binding", f"{shown(step.exchange)} -> {kind} {shown(step.thing.name)}", by


def _details(step: Step) -> str:
    if step.is_binding:
        return ""
    flags = [
        f"{name}={value}"
        for name, value in step.arguments.items()
        if isinstance(value, bool) and value is not (name == "durable")
    ]
    arguments = step.arguments["arguments"].items()
    return " ".join(
        [
            *flags,
            *(f"{shown(name)}={value_shown(value)}" for name, value in arguments if name != "x-queue-type"),
        ]
    )


def _tell_exclusive(state: State) -> None:
    for queue in state.topology.queues:
        if queue.exclusive:
            click.echo(f"queue {shown(queue.name)} is exclusive: the worker that consumes it declares it")


def make_commands(states: States, seconds: click.ParamType[Any]) -> Iterator[click.Command]:
    """The commands.

    :param seconds: the type of an option that is a time.
    """
    prefix = click.option("--config-prefix", default=None, help="Which Pika object; default: all.")

    @click.command("declare")
    @click.option("--check", "how", flag_value="check", help="Change nothing; exit 1 if it differs.")
    @click.option("--dry-run", "how", flag_value="dry-run", help="Print what would be; do not connect.")
    @click.option("--timeout", type=seconds, default=10.0, show_default=True, help="Seconds to connect.")
    @prefix
    @with_appcontext
    def declare_command(how: str | None, timeout: float, config_prefix: str | None) -> None:
        """Declare the exchanges, queues and bindings that the app has registered, those of retries included.

        Prints what was made, and what stood already. What stands is never changed: what is another there is
        told, with what to do about it, and so is what else goes wrong; then it exits 1.
        """
        failed = False
        for label, state in _labelled(states(config_prefix)):
            try:
                failed = not _declare(state, how or "declare", timeout) or failed
            except SetupError as exc:
                failed = True
                click.echo(f"{label}{exc}", err=True)
            except (BrokerUnavailable, PoolTimeout, pika_errors.AMQPError) as exc:
                failed = True
                click.echo(f"{label}{exc or type(exc).__name__}", err=True)
        if failed:
            raise SystemExit(1)

    @click.command("topology")
    @click.option("--dot", "graph", is_flag=True, help="As a graph, for Graphviz: pipe it to 'dot -Tsvg'.")
    @prefix
    @with_appcontext
    def topology_command(graph: bool, config_prefix: str | None) -> None:
        """Print the exchanges, queues and bindings that the app has registered. Connects to nothing."""
        for _label, state in _labelled(states(config_prefix), silent=graph):
            try:
                exchanges, queues = state.things()
            except SetupError as exc:
                raise click.ClickException(str(exc)) from exc
            lines = dot(current_app.name, exchanges, queues) if graph else text(exchanges, queues)
            click.echo("\n".join(lines) or _NOTHING)

    yield declare_command
    yield topology_command


def _labelled(states: Mapping[str, State], silent: bool = False) -> Iterator[tuple[str, State]]:
    """Each one, with what its errors begin with; its name is printed, when there are several."""
    for prefix, state in states.items():
        if len(states) > 1 and not silent:
            click.echo(f"{prefix}:")
        yield f"{prefix}: " if len(states) > 1 else "", state
