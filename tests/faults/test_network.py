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
from tests.faults.lab import LOST, Lab, Scenario, Setting, Site
from tests.faults.report import Report
from tools.proxy import Proxy
from tools.rabbitmq_node import RabbitMQNode

pytestmark = [pytest.mark.broker, pytest.mark.faults, pytest.mark.timeout(600)]

#: Seconds between heartbeats, where the scenario waits for them.
HEARTBEAT = 2
#: What a lent channel raises when its network has gone.
GONE = ("AMQPHeartbeatTimeout", *LOST)
#: What a pool says of a broker that it cannot connect to.
AWAY = ("BrokerUnavailable",)
#: How often the scenarios do it that do it again and again.
AGAIN = 5
#: Answers over a slow line.
FEW = 24


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
    """Wait for so many answers, be they good or bad."""
    lab.load.has_answered(more)


def connections(lab: Lab, node: RabbitMQNode) -> int:
    """How many there are, as RabbitMQ sees it."""
    return lab.cluster.ctl("list_connections", "port").split().count(str(node.port))


# The scenarios


def stop_on_the_way(lab: Lab) -> None:
    """All nodes freeze, and then each client asks for something: the broker has none of it."""
    with lab.load.paused():
        everywhere(lab, Proxy.freeze)
    lab.is_held_up()


def stop_on_the_way_back(lab: Lab) -> None:
    """All nodes freeze in the midst of it: the broker may have what it did not confirm yet."""
    everywhere(lab, Proxy.freeze)
    lab.is_held_up()


def cut_under_way(lab: Lab, stop: Callable[[Lab], None] = stop_on_the_way) -> None:
    """All nodes are cut off while something is under way from each client."""
    stop(lab)
    everywhere(lab, Proxy.cut)  # what waited in the proxies is gone
    everywhere(lab, Proxy.thaw)
    lab.returned()


def cut(lab: Lab) -> None:
    for stop in (stop_on_the_way_back, stop_on_the_way):
        with restored(lab), lab.disturbed():
            cut_under_way(lab, stop)
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

    def end(proxy: Proxy) -> None:
        proxy.half_close(to_target=False)
        proxy.thaw()  # it is not frozen: when this is done, the end has passed

    again_and_again(lab, end)


def half_close_to_broker(lab: Lab) -> None:
    """The broker sees an end, and has not had what was under way; only the broker tells the app."""
    with restored(lab), lab.disturbed():
        stop_on_the_way(lab)
        everywhere(lab, lambda proxy: proxy.half_close(to_target=True))
        everywhere(lab, Proxy.thaw)
        lab.returned()
        lab.goes_on()


def freeze_one(lab: Lab) -> None:
    """The two others take over; the frozen node has given its connections up when the network comes back."""
    node = lab.holder()
    proxy = lab.proxies[lab.cluster.nodes.index(node)]
    heard = len(node.log())
    with restored(lab), lab.disturbed():
        proxy.freeze()
        lab.goes_on()
        wait_for(lambda: "missed heartbeats" in node.log()[heard:], "RabbitMQ's notice of silence", 60)
        wait_for(lambda: not connections(lab, node), "the end of all connections to the frozen node", 60)
        proxy.thaw()
        lab.goes_on()


def delay(lab: Lab) -> None:
    """200 ms each way, and a cut in the midst of it, so that all is done over it that an app does."""
    with restored(lab), lab.disturbed():
        everywhere(lab, lambda proxy: proxy.delay(0.2))
        goes_on_asking(lab, FEW)
        everywhere(lab, Proxy.cut)  # what was on its way is gone
        goes_on_asking(lab, FEW)
        everywhere(lab, lambda proxy: proxy.delay(0))
        lab.goes_on()


def drip(lab: Lab) -> None:
    """No more than 64 bytes at a time, 6,400 in a second, and a cut in the midst of it."""
    with restored(lab), lab.disturbed():
        everywhere(lab, lambda proxy: proxy.drip(64, 0.01))
        goes_on_asking(lab, FEW)
        cut_under_way(lab)
        goes_on_asking(lab, FEW)
        everywhere(lab, lambda proxy: proxy.drip(0, 0))
        lab.goes_on()


def resets(seed: int, count: int) -> Scenario:
    """One node's connections or another's, at any moment, on a line that takes 50 ms each way."""

    def reset_at_random(lab: Lab) -> None:
        rng = random.Random(seed)
        with restored(lab), lab.disturbed():
            everywhere(lab, lambda proxy: proxy.delay(0.05))
            for _ in range(count):
                rng.choice(lab.proxies).reset()
                goes_on_asking(lab, rng.randrange(1, 20))

    return Scenario(2, "resets at random", reset_at_random, Setting(server=GEVENT))


