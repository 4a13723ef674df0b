"""The ledger as a list: filters, pages and counts agree with the attempts, whatever happened to them."""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable
from contextlib import closing
from pathlib import Path

import anyio
import msgspec
import pytest

from fd_async.data.ledger import Ledger, open_ledger, read_attempt, read_attempts
from fd_async.data.ledger.browsing import FACETS, Filter, Line, read_counts, read_lines, read_mark
from fd_async.errors import LedgerError
from fd_async.types import Rollout, Statement, TokenScores, Verdict
from tests.unit.data.test_ledger import make_rollout, put

pytestmark = pytest.mark.anyio


def made(index: int, kind: str = "failed", *, suite: str = "", name: str = "", **fields: object) -> Rollout:
    rollout = make_rollout(index)
    statement = Statement(name=name or f"lean_{index % 4}", formal_statement="x")
    fields |= {"verdict": Verdict(kind=kind), "statement": statement}  # type: ignore[arg-type]
    if suite:
        fields |= {"purpose": "eval", "suite": suite, "id": f"eval-{suite}-{index:07d}-00"}
    return msgspec.structs.replace(rollout, **fields)


def scores(rollout: Rollout, delta: float) -> TokenScores:
    return TokenScores(["a", "b", "c", "d"], [delta, delta, delta, 0.0])


async def lived(ledger: Ledger) -> None:
    """Record attempts of every kind and let everything happen to them that can."""
    for index in range(12):
        await put(ledger, made(index, "proved" if index % 3 == 0 else "failed"))
    for index in range(4):
        evaluated = made(index, "timeout", suite="mini", end_reason="failed", failure="engine")
        for _ in range(2):  # an evaluation that is repeated replaces its attempts
            await ledger.put_rollout(evaluated, "evaluated", admitted_version=0, step=1)
    await ledger.drop(made(5).id, "feedback_rejected")
    before = made(6, "proved")
    await ledger.put_audit(made(6, "revoked"), before=before.verdict)
    await ledger.put_batch(1, [made(i).id for i in range(3)], {made(1).id: scores(made(1), 1.5)})
    await ledger.put_batch(2, [made(i).id for i in (3, 4)], {made(3).id: scores(made(3), -0.5)})
    await ledger.put_batch(3, [made(i).id for i in (7, 8)], {made(8).id: scores(made(8), 0.25)})
    ledger.rewind(2)


@pytest.fixture
async def path(tmp_path: Path) -> Path:
    async with open_ledger(tmp_path / "ledger.db") as ledger:
        await lived(ledger)
    return tmp_path / "ledger.db"


def value_of(line: Line, facet: str) -> str:
    return ("no" if line.gain is None else "yes") if facet == "scored" else getattr(line, facet)


async def test_the_list_says_what_the_attempts_say(path: Path) -> None:
    """Newest first; every column is that of the recorded attempt as it is now."""
    lines = read_lines(path, Filter())
    assert [line.seq for line in lines] == sorted((line.seq for line in lines), reverse=True)
    records = {record.rollout.id: record for record in read_attempts(path, 100)}
    assert set(records) == {line.id for line in lines}
    for line in lines:
        record = records[line.id]
        rollout = record.rollout
        assert (line.verdict, line.outcome, line.step) == (rollout.verdict.kind, record.outcome, record.step)
        assert (line.name, line.ended) == (rollout.statement.name, rollout.failure or rollout.end_reason)
        assert line.tokens == len(rollout.sampled_mask)
        assert (line.gain is None) == (record.token_deltas is None)
    gains = {line.id: line.gain for line in lines if line.gain is not None}
    assert gains == {made(1).id: 1.5, made(3).id: -0.5}


