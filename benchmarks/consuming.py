"""Consuming, as workers do it, beside the limit, raw pika, kombu, dramatiq and celery.

``python -m benchmarks.consuming [--rounds N] [--quick] [PEER ...]``. It starts a RabbitMQ node of its own on
loopback. The candidates take turns, and what counts is the ratio within a round: absolute figures of a shared
machine mean little.

For each run of a candidate, one process fills its queue with as many messages as it drains in some seconds,
and ends. Another one drains it. Its rate is the number of messages after the first, divided by the time from
the first to the last, as the handler sees them: start and end are not in it. Then the queue must be empty:
what was not acknowledged would be back.

Queues are durable and messages persistent. A body is 200 bytes of JSON; what dramatiq and celery wrap around
it comes on top. It is parsed once, by the candidate or by the handler, which does nothing else but count.
Each message is acknowledged after its handler, and not before. Prefetch is 100. Threads are of one process.

- *bare socket*: the limit. Frames are counted and acknowledged in groups, and nothing is parsed.
- *pika*: a ``BlockingChannel`` with ``basic_consume``, in one thread, without an app context.
- *kombu*: a ``ConsumerMixin``, in one thread.
- *dramatiq*: its worker with 8 threads; an actor, and messages that it was sent.
- *celery*: its worker with a pool of 8 threads; a task that is acknowledged late and has no result. Its
  prefetch is a multiple of 8: 104.
- *Flask-Pika*: what ``flask pika worker --threads 8`` runs. Each message has an app context of its own. What
  is to be acknowledged at the same time is so in one frame; all others but the bare socket send one for each.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import itertools
import json
import math
import os
import platform
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pika
from flask import Flask

from benchmarks.bare_socket import BareSocket
from flask_pika import Delivery, Message, Pika
from tools.rabbitmq_node import RabbitMQNode

SIZE = 200
QUEUE = "bench"
PREFETCH = 100
THREADS = 8
#: Seconds for one process, on a slow machine, too.
PATIENCE = 180.0
#: Messages that are enough to see that it runs.
QUICK = 500
OURS = "Flask-Pika"


def message(number: int) -> dict[str, object]:
    """What is sent: ``SIZE`` bytes as JSON."""
    bare = {"number": number, "text": ""}
    return {**bare, "text": "x" * (SIZE - len(json.dumps(bare)))}


def parameters(port: int) -> pika.ConnectionParameters:
    return pika.ConnectionParameters("127.0.0.1", port)


def url(port: int) -> str:
    return f"amqp://guest:guest@127.0.0.1:{port}/%2F"


class Tally:
    """What every handler does: it counts. From any thread.

    :param at_the_end: called with the last message, in its handler.
    """

    def __init__(self, count: int, at_the_end: Callable[[], object]) -> None:
        self._count = count
        self._at_the_end = at_the_end
        self._numbers = itertools.count(1)  # in CPython, its next() is atomic
        self._began = self._ended = 0.0

    def __call__(self) -> None:
        number = next(self._numbers)
        if number == 1:
            self._began = time.perf_counter()
        elif number == self._count:
            self._ended = time.perf_counter()
            self._at_the_end()

    @property
    def rate(self) -> float:
        """Messages per second, once all came."""
        if not self._ended:
            raise RuntimeError(f"of {self._count} messages, {next(self._numbers) - 1} came")
        return (self._count - 1) / (self._ended - self._began)


# Those that take what anybody sent


def fill(port: int, count: int) -> None:
    app = Flask("benchmark")
    app.config["FLASK_PIKA_PARAMS"] = url(port)
    fpika = Pika(app)
    with app.app_context(), fpika.channel() as channel:
        channel.queue_declare(QUEUE, durable=True)
        messages = (
            Message(json.dumps(message(number)).encode(), routing_key=QUEUE, content_type="application/json")
            for number in range(count)
        )
        fpika.publish_many(messages, timeout=PATIENCE)
    fpika.close()


def bare_socket(port: int, count: int) -> float:
    bare = BareSocket(port)
    try:
        return bare.consume(QUEUE, count, PREFETCH)
    finally:
        bare.close()


def raw_pika(port: int, count: int) -> float:
    with pika.BlockingConnection(parameters(port)) as connection:
        channel = connection.channel()
        tally = Tally(count, channel.stop_consuming)

        def handle(channel: Any, method: Any, _properties: object, body: bytes) -> None:
            json.loads(body)
            tally()
            channel.basic_ack(method.delivery_tag)

        channel.basic_qos(prefetch_count=PREFETCH)
        channel.basic_consume(QUEUE, handle)
        channel.start_consuming()
    return tally.rate


def kombu(port: int, count: int) -> float:
    # Not by an import statement, here and below: type checkers run where these are not installed.
    kombu = importlib.import_module("kombu")
    mixins: Any = importlib.import_module("kombu.mixins")

    class Worker(mixins.ConsumerMixin):  # type: ignore[misc]
        def __init__(self, connection: Any) -> None:
            self.connection = connection
            self.tally = Tally(count, self.end)

        def get_consumers(self, consumer: Any, _channel: object) -> list[Any]:
            queue = kombu.Queue(QUEUE, no_declare=True)
            return [consumer([queue], prefetch_count=PREFETCH, accept=["json"], callbacks=[self.handle])]

        def handle(self, _body: object, message: Any) -> None:
            self.tally()  # the body came parsed
            message.ack()

        def end(self) -> None:
            self.should_stop = True

    with kombu.Connection(url(port)) as connection:
        worker = Worker(connection)
        worker.run()
    return worker.tally.rate


def flask_pika(port: int, count: int) -> float:
    app = Flask("benchmark")
    app.config["FLASK_PIKA_PARAMS"] = url(port)
    fpika = Pika(app)
    done = threading.Event()
    tally = Tally(count, done.set)

    @fpika.consumer(QUEUE, prefetch=PREFETCH)
    def handle(delivery: Delivery) -> None:
        delivery.json  # noqa: B018 - it parses
        tally()

    with app.app_context(), fpika.worker(threads=THREADS):
        done.wait(PATIENCE)
    fpika.close()
    return tally.rate


# Those that take what they sent themselves


def dramatiq_actor(port: int, tally: Callable[[], None]) -> tuple[Any, Any]:
    os.environ["dramatiq_queue_prefetch"] = str(PREFETCH)  # noqa: SIM112 - read when it is imported
    dramatiq = importlib.import_module("dramatiq")
    rabbitmq = importlib.import_module("dramatiq.brokers.rabbitmq")
    broker = rabbitmq.RabbitmqBroker(parameters=[{"host": "127.0.0.1", "port": port}])

    def handle(_message: object) -> None:
        tally()  # the message came parsed

    return broker, dramatiq.actor(handle, actor_name="handle", queue_name="dramatiq", broker=broker)


def fill_dramatiq(port: int, count: int) -> None:
    broker, actor = dramatiq_actor(port, lambda: None)
    for number in range(count):
        actor.send(message(number))
    broker.get_queue_message_counts("dramatiq")  # an answer on the same channel: it has read them all
    broker.close()


def dramatiq(port: int, count: int) -> float:
    done = threading.Event()
    tally = Tally(count, done.set)
    broker, _actor = dramatiq_actor(port, tally)
    # What `dramatiq --processes 1` has in its process.
    worker = importlib.import_module("dramatiq").Worker(broker, worker_threads=THREADS)
    worker.start()
    done.wait(PATIENCE)
    worker.stop()
    broker.close()
    return tally.rate


def celery_task(port: int, tally: Callable[[], None]) -> tuple[Any, Any]:
    app = importlib.import_module("celery").Celery("bench", broker=url(port))
    app.conf.task_default_queue = "celery"
    app.conf.worker_prefetch_multiplier = math.ceil(PREFETCH / THREADS)
    app.conf.worker_redirect_stdouts = False  # the rate goes there, and not to its log

    def handle(_message: object) -> None:
        tally()  # the message came parsed

    return app, app.task(handle, name="handle", acks_late=True, ignore_result=True)


def fill_celery(port: int, count: int) -> None:
    app, task = celery_task(port, lambda: None)
    with app.connection_for_write() as connection, app.amqp.Producer(connection) as producer:
        for number in range(count):
            task.apply_async((message(number),), producer=producer)
        producer.channel.queue_declare("celery", passive=True)  # the same


def celery(port: int, count: int) -> float:
    # That is how it is told to end in order: when its tasks have ended, and are acknowledged.
    tally = Tally(count, lambda: os.kill(os.getpid(), signal.SIGTERM))
    app, _task = celery_task(port, tally)
    app.worker_main(["--quiet", "worker", "--pool=threads", f"--concurrency={THREADS}"])
    return tally.rate


@dataclass(frozen=True)
class Peer:
    """A candidate: what fills its queue, and what drains it; each called in a process of its own."""

    name: str
    drain: Callable[[int, int], float]
    #: Messages that it drains in some seconds.
    count: int
    #: What Flask-Pika's rate is expected to be of its rate, at least.
    expected: float = math.nan
    fill: Callable[[int, int], None] = fill
    queue: str = QUEUE
    package: str = "pika"


PEERS = {
    peer.name: peer
    for peer in (
        Peer("bare socket", bare_socket, 150_000, 0.35),
        Peer("pika", raw_pika, 40_000, 1.3),
        Peer("kombu", kombu, 40_000, 1.6, package="kombu"),
        Peer(OURS, flask_pika, 60_000),
        Peer("dramatiq", dramatiq, 15_000, 4, fill_dramatiq, queue="dramatiq", package="dramatiq"),
        Peer("celery", celery, 10_000, 5, fill_celery, queue="celery", package="celery"),
    )
}


def in_a_process(work: str, peer: Peer, port: int, count: int) -> str:
    """What a process says that fills this peer's queue, or drains it. It is ended when it takes too long."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.consuming"),
            *(f"--{work}={peer.name}", f"--port={port}", f"--count={count}"),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE + 20,
    )
    if done.returncode:
        raise SystemExit(f"{peer.name} could not {work} its queue:\n{done.stdout}{done.stderr}")
    return done.stdout


