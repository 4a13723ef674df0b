"""What a finished run says of its own service times: ledger.db, metrics.jsonl and trace.json of its folder.

    attempts   tokens and tool seconds of every turn, and what an attempt took beyond both
    engine     tokens that came while n attempts were generating, apart for when the learner worked and when it did not
    learner    seconds of every step, staging and push, and how much of a step the engine was at work beside it

Engine and learner share the processors. The engine's slowdown g while the learner works is measured. The learner's
follows: with c cores and an engine of one thread, the learner has c alone and c - 1/g beside the engine.
"""

from __future__ import annotations

import gzip
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from bench.simulation.plans import Turn
from fd_async.config.load import load_config
from fd_async.config.schema import RunConfig
from fd_async.data.ledger import read_attempts
from fd_async.telemetry.sinks import read_rows
from fd_async.types import Rollout

_PIDS = {2: "learner", 4: "attempts"}
_BIN = 8
"""Attempts generating that count as alike."""


class Slice(NamedTuple):
    """What an item did from when to when, seconds."""

    item: str
    stage: str
    start: float
    end: float


class Schedule(Struct, frozen=True):
    """Of the configuration what decides who runs when."""

    mode: str
    max_staleness: int
    prompts_per_step: int
    samples_per_prompt: int
    concurrency: int
    max_num_seqs: int
    max_response_tokens: int
    algorithm: str
    steps: int


class Speed(Struct, frozen=True):
    """How long an engine step takes, by how many attempts generate; `beside` times as long while the learner works."""

    points: list[tuple[float, float]]
    """(attempts generating, seconds of a step without the learner), straight lines between."""
    beside: float | None
    """None: the learner never worked beside it."""

    def step_s(self, running: int) -> float:
        """Return the seconds of a step."""
        if running <= self.points[0][0]:
            return self.points[0][1]
        for (low, below), (high, above) in pairwise(self.points):
            if running <= high:
                return below + (above - below) * (running - low) / (high - low)
        return self.points[-1][1]


class Recording(Struct, frozen=True, kw_only=True):
    """The service times of one run."""

    name: str
    cores: int
    schedule: Schedule
    total_s: float
    """From the start of the first step to the end of the last one: engine and learner stand by then."""
    turns: list[list[Turn]]
    """By ordinal; attempts that were dropped without a turn are left out."""
    prompt_tokens: int
    speed: Speed
    learn_s: list[float]
    """As they were, beside the engine or alone."""
    overlap: list[float]
    """Share of each of them during which the engine was at work."""
    stage_s: list[float]
    rest_s: list[float]
    """Of each step beyond waiting, learning, staging and the stall of the push."""
    stall_s: list[float]

    def alone_s(self, slow: float) -> list[float]:
        """Return the seconds of each step without the engine beside it, which makes it `slow` times as long."""
        pairs = zip(self.learn_s, self.overlap, strict=True)
        return [seconds * (1.0 - share + share / slow) for seconds, share in pairs]


def slowdown_of_learner(beside: float, cores: int) -> float:
    """Return by how much the learner is slower beside an engine that is slower by `beside`."""
    return cores / (cores - 1.0 / beside) if beside > 1.0 and cores > 1 else 1.0


def seconds_of_steps(rows: Sequence[Mapping[str, Any]]) -> float:
    """Return the time from the start of the first step, after the start-up, to the end of the last one."""
    return rows[-1]["time/elapsed_s"] - rows[0]["time/elapsed_s"] + rows[0]["time/step_s"]


def load_recording(path: Path) -> Recording:
    """Read the folder of a finished run, or what `save_recording` wrote of one."""
    if path.is_file():
        return msgspec.json.decode(gzip.decompress(path.read_bytes()), type=Recording)
    return read_recording(path)


def save_recording(recording: Recording, folder: Path) -> Path:
    """Write a run's service times, a few ten kB, into `folder`."""
    path = folder / f"{recording.name}.json.gz"
    path.write_bytes(gzip.compress(msgspec.json.encode(recording), mtime=0))
    return path


