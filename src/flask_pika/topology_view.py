"""What an app needs at the broker, to be looked at: as text, and as a graph for Graphviz. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from .topology import PREDECLARED, RETRY, Binding, Exchange, Queue


def shown(name: str) -> str:
    """A name on one line, which no terminal takes for something else."""
    return name if name and name.isprintable() and not name.startswith(("'", '"')) else repr(name)


def value_shown(value: Any) -> str:
    """An argument's value, as JSON has it, where it has it."""
    return json.dumps(value, default=repr, ensure_ascii=True)


class Edge(NamedTuple):
    """A way that messages go."""

    source: Exchange | Queue | str  #: or the name of a queue that is not registered
    to_queue: bool
    target: str
    label: str
    style: str = "solid"


def text(exchanges: Sequence[Exchange], queues: Sequence[Queue]) -> Iterator[str]:
    """Lines that say it all."""
    for thing in _all(exchanges, queues):
        yield f"{'queue' if isinstance(thing, Queue) else 'exchange'} {shown(thing.name)}: {_about(thing)}"
        for binding in thing.bindings:
            yield f"  bound to exchange {shown(binding.exchange)} {_by(binding)}"
        for edge in _ways(thing, {queue.name for queue in queues}):
            kind = "queue" if edge.to_queue else "exchange"
            yield f"  {edge.label}: to {kind} {shown(edge.target)}"
        for argument, value in thing.arguments.items():
            if argument != "x-queue-type":
                yield f"  {shown(argument)} = {value_shown(value)}"


def _all(exchanges: Sequence[Exchange], queues: Sequence[Queue]) -> tuple[Exchange | Queue, ...]:
    return (*exchanges, *queues)


def _about(thing: Exchange | Queue) -> str:
    flags = [name for name in ("internal", "exclusive", "auto_delete") if getattr(thing, name, False)]
    words = [thing.type, *(flag.replace("_", "-") for flag in flags)]
    if isinstance(thing, Exchange) and thing.is_predeclared:
        words.append("RabbitMQ's own")
    elif not thing.durable:
        words.append("transient")
    return ", ".join(words)


def _by(binding: Binding) -> str:
    headers = {name: value for name, value in binding.arguments.items() if name != "x-match"}
    if "x-match" in binding.arguments:
        return f"by {binding.arguments['x-match']} of {value_shown(headers)}"
    more = f" with {value_shown(headers)}" if headers else ""
    return f"by {shown(binding.routing_key)}{more}"


def _ways(thing: Exchange | Queue, queues: set[str]) -> Iterator[Edge]:
    """Where messages go from here, but for bindings."""
    arguments = thing.arguments
    if isinstance(thing, Exchange):
        if "alternate-exchange" in arguments:
            yield Edge(thing, False, arguments["alternate-exchange"], "what no binding wants", "dashed")
        return
    target = arguments.get("x-dead-letter-exchange")
    key = arguments.get("x-dead-letter-routing-key")
    if target is not None:
        label = _waits(thing, arguments) or "dead letters"
        if target == "" and key is not None:
            yield Edge(thing, True, key, label, "dashed")
        else:
            by = "" if key is None else f" by {shown(key)}"
            yield Edge(thing, False, target, label + by, "dashed")
    prefix = thing.name + RETRY
    for name in sorted(queues):
        if name.startswith(prefix) and name.removeprefix(prefix).removesuffix("ms").isdigit():
            yield Edge(thing, True, name, "to be tried again", "dotted")
    if thing.dead in queues and key != thing.dead:
        yield Edge(thing, True, thing.dead, "attempts used up", "dashed")


def _waits(queue: Queue, arguments: Mapping[str, Any]) -> str:
    origin = arguments.get("x-dead-letter-routing-key")
    if origin is not None and queue.name.startswith(f"{origin}{RETRY}") and "x-message-ttl" in arguments:
        return f"after {arguments['x-message-ttl'] / 1000:g} s"
    return ""


def dot(name: str, exchanges: Sequence[Exchange], queues: Sequence[Queue]) -> Iterator[str]:
    """Lines of Graphviz's language: ellipses are exchanges, boxes queues, dashed what is not registered."""
    ids: dict[tuple[bool, str], str] = {}
    yield f"digraph {_quoted(name)} {{"
    yield "  rankdir=LR;"
    for thing in _all(exchanges, queues):
        is_queue = isinstance(thing, Queue)
        ids[is_queue, thing.name] = f"n{len(ids)}"
        yield _node(ids[is_queue, thing.name], is_queue, thing.name, _about(thing))
    for edge in _edges(exchanges, queues):
        if isinstance(edge.source, str):
            start = (False, edge.source)
        else:
            start = (isinstance(edge.source, Queue), edge.source.name)
        for end in (start, (edge.to_queue, edge.target)):
            if end not in ids:
                ids[end] = f"n{len(ids)}"
                own = end[1] in PREDECLARED or end == (False, "")
                yield _node(ids[end], *end, "RabbitMQ's own" if own else "not registered")
        arrow = f"{ids[start]} -> {ids[edge.to_queue, edge.target]}"
        yield f"  {arrow} [label={_quoted(edge.label)}, style={edge.style}];"
    yield "}"


def _edges(exchanges: Sequence[Exchange], queues: Sequence[Queue]) -> Iterable[Edge]:
    known = {exchange.name: exchange for exchange in exchanges}
    names = {queue.name for queue in queues}
    for thing in _all(exchanges, queues):
        for binding in thing.bindings:
            source = known.get(binding.exchange, binding.exchange)
            label = _by(binding).removeprefix("by ")
            yield Edge(source, isinstance(thing, Queue), thing.name, label)
        yield from _ways(thing, names)


def _node(node: str, is_queue: bool, name: str, about: str) -> str:
    style = ", style=dashed" if about == "not registered" else ""
    label = _escaped(shown(name) if name else "the default exchange") + "\\n" + _escaped(about)
    return f'  {node} [shape={"box" if is_queue else "ellipse"}, label="{label}"{style}];'


def _quoted(value: str) -> str:
    return f'"{_escaped(value)}"'


def _escaped(value: str) -> str:
    """Graphviz takes backslashes for escapes in labels, and ampersands for HTML's entities."""
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("&", "&amp;")
