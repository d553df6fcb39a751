"""How a connection begins, what is agreed, and how it ends."""

from __future__ import annotations

import itertools
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pika
import pytest
from pika import spec
from pika.adapters.blocking_connection import BlockingChannel

from tests.conftest import wait_for
from tests.contract.conftest import Connect
from tests.contract.helpers import Peer, disconnects, exists, name, queue, until
from tests.contract.raw import Wire

Dial = Callable[[], Wire]
OUR_HEADER = b"AMQP\x00\x00\x09\x01"


# -- the protocol header


@pytest.mark.parametrize(
    "header",
    [b"AMQP\x00\x00\x09\x00", b"AMQP\x00\x01\x00\x00", b"AMQP\x03\x01\x00\x00", b"HTTP/1.1", b"GET / HT"],
)
def test_another_protocol_is_answered_with_ours(dial: Dial, header: bytes) -> None:
    wire = dial().send_bytes(header)
    wire.expect_bytes(OUR_HEADER)
    wire.expect_end()


def test_the_old_header_of_0_9_1_is_understood(dial: Dial) -> None:
    dial().send_bytes(b"AMQP\x01\x01\x09\x01").expect(spec.Connection.Start, 0)


def test_a_header_may_come_in_pieces(dial: Dial) -> None:
    wire = dial()
    for byte in OUR_HEADER:
        wire.send_bytes(bytes([byte]))
    wire.expect(spec.Connection.Start, 0)


def test_the_broker_starts_with_what_it_can(dial: Dial) -> None:
    start = dial().greet()
    assert (start.version_major, start.version_minor) == (0, 9)
    assert {b"PLAIN", b"AMQPLAIN"} <= set(start.mechanisms.split())
    assert b"en_US" in start.locales.split()
    assert isinstance(start.server_properties, dict)
    capabilities = start.server_properties["capabilities"]
    for capability in (
        "publisher_confirms",
        "exchange_exchange_bindings",
        "basic.nack",
        "consumer_cancel_notify",
        "connection.blocked",
        "consumer_priorities",
        "authentication_failure_close",
        "per_consumer_qos",
        "direct_reply_to",
    ):
        assert capabilities[capability] is True
    assert {"product", "version", "platform", "information"} <= set(start.server_properties)


def test_pika_finds_what_it_asks_for(connection: pika.BlockingConnection) -> None:
    assert connection.basic_nack_supported
    assert connection.consumer_cancel_notify_supported
    assert connection.exchange_exchange_bindings_supported
    assert connection.publisher_confirms_supported


# -- who may come in


@pytest.mark.parametrize(
    ("username", "password"), [("guest", "wrong"), ("nobody", "guest"), ("guest", ""), ("", "")]
)
def test_a_wrong_password_is_refused_with_403(connect: Connect, username: str, password: str) -> None:
    with pytest.raises(pika.exceptions.ProbableAuthenticationError) as caught:
        connect(credentials=pika.PlainCredentials(username, password))
    assert (
        "ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN. "
        "For details see the broker logfile."
    ) in str(caught.value)


def test_a_refusal_is_a_connection_close_for_who_asked_for_one(dial: Dial) -> None:
    wire = dial()
    wire.greet()
    wire.start_ok("\0guest\0wrong")
    close = wire.expect(spec.Connection.Close, 0)
    assert close.reply_code == 403
    assert close.reply_text == (
        "ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN. "
        "For details see the broker logfile."
    )
    assert (close.class_id, close.method_id) == (0, 0)


@pytest.mark.parametrize(("password", "accepted"), [("guest", True), ("wrong", False)])
def test_amqplain_is_understood(dial: Dial, password: str, accepted: bool) -> None:
    def pair(key: bytes, value: bytes) -> bytes:
        return bytes([len(key)]) + key + b"S" + struct.pack(">I", len(value)) + value

    wire = dial()
    wire.greet()
    response = pair(b"LOGIN", b"guest") + pair(b"PASSWORD", password.encode())
    wire.start_ok(response.decode("latin-1"), mechanism="AMQPLAIN")
    if accepted:
        wire.expect(spec.Connection.Tune, 0)
    else:
        close = wire.expect(spec.Connection.Close, 0)
        assert close.reply_code == 403
        assert "mechanism AMQPLAIN" in close.reply_text


