"""The programs that judge a proof cold, leanchecker and comparator: found, run in the sandbox, and never outlived."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import anyio
import pytest
import structlog
from msgspec.structs import replace

from fd_async.errors import PreflightError, VerifierError
from fd_async.types import Verdict
from fd_async.verifier.audit.auditors import find_auditors, first_that_works
from fd_async.verifier.audit.audits import AuditRefused
from fd_async.verifier.audit.cold import read_messages, scratch_folder
from fd_async.verifier.audit.program import Ended, run_program, with_folder
from fd_async.verifier.canaries import CANARIES, first_wrong, run_canaries
from fd_async.verifier.judge import Judge
from fd_async.verifier.messages import Message
from fd_async.verifier.repl.process import ReplSpec
from fd_async.verifier.sandbox.probe import probe_sandbox
from fd_async.verifier.sandbox.room import Room, find_bubblewrap
from fd_async.verifier.verifier import open_verifier
from tests.fakes import lean_tools
from tests.unit.verifier.conftest import AXIOMS, STATEMENT, fake_config, proof
from tests.unit.verifier.test_audit import HONEST, ColdLean

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("index", range(len(CANARIES)), ids=[canary.name for canary in CANARIES])
async def test_a_judge_that_gets_a_canary_wrong_is_not_used(index: int) -> None:
    """Every single canary can stop a run before it starts."""

    class Liar:
        async def judge_canary(self, canary: Any) -> Verdict:
            right = canary.expected
            wrong = "failed" if right == "proved" else "proved"
            return Verdict(kind=wrong if canary is CANARIES[index] else right, backend="x")

    line = first_wrong(await run_canaries(Liar()))
    assert CANARIES[index].name in line
    assert line.startswith("the verifier misjudged" if index == 0 else "the verifier accepted")


async def test_a_verifier_does_not_open_with_a_worker_that_accepts_everything(tmp_path: Path) -> None:
    """A Lean that never says no is found out before the run, in one line."""
    yes = tmp_path / "yes.py"
    yes.write_text(
        "import json, sys\nn = -1\nlines = ''\nfor line in sys.stdin:\n"
        "    if line.strip():\n        lines += line.rstrip()\n        continue\n"
        "    n += 1\n    cmd = json.loads(lines)['cmd']\n    lines = ''\n    found = []\n"
        "    if '#print axioms' in cmd:\n"
        "        name = cmd.split()[-1]\n        data = f\"'{name}' does not depend on any axioms\"\n"
        "        found = [{'severity': 'info', 'pos': {'line': 1, 'column': 0}, 'data': data}]\n"
        "    print(json.dumps({'env': n, 'messages': found}) + '\\n', flush=True)\n"
    )
    with pytest.raises(PreflightError, match="the verifier accepted a false statement with a bogus proof"):
        async with open_verifier(fake_config(command=[sys.executable, "-S", "-E", str(yes)]), output_chars=400):
            pass


async def test_a_canary_without_an_answer_is_no_alarm_during_a_run() -> None:
    """An overloaded machine does not end a run that judges rightly."""

    class Silent:
        async def judge_canary(self, canary: Any) -> Verdict:
            return Verdict(kind="infrastructure", reason="busy")

    assert first_wrong(await run_canaries(Silent())) == ""


# ---------------------------------------------------------------- leanchecker and comparator


def tools(tmp_path: Path, *, trouble: str = "") -> tuple[Any, ReplSpec]:
    """A toolchain of stand-ins, and how a worker would be started with it."""
    sysroot = tmp_path / "toolchain"
    lean_tools.install(sysroot, trouble=trouble)
    (tmp_path / "lean").mkdir()
    env = {"LEAN_SYSROOT": str(sysroot), "LEAN_PATH": "/nowhere", "PATH": f"{sysroot / 'bin'}:/usr/bin:/bin"}
    config = fake_config(project_dir=str(tmp_path / "lean"), import_timeout_s=20.0)
    return config, ReplSpec(argv=("/bin/true",), env=env)


def find(config: Any, spec: ReplSpec | None, kind: str) -> list[Any]:
    """The auditors of a kind over the scripted Lean."""
    lean = ColdLean()
    judge = Judge(lean, config.header, frozenset(AXIOMS), 400)
    return find_auditors(replace(config, audit=kind), judge, lean, spec)


CASES = [
    ("exact Or.inl hp", ""),
    ("exact fake_error", "failed: unknown identifier"),
    ("exact fake_changed", "statement_changed: "),
    ("exact fake_axiom", "axiom: the proof rests on the axiom `cheat`"),
    ("exact fake_hidden_sorry", "sorry: "),
    ("exact fake_forged", "{replay}"),
]


@pytest.mark.parametrize("kind", ["leanchecker", "comparator"])
async def test_the_strict_auditors_confirm_and_refuse_with_the_rung(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The module is compiled and probed by us; what only a kernel that starts empty sees is refused as well."""
    config, spec = tools(tmp_path)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    (auditor,) = find(config, spec, kind)
    assert auditor.kind == kind
    replayed = {"leanchecker": "replay: ", "comparator": "comparator: "}[kind]
    for tactic, reason in CASES:
        if not reason:
            await auditor.confirm(proof(tactic), STATEMENT)
            continue
        with pytest.raises(AuditRefused) as caught:
            await auditor.confirm(proof(tactic), STATEMENT)
        assert str(caught.value).startswith(reason.format(replay=replayed))
    assert not list(scratch.iterdir())


