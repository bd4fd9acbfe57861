"""A headless Chromium for tests, which cannot leave this machine, and pages that keep what went wrong on them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from anchorlens import browser

HERE = ("file", "data", "blob", "about")
LOCAL = ("localhost", "127.0.0.1", "::1")
NONE = "no Chromium or Chrome on this machine: apt-get install chromium (or brew install --cask google-chrome)"
DRAWN = ".js-plotly-plot .main-svg"


def leaves(url: str) -> bool:
    """Whether asking for ``url`` would leave this machine."""
    parts = urlsplit(url)
    return parts.scheme not in HERE and parts.hostname not in LOCAL


class Watched:
    """A page, and what went wrong on it: errors on its console or in scripts, files not found, requests to others."""

    def __init__(self, context: Any) -> None:
        self.faults: list[str] = []
        self.page = context.new_page()
        self.page.on("console", lambda said: said.type == "error" and self.faults.append(f"console: {said.text}"))
        self.page.on("pageerror", lambda error: self.faults.append(f"script: {error}"))
        self.page.on("request", lambda asked: leaves(asked.url) and self.faults.append(f"asks {asked.url}"))
        self.page.on("requestfailed", self._failed)
        self.page.on("websocket", lambda asked: leaves(asked.url) and self.faults.append(f"asks {asked.url}"))

    def _failed(self, asked: Any) -> None:
        if asked.failure != "net::ERR_ABORTED":  # by the page's being left for the next one
            self.faults.append(f"not found: {asked.url}")

    def open(self, page: Path) -> Any:
        """Open a page from disk and wait until all that it needs is there."""
        self.page.goto(page.resolve().as_uri(), wait_until="load")
        return self.page

    def shoot(self, name: str) -> None:
        """Keep how the page looks, light and dark, in the folder that ANCHORLENS_SHOTS names; for people to look at."""
        if folder := os.environ.get("ANCHORLENS_SHOTS"):
            for scheme in ("dark", "light"):
                self.page.emulate_media(color_scheme=scheme)
                self.page.screenshot(path=Path(folder, f"{name}-{scheme}.png"), full_page=True)


@contextmanager
def chromium() -> Iterator[Any]:
    """The system's browser, headless; names of other machines mean nothing to it. Skips where there is none.

    Nothing else in this process may run an event loop meanwhile: run notebooks in a process of their own.
    """
    if (program := browser.find()) is None:
        pytest.skip(NONE)
    from playwright.sync_api import sync_playwright

    options = ["--no-sandbox", f"--host-resolver-rules=MAP * ~NOTFOUND, {', '.join(f'EXCLUDE {x}' for x in LOCAL)}"]
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=options)
        try:
            yield started
        finally:
            started.close()


@contextmanager
def watched(started: Any, **how: Any) -> Iterator[Watched]:
    """A fresh page, closed afterwards; what went wrong on it is the caller's to look at."""
    context = started.new_context(viewport={"width": 1200, "height": 900}, **how)
    try:
        yield Watched(context)
    finally:
        context.close()
