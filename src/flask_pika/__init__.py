"""Flask-Pika: RabbitMQ in a Flask app: confirmed publishing, consumers, and a pool of pika's channels."""

from . import signals
from .delivery import Action, Delivery
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
    Reject,
    Requeue,
    SettlementError,
    SetupError,
    TLSRefused,
    Unroutable,
    VirtualHostRefused,
)
from .extension import Pika
from .handling import DeliveryFilter, Outcome
from .lease import PooledChannel
from .message import Message
from .outbox import PublisherStats
from .pool import PoolStats
from .publisher import Failure, PublishReport
from .state import Stats
from .subscriber import ConsumerStats
from .worker import Worker

__all__ = [
    "Action",
    "AuthenticationRefused",
    "BrokerBlocked",
    "BrokerRefused",
    "BrokerUnavailable",
    "ChannelReturned",
    "ConfigError",
    "ConsumerStats",
    "Delivery",
    "DeliveryFilter",
    "Failure",
    "FlaskPikaError",
    "ForeignChannel",
    "InvalidMessage",
    "Message",
    "Nacked",
    "Outcome",
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
    "Reject",
    "Requeue",
    "SettlementError",
    "SetupError",
    "Stats",
    "TLSRefused",
    "Unroutable",
    "VirtualHostRefused",
    "Worker",
    "signals",
]
