"""Publishing across forks, servers, gevent, interrupts and the interpreter's end: real processes."""

from __future__ import annotations

import concurrent.futures
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from flask_pika import Message
from tests.conftest import wait_for
from tests.test_outage import interrupt
from tests.test_processes import CONFIRMED, SERVERS, in_child, queue
from tests.test_publisher import _in_flight, _keep_apps, publishing  # noqa: F401 - a fixture
from tests.test_publisher_outage import Load
from tools.demo import call, gunicorn
from tools.rabbitmq_node import RabbitMQNode, free_port

ROOT = Path(__file__).parent.parent


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_parent_and_children_publish_across_forks_under_load(node: RabbitMQNode) -> None:
    fpika = publishing(node.params, timeout=60)
    with queue(node, "forks") as contents:
        fpika.publish("before", routing_key="forks")

        def work() -> None:
            signal.alarm(60)
            for number in range(20):
                fpika.publish(f"child {number:02}", routing_key="forks")
            assert fpika.stats().publisher.confirmed == 20
            fpika.close()

        with Load(fpika, 4, routing_key="forks") as load:
            for _ in range(3):
                load.goes_on()
                in_child(work)
            load.goes_on()
        assert not load.errors
        assert fpika.stats().publisher.reconnects == 0, "a child disturbed the parent's connection"
        children = [f"child {number:02}" for number in range(20)] * 3
        assert contents() == sorted(["before", *children, *load.confirmed])


@pytest.mark.parametrize("server", SERVERS)
def test_under_gunicorn_all_threads_of_a_worker_share_a_connection(node: RabbitMQNode, server: str) -> None:
    factory = "create_used_app" if "preload" in server else "create_app"
    env = {"FLASK_PIKA_PARAMS": node.url, "FLASK_PIKA_POOL_PARAMS": json.dumps(CONFIRMED)}
    with (
        queue(node, "preload"),
        queue(node, "served") as contents,
        gunicorn(f"tests.apps.web:{factory}()", ROOT, *SERVERS[server], env=env) as base,
        concurrent.futures.ThreadPoolExecutor(8) as clients,
    ):

        def post(number: int) -> tuple[int, dict[str, object]]:
            return call("POST", f"{base}/confirm/served/{number:03}")

        answers = list(clients.map(post, range(200)))
        assert {status for status, _ in answers} == {200}, answers
        assert len({answer["id"] for _, answer in answers}) == 200, "ids are unique among processes"

        def publishers() -> list[str]:
            return [name for name in node.connections() if name.endswith(": publisher")]

        workers = {str(answer["pid"]) for _, answer in answers}
        assert {name.split("(pid ")[1].split(")")[0] for name in publishers()} >= workers
        # And the end of those of earlier tests.
        wait_for(lambda: len(publishers()) <= 3, "one for each worker, and the master's where it was used")
        assert contents() == [f"{number:03}" for number in range(200)]


GEVENT = """
from gevent import monkey
monkey.patch_all()
import gevent
from gevent.pool import Pool as Greenlets
from flask_pika import Message
from tests.apps.web import create_app, fpika
app = create_app()

ids = Greenlets(50).map(lambda number: fpika.publish(f"{number:03}", routing_key="greenlets"), range(500))
assert len(set(ids)) == 500
# A gevent.Timeout in the middle of a publish leaves nothing behind.
for number in range(20):
    try:
        with gevent.Timeout(0.0005):
            fpika.publish(b"maybe", routing_key="greenlets", mandatory=False)
    except gevent.Timeout:
        pass
many = (Message(f"{500 + n:03}", routing_key="greenlets") for n in range(200))
assert fpika.publish_many(many).confirmed == 200
stats = fpika.stats().publisher
assert stats.pending == 0, stats
# The link is a greenlet: it serves heartbeats while the others sleep.
gevent.sleep(16)
fpika.publish("700", routing_key="greenlets")
assert fpika.stats().publisher.reconnects == 0
print("done")
"""


def test_monkey_patched_by_gevent(node: RabbitMQNode) -> None:
    pytest.importorskip("gevent")
    # Client and broker give up who is silent for one to three heartbeats: on a busy machine, with one of a
    # second, each other.
    env = {"FLASK_PIKA_PARAMS": json.dumps({**node.params, "heartbeat": 5})}
    with queue(node, "greenlets") as contents:
        done = run(GEVENT, env)
        assert done.stdout == "done\n", done.stderr
        got = [body for body in contents() if body != "maybe"]
        assert got == [f"{number:03}" for number in range(701)]


