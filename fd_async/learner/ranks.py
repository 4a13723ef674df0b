"""The controller's end of the link: ranks, their sockets, their deaths.

start: listen ▸ processes start (here, or on the hosts of a hostfile: `hosts`) ▸ every rank greets with the secret
one reader per rank routes replies by id; a process that exits or a connection that ends is LearnerRankDied at once
end:   close the connections (the ranks leave) ▸ wait ▸ kill
"""

from __future__ import annotations

import hmac
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import anyio
import msgspec
import structlog
from anyio.abc import ByteStream, Listener, Process, SocketAttribute, SocketStream, TaskGroup
from anyio.streams.buffered import BufferedByteReceiveStream

from fd_async.config.schema import RunConfig
from fd_async.errors import LearnerError, LearnerRankDied
from fd_async.learner import entry
from fd_async.learner.link import (
    HEADER,
    MAX_FRAME_BYTES,
    MAX_HELLO_BYTES,
    Failed,
    Hello,
    Locate,
    Located,
    Message,
    Reply,
    as_error,
    decode_reply,
    encode,
    keep_alive,
)

log = structlog.get_logger(__name__)

TAIL_LINES = 25
LEAVE_S = 10.0
LOCATE_S = 3.0
SEND_S = 10.0
HELLO_S = 30.0
"""A connection that says nothing for so long is no rank."""