def expect(there: int, peer: Peer, port: int) -> None:
    """See that so many messages are in the queue."""
    with pika.BlockingConnection(parameters(port)) as connection:
        found = connection.channel().queue_declare(peer.queue, passive=True).method.message_count
    if found != there:
        raise SystemExit(f"{peer.name} has {found} messages in its queue, and not {there}")


def measure(peer: Peer, port: int, count: int) -> float:
    """Messages per second."""
    in_a_process("fill", peer, port, count)
    expect(count, peer, port)
    said = in_a_process("drain", peer, port, count)
    expect(0, peer, port)  # its connections are closed: what it did not acknowledge would be back
    return float(said.split()[-1])


def report(rates: dict[str, list[float]]) -> None:
    print(f"\n  {'':12} {'median':>9} {'lowest':>9} {'highest':>9} {'ours is':>9}   expected at least")
    for name, found in rates.items():
        # Side by side in each round: what the machine did meanwhile, it did to both.
        ratio = statistics.median(ours / theirs for ours, theirs in zip(rates[OURS], found, strict=True))
        expected = "" if name == OURS else f"   {PEERS[name].expected:.2f} x"
        rate, lowest, highest = statistics.median(found), min(found), max(found)
        print(f"  {name:12} {rate:7,.0f}/s {lowest:7,.0f}/s {highest:7,.0f}/s {ratio:7.2f} x{expected}")


