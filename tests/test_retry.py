"""What becomes of what fails, as far as that can be known without a broker."""

from __future__ import annotations

import contextlib
import datetime
import decimal
import logging
import os
import re
import socket
import struct
from collections.abc import Callable
from typing import Any

import pika
import pytest
from flask import Flask
from hypothesis import given, settings
from hypothesis import strategies as st

from flask_pika import (
    Action,
    BrokerUnavailable,
    Delivery,
    InvalidMessage,
    Message,
    Nacked,
    Pika,
    Reject,
    Requeue,
    Retry,
    RetryLater,
    SetupError,
    UndecodableMessage,
    Unroutable,
    failures,
)
from flask_pika.consumer import Consumer
from flask_pika.encoded import EncodedProperties
from flask_pika.handling import log_failure
from flask_pika.message import PROPERTIES, checked_properties
from flask_pika.recovery import Recovery
from flask_pika.retry import Decision, decide, rounded, waiting_queue
from flask_pika.topology import Queue
from flask_pika.wire import Envelopes

CONSUMER_LOG = "flask_pika.consumer"
SECRET = "s3cret"
LONGEST = 315_360_000
NOW = datetime.datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=datetime.timezone(datetime.timedelta(hours=1)))
NOW_TEXT = "2026-01-02T02:04:05.678+00:00"
BAD_PROPERTIES = b"\x20\x00\x00\x00\x00\x10\x01"


@pytest.fixture
def app() -> Flask:
    made = Flask("shop")
    made.config["FLASK_PIKA_PARAMS"] = {"host": "127.0.0.1", "port": 1}  # nobody connects
    return made


@pytest.fixture
def fpika(app: Flask) -> Pika:
    return Pika(app)


def nothing(delivery: Delivery) -> None:
    """A handler."""


def raised(error: BaseException) -> BaseException:
    """The error, with a traceback through here."""
    with contextlib.suppress(BaseException):
        raise error
    return error


def delivered(
    content: bytes | pika.BasicProperties | None = None,
    attempts: int = 0,
    address: tuple[str, str] = ("orders", "order.created"),
) -> Delivery:
    """A delivery to queue ``work`` that has failed so often."""
    make: Any = pika.BasicProperties
    headers = {"x-failure-attempts": attempts} if attempts else None
    properties = content if content is not None else make(message_id="m1", headers=headers)
    encoded = properties if isinstance(properties, bytes) else b"".join(properties.encode())
    return Delivery("work", 1, False, *address, encoded, b"body")


def decoded(properties: EncodedProperties) -> Any:
    make: Any = pika.BasicProperties
    return make().decode(b"".join(properties.encode()))


# Delays


def test_delays_grow_by_the_factor_to_the_longest() -> None:
    retry = Retry(attempts=7, delay=1, factor=3, max_delay=20)
    assert [retry.delay_after(attempt) for attempt in range(1, 8)] == [1, 3, 9, 20, 20, 20, 20]
    assert retry.delays == [1, 3, 9, 20]
    assert Retry(attempts=5).delays == [1, 2, 4, 8]
    assert Retry(attempts=3, delay=0.05, factor=1).delays == [0.05]
    assert Retry(attempts=1).delays == []
    assert Retry(attempts=1000, factor=1e6, max_delay=LONGEST).delay_after(999) == LONGEST


@settings(deadline=None)
@given(
    attempts=st.integers(1, 30),
    delay=st.floats(0.001, LONGEST),
    factor=st.floats(1, LONGEST),
    more=st.floats(1, 1e9),
    attempt=st.integers(1, 999),
)
def test_delays_never_shrink_and_stay_between_the_first_and_the_longest(
    attempts: int, delay: float, factor: float, more: float, attempt: int
) -> None:
    longest = min(delay * more, LONGEST)
    retry = Retry(attempts, delay, factor, longest)
    assert delay <= retry.delay_after(attempt) <= retry.delay_after(attempt + 1) <= longest
    assert len(retry.delays) <= attempts - 1
    for one in retry.delays:
        assert 1 <= waiting_queue("q", one).arguments["x-message-ttl"] <= LONGEST * 1000