@pytest.mark.parametrize(("kind", "trouble"), [("leanchecker", "lean"), ("leanchecker", "leanchecker"),
                                               ("comparator", "comparator")])  # fmt: skip
async def test_a_tool_that_breaks_is_no_refusal(tmp_path: Path, kind: str, trouble: str) -> None:
    """A full disk says nothing about a proof; asked for by name, it ends the preflight; `auto` steps down."""
    config, spec = tools(tmp_path, trouble=trouble)
    (auditor,) = find(config, spec, kind)
    with pytest.raises(VerifierError, match="no space left on device"):
        await auditor.confirm(HONEST, STATEMENT)
    log: Any = structlog.testing.CapturingLogger()
    with pytest.raises(PreflightError, match=f'verifier.audit = "{kind}" does not confirm an honest proof'):
        await first_that_works([auditor], kind, log)
    working = await first_that_works([auditor, *find(config, spec, "fresh")], "auto", log)
    assert working is not None
    assert working.kind == "fresh"
    assert "does not work" in log.calls[0].args[0]


async def test_a_hanging_compiler_ends_at_its_deadline(tmp_path: Path) -> None:
    """It is an unfinished audit, and its process is gone."""
    config, spec = tools(tmp_path)
    (auditor,) = find(replace(config, import_timeout_s=0.3, check_timeout_s=0.1), spec, "leanchecker")
    with pytest.raises(VerifierError, match=r"timeout: lean did not end within 0\.4 s"):
        await auditor.confirm(proof("exact fake_hang"), STATEMENT)


def test_auto_takes_the_strictest_that_is_installed(tmp_path: Path) -> None:
    """Comparator, then leanchecker, then a fresh worker."""
    config, spec = tools(tmp_path)
    kinds = ["comparator", "leanchecker", "fresh"]
    assert [auditor.kind for auditor in find(config, spec, "auto")] == kinds
    (tmp_path / "toolchain/bin/landrun").unlink()
    assert [auditor.kind for auditor in find(config, spec, "auto")] == kinds[1:]
    (tmp_path / "toolchain/bin/leanchecker").unlink()
    assert [auditor.kind for auditor in find(config, spec, "auto")] == kinds[2:]
    assert find(config, spec, "off") == []


