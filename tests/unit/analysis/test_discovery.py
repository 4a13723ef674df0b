"""Distinct lemmas and tactics over a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from fd_async.analysis.discovery import Discovery
from fd_async.data.ledger import open_ledger
from fd_async.types import Rollout, Statement, Verdict

pytestmark = pytest.mark.anyio

ONE = Verdict(kind="proved", lemmas=["Nat.add_comm", "mul_pos"], tactics=["rw"])
TWO = Verdict(kind="proved", lemmas=["Nat.add_comm"], tactics=["exact", "rw"])
NONE = Verdict(kind="proved", tactics=["omega"])
REVOKED = Verdict(kind="revoked", lemmas=["Nat.never"], tactics=["decide"])


def test_a_step_counts_its_own_names_and_the_runs() -> None:
    """Names are distinct; an attempt that is no proof counts nowhere."""
    discovery = Discovery()
    assert discovery.step([ONE, TWO, REVOKED, Verdict(kind="failed")]) == {
        "proofs/lemmas_step": 2,
        "proofs/lemmas_total": 2,
        "proofs/tactics_step": 2,
        "proofs/tactics_total": 2,
        "proofs/lemmas_per_proof": 1.5,
    }
    assert discovery.step([NONE, TWO])["proofs/lemmas_per_proof"] == 0.5
    assert discovery.step([REVOKED]) == {
        "proofs/lemmas_step": 0,
        "proofs/lemmas_total": 2,
        "proofs/tactics_step": 0,
        "proofs/tactics_total": 3,
        "proofs/lemmas_per_proof": None,
    }


async def test_the_ledger_gives_back_what_was_trained_up_to_the_checkpoint(tmp_path: Path) -> None:
    """A resume at step 1 forgets step 2 and queued attempts, and nothing else."""
    async with open_ledger(tmp_path / "ledger.db") as ledger:
        for ordinal, verdict in enumerate([ONE, NONE, TWO, REVOKED]):
            await ledger.put_rollout(_rollout(ordinal, verdict), "queued", admitted_version=0, step=None)
        await ledger.put_batch(1, ["r1", "r3"], {})
        await ledger.put_batch(2, ["r0"], {})
        assert sorted(v.kind for v in ledger.trained_verdicts()) == ["proved", "proved", "revoked"]
        ledger.rewind(1)
        discovery = Discovery()
        discovery.add(ledger.trained_verdicts())
    assert (discovery.lemmas, discovery.tactics) == (set(), {"omega"})


def _rollout(ordinal: int, verdict: Verdict) -> Rollout:
    return Rollout(
        id=f"r{ordinal}",
        ordinal=ordinal,
        sample=0,
        purpose="train",
        statement=Statement(name="t", formal_statement="theorem t : True := by sorry"),
        prompt_ids=[1],
        completion_ids=[],
        sampled_mask=[],
        logprobs=[],
        spans=[],
        turns=[],
        verdict=verdict,
        end_reason="solved",
    )
