"""Dead letters: what they say, as text and as lines of a file. Nothing of a message is lost in between."""

from __future__ import annotations

import base64
import datetime
import decimal
import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pika import BasicProperties, frame
from pika.compat import long

from flask_pika.dead_export import BadLine, decode_line, encode_line
from flask_pika.dead_letters import Failure, Letter, without_count
from flask_pika.dead_show import Table, as_json, as_page
from flask_pika.pika_internals import keeping_properties

UTC = datetime.timezone.utc


def letter_of(encoded: bytes, body: bytes = b"", place: int = 1) -> Letter:
    """As the reader makes it of what comes."""
    header = frame.Header(1, len(body), BasicProperties())
    payload = struct.pack(">HxxQ", BasicProperties.INDEX, len(body)) + encoded
    data = struct.pack(">BHI", header.frame_type, 1, len(payload)) + payload + b"\xce"
    with keeping_properties() as as_it_came:
        decoded: Any = frame.decode_frame(data)[1]
        properties = decoded.properties
        kept = without_count(properties, as_it_came(properties))
    return Letter(place, 7, "", "orders.dead", properties, kept, body)


def letter(body: bytes = b"", **named: Any) -> Letter:
    return letter_of(b"".join(BasicProperties(**named).encode()), body)


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
short = st.text(st.characters(exclude_categories=["Cs"]), max_size=60).filter(
    lambda value: len(value.encode()) <= 255
)
names = short | st.sampled_from(["$bytes", "$table", "$", "x-death", ""])
leaves = st.one_of(
    text,
    st.binary(max_size=20),
    st.booleans(),
    st.none(),
    st.integers(-(2**63), 2**63 - 1),
    st.integers(-(2**31), 2**31 - 1).map(long),
    st.datetimes(datetime.datetime(1970, 1, 1), datetime.datetime(9999, 1, 1)).map(
        lambda moment: moment.replace(microsecond=0, tzinfo=UTC)
    ),
    st.builds(
        lambda raw, places: decimal.Decimal(raw).scaleb(-places),
        st.integers(-(2**31), 2**31 - 1),
        st.integers(0, 9),
    ),
)
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3)
)
properties = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(("content_type", "correlation_id", "message_id", "type", "user_id"), short),
        "headers": st.dictionaries(names, values, max_size=4),
        "delivery_mode": st.sampled_from([1, 2]),
        "priority": st.integers(0, 255),
        "expiration": st.integers(0, 2**32).map(str),
        "timestamp": st.integers(0, 2**63 - 1),
    },
)


@given(properties, st.binary() | text.map(str.encode))
def test_a_line_is_all_of_a_message(named: dict[str, Any], body: bytes) -> None:
    dead = letter(body, **named)
    line = encode_line(dead)
    assert "\n" not in line
    assert "encoded_base64" not in json.loads(line), "JSON, with its marks, is enough"
    found, found_body = decode_line(line.encode())
    assert b"".join(found.encode()) == dead.encoded
    assert found_body == body


def table(*fields: tuple[bytes, bytes]) -> bytes:
    content = b"".join(bytes([len(key)]) + key + value for key, value in fields)
    return struct.pack(">HI", 0x2000, len(content)) + content


@pytest.mark.parametrize(
    "encoded",
    [
        table((b"pi", b"d" + struct.pack(">d", 3.14))),
        table((b"none", b"d" + struct.pack(">d", float("nan")))),
        table((b"far", b"T" + struct.pack(">Q", 2**63))),
        table((b"small", b"b\x01")),
        table((b"latin", b"S\x00\x00\x00\x01\xe9")),
        table((b"\xe9", b"V")),
        table((b"\xe9", b"F\x00\x00\x00\x03\x01\xe9V")),
    ],
    ids=["float", "nan", "no time of Python's", "one byte", "no UTF-8", "a name that is none", "in a table"],
)
def test_what_pika_cannot_tell_is_kept_as_it_came(encoded: bytes) -> None:
    dead = letter_of(encoded, b"body")
    assert dead.encoded == encoded
    found, body = decode_line(encode_line(dead).encode())
    assert b"".join(found.encode()) == encoded
    assert body == b"body"
    assert b"".join(dead.revived().encode()) == encoded
    assert "body" in as_page(dead, 1)


def test_a_text_is_read_as_one_and_what_is_none_as_base64() -> None:
    readable = json.loads(encode_line(letter("née\n".encode(), headers={"tenant": "a", "n": 1})))
    assert readable["body"] == "née\n"
    assert readable["headers"] == {"tenant": "a", "n": 1}
    assert base64.b64decode(json.loads(encode_line(letter(b"\xff")))["body_base64"]) == b"\xff"


