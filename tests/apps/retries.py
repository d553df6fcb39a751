"""An app whose handler fails as a message says: a consumer with retries, for what happens when it is killed.

A message is its id, and words: ``fails:3`` (its first three attempts), ``reject``, ``poison`` (it kills the
worker's process), ``doomed`` (the process is killed when a copy was confirmed, and nothing acked; once),
``hold`` (until there is the file HOLD).
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from flask import Flask

from flask_pika import Delivery, Pika, Reject, Retry
from flask_pika.encoded import EncodedProperties
from flask_pika.recovery import Recovery
from flask_pika.topology import Queue
from tests.ledger import Ledger

fpika = Pika()
RETRY = Retry(attempts=4, delay=0.02, factor=2)


def create_app() -> Flask:
    """Configured by the environment: FLASK_PIKA_PARAMS; LEDGER, KILLED (paths), QUEUE, KIND, ...."""
    app = Flask("retries")
    app.config.from_prefixed_env()
    fpika.init_app(app)
    ledger = Ledger(Path(os.environ["LEDGER"]))
    kind, limit = os.environ["KIND"], int(os.environ["LIMIT"])
    queue: Any = {"type": kind, "delivery_limit": limit if kind == "quorum" else None}
    fpika.queue(os.environ["QUEUE"], dead_letter=True, **queue)
    killing_after_copies(Path(os.environ["KILLED"]))

    @fpika.consumer(os.environ["QUEUE"], retry=RETRY, prefetch=int(os.environ["PREFETCH"]))
    def work(delivery: Delivery) -> None:
        with ledger.run(delivery):
            as_it_says(delivery)

    return app


def as_it_says(delivery: Delivery) -> None:
    """Fail, or not."""
    for word in delivery.text.split(" ")[1:]:
        what, _, number = word.partition(":")
        if what == "poison":
            os.kill(os.getpid(), signal.SIGKILL)
        while what == "hold" and not Path(os.environ["HOLD"]).exists():
            time.sleep(0.01)
        if what == "reject":
            raise Reject("as the message says")
        if what == "fails" and delivery.attempt <= int(number):
            raise RuntimeError("as the message says")


def killing_after_copies(killed: Path) -> None:
    """Between the confirm of a doomed message's copy and the ack; it is the first one's alone."""
    send = Recovery._send

    def and_die(self: Recovery, delivery: Delivery, queue: Queue, properties: EncodedProperties) -> None:
        send(self, delivery, queue, properties)
        if "doomed" in delivery.text and not killed.exists():
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    Recovery._send = and_die  # type: ignore[method-assign]
