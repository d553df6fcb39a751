"""A node that speaks TLS, certificates that fit and that do not, and a proxy that reads what is in clear."""

from __future__ import annotations

import contextlib
import datetime
import os
import ssl
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import trustme

from tests.faults.lab import Site, let_in
from tests.faults.searching import PASSWORD, USER
from tools.proxy import Proxy
from tools.rabbitmq_cluster import RabbitMQCluster
from tools.rabbitmq_node import RabbitMQNode, free_port

#: What the node's certificate is for.
HOST = "localhost"
#: RFC 8446, section 5.1: the type of a record that shakes hands.
_HANDSHAKE = b"\x16"
#: AMQP 0-9-1, section 4.2.2: how a client begins.
_PROTOCOL_HEADER = b"AMQP\x00\x00\x09\x01"


class Certificates:
    """An authority that all trust, another one, and what the node and the client show at the moment."""

    def __init__(self, place: Path) -> None:
        self.place, self.shown = place, ""
        place.mkdir()
        self.authority, self._stranger = trustme.CA(), trustme.CA()
        self.authority.cert_pem.write_to_path(str(place / "ca.pem"))
        self.show("good")
        client = self.authority.issue_cert("client.lab")
        client.cert_chain_pems[0].write_to_path(str(place / "client.pem"))
        client.private_key_pem.write_to_path(str(place / "client.key"))

    def show(self, kind: str) -> None:
        """Lay this certificate where the node reads its own."""
        self.shown = kind
        now = datetime.datetime.now(datetime.timezone.utc)
        day = datetime.timedelta(days=1)
        if kind == "expired":
            issued = self.authority.issue_cert(HOST, not_before=now - 2 * day, not_after=now - day)
        elif kind == "for another name":
            issued = self.authority.issue_cert("another.lab")
        elif kind == "of a stranger":
            issued = self._stranger.issue_cert(HOST)
        else:
            issued = self.authority.issue_cert(HOST)
        for name, pem in (("cert.pem", issued.cert_chain_pems[0]), ("key.pem", issued.private_key_pem)):
            pem.write_to_path(str(self.place / f"new-{name}"))
            os.replace(self.place / f"new-{name}", self.place / name)

    def context(self, *, client: bool = True, verify: bool = True) -> ssl.SSLContext:
        """What an app is configured with, that trusts the authority and shows a certificate of its own."""
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        if not verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if client:
            context.load_cert_chain(self.place / "client.pem", self.place / "client.key")
        return context

    def url(self, port: int, *, client: bool = True) -> str:
        """The same, for a program's environment."""
        files = {"cafile": "ca.pem"}
        if client:
            files |= {"certfile": "client.pem", "keyfile": "client.key"}
        options = {key: str(self.place / name) for key, name in files.items()}
        query = urllib.parse.urlencode({"ssl_options": repr(options)}, quote_via=urllib.parse.quote)
        password = urllib.parse.quote(PASSWORD, safe="")
        return f"amqps://{USER}:{password}@{HOST}:{port}/%2F?{query}"


class Recorder(Proxy):
    """Reads how each connection begins, and whether AMQP or the password comes along in clear."""

    def __init__(self, target: int) -> None:
        super().__init__(target)
        self._lock = threading.Lock()
        self._begun: set[int] = set()
        #: What was in clear: a few words for each.
        self._clear: list[str] = []

    def passes(self, connection: int, to_target: bool, data: bytes) -> None:
        if not to_target:
            return
        with self._lock:
            if connection not in self._begun:
                self._begun.add(connection)
                if not data.startswith(_HANDSHAKE):
                    self._clear.append(f"connection {connection} begins with {data[:8]!r}")
            if _PROTOCOL_HEADER in data or PASSWORD.encode() in data:
                self._clear.append(f"connection {connection} speaks AMQP in clear")

    def taken(self) -> tuple[int, list[str]]:
        """How many connections sent something since the last time, and what of it was in clear."""
        with self._lock:
            begun, clear = len(self._begun), self._clear
            self._begun, self._clear = set(), []
        return begun, clear


class TLSSite(Site):
    """One node with a TLS port, which wants to see its clients' certificates, behind a recorder."""

    def __init__(self, cluster: RabbitMQCluster, recorder: Recorder, records: Path, shown: Certificates):
        super().__init__(cluster, [recorder], records)
        self.recorder, self.certificates = recorder, shown

    @property
    def node(self) -> RabbitMQNode:
        return self.cluster.nodes[0]

    def show(self, kind: str) -> None:
        """Exchange the node's certificate, as an operator renews it."""
        if kind == self.certificates.shown:
            return
        self.certificates.show(kind)
        self.node.ctl("eval", "ssl:clear_pem_cache().")

    def params(self, context: ssl.SSLContext) -> dict[str, object]:
        patience = {"stack_timeout": 60, "socket_timeout": 60}
        about = {"host": HOST, "port": self.recorder.port, "username": USER, "password": PASSWORD}
        return {**about, "ssl_options": context, **patience}

    def speak_tls(self) -> list[bool]:
        """Of each client that the node has, whether it speaks TLS."""
        lines = self.node.ctl("list_connections", "user", "ssl").splitlines()
        return [line.endswith("true") for line in lines if line.startswith(USER)]


@contextlib.contextmanager
def tls_site(records: Path, place: Path) -> Iterator[TLSSite]:
    """The node, its certificates and its recorder."""
    shown = Certificates(place)
    port = free_port()
    config = f"""
        listeners.ssl.1 = 127.0.0.1:{port}
        ssl_options.cacertfile = {place}/ca.pem
        ssl_options.certfile = {place}/cert.pem
        ssl_options.keyfile = {place}/key.pem
        ssl_options.verify = verify_peer
        ssl_options.fail_if_no_peer_cert = true
        ssl_handshake_timeout = 60000
        handshake_timeout = 60000
    """
    lines = "\n".join(line.strip() for line in config.splitlines())
    with RabbitMQCluster(1, lines) as cluster, Recorder(port) as recorder:
        let_in(cluster.ctl)
        yield TLSSite(cluster, recorder, records, shown)
