"""A broker node: what pika needs to connect to it, made afresh for each connect."""

from __future__ import annotations

import copy
import importlib
import math
from urllib.parse import quote

from pika.connection import Parameters, SSLOptions


class Node:
    """One broker node, as configured; :meth:`parameters` makes what pika needs to connect to it.

    It holds a template that pika never sees: while it connects, ``BlockingConnection`` sets ``ssl_options``
    to None on the parameters it was given, and a second thread with the same object would connect in
    plaintext.
    """

    __slots__ = ("_template",)

    def __init__(self, template: Parameters) -> None:
        self._template = template

    @property
    def host(self) -> str:
        """The host's name or address, as configured."""
        return self._template.host

    @property
    def port(self) -> int:
        """The TCP port."""
        return self._template.port

    @property
    def attempts(self) -> int:
        """How often one connect tries this node (pika's ``connection_attempts``, 1 by default)."""
        return self._template.connection_attempts

    @property
    def retry_delay(self) -> float:
        """Seconds between those attempts (pika's ``retry_delay``)."""
        return self._template.retry_delay

    @property
    def tls(self) -> bool:
        """Whether TLS is spoken to it."""
        return self._template.ssl_options is not None

    @property
    def connect_timeout(self) -> float | None:
        """Seconds that TCP, TLS and AMQP may take up to the open connection (pika's ``stack_timeout``)."""
        return self._template.stack_timeout

    @property
    def frame_max(self) -> int:
        """The longest frame in bytes that is asked for; the broker may want shorter ones."""
        return self._template.frame_max

    @property
    def heartbeat(self) -> int | None:
        """The heartbeat interval in seconds; None when it is left to the broker or to a function."""
        value = self._template.heartbeat
        return value if isinstance(value, int) else None

    def parameters(self, *, address: str, connection_name: str, timeout: float) -> Parameters:
        """New parameters for one connect to one address of this node, within ``timeout`` seconds."""
        fresh = copy.copy(self._template)
        fresh.host = address
        fresh.connection_attempts = 1
        fresh.socket_timeout = min(timeout, fresh.socket_timeout or math.inf)
        fresh.stack_timeout = min(timeout, fresh.stack_timeout or math.inf)
        fresh.client_properties = {
            "connection_name": connection_name,
            **(fresh.client_properties or {}),
        }
        tls = fresh.ssl_options
        if tls is not None and tls.server_hostname is None:
            # The address stands in for the host, so pika can no longer fill in the name to be verified.
            fresh.ssl_options = SSLOptions(tls.context, server_hostname=self.host)
        return fresh

    def __str__(self) -> str:
        scheme = "amqps" if self.tls else "amqp"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}://{host}:{self.port}/{quote(self._template.virtual_host, safe='')}"

    def __repr__(self) -> str:
        return f"<Node {self}>"


class EmbeddedNode(Node):
    """The embedded broker of this process, by its name. The first connect starts it."""

    __slots__ = ("_name",)

    def __init__(self, name: str, template: Parameters) -> None:
        super().__init__(template)
        self._name = name

    def parameters(self, *, address: str, connection_name: str, timeout: float) -> Parameters:
        """New parameters for one connect, to the port that it listens on."""
        fresh = super().parameters(address=address, connection_name=connection_name, timeout=timeout)
        # Not an import statement at the top: nobody else needs asyncio, which takes its time.
        fresh.port = importlib.import_module("flask_pika.broker").shared_broker(self._name).port
        return fresh

    def __str__(self) -> str:
        return f"embedded://{self._name}"