def test_a_missing_virtual_host_is_refused_with_530(dial: Dial) -> None:
    wire = dial()
    tune = wire.authenticate()
    wire.tune_ok(tune.channel_max, tune.frame_max)
    wire.open_host("nowhere")
    close = wire.expect(spec.Connection.Close, 0)
    assert (close.reply_code, close.reply_text) == (530, "NOT_ALLOWED - vhost nowhere not found")
    assert (close.class_id, close.method_id) == divmod(spec.Connection.Open.INDEX, 1 << 16)


def test_pika_calls_a_missing_virtual_host_access_denied(connect: Connect) -> None:
    with pytest.raises(pika.exceptions.ProbableAccessDeniedError, match="vhost nowhere not found"):
        connect(virtual_host="nowhere")


# -- what is agreed


def test_the_brokers_suggestions(dial: Dial) -> None:
    tune = dial().authenticate()
    assert (tune.channel_max, tune.frame_max, tune.heartbeat) == (2047, 131072, 60)


def _tuned(wire: Wire, channel_max: int, frame_max: int) -> None:
    wire.authenticate()
    wire.tune_ok(channel_max, frame_max).open_host()


def _started(wire: Wire, response: str, mechanism: str = "PLAIN", **capabilities: bool) -> None:
    wire.greet()
    wire.start_ok(response, mechanism, capabilities)


UNWELCOME: dict[str, Callable[[Wire], object]] = {
    "more channels than offered": lambda wire: _tuned(wire, 2048, 131072),
    "channels without limit": lambda wire: _tuned(wire, 0, 131072),
    "larger frames than offered": lambda wire: _tuned(wire, 2047, 131073),
    "frames without limit": lambda wire: _tuned(wire, 2047, 0),
    "frames below the minimum of 4096": lambda wire: _tuned(wire, 2047, 4095),
    "a wrong password from who did not ask to be told": lambda wire: _started(wire, "\0guest\0wrong"),
    "an unknown mechanism": lambda wire: _started(wire, "x", "X-NONSENSE", authentication_failure_close=True),
    "half a response": lambda wire: _started(wire, "guest", authentication_failure_close=True),
    "the silence of a client that agreed to heartbeats": lambda wire: wire.login(heartbeat=1),
    "a method out of turn": lambda wire: wire.greet() and wire.open_host(),
}


@pytest.fixture(scope="module")
def unwelcome(broker: Peer) -> Iterator[dict[str, Wire]]:
    """All of them at once: RabbitMQ lets each wait for three seconds."""
    wires = {what: Wire(broker) for what in UNWELCOME}
    for what, wire in wires.items():
        UNWELCOME[what](wire)
    yield wires
    for wire in wires.values():
        wire.hang_up()


@pytest.mark.parametrize("what", UNWELCOME)
def test_the_stream_ends_without_a_word_after(unwelcome: dict[str, Wire], what: str) -> None:
    unwelcome[what].expect_end()


@pytest.mark.parametrize("frame_max", [4096, 8192, 131072])
def test_no_frame_is_larger_than_agreed_in_either_direction(dial: Dial, frame_max: int) -> None:
    wire = dial().login(frame_max=frame_max).open_channel(1)
    q, body = wire.declare(), b"x" * (frame_max * 2 + 5)
    room = frame_max - 8
    wire.send(spec.Basic.Publish(exchange="", routing_key=q)).send_header(len(body))
    for start in range(0, len(body), room):
        wire.send_body(body[start : start + room])
    wire.send(spec.Basic.Get(queue=q, no_ack=True)).expect(spec.Basic.GetOk)
    assert wire.read().body_size == len(body)
    sizes: list[int] = []
    while sum(sizes) < len(body):
        raw = wire.read_raw()
        assert raw is not None
        sizes.append(len(raw[2]))
    assert sizes == [room, room, 21]


def test_a_frame_may_be_larger_than_agreed_by_what_surrounds_it(dial: Dial) -> None:
    wire = dial().login(frame_max=4096).open_channel(1)
    wire.send(spec.Basic.Publish(exchange="", routing_key="k")).send_header(4096).send_body(b"x" * 4096)
    wire.check()


def test_a_larger_frame_than_agreed_closes_the_connection_with_501(dial: Dial) -> None:
    wire = dial().login(frame_max=4096).open_channel(1)
    wire.send(spec.Basic.Publish(exchange="", routing_key="k")).send_header(5000)
    wire.send_body(b"x" * 4097)
    close = wire.expect(spec.Connection.Close, 0)
    assert close.reply_code == 501
    assert close.reply_text == "FRAME_ERROR - type 3, all octets = <<>>: {frame_too_large,4097,4088}"


