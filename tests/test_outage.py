"""The broker goes away, comes back, freezes and blocks; no slot is lost, nobody waits past a deadline."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable

import pytest
from pika import exceptions as pika_errors

from flask_pika import BrokerUnavailable, Pika, PoolTimeout
from tests.conftest import make_app, wait_for
from tools.proxy import Proxy
from tools.rabbitmq_node import RabbitMQNode, free_port

#: What a loaded machine may add to a deadline. The bounds that are tested are shorter than what would happen
#: without them.
SLACK = 5.0
#: Class and method, AMQP 0-9-1, section 1.5.2.1.
_CHANNEL_OPEN = b"\x00\x14\x00\x0a"


def publish(fpika: Pika) -> None:
    with fpika.channel() as ch:
        ch.queue_declare("durable", durable=True)
        ch.basic_publish("", "durable", b"x", mandatory=True)


def all_slots_work(fpika: Pika, size: int) -> None:
    held = [fpika.channel(timeout=60) for _ in range(size)]
    for ch in held:
        ch.basic_publish("", "durable", b"x", mandatory=True)
    with pytest.raises(PoolTimeout):
        fpika.channel(timeout=0)
    for ch in held:
        fpika.return_channel(ch)


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("end", ["kill", "stop"])
def test_after_the_brokers_return_the_first_checkout_works(
    fragile_node: RabbitMQNode, end: str, both_ways: str
) -> None:
    _app, fpika = make_app(fragile_node.params, {"pool_size": 3, "confirm_delivery": True})
    all_slots_ready = [fpika.channel() for _ in range(3)]
    all_slots_ready[0].queue_declare("durable", durable=True)
    held = all_slots_ready.pop()
    for ch in all_slots_ready:
        fpika.return_channel(ch)

    getattr(fragile_node, end)()
    for _ in range(3):
        with pytest.raises(BrokerUnavailable) as caught:
            publish(fpika)
        assert "connection refused" in str(caught.value)
        assert isinstance(caught.value, pika_errors.AMQPConnectionError)
    with pytest.raises(pika_errors.AMQPError):
        held.basic_publish("", "durable", b"x")
    fpika.return_channel(held)

    fragile_node.start()
    publish(fpika)  # the first one, at once
    all_slots_work(fpika, 3)


def test_many_threads_on_a_broker_that_is_away_fail_together_and_come_back_together(
    fragile_node: RabbitMQNode,
) -> None:
    _app, fpika = make_app(fragile_node.params, {"pool_size": 4, "confirm_delivery": True})
    publish(fpika)
    fragile_node.kill()
    stop = threading.Event()
    outcomes: list[str] = []
    wrong: list[BaseException] = []

    def work() -> None:
        while not stop.is_set():
            try:
                publish(fpika)
            except BrokerUnavailable:
                outcomes.append("away")
            except BaseException as exc:
                wrong.append(exc)
            else:
                outcomes.append("published")

    threads = [threading.Thread(target=work) for _ in range(32)]
    for thread in threads:
        thread.start()
    wait_for(lambda: len(outcomes) >= 64, "every thread hears that it is away")
    fragile_node.start()
    wait_for(lambda: outcomes.count("published") >= 64, "every thread publishes again")
    stop.set()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert not wrong
    all_slots_work(fpika, 4)


class Silent:
    """A port that takes connections and says nothing, as a host that is stuck; it counts them."""

    def __init__(self) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self.taken: list[socket.socket] = []
        self._thread = threading.Thread(target=self._take)
        self._thread.start()

    def _take(self) -> None:
        while True:
            try:
                self.taken.append(self._server.accept()[0])
            except OSError:
                return

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._server.close()
        for peer in self.taken:
            peer.close()


def test_threads_do_not_wait_out_the_connect_time_one_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    with Silent() as silent:
        params = {"host": "127.0.0.1", "port": silent.port, "stack_timeout": 1}
        _app, fpika = make_app(params, {"pool_size": 2})
        pool = fpika._state().pool()
        asked: list[float] = []
        failed = []

        def clock() -> float:
            now = time.monotonic()
            asked.append(now)
            return now

        def work() -> None:
            try:
                fpika.channel()
            except BrokerUnavailable as exc:
                failed.append(str(exc))

        began = time.monotonic()
        threads = [threading.Thread(target=work) for _ in range(40)]
        monkeypatch.setattr(pool, "_clock", clock)
        with pool._lock:  # none goes on before all have asked: who asks late would try with good reason
            for thread in threads:
                thread.start()
            wait_for(lambda: len(asked) == 40, "all to have asked")
        for thread in threads:
            thread.join(60)
        assert len(failed) == 40
        assert all("timed out" in text and str(silent.port) in text for text in failed)
        # One after another, two at a time, would take 20 s; the first two try for all.
        assert time.monotonic() - began < 20
        assert len(silent.taken) <= 2, "a storm"


def test_a_caller_without_patience_fails_alone(
    fragile_node: RabbitMQNode, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    _app, fpika = make_app(fragile_node.params, {"pool_size": 1})
    with pytest.raises(BrokerUnavailable):
        fpika.channel(timeout=0)
    assert not caplog.records, "the broker is up"
    got = []

    def hurry() -> None:
        with pytest.raises(BrokerUnavailable):
            fpika.channel(2)  # a second of it goes to the goodbye that the frozen broker does not answer

    held = fpika.channel()
    # The short one's time shall end while it connects, however long it takes until both wait, in this order.
    monkeypatch.setattr(
        fpika._state().pool(), "_wait", lambda waiter, _seconds: waiter.served.acquire(timeout=60)
    )
    with fragile_node.frozen():
        short = threading.Thread(target=hurry)
        short.start()
        wait_for(lambda: fpika.stats().waiting == 1, "the short one waits")
        patient = threading.Thread(target=lambda: got.append(fpika.channel(60)))
        patient.start()
        wait_for(lambda: fpika.stats().waiting == 2, "the patient one waits")
        fpika.return_broken_channel(held)
        short.join(30)
    patient.join(60)
    assert len(got) == 1, "it was refused, because somebody else was in a hurry"
    fpika.return_channel(got[0])


@pytest.mark.parametrize("pool", [None, {"pool_size": 2}], ids=["unpooled", "pooled"])
def test_a_checkout_ends_at_its_deadline_though_the_peer_is_silent(pool: dict[str, object] | None) -> None:
    with Silent() as silent:
        _app, fpika = make_app({"host": "127.0.0.1", "port": silent.port}, pool)
        began = time.monotonic()
        with pytest.raises(BrokerUnavailable, match="timed out"):
            fpika.channel(timeout=0.3)
        assert time.monotonic() - began < 0.3 + SLACK


def test_a_host_that_the_resolver_never_answers_for_ends_at_the_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answered = threading.Event()

    def hang(*args: object, **kwargs: object) -> list[object]:
        answered.wait(30)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    _app, fpika = make_app({"host": "rabbit.example"}, {"pool_size": 1})
    with pytest.raises(BrokerUnavailable, match="not resolved in time"):
        fpika.channel(timeout=0.2)
    answered.set()


def test_a_frozen_broker_holds_a_call_for_the_heartbeat_and_a_return_for_a_moment(
    fragile_node: RabbitMQNode,
) -> None:
    _app, fpika = make_app(
        {**fragile_node.params, "heartbeat": 1}, {"pool_size": 2, "confirm_delivery": True}
    )
    publish(fpika)
    one, other = fpika.channel(), fpika.channel()
    with fragile_node.frozen():
        began = time.monotonic()
        with pytest.raises(pika_errors.AMQPConnectionError):
            one.basic_publish("", "durable", b"x")
        fpika.return_channel(one)
        assert time.monotonic() - began < 2 * (1 + 5) + SLACK, "pika looks every heartbeat + 5 s, twice"

        began = time.monotonic()
        fpika.return_broken_channel(other)
        assert time.monotonic() - began < 1 + SLACK
        with pytest.raises(BrokerUnavailable):
            fpika.channel(timeout=1)
    publish(fpika)
    all_slots_work(fpika, 2)


def test_a_broker_that_takes_the_connection_and_opens_no_channel_is_unavailable(
    fragile_node: RabbitMQNode,
) -> None:
    _app, fpika = make_app(fragile_node.params, {"pool_size": 1})
    with fpika.channel() as ch:
        ch.basic_qos(prefetch_count=1)  # so that the next borrower needs a new channel on it
    with fragile_node.frozen():
        began = time.monotonic()
        with pytest.raises(BrokerUnavailable):
            fpika.channel(timeout=0.5)
        assert time.monotonic() - began < 0.5 + SLACK
    publish(fpika)


class _CutsAtChannelOpen(Proxy):
    """Cuts so many connections in the moment in which a channel is asked for."""

    times = 0

    def passes(self, connection: int, to_target: bool, data: bytes) -> None:
        if self.times and to_target and _CHANNEL_OPEN in data:
            self.times -= 1
            self.cut(connection)


@pytest.mark.usefixtures("patient")
def test_a_network_that_fails_while_a_channel_is_opened_is_tried_once_more(
    node: RabbitMQNode, both_ways: str
) -> None:
    with _CutsAtChannelOpen(node.port) as proxy:
        _app, fpika = make_app(
            {**node.params, "port": proxy.port}, {"pool_size": 2, "confirm_delivery": True}
        )
        proxy.times = 1
        publish(fpika)
        assert proxy.connections == 2
        with fpika.channel():  # which works, and another one, which is opened
            proxy.times = 2
            with pytest.raises(BrokerUnavailable, match="no channel could be opened"):
                fpika.channel(timeout=60)
        assert proxy.connections == 4
        all_slots_work(fpika, 2)
        fpika.close()


def set_alarm(node: RabbitMQNode, watermark: str, raised: bool) -> None:
    """Have the memory alarm raised or cleared; its connections hear of it a moment after the command ends."""
    node.ctl("set_vm_memory_high_watermark", watermark)
    alarms = "length(rabbit_alarm:get_alarms())."
    wait_for(lambda: (node.evaluate(alarms) != "0") is raised, f"the alarm, raised: {raised}")


def test_a_blocked_broker_ends_a_call_at_the_blocked_connection_timeout(fragile_node: RabbitMQNode) -> None:
    _app, fpika = make_app(
        {**fragile_node.params, "blocked_connection_timeout": 1}, {"pool_size": 2, "confirm_delivery": True}
    )
    publish(fpika)
    set_alarm(fragile_node, "0.0000001", True)
    try:
        began = time.monotonic()
        with pytest.raises(pika_errors.ConnectionBlockedTimeout):
            publish(fpika)
        assert time.monotonic() - began < 30, "else it would be for ever"
    finally:
        set_alarm(fragile_node, "0.4", False)
    publish(fpika)
    all_slots_work(fpika, 2)


def test_of_a_list_of_nodes_one_that_is_up_is_found(node: RabbitMQNode) -> None:
    down = {"host": "127.0.0.1", "port": free_port()}
    _app, fpika = make_app([down, node.params, down, "amqp://no-such-host.invalid"], {"pool_size": 4})
    held = [fpika.channel() for _ in range(4)]
    for ch in held:
        fpika.return_channel(ch)
    _other_app, none = make_app([down, "amqp://no-such-host.invalid"], {"pool_size": 1})
    with pytest.raises(BrokerUnavailable) as caught:
        none.channel()
    assert "connection refused" in str(caught.value)
    assert "does not resolve" in str(caught.value)


@pytest.mark.usefixtures("patient")
def test_idle_connections_outlive_any_idle_time(node: RabbitMQNode) -> None:
    """Longer than the broker's patience with a silent client, which another connection shows."""
    import pika

    # With a heartbeat of one, it would rightly give up a process that stands still for two seconds.
    heartbeat = 4
    _app, fpika = make_app({**node.params, "heartbeat": heartbeat}, {"pool_size": 4})
    held = [fpika.channel() for _ in range(4)]
    for ch in held:
        fpika.return_channel(ch)
    silent = pika.BlockingConnection(
        pika.ConnectionParameters(
            "127.0.0.1", node.port, heartbeat=heartbeat, client_properties={"name": "silent"}
        )
    )
    sock = silent._impl._transport._sock  # type: ignore[union-attr]

    def closed_by_broker() -> bool:
        try:
            return bool(sock.recv(4096, socket.MSG_DONTWAIT) == b"")
        except BlockingIOError:
            return False
        except ConnectionError:
            return True

    # These were opened before: without heartbeats, they would be given up before this one.
    wait_for(closed_by_broker, "the broker gives up a client without heartbeats", 60)
    one_more = time.monotonic() + heartbeat
    wait_for(lambda: time.monotonic() > one_more, "one more heartbeat")
    with pytest.raises(pika_errors.AMQPError):
        silent.process_data_events(0)
    for _ in range(1000):
        with fpika.channel() as ch:
            ch.basic_publish("", "nowhere", b"x")
    held = [fpika.channel() for _ in range(4)]
    for ch in held:
        ch.queue_declare("idle", auto_delete=True)
        fpika.return_channel(ch)
    assert fpika.stats().opened == 4, "none of them died"


