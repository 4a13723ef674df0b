"""What Dockerfile, .dockerignore and compose.yaml promise, read from the files; tests/docker/exercise.py runs them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.docker.dockerfile import CHECKOUT, Instruction, context, instructions, variables

FILE = list(instructions())


@pytest.fixture
def service() -> dict[str, Any]:
    return yaml.safe_load((CHECKOUT / "compose.yaml").read_text())["services"]["run"]


def last_stage() -> list[Instruction]:
    return [one for one in FILE if not one.stage]


def test_every_base_image_is_pinned_by_digest() -> None:
    """Directly, or by an argument that is."""
    pinned = re.compile(r"\S+:\S+@sha256:[0-9a-f]{64}")
    arguments = dict(one.text.split("=", 1) for one in FILE if one.word == "ARG" and "=" in one.text)
    bases = [one.text.split()[0] for one in FILE if one.word == "FROM"]
    assert len(bases) == 3
    for base in bases:
        name = re.fullmatch(r"\$\{(\w+)\}", base)
        assert pinned.fullmatch(arguments[name[1]] if name else base)


def test_the_image_runs_as_an_unprivileged_user_by_number() -> None:
    """By number, so that a scheduler sees that it is not root; nothing is made after it."""
    words = [one.word for one in last_stage()]
    assert last_stage()[words.index("USER")].text == "10001:10001"
    assert not {"RUN", "COPY", "ADD"} & set(words[words.index("USER") :])


def test_the_image_can_compile_what_a_start_compiles() -> None:
    """Triton with Python's headers, torch.compile with g++, caches where any user may write."""
    install = next(one for one in last_stage() if one.word == "RUN" and "apt-get install" in one.text)
    assert {"g++", "python3.12-dev"} <= set(install.text.split())
    assert variables(FILE)["HOME"] == "/cache"
    assert any("install -d -m 1777 /cache" in one.text for one in last_stage())


def test_packages_come_from_the_lock_with_hashes() -> None:
    """And from nowhere else."""
    (install,) = [one for one in FILE if one.word == "RUN" and "pip install" in one.text]
    assert {"--no-deps", "--require-hashes", "-r"} <= set(install.text.split())


def test_no_secret_can_enter_the_image() -> None:
    """No variable looks like a key, and the context holds what is named alone."""
    names = [*variables(FILE), *(one.text.partition("=")[0] for one in FILE if one.word == "ARG")]
    assert not [name for name in names if re.search(r"KEY|TOKEN|SECRET|PASSWORD", name)]
    tops = {name.split("/")[0] for name in context()}
    allowed = "LICENSE README.md pyproject.toml bench bin configs docs examples fd_async lean requirements tests"
    assert tops <= set(allowed.split())


def test_the_context_follows_the_rules_of_docker(tmp_path: Path) -> None:
    """The last pattern that matches decides; a folder's name stands for what is in it."""
    for name in ("a/keep.py", "a/__pycache__/x.pyc", "a/deep/.env", "b/x", "lean/.lake/big", "lean/setup", "top.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / ".dockerignore").write_text("# no\n*\n!a\n!lean\n!top.*\nlean/.lake\n**/__pycache__\n**/.env*\n")
    assert context(tmp_path) == ["a/keep.py", "lean/setup", "top.txt"]


def test_the_health_check_asks_for_the_pulse_of_the_run() -> None:
    """Not for the machine: the run itself uses up what fd-check would look for."""
    (check,) = [one for one in FILE if one.word == "HEALTHCHECK"]
    assert check.argv == ["bin/fd-check", "--health"]
    assert "--interval=60s" in check.text


def test_the_command_of_the_header_is_what_compose_says(service: dict[str, Any]) -> None:
    """Shared memory, sandbox, time to stop, volumes, key and command."""
    text = (CHECKOUT / "Dockerfile").read_text()
    header = " ".join(line.removeprefix("#").strip() for line in text.split("\n\n")[0].splitlines())
    sandbox = re.search(r'SANDBOX="([^"]+)"', header)
    command = re.search(r"docker run (.*?fd-continue \S+ \S+ --set \S+)", header)
    assert sandbox is not None
    assert command is not None
    words = shlex.split(command[1].replace("$SANDBOX", sandbox[1]))
    options = [words[index + 1] for index, word in enumerate(words) if word == "--security-opt"]
    assert options == service["security_opt"]
    assert words[words.index("--shm-size") + 1] == service["shm_size"].removesuffix("b")
    assert "--init" in words
    assert service["init"] is True
    assert words[words.index("--stop-timeout") + 1] == "600"
    assert service["stop_grace_period"] == "10m"
    assert "ANTHROPIC_API_KEY" in service["environment"]
    mounted = [word.partition(":")[2] for word in words if ":/" in word]
    assert mounted == [volume.partition(":")[2] for volume in service["volumes"]]
    said = service["command"].replace("${FD_RUN:-", "").replace("}", "").split()
    assert words[words.index("fd-async") + 1 :] == said


def test_compose_gives_time_for_a_checkpoint_and_ends_what_cannot_start(service: dict[str, Any]) -> None:
    """The run has less time than Docker waits; restarts are counted; keys have no value in the file."""
    shutdown_s = int(re.search(r"run\.shutdown_s=(\d+)", service["command"])[1])  # type: ignore[index]
    assert shutdown_s < 600
    assert re.fullmatch(r"on-failure:\d", service["restart"])
    assert not [entry for entry in service["environment"] if "=" in entry]
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}


def test_slurm_warns_earlier_than_a_run_needs() -> None:
    """Than FD_SHUTDOWN_S and the seconds after which the run is killed."""
    text = (CHECKOUT / "slurm" / "fd_async.sbatch").read_text()
    signal_s = int(re.search(r"#SBATCH --signal=B:USR1@(\d+)", text)[1])  # type: ignore[index]
    default_s = int(re.search(r"FD_SHUTDOWN_S=\$\{FD_SHUTDOWN_S:-(\d+)\}", text)[1])  # type: ignore[index]
    assert default_s + 20 < signal_s


def test_parsing_joins_lines_and_knows_stages() -> None:
    """Comments inside a continuation are left out."""
    words = [one.word for one in FILE]
    assert words.count("FROM") == 3
    assert {one.stage for one in FILE if one.word == "RUN"} == {"lean", "python", ""}
    install = next(one for one in FILE if "useradd" in one.text)
    assert install.commands[-1] == "useradd --no-create-home --home-dir /cache --uid 10001 fd"
