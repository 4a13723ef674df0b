"""What is made of nvidia-smi's answers, the strange ones too, and of ports that cannot be opened."""

from __future__ import annotations

from pathlib import Path

import pytest

from fd_async.preflight import network, nvidia
from fd_async.preflight.nvidia import MIB, driver


@pytest.fixture
def answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An nvidia-smi on PATH that prints a file."""
    program, text = tmp_path / "nvidia-smi", tmp_path / "answer"
    program.write_text(f'#!/bin/sh\nexec /bin/cat "{text}"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    return text


def test_a_row_is_taken_apart(answer: Path) -> None:
    """Fields that the driver does not know are 0; a name may have a comma."""
    answer.write_text("1, NVIDIA H200, 96 GB, 97871, [N/A], [N/A], [N/A], 580.95.05\n")
    found = driver()
    assert (found.version, found.problem) == ("580.95.05", "")
    assert found.gpus[1] == (1, "NVIDIA H200, 96 GB", 97871 * MIB, 0, 0.0, False)


@pytest.mark.parametrize("text", ["", "No devices were found\n", "0, GPU, lots, 0, 9.0, Disabled, 580\n", "\x00\n"])
def test_an_answer_without_gpus_is_a_problem_in_words(answer: Path, text: str) -> None:
    """One line, no traceback."""
    answer.write_text(text)
    found = driver()
    assert found.gpus == {}
    assert found.problem.startswith("nvidia-smi: ")
    assert "\n" not in found.problem


def test_a_program_that_cannot_run_is_a_problem_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A script without an interpreter, say."""
    (tmp_path / "nvidia-smi").write_text("#!/no/such/shell\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert driver().problem == f"{tmp_path}/nvidia-smi: No such file or directory"
    assert nvidia._ask.cache_info().maxsize == 1


@pytest.mark.parametrize(("host", "port"), [("no-such-host.invalid", 9464), ("192.0.2.1", 9464)])
def test_an_address_that_cannot_be_listened_on_is_missing(host: str, port: int) -> None:
    """A name that nobody knows, the address of another machine."""
    found = network._free(host, port, "/metrics", "change it")
    assert found.state == "missing"
    assert "Unknown error" not in found.found
