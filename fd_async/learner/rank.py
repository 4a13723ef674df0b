"""A learner rank: one process, started by the controller, that answers requests until the controller is gone.

    controller ──Start──▶ join ranks ▸ load ▸ engine ▸ resume ▸ self-audit ──Done──▶
               ──Step / Stage / Send / Save / Export──▶ ... ──reply──▶
    stdin closes ▸ exit at once, whatever it is doing

RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT come from the environment. SIGUSR1 prints all stacks.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import signal
import sys
import threading
import traceback
from pathlib import Path

import msgspec
import torch

from fd_async.errors import LearnerError
from fd_async.learner import audit, saving, staging
from fd_async.learner.checkpoints import LearnerState, model_folder, read_state
from fd_async.learner.engine import Engine, effective_zero_stage, init_distributed
from fd_async.learner.link import (
    Done,
    Export,
    RankSocket,
    Request,
    Save,
    Send,
    Stage,
    Staged,
    Start,
    Step,
    Stepped,
    failure,
)
from fd_async.learner.model import Teacher, freeze, load_policy
from fd_async.learner.objectives import FeedbackDistillation, Grpo
from fd_async.learner.sending import Sending
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
        policy = load_policy(origin, config.model.dtype, device).train()
        if learner.activation_checkpointing:
            policy.lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})  # type: ignore[operator]
        self._teacher = Teacher(load_policy(origin, config.model.dtype, device)) if self._is_fd else None
        self._engine = Engine(policy, config)
        self._sending = Sending()
        self._trainer = Trainer(config, self._engine, self._objective(str(origin), device), world_size)
        self._state = LearnerState(
            step=0,
            ranks=world_size,
            zero_stage=effective_zero_stage(config),
            dtype=config.model.dtype,
            algorithm=config.algorithm.type,
            origin=start.init_from,
        )
        if start.resume_from:
            self._resume(Path(start.resume_from))
        self._audit(resumed=bool(start.resume_from))

    def step(self, request: Step) -> StepReport:
        """Take one gradient step."""
        self._sending.forget()
        report = self._trainer.step(
            request.samples, step=request.step, score_ids=request.score_ids, gain_ids=request.gain_ids
        )
        self._state = msgspec.structs.replace(self._state, step=request.step)
        return report

    def stage(self, request: Stage) -> StagedWeights | None:
        """Write the weights aside or announce them; every rank holds them whole, so rank 0 alone does it."""
        if self._rank:
            return None
        chunk_tokens = self._config.learner.lm_head_chunk_tokens
        if request.address:
            return self._sending.announce(self._engine.policy, request, chunk_tokens)
        return staging.stage(
            self._engine.policy, request.version, Path(request.folder), request.probe_ids, chunk_tokens
        )

    def send(self, request: Send) -> None:
        """Send the announced weights from rank 0."""
        if not self._rank:
            self._sending.send(self._engine.policy, request)

    def save(self, request: Save) -> None:
        """Write this rank's part of a checkpoint."""
        saving.save_checkpoint(
            Path(request.folder),
            self._state,
            self._engine,
            self._teacher,
            source=self._config.model.path,
            rank=self._rank,
        )

    def export(self, request: Export) -> None:
        """Write a Hugging Face folder from rank 0."""
        if not self._rank:
            saving.export(self._engine.policy, self._config.model.path, Path(request.folder))

    @property
    def _is_fd(self) -> bool:
        return self._config.algorithm.type == "fd"

    def _objective(self, origin: str, device: torch.device) -> FeedbackDistillation | Grpo:
        if self._teacher is not None:
            return FeedbackDistillation(self._config, self._teacher)
        has_reference = self._config.algorithm.kl_weight > 0
        reference = freeze(load_policy(origin, self._config.model.dtype, device)) if has_reference else None
        return Grpo(self._config, reference)

    def _resume(self, checkpoint: Path) -> None:
        found = read_state(checkpoint)
        saving.load_checkpoint(checkpoint, found, self._state, self._engine, self._teacher, rank=self._rank)
        self._state = found

    def _audit(self, *, resumed: bool) -> None:
        chunk_tokens = self._config.learner.lm_head_chunk_tokens
        audit.check_loss_gradient()
        audit.check_rows(self._engine.policy, chunk_tokens)
        if self._teacher is not None and not resumed:
            audit.check_teacher_equals_student(
                self._engine.policy, self._teacher.policy, self._config.algorithm.top_k, chunk_tokens
            )


def _leave_with_controller() -> None:
    """Exit when stdin closes: the controller closed it or is gone."""
    sys.stdin.buffer.read()
    os._exit(0)


def serve(link: RankSocket, rank: int, world_size: int) -> None:
    """Answer requests until the controller hangs up."""
    running: Rank | None = None
    while (request := link.receive()) is not None:
        try:
            if isinstance(request, Start):
                running = Rank(request, rank, world_size)
                link.send(Done(id=request.id))
            elif running is None:
                raise LearnerError(f"{type(request).__name__} before Start")
            else:
                link.send(_answer(running, request))
        except Exception as error:
            # Reported to the controller, which raises it; the full traceback stays in this rank's log.
            traceback.print_exc()
            link.send(failure(error, request.id))


def _answer(running: Rank, request: Request) -> Done | Stepped | Staged:
    match request:
        case Step():
            return Stepped(id=request.id, report=running.step(request))
        case Stage():
            return Staged(id=request.id, weights=running.stage(request))
        case Send():
            running.send(request)
        case Save():
            running.save(request)
        case Export():
            running.export(request)
    return Done(id=request.id)


def main() -> None:
    """Connect to the controller and serve."""
    parser = argparse.ArgumentParser(description="A learner rank; started by the controller.")
    parser.add_argument("--socket", required=True, help="Unix socket of the controller.")
    arguments = parser.parse_args()
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)
    threading.Thread(target=_leave_with_controller, daemon=True).start()
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    serve(RankSocket(arguments.socket, rank), rank, world_size)


if __name__ == "__main__":
    main()
