"""Ranks here and on several hosts: how they start, greet, fail and end. The ranks are real processes without torch."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import msgspec
import pytest
from msgspec.structs import replace

from fd_async.config.schema import RunConfig
from fd_async.errors import LearnerError, LearnerRankDied, PreflightError
from fd_async.learner import client, entry, hosts, ranks
from fd_async.learner.client import Learner, start_learner
from fd_async.learner.hosts import Host
from fd_async.learner.link import Hello, Step, encode
from tests.fakes import rank_process
from tests.fakes.processes import all_gone
from tests.fakes.tiny_policy import tiny_config, tiny_samples

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]


@pytest.fixture(autouse=True)
def without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start the fake rank, and wait less for what will not come."""
    monkeypatch.setattr(entry, "__file__", rank_process.__file__)
    for module, name in ((ranks, "LEAVE_S"), (hosts, "LEAVE_S"), (ranks, "LOCATE_S"), (client, "_OTHERS_FOLLOW_S")):
        monkeypatch.setattr(module, name, 0.5)
    monkeypatch.setattr(hosts, "_RANK_SPEAKS_FIRST_S", 0.1)


def config_of(**learner: Any) -> RunConfig:
    return tiny_config(learner={"ranks": 2, "start_timeout_s": 60.0, "step_timeout_s": 30.0} | learner)


def start(tmp_path: Path, **learner: Any) -> AbstractAsyncContextManager[Learner]:
    return start_learner(config_of(**learner), run_dir=tmp_path / "run")


async def run_one_step(pids: list[int], *names: str, **start_arguments: Any) -> None:
    """Start a learner, note its ranks' process ids, take one step."""
    async with start(**start_arguments) as learner:
        pids.extend(learner.pids)
        await step(learner, *names)


async def step(learner: Learner, *names: str) -> None:
    """Give rank 0 the first of two samples and rank 1 the second."""
    samples = [replace(sample, rollout_id=name) for name, sample in zip(names, tiny_samples(len(names)), strict=True)]
    sizes = [replace(sample, completion_ids=[1] * 8, sampled_mask=[True] * 8, logprobs=[0.0] * 8) for sample in samples]
    ordered = [replace(s, prompt_ids=[1] * (9 - i), teacher_prompt_ids=[1] * 9) for i, s in enumerate(sizes)]
    await learner.step(ordered, step=1)


async def test_ranks_here_answer_and_leave(tmp_path: Path) -> None:
    """Two processes in sessions of their own; nothing of them is left after the block."""
    async with start(tmp_path) as learner:
        await step(learner, "a", "b")
        pids = learner.pids
        assert len(set(pids)) == 2
        assert all(os.getsid(pid) == pid for pid in pids)
    await all_gone(pids)


@pytest.mark.parametrize("others", ["a", "wait"])
async def test_a_killed_rank_is_named_whatever_the_others_do(tmp_path: Path, others: str) -> None:
    """SIGKILL in the middle of a step while the peer waits in a collective: the death, with its signal and log."""
    pids: list[int] = []
    with pytest.raises(LearnerRankDied, match=r"learner rank 1 \(pid \d+\) was killed by SIGKILL") as caught:
        await run_one_step(pids, others, "die", tmp_path=tmp_path)
    assert "rank 1 of 2" in str(caught.value)
    await all_gone(pids)


async def test_an_exception_of_one_rank_ends_the_step_though_the_other_waits(tmp_path: Path) -> None:
    """The rank's own error is raised, not the deadline; the learner takes no more requests."""
    async with start(tmp_path) as learner:
        pids = learner.pids
        with pytest.raises(LearnerError, match="learner rank 1 failed: MemoryError: no memory left"):
            await step(learner, "wait", "raise")
        with pytest.raises(LearnerError, match=r"gradient step 1 broke off, and a rank may still be inside"):
            await step(learner, "a", "b")
    await all_gone(pids)


async def test_what_every_rank_raises_leaves_the_learner_usable(tmp_path: Path) -> None:
    """An error that all ranks raise is theirs together, and the next step works."""
    async with start(tmp_path) as learner:
        with pytest.raises(LearnerError, match="no memory left"):
            await step(learner, "raise-0", "raise-1")
        await step(learner, "a", "b")


