"""Stand-ins for the renderer, Lean, the feedback model and the learner; they take time and compute nothing."""

from __future__ import annotations

import random
from pathlib import Path

import anyio
from msgspec import Struct

from bench.simulation.engine import SimulatedEngine
from bench.simulation.plans import Plans
from bench.sound import SoundStatements
from fd_async.feedback.remote import TextAnswer
from fd_async.types import StagedWeights, Statement, StepReport, ToolCall, TrainingSample, Verdict
from fd_async.verifier.repl.schedule import Costs, FairQueue, Ticket

_ADVICE = "1. Write the statement first, then check every step of the proof with the tools before going on with it."


class LeanFigures(Struct, frozen=True, kw_only=True):
    """Sources in figures.toml."""

    workers: int


class FeedbackFigures(Struct, frozen=True, kw_only=True):
    """Sources in figures.toml."""

    min_s: float
    max_s: float
    input_tokens: int
    output_tokens: int
    tokens: int
    """Of the feedback in the teacher's prompt."""


class LearnerFigures(Struct, frozen=True, kw_only=True):
    """Sources in figures.toml."""

    parameters: float
    peak_flops: float
    model_flops_utilisation: float
    passes: float
    """Floating-point operations per token and parameter of a Feedback Distillation step."""
    grpo_passes: float
    fixed_s: float
    stage_s: float


class SimulatedRenderer:
    """Prompts of the planned lengths; what a completion says is looked up by its first id."""

    vocab_size = 151_936
    stop_token_ids = frozenset[int]()

    def __init__(self, plans: Plans, engine: SimulatedEngine, grain: int, feedback_tokens: int) -> None:
        self._plans, self._engine, self._grain = plans, engine, grain
        self._feedback_ids = round(feedback_tokens / grain)

    def student_prompt(self, statement: Statement) -> list[int]:
        return [0] * max(2, round(self._plans.prompt_tokens(statement.name) / self._grain))

    def teacher_prompt(self, statement: Statement, feedback: str, max_feedback_tokens: int) -> list[int]:
        return self.student_prompt(statement) + [1] * (self._feedback_ids if feedback.strip() else 0)

    def decode(self, ids: list[int]) -> str:
        ticket, turn = self._engine.codes[ids[0]]
        return f"{ticket} {turn}"

    def parse_tool_calls(self, text: str) -> list[ToolCall]:
        ticket, turn = text.split()
        if self._plans.turns(ticket)[int(turn)].check_s is None:
            return []
        return [
            ToolCall(name="lean_write_file", arguments={"file_name": "proof.lean", "code": text}),
            ToolCall(name="lean_check_file", arguments={"file_name": "proof.lean"}),
        ]

    def tool_result_ids(self, texts: list[str], *, closed: bool) -> list[int]:
        ticket, turn = texts[-1].removeprefix("error: ").split()
        return [0] * round(self._plans.turns(ticket)[int(turn)].tool_tokens / self._grain)


