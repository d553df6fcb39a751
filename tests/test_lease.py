"""What a borrower may do with a channel, and what it leaves behind."""

from __future__ import annotations

import gc
import struct
import threading
import weakref
from typing import Any

import pika
import pytest
from pika import exceptions as pika_errors

from flask_pika import ChannelReturned, ForeignChannel, Pika
from flask_pika.gate import Gate
from flask_pika.lease import PooledChannel
from flask_pika.slot import Slot, Traces
from tests.stand_ins import StandInChannel


class StandInPool:
    def __init__(self) -> None:
        self.released: list[Traces] = []
        self.slot: Slot | None = None
        self.holder: weakref.ref[object] | None = None

    def checkout(self, timeout: float | None, where: str, holder: weakref.ref[object]) -> Slot:
        assert self.slot is not None
        self.holder = holder
        return self.slot

    def release(self, slot: Slot) -> None:
        self.released.append(slot.traces)


def unconnected(_deadline: float) -> Any:
    raise AssertionError("a stand-in connects to nothing")


class Lent:
    """A lease over a stand-in channel."""

    def __init__(self) -> None:
        self.slot = Slot(unconnected, Gate())
        self.raw = StandInChannel()
        self.slot._begin_channel(self.raw)  # type: ignore[arg-type]
        self.pool = StandInPool()
        self.pool.slot = self.slot
        self.channel = PooledChannel(self.pool).borrow(None)  # type: ignore[arg-type]

    def left(self) -> Traces:
        self.channel.give_up()
        (traces,) = self.pool.released
        return traces


@pytest.mark.parametrize(
    ("call", "left"),
    [
        (lambda ch: ch.basic_publish("", "q", b""), Traces.NONE),
        (lambda ch: ch.basic_publish("", "q", b"", mandatory=True), Traces.ON_CHANNEL),
        (lambda ch: ch.basic_publish("", "q", b"", None, True), Traces.ON_CHANNEL),
        (lambda ch: ch.queue_declare("q"), Traces.NONE),
        (lambda ch: ch.queue_bind("q", "e"), Traces.NONE),
        (lambda ch: ch.exchange_declare("e"), Traces.NONE),
        (lambda ch: ch.is_open, Traces.NONE),
        (lambda ch: ch.channel_number, Traces.NONE),
        (lambda ch: ch.confirm_delivery(), Traces.ON_CHANNEL),
        (lambda ch: ch.tx_select(), Traces.ON_CHANNEL),
        (lambda ch: ch.basic_qos(prefetch_count=1), Traces.ON_CHANNEL),
        (lambda ch: ch.basic_consume("q", print), Traces.ON_CHANNEL),
        (lambda ch: ch.add_on_return_callback(print), Traces.ON_CHANNEL),
        (lambda ch: ch.close(), Traces.ON_CHANNEL),
        (lambda ch: ch.a_method_of_a_later_pika(), Traces.ON_CHANNEL),
        (lambda ch: ch.queue_declare("q", exclusive=True), Traces.ON_CONNECTION),
        (lambda ch: ch.queue_declare("q", False, False, True), Traces.ON_CONNECTION),
    ],
)
def test_what_is_called_decides_what_is_left(call: Any, left: Traces) -> None:
    lent = Lent()
    call(lent.channel)
    assert lent.left() is left


def test_every_public_method_of_pikas_channel_has_its_place() -> None:
    from flask_pika.calls import TRACES

    public = {
        name
        for name, value in vars(pika.adapters.blocking_connection.BlockingChannel).items()
        if not name.startswith("_") and callable(value)
    }
    assert public == set(TRACES)


