"""The controller's end of the link: rank processes, their sockets, their deaths.

start: listen ▸ spawn N processes ▸ accept N hellos
one reader per rank routes replies by id; one watcher per rank turns an exit into LearnerRankDied at once
end: close stdin (the rank leaves) ▸ wait ▸ kill
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import anyio
from anyio.abc import ByteStream, Process, SocketListener, TaskGroup
from anyio.streams.buffered import BufferedByteReceiveStream

from fd_async.config.schema import RunConfig
from fd_async.errors import LearnerError, LearnerRankDied
from fd_async.learner.link import HEADER, MAX_FRAME_BYTES, Failed, Hello, Message, Reply, as_error, decode_reply, encode

TAIL_LINES = 25
LEAVE_S = 10.0


def environment(config: RunConfig, rank: int, port: int) -> dict[str, str]:
    """Return the environment of a rank: its place, its device, its threads."""
    learner = config.learner
    env = dict(os.environ)
    paths = [str(Path(__file__).parents[2]), env.get("PYTHONPATH", "")]
    env |= {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "RANK": str(rank),
        "WORLD_SIZE": str(learner.ranks),
        "LOCAL_RANK": "0" if learner.gpus else str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if learner.gpus:
        env["CUDA_VISIBLE_DEVICES"] = str(learner.gpus[rank])
    else:
        env["DS_ACCELERATOR"] = "cpu"
        # The engine and the verifier share the cores: threads that spin while they wait made steps ten times slower.
        env.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        if sys.platform == "linux":
            env.setdefault("GLOO_SOCKET_IFNAME", "lo")
    if learner.cpu_threads:
        env["OMP_NUM_THREADS"] = str(learner.cpu_threads)
    return env


def free_port() -> int:
    """Ask the system for a TCP port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def log_tail(path: Path) -> str:
    """Return the last lines of a log."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError as error:
        return f"(no log: {error})"
    return "\n".join(lines[-TAIL_LINES:]) or "(the log is empty)"


class RankProcess:
    """One rank as the controller sees it."""

    def __init__(self, rank: int, process: Process, log_path: Path) -> None:
        self.rank, self.process, self.log_path = rank, process, log_path
        self._stream: ByteStream | None = None
        self._waiting: dict[int, anyio.Event] = {}
        self._replies: dict[int, Reply] = {}
        self.death: LearnerRankDied | None = None
        self._next_id = 1

    def attach(self, stream: ByteStream) -> None:
        """Use this connection from now on."""
        self._stream = stream

    async def read_replies(self, buffered: BufferedByteReceiveStream) -> None:
        """Route replies until the connection ends; the watcher reports why it ended."""
        try:
            while True:
                body = await read_frame(buffered)
                reply = await anyio.to_thread.run_sync(decode_reply, body)
                if event := self._waiting.get(reply.id):
                    self._replies[reply.id] = reply
                    event.set()
        except (anyio.IncompleteRead, anyio.BrokenResourceError, anyio.ClosedResourceError):
            return

    async def request(self, message: Message) -> Reply:
        """Send a request and wait for its answer; the caller holds the deadline.

        Raises:
            LearnerRankDied: the rank is or goes away.
            FdError: what the rank raised.
        """
        if self.death is not None:
            raise self.death
        assert self._stream is not None, "attached when the rank said hello"
        request_id, self._next_id = self._next_id, self._next_id + 1
        event = self._waiting[request_id] = anyio.Event()
        try:
            frame = await anyio.to_thread.run_sync(lambda: encode(message, request_id))
            # A broken pipe means that the process is ending: its watcher tells why and wakes this wait.
            # Shielded, since a frame cut in half by cancellation would garble every later one.
            with contextlib.suppress(anyio.BrokenResourceError), anyio.CancelScope(shield=True):
                await self._stream.send(frame)
            await event.wait()
            reply = self._replies.pop(request_id, None)
        finally:
            del self._waiting[request_id]
        if reply is None:
            raise self.death or LearnerError(f"learner rank {self.rank} hung up")
        if isinstance(reply, Failed):
            raise as_error(reply, self.rank)
        return reply

    async def watch(self, died: anyio.Event) -> None:
        """Wait for the process to end, wake whoever waits for it, and raise.

        Raises:
            LearnerRankDied: always, unless cancelled first.
        """
        code = await self.process.wait()
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
        tail = await anyio.to_thread.run_sync(log_tail, self.log_path)
        self.death = LearnerRankDied(
            f"learner rank {self.rank} (pid {self.process.pid}) {how}; last lines of {self.log_path}:\n{tail}"
        )
        died.set()
        for event in self._waiting.values():
            event.set()
        raise self.death

    def dump_stacks(self) -> None:
        """Have the rank print the stacks of all its threads into its log."""
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGUSR1)

    async def end(self) -> None:
        """Let the process leave, or kill it."""
        if self.process.returncode is None:
            if self.process.stdin is not None:
                await self.process.stdin.aclose()
            with anyio.move_on_after(LEAVE_S):
                await self.process.wait()
        if self.process.returncode is None:
            self.process.kill()
            await self.process.wait()
        if self._stream is not None:
            await self._stream.aclose()
        await self.process.aclose()


async def read_frame(buffered: BufferedByteReceiveStream) -> bytes:
    """Read one message body."""
    (size,) = HEADER.unpack(await buffered.receive_exactly(HEADER.size))
    if size > MAX_FRAME_BYTES:
        raise LearnerError(f"a learner rank announced a message of {size} bytes; the link is out of step")
    return await buffered.receive_exactly(size)


async def spawn(config: RunConfig, rank: int, port: int, socket_path: Path, log_path: Path) -> RankProcess:
    """Start one rank process in its own session, so that Ctrl-C reaches the controller alone."""
    with log_path.open("ab") as log:
        process = await anyio.open_process(
            [sys.executable, "-m", "fd_async.learner.rank", "--socket", str(socket_path)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment(config, rank, port),
            start_new_session=True,
        )
    return RankProcess(rank, process, log_path)


async def accept_all(ranks: Sequence[RankProcess], listener: SocketListener, group: TaskGroup) -> None:
    """Take one connection per rank, identified by its hello, and start its reader in `group`."""
    for _ in ranks:
        stream = await listener.accept()
        buffered = BufferedByteReceiveStream(stream)
        hello = decode_reply(await read_frame(buffered))
        if not isinstance(hello, Hello):
            raise LearnerError("a process that is no learner rank connected to the learner's socket")
        ranks[hello.rank].attach(stream)
        group.start_soon(ranks[hello.rank].read_replies, buffered)
