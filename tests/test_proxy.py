"""The proxy of the fault lab does to connections what it says, and nothing else."""

from __future__ import annotations

import contextlib
import itertools
import random
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from tests.conftest import sockets, wait_for
from tools.proxy import Proxy
from tools.rabbitmq_node import free_port

#: Seconds in which something would have come, were it on its way. Where a machine is slow, this may fail to
#: notice what is wrong, but not find wrong what is right.
SHORT = 0.1


class Peer:
    """A server on loopback that keeps what each client says, and says it back, unless it is told not to."""

    def __init__(self, *, echo: bool = True, reads: bool = True) -> None:
        self.echo, self.reads = echo, threading.Event()
        if reads:
            self.reads.set()
        self.heard: list[bytearray] = []
        self.ends: dict[int, str] = {}
        self.clients: list[socket.socket] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self._threads = [threading.Thread(target=self._serve, name="peer")]

    def __enter__(self) -> Peer:
        self._threads[0].start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.reads.set()
        self._server.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        for client in self.clients:
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for one in (self._server, *self.clients):
            one.close()

    def _serve(self) -> None:
        for index in itertools.count():
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            self.clients.append(client)
            self.heard.append(bytearray())
            self._threads.append(threading.Thread(target=self._talk, args=(index, client), name="peer"))
            self._threads[-1].start()

    def _talk(self, index: int, client: socket.socket) -> None:
        try:
            while self.reads.wait() and (data := client.recv(65536)):
                self.heard[index] += data
                if self.echo:
                    client.sendall(data)
            self.ends[index] = "end"
            if self.echo:
                client.shutdown(socket.SHUT_WR)
        except ConnectionResetError:
            self.ends[index] = "reset"
        except OSError:
            self.ends[index] = "broken"


@pytest.fixture
def peer() -> Iterator[Peer]:
    with Peer() as made:
        yield made


@pytest.fixture
def proxy(peer: Peer) -> Iterator[Proxy]:
    with Proxy(peer.port) as made:
        yield made


@pytest.fixture
def dial() -> Iterator[Callable[[Proxy], socket.socket]]:
    """Connects to a proxy; closes it all in the end."""
    with contextlib.ExitStack() as stack:

        def connect(proxy: Proxy) -> socket.socket:
            return stack.enter_context(socket.create_connection(("127.0.0.1", proxy.port), timeout=20))

        yield connect


Dial = Callable[[Proxy], socket.socket]


def read(sock: socket.socket, size: int) -> bytes:
    """So many bytes, or fewer if it ends before."""
    data = bytearray()
    while len(data) < size and (more := sock.recv(size - len(data))):
        data += more
    return bytes(data)


def is_echoed(sock: socket.socket, text: bytes = b"hello") -> bool:
    sock.sendall(text)
    return read(sock, len(text)) == text


def hears_nothing(sock: socket.socket) -> bool:
    return not select.select([sock], [], [], SHORT)[0]


def how_it_ended(sock: socket.socket) -> str:
    """Read up to the end, and what sort of end it is."""
    try:
        while sock.recv(65536):
            pass
    except ConnectionResetError:
        return "reset"
    return "end"


def fill(sock: socket.socket, most: int = 64 << 20) -> bytes:
    """Send until nothing more is taken, for a while; what was sent."""
    sent, block = bytearray(), random.randbytes(65536)
    sock.setblocking(False)
    while len(sent) < most and select.select([], [sock], [], 3 * SHORT)[1]:
        sent += block[: sock.send(block)]
    sock.settimeout(20)
    return bytes(sent)


# Passing on


def test_all_that_is_said_arrives_in_both_directions_as_it_was_said(proxy: Proxy, dial: Dial) -> None:
    client, data = dial(proxy), random.randbytes(3 << 20)
    sender = threading.Thread(target=client.sendall, args=(data,))
    sender.start()
    assert read(client, len(data)) == data
    sender.join()