@pytest.mark.parametrize(
    ("error", "left"),
    [
        (pika_errors.UnroutableError([]), Traces.NONE),
        (pika_errors.NackError([]), Traces.ON_CHANNEL),
        (TypeError("body"), Traces.NONE),
        (struct.error("priority"), Traces.NONE),
        (pika_errors.UnsupportedAMQPFieldException("x", "y"), Traces.NONE),
        (pika_errors.ShortStringTooLong("x"), Traces.NONE),
        (pika_errors.ChannelClosedByBroker(404, "NOT_FOUND"), Traces.ON_CHANNEL),
        (pika_errors.StreamLostError("gone"), Traces.ON_CONNECTION),
        (AssertionError("pika's own"), Traces.ON_CONNECTION),
        (KeyboardInterrupt(), Traces.ON_CONNECTION),
        (SystemExit(), Traces.ON_CONNECTION),
    ],
)
def test_an_error_out_of_a_publish_decides_too(error: BaseException, left: Traces) -> None:
    lent = Lent()
    lent.raw.error = error
    with pytest.raises(type(error)):
        lent.channel.basic_publish("", "q", b"")
    assert lent.left() is left


def test_an_argument_error_of_a_call_that_expects_an_answer_costs_the_channel() -> None:
    lent = Lent()
    lent.raw.error = TypeError("queue")
    with pytest.raises(TypeError):
        lent.channel.queue_declare("q")
    assert lent.left() is Traces.ON_CHANNEL


def test_an_exception_in_the_with_block_does_not_break_a_sound_channel() -> None:
    lent = Lent()
    with pytest.raises(ZeroDivisionError), lent.channel as channel:
        channel.basic_publish("", "q", b"")
        raise ZeroDivisionError
    assert lent.pool.released == [Traces.NONE]


def got(tag: int) -> tuple[Any, Any, bytes]:
    return pika.spec.Basic.GetOk(delivery_tag=tag), pika.BasicProperties(), b""


@pytest.mark.parametrize(
    ("settle", "left"),
    [
        (lambda ch: None, {1, 2, 3}),
        (lambda ch: ch.basic_ack(2), {1, 3}),
        (lambda ch: ch.basic_ack(delivery_tag=2, multiple=True), {3}),
        (lambda ch: ch.basic_ack(0, True), set()),
        (lambda ch: ch.basic_nack(3, multiple=True), set()),
        (lambda ch: ch.basic_reject(1, True), {2, 3}),
    ],
)
def test_deliveries_are_remembered_until_they_are_settled(settle: Any, left: set[int]) -> None:
    lent = Lent()
    for tag in (1, 2, 3):
        lent.raw.result = got(tag)
        lent.channel.basic_get("q")
    lent.raw.result = got(4)
    lent.channel.basic_get("q", auto_ack=True)
    lent.channel.basic_get("q", True)
    lent.raw.result = None
    settle(lent.channel)
    assert lent.slot.unacked == left
    lent.left()


def test_an_empty_queue_name_is_not_the_last_borrowers_queue() -> None:
    lent = Lent()
    with pytest.raises(ValueError, match="declared none"):
        lent.channel.basic_get("")
    with pytest.raises(ValueError, match="declared none"):
        lent.channel.queue_bind(queue="", exchange="e")
    assert not lent.raw.calls
    lent.raw.result = got(1)
    lent.channel.queue_declare("")
    lent.channel.basic_get("", True)
    lent.left()


def test_after_the_return_the_channel_is_dead_in_the_borrowers_hands() -> None:
    lent = Lent()
    bound = lent.channel.basic_publish
    connection = lent.channel.connection
    assert repr(lent.channel.is_open) == "True"
    lent.channel.give_up()
    for use in (
        lambda: bound("", "q", b""),
        lambda: lent.channel.queue_declare("q"),
        lambda: lent.channel.channel_number,
        lambda: lent.channel.something_new(),
        lambda: connection.is_open,
        lambda: lent.channel.__enter__(),
    ):
        with pytest.raises(ChannelReturned, match="borrow another"):
            use()
    assert isinstance(ChannelReturned("x"), pika_errors.ChannelWrongStateError)
    assert not lent.channel.is_open
    assert lent.channel.is_closed
    assert "returned" in repr(lent.channel)
    assert not lent.raw.calls


