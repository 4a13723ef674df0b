"""The live page in a real browser: what a person sees, and what hostile text cannot do. Needs Chromium."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import anyio
import msgspec
import pytest

from fd_async.data.ledger import open_ledger
from fd_async.types import Rollout, Statement, Turn, Verdict
from tests.fakes.run_folder import make_attempt, write_run

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(240),
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH"),
]
HOSTILE = (
    "</script><script>window.hacked=1</script><img src=x onerror='window.hacked=2'>"
    "<a href='javascript:window.hacked=3'>x</a>\u202e drow \u2066 \u200f &lt;b&gt; ${window.hacked=4} \x00\x1b[31m "
) + "w" * 100_000
Open = Callable[..., "Page"]
T = TypeVar("T")


def elsewhere(function: Callable[[], T]) -> T:
    """Call in a thread: an event loop of Playwright's runs in this one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    api.expect.set_options(timeout=30_000)  # of a busy machine
    with api.sync_playwright() as playwright:
        as_root = ["--no-sandbox"] if os.geteuid() == 0 else []
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=as_root)


@pytest.fixture
def show(browser: Browser) -> Iterator[Open]:
    """Serve a run folder and open a path of it; a page that complained or asked others for anything fails the test."""
    servers, complaints, asked = [], [], []

    def opened(run: Path, path: str = "/", **keys: object) -> Page:
        command = [sys.executable, "-m", "fd_async.cli", "view", str(run), "--port", "0"]
        servers.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        address = servers[-1].stdout.readline().partition(" at ")[2].split("/ ")[0]
        page = browser.new_page(**({"viewport": {"width": 1280, "height": 800}} | keys))
        page.on("console", lambda message: "net::ERR" in message.text or complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: asked.append((request.url, address)))
        page.goto(address + path)
        return page

    try:
        yield opened
    finally:
        for context in browser.contexts:
            context.close()
        for server in servers:
            server.terminate()
        codes = [server.wait(20) for server in servers]
        for server in servers:
            server.stdout.close()
    assert codes == [0] * len(servers)
    assert complaints == []
    assert all(url.startswith(address) for url, address in asked)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return elsewhere(partial(write_run, tmp_path / "demo", num_steps=30, num_attempts=48))


def record(run: Path, *rollouts: Rollout) -> None:
    async def write() -> None:
        async with open_ledger(run / "ledger.db") as ledger, anyio.create_task_group() as tasks:
            for rollout in rollouts:
                put = partial(ledger.put_rollout, rollout, "queued", admitted_version=0, step=None)
                tasks.start_soon(put)

    elsewhere(partial(anyio.run, write))


def drop(run: Path, *ids: str) -> None:
    async def write() -> None:
        async with open_ledger(run / "ledger.db") as ledger:
            for name in ids:
                await ledger.drop(name, "too_old")

    elsewhere(partial(anyio.run, write))


def named(index: int, name: str, text: str = "", **fields: object) -> Rollout:
    rollout = make_attempt(index)[0]
    statement = Statement(name=name, formal_statement=text or rollout.statement.formal_statement)
    return msgspec.structs.replace(rollout, statement=statement, **fields)


def count_is(page: Page, text: str) -> None:
    api.expect(page.locator("#matching")).to_have_text(text)


def test_the_run_is_shown_with_curves_that_can_be_read(run: Path, show: Open) -> None:
    """Charts of both groups, evaluation points marked, and the values of a step under the pointer."""
    page = show(run)
    chart = page.locator('#learning-charts .chart[data-title="Pass rate"]')
    chart.wait_for()
    assert page.locator("#health-charts .chart").count() >= 4
    assert chart.locator("circle").count() >= 16
    box = chart.locator("svg").bounding_box()
    assert box
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert re.fullmatch(r"step \d+", chart.locator("h3 span").inner_text())
    assert re.search(r"train\s*\d+\.\d%", chart.locator(".legend").inner_text())
    assert "11% → 51%" in page.inner_text("#totals")
    assert "generated" in page.inner_text("#books")
    page.click("[data-view=config]")
    assert 'type = "fd"' in page.inner_text("#config-text")


