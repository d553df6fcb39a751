"""``flask pika dead``: a look at the dead letters of a queue, and what to do about them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import click
from flask.cli import AppGroup

from . import dead_tasks as tasks
from .dead_tasks import Match
from .state import State

F = TypeVar("F", bound=Callable[..., Any])
#: Gives the state of the Pika object that ``--config-prefix`` names.
StateOf = Callable[[str | None], State]


def _pairs(_context: click.Context, _param: click.Parameter, given: tuple[str, ...]) -> Match:
    pairs = []
    for text in given:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise click.BadParameter(f"{text!r} is not of the form header=value")
        pairs.append((name, value))
    return pairs


_queue = click.argument("queue")
_match = click.option(
    "--match",
    multiple=True,
    callback=_pairs,
    metavar="HEADER=VALUE",
    help="Only those with this header; all of them, when there are several. A property counts, too:"
    " message_id=..., type=...",
)
_dry_run = click.option("--dry-run", is_flag=True, help="Say what would be done, and change nothing.")
_prefix = click.option("--config-prefix", default=None, help="Which Pika object, when the app has several.")


def _limit(default: int | None, text: str) -> Callable[[F], F]:
    return click.option(
        "--limit", type=click.IntRange(1), default=default, show_default=default is not None, help=text
    )


def make_group(state_of: StateOf, seconds: click.ParamType[Any]) -> click.Group:
    """The commands.

    :param state_of: asked with the prefix of a Pika object.
    :param seconds: the type of an option that is a positive, finite number.
    """
    group = AppGroup(
        "dead", help="The dead letters of a queue: what failed for good, and is kept in QUEUE.dead."
    )

    @group.command("list")
    @_queue
    @_limit(100, "How many are shown.")
    @_match
    @click.option("--json", "json_lines", is_flag=True, help="A line of JSON for each.")
    @_prefix
    def list_command(
        queue: str, limit: int, match: Match, json_lines: bool, config_prefix: str | None
    ) -> None:
        """Show the dead letters of QUEUE, the oldest first. They stay, in their order."""
        tasks.show_list(state_of(config_prefix), queue, limit, match, json_lines)

    @group.command("show")
    @_queue
    @click.argument("message_id", required=False)
    @click.option("--place", type=click.IntRange(1), help="Not by its id: which one it is in the list.")
    @_prefix
    def show_command(
        queue: str, message_id: str | None, place: int | None, config_prefix: str | None
    ) -> None:
        """Show all of one dead letter of QUEUE: properties, headers, traceback, body. It stays."""
        if (message_id is None) == (place is None):
            raise click.UsageError("say either MESSAGE_ID or --place")
        tasks.show(state_of(config_prefix), queue, message_id, place)

    @group.command("replay")
    @_queue
    @_limit(None, "How many are replayed, the oldest first. Default: those that are there at the start.")
    @_match
    @click.option("--rate", type=seconds, default=None, help="Messages for each second, at the most.")
    @_dry_run
    @_prefix
    def replay_command(
        queue: str,
        limit: int | None,
        match: Match,
        rate: float | None,
        dry_run: bool,
        config_prefix: str | None,
    ) -> None:
        """Give the dead letters of QUEUE back to QUEUE, and to no other queue, as if they had never failed.

        Each is confirmed there, and then removed here: however this is stopped, nothing is lost, and one
        message at the most comes twice. Ctrl-C stops it after the message in hand. Exits 1 when a message
        was not replayed, or it was stopped.
        """
        tasks.replay(state_of(config_prefix), queue, limit, match, rate, dry_run)

    @group.command("purge")
    @_queue
    @_match
    @click.option("--yes", is_flag=True, help="Do not ask.")
    @_dry_run
    @_prefix
    def purge_command(queue: str, match: Match, yes: bool, dry_run: bool, config_prefix: str | None) -> None:
        """Delete the dead letters of QUEUE, for good. What comes after they were counted stays."""
        tasks.purge(state_of(config_prefix), queue, match, yes, dry_run)

    @group.command("export")
    @_queue
    @click.argument("file", type=click.Path(dir_okay=False, allow_dash=True))
    @_limit(None, "How many, the oldest first. Default: those that are there at the start.")
    @_match
    @click.option("--overwrite", is_flag=True, help="Replace a FILE that exists.")
    @click.option("--remove", is_flag=True, help="Remove them from the queue, once FILE is safe on disk.")
    @_dry_run
    @_prefix
    def export_command(queue: str, file: str, config_prefix: str | None, **told: Any) -> None:
        """Write the dead letters of QUEUE to FILE, a line of JSON each; '-' is standard output. They stay.

        FILE has its name when it is complete, not before.
        """
        if file == "-" and told["remove"]:
            raise click.UsageError("--remove is for a FILE, which can be made safe on disk")
        tasks.export(state_of(config_prefix), queue, None if file == "-" else Path(file), **told)

    @group.command("import")
    @_queue
    @click.argument("file", type=click.File("rb"))
    @_dry_run
    @_prefix
    def import_command(queue: str, file: BinaryIO, dry_run: bool, config_prefix: str | None) -> None:
        """Put what is in FILE, which `export` wrote, back among the dead letters of QUEUE.

        Each is confirmed. A line that is wrong is named, the others go on, and the exit code is 1. Run twice,
        it puts all of them there twice.
        """
        tasks.import_file(state_of(config_prefix), queue, file, dry_run)

    return group
