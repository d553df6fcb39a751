"""What the documents and the benchmarks say can be run, runs."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trustme
from flask import Flask

from flask_pika import Pika, errors, signals
from flask_pika.config import read_settings
from flask_pika.testing import record_messages
from tests import test_document_commands
from tests.conftest import Node, wait_for
from tests.documents import DOCUMENTS, ROOT, RUN, Page, blocks_of, commands_of, page, python_of, runs
from tools.rabbitmq_node import RabbitMQNode

__all__ = ["page"]  # a fixture


def test_every_python_block_and_every_command_of_every_document_is_run() -> None:
    shown = {(document, "python") for document in DOCUMENTS if python_of(document)}
    shown |= {(document, "commands") for document in DOCUMENTS if commands_of(document)}
    assert test_document_commands.__doc__  # which has registered its own
    assert shown == RUN


def test_what_is_neither_python_nor_at_a_prompt_is_looked_at_by_name() -> None:
    """What cannot be run here, and which test looks at it instead: see tests/test_document_commands.py."""
    others = {
        (document, language)
        for document in DOCUMENTS
        for language, _ in blocks_of(document)
        if language not in ("", "python", "text")
    }
    assert others == {
        ("docs/configuration.md", "sh"),
        ("docs/deploying.md", "dockerfile"),
        ("docs/deploying.md", "ini"),
        ("docs/deploying.md", "yaml"),
    }


def assert_they_pass(number: int, place: Path) -> None:
    """So many tests that a page shows pass, in a process of their own, with warnings as errors."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider"],
        cwd=place,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{number} passed" in done.stdout