@pytest.mark.parametrize(
    ("delay", "milliseconds"),
    [
        (0, 1),
        (0.0001, 1),
        (0.001, 1),
        (0.07, 70),
        (0.099, 99),
        (0.1004, 110),
        (0.101, 110),
        (60, 60_000),
        (61.5, 62_000),
        (99.9, 100_000),
        (86_400, 87_000_000),
        (LONGEST, LONGEST * 1000),
        (LONGEST - 1, LONGEST * 1000),
    ],
)
def test_a_delay_that_is_asked_for_is_rounded_up_to_two_digits(delay: float, milliseconds: int) -> None:
    assert round(rounded(delay) * 1000) == milliseconds
    assert waiting_queue("q", rounded(delay)).name == f"q.retry.{milliseconds}ms"


@settings(deadline=None)
@given(st.floats(0, LONGEST))
def test_no_rounded_delay_is_shorter_and_few_are_different(delay: float) -> None:
    given_up_to = 1e-6  # what rounds to whole microseconds is what a float means by it
    assert delay - given_up_to <= rounded(delay) <= max(0.001, delay * 1.1 + 0.001)
    assert len(str(round(rounded(delay) * 1000)).rstrip("0")) <= 2 or rounded(delay) == LONGEST


def test_a_waiting_queue_leads_back_to_its_queue_alone_and_loses_nothing() -> None:
    queue = waiting_queue("work", 2)
    assert queue.name == "work.retry.2000ms"
    assert queue.durable
    assert queue.arguments == {
        "x-queue-type": "quorum",
        "x-message-ttl": 2000,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": "work",
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }
    assert waiting_queue("work", 0.0014).name == "work.retry.1ms"
    assert waiting_queue("work", 0.0001).name == "work.retry.1ms"


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({"attempts": 0}, "attempts is 0; expected a number from 1 to 1000"),
        ({"attempts": 1001}, "attempts is 1001"),
        ({"attempts": True}, "attempts is True"),
        ({"attempts": 2.0}, "attempts is 2.0"),
        ({"attempts": "5"}, "attempts is '5'"),
        ({"delay": 0}, "delay is 0; expected a number from 0.001"),
        ({"delay": -1}, "delay is -1"),
        ({"delay": float("nan")}, "delay is nan"),
        ({"delay": float("inf")}, "delay is inf"),
        ({"delay": "1"}, "delay is '1'"),
        ({"delay": None}, "delay is None"),
        ({"factor": 0.5}, "factor is 0.5; expected a number from 1"),
        ({"factor": False}, "factor is False"),
        ({"max_delay": LONGEST + 1}, "max_delay is 315360001"),
        ({"max_delay": 10**400}, "max_delay is 1000"),
        ({"delay": 600}, "delay is 600, and max_delay 300.0, which is less"),
    ],
    ids=str,
)
def test_a_retry_that_makes_no_sense_is_refused(about: dict[str, Any], said: str) -> None:
    with pytest.raises(SetupError, match=said):
        Retry(**about)


@pytest.mark.parametrize("delay", [-1, float("nan"), float("inf"), LONGEST + 1, "1", True, 10**400])
def test_a_delay_that_rabbitmq_cannot_wait_for_fails_in_the_handler(delay: Any) -> None:
    with pytest.raises(ValueError, match=r"RetryLater: delay is .*expected seconds"):
        RetryLater(delay=delay)


def test_seconds_in_the_place_of_the_text_are_an_error() -> None:
    with pytest.raises(ValueError, match="delay=60"):
        RetryLater(60)  # type: ignore[arg-type] # that is what is tested
    assert RetryLater("busy", delay=0).delay == 0
    assert str(RetryLater("busy")) == "busy"


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({"retry": 5}, "retry is .*int.*expected flask_pika.Retry"),
        ({"retry": Retry(), "ack": "none"}, "acked before it fails"),
        ({"queue": "q" * 240, "retry": Retry()}, "too long.*255"),
        ({"retry": Retry(), "arguments": {"x-stream-offset": "first"}}, "stream"),
    ],
    ids=str,
)
def test_a_consumer_that_cannot_retry_is_refused(fpika: Pika, about: dict[str, Any], said: str) -> None:
    about = dict(about)
    with pytest.raises(SetupError, match=said):
        fpika.consumer(about.pop("queue", "work"), **about)(nothing)


def test_a_registered_stream_has_no_retries(fpika: Pika) -> None:
    fpika.queue("clicks", type="stream")
    fpika.consumer("clicks", retry=Retry())(nothing)
    with pytest.raises(SetupError, match=r"'clicks': a stream .*leave retry out"):
        fpika.worker()


