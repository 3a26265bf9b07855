"""A real browser without a window, where one is installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

_BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(_BROWSER is None, reason="no browser is installed")


def pixels(page: Path, folder: Path, height: int = 700) -> np.ndarray:
    """The page as it is drawn: (pixels, 3) uint8."""
    shot = folder / f"{page.stem}.png"
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--window-size=1100,{height}"]
    where = [f"--screenshot={shot}", f"--user-data-dir={folder / 'profile'}"]
    assert _BROWSER is not None
    subprocess.run([_BROWSER, *options, *where, page.as_uri()], check=True, timeout=120)
    return np.asarray(Image.open(shot).convert("RGB")).reshape(-1, 3)
