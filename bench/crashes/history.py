"""What must hold of a run whose processes were killed, read from its ledger and its learner's state."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from bench.crashes.plans import PROMPT_IDS, plan
from bench.crashes.standins import read_state
from fd_async.data.ledger import AttemptRecord, read_attempts
from fd_async.data.ledger.packing import unpack_partial
from fd_async.learner.checkpoints import find_checkpoint, list_checkpoints
from fd_async.telemetry.sinks import read_rows
from fd_async.types import PartialRollout, Rollout, VersionSpan


class History(Struct, frozen=True):
    """Where a finished run ended, for comparison with one that nobody killed."""

    trained: list[str]
    """Rollout ids, sorted."""
    frontier: int
    """Highest ordinal with a terminal record."""
    tokens: dict[str, int]
    """Sampled tokens by outcome."""
    sampled: int
    """Tokens that the engine sampled in all processes of the run."""


class Broken(Struct, frozen=True):
    """What does not hold; all empty or 0 in a sound run."""

    skipped: list[int]
    """Ordinals up to the frontier without a terminal record."""
    repeated: list[str]
    """Rollouts that the learner was trained on twice."""
    other: list[str]
    """Anything else, in words."""


def recorded_answers(run_dir: Path) -> frozenset[str]:
    """Return the questions whose answers the ledger of a run has; no process of the run is left."""
    if not (run_dir / "ledger.db").exists():
        return frozenset()
    return frozenset(key for (key,) in _rows(run_dir, "SELECT prompt_hash FROM feedback"))


def begun_attempts(run_dir: Path) -> list[PartialRollout]:
    """Return the attempts under way that the ledger of a run knows of; no process of the run is left."""
    if not (run_dir / "ledger.db").exists():
        return []
    return [unpack_partial(*row) for row in _rows(run_dir, "SELECT body, tokens FROM partials")]


class Continued(Struct, frozen=True, kw_only=True):
    """What became of attempts that were under way at a kill and had tokens on record."""

    attempts: int
    tokens: int
    """Sampled tokens on record at a kill that the finished attempts have where they were."""
    discarded: int
    """Attempts whose tokens were given up because another configuration had sampled them."""
    other: list[str]
    """Attempts that did not go on from what was recorded, in words."""


def check_continued(run_dir: Path, begun: Sequence[Sequence[PartialRollout]]) -> Continued:
    """Compare the attempts of a finished run with what was on record of them at each kill.

    Args:
        run_dir: of the run.
        begun: what `begun_attempts` returned after each kill.
    """
    ended = {record.rollout.id: record.rollout for record in read_attempts(run_dir / "ledger.db", 10**6)}
    discarded = {name for (name,) in _rows(run_dir, "SELECT id FROM discards")}
    tokens: dict[str, int] = {}
    other: list[str] = []
    for kill, partials in enumerate(begun):
        for partial in partials:
            if partial.id in discarded:
                continue
            if problem := _break(partial, ended.get(partial.id)):
                other.append(f"{partial.id}, under way at kill {kill + 1}: {problem}")
            else:
                tokens[partial.id] = max(tokens.get(partial.id, 0), partial.num_sampled_tokens)
    given_up = discarded & {partial.id for partials in begun for partial in partials}
    return Continued(attempts=len(tokens), tokens=sum(tokens.values()), discarded=len(given_up), other=other)


def continued_figures(runs: Iterable[Continued]) -> dict[str, int]:
    """Add the continued attempts of several runs up."""
    continued = list(runs)
    return {
        "continued_attempts": sum(run.attempts for run in continued),
        "continued_tokens": sum(run.tokens for run in continued),
        "discarded_attempts": sum(run.discarded for run in continued),
    }


def _break(partial: PartialRollout, rollout: Rollout | None) -> str:
    """Say in what an attempt does not begin with what was recorded of it; "" where it does."""
    if rollout is None:
        return "it was never finished"
    length = len(partial.completion_ids)
    if rollout.prompt_ids != list(partial.prompt_ids) or rollout.completion_ids[:length] != list(
        partial.completion_ids
    ):
        return "its ids do not begin with the recorded ones"
    if rollout.logprobs[:length] != list(partial.logprobs):
        return "its log-probs do not begin with the recorded ones"
    versions = _versions(partial.spans)
    if {at: version for at, version in _versions(rollout.spans).items() if at < length} != versions:
        return "its tokens are not said to be of the weights that sampled them"
    return ""


def _versions(spans: Sequence[VersionSpan]) -> dict[int, int]:
    return {at: span.version for span in spans for at in range(span.start, span.end)}


def read_history(run_dir: Path, *, steps: int) -> tuple[History, Broken]:
    """Check a finished run from end to end."""
    other: list[str] = []
    records = read_attempts(run_dir / "ledger.db", 10**6)
    train = [record for record in records if record.rollout.purpose == "train"]
    by_ordinal = {record.rollout.ordinal for record in train if record.outcome != "queued"}
    frontier = max(by_ordinal, default=-1)
    skipped = sorted(set(range(frontier + 1)) - by_ordinal)
    learned = read_state(find_checkpoint(run_dir / "checkpoints", None))
    if max(list_checkpoints(run_dir / "checkpoints"), default=0) != steps:
        other.append(f"the last checkpoint is not of step {steps}")
    batches = [msgspec.msgpack.decode(body) for (body,) in _rows(run_dir, "SELECT rollout_ids FROM batches")]
    if [rollout for batch in batches for rollout in batch] != learned or len(batches) != steps:
        other.append("the ledger's batches are not what the learner was trained on")
    if sorted(learned) != sorted(record.rollout.id for record in train if record.outcome == "trained"):
        other.append("the attempts called trained are not those that the learner was trained on")
    other += [f"{record.rollout.id}: {problem}" for record in train if (problem := _problem(record))]
    other += _accounts(run_dir, train, steps)
    other += [f"left behind: {path.relative_to(run_dir)}" for path in _leftovers(run_dir)]
    tokens: dict[str, int] = {}
    for record in train:
        tokens[record.outcome] = tokens.get(record.outcome, 0) + record.rollout.num_sampled_tokens
    sampled = int.from_bytes((run_dir / "sampled.count").read_bytes(), "little")
    history = History(trained=sorted(learned), frontier=frontier, tokens=tokens, sampled=sampled)
    repeated = sorted({rollout for rollout in learned if learned.count(rollout) > 1})
    return history, Broken(skipped=skipped, repeated=repeated, other=other)


def _problem(record: AttemptRecord) -> str:
    """Compare an attempt, token for token, with what its ticket samples when nothing ever cuts it."""
    rollout, whole = record.rollout, plan(record.rollout.id)
    length = len(rollout.completion_ids)
    if rollout.prompt_ids != PROMPT_IDS or rollout.completion_ids != whole.ids[:length]:
        return "its ids are not those of an attempt that nothing cut"
    if rollout.logprobs != whole.logprobs[:length] or rollout.sampled_mask != whole.sampled[:length]:
        return "its log-probs or its mask are not those of an attempt that nothing cut"
    if rollout.failure != "infrastructure" and rollout.turns[-1].end not in (length, *whole.turn_ends):
        return "its last turn has no end"
    covered = [i for span in rollout.spans for i in range(span.start, span.end)]
    if covered != [i for i, own in enumerate(rollout.sampled_mask) if own]:
        return "its spans are not what it sampled"
    return ""


def _accounts(run_dir: Path, train: list[AttemptRecord], steps: int) -> list[str]:
    rows = read_rows(run_dir / "metrics.jsonl")
    problems = [f"the accounts of step {row['step']} do not close" for row in rows if not closes(row)]
    if [row["step"] for row in rows] != list(range(1, steps + 1)):
        problems.append("metrics.jsonl has not one row per step")
    trained = sum(record.rollout.num_sampled_tokens for record in train if record.outcome == "trained")
    if rows and rows[-1]["tokens/trained"] != trained:
        problems.append(f"the last row says {rows[-1]['tokens/trained']} trained tokens, the ledger {trained}")
    if any(record.outcome == "queued" for record in train):
        problems.append("attempts are queued after the end")
    if left := _rows(run_dir, "SELECT id FROM partials"):
        problems.append(f"{len(left)} attempts are under way after the end")
    return problems


def closes(row: dict[str, Any]) -> bool:
    """Say whether every generated token of a metrics row is trained, queued or dropped."""
    return row["tokens/generated"] == row["tokens/trained"] + row["tokens/queued"] + row["tokens/dropped"]


def _leftovers(run_dir: Path) -> list[Path]:
    return sorted({*run_dir.rglob("*.tmp"), *run_dir.rglob(".*.tmp")})


def _rows(run_dir: Path, query: str) -> list[tuple[Any, ...]]:
    """Ask a copy of the ledger: to open the one that a kill left would already mend it."""
    with tempfile.TemporaryDirectory() as folder:
        for path in run_dir.glob("ledger.db*"):
            shutil.copy(path, folder)
        with closing(sqlite3.connect(Path(folder) / "ledger.db")) as db:
            if not db.execute("SELECT COUNT(*) FROM sqlite_master WHERE name='partials'").fetchone()[0]:
                return []  # killed before the tables were made
            return db.execute(query).fetchall()