@pytest.mark.parametrize(*runs("README.md"), indirect=True)
def test_the_readmes_example_works_as_it_stands(
    page: Page, node: RabbitMQNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first_block, config_block, app_block, publish_block, consumer_block, topology_block = page.take(6)
    retries_block, channel_block, explicit_block, nodes_block, testing_block = page.take(5)
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
    with fpika.record_messages() as sent:
        exec(first_block, names)
    assert sent[0].routing_key == "order.created"
    nodes: dict[str, Any] = {}
    exec(nodes_block, nodes)
    assert len(read_settings(nodes, "FLASK_PIKA").nodes) == 2
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
        # The last one came on another connection, and without a confirm.
        wait_for(
            lambda: ch.queue_declare("orders", passive=True).method.message_count == 1 + 1000 + 1,
            "all of them",
        )
        ch.queue_delete("orders")
    stats = fpika.stats()
    assert (stats.size, stats.in_use, stats.discarded) == (8, 0, 1)
    assert stats.publisher.confirmed == 1 + 1 + 1000


@pytest.mark.parametrize(*runs("docs/index.md"), indirect=True)
def test_the_index_begins_with_a_message(page: Page) -> None:
    app = Flask("shop")
    names = {"fpika": Pika(app)}
    with record_messages() as sent:
        exec(page.next(), names)
    assert (sent[0].exchange, sent[0].json) == ("orders", {"id": 1})


@pytest.mark.parametrize(*runs("docs/channels.md"), indirect=True)
def test_the_channels_pages_examples_work_as_they_stand(page: Page, everyday: Node) -> None:
    lending, two_brokers = page.take(2)
    app = Flask("shop")
    app.config["FLASK_PIKA_PARAMS"] = app.config["AUDIT_PIKA_PARAMS"] = everyday.params
    names: dict[str, Any] = {"Pika": Pika, "app": app}
    exec(two_brokers, names)
    fpika, audit = names["fpika"], names["audit"]
    with fpika.channel() as ch:
        ch.exchange_declare("orders")
        ch.queue_declare("created", exclusive=True)
        ch.queue_bind("created", "orders")
        exec(lending, names)  # on another connection, and without a confirm
        wait_for(lambda: ch.basic_get("created", auto_ack=True)[2] == b"...", "the message")
        ch.exchange_delete("orders")
    with audit.channel() as ch:
        assert ch.is_open


@pytest.mark.parametrize(*runs("docs/publishing.md"), indirect=True)
def test_the_publishing_pages_examples_work_as_they_stand(
    page: Page, everyday: Node, caplog: pytest.LogCaptureFixture
) -> None:
    publishing, many, receiving = page.take(3)
    app = Flask("shop")
    app.config["FLASK_PIKA_PARAMS"] = everyday.params
    fpika = Pika(app)
    names: dict[str, Any] = {"fpika": fpika, "rows": [{"n": n} for n in range(100)]}
    with fpika.channel() as ch:
        ch.exchange_declare("orders")
        for queue in ("queue", "rows"):
            ch.queue_declare(queue, durable=True, arguments={"x-max-priority": 5})
        ch.queue_bind("queue", "orders", "order.created")
        exec(publishing, names)
        exec(many, names)
        exec(receiving, names)
        ch.queue_delete("rows")
        # What no queue takes is another signal's: a message that is refused, this one's.
        with pytest.raises(errors.PublishRefused):
            fpika.publish(b"", exchange="none")
        signals.failed.disconnect(names["on_failed"])
        assert ch.queue_delete("queue").method.message_count == 2
        ch.exchange_delete("orders")
    assert fpika.stats().publisher.confirmed == 2 + 100
    assert any(record.getMessage().startswith("lost ") for record in caplog.records)


@pytest.mark.parametrize(*runs("docs/configuration.md"), indirect=True)
def test_the_configuration_pages_examples_are_read_as_they_stand(
    page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    from_environment = page.next()
    (lines,) = (text for language, text in blocks_of(page.document) if language == "sh")
    assert len(lines.splitlines()) == 4
    found = []
    for line in lines.splitlines():
        name = line.partition("=")[0]
        value = subprocess.run(
            ["bash", "-c", f'{line}; echo "${name}"'], capture_output=True, text=True, check=True
        )
        with monkeypatch.context() as patch:
            patch.setenv(name, value.stdout.strip())
            app = Flask("shop")
            exec(from_environment, {"app": app})
            found.append(read_settings(app.config, "FLASK_PIKA"))
    assert [len(one.nodes) for one in found] == [1, 2, 1, 1]
    assert [one.pool.pool_size for one in found[2:]] == [8, 8]
    digits = re.search(r"`(FLASK_PIKA_PARAMS__password)='(.*?)'`", (ROOT / page.document).read_text())
    assert digits is not None
    monkeypatch.setenv(digits[1], digits[2])
    monkeypatch.setenv("FLASK_PIKA_PARAMS__username", "shop")
    app = Flask("shop")
    exec(from_environment, {"app": app})
    read_settings(app.config, "FLASK_PIKA")


@pytest.mark.parametrize(*runs("docs/errors.md"), indirect=True)
def test_the_errors_pages_handler_answers_try_again_later(page: Page) -> None:
    app = Flask("shop")
    exec(page.next(), {"app": app})
    transient: list[type[Exception]] = [
        errors.BrokerBlocked,
        errors.AuthenticationRefused,
        errors.PublisherFull,
    ]
    transient += [errors.PoolTimeout, errors.PublishUnknown, errors.PublishTimeout]

    @app.get("/<int:number>")
    def fail(number: int) -> str:
        raise transient[number]("...")

    client = app.test_client()
    for number in range(len(transient)):
        answer = client.get(f"/{number}")
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")


@pytest.mark.parametrize(*runs("docs/deploying.md"), indirect=True)
def test_the_deploying_pages_examples_work_as_they_stand(
    page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, tls, status = page.take(3)
    monkeypatch.setitem(os.environ, "RABBIT_PASSWORD", "secret")
    names: dict[str, Any] = {}
    exec(config, names)
    settings = read_settings(names, "FLASK_PIKA")
    assert (len(settings.nodes), settings.pool.pool_size) == (3, 4)

    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    client = authority.issue_cert("shop")
    client.cert_chain_pems[0].write_to_path(str(tmp_path / "client.pem"))
    client.private_key_pem.write_to_path(str(tmp_path / "client.key"))
    names = {}
    exec(tls.replace("/etc/shop", str(tmp_path)), names)
    (node,) = read_settings(names, "FLASK_PIKA").nodes
    assert str(node) == "amqps://rabbit-1:5671/%2F"

    app = Flask("shop")
    exec(status, {"app": app, "fpika": Pika(app)})
    answer = app.test_client().get("/status").json
    assert answer == {"broker": "stopped", "pending": 0, "reconnects": 0}


@pytest.mark.parametrize(*runs("docs/quickstart.md"), indirect=True)
def test_the_quickstarts_tests_pass_as_they_stand(page: Page, tmp_path: Path) -> None:
    app, consumer, tests = page.take(3)
    assert len([line for line in app.splitlines() if line]) <= 10, "ten lines to a published message"
    (tmp_path / "app.py").write_text(app + consumer)
    (tmp_path / "test_app.py").write_text(tests)
    assert_they_pass(2, tmp_path)


@pytest.mark.parametrize(*runs("docs/migrating.md"), indirect=True)
def test_the_migrating_pages_examples_work_as_they_stand(
    page: Page, everyday: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    import_block, theirs, ours, on_channel, callback, handler, from_kombu = page.take(7)
    names: dict[str, Any] = {}
    exec(import_block, names)
    assert names["FPika"] is Pika

    app = Flask("shop")
    app.config["FLASK_PIKA_PARAMS"] = everyday.params
    # What the page shows of others is theirs: it has to be Python, and what is said of it, true.
    compile(theirs, page.document, "exec")
    fpika = Pika(app)
    names = {"fpika": fpika}
    exec(ours, names)
    with fpika.channel() as ch:  # as rabbitmq-pika-flask declares it
        ch.exchange_declare("dead.letter.events", "direct")
        ch.exchange_declare("events", "topic", durable=True)
        arguments = {
            "x-dead-letter-exchange": "dead.letter.events",
            "x-dead-letter-routing-key": "dead.letter.shop.send.mail",
        }
        ch.queue_declare("shop.send.mail", durable=True, arguments=arguments)
        fpika.declare()  # raises, if it were another one
        exec(on_channel, names)  # on another connection, and without a confirm
        wait_for(lambda: ch.queue_declare("reports", passive=True).method.message_count == 1, "the report")
        ch.queue_delete("reports")
        ch.queue_delete("shop.send.mail")
        for exchange in ("dead.letter.events", "events"):
            ch.exchange_delete(exchange)
    assert fpika.run_consumer(names["send_mail"], {"id": 1}, routing_key="order.created").acked
    compile(callback, page.document, "exec")
    exec(handler, names)
    assert fpika.run_consumer(names["on_order"], {"id": 2}).acked

    other = Pika(app, config_prefix="OTHER")
    exec(from_kombu, {"fpika": other})
    assert capsys.readouterr().out == 'order.created {"id": 1}\norder 2 {}\n'


@pytest.mark.parametrize(*runs("docs/testing.md"), indirect=True)
def test_the_small_app_of_the_testing_page_and_its_tests_work_as_they_stand(
    page: Page, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    app_block, tests_block, recording_block, broker_block = page.take(4)
    exec(broker_block, {})
    assert capsys.readouterr().out.startswith("amqp://guest:guest@127.0.0.1:")
    recording = "\n    ".join(["def test_recording():", *recording_block.splitlines()])
    (tmp_path / "shop.py").write_text(app_block)
    (tmp_path / "test_shop.py").write_text(f"{tests_block}\n\n{recording}\n")
    assert_they_pass(4, tmp_path)


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


@pytest.mark.parametrize(*runs("docs/consuming.md"), indirect=True)
def test_the_consuming_pages_examples_work_as_they_stand(page: Page, tmp_path: Path) -> None:
    handler, manual, batch, log, test, test_with_broker = page.take(6)
    handler += '    if order["item"] is None:\n        raise Reject("no item")\n'
    (tmp_path / "shop.py").write_text("\n\n".join([SHOP, handler, manual, batch]))
    (tmp_path / "test_shop.py").write_text("\n\n".join([log, TESTS_OF_THE_SHOP, test, test_with_broker]))
    assert_they_pass(3, tmp_path)


@pytest.mark.parametrize(*runs("docs/topology.md"), indirect=True)
def test_the_topology_pages_examples_work_as_they_stand_and_all_options_are_in_its_tables(
    page: Page, node: RabbitMQNode
) -> None:
    names: dict[str, Any] = {}
    registering, binding, setting_up = page.take(3)
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


@pytest.mark.parametrize(*runs("docs/retries.md"), indirect=True)
def test_the_retries_pages_examples_work_as_they_stand(page: Page, tmp_path: Path) -> None:
    handler, limit, tests = page.take(3)
    (tmp_path / "mail.py").write_text("\n\n".join([MAIL, handler, limit]))
    (tmp_path / "test_mail.py").write_text("\n\n".join([TESTS_OF_THE_MAIL, tests]))
    assert_they_pass(3, tmp_path)


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
    ("benchmark", "rows"),
    [("broker", 2), ("peers --alone checkout bulk consume", 6)],
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
    assert len(re.findall(r"^(?:\| \*\*Flask-Pika|  embedded  ).*\d", done.stdout, re.M)) == rows