def test_a_listener_is_told_before_it_arrives_and_of_nothing_else(peer: Peer, dial: Dial) -> None:
    class Listening(Proxy):
        told = bytearray()
        early = True

        def passes(self, connection: int, to_target: bool, data: bytes) -> None:
            if to_target:
                assert connection == 1
                self.told += data
                self.early &= sum(map(len, peer.heard)) < len(self.told)

    with Listening(peer.port) as proxy:
        client = dial(proxy)
        assert is_echoed(client)
        assert proxy.early
        proxy.freeze()
        client.sendall(b"frozen")
        assert hears_nothing(client)
        assert proxy.told == b"hello"
        proxy.silence()
        proxy.thaw()
        client.sendall(b"lost")
        assert hears_nothing(client)
        assert proxy.told == b"hello"


def test_connections_are_counted_and_those_that_ended_are_not_present(proxy: Proxy, dial: Dial) -> None:
    first = dial(proxy)
    assert is_echoed(first)
    second = dial(proxy)
    assert is_echoed(second)
    assert (proxy.connections, proxy.present) == (2, [1, 2])
    first.close()
    wait_for(lambda: proxy.present == [2], "the end of the first")
    assert proxy.connections == 2


def test_an_end_is_passed_on_after_what_was_said(peer: Peer, proxy: Proxy, dial: Dial) -> None:
    client, data = dial(proxy), random.randbytes(1 << 20)
    client.sendall(data)
    client.shutdown(socket.SHUT_WR)
    wait_for(lambda: peer.ends, "the end")
    assert peer.heard[0] == data
    assert peer.ends == {0: "end"}


def test_where_nobody_listens_clients_see_the_end_and_the_port_stays(dial: Dial) -> None:
    port = free_port()  # none of the system's own, of which another process may get it
    with Proxy(port) as proxy:
        for _ in range(2):
            client = dial(proxy)
            client.sendall(b"hello")
            assert how_it_ended(client) in ("end", "reset")
        assert (proxy.connections, proxy.present) == (0, [])
        with socket.create_server(("127.0.0.1", port)) as server:
            client = dial(proxy)
            server.settimeout(20)
            with server.accept()[0] as accepted:
                accepted.sendall(b"here")
                assert read(client, 4) == b"here"


# Ends


def test_a_cut_is_an_end_for_both_sides_and_new_connections_are_taken(
    peer: Peer, proxy: Proxy, dial: Dial
) -> None:
    clients = [dial(proxy) for _ in range(3)]
    assert all(map(is_echoed, clients))
    proxy.cut()
    proxy.cut()
    assert [how_it_ended(client) for client in clients] == ["end"] * 3
    wait_for(lambda: peer.ends == {0: "end", 1: "end", 2: "end"}, lambda: str(peer.ends))
    assert is_echoed(dial(proxy))
    assert proxy.present == [4]


def test_a_cut_ends_also_who_waits_at_what_is_frozen(proxy: Proxy, dial: Dial) -> None:
    before = dial(proxy)
    assert is_echoed(before)
    proxy.freeze()
    before.sendall(b"lost")
    meanwhile = dial(proxy)
    proxy.cut()
    assert [how_it_ended(one) for one in (before, meanwhile)] == ["end", "end"]


def test_a_reset_is_one_for_both_sides(peer: Peer, proxy: Proxy, dial: Dial) -> None:
    clients = [dial(proxy) for _ in range(2)]
    assert all(map(is_echoed, clients))
    proxy.reset()
    proxy.reset()
    assert [how_it_ended(client) for client in clients] == ["reset"] * 2
    wait_for(lambda: peer.ends == {0: "reset", 1: "reset"}, lambda: str(peer.ends))


@pytest.mark.parametrize("what", ["cut", "reset"])
def test_one_connection_is_ended_by_its_number_and_the_others_go_on(
    proxy: Proxy, dial: Dial, what: str
) -> None:
    clients = []
    for _ in range(3):
        clients.append(dial(proxy))
        assert is_echoed(clients[-1])
    for _ in range(2):
        getattr(proxy, what)(2)
    assert how_it_ended(clients[1]) == ("end" if what == "cut" else "reset")
    assert proxy.present == [1, 3]
    assert is_echoed(clients[0])
    assert is_echoed(clients[2])


def test_one_is_reset_at_random_and_it_is_told_which(proxy: Proxy, dial: Dial) -> None:
    clients = {}
    for number in range(1, 4):
        clients[number] = dial(proxy)
        assert is_echoed(clients[number])
    chosen = proxy.reset_one()
    assert chosen is not None
    assert how_it_ended(clients.pop(chosen)) == "reset"
    assert all(map(is_echoed, clients.values()))
    proxy.reset()
    assert proxy.reset_one() is None


