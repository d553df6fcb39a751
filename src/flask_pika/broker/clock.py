"""What the broker's queues know of time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Timer(Protocol):
    """Something that will be called, unless it is cancelled."""

    def cancel(self) -> object:
        """Not any more."""


class Clock(Protocol):
    """An asyncio loop, or a stand-in."""

    def time(self) -> float:
        """Seconds, from any beginning."""
        ...

    def call_later(self, delay: float, callback: Callable[[], object], /) -> Timer:
        """Have it called when ``delay`` seconds have passed."""
        ...
