"""index.html: the claims, what was run, and the figures behind them, drawn by the project's own report.

The page holds its figures, so that it can be sent alone; the same SVG files lie beside it.
"""

from __future__ import annotations

import base64
import html
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from bench.mini.claims import SUITE, Runs, Scalings
from bench.mini.conditions import Sizes, conditions, run_dir
from bench.mini.curves import windows
from bench.mini.figures import ACCURACY, CONSTANT, ENTROPY, METHODS, SOURCES, TEACHERS, Picture, pictures
from bench.mini.table import HEAD, RULE, comparisons, counted, is_measurable, outcome, remarks
from fd_async.telemetry.sinks import replace_file
from fd_async.viewer.figures.drawing import draw

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:75rem;margin:2rem auto;padding:0 1rem;color:#1b2230}
p,ul{max-width:60rem}h1{line-height:1.2}h2{margin:2.5rem 0 .5rem;font-size:1.15rem}
.small,td small,figcaption{font-size:13px;color:#5a6475}td small{display:block}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
td,th{border-top:1px solid #e4e7ec;padding:.35rem .6rem .35rem 0;text-align:left;vertical-align:top}
th{font-size:13px;font-weight:600;color:#5a6475}.claims td:not([rowspan]){font-size:13px}
.claims tr:not(.first) td{border-top-color:#f3f5f8}td.number{white-space:nowrap}
.word{font-weight:600;white-space:nowrap}.holds,.shown{color:#0a6b3d}.contradicted{color:#b3261e}
.not-shown{color:#8a4b00}.not-measured{color:#5a6475}
figure{margin:2rem 0 0;overflow-x:auto}img{display:block;max-width:100%}
figcaption{max-width:60rem;margin:.3rem 0 0 .6rem}
pre{white-space:pre-wrap;overflow-wrap:anywhere;font-size:13px}.wide{overflow-x:auto}
@media(max-width:50rem){body{margin:1rem auto}img{max-width:none;width:44rem}figcaption{position:sticky;left:0}
.claims thead{display:none}.claims tr,.claims td{display:block;border:0;padding:.1rem 0}
.claims tr.first{border-top:1px solid #c9d0da;margin-top:.5rem;padding-top:.5rem}.claims td.number{white-space:normal}
.claims td[data-name]:not(:empty)::before{content:attr(data-name) ": ";color:#5a6475}}
"""
_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>The paper in miniature</title><style>$style</style></head><body>
<h1>The paper in miniature</h1>
<p>$about</p>
<p><b>$counted</b></p>
<p class="small">Feedback Distillation (FD) is told what GRPO is not: the tutor knows recipes. So nothing here isolates
the algorithm from the information. Rates are those of the tiny configurations, hardly tuned. A claim that holds says
that the machinery does what the method says; one that does not is no evidence against the paper.</p>
<h2>Claims</h2>
$claims
<p class="small">$rule Differences of accuracy and pass@k are shares (0.01 is one point), of entropy nats per token.
Seeds differ in the order of statements and in sampling; all begin with the same model.</p>
$beyond
<h2>Runs</h2>
$table
<p class="small">Mean over seeds, in brackets the lowest and the highest. Accuracy is the proved share of the attempts
that were trained, in the last window; each was made before training on it, and at a new statement. Held-out pass@1 is
that after the last step, over 256 statements with two attempts each: the standard error of one run is about 3
points.</p>
<h2>Figures</h2>
$figures
$commands
</body></html>
""")


def write_page(
    out: Path,
    sizes: Sizes,
    found: Sequence[Mapping[str, Any]],
    runs: Runs,
    scalings: Scalings,
    about: str,
    to: Path | None = None,
) -> Path:
    """Write index.html and its SVG files into `to`, or beside the runs of `out`; blocks for some seconds."""
    to = to or out
    to.mkdir(parents=True, exist_ok=True)
    shown = []
    for picture in pictures(sizes, runs, scalings):
        if any(axes.curves for axes in picture.axes):
            data = draw(picture.title, picture.axes, picture.legend(), "svg", note=picture.note)
            replace_file(to / f"{picture.name}.svg", data)
            shown.append(_figure(picture, data))
    page = _PAGE.substitute(
        style=_STYLE, about=html.escape(about), counted=html.escape(counted(found)), rule=html.escape(RULE),
        claims=claims_table(found), beyond=_beyond(found), table=_runs_table(sizes, runs),
        figures="".join(shown) or "<p>No run is finished yet.</p>", commands=commands(out, to, runs),
    )  # fmt: skip
    replace_file(to / "index.html", page.encode())
    return to / "index.html"


def _figure(picture: Picture, data: bytes) -> str:
    source = f"data:image/svg+xml;base64,{base64.b64encode(data).decode()}"
    caption = f'{html.escape(picture.caption)} <a href="{picture.name}.svg">{picture.name}.svg</a>'
    return (
        f'<figure><img src="{source}" alt="{html.escape(picture.title)}"><figcaption>{caption}</figcaption></figure>\n'
    )


def commands(out: Path, to: Path, runs: Runs) -> str:
    """Write the commands that draw all figures of the paper for these runs."""
    lines = []
    for name, group in (("methods", METHODS), ("sources", SOURCES), ("teachers", TEACHERS), ("constant", CONSTANT)):
        labels = [
            shlex.quote(f"{label.replace(',', '')}={','.join(str(run_dir(out, one, seed)) for seed in runs[one])}")
            for one, label in group.items()
            if runs.get(one)
        ]
        if labels:
            lines.append(
                html.escape(f"bin/fd-report {' '.join(labels)} --to {shlex.quote(str(to / 'figures' / name))}")
            )
    said = "<h2>More</h2><p>Every figure of the paper for these runs, with its numbers as CSV:</p>"
    return f"{said}<pre>{chr(10).join(lines)}</pre>" if lines else ""


def claims_table(found: Iterable[Mapping[str, Any]]) -> str:
    """Write the claims that the miniature can bear on as an HTML table, a row for each comparison."""
    rows = [row for claim in found if is_measurable(claim) for row in _claim_rows(claim)]
    head = "".join(f"<th>{name}</th>" for name in HEAD)
    return f'<table class="claims"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'


def _claim_rows(claim: Mapping[str, Any]) -> list[str]:
    word, compared = outcome(claim), comparisons(claim["figures"])
    said = "".join(f"<small>{html.escape(remark)}</small>" for remark in remarks(claim["figures"]))
    span = f' rowspan="{len(compared)}"'
    first = (
        f"<td{span}>{html.escape(claim['claim'], quote=False)}{said}</td>"
        f'<td{span} class="word {word.replace(" ", "-")}">{word}</td>'
    )
    rows = []
    for place, one in enumerate(compared):
        cells = (
            f"<td>{html.escape(one.name)}</td>"
            f'<td class="number {one.finding.replace(" ", "-")}" data-name="mean">{one.mean}</td>'
            f'<td class="number" data-name="90 % interval">{one.interval}</td>'
            f'<td data-name="by seed">{html.escape(one.seeds)}</td>'
        )
        rows.append(f'<tr class="first">{first}{cells}</tr>' if place == 0 else f"<tr>{cells}</tr>")
    return rows


def _beyond(found: Iterable[Mapping[str, Any]]) -> str:
    """List what the miniature cannot bear on, with the reason."""
    rows = [
        f"<li>{html.escape(claim['claim'], quote=False)}: {html.escape('; '.join(remarks(claim['figures'])))}.</li>"
        for claim in found
        if not is_measurable(claim)
    ]
    return f"<p>Out of reach of a model this small:</p><ul>{''.join(rows)}</ul>" if rows else ""


def _runs_table(sizes: Sizes, runs: Runs) -> str:
    """Write what each condition ended with."""
    rows = []
    plan = {condition.name: condition for condition in conditions(sizes)}
    for condition in plan.values():
        seeds = runs.get(condition.name, {})
        ends = [found[-1].values for found in map(windows, seeds.values()) if found]
        finals = [rate for found in seeds.values() if (rate := _final(found)) is not None]
        after = condition.after
        start = f"<small>from step {after[1]} of {html.escape(plan[after[0]].label)}</small>" if after else ""
        cells = (
            ", ".join(map(str, seeds)) or "–",
            f"{condition.attempts:,}",
            spread([end[ACCURACY] for end in ends], 100, " %"),
            spread([end[ENTROPY] for end in ends if ENTROPY in end], 1, ""),
            spread(finals, 100, " %"),
        )
        numbers = "".join(f'<td class="number">{cell}</td>' for cell in cells)
        rows.append(f"<tr><td>{html.escape(condition.label)}{start}</td>{numbers}</tr>")
    names = ("run", "seeds", "attempts", "accuracy at the end", "entropy at the end, nats per token", "held-out pass@1")
    head = "".join(f"<th>{name}</th>" for name in names)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _final(rows: Sequence[Mapping[str, Any]]) -> float | None:
    return rows[-1].get(SUITE) if rows else None


def spread(values: Sequence[float], factor: float, unit: str) -> str:
    """Write mean, lowest and highest; percent with one decimal, anything else with three."""
    if not values:
        return "–"
    decimals = 1 if unit else 3
    mean, low, high = (factor * value for value in (sum(values) / len(values), min(values), max(values)))
    ends = f" [{low:.{decimals}f}, {high:.{decimals}f}]" if len(values) > 1 else ""
    return f"{mean:.{decimals}f}{unit}{ends}"
