"""A Chromium without a window that is driven by keys, where one is on the machine with its driver."""

import shutil
from contextlib import contextmanager

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")

needs_driver = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None,
    reason="no Chromium with its driver (Debian's packages chromium, chromium-driver)",
)


@contextmanager
def opened(folder, size="1000,900"):
    """A browser with an empty profile and its downloads in this folder."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", f"--window-size={size}",
                 "--no-first-run", "--disable-background-networking", "--disable-component-update"):  # fmt: skip
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={folder / 'profile'}")
    options.add_experimental_option("prefs", {"download.default_directory": str(folder)})
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    try:
        yield browser
    finally:
        browser.quit()


def keys(browser, *pressed):
    """Press keys on the page, one after the other."""
    from selenium.webdriver import ActionChains

    for key in pressed:
        ActionChains(browser, duration=0).send_keys(key).perform()


def text_of(browser, name):
    """What an element shows."""
    return browser.find_element("id", name).text


def until(browser, condition, seconds=30):
    """Wait until something is so of the page."""
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, seconds, 0.02).until(lambda _: condition())
