"""A run again, from its ledger: no vLLM, no Lean, no provider; the learner takes the recorded batches.

    ledger of RUN ──batch of step 1, 2, ...──▶ training loop ──▶ learner, guard, checkpoints ──▶ metrics.jsonl, ledger
                                                  │ push                                           of the replay
                                                  ▼
                                            nobody serves                 compared with RUN, row by row, bit by bit

On the CPU build the learner repeats exactly: the same batches in the same order, samples split alike, as many threads
and ranks, the same versions. Evaluations are left out, since no weights change in them. A run that was killed, resumed
or rolled back replays as one history: what was given up is no longer in its ledger.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
from msgspec import Struct

from fd_async.data.ledger.recorded import Event, read_batches, read_events, read_trained
from fd_async.errors import PreflightError
from fd_async.pipeline.buffer import Group, Note, RolloutBuffer
from fd_async.pipeline.replay_decisions import decide_again, differs_from
from fd_async.pipeline.state import Finished, Parts, RunState
from fd_async.pipeline.training import TrainingLoop
from fd_async.policy.engine import Send
from fd_async.telemetry.lag import LoopLag
from fd_async.telemetry.sinks import MetricsFile, read_rows
from fd_async.types import PushReport, StagedWeights, StepReport, TrainingSample

_REPEATED = ("train/", "staleness/mean", "staleness/max", "alarms/", "grpo/", "proofs/")
"""Columns that follow from the batches, beside the learner's own."""


class Recorded:
    """A run as its folder has it."""

    def __init__(self, run_dir: Path) -> None:
        """Read what a replay needs.

        Raises:
            LedgerError: the ledger cannot be read.
            PreflightError: there is nothing to replay.
        """
        self.run_dir = run_dir
        self.ledger = run_dir / "ledger.db"
        if not self.ledger.is_file():
            raise PreflightError(f"{run_dir} has no ledger.db: there is nothing to replay")
        self.batches = read_batches(self.ledger)
        if not self.batches:
            raise PreflightError(f"{self.ledger} holds no trained batch: there is nothing to replay")
        self.events = read_events(self.ledger)
        self.rows = read_rows(run_dir / "metrics.jsonl")

    def groups(self, step: int) -> list[Group[Finished]]:
        """Return the batch of a step as the queue gave it."""
        records = read_trained(self.ledger, self.batches[step - 1])
        return [
            Group(
                ordinal=ordinal,
                admitted_version=group[0].admitted_version,
                unresolved=0,
                items=[Finished(record.rollout, record.feedback) for record in group],
            )
            for ordinal, members in groupby(records, key=lambda record: record.rollout.ordinal)
            if (group := list(members))
        ]

    def fingerprints(self) -> list[str]:
        """Return on what the run computed, each once."""
        return list(dict.fromkeys(event.subject for event in self.events if event.kind == "started"))


class ReplayBuffer(RolloutBuffer[Finished]):
    """Gives the recorded batches; asks the run to stop when there are no more."""

    def __init__(self, parts: Parts, state: RunState, recorded: Recorded) -> None:
        super().__init__(
            batch=parts.config.learner.prompts_per_step,
            max_staleness=parts.config.admission.max_staleness,
            group_size=parts.config.rollout.samples_per_prompt,
            min_items=1,
            version=0,
            last_version=0,
        )
        self._parts, self._state, self._recorded = parts, state, recorded

    def listen(self, note: Note) -> None:
        """Tell nothing: a replay decides nothing."""

    async def cut(self) -> list[Group[Finished]]:
        """Return the batch of the next step, recorded in the replay's own ledger."""
        state, ledger = self._state, self._parts.ledger
        if state.step >= len(self._recorded.batches):
            state.stopping.set()
            await anyio.sleep_forever()
        groups = await anyio.to_thread.run_sync(self._recorded.groups, state.step + 1)
        for group in groups:
            for item in group.items:
                rollout, feedback = item.rollout, item.feedback
                await ledger.put_rollout(rollout, "queued", admitted_version=group.admitted_version, step=None)
                if feedback is not None:
                    await ledger.put_feedback(feedback)
                state.tokens["queued"] += rollout.num_sampled_tokens
                state.tokens_generated += rollout.num_sampled_tokens
        return groups


class NobodyServes:
    """An engine that takes weights and does nothing with them."""

    def __init__(self) -> None:
        self.weight_version = 0

    async def push(self, staged: StagedWeights, send: Send | None = None) -> PushReport:
        """Take a version."""
        self.weight_version = staged.version
        return PushReport(version=staged.version, stage_s=0, stall_s=0, commit_s=0, probe_s=0, probe_max_abs=0)

    def statistics(self) -> dict[str, float]:
        return {"running": 0, "waiting": 0, "kv_usage": 0, "tokens_generated": 0}


class NobodyAsked:
    """A verifier and a provider that are not there: every count is 0."""

    class _Zeros(dict[str, float]):
        def __missing__(self, key: str) -> float:
            return 0.0

    def statistics(self) -> Mapping[str, float]:
        return self._Zeros()


