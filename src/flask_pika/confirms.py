"""The ledger of unconfirmed publishes: pure, without I/O, threads or a clock. Its user holds a lock.

A publish is in one of four places, and leaves the last one never::

    waiting ------take()------> in flight on a lane ------settle()------> settled
       ^                          |            |
       |                     lane lost    channel closed over one message, nobody says which
       +--------------------------+            |
                                               v
                     in flight on the lane for suspects <--take_suspects()-- suspected

1. A *lane* is a channel in confirm mode. It counts delivery tags from 1, as the broker does (RabbitMQ,
   "Consumer Acknowledgements and Publisher Confirms"); acks come out of order, and for several at a time.
2. A lost lane says nothing about what was in flight on it: that is *unknown*. It is sent again, unless its
   caller said not to, or is gone.
3. A channel that the broker closes over one message (404, no such exchange) takes all others with it. If the
   broker names the exchange, what went there is suspected, and sent again one by one; if it does not, all are
   suspected, and sent again in halves. What is alone on its lane when that is closed was at fault; and when
   its exchange does not exist, so is what is suspected and goes there, too.
4. Basic.Return carries no delivery tag, and comes before its ack on the same channel: it is matched by
   message id, exchange and routing key.
5. A nack that is not believed (see flask_pika.nacks) settles nothing: the publish waits in line for its
   destination, and is then sent again. What nacks is replaced: a main lane whose channel has a successor is
   *retiring*, and is heard until nothing is in flight on it.
6. A caller that gives up takes a publish that waits with it. One that is in flight stays, and counts, until
   the broker's word or the lane's end; then it is forgotten.
"""

from __future__ import annotations

import collections
import enum
import itertools
import math
import re
from collections.abc import Iterable
from typing import Generic, TypeVar

from pika.spec import NOT_FOUND

from .nacks import Nacks

#: How many exchanges are remembered over which a channel was closed.
_MOST_DIVERTED = 1000


class Outcome(enum.Enum):
    """What became of a publish."""

    CONFIRMED = "confirmed"
    NACKED = "nacked"  #: the broker did not take it
    RETURNED = "returned"  #: the broker has it no more: no queue wanted it
    REFUSED = "refused"  #: the broker closed the channel over it
    UNKNOWN = "unknown"  #: sent, and the connection went before the confirm
    GIVEN_UP = "given up"  #: never sent, or unknown: its caller stopped waiting


class Publish:
    """One message on its way. The ledger's user adds what it takes to send it and to tell its caller."""

    __slots__ = ("abandoned", "held", "known", "lane", "nacked", "outcome", "reply", "sent")

    # What it is about, from its envelope.
    exchange: str
    routing_key: str
    message_id: str
    #: Bytes that it counts for.
    size: int
    #: Whether it may be sent again when nobody knows whether it arrived.
    retry: bool
    #: Whether the broker returns it when no queue wants it.
    mandatory: bool = True

    def __init__(self) -> None:
        self.outcome: Outcome | None = None
        #: Whether it was on the wire, ever: then giving up leaves it unknown.
        self.sent = False
        #: Whether its caller has given up: nobody is to be told.
        self.abandoned = False
        #: Whether it ever came into the ledger.
        self.known = False
        #: The lane that it is in flight on.
        self.lane: object = None
        #: Whether a nack, which was not believed, is the last word on it.
        self.nacked = False
        #: Whether it waits behind one that was nacked, and was never sent itself.
        self.held = False
        #: Reply code and text of a Basic.Return or Channel.Close.
        self.reply: tuple[int, str] | None = None


P = TypeVar("P", bound=Publish)

#: Each channel has a number of its own here, which is higher than those of all before it.
_numbers = itertools.count(1)


