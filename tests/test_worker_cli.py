"""``flask pika worker`` as an operator meets it: banner, health, processes, reload, exit codes."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel

from flask_pika import health
from flask_pika.broker import Broker
from tests.conftest import wait_for
from tests.other_processes import children, is_there, stop
from tools.rabbitmq_node import free_port

APP = """
import os, pathlib
from flask import Flask
from flask_pika import Pika

app = Flask("shop")
app.config.from_prefixed_env()
fpika = Pika(app)


@fpika.consumer("orders", prefetch=4, on_error="requeue-once")
def handle(delivery):
    with open(pathlib.Path(__file__).with_name("handled"), "a") as out:
        print(os.getpid(), delivery.text, file=out)


@fpika.consumer("audit", ack="manual")
def audit(delivery):
    delivery.ack()
"""

#: Goes on from APP: the other broker has a queue of the same name.
TWO_BROKERS = """
other = Pika(app, config_prefix="OTHER")
other.consumer("orders")(audit)
"""

#: Goes on from APP: a child that stands still for a while is as live as one that does not.
PATIENT = """
from flask_pika import processes

processes._ANSWER = 20.0
"""


class Command:
    """A ``flask pika worker`` that runs, and what it says."""

    def __init__(self, place: Path, url: str, *options: str, env: dict[str, str] | None = None) -> None:
        self.place = place
        self._lines: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "flask", "--app", "app", "pika", "worker", *options],
            cwd=place,
            env={**os.environ, "FLASK_PIKA_PARAMS": url, "PYTHONUNBUFFERED": "1", **(env or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self._lines.extend(iter(self.process.stdout.readline, ""))

    @property
    def said(self) -> str:
        return "".join(self._lines)

    def says(self, text: str, times: int = 1) -> None:
        wait_for(lambda: self.said.count(text) >= times, lambda: f"{text!r} in\n{self.said}")

    def handled(self) -> list[list[str]]:
        with contextlib.suppress(FileNotFoundError):
            return [line.split() for line in (self.place / "handled").read_text().splitlines()]
        return []

    def children(self) -> set[int]:
        return children(self.process.pid)

    def ends(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.exit_code()

    def exit_code(self) -> int:
        """When it has ended, and all that it said is here."""
        code = self.process.wait(60)
        self._reader.join(60)
        return code

    def close(self) -> None:
        ended = [self.process.pid, *self.children()]
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pid in ended[1:]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._reader.join(30)
        if self.process.stdout is not None:
            self.process.stdout.close()


@pytest.fixture
def broker() -> Iterator[Broker]:
    with Broker() as started:
        yield started


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(APP)
    return tmp_path


@pytest.fixture
def patient(place: Path) -> None:
    """The parent waits for what its children say of their health."""
    (place / "app.py").write_text(APP + PATIENT)


@pytest.fixture
def command(place: Path, broker: Broker) -> Iterator[Any]:
    """Starts a worker of the app above."""
    with contextlib.ExitStack() as stack:

        def start(*options: str, env: dict[str, str] | None = None) -> Command:
            started = Command(place, broker.url, *options, env=env)
            stack.callback(started.close)
            return started

        yield start


@contextlib.contextmanager
def channel(broker: Broker) -> Iterator[BlockingChannel]:
    connection = pika.BlockingConnection(pika.URLParameters(broker.url))
    try:
        yield connection.channel()
    finally:
        connection.close()


def declare(broker: Broker, *names: str) -> None:
    with channel(broker) as ch:
        for name in names:
            ch.queue_declare(name, durable=True)


def publish(broker: Broker, *texts: str) -> None:
    with channel(broker) as ch:
        ch.confirm_delivery()
        for text in texts:
            ch.basic_publish("", "orders", text.encode(), mandatory=True)


def get(url: str) -> tuple[int, Any]:
    while True:
        began = time.monotonic()
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)
        except (ConnectionError, urllib.error.URLError) as error:
            # Who stood still before it had asked is hung up on in the end, and may ask again.
            hung_up = isinstance(getattr(error, "reason", error), ConnectionError)
            if not hung_up or time.monotonic() - began < health._PATIENCE:
                raise


def test_it_says_what_it_consumes_handles_it_and_drains(command: Any, broker: Broker) -> None:
    declare(broker, "orders", "audit")
    worker = command("--threads=3", "--drain-timeout=7.5")
    worker.says("a second Ctrl-C leaves at once")
    for part in (
        "app 'shop'",
        f"127.0.0.1:{broker.port}",
        "orders  app.handle, prefetch 4, on error requeue-once",
        "audit   app.audit, prefetch 16, ack manual",
        "threads  3; at the end they have 7.5 s",
    ):
        assert part in worker.said
    assert "guest:guest" not in worker.said
    publish(broker, "one", "two", "three")
    wait_for(lambda: len(worker.handled()) == 3, "three handled")
    assert worker.ends() == 0
    assert "draining" in worker.said
    assert "Traceback" not in worker.said
    broker.queues["orders"].wait_for(0)
    assert not broker.queues["orders"].unacked
    wait_for(lambda: not broker.connections, "the end of its connection")


def test_options_can_be_in_the_environment_and_queues_be_named(command: Any, broker: Broker) -> None:
    declare(broker, "orders", "audit")
    worker = command("audit", env={"FLASK_PIKA_WORKER_THREADS": "2"})
    worker.says("threads  2;")
    wait_for(lambda: broker.queues["audit"].consumers, "a consumer of audit")
    assert "orders" not in worker.said
    assert not broker.queues["orders"].consumers
    assert worker.ends(signal.SIGINT) == 0


def test_it_is_ready_while_every_consumer_consumes_and_not_before(command: Any, broker: Broker) -> None:
    declare(broker, "orders")
    port = free_port()
    worker = command(f"--health-port={port}")
    worker.says("does not consume queue 'audit'")
    base = f"http://127.0.0.1:{port}"
    assert f"{base}/live" in worker.said
    assert get(f"{base}/live")[0] == 200
    status, told = get(f"{base}/ready")
    assert status == 503
    assert not told["ready"]

    def audits_error() -> str:
        errors = {one["queue"]: str(one["error"]) for one in get(f"{base}/ready")[1]["consumers"]}
        return errors["audit"]

    # It says so in its log first.
    wait_for(lambda: "404" in audits_error(), lambda: f"why: {get(f'{base}/ready')}")
    declare(broker, "audit")
    wait_for(lambda: get(f"{base}/ready")[0] == 200, "it is ready")
    assert {one["state"] for one in get(f"{base}/ready")[1]["consumers"]} == {"consuming"}
    broker.refuse()
    broker.drop_connections()
    wait_for(lambda: get(f"{base}/ready")[0] == 503, "it is not ready any more")
    wait_for(
        lambda: all("RabbitMQ" in one["error"] for one in get(f"{base}/ready")[1]["consumers"]),
        lambda: f"why: {get(f'{base}/ready')}",
    )
    assert get(f"{base}/live")[0] == 200
    broker.accept()
    wait_for(lambda: get(f"{base}/ready")[0] == 200, "it is ready again")
    assert get(f"{base}/else")[0] == 404
    assert worker.ends() == 0


@pytest.mark.usefixtures("patient")
def test_garbage_on_the_health_port_is_nobodys_incident(command: Any, broker: Broker) -> None:
    declare(broker, "orders", "audit")
    port = free_port()
    worker = command(f"--health-port={port}", "--processes=2")
    worker.says("Ctrl-C")
    wait_for(lambda: get(f"http://127.0.0.1:{port}/ready")[0] == 200, "it is ready")
    for garbage in (b"", b"\x00" * 1000, b"GET", b"AMQP\x00\x00\x09\x01"):
        with socket.create_connection(("127.0.0.1", port), 30) as peer:
            peer.sendall(garbage)
    with socket.create_connection(("127.0.0.1", port), 30) as silent:
        assert silent.recv(1) == b"", "who says nothing is hung up on"
    assert get(f"http://127.0.0.1:{port}/ready")[0] == 200
    assert worker.ends() == 0
    assert "Traceback" not in worker.said


@pytest.mark.usefixtures("patient")
def test_probes_that_overlap_are_all_told_the_truth(command: Any, broker: Broker) -> None:
    declare(broker, "orders", "audit")
    port = free_port()
    worker = command(f"--health-port={port}", "--processes=2")
    worker.says("Ctrl-C")
    base = f"http://127.0.0.1:{port}"
    wait_for(lambda: get(f"{base}/ready")[0] == 200, "it is ready")

    def probe(number: int) -> list[int]:
        path = ("live", "ready")[number % 2]
        return [get(f"{base}/{path}")[0] for _ in range(50)]

    with concurrent.futures.ThreadPoolExecutor(3) as clients:
        found = list(clients.map(probe, range(3)))
    assert found == [[200] * 50] * 3
    assert worker.ends() == 0
    assert "Traceback" not in worker.said


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("processes", [1, 2])
def test_a_client_that_never_comes_to_an_end_is_hung_up_on_and_others_are_answered(
    command: Any, broker: Broker, processes: int
) -> None:
    declare(broker, "orders", "audit")
    port = free_port()
    worker = command(f"--health-port={port}", f"--processes={processes}")
    worker.says("Ctrl-C")
    ready = f"http://127.0.0.1:{port}/ready"
    wait_for(lambda: get(ready)[0] == 200, "it is ready")
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), 30) as dripping:
        dripping.settimeout(0.5)

        def is_hung_up_on() -> bool:
            try:
                dripping.send(b"G")
                return dripping.recv(1) == b""
            except TimeoutError:
                return False
            except OSError:
                return True

        assert not is_hung_up_on() or time.monotonic() - began > health._PATIENCE
        with concurrent.futures.ThreadPoolExecutor(1) as clients:
            other = clients.submit(get, ready)
            wait_for(is_hung_up_on, "the end of the server's patience")
            assert other.result(60)[0] == 200
    assert worker.ends() == 0


@pytest.mark.usefixtures("patient")
def test_a_process_that_ends_is_replaced_and_its_message_comes_again(command: Any, broker: Broker) -> None:
    declare(broker, "orders", "audit")
    port = free_port()
    worker = command("--processes=2", f"--health-port={port}")
    ready = f"http://127.0.0.1:{port}/ready"
    wait_for(lambda: len(worker.children()) == 2, "two children")
    wait_for(lambda: get(ready)[0] == 200, "both are ready")
    assert len(get(ready)[1]["consumers"]) == 4
    first = worker.children()
    os.kill(min(first), signal.SIGKILL)
    worker.says(f"worker process {min(first)} ended: SIGKILL; another one starts in")
    wait_for(lambda: len(worker.children() - first) == 1, "another child")
    wait_for(lambda: get(ready)[0] == 200, "both are ready again")
    publish(broker, *(f"{n}" for n in range(20)))
    wait_for(lambda: len(worker.handled()) == 20, "all are handled")
    assert {int(pid) for pid, _ in worker.handled()} <= worker.children()
    left = worker.children()
    assert worker.ends() == 0
    assert not [pid for pid in left if is_there(pid)]
    wait_for(lambda: not broker.connections, "the end of their connections")


def test_a_process_that_is_stuck_is_told_to_be_not_live(command: Any, broker: Broker) -> None:
    declare(broker, "orders", "audit")
    port = free_port()
    worker = command("--processes=2", f"--health-port={port}")
    ready, live = (f"http://127.0.0.1:{port}/{what}" for what in ("ready", "live"))
    worker.says("Ctrl-C")
    wait_for(lambda: get(ready)[0] == 200, "both are ready")
    stuck = min(worker.children())
    stop(stuck)
    assert get(live)[0] == 503
    assert get(ready)[0] == 503
    os.kill(stuck, signal.SIGCONT)
    wait_for(lambda: get(live)[0] == 200 and get(ready)[0] == 200, "it is live again")
    assert worker.ends() == 0


def test_when_the_parent_is_killed_the_children_drain(command: Any, broker: Broker) -> None:
    declare(broker, "orders", "audit")
    worker = command("--processes=2")
    wait_for(lambda: len(broker.connections) == 2, "both are connected")
    left = worker.children()
    worker.process.kill()
    wait_for(lambda: not [pid for pid in left if is_there(pid)], "nobody is left")
    wait_for(lambda: not broker.connections, "they have said goodbye")


@pytest.mark.parametrize("number", [signal.SIGRTMIN + 6, signal.SIGRTMIN], ids=["nameless", "named"])
def test_a_process_that_a_real_time_signal_ends_is_replaced(
    command: Any, broker: Broker, number: int
) -> None:
    declare(broker, "orders", "audit")
    worker = command("--processes=2")
    wait_for(lambda: len(broker.connections) == 2, "both are connected")
    first = worker.children()
    os.kill(min(first), number)
    worker.says(f"worker process {min(first)} ended: ")
    wait_for(lambda: len(worker.children() - first) == 1, "another child")
    wait_for(lambda: len(broker.connections) == 2, "both are connected")
    assert worker.ends() == 0
    assert "Traceback" not in worker.said


@pytest.mark.parametrize("processes", [1, 2])
def test_a_drain_timeout_may_be_longer_than_anybody_waits(
    command: Any, broker: Broker, processes: int
) -> None:
    declare(broker, "orders", "audit")
    worker = command(f"--processes={processes}", "--drain-timeout=1e300")
    wait_for(lambda: len(broker.connections) == processes, "it is connected")
    assert worker.ends() == 0
    assert "Traceback" not in worker.said


ASYNC = (
    APP.replace("import os", "import asyncio, os")
    .replace("def handle(delivery):", "async def handle(delivery):")
    .replace("    with open", "    app.logger.warning('begun')\n    await asyncio.sleep(3600)\n    with open")
)


def test_an_async_handler_that_is_not_done_in_time_is_left_behind(place: Path, broker: Broker) -> None:
    """It runs in a thread that Python's end would wait for."""
    (place / "app.py").write_text(ASYNC)
    declare(broker, "orders", "audit")
    worker = Command(place, broker.url, "--drain-timeout=0.2")
    try:
        publish(broker, "long")
        worker.says("begun")
        assert worker.ends() == 3
        worker.says("1 handlers were not done in time")
    finally:
        worker.close()
    broker.queues["orders"].wait_for(1)


