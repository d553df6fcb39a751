"""What the documents show at a prompt is run as it stands, and says what they say."""

from __future__ import annotations

import ast
import configparser
import contextlib
import json
import re
import shlex
import shutil
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import click
import pika
import pytest

from flask_pika.cli import pika_cli
from tests.conftest import Node, wait_for
from tests.documents import DOCUMENTS, ROOT, Page, Terminal, blocks_of, page, python_of, runs
from tools.rabbitmq_node import RabbitMQNode, free_port

__all__ = ["page"]  # a fixture

#: The app of the README's configuration: what the reader has to say of the broker is not in it.
WEB = """
from flask import Flask, request

from flask_pika import Pika

app = Flask("shop")
app.config.from_prefixed_env()
fpika = Pika(app)
"""


def queue_of(url: str, name: str, **arguments: Any) -> None:
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        connection.channel().queue_declare(name, durable=True, arguments=arguments or None)


def count_of(url: str, name: str) -> int:
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        return int(connection.channel().queue_declare(name, passive=True).method.message_count)


def holds(url: str, name: str, number: int) -> None:
    """Wait until a queue has so many: RabbitMQ says 0 of a quorum queue that does not answer it in 0.25 s."""
    wait_for(lambda: count_of(url, name) == number, lambda: f"{number} in {name}: {count_of(url, name)}")


def listens(port: int) -> bool:
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/nothing", timeout=5)
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def parsed(command: str) -> click.Context:
    """A ``flask pika`` command with its options, which exist and take these values; it is not run."""
    words = shlex.split(command.partition(" | ")[0])
    words = words[words.index("pika") + 1 :]
    group: click.Command = pika_cli
    while isinstance(group, click.Group):
        group = group.commands[words.pop(0)]
    return group.make_context(group.name, words)


@pytest.mark.parametrize(*runs("README.md", "commands"), indirect=True)
def test_the_readmes_commands(page: Page, everyday: Node, tmp_path: Path) -> None:
    config, app, consumer = python_of("README.md")[1], python_of("README.md")[2], python_of("README.md")[4]
    (tmp_path / "config.py").write_text(f"{config}\nFLASK_PIKA_PARAMS = {everyday.params!r}\n")
    (tmp_path / "app.py").write_text(app + consumer)
    (tmp_path / "orders.jsonl").write_text('{"id": 1}\n' * 25_000)
    health = free_port()
    terminal = Terminal(tmp_path, {"8080": str(health)})
    queue_of(everyday.url, "orders")

    said = terminal.run(page.next("flask --app app pika ping"))
    assert re.fullmatch(r"amqp://127.0.0.1:\d+/%2F is .+, round trip [\d.]+ ms\n", said)
    publish = page.next("flask --app app pika publish")
    assert terminal.run(publish) == page.answer_to(publish)
    assert count_of(everyday.url, "orders") == 25_000
    with terminal.running(page.next("flask --app app pika worker")) as told:
        wait_for(lambda: listens(health), told)
        # Lines of several threads may be mixed up with each other.
        wait_for(lambda: told().count("order") > 25_000, "25,000 orders", timeout=100)
    with pika.BlockingConnection(pika.URLParameters(everyday.url)) as connection:
        connection.channel().queue_delete("orders")


