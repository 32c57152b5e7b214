"""Take the pictures of docs/images anew: ``python -m tests.browser.screenshots`` from the root.

Beside Chromium it needs ``pngquant``, which makes the pictures a third as large.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from flowrun.render import report_html

from . import reports
from .conftest import BROWSERS, QUIET

IMAGES = Path(__file__).resolve().parents[2] / "docs" / "images"
MOST_BYTES = 150_000
WIDE = {"width": 1280, "height": 860}
SMALL = {"width": 1000, "height": 680}
PHONE = {"width": 390, "height": 844}


def main() -> str | None:
    """Take them all; return what is larger than a picture in the repository may be."""
    from playwright.sync_api import sync_playwright

    IMAGES.mkdir(parents=True, exist_ok=True)
    path = next(filter(None, map(shutil.which, BROWSERS)))
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        browser = playwright.chromium.launch(
            executable_path=path, args=list(QUIET), chromium_sandbox=False
        )
        camera = Camera(browser, Path(folder))
        camera.take("report-failure", reports.failure())
        camera.take("report-success-dark", reports.success(), color_scheme="dark")
        camera.take("report-detail", reports.failure(), click=".node.FAILED", whole=False)
        camera.take("report-phone", reports.failure(), viewport=PHONE)
        camera.take(
            "report-5000",
            reports.big(),
            click="[data-open]",
            whole=False,
            to="#graph",
            viewport=SMALL,
        )
        camera.take(
            "report-siblings",
            reports.failed_fan(),
            click=".node.FAILED",
            whole=False,
            viewport=WIDE,
        )
        camera.take("report-mapped", reports.pages(), click=".node.FAILED", whole=False)
        browser.close()
    too_large = [image.name for image in IMAGES.glob("*.png") if image.stat().st_size > MOST_BYTES]
    return f"too large: {', '.join(too_large)}" if too_large else None


class Camera:
    """Opens reports and keeps what they look like."""

    def __init__(self, browser: Any, folder: Path) -> None:
        self._browser = browser
        self._folder = folder

    def take(
        self,
        name: str,
        report: Any,
        *,
        click: str | None = None,
        to: str | None = None,
        whole: bool = True,
        **options: Any,
    ) -> None:
        """Take one picture: of the whole page, or of what is on screen."""
        page_file = self._folder / f"{name}.html"
        page_file.write_text(report_html(report), "utf-8")
        context = self._browser.new_context(**{"viewport": WIDE, **options})
        page = context.new_page()
        page.goto(page_file.as_uri())
        page.wait_for_selector("html[data-ready]")
        if click is not None:
            page.click(click)
        if to is not None:
            page.evaluate("selector => document.querySelector(selector).scrollIntoView()", to)
        page.wait_for_function("document.getAnimations().length === 0")
        path = IMAGES / f"{name}.png"
        page.screenshot(path=path, full_page=whole)
        reduce = ["pngquant", "--force", "--speed", "1", "--strip", "--output", path, "96", path]
        subprocess.run(reduce, check=True, timeout=60)
        context.close()


if __name__ == "__main__":
    sys.exit(main())
