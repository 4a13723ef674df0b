"""Statements that do not compile by themselves: no attempt at them is the model's failure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest

from fd_async.config.schema import RolloutTable
from fd_async.data.ledger import open_ledger
from fd_async.errors import PreflightError, first_cause
from fd_async.rollouts import RolloutRunner
from fd_async.types import Rollout, Statement, Ticket
from fd_async.verifier.verifier import Verifier, open_verifier
from tests.fakes.control_plane import Bench, make_config
from tests.unit.pipeline.test_rollouts import Script, check, write
from tests.unit.verifier.conftest import fake_config

pytestmark = pytest.mark.anyio

STATED = "theorem t (x : Nat) : x + nowhere = x"
BROKEN = Statement(name="t", formal_statement=f"{STATED} := by sorry")
SOUND = Statement(name="s", formal_statement="theorem s (x : Nat) : x = x := by sorry")
ATTEMPTS: dict[str, list[list[tuple[str, dict[str, str]]]]] = {
    "no file": [],
    "another theorem": [[write("a.lean", "theorem other : True := trivial")]],
    "a forbidden word": [[write("a.lean", f"axiom a : False\n{STATED} := by\n  exact a.elim")]],
    "checked": [[write("a.lean", f"{STATED} := by\n  rfl"), check("a.lean")]],
    "checked at the end": [[write("a.lean", f"{STATED} := by\n  rfl")]],
}


async def attempt(verifier: Verifier, statement: Statement, turns: list[Any]) -> Rollout:
    script = Script(*turns)
    runner = RolloutRunner(
        engine=script,  # type: ignore[arg-type]
        renderer=script,  # type: ignore[arg-type]
        verifier=verifier,
        search=None,  # type: ignore[arg-type]
        config=RolloutTable(),
    )
    return await runner.run(Ticket(ordinal=0, sample=0, purpose="train", statement=statement), temperature=1.0)


@pytest.mark.parametrize("turns", ATTEMPTS.values(), ids=ATTEMPTS)
async def test_an_attempt_at_a_statement_that_does_not_compile_has_its_own_cause(turns: list[Any]) -> None:
    """Whatever the model wrote, the attempt ends as `bad_statement` with the checker's words, and the next one costs
    nothing."""
    async with open_verifier(fake_config(backend="minilean", command=[]), output_chars=400) as verifier:
        first = await attempt(verifier, BROKEN, turns)
        assert (first.end_reason, first.failure, first.verdict.kind) == ("failed", "bad_statement", "bad_statement")
        assert "`t` alone does not compile" in first.verdict.reason
        assert "nowhere" in first.verdict.reason
        again = await attempt(verifier, BROKEN, turns)
        assert (again.failure, again.completion_ids) == ("bad_statement", [])
        assert (await attempt(verifier, SOUND, [])).verdict.kind == "missing"


async def test_bad_statements_are_counted_and_no_infrastructure(tmp_path: Path) -> None:
    """A run goes on past them; the ledger has the cause."""
    bench = Bench(make_config(run={"max_steps": 3}), tmp_path)
    bench.runner.failure = lambda ticket: "bad_statement" if ticket.ordinal % 3 == 1 else ""
    with anyio.fail_after(20):
        assert await bench.run() == 0
    async with open_ledger(tmp_path / "ledger.db") as ledger:
        rows = ledger._connection.execute("SELECT outcome, COUNT(*) FROM rollouts GROUP BY 1").fetchall()
    assert dict(rows)["dropped:bad_statement"] > 0


async def test_a_run_whose_statements_all_do_not_compile_ends(tmp_path: Path) -> None:
    """It does not go through the statements for ever, and blames the data."""
    bench = Bench(make_config(), tmp_path)
    bench.runner.failure = lambda ticket: "bad_statement"
    with anyio.fail_after(10), pytest.raises(BaseExceptionGroup) as caught:
        await bench.run()
    assert isinstance(first_cause(caught.value), PreflightError)
    assert "bin/fd-data" in str(first_cause(caught.value))
