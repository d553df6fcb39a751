"""The dispatcher: what of publishing is done in the link's thread. It sends, and hears the broker."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pika import exceptions as pika_errors
from pika.adapters.select_connection import SelectConnection
from pika.spec import NOT_FOUND

from . import pika_internals, signals
from .carrier import Carrier
from .confirms import Lane
from .connecting import refuses_channels
from .declaring import Preparation
from .errors import BrokerRefused, BrokerUnavailable, InvalidMessage
from .jobs import Job
from .link import Link, LinkState
from .pika_internals import Confirm
from .wire import Envelopes

if TYPE_CHECKING:
    from .outbox import Outbox

logger = logging.getLogger("flask_pika.publisher")

#: Replaced channels on which something is still in flight: with more, none is replaced.
_RETIRING = 4
#: How many channels it needs: one for all, one for suspects, and one to declare what is needed.
CHANNELS = 3
#: And how many more it uses, where it may: a successor of the first one, and those that were replaced.
SPARE_CHANNELS = 1 + _RETIRING
#: Seconds without replacing a channel, after a successor has cost the connection: the broker's user may have
#: no channel more.
_LIMITED = 60.0
#: Seconds between two looks for what is to be tried again, at the least and at the most.
_SOONEST, _LATEST = 0.02, 0.05
#: Seconds between two looks for futures whose deadline has passed.
_SWEEP = 0.05
#: AMQP's connection errors that one message can cause; the others are about the connection or the broker.
_OVER_ONE_MESSAGE = (501, 502, 503, 505, 506, 540)


class Dispatcher:
    """Carries an outbox's jobs to the broker, on two channels: one for all, and one for suspects.

    The one for all is replaced when it nacks, and may be stuck (see flask_pika.nacks). What is in flight on
    it is left to be confirmed there; then it is closed.

    Everything here is called in the link's thread: nothing waits. The jobs are the outbox's, under its lock.

    :param envelopes: told when a broker wants shorter frames.
    :param sender: the app, for signals.
    """

    #: Set once, before it runs.
    link: Link

    def __init__(
        self, outbox: Outbox, envelopes: Envelopes, sender: Callable[[], Any], preparation: Preparation
    ) -> None:
        self._outbox = outbox
        self._envelopes = envelopes
        self._sender = sender
        self._connection: SelectConnection | None = None
        self._main: Carrier | None = None
        self._suspects: Carrier | None = None
        self._successor: Carrier | None = None  # of the main one, and not ready yet
        self._limited = False  # the broker's user may have no channel for a successor
        # Those that were the main one, until they are closed: so long they have a number.
        self._retiring: dict[Carrier, Lane[Job]] = {}
        self._trying = False  # a look for what is to be tried again is due
        self._watch: dict[int, Callable[[list[Confirm]], object]] = {}  # by channel number
        self._sweeping = False  # a look for futures whose deadline has passed is due
        self._preparation = preparation
        self._preparing = False  # it is under way

    def look(self) -> None:
        """Put on the wire what waits and may go."""
        self._carry(*self._outbox.take(*self._ready()))

    def _ready(self) -> tuple[bool, bool]:
        """Which of the two channels, main and suspects', can be sent on: none, where more is to be declared.

        That is begun here, and when it is done, look() follows.
        """
        if self.link.state is not LinkState.READY:
            return False, False
        if self._preparation.is_due:
            self._prepare()
            return False, False
        main, suspects = self._main, self._suspects
        return main is not None and main.is_ready, suspects is not None and suspects.is_ready

    def _carry(self, jobs: list[Job], suspects: list[Job]) -> None:
        """Send these; and see to what the others will need: the suspects' channel, a look at what is due."""
        if jobs and self._main is not None:
            self._main.send(jobs)
        if suspects and self._suspects is not None:
            self._suspects.send(suspects)
        if self._suspects is None and self._connection is not None and self._outbox.has_suspects:
            self._suspects = self._carrier(self._connection)
        if self._outbox.has_tries and not self._trying:
            self._look_later()
        if self._outbox.has_promised and not self._sweeping:
            self._sweeping = True
            self.link.call_later(_SWEEP, self._sweep)

    def _sweep(self) -> None:
        """Tell the futures whose deadline has passed."""
        self._finish_late()
        self._sweeping = self._outbox.has_promised
        if self._sweeping:
            self.link.call_later(_SWEEP, self._sweep)

    def _finish_late(self) -> None:
        late = self._outbox.late()
        if late:
            self._outbox.finish(self._outbox.give_up(late))

    def _tell(self, settled: list[Job]) -> None:
        self._outbox.finish(job for job in settled if not job.abandoned)

    # What was nacked, and is not believed: see flask_pika.nacks

    def _look_later(self) -> None:
        self._trying = True
        # Not much later than now: the next one to be doubted may be due before those of today.
        self.link.call_later(min(max(_SOONEST, self._outbox.next_try()), _LATEST), self._try_again)

    def _try_again(self) -> None:
        """Send again what was nacked, and whose time has come: on a new channel, if it wants one."""
        self._trying = False
        connection = self._connection
        if connection is None or self._successor is not None or not self._ready()[0]:
            return  # when it is ready, look() follows
        if not self._outbox.next_try():
            self._try_what_is_due(connection)
        elif self._outbox.has_tries:
            self._look_later()

    def _try_what_is_due(self, connection: SelectConnection) -> None:
        # A successor must not take the number of a channel that may be needed.
        spare = min(_RETIRING, connection.params.channel_max - CHANNELS)
        may_replace = not self._limited and len(self._retiring) < spare
        if may_replace and self._outbox.wants_new_channel():
            try:
                self._successor = self._carrier(connection)
            except pika_errors.NoFreeChannels:
                logger.debug("the broker gives no more channels; the main one is not replaced")
            else:
                return  # until it is ready
        self._outbox.try_again()
        self.look()

    def _succeed(self, carrier: Carrier) -> None:
        """The main channel's successor is ready."""
        self._successor = None
        main = self._main
        if main is None or not main.is_ready:  # it was closed meanwhile, and is opened again
            carrier.close()
            return
        lane = self._outbox.renew()
        self._main = carrier
        self._retiring[main] = lane
        if not len(lane):
            main.close()
        self._outbox.try_again()

    def _lift_limit(self) -> None:
        self._limited = False

    # What the link says: see flask_pika.link.LinkUser

    def link_ready(self, connection: SelectConnection) -> None:
        """There is a connection: open the main channel on it."""
        self._connection = connection
        self._watch = {}
        if pika_internals.AVAILABLE:
            pika_internals.watch_confirms(connection, self._watch)
        self._preparing = False
        self._preparation.forget()
        self._prepare()
        self._outbox.connected()
        self._refuse_too_long(int(connection.params.frame_max))
        signals.send(signals.connected, self._sender)

    def _prepare(self) -> None:
        """Declare what is needed, before anything is sent; then open what it is sent on."""
        connection = self._connection
        if self._preparing or connection is None:
            return

        def prepared() -> None:
            self._preparing = False
            if self._main is None:
                self._main = self._carrier(connection)
            self.look()

        self._preparing = True
        if self._preparation.is_due:
            self._preparation.begin(connection, self.link.guarded, prepared)
        else:  # a channel is to be opened again, and no more
            prepared()

    def _refuse_too_long(self, frame_max: int) -> None:
        # This broker wants shorter frames than were expected. Nothing is in flight yet.
        if self._envelopes.shorten(frame_max):
            return
        error = InvalidMessage(f"the properties are longer than this broker's frames, {frame_max} bytes")
        too_long = [job for job in self._outbox.unsettled() if job.envelope.size > frame_max]
        self._outbox.finish(self._outbox.give_up(too_long, error))

    def link_lost(self, error: Exception) -> None:  # noqa: D102
        if self._successor is not None and refuses_channels(error):
            logger.warning(
                "a channel that nacks is not replaced for %d s: the broker gives no more", _LIMITED
            )
            self._limited = True
            self.link.call_later(_LIMITED, self._lift_limit)
        self._connection = self._main = self._suspects = self._successor = None
        self._retiring = {}
        blame = None
        if isinstance(error, pika_errors.ConnectionClosedByBroker) and error.reply_code in _OVER_ONE_MESSAGE:
            blame = (error.reply_code, error.reply_text)
        self._tell(self._outbox.connection_lost(blame))
        signals.send(signals.disconnected, self._sender, error=error)

    def link_failed(self, error: BrokerUnavailable) -> None:  # noqa: D102
        if not isinstance(error, BrokerRefused):
            return
        # Time will not mend it. What was never sent is told now; what is unknown waits for its deadline.
        never_sent = [job for job in self._outbox.unsettled() if not job.sent]
        self._outbox.finish(self._outbox.give_up(never_sent))

    def link_ended(self) -> None:  # noqa: D102
        self._outbox.give_up_the_rest()

    def link_blocked(self, blocked: bool) -> None:  # noqa: D102
        signals.send(signals.blocked if blocked else signals.unblocked, self._sender)
        if not blocked:
            self.look()

    # What the carriers say: see flask_pika.carrier.CarrierUser

    def carrier_ready(self, carrier: Carrier) -> None:
        """The channel is in confirm mode: go on."""
        if carrier is self._successor:
            self._succeed(carrier)
        self.link.works()
        self.look()

    def carrier_confirms(self, carrier: Carrier, confirms: list[Confirm]) -> None:  # noqa: D102
        lane = self._lane(carrier)
        if lane is None:
            return
        settled, jobs, suspects = self._outbox.settle(lane, confirms, *self._ready())
        if carrier in self._retiring and not len(lane):
            carrier.close()
        try:
            self._carry(jobs, suspects)
        finally:
            self._tell(settled)

    def carrier_returned(  # noqa: D102
        self, carrier: Carrier, message_id: str, exchange: str, routing_key: str, reply: tuple[int, str]
    ) -> None:
        lane = self._lane(carrier)
        if lane is not None:
            self._outbox.returned(lane, message_id, exchange, routing_key, reply)

    def carrier_closed(self, carrier: Carrier, error: Exception) -> None:  # noqa: D102
        if carrier is self._successor:
            self._successor = None
            self.link.call(self.look)
        lane = self._lane(carrier)
        self._retiring.pop(carrier, None)
        if lane is None or not isinstance(error, pika_errors.ChannelClosedByBroker):
            return  # by us; or with its connection: link_lost() follows
        code, text = error.reply_code, error.reply_text
        logger.warning("the broker closed a channel of the publisher: %d %s", code, text)
        settled = self._outbox.channel_closed(lane, code, text)
        if code == NOT_FOUND and self._preparation.misses(text):
            self._preparation.forget()
        if carrier is self._main:
            self._main = None
        elif carrier is self._suspects:
            self._suspects = None
        self._tell(settled)
        # Soon: pika has not put the old channel's number back yet.
        self.link.call(self._reopen)

    def _reopen(self) -> None:
        if self._main is None:
            self._prepare()
        self.look()

    def _carrier(self, connection: SelectConnection) -> Carrier:
        return Carrier(connection, self, self.link.guarded, self._watch)

    def _lane(self, carrier: Carrier) -> Lane[Job] | None:
        """What is in flight on a carrier; None, when it is none of this connection's, or not in use."""
        if carrier is self._main:
            return self._outbox.main_lane
        if carrier is self._suspects:
            return self._outbox.suspects_lane
        return self._retiring.get(carrier)
