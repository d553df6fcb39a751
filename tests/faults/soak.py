"""``make soak``: 20 minutes under load, with what each process has of memory, files and threads.

Each second it is noted what each process of the app has, and how many connections and channels RabbitMQ has.
In the end it is decided whether that is flat, and whether the books balance; if not, the exit code is 1.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import contextlib
import csv
import datetime
import importlib
import json
import os
import platform
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.conftest import wait_for
from tests.faults import report
from tests.faults.books import Books
from tests.faults.flat import Judged, judge_all
from tests.faults.lab import LOST, Lab, Setting, Site, open_site
from tests.faults.programs import ROOT
from tests.faults.searching import Search
from tools.rabbitmq_node import RabbitMQNode

#: What may be raised when a node is restarted.
REFUSALS = (*LOST, "Nacked")
PACE = 0.1
CLIENTS = 8
#: Minutes from one restart of a node to the next, and the shortest soak that has faults at all.
EVERY = 3.0
SHORTEST = 4.0
#: Seconds after which what a node wrote of itself is of the past.
_STALE = 5.0
_MB = 2**20
#: What a node writes each second, for so many seconds: how many connections and channels it has.
_COUNT = """
    F = fun(_, 0) -> ok; (Self, N) ->
        Counts = [ets:info(connection_created, size), ets:info(channel_created, size)],
        ok = file:write_file("{path}.new", io_lib:format("~b ~b", Counts)),
        ok = file:rename("{path}.new", "{path}"),
        timer:sleep(1000), Self(Self, N - 1)
    end, spawn(fun() -> F(F, {seconds}) end).
