"""The learner as the controller uses it: start, step, stage, send, save, export. Imports no torch.

Requests go to all ranks at once and one at a time; writing a checkpoint goes on beside them. Each has a deadline
from the configuration; a rank that dies ends whatever waits and the `start_learner` block itself with LearnerRankDied.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, nullcontext
from pathlib import Path

import anyio

from fd_async.config.schema import RunConfig
from fd_async.errors import FdError, LearnerError, LearnerRankDied, PreflightError
from fd_async.learner import hosts
from fd_async.learner.checkpoints import check_arrived, find_again, read_state, resolve_init_from
from fd_async.learner.link import (
    Export,
    Message,
    Reply,
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
)
from fd_async.learner.ranks import RankProcess, free_port
from fd_async.learner.split import check_batch, evenly_spaced, split_by_tokens
from fd_async.learner.starting import start_ranks
from fd_async.scratch import scratch_folder
from fd_async.types import StagedWeights, StepReport, TrainingSample

_OTHERS_FOLLOW_S = 2.0
"""A death shows as a broken collective elsewhere first, and what fails on every rank does so at slightly different
times: after the first failure, wait this long for the others."""


class Learner:
    """Handle of the running ranks; made by `start_learner`."""

    def __init__(self, config: RunConfig, ranks: Sequence[RankProcess], staging: Path) -> None:
        self._config, self._ranks, self._staging = config, ranks, staging
        self._lock, self._died = anyio.Lock(), anyio.Event()
        self._address = ""
        """Where rank 0 sends weights from, fixed by the first `stage` of a run that pushes without files."""
        self._broken = ""
        """What began to send and never came back well: rank 0 may be inside it for ever."""
        self._statistics: dict[str, float] = {}

    async def step(self, samples: list[TrainingSample], *, step: int) -> StepReport:
        """Take gradient step number `step` (the first is 1) on a batch, split over ranks by tokens.

        Raises:
            AlignmentError: a sample's lengths disagree, or it is there twice; nothing was trained.
            NonFiniteLoss: the loss or its gradient is not a number; weights are untouched.
            LearnerRankDied: a rank is gone.
            LearnerError: `learner.step_timeout_s` passed.
        """
        check_batch(samples, needs_teacher=self._config.algorithm.type == "fd")
        score_ids = evenly_spaced(samples, self._config.learner.score_tokens)
        gain_ids = evenly_spaced(samples, self._config.algorithm.gain_samples)
        anchor_ids = evenly_spaced(samples, math.ceil(len(samples) * self._config.algorithm.anchor_share))
        shares = split_by_tokens(samples, len(self._ranks))
        started = time.monotonic()
        replies = await self._call(
            lambda rank: Step(
                step=step, samples=shares[rank], score_ids=score_ids, gain_ids=gain_ids, anchor_ids=anchor_ids
            ),
            f"gradient step {step}",
        )
        self._statistics |= {"learner/step_s": time.monotonic() - started, "learner/step": step}
        reports = [reply.report for reply in replies if isinstance(reply, Stepped)]
        deltas = {name: values for report in reports for name, values in report.token_deltas.items()}
        choices = {name: places for report in reports for name, places in report.teacher_choices.items()}
        return StepReport(step=step, metrics=reports[0].metrics, token_deltas=deltas, teacher_choices=choices)

    async def stage(self, version: int, probe_ids: list[int]) -> StagedWeights:
        """Ready the current weights for a push and score the probe (at least 2 tokens) with them.

        With `policy.push = "shm"` they are written to a file, which belongs to the learner: the next `stage` removes
        it. With "nccl" they are announced, and leave in `send`.
        """
        if len(probe_ids) < 2:
            raise LearnerError("a probe needs at least 2 token ids")
        started = time.monotonic()
        if self._config.policy.push == "nccl" and not self._address:
            host = await anyio.to_thread.run_sync(hosts.address_of_rank_0, self._config)
            self._address = f"nccl://{host}:{free_port()}"
        message = Stage(version=version, probe_ids=probe_ids, folder=str(self._staging), address=self._address)
        replies = await self._call(lambda rank: message, f"staging of weight version {version}")
        self._statistics["learner/stage_s"] = time.monotonic() - started
        for reply in replies:
            if isinstance(reply, Staged) and reply.weights is not None:
                self._statistics["learner/staged_bytes"] = reply.weights.num_bytes
                return reply.weights
        raise LearnerError("no learner rank staged weights")

    async def send(self, staged: StagedWeights, sender: str, num_workers: int) -> None:
        """Have rank 0 send the announced weights; goes on at the same time as the engine's receiving.

        Args:
            staged: what the last `stage` returned.
            sender: module:class that moves tensors, see `sending.Sender`.
            num_workers: processes that receive.

        Raises:
            LearnerError: nothing was sent, or not within `policy.push_timeout_s`. The learner is not usable then.
        """
        what = f"sending of weight version {staged.version}"
        message = Send(version=staged.version, address=staged.path, sender=sender, num_workers=num_workers)
        started = time.monotonic()
        try:
            await self._call(lambda rank: message, what, key="policy.push_timeout_s")
        except BaseException:
            self._broken = f"the {what}"
            for rank in self._ranks:
                rank.dump_stacks()
            raise
        self._statistics["learner/send_s"] = time.monotonic() - started

    async def snapshot(self) -> int:
        """Copy to the ranks' memory what a checkpoint of this step needs; return how many bytes it will take."""
        started = time.monotonic()
        replies = await self._call(lambda rank: Save(), "copy of weights and optimizer for a checkpoint")
        self._statistics["learner/snapshot_s"] = time.monotonic() - started
        return sum(reply.num_bytes for reply in replies if isinstance(reply, Saved))

    async def write(self, folder: Path) -> None:
        """Write the last snapshot into an existing folder, which the caller renames; steps may go on meanwhile.

        Raises:
            CheckpointError: a rank cannot write, or not where this process can see it.
        """
        started = time.monotonic()
        message = Write(folder=str(folder))
        replies = await self._call(
            lambda rank: message, f"checkpoint into {folder}", key="checkpoint.timeout_s", alone=False
        )
        files = {name: size for reply in replies if isinstance(reply, Written) for name, size in reply.files.items()}
        await anyio.to_thread.run_sync(check_arrived, folder, files)
        self._statistics["learner/save_s"] = time.monotonic() - started

    async def save(self, folder: Path) -> None:
        """Write the learner's part of a checkpoint of this step into an existing folder."""
        await self.snapshot()
        await self.write(folder)

    async def restore(self, checkpoint: Path) -> None:
        """Take over weights, moments, teacher and counters of an earlier checkpoint of this run.

        Raises:
            CheckpointError: it is damaged or of another model; ranks may differ from each other then.
        """
        await self._call(lambda rank: Restore(folder=str(checkpoint)), f"return to {checkpoint}")

    async def export(self, folder: Path) -> None:
        """Write a Hugging Face folder that has been loaded once to prove it."""
        await self._call(lambda rank: Export(folder=str(folder)), f"export to {folder}")

    def statistics(self) -> dict[str, float]:
        """Return the latest timings, seconds, and sizes."""
        return dict(self._statistics)

    @property
    def pids(self) -> list[int]:
        """Process ids of the ranks."""
        return [rank.pid for rank in self._ranks]

    async def _call(
        self,
        message_for: Callable[[int], Message],
        what: str,
        *,
        key: str = "learner.step_timeout_s",
        alone: bool = True,
    ) -> list[Reply]:
        """Ask all ranks and collect their replies in rank order; `alone` waits for the request before."""
        if self._broken:
            raise LearnerError(f"{what}: {self._broken} broke off, and a rank may still be inside it; start again")
        table, _, name = key.partition(".")
        timeout_s = getattr(getattr(self._config, table), name)
        async with self._lock if alone else nullcontext():
            outcomes = await self._ask_all(message_for, timeout_s, together=alone)
            silent = [rank for rank, outcome in zip(self._ranks, outcomes, strict=True) if outcome is None]
            errors = [outcome for outcome in outcomes if isinstance(outcome, FdError)]
            if silent and alone:
                self._broken = f"the {what}"
            if silent and not errors:
                raise await self._timed_out(what, key, timeout_s, silent)
            if errors:
                raise max(errors, key=_weight)
        return [outcome for outcome in outcomes if isinstance(outcome, Message)]

    async def _ask_all(
        self, message_for: Callable[[int], Message], timeout_s: float, *, together: bool
    ) -> list[Reply | FdError | None]:
        """Return every rank's reply or error; None for one that has not answered in time.

        Where ranks work together and one fails, the others may wait for it in a collective for ever: they have a
        moment to answer.
        """
        outcomes: list[Reply | FdError | None] = [None] * len(self._ranks)
        with anyio.move_on_after(timeout_s) as scope:

            async def ask(index: int) -> None:
                try:
                    outcomes[index] = await self._ranks[index].request(message_for(index))
                except FdError as error:
                    outcomes[index] = error
                    if together:
                        scope.deadline = min(scope.deadline, anyio.current_time() + _OTHERS_FOLLOW_S)

            async with anyio.create_task_group() as group:
                for index in range(len(self._ranks)):
                    group.start_soon(ask, index)
        return outcomes

    async def _timed_out(self, what: str, key: str, timeout_s: float, silent: Sequence[RankProcess]) -> LearnerError:
        """Say where each rank is that has not answered; their stacks go into their logs."""
        places: dict[RankProcess, str] = {}

        async def locate(rank: RankProcess) -> None:
            places[rank] = await rank.locate()

        async with anyio.create_task_group() as group:
            for rank in silent:
                group.start_soon(locate, rank)
        words = [
            f"{rank.name} is in {places[rank]}"
            if places[rank]
            else f"{rank.name} does not answer at all: stopped or hung"
            for rank in sorted(silent, key=lambda rank: bool(places[rank]))
        ]
        logs = silent[0].log_path.parent
        return LearnerError(
            f"{what} took longer than {key} = {timeout_s:g} s; {'; '.join(words)}; stacks are in {logs}"
        )

    async def start(self, init_from: Path | None, resume_from: Path | None) -> None:
        """Have all ranks build their engines and audit themselves; called once by `start_learner`."""
        message = Start(
            config=self._config,
            init_from=str(init_from or ""),
            resume_from=str(resume_from or ""),
        )
        await self._call(lambda rank: message, "start of the learner", key="learner.start_timeout_s")

    @property
    def died(self) -> anyio.Event:
        """Set as soon as a rank is gone."""
        return self._died


