"""Scenarios 4: what a deployment does to its own processes; and forks, descriptors and clocks."""

from __future__ import annotations

import contextlib
import os
import signal
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.conftest import wait_for
from tests.faults import lab as _lab
from tests.faults.lab import Lab, Scenario, Setting, Site
from tests.faults.mishaps import EATEN, NONE_LEFT, set_clock
from tests.faults.programs import SERVERS, Program
from tests.faults.report import Report
from tests.other_processes import is_there, stop

pytestmark = [pytest.mark.broker, pytest.mark.faults, pytest.mark.timeout(600)]

GROUP = 4
#: Seconds that a handler takes where workers are ended and killed.
WORK = 0.1
#: As much load as a worker can handle: what is left in the end is little.
BUSY = Setting(work=WORK, pace=WORK)


# What the scenarios are made of


@contextlib.contextmanager
def in_hand(lab: Lab) -> Iterator[None]:
    """The network stands still, and each client waits for the confirm of what it has asked for."""
    try:
        for proxy in lab.proxies:
            proxy.freeze()
        lab.is_held_up()
        yield
    finally:
        for proxy in lab.proxies:
            proxy.restore()


def replaced(program: Program, gone: set[int], count: int) -> None:
    """Wait until a program has other children in the place of those, so many in all."""
    wait_for(
        lambda: not program.children & gone and len(program.children) == count,
        lambda: f"{count} others than {gone}; there are {program.children}",
        60,
    )


def processes(lab: Lab, worker: Program) -> list[int]:
    """Those of a worker that run handlers, when all of them are there: the load does not wait for them."""
    if "--processes=2" not in lab.setting.worker_options:
        return [worker.pid]
    replaced(worker, set(), 2)
    return sorted(worker.children)


def signal_at_work(lab: Lab, pid: int, number: signal.Signals) -> None:
    """Send a process a signal while it runs handlers: it is held in the midst of one until it has it."""

    def at_work() -> set[str]:
        # For a while, in which it runs: what it does first, it has done.
        late = time.monotonic() - WORK / 4
        return {run.id for run in lab.ledger.of(None) if run.pid == pid and run.begun < late}

    def is_held_at_work() -> bool:
        before = at_work()
        if not before:
            return False
        stop(pid)
        if before & at_work():
            return True
        os.kill(pid, signal.SIGCONT)
        return False

    wait_for(is_held_at_work, lambda: f"a handler that {pid} runs")
    os.kill(pid, number)
    with contextlib.suppress(ProcessLookupError):  # it is killed, and its parent has noticed
        os.kill(pid, signal.SIGCONT)


# Web servers


def web_processes(lab: Lab) -> set[int]:
    """The children of the web server, when all of them are there: the first one answers before."""
    if lab.setting.server == "waitress":
        return set()
    replaced(lab.server, set(), 2)
    return lab.server.children


def kill_web_processes(lab: Lab) -> None:
    """One after the other, each with messages under way. Of these, none comes twice: who would send it?"""
    for pid in sorted(web_processes(lab)) or [lab.server.pid]:
        before = lab.server.children
        with in_hand(lab):
            os.kill(pid, signal.SIGKILL)
        if before:
            lab.returned()
            replaced(lab.server, {pid}, len(before))
        else:  # its supervisor is the lab
            assert lab.server.stop() == -signal.SIGKILL
            lab.server.start()
            lab.returned()
        lab.goes_on()


def end_web_processes(lab: Lab) -> None:
    """One after the other; what they have taken, they answer."""
    for pid in sorted(web_processes(lab)):
        before = lab.server.children
        with in_hand(lab):
            os.kill(pid, signal.SIGTERM)
        replaced(lab.server, {pid}, len(before))
        lab.goes_on()


def reload(lab: Lab) -> None:
    """With messages under way: new processes start, and the old ones answer what they have taken."""
    before = web_processes(lab)
    with in_hand(lab):
        lab.server.signal(signal.SIGHUP)
    replaced(lab.server, before, len(before))
    lab.goes_on()


def recycle(lab: Lab) -> None:
    """Processes end after some 50 requests, and others take their place."""
    wait_for(
        lambda: lab.server.said.count("Autorestarting worker") >= 6 or lab.load.is_over,
        lambda: f"processes that were recycled:\n{lab.server.said[-2000:]}",
        120,
    )
    assert not lab.load.is_over


# Workers


def end_workers(lab: Lab) -> None:
    """It ends in order while its handlers run. Nothing comes twice of it."""
    for worker in lab.workers:
        for pid in processes(lab, worker):
            signal_at_work(lab, pid, signal.SIGTERM)
        code = worker.stop()
        assert code == 0 or lab.stand_in, f"its exit code is {code}:\n{worker.said[-2000:]}"
        worker.start()
        lab.goes_on()


def kill_workers(lab: Lab) -> None:
    """A stand-in several times: its ack may not be on its way yet."""
    for worker in lab.workers * (4 if lab.stand_in else 1):
        with lab.disturbed():
            signal_at_work(lab, worker.pid, signal.SIGKILL)
            assert worker.stop() == -signal.SIGKILL
            worker.start()
            lab.goes_on()


