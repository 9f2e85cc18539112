"""A headless browser for tests of pages: where it is, or why there is none."""

from __future__ import annotations

import importlib.util
import os
import shutil

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
REQUIRED = "GROKFAST_BROWSER"  # "required": that there is none is a failure


def chromium() -> str:
    """The program. Skips the test where there is none, or no playwright; fails it where REQUIRED says so."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    missing = [] if path else [f"a browser ({', '.join(NAMES)}: apt-get install chromium)"]
    if importlib.util.find_spec("playwright") is None:
        missing.append("playwright (pip install 'grokfast[browser]')")
    if missing:
        tell = pytest.fail if os.environ.get(REQUIRED) == "required" else pytest.skip
        tell(f"needs {' and '.join(missing)}")
    assert path is not None
    return path
