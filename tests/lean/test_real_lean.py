"""The verifier with a real Lean and Mathlib: `lean/setup` has to have run."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from fd_async.config.schema import Verifier as VerifierTable
from fd_async.preflight.canaries import judge_canaries
from fd_async.types import Statement
from fd_async.verifier.verifier import open_verifier

LEAN = Path(os.environ.get("FD_LEAN_PROJECT", Path(__file__).parents[2] / "lean"))
IS_SET_UP = (LEAN / ".lake" / "fd-setup" / "canaries.done").is_file()

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.lean,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        not IS_SET_UP, reason="no Lean: run lean/setup, or set FD_LEAN_PROJECT to a project set up by it"
    ),
]

STATEMENT = Statement(
    name="lean_workbook_like",
    formal_statement="theorem lean_workbook_like (a b : ℝ) : 2 * a * b ≤ a ^ 2 + b ^ 2 := by sorry",
)
STATED = "theorem lean_workbook_like (a b : ℝ) : 2 * a * b ≤ a ^ 2 + b ^ 2 := by"


def table() -> VerifierTable:
    """One worker under the header that LeanWorkbook statements expect."""
    header = (LEAN / "header.lean").read_text().strip()
    return VerifierTable(backend="repl", project_dir=str(LEAN), header=header, workers=1, spares=0)


def test_setup_has_nothing_to_do() -> None:
    """A project that is set up is known as such."""
    done = subprocess.run([str(LEAN / "setup"), "--check"], capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_canary_is_judged_as_it_must_be() -> None:
    """As fd-check does it."""
    findings = list(judge_canaries(table()))
    assert [finding for finding in findings if finding.state == "missing"] == []
    assert sum(finding.name == "canary" for finding in findings) >= 9


@pytest.mark.parametrize(
    ("tactic", "kind"),
    [
        ("nlinarith [sq_nonneg (a - b)]", "proved"),
        ("linarith", "failed"),
        ("native_decide", "forbidden"),
        ("exact sorryAx _", "forbidden"),
    ],
)
async def test_proofs_are_judged(tactic: str, kind: str) -> None:
    """By Lean, through sandbox, pool and judge; an accepted one also by the audit."""
    async with open_verifier(table(), output_chars=2000) as verifier:
        code = f"{STATED}\n  {tactic}\n"
        verdict = await verifier.check(code, STATEMENT)
        assert verdict.kind == kind, verdict.output
        if verdict.is_proved:
            audited = await verifier.audit(code, STATEMENT, verdict)
            assert audited.is_proved
            assert audited.audit == verifier.audit_kind
