"""The strictest audit: leanprover/comparator decides, from exported text and not from memory images.

It builds a module with our statement and a module with the proof, each in a sandbox of its own (`landrun`), exports
both as text (`lean4export`), compares everything that the statement means, allows three axioms and replays the proof
in a kernel that starts empty. We write the project that it needs: two modules, and a manifest that takes every package
from the Lean project as it was built, so that nothing is fetched and nothing of it is written. The ladder is climbed
in a fresh process first; only what passes is worth the comparator's minutes.

Written after the program's documentation and source of August 2026 (for Lean 4.34) and tested against a stand-in with
its command line; the program itself was not run here.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
from anyio import to_thread

from fd_async.errors import PreflightError, VerifierError
from fd_async.types import Statement
from fd_async.verifier.audit.audits import AuditRefused, LadderAuditor
from fd_async.verifier.audit.cold import scratch_folder
from fd_async.verifier.audit.program import Ended, run_program, with_folder
from fd_async.verifier.judge import Prepared, prepare
from fd_async.verifier.repl.process import ReplSpec

_PROGRAMS = {"comparator": "", "lean4export": "COMPARATOR_LEAN4EXPORT", "landrun": "COMPARATOR_LANDRUN"}
"""Program -> the variable by which the comparator is told where it is."""
_CHALLENGE, _SOLUTION = "Challenge", "Solution"
_BROKE = "Child exited with"
"""What it says when a build or an export failed, before anything was compared."""


@dataclass(frozen=True)
class ComparatorSpec:
    """How to start it; `spec` has the limits, the environment and the sandbox of a worker, which go around its own."""

    spec: ReplSpec
    programs: dict[str, str]
    project: Path
    sysroot: Path
    """Of the Lean toolchain, whose `lake` and `lean` it uses."""
    timeout_s: float


@dataclass(frozen=True)
class ComparatorAuditor:
    """Asks the ladder, then the comparator."""

    ladder: LadderAuditor
    comparator: ComparatorSpec
    kind: str = "comparator"

    async def confirm(self, code: str, statement: Statement) -> None:
        await self.ladder.confirm(code, statement)
        judge, spec = self.ladder.judge, self.comparator
        header = judge.header_of(statement)
        prepared = await to_thread.run_sync(prepare, code, statement, header)
        assert isinstance(prepared, Prepared)  # the ladder has just passed
        async with scratch_folder() as folder:
            await to_thread.run_sync(
                write_project, folder, spec.project, prepared, header, sorted(judge.allowed_axioms)
            )
            env = {name: spec.programs[program] for program, name in _PROGRAMS.items() if name}
            bin_ = str(spec.sysroot / "bin")
            env["PATH"] = os.pathsep.join([bin_, spec.spec.env.get("PATH", "/usr/bin:/bin")])
            read = sorted({str(spec.project), str(spec.sysroot), *map(os.path.dirname, spec.programs.values())})
            argv = (spec.programs["comparator"], "config.json")
            started = with_folder(spec.spec, argv, str(folder), env, read=read, may_fork=True)
            try:
                with anyio.fail_after(spec.timeout_s):
                    ended = await run_program(started)
            except TimeoutError:
                raise VerifierError(f"the comparator did not end within {spec.timeout_s:g} s") from None
        _demand_acceptance(ended)


def find_comparator(project: Path, path: str) -> dict[str, str]:
    """Return where the programs are.

    Args:
        project: The Lean project, whose packages may have built them.
        path: The PATH to search.

    Raises:
        PreflightError: One is missing.
    """
    found: dict[str, str] = {}
    for program in _PROGRAMS:
        built = project / ".lake" / "packages" / program / ".lake" / "build" / "bin" / program
        where = str(built) if built.is_file() else shutil.which(program, path=path)
        if where is None:
            raise PreflightError(
                f'verifier.audit = "comparator" needs the program `{program}` on PATH '
                '(https://github.com/leanprover/comparator); install it, or set verifier.audit = "auto"'
            )
        found[program] = os.path.abspath(where)
    return found


def write_project(folder: Path, project: Path, prepared: Prepared, header: str, axioms: list[str]) -> None:
    """Write the Lake project that the comparator builds; blocking."""
    head = f"{header}\n\n" if header else ""
    config = {
        "challenge_module": _CHALLENGE,
        "solution_module": _SOLUTION,
        "theorem_names": [prepared.goal.name],
        "permitted_axioms": axioms,
    }
    packages = read_packages(project)
    manifest = {"version": "1.1.0", "packagesDir": ".lake/packages", "packages": packages, "name": "fd_audit"}
    requires = "".join(f'\n[[require]]\nname = "{p["name"]}"\npath = {json.dumps(p["dir"])}\n' for p in packages)
    libraries = "".join(f'\n[[lean_lib]]\nname = "{name}"\n' for name in (_CHALLENGE, _SOLUTION))
    files = {
        f"{_CHALLENGE}.lean": f"{head}{prepared.goal.declaration} by sorry\n",
        f"{_SOLUTION}.lean": f"{head}{prepared.rebuilt.body}\n",
        "config.json": json.dumps(config),
        "lakefile.toml": f'name = "fd_audit"\n{libraries}{requires}',
        "lake-manifest.json": json.dumps(manifest, indent=1),
    }
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    toolchain = project / "lean-toolchain"
    if toolchain.is_file():
        shutil.copyfile(toolchain, folder / "lean-toolchain")


def read_packages(project: Path) -> list[dict[str, Any]]:
    """Return the packages of a project's manifest as folders that are already there; none without a manifest.

    Raises:
        VerifierError: The manifest cannot be read.
    """
    path = project / "lake-manifest.json"
    if not path.is_file():
        return []
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        base = project / manifest.get("packagesDir", ".lake/packages")
        return [
            {
                "type": "path",
                "name": package["name"],
                "scope": package.get("scope", ""),
                "dir": str(project / package["dir"] if package["type"] == "path" else base / package["name"]),
                "manifestFile": package.get("manifestFile", "lake-manifest.json"),
                "configFile": package.get("configFile", "lakefile.lean"),
                "inherited": False,
            }
            for package in manifest["packages"]
        ]
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise VerifierError(f"{path}: cannot be read ({error}); run `lean/setup` again") from error


def _demand_acceptance(ended: Ended) -> None:
    """Tell a refusal, which comes after both exports, from a failure of the program or its helpers."""
    if ended.returncode == 0:
        return
    compared = any(line.startswith("Exporting ") and f"from {_SOLUTION}" in line for line in ended.stdout.split("\n"))
    if ended.returncode == 1 and compared and _BROKE not in ended.stderr:
        raise AuditRefused(f"comparator: {ended.last_line}")
    raise VerifierError(f"the comparator ended with code {ended.returncode}: {ended.last_line}")
