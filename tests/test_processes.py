"""Forks, servers, gevent and the interpreter's end: real processes all of them."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pika
import pytest

from flask_pika import ChannelReturned, Pika, state
from tests.conftest import make_app, wait_for
from tools.demo import call, gunicorn
from tools.rabbitmq_node import RabbitMQNode, free_port

ROOT = Path(__file__).parent.parent
CONFIRMED: dict[str, object] = {"pool_size": 4, "confirm_delivery": True}


@contextlib.contextmanager
def queue(node: RabbitMQNode, name: str) -> Iterator[Callable[[], list[str]]]:
    """A queue, and what is in it when it is asked for."""
    connection = pika.BlockingConnection(pika.URLParameters(node.url))
    channel = connection.channel()
    channel.queue_delete(name)
    channel.queue_declare(name)

    def contents() -> list[str]:
        bodies = []
        while (found := channel.basic_get(name, auto_ack=True))[0] is not None:
            bodies.append((found[2] or b"").decode())
        return sorted(bodies)

    yield contents
    channel.queue_delete(name)
    connection.close()


def in_child(work: Callable[[], None]) -> None:
    """Fork as os.fork() does, work in the child, and require that it ended well."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException as exc:
            os.write(2, f"in the child: {exc!r}\n".encode())
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def publish(fpika: Pika, name: str, body: str) -> None:
    with fpika.channel() as ch:
        ch.basic_publish("", name, body.encode(), mandatory=True)