@asynccontextmanager
async def start_learner(
    config: RunConfig,
    *,
    run_dir: Path,
    resume_from: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> AsyncIterator[Learner]:
    """Start the rank processes, wait until they are ready, and end them with the block.

    Weights come from `resume_from` (a checkpoint folder: everything, exactly), else from `model.init_from`
    (weights alone; the teacher starts equal to them), else from `model.path`. Logs: `run_dir/logs/learner-N.log`.
    `environment` is that of the ranks; by default this process's own.

    Raises:
        PreflightError: the configuration cannot start here, or the self-audit failed.
        CheckpointError: `resume_from` or `model.init_from` is missing or does not match.
        LearnerRankDied: from inside the block too, as soon as a rank ends.
    """
    init_from = check_learner(config, resume_from)
    environment = os.environ if environment is None else environment
    logs = run_dir / "logs"
    await anyio.to_thread.run_sync(lambda: logs.mkdir(parents=True, exist_ok=True))
    with scratch_folder("learner") as private, _staging_folder(config) as staging:
        ranks: list[RankProcess] = []
        learner = Learner(config, ranks, staging)
        launcher = hosts.Launcher(logs / "learner-launcher.log")
        try:
            async with anyio.create_task_group() as group:
                try:
                    await start_ranks(config, ranks, launcher, private, run_dir, group, learner.died, environment)
                    await learner.start(init_from, resume_from)
                    yield learner
                finally:
                    group.cancel_scope.cancel()
                    with anyio.CancelScope(shield=True):
                        async with anyio.create_task_group() as ending:
                            for rank in ranks:
                                ending.start_soon(rank.end)
                        await launcher.end()
        except BaseExceptionGroup as failures:
            error = _outcome(failures)
            raise error from error.__cause__


def check_learner(config: RunConfig, resume_from: Path | None) -> Path | None:
    """Refuse what cannot start, which takes a moment; return the checkpoint whose weights the run starts from, if any.

    A resumed run keeps the one it began with, whatever `model.init_from` means by now.
    """
    learner = config.learner
    if learner.hostfile:
        hosts.check(config)
    if learner.gpus and len(learner.gpus) != learner.ranks:
        raise PreflightError(
            f"learner.gpus names {len(learner.gpus)} GPUs, learner.ranks = {learner.ranks}; give one GPU per rank"
        )
    if resume_from is None:
        return resolve_init_from(config.model.init_from) if config.model.init_from else None
    state = read_state(resume_from)
    if not state.origin or not has_reference(config):
        return None
    return find_again(
        state.origin, state.origin_id, run_dir=resume_from.absolute().parents[1], named=config.model.init_from
    )


def has_reference(config: RunConfig) -> bool:
    """Say whether the weights that a run starts from are needed in every life of it."""
    return config.algorithm.type == "grpo" and config.algorithm.kl_weight > 0


@contextmanager
def _staging_folder(config: RunConfig) -> Iterator[Path]:
    """Make a private folder for staged weights."""
    memory = Path("/dev/shm") if Path("/dev/shm").is_dir() else Path(tempfile.gettempdir())
    root = Path(config.policy.push_dir).absolute() if config.policy.push == "file" else memory
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(scratch_folder("staging", root))
        except OSError as error:
            key = "policy.push_dir" if config.policy.push == "file" else "policy.push"
            raise PreflightError(
                f"{key}: cannot make a folder for staged weights in {root}: {error.strerror}; make it writable, or "
                'name another folder with policy.push = "file" and policy.push_dir'
            ) from error
        yield folder


def _leaves(group: BaseExceptionGroup) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


def _weight(error: FdError) -> int:
    """Of what several ranks raised, the cause is a death, then a named error, then the rest."""
    return isinstance(error, LearnerRankDied) * 2 + (type(error) is not LearnerError)


def _outcome(group: BaseExceptionGroup) -> BaseException:
    """Undo the wrapping of this module's task group: a rank's death first, else what the block raised."""
    for error in _leaves(group):
        if isinstance(error, LearnerRankDied):
            return error
    return group.exceptions[0] if len(group.exceptions) == 1 else group