def compare(peers: list[Peer], quick: bool, rounds: int) -> None:
    missing = [peer for peer in peers if importlib.util.find_spec(peer.package) is None]
    for peer in missing:
        print(f"{peer.name} is not installed, and left out")
    peers = [peer for peer in peers if peer not in missing]
    with RabbitMQNode() as node:
        versions = [f"{name} {importlib.metadata.version(name)}" for name in {p.package: 0 for p in peers}]
        print(
            f"Python {platform.python_version()}, {', '.join(versions)}, RabbitMQ"
            f" {node.ctl('version').strip()}; medians of {rounds} rounds"
        )
        rates: dict[str, list[float]] = {peer.name: [] for peer in peers}
        if not quick:
            for peer in peers:  # for warming up, and to see that all of them run
                measure(peer, node.port, QUICK)
        for _ in range(rounds):
            for peer in peers:
                rates[peer.name].append(measure(peer, node.port, QUICK if quick else peer.count))
    report(rates)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Consuming, beside the limit, pika, kombu, dramatiq and celery."
    )
    parser.add_argument("peers", nargs="*", metavar="PEER", help=f"some of: {', '.join(PEERS)}")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="only see that it runs")
    parser.add_argument("--fill", choices=PEERS, help=argparse.SUPPRESS)
    parser.add_argument("--drain", choices=PEERS, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.fill:
        PEERS[options.fill].fill(options.port, options.count)
        return
    if options.drain:
        print(PEERS[options.drain].drain(options.port, options.count))
        return
    if unknown := set(options.peers) - set(PEERS):
        parser.error(f"no such peer: {', '.join(sorted(unknown))}")
    # Told to end, it ends what it has started.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    chosen = [peer for name, peer in PEERS.items() if name in (options.peers or PEERS) or name == OURS]
    compare(chosen, options.quick, 1 if options.quick else options.rounds)


if __name__ == "__main__":
    main()
