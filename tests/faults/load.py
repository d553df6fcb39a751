"""Clients that ask a server over HTTP to publish numbered messages, and keep what it answered."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

from tests.conftest import wait_for

#: Seconds after which a request that has no answer is held up.
_HELD_UP = 0.3


@dataclass(frozen=True)
class Answer:
    """What became of one request. Times are the system's monotonic clock's, in seconds."""

    id: str
    began: float
    ended: float
    #: HTTP's; None: the connection ended without an answer, or there was none.
    status: int | None
    #: The error's class, where the app named one.
    error: str = ""
    #: All that was answered, but for the good ones.
    text: str = ""

    @property
    def accepted(self) -> bool:
        return self.status is not None and 200 <= self.status < 300

    @property
    def took(self) -> float:
        return self.ended - self.began


class Load:
    """Clients that go on until they are stopped, or ``most`` requests were made.

    :param path: the view; of several, with commas between them, one after the other.
    :param pace: seconds that each client waits between an answer and its next request.
    :param patience: seconds after which a request counts as one that was never answered.
    """

    def __init__(
        self,
        base: str,
        path: str = "publish",
        *,
        clients: int = 8,
        pace: float = 0.005,
        most: int = 100_000,
        patience: float = 60.0,
    ) -> None:
        where = urlsplit(base)
        self._host, self._port = str(where.hostname), int(where.port or 80)
        self._paths, self._pace, self._most, self._patience = path.split(","), pace, most, patience
        self._numbers = itertools.count()
        self._stopped = threading.Event()
        #: Whether clients may ask.
        self._open = threading.Event()
        self._open.set()
        #: Appended to by all clients; a list's append needs no lock.
        self._answers: list[Answer] = []
        #: Since when each client waits for an answer; None: it does not. Each writes its own place alone.
        self._waiting: list[float | None] = [None] * clients
        self._threads = [
            threading.Thread(target=self._work, args=(place,), name=f"client {place}")
            for place in range(clients)
        ]

    @property
    def answers(self) -> list[Answer]:
        return list(self._answers)

    def answers_since(self, number: int) -> list[Answer]:
        """Those after the first so many."""
        return self._answers[number:]

    def goes_on(self, more: int = 100, timeout: float = 120.0) -> None:
        """Wait until so many more were accepted that began after this call, and nobody waits from before.

        Of two processes, one may have accepted them all, while what the other one has in hand stands still.
        """
        self.has_answered(more, lambda answer: answer.accepted, timeout)
        until = time.monotonic()
        wait_for(lambda: not self.waits_for(until), lambda: f"those that wait since {self._waiting}", timeout)

    def has_answered(
        self, more: int, how: Callable[[Answer], bool] = lambda _answer: True, timeout: float = 120.0
    ) -> None:
        """Wait for so many more answers of a kind to requests that began after this call."""
        number, since = len(self._answers), time.monotonic()
        wait_for(
            lambda: (
                sum(answer.began >= since and how(answer) for answer in self.answers_since(number)) >= more
                or self.is_over
            ),
            lambda: f"{more} answers; the last ones: {self._answers[-3:]}",
            timeout,
        )

    def is_held_up(self, unless: int | None = None, timeout: float = 60.0) -> None:
        """Wait until each client waits for an answer for a while.

        :param unless: or until so many more were accepted: stand-ins do not wait.
        """
        number = len(self._answers)
        wait_for(
            lambda: (
                all(
                    began is not None and time.monotonic() - began > _HELD_UP for began in list(self._waiting)
                )
                or (
                    unless is not None
                    and sum(answer.accepted for answer in self.answers_since(number)) >= unless
                )
                or self.is_over
            ),
            lambda: f"waiting since {self._waiting}, at {time.monotonic()}",
            timeout,
        )

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """All have their answers, and nobody asks until the block ends."""
        self._open.clear()
        try:
            wait_for(
                lambda: all(began is None for began in list(self._waiting)),
                lambda: f"all answers; waiting since {self._waiting}",
                60,
            )
            yield
        finally:
            self._open.set()

    def waits_for(self, before: float) -> bool:
        """Whether a client still waits for what it asked before this time."""
        return any(began is not None and began < before for began in list(self._waiting))

    @property
    def is_over(self) -> bool:
        return not any(thread.is_alive() for thread in self._threads)

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Let each client have its last answer."""
        self._stopped.set()
        for thread in self._threads:
            thread.join(self._patience + 30)
            assert not thread.is_alive(), "a client hangs"

    def _work(self, place: int) -> None:
        while not self._stopped.wait(self._pace):
            self._open.wait()
            number = next(self._numbers)
            if number >= self._most:
                return
            self._waiting[place] = began = time.monotonic()
            answer = self._ask(f"{number:06}", began)
            self._waiting[place] = None
            self._answers.append(answer)

    def _ask(self, id_: str, began: float) -> Answer:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=self._patience)
        try:
            path = self._paths[int(id_) % len(self._paths)]
            connection.request("POST", f"/{path}/{id_}")
            response = connection.getresponse()
            body = response.read()
        except (OSError, http.client.HTTPException) as exc:
            return Answer(id_, began, time.monotonic(), None, text=repr(exc))
        finally:
            connection.close()
        ended, text = time.monotonic(), body.decode(errors="replace")
        try:
            error = json.loads(body).get("error", "")
        except ValueError:
            error = ""
        return Answer(
            id_, began, ended, response.status, error, text if error or response.status >= 300 else ""
        )
