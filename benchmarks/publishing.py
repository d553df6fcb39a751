"""Confirmed publishing beside the limit, raw pika and amqpstorm: in bulk, from many threads, from one.

``python -m benchmarks.publishing [--quick] [--memory]``. It starts a RabbitMQ node of its own on loopback.
The candidates take turns, and what counts is the ratio within a round: absolute figures of a shared machine
mean little. Messages have 200 bytes and are persistent. They go through the default exchange to one classic
queue that is not durable, and empty before each run; who waits for confirms publishes as mandatory. In bulk
the broker's queue is then what limits all but the slowest, so a second table has them go to an exchange
without a binding: what the broker does is small, and the clients are what is measured.

In bulk:

- *bare socket*: the limit. The frames of one message, encoded once, are written to a socket over and over,
  with the same number of messages in flight; confirms are only counted.
- *Flask-Pika, publish_many*: each message is made, encoded and confirmed by itself.
- *pika, confirmed*: a ``BlockingChannel`` in confirm mode; each ``basic_publish`` waits for its confirm.
  That is all the confirming that it can do, so nothing changes with the number in flight.
- *pika* and *amqpstorm, unconfirmed*: ``basic_publish`` or ``basic.publish`` in a loop. Their time ends when
  the broker has read the last message: it has answered a request on the same channel.

From threads: each one publishes, waits for the confirm, and publishes the next: with ``publish()``, of one
Flask-Pika for all of them, in an app context; or with a confirmed ``BlockingChannel``, on a connection of
its own for each.

Memory: what the process holds while one ``publish_many`` goes on, to an exchange without a binding, so that
the broker keeps nothing. With ``--memory`` it is a million messages.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import importlib
import importlib.util
import itertools
import os
import platform
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pika
from flask import Flask
from pika.adapters.blocking_connection import BlockingChannel

from benchmarks.bare_socket import BareSocket
from flask_pika import Message, Pika
from tools.rabbitmq_node import RabbitMQNode

BODY = b"x" * 200
QUEUE = "bench"
THREADS = 16
#: Seconds for a whole publish_many(): on a slow machine, too.
PATIENCE = 600.0
#: What publish() gives to such a message, for those to whom it must be given.
NAMED = {
    "content_type": "application/octet-stream",
    "delivery_mode": 2,
    "message_id": "0" * 32,
    "timestamp": 1,
}

LIMIT = "bare socket"
BULK = "Flask-Pika, publish_many"
SINGLE = "Flask-Pika, publish"
CONFIRMED = "pika, confirmed"
UNCONFIRMED = "pika, unconfirmed"
STORM = "amqpstorm, unconfirmed"


class Sample(NamedTuple):
    """What one candidate did in one round."""

    rate: float  #: messages per second
    p50: float = 0.0  #: milliseconds of a single call, where one was measured
    p99: float = 0.0


class Counts(NamedTuple):
    """How much is done."""

    rounds: int
    bulk: int  #: messages of a bulk run
    waits: int  #: messages of a run in which each waits for its confirm, of all threads together
    memory: int


class Bench:
    """The node, the app, and the queue."""

    def __init__(self, node: RabbitMQNode, stack: ExitStack, counts: Counts) -> None:
        self.node = node
        self.counts = counts
        self._stack = stack
        self.app = Flask("benchmark")
        self.app.config["FLASK_PIKA_PARAMS"] = node.params
        self.fpika = Pika(self.app)
        stack.callback(self.fpika.close)
        self._admin = self.channel()
        self._admin.queue_declare(QUEUE, durable=False)

    def channel(self, confirm: bool = False) -> BlockingChannel:
        """A raw channel, on a connection of its own that may be idle while the others have their turns."""
        parameters = pika.ConnectionParameters("127.0.0.1", self.node.port, heartbeat=0)
        connection = pika.BlockingConnection(parameters)
        self._stack.callback(connection.close)
        channel = connection.channel()
        if confirm:
            channel.confirm_delivery()
        return channel

    def bare_socket(self) -> BareSocket:
        bare = BareSocket(self.node.port)
        self._stack.callback(bare.close)
        return bare

    def storm(self) -> Any:
        """A channel of amqpstorm; None where that is not installed."""
        if importlib.util.find_spec("amqpstorm") is None:
            return None
        # Not by an import statement: type checkers run where it is not installed.
        amqpstorm = importlib.import_module("amqpstorm")
        connection = amqpstorm.Connection("127.0.0.1", "guest", "guest", port=self.node.port)
        self._stack.callback(connection.close)
        return connection.channel()

    def empty_queue(self) -> None:
        self._admin.queue_purge(QUEUE)


def measure(bench: Bench, candidates: dict[str, Callable[[], Sample]]) -> dict[str, list[Sample]]:
    """What each candidate does, in rounds that alternate between them. The first round is for warming up."""
    results: dict[str, list[Sample]] = {name: [] for name in candidates}
    for number in range(bench.counts.rounds + 1):
        for name, run in candidates.items():
            bench.empty_queue()
            gc.collect()
            sample = run()
            if number:
                results[name].append(sample)
    return results


def ratio(of: list[Sample], to: list[Sample]) -> float:
    """Side by side in each round: what the machine did meanwhile, it did to both."""
    return statistics.median(a.rate / b.rate for a, b in zip(of, to, strict=True))


def report(title: str, results: dict[str, list[Sample]], base: str, ours: str, expected: str) -> None:
    """A table, and what was expected of it."""
    waits = results[ours][0].p50 > 0
    print(f"\n{title}\n")
    print(
        f"  {'':26} {'median':>9} {'lowest':>9} {'highest':>9}  {'of ' + base:>18} {'ours is':>9}"
        + (f" {'p50':>8} {'p99':>8}" if waits else "")
    )
    for name, samples in results.items():
        rates = [sample.rate for sample in samples]
        line = f"  {name:26} {statistics.median(rates):7,.0f}/s {min(rates):7,.0f}/s {max(rates):7,.0f}/s"
        line += f"  {ratio(samples, results[base]):18.2f} {ratio(results[ours], samples):7.2f} x"
        if waits:
            p50, p99 = (statistics.median(getattr(s, what) for s in samples) for what in ("p50", "p99"))
            line += f" {p50:5.2f} ms {p99:5.2f} ms"
        print(line)
    print(f"\n  Expected: {expected}")


# In bulk


def bulk(bench: Bench) -> None:
    bare, confirmed, unconfirmed = bench.bare_socket(), bench.channel(confirm=True), bench.channel()
    storm = bench.storm()
    if storm is None:
        print("\namqpstorm is not installed, and left out")
    properties = pika.BasicProperties(**NAMED)
    # amqpstorm takes no number for a time.
    named = {**NAMED, "timestamp": datetime.datetime.fromtimestamp(1, datetime.timezone.utc)}
    many, some = bench.counts.bulk, bench.counts.waits

    def through(channel: BlockingChannel, times: int, exchange: str, confirms: bool) -> Sample:
        def publish() -> None:
            for _ in range(times):
                channel.basic_publish(exchange, QUEUE, BODY, properties, confirms and not exchange)
            channel.queue_declare(QUEUE, passive=True)

        return timed(times, publish)

    def through_storm(exchange: str) -> Sample:
        def publish() -> None:
            for _ in range(many):
                storm.basic.publish(BODY, QUEUE, exchange, properties=named)
            storm.queue.declare(QUEUE, passive=True)

        return timed(many, publish)

    def publish_many(window: int, exchange: str) -> Sample:
        messages = (
            Message(BODY, exchange=exchange, routing_key=QUEUE, mandatory=not exchange) for _ in range(many)
        )
        return timed(many, lambda: bench.fpika.publish_many(messages, window=window, timeout=PATIENCE))

    def compare(window: int, exchange: str, where: str) -> None:
        candidates: dict[str, Callable[[], Sample]] = {
            LIMIT: lambda: timed(many, lambda: bare.publish(many, window, exchange, QUEUE, BODY)),
            BULK: lambda: publish_many(window, exchange),
            CONFIRMED: lambda: through(confirmed, some, exchange, True),
            UNCONFIRMED: lambda: through(unconfirmed, many, exchange, False),
            STORM: lambda: through_storm(exchange),
        }
        if storm is None:
            del candidates[STORM]
        report(
            f"In bulk, {window:,} in flight, {where}",
            measure(bench, candidates),
            LIMIT,
            BULK,
            "publish_many at least 0.75 of the bare socket, 12 times pika confirmed, faster than amqpstorm",
        )

    for window in (100, 1_000, 5_000):
        compare(window, "", "to a queue")
    for window in (100, 1_000, 5_000):
        compare(window, "amq.direct", "to an exchange without a queue")


def timed(times: int, publish: Callable[[], object]) -> Sample:
    began = time.perf_counter()
    publish()
    return Sample(times / (time.perf_counter() - began))


# Publish, wait, publish


def waiting(bench: Bench, threads: int, expected: str) -> None:
    properties = pika.BasicProperties(**NAMED)
    channels = [bench.channel(confirm=True) for _ in range(threads)]

    def ours() -> None:
        bench.fpika.publish(BODY, routing_key=QUEUE)

    def through(channel: BlockingChannel) -> Callable[[], object]:
        return lambda: channel.basic_publish("", QUEUE, BODY, properties, True)

    times = bench.counts.waits // threads
    candidates = {
        CONFIRMED: lambda: in_threads(bench.app, [through(channel) for channel in channels], times),
        SINGLE: lambda: in_threads(bench.app, [ours] * threads, times),
    }
    title = f"{threads} threads, each waits" if threads > 1 else "One thread that waits"
    report(f"{title} for each confirm", measure(bench, candidates), CONFIRMED, SINGLE, expected)


def in_threads(app: Flask, calls: list[Callable[[], object]], times: int) -> Sample:
    """Each of ``calls`` in a thread of its own, ``times`` times, all at once; and how long each took."""
    took: list[float] = []
    errors: list[BaseException] = []
    start = threading.Barrier(len(calls) + 1)

    def work(call: Callable[[], object]) -> None:
        mine = []
        with app.app_context():
            start.wait()
            try:
                for _ in range(times):
                    began = time.perf_counter()
                    call()
                    mine.append(time.perf_counter() - began)
            except Exception as exc:
                errors.append(exc)
        took.extend(mine)

    workers = [threading.Thread(target=work, args=(call,)) for call in calls]
    for worker in workers:
        worker.start()
    start.wait()
    began = time.perf_counter()
    for worker in workers:
        worker.join()
    whole = time.perf_counter() - began
    if errors:
        raise errors[0]
    took.sort()
    p50, p99 = (took[int(len(took) * part)] * 1e3 for part in (0.5, 0.99))
    return Sample(len(took) / whole, p50, p99)


# Memory

_STATM = Path("/proc/self/statm")


def memory(bench: Bench) -> None:
    if not _STATM.exists():
        print("\nMemory: this system has no /proc/self/statm, left out")
        return
    count = bench.counts.memory
    marks = {count // 10: "10%", count // 2: "50%", count - 1: "100%"}
    resident: dict[str, float] = {}

    def messages() -> Iterator[Message]:
        for number in itertools.islice(itertools.count(), count):
            if number in marks:
                resident[marks[number]] = resident_megabytes()
            # Each with a body of its own: what is held on to is seen.
            yield Message(b"%0200d" % number, exchange="amq.direct", routing_key="nowhere", mandatory=False)

    gc.collect()
    before = resident_megabytes()
    began = time.perf_counter()
    bench.fpika.publish_many(messages(), timeout=PATIENCE)
    took = time.perf_counter() - began
    print(f"\nMemory while one publish_many of {count:,} messages goes on, which took {took:.1f} s\n")
    print(f"  {'before':>10} " + " ".join(f"{name:>10}" for name in resident) + f" {'10% to 100%':>12}")
    figures = " ".join(f"{value:7.1f} MB" for value in (before, *resident.values()))
    print(f"  {figures} {resident['100%'] - resident['10%']:9.1f} MB")
    print("\n  Expected: it does not grow with the number of messages")


def resident_megabytes() -> float:
    return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Confirmed publishing, beside the limit, pika and amqpstorm."
    )
    parser.add_argument("--quick", action="store_true", help="only see that it runs")
    parser.add_argument("--memory", action="store_true", help="publish a million messages to see memory use")
    options = parser.parse_args()
    counts = Counts(2, 500, 64, 20_000) if options.quick else Counts(7, 40_000, 4_000, 20_000)
    if options.memory:
        counts = counts._replace(memory=1_000_000)
    with RabbitMQNode() as node, ExitStack() as stack:
        print(
            f"Python {platform.python_version()}, pika {pika.__version__}, RabbitMQ"
            f" {node.ctl('version').strip()}; medians of {counts.rounds} rounds"
        )
        bench = Bench(node, stack, counts)
        memory(bench)  # first, before the others leave their traces in it
        bulk(bench)
        waiting(bench, THREADS, "Flask-Pika at least 3 times as fast, with a lower p99")
        waiting(bench, 1, "Flask-Pika is not slower")


if __name__ == "__main__":
    main()
