"""A headless Chromium of the system (Debian: chromium and chromium-driver), driven by selenium."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

PHONE, DESK = (390, 844), (1360, 900)


@contextmanager
def browser(
    downloads: Path, size: tuple[int, int] = DESK, is_dark: bool = False
) -> Iterator[Chrome]:
    """Opens a browser that has no way to any machine but this one.

    Args:
        downloads: Where files go that a page saves.
        size: Width and height of the page; narrow ones have a touch screen, as phones do.
        is_dark: What the page is told of the user's taste.
    """
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in programs:
        pytest.skip("no browser: apt-get install chromium chromium-driver")
    options = ChromeOptions()
    options.binary_location = str(programs[0])
    # Names of other machines lead nowhere; the log says what was asked for.
    only_here = "MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost"
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--disable-gpu",
        f"--host-resolver-rules={only_here}",
    ):
        options.add_argument(argument)
    several = "profile.default_content_setting_values.automatic_downloads"
    options.add_experimental_option("prefs", {several: 1})
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = Chrome(options, Service(str(programs[1])))
    try:
        behaviour = {"behavior": "allow", "downloadPath": str(downloads)}
        driver.execute_cdp_cmd("Browser.setDownloadBehavior", behaviour)
        width, height = size
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1}
        metrics["mobile"] = width < 600
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        if width < 600:
            driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
        feature = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        yield driver
    finally:
        driver.quit()


def by_id(driver: Chrome, name: str):
    """The element of an id."""
    return driver.find_element(By.ID, name)
