"""Scenarios 7: what is under load for long does not grow. Here for seconds; ``make soak`` is the long one."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest

from tests.faults import report as _report
from tests.faults.flat import judge, judge_all
from tests.faults.lab import Site
from tests.faults.report import Report
from tests.faults.soak import Outcome, by_process, measure, soak, summary

pytestmark = [pytest.mark.broker, pytest.mark.faults, pytest.mark.timeout(600)]

NAME = "seconds under load, with all that the processes have"
MINUTES = 0.3
STAND_IN = 0.2


@pytest.mark.parametrize(
    ("what", "values", "flat"),
    [
        ("memory, MB", [60.0] * 40, True),
        ("memory, MB", [30.0, 50.0, *[60.0 + n % 2 for n in range(40)]], True),  # a warm-up
        ("memory, MB", [60.0 + n for n in range(40)], False),
        ("memory, MB", [60.0 + n / 60 * 0.6 for n in range(1200)], False),  # 0.6 MB a minute, for 20
        ("memory, MB", [60.0 + n / 60 * 0.1 for n in range(1200)], True),
        ("open files", [20.0 + n // 2 for n in range(40)], False),
        ("open files", [random.Random(7).choice([20.0, 21.0, 25.0]) for _ in range(40)], True),
        ("threads", [8.0] * 20 + [12.0] * 20, False),
        ("connections", [0.0 if 5 < n < 9 else 4.0 for n in range(40)], True),  # a restart
        ("channels", [4.0 + n for n in range(40)], False),
    ],
)
def test_what_grows_is_not_flat(what: str, values: list[float], flat: bool) -> None:
    assert judge("it", what, values).is_flat is flat


def test_who_lived_for_a_moment_is_not_judged() -> None:
    series = {"long": {"threads": [8.0] * 30}, "short": {"threads": [1.0] * 19}}
    assert [one.who for one in judge_all(series, 40)] == ["long"]


def grown(outcome: Outcome) -> set[str]:
    return {one.what for one in outcome.grown}


def test_nothing_grows(whole: Site, report: Report, grace: float, tmp_path: Path) -> None:
    outcome = soak(whole, MINUTES, grace)
    outcome.books.check()
    assert not outcome.problems
    assert not outcome.grown
    # All that should have been looked at was: the server, its two workers, the consumers, and RabbitMQ.
    every = by_process(outcome.samples)
    assert {"gunicorn", "web worker 1", "web worker 2", "consumers 1", "RabbitMQ"} <= set(every)
    assert {one.who for one in outcome.judged} >= {"web worker 1", "web worker 2", "consumers 1", "RabbitMQ"}
    assert max(value for _, value in every["RabbitMQ"]["channels"]) >= 3
    (tmp_path / _report.SOAK).write_text(json.dumps(summary(outcome, MINUTES, "RabbitMQ")))
    section = "\n".join(_report.soak_section(tmp_path))
    assert "**lost: 0**" in section
    assert "| web worker 1 | threads |" in section
    books = outcome.books
    report.add(7, NAME, setting="gunicorn gthread", tried=len(books.answers), accepted=len(books.accepted))


def test_a_server_that_leaks_is_caught(whole: Site, report: Report, grace: float) -> None:
    outcome = soak(whole, STAND_IN, grace, options=["--config", "python:tests.faults.leaks"])
    found = grown(outcome)
    assert {"memory, MB", "open files", "connections", "channels"} <= found, outcome.judged
    assert not outcome.is_good
    report.add_caught(7, NAME, "each request leaves something", f"{', '.join(sorted(found))} grown")


def test_a_soak_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    (tmp_path / _report.SOAK).write_text(
        '{"date": "2026-01-01", "on": "it", "minutes": 20, "tried": 1, "accepted": 1, "refused": {},'
        ' "lost": 0, "twice": 0, "faults": {}, "judged": [], "good": true}'
    )
    page = "# Page\n\n## TLS\n\nfive\n\n## Bad input and bad peers\n\neight\n"
    once = _report.with_soak(page, tmp_path)
    assert once.index("## TLS") < once.index("## Soak") < once.index("on 2026") < once.index("## Bad input")
    assert _report.with_soak(once, tmp_path) == once
    short = "# Page\n\n## Soak\n\nshort\n"
    for rest in ("", "\n## Bad input and bad peers\n\neight\n"):
        page = _report.with_soak(short + rest, tmp_path)
        assert page.startswith(short)
        assert page.endswith(rest)
        assert "on 2026" in page
        newer = _report.with_soak(page.replace("on 2026", "on 2025"), tmp_path)
        assert newer == page


def test_a_process_is_measured() -> None:
    measured = measure(os.getpid())
    assert measured["memory, MB"] > 5
    assert measured["open files"] >= 3
    assert measured["threads"] >= 1
