"""index.html: the table of claims and the figures behind it, drawn by the project's own report."""

from __future__ import annotations

import html
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from string import Template
from typing import Any

from bench.mini.claims import Runs, Scalings
from bench.mini.conditions import Sizes, run_dir
from bench.mini.curves import trained, windows, written_tokens
from fd_async.telemetry.sinks import replace_file
from fd_async.viewer.figures.curves import Curve
from fd_async.viewer.figures.drawing import Axes, draw

METHODS = {"fd": "FD, tutor", "grpo": "GRPO", "grpo_over_fd": "GRPO over FD"}
SOURCES = {
    "fd": "FD, tutor",
    "ground_truth": "FD, ground truth",
    "lean_output": "FD, Lean output",
    "grpo_over_fd": "GRPO over tutor",
    "grpo_over_ground_truth": "GRPO over ground truth",
    "grpo_over_lean_output": "GRPO over Lean output",
}
TEACHERS = {
    "ema_0.5": "EMA 0.5",
    "ema_0.9": "EMA 0.9",
    "ema_frozen": "frozen",
    "ema_0.5_anchor": "EMA 0.5, anchor",
    "fd": "EMA 0.9, anchor",
}
CONSTANT = {"constant_short": "short recipe", "constant_long": "long recipe"}
ACCURACY, ENTROPY, KL = "train/pass_rate", "policy/entropy", "policy/teacher_kl"
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:75rem;margin:2rem auto;padding:0 1rem;color:#1b2230}"
    "table{border-collapse:collapse}td,th{border-top:1px solid #e4e7ec;padding:.4rem .6rem;text-align:left;"
    "vertical-align:top;overflow-wrap:anywhere}td:nth-child(2){white-space:nowrap}"
    "@media(max-width:50rem){td:nth-child(2){white-space:normal}body{margin:1rem auto}td,th{padding:.4rem .3rem}}"
    "img{max-width:100%;margin:1rem 0}pre{white-space:pre-wrap}.small{font-size:13px;color:#5a6475}"
)
_PAGE = Template("""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>The paper in miniature</title><style>$style</style>
<h1>The paper in miniature</h1><p>$about</p>
$claims
<p class="small">A claim holds when the lower end of the one-sided 95 % interval over seeds of each of its comparisons
is above 0. Each claim is tested alone: of twenty differences that are none, one is shown by chance. Seeds differ in the
order of statements and in sampling; all begin with the same model. Curves are means over seeds, bands reach from the
lowest to the highest seed; a second stage begins where its first ended. Accuracy is that of the attempts that were
trained, each on a new statement.</p>
$figures
$commands
</html>
""")


def write_page(
    out: Path, sizes: Sizes, found: Sequence[Mapping[str, Any]], runs: Runs, scalings: Scalings, about: str
) -> Path:
    """Write index.html and its SVG files into `out`; blocks for some seconds."""
    images = {
        name: (title, draw(title, axes, list(zip(labels, range(len(labels)), strict=True)), "svg"))
        for name, title, labels, axes in figures(sizes, runs, scalings)
        if any(one.curves for one in axes)
    }
    for name, (_, data) in images.items():
        replace_file(out / f"{name}.svg", data)
    shown = "".join(
        f'<img src="{name}.svg" alt="{html.escape(title)}">' for name, (title, _) in images.items()
    ) or "<p>No run is finished yet.</p>"  # fmt: skip
    page = _PAGE.substitute(
        style=_STYLE, about=html.escape(about), claims=claims_table(found), figures=shown, commands=commands(out, runs)
    )
    replace_file(out / "index.html", page.encode())
    return out / "index.html"


def commands(out: Path, runs: Runs) -> str:
    """Write the commands that draw all figures of the paper for these runs."""
    lines = []
    for name, group in (("methods", METHODS), ("sources", SOURCES), ("teachers", TEACHERS), ("constant", CONSTANT)):
        labels = [
            shlex.quote(f"{label.replace(',', '')}={','.join(str(run_dir(out, one, seed)) for seed in runs[one])}")
            for one, label in group.items()
            if runs.get(one)
        ]
        if labels:
            lines.append(html.escape(f"bin/fd-report {' '.join(labels)} --to {out / 'figures' / name}"))
    return f"<p>All figures of the paper for these runs:</p><pre>{chr(10).join(lines)}</pre>" if lines else ""


def claims_table(found: Sequence[Mapping[str, Any]]) -> str:
    """Write the claims as an HTML table."""
    rows = []
    for claim in found:
        lines = [html.escape(line) for line in comparison_lines(claim["figures"])]
        word = outcome(claim)
        rows.append(f"<tr><td>{html.escape(claim['claim'], quote=False)}<td>{word}<td class=small>{'<br>'.join(lines)}")
    return f"<table><tr><th>claim<th>in miniature<th>figures{''.join(rows)}</table>"


