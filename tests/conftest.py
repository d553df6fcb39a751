"""Nodes for the tests, and a look for leaks after each of them."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from hypothesis import HealthCheck, settings

import flask_pika
from flask_pika import Pika, pika_internals
from flask_pika.state import State, all_states
from tests.ledger import Ledger
from tools import browser
from tools.embedded_node import EmbeddedNode
from tools.rabbitmq_node import RabbitMQNode, programs

#: A broker that neither dies nor is configured: a real one, or the embedded one.
Node = RabbitMQNode | EmbeddedNode
LOUD = "RabbitMQ is not installed: THE TESTS THAT NEED IT WERE SKIPPED. Run scripts/ensure-rabbitmq"
LOUD_BROWSER = "Chromium is not installed: THE TESTS IN A BROWSER WERE SKIPPED. Run scripts/ensure-chromium"

# Of no example it is said how long it may take: by itself, Hypothesis says 0.2 seconds, but in CI.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--everyday",
        choices=("rabbitmq", "embedded"),
        default="embedded" if programs() is None and not os.environ.get("CI") else "rabbitmq",
        help="the broker for tests of everyday use; those of outages are on RabbitMQ anyway",
    )
    parser.addoption(
        "--faults",
        choices=("short", "full"),
        default="short",
        help="the fault lab: each scenario once, or in all rounds and with the bounds of a quiet machine",
    )
    parser.addoption("--reliability", metavar="PATH", help="write the fault lab's report there")
    parser.addoption("--installed", action="store_true", help="fail unless it is a wheel that is tested")


#: Where the package is that is tested.
PACKAGE = Path(flask_pika.__file__).parent


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--installed") and PACKAGE.parent.name not in ("site-packages", "dist-packages"):
        raise pytest.UsageError(f"not a wheel is tested, but what is in {PACKAGE}")
    # Not at the top: processes of the fault lab import this, too. As hypothesis has it by itself in CI.
    import hypothesis

    known = hypothesis.settings.get_profile(hypothesis.settings.get_current_profile_name())
    hypothesis.settings.register_profile(
        "any machine", known, deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
    )
    hypothesis.settings.load_profile("any machine")


def pytest_report_header() -> str:
    return f"flask_pika: {metadata.version('Flask-Pika')} from {PACKAGE}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # RabbitMQ keeps its own contract, whichever Python asks: where the everyday tests are on the embedded
    # broker, that one alone is looked at.
    embedded = config.getoption("--everyday") == "embedded"
    left_out = [item for item in items if embedded and "[rabbitmq" in item.name]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in set(left_out)]
    for item in items:
        if {"node", "fragile_node", "tls_node"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.broker)
            if programs() is None and not os.environ.get("CI"):
                item.add_marker(pytest.mark.skip(reason=LOUD))
        if item.get_closest_marker("browser") and browser.programs() is None and not os.environ.get("CI"):
            item.add_marker(pytest.mark.skip(reason=LOUD_BROWSER))


def pytest_collection_finish() -> None:
    # What is there now stays to the end. The looks for leaks need not walk it a thousand times.
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if programs() is None:
        terminalreporter.write_sep("!", LOUD, red=True, bold=True)
    if any(LOUD_BROWSER in str(report.longrepr) for report in terminalreporter.getreports("skipped")):
        terminalreporter.write_sep("!", LOUD_BROWSER, red=True, bold=True)


@pytest.fixture(scope="session")
def node() -> Iterator[RabbitMQNode]:
    """A RabbitMQ node that stays up."""
    with RabbitMQNode() as started:
        yield started


@pytest.fixture(scope="session")
def everyday(request: pytest.FixtureRequest) -> Iterator[Node]:
    """A broker that stays up, for tests to which it does not matter which one it is: see ``--everyday``."""
    if request.config.getoption("--everyday") == "rabbitmq":
        yield request.getfixturevalue("node")
    else:
        with EmbeddedNode() as started:
            yield started


@pytest.fixture(scope="session")
def _fragile() -> Iterator[RabbitMQNode]:
    with RabbitMQNode() as started:
        yield started


@pytest.fixture
def fragile_node(_fragile: RabbitMQNode) -> RabbitMQNode:
    """A RabbitMQ node that the test may kill, stop and freeze; it is up when the test begins."""
    if not _fragile.is_running:
        _fragile.start()
    return _fragile


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """What handlers begin and commit, in whichever process."""
    one = Ledger(tmp_path / "ledger")
    yield one
    one.close()


def make_app(params: object, pool: dict[str, object] | None = None, name: str = "shop") -> tuple[Flask, Pika]:
    app = Flask(name)
    app.config["FLASK_PIKA_PARAMS"] = params
    app.config["FLASK_PIKA_POOL_PARAMS"] = pool
    return app, Pika(app)


def wait_for(condition: Callable[[], object], what: str | Callable[[], str], timeout: float = 30.0) -> None:
    """Wait until a condition holds; the only place in the tests that sleeps."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout:g} s: {what() if callable(what) else what}")
        time.sleep(0.01)


def sockets() -> set[str]:
    """This process's open sockets."""
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            target = os.readlink(entry)
        except OSError:
            continue
        if target.startswith("socket:"):
            found.add(target)
    return found


def _our_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("flask-pika")}


def _close(state: State) -> None:
    pool = state.pool()
    pool.tend()  # brings home what was dropped
    # All is waited for: the keeper may be at just that, or at the end of what died.
    wait_for(lambda: pool.stats().in_use == 0, lambda: f"the return of all channels: {pool!r}")
    wait_for(lambda: pool.stats().waiting == 0, lambda: f"the end of callers who wait: {pool!r}")
    state.close()
    wait_for(lambda: pool.stats().open == 0, lambda: f"the end of all channels: {pool!r}")


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """After each test: no channel is lent, and no thread and no socket of ours is left."""
    gc.collect()
    before, threads = sockets(), _our_threads()
    yield
    gc.collect()
    for state in all_states():
        _close(state)
    wait_for(lambda: not _our_threads() - threads, "the end of our threads")
    wait_for(lambda: gc.collect() >= 0 and not sockets() - before, "the end of our sockets")


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool gives no connection up over an answer that takes a second, or five: for who counts them.

    On a busy machine, it is not the broker that is stuck then.
    """
    monkeypatch.setattr("flask_pika.pool.GOODBYE", 60.0)
    monkeypatch.setattr("flask_pika.slot.SERVE", 60.0)
    monkeypatch.setattr("flask_pika.slot.CHANNEL_OPEN", 60.0)


@pytest.fixture(params=["internals", "public"])
def both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The test runs twice: with what we use of pika's internals, and with the public way behind it."""
    assert pika_internals.AVAILABLE, "this pika has no such internals: mend pika_internals.py"
    if request.param == "public":
        monkeypatch.setattr(pika_internals, "AVAILABLE", False)
    return str(request.param)