def test_filters_narrow_the_list_and_stand_in_the_address(run: Path, show: Open) -> None:
    """Counts agree with the list; going back undoes; the address alone shows the same again."""
    page = show(run, "/attempts")
    page.wait_for_selector(".entry")
    count_is(page, "48 attempts")
    button = page.locator('[data-facet=verdict][data-value="proved"]')
    promised = int(button.locator("b").inner_text())
    button.click()
    count_is(page, f"{promised} of 48 attempts")
    assert page.locator(".entry").count() == promised == page.locator(".entry .proved").count()
    before = page.evaluate("history.length")
    page.locator("#words").press_sequentially("lean_workbook_1001", delay=120)
    assert page.evaluate("history.length") == before + 1  # one step back undoes the word, not a letter
    page.wait_for_url("**/attempts?verdict=proved&words=lean_workbook_1001")
    page.fill("#steps", "10-20")
    page.wait_for_url("**first_step=10&last_step=20")
    api.expect(page.locator("#list")).to_have_attribute("aria-busy", "false")
    steps = [int(text) for text in page.locator(".entry .step").all_inner_texts()]
    assert all(10 <= step <= 20 for step in steps)
    names = page.locator(".entry .lean").all_inner_texts()
    page.reload()
    page.wait_for_selector(".entry")
    assert page.locator(".entry .lean").all_inner_texts() == names
    assert page.input_value("#steps") == "10-20"
    page.click("#clear")
    count_is(page, "48 attempts")
    page.go_back()
    api.expect(page.locator("#steps")).to_have_value("10-20")


def test_an_attempt_opens_by_keyboard_with_coloured_tokens(run: Path, show: Open) -> None:
    """Turns, tool result, feedback and verdict; a token tells its value; the address opens the same attempt."""
    page = show(run, "/attempts?scored=yes&outcome=trained")
    page.wait_for_selector(".entry")
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.wait_for_selector("#detail .tokens")
    assert page.locator(".entry").nth(1).get_attribute("aria-selected") == "true"
    text = page.inner_text("#detail")
    for part in ("Statement", "Feedback by anthropic", "pow_lt_pow_left", "Tool result", "linarith failed", "Verdict"):
        assert part in text
    colours = page.eval_on_selector_all(
        "#detail .tokens span", "spans => new Set(spans.map(s => getComputedStyle(s).backgroundColor)).size"
    )
    assert colours > 5
    page.locator("#detail .tokens span[data-delta]:not([data-choices])").first.hover()
    assert re.fullmatch(r"[+−]?\d\.\d\d nats", page.inner_text("#tip"))
    page.locator("#detail .tokens span[data-choices]").first.hover()
    assert re.match(r'[+−]?\d\.\d\d nats; the teacher would write "Real" 98\.1%, ', page.inner_text("#tip"))
    page.goto(page.url)
    page.wait_for_selector("#detail .tokens")
    assert page.inner_text("#detail") == text
    page.keyboard.press("k")
    api.expect(page.locator(".entry").first).to_have_attribute("aria-selected", "true")
    page.click("#detail .chip")
    count_is(page, "1 of 48 attempts")


def test_what_happens_meanwhile_appears_without_a_reload(run: Path, show: Open) -> None:
    """A new step moves the curves; a new attempt joins the list, or waits where somebody reads."""
    page = show(run)
    page.wait_for_selector(".chart")
    before = page.inner_text('.chart[data-title="Loss"] .legend')
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 31, "loss": 0.123}) + "\n")
    api.expect(page.locator("[data-title=Loss] .legend")).to_contain_text("0.123")
    assert "0.123" not in before
    page.click("[data-view=attempts]")
    page.wait_for_selector(".entry")
    record(run, named(900, "late_to_the_party"))
    api.expect(page.locator(".entry .lean").first).to_have_text("late_to_the_party")
    page.keyboard.press("j")
    record(run, named(901, "even_later"))
    page.wait_for_selector("#newer:visible")
    assert page.locator(".entry .lean").first.inner_text() == "late_to_the_party"
    page.click("#newer")
    api.expect(page.locator(".entry .lean").first).to_have_text("even_later")


def scroll_to(page: Page, index: int) -> str:
    """Scroll until a row of the list is the first on the screen; return the attempt that stands there."""
    rows = page.locator(".entry")
    while rows.count() <= index + 100:
        before = rows.count()
        page.evaluate("list.scrollTop = list.scrollHeight")
        page.wait_for_function("before => document.querySelectorAll('.entry').length > before", arg=before)
    rows.nth(index).evaluate("row => row.scrollIntoView({ block: 'start' })")
    return rows.nth(index).get_attribute("data-id") or ""


