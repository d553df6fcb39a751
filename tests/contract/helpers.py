"""Short words for what the contract tests do again and again."""

from __future__ import annotations

import contextlib
import re
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pika
import pytest
from pika import spec
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import ChannelClosedByBroker, ConnectionClosedByBroker

from tests.conftest import wait_for

Text = str | re.Pattern[str]
PATIENCE = 30.0


@dataclass(frozen=True)
class Peer:
    """A broker to talk to."""

    name: str
    host: str
    port: int
    username: str = "guest"
    password: str = "guest"
    virtual_host: str = "/"

    def parameters(self, **overrides: Any) -> pika.ConnectionParameters:
        options: dict[str, Any] = {
            "host": self.host,
            "port": self.port,
            "virtual_host": self.virtual_host,
            "credentials": pika.PlainCredentials(self.username, self.password),
            "heartbeat": 0,
            # On a loaded machine, a handshake may take longer than one should wait for a broker's.
            "socket_timeout": 60,
            "stack_timeout": 60,
        }
        return pika.ConnectionParameters(**{**options, **overrides})


@dataclass(frozen=True)
class Delivery:
    """A message as it came."""

    method: Any
    properties: spec.BasicProperties
    body: bytes

    @property
    def tag(self) -> int:
        return int(self.method.delivery_tag)

    @property
    def headers(self) -> dict[str, Any]:
        return dict(self.properties.headers or {})


def name(kind: str = "x") -> str:
    """A name that nothing else has."""
    return f"contract-{kind}-{uuid.uuid4().hex[:12]}"


def queue(ch: BlockingChannel, arguments: dict[str, Any] | None = None, **options: Any) -> str:
    """Declare a queue of a fresh name; it ends with its connection unless told otherwise."""
    fresh = name("q")
    ch.queue_declare(fresh, arguments=arguments, **{"exclusive": True, **options})
    return fresh


def exchange(
    ch: BlockingChannel, kind: str = "direct", arguments: dict[str, Any] | None = None, **options: Any
) -> str:
    """Declare an exchange of a fresh name."""
    fresh = name("e")
    ch.exchange_declare(fresh, kind, arguments=arguments, **options)
    return fresh


def publish(ch: BlockingChannel, to: str, key: str, body: bytes = b"", **properties: Any) -> None:
    ch.basic_publish(to, key, body, pika.BasicProperties(**properties))


def send(ch: BlockingChannel, to: str, *sent: bytes, **properties: Any) -> None:
    """Publish bodies to a queue, through the default exchange."""
    for body in sent:
        publish(ch, "", to, body, **properties)


def confirmed(pub: BlockingChannel, to: str, *sent: bytes) -> None:
    """Publish bodies to a queue on a channel that waits for its confirms."""
    for body in sent:
        pub.basic_publish("", to, body)


def fetch(ch: BlockingChannel, of: str, auto_ack: bool = True) -> Delivery:
    """Take the next message; wait until there is one."""
    found: list[Delivery] = []

    def got() -> bool:
        method, properties, body = ch.basic_get(of, auto_ack)
        if method is not None and properties is not None:
            found.append(Delivery(method, properties, body or b""))
        return bool(found)

    wait_for(got, f"a message in {of}")
    return found[0]


def get(ch: BlockingChannel, of: str) -> Delivery:
    """Take the next message and leave it unsettled."""
    return fetch(ch, of, auto_ack=False)


def bodies(ch: BlockingChannel, of: str) -> list[bytes]:
    """Take everything that a queue has ready."""
    taken: list[bytes] = []
    while True:
        method, _, body = ch.basic_get(of, True)
        if method is None:
            return taken
        taken.append(body or b"")


def count(ch: BlockingChannel, of: str) -> int:
    """How many messages a queue says are ready; RabbitMQ answers this before it looks at what it was sent."""
    return int(ch.queue_declare(of, passive=True).method.message_count)


def has(ch: BlockingChannel, of: str, number: int) -> None:
    """Wait until so many messages are ready."""
    wait_for(lambda: count(ch, of) == number, f"{number} messages in {of}")


