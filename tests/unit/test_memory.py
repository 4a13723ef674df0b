"""How much memory a process may take inside a container or a Slurm job."""

from __future__ import annotations

from pathlib import Path

from fd_async.memory import free_bytes


def test_the_tightest_group_around_the_process_bounds_its_memory(tmp_path: Path) -> None:
    """A Slurm job's limit lies above the step that asks; pages of files can be taken back."""
    own, job = tmp_path / "cgroup", tmp_path / "groups" / "job_7"
    (job / "step_0").mkdir(parents=True)
    own.write_text("0::/job_7/step_0\n")
    (job / "step_0" / "memory.max").write_text("max\n")
    (job / "memory.max").write_text("1000\n")
    (job / "memory.current").write_text("900\n")
    (job / "memory.stat").write_text("anon 500\ninactive_file 300\nactive_file 50\n")
    assert free_bytes(5000, own, tmp_path / "groups") == 450
    assert free_bytes(200, own, tmp_path / "groups") == 200
    assert free_bytes(5000, tmp_path / "none", tmp_path / "groups") == 5000


def test_a_full_group_leaves_nothing_and_an_unlimited_one_all(tmp_path: Path) -> None:
    """A group may hold more than a limit that was lowered since; rubbish in its files limits nothing."""
    own, group = tmp_path / "cgroup", tmp_path / "groups"
    own.write_text("1:name=systemd:/old\n0::/\n")
    group.mkdir()
    (group / "memory.current").write_text("2000\n")
    (group / "memory.stat").write_text("inactive_file 0\nactive_file 0\n")
    for limit, free in (("1000\n", 0), ("max\n", 5000), ("", 5000)):
        (group / "memory.max").write_text(limit)
        assert free_bytes(5000, own, group) == free
