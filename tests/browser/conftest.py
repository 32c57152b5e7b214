"""A real Chromium, and what it saw of a page: messages, errors, dialogs, requests."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

AXE = Path(__file__).parent / "node_modules" / "axe-core" / "axe.min.js"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
QUIET = (
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
WAIT_MS = 20_000


def cannot(what: str) -> NoReturn:
    """Skip where something cannot be had; on CI it must be there, so fail."""
    word = f"{what} is not here; tests/browser/setup gets it where it can be had"
    if os.environ.get("CI", "").lower() in {"1", "true"}:
        pytest.fail(word)
    pytest.skip(word)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """Start the system's Chromium with a fresh profile; it ends with the module.

    A module and no longer: Playwright's loop must not be running when other tests start theirs.
    """
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        cannot("the playwright package (dependency group 'browser')")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        cannot("Chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path, args=list(QUIET), chromium_sandbox=False
        )
        yield browser
        browser.close()


class Opened:
    """A page in a browser, and what it did besides showing itself."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.noise: list[str] = []
        self.requests: list[str] = []
        page.set_default_timeout(WAIT_MS)
        page.on("console", lambda message: self.noise.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: self.noise.append(f"error: {error}"))
        page.on("dialog", self._refuse)
        page.on("request", lambda request: self.requests.append(request.url))

    def _refuse(self, dialog: Any) -> None:
        self.noise.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def texts(self, selector: str) -> list[str]:
        """Return what is written in each element that the selector finds."""
        return [text.strip() for text in self.page.locator(selector).all_text_contents()]


@pytest.fixture
def show(chromium: Any, tmp_path: Path) -> Iterator[Callable[..., Opened]]:
    """Open HTML from a file, as a person would; options are those of a browser context."""
    contexts = []

    def show_html(html: str, **options: Any) -> Opened:
        path = tmp_path / "report.html"
        path.write_text(html, "utf-8")
        contexts.append(chromium.new_context(**options))
        opened = Opened(contexts[-1].new_page())
        opened.page.goto(path.as_uri())
        opened.page.wait_for_selector("html[data-ready]")
        return opened

    yield show_html
    for context in contexts:
        context.close()
