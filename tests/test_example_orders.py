"""``examples/orders``: its own tests, and what its users see in a real browser."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pika
import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By

from tests.conftest import Node, wait_for
from tools.browser import chromium
from tools.embedded_node import EmbeddedNode
from tools.orders_example import OrdersExample
from tools.screenshot import place_order, states, wait_for_states

ROOT = Path(__file__).parent.parent
QUEUE = "orders"


def test_its_own_tests_pass() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "examples/orders", "-q", "-p", "no:cacheprovider"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def browser() -> Iterator[Chrome]:
    with chromium() as started:
        yield started


@pytest.fixture
def queued(everyday: Node) -> Iterator[Callable[[], int]]:
    """How many messages wait in the example's queue, which is there only during the test."""
    with pika.BlockingConnection(pika.URLParameters(everyday.url)) as connection:
        channel = connection.channel()
        channel.queue_delete(QUEUE)
        yield lambda: channel.queue_declare(QUEUE, passive=True).method.message_count
        channel.queue_delete(QUEUE)


def news(browser: Chrome) -> str:
    return browser.find_element(By.ID, "news").get_attribute("textContent") or ""


def complaints(browser: Chrome) -> list[str]:
    """What the browser's console has to say, such as of a script that failed."""
    return [entry["message"] for entry in browser.get_log("browser")]


@pytest.mark.browser
def test_a_queued_order_is_done_by_itself_when_the_worker_has_had_it(
    everyday: Node, queued: Callable[[], int], browser: Chrome, tmp_path: Path
) -> None:
    example = OrdersExample(everyday.url, tmp_path)
    example.init()
    with example.web() as base:
        browser.get(base)
        place_order(browser, "Ann <script>alert(1)</script>", "Earl Grey", 2)
        assert states(browser) == ["queued"]
        row = browser.find_element(By.CSS_SELECTOR, "#orders li").text
        assert "2 \N{MULTIPLICATION SIGN} Earl Grey" in row
        assert "for Ann <script>alert(1)</script>" in row
        browser.refresh()
        assert states(browser) == ["queued"], "a reload orders nothing"
        assert queued() == 1

        browser.execute_script("window.isTheSamePage = true")
        with example.worker():
            wait_for_states(browser, "done")
        assert browser.execute_script("return window.isTheSamePage")
        assert news(browser).startswith("Done: 2 \N{MULTIPLICATION SIGN} Earl Grey for Ann")
        assert queued() == 0
        assert complaints(browser) == []


@pytest.mark.browser
def test_an_order_is_kept_while_the_broker_is_away_and_can_be_sent_again(
    browser: Chrome, tmp_path: Path
) -> None:
    with EmbeddedNode() as node:
        example = OrdersExample(node.url, tmp_path, timeout=4)
        example.init()
        with example.web() as base:
            browser.get(base)
            node.broker.refuse()
            place_order(browser, "Bo", "Sencha", 1)
            assert states(browser) == ["unsent"]
            again = browser.find_element(By.CSS_SELECTOR, "#orders li form")
            assert "the kitchen could not be reached" in again.text
            node.broker.accept()
            # Until then, it would be unsent again: this test's web server does not wait for long.
            wait_for(
                lambda: any(": publisher" in name for name in node.connections()), "the publisher is back"
            )
            again.find_element(By.TAG_NAME, "button").click()
            wait_for_states(browser, "queued")
            with example.worker():
                wait_for_states(browser, "done")
            assert complaints(browser) == []
