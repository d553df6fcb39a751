"""What the documents and the benchmarks say can be run, runs."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from flask_pika import Pika, errors
from tools.rabbitmq_node import RabbitMQNode

ROOT = Path(__file__).parent.parent


def blocks(document: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / document).read_text(), re.M | re.S)


def test_the_readmes_example_works_as_it_stands(
    node: RabbitMQNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, config_block, app_block, publish_block, consumer_block, topology_block, *more = blocks("README.md")
    retries_block, channel_block, explicit_block, _, testing_block = more
    config: dict[str, Any] = {}
    exec(config_block, config)
    assert config["FLASK_PIKA_PARAMS"]["host"] == "amqp.server.com"
    # The only line that is not the reader's.
    own = f"\nFLASK_PIKA_PARAMS = {node.params!r}\n"
    (tmp_path / "config.py").write_text(config_block + own)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "config", raising=False)
    names: dict[str, Any] = {"__name__": "app"}
    exec(app_block, names)
    fpika = names["fpika"]
    assert fpika.stats().opened == 0, "an import must not connect"
    assert fpika.stats().publisher.state == "stopped"
    exec(channel_block, names)  # declares the queue
    assert names["app"].test_client().post("/orders", json={"id": 1}).status_code == 202
    exec(publish_block, names)
    exec(channel_block, names)
    assert names["body"] == b'{"id": 1}'
    exec(explicit_block, names)
    exec(consumer_block, names)
    exec(testing_block, names)
    exec(topology_block, names)
    exec(retries_block, names)
    fpika.declare()
    assert fpika.run_consumer(names["send"], {}).delay == 1
    with fpika.channel() as ch:
        ch.queue_delete("events.email")
        ch.queue_delete("events.email.dead")
        for seconds in (1, 2, 4, 8):
            ch.queue_delete(f"events.email.retry.{seconds}000ms")
        ch.exchange_delete("events")
        assert ch.queue_declare("orders", passive=True).method.message_count == 1 + 1000 + 1
        ch.queue_delete("orders")
    stats = fpika.stats()
    assert (stats.size, stats.in_use, stats.discarded) == (8, 0, 1)
    assert stats.publisher.confirmed == 1 + 1 + 1000


@pytest.mark.parametrize(
    "document",
    [
        *("README.md", "docs/channels.md", "docs/publishing.md", "docs/consuming.md", "docs/testing.md"),
        *("docs/topology.md", "docs/retries.md", "docs/migrating.md"),
    ],
)
def test_every_python_block_can_be_compiled(document: str) -> None:
    assert blocks(document)
    for block in blocks(document):
        compile(block, document, "exec")


def test_the_small_app_of_the_testing_page_and_its_tests_work_as_they_stand(tmp_path: Path) -> None:
    app_block, tests_block, recording_block, *_ = blocks("docs/testing.md")
    recording = "\n    ".join(
        ["def test_recording():", "fpika = create_fpika()", *recording_block.splitlines()]
    )
    make = (
        "\n\ndef create_fpika():\n    from shop import fpika\n\n    create_app().app_context().push()\n"
        "    return fpika\n\n\n"
    )
    (tmp_path / "shop.py").write_text(app_block)
    (tmp_path / "test_shop.py").write_text(tests_block + make + recording + "\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 passed" in done.stdout


#: What the consuming page leaves to its reader.
SHOP = """
import concurrent.futures
from types import SimpleNamespace

from flask import Flask
from flask_pika import Pika, Reject

fpika = Pika()
written = []
write = written.append
executor = concurrent.futures.ThreadPoolExecutor(1)
Click, insert = "clicks", str
db = SimpleNamespace(session=SimpleNamespace(execute=lambda *what: written.append(what), commit=lambda: None))


def create_app(url=None):
    app = Flask("shop")
    app.config["FLASK_PIKA_PARAMS"] = url
    fpika.init_app(app)
    if url is not None:
        with app.app_context(), fpika.channel() as ch:
            ch.queue_declare("orders", durable=True)
    return app


"""
TESTS_OF_THE_SHOP = """
import pytest
from shop import audit, create_app, executor, fpika, handle, store, written


@pytest.fixture
def app():
    app = create_app()
    with app.app_context():
        yield app


