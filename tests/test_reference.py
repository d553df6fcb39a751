"""What the pages say of the code is so: settings, commands, errors, log lines, names, links, drawings."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest
from pika import exceptions as pika_errors

import flask_pika
from flask_pika import broker, config, errors, params, testing
from tests.documents import DOCUMENTS, ROOT
from tools import reference

#: Of the package that is tested: in the checkout, or of the wheel.
SOURCES = Path(flask_pika.__file__).parent


def page_of(name: str) -> str:
    return (ROOT / "docs" / f"{name}.md").read_text()


def rows_of(text: str) -> Iterator[list[str]]:
    for line in text.splitlines():
        if line.startswith("| "):
            yield [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


@pytest.mark.parametrize("name", ["configuration", "cli"])
def test_what_is_made_from_the_code_is_as_the_code_has_it(name: str) -> None:
    assert page_of(name) == reference.made_anew(page_of(name)), "run 'python -m tools.reference'"


def test_every_key_of_the_configuration_is_in_its_page() -> None:
    keys = {row[0].strip("`") for row in rows_of(page_of("configuration"))}
    settings = (config.PoolSettings, config.PublisherSettings)
    assert {one.name for kind in settings for one in dataclasses.fields(kind)} <= keys
    assert set(params.KEYS) <= keys


def test_every_command_and_option_is_in_its_page() -> None:
    text = page_of("cli")
    for name, command in reference.commands():
        section = text.split(f"## `{name}`\n")[1].split("\n## ")[0]
        for option in command.params:
            for said in option.opts if option.param_type_name == "option" else []:
                assert f"`{said}" in section, (name, said)


def public() -> Iterator[tuple[str, object]]:
    """The public functions, methods and classes that users call, by name."""
    for thing in (
        *(getattr(flask_pika, name) for name in flask_pika.__all__),
        broker.Broker,
        broker.QueueView,
    ):
        if not inspect.isclass(thing) or issubclass(thing, BaseException):
            continue
        yield thing.__name__, thing
        for name, method in vars(thing).items():
            if inspect.isfunction(method) and not name.startswith("_"):
                yield f"{thing.__name__}.{name}", method
    yield "record_messages", testing.record_messages


#: Made by the package and not by its users, who have nothing to give to them.
NOT_CALLED = {"Action", "Binding", "Delivery", "DeliveryFilter", "PooledChannel", "QueueView", "Worker"}
NOT_CALLED |= {"Exchange", "Queue", "Outcome", "PoolStats", "PublisherStats", "ConsumerStats", "Stats"}
NOT_CALLED |= {"PublishReport", "Failure", "PooledChannel.borrow", "PooledChannel.give_up"}
NOT_CALLED |= {f"Worker.link_{what}" for what in ("ready", "lost", "failed", "ended", "blocked")}


@pytest.mark.parametrize(("name", "thing"), [pytest.param(*one, id=one[0]) for one in public()])
def test_every_parameter_of_the_public_api_is_in_its_docstring(name: str, thing: object) -> None:
    if name in NOT_CALLED or name.startswith(("DeliveryFilter.", "PooledChannel.")):  # logging's, and pika's
        return
    doc = inspect.getdoc(thing) or ""
    assert doc
    for parameter in inspect.signature(thing).parameters:  # type: ignore[arg-type]
        if parameter != "self":
            assert f":param {parameter}:" in doc, parameter


# Errors


def test_the_page_about_errors_has_each_with_what_else_it_is() -> None:
    said = {row[0].strip("`"): set(re.findall(r"`(\w+)`", row[1])) for row in rows_of(page_of("errors"))}
    for name in set(errors.__all__) - {"FlaskPikaError"}:
        kind = getattr(errors, name)
        also = {
            base.__name__
            for base in kind.__mro__
            if base in (ValueError, TypeError, RuntimeError, TimeoutError)
            or base.__module__ == pika_errors.__name__
        }
        # Of pika's own families, those that nobody would catch this one as; the root of all is said above.
        also -= {"AMQPError", "AMQPChannelError", "ChannelClosed", "AMQPHeartbeatTimeout"}
        if name in ("BrokerBlocked", "ProtocolMismatch", "AuthenticationRefused", "VirtualHostRefused"):
            also.add("AMQPConnectionError")
        if "ConnectionWrongStateError" in also or "ChannelWrongStateError" in also:
            also -= {"AMQPConnectionError"}
        assert said[name] == also, name
    tree = re.search(r"```\n(FlaskPikaError\n.*?)```", page_of("errors"), re.S)
    assert tree is not None
    assert sorted(line.split()[-1] for line in tree[1].splitlines()) == sorted(errors.__all__)
    for line in tree[1].splitlines()[1:]:
        name, depth = line.split()[-1], line.index("── ") // 4
        above = [one.split()[-1] for one in tree[1].splitlines() if one.index(one.split()[-1]) // 4 == depth]
        assert any(issubclass(getattr(errors, name), getattr(errors, one)) for one in above), name


# What happens when


def log_lines() -> set[tuple[str, str]]:
    """Every line that the package logs, as (level, format)."""
    found = set()
    for path in SOURCES.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            if not (isinstance(node.func.value, ast.Name) and node.func.value.id == "logger"):
                continue
            level = {"exception": "ERROR", "log": "WARNING"}.get(node.func.attr, node.func.attr.upper())
            text = next((one.value for one in node.args if isinstance(one, ast.Constant)), "")
            found.add((level, str(text)))
    return found


def test_what_the_page_about_faults_shows_of_the_log_is_logged_so() -> None:
    said = re.findall(r"(WARNING|ERROR|INFO) `([^`]+)`", page_of("faults"))
    said += [("WARNING", one) for one in re.findall(r"and then `([^`]+)`", page_of("faults"))]
    assert len(said) > 25
    logged = log_lines()
    for level, line in said:
        # A parameter stands for anything, words around it included: "%s: RabbitMQ %s".
        fits = [
            form
            for at, form in logged
            if at == level
            and re.fullmatch(re.sub(r"%(?:\.\d)?[srdfg]", ".+", re.escape(form).replace(r"\.1", ".1")), line)
        ]
        assert fits, (level, line)
    loggers = set(re.findall(r"`(flask_pika\.\w+)`", page_of("faults") + page_of("deploying")))
    sources = "".join(path.read_text() for path in SOURCES.glob("*.py"))
    for name in loggers:
        assert f'getLogger("{name}")' in sources, name


def test_the_errors_that_the_page_about_faults_names_exist() -> None:
    known = {*errors.__all__, *dir(pika_errors), "SIGKILL", "SIGTERM"}
    for name in re.findall(r"`([A-Z]\w+)`", page_of("faults")):
        assert name in known, name


# The walk


def test_every_name_in_the_walk_is_where_it_says() -> None:
    walk = page_of("design").split("## A walk")[1]
    found = re.findall(r"`(\w+)\.py`: ((?:`[\w.]+`(?:, )?)+)", walk)
    assert len(found) > 30
    for module, names in found:
        for name in re.findall(r"`([\w.]+)`", names):
            thing: object = importlib.import_module(f"flask_pika.{module}")
            for part in name.split("."):
                thing = getattr(thing, part)
            assert inspect.getsourcefile(thing) == str(SOURCES / f"{module}.py"), name  # type: ignore[arg-type]


# Links and drawings


def anchors_of(text: str) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_leads_somewhere(document: str) -> None:
    file = ROOT / document
    text = re.sub(r"^```.*?^```$", "", file.read_text(), flags=re.M | re.S)
    for target, place in re.findall(r"\]\(([^)#:\s]*)(?:#([^)\s]*))?\)", text):
        path = (file.parent / target) if target else file
        assert path.exists(), target
        if place:
            assert place in anchors_of(path.read_text()), f"{target}#{place}"


#: Those that are drawn by hand: what a run of something draws is its own.
DRAWINGS = sorted(
    {
        name
        for document in DOCUMENTS
        for name in re.findall(r"\(images/([\w-]+\.svg)\)", (ROOT / document).read_text())
    }
)


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_drawing_is_described_and_reads_in_light_and_dark(name: str) -> None:
    text = (ROOT / "docs" / "images" / name).read_text()
    drawing = ET.fromstring(text)
    svg = "{http://www.w3.org/2000/svg}"
    assert drawing.findtext(f"{svg}title")
    assert drawing.findtext(f"{svg}desc")
    light, dark = text.split("@media (prefers-color-scheme: dark)")
    colours = [dict(re.findall(r"--(\w+): (#\w+)", one)) for one in (light, dark)]
    assert set(colours[0]) == set(colours[1])
    for scheme in colours:
        for part in ("ink", "line", "good", "bad"):
            # W3C, WCAG 2.1: 4.5 for text, 3 for lines.
            assert contrast(scheme[part], scheme["paper"]) >= (4.5 if part == "ink" else 3)
        assert contrast(scheme["ink"], scheme["box"]) >= 4.5
    # A page may be light where the drawing is dark, so it has a ground of its own.
    width, height = drawing.get("width"), drawing.get("height")
    assert f'<rect class="paper" width="{width}" height="{height}"' in text


def contrast(one: str, other: str) -> float:
    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)
