"""An evaluation in its folder: continued, extended, printed, refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fd_async.app.subject import evaluation_folder, find_subject
from fd_async.config.load import load_config
from fd_async.errors import CheckpointError, ConfigError, EngineDied, FdError, LedgerError, PreflightError
from fd_async.errors import first_cause as cause
from tests.fakes.evaluation_world import World


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A suite of six statements, four samples each."""
    return World(tmp_path, monkeypatch)


def refusal(world: World, out: str = "out", **tables: dict[str, Any]) -> FdError:
    """Evaluate where that must fail; the message is one line."""
    with pytest.raises((FdError, BaseExceptionGroup)) as caught:
        world.evaluate(out, **tables)
    error = cause(caught.value)
    assert isinstance(error, FdError), error
    assert "\n" not in str(error)
    return error


def test_resumed_equals_uninterrupted(world: World) -> None:
    """Ended after 1, 5, 9, ... engine calls and continued each time: the same attempts, id for id, and one result."""
    whole = world.evaluate("whole").document
    starts = 0
    for dies_after in range(1, 60, 4):
        world.engine.num_calls, world.engine.dies_after = 0, dies_after
        starts += 1
        try:
            broken = world.evaluate("broken").document
            break
        except (EngineDied, BaseExceptionGroup) as error:
            if not isinstance(cause(error), EngineDied):
                raise
    assert starts > 3
    assert broken == whole
    assert world.rollouts("broken") == world.rollouts("whole")
    assert (world.root / "broken/result.json").read_bytes() == (world.root / "whole/result.json").read_bytes()
    assert any("of them taken over" in line for line in world.said)


def test_ctrl_c_keeps_what_is_recorded_and_says_so(world: World) -> None:
    """The same call goes on to the result that it would have had."""
    whole = world.evaluate("whole").document
    interrupted = []

    def interrupt(caller: str) -> bool:
        if caller == "eval-s-0000002-02" and not interrupted:
            interrupted.append(caller)
            os.kill(os.getpid(), signal.SIGINT)
        return False

    world.judge.failure = interrupt
    with pytest.raises(KeyboardInterrupt):
        world.evaluate()
    assert world.said[-1].endswith("are kept, the same command continues")
    assert 0 < len(world.rollouts()) < 24
    assert world.evaluate().document == whole


def test_another_seed_samples_other_attempts(world: World) -> None:
    """Else the test above would prove nothing."""
    world.evaluate("a")
    world.evaluate("b", run={"seed": 1})
    assert world.rollouts("a") != world.rollouts("b")


def test_a_finished_evaluation_prints_its_result_without_an_engine(world: World) -> None:
    """Also for other k, and for fewer samples, which are the first ones."""
    first = world.evaluate()
    again = world.evaluate()
    assert again.document == first.document
    fewer = world.evaluate(eval={"samples": 2, "k": [2]})
    assert world.num_starts == 1
    assert [list(suite["pass_at"]) for suite in fewer.document["suites"]] == [["2"]]
    assert all(judged == 2 for judged, _ in fewer.document["suites"][0]["counts"].values())
    assert world.evaluate().document == first.document


def test_more_samples_extend_the_same_evaluation(world: World) -> None:
    """Samples 0 to 3 stay the tickets that they were; 4 samples and then 7 equal 7 at once."""
    world.evaluate("grown")
    before = world.rollouts("grown")
    grown = world.evaluate("grown", eval={"samples": 7}).document
    assert grown == world.evaluate("at once", eval={"samples": 7}).document
    after = world.rollouts("grown")
    assert {name: after[name] for name in before} == before
    assert len(after) == 6 * 7


def test_result_json_is_what_plots_read(world: World) -> None:
    """Keys and kinds of values."""
    world.evaluate()
    document = json.loads((world.root / "out/result.json").read_bytes())
    assert (document["model"], document["step"]) == (str(world.model), None)
    (suite,) = document["suites"]
    assert suite["suite"] == "s"
    assert len(suite["hash"]) == 64
    assert (suite["statements"], suite["samples"], suite["failed"]) == (6, 4, 0)
    assert (suite["temperature"], suite["tools"]) == (1.0, True)
    assert suite["response_tokens"] > 1
    assert list(suite["pass_at"]) == ["1", "2", "4"]
    assert all(0 <= low <= value <= high <= 1 for value, low, high in suite["pass_at"].values())
    assert list(suite["counts"]) == [f"s{i}" for i in range(6)]
    solved = sum(correct for _, correct in suite["counts"].values())
    assert 0 < solved < 24
    assert suite["pass_at"]["1"][0] == pytest.approx(solved / 24)


