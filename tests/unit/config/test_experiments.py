"""configs/experiments and configs/sweeps: what the paper states, in every run of every figure."""

from __future__ import annotations

import re
import tomllib
from functools import cache
from pathlib import Path

import pytest

from fd_async.cli import main
from fd_async.cli.sweeps.document import find_config, read_sweep
from fd_async.cli.sweeps.jobs import Job, make_jobs
from fd_async.config.files import CHECKOUT
from fd_async.config.load import dump_toml, load_config
from fd_async.config.places import evaluated
from fd_async.config.schema import RunConfig

SWEEPS = sorted((CHECKOUT / "configs" / "sweeps").glob("*.toml"))
PAPERS = [file for file in SWEEPS if file.stem != "tiny"]
EXPERIMENTS = sorted((CHECKOUT / "configs" / "experiments").glob("*.toml"))
GRPO = {
    "rollout.samples_per_prompt", "rollout.concurrency", "feedback.type", "feedback.model", "feedback.max_usd",
    "feedback.usd_per_million_input_tokens", "feedback.usd_per_million_output_tokens", "algorithm.type", "learner.lr",
}  # fmt: skip
SOURCE = {"feedback.type", "feedback.model", "feedback.max_usd"}
SELF = SOURCE | {
    "policy.gpu_memory_utilization", "policy.max_model_len", "feedback.max_output_tokens", "feedback.request_timeout_s",
    "feedback.deadline_s",
}  # fmt: skip
EMA = {"algorithm.ema_retention"}
VARIES: dict[str, set[str]] = {
    "table_01": set(),
    "figure_01": set(),
    "figure_02": {"model.init_from"},
    "figure_03": set(),
    "figure_04": SOURCE | {"model.init_from"},
    "figure_05": SELF | {"model.init_from"},
    "figure_06": EMA,
    "figure_06_anchor": EMA | {"algorithm.anchor_weight"},
    "figure_07": SOURCE | EMA | {"feedback.text"},
    "figure_08": {"rollout.tools"},
    "figure_09": {"learner.lr"},
    "figure_10": {"model.init_from"},
    "figure_11": EMA,
    "figure_11_anchor": EMA | {"algorithm.anchor_weight"},
    "figure_12": {"feedback.prompt"},
    "figure_13": SELF,
    "figure_14": SELF,
}
"""Per sweep, the keys in which its runs may differ from table 1, checkpoints apart."""


@cache
def jobs_of(name: str) -> list[Job]:
    """Resolve a shipped sweep."""
    return make_jobs(read_sweep(CHECKOUT / "configs" / "sweeps" / f"{name}.toml"))


def flat(config: RunConfig) -> dict[str, object]:
    """Return every key with its value, the name apart."""
    tables = tomllib.loads(dump_toml(config))
    found = {f"{table}.{key}": value for table, keys in tables.items() for key, value in keys.items()}
    del found["run.name"]
    return found


def differing(one: RunConfig, other: RunConfig) -> set[str]:
    before, now = flat(one), flat(other)
    return {key for key in before if before[key] != now[key]}


@cache
def base(model: str, algorithm: str) -> RunConfig:
    """Load the configuration of table 1 for a model of the paper and an algorithm."""
    overlays = [CHECKOUT / "configs/experiments/qwen3_8b.toml"] if model == "Qwen/Qwen3-8B" else []
    return load_config(CHECKOUT / f"configs/qwen35_{algorithm}.toml", overlays)


def test_there_is_a_sweep_for_every_figure() -> None:
    """Figures 1 to 14 and table 1, and the miniature."""
    names = {file.stem for file in SWEEPS}
    assert names == VARIES.keys() | {"tiny"}
    assert {f"figure_{number:02d}" for number in range(1, 15)} <= names


