"""Neighbours of the control plane: each takes its time, and keeps on disk what the real one keeps there."""

from __future__ import annotations

import itertools
import json
import mmap
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import msgspec

from bench.crashes.plans import PROMPT_IDS, STOP_ID, TOOL_IDS, fails, is_call, is_proved, is_refused, plan
from bench.sound import SoundStatements
from fd_async.errors import EngineError, FeedbackRejected, VerifierError
from fd_async.policy.engine import Send
from fd_async.types import (
    Completion,
    Feedback,
    PushReport,
    Rollout,
    StagedWeights,
    Statement,
    StepReport,
    ToolCall,
    TrainingSample,
    Verdict,
    VersionSpan,
)

_TOKENS_AT_ONCE = 8
_TOKEN_S = 0.0005


class PlannedEngine:
    """Samples what the plan of a ticket says, a few tokens at a time, and counts them where no kill reaches."""

    def __init__(self, counter: Path, *, token_s: float = _TOKEN_S) -> None:
        self.weight_version = -1
        self.tokens = 0
        self.on_tokens: Callable[[str, int], None] = lambda request_id, at: None
        """Hears how long a completion is after every few tokens."""
        self._token_s = token_s
        self._under_way: dict[str, tuple[list[int], list[float], list[int]]] = {}
        self._count = _SharedCount(counter)

    async def generate(
        self,
        prompt_ids: list[int],
        *,
        max_tokens: int,
        temperature: float,
        top_p: float,
        request_id: str,
        seed: int | None = None,
        salvage: Callable[[Completion], None] | None = None,
    ) -> Completion:
        """Go on with the completion that `prompt_ids` ends with."""
        if request_id in self._under_way:
            raise EngineError(f"{request_id} is under way already")
        ids, logprobs, versions = self._under_way.setdefault(request_id, ([], [], []))
        full, at = plan(request_id.rsplit("-t", 1)[0]), len(prompt_ids) - len(PROMPT_IDS)
        if prompt_ids != PROMPT_IDS + full.ids[:at]:
            raise EngineError(f"{request_id}: the prompt is not what was sampled before")
        end = min(next(end for end in full.turn_ends if end > at), at + max_tokens)
        try:
            while at < end:
                await anyio.sleep(self._token_s * _TOKENS_AT_ONCE)
                upto = min(at + _TOKENS_AT_ONCE, end)
                ids += full.ids[at:upto]
                logprobs += full.logprobs[at:upto]
                versions += [self.weight_version] * (upto - at)
                self.tokens += upto - at
                self._count.add(upto - at)
                at = upto
                self.on_tokens(request_id, at)
        except BaseException:
            if salvage is not None and ids:
                salvage(_completion(ids, logprobs, versions, "abort"))
            raise
        finally:
            del self._under_way[request_id]
        return _completion(ids, logprobs, versions, "stop" if ids[-1] == STOP_ID else "length")

    def partial(self, request_id: str) -> Completion | None:
        """Return what was sampled so far."""
        ids, logprobs, versions = self._under_way.get(request_id, ([], [], []))
        return _completion(ids, logprobs, versions, "abort") if ids else None

    async def score(self, token_ids: list[int]) -> list[float]:
        raise AssertionError("nothing is scored here")

    async def push(self, staged: StagedWeights, send: Send | None = None) -> PushReport:
        """Serve the next version."""
        await anyio.sleep(0.003)
        self.weight_version = staged.version
        return PushReport(version=staged.version, stage_s=0, stall_s=0, commit_s=0, probe_s=0, probe_max_abs=0)

    def statistics(self) -> dict[str, float]:
        return {"running": len(self._under_way), "waiting": 0, "kv_usage": 0, "tokens_generated": self.tokens}


def _completion(ids: list[int], logprobs: list[float], versions: list[int], reason: Any) -> Completion:
    edges = [i for i in range(len(ids)) if i == 0 or versions[i] != versions[i - 1]] + [len(ids)]
    spans = [VersionSpan(versions[start], start, end) for start, end in itertools.pairwise(edges)]
    return Completion(token_ids=list(ids), logprobs=list(logprobs), spans=spans, finish_reason=reason)


class _SharedCount:
    """A number in a mapped file: what was added is there when the process is gone."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(bytes(8))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 8)

    def add(self, num: int) -> None:
        self._map[:] = (int.from_bytes(self._map, "little") + num).to_bytes(8, "little")


class PlannedRenderer:
    """Every prompt is the same; a turn's text tells whether it calls tools."""

    vocab_size = 150_000
    stop_token_ids = (STOP_ID,)

    def student_prompt(self, statement: Statement) -> list[int]:
        return list(PROMPT_IDS)

    def teacher_prompt(self, statement: Statement, feedback: str, max_feedback_tokens: int) -> list[int]:
        return [*PROMPT_IDS, 31] if feedback.strip() else list(PROMPT_IDS)

    def decode(self, ids: list[int]) -> str:
        return f"{'call' if is_call(ids) else 'end'} {' '.join(map(str, ids))}"

    def parse_tool_calls(self, text: str) -> list[ToolCall]:
        """Return a call that writes the turn's ids to a file and one that checks it."""
        if not text.startswith("call"):
            return []
        write = {"file_name": "a.lean", "code": text}
        return [
            ToolCall(name="lean_write_file", arguments=write),
            ToolCall(name="lean_check_file", arguments={"file_name": "a.lean"}),
        ]

    def tool_result_ids(self, results: list[str], *, closed: bool) -> list[int]:
        return list(TOOL_IDS)


