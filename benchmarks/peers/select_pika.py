"""pika's ``SelectConnection``: callbacks in one thread, and as many messages in flight as its user counts."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.peers.base import HOST, NAMED, Call, Case, Figures, NotOffered, Peer, load, resident

PACKAGES = ["pika"]


class _Channel:
    """A confirmed channel; its loop runs until what is asked for has come about."""

    def __init__(self, case: Case) -> None:
        pika = load("pika")
        self._settled = 0  # all up to this tag
        self._early: set[int] = set()  # and these, that came out of order
        self._error: BaseException | None = None
        self._is_ready = False
        self._channel: Any = None
        self._until: Callable[[], bool] = lambda: True
        self.go_on: Callable[[], object] = lambda: None
        self.connection: Any = pika.SelectConnection(
            pika.ConnectionParameters(HOST, case.port, heartbeat=0),
            on_open_callback=lambda connection: connection.channel(on_open_callback=self._opened),
            on_open_error_callback=lambda _connection, error: self._fail(error),
            on_close_callback=lambda _connection, _reason: self.connection.ioloop.stop(),
        )
        self.run_until(lambda: self._is_ready)
        properties = pika.BasicProperties(**NAMED)
        exchange, queue, body, mandatory = case.exchange, case.queue, case.body, not case.exchange
        is_fresh = case.is_fresh
        channel: Any = self._channel

        def publish() -> None:
            channel.basic_publish(exchange, queue, case.body if is_fresh else body, properties, mandatory)

        self.publish = publish

    def _opened(self, channel: Any) -> None:
        self._channel = channel
        channel.confirm_delivery(self._on_confirm, callback=lambda _frame: self._ready())

    def _ready(self) -> None:
        self._is_ready = True
        self.connection.ioloop.stop()

    def _fail(self, error: BaseException) -> None:
        self._error = error
        self.connection.ioloop.stop()

    def _on_confirm(self, frame: Any) -> None:
        method = frame.method
        if method.NAME != "Basic.Ack":
            self._fail(RuntimeError("refused by the broker"))
        tag = method.delivery_tag
        if method.multiple:
            self._settled = max(tag, self._settled)
            self._early = {early for early in self._early if early > tag}
        else:
            self._early.add(tag)
        while self._settled + 1 in self._early:
            self._settled += 1
            self._early.remove(self._settled)
        self.go_on()
        if self._until():
            self.connection.ioloop.stop()

    @property
    def confirmed(self) -> int:
        return self._settled + len(self._early)

    def run_until(self, done: Callable[[], bool]) -> None:
        self._until = done
        self.connection.ioloop.start()
        if self._error is not None:
            raise self._error
        if not done():
            raise RuntimeError("the connection was lost")

    def close(self) -> None:
        self.connection.close()
        self.connection.ioloop.start()


class SelectPika(Peer):
    def publisher(self, case: Case) -> contextlib.AbstractContextManager[tuple[Call, Call]]:
        raise NotOffered("publishes from its own thread alone, and calls back")

    @contextlib.contextmanager
    def bulk(self, case: Case, count: int) -> Iterator[Call]:
        with contextlib.closing(_Channel(case)) as channel:
            sent = 0

            def send(up_to: int) -> None:
                nonlocal sent
                # In pieces: one by one, as confirms come, both sides do nothing but take turns.
                if up_to - sent >= min(case.window // 4 + 1, goal - sent):
                    while sent < up_to:
                        sent += 1
                        channel.publish()

            def publish() -> None:
                channel.go_on = lambda: send(min(goal, channel.confirmed + case.window))
                channel.go_on()
                channel.run_until(lambda: channel.confirmed >= goal)

            goal = 1
            publish()  # it is warm
            goal = 1 + count
            yield publish

    def do_pending(self, case: Case, count: int) -> Figures:
        with contextlib.closing(_Channel(case)) as channel:
            channel.publish()
            channel.run_until(lambda: channel.confirmed == 1)
            self.ask()  # from now on nothing passes
            gc.collect()
            before = resident()
            for _ in range(count):
                channel.publish()
            time.sleep(1.0)
            gc.collect()
            grown = resident() - before
            self.ask()  # it passes again
            channel.run_until(lambda: channel.confirmed == count + 1)
        return {"count": count, "bytes": grown}


def make(options: dict[str, Any], ask: Callable[[], None]) -> Peer:
    return SelectPika(options, ask)