@pytest.mark.parametrize("file", SWEEPS, ids=lambda file: file.stem)
def test_every_run_of_every_sweep_resolves(file: Path) -> None:
    """No sweep names a missing file, an unknown key, or a checkpoint that its run does not keep."""
    jobs = jobs_of(file.stem)
    assert [job.entry.name for job in jobs] == [entry.name for entry in read_sweep(file).runs]
    labels = [job.entry.label for job in jobs]
    assert all(labels)
    assert len(set(labels)) == len(labels)


@pytest.mark.parametrize("name", VARIES)
def test_a_run_differs_from_table_1_in_nothing_but_what_the_figure_varies(name: str) -> None:
    """Everything else is that of table 1, for the model and the algorithm of the run."""
    for job in jobs_of(name):
        config = job.config
        changed = differing(base(config.model.path, config.algorithm.type), config) - {"checkpoint.keep_last"}
        assert changed <= VARIES[name], job.name


@pytest.mark.parametrize("name", VARIES)
def test_every_run_has_the_settings_of_table_1(name: str) -> None:
    """Batch, samples, top K, EMA, KL, lengths, warm-up, learning rate, unless the figure varies one of them."""
    for job in jobs_of(name):
        config = job.config
        rollout, learner, algorithm = config.rollout, config.learner, config.algorithm
        assert (learner.prompts_per_step, learner.warmup_steps, learner.decay) == (128, 50, "none"), job.name
        assert (rollout.max_response_tokens, rollout.max_prompt_tokens) == (8192, 2048), job.name
        assert evaluated(config.data) == ["minif2f", "leanworkbook#test"], job.name
        assert (config.data.num_train, config.data.num_test) == (10_000, 256), job.name
        if algorithm.type == "fd":
            assert (learner.lr, rollout.samples_per_prompt, algorithm.top_k) == (1e-5, 1, 25), job.name
            assert algorithm.ema_every == 5, job.name
            assert algorithm.ema_retention == 0.9 or "algorithm.ema_retention" in VARIES[name], job.name
            assert config.feedback.prompt == 4 or "feedback.prompt" in VARIES[name], job.name
        else:
            assert (rollout.samples_per_prompt, algorithm.kl_weight) == (5, 0.001), job.name
            assert learner.lr == 1e-7 or "learner.lr" in VARIES[name], job.name


@pytest.mark.parametrize("name", VARIES)
def test_the_model_is_that_of_the_figure(name: str) -> None:
    """Qwen3.5-9B in the paper's body and figure 9, Qwen3-8B in figure 1 and the appendix."""
    models = {job.config.model.path for job in jobs_of(name)}
    small, large = "Qwen/Qwen3-8B", "Qwen/Qwen3.5-9B"
    if name == "table_01":
        assert models == {small, large}
    elif name in ("figure_01", "figure_08") or (name > "figure_10" and name.startswith("figure")):
        assert models == {small}
    elif name != "figure_10":
        assert models == {large}
    assert all((job.config.model.tool_format == "qwen3") == (job.config.model.path == small) for job in jobs_of(name))


def test_the_figures_vary_what_the_paper_varies() -> None:
    """Starts of GRPO, sources of feedback, retention, constant texts, learning rates, prompts, tools."""
    starts = {str(job.start)[-11:] for job in jobs_of("figure_02") if job.start}
    assert starts == {"step_000200", "step_000300", "step_000400"}
    assert {job.config.feedback.type for job in jobs_of("figure_04")} == {"anthropic", "ground_truth", "lean_output"}
    for name in ("figure_06", "figure_11"):
        values = [job.config.algorithm.ema_retention for job in jobs_of(name)]
        assert values == [0.5, 0.8, 0.9, 0.95, 1.0]
        both = [(j.config.algorithm.ema_retention, j.config.algorithm.anchor_weight) for j in jobs_of(f"{name}_anchor")]
        assert both == [(value, weight) for weight in (0.0, 1.0) for value in values]
    texts = {job.config.feedback.text: job.config.algorithm.ema_retention for job in jobs_of("figure_07")}
    assert texts == {
        "Be concise": 1.0,
        "Think carefully before answering. Verify that the solution is correct.": 1.0,
    }
    kinds = {(job.config.algorithm.type, job.config.rollout.tools) for job in jobs_of("figure_08")}
    assert kinds == {("fd", True), ("fd", False), ("grpo", True), ("grpo", False)}
    assert {job.config.learner.lr for job in jobs_of("figure_09")} == {3e-7, 1e-7, 3e-8}
    assert [job.config.feedback.prompt for job in jobs_of("figure_12")] == [1, 2, 3, 4]
    for name in ("figure_13", "figure_14"):
        assert [job.config.feedback.type for job in jobs_of(name)] == ["anthropic", "self", "ground_truth"]
    assert {job.config.feedback.type for job in jobs_of("figure_05")} >= {"self"}
    passes = [each for job in jobs_of("figure_03") for each in job.entry.evals]
    assert [each.step for each in passes] == [200, 200]


