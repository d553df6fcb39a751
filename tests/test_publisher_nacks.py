"""Publishing to brokers that nack: for a moment, as long as a channel lives, or because a queue is full."""

from __future__ import annotations

import functools
import logging
import time
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from pika import exceptions as pika_errors

from flask_pika import Message, Nacked, Pika, PublishManyFailed, dispatcher, nacks, outbox
from flask_pika.backoff import Backoff
from flask_pika.broker import Broker, connection
from flask_pika.broker.channel import Channel
from flask_pika.nacks import Nacks
from tests.conftest import Node, make_app, wait_for
from tests.test_publisher import _keep_apps, plain, publishing  # noqa: F401 - a fixture

#: What a loaded machine may add: less than what there would be without the bound, five seconds at the least.
SLACK = 4.5
#: What ``basic_get`` returns of an empty queue.
NOTHING = (None, None, None)


class Leader:
    """A quorum queue's leader, as RabbitMQ 3.10 has it on the embedded broker.

    While there is none, what comes is nacked; and a channel whose first message to a destination comes then
    nacks whatever goes there, for good.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_there = True
        self.nacked = 0
        self._until: int | None = None
        self._stuck: weakref.WeakKeyDictionary[Channel, dict[object, bool]] = weakref.WeakKeyDictionary()
        route = Channel._route

        def routed(channel: Channel, method: Any, content: Any) -> bool:
            where = (content.exchange, *content.routing_keys())
            if self._stuck.setdefault(channel, {}).setdefault(where, not self.is_there):
                self.nacked += 1
                self.is_there = self.is_there or self.nacked == self._until
                return False
            return route(channel, method, content)

        monkeypatch.setattr(Channel, "_route", routed)

    def leaves(self, nacks: int | None = None) -> None:
        """From now on there is none, until so many messages were nacked."""
        self._until = None if nacks is None else self.nacked + nacks
        self.is_there = False


@pytest.fixture
def leader(monkeypatch: pytest.MonkeyPatch) -> Leader:
    # However long this machine takes to send one again, its nacks are the channel's, and not the queue's own.
    monkeypatch.setattr(nacks, "SURELY", 60.0)
    monkeypatch.setattr(nacks, "PATIENCE", 60.0)
    return Leader(monkeypatch)


@pytest.fixture
def broker(leader: Leader) -> Iterator[Broker]:
    with Broker() as one:
        with one_channel(one) as ch:
            ch.queue_declare("q")
            ch.queue_declare("other")
        yield one


def one_channel(broker: Broker) -> Any:
    return plain(broker)  # type: ignore[arg-type] # it has a url


def bodies(broker: Broker, queue: str = "q") -> list[int]:
    return [int(message.body) for message in broker.queues[queue].messages]


def full_queue(node: Node, name: str, size: int = 0) -> None:
    with plain(node) as ch:
        ch.queue_delete(name)
        ch.queue_declare(name, arguments={"x-max-length": max(1, size), "x-overflow": "reject-publish"})
        ch.confirm_delivery()
        for _ in range(max(1, size)):
            ch.basic_publish("", name, b"")


@pytest.fixture
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is nacked is not tried again for a minute."""
    monkeypatch.setattr(
        outbox, "Nacks", functools.partial(Nacks, backoff=Backoff(first=120.0, longest=120.0))
    )


# A channel that is stuck


def test_a_publish_to_a_queue_that_has_no_leader_for_a_moment_succeeds(
    broker: Broker, leader: Leader, both_ways: str
) -> None:
    fpika = publishing(broker.url)
    leader.leaves(nacks=2)
    fpika.publish(b"0", routing_key="q")
    for number in range(1, 20):
        fpika.publish(b"%d" % number, routing_key="q")
    assert bodies(broker) == list(range(20))
    stats = fpika.stats().publisher
    assert (stats.nacked, stats.confirmed, stats.pending, stats.reconnects) == (0, 20, 0, 0)
    assert stats.retried == leader.nacked, "and none was nacked after that"


def test_many_are_taken_once_and_in_order_over_the_channel_that_replaces_the_stuck_one(
    broker: Broker, leader: Leader, both_ways: str
) -> None:
    fpika = publishing(broker.url)
    fpika.publish(b"0", routing_key="other")
    leader.leaves(nacks=3)
    report = fpika.publish_many(
        (Message(b"%d" % number, routing_key="other" if number % 3 else "q") for number in range(3000)),
        timeout=30,
    )
    assert report.confirmed == 3000
    assert bodies(broker) == [number for number in range(3000) if number % 3 == 0]
    assert bodies(broker, "other") == [0, *(number for number in range(3000) if number % 3)]
    wait_for(lambda: channels(broker) == 1, "the end of the replaced channels")


