# ruff: noqa: F811 - fixtures have the names of what asks for them
"""A worker at its limits: streams, storms, forks, signals, goodbyes that are not answered, refusals."""

from __future__ import annotations

import threading

import pytest

from flask_pika import Delivery, Pika, Reject, Requeue, link, worker
from flask_pika.broker import Broker
from flask_pika.runner import ExitCode, Runner
from tests.conftest import make_app, wait_for
from tests.test_publisher_processes import run
from tests.test_worker import (  # noqa: F401 - fixtures
    Desk,
    Gate,
    Handled,
    _patient_goodbye,
    broker,
    desk,
    faulty,
    lines_of,
    numbers,
    stats_of,
    stop_in_thread,
    working,
)
from tools.proxy import Proxy

FIRST = {"x-stream-offset": "first"}


# Streams: nothing is rejected there, and nothing goes back


@pytest.mark.usefixtures("both_ways")
def test_what_a_handler_of_a_stream_raises_is_no_ones_trouble(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    stream, other, gate, handled = desk.queue(queue_type="stream"), desk.queue(), Gate(), Handled()
    errors = [Reject("poison"), ZeroDivisionError(), Requeue("not yet")]
    desk.fill(stream, numbers(12))

    @desk.fpika.consumer(stream, prefetch=2, arguments=FIRST)
    def handle(delivery: Delivery) -> None:
        handled.append(delivery.text)
        if int(delivery.text) % 4:
            raise errors[int(delivery.text) % 4 - 1]

    desk.fpika.consumer(other)(gate.wait)
    with working(desk.fpika, gate, ready=False) as working_one:
        desk.fill(other, ["held"])
        gate.wait_for(1)
        # With a prefetch of 2 they come only if those before them were done with.
        handled.wait_for(12)
        desk.fill(stream, ["12"])
        handled.wait_for(13)
        wait_for(lambda: working_one.stats()[0].in_flight == 0, "their ends")
        gate.open()
        assert working_one.stop()
    assert sorted(handled, key=int) == numbers(13), "each once"
    assert list(gate.waiting) == ["held"], "once, since its connection was never lost"
    assert not lines_of(caplog, "lost")
    assert desk.take(other) == []


@pytest.mark.usefixtures("both_ways")
def test_a_drain_leaves_a_stream_where_it_is_and_the_acks_of_other_queues_arrive(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    stream, other, gate = desk.queue(queue_type="stream"), desk.queue(), Gate()
    desk.fpika.consumer(stream, arguments=FIRST)(gate.wait)
    desk.fpika.consumer(other)(gate.wait)
    with working(desk.fpika, gate, threads=2) as working_one:
        desk.fill(other, ["important"])
        gate.wait_for(1)
        desk.fill(stream, numbers(5))
        wait_for(lambda: working_one.stats()[0].in_flight == 5, "four wait for a thread")
        thread, results = stop_in_thread(working_one)
        wait_for(lambda: working_one.stats()[1].state == "draining", "the drain")
        wait_for(lambda: working_one.stats()[0].in_flight <= 1, "what was not begun is let go")
        gate.open()
        thread.join(60)
    assert results == [True]
    assert not lines_of(caplog, "lost")
    assert desk.take(other) == []


# Connections that end soon


class Counting:
    """A back-off that takes no time, and keeps what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def delay(self, failures: int) -> float:
        self.asked.append(failures)
        return 0.0


@pytest.mark.parametrize(("lived", "asked"), [(3600.0, [1, 2, 3, 4, 5]), (0.0, [1] * 5)])
def test_back_off_grows_while_connections_end_soon_after_they_were_of_use(
    faulty: Desk,
    broker: Broker,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    lived: float,
    asked: list[int],
) -> None:
    monkeypatch.setattr(link, "_LIVED", lived)
    faulty.fpika.consumer(faulty.queue())(lambda _: None)
    made = faulty.fpika.worker()
    backoff = Counting()
    monkeypatch.setattr(made._link, "_backoff", backoff)
    with made:
        for number in range(6):
            # Not "it is ready": it may not have noticed the loss.
            wait_for(lambda: len(lines_of(caplog, "is back")) == number, "another connection")  # noqa: B023
            wait_for(lambda: made.is_ready, "it consumes")
            if number < 5:
                broker.close_connections()
        assert made.stop()
    assert backoff.asked == asked
    for part in ("the connection to RabbitMQ was lost", "RabbitMQ is back"):
        assert len(lines_of(caplog, part)) == 5, "one line per incident"


# The goodbye


# Not 1: it must not be noticed before the goodbye, whoever stands still until then.
@pytest.mark.parametrize("heartbeat", [0, 4], ids=["unnoticed", "noticed"])
def test_a_goodbye_that_is_not_answered_is_told(
    faulty: Desk,
    broker: Broker,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    heartbeat: int,
) -> None:
    monkeypatch.setattr(worker, "_GOODBYE", 0.2)
    queue, gate = faulty.queue(), Gate()
    faulty.fill(queue, ["0"])
    with Proxy(broker.port) as proxy:
        _app, fpika = make_app({"host": "127.0.0.1", "port": proxy.port, "heartbeat": heartbeat})
        fpika.consumer(queue)(gate.wait)
        with working(fpika, gate) as made:
            gate.wait_for(1)
            proxy.silence()
            gate.open()
            wait_for(lambda: stats_of(made).in_flight == 0, "the ack, which gets nowhere")
            # What takes time is the goodbye alone.
            made.drain()
            wait_for(made._drained.is_set, "the drain")
            # When it is noticed, that is earlier than here.
            assert made.stop(60 if heartbeat else 0.2) is False
        assert len(lines_of(caplog, "RabbitMQ does not answer")) == 1
    wait_for(
        lambda: [message.text for message in broker.queues[queue].messages] == ["0"],
        "it is back, since its ack was never heard",
    )


# Forks

MADE_BEFORE = """
import os
from flask import Flask
from flask_pika import Pika
from flask_pika.broker import Broker
from tests.conftest import wait_for

with Broker() as broker:
    app = Flask("shop")
    app.config["FLASK_PIKA_PARAMS"] = broker.url
    fpika = Pika(app)
    fpika.consumer("orders")(lambda delivery: None)
    with fpika.channel() as channel:
        channel.queue_declare("orders")
    worker = fpika.worker()
    pid = os.fork()
    if not pid:
        try:
            worker.start()
        except RuntimeError as exc:
            print(exc, flush=True)
        os._exit(0)
    os.waitpid(pid, 0)
    with worker:
        wait_for(lambda: worker.is_ready, "the parent's own, which is as it was")
    fpika.close()
"""

SETTLED_IN_A_CHILD = """
import os
from flask import Flask
from flask_pika import Pika, SettlementError
from flask_pika.broker import Broker
from tests.conftest import wait_for

with Broker() as broker:
    app = Flask("shop")
    app.config["FLASK_PIKA_PARAMS"] = broker.url
    fpika = Pika(app)
    ends = []

    @fpika.consumer("orders", ack="manual")
    def handle(delivery):
        pid = os.fork()
        if not pid:
            try:
                delivery.ack()
            except SettlementError as exc:
                print(exc, flush=True)
            os._exit(0)
        os.waitpid(pid, 0)
        delivery.ack()
        ends.append(pid)

    with fpika.channel() as channel:
        channel.queue_declare("orders")
    with fpika.worker() as worker:
        fpika.publish("0", routing_key="orders")
        wait_for(lambda: ends and not broker.queues["orders"].unacked, "the parent's ack")
        assert worker.is_ready
        assert not broker.queues["orders"].messages
    fpika.close()
"""


@pytest.mark.parametrize(
    ("script", "said"),
    [(MADE_BEFORE, "made in another process; make it after the fork"), (SETTLED_IN_A_CHILD, "its parent")],
    ids=["worker", "delivery"],
)
def test_what_was_made_before_a_fork_is_of_no_use_in_the_child_which_says_so(script: str, said: str) -> None:
    # Python 3.12 warns of any fork beside threads.
    done = run(f"import warnings; warnings.simplefilter('ignore', DeprecationWarning)\n{script}", {})
    assert (done.returncode, done.stderr) == (0, "")
    assert said in done.stdout


# Signals

CLOSED_BY_A_SIGNAL = """
import os, signal, threading
from flask import Flask
from flask_pika import Pika
from flask_pika.broker import Broker
from tests.conftest import wait_for

with Broker() as broker:
    app = Flask("shop")
    app.config["FLASK_PIKA_PARAMS"] = broker.url
    fpika = Pika(app)
    gate = threading.Event()

    @fpika.consumer("orders")
    def handle(delivery):
        gate.wait(60)

    with fpika.channel() as channel:
        channel.queue_declare("orders")
    fpika.publish("0", routing_key="orders")
    worker = fpika.worker(drain_timeout=DRAIN).start()
    wait_for(lambda: worker.running, "a handler")

    def close(*_):
        print("closing", flush=True)
        if LET_GO:
            gate.set()
        fpika.close()
        print("closed", flush=True)

    def send():
        wait_for(lambda: worker.stats()[0].state == "draining", "the drain")
        os.kill(os.getpid(), signal.SIGUSR1)

    signal.signal(signal.SIGUSR1, close)
    threading.Thread(target=send).start()
    print(worker.stop(3600), flush=True)
    gate.set()
"""


@pytest.mark.parametrize(
    ("drain", "let_go", "said"),
    [(60, True, "True"), (0.2, False, "False")],
    ids=["done in time", "not done in time"],
)
def test_a_signal_handler_may_close_what_is_being_stopped(drain: float, let_go: bool, said: str) -> None:
    """The stop that it interrupts would wait for an hour."""
    script = CLOSED_BY_A_SIGNAL.replace("DRAIN", str(drain)).replace("LET_GO", str(let_go))
    done = run(script, {})
    assert done.stdout.split() == ["closing", "closed", said], done.stderr
    assert done.returncode == 0


# Several workers


def test_numbers_are_those_of_the_worker_that_runs_not_of_those_before_or_after(desk: Desk) -> None:
    desk.fpika.consumer(desk.queue())(lambda _: None)
    made = [desk.fpika.worker(threads=1) for _ in range(6)]
    assert desk.fpika.stats().consumers[0].state == "stopped"
    for one in made:
        with one:
            wait_for(lambda: one.is_ready, "ready")  # noqa: B023
            assert desk.fpika.stats().consumers[0].state == "consuming"


def test_when_one_of_two_brokers_refuses_the_handlers_of_the_other_finish(
    faulty: Desk, broker: Broker
) -> None:
    queue, gate, handled = faulty.queue(), Gate(), Handled()
    faulty.fill(queue, ["0"])
    codes: list[ExitCode] = []

    @faulty.fpika.consumer(queue)
    def handle(delivery: Delivery) -> None:
        gate.wait(delivery)
        handled.append(delivery.text)

    with Broker(users={"guest": "another"}) as refusing:
        refusing.refuse()
        faulty.app.config["OTHER_PARAMS"] = f"amqp://guest:guest@127.0.0.1:{refusing.port}/%2F"
        other = Pika(faulty.app, config_prefix="OTHER")
        other.consumer("elsewhere")(lambda _: None)
        workers = [faulty.fpika.worker(), other.worker()]
        runner = Runner(workers, 60.0)
        thread = threading.Thread(target=lambda: codes.append(runner.run()))
        thread.start()
        try:
            gate.wait_for(1)
            refusing.accept()
            wait_for(lambda: stats_of(workers[0]).state == "draining", "the drain")
            assert not codes
        finally:
            gate.open()
            runner.end("the test's end")
            thread.join(60)
    assert codes == [ExitCode.REFUSED]
    assert list(handled) == ["0"]
    assert not broker.queues[queue].messages
