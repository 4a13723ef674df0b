"""slurm/fd_async.sbatch under a stand-in for Slurm, with a stand-in for fd-run: requeue, resume, signals, servers."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
import tomllib
from pathlib import Path

import pytest

from fd_async.config.load import load_config
from tests.fakes import slurm

CHECKOUT = Path(__file__).parents[3]
FD_RUN = r"""#!/bin/bash
# Counts steps of 50 ms up to STEPS; TERM ends it with 130 and a checkpoint (not if BARREN), or is ignored; FAIL: its
# first exit code.
name=fake
for ((i = 1; i <= $#; i++)); do if [[ ${!i} == --run ]]; then next=$((i + 1)) && name=${!next}; fi; done
if [[ " $* " == *" --dry-run "* ]]; then echo "# run         runs/$name, async, 9 steps, seed 0" && exit; fi
mkdir -p "runs/$name/checkpoints" && echo "$*" >>"runs/$name/calls"
keep() {
  folder=$(printf 'runs/%s/checkpoints/step_%06d' "$name" "$step")
  [[ -n ${BARREN:-} ]] || { mkdir -p "$folder" && echo {} >"$folder/manifest.json"; }
}
trap 'echo TERM >>"runs/$name/signals"; [[ -n ${DEAF:-} ]] || { keep; exit 130; }' TERM
if [[ -n ${FAIL:-} && $(wc -l <"runs/$name/calls") -le ${FAIL_TIMES:-1} ]]; then exit "$FAIL"; fi
for ((step = $(cat "runs/$name/step" 2>/dev/null || echo 0); step < ${STEPS:-5}; step++)); do
  echo $((step + 1)) >"runs/$name/step"
  sleep 0.05
done
echo done >>"runs/$name/signals"
"""
FD_CHECK = '#!/bin/bash\necho "$*" >>checks\nexit "${CHECK_CODE:-0}"\n'
FD_SERVE = r"""#!/bin/bash
# Lives until TERM; every first one of a port dies at once.
echo "$SLURMD_NODENAME ${FD_SERVERS_KEY:+key} $*" >>serves
[[ -e died-$SLURMD_NODENAME-${*: -1} ]] || { touch "died-$SLURMD_NODENAME-${*: -1}" && exit 5; }
trap 'echo "$SLURMD_NODENAME" >>ended; exit 0' TERM
while :; do sleep 0.05; done
"""


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with the true scripts and stand-ins for what they start; Slurm's programs come first on PATH."""
    place, programs = tmp_path / "checkout", tmp_path / "programs"
    (place / "bin").mkdir(parents=True)
    programs.mkdir()
    shutil.copytree(CHECKOUT / "slurm", place / "slurm")
    shutil.copy(CHECKOUT / "bin" / "fd-continue", place / "bin")
    for name, text in (("fd-run", FD_RUN), ("fd-check", FD_CHECK), ("fd-serve", FD_SERVE)):
        (place / "bin" / name).write_text(text)
        (place / "bin" / name).chmod(0o755)
    slurm.install(programs)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.chdir(place)
    return place


def submit(*words: str, options: tuple[str, ...] = (), **environment: object) -> tuple[int, list[str], str]:
    """Submit and wait; return exit code, states of the job, and its log."""
    variables = os.environ | {name: str(value) for name, value in environment.items()}
    argv = ["sbatch", *options, "slurm/fd_async.sbatch", *words]
    done = subprocess.run(argv, env=variables, timeout=40, check=False)
    job = newest_job()
    return done.returncode, (job / "history").read_text().split("\n")[:-1], (job / "log").read_text()


def newest_job() -> Path:
    jobs = Path(shutil.which("sbatch") or "").parent / "jobs"
    return max(jobs.iterdir(), key=lambda job: int(job.name))


def wait_for(file: Path) -> None:
    deadline = time.monotonic() + 20
    while not file.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert file.exists()


def lines(file: str) -> list[str]:
    return Path(file).read_text().splitlines()


def test_a_run_that_ends_is_not_started_again(cluster: Path) -> None:
    """The node is checked first, with the configuration's options alone."""
    code, history, _ = submit("--config", "f.toml", "--set", "a.b=1", "--run", "one", "--max-steps", "3")
    assert (code, history) == (0, ["ENDED 0"])
    assert lines("checks") == ["--config f.toml --set a.b=1 --set run.shutdown_s=540 --quick"]
    assert lines("runs/one/calls") == [
        "--config f.toml --set a.b=1 --run one --max-steps 3 --set run.shutdown_s=540",
    ]


def test_the_time_limit_is_followed_by_a_requeue_that_resumes(cluster: Path) -> None:
    """As often as it takes; every warning becomes one TERM, and the last start ends the job."""
    code, history, log = submit("--config", "f", STEPS=60, FAKE_TIME_S=21.5, FAKE_WARN_S=20)
    assert code == 0
    assert history[-1] == "ENDED 0"
    assert len(history) >= 2
    assert all(state.startswith("REQUEUED") for state in history[:-1])
    calls = lines("runs/fake/calls")
    assert len(calls) == len(history)
    assert ["--resume" in call for call in calls] == [False] + [True] * (len(calls) - 1)
    assert lines("runs/fake/signals") == ["TERM"] * (len(calls) - 1) + ["done"]
    assert Path("runs/fake/step").read_text() == "60\n"
    assert "after Slurm's warning; queued again" in log
    assert "requeue failed" not in log
    assert len(lines("checks")) == 1  # not again on a node that Slurm chose


def test_a_run_that_does_not_leave_is_killed_in_time_to_be_queued_again(
    cluster: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that reaches its limit is over for Slurm."""
    text = Path("slurm/fd_async.sbatch").read_text()
    Path("slurm/fd_async.sbatch").write_text(text.replace("FD_SHUTDOWN_S + 20", "FD_SHUTDOWN_S"))
    code, history, log = submit("--config", "f", STEPS=70, DEAF=1, FD_SHUTDOWN_S=1, FAKE_TIME_S=21, FAKE_WARN_S=20)
    assert "killing it" in log
    assert (code, history[0][:8], history[-1]) == (0, "REQUEUED", "ENDED 0")
    assert "--resume" in lines("runs/fake/calls")[1]


def test_time_limits_that_leave_no_checkpoint_are_not_followed_for_ever(cluster: Path) -> None:
    """A limit shorter than a step, or than --signal; the line says how many starts were in vain."""
    code, history, log = submit("--config", "f", STEPS=900, BARREN=1, FAKE_TIME_S=22, FAKE_WARN_S=20, FD_RETRIES=1)
    assert (code, [line.split()[0] for line in history]) == (130, ["REQUEUED", "ENDED"])
    assert "2 starts in a row left no new checkpoint (FD_RETRIES): not queued again" in log


def test_a_checkpoint_of_an_earlier_start_is_no_new_one(cluster: Path) -> None:
    """What was there before the first start counts as little."""
    folder = Path("runs/fake/checkpoints/step_000050")
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    code, history, _ = submit("--config", "f", STEPS=900, BARREN=1, FAKE_TIME_S=22, FAKE_WARN_S=20, FD_RETRIES=1)
    assert code == 130
    assert 2 <= len(history) <= 3


def test_int_ends_a_job_for_good_with_a_checkpoint(cluster: Path) -> None:
    """130, and no second start."""
    argv = ["sbatch", "slurm/fd_async.sbatch", "--config", "f"]
    with subprocess.Popen(argv, env=os.environ | {"STEPS": "400"}) as process:
        wait_for(cluster / "runs/fake/step")
        subprocess.run(["scancel", "--batch", "--signal=INT", newest_job().name], check=True)
        assert process.wait(20) == 130
    assert lines("runs/fake/signals") == ["TERM"]
    assert (newest_job() / "history").read_text() == "ENDED 130\n"


def test_a_cancelled_job_gives_its_run_one_term_alone(cluster: Path) -> None:
    """Slurm has sent it to all processes: passed on, it would be the second, which leaves without a checkpoint."""
    argv = ["sbatch", "slurm/fd_async.sbatch", "--config", "f"]
    with subprocess.Popen(argv, env=os.environ | {"STEPS": "400"}) as process:
        wait_for(cluster / "runs/fake/step")
        subprocess.run(["scancel", newest_job().name], check=True)
        process.wait(20)
    assert lines("runs/fake/signals") == ["TERM"]
    assert (newest_job() / "history").read_text() == "CANCELLED 0\n"


@pytest.mark.parametrize(("code", "starts"), [(2, 1), (3, 1), (4, 1), (7, 1), (5, 2), (6, 2)])
def test_only_failures_that_a_new_start_may_cure_are_started_again(cluster: Path, code: int, starts: int) -> None:
    """Configuration, machine, money and alarms wait for a person."""
    ended, history, _ = submit("--config", "f", FAIL=code)
    assert len(history) == len(lines("runs/fake/calls")) == starts
    assert ended == (0 if starts > 1 else code)


def test_failures_one_after_another_end_it(cluster: Path) -> None:
    """FD_RETRIES counts them."""
    code, history, _ = submit("--config", "f", FAIL=5, FAIL_TIMES=9, FD_RETRIES=1)
    assert (code, [line.split()[0] for line in history]) == (5, ["REQUEUED", "ENDED"])


def test_a_node_that_does_not_fit_starts_nothing(cluster: Path) -> None:
    """fd-check's exit code is the job's; FD_CHECK=off goes on."""
    assert submit("--config", "f", CHECK_CODE=3)[:2] == (3, ["ENDED 3"])
    assert not Path("runs/fake").exists()
    assert submit("--config", "f", CHECK_CODE=3, FD_CHECK="off")[0] == 0


def test_an_array_names_its_runs(cluster: Path) -> None:
    """%a is the task."""
    submit("--config", "f", "--run", "seed%a", "--set", "run.seed=%a", options=("--array=2",))
    assert "--run seed2 --set run.seed=2" in lines("runs/seed2/calls")[0]


def test_several_nodes_get_servers_and_an_overlay_that_loads(cluster: Path) -> None:
    """The first node trains, the others serve; servers that die are started again and end with the job."""
    code, _, log = submit(
        "--config", str(CHECKOUT / "configs/tiny_fd.toml"), FAKE_NODES="n1,n2,n3", FD_GPUS_PER_SERVER=4, STEPS=60,
        FD_SERVER_PAUSE_S=0.1,
    )  # fmt: skip
    assert code == 0, log
    folder = Path(f"runs/slurm-{newest_job().name}")
    served = lines("serves")
    assert len(served) == 8  # two nodes, two servers, each twice
    port = 20000 + int(newest_job().name) % 750 * 16
    assert sum("policy.gpus=[4,5,6,7] --set policy.tensor_parallel_size=4" in line for line in served) == 4
    assert all("key --config" in line and "--host 0.0.0.0" in line for line in served)
    assert sorted(set(lines("ended"))) == ["n2", "n3"]
    assert len(lines("ended")) == 4
    overlay = tomllib.loads((folder / "nodes.toml").read_text())
    addresses = [f"http://{host}:{port + index}" for host in ("n2", "n3") for index in (0, 1)]
    assert overlay["policy"]["servers"] == addresses
    assert f"--config {folder.absolute()}/nodes.toml" in lines("runs/fake/calls")[0]
    config = load_config(CHECKOUT / "configs/tiny_fd.toml", [folder / "nodes.toml"], [])
    assert (config.learner.ranks, config.learner.gpus) == (8, list(range(8)))
    assert (config.policy.engine, config.learner.hostfile) == ("servers", "")
    assert not Path("checks").exists()


def test_a_learner_of_two_nodes_gets_a_hostfile(cluster: Path) -> None:
    """In the order of the nodes, this one first."""
    submit("--config", "f", FAKE_NODES="n1,n2,n3", FD_LEARNER_NODES=2, FD_GPUS_PER_SERVER=8)
    folder = Path(f"runs/slurm-{newest_job().name}")
    assert (folder / "hostfile").read_text() == "n1 slots=8\nn2 slots=8\n"
    learner = tomllib.loads((folder / "nodes.toml").read_text())["learner"]
    assert (learner["ranks"], learner["launcher"], learner["controller_address"]) == (16, "ssh", "n1")
    assert learner["gpus"] == [*range(8), *range(8)]


def test_a_learner_that_leaves_no_node_to_vllm_is_refused(cluster: Path) -> None:
    """Exit 2, with the variable."""
    code, _, log = submit("--config", "f", FAKE_NODES="n1,n2", FD_LEARNER_NODES=2)
    assert code == 2
    assert "FD_LEARNER_NODES = 2 of 2 nodes" in log


def test_a_job_that_slurm_may_not_queue_again_says_what_to_do(cluster: Path) -> None:
    """Submitted with --no-requeue, or where the administrator forbids it."""
    text = Path("slurm/fd_async.sbatch").read_text()
    Path("slurm/fd_async.sbatch").write_text(text.replace("#SBATCH --requeue\n", ""))
    code, history, log = submit("--config", "f", FAIL=5)
    assert (code, history) == (5, ["ENDED 5"])
    assert "scontrol requeue failed: submit it again by hand, it continues" in log