GEVENT_FORK = """
from gevent import monkey
monkey.patch_all()
import os, time
from tests.apps.web import create_app, fpika
app = create_app()
fpika.publish("parent", routing_key="greenlets")
child = os.fork()
if not child:
    # It has a copy of the link's greenlet, which must not read what is the parent's, nor send a heartbeat.
    time.sleep(3)
    fpika.publish("child", routing_key="greenlets")
    fpika.close()
    time.sleep(1)
    os._exit(0)
end = time.monotonic() + 4
count = 0
while time.monotonic() < end:
    fpika.publish("parent", routing_key="greenlets", timeout=60)
    count += 1
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 0
assert fpika.stats().publisher.reconnects == 0, fpika.stats()
assert fpika.stats().publisher.confirmed == count + 1
print("done")
"""


def test_a_fork_under_gevent_leaves_the_parents_connection_alone(node: RabbitMQNode) -> None:
    pytest.importorskip("gevent")
    with queue(node, "greenlets") as contents:
        done = run(GEVENT_FORK, {"FLASK_PIKA_PARAMS": json.dumps({**node.params, "heartbeat": 5})})
        assert done.stdout == "done\n", done.stderr
        assert contents().count("child") == 1


@pytest.mark.skipif(not Path("/proc").exists(), reason="needs /proc")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_child_keeps_no_copy_of_the_parents_socket(node: RabbitMQNode) -> None:
    fpika = publishing(node.params)
    fpika.publish(b"", mandatory=False)
    connection: Any = fpika._state().publisher()._outbox._dispatcher._connection
    inherited = connection._transport._sock.fileno()

    def work() -> None:
        assert not Path(f"/proc/self/fd/{inherited}").exists()

    in_child(work)
    fpika.publish(b"", mandatory=False)
    assert fpika.stats().publisher.reconnects == 0


#: All that is submitted is sent, however long the broker takes.
DRAINS = {"FLASK_PIKA_PUBLISHER_PARAMS": json.dumps({"drain_timeout": 60})}
LAST_LINE = """
from tests.apps.web import create_app, fpika
app = create_app()
fpika.submit("last", routing_key="leaving", timeout=60)
"""


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_what_the_last_line_submitted_is_sent(node: RabbitMQNode, host: str) -> None:
    with queue(node, "leaving") as contents:
        params = json.dumps({**node.params, "host": host})
        done = run(LAST_LINE, {"FLASK_PIKA_PARAMS": params, **DRAINS})
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert contents() == ["last"]


EXIT = """
from tests.apps.web import create_app, fpika
app = create_app()
for number in range(2000):
    fpika.submit(f"{number:04}", routing_key="leaving", timeout=60)
"""


def run(script: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        cwd=ROOT,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_what_was_submitted_is_sent_at_the_interpreters_end(node: RabbitMQNode) -> None:
    with queue(node, "leaving") as contents:
        done = run(EXIT, {"FLASK_PIKA_PARAMS": node.url, **DRAINS})
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert contents() == [f"{number:04}" for number in range(2000)]
    wait_for(lambda: not any("web on" in name for name in node.connections()), "it said goodbye")


def test_what_could_not_be_sent_at_the_interpreters_end_is_logged_with_its_count() -> None:
    env = {
        "FLASK_PIKA_PARAMS": f"amqp://127.0.0.1:{free_port()}",
        "FLASK_PIKA_PUBLISHER_PARAMS": json.dumps({"drain_timeout": 0.5}),
    }
    began = time.monotonic()
    done = run(EXIT, env)
    assert done.returncode == 0
    assert "2000 messages were not confirmed before the publisher's end: 2000 never sent" in done.stderr
    assert time.monotonic() - began < 0.5 + 15


def test_ctrl_c_while_a_publish_waits_leaves_nothing_behind(fragile_node: RabbitMQNode) -> None:
    fpika = publishing(fragile_node.params)
    fpika.publish(b"", mandatory=False)

    with fragile_node.frozen():
        many = [Message(b"", mandatory=False)] * 3
        interrupt(lambda: fpika.publish(b"", mandatory=False, timeout=60), lambda: _in_flight(fpika) == 1)
        interrupt(lambda: fpika.publish_many(many, timeout=60), lambda: _in_flight(fpika) == 4)
    wait_for(lambda: fpika.stats().publisher.pending == 0, "what was on the wire is settled, for nobody")
    fpika.publish(b"", mandatory=False)
