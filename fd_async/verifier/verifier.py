"""The verifier as the rest of the project sees it: `open_verifier` and `Verifier.check`.

Owns the choice of the backend and the cache of verdicts by content. The same file for the same statement under the
same header is judged once, also when several rollouts ask at the same time. Infrastructure verdicts are never kept.
Nothing falls back from one backend to another.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import structlog
from anyio import Event, to_thread

from fd_async.config.schema import Verifier as VerifierTable
from fd_async.errors import PreflightError
from fd_async.types import Statement, Verdict
from fd_async.verifier.backend import LeanBackend
from fd_async.verifier.judge import Judge, sha256
from fd_async.verifier.repl import ReplSpec, clean_environment
from fd_async.verifier.repl_backend import open_repl_backend

_CACHE_SIZE = 20_000
_LAKE_ENV_TIMEOUT_S = 120.0


class Verifier:
    """Judges files. Made by `open_verifier`."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._cache: OrderedDict[str, Verdict] = OrderedDict()
        self._running: dict[str, Event] = {}
        self._checks = 0
        self._infra_errors = 0
        self._cache_hits = 0

    @property
    def toolchain(self) -> str:
        """What judges, for logs and reports."""
        return self._judge.backend.toolchain

    async def check(self, code: str, statement: Statement) -> Verdict:
        """Judge `code` for `statement`; never raises for anything that the file or Lean does."""
        self._checks += 1
        key = sha256("\0".join([self._judge.header_of(statement), statement.formal_statement, code]))
        while True:
            known = self._cache.get(key)
            if known is not None:
                self._cache.move_to_end(key)
                self._cache_hits += 1
                return known
            running = self._running.get(key)
            if running is None:
                break
            await running.wait()
        done = self._running[key] = Event()
        try:
            verdict = await self._judge.judge(code, statement)
        finally:
            del self._running[key]
            done.set()
        if verdict.is_infrastructure:
            self._infra_errors += 1
        else:
            self._cache[key] = verdict
            if len(self._cache) > _CACHE_SIZE:
                self._cache.popitem(last=False)
        return verdict

    def statistics(self) -> dict[str, float]:
        """Counters since the start (`checks`, `infra_errors`, `cache_hits`, `restarts`, `desyncs`, ...) and gauges."""
        own = {"checks": self._checks, "infra_errors": self._infra_errors, "cache_hits": self._cache_hits}
        return {"waiting": 0.0, "busy": 0.0, "restarts": 0.0, "desyncs": 0.0, **self._judge.backend.statistics(), **own}


@asynccontextmanager
async def open_verifier(config: VerifierTable, *, output_chars: int, log: Any = None) -> AsyncIterator[Verifier]:
    """Start the configured backend, check that it answers, and stop it at the end.

    Args:
        config: The `[verifier]` table.
        output_chars: Longest compiler output that the model sees.
        log: A structlog-style logger; None takes the verifier's own.

    Raises:
        PreflightError: The backend cannot be used; the message says what is missing and how to get it.
    """
    log = log or structlog.get_logger("fd_async.verifier")
    async with await _open_backend(config, log) as backend:
        yield Verifier(Judge(backend, config.header, frozenset(config.allowed_axioms), output_chars))


async def _open_backend(config: VerifierTable, log: Any) -> AbstractAsyncContextManager[LeanBackend]:
    if config.backend == "kimina":
        from fd_async.verifier.kimina import open_kimina  # aiohttp is only needed here

        return open_kimina(config)
    if config.backend == "minilean":
        log.warning("minilean judges proofs, not Lean: the tiny world's small checker of a fragment of core Lean 4")
        argv = tuple(config.command) or (sys.executable, "-m", "fd_async.verifier.minilean")
        root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
        spec = _spec(config, argv, None, clean_environment({"PYTHONPATH": path}))
        toolchain = "minilean"
    else:
        spec = await _resolve_repl(config)
        toolchain = read_toolchain(Path(config.project_dir))
        log.info("Lean judges proofs", toolchain=toolchain, command=" ".join(spec.argv), workers=config.workers)
    return open_repl_backend(
        spec,
        name=config.backend,
        toolchain=toolchain,
        header=config.header.replace("\r\n", "\n").strip(),
        workers=config.workers,
        max_uses=config.max_uses,
        queue_timeout_s=config.queue_timeout_s,
        check_timeout_s=config.check_timeout_s,
    )


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


async def _resolve_repl(config: VerifierTable) -> ReplSpec:
    """Find the REPL program and its environment once, so that each worker is one process and not three."""
    project = Path(config.project_dir).resolve()
    if config.command:
        if shutil.which(config.command[0]) is None:
            raise PreflightError(f"verifier.command: there is no program {config.command[0]!r}")
        cwd = str(project) if project.is_dir() else None
        return _spec(config, tuple(config.command), cwd, clean_environment())
    set_up = f"run `lean/setup` (needs a network once), or set verifier.project_dir (now {config.project_dir!r})"
    if not any((project / name).is_file() for name in ("lakefile.toml", "lakefile.lean")):
        raise PreflightError(f"there is no Lake project in {config.project_dir}: {set_up}")
    lake = shutil.which("lake") or shutil.which("lake", path=str(Path.home() / ".elan" / "bin"))
    if lake is None:
        raise PreflightError(f"Lean is not installed (no `lake` on PATH): {set_up}")
    program = _find_repl_program(project)
    if program is None:
        raise PreflightError(f"the Lean REPL is not built in {config.project_dir}: {set_up}")
    environment = await to_thread.run_sync(_lake_environment, lake, project)
    return _spec(config, (str(program),), str(project), environment)


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