def test_a_channel_beyond_the_agreed_number_closes_the_connection_with_530(dial: Dial) -> None:
    wire = dial().login(channel_max=3)
    for channel in (1, 2, 3):
        wire.open_channel(channel)
    wire.send(spec.Channel.Open(), 4)
    wire.expect_connection_close(
        530,
        "NOT_ALLOWED - number of channels opened (3) has reached the negotiated channel_max (3)",
    )


def test_a_channel_number_may_be_used_again(dial: Dial) -> None:
    wire = dial().login(channel_max=1)
    for _ in range(3):
        wire.open_channel(1)
        wire.send(spec.Channel.Close(200, "", 0, 0)).expect(spec.Channel.CloseOk)


# -- heartbeats


def test_the_broker_sends_heartbeats(dial: Dial) -> None:
    wire = dial().login(heartbeat=1)
    raw = wire.read_raw()
    assert raw == (spec.FRAME_HEARTBEAT, 0, b"")


def test_a_client_that_sends_heartbeats_or_anything_else_is_kept(dial: Dial) -> None:
    # Where somebody stood still for long, they were not sent in time: it is tried again.
    wait_for(lambda: are_kept(dial(), dial()), "three seconds without a pause", timeout=90)


def are_kept(beating: Wire, publishing: Wire) -> bool:
    """Whether they are; False, when it is not known."""
    moments = [time.monotonic()]
    try:
        for wire in (beating, publishing):
            wire.login(heartbeat=1).open_channel(1)
        for _ in range(6):  # the broker's come every half second: far beyond the time to be cut off
            for wire in (beating, publishing):
                assert wire.read_raw() == (spec.FRAME_HEARTBEAT, 0, b"")
            moments.append(time.monotonic())
            beating.send_frame(spec.FRAME_HEARTBEAT, 0, b"")
            publishing.publish("", "")
        for wire in (beating, publishing):
            wire.send(spec.Channel.Close(200, "", 0, 0)).expect(spec.Channel.CloseOk)
    except (AssertionError, OSError):
        moments.append(time.monotonic())
        if max(later - before for before, later in itertools.pairwise(moments)) < 1.5:
            raise
        return False
    return True


# -- secrets


@pytest.mark.parametrize("secret", ["guest", "another"])
def test_a_new_secret_is_accepted_unseen(dial: Dial, secret: str) -> None:
    # Of a user with a password: there is nothing that could expire. OAuth 2 would refuse it with 530.
    wire = dial().login()
    wire.send(spec.Connection.UpdateSecret(secret, "renewed"), 0).expect(spec.Connection.UpdateSecretOk, 0)
    wire.open_channel(1).check()


# -- the end


def test_a_close_is_answered(dial: Dial) -> None:
    # RabbitMQ leaves it to the client to hang up.
    dial().login().send(spec.Connection.Close(200, "bye", 0, 0), 0).expect(spec.Connection.CloseOk, 0)


def test_what_comes_after_a_close_does_not_count(dial: Dial, ch: BlockingChannel) -> None:
    wire, q = dial().login().open_channel(1), name()
    wire.send(spec.Connection.Close(200, "bye", 0, 0), 0)
    wire.send(spec.Queue.Declare(queue=q))
    wire.expect(spec.Connection.CloseOk, 0)
    assert not exists(ch.connection, q)


def test_a_connection_error_closes_every_channel(
    connection: pika.BlockingConnection, connect: Connect, ch: BlockingChannel
) -> None:
    failing = connect()
    q = queue(failing.channel())
    with disconnects(503, "COMMAND_INVALID - unknown exchange type 'x-nonsense'"):
        failing.channel().exchange_declare(name(), "x-nonsense")
    until(ch, lambda: not exists(connection, q), "the end of its exclusive queue")


def test_many_clients_may_come_at_once(broker: Peer) -> None:
    answers: list[Any] = []

    def come() -> None:
        wire = Wire(broker)
        try:
            answers.append(wire.login().open_channel(1).check())
        finally:
            wire.hang_up()

    threads = [threading.Thread(target=come) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 20


@pytest.mark.parametrize(
    "said", [b"", b"AM", OUR_HEADER, OUR_HEADER + b"\x01\x00\x00\x00\x00\x00\x30\x00\x0a"]
)
def test_a_client_that_leaves_in_the_middle_harms_nobody(
    broker: Peer, ch: BlockingChannel, said: bytes
) -> None:
    with socket.create_connection((broker.host, broker.port)) as leaving:
        leaving.sendall(said)
    queue(ch)
