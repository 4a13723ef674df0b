"""The viewer on a large ledger: how soon it shows something, how soon a filter answers, what a write costs.

Builds a run with 100,000 attempts (10,000 with --quick), serves it in a process of its own, and looks at it in headless
Chromium. Keys: `first_paint_s` of the page and `list_s` until the attempts stand there, `filter_s_p50` and `_max` from
a click on a filter until its list is painted, `open_s` until an attempt is; the same filters while another process
records 200 attempts a second; `answer_ms_p50` and `_max`: the server's part of it; `server_mib`; and `put_ms`: what
recording an attempt costs.
"""

from __future__ import annotations

import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode
from urllib.request import urlopen

import anyio
import msgspec
import psutil

from bench.common import arguments, emit
from fd_async.data.ledger import Ledger, open_ledger
from fd_async.data.ledger.files import connect
from fd_async.data.ledger.packing import pack
from fd_async.types import Rollout
from tests.fakes.run_folder import make_attempt, write_run

if TYPE_CHECKING:
    from playwright.sync_api import Page

_STEPS = 400
_BODIES = 64
"""Different attempts that the rows share; the page opens few of them."""
_PER_S = 200
_FILTERS = (
    ("verdict", "failed"), ("verdict", "proved"), ("outcome", "dropped:late"), ("ended", "solved"),
    ("source", "eval/minif2f_test"), ("scored", "yes"), ("verdict", "revoked"),
)  # fmt: skip
_WORDS = ("workbook_12", "12345", "nothing has this name")
_PAINTED = """async ([click, facet, value]) => {
    const list = document.querySelector('#list'), began = performance.now();
    const busy = new Promise((done) => new MutationObserver((_, observer) => {
        if (list.getAttribute('aria-busy') === 'false') { observer.disconnect(); done(); }
    }).observe(list, { attributes: true }));
    const input = document.querySelector('#words');
    if (click) document.querySelector(`[data-facet="${facet}"][data-value="${value}"]`).click();
    else { input.value = value; input.dispatchEvent(new Event('input')); }
    await busy;
    await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
    return (performance.now() - began) / 1000;
}"""
"""Click or type, and wait until the new list has been painted."""


def main() -> None:
    options = arguments(__doc__)
    num_attempts = 10_000 if options.quick else 100_000
    with tempfile.TemporaryDirectory(prefix="fd_view_") as folder:
        run = write_run(Path(folder) / "run", num_steps=_STEPS, num_attempts=0)
        fill(run / "ledger.db", num_attempts)
        put_ms = anyio.run(_put_ms, Path(folder) / "empty.db")
        with served(run) as (address, server):
            shown = look(address, run, server)
    emit({"attempts": num_attempts, "put_ms": put_ms, **shown})


def fill(path: Path, num: int) -> None:
    """Write attempts as a run of 400 steps leaves them, all rows through the ledger's own tables and triggers."""
    rng = random.Random(0)
    packed = [pack(make_attempt(index)[0]) for index in range(_BODIES)]
    db = connect(path)
    db.execute("PRAGMA synchronous=OFF")
    with db:
        db.executemany("INSERT INTO rollouts VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)", _rows(rng, num))
        db.executemany("INSERT INTO bodies VALUES (?,?)", ((i, packed[i % _BODIES][0]) for i in range(num)))
        db.executemany("INSERT INTO tokens VALUES (?,'train',?)", ((i, packed[i % _BODIES][1]) for i in range(num)))
    db.close()


def _rows(rng: random.Random, num: int) -> Iterator[Sequence[Any]]:
    for i in range(num):
        verdict = rng.choices(["proved", "failed", "sorry", "timeout", "revoked"], [400, 500, 50, 49, 1])[0]
        is_eval = i % 5 == 4
        purpose, suite = ("eval", "minif2f_test") if is_eval else ("train", "")
        trained = rng.choices(["trained", "dropped:late", "dropped:engine"], [970, 29, 1])[0]
        outcome = "evaluated" if is_eval else trained
        ended = "solved" if verdict == "proved" else rng.choice(["stopped", "token_budget", "turn_budget"])
        gain = rng.gauss(0.1, 0.2) if outcome == "trained" and i % 16 == 0 else None
        yield (
            i, f"{purpose}-{i:07d}-00", purpose, suite, i, 0, outcome, i * _STEPS // num + 1, 1800, 0,
            f"lean_workbook_{rng.randrange(20_000)}", verdict, ended, 2000, 3, gain,
        )  # fmt: skip


async def _put_ms(path: Path) -> float:
    """Return milliseconds per recorded attempt of 2,000 tokens, sync included, 64 at once."""
    attempts = [_of_tokens(index, 2000) for index in range(512)]
    async with open_ledger(path) as ledger:
        began = time.perf_counter()
        for start in range(0, len(attempts), 64):
            async with anyio.create_task_group() as tasks:
                for rollout in attempts[start : start + 64]:
                    tasks.start_soon(_put, ledger, rollout)
        return round((time.perf_counter() - began) / len(attempts) * 1000, 3)


