"""The ledger: durable before use, one terminal record, exact rewind."""

from __future__ import annotations

import sqlite3
import sys
from pathlib import Path

import anyio
import msgspec
import pytest

from fd_async.data.ledger import Ledger, open_ledger, read_attempts
from fd_async.errors import LedgerError
from fd_async.types import Feedback, Rollout, Statement, TokenScores, Verdict, VersionSpan

pytestmark = pytest.mark.anyio


def make_rollout(ordinal: int, *, sample: int = 0, tokens: int = 3) -> Rollout:
    return Rollout(
        id=f"train-{ordinal:07d}-{sample:02d}",
        ordinal=ordinal,
        sample=sample,
        purpose="train",
        statement=Statement(name="t", formal_statement="theorem t : True :="),
        prompt_ids=[1, 2],
        completion_ids=[3] * tokens + [4],
        sampled_mask=[True] * tokens + [False],
        logprobs=[-0.5] * tokens + [0.0],
        spans=[VersionSpan(0, 0, tokens)],
        turns=[],
        verdict=Verdict(kind="failed", reason="no"),
        end_reason="stopped",
    )


async def put(ledger: Ledger, rollout: Rollout, outcome: str = "queued") -> None:
    await ledger.put_rollout(rollout, outcome, admitted_version=0, step=None)


async def test_a_finished_write_survives_kill_9(tmp_path: Path) -> None:
    """What `put_rollout` returned from is there after the process was killed."""
    code = (
        "import anyio, os, sys\n"
        "from pathlib import Path\n"
        "from fd_async.data.ledger import open_ledger\n"
        "from tests.unit.data.test_ledger import make_rollout, put\n"
        "async def main():\n"
        "    async with open_ledger(Path(sys.argv[1])) as ledger:\n"
        "        for i in range(20): await put(ledger, make_rollout(i))\n"
        "        os.kill(os.getpid(), 9)\n"
        "anyio.run(main)\n"
    )
    path = tmp_path / "ledger.db"
    with anyio.fail_after(60):
        done = await anyio.run_process([sys.executable, "-c", code, str(path)], check=False)
    assert done.returncode == -9
    async with open_ledger(path) as ledger:
        assert [record.rollout.ordinal for record in ledger.queued()] == list(range(20))


async def test_concurrent_writes_all_arrive(tmp_path: Path) -> None:
    """Group commit loses none of many writers."""
    async with open_ledger(tmp_path / "ledger.db") as ledger:
        async with anyio.create_task_group() as tasks:
            for ordinal in range(100):
                tasks.start_soon(put, ledger, make_rollout(ordinal))
        assert len(ledger.seen()) == 100


async def test_the_same_attempt_is_never_recorded_twice(tmp_path: Path) -> None:
    """A second record of one training ticket fails, and does not harm its neighbours."""
    async with open_ledger(tmp_path / "ledger.db") as ledger:
        await put(ledger, make_rollout(0))
        with pytest.raises(LedgerError, match="UNIQUE"):
            await put(ledger, make_rollout(0))
        await put(ledger, make_rollout(1))
        assert set(ledger.seen()) == {0, 1}


async def test_rewind_queues_batches_after_the_checkpoint_again(tmp_path: Path) -> None:
    """Batches after the step are forgotten, their attempts and paid feedback are kept."""
    async with open_ledger(tmp_path / "ledger.db") as ledger:
        for ordinal in range(4):
            await put(ledger, make_rollout(ordinal))
            await ledger.put_feedback(
                Feedback(
                    rollout_id=make_rollout(ordinal).id, text="x", provider="p", prompt_hash=f"h{ordinal}", usd=0.5
                )
            )
        await ledger.put_batch(1, [make_rollout(0).id, make_rollout(1).id], {})
        await ledger.put_batch(2, [make_rollout(2).id], {make_rollout(2).id: TokenScores(["a"], [0.1])})
        ledger.rewind(1)
        queued = ledger.queued()
        assert [record.rollout.ordinal for record in queued] == [2, 3]
        assert all(record.feedback is not None for record in queued)
        assert ledger.spent_usd() == pytest.approx(2.0)
        await ledger.put_batch(2, [make_rollout(3).id], {})
        assert ledger.tokens_by_outcome() == {"trained": 9, "queued": 3}


async def test_bought_feedback_is_found_by_its_question(tmp_path: Path) -> None:
    """The key of a question finds the text; another key does not."""
    async with open_ledger(tmp_path / "ledger.db") as ledger:
        feedback = Feedback(rollout_id="r", text="1. Do it.", provider="openai", prompt_hash="abc", usd=0.1)
        await ledger.put_feedback(feedback)
        assert await ledger.feedback_by_hash("abc") == feedback
        assert await ledger.feedback_by_hash("abd") is None


async def test_attempts_are_read_with_scores_first(tmp_path: Path) -> None:
    """The report shows scored attempts before the others, with their drop causes."""
    path = tmp_path / "ledger.db"
    async with open_ledger(path) as ledger:
        for ordinal in range(3):
            await put(ledger, make_rollout(ordinal))
        await ledger.drop(make_rollout(0).id, "no_known_proof")
        scores = TokenScores(["a", "b"], [0.0, -1.5], {1: [("Real", 0.98), ("π", 0.02)]})
        await ledger.put_batch(1, [make_rollout(1).id], {make_rollout(1).id: scores})
        records = read_attempts(path, 10)
    assert records[0].token_deltas == [0.0, -1.5]
    assert records[0].teacher_choices == {1: [("Real", 0.98), ("π", 0.02)]}
    assert {record.rollout.ordinal: record.outcome for record in records} == {
        0: "dropped:no_known_proof", 1: "trained", 2: "queued",
    }  # fmt: skip


