"""``flask pika worker`` under load, told to end, interrupted and killed: real processes, on RabbitMQ."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import wait_for
from tests.ledger import Ledger
from tests.test_publisher import _keep_apps, contents  # noqa: F401 - a fixture
from tests.test_publisher_processes import run
from tests.test_worker_outage import all_are_committed, comes_to, left, publish, publish_bodies, queues
from tests.wiretap import Wiretap
from tools.rabbitmq_node import RabbitMQNode, free_port, uninterrupted

ROOT = Path(__file__).parent.parent
THREADS, PREFETCH = 8, 50


class Command:
    """A ``flask pika worker`` that runs."""

    def __init__(self, log: Path, app: str, options: tuple[str, ...], env: dict[str, str]) -> None:
        self._log = log
        with log.open("wb") as out, uninterrupted():
            self.process = subprocess.Popen(
                [sys.executable, "-m", "flask", "--app", app, "pika", "worker", *options],
                cwd=ROOT,
                env={**os.environ, **env},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def said(self) -> str:
        return self._log.read_text(errors="replace")

    def says(self, text: str) -> None:
        wait_for(lambda: text in self.said, lambda: f"{text!r} in:\n{self.said[-5000:]}", 60)

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def ends(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.send(number)
        return self.exit_code()

    def exit_code(self) -> int:
        return self.process.wait(60)

    @property
    def children(self) -> list[int]:
        pid = self.process.pid
        return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))

    def close(self) -> None:
        # Its session: children that a parent left behind, too.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


Start = Callable[..., Command]


def begins(worker: Command, ledger: Ledger, count: int, pid: int | None = None) -> None:
    """Wait until that many runs have begun, in all or in one process."""

    def begun() -> bool:
        return sum(pid in (None, run.pid) for run in ledger.runs) >= count

    wait_for(begun, lambda: f"{count} have begun: {ledger.counts()}\n{worker.said[-5000:]}", 60)


@pytest.fixture
def hold(tmp_path: Path) -> Path:
    """As long as this file is not there, handlers hold messages that say so."""
    return tmp_path / "hold-no-more"


@pytest.fixture
def start(tmp_path: Path, hold: Path, node: RabbitMQNode, ledger: Ledger) -> Iterator[Start]:
    """Starts the command, for the app in tests.apps.work."""
    with contextlib.ExitStack() as stack:
        count = 0

        def begin(
            *options: str, app: str = "tests.apps.work", params: object = node.url, **env: object
        ) -> Command:
            nonlocal count
            count += 1
            told = {"LEDGER": ledger.path, "HOLD": hold, "WORK": 0, "PREFETCH": PREFETCH, **env}
            told["FLASK_PIKA_PARAMS"] = params if isinstance(params, str) else json.dumps(params)
            command = Command(
                tmp_path / f"log-{count}", app, options, {key: str(value) for key, value in told.items()}
            )
            stack.callback(command.close)
            return command

        yield begin


@pytest.fixture
def work(node: RabbitMQNode) -> Iterator[str]:
    with queues(node, "work"):
        yield "work"


# Told to end


@pytest.mark.timeout(300)
def test_of_twenty_workers_that_are_told_to_end_under_load_each_drains_and_nothing_is_handled_twice(
    node: RabbitMQNode, work: str, ledger: Ledger, start: Start
) -> None:
    published = publish(node, work, 2000)
    with Wiretap(node.port) as tap:
        for number in range(20):
            published += publish(node, work, 1000, f"{number}-")
            processes = 1 + number % 2
            worker = start(f"--processes={processes}", params={**node.params, "port": tap.port}, WORK=0.005)
            # At another moment each time.
            begins(worker, ledger, ledger.begun() + 1 + 37 * number % 200)
            assert worker.ends() == 0, worker.said
            assert not ledger.of(None), "a handler had no time to return"
            committed = len(ledger.committed)
            rest = len(published) - committed
            comes_to(node, work, rest, "what was committed is acked, and all else is back")
        worker = start(params={**node.params, "port": tap.port})
        all_are_committed(ledger, published)
        assert worker.ends() == 0, worker.said
        tap.check(ledger)
    ledger.check_all(published)
    assert len(ledger.runs) == len(published), "handled twice, for which there was no reason"
    assert not ledger.check_twice()
    assert left(node, work) == 0


@pytest.mark.parametrize("processes", [1, 2])
def test_what_no_handler_has_begun_goes_back_at_once_and_what_runs_is_finished(
    node: RabbitMQNode, work: str, ledger: Ledger, start: Start, hold: Path, processes: int
) -> None:
    held = processes * THREADS
    published = publish_bodies(node, work, [f"{number:05} hold" for number in range(held)])
    prefetch = THREADS if processes > 1 else PREFETCH
    leaving = start(f"--processes={processes}", "--drain-timeout=600", PREFETCH=prefetch)
    wait_for(lambda: len(ledger.of(None)) == held, lambda: leaving.said, 60)
    published += publish(node, work, 100, "later-")
    if processes == 1:
        comes_to(node, work, 100 - (PREFETCH - THREADS), "it has some in advance")
    leaving.send(signal.SIGTERM)
    comes_to(node, work, 100, "they are given back, while the others run")
    assert leaving.process.poll() is None
    staying = start()
    wait_for(lambda: len(ledger.committed) == 100, lambda: staying.said, 60)
    assert len(ledger.of(None)) == held, "and still run"
    hold.touch()
    assert leaving.exit_code() == 0, leaving.said
    assert staying.ends() == 0, staying.said
    ledger.check_all(published)
    assert len(ledger.runs) == len(published)
    assert left(node, work) == 0


@pytest.mark.parametrize("processes", [1, 2])
def test_what_is_not_finished_in_time_comes_again(
    node: RabbitMQNode, work: str, ledger: Ledger, start: Start, hold: Path, processes: int
) -> None:
    published = publish_bodies(node, work, [f"{number:05} hold" for number in range(3)])
    worker = start(f"--processes={processes}", "--drain-timeout=0.5")
    wait_for(lambda: len(ledger.of(None)) == 3, lambda: worker.said, 60)
    with ledger.disturbance():
        assert worker.ends() == 3, worker.said
    comes_to(node, work, 3, "they are back")
    hold.touch()
    worker = start()
    all_are_committed(ledger, published)
    assert worker.ends() == 0
    ledger.check_all(published)
    assert len(ledger.check_twice()) == 3


@pytest.mark.parametrize("processes", [1, 2])
def test_a_second_ctrl_c_leaves_at_once(
    node: RabbitMQNode, work: str, ledger: Ledger, start: Start, processes: int
) -> None:
    publish_bodies(node, work, ["00000 hold"])
    worker = start(f"--processes={processes}", "--drain-timeout=600")
    wait_for(lambda: len(ledger.of(None)) == 1, lambda: worker.said, 60)
    count = processes if processes > 1 else 0
    wait_for(lambda: len(worker.children) == count, lambda: worker.said)  # the first one may be quick
    children = worker.children
    worker.send(signal.SIGINT)
    worker.says("draining")
    assert worker.process.poll() is None
    assert worker.ends(signal.SIGINT) == 130
    wait_for(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in children), "nobody is left")
    comes_to(node, work, 1, "it is back")
    assert len(ledger.of(None)) == 1


# Killed


def test_what_a_killed_worker_had_comes_again_to_another(
    node: RabbitMQNode, work: str, ledger: Ledger, start: Start, hold: Path
) -> None:
    holding = [f"{number:05} hold" for number in range(THREADS)]
    published = publish_bodies(node, work, [*holding, *(f"{number:05}" for number in range(THREADS, 500))])
    doomed = start()
    wait_for(lambda: len(ledger.of(None)) == THREADS, lambda: doomed.said, 60)
    comes_to(node, work, 500 - PREFETCH, "it has some in advance")
    other = start()
    wait_for(lambda: len(ledger.committed) == 500 - PREFETCH, lambda: other.said, 60)
    hold.touch()  # which only those see who look; the doomed one looks no more
    with ledger.disturbance():
        os.kill(doomed.process.pid, signal.SIGKILL)
        doomed.process.wait()
    all_are_committed(ledger, published)
    assert other.ends() == 0, other.said
    ledger.check_all(published)
    assert left(node, work) == 0
    for before, after in ledger.check_twice():
        assert (before.pid, after.pid) == (doomed.process.pid, other.process.pid)
        assert after.redelivered


def test_of_what_killed_workers_had_no_more_than_was_in_flight_is_handled_twice(
    node: RabbitMQNode, work: str, ledger: Ledger, start: Start
) -> None:
    published = publish(node, work, 2000)
    killed = set()
    with Wiretap(node.port) as tap:
        params = {**node.params, "port": tap.port}
        other = start(params=params, WORK=0.05)
        for number in range(5):
            published += publish(node, work, 1000, f"{number}-")
            doomed = start(params=params, WORK=0.005)
            pid = doomed.process.pid
            begins(doomed, ledger, 1 + 61 * number, pid)
            with ledger.disturbance():
                os.kill(pid, signal.SIGKILL)
                doomed.process.wait()
            killed.add(pid)
        helper = start("--processes=2", params=params)
        all_are_committed(ledger, published)
        assert [other.ends(), helper.ends()] == [0, 0], other.said
        tap.check(ledger, broker_heard_all=False)
    ledger.check_all(published)
    twice = ledger.check_twice()
    assert {before.pid for before, _ in twice} <= killed, "of the others, nothing is handled twice"
    assert all(after.redelivered for _, after in twice)
    assert len(twice) <= len(killed) * PREFETCH
    assert {run.pid for run in ledger.of(None)} <= killed
    assert left(node, work) == 0


def test_a_process_that_is_killed_is_replaced_and_what_it_had_comes_again(
    node: RabbitMQNode, work: str, ledger: Ledger, start: Start
) -> None:
    published = publish(node, work, 1000)
    worker = start("--processes=2", WORK=0.005)

    def pids() -> set[int]:
        return {run.pid for run in ledger.runs}

    def have_begun(count: int) -> bool:
        # However much the others have done meanwhile, there is something for each.
        published.extend(publish(node, work, 50, f"{len(published)}-"))
        return len(pids()) == count

    wait_for(lambda: have_begun(2), lambda: worker.said, 60)
    children = worker.children
    assert set(children) == pids()
    with ledger.disturbance():
        os.kill(children[0], signal.SIGKILL)
        wait_for(lambda: children[0] not in worker.children, "the parent sees it")

    wait_for(lambda: have_begun(3), lambda: worker.said, 60)
    all_are_committed(ledger, published)
    assert worker.ends() == 0, worker.said
    ledger.check_all(published)
    assert {before.pid for before, _ in ledger.check_twice()} <= {children[0]}
    assert left(node, work) == 0
    assert "SIGKILL" in worker.said


# The books balance

#: How many messages go through two processes in the test below.
MANY = 100_000


@pytest.mark.timeout(600)
def test_through_two_processes_each_of_100000_messages_is_handled_once_or_dead_once(
    node: RabbitMQNode, ledger: Ledger, start: Start
) -> None:
    """Every 50th fails, every 97th goes back once, nobody is killed: the books balance to the message."""
    requeued = {f"{number:06}" for number in range(0, MANY, 97)}
    failing = {f"{number:06}" for number in range(0, MANY, 50)}
    bodies = [
        one + " requeue" * (one in requeued) + " raise" * (one in failing)
        for one in (f"{number:06}" for number in range(MANY))
    ]

    def settled() -> bool:
        counts = ledger.counts()
        return counts.get("committed", 0) + counts.get("raised", 0) >= MANY

    dead_letters = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead"}
    with queues(node, "dead"), queues(node, "work", arguments=dead_letters):
        published = publish_bodies(node, "work", bodies)
        worker = start("--processes=2", PREFETCH=100)
        while not settled():
            begins(worker, ledger, min(ledger.begun() + 1000, MANY + len(requeued)))
        assert worker.ends() == 0, worker.said[-3000:]
        dead = [body.decode().split(" ")[0] for body in contents(node, "dead")]
        assert left(node, "work") == 0
    assert sorted(dead) == sorted(failing), "each once"
    ledger.check_all(published, dead)
    assert not ledger.check_twice(), "there was no reason"
    assert ledger.counts() == {
        "committed": MANY - len(failing),
        "raised": len(failing),
        "requeued": len(requeued),
    }
    assert {run.id for run in ledger.of("requeued")} == requeued
    assert len({run.pid for run in ledger.runs}) == 2


# What it ends with


def test_with_nothing_to_consume_it_ends_with_4(start: Start, work: str) -> None:
    none = start(app="tests.apps.web")
    assert none.exit_code() == 4, none.said
    unknown = start("werk")
    assert unknown.exit_code() == 4
    assert "did you mean 'work'" in unknown.said


@pytest.mark.parametrize("processes", [1, 2])
def test_refused_at_the_start_it_ends_with_5(
    node: RabbitMQNode, start: Start, work: str, processes: int
) -> None:
    for about in ({"password": "wr0ng-s3cret"}, {"virtual_host": "nowhere"}):
        worker = start(f"--processes={processes}", params={**node.params, **about})
        assert worker.exit_code() == 5, worker.said
        assert "s3cret" not in worker.said


def test_configured_wrongly_it_ends_with_2(start: Start) -> None:
    for worker in (start(params={"heartbeat": "often"}), start("--threads=0")):
        assert worker.exit_code() == 2, worker.said
        assert "Traceback" not in worker.said


def test_a_broker_that_is_away_at_the_start_is_waited_for_and_the_worker_can_be_told_to_end(
    start: Start,
) -> None:
    worker = start(params=f"amqp://127.0.0.1:{free_port()}")
    worker.says("unavailable")
    assert worker.process.poll() is None
    assert worker.ends() == 0, worker.said


# A signal that comes to the parent in the middle of something

AT_A_FORK = """
import os, signal, sys
from flask_pika.processes import ENDING, Supervisor

