"""Threads that publish numbered messages, each with an app of its own, and keep what became of them."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pika
from flask import Flask

from flask_pika import Pika
from tests.conftest import wait_for
from tests.faults.load import Answer
from tests.faults.searching import told

#: Publishes one message by its id; raises what became of it otherwise.
Way = Callable[[str], None]


def new_app(params: object, timeout: float, pool: Mapping[str, object] | None = None) -> tuple[Flask, Pika]:
    """An app whose publishes take so many seconds at the most. It is to be kept alive."""
    app = Flask("lab")
    app.config["FLASK_PIKA_PARAMS"] = params
    app.config["FLASK_PIKA_POOL_PARAMS"] = {"confirm_delivery": True, **(pool or {})}
    app.config["FLASK_PIKA_PUBLISHER_PARAMS"] = {"timeout": timeout}
    return app, Pika(app)


class Crowd:
    """Goes on in a ``with`` block, or until ``stop()``.

    :param ways: one for each client.
    :param pace: seconds between an answer and the next publish.
    """

    def __init__(self, ways: Sequence[Way], pace: float = 0.005) -> None:
        self._pace = pace
        self._numbers = itertools.count()
        self._stopped = threading.Event()
        self._answers: list[Answer] = []
        #: The clients that wait for their first success. Each takes itself out.
        self._not_yet = set(range(len(ways)))
        self._threads = [
            threading.Thread(target=self._work, args=(number, way), daemon=True)
            for number, way in enumerate(ways)
        ]

    @property
    def answers(self) -> list[Answer]:
        return list(self._answers)

    def goes_on(self, more: int = 40, timeout: float = 120.0) -> None:
        """Until so many more were accepted that began after this call."""
        since = time.monotonic()
        wait_for(
            lambda: sum(one.accepted and one.began >= since for one in self.answers) >= more,
            lambda: f"{more} more; the last answers: {self.answers[-4:]}",
            timeout,
        )

    def all_go_on(self, timeout: float = 120.0) -> None:
        """Until each client has succeeded once: the first may have forty before the last one connects."""
        wait_for(
            lambda: not self._not_yet,
            lambda: f"a success of {self._not_yet}; the last answers: {self.answers[-4:]}",
            timeout,
        )

    def __enter__(self) -> Crowd:
        for thread in self._threads:
            thread.start()
        return self

    def stop(self) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join(120)
            assert not thread.is_alive(), "a client hangs"

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def _work(self, number: int, way: Way) -> None:
        while not self._stopped.wait(self._pace):
            one = f"{next(self._numbers):06}"
            began, error = time.monotonic(), None
            try:
                way(one)
            except Exception as exc:
                error = exc
                told.info("%s: %r", one, exc)
            status = 200 if error is None else 503
            name = "" if error is None else type(error).__name__
            text = "" if error is None else str(error)
            self._answers.append(Answer(one, began, time.monotonic(), status, name, text))
            if error is None:
                self._not_yet.discard(number)


class OwnQueue:
    """A durable queue of a test's, which it looks into by itself, in a ``with`` block."""

    def __init__(self, url: str, name: str, arguments: dict[str, Any] | None = None) -> None:
        parameters = pika.URLParameters(url)
        parameters.heartbeat = 0  # for as long as the test takes, nobody looks after it
        parameters.stack_timeout = parameters.socket_timeout = 60
        self._connection = pika.BlockingConnection(parameters)
        self._channel: Any = self._connection.channel()
        self._channel.queue_declare(name, durable=True, arguments=arguments)
        self._name = name

    def take(self) -> list[tuple[Any, bytes]]:
        """All that is in it: properties, and body."""
        found = []
        while (got := self._channel.basic_get(self._name, auto_ack=True))[0] is not None:
            found.append((got[1], got[2]))
        return found

    def purge(self) -> int:
        """How many were in it: of those that pika cannot read."""
        return int(self._channel.queue_purge(self._name).method.message_count)

    def __enter__(self) -> OwnQueue:
        return self

    def __exit__(self, *exc_info: object) -> None:
        try:
            self._channel.queue_delete(self._name)
        finally:
            self._connection.close()
