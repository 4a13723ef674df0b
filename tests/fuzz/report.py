"""What a fuzzer found."""

from __future__ import annotations

import contextlib
import io
import re
import traceback
from collections import Counter
from collections.abc import Sequence

from msgspec import Struct, field

from fd_async.cli.main import main

KEPT = 20
"""Findings that are kept word for word."""


class Report(Struct, kw_only=True):
    """Counts, and the first findings in full."""

    cases: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    num_findings: int = 0
    findings: list[str] = field(default_factory=list)

    def found(self, what: str, given: str) -> None:
        """Note a case that did what none may do."""
        self.num_findings += 1
        if len(self.findings) < KEPT:
            self.findings.append(f"{what}\n--- given\n{given[:2000]}")


def run_command(argv: Sequence[str], report: Report, given: str, *, codes: frozenset[int]) -> int | None:
    """Run a command in this process and judge how it ended: one clear line for each problem, never a traceback.

    Args:
        argv: as for `fd_async.cli.main.main`.
        report: takes the outcome, and a finding where a rule is broken.
        given: shown with a finding.
        codes: exit codes that are allowed.
    """
    report.cases += 1
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(argv)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        report.found(traceback.format_exc(), given)
        return None
    text = err.getvalue()
    lines = [line for line in text.splitlines() if line.strip()]
    report.outcomes[f"exit {code}"] += 1
    if code not in codes:
        report.found(f"exit code {code}: {text}", given)
    elif "Traceback" in text or re.search(": unexpected [A-Z]", text):
        report.found(f"not one clear line: {text}", given)
    elif code and not lines:
        report.found(f"exit code {code} without a word", given)
    elif code and not all(line.startswith(f"fd-{argv[0]}: ") and len(line) < 2000 for line in lines):
        report.found(f"lines that say not who speaks, or never end: {text[:3000]}", given)
    return code