def test_the_longest_names_can_be_sent(fpika: Pika) -> None:
    longest = len(waiting_queue("", LONGEST).name)
    fpika.consumer("ö" * ((255 - longest) // 2), retry=Retry(max_delay=LONGEST))(nothing)
    with pytest.raises(SetupError, match="too long"):
        fpika.consumer("q" * (255 - longest + 1), retry=Retry())(nothing)
    with pytest.raises(SetupError, match="bytes"):
        fpika.queue("q" * 251, dead_letter=True)


# Decisions

BOOM = ZeroDivisionError("boom")
RETRY = Retry(attempts=3, delay=1, factor=2)


@pytest.mark.parametrize(
    ("retry", "has_dead", "otherwise", "attempts", "error", "expected"),
    [
        (RETRY, True, Action.ACK, 0, None, Decision(Action.ACK)),
        (RETRY, True, None, 0, None, Decision(None)),
        (RETRY, True, None, 0, BOOM, Decision(None)),
        (RETRY, True, Action.REQUEUE, 5, Requeue(), Decision(Action.REQUEUE)),
        (RETRY, True, Action.REJECT, 0, BOOM, Decision(Action.RETRY, 1)),
        (RETRY, True, Action.REJECT, 1, BOOM, Decision(Action.RETRY, 2)),
        (RETRY, True, Action.REJECT, 2, BOOM, Decision(Action.DEAD)),
        (RETRY, True, Action.REJECT, 9, BOOM, Decision(Action.DEAD)),
        (RETRY, True, Action.REQUEUE, 0, BOOM, Decision(Action.RETRY, 1)),
        (RETRY, True, Action.REQUEUE, 2, BOOM, Decision(Action.DEAD)),
        (RETRY, True, Action.REJECT, 0, SystemExit(1), Decision(Action.RETRY, 1)),
        (RETRY, True, Action.REJECT, 0, RetryLater(), Decision(Action.RETRY, 1)),
        (RETRY, True, Action.REJECT, 0, RetryLater(delay=60), Decision(Action.RETRY, 60)),
        (RETRY, True, Action.REJECT, 0, RetryLater(delay=0), Decision(Action.RETRY, 0)),
        (RETRY, True, Action.REJECT, 2, RetryLater(delay=60), Decision(Action.DEAD)),
        (RETRY, True, Action.REJECT, 0, Reject(), Decision(Action.DEAD)),
        (RETRY, True, Action.REJECT, 0, UndecodableMessage(), Decision(Action.DEAD)),
        (None, True, Action.REJECT, 0, BOOM, Decision(Action.DEAD)),
        (None, True, Action.REJECT, 0, RetryLater(delay=60), Decision(Action.DEAD)),
        (None, True, Action.REQUEUE, 0, BOOM, Decision(Action.REQUEUE)),
        (None, False, Action.REJECT, 0, BOOM, Decision(Action.REJECT)),
        (None, False, Action.REJECT, 0, RetryLater(delay=60), Decision(Action.REJECT)),
        (None, False, Action.REJECT, 0, Reject(), Decision(Action.REJECT)),
    ],
)
def test_what_becomes_of_a_delivery(
    retry: Retry | None,
    has_dead: bool,
    otherwise: Action | None,
    attempts: int,
    error: BaseException | None,
    expected: Decision,
) -> None:
    assert decide(retry, has_dead, otherwise, delivered(attempts=attempts), error) == expected


@pytest.mark.parametrize(
    ("value", "attempt"), [(0, 1), (1, 2), (-5, 1), ("many", 1), (None, 1), (2**40, 2**40 + 1), ([1], 1)]
)
def test_attempts_that_somebody_else_wrote_are_taken_for_what_they_are(value: Any, attempt: int) -> None:
    make: Any = pika.BasicProperties
    delivery = delivered(make(headers={"x-failure-attempts": value}))
    assert delivery.attempt == attempt
    assert decoded(failures.retried(delivery, BOOM, NOW)).headers["x-failure-attempts"] <= 2**31 - 1


def test_what_a_handler_does_to_headers_changes_neither_attempts_nor_the_copy() -> None:
    make: Any = pika.BasicProperties
    delivery = delivered(make(headers={"x-failure-attempts": 2, "list": [1]}))
    delivery.headers["list"].append(2)
    delivery.headers["more"] = 1
    delivery.headers.pop("x-failure-attempts")
    delivery.properties.reply_to = "me"
    assert delivery.attempt == 3
    copy = decoded(failures.retried(delivery, BOOM, NOW))
    assert (copy.headers["list"], "more" in copy.headers, copy.reply_to) == ([1], False, None)


# What is written onto a copy

TEXTS = ("content_type", "content_encoding", "correlation_id", "reply_to", "message_id", "type", "app_id")
_texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
_values = st.recursive(
    st.one_of(
        _texts,
        st.binary(max_size=20).map(lambda data: b"\xff" + data),
        st.integers(-(2**63), 2**63 - 1),
        st.booleans(),
        st.none(),
        st.decimals(-1000, 1000, places=2),
        st.integers(0, 2**31).map(lambda n: datetime.datetime.fromtimestamp(n, datetime.timezone.utc)),
    ),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(_texts, children, max_size=3),
    max_leaves=6,
)
_named = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(TEXTS, _texts),
        "headers": st.dictionaries(
            _texts.filter(lambda name: not name.startswith("x-") and name not in ("CC", "BCC")),
            _values,
            min_size=1,
            max_size=5,
        ),
        "delivery_mode": st.integers(0, 255),
        "priority": st.integers(0, 255),
        "timestamp": st.integers(0, 2**64 - 1),
    },
)


