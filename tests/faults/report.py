"""What the lab has tried and found, as the table of ``docs/reliability.md``."""

from __future__ import annotations

import collections
import datetime
import json
import math
import platform
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.books import Books

#: The groups of scenarios, by their numbers.
GROUPS = {
    1: "Nodes of a cluster",
    2: "The network",
    3: "What a broker refuses",
    4: "Servers, workers and processes",
    5: "TLS",
    6: "A pool that is used badly",
    7: "Soak",
    8: "Bad input and bad peers",
}
#: What ``make soak`` leaves in the documentation's directory: its summary and its plot.
SOAK = "soak.json"
SOAK_PLOT = "images/soak.svg"
#: Seconds from the return of what was broken to the first success: of each scenario, the median is below it.
RECOVERY = 1.0


@dataclass
class Row:
    """One scenario, and what was seen of it in all its rounds.

    :ivar setting: the server and whatever else it ran with.
    :ivar tried: requests, checkouts, messages: whatever the scenario does again and again.
    :ivar accepted: how many were confirmed.
    :ivar refused: errors, by name.
    :ivar lost: accepted and never committed.
    :ivar twice: committed more than once, as a disturbance allows.
    :ivar longest_over: seconds by which the slowest one was beyond its deadline; None: it has none.
    :ivar recoveries: seconds from each return of what was broken to the first success.
    :ivar caught: which broken stand-in was caught, and how.
    """

    group: int
    name: str
    setting: str = ""
    rounds: int = 0
    tried: int = 0
    accepted: int = 0
    refused: collections.Counter[str] = field(default_factory=collections.Counter)
    lost: int = 0
    twice: int = 0
    longest_over: float | None = None
    recoveries: list[float] = field(default_factory=list)
    caught: dict[str, str] = field(default_factory=dict)

    @property
    def recovery(self) -> float:
        """Seconds, the median; NaN: there was nothing to come back from."""
        return statistics.median(self.recoveries) if self.recoveries else math.nan


class Report:
    """Rows, as they come; a scenario that is run again adds to its row."""

    def __init__(self) -> None:
        self._rows: dict[tuple[int, str], Row] = {}

    def row(self, group: int, name: str) -> Row:
        """The row of this scenario, new or begun already."""
        return self._rows.setdefault((group, name), Row(group, name))

    def add(
        self,
        group: int,
        name: str,
        *,
        setting: str = "",
        tried: int,
        accepted: int,
        refused: collections.Counter[str] | None = None,
        lost: int = 0,
        twice: int = 0,
        longest_over: float | None = None,
        recoveries: Sequence[float] = (),
    ) -> None:
        """One more round of a scenario."""
        row = self.row(group, name)
        row.setting = setting or row.setting
        row.rounds += 1
        row.tried += tried
        row.accepted += accepted
        row.refused.update(refused or {})
        row.lost += lost
        row.twice += twice
        if longest_over is not None:
            row.longest_over = max(longest_over, -math.inf if row.longest_over is None else row.longest_over)
        row.recoveries.extend(recoveries)

    def add_books(self, group: int, name: str, setting: str, books: Books) -> None:
        """One more round, of which there are books."""
        self.add(
            group,
            name,
            setting=setting,
            tried=len(books.answers),
            accepted=len(books.accepted),
            refused=books.refused,
            lost=len(books.lost),
            twice=len(books.twice),
            longest_over=books.longest_over,
            recoveries=books.recoveries,
        )

    def add_caught(self, group: int, name: str, stand_in: str, how: str) -> None:
        """A stand-in that the scenario caught, and how it showed."""
        self.row(group, name).caught[stand_in] = how

    @property
    def rows(self) -> list[Row]:
        return sorted(self._rows.values(), key=lambda row: row.group)

    @property
    def recovery(self) -> float:
        """Seconds, the median of all; NaN: nothing came back."""
        every = [one for row in self.rows for one in row.recoveries]
        return statistics.median(every) if every else math.nan

    def page(self, broker: str, command: str, docs: Path | None = None) -> str:
        """The page, in Markdown.

        :param docs: the directory that it is for; the last soak's results are there, if there are any.
        """
        tried, lost = sum(row.tried for row in self.rows), sum(row.lost for row in self.rows)
        lines = [
            "# Reliability: what was done to it, and what was lost",
            "",
            f"Written by `{command}` on {datetime.date.today().isoformat()}:",
            f"Python {platform.python_version()}, {broker}, {platform.system()} on {platform.machine()}.",
            "",
            INTRODUCTION,
            "",
            f"In all: {tried:,} tried, **{lost:,} lost**.",
            f"From the return of what was broken to the first success: {self.recovery:.2f} s (median).",
            "",
        ]
        for group, title in GROUPS.items():
            rows = [row for row in self.rows if row.group == group]
            more = soak_section(docs) if group == 7 and docs is not None else []
            if rows or more:
                lines += [f"## {title}", "", *(_table(rows) if rows else []), "", *more]
        return "\n".join(lines)


