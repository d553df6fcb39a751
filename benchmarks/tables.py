"""What came of a workload, as Markdown; and the figures that tables and plots are made of."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterator
from typing import Any

Result = dict[str, Any]
Entry = dict[str, Any]


def values(figure: str, entry: Entry) -> list[float]:
    """One figure of each round."""
    work: dict[str, Callable[[dict[str, float]], float]] = {
        "rate": lambda s: s["count"] / s["seconds"],
        "micros": lambda s: s["seconds"] / s["count"] * 1e6,
        "bytes": lambda s: s["bytes"] / s["count"],
        "cpu": lambda s: s["cpu"] / s["count"] * 1e6,
    }
    take = work.get(figure, lambda s: s[figure])
    return [take(sample) for sample in entry["samples"] if figure in work or figure in sample]


#: Whose name it is, beside which others are shown as a share of it.
LIMIT = "bare socket"

#: How a figure is shown, and whether more of it is better.
SHOWN = {"rate": ("{:,.0f}/s", True), "micros": ("{:,.2f} µs", False), "bytes": ("{:,.0f} bytes", False)}


def shown(figure: str, value: float) -> str:
    text, _ = SHOWN[figure]
    return text.format(three_digits(value) if figure == "rate" else value)


def three_digits(value: float) -> float:
    """More than three digits of such a figure are noise."""
    return float(f"{value:.3g}")


def first_of(result: Result, entries: list[Entry]) -> Entry | None:
    """Flask-Pika's, whose ratio to the others is shown."""
    for name in result["ours"]:
        for entry in entries:
            if entry["name"] == name and entry["samples"]:
                return entry
    return None


def ratio(result: Result, ours: Entry, theirs: Entry) -> float | None:
    """How many times as good ours is, side by side in each round: what the machine did, it did to both."""
    found = ratios(result, ours, theirs)
    return statistics.median(found) if found else None


def ratios(result: Result, ours: Entry, theirs: Entry) -> list[float]:
    """The same, of each round; of none, where there is nothing to divide."""
    figure = result["figure"]
    _, more_is_better = SHOWN[figure]
    pairs = list(zip(values(figure, ours), values(figure, theirs), strict=False))
    if not all(a > 0 and b > 0 for a, b in pairs):
        return []
    return [a / b if more_is_better else b / a for a, b in pairs]


def median(figure: str, entry: Entry) -> float:
    return statistics.median(values(figure, entry))


def table_of(result: Result, number: int) -> Iterator[str]:
    """One setting as a table, in the order of the candidates."""
    setting = result["settings"][number]
    entries: list[Entry] = setting["candidates"]
    ours = first_of(result, entries)
    figure = result["figure"]
    measured = [entry for entry in entries if entry["samples"]]
    extra = [name for name in ("cpu", "p50", "p99", "connections") if any(has(name, e) for e in measured)]
    heads = {"cpu": "CPU each", "p50": "p50", "p99": "p99", "connections": "connections"}
    reads = ours["name"] if ours else ""
    yield f"**{setting['title']}**"
    yield ""
    limit = next((one for one in measured if one["name"] == LIMIT), None)
    columns = ["", "median", "lowest to highest", f"{reads} is", *(heads[name] for name in extra)]
    if limit is not None:
        columns.insert(4, "of the limit")
    yield f"| {' | '.join(columns)} |"
    yield "|---" + "|---:" * (len(columns) - 1) + "|"
    for entry in entries:
        if "error" in entry and not entry["samples"]:
            yield f"| {entry['name']} | fails: {plain(entry['error'])} |" + " |" * (len(columns) - 2)
        if not entry["samples"]:
            continue
        found = values(figure, entry)
        cells = [
            f"**{entry['name']}**" if entry["ours"] else entry["name"],
            shown(figure, statistics.median(found)),
            f"{shown(figure, min(found))} to {shown(figure, max(found))}",
            times(result, ours, entry),
            *([share(result, entry, limit)] if limit is not None else []),
            *(cell(name, entry) for name in extra),
        ]
        if "error" in entry:
            cells[1] += f", then fails: {plain(entry['error'])}"
        yield f"| {' | '.join(cells)} |"
    missing: dict[str, list[str]] = {}
    for entry in entries:
        if "not_offered" in entry:
            missing.setdefault(entry["not_offered"], []).append(entry["name"])
    if missing:
        yield ""
        told = "; ".join(f"{', '.join(names)}: {plain(why)}" for why, names in missing.items())
        yield f"Do not offer that: {told}."


def plain(text: str) -> str:
    """What others have said, which is no Markdown."""
    return re.sub(r"([\\|<>*_`\[\]#])", r"\\\1", text)


def notes_of(result: Result) -> Iterator[str]:
    """What the reader has to know of the candidates."""
    notes = {
        entry["name"]: entry["note"]
        for setting in result["settings"]
        for entry in setting["candidates"]
        if entry["note"]
    }
    for name, note in notes.items():
        yield f"- *{name}*: {note}."


def has(name: str, entry: Entry) -> bool:
    return name in entry["samples"][0]


def times(result: Result, ours: Entry | None, entry: Entry) -> str:
    if ours is None or ours is entry:
        return ""
    found = ratio(result, ours, entry)
    return "" if found is None else f"{found:.2f} x"


def share(result: Result, entry: Entry, limit: Entry) -> str:
    """What it is of the limit."""
    found = None if entry is limit else ratio(result, entry, limit)
    return "" if found is None else f"{found:.2f}"


def cell(name: str, entry: Entry) -> str:
    found = values(name, entry) if has(name, entry) else []
    # One in a hundred, of fewer than that, is the longest of all.
    if not found or (name == "p99" and entry["samples"][0]["count"] < 100):
        return ""
    middle = statistics.median(found)
    return {
        "cpu": f"{middle:,.1f} µs",
        "p50": f"{middle:,.2f} ms",
        "p99": f"{middle:,.2f} ms",
        "connections": f"{middle:.0f}",
    }[name]