@settings(deadline=None)
@given(named=_named, user=st.booleans())
def test_properties_and_headers_are_kept(named: dict[str, Any], user: bool) -> None:
    make: Any = pika.BasicProperties
    named = {name: value for name, value in named.items() if value != ""}
    gone = {"user_id": "guest", "expiration": "60000"} if user else {}
    before = make(**named, **gone)
    for copy in (
        failures.retried(delivered(before), BOOM, NOW),
        failures.dead(delivered(before), BOOM, "attempts", NOW),
    ):
        found = decoded(copy)
        for name in PROPERTIES:
            expected = named.get(name)
            value = getattr(found, name)
            if name == "headers":
                value = {k: v for k, v in value.items() if not k.startswith("x-failure-")}
                expected = expected or {}
            assert value == expected, name
        # Nor does the publisher add any but an id, by which the broker's returns are known.
        envelope = Envelopes(131072).find("", "q", True, "application/octet-stream", {}, copy)
        sent = make().decode(b"".join(envelope.complete("made", 1).encode()))
        assert sent.message_id == named.get("message_id", "made")
        assert (sent.content_type, sent.timestamp) == (named.get("content_type"), named.get("timestamp"))


def table(**headers: bytes) -> bytes:
    body = b"".join(bytes([len(key)]) + key.encode() + value for key, value in headers.items())
    return struct.pack(">HI", 0x2000, len(body)) + body


def test_types_that_pika_cannot_write_are_kept_to_the_byte() -> None:
    headers = {
        "f": b"f" + struct.pack(">f", 1.5),
        "d": b"d" + struct.pack(">d", 0.1),
        "b": b"b\xff",
        "B": b"B\xff",
        "s": b"s\xff\xfe",
        "u": b"u\xff\xfe",
        "i": b"i\xff\xff\xff\xff",
        "l": b"l" + struct.pack(">q", 5),
        "D": b"D\x02\x00\x00\x01\x00",
        "T": b"T" + b"\xff" * 8,  # no date in Python
        "S": b"S\x00\x00\x00\x02\xff\xfe",
        "x": b"x\x00\x00\x00\x01a",
        "V": b"V",
        "t": b"t\x01",
        "F": b"F" + table(d=b"d" + struct.pack(">d", 0.1))[2:],
        "A": b"A\x00\x00\x00\x09d" + struct.pack(">d", 0.1),
    }
    encoded = table(**headers)
    delivery = delivered(encoded)
    copy = failures.retried(delivery, BOOM, NOW)
    copy.leave_out_headers(lambda name: name.startswith("x-failure-"))
    assert b"".join(copy.encode()) == encoded
    assert b"".join(EncodedProperties(encoded).encode()) == encoded


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_bytes_that_are_no_properties_are_refused_and_nothing_else_goes_wrong(data: bytes) -> None:
    with contextlib.suppress(UndecodableMessage):
        EncodedProperties(data).encode()
    delivery = delivered(data)
    assert delivery.attempt >= 1
    copy = decoded(failures.dead(delivery, BOOM, "undecodable", NOW))
    assert copy.headers["x-failure-type"] == "ZeroDivisionError"