@pytest.mark.parametrize(
    "wanted",
    [
        Filter(),
        Filter(verdict="failed"),
        Filter(verdict="revoked", outcome="queued"),
        Filter(source="eval/mini", ended="engine"),
        Filter(outcome="dropped:feedback_rejected"),
        Filter(outcome="trained", scored="yes"),
        Filter(first_step=1, last_step=1),
        Filter(first_step=2),
        Filter(name="lean_3", verdict="failed"),
        Filter(words="LEAN 2"),
        Filter(source="train", verdict="timeout"),
    ],
    ids=repr,
)
async def test_counts_are_those_of_the_list(path: Path, wanted: Filter) -> None:
    """Each choice has the number of attempts that it would show in place of the present one."""
    counts, lines = read_counts(path, wanted), read_lines(path, wanted)
    assert counts.total == 16
    assert counts.matching == len(lines)
    for facet in FACETS:
        free = read_lines(path, msgspec.structs.replace(wanted, **{facet: ""}))
        expected = Counter(value_of(line, facet) for line in free)
        assert {value: num for value, num in counts.facets[facet].items() if num} == dict(expected)


async def test_pages_join_without_gap_or_repeat(path: Path) -> None:
    """Also when attempts arrive between two pages."""
    whole = [line.id for line in read_lines(path, Filter(source="train"))]
    seen: list[str] = []
    before: int | None = None
    async with open_ledger(path) as ledger:
        while page := read_lines(path, Filter(source="train"), before=before, limit=5):
            seen += [line.id for line in page]
            before = page[-1].seq
            await put(ledger, made(100 + len(seen)))
    assert seen == whole


async def test_wildcards_of_sql_are_letters(tmp_path: Path) -> None:
    """A name with % or _ is found by it, and nothing else is."""
    async with open_ledger(tmp_path / "ledger.db") as ledger:
        for index, name in enumerate(["a_b", "axb", "50%", "500", "back\\slash", "it's"]):
            await put(ledger, made(index, name=name))
    for words, names in {"a_b": {"a_b"}, "0%": {"50%"}, "k\\s": {"back\\slash"}, "t's": {"it's"}}.items():
        assert {line.name for line in read_lines(tmp_path / "ledger.db", Filter(words=words))} == names


async def test_tallies_stay_exact_over_any_history(tmp_path: Path) -> None:
    """They equal a count of the rows, after random writes, audits, drops, batches and rewinds."""
    rng = random.Random(7)
    path = tmp_path / "ledger.db"
    async with open_ledger(path) as ledger:
        step, queued = 0, []
        for index in range(150):
            kind = rng.choice(["proved", "failed", "sorry"])
            if rng.random() < 0.2:
                evaluated = made(index % 9, kind, suite="mini")
                await ledger.put_rollout(evaluated, "evaluated", admitted_version=0, step=step)
                continue
            await put(ledger, made(index, kind))
            queued.append(made(index, kind))
            if rng.random() < 0.2:
                await ledger.drop(queued.pop().id, rng.choice(["engine", "late"]))
            if len(queued) > 6:
                step += 1
                batch, queued = queued[:4], queued[4:]
                await ledger.put_batch(step, [r.id for r in batch], {batch[0].id: scores(batch[0], 1.0)})
            if step > 2 and rng.random() < 0.05:
                step -= 1
                ledger.rewind(step)
                queued = [record.rollout for record in ledger.queued()]
    all_tables_agree(path)


async def test_a_write_that_is_refused_leaves_no_trace_in_any_table(tmp_path: Path) -> None:
    """Good and bad writes share a commit; the bad ones are undone alone, in rows, bodies and counts."""
    path = tmp_path / "ledger.db"

    async def refused(write: Awaitable[None]) -> None:
        with pytest.raises(LedgerError, match=r"UNIQUE|not queued|were queued"):
            await write

    async with open_ledger(path) as ledger:
        for index in range(4):
            await put(ledger, made(index))
        await ledger.put_batch(1, [made(0).id], {})
        async with anyio.create_task_group() as tasks:
            for index in range(4, 8):
                tasks.start_soon(put, ledger, made(index))
            tasks.start_soon(refused, put(ledger, made(1, "proved")))
            tasks.start_soon(refused, ledger.drop(made(0).id, "late"))
            batch = [made(1).id, made(0).id]
            tasks.start_soon(refused, ledger.put_batch(2, batch, {batch[0]: scores(made(1), 1.0)}))
            tasks.start_soon(ledger.drop, made(2).id, "late")
    all_tables_agree(path)
    counts = read_counts(path, Filter())
    assert counts.facets["outcome"] == {"queued": 6, "trained": 1, "dropped:late": 1}
    assert counts.facets["scored"] == {"no": 8}


