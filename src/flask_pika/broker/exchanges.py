"""Exchanges and their bindings: which destinations a message goes to. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from .closing import precondition_failed
from .contents import Content
from .tables import Field, Table, text_of

TYPES = ("direct", "fanout", "topic", "headers")
#: Routing keys whose routes are remembered, for each exchange.
_REMEMBERED = 10_000


class Destination(NamedTuple):
    """Where a binding leads: a queue, or an exchange."""

    is_queue: bool
    name: str


class Binding(NamedTuple):
    """What lets messages pass from an exchange to a destination. Bindings with other arguments are others."""

    destination: Destination
    routing_key: str
    arguments: tuple[tuple[str, str, object], ...]


class Exchange:
    """One exchange, with the bindings that lead from it."""

    def __init__(
        self, name: str, kind: str, *, durable: bool, auto_delete: bool, internal: bool, arguments: Table
    ) -> None:
        self.name = name
        self.kind = kind
        self.durable = durable
        self.auto_delete = auto_delete
        self.internal = internal
        self.arguments = arguments
        self.alternate: str | None = None
        if "alternate-exchange" in arguments:
            self.alternate = text_of(arguments["alternate-exchange"].value)
        self._bindings: dict[Binding, Callable[[Content, str], bool]] = {}
        self._by_destination: dict[Destination, dict[Binding, None]] = {}
        self._routes: dict[str, list[Destination]] = {}

    @property
    def is_used(self) -> bool:
        """Whether a binding leads from it."""
        return bool(self._bindings)

    def bind(self, destination: Destination, routing_key: str, arguments: Table) -> None:
        """Add a binding, once."""
        binding = _binding(destination, routing_key, arguments)
        if binding not in self._bindings:
            self._bindings[binding] = _matcher(self.kind, routing_key, arguments)
            self._by_destination.setdefault(destination, {})[binding] = None
            self._routes.clear()

    def has(self, destination: Destination, routing_key: str, arguments: Table) -> bool:
        """Whether there is such a binding."""
        return _binding(destination, routing_key, arguments) in self._bindings

    def unbind(self, destination: Destination, routing_key: str, arguments: Table) -> bool:
        """Take a binding away; whether there was one."""
        binding = _binding(destination, routing_key, arguments)
        if binding not in self._bindings:
            return False
        del self._bindings[binding]
        left = self._by_destination[destination]
        del left[binding]
        if not left:
            del self._by_destination[destination]
        self._routes.clear()
        return True

    def forget(self, destination: Destination) -> bool:
        """Take all bindings to a destination away; whether there were any."""
        gone = self._by_destination.pop(destination, {})
        for binding in gone:
            del self._bindings[binding]
        if gone:
            self._routes.clear()
        return bool(gone)

    def route(self, content: Content, routing_keys: Iterable[str]) -> list[Destination]:
        """Where a message with these keys goes from here, each destination once."""
        found: dict[Destination, None] = {}
        for key in routing_keys:
            found.update(dict.fromkeys(self._route(content, key)))
        return list(found)

    def _route(self, content: Content, key: str) -> list[Destination]:
        if self.kind == "headers":  # which says nothing about the next message
            return self._matching(content, key)
        known = self._routes.get(key)
        if known is None:
            if len(self._routes) >= _REMEMBERED:
                self._routes.clear()
            known = self._routes[key] = self._matching(content, key)
        return known

    def _matching(self, content: Content, key: str) -> list[Destination]:
        return [binding.destination for binding, matches in self._bindings.items() if matches(content, key)]


def _binding(destination: Destination, routing_key: str, arguments: Table) -> Binding:
    fields = sorted((name, field.kind, repr(field.value)) for name, field in arguments.items())
    return Binding(destination, routing_key, tuple(fields))


def _matcher(kind: str, routing_key: str, arguments: Table) -> Callable[[Content, str], bool]:
    if kind == "fanout":
        return lambda _content, _key: True
    if kind == "headers":
        return _headers_matcher(arguments)
    if kind == "topic":
        pattern = _words(routing_key)
        return lambda _content, key: topic_matches(pattern, _words(key))
    return lambda _content, key: key == routing_key


def topic_matches(pattern: list[str], words: list[str]) -> bool:
    """Whether a topic's binding key lets a routing key pass, both as words.

    ``*`` is one word, ``#`` any number of them (AMQP 0-9-1, section 3.1.3.3). As shell patterns are matched:
    a ``#`` takes as few words as it can, and one more whenever what follows does not fit; the last one that
    was met is the only one that has to try again.
    """
    at = here = 0
    retry, taken = -1, 0
    while here < len(words):
        if at < len(pattern) and pattern[at] == "#":
            retry, taken = at, here
            at += 1
        elif at < len(pattern) and pattern[at] in ("*", words[here]):
            at, here = at + 1, here + 1
        elif retry >= 0:
            taken += 1
            at, here = retry + 1, taken
        else:
            return False
    return all(word == "#" for word in pattern[at:])


def _words(key: str) -> list[str]:
    """The words of a key; an empty one has none."""
    return key.split(".") if key else []


_MATCHES = ("all", "any", "all-with-x", "any-with-x")


def check_headers_binding(arguments: Table) -> None:
    """Refuse an x-match that RabbitMQ refuses."""
    field = arguments.get("x-match")
    if field is None:
        return
    if field.kind != "longstr":
        raise precondition_failed(
            f"Invalid x-match field type {field.kind} (value {field.value}); expected longstr"
        )
    if text_of(field.value) not in _MATCHES:
        raise precondition_failed(
            f'Invalid x-match field value <<"{text_of(field.value)}">>;'
            " expected all, any, all-with-x, or any-with-x"
        )


def _headers_matcher(arguments: Table) -> Callable[[Content, str], bool]:
    how = text_of(arguments["x-match"].value) if "x-match" in arguments else "all"
    with_x = how.endswith("-with-x")
    wanted = {
        name: field
        for name, field in arguments.items()
        if name != "x-match" and (with_x or not name.startswith("x-"))
    }
    combine = all if how.startswith("all") else any

    return lambda content, _key: combine(
        _agrees(want, content.headers.get(name)) for name, want in wanted.items()
    )


def _agrees(want: Field, have: Field | None) -> bool:
    # A binding's header without a value asks for the header only.
    return have is not None and (want.kind == "void" or want.same_as(have))
