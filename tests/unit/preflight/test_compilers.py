"""fd-check names the compiler that a first start on GPUs would miss, minutes before it would."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from fd_async.config.schema import Policy, RunConfig
from fd_async.preflight import compilers
from tests.fakes.node import Node, check, open_node
from tests.fakes.tiny_policy import tiny_config


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    """A node on which the paper's configuration fits."""
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    yield from open_node(tmp_path, monkeypatch)


def findings(policy: Policy) -> list[tuple[str, str]]:
    config: RunConfig = msgspec.structs.replace(tiny_config(), policy=policy)
    return [(found.state, found.name) for probe in compilers.PROBES for found in probe(config)]


def test_a_node_without_a_compiler_is_refused(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    """With the line that cures it."""
    (node.programs / "gcc").unlink()
    code, out, _ = check(node, capsys)
    assert code == 3
    assert "no C compiler (CC, gcc, clang)" in out
    assert "apt install gcc" in out


def test_headers_of_python_are_looked_for(
    node: Node, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A system's Python has them in a package of their own."""
    monkeypatch.setattr(sysconfig, "get_paths", lambda scheme: {"include": str(node.folder)})
    code, out, _ = check(node, capsys)
    assert code == 3
    assert f"no Python.h in {node.folder}" in out
    assert f"apt install python{sys.version_info[0]}.{sys.version_info[1]}-dev" in out


def test_a_compiler_that_cannot_compile_says_why(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    """Its own first line of complaint, e.g. without the headers of C."""
    node.program("gcc", "echo 'stdin:2: fatal error: stdlib.h: No such file or directory' >&2; exit 1")
    code, out, _ = check(node, capsys)
    assert code == 3
    assert "stdlib.h: No such file" in out


def test_cc_is_obeyed_as_triton_obeys_it(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    """One word, the name of a program: neither options nor a name that leads nowhere, although there is a gcc."""
    node.program("my-cc", "exit 0")
    node.patch.setenv("CC", "my-cc")
    code, out, err = check(node, capsys)
    assert code == 0, out + err
    assert "my-cc, " in out
    for wrong in ("my-cc -fast", "gone-cc", ""):
        node.patch.setenv("CC", wrong)
        code, out, _ = check(node, capsys)
        assert code == 3
        assert f"CC = {wrong!r} is no program" in out


def test_torch_compile_wants_a_cpp_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On a CPU it cannot do without; with servers elsewhere, or in eager mode, nothing is compiled here."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert findings(Policy()) == [("missing", "C++ compiler")]
    assert findings(Policy(enforce_eager=True)) == []
    assert findings(Policy(engine="servers", servers=["http://a:1"])) == []
    (tmp_path / "g++").touch(mode=0o755)
    assert findings(Policy()) == []


@pytest.mark.skipif(not shutil.which("gcc"), reason="no gcc here")
def test_the_compiler_of_this_machine_is_tried(tmp_path: Path) -> None:
    """It reads Python's headers where they are, and complains where they are not."""
    headers = Path(sysconfig.get_paths()["include"])
    if (headers / "Python.h").is_file():
        assert compilers._why_not("gcc", headers) == ""
    assert "Python.h" in compilers._why_not("gcc", tmp_path)
    assert compilers._why_not(os.fspath(tmp_path), tmp_path)


def test_a_compiler_that_does_not_come_back_is_given_up(
    node: Node, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One behind a licence server that is away, for one."""
    monkeypatch.setattr(compilers, "_TIMEOUT_S", 0.2)
    node.program("gcc", "while :; do :; done")
    code, out, _ = check(node, capsys)
    assert code == 3
    assert "gcc does not compile: no answer within 0.2 s" in out
