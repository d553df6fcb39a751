"""The page about benchmarks: what it says is what was measured."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from typing import Any

import pytest

from benchmarks import page, tables
from benchmarks.peers.environments import clean
from benchmarks.peers.workloads import WORKLOADS

RESULTS = page.read()


def entry(name: str, *rates: float, **more: Any) -> dict[str, Any]:
    samples = [{"count": rate, "seconds": 1.0} for rate in rates]
    return {"name": name, "ours": False, "reference": False, "note": "", "samples": samples, **more}


def result(*entries: dict[str, Any]) -> dict[str, Any]:
    return {
        "workload": "made",
        "title": "Made up",
        "figure": "rate",
        "ours": ["Flask-Pika"],
        "command": "none",
        "rounds": 3,
        "date": "2026-01-01",
        "settings": [{"title": "one", "candidates": list(entries)}],
    }


OURS = entry("Flask-Pika", 100, 200, 400, ours=True)


def test_page_and_drawings_are_what_the_results_say() -> None:
    for path, text in page.files(RESULTS).items():
        assert path.read_text() == text, f"{path.name}: run 'python -m benchmarks.page'"


def test_every_workload_has_results_and_its_place_on_the_page() -> None:
    text = page.PAGE.read_text()
    for workload in WORKLOADS:
        assert workload.name in RESULTS
        assert f"<!-- made from benchmarks/results: {workload.name} -->" in text
        titles = [setting["title"] for setting in RESULTS[workload.name]["settings"]]
        assert titles == [setting.title for setting in workload.settings]


def test_every_candidate_of_a_workload_is_in_its_results_with_figures_or_the_reason() -> None:
    for workload in WORKLOADS:
        names = {candidate.name for candidate in workload.candidates}
        for setting in RESULTS[workload.name]["settings"]:
            assert {one["name"] for one in setting["candidates"]} == names
            for one in setting["candidates"]:
                assert one["samples"] or one.get("error") or one.get("not_offered")


def test_results_name_no_path_and_no_host() -> None:
    text = "".join(path.read_text() for path in page.RESULTS.glob("*.json"))
    assert not re.search(r"/(?:tmp|home|root|work|usr|var|opt)\b", text)
    assert "localhost" not in text


def test_a_ratio_is_of_the_same_round() -> None:
    other = entry("other", 50, 100, 200)
    assert tables.ratio(result(OURS, other), OURS, other) == 2.0
    slow = entry("slow", 10, 10, 10)
    assert tables.ratio(result(OURS, slow), OURS, slow) == 20.0


def test_who_fails_and_who_does_not_offer_it_is_in_the_table() -> None:
    fails = entry("broken", error="KeyError: 1 | 2")
    lacks = entry("other", not_offered="has no pool")
    lines = list(tables.table_of(result(OURS, fails, lacks), 0))
    (row,) = [line for line in lines if line.startswith("| broken")]
    assert "fails: KeyError: 1 \\| 2" in row
    assert lines[-1] == "Do not offer that: other: has no pool."
    widths = {line.replace("\\|", "").count("|") for line in lines if line.startswith("|")}
    assert len(widths) == 1


def test_where_another_is_first_the_page_says_so() -> None:
    faster = entry("faster", 200, 400, 800)
    (line,) = page.not_first({"made": result(OURS, faster)})
    assert line == "- Made up, one: faster is first; Flask-Pika is 0.50 x, and behind in 3 of 3 rounds."
    limit = entry("limit", 900, 900, 900, reference=True)
    (line,) = page.not_first({"made": result(OURS, limit)})
    assert line == "In these figures, nowhere."


@pytest.mark.parametrize("name", sorted(RESULTS))
def test_drawings_are_well_formed_and_have_a_ground_of_their_own_in_light_and_dark(name: str) -> None:
    text = page.drawing(RESULTS[name])
    root = ET.fromstring(text)
    assert root.attrib["role"] == "img"
    assert "prefers-color-scheme: dark" in text
    assert '<rect class="paper"' in text


def test_an_error_is_shown_without_the_machines_paths() -> None:
    assert clean('File "/some/where/lib.py", line 3:\n  bad') == 'File "lib.py", line 3: bad'
    assert clean("amqp://guest@127.0.0.1 refused") == "amqp://guest@127.0.0.1 refused"