def test_the_other_handlers(app):
    assert fpika.run_consumer(store, [{"n": 1}, {"n": 2}]).acked
    assert written.pop() == ("clicks", [{"n": 1}, {"n": 2}])
    fpika.run_consumer(audit, b"a line")
    executor.shutdown()
    assert written.pop() == b"a line"


"""


def test_the_consuming_pages_examples_work_as_they_stand(tmp_path: Path) -> None:
    handler, manual, batch, log, test, test_with_broker, *_ = blocks("docs/consuming.md")
    handler += '    if order["item"] is None:\n        raise Reject("no item")\n'
    (tmp_path / "shop.py").write_text("\n\n".join([SHOP, handler, manual, batch]))
    (tmp_path / "test_shop.py").write_text("\n\n".join([log, TESTS_OF_THE_SHOP, test, test_with_broker]))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout


def test_the_topology_pages_examples_work_as_they_stand_and_all_options_are_in_its_tables(
    node: RabbitMQNode,
) -> None:
    names: dict[str, Any] = {}
    registering, binding, setting_up, *_ = blocks("docs/topology.md")
    exec(registering, names)
    fpika: Pika = names["fpika"]
    app = Flask("shop")
    app.config["FLASK_PIKA_PARAMS"] = node.params
    fpika.init_app(app)
    exec(binding, names)
    exec(setting_up, names)
    names["set_up"]()
    fpika.declare()  # which raises what set_up() prints
    with fpika.channel() as ch:
        for queue in ("orders.email", "orders.email.dead", "clicks", "de"):
            assert ch.queue_delete(queue).method.message_count == 0
        for exchange in ("orders", "people", "everything"):
            ch.exchange_delete(exchange)
    text = (ROOT / "docs" / "topology.md").read_text()
    tables = [line for line in text.splitlines() if line.startswith("| ")]
    said = {name for line in tables for name in re.findall(r"`(\w+)`", line.split("|")[1])}
    for method in (Pika.queue, Pika.exchange):
        options = set(inspect.signature(method).parameters) - {"self", "name"}
        assert options <= said, options - said


#: What the page about retries leaves to its reader.
MAIL = """
from types import SimpleNamespace

from flask import Flask
from flask_pika import Pika

fpika = Pika()
sent = []
mail = sent.append
shop = SimpleNamespace(closed=False, is_closed=lambda: shop.closed)


"""
TESTS_OF_THE_MAIL = """
import pytest
from mail import Flask, fpika, handle, sent, shop


@pytest.fixture
def app():
    app = Flask("mail")
    fpika.init_app(app)
    with app.app_context():
        yield app


def test_the_mail_is_sent(app):
    assert fpika.run_consumer(handle, {"item": "tea"}).acked
    assert sent == [{"item": "tea"}]
    assert fpika.run_consumer(handle, b"no json").dead


"""


def test_the_retries_pages_examples_work_as_they_stand(tmp_path: Path) -> None:
    handler, limit, tests = blocks("docs/retries.md")
    (tmp_path / "mail.py").write_text("\n\n".join([MAIL, handler, limit]))
    (tmp_path / "test_mail.py").write_text("\n\n".join([TESTS_OF_THE_MAIL, tests]))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout


def test_the_pytest_plugin_does_nothing_until_it_is_asked(tmp_path: Path) -> None:
    (tmp_path / "test_nothing.py").write_text(
        "import sys\n\n\ndef test_nothing(pytestconfig):\n"
        "    assert pytestconfig.pluginmanager.hasplugin('flask_pika')\n"
        "    assert not {'flask_pika', 'flask', 'pika'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-W", "error", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "RabbitMQ" not in done.stdout


def test_every_error_is_documented() -> None:
    text = "".join(page.read_text() for page in sorted((ROOT / "docs").glob("*.md")))
    for name in errors.__all__:
        assert f"`{name}`" in text


def test_every_make_target_of_the_readme_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`make ([a-z-]+)", (ROOT / "README.md").read_text()):
        assert re.search(rf"^{target}:", makefile, re.M), target


@pytest.mark.usefixtures("node")  # skipped where there is no RabbitMQ
@pytest.mark.parametrize(
    ("benchmark", "rows"), [("pool", 4), ("publishing", 8), ("broker", 2), ("consuming pika", 1)]
)
def test_the_benchmarks_run(benchmark: str, rows: int) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *f"benchmarks.{benchmark}".split(), "--quick"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"^  (?:Flask-Pika|embedded  )", done.stdout, re.M)) == rows