def test_what_the_broker_counts_of_its_deliveries_is_not_the_messages() -> None:
    dead = letter(headers={"x-delivery-count": 3, "x-acquired-count": 4, "tenant": "a"})
    assert dead.headers == {"tenant": "a"}
    assert dead.encoded == letter(headers={"tenant": "a"}).encoded
    assert letter(headers={"x-delivery-count": 3}).encoded == letter().encoded


BAD = {
    b"": "no JSON",
    b'{"body": "x", "properties": {}': "no JSON",
    b"\xff\xfe": "no JSON",
    b"[" * 100_000: "no JSON",
    b"[1]": "an array; expected an object",
    b'{"properties": {}}': "either body or body_base64",
    b'{"properties": {}, "body": "", "body_base64": ""}': "either body or body_base64",
    b'{"properties": {}, "body": 1}': "body is a number",
    b'{"properties": {}, "body": "\\ud800"}': "body is no UTF-8",
    b'{"properties": {}, "body_base64": "?"}': "body_base64 is no base64",
    b'{"body": ""}': "properties: nothing",
    b'{"properties": {"colour": 1}, "body": ""}': "there is no 'colour'",
    b'{"properties": {"type": 1}, "body": ""}': "type is a number",
    b'{"properties": {"priority": true}, "body": ""}': "priority is True",
    b'{"properties": {"priority": 256}, "body": ""}': "priority is 256",
    b'{"properties": {"headers": {}}, "body": ""}': "headers stand by themselves",
    b'{"properties": {}, "headers": [], "body": ""}': "headers: an array",
    b'{"properties": {}, "headers": {"a": {"$bytes": "?"}}, "body": ""}': "no $bytes: '?'",
    b'{"properties": {}, "headers": {"a": {"$when": 1}}, "body": ""}': "'$when' is no type",
    b'{"properties": {}, "headers": {"a": {"$datetime": "now"}}, "body": ""}': "no $datetime",
    b'{"properties": {}, "headers": {"a": {"$decimal": "NaN"}}, "body": ""}': "cannot be sent",
    b'{"properties": {}, "headers": {"a": 1.5}, "body": ""}': "cannot be sent",
    b'{"properties": {}, "headers": {"a": 9999999999999999999999}, "body": ""}': "cannot be sent",
    b'{"properties": {"type": "%s"}, "body": ""}' % (b"x" * 256): "cannot be sent",
    b'{"encoded_base64": "?", "body": ""}': "encoded_base64",
    b'{"encoded_base64": "AAAA", "body": ""}': "encoded_base64",
    b'{"encoded_base64": 1, "body": ""}': "encoded_base64",
    b'{"properties": {}, "body": "", "boddy": ""}': "unknown: boddy",
}


@pytest.mark.parametrize("line", BAD, ids=BAD.values())
def test_a_wrong_line_is_refused_and_says_why(line: bytes) -> None:
    with pytest.raises(BadLine) as caught:
        decode_line(line)
    assert BAD[line] in str(caught.value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["$bytes", "$datetime", "$decimal", "$long", "$pairs", "$table", "a", "body", "properties"]
            ),
            inner,
            max_size=2,
        )
    ),
)


@given(
    st.binary(max_size=30)
    | st.fixed_dictionaries({"body": st.just(""), "properties": st.just({}), "headers": json_values}).map(
        lambda line: json.dumps(line).encode()
    )
    | json_values.map(lambda line: json.dumps(line).encode())
)
def test_whatever_is_in_a_file_is_a_message_or_a_wrong_line(line: bytes) -> None:
    try:
        found, _ = decode_line(line)
    except BadLine:
        return
    assert found.encode()


# What it says about its failure


def death(queue: str, reason: str, exchange: str, key: str) -> dict[str, Any]:
    moment = datetime.datetime(2026, 5, 1, 12, 0, 0, tzinfo=UTC)
    return {
        "queue": queue,
        "reason": reason,
        "exchange": exchange,
        "routing-keys": [key],
        "count": 1,
        "time": moment,
    }


FAILED = {
    "x-failure-attempts": 5,
    "x-failure-last-time": "2026-05-01T11:00:00.000+00:00",
    "x-failure-type": "KeyError",
    "x-failure-message": "'item'",
    "x-failure-exchange": "orders",
    "x-failure-routing-key": "order.created",
}


def test_what_the_worker_wrote_is_told() -> None:
    dead = letter(headers={**FAILED, "x-failure-reason": "attempts"})
    moment = "2026-05-01T11:00:00.000+00:00"
    assert dead.failure == Failure(moment, 5, "attempts", "KeyError", "'item'", "orders", "order.created")


