"""Pages opened in headless Chromium, where it is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


def chromium(page: Path, *arguments: str) -> str:
    """Open ``page`` from disk in headless Chromium; its standard output."""
    binary = shutil.which("chromium") or shutil.which("chromium-browser")
    if binary is None:
        sentence = "pages are not opened in a browser: `make browser` installs Chromium"
        pytest.fail(sentence) if os.environ.get("CI") else pytest.skip(sentence)
    profile = page.parent / "profile"
    command = [binary, *FLAGS, f"--user-data-dir={profile}", *arguments, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, check=True)
    shutil.rmtree(profile, ignore_errors=True)
    return done.stdout