@pytest.mark.parametrize(*runs("docs/quickstart.md", "commands"), indirect=True)
def test_the_quickstarts_commands(page: Page, tmp_path: Path) -> None:
    app, consumer, tests = python_of("docs/quickstart.md")
    (tmp_path / "app.py").write_text(app)
    (tmp_path / "test_app.py").write_text(tests)
    web, broker = free_port(), free_port()
    terminal = Terminal(tmp_path, {":5000": f":{web}"}, FLASK_RUN_PORT=str(web))
    # How the environment of these tests was made, with the sources where they are: scripts/make-venv.
    assert page.take(3) == ["python3 -m venv ~/quickstart", ". ~/quickstart/bin/activate", "pip install ."]

    with terminal.running(page.next("FLASK_PIKA_PARAMS=embedded:// flask run")) as told:
        wait_for(lambda: listens(web), told)
        post = page.next("curl")
        answer = terminal.run(f"{post} --silent --show-error")
        assert list(json.loads(answer)) == list(json.loads(page.answer_to(post))) == ["message_id"]

    (tmp_path / "app.py").write_text(app + consumer)
    # The only thing that is not the reader's: where port 5672 is. It may be somebody's.
    terminal.env["FLASK_PIKA_BROKER_PORT"] = str(broker)
    terminal.env["FLASK_PIKA_PARAMS"] = f"amqp://127.0.0.1:{broker}"
    with terminal.running(page.next("flask pika broker")) as said:
        wait_for(lambda: "listens on" in said(), said)
        with (
            terminal.running(page.next("flask run")) as told,
            terminal.running(page.next("flask pika worker")) as worked,
        ):
            wait_for(lambda: listens(web), told)
            terminal.run(page.next("curl") + " --silent --show-error")
            wait_for(lambda: "order 2" in worked(), worked)
        export = page.next("export FLASK_PIKA_PARAMS=")
        there = export.replace("user:password@rabbit.example.com/shop", f"guest:guest@127.0.0.1:{broker}/%2F")
        assert there != export
        ping = terminal.run(f"{there}; {page.next('flask pika ping')}")
        assert re.fullmatch(r"amqp://127.0.0.1:\d+/%2F is .+, round trip [\d.]+ ms\n", ping)
    del terminal.env["FLASK_PIKA_PARAMS"]
    assert page.next() == "pip install pytest"
    assert "2 passed" in terminal.run(page.next("pytest") + " -p no:cacheprovider")


