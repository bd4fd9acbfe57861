"""Whether figures can be drawn as PNG, told without drawing one, and by which browser."""

import importlib.util
import shutil
import sys
from pathlib import Path

_MAC_CHROME = Path("/Applications/Google Chrome.app/Contents/MacOS/Google Chrome")
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def has_browser() -> bool:
    """Whether figures can be drawn as PNG: kaleido and a Chromium or Chrome are there."""
    return has_kaleido() and find() is not None


def find() -> Path | None:
    """The program of a Chromium or Chrome of this machine; None where there is none."""
    for name in _BROWSERS:
        if program := shutil.which(name):
            return Path(program)
    return _MAC_CHROME if _MAC_CHROME.exists() else None


def has_kaleido() -> bool:
    """Whether the package that lets a browser draw is installed; importing it takes too long to find out."""
    if "kaleido" in sys.modules:
        return sys.modules["kaleido"] is not None
    return importlib.util.find_spec("kaleido") is not None
