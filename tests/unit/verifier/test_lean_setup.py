"""The logic of `lean/setup`, with a Lake and a REPL that only pretend."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

LEAN = Path(__file__).parents[3] / "lean"

LAKE = """#!/bin/sh
echo "lake $*" >> "$FAKE_LOG"
case "$1" in
  update) [ "$MATHLIB_NO_CACHE_ON_UPDATE" = 1 ] && echo '{}' > lake-manifest.json ;;
  exe) [ ! -e "$FAKE_OFFLINE" ] ;;
  build) mkdir -p .lake/packages/REPL/.lake/build/bin && cp "$FAKE_REPL" .lake/packages/REPL/.lake/build/bin/repl ;;
  env) shift; exec "$@" ;;
esac
"""
REPL = """#!/bin/sh
cat > "$FAKE_LOG.requests"
printf '{"env": 0}\\n\\n{"env": 1}\\n\\n'
printf '{"messages":\\n [{"severity": "info",\\n   "data": "fd_canary depends on axioms: [%s]"}],\\n' "$FAKE_AXIOM"
printf ' "env": 2}\\n\\n'
printf '{"messages":\\n [{"severity": "%s",\\n   "data": "failed"}],\\n "env": 3}\\n\\n' "$FAKE_FALSE"
"""


class Machine:
    """A copy of the project, and programs in front of the system's."""

    def __init__(self, folder: Path) -> None:
        self.project = folder / "lean"
        shutil.copytree(LEAN, self.project, ignore=shutil.ignore_patterns(".lake", "lake-manifest.json"))
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.log = folder / "log"
        self.offline = folder / "offline"
        self.environment = {
            "PATH": f"{self.bin}:/usr/bin:/bin",
            "HOME": str(folder),
            "FAKE_LOG": str(self.log),
            "FAKE_OFFLINE": str(self.offline),
            "FAKE_REPL": str(self.install("repl.sh", REPL)),
            "FAKE_AXIOM": "propext",
            "FAKE_FALSE": "error",
        }
        self.install("lake", LAKE)
        self.install("df", "#!/bin/sh\nprintf 'Filesystem\\n/dev/x 1 1 %s 1%% /\\n' \"${FAKE_FREE_KB:-99999999}\"\n")

    def install(self, name: str, text: str) -> Path:
        path = self.bin / name
        path.write_text(text)
        path.chmod(0o755)
        return path

    def setup(self, *arguments: str, **environment: str) -> tuple[int, str]:
        result = subprocess.run(
            [str(self.project / "setup"), *arguments],
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        return result.returncode, result.stdout + result.stderr

    def calls(self) -> list[str]:
        return self.log.read_text().splitlines()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine where everything works."""
    return Machine(tmp_path)


def test_it_installs_and_tries_what_it_installed(machine: Machine) -> None:
    """Every step once, in order, and the canaries at the end."""
    code, output = machine.setup()
    assert code == 0, output
    steps = [call.split(" /")[0] for call in machine.calls()]
    assert steps == [
        "lake --version",
        "lake update --keep-toolchain",
        "lake exe cache get",
        "lake build @REPL/repl",
        "lake env",
    ]
    assert "ready: leanprover/lean4:v4" in output
    requests = (machine.log.parent / "log.requests").read_text()
    assert r'{"cmd": "import Mathlib\nimport Aesop\nset_option' in requests
    assert requests.count("\n\n") == 4


def test_it_can_be_run_again_and_resumes(machine: Machine) -> None:
    """A step that failed is tried again; one that is done is not."""
    machine.offline.touch()
    assert machine.setup()[0] != 0
    machine.offline.unlink()
    assert machine.setup()[0] == 0
    assert machine.setup()[0] == 0
    assert sum(call.startswith("lake update") for call in machine.calls()) == 1


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"FAKE_FALSE": "info"}, "a false theorem was accepted"),
        ({"FAKE_AXIOM": "sorryAx"}, "rests on sorry"),
        ({"FAKE_FREE_KB": "1000000"}, "needs 15 GB of free disk"),
    ],
)
def test_what_is_wrong_is_said_with_exit_code_3(machine: Machine, environment: dict[str, str], words: str) -> None:
    """Exit code 3 is that of a failed preflight."""
    code, output = machine.setup(**environment)
    assert code == 3
    assert words in output


def test_check_alone_changes_nothing(machine: Machine) -> None:
    """It needs no network and says what is missing."""
    code, output = machine.setup("--check")
    assert code == 3
    assert "the REPL is not built: run ./setup" in output
    assert not (machine.project / "lake-manifest.json").exists()
    machine.setup()
    assert machine.setup("--check")[0] == 0
    assert os.access(machine.project / ".lake/packages/REPL/.lake/build/bin/repl", os.X_OK)
