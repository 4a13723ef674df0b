"""The page of the miniature, and its claims as Markdown: nothing is left out, nothing is made prettier than it is."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.mini.claims import claims
from bench.mini.conditions import Sizes, conditions
from bench.mini.figures import LOOKS, pictures
from bench.mini.page import spread, write_page
from bench.mini.table import comparisons, counted, is_measurable, markdown, outcome, read_result, remarks, signed
from tests.fakes.mini_runs import whole_benchmark

SIZES = Sizes()
RUNS, PAIRS = whole_benchmark(SIZES)
FOUND = claims(RUNS, PAIRS, {"attempts": 8, "usable": 0}, SIZES.ema_steps)
RESULT = {
    "claims": FOUND, "seeds": [1, 2, 3], "minutes": 0.1, "seconds_of_runs": {"fd-1": 200.0, "grpo-1": 100.0},
    "machine": {"cpu": "A | B", "cores": 2, "memory_gib": 15.6}, "versions": {"python": "3.12"},
}  # fmt: skip


def test_the_page_shows_every_claim_run_and_figure(tmp_path: Path) -> None:
    """The figures inside it are the files beside it, and it loads nothing."""
    page = write_page(tmp_path, SIZES, FOUND, RUNS, PAIRS, "two <seeds>").read_text(encoding="utf-8")
    assert all(claim["claim"] in page for claim in FOUND)
    assert all(one.interval in page for claim in FOUND for one in comparisons(claim["figures"]))
    assert all(condition.label in page for condition in conditions(SIZES))
    assert "two &lt;seeds&gt;" in page
    images = re.findall(r'<img src="data:image/svg\+xml;base64,([^"]+)"', page)
    names = ("methods", "sources", "teachers", "constant")
    assert [base64.b64decode(image) for image in images] == [(tmp_path / f"{n}.svg").read_bytes() for n in names]
    assert "<script" not in page
    assert 'src="http' not in page
    assert "width=device-width" in page  # without it a phone shows the page as wide as a desk


def test_the_page_may_lie_elsewhere_and_still_names_the_runs(tmp_path: Path) -> None:
    """The folder of the runs is left as it was."""
    page = write_page(tmp_path / "runs", SIZES, FOUND, RUNS, PAIRS, "", tmp_path / "to")
    assert page == tmp_path / "to" / "index.html"
    assert not (tmp_path / "runs").exists()
    text = page.read_text(encoding="utf-8")
    assert f" GRPO={tmp_path}/runs/runs/grpo-1,{tmp_path}/runs/runs/grpo-2," in text
    assert f"--to {tmp_path}/to/figures/methods" in text


def test_a_page_without_a_finished_run_says_so(tmp_path: Path) -> None:
    """No claim is said to hold."""
    found = claims({}, {}, None, SIZES.ema_steps)
    page = write_page(tmp_path, SIZES, found, {}, {}, "").read_text(encoding="utf-8")
    assert "No run is finished yet" in page
    assert '"word holds"' not in page
    assert "16 claims: 16 not measured." in page


def test_a_condition_looks_the_same_in_every_figure_and_like_no_other() -> None:
    """By its place in the palette; the legend names what is drawn."""
    assert len(set(LOOKS.values())) == len(LOOKS) == len(conditions(SIZES))
    for picture in pictures(SIZES, RUNS, PAIRS):
        places = dict(picture.legend())
        assert {curve.colour for axes in picture.axes for curve in axes.curves} == set(places.values())
        for name, label in picture.names.items():
            assert places[f"{label}, 3 seeds"] == LOOKS[name]


def test_a_second_stage_is_drawn_from_where_its_first_ended() -> None:
    """In attempts and in steps."""
    methods = pictures(SIZES, RUNS, PAIRS)[0]
    for axes, first in zip(
        methods.axes[:2], (SIZES.first_stage_steps * SIZES.prompts, SIZES.first_stage_steps), strict=True
    ):
        second = next(curve for curve in axes.curves if curve.colour == LOOKS["grpo_over_fd"])
        assert second.x[0] > first


def test_only_pairs_with_the_same_pass_at_1_are_drawn() -> None:
    """What is left out of the claim is left out of its figure, by name."""
    pairs = {**PAIRS, 2: {**PAIRS[2], "fd": {**PAIRS[2]["fd"], 1: 0.1}}}
    methods = pictures(SIZES, RUNS, pairs)[0]
    assert [curve.num_runs for curve in methods.axes[3].curves] == [2, 2]
    assert "seeds drawn: 1, 3; left out, since no pair is so near: 2." in methods.caption
    assert dict(methods.legend())["FD, tutor, 3 seeds"] == LOOKS["fd"]
    none = pictures(SIZES, RUNS, {2: pairs[2]})[0]
    assert not none.axes[3].curves


@pytest.mark.parametrize(
    ("holds", "findings", "word"),
    [
        (True, ["shown", "shown"], "holds"),
        (False, ["shown", "not shown"], "not shown"),
        (False, ["not shown", "contradicted"], "contradicted"),
        (None, ["shown", "not measured"], "not measured"),
    ],
)
def test_a_claim_that_fails_is_contradicted_or_only_not_shown(
    holds: bool | None, findings: list[str], word: str
) -> None:
    """Three seeds may be too few to tell."""
    figures = {str(place): {"finding": finding} for place, finding in enumerate(findings)} | {"reason": "x"}
    assert outcome({"holds": holds, "figures": figures}) == word


@pytest.mark.parametrize(
    ("interval", "shown"),
    [
        ([0.12, 0.36], "+0.12 to +0.36"),
        ([0.1805, 0.1985], "+0.1805 to +0.1985"),
        ([-0.0211, 0.0089], "−0.021 to +0.009"),
        ([-0.0001, 0.0002], "−0.0001 to +0.0002"),
        ([0.05, 0.05], "+0.0500 to +0.0500"),
        ([-2.0, 3.0], "−2.00 to +3.00"),
    ],
)
def test_numbers_have_the_digits_that_their_interval_deserves(interval: list[float], shown: str) -> None:
    """Two that count, at least two decimals, at most the four of the result."""
    value = {"finding": "shown", "mean": sum(interval) / 2, "interval": interval, "per_seed": {"1": interval[0]}}
    one = comparisons({"d": value})[0]
    assert one.interval == shown
    assert one.seeds == f"1:\u00a0{shown.split()[0]}"
    assert signed(-0.0000001, 3) == "0.000"


def test_the_markdown_has_every_figure_that_decided() -> None:
    """As many rows as comparisons; mean, interval and every seed stand in them."""
    text = markdown(json.loads(json.dumps(RESULT)))
    table = [line for line in text.splitlines() if line.startswith("|")]
    compared = [one for claim in FOUND for one in comparisons(claim["figures"])]
    assert len(table) == 2 + len(compared)
    for row, one in zip(table[2:], compared, strict=True):
        assert row.endswith(f"| {one.name} | {one.mean} | {one.interval} | {one.seeds} |")
        assert row.count("|") == 7
    for claim in FOUND:
        start = f"| {claim['claim']} | **{outcome(claim)}** |" if is_measurable(claim) else f"- {claim['claim']}: "
        assert sum(line.startswith(start) for line in text.splitlines()) == 1
    assert f"{counted(FOUND)} Seeds 1, 2, 3; 2 runs in 5 minutes on 2 cores of A | B" in text


def test_the_short_markdown_has_a_row_for_each_claim() -> None:
    """With its outcome alone."""
    lines = markdown(RESULT, short=True).splitlines()
    rows = [line for line in lines if line.startswith("|")][2:]
    assert rows == [f"| {c['claim']} | **{outcome(c)}** |" for c in FOUND if is_measurable(c)]


def test_a_claim_without_enough_seeds_says_why_in_the_table() -> None:
    """In the place of its seeds; it is still one of those that the miniature can bear on."""
    runs, _ = whole_benchmark(SIZES, (1,))
    found = claims(runs, {}, None, SIZES.ema_steps)
    assert counted(found).startswith("16 claims: 16 not measured. 7 more")
    text = markdown({"claims": found, "seeds": [1]})
    reason = "seeds measured: 1, needed: 2 (1:"
    assert f"| **not measured** | mean accuracy over the same attempts, FD minus GRPO |  |  | {reason}" in text


def test_remarks_say_the_reason_the_pairs_and_absolute_numbers() -> None:
    """Also of seeds as JSON has them, with what is missing as a dash."""
    figures: dict[str, Any] = {
        "reason": "too small", "final_pass_at_1": {"fd": {"1": 0.51, "2": None}, "grpo": {}},
        "attempts until accuracy 0.3": {"grpo": {"1": 2304}}, "asked": None, "d": {"finding": "shown"},
        "pairs": {"1": {"fd": {"1": 0.5, "16": 0.9}, "grpo": {"1": 0.48}, "fd_step": 6, "grpo_step": 48}},
    }  # fmt: skip
    assert remarks(figures) == [
        "too small",
        "held-out pass@1 at the end, by seed: FD, tutor, EMA 0.9, anchor 0.510, –",
        "attempts until accuracy 0.3, by seed: GRPO 2,304",
        "pass@1 of the pairs: seed 1: FD 0.500 (step 6), GRPO 0.480 (step 48)",
    ]


def test_the_command_reads_the_last_line_and_refuses_anything_else(tmp_path: Path) -> None:
    """One line on stderr, exit code 2."""
    log = tmp_path / "log"
    log.write_text(f"fd, seed 1: 200 s\n{json.dumps(RESULT)}\n", encoding="utf-8")
    command = [sys.executable, "-m", "bench.mini.table"]
    done = subprocess.run([*command, str(log)], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == markdown(RESULT)
    refused = subprocess.run([*command, str(tmp_path / "no")], capture_output=True, text=True, timeout=60, check=False)
    assert (refused.returncode, "No such file" in refused.stderr) == (2, True)
    for text in ("", "{", "[1]", '{"claims": []}', "wrote index.html"):
        with pytest.raises(ValueError, match="the last line is no"):
            read_result(text)


def test_the_spread_of_runs_is_their_lowest_and_highest() -> None:
    """Percent with one decimal; one run has none; no run is a dash."""
    assert spread([0.5, 0.75], 100, " %") == "62.5 % [50.0, 75.0]"
    assert spread([0.0512], 1, "") == "0.051"
    assert spread([], 1, "") == "–"