def test_who_is_refused_is_told_at_once_and_the_port_is_the_same_after(proxy: Proxy, dial: Dial) -> None:
    client, port = dial(proxy), proxy.port
    assert is_echoed(client)
    for _ in range(20):
        proxy.refuse()
        proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            dial(proxy)
        assert is_echoed(client), "those that there are go on"
        proxy.accept()
        proxy.accept()
        assert is_echoed(dial(proxy))
    assert proxy.port == port


def test_nobody_else_gets_the_port_of_a_proxy_that_refuses(proxy: Proxy) -> None:
    proxy.refuse()
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", proxy.port))


@pytest.mark.parametrize("to_target", [True, False], ids=["to the target", "to the client"])
def test_a_half_closed_connection_goes_on_in_the_other_direction(to_target: bool, dial: Dial) -> None:
    with Peer(echo=False) as peer, Proxy(peer.port) as proxy:
        client = dial(proxy)
        client.sendall(b"before")
        wait_for(lambda: peer.heard and peer.heard[0] == b"before", "what was said before")
        proxy.half_close(to_target=to_target)
        proxy.half_close(to_target=to_target)
        if to_target:
            wait_for(lambda: peer.ends == {0: "end"}, "the end")
            client.sendall(b"swallowed")
            peer.clients[0].sendall(b"after")
            assert read(client, 5) == b"after"
            peer.clients[0].close()
            assert how_it_ended(client) == "end"
            assert peer.heard[0] == b"before"
        else:
            assert how_it_ended(client) == "end"
            peer.clients[0].sendall(b"swallowed")
            client.sendall(b" and after")
            wait_for(lambda: peer.heard[0] == b"before and after", "what was said after")
            client.close()
            wait_for(lambda: peer.ends == {0: "end"}, "the end")


# Obstacles


def test_what_is_frozen_waits_and_all_of_it_arrives_after_the_thaw(
    peer: Peer, proxy: Proxy, dial: Dial
) -> None:
    client = dial(proxy)
    assert is_echoed(client)
    proxy.delay(3600)
    client.sendall(b"under way")
    proxy.freeze()
    proxy.freeze()
    proxy.delay(0)  # it is due, and waits all the same
    peer.clients[0].sendall(b"there")
    client.sendall(b"here")
    meanwhile = dial(proxy)
    meanwhile.sendall(b"meanwhile")
    assert hears_nothing(client)
    assert hears_nothing(meanwhile)
    assert [bytes(heard) for heard in peer.heard] == [b"hello"]
    assert proxy.connections == 1
    proxy.thaw()
    proxy.thaw()
    assert sorted(read(client, 18)) == sorted(b"under way" + b"there" + b"here")
    assert peer.heard[0] == b"hellounder wayhere"
    assert read(meanwhile, 9) == b"meanwhile"


def test_who_sends_to_what_is_frozen_is_blocked_in_the_end_and_nothing_is_lost(dial: Dial) -> None:
    with Peer(echo=False) as peer, Proxy(peer.port) as proxy:
        client = dial(proxy)
        client.sendall(b"hello")
        wait_for(lambda: peer.heard and peer.heard[0] == b"hello", "that it passes")
        proxy.freeze()
        sent = fill(client)
        assert len(sent) < 64 << 20
        assert peer.heard[0] == b"hello"
        proxy.thaw()
        wait_for(lambda: len(peer.heard[0]) == 5 + len(sent), "all of it")
        assert peer.heard[0][5:] == sent


def test_what_is_silent_swallows_for_good_and_passes_no_end(peer: Peer, proxy: Proxy, dial: Dial) -> None:
    client, leaver = dial(proxy), dial(proxy)
    assert is_echoed(client)
    assert is_echoed(leaver)
    proxy.delay(3600)  # what is under way is lost, too
    client.sendall(b"lost")
    proxy.silence()
    proxy.silence()
    proxy.delay(0)
    new = dial(proxy)
    for one in (client, new):
        one.sendall(b"lost")
        assert hears_nothing(one)
    wait_for(lambda: proxy.connections == 3, "that the new one is taken")
    peer.clients[0].sendall(b"lost")
    leaver.close()
    assert hears_nothing(client)
    assert not peer.ends, "the end was swallowed, too"
    assert peer.heard[0] == peer.heard[1] == b"hello"
    proxy.restore()
    assert [how_it_ended(one) for one in (client, new)] == ["end", "end"]
    assert is_echoed(dial(proxy)), "one that has lost nothing"


