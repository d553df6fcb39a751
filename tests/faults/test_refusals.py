"""Scenarios 3: a broker that works, and refuses: alarms, limits, permissions, passwords, full queues."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import pika.exceptions
import pytest

from tests.conftest import wait_for
from tests.faults import lab as _lab
from tests.faults.lab import Lab, Scenario, Setting, Site
from tests.faults.report import Report
from tests.faults.searching import PASSWORD, USER
from tools.rabbitmq_node import RabbitMQNode

pytestmark = [pytest.mark.broker, pytest.mark.faults, pytest.mark.timeout(600)]

#: After its rotation. The search for the other one finds this one, too.
NEW_PASSWORD = f"{PASSWORD}-of-today"
#: RabbitMQ's own settings, to which the scenarios go back.
WATERMARK, DISK_LIMIT = "0.4", "50000000"
#: Of bytes: no disk has so many.
TOO_MUCH = "1000000000000000000"
#: AMQP's reply code for a queue that is to be deleted if it is empty, and is not.
NOT_EMPTY = 406
#: How many requests are to be refused, before an operator mends what is wrong.
REFUSED = 8
#: How many requests a stand-in accepts that has no such thing.
SHOWN = 400
#: What a lent channel raises whose connection was closed by an operator: pika's own, as documented.
CLOSED = (
    "ConnectionClosedByBroker",
    "ConnectionWrongStateError",
    "ChannelWrongStateError",
    "StreamLostError",
)
#: Erlang's way to write what ``rabbitmqctl`` does for an operator, to know the moment in which it was done.
_USER = f'<<"{USER}">>'
_OPERATOR = '<<"lab">>'
#: It closes what gave itself a name with this in it. Who has not said yet what it is, has none.
_CLOSE = """
    [ok = rabbit_networking:close_connection(Pid, <<"the operator wants it">>)
     || [{{pid, Pid}}, {{client_properties, About}}]
            <- rabbit_networking:connection_info_all([pid, client_properties]),
        is_list(About),
        {{<<"connection_name">>, _, Name}} <- About,
        binary:match(Name, <<"{process}">>) =/= nomatch].
