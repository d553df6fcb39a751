"""What ``make dist`` hands on: the sdist, and the wheel."""

from __future__ import annotations

import configparser
import importlib.util
import os
import re
import tarfile
import zipfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import pytest

from tests.documents import ROOT
from tools.dist import Dist, build, make, unpack

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("hatchling") is None and not os.environ.get("CI"),
    reason="hatchling is not installed: scripts/make-venv installs what requirements/test.txt names",
)
SOURCES = ROOT / "src"


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Dist:
    return make(tmp_path_factory.mktemp("dist"))


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def in_dist_info(wheel: Path, name: str) -> bytes:
    (found,) = (held for path, held in contents(wheel).items() if path.endswith(f".dist-info/{name}"))
    return found


@pytest.fixture
def metadata(dist: Dist) -> Message:
    return message_from_bytes(in_dist_info(dist.wheel, "METADATA"))


def test_the_wheel_has_the_sources_and_nothing_else(dist: Dist) -> None:
    held = {path: text for path, text in contents(dist.wheel).items() if ".dist-info/" not in path}
    sources = [path for path in SOURCES.rglob("*") if path.suffix == ".py" or path.name == "py.typed"]
    assert held == {str(path.relative_to(SOURCES)): path.read_bytes() for path in sources}
    assert {path.partition("/")[0] for path in held} == {"flask_pika", "pytest_flask_pika.py"}
    assert held["flask_pika/py.typed"] == b""


def test_the_metadata_say_what_it_needs_and_little_is_needed(metadata: Message) -> None:
    (version,) = re.findall(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.M)
    assert (metadata["Name"], metadata["Version"]) == ("Flask-Pika", version)
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata.get_all("Requires-Dist") == ["flask>=2.3", "pika>=1.3.2"]


def test_the_metadata_have_the_readme_and_the_licence(dist: Dist, metadata: Message) -> None:
    assert metadata["Description-Content-Type"] == "text/markdown"
    description = metadata.get_payload(decode=True)
    assert isinstance(description, bytes)
    assert description.strip() == (ROOT / "README.md").read_bytes().strip()
    assert metadata["License-Expression"] == "BSD-3-Clause"
    assert in_dist_info(dist.wheel, "licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()


def test_flask_finds_the_commands_and_pytest_the_fixtures(dist: Dist) -> None:
    points = configparser.ConfigParser()
    points.read_string(in_dist_info(dist.wheel, "entry_points.txt").decode())
    assert {name: dict(points[name]) for name in points.sections()} == {
        "flask.commands": {"pika": "flask_pika.cli:pika_cli"},
        "pytest11": {"flask_pika": "pytest_flask_pika"},
    }


def test_the_wheel_of_the_sdist_is_that_of_the_checkout(dist: Dist, tmp_path: Path) -> None:
    assert build("wheel", ROOT, tmp_path).read_bytes() == dist.wheel.read_bytes()


def test_the_sdist_has_what_tests_and_documentation_need(dist: Dist) -> None:
    with tarfile.open(dist.sdist) as archive:
        root, held = os.path.commonpath(archive.getnames()), set(archive.getnames())
    for place in ("src", "tests", "tools", "examples", "benchmarks", "requirements", "docs", "scripts"):
        kinds = ("", ".py", ".md", ".txt", ".css")
        files = [path for path in (ROOT / place).rglob("*") if path.suffix in kinds]
        wanted = {
            f"{root}/{path.relative_to(ROOT)}"
            for path in files
            if path.is_file() and not {"_build", "instance"} & set(path.parts)
        }
        assert wanted, place
        assert wanted <= held, wanted - held
    for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "pyproject.toml"):
        assert f"{root}/{name}" in held


def test_what_a_run_leaves_behind_is_not_in_the_sdist(dist: Dist, tmp_path: Path) -> None:
    tree = unpack(dist.sdist, tmp_path)
    for left in (
        *(".venv/lib/tests/one.py", ".venv-docs/docs/one.md", ".venvs/3.13/tools/one.py"),
        *("docs/_build/html/index.html", "dist/one.whl", "tests/__pycache__/one.pyc", ".pytest_cache/one"),
        *("src/Flask_Pika.egg-info/PKG-INFO", "examples/orders/instance/one.db", "elsewhere/docs/one.md"),
    ):
        (tree / left).parent.mkdir(parents=True, exist_ok=True)
        (tree / left).touch()
    again = build("sdist", tree, tmp_path)
    assert again.read_bytes() == dist.sdist.read_bytes()
