"""bin/_env: one .venv, made once, repaired after an interruption, never half used."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from fd_async.config.files import CHECKOUT

FAKE_PYTHON = """\
#!/usr/bin/env bash
# Stands for a Python: answers what bin/_env asks, "installs" by writing to calls.log.
calls="$FAKE_CALLS"
case "$*" in
  *-P*) exit 1 ;; # fd_async is not importable
  *version_info*) exit 0 ;;
  *sys.executable*) echo "$0" ;;
  *python_version*) echo 3.12.0 ;;
  "-m venv "*) mkdir -p "$3/bin" "$3/site" && cp "$0" "$3/bin/python" && echo venv >>"$calls" ;;
  *sysconfig*) echo "$(dirname "$0")/../site" ;;
  *"pip install"*)
    echo "pip ${*: -1}" >>"$calls"
    case "$*" in
      *"${FAKE_FAIL:-nothing}"*) echo "${FAKE_ERROR:-ERROR: no}" && exit 1 ;;
    esac
    sleep "${FAKE_SLEEP:-0}"
    ;;
  *) echo "unexpected: $*" >&2 && exit 9 ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout that has only what set-up reads, and a fake python3 on PATH."""
    root = tmp_path / "checkout"
    (root / "bin").mkdir(parents=True)
    (root / "requirements").mkdir()
    shutil.copy(CHECKOUT / "bin" / "_env", root / "bin")
    (root / "bin" / "command").write_text('source "$(dirname "$0")/_env"\nfd_env\necho "$FD_PYTHON"\n')
    for name in ("cpu", "gpu", "dev"):
        (root / "requirements" / f"{name}.txt").write_text(f"{name}==1\n")
    python = tmp_path / "path" / "python3"
    python.parent.mkdir()
    python.write_text(FAKE_PYTHON)
    python.chmod(0o755)
    return root


def start(checkout: Path, **settings: str) -> subprocess.Popen[str]:
    """Start a command of the checkout in its own process group."""
    environment = {
        "PATH": f"{checkout.parent / 'path'}:/usr/bin:/bin",
        "FAKE_CALLS": str(checkout / "calls.log"),
        "FD_DEVICE": "cpu",
    }
    return subprocess.Popen(
        ["bash", str(checkout / "bin" / "command")],
        env=environment | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Whoever starts the tests in the background of a shell leaves them an ignored SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def call(checkout: Path, **settings: str) -> tuple[int, str, str]:
    """Run a command of the checkout to its end: exit code, stdout, stderr."""
    process = start(checkout, **settings)
    out, err = process.communicate(timeout=30)
    return process.returncode, out, err


def calls(checkout: Path) -> list[str]:
    """List what set-up did."""
    log = checkout / "calls.log"
    return log.read_text().splitlines() if log.exists() else []


def wait_for(checkout: Path, line: str) -> None:
    """Wait until set-up has come to a step."""
    for _ in range(500):
        if any(line in made for made in calls(checkout)):
            return
        time.sleep(0.01)
    raise AssertionError(f"set-up never came to {line}: {calls(checkout)}")


def test_the_first_call_makes_the_environment_and_the_second_does_nothing(checkout: Path) -> None:
    """Once, with words; then silently."""
    python = str(checkout / ".venv" / "bin" / "python")
    code, out, err = call(checkout)
    assert (code, out) == (0, python + "\n"), err
    assert "requirements/cpu.txt" in err
    made = calls(checkout)
    assert made[0] == "venv"
    assert call(checkout) == (0, python + "\n", "")
    assert calls(checkout) == made


def test_the_cpu_environment_answers_for_vllm(checkout: Path) -> None:
    """The CPU wheel has another name; vLLM asks for the version of `vllm`."""
    call(checkout)
    (metadata,) = (checkout / ".venv" / "site").glob("vllm-*.dist-info/METADATA")
    assert "Name: vllm\nVersion: 0.32.0+cpu\n" in metadata.read_text()
    assert (checkout / ".venv" / "site" / "fd_async_checkout.pth").read_text() == f"{checkout}\n"


def test_a_changed_lock_makes_it_anew(checkout: Path) -> None:
    """The stamp covers the lock."""
    call(checkout)
    (checkout / "requirements" / "cpu.txt").write_text("cpu==2\n")
    call(checkout)
    assert calls(checkout).count("venv") == 2


def test_the_environment_of_a_gpu_node_serves_the_login_node_too(checkout: Path) -> None:
    """They share the checkout: a look at a run must not take the packages from under it. FD_DEVICE still decides."""
    disk = checkout.parent / "path" / "df"
    disk.write_text("#!/bin/sh\necho\necho fake 0 0 99999999\n")
    disk.chmod(0o755)
    code, _, said = call(checkout, FD_DEVICE="gpu")
    assert code == 0, said
    made = calls(checkout)
    code, _, said = call(checkout, FD_DEVICE="")
    assert (code, said, calls(checkout)) == (0, "", made)
    call(checkout, FD_DEVICE="cpu")
    assert calls(checkout)[len(made)] == "venv"


def test_an_interrupted_set_up_is_done_again(checkout: Path) -> None:
    """Ctrl-C in the middle leaves no stamp."""
    process = start(checkout, FAKE_SLEEP="20")
    wait_for(checkout, "pip torch")
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=10)
    assert process.returncode != 0
    assert not (checkout / ".venv" / ".stamp").exists()
    assert call(checkout)[0] == 0
    assert calls(checkout).count("venv") == 2


def test_two_first_calls_make_one_environment(checkout: Path) -> None:
    """The second waits for the first and says so."""
    first = start(checkout, FAKE_SLEEP="0.5")
    wait_for(checkout, "pip torch")
    second = call(checkout)
    first.communicate(timeout=10)
    assert (first.returncode, second[0]) == (0, 0)
    assert "waiting" in second[2]
    assert calls(checkout).count("venv") == 1


def test_a_failed_download_is_one_clear_line(checkout: Path) -> None:
    """The reason, not pip's fifty lines."""
    code, _, err = call(checkout, FAKE_FAIL="requirements/cpu.txt", FAKE_ERROR="WARNING: NewConnectionError: no")
    assert code == 3
    assert err.splitlines()[-1] == (
        "fd-env: pip failed: the package index cannot be reached; check the network or proxy (log: .venv/.log)"
    )