class PlannedVerifier(SoundStatements):
    """Judges by the file alone; audits confirm."""

    def __init__(self) -> None:
        self.on_check: Callable[[str], None] = lambda code: None

    async def check(self, code: str, statement: Statement, *, caller: str = "") -> Verdict:
        """Take a few milliseconds; break under some attempts."""
        self.on_check(code)
        await anyio.sleep(random.uniform(0.001, 0.02))
        if fails(caller):
            raise VerifierError("the checker is gone")
        return Verdict(kind="proved") if is_proved(code) else Verdict(kind="failed", reason="no", output="error: no")

    async def audit(self, code: str, statement: Statement, verdict: Verdict) -> Verdict:
        if not verdict.is_proved or verdict.audit:
            return verdict
        await anyio.sleep(0.005)
        return msgspec.structs.replace(verdict, audit="fresh")

    async def canaries(self) -> None:
        """Always right."""

    def statistics(self) -> dict[str, float]:
        return dict.fromkeys(("checks", "infra_errors", "audits", "revoked", "audit_unfinished", "canaries"), 0.0)


class Buyer:
    """Buys feedback from the seller."""

    def __init__(self, socket: Path, run: str, life: int) -> None:
        self._socket, self._run, self._life = socket, run, life
        self._calls = 0

    def key(self, rollout: Rollout) -> str:
        return f"question-of-{rollout.id}"

    async def feedback(self, rollout: Rollout) -> Feedback:
        """Pay and wait for the answer; some attempts are refused unpaid."""
        if is_refused(rollout.id):
            raise FeedbackRejected("no answer for this one")
        async with await anyio.connect_unix(self._socket) as stream:
            await stream.send(f"{self._run} {self._life} {self.key(rollout)}".encode())
            text = (await stream.receive(4096)).decode()
        self._calls += 1
        return Feedback(rollout_id=rollout.id, text=text, provider="openai", prompt_hash=self.key(rollout), usd=0.01)

    def statistics(self) -> dict[str, float]:
        return {"calls": self._calls, "usd": 0.01 * self._calls}


class RememberingLearner:
    """Its weights are the list of what it was trained on."""

    def __init__(self, trained: list[str]) -> None:
        self._trained, self._snapshot = trained, list[str]()

    async def step(self, samples: list[TrainingSample], *, step: int) -> StepReport:
        """Check that what arrives is what was sampled, and remember it."""
        await anyio.sleep(0.012)
        for sample in samples:
            whole = plan(sample.rollout_id)
            length = len(sample.completion_ids)
            kept = (sample.completion_ids, sample.sampled_mask, sample.logprobs)
            assert kept == (whole.ids[:length], whole.sampled[:length], whole.logprobs[:length]), sample.rollout_id
        self._trained += [sample.rollout_id for sample in samples]
        return StepReport(step=step, metrics={"loss": 1.0 / step})

    async def stage(self, version: int, probe_ids: list[int]) -> StagedWeights:
        await anyio.sleep(0.002)
        return StagedWeights(
            version=version, path="", names=[], dtypes=[], shapes=[], offsets=[], num_bytes=0,
            block_bytes=0, sha256=[], probe_ids=probe_ids, probe_logprobs=[],
        )  # fmt: skip

    async def send(self, staged: StagedWeights, sender: str, num_workers: int) -> None:
        raise AssertionError("this engine takes no weights")

    async def restore(self, checkpoint: Path) -> None:
        raise AssertionError("no alarm asks for this here")

    async def snapshot(self) -> int:
        self._snapshot = list(self._trained)
        return 1000

    async def write(self, folder: Path) -> None:
        """Write in two halves, a moment apart: a kill finds a checkpoint half written."""
        text = json.dumps(self._snapshot)
        with (folder / "state.json").open("w") as file:
            for half in (text[: len(text) // 2], text[len(text) // 2 :]):
                file.write(half)
                file.flush()
                await anyio.sleep(0.01)

    def statistics(self) -> dict[str, float]:
        return {}


def read_state(checkpoint: Path) -> list[str]:
    """Return what the learner of a checkpoint was trained on."""
    return json.loads((checkpoint / "state.json").read_text())


@asynccontextmanager
async def start_learner(checkpoint: Path | None) -> AsyncIterator[RememberingLearner]:
    """Start from a checkpoint, or from nothing."""
    await anyio.sleep(0.05)
    yield RememberingLearner(read_state(checkpoint) if checkpoint else [])