def test_the_folder_holds_its_configuration(world: World) -> None:
    """config.toml reads back and names the model that was evaluated; logs are there."""
    world.evaluate()
    config = load_config(world.root / "out/config.toml", check_files=False)
    assert (config.model.path, config.eval.samples) == (str(world.model), 4)
    assert (world.root / "out/logs").is_dir()


@pytest.mark.parametrize(
    ("key", "tables"),
    [
        ("run.seed", {"run": {"seed": 3}}),
        ("eval.temperature", {"eval": {"temperature": 0.7}}),
        ("rollout.max_response_tokens", {"rollout": {"max_response_tokens": 17}}),
        ("rollout.max_turns", {"rollout": {"max_turns": 2}}),
        ("rollout.tools", {"rollout": {"tools": False}}),
        ("model.thinking", {"model": {"thinking": False}}),
        ("verifier.backend", {"verifier": {"backend": "minilean"}}),
        ("verifier.memory_limit_gib", {"verifier": {"memory_limit_gib": 4.0}}),
        ("verifier.allowed_axioms", {"verifier": {"allowed_axioms": []}}),
    ],
)
def test_other_settings_are_refused_by_key(world: World, key: str, tables: dict[str, Any]) -> None:
    """Attempts sampled otherwise are another evaluation; nothing is sampled or changed."""
    world.evaluate()
    before = (world.root / "out/config.toml").read_bytes()
    error = refusal(world, **tables)
    assert isinstance(error, ConfigError)
    assert f": {key} was " in str(error)
    assert world.num_starts == 1
    assert (world.root / "out/config.toml").read_bytes() == before


def test_what_only_changes_the_speed_is_accepted(world: World) -> None:
    """Another number of workers or coroutines samples the same attempts."""
    first = world.evaluate()
    again = world.evaluate(rollout={"concurrency": 2}, verifier={"workers": 3}, policy={"max_num_seqs": 8})
    assert again.document == first.document


def test_a_replaced_model_is_refused(world: World) -> None:
    """Same folder, same sizes, one other byte."""
    world.evaluate()
    (world.model / "model.safetensors").write_text("model.safetensorz")
    assert ": model was sha256 " in str(refusal(world))
    (world.model / "model.safetensors").unlink()
    assert isinstance(refusal(world), PreflightError)


def test_another_template_is_refused(world: World) -> None:
    """Found by what it renders, so a changed prompt of the project itself counts too."""
    world.evaluate()
    world.renderer.template = "v2"
    assert ": template was sha256 " in str(refusal(world))


def test_other_statements_are_refused(world: World) -> None:
    """One more, or the same in another order, since a ticket counts by its place."""
    world.evaluate()
    path = world.write_suite("s", 7)
    assert ": statements of s was sha256 " in str(refusal(world))
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True)[:6])))
    assert ": order of s was sha256 " in str(refusal(world))


