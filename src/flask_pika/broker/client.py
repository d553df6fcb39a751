"""What a channel knows of the client that it is for: the connection that it is on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from .contents import Content
from .vhost import VirtualHost

if TYPE_CHECKING:
    from .channel import Channel


class Client(Protocol):
    """The connection that a channel is on."""

    vhost: VirtualHost
    user: str
    replies: dict[str, Channel]  # of the whole broker: who waits for direct replies

    @property
    def watched(self) -> bool:
        """Whether somebody wants to hear of each message."""
        ...

    def send(self, channel: int, method: Any, content: Content | None = None) -> None:
        """Send a method, with a message if there is one."""

    def is_reading(self) -> bool:
        """Whether the client takes what it is sent."""
        ...

    def confirm_later(self, channel: Channel) -> None:
        """The channel has something to confirm, soon."""

    def event(self, what: str) -> None:
        """Tell what the client does."""

    def takes_nacked(self) -> bool:
        """Whether the next message is one that the broker was told to nack."""
        ...

    def knows(self, capability: str) -> bool:
        """Whether the client said that it has a capability."""
        ...