async def test_a_stopped_rank_is_told_from_the_one_that_waits_for_it(tmp_path: Path) -> None:
    """The deadline names its key, who does not answer at all, and where the others are; both are gone afterwards."""
    pids: list[int] = []
    with pytest.raises(
        LearnerError, match=r"gradient step 1 took longer than learner\.step_timeout_s = 0\.5 s"
    ) as caught:
        await run_one_step(pids, "wait", "stop", tmp_path=tmp_path, step_timeout_s=0.5)
    words = str(caught.value)
    assert f"learner rank 1 (pid {pids[1]}) does not answer at all: stopped or hung" in words
    assert f"learner rank 0 (pid {pids[0]}) is in " in words
    assert "all_reduce_that_waits" in (tmp_path / "run" / "logs" / "learner-0.log").read_text()
    await all_gone(pids)


async def test_a_rank_that_dies_at_its_start_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the first step, too."""
    monkeypatch.setenv("FD_TEST_DIES_AT_START", "1")
    with pytest.raises(LearnerRankDied, match=r"learner rank 1 .* exited with code 3"):
        async with start(tmp_path):
            pass


async def test_ranks_end_when_the_controller_is_killed(tmp_path: Path) -> None:
    """The connection closes with the process that held it; a rank inside a collective leaves too."""
    link = entry.LinkFile(
        address=str(tmp_path / "socket"), secret="s", master_addr="127.0.0.1", master_port=1, log_dir=str(tmp_path)
    )
    ranks.write_link_file(tmp_path / "link.json", link)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(link.address)
        listener.listen()
        place = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
        argv = [sys.executable, rank_process.__file__, "--link", str(tmp_path / "link.json")]
        process = await anyio.to_thread.run_sync(lambda: subprocess.Popen(argv, env=os.environ | place))
        connection, _ = await anyio.to_thread.run_sync(listener.accept)
    sample = replace(tiny_samples(1)[0], rollout_id="wait")
    connection.sendall(encode(Step(step=1, samples=[sample]), 1))
    await anyio.sleep(0.2)
    connection.close()
    assert await anyio.to_thread.run_sync(lambda: process.wait(timeout=30)) == 0


def launch_by_shell(config: RunConfig, found: list[Host], link: entry.LinkFile, link_path: Path) -> list[list[str]]:
    """Start one shell per host in the place of DeepSpeed, which starts the host's ranks and waits for them."""
    argvs, first = [], 0
    for host in found:
        starts = [
            f"RANK={first + local} LOCAL_RANK={local} WORLD_SIZE={config.learner.ranks} "
            f"{sys.executable} {entry.__file__} --link {link_path} & "
            for local in range(host.slots)
        ]
        argvs.append(["/bin/bash", "-c", f"{''.join(starts)} wait"])
        first += host.slots
    return argvs


@pytest.fixture
def hostfile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Two hosts that are this machine, launched by a shell."""
    monkeypatch.setattr(hosts, "commands", launch_by_shell)
    monkeypatch.setattr(hosts, "shutil", SimpleNamespace(which=lambda name: name))
    path = tmp_path / "hostfile"
    path.write_text("# two nodes\nlocalhost slots=1\n127.0.0.2 slots=1\n")
    return str(path)


async def test_ranks_of_a_hostfile_connect_over_tcp(tmp_path: Path, hostfile: str) -> None:
    """They log into the run folder, leave with the block, and no secret is left behind."""
    async with start(tmp_path, hostfile=hostfile) as learner:
        await step(learner, "a", "b")
        pids = learner.pids
    await all_gone(pids)
    logs = tmp_path / "run" / "logs"
    assert (logs / "learner-1.log").read_text().startswith("rank 1 of 2 local 0 session ")
    assert not (tmp_path / "run" / "learner-link.json").exists()


async def test_a_lost_rank_of_another_host_is_named_with_its_host(tmp_path: Path, hostfile: str) -> None:
    """The end of its connection is its death; the rank that waits for it ends with the block."""
    pids: list[int] = []
    with pytest.raises(LearnerRankDied, match=r"learner rank 1 \(pid \d+ on 127\.0\.0\.2\) is gone"):
        await run_one_step(pids, "wait", "die", tmp_path=tmp_path, hostfile=hostfile)
    await all_gone(pids)


async def test_a_stopped_rank_of_another_host_is_named_and_ended(tmp_path: Path, hostfile: str) -> None:
    """It cannot leave by itself: the launcher's session is ended."""
    pids: list[int] = []
    with pytest.raises(LearnerError, match=r"learner rank 1 \(pid \d+ on 127\.0\.0\.2\) does not answer at all"):
        await run_one_step(pids, "wait", "stop", tmp_path=tmp_path, hostfile=hostfile, step_timeout_s=0.5)
    await all_gone(pids)


