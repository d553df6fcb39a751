"""The picture of ``examples/orders`` in the docs: ``python -m tools.screenshot`` makes it anew."""

from __future__ import annotations

import tempfile
from pathlib import Path

from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support import expected_conditions
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.wait import WebDriverWait

from tools.browser import chromium
from tools.embedded_node import EmbeddedNode
from tools.orders_example import OrdersExample

_PICTURE = Path(__file__).parent.parent / "docs" / "images" / "orders.png"
_TIMEOUT = 30.0


def place_order(browser: Chrome, customer: str, tea: str, cups: int) -> None:
    """Fill in the form of the page that is shown, and send it."""
    browser.find_element(By.ID, "customer").send_keys(customer)
    Select(browser.find_element(By.ID, "tea")).select_by_visible_text(tea)
    browser.find_element(By.ID, "cups").clear()
    browser.find_element(By.ID, "cups").send_keys(str(cups))
    button = browser.find_element(By.CSS_SELECTOR, "main form button")
    button.click()
    WebDriverWait(browser, _TIMEOUT).until(expected_conditions.staleness_of(button), "no page came")


def states(browser: Chrome) -> list[str]:
    """What the page says of the orders, the latest first."""
    # In one go, and not element by element: meanwhile, there may be another page.
    found: list[str] = browser.execute_script(
        "return [...document.querySelectorAll('#orders .state')].map(one => one.innerText)"
    )
    return found


def wait_for_states(browser: Chrome, *wanted: str) -> None:
    WebDriverWait(browser, _TIMEOUT, poll_frequency=0.05).until(
        lambda _: states(browser) == list(wanted), f"the orders did not come to be {wanted}"
    )


def main() -> None:
    with (
        EmbeddedNode() as node,
        tempfile.TemporaryDirectory() as directory,
        chromium(width=920, height=660) as browser,
    ):
        example = OrdersExample(node.url, Path(directory))
        example.init()
        with example.web() as base:
            browser.get(base)
            with example.worker():
                place_order(browser, "Ann", "Assam", 2)
                place_order(browser, "Chandra", "Earl Grey", 1)
                wait_for_states(browser, "done", "done")
            # Nobody works any more.
            place_order(browser, "Bo", "Sencha", 3)
            wait_for_states(browser, "queued", "done", "done")
            _PICTURE.parent.mkdir(exist_ok=True)
            _PICTURE.write_bytes(browser.get_screenshot_as_png())
    print(f"{_PICTURE}: {_PICTURE.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()
