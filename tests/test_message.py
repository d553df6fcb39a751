"""What a message may be: bodies, properties either way, and one clear error for what AMQP cannot carry."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import pika
import pytest
from pika import exceptions as pika_errors

from flask_pika import FlaskPikaError, InvalidMessage, Message
from flask_pika.message import PROPERTIES, check_address, checked_properties, encode_body

SECRET = "s3cret-bödy"
UTC = datetime.timezone.utc
NOON = datetime.datetime(2024, 5, 1, 12, 30, 15, 999_999, tzinfo=UTC)
LONELY = "\ud800"
# Longer than Python agrees to print.
ENORMOUS = 10**5000

EVERY_PROPERTY: dict[str, Any] = {
    "content_type": "text/csv",
    "content_encoding": "gzip",
    "headers": {"tenant": "a"},
    "delivery_mode": 1,
    "priority": 9,
    "correlation_id": "c",
    "reply_to": "r",
    "expiration": 1.5,
    "message_id": "m",
    "timestamp": NOON,
    "type": "t",
    "user_id": "u",
    "app_id": "a",
    "cluster_id": "k",
}
# As AMQP has them.
ON_THE_WIRE = {**EVERY_PROPERTY, "expiration": "1500", "timestamp": 1714566615}


def named(**properties: Any) -> pika.BasicProperties:
    return checked_properties(properties, None, "text/plain")


def given(**properties: Any) -> pika.BasicProperties:
    return checked_properties({}, pika.BasicProperties(**properties), "text/plain")


def error_of(call: Callable[..., object], *args: Any, **kwargs: Any) -> str:
    with pytest.raises(InvalidMessage) as caught:
        call(*args, **kwargs)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, FlaskPikaError)
    return str(caught.value)


# Bodies


@pytest.mark.parametrize(
    "body", [b"", b"\x00\xff", bytearray(b"ab"), memoryview(b"ab"), memoryview(b"abcd")[::2]]
)
def test_bytes_of_any_kind_go_as_they_are(body: bytes | bytearray | memoryview) -> None:
    encoded = encode_body(body, json.dumps)
    assert encoded == (bytes(body), "application/octet-stream")
    assert type(encoded[0]) is bytes


def test_a_buffer_can_be_used_again_at_once() -> None:
    buffer = bytearray(b"first")
    body, _ = encode_body(buffer, json.dumps)
    view, _ = encode_body(memoryview(buffer), json.dumps)
    buffer[:] = b"other"
    assert (body, view) == (b"first", b"first")


@pytest.mark.parametrize("body", ["", "plain", "snö ☃ 𝄞"])
def test_text_goes_as_utf_8(body: str) -> None:
    assert encode_body(body, json.dumps) == (body.encode(), "text/plain; charset=utf-8")


@pytest.mark.parametrize("body", [None, True, 0, 1.5, [], {"a": [1, None, "ö"]}, (1, 2)])
def test_anything_else_goes_as_json(body: object) -> None:
    encoded, content_type = encode_body(body, json.dumps)
    assert content_type == "application/json"
    assert json.loads(encoded) == (list(body) if isinstance(body, tuple) else body)


def test_json_is_the_apps_own() -> None:
    assert encode_body({1}, lambda body: f"<{body}>") == (b"<{1}>", "application/json")


def loop() -> list[object]:
    endless: list[object] = [SECRET]
    endless.append(endless)
    return endless


def deep() -> list[object]:
    # Made when needed: the collector would walk it after each test.
    nested: list[object] = [SECRET]
    for _ in range(100_000):
        nested = [nested]
    return nested


def as_utf_8(body: object) -> str:
    return json.dumps(body, ensure_ascii=False)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: {"k": {SECRET}},
            "a dict and cannot be encoded: Object of type set is not JSON serializable",
        ),
        (object, "an object and cannot be encoded"),
        (lambda: {(SECRET,): 1}, "a dict and cannot be encoded"),
        (loop, "a list and cannot be encoded: Circular reference"),
        (deep, "a list and cannot be encoded: maximum recursion depth"),
        (lambda: SECRET + LONELY, "a str and cannot be encoded: it has lone surrogates"),
        (lambda: {"k": SECRET + LONELY}, "a dict and cannot be encoded: it has lone surrogates"),
    ],
    ids=["set", "object", "key", "loop", "deep", "surrogate", "surrogate within"],
)
def test_a_body_that_cannot_be_encoded_is_described_and_not_shown(
    make: Callable[[], object], said: str
) -> None:
    text = error_of(encode_body, make(), as_utf_8)
    assert text.startswith(f"the body is {said}")
    assert "s3cret" not in text


def test_what_the_apps_json_raises_on_its_own_account_comes_through() -> None:
    def broken(_body: object) -> str:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        encode_body({}, broken)


# Properties


def test_the_tests_know_every_property() -> None:
    assert set(PROPERTIES) == set(EVERY_PROPERTY) == set(vars(pika.BasicProperties()))


@pytest.mark.parametrize("name", PROPERTIES)
def test_every_property_has_its_amqp_name(name: str) -> None:
    result = named(**{name: EVERY_PROPERTY[name]})
    expected = {"content_type": "text/plain", "delivery_mode": 2, name: ON_THE_WIRE[name]}
    assert result == pika.BasicProperties(**expected)


@pytest.mark.parametrize("name", PROPERTIES)
def test_every_property_can_come_in_pikas_object(name: str) -> None:
    value = ON_THE_WIRE[name]
    expected = {"content_type": "text/plain", "delivery_mode": 2, name: value}
    assert given(**{name: value}) == pika.BasicProperties(**expected)


def test_all_properties_at_once_either_way() -> None:
    whole = pika.BasicProperties(**ON_THE_WIRE)
    assert named(**EVERY_PROPERTY) == whole
    assert given(**ON_THE_WIRE) == whole


def test_what_is_given_is_not_changed() -> None:
    headers = {"a": 1}
    properties = pika.BasicProperties(headers=headers, expiration="5")
    for result in (checked_properties({}, properties, "x"), named(headers=headers)):
        result.headers["b"] = 2
        assert result is not properties
    assert headers == {"a": 1}
    assert vars(properties) == vars(pika.BasicProperties(headers={"a": 1}, expiration="5"))


def test_messages_are_persistent_and_have_the_bodys_type_by_default() -> None:
    plain = pika.BasicProperties(content_type="text/plain", delivery_mode=2)
    assert named() == given() == plain
    assert named(priority=None, headers=None, content_type=None, delivery_mode=None) == plain


def test_an_id_and_a_time_are_left_to_whoever_sends_it() -> None:
    assert (named().message_id, named().timestamp) == (None, None)


@pytest.mark.parametrize(
    ("seconds", "milliseconds"),
    [
        (0, "0"),
        (60, "60000"),
        (0.25, "250"),
        (0.0004, "0"),
        (1e-3, "1"),
        (1.001, "1001"),
        (4294967.295, "4294967295"),
    ],
)
def test_expiration_is_in_seconds_as_all_times_here(seconds: float, milliseconds: str) -> None:
    assert named(expiration=seconds).expiration == milliseconds


@pytest.mark.parametrize("milliseconds", ["0", "1", "999", "1001", "60000", "4294967295", "1000000007"])
def test_pikas_own_expiration_keeps_every_millisecond(milliseconds: str) -> None:
    assert given(expiration=milliseconds).expiration == milliseconds


@pytest.mark.parametrize("ways", [named, given])
def test_a_timestamp_may_be_a_datetime_of_any_time_zone(ways: Callable[..., pika.BasicProperties]) -> None:
    elsewhere = NOON.astimezone(datetime.timezone(datetime.timedelta(hours=-7)))
    stamps = [ways(timestamp=value).timestamp for value in (1714566615, NOON, elsewhere)]
    assert stamps == [1714566615] * 3


@pytest.mark.parametrize("timestamp", [0, 2**63 - 1, datetime.datetime(1970, 1, 1, tzinfo=UTC)])
def test_timestamps_from_the_first_to_the_last(timestamp: Any) -> None:
    expected = timestamp if isinstance(timestamp, int) else 0
    assert named(timestamp=timestamp).timestamp == expected


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"text": "ö", "bytes": b"\xff", "none": None, "yes": True, "": ""},
        {"least": -(2**63), "most": 2**63 - 1, "when": NOON},
        {"list": [1, [2, {"in": []}]], "dict": {"in": {"in": b""}}},
        MappingProxyType({"any": "mapping"}),
        {"ö" * 127: 1},
    ],
)
def test_headers_carry_whatever_amqp_has_a_type_for(headers: Any) -> None:
    assert named(headers=headers).headers == dict(headers)


TEXT_PROPERTIES = [name for name in PROPERTIES if isinstance(ON_THE_WIRE[name], str) and name != "expiration"]
WRONG_TEXT = [5, b"bytes", ["x"], LONELY, "x" * 256, "ö" * 128, True, ENORMOUS]
WRONG: dict[str, list[object]] = {
    **dict.fromkeys(TEXT_PROPERTIES, WRONG_TEXT),
    "headers": [
        5,
        "text",
        [("a", 1)],
        {1: 1},
        {ENORMOUS: 1},
        {None: 1},
        {b"k": 1},
        {"k" * 256: 1},
        {LONELY: 1},
        {"k": object()},
        {"k": (1, 2)},
        {"k": {1, 2}},
        {"k": 2**63},
        {"k": -(2**63) - 1},
        {"k": ENORMOUS},
        {"k": LONELY},
        {"k": [LONELY]},
        {"k": {"in": {1: 2}}},
        {"k": loop()},
        {"k": datetime.datetime(1960, 1, 1, tzinfo=UTC)},
        {"k": MappingProxyType({})},
    ],
    "delivery_mode": [0, 3, -1, "2", 2.0, True, [], ENORMOUS],
    "priority": [-1, 256, "1", 1.0, False, [], ENORMOUS],
    "expiration": [
        -1,
        -0.001,
        "60000",
        float("nan"),
        float("inf"),
        True,
        [],
        4294967.296,
        2**70,
        ENORMOUS,
        datetime.timedelta(seconds=5),
    ],
    "timestamp": [
        -1,
        2**63,
        1.5,
        "2024-05-01",
        True,
        [],
        datetime.datetime(2024, 5, 1),
        datetime.datetime(1969, 12, 31, tzinfo=UTC),
        datetime.date(2024, 5, 1),
        ENORMOUS,
    ],
}
WRONG_IN_PIKAS_OBJECT: dict[str, list[object]] = {
    **WRONG,
    "expiration": [60000, 1.5, "", "1.5", "-1", "²", "1 s", "4294967296", "9" * 400, "9" * 5000, b"5"],
}


@pytest.mark.parametrize("name", PROPERTIES)
def test_every_wrong_property_is_refused_by_its_name(name: str) -> None:
    for value in WRONG[name]:
        assert name in error_of(named, **{name: value})


@pytest.mark.parametrize("name", PROPERTIES)
def test_every_wrong_property_of_pikas_object_is_refused_by_its_name(name: str) -> None:
    for value in WRONG_IN_PIKAS_OBJECT[name]:
        properties = pika.BasicProperties()
        setattr(properties, name, value)
        assert name in error_of(checked_properties, {}, properties, "text/plain")


def test_the_tests_know_a_wrong_value_of_every_property() -> None:
    assert set(WRONG) == set(WRONG_IN_PIKAS_OBJECT) == set(PROPERTIES)


def test_headers_are_named_and_their_values_are_not_shown() -> None:
    for value in ({SECRET}, SECRET + LONELY, [SECRET, object()], deep()):
        text = error_of(named, headers={"ok": 1, "tenant": value})
        assert "headers['tenant']" in text
        assert "s3cret" not in text


@pytest.mark.parametrize(
    ("typo", "advice"),
    [
        ("prioritty", "did you mean 'priority'?"),
        ("content-type", "did you mean 'content_type'?"),
        ("header", "did you mean 'headers'?"),
        ("Expiration", "did you mean 'expiration'?"),
        ("zzz", "expected one of content_type, "),
    ],
)
def test_an_unknown_property_is_told_the_nearest(typo: str, advice: str) -> None:
    text = error_of(named, **{typo: SECRET})
    assert repr(typo) in text
    assert advice in text
    assert SECRET not in text


def test_properties_come_one_way_or_the_other() -> None:
    text = error_of(checked_properties, {"priority": 1, "type": "t"}, pika.BasicProperties(), "x")
    assert text == "give properties, or priority, type by name, not both"
    wrong: Any = {"priority": 1}
    assert error_of(checked_properties, {}, wrong, "x").startswith("properties is a dict")


# Where it goes


@pytest.mark.parametrize("text", ["", "x", "a.b.#", "ö" * 127, "x" * 255])
def test_addresses_are_texts_of_up_to_255_bytes(text: str) -> None:
    check_address(text, text, True)
    check_address(text, text, False)


def test_every_wrong_address_is_refused_by_its_name() -> None:
    for value in (None, *WRONG_TEXT):
        assert error_of(check_address, value, "", True).startswith("exchange ")
        assert error_of(check_address, "", value, True).startswith("routing_key ")


def test_mandatory_is_yes_or_no() -> None:
    values: list[object] = [None, 0, 1, "yes", [], ENORMOUS]
    for value in values:
        assert error_of(check_address, "", "", value).startswith("mandatory is ")


# The object


def test_a_message_is_what_it_was_given() -> None:
    properties = pika.BasicProperties()
    message = Message([1], exchange="e", routing_key="k", mandatory=False, properties=properties, priority=3)
    assert (message.body, message.exchange, message.routing_key) == ([1], "e", "k")
    assert (message.mandatory, message.properties, message.named) == (False, properties, {"priority": 3})
    plain = Message(b"x")
    assert (plain.exchange, plain.routing_key, plain.mandatory) == ("", "", True)
    assert (plain.properties, plain.named) == (None, {})


def test_its_repr_shows_where_it_goes_and_nothing_that_may_be_secret() -> None:
    message = Message(SECRET, exchange="orders", routing_key="made", headers={"token": SECRET})
    assert repr(message) == "<Message to exchange 'orders' with routing key 'made'>"


def test_an_invalid_message_is_no_error_of_the_brokers() -> None:
    # A caller that tries again on AMQPError would try for ever.
    assert not issubclass(InvalidMessage, pika_errors.AMQPError)


def test_an_empty_message_id_is_none() -> None:
    for properties in (
        checked_properties({"message_id": ""}, None, "text/plain"),
        checked_properties({}, pika.BasicProperties(message_id=""), "text/plain"),
    ):
        assert properties.message_id is None
