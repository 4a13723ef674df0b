"""What the loops of one run share: the parts, and the counters that status and metrics read."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from pathlib import Path

import anyio
from msgspec import Struct

from fd_async.analysis.discovery import Discovery
from fd_async.config.schema import RunConfig
from fd_async.data.ledger import Ledger
from fd_async.data.statements import StatementOrder
from fd_async.feedback.provider import Provider
from fd_async.learner.client import Learner
from fd_async.pipeline.admission import Admission
from fd_async.pipeline.board import Board
from fd_async.pipeline.buffer import RolloutBuffer
from fd_async.policy.engine import Engine
from fd_async.rendering import Renderer
from fd_async.rollouts import RolloutRunner
from fd_async.telemetry.observers import Observers
from fd_async.telemetry.progress import Progress
from fd_async.types import Feedback, Rollout, Statement
from fd_async.verifier.verifier import Verifier


class Finished(Struct, frozen=True):
    """An attempt with everything the learner needs."""

    rollout: Rollout
    feedback: Feedback | None


class Parts(Struct, frozen=True, kw_only=True):
    """Everything that the composition root opened."""

    config: RunConfig
    run_dir: Path
    engine: Engine
    learner: Learner
    renderer: Renderer
    verifier: Verifier
    provider: Provider
    ledger: Ledger
    runner: RolloutRunner
    order: StatementOrder
    suites: Mapping[str, Sequence[Statement]]
    progress: Progress
    observers: Observers = Observers()


class RunState:
    """Mutable state of a run; touched only on the event loop."""

    def __init__(
        self,
        config: RunConfig,
        step: int,
        observers: Observers | None = None,
        *,
        stopping: anyio.Event | None = None,
        leaving: anyio.Event | None = None,
        restarts: int = 0,
    ) -> None:
        self.step = step
        self.restarts = restarts
        """How often this process has started its learner anew."""
        self.phase = "starting"
        self.error = ""
        """What ended the run, if it failed."""
        self.alarms: dict[str, str] = {}
        """Name -> text of the alarms that are raised now."""
        self.ended_by_alarm = ""
        """Set when an alarm is to end the run after the step under way."""
        self.started = anyio.current_time()
        self.stopping = stopping or anyio.Event()
        """Set when the run is to end after the step under way."""
        self.leaving = leaving or anyio.Event()
        """Set when nothing is waited for any more, paid calls included."""
        self.board = Board(observers)
        self.buffer: RolloutBuffer[Finished] = RolloutBuffer(
            batch=config.learner.prompts_per_step,
            max_staleness=0 if config.run.mode == "sync" else config.admission.max_staleness,
            group_size=config.rollout.samples_per_prompt,
            min_items=2 if config.algorithm.type == "grpo" else 1,
            version=step,
            last_version=config.run.max_steps,
        )
        self.admission: Admission | None = None
        """Set by the attempt loops, while they run."""
        self.tokens = Counter[str]()
        """Sampled training tokens by outcome: `trained`, `dropped:CAUSE`, and `queued` for recorded attempts."""
        self.tokens_generated = 0
        """Counted apart from `tokens`, whose sum it must equal."""
        self.num_dropped = Counter[str]()
        """Attempts by drop cause, over all processes of the run; those that only began anew are in `tokens` alone."""
        self.discovery = Discovery()
        self.recent_failures: deque[bool] = deque(maxlen=256)
        self.recent_solved: deque[float] = deque(maxlen=256)
        self.last_row: dict[str, float | int | None] = {}

    @property
    def tokens_dropped(self) -> int:
        return sum(count for outcome, count in self.tokens.items() if outcome.startswith("dropped"))

    def move_tokens(self, rollout: Rollout, outcome: str) -> None:
        """Move an attempt's tokens from `queued` to their terminal account; the sum never changes."""
        self.tokens["queued"] -= rollout.num_sampled_tokens
        self.tokens[outcome] += rollout.num_sampled_tokens


async def drop_attempt(parts: Parts, state: RunState, rollout: Rollout, cause: str) -> None:
    """Give a recorded attempt its terminal record: dropped, with a named cause."""
    await parts.ledger.drop(rollout.id, cause)
    state.move_tokens(rollout, f"dropped:{cause}")
    state.num_dropped[cause] += 1
