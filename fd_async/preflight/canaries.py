"""The verifier, tried: it opens as in a run, with one worker, and judges every canary under the configured header."""

from __future__ import annotations

from collections.abc import Iterator
from time import monotonic

import anyio
from anyio import fail_after
from msgspec.structs import replace
from structlog.testing import capture_logs

from fd_async.config.schema import Verifier as VerifierTable
from fd_async.errors import FdError
from fd_async.preflight.findings import Finding
from fd_async.types import Statement
from fd_async.verifier.canaries import CANARIES, Canary, CanaryResult, run_canaries
from fd_async.verifier.verifier import open_verifier

_MARGIN_S = 60.0
_OUTPUT_CHARS = 500
_REAL = "(x : ℝ) (h : 0 < x)"


def _of_mathlib(name: str, goal: str, expected: str) -> Canary:
    stated = f"theorem fd_canary_{name} {_REAL} : {goal} := by"
    statement = Statement(name=f"fd_canary_{name}", formal_statement=f"{stated} sorry")
    words = "a theorem with Mathlib" if expected == "proved" else "a false statement with Mathlib"
    return Canary(name=words, statement=statement, code=f"{stated}\n  linarith\n", expected=expected)  # type: ignore[arg-type]


_MATHLIB = (_of_mathlib("mathlib", "0 < x + x", "proved"), _of_mathlib("mathlib_false", "1 < x", "failed"))


def judge_canaries(table: VerifierTable) -> Iterator[Finding]:
    """Open the verifier, judge, close it; one finding for each canary, one for the audit. Blocks."""
    started = monotonic()
    with capture_logs() as logged:
        try:
            results, toolchain, audit = anyio.run(_judge, table)
        except (FdError, TimeoutError) as error:
            advice = "search docs/troubleshooting.md for this line"
            words = str(error) or "not finished within the deadlines of [verifier]"
            yield Finding("missing", "canaries", words.splitlines()[0], advice)
            return
    yield Finding("ok", "judge", f"{toolchain}, {len(results)} canaries in {monotonic() - started:.1f} s")
    for result in results:
        yield _finding(result)
    advice = (
        "leanchecker comes with Lean from 4.28; comparator is stricter: docs/verifier.md" if audit == "fresh" else ""
    )
    yield Finding("ok" if audit not in ("fresh", "off") else "note", "audit", _AUDITS.get(audit, audit), advice)
    for entry in logged:
        if entry["log_level"] == "warning" and "minilean judges" not in entry["event"]:
            yield Finding("note", "warning", str(entry["event"]))


_AUDITS = {
    "off": "accepted proofs are judged once",
    "fresh": "accepted proofs are judged again in a fresh process",
    "leanchecker": "accepted proofs are replayed by leanchecker",
    "comparator": "accepted proofs are compared and replayed by comparator",
}


def _finding(result: CanaryResult) -> Finding:
    if result.is_right:
        return Finding("ok", "canary", result.line)
    advice = "no verdict can be trusted" if result.is_answered else "the verifier does not answer"
    return Finding("missing", "canary", result.line, advice)


async def _judge(table: VerifierTable) -> tuple[list[CanaryResult], str, str]:
    small = replace(table, workers=1, spares=0, audit_workers=1)
    canaries = [*CANARIES, *(_MATHLIB if "import Mathlib" in table.header else ())]
    limit = table.import_timeout_s + 3 * len(canaries) * table.check_timeout_s + table.audit_timeout_s + _MARGIN_S
    with fail_after(limit):
        async with open_verifier(small, output_chars=_OUTPUT_CHARS) as verifier:
            results = await run_canaries(verifier, canaries)
            return results, verifier.toolchain, verifier.audit_kind
