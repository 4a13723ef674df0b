"""A learner rank: one process, started by the controller, that answers requests until the controller is gone.

    controller ──Start──▶ join ranks ▸ load ▸ engine ▸ self-audit ▸ resume ──Done──▶
               ──Step / Stage / Send / Save / Write / Restore / Export──▶ ... ──reply──▶
    controller hangs up ▸ exit at once, whatever it is doing (`link.RankSocket`)

RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT come from the environment (`entry`).
"""

from __future__ import annotations

import os
import traceback
from pathlib import Path

import msgspec
import torch

from fd_async.errors import LearnerError
from fd_async.learner import audit, saving, staging
from fd_async.learner.checkpoints import LearnerState, checkpoint_id, model_folder
from fd_async.learner.engine import Engine, effective_zero_stage, init_distributed
from fd_async.learner.feedback_distillation import FeedbackDistillation
from fd_async.learner.grpo import Grpo
from fd_async.learner.link import (
    Done,
    Export,
    RankSocket,
    Request,
    Restore,
    Save,
    Saved,
    Send,
    Stage,
    Staged,
    Start,
    Step,
    Stepped,
    Write,
    Written,
    failure,
)
from fd_async.learner.measuring import check_memory
from fd_async.learner.model import load_policy
from fd_async.learner.objectives import StepObjective
from fd_async.learner.sending import Sending
from fd_async.learner.shadow import Shadow
from fd_async.learner.trainer import Trainer
from fd_async.types import StagedWeights, StepReport


class Rank:
    """Model, engine and trainer of this process."""

    def __init__(self, start: Start, rank: int, world_size: int) -> None:
        self._config, self._rank = start.config, rank
        config, learner = start.config, start.config.learner
        if learner.cpu_threads:
            torch.set_num_threads(learner.cpu_threads)
        torch.manual_seed(config.run.seed + rank)
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if learner.gpus else torch.device("cpu")
        if learner.gpus:
            torch.cuda.set_device(device)
        init_distributed("nccl" if learner.gpus else "gloo", learner.step_timeout_s)
        origin = model_folder(Path(start.init_from)) if start.init_from else config.model.path
        zero_stage = effective_zero_stage(config)
        policy = load_policy(origin, config.model.dtype, device, stay_on_cpu=zero_stage == 3).train()
        if learner.activation_checkpointing:
            policy.lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})  # type: ignore[operator]
        self._engine = Engine(policy, config)
        self._sending = Sending()
        self._writer = saving.Writer(source=config.model.path, shard_gib=config.checkpoint.shard_gib)
        self._objective = self._make_objective()
        self._trainer = Trainer(config, self._engine, self._objective, world_size)
        self._state = LearnerState(
            num_updates=0,
            num_shards=0,
            ranks=world_size,
            zero_stage=zero_stage,
            dtype=config.model.dtype,
            algorithm=config.algorithm.type,
            origin=start.init_from,
            origin_id=checkpoint_id(Path(start.init_from)) if start.init_from else "",
        )
        check_memory(config, policy.lm.config.to_dict(), self._engine.shapes, device)  # type: ignore[operator,union-attr]
        audit.run(config, self._engine, self._objective.shadow)
        if start.resume_from:
            self.restore(Path(start.resume_from))

    def step(self, request: Step) -> StepReport:
        """Take one gradient step."""
        self._sending.forget()
        return self._trainer.step(
            request.samples,
            step=request.step,
            score_ids=request.score_ids,
            gain_ids=request.gain_ids,
            anchor_ids=request.anchor_ids,
        )

    def stage(self, request: Stage) -> StagedWeights | None:
        """Write the weights aside, or announce them where they travel without a file."""
        write = self._sending.announce if request.address else staging.stage
        chunk_tokens = self._config.learner.lm_head_chunk_tokens
        return write(self._engine, request, rank=self._rank, bucket_bytes=self._bucket_bytes, chunk_tokens=chunk_tokens)

    def send(self, request: Send) -> None:
        """Send the announced weights from rank 0."""
        self._sending.send(self._engine, request, rank=self._rank, bucket_bytes=self._bucket_bytes)

    def save(self) -> int:
        """Copy to memory what this rank writes of a checkpoint; return its bytes."""
        state = msgspec.structs.replace(self._state, objective=self._objective.progress)
        snapshot = saving.take(self._engine, self._teacher, state, rank=self._rank, bucket_bytes=self._bucket_bytes)
        self._writer.hold(snapshot)
        return snapshot.num_bytes

    def write(self, request: Write, link: RankSocket) -> None:
        """Write the copy in a thread, which answers the request."""

        def answer(result: dict[str, int] | BaseException) -> None:
            if isinstance(result, dict):
                link.send(Written(id=request.id, files=result))
            else:
                link.send(failure(result, request.id))

        self._writer.start(Path(request.folder), answer)

    def restore(self, checkpoint: Path) -> None:
        """Take over model, moments, teacher and counters of a checkpoint."""
        self._sending.forget()
        self._state = saving.restore(checkpoint, self._engine, self._teacher, self._state, rank=self._rank)
        self._objective.progress = dict(self._state.objective)

    def export(self, request: Export) -> None:
        """Write a Hugging Face folder from rank 0 and load it once to prove it."""
        saving.export(
            self._engine,
            Path(request.folder),
            rank=self._rank,
            source=self._config.model.path,
            shard_gib=self._config.checkpoint.shard_gib,
            bucket_bytes=self._bucket_bytes,
        )

    def _make_objective(self) -> StepObjective:
        """Start the teacher, or the reference, at the weights that were loaded."""
        if self._config.algorithm.type == "fd":
            return FeedbackDistillation(self._config, Shadow(self._engine.shards))
        return Grpo(self._config, Shadow(self._engine.shards) if self._config.algorithm.kl_weight > 0 else None)

    @property
    def _bucket_bytes(self) -> int:
        return self._config.learner.gather_bucket_mib << 20

    @property
    def _teacher(self) -> Shadow | None:
        return self._objective.shadow if isinstance(self._objective, FeedbackDistillation) else None


def serve(link: RankSocket, rank: int, world_size: int) -> None:
    """Answer requests until the controller hangs up."""
    running: Rank | None = None
    while True:
        request = link.receive()
        try:
            if isinstance(request, Start):
                running = Rank(request, rank, world_size)
                link.send(Done(id=request.id))
            elif running is None:
                raise LearnerError(f"{type(request).__name__} before Start")
            elif isinstance(request, Write):
                running.write(request, link)
            else:
                link.send(_answer(running, request))
        except Exception as error:
            # Reported to the controller, which raises it; the full traceback stays in this rank's log.
            traceback.print_exc()
            link.send(failure(error, request.id))


def _answer(running: Rank, request: Request) -> Done | Stepped | Staged | Saved:
    match request:
        case Step():
            return Stepped(id=request.id, report=running.step(request))
        case Stage():
            return Staged(id=request.id, weights=running.stage(request))
        case Send():
            running.send(request)
        case Save():
            return Saved(id=request.id, num_bytes=running.save())
        case Restore():
            running.restore(Path(request.folder))
        case Export():
            running.export(request)
    return Done(id=request.id)