def test_a_delay_is_that_of_each_direction_and_keeps_the_order(proxy: Proxy, dial: Dial) -> None:
    client = dial(proxy)
    assert is_echoed(client)
    proxy.delay(0.15)
    begun = time.monotonic()
    for number in range(10):
        client.sendall(b"%d" % number)
    assert read(client, 10) == b"0123456789"
    assert time.monotonic() - begun >= 0.3
    client.sendall(b"first")
    hears_nothing(client)  # for a while; where that is a long one, it is there
    begun = time.monotonic()
    client.sendall(b"last")
    assert read(client, 9) == b"firstlast"
    assert time.monotonic() - begun >= 0.3, "it did not come along with the first"
    begun = time.monotonic()
    client.shutdown(socket.SHUT_WR)
    assert how_it_ended(client) == "end"
    assert time.monotonic() - begun >= 0.3, "an end as well"


def test_a_delay_limits_no_throughput(dial: Dial) -> None:
    data = random.randbytes(8 << 20)
    with Peer(echo=False) as peer, Proxy(peer.port) as proxy:
        proxy.delay(0.5)
        client = dial(proxy)
        begun = time.monotonic()
        client.sendall(data)
        wait_for(lambda: peer.heard and len(peer.heard[0]) == len(data), "all of it")
        taken = time.monotonic() - begun
    assert peer.heard[0] == data
    # One after the other, 128 pieces of the size that is read at a time would take 64 s.
    assert 0.5 <= taken < 20


def test_what_is_delayed_comes_at_once_when_the_delay_ends(proxy: Proxy, dial: Dial) -> None:
    client = dial(proxy)
    assert is_echoed(client)
    proxy.delay(3600)
    client.sendall(b"hello")
    assert hears_nothing(client)
    proxy.delay(0)
    assert read(client, 5) == b"hello"


def test_a_limit_is_kept_and_ends_at_once(peer: Peer, proxy: Proxy, dial: Dial) -> None:
    client, data = dial(proxy), random.randbytes(50_000)
    proxy.limit(100_000)
    begun = time.monotonic()
    client.sendall(data)
    assert read(client, len(data)) == data
    # What came first was free, and in each direction.
    assert time.monotonic() - begun >= 0.49
    for _ in range(2):
        proxy.limit(1 / 3600)
    client.sendall(data)
    wait_for(lambda: len(peer.heard[0]) > len(data), "the first byte")
    assert hears_nothing(client) or read(client, 1) == data[:1]
    proxy.limit(10_000_000)  # another one
    wait_for(lambda: len(peer.heard[0]) == 2 * len(data), "all of it")


def test_a_drip_is_a_few_bytes_at_a_time(peer: Peer, dial: Dial) -> None:
    class Listening(Proxy):
        def passes(self, connection: int, to_target: bool, data: bytes) -> None:
            sizes[len(data)] += 1

    sizes: Counter[int] = Counter()
    data = random.randbytes(7 * 20)
    with Listening(peer.port) as proxy:
        proxy.drip(7, 0.01)
        client = dial(proxy)
        begun = time.monotonic()
        client.sendall(data)
        assert read(client, len(data)) == data
        assert time.monotonic() - begun >= 0.19
        assert set(sizes) == {7}


def test_what_nobody_reads_fills_little_memory_and_holds_up_nobody_else(dial: Dial) -> None:
    with Peer(echo=False, reads=False) as deaf, Proxy(deaf.port) as proxy:
        client = dial(proxy)
        wait_for(lambda: len(deaf.clients) == 1, "the first")
        other, sent = dial(proxy), bytearray()

        def waiting() -> int:
            # More of it is taken after a while, when it was the proxy that stood still.
            sent.extend(fill(client))
            return next(one.to_target.size for one in proxy._connections if one.number == 1)

        wait_for(lambda: waiting() >= (1 << 20), "a proxy that is full")
        wait_for(lambda: len(deaf.clients) == 2, "the other")
        deaf.clients[1].sendall(b"hello")
        assert read(other, 5) == b"hello"
        assert waiting() < (1 << 20) + 65536
        deaf.reads.set()
        wait_for(lambda: len(deaf.heard[0]) == len(sent), "all of it")
    assert deaf.heard[0] == sent