def test_far_down_a_growing_list_rows_change_and_none_moves(run: Path, show: Open) -> None:
    """At row 1,000: what becomes of an attempt is shown, new ones are announced, and each row stays where it is."""
    record(run, *[named(1000 + i, f"long_{i}") for i in range(1200)])
    page = show(run, "/attempts?outcome=queued")
    page.wait_for_selector(".entry")
    read = scroll_to(page, 1000)
    row = page.locator(f'.entry[data-id="{read}"]')
    place = row.evaluate("row => row.getBoundingClientRect().top")
    record(run, *[named(5000 + i, f"late_{i}") for i in range(3)])
    api.expect(page.locator("#newer")).to_have_text("3 new")
    drop(run, read)
    api.expect(row).to_have_class(re.compile(r"\bleft\b"))
    record(run, *[named(6000 + i, f"later_{i}") for i in range(400)])
    api.expect(page.locator("#newer")).to_have_text("100+ new")
    assert row.evaluate("row => row.getBoundingClientRect().top") == place
    page.click("#clear")
    count_is(page, "1,651 attempts")
    row = page.locator(f'.entry[data-id="{scroll_to(page, 1100)}"]')
    api.expect(row).to_contain_text("queued")
    place = row.evaluate("row => row.getBoundingClientRect().top")
    drop(run, row.get_attribute("data-id") or "")
    api.expect(row).to_contain_text("dropped: too old")
    assert row.evaluate("row => row.getBoundingClientRect().top") == place
    record(run, named(9000, "the_last"))
    page.click("#newer")
    api.expect(page.locator(".entry .lean").first).to_have_text("the_last")
    record(run, *[named(9100 + i, f"flood_{i}") for i in range(250)])
    page.mouse.move(5, 5)  # nobody reads the list: it follows the run
    record(run, named(9500, "the_very_last"))
    api.expect(page.locator(".entry .lean").first).to_have_text("the_very_last")
    assert page.locator(".entry").count() == 100


def test_a_server_that_ended_is_said(run: Path, show: Open, browser: Browser) -> None:
    """The page keeps what it knew, and does not pretend to be live."""
    page = show(run)
    page.wait_for_selector(".chart")
    page.context.set_offline(True)
    api.expect(page.locator("#notices")).to_contain_text("fd-view does not answer: was it ended?")
    page.context.set_offline(False)
    assert page.locator(".chart").count() > 4


def test_hostile_text_is_only_text(run: Path, show: Open) -> None:
    """Tags, ends of scripts, marks that turn the direction, and lines of 100 kB change nothing but their own box."""
    verdict = Verdict(kind="failed", reason=HOSTILE, output=HOSTILE, backend=HOSTILE[:40])
    turns = [
        Turn(role="assistant", start=0, end=1, text=HOSTILE),
        Turn(role="tool", start=1, end=2, text=HOSTILE, tool=HOSTILE[:60]),
    ]
    record(run, named(900, HOSTILE[:200], HOSTILE, turns=turns, verdict=verdict, failure=HOSTILE[:30]))
    page = show(run, "/attempts")
    page.wait_for_selector(".entry")
    page.keyboard.press("j")
    page.wait_for_selector("#detail pre.tool")
    assert page.evaluate("window.hacked") is None
    assert page.locator("#detail img, #detail a, #detail script, #list img, #facets img").count() == 0
    shown = page.locator("#detail pre.tool").first.text_content()
    assert shown == re.sub("[\u202e\u2066\u200f]", lambda mark: f"⟨U+{ord(mark[0]):04X}⟩", HOSTILE)
    assert not re.search("[\u200f\u202e\u2066]", page.locator("body").text_content())  # no text runs backwards
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.locator("#facets button", has_text="window.hacked").first.click()
    count_is(page, "1 of 49 attempts")
    assert page.evaluate("window.hacked") is None


def test_a_phone_shows_list_and_attempt_one_at_a_time(run: Path, show: Open) -> None:
    """Nothing is wider than the screen, and there is a way back."""
    page = show(run, "/attempts", viewport={"width": 390, "height": 844}, has_touch=True)
    page.locator(".entry").first.tap()
    page.wait_for_selector("#detail pre")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.locator("#detail .back").tap()
    assert page.locator("#detail").is_hidden()
    page.locator("[data-view=run]").tap()
    page.wait_for_selector(".chart")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_run_that_is_deleted_under_the_page_is_said(run: Path, show: Open) -> None:
    """The page keeps what it shows."""
    page = show(run)
    page.wait_for_selector(".chart")
    shutil.rmtree(run)
    page.wait_for_selector(".notice:visible")
    assert "is gone: deleted or moved" in page.inner_text("#notices")
    assert page.locator(".chart").count() > 4


def test_the_static_report_shows_the_same_parts(run: Path, browser: Browser, tmp_path: Path) -> None:
    """The file needs no server."""
    command = [sys.executable, "-m", "fd_async.cli", "view", str(run), "--out", str(tmp_path / "r.html")]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=50)
    assert done.stdout == f"wrote {tmp_path / 'r.html'}\n"
    page = browser.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto((tmp_path / "r.html").as_uri())
    assert page.locator("#learning-charts .chart").count() >= 5
    page.check("#scored")
    page.locator("#rows tr.head:visible").first.click()
    assert page.locator("#rows .tokens span[data-delta]").count() > 10
    assert "unaccounted" in page.inner_text("#books")
    assert complaints == []
