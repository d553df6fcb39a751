"""The lab: a cluster behind proxies, an app under load before it, and one scenario after another."""

from __future__ import annotations

import contextlib
import itertools
import json
import time
import urllib.request
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pika
import pika.exceptions
import pytest

from tests.conftest import wait_for
from tests.faults.books import Books, Rules
from tests.faults.load import Load
from tests.faults.programs import WebServer, WorkerProgram
from tests.faults.report import Report
from tests.faults.searching import PASSWORD, USER
from tests.ledger import Disturbance, Ledger
from tools.proxy import Proxy
from tools.rabbitmq_cluster import RabbitMQCluster
from tools.rabbitmq_node import RabbitMQNode

#: Seconds after which the stand-in that gives up early does so.
EARLY = 0.3
#: How often the app is asked for its stats.
_LOOKS = 4
#: Seconds that a publish may take of the stand-in that has no deadline.
NO_DEADLINE = 600.0


@dataclass(frozen=True)
class Setting:
    """What runs in a scenario.

    :ivar server: a key of ``SERVERS``; ``options`` are its further options.
    :ivar path: the view that is asked: ``publish``, or ``pool`` for a pooled channel in confirm mode.
    :ivar pace: seconds that a client waits between two requests; ``most``: requests, in all.
    :ivar workers: processes of ``flask pika worker``.
    :ivar worker_options: further options of each.
    :ivar work: seconds that a handler takes.
    :ivar timeout: seconds that a publish may take.
    :ivar params: connection parameters beyond host, port, user and password.
    :ivar pool: ``FLASK_PIKA_POOL_PARAMS``.
    :ivar queue: arguments of the queue; the default is a quorum queue with a member on each node.
    :ivar exchange: the app publishes through an exchange of its own, of this name; empty: the default one.
    :ivar refusals: the errors with which the broker may refuse while it is disturbed.
    :ivar anytime: those with which it may refuse at any time: a small queue is full while its worker starts.
    :ivar unanswered: whether requests may end without an answer, since the scenario kills the web server.
    :ivar env: of the programs.
    """

    server: str = "gunicorn gthread"
    options: Sequence[str] = ()
    path: str = "publish"
    clients: int = 8
    pace: float = 0.005
    most: int = 100_000
    workers: int = 1
    worker_options: Sequence[str] = ()
    work: float = 0.0
    timeout: float = 10.0
    params: Mapping[str, object] = field(default_factory=dict)
    pool: Mapping[str, object] = field(default_factory=lambda: {"pool_size": 4, "confirm_delivery": True})
    queue: Mapping[str, object] = field(
        default_factory=lambda: {"x-queue-type": "quorum", "x-quorum-initial-group-size": 3}
    )
    exchange: str = ""
    refusals: Collection[str] = ()
    anytime: Collection[str] = ()
    unanswered: bool = False
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Scenario:
    """A fault, and how it is seen that the lab would notice.

    :ivar group: the number of its group in the report.
    :ivar fault: does it to a lab that is under load, and says with ``lab.disturbed()`` when.
    :ivar stand_ins: what breaks the app on purpose, and the kind of finding that gives it away.
    """

    group: int
    name: str
    fault: Callable[[Lab], None]
    setting: Setting = field(default_factory=Setting)
    stand_ins: Mapping[str, str] = field(default_factory=lambda: {"no confirms": "lost"})


#: What a lent channel raises whose connection is lost: pika's own, as documented.
LOST = (
    "ChannelClosed",
    "ChannelWrongStateError",
    "ConnectionClosed",
    "ConnectionClosedByBroker",
    "ConnectionResetError",
    "ConnectionWrongStateError",
    "StreamLostError",
)
#: Sites share a directory for what is written, and each scenario has one in it.
_numbers = itertools.count(1)


class Site:
    """What outlives a scenario: the cluster, its proxies, and the directory of all logs."""

    def __init__(self, cluster: RabbitMQCluster, proxies: Sequence[Proxy], records: Path) -> None:
        self.cluster, self.proxies, self.records = cluster, list(proxies), records

    def number(self) -> int:
        """Another one each time, of all sites."""
        return next(_numbers)

    def made_whole(self) -> Site:
        """Itself, with all its nodes up and all its proxies open."""
        for proxy in self.proxies:
            proxy.restore()
        self.cluster.start_nodes()
        self.cluster.wait_until_whole()
        return self

    @contextlib.contextmanager
    def channel(self) -> Iterator[pika.adapters.blocking_connection.BlockingChannel]:
        """An operator's own, on any node that runs, and not through a proxy."""
        node = next(node for node in self.cluster.nodes if node.is_running)
        connection = pika.BlockingConnection(pika.URLParameters(node.url))
        try:
            yield connection.channel()
        finally:
            with contextlib.suppress(pika.exceptions.AMQPError):
                connection.close()


