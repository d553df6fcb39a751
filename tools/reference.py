"""The parts of the documentation that are made from the code: the settings, and the commands.

``python -m tools.reference`` writes them anew, between the lines in ``docs/*.md`` that say so; ``--check``
only looks whether they are as they should be, as a test does. They are in the repository, so that they can be
read there, too, and Sphinx needs to know nothing of them.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import click
from pika.connection import ConnectionParameters

from flask_pika import config, params
from flask_pika.cli import pika_cli

DOCS = Path(__file__).parent.parent / "docs"

#: What pika's parameters mean. What is not here is a mistake: a pika that has more of them.
_MEANINGS = {
    "blocked_connection_timeout": "seconds that a channel's call waits while RabbitMQ blocks publishers;"
    " `None`: for ever. Publishing with `fpika.publish()` has a deadline of its own",
    "channel_max": "channels that are asked for on a connection",
    "client_properties": "a dict that operators see beside the connection. Its `connection_name` is ours, if"
    " it has none",
    "connection_attempts": "how often one connect tries a node",
    "credentials": "a `pika.PlainCredentials` or `pika.credentials.ExternalCredentials`, instead of"
    " `username` and `password`",
    "frame_max": "bytes of the longest frame that is asked for",
    "heartbeat": "seconds between heartbeats, 0: none. pika's connections give up at the second silence;"
    " publisher and worker, after a heartbeat and a quarter",
    "host": "name or address of the node",
    "locale": "as in AMQP",
    "password": "goes with `username`",
    "port": "of the node; with TLS, 5671 where it is not said",
    "retry_delay": "seconds between a node's `connection_attempts`",
    "socket_timeout": "seconds that one TCP connect may take",
    "ssl_options": "TLS: `True` for the system's certificates, an `ssl.SSLContext`, or a `pika.SSLOptions`",
    "stack_timeout": "seconds that TCP, TLS and AMQP may take, up to the open connection",
    "tcp_options": "a dict of `TCP_KEEPIDLE`, `TCP_KEEPINTVL`, `TCP_KEEPCNT`, `TCP_USER_TIMEOUT`",
    "username": "goes with `password`",
    "virtual_host": "the virtual host",
}
_DECLARE = {
    "auto": "the publisher declares what is registered before its first message, the worker before it"
    " consumes",
    "check": "both look whether it is there and the same, and log what is not. Nothing is changed",
    "never": "nobody looks",
}


def _table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|---" * len(head) + "|"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"


def _settings_of(settings: type[Any]) -> Iterator[str]:
    def rows() -> Iterator[tuple[str, ...]]:
        for one in fields(settings):
            about = config.about(one)
            at_least = f"{about.lowest} or more" if about.unit else "`True`, `False`"
            if about.whole:
                at_least = f"whole, {at_least}"
            meaning = f"{about.unit} {about.meaning}" if about.unit else about.meaning
            yield f"`{one.name}`", f"`{one.default!r}`", at_least, meaning

    return _table(("key", "default", "takes", "meaning"), rows())


def _parameters() -> Iterator[str]:
    known = ConnectionParameters()

    def rows() -> Iterator[tuple[str, ...]]:
        for name in params.KEYS:
            default = params.BOUNDS.get(name, getattr(known, name, None))
            shown = "`'guest'`" if name in ("username", "password") else f"`{default!r}`"
            ours = f"{shown}; pika's: `{getattr(known, name)!r}`" if name in params.BOUNDS else shown
            yield f"`{name}`", "" if name == "credentials" else ours, _MEANINGS[name]

    return _table(("key", "default", "meaning"), rows())


def _declare() -> Iterator[str]:
    values = get_args(config.Declare)
    default = config.Settings(nodes=(), pool=config.UNPOOLED).declare

    def rows() -> Iterator[tuple[str, ...]]:
        for value in values:
            yield f'`"{value}"`' + (", the default" if value == default else ""), _DECLARE[value]

    return _table(("value", "meaning"), rows())


# The commands


def commands(
    group: click.Group = pika_cli, name: str = "flask pika"
) -> Iterator[tuple[str, click.Command | click.Group]]:
    """Every command, with its whole name; groups come before what is in them."""
    for part, command in sorted(group.commands.items()):
        yield f"{name} {part}", command
        if isinstance(command, click.Group):
            yield from commands(command, f"{name} {part}")


def _commands() -> Iterator[str]:
    for name, command in commands():
        yield f"## `{name}`"
        yield ""
        if isinstance(command, click.Group):
            yield command.help or ""
            yield ""
            continue
        context = click.Context(command, info_name=name)
        yield "```text"
        yield " ".join([name, *command.collect_usage_pieces(context)])
        yield "```"
        yield ""
        yield from _help_of(command, context)
        options = [one for one in command.params if isinstance(one, click.Option)]
        if options:
            yield from _table(("option", "default", "meaning"), map(_option, options))
            yield ""


def _help_of(command: click.Command, context: click.Context) -> Iterator[str]:
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        first, *lines = paragraph.splitlines()
        if first == "\b":  # click's mark for what is not to be wrapped
            yield from ("```text", *lines, "```")
        else:
            # Arguments and options as such, not as text.
            names = "|".join(
                one.make_metavar(context) for one in command.params if isinstance(one, click.Argument)
            )
            options = r"--[a-z][a-z-]+"
            pattern = rf"(?<![\w`])({options}|(?:{names})(?:\.\w+)?)(?![\w`])" if names else f"({options})"
            yield re.sub(pattern, r"`\1`", " ".join([first, *lines]))
        yield ""


def _option(option: click.Option) -> tuple[str, ...]:
    names = " / ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    if not option.is_flag:
        metavar = option.metavar or option.type.name.replace(" range", "").upper()
        names = f"`{option.opts[0]} {metavar}`"
    if option.multiple:
        names += ", any number of times"
    default: object = option.default if option.show_default else None
    if option.secondary_opts:
        default = (option.opts if option.default else option.secondary_opts)[0]
    if isinstance(default, float):
        default = f"{default:g}"
    return names, "" if default is None else f"`{default}`", option.help or ""


_PARTS: dict[str, Callable[[], Iterator[str]]] = {
    "FLASK_PIKA_PARAMS": _parameters,
    "FLASK_PIKA_POOL_PARAMS": lambda: _settings_of(config.PoolSettings),
    "FLASK_PIKA_PUBLISHER_PARAMS": lambda: _settings_of(config.PublisherSettings),
    "FLASK_PIKA_DECLARE": _declare,
    "commands": _commands,
}
_PART = re.compile(r"(<!-- made from the code: (\w+) -->\n)(.*?)(<!-- end -->)", re.S)


def made_anew(text: str) -> str:
    """A page, with its parts as the code has them."""

    def part(found: re.Match[str]) -> str:
        lines = "\n".join(_PARTS[found[2]]()).strip()
        return f"{found[1]}\n{lines}\n\n{found[4]}"

    return _PART.sub(part, text)


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the parts of the docs that are made from the code.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if something is stale")
    check = parser.parse_args().check
    stale = False
    for page in sorted(DOCS.glob("*.md")):
        text = page.read_text()
        made = made_anew(text)
        if made == text:
            continue
        stale = True
        if check:
            print(f"docs/{page.name} is not what the code says: run 'python -m tools.reference'")
        else:
            page.write_text(made)
            print(f"docs/{page.name} was written")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
