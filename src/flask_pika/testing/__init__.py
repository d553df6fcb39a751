"""The testing kit: what apps publish, recorded instead of sent. ``pytest_flask_pika`` has its fixtures."""

from __future__ import annotations

from contextlib import AbstractContextManager

from flask_pika.message import Message
from flask_pika.recordings import EVERY_APPS

__all__ = ["record_messages"]


def record_messages() -> AbstractContextManager[list[Message]]:
    """Record what every app of this process publishes, instead of sending it; as the fixture does.

    :meth:`flask_pika.Pika.record_messages` is for one app, and says what is recorded.
    """
    return EVERY_APPS.record()