@pytest.mark.usefixtures("patient")
def test_what_died_while_idle_is_replaced_at_checkout(node: RabbitMQNode) -> None:
    _app, fpika = make_app(node.params, {"pool_size": 3}, name="to-be-closed")
    held = [fpika.channel() for _ in range(3)]
    for ch in held:
        fpika.return_channel(ch)
    node.ctl("close_all_connections", "an operator's whim")
    for _ in range(3):
        with fpika.channel() as ch:
            ch.queue_declare("replaced", auto_delete=True)
    held = [fpika.channel() for _ in range(3)]
    for ch in held:
        ch.queue_declare("replaced", auto_delete=True)
        fpika.return_channel(ch)
    assert fpika.stats().discarded == 3


def interrupt(action: Callable[[], object], when: Callable[[], bool]) -> None:
    """Run an action in this, the main thread, and interrupt it as Ctrl-C does when a condition holds."""

    def watch() -> None:
        wait_for(when, "the moment of the interrupt")
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    watcher = threading.Thread(target=watch)
    watcher.start()
    with pytest.raises(KeyboardInterrupt):
        action()
    watcher.join(30)


def test_ctrl_c_while_waiting_for_a_channel_leaves_nothing_behind(node: RabbitMQNode) -> None:
    _app, fpika = make_app(node.params, {"pool_size": 1})
    with fpika.channel():
        interrupt(fpika.channel, lambda: fpika.stats().waiting == 1)
        assert fpika.stats().waiting == 0
    with fpika.channel(timeout=0):
        pass


# What pika had opened when it was interrupted is in nobody's hands but the collector's, which closes it.
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ctrl_c_while_connecting_leaves_nothing_behind() -> None:
    with Silent() as silent:
        _app, fpika = make_app({"host": "127.0.0.1", "port": silent.port}, {"pool_size": 1})
        interrupt(fpika.channel, lambda: len(silent.taken) == 1)
        assert fpika.stats().open == 0