def test_one_that_a_broker_refuses_leaves_an_async_handler_of_another_broker_behind(
    place: Path, broker: Broker
) -> None:
    other = "other = Pika(app, config_prefix='OTHER')\nother.consumer('there')(lambda delivery: None)\n"
    (place / "app.py").write_text(ASYNC + other)
    declare(broker, "orders", "audit")
    with Broker(users={"guest": "another"}) as refusing:
        refusing.refuse()
        url = f"amqp://guest:guest@127.0.0.1:{refusing.port}/%2F"
        worker = Command(place, broker.url, "--drain-timeout=0.2", env={"FLASK_OTHER_PARAMS": url})
        try:
            publish(broker, "long")
            worker.says("begun")
            refusing.accept()
            assert worker.exit_code() == 5
            worker.says("1 handlers were not done in time")
        finally:
            worker.close()
    broker.queues["orders"].wait_for(1)


#: Whatever pika keeps until its loop's next turn is written a moment later.
SLOW = """
import time
from pika.adapters.utils.io_services_utils import _AsyncPlaintextTransport as Transport
from flask_pika import pika_internals

pika_internals.AVAILABLE = False
write = Transport._on_socket_writable

def write_late(transport):
    time.sleep(0.1)
    write(transport)

Transport._on_socket_writable = write_late
"""


