"""``examples/orders`` as its users run it: the command ``init``, a web server, and a worker."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tools.demo import gunicorn
from tools.rabbitmq_node import uninterrupted

_ROOT = Path(__file__).parent.parent
_FLASK = (sys.executable, "-m", "flask", "--app", "examples/orders")


class OrdersExample:
    """The example with a database of its own, on a broker.

    :param timeout: seconds that the web server gives to publishing.
    """

    def __init__(self, broker_url: str, directory: Path, timeout: float = 10.0) -> None:
        self._env = {
            "FLASK_PIKA_PARAMS": broker_url,
            "FLASK_PIKA_PUBLISHER_PARAMS": json.dumps({"timeout": timeout}),
            "FLASK_ORDERS_DATABASE": str(directory / "orders.sqlite"),
            "FLASK_ORDERS_SECONDS": "0",
        }

    def init(self) -> None:
        """Make the database and the queue."""
        subprocess.run(
            [*_FLASK, "init"],
            cwd=_ROOT,
            env={**os.environ, **self._env},
            check=True,
            timeout=60,
            stdout=subprocess.DEVNULL,
        )

    @contextlib.contextmanager
    def web(self) -> Iterator[str]:
        """The web server; its URL."""
        options = ("--worker-class=gthread", "--threads=4")
        with gunicorn("orders:create_app()", _ROOT / "examples", *options, env=self._env) as base:
            yield base

    @contextlib.contextmanager
    def worker(self) -> Iterator[None]:
        """A worker, which has drained when the block has ended."""
        process: subprocess.Popen[bytes] | None = None
        with tempfile.TemporaryFile() as log:
            try:
                with uninterrupted():
                    process = subprocess.Popen(
                        [*_FLASK, "pika", "worker"],
                        cwd=_ROOT,
                        env={**os.environ, **self._env},
                        stdout=log,
                        stderr=subprocess.STDOUT,
                    )
                yield
                process.send_signal(signal.SIGTERM)
                if process.wait(timeout=60):
                    log.seek(0)
                    said = log.read().decode(errors="replace")
                    raise RuntimeError(f"the worker ended with {process.returncode}:\n{said}")
            finally:
                if process is not None and process.poll() is None:
                    process.kill()
                    process.wait()
