"""The recorded checks that the verifier's benchmark replays, or synthetic ones of the same distribution."""

from __future__ import annotations

import heapq
import json
import random
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from fd_async.types import Statement
from fd_async.verifier.judge import Prepared, prepare
from tests.fakes.repl_trace import Entry, split_header

TRACE = Path(__file__).resolve().parents[2] / "shared" / "data" / "lean_traces" / "minif2f_rounds_0_5.jsonl"
LIMIT_S = 60.0
"""The deadline under which the trace was recorded."""
SECOND_HEADER = "import Mathlib\n\nset_option maxHeartbeats 400000\n\nopen Nat Real Topology"
INSTANT, SHORT = "theorem fd_instant : True := trivial", "theorem fd_short : True := by trivial"
SHORT_S = 0.05
_QUANTILES = [(0.0, 0.01), (0.25, 0.15), (0.5, 0.40), (0.9, 3.66), (0.95, 7.26), (0.99, 31.0), (1.0, 51.95)]
"""Seconds of the finished checks among 2,196 recorded MiniF2F attempts; 3.1% more did not finish."""
_SYNTHETIC = {"statements": 244, "attempts": 6, "timeout_share": 0.031, "pass_share": 0.41, "repeat_share": 0.06}


class Check(NamedTuple):
    """One recorded check. `seconds` is None where it ran into the deadline."""

    name: str
    header: str
    body: str
    seconds: float | None
    accepted: bool
    messages: list[dict[str, Any]]
    sorries: list[dict[str, Any]]

    @property
    def code(self) -> str:
        return f"{self.header}\n\n{self.body}"

    @property
    def verdict(self) -> str:
        return "timeout" if self.seconds is None else "accepted" if self.accepted else "rejected"

    @property
    def work_s(self) -> float:
        return LIMIT_S if self.seconds is None else self.seconds

    @property
    def statement(self) -> Statement:
        """The theorem without its proof, as a data set would bring it."""
        return Statement(name=self.name, formal_statement=_theorem(self.body), header=self.header)


def load_checks(limit: int | None) -> tuple[list[Check], str]:
    """Return the recorded checks in their order, or synthetic ones, and what they are."""
    if TRACE.exists():
        with TRACE.open(encoding="utf-8") as file:
            checks = _repeats_alike([_recorded(json.loads(line)) for line in file])
        return checks[:limit], "recorded: 1,464 MiniF2F attempts, rounds 0 to 5 of an expert iteration"
    return synthetic_checks(0)[:limit], "synthetic: the quantiles of 2,196 recorded MiniF2F attempts"


def with_second_header(checks: Sequence[Check]) -> list[Check]:
    """Put every second statement under another header, as when a run trains on one set and evaluates on another."""
    names = {name: number for number, name in enumerate(dict.fromkeys(check.name for check in checks))}
    return [check._replace(header=SECOND_HEADER) if names[check.name] % 2 else check for check in checks]


def entries_of(checks: Sequence[Check]) -> list[Entry]:
    """Return what the stand-in must know: every body as recorded, as the judge rebuilds it, and two artificial ones."""
    entries = [Entry(INSTANT, 0.0, [], []), Entry(SHORT, SHORT_S, [], [])]
    for check in checks:
        plain = Entry(check.body, check.seconds, check.messages, check.sorries)
        entries.append(plain)
        rebuilt = prepare(check.code, check.statement, check.header)
        if isinstance(rebuilt, Prepared):
            entries.append(_moved(plain, rebuilt))
    return entries


def bounds(checks: Sequence[Check], workers: int, scale: float) -> dict[str, float]:
    """Return two floors of the time for all checks, seconds.

    `ideal_s`: no schedule on these workers can be faster, not even one that divides a check between workers.
    `ideal_lpt_s`: longest first without dividing, which needs to know the seconds beforehand.
    """
    times = sorted((check.work_s * scale for check in checks), reverse=True)
    free = [0.0] * workers
    for seconds in times:
        heapq.heapreplace(free, free[0] + seconds)
    return {"ideal_s": max(sum(times) / workers, times[0]), "ideal_lpt_s": max(free)}


def synthetic_checks(seed: int) -> list[Check]:
    """Draw checks with the measured distribution of seconds, verdicts, timeouts and repeats."""
    chance, checks = random.Random(seed), list[Check]()
    statements, attempts = int(_SYNTHETIC["statements"]), int(_SYNTHETIC["attempts"])
    header = "import Mathlib\nimport Aesop\n\nset_option maxHeartbeats 0\n\nopen BigOperators Real Nat Topology Rat"
    for attempt in range(attempts):
        for number in range(statements):
            if attempt and chance.random() < _SYNTHETIC["repeat_share"]:
                checks.append(checks[-statements])
                continue
            timed_out = chance.random() < _SYNTHETIC["timeout_share"]
            accepted = not timed_out and chance.random() < _SYNTHETIC["pass_share"]
            proof = "  norm_num\n" * chance.randint(1, 30)
            body = f"theorem fd_trace_{number} (n : Nat) : n = n := by\n{proof}  -- attempt {attempt}\n  simp"
            error = {
                "severity": "error",
                "pos": {"line": 2, "column": 2},
                "endPos": None,
                "data": "simp made no progress",
            }
            seconds = None if timed_out else _quantile(chance.random())
            checks.append(Check(f"fd_trace_{number}", header, body, seconds, accepted, [] if accepted else [error], []))
    return checks


def _repeats_alike(checks: list[Check]) -> list[Check]:
    """Give every repeat of a text the answer and the seconds of its first recording: the stand-in knows one."""
    first: dict[str, Check] = {}
    return [first.setdefault(check.body, check) for check in checks]


def _recorded(row: dict[str, Any]) -> Check:
    body, cut, _ = split_header(row["code"])
    header = "\n".join(row["code"].split("\n")[:cut]).strip()
    messages = [*(row["errors"] or []), *(row["warnings"] or []), *(row["infos"] or [])]
    sorries = row["sorries"] or []
    cut -= header.count("import ")  # the recorded positions count from behind the imports
    for item in (*messages, *sorries):
        for position in (item["pos"], item["endPos"]):
            if position:
                position["line"] -= cut
    return Check(row["name"], header, body, row["verify_time"], bool(row["pass"]), messages, sorries)


def _theorem(body: str) -> str:
    """Cut the last theorem's statement out, up to its `:=`."""
    start = body.rindex("theorem ")
    return body[start : body.index(":=", start)] + ":= by sorry"


def _moved(plain: Entry, prepared: Prepared) -> Entry:
    """Return the entry of the body as the judge sends it: what followed the statement's `:=` stands further down."""
    rebuilt = prepared.rebuilt
    body, cut, _ = split_header(rebuilt.body)
    last = rebuilt.statement_line + rebuilt.statement_lines - 1 - cut
    end = last - rebuilt.shift + 1, len(body.split("\n")[last - 1])

    def moved(item: dict[str, Any]) -> dict[str, Any]:
        places = {name: place and dict(place) for name, place in item.items() if name in ("pos", "endPos")}
        for place in filter(None, places.values()):
            if (place["line"], place["column"]) >= end:
                place["line"] += rebuilt.shift
        return {**item, **places}

    return Entry(rebuilt.body, plain.seconds, [moved(m) for m in plain.messages], [moved(s) for s in plain.sorries])


def _quantile(share: float) -> float:
    """Interpolate the measured quantiles, straight on a logarithmic scale."""
    for (low, below), (high, above) in pairwise(_QUANTILES):
        if share <= high:
            return below * (above / below) ** ((share - low) / (high - low))
    return _QUANTILES[-1][1]
