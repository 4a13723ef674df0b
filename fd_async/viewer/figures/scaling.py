"""pass@k of two checkpoints with the same pass@1 (paper, figure 3, right), from the results of `fd-eval`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from fd_async.errors import PreflightError
from fd_async.viewer.figures.runs import Group, Run


class Suite(Struct, frozen=True, kw_only=True):
    """One suite of a result.json; keys that are not needed here are not read."""

    suite: str
    pass_at: dict[str, tuple[float, float, float]]
    """k -> pass@k with both ends of its 95 % interval."""
    hash: str = ""
    statements: int = 0
    samples: int = 0
    temperature: float | None = None
    tools: Any = None


class Result(Struct, frozen=True, kw_only=True):
    """A result.json."""

    suites: list[Suite]
    step: int | None = None


class Evaluated(Struct, frozen=True, kw_only=True):
    """One checkpoint on one suite."""

    label: str
    colour: int
    run: str
    step: int | None
    algorithm: str
    origin: str
    """`model.init_from`: the checkpoint that its run was started from."""
    suite: Suite

    @property
    def at_1(self) -> tuple[float, float, float]:
        return self.suite.pass_at["1"]

    @property
    def name(self) -> str:
        return f"{self.label} ({self.run}, step {'?' if self.step is None else self.step})"

    def scaling(self) -> list[tuple[int, float, float, float]]:
        """Return (k, pass@k, low, high), k rising."""
        return sorted((int(k), *values) for k, values in self.suite.pass_at.items())


class Match(Struct, frozen=True):
    """The two checkpoints that are compared."""

    first: Evaluated
    second: Evaluated

    @property
    def note(self) -> str:
        """Say which they are and how well they match."""
        shown = [f"{one.name}: pass@1 {one.at_1[0]:.1%} [{one.at_1[1]:.1%}, {one.at_1[2]:.1%}]" for one in self.both]
        suite = self.first.suite
        return f"{suite.suite}, {suite.statements} statements, 95 % intervals; {'; '.join(shown)}"

    @property
    def both(self) -> tuple[Evaluated, Evaluated]:
        return self.first, self.second


def read_evaluations(groups: Sequence[Group]) -> list[Evaluated]:
    """Return all evaluations of all runs, in the order of the labels.

    Raises:
        PreflightError: a result.json cannot be read, or a number in it is none.
    """
    return [
        Evaluated(
            label=group.label,
            colour=place,
            run=run.name,
            step=result.step,
            algorithm=str(run.setting("algorithm.type") or ""),
            origin=str(run.setting("model.init_from") or ""),
            suite=suite,
        )
        for place, group in enumerate(groups)
        for run in group.runs
        for result in _results(run)
        for suite in result.suites
        if "1" in suite.pass_at
    ]


def match(evaluations: Sequence[Evaluated]) -> Match | str:
    """Choose two checkpoints of different labels with the nearest pass@1; else say why there are none.

    Both saw the same suite under the same settings, neither is untrained, and the intervals of their pass@1 overlap.
    Where labels differ in `algorithm.type`, only pairs that do are looked at: that is what the paper compares. Of
    those, where there are some, only pairs whose runs began with the same model: a run started from the other's
    checkpoint is near it because it hardly left it. Among equals the pair with the larger k goes first, then the later
    steps.
    """
    usable = [one for one in evaluations if len(one.suite.pass_at) > 1 and one.step != 0]
    if len({one.label for one in usable}) < 2:
        return "needs evaluations with k above 1 of trained checkpoints of two labels: fd-eval RUN --k 1,2,4,8"
    pairs = [pair for pair in itertools.combinations(usable, 2) if pair[0].label != pair[1].label and _same_task(*pair)]
    if not pairs:
        return "no two labels were evaluated on the same suite with the same temperature and tools"
    pairs = [pair for pair in pairs if pair[0].algorithm != pair[1].algorithm] or pairs
    pairs = [pair for pair in pairs if pair[0].origin == pair[1].origin] or pairs
    overlapping = [pair for pair in pairs if _overlap(pair[0].at_1, pair[1].at_1)]
    if not overlapping:
        nearest = min(pairs, key=_distance)
        return f"no two intervals of pass@1 overlap; the nearest are {Match(*nearest).note}"
    return Match(*min(overlapping, key=_rank))


def _rank(pair: tuple[Evaluated, Evaluated]) -> tuple[float, int, int, str, str]:
    largest = min(max(map(int, one.suite.pass_at)) for one in pair)
    return _distance(pair), -largest, -sum(one.step or 0 for one in pair), pair[0].name, pair[1].name


def _distance(pair: tuple[Evaluated, Evaluated]) -> float:
    return round(abs(pair[0].at_1[0] - pair[1].at_1[0]), 6)


def _same_task(first: Evaluated, second: Evaluated) -> bool:
    task = [(s.hash or s.suite, s.temperature, s.tools) for s in (first.suite, second.suite)]
    return task[0] == task[1]


def _overlap(first: Sequence[float], second: Sequence[float]) -> bool:
    return first[1] <= second[2] and second[1] <= first[2]


def _results(run: Run) -> Iterator[Result]:
    for path in sorted((run.folder / "evals").glob("*/result.json")):
        yield read_result(path)


def read_result(path: Path) -> Result:
    """Read one result.json.

    Raises:
        PreflightError: it is not one.
    """
    try:
        result = msgspec.json.decode(path.read_bytes(), type=Result)
    except (OSError, msgspec.MsgspecError) as error:
        raise PreflightError(f"{path}: cannot be read ({error}); run that fd-eval again") from error
    for suite in result.suites:
        for k, values in suite.pass_at.items():
            if not k.isdecimal() or k == "0" or not all(math.isfinite(value) for value in values):
                raise PreflightError(f"{path}: pass@{k} of {suite.suite} is no number; run that fd-eval again")
    return result
