"""The testing kit: what an app publishes, recorded instead of sent, and the fixtures for pytest."""

from __future__ import annotations

import datetime
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pika
import pytest
from flask import Flask, request
from pika import exceptions as pika_errors

from flask_pika import (
    ChannelReturned,
    InvalidMessage,
    Message,
    Pika,
    PoolClosed,
    PoolTimeout,
    PublisherClosed,
    PublishManyFailed,
    signals,
)
from flask_pika.broker import Broker
from flask_pika.broker.queues import Queue
from flask_pika.state import State
from flask_pika.testing import record_messages
from tests.conftest import make_app
from tools.rabbitmq_node import free_port


def unreachable(pool: dict[str, object] | None = None) -> tuple[Flask, Pika]:
    """An app whose broker is away: whatever connects, fails."""
    return make_app({"host": "127.0.0.1", "port": free_port()}, pool)


def test_every_way_to_publish_is_recorded_and_nothing_connects() -> None:
    _app, fpika = unreachable()
    with fpika.record_messages() as sent:
        first = fpika.publish({"id": 1}, exchange="orders", routing_key="created", headers={"tenant": "a"})
        assert fpika.submit("text", routing_key="queue").result(0)
        report = fpika.publish_many(Message(b"%d" % n, routing_key="many") for n in range(3))
        with fpika.channel() as ch:
            ch.basic_publish("raw", "key", b"raw", pika.BasicProperties(app_id="shop"))
    assert report.confirmed == 3
    assert [message.routing_key for message in sent] == ["created", "queue", "many", "many", "many", "key"]
    assert (sent[0].json, sent[0].exchange, sent[0].headers) == ({"id": 1}, "orders", {"tenant": "a"})
    assert sent[0].properties is not None
    assert (sent[0].properties.message_id, sent[0].properties.delivery_mode) == (first, 2)
    assert sent[0].properties.content_type == "application/json"
    assert (sent[1].text, sent[1].body, sent[1].headers) == ("text", b"text", {})
    assert sent[5].properties is not None
    assert (sent[5].exchange, sent[5].body, sent[5].properties.app_id) == ("raw", b"raw", "shop")
    stats = fpika.stats()
    assert (stats.opened, stats.publisher.state, stats.publisher.confirmed) == (0, "stopped", 0)


def test_what_is_wrong_is_an_error_still_and_not_recorded() -> None:
    _app, fpika = unreachable()
    with fpika.record_messages() as sent:
        with pytest.raises(InvalidMessage, match="priority"):
            fpika.publish(b"", priority=300)
        with pytest.raises(PublishManyFailed) as caught:
            fpika.publish_many([Message(b"good"), Message(object())])
        with fpika.channel() as ch, pytest.raises(TypeError):
            ch.basic_publish("")  # type: ignore[call-arg]
    assert [failure.index for failure in caught.value.report.failed] == [1]
    assert [message.body for message in sent] == [b"good"]


def test_properties_that_are_used_again_do_not_change_what_was_recorded() -> None:
    _app, fpika = unreachable()
    mine = pika.BasicProperties(message_id="1", headers={"nested": {"n": 1}})
    with fpika.record_messages() as sent, fpika.channel() as ch:
        ch.basic_publish("", "q", b"", mine)
        mine.message_id = "2"
        mine.headers["nested"]["n"] = 2
        ch.basic_publish("", "q", b"", mine)
    assert [message.properties.message_id for message in sent if message.properties] == ["1", "2"]
    assert [message.headers for message in sent] == [{"nested": {"n": 1}}, {"nested": {"n": 2}}]


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"body": 5}, TypeError),
        ({"body": [1]}, TypeError),
        ({"body": {"id": 1}}, TypeError),
        ({"routing_key": None}, AssertionError),
        ({"routing_key": "k" * 300}, pika_errors.ShortStringTooLong),
        ({"exchange": "e" * 300}, pika_errors.ShortStringTooLong),
        ({"properties": {"a": 1}}, AttributeError),
        (
            {"properties": pika.BasicProperties(headers={"a": object()})},
            pika_errors.UnsupportedAMQPFieldException,
        ),
        ({"properties": pika.BasicProperties(priority=300)}, struct.error),
    ],
    ids=[
        "number",
        "list",
        "dict",
        "no-key",
        "long-key",
        "long-exchange",
        "properties-dict",
        "header",
        "priority",
    ],
)
def test_a_channel_refuses_while_recording_what_pika_refuses(
    pika_broker: Broker, wrong: dict[str, Any], error: type[Exception]
) -> None:
    _app, fpika = make_app(pika_broker.url)
    arguments = {"exchange": "", "routing_key": "q", "body": b"", **wrong}
    with fpika.channel() as ch, pytest.raises((error, AttributeError)) as reality:
        ch.basic_publish(**arguments)
    with fpika.record_messages() as sent, fpika.channel() as ch:
        with pytest.raises(error) as recorded:
            ch.basic_publish(**arguments)
        ch.basic_publish(
            "",
            "q",
            b"good",
            pika.BasicProperties(headers={"at": datetime.datetime.now(datetime.timezone.utc)}),
        )
    if "body" not in wrong:  # whose error pika's versions do not agree on
        assert recorded.type is reality.type
    assert [message.body for message in sent] == [b"good"]


