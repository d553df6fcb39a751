"""``make demo``: a Flask app under gunicorn publishes and gets messages through a private RabbitMQ node."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tools.rabbitmq_node import RabbitMQNode, free_port, uninterrupted

_ROOT = Path(__file__).parent.parent


def say(line: str = "") -> None:
    print(line, flush=True)


@contextlib.contextmanager
def gunicorn(app: str, directory: Path, *options: str, env: dict[str, str]) -> Iterator[str]:
    """Run an app under gunicorn; its base URL."""
    port = free_port()
    server: subprocess.Popen[bytes] | None = None
    with tempfile.TemporaryFile() as log:
        try:
            with uninterrupted():
                server = subprocess.Popen(
                    [sys.executable, "-m", "gunicorn", "--bind", f"127.0.0.1:{port}", *options, app],
                    cwd=directory,
                    env={**os.environ, **env},
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            base = f"http://127.0.0.1:{port}"
            deadline = time.monotonic() + 60
            while not _answers(base):
                if server.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise RuntimeError(f"gunicorn did not start:\n{log.read().decode(errors='replace')}")
                time.sleep(0.05)
            yield base
        finally:
            if server is not None:
                _stop(server)


def _stop(server: subprocess.Popen[bytes]) -> None:
    server.send_signal(signal.SIGTERM)
    try:
        server.wait(timeout=40)
    except subprocess.TimeoutExpired:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _answers(base: str) -> bool:
    try:
        urllib.request.urlopen(f"{base}/", timeout=5).close()
    except urllib.error.HTTPError as answer:
        answer.close()
    except OSError:
        return False
    return True


def call(method: str, url: str, body: bytes | None = None) -> tuple[int, dict[str, Any]]:
    """One HTTP request; status and JSON."""
    request = urllib.request.Request(url, data=body, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def main() -> None:
    for number in (signal.SIGTERM, signal.SIGHUP):  # what was started is stopped then, too
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(number, lambda number, _frame: sys.exit(128 + number))
    began = time.monotonic()
    say("Flask-Pika: a Flask app publishes and gets messages through a real RabbitMQ.\n")
    say("1. A private RabbitMQ node starts, for this demo alone ...")
    with RabbitMQNode() as node:
        version = node.ctl("version").strip()
        say(f"   RabbitMQ {version} listens on 127.0.0.1:{node.port}.")
        say("2. The app in examples/quickstart starts under gunicorn, with 2 workers of 4 threads ...")
        options = ("--workers=2", "--worker-class=gthread", "--threads=4")
        env = {"FLASK_PIKA_PARAMS": node.url}
        with gunicorn("app:create_app()", _ROOT / "examples" / "quickstart", *options, env=env) as base:
            say(f"   {base} answers.")
            say("3. Three messages are published over HTTP, each confirmed by RabbitMQ ...")
            for text in ("first", "second", "third"):
                status, answer = call("POST", f"{base}/messages", text.encode())
                say(f"   POST /messages {text!r:9} -> {status} {answer}")
            say("4. RabbitMQ restarts, and nobody tells the app ...")
            node.restart()
            say("5. The messages are fetched over HTTP; the app has found its way back by itself ...")
            got = []
            for _ in range(4):
                status, answer = call("GET", f"{base}/messages/next")
                say(f"   GET  /messages/next    -> {status} {answer}")
                got.append(answer.get("message"))
            say("6. What RabbitMQ sees of the app: a connection for each channel, and one to publish ...")
            for name in node.connections():
                say(f"   {name}")
    if got != ["first", "second", "third", None]:
        sys.exit("\nThat is not what was published. This is a bug in Flask-Pika: please report it.")
    say(f"\nAll came back, in order. Everything was stopped again ({time.monotonic() - began:.0f} s in all).")


if __name__ == "__main__":
    main()
