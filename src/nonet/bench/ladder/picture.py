"""The waterfall as PNG, drawn by a Chromium that is installed, headless and without network."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from nonet.bench.ladder.charts import waterfall_size
from nonet.bench.ladder.html import picture_page
from nonet.bench.ladder.result import Climb
from nonet.core.errors import UnavailableError

__all__ = ["draw", "find_browser"]

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
MARGIN, HEADLINE = 12, 37  # of the page, around the picture


def find_browser(environ: Mapping[str, str] | None = None) -> str | None:
    """What the variable CHROME names, or the first known name on the PATH."""
    given = (os.environ if environ is None else environ).get("CHROME")
    return given or next((found for name in NAMES if (found := shutil.which(name))), None)


def draw(climb: Climb, file: Path) -> None:
    """Write the picture. UnavailableError where no browser is found or it fails."""
    browser = find_browser()
    if browser is None:
        raise UnavailableError(
            "no Chromium was found; install one, or name it in the variable CHROME"
        )
    width, height = waterfall_size(climb)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "picture.html")
        source.write_text(picture_page(climb), encoding="utf-8")
        command = [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage",
            f"--user-data-dir={folder}/profile", "--host-resolver-rules=MAP * ~NOTFOUND",
            f"--window-size={width + 2 * MARGIN},{height + 2 * MARGIN + HEADLINE}",
            f"--screenshot={file.resolve()}", source.as_uri(),
        ]  # fmt: skip
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise UnavailableError(f"{browser} drew no picture: {error}") from None
    if done.returncode or not file.exists():
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise UnavailableError(f"{browser} drew no picture: {lines[-1]}")
