"""Dead letters as text for people, and as JSON for their tools. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from .dead_letters import Letter, as_text
from .delivery import FAILURE
from .message import PROPERTIES

_TRACEBACK = f"{FAILURE}traceback"
_HEADS = ("#", "message id", "time", "attempts", "reason", "error", "published to")
#: Characters of a column, at the most.
_WIDEST = (8, 36, 19, 8, 16, 50, 40)
#: Characters of a header, of a body, and bytes of one that is no text.
_HEADER, _TEXT, _BINARY = 1000, 10_000, 512


class Table:
    """A table whose rows come a page at a time; as wide as the first page needs it."""

    def __init__(self) -> None:
        self._widths: list[int] = []

    def rows(self, letters: Sequence[Letter]) -> str:
        """The next rows, and the heads before the first ones."""
        rows = [_row(letter) for letter in letters]
        if not self._widths:
            rows.insert(0, _HEADS)
            self._widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, self._widths, strict=True)).rstrip()
            for row in rows
        )


def _row(letter: Letter) -> tuple[str, ...]:
    failure = letter.failure
    cells = (
        str(letter.place),
        _or_dash(letter.properties.message_id),
        _or_dash(failure.time)[:19],
        _or_dash(failure.attempts),
        _or_dash(failure.reason),
        _error(letter),
        _published(letter),
    )
    return tuple(_short(cell, width) for cell, width in zip(cells, _WIDEST, strict=True))


def _error(letter: Letter) -> str:
    failure = letter.failure
    return "-" if failure.type is None else f"{failure.type}: {failure.message or ''}"


def _published(letter: Letter) -> str:
    failure = letter.failure
    if failure.exchange is None:
        return "-"
    exchange = failure.exchange or "(default exchange)"
    return f"{exchange} / {_or_dash(failure.routing_key)}"


def _or_dash(value: Any) -> str:
    if isinstance(value, (list, Mapping)):
        return json.dumps(_plain(value), ensure_ascii=False)
    return "-" if value is None or value == "" else as_text(value)


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, Mapping):
        return {as_text(name): _plain(one) for name, one in value.items()}
    return value if value is None or isinstance(value, int) else as_text(value)


def _short(text: str, width: int) -> str:
    text = printable(" ".join(text.split()))
    return text if len(text) <= width else f"{text[: width - 1]}…"


def printable(text: str, also: str = "") -> str:
    """Text that does nothing to a terminal."""
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() or one in also else one.encode("unicode_escape").decode() for one in text
    )


def as_json(letter: Letter) -> str:
    """One of the list, as a line."""
    properties, failure = letter.properties, letter.failure
    about = {
        "place": letter.place,
        "message_id": None if properties.message_id is None else as_text(properties.message_id),
        **vars(failure),
        "body_bytes": len(letter.body),
    }
    return json.dumps(about)


def as_page(letter: Letter, total: int) -> str:
    """All of one."""
    failure = letter.failure
    properties = {
        name: value
        for name in PROPERTIES
        if name != "headers" and (value := getattr(letter.properties, name)) is not None
    }
    headers = {as_text(name): value for name, value in letter.headers.items() if name != _TRACEBACK}
    about = {
        "place": f"{letter.place} of {total}",
        "time": failure.time,
        "attempts": failure.attempts,
        "reason": failure.reason,
        "error": _error(letter),
        "published to": _published(letter),
    }
    parts = [_fields("Dead letter", about), _fields("Properties", properties), _fields("Headers", headers)]
    if _TRACEBACK in letter.headers:
        parts.append("Traceback\n" + _indented(as_text(letter.headers[_TRACEBACK])))
    parts.append(f"Body, {len(letter.body)} bytes\n" + _indented(_body(letter.body)))
    return "\n\n".join(part for part in parts if part)


def _fields(head: str, fields: dict[str, Any]) -> str:
    if not fields:
        return ""
    width = max(map(len, fields))
    lines = [
        f"  {printable(name):<{width}}  {_bounded(printable(_or_dash(value)), _HEADER)}"
        for name, value in fields.items()
    ]
    return "\n".join([head, *lines])


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in printable(text, "\n\t").rstrip("\n").split("\n"))


def _body(body: bytes) -> str:
    try:
        text = body.decode()
    except UnicodeDecodeError:
        lines = [body[start : start + 32].hex(" ") for start in range(0, min(len(body), _BINARY), 32)]
        more = [f"... {len(body) - _BINARY} bytes more"] if len(body) > _BINARY else []
        return "\n".join([*lines, *more])
    try:
        # Whether it is JSON, its content type need not say.
        found = json.loads(text) if text[:1] in "{[" and len(text) <= _TEXT else None
        text = text if found is None else json.dumps(found, indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        pass
    return _bounded(text, _TEXT)


def _bounded(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[:length]}\n... {len(text) - length} characters more"
