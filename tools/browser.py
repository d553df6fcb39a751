"""The system's Chromium, headless, with the driver that its package brings: they always fit each other."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator

from selenium.webdriver import Chrome, ChromeOptions, ChromeService

_TIMEOUT = 60.0


def programs() -> tuple[str, str] | None:
    """Where Chromium and its driver are on this machine, or None."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    return (browser, driver) if browser and driver else None


@contextlib.contextmanager
def chromium(width: int = 1000, height: int = 700) -> Iterator[Chrome]:
    """A browser with a window of that size, and a profile that is gone afterwards."""
    found = programs()
    if found is None:
        raise RuntimeError("there is no Chromium, or no chromedriver: run scripts/ensure-chromium")
    options = ChromeOptions()
    options.binary_location = found[0]
    for argument in (
        "--headless=new",
        f"--window-size={width},{height}",
        "--force-device-scale-factor=1",
        "--no-proxy-server",  # what the environment says of proxies is not about loopback
        "--disable-background-networking",
        "--disable-dev-shm-usage",  # /dev/shm is small in containers
    ):
        options.add_argument(argument)
    if os.geteuid() == 0:  # Chromium's sandbox is not for root, who has only pages of his own here
        options.add_argument("--no-sandbox")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = Chrome(options, ChromeService(found[1]))
    try:
        browser.set_page_load_timeout(_TIMEOUT)
        browser.set_script_timeout(_TIMEOUT)
        yield browser
    finally:
        browser.quit()
