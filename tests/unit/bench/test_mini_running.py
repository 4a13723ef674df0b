"""The plan of the miniature, and what is run again after a kill; the runs themselves are replaced by short files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.mini import running
from bench.mini.conditions import PASS_AT, QUICK, Condition, Sizes, conditions, plan_text, run_dir
from bench.mini.running import (
    TRAIN_FILE,
    compare_scaling,
    fingerprint,
    free_checkpoints,
    is_done,
    missing,
    run_one,
    scaling_results,
    settings,
    write_statements,
)
from bench.mini_paper import alone_in
from examples.tiny.statements import normal_form
from fd_async.config.schema import RunConfig
from fd_async.data.statements import read_statements
from fd_async.errors import ConfigError

SIZES = Sizes()
PLAN = {condition.name: condition for condition in conditions(SIZES)}
FD = PLAN["fd"]


@pytest.fixture(autouse=True)
def train_file(tmp_path: Path) -> None:
    """Configurations name it, and are refused without it."""
    write_statements(tmp_path, Sizes(statements=24))


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int | bool | None]]:
    """Replace a run by one that writes its last row and checkpoint; returns what was asked for."""
    asked: list[tuple[str, int | bool | None]] = []

    async def run_experiment(config: RunConfig, folder: Path, resume: int | bool | None, engine: Any) -> int:
        asked.append((folder.name, resume))
        write_rows(folder, config)
        return 0

    monkeypatch.setattr(running, "run_experiment", run_experiment)
    return asked


def write_rows(folder: Path, config: RunConfig) -> None:
    """Write steps whose accuracy rises to 0.8 under Feedback Distillation and to 0.4 under GRPO; pass@k likewise."""
    folder.mkdir(parents=True, exist_ok=True)
    top = 0.8 if config.algorithm.type == "fd" else 0.4
    rows: list[dict[str, Any]] = [
        {
            "step": step, "policy/entropy": 0.1 - 0.0005 * step, "policy/teacher_kl": 0.1 / step,
            "tokens/trained": 2500 * step, "train/pass_rate": top * step / config.run.max_steps,
            "train/attempts": config.learner.prompts_per_step * config.rollout.samples_per_prompt,
        }
        for step in range(1, config.run.max_steps + 1)
    ]  # fmt: skip
    if not rows:
        which, step = Path(config.model.init_from).parts[-3], int(config.model.init_from[-6:])
        share = 0.8 * step / SIZES.fd_steps if which.startswith("fd-") else 0.4 * step / SIZES.grpo_steps
        rows = [{"step": 0} | {f"eval/x/pass@{k}": min(1.0, share * k**0.3) for k in PASS_AT}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_start(out: Path, condition: Condition, seed: int) -> None:
    """Make the folder of the checkpoint that a condition starts from."""
    start = condition.init_from(out, seed)
    if start:
        start.mkdir(parents=True, exist_ok=True)


def begin(folder: Path, condition: Condition = FD) -> None:
    """Make a folder as a run leaves it that is killed at once."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plan.json").write_text(json.dumps({"fingerprint": fingerprint(condition)}))


@pytest.mark.parametrize("sizes", [SIZES, QUICK])
def test_every_run_of_the_plan_has_a_valid_configuration(sizes: Sizes, tmp_path: Path) -> None:
    """And starts from a checkpoint that an earlier one of the plan leaves."""
    seen: dict[str, RunConfig] = {}
    for condition in conditions(sizes):
        make_start(tmp_path, condition, 2)
        config = settings(tmp_path, condition, 2, "http://127.0.0.1:1")
        assert config.run.seed == 2
        assert condition.attempts == (
            config.run.max_steps * config.learner.prompts_per_step * config.rollout.samples_per_prompt
        )
        if condition.after:
            name, step = condition.after
            first = seen[name]
            assert step % first.checkpoint.every_steps == 0 or step == first.run.max_steps
            assert config.model.init_from == str(run_dir(tmp_path, name, 2) / "checkpoints" / f"step_{step:06d}")
        seen[condition.name] = config


def test_the_tutor_is_asked_as_claude_is(tmp_path: Path) -> None:
    """The provider of the paper, at the address of the tutor."""
    feedback = settings(tmp_path, FD, 1, "http://127.0.0.1:7").feedback
    assert (feedback.type, feedback.base_url, feedback.check_answers) == ("anthropic", "http://127.0.0.1:7", True)


