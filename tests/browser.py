"""A headless Chromium for the tests of the review page, driven by selenium."""

import contextlib
import shutil
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from conftest import wait_for
from PIL import Image

KEYS = {"ctrl": "\ue009", "shift": "\ue008", "left": "\ue012", "right": "\ue014", "down": "\ue015", "delete": "\ue017"}
KEYS |= {"enter": "\ue007", "escape": "\ue00c"}


class Browser:
    """A window with one page. `downloads` is the directory of its downloads."""

    def __init__(self, driver, downloads: Path):
        self._driver, self.downloads = driver, downloads

    def open(self, page: Path, size: tuple[int, int] = (1280, 800), scheme: str = "light") -> None:
        """Open a page with empty storage, in a window of a size in pixels, with a colour scheme."""
        metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": False}
        self._driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self._driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        self.load(page)
        self.run("localStorage.clear()")
        self.load(page)

    def load(self, page: Path) -> None:
        self._driver.get("about:blank")
        self._driver.get(page.absolute().as_uri())
        self.wait_for("player.video.readyState >= 2 || player.video.error")

    def run(self, script: str) -> object:
        """Run statements in the page. Returns the value that they return."""
        return self._driver.execute_script(script)

    def value(self, expression: str) -> object:
        return self.run(f"return {expression}")

    def wait_for(self, condition: str, seconds: float = 20) -> None:
        wait_for(lambda: self.value(f"Boolean({condition})"), seconds, text=lambda: condition)

    def errors(self) -> list[str]:
        return [entry["message"] for entry in self._driver.get_log("browser")]

    def press(self, *keys: str) -> None:
        """Press keys one after the other. "ctrl z" is a combination; names are those of KEYS."""
        from selenium.webdriver.common.action_chains import ActionChains

        for key in keys:
            *modifiers, last = [KEYS.get(part, part) for part in (key.split() or [key])]
            actions = ActionChains(self._driver)
            for modifier in modifiers:
                actions.key_down(modifier)
            actions.send_keys(last)
            for modifier in modifiers:
                actions.key_up(modifier)
            actions.perform()

    def mouse(self, *points: tuple[float, float], double: bool = False) -> None:
        """Click at a point of the window in pixels, or drag along several."""
        from selenium.webdriver.common.action_chains import ActionChains

        actions = ActionChains(self._driver, duration=20)
        pointer = actions.w3c_actions.pointer_action
        pointer.move_to_location(*map(round, points[0]))
        pointer.pointer_down()
        for point in points[1:]:
            pointer.move_to_location(*map(round, point))
        pointer.pointer_up()
        if double:
            pointer.pointer_down()
            pointer.pointer_up()
        actions.perform()

    def click(self, selector: str) -> None:
        from selenium.webdriver.common.by import By

        self._driver.find_element(By.CSS_SELECTOR, selector).click()

    def lane_point(self, track: int, time: float) -> tuple[float, float]:
        """Point of the window at a timestamp in the lane of a track, which becomes visible."""
        item = f"timeline.lanes().find(({{ track }}) => track === review.tracks[{track}])"
        self.run(f"timeline.scrollTo(review.tracks[{track}].id)")
        x, y = self.value(f"[timeline.x({time}), {item}.top + LANE / 2 + AXIS - timeline.scroller.scrollTop]")
        return x, y + self.value("timeline.scroller.getBoundingClientRect().top")

    def screenshot(self) -> np.ndarray:
        """RGB image (H, W, 3) of the window."""
        return np.array(Image.open(BytesIO(self._driver.get_screenshot_as_png())).convert("RGB"))

    def download(self, name: str) -> Path:
        """Export a file. Returns its path."""
        path = self.downloads / name
        path.unlink(missing_ok=True)
        self.run("openExport()")
        number = self.value(f"exportedFiles().findIndex(([file]) => file === {name!r})")
        self.click(f"#files li:nth-child({number + 1}) button")
        self.run("document.getElementById('export-dialog').close()")
        wait_for(path.exists, 20, text=lambda: name)
        return path


@contextlib.contextmanager
def open_browser(downloads: Path) -> Iterator[Browser]:
    """Skip the test, with the reason, if there is no browser."""
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = (shutil.which(name) for name in ("chromium", "chromedriver"))
    if not chromium or not driver:
        pytest.skip("chromium and chromedriver are not installed (Debian: apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "mute-audio"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    window = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        behaviour = {"behavior": "allow", "downloadPath": str(downloads)}
        window.execute_cdp_cmd("Browser.setDownloadBehavior", behaviour)
        yield Browser(window, downloads)
    finally:
        window.quit()


def frame_of(image: np.ndarray, rect: dict) -> np.ndarray:
    """Part of a screenshot with the video frame, RGB (H, W, 3)."""
    left, top, width, height = (round(rect[name]) for name in ("left", "top", "width", "height"))
    return image[top : top + height, left : left + width]
