"""Scenarios 1: the nodes of a cluster are killed, stopped and started again, one and all."""

from __future__ import annotations

import pytest

from tests.faults import lab as _lab
from tests.faults.lab import Lab, Scenario, Setting, Site
from tests.faults.report import Report
from tools.rabbitmq_node import RabbitMQNode

pytestmark = [pytest.mark.broker, pytest.mark.faults, pytest.mark.timeout(600)]


def kill(lab: Lab, node: RabbitMQNode) -> None:
    """Kill it when messages are under way: it is frozen first, until each client waits for it."""
    with lab.disturbed():
        with node.frozen():
            lab.is_held_up()
            node.kill()
        lab.returned()  # the other two are there
        lab.goes_on()
        node.start()
        lab.cluster.wait_until_whole()


def kill_holder(lab: Lab) -> None:
    kill(lab, lab.holder())


def kill_leader(lab: Lab) -> None:
    kill(lab, lab.cluster.leader_of(lab.queue))


def restart_all_in_turn(lab: Lab) -> None:
    for node in lab.cluster.nodes:
        with lab.disturbed():
            node.restart()
            lab.cluster.wait_until_whole()
            lab.returned()
            lab.goes_on()


def lose_the_majority(lab: Lab) -> None:
    """Two of three, of which one holds the connection; what is left takes nothing."""
    holder = lab.holder()
    gone = [holder, next(node for node in lab.cluster.nodes if node is not holder)]
    with lab.disturbed():
        for node in gone:
            node.kill()
        lab.is_held_up()
        lab.cluster.start_nodes(gone)
        lab.cluster.wait_until_whole()
        lab.returned()
        lab.goes_on()


SCENARIOS = [
    Scenario(1, "kill -9 of the node that holds the connection", kill_holder),
    Scenario(1, "kill -9 of the queue's leader", kill_leader),
    Scenario(
        1,
        "a rolling restart of all three nodes",
        restart_all_in_turn,
        Setting(server="gunicorn gevent", refusals=["Nacked"]),
    ),
    Scenario(1, "the majority is lost, and comes back", lose_the_majority, Setting(timeout=60.0)),
]


@_lab.parametrize(*SCENARIOS)
def test_nothing_is_lost(scenario: Scenario, round_: int, whole: Site, report: Report, grace: float) -> None:
    _lab.run(scenario, whole, report, grace=grace)


@_lab.parametrize_stand_ins(*SCENARIOS)
def test_a_stand_in_is_caught(scenario: Scenario, stand_in: str, whole: Site, report: Report) -> None:
    _lab.run_stand_in(scenario, stand_in, whole, report)