def test_what_the_broker_wrote_is_told_where_the_worker_could_not() -> None:
    deaths = [death("orders.email", "delivery_limit", "", "orders.email"), death("a", "expired", "shop", "k")]
    assert letter(headers={"x-death": deaths}).failure == Failure(
        "2026-05-01T12:00:00+00:00", None, "delivery_limit", None, None, "shop", "k"
    )
    # It failed, waited, and then killed its worker, again and again.
    both = letter(headers={**FAILED, "x-death": deaths}).failure
    assert (both.reason, both.attempts, both.type) == ("delivery_limit", 5, "KeyError")
    assert (both.exchange, both.routing_key) == ("orders", "order.created")


@pytest.mark.parametrize("deaths", [None, 1, [], [1], {}, [{"routing-keys": 1}], [{"routing-keys": []}]])
def test_what_anybody_wrote_harms_nobody(deaths: object) -> None:
    dead = letter(headers={"x-death": deaths, "x-failure-attempts": "many"})
    assert dead.failure == Failure()
    assert not dead.revived().values("x-")


def test_headers_and_properties_are_matched_as_one_writes_them() -> None:
    moment = datetime.datetime(2026, 5, 1, tzinfo=UTC)
    headers = {"n": 5, "yes": True, "when": moment, "type": "header", "none": None, "raw": b"\xffa"}
    dead = letter(headers=headers, message_id="id-1", type="property")
    assert dead.matches([])
    assert dead.matches([("n", "5"), ("yes", "true"), ("when", "2026-05-01T00:00:00+00:00")])
    assert dead.matches([("message_id", "id-1"), ("type", "header"), ("none", ""), ("raw", "\\xffa")])
    assert not dead.matches([("n", "5"), ("yes", "false")])
    assert not dead.matches([("n", "5"), ("n", "6")])
    assert not dead.matches([("headers", "5")])


def test_one_is_revived_with_where_it_came_from_and_no_more() -> None:
    told = letter(
        headers={**FAILED, "x-failure-reason": "attempts", "tenant": "a", "CC": ["other"]}, user_id="u"
    )
    revived = letter_of(b"".join(told.revived().encode()))
    assert revived.headers == {
        "tenant": "a",
        "x-failure-exchange": "orders",
        "x-failure-routing-key": "order.created",
    }
    assert revived.properties.user_id is None
    by_broker = letter(headers={"x-death": [death("q", "rejected", "shop", "k")], "x-first-death-queue": "q"})
    assert letter_of(b"".join(by_broker.revived().encode())).headers == {
        "x-failure-exchange": "shop",
        "x-failure-routing-key": "k",
    }


# As text


def test_what_is_shown_does_nothing_to_the_terminal() -> None:
    evil = "\x1b[2J\x07evil‮"
    dead = letter(
        f'{{"{evil[:0]}a": 1}}'.encode(),
        message_id=evil,
        headers={evil: evil, "x-failure-type": evil, "x-failure-message": evil, "x-failure-traceback": evil},
    )
    raw = letter(evil.encode())
    for shown in (Table().rows([dead]), as_page(dead, 1), as_page(raw, 1), as_json(dead)):
        assert not {"\x1b", "\x07", "‮"} & set(shown)
        assert "evil" in shown or "bytes" in shown


def test_a_body_is_shown_as_what_it_is_and_not_without_end() -> None:
    assert '"a": [' in as_page(letter(b'{"a": [1]}'), 1)
    assert "plain" in as_page(letter(b"plain"), 1)
    assert "{broken" in as_page(letter(b"{broken"), 1)
    assert "ff 00 41" in as_page(letter(b"\xff\x00A"), 1)
    assert len(as_page(letter(b"\xff" * 10_000_000), 1)) < 5000
    assert len(as_page(letter(b"x" * 10_000_000), 1)) < 20_000
    deaths = [death("q", "expired", "shop", "k")]
    assert '"routing-keys": ["k"], "count": 1, "time": "2026-05-01T12:00:00+00:00"' in as_page(
        letter(headers={"x-death": deaths}), 1
    )
    assert "9990000 characters more" in as_page(letter(b"x" * 10_000_000), 1)
    assert len(as_page(letter(headers={"long": "x" * 100_000}), 1)) < 5000


def test_a_table_is_as_wide_as_its_first_page_and_no_wider_than_its_columns() -> None:
    table = Table()
    first = table.rows([letter(message_id="x" * 200)]).splitlines()
    assert len(first) == 2
    assert "…" in first[1]
    (second,) = table.rows([letter(message_id="y")]).splitlines()
    assert second.startswith("1  y   ")
