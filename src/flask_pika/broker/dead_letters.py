"""Dead letters: what is noted on a message that a queue gave up. Pure.

https://www.rabbitmq.com/docs/dlx, and for what it leaves open, RabbitMQ 3.10's own ``rabbit_dead_letter``.
"""

from __future__ import annotations

from .contents import Content
from .tables import Field, Table, is_integer, longstr

_DEATHS = "x-death"


def bury(
    content: Content, queue: str, reason: str, exchange: str, routing_key: str | None, timestamp: int
) -> Content:
    """The message as it goes to the dead-letter exchange.

    :param routing_key: the queue's x-dead-letter-routing-key, instead of its own.
    :param timestamp: seconds since 1970.
    """
    death: Table = {
        "reason": longstr(reason),
        "queue": longstr(queue),
        "time": Field("timestamp", timestamp),
        "exchange": longstr(content.exchange),
        "routing-keys": Field("array", [longstr(key) for key in content.routing_keys()]),
    }
    expiration = content.text("expiration")
    if expiration is not None:
        death["original-expiration"] = longstr(expiration)
    headers = dict(content.headers)
    deaths = _deaths(content)
    if not deaths:
        headers["x-first-death-exchange"] = longstr(content.exchange)
        headers["x-first-death-queue"] = longstr(queue)
        headers["x-first-death-reason"] = longstr(reason)
    cause = (death["queue"], death["reason"])
    same = [one for one in deaths if (one.get("queue"), one.get("reason")) == cause]
    newest = {**same[0]} if same else death
    newest["count"] = Field("long", _count(same[0]) + 1 if same else 1)
    rest = [one for one in deaths if one not in same]
    headers[_DEATHS] = Field("array", [Field("table", dict(sorted(one.items()))) for one in (newest, *rest)])
    if routing_key is not None:
        headers.pop("CC", None)
    key = content.routing_key if routing_key is None else routing_key
    return content.changed(exchange, key, headers, expiration=None)


def _count(death: Table) -> int:
    """How often it happened; what a client has put there may be anything."""
    field = death.get("count")
    return min(int(field.value), 2**62) if field is not None and is_integer(field) else 0


def _deaths(content: Content) -> list[Table]:
    field = content.headers.get(_DEATHS)
    if field is None or field.kind != "array":
        return []
    return [one.value for one in field.value if one.kind == "table"]


def is_cycle(content: Content, queue: str) -> bool:
    """Whether a message comes back to a queue without anybody having rejected it since: it would for ever."""
    for death in _deaths(content):  # the newest first
        if death.get("reason") == longstr("rejected"):
            return False
        if death.get("queue") == longstr(queue):
            return True
    return False
