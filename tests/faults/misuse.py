"""A crowd that uses a pool in every way that one should not, and keeps books of what it was lent."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import gc
import itertools
import random
import re
import socket
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import pika.exceptions
from flask import Flask

from flask_pika import BrokerUnavailable, ChannelReturned, PoolTimeout
from tests.conftest import sockets
from tests.faults.searching import told

SIZE = 4
THREADS = 100
#: What a PoolTimeout says: how many are in use, and for each who holds it.
_IN_USE = re.compile(r"(\d+) are in use")
_HOLDER = re.compile(r" in thread (borrower|returner|MainThread|flask-pika-keeper|\d+)")
#: How many findings of a kind are told.
_TOLD = 5


class Lender(Protocol):
    """What is used: a ``Pika`` object, or a stand-in for one."""

    def channel(self, timeout: float | None = None) -> Any: ...
    def return_channel(self, channel: Any) -> None: ...
    def return_broken_channel(self, channel: Any) -> None: ...
    def in_use(self) -> int: ...
    def close(self) -> None: ...


class Loan(NamedTuple):
    """A channel that is lent, and what it stands for: pika's own channel, and its connection."""

    channel: Any
    things: tuple[object, object]

    def shut_socket(self) -> None:
        """End the connection as a network does: neither side says anything."""
        connection: Any = self.things[1]
        connection._impl._transport._sock.shutdown(socket.SHUT_RDWR)


class OverlapError(Exception):
    """What was lent is lent to somebody else already."""


class Mischief(Exception):
    """What a borrower raises."""