@pytest.mark.parametrize("num_steps", [2, 7])
def test_a_kill_leaves_all_tables_in_step(tmp_path: Path, num_steps: int) -> None:
    """Rows without bodies, or counted twice, would be a write that was half done."""
    code = (
        "import anyio, sys; from pathlib import Path; from fd_async.data.ledger import open_ledger\n"
        "from tests.unit.data.test_ledger_browsing import lived_on\n"
        "async def main():\n"
        "    async with open_ledger(Path(sys.argv[1])) as ledger: await lived_on(ledger)\n"
        "anyio.run(main)"
    )
    path = tmp_path / "ledger.db"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as writer:
        assert writer.stdout is not None
        for _ in range(num_steps):
            told = int(writer.stdout.readline())
        writer.kill()
    all_tables_agree(path)
    assert read_counts(path, Filter(outcome="trained")).matching >= 2 * told


async def lived_on(ledger: Ledger) -> None:
    """Record and train until killed; say after which step."""
    for step in range(1, 10_000):
        rollouts = [made(4 * step + i) for i in range(4)]
        async with anyio.create_task_group() as tasks:
            for rollout in rollouts:
                tasks.start_soon(put, ledger, rollout)
        await ledger.put_rollout(made(step % 5, suite="mini"), "evaluated", admitted_version=0, step=step)
        await ledger.put_batch(step, [r.id for r in rollouts[:2]], {rollouts[0].id: scores(rollouts[0], 1.0)})
        print(step, flush=True)


def all_tables_agree(path: Path) -> None:
    """The counts are those of the rows, and every row has its body and its tokens."""
    kinds = "purpose, suite, verdict, ended, outcome, gain IS NOT NULL"
    with closing(sqlite3.connect(path)) as db:
        counted = db.execute(f"SELECT {kinds}, COUNT(*) FROM rollouts GROUP BY {kinds} ORDER BY 1,2,3,4,5,6").fetchall()
        assert db.execute("SELECT * FROM tallies WHERE num != 0 ORDER BY 1,2,3,4,5,6").fetchall() == counted
        for table in ("bodies", "tokens"):
            assert db.execute(f"SELECT seq FROM {table} EXCEPT SELECT seq FROM rollouts").fetchall() == []
            assert db.execute(f"SELECT seq FROM rollouts EXCEPT SELECT seq FROM {table}").fetchall() == []


async def test_the_mark_changes_with_every_kind_of_change(tmp_path: Path) -> None:
    """A page that has seen a mark need not ask again before it differs."""
    path = tmp_path / "ledger.db"
    async with open_ledger(path) as ledger:
        marks = [read_mark(path)]
        await put(ledger, made(0))
        marks.append(read_mark(path))
        assert read_mark(path) == marks[-1]
        await ledger.put_audit(made(0, "revoked"), before=Verdict(kind="failed"))
        marks.append(read_mark(path))
        await ledger.put_batch(1, [made(0).id], {})
        marks.append(read_mark(path))
    assert [num for num, _ in marks] == [0, 1, 1, 1]
    assert len({mark for _, mark in marks}) == 4


async def test_one_attempt_is_found_by_its_id(path: Path) -> None:
    """And nothing is returned for an id that is not there."""
    record = read_attempt(path, made(3).id)
    assert record is not None
    assert (record.outcome, record.step, record.token_deltas) == ("trained", 2, [-0.5, -0.5, -0.5, 0.0])
    assert read_attempt(path, "train-9999999-00") is None


async def test_a_query_can_be_cancelled(path: Path) -> None:
    """A look through many rows ends when nobody waits for it any more."""
    with closing(sqlite3.connect(path)) as db, db:
        db.execute(
            "WITH RECURSIVE n(i) AS (SELECT 1000 UNION ALL SELECT i+1 FROM n WHERE i<20000) INSERT INTO rollouts"
            " SELECT i, i, 'train', '', i, 0, 'queued', NULL, 1, 0, 'x', 'failed', 'stopped', 1, 1, NULL FROM n"
        )
    with pytest.raises(LedgerError, match="interrupted"):
        read_lines(path, Filter(words="nothing"), is_cancelled=lambda: True)
