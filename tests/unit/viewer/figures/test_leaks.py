"""Which attempts of a ledger are measured, and what the rows say."""

from __future__ import annotations

from pathlib import Path

import anyio
import msgspec
import pytest

from fd_async.data.ledger import open_ledger
from fd_async.data.ledger.excerpts import read_excerpts
from fd_async.types import Statement
from fd_async.viewer.figures.leaks import read_leaks
from fd_async.viewer.figures.runs import Group, read_run
from tests.fakes.paper_runs import make_rows, write_run
from tests.fakes.run_folder import make_attempt

PROOF = "by\n  nlinarith [sq_nonneg (a - b), mul_pos h₀.1 h₀.2]"


async def _fill(path: Path, num: int, num_statements: int, feedback: str) -> None:
    async with open_ledger(path) as ledger:
        for index in range(num):
            rollout, given, _ = make_attempt(index, feedback=feedback)
            name = f"s_{index % num_statements}"
            statement = Statement(name=name, formal_statement=f"theorem {name} (a b : ℝ) : a = b := by", proof=PROOF)
            rollout = msgspec.structs.replace(rollout, statement=statement, final_file=PROOF)
            await ledger.put_rollout(rollout, "queued", admitted_version=0, step=None)
            if given is not None and feedback:
                await ledger.put_feedback(given)
            await ledger.put_batch(index + 1, [rollout.id], {})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty attempts at twenty statements under feedback that shows the proof."""
    folder = write_run(tmp_path_factory.mktemp("runs") / "fd", make_rows(3))
    anyio.run(_fill, folder / "ledger.db", 60, 20, f"Example: {PROOF}")
    return folder


def test_all_attempts_are_read_where_they_are_few(run: Path) -> None:
    """In the order in which they were recorded, with the step that trained them."""
    excerpts, num = read_excerpts(run / "ledger.db", 60)
    assert (len(excerpts), num) == (60, 60)
    assert [excerpt.trained_at for excerpt in excerpts] == list(range(1, 61))
    assert excerpts[0].body.statement.proof == PROOF
    assert excerpts[0].feedback == f"Example: {PROOF}"


def test_a_sample_has_every_attempt_at_its_statements_and_is_the_same_again(run: Path) -> None:
    """A statement without its earlier attempts would show no leak."""
    excerpts, num = read_excerpts(run / "ledger.db", 30)
    names = [excerpt.body.statement.name for excerpt in excerpts]
    assert num == 60
    assert 0 < len(excerpts) < 60
    assert all(names.count(name) == 3 for name in names)
    assert read_excerpts(run / "ledger.db", 30) == (excerpts, num)


def test_a_ledger_without_feedback_is_not_read_at_all(tmp_path: Path) -> None:
    """GRPO: its name and why stand in the notes."""
    folder = write_run(tmp_path / "grpo", make_rows(3), {"algorithm": {"type": "grpo"}})
    anyio.run(_fill, folder / "ledger.db", 3, 3, "")
    assert read_excerpts(folder / "ledger.db", 10) == ([], 0)
    assert read_leaks([Group(label="GRPO", runs=[read_run(folder)])]).notes == ["GRPO: its ledger has no feedback"]


def test_rows_name_run_and_measure(run: Path) -> None:
    """Feedback that shows the proof gives all of it away, and says the same about every statement."""
    rows = read_leaks([Group(label="FD", runs=[read_run(run)])]).rows
    given = rows[0]
    assert (given.label, given.run, given.measure[:10]) == ("FD", "fd", "given away")
    assert (given.share.mean, given.share.control, given.share.num, given.share.num_statements) == (1, 1, 60, 20)