GEVENT = "gunicorn gevent"
#: So large that some of its channels are idle at any moment, and nobody waits for one.
LARGE = {"pool_size": 8, "confirm_delivery": True}
FROZEN = {"heartbeat": HEARTBEAT, "socket_timeout": 2, "stack_timeout": 4}
SCENARIOS = [
    Scenario(2, "all connections are cut, with messages under way", cut),
    Scenario(
        2,
        "cut again and again, on pooled channels",
        cut_again_and_again,
        Setting(server=GEVENT, path="pool", clients=12, pool=LARGE, refusals=(*GONE, *AWAY)),
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
        "a delay of 200 ms each way, and a cut in its midst",
        delay,
        Setting(server=GEVENT),
        {"gives up early": "an error without a cause"},
    ),
    Scenario(2, "half-close: nothing more comes to the broker", half_close_to_broker),
    Scenario(
        2,
        "half-close: nothing more comes from the broker, on pooled channels",
        half_close_from_broker,
        Setting(path="pool", clients=12, options=("--threads=8",), pool=LARGE, refusals=(*GONE, *AWAY)),
        {"no probe": "an error without a cause"},
    ),
    Scenario(2, "a slow drip, and a cut in its midst", drip),
]


@_lab.parametrize(*SCENARIOS)
def test_nothing_is_lost(scenario: Scenario, round_: int, whole: Site, report: Report, grace: float) -> None:
    _lab.run(scenario, whole, report, grace=grace)


@_lab.parametrize_stand_ins(*SCENARIOS)
def test_a_stand_in_is_caught(scenario: Scenario, stand_in: str, whole: Site, report: Report) -> None:
    _lab.run_stand_in(scenario, stand_in, whole, report)


@contextlib.contextmanager
def seed_told(seed: int) -> Iterator[None]:
    """In the message of whatever fails."""
    try:
        yield
    except Exception as exc:
        raise AssertionError(f"FAULTS_SEED={seed}: {exc}") from exc


@pytest.fixture
def random_resets(request: pytest.FixtureRequest) -> tuple[Scenario, int]:
    """A seed of its own for each run; that of a failure is in its message, for ``FAULTS_SEED``."""
    seed = int(os.environ.get("FAULTS_SEED") or random.randrange(2**32))
    return resets(seed, 8 if request.config.getoption("--faults") == "short" else 50), seed


def test_nothing_is_lost_by_resets_at_random(
    random_resets: tuple[Scenario, int], round_: int, whole: Site, report: Report, grace: float
) -> None:
    scenario, seed = random_resets
    with seed_told(seed):
        _lab.run(scenario, whole, report, grace=grace)


def test_a_stand_in_is_caught_by_resets_at_random(
    random_resets: tuple[Scenario, int], whole: Site, report: Report
) -> None:
    scenario, seed = random_resets
    with seed_told(seed):
        _lab.run_stand_in(scenario, "no confirms", whole, report)


def freeze_all(*labs: Lab) -> None:
    """All nodes freeze, until each client has heard of it, or should have by far."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(restored(labs[0]))
        for lab in labs:
            stack.enter_context(lab.disturbed())
        everywhere(labs[0], Proxy.freeze)
        for lab in labs:
            lab.is_held_up()
        frozen = time.monotonic()
        for lab in labs:
            wait_for(
                lambda lab=lab: (  # type: ignore[misc]
                    not lab.load.waits_for(before=frozen)
                    or time.monotonic() > frozen + lab.rules.timeout + lab.rules.grace
                ),
                "the time that all should have an answer",
                60,
            )
        everywhere(labs[0], Proxy.thaw)
        for lab in labs:
            lab.returned()
            lab.goes_on()


#: On pooled channels, a call on a frozen network ends after pika's two looks, each a heartbeat and 5 s after
#: the one before.
POOLED = Setting(
    server=GEVENT,
    path="pool",
    timeout=2 * (HEARTBEAT + 5) + 1.0,
    params=FROZEN,
    pool={**LARGE, "pool_timeout": 8},
    refusals=(*GONE, *AWAY),
)


def test_a_frozen_network_on_pooled_channels(round_: int, whole: Site, report: Report, grace: float) -> None:
    """The app and its stand-in side by side, since most of it is waiting."""
    name = "the network freezes, for more than two heartbeats, on pooled channels"
    with Lab(whole, POOLED, grace) as lab, Lab(whole, POOLED, 1.0, "no heartbeat") as broken:
        labs = (lab, broken)
        for each in labs:
            each.goes_on()
        freeze_all(*labs)
        books, broken_books = lab.settle(), broken.settle()
    report.add_books(2, name, POOLED.server, books)
    books.check()
    kind = "later than its deadline"
    found = broken_books.findings()
    assert kind in found, f"'no heartbeat' was not caught; found: {found}"
    report.add_caught(2, name, "no heartbeat", f"{len(found[kind]):,} {kind}")
