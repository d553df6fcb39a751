"""An AMQP 0-9-1 broker in the process, for demos and tests: it does what RabbitMQ does, and keeps nothing."""

from .embedded import Broker, BrokerError
from .shared import shared_broker, stop_shared_brokers
from .views import QueueView, StoredMessage

__all__ = [
    "Broker",
    "BrokerError",
    "QueueView",
    "StoredMessage",
    "shared_broker",
    "stop_shared_brokers",
]