def test_returned_twice_it_is_in_the_pool_once() -> None:
    lent = Lent()
    with lent.channel:
        assert lent.channel.give_up()
    assert not lent.channel.give_up()
    assert not lent.channel.give_up(broken=True)
    assert lent.pool.released == [Traces.NONE]


def test_returned_by_many_threads_at_once_it_is_in_the_pool_once() -> None:
    for _ in range(50):
        lent = Lent()
        barrier = threading.Barrier(8)

        def give_up(lent: Lent = lent, barrier: threading.Barrier = barrier) -> None:
            barrier.wait(10)
            lent.channel.give_up()

        threads = [threading.Thread(target=give_up) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert len(lent.pool.released) == 1


def test_returned_while_a_call_is_under_way_it_comes_home_after_the_call_and_broken() -> None:
    lent = Lent()

    def other_thread_returns_it() -> None:
        thread = threading.Thread(target=lent.channel.give_up)
        thread.start()
        thread.join(10)
        assert not lent.pool.released, "a channel in the middle of a call was given to somebody else"
        with pytest.raises(ChannelReturned):
            lent.channel.basic_publish("", "q", b"")

    lent.raw.during = other_thread_returns_it
    lent.channel.basic_publish("", "q", b"")
    assert lent.pool.released == [Traces.ON_CONNECTION]


def test_a_callback_may_return_the_channel_that_it_runs_on() -> None:
    lent = Lent()
    lent.raw.during = lent.channel.give_up
    lent.channel.start_consuming()
    assert lent.pool.released == [Traces.ON_CONNECTION]


def test_dropped_without_a_return_it_is_gone_though_pika_holds_its_callbacks() -> None:
    lent = Lent()
    held: list[object] = []
    lent.raw.__dict__["basic_consume"] = lambda *args: held.append(args)
    lent.channel.basic_consume("q", print)
    assert lent.pool.holder is not None
    assert lent.pool.holder() is lent.channel
    del lent.channel
    gc.collect()
    assert lent.pool.holder() is None


def test_calls_of_several_threads_may_overlap_in_any_order() -> None:
    # connection.add_callback_threadsafe() is for other threads, while the owner is in a call.
    lent = Lent()
    entered, leave = threading.Event(), threading.Event()

    def call_of_another_thread() -> None:
        entered.set()
        assert leave.wait(10)

    def call_of_the_owner() -> None:
        # Began after the other one, and ends after it.
        leave.set()
        other.join(10)

    lent.raw.during = call_of_another_thread
    other = threading.Thread(target=lent.channel.queue_declare, args=("q",))
    other.start()
    assert entered.wait(10)
    lent.raw.during = call_of_the_owner
    lent.channel.queue_declare("q")
    lent.channel.give_up()
    assert lent.pool.released == [Traces.NONE], "the return waits for a call that has ended"


def test_what_is_returned_as_broken_is_marked_before_a_call_that_ends_can_take_it_home() -> None:
    lent = Lent()

    class Watched(dict[str, Any]):
        def __setitem__(self, name: str, value: Any) -> None:
            super().__setitem__(name, value)
            if name == "_taken":
                assert lent.slot.traces is Traces.ON_CONNECTION
                seen.append(name)

    seen: list[str] = []
    lent.channel.__dict__ = Watched(lent.channel.__dict__)
    lent.channel.give_up(broken=True)
    assert seen


def test_a_callback_is_given_the_lease_and_not_pikas_channel() -> None:
    lent = Lent()
    got: list[Any] = []
    callbacks: dict[str, Any] = {}
    lent.raw.__dict__["basic_consume"] = lambda queue, on_message_callback: callbacks.update(
        consume=on_message_callback
    )
    lent.raw.__dict__["add_on_return_callback"] = lambda callback: callbacks.update(returned=callback)
    lent.channel.basic_consume("q", lambda *args: got.append(args))
    callbacks["consume"](lent.raw, "method", "properties", b"body")
    lent.channel.basic_consume(queue="q", on_message_callback=lambda *args: got.append(args))
    callbacks["consume"](lent.raw, "method", "properties", b"body")
    lent.channel.add_on_return_callback(lambda *args: got.append(args))
    callbacks["returned"](lent.raw, "method", "properties", b"body")
    assert got == [(lent.channel, "method", "properties", b"body")] * 3


def test_consuming_is_a_call_of_the_lease_and_keeps_it() -> None:
    lent = Lent()
    lent.raw.result = iter([("method", "properties", b"1"), ("method", "properties", b"2")])
    consumption = lent.channel.consume("q")
    lease = lent.channel
    del lent.channel
    gc.collect()
    assert next(consumption)[2] == b"1"
    lease.give_up()
    with pytest.raises(ChannelReturned):
        next(consumption)


def test_an_interrupted_consume_costs_the_connection() -> None:
    lent = Lent()

    def interrupted() -> Any:
        yield ("method", "properties", b"1")
        raise KeyboardInterrupt

    lent.raw.result = interrupted()
    with pytest.raises(KeyboardInterrupt):
        list(lent.channel.consume("q"))
    assert lent.left() is Traces.ON_CONNECTION


def test_consuming_ends_when_pika_ends_it() -> None:
    lent = Lent()
    lent.raw.result = iter([("method", "properties", b"1")])
    assert [body for _, _, body in lent.channel.consume("q")] == [b"1"]
    assert lent.left() is Traces.ON_CHANNEL


def test_the_connection_keeps_the_lease_alive() -> None:
    lent = Lent()
    connection = lent.channel.connection
    del lent.channel
    gc.collect()
    assert lent.pool.holder is not None
    assert lent.pool.holder() is not None
    del connection
    gc.collect()
    assert lent.pool.holder() is None


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("process_data_events", Traces.NONE),
        ("sleep", Traces.NONE),
        ("call_later", Traces.ON_CONNECTION),
        ("add_on_connection_blocked_callback", Traces.ON_CONNECTION),
        ("channel", Traces.ON_CONNECTION),
        ("close", Traces.ON_CONNECTION),
    ],
)
def test_what_is_done_to_the_connection_decides_too(name: str, left: Traces) -> None:
    lent = Lent()
    raw_connection = StandInChannel()
    lent.raw.__dict__["connection"] = raw_connection
    getattr(lent.channel.connection, name)()
    assert raw_connection.calls == [name]
    assert lent.left() is left