def read_recording(run_dir: Path) -> Recording:
    """Read a finished run.

    Raises:
        SystemExit: the folder lacks a file, or the run has no steps.
    """
    for name in ("config.toml", "ledger.db", "metrics.jsonl", "trace.json"):
        if not (run_dir / name).is_file():
            raise SystemExit(f"{run_dir / name} is missing: name a finished run (telemetry.trace = true, the default)")
    config = load_config(run_dir / "config.toml")
    if config.algorithm.type == "fd" and config.feedback.type in ("anthropic", "openai", "self"):
        raise SystemExit(f"{run_dir}: only runs whose feedback is made at once (ground_truth, ...) can be replayed")
    rows = [row for row in read_rows(run_dir / "metrics.jsonl") if row.get("time/step_s") is not None]
    if len(rows) < 2:
        raise SystemExit(f"{run_dir}: {len(rows)} steps are too few to replay")
    records = read_attempts(run_dir / "ledger.db", 1_000_000_000)
    rollouts = sorted((r.rollout for r in records if r.rollout.purpose == "train"), key=lambda r: (r.ordinal, r.sample))
    slices = _read_trace(run_dir / "trace.json")
    learning = [(s.start, s.end) for s in slices["learner"] if s.stage == "learning"]
    generating = [s for s in slices["attempts"] if s.stage == "generating"]
    stall_s = [row["time/push_stall_s"] or 0.0 for row in rows]
    parts = ("time/wait_for_batch_s", "time/learn_s", "time/stage_s")
    return Recording(
        name=run_dir.name,
        cores=len(os.sched_getaffinity(0)),
        schedule=_schedule(config, len(rows)),
        total_s=seconds_of_steps(rows),
        turns=[_turns(rollout) for rollout in rollouts if rollout.turns],
        prompt_tokens=round(sum(len(r.prompt_ids) for r in rollouts) / len(rollouts)),
        speed=_speed(generating, {r.id: r for r in rollouts}, learning),
        learn_s=[row["time/learn_s"] for row in rows],
        overlap=_overlaps(learning[-len(rows) :], generating),
        stage_s=[row["time/stage_s"] for row in rows],
        rest_s=[
            max(0.0, row["time/step_s"] - sum(row[part] for part in parts) - stall)
            for row, stall in zip(rows, stall_s, strict=True)
        ],
        stall_s=stall_s,
    )


def _schedule(config: RunConfig, steps: int) -> Schedule:
    return Schedule(
        mode=config.run.mode,
        max_staleness=0 if config.run.mode == "sync" else config.admission.max_staleness,
        prompts_per_step=config.learner.prompts_per_step,
        samples_per_prompt=config.rollout.samples_per_prompt,
        concurrency=config.rollout.concurrency,
        max_num_seqs=config.policy.max_num_seqs,
        max_response_tokens=config.rollout.max_response_tokens,
        algorithm=config.algorithm.type,
        steps=steps,
    )


def _turns(rollout: Rollout) -> list[Turn]:
    """Turn a recorded attempt into a plan; what it took beyond engine and tools is shared out between its turns."""
    found: list[tuple[int, int, float, bool]] = []
    for turn in rollout.turns:
        if turn.role == "assistant":
            found.append((turn.end - turn.start, 0, 0.0, False))
        elif found:
            sampled, tokens, seconds, _ = found[-1]
            found[-1] = sampled, tokens + turn.end - turn.start, seconds + turn.seconds, True
    extra_s = max(0.0, rollout.seconds - rollout.generate_s - rollout.tool_s) / len(found)
    last = len(found) - 1
    return [
        Turn(
            sampled_tokens=sampled,
            tool_tokens=tokens,
            check_s=round(seconds + extra_s, 4) if has_tool else None,
            proves=has_tool and index == last,  # whatever ended it, nothing followed
        )
        for index, (sampled, tokens, seconds, has_tool) in enumerate(found)
    ]


