"""A private RabbitMQ node on a free loopback port: started in seconds, killed, frozen and stopped at will.

It uses the system's RabbitMQ programs, but neither its service, its data, its cookie nor its epmd.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

_PLACES = (
    Path("/usr/lib/rabbitmq/bin"),  # Debian, Ubuntu, Fedora
    Path("/opt/homebrew/opt/rabbitmq/sbin"),
    Path("/usr/local/opt/rabbitmq/sbin"),
)
_START_TIMEOUT = 90.0
_END_TIMEOUT = 60.0


class NodeError(Exception):
    """The node did not do what it was told; the message has the end of its log."""


def programs() -> Path | None:
    """Where RabbitMQ's programs are on this machine, or None."""
    for place in _PLACES:
        if (place / "rabbitmq-server").exists():
            return place
    # Debian's /usr/sbin/rabbitmq-server is a wrapper that insists on its own user: not this way there.
    found = shutil.which("rabbitmq-server")
    return Path(found).resolve().parent if found else None


#: Where ports are taken from: not the system's range for outgoing connections, since a client that dials such
#: a port again and again while its node is down gets connected to itself, sooner or later.
_PORTS = os.environ.get("TEST_PORTS", "20000-30000")
_given: set[int] = set()


def free_port() -> int:
    """A loopback port that nobody listens on, and that this process was not given before.

    A node takes seconds to listen, and one that is killed leaves its port for a while: whoever runs beside
    this process is kept off by a range of its own, ``TEST_PORTS=20000-25000`` in the environment.
    """
    first, _, last = _PORTS.partition("-")
    while True:
        port = random.randrange(int(first), int(last))
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in _given or len(_given) > (int(last) - int(first)) // 2:
                _given.add(port)
                return port


def name_of(port: int) -> str:
    """The Erlang name of the node on this port."""
    return f"flask-pika-{port}@localhost"


def _erlang(program: str) -> str | None:
    """Where one of Erlang's own programs is; not every distribution has all of them in the PATH."""
    found = map(str, Path("/usr/lib/erlang").glob(f"erts-*/bin/{program}"))
    return shutil.which(program) or next(found, None)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold back what ends a program, which could strike between a process's start and the note of it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    kept = {
        number: signal.signal(number, lambda number, _frame: came.append(number))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
    for late in came:
        signal.raise_signal(late)