def test_another_spelling_of_the_headers_is_refused(world: World) -> None:
    """It names the same statements, and makes other prompts."""
    path = world.root / "s.jsonl"
    rows = [json.loads(line) | {"header": "import A -- a comment"} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    world.evaluate()
    assert ": headers of s was sha256 " in str(refusal(world, data={"headers": "keep"}))


def test_another_lean_does_not_continue(world: World) -> None:
    """Verdicts of two toolchains are no evaluation of either; what is complete is printed under any."""
    first = world.evaluate()
    world.judge.toolchain = "leanprover/lean4:v4.28.0"
    assert world.evaluate().document == first.document
    error = refusal(world, eval={"samples": 5})
    assert isinstance(error, ConfigError)
    assert ": toolchain was 'leanprover/lean4:v4.9.0' and is 'leanprover/lean4:v4.28.0': " in str(error)
    assert len(world.rollouts()) == 24


def test_attempts_that_infrastructure_failed_are_no_unsolved_statements(world: World) -> None:
    """Tried twice, counted apart, left out of pass@k; `retry_failed` makes them again and only them."""
    whole = world.evaluate("whole").document
    world.judge.failure = lambda caller: caller.endswith(("0000002-00", "0000002-01"))
    lossy = world.evaluate().document["suites"][0]
    assert lossy["failed"] > 0
    judged = [counts[0] for counts in lossy["counts"].values()]
    assert judged[2] == 4 - lossy["failed"]
    assert [count for place, count in enumerate(judged) if place != 2] == [4] * 5
    assert world.evaluate().document["suites"][0]["failed"] == lossy["failed"], "recorded is recorded"
    calls = world.engine.num_calls
    world.judge.failure = lambda caller: False
    assert world.evaluate(retry_failed=True).document == whole
    assert 0 < world.engine.num_calls - calls <= 3 * lossy["failed"]


def test_a_statement_that_does_not_compile_is_left_out(world: World) -> None:
    """Its attempts say nothing about the model; they are counted, named and not tried again."""
    world.judge.bad_names = {"s3"}
    found = world.evaluate()
    (result,) = found.results
    assert result.failures["bad_statement"] == 4
    assert (result.num_usable(1), result.counts["s3"]) == (5, (0, 0))
    calls = world.engine.num_calls
    assert world.evaluate(retry_failed=True).document == found.document
    assert world.engine.num_calls == calls


def test_a_broken_verifier_ends_the_evaluation_early(world: World) -> None:
    """Not after thousands of attempts; the cause and the key are named."""
    world.write_suite("s", 200)
    world.judge.failure = lambda caller: True
    error = refusal(world, eval={"samples": 40}, rollout={"concurrency": 64, "max_turns": 1})
    assert "rollout.max_failed_fraction = 0.5; last cause infrastructure: no worker" in str(error)
    assert len(world.rollouts()) < 2000


def test_two_at_once_are_refused_and_a_killed_one_leaves_no_lock(world: World) -> None:
    """The second is told in one line; the lock goes with the process that holds it."""
    world.evaluate()
    lock = world.root / "out/ledger.lock"
    script = f"import fcntl, time; file = open({str(lock)!r}, 'a'); fcntl.lockf(file, fcntl.LOCK_EX)"
    script += "; print(1, flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        error = refusal(world)
        holder.kill()
    assert isinstance(error, LedgerError)
    assert "another process" in str(error)
    world.evaluate()


def test_a_folder_of_something_else_is_left_alone(world: World) -> None:
    """`--out RUN` would write evaluations into the run's own ledger."""
    config = world.config()
    run = world.root / "run"
    run.mkdir()
    (run / "metrics.jsonl").touch()
    with pytest.raises(ConfigError, match=r"is no evaluation \(metrics.jsonl there\); name another folder with --out"):
        evaluation_folder(config, find_subject(config, None, None), run)
    assert os.listdir(run) == ["metrics.jsonl"]


def test_a_folder_that_cannot_be_made_is_one_line(world: World) -> None:
    """A file stands in its way."""
    (world.root / "file").write_text("")
    error = refusal(world, "file/out")
    assert isinstance(error, PreflightError)
    assert str(error).endswith("file/out: cannot be written: Not a directory; name another with --out")


def test_an_empty_suite_and_no_suite_are_refused(world: World) -> None:
    """Before any folder is made."""
    (world.root / "s.jsonl").write_text("\n")
    assert isinstance(refusal(world), FdError)
    assert "data.eval is empty" in str(refusal(world, data={"eval": []}))
    assert not (world.root / "out").exists()


def test_statements_that_the_run_has_trained_on_are_said(world: World) -> None:
    """Under whatever name; and that nobody knows, where the training statements are gone."""
    train = world.root / "train.jsonl"
    rows = [{"name": f"t{i}", "formal_statement": f"lemma t{i} : {i}={i} := by sorry"} for i in range(4, 9)]
    train.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = world.make_run(data={"train": str(train)})
    world.evaluate(source=run)
    assert "data: 2 of the training statements stand in the suite s too (t4, t5)" in world.said
    train.unlink()
    world.said.clear()
    world.evaluate(source=run)
    (line,) = [line for line in world.said if line.startswith("not known whether the suites hold training statements")]
    assert str(train) in line


def test_the_folder_is_named_after_what_is_evaluated(world: World) -> None:
    """Below the run for a checkpoint of a run, below runs/ for a folder from elsewhere."""
    config, run = world.config(), world.make_run()
    checkpoint = run / "checkpoints/step_000003"
    for source, step in [(run, None), (run, 3), (checkpoint, None), (checkpoint / "model", None)]:
        subject = find_subject(config, source, step)
        assert (subject.step, subject.model, subject.run_dir) == (3, str(checkpoint / "model"), run)
    assert evaluation_folder(config, subject) == run / "evals/step_000003-s-t1-tools"
    cold = world.config(eval={"temperature": 0.6}, rollout={"tools": False})
    assert evaluation_folder(cold, find_subject(cold, world.model, None)) == Path("runs/evals/model-s-t0.6-no_tools")
    start = find_subject(config, run, 0)
    assert (start.model, start.step, start.run_dir) == (str(world.model), 0, run)


def test_a_model_that_is_not_there_is_refused(world: World, tmp_path: Path) -> None:
    """A step that was not kept, a step of something without steps, a folder without a model."""
    (tmp_path / "runs/a/checkpoints").mkdir(parents=True)
    config = world.config()
    with pytest.raises(CheckpointError, match="step_000007"):
        find_subject(config, tmp_path / "runs/a", 7)
    with pytest.raises(ConfigError, match="--step 7: name a run folder"):
        find_subject(config, world.model, 7)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="no run folder with checkpoints/"):
        find_subject(config, tmp_path / "empty", None)