async def test_a_launcher_that_ends_is_a_death_with_its_log(
    tmp_path: Path, hostfile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For example a host that ssh does not reach."""
    monkeypatch.setattr(hosts, "commands", lambda *_: [["/bin/bash", "-c", "echo no route to host; exit 255"]])
    with pytest.raises(LearnerRankDied, match=r"launcher .* ended with code 255(.|\n)*no route to host"):
        async with start(tmp_path, hostfile=hostfile):
            pass


async def test_strangers_are_refused_and_do_not_disturb(
    tmp_path: Path, hostfile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Silence, rubbish, a huge frame, a wrong secret, ranks that do not exist: closed, and the true ones arrive."""
    greetings = [
        b"",
        b"GET / HTTP/1.1\r\n\r\n" + bytes(64),
        (1 << 40).to_bytes(8, "big"),
        encode(Hello(rank=0, secret="guess")),
        encode(Hello(rank=-1, secret="right")),
        encode(Hello(rank=2, secret="right")),
    ]
    visitors: list[socket.socket] = []

    def visited(config: RunConfig, found: list[Host], link: entry.LinkFile, link_path: Path) -> list[list[str]]:
        host, _, port = link.address.rpartition(":")
        for greeting in greetings:
            visitors.append(socket.create_connection((host.strip("[]"), int(port))))
            visitors[-1].sendall(greeting)
        assert stat.S_IMODE(link_path.stat().st_mode) == 0o600
        argvs = launch_by_shell(config, found, link, link_path)
        assert link.secret not in str(argvs)
        return argvs

    monkeypatch.setattr("fd_async.learner.starting.new_secret", lambda: "right")
    monkeypatch.setattr(hosts, "commands", visited)
    async with start(tmp_path, hostfile=hostfile) as learner:
        await step(learner, "a", "b")
        for visitor in visitors[1:]:
            visitor.settimeout(10)
            try:
                assert await anyio.to_thread.run_sync(visitor.recv, 1) == b""
            except ConnectionResetError:
                pass  # closed with bytes of the greeting unread
    for visitor in visitors:
        visitor.close()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no host"),
        ("alpha slots=2\nalpha slots=1", "line 2: host alpha stands there twice"),
        ("alpha 2", "line 1: expected `HOST slots=N`, got 'alpha 2'"),
        ("alpha slots=0", "line 1"),
    ],
)
def test_a_hostfile_that_cannot_be_used_is_refused_by_line(text: str, message: str, tmp_path: Path) -> None:
    """The file, the line, what was expected."""
    path = tmp_path / "hostfile"
    path.write_text(text)
    with pytest.raises(PreflightError, match=message):
        hosts.read_hostfile(path)
    with pytest.raises(PreflightError, match="cannot read it"):
        hosts.read_hostfile(tmp_path / "none")


