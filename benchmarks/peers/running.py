"""The candidates' processes, and what is asked of them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Any

import pika

from benchmarks.peers.base import HOST, PATIENCE, QUEUE, Figures
from benchmarks.peers.environments import ROOT, Environments, clean, environ
from benchmarks.peers.rabbitmq_pika_flask import EXCHANGE
from benchmarks.peers.workloads import DURABLE, HERE, QUORUM, Candidate
from tools.proxy import Proxy
from tools.rabbitmq_node import RabbitMQNode, free_port, uninterrupted

#: Where consumers find their messages that have a queue of their own.
OWN_QUEUES = {"dramatiq": "dramatiq", "rabbitmq_pika_flask": "bench.work"}
#: And these put them there themselves, in a form of their own.
FILL = {"dramatiq", "celery"}
_FILLER = Candidate("filler", "ours", HERE)
#: Seconds after a queue was emptied in which the broker clears away what was in it.
_SETTLE = 0.05
#: Whatever the environment says: it is this machine that is asked.
_NO_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Failed(Exception):
    """A candidate failed; the text is its error."""


class NotThere(Exception):
    """A candidate has no such thing."""


class Child:
    """A candidate's process, for any number of runs."""

    def __init__(self, python: str, candidate: Candidate) -> None:
        self._said = b""
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - as long as the process
        with uninterrupted():
            self._process = subprocess.Popen(
                [
                    *(python, "-m", "benchmarks.peers.child"),
                    *(candidate.module, json.dumps(candidate.options)),
                ],
                cwd=ROOT,
                env=environ(candidate),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                start_new_session=True,  # a Ctrl-C at the terminal is for the program that started it
            )
        try:
            self.versions: dict[str, str] = self._answer(PATIENCE)["versions"]
        except BaseException:
            self.end()
            raise

    def run(
        self, work: str, case: dict[str, Any], count: int, when_asked: Callable[[], None] = lambda: None
    ) -> Figures:
        """One run of it. What happens while its connections are open is for ``when_asked``."""
        self._tell(json.dumps({"work": work, "case": case, "count": count}))
        deadline = time.monotonic() + PATIENCE
        while True:
            answer = self._answer(deadline - time.monotonic())
            if "ask" in answer:
                when_asked()
                self._tell("")
            elif "not_offered" in answer:
                raise NotThere(answer["not_offered"])
            else:
                figures: Figures = answer["figures"]
                return figures

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # what it has said tells why
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()

    def _answer(self, seconds: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        deadline = time.monotonic() + seconds
        while b"\n" not in self._said:
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise Failed(f"no answer in {PATIENCE:.0f} s")
            piece = os.read(self._process.stdout.fileno(), 65536)
            if not piece:
                self._process.wait(10)
                raise Failed(f"its process ended, with {self._process.returncode}{self._last_error()}")
            self._said += piece
        line, _, self._said = self._said.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise Failed(clean(answer["error"]))
        return answer

    def _last_error(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines()
        return f": {clean(lines[-1])}" if lines else ""

    def end(self) -> None:
        """End it: when it has nothing more to read, or at once."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()


def _key(candidate: Candidate) -> str:
    # The name alone is not it: the same one may have other options in another workload.
    return f"{candidate.name} {candidate.module} {candidate.options}"


class Lab:
    """The node, a proxy before it, and the candidates' processes; in a ``with`` block."""

    def __init__(self, alone: bool) -> None:
        self.environments = Environments(alone)
        self._stack = contextlib.ExitStack()
        self._children: dict[str, Child] = {}
        #: Of each candidate that has run.
        self.versions: dict[str, dict[str, str]] = {}

    def __enter__(self) -> Lab:
        with contextlib.ExitStack() as stack:
            self.node = stack.enter_context(RabbitMQNode())
            self._proxy = stack.enter_context(Proxy(self.node.port))
            stack.callback(self.dismiss)
            parameters = pika.ConnectionParameters(HOST, self.node.port, heartbeat=0)
            self._connection = stack.enter_context(contextlib.closing(pika.BlockingConnection(parameters)))
            self._admin = self._connection.channel()
            self._admin.queue_declare(QUEUE, durable=False)
            self._admin.exchange_declare(EXCHANGE, "topic")
            self._admin.queue_bind(QUEUE, EXCHANGE, QUEUE)
            for queue in (DURABLE["queue"], OWN_QUEUES["rabbitmq_pika_flask"]):
                self._admin.queue_declare(str(queue), durable=True)
            self._admin.queue_declare(
                str(QUORUM["queue"]), durable=True, arguments={"x-queue-type": "quorum"}
            )
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    def child(self, candidate: Candidate) -> Child:
        """Its process, which is started when it is first asked for."""
        key = _key(candidate)
        if key not in self._children:
            self._children[key] = Child(self.environments.python(candidate), candidate)
            self.versions[candidate.name] = self._children[key].versions
        return self._children[key]

    def dismiss(self, candidate: Candidate | None = None) -> None:
        """End its process, or all of them."""
        for key in list(self._children):
            if candidate is None or key == _key(candidate):
                self._children.pop(key).end()

    def run(self, candidate: Candidate, work: str, values: dict[str, Any], count: int) -> Figures:
        """One run. What fails says so by :class:`Failed`, and has a new process the next time."""
        values = {**values, "port": self.node.port}
        work = str(values.pop("work", work))
        if work == "growth":
            count *= 20
        queue = str(values.get("queue", QUEUE))
        if not self._admin.is_open:  # what failed has closed it
            self._admin = self._connection.channel()
        self._admin.queue_purge(queue)
        time.sleep(_SETTLE)
        if work == "consume":
            return self._consume(candidate, values, count)
        if work == "view":
            return self._view(candidate, {**values, "threads": 16}, count)
        with self._obstacles(values) as when_asked, self._failing(candidate):
            return self.child(candidate).run(work, values, count, when_asked)

    @contextlib.contextmanager
    def _failing(self, candidate: Candidate) -> Iterator[None]:
        try:
            yield
        except Failed:
            self.dismiss(candidate)
            raise

    @contextlib.contextmanager
    def _obstacles(self, values: dict[str, Any]) -> Iterator[Callable[[], None]]:
        """The proxy, where there is a delay, or where nothing is to pass from when it is asked."""
        delay, freezes = values.pop("delay", 0.0), values.pop("frozen", False)
        states = iter((self._proxy.freeze, self._proxy.thaw))
        if delay or freezes:
            values["port"] = self._proxy.port
            self._proxy.delay(delay)
        try:
            yield (lambda: next(states)()) if freezes else (lambda: None)
        finally:
            self._proxy.restore()

    # Consuming

    def _consume(self, candidate: Candidate, values: dict[str, Any], count: int) -> Figures:
        queue = OWN_QUEUES.get(candidate.module, str(values["queue"]))
        values["queue"] = queue
        self.environments.python(candidate)  # before the queue is filled for nobody
        with self._failing(candidate):
            if candidate.module in FILL:
                if candidate.module in OWN_QUEUES:  # it declares it anew
                    self._admin.queue_delete(queue)
                self.child(candidate).run("fill", values, count)
                self.dismiss(candidate)  # each does one thing in its life
            else:
                self._admin.queue_purge(queue)
                self.child(_FILLER).run("fill", values, count)
            self._expect(queue, count)
            try:
                figures = self.child(candidate).run("consume", values, count)
            finally:
                self.dismiss(candidate)
            # Its connections are closed: what it did not acknowledge would be back.
            self._expect(queue, 0)
        return figures

    def _expect(self, queue: str, count: int) -> None:
        deadline = time.monotonic() + 5
        while True:
            found = self._admin.queue_declare(queue, passive=True).method.message_count
            if found == count:
                return
            if time.monotonic() > deadline:
                raise Failed(f"{found} messages are in its queue, and not {count}")
            time.sleep(0.02)

    # A view

    def _view(self, candidate: Candidate, case: dict[str, Any], hundredths: int) -> Figures:
        if shutil.which("wrk") is None:
            raise Failed("wrk is not installed: see scripts/ensure-wrk")
        if candidate.name not in self.versions:
            self.child(candidate)
            self.dismiss(candidate)
        python, port = self.environments.python(candidate), free_port()
        told = {
            "BENCH_MODULE": candidate.module,
            "BENCH_OPTIONS": json.dumps(candidate.options),
            "BENCH_CASE": json.dumps(case),
        }
        with tempfile.TemporaryFile("w+") as errors:
            with uninterrupted():
                server = subprocess.Popen(
                    [
                        *(python, "-m", "gunicorn", "--worker-class=gthread", "--threads=16", "--workers=1"),
                        *(f"--bind={HOST}:{port}", "--log-level=error", "benchmarks.peers.site:create()"),
                    ],
                    cwd=ROOT,
                    env={**environ(candidate), **told},
                    stdin=subprocess.DEVNULL,
                    stdout=errors,
                    stderr=errors,
                    start_new_session=True,
                )
            try:
                self._first_requests(server, port, errors)
                wrk(port, 0.3)
                return wrk(port, max(0.5, hundredths / 100))
            finally:
                server.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    server.wait(3)
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(server.pid, signal.SIGKILL)
                server.wait()

    def _first_requests(self, server: subprocess.Popen[bytes], port: int, errors: Any) -> None:
        deadline, answered = time.monotonic() + 30, 0
        while answered < 5:
            try:
                with _NO_PROXY.open(f"http://{HOST}:{port}/", timeout=PATIENCE):
                    answered += 1
            except urllib.error.HTTPError as exc:
                if exc.code == HTTPStatus.NOT_IMPLEMENTED:
                    raise NotThere(exc.read().decode()) from exc
                raise Failed(clean(exc.read().decode())) from exc
            except OSError as exc:
                if server.poll() is not None or time.monotonic() > deadline:
                    errors.seek(0)
                    lines = errors.read().strip().splitlines() or [str(exc)]
                    raise Failed(f"it does not start: {clean(lines[-1])}") from exc
                time.sleep(0.05)


_UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3}


def wrk(port: int, seconds: float) -> Figures:
    """What wrk makes of 16 clients."""
    # It takes whole seconds alone.
    whole = max(1, round(seconds))
    done = subprocess.run(
        ["wrk", "-t1", "-c16", f"-d{whole}s", "--latency", f"http://{HOST}:{port}/"],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    if done.returncode:
        raise Failed(clean(f"wrk: {done.stdout} {done.stderr}"))
    wrong = re.search(r"Non-2xx or 3xx responses: (\d+)", done.stdout)
    lost = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", done.stdout)
    if wrong or (lost and any(map(int, lost.groups()))):
        raise Failed(clean((wrong or lost or [""])[0]))
    requests = re.search(r"(\d+) requests in ([\d.]+)s", done.stdout)
    figures: Figures = {}
    for share in ("50", "99"):
        found = re.search(rf"^ *{share}% +([\d.]+)(us|ms|s)$", done.stdout, re.M)
        if found:
            figures[f"p{share}"] = float(found[1]) * _UNITS[found[2]]
    if requests is None:
        raise Failed(clean(f"wrk said {done.stdout}"))
    return {"count": int(requests[1]), "seconds": float(requests[2]), **figures}