"""


@dataclass(frozen=True)
class Refusal(Scenario):
    """A scenario in which a broker refuses, and what that is called.

    :ivar must: the errors' names, each of which is to be seen.
    :ivar may: those that are all right beside it: of what was under way when it began.
    """

    must: Collection[str] = ()
    may: Collection[str] = ()


# What the scenarios are made of


def mend(lab: Lab, act: str, node: RabbitMQNode | None = None) -> None:
    """Have the broker do this, and note by its own clock when it was done: rabbitmqctl takes its time.

    :param node: which one is to do it, where it does not matter to the others.
    """
    told = (node or lab.cluster).ctl("eval", f"ok = {act}, erlang:system_time(microsecond).")
    lab.returned(time.monotonic() - (time.time() - int(told) / 1e6))


def is_refused(lab: Lab, *names: str) -> None:
    """Wait until some requests ended with one of these; or a stand-in has shown what it does instead."""
    number = len(lab.load.answers)
    late = lab.rules.timeout + lab.rules.grace + 1
    over = time.monotonic() + late + 10

    def shown() -> bool:
        now = time.monotonic()
        return lab.load.waits_for(now - late) or now > over or accepted() > SHOWN

    def accepted() -> int:
        return sum(answer.accepted for answer in lab.load.answers_since(number))

    def refused() -> int:
        return sum(answer.error in names for answer in lab.load.answers_since(number))

    wait_for(
        lambda: refused() >= REFUSED or (lab.stand_in and shown()) or lab.load.is_over,
        lambda: f"{names}; the last answers: {lab.load.answers[-3:]}",
        120,
    )


def close_connections(lab: Lab) -> None:
    """As an operator who wants a change to count at once: RabbitMQ looks at users when they connect."""
    lab.cluster.ctl("close_all_user_connections", USER, "the operator wants it")


def close_connections_of(lab: Lab, pid: int) -> None:
    """Those of one process, at once."""
    lab.cluster.ctl("eval", _CLOSE.format(process=f"(pid {pid})"))


# The scenarios


@contextlib.contextmanager
def memory_alarm(lab: Lab) -> Iterator[None]:
    node = lab.cluster.running()  # later, another one may be the first to answer
    node.ctl("set_vm_memory_high_watermark", "0")
    try:
        yield
    finally:
        mend(lab, f"vm_memory_monitor:set_vm_memory_high_watermark({WATERMARK})", node)


@contextlib.contextmanager
def disk_alarm(lab: Lab) -> Iterator[None]:
    node = lab.cluster.running()
    node.ctl("set_disk_free_limit", TOO_MUCH)
    try:
        yield
    finally:
        mend(lab, f"rabbit_disk_monitor:set_disk_free_limit({DISK_LIMIT})", node)


def alarms(lab: Lab) -> None:
    """One after the other; of a stand-in, the first one says enough."""
    for alarm in (memory_alarm, disk_alarm)[: 1 if lab.stand_in else 2]:
        with lab.disturbed():
            with alarm(lab):
                is_refused(lab, "BrokerBlocked", "ConnectionBlockedTimeout")
            lab.goes_on()


@contextlib.contextmanager
def limited(lab: Lab, limits: dict[str, int]) -> Iterator[None]:
    lab.cluster.ctl("set_user_limits", USER, json.dumps(limits))
    try:
        yield
    finally:
        mend(lab, f'rabbit_auth_backend_internal:clear_user_limits({_USER}, <<"all">>, {_OPERATOR})')


def limits(lab: Lab) -> None:
    """There are more already: a process that has to connect again may not, and all others go on."""
    process = min(lab.server.children)
    for what in ("max-connections", "max-channels")[: 1 if lab.stand_in else 2]:
        with lab.disturbed():
            with limited(lab, {what: 1}):
                close_connections_of(lab, process)
                is_refused(lab, "BrokerRefused")
            lab.goes_on()


@contextlib.contextmanager
def permitted(lab: Lab, *permissions: str) -> Iterator[None]:
    """Configure, write, read; or nothing at all."""
    command = ("set_permissions", USER, *permissions) if permissions else ("clear_permissions", USER)
    lab.cluster.ctl(*command)
    try:
        yield
    finally:
        every = ", ".join(['<<".*">>'] * 3)
        mend(lab, f'rabbit_auth_backend_internal:set_permissions({_USER}, <<"/">>, {every}, {_OPERATOR})')


def revoke_permissions(lab: Lab) -> None:
    """All of them, and then that to write alone: the worker reads on."""
    for permissions, error in (((), "VirtualHostRefused"), ((".*", "^$", ".*"), "PublishRefused")):
        with lab.disturbed():
            with permitted(lab, *permissions):
                close_connections(lab)
                is_refused(lab, error)
            lab.goes_on()


def begin_again(lab: Lab) -> float:
    """Start the workers that were stopped; when the first of their handlers began."""
    begun = lab.ledger.begun()
    for worker in lab.workers:
        worker.start()
    wait_for(lambda: lab.ledger.begun() > begun, "a worker that handles something", 60)
    return lab.ledger.runs[begun].begun


def are_connected(lab: Lab, count: int) -> bool:
    """Whether the web server has so many processes, with a connection each."""
    pids = lab.server.children
    return len(pids) == count and all(lab.cluster.holder_of(f"(pid {pid})") for pid in pids)


def rotate_password(lab: Lab) -> None:
    """The broker first, the app last: meanwhile, it is refused, when it has to connect."""
    try:
        with lab.disturbed():
            lab.cluster.ctl("change_password", USER, NEW_PASSWORD)
            lab.goes_on()  # with the connections that there are
            close_connections(lab)
            is_refused(lab, "AuthenticationRefused")
            lab.password.write_text(NEW_PASSWORD)
            old = lab.server.children
            lab.server.signal(signal.SIGHUP)
            wait_for(lambda: not old & lab.server.children, "other processes", 60)
            lab.returned()
            for worker in lab.workers:
                worker.stop()
            begin_again(lab)
            lab.goes_on()
            # Each has connected before it is the old one again: one of the two may have answered them all.
            wait_for(lambda: are_connected(lab, len(old)), "a connection of each process", 60)
    finally:
        lab.password.unlink(missing_ok=True)
        lab.cluster.ctl("change_password", USER, PASSWORD)


def delete_what_it_publishes_to(lab: Lab) -> None:
    """The exchange, and then the queue; the app has registered neither."""
    with lab.disturbed():
        with lab.site.channel() as ch:
            ch.exchange_delete(lab.setting.exchange)
        is_refused(lab, "PublishRefused")
        lab.declare()
        lab.returned()
        lab.goes_on()
    with lab.disturbed():
        with lab.load.paused():  # under load, it is empty where the worker is faster
            wait_for(lambda: is_deleted(lab), "an empty queue, to be deleted")
        is_refused(lab, "Unroutable")
        lab.declare()
        lab.returned()
        lab.goes_on()


def is_deleted(lab: Lab) -> bool:
    """Whether the queue was empty, so that nobody loses anything by its end."""
    try:
        with lab.site.channel() as ch, lab.deletion():
            ch.queue_delete(lab.queue, if_empty=True)
    except pika.exceptions.ChannelClosedByBroker as exc:
        if exc.reply_code != NOT_EMPTY:
            raise
        return False
    return True


def fill_queue(lab: Lab) -> None:
    """Nobody consumes, until it is full and rejects; then it is drained."""
    with lab.disturbed():
        for worker in lab.workers:
            worker.stop()
        is_refused(lab, "Nacked")
        lab.returned(begin_again(lab))
        lab.goes_on()


SWALLOWS = {"swallows errors": "lost"}
NO_DEADLINE = {"no deadline": "later than its deadline"}
GEVENT = "gunicorn gevent"
#: Seconds that a publish may take where a refusal takes as long. Before and after, it must not pass.
SOON = 8.0
#: As many threads in each process as there are clients: nobody waits for a thread.
THREADS = ("--threads=8",)
#: What an app is told of what was under way.
UNKNOWN = ("PublishTimeout",)
SCENARIOS = [
    Refusal(
        3,
        "memory alarm and disk alarm, set and cleared",
        alarms,
        Setting(options=THREADS, timeout=SOON),
        NO_DEADLINE,
        must=["BrokerBlocked"],
        may=UNKNOWN,
    ),
    Refusal(
        3,
        "memory alarm and disk alarm, on pooled channels",
        alarms,
        Setting(
            server=GEVENT,
            path="pool",
            timeout=3.0,
            params={"blocked_connection_timeout": 3},
            pool={"pool_size": 8, "confirm_delivery": True},
            refusals=["ConnectionBlockedTimeout"],
        ),
        NO_DEADLINE,
        must=["ConnectionBlockedTimeout"],
    ),
    Refusal(
        3,
        "the user's limit of connections, and that of channels, is reached",
        limits,
        Setting(options=THREADS, timeout=SOON, refusals=["BrokerRefused"]),
        SWALLOWS,
        must=["BrokerRefused"],
        may=UNKNOWN,
    ),
    Refusal(
        3,
        "the user's limits are reached, on pooled channels",
        limits,
        Setting(path="pool", refusals=["BrokerRefused", *CLOSED]),
        SWALLOWS,
        must=["BrokerRefused"],
        may=CLOSED,
    ),
    Refusal(
        3,
        "the user's permissions are revoked, and given back",
        revoke_permissions,
        Setting(server=GEVENT, refusals=["VirtualHostRefused", "PublishRefused"]),
        must=["VirtualHostRefused", "PublishRefused"],
        may=UNKNOWN,
    ),
    Refusal(
        3,
        "the password is rotated: at the broker first, and then a reload of the app",
        rotate_password,
        Setting(options=THREADS, timeout=SOON, refusals=["AuthenticationRefused"]),
        SWALLOWS,
        must=["AuthenticationRefused"],
        may=UNKNOWN,
    ),
    Refusal(
        3,
        "exchange and queue are deleted, and declared again",
        delete_what_it_publishes_to,
        Setting(
            options=THREADS,
            exchange="lab-exchange",
            queue={"x-queue-type": "classic"},
            refusals=["PublishRefused", "Unroutable"],
        ),
        must=["PublishRefused", "Unroutable"],
    ),
    Refusal(
        3,
        "the queue is full, and rejects; then it is drained",
        fill_queue,
        Setting(
            server=GEVENT,
            queue={"x-queue-type": "quorum", "x-max-length": 200, "x-overflow": "reject-publish"},
            refusals=["Nacked"],
            anytime=["Nacked"],
        ),
        must=["Nacked"],
    ),
]


@pytest.fixture(scope="module")
def calm(site: Site) -> Site:
    """The site, whole as it was; nothing here takes nodes or networks away."""
    return site.made_whole()


@_lab.parametrize(*SCENARIOS)
def test_nothing_is_lost(scenario: Refusal, round_: int, calm: Site, report: Report, grace: float) -> None:
    _lab.run(scenario, calm, report, grace=grace)
    refused = set(report.row(scenario.group, scenario.name).refused)
    assert refused >= set(scenario.must), "nothing was refused"
    assert refused <= {*scenario.must, *scenario.may}, "it has another name"


@_lab.parametrize_stand_ins(*SCENARIOS)
def test_a_stand_in_is_caught(scenario: Refusal, stand_in: str, calm: Site, report: Report) -> None:
    _lab.run_stand_in(scenario, stand_in, calm, report)