class Lane(Generic[P]):
    """The publishes in flight on one channel, by delivery tag; and when that is gone, on the one after it.

    The channel itself, which sends them, is a :class:`flask_pika.carrier.Carrier`.

    :param opened: when its channel was opened, on the clock of the nacks. The one after it is younger than
        that says.
    """

    def __init__(self, opened: float = -math.inf) -> None:
        self.opened = opened
        #: Its channel's, among all that there were: not AMQP's.
        self.number = next(_numbers)
        self._by_tag: dict[int, P] = {}
        self._lowest = 1  # nothing below is in flight
        self._next = 1
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._by_tag)

    def add(self, publish: P) -> None:
        """Note what is sent next on the channel."""
        publish.lane = self
        publish.sent = True
        self._by_tag[self._next] = publish
        self._next += 1
        self.bytes += publish.size

    def pop(self, tag: int, multiple: bool) -> list[P]:
        """What an ack or nack is about. Tag 0 with ``multiple`` is all of it (AMQP 0-9-1, basic.ack)."""
        if multiple:
            last = tag if tag else self._next - 1
            numbers = range(self._lowest, min(last, self._next - 1) + 1)
            found = [one for number in numbers if (one := self._by_tag.pop(number, None)) is not None]
            self._lowest = max(self._lowest, numbers.stop)
        else:
            publish = self._by_tag.pop(tag, None)
            found = [] if publish is None else [publish]
            # Step by step, so that a multiple after a million single ones has no million to walk.
            while self._lowest < self._next and self._lowest not in self._by_tag:
                self._lowest += 1
        for publish in found:
            publish.lane = None
            self.bytes -= publish.size
        return found

    def returned(self, message_id: str, exchange: str, routing_key: str) -> P | None:
        """Which publish a Basic.Return is about: the first such one that was not returned yet."""
        # What is in flight, in order; not the tags from the lowest on, of which one may be stuck for long.
        for publish in self._by_tag.values():
            if (
                publish.reply is None
                and publish.mandatory
                and publish.message_id == message_id
                and publish.routing_key == routing_key
                and publish.exchange == exchange
            ):
                return publish
        return None

    def end(self) -> list[P]:
        """Everything in flight, in order: the channel is gone, and the next one counts from 1 again."""
        lost = self.pop(0, True)
        self._lowest = self._next = 1
        self.number = next(_numbers)
        return lost


