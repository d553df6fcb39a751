"""How long to wait before the next attempt: doubling, bounded, and never the same in two processes."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Backoff:
    """Delays in seconds that double from ``first`` to ``longest``, each shortened by up to a half.

    The jitter keeps a hundred workers that lost the same broker from coming back in the same millisecond.
    """

    first: float = 0.05
    longest: float = 1.0
    random: Callable[[], float] = random.random

    def delay(self, failures: int) -> float:
        """The delay after the ``failures``-th failure in a row, counted from 1."""
        # Bounded before it is computed: 2.0 ** 1100 overflows.
        doubled = self.first * 2.0 ** min(failures - 1, 64)
        return min(doubled, self.longest) * (1.0 - self.random() / 2)
