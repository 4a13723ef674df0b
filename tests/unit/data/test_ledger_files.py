"""A ledger that is full, cut, foreign, old or too large: one clear line each, and what was recorded stays."""

from __future__ import annotations

import resource
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import anyio
import msgspec
import pytest

from fd_async.data.ledger import Ledger, open_ledger, read_attempts
from fd_async.errors import LedgerError
from fd_async.types import PartialRollout, Rollout, VersionSpan
from tests.unit.data.test_ledger import make_rollout, put

pytestmark = pytest.mark.anyio


def big(ordinal: int, tokens: int = 4096) -> Rollout:
    """Return an attempt whose tokens hardly shrink."""
    rollout = make_rollout(ordinal, tokens=tokens)
    ids = [(ordinal * 7919 + i * 104729) % 150_000 for i in range(tokens + 1)]
    return msgspec.structs.replace(rollout, completion_ids=ids, logprobs=[-(i % 997) / 1024 for i in ids])


def begun(ordinal: int, tokens: int) -> PartialRollout:
    return PartialRollout(
        id=f"train-{ordinal:07d}-00", ordinal=ordinal, sample=0, admitted_version=0, prompt_ids=[1],
        completion_ids=list(range(tokens)), logprobs=[-0.5] * tokens, spans=[VersionSpan(0, 0, tokens)], turns=[],
    )  # fmt: skip


async def test_a_full_disk_is_said_with_what_to_do(tmp_path: Path) -> None:
    """One line: which file, that the disk is full, what is free, and that a resume goes on."""
    path = tmp_path / "ledger.db"
    async with open_ledger(path) as ledger:
        await put(ledger, make_rollout(0))
        pages = ledger._connection.execute("PRAGMA page_count").fetchone()[0]
        ledger._connection.execute(f"PRAGMA max_page_count={pages}")
        with pytest.raises(LedgerError, match=r"ledger\.db: cannot write the ledger: disk full; \d+ MiB.*--resume"):
            await put(ledger, big(1))
    async with open_ledger(path) as ledger:
        assert set(ledger.seen()) == {0}


async def test_writes_beyond_the_size_that_the_system_allows_leave_what_was_there(tmp_path: Path) -> None:
    """A real short write in another process: it is told, nothing is half there, and the next process writes on."""
    path = tmp_path / "ledger.db"
    code = (
        "import anyio, resource, sys\n"
        "from pathlib import Path\n"
        "from fd_async.data.ledger import open_ledger\n"
        "from fd_async.errors import LedgerError\n"
        "from tests.unit.data.test_ledger_files import big, put\n"
        "async def main():\n"
        "    async with open_ledger(Path(sys.argv[1])) as ledger:\n"
        "        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, resource.RLIM_INFINITY))\n"
        "        for i in range(100):\n"
        "            try: await put(ledger, big(i))\n"
        "            except LedgerError as error: print(i, error); return\n"
        "anyio.run(main)\n"
    )
    with anyio.fail_after(60):
        done = await anyio.run_process([sys.executable, "-c", code, str(path)])
    number, _, text = done.stdout.decode().partition(" ")
    assert "disk full, over a quota, or failing" in text
    assert text.count("\n") == 1
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    async with open_ledger(path) as ledger:
        assert set(ledger.seen()) == set(range(int(number)))
        await put(ledger, big(int(number)))


