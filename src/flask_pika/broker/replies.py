"""Direct reply-to: who waits for answers on a channel, without a queue for them.

https://www.rabbitmq.com/docs/direct-reply-to
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .closing import precondition_failed
from .contents import Content
from .declaring import REPLY_TO
from .frames import fresh_token

if TYPE_CHECKING:
    from .channel import Channel


class Replies:
    """One channel's, of which there may be one consumer."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._token = ""
        #: The consumer's tag; None when nobody waits.
        self.tag: str | None = None

    def begin(self, tag: str, no_ack: bool) -> None:
        """Somebody waits."""
        if not no_ack:
            raise precondition_failed("reply consumer cannot acknowledge")
        if self.tag is not None:
            raise precondition_failed("reply consumer already set")
        self.tag, self._token = tag, fresh_token()
        self._channel.client.replies[self._token] = self._channel

    def end(self) -> None:
        """Nobody waits any more."""
        self._channel.client.replies.pop(self._token, None)
        self.tag = None

    def addressed(self, content: Content) -> Content:
        """A message whose answers are to come here, with the address for them."""
        if content.text("reply_to") != REPLY_TO:
            return content
        if self.tag is None:
            raise precondition_failed("fast reply consumer does not exist")
        return content.with_headers(content.headers, reply_to=f"{REPLY_TO}.{self._token}")

    def give(self, content: Content) -> bool:
        """Give an answer to whoever waits for it; whether somebody does."""
        address = content.routing_key
        if content.exchange or not address.startswith(f"{REPLY_TO}."):
            return False
        waiting = self._channel.client.replies.get(address.removeprefix(f"{REPLY_TO}."))
        if waiting is not None:
            waiting.deliver_reply(content)
        return waiting is not None