"""


@dataclass(frozen=True)
class Sample:
    """What one process had at one moment, or RabbitMQ."""

    seconds: float
    who: str
    values: dict[str, float]


@dataclass
class Outcome:
    """What came of it."""

    samples: list[Sample]
    judged: list[Judged]
    books: Books
    faults: list[tuple[float, str]]
    problems: list[str]

    @property
    def grown(self) -> list[Judged]:
        return [one for one in self.judged if not one.is_flat]

    @property
    def is_good(self) -> bool:
        return not self.grown and not self.books.findings() and not self.problems


def setting(minutes: float, options: Sequence[str] = ()) -> Setting:
    """Load that is moderate, on publisher and pool, for so long."""
    return Setting(
        path="publish,pool",
        clients=CLIENTS,
        pace=PACE,
        most=int(minutes * 60 * CLIENTS / PACE * 2),
        refusals=REFUSALS,
        options=options,
        # No more than one of a process is opened late, when the broker stands still and all ask at once.
        pool={"pool_size": 2, "confirm_delivery": True},
    )


class Soak:
    """A lab under load, that is watched."""

    def __init__(self, lab: Lab, minutes: float) -> None:
        self._lab, self._minutes = lab, minutes
        self._began = time.monotonic()
        self._web: dict[int, str] = {}
        self._over = threading.Event()
        self.samples: list[Sample] = []
        self.faults: list[tuple[float, str]] = []
        self.problems: list[str] = []

    def run(self) -> None:
        """Sample each second until the time is over; faults come from a thread of their own."""
        with concurrent.futures.ThreadPoolExecutor() as pool:
            list(pool.map(self._count, self._lab.cluster.nodes))
        self._began = time.monotonic()
        troubles = threading.Thread(target=self._trouble, name="faults")
        troubles.start()
        ticks = 0
        try:
            while (seconds := time.monotonic() - self._began) < self._minutes * 60:
                self.samples += self._look(seconds)
                ticks += 1
                self._over.wait(max(0.0, self._began + ticks - time.monotonic()))
        finally:
            self._over.set()
            troubles.join()

    # Faults

    def _trouble(self) -> None:
        """A node is restarted every few minutes, one after the other; HUP, early and late."""
        plan: list[tuple[float, str, Callable[[], None]]] = []
        if self._minutes >= SHORTEST:
            at, number = EVERY / 2, 0
            while at < self._minutes - 1:
                node = self._lab.cluster.nodes[number % len(self._lab.cluster.nodes)]
                plan.append((at, "a node is restarted", lambda node=node: self._restart(node)))  # type: ignore[misc]
                at, number = at + EVERY, number + 1
            # Between the two, gunicorn's workers live long enough to be judged.
            plan += [(self._minutes * share, "HUP", self._hup) for share in (0.2, 0.9)]
        for at, name, work in sorted(plan, key=lambda one: one[0]):
            if self._over.wait(max(0.0, self._began + at * 60 - time.monotonic())):
                return
            self.faults.append((time.monotonic() - self._began, name))
            try:
                work()
            except Exception:
                self.problems.append(traceback.format_exc())
                return

    def _restart(self, node: RabbitMQNode) -> None:
        with self._lab.disturbed():
            node.restart()
            self._lab.cluster.wait_until_whole()
            self._lab.returned()
        self._count(node)

    def _hup(self) -> None:
        """New workers take over; the old ones finish what they have."""
        before = self._lab.server.children
        with self._lab.disturbed():
            self._lab.server.signal(signal.SIGHUP)
            wait_for(lambda: not before & self._lab.server.children, "the old workers' end", 60)

    # Samples

    def _count(self, node: RabbitMQNode) -> None:
        seconds = int(self._minutes * 60) + 120
        node.ctl("eval", _COUNT.format(path=self._counts(node), seconds=seconds))

    def _counts(self, node: RabbitMQNode) -> Path:
        return self._lab.place / f"counts-{node.port}"

    def _look(self, seconds: float) -> Iterator[Sample]:
        for who, pid in self._processes():
            with contextlib.suppress(OSError, ValueError):  # it has gone meanwhile
                yield Sample(seconds, who, measure(pid))
        counts = [self._read(node) for node in self._lab.cluster.nodes]
        connections, channels = (float(sum(numbers)) for numbers in zip(*counts, strict=True))
        yield Sample(seconds, "RabbitMQ", {"connections": connections, "channels": channels})

    def _read(self, node: RabbitMQNode) -> tuple[int, int]:
        path = self._counts(node)
        try:
            if time.time() - path.stat().st_mtime > _STALE:
                return 0, 0
            connections, channels = path.read_text().split()
        except (OSError, ValueError):
            return 0, 0
        return int(connections), int(channels)

    def _processes(self) -> Iterator[tuple[str, int]]:
        server = self._lab.server
        yield "gunicorn", server.pid
        for pid in sorted(server.children):
            yield self._web.setdefault(pid, f"web worker {len(self._web) + 1}"), pid
        for number, worker in enumerate(self._lab.workers, 1):
            yield f"consumers {number}", worker.pid
            for child in sorted(worker.children):
                yield f"consumers {number}, child", child


def measure(pid: int) -> dict[str, float]:
    """What a process has, as Linux's /proc tells."""
    place = Path("/proc") / str(pid)
    lines = dict(line.split(":", 1) for line in (place / "status").read_text().splitlines())
    return {
        "memory, MB": int(lines["VmRSS"].split()[0]) * 1024 / _MB,
        "open files": float(len(os.listdir(place / "fd"))),
        "threads": float(lines["Threads"]),
    }


def soak(site: Site, minutes: float, grace: float, options: Sequence[str] = ()) -> Outcome:
    """Run it on a cluster that is whole, and judge."""
    with Lab(site, setting(minutes, options), grace) as lab:
        lab.goes_on()
        watched = Soak(lab, minutes)
        try:
            watched.run()
            books = lab.settle()
        finally:  # also of one that ends badly, of which it is of more interest
            write_csv(watched.samples, lab.place / "samples.csv")
    every = by_process(watched.samples)
    judged = judge_all(
        {
            who: {what: [v for _, v in points] for what, points in those.items()}
            for who, those in every.items()
        },
        len({sample.seconds for sample in watched.samples}),
    )
    return Outcome(watched.samples, judged, books, watched.faults, watched.problems)


Points = list[tuple[float, float]]


def by_process(samples: Sequence[Sample]) -> dict[str, dict[str, Points]]:
    """For each process, and each thing that was measured of it: when, and how much."""
    found: dict[str, dict[str, Points]] = {}
    for sample in samples:
        for what, value in sample.values.items():
            found.setdefault(sample.who, {}).setdefault(what, []).append((sample.seconds, value))
    return found


# What is written


def write_csv(samples: Sequence[Sample], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["seconds", "who", "what", "value"])
        for sample in samples:
            for what, value in sample.values.items():
                writer.writerow([f"{sample.seconds:.1f}", sample.who, what, f"{value:g}"])