def test_a_name_stands_for_one_run_wherever_it_stands() -> None:
    """A run that several figures share is run once, whichever sweep comes first."""
    known: dict[str, Job] = {}
    for file in SWEEPS:
        for job in jobs_of(file.stem):
            first = known.setdefault(job.name, job)
            assert first.config == job.config, f"{job.name} in {file.stem}"
            assert first.arguments == job.arguments, f"{job.name} in {file.stem}"


@pytest.mark.parametrize("name", ["figure_05", "figure_12", "tiny"])
def test_fd_run_resolves_a_run_as_the_sweep_does(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Else the next call would refuse the folder."""
    for job in jobs_of(name):
        if job.start is None:
            assert main(["run", *job.arguments, "--dry-run"]) == 0
            assert tomllib.loads(capsys.readouterr().out) == tomllib.loads(dump_toml(job.config)), job.name


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: file.stem)
def test_an_overlay_holds_nothing_but_what_differs(file: Path) -> None:
    """Each of its keys changes the configuration that its first command lays it over."""
    use = re.search(r"--config (configs/\S+)", file.read_text(encoding="utf-8"))
    assert use is not None
    found = find_config(use[1])
    assert found is not None
    before = flat(load_config(found, check_files=False))
    after = flat(load_config(found, [file], check_files=False))
    given = {f"{table}.{key}" for table, keys in tomllib.loads(file.read_text()).items() for key in keys}
    assert {key for key in given if before[key] == after[key]} <= {"algorithm.anchor_every"}
    assert given <= before.keys()


@pytest.mark.parametrize("file", [*EXPERIMENTS, *SWEEPS], ids=lambda file: f"{file.parent.stem}-{file.stem}")
def test_the_first_line_names_what_of_the_paper_it_is(file: Path) -> None:
    """And a line below says how to use it; the files that the line names are there."""
    lines = file.read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("# ")
    assert re.search(r"\b[Ff]igures?\b|\b[Tt]able\b", lines[0])
    uses = [line for line in lines if line.startswith("# Use: bin/fd-")]
    assert len(uses) == 1
    named = re.findall(r"configs/[\w/.-]+\.toml", "\n".join(lines))
    assert named
    assert [text for text in named if find_config(text) is None] == []


@pytest.mark.parametrize("file", sorted((CHECKOUT / "configs").glob("**/*.toml")), ids=lambda file: file.stem)
def test_every_file_begins_with_a_comment(file: Path) -> None:
    """Somebody who opens it alone learns what it is, in lines that fit."""
    lines = file.read_text(encoding="utf-8").splitlines()
    assert re.match(r"# \w", lines[0])
    assert max(map(len, lines)) <= 120


def test_the_complete_files_do_not_drift_apart() -> None:
    """Qwen3-8B differs in its model alone, GRPO in the loss and in what feedback needs."""
    large = base("Qwen/Qwen3.5-9B", "fd")
    small = load_config(CHECKOUT / "configs" / "qwen3_8b_fd.toml")
    assert differing(large, small) == {"model.path", "model.tool_format"}
    assert differing(base("Qwen/Qwen3-8B", "fd"), small) == set()
    assert differing(large, base("Qwen/Qwen3.5-9B", "grpo")) == GRPO
