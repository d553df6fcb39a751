"""What is measured, and of whom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks.peers.base import PREFETCH

OURS = "ours"
#: The interpreter that runs the benchmarks.
HERE = "here"


@dataclass(frozen=True)
class Candidate:
    """A module of this package, which is run in an environment, with options."""

    name: str
    module: str
    #: ``requirements/peers/<environment>.txt``, or ``HERE``.
    environment: str = "clients"
    #: What has to be there to run it without its environment, for a quick look.
    package: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    #: What the reader has to know.
    note: str = ""
    #: It is there to compare with, and not one of the field.
    is_reference: bool = False
    #: It does not close what it has opened: no run finds what another one has left.
    leaves_connections: bool = False

    @property
    def has_windows(self) -> bool:
        """Whether it can have many messages in flight."""
        return self.module in (OURS, "limit", "select_pika", "aio_pika", "faststream")

    @property
    def is_ours(self) -> bool:
        return self.module == OURS


@dataclass(frozen=True)
class Setting:
    """One case of a workload, as it is shown and as it is told."""

    title: str
    values: dict[str, Any] = field(default_factory=dict)
    #: Messages of each run: of fewer, begin and end would be too much.
    least: int = 0

    def least_for(self, candidate: Candidate, work: str) -> int:
        """How many messages a run of it has at the least."""
        is_bulk = self.values.get("work", work) == "bulk"
        # What so many in flight do is to be seen, and not how they come to be so many.
        windows = 5 * int(self.values.get("window", 0)) if is_bulk and candidate.has_windows else 0
        return max(self.least, windows)


@dataclass(frozen=True)
class Workload:
    """Some candidates that do the same, in some settings."""

    name: str
    title: str
    #: What the candidates' method is called: ``do_<work>``.
    work: str
    settings: Sequence[Setting]
    candidates: Sequence[Candidate]
    #: Those whose ratio to the others is shown, the first of which a setting has.
    ours: Sequence[str]
    #: The figure that is drawn, and compared.
    figure: str = "rate"
    #: Messages or calls of the first run, which is for warming up, and tells how many are enough.
    few: int = 100
    #: Of each run: of less, a p99 says nothing.
    least: int = 20
    most: int = 200_000
    #: Each run has a process of its own.
    is_fresh: bool = False
    #: Seconds of a run, as a share of what was asked for.
    share: float = 1.0


def ours(name: str, **options: Any) -> Candidate:
    note = str(options.pop("note", ""))
    return Candidate(name, OURS, HERE, "flask_pika", options, note)


PUBLISH = ours("Flask-Pika, publish()", by="publish")
SUBMIT = ours("Flask-Pika, submit()", by="submit", note="is confirmed, but who calls does not wait")
CHANNEL = ours("Flask-Pika, channel()", by="channel")
MANY = ours("Flask-Pika, publish_many()", by="publish_many")
WORKER = ours("Flask-Pika, worker")
WORKER_100 = ours("Flask-Pika, 100 threads", threads=100)

LIMIT = Candidate(
    "bare socket", "limit", HERE, "pika", note="the limit: frames that were encoded once", is_reference=True
)
RAW = Candidate("pika", "raw_pika", package="pika", note="its `BlockingChannel`")
SELECT = Candidate(
    "pika, SelectConnection",
    "select_pika",
    package="pika",
    note="callbacks in one thread; what is in flight is counted by its user",
)
OLD = Candidate(
    "Flask-Pika 0.3.8",
    "flask_pika_old",
    "old",
    "-",
    note="run with pika 1.4.4: the pika 0.10.0 that it asks for cannot be imported by Python 3.7 or newer",
)
OLD_PLAIN = Candidate(
    "Flask-Pika 0.3.8, no pool",
    "flask_pika_old",
    "old",
    "-",
    options={"pool": False},
    note="each thread holds a channel, on a connection of its own",
)
PIKA_POOL = Candidate(
    "pika-pool", "pika_pool", "old", "-", note="run with pika 1.4.4, as Flask-Pika 0.3.8 is"
)
RABBITMQ_PIKA_FLASK = Candidate(
    "rabbitmq-pika-flask, unconfirmed",
    "rabbitmq_pika_flask",
    package="rabbitmq_pika_flask",
    note="makes a connection for each message, has no confirms to wait for, and no prefetch",
    leaves_connections=True,
)
FLASK_RMQ = Candidate("Flask-RMQ", "flask_rmq", package="flask_rmq", note="a connection for each thread")
KOMBU = Candidate("kombu", "kombu", package="kombu", note="over py-amqp")
CELERY = Candidate(
    "celery", "celery", package="celery", note="tasks: what it wraps around a body comes on top"
)
DRAMATIQ = Candidate(
    "dramatiq",
    "dramatiq",
    package="dramatiq",
    note="tasks: what it wraps around a body comes on top; its queue is durable, which it insists on",
)
CELERY_100 = Candidate("celery, 100 threads", "celery", package="celery", options={"threads": 100})
DRAMATIQ_100 = Candidate("dramatiq, 100 threads", "dramatiq", package="dramatiq", options={"threads": 100})
FASTSTREAM = Candidate(
    "FastStream", "faststream", package="faststream", note="tasks of one event loop, no threads"
)
AIO_PIKA = Candidate("aio-pika", "aio_pika", package="aio_pika", note="tasks of one event loop, no threads")
AMQPSTORM = Candidate("amqpstorm", "amqpstorm", package="amqpstorm")
AMQPSTORM_POOL = Candidate("amqpstorm-pool", "amqpstorm", package="amqpstorm_pool", options={"pool": True})
LIBRABBITMQ = Candidate("librabbitmq", "librabbitmq", "librabbitmq", "librabbitmq")
QUEUE_POOL = Candidate(
    "SQLAlchemy QueuePool",
    "sqlalchemy_pool",
    package="sqlalchemy",
    note="over connections that cost nothing, without a probe",
    is_reference=True,
)
NOTHING = Candidate("a view that does nothing", "nothing", HERE, "flask", is_reference=True)

QUORUM = {"queue": "bench-quorum", "durable": True}
DURABLE = {"queue": "bench-durable", "durable": True}
_SYNC = (RAW, OLD, RABBITMQ_PIKA_FLASK, FLASK_RMQ, PIKA_POOL, KOMBU, CELERY, DRAMATIQ)
_OTHERS = (FASTSTREAM, AIO_PIKA, AMQPSTORM, AMQPSTORM_POOL, LIBRABBITMQ)


def _consuming(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The same: what has no confirms consumes as others do."""
    return [replace(one, name=one.name.removesuffix(", unconfirmed")) for one in candidates]


