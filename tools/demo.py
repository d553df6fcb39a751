"""``make demo``: a Flask app under gunicorn publishes and gets messages.

By default through the embedded broker, for which nothing has to be installed. ``BROKER=rabbitmq`` in the
environment is a private RabbitMQ node instead, and ``BROKER=amqp://...`` one that is there already.
"""

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

import pika

from tools.embedded_node import EmbeddedNode
from tools.rabbitmq_node import RabbitMQNode, free_port, uninterrupted

_ROOT = Path(__file__).parent.parent


#: The signal that ended the demo. What a signal handler raises may be lost, in a destructor that it struck.
_ended_by: list[int] = []


def say(line: str = "") -> None:
    _leave_if_ended()
    print(line, flush=True)


def _end(number: int, _frame: object) -> None:
    _ended_by.append(number)
    _leave_if_ended()


def _leave_if_ended() -> None:
    if _ended_by:
        sys.exit(128 + _ended_by[0])


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


class Embedded:
    """The embedded broker, in this process."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        say("1. The embedded broker starts, for this demo alone; nothing had to be installed for it ...")
        self._node = stack.enter_context(EmbeddedNode())
        self.url = self._node.url
        say(f"   It listens on 127.0.0.1:{self._node.port}.")

    def outage(self) -> None:
        say("4. The broker hangs up on everybody, and nobody tells the app ...")
        self._node.broker.drop_connections()

    def connections(self) -> list[str]:
        return self._node.connections()


class Private:
    """A RabbitMQ node of our own."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        say("1. A private RabbitMQ node starts, for this demo alone ...")
        self._node = stack.enter_context(RabbitMQNode())
        self.url = self._node.url
        say(f"   RabbitMQ {self._node.ctl('version').strip()} listens on 127.0.0.1:{self._node.port}.")

    def outage(self) -> None:
        say("4. RabbitMQ restarts, and nobody tells the app ...")
        self._node.restart()

    def connections(self) -> list[str]:
        return self._node.connections()


class Given:
    """A broker that somebody else runs."""

    def __init__(self, url: str) -> None:
        try:
            self._parameters = pika.URLParameters(url)
        except Exception:  # of many types, and with the password in it
            sys.exit("BROKER is no URL; expected amqp://user:password@host:5672/virtual-host")
        self.url = url
        say(f"1. The broker is on {self._parameters.host}:{self._parameters.port}, and stays as it is.")

    def outage(self) -> None:
        say("4. It is not ours to restart, so that is left out ('make demo' alone shows it).")

    def connections(self) -> list[str]:
        return ["(that is for those to see who run it)"]


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # what was started is stopped then, too
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(number, _end)
    began = time.monotonic()
    wanted = os.environ.get("BROKER", "embedded")
    queue = f"flask-pika-demo-{os.getpid()}"
    say("Flask-Pika: a Flask app publishes messages and gets them back.\n")
    with contextlib.ExitStack() as stack:
        broker: Embedded | Private | Given
        if wanted == "embedded":
            broker = Embedded(stack)
        elif wanted == "rabbitmq":
            broker = Private(stack)
        else:
            broker = Given(wanted)
        stack.callback(_delete, queue, broker.url)
        got = _show(broker, queue)
    if got != ["first", "second", "third", None]:
        sys.exit("\nThat is not what was published. This is a bug in Flask-Pika: please report it.")
    say(f"\nAll came back, in order. Everything was stopped again ({time.monotonic() - began:.0f} s in all).")


def _show(broker: Embedded | Private | Given, queue: str) -> list[object]:
    say("2. The app in examples/quickstart starts under gunicorn, with 2 workers of 4 threads ...")
    options = ("--workers=2", "--worker-class=gthread", "--threads=4")
    env = {"FLASK_PIKA_PARAMS": broker.url, "FLASK_QUEUE": queue}
    with gunicorn("app:create_app()", _ROOT / "examples" / "quickstart", *options, env=env) as base:
        say(f"   {base} answers.")
        say("3. Three messages are published over HTTP, each confirmed by the broker ...")
        for text in ("first", "second", "third"):
            status, answer = call("POST", f"{base}/messages", text.encode())
            say(f"   POST /messages {text!r:9} -> {status} {answer}")
        broker.outage()
        say("5. The messages are fetched over HTTP; whatever happened, the app finds its way by itself ...")
        got = []
        for _ in range(4):
            status, answer = call("GET", f"{base}/messages/next")
            say(f"   GET  /messages/next    -> {status} {answer}")
            got.append(answer.get("message"))
        say("6. What the broker sees of the app: a connection for each channel, and one to publish ...")
        for name in broker.connections():
            say(f"   {name}")
    return got


def _delete(queue: str, url: str) -> None:
    """Leave nothing on the broker, which may be somebody's."""
    with (
        contextlib.suppress(pika.exceptions.AMQPError),
        pika.BlockingConnection(pika.URLParameters(url)) as one,
    ):
        one.channel().queue_delete(queue)


if __name__ == "__main__":
    main()
