"""The embedded broker: how fast it starts, serves and stops, beside a RabbitMQ node.

``python -m benchmarks.broker [--quick]``. The client is pika, in a process of its own, and the brokers take
turns. *Blocking* waits for each confirm; *pipelined* is a SelectConnection with up to 500 messages in flight.
Messages have 200 bytes, go to one queue, and are mandatory.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import subprocess
import sys
import time
from typing import Any

import pika

from flask_pika.broker import Broker
from tools.rabbitmq_node import RabbitMQNode

BODY = b"x" * 200
QUEUE = "bench"
IN_FLIGHT = 500


def blocking(port: int, count: int) -> float:
    with pika.BlockingConnection(pika.ConnectionParameters("127.0.0.1", port)) as connection:
        channel = connection.channel()
        channel.queue_declare(QUEUE, exclusive=True)
        channel.confirm_delivery()
        began = time.perf_counter()
        for _ in range(count):
            channel.basic_publish("", QUEUE, BODY, mandatory=True)
        return count / (time.perf_counter() - began)


class Pipelined:
    """A SelectConnection that publishes as fast as it is confirmed."""

    def __init__(self, port: int, count: int) -> None:
        self.count = count
        self.sent = self.confirmed = 0
        self.took = 0.0
        self.connection: Any = pika.SelectConnection(
            pika.ConnectionParameters("127.0.0.1", port),
            on_open_callback=self.connected,
            on_close_callback=lambda _connection, _error: self.connection.ioloop.stop(),
        )

    def connected(self, connection: Any) -> None:
        connection.channel(on_open_callback=self.opened)

    def opened(self, channel: Any) -> None:
        self.channel = channel
        channel.queue_declare(QUEUE, exclusive=True)
        channel.confirm_delivery(self.on_confirm, callback=lambda _frame: self.begin())

    def begin(self) -> None:
        self.began = time.perf_counter()
        self.publish()

    def publish(self) -> None:
        while self.sent < self.count and self.sent - self.confirmed < IN_FLIGHT:
            self.channel.basic_publish("", QUEUE, BODY, mandatory=True)
            self.sent += 1

    def on_confirm(self, frame: Any) -> None:
        tag = frame.method.delivery_tag
        # Of single ones that come out of order the highest counts, which is right at the end.
        self.confirmed = max(self.confirmed, tag)
        if self.confirmed < self.count:
            self.publish()
        elif not self.took:
            self.took = time.perf_counter() - self.began
            self.connection.close()

    def run(self) -> float:
        self.connection.ioloop.start()
        return self.count / self.took


def in_a_process(how: str, port: int, count: int) -> float:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.broker", f"--client={how}", f"--port={port}", f"--count={count}"],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    return float(done.stdout)


def milliseconds(work: Any) -> float:
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1e3


_FIRST = """
import time
import flask_pika

began = time.perf_counter()
from flask_pika.broker import Broker

Broker().start()
print((time.perf_counter() - began) * 1e3)
"""


def life(rounds: int) -> None:
    first = subprocess.run(
        [sys.executable, "-c", _FIRST], capture_output=True, text=True, check=True, timeout=60
    )
    starts, stops = [], []
    for _ in range(rounds):
        broker = Broker()
        starts.append(milliseconds(broker.start))
        with pika.BlockingConnection(pika.ConnectionParameters("127.0.0.1", broker.port)) as connection:
            connection.channel().queue_declare(QUEUE)
        stops.append(milliseconds(broker.stop))
    print("\nIts life\n")
    print(f"  the first start in a process, with its import   {float(first.stdout):8.1f} ms")
    print(f"  a start                                         {statistics.median(starts):8.1f} ms")
    print(f"  a stop                                          {statistics.median(stops):8.1f} ms")
    print("\n  Expected: starts in under 100 ms, stops at once")


def serving(rounds: int, count: int) -> None:
    with RabbitMQNode() as node, Broker() as broker:
        ports = {"embedded": broker.port, "RabbitMQ": node.port}
        for how, messages in (("blocking", count), ("pipelined", count * 4)):
            rates: dict[str, list[float]] = {name: [] for name in ports}
            for number in range(rounds + 1):
                for name, port in ports.items():
                    rate = in_a_process(how, port, messages)
                    if number:  # the first round is for warming up
                        rates[name].append(rate)
            print(f"\nConfirmed messages of one pika client, {how}\n")
            ratio = statistics.median(
                ours / theirs for ours, theirs in zip(rates["embedded"], rates["RabbitMQ"], strict=True)
            )
            for name, found in rates.items():
                middle, lowest, highest = statistics.median(found), min(found), max(found)
                print(f"  {name:10} {middle:8,.0f}/s {lowest:8,.0f}/s {highest:8,.0f}/s")
            print(f"  embedded is {ratio:.2f} of RabbitMQ")
    print("\n  Expected: the embedded broker serves at least 5,000/s to one pika client")


def main() -> None:
    parser = argparse.ArgumentParser(description="The embedded broker's start, stop, and throughput.")
    parser.add_argument("--quick", action="store_true", help="only see that it runs")
    parser.add_argument("--client", choices=("blocking", "pipelined"), help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.client == "blocking":
        print(blocking(options.port, options.count))
    elif options.client == "pipelined":
        print(Pipelined(options.port, options.count).run())
    else:
        print(f"Python {platform.python_version()}, pika {pika.__version__}; medians, lowest and highest")
        life(2 if options.quick else 20)
        serving(1 if options.quick else 5, 100 if options.quick else 5_000)


if __name__ == "__main__":
    main()