def test_the_cpu_build_of_torch_is_looked_for_in_two_places(checkout: Path) -> None:
    """First where pip looks anyway, then at PyTorch's own index."""
    code, _, err = call(checkout, FAKE_FAIL="torch==")
    assert code == 3
    assert calls(checkout) == ["venv", "pip torch==2.13.0+cpu", "pip https://download.pytorch.org/whl/cpu"]
    assert "PIP_FIND_LINKS" in err.splitlines()[-1]


def test_a_folder_that_is_not_ours_is_left_alone(checkout: Path) -> None:
    """Somebody's own .venv must not be deleted."""
    (checkout / ".venv").mkdir()
    (checkout / ".venv" / "mine").touch()
    code, _, err = call(checkout)
    assert code == 3
    assert "was not made by bin/" in err
    assert (checkout / ".venv" / "mine").exists()


def test_a_link_to_the_environment_of_another_checkout_is_left_alone(checkout: Path) -> None:
    """Its stamp, packages and lock stay as they are; the other checkout goes on with them."""
    assert call(checkout)[0] == 0
    other = checkout.with_name("other")
    shutil.copytree(checkout, other, ignore=shutil.ignore_patterns(".venv", "calls.log"))
    (other / ".venv").symlink_to(checkout / ".venv")
    before = {path: path.lstat().st_mtime_ns for path in (checkout / ".venv").rglob("*")}
    code, out, err = call(other)
    assert (code, out, err.count("\n")) == (3, "", 1)
    assert f"{other}/.venv is a link to {checkout}/.venv, which was not made for this checkout" in err
    assert calls(other) == []
    assert {path: path.lstat().st_mtime_ns for path in (checkout / ".venv").rglob("*")} == before
    assert call(checkout) == (0, f"{checkout}/.venv/bin/python\n", "")


def test_a_link_to_nowhere_is_left_alone(checkout: Path) -> None:
    """Nothing is made at its end."""
    (checkout / ".venv").symlink_to(checkout.parent / "away")
    code, _, err = call(checkout)
    assert (code, err.count("\n")) == (3, 1)
    assert f".venv is a link to {checkout.parent}/away" in err
    assert not (checkout.parent / "away").exists()


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"FD_DEVICE": "tpu"}, "allowed: cpu, gpu"), ({"FD_PYTHON": "/bin/false"}, "cannot import this checkout")],
)
def test_a_wrong_setting_is_one_line(checkout: Path, settings: dict[str, str], said: str) -> None:
    """Nothing is made."""
    code, _, err = call(checkout, **settings)
    assert (code, err.count("\n")) == (3, 1)
    assert said in err
    assert calls(checkout) == []


def test_no_fitting_python_is_one_line(checkout: Path) -> None:
    """A machine with an old Python only."""
    fake = checkout.parent / "path" / "python3"
    fake.write_text("#!/bin/sh\nexit 1\n")
    for version in ("python3.11", "python3.12", "python3.13"):
        shutil.copy(fake, fake.with_name(version))
    code, _, err = call(checkout)
    assert (code, err.count("\n")) == (3, 1)
    assert "no Python 3.11 to 3.13" in err


def test_an_environment_that_has_everything_is_used_as_it_is(checkout: Path) -> None:
    """Docker: no .venv is made."""
    fake = checkout.parent / "path" / "python3"
    fake.write_text("#!/bin/sh\nexit 0\n")
    assert call(checkout) == (0, f"{fake}\n", "")
    assert not (checkout / ".venv").exists()