class Epmd:
    """The directory in which nodes find each other, on a port of its own: ``start()`` and ``stop()`` it.

    A node that finds none starts one, but as a daemon: nobody knows its process, and it refuses to end
    while it has not noticed that its nodes have.
    """

    def __init__(self) -> None:
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, unless it runs, and wait until it listens: else a node would start one, too."""
        program = _erlang("epmd")
        if program is None or (self._process is not None and self._process.poll() is None):
            return
        with uninterrupted():
            self._process = subprocess.Popen(
                [program, "-port", str(self.port), "-address", "127.0.0.1"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        deadline = time.monotonic() + _START_TIMEOUT
        while not _accepts(self.port):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise NodeError(f"epmd did not start on port {self.port}")
            time.sleep(0.01)

    def stop(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(_END_TIMEOUT)


class RabbitMQNode:
    """One node. ``start()`` it, or use it in a ``with`` block; ``remove()`` ends it and deletes its data.

    :param config: further lines for ``rabbitmq.conf``.
    :param port: where it listens; None: any that is free.
    :param cookie: the password of nodes for each other; with one in common, and with the same ``epmd``, nodes
        find each other: see ``rabbitmq_cluster.py``. It is for them to stop such an ``epmd``.
    """

    def __init__(
        self,
        config: str = "",
        *,
        port: int | None = None,
        cookie: str | None = None,
        epmd: Epmd | None = None,
    ) -> None:
        place = programs()
        if place is None:
            raise NodeError("RabbitMQ is not installed: see scripts/ensure-rabbitmq")
        self._programs = place
        self._home = Path(tempfile.mkdtemp(prefix="flask-pika-node-"))
        self.port = port or free_port()
        self._epmd = epmd or Epmd()
        self._has_own_epmd = epmd is None
        self.name = name_of(self.port)
        if cookie is not None:
            (self._home / ".erlang.cookie").write_text(cookie)
            (self._home / ".erlang.cookie").chmod(0o400)
        self._process: subprocess.Popen[bytes] | None = None
        self.is_frozen = False
        (self._home / "rabbitmq.conf").write_text(f"listeners.tcp.1 = 127.0.0.1:{self.port}\n{config}\n")
        (self._home / "enabled_plugins").write_text("[].\n")
        self._env = {
            # Not what somebody set for a broker of theirs.
            **{key: value for key, value in os.environ.items() if not key.startswith(("RABBITMQ_", "ERL_"))},
            "HOME": str(self._home),
            "RABBITMQ_NODENAME": self.name,
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_MNESIA_BASE": str(self._home / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self._home / "log"),
            "RABBITMQ_CONFIG_FILE": str(self._home / "rabbitmq"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self._home / "enabled_plugins"),
            "RABBITMQ_CONF_ENV_FILE": os.devnull,
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "ERL_CRASH_DUMP_SECONDS": "0",  # no dump in the working directory, when it is killed as it starts
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(self._epmd.port),
        }

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}/%2F"

    @property
    def params(self) -> dict[str, object]:
        # On a loaded machine, a handshake may take longer than one should wait for a broker's.
        patience = {"stack_timeout": 60, "socket_timeout": 60}
        return {"host": "127.0.0.1", "port": self.port, "username": "guest", "password": "guest", **patience}

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> RabbitMQNode:
        """Start the node, with the data that it has, and wait until it speaks AMQP."""
        self.launch()
        self.wait_until_up()
        return self

    def launch(self) -> None:
        """Start the node, unless it runs, and do not wait for it: for nodes that wait for each other."""
        if self.is_running:
            return
        self._epmd.start()
        with (self._home / "output.log").open("ab") as output, uninterrupted():
            self._process = subprocess.Popen(
                [self._programs / "rabbitmq-server"],
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C at the terminal is for the program that uses it
            )

    def wait_until_up(self) -> None:
        """Wait until it speaks AMQP."""
        deadline = time.monotonic() + _START_TIMEOUT
        while not self.speaks_amqp():
            if not self.is_running or time.monotonic() > deadline:
                raise NodeError(f"RabbitMQ did not start:\n{self.log_tail()}")
            time.sleep(0.05)

    def kill(self) -> None:
        """Kill it as ``kill -9`` does: connections end without a word, what was not on disk is gone."""
        self._signal(signal.SIGKILL)
        self._wait()

    def stop(self) -> None:
        """Stop it in order: clients are told."""
        self._signal(signal.SIGTERM)
        self._wait()

    def restart(self) -> None:
        self.stop()
        self.start()

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop its clock: it answers nothing and closes nothing, as a host that is stuck."""
        self._signal(signal.SIGSTOP)
        self.is_frozen = True
        try:
            self._wait_until_stopped()
            yield
        finally:
            self.is_frozen = False
            self._signal(signal.SIGCONT)

    def ctl(self, *args: str) -> str:
        """What ``rabbitmqctl`` says to these arguments."""
        return self._run([str(self._programs / "rabbitmqctl"), "--quiet", "-n", self.name, *args])

    def evaluate(self, expression: str, timeout: float = 60.0) -> str:
        """What an Erlang expression, with its full stop, comes to in the node: an atom or a number, as text.

        Where Erlang's ``erl_call`` is, that takes milliseconds, and half a second of a whole processor with
        ``rabbitmqctl eval``. The two write strings and binaries differently.
        """
        program = _erlang("erl_call")
        if program is None:
            return self._run(
                [str(self._programs / "rabbitmqctl"), "--quiet", "-n", self.name, "eval", expression],
                timeout=timeout,
            ).strip()
        said = self._run([program, "-sname", self.name, "-e"], f"{expression.strip()}\n", timeout)
        if not said.startswith("{ok, "):
            raise NodeError(f"{self.name}: {expression.strip()}: {said}")
        return said.strip()[len("{ok, ") : -1]

    def _run(self, command: list[str], written: str = "", timeout: float = 60.0) -> str:
        shown = " ".join([Path(command[0]).name, *command[1:]])
        try:
            done = subprocess.run(
                command,
                env=self._env,
                input=written,
                capture_output=True,
                text=True,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired as exc:
            raise NodeError(f"{shown}: no answer in {timeout:.0f} s\n{self.log_tail()}") from exc
        if done.returncode:
            raise NodeError(f"{shown}: {done.stdout}{done.stderr}")
        return done.stdout

    def sync(self) -> None:
        """Wait until the queues and exchanges that it knows are on disk.

        It says that it has declared a durable queue before that: of 25 that were killed within a tenth of a
        second, 4 had forgotten the queue, with the confirmed messages in it (RabbitMQ 3.10.8).

        Of a quorum queue it has written more than its name, half a second later: killed before that, it has a
        queue that takes nothing.
        """
        self.evaluate("mnesia:sync_log(), [ok = dets:sync(Table) || Table <- dets:all()], done.")

    def connections(self) -> list[str]:
        """The names that open connections gave themselves."""
        lines = self.ctl("list_connections", "name", "client_properties").splitlines()
        return [
            line.split('"connection_name","', 1)[1].split('"', 1)[0]
            for line in lines
            if '"connection_name","' in line
        ]

    def log(self) -> str:
        """What the node has logged."""
        return "".join(path.read_text(errors="replace") for path in (self._home / "log").glob("*.log"))

    def remove(self) -> None:
        """End it, whatever state it is in, and delete all that it wrote."""
        try:
            self.kill()
        finally:
            if self._has_own_epmd:
                self._epmd.stop()
            shutil.rmtree(self._home, ignore_errors=True)

    def __enter__(self) -> RabbitMQNode:
        try:
            return self.start()
        except BaseException:  # a Ctrl-C while it starts, too
            self.remove()
            raise

    def __exit__(self, *exc_info: object) -> None:
        self.remove()

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            # Its session: the shell that started it, and the node, which may outlive that. It has helpers in
            # sessions of their own, which end with it.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    def _wait_until_stopped(self) -> None:
        """SIGSTOP takes effect a moment after it was sent. Where there is no /proc, nobody can tell when."""
        deadline = time.monotonic() + 60
        while any(state not in "TZ" for state in self._states()):
            if time.monotonic() > deadline:
                raise NodeError("RabbitMQ does not stop")
            time.sleep(0.001)

    def _states(self) -> Iterator[str]:
        """The states of the session's threads, as /proc has them."""
        for process in Path("/proc").glob("[0-9]*"):
            threads: list[Path] = []
            # Not as a longer pattern: to look into what has just ended raises there (Python 3.10 and 3.11).
            with contextlib.suppress(OSError):
                threads = list((process / "task").iterdir())
            for thread in threads:
                with contextlib.suppress(OSError):
                    fields = (thread / "stat").read_text().rpartition(")")[2].split()
                    if self._process is not None and int(fields[3]) == self._process.pid:
                        yield fields[0]

    def _wait(self) -> None:
        """Wait until all of its session has ended, and nobody listens at its port."""
        if self._process is None:
            return
        deadline = time.monotonic() + _END_TIMEOUT
        while self.is_running or _accepts(self.port) or any(state not in "ZX" for state in self._states()):
            if time.monotonic() > deadline:
                self._signal(signal.SIGKILL)  # what comes next must not find half of it
                raise NodeError(f"RabbitMQ does not end:\n{self.log_tail()}")
            time.sleep(0.01)
        self._process = None  # the number may soon be another's
        self.is_frozen = False

    def speaks_amqp(self) -> bool:
        """Whether it is there for clients: neither frozen, nor paused since it sees no majority."""
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as peer:
            peer.sendall(b"AMQP\x00\x00\x09\x01")  # AMQP 0-9-1, section 4.2.2: the protocol header
            return peer.recv(1) == b"\x01"  # a method frame: Connection.Start
        return False

    def log_tail(self) -> str:
        """The end of what the node has said and logged, for errors."""
        lines = []
        for path in (self._home / "output.log", self._home / "log" / f"{self.name}.log"):
            with contextlib.suppress(OSError):
                lines += path.read_text(errors="replace").splitlines()[-25:]
        return "\n".join(lines) or "(no log)"


def _accepts(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False
