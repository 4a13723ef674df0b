"""The claims as rows of a table, for the page and as Markdown.

`python -m bench.mini.table FILE` prints the Markdown for the result that `bench.mini_paper` printed as its last line;
FILE is what that was written to, `-` reads stdin. `--short` leaves the comparisons out, for a README.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.mini.conditions import Sizes, conditions

HEAD = ("claim", "in miniature", "must be above 0", "mean", "90 % interval", "by seed")
OUTCOMES = ("holds", "not shown", "contradicted", "not measured")
RULE = (
    "A claim holds when each of its differences is above 0 by the one-sided 95 % test over seeds (Student's t, seeds"
    " paired): the lower end of the two-sided 90 % interval is above 0. It is contradicted when the upper end of one is"
    " below 0; not shown lies between, and may mean too few seeds. The criteria were fixed before the runs. Each claim"
    " is tested alone: of twenty differences that are none, one is shown by chance."
)
_LABELS = {condition.name: condition.label for condition in conditions(Sizes())}
_TITLES = {"final_pass_at_1": "held-out pass@1 at the end"}


@dataclass(frozen=True)
class Comparison:
    """One difference as text; all its numbers have as many decimals as its interval deserves."""

    name: str
    finding: str
    mean: str
    interval: str
    seeds: str
    """By seed, or why there is no mean."""


def outcome(claim: Mapping[str, Any]) -> str:
    """Say in words whether a claim holds; one that fails is either contradicted or only not shown by these seeds."""
    if claim["holds"] is not False:
        return "holds" if claim["holds"] else "not measured"
    findings = [value.get("finding") for value in claim["figures"].values() if isinstance(value, Mapping)]
    return "contradicted" if "contradicted" in findings else "not shown"


def is_measurable(claim: Mapping[str, Any]) -> bool:
    """Say whether the miniature has a comparison for it, be it measured already or not."""
    return any(isinstance(value, Mapping) and "finding" in value for value in claim["figures"].values())


def comparisons(figures: Mapping[str, Any]) -> list[Comparison]:
    """Return the differences that decide a claim."""
    return [
        _comparison(name, value) for name, value in figures.items() if isinstance(value, Mapping) and "finding" in value
    ]


def _comparison(name: str, value: Mapping[str, Any]) -> Comparison:
    if "mean" not in value:
        seeds = _by_seed(value["per_seed"], 3)
        return Comparison(name, value["finding"], "", "", f"{value['reason']}{f' ({seeds})' if seeds else ''}")
    low, high = value["interval"]
    decimals = _decimals((high - low) / 2)
    return Comparison(
        name, value["finding"], signed(value["mean"], decimals),
        f"{signed(low, decimals)} to {signed(high, decimals)}", _by_seed(value["per_seed"], decimals),
    )  # fmt: skip


def _decimals(half_width: float) -> int:
    """Give the interval two digits that count, within what the result was rounded to."""
    return min(4, max(2, 1 - math.floor(math.log10(half_width)))) if half_width > 0 else 4


def _by_seed(values: Mapping[str, float], decimals: int) -> str:
    return ", ".join(f"{seed}:\u00a0{signed(value, decimals)}" for seed, value in values.items())


def signed(value: float, decimals: int) -> str:
    """Write a difference with its sign, minus as a minus."""
    text = f"{value:+.{decimals}f}"
    return text.replace("-", "−") if float(text) else text[1:]


def remarks(figures: Mapping[str, Any]) -> list[str]:
    """Return what else a claim's figures say: why it is not measured, and numbers for information."""
    found = []
    for name, value in figures.items():
        if name == "reason":
            found.append(str(value))
        elif name == "pairs":
            shown = "; ".join(_pair(seed, pair) for seed, pair in value.items())
            found += [f"pass@1 of the pairs: {shown}"] if shown else []
        elif isinstance(value, Mapping) and "finding" not in value and _is_by_seed(value):
            shown = "; ".join(f"{_LABELS.get(key, key)} {_plain(seeds)}" for key, seeds in value.items() if seeds)
            found += [f"{_TITLES.get(name, name)}, by seed: {shown}"] if shown else []
    return found


def _is_by_seed(value: Mapping[str, Any]) -> bool:
    return all(isinstance(seeds, Mapping) for seeds in value.values()) and all(
        number is None or isinstance(number, int | float) for seeds in value.values() for number in seeds.values()
    )


def _plain(seeds: Mapping[str, float | None]) -> str:
    return ", ".join("–" if n is None else f"{n:,}" if isinstance(n, int) else f"{n:.3f}" for n in seeds.values())