INTRODUCTION = """\
A Flask app runs under a real web server, with a real worker, on a three-node RabbitMQ cluster with a quorum
queue and a TCP proxy before each node. Eight clients or more publish through it without a pause while each
of these things is done. Every message has an id, and four books are kept: accepted (2xx, after `publish()`
returned), refused (5xx with the error's name), seen by a handler, committed by a handler. In the end, the
queue is drained and the books are balanced.

*Lost* is what was accepted and never committed. *Twice* is what was committed more than once: delivery is at
least once, and only what was on its way when something broke may come again; anything else fails the run, as
do an error that neither the deadline nor the broker's word explains, an error that promises that nothing was
sent for a message that was handled, and a request that ends more than a second after its deadline.

Each scenario is run against an app that is broken on purpose, too, and must catch it: the last column
says what showed. A run that could not fail proves nothing."""


def _table(rows: Sequence[Row]) -> list[str]:
    heads = ["what was done", "on", "rounds", "tried", "confirmed", "refused", "lost", "twice"]
    heads += ["slowest, against its deadline", "back after", "catches"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        refused = ", ".join(f"{count:,} {name}" for name, count in row.refused.most_common()) or "0"
        over = "" if row.longest_over is None else f"{row.longest_over:+.2f} s"
        back = f"{row.recovery:.2f} s" if row.recoveries else ""
        caught = "; ".join(f"{stand_in}: {how}" for stand_in, how in sorted(row.caught.items()))
        cells = [row.name, row.setting, f"{row.rounds}", f"{row.tried:,}", f"{row.accepted:,}", refused]
        cells += [f"{row.lost:,}", f"{row.twice:,}", over, back, caught]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


#: The heading of the last soak.
_LONG = "### The last long one"


def soak_section(docs: Path) -> list[str]:
    """The section of the last soak, as lines; none, when there was none."""
    if not (docs / SOAK).exists():
        return []
    told = json.loads((docs / SOAK).read_text())
    refused = ", ".join(f"{count:,} {name}" for name, count in told["refused"].items()) or "none"
    faults = ", ".join(f"{count} times {name}" for name, count in told["faults"].items()) or "none"
    lines = [
        _LONG,
        "",
        f"Written by `make soak` on {told['date']}: {told['on']}.",
        "",
        f"{told['minutes']:g} minutes of load, half of it through `publish()` and half through the pool.",
        f"Faults: {faults}. Tried: {told['tried']:,}; confirmed: {told['accepted']:,}; refused: {refused};",
        f"**lost: {told['lost']:,}**; twice: {told['twice']:,}.",
        "",
        "The median of the second quarter of each process's life is compared with that of the last one: what",
        "work needs does not grow between them, and what leaks does.",
        "",
        "| process | what | second quarter | last quarter | allowed | |",
        "|---|---|---|---|---|---|",
        *(_judged(one) for one in told["judged"]),
        "",
    ]
    if (docs / SOAK_PLOT).exists():
        text = "Memory, open files and threads of each process, and RabbitMQ's connections, over the time"
        lines += [f"![{text}]({SOAK_PLOT})", ""]
    return lines


def _judged(one: dict[str, Any]) -> str:
    told = "flat" if one["is_flat"] else "**grown**"
    numbers = " | ".join(f"{one[key]:.1f}" for key in ("second", "last", "allowed"))
    return f"| {one['who']} | {one['what']} | {numbers} | {told} |"


def with_soak(page: str, docs: Path) -> str:
    """The page with the last soak, at the end of its section, in the place of the one that it has."""
    before, title, after = page.partition(f"## {GROUPS[7]}\n")
    if not title:
        before, title, after = page.partition(f"## {GROUPS[8]}\n")
        return f"{before.rstrip()}\n\n## {GROUPS[7]}\n\n" + "\n".join(
            [*soak_section(docs), *([title + after] if title else [])]
        )
    start = re.search(r"^## ", after, re.MULTILINE)
    end = len(after) if start is None else start.start()
    kept = after[:end].partition(_LONG)[0].rstrip("\n")
    section = "\n".join([*([kept, ""] if kept else [""]), *soak_section(docs)])
    return before + title + section + ("" if start is None else "\n") + after[end:]
