"""What the commands print, refuse and return."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import anyio
import msgspec
import pytest

from fd_async.analysis.passk import Estimate
from fd_async.cli import main
from fd_async.config.files import CHECKOUT
from fd_async.errors import EngineDied, FdError, FeedbackBudgetExceeded, LearnerError, StallDetected
from fd_async.evaluation import SuiteResult


def fail(error: BaseException) -> Callable[..., int]:
    """Make a run that raises."""

    def run(*_: object) -> int:
        raise error

    return run


def test_a_run_gets_the_configuration_its_folder_and_the_options(config: Path, app: Callable[..., None]) -> None:
    """Options are the last word; the exit code is the run's."""
    seen: list[object] = []
    app(run=lambda *given: seen.extend(given) or 130)
    code = main(["run", "--config", str(config), "--run", "mine", "--max-steps", "3", "--set", "learner.lr=2e-5"])
    resolved, run_dir, resume = seen
    assert (code, run_dir, resume) == (130, Path("runs/mine"), None)
    assert (resolved.run.max_steps, resolved.run.name, resolved.learner.lr) == (3, "mine", 2e-5)


def test_a_report_that_fails_does_not_undo_the_run(
    config: Path, app: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """The training is done; the report can be written again."""
    app(run=lambda *_: 0)
    assert main(["run", "--config", str(config), "--set", "telemetry.report=true"]) == 0
    assert "no report: " in capsys.readouterr().err


def test_a_dry_run_prints_toml_with_the_plan_as_comments(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The output is a configuration again; nothing is written."""
    assert main(["run", "--config", str(config), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert tomllib.loads(printed)["learner"]["prompts_per_step"] == 128
    assert "# step        128 prompts x 1 = 128 attempts, at most 1,310,720 tokens" in printed
    assert not Path("runs").exists()


def test_configuration_problems_are_lines_and_exit_2(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line per problem, no traceback."""
    assert main(["run", "--config", str(config), "--set", "learner.lr=-1", "--set", "run.mod=x"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("fd-run: --set: ") for line in lines)


def test_an_earlier_run_is_not_mixed_with_a_new_one(
    config: Path, app: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Without --resume a used folder is refused, an unused one is not."""
    app(run=lambda *_: 0)
    folder = Path("runs/small")
    (folder / "logs").mkdir(parents=True)
    assert main(["run", "--config", str(config)]) == 0
    (folder / "metrics.jsonl").touch()
    (folder / "checkpoints").mkdir()
    assert main(["run", "--config", str(config)]) == 0, "a start that was refused left these"
    (folder / "metrics.jsonl").write_text("{}\n")
    assert main(["run", "--config", str(config)]) == 2
    assert "--resume" in capsys.readouterr().err
    assert main(["run", "--config", str(config), "--resume"]) == 0


def test_resume_needs_a_run(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A typo in the name must not start from nothing."""
    assert main(["run", "--config", str(config), "--resume", "--run", "nope"]) == 2
    assert "no run to continue" in capsys.readouterr().err


@pytest.mark.parametrize("step", [0, 40])
def test_a_run_resumes_by_its_name_alone(step: int, config: Path, app: Callable[..., None]) -> None:
    """The run brings its own resolved configuration; one that was stopped before its first step has a step 0."""
    seen: list[object] = []
    app(run=lambda *given: seen.extend(given) or 0)
    folder = Path("runs/small")
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.toml").write_text(config.read_text() + '[run]\nname = "small"\n')
    assert main(["run", "--run", "small", "--resume", str(step)]) == 0
    assert seen[1:] == [folder, step]


@pytest.mark.parametrize(
    "error",
    [EngineDied("vLLM is gone"), FeedbackBudgetExceeded("spent"), StallDetected("stalled"), LearnerError("nan")],
)
def test_a_failure_is_one_line_its_exit_code_and_a_log(
    error: FdError, config: Path, app: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """The traceback goes to the run's log."""
    app(run=fail(ExceptionGroup("tasks", [ExceptionGroup("inner", [error])])))
    assert main(["run", "--config", str(config)]) == error.exit_code
    first, last = capsys.readouterr().err.splitlines()
    assert first == "fd-run: traceback in runs/small/logs/error.log"
    assert last == f"fd-run: {error}"
    assert type(error).__name__ in Path("runs/small/logs/error.log").read_text()


def test_a_bug_is_named_with_its_place(
    config: Path, app: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """A surprise is one line too, exit 1, and --debug shows everything."""
    app(run=fail(KeyError("x")))
    assert main(["run", "--config", str(config)]) == 1
    assert "unexpected KeyError: 'x' at " in capsys.readouterr().err
    assert main(["run", "--config", str(config), "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_full_disk_is_one_line_whoever_meets_it(
    config: Path, app: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 3, and what to do; no surprise with a place in the code."""
    app(run=fail(ExceptionGroup("tasks", [OSError(errno.ENOSPC, "No space left on device", "runs/small/config.toml")])))
    assert main(["run", "--config", str(config)]) == 3
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("fd-run: runs/small/config.toml: the disk is full")
    assert "--resume" in last


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_before_the_loop_runs_is_130(number: signal.Signals, config: Path, app: Callable[..., None]) -> None:
    """While torch is imported nobody listens yet: whatever a scheduler sends ends the command as Ctrl-C does."""
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGHUP)}

    def run(*_: object) -> int:
        os.kill(os.getpid(), number)
        return 0

    app(run=run)
    try:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
        assert main(["run", "--config", str(config)]) == 130
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), BaseExceptionGroup("tasks", [KeyboardInterrupt()])])
def test_an_interruption_is_130(error: BaseException, config: Path, app: Callable[..., None]) -> None:
    """Ctrl-C before the run can catch it."""
    app(run=fail(error))
    assert main(["run", "--config", str(config)]) == 130


def test_a_wrong_option_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """argparse prints its usage first; a person needs the last line."""
    with pytest.raises(SystemExit) as left:
        main(["run", "--confg", "x"])
    assert left.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_run_without_configuration_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    """The first thing people try."""
    assert main(["run"]) == 2
    assert "--config configs/tiny_fd.toml" in capsys.readouterr().err


def test_evaluation_ends_with_one_json_line(
    config: Path, app: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """--k raises the number of attempts to what it needs; the table says what each figure rests on."""
    seen: list[object] = []
    app(**evaluation(seen))
    assert main(["eval", "--config", str(config), "--suite", "train.jsonl", "--k", "8,1"]) == 0
    resolved, subject, folder = seen
    assert (resolved.eval.k, resolved.eval.samples, resolved.data.eval) == ([1, 8], 8, ["train.jsonl"])
    assert (subject, folder) == ("model", Path("runs/evals/x"))
    lines = capsys.readouterr().out.splitlines()
    assert msgspec.json.decode(lines[-1])["eval/test/pass@1"] == 0.5
    assert [line.split()[:3] for line in lines[1:3]] == [["test", "1", "0.5000"], ["test", "8", "-"]]
    assert "neither as solved nor as unsolved: engine 2" in lines[3]
    assert lines[4] == "test: were all of these unsolved: pass@1 0.3750"


def test_more_k_than_samples_is_refused_and_tools_go_off(
    config: Path, app: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """--samples is the last word; --no-tools is a key like any other."""
    seen: list[object] = []
    app(**evaluation(seen))
    command = ["eval", "--config", str(config), "--suite", "train.jsonl", "--no-tools", "--samples", "4", "--k"]
    assert main([*command, "8"]) == 2
    assert "pass@8 (eval.k) needs at least 8 attempts" in capsys.readouterr().err
    assert main([*command, "4"]) == 0
    assert (seen[0].eval.samples, seen[0].rollout.tools) == (4, False)
    assert main([*command, "x"]) == 2
    assert main([*command, "0"]) == 2


def evaluation(seen: list[object]) -> dict[str, Callable[..., object]]:
    """Stand in for what evaluates."""
    result = SuiteResult(
        suite="test",
        samples=4,
        counts={"a": (3, 3), "b": (3, 0)},
        failures={"engine": 2},
        temperature=1.0,
        response_tokens=9.0,
        pass_at={1: Estimate(0.5, 0.1, 0.9), 8: None},
    )

    def evaluate(config: object, subject: object, folder: Path, *, retry_failed: bool, say: object) -> object:
        seen[:] = config, subject, folder
        return SimpleNamespace(results=[result])

    return {
        "find_subject": lambda config, source, step: "model",
        "evaluation_folder": lambda config, subject, out: Path("runs/evals/x"),
        "evaluate": evaluate,
    }


def test_export_names_what_it_wrote(config: Path, app: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    """A run may be named without its folder."""
    Path("runs/small").mkdir(parents=True)
    app(export=lambda run_dir, step, to: to)
    assert main(["export", "small", "--to", "out", "--step", "3"]) == 0
    assert capsys.readouterr().out == "wrote out\n"
    assert main(["export", "smal", "--to", "out"]) == 2
    assert "name one of runs/: small" in capsys.readouterr().err


def test_check_lists_what_is_there(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A machine that runs these tests can run this configuration."""
    code = main(["check", "--config", str(config)])
    printed = capsys.readouterr()
    assert code == 0, printed
    assert printed.out.splitlines()[-1] == "ready"


def test_check_says_what_is_missing_and_how_to_get_it(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit 3, every missing thing at once."""
    for name in ("ANTHROPIC_API_KEY", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setenv("HOME", "/nonexistent")
    sets = [
        "feedback.type=anthropic",
        "feedback.model=m",
        "feedback.base_url=http://127.0.0.1:9",
        "verifier.backend=repl",
        "verifier.project_dir=none",
    ]
    assert main(["check", "--config", str(config), *(word for item in sets for word in ("--set", item))]) == 3
    printed = capsys.readouterr()
    assert "ANTHROPIC_API_KEY is not set" in printed.out
    assert "run lean/setup" in printed.out
    assert printed.err == (
        "fd-check: missing: C++ compiler, feedback provider, lake, Lake project, Lean REPL, sandbox\n"
    )
    assert "first get lake, Lake project, Lean REPL, sandbox" in printed.out


def test_commands_answer_without_torch() -> None:
    """`--help`, a dry run and fd-check must not wait for torch."""
    script = (
        "import sys, fd_async.cli, fd_async.preflight, fd_async.cli.parser;"
        "print(*{'torch', 'vllm', 'deepspeed', 'transformers'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=CHECKOUT, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (0, "\n", "")


async def _raise_in_group(error: BaseException) -> None:
    async def task() -> None:
        raise error

    async with anyio.create_task_group() as group:
        group.start_soon(task)


def test_causes_come_out_of_real_task_groups(
    config: Path, app: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """What anyio raises is a group; its inside is what a person reads."""
    app(run=lambda *_: anyio.run(_raise_in_group, EngineDied("vLLM is gone")))
    assert main(["run", "--config", str(config)]) == 5
    assert capsys.readouterr().err.endswith("fd-run: vLLM is gone\n")


def test_a_thread_that_hangs_does_not_keep_the_process() -> None:
    """A file system that does not answer holds a thread; the exit code comes out all the same."""
    script = (
        "import importlib, sys, threading, time; module = importlib.import_module('fd_async.cli.main');"
        "module._LEAVE_S = 0.2; threading.Thread(target=time.sleep, args=(600,)).start(); sys.exit(module.leave(6))"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=CHECKOUT, timeout=30, check=False).returncode == 6


@pytest.mark.parametrize(
    "more", [["--config", "x.toml"], ["--set", "run.seed=1"], ["--resume"], ["--resume", "0"], ["--dry-run"]]
)
def test_a_replay_takes_no_other_configuration(
    more: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It repeats a run as it was; anything else would be another run."""
    assert main(["run", "--replay", str(tmp_path), *more]) == 2
    assert "--replay repeats a run as it was" in capsys.readouterr().err


@pytest.mark.parametrize("debug", [False, True])
def test_a_key_that_a_server_repeats_is_neither_printed_nor_written(
    config: Path,
    app: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    debug: bool,
) -> None:
    """Whatever the variable is called."""
    monkeypatch.setenv("TUTOR", "sk-of-this-test")

    def run(*_: object) -> int:
        raise FeedbackBudgetExceeded("the server answered 401: no such key sk-of-this-test")

    app(run=run)
    arguments = ["run", "--config", str(config), "--set", "feedback.api_key_env=TUTOR"]
    assert main([*arguments, *(["--debug"] if debug else [])]) == 4
    printed = capsys.readouterr().err
    assert "no such key [TUTOR]" in printed
    assert "sk-of-this-test" not in printed + Path("runs/small/logs/error.log").read_text()
