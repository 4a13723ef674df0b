"""Rewards that do not stand: revoked before feedback, batch, metrics and pass@k, whatever ends the run in between."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import anyio
import pytest
from msgspec.structs import replace

from fd_async.algorithms.advantages import group_advantages
from fd_async.config.schema import RunConfig
from fd_async.config.schema import Verifier as VerifierTable
from fd_async.data.ledger import open_ledger, read_attempts
from fd_async.errors import VerifierError, first_cause
from fd_async.evaluation import evaluate_suite
from fd_async.telemetry.sinks import read_rows
from fd_async.types import Rollout, Statement, Ticket
from fd_async.verifier.verifier import Verifier, open_verifier
from tests.fakes import repl_poisoned
from tests.fakes.control_plane import Bench, FakeEngine, FakeRunner, make_config

pytestmark = pytest.mark.anyio

FALSE = Statement(name="bad", formal_statement="theorem bad (p q : Prop) (hp : p) : q := by sorry")
TRUE = Statement(name="good", formal_statement="theorem good (p q : Prop) (hp : p) : p ∨ q := by sorry")
FILES = {
    "bad": "theorem bad (p q : Prop) (hp : p) : q := by\n  exact hp -- {}\n",
    "good": "theorem good (p q : Prop) (hp : p) : p ∨ q := by\n  exact Or.inl hp -- fd_poison {}\n",
}


def grpo_config(**tables: dict[str, object]) -> RunConfig:
    """Groups of 3; every attempt is accepted by the warm worker."""
    return make_config(
        **{
            "run": {"max_steps": 2},
            "algorithm": {"type": "grpo"},
            "rollout": {"samples_per_prompt": 3, "concurrency": 4},
            "learner": {"prompts_per_step": 2},
            "checkpoint": {"every_steps": 0, "min_free_gib": 0.0},
            **tables,
        }
    )


class JudgedRunner(FakeRunner):
    """Attempts with files that a real verifier judges: sample 1 of each group tries a false theorem."""

    def __init__(self, engine: FakeEngine, verifier: Verifier) -> None:
        super().__init__(engine)
        self._verifier = verifier
        self.is_deceived = anyio.Event()

    async def run(self, ticket: Ticket, **options: object) -> Rollout:
        rollout = await super().run(ticket, **options)  # type: ignore[arg-type]
        statement = FALSE if ticket.sample == 1 else TRUE
        code = FILES[statement.name].format(ticket.id)
        if statement is FALSE:
            await self.is_deceived.wait()
        verdict = await self._verifier.check(code, statement, caller=ticket.id)
        self.is_deceived.set()  # the honest attempts carry the poison
        return replace(rollout, statement=statement, final_file=code, verdict=verdict, end_reason="solved")

    async def audit(self, rollout: Rollout) -> Rollout:
        assert rollout.verdict.is_proved, "the warm worker was to accept everything"
        self.audited[rollout.id] += 1
        verdict = await self._verifier.audit(rollout.final_file, rollout.statement, rollout.verdict)
        return rollout if verdict is rollout.verdict else replace(rollout, verdict=verdict)


def poisoned_table() -> VerifierTable:
    """One worker, which the first honest file poisons."""
    return VerifierTable(
        backend="minilean",
        command=[sys.executable, str(Path(repl_poisoned.__file__))],
        workers=1,
        spares=0,
        sandbox="unsandboxed",
        audit_workers=2,
    )


def demand_corrected(bench: Bench) -> None:
    """The learner saw the rewards 1, 0, 1 of every group, not 1, 1, 1."""
    for samples in bench.learner.batches.values():
        for sample in samples:
            expected = group_advantages([1.0, 0.0, 1.0], divide_by_std=False)[int(sample.rollout_id[-2:])]
            assert sample.advantage == pytest.approx(expected), sample.rollout_id


async def test_grpo_learns_from_the_revoked_reward_of_a_poisoned_worker(tmp_path: Path) -> None:
    """A real checker is deceived; advantages, pass rate and ledger are those of the audit."""
    config = grpo_config(run={"max_steps": 1}, algorithm={"type": "grpo", "advantage_std": False})
    bench = Bench(config, tmp_path)
    async with open_verifier(poisoned_table(), output_chars=400) as verifier:
        bench.verifier = verifier  # type: ignore[assignment]
        bench.runner = JudgedRunner(bench.engine, verifier)
        with anyio.fail_after(60):
            assert await bench.run() == 0
    assert bench.learner.batches
    demand_corrected(bench)
    row = read_rows(tmp_path / "metrics.jsonl")[-1]
    assert row["train/pass_rate"] == pytest.approx(2 / 3)
    assert row["lean/revoked"] >= 2
    assert row["lean/audits"] >= 6
    assert row["grpo/zero_variance_groups"] == 0
    trained = [record.rollout for record in read_attempts(tmp_path / "ledger.db", 99) if record.outcome == "trained"]
    assert {(r.sample, r.verdict.kind, r.verdict.audit) for r in trained} == {
        (0, "proved", "fresh"),
        (1, "revoked", "fresh"),
        (2, "proved", "fresh"),
    }


def revoke_the_second(bench: Bench) -> None:
    """Everything is accepted at first; the audit refuses sample 1 of each group."""
    run = bench.runner.run

    async def accept(ticket: Ticket, **options: object) -> Rollout:
        rollout = await run(ticket, **options)  # type: ignore[arg-type]
        return replace(rollout, verdict=replace(rollout.verdict, kind="proved"))

    bench.runner.run = accept  # type: ignore[method-assign, assignment]
    bench.runner.on_audit = lambda rollout: "revoked" if rollout.sample == 1 else "fresh"


_KILLED_RUN = """
import anyio, os, sys
from pathlib import Path
from tests.fakes.control_plane import Bench
from tests.unit.pipeline.test_audits import grpo_config, revoke_the_second

