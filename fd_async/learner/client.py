"""The learner as the controller uses it: start, step, stage, send, save, export. Imports no torch.

Requests go to all ranks at once and one at a time. Each has a deadline from the configuration; a rank that dies
ends whatever waits and the `start_learner` block itself with LearnerRankDied.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import anyio
from anyio.abc import TaskGroup

from fd_async.config.schema import RunConfig
from fd_async.errors import FdError, LearnerError, LearnerRankDied, PreflightError
from fd_async.learner.checkpoints import read_state, resolve_checkpoint
from fd_async.learner.link import Export, Message, Reply, Save, Send, Stage, Staged, Start, Step, Stepped
from fd_async.learner.ranks import RankProcess, accept_all, free_port, spawn
from fd_async.learner.split import check_alignment, evenly_spaced, split_by_tokens
from fd_async.types import StagedWeights, StepReport, TrainingSample

_DEATH_FOLLOWS_S = 2.0
"""A peer's death shows as a broken collective elsewhere first; wait this long for the real cause."""


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
            AlignmentError: a sample's lengths disagree; nothing was trained.
            NonFiniteLoss: the loss or its gradient is not a number; weights are untouched.
            LearnerRankDied: a rank is gone.
            LearnerError: `learner.step_timeout_s` passed.
        """
        is_fd = self._config.algorithm.type == "fd"
        for sample in samples:
            check_alignment(sample, needs_teacher=is_fd)
        score_ids = evenly_spaced(samples, self._config.learner.score_tokens)
        gain_ids = evenly_spaced(samples, self._config.algorithm.gain_samples)
        shares = split_by_tokens(samples, len(self._ranks))
        started = time.monotonic()
        replies = await self._call(
            lambda rank: Step(step=step, samples=shares[rank], score_ids=score_ids, gain_ids=gain_ids),
            f"gradient step {step}",
        )
        self._statistics |= {"learner/step_s": time.monotonic() - started, "learner/step": step}
        reports = [reply.report for reply in replies if isinstance(reply, Stepped)]
        deltas = {name: values for report in reports for name, values in report.token_deltas.items()}
        return StepReport(step=step, metrics=reports[0].metrics, token_deltas=deltas)

    async def stage(self, version: int, probe_ids: list[int]) -> StagedWeights:
        """Ready the current weights for a push and score the probe (at least 2 tokens) with them.

        With `policy.push = "shm"` they are written to a file, which belongs to the learner: the next `stage` removes
        it. With "nccl" they are announced, and leave in `send`.
        """
        if len(probe_ids) < 2:
            raise LearnerError("a probe needs at least 2 token ids")
        started = time.monotonic()
        if self._config.policy.push == "nccl" and not self._address:
            self._address = f"nccl://127.0.0.1:{free_port()}"
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
            self._broken = what
            for rank in self._ranks:
                rank.dump_stacks()
            raise
        self._statistics["learner/send_s"] = time.monotonic() - started

    async def save(self, folder: Path) -> None:
        """Write the learner's part of a checkpoint into an existing folder, which the caller renames."""
        started = time.monotonic()
        await self._call(lambda rank: Save(folder=str(folder)), f"checkpoint into {folder}")
        self._statistics["learner/save_s"] = time.monotonic() - started

    async def export(self, folder: Path) -> None:
        """Write a Hugging Face folder that has been loaded once to prove it."""
        await self._call(lambda rank: Export(folder=str(folder)), f"export to {folder}")

    def statistics(self) -> dict[str, float]:
        """Return the latest timings, seconds, and sizes."""
        return dict(self._statistics)

    @property
    def pids(self) -> list[int]:
        """Process ids of the ranks."""
        return [rank.process.pid for rank in self._ranks]

    async def _call(
        self, message_for: Callable[[int], Message], what: str, *, key: str = "learner.step_timeout_s"
    ) -> list[Reply]:
        """Ask all ranks and collect their replies in rank order."""
        if self._broken:
            raise LearnerError(f"{what}: the {self._broken} broke off, and rank 0 may still be inside it; start again")
        table, _, name = key.partition(".")
        timeout_s = getattr(getattr(self._config, table), name)
        replies: list[Reply | None] = [None] * len(self._ranks)

        async def ask(index: int) -> None:
            replies[index] = await self._ranks[index].request(message_for(index))

        async with self._lock:
            try:
                with anyio.fail_after(timeout_s):
                    async with anyio.create_task_group() as group:
                        for index in range(len(self._ranks)):
                            group.start_soon(ask, index)
            except TimeoutError:
                raise await self._timed_out(what, key, timeout_s) from None
            except BaseExceptionGroup as failures:
                error = _most_telling(failures)
                if type(error) is LearnerError:
                    with anyio.move_on_after(_DEATH_FOLLOWS_S):
                        await self._died.wait()
                    error = next((rank.death for rank in self._ranks if rank.death), error)
                raise error from error.__cause__
        return [reply for reply in replies if reply is not None]

    async def _timed_out(self, what: str, key: str, timeout_s: float) -> LearnerError:
        for rank in self._ranks:
            rank.dump_stacks()
        logs = ", ".join(str(rank.log_path) for rank in self._ranks)
        return LearnerError(f"{what} took longer than {key} = {timeout_s:g} s; the stacks of all ranks are in {logs}")

    async def start(self, init_from: Path | None, resume_from: Path | None) -> None:
        """Have all ranks build their engines and audit themselves; called once by `start_learner`."""
        message = Start(
            config=self._config,
            init_from=str(init_from or ""),
            resume_from=str(resume_from or ""),
        )
        await self._call(lambda rank: message, "start of the learner", key="learner.start_timeout_s")

    async def watch(self, rank: RankProcess) -> None:
        """Raise LearnerRankDied as soon as the rank's process ends."""
        await rank.watch(self._died)