class SimulatedLean(SoundStatements):
    """Workers that check for the planned seconds, served in the order of the project's own queue."""

    def __init__(self, figures: LeanFigures, plans: Plans) -> None:
        self.figures, self._plans = figures, plans
        self._free, self._costs = figures.workers, Costs()
        self._queue: FairQueue[anyio.Event] = FairQueue()
        self._last: dict[str, Verdict] = {}
        """Ticket -> the verdict of its newest file, which the end of the attempt asks for once more."""
        self.checks, self.busy_s, self.wait_s = 0, 0.0, 0.0

    async def check(self, code: str, statement: Statement, *, caller: str = "") -> Verdict:
        """Judge `TICKET TURN` as planned."""
        ticket, turn = code.split()
        if ticket in self._last and self._last[ticket].reason == code:
            return self._last.pop(ticket)
        self.checks += 1
        planned = self._plans.turns(ticket)[int(turn)]
        seconds = planned.check_s or 0.0
        place = await self._worker(caller, statement.name)
        try:
            self.busy_s += seconds
            await anyio.sleep(seconds)
        finally:
            self._queue.settle(place, seconds)
            self._costs.observe(statement.name, seconds)
            self._free += 1
            self._grant()
        verdict = Verdict(kind="proved" if planned.proves else "failed", reason=code, seconds=seconds)
        self._last[ticket] = verdict
        if planned.proves:
            del self._last[ticket]
        return verdict

    async def _worker(self, caller: str, key: str) -> Ticket[anyio.Event]:
        turn, since = anyio.Event(), anyio.current_time()
        place = self._queue.add(turn, "lean", caller, self._costs.predict(key))
        self._grant()
        try:
            await turn.wait()
        except BaseException:
            if turn.is_set():
                self._free += 1
            else:
                self._queue.leave(place)
            raise
        self.wait_s += anyio.current_time() - since
        return place

    def _grant(self) -> None:
        while self._free and (chosen := self._queue.choose(["lean"])) is not None:
            self._free -= 1
            self._queue.grant(chosen)
            chosen.item.set()

    async def audit(self, code: str, statement: Statement, verdict: Verdict) -> Verdict:
        """Audits run on other cores and hold no attempt's slot; they are left out."""
        return verdict

    async def canaries(self) -> None:
        return None

    def statistics(self) -> dict[str, float]:
        zeros = dict.fromkeys(("infra_errors", "audits", "revoked", "audit_unfinished", "canaries"), 0.0)
        busy = self.figures.workers - self._free
        return {**zeros, "checks": self.checks, "waiting": len(self._queue), "busy": busy}


class SimulatedSearch:
    """Finds nothing, at once; no plan searches."""

    async def find(self, pattern: str) -> tuple[bool, str]:
        return True, ""


class SimulatedTutor:
    """Answers after a time that the question alone decides; the project's own limits and retries stand before it."""

    def __init__(self, figures: FeedbackFigures, seed: int) -> None:
        self._figures, self._seed = figures, seed
        self.calls, self.busy_s = 0, 0.0

    async def generate_text(self, system: str, user: str, max_tokens: int) -> TextAnswer:
        """See `feedback.remote.GenerateText`."""
        seconds = random.Random(f"{self._seed}/{user}").uniform(self._figures.min_s, self._figures.max_s)
        self.calls += 1
        self.busy_s += seconds
        await anyio.sleep(seconds)
        return TextAnswer(
            text=_ADVICE, input_tokens=self._figures.input_tokens, output_tokens=self._figures.output_tokens
        )


class SimulatedLearner:
    """Takes the time of its tokens on its GPUs."""

    def __init__(self, figures: LearnerFigures, gpus: int, grain: int, algorithm: str) -> None:
        self._figures, self._gpus, self._grain = figures, gpus, grain
        self._passes = figures.passes if algorithm == "fd" else figures.grpo_passes
        self.busy_s = 0.0
        self.lengths: list[int] = []
        """Tokens of every trained completion."""

    async def step(self, samples: list[TrainingSample], *, step: int) -> StepReport:
        """Forward the teacher, forward and backward the student."""
        f = self._figures
        tokens = sum(sample.num_tokens for sample in samples) * self._grain
        flops = self._passes * f.parameters * tokens
        seconds = f.fixed_s + flops / (self._gpus * f.peak_flops * f.model_flops_utilisation)
        self.busy_s += seconds
        self.lengths += [len(sample.completion_ids) * self._grain for sample in samples]
        await anyio.sleep(seconds)
        return StepReport(step=step, metrics={"loss": 1.0})

    async def stage(self, version: int, probe_ids: list[int]) -> StagedWeights:
        """Gather the weights."""
        seconds = self.seconds_to_stage(version)
        self.busy_s += seconds
        await anyio.sleep(seconds)
        return StagedWeights(
            version=version, path="", names=[], dtypes=[], shapes=[], offsets=[], num_bytes=0,
            block_bytes=0, sha256=[], probe_ids=probe_ids, probe_logprobs=[],
        )  # fmt: skip

    def seconds_to_stage(self, version: int) -> float:
        return self._figures.stage_s

    async def send(self, staged: StagedWeights, sender: str, num_workers: int) -> None:
        return None

    async def restore(self, checkpoint: Path) -> None:
        return None

    async def snapshot(self) -> int:
        return 0

    async def write(self, folder: Path) -> None:
        return None
