"""Which nacks are to be believed: pure, without I/O or threads. Its user holds a lock, and gives it a clock.

A broker nacks what it refuses: a queue is full, and rejects. But RabbitMQ (seen with 3.10.8) also nacks, for
as long as the channel lives, all that comes on a channel whose *first* message to a quorum queue came while
that queue had no leader, a third of a second or so; channels whose first message comes later work at once.
Who reconnects in milliseconds when a node has died is such a one. So a destination (exchange and routing key)
is in one of these conditions::

    nothing known --nack--> doubted --nack on a channel that is young enough--> refusing --(quiet)--> nothing
                             |   ^                                                 ^
                            ack  +---nack on another channel---+                   |
                             v                                 |                   |
                           proven, on the ack's channel -------+--nack on that one-+

1. *Doubted*: its nacked messages wait in a line, and with them what else is to go there: a message that is
   sent too soon is what spoils a channel. After a delay, which doubles, the first of them is sent alone, as a
   trial, on a channel that is opened for that. When it is confirmed, the others follow. Its silence is no
   nack: they follow, too.
2. A nack on a channel that was opened long enough after the first one is the destination's own, and so is one
   after many trials, where no other channel was to be had: it is *refusing*, and the others follow, to be
   refused one by one. From then on nacks are believed at once. The verdict may have come too early (no
   majority for a minute): so while nacks come, channels are replaced now and then.
3. *Proven*: what was confirmed on a channel cannot be stuck on it. A nack on that one is believed at once,
   and makes the destination refusing as well, on the next channels: a full queue that takes one now and then.
4. Routing keys may be as many as messages, with one full queue behind them all. So when many destinations of
   one exchange refuse, the nacks of all are believed, until none has come for as long.
"""

from __future__ import annotations

import collections
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Generic, TypeVar

from .backoff import Backoff

if TYPE_CHECKING:
    from .confirms import Publish

P = TypeVar("P", bound="Publish")
K = TypeVar("K")
V = TypeVar("V")

#: Delays before the trials; their sum, with any jitter, passes SURELY within 1.8 seconds.
BACKOFF = Backoff(first=0.1, longest=0.8)
#: Seconds after the first nack from which on a new channel's nack is the destination's own. A leader is found
#: in 0.3 s on an idle machine.
SURELY = 1.0
#: Trials in vain after which a nack is the destination's own whatever channel it is on: none was to be had.
TRIES = 8
#: Seconds after which a trial that has no answer holds up nobody any more.
PATIENCE = 1.0
#: Seconds of age after which a channel on which nacks are believed is replaced.
RENEWAL = 1.0
#: Seconds without a nack after which a destination that refused is as good as any.
QUIET = 30.0
#: Seconds without a nack after which what was doubted and not tried begins anew.
EPISODE = 5.0
#: Destinations of one exchange that refuse, from which on it is taken for all of them.
MANY = 10
#: Destinations that are remembered, of each kind. More are doubted only while messages wait for them.
MOST = 1000

Destination = tuple[str, str]


class _Doubt(Generic[P]):
    """What is known of a destination that nacked: while it is doubted, and for a while afterwards."""

    __slots__ = ("behind", "due", "first", "last", "nacked", "refuses", "trial", "tries")

    def __init__(self, now: float) -> None:
        self.first = self.last = now  # of its nacks
        self.refuses = False  # whether they are believed
        self.tries = 0  # trials in vain

        # Of use while it is doubted.
        self.due = now  # when the next trial is sent, or the wait for this one's answer ends
        self.trial: P | None = None
        self.nacked: collections.deque[P] = collections.deque()
        self.behind: collections.deque[P] = collections.deque()  # what came later, and was not sent

    @property
    def line(self) -> Iterator[P]:
        """What waits, in its order."""
        return itertools.chain(self.nacked, self.behind)

    def pop(self) -> P | None:
        """The first in line whose caller still waits."""
        for part in (self.nacked, self.behind):
            while part:
                publish = part.popleft()
                if publish.outcome is None:
                    publish.held = False
                    return publish
        return None