def test_each_prefix_of_properties_is_refused() -> None:
    make: Any = pika.BasicProperties
    encoded = b"".join(make(content_type="a", headers={"a": {"b": [1]}}, timestamp=1, app_id="x").encode())
    EncodedProperties(encoded)
    for length in range(len(encoded)):
        with pytest.raises(UndecodableMessage):
            EncodedProperties(encoded[:length])
    with pytest.raises(UndecodableMessage):
        EncodedProperties(encoded + b"\0")


def test_the_brokers_own_and_what_would_route_elsewhere_are_left_out() -> None:
    make: Any = pika.BasicProperties
    headers = {
        "x-death": [{"count": 3}],
        "x-first-death-queue": "a",
        "x-last-death-reason": "expired",
        "x-delivery-count": 4,
        "CC": ["elsewhere"],
        "BCC": ["elsewhere"],
        "cc": "kept",
        "x-mine": "kept",
        "x-failure-anything": "old",
    }
    found = decoded(failures.retried(delivered(make(headers=headers)), BOOM, NOW)).headers
    assert {name for name in found if not name.startswith("x-failure-")} == {"cc", "x-mine"}
    assert "x-failure-anything" not in found


def test_a_copy_that_waits_says_what_failed() -> None:
    make: Any = pika.BasicProperties
    first = decoded(failures.retried(delivered(), raised(KeyError("id")), NOW))
    about = {
        "x-failure-attempts": 1,
        "x-failure-first-time": NOW_TEXT,
        "x-failure-last-time": NOW_TEXT,
        "x-failure-type": "KeyError",
        "x-failure-message": "'id'",
        "x-failure-exchange": "orders",
        "x-failure-routing-key": "order.created",
        "x-failure-queue": "work",
    }
    assert first.headers == about
    came = delivered(make(headers=first.headers), address=("", "work"))
    came.restore()
    assert (came.exchange, came.routing_key, came.attempt) == ("orders", "order.created", 2)
    later = NOW + datetime.timedelta(seconds=1)
    second = decoded(failures.retried(came, raised(OSError("disk")), later))
    assert second.headers == {
        **about,
        "x-failure-attempts": 2,
        "x-failure-last-time": "2026-01-02T02:04:06.678+00:00",
        "x-failure-type": "OSError",
        "x-failure-message": "disk",
    }


def test_a_dead_letter_says_more() -> None:
    found = decoded(failures.dead(delivered(), raised(OSError("disk")), "attempts", NOW)).headers
    assert found["x-failure-reason"] == "attempts"
    assert found["x-failure-host"] == f"{socket.gethostname()} (pid {os.getpid()})"
    assert found["x-failure-traceback"].startswith("Traceback")
    assert found["x-failure-traceback"].endswith("OSError: disk\n")


def test_an_address_that_is_no_utf_8_is_kept() -> None:
    address = (b"\xffex".decode(errors="surrogateescape"), b"\xfekey".decode(errors="surrogateescape"))
    copy = failures.retried(delivered(address=address), BOOM, NOW)
    came = delivered(b"".join(copy.encode()), address=("", "work"))
    came.restore()
    assert (came.exchange, came.routing_key) == address


def test_headers_that_somebody_made_up_name_no_address() -> None:
    make: Any = pika.BasicProperties
    came = delivered(make(headers={"x-failure-exchange": 5, "x-failure-routing-key": None}))
    came.restore()
    assert (came.exchange, came.routing_key) == ("orders", "order.created")


def test_what_is_replayed_has_not_failed_and_still_says_where_it_came_from() -> None:
    make: Any = pika.BasicProperties
    before = make(headers={"a": [1]}, priority=5, user_id="u", expiration="1")
    dead = decoded(failures.dead(delivered(before, address=("orders", "k")), BOOM, "attempts", NOW))
    again = decoded(failures.revived(EncodedProperties(b"".join(dead.encode()))))
    assert again.headers == {"a": [1], "x-failure-exchange": "orders", "x-failure-routing-key": "k"}
    assert (again.priority, again.user_id, again.expiration) == (5, None, None)
    came = delivered(again, address=("", "work"))
    came.restore()
    assert (came.exchange, came.routing_key, came.attempt) == ("orders", "k", 1)


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    "error",
    [
        ValueError("x" * 100_000),
        ValueError("ö" * 100_000),
        ValueError("\ud800" * 100_000),
        ValueError("\0"),
        Unspeakable(),
        SystemExit(3),
        type("L" * 10_000, (Exception,), {})("long"),
    ],
    ids=lambda error: type(error).__name__[:20],
)
def test_whatever_was_raised_the_headers_fit_into_a_frame(error: BaseException) -> None:
    copy = failures.dead(delivered(), raised(error), "attempts", NOW)
    Envelopes(131072).find("", "q", True, "", {}, copy)
    headers = decoded(copy).headers
    assert len(headers["x-failure-message"]) <= 500
    assert len(headers["x-failure-traceback"]) <= 4000