def channels(broker: Broker) -> int:
    """How many the publisher has open."""
    counts: list[int] = []
    broker._ask(
        lambda server: counts.append(
            sum(len(one.channels) for one in server.connections if "publisher" in str(one.name))
        )
    )
    return counts[0]


def test_futures_are_told_what_came_of_it(broker: Broker, leader: Leader) -> None:
    fpika = publishing(broker.url)
    leader.leaves(nacks=1)
    futures = [fpika.submit(b"%d" % number, routing_key="q") for number in range(100)]
    for future in futures:
        future.result(30)
    assert bodies(broker) == list(range(100))


def test_without_retry_a_nack_is_told_at_once_and_the_next_one_finds_a_new_channel(
    broker: Broker, leader: Leader, both_ways: str
) -> None:
    fpika = publishing(broker.url)
    leader.leaves()
    with pytest.raises(Nacked):
        fpika.publish(b"0", routing_key="q", retry=False)
    assert leader.nacked == 1
    leader.is_there = True
    for number in range(1, 5):
        fpika.publish(b"%d" % number, routing_key="q", retry=False)
    assert bodies(broker) == [1, 2, 3, 4]
    stats = fpika.stats().publisher
    assert (stats.nacked, stats.retried, stats.confirmed) == (1, 0, 4)


def test_without_retry_and_with_nobody_behind_the_channel_is_replaced_all_the_same(
    broker: Broker, leader: Leader
) -> None:
    fpika = publishing(broker.url)
    leader.leaves()
    with pytest.raises(Nacked):
        fpika.publish(b"0", routing_key="q", retry=False)
    leader.is_there = True
    wait_for(lambda: not nacks_of(fpika).holds_any, "the new channel")
    fpika.publish(b"1", routing_key="q", retry=False)
    assert bodies(broker) == [1]


def nacks_of(fpika: Pika) -> Any:
    return fpika._state().publisher()._outbox._nacks


def in_line(fpika: Pika) -> int:
    """How many wait for what nacked to take them, or behind these."""
    with fpika._state().publisher()._outbox._lock:
        return len(nacks_of(fpika).unsettled())


def test_others_go_on_while_one_queue_has_no_leader(broker: Broker, leader: Leader) -> None:
    fpika = publishing(broker.url)
    fpika.publish(b"0", routing_key="other")  # its first message on that channel
    leader.leaves(nacks=2)
    future = fpika.submit(b"0", routing_key="q")
    wait_for(lambda: leader.nacked, "the nack")
    fpika.publish(b"1", routing_key="other")
    future.result(30)


@pytest.mark.usefixtures("_patience")
def test_a_lost_connection_while_messages_wait_to_be_tried_again_loses_none(
    broker: Broker, leader: Leader, both_ways: str
) -> None:
    fpika = publishing(broker.url, timeout=30)
    leader.leaves(nacks=1)
    futures = [fpika.submit(b"%d" % number, routing_key="q") for number in range(50)]
    wait_for(lambda: leader.nacked, "the nack")
    futures += [fpika.submit(b"%d" % number, routing_key="q") for number in range(50, 60)]
    # All: of what is taken, and not confirmed when the connection is lost, there would be two.
    wait_for(lambda: in_line(fpika) == 60, "all wait")
    broker.drop_connections()
    wait_for(lambda: fpika.stats().publisher.reconnects, "the next connection")
    for future in futures:
        future.result(30)
    assert bodies(broker) == list(range(60))
    assert fpika.stats().publisher.pending == 0