@pytest.mark.parametrize("way", ["internals", "public"])
def test_with_ack_none_what_ends_its_worker_does_not_come_again(
    place: Path, broker: Broker, way: str
) -> None:
    deadly = APP.replace('prefetch=4, on_error="requeue-once"', 'ack="none"')
    deadly = deadly.replace("    with open", "    os._exit(7)\n    with open")
    if way == "public":
        deadly = SLOW + deadly
    (place / "app.py").write_text(deadly)
    declare(broker, "orders", "audit")
    publish(broker, "deadly")
    worker = Command(place, broker.url, "--threads=1")
    try:
        assert worker.exit_code() == 7, worker.said
    finally:
        worker.close()
    wait_for(lambda: not broker.connections, "the broker to have heard of it")
    assert not broker.queues["orders"].messages


def test_what_would_fail_in_every_process_ends_them_all(place: Path, broker: Broker) -> None:
    worker = Command(place, broker.url.replace("guest:guest", "guest:wr0ng"), "--processes=3")
    try:
        assert worker.exit_code() == 5
        assert "user name or password refused" in worker.said
        assert "wr0ng" not in worker.said
        assert "another one starts" not in worker.said
    finally:
        worker.close()


@pytest.mark.parametrize(
    ("source", "options", "code", "said"),
    [
        ("from flask import Flask\napp = Flask('shop')", [], 2, "no Pika object"),
        (
            APP.replace("fpika = Pika", "app.config['FLASK_PIKA_PARAMS'] = 7\nfpika = Pika"),
            [],
            2,
            "PIKA_PARAMS",
        ),
        (APP.replace("prefetch=4", "prefetch=0"), [], 2, "prefetch is 0; expected a number from 1 to 65535"),
        (APP.replace('"audit"', '"orders"'), [], 2, "two consumers, app.handle and app.audit"),
        (APP, ["order"], 4, "queue 'order' has no consumer; did you mean 'orders'?"),
        (APP.partition("@fpika")[0], [], 4, "no consumers"),
        (APP, ["--threads=0"], 2, "--threads"),
        (APP, ["--drain-timeout=nan"], 2, "--drain-timeout"),
        (APP, ["--processes=2", "--reload"], 2, "--reload"),
        (
            APP.replace("prefetch=4", "exclusive=True"),
            ["--processes=2"],
            2,
            "'orders' has an exclusive consumer, of which there can be one: --processes can't be more than 1",
        ),
        (
            APP.replace("prefetch=4", "exclusive=True") + TWO_BROKERS,
            ["orders", "--processes=2"],
            2,
            "'orders' has an exclusive consumer",
        ),
        (APP, ["--health-port=1", "--health-host=192.0.2.1"], 2, "cannot listen on 192.0.2.1:1"),
    ],
)
def test_what_is_wrong_is_said_in_a_line_with_its_exit_code(
    tmp_path: Path, broker: Broker, source: str, options: list[str], code: int, said: str
) -> None:
    (tmp_path / "app.py").write_text(source)
    worker = Command(tmp_path, broker.url, *options)
    try:
        assert worker.exit_code() == code, worker.said
        worker.says(said)
        assert "Traceback" not in worker.said
    finally:
        worker.close()


