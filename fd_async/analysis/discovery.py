"""Distinct lemmas and tactics of accepted proofs, per step and over the run (paper figure 3)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fd_async.types import Verdict


class Discovery:
    """The names that accepted proofs of trained attempts have used since the start of the run.

    The ledger holds the verdict of every trained attempt, so a resume gives them to `add` and counts on exactly.
    """

    def __init__(self) -> None:
        self.lemmas: set[str] = set()
        self.tactics: set[str] = set()

    def add(self, verdicts: Iterable[Verdict]) -> None:
        """Count the accepted ones."""
        for verdict in verdicts:
            if verdict.is_proved:
                self.lemmas.update(verdict.lemmas)
                self.tactics.update(verdict.tactics)

    def step(self, verdicts: Sequence[Verdict]) -> dict[str, float | int | None]:
        """Count the accepted proofs of one step and return its `proofs/*` columns."""
        proved = [verdict for verdict in verdicts if verdict.is_proved]
        self.add(proved)
        return {
            "proofs/lemmas_step": len({name for verdict in proved for name in verdict.lemmas}),
            "proofs/lemmas_total": len(self.lemmas),
            "proofs/tactics_step": len({name for verdict in proved for name in verdict.tactics}),
            "proofs/tactics_total": len(self.tactics),
            "proofs/lemmas_per_proof": sum(len(v.lemmas) for v in proved) / len(proved) if proved else None,
        }
