"""A look into a queue of dead letters that loses nothing, and leaves their order as it was.

The letters come in *windows*. A window is a consumer that may hold so many of them, its prefetch; once it
holds as many, the next one follows. Two things that RabbitMQ does are behind that (3.10, tried).

**Order.** What is given back to a quorum queue goes behind what was given back before, and before what nobody
has had. So a look at the first five of ten that were looked at before would put those five last. Therefore,
once the reader had a letter that was delivered before, it reads on until one comes that was not: then all
that was ever given back is here, and goes back in one piece. It goes back by dropping the connection, which
keeps the order: consumer by consumer, by their tags, as long as there are 32 consumers at the most. (A
Basic.Nack of many, and Basic.Get, shuffle.)

**Acks.** A channel that has sent a quorum queue 32 acks which are not on disk yet keeps the next ones to
itself, and forgets them when it ends (RabbitMQ's rabbit_fifo_client.erl). So before the connection is
dropped, :meth:`DeadReader.settle` makes sure that there are none. Who removes letters one by one, and keeps
none, never has so many in hand: one window of 30 serves for all.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, TypeVar, cast

from pika import BasicProperties
from pika import exceptions as pika_errors
from pika.adapters.blocking_connection import BlockingChannel

from . import pika_internals
from .connecting import Connected, connect, connection_name
from .dead_letters import Letter, without_count
from .encoded import EncodedProperties
from .errors import BrokerUnavailable, UndecodableMessage
from .gate import Gate
from .nodes import Node
from .slot import Slot
from .state import State
from .topology import DEAD

_Self = TypeVar("_Self", bound="DeadReader")

#: Seconds for the connection, and for each answer of the broker.
TIMEOUT = 10.0
#: Seconds without a delivery after which the broker is asked whether there are more.
_IDLE = 0.3
#: Seconds after which RabbitMQ says that a quorum queue is empty whose leader does not answer it
#: (rabbit_fifo_client:stat/1, 3.10: 250 ms), and a little less; and how often it is asked, then.
_NO_ANSWER, _ASKED = 0.2, 5
#: Seconds that the broker may take to have back what is given back.
_GIVE_BACK = 2.0
#: Windows for all letters: they keep the order, and leave room for :meth:`DeadReader._ask_queue`'s consumers.
_WINDOWS = 30
#: Letters of a window, at the least and, as AMQP counts them, at the most.
_WINDOW, _WIDEST = 30, 65_535
#: Letters of the windows after the first, when some could not be removed and stay here; not so many that any
#: is held for too long.
_AROUND_KEPT = 100
#: Acks that a quorum queue is sure to get, whatever becomes of the channel.
_SURE = 30


class DeadLettersError(Exception):
    """What was asked for cannot be done; the text says why, in one line."""


class Undelivered(DeadLettersError):
    """The broker did not take a message.

    :ivar reply_code: why it closed the channel; 0 when it did not.
    """

    def __init__(self, text: str, reply_code: int = 0) -> None:
        super().__init__(text)
        self.reply_code = reply_code


class Unsendable(DeadLettersError):
    """A message cannot be sent, as it is."""


class DeadReader:
    """A connection of its own to the dead letters of a queue. For one thread, in a ``with`` block.

    What was read and not removed goes back at the end, or when the process dies.

    :param stopped: whether to read no further.
    :raises BrokerUnavailable: at the beginning of the block.
    """

    def __init__(self, state: State, app_name: str, queue: str, stopped: Callable[[], bool]) -> None:
        self.queue = queue
        self.dead = queue + DEAD
        self._nodes = state.settings.nodes
        self._name = f"{connection_name(app_name)}: dead letters"
        self._stopped = stopped
        self._connected: list[Connected] = []
        self._slot = Slot(self._dial, Gate())
        self._arrived: deque[tuple[Any, BasicProperties, bytes]] = deque()  # delivered, and not given out yet
        self._kept = contextlib.ExitStack()
        # Letters that were counted, given out to the caller, and removed.
        self._total = self._place = self._removed = 0
        self._windows = 0  # that were opened
        self._window = self._wide = 0  # letters of the open one, and of those after it
        # Of the open one: given out and not removed; delivered; removed.
        self._held = self._came = self._went = 0
        self._first_tag, self._last_tag = 1, 0  # delivery tags: the open window's first, and the last so far
        self._all_kept = False
        self._redelivered = False  # whether the letter that was given out last had been delivered before
        self._unsure = 0  # acks of which it is not known whether the queue got them
        self._confirms: BlockingChannel | None = None  # the channel that is in confirm mode

    def _dial(self, deadline: float) -> Connected:
        self._connected.append(connect(self._nodes, self._name, deadline))
        return self._connected[-1]

    def __enter__(self: _Self) -> _Self:
        now = time.monotonic()
        self._slot.open(asked_at=now, deadline=now + TIMEOUT)
        self._encoded = self._kept.enter_context(pika_internals.keeping_properties())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None or issubclass(kind, Exception):  # and not a second Ctrl-C
                # What cannot be given back in one piece goes back with the connection.
                with contextlib.suppress(DeadLettersError, BrokerUnavailable):
                    self.settle()
                    self._give_back()
                    self._slot.close()
        finally:
            self._kept.close()
            self._slot.abandon()

    @property
    def _node(self) -> Node:
        return self._connected[-1].node

    @property
    def _channel(self) -> BlockingChannel:
        channel = self._slot.channel
        if channel is None or not channel.is_open:
            if self._windows:  # and what was delivered is somebody else's by now
                raise DeadLettersError(
                    f"{self._node} closed the channel; it may be that messages were held for longer than its"
                    " consumer_timeout"
                )
            now = time.monotonic()
            self._slot.open(asked_at=now, deadline=now + TIMEOUT)
        return cast("BlockingChannel", self._slot.channel)

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        """Bounds what is asked of the broker, and says in one line what went wrong."""
        try:
            with pika_internals.bounded(self._connected[-1].connection, TIMEOUT):
                yield
        except pika_internals.DeadlineReached as exc:
            self._slot.abandon()
            raise DeadLettersError(f"{self._node} did not answer within {TIMEOUT:g} s") from exc
        except pika_errors.ChannelClosedByBroker as exc:
            raise DeadLettersError(f"{self._node}: {exc.reply_code} {exc.reply_text}") from exc
        except pika_errors.AMQPError as exc:
            raise DeadLettersError(f"the connection to {self._node} was lost: {exc!r}") from exc

    def count(self) -> int:
        """How many dead letters are there, in nobody's hands.

        :raises DeadLettersError: there is no such queue.
        """
        return self._count(self.dead, f"{self.queue!r} has no dead letters: ")

    def check_queue(self) -> None:
        """Make sure that there is the queue that they came from.

        :raises DeadLettersError: there is none.
        """
        self._count(self.queue, "")

    def _count(self, queue: str, why: str) -> int:
        channel, count = self._channel, 0
        try:
            for _ in range(_ASKED):
                asked = time.monotonic()
                with self._asking():
                    count = channel.queue_declare(queue, passive=True).method.message_count
                if count or time.monotonic() - asked < _NO_ANSWER:
                    break
            return count
        except DeadLettersError as exc:
            closed = exc.__cause__
            if isinstance(closed, pika_errors.ChannelClosedByBroker) and closed.reply_code == 404:
                raise DeadLettersError(f"{why}there is no queue {queue!r} on {self._node}") from exc
            raise

    def letters(self, total: int, all_kept: bool, first: int | None = None) -> Iterator[Letter]:
        """The dead letters that were there when they were counted, in their order.

        :param total: how many were counted.
        :param all_kept: whether they are kept, and not removed one by one.
        :param first: how many are to be on their way at first, when more than these may not be wanted.
        """
        self._total = total
        self._all_kept = all_kept
        self._wide = min(max(_WINDOW, math.ceil(total / _WINDOWS)), _WIDEST) if all_kept else _AROUND_KEPT
        at_first = self._wide if all_kept else _WINDOW
        self._window = min(at_first, first or at_first)
        while self._place < total and (letter := self._next(self._stopped)) is not None:
            yield letter

    def _read_on(self) -> None:
        """Read what has to go back together with what was read."""
        while self._redelivered and self._place < self._total and self._next(lambda: False) is not None:
            pass

    def _next(self, stopped: Callable[[], bool]) -> Letter | None:
        began = asked = time.monotonic()
        while not self._arrived:
            if stopped():
                return None
            if self._windows == 0 or self._held >= self._window:
                self._begin_window()
            self._process(_IDLE)
            now = time.monotonic()
            if self._arrived or now - asked < _IDLE:
                continue
            asked = now
            if self.count() == 0 and not self._arrived:  # somebody else has had the rest
                return None
            if not self._arrived and now - began > TIMEOUT:
                raise DeadLettersError(
                    f"{self._node} delivers nothing from {self.dead!r}, though there is something: another"
                    " consumer may have it to itself"
                )
        method, properties, body = self._arrived.popleft()
        self._place += 1
        self._held += 1
        self._redelivered = method.redelivered
        encoded = without_count(properties, self._encoded(properties))
        return Letter(
            *(self._place, method.delivery_tag, method.exchange, method.routing_key),
            *(properties, encoded, body),
        )

    def _begin_window(self) -> None:
        channel = self._channel
        with self._asking():
            if self._windows:  # all that it was to have was delivered
                channel.basic_cancel(self._tag())
                self._held, self._window = 0, self._wide
            self._windows += 1
            self._came = self._went = 0
            self._first_tag = self._last_tag + 1
            channel.basic_qos(prefetch_count=self._window)
            channel.basic_consume(self.dead, self._deliver, consumer_tag=self._tag())

    def _tag(self) -> str:
        return f"flask-pika-dead-{self._windows:06}"

    def _deliver(self, _channel: Any, method: Any, properties: BasicProperties, body: bytes) -> None:
        self._came += 1
        self._last_tag = method.delivery_tag
        self._arrived.append((method, properties, body))

    def _process(self, seconds: float) -> None:
        if self._windows:
            _ = self._channel  # raises, when it was closed meanwhile: pika tells nobody
        with self._asking():
            connection: Any = self._connected[-1].connection  # pika says int, and takes a float
            connection.process_data_events(seconds)

    def pause(self, seconds: float) -> None:
        """Wait, and keep the connection alive meanwhile."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and not self._stopped():
            self._process(min(left, 0.1))

    def remove(self, letter: Letter) -> None:
        """Take it out of the dead letters."""
        self.remove_tag(letter.tag)
        self._held -= 1

    def remove_tag(self, tag: int) -> None:
        """Take one out of them that was read some time ago."""
        channel = self._channel
        with self._asking():
            channel.basic_ack(tag)
        self._removed += 1
        self._unsure += 1
        self._went += tag >= self._first_tag

    def settle(self) -> None:
        """Return when the queue has heard of all that was removed. Nothing is read and removed after that.

        :raises DeadLettersError: it is not known whether it has.
        """
        self._read_on()
        self._redelivered = False
        channel = self._slot.channel
        one_by_one = not self._all_kept and self._windows == 1  # as many as are on their way, at the most
        if self._unsure <= _SURE or one_by_one or channel is None or not channel.is_open:
            return
        self._fill_window()
        self._ask_queue()

    def _keep_up(self) -> None:
        """Return when the queue has heard of what was removed, but for a few. Reading may go on."""
        if self._unsure < _SURE or not self._all_kept:
            return
        if self._fill_window():  # and so each ack made room for one
            self._unsure = 0
        else:
            windows = self._windows
            self._ask_queue()
            with self._asking():
                while self._windows > windows:
                    self._channel.basic_cancel(self._tag())
                    self._windows -= 1

    def _fill_window(self) -> bool:
        """Wait until no ack makes room for more in the window: that would come before what others get now.

        :returns: whether the window is full, or there is nothing to fill it.
        """
        end = time.monotonic() + TIMEOUT
        while (has_room := self._came - self._went < self._window) and self.count():
            if time.monotonic() > end:
                raise DeadLettersError(f"{self._node} did not remove all of them within {TIMEOUT:g} s")
            self._process(0.01)
        return not has_room

    def _ask_queue(self) -> None:
        # The queue executes these while the channel waits, and what it was told of before came first. With
        # the first one's answer the acks that it was sent are done with, and with the second one's, the
        # channel has heard of that: it sends those that it kept, before it looks at anything else.
        channel = self._channel
        with self._asking():
            for _ in range(2):
                self._windows += 1  # what they get goes back behind everything else
                channel.basic_qos(prefetch_count=1)
                # For the window that is open, as long as it has room: see above, about the order.
                last = {"x-priority": -1}
                channel.basic_consume(self.dead, _ignore, consumer_tag=self._tag(), arguments=last)
            channel.basic_qos(prefetch_count=1)
        self._unsure = 0

    def revive(self, letter: Letter) -> None:
        """Give it to the queue that it came from, and then take it out of the dead letters.

        Over one channel, in this order: whenever it ends, one message at the most is in both.

        :raises Unsendable: it cannot be sent as it is.
        :raises Undelivered: the broker did not take it. In either case it is still among the dead letters.
        """
        try:
            properties = letter.revived()
        except UndecodableMessage as exc:
            raise Unsendable(str(exc)) from exc
        self._keep_up()
        self._publish(self.queue, properties, letter.body)
        self.remove(letter)

    def put(self, properties: EncodedProperties, body: bytes) -> None:
        """Put a message to the dead letters.

        :raises Undelivered: the broker did not take it.
        """
        self._publish(self.dead, properties, body)

    def _publish(self, queue: str, properties: EncodedProperties, body: bytes) -> None:
        channel = self._channel
        try:
            with self._asking():
                if self._confirms is not channel:
                    channel.confirm_delivery()
                    self._confirms = channel
                channel.basic_publish("", queue, body, properties, mandatory=True)
        except DeadLettersError as exc:
            cause = exc.__cause__
            if isinstance(cause, pika_errors.UnroutableError):
                raise Undelivered(f"there is no queue {queue!r} any more") from exc
            if isinstance(cause, pika_errors.NackError):
                raise Undelivered(f"{queue!r} takes no more: it is full, or failed") from exc
            if isinstance(cause, pika_errors.ChannelClosedByBroker):
                text = f"{cause.reply_code} {cause.reply_text}"
                raise Undelivered(text, cause.reply_code) from exc
            raise

    def _give_back(self) -> None:
        """Drop the connection, and return when the broker has back what was not removed."""
        channel = self._slot.channel
        if self._windows == 0 or channel is None or not channel.is_open:
            return
        with self._asking():
            channel.basic_qos(prefetch_count=1)  # answered when the broker has done all that came before
        # Without a word: pika's goodbye would give back what is still on its way, one by one, and so put it
        # before what had come earlier.
        self._slot.abandon()
        self._windows = 0
        end = time.monotonic() + _GIVE_BACK
        while self.count() < self._total - self._removed and time.monotonic() < end:
            time.sleep(0.01)


def _ignore(*_delivered: object) -> None:
    """It goes back with the others."""