def test_methods_are_compared_at_the_same_number_of_attempts() -> None:
    """Both stages together cost what one method alone costs, whatever the source of the feedback."""
    assert FD.attempts == PLAN["grpo"].attempts
    for name in ("fd", "ground_truth", "lean_output"):
        first = SIZES.first_stage_steps * SIZES.prompts
        assert first + PLAN[f"grpo_over_{name}"].attempts == FD.attempts


def test_the_sweep_differs_in_retention_and_anchor_alone(tmp_path: Path) -> None:
    """All three retentions without the anchor, two with it; 0.9 with it is the main run."""
    names = [name for name in PLAN if name.startswith("ema_")] + ["fd"]
    configs = [settings(tmp_path, PLAN[name], 1, "http://127.0.0.1:1") for name in names]
    assert sorted((c.algorithm.ema_retention, c.algorithm.anchor_weight) for c in configs) == [
        (0.5, 0.0), (0.5, 1.0), (0.9, 0.0), (0.9, 1.0), (1.0, 0.0),
    ]  # fmt: skip
    assert len({(c.learner.lr, c.learner.decay, c.learner.prompts_per_step, c.feedback.type) for c in configs}) == 1


def test_the_plan_fits_the_time() -> None:
    """Three seeds below 100 minutes, the quick one below one minute."""
    assert float(plan_text(SIZES, 3).split()[-1]) < 100
    assert float(plan_text(QUICK, 1).split()[-1]) <= 1


def test_no_statement_comes_up_twice(tmp_path: Path) -> None:
    """Accuracy in training is then that on new statements."""
    assert SIZES.statements >= max(c.attempts for c in PLAN.values())
    (tmp_path / TRAIN_FILE).unlink()
    write_statements(tmp_path, Sizes(statements=300))
    train = read_statements(tmp_path / TRAIN_FILE)
    test = read_statements(Path("examples/tiny/data/test.jsonl"))
    shapes = [{normal_form(row.formal_statement) for row in rows} for rows in (train, test)]
    assert len(train) == 300
    assert not shapes[0] & shapes[1]


@pytest.mark.anyio
async def test_a_finished_run_is_not_run_again(tmp_path: Path, ran: list[Any]) -> None:
    """The second call does nothing."""
    for _ in range(2):
        await run_one(tmp_path, FD, 1, engine=None, tutor_url="http://127.0.0.1:1")  # type: ignore[arg-type]
    assert ran == [("fd-1", None)]
    assert [(c.name, seed) for c, seed in missing(tmp_path, [FD, PLAN["grpo"]], [1, 2])] == [
        ("grpo", 1), ("fd", 2), ("grpo", 2),
    ]  # fmt: skip


@pytest.mark.anyio
async def test_a_killed_run_without_a_checkpoint_begins_anew(tmp_path: Path, ran: list[Any]) -> None:
    """What it left is taken away."""
    folder = run_dir(tmp_path, "fd", 1)
    begin(folder)
    (folder / "ledger.db").write_text("half of it")
    await run_one(tmp_path, FD, 1, engine=None, tutor_url="http://127.0.0.1:1")  # type: ignore[arg-type]
    assert ran == [("fd-1", None)]
    assert not (folder / "ledger.db").exists()