def _read_trace(path: Path) -> dict[str, list[Slice]]:
    """Return the closed slices of the attempts' and the learner's tracks."""
    slices: dict[str, list[Slice]] = {name: [] for name in _PIDS.values()}
    stacks: dict[tuple[int, int], list[tuple[str, str, float]]] = defaultdict(list)
    for line in path.read_bytes().split(b"\n")[1:]:
        text = line.strip().rstrip(b",")
        if not text.startswith(b"{"):
            continue
        event: dict[str, Any] = msgspec.json.decode(text)
        if event["pid"] not in _PIDS or event["ph"] not in "BE":
            continue
        stack = stacks[event["pid"], event["tid"]]
        if event["ph"] == "B":
            stack.append((event["args"]["item"], event["name"], event["ts"] / 1e6))
        elif stack:
            item, stage, start = stack.pop()
            slices[_PIDS[event["pid"]]].append(Slice(item, stage, start, event["ts"] / 1e6))
    return slices


def _speed(generating: list[Slice], rollouts: dict[str, Rollout], learning: list[tuple[float, float]]) -> Speed:
    """Find the engine's step from how fast tokens came."""
    turns: dict[str, list[int]] = {
        name: [turn.end - turn.start for turn in rollout.turns if turn.role == "assistant"]
        for name, rollout in rollouts.items()
    }
    changes: list[tuple[float, int, float, int]] = []
    """(when, change of the number generating, change of their tokens per second, change of learners at work)."""
    for part in sorted(generating, key=lambda s: s.start):
        left = turns.get(part.item)
        if left and part.end > part.start:
            rate = left.pop(0) / (part.end - part.start)
            changes += [(part.start, 1, rate, 0), (part.end, -1, -rate, 0)]
    for start, end in learning:
        changes += [(start, 0, 0.0, 1), (end, 0, 0.0, -1)]
    changes.sort()
    seconds, tokens = defaultdict[tuple[int, bool], float](float), defaultdict[tuple[int, bool], float](float)
    number, rate, learners, since = 0, 0.0, 0, changes[0][0]
    for now, more, faster, learner in changes:
        if number > 0 and now > since:
            seconds[number, learners > 0] += now - since
            tokens[number, learners > 0] += rate * (now - since)
        number, rate, learners, since = number + more, rate + faster, learners + learner, now
    return _fit(seconds, tokens)


def _fit(seconds: dict[tuple[int, bool], float], tokens: dict[tuple[int, bool], float]) -> Speed:
    """Divide out how much slower the engine is beside the learner, then take each number's own step."""
    bins: dict[tuple[int, bool], list[float]] = defaultdict(lambda: [0.0, 0.0])
    for (number, shared), passed in seconds.items():
        bins[number // _BIN, shared][0] += passed * number
        bins[number // _BIN, shared][1] += tokens[number, shared]
    weight = ratio = 0.0
    for number in {n for n, _ in bins}:
        (alone_s, alone), (shared_s, shared) = bins.get((number, False), [0, 0]), bins.get((number, True), [0, 0])
        if alone > 0 and shared > 0:
            weight += min(alone_s, shared_s)
            ratio += min(alone_s, shared_s) * (shared_s / shared) / (alone_s / alone)
    beside = max(1.0, ratio / weight) if weight else None
    points = []
    for index in sorted({number // _BIN for number, _ in seconds}):
        mine = [(*key, passed) for key, passed in seconds.items() if key[0] // _BIN == index]
        sequence_s = sum(number * passed for number, _, passed in mine)
        alone_s = sum(number * passed / ((beside or 1.0) if shared else 1.0) for number, shared, passed in mine)
        sampled = sum(tokens[number, shared] for number, shared, _ in mine)
        if sampled > 0:
            mean = sum(number * number * passed for number, _, passed in mine) / sequence_s
            points.append((mean, alone_s / sampled))
    return Speed(points, beside)


def _overlaps(learning: list[tuple[float, float]], generating: list[Slice]) -> list[float]:
    """Return for each learner step the share of it during which any attempt was generating."""
    busy: list[list[float]] = []
    for part in sorted(generating, key=lambda s: s.start):
        if busy and part.start <= busy[-1][1]:
            busy[-1][1] = max(busy[-1][1], part.end)
        else:
            busy.append([part.start, part.end])
    return [
        sum(max(0.0, min(end, last) - max(start, first)) for first, last in busy) / (end - start)
        for start, end in learning
    ]
