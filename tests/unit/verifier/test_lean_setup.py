"""The logic of `lean/setup`, with programs that only pretend: each stage failing, killed, repeated."""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import tarfile
import time
from pathlib import Path

import pytest

LEAN = Path(__file__).parents[3] / "lean"
STAGES = ("toolchain", "packages", "cache", "repl", "canaries")

LAKE = """#!/bin/sh
echo "lake $*" >> "$FAKE_LOG"
if [ -n "$FAKE_FAIL" ] && [ -e "$FAKE_FAIL" ] && grep -q "^$1$" "$FAKE_FAIL"; then
  sed 1d "$FAKE_FAIL" >&2; exit 1
fi
if [ -e "$FAKE_HANG" ] && grep -q "^$1 $2$" "$FAKE_HANG"; then
  [ "$1" = env ] && mkdir -p .lake/packages/mathlib/.git
  touch "$FAKE_HANG.reached"; sleep 60
fi
case "$1 $2" in
  "--version ") echo "Lake version 5.0.0-src+819816b (Lean version ${FAKE_LEAN:-4.33.1})" ;;
  "env true")
    awk -F'"' '$2 == "rev" {r = $4} $2 == "name" && r {print $4, r; r = ""}' lake-manifest.json |
    while read -r name rev; do
      mkdir -p ".lake/packages/$name/.git"
      [ -e ".lake/packages/$name/.git/fake_head" ] || echo "$rev" > ".lake/packages/$name/.git/fake_head"
    done
    cp lean-toolchain .lake/packages/mathlib/lean-toolchain ;;
  "exe cache")
    mkdir -p .lake/packages/mathlib/.lake/build/lib/lean
    touch .lake/packages/mathlib/.lake/build/lib/lean/Mathlib.olean ;;
  "build @REPL/repl")
    mkdir -p .lake/packages/REPL/.lake/build/bin
    cp "$FAKE_REPL" .lake/packages/REPL/.lake/build/bin/repl ;;
  env*) shift; exec "$@" ;;
esac
"""
GIT = """#!/bin/sh
[ "$1" = -C ] || exit 9
cd "$2" || exit 9
shift 2
case "$*" in
  *--show-toplevel) pwd -P ;;
  rev-parse*) cat .git/fake_head ;;
  reset*) echo "git reset $PWD" >> "$FAKE_LOG" ;;
esac
"""
CURL = """#!/bin/sh
echo "curl $*" >> "$FAKE_LOG"
[ -z "$FAKE_CURL" ] || { echo "curl: ($FAKE_CURL) $FAKE_CURL_SAYS" >&2; exit "$FAKE_CURL"; }
while [ $# -gt 1 ]; do [ "$1" = -o ] && cp "$FAKE_ELAN" "$2"; shift; done
"""
ELAN_INIT = """#!/bin/sh
echo "elan-init $*" >> "$FAKE_LOG"
mkdir -p "$HOME/.elan/bin" && cp "$FAKE_LAKE" "$HOME/.elan/bin/lake"
"""
REPL = """#!/bin/sh
cat > "$FAKE_LOG.requests"
[ -z "$FAKE_REPL_DIES" ] || exit 1
printf '{"env": 0}\\n\\n{"env": 1}\\n\\n'
printf '{"messages":\\n [{"severity": "info",\\n   "data": "x depends on axioms: [%s]"}],\\n' "${FAKE_AXIOM:-propext}"
printf ' "env": 2}\\n\\n'
printf '{"messages":\\n [{"severity": "%s",\\n   "data": "failed"}],\\n "env": 3}\\n\\n' "${FAKE_FALSE:-error}"
"""
DF = '#!/bin/sh\nprintf \'Filesystem\\n/dev/x 1 1 %s 1%% /\\n\' "$(cat "$FAKE_FREE" 2>/dev/null || echo 99999999)"\n'
UNAME = '#!/bin/sh\n[ "$1" = -s ] && echo "${FAKE_SYSTEM:-Linux}" || echo "${FAKE_MACHINE:-x86_64}"\n'


