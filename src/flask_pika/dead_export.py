"""Dead letters as lines of JSON, and back: nothing of a message is lost in between. Pure.

A line has ``properties``, ``headers`` and the body, which is ``body`` when it is UTF-8, and ``body_base64``
when it is not; and ``exchange`` and ``routing_key``, with which it came to the dead letters, for its reader.
What JSON has no type for is an object with one key: ``{"$bytes": base64}``, ``{"$datetime": ISO 8601}``,
``{"$decimal": text}``, ``{"$long": number}`` (of 64 bits, though it is small), ``{"$pairs": [[name,
value]]}`` (a table with names that are no text), and ``{"$table": {...}}``, for one that looks like these.
Where that is not all, as with floats, which pika does not know, ``encoded_base64`` is: AMQP's own bytes of
properties and headers. A line that has it is read by it alone.
"""

from __future__ import annotations

import base64
import datetime
import decimal
import json
from collections.abc import Callable, Mapping
from typing import Any

from pika import BasicProperties, compat

from .dead_letters import Letter
from .encoded import EncodedProperties
from .message import PROPERTIES

#: What pika makes of integers that came as 64 bits, and sends as such.
_Long: Callable[[int], int] = getattr(compat, "long", int)
_NAMED = tuple(name for name in PROPERTIES if name != "headers")
_RANGES = {"delivery_mode": 255, "priority": 255, "timestamp": 2**64 - 1}
_KEYS = {"body", "body_base64", "properties", "headers", "encoded_base64", "exchange", "routing_key"}


class BadLine(ValueError):
    """A line is no dead letter; the text says why."""


def encode_line(letter: Letter) -> str:
    """A dead letter as a line, without its end."""
    line: dict[str, Any] = {}
    try:
        line["body"] = letter.body.decode()
    except UnicodeDecodeError:
        line["body_base64"] = base64.b64encode(letter.body).decode()
    values = ((name, getattr(letter.properties, name)) for name in _NAMED)
    line["properties"] = {name: _to_json(value) for name, value in values if value is not None}
    if letter.headers:
        line["headers"] = _to_json(letter.headers)
    try:
        is_all = _bytes(_decode(line)) == letter.encoded
    except BadLine:
        is_all = False
    if not is_all:
        line["encoded_base64"] = base64.b64encode(letter.encoded).decode()
    line.update(exchange=_to_json(letter.exchange), routing_key=_to_json(letter.routing_key))
    return json.dumps(line, ensure_ascii=False)


def decode_line(line: bytes) -> tuple[EncodedProperties, bytes]:
    """The message of a line.

    :raises BadLine: it is none, or cannot be sent.
    """
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as exc:
        raise BadLine(f"no JSON: {exc}") from exc
    if not isinstance(found, dict):
        raise BadLine(f"{_kind(found)}; expected an object")
    unknown = sorted(set(found) - _KEYS)
    if unknown:
        raise BadLine(f"unknown: {', '.join(unknown)[:200]}")
    return _decode(found), _body(found)


def _decode(found: Mapping[str, Any]) -> EncodedProperties:
    if "encoded_base64" in found:
        try:
            return EncodedProperties(_base64(found["encoded_base64"]))
        except (ValueError, AttributeError) as exc:
            raise BadLine("encoded_base64 is no properties of AMQP, as base64") from exc
    make: Any = BasicProperties  # pika's generated classes are not annotated
    properties = make(**_properties(found.get("properties")))
    if "headers" in found:
        properties.headers = _headers(found["headers"])
    try:
        return EncodedProperties(_bytes(properties))
    except Exception as exc:  # of many types: assertions, struct.error, pika's own
        raise BadLine(f"its properties or headers cannot be sent: {exc!r}"[:300]) from exc


def _bytes(properties: Any) -> bytes:
    return b"".join(properties.encode())