@pytest.mark.usefixtures("_patience")
def test_a_deadline_that_comes_meanwhile_is_kept_and_says_what_is_known(
    broker: Broker, leader: Leader
) -> None:
    fpika = publishing(broker.url, timeout=60)
    fpika.publish(b"", routing_key="other")
    leader.leaves(nacks=1)

    def many() -> Iterator[Message]:
        yield Message(b"2", routing_key="q")
        wait_for(lambda: in_line(fpika), "it waits")

    before = time.monotonic()
    with pytest.raises(Nacked):
        fpika.publish(b"0", routing_key="q", timeout=3)
    future = fpika.submit(b"1", routing_key="q", timeout=0.1)
    with pytest.raises(Nacked, match="was not sent: the broker nacked what came before it"):
        future.result(30)
    with pytest.raises(PublishManyFailed) as caught:
        fpika.publish_many(many(), timeout=1)
    assert isinstance(caught.value.report.failed[0].error, Nacked)
    assert time.monotonic() - before < 30
    stats = fpika.stats().publisher
    assert (stats.nacked, stats.pending, stats.pending_bytes) == (3, 0, 0)
    fpika.close()
    assert bodies(broker) == [], "what was given up was not sent"


@pytest.mark.usefixtures("_patience")
def test_close_meanwhile_tells_all_and_hangs_nowhere(
    broker: Broker, leader: Leader, caplog: pytest.LogCaptureFixture
) -> None:
    fpika = publishing(broker.url, drain_timeout=0.01)
    fpika.publish(b"", routing_key="other")
    leader.leaves()
    futures = [fpika.submit(b"0", routing_key="q", timeout=100)]
    wait_for(lambda: nacks_of(fpika).holds_any, "the nack")
    futures += [fpika.submit(b"%d" % number, routing_key="q", timeout=100) for number in range(1, 4)]
    wait_for(lambda: in_line(fpika) == 4, "all wait")
    with caplog.at_level(logging.WARNING, logger="flask_pika"):
        before = time.monotonic()
        fpika.close()
    assert time.monotonic() - before < SLACK
    assert [type(future.exception(0)) for future in futures] == [Nacked] * 4
    (line,) = [record.getMessage() for record in caplog.records if "publisher's end" in record.getMessage()]
    assert line == (
        "4 messages were not confirmed before the publisher's end: 0 never sent, 0 unknown, 4 nacked"
    )


def test_close_waits_for_what_is_tried_again(broker: Broker, leader: Leader) -> None:
    fpika = publishing(broker.url, drain_timeout=30)
    leader.leaves(nacks=1)
    futures = [fpika.submit(b"%d" % number, routing_key="q", timeout=100) for number in range(3)]
    fpika.close()
    for future in futures:
        assert future.exception(0) is None
    assert bodies(broker) == [0, 1, 2]


# A queue that is full


def test_a_full_queue_is_told_soon_and_then_at_once_over_one_channel(everyday: Node, both_ways: str) -> None:
    full_queue(everyday, "full")
    fpika = publishing(everyday.params)
    before = time.monotonic()
    with pytest.raises(Nacked):
        fpika.publish(b"", routing_key="full")
    assert time.monotonic() - before < 2.0 + SLACK
    retried = fpika.stats().publisher.retried
    assert 1 <= retried <= 6  # once, where the first try comes a second late
    with pytest.raises(PublishManyFailed) as caught:
        fpika.publish_many(Message(b"", routing_key="full") for _ in range(500))
    assert len(caught.value.report.failed) == 500
    assert all(isinstance(failure.error, Nacked) for failure in caught.value.report.failed)
    stats = fpika.stats().publisher
    assert (stats.nacked, stats.retried, stats.pending) == (501, retried, 0)
    with plain(everyday) as ch:
        ch.queue_purge("full")
        fpika.publish(b"", routing_key="full")
        ch.queue_delete("full")


def test_a_full_queue_fails_all_that_waited_for_the_verdict(everyday: Node) -> None:
    full_queue(everyday, "full")
    fpika = publishing(everyday.params)
    with pytest.raises(PublishManyFailed) as caught:
        fpika.publish_many(Message(b"", routing_key="full") for _ in range(500))
    assert len(caught.value.report.failed) == 500
    stats = fpika.stats().publisher
    assert (stats.nacked, stats.pending, stats.pending_bytes) == (500, 0, 0)
    with plain(everyday) as ch:
        ch.queue_delete("full")


