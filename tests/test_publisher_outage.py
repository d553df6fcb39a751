"""Publishing while brokers are killed, stopped and frozen, and exchanges and users taken away."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from flask_pika import (
    AuthenticationRefused,
    BrokerRefused,
    BrokerUnavailable,
    FlaskPikaError,
    Nacked,
    Pika,
    PublishRefused,
    PublishUnknown,
    Unroutable,
    signals,
)
from tests.conftest import wait_for
from tests.test_publisher import _keep_apps, contents, plain, publishing  # noqa: F401 - a fixture
from tools.proxy import Proxy
from tools.rabbitmq_node import RabbitMQNode


@pytest.fixture
def durable(fragile_node: RabbitMQNode) -> Iterator[str]:
    with plain(fragile_node) as ch:
        ch.queue_declare("durable", durable=True)
        ch.queue_purge("durable")
    fragile_node.sync()
    yield "durable"
    with plain(fragile_node) as ch:
        ch.queue_delete("durable")


class Load:
    """Threads that publish numbered messages until they are told to stop, and keep books."""

    def __init__(self, fpika: Pika, threads: int = 8, **about: Any) -> None:
        self._fpika = fpika
        self._about = about
        self._stopped = threading.Event()
        self.confirmed: list[str] = []
        self.errors: list[tuple[str, FlaskPikaError]] = []
        self._threads = [threading.Thread(target=self._work, args=(number,)) for number in range(threads)]

    def _work(self, number: int) -> None:
        at = 0
        while not self._stopped.is_set():
            body = f"{number} {at}"
            at += 1
            try:
                self._fpika.publish(body, **self._about)
            except FlaskPikaError as exc:
                self.errors.append((body, exc))
            else:
                self.confirmed.append(body)

    def goes_on(self) -> None:
        """Wait until a good many more were confirmed."""
        more = len(self.confirmed) + 200
        wait_for(lambda: len(self.confirmed) > more, lambda: f"messages confirmed: {self.errors[-1:]}", 60)

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "a publish hangs"


def test_what_was_confirmed_survives_a_broker_that_is_killed(
    fragile_node: RabbitMQNode, durable: str, both_ways: str
) -> None:
    fpika = publishing(fragile_node.params, timeout=60)
    with Load(fpika, routing_key=durable) as load:
        load.goes_on()
        fragile_node.kill()
        fragile_node.start()
        load.goes_on()
    assert not load.errors, "a caller with time left saw the reconnect"
    there = {body.decode() for body in contents(fragile_node, durable)}
    assert not set(load.confirmed) - there, "confirmed, and lost"
    assert there == set(load.confirmed), "nothing else was published"
    stats = fpika.stats().publisher
    assert stats.reconnects == 1
    assert stats.pending == 0


@pytest.mark.timeout(300)
def test_a_broker_that_is_restarted_again_and_again_loses_nothing(
    fragile_node: RabbitMQNode, durable: str, caplog: pytest.LogCaptureFixture
) -> None:
    fpika = publishing(fragile_node.params, timeout=60)
    with caplog.at_level(logging.WARNING, logger="flask_pika"), Load(fpika, routing_key=durable) as load:
        for _ in range(5):
            load.goes_on()
            fragile_node.restart()
        load.goes_on()
    assert not load.errors
    assert {body.decode() for body in contents(fragile_node, durable)} == set(load.confirmed)
    assert fpika.stats().publisher.reconnects == 5
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("flask_pika")]
    assert len(lines) == 10, "one line when it goes, and one when it is back"


def test_a_connection_that_goes_silent_without_an_end_is_noticed_and_the_other_node_takes_over(
    fragile_node: RabbitMQNode, node: RabbitMQNode, caplog: pytest.LogCaptureFixture
) -> None:
    nodes = (fragile_node, node)
    for one in nodes:
        with plain(one) as ch:
            ch.queue_declare("everywhere")
            ch.queue_purge("everywhere")
    with Proxy(fragile_node.port) as first, Proxy(node.port) as second:
        about = {"heartbeat": 4, "stack_timeout": 10}
        fpika = publishing([{**node.params, **about, "port": proxy.port} for proxy in (first, second)])
        with Load(fpika, 4, routing_key="everywhere", timeout=60) as load:
            load.goes_on()
            used, spare = (first, second) if first.connections else (second, first)
            assert (used.connections, spare.connections) == (1, 0)
            used.silence()
            load.goes_on()
            assert spare.connections >= 1
        stats = fpika.stats().publisher
        fpika.close()
    assert not load.errors, "a caller with time left saw it"
    assert stats.reconnects >= 1
    assert stats.pending == 0
    # By the link itself: pika would have taken up to three times as long.
    assert "RabbitMQ has been silent for 4 s" in caplog.text
    there = {body.decode() for one in nodes for body in contents(one, "everywhere")}
    assert not set(load.confirmed) - there, "confirmed, and lost"
    for one in nodes:
        with plain(one) as ch:
            ch.queue_delete("everywhere")


def test_an_exchange_that_is_deleted_under_load_fails_its_own_messages_alone(
    fragile_node: RabbitMQNode, durable: str
) -> None:
    fpika = publishing(fragile_node.params, timeout=30)
    with plain(fragile_node) as ch:
        ch.exchange_declare("passing", "fanout")
        ch.queue_bind(durable, "passing")
        with Load(fpika, 4, routing_key=durable) as steady, Load(fpika, 4, exchange="passing") as shaken:
            steady.goes_on()
            shaken.goes_on()
            ch.exchange_delete("passing")
            wait_for(lambda: shaken.errors, "the exchange's messages fail")
            steady.goes_on()
            ch.exchange_declare("passing", "fanout")
            ch.queue_bind(durable, "passing")
            shaken.goes_on()
        ch.exchange_delete("passing")
    assert not steady.errors
    assert {type(error) for _, error in shaken.errors} <= {PublishRefused, Unroutable}
    there = {body.decode() for body in contents(fragile_node, durable)}
    assert there >= set(steady.confirmed) | set(shaken.confirmed)


def test_a_queue_that_is_deleted_under_load_is_told(fragile_node: RabbitMQNode, durable: str) -> None:
    fpika = publishing(fragile_node.params, timeout=30)
    with plain(fragile_node) as ch, Load(fpika, routing_key="passing-queue") as load:
        wait_for(lambda: load.errors, "there is no queue yet")
        ch.queue_declare("passing-queue")
        load.goes_on()
        ch.queue_delete("passing-queue")
        before = len(load.errors)
        wait_for(lambda: len(load.errors) > before, "there is none any more")
    assert {type(error) for _, error in load.errors} == {Unroutable}


def test_credentials_that_are_taken_away_are_told(fragile_node: RabbitMQNode) -> None:
    with contextlib.suppress(Exception):
        fragile_node.ctl("add_user", "passing", "first-s3cret")
    fragile_node.ctl("change_password", "passing", "first-s3cret")
    fragile_node.ctl("set_permissions", "passing", ".*", ".*", ".*")
    params = {**fragile_node.params, "username": "passing", "password": "first-s3cret"}
    fpika = publishing(params, timeout=30)
    fpika.publish(b"", mandatory=False)
    fragile_node.ctl("change_password", "passing", "second-s3cret")
    fragile_node.ctl("close_all_user_connections", "passing", "rotated")
    with pytest.raises(AuthenticationRefused) as caught:
        while True:  # one may be on the wire while the connection is closed
            with contextlib.suppress(PublishUnknown):
                fpika.publish(b"", mandatory=False)
    assert "s3cret" not in str(caught.value)
    fragile_node.ctl("change_password", "passing", "first-s3cret")
    wait_for(lambda: _publishes(fpika), "once the password is right again, everything goes on")


@pytest.fixture
def limited(fragile_node: RabbitMQNode) -> Iterator[dict[str, object]]:
    """A user who may have one channel."""
    with contextlib.suppress(Exception):
        fragile_node.ctl("add_user", "limited", "first-s3cret")
    fragile_node.ctl("set_permissions", "limited", ".*", ".*", ".*")
    fragile_node.ctl("set_user_limits", "limited", '{"max-channels": 1}')
    yield {**fragile_node.params, "username": "limited", "password": "first-s3cret"}
    fragile_node.ctl("clear_user_limits", "limited", "all")


def test_a_limit_of_channels_is_told_at_once_and_in_the_log(
    fragile_node: RabbitMQNode, limited: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    fpika = publishing(limited, timeout=30)
    fpika.publish(b"", mandatory=False)
    fragile_node.ctl("set_user_limits", "limited", '{"max-channels": 0}')
    fragile_node.ctl("close_all_user_connections", "limited", "fewer channels")
    asked = time.monotonic()
    with pytest.raises(BrokerRefused, match="number of channels"):
        while True:  # one may be on the wire while the connection is closed
            with contextlib.suppress(PublishUnknown):
                fpika.publish(b"", mandatory=False)
    assert time.monotonic() - asked < 25, "it was not told before its deadline"
    assert "number of channels" in caplog.text
    fragile_node.ctl("clear_user_limits", "limited", "all")
    wait_for(lambda: _publishes(fpika), "once it may, everything goes on")


def test_a_user_who_may_have_one_channel_loses_one_connection_over_its_successor_and_no_more(
    fragile_node: RabbitMQNode, limited: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    with plain(fragile_node) as ch:
        ch.queue_declare("full", arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
        ch.confirm_delivery()
        ch.queue_purge("full")
        ch.basic_publish("", "full", b"")
    fpika = publishing(limited)
    with pytest.raises(Nacked):
        fpika.publish(b"", routing_key="full", timeout=60)  # the last of its trials comes before that
    assert fpika.stats().publisher.reconnects == 1
    assert caplog.text.count("a channel that nacks is not replaced") == 1
    with plain(fragile_node) as ch:
        ch.queue_delete("full")


def test_a_broker_that_allows_too_few_channels_is_named_and_is_not_a_bug(
    fragile_node: RabbitMQNode, durable: str, caplog: pytest.LogCaptureFixture
) -> None:
    fragile_node.ctl("eval", "application:set_env(rabbit, channel_max, 2).")
    try:
        fpika = publishing(fragile_node.params, timeout=30)
        asked = time.monotonic()
        with pytest.raises(BrokerRefused, match="channel_max is 2, and 3 are needed"):
            fpika.publish(b"", routing_key=durable)
        assert time.monotonic() - asked < 25, "it was not told before its deadline"
        assert "channel_max is 2" in caplog.text
        assert "a bug in Flask-Pika" not in caplog.text
        fragile_node.ctl("eval", "application:set_env(rabbit, channel_max, 3).")
        wait_for(lambda: _publishes(fpika), "with enough of them, everything goes on")
        with pytest.raises(PublishRefused, match="404"):
            fpika.publish(b"", exchange="none")
        fpika.publish(b"", routing_key=durable)
    finally:
        fragile_node.ctl("eval", "application:set_env(rabbit, channel_max, 2047).")


def test_a_refusal_after_a_loss_is_in_the_log(
    fragile_node: RabbitMQNode, caplog: pytest.LogCaptureFixture
) -> None:
    with contextlib.suppress(Exception):
        fragile_node.ctl("add_user", "leaving", "first-s3cret")
    fragile_node.ctl("set_permissions", "leaving", ".*", ".*", ".*")
    fpika = publishing({**fragile_node.params, "username": "leaving", "password": "first-s3cret"})
    fpika.publish(b"", mandatory=False)
    fragile_node.ctl("change_password", "leaving", "second-s3cret")
    fragile_node.ctl("close_all_user_connections", "leaving", "rotated")
    wait_for(lambda: "user name or password refused" in caplog.text, "the log says that it is refused")
    lines = [record.getMessage() for record in caplog.records if "s3cret" in record.getMessage()]
    assert not lines


def _publishes(fpika: Pika) -> bool:
    try:
        fpika.publish(b"", mandatory=False, timeout=20)
    except BrokerUnavailable:
        return False
    return True


def test_a_receiver_hears_when_the_connection_goes_and_comes(fragile_node: RabbitMQNode) -> None:
    fpika = publishing(fragile_node.params, timeout=60)
    heard: list[str] = []

    def on_connected(_sender: object, **_: object) -> None:
        heard.append("connected")

    def on_disconnected(_sender: object, **about: Any) -> None:
        assert isinstance(about["error"], Exception)
        heard.append("disconnected")

    with signals.connected.connected_to(on_connected), signals.disconnected.connected_to(on_disconnected):
        fpika.publish(b"", mandatory=False)
        fragile_node.restart()
        fpika.publish(b"", mandatory=False)
        wait_for(lambda: len(heard) >= 3, "all is heard")
    assert heard == ["connected", "disconnected", "connected"]