def let_in(ctl: Callable[..., object]) -> None:
    """Make the lab's user, who may do anything.

    :param ctl: a node's or a cluster's.
    """
    ctl("add_user", USER, PASSWORD)
    ctl("set_permissions", USER, ".*", ".*", ".*")


def params_of(node: RabbitMQNode) -> dict[str, object]:
    """For an app in this process: as the lab's user, whose password is searched for."""
    return {**node.params, "username": USER, "password": PASSWORD}


@contextlib.contextmanager
def open_site(records: Path) -> Iterator[Site]:
    """A cluster of three, with a proxy before each node."""
    with RabbitMQCluster() as cluster, contextlib.ExitStack() as stack:
        let_in(cluster.ctl)
        yield Site(cluster, [stack.enter_context(Proxy(node.port)) for node in cluster.nodes], records)


class Lab:
    """One run of a scenario: the programs, the load, and the books."""

    def __init__(self, site: Site, setting: Setting, grace: float, stand_in: str = "") -> None:
        self.site, self.setting, self.stand_in = site, setting, stand_in
        self.cluster, self.proxies = site.cluster, site.proxies
        self.rules = Rules(setting.timeout, grace, setting.refusals, setting.unanswered, setting.anytime)
        self.queue = f"lab-{site.number()}"
        self.place = site.records / self.queue
        self.returns: list[float] = []
        self.deletions: list[Disturbance] = []
        #: A file with the password, where it is another one than at the start. Not among what is searched.
        self.password = site.records.with_name(f"{self.queue}-password")
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Lab:
        self.place.mkdir()
        self.declare()
        with contextlib.ExitStack() as stack:
            self.ledger = Ledger(self.place / "ledger")
            stack.callback(self.ledger.close)
            self.server = stack.enter_context(
                WebServer(self.setting.server, self.env(), self.place / "server.log", self.setting.options)
            )
            self.workers = [
                stack.enter_context(
                    WorkerProgram(self.env(), self.place / f"worker-{number}.log", self.worker_options)
                )
                for number in range(self.setting.workers)
            ]
            self.load = Load(
                self.server.base,
                self.setting.path,
                clients=self.setting.clients,
                pace=self.setting.pace,
                most=self.setting.most,
                patience=max(60.0, self.rules.timeout + self.rules.grace + 10.0),
            )
            self.load.start()
            stack.callback(self.load.stop)
            if self.workers:  # one that is refused when it first connects gives up
                wait_for(
                    self.ledger.begun, lambda: f"a worker that works:\n{self.workers[0].said[-2000:]}", 60
                )
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()
        with contextlib.suppress(pika.exceptions.AMQPError, StopIteration), self.site.channel() as ch:
            ch.queue_delete(self.queue)

    def env(self) -> dict[str, str]:
        """What the programs are told."""
        pool: Mapping[str, object] = self.setting.pool
        if self.stand_in in ("no confirms", "no probe"):
            pool = {**pool, "confirm_delivery": self.stand_in != "no confirms"}
            pool = {**pool, "pool_pre_ping": self.stand_in != "no probe"}
        params: Mapping[str, object] = self.setting.params
        if self.stand_in == "no heartbeat":
            params = {**params, "heartbeat": 0}
        timeout = {"gives up early": EARLY, "no deadline": NO_DEADLINE}.get(
            self.stand_in, self.setting.timeout
        )
        if self.stand_in == "no deadline":
            params = {**params, "blocked_connection_timeout": None}
        return {
            "FLASK_PIKA_PARAMS": json.dumps(
                [
                    {
                        "host": "127.0.0.1",
                        "port": proxy.port,
                        "username": USER,
                        "password": PASSWORD,
                        **params,
                    }
                    for proxy in self.proxies
                ]
            ),
            "FLASK_PIKA_POOL_PARAMS": json.dumps(pool),
            "FLASK_PIKA_PUBLISHER_PARAMS": json.dumps({"timeout": timeout}),
            "QUEUE": self.queue,
            "EXCHANGE": self.setting.exchange,
            "PASSWORD_FILE": str(self.password),
            "PLACE": str(self.place),
            "LEDGER": str(self.place / "ledger"),
            "WORK": str(self.setting.work),
            "STAND_IN": self.stand_in,
            **self.setting.env,
        }

    @property
    def worker_options(self) -> Sequence[str]:
        more = ["--drain-timeout=0"] if self.stand_in == "no drain" else []
        return [*self.setting.worker_options, *more]

    def declare(self) -> None:
        with self.site.channel() as ch:
            ch.queue_declare(self.queue, durable=True, arguments=dict(self.setting.queue))
            if self.setting.exchange:
                ch.exchange_declare(self.setting.exchange, durable=True)
                ch.queue_bind(self.queue, self.setting.exchange, self.queue)

    # For faults

    @contextlib.contextmanager
    def disturbed(self) -> Iterator[None]:
        """While something is broken, and until it is seen to have been mended."""
        with self.ledger.disturbance():
            yield

    def returned(self, at: float | None = None) -> None:
        """What was broken is there again: from now on it is counted how long the first success takes.

        :param at: or from then on, of the monotonic clock.
        """
        self.returns.append(time.monotonic() if at is None else at)

    @contextlib.contextmanager
    def deletion(self) -> Iterator[None]:
        """While the queue is deleted; an exception says that it was not: see :attr:`Books.deletions`."""
        one = Disturbance(time.monotonic())
        yield
        one.ended = time.monotonic()
        self.deletions.append(one)

    def goes_on(self, more: int = 100) -> None:
        self.load.goes_on(more)

    def is_held_up(self) -> None:
        """Wait until each client waits for its answer: all have something under way. Stand-ins need not.

        Of what they send, enough is to go to each node.
        """
        self.load.is_held_up(unless=200 if self.stand_in else None)

    def holder(self) -> RabbitMQNode:
        """The node that holds a connection of the web server's, which is under load."""
        pids = sorted(self.server.children) or [self.server.pid]
        found = next((node for pid in pids if (node := self.cluster.holder_of(f"(pid {pid})"))), None)
        assert found is not None, f"none of {pids} is connected"
        return found

    # For the end

    def settle(self) -> Books:
        """Stop the load, have all that is left handled, and open the books."""
        self.load.stop()
        self._write_down()
        for _ in range(5):
            self._wait_until_empty()
            for worker in self.workers:
                if worker.is_running:
                    worker.stop()
            if not self._ready():  # what was in a worker's hands is back by now, or settled
                break
            for worker in self.workers:
                worker.start()
        return Books(
            self.rules,
            self.load.answers,
            self.ledger.runs,
            self.ledger.disturbances,
            self.returns,
            self.left(),
            self.deletions,
        )

    def _write_down(self) -> None:
        """What the app says of itself and of its errors, to be searched with the rest."""
        shown = []
        for _ in range(_LOOKS):  # each is one process's
            with urllib.request.urlopen(f"{self.server.base}/stats", timeout=60) as response:
                shown.append(response.read().decode())
        (self.place / "stats").write_text("\n".join(shown))
        (self.place / "answers").write_text("\n".join(one.text for one in self.load.answers if one.text))

    def left(self) -> list[str]:
        """What is in the queue still: where nothing consumes, all of it."""
        found = []
        with contextlib.suppress(pika.exceptions.ChannelClosedByBroker), self.site.channel() as ch:
            while (got := ch.basic_get(self.queue, auto_ack=True))[0] is not None:
                found.append((got[2] or b"").decode())
        return found

    def _wait_until_empty(self) -> None:
        if self.workers:
            wait_for(lambda: not self._ready(), lambda: f"an empty queue: {self._ready()} are left", 120)

    def _ready(self) -> int:
        """How many messages wait for a consumer."""
        try:
            with self.site.channel() as ch:
                found = ch.queue_declare(self.queue, passive=True).method.message_count
                return int(found)
        except pika.exceptions.ChannelClosedByBroker:
            return 0  # no such queue
        except pika.exceptions.AMQPError:
            return 1  # nobody knows