def test_a_queue_that_has_taken_one_on_this_channel_refuses_at_once(
    everyday: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    # There is no verdict before it has room.
    monkeypatch.setattr(nacks, "SURELY", 60.0)
    monkeypatch.setattr(nacks, "TRIES", 1000)
    full_queue(everyday, "full")
    fpika = publishing(everyday.params)
    future = fpika.submit(b"", routing_key="full", timeout=30)
    with plain(everyday) as ch:
        wait_for(lambda: fpika.stats().publisher.retried, "it is tried again")
        ch.queue_purge("full")
        future.result(30)
        retried = fpika.stats().publisher.retried
        for _ in range(20):
            with pytest.raises(Nacked):
                fpika.publish(b"", routing_key="full")
            ch.queue_purge("full")
            fpika.publish(b"", routing_key="full")
        assert fpika.stats().publisher.retried == retried
        ch.queue_delete("full")


def test_a_queue_that_is_behind_the_same_exchange_as_a_full_one_has_each_try_under_one_message_id(
    everyday: Node,
) -> None:
    full_queue(everyday, "full")
    with plain(everyday) as ch:
        ch.queue_declare("beside")
        ch.exchange_declare("fan", "fanout")
        for queue in ("full", "beside"):
            ch.queue_bind(queue, "fan")
    fpika = publishing(everyday.params)
    for retry in (True, False):
        with pytest.raises(Nacked) as caught:
            fpika.publish(b"", exchange="fan", retry=retry)
        with plain(everyday) as ch:
            copies = [
                properties.message_id
                for _, properties, _ in iter(lambda: ch.basic_get("beside", True), NOTHING)
            ]
        assert set(copies) == {caught.value.message_id}
        assert 2 <= len(copies) <= 6 if retry else len(copies) == 1
    with plain(everyday) as ch:
        ch.exchange_delete("fan")
        for queue in ("full", "beside"):
            ch.queue_delete(queue)


@pytest.mark.parametrize("spare", ["no channel number", "too many retiring"])
def test_where_no_channel_is_to_be_had_the_deadline_is_kept(
    everyday: Node, monkeypatch: pytest.MonkeyPatch, spare: str
) -> None:
    full_queue(everyday, "full")
    fpika = publishing(everyday.params)
    fpika.publish(b"", routing_key="nowhere", mandatory=False)
    if spare == "too many retiring":
        monkeypatch.setattr(dispatcher, "_RETIRING", 0)
    else:

        def no_more(*_args: object) -> None:
            raise pika_errors.NoFreeChannels

        monkeypatch.setattr(dispatcher, "Carrier", no_more)
    with pytest.raises(pika_errors.AMQPError):
        fpika.publish(b"", routing_key="full", timeout=1.5)
    with plain(everyday) as ch:
        ch.queue_purge("full")
        fpika.publish(b"", routing_key="full")
        ch.queue_delete("full")


def test_of_three_channels_none_is_a_successor_so_that_each_has_what_it_needs(
    broker: Broker, leader: Leader, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(connection, "CHANNEL_MAX", 3)
    fpika = publishing(broker.url)
    fpika.publish(b"0", routing_key="other")
    broker.hold_confirms()
    futures = [fpika.submit(b"%d" % number, routing_key="other") for number in (1, 2)]
    wait_for(lambda: len(broker.queues["other"].messages) == 3, "both are on their way")
    broker.close_channel(number=1)
    broker.release_confirms()
    for future in futures:  # on the channel for suspects, which stays
        future.result(timeout=10)
    leader.leaves(1)
    with pytest.raises(Nacked):
        fpika.publish(b"", routing_key="q", retry=False)
    broker.hold_confirms()
    futures = [fpika.submit(b"3", routing_key="other")]
    wait_for(lambda: not nacks_of(fpika).has_tries, "there may be another channel now")
    fpika.queue("later")
    futures.append(fpika.submit(b"4", routing_key="later"))
    wait_for(lambda: "later" in broker.queues, "which was declared on a channel of its own")
    broker.release_confirms()
    for future in futures:
        future.result(timeout=10)
    assert fpika.stats().publisher.reconnects == 0
    assert "a bug in Flask-Pika" not in caplog.text


# Channels of the pool


@pytest.mark.usefixtures("patient")
def test_a_channel_of_the_pool_that_nacked_is_not_lent_again(broker: Broker, leader: Leader) -> None:
    _, fpika = make_app(broker.url, {"pool_size": 1, "confirm_delivery": True})
    with fpika.channel() as ch:
        ch.basic_publish("", "other", b"0")
    leader.leaves()
    with pytest.raises(pika_errors.NackError), fpika.channel() as ch:
        ch.basic_publish("", "q", b"0")
    leader.is_there = True
    with fpika.channel() as ch:
        ch.basic_publish("", "q", b"1")
    assert bodies(broker) == [1]
    assert fpika.stats().opened == 1, "on the same connection"
