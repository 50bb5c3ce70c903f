"""A headless Chromium that tests drive: the browser of Debian's packages chromium and chromium-driver."""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

WAIT_S = 30


class Browser:
    """One window; whatever the page logs as an error fails the test that asks for ``errors``."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, url: str) -> None:
        self.driver.get("about:blank")  # another hash alone would load nothing
        self.driver.get(url)

    def js(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(f"return {script}", *arguments)

    def find(self, css: str) -> Any:
        return self.driver.find_element(By.CSS_SELECTOR, css)

    def all(self, css: str) -> list[Any]:
        return self.driver.find_elements(By.CSS_SELECTOR, css)

    def text(self, css: str) -> str:
        return self.find(css).text

    def until(self, condition: Callable[[], Any], why: str = "") -> Any:
        """Wait until ``condition`` is true and return its value."""
        deadline = time.monotonic() + WAIT_S
        while True:
            if value := condition():
                return value
            assert time.monotonic() < deadline, f"{why or 'it'} did not come about in {WAIT_S} s"
            time.sleep(0.05)

    def keys(self, *keys: str, css: str = "body") -> None:
        self.find(css).send_keys(*keys)

    def screenshot(self, path: Path) -> np.ndarray:
        """Write what is to be seen as a PNG and return its pixels."""
        self.driver.save_screenshot(str(path))
        return np.asarray(Image.open(path).convert("RGB"))

    def errors(self) -> list[str]:
        return [each["message"] for each in self.driver.get_log("browser") if each["level"] == "SEVERE"]


@contextmanager
def chromium(width: int = 1400, height: int = 900, *, touch: bool = False) -> Iterator[Browser]:
    """Start a browser; the test is skipped, and says so, where there is none."""
    program, driver_program = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver_program is None:
        pytest.skip("no browser (apt-get install chromium chromium-driver): this page was NOT tested in one")
    options = Options()
    options.binary_location = program
    for flag in (
        *("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--no-proxy-server"),
        *("--hide-scrollbars", "--force-device-scale-factor=1", f"--window-size={width},{height}"),
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(driver_program))
    try:
        # The window has a frame; what counts is the page.
        driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": touch},
        )
        if touch:
            driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
        yield Browser(driver)
    finally:
        driver.quit()
