"""Declaring what an app needs on channels of the pool: for commands, scripts and tests, which wait for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Literal, NamedTuple

from pika import exceptions as pika_errors
from pika.spec import ACCESS_REFUSED, NOT_FOUND

from .errors import TopologyMismatch
from .steps import OVER_ONE_STEP, Step, is_unlike, mismatch
from .topology import Exchange, Queue

#: What can be said of a step: ``made``; ``stood``, and is the same; ``bound``, whether it was so before or
#: not; ``missing``; ``unlike``: it stands with other arguments; ``refused``, for another reason; ``left``, of
#: what is bound to that; ``there``, and its arguments cannot be compared; ``unseen``, of a binding.
Outcome = Literal["made", "stood", "bound", "missing", "unlike", "refused", "left", "there", "unseen"]


class Finding(NamedTuple):
    """What became of a step."""

    step: Step
    outcome: Outcome
    problem: TopologyMismatch | None = None


#: Gives a channel, as a context manager that takes it back.
Lend = Callable[[], AbstractContextManager[Any]]


class _Channel:
    """One channel after the other: a step that fails costs its own."""

    def __init__(self, lend: Lend) -> None:
        self._lend = lend
        self._lent: AbstractContextManager[Any] | None = None
        self._channel: Any = None

    def do(self, step: Step) -> TopologyMismatch | None:
        """Do it; what the broker has against it.

        :raises FlaskPikaError: there is no channel to be had.
        :raises AMQPConnectionError: the connection was lost, and not over this.
        """
        if self._lent is None:
            self._lent = self._lend()
            self._channel = self._lent.__enter__()
        try:
            getattr(self._channel, step.method)(**step.arguments)
        except pika_errors.ChannelClosedByBroker as exc:
            self.end()
            return mismatch(step, exc)
        except pika_errors.ConnectionClosedByBroker as exc:
            self.end()
            if exc.reply_code not in OVER_ONE_STEP:
                raise
            return mismatch(step, exc)
        return None

    def end(self) -> None:
        """Give back what was lent."""
        lent, self._lent = self._lent, None
        if lent is not None:
            lent.__exit__(None, None, None)


def declare(steps: Iterable[Step], lend: Lend) -> Iterator[Finding]:
    """Declare it, as it is iterated over. It goes on after what fails."""
    channel = _Channel(lend)
    unlike: list[Exchange | Queue] = []
    try:
        for step in steps:
            found = Finding(step, "left") if step.leaves_alone(unlike) else _declare(step, channel)
            if found.outcome == "unlike":
                unlike.append(step.thing)
            yield found
    finally:
        channel.end()


def _declare(step: Step, channel: _Channel) -> Finding:
    if step.is_binding:
        problem = channel.do(step)
        return Finding(step, "bound") if problem is None else _refused(step, problem)
    missing = channel.do(step.check)
    if missing is not None and missing.reply_code != NOT_FOUND:
        return _refused(step, missing)
    problem = channel.do(step)
    if problem is not None:
        return _refused(step, problem)
    return Finding(step, "stood" if missing is None else "made")


def check(steps: Iterable[Step], lend: Lend) -> Iterator[Finding]:
    """Look whether it is there, and the same, and change nothing."""
    channel = _Channel(lend)
    try:
        for step in steps:
            yield Finding(step, "unseen") if step.is_binding else _check(step, channel)
    finally:
        channel.end()


def _check(step: Step, channel: _Channel) -> Finding:
    look = step.check
    problem = channel.do(look)
    if problem is not None:
        missing = problem.reply_code == NOT_FOUND
        return Finding(step, "missing", problem) if missing else _refused(step, problem)
    if look.then is not None:
        problem = channel.do(look.then)
    if problem is None:
        return Finding(step, "stood")
    if problem.reply_code == ACCESS_REFUSED:
        return Finding(step, "there")
    return _refused(step, problem)


def _refused(step: Step, problem: TopologyMismatch) -> Finding:
    return Finding(step, "unlike" if is_unlike(problem) else "refused", problem)


def together(problems: list[TopologyMismatch]) -> TopologyMismatch:
    """One error for all of them: the first one's reply, and each one's words."""
    first = problems[0]
    if len(problems) == 1:
        return first
    text = f"{len(problems)} problems: " + "; ".join(map(str, problems))
    made = TopologyMismatch(text, reply=(first.reply_code, first.reply_text))
    made.__cause__ = first.__cause__
    return made