class Nacks(Generic[P]):
    """The destinations that nacked, and the messages in line for them.

    :param clock: in seconds, from any beginning.
    """

    def __init__(self, clock: Callable[[], float], backoff: Backoff = BACKOFF) -> None:
        self._clock = clock
        self._backoff = backoff
        # A destination that is doubted is in none of the others.
        self._doubted: dict[Destination, _Doubt[P]] = {}
        # By their last nack: those that refuse, and those of which it is open, because a trial had no answer
        # or there was nothing to try. Nothing waits for them.
        self._remembered: dict[Destination, _Doubt[P]] = {}
        self._proven: dict[Destination, int] = {}  # on which channel, by its number
        self._refusing_all: dict[str, float] = {}  # exchanges, and when their last nack came
        self._stuck = 0  # the youngest channel of which a nack was not believed
        self._is_stale = False  # nacks were believed, on a channel that may be old
        self._freed: list[P] = []

    @property
    def watches(self) -> bool:
        """Whether acks are of interest."""
        return bool(self._doubted or self._remembered)

    @property
    def has_tries(self) -> bool:
        """Whether there will be something to do: see :meth:`when`."""
        return self._is_stale or bool(self._doubted)

    @property
    def holds_any(self) -> bool:
        """Whether anything is kept from being sent."""
        return bool(self._doubted)

    def unsettled(self) -> list[P]:
        """What is in line, and not settled."""
        return [one for doubt in self._doubted.values() for one in doubt.line if one.outcome is None]

    # What the broker says

    def believes(self, publish: P, channel: int, opened: float) -> bool:
        """Whether a nack is the publish's outcome. If not, it was put in line, and will be sent again.

        :param channel: that the nack came on; those that are opened later have higher numbers.
        :param opened: when that was, or earlier.
        """
        where = (publish.exchange, publish.routing_key)
        now = self._clock()
        is_proven = self._proven.get(where) == channel
        doubt = self._doubted.get(where) or self._recall(where, now)
        doubt.last = now
        if is_proven:
            doubt.refuses = True
            self._remember(where, doubt)
            return True
        self._proven.pop(where, None)
        verdict = not doubt.refuses and (opened >= doubt.first + SURELY or doubt.tries >= TRIES)
        if doubt.refuses or verdict or self._refuses_all(publish.exchange, now):
            self._doubted.pop(where, None)
            self._free(doubt)
            doubt.refuses = True
            self._remember(where, doubt)
            if verdict:
                self._look_at_all(publish.exchange, now)
            self._is_stale = True
            return True
        self._stuck = max(self._stuck, channel)
        tried = doubt.trial is publish
        if tried or where not in self._doubted:
            doubt.trial = None
            doubt.tries += 1
            doubt.due = now + self._backoff.delay(doubt.tries)
            self._doubted[where] = doubt
        if publish.abandoned or not publish.retry:
            return True
        publish.nacked = True
        if tried:
            doubt.nacked.appendleft(publish)
        else:
            doubt.nacked.append(publish)
        return False

    def acked(self, publish: P, channel: int) -> None:
        """The broker took one, or returned it."""
        where = (publish.exchange, publish.routing_key)
        doubt = self._doubted.pop(where, None) or self._remembered.get(where)
        if doubt is not None:
            self._free(doubt)
            if not doubt.refuses:
                self._remembered.pop(where, None)
            self._proven[where] = channel
            _bound(self._proven)
        self._drop_quiet()

    # What is sent

    def holds(self, publish: P) -> bool:
        """Whether it must wait for its destination; then it was put in line."""
        doubt = self._doubted.get((publish.exchange, publish.routing_key))
        if doubt is None or doubt.trial is publish:
            return False
        publish.held = not publish.sent
        doubt.behind.append(publish)
        return True

    def freed(self) -> list[P]:
        """What need not wait any more, in its order."""
        freed, self._freed = self._freed, []
        return freed

    def when(self) -> float:
        """When something is to be done: see :meth:`wants_new` and :meth:`trials`."""
        if self._is_stale:
            return self._clock()
        return min((doubt.due for doubt in self._doubted.values()), default=math.inf)

    def wants_new(self, channel: int, opened: float) -> bool:
        """Whether what is to be done now wants a channel that is newer than this one."""
        now = self._clock()
        return (self._is_stale and now >= opened + RENEWAL) or any(
            channel <= self._stuck or opened < doubt.first + SURELY <= now
            for doubt in self._doubted.values()
            if doubt.due <= now and not _has_trial(doubt)
        )

    def trials(self) -> list[P]:
        """What is sent now, each alone to its destination, because its time has come."""
        now = self._clock()
        self._is_stale = False
        chosen: list[P] = []
        for where, doubt in [item for item in self._doubted.items() if item[1].due <= now]:
            publish = None
            if not _has_trial(doubt):
                publish = doubt.trial = doubt.pop()
            if publish is not None:
                doubt.due = now + PATIENCE
                chosen.append(publish)
                continue
            # No answer to the last one; or nothing in line, and who comes next finds a new channel.
            del self._doubted[where]
            self._free(doubt)
            self._remember(where, doubt)  # a late answer counts: nacks may take longer than PATIENCE
        return chosen

    def left(self, gone: Iterable[P]) -> None:
        """These were settled, some of them in line: their callers are gone."""
        for where in {(publish.exchange, publish.routing_key) for publish in gone}:
            doubt = self._doubted.get(where)
            if doubt is not None:
                doubt.nacked = collections.deque(one for one in doubt.nacked if one.outcome is None)
                doubt.behind = collections.deque(one for one in doubt.behind if one.outcome is None)

    def forget(self) -> tuple[list[P], list[P]]:
        """The connection is gone, and with it all channels; what was in line: nacked, and not sent."""
        doubts = list(self._doubted.values())
        self._doubted, self._remembered, self._refusing_all, self._proven = {}, {}, {}, {}
        self._is_stale = False
        nacked = self.freed() + [one for doubt in doubts for one in doubt.nacked]
        behind = [one for doubt in doubts for one in doubt.behind]
        for publish in behind:
            publish.held = False
        return nacked, behind

    def _refuses_all(self, exchange: str, now: float) -> bool:
        last = self._refusing_all.pop(exchange, None)
        if last is None or last + QUIET < now:
            return False
        self._refusing_all[exchange] = now
        return True

    def _look_at_all(self, exchange: str, now: float) -> None:
        """Whether one more that refuses makes it all of its exchange's destinations."""
        if not exchange:
            return  # of the default one, each is a queue of its own
        refuse = sum(doubt.refuses for where, doubt in self._remembered.items() if where[0] == exchange)
        if refuse >= MANY:
            self._refusing_all[exchange] = now
            _bound(self._refusing_all)

    def _free(self, doubt: _Doubt[P]) -> None:
        for publish in doubt.behind:
            publish.held = False
        self._freed += doubt.line
        doubt.nacked.clear()
        doubt.behind.clear()
        doubt.trial = None

    def _recall(self, where: Destination, now: float) -> _Doubt[P]:
        doubt = self._remembered.pop(where, None)
        if doubt is None or now > doubt.last + (QUIET if doubt.refuses else EPISODE):
            return _Doubt(now)
        return doubt

    def _drop_quiet(self) -> None:
        where = next(iter(self._remembered), None)
        if where is not None and self._remembered[where].last + QUIET < self._clock():
            del self._remembered[where]

    def _remember(self, where: Destination, doubt: _Doubt[P]) -> None:
        self._remembered[where] = doubt
        _bound(self._remembered)


def _has_trial(doubt: _Doubt[P]) -> bool:
    """Whether a trial is under way, whose caller may be gone."""
    return doubt.trial is not None and doubt.trial.outcome is None


def _bound(table: dict[K, V]) -> None:
    if len(table) > MOST:
        del table[next(iter(table))]
