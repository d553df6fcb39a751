"""Flask-Pika: the pool's channels, or the publisher; a worker with 8 threads."""

from __future__ import annotations

import contextlib
import gc
import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pika
from flask import Flask

from benchmarks.peers.base import (
    HOST,
    NAMED,
    PATIENCE,
    POOL,
    PREFETCH,
    Call,
    Case,
    Figures,
    NotOffered,
    Peer,
    Tally,
    resident,
    timed,
)
from flask_pika import Delivery, Message, Pika

PACKAGES = ["Flask-Pika", "pika", "Flask"]


class Ours(Peer):
    """Options: the pool's ``probe``; ``context``, for a loan in an app's; ``by`` what it publishes."""

    def __init__(self, options: dict[str, Any], ask: Callable[[], None]) -> None:
        super().__init__(options, ask)
        self.app = Flask("benchmark")
        self.by = options.get("by", "publish")

    def _open(self, case: Case, **pool: object) -> Pika:
        self.app = Flask("benchmark")
        self.app.config["FLASK_PIKA_PARAMS"] = {
            "host": HOST,
            "port": case.port,
            "username": "guest",
            "password": "guest",
            "stack_timeout": 60,
            "socket_timeout": 60,
        }
        self.app.config["FLASK_PIKA_POOL_PARAMS"] = {"pool_size": POOL, **pool}
        self.app.config["FLASK_PIKA_PUBLISHER_PARAMS"] = {"timeout": PATIENCE}
        return Pika(self.app)

    def in_thread(self) -> AbstractContextManager[object]:
        return self.app.app_context()

    @contextlib.contextmanager
    def checkout(self, case: Case) -> Iterator[Call]:
        fpika = self._open(case, pool_pre_ping=self.options.get("probe", True))

        def call() -> None:
            with fpika.channel():
                pass

        with contextlib.closing(fpika):
            yield call

    def do_checkout(self, case: Case, count: int) -> Figures:
        # An app context would give back what was not: those that it is compared with have none.
        with self.checkout(case) as call, self.in_thread() if self.options.get("context") else nullcontext():
            return timed(call, lambda: None, count)

    def do_publish(self, case: Case, count: int) -> Figures:
        if self.by != "channel" and case.pooled:
            raise NotOffered("needs no channel: one connection serves all threads")
        if (self.by, case.confirm) in (("publish", False), ("submit", True)):
            raise NotOffered("is confirmed, and waits" if self.by == "publish" else "does not wait")
        fpika = self._open(case, confirm_delivery=case.confirm)
        with contextlib.closing(fpika), self.app.app_context():
            call, flush = self._publishing(fpika, case)
            return timed(call, flush, count)

    def _publishing(self, fpika: Pika, case: Case) -> tuple[Call, Call]:
        body, queue, exchange = case.body, case.queue, case.exchange
        if self.by == "publish":
            return lambda: fpika.publish(body, routing_key=queue, exchange=exchange), lambda: None
        if self.by == "submit":
            last: list[Any] = [None]

            def submit() -> None:
                last[0] = fpika.submit(body, routing_key=queue, exchange=exchange)

            return submit, lambda: last[0].result(PATIENCE)
        properties = pika.BasicProperties(**NAMED)
        mandatory = case.confirm

        def pooled() -> None:
            with fpika.channel() as channel:
                channel.basic_publish(exchange, queue, body, properties, mandatory)

        def flush() -> None:
            with fpika.channel() as channel:
                channel.queue_declare(queue, passive=True)

        if case.pooled:
            return pooled, flush
        held = fpika.channel()
        return (
            lambda: held.basic_publish(exchange, queue, body, properties, mandatory),
            lambda: held.queue_declare(queue, passive=True),
        )

    @contextlib.contextmanager
    def waiting(self, case: Case) -> Iterator[list[Call]]:
        if self.by == "publish_many":
            raise NotOffered("is for many messages")
        fpika = self._open(case, confirm_delivery=True, pool_timeout=PATIENCE)
        with contextlib.closing(fpika):
            call, _flush = self._publishing(fpika, Case(case, how="pooled"))
            yield [call] * case.threads

    @contextlib.contextmanager
    def bulk(self, case: Case, count: int) -> Iterator[Call]:
        if self.by != "publish_many":
            raise NotOffered("is for one message")
        fpika = self._open(case)
        with contextlib.closing(fpika):
            with self.app.app_context():
                fpika.publish(case.body, routing_key=case.queue)
            body, queue, exchange = case.body, case.queue, case.exchange
            messages = (
                Message(body, exchange=exchange, routing_key=queue, mandatory=not exchange)
                for _ in range(count)
            )
            yield lambda: fpika.publish_many(messages, window=case.window, timeout=PATIENCE)

    def consume(self, case: Case, tally: Tally) -> None:
        fpika = self._open(case)

        @fpika.consumer(case.queue, prefetch=PREFETCH)
        def handle(delivery: Delivery) -> None:
            delivery.json  # noqa: B018 - it parses
            if case.pause:
                time.sleep(case.pause)
            tally()

        with self.app.app_context(), fpika.worker(threads=self.threads):
            tally.full.wait(PATIENCE)
        fpika.close()

    def do_pending(self, case: Case, count: int) -> Figures:
        if self.by == "publish_many":
            raise NotOffered("has no more pending than its window")
        fpika = self._open(case)
        with contextlib.closing(fpika), self.app.app_context():
            fpika.publish(case.body, routing_key=case.queue)
            self.ask()  # from now on nothing passes
            gc.collect()
            before = resident()
            futures = [fpika.submit(case.body, routing_key=case.queue) for _ in range(count)]
            time.sleep(1.0)
            gc.collect()
            grown = resident() - before
            self.ask()  # it passes again
            for future in futures:
                future.result(PATIENCE)
        return {"count": count, "bytes": grown}

    def do_growth(self, case: Case, count: int) -> Figures:
        if self.by == "submit":
            raise NotOffered("is for one message")
        at: dict[int, float] = {count // 10: 0.0, count - 1: 0.0}
        fpika = self._open(case)

        def messages() -> Iterator[Message]:
            for number in range(count):
                if number in at:
                    at[number] = resident()
                # Each with a body of its own: what is held on to is seen. The broker keeps none.
                yield Message(b"%0200d" % number, exchange="amq.direct", mandatory=False)

        with contextlib.closing(fpika), self.app.app_context():
            fpika.publish_many(messages(), timeout=PATIENCE)
        return {"count": count, "bytes": at[count - 1] - at[count // 10]}

    def do_fill(self, case: Case, count: int) -> Figures:
        """What consumers take is JSON."""
        bare = {"number": 0, "text": ""}
        text = "x" * (len(case.body) - len(json.dumps(bare)))
        fpika = self._open(case)
        with contextlib.closing(fpika), self.app.app_context():
            messages = (
                Message(
                    json.dumps({"number": number, "text": text}).encode(),
                    routing_key=case.queue,
                    content_type="application/json",
                )
                for number in range(count)
            )
            fpika.publish_many(messages, timeout=PATIENCE)
        return {"count": count}


def make(options: dict[str, Any], ask: Callable[[], None]) -> Peer:
    return Ours(options, ask)