def kill_worker_processes(lab: Lab) -> None:
    """First its children, in turn, which it replaces; then the parent, whose children leave by themselves."""
    (worker,) = lab.workers
    for pid in processes(lab, worker):
        with lab.disturbed():
            signal_at_work(lab, pid, signal.SIGKILL)
            replaced(worker, {pid}, 2)
            lab.goes_on()
    orphans = worker.children
    with lab.disturbed():
        worker.signal(signal.SIGKILL)
        assert worker.stop() == -signal.SIGKILL
        wait_for(lambda: not any(map(is_there, orphans)), f"the end of {orphans}", 60)
        worker.start()
        lab.goes_on()


# The process itself


def fork(lab: Lab) -> None:
    """While others publish, views fork children that publish; they are in the load."""
    lab.goes_on(200)


def run_out_of_descriptors(lab: Lab) -> None:
    """It has none left, and has to connect anew. What it has in hand gets an error, the rest is served."""
    flag = lab.place / EATEN
    with lab.disturbed():
        with in_hand(lab):
            begun = len(lab.load.answers)  # each client waits: the next eight are what it has in hand
            flag.touch()
            urllib.request.urlopen(urllib.request.Request(f"{lab.server.base}/eat", method="POST")).close()
            wait_for(lambda: NONE_LEFT in lab.server.said, "the last descriptor's end")
            for proxy in lab.proxies:
                proxy.cut()
        # A stand-in has nothing in hand, and without a descriptor nobody who comes is let in.
        wait_for(
            lambda: len(lab.load.answers) >= begun + 8 or lab.load.is_over or lab.stand_in,
            lambda: f"8 errors; the last answers: {lab.load.answers[-3:]}",
            60,
        )
        flag.unlink()
        lab.returned()
        lab.goes_on()


def set_clocks(lab: Lab) -> None:
    """An hour forward, two back, and right again; with messages under way, and connections cut after each."""
    for seconds in (3600.0, -3600.0, 0.0):
        with lab.disturbed():
            with in_hand(lab):
                begun = len(lab.load.answers)
                set_clock(lab.place, seconds)
                if lab.stand_in and seconds > 0:  # it gives up before the confirms come, and not after
                    wait_for(lambda n=begun: len(lab.load.answers) > n, "a timeout")  # type: ignore[misc]
            lab.goes_on()
            for proxy in lab.proxies:
                proxy.cut()
            lab.returned()
            lab.goes_on()


SCENARIOS = [
    *(
        Scenario(
            GROUP,
            f"SIGKILL of each process of {server}",
            kill_web_processes,
            Setting(server=server, unanswered=True),
            {"answers first": "lost"},
        )
        for server in SERVERS
    ),
    Scenario(
        GROUP,
        "SIGTERM of each process of gunicorn",
        end_web_processes,
        stand_ins={"answers first": "lost"},
    ),
    Scenario(
        GROUP,
        "HUP: gunicorn reloads",
        reload,
        Setting(server="gunicorn gevent"),
        {"answers first": "lost"},
    ),
    Scenario(
        GROUP,
        "HUP: gunicorn reloads, preloaded",
        reload,
        Setting(server="gunicorn gthread, preload"),
        {"answers first": "lost"},
    ),
    Scenario(
        GROUP,
        "gunicorn recycles its processes, by max_requests",
        recycle,
        Setting(options=["--max-requests=50", "--max-requests-jitter=10"]),
        {"answers first": "lost"},
    ),
    Scenario(GROUP, "SIGTERM of a worker", end_workers, BUSY, {"no drain": "twice without a cause"}),
    Scenario(
        GROUP,
        "SIGTERM of a worker of 2 processes",
        end_workers,
        replace(BUSY, worker_options=["--processes=2"]),
        {"no drain": "twice without a cause"},
    ),
    Scenario(GROUP, "SIGKILL of a worker", kill_workers, BUSY, {"ack first": "lost"}),
    Scenario(
        GROUP,
        "SIGKILL of a worker's processes, and of their parent",
        kill_worker_processes,
        replace(BUSY, worker_options=["--processes=2"]),
        {"ack first": "lost"},
    ),
    Scenario(
        GROUP,
        "views fork children that publish",
        fork,
        Setting(path="fork"),
        {"takes itself for its parent": "an error that nobody named"},
    ),
    Scenario(
        GROUP,
        "a process runs out of file descriptors",
        run_out_of_descriptors,
        Setting(server="waitress", options=["--no-log-socket-errors", "--threads=16"], timeout=8.0),
        {"no confirms": "lost"},
    ),
    Scenario(
        GROUP,
        "the wall clock is set an hour forward, and two back",
        set_clocks,
        Setting(env={"WALL_CLOCK": "1"}),
        {"wall clock": "an error without a cause"},
    ),
]


@_lab.parametrize(*SCENARIOS)
def test_nothing_is_lost(scenario: Scenario, round_: int, whole: Site, report: Report, grace: float) -> None:
    lab = _lab.run(scenario, whole, report, grace=grace)
    for program in (lab.server, *lab.workers):
        assert not program.left_over, f"processes are left:\n{program.said[-2000:]}"
    wait_for(lambda: not connections(whole), lambda: f"no connection; there are {connections(whole)}")


def connections(site: Site) -> list[str]:
    """Those of the lab's programs that the broker still has."""
    found = site.cluster.ctl("list_connections", "pid", "client_properties")
    return [line for line in found.splitlines() if "lab on" in line]


@_lab.parametrize_stand_ins(*SCENARIOS)
def test_a_stand_in_is_caught(scenario: Scenario, stand_in: str, whole: Site, report: Report) -> None:
    _lab.run_stand_in(scenario, stand_in, whole, report)
