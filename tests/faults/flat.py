"""Whether what was measured over time is flat: decided by numbers, not by looking at a plot.

Of each process the first quarter of its life is its warm-up. The median of the second quarter is compared
with that of the last one: what is needed to work does not grow between them, what leaks does.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

#: So much more is allowed in the last quarter: a share of what there was, and a number.
#: Memory: Python's allocator and the threads' arenas settle late. Files: requests that are under way, and the
#: connections of a pool that were not needed before; on a busy machine, both are more than on a quiet one.
ALLOWED: Mapping[str, tuple[float, float]] = {
    "memory, MB": (0.03, 3.0),
    "open files": (0.0, 8.0),
    "threads": (0.0, 2.0),
    "connections": (0.0, 3.0),
    "channels": (0.0, 3.0),
}
#: A process is judged that was there for so much of the time, and for so many samples.
_SHARE = 0.5
_LEAST = 8


@dataclass(frozen=True)
class Judged:
    """One thing of one process, in its second quarter and in its last."""

    who: str
    what: str
    second: float
    last: float
    allowed: float

    @property
    def is_flat(self) -> bool:
        return self.last <= self.allowed


def judge(who: str, what: str, values: Sequence[float]) -> Judged:
    """Compare the second quarter with the last."""
    quarter = len(values) // 4
    second = statistics.median(values[quarter : 2 * quarter])
    last = statistics.median(values[-quarter:])
    share, more = ALLOWED[what]
    return Judged(who, what, second, last, second * (1 + share) + more)


def judge_all(series: Mapping[str, Mapping[str, Sequence[float]]], samples: int) -> list[Judged]:
    """All that lived long enough: by process, and by what was measured of it.

    :param samples: how many there are of the whole time.
    """
    return [
        judge(who, what, values)
        for who, measured in series.items()
        for what, values in measured.items()
        if len(values) >= max(_LEAST, samples * _SHARE)
    ]
