"""Find the program that judges and lock it in, and say in one line what is missing when that cannot be done.

`lake env` is asked once, so that each worker is one REPL process and not Lake, a shell and a REPL.
"""

from __future__ import annotations

import importlib.util
import math
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fd_async.config.files import project_of
from fd_async.config.schema import Verifier as VerifierTable
from fd_async.errors import PreflightError
from fd_async.verifier.repl.process import ReplSpec, clean_environment
from fd_async.verifier.sandbox.probe import probe_sandbox
from fd_async.verifier.sandbox.room import Limits, Room, find_bubblewrap, unsandboxed_wrapper

_LAKE_ENV_TIMEOUT_S = 120.0
_THREADS = 4
_WITHOUT = 'To run without one, at your own risk, say verifier.sandbox = "unsandboxed".'


def locate_minilean(config: VerifierTable) -> tuple[ReplSpec, str]:
    """Return how to start the small checker, and its name."""
    argv = tuple(config.command) or (sys.executable, "-m", "fd_async.verifier.minilean")
    package = Path(__file__).resolve().parents[1]
    path = os.pathsep.join(filter(None, [str(package.parent), os.environ.get("PYTHONPATH", "")]))
    read = [str(package), *_python_reads(), *_command_reads(argv)]
    return _spec(config, argv, None, clean_environment({"PYTHONPATH": path}), read), "minilean"


def read_toolchain(project: Path) -> str:
    """Return the content of the project's lean-toolchain file, or `unknown`."""
    file = project / "lean-toolchain"
    return file.read_text().strip() if file.is_file() else "unknown"


def _spec(
    config: VerifierTable, argv: tuple[str, ...], cwd: str | None, env: Mapping[str, str], read: Iterable[str]
) -> ReplSpec:
    """Build an unsandboxed spec that knows what a sandbox has to show; `lock_in` makes it one that runs in it."""
    program = shutil.which(argv[0])
    return ReplSpec(
        argv=(os.path.abspath(program), *argv[1:]) if program else argv,
        cwd=cwd,
        env=env,
        room=Room(read=(*read, *config.sandbox_read), env=env, scratch_mib=config.sandbox_scratch_mib),
        limits=Limits(
            nice=config.nice,
            memory_gib=config.memory_limit_gib,
            cpu_s=_cpu_limit_s(config),
            file_mib=config.sandbox_scratch_mib,
        ),
        import_timeout_s=config.import_timeout_s,
    )


def _cpu_limit_s(config: VerifierTable) -> int:
    """Return more processor time than a worker can use in its life, and not much more.

    It loads its header, then checks until `max_uses` or `max_age_s`, the last one to its deadline; Lean's few threads
    may run at the same time. The deadlines end a worker long before; this ends one that nobody watches any more.
    """
    life = config.max_uses * config.check_timeout_s
    if config.max_age_s:
        life = min(life, config.max_age_s)
    return math.ceil(_THREADS * (config.import_timeout_s + life + config.check_timeout_s))


def locate_repl(config: VerifierTable) -> tuple[ReplSpec, str]:
    """Return how to start a REPL, and the toolchain of the project; may take a while (`lake env`).

    Raises:
        PreflightError: Lean, the project or the REPL is missing.
    """
    project = project_of(config)
    if config.command:
        if shutil.which(config.command[0]) is None:
            raise PreflightError(
                f"verifier.command: there is no program {config.command[0]!r}; install it, or name another"
            )
        cwd = str(project) if project.is_dir() else None
        argv = tuple(config.command)
        return _spec(config, argv, cwd, clean_environment(), _command_reads(argv)), read_toolchain(project)
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
    read = [str(program), *_lean_reads(environment)]
    return _spec(config, (str(program),), str(project), environment, read), read_toolchain(project)


def lock_in(spec: ReplSpec, config: VerifierTable, log: Any) -> ReplSpec:
    """Put the program behind the sandbox that the config asks for, after trying the sandbox from inside.

    Blocks for about a tenth of a second.

    Raises:
        PreflightError: The sandbox does not hold or does not start, and the config does not say that this is fine.
    """
    if config.sandbox == "unsandboxed":
        log.warning('verifier workers run unsandboxed, as verifier.sandbox = "unsandboxed" says: Lean can run programs')
        return replace(spec, wrapper=unsandboxed_wrapper())
    assert spec.room is not None
    problem = probe_sandbox(spec.room)
    if problem is None:
        return replace(spec, wrapper=spec.room.wrapper(find_bubblewrap() or "bwrap"))
    if config.sandbox == "bubblewrap_if_it_works" and config.backend == "minilean":
        log.info("minilean runs without a sandbox, which does not work here", cause=problem)
        return replace(spec, wrapper=unsandboxed_wrapper())
    raise PreflightError(f'verifier.sandbox = "{config.sandbox}": {problem} {_WITHOUT}')


def _python_reads() -> list[str]:
    """Return what this Python needs of its installation, and the libraries that the small checker uses."""
    paths = sysconfig.get_paths()
    found = [sys.executable, os.path.join(sys.prefix, "pyvenv.cfg"), *(paths[n] for n in ("stdlib", "platstdlib"))]
    found += [os.path.join(base, lib) for base in (sys.prefix, sys.base_prefix) for lib in ("lib", "lib64")]
    libraries = [importlib.util.find_spec(name) for name in ("lark", "z3")]
    return [*found, *(os.path.dirname(one.origin) for one in libraries if one is not None and one.origin)]


def _lean_reads(environment: Mapping[str, str]) -> list[str]:
    """Return the toolchain and the compiled libraries, and nothing else of the project."""
    places = [environment["LEAN_SYSROOT"], *environment["LEAN_PATH"].split(os.pathsep)]
    return [place for place in places if os.path.isabs(place)]


def _command_reads(argv: tuple[str, ...]) -> list[str]:
    """Return the files that a configured command names; a Python brings its library."""
    program = shutil.which(argv[0]) or argv[0]
    files = [program, *(word for word in argv[1:] if os.path.isabs(word) and os.path.isfile(word))]
    is_python = os.path.realpath(program) == os.path.realpath(sys.executable)
    return [*files, *(_python_reads() if is_python else [])]


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
    for name in ("LEAN_PATH", "LEAN_SYSROOT"):  # without the latter the REPL would ask `lean` where it is
        if name not in kept:
            raise PreflightError(f"`lake env` in {project} sets no {name}; run `lean/setup` again")
    return clean_environment({**kept, "LEAN_NUM_THREADS": "1"})
