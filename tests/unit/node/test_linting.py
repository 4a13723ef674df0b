"""The Dockerfile and the shell scripts pass the linters of their languages, and the linters are asked."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from tests.docker.dockerfile import CHECKOUT
from tests.docker.linting import TOOLS, complaints, main, program, scripts


def require(tool: str) -> None:
    if program(tool) is None:
        pytest.skip(f"{tool} is not here: pip install {TOOLS[tool]}")


def test_the_dockerfile_passes_hadolint() -> None:
    """What it is told to overlook stands in the file, with the line."""
    require("hadolint")
    assert complaints("hadolint", ["Dockerfile"]) == ""


def test_all_shell_scripts_pass_shellcheck() -> None:
    """Together, so that it follows what they source."""
    require("shellcheck")
    assert complaints("shellcheck", scripts()) == ""


def test_every_command_of_the_project_is_among_the_scripts() -> None:
    """Whatever of bin/ and slurm/ can be executed, and those that stand alone."""
    folders = [CHECKOUT / name for name in ("bin", "slurm", ".ci")]
    executable = [path for folder in folders for path in folder.iterdir() if path.stat().st_mode & stat.S_IXUSR]
    assert {path.relative_to(CHECKOUT).as_posix() for path in executable} <= set(scripts())
    assert {"bin/_env", "lean/setup", "requirements/compile", ".ci/run"} <= set(scripts())


@pytest.mark.parametrize(
    ("tool", "name", "text", "code"),
    [
        ("shellcheck", "bad", "#!/usr/bin/env bash\nrm -rf $1/*\n", "SC2086"),
        ("hadolint", "Dockerfile", "FROM debian\nRUN cd /tmp\n", "DL3003"),
    ],
)
def test_a_fault_is_found(tmp_path: Path, tool: str, name: str, text: str, code: str) -> None:
    """The tools say something where there is something to say."""
    require(tool)
    (tmp_path / name).write_text(text)
    assert code in complaints(tool, [name], tmp_path)


def test_a_tool_that_is_not_here_fails_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """Continuous integration that linted nothing would call it passed."""
    monkeypatch.setattr("tests.docker.linting.program", lambda tool: None)
    assert main() == 1


def test_continuous_integration_lints() -> None:
    """With the Python that runs the rest."""
    assert '"$FD_PYTHON" -m tests.docker.linting' in (CHECKOUT / ".ci" / "run").read_text()
