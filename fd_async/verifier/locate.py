"""Find the program that judges, and say in one line what is missing when it is not there.

`lake env` is asked once, so that each worker is one REPL process and not Lake, a shell and a REPL.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from fd_async.config.schema import Verifier as VerifierTable
from fd_async.errors import PreflightError
from fd_async.verifier.repl import ReplSpec, clean_environment

_LAKE_ENV_TIMEOUT_S = 120.0


def locate_minilean(config: VerifierTable) -> tuple[ReplSpec, str]:
    """Return how to start the small checker, and its name."""
    argv = tuple(config.command) or (sys.executable, "-m", "fd_async.verifier.minilean")
    package = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH", "")]))
    return _spec(config, argv, None, clean_environment({"PYTHONPATH": path})), "minilean"


def read_toolchain(project: Path) -> str:
    """Return the content of the project's lean-toolchain file, or `unknown`."""
    file = project / "lean-toolchain"
    return file.read_text().strip() if file.is_file() else "unknown"


def _spec(config: VerifierTable, argv: tuple[str, ...], cwd: str | None, env: Mapping[str, str]) -> ReplSpec:
    return ReplSpec(
        argv=argv,
        cwd=cwd,
        env=env,
        nice=config.nice,
        memory_gib=config.memory_limit_gib,
        import_timeout_s=config.import_timeout_s,
    )


def locate_repl(config: VerifierTable) -> tuple[ReplSpec, str]:
    """Return how to start a REPL, and the toolchain of the project; may take a while (`lake env`).

    Raises:
        PreflightError: Lean, the project or the REPL is missing.
    """
    project = Path(config.project_dir).resolve()
    if config.command:
        if shutil.which(config.command[0]) is None:
            raise PreflightError(f"verifier.command: there is no program {config.command[0]!r}")
        cwd = str(project) if project.is_dir() else None
        return _spec(config, tuple(config.command), cwd, clean_environment()), read_toolchain(project)
    set_up = f"run `lean/setup` (needs a network once), or set verifier.project_dir (now {config.project_dir!r})"
    if not any((project / name).is_file() for name in ("lakefile.toml", "lakefile.lean")):
        raise PreflightError(f"there is no Lake project in {config.project_dir}: {set_up}")
    lake = shutil.which("lake") or shutil.which("lake", path=str(Path.home() / ".elan" / "bin"))
    if lake is None:
        raise PreflightError(f"Lean is not installed (no `lake` on PATH): {set_up}")
    program = _find_repl_program(project)
    if program is None:
        raise PreflightError(f"the Lean REPL is not built in {config.project_dir}: {set_up}")
    environment = _lake_environment(lake, project)
    return _spec(config, (str(program),), str(project), environment), read_toolchain(project)


def _find_repl_program(project: Path) -> Path | None:
    for place in (".lake/packages/repl/.lake/build/bin/repl", ".lake/packages/REPL/.lake/build/bin/repl"):
        if (project / place).is_file():
            return project / place
    return None


def _lake_environment(lake: str, project: Path) -> dict[str, str]:
    """Ask `lake env` for what Lean needs and keep only that."""
    try:
        result = subprocess.run(
            [lake, "env", "env", "-0"],
            cwd=project,
            env=clean_environment(),
            capture_output=True,
            timeout=_LAKE_ENV_TIMEOUT_S,
            check=True,
        )
    except subprocess.TimeoutExpired as error:
        raise PreflightError(f"`lake env` in {project} did not answer in {_LAKE_ENV_TIMEOUT_S:g} s") from error
    except (OSError, subprocess.CalledProcessError) as error:
        detail = getattr(error, "stderr", b"") or str(error).encode()
        last = detail.decode("utf-8", "replace").strip().splitlines()[-1:]
        raise PreflightError(f"`lake env` failed in {project}: {' '.join(last)}; run `lean/setup` again") from error
    pairs = (item.partition("=") for item in result.stdout.decode("utf-8", "replace").split("\0") if item)
    found = {name: value for name, _, value in pairs}
    kept = {name: found[name] for name in found if name.startswith(("LEAN", "LAKE", "ELAN")) or name == "PATH"}
    if "LEAN_PATH" not in kept:
        raise PreflightError(f"`lake env` in {project} sets no LEAN_PATH; run `lean/setup` again")
    return clean_environment({**kept, "LEAN_NUM_THREADS": "1"})
