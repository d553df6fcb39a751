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
    RetryLater,
    SettlementError,
    SetupError,
    TLSRefused,
    TopologyError,
    TopologyMismatch,
    UndecodableMessage,
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
from .retry import Retry
from .state import Stats
from .subscriber import ConsumerStats
from .topology import Binding, Exchange, Queue
from .worker import Worker

__all__ = [
    "Action",
    "AuthenticationRefused",
    "Binding",
    "BrokerBlocked",
    "BrokerRefused",
    "BrokerUnavailable",
    "ChannelReturned",
    "ConfigError",
    "ConsumerStats",
    "Delivery",
    "DeliveryFilter",
    "Exchange",
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
    "Queue",
    "Reject",
    "Requeue",
    "Retry",
    "RetryLater",
    "SettlementError",
    "SetupError",
    "Stats",
    "TLSRefused",
    "TopologyError",
    "TopologyMismatch",
    "UndecodableMessage",
    "Unroutable",
    "VirtualHostRefused",
    "Worker",
    "signals",
]
