"""fd-sweep: order, what is done, failures, signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from fd_async.cli import main
from fd_async.cli.sweeps import processes
from fd_async.config.files import CHECKOUT
from fd_async.scratch import is_alive

FAKE = str(CHECKOUT / "tests" / "fakes" / "fd_commands.py")
SWEEP = """\
title = "Three runs"

[[runs]]
name = "first"
label = "First"
config = ["small.toml"]

[[runs]]
name = "second"
config = ["small.toml"]
set.learner.lr = 3e-7

[[runs]]
name = "third"
config = ["small.toml"]
after = "first"
after_step = 2
"""
EVALS = """
[[runs.evals]]
step = 3
suites = ["minif2f"]
samples = 4
k = [1, 4]
"""


class World:
    """A folder with a sweep, and what the commands in it do."""

    def __init__(self, root: Path) -> None:
        self.root, self.plan = root, root / "plan.json"
        self.command = [sys.executable, FAKE, str(self.plan)]
        self.does()

    def does(self, **deeds: list[str]) -> None:
        """Say what each run does, call for call; `finish` where nothing is said."""
        self.plan.write_text(json.dumps(deeds))

    def calls(self) -> list[list[str]]:
        """Return the commands that were called, each by command and run."""
        log = self.root / "calls.log"
        lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        return [
            [
                line[0],
                line[line.index("--run") + 1] if "--run" in line else line[1],
                *(["--resume"] * ("--resume" in line)),
            ]
            for line in lines
        ]

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start the command in a process of its own."""
        code = (
            "import sys; from fd_async.cli import main; from fd_async.cli.sweeps import processes;"
            f" processes.COMMAND = {self.command!r}; sys.exit(main(['sweep', 'sweep.toml', *sys.argv[1:]]))"
        )
        return subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            cwd=self.root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A sweep of three runs whose commands are fakes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "train.jsonl").write_text("")
    (tmp_path / "test.jsonl").write_text("")
    (tmp_path / "small.toml").write_text(
        '[run]\nmax_steps = 3\n[model]\npath = "./model"\n[data]\ntrain = "train.jsonl"\neval = "test.jsonl"\n'
        '[feedback]\ntype = "constant"\n[checkpoint]\nevery_steps = 1\nkeep_last = 9\n'
    )
    (tmp_path / "sweep.toml").write_text(SWEEP)
    made = World(tmp_path)
    monkeypatch.setattr(processes, "COMMAND", made.command)
    return made


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_runs_are_done_in_order_and_once(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    """The same call again starts nothing; both say the last numbers and how to draw them."""
    assert main(["sweep", "sweep.toml"]) == 0
    assert world.calls() == [["run", "first"], ["run", "second"], ["run", "third"]]
    out, err = capfd.readouterr()
    assert "fd-run: first: finish from step 0" in err, "stderr of a run passes through"
    assert "first   done, step 3; step 3: eval/test/pass@1 0.3000" in out
    assert "bin/fd-report First=runs/first second=runs/second third=runs/third --to runs/figures/sweep" in out
    assert main(["sweep", "sweep.toml"]) == 0
    assert len(world.calls()) == 3
    assert out.splitlines() == capfd.readouterr().out.splitlines()


def test_a_dry_run_says_what_would_happen_and_starts_nothing(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """Start, resume at a step, done; how many steps are left."""
    world.does(second=["fail 4"])
    assert main(["sweep", "sweep.toml"]) == 4
    capsys.readouterr()
    assert main(["sweep", "sweep.toml", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "1  first: done, step 3" in out
    assert "2  second: resume at step 1" in out
    assert "3  third: start" in out
    assert "starts from runs/first/checkpoints/step_000002" in out
    assert "left: 5 steps, feedback at most about $0" in out
    assert len(world.calls()) == 2


def test_a_failure_ends_the_sweep_with_its_code_and_last_words(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    """What was not reached is said."""
    world.does(first=["fail 4", "finish"])
    assert main(["sweep", "sweep.toml"]) == 4
    out, err = capfd.readouterr()
    assert "fd-sweep: first: failed: exit code 4 after" in err
    assert err.rstrip().endswith("fd-run: the provider is out of words")
    assert [line.split(maxsplit=1)[1][:11] for line in out.splitlines()[:3]] == [
        "failed: exi",
        "not reached",
        "not reached",
    ]
    assert main(["sweep", "sweep.toml"]) == 0
    assert world.calls() == [["run", "first"], ["run", "first", "--resume"], ["run", "second"], ["run", "third"]]


def test_keep_going_skips_what_starts_from_the_failed_run(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    """The others go on, and the worst code is the sweep's."""
    world.does(first=["fail 3"], second=["die"])
    assert main(["sweep", "sweep.toml", "--keep-going"]) == 137
    assert world.calls() == [["run", "first"], ["run", "second"]]
    out, err = capfd.readouterr()
    assert "second: failed: killed by SIGKILL after" in err
    assert "third   skipped: starts from first, which is not there" in out


def test_an_alarm_counts_as_an_end_and_is_said(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    """What would start from a step that the run did not reach fails with the reason."""
    world.does(first=["alarm"])
    assert main(["sweep", "sweep.toml"]) == 3
    out, err = capfd.readouterr()
    assert "first   done, step 1, ended by an alarm: policy entropy fell" in out
    assert "third: failed: starts from runs/first/checkpoints/step_000002, and first left no complete" in err


def test_a_run_that_says_done_without_its_last_checkpoint_is_not_believed(
    world: World, capfd: pytest.CaptureFixture[str]
) -> None:
    """The folder decides, not the exit code."""
    world.does(first=["fail 0"])
    assert main(["sweep", "sweep.toml"]) == 1
    assert "fd-run ended with 0, and yet runs/first says: resume at step 1" in capfd.readouterr().err


def test_a_run_is_not_done_before_its_last_evaluation(world: World) -> None:
    """A checkpoint at run.max_steps alone is not enough where eval.at_end asks for more."""
    main(["sweep", "sweep.toml", "--only", "second"])
    file = world.root / "runs/second/metrics.jsonl"
    rows = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(rows[:-1]) + b'{"step": 3}\n')
    main(["sweep", "sweep.toml", "--only", "second"])
    assert world.calls()[1] == ["run", "second", "--resume"]


def test_a_folder_of_another_configuration_is_refused(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """Run, key and both values in one line; nothing is started, and a prefix makes room."""
    main(["sweep", "sweep.toml", "--only", "second"])
    capsys.readouterr()
    sets = ["--set", "learner.lr=1e-6"]
    assert main(["sweep", "sweep.toml", *sets]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if "learner.lr" in line] == [
        "fd-sweep: run second: runs/second/config.toml has learner.lr = 3e-7, the sweep says 1e-6; name other runs with"
        " --prefix, or delete the folder"
    ]
    assert len(world.calls()) == 1
    assert main(["sweep", "sweep.toml", *sets, "--prefix", "b_", "--only", "second"]) == 0
    assert world.calls()[-1] == ["run", "b_second"]


def test_a_run_goes_on_with_more_money(world: World) -> None:
    """What changes nothing of what is learned may be changed for a run that has begun."""
    world.does(second=["fail 4", "finish"])
    assert main(["sweep", "sweep.toml", "--only", "second"]) == 4
    sets = ["--set", "feedback.max_usd=9", "--set", "telemetry.report=false"]
    assert main(["sweep", "sweep.toml", "--only", "second", *sets]) == 0


def test_runs_that_were_moved_are_still_done(world: World) -> None:
    """To a larger disk: the folders say what they are, wherever they lie."""
    assert main(["sweep", "sweep.toml"]) == 0
    (world.root / "runs").rename(world.root / "moved")
    assert main(["sweep", "sweep.toml", "--set", f"run.dir={world.root}/moved"]) == 0
    assert len(world.calls()) == 3


def test_a_key_that_an_older_version_did_not_write_has_its_default(world: World) -> None:
    """A run is not refused because the schema grew; one without a configuration is."""
    main(["sweep", "sweep.toml", "--only", "second"])
    path = world.root / "runs/second/config.toml"
    text = path.read_text()
    path.write_text("".join(line for line in text.splitlines(keepends=True) if not line.startswith("grad_clip")))
    assert main(["sweep", "sweep.toml", "--only", "second"]) == 0
    path.unlink()
    assert main(["sweep", "sweep.toml", "--only", "second"]) == 2


def test_seeds_give_each_run_a_name_and_a_start_of_its_own(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """The first seed of all runs comes first; labels hold the seeds together."""
    assert main(["sweep", "sweep.toml", "--seeds", "0,7", "--only", "first,third"]) == 0
    names = ["first_seed0", "third_seed0", "first_seed7", "third_seed7"]
    assert world.calls() == [["run", name] for name in names]
    third = (world.root / "runs/third_seed7/config.toml").read_text()
    assert 'init_from = "runs/first_seed7/checkpoints/step_000002"' in third
    assert "seed = 7" in third
    assert "First=runs/first_seed0,runs/first_seed7 third=" in capsys.readouterr().out


def test_a_start_that_nobody_makes_is_refused(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """`--only` without the run that the others start from."""
    assert main(["sweep", "sweep.toml", "--only", "third"]) == 2
    assert "add first to --only" in capsys.readouterr().err
    assert main(["sweep", "sweep.toml", "--only", "fourth"]) == 2
    assert "has no run fourth; name some of first, second, third" in capsys.readouterr().err


def test_evaluations_follow_their_run_and_are_made_once(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    """One that failed is made again by the next call; the run is not."""
    (world.root / "sweep.toml").write_text(
        SWEEP.replace('[[runs]]\nname = "second"', f'{EVALS}\n[[runs]]\nname = "second"')
    )
    world.does(**{"eval first": ["fail", "finish"]})
    assert main(["sweep", "sweep.toml", "--only", "first"]) == 5
    assert "fd-eval: exit code 5" in capfd.readouterr().err
    assert main(["sweep", "sweep.toml", "--only", "first"]) == 0
    assert "fd-eval minif2f, step 3: pass@1 0.5000, pass@4 0.5000" in capfd.readouterr().out
    assert main(["sweep", "sweep.toml", "--only", "first"]) == 0
    assert world.calls() == [["run", "first"], ["eval", "runs/first"], ["eval", "runs/first"]]


def test_check_comes_first_and_ends_the_sweep(world: World) -> None:
    """Each configuration once; two of the three runs share one."""
    world.does(check=["bad"])
    assert main(["sweep", "sweep.toml", "--check"]) == 3
    assert [call[0] for call in world.calls()] == ["check", "check"]
    log = (world.root / "calls.log").read_text().splitlines()
    assert [("--quick" in line) for line in log] == [False, True]


def wait_for_run(world: World, name: str = "first") -> int:
    """Return the process id of a run that waits."""
    file = world.root / "runs" / name / "waiting"
    until(lambda: file.exists() and bool(file.read_text()))
    return int(file.read_text())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_the_run_once_and_the_next_call_resumes_it(world: World, number: signal.Signals) -> None:
    """The run writes its checkpoint; the sweep ends with 130. A terminal signals a whole group: the run is in none."""
    world.does(first=["wait", "finish"])
    sweep = world.start()
    wait_for_run(world)
    os.killpg(sweep.pid, number)
    out, err = sweep.communicate(timeout=20)
    assert sweep.returncode == 130, err
    assert (world.root / "runs/first/signals").read_text() == number.name
    assert "first: interrupted: resume at step 2; the same command continues" in err
    assert "second  not reached" in out
    assert main(["sweep", "sweep.toml"]) == 0
    assert world.calls()[:2] == [["run", "first"], ["run", "first", "--resume"]]


def test_the_run_of_a_killed_sweep_ends_with_a_checkpoint(world: World) -> None:
    """`kill -9` of the sweep alone leaves no run that nobody watches."""
    world.does(first=["wait", "finish"])
    sweep = world.start()
    pid = wait_for_run(world)
    sweep.kill()
    sweep.communicate(timeout=20)
    until(lambda: not is_alive(pid))
    assert (world.root / "runs/first/signals").read_text() == "SIGTERM"
    assert main(["sweep", "sweep.toml"]) == 0
    assert world.calls()[1] == ["run", "first", "--resume"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("small.toml", "smal.toml"), "run first: config: there is no file smal.toml"),
        (('name = "second"', 'name = "first"'), "run first: stands twice"),
        (('name = "second"', 'name = "../second"'), "run ../second: name must be a plain folder name"),
        (('after = "first"', 'after = "fourth"'), 'run third: after = "fourth": no earlier run'),
        (('after = "first"\n', ""), "run third: after_step = 2 needs after"),
        (("after_step = 2", "after_step = 4"), "run third: starts from step 4 of first, which ends at step 3"),
        (("learner.lr", "learner.lrr"), "run second: --set: learner.lrr = 3e-07: unknown key; did you mean"),
        (("learner.lr", "learner.lr.x"), "run second: set.learner.lr is a table: no key takes one"),
        (("learner.lr", "learner"), "Expected `object`, got `float` - at `$.runs[1].set[...]`"),
        (("title =", "titel ="), "Object contains unknown field `titel`"),
        (("[[runs]]", "[[runs"), "not valid TOML"),
        (('label = "First"', 'label = "a = b"'), 'label = "a = b": fd-report takes labels without "="'),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_sweep_is_said_in_a_line(
    world: World, capsys: pytest.CaptureFixture[str], change: tuple[str, str], expected: str
) -> None:
    """File, run and problem; exit code 2 and nothing started."""
    (world.root / "sweep.toml").write_text(SWEEP.replace(*change, 1))
    assert main(["sweep", "sweep.toml"]) == 2
    assert expected in capsys.readouterr().err
    assert world.calls() == []


def test_what_is_wrong_with_every_run_is_said_once(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """A --set with a typo does not fill the screen."""
    assert main(["sweep", "sweep.toml", "--set", "lr=3", "--seeds", "0,1"]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "table.key=value" in line]
    assert len(lines) == 1
    assert lines[0].startswith('fd-sweep: run first, second: --set: "lr=3" is not table.key=value')


@pytest.mark.parametrize("names", ["", ",", "first,,second"])
def test_an_empty_name_does_not_stand_for_all_runs(
    world: World, capsys: pytest.CaptureFixture[str], names: str
) -> None:
    """`--only "$UNSET"` must not start a month of training."""
    with pytest.raises(SystemExit, match="2"):
        main(["sweep", "sweep.toml", "--only", names])
    assert "is not a list of names, e.g. first,second" in capsys.readouterr().err
    assert world.calls() == []


def test_a_checkpoint_that_is_removed_again_is_no_start(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """Hours before the run that needs it would fail."""
    assert main(["sweep", "sweep.toml", "--set", "checkpoint.keep_last=1"]) == 2
    assert "set checkpoint.keep_last to 2 or more" in capsys.readouterr().err
    assert main(["sweep", "sweep.toml", "--set", "checkpoint.every_steps=3"]) == 2
    assert "which writes a checkpoint every 3 steps and at the end" in capsys.readouterr().err


def test_a_sweep_imports_no_torch() -> None:
    """It waits for days beside the run that needs the memory."""
    code = "import sys, fd_async.cli.sweeps.driving, fd_async.cli.sweeps.telling; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_rubbish_in_a_run_folder_is_no_surprise(world: World) -> None:
    """Torn checkpoints, results and status of somebody else count for nothing."""
    main(["sweep", "sweep.toml", "--only", "second"])
    run = world.root / "runs/second"
    (run / "status.json").write_bytes(b"\xff")
    (run / "evals/x").mkdir(parents=True)
    (run / "evals/x/result.json").write_bytes(msgspec.json.encode([1]))
    (run / "checkpoints/step_000003/manifest.json").write_text("{")
    assert main(["sweep", "sweep.toml", "--only", "second"]) != 0  # the fake cannot write over the torn folder
    assert world.calls()[-1] == ["run", "second", "--resume"]
