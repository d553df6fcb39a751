"""The books: what was promised, what was done, and where the two differ."""

from __future__ import annotations

import collections
import itertools
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from flask_pika import errors
from tests.faults.load import Answer
from tests.ledger import Disturbance, Run

#: What says that nothing was sent. (A refusal or an unknown end says something else.)
_NOTHING_SENT = {
    "AuthenticationRefused",
    "BrokerBlocked",
    "BrokerRefused",
    "BrokerUnavailable",
    "InvalidMessage",
    "PoolTimeout",
    "ProtocolMismatch",
    "PublisherClosed",
    "PublisherFull",
    "TLSRefused",
    "VirtualHostRefused",
}
#: A request that ends so many seconds before its deadline did not end because of it.
_ALMOST = 0.25


@dataclass(frozen=True)
class Rules:
    """What a scenario allows.

    :ivar timeout: seconds that a publish may take.
    :ivar grace: seconds that its HTTP request may take beyond that.
    :ivar refusals: the errors with which the broker may refuse, while it is disturbed; on a pooled channel
        also those of pika's that say that it is gone.
    :ivar unanswered: whether requests may end without an answer: the scenario kills the web server.
    :ivar anytime: of the refusals those that need no disturbance.
    """

    timeout: float
    grace: float
    refusals: Collection[str] = ()
    unanswered: bool = False
    anytime: Collection[str] = ()


@dataclass
class Books:
    """All that was asked for and done in one run of a scenario.

    :ivar answers: of the web server, to each request.
    :ivar runs: of handlers, in their order.
    :ivar disturbances: when something was broken on purpose.
    :ivar returns: when what was broken was there again.
    :ivar left: the ids of the messages that are still at the broker: in a queue that nobody consumes.
    :ivar deletions: when an operator deleted a queue that was empty. What was under way then may have come
        after the look and before the end: RabbitMQ confirms it, and it is the operator who lost it.
    """

    rules: Rules
    answers: Sequence[Answer]
    runs: Sequence[Run]
    disturbances: Sequence[Disturbance]
    returns: Sequence[float] = ()
    left: Sequence[str] = ()
    deletions: Sequence[Disturbance] = ()
    _by_id: dict[str, list[Run]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        for run in self.runs:
            self._by_id.setdefault(run.id, []).append(run)

    # What there is

    @property
    def accepted(self) -> set[str]:
        return {answer.id for answer in self.answers if answer.accepted}

    @property
    def refused(self) -> collections.Counter[str]:
        """How many requests ended with which error."""
        return collections.Counter(answer.error for answer in self.answers if answer.error)

    @property
    def seen(self) -> set[str]:
        return set(self._by_id)

    @property
    def committed(self) -> set[str]:
        return {run.id for run in self.runs if run.outcome == "committed"}

    @property
    def twice(self) -> set[str]:
        """Committed, or still there, more than once, be it allowed or not."""
        ids = collections.Counter(run.id for run in self.runs if run.outcome == "committed")
        ids.update(self.left)
        return {one for one, count in ids.items() if count > 1}

    @property
    def lost(self) -> set[str]:
        """Accepted, and neither committed nor at the broker, nor deleted by an operator."""
        return self.accepted - self.committed - set(self.left) - self._deleted()

    @property
    def longest_over(self) -> float:
        """Seconds by which the slowest request was beyond its deadline; negative: none was."""
        return max((answer.took - self.rules.timeout for answer in self.answers), default=-math.inf)

    @property
    def recoveries(self) -> list[float]:
        """Seconds from each return to the first success after it."""
        found = []
        for back in self.returns:
            after = [answer.ended for answer in self.answers if answer.accepted and answer.ended >= back]
            found.append(min(after) - back if after else math.inf)
        return found

    # What must not be

    def findings(self) -> dict[str, list[str]]:
        """By its kind, each thing that should not have happened. Empty: the books balance."""
        checks = {
            "lost": self._lost(),
            "twice without a cause": self._twice_for_nothing(),
            "there, though it was said that nothing was sent": self._phantoms(),
            "never published": sorted(self._there() - {answer.id for answer in self.answers}),
            "an error that nobody named": self._unnamed(),
            "an error without a cause": self._needless(),
            "later than its deadline": self._late(),
            "no answer": self._unanswered(),
        }
        return {kind: found for kind, found in checks.items() if found}

    def check(self) -> None:
        """The books balance."""
        found = self.findings()
        text = "\n".join(
            f"{kind}: {len(those)}\n  " + "\n  ".join(those[:5]) for kind, those in found.items()
        )
        assert not found, text

    def _lost(self) -> list[str]:
        return [f"{one} was accepted" for one in sorted(self.lost)]

    def _deleted(self) -> set[str]:
        """What an operator may have deleted."""
        return {answer.id for answer in self.answers if _meets(answer, self.deletions)}

    def _twice_for_nothing(self) -> list[str]:
        """A second one needs a disturbance between the first one's publishing and its own coming."""
        published = {answer.id: answer.began for answer in self.answers}
        handled = [
            f"{one}: {before}, then {after}"
            for one, runs in self._by_id.items()
            for before, after in itertools.pairwise(runs)
            if not self._disturbed(published.get(one, before.begun), after.begun)
        ]
        # When these came, nobody knows.
        there = self.twice & set(self.left)
        return handled + [
            f"{one} is left" for one in sorted(there) if not self._disturbed(published.get(one))
        ]

    def _disturbed(self, since: float | None, until: float = math.inf) -> bool:
        return since is not None and any(
            since <= known.ended and known.began <= until for known in self.disturbances
        )

    def _phantoms(self) -> list[str]:
        refused = [answer for answer in self.answers if answer.error in _NOTHING_SENT]
        there = self._there()
        return [f"{answer}" for answer in refused if answer.id in there]

    def _there(self) -> set[str]:
        """What came to a handler, or to a queue."""
        return self.seen | set(self.left)

    def _unnamed(self) -> list[str]:
        known = {*errors.__all__, *self.rules.refusals}
        return [
            f"{answer}"
            for answer in self.answers
            if answer.status is not None and not answer.accepted and answer.error not in known
        ]

    def _needless(self) -> list[str]:
        """An error needs its deadline to have passed, or a refusal of a broker that is disturbed."""
        return [
            f"{answer}"
            for answer in self.answers
            if answer.error in {*errors.__all__, *self.rules.refusals} - {*self.rules.anytime}
            and not (
                self._was_disturbed(answer)
                and (
                    answer.took >= self.rules.timeout - _ALMOST
                    # Its deadline may begin before the request: nothing may be pending without end.
                    or answer.error in self.rules.refusals
                )
            )
        ]

    def _was_disturbed(self, answer: Answer) -> bool:
        return _meets(answer, self.disturbances)

    def _late(self) -> list[str]:
        most = self.rules.timeout + self.rules.grace
        return [f"{answer.took:.2f} s: {answer}" for answer in self.answers if answer.took > most]

    def _unanswered(self) -> list[str]:
        if self.rules.unanswered:
            return []
        return [f"{answer}" for answer in self.answers if answer.status is None]


def _meets(answer: Answer, times: Sequence[Disturbance]) -> bool:
    """Whether the request was under way in one of these."""
    return any(known.began <= answer.ended and answer.began <= known.ended for known in times)