def fill(ch: BlockingChannel, to: str, *sent: bytes, **properties: Any) -> None:
    """Publish bodies to a queue that has no consumer, and wait until they are there."""
    before = count(ch, to)
    send(ch, to, *sent, **properties)
    has(ch, to, before + len(sent))


def consumers(ch: BlockingChannel, of: str) -> int:
    return int(ch.queue_declare(of, passive=True).method.consumer_count)


def exists(connection: pika.BlockingConnection, of: str) -> bool:
    """Whether there is such a queue, asked on a channel of its own."""
    return _found(connection, lambda probe: probe.queue_declare(of, passive=True))


def exchange_exists(connection: pika.BlockingConnection, of: str) -> bool:
    """Whether there is such an exchange, asked on a channel of its own."""
    return _found(connection, lambda probe: probe.exchange_declare(of, passive=True))


def _found(connection: pika.BlockingConnection, look: Callable[[BlockingChannel], object]) -> bool:
    probe = connection.channel()
    try:
        look(probe)
    except ChannelClosedByBroker as closed:
        if closed.reply_code != 404:
            raise
        return False
    probe.close()
    return True


def dead_letters_to(q: str) -> dict[str, Any]:
    """The arguments of a queue whose dead letters go to this one."""
    return {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": q}


def lapse(ch: BlockingChannel, milliseconds: int) -> None:
    """Let time go by on the broker's clock: a message's time to live."""
    end = queue(ch)
    send(ch, queue(ch, {"x-message-ttl": milliseconds, **dead_letters_to(end)}), b"")
    fetch(ch, end)


def touch(ch: BlockingChannel) -> None:
    """A round trip that changes nothing: what the channel sent before has been looked at."""
    ch.exchange_declare("amq.direct", passive=True)


@dataclass
class Inbox:
    """What a consumer got, in order."""

    ch: BlockingChannel
    of: str
    auto_ack: bool = False
    exclusive: bool = False
    arguments: dict[str, Any] | None = None
    got: list[Delivery] = field(default_factory=list)
    tag: str = ""

    def __post_init__(self) -> None:
        self.tag = self.ch.basic_consume(
            self.of,
            lambda _ch, method, properties, body: self.got.append(Delivery(method, properties, body)),
            auto_ack=self.auto_ack,
            exclusive=self.exclusive,
            arguments=self.arguments,
        )

    @property
    def bodies(self) -> list[bytes]:
        return [delivery.body for delivery in self.got]

    def wait(self, number: int = 1) -> list[Delivery]:
        """Wait until that many have come."""
        until(self.ch, lambda: len(self.got) >= number, f"{number} deliveries from {self.of}")
        return self.got

    def settle(self, *expected: bytes) -> None:
        """These have come, and no others."""
        until(self.ch, lambda: len(self.got) >= len(expected), f"{expected} from {self.of}")
        count(self.ch, self.of)
        self.ch.connection.process_data_events(0)
        assert self.bodies == list(expected)


def until(ch: BlockingChannel, condition: Callable[[], object], what: str) -> None:
    """Let a connection work until a condition holds."""

    def holds() -> bool:
        ch.connection.process_data_events(0)
        return bool(condition())

    wait_for(holds, what, PATIENCE)


def same(text: str, expected: Text) -> None:
    if isinstance(expected, str):
        assert text == expected
    else:
        assert expected.fullmatch(text), f"{text!r} is not {expected.pattern!r}"


@contextlib.contextmanager
def closes(code: int, text: Text) -> Iterator[None]:
    """The broker closes the channel, with exactly this code and text."""
    with pytest.raises(ChannelClosedByBroker) as caught:
        yield
    assert caught.value.reply_code == code, caught.value.reply_text
    same(caught.value.reply_text, text)


@contextlib.contextmanager
def disconnects(code: int, text: Text) -> Iterator[None]:
    """The broker closes the connection, with exactly this code and text."""
    with pytest.raises(ConnectionClosedByBroker) as caught:
        yield
    assert caught.value.reply_code == code, caught.value.reply_text
    same(caught.value.reply_text, text)
