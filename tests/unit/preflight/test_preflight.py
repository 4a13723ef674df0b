"""What fd-check says of the verifier: its parts, and canaries through every backend."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from msgspec.structs import replace

from fd_async.config.load import load_config
from fd_async.config.schema import RunConfig
from fd_async.preflight import Finding, inspect, try_verifier
from fd_async.preflight import lean as lean_probes
from fd_async.verifier.canaries import CANARIES
from tests.fakes.repl_faulty import program
from tests.fakes.repl_kimina import Plan, serve_kimina

CHECKOUT = Path(__file__).parents[3]
TOOLCHAIN = "leanprover/lean4:v4.33.1"


def config(**changes: Any) -> RunConfig:
    """The tiny configuration with another verifier."""
    whole = load_config(CHECKOUT / "configs" / "tiny_fd.toml", [], [])
    return replace(whole, verifier=replace(whole.verifier, check_timeout_s=5.0, import_timeout_s=10.0, **changes))


def quick(of: RunConfig) -> dict[str, Finding]:
    """The findings about the verifier's parts, by name."""
    return {finding.name: finding for probe in lean_probes.PROBES for finding in probe(of)}


def tried(of: RunConfig) -> tuple[list[Finding], list[str]]:
    """What trying says, and what was said before it."""
    said: list[str] = []
    return list(try_verifier(of, said.append)), said


def repl(**changes: Any) -> RunConfig:
    """The fake REPL, unlocked: it stands in the checkout."""
    return config(backend="repl", command=program(), sandbox="unsandboxed", memory_limit_gib=4.0, **changes)


@contextmanager
def kimina(plans: int = 0) -> Iterator[str]:
    """A fake server in a thread of its own, as fd-check brings its own event loop."""
    ready, stop = threading.Event(), threading.Event()
    url: list[str] = []

    async def serve() -> None:
        async with serve_kimina() as server:
            server.plans = [Plan(status=401)] * plans
            url.append(server.url)
            ready.set()
            while not stop.is_set():  # noqa: ASYNC110 (set by another thread)
                await anyio.sleep(0.01)

    thread = threading.Thread(target=anyio.run, args=(serve,))
    thread.start()
    assert ready.wait(10.0)
    try:
        yield url[0]
    finally:
        stop.set()
        thread.join(10.0)


def _all_right(findings: list[Finding]) -> bool:
    canaries = [finding for finding in findings if finding.name == "canary"]
    return len(canaries) == len(CANARIES) and all(finding.state != "missing" for finding in findings)


def test_minilean_judges_its_canaries() -> None:
    """One line each, what judged, and how accepted proofs are audited."""
    findings, said = tried(config())
    assert _all_right(findings), findings
    assert (findings[0].name, findings[0].found.split(",")[0]) == ("judge", "minilean")
    assert "audit" in {finding.name for finding in findings}
    assert said == ["trying the verifier (minilean) ..."]


def test_a_repl_judges_its_canaries() -> None:
    """Through the configured command."""
    findings, _ = tried(repl())
    assert _all_right(findings), findings


def test_a_kimina_server_judges_its_canaries() -> None:
    """Through the configured address."""
    with kimina() as url:
        findings, _ = tried(config(backend="kimina", url=url))
    assert _all_right(findings), findings


def test_a_server_that_refuses_the_key_is_missing() -> None:
    """One line with the variable."""
    with kimina(plans=1) as url:
        (finding,), _ = tried(config(backend="kimina", url=url))
    assert (finding.state, finding.name) == ("missing", "canaries")
    assert "LEAN_SERVER_API_KEY" in finding.found


def test_a_header_that_does_not_load_is_missing() -> None:
    """It is the header of the configuration that is tried."""
    (finding,), _ = tried(repl(header="import Nowhere"))
    assert finding.state == "missing"
    assert "Nowhere" in finding.found


def test_a_minute_for_mathlib_is_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    """And two more canaries are judged: only Mathlib can prove the one."""
    findings, said = tried(repl(header="import Mathlib"))
    assert said == ["trying the verifier (repl); loading Mathlib takes up to a minute ..."]
    names = [finding.found.partition(":")[0] for finding in findings if finding.name == "canary"]
    assert names[-2:] == ["a theorem with Mathlib", "a false statement with Mathlib"]
    wrong = [finding for finding in findings if finding.state == "missing"]
    assert [finding.found for finding in wrong] == ["a false statement with Mathlib: proved, expected failed"]
    assert wrong[0].advice == "no verdict can be trusted"