mask = signal.pthread_sigmask

def late(how, which):
    if how == signal.SIG_BLOCK:
        signal.raise_signal(signal.SIGTERM)
    return mask(how, which)

def work(line):
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    mask(signal.SIG_UNBLOCK, ENDING)
    line.recv(1)
    os._exit(1)

signal.pthread_sigmask = late
sys.exit(Supervisor(1, work, 0.1).run())
"""

AT_A_CHILDS_END = """
import os, signal, sys
from flask_pika.processes import Supervisor

waitpid = os.waitpid

def late(pid, options):
    ended = waitpid(pid, options)
    if ended[0]:
        signal.raise_signal(signal.SIGTERM)
    return ended

os.waitpid = late
sys.exit(Supervisor(1, lambda line: os._exit(7), 0.1).run())
"""


#: One process crashes; the one in its stead is refused by a broker with which the other one works.
REFUSED_LATER = """
import os, signal, sys
from pathlib import Path
from flask_pika import processes
from flask_pika.backoff import Backoff
from flask_pika.processes import ENDING, Supervisor

processes._LIVED = 0.0
place = Path(os.environ["PLACE"])

def is_first(name):
    try:
        place.joinpath(name).touch(exist_ok=False)
        return True
    except FileExistsError:
        return False

def leave(*_):
    os.write(1, b"told to leave\\n")  # in one piece: the other process writes its own at this moment
    os._exit(0)

def work(line):
    signal.signal(signal.SIGTERM, leave)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
    if is_first("crashed"):
        os._exit(9)
    if not is_first("healthy"):
        if is_first("refused") or is_first("refused again"):
            os._exit(5)
        print("the broker takes it again", flush=True)
        os.kill(os.getppid(), signal.SIGTERM)
    line.recv(1)
    os._exit(1)

sys.exit(Supervisor(2, work, 30, backoff=Backoff(0.01, 0.01)).run())
"""


def test_a_process_that_is_refused_later_ends_none_that_works(tmp_path: Path) -> None:
    done = run(REFUSED_LATER, {"PLACE": str(tmp_path)})
    assert done.stdout.splitlines() == ["the broker takes it again", *["told to leave"] * 2], done.stderr
    assert done.returncode == 0
    assert done.stderr.count("exit code 5") == 2


@pytest.mark.parametrize(("script", "code"), [(AT_A_FORK, 0), (AT_A_CHILDS_END, 7)], ids=["fork", "end"])
def test_a_parent_that_is_told_to_end_as_a_child_comes_or_goes_ends(script: str, code: int) -> None:
    done = run(script, {})
    assert (done.returncode, done.stderr) == (code, "")