def _ways(how: str) -> list[Setting]:
    shown = {"held": "a channel that is held", "pooled": "a checkout for each message"}[how]
    return [
        Setting(f"{shown}, {'confirmed' if confirm else 'unconfirmed'}", {"how": how, "confirm": confirm})
        for confirm in (False, True)
    ]


def _three(**values: Any) -> list[Setting]:
    """What tells how waiting weighs: alone, with others, in bulk."""
    return [
        Setting("one thread that waits", {**values, "threads": 1, "work": "threads"}),
        Setting("16 threads that wait", {**values, "threads": 16, "work": "threads"}),
        Setting("in bulk, 1,000 in flight", {**values, "window": 1000, "work": "bulk"}),
    ]


_SIZES = {100: "100 B", 1_000: "1 kB", 10_000: "10 kB", 100_000: "100 kB", 1_000_000: "1 MB"}
_ONE_BY_ONE = "one message in flight, whatever the window"


WORKLOADS = (
    Workload(
        "checkout",
        "Checkout and return",
        "checkout",
        [Setting("one thread")],
        [
            QUEUE_POOL,
            ours("Flask-Pika", probe=True, note="with the probe: what died while idle is not lent"),
            ours(
                "Flask-Pika, in an app context",
                probe=True,
                context=True,
                note="which gives back at its end what was not",
            ),
            ours("Flask-Pika, pool_pre_ping=False", probe=False),
            *(OLD, PIKA_POOL),
            Candidate("kombu, connections", "kombu", package="kombu", options={"pool": "connections"}),
            Candidate("kombu, producers", "kombu", package="kombu"),
            AMQPSTORM_POOL,
        ],
        ["Flask-Pika"],
        figure="micros",
        share=0.5,
    ),
    Workload(
        "publish",
        "Publishing from one thread",
        "publish",
        [*_ways("held"), *_ways("pooled")],
        [LIMIT, PUBLISH, SUBMIT, CHANNEL, *_SYNC, *_OTHERS],
        ["Flask-Pika, channel()"],
        most=60_000,
    ),
    Workload(
        "threads",
        "Threads that publish and wait for the confirm",
        "threads",
        [Setting(f"{n} thread{'s' * (n > 1)}", {"threads": n}) for n in (1, 4, 16, 64)],
        [LIMIT, PUBLISH, CHANNEL, OLD_PLAIN, *_SYNC, *_OTHERS],
        ["Flask-Pika, publish()"],
        few=128,
        least=200,
        most=60_000,
    ),
    Workload(
        "bulk",
        "Confirmed bulk publish",
        "bulk",
        [
            Setting("100 in flight", {"window": 100}),
            Setting("1,000 in flight", {"window": 1000}),
            Setting("10,000 in flight", {"window": 10_000}),
            Setting(
                "1,000 in flight, to an exchange without a queue", {"window": 1000, "exchange": "amq.direct"}
            ),
        ],
        [LIMIT, MANY, SELECT, *_SYNC, *_OTHERS],
        ["Flask-Pika, publish_many()"],
        few=2000,
    ),
    Workload(
        "consume",
        "Consuming",
        "consume",
        [
            # Acknowledgements of the last ones go out after the end.
            Setting("a handler that counts", DURABLE, least=50 * PREFETCH),
            Setting("a handler of 5 ms", {**DURABLE, "pause": 0.005}),
        ],
        [
            *(LIMIT, WORKER, WORKER_100, *_consuming(_SYNC), CELERY_100, DRAMATIQ_100, *_OTHERS),
        ],
        ["Flask-Pika, worker"],
        few=300,
        most=60_000,
        is_fresh=True,
        share=1.5,
    ),
    Workload(
        "quorum",
        "To a durable quorum queue",
        "threads",
        _three(**QUORUM),
        [LIMIT, PUBLISH, MANY, RAW, SELECT, FLASK_RMQ, KOMBU, AIO_PIKA, AMQPSTORM],
        ["Flask-Pika, publish()", "Flask-Pika, publish_many()"],
    ),
    Workload(
        "delay",
        "With a network between",
        "threads",
        [
            Setting(f"{ms} ms each way, {one.title}", {**one.values, "delay": ms / 1000})
            for ms in (1, 10)
            for one in _three()
        ],
        [LIMIT, PUBLISH, MANY, RAW, SELECT, KOMBU, AIO_PIKA, AMQPSTORM],
        ["Flask-Pika, publish()", "Flask-Pika, publish_many()"],
        few=64,
    ),
    Workload(
        "view",
        "A Flask view that publishes",
        "view",
        [Setting("gunicorn, one worker with 16 threads; 16 clients")],
        [NOTHING, PUBLISH, CHANNEL, OLD_PLAIN, *_SYNC, *_OTHERS],
        ["Flask-Pika, publish()"],
        share=6.0,
    ),
    Workload(
        "bodies",
        "Sizes of bodies",
        "bulk",
        [
            Setting(
                title, {"size": size, "window": max(10, min(1000, 10_000_000 // size)), "one_by_one": True}
            )
            for size, title in _SIZES.items()
        ],
        [LIMIT, MANY, SELECT, AIO_PIKA, RAW, KOMBU, AMQPSTORM],
        ["Flask-Pika, publish_many()"],
        few=20,
        most=50_000,
        share=0.7,
    ),
    Workload(
        "memory",
        "Memory for each message",
        "pending",
        [
            Setting(
                "10,000 of 200 bytes that are pending, while the broker answers nothing", {"frozen": True}
            ),
            Setting("200,000 that are published by one call, from the 20,000th on", {"work": "growth"}),
        ],
        [SUBMIT, MANY, SELECT, AIO_PIKA, FASTSTREAM, RAW, KOMBU, AMQPSTORM],
        ["Flask-Pika, submit()", "Flask-Pika, publish_many()"],
        figure="bytes",
        few=10_000,
        most=10_000,
        is_fresh=True,
    ),
)
