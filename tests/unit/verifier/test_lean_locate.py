"""What a worker is shown and how long it may live, for each way to start one."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from fd_async.config.files import CHECKOUT, project_of
from fd_async.config.schema import Verifier as VerifierTable
from fd_async.errors import PreflightError
from fd_async.verifier.locate import locate_minilean, locate_repl

VARIABLES = {
    *("PATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONPATH"),
    *("LEAN_PATH", "LEAN_SYSROOT", "LEAN_NUM_THREADS"),
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> VerifierTable:
    """A Lake project in a folder that has other things too, its Mathlib behind a link, and a toolchain elsewhere."""
    lean = tmp_path / "lean"
    program = lean / ".lake/packages/REPL/.lake/build/bin/repl"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    (lean / "lakefile.toml").touch()
    (lean / "secret.txt").write_text("secret")
    (tmp_path / "shared/mathlib/.lake/build/lib/lean").mkdir(parents=True)
    (lean / ".lake/packages/mathlib").symlink_to(tmp_path / "shared/mathlib")
    (tmp_path / "toolchain/bin").mkdir(parents=True)
    path = f"{lean}/.lake/packages/mathlib/.lake/build/lib/lean:{lean}/.lake/build/lib/lean"
    lake = tmp_path / "bin/lake"
    lake.parent.mkdir()
    lake.write_text(f"#!/bin/sh\nprintf 'LEAN_PATH={path}\\0LEAN_SYSROOT={tmp_path}/toolchain\\0ELAN_HOME=/e\\0'\n")
    lake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{lake.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-secret")
    return VerifierTable(project_dir=str(lean))


def test_a_repl_is_shown_its_libraries_and_not_its_project(project: VerifierTable, tmp_path: Path) -> None:
    """Of the folders around them only the names that lead to them."""
    room = locate_repl(project)[0].room
    assert room is not None
    own = [path for path in room.shown() if path.startswith(str(tmp_path))]
    assert own == [
        f"{tmp_path}/lean/.lake/packages/REPL/.lake/build/bin/repl",
        f"{tmp_path}/shared/mathlib/.lake/build/lib/lean",
        f"{tmp_path}/toolchain",
    ]
    wrapper = " ".join(room.wrapper())
    assert f"--symlink {tmp_path}/shared/mathlib {tmp_path}/lean/.lake/packages/mathlib" in wrapper
    assert "sk-secret" not in wrapper


def test_lean_inside_finds_its_toolchain_and_nothing_of_the_user(project: VerifierTable, tmp_path: Path) -> None:
    """The variables that `lake env` sets for Lean, and no home."""
    room = locate_repl(project)[0].room
    assert room is not None
    inside = room.environment
    assert inside["LEAN_SYSROOT"] == f"{tmp_path}/toolchain"
    assert inside["PATH"] == f"{tmp_path}/toolchain/bin:/usr/bin:/bin"
    assert inside["HOME"] == inside["TMPDIR"] == "/tmp"
    assert set(inside) <= VARIABLES


def test_a_project_without_a_toolchain_path_is_refused(project: VerifierTable, tmp_path: Path) -> None:
    """Without it the REPL would start `lean`, which the sandbox does not allow."""
    (tmp_path / "bin/lake").write_text("#!/bin/sh\nprintf 'LEAN_PATH=/x\\0'\n")
    with pytest.raises(PreflightError, match=r"sets no LEAN_SYSROOT; run `lean/setup` again"):
        locate_repl(project)


def test_minilean_is_shown_python_and_the_package_alone() -> None:
    """Not the checkout around it, which holds the runs."""
    room = locate_minilean(VerifierTable(backend="minilean"))[0].room
    assert room is not None
    checkout = Path(__file__).resolve().parents[3]
    under = [path for path in room.shown() if Path(path).is_relative_to(checkout)]
    allowed = (str(checkout / "fd_async"), *(str(Path(p).resolve()) for p in (sys.prefix, sys.base_prefix)))
    assert str(checkout / "fd_async") in under
    assert all(path.startswith(allowed) for path in under)


def test_a_configured_command_is_shown_with_the_files_that_it_names(tmp_path: Path) -> None:
    """More is what `verifier.sandbox_read` is for."""
    (tmp_path / "repl.py").touch()
    (tmp_path / "more").mkdir()
    command = [sys.executable, str(tmp_path / "repl.py"), "--flag", str(tmp_path)]
    config = VerifierTable(command=command, project_dir=str(tmp_path), sandbox_read=[str(tmp_path / "more")])
    room = locate_repl(config)[0].room
    assert room is not None
    assert {f"{tmp_path}/repl.py", f"{tmp_path}/more"} <= set(room.shown())
    assert str(tmp_path) not in room.shown()


@pytest.mark.parametrize(
    ("changes", "cpu_s"),
    [
        ({"max_age_s": 3600.0, "max_uses": 500}, 4 * (180 + 3600 + 60)),
        ({"max_age_s": 0.0, "max_uses": 10}, 4 * (180 + 10 * 60 + 60)),
        ({"max_age_s": 3600.0, "max_uses": 1}, 4 * (180 + 60 + 60)),
    ],
)
def test_no_worker_computes_longer_than_its_life(changes: dict[str, Any], cpu_s: int) -> None:
    """Four threads for its start, its checks and the last one."""
    spec, _ = locate_minilean(VerifierTable(backend="minilean", **changes))
    assert spec.limits.cpu_s == cpu_s
    assert spec.limits.file_mib == 256


def test_the_run_and_fd_check_look_for_the_project_in_the_same_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Below the current directory first, then below the checkout, so that commands work from anywhere."""
    monkeypatch.chdir(tmp_path)
    assert project_of(VerifierTable(project_dir="lean")) == CHECKOUT / "lean"
    (tmp_path / "lean").mkdir()
    assert project_of(VerifierTable(project_dir="lean")) == tmp_path / "lean"
