"""The lab's cluster, its report, and a search for secrets in all that was written."""

from __future__ import annotations

import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.lab import PASSWORD, USER, Site
from tests.faults.report import Report
from tools.proxy import Proxy
from tools.rabbitmq_cluster import RabbitMQCluster

_REPORT = Report()


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


@pytest.fixture(scope="session")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of all that the programs of the run write."""
    return tmp_path_factory.mktemp("lab")


@pytest.fixture(scope="session")
def site(records: Path) -> Iterator[Site]:
    with RabbitMQCluster() as cluster:
        cluster.ctl("add_user", USER, PASSWORD)
        cluster.ctl("set_permissions", USER, ".*", ".*", ".*")
        proxies = [Proxy(node.port) for node in cluster.nodes]
        for proxy in proxies:
            proxy.__enter__()
        try:
            yield Site(cluster, proxies, records)
        finally:
            for proxy in proxies:
                proxy.__exit__()


@pytest.fixture
def whole(site: Site) -> Site:
    """The site, with all its nodes up and all its proxies open, as each scenario finds it."""
    for proxy in site.proxies:
        proxy.restore()
    site.cluster.start_nodes()
    site.cluster.wait_until_whole()
    return site


@pytest.fixture(autouse=True)
def no_secrets(
    records: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> Iterator[None]:
    """After each test: the password is in nothing that was written."""
    yield
    told = capfd.readouterr()
    texts = {"output": told.out + told.err, "log": caplog.text}
    texts |= {str(path): path.read_text(errors="replace") for path in records.rglob("*") if path.is_file()}
    check_secrets(texts)


def check_secrets(texts: dict[str, str]) -> None:
    """None of these has the password in any of its forms."""
    for secret in {PASSWORD, urllib.parse.quote(PASSWORD, safe=""), repr(PASSWORD)[1:-1]}:
        found = [name for name, text in texts.items() if secret in text]
        assert not found, f"the password is in {found}"
