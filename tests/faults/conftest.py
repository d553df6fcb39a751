"""The lab's cluster, its report, and a search for secrets in all that was written."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.faults.lab import Site, let_in, open_site
from tests.faults.report import RECOVERY, Report
from tests.faults.searching import Search
from tools.rabbitmq_node import RabbitMQNode

_REPORT = Report()
#: What is logged in this process, in the directory of all that is written; and from which level on.
_LOG = "log"
_LEVELS = {"flask_pika": logging.DEBUG, "pika": logging.INFO, "lab": logging.DEBUG}
#: Bytes of it that a failure shows.
_SHOWN = 8000


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "round_" in metafunc.fixturenames:
        metafunc.parametrize("round_", range(1 if metafunc.config.getoption("--faults") == "short" else 3))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In the short form, each stand-in is caught by one scenario of each file, not by all."""
    if config.getoption("--faults") != "short":
        return
    seen: set[object] = set()
    kept: list[pytest.Item] = []
    others: list[pytest.Item] = []
    for item in items:
        given = (
            item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        )
        kind = (item.path, given["stand_in"]) if {"scenario", "stand_in"} <= set(given) else item
        (others if kind in seen else kept).append(item)
        seen.add(kind)
    items[:] = kept
    config.hook.pytest_deselected(items=others)


@pytest.fixture(scope="session")
def grace(request: pytest.FixtureRequest) -> float:
    """Seconds that a request may take beyond its deadline. Where tests run, the machine may be busy."""
    return 10.0 if request.config.getoption("--faults") == "short" else 1.0


@pytest.fixture(scope="session")
def report(request: pytest.FixtureRequest) -> Iterator[Report]:
    yield _REPORT
    page = request.config.getoption("--reliability")
    if page:
        Path(page).write_text(_REPORT.page("RabbitMQ", "make faults", Path(page).parent))
    if request.config.getoption("--faults") == "full":
        slow = [f"{row.name}: {row.recovery:.2f} s" for row in _REPORT.rows if row.recovery >= RECOVERY]
        assert not slow, f"from the return of what was broken to the first success, in the median: {slow}"


@pytest.fixture(scope="session")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of all that the programs of the run write."""
    return tmp_path_factory.mktemp("lab")


@pytest.fixture(scope="session")
def site(records: Path) -> Iterator[Site]:
    with open_site(records) as made:
        yield made


@pytest.fixture(scope="session")
def node(node: RabbitMQNode) -> RabbitMQNode:
    """The node of all tests, which knows the lab's user, too."""
    let_in(node.ctl)
    return node


@pytest.fixture
def whole(site: Site) -> Site:
    """The site, with all its nodes up and all its proxies open, as each scenario finds it."""
    return site.made_whole()


@pytest.fixture(scope="session")
def search(records: Path) -> Search:
    return Search(records)


@pytest.fixture(autouse=True)
def logged(records: Path) -> Iterator[None]:
    """What is logged in this process goes into a file, and no record of it is kept.

    pytest keeps them all: an exception in one has the frames that it came through, with all that was in them,
    be it thousands of deliveries, or leases that count as forgotten.
    """
    handler = logging.FileHandler(records / _LOG)
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
    with contextlib.ExitStack() as stack:
        stack.callback(handler.close)
        for keeper in logging.getLogger().handlers:
            keeper.addFilter(_is_others)
            stack.callback(keeper.removeFilter, _is_others)
        for name, level in _LEVELS.items():
            logger = logging.getLogger(name)
            stack.callback(logger.setLevel, logger.level)
            logger.setLevel(level)
            stack.callback(logger.removeHandler, handler)
            logger.addHandler(handler)
        yield


def _is_others(record: logging.LogRecord) -> bool:
    return record.name.partition(".")[0] not in _LEVELS


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What fails shows the last of what was logged."""
    made = yield
    place = item.funcargs.get("records") if isinstance(item, pytest.Function) else None
    if made.failed and isinstance(place, Path) and (place / _LOG).exists():
        with (place / _LOG).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _SHOWN))
            made.sections.append((f"the end of {place / _LOG}", file.read().decode(errors="replace")))
    return made


@pytest.fixture(autouse=True)
def no_secrets(search: Search, capfd: pytest.CaptureFixture[str], logged: None) -> Iterator[None]:
    """After each test: the password is in nothing that was written."""
    yield
    said = capfd.readouterr()
    search.check((said.out, said.err))
