"""Every error that Flask-Pika raises: one root, and each leaf also what callers already catch.

A view that says ``except pika.exceptions.AMQPConnectionError`` keeps working: whatever means "there is no
connection for you" is one. A message says what was wrong and what to do next, and never a password.
"""

from __future__ import annotations

from pika import exceptions as pika_errors

__all__ = [
    "AuthenticationRefused",
    "BrokerRefused",
    "BrokerUnavailable",
    "ChannelReturned",
    "ConfigError",
    "FlaskPikaError",
    "ForeignChannel",
    "PoolClosed",
    "PoolTimeout",
    "ProtocolMismatch",
    "SetupError",
    "TLSRefused",
    "VirtualHostRefused",
]


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

    Not a :class:`BrokerRefused`: a proxy whose broker is down does the same, and gets better by itself.
    """


class PoolTimeout(FlaskPikaError, pika_errors.AMQPConnectionError, TimeoutError):
    """Every channel was in use until the deadline; the message says who holds them."""


class PoolClosed(FlaskPikaError, pika_errors.ConnectionWrongStateError):
    """``close()`` was called for this app: its pool lends nothing any more."""


class ChannelReturned(FlaskPikaError, pika_errors.ChannelWrongStateError):
    """The channel was used after its return, or in a process that inherited it by a fork."""


class ForeignChannel(FlaskPikaError, TypeError):
    """Something was returned that ``channel()`` did not lend. Nothing was done with it."""
