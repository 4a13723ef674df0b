"""A rank's part of a checkpoint: copied to memory between two steps, written by a thread during the next ones.

    Save    ▸ `take`: fragments, teacher, random state, and on rank 0 whole weights, all copied to CPU memory
    Write   ▸ `Writer.start`: a thread writes and syncs the files, then answers
    resume  ▸ `restore`: the same ranks continue bit by bit; other ranks, ZeRO stages and nodes get the same weights,
              moments, teacher and counters bit by bit, after which sums over other shards round differently. Each new
              rank seeds its random state afresh, which training does not draw from: dropout is off.

While files are written a snapshot costs CPU memory: 16 bytes per parameter over all ranks (12 without a teacher), and
the weights in the model's type on rank 0.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec
from torch import Tensor

from fd_async.errors import CheckpointError, LearnerError
from fd_async.learner.checkpoints import LearnerState, learner_folder, model_folder, read_state
from fd_async.learner.export import check_export, on_cpu, weight_sizes, whole_weights, write_model
from fd_async.learner.store import (
    failing_clearly,
    open_store,
    random_path,
    random_state,
    read_random_state,
    set_random_state,
    write_shard,
    write_tensors,
)

if TYPE_CHECKING:
    from fd_async.learner.engine import Engine
    from fd_async.learner.model import Policy
    from fd_async.learner.shadow import Shadow
    from fd_async.learner.shards import Fragment

_MOMENTS = ("exp_avg", "exp_avg_sq")


class Snapshot(NamedTuple):
    """What one rank writes; on the CPU, in memory of its own."""

    rank: int
    state: LearnerState
    fragments: dict[str, Fragment]
    """KIND/NAME; empty where another rank holds the same."""
    random: dict[str, Tensor]
    weights: dict[str, Tensor]
    """Whole, in the model's type, on rank 0 alone."""
    policy: Policy

    @property
    def num_bytes(self) -> int:
        tensors = [*self.random.values(), *self.weights.values(), *(held.values for held in self.fragments.values())]
        return sum(tensor.nbytes for tensor in tensors)


def take(engine: Engine, teacher: Shadow | None, state: LearnerState, *, rank: int, bucket_bytes: int) -> Snapshot:
    """Copy everything that this rank writes. Collective under ZeRO 3.

    Args:
        state: counters of the objective and what a resume must match; what the engine knows is filled in here.
        bucket_bytes: whole parameters that exist at once beside their copies.
    """
    state = msgspec.structs.replace(
        state,
        num_updates=engine.num_updates,
        num_shards=1 if engine.replicated else state.ranks,
        objective=dict(state.objective),
    )
    fragments: dict[str, Fragment] = {}
    if not (engine.replicated and rank):
        live = engine.states() | ({"teacher": teacher.fragments} if teacher is not None else {})
        fragments = {
            f"{kind}/{name}": fragment._replace(values=fragment.values.detach().to("cpu", copy=True))
            for kind, held in live.items()
            for name, fragment in held.items()
        }
    weights = whole_weights(engine, bucket_bytes)
    if rank == 0:
        return Snapshot(rank, state, fragments, random_state(), dict(on_cpu(weights)), engine.policy)
    for _ in weights:
        pass  # its part of gathering them
    return Snapshot(rank, state, fragments, random_state(), {}, engine.policy)


def write(snapshot: Snapshot, folder: Path, *, source: str, shard_gib: float) -> dict[str, int]:
    """Write the snapshot into an existing folder, synced; return path inside the folder -> bytes.

    Raises:
        CheckpointError: the disk is full, or the folder is not there on this node.
    """
    learner, rank = learner_folder(folder), snapshot.rank
    with failing_clearly(learner):
        learner.mkdir(exist_ok=True)
    written = [random_path(learner, rank)]
    write_tensors(written[0], snapshot.random)
    if rank < snapshot.state.num_shards:
        written.append(write_shard(learner, rank, snapshot.fragments))
    if rank == 0:
        sizes = {name: tensor.nbytes for name, tensor in snapshot.weights.items()}
        write_model(
            model_folder(folder),
            snapshot.weights.items(),
            sizes,
            policy=snapshot.policy,
            source=source,
            shard_gib=shard_gib,
        )
        written += [path for path in model_folder(folder).iterdir() if path.is_file()]
        written.append(learner / "learner.json")
        with failing_clearly(written[-1]):
            written[-1].write_bytes(msgspec.json.format(msgspec.json.encode(snapshot.state)))
    return {str(path.relative_to(folder)): path.stat().st_size for path in written}


