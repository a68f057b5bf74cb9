"""A real Chromium without a window. Without one here a test is skipped on a laptop, and fails where `CI` is set."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.remote.webelement import WebElement

from tests.waiting import wait_until

PAGE_LIMIT_S = 60
_LOAD_AGAIN_S = 5.0
_FLAGS = ("--headless=new", "--window-size=1800,760", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run")


@contextmanager
def open_browser() -> Iterator[WebDriver]:
    """A browser with an empty profile, closed at the end of the block."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        reason = "no chromium and chromedriver on PATH: install the packages chromium and chromium-driver"
        if os.environ.get("CI"):
            raise AssertionError(reason)
        pytest.skip(reason)
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*_FLAGS, *(("--no-sandbox",) if os.getuid() == 0 else ())):  # root has no sandbox to offer
        options.add_argument(flag)
    browser = webdriver.Chrome(options=options, service=Service(executable_path=driver))
    try:
        browser.set_page_load_timeout(PAGE_LIMIT_S)
        yield browser
    finally:
        browser.quit()


def text_of_page(browser: WebDriver) -> str:
    """What a person reads on the page now."""
    return str(browser.find_element(By.TAG_NAME, "body").text)


def wait_for(browser: WebDriver, *xpaths: str) -> list[WebElement]:
    """One element of each of `xpaths`, once all are there; the page is loaded again every few seconds until then."""
    load_again_at = time.monotonic() + _LOAD_AGAIN_S

    def look() -> list[WebElement] | None:
        nonlocal load_again_at
        found = [browser.find_elements(By.XPATH, xpath) for xpath in xpaths]
        if all(found):
            return [elements[0] for elements in found]
        if time.monotonic() >= load_again_at:
            browser.refresh()
            load_again_at = time.monotonic() + _LOAD_AGAIN_S
        return None

    elements = wait_until(look, within_s=PAGE_LIMIT_S, what=f"{xpaths} on {browser.title}")
    assert elements is not None
    return elements
