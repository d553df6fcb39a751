"""What an app may want to hear of: `blinker <https://blinker.readthedocs.io>`_ signals, as Flask's own.

The sender is the app. ``published``, ``returned`` and ``failed`` come in the thread that called
``publish()``; for ``submit()`` and ``publish_many()``, mostly in the publisher's own thread, which a receiver
must not keep waiting. There come those about the publisher's connection, too; those about deliveries, in the
handler's thread. A receiver that raises is logged, and breaks nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from blinker import NamedSignal, Namespace

logger = logging.getLogger("flask_pika.signals")

_signals = Namespace()

#: The broker has a message: ``message_id``, ``exchange``, ``routing_key``.
published = _signals.signal("published")
#: A message reached no queue: the same, and ``error``, an :exc:`~flask_pika.Unroutable`.
returned = _signals.signal("returned")
#: A message was not confirmed for another reason: the same, and ``error``.
failed = _signals.signal("failed")
#: A handler is about to get a delivery: ``delivery``. In the handler's thread and app context.
received = _signals.signal("received")
#: It returned: ``delivery``, and ``seconds`` that it took. In its thread, after its app context.
handled = _signals.signal("handled")
#: It raised, or its app context did at its end: the same, and ``error``.
handling_failed = _signals.signal("handling-failed")
#: The publisher has a connection.
connected = _signals.signal("connected")
#: It has lost it: ``error``, pika's reason.
disconnected = _signals.signal("disconnected")
#: The broker takes no messages, for want of memory or disk.
blocked = _signals.signal("blocked")
#: It takes them again.
unblocked = _signals.signal("unblocked")


def anybody_listens() -> bool:
    """Whether anybody wants to hear what becomes of messages: asked for each one, so it is quick."""
    return bool(published.receivers or returned.receivers or failed.receivers)


def send(signal: NamedSignal, sender: Callable[[], Any], **about: Any) -> None:
    """Tell a signal's receivers, whatever they do."""
    if not signal.receivers:
        return
    app = sender()
    for receiver in signal.receivers_for(app):
        try:
            receiver(app, **about)
        except Exception:
            logger.exception("a receiver of the signal %r raised", signal.name)