def _to_json(value: Any) -> Any:
    """What stands for a header's value in JSON."""
    if isinstance(value, bytes):
        return {"$bytes": base64.b64encode(value).decode()}
    if isinstance(value, datetime.datetime):
        return {"$datetime": value.isoformat()}
    if isinstance(value, decimal.Decimal):
        return {"$decimal": str(value)}
    if isinstance(value, list):
        return [_to_json(one) for one in value]
    if isinstance(value, Mapping):
        if not all(isinstance(name, str) for name in value):
            return {"$pairs": [[_to_json(name), _to_json(one)] for name, one in value.items()]}
        table = {name: _to_json(one) for name, one in value.items()}
        return {"$table": table} if _is_marked(table) else table
    if type(value) is _Long and _Long is not int and -(2**31) <= value < 2**31:
        return {"$long": int(value)}
    return value


def _from_json(value: Any) -> Any:
    if isinstance(value, list):
        return [_from_json(one) for one in value]
    if not isinstance(value, dict):
        return value
    if not _is_marked(value):
        return {name: _from_json(one) for name, one in value.items()}
    ((mark, content),) = value.items()
    if mark not in _READ:
        raise BadLine(f"{mark!r} is no type; expected {', '.join(_READ)}")
    try:
        return _READ[mark](content)
    except BadLine:
        raise
    except Exception as exc:  # whatever is in the file
        raise BadLine(f"no {mark}: {str(content)[:80]!r}") from exc


def _is_marked(table: Mapping[str, Any]) -> bool:
    return len(table) == 1 and next(iter(table)).startswith("$")


def _base64(text: str) -> bytes:
    return base64.b64decode(text.encode("ascii"), validate=True)


def _long(number: int) -> int:
    if type(number) is not int:
        raise BadLine(f"no $long: {str(number)[:80]!r}")
    return _Long(number)


def _table(content: dict[str, Any]) -> dict[str, Any]:
    return {name: _from_json(one) for name, one in content.items()}


def _pairs(content: list[list[Any]]) -> dict[Any, Any]:
    return {_from_json(name): _from_json(one) for name, one in content}


_READ: dict[str, Callable[[Any], Any]] = {
    "$bytes": _base64,
    "$datetime": datetime.datetime.fromisoformat,
    "$decimal": decimal.Decimal,
    "$long": _long,
    "$pairs": _pairs,
    "$table": _table,
}


def _properties(found: object) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise BadLine(f"properties: {_kind(found)}; expected an object")
    result = {}
    for name, content in found.items():
        if name not in _NAMED:
            raise BadLine(f"properties: there is no {name[:80]!r}; headers stand by themselves")
        value = _from_json(content)
        most = _RANGES.get(name)
        if most is None:
            if not isinstance(value, (str, bytes)):
                raise BadLine(f"properties: {name} is {_kind(value)}; expected text")
        elif type(value) is not int or not 0 <= value <= most:
            raise BadLine(f"properties: {name} is {str(value)[:80]}; expected a number from 0 to {most}")
        result[name] = value
    return result


def _headers(found: object) -> dict[str, Any]:
    try:
        headers = _from_json(found)
    except RecursionError as exc:
        raise BadLine("headers: nested too deep") from exc
    if not isinstance(headers, dict):
        raise BadLine(f"headers: {_kind(found)}; expected an object")
    return headers


def _body(found: Mapping[str, Any]) -> bytes:
    if ("body" in found) == ("body_base64" in found):
        raise BadLine("expected either body or body_base64")
    name = "body" if "body" in found else "body_base64"
    text = found[name]
    if not isinstance(text, str):
        raise BadLine(f"{name} is {_kind(text)}; expected text")
    try:
        return text.encode() if name == "body" else _base64(text)
    except ValueError as exc:
        raise BadLine(f"{name} is no {'UTF-8' if name == 'body' else 'base64'}") from exc


def _kind(value: object) -> str:
    names = {dict: "an object", list: "an array", str: "text", bool: "a truth value", type(None): "nothing"}
    return names.get(type(value), "a number")
