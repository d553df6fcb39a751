"""Makes the tables and plots of ``docs/benchmarks.md`` of what is in ``benchmarks/results``.

``python -m benchmarks.page [--check]``. What stands between their marks is made anew, and the drawings beside
it; the rest of the page is written by hand. The same results give the same page.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from xml.sax.saxutils import escape

from benchmarks import tables
from benchmarks.peers.workloads import WORKLOADS
from benchmarks.tables import Entry, Result

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"
IMAGES = ROOT / "docs" / "images"

#: By how much a ratio is off 1 that is none.
LEVEL = 0.03

_PART = re.compile(r"(<!-- made from benchmarks/results: ([\w-]+) -->\n)(.*?)(<!-- end -->)", re.S)


def read(place: Path = RESULTS) -> dict[str, Result]:
    """All results, by workload, in their order."""
    paths = [place / f"{workload.name}.json" for workload in WORKLOADS]
    return {path.stem: json.loads(path.read_text()) for path in paths if path.exists()}


# Text


def measured(setting: dict[str, list[Entry]]) -> list[Entry]:
    return [entry for entry in setting["candidates"] if entry["samples"]]


def best(result: Result, entries: list[Entry]) -> Entry | None:
    """The first of a field."""
    _, more_is_better = tables.SHOWN[result["figure"]]
    pick: Callable[..., Entry] = max if more_is_better else min
    return pick(entries, key=lambda entry: tables.median(result["figure"], entry)) if entries else None


def _pairs(
    results: dict[str, Result],
) -> Iterator[tuple[Result, str, Entry, Entry | None, float | None]]:
    """For each setting the best of Flask-Pika, the best of the others, and what the one is of the other."""
    for result in results.values():
        for setting in result["settings"]:
            field = [entry for entry in measured(setting) if not entry["reference"]]
            ours = best(result, [entry for entry in field if entry["ours"]])
            theirs = best(result, [entry for entry in field if not entry["ours"]])
            if ours is not None:
                ratio = tables.ratio(result, ours, theirs) if theirs is not None else None
                yield result, setting["title"], ours, theirs, ratio


def glance(results: dict[str, Result]) -> Iterator[str]:
    """A line for each setting."""
    yield "| | Flask-Pika | | the best of the others | | Flask-Pika is |"
    yield "|---|---|---:|---|---:|---:|"
    last = ""
    for result, title, ours, theirs, ratio in _pairs(results):
        if result["title"] != last:
            last = result["title"]
            yield f"| **{last}** | | | | | |"
        figure = result["figure"]
        cells = [title, _short(ours), tables.shown(figure, tables.median(figure, ours))]
        cells += [theirs["name"], tables.shown(figure, tables.median(figure, theirs))] if theirs else ["", ""]
        cells.append(f"{ratio:.2f} x" if ratio is not None else "")
        yield f"| {' | '.join(cells)} |"


def _short(entry: Entry) -> str:
    return str(entry["name"]).removeprefix("Flask-Pika").removeprefix(", ") or "Flask-Pika"


def not_first(results: dict[str, Result]) -> Iterator[str]:
    """Where another one is before Flask-Pika."""
    found = False
    for result, title, ours, theirs, ratio in _pairs(results):
        if theirs is None or ratio is None:
            continue
        # The median of the ratios, and the ratio of the medians, need not be of one mind.
        if ratio < 1 or best(result, [ours, theirs]) is theirs:
            found = True
            each = tables.ratios(result, ours, theirs)
            level = abs(ratio - 1) < LEVEL
            than = f"{theirs['name']} is {'level' if level else 'first'}; {_short(ours)} is {ratio:.2f} x"
            ahead = sum(one < 1 for one in each)
            yield f"- {result['title']}, {title}: {than}, and behind in {ahead} of {len(each)} rounds."
    if not found:
        yield "In these figures, nowhere."


def conditions(results: dict[str, Result]) -> Iterator[str]:
    """When, on what, and with which versions."""
    versions: dict[str, str] = {}
    for result in results.values():
        versions.update(result["versions"])
    machines = {tuple(sorted(result["machine"].items())) for result in results.values()}
    dates = sorted({result["date"] for result in results.values()})
    rounds = sorted({result["rounds"] for result in results.values()})
    minutes = sum(result["took"] for result in results.values()) / 60
    loads = [load for result in results.values() for load in result.get("load", ())]
    for one in map(dict, sorted(machines)):
        parts = f"{one['cores']} cores of {one['processor']}, {one['memory']}, {one['kernel']}"
        virtual = "; a virtual one, so that others may use it as well" if one["is_virtual"] else ""
        yield f"- Machine: {parts}{virtual}."
    yield f"- Versions: {', '.join(f'{name} {version}' for name, version in versions.items())}."
    yield (
        f"- {' and '.join(map(str, rounds))} rounds, on {' and '.join(dates)}: {minutes:.0f} minutes in all."
        " Spread is from the lowest to the highest round."
    )
    if loads:
        yield (
            "- Load, as the system counts it, with that of the run itself:"
            f" {min(loads):.1f} to {max(loads):.1f}."
        )


def section(result: Result) -> Iterator[str]:
    """The plot and tables of a workload."""
    yield f"![{result['title']}](images/bench-{result['workload']}.svg)"
    for number in range(len(result["settings"])):
        yield ""
        yield from tables.table_of(result, number)
    notes = list(tables.notes_of(result))
    if notes:
        yield ""
        yield from notes
    yield ""
    yield f"`{result['command']}`: {result['rounds']} rounds, {result['date']}."


def made_anew(text: str, results: dict[str, Result]) -> str:
    """A page, with its parts as the results have them."""
    wholes = {"glance": glance, "not-first": not_first, "conditions": conditions}

    def part(found: re.Match[str]) -> str:
        name = found[2]
        lines = wholes[name](results) if name in wholes else section(results[name])
        body = "\n".join(lines).strip()
        return f"{found[1]}\n{body}\n\n{found[4]}"

    return _PART.sub(part, text)


# Drawings

_STYLE = """    svg { --paper: #ffffff; --ink: #1f2328; --line: #57606a; }
    svg { --box: #aeb6bf; --ours: #1a7f4b; --limit: #dde1e6; }
    @media (prefers-color-scheme: dark) {
      svg { --paper: #11161d; --ink: #e6edf3; --line: #9ba5b0; }
      svg { --box: #5b6674; --ours: #3fae77; --limit: #2a323c; }
    }
    .paper { fill: var(--paper); }
    text { fill: var(--ink); font: 12px system-ui, "Segoe UI", Helvetica, Arial, sans-serif; }
    .title { font-size: 13px; font-weight: 600; }
    .name { text-anchor: end; }
    .own { font-weight: 600; }
    .bar { fill: var(--box); }
    .ours { fill: var(--ours); }
    .limit { fill: var(--limit); }
    .spread { stroke: var(--line); stroke-width: 1.5; fill: none; }"""
_WIDTH, _LEFT, _RIGHT, _ROW = 760, 210, 600, 19


def drawing(result: Result) -> str:
    """Bars of all settings, one under the other, on a ground of their own in light and dark."""
    figure = result["figure"]
    _, more_is_better = tables.SHOWN[figure]
    parts: list[str] = []
    y = 26
    for setting in result["settings"]:
        # One that cannot even be begun says more in the table.
        rows = [entry for entry in setting["candidates"] if entry["samples"] or "error" in entry]
        highest = max((max(tables.values(figure, entry)) for entry in rows if entry["samples"]), default=1.0)
        parts.append(f'  <text class="title" x="16" y="{y}">{escape(setting["title"])}</text>')
        y += 10
        for entry in rows:
            parts += _row(figure, entry, y, max(highest, 1e-9))
            y += _ROW
        y += 26
    direction = "longer is better" if more_is_better else "shorter is better"
    parts.append(
        f'  <text x="16" y="{y}">Median of the rounds; the line: lowest to highest; {direction}.</text>'
    )
    height = y + 16
    title = escape(result["title"])
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}"'
        f' height="{height}" role="img" aria-labelledby="t">\n  <title id="t">{title}</title>\n'
        f"  <style>\n{_STYLE}\n  </style>\n"
        f'  <rect class="paper" width="{_WIDTH}" height="{height}" rx="8"/>\n'
    )
    return head + "\n".join(parts) + "\n</svg>\n"


def _row(figure: str, entry: Entry, y: int, highest: float) -> Iterator[str]:
    own = " own" if entry["ours"] else ""
    middle = y + _ROW // 2 + 4
    yield f'  <text class="name{own}" x="{_LEFT - 8}" y="{middle}">{escape(entry["name"])}</text>'
    if not entry["samples"]:
        yield f'  <text x="{_LEFT}" y="{middle}">fails</text>'
        return
    found = tables.values(figure, entry)

    def at(value: float) -> str:
        return f"{_LEFT + max(0.0, value) / highest * (_RIGHT - _LEFT):.1f}"

    kind = "ours" if entry["ours"] else "limit" if entry["reference"] else "bar"
    value = statistics.median(found)
    width = float(at(value)) - _LEFT
    box = f'x="{_LEFT}" y="{y + 3}" width="{width:.1f}" height="{_ROW - 6}"'
    yield f'  <rect class="bar {kind}" {box} rx="2"/>'
    line = y + _ROW / 2
    yield f'  <path class="spread" d="M{at(min(found))} {line:g} H{at(max(found))}"/>'
    yield f'  <text x="{float(at(max(found))) + 8:.1f}" y="{middle}">{tables.shown(figure, value)}</text>'


def files(results: dict[str, Result]) -> dict[Path, str]:
    """All that is made, and what it has to be."""
    found = {IMAGES / f"bench-{name}.svg": drawing(result) for name, result in results.items()}
    if PAGE.exists():
        found[PAGE] = made_anew(PAGE.read_text(), results)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.page", description="Write what results make.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if something is stale")
    check = parser.parse_args().check
    stale = False
    for path, text in files(read()).items():
        if path.exists() and path.read_text() == text:
            continue
        stale = True
        name = path.relative_to(ROOT)
        if check:
            print(f"{name} is not what the results say: run 'python -m benchmarks.page'")
        else:
            path.write_text(text)
            print(f"{name} was written")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
