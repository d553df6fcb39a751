"""What becomes of a delivery that failed: again after a delay, or to the dead letters. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from .delivery import Action, Delivery
from .errors import LONGEST_DELAY, Reject, Requeue, RetryLater, SetupError, UndecodableMessage
from .message import SHORT
from .params import is_finite
from .topology import DEAD, RETRY, Queue

#: Waiting queues of one queue, at the most.
_MOST_DELAYS = 30
#: Attempts that a queue of dead letters gives: any number, as all versions of RabbitMQ can say it.
_ANY_NUMBER = 2**31 - 1


@dataclass(frozen=True)
class Retry:
    """How often, and when, a delivery whose handler failed is tried again.

    ::

        @fpika.consumer("orders.email", retry=Retry(attempts=5, delay=1, factor=2, max_delay=300))

    :param attempts: how often the handler is run for a message, at the most. The last failure sends it to
        ``<queue>.dead``.
    :param delay: seconds before the second attempt.
    :param factor: by which the delay grows each time.
    :param max_delay: seconds that it grows to.
    :raises SetupError: a value makes no sense.
    """

    attempts: int = 5
    delay: float = 1.0
    factor: float = 2.0
    max_delay: float = 300.0

    def __post_init__(self) -> None:
        if (
            not isinstance(self.attempts, int)
            or isinstance(self.attempts, bool)
            or not 1 <= self.attempts <= 1000
        ):
            raise SetupError(f"Retry: attempts is {self.attempts!r}; expected a number from 1 to 1000")
        for name, lowest in (("delay", 0.001), ("factor", 1), ("max_delay", 0.001)):
            value = getattr(self, name)
            if not is_finite(value) or not lowest <= value <= LONGEST_DELAY:
                raise SetupError(
                    f"Retry: {name} is {value!r}; expected a number from {lowest} to {LONGEST_DELAY}"
                )
        if len(self.delays) > _MOST_DELAYS:
            raise SetupError(
                f"Retry: these are {len(self.delays)} different delays, each of which takes a queue, and"
                f" {_MOST_DELAYS} are enough: give fewer attempts, a larger factor, or a smaller max_delay"
            )
        if self.delay > self.max_delay:
            raise SetupError(
                f"Retry: delay is {self.delay!r}, and max_delay {self.max_delay!r}, which is less; give both"
            )

    def delay_after(self, attempt: int) -> float:
        """Seconds to wait after an attempt has failed.

        :param attempt: which one, counted from 1.
        """
        # As a logarithm: 2.0 ** 1100 overflows.
        grown = math.log(self.delay) + (attempt - 1) * math.log(self.factor)
        if grown >= math.log(self.max_delay):
            return self.max_delay
        return min(self.max_delay, self.delay * self.factor ** (attempt - 1))

    @property
    def delays(self) -> list[float]:
        """Those of all attempts but the last, each once."""
        return list(dict.fromkeys(self.delay_after(attempt) for attempt in range(1, self.attempts)))


class Decision(NamedTuple):
    """How a delivery is settled; None: the handler sees to it."""

    action: Action | None
    delay: float = 0.0  #: of a retry, in seconds


def decide(
    retry: Retry | None,
    has_dead_letters: bool,
    otherwise: Action | None,
    delivery: Delivery,
    error: BaseException | None,
) -> Decision:
    """What becomes of a delivery.

    :param otherwise: what would, of a consumer without ``retry``.
    """
    if error is None or otherwise is None or isinstance(error, Requeue):
        return Decision(otherwise)
    final = isinstance(error, (Reject, UndecodableMessage))
    if retry is not None and not final and delivery.attempt < retry.attempts:
        given = error.delay if isinstance(error, RetryLater) else None
        return Decision(Action.RETRY, retry.delay_after(delivery.attempt) if given is None else given)
    if has_dead_letters and (retry is not None or otherwise is Action.REJECT):
        return Decision(Action.DEAD)
    return Decision(otherwise)


def waiting_queue(queue: str, delay: float) -> Queue:
    """The queue in which a queue's retries wait for so many seconds, and then go back to it alone.

    Quorum, with at-least-once dead-lettering, for which RabbitMQ wants reject-publish: what waits, and what
    goes back, survives a broker that is killed. Messages expire in the order in which they came, so each
    delay has a queue of its own.
    """
    milliseconds = max(1, round(delay * 1000))
    arguments: dict[str, Any] = {
        "x-queue-type": "quorum",
        "x-message-ttl": milliseconds,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": queue,
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }
    return Queue(f"{queue}{RETRY}{milliseconds}ms", arguments=arguments)


def rounded(delay: float) -> float:
    """A delay that a handler asks for, rounded up to two digits: each that is used has a queue for good."""
    # First as near as a float means it: 0.07 * 1000 is more than 70.
    milliseconds = max(1, math.ceil(round(delay * 1000, 3)))
    step: int = 10 ** max(0, len(str(milliseconds)) - 2)
    return min(-(-milliseconds // step) * step / 1000, LONGEST_DELAY)


def dead_queue(queue: str) -> Queue:
    """The queue of a queue's dead letters, which is looked into as often as anybody likes."""
    return Queue(queue + DEAD, arguments={"x-queue-type": "quorum", "x-delivery-limit": _ANY_NUMBER})


def check_names(queue: str, retry: Retry) -> None:
    """Whether the names of the queues that are made for a queue can be sent.

    :raises SetupError: they are too long.
    """
    longest = max(
        (queue + DEAD, *(waiting_queue(queue, delay).name for delay in (*retry.delays, LONGEST_DELAY))),
        key=len,
    )
    if len(longest.encode()) > SHORT:
        raise SetupError(
            f"queue {queue!r}: its name is too long for {longest!r}, of which AMQP carries {SHORT} bytes"
        )
