"""Which deliveries of a channel are not settled, so that many can be acked in one frame. Pure: no I/O."""

from __future__ import annotations

import collections
from collections.abc import Iterable
from typing import NamedTuple

#: How many more places than deliveries there may be in the line, before it is made anew.
_SLACK = 64


class Acks(NamedTuple):
    """What to send."""

    up_to: int  #: one ack with ``multiple``, of this tag and all before it; 0: none
    singles: list[int]  #: and acks of these, each by itself


class Settlements:
    """Knows the delivery tags of one channel, which the broker counts upwards, that are not settled.

    An ack with ``multiple`` covers every tag up to its own (AMQP 0-9-1, Basic.Ack), so it can be sent only as
    far as no delivery is left that somebody still works on. What is kept is bounded by the prefetch, however
    long the oldest one takes.
    """

    def __init__(self) -> None:
        self._outstanding: set[int] = set()
        # The same in the order of their arrival; and, until they are at its head, some that are settled.
        self._line: collections.deque[int] = collections.deque()

    def __len__(self) -> int:
        return len(self._outstanding)

    def arrived(self, tag: int) -> None:
        """There is a delivery more."""
        self._outstanding.add(tag)
        self._line.append(tag)

    def knows(self, tag: int) -> bool:
        """Whether it is not settled: the broker closes the channel over a tag that it does not know."""
        return tag in self._outstanding

    def settle(self, acked: Iterable[int], otherwise: Iterable[int]) -> Acks:
        """Note tags as settled, and say which acks to send.

        One with ``multiple`` may cover tags of ``otherwise``: then it is to be sent after what settles those.
        """
        outstanding, line = self._outstanding, self._line
        outstanding.difference_update(otherwise)
        acked = outstanding.intersection(acked)
        outstanding -= acked
        while line and line[0] not in outstanding:
            line.popleft()
        if len(line) > 2 * len(outstanding) + _SLACK:
            self._line = line = collections.deque(sorted(outstanding))
        if not line:
            return Acks(max(acked, default=0), [])
        covered = [tag for tag in acked if tag < line[0]]
        return Acks(max(covered, default=0), sorted(acked.difference(covered)))
