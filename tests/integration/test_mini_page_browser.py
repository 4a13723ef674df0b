"""The page of the miniature in a real browser: nothing sticks out on a phone, every figure is there. Needs Chromium."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from bench.mini.claims import claims
from bench.mini.conditions import Sizes
from bench.mini.page import write_page
from tests.fakes.mini_runs import whole_benchmark

api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH")]


def test_the_page_fits_a_phone_and_a_desk(tmp_path: Path) -> None:
    """It is as wide as the window, also with paths that have no place to break; images load."""
    runs, pairs = whole_benchmark(Sizes())
    found = claims(runs, pairs, None, Sizes().ema_steps)
    page = write_page(tmp_path / ("x" * 100), Sizes(), found, runs, pairs, "seeds", tmp_path)
    with api.sync_playwright() as playwright:
        as_root = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=as_root)
        for width in (360, 400, 800, 1280):
            shown = browser.new_page(viewport={"width": width, "height": 900})
            shown.goto(page.as_uri())
            assert shown.evaluate("document.documentElement.scrollWidth") <= width
            images = shown.evaluate("[...document.images].map(image => [image.complete, image.naturalWidth])")
            assert len(images) == 4
            assert all(complete and natural > 500 for complete, natural in images)
        browser.close()
