"""How a broker refuses: it closes the channel, or the whole connection, with a code and a text."""

from __future__ import annotations

# AMQP 0-9-1, section 1.2: the constants' names, as RabbitMQ begins its texts with them.
_NAMES = {
    311: "CONTENT_TOO_LARGE",
    312: "NO_ROUTE",
    313: "NO_CONSUMERS",
    320: "CONNECTION_FORCED",
    402: "INVALID_PATH",
    403: "ACCESS_REFUSED",
    404: "NOT_FOUND",
    405: "RESOURCE_LOCKED",
    406: "PRECONDITION_FAILED",
    501: "FRAME_ERROR",
    502: "SYNTAX_ERROR",
    503: "COMMAND_INVALID",
    504: "CHANNEL_ERROR",
    505: "UNEXPECTED_FRAME",
    506: "RESOURCE_ERROR",
    530: "NOT_ALLOWED",
    540: "NOT_IMPLEMENTED",
    541: "INTERNAL_ERROR",
}
# AMQP 0-9-1, section 4.2.5.3: a short string; RabbitMQ shortens what is longer.
_LONGEST = 255


class Closing(Exception):
    """What was asked for is refused, and what asked is closed."""

    def __init__(self, code: int, detail: str) -> None:
        if code not in _NAMES:
            raise ValueError(
                f"{code} is no reply code of AMQP; expected one of {', '.join(map(str, _NAMES))}"
            )
        text = f"{_NAMES[code]} - {detail}" if detail else _NAMES[code]
        encoded = text.encode("utf-8", "replace")
        if len(encoded) > _LONGEST:
            text = encoded[: _LONGEST - 3].decode("utf-8", "ignore") + "..."
        super().__init__(text)
        self.code = code
        self.text = text
        #: Class and method that it is about, for the client to know.
        self.method: tuple[int, int] = (0, 0)


class ChannelClosing(Closing):
    """The channel is closed (a "soft error" in AMQP's words)."""


class ConnectionClosing(Closing):
    """The connection is closed (a "hard error")."""


def not_found(what: str, name: str, virtual_host: str) -> ChannelClosing:
    """There is no such exchange or queue."""
    return ChannelClosing(404, f"no {what} '{name}' in vhost '{virtual_host}'")


def precondition_failed(detail: str) -> ChannelClosing:
    """What is there is otherwise than asked for."""
    return ChannelClosing(406, detail)


def not_implemented(detail: str) -> ConnectionClosing:
    """RabbitMQ knows it, or AMQP does, and this broker does not have it."""
    return ConnectionClosing(540, detail)
