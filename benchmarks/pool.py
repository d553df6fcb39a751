"""Checkout and return beside SQLAlchemy's QueuePool; publishing through the pool beside a raw held channel.

``make bench``, or ``python -m benchmarks.pool [--quick]``. It starts a RabbitMQ node of its own on loopback.
The candidates take turns, and what counts is the ratio: absolute figures of a shared machine mean little.
"""

from __future__ import annotations

import argparse
import gc
import platform
import statistics
import time
from collections.abc import Callable

import pika
import sqlalchemy
from flask import Flask
from sqlalchemy.pool import QueuePool

from flask_pika import Pika
from tools.rabbitmq_node import RabbitMQNode

BODY = b"x" * 200


def measure(candidates: dict[str, Callable[[], object]], times: int, rounds: int) -> dict[str, list[float]]:
    """Microseconds per call of each, in rounds that alternate between them."""
    results: dict[str, list[float]] = {name: [] for name in candidates}
    for call in candidates.values():
        for _ in range(min(times, 200)):
            call()
    for _ in range(rounds):
        for name, call in candidates.items():
            gc.collect()
            began = time.perf_counter()
            for _ in range(times):
                call()
            results[name].append((time.perf_counter() - began) / times * 1e6)
    return results


def report(title: str, results: dict[str, list[float]], base: str, note: str) -> None:
    print(f"\n{title}\n")
    print(f"  {'':44} {'median':>9} {'lowest':>9} {'highest':>9}   {note}")
    for name, micros in results.items():
        # Side by side in each round: what the machine did meanwhile, it did to both.
        ratio = statistics.median(b / m for b, m in zip(results[base], micros, strict=True))
        print(
            f"  {name:44} {statistics.median(micros):6.2f} µs {min(micros):6.2f} µs {max(micros):6.2f} µs"
            f"   {ratio:.2f}"
        )


def make_pool(node: RabbitMQNode, **pool: object) -> Pika:
    app = Flask("benchmark")
    app.config["FLASK_PIKA_PARAMS"] = node.params
    app.config["FLASK_PIKA_POOL_PARAMS"] = {"pool_size": 4, **pool}
    fpika = Pika(app)
    _apps.append(app)
    return fpika


_apps: list[Flask] = []  # the extension keeps them weakly


class _Connection:
    """What QueuePool holds, at its cheapest: nothing it does costs anything."""

    def rollback(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def checkouts(node: RabbitMQNode, times: int, rounds: int) -> None:
    probing, bare = make_pool(node), make_pool(node, pool_pre_ping=False)
    queue_pool = QueuePool(_Connection, pool_size=4)  # type: ignore[arg-type]
    results = measure(
        {
            "SQLAlchemy QueuePool, without a probe": lambda: queue_pool.connect().close(),
            "Flask-Pika, without the probe": lambda: bare.return_channel(bare.channel()),
            "Flask-Pika, with the probe": lambda: probing.return_channel(probing.channel()),
        },
        times,
        rounds,
    )
    base = "SQLAlchemy QueuePool, without a probe"
    report("Checkout and return, one thread", results, base, "times as fast as QueuePool")
    with _apps[0].app_context():
        results = measure(
            {"in an app context": lambda: probing.return_channel(probing.channel())}, times, rounds
        )
    report("The same with the probe, in an app context", results, "in an app context", "")


def publishing(node: RabbitMQNode, times: int, rounds: int) -> None:
    for confirm in (False, True):
        fpika = make_pool(node, confirm_delivery=confirm)
        held = pika.BlockingConnection(pika.ConnectionParameters("127.0.0.1", node.port)).channel()
        held.queue_declare("benchmark", arguments={"x-max-length": 1000})
        if confirm:
            held.confirm_delivery()

        def raw(held: pika.adapters.blocking_connection.BlockingChannel = held) -> None:
            held.basic_publish("", "benchmark", BODY)

        def pooled(fpika: Pika = fpika) -> None:
            with fpika.channel() as ch:
                ch.basic_publish("", "benchmark", BODY)

        base = "raw pika, one held BlockingChannel"
        results = measure({base: raw, "Flask-Pika, a checkout per message": pooled}, times, rounds)
        title = f"Publishing 200 bytes, one thread, {'confirmed' if confirm else 'unconfirmed'}"
        report(title, results, base, "of the raw held channel's rate")
        held.connection.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="only see that it runs")
    quick = parser.parse_args().quick
    rounds = 2 if quick else 15
    with RabbitMQNode() as node:
        print(
            f"Python {platform.python_version()}, pika {pika.__version__}, RabbitMQ"
            f" {node.ctl('version').strip()}, SQLAlchemy {sqlalchemy.__version__}; medians of {rounds} rounds"
        )
        checkouts(node, 100 if quick else 20_000, rounds)
        publishing(node, 100 if quick else 4_000, rounds)


if __name__ == "__main__":
    main()
