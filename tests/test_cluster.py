"""The cluster of the fault lab: it becomes whole, and again after each loss, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pika
import pika.exceptions
import pytest

from tests.conftest import LOUD, wait_for
from tools.rabbitmq_cluster import RabbitMQCluster
from tools.rabbitmq_node import RabbitMQNode, programs

pytestmark = [
    pytest.mark.broker,
    pytest.mark.timeout(600),
    pytest.mark.skipif(programs() is None and not os.environ.get("CI"), reason=LOUD),
]
ROOT = Path(__file__).parents[1]
QUEUE = "a queue"


@pytest.fixture(scope="module")
def _cluster() -> Iterator[RabbitMQCluster]:
    with RabbitMQCluster() as started:
        with channel(started.nodes[0]) as ch:
            ch.queue_declare(QUEUE, durable=True, arguments={"x-queue-type": "quorum"})
        yield started


@pytest.fixture
def cluster(_cluster: RabbitMQCluster) -> RabbitMQCluster:
    """A cluster that is whole, with a quorum queue."""
    _cluster.start_nodes()
    _cluster.wait_until_whole()
    return _cluster


@contextlib.contextmanager
def channel(
    node: RabbitMQNode, name: str = "the test's"
) -> Iterator[pika.adapters.blocking_connection.BlockingChannel]:
    parameters = pika.URLParameters(node.url)
    parameters.client_properties = {"connection_name": name}
    parameters.stack_timeout = parameters.socket_timeout = 60
    connection = pika.BlockingConnection(parameters)
    try:
        yield connection.channel()
    finally:
        with contextlib.suppress(pika.exceptions.AMQPError):
            connection.close()


def takes_messages(node: RabbitMQNode) -> bool:
    """Whether the quorum queue confirms what is published through this node."""
    with contextlib.suppress(pika.exceptions.AMQPError), channel(node) as ch:
        ch.confirm_delivery()
        ch.basic_publish("", QUEUE, b"x", mandatory=True)
        return True
    return False


def processes(text: str) -> list[str]:
    """The programs that run with this in their command or their environment."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command, environ = (directory / "cmdline").read_bytes(), (directory / "environ").read_bytes()
            if text.encode() in command + environ:
                found.append(command.replace(b"\0", b" ").decode(errors="replace"))
    return found


def test_it_starts_whole(cluster: RabbitMQCluster) -> None:
    status = cluster.ctl("cluster_status")
    _, _, running = status.partition("Running Nodes")
    assert all(node.name in running.partition("Versions")[0] for node in cluster.nodes)
    assert all(takes_messages(node) for node in cluster.nodes)


def test_a_killed_leader_is_replaced_and_comes_back(cluster: RabbitMQCluster) -> None:
    leader = cluster.leader_of(QUEUE)
    leader.kill()
    assert cluster.leader_of(QUEUE) is not leader
    assert cluster.running() is not leader
    # It may refuse some before.
    wait_for(lambda: takes_messages(cluster.running()), "a queue that takes messages")
    leader.start()
    cluster.wait_until_whole()
    assert takes_messages(leader)


def test_after_a_lost_majority_it_is_whole_again(cluster: RabbitMQCluster) -> None:
    *gone, left = cluster.nodes
    for node in gone:
        node.kill()
    # What is left sends its clients away, and does not take what it could not keep.
    wait_for(lambda: not left.speaks_amqp(), "the last node's pause")
    assert left.is_running
    cluster.start_nodes(gone)
    cluster.wait_until_whole()
    assert all(takes_messages(node) for node in cluster.nodes)


def test_after_the_loss_of_all_it_is_whole_again(cluster: RabbitMQCluster) -> None:
    for node in cluster.nodes:
        node.kill()
    cluster.start_nodes()
    cluster.wait_until_whole()
    assert all(takes_messages(node) for node in cluster.nodes)


def test_it_knows_who_leads_and_who_holds(cluster: RabbitMQCluster) -> None:
    # Another one may be elected between the two.
    wait_for(
        lambda: f"{QUEUE}\t{cluster.leader_of(QUEUE).name}" in cluster.ctl("list_queues", "name", "leader"),
        "both say the same of who leads",
    )
    with contextlib.ExitStack() as stack:
        for number, node in enumerate(cluster.nodes):
            stack.enter_context(channel(node, f"shop (pid {number}) é"))
        lines = cluster.ctl("list_connections", "port", "client_properties").splitlines()
        for number, node in enumerate(cluster.nodes):
            (line,) = [line for line in lines if f"(pid {number})" in line]
            assert line.startswith(f"{node.port}\t")
            assert cluster.holder_of(f"(pid {number}) é") is node
    wait_for(lambda: cluster.holder_of("shop") is None, "their end")


def test_a_frozen_node_keeps_nobody_from_asking_the_others(cluster: RabbitMQCluster) -> None:
    first = cluster.nodes[0]
    with first.frozen():
        assert cluster.running() is not first
        assert cluster.holder_of("nobody") is None
        assert cluster.leader_of(QUEUE) in cluster.nodes
    cluster.wait_until_whole()


PROGRAM = """
import sys
from tools.rabbitmq_cluster import RabbitMQCluster
cluster = RabbitMQCluster()
print(*(node._home for node in cluster.nodes), cluster._epmd.port, flush=True)
with cluster:
    print("started", flush=True)
"""


def test_it_leaves_nothing_behind_even_when_it_is_interrupted_as_it_starts() -> None:
    program = subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert program.stdout is not None
    try:
        *homes, port = program.stdout.readline().split()
        wait_for(lambda: all(len(processes(home)) > 1 for home in homes), "the nodes' beginning")
        assert processes(f"-port\0{port}")
        program.send_signal(signal.SIGINT)
        said, _ = program.communicate(timeout=60)
    finally:
        program.kill()
        program.wait()
    assert "started" not in said
    assert program.returncode
    assert not [home for home in homes if Path(home).exists()]
    # The helpers of a node that was killed end a moment after it.
    wait_for(lambda: not any(processes(home) for home in homes), lambda: f"{list(map(processes, homes))}")
    assert not processes(f"-port\0{port}")