@pytest.mark.parametrize(
    ("harm", "readers_meet_it"),
    [
        (lambda data: b"no database at all, " * 500, True),
        (lambda data: data[: len(data) // 2], True),
        (lambda data: data[: 3 * 4096] + b"\xff" * 4096 + data[4 * 4096 :], False),
        (lambda data: data[:100] + b"\x00" * 200 + data[300:], True),
    ],
    ids=["foreign", "cut", "a page of ones", "a torn header"],
)
async def test_a_damaged_file_is_named_and_left_alone(
    tmp_path: Path, harm: Callable[[bytes], bytes], readers_meet_it: bool
) -> None:
    """Neither a run nor a reader goes on with half a history, and nobody overwrites it."""
    path = tmp_path / "ledger.db"
    async with open_ledger(path) as ledger:
        for ordinal in range(8):
            await put(ledger, big(ordinal))
    damaged = harm(path.read_bytes())
    path.write_bytes(damaged)
    with pytest.raises(LedgerError, match=r"ledger\.db: the ledger is damaged .*start a new run \(--run NAME\)"):
        async with open_ledger(path):
            pass
    if readers_meet_it:
        with pytest.raises(LedgerError, match=r"ledger\.db: the ledger is damaged"):
            read_attempts(path, 10)
    assert path.read_bytes() == damaged


async def test_a_ledger_of_another_layout_is_refused_by_writers_and_readers(tmp_path: Path) -> None:
    """An earlier or a later version of the program wrote it."""
    path = tmp_path / "ledger.db"
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE rollouts (id TEXT PRIMARY KEY, body BLOB)")
    for attempt in (lambda: read_attempts(path, 1), lambda: anyio.from_thread.run(_open, path)):
        with pytest.raises(LedgerError, match=r"the ledger has layout 0, this version of fd_async reads layout \d"):
            await anyio.to_thread.run_sync(attempt)


async def _open(path: Path) -> None:
    async with open_ledger(path):
        pass


async def test_a_kill_while_the_file_was_made_leaves_one_that_opens(tmp_path: Path) -> None:
    """An empty file is a new ledger."""
    path = tmp_path / "ledger.db"
    path.touch()
    async with open_ledger(path) as ledger:
        await put(ledger, make_rollout(0))


async def fill(ledger: Ledger, steps: range) -> None:
    """Train four large attempts a step."""
    for step in steps:
        ordinals = range(step * 4, step * 4 + 4)
        await ledger.put_partials([begun(ordinal, 100) for ordinal in ordinals])
        async with anyio.create_task_group() as tasks:
            for ordinal in ordinals:
                tasks.start_soon(put, ledger, big(ordinal))
        await ledger.put_batch(step, [big(ordinal).id for ordinal in ordinals], {})


async def test_the_file_stays_inside_its_limit(tmp_path: Path) -> None:
    """Tokens of the oldest trained attempts go, their space is used again, everything else stays."""
    path, limit = tmp_path / "ledger.db", 1 << 20
    async with open_ledger(path, max_gib=limit / 2**30, oldest_checkpoint=lambda: 10**6) as ledger:
        sizes = []
        for step in range(1, 31):
            await fill(ledger, range(step, step + 1))
            sizes.append(path.stat().st_size)
        facts = ledger.statistics()
        trained = ledger.tokens_by_outcome()
    assert max(sizes) < 1.2 * limit  # without a limit: 3 MiB
    assert facts["freed"] > 50
    assert facts["rows"] == 120
    assert trained == {"trained": 120 * 4096}
    records = {record.rollout.ordinal: record.rollout for record in read_attempts(path, 1000)}
    assert len(records) == 120
    whole = sorted(ordinal for ordinal, rollout in records.items() if rollout.completion_ids)
    assert whole == list(range(124 - len(whole), 124))  # the newest
    assert {rollout.num_sampled_tokens for rollout in records.values()} == {4096}
    assert {rollout.verdict.reason for rollout in records.values()} == {"no"}


async def test_what_a_resume_may_train_again_keeps_its_tokens(tmp_path: Path) -> None:
    """Attempts after the oldest checkpoint stay whole, whatever the limit says; a step before it is refused by name."""
    path = tmp_path / "ledger.db"
    async with open_ledger(path, max_gib=1e-6, oldest_checkpoint=lambda: 3) as ledger:
        await fill(ledger, range(1, 7))
        ledger.rewind(3)
        assert [len(record.rollout.completion_ids) for record in ledger.queued()] == [4097] * 12
        with pytest.raises(LedgerError, match=r"cannot go back to step 2: .*step 3 .*ledger_max_gib.*step from 3 on"):
            ledger.rewind(2)
        assert ledger.tokens_by_outcome() == {"trained": 12 * 4096, "queued": 12 * 4096}


async def test_a_ledger_that_is_behind_the_checkpoint_is_refused(tmp_path: Path) -> None:
    """A ledger that was lost or put back from before would have prompts trained twice."""
    async with open_ledger(tmp_path / "ledger.db") as ledger:
        await fill(ledger, range(1, 3))
        with pytest.raises(LedgerError, match=r"checkpoint is of step 4, the ledger ends with step 2"):
            ledger.rewind(4)


async def test_statistics_say_what_the_ledger_costs(tmp_path: Path) -> None:
    """Bytes, rows, what waits, and how long a commit takes."""
    async with open_ledger(tmp_path / "ledger.db") as ledger:
        await put(ledger, big(0))
        evaluated = msgspec.structs.replace(big(1), purpose="eval", suite="mini")
        for _ in range(2):  # the second takes the place of the first
            await ledger.put_rollout(evaluated, "evaluated", admitted_version=0, step=0)
        ledger.note("admitted", "1", 0)
        facts = ledger.statistics()
    assert facts["bytes"] > 20_000
    assert (facts["rows"], facts["pending"], facts["freed"]) == (2, 1, 0)
    assert 0 < facts["commit_s_p50"] <= facts["commit_s_p99"]


async def test_the_last_notes_are_written_when_the_ledger_closes(tmp_path: Path) -> None:
    """A note waits for a write; the end of the run is one."""
    path = tmp_path / "ledger.db"
    async with open_ledger(path) as ledger:
        ledger.note("admitted", "7", 3)
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT kind, subject, value FROM notes").fetchall() == [("admitted", "7", 3)]


async def test_an_attempt_under_way_is_replaced_and_goes_with_its_record(tmp_path: Path) -> None:
    """One row a ticket, none once the attempt is recorded, and none that comes late."""
    async with open_ledger(tmp_path / "ledger.db") as ledger:
        await ledger.put_partials([begun(0, 3), begun(1, 5)])
        await ledger.put_partials([begun(0, 7)])
        assert {p.id: len(p.completion_ids) for p in ledger.partials()} == {begun(0, 0).id: 7, begun(1, 0).id: 5}
        await put(ledger, make_rollout(0))
        await ledger.put_partials([begun(0, 9)])
        assert [p.ordinal for p in ledger.partials()] == [1]
        assert ledger.tokens_by_outcome() == {"queued": 3}  # what is under way is in no account yet


async def test_a_discarded_attempt_leaves_its_tokens_in_the_accounts(tmp_path: Path) -> None:
    """They were generated, and dropped by a named cause; the attempt itself begins anew."""
    async with open_ledger(tmp_path / "ledger.db") as ledger:
        await ledger.put_partials([begun(0, 7)])
        await ledger.discard_partial(begun(0, 0).id, "config_changed")
        assert ledger.partials() == []
        await put(ledger, make_rollout(0))
        assert ledger.tokens_by_outcome() == {"queued": 3, "dropped:config_changed": 7}
        assert ledger.seen() == {0: {0: "queued"}}
