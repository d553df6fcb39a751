"""A private cluster of RabbitMQ nodes on loopback, each of which can be killed, frozen and started."""

from __future__ import annotations

import concurrent.futures
import contextlib
import secrets
import time
from collections.abc import Iterable

from .rabbitmq_node import NodeError, RabbitMQNode, free_port, name_of

_WHOLE_TIMEOUT = 90.0

#: Whether all nodes run, each quorum queue has a leader, and all its members are there.
_IS_WHOLE = """
    Nodes = lists:sort([{nodes}]),
    Queues = [Q || Q <- rabbit_amqqueue:list(), amqqueue:get_type(Q) =:= rabbit_quorum_queue],
    lists:sort(rabbit_nodes:all_running()) =:= Nodes andalso lists:all(fun(Q) ->
        Info = rabbit_quorum_queue:info(Q, [leader, members, online]),
        lists:member(proplists:get_value(leader, Info), Nodes) andalso
        length(proplists:get_value(members, Info)) =:= length(proplists:get_value(online, Info))
    end, Queues).
"""
#: Where the leader of a quorum queue is, as its members have it, or of a classic queue.
_LEADER = """
    {{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, <<"{queue}">>)),
    case amqqueue:get_pid(Q) of
        {{Name, _}} -> {{ok, _, {{_, Leader}}}} = ra:members([{{Name, N}} || N <- [{nodes}]]), Leader;
        Pid -> node(Pid)
    end.
"""


class RabbitMQCluster:
    """So many nodes, in a ``with`` block. What is partitioned is not looked after: here is no network.

    They find each other by their configuration, and start at the same time.
    """

    def __init__(self, size: int = 3, config: str = "") -> None:
        ports: list[int] = []
        while len(ports) < size:
            ports = list({*ports, free_port()})
        peers = [
            f"cluster_formation.classic_config.nodes.{n} = {name_of(port)}" for n, port in enumerate(ports, 1)
        ]
        lines = "\n".join(["cluster_formation.peer_discovery_backend = classic_config", *peers, config])
        shared = {"cookie": secrets.token_hex(16), "epmd_port": free_port()}
        self.nodes = [RabbitMQNode(lines, port=port, **shared) for port in ports]  # type: ignore[arg-type]

    def start(self) -> RabbitMQCluster:
        """Start all nodes at once, and wait until they are a cluster."""
        self.start_nodes(self.nodes)
        self.wait_until_whole()
        return self

    @staticmethod
    def start_nodes(nodes: Iterable[RabbitMQNode]) -> None:
        """Start these at the same time: one that went after another waits for it when it comes back."""
        with concurrent.futures.ThreadPoolExecutor() as pool:
            list(pool.map(RabbitMQNode.start, nodes))

    def remove(self) -> None:
        """End all nodes, and delete what they wrote."""
        for node in self.nodes:
            node.remove()

    def __enter__(self) -> RabbitMQCluster:
        try:
            return self.start()
        except BaseException:
            self.remove()
            raise

    def __exit__(self, *exc_info: object) -> None:
        self.remove()

    def ctl(self, *args: str) -> str:
        """What ``rabbitmqctl`` says to these arguments, of a node that runs."""
        return self.running().ctl(*args)

    def running(self) -> RabbitMQNode:
        """Any node that runs."""
        for node in self.nodes:
            if node.is_running:
                return node
        raise NodeError("no node of the cluster runs")

    def wait_until_whole(self) -> None:
        """Wait until all nodes run, know each other, and each quorum queue has all its members."""
        question = _IS_WHOLE.format(nodes=self._names())
        deadline = time.monotonic() + _WHOLE_TIMEOUT
        answer = ""
        while answer != "true":
            if time.monotonic() > deadline:
                raise NodeError(f"the cluster does not become whole: {answer}\n{self.ctl('cluster_status')}")
            with contextlib.suppress(NodeError):  # it is asked about what is not there yet
                answer = self.ctl("eval", question).strip()

    def leader_of(self, queue: str) -> RabbitMQNode:
        """The node that leads a queue."""
        name = self.ctl("eval", _LEADER.format(queue=queue, nodes=self._names())).strip()
        return next(node for node in self.nodes if node.name == name.strip("'"))

    def holder_of(self, connection: str) -> RabbitMQNode | None:
        """The node that has a connection that gave itself a name with this in it."""
        for line in self.ctl("list_connections", "port", "client_properties").splitlines():
            port, _, properties = line.partition("\t")
            _, _, name = properties.partition('"connection_name","')
            if connection in name.partition('"')[0]:
                return next(node for node in self.nodes if str(node.port) == port)
        return None

    def _names(self) -> str:
        return ",".join(f"'{node.name}'" for node in self.nodes)