class Machine:
    """A copy of the project, and programs in front of the system's."""

    def __init__(self, folder: Path, lake: bool = True) -> None:
        self.folder = folder
        self.project = folder / "lean"
        shutil.copytree(LEAN, self.project, ignore=shutil.ignore_patterns(".lake"))
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.log = folder / "log"
        self.log.touch()
        for name, text in (("git", GIT), ("curl", CURL), ("df", DF), ("uname", UNAME)):
            self.install(name, text)
        elan = self._archive()
        self.environment = {
            "PATH": f"{self.bin}:/usr/bin:/bin",
            "HOME": str(folder),
            "FAKE_LOG": str(self.log),
            "FAKE_FAIL": str(folder / "fail"),
            "FAKE_HANG": str(folder / "hang"),
            "FAKE_FREE": str(folder / "free"),
            "FAKE_REPL": str(self.install("repl.sh", REPL)),
            "FAKE_LAKE": str(self.install("lake.sh", LAKE)),
            "FAKE_ELAN": str(elan),
        }
        if lake:
            self.install("lake", LAKE)

    def install(self, name: str, text: str) -> Path:
        path = self.bin / name
        path.write_text(text)
        path.chmod(0o755)
        return path

    def _archive(self) -> Path:
        """Make an archive like elan's, and have the copied script expect it."""
        path = self.folder / "elan.tar.gz"
        with tarfile.open(path, "w:gz") as archive:
            entry = tarfile.TarInfo("elan-init")
            entry.size, entry.mode = len(ELAN_INIT), 0o755
            archive.addfile(entry, io.BytesIO(ELAN_INIT.encode()))
        script = self.project / "setup"
        pinned = "df0b2b3a439961ffcbb3985214365ffe40f49bc871df04dff268c7d8e21ca8b2"
        text = script.read_text()
        assert pinned in text
        script.write_text(text.replace(pinned, hashlib.sha256(path.read_bytes()).hexdigest()))
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

    def fail(self, command: str, words: str) -> None:
        """Let lake's command fail with these words."""
        (self.folder / "fail").write_text(f"{command}\n{words}\n")

    def heal(self) -> None:
        for name in ("fail", "hang", "free"):
            (self.folder / name).unlink(missing_ok=True)

    def calls(self) -> list[str]:
        return [call.split(" /")[0] for call in self.log.read_text().splitlines()]

    def stamps(self) -> set[str]:
        return {path.stem for path in (self.project / ".lake/fd-setup").glob("*.done")}


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine where everything works and Lean is managed by elan already."""
    return Machine(tmp_path)


def test_the_pins_are_whole() -> None:
    """Every dependency by commit, the direct ones as the lakefile asks, toolchain and Mathlib of one version."""
    manifest = json.loads((LEAN / "lake-manifest.json").read_text())
    lakefile = (LEAN / "lakefile.toml").read_text()
    packages = {package["name"]: package for package in manifest["packages"]}
    assert len(packages) == 10
    for package in packages.values():
        assert re.fullmatch("[0-9a-f]{40}", package["rev"])
        assert package["inherited"] or f'rev = "{package["inputRev"]}"' in lakefile
    assert (LEAN / "lean-toolchain").read_text() == f"leanprover/lean4:{packages['mathlib']['inputRev']}\n"


def test_it_says_what_it_costs_installs_and_tries(machine: Machine) -> None:
    """Every step once, in order, and the canaries at the end; the manifest is obeyed and not resolved anew."""
    code, output = machine.setup()
    assert code == 0, output
    assert machine.calls() == [
        "lake --version",
        "lake env true",
        "lake exe cache get",
        "lake build @REPL/repl",
        "lake env",
    ]
    assert output.index("disk: about") < output.index("installing the toolchain")
    assert "ready: leanprover/lean4:v4.33.1" in output
    requests = (machine.folder / "log.requests").read_text()
    assert r'{"cmd": "import Mathlib\nimport Aesop\nset_option' in requests
    assert requests.count("\n\n") == 4


def test_without_elan_it_is_installed_from_a_checked_archive(tmp_path: Path) -> None:
    """Nothing runs before its hash was compared."""
    machine = Machine(tmp_path, lake=False)
    code, output = machine.setup()
    assert code == 0, output
    calls = machine.calls()
    assert calls[1] == "elan-init -y --no-modify-path --default-toolchain none"
    assert "elan/releases/download/v4.2.3/elan-x86_64-unknown-linux-gnu.tar.gz" in machine.log.read_text()


def test_another_archive_than_the_pinned_one_does_not_run(tmp_path: Path) -> None:
    """The hash differs: nothing was installed."""
    machine = Machine(tmp_path, lake=False)
    with Path(machine.environment["FAKE_ELAN"]).open("ab") as archive:
        archive.write(b"\0")
    code, output = machine.setup()
    assert (code, "SHA-256 differs" in output) == (3, True)
    assert not any(call.startswith("elan-init") for call in machine.calls())
    assert machine.stamps() == set()


def test_a_second_run_does_nothing(machine: Machine) -> None:
    """And says so."""
    machine.setup()
    before = machine.calls()
    code, output = machine.setup()
    assert (code, machine.calls()) == (0, before)
    assert "nothing to do" in output


@pytest.mark.parametrize(
    ("command", "first"), [("--version", "toolchain"), ("env", "packages"), ("exe", "cache"), ("build", "repl")]
)
def test_a_stage_that_failed_is_the_first_to_be_done_again(machine: Machine, command: str, first: str) -> None:
    """What was done before it stays done; the line names the stage and the log."""
    machine.fail(command, "error: something odd")
    code, output = machine.setup()
    assert code == 3
    assert f"stage '{first}' failed (error: something odd); run it again to go on" in output.splitlines()[-1]
    assert machine.stamps() == set(STAGES[: STAGES.index(first)])
    machine.heal()
    machine.log.write_text("")
    assert machine.setup()[0] == 0
    done_before = {"toolchain": "lake --version", "packages": "lake env true", "cache": "lake exe cache get"}
    for stage in STAGES[: STAGES.index(first)]:
        assert done_before[stage] not in machine.calls()


@pytest.mark.parametrize(
    ("words", "first"), [("env true", "packages"), ("exe cache", "cache"), ("build @REPL/repl", "repl")]
)
def test_a_killed_run_is_resumed(machine: Machine, words: str, first: str) -> None:
    """Killed inside a stage, without a chance to clean up: no stamp, no half package is taken for a whole one."""
    (machine.folder / "hang").write_text(words + "\n")
    process = subprocess.Popen(
        [str(machine.project / "setup")],
        env=machine.environment,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    reached = machine.folder / "hang.reached"
    for _ in range(1000):
        if reached.exists():
            break
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert machine.stamps() == set(STAGES[: STAGES.index(first)])
    machine.heal()
    code, output = machine.setup()
    assert code == 0, output
    if first == "packages":
        assert "removing the unfinished" in output


def test_two_at_once_are_refused(machine: Machine) -> None:
    """The second says so and changes nothing."""
    state = machine.project / ".lake/fd-setup"
    state.mkdir(parents=True)
    with (state / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, output = machine.setup()
    assert (code, machine.calls()) == (3, [])
    assert "another lean/setup is at work" in output


@pytest.mark.parametrize(
    ("command", "words", "said"),
    [
        ("exe", "curl: (6) Could not resolve host: lakecache.blob.core.windows.net", "no network"),
        ("env", "fatal: unable to access: Failed to connect to github.com port 443", "no network"),
        ("env", "fatal: unable to access: Received HTTP code 407 from proxy after CONNECT", "the proxy refuses"),
        ("env", "fatal: server certificate verification failed", "not trusted"),
        ("exe", "uncaught exception: No space left on device", "the disk is full"),
    ],
)
def test_causes_are_named(machine: Machine, command: str, words: str, said: str) -> None:
    """One line, and how to go on."""
    machine.fail(command, words)
    code, output = machine.setup()
    assert code == 3
    assert said in output.splitlines()[-1]


@pytest.mark.parametrize(
    ("number", "says", "words"),
    [
        ("6", "Could not resolve host: github.com", "no network"),
        ("5", "Could not resolve proxy: p", "the proxy refuses"),
    ],
)
def test_elan_without_a_network(tmp_path: Path, number: str, says: str, words: str) -> None:
    """The first download already tells."""
    code, output = Machine(tmp_path, lake=False).setup(FAKE_CURL=number, FAKE_CURL_SAYS=says)
    assert code == 3
    assert words in output.splitlines()[-1]


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"FAKE_FALSE": "info"}, "a false theorem was accepted"),
        ({"FAKE_AXIOM": "sorryAx"}, "rests on sorry"),
        ({"FAKE_REPL_DIES": "1"}, "Mathlib needs 9 GB of address space"),
        ({"FAKE_SYSTEM": "Darwin"}, "only Linux is supported"),
        ({"FAKE_MACHINE": "riscv64"}, "Lean has no release for riscv64"),
        ({"FAKE_LEAN": "4.9.0"}, "is not for leanprover/lean4:v4.33.1"),
    ],
)
def test_what_is_wrong_is_said_with_exit_code_3(machine: Machine, environment: dict[str, str], words: str) -> None:
    """Exit code 3 is that of a failed preflight; canaries that fail leave no stamp."""
    code, output = machine.setup(**environment)
    assert code == 3
    assert words in output.splitlines()[-1]
    assert "canaries" not in machine.stamps()


def test_a_full_disk_is_found_before_anything_is_downloaded(machine: Machine) -> None:
    """What is needed and what is there."""
    (machine.folder / "free").write_text("8000000")
    code, output = machine.setup()
    assert (code, machine.calls()) == (3, [])
    assert "needs 15 GB of free disk, there are 7" in output


def test_a_package_at_another_commit_is_refused(machine: Machine) -> None:
    """Whoever changed it."""
    machine.setup()
    (machine.project / ".lake/packages/aesop/.git/fake_head").write_text("0" * 40 + "\n")
    (machine.project / ".lake/fd-setup/packages.done").unlink()
    code, output = machine.setup()
    assert code == 3
    assert "aesop is at 0000000000000000000000000000000000000000, lake-manifest.json pins" in output


def test_new_pins_are_set_up_again(machine: Machine) -> None:
    """A stamp is for one toolchain and manifest; what was deleted is done again too."""
    machine.setup()
    (machine.project / ".lake/packages/REPL/.lake/build/bin/repl").unlink()
    machine.log.write_text("")
    assert machine.setup()[0] == 0
    assert machine.calls()[0] == "lake build @REPL/repl"
    with (machine.project / "lakefile.toml").open("a") as lakefile:
        lakefile.write("# changed\n")
    machine.log.write_text("")
    assert machine.setup()[0] == 0
    assert "lake env true" in machine.calls()


def test_another_folder_gets_its_own_project(machine: Machine) -> None:
    """On a larger disk, say."""
    other = machine.folder / "large" / "lean"
    code, output = machine.setup("--dir", str(other))
    assert code == 0, output
    assert (other / ".lake/packages/REPL/.lake/build/bin/repl").exists()
    assert not (machine.project / ".lake").exists()
    assert machine.setup("--check", "--dir", str(other))[0] == 0


def test_check_alone_changes_nothing(machine: Machine) -> None:
    """It needs no network and says what is missing."""
    code, output = machine.setup("--check")
    assert code == 3
    for stage in ("toolchain", "packages", "cache", "repl"):
        assert f"{stage}: missing" in output
    assert not (machine.project / ".lake").exists()
    machine.setup()
    machine.log.write_text("")
    code, output = machine.setup("--check")
    assert (code, machine.calls()) == (0, ["lake env"])
    assert "repl: done" in output


def test_arguments_are_checked(machine: Machine) -> None:
    """Nothing is guessed."""
    assert machine.setup("--force")[0] == 3
    assert machine.setup("--dir")[0] == 3
    code, output = machine.setup("--help")
    assert (code, machine.calls()) == (0, [])
    assert "--check" in output
    assert "--dir DIR" in output