class Crowd:
    """A hundred threads on a pool of four.

    :param leases: how many loans there shall be, in all.
    :param hold: seconds that one is held, on average.
    :param patience: seconds that a checkout may take, of one who waits.
    :param impatient: the share of loans before which somebody does not wait as long as it takes.
    :param publishes: whether borrowers publish. Where two may have the same channel, they had better not.
    :param until: the kind of finding at which all go home; empty: any.
    """

    def __init__(
        self,
        lender: Lender,
        app: Flask,
        queue: str,
        *,
        kinds: Sequence[Kind],
        seed: int,
        leases: int,
        hold: float,
        patience: float = 60.0,
        impatient: float = 0.2,
        publishes: bool = True,
        until: str = "",
    ) -> None:
        self.lender, self.app, self.queue, self.kinds, self.seed = lender, app, queue, kinds, seed
        self.leases, self.hold, self.patience, self.impatient = leases, hold, patience, impatient
        self.publishes, self.until = publishes, until
        self.findings: dict[str, list[str]] = {}
        #: How many messages were confirmed, and of how many nobody knows.
        self.confirmed = self.unknown = 0
        self.lent = 0
        self.refused: collections.Counter[str] = collections.Counter()
        self.done: collections.Counter[str] = collections.Counter()
        self._lock = threading.Lock()
        self._owners: dict[object, str] = {}
        #: What was done with each thing before, for failures.
        self._past: weakref.WeakKeyDictionary[object, list[str]] = weakref.WeakKeyDictionary()
        self._doing: dict[str, str] = {}
        #: One that has ended, over a loan that it has dropped, is named by its number.
        self._idents: set[str] = set()
        self._tickets = iter(range(leases))
        self._numbers = itertools.count()
        self._stopped = threading.Event()
        self._before = sockets(), set(threading.enumerate())
        self.helpers = concurrent.futures.ThreadPoolExecutor(SIZE, "returner")

    # What is found

    def find(self, kind: str, what: str) -> None:
        """Note what should not have happened, and let everybody go home."""
        with self._lock:
            self.findings.setdefault(kind, []).append(what)
        if self.until in ("", kind):
            self._stopped.set()

    def check(self) -> None:
        """Nothing was found."""
        told = "\n".join(
            f"{kind}: {len(those)}\n  " + "\n  ".join(those[:_TOLD]) for kind, those in self.findings.items()
        )
        assert not self.findings, f"FAULTS_SEED={self.seed}\n{told}"

    # For borrowers

    def take(self) -> Loan:
        """A loan that is marked as this thread's, and works."""
        return self.mark(self.lender.channel(timeout=self.patience))

    def mark(self, channel: Any) -> Loan:
        """Note whose it is; a note of somebody else's is a double lend."""
        slot = channel.__dict__.get("_slot")
        own = channel if slot is None else slot.channel
        loan = Loan(channel, (own, own.connection))
        me = threading.current_thread().name
        with self._lock:
            others = [self._owners[thing] for thing in loan.things if thing in self._owners]
            if not others:
                self._owners.update(dict.fromkeys(loan.things, me))
                self.lent += 1
                self._past.setdefault(loan.things[1], []).append(self._doing.get(me, me))
            most = len(self._owners) // 2
        if others:
            self.find("lent twice", f"{own!r} was lent to {me}, and is {others[0]}'s")
            raise OverlapError
        if most > SIZE:
            self.find("more than there are", f"{most} were lent at once")
        return loan

    def use(self, loan: Loan) -> None:
        """The first use: it must work, since nobody but its borrower has broken it."""
        try:
            self.publish(loan)
        except pika.exceptions.AMQPError as exc:
            self.find("lent dead", f"{exc!r} of the first call; its past: {self._past.get(loan.things[1])}")
        self._stopped.wait(random.expovariate(1 / self.hold))

    def publish(self, loan: Loan) -> None:
        if not self.publishes:
            return
        try:
            loan.channel.basic_publish("", self.queue, b"%d" % next(self._numbers), mandatory=True)
        except BaseException:
            with self._lock:
                self.unknown += 1
            raise
        with self._lock:
            self.confirmed += 1

    def unmark(self, loan: Loan) -> None:
        """To be called before the return: after it, it may be somebody else's already."""
        with self._lock:
            for thing in loan.things:
                self._owners.pop(thing, None)

    @contextlib.contextmanager
    def until_return(self, loan: Loan) -> Iterator[None]:
        """The mark goes when the block ends, however it ends."""
        try:
            self.use(loan)
            yield
        finally:
            self.unmark(loan)

    # The crowd

    def run(self) -> Crowd:
        """All loans, and what must hold after them."""
        threads = [
            threading.Thread(target=self._work, args=(number,), name=f"borrower {number}")
            for number in range(THREADS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(self.patience + 240)
            if thread.is_alive():
                self.find("hangs", thread.name)
        self.helpers.shutdown()
        self._check_permits()
        self.lender.close()
        self._check_leaks()
        return self

    def _work(self, number: int) -> None:
        rng, name = random.Random(f"{self.seed} {number}"), threading.current_thread().name
        with self._lock:
            self._idents.add(str(threading.get_ident()))
        while not self._stopped.is_set():
            with self._lock:
                ticket = next(self._tickets, None)
            if ticket is None:
                return
            try:
                if rng.random() < self.impatient:
                    self._doing[name] = "in vain"
                    self._in_vain(rng.uniform(0.0, 0.01))
                kind = rng.choice(self.kinds)
                self._doing[name] = kind.__name__
                kind(self)
                with self._lock:
                    self.done[kind.__name__] += 1
            except OverlapError:
                return
            except PoolTimeout as exc:
                self.find("starved", str(exc))
            except Exception:
                self.find("an error that nobody should have", traceback.format_exc())

    def _in_vain(self, timeout: float) -> None:
        """Somebody who does not wait for long. Whoever gets something all the same gives it back."""
        try:
            channel = self.lender.channel(timeout=timeout)
        except PoolTimeout as exc:
            self._refuse(exc)
        except BrokerUnavailable as exc:  # there was a permit, and no time to connect
            with self._lock:
                self.refused[type(exc).__name__] += 1
        else:
            self.unmark(self.mark(channel))
            self.lender.return_channel(channel)

    def _refuse(self, exc: PoolTimeout) -> None:
        told.info("%r", exc)
        with self._lock:
            self.refused[type(exc).__name__] += 1
        found = _IN_USE.search(str(exc))
        holders = [who for who in _HOLDER.findall(str(exc)) if not who.isdigit() or who in self._idents]
        if found is None or len(holders) != int(found[1]):
            self.find("holders not named", str(exc))

    # What must hold in the end

    def _check_permits(self) -> None:
        gc.collect()
        if not self._comes_true(lambda: self.lender.in_use() == 0):
            self.find("permit lost", f"{self.lender.in_use()} are in use, and nobody uses them")
        loans: list[Loan] = []
        try:
            while len(loans) < SIZE:
                loans.append(self.take())
            self._refuse(self._refused())
        except OverlapError:
            pass
        except PoolTimeout as exc:
            self.find("permit lost", f"it lends {len(loans)} at once: {exc}")
        except BrokerUnavailable as exc:
            self.find("an error that nobody should have", f"{exc}")
        for loan in loans:
            self.unmark(loan)
            self.lender.return_channel(loan.channel)

    def _refused(self) -> PoolTimeout:
        try:
            channel = self.lender.channel(timeout=0.01)
        except PoolTimeout as exc:
            return exc
        except BrokerUnavailable as exc:
            self.find("more than there are", f"one too many was to be opened: {exc}")
            return PoolTimeout("0 are in use")
        self.find("more than there are", "one too many was lent")
        self.lender.return_channel(channel)
        return PoolTimeout("0 are in use")

    def _check_leaks(self) -> None:
        def ours() -> list[str]:
            found = set(threading.enumerate()) - self._before[1]
            return [thread.name for thread in found]

        if not self._comes_true(lambda: not ours()):
            self.find("a thread is left", f"{ours()}")
        if not self._comes_true(lambda: gc.collect() >= 0 and not sockets() - self._before[0]):
            self.find("a socket is left", f"{sockets() - self._before[0]}")

    def _comes_true(self, condition: Callable[[], object]) -> bool:
        deadline = time.monotonic() + self.patience
        while not condition():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True


Kind = Callable[[Crowd], None]


# What borrowers do. The mark goes before the return, and the loan's every name with it, where that matters.


def returned(crowd: Crowd) -> None:
    loan = crowd.take()
    with crowd.until_return(loan):
        pass
    crowd.lender.return_channel(loan.channel)


def in_a_with_block(crowd: Crowd) -> None:
    loan = crowd.take()
    with loan.channel, crowd.until_return(loan):
        crowd.publish(loan)


def raises(crowd: Crowd) -> None:
    loan = crowd.take()
    with contextlib.suppress(Mischief), loan.channel, crowd.until_return(loan):
        raise Mischief


def raises_out_of_a_call(crowd: Crowd) -> None:
    """The broker closes the channel over it."""
    loan = crowd.take()
    with (
        contextlib.suppress(pika.exceptions.ChannelClosedByBroker),
        loan.channel,
        crowd.until_return(loan),
    ):
        loan.channel.queue_declare(f"{crowd.queue}-that-is-not-there", passive=True)


def returned_as_broken(crowd: Crowd) -> None:
    loan = crowd.take()
    with crowd.until_return(loan):
        pass
    crowd.lender.return_broken_channel(loan.channel)


def killed_and_noticed(crowd: Crowd) -> None:
    """The connection ends under the borrower, who hears of it by the next call."""
    loan = crowd.take()
    with contextlib.suppress(pika.exceptions.AMQPError), loan.channel, crowd.until_return(loan):
        loan.shut_socket()
        crowd.publish(loan)


def killed_and_not_noticed(crowd: Crowd) -> None:
    """The connection ends, and its borrower returns it as if nothing were the matter."""
    loan = crowd.take()
    with crowd.until_return(loan):
        loan.shut_socket()
    crowd.lender.return_channel(loan.channel)


def closes_the_channel(crowd: Crowd) -> None:
    loan = crowd.take()
    with loan.channel, crowd.until_return(loan):
        loan.channel.close()


def closes_the_connection(crowd: Crowd) -> None:
    loan = crowd.take()
    with loan.channel, crowd.until_return(loan):
        loan.channel.connection.close()


def returned_twice(crowd: Crowd) -> None:
    """And then used."""
    loan = crowd.take()
    with crowd.until_return(loan):
        pass
    crowd.lender.return_channel(loan.channel)
    crowd.lender.return_channel(loan.channel)
    if crowd.publishes:
        _is_dead(crowd, loan)


def returned_twice_at_once(crowd: Crowd) -> None:
    """By two other threads, of which one says that it is broken."""
    loan = crowd.take()
    with crowd.until_return(loan):
        pass
    returns = [
        crowd.helpers.submit(how, loan.channel)
        for how in (crowd.lender.return_channel, crowd.lender.return_broken_channel)
    ]
    for one in returns:
        one.result()
    _is_dead(crowd, loan)


def _is_dead(crowd: Crowd, loan: Loan) -> None:
    try:
        loan.channel.basic_publish("", crowd.queue, b"late")
    except ChannelReturned:
        return
    crowd.find("alive after its return", f"{loan.channel!r}")


def returned_from_another_thread(crowd: Crowd) -> None:
    loan = crowd.take()
    with crowd.until_return(loan):
        pass
    crowd.helpers.submit(crowd.lender.return_channel, loan.channel).result()


def dropped(crowd: Crowd) -> None:
    """Forgotten, where nothing else returns it."""
    loan = crowd.take()
    with crowd.until_return(loan):
        pass


def dropped_in_a_circle(crowd: Crowd) -> None:
    """Forgotten, where only the garbage collector finds it."""
    loan = crowd.take()
    with crowd.until_return(loan):
        circle: list[object] = [loan]
        circle.append(circle)
    del loan, circle
    gc.collect()


def held_until_its_context_ends(crowd: Crowd) -> None:
    with crowd.app.app_context():
        loan = crowd.take()
        with crowd.until_return(loan):
            pass


def held_by_a_context_that_an_error_ends(crowd: Crowd) -> None:
    with contextlib.suppress(Mischief), crowd.app.app_context():
        loan = crowd.take()
        with crowd.until_return(loan):
            pass
        raise Mischief


KINDS: list[Kind] = [
    returned,
    in_a_with_block,
    raises,
    raises_out_of_a_call,
    returned_as_broken,
    killed_and_noticed,
    killed_and_not_noticed,
    closes_the_channel,
    closes_the_connection,
    returned_twice,
    returned_twice_at_once,
    returned_from_another_thread,
    dropped,
    dropped_in_a_circle,
    held_until_its_context_ends,
    held_by_a_context_that_an_error_ends,
]
