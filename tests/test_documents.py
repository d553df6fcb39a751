"""What the documents and the benchmarks say can be run, runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pika
import pytest
from flask import Flask

from flask_pika import errors
from tools.rabbitmq_node import RabbitMQNode

ROOT = Path(__file__).parent.parent


def blocks(document: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / document).read_text(), re.M | re.S)


def test_the_readmes_example_works_as_it_stands(node: RabbitMQNode) -> None:
    config_block, app_block, *_ = blocks("README.md")
    config: dict[str, Any] = {}
    exec(config_block, config)
    assert config["FLASK_PIKA_PARAMS"]["host"] == "amqp.server.com"
    app = Flask("readme")
    app.config.from_mapping({key: value for key, value in config.items() if key.isupper()})
    app.config["FLASK_PIKA_PARAMS"] = node.params  # the only line that is not the reader's
    connection = pika.BlockingConnection(pika.URLParameters(node.url))
    connection.channel().exchange_declare("orders", durable=True)
    connection.close()
    names: dict[str, Any] = {"app": app}
    exec(app_block, names)
    assert app.test_client().post("/orders").status_code == 202
    assert names["fpika"].stats().in_use == 0


@pytest.mark.parametrize("document", ["README.md", "docs/channels.md", "docs/migrating.md"])
def test_every_python_block_can_be_compiled(document: str) -> None:
    assert blocks(document)
    for block in blocks(document):
        compile(block, document, "exec")


def test_every_error_is_documented() -> None:
    text = (ROOT / "docs" / "channels.md").read_text()
    for name in errors.__all__:
        assert f"`{name}`" in text


def test_every_make_target_of_the_readme_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`make ([a-z-]+)", (ROOT / "README.md").read_text()):
        assert re.search(rf"^{target}:", makefile, re.M), target


@pytest.mark.usefixtures("node")  # skipped where there is no RabbitMQ
def test_the_benchmark_runs() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.pool", "--quick"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Flask-Pika") == 4
