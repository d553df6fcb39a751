"""What a candidate is, inside its process, and how its runs are timed.

Needs nothing but the standard library: it is imported by the interpreters of all peers' environments.

A run is of one *work*, in one *case*, and *count* messages or calls. Connections are open and warm before the
time begins, and are closed after it has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import itertools
import os
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

#: Others are imported by it, where type checkers do not see that they are not installed.
load = importlib.import_module

Call = Callable[[], object]
Figures = dict[str, float]

HOST = "127.0.0.1"
QUEUE = "bench"
PREFETCH = 100
#: How many connections, or what they have in their place, pools have.
POOL = 10
#: Threads of those whose consumers have some.
THREADS = 8
#: Seconds for one run, on a slow machine, too.
PATIENCE = 90.0
#: Seconds for which threads do what they will do, before the time begins: pools and threads connect in it.
_WARM = 0.2
#: What publish() gives to a message, for those to whom it must be given.
NAMED: dict[str, Any] = {
    "content_type": "application/octet-stream",
    "delivery_mode": 2,
    "message_id": "0" * 32,
    "timestamp": 1,
}


class NotOffered(Exception):
    """The candidate has no such thing; the text says what comes nearest."""


class Case(dict[str, Any]):
    """What is asked for, by name; what is missing is what is usual."""

    @property
    def port(self) -> int:
        return int(self["port"])

    @property
    def queue(self) -> str:
        return str(self.get("queue", QUEUE))

    @property
    def exchange(self) -> str:
        """The default exchange, or one without a binding."""
        return str(self.get("exchange", ""))

    @property
    def body(self) -> bytes:
        """Another one each time."""
        return b"x" * int(self.get("size", 200))

    @property
    def is_fresh(self) -> bool:
        """Whether each message has a body of its own: where memory is measured, it counts."""
        return bool(self.get("frozen"))

    @property
    def confirm(self) -> bool:
        return bool(self.get("confirm", True))

    @property
    def pooled(self) -> bool:
        return self.get("how") == "pooled"

    @property
    def threads(self) -> int:
        return int(self.get("threads", 1))

    @property
    def window(self) -> int:
        return int(self.get("window", 1000))

    @property
    def pause(self) -> float:
        """Seconds that a handler takes."""
        return float(self.get("pause", 0.0))

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@{HOST}:{self.port}/%2F"


class Peer:
    """A candidate whose calls return when they are done. What it does not override, it does not offer.

    :param ask: has the one that started the process do what it has for this moment of the run.
    """

    #: Why it cannot have many messages in flight.
    ONE_IN_FLIGHT = "its call to publish waits for the confirm: one message is in flight"

    def __init__(self, options: dict[str, Any], ask: Callable[[], None]) -> None:
        self.options = options
        self.ask = ask
        #: Of a worker that has some.
        self.threads = int(options.get("threads", THREADS))

    def run(self, work: str, case: Case, count: int) -> Figures:
        done: Figures = getattr(self, f"do_{work}")(case, count)
        return done

    # What they override

    def checkout(self, case: Case) -> AbstractContextManager[Call]:
        """Take a channel, or what the candidate has for one, and give it back."""
        raise NotOffered("has no pool")

    def publisher(self, case: Case) -> AbstractContextManager[tuple[Call, Call]]:
        """What publishes one message, and what returns when the broker has read all that were published."""
        raise NotOffered("does not publish")

    def waiting(self, case: Case) -> AbstractContextManager[list[Call]]:
        """For each thread, what publishes one message and waits for its confirm."""
        raise NotOffered("does not publish from threads")

    def in_thread(self) -> AbstractContextManager[object]:
        """What a thread needs around its calls: an app context, for one."""
        return nullcontext()

    @contextlib.contextmanager
    def bulk(self, case: Case, count: int) -> Iterator[Call]:
        """What publishes so many messages, all of them confirmed; one by one where the case allows it."""
        if not case.get("one_by_one"):
            raise NotOffered(self.ONE_IN_FLIGHT)
        with self.publisher(case) as (call, _flush):
            call()
            yield lambda: [call() for _ in range(count)]

    def consume(self, case: Case, tally: Tally) -> None:
        """Consume until the tally is full."""
        raise NotOffered("does not consume")

    # How it is timed

    def do_checkout(self, case: Case, count: int) -> Figures:
        with self.checkout(case) as call, self.in_thread():
            return timed(call, lambda: None, count)

    def do_publish(self, case: Case, count: int) -> Figures:
        with self.publisher(case) as (call, flush), self.in_thread():
            return timed(call, flush, count)

    def do_threads(self, case: Case, count: int) -> Figures:
        with self.waiting(case) as calls:
            return in_threads(calls, self.in_thread, max(1, count // len(calls)), case.port)

    def do_bulk(self, case: Case, count: int) -> Figures:
        with self.bulk(case, count) as publish, self.in_thread():
            done = timed(publish, lambda: None, 1, warm=0)
        return {**done, "count": count}

    def do_consume(self, case: Case, count: int) -> Figures:
        tally = Tally(count)
        self.consume(case, tally)
        return tally.figures()

    def do_pending(self, case: Case, count: int) -> Figures:
        """What the process grows by, while so many messages are published and the broker answers nothing."""
        raise NotOffered("its calls wait: nothing is pending but one message for each thread")

    def do_growth(self, case: Case, count: int) -> Figures:
        """What the process grows by between the tenth and the last part of so many messages."""
        raise NotOffered("has no call for more messages than fit into the process")


class AsyncPeer(Peer):
    """A candidate of one event loop. It has no threads: as many tasks are what comes nearest."""

    def waiting(self, case: Case) -> AbstractContextManager[list[Call]]:
        """What a view would call."""
        raise NotOffered("is for an event loop, which a view in a thread has not")

    def session(self, case: Case) -> contextlib.AbstractAsyncContextManager[Callable[[], Awaitable[Any]]]:
        """What publishes one message, and has it confirmed where the case says so."""
        raise NotOffered("does not publish")

    async def consume_async(self, case: Case, tally: Tally) -> None:
        raise NotOffered("does not consume")

    def do_publish(self, case: Case, count: int) -> Figures:
        async def work() -> Figures:
            async with self.session(case) as publish:
                for _ in range(min(50, count)):
                    await publish()
                gc.collect()
                began, cpu = time.perf_counter(), time.process_time()
                for _ in range(count):
                    await publish()
                await self.flush(case)
                return {
                    "count": count,
                    "seconds": time.perf_counter() - began,
                    "cpu": time.process_time() - cpu,
                }

        return asyncio.run(work())

    async def flush(self, case: Case) -> None:
        """Return when the broker has read all that was published."""

    def do_threads(self, case: Case, count: int) -> Figures:
        async def work() -> Figures:
            async with self.session(case) as publish:
                took: list[float] = []

                async def warm() -> None:
                    until = time.perf_counter() + _WARM
                    await publish()
                    while time.perf_counter() < until:
                        await publish()

                async def one() -> None:
                    for _ in range(max(1, count // case.threads)):
                        began = time.perf_counter()
                        await publish()
                        took.append(time.perf_counter() - began)

                await asyncio.gather(*(warm() for _ in range(case.threads)))
                gc.collect()
                cpu, began = time.process_time(), time.perf_counter()
                await asyncio.gather(*(one() for _ in range(case.threads)))
                figures = spread(took, time.perf_counter() - began, time.process_time() - cpu)
                return {**figures, "connections": connections(case.port)}

        return asyncio.run(work())

    def do_bulk(self, case: Case, count: int) -> Figures:
        # As many tasks as may be in flight, each with one message at a time: the cheapest of what was tried.
        done = self.do_threads(Case(case, threads=min(case.window, count)), count)
        return {name: done[name] for name in ("count", "seconds", "cpu")}

    def do_consume(self, case: Case, count: int) -> Figures:
        tally = Tally(count)
        asyncio.run(self.consume_async(case, tally))
        return tally.figures()

    def do_pending(self, case: Case, count: int) -> Figures:
        async def work() -> Figures:
            async with self.session(case) as publish:
                await publish()
                self.ask()  # from now on nothing passes
                gc.collect()
                before = resident()
                tasks = [asyncio.ensure_future(publish()) for _ in range(count)]
                await asyncio.sleep(1.0)
                gc.collect()
                grown = resident() - before
                self.ask()  # it passes again
                await asyncio.gather(*tasks)
                return {"count": count, "bytes": grown}

        return asyncio.run(work())


def timed(call: Call, flush: Call, count: int, warm: int = 50) -> Figures:
    for _ in range(min(warm, count)):
        call()
    if warm:
        flush()
    gc.collect()
    cpu, began = time.process_time(), time.perf_counter()
    for _ in range(count):
        call()
    flush()
    return {"count": count, "seconds": time.perf_counter() - began, "cpu": time.process_time() - cpu}


def in_threads(
    calls: list[Call], context: Callable[[], AbstractContextManager[object]], times: int, port: int
) -> Figures:
    """Each of ``calls`` in a thread of its own, ``times`` times, all at once; and how long each took."""
    took: list[float] = []
    errors: list[BaseException] = []
    marks: list[tuple[float, float]] = []
    open_ones: list[int] = []

    def mark() -> None:
        marks.append((time.perf_counter(), time.process_time()))

    def at_the_end() -> None:
        mark()
        open_ones.append(connections(port))  # some end with their thread

    # Called by the last to come, before the others go on: what threads wait for one another is not in it.
    start = threading.Barrier(len(calls), mark)
    finish = threading.Barrier(len(calls), at_the_end)

    def work(call: Call) -> None:
        mine = []
        try:
            with context():
                until = time.perf_counter() + _WARM
                call()
                while time.perf_counter() < until:
                    call()
                start.wait()
                for _ in range(times):
                    began = time.perf_counter()
                    call()
                    mine.append(time.perf_counter() - began)
                took.extend(mine)
                finish.wait()
        except Exception as exc:
            errors.append(exc)
            start.abort()  # nobody waits for one that has failed
            finish.abort()

    gc.collect()
    workers = [threading.Thread(target=work, args=(call,)) for call in calls]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if errors:
        raise next((exc for exc in errors if not isinstance(exc, threading.BrokenBarrierError)), errors[0])
    (began, cpu), (ended, used) = marks
    return {**spread(took, ended - began, used - cpu), "connections": open_ones[0]}


def spread(took: list[float], seconds: float, cpu: float) -> Figures:
    took.sort()
    p50, p99 = (took[int(len(took) * part)] * 1e3 for part in (0.5, 0.99))
    return {"count": len(took), "seconds": seconds, "cpu": cpu, "p50": p50, "p99": p99}


class Tally:
    """What every handler does: it counts, from any thread.

    ``full`` is set, and ``at_the_end`` called, with the last message, in its handler.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.full = threading.Event()
        self.at_the_end: Callable[[], object] = self.full.set
        self._numbers = itertools.count(1)  # in CPython, its next() is atomic
        self._began = self._ended = (0.0, 0.0)

    def __call__(self) -> None:
        number = next(self._numbers)
        if number == 1:
            self._began = time.perf_counter(), time.process_time()
        if number == self.count:
            self._ended = time.perf_counter(), time.process_time()
            self.full.set()
            self.at_the_end()

    def figures(self) -> Figures:
        """From the first to the last message, as the handlers saw them: start and end are not in it."""
        if not self.full.is_set():
            raise RuntimeError(f"of {self.count} messages, {next(self._numbers) - 1} came")
        seconds, cpu = (end - begin for begin, end in zip(self._began, self._ended, strict=True))
        return {"count": self.count - 1, "seconds": seconds, "cpu": cpu}


def connections(port: int) -> int:
    """How many connections this process has to that port, as Linux's /proc tells."""
    own = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # it was that of the directory itself
            own.add(os.readlink(f"/proc/self/fd/{name}"))
    with open("/proc/self/net/tcp") as table:
        lines = [line.split() for line in table][1:]
    return sum(
        f"socket:[{line[9]}]" in own and line[3] == "01" and int(line[2].rpartition(":")[2], 16) == port
        for line in lines
    )


def resident() -> float:
    """Bytes of memory that this process has, as Linux's /proc tells."""
    with open("/proc/self/status") as status:
        lines = dict(line.split(":", 1) for line in status)
    return int(lines["VmRSS"].split()[0]) * 1024


Session = AsyncIterator[Callable[[], Awaitable[Any]]]