def settings(config: RunConfig, *, on_one_machine: bool) -> dict[str, str]:
    """Return environment variables that every rank sets before it imports torch."""
    chosen = {"TOKENIZERS_PARALLELISM": "false"}
    if not config.learner.gpus:
        # The engine and the verifier share the cores: threads that spin while they wait made steps ten times slower.
        chosen |= {"DS_ACCELERATOR": "cpu", "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE")}
        if on_one_machine and sys.platform == "linux":
            chosen["GLOO_SOCKET_IFNAME"] = os.environ.get("GLOO_SOCKET_IFNAME", "lo")
    else:
        chosen["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # learner.gpus counts as nvidia-smi does
    if config.learner.cpu_threads:
        chosen["OMP_NUM_THREADS"] = str(config.learner.cpu_threads)
    return chosen


def free_port() -> int:
    """Ask the system for a TCP port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def new_secret() -> str:
    """Make the secret that the ranks of one run greet with."""
    return secrets.token_urlsafe(32)


def write_link_file(path: Path, link: entry.LinkFile) -> None:
    """Write the link file so that only this user reads it; one that is there is replaced."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.json.encode(link))


def log_tail(path: Path) -> str:
    """Return the last lines of a log."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError as error:
        return f"(no log: {error})"
    return "\n".join(lines[-TAIL_LINES:]) or "(the log is empty)"


class RankProcess:
    """One rank as the controller sees it; `process` where the controller started it itself."""

    def __init__(self, rank: int, log_path: Path, process: Process | None = None, host: str = "") -> None:
        self.rank, self.process, self.log_path, self.host = rank, process, log_path, host
        self.pid = process.pid if process else 0
        self.death: LearnerRankDied | None = None
        self._stream: ByteStream | None = None
        self._sending, self._is_cut = anyio.Lock(), False
        self._waiting: dict[int, anyio.Event] = {}
        self._replies: dict[int, Reply] = {}
        self._next_id = 1

    @property
    def is_attached(self) -> bool:
        """Whether the rank has said hello."""
        return self._stream is not None

    @property
    def name(self) -> str:
        """The rank in words, for messages."""
        return f"learner rank {self.rank} (pid {self.pid}{f' on {self.host}' if self.host else ''})"

    def attach(self, stream: ByteStream, hello: Hello) -> None:
        """Use this connection from now on."""
        self._stream, self.pid = stream, hello.pid or self.pid

    async def read_replies(self, buffered: BufferedByteReceiveStream, died: anyio.Event) -> None:
        """Route replies until the connection ends.

        Raises:
            LearnerRankDied: it ended, and no watcher of a process is there to say why.
        """
        try:
            while True:
                body = await read_frame(buffered)
                reply = await anyio.to_thread.run_sync(decode_reply, body)
                if event := self._waiting.get(reply.id):
                    self._replies[reply.id] = reply
                    event.set()
        except (anyio.EndOfStream, anyio.IncompleteRead, anyio.BrokenResourceError, anyio.ClosedResourceError):
            if self.process is None:
                await self.die("is gone: its connection ended", died)

    async def request(self, message: Message) -> Reply:
        """Send a request and wait for its answer; the caller holds the deadline.

        Raises:
            LearnerRankDied: the rank is or goes away.
            FdError: what the rank raised.
        """
        if self.death is not None:
            raise self.death
        request_id, self._next_id = self._next_id, self._next_id + 1
        event = self._waiting[request_id] = anyio.Event()
        try:
            await self._send(await anyio.to_thread.run_sync(lambda: encode(message, request_id)))
            await event.wait()
            reply = self._replies.pop(request_id, None)
        finally:
            del self._waiting[request_id]
        if reply is None:
            raise self.death or LearnerError(f"{self.name} hung up")
        if isinstance(reply, Failed):
            raise as_error(reply, self.rank)
        return reply

    async def _send(self, frame: bytes) -> None:
        assert self._stream is not None, "attached when the rank said hello"
        async with self._sending:
            if self._is_cut:
                raise LearnerError(f"{self.name} got half of an earlier request and cannot read another")
            # Half a frame would garble every later one, so a cancelled caller still sends the rest, for a while.
            self._is_cut = True
            with anyio.move_on_after(SEND_S, shield=True):
                try:
                    await self._stream.send(frame)
                except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                    # The rank is ending: whoever watches it tells why and wakes the wait for the reply.
                    return
                self._is_cut = False

    async def locate(self) -> str:
        """Ask what the rank is at, in the middle of whatever it does; empty when it does not answer at all."""
        with anyio.move_on_after(LOCATE_S):
            try:
                reply = await self.request(Locate())
            except LearnerError:
                reply = None
            if isinstance(reply, Located):
                return reply.at
        self.dump_stacks()
        return ""

    async def watch(self, died: anyio.Event) -> None:
        """Wait for the process to end, wake whoever waits for it, and raise.

        Raises:
            LearnerRankDied: always, unless cancelled first.
        """
        assert self.process is not None
        code = await self.process.wait()
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
        await self.die(how, died)

    async def die(self, how: str, died: anyio.Event) -> None:
        """Record the death, wake whoever waits for this rank, and raise.

        Raises:
            LearnerRankDied: always.
        """
        tail = await anyio.to_thread.run_sync(log_tail, self.log_path)
        self.death = LearnerRankDied(f"{self.name} {how}, see {self.log_path}; its last lines:\n{tail}")
        died.set()
        for event in self._waiting.values():
            event.set()
        raise self.death

    def dump_stacks(self) -> None:
        """Have a process of this machine print the stacks of all its threads into its log."""
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(signal.SIGUSR1)

    async def end(self) -> None:
        """Hang up, so that the rank leaves; kill the process if it does not, and wait for no longer than that takes."""
        if self._stream is not None:
            await self._stream.aclose()
        if self.process is None:
            return
        with anyio.move_on_after(LEAVE_S):
            await self.process.wait()
        if self.process.returncode is None:
            self.process.kill()
            with anyio.move_on_after(LEAVE_S):
                await self.process.wait()
        if self.process.returncode is None:
            log.warning("rank_cannot_be_killed", rank=self.rank, pid=self.pid, reason="it hangs in the kernel")
        else:
            await self.process.aclose()


async def read_frame(buffered: BufferedByteReceiveStream, limit: int = MAX_FRAME_BYTES) -> bytes:
    """Read one message body of at most `limit` bytes."""
    (size,) = HEADER.unpack(await buffered.receive_exactly(HEADER.size))
    if size > limit:
        raise LearnerError(f"a learner rank announced a message of {size} bytes; the link is out of step")
    return await buffered.receive_exactly(size)


async def spawn(
    config: RunConfig, rank: int, link_path: Path, log_path: Path, environment: Mapping[str, str]
) -> RankProcess:
    """Start one rank process in its own session, so that Ctrl-C reaches the controller alone."""
    place = {"RANK": str(rank), "WORLD_SIZE": str(config.learner.ranks), "LOCAL_RANK": str(rank)}
    with log_path.open("ab") as log_file:
        process = await anyio.open_process(
            [sys.executable, "-u", entry.__file__, "--link", str(link_path)],
            stdin=subprocess.DEVNULL,
            stdout=log_file,
            stderr=subprocess.STDOUT,
            env={**environment, **place},
            start_new_session=True,
        )
    return RankProcess(rank, log_path, process)


async def accept_all(
    ranks: Sequence[RankProcess], listener: Listener[SocketStream], secret: str, group: TaskGroup, died: anyio.Event
) -> None:
    """Attach one connection per rank, whoever greets first, and start its reader in `group`.

    A connection that does not greet with the secret, or as a rank that is there already, is closed and logged.
    """
    complete = anyio.Event()

    async def greet(stream: SocketStream) -> None:
        rank = None
        try:
            buffered = BufferedByteReceiveStream(stream)
            hello = await _hello(buffered)
            rank = _rank_of(hello, ranks, secret)
            if hello is None or rank is None:
                peer = stream.extra(SocketAttribute.remote_address, "?")
                log.warning("refused a connection to the learner's socket that is no rank of this run", peer=str(peer))
                return
            keep_alive(stream.extra(SocketAttribute.raw_socket))
            rank.attach(stream, hello)
            group.start_soon(rank.read_replies, buffered, died)
        finally:
            if rank is None:
                await anyio.aclose_forcefully(stream)
        if all(rank.is_attached for rank in ranks):
            complete.set()

    async with anyio.create_task_group() as greeting:
        greeting.start_soon(listener.serve, greet)
        await complete.wait()
        greeting.cancel_scope.cancel()


def _rank_of(hello: Hello | None, ranks: Sequence[RankProcess], secret: str) -> RankProcess | None:
    """Return the rank that greets; None when it does not know the secret, does not exist, or is there already."""
    if hello is None or not hmac.compare_digest(hello.secret.encode(), secret.encode()):
        return None
    if not 0 <= hello.rank < len(ranks) or ranks[hello.rank].is_attached:
        return None
    return ranks[hello.rank]


async def _hello(buffered: BufferedByteReceiveStream) -> Hello | None:
    """Read a greeting; None for anything else."""
    with anyio.move_on_after(HELLO_S):
        try:
            message = decode_reply(await read_frame(buffered, MAX_HELLO_BYTES))
        except (LearnerError, msgspec.MsgspecError, anyio.EndOfStream, anyio.IncompleteRead, anyio.BrokenResourceError):
            return None
        return message if isinstance(message, Hello) else None
    return None
