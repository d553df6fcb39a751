"""The books say of each thing that must not be that it was, and of what may be that it may."""

from __future__ import annotations

import pytest

from tests.faults.books import Books, Rules
from tests.faults.load import Answer
from tests.ledger import Disturbance, Run

TIMEOUT = 10.0
RULES = Rules(TIMEOUT, 1.0, ["Nacked"])
DURING = [Disturbance(100.0, 200.0)]


def answer(
    began: float, took: float, error: str = "", *, one: str = "1", status: int | None = None
) -> Answer:
    return Answer(one, began, began + took, status or (503 if error else 200), error)


def unanswered(began: float, took: float) -> Answer:
    return Answer("1", began, began + took, None)


def run(begun: float, *, one: str = "1", outcome: str | None = "committed") -> Run:
    return Run(one, 1, 1, 1, False, begun, begun, outcome)


LOST = "lost"
TWICE = "twice without a cause"
THERE = "there, though it was said that nothing was sent"
NEVER = "never published"
UNNAMED = "an error that nobody named"
NEEDLESS = "an error without a cause"
LATE = "later than its deadline"
NO_ANSWER = "no answer"


@pytest.mark.parametrize(
    ("answers", "runs", "left", "found"),
    [
        ([answer(0, 1)], [run(1)], [], set()),
        ([answer(0, 1)], [], ["1"], set()),
        ([answer(0, 1)], [], [], {LOST}),
        ([answer(0, 1)], [run(1, outcome="raised")], [], {LOST}),
        ([answer(0, 1)], [run(1, outcome=None)], [], {LOST}),
        # Twice
        ([answer(0, 1)], [run(1), run(2)], [], {TWICE}),
        ([answer(0, 1)], [run(1), run(150)], [], set()),
        ([answer(201, 1)], [run(202), run(203)], [], {TWICE}),
        ([answer(0, 1)], [run(1), run(99)], [], {TWICE}),
        ([answer(201, 1)], [], ["1", "1"], {TWICE}),
        ([answer(201, 1)], [run(202)], ["1"], {TWICE}),
        ([answer(150, 1)], [], ["1", "1"], set()),
        # What was said not to be sent, and what nobody asked for
        ([answer(100, TIMEOUT, "BrokerUnavailable")], [], [], set()),
        ([answer(100, TIMEOUT, "BrokerUnavailable")], [run(120)], [], {THERE}),
        ([answer(100, TIMEOUT, "BrokerUnavailable")], [], ["1"], {THERE}),
        ([answer(100, TIMEOUT, "PublishTimeout")], [run(120)], [], set()),
        ([], [run(1)], [], {NEVER}),
        ([], [], ["1"], {NEVER}),
        # Errors
        ([answer(120, 1, "ValueError")], [], [], {UNNAMED}),
        ([answer(120, 1, status=500)], [], [], {UNNAMED}),
        ([answer(120, 1, "PublishTimeout")], [], [], {NEEDLESS}),
        ([answer(1, TIMEOUT, "PublishTimeout")], [], [], {NEEDLESS}),
        ([answer(120, 1, "Nacked")], [], [], set()),
        ([answer(1, 1, "Nacked")], [], [], {NEEDLESS}),
        # Time
        ([answer(120, TIMEOUT + 1.1, "PublishTimeout")], [], [], {LATE}),
        ([answer(120, TIMEOUT + 1.1)], [run(121)], [], {LATE}),
        ([unanswered(120, 1)], [], [], {NO_ANSWER}),
    ],
)
def test_each_thing_is_found(
    answers: list[Answer], runs: list[Run], left: list[str], found: set[str]
) -> None:
    books = Books(RULES, answers, runs, DURING, left=left)
    assert set(books.findings()) == found
    assert len(books.lost) == (LOST in found)
    if found:
        with pytest.raises(AssertionError, match=next(iter(found))):
            books.check()


def test_only_what_was_under_way_may_have_been_deleted() -> None:
    answers = [answer(1, 1, one="before"), answer(9.5, 1, one="meanwhile"), answer(11, 1, one="after")]
    books = Books(RULES, answers, [], [], deletions=[Disturbance(10, 10.5)])
    assert books.lost == {"before", "after"}


def test_who_is_not_answered_by_a_server_that_is_killed_may_still_not_wait_for_long() -> None:
    rules = Rules(TIMEOUT, 1.0, unanswered=True)
    assert not Books(rules, [unanswered(0, 1)], [], []).findings()
    assert set(Books(rules, [unanswered(0, 60)], [], []).findings()) == {LATE}


def test_what_may_be_refused_at_any_time_needs_no_disturbance() -> None:
    rules = Rules(TIMEOUT, 1.0, ["Nacked", "BrokerRefused"], anytime=["Nacked"])
    assert not Books(rules, [answer(1, 1, "Nacked")], [], []).findings()
    assert set(Books(rules, [answer(1, 1, "BrokerRefused")], [], []).findings()) == {NEEDLESS}


def test_a_recovery_is_from_the_return_to_the_first_success() -> None:
    answers = [answer(90, 1), answer(99, 1.5, "Nacked"), answer(99, 3), answer(103, 1)]
    assert Books(RULES, answers, [], DURING, returns=[100.0, 103.5]).recoveries == [2.0, 0.5]
    assert Books(RULES, answers, [], DURING, returns=[200.0]).recoveries == [float("inf")]
