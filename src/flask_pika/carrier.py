"""A carrier: one channel in confirm mode on a link's connection, which sends messages and hears of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from pika.adapters.select_connection import SelectConnection

from . import pika_internals
from .pika_internals import Confirm
from .wire import Envelope


class Sendable(Protocol):
    """What a carrier needs to know of a message."""

    envelope: Envelope
    message_id: str
    timestamp: int
    body: bytes


class CarrierUser(Protocol):
    """Who sends on a carrier, and is told what the broker says on it. Called in the link's thread."""

    def carrier_ready(self, carrier: Carrier, /) -> None:
        """Messages can be sent now."""

    def carrier_confirms(self, carrier: Carrier, confirms: list[Confirm]) -> None:
        """The broker took messages, or did not."""

    def carrier_returned(
        self, carrier: Carrier, message_id: str, exchange: str, routing_key: str, reply: tuple[int, str]
    ) -> None:
        """No queue wanted a message. Its confirm is still to come."""

    def carrier_closed(self, carrier: Carrier, error: Exception) -> None:
        """The channel is gone, or never came to be; with its connection, or by the broker's will."""


class Carrier:
    """A channel in confirm mode. In the link's thread only.

    It knows nothing of what is in flight on it: for that, its user has a :class:`flask_pika.confirms.Lane`.

    :param guarded: what every callback is wrapped in.
    :param watch: of pika_internals.watch_confirms(); it stands there under its channel's number.
    """

    def __init__(
        self,
        connection: SelectConnection,
        user: CarrierUser,
        guarded: Callable[[Callable[..., object]], Callable[..., Any]],
        watch: dict[int, Callable[[list[Confirm]], object]],
    ) -> None:
        self._connection = connection
        self._user = user
        self._guarded = guarded
        self._watch = watch
        self._channel: Any = None
        self.is_ready = False
        connection.channel(on_open_callback=guarded(self._opened))

    def _opened(self, channel: Any) -> None:
        self._channel = channel
        channel.add_on_close_callback(self._guarded(self._closed))
        channel.add_on_return_callback(self._guarded(self._returned))
        channel.confirm_delivery(self._guarded(self._confirm), callback=self._guarded(self._selected))

    def _selected(self, _frame: object) -> None:
        self.is_ready = True
        self._watch[self._channel.channel_number] = self._confirms
        self._user.carrier_ready(self)

    def _confirm(self, frame: Any) -> None:
        # The public way, and what of the other one was cut in two by a read.
        method = frame.method
        self._confirms([(method.delivery_tag, method.multiple, method.NAME == "Basic.Ack")])

    def _confirms(self, confirms: list[Confirm]) -> None:
        self._user.carrier_confirms(self, confirms)

    def _returned(self, _channel: object, method: Any, properties: Any, _body: bytes) -> None:
        reply = (int(method.reply_code), str(method.reply_text))
        self._user.carrier_returned(
            self, properties.message_id or "", method.exchange, method.routing_key, reply
        )

    def _closed(self, channel: Any, error: Exception) -> None:
        self.is_ready = False
        self._watch.pop(channel.channel_number, None)
        self._user.carrier_closed(self, error)

    def close(self) -> None:
        """Close the channel, on which nothing is in flight. Its user is told, when it is gone."""
        self.is_ready = False
        self._watch.pop(self._channel.channel_number, None)
        if self._channel.is_open:
            self._channel.close()

    def send(self, messages: Iterable[Sendable]) -> None:
        """Write messages, in this order: the channel counts them from 1."""
        if not pika_internals.AVAILABLE:
            for message in messages:
                envelope = message.envelope
                self._channel.basic_publish(
                    envelope.exchange,
                    envelope.routing_key,
                    message.body,
                    envelope.complete(message.message_id, message.timestamp),
                    envelope.mandatory,
                )
            return
        number, frame_max = self._channel.channel_number, int(self._connection.params.frame_max)
        pieces: list[bytes] = []
        for message in messages:
            message.envelope.write(
                pieces, number, frame_max, message.message_id, message.timestamp, message.body
            )
        pika_internals.write(self._connection, b"".join(pieces))