@pytest.mark.parametrize(*runs("docs/consuming.md", "commands"), indirect=True)
def test_the_consuming_pages_commands(page: Page, everyday: Node, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(WEB + python_of("docs/consuming.md")[0])
    (tmp_path / "app.py").write_text("from shop import app\n\n__all__ = ['app']\n")
    health = free_port()
    terminal = Terminal(
        tmp_path,
        {"8080": str(health)},
        FLASK_PIKA_PARAMS=everyday.url,
        FLASK_PIKA_WORKER_HEALTH_PORT=str(health),
    )
    worker = page.next("flask --app app pika worker")
    with terminal.running(worker) as told:
        wait_for(lambda: "'orders' in vhost" in told(), told)  # the queue is not there
        ask = page.next("curl")

        def answers() -> bool:
            # It hangs up on who has said nothing for two seconds.
            with contextlib.suppress(AssertionError):
                return bool(json.loads(terminal.run(f"{ask} -s")) == json.loads(page.answer_to(ask)))
            return False

        wait_for(answers, told)
    banner = re.sub(r"  health .*\n", "", told()[: told().index("at once.\n") + 9])
    shown = page.answer_to(worker).replace("amqp.server.com:5672/vhost", f"127.0.0.1:{everyday.port}/%2F")
    assert re.sub(r"pid \d+", "pid", banner) == re.sub(r"pid \d+", "pid", shown)


@pytest.mark.parametrize(*runs("docs/testing.md", "commands"), indirect=True)
def test_the_testing_pages_commands(page: Page, tmp_path: Path) -> None:
    place = tmp_path / "shop"
    place.mkdir()
    for name, text in zip(("shop.py", "test_shop.py"), python_of(page.document), strict=False):
        assert text.startswith(f"# {name}\n")
        (place / name).write_text(text)
    assert "3 passed" in Terminal(place).run(page.next("pytest") + " -p no:cacheprovider")

    port = free_port()
    command = page.next("flask pika broker --port 5672")
    with Terminal(tmp_path, {"5672": str(port)}).running(command) as told:
        wait_for(lambda: "listens on" in told(), told)
        app = Terminal(tmp_path, FLASK_PIKA_PARAMS=f"amqp://127.0.0.1:{port}")
        (tmp_path / "app.py").write_text(WEB + 'fpika.queue("orders")\n')
        app.run("echo -n fifteen bytes.. | flask pika publish --routing-key orders")
        wait_for(lambda: "key 'orders': to 'orders'" in told(), told)
    shown = page.answer_to(command).replace("5672", str(port)).splitlines()
    said = [line.strip() for line in told().splitlines()]
    assert said[0] == shown[0]
    # The page's numbers and names are those of one day.
    like = [
        re.escape(line.strip()).replace("40022", r"\d+").replace("laptop", r"\S+").replace("4711", r"\d+")
        for line in shown[1:]
    ]
    for pattern in like:
        pattern = re.sub(r"^\S+ s", r"[\\d.]+ s", pattern.replace("\\ ", " "))
        assert any(re.fullmatch(pattern, line) for line in said), (pattern, said)


@pytest.mark.parametrize(*runs("docs/topology.md", "commands"), indirect=True)
def test_the_topology_pages_commands(page: Page, everyday: Node, tmp_path: Path) -> None:
    registering = python_of("docs/topology.md")[0]
    retry = (
        "\n\nfrom flask import Flask\nfrom flask_pika import Retry\n\n\n"
        '@fpika.consumer("orders.email", retry=Retry(attempts=2))\ndef mail(delivery):\n    pass\n\n\n'
        'app = Flask("shop")\napp.config.from_prefixed_env()\nfpika.init_app(app)\n'
    )
    (tmp_path / "app.py").write_text(registering + retry)
    terminal = Terminal(tmp_path, FLASK_PIKA_PARAMS=everyday.url)
    declare = page.next("flask --app app pika declare")
    queues = ("orders.email", "orders.email.dead", "orders.email.retry.1000ms", "clicks")
    with pika.BlockingConnection(pika.URLParameters(everyday.url)) as connection:
        channel = connection.channel()
        channel.exchange_declare("orders", "topic", durable=True)
        assert terminal.run(declare) == page.answer_to(declare)
        # And what it says of one that differs.
        channel.queue_delete("orders.email")
        channel.queue_declare(
            "orders.email",
            durable=True,
            arguments={
                "x-queue-type": "quorum",
                "x-delivery-limit": 5,
                "x-dead-letter-exchange": "",
                "x-dead-letter-routing-key": "orders.email.dead",
                "x-dead-letter-strategy": "at-least-once",
                "x-overflow": "reject-publish",
            },
        )
        (shown,) = (
            text for _, text in blocks_of(page.document) if text.startswith("queue 'orders.email' is")
        )
        assert shown in terminal.run(declare, code=1)
        draw = page.next("flask --app app pika topology --dot | dot -Tsvg")
        if shutil.which("dot") is None:
            draw = draw.replace("dot -Tsvg", "cat")
        terminal.run(draw)
        assert "orders.email" in (tmp_path / "topology.svg").read_text()
        for queue in queues:
            channel.queue_delete(queue)
        channel.exchange_delete("orders")


DEAD = """
from flask import Flask
from flask_pika import Pika, Reject, Retry

app = Flask("shop")
app.config.from_prefixed_env()
fpika = Pika(app)
orders = fpika.exchange("orders", type="topic")
fpika.queue("orders.email", bind=[(orders, "order.created")], dead_letter=True)


@fpika.consumer("orders.email", retry=Retry(attempts=3, delay=0.001))
def handle(delivery):
    order = delivery.json
    if order["item"] is None:
        raise Reject("an order without an item")
    price = {"tea": 4}[order["item"]]
"""


def headers_in(text: str) -> list[str]:
    return sorted(re.findall(r"^  (x-\S+)", text, re.M))


@pytest.mark.parametrize(*runs("docs/retries.md", "commands"), indirect=True)
def test_the_retries_pages_commands(page: Page, everyday: Node, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(DEAD)
    terminal = Terminal(tmp_path, FLASK_PIKA_PARAMS=everyday.url)
    show = next(command for command in page.left if " dead show " in command)
    orders = [b'{"item": null}', b'{"item": "rum"}', b"no json", b'{"item": null}']
    terminal.run("flask --app app pika declare")
    with pika.BlockingConnection(pika.URLParameters(everyday.url)) as connection:
        channel = connection.channel()
        with terminal.running("flask --app app pika worker") as told:
            for number, body in enumerate(orders):
                # The one that the page looks at has the id that it has there.
                message_id = show.split()[-1] if number == 1 else f"id-{number}"
                properties = pika.BasicProperties(message_id=message_id)
                channel.basic_publish("orders", "order.created", body, properties)
                expected = number + 1
                wait_for(lambda e=expected: count_of(everyday.url, "orders.email.dead") == e, told)  # type: ignore[misc]

        listed = page.next("flask --app app pika dead list")
        said, shown = terminal.run(listed).splitlines(), page.answer_to(listed).splitlines()
        assert said[0].split() == shown[0].split()
        assert said[-1] == shown[-1]
        for line, like in zip(said[1:4], shown[1:4], strict=True):
            assert line[46:].strip().split()[1:3] == like[46:].strip().split()[1:3]
        said_of_it = terminal.run(page.next(show))
        for heading in ("Dead letter", "Properties", "Headers", "Traceback", "Body, 15 bytes"):
            assert re.search(rf"^{heading}$", said_of_it, re.M)
            assert heading in page.answer_to(show)
        assert headers_in(said_of_it) == headers_in(page.answer_to(show))

        for name in ("replay", "replay", "export", "purge", "import"):
            command = page.next(f"flask --app app pika dead {name}")
            shown_here = page.answer_to(command).replace("]: y\n", "]: ")  # what is typed
            assert terminal.run(command, stdin="y\n") == shown_here
        holds(everyday.url, "orders.email", 1)
        holds(everyday.url, "orders.email.dead", 3)
        line = json.loads((tmp_path / "dead.jsonl").read_text().splitlines()[0])
        (example,) = (text for _, text in blocks_of(page.document) if text.startswith('{"body"'))
        assert list(line) == re.findall(
            r'"(\w+)": (?:["{])', re.sub(r"\{\\.*?\}|(?<=: )\{[^}]+\}", "{}", example)
        )
        for queue in (
            "orders.email",
            "orders.email.dead",
            "orders.email.retry.1ms",
            "orders.email.retry.2ms",
        ):
            channel.queue_delete(queue)
        channel.exchange_delete("orders")


SHOP = """
from flask import Flask

from flask_pika import Pika

fpika = Pika()
fpika.queue("orders")


def create_app():
    app = Flask("shop")
    app.config.from_prefixed_env()
    fpika.init_app(app)

    @app.post("/")
    def order():
        return {"id": fpika.publish(b"", routing_key="orders")}

    return app
"""


@pytest.mark.usefixtures("node")  # for the last one; skipped where there is no RabbitMQ
@pytest.mark.parametrize(*runs("docs/deploying.md", "commands"), indirect=True)
def test_the_deploying_pages_commands(page: Page, node: RabbitMQNode, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(SHOP)
    web = free_port()
    bind = f"--bind=127.0.0.1:{web}"
    terminal = Terminal(tmp_path, FLASK_PIKA_PARAMS=node.url, GUNICORN_CMD_ARGS=bind)
    for _ in range(3):
        with terminal.running(page.next("gunicorn ")) as told:
            wait_for(lambda: listens(web), told)
            for _ in range(10):
                assert urllib.request.urlopen(f"http://127.0.0.1:{web}/", data=b"", timeout=30).status == 200
    holds(node.url, "orders", 30)
    assert page.next() == UWSGI
    assert "1 stood" in terminal.run(page.next("flask --app shop pika declare"))
    holds(node.url, "orders", 30)
    with pika.BlockingConnection(pika.URLParameters(node.url)) as connection:
        connection.channel().queue_delete("orders")


#: It is not for every machine: see below.
UWSGI = "uwsgi --ini shop.ini"


def deploying(language: str) -> list[str]:
    return [text for one, text in blocks_of("docs/deploying.md") if one == language]


def test_the_systemd_unit_is_one_and_its_command_exists(tmp_path: Path) -> None:
    (text,) = (text for text in deploying("ini") if "[Service]" in text)
    unit = configparser.ConfigParser(comment_prefixes="#", strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(text)
    start = unit["Service"]["ExecStart"]
    context = parsed(start)
    stop, drain = float(unit["Service"]["TimeoutStopSec"]), context.params["drain_timeout"]
    assert stop > drain
    assert set(unit["Service"]["RestartPreventExitStatus"].split()) == {"2", "4"}
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        return
    # What it looks at besides is there: a program, a directory, a user.
    here = (
        text.replace("/srv/shop/venv/bin/flask", "/bin/true")
        .replace("/srv/shop", "/tmp")
        .replace("User=shop", "User=daemon")
    )
    file = tmp_path / "shop-worker.service"
    file.write_text(here)
    done = subprocess.run([analyze, "verify", file], capture_output=True, text=True, timeout=60, check=False)
    complaints = [line for line in done.stderr.splitlines() if "shop-worker" in line]
    assert not complaints, done.stderr


def test_the_uwsgi_file_runs_the_shop(everyday: Node, tmp_path: Path) -> None:
    (text,) = (text for text in deploying("ini") if "[uwsgi]" in text)
    web = free_port()
    (tmp_path / "shop.ini").write_text(text.replace(":8000", f":{web}"))
    (tmp_path / "shop.py").write_text(SHOP)
    terminal = Terminal(tmp_path, FLASK_PIKA_PARAMS=everyday.url)
    if shutil.which("uwsgi", path=terminal.env["PATH"]) is None:
        pytest.skip("there is no uWSGI for this machine")
    with terminal.running(UWSGI) as told:
        wait_for(lambda: listens(web), told)
        for _ in range(10):
            assert urllib.request.urlopen(f"http://127.0.0.1:{web}/", data=b"", timeout=30).status == 200
    holds(everyday.url, "orders", 10)
    with pika.BlockingConnection(pika.URLParameters(everyday.url)) as connection:
        connection.channel().queue_delete("orders")


def test_the_containers_command_exists_and_its_probes_ask_for_what_it_answers() -> None:
    (dockerfile,), (manifest,) = deploying("dockerfile"), deploying("yaml")
    command = ast.literal_eval(re.search(r"^CMD (.*)$", dockerfile, re.M)[1])  # type: ignore[index]
    told = parsed(shlex.join(command)).params
    assert told["health_host"] == "0.0.0.0"
    config = python_of("docs/deploying.md")[0]
    assert re.findall(r'os.environ\["(\w+)"\]', config) == re.findall(r"- name: ([A-Z_]+)", manifest)
    probes = re.findall(r"httpGet: \{path: (\S+), port: (\d+)\}", manifest)
    assert probes == [("/live", str(told["health_port"])), ("/ready", str(told["health_port"]))]
    (grace,) = re.findall(r"terminationGracePeriodSeconds: (\d+)", manifest)
    assert float(grace) > told["drain_timeout"]


#: Commands in the middle of a sentence that are not ours, and why nobody runs them here.
OTHERS = {
    "kill -9": "the system's",
    "pip install flask[async]": "another package's",
    "pip install pytest": "another package's",
    "pip install gunicorn": "another package's",
    "pip install gunicorn[gevent]": "another package's",
    "pip install uwsgi": "another package's",
    "pip install pyuwsgi": "another package's",
    "pip install .": "how the environment of the tests was made",
    "pytest examples/orders": "tests/test_example_orders.py runs them",
    "flask run": "Flask's",
    "rabbitmq-diagnostics alarms": "RabbitMQ's; see test_rabbitmq_knows_its_commands",
    "rabbitmqctl set_user_limits": "RabbitMQ's; see test_rabbitmq_knows_its_commands",
}
_COMMAND = re.compile(r"`((?:flask|make|python|pip|pytest|gunicorn|uwsgi|rabbitmq\S*|kill|curl) [^`\n]+)`")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_in_a_sentence_exists_with_its_options(document: str) -> None:
    text = re.sub(r"^```.*?^```$", "", (ROOT / document).read_text(), flags=re.M | re.S)
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    for command in _COMMAND.findall(text):
        words = command.split()
        if words[0] == "make":
            assert words[1] in targets, command
        elif words[:2] == ["python", "-m"] or command.startswith(".venv/bin/python -m"):
            module = ROOT / words[2].replace(".", "/")
            assert module.with_suffix(".py").exists() or (module / "__main__.py").exists(), command
        elif "pika" in words:
            exists(words[words.index("pika") + 1 :], command)
        elif words[0] == "gunicorn":
            assert words[-1].strip('"').endswith("create_app()"), command
        else:
            assert command in OTHERS, command


def exists(words: list[str], command: str) -> None:
    """Whether a command exists, and the options that are said of it; its arguments may be left out."""
    group: click.Command = pika_cli
    while isinstance(group, click.Group) and words and words[0] in group.commands:
        group = group.commands[words.pop(0)]
    options = {name for one in group.params for name in (*one.opts, *one.secondary_opts)}
    for word in words:
        if word.lstrip("[").startswith("--"):
            assert word.strip("[]") in options, command
    if isinstance(group, click.Group):
        assert not words or words[0] in ("...", "COMMAND"), command


@pytest.mark.usefixtures("node")
@pytest.mark.parametrize("command", [command for command in OTHERS if command.startswith("rabbitmq")])
def test_rabbitmq_knows_its_commands(command: str) -> None:
    from tools.rabbitmq_node import programs

    place = programs()
    assert place is not None
    program, name = command.split()
    done = subprocess.run(
        [place / program, "help", name],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert f"{program} [--node <node>] " in done.stdout
    assert f" {name}" in done.stdout