async def _put(ledger: Ledger, rollout: Rollout) -> None:
    await ledger.put_rollout(rollout, "queued", admitted_version=0, step=None)


def _of_tokens(index: int, num: int) -> Rollout:
    rollout = make_attempt(index)[0]
    return msgspec.structs.replace(
        rollout, completion_ids=[(index * 7919 + i * 104729) % 150_000 for i in range(num)],
        sampled_mask=[True] * num, logprobs=[-(i % 997) / 1024 for i in range(num)],
    )  # fmt: skip


@contextmanager
def served(run: Path) -> Iterator[tuple[str, psutil.Process]]:
    """Serve a run in a process; yield its address and the process."""
    command = [sys.executable, "-m", "fd_async.cli", "view", str(run), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().partition(" at ")[2].split("/ ")[0], psutil.Process(process.pid)
        finally:
            process.terminate()


def look(address: str, run: Path, server: psutil.Process) -> dict[str, Any]:
    """Measure in Chromium what a person waits for."""
    from playwright.sync_api import sync_playwright

    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox"] if os.geteuid() == 0 else []
        )
        browser.new_page().goto(f"{address}/config")  # Chromium's own start is not the page's
        painted = [_first_paint(browser.new_page(), address + path) for path in ("/", "/attempts", "/attempts")]
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        began = time.perf_counter()
        page.goto(f"{address}/attempts")
        page.wait_for_selector(".entry")
        list_s = time.perf_counter() - began
        page.wait_for_selector(".facet button")
        answers = _answer_ms(address)
        quiet = _filters(page)
        opened = _open_s(page)
        with _recording(run):
            page.wait_for_timeout(3000)
            busy = _filters(page)
        version = browser.version
        browser.close()
    return {
        "first_paint_s": round(statistics.median(painted), 3),
        "list_s": round(list_s, 3),
        "filter_s_p50": round(statistics.median(quiet.values()), 3),
        "filter_s_max": round(max(quiet.values()), 3),
        "slowest_filter": max(quiet, key=lambda name: quiet[name]),
        "filter_while_recording_s_p50": round(statistics.median(busy.values()), 3),
        "filter_while_recording_s_max": round(max(busy.values()), 3),
        "answer_ms_p50": round(statistics.median(answers), 1),
        "answer_ms_max": round(max(answers), 1),
        "open_s": round(opened, 3),
        "server_mib": round(server.memory_info().rss / 2**20, 1),
        "chromium": version,
    }


def _first_paint(page: Page, url: str) -> float:
    page.goto(url)
    page.wait_for_timeout(500)
    read = "performance.getEntriesByName('first-contentful-paint')[0].startTime / 1000"
    found = float(page.evaluate(read))
    page.close()
    return found


def _filters(page: Page) -> dict[str, float]:
    """Return seconds from each click, on and off again, and from each letter typed, until the list is painted."""
    times = {}
    for facet, value in _FILTERS:
        for what in ("on", "off"):
            times[f"{facet} {value} {what}"] = page.evaluate(_PAINTED, [True, facet, value])
    return times | {f"words {words}": page.evaluate(_PAINTED, [False, "", words]) for words in (*_WORDS, "")}


def _answer_ms(address: str) -> list[float]:
    """Return milliseconds of the server's answer to each filter, without a browser."""
    times = []
    for name, value in (*_FILTERS, *(("words", words) for words in _WORDS)):
        began = time.perf_counter()
        with urlopen(f"{address}/api/attempts?{urlencode({name: value})}", timeout=30) as answer:
            answer.read()
        times.append((time.perf_counter() - began) * 1000)
    return times


def _open_s(page: Page) -> float:
    times = []
    for _ in range(5):
        shown = page.inner_text("#detail")
        began = time.perf_counter()
        page.keyboard.press("j")
        while page.inner_text("#detail") == shown:
            page.wait_for_timeout(5)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


@contextmanager
def _recording(run: Path) -> Iterator[None]:
    """Record attempts in another process meanwhile."""
    command = [sys.executable, "-c", f"from bench.view import record; record({str(run)!r})"]
    process = subprocess.Popen(command)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def record(run: str) -> None:
    """Record 200 attempts a second until killed."""

    async def write() -> None:
        async with open_ledger(Path(run) / "ledger.db") as ledger:
            began, index = time.monotonic(), 10_000_000
            while True:
                async with anyio.create_task_group() as tasks:
                    for _ in range(_PER_S // 10):
                        index += 1
                        rollout = _of_tokens(index, 500)
                        tasks.start_soon(_put, ledger, rollout)
                await anyio.sleep(max(0.0, began + (index - 10_000_000) / _PER_S - time.monotonic()))

    anyio.run(write)


if __name__ == "__main__":
    main()