def run(scenario: Scenario, site: Site, report: Report, *, grace: float) -> Lab:
    """One round: the fault under load, what follows, and the books balance.

    :returns: the lab, which is over.
    """
    with Lab(site, scenario.setting, grace) as lab:
        lab.goes_on()
        scenario.fault(lab)
        lab.goes_on()
        assert not lab.load.is_over, "the load came to its end before the fault did"
        books = lab.settle()
    # Also of a round that fails: the page says what was, not what should be.
    report.add_books(scenario.group, scenario.name, scenario.setting.server, books)
    books.check()
    return lab


def run_stand_in(scenario: Scenario, stand_in: str, site: Site, report: Report) -> None:
    """The same with an app that is broken on purpose: its books must not balance, in the way they should."""
    setting = scenario.setting
    if stand_in in ("no confirms", "no probe"):
        setting = replace(setting, path="publish" if stand_in == "no confirms" else "pool")
    with Lab(site, setting, grace=1.0, stand_in=stand_in) as lab:
        lab.goes_on()
        scenario.fault(lab)
        lab.goes_on()
        books = lab.settle()
    found = books.findings()
    kind = scenario.stand_ins[stand_in]
    assert kind in found, f"{stand_in!r} was not caught; found: {found}"
    report.add_caught(scenario.group, scenario.name, stand_in, f"{len(found[kind]):,} {kind}")


def parametrize(*scenarios: Scenario) -> pytest.MarkDecorator:
    """For the test that runs them all."""
    return pytest.mark.parametrize("scenario", scenarios, ids=lambda scenario: scenario.name)


def parametrize_stand_ins(*scenarios: Scenario) -> pytest.MarkDecorator:
    """For the test that runs each once with each of its stand-ins."""
    return pytest.mark.parametrize(
        ("scenario", "stand_in"),
        [
            pytest.param(scenario, stand_in, id=f"{scenario.name} - {stand_in}")
            for scenario in scenarios
            for stand_in in scenario.stand_ins
        ],
    )
