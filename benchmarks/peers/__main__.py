"""Flask-Pika beside its peers: ``python -m benchmarks.peers [--quick] [--alone] [WORKLOAD ...]``.

It starts a RabbitMQ node of its own on loopback. Each candidate has a process of its own, in an environment
of its own where it cannot share one. They take turns, round by round, and what counts is the ratio within a
round: absolute figures of a shared machine mean little.

What comes of a workload is written to ``benchmarks/results/<workload>.json``; ``python -m benchmarks.page``
makes the tables and plots of ``docs/benchmarks.md`` of it.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import os
import platform
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pika

from benchmarks.peers.base import Figures
from benchmarks.peers.environments import ROOT, Missing, clean
from benchmarks.peers.running import Failed, Lab, NotThere
from benchmarks.peers.workloads import WORKLOADS, Candidate, Setting, Workload
from benchmarks.tables import table_of

RESULTS = ROOT / "benchmarks" / "results"
ROUNDS = 5
SECONDS = 0.5
#: Seconds of a run of which no more is wanted than that it runs.
QUICK = 0.05


class Entry:
    """What one candidate did in one setting."""

    def __init__(self, candidate: Candidate) -> None:
        self.candidate = candidate
        self.samples: list[Figures] = []
        self.error = ""
        self.not_offered = ""
        self.count = 0

    @property
    def goes_on(self) -> bool:
        return not self.error and not self.not_offered

    def as_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "name": self.candidate.name,
            "ours": self.candidate.is_ours,
            "reference": self.candidate.is_reference,
            "note": self.candidate.note,
        }
        if self.error:
            found["error"] = self.error
        if self.not_offered:
            found["not_offered"] = self.not_offered
        found["samples"] = [{name: float(f"{v:.5g}") for name, v in s.items()} for s in self.samples]
        return found


def enough(workload: Workload, first: Figures, seconds: float) -> int:
    """How many messages take about so long."""
    if "seconds" not in first:
        return workload.few
    rate = first["count"] / max(first["seconds"], 1e-6)
    return int(min(workload.most, rate * seconds * workload.share))


def attempt(lab: Lab, workload: Workload, setting: Setting, entry: Entry, count: int) -> Figures | None:
    gc.collect()
    try:
        return lab.run(entry.candidate, workload.work, dict(setting.values), count)
    except NotThere as exc:
        entry.not_offered = str(exc)
    except (Failed, Missing) as exc:
        entry.error = str(exc)
    except (subprocess.TimeoutExpired, pika.exceptions.AMQPError) as exc:
        entry.error = clean(f"{type(exc).__name__}: {exc}")
    finally:
        if workload.is_fresh or entry.candidate.leaves_connections:
            lab.dismiss(entry.candidate)
    return None


def calibrated(lab: Lab, workload: Workload, setting: Setting, entry: Entry, seconds: float) -> int:
    """How many messages take about so long, by runs that have taken about so long: they warm up, too."""
    least = max(workload.least, setting.least_for(entry.candidate, workload.work))
    # Threads, each of them, have something to do.
    count = max(workload.few, 2 * int(setting.values.get("threads", 1)))
    for _ in range(4):
        figures = attempt(lab, workload, setting, entry, count)
        if figures is None:
            return 0
        before, count = count, max(enough(workload, figures, seconds), least)
        if before >= 0.7 * count:
            break
    return count


def compare(lab: Lab, workload: Workload, setting: Setting, rounds: int, seconds: float) -> list[Entry]:
    """All candidates in one setting, in another order each round."""
    entries = [Entry(candidate) for candidate in workload.candidates]
    for entry in entries:
        if workload.work == "view":
            attempt(lab, workload, setting, entry, 0)
            entry.count = int(seconds * workload.share * 100)
        elif seconds > QUICK:
            entry.count = calibrated(lab, workload, setting, entry, seconds)
        else:
            entry.count = min(workload.few, 500)
    # Seeded, so that two runs of the same are the same.
    shuffled = random.Random(f"{workload.name} {setting.title}")
    for _ in range(rounds):
        shuffled.shuffle(entries)
        for entry in entries:
            if entry.goes_on and (figures := attempt(lab, workload, setting, entry, entry.count)) is not None:
                entry.samples.append(figures)
    order = [candidate.name for candidate in workload.candidates]
    return sorted(entries, key=lambda entry: order.index(entry.candidate.name))


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    told: dict[str, str] = {}
    for path in (Path("/proc/cpuinfo"), Path("/proc/meminfo")):
        lines = path.read_text().splitlines() if path.exists() else []
        told |= {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return {
        "cores": os.cpu_count(),
        "processor": told.get("model name") or platform.machine(),
        "memory": f"{int(told.get('MemTotal', '0 kB').split()[0]) / 2**20:.0f} GiB",
        "is_virtual": "hypervisor" in told.get("flags", "").split(),
        "kernel": f"{platform.system()} {platform.release()}",
    }


def wrk_version() -> dict[str, str]:
    if shutil.which("wrk") is None:
        return {}
    said = subprocess.run(["wrk", "-v"], capture_output=True, text=True, check=False, timeout=10)
    found = re.search(r"\d+\.\d+[\w.-]*", said.stdout + said.stderr)
    return {"wrk": found[0]} if found else {}


def measure(
    lab: Lab, workload: Workload, rounds: int, seconds: float, quick: bool, command: str
) -> dict[str, Any]:
    if quick:
        # Each candidate once is enough, and a few of those that start anew each time.
        starts = workload.is_fresh or workload.work == "view"
        few = workload.candidates[:3] if starts else workload.candidates
        workload = replace(workload, settings=workload.settings[:1], candidates=few)
    began = time.monotonic()
    loads = [os.getloadavg()[0]]
    found = []
    for setting in workload.settings:
        entries = compare(lab, workload, setting, rounds, seconds)
        loads.append(os.getloadavg()[0])
        found.append({"title": setting.title, "candidates": [entry.as_json() for entry in entries]})
    if not quick:
        lab.dismiss()
    versions: dict[str, str] = {}
    for candidate in workload.candidates:
        found_ones = lab.versions.get(candidate.name, {})
        # Of two Flask-Pikas, the old one has its version in its name.
        versions |= {k: v for k, v in found_ones.items() if k != "Flask-Pika" or candidate.is_ours}
    return {
        "workload": workload.name,
        "title": workload.title,
        "figure": workload.figure,
        "ours": list(workload.ours),
        "command": command,
        "date": datetime.date.today().isoformat(),
        "rounds": rounds,
        "seconds": seconds,
        "took": round(time.monotonic() - began),
        "machine": machine(),
        "load": [min(loads), max(loads)],
        "versions": {
            "Python": platform.python_version(),
            "RabbitMQ": lab.node.ctl("version").strip(),
            "Erlang": lab.node.evaluate("list_to_atom(erlang:system_info(otp_release)).").strip("'"),
            **(wrk_version() if workload.work == "view" else {}),
            **dict(sorted(versions.items(), key=lambda pair: pair[0].lower())),
        },
        "settings": found,
    }


def chosen(names: list[str]) -> Iterator[Workload]:
    for workload in WORKLOADS:
        if not names or workload.name in names:
            yield workload


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description="Flask-Pika and its peers."
    )
    known = [workload.name for workload in WORKLOADS]
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help=f"some of: {', '.join(known)}")
    parser.add_argument("--rounds", type=_positive(int), default=ROUNDS, help="default: %(default)s")
    parser.add_argument(
        "--seconds", type=_positive(float), default=SECONDS, help="of each run; default: %(default)s"
    )
    parser.add_argument("--results", type=Path, help="where the JSON goes; default: benchmarks/results")
    parser.add_argument("--quick", action="store_true", help="only see that it runs; nothing is written")
    parser.add_argument("--alone", action="store_true", help="only who is installed beside Flask-Pika")
    options = parser.parse_args()
    if unknown := set(options.workloads) - set(known):
        parser.error(f"no such workload: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    usual = (options.rounds, options.seconds, options.alone) == (ROUNDS, SECONDS, False)
    if not usual and not options.quick and options.results is None:
        parser.error("other rounds or seconds, and --alone, are not for the page: name another --results")
    views = [workload for workload in chosen(options.workloads) if workload.work == "view"]
    if views and not options.quick and shutil.which("wrk") is None:
        parser.error("wrk is not installed: run scripts/ensure-wrk, or name the other workloads")
    for told in (signal.SIGTERM, signal.SIGHUP):  # it ends what it has started
        signal.signal(told, lambda number, _frame: sys.exit(128 + number))
    rounds, seconds = (1, QUICK) if options.quick else (options.rounds, options.seconds)
    with Lab(options.alone) as lab:
        for workload in chosen(options.workloads):
            command = f"python -m benchmarks.peers {workload.name}"
            if not usual:
                command += f" --rounds={rounds} --seconds={seconds:g}" + " --alone" * options.alone
            result = measure(lab, workload, rounds, seconds, options.quick, command)
            print(f"\n## {workload.title}: {result['took']} s", flush=True)
            for number in range(len(result["settings"])):
                print("\n" + "\n".join(table_of(result, number)), flush=True)
            if not options.quick:
                write(options.results or RESULTS, result)
    return 0


def write(place: Path, result: dict[str, Any]) -> None:
    """All of it, or nothing."""
    place.mkdir(exist_ok=True)
    path = place / f"{result['workload']}.json"
    half = path.with_suffix(".part")
    half.write_text(json.dumps(result, indent=1) + "\n")
    half.replace(path)


def _positive(kind: type[int | float]) -> Callable[[str], float]:
    def read(text: str) -> float:
        value = kind(text)
        if not 0 < value < 10_000:
            raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
        return value

    return read


if __name__ == "__main__":
    sys.exit(main())