def test_tools_that_patch_a_channel_keep_working() -> None:
    lent = Lent()
    seen = []
    raw_publish = lent.raw.basic_publish

    def traced(*args: object) -> None:
        seen.append("raw")
        raw_publish(*args)

    # As opentelemetry does it to channels as they are made, and to a channel that it is handed.
    lent.raw.basic_publish = traced  # type: ignore[attr-defined]
    original = lent.channel.basic_publish

    def traced_lease(*args: Any) -> None:
        seen.append("lease")
        original(*args)

    lent.channel.basic_publish = traced_lease  # type: ignore[method-assign, assignment]
    lent.channel.basic_publish("", "q", b"")
    assert seen == ["lease", "raw"]
    assert lent.raw.calls == ["basic_publish"]
    assert lent.left() is Traces.NONE


def test_a_private_attribute_costs_the_connection() -> None:
    lent = Lent()
    lent.raw.__dict__["_impl"] = "impl"
    assert str(lent.channel._impl) == "impl"
    assert lent.left() is Traces.ON_CONNECTION


def test_what_was_not_lent_is_refused_and_left_alone() -> None:
    raw = StandInChannel()
    for give_back in (Pika().return_channel, Pika().return_broken_channel):
        with pytest.raises(ForeignChannel, match="StandInChannel"):
            give_back(raw)  # type: ignore[arg-type]
    assert not raw.calls
    assert issubclass(ForeignChannel, TypeError)