def test_of_a_long_traceback_the_end_is_kept() -> None:
    def deep(n: int) -> None:
        if n:
            deep(n - 1)
        # Lines that are no repetition, which Python would sum up.
        raise ValueError("at the end") if n == 0 else KeyError(n)

    try:
        deep(60)
    except (ValueError, KeyError) as exc:
        error = exc
    text = decoded(failures.dead(delivered(), error, "attempts", NOW)).headers["x-failure-traceback"]
    assert "\n...\n" in text or len(text) < 4000
    assert text.startswith("Traceback")
    assert text.endswith("ValueError: at the end\n")


def test_neither_body_nor_headers_nor_variables_are_written_anywhere() -> None:
    make: Any = pika.BasicProperties
    delivery = Delivery("work", 1, False, "", "k", make(headers={"password": SECRET}), SECRET.encode())

    def handler(password: str) -> None:
        raise ValueError("wrong")

    try:
        handler(delivery.text)
    except ValueError as exc:
        found = decoded(failures.dead(delivery, exc, "attempts", NOW)).headers
    assert found.pop("password") == SECRET
    assert SECRET not in str(found)


# Recovery: copies, when something is wrong with them


class Post:
    """What a recovery publishes to and declares with."""

    def __init__(self, frame_max: int = 131072) -> None:
        self.sent: list[Message] = []
        self.declared: list[Queue] = []
        self.errors: list[Exception] = []
        self._frame_max = frame_max
        self.recovery = Recovery(self._publish, self.declared.append, lambda: NOW)

    def _publish(self, message: Message) -> None:
        Envelopes(self._frame_max).find(
            message.exchange, message.routing_key, message.mandatory, "", {}, message.properties
        )
        if self.errors:
            raise self.errors.pop(0)
        self.sent.append(message)

    def settle(self, delivery: Delivery, decision: Decision, error: BaseException = BOOM) -> Action | None:
        consumer = Consumer("work", nothing, retry=Retry(attempts=3, delay=1.234))
        return self.recovery.settle(consumer, delivery, error, decision)

    @property
    def headers(self) -> Any:
        properties: Any = self.sent[-1].properties
        return decoded(properties).headers


def test_a_copy_goes_to_the_queue_of_its_delay_or_to_the_dead_letters() -> None:
    post = Post()
    for decision, queue in (
        (Decision(Action.RETRY, 1.234), "work.retry.1234ms"),  # as it is configured
        (Decision(Action.RETRY, 1.233), "work.retry.1300ms"),
        (Decision(Action.RETRY, 60), "work.retry.60000ms"),
        (Decision(Action.DEAD), "work.dead"),
    ):
        assert post.settle(delivered(), decision) is decision.action
        message = post.sent[-1]
        assert (message.exchange, message.routing_key, message.mandatory) == ("", queue, True)
        assert message.body == b"body"
    assert not post.declared
    for action in (None, Action.ACK, Action.REJECT, Action.REQUEUE):
        assert post.settle(delivered(), Decision(action)) is action
    assert len(post.sent) == 4


@pytest.mark.parametrize(
    ("error", "reason"),
    [(BOOM, "attempts"), (Reject("no"), "rejected"), (UndecodableMessage("no"), "undecodable")],
)
def test_a_dead_letter_says_why_it_is_one(error: Exception, reason: str) -> None:
    post = Post()
    post.settle(delivered(), Decision(Action.DEAD), error)
    assert post.headers["x-failure-reason"] == reason
    post.recovery.settle(Consumer("work", nothing), delivered(), error, Decision(Action.DEAD))
    assert post.headers["x-failure-reason"] == ("rejected" if error is BOOM else reason)


def test_a_queue_that_is_gone_is_declared_again() -> None:
    post = Post()
    post.errors = [Unroutable("gone")]
    assert post.settle(delivered(), Decision(Action.RETRY, 60)) is Action.RETRY
    assert post.declared == [waiting_queue("work", 60)]
    assert len(post.sent) == 1
    post.errors = [Unroutable("gone"), Unroutable("gone again")]
    assert post.settle(delivered(), Decision(Action.DEAD)) is Action.GIVE_BACK
    assert post.declared[-1].name == "work.dead"


