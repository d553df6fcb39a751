"""Flask-Pika: RabbitMQ in a Flask app: confirmed publishing, and pika's blocking channels from a pool."""

from . import signals
from .errors import (
    AuthenticationRefused,
    BrokerBlocked,
    BrokerRefused,
    BrokerUnavailable,
    ChannelReturned,
    ConfigError,
    FlaskPikaError,
    ForeignChannel,
    InvalidMessage,
    Nacked,
    PoolClosed,
    PoolTimeout,
    ProtocolMismatch,
    PublisherClosed,
    PublisherFull,
    PublishManyFailed,
    PublishRefused,
    PublishTimeout,
    PublishUnknown,
    SetupError,
    TLSRefused,
    Unroutable,
    VirtualHostRefused,
)
from .extension import Pika
from .lease import PooledChannel
from .message import Message
from .outbox import PublisherStats
from .pool import PoolStats
from .publisher import Failure, PublishReport
from .state import Stats

__all__ = [
    "AuthenticationRefused",
    "BrokerBlocked",
    "BrokerRefused",
    "BrokerUnavailable",
    "ChannelReturned",
    "ConfigError",
    "Failure",
    "FlaskPikaError",
    "ForeignChannel",
    "InvalidMessage",
    "Message",
    "Nacked",
    "Pika",
    "PoolClosed",
    "PoolStats",
    "PoolTimeout",
    "PooledChannel",
    "ProtocolMismatch",
    "PublishManyFailed",
    "PublishRefused",
    "PublishReport",
    "PublishTimeout",
    "PublishUnknown",
    "PublisherClosed",
    "PublisherFull",
    "PublisherStats",
    "SetupError",
    "Stats",
    "TLSRefused",
    "Unroutable",
    "VirtualHostRefused",
    "signals",
]
