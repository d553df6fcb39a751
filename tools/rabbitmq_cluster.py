"""A private cluster of RabbitMQ nodes on loopback, each of which can be killed, frozen and started."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

from .rabbitmq_node import Epmd, NodeError, RabbitMQNode, free_port, name_of, uninterrupted

_T = TypeVar("_T")
_WHOLE_TIMEOUT = 90.0
_ANSWER_TIMEOUT = 30.0

#: How nodes find each other when they first start: all ask all, one at a time, under a lock that spans them.
#: The first to have it finds nobody, and begins by itself; it need not try for 5 s before, as by default. It
#: has the lock until its tables are as they shall be: a node that comes without it, and meets the first one
#: in between, does not start ("table_attributes_mismatch"; RabbitMQ 3.10.8). The others are to wait longer
#: for the lock than they do by default: the machine may be busy.
_PEERS = """
cluster_formation.peer_discovery_backend = classic_config
cluster_formation.discovery_retry_limit = 4
cluster_formation.discovery_retry_interval = 250
cluster_formation.internal_lock_retries = 100
"""
#: False, or a number for what this node knows: it sees all others running, and none that it was parted from;
#: each quorum queue has all its members; and who leads it. All nodes must say the same.
_KNOWS = """
    Nodes = lists:sort([{nodes}]),
    Queues = [{{Q, rabbit_quorum_queue:info(Q, [members, online])}}
              || Q <- rabbit_amqqueue:list(), amqqueue:get_type(Q) =:= rabbit_quorum_queue],
    Are_there = fun({{_, [{{_, Members}}, {{_, Online}}]}}) -> length(Members) =:= length(Online) end,
    case lists:sort(rabbit_nodes:all_running()) =:= Nodes
        andalso rabbit_node_monitor:partitions() =:= []
        andalso lists:all(Are_there, Queues)
    of
        false -> false;
        true -> erlang:phash2(lists:sort([begin
            {{Name, _}} = amqqueue:get_pid(Q),
            {{_, Leader}} = ra_leaderboard:lookup_leader(Name),
            {{Name, Leader}}
        end || {{Q, [{{_, Members}}, _]}} <- Queues, length(Members) =:= length(Nodes)]))
    end.
"""
#: Where the leader of a quorum queue is, as this node knows, or of a classic queue. Others are asked only
#: where it has no member, and knows nothing: one that is frozen does not answer.
_LEADER = """
    {{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, {queue})),
    case amqqueue:get_pid(Q) of
        {{Name, _}} ->
            {{_, Leader}} = case ra_leaderboard:lookup_leader(Name) of
                undefined -> element(3, ra:members([{{Name, Node}} || Node <- [{nodes}]]));
                Known -> Known
            end,
            Leader;
        Pid -> node(Pid)
    end.
"""
#: Whether this node holds a connection that gave itself a name with this in it.
_HOLDS = """
    Names = [Name || {{_, Info}} <- ets:tab2list(connection_created),
                     {{<<"connection_name">>, _, Name}} <- proplists:get_value(client_properties, Info, [])],
    lists:any(fun(Name) -> binary:match(Name, {part}) =/= nomatch end, Names).