@pytest.mark.parametrize("error", [BrokerUnavailable("away"), Nacked("full"), RuntimeError("odd")])
def test_what_cannot_be_copied_is_tried_again(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    post = Post()
    for decision, queue in (
        (Decision(Action.RETRY, 1.234), "work.retry.1234ms"),
        (Decision(Action.DEAD), "work.dead"),
    ):
        post.errors = [error]
        assert post.settle(delivered(), decision) is Action.GIVE_BACK
        assert f"was not copied to queue '{queue}', and will be: {error}" in caplog.records[-1].getMessage()
        assert caplog.records[-1].levelname == "ERROR"


def test_headers_that_leave_no_room_cost_the_traceback_then_the_retries_then_themselves(
    caplog: pytest.LogCaptureFixture,
) -> None:
    make: Any = pika.BasicProperties
    post = Post(frame_max=6000)
    error = raised(ValueError("x" * 5000))

    def settle(size: int, decision: Decision) -> Action | None:
        return post.settle(delivered(make(headers={"big": "x" * size})), decision, error)

    assert settle(10, Decision(Action.DEAD)) is Action.DEAD
    assert "x-failure-traceback" in post.headers
    assert settle(4500, Decision(Action.DEAD)) is Action.DEAD
    assert "x-failure-traceback" not in post.headers
    assert len(post.headers["x-failure-message"]) == 500
    assert settle(5200, Decision(Action.RETRY, 60)) is Action.RETRY
    assert "x-failure-message" not in post.headers
    assert post.headers["big"] == "x" * 5200
    assert not caplog.records
    assert settle(5900, Decision(Action.RETRY, 60)) is Action.DEAD
    assert post.sent[-1].routing_key == "work.dead"
    assert "big" not in post.headers
    assert post.headers["x-failure-reason"] == "too-long"
    assert post.headers["x-failure-type"] == "ValueError"
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]
    assert "leave no room" in caplog.text


def test_properties_of_other_clients_are_as_good_as_ours() -> None:
    post = Post()
    fields: list[tuple[str, Any]] = [("delivery_mode", 0), ("timestamp", 2**64 - 1), ("expiration", "odd")]
    make: Any = pika.BasicProperties
    for name, value in fields:
        with pytest.raises(InvalidMessage):
            checked_properties({}, make(**{name: value}), "")
        assert post.settle(delivered(make(**{name: value})), Decision(Action.DEAD)) is Action.DEAD


# Rehearsals


def failing(fpika: Pika, error: BaseException, **about: Any) -> Callable[..., None]:
    def fails(delivery: Any) -> None:
        raise error

    fpika.consumer("work", **about)(fails)
    return fails


def test_a_rehearsal_tells_that_it_would_be_tried_again_and_when(fpika: Pika) -> None:
    handler = failing(fpika, BOOM, retry=Retry(attempts=3, delay=2, factor=3))
    outcome = fpika.run_consumer(handler, b"")
    assert (outcome.retried, outcome.dead, outcome.delay) == (True, False, 2)
    assert outcome.error is BOOM
    second = fpika.run_consumer(handler, b"", headers={"x-failure-attempts": 1})
    assert (second.retried, second.delay) == (True, 6)
    third = fpika.run_consumer(handler, b"", headers={"x-failure-attempts": 2})
    assert (third.retried, third.dead, third.delay, third.acked, third.rejected) == (
        False,
        True,
        0,
        False,
        False,
    )


@pytest.mark.parametrize(
    ("error", "retried", "dead", "delay"),
    [
        (RetryLater(delay=61), True, False, 61),
        (RetryLater(), True, False, 1),
        (Reject("never"), False, True, 0),
        (UndecodableMessage("x"), False, True, 0),
        (Requeue(), False, False, 0),
    ],
    ids=repr,
)
def test_what_a_handler_raises_decides(
    fpika: Pika, error: Exception, retried: bool, dead: bool, delay: float
) -> None:
    outcome = fpika.run_consumer(failing(fpika, error, retry=Retry()), b"")
    assert (outcome.retried, outcome.dead, outcome.delay) == (retried, dead, delay)
    assert outcome.requeued is isinstance(error, Requeue)


def test_what_is_no_json_is_dead_at_once(fpika: Pika) -> None:
    @fpika.consumer("work", retry=Retry())
    def handle(delivery: Delivery) -> None:
        _ = delivery.json

    assert fpika.run_consumer(handle, b"{").dead