def test_what_is_asked_for_and_not_there_is_named(tmp_path: Path) -> None:
    """The key, what is missing, and what to set instead."""
    config, spec = tools(tmp_path)
    (tmp_path / "toolchain/bin/lean4export").unlink()
    with pytest.raises(PreflightError, match=r'verifier\.audit = "comparator" needs the program `lean4export`'):
        find(config, spec, "comparator")
    (tmp_path / "toolchain/bin/leanchecker").unlink()
    with pytest.raises(PreflightError, match=r'verifier\.audit = "leanchecker": there is no .*leanchecker'):
        find(config, spec, "leanchecker")
    with pytest.raises(PreflightError, match=r'needs verifier\.backend = "repl"'):
        find(replace(config, backend="minilean"), spec, "leanchecker")
    with pytest.raises(PreflightError, match=r"verifier\.project_dir.*empty verifier\.command"):
        find(config, ReplSpec(argv=("/bin/true",)), "leanchecker")


async def test_a_program_leaves_nothing_running_behind_its_answer(tmp_path: Path) -> None:
    """A child that holds the pipes open is killed with its group; floods are cut off."""
    note = tmp_path / "pid"
    script = f"sleep 60 & echo $! > {note}; echo done"
    spec = ReplSpec(argv=("/bin/sh", "-c", script), max_answer_bytes=1000)
    with anyio.fail_after(5):
        assert (await run_program(spec)).stdout == "done\n"
    pid = int(note.read_text())
    assert _is_gone(pid)
    with pytest.raises(VerifierError, match="wrote more than 1000 bytes"):
        await run_program(with_folder(spec, ("/bin/sh", "-c", "yes"), str(tmp_path), {}))


def _is_gone(pid: int) -> bool:
    """Say whether a process that was killed is gone, or waits for init to reap it, within a moment."""
    for _ in range(500):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.01)
    return False


def test_another_program_shares_the_sandbox_and_one_folder() -> None:
    """The folder is bound last, before everything is made read-only; the filter is lifted only when asked."""
    wrapper = ("bwrap", "--seccomp", "9", "--tmpfs", "/", "--remount-ro", "/", "--chdir", "/tmp", "--")
    spec = with_folder(ReplSpec(argv=("a",), wrapper=wrapper), ("b",), "/x", {"K": "v"}, read=["/r"])
    tail = (
        "--setenv",
        "K",
        "v",
        "--ro-bind",
        "/r",
        "/r",
        "--bind",
        "/x",
        "/x",
        "--remount-ro",
        "/",
        "--chdir",
        "/x",
        "--",
    )
    assert spec.wrapper == ("bwrap", "--seccomp", "9", "--tmpfs", "/", *tail)
    assert with_folder(spec, ("b",), "/x", {}, may_fork=True).wrapper[:3] == ("bwrap", "--tmpfs", "/")


async def test_the_programs_of_an_audit_run_in_the_real_sandbox() -> None:
    """They write their own folder and nothing else, see their own variables, and a signal inside is seen outside."""
    room = Room(read=(), env={"LEAN_PATH": "/a"})
    problem = await anyio.to_thread.run_sync(probe_sandbox, room)
    if problem is not None:
        pytest.skip(problem)
    spec = ReplSpec(argv=("/bin/true",), wrapper=room.wrapper(find_bubblewrap() or "bwrap"))
    async with scratch_folder() as folder:
        script = "echo $LEAN_PATH $PWD > out; (echo x > /bin/x) 2>/dev/null || echo refused; kill -9 $$"
        more = {"LEAN_PATH": f"{folder}:/a"}
        ended = await run_program(with_folder(spec, ("/bin/sh", "-c", script), str(folder), more, may_fork=True))
        assert (folder / "out").read_text() == f"{folder}:/a {folder}\n"
    assert (ended.returncode, ended.stdout) == (-9, "refused\n")


def test_messages_of_lean_are_read_line_by_line() -> None:
    """A line separator inside a message is no end of line; anything else than messages is trouble."""
    line = '{"severity":"information","pos":{"line":2,"column":0},"data":"a\u2028b","kind":"x"}\n'
    (message,) = read_messages(Ended(0, line, ""))
    assert message == Message("a\u2028b", "info", message.pos)
    with pytest.raises(VerifierError, match="not a message"):
        read_messages(Ended(0, "hello\n", ""))
