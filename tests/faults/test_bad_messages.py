"""Scenarios 8, the messages: what makes no sense, to be published and as it is delivered."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import itertools
import json
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pika
import pytest
from pika import data as pika_data
from pika import frame, spec

from flask_pika import Delivery, InvalidMessage, Nacked, PublishRefused, Retry, Unroutable, Worker
from tests.conftest import wait_for
from tests.contract.helpers import Peer
from tests.contract.raw import Wire
from tests.faults.bad_messages import Publish, Raw, publishes, raws
from tests.faults.crowd import OwnQueue, new_app
from tests.faults.lab import params_of
from tests.faults.peers import Memory, raw
from tests.faults.report import Report
from tests.faults.searching import told
from tools.rabbitmq_node import RabbitMQNode

pytestmark = [pytest.mark.broker, pytest.mark.faults, pytest.mark.timeout(900)]

GROUP = 8
THREADS = 8
TIMEOUT = 60.0
#: Bytes that the process may grow by.
MEMORY = 128 * 2**20
names = itertools.count()


@pytest.fixture
def count(request: pytest.FixtureRequest) -> int:
    return 10_000 if request.config.getoption("--faults") == "full" else 400


# To a publisher

PUBLISHED = "malformed bodies, headers and properties, to be published"
#: Publishes a body with properties by their names, or says why not.
Publisher = Callable[..., object]


class Refused:
    """What became of one that was not taken. The error is not kept: its frames have messages in them."""

    def __init__(self, one: Publish, exc: Exception) -> None:
        self.one, self.error, self.text = one, type(exc).__name__, f"{exc!r}"
        self.is_named = is_named(one, exc)
        #: Whether it says that no queue has it.
        self.is_nowhere = isinstance(exc, (InvalidMessage, Unroutable))
        told.info("%s: %s; %r", one.field, exc, exc)


class Clients:
    """Threads that publish what makes no sense, each of them followed by a message of another's that does."""

    def __init__(self, publish: Publisher, queue: str, hostile: Iterable[Publish]) -> None:
        self._publish, self._queue = publish, queue
        self._hostile, self._lock = iter(list(hostile)), threading.Lock()
        self.accepted: list[Publish] = []
        self.refused: list[Refused] = []
        self.good: list[str] = []
        self.failed: list[str] = []
        self.longest = 0.0

    def run(self) -> None:
        threads = [threading.Thread(target=self._work) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(600)
            assert not thread.is_alive(), "a client hangs"

    def _work(self) -> None:
        while True:
            with self._lock:
                one = next(self._hostile, None)
            if one is None:
                return
            self._ask_for(one)
            self._ask_for_good(f"good-{one.number}")

    def _ask_for(self, one: Publish) -> None:
        given = {"routing_key": self._queue, one.mark: one.marker, **one.given}
        if "properties" in given:
            del given[one.mark]
        began = time.monotonic()
        try:
            self._publish(one.body, **given)
        except Exception as exc:
            self.refused.append(Refused(one, exc))
        else:
            self.accepted.append(one)
        self.longest = max(self.longest, time.monotonic() - began)

    def _ask_for_good(self, text: str) -> None:
        began = time.monotonic()
        try:
            self._publish(text, routing_key=self._queue, app_id="good")
        except Exception as exc:
            self.failed.append(f"{text}: {exc!r}")
        else:
            self.good.append(text)
        self.longest = max(self.longest, time.monotonic() - began)


def is_named(one: Publish, exc: Exception) -> bool:
    """Whether the error says what is wrong with it; the broker's word, where it is the broker's."""
    if isinstance(exc, InvalidMessage):
        return one.field.lower() in str(exc).lower() or (one.field == "headers" and "propert" in str(exc))
    return isinstance(exc, (Nacked, PublishRefused, Unroutable)) and bool(str(exc))


def is_faithful(one: Publish, properties: Any, body: bytes) -> bool:
    """Whether what came is what was given."""
    given = one.body
    if isinstance(given, (bytes, bytearray, memoryview)):
        same = bytes(given) == body
    elif isinstance(given, str):
        same = given.encode() == body
    else:
        try:
            same = json.dumps(json.loads(body)) == json.dumps(json.loads(json.dumps(given)))
        except (TypeError, ValueError, RecursionError):
            same = False
    return same and all(
        _same(name, value, getattr(properties, name, None)) for name, value in one.given.items()
    )


def _same(name: str, given: Any, came: Any) -> bool:
    if given is None or name in ("routing_key", "exchange", "mandatory"):
        return True
    if name == "headers":
        pieces: list[bytes] = []
        pika_data.encode_table(pieces, given)
        return bool(pika_data.decode_table(b"".join(pieces), 0)[0] == (came or {}))
    if name == "expiration":
        return bool(came == str(round(given * 1000)))
    return bool(came == given)


def publisher_findings(clients: Clients, came: list[tuple[Any, bytes]]) -> dict[str, list[str]]:
    """By its kind, each thing that should not have happened."""
    by_marker = {properties.app_id or properties.type: (properties, body) for properties, body in came}
    for properties, body in came:
        by_marker[properties.type] = by_marker[properties.app_id] = (properties, body)
    good = collections.Counter(body.decode() for properties, body in came if properties.app_id == "good")
    refused = {each.one.marker for each in clients.refused if each.is_nowhere}
    found = {
        "lost": [text for text in clients.good if not good[text]]
        # What expires has done so, when there are many.
        + [
            one.marker
            for one in clients.accepted
            if one.marker not in by_marker and one.field != "expiration"
        ],
        "not as it was given": [
            f"{one}: {by_marker[one.marker]}"[:500]
            for one in clients.accepted
            if one.marker in by_marker and not is_faithful(one, *by_marker[one.marker])
        ],
        "an error that does not name it": [
            f"{each.one.field} {each.one.given}"[:300] + f": {each.text}"[:300]
            for each in clients.refused
            if not each.is_named
        ],
        "an error for a good one": clients.failed,
        "refused, and there": sorted(refused & set(by_marker)),
    }
    return {kind: those for kind, those in found.items() if those}


def test_malformed_messages_are_refused_by_name_or_carried_as_they_are(
    round_: int, node: RabbitMQNode, report: Report, count: int, grace: float
) -> None:
    queue = f"malformed-{next(names)}"
    _app, fpika = new_app(params_of(node), TIMEOUT)
    memory = Memory()
    with OwnQueue(node.url, queue) as own:
        clients = Clients(fpika.publish, queue, publishes(count, round_))
        clients.run()
        grown = memory.grown
        came = own.take()
    told.info("%r %s", fpika, fpika.stats())
    fpika.close()
    found = publisher_findings(clients, came)
    assert not found, {kind: (len(those), those[:6]) for kind, those in found.items()}
    assert len(clients.good) == count
    assert clients.accepted, "some of it is carried"
    assert clients.longest < TIMEOUT + grace
    assert grown < MEMORY
    report.add(
        GROUP,
        PUBLISHED,
        setting=f"{THREADS} threads; {count:,} of them, and as many good ones in between",
        tried=2 * count,
        accepted=len(clients.good) + len(clients.accepted),
        refused=collections.Counter(each.error for each in clients.refused),
        longest_over=clients.longest - TIMEOUT,
    )


class Careless:
    """Makes text of whatever it is given, waits for no confirm, and opens a new channel if it must."""

    def __init__(self, url: str) -> None:
        self._connection = pika.BlockingConnection(pika.URLParameters(url))
        self._channel = self._connection.channel()
        self._lock = threading.Lock()

    def publish(self, body: object, *, routing_key: object = "", exchange: object = "", **named: Any) -> None:
        with self._lock, contextlib.suppress(Exception):
            if not self._channel.is_open:
                self._channel = self._connection.channel()
            properties = pika.BasicProperties(
                **{name: value for name, value in named.items() if name in vars(pika.BasicProperties())}
            )
            text = body if isinstance(body, bytes) else str(body).encode()
            self._channel.basic_publish(str(exchange), str(routing_key), text, properties)

    def close(self) -> None:
        with self._lock, contextlib.suppress(Exception):
            self._connection.close()


def test_a_careless_publisher_is_caught(node: RabbitMQNode, report: Report) -> None:
    queue = f"malformed-{next(names)}"
    careless = Careless(node.url)
    with OwnQueue(node.url, queue) as own:
        clients = Clients(careless.publish, queue, publishes(300, 1))
        clients.run()
        careless.close()
        found = publisher_findings(clients, own.take())
    assert {"lost", "not as it was given"} <= set(found), found
    report.add_caught(GROUP, PUBLISHED, "no checks, no confirms", f"{len(found['lost'])} lost")


# To a consumer

DELIVERED = "malformed bodies, headers and properties, as a worker meets them"


class Sender:
    """Publishes hostile messages as frames made by hand, and good ones in between."""

    def __init__(self, node: RabbitMQNode) -> None:
        self._peer = Peer("rabbitmq", "127.0.0.1", node.port)
        self._wire: Wire | None = None

    def send(self, queue: str, properties: bytes, body: bytes) -> bool:
        """Whether the broker took it; it ends the connection over what it cannot read."""
        if self._wire is None:
            self._wire = Wire(self._peer).login().open_channel().send(spec.Confirm.Select())
            self._wire.expect(spec.Confirm.SelectOk)
        wire = self._wire
        try:
            # In one piece: TCP puts off small ones that follow each other.
            wire.send_bytes(b"".join(frames(queue, properties, body)))
            answer = wire.read()
        except OSError:
            answer = None
        taken = answer is not None and isinstance(getattr(answer, "method", None), spec.Basic.Ack)
        if not taken:
            self.close()
        return taken

    def close(self) -> None:
        if self._wire is not None:
            self._wire.hang_up()
            self._wire = None


def frames(queue: str, properties: bytes, body: bytes) -> Iterator[bytes]:
    """AMQP 0-9-1, section 4.2.6: a Basic.Publish, a header with its class, weight and size, and bodies."""
    publish: Any = spec.Basic.Publish
    yield frame.Method(1, publish(exchange="", routing_key=queue)).marshal()
    yield raw(spec.FRAME_HEADER, 1, struct.pack(">HHQ", 60, 0, len(body)) + properties)
    for at in range(0, len(body), 100_000):
        yield raw(spec.FRAME_BODY, 1, body[at : at + 100_000])


#: RabbitMQ 3.10's queue crashes when it dead-letters a message whose x-death is no array of tables: what
#: is in memory is gone, and in the end it does not start. The worker's own copies of what failed have none.
DEADLY = b"x-death"


class Sent:
    """What became of all that was sent: hostile ones, by whether the broker took them; and the good ones."""

    def __init__(self) -> None:
        self.taken = self.refused = 0
        self.good: list[str] = []


def send_all(node: RabbitMQNode, queue: str, hostile: Iterable[Raw]) -> Sent:
    """From several clients at once; each hostile one is followed by a good one."""
    each, lock, sent = enumerate(list(hostile)), threading.Lock(), Sent()

    def work() -> None:
        sender = Sender(node)
        try:
            while True:
                with lock:
                    number, one = next(each, (0, None))
                if one is None:
                    return
                is_taken = sender.send(queue, one.properties, one.body)
                text = f"good-{number}"
                assert sender.send(queue, b"\x00\x00", text.encode()), text
                with lock:
                    sent.taken += is_taken
                    sent.refused += not is_taken
                    sent.good.append(text)
        finally:
            sender.close()

    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        for one in [pool.submit(work) for _ in range(THREADS)]:
            one.result()
    return sent


def look_at(delivery: Delivery) -> None:
    """All that a handler may ask of a delivery."""
    assert delivery.attempt >= 1
    _ = (delivery.headers, delivery.message_id, delivery.timestamp, delivery.content_type, delivery.type)
    _ = (delivery.correlation_id, delivery.reply_to, repr(delivery))
    _ = (delivery.text, delivery.json)
    raise ValueError("it could be read, after all")


class Handled:
    """What handlers have done."""

    def __init__(self) -> None:
        self.good: list[str] = []
        self.errors: collections.Counter[str] = collections.Counter()

    def handle(self, delivery: Delivery) -> None:
        if delivery.body.startswith(b"good-"):
            self.good.append(delivery.text)
            return
        try:
            look_at(delivery)
        except Exception as exc:
            self.errors[type(exc).__name__] += 1
            raise


def consumer_findings(handled: Handled, good: list[str], taken: int, dead: int, left: int) -> dict[str, Any]:
    times = collections.Counter(handled.good)
    found: dict[str, Any] = {
        "lost": [text for text in good if not times[text]],
        "twice": [text for text, many in times.items() if many > 1],
        "not settled": list(range(left)),
        "not among the dead": list(range(abs(taken - dead))),
        "an error of another kind": set(handled.errors) - {"UndecodableMessage", "ValueError"},
    }
    return {kind: those for kind, those in found.items() if those}


@pytest.mark.parametrize("retry", [None, Retry(attempts=2, delay=0.01)], ids=["rejected", "retried"])
def test_malformed_deliveries_are_all_settled(
    retry: Retry | None,
    round_: int,
    node: RabbitMQNode,
    report: Report,
    count: int,
) -> None:
    queue = f"deliveries-{next(names)}"
    dead = f"{queue}.dead"
    count //= 2
    arguments = None if retry else {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": dead}
    _app, fpika = new_app(params_of(node), TIMEOUT)
    handled = Handled()
    fpika.consumer(queue, prefetch=16, retry=retry)(handled.handle)
    memory = Memory()
    with OwnQueue(node.url, queue, arguments) as own, OwnQueue(node.url, dead) as dead_ones:
        with fpika.worker(threads=THREADS) as worker:
            hostile = raws(count, round_, queue, without=b"" if retry else DEADLY)
            sent = send_all(node, queue, hostile)
            taken, good = sent.taken, sent.good
            wait_for(
                lambda: len(handled.good) >= len(good), lambda: f"{len(handled.good)} of {len(good)}", 120
            )
            wait_for(lambda: given_up(worker) >= taken, lambda: f"{taken} given up: {worker.stats()}", 120)
            told.info("%r %r %s", worker, fpika, worker.stats())
        grown = memory.grown
        left, among_dead = own.purge(), purge_all(dead_ones, taken)  # RabbitMQ moves them in its own time
    fpika.close()
    found = consumer_findings(handled, good, taken, among_dead, left)
    assert not found, found
    assert taken > count // 2, "most of it is delivered"
    assert grown < MEMORY
    report.add(
        GROUP,
        f"{DELIVERED}, and {'retried' if retry else 'rejected'}",
        setting=f"{THREADS} clients, {THREADS} handler threads; "
        f"{count:,} of them, {sent.refused:,} of which no broker takes",
        tried=2 * count,
        accepted=taken + len(good),
        refused=handled.errors,
    )


def given_up(worker: Worker) -> int:
    """How many deliveries have failed for good: those that say so of themselves are believed at the first."""
    return sum(stats.rejected + stats.dead for stats in worker.stats())


def purge_all(own: OwnQueue, expected: int) -> int:
    """How many there are, when so many have come; or in the end, if they don't."""
    found = 0

    def all_there() -> bool:
        nonlocal found
        found += own.purge()
        return found >= expected

    with contextlib.suppress(AssertionError):
        wait_for(all_there, "all that should be there", 30)
    return found


def test_a_consumer_that_is_not_prepared_is_caught(node: RabbitMQNode, report: Report) -> None:
    """The first one that it cannot read is its last one, and comes again for ever."""
    queue = f"deliveries-{next(names)}"
    handled = Handled()
    with OwnQueue(node.url, queue) as own:
        sent = send_all(node, queue, raws(50, 1, queue))
        connection = pika.BlockingConnection(pika.URLParameters(node.url))
        channel: Any = connection.channel()

        def handle(_channel: Any, method: Any, _properties: Any, body: bytes) -> None:
            text = body.decode()
            if text.startswith("good-"):
                handled.good.append(text)
            else:
                json.loads(text)
            channel.basic_ack(method.delivery_tag)

        with contextlib.suppress(Exception):  # what it cannot read may come with the answer to the first
            channel.basic_consume(queue, handle)
            channel.start_consuming()
        with contextlib.suppress(Exception):
            connection.close()
        # What it had comes back when the broker has noticed its end, which was none in order.
        found = consumer_findings(handled, sent.good, sent.taken, 0, purge_all(own, 1))
    assert {"lost", "not settled"} <= set(found), found
    report.add_caught(GROUP, f"{DELIVERED}, and rejected", "no guard", f"{len(found['lost'])} lost")
    report.add_caught(GROUP, f"{DELIVERED}, and retried", "no guard", f"{len(found['lost'])} lost")
