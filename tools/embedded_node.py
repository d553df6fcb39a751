"""The embedded broker, where tests and tools would else use a private RabbitMQ node."""

from __future__ import annotations

from flask_pika.broker import Broker


class EmbeddedNode:
    """What a :class:`tools.rabbitmq_node.RabbitMQNode` is to a test that neither kills nor configures it."""

    def __init__(self) -> None:
        self.broker = Broker()

    @property
    def port(self) -> int:
        return self.broker.port

    @property
    def url(self) -> str:
        return self.broker.url

    @property
    def params(self) -> dict[str, object]:
        return {"host": "127.0.0.1", "port": self.port, "username": "guest", "password": "guest"}

    def connections(self) -> list[str]:
        """The names that open connections gave themselves."""
        return [name.partition(" (")[2].removesuffix(")") for name in self.broker.connections if " (" in name]

    def __enter__(self) -> EmbeddedNode:
        self.broker.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.broker.stop()
