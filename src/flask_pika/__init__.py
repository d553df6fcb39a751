"""Flask-Pika: RabbitMQ in a Flask app, by a pool of pika's blocking channels behind one object."""

from .errors import (
    AuthenticationRefused,
    BrokerRefused,
    BrokerUnavailable,
    ChannelReturned,
    ConfigError,
    FlaskPikaError,
    ForeignChannel,
    PoolClosed,
    PoolTimeout,
    ProtocolMismatch,
    SetupError,
    TLSRefused,
    VirtualHostRefused,
)
from .extension import Pika
from .lease import PooledChannel
from .pool import PoolStats

__all__ = [
    "AuthenticationRefused",
    "BrokerRefused",
    "BrokerUnavailable",
    "ChannelReturned",
    "ConfigError",
    "FlaskPikaError",
    "ForeignChannel",
    "Pika",
    "PoolClosed",
    "PoolStats",
    "PoolTimeout",
    "PooledChannel",
    "ProtocolMismatch",
    "SetupError",
    "TLSRefused",
    "VirtualHostRefused",
]