@pytest.mark.parametrize(
    ("text", "learner", "policy", "message"),
    [
        ("localhost slots=3", {}, {}, r"learner\.ranks = 2, but learner\.hostfile has 3 slots"),
        ("far.invalid slots=2", {}, {}, r"set learner\.controller_address"),
        (
            "far.invalid slots=1\nlocalhost slots=1",
            {"controller_address": "127.0.0.1"},
            {},
            r'policy\.push = "shm" needs rank 0 on this machine.*far\.invalid.*"file" or "nccl"',
        ),
        ("localhost slots=1\n127.0.0.2 slots=1", {"launcher": "openmpi"}, {}, "needs mpirun on PATH"),
        ("localhost slots=2", {"gpus": [1, 1]}, {}, r"gives host localhost the GPUs \[1, 1\]"),
        ("localhost slots=2", {"gpus": [0, 1]}, {"gpus": [1], "push": "nccl"}, r"two processes on one GPU: \[1\]"),
    ],
)
def test_what_cannot_start_is_refused_with_its_key(
    text: str, learner: dict, policy: dict, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is started."""
    monkeypatch.setattr(hosts, "shutil", SimpleNamespace(which=lambda name: None if name == "mpirun" else name))
    path = tmp_path / "hostfile"
    path.write_text(text)
    made = config_of(hostfile=str(path), **learner)
    made = replace(made, policy=replace(made.policy, **policy))
    with pytest.raises(PreflightError, match=message):
        hosts.check(made)


@pytest.mark.parametrize(
    ("text", "found"),
    [("", ("127.0.0.1", 0)), ("node1", ("node1", 0)), ("node1:4000", ("node1", 4000)), ("[::1]:9", ("::1", 9))],
)
def test_an_address_is_a_host_or_a_host_and_a_port(text: str, found: tuple[str, int]) -> None:
    """Without a port the system chooses one."""
    assert hosts.endpoint(config_of(controller_address=text)) == found
    for wrong in ("a:b", "a:70000", "::1", "a b"):
        with pytest.raises(PreflightError, match=r"learner\.controller_address"):
            hosts.endpoint(config_of(controller_address=wrong))


async def test_an_address_of_another_machine_is_refused(tmp_path: Path, hostfile: str) -> None:
    """The controller can only listen on an address that it has."""
    with pytest.raises(PreflightError, match=r"cannot listen on 192\.0\.2\.1"):
        async with start(tmp_path, hostfile=hostfile, controller_address="192.0.2.1"):
            pass


def test_every_rank_gets_its_gpu_and_its_place() -> None:
    """DeepSpeed's, Open MPI's and Slurm's variables; one GPU is seen, which is number 0 then."""
    ours = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}
    assert entry.find_place(ours | {"SLURM_PROCID": "9", "SLURM_NTASKS": "9", "SLURM_LOCALID": "9"}) == (3, 4, 1)
    mpi = {"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}
    assert entry.find_place(mpi) == (2, 4, 0)
    with pytest.raises(SystemExit, match="started by fd-run"):
        entry.find_place({"RANK": "1"})


def test_preparing_sets_what_torch_reads_when_it_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 3 sits on the second GPU of the second host."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "CUDA_VISIBLE_DEVICES", "FD_X"):
        monkeypatch.setenv(name, "before")
    link = entry.LinkFile(
        address="/s", secret="s", master_addr="node1", master_port=29501, settings={"FD_X": "y"}, gpus=[4, 5, 0, 1]
    )
    entry.prepare(link, entry.Place(3, 4, 1))
    found = {name: os.environ[name] for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "CUDA_VISIBLE_DEVICES", "FD_X")}
    assert found == {"RANK": "3", "LOCAL_RANK": "0", "MASTER_ADDR": "node1", "CUDA_VISIBLE_DEVICES": "1", "FD_X": "y"}


def test_launchers_get_no_secret_and_the_hosts_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed's runner for its own launchers; one DeepSpeed launch per host through ssh, here without it."""
    link = entry.LinkFile(address="[n]:1", secret="hidden", master_addr="n", master_port=2)
    found = [Host("localhost", 1), Host("far.invalid", 1)]
    made = config_of(hostfile=str(tmp_path / "hostfile"))
    [runner] = hosts.commands(made, found, link, tmp_path / "link.json")
    assert runner[runner.index("--hostfile") + 1] == str(tmp_path / "hostfile")
    assert runner[runner.index("--launcher") + 1] == "pdsh"
    here, there = hosts.commands(config_of(launcher="ssh"), found, link, tmp_path / "link.json")
    assert here[1:4] == ["-u", "-m", "deepspeed.launcher.launch"]
    assert there[:5] == ["ssh", "-tt", "-o", "BatchMode=yes", "far.invalid"]
    assert "--node_rank=1" in there[5]
    assert "hidden" not in str([runner, here, there])


def test_ranks_of_every_host_get_what_networks_and_allocators_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Variables of the run that its own ranks inherit; no others."""
    for name in ("NCCL_SOCKET_IFNAME", "PYTORCH_ALLOC_CONF", "TRITON_CACHE_DIR", "FD_TEST_KEY"):
        monkeypatch.setenv(name, "x")
    (tmp_path / "hostfile").write_text("localhost slots=1\n")
    config = tiny_config(learner={"hostfile": str(tmp_path / "hostfile"), "ranks": 1})
    told = hosts.link_file(config, hosts.check(config), "a:1", "s", tmp_path).settings
    assert {"NCCL_SOCKET_IFNAME", "PYTORCH_ALLOC_CONF", "TRITON_CACHE_DIR"} <= set(told)
    assert "FD_TEST_KEY" not in told


def test_a_link_file_is_replaced_and_private(tmp_path: Path) -> None:
    """A file that others could read is not written into."""
    path = tmp_path / "link.json"
    path.write_text("old")
    path.chmod(0o666)
    link = entry.LinkFile(address="/s", secret="s", master_addr="n", master_port=2)
    ranks.write_link_file(path, link)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert msgspec.json.decode(path.read_bytes(), type=entry.LinkFile) == link
