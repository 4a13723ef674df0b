"""Which audit there is: `verifier.audit` names one, `auto` takes the strictest that is installed.

comparator    leanprover/comparator, landrun and lean4export, from the project's packages or PATH
leanchecker   beside `lean`, since Lean 4.28
fresh         always: a new worker of the backend
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fd_async.config.files import project_of
from fd_async.config.schema import Verifier as VerifierTable
from fd_async.errors import PreflightError, VerifierError
from fd_async.verifier.audit.audits import Auditor, AuditRefused, LadderAuditor
from fd_async.verifier.audit.cold import AuditableBackend, FreshBackend, ReplayBackend, ReplaySpec
from fd_async.verifier.audit.comparator import ComparatorAuditor, ComparatorSpec, find_comparator
from fd_async.verifier.canaries import CANARIES
from fd_async.verifier.judge import Judge
from fd_async.verifier.repl.process import ReplSpec


def find_auditors(
    config: VerifierTable, judge: Judge, backend: AuditableBackend, spec: ReplSpec | None
) -> list[Auditor]:
    """Return the auditors that the configuration allows, strictest first; none when nothing is audited. Blocking.

    Args:
        config: The `[verifier]` table.
        judge: The warm one, whose rules the audit applies.
        backend: What it judges with.
        spec: How its workers start; None where they are not ours.

    Raises:
        PreflightError: What is asked for is not installed.
    """
    if config.audit == "off" or config.audit_share <= 0:
        return []
    fresh = LadderAuditor("fresh", replace(judge, backend=FreshBackend(backend)))
    if config.audit == "fresh":
        return [fresh]
    if config.audit != "auto":
        return [_strict(config.audit, config, judge, fresh, spec)]
    found: list[Auditor] = []
    for kind in ("comparator", "leanchecker"):
        try:
            found.append(_strict(kind, config, judge, fresh, spec))
        except PreflightError:
            continue  # `auto` means what there is
    return [*found, fresh]


async def first_that_works(auditors: Sequence[Auditor], asked: str, log: Any) -> Auditor | None:
    """Have each auditor confirm an honest proof, and return the first that does; None when there are none.

    Raises:
        PreflightError: The one that was asked for does not.
    """
    honest = CANARIES[0]
    for auditor in auditors:
        if auditor.kind == "fresh":
            return auditor  # the same worker as the one that has just judged the canaries
        try:
            await auditor.confirm(honest.code, honest.statement)
            return auditor
        except (AuditRefused, VerifierError) as error:
            if asked != "auto":
                raise PreflightError(f'verifier.audit = "{asked}" does not confirm an honest proof: {error}') from error
            log.warning("an installed auditor does not work; a less strict one is used", auditor=auditor.kind,
                        reason=str(error))  # fmt: skip
    return None


def _strict(kind: str, config: VerifierTable, judge: Judge, fresh: LadderAuditor, spec: ReplSpec | None) -> Auditor:
    asked = f'verifier.audit = "{kind}"'
    if config.backend != "repl" or spec is None:
        raise PreflightError(f'{asked} needs verifier.backend = "repl"; set "auto" or "fresh"')
    sysroot = spec.env.get("LEAN_SYSROOT", "")
    if not sysroot or "LEAN_PATH" not in spec.env:
        raise PreflightError(
            f"{asked} needs the Lake project of verifier.project_dir; empty verifier.command, or set "
            'verifier.audit = "fresh"'
        )
    if kind == "comparator":
        project = project_of(config)
        programs = find_comparator(project, spec.env.get("PATH", ""))
        return ComparatorAuditor(fresh, ComparatorSpec(spec, programs, project, Path(sysroot), config.audit_timeout_s))
    lean, leanchecker = (Path(sysroot) / "bin" / name for name in ("lean", "leanchecker"))
    if not leanchecker.is_file():
        raise PreflightError(f'{asked}: there is no {leanchecker} (part of Lean since 4.28); set "auto" or "fresh"')
    limit = config.import_timeout_s + config.check_timeout_s
    replay = ReplayBackend(ReplaySpec(spec, str(lean), str(leanchecker), judge.backend.toolchain, limit))
    return LadderAuditor("leanchecker", replace(judge, backend=replay))