async def main():
    bench = Bench(grpo_config(algorithm={"type": "grpo", "advantage_std": False}), Path(sys.argv[1]))
    revoke_the_second(bench)
    audit = bench.runner.audit
    async def die(rollout):
        if sys.argv[2] == "before" and rollout.ordinal == 1 and rollout.sample == 1:
            os.kill(os.getpid(), 9)
        audited = await audit(rollout)
        if sys.argv[2] == "after" and rollout.ordinal == 1 and rollout.sample == 1:
            os.kill(os.getpid(), 9)
        return audited
    bench.runner.audit = die
    async with bench.controller() as controller:
        put = controller._parts.ledger.put_audit
        async def put_and_die(rollout, before):
            await put(rollout, before=before)
            if sys.argv[2] == "recorded" and rollout.verdict.kind == "revoked":
                os.kill(os.getpid(), 9)
        controller._parts.ledger.put_audit = put_and_die
        await controller.run()

anyio.run(main)
"""


@pytest.mark.parametrize("instant", ["before", "after", "recorded"])
async def test_kill_9_around_an_audit_loses_neither_attempt_nor_revocation(tmp_path: Path, instant: str) -> None:
    """The resume audits what was not audited, repeats no recorded audit, and trains on corrected rewards."""
    with anyio.fail_after(60):
        done = await anyio.run_process(
            [sys.executable, "-c", _KILLED_RUN, str(tmp_path), instant], check=False, env=dict(os.environ)
        )
    assert done.returncode == -9, done.stderr.decode()[-2000:]
    async with open_ledger(tmp_path / "ledger.db") as ledger:
        before = {record.rollout.id: record.rollout.verdict for record in ledger.queued()}
        revoked = ledger.revocations()
    assert (len(revoked) > 0) >= (instant == "recorded")
    assert instant == "recorded" or not before["train-0000001-01"].audit
    assert all(before[name].kind == "revoked" and verdict.is_proved for name, verdict in revoked.items())
    bench = Bench(grpo_config(algorithm={"type": "grpo", "advantage_std": False}), tmp_path)
    revoke_the_second(bench)
    with anyio.fail_after(60):
        assert await bench.run(resume=True) == 0
    demand_corrected(bench)
    assert len(bench.trained) == len(set(bench.trained)) == 12
    for name, verdict in before.items():
        assert bench.runner.audited[name] == (0 if verdict.audit else 1), name
        assert bench.runner.started[name] == 0
    async with open_ledger(tmp_path / "ledger.db") as ledger:
        assert {name[-2:] for name in ledger.revocations()} == {"01"}
        assert set(revoked) <= set(ledger.revocations())


async def test_feedback_is_asked_for_after_the_audit_and_about_its_verdict(tmp_path: Path) -> None:
    """No text that praises a revoked proof is ever bought; the pass rate and the live view count what stands."""
    bench = Bench(make_config(run={"max_steps": 1}, learner={"prompts_per_step": 6}), tmp_path)
    bench.runner.on_audit = lambda rollout: "revoked" if rollout.ordinal == 0 else "fresh"
    heard: dict[int, tuple[str, str]] = {}

    def hear(rollout: Rollout) -> None:
        heard[rollout.ordinal] = (rollout.verdict.kind, rollout.verdict.audit)

    bench.provider.on_feedback = hear
    async with bench.controller() as controller:
        assert await controller.run() == 0
        solved = list(bench.state.recent_solved)
    assert heard[0] == ("revoked", "fresh")
    assert heard[5] == ("proved", "fresh")
    assert heard[1] == ("failed", "")
    assert sum(solved) == sum(kind == "proved" for kind, _ in heard.values())


async def test_an_audit_holds_no_slot(tmp_path: Path) -> None:
    """While one attempt is audited the next is generated, and the board says who waits for whom."""
    config = make_config(run={"max_steps": 1}, rollout={"concurrency": 1}, learner={"prompts_per_step": 4})
    bench = Bench(config, tmp_path)
    seen: list[tuple[int, int]] = []
    four = anyio.Event()
    bench.runner.on_run = lambda ticket: four.set() if bench.runner.started.total() >= 4 else None

    async def audit(rollout: Rollout) -> Rollout:
        if rollout.verdict.is_proved:
            await four.wait()  # would never end if the slot were held
            seen.append((bench.runner.started.total(), bench.state.board.counts()["audit"]))
        return rollout

    bench.runner.audit = audit  # type: ignore[method-assign]
    with anyio.fail_after(20):
        assert await bench.run() == 0
    assert seen[0][0] >= 4
    assert seen[0][1] >= 1


async def test_an_unfinished_audit_leaves_the_reward_and_is_tried_again_by_a_resume(tmp_path: Path) -> None:
    """Infrastructure is never a reward of 0; the ledger does not call the proof audited."""
    config = grpo_config(run={"max_steps": 1})
    bench = Bench(config, tmp_path)
    bench.runner.on_audit = lambda rollout: ""
    assert await bench.run() == 0
    proved = [r.rollout for r in read_attempts(tmp_path / "ledger.db", 99) if r.rollout.verdict.is_proved]
    assert proved
    assert {rollout.verdict.audit for rollout in proved} == {""}
    async with open_ledger(tmp_path / "ledger.db") as ledger:
        left = {record.rollout.id for record in ledger.queued() if record.rollout.verdict.is_proved}
    second = Bench(grpo_config(run={"max_steps": 9}), tmp_path)
    async with second.controller(step=1, resume=True) as controller:
        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(controller.run)
                while not left <= set(second.runner.audited):  # noqa: ASYNC110  nothing tells of it
                    await anyio.sleep(0.01)
                tasks.cancel_scope.cancel()
    assert left <= set(second.runner.audited)


async def test_a_wrong_canary_ends_the_run_in_one_line(tmp_path: Path) -> None:
    """A judge that accepts a false statement is not trained on any further; the metric counts the canaries."""
    config = make_config(run={"max_steps": 4}, eval={"every_steps": 1, "at_start": False, "k": [1]})
    bench = Bench(config, tmp_path)
    bench.suites = {"s": [Statement(name="e", formal_statement="theorem e : True :=")]}

    def alarm() -> None:
        if bench.verifier.num_canaries > 14:
            raise VerifierError("the verifier accepted a false statement")

    bench.verifier.on_canaries = alarm
    with pytest.raises(BaseExceptionGroup) as caught:
        await bench.run()
    assert str(first_cause(caught.value)) == "the verifier accepted a false statement"
    assert [row["lean/canaries"] for row in read_rows(tmp_path / "metrics.jsonl")][-1] >= 7


async def test_pass_at_k_counts_only_what_the_audit_leaves(tmp_path: Path) -> None:
    """A revoked proof of an evaluation is unsolved, and is recorded so."""
    bench = Bench(make_config(), tmp_path)
    bench.runner.on_audit = lambda rollout: "revoked" if rollout.ordinal == 0 else "fresh"
    recorded: list[Rollout] = []

    async def record(rollout: Rollout) -> None:
        recorded.append(rollout)

    statements = [Statement(name=f"s{i}", formal_statement=f"theorem s{i} : True :=") for i in range(6)]
    result = await evaluate_suite(
        "s",
        statements,
        runner=bench.runner,  # type: ignore[arg-type]
        k=[1],
        samples=1,
        temperature=1.0,
        concurrency=2,
        record=record,
    )
    found = result.pass_at[1]
    assert found is not None
    assert found.value == pytest.approx(1 / 6)
    assert sorted(rollout.verdict.kind for rollout in recorded) == ["failed"] * 4 + ["proved", "revoked"]
