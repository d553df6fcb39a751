"""An app for the command's tests: a consumer that keeps a ledger, and does what a message tells it to.

A message is its id, and words: ``requeue`` (the first time), ``raise``, ``hold`` (until there is the file).
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from flask import Flask

from flask_pika import Delivery, Pika, Requeue
from tests.ledger import Ledger

fpika = Pika()


def create_app() -> Flask:
    """Configured by the environment: FLASK_PIKA_PARAMS; LEDGER, HOLD (paths), WORK (seconds), PREFETCH."""
    app = Flask("work")
    app.config.from_prefixed_env()
    fpika.init_app(app)
    ledger = Ledger(Path(os.environ["LEDGER"]))
    hold = Path(os.environ["HOLD"])
    seconds = float(os.environ["WORK"])

    @fpika.consumer("work", prefetch=int(os.environ["PREFETCH"]))
    def work(delivery: Delivery) -> None:
        with ledger.run(delivery):
            words = delivery.text.split(" ")[1:]
            if "requeue" in words and not delivery.redelivered:
                raise Requeue("once")
            if "raise" in words:
                raise RuntimeError("as the message says")
            while "hold" in words and not hold.exists():
                time.sleep(0.01)
            if seconds:
                time.sleep(seconds)

    return app