async def test_a_file_that_is_no_ledger_is_named(tmp_path: Path) -> None:
    """The error names the file."""
    path = tmp_path / "ledger.db"
    path.write_text("this is no database, only text that is long enough to be looked at")
    with pytest.raises(LedgerError, match=r"ledger\.db: the ledger is damaged .* start a new run"):
        async with open_ledger(path):
            pass


async def test_a_second_process_is_refused(tmp_path: Path) -> None:
    """Two runs in one folder would train the same attempts."""
    path = tmp_path / "ledger.db"
    code = (
        "import anyio, sys\n"
        "from pathlib import Path\n"
        "from fd_async.data.ledger import open_ledger\n"
        "from fd_async.errors import LedgerError\n"
        "async def main():\n"
        "    try:\n"
        "        async with open_ledger(Path(sys.argv[1])): sys.exit(1)\n"
        "    except LedgerError as error: sys.exit(str(error))\n"
        "anyio.run(main)\n"
    )
    async with open_ledger(path):
        with anyio.fail_after(60):
            done = await anyio.run_process([sys.executable, "-c", code, str(path)], check=False)
    assert b"another process" in done.stderr
    async with open_ledger(path):
        pass


async def test_only_queued_attempts_are_trained_or_dropped(tmp_path: Path) -> None:
    """A second terminal record is refused, whatever asks for it."""
    async with open_ledger(tmp_path / "ledger.db") as ledger:
        await put(ledger, make_rollout(0))
        await ledger.put_batch(1, [make_rollout(0).id], {})
        with pytest.raises(LedgerError, match="queued"):
            await ledger.put_batch(2, [make_rollout(0).id], {})
        with pytest.raises(LedgerError, match="not queued"):
            await ledger.drop(make_rollout(0).id, "late")
        assert ledger.tokens_by_outcome() == {"trained": 3}


async def test_a_cancelled_write_is_finished(tmp_path: Path) -> None:
    """Feedback whose caller is cancelled while it is written is there afterwards."""
    async with open_ledger(tmp_path / "ledger.db") as ledger:
        async with anyio.create_task_group() as tasks:
            for ordinal in range(20):
                tasks.start_soon(put, ledger, make_rollout(ordinal))
            await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
        assert len(ledger.seen()) == 20


async def test_a_full_disk_is_reported_to_every_writer(tmp_path: Path) -> None:
    """A failed commit raises for each waiting write; nothing is reported as written."""
    path = tmp_path / "ledger.db"
    async with open_ledger(path) as ledger:
        await put(ledger, make_rollout(0))
        pages = ledger._connection.execute("PRAGMA page_count").fetchone()[0]
        ledger._connection.execute(f"PRAGMA max_page_count={pages}")
        big = msgspec.structs.replace(make_rollout(1), completion_ids=list(range(10**5)))
        with pytest.raises(LedgerError, match="full"):
            await put(ledger, big)
        assert set(ledger.seen()) == {0}
    assert sqlite3.connect(path).execute("SELECT COUNT(*) FROM rollouts").fetchone() == (1,)


async def test_an_audit_confirms_or_replaces_a_verdict_and_keeps_what_it_revoked(tmp_path: Path) -> None:
    """The corrected attempt is what a resume and a report read; the earlier verdict stays beside it."""
    proved = Verdict(kind="proved", toolchain="x")
    confirmed, revoked = msgspec.structs.replace(proved, audit="fresh"), Verdict(kind="revoked", audit="fresh")
    path = tmp_path / "ledger.db"
    async with open_ledger(path) as ledger:
        for ordinal, verdict in enumerate([confirmed, revoked]):
            rollout = msgspec.structs.replace(make_rollout(ordinal), verdict=proved)
            await put(ledger, rollout)
            await ledger.put_audit(msgspec.structs.replace(rollout, verdict=verdict), before=proved)
    async with open_ledger(path) as ledger:
        assert [record.rollout.verdict for record in ledger.queued()] == [confirmed, revoked]
        assert ledger.revocations() == {make_rollout(1).id: proved}


async def test_what_was_trained_or_never_recorded_cannot_be_revoked(tmp_path: Path) -> None:
    """A reward that somebody has learned from is not quietly rewritten."""
    async with open_ledger(tmp_path / "ledger.db") as ledger:
        proved = Verdict(kind="proved")
        rollout = msgspec.structs.replace(make_rollout(0), verdict=Verdict(kind="revoked"))
        with pytest.raises(LedgerError, match="audited and is not queued"):
            await ledger.put_audit(rollout, before=proved)
        await put(ledger, make_rollout(0))
        await ledger.put_batch(1, [rollout.id], {})
        with pytest.raises(LedgerError, match="audited and is not queued"):
            await ledger.put_audit(rollout, before=proved)
        assert ledger.revocations() == {}


async def test_money_of_the_fallback_is_told_apart(tmp_path: Path) -> None:
    """A resume holds each provider to its own budget."""
    async with open_ledger(tmp_path / "ledger.db") as ledger:
        for ordinal, fallback_usd in enumerate((0.0, 0.25)):
            bought = Feedback(rollout_id=make_rollout(ordinal).id, text="x", provider="p", usd=0.5)
            await ledger.put_feedback(msgspec.structs.replace(bought, fallback_usd=fallback_usd))
        await ledger.put_spend("feedback_format", 0.125)
        await ledger.put_spend("feedback_format", 0.75, fallback_usd=0.5)
        assert ledger.spent_usd() == pytest.approx(1.875)
        assert ledger.fallback_spent_usd() == pytest.approx(0.75)