def test_a_health_port_that_is_taken_is_named(command: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        worker = command(f"--health-port={port}")
        assert worker.exit_code() == 2
        worker.says(f"cannot listen on 127.0.0.1:{port}")


def test_the_broker_may_come_later(place: Path) -> None:
    port = free_port()
    worker = Command(place, f"amqp://guest:guest@127.0.0.1:{port}/%2F")
    try:
        worker.says("RabbitMQ is unavailable")
        with Broker(port=port) as broker:
            declare(broker, "orders", "audit")
            publish(broker, "late")
            wait_for(lambda: worker.handled(), "it is handled")
            assert worker.ends() == 0
        assert worker.said.count("RabbitMQ is unavailable") == 1, "once, however often it tries"
    finally:
        worker.close()


def test_reload_begins_anew_when_a_file_changes_also_one_that_was_wrong(
    command: Any, broker: Broker, place: Path
) -> None:
    declare(broker, "orders", "audit", "more")
    worker = command("--reload")
    wait_for(lambda: broker.queues["orders"].consumers, "it consumes")
    app = place / "app.py"
    os.utime(app, (1, 1))  # so that whatever comes is a change, on a clock of seconds too
    app.write_text(APP + "\nthis is no Python\n")
    worker.says("SyntaxError")
    wait_for(lambda: not broker.queues["orders"].consumers, "it does not consume")
    app.write_text(APP.replace('"audit"', '"more"'))
    wait_for(lambda: broker.queues["more"].consumers, "it consumes what it says now")
    assert worker.ends(signal.SIGINT) == 0


def test_a_log_that_the_app_configures_is_left_as_it_is(tmp_path: Path, broker: Broker) -> None:
    declare(broker, "orders", "audit")
    configured = APP.replace(
        "app = Flask",
        "import logging\nfrom flask_pika import DeliveryFilter\n"
        "log = logging.StreamHandler()\nlog.addFilter(DeliveryFilter())\n"
        "log.setFormatter(logging.Formatter('MINE %(queue)s %(message_id)s: %(message)s'))\n"
        "logging.basicConfig(level='INFO', handlers=[log])\napp = Flask",
    ).replace("    with open", "    app.logger.warning('hello')\n    with open")
    (tmp_path / "app.py").write_text(configured)
    worker = Command(tmp_path, broker.url)
    try:
        publish(broker, "one")
        worker.says("MINE orders -: hello")
        assert worker.ends() == 0
        worker.says("MINE - -: SIGTERM: draining")
    finally:
        worker.close()