class WatchedLearner:
    """A learner, and the names of the columns that it reports."""

    def __init__(self, learner: Any) -> None:
        self._learner = learner
        self.columns: set[str] = set()

    async def step(self, samples: list[TrainingSample], *, step: int) -> StepReport:
        report = await self._learner.step(samples, step=step)
        self.columns |= {name for name in report.metrics if not name.startswith("time/")}
        return report

    def __getattr__(self, name: str) -> Any:
        return getattr(self._learner, name)


class Comparison(Struct, frozen=True, kw_only=True):
    """A replay beside its run."""

    num_steps: int
    num_losses: int
    """Rows of the run with a loss that is equal bit for bit."""
    num_columns: int
    num_weights: int
    """Weight versions that are equal bit for bit."""
    num_cuts: int
    """Batches that the queue cut again as it had."""
    difference: str = ""
    """The first thing that differs; empty when nothing does."""

    @property
    def text(self) -> str:
        """One line for people."""
        if self.difference:
            return f"the replay differs: {self.difference}"
        return (
            f"replayed {self.num_steps} steps, {self.num_losses} losses equal bit for bit "
            f"({self.num_columns} columns; weights of {self.num_weights} versions; {self.num_cuts} batches cut again)"
        )


async def replay_batches(
    parts: Parts, state: RunState, recorded: Recorded, *, metrics: MetricsFile, config_hash: str, probe_ids: list[int]
) -> set[str]:
    """Train the recorded batches.

    Args:
        parts: of the replay; its learner starts where the run's started.
        state: at step 0; its buffer is replaced.
        recorded: the run.
        metrics: of the replay.
        config_hash: of the replay's configuration.
        probe_ids: as in the run.

    Returns:
        The columns that the learner reports.
    """
    state.buffer = ReplayBuffer(parts, state, recorded)
    lag = LoopLag()
    training = TrainingLoop(parts, state, metrics=metrics, lag=lag, config_hash=config_hash, probe_ids=probe_ids)
    async with training.checkpoints.running(), anyio.create_task_group() as services:
        services.start_soon(lag.run)
        await training.start()
        await training.run()
        await training.finish()
        services.cancel_scope.cancel()
    assert isinstance(parts.learner, WatchedLearner), "given by whoever opened the parts"
    return parts.learner.columns


def compare(
    recorded: Recorded, rows: Sequence[Mapping[str, Any]], events: Sequence[Event], columns: set[str]
) -> Comparison:
    """Compare a replay with its run: rows, weights, and whether the queue decides again as it did.

    Args:
        recorded: the run.
        rows: of the replay's metrics.jsonl.
        events: of the replay's ledger.
        columns: of the learner.
    """
    again = {row["step"]: row for row in rows if row.get("loss") is not None}
    before = {row["step"]: row for row in recorded.rows if row.get("loss") is not None}
    has_decided = any(event.kind == "opened" for event in recorded.events)  # not if it was a replay itself
    decisions = decide_again(recorded.events)
    ordinals = [list(dict.fromkeys(int(i.split("-")[1]) for i in batch)) for batch in recorded.batches]
    mine, theirs = _weights(events), _weights(recorded.events)
    names = sorted(name for name in _names(before, again) if name in columns or name.startswith(_REPEATED))
    different = (
        _first_difference(before, again, names)
        or _different_weights(theirs, mine)
        or decisions.difference
        or (differs_from(decisions, ordinals) if has_decided else "")
    )
    return Comparison(
        num_steps=len(again),
        num_losses=sum(
            step in again and repr(row["loss"]) == repr(again[step]["loss"]) for step, row in before.items()
        ),
        num_columns=len(names),
        num_weights=sum(theirs.get(version) == value for version, value in mine.items()),
        num_cuts=decisions.num_cuts,
        difference=different,
    )


def _names(before: Mapping[int, Mapping[str, Any]], again: Mapping[int, Mapping[str, Any]]) -> set[str]:
    return {name for rows in (before, again) for row in rows.values() for name in row}


def _first_difference(
    before: Mapping[int, Mapping[str, Any]], again: Mapping[int, Mapping[str, Any]], names: Sequence[str]
) -> str:
    """Name step, column and both values; the loss comes first."""
    if not before:
        return "the run has no row with a loss: there is nothing to compare with"
    last = max(again, default=0)  # a run may be killed between its last batch and the row
    if unknown := [step for step in sorted(again) if step not in before and step < last]:
        return f"step {unknown[0]}: the replay has a row, the run has none"
    ordered = sorted(names, key=lambda name: (name != "loss", name))
    for step, row in sorted(before.items()):
        if step not in again:
            return f"step {step}: the run has a row, the replay has none"
        for name in ordered:
            old, new = row.get(name), again[step].get(name)
            if repr(old) != repr(new):
                return f"step {step}, {name}: {old!r} in the run, {new!r} in the replay"
    return ""


def _weights(events: Sequence[Event]) -> dict[int, str]:
    """Return version -> digest; a version that was published again after a resume counts as it was last."""
    return {event.value: event.subject for event in events if event.kind == "weights"}


def _different_weights(before: Mapping[int, str], again: Mapping[int, str]) -> str:
    if before and before.keys().isdisjoint(again):
        return "no weight version of the run came up in the replay"
    for version, value in sorted(before.items()):
        if version in again and again[version] != value:
            return f"weight version {version}: digest {value} in the run, {again[version]} in the replay"
    return ""
