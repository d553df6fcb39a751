"""Every error that Flask-Pika raises: one root, and each leaf also what callers already catch.

A view that says ``except pika.exceptions.AMQPConnectionError`` keeps working: whatever means "there is no
connection for you" is one. A message says what was wrong and what to do next, and never a password.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pika import exceptions as pika_errors

if TYPE_CHECKING:
    from .publisher import PublishReport

__all__ = [
    "AuthenticationRefused",
    "BrokerBlocked",
    "BrokerRefused",
    "BrokerUnavailable",
    "ChannelReturned",
    "ConfigError",
    "FlaskPikaError",
    "ForeignChannel",
    "InvalidMessage",
    "Nacked",
    "PoolClosed",
    "PoolTimeout",
    "ProtocolMismatch",
    "PublishManyFailed",
    "PublishRefused",
    "PublishTimeout",
    "PublishUnknown",
    "PublisherClosed",
    "PublisherFull",
    "Reject",
    "Requeue",
    "RetryLater",
    "SettlementError",
    "SetupError",
    "TLSRefused",
    "TopologyError",
    "TopologyMismatch",
    "UndecodableMessage",
    "Unroutable",
    "VirtualHostRefused",
]

#: Seconds: ten years, to which RabbitMQ's timers count.
LONGEST_DELAY = 315_360_000


class FlaskPikaError(Exception):
    """The root: ``except FlaskPikaError`` catches all that this package raises on its own account."""

    # Some of pika's exceptions bring a __repr__ that expects arguments of their own.
    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"


class ConfigError(FlaskPikaError, ValueError):
    """A configuration value is wrong; the message names its key. Raised by ``init_app``."""


class SetupError(FlaskPikaError, RuntimeError):
    """The extension and the app were not brought together, or were brought together twice."""


class BrokerUnavailable(FlaskPikaError, pika_errors.AMQPConnectionError):
    """No node of the broker could be connected to within the time there was. Nothing was sent."""


class BrokerRefused(BrokerUnavailable):
    """The broker answered, and said no: trying again helps only after someone changed something."""


class AuthenticationRefused(BrokerRefused, pika_errors.ProbableAuthenticationError):
    """The broker does not accept this user name and password (AMQP reply code 403)."""


class VirtualHostRefused(BrokerRefused, pika_errors.ProbableAccessDeniedError):
    """The virtual host does not exist, is full, or is not for this user (AMQP reply code 530)."""


class TLSRefused(BrokerRefused):
    """TLS could not be agreed on: a certificate that one side does not accept, or a port without TLS."""


class ProtocolMismatch(BrokerUnavailable, pika_errors.IncompatibleProtocolError):
    """What listens there hung up, or spoke something else, before it spoke AMQP 0-9-1.

    Not a :exc:`BrokerRefused`: a proxy whose broker is down does the same, and gets better by itself.
    """


class PoolTimeout(FlaskPikaError, pika_errors.AMQPConnectionError, TimeoutError):
    """Every channel was in use until the deadline; the message says who holds them."""


class PoolClosed(FlaskPikaError, pika_errors.ConnectionWrongStateError):
    """``close()`` was called for this app: its pool lends nothing any more."""


class ChannelReturned(FlaskPikaError, pika_errors.ChannelWrongStateError):
    """The channel was used after its return, or in a process that inherited it by a fork."""


class ForeignChannel(FlaskPikaError, TypeError):
    """Something was returned that ``channel()`` did not lend. Nothing was done with it."""


# Publishing. Each says what became of the message.


class InvalidMessage(FlaskPikaError, ValueError):
    """AMQP cannot carry this message; the error names the field. Nothing was sent."""


class PublisherFull(FlaskPikaError, pika_errors.AMQPConnectionError, TimeoutError):
    """As many messages, or bytes, as may be pending were pending until the deadline. Nothing was sent."""


class PublisherClosed(FlaskPikaError, pika_errors.ConnectionWrongStateError):
    """``close()`` was called for this app, or the process ends. Nothing was sent."""


class BrokerBlocked(BrokerUnavailable, pika_errors.ConnectionBlockedTimeout):
    """The broker takes no messages, for want of memory or disk, and took none until the deadline.

    Nothing was sent.
    """


class _OneMessage(FlaskPikaError):
    """What became of one message.

    :ivar message_id: which one.
    """

    def __init__(self, text: str, message_id: str = "") -> None:
        # Not super().__init__(): pika's exceptions that leaves inherit from take other arguments.
        Exception.__init__(self, text)
        self.message_id = message_id


class PublishUnknown(_OneMessage, pika_errors.AMQPConnectionError):
    """The message was sent, and the connection was lost before the broker's word on it.

    The broker may have it. Publish it again under the same ``message_id``, if twice is better than never.
    """


class PublishTimeout(PublishUnknown, TimeoutError):
    """The message was sent, and there was no word on it until the deadline. The broker may have it."""


class Nacked(_OneMessage, pika_errors.NackError):
    """The broker did not take the message: a queue is full and rejects, or could not store it."""

    messages = ()


class _WithReply(_OneMessage):
    """What the broker said, too.

    :ivar reply_code: AMQP's number for it.
    :ivar reply_text: its words.
    """

    reply_code = 0
    reply_text = ""

    def __init__(self, text: str, message_id: str = "", reply: tuple[int, str] = (0, "")) -> None:
        super().__init__(text, message_id)
        self.reply_code, self.reply_text = reply


class Unroutable(_WithReply, pika_errors.UnroutableError):
    """The message reached no queue, and the broker has it no more (``mandatory=True``)."""

    messages = ()


class PublishRefused(_WithReply, pika_errors.ChannelClosedByBroker):
    """The broker closed the channel over this message: no such exchange (404), no permission (403), ..."""


class PublishManyFailed(FlaskPikaError):
    """Some messages of a ``publish_many()`` failed.

    :ivar report: the :class:`~flask_pika.PublishReport`: how many were confirmed, and which failed, and why.
    """

    def __init__(self, text: str, report: PublishReport) -> None:
        super().__init__(text)
        self.report = report


# What an app needs at the broker.


class TopologyError(SetupError, ValueError):
    """An exchange or a queue contradicts itself, or what was registered, or is refused by RabbitMQ 4."""


class TopologyMismatch(_WithReply, pika_errors.ChannelClosedByBroker):
    """The broker has an exchange or a queue with other arguments, or has none, or lets nobody declare it.

    Nothing was changed.
    """


# Consuming. The first three are a handler's word on its delivery: it raises them, and this package never.


class Reject(FlaskPikaError):
    """A handler raises it: never again. The queue's dead-letter exchange gets the message, if it has one."""


class Requeue(FlaskPikaError):
    """A handler raises it: back to the queue, at once, and it comes again soon."""


class RetryLater(FlaskPikaError):
    """A handler raises it: again, after a delay. It counts as an attempt of the consumer's ``retry``.

    :ivar delay: seconds; None: the next one of the consumer's ``retry``.
    :raises ValueError: it is none, or more than ten years, to which RabbitMQ's timers count.
    """

    def __init__(self, text: str = "", *, delay: float | None = None) -> None:
        if not isinstance(text, str):
            raise ValueError(f"RetryLater: the text is {text!r}; seconds are given as delay={text!r}")
        if delay is not None:
            number = isinstance(delay, (int, float)) and not isinstance(delay, bool)
            if not number or not 0 <= delay <= LONGEST_DELAY:
                raise ValueError(
                    f"RetryLater: delay is {delay!r}; expected seconds, from 0 to {LONGEST_DELAY}"
                )
        super().__init__(text)
        self.delay = delay


class SettlementError(FlaskPikaError, RuntimeError):
    """A delivery was settled twice, or by a handler whose worker does that."""


class UndecodableMessage(FlaskPikaError, ValueError):
    """A delivery's body, or its properties, are not what they should be: it will never get better."""