def summary(outcome: Outcome, minutes: float, broker: str) -> dict[str, Any]:
    """What the report shows."""
    books = outcome.books
    return {
        "date": datetime.date.today().isoformat(),
        "on": f"Python {platform.python_version()}, {broker}, {platform.system()} on {platform.machine()}",
        "minutes": minutes,
        "tried": len(books.answers),
        "accepted": len(books.accepted),
        "refused": dict(books.refused),
        "lost": len(books.findings().get("lost", ())),
        "twice": len(books.twice),
        "faults": dict(collections.Counter(name for _, name in outcome.faults)),
        "judged": [{**asdict(one), "is_flat": one.is_flat} for one in outcome.judged],
        "good": outcome.is_good,
    }


def draw(outcome: Outcome, path: Path) -> None:
    """A small plot, for light and dark grounds: no ground of its own, and colours between the two."""
    matplotlib: Any = importlib.import_module("matplotlib")  # not among what the tests need
    matplotlib.use("svg")
    grey = "#808890"
    colours = ["#3b8fd4", "#d9822b", "#3a9d5d", "#b565c8", "#c9504f", "#8a8f2a", "#2a9d9d"]
    style = {"svg.fonttype": "none", "svg.hashsalt": "soak", "font.size": 8, "axes.edgecolor": grey}
    style |= dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), grey)
    matplotlib.rcParams.update(style)
    plt: Any = importlib.import_module("matplotlib.pyplot")
    figure, axes = plt.subplots(4, 1, figsize=(7, 7), sharex=True)
    every = by_process(outcome.samples)
    whats = [["memory, MB"], ["open files"], ["threads"], ["connections", "channels"]]
    colour = {who: colours[number % len(colours)] for number, who in enumerate(sorted(every))}
    for axis, named in zip(axes, whats, strict=True):
        for what in named:
            for who in sorted(every):
                points = every[who].get(what, [])
                # A point each few seconds is as much as can be seen.
                points = points[:: max(1, len(points) // 200)]
                label, style_of = (who, "-") if what != "channels" else ("channels", "--")
                label = "connections" if what == "connections" else label
                xs, ys = [second / 60 for second, _ in points], [value for _, value in points]
                if points:
                    axis.plot(xs, ys, style_of, label=label, color=colour[who], linewidth=1)
        for second, _ in outcome.faults:
            axis.axvline(second / 60, color=grey, linewidth=0.5, linestyle=":")
        axis.set_ylim(bottom=0)
        axis.set_title(", ".join(named) if len(named) == 1 else "RabbitMQ", fontsize=8, loc="left")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(fontsize=7, ncols=4, frameon=False)
    axes[-1].legend(fontsize=7, ncols=2, frameon=False)
    axes[-1].set_xlabel("minutes; dotted: a node restarted, or gunicorn reloaded")
    figure.tight_layout()
    figure.savefig(path, transparent=True, metadata={"Date": None})
    plt.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where soak.json and the plot go")
    parser.add_argument("--no-plot", action="store_true", help="matplotlib is not needed then")
    chosen = parser.parse_args()
    # It stays: what it was is of interest when something has grown.
    records = Path(tempfile.mkdtemp(prefix="soak-"))
    say(f"{chosen.minutes:g} minutes; logs and samples are in {records}")
    with open_site(records) as site:
        broker = f"RabbitMQ {site.cluster.ctl('version').strip()}"
        outcome = soak(site, chosen.minutes, grace=10.0)
    try:
        Search(records).check()
    except AssertionError as exc:
        outcome.problems.append(str(exc))
    told = summary(outcome, chosen.minutes, broker)
    (chosen.docs / report.SOAK).write_text(json.dumps(told, indent=1) + "\n")
    (chosen.docs / report.SOAK_PLOT).parent.mkdir(exist_ok=True)
    if not chosen.no_plot:
        draw(outcome, chosen.docs / report.SOAK_PLOT)
    page = chosen.docs / "reliability.md"
    if page.exists():
        page.write_text(report.with_soak(page.read_text(), chosen.docs))
    for line in report.soak_section(chosen.docs):
        say(line)
    for kind, those in outcome.books.findings().items():
        say(f"{kind}: {len(those)}: {those[:5]}")
    for problem in outcome.problems:
        say(problem)
    return 0 if outcome.is_good else 1


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
