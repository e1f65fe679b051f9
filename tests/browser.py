"""A real headless Chromium for tests, driven by the WebDriver protocol (W3C) through chromedriver.

Use the fixture `browser`: import it in a conftest, or name it in a test module's imports.

    def test_page(browser: Browser) -> None:
        browser.open("http://127.0.0.1:8000/")
        assert browser.run("return document.title") == "nonet"
"""

from __future__ import annotations

import base64
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

__all__ = ["Browser", "browser"]

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
NEEDED = ("chromium", "chromedriver")
START_S = 60.0


class Browser:
    """One window. What a page logs to its console, refusals by its content security policy too, is in `log`."""

    def __init__(self, driver_url: str, profile: Path) -> None:
        self._http = httpx.Client(base_url=driver_url, timeout=60)
        options = {
            "args": [*FLAGS, f"--user-data-dir={profile}"],
            "binary": shutil.which("chromium"),
        }
        asked = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        made = self._http.post("/session", json={"capabilities": {"alwaysMatch": asked}})
        assert made.status_code == 200, made.text
        self._path = f"/session/{made.json()['value']['sessionId']}"

    def open(self, url: str) -> None:
        """Go to a page and wait until it has loaded."""
        self._command("/url", {"url": url})

    def run(self, script: str, *args: Any) -> Any:
        """What the body of a JavaScript function returns; `arguments` holds `args`."""
        return self._command("/execute/sync", {"script": script, "args": list(args)})

    def wait(self, script: str, *args: Any, limit_s: float = 20.0) -> Any:
        """What `script` returns as soon as that is true."""
        end = time.monotonic() + limit_s
        while not (value := self.run(script, *args)):
            assert time.monotonic() < end, f"never true: {script}\nconsole: {self.log()}"
            time.sleep(0.05)
        return value

    def type(self, selector: str, text: str) -> None:
        """Type into the element as a person does, key by key."""
        self._command(f"/element/{self._element(selector)}/value", {"text": text})

    def click(self, selector: str) -> None:
        self._command(f"/element/{self._element(selector)}/click", {})

    def text(self, selector: str) -> str:
        """What a reader sees of the element."""
        answer = self._http.get(f"{self._path}/element/{self._element(selector)}/text")
        return str(self._value(answer))

    def screenshot(self) -> bytes:
        """The window as PNG."""
        return base64.b64decode(self._value(self._http.get(f"{self._path}/screenshot")))

    def log(self) -> list[str]:
        """Messages of the console since the last time."""
        answer = self._http.post(f"{self._path}/se/log", json={"type": "browser"})
        return [f"{one['level']} {one['message']}" for one in self._value(answer)]

    def close(self) -> None:
        self._http.delete(self._path)
        self._http.close()

    def _element(self, selector: str) -> str:
        found = self._command("/element", {"using": "css selector", "value": selector})
        return str(next(iter(found.values())))

    def _command(self, path: str, body: dict[str, Any]) -> Any:
        return self._value(self._http.post(self._path + path, json=body))

    @staticmethod
    def _value(answer: httpx.Response) -> Any:
        value = answer.json()["value"]
        assert answer.status_code == 200, value
        return value


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One Chromium for the whole run; skips where none is installed."""
    if any(shutil.which(name) is None for name in NEEDED):
        pytest.skip("chromium and chromedriver are not installed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        driver = subprocess.Popen(
            ["chromedriver", f"--port={port}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            url = f"http://127.0.0.1:{port}"
            _wait(lambda: httpx.get(f"{url}/status").json()["value"]["ready"])
            window = Browser(url, Path(profile))
            yield window
            window.close()
        finally:
            driver.terminate()
            driver.wait(20)


def _wait(is_ready: Callable[[], bool]) -> None:
    end = time.monotonic() + START_S
    while True:
        try:
            if is_ready():
                return
        except httpx.HTTPError:
            pass
        assert time.monotonic() < end, "chromedriver did not start"
        time.sleep(0.05)
