"""A Slurm of one machine: `sbatch`, `srun`, `scontrol` and `scancel` that behave as the real ones do towards a script.

`install(folder)` writes the four as executables; put the folder first on PATH. What they do that matters to a job:

    sbatch      copies the script to a spool folder, reads its #SBATCH lines, runs it (here: until the job is over),
                sends --signal=B:SIG to the batch shell alone before the time limit, TERM to all processes at the limit
                and KILL a little later; a job whose requeue was asked for is killed and started again from its first
                line, with SLURM_RESTART_COUNT
    scontrol    requeue JOB (refused without --requeue); show hostnames LIST
    srun        runs a command once for each host of --nodelist, passes TERM and INT on
    scancel     sends --signal to the batch shell (--batch), or TERM to all processes and KILL a little later

Times come from the environment: FAKE_TIME_S is the limit, FAKE_WARN_S the time before the signal of --signal;
FAKE_NODES the hosts of a job, comma-separated. `folder/jobs/ID/` has the job's pid, log and `history`.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

_KILL_WAIT_S = 0.5
_POLL_S = 0.02


def install(folder: Path) -> None:
    """Write the programs into a folder."""
    for name in ("sbatch", "srun", "scontrol", "scancel"):
        path = folder / name
        path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "{__file__}" "{folder}" {name} "$@"\n')
        path.chmod(0o755)


def _directives(script: Path) -> dict[str, str]:
    """Read the #SBATCH lines before the first command, as Slurm does."""
    found = {}
    for line in script.read_text().splitlines():
        if line.startswith("#SBATCH "):
            name, _, value = line.removeprefix("#SBATCH ").strip().partition("=")
            found[name] = value
        elif line.strip() and not line.startswith("#"):
            break
    return found


def _sbatch(home: Path, arguments: list[str]) -> int:
    options = {}
    while arguments[0].startswith("--"):
        name, _, value = arguments.pop(0).partition("=")
        options[name] = value
    script, *words = arguments
    options = _directives(Path(script)) | options
    job_id = str(101 + len(list((home / "jobs").glob("*"))))
    job = home / "jobs" / job_id
    job.mkdir(parents=True)
    shutil.copy(script, job / "slurm_script")  # $0 is no path of the checkout any more
    if "--requeue" in options:
        (job / "may_requeue").touch()
    nodes = os.environ.get("FAKE_NODES", "node1")
    environment = os.environ | {
        "SLURM_JOB_ID": job_id,
        "SLURM_SUBMIT_DIR": os.getcwd(),
        "SLURM_JOB_NODELIST": nodes,
        "SLURM_JOB_NUM_NODES": str(len(nodes.split(","))),
        "SLURM_GPUS_ON_NODE": options.get("--gpus-per-node", "0"),
    }
    if "--array" in options:
        environment["SLURM_ARRAY_TASK_ID"] = options["--array"]
    warning = re.fullmatch(r"B:(\w+)@(\d+)", options.get("--signal", ""))
    number = getattr(signal, f"SIG{warning[1]}") if warning else None
    restarts = 0
    while True:
        state, code = _run_once(job, words, environment, number)
        with (job / "history").open("a") as file:
            file.write(f"{state} {code}\n")
        if state != "REQUEUED":
            return code
        restarts += 1
        environment["SLURM_RESTART_COUNT"] = str(restarts)


def _run_once(job: Path, words: list[str], environment: dict[str, str], number: int | None) -> tuple[str, int]:
    limit = float(os.environ.get("FAKE_TIME_S", "60"))
    warn_at = limit - float(os.environ.get("FAKE_WARN_S", "0"))
    with (job / "log").open("ab") as log:
        process = subprocess.Popen(
            ["/bin/bash", str(job / "slurm_script"), *words],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    (job / "pid").write_text(str(process.pid))
    started, is_warned = time.monotonic(), False
    while process.poll() is None:
        age = time.monotonic() - started
        if (job / "requeue").exists():
            break
        if age > limit or (job / "cancel").exists():
            _end(process.pid)
            process.wait()
            return ("TIMEOUT" if age > limit else "CANCELLED"), 0
        if number is not None and warn_at < limit and age > warn_at and not is_warned:
            is_warned = True
            os.kill(process.pid, number)
        time.sleep(_POLL_S)
    is_requeued = (job / "requeue").exists()
    (job / "requeue").unlink(missing_ok=True)
    _end(process.pid)
    return ("REQUEUED" if is_requeued else "ENDED"), process.wait()


def _end(session: int) -> None:
    """TERM to every process of the job, KILL to those that are left."""
    for number, wait_s in ((signal.SIGTERM, _KILL_WAIT_S), (signal.SIGKILL, 0.1)):
        for pid in _members(session):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
        deadline = time.monotonic() + wait_s
        while _members(session) and time.monotonic() < deadline:
            time.sleep(_POLL_S)


def _members(session: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if fields[3] == str(session) and fields[0] != "Z":
                found.append(int(entry.name))
    return found


def _scontrol(home: Path, arguments: list[str]) -> int:
    if arguments[:2] == ["show", "hostnames"]:
        print("\n".join(arguments[2].split(",")))
        return 0
    command, job_id = arguments
    job = home / "jobs" / job_id
    if command != "requeue" or not (job / "may_requeue").exists():
        print("Requested operation is presently disabled", file=sys.stderr)
        return 1
    (job / "requeue").touch()
    return 0


def _scancel(home: Path, arguments: list[str]) -> int:
    job = home / "jobs" / arguments[-1]
    wanted = [word.partition("=")[2] for word in arguments if word.startswith("--signal=")]
    if "--batch" in arguments:
        os.kill(int((job / "pid").read_text()), getattr(signal, f"SIG{wanted[0]}"))
    else:
        (job / "cancel").touch()
    return 0


def _srun(home: Path, arguments: list[str]) -> int:
    options = {}
    while arguments[0].startswith("--"):
        name, _, value = arguments.pop(0).partition("=")
        options[name] = value
    running: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, frame: object) -> None:
        for process in running:
            process.send_signal(number)

    signal.signal(signal.SIGTERM, pass_on)
    signal.signal(signal.SIGINT, pass_on)
    for host in options["--nodelist"].split(","):
        with Path(options["--output"].replace("%N", host)).open("ab") as log:
            environment = os.environ | {"SLURMD_NODENAME": host}
            running.append(subprocess.Popen(arguments, env=environment, stdout=log, stderr=subprocess.STDOUT))
    return max(process.wait() for process in running)


if __name__ == "__main__":
    _PROGRAMS = {"sbatch": _sbatch, "srun": _srun, "scontrol": _scontrol, "scancel": _scancel}
    sys.exit(_PROGRAMS[sys.argv[2]](Path(sys.argv[1]), sys.argv[3:]))
