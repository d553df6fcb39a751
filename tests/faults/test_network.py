"""Scenarios 2: the network cuts, freezes, delays, resets, closes one way, and drips; by the lab's proxies."""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Callable, Iterator

import pytest

from tests.conftest import wait_for
from tests.faults import lab as _lab
from tests.faults.lab import Lab, Scenario, Setting, Site
from tests.faults.report import Report
from tools.proxy import Proxy
from tools.rabbitmq_node import RabbitMQNode

pytestmark = [pytest.mark.broker, pytest.mark.faults]

#: Of all that is random here. Set it to the number in a failure's message to have the same again.
SEED = int(os.environ.get("FAULTS_SEED") or random.randrange(2**32))
#: Seconds between heartbeats, where the scenario waits for them.
HEARTBEAT = 2
#: What a lent channel raises whose connection is lost: pika's own, as documented.
LOST = (
    "AMQPHeartbeatTimeout",
    "ChannelClosed",
    "ChannelWrongStateError",
    "ConnectionClosed",
    "ConnectionClosedByBroker",
    "ConnectionResetError",
    "ConnectionWrongStateError",
    "StreamLostError",
)
#: How often the scenarios do it that do it again and again.
AGAIN = 5
RESETS = 20


# What the scenarios are made of


@contextlib.contextmanager
def restored(lab: Lab) -> Iterator[None]:
    """Whatever becomes of it: the proxies outlive the scenario, and are as they were."""
    try:
        yield
    finally:
        for proxy in lab.proxies:
            proxy.restore()


def everywhere(lab: Lab, work: Callable[[Proxy], None]) -> None:
    for proxy in lab.proxies:
        work(proxy)


def goes_on_asking(lab: Lab, more: int = 50) -> None:
    """Wait for so many answers to requests that began after this call, be they good or bad."""
    since = time.monotonic()
    wait_for(
        lambda: sum(answer.began >= since for answer in lab.load.answers) >= more or lab.load.is_over,
        lambda: f"{more} answers; the last ones: {lab.load.answers[-3:]}",
        120,
    )


def web_node(lab: Lab) -> RabbitMQNode:
    """The node that holds a connection of the web server's."""
    pids = sorted(lab.server.children)
    found = next((node for pid in pids if (node := lab.cluster.holder_of(f"(pid {pid})"))), None)
    assert found is not None, f"none of {pids} is connected"
    return found


# The scenarios


def cut(lab: Lab) -> None:
    """All nodes are cut off while something is under way from each client."""
    with restored(lab), lab.disturbed():
        everywhere(lab, Proxy.freeze)
        lab.load.is_held_up()
        everywhere(lab, Proxy.cut)  # what waited in the proxies is gone
        everywhere(lab, Proxy.thaw)
        lab.returned()
        lab.goes_on()


def again_and_again(lab: Lab, work: Callable[[Proxy], None]) -> None:
    """Only what was under way may fail of it: what is asked for a moment later finds out, and is served."""
    for _ in range(AGAIN):
        with lab.disturbed():
            everywhere(lab, work)
        lab.returned()
        goes_on_asking(lab)


def cut_again_and_again(lab: Lab) -> None:
    again_and_again(lab, Proxy.cut)


def half_close_from_broker(lab: Lab) -> None:
    """The app sees an end, and what it sends arrives; the broker's answers do not."""
    again_and_again(lab, lambda proxy: proxy.half_close(to_target=False))


def half_close_to_broker(lab: Lab) -> None:
    """The broker sees an end, and has not had what was under way; only the broker tells the app."""
    with restored(lab), lab.disturbed():
        everywhere(lab, Proxy.freeze)
        lab.load.is_held_up()
        everywhere(lab, lambda proxy: proxy.half_close(to_target=True))
        everywhere(lab, Proxy.thaw)
        lab.returned()
        lab.goes_on()


def freeze_one(lab: Lab) -> None:
    """The two others take over; the frozen node has given its connections up when the network comes back."""
    node = web_node(lab)
    proxy = lab.proxies[lab.cluster.nodes.index(node)]
    heard = len(node.log())
    with restored(lab), lab.disturbed():
        proxy.freeze()
        lab.goes_on()
        wait_for(lambda: "missed heartbeats" in node.log()[heard:], "RabbitMQ's notice of silence", 60)
        proxy.thaw()
        lab.goes_on()