@pytest.mark.usefixtures("patient")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("hooks", [True, False], ids=["fork hooks", "none, as under uWSGI"])
def test_parent_and_child_both_go_on_after_a_fork(
    node: RabbitMQNode, hooks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not hooks:
        monkeypatch.setattr("flask_pika.state.State.forget_parent", lambda self: None)
    _app, fpika = make_app(node.params, CONFIRMED, name="forking")
    with queue(node, "forks") as contents:
        held, dirty, broken = fpika.channel(), fpika.channel(), fpika.channel()
        dirty.basic_qos(prefetch_count=1)
        publish(fpika, "forks", "before")

        def work() -> None:
            if hooks:
                with pytest.raises(ChannelReturned, match="fork"):
                    held.basic_publish("", "forks", b"with the parent's channel")
            # Whatever the child does with what it inherited, the parent's connections hear nothing of it.
            fpika.return_channel(held)
            fpika.return_channel(dirty)
            fpika.return_broken_channel(broken)
            for number in range(20):
                publish(fpika, "forks", f"child {number:02}")
            assert fpika.stats().opened == 1
            assert fpika.stats().in_use == 0
            fpika.close()

        for _ in range(2):
            in_child(work)
        # Nothing of the parent's was disturbed: neither the idle connections, nor the one that is lent.
        for ch in (held, dirty, broken):
            ch.basic_publish("", "forks", b"parent", mandatory=True)
            fpika.return_channel(ch)
        publish(fpika, "forks", "parent")
        assert fpika.stats().opened == 4
        assert fpika.stats().discarded == 0
        assert contents() == sorted(
            ["before", *["parent"] * 4, *[f"child {number:02}" for number in range(20)] * 2]
        )


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_child_forked_while_a_thread_holds_the_lock_does_not_hang(node: RabbitMQNode) -> None:
    _app, fpika = make_app(node.params, CONFIRMED)
    with fpika.channel():
        pass
    held = fpika.channel()
    pool = fpika._state().pool()

    def work() -> None:
        signal.alarm(20)
        fpika.return_channel(held)
        with fpika.channel() as ch:
            ch.queue_declare("after-fork", auto_delete=True)
        fpika.close()

    with pool._lock:
        in_child(work)
    fpika.return_channel(held)


SERVERS = {
    "gthread": ("--worker-class=gthread", "--workers=2", "--threads=4"),
    "gthread preload": ("--worker-class=gthread", "--workers=2", "--threads=4", "--preload"),
    "gevent": ("--worker-class=gevent", "--workers=2"),
    "gevent preload": ("--worker-class=gevent", "--workers=2", "--preload"),
}


@pytest.mark.parametrize("server", SERVERS)
def test_under_gunicorn(node: RabbitMQNode, server: str) -> None:
    env = {"FLASK_PIKA_PARAMS": node.url, "FLASK_PIKA_POOL_PARAMS": json.dumps(CONFIRMED)}
    preload = "preload" in server
    app = "tests.apps.web:create_used_app()" if preload else "tests.apps.web:create_app()"
    with queue(node, "preload") as preloaded, queue(node, "served") as contents:
        with gunicorn(app, ROOT, *SERVERS[server], env=env) as base:
            with concurrent.futures.ThreadPoolExecutor(8) as clients:
                answers = list(
                    clients.map(lambda number: call("POST", f"{base}/publish/served/{number:03}"), range(200))
                )
            assert {status for status, _ in answers} == {200}
            stats = [call("GET", f"{base}/stats")[1] for _ in range(20)]
            assert all(one["in_use"] == 0 for one in stats)
            # The workers began anew: none uses what the master had opened.
            assert all(one["opened"] <= 4 and one["discarded"] == 0 for one in stats)
            # A busy machine may leave a worker without a single message: it connects to nothing then.
            published = {one["pid"] for one in stats if one["opened"]} | {one["pid"] for _, one in answers}
            wait_for(
                lambda: all(f"(pid {pid})" in " ".join(node.connections()) for pid in published),
                "the broker names each worker that published",
            )
        assert contents() == [f"{number:03}" for number in range(200)]
        assert preloaded() == (["from the master"] if preload else [])
    wait_for(lambda: not any(name.startswith("web on") for name in node.connections()), "all said goodbye")


def test_a_gunicorn_worker_that_is_killed_is_replaced_and_nothing_is_lost(node: RabbitMQNode) -> None:
    env = {"FLASK_PIKA_PARAMS": node.url, "FLASK_PIKA_POOL_PARAMS": json.dumps(CONFIRMED)}
    with queue(node, "killed") as contents:
        with gunicorn("tests.apps.web:create_app()", ROOT, *SERVERS["gthread"], env=env) as base:
            accepted = []
            for number in range(60):
                try:
                    status, answer = call("POST", f"{base}/publish/killed/{number:03}")
                except (OSError, ValueError):
                    continue  # the worker that was killed had taken this one
                assert status == 200
                accepted.append(f"{number:03}")
                if number % 20 == 10:
                    os.kill(answer["pid"], signal.SIGKILL)
        assert set(accepted) <= set(contents())
        assert len(accepted) >= 54


def run(script: str, env: dict[str, str], timeout: float = 100) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        cwd=ROOT,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


GEVENT = """
from gevent import monkey; monkey.patch_all()
import gevent
from gevent.pool import Pool as Greenlets
from flask_pika import PoolTimeout
from tests.apps.web import create_app, fpika

app = create_app()

def publish(number):
    with fpika.channel() as ch:
        gevent.sleep(0)
        ch.basic_publish("", "greenlets", b"%03d" % number, mandatory=True)

Greenlets(50).map(publish, range(500))
assert fpika.stats().opened == 4, fpika.stats()

# A gevent.Timeout leaves nothing behind: neither while waiting for a channel ...
held = [fpika.channel() for _ in range(4)]
for _ in range(5):
    try:
        with gevent.Timeout(0.01):
            fpika.channel()
    except gevent.Timeout:
        continue
    raise AssertionError("got a fifth channel")
assert fpika.stats().waiting == 0
# ... nor in the middle of a call, which must not vouch for the next message.
try:
    with gevent.Timeout(0.01):
        held[0].connection.sleep(5)
except gevent.Timeout:
    pass
for ch in held:
    fpika.return_channel(ch)
for number in range(4):
    publish(500 + number)
assert fpika.stats().in_use == 0, fpika.stats()

# The keeper is a greenlet: it serves heartbeats while the others sleep.
opened = fpika.stats().opened
gevent.sleep(13)
for number in range(4):
    publish(504 + number)
assert fpika.stats().opened == opened, fpika.stats()
print("done")
"""


def test_monkey_patched_by_gevent(node: RabbitMQNode) -> None:
    pytest.importorskip("gevent")
    # The broker gives up who is silent for two heartbeats: that must be no process that a machine holds up.
    params = json.dumps({**node.params, "heartbeat": 4})
    env = {"FLASK_PIKA_PARAMS": params, "FLASK_PIKA_POOL_PARAMS": json.dumps(CONFIRMED)}
    with queue(node, "greenlets") as contents:
        done = run(GEVENT, env)
        assert done.stdout == "done\n", done.stderr
        assert contents() == [f"{number:03}" for number in range(508)]


EXIT = """
import sys
from flask_pika import state
from tests.apps.web import create_app, fpika
state.AT_EXIT = float(sys.argv[1])
app = create_app()
lent = [fpika.channel() for _ in range(4)]
for ch in lent[1:]:
    fpika.return_channel(ch)
print("ready", flush=True)
sys.stdin.readline()
"""


def gone_without_a_goodbye(node: RabbitMQNode) -> int:
    return len(re.findall(r"\[warning\].*closing AMQP connection.* - web on ", node.log()))


@pytest.mark.parametrize("broker", ["there", "frozen", "gone"])
def test_the_interpreters_end_is_quick_whatever_the_broker_does(
    fragile_node: RabbitMQNode, broker: str
) -> None:
    env = {"FLASK_PIKA_PARAMS": fragile_node.url, "FLASK_PIKA_POOL_PARAMS": json.dumps(CONFIRMED)}
    # One that is there has the time that it takes to answer: all goodbyes are counted.
    at_exit = "60" if broker == "there" else "1"
    assert state.AT_EXIT == 1
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", EXIT, at_exit],
        cwd=ROOT,
        env={**os.environ, **env},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        with contextlib.ExitStack() as stack:
            if broker == "frozen":
                stack.enter_context(fragile_node.frozen())
            elif broker == "gone":
                fragile_node.kill()
            began = time.monotonic()
            output, errors = process.communicate("go\n", timeout=60)
            took = time.monotonic() - began
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0
    assert errors == "", errors
    assert output == ""
    assert took < 20, "one second for goodbyes, and what a loaded machine adds; else it would be for ever"
    if broker == "there":
        wait_for(lambda: not any("web on" in name for name in fragile_node.connections()), "the end")
        # RabbitMQ warns of clients that leave without a goodbye: the one channel that is still lent.
        wait_for(lambda: gone_without_a_goodbye(fragile_node), "RabbitMQ notes it")
        assert gone_without_a_goodbye(fragile_node) == 1


def flask_pika(*args: str, app: str = "tests.apps.web", **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flask", "--app", app, "pika", *args],
        cwd=ROOT,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_flask_pika_ping(node: RabbitMQNode) -> None:
    done = flask_pika("ping", FLASK_PIKA_PARAMS=node.url)
    assert done.returncode == 0, done.stderr
    assert f"amqp://127.0.0.1:{node.port}/%2F is RabbitMQ " in done.stdout
    assert done.stdout.rstrip().endswith(" ms")
    assert done.stdout.count("\n") == 1


def test_flask_pika_ping_says_in_one_line_why_not(node: RabbitMQNode) -> None:
    nowhere = f"amqp://user:s3cret@127.0.0.1:{free_port()}"
    done = flask_pika("ping", "--timeout", "3", FLASK_PIKA_PARAMS=nowhere)
    assert done.returncode == 1
    assert "connection refused" in done.stderr
    wrong = node.url.replace("guest:guest", "guest:s3cret")
    refused = flask_pika("ping", FLASK_PIKA_PARAMS=wrong)
    assert refused.returncode == 1
    assert "user name or password refused" in refused.stderr
    for one in (done, refused):
        assert one.stdout == ""
        assert one.stderr.count("\n") == 1, one.stderr
        assert "s3cret" not in one.stderr


def test_flask_pika_ping_is_one_line_in_an_app_that_logs(tmp_path: Path) -> None:
    (tmp_path / "loud.py").write_text(
        "import logging\nlogging.basicConfig(level=logging.DEBUG)\n"
        "from flask import Flask\nfrom flask_pika import Pika\n"
        f"app = Flask('loud')\napp.config['FLASK_PIKA_PARAMS'] = 'amqp://127.0.0.1:{free_port()}'\n"
        "Pika(app)\n"
    )
    done = flask_pika("ping", app=str(tmp_path / "loud"))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, done.stderr


def publish_from_cli(
    node: RabbitMQNode, *args: str, stdin: bytes = b"", **env: str
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "flask", "--app", "tests.apps.web", "pika", "publish", *args],
        cwd=ROOT,
        env={**os.environ, "FLASK_PIKA_PARAMS": node.url, **env},
        input=stdin,
        capture_output=True,
        timeout=60,
        check=False,
    )


def test_flask_pika_publish_sends_a_file_or_its_lines(node: RabbitMQNode, tmp_path: Path) -> None:
    with queue(node, "cli") as contents:
        whole = publish_from_cli(node, "--routing-key=cli", stdin=b"one\ntwo\n")
        assert (whole.returncode, whole.stdout, whole.stderr) == (0, b"1 confirmed, 0 failed\n", b"")
        assert contents() == ["one\ntwo\n"]
        (tmp_path / "lines").write_bytes(b"".join(b"%04d\n" % number for number in range(2500)))
        lines = publish_from_cli(node, "--routing-key=cli", "--lines", str(tmp_path / "lines"))
        assert (lines.returncode, lines.stdout) == (0, b"2500 confirmed, 0 failed\n"), lines.stderr
        assert contents() == [f"{number:04}" for number in range(2500)]


def test_flask_pika_publish_sends_lines_as_they_come_and_ctrl_c_ends_it_with_an_account(
    node: RabbitMQNode,
) -> None:
    with queue(node, "cli") as contents, publishing_lines(node) as (process, write):
        wait_for_lines(contents, write, b"one\n", ["one"])
        wait_for_lines(contents, write, b"two\r\nthr", ["two"])
        wait_for_lines(contents, write, b"ee\n\nfive\n", ["", "five", "three"])
        wait_for_lines(contents, write, b"6\n", ["6"])  # what came before it is confirmed
        process.send_signal(signal.SIGINT)
        account = account_of(process)
    assert account["confirmed"] + account["unknown"] == 6
    assert account["unknown"] <= 1
    assert account["failed"] == 0


def test_flask_pika_publish_says_of_how_many_lines_nothing_is_known(fragile_node: RabbitMQNode) -> None:
    with queue(fragile_node, "cli") as contents:
        with publishing_lines(fragile_node, "--timeout=60") as (process, write):
            wait_for_lines(contents, write, b"one\n", ["one"])
            wait_for_lines(contents, write, b"two\n", ["two"])
            wait_for(lambda: unconfirmed(fragile_node) == {"0"}, "the word on what came before")
            with fragile_node.frozen():
                write(b"three\nfour\nfive\n")
                wait_for(lambda: waits_unread(fragile_node.port), "they are sent")
                process.send_signal(signal.SIGINT)
                account = account_of(process)
        assert account["confirmed"] + account["unknown"] == 5
        assert account["unknown"] in (3, 4)


def account_of(process: subprocess.Popen[bytes]) -> dict[str, int]:
    """What a command that was interrupted says of its lines, by what became of them."""
    assert process.wait(30) == 1
    assert process.stdout is not None
    said = process.stdout.read().decode()
    assert said.endswith("; interrupted; the rest of the input was not read\n")
    found = {what: int(count) for count, what in re.findall(r"(\d+) (\w+)", said)}
    return {"unknown": 0, **found}


def wait_for_lines(
    contents: Callable[[], list[str]], write: Callable[[bytes], object], text: bytes, expected: list[str]
) -> None:
    got: list[str] = []

    def have_come() -> bool:
        got.extend(contents())
        return sorted(got) == expected

    write(text)
    wait_for(have_come, lambda: f"the lines: {got}")


def unconfirmed(node: RabbitMQNode) -> set[str]:
    """How many messages the node's channels have still to confirm."""
    return set(node.ctl("list_channels", "messages_unconfirmed").split()) - {"messages_unconfirmed"}


def waits_unread(port: int) -> bool:
    """Whether a message or more waits for who has this port, and reads nothing."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        local, _, _, queues = line.split()[1:5]
        if int(local.partition(":")[2], 16) == port and int(queues.partition(":")[2], 16) > 100:
            return True
    return False


@contextlib.contextmanager
def publishing_lines(
    node: RabbitMQNode, *args: str
) -> Iterator[tuple[subprocess.Popen[bytes], Callable[[bytes], object]]]:
    """The command, with its input open; and what writes to that."""
    command = [sys.executable, "-m", "flask", "--app", "tests.apps.web", "pika", "publish"]
    with subprocess.Popen(
        [*command, "--routing-key=cli", "--lines", *args],
        cwd=ROOT,
        env={**os.environ, "FLASK_PIKA_PARAMS": node.url},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
    ) as process:
        assert process.stdin is not None
        try:
            yield process, process.stdin.write
        finally:
            process.kill()


def test_flask_pika_publish_sets_what_it_is_told(node: RabbitMQNode) -> None:
    connection = pika.BlockingConnection(pika.URLParameters(node.url))
    channel = connection.channel()
    channel.exchange_declare("cli", "headers")
    name = channel.queue_declare("", exclusive=True).method.queue
    channel.queue_bind(name, "cli", arguments={"tenant": "a=b"})
    done = publish_from_cli(
        node, "--exchange=cli", "--header=tenant=a=b", "--content-type=text/x", "--lines", stdin=b"x"
    )
    assert done.returncode == 0, done.stderr
    _, properties, body = channel.basic_get(name, auto_ack=True)
    assert properties is not None
    assert (body, properties.content_type, properties.headers) == (b"x", "text/x", {"tenant": "a=b"})
    channel.exchange_delete("cli")
    connection.close()


def test_flask_pika_publish_says_what_failed(node: RabbitMQNode) -> None:
    done = publish_from_cli(node, "--routing-key=nowhere", "--lines", stdin=b"x\n" * 25)
    assert done.returncode == 1
    assert done.stdout == b"0 confirmed, 25 failed\n"
    told = done.stderr.decode().splitlines()
    assert len(told) == 10
    assert "line 1: " in told[0]
    assert "NO_ROUTE" in told[0]
    assert publish_from_cli(node, "--routing-key=nowhere", "--no-mandatory", stdin=b"x").returncode == 0


def test_flask_pika_publish_ends_when_the_broker_is_away(node: RabbitMQNode) -> None:
    nowhere = f"amqp://user:s3cret@127.0.0.1:{free_port()}"
    # Long enough for the first attempt to end.
    done = publish_from_cli(node, "--timeout=4", "--lines", stdin=b"x\n" * 5000, FLASK_PIKA_PARAMS=nowhere)
    assert done.returncode == 1
    assert done.stdout == b"0 confirmed, 1000 failed; the rest of the input was not read\n"
    assert b"connection refused" in done.stderr
    assert b"s3cret" not in done.stderr
    assert done.stderr.count(b"\n") == 10


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--header=x"], b"name=value"),
        (["--config-prefix=OTHER"], b"this app has FLASK_PIKA"),
        (["--timeout=nan"], b"finite"),
        (["/no/such/file"], b"No such file"),
    ],
)
def test_flask_pika_publish_refuses_what_it_cannot_do(
    node: RabbitMQNode, args: list[str], said: bytes
) -> None:
    done = publish_from_cli(node, *args)
    assert done.returncode == 2
    assert said in done.stderr


def test_flask_pika_publish_shows_a_person_how_far_it_is(node: RabbitMQNode, tmp_path: Path) -> None:
    (tmp_path / "long").write_bytes(b"%099d\n" % 7 * 15_000)
    master, slave = os.openpty()
    with queue(node, "cli") as contents:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "flask", "--app", "tests.apps.web", "pika", "publish"),
                *("--routing-key=cli", "--lines", str(tmp_path / "long")),
            ],
            cwd=ROOT,
            env={**os.environ, "FLASK_PIKA_PARAMS": node.url},
            stdout=subprocess.PIPE,
            stderr=slave,
            timeout=60,
            check=False,
        )
        os.close(slave)
        shown = b""
        with contextlib.suppress(OSError):  # the terminal's other end is closed
            while part := os.read(master, 10_000):
                shown += part
        os.close(master)
        assert done.returncode == 0
        assert done.stdout == b"15000 confirmed, 0 failed\n"
        assert b"Publishing" in shown
        assert b"100%" in shown
        assert len(contents()) == 15_000


@pytest.mark.parametrize("timeout", ["nan", "inf", "0", "-1", "soon"])
def test_flask_pika_ping_takes_no_timeout_that_is_none(timeout: str) -> None:
    done = flask_pika("ping", "--timeout", timeout)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("broker", ["embedded", "rabbitmq", "amqp"])
def test_the_demo_shows_the_main_job(node: RabbitMQNode, tmp_path: Path, broker: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tools.demo"],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path), "BROKER": node.url if broker == "amqp" else broker},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "All came back, in order" in done.stdout
    assert "guest:guest" not in done.stdout
    assert "flask-pika-demo" not in node.ctl("list_queues", "name")
    # Of what is killed, some takes a moment to be gone.
    wait_for(lambda: not left_behind(tmp_path), "nothing is left behind")


def test_a_demo_on_something_that_is_no_broker_says_so(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tools.demo"],
        cwd=ROOT,
        env={**os.environ, "BROKER": "amqp://user:s3cret@host:port"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("BROKER is no URL")
    assert "s3cret" not in done.stdout + done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_demo_that_is_interrupted_stops_what_it_started(
    node: RabbitMQNode, tmp_path: Path, number: signal.Signals
) -> None:
    demo = subprocess.Popen(
        [sys.executable, "-m", "tools.demo"],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path), "BROKER": "rabbitmq"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        # Not ignored, as it is for what runs under nohup, and its children.
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )
    # The node is under way, and not up yet.
    wait_for(lambda: list(tmp_path.glob("*/output.log")), "the node's first sign of life")
    demo.send_signal(number)
    told = demo.communicate(timeout=60)
    assert demo.returncode == 128 + number, told
    # Of what is killed, some takes a moment to be gone.
    wait_for(lambda: not left_behind(tmp_path), "nothing is left behind")


def left_behind(place: Path) -> list[str]:
    """Files in the place, and processes that have to do with it."""
    found = [str(path) for path in place.iterdir()]
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str(place).encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_bytes().decode())
    return found


def test_flask_pika_ping_without_a_pika_object(tmp_path: Path) -> None:
    (tmp_path / "bare.py").write_text("from flask import Flask\napp = Flask('bare')\n")
    done = flask_pika("ping", app=str(tmp_path / "bare"))
    assert done.returncode == 1
    assert "no Pika object" in done.stderr


def test_the_quickstart_says_what_is_wrong_over_http(fragile_node: RabbitMQNode) -> None:
    env = {"FLASK_PIKA_PARAMS": fragile_node.url}
    with gunicorn("app:create_app()", ROOT / "examples" / "quickstart", env=env) as base:
        assert call("GET", f"{base}/messages/next")[0] == 404
        assert call("POST", f"{base}/messages", b"hello")[0] == 201
        fragile_node.stop()
        status, answer = call("POST", f"{base}/messages", b"lost?")
        assert status == 503
        assert "connection refused" in answer["error"]
        fragile_node.start()
        assert call("POST", f"{base}/messages", b"again")[0] == 201
        assert [call("GET", f"{base}/messages/next")[1].get("message") for _ in range(3)] == [
            "hello",
            "again",
            None,
        ]