def test_a_channel_that_was_closed_takes_no_message_while_recording() -> None:
    _app, fpika = unreachable()
    with fpika.record_messages() as sent, fpika.channel() as ch:
        ch.close()
        with pytest.raises(pika_errors.ChannelWrongStateError):
            ch.basic_publish("", "q", b"")
    assert sent == []


def test_what_outlasts_its_recording_is_an_error_and_never_lost() -> None:
    _app, fpika = unreachable()
    with fpika.record_messages() as sent:
        plain, transacted, uncommitted = (fpika.channel() for _ in range(3))
        transacted.tx_select()
        uncommitted.tx_select()
        uncommitted.basic_publish("", "q", b"lost")
    for ch, late in (
        (plain, lambda: plain.basic_publish("", "q", b"late")),
        (transacted, lambda: transacted.basic_publish("", "q", b"late")),
        (uncommitted, uncommitted.tx_commit),
    ):
        with ch, pytest.raises(RuntimeError, match="the recording has ended"):
            late()
    assert sent == []


def test_publish_many_that_outlasts_its_recording_says_so_at_once() -> None:
    _app, fpika = unreachable()
    recording = fpika.record_messages()

    def messages() -> Iterator[Message]:
        yield Message(b"kept")
        recording.__exit__(None, None, None)
        yield Message(b"late")

    sent = recording.__enter__()
    began = time.monotonic()
    with pytest.raises(RuntimeError, match="the recording has ended"):
        fpika.publish_many(messages(), timeout=60)
    assert time.monotonic() - began < 30, "it waited for a message that nobody confirms"
    assert [message.body for message in sent] == [b"kept"]


@pytest.mark.parametrize("used_before", [True, False])
def test_who_closed_pika_is_told_so_while_recording_as_ever(used_before: bool) -> None:
    _app, fpika = unreachable()
    with fpika.record_messages() as sent:
        if used_before:
            fpika.publish(b"kept")
            fpika.channel().give_up()
        fpika.close()
        with pytest.raises(PublisherClosed):
            fpika.publish(b"")
        with pytest.raises(PublisherClosed):
            fpika.submit(b"")
        with pytest.raises(PublishManyFailed) as caught:
            fpika.publish_many([Message(b"")])
        with pytest.raises(PoolClosed):
            fpika.channel()
    assert isinstance(caught.value.report.failed[0].error, PublisherClosed)
    assert [message.body for message in sent] == [b"kept"] * used_before


def test_a_message_above_max_bytes_is_recorded_as_it_is_sent_by_itself() -> None:
    app = Flask("shop")
    app.config["FLASK_PIKA_PUBLISHER_PARAMS"] = {"max_bytes": 1000, "timeout": 30}
    with Broker() as broker:
        app.config["FLASK_PIKA_PARAMS"] = broker.url
        fpika = Pika(app)
        fpika.publish(bytes(5000), mandatory=False)
        with fpika.record_messages() as sent:
            fpika.publish(bytes(5000))
        fpika.close()
    assert [len(message.body) for message in sent if isinstance(message.body, bytes)] == [5000]


def test_threads_that_begin_to_record_together_share_one_recorder(monkeypatch: pytest.MonkeyPatch) -> None:
    _app, fpika = unreachable({"pool_size": 1})
    together = threading.Barrier(2)
    begin = State._begin_recorder
    monkeypatch.setattr(State, "_begin_recorder", lambda state: (together.wait(30), begin(state))[1])
    pools: list[object] = []

    def work() -> None:
        with fpika.channel() as ch:
            pools.append(ch._pool)

    with fpika.record_messages():
        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert len(pools) == 2
    assert pools[0] is pools[1]


