"""Which deliveries of a channel are settled, so that many can be acked in one frame. Pure: no I/O."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Acks(NamedTuple):
    """What to send."""

    up_to: int  #: one ack with ``multiple``, of this tag and all before it; 0: none
    singles: list[int]  #: and acks of these, each by itself


class Settlements:
    """Knows of each delivery tag of one channel, which the broker counts from 1, whether it is settled.

    An ack with ``multiple`` covers every tag up to its own (AMQP 0-9-1, Basic.Ack), so it can be sent only as
    far as no delivery is left that somebody still works on.
    """

    def __init__(self) -> None:
        self._lowest = 1  # the lowest tag that is not settled
        self._settled: set[int] = set()  # those above it that are

    def settle(self, acked: Iterable[int], otherwise: Iterable[int]) -> Acks:
        """Note tags as settled, and say which acks to send, after what settles the others."""
        fresh, before = set(acked), self._settled
        before.update(otherwise)
        lowest, up_to = self._lowest, 0
        while True:
            if lowest in fresh:
                fresh.remove(lowest)
                up_to = lowest
            elif lowest in before:
                before.remove(lowest)
            else:
                break
            lowest += 1
        self._lowest = lowest
        before |= fresh
        return Acks(up_to, sorted(fresh))
