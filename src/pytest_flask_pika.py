"""The pytest plugin: fixtures for the tests of apps. It does nothing until one of them is asked for.

Outside of the package, and without an import of it at the top: pytest loads this file in every run of the
environment.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from flask_pika import Message
    from flask_pika.broker import Broker


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line(
        "markers",
        "pika_broker(**options): options for the fixture pika_broker's flask_pika.broker.Broker, such as"
        " heartbeat=1",
    )


@pytest.fixture
def pika_broker(request: pytest.FixtureRequest) -> Iterator[Broker]:
    """A fresh embedded broker: give its ``url`` to the app as ``FLASK_PIKA_PARAMS``."""
    from flask_pika.broker import Broker

    options: dict[str, object] = {}
    # The marker that is nearest to the test wins.
    for marker in reversed(list(request.node.iter_markers("pika_broker"))):
        if marker.args:
            raise pytest.UsageError(
                f"{request.node.nodeid}: the marker pika_broker takes options by name, such as"
                f" pika_broker(heartbeat=1), not {len(marker.args)} by position"
            )
        options.update(marker.kwargs)
    with Broker(**options) as broker:  # type: ignore[arg-type]
        yield broker


@pytest.fixture
def pika_messages() -> Iterator[list[Message]]:
    """What all apps publish during the test, instead of sending it."""
    from flask_pika.testing import record_messages

    with record_messages() as messages:
        yield messages