@pytest.mark.anyio
async def test_a_killed_run_with_a_checkpoint_goes_on(
    tmp_path: Path, ran: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the newest one, with its ledger."""
    folder = run_dir(tmp_path, "fd", 1)
    begin(folder)
    (folder / "ledger.db").write_text("all of it")
    monkeypatch.setattr(running, "list_checkpoints", lambda _: {6: folder / "checkpoints" / "step_000006"})
    await run_one(tmp_path, FD, 1, engine=None, tutor_url="http://127.0.0.1:1")  # type: ignore[arg-type]
    assert ran == [("fd-1", True)]
    assert (folder / "ledger.db").exists()


@pytest.mark.anyio
async def test_runs_of_other_sizes_are_not_mixed_in(tmp_path: Path, ran: list[Any]) -> None:
    """One line that says what to do."""
    await run_one(tmp_path, FD, 1, engine=None, tutor_url="http://127.0.0.1:1")  # type: ignore[arg-type]
    other = next(condition for condition in conditions(Sizes(fd_steps=12)) if condition.name == "fd")
    for _ in range(2):
        with pytest.raises(ConfigError, match="other sizes or settings: name another folder with --out"):
            is_done(tmp_path, other, 1)
        (run_dir(tmp_path, "fd", 1) / "done.json").unlink(missing_ok=True)  # nor does one go on that was cut off
    assert ran == [("fd-1", None)]


def test_another_configuration_file_is_another_run(tmp_path: Path) -> None:
    """Its values decide the run; its comments do not."""
    file = tmp_path / "c.toml"
    prints = []
    for text in ("[learner]\nlr = 1.0", "[learner]\nlr = 1.0 # high", "[learner]\nlr = 2.0"):
        file.write_text(text)
        prints.append(fingerprint(Condition("x", "x", str(file))))
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.anyio
async def test_a_folder_of_someone_else_is_left_alone(tmp_path: Path, ran: list[Any]) -> None:
    """`--out .` meets the runs of the project, one of which may bear the same name."""
    folder = run_dir(tmp_path, "fd", 1)
    folder.mkdir(parents=True)
    (folder / "ledger.db").write_text("dear")
    with pytest.raises(ConfigError, match="is not of this benchmark"):
        await run_one(tmp_path, FD, 1, engine=None, tutor_url="http://127.0.0.1:1")  # type: ignore[arg-type]
    assert (folder / "ledger.db").read_text() == "dear"
    assert not ran


def test_other_statements_are_not_mixed_in(tmp_path: Path) -> None:
    """The fixture wrote 24."""
    write_statements(tmp_path, Sizes(statements=24))
    with pytest.raises(ConfigError, match="has other statements than this call needs"):
        write_statements(tmp_path, Sizes(statements=25))


def test_two_calls_do_not_share_a_folder(tmp_path: Path) -> None:
    """The second process is told; the lock ends with the first."""
    script = "import sys, pathlib, bench.mini_paper as m\nwith m.alone_in(pathlib.Path(sys.argv[1])): pass"
    command = [sys.executable, "-c", script, str(tmp_path)]
    with alone_in(tmp_path):
        second = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert "another call is running" in second.stderr
    assert subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0


def test_a_seed_that_is_over_keeps_one_checkpoint_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest; a second call finds nothing to take away."""
    monkeypatch.setattr(
        running, "list_checkpoints",
        lambda root: {int(p.name[5:]): p for p in sorted(root.iterdir())} if root.is_dir() else {},
    )  # fmt: skip
    root = run_dir(tmp_path, "fd", 1) / "checkpoints"
    for step in (6, 12, 18):
        (root / f"step_{step:06d}" / "model").mkdir(parents=True)
    for _ in range(2):
        free_checkpoints(tmp_path, SIZES, 1)
        assert [path.name for path in root.iterdir()] == ["step_000018"]


@pytest.mark.anyio
async def test_an_interrupted_run_is_not_marked_as_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal ends the benchmark, and the run goes on next time."""

    async def interrupted(*_: object, **__: object) -> int:
        return 130

    monkeypatch.setattr(running, "run_experiment", interrupted)
    with pytest.raises(KeyboardInterrupt):
        await run_one(tmp_path, FD, 1, engine=None, tutor_url="http://127.0.0.1:1")  # type: ignore[arg-type]
    assert not is_done(tmp_path, FD, 1)


@pytest.mark.anyio
async def test_pass_at_k_is_measured_where_pass_at_1_is_the_same(
    tmp_path: Path, ran: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """GRPO's best checkpoint, then that of Feedback Distillation nearest to it, and no more than needed."""
    steps = {"fd": range(6, SIZES.fd_steps + 1, 6), "grpo": range(6, SIZES.grpo_steps + 1, 6)}
    monkeypatch.setattr(
        running, "list_checkpoints",
        lambda root: dict.fromkeys(steps.get(root.parent.name.partition("-")[0], ()), root),
    )  # fmt: skip
    for name in ("fd", "grpo"):
        folder = run_dir(tmp_path, name, 1)
        for step in steps[name]:
            (folder / "checkpoints" / f"step_{step:06d}").mkdir(parents=True)
        write_rows(folder, settings(tmp_path, PLAN[name], 1, "http://127.0.0.1:1"))
        begin(folder, PLAN[name])
        (folder / "done.json").write_text("{}")
    await compare_scaling(tmp_path, SIZES, 1, engine=None)  # type: ignore[arg-type]
    found = scaling_results(tmp_path, 1)
    assert found is not None
    assert found["grpo_step"] == SIZES.grpo_steps
    assert abs(found["fd"][1] - found["grpo"][1]) <= 0.05
    assert len(ran) == 2
    await compare_scaling(tmp_path, SIZES, 1, engine=None)  # type: ignore[arg-type]
    assert len(ran) == 2
