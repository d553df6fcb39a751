"""Dead letters that a quorum queue keeps until they have come: x-dead-letter-strategy=at-least-once.

What it keeps is in no count that a client can ask for, but takes room: a queue that may have no message takes
one all the same, and no other one until it is rid of that.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pika.exceptions
import pytest
from pika.adapters.blocking_connection import BlockingChannel

from tests.conftest import wait_for
from tests.contract.conftest import RETRY, Declare
from tests.contract.helpers import (
    Delivery,
    Peer,
    bodies,
    closes,
    confirmed,
    dead_letters_to,
    exchange,
    fetch,
    get,
    has,
    lapse,
    name,
    queue,
    send,
)

SHORT = 30
Keeping = Callable[..., str]


@pytest.fixture(scope="module", autouse=True)
def _retries_soon(broker: Peer, request: pytest.FixtureRequest) -> Iterator[None]:
    """RabbitMQ waits three minutes until it tries again; a queue goes by what holds when it is declared."""
    if broker.name != "rabbitmq":
        yield
        return
    node = request.getfixturevalue("node")
    setting = "rabbit, dead_letter_worker_publisher_confirm_timeout"
    assert node.ctl("eval", f"application:get_env({setting}).").strip() == "{ok,180000}"
    node.ctl("eval", f"application:set_env({setting}, {int(RETRY * 1000)}).")
    yield
    node.ctl("eval", f"application:set_env({setting}, 180000).")


@pytest.fixture
def keeping(typed: Declare) -> Keeping:
    """Declare quorum queues that keep their dead letters."""

    def declare(dead_letters: dict[str, Any], **arguments: Any) -> str:
        return typed(
            "quorum",
            x_overflow="reject-publish",
            x_dead_letter_strategy="at-least-once",
            **dead_letters,
            **arguments,
        )

    return declare


def takes(pub: BlockingChannel, to: str, body: bytes = b"") -> bool:
    """Whether a queue takes one more."""
    try:
        pub.basic_publish("", to, body)
    except pika.exceptions.NackError:
        return False
    return True


def deaths(delivery: Delivery) -> list[tuple[str, int, str]]:
    return [(death["reason"], death["count"], death["queue"]) for death in delivery.headers["x-death"]]


# -- they come, as others do


def test_what_expires_goes_on(ch: BlockingChannel, pub: BlockingChannel, keeping: Keeping) -> None:
    end = queue(ch)
    q = keeping(dead_letters_to(end), x_message_ttl=SHORT)
    confirmed(pub, q, b"1", b"2")
    first, second = fetch(ch, end), fetch(ch, end)
    assert (first.body, second.body) == (b"1", b"2")
    died = first.headers["x-death"][0].pop("time")
    assert abs(died.timestamp() - time.time()) < 300
    assert first.headers == {
        "x-death": [{"reason": "expired", "count": 1, "queue": q, "exchange": "", "routing-keys": [q]}],
        "x-first-death-exchange": "",
        "x-first-death-queue": q,
        "x-first-death-reason": "expired",
    }
    assert (first.method.exchange, first.method.routing_key, first.method.redelivered) == ("", end, False)


def test_a_messages_expiration_is_taken_off(
    ch: BlockingChannel, pub: BlockingChannel, keeping: Keeping
) -> None:
    end = queue(ch)
    pub.basic_publish("", keeping(dead_letters_to(end)), b"x", pika.BasicProperties(expiration=str(SHORT)))
    came = fetch(ch, end)
    assert came.properties.expiration is None
    assert came.headers["x-death"][0]["original-expiration"] == str(SHORT)


@pytest.mark.parametrize(("requeue", "reason"), [(False, "rejected"), (True, "delivery_limit")])
def test_what_is_rejected_goes_on(
    ch: BlockingChannel, pub: BlockingChannel, keeping: Keeping, requeue: bool, reason: str
) -> None:
    end = queue(ch)
    q = keeping(dead_letters_to(end), x_delivery_limit=0)
    confirmed(pub, q, b"x")
    ch.basic_reject(get(ch, q).tag, requeue=requeue)
    came = fetch(ch, end)
    assert deaths(came) == [(reason, 1, q)]
    assert "x-delivery-count" not in came.headers


def test_a_circle_with_a_rejection_goes_on(
    ch: BlockingChannel, pub: BlockingChannel, typed: Declare, keeping: Keeping
) -> None:
    work = name()
    wait = keeping(dead_letters_to(work), x_message_ttl=SHORT)
    ch.queue_declare(work, exclusive=True, arguments=dead_letters_to(wait))
    send(ch, work, b"x")
    for number in (1, 2, 3):
        ch.basic_reject(get(ch, work).tag, requeue=False)
        came = fetch(ch, work, auto_ack=False)
        assert deaths(came) == [("expired", number, wait), ("rejected", number, work)]
        ch.basic_nack(came.tag)


# -- they stay


def test_what_has_nowhere_to_go_is_tried_again(
    ch: BlockingChannel, pub: BlockingChannel, keeping: Keeping
) -> None:
    end = name()
    q = keeping(dead_letters_to(end), x_message_ttl=SHORT, x_delivery_limit=0)
    confirmed(pub, q, b"1", b"2")
    lapse(ch, SHORT * 5)
    has(ch, q, 0)
    assert bodies(ch, q) == []
    ch.queue_declare(end, exclusive=True)
    came = [fetch(ch, end), fetch(ch, end)]
    assert [one.body for one in came] == [b"1", b"2"]
    assert [deaths(one) for one in came] == [[("expired", 1, q)]] * 2
    lapse(ch, int(RETRY * 1500))
    assert bodies(ch, end) == []


@pytest.mark.parametrize(("requeue", "reason"), [(False, "rejected"), (True, "delivery_limit")])
def test_what_is_rejected_and_has_nowhere_to_go_is_tried_again(
    ch: BlockingChannel,
    pub: BlockingChannel,
    keeping: Keeping,
    requeue: bool,
    reason: str,
) -> None:
    end = name()
    q = keeping(dead_letters_to(end), x_delivery_limit=0)
    confirmed(pub, q, b"x")
    ch.basic_reject(get(ch, q).tag, requeue=requeue)
    lapse(ch, SHORT * 5)
    ch.queue_declare(end, exclusive=True)
    assert deaths(fetch(ch, end)) == [(reason, 1, q)]


def test_it_is_tried_again_when_time_has_passed_not_when_a_queue_is_declared(
    ch: BlockingChannel, pub: BlockingChannel, keeping: Keeping
) -> None:
    end, there, source = name(), queue(ch), exchange(ch, "fanout", auto_delete=True)
    q = keeping({"x-dead-letter-exchange": ""}, x_message_ttl=SHORT)
    ch.queue_bind(q, source)
    before = time.monotonic()
    for key in (end, there):
        pub.basic_publish(source, key, b"x")
    fetch(ch, there)  # they go in their order: the first one was tried before
    ch.queue_declare(end, exclusive=True)
    fetch(ch, end)
    assert time.monotonic() - before >= RETRY


def test_a_dead_letter_exchange_that_is_missing_may_be_declared_later(
    ch: BlockingChannel, pub: BlockingChannel, keeping: Keeping
) -> None:
    dlx, end = name("e"), queue(ch)
    q = keeping({"x-dead-letter-exchange": dlx}, x_message_ttl=SHORT)
    confirmed(pub, q, b"x")
    lapse(ch, SHORT * 5)
    ch.exchange_declare(dlx, "fanout", auto_delete=True)
    ch.queue_bind(end, dlx)
    came = fetch(ch, end)
    assert (came.body, came.method.exchange, came.method.routing_key) == (b"x", dlx, q)


def test_a_binding_may_come_later(ch: BlockingChannel, pub: BlockingChannel, keeping: Keeping) -> None:
    dlx, end = exchange(ch, auto_delete=True), queue(ch)
    q = keeping({"x-dead-letter-exchange": dlx}, x_message_ttl=SHORT)
    confirmed(pub, q, b"x")
    lapse(ch, SHORT * 5)
    ch.queue_bind(end, dlx, q)
    assert fetch(ch, end).body == b"x"


def test_what_stays_takes_room(ch: BlockingChannel, pub: BlockingChannel, keeping: Keeping) -> None:
    end = name()
    q = keeping(dead_letters_to(end), x_message_ttl=SHORT, x_max_length=0)
    confirmed(pub, q, b"x")
    lapse(ch, SHORT * 5)
    assert not takes(pub, q)
    has(ch, q, 0)
    ch.queue_declare(end, exclusive=True)
    assert fetch(ch, end).body == b"x"
    wait_for(lambda: takes(pub, q), f"room in {q}")


def test_bytes_of_what_stays_take_room(ch: BlockingChannel, pub: BlockingChannel, keeping: Keeping) -> None:
    q = keeping(dead_letters_to(name()), x_message_ttl=SHORT, x_max_length_bytes=10)
    confirmed(pub, q, b"x" * 11)
    lapse(ch, SHORT * 5)
    assert not takes(pub, q, b"x")


def test_a_purge_leaves_what_stays(ch: BlockingChannel, pub: BlockingChannel, keeping: Keeping) -> None:
    end = name()
    q = keeping(dead_letters_to(end), x_message_ttl=SHORT)
    confirmed(pub, q, b"x")
    lapse(ch, SHORT * 5)
    has(ch, q, 0)
    assert ch.queue_purge(q).method.message_count == 0
    ch.queue_declare(end, exclusive=True)
    assert fetch(ch, end).body == b"x"


def test_what_stays_is_deleted_with_the_queue(
    ch: BlockingChannel, pub: BlockingChannel, keeping: Keeping
) -> None:
    end = name()
    q = keeping(dead_letters_to(end), x_message_ttl=SHORT)
    confirmed(pub, q, b"x")
    lapse(ch, SHORT * 5)
    has(ch, q, 0)
    assert ch.queue_delete(q).method.message_count == 0
    ch.queue_declare(end, exclusive=True)
    lapse(ch, int(RETRY * 2000))
    assert bodies(ch, end) == []


def test_what_would_come_back_stays(ch: BlockingChannel, pub: BlockingChannel, keeping: Keeping) -> None:
    dlx = exchange(ch, auto_delete=True)
    q = keeping(
        {"x-dead-letter-exchange": dlx, "x-dead-letter-routing-key": "k"}, x_message_ttl=SHORT, x_max_length=0
    )
    ch.queue_bind(q, dlx, "k")
    confirmed(pub, q, b"x")
    lapse(ch, int(RETRY * 2000))
    assert not takes(pub, q)


def test_what_would_come_back_at_a_second_try_stays_though_another_queue_has_it(
    ch: BlockingChannel, pub: BlockingChannel, keeping: Keeping
) -> None:
    dlx, end = exchange(ch, "fanout", auto_delete=True), queue(ch)
    q = keeping({"x-dead-letter-exchange": dlx}, x_message_ttl=SHORT, x_max_length=0)
    ch.queue_bind(q, dlx)
    confirmed(pub, q, b"x")
    has(ch, q, 0)
    lapse(ch, SHORT * 5)
    ch.queue_bind(end, dlx)
    assert fetch(ch, end).body == b"x"
    lapse(ch, int(RETRY * 2500))
    assert bodies(ch, end) == []
    assert not takes(pub, q)


@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_what_a_full_queue_rejects_is_tried_again(
    ch: BlockingChannel, pub: BlockingChannel, keeping: Keeping, typed: Declare, kind: str
) -> None:
    end = typed(kind, x_max_length=1, x_overflow="reject-publish")
    room = 0
    while takes(pub, end, b"full"):
        room += 1
    q = keeping(dead_letters_to(end), x_message_ttl=SHORT)
    confirmed(pub, q, b"x")
    lapse(ch, SHORT * 5)
    assert [fetch(ch, end).body for _ in range(room)] == [b"full"] * room
    came = fetch(ch, end)
    assert (came.body, deaths(came)) == (b"x", [("expired", 1, q)])


def test_a_queue_that_took_it_gets_it_once_while_another_one_is_full(
    ch: BlockingChannel, pub: BlockingChannel, keeping: Keeping
) -> None:
    dlx, end = exchange(ch, "fanout", auto_delete=True), queue(ch)
    full = queue(ch, {"x-max-length": 1, "x-overflow": "reject-publish"})
    send(ch, full, b"full")
    has(ch, full, 1)
    for one in (end, full):
        ch.queue_bind(one, dlx)
    q = keeping({"x-dead-letter-exchange": dlx}, x_message_ttl=SHORT)
    confirmed(pub, q, b"x")
    has(ch, end, 1)
    lapse(ch, int(RETRY * 1500))
    assert fetch(ch, full).body == b"full"
    assert fetch(ch, full).body == b"x"
    assert bodies(ch, end) == [b"x"]


def test_what_one_queue_has_is_done_with_when_there_is_no_other_way_left(
    ch: BlockingChannel, pub: BlockingChannel, keeping: Keeping
) -> None:
    dlx, end = exchange(ch, "fanout"), queue(ch)
    full = queue(ch, {"x-max-length": 0, "x-overflow": "reject-publish"})
    for one in (end, full):
        ch.queue_bind(one, dlx)
    q = keeping({"x-dead-letter-exchange": dlx}, x_message_ttl=SHORT, x_max_length=0)
    confirmed(pub, q, b"x")
    has(ch, end, 1)
    ch.queue_unbind(full, dlx)
    lapse(ch, int(RETRY * 2500))
    assert not takes(pub, q)  # it is still bound to the one that has it
    ch.queue_unbind(end, dlx)
    wait_for(lambda: takes(pub, q), f"room in {q}")
    ch.exchange_delete(dlx)


def test_thirty_two_that_have_nowhere_to_go_hold_up_the_others(
    ch: BlockingChannel, pub: BlockingChannel, keeping: Keeping
) -> None:
    dlx, end, source = exchange(ch, auto_delete=True), queue(ch), exchange(ch, "fanout", auto_delete=True)
    ch.queue_bind(end, dlx, "good")
    q = keeping({"x-dead-letter-exchange": dlx}, x_message_ttl=SHORT)
    ch.queue_bind(q, source)
    for key in ("bad",) * 31 + ("good",):
        pub.basic_publish(source, key, b"1")
    assert fetch(ch, end).method.routing_key == "good"
    for key in ("bad", "good", "bad"):
        pub.basic_publish(source, key, b"2")
    lapse(ch, int(RETRY * 1500))
    assert bodies(ch, end) == []
    ch.queue_bind(end, dlx, "bad")
    came = [fetch(ch, end).method.routing_key for _ in range(34)]
    assert came == ["bad"] * 32 + ["good", "bad"]


# -- where it is nothing else than at-most-once


@pytest.mark.parametrize("overflow", [None, "drop-head", "reject-publish-dlx"])
def test_with_another_overflow_nothing_is_kept(
    ch: BlockingChannel,
    pub: BlockingChannel,
    typed: Declare,
    overflow: str | None,
) -> None:
    end = name()
    arguments = {} if overflow is None else {"x-overflow": overflow}
    q = typed(
        "quorum",
        x_dead_letter_strategy="at-least-once",
        x_message_ttl=SHORT,
        **arguments,
        **dead_letters_to(end),
    )
    confirmed(pub, q, b"lost")
    lapse(ch, SHORT * 5)
    has(ch, q, 0)
    ch.queue_declare(end, exclusive=True)
    confirmed(pub, q, b"x")
    assert fetch(ch, end).body == b"x"
    lapse(ch, int(RETRY * 1500))
    assert bodies(ch, end) == []


@pytest.mark.parametrize("strategy", [None, "at-most-once"])
def test_without_the_strategy_nothing_is_kept(
    ch: BlockingChannel, pub: BlockingChannel, typed: Declare, strategy: str | None
) -> None:
    arguments = {} if strategy is None else {"x-dead-letter-strategy": strategy}
    q = typed(
        "quorum",
        x_overflow="reject-publish",
        x_max_length=0,
        x_message_ttl=SHORT,
        **arguments,
        **dead_letters_to(name()),
    )
    confirmed(pub, q, b"lost")
    wait_for(lambda: takes(pub, q), f"room in {q}")


def test_without_a_dead_letter_exchange_nothing_is_kept(
    ch: BlockingChannel, pub: BlockingChannel, keeping: Keeping
) -> None:
    q = keeping({}, x_message_ttl=SHORT, x_max_length=0)
    confirmed(pub, q, b"lost")
    wait_for(lambda: takes(pub, q), f"room in {q}")


@pytest.mark.parametrize(
    ("first", "then", "said"),
    [
        (None, "at-least-once", "the value 'at-least-once' of type 'longstr' but current is none"),
        ("at-least-once", None, "none but current is the value 'at-least-once' of type 'longstr'"),
        ("at-least-once", "at-most-once", "'at-most-once' but current is 'at-least-once'"),
    ],
)
def test_another_strategy_is_another_queue(
    ch: BlockingChannel, typed: Declare, first: str | None, then: str | None, said: str
) -> None:
    key = "x-dead-letter-strategy"
    q = typed("quorum", **({key: first} if first else {}))
    arguments = {"x-queue-type": "quorum", **({key: then} if then else {})}
    with closes(
        406, f"PRECONDITION_FAILED - inequivalent arg '{key}' for queue '{q}' in vhost '/': received {said}"
    ):
        ch.queue_declare(q, durable=True, arguments=arguments)