@asynccontextmanager
async def start_learner(config: RunConfig, *, run_dir: Path, resume_from: Path | None = None) -> AsyncIterator[Learner]:
    """Start the rank processes, wait until they are ready, and end them with the block.

    Weights come from `resume_from` (a checkpoint folder: everything, exactly), else from `model.init_from`
    (weights alone; the teacher starts equal to them), else from `model.path`. Logs: `run_dir/logs/learner-N.log`.

    Raises:
        PreflightError: the configuration cannot start here, or the self-audit failed.
        CheckpointError: `resume_from` or `model.init_from` is missing or does not match.
        LearnerRankDied: from inside the block too, as soon as a rank ends.
    """
    init_from = _preflight(config, resume_from)
    logs = run_dir / "logs"
    await anyio.to_thread.run_sync(lambda: logs.mkdir(parents=True, exist_ok=True))
    with tempfile.TemporaryDirectory(prefix="fd-") as private, _staging_folder() as staging:
        ranks: list[RankProcess] = []
        learner = Learner(config, ranks, staging)
        try:
            async with anyio.create_task_group() as group:
                try:
                    await _spawn_all(config, learner, ranks, Path(private) / "learner.sock", logs, group)
                    await learner.start(init_from, resume_from)
                    yield learner
                finally:
                    group.cancel_scope.cancel()
                    with anyio.CancelScope(shield=True):
                        for rank in ranks:
                            await rank.end()
        except BaseExceptionGroup as failures:
            error = _outcome(failures)
            raise error from error.__cause__


async def _spawn_all(
    config: RunConfig,
    learner: Learner,
    ranks: list[RankProcess],
    socket_path: Path,
    logs: Path,
    group: TaskGroup,
) -> None:
    """Start every rank under a watcher and wait for their connections."""
    timeout_s, port = config.learner.start_timeout_s, free_port()
    try:
        with anyio.fail_after(timeout_s):
            async with await anyio.create_unix_listener(socket_path) as listener:
                for rank in range(config.learner.ranks):
                    ranks.append(await spawn(config, rank, port, socket_path, logs / f"learner-{rank}.log"))
                    group.start_soon(learner.watch, ranks[-1])
                await accept_all(ranks, listener, group)
    except TimeoutError:
        raise LearnerError(
            f"a learner rank did not connect within learner.start_timeout_s = {timeout_s:g} s; see {logs}/learner-*.log"
        ) from None


def _preflight(config: RunConfig, resume_from: Path | None) -> Path | None:
    """Refuse what cannot start; return the checkpoint whose weights the run starts from, if any.

    A resumed run keeps the one it began with, whatever `model.init_from` means by now.
    """
    learner = config.learner
    if learner.zero_stage == 3:
        raise PreflightError("learner.zero_stage = 3 is not there yet; use 0, 1 or 2")
    if learner.gpus and len(learner.gpus) != learner.ranks:
        raise PreflightError(
            f"learner.gpus names {len(learner.gpus)} GPUs, learner.ranks = {learner.ranks}; give one GPU per rank"
        )
    if resume_from is None:
        return resolve_checkpoint(config.model.init_from).resolve() if config.model.init_from else None
    origin = read_state(resume_from).origin
    needs_origin = config.algorithm.type == "grpo" and config.algorithm.kl_weight > 0
    if not origin or not needs_origin:
        return None
    return resolve_checkpoint(origin, key=f"GRPO's reference for {resume_from}")


@contextmanager
def _staging_folder() -> Iterator[Path]:
    """Make a private folder in shared memory, and sweep those that dead controllers left behind."""
    root = Path("/dev/shm") if Path("/dev/shm").is_dir() else Path(tempfile.gettempdir())
    for old in root.glob("fd_async-*-*"):
        if not _is_alive(int(old.name.split("-")[1])):
            shutil.rmtree(old, ignore_errors=True)
    folder = root / f"fd_async-{os.getpid()}-{secrets.token_hex(4)}"
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _leaves(group: BaseExceptionGroup) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


def _most_telling(group: BaseExceptionGroup) -> BaseException:
    """Of what several ranks raised, pick the cause: a death, then a named error, then the rest."""

    def rank(error: BaseException) -> int:
        return isinstance(error, LearnerRankDied) * 2 + (isinstance(error, FdError) and type(error) is not LearnerError)

    return max(_leaves(group), key=rank)


def _outcome(group: BaseExceptionGroup) -> BaseException:
    """Undo the wrapping of this module's task group: a rank's death first, else what the block raised."""
    for error in _leaves(group):
        if isinstance(error, LearnerRankDied):
            return error
    return group.exceptions[0] if len(group.exceptions) == 1 else group