def test_a_queue_with_dead_letters_has_them_without_retries(fpika: Pika) -> None:
    fpika.queue("work", dead_letter=True)
    assert fpika.run_consumer(failing(fpika, BOOM), b"").dead


def test_a_batch_is_decided_on_one_by_one(fpika: Pika, caplog: pytest.LogCaptureFixture) -> None:
    handler = failing(fpika, BOOM, retry=Retry(attempts=3), batch=5)
    make: Any = pika.BasicProperties
    outcome = fpika.run_consumer(
        handler,
        [
            Message(b"", properties=make(headers={"x-failure-attempts": attempts}))
            for attempts in (0, 2, 1, 2, 0)
        ],
    )
    assert outcome.actions == (Action.RETRY, Action.DEAD, Action.RETRY, Action.DEAD, Action.RETRY)
    assert (outcome.retried, outcome.dead) == (False, False)
    assert outcome.delay == 2, "the longest"
    (record,) = caplog.records
    assert (
        "2 of them: attempt 1 of 3, the next one is in 1 s; 2 of them: it goes to the dead letters;"
        " 1 of them: attempt 2 of 3, the next one is in 2 s" in record.getMessage()
    )


def test_a_manual_delivery_is_tried_again_if_it_was_not_settled(fpika: Pika) -> None:
    @fpika.consumer("work", retry=Retry(), ack="manual")
    def handle(delivery: Delivery) -> None:
        if delivery.text == "acked":
            delivery.ack()
        raise BOOM

    assert fpika.run_consumer(handle, b"acked").acked
    assert fpika.run_consumer(handle, b"").retried


# Logs


@pytest.mark.parametrize(
    ("error", "attempts", "level", "said"),
    [
        (BOOM, 0, "ERROR", "fails failed at message m1.*; attempt 1 of 3, the next one is in 1 s"),
        (BOOM, 1, "ERROR", "attempt 2 of 3, the next one is in 2 s"),
        (BOOM, 2, "ERROR", "it goes to the dead letters"),
        (RetryLater("busy", delay=60), 0, "INFO", "puts off message m1.*: busy; attempt 1 of 3.* in 60 s"),
        (RetryLater("busy"), 2, "WARNING", "puts off message m1.* once too often: busy; it goes to the dead"),
        (Reject("old"), 0, "WARNING", "rejects message m1.*: old; it goes to the dead letters"),
        (Requeue("old"), 0, "INFO", "requeues message m1.*: old; it goes back to the queue"),
    ],
)
def test_a_line_says_which_attempt_it_was_and_when_the_next_one_is(
    fpika: Pika, caplog: pytest.LogCaptureFixture, error: Exception, attempts: int, level: str, said: str
) -> None:
    caplog.set_level(logging.DEBUG, CONSUMER_LOG)
    handler = failing(fpika, error, retry=Retry(attempts=3))
    fpika.run_consumer(handler, b"", message_id="m1", headers={"x-failure-attempts": attempts})
    (record,) = caplog.records
    assert record.levelname == level
    assert re.search(said, record.getMessage()), record.getMessage()


def test_a_retry_that_no_consumer_has_is_a_rejection_and_says_what_to_do(
    fpika: Pika, caplog: pytest.LogCaptureFixture
) -> None:
    assert fpika.run_consumer(failing(fpika, RetryLater("busy", delay=60)), b"", message_id="m1").rejected
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    message = record.getMessage()
    assert "cannot put off message m1" in message
    assert ": busy; it is rejected." in message
    assert "@fpika.consumer('work', retry=Retry(...))" in message


def test_a_line_of_a_delivery_that_cannot_be_decoded(caplog: pytest.LogCaptureFixture) -> None:
    delivery = delivered(BAD_PROPERTIES)
    log_failure(Consumer("work", nothing, retry=Retry()), [delivery], BOOM, [Decision(Action.RETRY, 1.0)])
    assert "message without an id" in caplog.text
    assert "attempt 1 of 5" in caplog.text


def test_a_decimal_is_a_decimal() -> None:
    """That hypothesis's decimals above are what pika has of them."""
    make: Any = pika.BasicProperties
    copy = failures.retried(delivered(make(headers={"d": decimal.Decimal("1.25")})), BOOM, NOW)
    assert decoded(copy).headers["d"] == decimal.Decimal("1.25")
