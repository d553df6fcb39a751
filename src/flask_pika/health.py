"""Health for an orchestrator: ``/live`` and ``/ready`` over HTTP, told truthfully."""

from __future__ import annotations

import contextlib
import json
import socket
import socketserver
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any, cast

#: Seconds for a client to say what it wants, so that one that says nothing keeps no thread.
_PATIENCE = 2.0


@dataclass(frozen=True)
class Health:
    """How a worker is."""

    live: bool  #: its threads do their work: if not, restart it
    ready: bool  #: every consumer consumes
    consumers: list[dict[str, str]] = field(default_factory=list)  #: queue, state, and error, of each

    def as_json(self) -> bytes:
        """What is sent."""
        return json.dumps(asdict(self)).encode()


class HealthServer(socketserver.ThreadingTCPServer):
    """Answers ``GET /live`` and ``GET /ready``: 200 when it is so, 503 when not, and JSON that says more.

    :param host: the address to listen on.
    :param port: 0 for any free one; :attr:`url` says which.
    :param health: asked at each request.
    :raises OSError: the port is taken.
    """

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    #: ``handle_request()`` does not wait: who calls it knows that there is one.
    timeout = 0

    def __init__(self, host: str, port: int, health: Callable[[], Health]) -> None:
        self.health = health
        self._in_threads = False
        super().__init__((host, port), _Answer)

    @property
    def url(self) -> str:
        """Where it listens."""
        host, port = self.server_address[:2]
        return f"http://{host if isinstance(host, str) else host.decode()}:{port}"

    def start(self) -> None:
        """Serve in a thread of its own, and each client in another."""
        self._in_threads = True
        threading.Thread(
            target=self.serve_forever, kwargs={"poll_interval": 0.1}, name="flask-pika-health", daemon=True
        ).start()

    def stop(self) -> None:
        """End that thread, and close the port."""
        self.shutdown()
        self.server_close()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer, in a thread or, for who calls ``handle_request()``, in the caller's."""
        if self._in_threads:
            super().process_request(request, client_address)
        else:
            socketserver.TCPServer.process_request(self, request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up, or spoke something else, is nobody's incident."""


class _Answer(BaseHTTPRequestHandler):
    # One deadline for all that a client says, as it may send a byte each second.
    def setup(self) -> None:
        super().setup()
        self._deadline = threading.Timer(_PATIENCE, self._hang_up)
        self._deadline.daemon = True
        self._deadline.start()

    def finish(self) -> None:
        self._deadline.cancel()
        self._deadline.join()
        super().finish()

    def _hang_up(self) -> None:
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def do_GET(self) -> None:
        self._deadline.cancel()
        health = cast(HealthServer, self.server).health()
        path = self.path.partition("?")[0]
        if path not in ("/live", "/ready"):
            self._send(404, b'{"error": "there are /live and /ready"}')
            return
        good = health.live if path == "/live" else health.ready
        self._send(200 if good else 503, health.as_json())

    do_HEAD = do_GET  # noqa: N815 - http.server's names

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """A probe each second is not worth a line."""