"""


class RabbitMQCluster:
    """So many nodes, in a ``with`` block; or ``start()`` and ``remove()`` it.

    :param config: further lines for ``rabbitmq.conf``, of each node.
    :param partitions: what a node does that sees others no more. With ``pause_minority``, as clusters of
        three are run, one that was frozen for longer than ``net_ticktime``, 60 s, joins the others again by
        itself; with RabbitMQ's default, ``ignore``, it stays apart until somebody starts it again. And a node
        that is left without a majority sends its clients away, where with ``ignore`` it takes what they
        publish to quorum queues, and confirms nothing.
    """

    def __init__(self, size: int = 3, config: str = "", *, partitions: str = "pause_minority") -> None:
        self._epmd = Epmd()
        cookie = secrets.token_hex(16)
        ports = [free_port() for _ in range(size)]
        peers = "".join(
            f"cluster_formation.classic_config.nodes.{number} = {name_of(port)}\n"
            for number, port in enumerate(ports, 1)
        )
        lines = f"cluster_partition_handling = {partitions}\n{_PEERS}{peers}{config}\n"
        self.nodes = [RabbitMQNode(lines, port=port, cookie=cookie, epmd=self._epmd) for port in ports]
        self._names = ",".join(f"'{node.name}'" for node in self.nodes)

    def start(self) -> RabbitMQCluster:
        """Start all nodes at once, and wait until they are a cluster."""
        self.start_nodes()
        self.wait_until_whole()
        return self

    def start_nodes(self, nodes: Iterable[RabbitMQNode] | None = None) -> None:
        """Start these nodes, or all that do not run, at the same time, and wait until they speak AMQP.

        One that did not go last has to wait, when it comes back, for one that went later: started one
        after another, the first of them may wait in vain.
        """
        down = [node for node in (self.nodes if nodes is None else nodes) if not node.is_running]
        for node in down:
            node.launch()
        for node in down:
            node.wait_until_up()

    def remove(self) -> None:
        """End all nodes, and delete what they wrote."""
        with uninterrupted(), contextlib.ExitStack() as stack:  # each, even where another cannot be ended
            stack.callback(self._epmd.stop)
            for node in self.nodes:
                stack.callback(node.remove)

    def __enter__(self) -> RabbitMQCluster:
        try:
            return self.start()
        except BaseException:  # a Ctrl-C while it starts, too
            self.remove()
            raise

    def __exit__(self, *exc_info: object) -> None:
        self.remove()

    def ctl(self, *args: str) -> str:
        """What ``rabbitmqctl`` says to these arguments, of a node that runs."""
        return self.running().ctl(*args)

    def running(self) -> RabbitMQNode:
        """Any node that runs, and one that serves clients rather than one that does not."""
        awake = self._awake()
        for node in awake:
            if node.speaks_amqp():
                return node
        if awake:
            return awake[0]
        raise NodeError("no node of the cluster runs")

    def wait_until_whole(self) -> None:
        """Wait until all nodes run and see each other, and each quorum queue has all its members."""
        _within(_WHOLE_TIMEOUT, self._look_whether_whole, "the cluster does not become whole")

    def leader_of(self, queue: str) -> RabbitMQNode:
        """The node that leads a queue. If its leader is gone, that is waited for until there is another."""

        question = _LEADER.format(queue=_binary(queue), nodes=self._names)

        def leader() -> RabbitMQNode:
            name = self.running().evaluate(question, 10)
            found = next(node for node in self.nodes if node.name == name.strip("'"))
            if not found.is_running:
                raise NodeError(f"the leader is said to be {found.name}, which does not run")
            # A member may not have heard of an election yet.
            if not found.is_frozen and found.evaluate(question, 10) != name:
                raise NodeError(f"the leader is said to be {found.name}, which does not say so")
            return found

        return _within(_ANSWER_TIMEOUT, leader, f"nobody leads the queue {queue!r}")

    def holder_of(self, connection: str) -> RabbitMQNode | None:
        """The node that has a connection that gave itself a name with this in it.

        Nodes that are frozen are not asked.
        """
        for node in self._awake():
            with contextlib.suppress(NodeError):  # it starts, or is paused: it holds none
                if node.evaluate(_HOLDS.format(part=_binary(connection)), 10) == "true":
                    return node
        return None

    def _awake(self) -> list[RabbitMQNode]:
        return [node for node in self.nodes if node.is_running and not node.is_frozen]

    def _look_whether_whole(self) -> None:
        known = set()
        for node in self.nodes:
            if not node.is_running:
                raise NodeError(f"{node.name} does not run\n{node.log_tail()}")
            known.add(node.evaluate(_KNOWS.format(nodes=self._names), 10))
            if "false" in known:
                raise NodeError(
                    f"{node.name} misses a node, or a member of a quorum queue\n{node.log_tail()}"
                )
        if len(known) > 1:
            raise NodeError("the nodes do not agree about who leads which quorum queue")


def _binary(text: str) -> str:
    """A text in Erlang, whatever is in it."""
    return f"<<{','.join(map(str, text.encode()))}>>"


def _within(seconds: float, look: Callable[[], _T], otherwise: str) -> _T:
    """What ``look`` finds, which raises a NodeError while it finds nothing."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return look()
        except NodeError as exc:
            if time.monotonic() > deadline:
                raise NodeError(f"{otherwise}: {exc}") from exc
        time.sleep(0.05)
