"""DeepSpeed's own launcher: one node without ssh, two nodes through pdsh and ssh programs that stay on this machine."""

from __future__ import annotations

import math
import os
import signal
from pathlib import Path
from typing import Any

import anyio
import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from fd_async.errors import LearnerRankDied
from fd_async.learner import entry
from fd_async.learner.client import Learner, start_learner
from tests.fakes import rank_process, remote_shell
from tests.fakes.processes import all_gone
from tests.fakes.tiny_policy import VOCAB, tiny_config, tiny_policy, tiny_samples

pytestmark = [pytest.mark.anyio, pytest.mark.slow, pytest.mark.timeout(600)]


def config_of(tmp_path: Path, hostfile: str, path: str = "tiny", **learner: Any) -> Any:
    (tmp_path / "hostfile").write_text(hostfile)
    keys = {"ranks": 2, "hostfile": str(tmp_path / "hostfile"), "start_timeout_s": 300.0, "step_timeout_s": 120.0}
    return tiny_config(path, learner=keys | learner)


async def kill_in_a_step(learner: Learner, samples: list[Any]) -> None:
    """Take steps for ever and kill rank 1 in the middle of one."""

    async def train() -> None:
        for step in range(2, 1_000_000):
            await learner.step(samples, step=step)

    async with anyio.create_task_group() as group:
        group.start_soon(train)
        await anyio.sleep(0.5)
        os.kill(learner.pids[1], signal.SIGKILL)
        with anyio.fail_after(30):
            await anyio.sleep_forever()


async def test_two_ranks_of_one_node_train_and_a_killed_one_ends_them(tmp_path: Path) -> None:
    """The real learner under DeepSpeed's launcher: a step over gloo, then SIGKILL of a rank in the middle of one."""
    tiny_policy().lm.save_pretrained(tmp_path / "model")
    tokenizer = Tokenizer(models.WordLevel({f"t{index}": index for index in range(VOCAB)}, unk_token="t0"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="t1").save_pretrained(tmp_path / "model")
    config = config_of(tmp_path, "localhost slots=2\n", str(tmp_path / "model"), zero_stage=2)
    pids: list[int] = []
    with pytest.raises(LearnerRankDied, match=r"learner rank 1 \(pid \d+ on localhost\) is gone"):
        await _train_and_kill(config, tmp_path, pids)
    assert len(pids) == 2
    await all_gone(pids)


async def _train_and_kill(config: Any, tmp_path: Path, pids: list[int]) -> None:
    async with start_learner(config, run_dir=tmp_path / "run") as learner:
        pids.extend(learner.pids)
        report = await learner.step(tiny_samples(8), step=1)
        assert math.isfinite(report.metrics["loss"])
        await kill_in_a_step(learner, tiny_samples(64))


@pytest.mark.parametrize("launcher", ["pdsh", "ssh"])
async def test_two_nodes_through_a_remote_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launcher: str) -> None:
    """DeepSpeed's arguments, its pdsh command line, our ssh command line: both ranks arrive, answer and leave."""
    programs = tmp_path / "bin"
    programs.mkdir()
    remote_shell.install(programs)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(entry, "__file__", rank_process.__file__)
    config = config_of(
        tmp_path,
        "localhost slots=1\nnode-b.invalid slots=1\n",
        launcher=launcher,
        controller_address="127.0.0.1",
    )
    async with start_learner(config, run_dir=tmp_path / "run") as learner:
        pids = learner.pids
        await learner.step(tiny_samples(2), step=1)
    await all_gone(pids)
    calls = (programs / "calls").read_text()
    assert "node-b.invalid" in calls
    assert "pkill" not in calls  # the launcher left by itself
    for rank in (0, 1):
        log = (tmp_path / "run" / "logs" / f"learner-{rank}.log").read_text()
        assert log.startswith(f"rank {rank} of 2 local 0 session")
