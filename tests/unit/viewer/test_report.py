"""report.html: whole, self-contained, safe and true to the files."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fd_async.errors import PreflightError
from fd_async.viewer.report import embed, write_report
from tests.fakes.run_folder import CONFIG, write_run

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\u2028&lt;"


class Elements(HTMLParser):
    """Collects tags, attributes and the text of script elements."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.inside = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside = tag == "script"
        if self.inside:
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.scripts[-1] += data


def page_of(folder: Path) -> str:
    """Write the report and read it."""
    return write_report(folder).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The report of an ordinary run."""
    return page_of(write_run(tmp_path_factory.mktemp("runs") / "demo"))


def data_of(page: str) -> dict[str, list[dict[str, object]]]:
    """Return the embedded JSON."""
    return json.loads(Elements(page).scripts[0])


def test_the_page_loads_nothing_from_outside(page: str) -> None:
    """No element has an address except anchors inside the page."""
    for tag, attributes in Elements(page).tags:
        assert tag not in {"link", "img", "iframe", "object", "base"}
        assert attributes.get("src") is None
        assert tag != "a" or str(attributes["href"]).startswith("#")
    assert "default-src 'none'" in page


def test_only_the_projects_own_script_may_run(page: str) -> None:
    """The policy names the hash of exactly the script that stands there."""
    scripts = Elements(page).scripts
    assert len(scripts) == 2
    digest = base64.b64encode(hashlib.sha256(scripts[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page


def test_text_of_attempts_cannot_become_markup(tmp_path: Path) -> None:
    """A proof, a feedback or a run name with tags is shown as it is."""
    folder = write_run(tmp_path / "evil", num_steps=2, num_attempts=3, proof=EVIL, feedback=EVIL)
    (folder / "config.toml").write_text(CONFIG.replace('"demo"', '"<script>alert(3)</script>"'))
    page = page_of(folder)
    elements = Elements(page)
    assert len(elements.scripts) == 2
    assert "img" not in {tag for tag, _ in elements.tags}
    assert "<script>alert" not in page
    attempt = data_of(page)["attempts"][0]
    assert EVIL in attempt["turns"][0]["text"]  # type: ignore[index]
    assert attempt["feedback"]["text"] == EVIL  # type: ignore[index]


@pytest.mark.parametrize("text", [EVIL, "<!--", "]]>", "\u2029", 'quote " and \\ backslash'])
def test_embedded_json_reads_back_and_has_no_angle_bracket(text: str) -> None:
    """Escapes are JSON's own, so nothing is lost."""
    embedded = embed({"text": text})
    assert not set("<>&\u2028\u2029") & set(embedded)
    assert json.loads(embedded) == {"text": text}


def test_every_part_of_the_report_is_there(page: str) -> None:
    """Header, totals, evaluation, accounting and configuration are text of the page."""
    for part in ("claude-opus-4-6", "11% → 51%", "minif2f_test/pass@8", "dropped: feedback_rejected", "unaccounted"):
        assert part in page
    titles = {str(chart["title"]) for chart in data_of(page)["charts"]}
    assert {"Pass rate", "Loss", "Policy entropy", "Feedback gain", "Staleness", "Queue"} <= titles


def test_scored_attempts_carry_a_delta_per_token_and_none_for_tool_output(page: str) -> None:
    """Lengths agree; what the model did not sample has no colour."""
    scored = [attempt for attempt in data_of(page)["attempts"] if attempt["tokens"]]
    assert scored
    for attempt in scored:
        texts, deltas = attempt["tokens"]  # type: ignore[misc]
        assert len(texts) == len(deltas) == attempt["num_tokens"]
        assert {"Real", "ℝ"} <= {text for found in attempt["choices"].values() for text, _ in found}  # type: ignore[union-attr]
        assert sum(delta is not None for delta in deltas) == attempt["num_sampled"]


def test_secrets_of_the_environment_stay_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that somebody wrote into the config is removed."""
    from fd_async.telemetry.redact import protect

    protect("sk-written-by-mistake", "API_KEY")
    folder = write_run(tmp_path / "run", num_steps=1, num_attempts=1)
    (folder / "config.toml").write_text(CONFIG + '\n[policy]\nnote = "sk-written-by-mistake"\n')
    assert "sk-written-by-mistake" not in page_of(folder)


def test_a_run_that_died_before_its_first_step_still_has_a_report(tmp_path: Path) -> None:
    """Missing files leave their part out."""
    (tmp_path / "config.toml").write_text(CONFIG)
    page = page_of(tmp_path)
    for part in ("No step has finished", "No evaluation has finished", "No token has been counted", "no attempt yet"):
        assert part in page


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    """One line says what is missing and what to give."""
    with pytest.raises(PreflightError, match=r"no config\.toml there, so it is not a run folder"):
        write_report(tmp_path)


def test_the_report_goes_where_it_is_asked_to(tmp_path: Path) -> None:
    """And only there."""
    folder = write_run(tmp_path / "run", num_steps=1, num_attempts=1)
    assert write_report(folder, tmp_path / "out.html") == tmp_path / "out.html"
    assert not (folder / "report.html").exists()


def test_the_number_of_attempts_is_bounded_by_the_config(tmp_path: Path) -> None:
    """`telemetry.report_attempts` decides, and the page says that there are more."""
    folder = write_run(tmp_path / "run", num_steps=1, num_attempts=9)
    (folder / "config.toml").write_text(re.sub("report_attempts = 300", "report_attempts = 4", CONFIG))
    page = page_of(folder)
    assert len(data_of(page)["attempts"]) == 4
    assert "the rest in ledger.db" in page


def test_the_viewer_needs_no_torch() -> None:
    """`fd-view` answers at once."""
    code = "import sys, fd_async.viewer.report; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.strip() == "False"


def test_alarms_and_rollbacks_stand_at_the_top_where_there_were_any(tmp_path: Path, page: str) -> None:
    """A run without them says nothing of them."""
    folder = write_run(tmp_path / "alarmed")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 900, "loss": 1.0, "alarms/raised": 1, "alarms/rollback_to": 850}) + "\n")
    alarmed = page_of(folder)
    assert "steps with an alarm" in alarmed
    assert "step 900 to 850" in alarmed
    assert "steps with an alarm" not in page
    assert "rolled back" not in page