def export(engine: Engine, folder: Path, *, rank: int, source: str, shard_gib: float, bucket_bytes: int) -> None:
    """Write a Hugging Face folder from rank 0 and load it once to prove it. Collective under ZeRO 3.

    Raises:
        CheckpointError: it cannot be written, or does not load as it is.
    """
    weights = whole_weights(engine, bucket_bytes)
    try:
        if rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            sizes = weight_sizes(engine)
            write_model(folder, on_cpu(weights), sizes, policy=engine.policy, source=source, shard_gib=shard_gib)
    finally:
        for _ in weights:
            pass  # the other ranks gather to the end, whatever went wrong here
    if rank == 0:
        check_export(folder)


class Writer:
    """Keeps the last snapshot and writes it in a thread, one at a time."""

    def __init__(self, *, source: str, shard_gib: float) -> None:
        self._source, self._shard_gib = source, shard_gib
        self._snapshot: Snapshot | None = None
        self._busy = False

    def hold(self, snapshot: Snapshot) -> None:
        """Keep a snapshot until it is written; one that was never written is dropped."""
        self._snapshot = snapshot

    def start(self, folder: Path, answer: Callable[[dict[str, int] | BaseException], None]) -> None:
        """Write the snapshot into `folder`; `answer` gets the files, or what went wrong, in the thread.

        Raises:
            LearnerError: there is no snapshot, or the one before is still being written.
        """
        if self._busy:
            raise LearnerError("asked to write a checkpoint while the one before is still being written")
        snapshot, self._snapshot = self._snapshot, None
        if snapshot is None:
            raise LearnerError("asked to write a checkpoint that was not taken")
        self._busy = True
        # Daemonic: a rank whose controller is gone leaves at once, and what it wrote never gets its final name.
        threading.Thread(target=self._run, args=(snapshot, folder, answer), name="checkpoint", daemon=True).start()

    def _run(self, snapshot: Snapshot, folder: Path, answer: Callable[[dict[str, int] | BaseException], None]) -> None:
        try:
            result = write(snapshot, folder, source=self._source, shard_gib=self._shard_gib)
        except Exception as error:
            # Reported to the controller, which raises it; the full traceback stays in this rank's log.
            traceback.print_exc()
            result = error
        self._busy = False
        answer(result)


def restore(
    checkpoint: Path, engine: Engine, teacher: Shadow | None, expected: LearnerState, *, rank: int
) -> LearnerState:
    """Take over weights, moments, teacher and, with the same number of ranks, random state. Collective.

    Everything is read before anything changes.

    Args:
        expected: what this run is; type and algorithm must match, ranks and ZeRO stage need not.

    Raises:
        CheckpointError: damaged, or written by another model, type or algorithm.
    """
    found, folder = read_state(checkpoint), learner_folder(checkpoint)
    for key, name in (("model.dtype", "dtype"), ("algorithm.type", "algorithm")):
        ours, theirs = getattr(expected, name), getattr(found, name)
        if ours != theirs:
            raise CheckpointError(
                f"{checkpoint}: written with {key} = {theirs!r}, the configuration says {ours!r}; "
                "resume with the same value, or start a new run with model.init_from"
            )
    kinds = ("master", *(_MOMENTS if found.num_updates else ()), *(("teacher",) if teacher is not None else ()))
    counts = {name: shape.numel() for name, shape in engine.shapes.items()}
    with open_store(folder, found.num_shards) as store:
        store.check(dict.fromkeys(kinds, counts))
        states = {
            kind: {
                name: store.read(f"{kind}/{name}", held.start, held.start + len(held.values))
                for name, held in engine.states()["master"].items()
            }
            for kind in kinds
        }
    random = read_random_state(random_path(folder, rank)) if found.ranks == expected.ranks else None
    average = states.pop("teacher", None)
    engine.restore(states, found.num_updates)
    if teacher is not None and average is not None:
        teacher.restore(average)
    if random is not None:
        set_random_state(random)
    return msgspec.structs.replace(found, ranks=expected.ranks, zero_stage=expected.zero_stage)
