"""Neighbours of the control plane that only take time, for `bench.many_rollouts`."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import anyio
import msgspec

from bench.sound import SoundStatements
from fd_async.rendering import Renderer
from fd_async.types import (
    Completion,
    Feedback,
    PushReport,
    Rollout,
    StagedWeights,
    Statement,
    StepReport,
    TrainingSample,
    Verdict,
    VersionSpan,
)

TURNS = 3
TOKENS_PER_TURN = 300


class Pace:
    """Seconds of everything, so that an attempt lasts `in_flight / rate` on average."""

    def __init__(self, in_flight: int, rate: float) -> None:
        self.attempt_s = in_flight / rate
        self._random = random.Random(0)

    def turn_s(self) -> float:
        """Generation, nine tenths of the attempt in three turns."""
        return 0.3 * self.attempt_s * self._random.uniform(0.4, 1.6)

    def check_s(self) -> float:
        return 0.1 * self.attempt_s * self._random.uniform(0.4, 1.6)


class Engine:
    """Answers a turn after its time; ids and log-probs arrive as they do from vLLM's process, as bytes to decode."""

    def __init__(self, renderer: Renderer, pace: Pace) -> None:
        self.weight_version = 0
        self._pace = pace
        self._answers = [self._answer(renderer, text) for text in _texts()]
        self._decoder = msgspec.msgpack.Decoder(tuple[list[int], list[float]])
        self.tokens_held = self.turns = self.running = self.tokens = 0

    def _answer(self, renderer: Renderer, text: str) -> bytes:
        ids = renderer._encode(text)  # a bench may look inside: nothing else makes ids of a model's own words
        filler = renderer._encode("nat ")[:1] * max(0, TOKENS_PER_TURN - len(ids) - 1)
        ids = [*filler, *ids, renderer.stop_token_ids[0]]
        return msgspec.msgpack.encode((ids, [-0.1 * (i % 50) for i in range(len(ids))]))

    async def generate(self, prompt_ids: list[int], *, request_id: str, **_: Any) -> Completion:
        turn = int(request_id.rsplit("-t", 1)[1])
        self.running += 1
        self.tokens_held += len(prompt_ids)
        try:
            await anyio.sleep(self._pace.turn_s())
        finally:
            self.running -= 1
            self.tokens_held -= len(prompt_ids)
        ids, logprobs = self._decoder.decode(self._answers[min(turn, TURNS - 1)])
        self.turns += 1
        self.tokens += len(ids)
        spans = [VersionSpan(self.weight_version, 0, len(ids))]
        return Completion(token_ids=ids, logprobs=logprobs, spans=spans, finish_reason="stop")

    def partial(self, request_id: str) -> Completion | None:
        return None

    async def push(self, staged: StagedWeights, send: Any = None) -> PushReport:
        self.weight_version = staged.version
        return PushReport(version=staged.version, stage_s=0, stall_s=0, commit_s=0, probe_s=0, probe_max_abs=0)

    def statistics(self) -> dict[str, float]:
        return {"running": self.running, "waiting": 0, "kv_usage": 0.1, "tokens_generated": self.tokens}


def _texts() -> list[str]:
    code = "theorem t (a b : Nat) : a + b = b + a := by\n  intro h\n  omega\n" * 4
    calls: list[dict[str, Any]] = [
        {"name": "lean_write_file", "arguments": {"file_name": "proof.lean", "code": code}},
        {"name": "lean_check_file", "arguments": {"file_name": "proof.lean"}},
    ]
    return [f"<tool_call>\n{json.dumps(call)}\n</tool_call>" for call in calls] + ["I give up."]


class Judge(SoundStatements):
    """Refuses every file after a while."""

    def __init__(self, pace: Pace) -> None:
        self._pace, self.checks = pace, 0

    async def check(self, code: str, statement: Statement, *, caller: str = "") -> Verdict:
        self.checks += 1
        await anyio.sleep(self._pace.check_s())
        return Verdict(kind="failed", reason="unknown identifier", output="error: unknown identifier 'h'\n" * 8)

    async def audit(self, code: str, statement: Statement, verdict: Verdict) -> Verdict:
        return verdict

    async def canaries(self) -> None:
        return None

    def statistics(self) -> dict[str, float]:
        zeros = dict.fromkeys(("infra_errors", "audits", "revoked", "audit_unfinished", "canaries"), 0.0)
        return {**zeros, "checks": self.checks, "waiting": 0, "busy": 0}


class Tutor:
    """Answers after a while."""

    def __init__(self, pace: Pace) -> None:
        self._pace, self.calls = pace, 0
        self.prompt = self.completion = 0
        """Tokens of the newest attempt; all have about as many."""

    def key(self, rollout: Rollout) -> str:
        return f"hash of {rollout.id}"

    async def feedback(self, rollout: Rollout) -> Feedback:
        self.calls += 1
        self.prompt, self.completion = len(rollout.prompt_ids), len(rollout.completion_ids)
        await anyio.sleep(self._pace.check_s())
        text = "1. Read the error and name the hypothesis that the tactic needs before using it again in the proof."
        return Feedback(
            rollout_id=rollout.id, text=text, provider="openai", prompt_hash=self.key(rollout), usd=0.001,
            input_tokens=900, output_tokens=40,
        )  # fmt: skip

    def statistics(self) -> dict[str, float]:
        return {"calls": self.calls, "answered": self.calls, "usd": 0.001 * self.calls, "in_flight": 0, "waiting": 0}


class Learner:
    """Takes half the time that a batch takes to come."""

    def __init__(self, step_s: float) -> None:
        self._step_s = step_s

    async def step(self, samples: list[TrainingSample], *, step: int) -> StepReport:
        await anyio.sleep(self._step_s)
        return StepReport(step=step, metrics={"loss": 1.0, "grad_norm": 1.0, "lr": 1e-5})

    async def stage(self, version: int, probe_ids: list[int]) -> StagedWeights:
        return StagedWeights(
            version=version, path="", names=[], dtypes=[], shapes=[], offsets=[], num_bytes=0, block_bytes=0,
            sha256=[], probe_ids=probe_ids, probe_logprobs=[],
        )  # fmt: skip

    async def send(self, staged: StagedWeights, sender: str, num_workers: int) -> None:
        return None

    async def snapshot(self) -> int:
        return 0

    async def write(self, folder: Path) -> None:
        return None

    def statistics(self) -> dict[str, float]:
        return {}


class Search:
    """Is never asked."""

    async def find(self, pattern: str) -> tuple[bool, str]:
        return True, ""