def test_a_forked_child_records_though_a_thread_of_its_parent_held_the_recorders_lock() -> None:
    script = """
import os, sys, threading
from flask import Flask
from flask_pika import ChannelReturned, Pika

app = Flask("shop")
app.config["FLASK_PIKA_PARAMS"] = {"host": "127.0.0.1", "port": 1}
fpika = Pika(app)
with fpika.record_messages() as sent:
    borrowed = fpika.channel()
    held, done = threading.Event(), threading.Event()

    def hold():
        with borrowed._pool._lock:
            held.set()
            done.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(60)
    child = os.fork()
    if not child:
        with fpika.channel() as own:
            own.basic_publish("", "q", b"child's")
        try:
            borrowed.basic_publish("", "q", b"parent's")
        except ChannelReturned:
            borrowed.give_up()
            os._exit(0 if [message.body for message in sent] == [b"child's"] else 2)
        os._exit(3)
    done.set()
    thread.join()
    borrowed.give_up()
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def test_an_outer_recording_has_what_an_inner_one_has() -> None:
    _app, fpika = unreachable()
    with fpika.record_messages() as outer:
        fpika.publish(b"1")
        with fpika.record_messages() as inner, record_messages() as everyones:
            fpika.publish(b"2")
        fpika.publish(b"3")
    assert [message.body for message in outer] == [b"1", b"2", b"3"]
    assert [message.body for message in inner] == [message.body for message in everyones] == [b"2"]


def test_other_threads_are_recorded_too() -> None:
    app, fpika = unreachable({"pool_size": 2, "pool_timeout": 30})

    def work(number: int) -> None:
        with app.app_context():
            for _ in range(50):
                fpika.publish(b"%d" % number)
                with fpika.channel() as ch:
                    ch.basic_publish("", "q", b"%d" % number)

    with fpika.record_messages() as sent:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert sorted(message.text for message in sent) == sorted(str(n) for n in range(8) for _ in range(100))


def test_a_recording_is_of_one_app_alone() -> None:
    _app, fpika = unreachable()
    with Broker() as broker:
        _other, second = make_app(broker.url, name="second")
        with fpika.record_messages() as sent:
            second.publish(b"sent", mandatory=False)
            fpika.publish(b"kept")
        assert [message.body for message in sent] == [b"kept"]
        second.close()


def test_after_the_recording_messages_are_sent_again() -> None:
    with Broker() as broker:
        _app, fpika = make_app(broker.url, {"pool_size": 1})
        with fpika.channel() as ch:
            ch.queue_declare("q")
        with fpika.record_messages():
            fpika.publish(b"kept", routing_key="q")
        fpika.publish(b"sent", routing_key="q")
        assert [message.body for message in broker.queues["q"].messages] == [b"sent"]
        fpika.close()


def test_signals_tell_of_what_is_recorded() -> None:
    app, fpika = unreachable()
    heard: list[str] = []

    def on_published(_sender: object, message_id: str, **_: object) -> None:
        heard.append(message_id)

    with signals.published.connected_to(on_published, app), fpika.record_messages():
        ids = [fpika.publish(b""), fpika.submit(b"").result(0)]
    assert heard == ids


def test_recorded_channels_are_lent_and_returned_as_others() -> None:
    app, fpika = unreachable({"pool_size": 1})
    kept: list[Any] = []

    @app.get("/")
    def forget() -> str:
        kept.append(fpika.channel())
        return "ok"

    with fpika.record_messages():
        for _ in range(2):  # the first one came home with its context
            assert app.test_client().get("/").status_code == 200
        with pytest.raises(ChannelReturned):
            kept[0].basic_publish("", "q", b"")
        with fpika.channel(), pytest.raises(PoolTimeout):
            fpika.channel(timeout=0)


def test_a_recorded_channel_takes_whatever_a_publisher_says() -> None:
    _app, fpika = unreachable()
    with fpika.record_messages() as sent, fpika.channel() as ch:
        ch.exchange_declare("e", "topic", durable=True)
        assert ch.queue_declare("q", durable=True).method.queue == "q"
        assert ch.queue_declare("", exclusive=True).method.queue
        ch.queue_bind("q", "e", "#")
        ch.basic_qos(prefetch_count=1)
        ch.confirm_delivery()
        assert ch.basic_get("q") == (None, None, None)
        assert ch.queue_purge("q").method.message_count == 0
        assert ch.connection.is_open
        ch.queue_unbind("q", "e", "#")
        ch.queue_delete("q")
        ch.exchange_delete("e")
        with pytest.raises(RuntimeError, match="pika_broker"):
            ch.basic_consume("q", lambda *_: None)
    with fpika.record_messages() as sent, fpika.channel() as ch:
        ch.tx_select()
        ch.basic_publish("", "q", b"committed")
        ch.tx_commit()
        ch.basic_publish("", "q", b"rolled back")
        ch.tx_rollback()
    assert [message.text for message in sent] == ["committed"]


def test_a_message_is_read_however_it_was_given() -> None:
    assert Message({"a": 1}).json == Message('{"a": 1}').json == Message(b'{"a": 1}').json == {"a": 1}
    assert Message({"a": 1}).text == '{"a": 1}'
    assert Message("é").text == Message("é".encode()).text == "é"
    assert Message(b"", headers={"a": 1}).headers == {"a": 1}
    assert Message(b"", properties=pika.BasicProperties(headers={"a": 1})).headers == {"a": 1}
    assert Message(b"").headers == Message(b"", properties=pika.BasicProperties()).headers == {}


# As in docs/testing.md: the tests of a small app.


def create_app(broker_url: str) -> Flask:
    app = Flask("shop")
    app.config["FLASK_PIKA_PARAMS"] = broker_url
    fpika = Pika(app)

    @app.post("/orders")
    def order() -> tuple[dict[str, str], int]:
        return {"id": fpika.publish(request.get_json(), routing_key="orders")}, 202

    return app


def test_the_fixture_for_messages_records_every_app(pika_messages: list[Message]) -> None:
    client = create_app("amqp://rabbit.example").test_client()
    assert client.post("/orders", json={"item": "tea"}).status_code == 202
    assert [message.json for message in pika_messages] == [{"item": "tea"}]


def test_the_fixture_for_a_broker_is_a_fresh_one(pika_broker: Broker) -> None:
    assert list(pika_broker.queues) == []
    with pika.BlockingConnection(pika.URLParameters(pika_broker.url)) as connection:
        connection.channel().queue_declare("orders")
        client = create_app(pika_broker.url).test_client()
        assert client.post("/orders", json={"item": "tea"}).status_code == 202
        (message,) = pika_broker.queues["orders"].wait_for(1)
    assert message.json == {"item": "tea"}


@pytest.mark.pika_broker(users={"me": "secret"}, virtual_hosts=["shop"])
def test_a_marker_says_how_the_broker_is_to_be(pika_broker: Broker) -> None:
    assert pika_broker.url == f"amqp://me:secret@127.0.0.1:{pika_broker.port}/shop"
    with pika.BlockingConnection(pika.URLParameters(pika_broker.url)) as connection:
        assert connection.is_open


def test_a_marker_by_position_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import pytest\n\n\n@pytest.mark.pika_broker('127.0.0.1')\ndef test_it(pika_broker):\n    pass\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "UsageError: test_it.py::test_it: the marker pika_broker takes options by name" in done.stdout
    assert "1 error" in done.stdout


@pytest.fixture
def queue(pika_broker: Broker) -> Iterator[Any]:
    with pika.BlockingConnection(pika.URLParameters(pika_broker.url)) as connection:
        ch = connection.channel()
        ch.queue_declare("q")
        ch.confirm_delivery()  # or a test may look before the last one is there
        for number in range(3):
            ch.basic_publish(
                "", "q", b"secret %d" % number, pika.BasicProperties(headers={"token": "secret"})
            )
        yield ch


def test_waiting_for_a_number_is_for_that_many_at_least_and_for_0_for_none(
    pika_broker: Broker, queue: Any
) -> None:
    view = pika_broker.queues["q"]
    assert [message.text for message in view.wait_for(2)] == ["secret 0", "secret 1", "secret 2"]
    with pytest.raises(TimeoutError, match="it has 3 messages"):
        view.wait_for(0, timeout=0)
    with pytest.raises(TimeoutError, match="it has 3 messages"):
        view.wait_for(4, timeout=0)
    queue.queue_purge("q")
    assert view.wait_for(0) == []


def test_waiting_for_a_number_reads_the_messages_once(
    pika_broker: Broker, queue: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[Queue] = []
    ready = Queue.ready

    def noted(queue: Queue) -> list[Any]:
        reads.append(queue)
        return list(ready(queue))

    monkeypatch.setattr(Queue, "ready", noted)
    with pytest.raises(TimeoutError):
        pika_broker.queues["q"].wait_for(4, timeout=0.1)
    assert reads == []
    assert len(pika_broker.queues["q"].wait_for(3)) == 3
    assert len(reads) == 1


def test_a_stored_message_shows_no_secret(pika_broker: Broker, queue: Any) -> None:
    first, *_ = pika_broker.queues["q"].wait_for(3)
    assert repr(first) == "<StoredMessage of 8 bytes to exchange '' with routing key 'q'>"


def test_a_stored_message_can_be_changed_without_changing_the_brokers(
    pika_broker: Broker, queue: Any
) -> None:
    first, *_ = pika_broker.queues["q"].wait_for(3)
    first.properties.app_id = "changed"
    first.properties.headers["token"] = "changed"
    again = pika_broker.queues["q"].messages[0]
    assert (again.properties.app_id, again.headers) == (None, {"token": "secret"})
    assert queue.basic_get("q", auto_ack=True)[1].headers == {"token": "secret"}