def _pair(seed: object, pair: Mapping[str, Any]) -> str:
    sides = []
    for name, label in (("fd", "FD"), ("grpo", "GRPO")):
        at_1 = next(value for k, value in pair[name].items() if int(k) == 1)
        sides.append(f"{label} {at_1:.3f} (step {pair[f'{name}_step']})")
    return f"seed {seed}: {', '.join(sides)}"


def counted(found: Sequence[Mapping[str, Any]]) -> str:
    """Count the outcomes of the claims that the miniature can bear on, and name how many it cannot."""
    measurable = [claim for claim in found if is_measurable(claim)]
    counts = Counter(outcome(claim) for claim in measurable)
    words = {"holds": "holds" if counts["holds"] == 1 else "hold"}
    parts = [f"{counts[name]} {words.get(name, name)}" for name in OUTCOMES if counts[name]]
    beyond = len(found) - len(measurable)
    return f"{len(measurable)} claims: {', '.join(parts)}. {beyond} more are out of reach of a model this small."


def markdown(result: Mapping[str, Any], *, short: bool = False) -> str:
    """Write a result of `bench.mini_paper` as Markdown: what it ran on, the table, and what was not measured.

    Args:
        result: The JSON object of its last line.
        short: One row per claim, without comparisons.
    """
    found = result["claims"]
    lines = [f"{counted(found)} {_ran_on(result)}", ""]
    head = HEAD[:2] if short else HEAD
    lines += [_row(head), _row(["---"] * len(head))]
    for claim in found:
        if is_measurable(claim):
            lines += [_row(row) for row in _rows(claim, short=short)]
    if not short:
        lines += ["", RULE]
        lines += _information(found)
    lines += ["", "Out of reach:", ""]
    lines += [
        f"- {claim['claim']}: {'; '.join(remarks(claim['figures'])) or 'no reason given'}."
        for claim in found
        if not is_measurable(claim)
    ]
    return "\n".join(lines) + "\n"


def _rows(claim: Mapping[str, Any], *, short: bool) -> list[list[str]]:
    first = [claim["claim"], f"**{outcome(claim)}**"]
    if short:
        return [first]
    rows = [[one.name, one.mean, one.interval, one.seeds] for one in comparisons(claim["figures"])]
    return [(first if place == 0 else ["", ""]) + row for place, row in enumerate(rows)]


def _information(found: Sequence[Mapping[str, Any]]) -> list[str]:
    said = [remark for claim in found if is_measurable(claim) for remark in remarks(claim["figures"])]
    return ["", "For information:", "", *[f"- {remark}." for remark in said]] if said else []


def _row(cells: Sequence[str]) -> str:
    escaped = [cell.replace("|", "\\|") for cell in cells]
    return f"| {' | '.join(escaped)} |"


def _ran_on(result: Mapping[str, Any]) -> str:
    """Say which seeds, how long the runs took, and on what."""
    said = f"Seeds {', '.join(map(str, result['seeds']))}"
    minutes = sum(result.get("seconds_of_runs", {}).values()) / 60
    if minutes:
        said += f"; {len(result['seconds_of_runs'])} runs in {minutes:.0f} minutes"
    machine = result.get("machine", {})
    if machine:
        said += f" on {machine['cores']} cores of {machine['cpu']}, {machine['memory_gib']} GiB"
    packages = ", ".join(f"{name} {number}" for name, number in result.get("versions", {}).items())
    return f"{said}{f' ({packages})' if packages else ''}."


def read_result(text: str) -> dict[str, Any]:
    """Return the JSON object of the last line.

    Raises:
        ValueError: it is no result of `bench.mini_paper`.
    """
    lines = text.strip().splitlines()
    try:
        result = json.loads(lines[-1]) if lines else None
    except json.JSONDecodeError as error:
        raise ValueError(f"the last line is no JSON ({error})") from error
    if not isinstance(result, dict) or not {"claims", "seeds"} <= result.keys():
        raise ValueError("the last line is no result of bench.mini_paper: it has no `claims` and `seeds`")
    return result


def main() -> int:
    """Print the Markdown of a result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", help="output of bench.mini_paper, or - for stdin")
    parser.add_argument("--short", action="store_true", help="claims and outcomes alone")
    given = parser.parse_args()
    try:
        text = sys.stdin.read() if given.file == "-" else Path(given.file).read_text(encoding="utf-8")
        print(markdown(read_result(text), short=given.short), end="")
    except (OSError, ValueError) as error:
        parser.error(f"{given.file}: {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
