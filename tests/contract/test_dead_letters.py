"""Dead letters: why a message left its queue, and where it went."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from pika.adapters.blocking_connection import BlockingChannel

from tests.contract.helpers import (
    Delivery,
    Inbox,
    bodies,
    dead_letters_to,
    exchange,
    fetch,
    get,
    lapse,
    name,
    publish,
    queue,
    send,
    touch,
)

SHORT = 30


def death(delivery: Delivery, index: int = 0) -> dict[str, Any]:
    return dict(delivery.headers["x-death"][index])


def reject(ch: BlockingChannel, q: str) -> None:
    ch.basic_reject(get(ch, q).tag, requeue=False)


# -- the reasons


def test_a_rejected_message_is_a_dead_letter(ch: BlockingChannel) -> None:
    end = queue(ch)
    q = queue(ch, dead_letters_to(end))
    send(ch, q, b"x", content_type="text/plain", headers={"kept": 1}, correlation_id="c")
    reject(ch, q)
    came = fetch(ch, end)
    time = death(came)["time"]
    assert isinstance(time, datetime.datetime)
    assert abs(time - datetime.datetime.now(datetime.timezone.utc)) < datetime.timedelta(minutes=5)
    assert came.headers == {
        "kept": 1,
        "x-death": [
            {"count": 1, "reason": "rejected", "queue": q, "time": time, "exchange": "", "routing-keys": [q]}
        ],
        "x-first-death-exchange": "",
        "x-first-death-queue": q,
        "x-first-death-reason": "rejected",
    }
    assert (came.body, came.properties.content_type, came.properties.correlation_id) == (
        b"x",
        "text/plain",
        "c",
    )
    assert (came.method.exchange, came.method.routing_key, came.method.redelivered) == ("", end, False)


def test_a_nacked_message_is_a_dead_letter(ch: BlockingChannel) -> None:
    end = queue(ch)
    q = queue(ch, dead_letters_to(end))
    send(ch, q, b"1", b"2")
    get(ch, q)
    ch.basic_nack(get(ch, q).tag, multiple=True, requeue=False)
    assert [fetch(ch, end).body for _ in range(2)] == [b"1", b"2"]


def test_a_requeued_message_is_no_dead_letter(ch: BlockingChannel) -> None:
    end = queue(ch)
    q = queue(ch, dead_letters_to(end))
    send(ch, q, b"x")
    ch.basic_nack(get(ch, q).tag, requeue=True)
    assert bodies(ch, q) == [b"x"]
    assert bodies(ch, end) == []


def test_an_expired_message_is_a_dead_letter_that_does_not_expire_again(ch: BlockingChannel) -> None:
    end = queue(ch)
    q = queue(ch, dead_letters_to(end))
    send(ch, q, b"x", expiration=str(SHORT))
    came = fetch(ch, end)
    expected = {"reason": "expired", "count": 1, "queue": q, "exchange": "", "routing-keys": [q]}
    table = death(came)
    del table["time"]
    assert table == {**expected, "original-expiration": str(SHORT)}
    assert came.properties.expiration is None
    assert came.headers["x-first-death-reason"] == "expired"


def test_the_queues_ttl_is_not_the_messages_expiration(ch: BlockingChannel) -> None:
    end = queue(ch)
    send(ch, queue(ch, {"x-message-ttl": SHORT, **dead_letters_to(end)}), b"x")
    assert set(death(fetch(ch, end))) == {"count", "reason", "queue", "time", "exchange", "routing-keys"}


def test_a_rejected_message_loses_its_expiration_too(ch: BlockingChannel) -> None:
    end = queue(ch)
    q = queue(ch, dead_letters_to(end))
    send(ch, q, b"x", expiration="600000")
    reject(ch, q)
    came = fetch(ch, end)
    assert came.properties.expiration is None
    assert death(came)["original-expiration"] == "600000"


def test_what_a_full_queue_drops_is_a_dead_letter(ch: BlockingChannel) -> None:
    end = queue(ch)
    q = queue(ch, {"x-max-length": 1, **dead_letters_to(end)})
    send(ch, q, b"1", b"2")
    came = fetch(ch, end)
    assert (came.body, death(came)["reason"]) == (b"1", "maxlen")


def test_what_a_full_queue_rejects_is_a_dead_letter_only_with_dlx(ch: BlockingChannel) -> None:
    end = queue(ch)
    plain = queue(ch, {"x-max-length": 1, "x-overflow": "reject-publish", **dead_letters_to(end)})
    dlx = queue(ch, {"x-max-length": 1, "x-overflow": "reject-publish-dlx", **dead_letters_to(end)})
    send(ch, plain, b"1", b"2")
    send(ch, dlx, b"3", b"4")
    came = fetch(ch, end)
    assert (came.body, death(came)["reason"]) == (b"4", "maxlen")
    assert bodies(ch, end) == []
    assert (bodies(ch, plain), bodies(ch, dlx)) == ([b"1"], [b"3"])


@pytest.mark.parametrize("verb", ["queue_purge", "queue_delete"])
def test_purged_and_deleted_messages_are_no_dead_letters(ch: BlockingChannel, verb: str) -> None:
    end = queue(ch)
    q = queue(ch, dead_letters_to(end))
    send(ch, q, b"x")
    getattr(ch, verb)(q)
    lapse(ch, 1)
    assert bodies(ch, end) == []


# -- where they go


def test_a_dead_letter_keeps_its_routing_key_unless_the_queue_has_one(ch: BlockingChannel) -> None:
    dlx, end = exchange(ch, "topic"), queue(ch)
    ch.queue_bind(end, dlx, "#")
    same, other = (
        queue(ch, {"x-dead-letter-exchange": dlx}),
        queue(ch, {"x-dead-letter-exchange": dlx, "x-dead-letter-routing-key": "other"}),
    )
    keys = []
    for q in (same, other):
        ch.queue_bind(q, "amq.direct", q)
        publish(ch, "amq.direct", q)
        reject(ch, q)
        came = fetch(ch, end)
        assert (death(came)["exchange"], death(came)["routing-keys"]) == ("amq.direct", [q])
        assert came.method.exchange == dlx
        keys.append(came.method.routing_key)
    assert keys == [same, "other"]


def test_a_missing_dead_letter_exchange_drops(ch: BlockingChannel) -> None:
    q = queue(ch, {"x-dead-letter-exchange": name()})
    send(ch, q, b"x")
    reject(ch, q)
    touch(ch)
    assert bodies(ch, q) == []


def test_a_dead_letter_exchange_may_be_declared_later(ch: BlockingChannel) -> None:
    dlx, end = name(), queue(ch)
    q = queue(ch, {"x-dead-letter-exchange": dlx})
    ch.exchange_declare(dlx, "fanout")
    ch.queue_bind(end, dlx)
    send(ch, q, b"x")
    reject(ch, q)
    assert fetch(ch, end).body == b"x"


def test_a_dead_letter_may_pass_through_an_internal_and_an_alternate_exchange(ch: BlockingChannel) -> None:
    alternate, end = exchange(ch, "fanout"), queue(ch)
    dlx = exchange(ch, "direct", {"alternate-exchange": alternate}, internal=True)
    ch.queue_bind(end, alternate)
    q = queue(ch, {"x-dead-letter-exchange": dlx})
    send(ch, q, b"x")
    reject(ch, q)
    assert fetch(ch, end).body == b"x"


def test_every_key_of_a_message_is_in_its_death_and_cc_goes(ch: BlockingChannel) -> None:
    end, cc = queue(ch), queue(ch)
    q = queue(ch, dead_letters_to(end))
    publish(ch, "", q, b"x", headers={"CC": [cc], "BCC": ["hidden"]})
    reject(ch, q)
    came = fetch(ch, end)
    assert death(came)["routing-keys"] == [q, cc]
    assert "CC" not in came.headers  # the queue gave it another key
    assert bodies(ch, cc) == [b"x"]  # from the publish, once


def test_cc_stays_and_counts_when_the_queue_has_no_key(ch: BlockingChannel) -> None:
    dlx, end, by_cc = exchange(ch), queue(ch), queue(ch)
    q = queue(ch, {"x-dead-letter-exchange": dlx})
    ch.queue_bind(end, dlx, q)
    ch.queue_bind(by_cc, dlx, "cc")
    publish(ch, "", q, b"x", headers={"CC": ["cc"]})
    reject(ch, q)
    assert fetch(ch, end).headers["CC"] == ["cc"]
    assert fetch(ch, by_cc).body == b"x"


# -- again and again


def test_a_second_death_of_the_same_kind_is_counted(ch: BlockingChannel) -> None:
    q = name()
    ch.queue_declare(q, exclusive=True, arguments=dead_letters_to(q))
    send(ch, q, b"x")
    for number in (1, 2, 3):
        reject(ch, q)
        came = fetch(ch, q, auto_ack=False)
        assert [(table["count"], table["reason"]) for table in came.headers["x-death"]] == [
            (number, "rejected")
        ]
        ch.basic_nack(came.tag)


def test_the_last_death_comes_first_and_the_first_is_remembered(ch: BlockingChannel) -> None:
    last = queue(ch)
    second = queue(ch, dead_letters_to(last))
    first = queue(ch, {"x-message-ttl": SHORT, **dead_letters_to(second)})
    send(ch, first, b"x")
    reject(ch, second)
    came = fetch(ch, last)
    assert [(table["queue"], table["reason"]) for table in came.headers["x-death"]] == [
        (second, "rejected"),
        (first, "expired"),
    ]
    assert came.headers["x-first-death-queue"] == first
    assert came.headers["x-first-death-reason"] == "expired"
    assert came.headers["x-first-death-exchange"] == ""


def test_two_reasons_in_one_queue_are_two_deaths(ch: BlockingChannel) -> None:
    end = queue(ch)
    q = queue(ch, dead_letters_to(end))
    send(ch, q, b"x")
    reject(ch, q)
    came = fetch(ch, end)
    send(ch, q, b"x", headers=came.headers, expiration=str(SHORT))
    again = fetch(ch, end)
    assert [(table["reason"], table["count"], table["queue"]) for table in again.headers["x-death"]] == [
        ("expired", 1, q),
        ("rejected", 1, q),
    ]


def test_an_earlier_rejection_does_not_save_what_expires_in_a_circle_of_one(ch: BlockingChannel) -> None:
    q = name()
    ch.queue_declare(q, exclusive=True, arguments=dead_letters_to(q))
    send(ch, q, b"x")
    reject(ch, q)
    came = fetch(ch, q)
    send(ch, q, b"x", headers=came.headers, expiration=str(SHORT))
    lapse(ch, SHORT * 3)
    assert bodies(ch, q) == []


def test_a_circle_without_a_rejection_drops_the_message(ch: BlockingChannel) -> None:
    first, second = name(), name()
    ch.queue_declare(first, exclusive=True, arguments={"x-message-ttl": SHORT, **dead_letters_to(second)})
    ch.queue_declare(second, exclusive=True, arguments={"x-message-ttl": SHORT, **dead_letters_to(first)})
    send(ch, first, b"x")
    lapse(ch, SHORT * 5)
    assert bodies(ch, first) + bodies(ch, second) == []


def test_a_circle_of_one_queue_drops_what_expires(ch: BlockingChannel) -> None:
    q = name()
    ch.queue_declare(q, exclusive=True, arguments={"x-message-ttl": SHORT, **dead_letters_to(q)})
    send(ch, q, b"x")
    lapse(ch, SHORT * 3)
    assert bodies(ch, q) == []


def test_a_circle_with_a_rejection_goes_on(ch: BlockingChannel) -> None:
    work, wait = name(), name()
    ch.queue_declare(work, exclusive=True, arguments=dead_letters_to(wait))
    ch.queue_declare(wait, exclusive=True, arguments={"x-message-ttl": SHORT, **dead_letters_to(work)})
    send(ch, work, b"x")
    for number in (1, 2, 3):
        reject(ch, work)
        came = fetch(ch, work, auto_ack=False)
        assert [(table["queue"], table["reason"], table["count"]) for table in came.headers["x-death"]] == [
            (wait, "expired", number),
            (work, "rejected", number),
        ]
        ch.basic_nack(came.tag)


def test_a_dead_letter_keeps_its_delivery_mode_and_priority(ch: BlockingChannel) -> None:
    end = queue(ch)
    q = queue(ch, dead_letters_to(end))
    send(ch, q, b"x", delivery_mode=2, priority=4)
    reject(ch, q)
    came = fetch(ch, end).properties
    assert (came.delivery_mode, came.priority) == (2, 4)


def test_a_consumers_rejection_in_a_transaction_counts_at_the_commit(ch: BlockingChannel) -> None:
    end = queue(ch)
    inbox = Inbox(ch, queue(ch, dead_letters_to(end)))
    send(ch, inbox.of, b"x")
    inbox.wait(1)
    ch.tx_select()
    ch.basic_reject(inbox.got[0].tag, requeue=False)
    assert bodies(ch, end) == []
    ch.tx_commit()
    assert fetch(ch, end).body == b"x"
