"""One browser for all tests of the page."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver import Chrome, ChromeOptions, ChromeService

from tests.server.page.tab import Tab

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def new_chrome(downloads: Path) -> Chrome:
    """Start a browser without a window; the test is skipped where there is none."""
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("there is no chromium with its chromedriver here")
    options = ChromeOptions()
    options.binary_location = program
    options.add_argument("--headless=new")
    options.add_argument("--window-size=1200,900")
    options.add_argument("--lang=en")
    options.add_argument("--disable-dev-shm-usage")
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return Chrome(options=options, service=ChromeService(driver))


@pytest.fixture(scope="session")
def chrome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """The browser."""
    chrome = new_chrome(tmp_path_factory.mktemp("downloads"))
    try:
        yield chrome
    finally:
        chrome.quit()


@pytest.fixture
def tab(chrome: Chrome, tmp_path: Path) -> Iterator[Tab]:
    """A fresh tab. At the end the console must be empty, and nobody but the server asked."""
    chrome.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    for log in ("browser", "performance"):
        chrome.get_log(log)  # type: ignore[no-untyped-call]
    chrome.execute_cdp_cmd(
        "Browser.setDownloadBehavior",
        {"behavior": "allow", "downloadPath": str(tmp_path / "downloads")},
    )
    (tmp_path / "downloads").mkdir()
    tab = Tab(chrome, tmp_path / "downloads")
    yield tab
    chrome.get("about:blank")
    tab.check_quiet()
