"""For verifiers that stand in for one: every statement compiles by itself."""

from __future__ import annotations

from fd_async.types import Statement, Verdict


class SoundStatements:
    """What a runner asks about statements, answered at once."""

    async def examine(self, statement: Statement, *, caller: str = "") -> Verdict:
        """See `Verifier.examine`."""
        return Verdict(kind="sorry")

    def known_fault(self, statement: Statement) -> Verdict | None:
        """See `Verifier.known_fault`."""
        return None
