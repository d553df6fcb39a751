"""A ledger of what each handler began and how that ended, in a file that every process of a test writes.

What a test proves with it, beside ``tests/wiretap.py``, which sees what is settled:

* each message that was published is committed at least once (:meth:`Ledger.check_all`);
* none is handled twice but after a requeue, or across a disturbance that the test caused
  (:meth:`Ledger.check_twice`).
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import os
import threading
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from flask_pika import Delivery, Requeue


@dataclass
class Run:
    """One run of a handler for one message."""

    id: str
    pid: int
    thread: int
    tag: int
    redelivered: bool
    #: Seconds of the system's monotonic clock, which is the same in all processes.
    begun: float
    ended: float | None = None
    #: ``committed``, ``requeued``, ``raised``; None: it never came to an end.
    outcome: str | None = None


@dataclass
class Disturbance:
    """A time in which a test took connections or processes away."""

    began: float
    ended: float = float("inf")


class Ledger:
    """Append-only. A line is one write, which Linux keeps in one piece, and has when its writer is killed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_APPEND | os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC)
        self._numbers = itertools.count()
        self._read_to = 0
        self._by_key: dict[str, Run] = {}
        self._by_id: dict[str, list[Run]] = {}
        #: When a handler must have been disturbed, to be allowed a second run.
        self.disturbances: list[Disturbance] = []

    def close(self) -> None:
        os.close(self._fd)

    # For handlers

    @contextlib.contextmanager
    def run(self, delivery: Delivery) -> Iterator[None]:
        """Around all that a handler does; the message's body is its id, up to the first space."""
        key = f"{os.getpid()}.{next(self._numbers)}"
        what = delivery.text.split(" ")[0]
        about = f"{threading.get_ident()}\t{delivery.delivery_tag}\t{int(delivery.redelivered)}"
        self._write(f"begun\t{key}\t{time.monotonic()}\t{what}\t{about}\n")
        outcome = "raised"
        try:
            yield
            outcome = "committed"
        except Requeue:
            outcome = "requeued"
            raise
        finally:
            self._write(f"{outcome}\t{key}\t{time.monotonic()}\n")

    def _write(self, line: str) -> None:
        data = line.encode()
        assert os.write(self._fd, data) == len(data)

    # For tests

    def _read(self) -> None:
        with self.path.open("rb") as file:
            file.seek(self._read_to)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._read_to += len(whole)
        for line in whole.decode().splitlines():
            what, key, at, *rest = line.split("\t")
            if what == "begun":
                one, thread, tag, again = rest
                pid = int(key.split(".")[0])
                assert key not in self._by_key, "two processes had the same id"
                run = Run(one, pid, int(thread), int(tag), again == "1", float(at))
                self._by_key[key] = run
                self._by_id.setdefault(one, []).append(run)
            else:
                run = self._by_key[key]
                run.ended, run.outcome = float(at), what

    @property
    def runs(self) -> list[Run]:
        """In the order in which they began."""
        self._read()
        return list(self._by_key.values())

    def of(self, outcome: str | None) -> list[Run]:
        """The runs with this outcome; None: those that have none, yet."""
        return [run for run in self.runs if run.outcome == outcome]

    def begun(self) -> int:
        """How many have begun."""
        return len(self.runs)

    @property
    def committed(self) -> set[str]:
        """The ids of which a run was committed."""
        return {run.id for run in self.of("committed")}

    @contextlib.contextmanager
    def disturbance(self) -> Iterator[None]:
        """What had begun before the end of this block may be handled again after its beginning."""
        one = Disturbance(time.monotonic())
        self.disturbances.append(one)
        yield
        one.ended = time.monotonic()

    def check_all(self, published: Collection[str], dead: Collection[str] = ()) -> None:
        """Each message was committed, or is dead, and nothing else was."""
        committed = self.committed
        assert len(set(published)) == len(published)
        assert not set(published) - committed - set(dead), "published, and lost"
        assert not committed - set(published), "never published"
        assert not committed & set(dead), "handled, and dead"

    def check_twice(self) -> list[tuple[Run, Run]]:
        """None was handled twice without a disturbance or a requeue in between.

        :returns: the runs before a disturbance and after it, of those that were handled again then.
        """
        self._read()
        again = []
        for one, runs in self._by_id.items():
            for before, after in itertools.pairwise(runs):
                # Only a mark of the broker's tells a handler that it may be about something that is done.
                assert after.redelivered or self.disturbances, f"{one} came twice, and not as redelivered"
                if before.outcome == "requeued":
                    assert before.ended is not None
                    assert before.ended <= after.begun, f"{one} came again while it was handled"
                    continue
                assert any(
                    before.begun <= known.ended and known.began <= after.begun for known in self.disturbances
                ), f"{one} was handled twice for no reason: {before}, {after}"
                again.append((before, after))
        return again

    def counts(self) -> dict[str | None, int]:
        """How many runs had which outcome."""
        return dict(collections.Counter(run.outcome for run in self.runs))