def freeze_all(lab: Lab) -> None:
    """All nodes freeze, until each client has heard of it, or should have by far."""
    with restored(lab), lab.disturbed():
        everywhere(lab, Proxy.freeze)
        lab.load.is_held_up()
        frozen = time.monotonic()
        late = frozen + lab.rules.timeout + lab.rules.grace
        wait_for(
            lambda: not lab.load.waits_for(before=frozen) or time.monotonic() > late,
            "the time that all should have an answer",
            lab.rules.timeout + lab.rules.grace + 30,
        )
        everywhere(lab, Proxy.thaw)
        lab.returned()
        lab.goes_on()


def delay(lab: Lab) -> None:
    """200 ms each way, and a cut in the midst of it, so that all is done over it that an app does."""
    with restored(lab), lab.disturbed():
        everywhere(lab, lambda proxy: proxy.delay(0.2))
        goes_on_asking(lab)
        everywhere(lab, Proxy.cut)
        goes_on_asking(lab)
        everywhere(lab, lambda proxy: proxy.delay(0))
        lab.goes_on()


def drip(lab: Lab) -> None:
    """No more than 64 bytes at a time, 6,400 in a second, and a cut in the midst of it."""
    with restored(lab), lab.disturbed():
        everywhere(lab, lambda proxy: proxy.drip(64, 0.01))
        goes_on_asking(lab)
        everywhere(lab, Proxy.cut)
        goes_on_asking(lab)
        everywhere(lab, lambda proxy: proxy.drip(0, 0))
        lab.goes_on()


def reset_at_random(lab: Lab) -> None:
    """One node's connections or another's, at any moment, on a line that takes 20 ms each way."""
    rng = random.Random(SEED)
    with restored(lab), lab.disturbed():
        everywhere(lab, lambda proxy: proxy.delay(0.02))
        for _ in range(RESETS):
            rng.choice(lab.proxies).reset()
            lab.returned()
            goes_on_asking(lab, rng.randrange(1, 20))


FROZEN = {"heartbeat": HEARTBEAT, "socket_timeout": 2, "stack_timeout": 4}
POOL = {"pool_size": 4, "confirm_delivery": True, "pool_timeout": 8}
GEVENT = "gunicorn gevent"
SCENARIOS = [
    Scenario(2, "all connections are cut, with messages under way", cut),
    Scenario(
        2,
        "cut again and again, on pooled channels",
        cut_again_and_again,
        Setting(server=GEVENT, path="pool", refusals=LOST),
        {"no probe": "an error without a cause"},
    ),
    Scenario(
        2,
        "one node's network freezes, for more than two heartbeats",
        freeze_one,
        Setting(timeout=30.0, params=FROZEN),
    ),
    Scenario(
        2,
        "the network freezes, for more than two heartbeats, on pooled channels",
        freeze_all,
        Setting(server=GEVENT, path="pool", timeout=8.0, params=FROZEN, pool=POOL, refusals=LOST),
        {"no heartbeat": "later than its deadline"},
    ),
    Scenario(
        2,
        "a delay of 200 ms each way, and a cut in its midst",
        delay,
        Setting(server=GEVENT),
        {"gives up early": "an error without a cause"},
    ),
    Scenario(2, "resets at random", reset_at_random, Setting(server=GEVENT)),
    Scenario(2, "half-close: nothing more comes to the broker", half_close_to_broker),
    Scenario(
        2,
        "half-close: nothing more comes from the broker, on pooled channels",
        half_close_from_broker,
        Setting(path="pool", refusals=LOST),
        {"no probe": "an error without a cause"},
    ),
    Scenario(2, "a slow drip, and a cut in its midst", drip),
]


@contextlib.contextmanager
def seed_told() -> Iterator[None]:
    """In the message of whatever fails."""
    try:
        yield
    except AssertionError as exc:
        raise AssertionError(f"FAULTS_SEED={SEED}: {exc}") from exc


@_lab.parametrize(*SCENARIOS)
def test_nothing_is_lost(scenario: Scenario, round_: int, whole: Site, report: Report, grace: float) -> None:
    with seed_told():
        _lab.run(scenario, whole, report, grace=grace)


@_lab.parametrize_stand_ins(*SCENARIOS)
def test_a_stand_in_is_caught(scenario: Scenario, stand_in: str, whole: Site, report: Report) -> None:
    with seed_told():
        _lab.run_stand_in(scenario, stand_in, whole, report)
