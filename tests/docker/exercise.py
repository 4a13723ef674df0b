"""Runs here what can be run of the Dockerfile without Docker, and says for every line what was done.

    python -m tests.docker.exercise [--environment] [--run] [--write docs/gpu_node.md]

The build context is copied to a scratch folder, its owner is root as in the image, and the commands of the last stage
run there as uid 10001 without network. `--environment` makes an environment from the CPU lock with bin/_env (minutes,
4 GB; kept, and taken again while the lock is the same); without it the environment of this Python serves. `--run`
trains the tiny world for two steps in the copy. Needs root, for setpriv and unshare.

A line is `exercised` (its commands ran here), `partly` (some did; which not, and why), `linted` (read by hadolint and
the tests only), or `not run`. A step that fails ends the script with exit code 1.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from packaging.markers import Marker

from tests.docker.dockerfile import CHECKOUT, Instruction, context, instructions, variables
from tests.docker.linting import lint

UID = "10001"
_AS_USER = ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups", "--no-new-privs"]
BEGIN, END = "<!-- exercise: begin -->", "<!-- exercise: end -->"
_NO_HELP = ("fd-test", "fd-continue")
"""Commands that hand all options on."""
_LOOPBACK_UP = (
    "import fcntl,os,socket,struct,sys;s=socket.socket();r=struct.pack('16sh14x',b'lo',1|64);"
    "fcntl.ioctl(s,0x8914,r);os.execvp(sys.argv[1],sys.argv[1:])"
)
"""Raises the loopback of a new network name space, then becomes the command."""


class Row(NamedTuple):
    """What was done about an instruction."""

    status: str
    what: str


class Place:
    """The copy of the image's file tree, and the Python that stands for /opt/venv."""

    def __init__(self, scratch: Path, python: Path) -> None:
        self.app, self.python = scratch / "app", python
        self.cache = scratch / "cache"
        self.env = variables(list(instructions()))

    def variables(self) -> dict[str, str]:
        """The environment of the last stage, its places moved to the copy."""
        moved = {name: value.replace("/cache", str(self.cache)) for name, value in self.env.items()}
        moved["PATH"] = f"{self.python.parent}:{os.environ['PATH']}"
        moved["VIRTUAL_ENV"] = str(self.python.parent.parent)
        return moved | {"PYTHONPATH": str(self.app), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

    def run(self, *argv: str, code: int = 0, timeout_s: float = 300.0, user: bool = True) -> str:
        """Run in the copy, as the user of the image and without network; return the output.

        Raises:
            SystemExit: another exit code than `code`.
        """
        change = _AS_USER if user else []
        words = ["unshare", "--net", sys.executable, "-c", _LOOPBACK_UP, *change, *argv]
        done = subprocess.run(
            words, cwd=self.app, env=self.variables(), capture_output=True, text=True, timeout=timeout_s, check=False
        )
        if done.returncode != code:
            raise SystemExit(f"{' '.join(argv)}: exit code {done.returncode}, not {code}\n{done.stdout}{done.stderr}")
        return done.stdout + done.stderr


def _copy_context(place: Place) -> Row:
    files = context()
    for name in files:
        target = place.app / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(CHECKOUT / name, target)
    size = sum((CHECKOUT / name).stat().st_size for name in files) / 1e6
    wrong = [name for name in files if name.split("/")[0] in (".git", ".venv", "runs") or "/.lake/" in f"/{name}"]
    if wrong or "bin/fd-run" not in files or "lean/setup" not in files:
        raise SystemExit(f"the build context is wrong: {wrong[:5]}")
    return Row("exercised", f"{len(files)} files, {size:.1f} MB by .dockerignore; no .git, .venv, runs, .lake, .env")


def _compile_and_make_folders(place: Place, instruction: Instruction) -> Row:
    for command in instruction.commands:
        words = command.replace("python ", f"{place.python} ").replace("/cache", str(place.cache)).split()
        place.run(*words, user=False)
    return Row("exercised", "in the copy of the context")


def _user(place: Place, with_run: bool) -> Row:
    said = []
    names = sorted(path.name for path in (place.app / "bin").glob("fd-*") if path.name not in _NO_HELP)
    for name in names:
        place.run(f"bin/{name}", "--help")
    said.append(f"{', '.join(names)} answer")
    place.run("bin/fd-run", "--config", "configs/tiny_fd.toml", "--dry-run")
    found = place.run("bin/fd-check", "--config", "configs/tiny_fd.toml", "--quick")
    sandbox = next(line for line in found.splitlines() if re.match(r"\w+ +sandbox ", line))
    said.append("`fd-check --quick` and a dry run of the tiny world pass")
    said.append(f"the sandbox: {sandbox.split('sandbox')[1].strip()}")
    place.run("/bin/sh", "-c", f"touch runs/x data/x {place.cache}/x && rm runs/x data/x {place.cache}/x")
    place.run("/bin/sh", "-c", "touch fd_async/x 2>/dev/null || touch bin/x 2>/dev/null", code=1)
    said.append("runs, data and /cache can be written, the code cannot")
    place.run(str(place.python), "-c", "import socket; socket.create_connection(('1.1.1.1', 443), 2)", code=1)
    said.append("without network")
    if with_run:
        words = ("bin/fd-continue", "--config", "configs/tiny_fd.toml", "--set", "eval.at_start=false")
        started = time.monotonic()
        place.run(*words, "--set", "eval.limit=8", "--set", "eval.at_end=false", "--max-steps", "2", timeout_s=540)
        place.run(*words, "--set", "eval.at_end=false", "--set", "eval.limit=8", "--max-steps", "3", timeout_s=540)
        steps = len((place.app / "runs/tiny_fd/metrics.jsonl").read_text().splitlines())
        took = time.monotonic() - started
        said.append(
            f"`fd-continue` trained {steps} steps of the tiny world with vLLM (CPU) in two starts, {took:.0f} s"
        )
    return Row("exercised", f"as uid {UID}: {'; '.join(said)}")


def _health(place: Place, instruction: Instruction) -> Row:
    """No run, a run with a pulse, one without: process 1 stands for it, which was here before any sign of it."""
    folder, started = place.app / "runs" / "pulse", time.monotonic()
    place.run(*instruction.argv)
    took = time.monotonic() - started
    folder.mkdir()
    for age, code in ((1, 0), (500, 3)):
        status = {"pid": 1, "updated_at": time.time() - age, "phase": "training", "step": 3, "max_steps": 9}
        (folder / "status.json").write_text(json.dumps(status))
        place.run(*instruction.argv, code=code)
    shutil.rmtree(folder)
    return Row("exercised", f"no run, a run with a pulse, one without ({took:.1f} s with the start of Python)")


def _lock(place: Place, made: str) -> Row:
    locked = {lock: _locked(lock) for lock in ("gpu", "cpu")}
    names = json.dumps([name for name, _ in locked["cpu"]])
    script = f"import importlib.metadata as m, json; print(json.dumps([m.version(name) for name in {names}]))"
    found = json.loads(place.run(str(place.python), "-c", script).strip().splitlines()[-1])
    others = [
        f"{name} {version}" for (name, wanted), version in zip(locked["cpu"], found, strict=True) if version != wanted
    ]
    if others and made:
        raise SystemExit(f"not the versions of requirements/cpu.txt: {', '.join(others)}")
    place.run(str(place.python), "-c", "import fd_async.cli, torch, vllm, deepspeed")
    which = made or "the environment of this Python"
    but = f" but {', '.join(others)}" if others else ""
    same = f"{which} has all {len(found)} packages of the CPU lock at their versions{but}, and imports them"
    hashes = f"all {len(locked['gpu'])} of the GPU lock have hashes"
    return Row("partly", f"{same}; {hashes}, its CUDA wheels were not fetched")


def _locked(lock: str) -> list[tuple[str, str]]:
    """Return name and version of every package of a lock that this Python would get.

    Raises:
        SystemExit: one has no hash.
    """
    text = (CHECKOUT / f"requirements/{lock}.txt").read_text()
    packages = []
    for part in re.split(r"\n(?=\S)", text):
        match = re.match(r"([\w.-]+)(?:\[.*\])?==([^\s;]+)(?:\s*;\s*([^\\\n]*))?", part)
        if match is None:
            continue
        if "--hash=sha256:" not in part:
            raise SystemExit(f"requirements/{lock}.txt: {match[1]} has no hash")
        if not match[3] or Marker(match[3].strip()).evaluate():
            packages.append((match[1], match[2]))
    return packages


def _packages(instruction: Instruction) -> Row:
    names = [word for word in instruction.commands[1].split("--no-install-recommends")[1].split() if word != "-y"]
    known = [name for name in names if _apt_knows(name)]
    unknown = [name for name in names if name not in known]
    if not known:
        return Row("linted", "no apt here")
    rest = f"; not known to the Debian here, which is not the image's Ubuntu: {', '.join(unknown)}" if unknown else ""
    done = subprocess.run(
        ["apt-get", "install", "--simulate", "--no-install-recommends", "-y", *known],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return Row("partly", f"`apt-get install --simulate` of {', '.join(known)}{rest}")


def _apt_knows(name: str) -> bool:
    done = subprocess.run(["apt-cache", "show", name], capture_output=True, timeout=60, check=False)
    return done.returncode == 0


def _setup(place: Place) -> Row:
    help_text = place.run("/bin/bash", "-c", "cd lean && ./setup --help")
    if "--check" not in help_text:
        raise SystemExit("lean/setup --help does not name --check")
    return Row(
        "partly",
        "`./setup --help` as the user; the set-up itself needs Lean's servers (its stages: test_lean_setup.py)",
    )


def interpreter() -> str:
    """Return a Python of this minor version that the user of the image can start: this one may lie in a home folder.

    Raises:
        SystemExit: there is none.
    """
    name = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    for program in (getattr(sys, "_base_executable", sys.executable), f"/usr/bin/{name}", f"/usr/local/bin/{name}"):
        # Through a shell: setpriv itself still finds what the user cannot.
        words = [*_AS_USER, "/bin/sh", "-c", f"{program} -V"]
        if subprocess.run(words, capture_output=True, check=False).returncode == 0:
            return program
    raise SystemExit(f"no {name} that uid {UID} can start: install one for all users")


def borrow(folder: Path) -> Path:
    """Make an environment for any user that takes the packages of this Python; return its interpreter."""
    subprocess.run([interpreter(), "-m", "venv", "--without-pip", str(folder)], check=True)
    site = next(folder.glob("lib/python3*/site-packages"))
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin" / "python3"


def rows(place: Place, *, made: str, with_run: bool) -> list[tuple[Instruction, Row]]:
    """Go through the file in its order; each instruction gets its row."""
    pending = [(one, _way(one, place, made, with_run)) for one in instructions()]
    # The copy comes first: the others happen in it.
    first = next(index for index, (one, _) in enumerate(pending) if one.word == "COPY" and one.text == ". /app")
    copied = pending[first][1]()
    return [(one, copied if index == first else way()) for index, (one, way) in enumerate(pending)]


def _way(one: Instruction, place: Place, made: str, with_run: bool) -> Callable[[], Row]:
    text = one.text
    if one.word == "RUN" and "apt-get" in text:
        return lambda: _packages(one)
    ways: dict[tuple[str, str], Callable[[], Row]] = {
        ("RUN", "./setup"): lambda: _setup(place),
        ("RUN", "python3.12 -m venv"): lambda: Row("exercised", place.run(str(place.python), "-V").strip()),
        ("RUN", "/opt/venv/bin/pip"): lambda: _lock(place, made),
        ("RUN", "python -m compileall"): lambda: _compile_and_make_folders(place, one),
        ("COPY", ". /app"): lambda: _copy_context(place),
        ("COPY", "--from"): lambda: Row("not run", "no stage was built: there is no container engine here"),
        ("COPY", ""): lambda: _in_context(one),
        ("USER", ""): lambda: _user(place, with_run),
        ("HEALTHCHECK", ""): lambda: _health(place, one),
        ("CMD", ""): lambda: Row("exercised", _first_line(place.run(*one.argv))),
        ("ENV", "VIRTUAL_ENV"): lambda: Row("exercised", "set for every command of the last stage here, places moved"),
        ("WORKDIR", "/app"): lambda: Row("exercised", "every command here runs in the copy's /app"),
        ("FROM", ""): lambda: Row("linted", "pulling needs a container engine"),
    }
    for (word, start), way in ways.items():
        if one.word == word and text.startswith(start):
            return way
    return lambda: Row("linted", "")


def _in_context(one: Instruction) -> Row:
    source = one.text.split()[0].rstrip("/")
    files = [name for name in context() if name == source or name.startswith(f"{source}/")]
    if not files:
        raise SystemExit(f"line {one.line}: {source} is not in the build context")
    return Row("exercised", f"{len(files)} file(s) of the context")


def _first_line(output: str) -> str:
    return f"`{output.strip().splitlines()[0][:60]} ...`"


def environment(cache: Path) -> tuple[Path, str]:
    """Make an environment from the CPU lock as a first call of bin/ does; keep it while the lock is the same."""
    for name in context():
        target = cache / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(CHECKOUT / name, target)
    started = time.monotonic()
    variables = {name: value for name, value in os.environ.items() if name not in ("FD_PYTHON", "PYTHONPATH")}
    path = f"{Path(interpreter()).parent}:{os.environ['PATH']}"  # bin/_env takes the first python3
    script = 'unset VIRTUAL_ENV CONDA_PREFIX; source bin/_env; fd_env; echo "$FD_PYTHON"'
    variables |= {"FD_DEVICE": "cpu", "PATH": path}
    words = ["/bin/bash", "-c", script]
    done = subprocess.run(words, cwd=cache, env=variables, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"bin/_env failed in {cache}")
    return Path(
        done.stdout.strip()
    ), f"bin/_env made the environment from requirements/cpu.txt ({time.monotonic() - started:.0f} s)"


def main() -> int:
    """Exercise, print the table, and write it where asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--environment", type=Path, metavar="FOLDER", help="make the environment of the CPU lock there")
    parser.add_argument("--run", action="store_true", help="train the tiny world for three steps, in two starts")
    parser.add_argument("--write", type=Path, metavar="FILE", help="replace the table between the marks in this file")
    arguments = parser.parse_args()
    linted = lint()
    with tempfile.TemporaryDirectory(prefix="fd-exercise-") as scratch:
        os.chmod(scratch, 0o755)
        if arguments.environment:
            python, made = environment(arguments.environment)
        else:
            python, made = borrow(Path(scratch) / "venv"), ""
        found = rows(Place(Path(scratch), python), made=made, with_run=arguments.run)
    table = ["| line | instruction | here | what, or why not |", "|---|---|---|---|"]
    for one, row in found:
        shown = " ".join(f"{one.word} {one.text}".split())
        shown = (shown if len(shown) <= 60 else f"{shown[:57]}...").replace("|", "\\|")
        table.append(f"| {one.line} | `{shown}` | {row.status} | {row.what or 'read by hadolint and the tests'} |")
    text = "\n".join([*table, "", *(f"- {line}" for line in linted)])
    print(text)
    if arguments.write:
        before, _, rest = arguments.write.read_text().partition(BEGIN)
        arguments.write.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