def test_restored_it_is_as_it_was(proxy: Proxy, dial: Dial) -> None:
    client = dial(proxy)
    assert is_echoed(client)
    proxy.delay(3600)
    proxy.drip(1, 3600)
    proxy.freeze()
    proxy.refuse()
    client.sendall(b"waits")
    proxy.restore()
    assert read(client, 5) == b"waits"
    proxy.silence()
    proxy.restore()
    assert is_echoed(dial(proxy))


# Its thread


def test_it_sleeps_while_nothing_may_happen(peer: Peer, dial: Dial) -> None:
    class Counting(Proxy):
        turns = 0

        def _turn(self) -> float | None:
            self.turns += 1
            return super()._turn()

    with Counting(peer.port) as proxy:
        idle, frozen, ended, delayed = (dial(proxy) for _ in range(4))
        assert all(map(is_echoed, (idle, frozen, ended, delayed)))
        proxy.delay(3600)
        ended.shutdown(socket.SHUT_WR)
        delayed.sendall(b"delayed")
        for is_frozen in (False, True):
            if is_frozen:
                proxy.freeze()
                frozen.sendall(b"frozen")
                frozen.close()
                dial(proxy)
            before = proxy.turns
            assert hears_nothing(idle)
            assert proxy.turns - before < 10


def test_controls_may_come_from_any_thread_and_at_any_time(proxy: Proxy, dial: Dial) -> None:
    client, data = dial(proxy), random.randbytes(2 << 20)
    client.settimeout(100)  # it is for all that is sent, and six threads have the processor, too
    stop = threading.Event()

    def bother(*acts: Callable[[], object]) -> None:
        for act in itertools.cycle(acts):
            if stop.is_set():
                return
            act()

    threads = [
        threading.Thread(target=bother, args=acts)
        for acts in (
            (proxy.freeze, proxy.thaw),
            (proxy.refuse, proxy.accept),
            (lambda: proxy.delay(0.001), lambda: proxy.delay(0)),
            (lambda: proxy.limit(1e8), lambda: proxy.drip(4096, 1e-5), lambda: proxy.drip(0, 0)),
            (lambda: proxy.cut(77), lambda: proxy.reset(78)),
        )
    ]
    threads.append(threading.Thread(target=client.sendall, args=(data,)))
    for thread in threads:
        thread.start()
    try:
        assert read(client, len(data)) == data
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_a_listener_may_use_the_controls(peer: Peer, dial: Dial) -> None:
    class Cutting(Proxy):
        def passes(self, connection: int, to_target: bool, data: bytes) -> None:
            if not to_target:
                self.cut(connection)

    with Cutting(peer.port) as proxy:
        client = dial(proxy)
        client.sendall(b"hello")
        assert how_it_ended(client) == "end"


def test_it_leaves_neither_a_thread_nor_a_socket_whatever_waits(peer: Peer, dial: Dial) -> None:
    with Proxy(peer.port) as first:
        assert is_echoed(dial(first))
    before, threads = sockets(), set(threading.enumerate())
    with Proxy(peer.port) as proxy, contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(socket.create_connection(("127.0.0.1", proxy.port), 20)).sendall(b"hello")
        wait_for(lambda: proxy.connections == 3, "all of them")
        proxy.delay(3600)
        proxy.freeze()
        stack.enter_context(socket.create_connection(("127.0.0.1", proxy.port), 20)).sendall(b"hello")
        stack.pop_all().close()
    wait_for(lambda: len(peer.ends) == 4, "the other side's ends")
    for client in peer.clients:
        client.close()
    assert not {one for one in threading.enumerate() if one.name == "proxy"} - threads
    assert sockets() <= before
    proxy.freeze()  # too late: nothing to be done
    proxy.accept()
    assert sockets() <= before