def test_nothing_is_tried_while_a_part_is_missing(tmp_path: Path) -> None:
    """The missing parts are named instead."""
    findings, said = tried(config(backend="repl", sandbox="unsandboxed", project_dir=str(tmp_path)))
    assert [finding.state for finding in findings] == ["note"]
    assert "Lake project" in findings[0].advice
    assert said == []


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project as lean/setup leaves it, with Lean in the home folder."""
    home = tmp_path / "home"
    place = tmp_path / "lean"
    packages = place / ".lake/packages"
    for file in (
        home / ".elan/bin/lake",
        home / ".elan/toolchains/leanprover--lean4---v4.33.1/bin/lean",
        place / "lakefile.toml",
        packages / "REPL/.lake/build/bin/repl",
        packages / "mathlib/.lake/build/lib/lean/Mathlib.olean",
    ):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(0o755)
    (place / "lean-toolchain").write_text(TOOLCHAIN + "\n")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("ELAN_HOME", raising=False)
    return place


def test_a_project_that_is_set_up_lacks_nothing(project: Path) -> None:
    """Toolchain, project, REPL, compiled Mathlib, its sources."""
    found = quick(config(backend="repl", sandbox="unsandboxed", project_dir=str(project), header="import Mathlib"))
    for name in ("lake", "Lake project", "toolchain", "Lean REPL", "Mathlib"):
        assert found[name].state == "ok", found[name]
    assert found["toolchain"].found == TOOLCHAIN


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("lean/lakefile.toml", "Lake project"),
        ("lean/.lake/packages/REPL/.lake/build/bin/repl", "Lean REPL"),
        ("lean/.lake/packages/mathlib/.lake/build/lib/lean/Mathlib.olean", "Mathlib"),
    ],
)
def test_each_part_that_is_missing_is_named(project: Path, file: str, name: str) -> None:
    """With how to get it."""
    (project.parent / file).unlink()
    found = quick(config(backend="repl", sandbox="unsandboxed", project_dir=str(project), header="import Mathlib"))
    assert found[name].state == "missing"
    assert "run lean/setup" in found[name].advice


def test_another_toolchain_than_the_pinned_one_is_missing(project: Path) -> None:
    """Elan would download it, in the middle of a run."""
    (project / "lean-toolchain").write_text("leanprover/lean4:v9.0.0\n")
    found = quick(config(backend="repl", sandbox="unsandboxed", project_dir=str(project)))
    assert (found["toolchain"].state, found["toolchain"].found) == (
        "missing",
        "leanprover/lean4:v9.0.0 is not installed",
    )


def test_the_sandbox_is_tried_and_its_absence_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """It fails closed, is a note where the configuration says so, and is no matter of a server's."""
    monkeypatch.setenv("PATH", "/nonexistent")
    assert quick(config(backend="repl", sandbox="bubblewrap"))["sandbox"].state == "missing"
    assert quick(config(backend="repl", sandbox="unsandboxed"))["sandbox"].state == "note"
    assert quick(config(sandbox="bubblewrap_if_it_works"))["sandbox"].state == "note"
    assert "sandbox" not in quick(config(backend="kimina", url="http://127.0.0.1:9"))


def test_looking_starts_no_event_loop() -> None:
    """The quick part answers without the verifier's pool, vLLM or torch."""
    script = (
        "import sys; from pathlib import Path; from fd_async.preflight import inspect;"
        "from fd_async.config.load import load_config;"
        "inspect(load_config(Path('configs/tiny_fd.toml'), [], []));"
        "print(*{'torch', 'vllm', 'transformers', 'aiohttp', 'fd_async.verifier.repl.pool'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=CHECKOUT, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (0, "\n", "")


def test_inspect_goes_through_all_parts() -> None:
    """Machine first, verifier last."""
    names = [finding.name for finding in inspect(config())]
    assert names[0] == "configuration"
    assert names[-2:] == ["minilean", "sandbox"]