class Ledger(Generic[P]):
    """All publishes of one publisher that are not settled.

    :param max_messages: how many there may be.
    :param max_bytes: and of how many bytes; a single one may be larger.
    :param nacks: says which are believed; by default, all.
    """

    def __init__(self, max_messages: int, max_bytes: int, nacks: Nacks[P] | None = None) -> None:
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._waiting: collections.deque[P] = collections.deque()
        self._suspected: collections.deque[list[P]] = collections.deque()
        # Exchanges over which a channel was closed: what goes there is suspected until one is confirmed.
        self._diverted: dict[str, None] = {}
        self.main: Lane[P] = Lane()
        self.suspects: Lane[P] = Lane()
        #: Earlier main lanes, on which something is still in flight; the oldest first.
        self.retiring: list[Lane[P]] = []
        self._nacks = nacks
        # A connection ended over one message: the main lane rests until that is found among the suspected.
        self._seeking = False
        #: Publishes and bytes that are not settled, wherever they are.
        self.messages = 0
        self.bytes = 0
        #: How often a publish was put back to be sent again.
        self.retried = 0

    @property
    def waits(self) -> bool:
        """Whether there is something to take for the main lane."""
        return bool(self._waiting)

    @property
    def has_suspects(self) -> bool:
        """Whether there is something to take for the suspects' lane."""
        return bool(self._suspected)

    def fits(self, size: int) -> bool:
        """Whether one more of this size is within the bounds."""
        return self.messages < self._max_messages and (
            self.bytes + size <= self._max_bytes or not self.messages
        )

    def add(self, publish: P) -> None:
        """A new publish. Whether it fits is the caller's to ask."""
        publish.known = True
        self._waiting.append(publish)
        self.messages += 1
        self.bytes += publish.size

    def take(self, messages: int, size: int) -> list[P]:
        """What the main lane sends next, so that at most ``messages`` and ``size`` bytes are in flight."""
        lane: Lane[P] = self.main
        taken: list[P] = []
        self._seeking = self._seeking and bool(self._suspected or len(self.suspects))
        if self._seeking:
            return taken
        waiting, diverted = self._waiting, self._diverted
        holding = self._nacks if self._nacks is not None and self._nacks.holds_any else None
        while waiting and len(lane) < messages and (lane.bytes + waiting[0].size <= size or not len(lane)):
            publish = waiting.popleft()
            if publish.outcome is not None:
                continue  # an interrupted give_up() has left it
            if diverted and publish.exchange in diverted:
                self._suspected.append([publish])
                continue
            if holding is not None and holding.holds(publish):
                continue
            lane.add(publish)
            taken.append(publish)
        if not taken:
            self._check_counts()
        return taken

    def take_suspects(self) -> list[P]:
        """What the suspects' lane, which is empty, sends next: a group, in which one may be at fault."""
        while self._suspected:
            group = [publish for publish in self._suspected.popleft() if publish.outcome is None]
            for publish in group:
                self.suspects.add(publish)
            if group:
                return group
        return []

    def settle(self, lane: Lane[P], tag: int, multiple: bool, ack: bool) -> list[P]:
        """The broker's ack or nack; what it settled, each with its outcome."""
        found = lane.pop(tag, multiple)
        if lane is self.suspects:
            for publish in found:
                self._diverted.pop(publish.exchange, None)
        nacks = self._nacks
        if nacks is not None and not ack:
            found = [one for one in found if nacks.believes(one, lane.number, lane.opened)]
            self._put_back(nacks.freed())
        elif nacks is not None and nacks.watches:
            for publish in found:
                nacks.acked(publish, lane.number)
            self._put_back(nacks.freed())
        for publish in found:
            if not ack:
                publish.outcome = Outcome.NACKED
            elif publish.reply is not None:
                publish.outcome = Outcome.RETURNED
            else:
                publish.outcome = Outcome.CONFIRMED
            self.bytes -= publish.size
        self.messages -= len(found)
        if self.retiring and not len(lane) and lane in self.retiring:
            self.retiring.remove(lane)
        self._check_counts()
        return found

    def renew(self, opened: float) -> Lane[P]:
        """The main lane's channel has a successor, opened at that time; the earlier lane."""
        lane = self.main
        self.main = Lane(opened)
        if len(lane):
            self.retiring.append(lane)
        return lane

    def try_again(self) -> None:
        """Put back what was nacked, and whose time has come."""
        if self._nacks is not None:
            trials = self._nacks.trials()
            self._put_back(self._nacks.freed())
            self._put_back(trials)

    def _put_back(self, freed: list[P]) -> None:
        """What was in line goes before what waits."""
        if freed:
            self.retried += sum(publish.nacked for publish in freed)
            self._waiting.extendleft(reversed(freed))

    def returned(
        self, lane: Lane[P], message_id: str, exchange: str, routing_key: str, reply: tuple[int, str]
    ) -> None:
        """The broker's Basic.Return. Its ack will settle it."""
        publish = lane.returned(message_id, exchange, routing_key)
        if publish is not None:
            publish.reply = reply

    def channel_closed(self, lane: Lane[P], code: int, text: str) -> list[P]:
        """The broker closed a lane's channel over one message; what that settled."""
        lost = lane.end()
        if lane in self.retiring:
            self.retiring.remove(lane)
        if len(lost) == 1 and lost[0].reply is None:
            if code == NOT_FOUND and lost[0].exchange == _named_exchange(text):
                # So is all that waits for its turn to hear the same: one channel each would take long.
                lost += self._suspected_to(lost[0].exchange)
            for publish in lost:
                publish.reply = (code, text)
            return self._settled(lost, Outcome.REFUSED)
        if lane is self.suspects:
            middle = len(lost) // 2
            groups = [lost[:middle], lost[middle:]]
            rest: list[P] = []
        else:
            exchange = _named_exchange(text)
            named = [publish for publish in lost if publish.exchange == exchange]
            if named:
                self._divert(named[0].exchange)
                groups = [[publish] for publish in named]
                rest = [publish for publish in lost if publish.exchange != exchange]
            else:
                groups, rest = [lost], []
        settled: list[P] = []
        for group in reversed(groups):
            again, done = self._after_loss(group, (code, text))
            settled += done
            if again:
                self._suspected.appendleft(again)
        again, done = self._after_loss(rest, (code, text))
        self._waiting.extendleft(reversed(again))
        return settled + done

    def connection_lost(self, blame: tuple[int, str] | None = None) -> list[P]:
        """All lanes are gone; what that settled. The rest waits for new ones.

        :param blame: reply code and text, when the broker closed the connection over one message.
        """
        settled: list[P] = []
        self._seeking = self._seeking or blame is not None
        lanes = [*self.retiring, self.main]
        self.retiring = []
        nacked, behind = ([], []) if self._nacks is None else self._nacks.forget()
        self._put_back(behind)
        flying = [lane for lane in (*lanes, self.suspects) if len(lane)]
        if blame is not None and len(flying) > 1:
            # Nobody says on which lane it was: what was on the main ones is suspected, too.
            again, settled = self._after_loss([one for lane in lanes for one in lane.end()])
            if again:
                self._suspected.appendleft(again)
        elif blame is not None and flying:
            settled = self.channel_closed(flying[0], *blame)
        # Each is ended, also when nothing is in flight on it: its next channel counts from 1 again.
        lost = [one for lane in lanes for one in lane.end()]
        # What had been nacked, and was sent again, is older than what is in line behind it.
        tried = [one for one in lost if one.nacked]
        again, done = self._after_loss([one for one in lost if not one.nacked])
        self._waiting.extendleft(reversed(again))
        self._put_back(nacked)
        settled += done
        again, done = self._after_loss(tried)
        self._waiting.extendleft(reversed(again))
        settled += done
        again, done = self._after_loss(self.suspects.end())
        if again:
            self._suspected.appendleft(again)
        return settled + done

    def give_up(self, publishes: Iterable[P]) -> list[P]:
        """Their callers have stopped waiting; those of them that were not settled already."""
        gone = [one for one in publishes if one.known and one.outcome is None and not one.abandoned]
        left = []
        for publish in gone:
            publish.abandoned = True
            if publish.lane is None:
                left.append(publish)
        if left:
            # Of a nacked one that was not sent again, and of one that is held behind it, it is known that the
            # broker has it not, and why.
            self._settled([one for one in left if not (one.nacked or one.held)], Outcome.GIVEN_UP)
            self._settled([one for one in left if one.nacked or one.held], Outcome.NACKED)
            if self._nacks is not None:
                self._nacks.left(left)
            self._waiting = collections.deque(one for one in self._waiting if one.outcome is None)
            groups = ([one for one in group if one.outcome is None] for group in self._suspected)
            self._suspected = collections.deque(group for group in groups if group)
        self._check_counts()
        return gone

    def unsettled(self) -> list[P]:
        """Every publish whose caller still waits."""
        everywhere = [*self._waiting]
        for lane in (*self.retiring, self.main, self.suspects):
            everywhere += lane._by_tag.values()
        if self._nacks is not None:
            everywhere += self._nacks.unsettled()
        for group in self._suspected:
            everywhere += group
        return [publish for publish in everywhere if not publish.abandoned]

    def _suspected_to(self, exchange: str) -> list[P]:
        """Take out what is suspected, waits, and goes to this exchange."""
        found = [one for group in self._suspected for one in group if one.exchange == exchange]
        groups = ([one for one in group if one.exchange != exchange] for group in self._suspected)
        self._suspected = collections.deque(group for group in groups if group)
        return found

    def _after_loss(self, lost: list[P], why: tuple[int, str] | None = None) -> tuple[list[P], list[P]]:
        """Of what was in flight on a lane that is gone: what is sent again, and what is settled now.

        :param why: reply code and text, when the broker closed the channel.
        """
        returned = [one for one in lost if one.reply is not None]
        gone = [one for one in lost if one.reply is None and one.abandoned]
        unknown = [one for one in lost if one.reply is None and not one.abandoned and not one.retry]
        again = [one for one in lost if one.reply is None and not one.abandoned and one.retry]
        self.retried += len(again)
        for publish in again:
            publish.nacked = False  # of the last time that it was sent, nothing is known
        for publish in unknown:
            publish.reply = why
        settled = self._settled(returned, Outcome.RETURNED) + self._settled(unknown, Outcome.UNKNOWN)
        self._settled(gone, Outcome.GIVEN_UP)
        return again, settled

    def _settled(self, publishes: list[P], outcome: Outcome) -> list[P]:
        for publish in publishes:
            publish.outcome = outcome
            self.bytes -= publish.size
        self.messages -= len(publishes)
        return publishes

    def _check_counts(self) -> None:
        """Where no publish is left, set the counts to 0: an interrupt may have left something in them.

        That is a signal handler's exception, between two instructions of a caller who adds or gives up. To be
        called when no publish is on its way from one place to another.
        """
        if self._waiting or self._suspected or self.main._by_tag or self.suspects._by_tag or self.retiring:
            return
        if self._nacks is None or not self._nacks.holds_any:
            self.messages = self.bytes = 0

    def _divert(self, exchange: str) -> None:
        self._diverted[exchange] = None
        if len(self._diverted) > _MOST_DIVERTED:
            del self._diverted[next(iter(self._diverted))]


def _named_exchange(text: str) -> str | None:
    """The exchange in "NOT_FOUND - no exchange 'x' in vhost '/'" and its like (RabbitMQ 3.10, 4.0)."""
    found = re.search(r"exchange '(.*)' in vhost", text)
    if found is None:
        return None
    return "" if found[1] == "amq.default" else found[1]
