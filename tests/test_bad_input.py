"""Wrong hosts, ports, passwords and peers: one clear error in time, no password, and a whole pool."""

from __future__ import annotations

import contextlib
import logging
import os
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from pika import exceptions as pika_errors
from pika import frame, spec

from flask_pika import (
    AuthenticationRefused,
    BrokerRefused,
    BrokerUnavailable,
    Message,
    ProtocolMismatch,
    TLSRefused,
    VirtualHostRefused,
)
from flask_pika.connecting import explain
from tests.conftest import make_app, wait_for
from tests.faults.peers import FOUR_GIGABYTES, Impostor, Script
from tests.stand_ins import peer
from tests.test_publisher import know_why
from tools.proxy import Proxy
from tools.rabbitmq_node import RabbitMQNode, free_port

SECRET = "s3cret-password"
HTTP = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n"


def refused(
    params: object, kind: type[BrokerUnavailable], said: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """The checkout fails with exactly this, within the bounds, and the pool is whole."""
    _app, fpika = make_app(params, {"pool_size": 2})
    for _ in range(3):
        began = time.monotonic()
        with caplog.at_level(logging.DEBUG), pytest.raises(BrokerUnavailable) as caught:
            fpika.channel(timeout=60)  # time for the answer
        assert time.monotonic() - began < 30
        assert type(caught.value) is kind
        assert isinstance(caught.value, pika_errors.AMQPConnectionError)
        for part in said:
            assert part in str(caught.value)
    stats = fpika.stats()
    assert (stats.open, stats.in_use, stats.waiting) == (0, 0, 0)
    error: BaseException | None = caught.value
    while error is not None:
        assert SECRET not in repr(error) + str(error)
        error = error.__cause__ or error.__context__
    assert SECRET not in caplog.text
    assert SECRET not in repr(fpika)


def test_wrong_password(node: RabbitMQNode, caplog: pytest.LogCaptureFixture) -> None:
    params = {**node.params, "password": SECRET}
    said = [f"127.0.0.1:{node.port}", "user name or password refused", "ACCESS_REFUSED"]
    refused(params, AuthenticationRefused, said, caplog)
    assert issubclass(AuthenticationRefused, pika_errors.ProbableAuthenticationError)
    assert issubclass(AuthenticationRefused, BrokerRefused)


def test_missing_virtual_host(node: RabbitMQNode, caplog: pytest.LogCaptureFixture) -> None:
    params = {**node.params, "virtual_host": "no/such"}
    said = ["/no%2Fsuch", "virtual host refused", "vhost no/such not found"]
    refused(params, VirtualHostRefused, said, caplog)
    assert issubclass(VirtualHostRefused, pika_errors.ProbableAccessDeniedError)


def test_virtual_host_of_others(node: RabbitMQNode, caplog: pytest.LogCaptureFixture) -> None:
    with contextlib.suppress(Exception):
        node.ctl("add_user", "outsider", SECRET)
    params = {**node.params, "username": "outsider", "password": SECRET}
    refused(params, VirtualHostRefused, ["access to vhost '/' refused for user 'outsider'"], caplog)


def test_connection_limit(node: RabbitMQNode, caplog: pytest.LogCaptureFixture) -> None:
    with contextlib.suppress(Exception):
        node.ctl("add_vhost", "full")
    node.ctl("set_permissions", "-p", "full", "guest", ".*", ".*", ".*")
    node.ctl("set_vhost_limits", "-p", "full", '{"max-connections": 0}')
    refused({**node.params, "virtual_host": "full"}, VirtualHostRefused, ["limit"], caplog)


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("no-such-host.invalid", "does not resolve"),
        ("bad..name", "does not resolve"),
        ("127.0.0.1", "refused"),
    ],
)
def test_host_and_port(host: str, said: str, caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()
    params = {"host": host, "port": port, "username": "u", "password": SECRET}
    refused(params, BrokerUnavailable, [f"{host}:{port}", said], caplog)


@pytest.mark.parametrize("answer", [HTTP, bytes(range(256)) * 40, b"", b"AMQP\x01\x01\x00\x0a", b"\x01\x00"])
def test_a_port_where_something_else_answers(answer: bytes, caplog: pytest.LogCaptureFixture) -> None:
    with peer(answer) as port:
        params = {"host": "127.0.0.1", "port": port, "username": "u", "password": SECRET}
        refused(params, ProtocolMismatch, [f"127.0.0.1:{port}", "AMQP 0-9-1"], caplog)


START = frame.Method(
    0, spec.Connection.Start(server_properties={}, mechanisms="PLAIN", locales="en_US")
).marshal()
TUNE = frame.Method(0, spec.Connection.Tune(channel_max=10, frame_max=131072, heartbeat=0)).marshal()


@pytest.mark.parametrize(
    ("answers", "said"),
    [((START, b""), "lost while logging in"), ((START, TUNE, b""), "lost while the virtual host was opened")],
    ids=["login", "virtual host"],
)
def test_a_peer_that_hangs_up_has_refused_nobody(
    answers: tuple[bytes, ...], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    # A broker that is stopped does so. Pika's guess is a wrong password.
    with peer(*answers) as port:
        params = {"host": "127.0.0.1", "port": port, "username": "u", "password": SECRET}
        refused(params, BrokerUnavailable, [f"127.0.0.1:{port}", said], caplog)


@pytest.fixture
def channelless(node: RabbitMQNode) -> dict[str, object]:
    """A user who may connect, and open no channel."""
    with contextlib.suppress(Exception):
        node.ctl("add_user", "channelless", SECRET)
    node.ctl("set_permissions", "channelless", ".*", ".*", ".*")
    node.ctl("set_user_limits", "channelless", '{"max-channels": 0}')
    return {**node.params, "username": "channelless", "password": SECRET}


def test_channel_limit(channelless: dict[str, object], caplog: pytest.LogCaptureFixture) -> None:
    said = f"no channel could be opened on amqp://127.0.0.1:{channelless['port']}"
    refused(channelless, BrokerRefused, [said], caplog)


def test_where_channels_are_refused_one_probes_for_everybody(
    channelless: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    # A broker that takes connections and refuses channels is not up.
    with Proxy(int(str(channelless["port"]))) as proxy:
        _app, fpika = make_app({**channelless, "port": proxy.port}, {"pool_size": 16})
        with pytest.raises(BrokerRefused):
            fpika.channel(timeout=60)
        assert proxy.connections == 1
        failed = []

        def work() -> None:
            try:
                fpika.channel(timeout=60)
            except BrokerRefused:
                failed.append(1)

        threads = [threading.Thread(target=work) for _ in range(16)]
        proxy.freeze()  # who asks late, on a busy machine, would probe with good reason
        for thread in threads:
            thread.start()
        wait_for(lambda: fpika.stats().in_use == 16, "all to have asked")
        proxy.thaw()
        for thread in threads:
            thread.join(60)
        assert len(failed) == 16
        # One for those that had asked when it began, and one for who came while it was under way.
        assert proxy.connections - 1 <= 2
    assert caplog.text.count("is unavailable") == 1
    assert f"127.0.0.1:{proxy.port}/%2F is unavailable" in caplog.text


def test_garbage_at_random(caplog: pytest.LogCaptureFixture) -> None:
    for length in (1, 7, 8, 64, 4096, 100_000):
        with peer(os.urandom(length)) as port:
            _app, fpika = make_app({"host": "127.0.0.1", "port": port}, {"pool_size": 1})
            with pytest.raises(BrokerUnavailable):
                fpika.channel(timeout=2)
            assert fpika.stats().open == 0


def test_a_header_that_promises_four_gigabytes(caplog: pytest.LogCaptureFixture) -> None:
    with peer(b"\x01\x00\x00\xff\xff\xff\xff" + b"x" * 1000) as port:
        _app, fpika = make_app({"host": "127.0.0.1", "port": port}, {"pool_size": 1})
        with pytest.raises(BrokerUnavailable):
            fpika.channel(timeout=2)


@pytest.mark.parametrize("stage", range(4))
def test_a_frame_that_is_longer_than_agreed_is_not_waited_for(stage: int) -> None:
    with Impostor([Script(FOUR_GIGABYTES + b"x" * 1000, stage)]) as impostor:
        params = {"host": "127.0.0.1", "port": impostor.port, "stack_timeout": 60, "socket_timeout": 60}
        _app, fpika = make_app(params, {"pool_size": 1})
        began = time.monotonic()
        with pytest.raises(BrokerUnavailable):
            fpika.channel(timeout=60)
        assert time.monotonic() - began < 30
        fpika.close()


def test_a_connection_that_is_lost_as_it_opens_leaves_no_socket_behind() -> None:
    # Both in one piece: pika has lost it when it is about to hand it out. What is left, no_leaks finds.
    opened = frame.Method(0, spec.Connection.OpenOk()).marshal()
    for _ in range(2):
        with peer(START, TUNE, opened + FOUR_GIGABYTES) as port:
            _app, fpika = make_app({"host": "127.0.0.1", "port": port}, {"pool_size": 1})
            with pytest.raises(BrokerUnavailable):
                fpika.channel(timeout=20)
            fpika.close()


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (
            pika_errors.InvalidFrameError("no end"),
            ProtocolMismatch,
            "no AMQP 0-9-1 (InvalidFrameError: no end)",
        ),
        (
            pika_errors.UnexpectedFrameError("a body"),
            ProtocolMismatch,
            "no AMQP 0-9-1 (UnexpectedFrameError)",
        ),
        (pika_errors.MethodNotImplemented("Confirm.Select not Supported"), BrokerRefused, "Confirm.Select"),
    ],
)
def test_a_peer_that_cannot_be_worked_with_is_told_from_a_bug(
    error: Exception, kind: type[BrokerUnavailable], said: str
) -> None:
    failure = explain(error, tls=False)
    assert failure.kind is kind
    assert said in str(failure)


# TLS


@pytest.mark.parametrize("alert", ["TLSV13_ALERT_CERTIFICATE_REQUIRED", "SSLV3_ALERT_BAD_CERTIFICATE"])
def test_an_alert_that_pika_has_as_text_is_about_tls(alert: str) -> None:
    # TLS 1.3: it comes when the handshake is over.
    lost = pika_errors.StreamLostError(f"Stream connection lost: SSLError(1, '[SSL: {alert}] ...')")
    failure = explain(pika_errors.IncompatibleProtocolError(repr(lost)), tls=True)
    assert failure.kind is TLSRefused
    assert alert in str(failure)
    assert "client certificate" in str(failure)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def tls_node(
    authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[RabbitMQNode, int]]:
    """A node with a TLS port, whose certificate is for 'localhost'."""
    place: Path = tmp_path_factory.mktemp("certificates")
    authority.cert_pem.write_to_path(str(place / "ca.pem"))
    certificate = authority.issue_cert("localhost")
    certificate.cert_chain_pems[0].write_to_path(str(place / "cert.pem"))
    certificate.private_key_pem.write_to_path(str(place / "key.pem"))
    port = free_port()
    config = f"""
        listeners.ssl.1 = 127.0.0.1:{port}
        ssl_options.cacertfile = {place}/ca.pem
        ssl_options.certfile = {place}/cert.pem
        ssl_options.keyfile = {place}/key.pem
        ssl_options.verify = verify_none
        ssl_options.fail_if_no_peer_cert = false
    """
    with RabbitMQNode("\n".join(line.strip() for line in config.splitlines())) as started:
        yield started, port


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def tls_params(port: int, **other: Any) -> dict[str, Any]:
    return {"host": "localhost", "port": port, "username": "guest", "password": "guest", **other}


@pytest.mark.usefixtures("patient")
def test_tls(tls_node: tuple[RabbitMQNode, int], authority: trustme.CA, both_ways: str) -> None:
    _node, port = tls_node
    _app, fpika = make_app(tls_params(port, ssl_options=trusting(authority)), {"pool_size": 4})
    held = [fpika.channel() for _ in range(4)]
    for ch in held:
        ch.queue_declare("over-tls", auto_delete=True)
        fpika.return_channel(ch)
    for _ in range(50):
        with fpika.channel() as ch:
            ch.basic_publish("", "nowhere", b"x" * 100_000)
    with fpika.channel() as ch:
        ch.queue_declare("over-tls", auto_delete=True)
    assert fpika.stats().opened == 4


def test_publishing_over_tls(
    tls_node: tuple[RabbitMQNode, int], authority: trustme.CA, both_ways: str
) -> None:
    _node, port = tls_node
    _app, fpika = make_app(tls_params(port, ssl_options=trusting(authority)))
    with fpika.channel() as ch:
        ch.queue_declare("published-over-tls")
        ch.queue_purge("published-over-tls")
    many = (Message(b"%06d" % n * (1 + n * 50), routing_key="published-over-tls") for n in range(300))
    assert fpika.publish_many(many, timeout=60).confirmed == 300
    with fpika.channel() as ch:
        got = [ch.basic_get("published-over-tls", auto_ack=True)[2] for _ in range(300)]
        assert got == [b"%06d" % n * (1 + n * 50) for n in range(300)]
        ch.queue_delete("published-over-tls")


def test_publishing_where_tls_does_not_fit_is_told_at_once(tls_node: tuple[RabbitMQNode, int]) -> None:
    _node, port = tls_node
    _app, fpika = make_app(tls_params(port, ssl_options=True))
    with pytest.raises(TLSRefused, match="certificate is not accepted"):
        fpika.publish(b"", timeout=60)


@pytest.mark.parametrize("answer", [HTTP, b"", b"\x01\x00"])
def test_publishing_to_a_port_where_something_else_answers(answer: bytes) -> None:
    with peer(answer) as port:
        _app, fpika = make_app({"host": "127.0.0.1", "port": port, "username": "u", "password": SECRET})
        know_why(fpika)
        with pytest.raises(ProtocolMismatch) as caught:
            fpika.publish(b"", timeout=0.1)
        assert f"127.0.0.1:{port}" in str(caught.value)
        assert SECRET not in str(caught.value)
        fpika.close()


def test_publishing_to_hosts_that_are_none_ends_in_time() -> None:
    for host in ("no-such-host.invalid", "bad..name"):
        _app, fpika = make_app({"host": host})
        know_why(fpika)
        with pytest.raises(BrokerUnavailable, match="does not resolve"):
            fpika.publish(b"", timeout=0.1)
        fpika.close()


def test_many_threads_that_connect_at_once_all_get_tls(
    tls_node: tuple[RabbitMQNode, int], authority: trustme.CA
) -> None:
    node, port = tls_node
    _app, fpika = make_app(tls_params(port, ssl_options=trusting(authority)), {"pool_size": 16})
    barrier = threading.Barrier(16)
    channels = []

    def work() -> None:
        barrier.wait(30)
        channels.append(fpika.channel())

    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert node.ctl("list_connections", "ssl").split()[-16:] == ["true"] * 16
    for ch in channels:
        fpika.return_channel(ch)


def test_tls_where_certificate_and_name_do_not_fit(
    tls_node: tuple[RabbitMQNode, int], authority: trustme.CA, caplog: pytest.LogCaptureFixture
) -> None:
    _node, port = tls_node
    untrusted = tls_params(port, ssl_options=True)
    refused(untrusted, TLSRefused, [f"amqps://localhost:{port}", "certificate is not accepted"], caplog)
    other_name = tls_params(port, ssl_options=trusting(authority), host="127.0.0.1")
    refused(other_name, TLSRefused, ["certificate is not accepted", "127.0.0.1"], caplog)


def test_tls_on_one_side_alone(
    tls_node: tuple[RabbitMQNode, int], authority: trustme.CA, caplog: pytest.LogCaptureFixture
) -> None:
    node, port = tls_node
    tls_to_plain = tls_params(node.port, ssl_options=trusting(authority))
    refused(tls_to_plain, TLSRefused, ["TLS failed", "is this the broker's TLS port?"], caplog)
    plain_to_tls = tls_params(port)
    refused(plain_to_tls, ProtocolMismatch, ["one without TLS?"], caplog)
