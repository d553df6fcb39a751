"""What the ``flask pika dead`` commands do, each of which may be stopped at any moment."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
import threading
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import BinaryIO

import click
from flask import current_app

from .dead_export import BadLine, decode_line, encode_line
from .dead_letters import Letter
from .dead_reader import DeadLettersError, DeadReader, Undelivered, Unsendable
from .dead_show import Table, as_json, as_page
from .encoded import EncodedProperties
from .errors import BrokerUnavailable
from .state import State

Match = Sequence[tuple[str, str]]
#: Whether to stop.
Stopped = Callable[[], bool]

#: Dead letters, or bytes, from which on a person is shown a progress bar.
_LONG, _BIG = 500, 1_000_000
#: Dead letters of a table that are drawn at a time.
_PAGE = 100
#: AMQP's reply code for what is wrong with a message; any other is wrong with all of them.
_PRECONDITION_FAILED = 406


@contextlib.contextmanager
def _stopping() -> Iterator[Stopped]:
    """Whether Ctrl-C, or SIGTERM, asked to stop. A second Ctrl-C does not ask."""
    came = threading.Event()

    def stop(number: int, _frame: object) -> None:
        if came.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        came.set()

    if threading.current_thread() is not threading.main_thread():
        yield came.is_set
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _reading(state: State, queue: str) -> Iterator[tuple[DeadReader, Stopped]]:
    """A reader, and whether to stop; what goes wrong ends the command with one line."""
    try:
        with _stopping() as stopped, DeadReader(state, current_app.name, queue, stopped) as reader:
            yield reader, stopped
    except (BrokerUnavailable, DeadLettersError) as exc:
        raise click.ClickException(str(exc)) from exc


@contextlib.contextmanager
def _progress(label: str, length: int, is_long: bool) -> Iterator[Callable[[int], object]]:
    """What to tell of what was done; it draws a bar when a person waits for long."""
    if not is_long or not sys.stderr.isatty():
        yield lambda _done: None
        return
    with click.progressbar(length=length, label=label, file=sys.stderr) as bar:
        yield bar.update


def _end(account: str, stopped: bool, failed: bool = False, to_stderr: bool = False) -> None:
    click.echo(account + ("; interrupted" if stopped else ""), err=to_stderr)
    if stopped or failed:
        raise SystemExit(1)


def _matching(letters: Iterator[Letter], match: Match, limit: int | None = None) -> Iterator[Letter]:
    """Those that match, so many at the most; without a look at what comes then."""
    found = 0
    for letter in letters:
        if letter.matches(match):
            yield letter
            found += 1
            if found == limit:
                return


def _name(letter: Letter) -> str:
    return f"{letter.properties.message_id!r} (place {letter.place})"


def show_list(state: State, queue: str, limit: int, match: Match, json_lines: bool) -> None:
    """Print a table, or lines of JSON."""
    with _reading(state, queue) as (reader, stopped):
        total = reader.count()
        shown = 0
        table = Table()
        page: list[Letter] = []
        letters = reader.letters(total, all_kept=True, first=None if match else limit)
        for letter in _matching(letters, match, limit):
            shown += 1
            if json_lines:
                click.echo(as_json(letter))
                continue
            page.append(replace(letter, body=b""))
            if len(page) == _PAGE:
                click.echo(table.rows(page))
                page.clear()
        if page:
            click.echo(table.rows(page))
        more = "; a higher --limit shows more" if shown == limit < total else ""
        _end(f"{shown} of {total} dead letters of {queue!r}{more}", stopped(), to_stderr=json_lines)


def show(state: State, queue: str, message_id: str | None, place: int | None) -> None:
    """Print all of one."""
    with _reading(state, queue) as (reader, stopped):
        total = reader.count()
        for letter in reader.letters(total, all_kept=True, first=place):
            is_it = letter.place == place if place else letter.properties.message_id == message_id
            if is_it:
                click.echo(as_page(letter, total))
                return
        if stopped():
            raise SystemExit(1)
        what = f"place {place}" if place else repr(message_id)
        raise DeadLettersError(f"there is no {what} among the {total} dead letters of {queue!r}")


def replay(
    state: State, queue: str, limit: int | None, match: Match, rate: float | None, dry_run: bool
) -> None:
    """Give dead letters back to their queue."""
    with _reading(state, queue) as (reader, stopped):
        total = reader.count()
        reader.check_queue()
        wanted = total if limit is None else min(limit, total)
        if dry_run:
            count = sum(1 for _ in _matching(reader.letters(total, all_kept=True), match, wanted or None))
            _end(f"{count} of {total} dead letters would be replayed to {queue!r}", stopped())
            return
        # Of a slow one, a minute's worth: RabbitMQ lets nobody hold a message for longer than half an hour.
        first = wanted if rate is None else min(wanted, max(1, int(min(rate, 2) * 60)))
        letters = reader.letters(total, all_kept=bool(match), first=None if match else first)
        done = failed = 0
        problem = ""
        began = monotonic()
        with _progress("Replaying", wanted, wanted >= _LONG or rate is not None) as moved:
            try:
                for letter in _matching(letters, match, wanted or None):
                    if rate is not None:
                        reader.pause(began + (done + failed) / rate - monotonic())
                    if stopped():
                        break
                    try:
                        reader.revive(letter)
                    except Unsendable as exc:
                        failed += 1
                        click.echo(f"{_name(letter)}: {exc}", err=True)
                        continue
                    done += 1
                    moved(1)
                reader.settle()
            except Undelivered as exc:  # nor would the others be
                failed += 1
                problem = str(exc)
            except DeadLettersError as exc:
                problem = str(exc)
        if problem:
            click.echo(problem, err=True)
        _end(f"{done} replayed, {failed} failed, {total - done} left", stopped(), bool(failed or problem))


def purge(state: State, queue: str, match: Match, yes: bool, dry_run: bool) -> None:
    """Delete dead letters, when somebody says so."""
    with _reading(state, queue) as (reader, stopped):
        total = count = reader.count()
        if match and (dry_run or not yes):
            count = sum(1 for _ in _matching(reader.letters(total, all_kept=True), match))
        was_stopped = stopped()
    about = f"{count} of {total} dead letters of {queue!r}"
    if dry_run or was_stopped:
        _end(f"{about} would be deleted", was_stopped)
        return
    if not yes:
        if not count:
            _end(f"0 deleted, {total} left", False)
            return
        click.confirm(f"Delete {about} for good?", abort=True)
    with _reading(state, queue) as (reader, stopped):
        # What has come since they were counted stays.
        total = min(total, reader.count())
        done = 0
        problem = ""
        with _progress("Deleting", total, total >= _LONG) as moved:
            try:
                for letter in reader.letters(total, all_kept=bool(match)):
                    moved(1)
                    if letter.matches(match):
                        reader.remove(letter)
                        done += 1
                reader.settle()
            except DeadLettersError as exc:
                problem = str(exc)
        if problem:
            click.echo(problem, err=True)
        _end(f"{done} deleted, {total - done} left", stopped(), bool(problem))


def export(
    state: State,
    queue: str,
    path: Path | None,
    limit: int | None,
    match: Match,
    overwrite: bool,
    remove: bool,
    dry_run: bool,
) -> None:
    """Write dead letters to a file, or to standard output."""
    if path is not None and path.exists() and not (overwrite and path.is_file()):
        why = "--overwrite replaces it" if path.is_file() else "and is no file"
        raise click.ClickException(f"{path} exists; {why}")
    name = "standard output" if path is None else str(path)
    with _reading(state, queue) as (reader, stopped):
        total = reader.count()
        letters = _matching(reader.letters(total, all_kept=True), match, limit)
        if dry_run:
            count = sum(1 for _ in letters)
            _end(f"{count} of {total} dead letters would be written to {name}", stopped())
            return
        tags = array("Q")
        wanted = total if limit is None else min(limit, total)
        written = threading.Event()
        with _file(path, stopped, written) as out, _progress("Exporting", wanted, wanted >= _LONG) as moved:
            for letter in letters:
                out.write(encode_line(letter).encode() + b"\n")
                tags.append(letter.tag)
                moved(1)
        account = f"{len(tags)} of {total} dead letters written to {name}"
        if not written.is_set():
            account = f"{name} was not written"
        elif remove and not stopped():
            for tag in tags:
                reader.remove_tag(tag)
            reader.settle()
            account += ", and removed"
        _end(account, stopped(), to_stderr=path is None)


@contextlib.contextmanager
def _file(path: Path | None, stopped: Stopped, written: threading.Event) -> Iterator[BinaryIO]:
    """What to write to. A file has its name when all of it is on disk, and not when it was stopped before.

    :param written: set when it has.
    """
    if path is None:
        written.set()  # as far as it goes
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    try:
        # For its owner alone, as what is in messages may be secret.
        handle, name = tempfile.mkstemp(prefix=f".{path.name[:100]}.", suffix=".part", dir=path.parent)
    except OSError as exc:
        raise click.ClickException(f"cannot write beside {path}: {exc.strerror}") from exc
    try:
        with os.fdopen(handle, "wb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        if not stopped():
            Path(name).replace(path)
            written.set()
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except OSError as exc:
        raise click.ClickException(f"cannot write {path}: {exc.strerror}") from exc
    finally:
        with contextlib.suppress(FileNotFoundError):
            Path(name).unlink()


def import_file(state: State, queue: str, file: BinaryIO, dry_run: bool) -> None:
    """Put the lines of a file to the dead letters."""
    size = 0
    with contextlib.suppress(OSError, ValueError):  # no real file
        size = os.fstat(file.fileno()).st_size
    with _reading(state, queue) as (reader, stopped):
        reader.count()
        done = failed = number = 0
        problem = ""
        with _progress("Importing", size, size >= _BIG) as moved:
            for line in file:
                if stopped():
                    break
                number += 1
                try:
                    if line.strip():
                        properties, body = decode_line(line)
                        if not dry_run:
                            _put(reader, properties, body)
                        done += 1
                except Undelivered as exc:
                    failed += 1
                    click.echo(f"line {number}: {exc}", err=True)
                    if exc.reply_code != _PRECONDITION_FAILED:
                        problem = "the rest was not read"
                        break
                except BadLine as exc:
                    failed += 1
                    click.echo(f"line {number}: {exc}", err=True)
                except DeadLettersError as exc:
                    problem = f"line {number}: {exc}; it is not known whether it was put back"
                    break
                moved(len(line))
        account = f"{done} {'good' if dry_run else 'put back'}, {failed} failed"
        if stopped() or problem:
            account += f"; ended at line {number}"
        if problem:
            click.echo(problem, err=True)
        _end(account, stopped(), bool(failed or problem))


def _put(reader: DeadReader, properties: EncodedProperties, body: bytes) -> None:
    try:
        reader.put(properties, body)
    except Undelivered as exc:
        with_user = properties.encode()
        properties.leave_out("user_id")
        if exc.reply_code != _PRECONDITION_FAILED or properties.encode() == with_user:
            raise
        # The broker takes it from that user alone.
        reader.put(properties, body)
