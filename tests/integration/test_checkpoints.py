"""Real DeepSpeed ranks: what one layout saved another continues, bit by bit; the same one repeats the next steps."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import torch

from fd_async.config.schema import RunConfig
from fd_async.learner import saving
from fd_async.learner.checkpoints import LearnerState, learner_folder, read_state
from fd_async.learner.engine import Engine, effective_zero_stage
from fd_async.learner.feedback_distillation import FeedbackDistillation
from fd_async.learner.shadow import Shadow
from fd_async.learner.split import split_by_tokens
from fd_async.learner.store import open_store
from fd_async.learner.trainer import Trainer
from tests.fakes.rank_group import run_ranks
from tests.fakes.tiny_model import write_tiny_model
from tests.fakes.tiny_policy import tiny_config, tiny_policy, tiny_samples

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SAVED, MORE = 3, 10
Layout = tuple[int, str]
"""ZeRO stage and type."""
LAYOUTS: dict[int, list[Layout]] = {
    1: [(0, "float32"), (1, "bfloat16")],
    2: [(1, "float32"), (3, "float32"), (2, "bfloat16")],
}
"""By number of ranks."""
MOVES: dict[int, list[tuple[int, Layout, Layout]]] = {
    1: [
        (2, (1, "float32"), (0, "float32")),
        (2, (3, "float32"), (0, "float32")),
        (2, (2, "bfloat16"), (3, "bfloat16")),
    ],
    2: [
        (2, (1, "float32"), (2, "float32")),
        (1, (0, "float32"), (3, "float32")),
        (2, (3, "float32"), (1, "float32")),
        (1, (1, "bfloat16"), (2, "bfloat16")),
    ],
}
"""By number of ranks that resume: ranks that saved, their layout, the new one."""


class Run:
    """Engine, teacher and trainer of one rank."""

    def __init__(self, layout: Layout, seed: int) -> None:
        world_size, self._rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
        stage, dtype = layout
        config: RunConfig = tiny_config(
            learner={"ranks": world_size, "zero_stage": stage, "lr": 1e-2},
            model={"dtype": dtype},
            algorithm={"ema_every": 2, "anchor_weight": 0.2, "anchor_every": 2, "ema_min_gain": 1e-6},
        )
        policy = tiny_policy(seed).to(getattr(torch, dtype)).train()
        self._engine = Engine(policy, config)
        self._teacher = Shadow(self._engine.shards)
        self._objective = FeedbackDistillation(config, self._teacher)
        self._trainer = Trainer(config, self._engine, self._objective, world_size)
        self._state = LearnerState(
            num_updates=0, num_shards=0, ranks=world_size, zero_stage=effective_zero_stage(config),
            dtype=dtype, algorithm="fd",
        )  # fmt: skip

    def train(self, first: int, last: int) -> list[dict[str, float]]:
        """Take the steps and return their metrics but for times."""
        reports = []
        for step in range(first, last + 1):
            samples = tiny_samples(4, seed=step)
            names = [sample.rollout_id for sample in samples]
            share = split_by_tokens(samples, self._state.ranks)[self._rank]
            report = self._trainer.step(share, step=step, gain_ids=names[:3], anchor_ids=names)
            reports.append({name: value for name, value in report.metrics.items() if not name.startswith("time/")})
        self._state = msgspec.structs.replace(self._state, objective=self._objective.progress)
        return reports

    def save(self, folder: Path, source: str) -> None:
        folder.mkdir(exist_ok=True)
        snapshot = saving.take(self._engine, self._teacher, self._state, rank=self._rank, bucket_bytes=4000)
        saving.write(snapshot, folder, source=source, shard_gib=1.0)
        torch.distributed.barrier()

    def restore(self, folder: Path) -> None:
        self._state = saving.restore(folder, self._engine, self._teacher, self._state, rank=self._rank)
        self._objective.progress = dict(self._state.objective)


def folder_of(root: Path, layout: Layout, num_ranks: int) -> Path:
    return root / f"zero{layout[0]}-{layout[1]}-{num_ranks}"


def save_all(root: Path, source: str, layouts: list[Layout]) -> dict[Layout, list[dict[str, float]]]:
    """Train and save in every layout; return the metrics of the steps after that. Runs on every rank."""
    after = {}
    for layout in layouts:
        run = Run(layout, seed=0)
        run.train(1, SAVED)
        run.save(folder_of(root, layout, torch.distributed.get_world_size()), source)
        after[layout] = run.train(SAVED + 1, SAVED + MORE)
    return after


def resume_all(source: str, resumes: list[tuple[Path, Layout, Path, bool]]) -> list[list[dict[str, float]]]:
    """Continue each folder in a layout, save at once into another, and go on if asked. Runs on every rank."""
    results = []
    for folder, layout, again, go_on in resumes:
        run = Run(layout, seed=1)
        run.train(SAVED, SAVED)  # moments and teacher of its own, to be replaced
        run.restore(folder)
        run.save(again, source)
        results.append(run.train(SAVED + 1, SAVED + MORE) if go_on else [])
    return results


def contents(folder: Path) -> dict[str, torch.Tensor]:
    """Return every whole tensor of a checkpoint."""
    shapes = {name: p.shape for name, p in tiny_policy().lm.named_parameters()}
    counts = {name: shape.numel() for name, shape in shapes.items()}
    kinds = ("master", "exp_avg", "exp_avg_sq", "teacher")
    with open_store(learner_folder(folder), read_state(folder).num_shards) as store:
        store.check(dict.fromkeys(kinds, counts))
        return {
            f"{kind}/{name}": store.read(f"{kind}/{name}", 0, num) for kind in kinds for name, num in counts.items()
        }


class Saved:
    """The folders of all layouts, and what the runs that wrote them did next."""

    def __init__(self, root: Path) -> None:
        self.root, self.source = root, str(write_tiny_model(root / "model"))
        self._after: dict[tuple[Layout, int], list[dict[str, float]]] = {}

    def after(self, layout: Layout, num_ranks: int) -> list[dict[str, float]]:
        """Return the metrics of the steps after the checkpoint, which is written by the first call."""
        if (layout, num_ranks) not in self._after:
            (first, *_) = run_ranks(num_ranks, save_all, self.root, self.source, LAYOUTS[num_ranks])
            self._after |= {(layout, num_ranks): metrics for layout, metrics in first.items()}
        return self._after[layout, num_ranks]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return Saved(tmp_path_factory.mktemp("saved"))


@pytest.mark.parametrize("num_ranks", LAYOUTS)
def test_the_same_layout_repeats_the_next_steps_bit_by_bit(saved: Saved, tmp_path: Path, num_ranks: int) -> None:
    """Loss, gradient norm, gain and all other metrics of ten more steps are the same numbers."""
    layouts = LAYOUTS[num_ranks]
    expected = [saved.after(layout, num_ranks) for layout in layouts]
    resumes = [
        (folder_of(saved.root, layout, num_ranks), layout, tmp_path / str(index), True)
        for index, layout in enumerate(layouts)
    ]
    (results, *_) = run_ranks(num_ranks, resume_all, saved.source, resumes)
    for layout, before, metrics in zip(layouts, expected, results, strict=True):
        assert len(metrics) == MORE
        assert metrics == before, layout


@pytest.mark.parametrize("num_ranks", MOVES)
def test_other_ranks_and_stages_continue_with_every_bit(saved: Saved, tmp_path: Path, num_ranks: int) -> None:
    """Weights, moments and teacher, saved again right after the resume, are the same; the next losses nearly are."""
    moves = MOVES[num_ranks]
    losses = [[row["loss"] for row in saved.after(source, writers)] for writers, source, _ in moves]
    resumes = [
        (folder_of(saved.root, source, writers), layout, tmp_path / str(index), index == 0)
        for index, (writers, source, layout) in enumerate(moves)
    ]
    (results, *_) = run_ranks(num_ranks, resume_all, saved.source, resumes)
    for folder, layout, again, _ in resumes:
        before, after = contents(folder), contents(again)
        assert [key for key in before if not torch.equal(before[key], after[key])] == [], (folder.name, layout)
    assert [row["loss"] for row in results[0]] == pytest.approx(losses[0], rel=1e-5)