def outcome(claim: Mapping[str, Any]) -> str:
    """Say in words whether a claim holds; one that fails is either contradicted or only not shown by these seeds."""
    if claim["holds"] is not False:
        return "holds" if claim["holds"] else "not measured"
    findings = [value.get("finding") for value in claim["figures"].values() if isinstance(value, Mapping)]
    return "contradicted" if "contradicted" in findings else "not shown"


def comparison_lines(figures: Mapping[str, Any]) -> list[str]:
    """Write each comparison in one line; other figures stay in the JSON."""
    lines = []
    for name, value in figures.items():
        if isinstance(value, Mapping) and "finding" in value:
            seeds = ", ".join(f"{seed}: {number:+.3f}" for seed, number in value["per_seed"].items())
            if "mean" in value:
                low, high = value["interval"]
                lines.append(
                    f"{name}: {value['mean']:+.3f} [{low:+.3f}, {high:+.3f}], {value['finding']}; seeds {seeds}"
                )
            else:
                lines.append(f"{name}: not measured, {value['reason']}; {seeds or 'no seeds'}")
        elif name == "reason":
            lines.append(str(value))
    return lines


def figures(sizes: Sizes, runs: Runs, scalings: Scalings) -> list[tuple[str, str, list[str], list[Axes]]]:
    """Return (file, title, labels, axes) of every figure."""
    return [
        ("methods", "Feedback Distillation, GRPO, and GRPO over Feedback Distillation", list(METHODS.values()), [
            _axes(sizes, runs, METHODS, "Accuracy per attempt", "share", ACCURACY),
            _axes(sizes, runs, METHODS, "Accuracy per step", "share", ACCURACY, per_step=True),
            _axes(sizes, runs, METHODS, "Policy entropy", "nats per token", ENTROPY),
            _scaling_axes(scalings),
        ]),
        ("sources", "Sources of feedback", list(SOURCES.values()), [
            _axes(sizes, runs, SOURCES, "Accuracy", "share", ACCURACY),
            _axes(sizes, runs, SOURCES, "Policy entropy", "nats per token", ENTROPY),
        ]),
        ("teachers", "Retention of the teacher's average", list(TEACHERS.values()), [
            _axes(sizes, runs, TEACHERS, "Accuracy", "share", ACCURACY),
            _axes(sizes, runs, TEACHERS, "Policy entropy", "nats per token", ENTROPY),
        ]),
        ("constant", "Constant feedback under a frozen teacher", list(CONSTANT.values()), [
            _step_axes(runs, "Tokens written per attempt", "tokens", written_tokens),
            _step_axes(runs, "KL of teacher and student", "nats per token",
                       lambda rows: [row[KL] for row in trained(rows)]),
        ]),
    ]  # fmt: skip


def _axes(
    sizes: Sizes, runs: Runs, names: Mapping[str, str], title: str, unit: str, key: str, *, per_step: bool = False
) -> Axes:
    """Draw a column against the attempts (or steps) from the first model on, averaged in the windows of the claims."""
    curves = []
    for place, (name, label) in enumerate(names.items()):
        ends = [windows(rows) for rows in runs.get(name, {}).values()]
        shared = min((len(one) for one in ends), default=0)
        if not shared:
            continue
        steps = sizes.first_stage_steps if name.startswith("grpo_over_") else 0
        x = [steps + end.step if per_step else steps * sizes.prompts + end.attempts for end in ends[0][:shared]]
        curves.append(_curve(label, place, x, [[end.values[key] for end in one[:shared]] for one in ends]))
    return Axes(title=title, x_name="gradient step" if per_step else "attempts", unit=unit, curves=curves,
                note="no run yet")  # fmt: skip


def _step_axes(runs: Runs, title: str, unit: str, values: Any) -> Axes:
    curves = []
    for place, (name, label) in enumerate(CONSTANT.items()):
        seeds = [values(rows) for rows in runs.get(name, {}).values()]
        shared = min((len(one) for one in seeds), default=0)
        if shared:
            curves.append(_curve(label, place, list(range(1, shared + 1)), [one[:shared] for one in seeds]))
    return Axes(title=title, x_name="gradient step", unit=unit, curves=curves, note="no run yet")


def _scaling_axes(scalings: Scalings) -> Axes:
    curves = []
    for place, name in enumerate(("fd", "grpo")):
        seeds = [found[name] for found in scalings.values()]
        if seeds:
            k = sorted(seeds[0])
            curves.append(_curve(METHODS[name], place, k, [[found[n] for n in k] for found in seeds]))
    return Axes(title="pass@k, nearest pass@1", x_name="k, samples per statement", unit="share", curves=curves,
                note="no pair yet", is_doubling=True)  # fmt: skip


def _curve(label: str, place: int, x: list[int], seeds: Sequence[Sequence[float]]) -> Curve:
    columns = list(zip(*seeds, strict=True))
    return Curve(
        label=label, colour=place, x=x, y=[fmean(column) for column in columns],
        low=[min(column) for column in columns] if len(seeds) > 1 else None,
        high=[max(column) for column in columns] if len(seeds) > 1 else None, num_runs=len(seeds),
    )  # fmt: skip
