"""One REPL subprocess (protocol of leanprover-community/repl) and nothing else.

Invariants: own process group, killed as a whole and reaped on every way out; bounded memory for whatever the
process writes; exactly one request in flight; the pipe is empty before each request and holds exactly one answer
after it; environments are numbered without gaps. Whatever breaks one of these ends the process: a worker in doubt
is never used again. The header is run once, as environment 0, and never imported twice.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import select
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
import anyio.abc
import msgspec
from anyio import CancelScope, fail_after, to_thread

from fd_async.errors import VerifierError
from fd_async.verifier.messages import Answer, decode_answer

_BLOCK_END = re.compile(rb"\r?\n[ \t]*\r?\n")
_STDERR_TAIL_BYTES = 4096
_READ_BYTES = 1 << 16
_DECODE_IN_THREAD_BYTES = 1 << 18
_REAP_S = 10.0
_LAUNCHER = 'ulimit -c 0; [ "$1" -gt 0 ] && { ulimit -v "$1" || exit 126; }; n="$2"; shift 2; exec nice -n "$n" "$@"'
_PASSED_VARIABLES = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "ELAN_HOME", "LD_LIBRARY_PATH", "PYTHONPATH")


class ReplFailure(VerifierError):
    """The process ended, hung or cannot be trusted any more; it has to be replaced."""


class ReplExited(ReplFailure):
    """The process is gone. `returncode` is negative for a signal."""

    def __init__(self, message: str, returncode: int | None, stderr: str) -> None:
        super().__init__(message)
        self.returncode = returncode
        self.stderr = stderr

    @property
    def is_out_of_memory(self) -> bool:
        text = self.stderr.lower()
        return "out of memory" in text or "bad_alloc" in text or "memoryerror" in text or "cannot allocate" in text


class ReplTimeout(ReplFailure):
    """No complete answer inside the deadline."""


class ReplDesync(ReplFailure):
    """Bytes where none belong, or an answer to something else."""


class HeaderRejected(ReplFailure):
    """The REPL works but does not accept the header; `args[0]` has its first error."""


@dataclass(frozen=True)
class ReplSpec:
    """How to start a process. `memory_gib` 0 sets no limit; `env` replaces the environment, never extends it."""

    argv: tuple[str, ...]
    wrapper: tuple[str, ...] = ()
    """Argv that comes before `argv` and behind the limits: the sandbox."""
    cwd: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    nice: int = 0
    memory_gib: float = 0.0
    import_timeout_s: float = 180.0
    max_answer_bytes: int = 1 << 24

    @property
    def command(self) -> list[str]:
        """The argv behind a launcher that sets the limits and then becomes the process itself."""
        kib = int(self.memory_gib * 1024 * 1024)
        return ["/bin/sh", "-c", _LAUNCHER, "sh", str(kib), str(self.nice), *self.wrapper, *self.argv]


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Pass on what a program needs to start, and no secrets."""
    kept = {name: os.environ[name] for name in _PASSED_VARIABLES if name in os.environ}
    return {**kept, "LEAN_NUM_THREADS": "1", **(extra or {})}


class ReplProcess:
    """A running REPL with its header loaded. Made by `open_repl`."""

    def __init__(self, process: anyio.abc.Process, stdin: int, stdout: int, stderr: int, spec: ReplSpec) -> None:
        self._process = process
        self._stdin, self._stdout, self._stderr = stdin, stdout, stderr
        self._spec = spec
        self._exit = _exit_descriptor(process.pid)
        self._buffer = bytearray()
        self._stderr_tail = bytearray()
        self._next_env = 0
        self._busy = False
        self._killed = False
        self.header_env: int | None = None
        self.uses = 0
        self.broken = False
        """True as soon as an exchange did not end cleanly; the process must not be used again."""

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.returncode

    @property
    def stderr_tail(self) -> str:
        return self._stderr_tail.decode("utf-8", "replace")

    def is_usable(self) -> bool:
        """Tell whether an idle process may get another request; reads away nothing."""
        if self.broken or self._busy or self.returncode is not None:
            return False
        try:
            self._demand_empty_pipe()
        except (ReplDesync, EOFError):
            self.broken = True
        return not self.broken

    async def load_header(self, header: str) -> None:
        """Run the header as environment 0; once per process, even when it is empty."""
        if self.header_env is not None:
            raise ReplDesync("a process loads its header only once")
        answer = await self.command(header, timeout_s=self._spec.import_timeout_s)
        if answer.message is not None or answer.errors:
            self.broken = True
            text = answer.message or answer.errors[0].data
            raise HeaderRejected(f"the Lean header was rejected: {text.strip()[:500]}")
        self.header_env = answer.env

    async def command(self, cmd: str, *, env: int | None = None, timeout_s: float) -> Answer:
        """Run Lean commands on an environment; `env=None` starts from nothing.

        Raises:
            ReplFailure: The process is broken and has to be replaced.
        """
        payload: dict[str, object] = {"cmd": cmd}
        if env is not None:
            payload["env"] = env
        block = await self.exchange(payload, timeout_s=timeout_s)
        try:
            if len(block) > _DECODE_IN_THREAD_BYTES:
                answer = await to_thread.run_sync(decode_answer, block)
            else:
                answer = decode_answer(block)
            if answer.env is not None:
                if answer.env != self._next_env:
                    raise ReplDesync(f"answer for environment {answer.env}, expected {self._next_env}")
                self._next_env += 1
        except msgspec.DecodeError as error:
            self.broken = True
            raise ReplDesync(f"unreadable answer ({error}): {block[:200]!r}") from error
        except BaseException:
            self.broken = True
            raise
        return answer

    async def exchange(self, payload: Mapping[str, object], *, timeout_s: float) -> bytes:
        """Send one request and return the one block that answers it, within one deadline for both.

        Cancellation leaves the process marked broken, because the answer would come later.
        """
        if self._busy or self.broken:
            raise ReplDesync("request to a process that is busy or broken")
        self._busy = self.broken = True
        request = msgspec.json.encode(payload) + b"\n\n"
        try:
            with fail_after(timeout_s):
                self._demand_empty_pipe()
                await self._write(request)
                block = await self._read_block()
        except TimeoutError:
            raise ReplTimeout(f"no answer within {timeout_s:g} s") from None
        except EOFError:
            raise await self._exited("the process ended before the request") from None
        except OSError as error:
            raise await self._exited(f"pipe error {errno.errorcode.get(error.errno or 0, error.errno)}") from error
        finally:
            self._busy = False
        self.broken = False
        return block

    def _demand_empty_pipe(self) -> None:
        if self._buffer:
            raise ReplDesync(f"{len(self._buffer)} bytes left over from an earlier answer")
        try:
            stray = os.read(self._stdout, 256)
        except BlockingIOError:
            return
        if stray:
            raise ReplDesync(f"bytes before the request: {stray[:80]!r}")
        raise EOFError

    async def _write(self, request: bytes) -> None:
        view = memoryview(request)
        while view:
            try:
                view = view[os.write(self._stdin, view) :]
            except BlockingIOError:
                await self._wait(readable=(), writable=(self._stdin,))

    async def _read_block(self) -> bytes:
        buffer, searched = self._buffer, 0
        while True:
            match = _BLOCK_END.search(buffer, searched)
            if match:
                block, rest = bytes(buffer[: match.start()]), bytes(buffer[match.end() :])
                if rest:
                    raise ReplDesync(f"bytes after the answer: {rest[:80]!r}")
                buffer.clear()
                return block
            if len(buffer) > self._spec.max_answer_bytes:
                raise ReplDesync(f"answer longer than {self._spec.max_answer_bytes} bytes")
            searched = max(0, len(buffer) - 64)
            gone = self._is_gone()
            try:
                chunk = os.read(self._stdout, _READ_BYTES)
            except BlockingIOError:
                if gone:  # and yet the pipe is open: a grandchild holds it
                    raise await self._exited("the process ended before it answered") from None
                await self._wait(readable=(self._stdout, *self._exit))
                continue
            if not chunk:
                raise await self._exited("the process closed its output")
            buffer += chunk

    def _is_gone(self) -> bool:
        poll = select.poll()
        for descriptor in self._exit:
            poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(0))

    async def _exited(self, what: str) -> ReplExited:
        """Collect the exit status and the last words of a process whose pipes are closed."""
        with anyio.move_on_after(1.0):
            await self._process.wait()
        self._read_stderr()
        code = self.returncode
        how = "still running" if code is None else f"signal {-code}" if code < 0 else f"exit code {code}"
        lines = self.stderr_tail.strip().splitlines()
        last = f": {lines[-1][:300]}" if lines else ""
        return ReplExited(f"{what} ({how}){last}", code, self.stderr_tail)

    def _read_stderr(self) -> bool:
        """Move what waits on stderr into the bounded tail; False at its end."""
        try:
            chunk = os.read(self._stderr, _READ_BYTES)
        except BlockingIOError:
            return True
        self._stderr_tail += chunk
        del self._stderr_tail[:-_STDERR_TAIL_BYTES]
        return bool(chunk)

    async def _wait(self, *, readable: tuple[int, ...], writable: tuple[int, ...] = ()) -> None:
        """Wait for one of the pipes; stderr is emptied meanwhile, so that the process never blocks on it."""
        loop = asyncio.get_running_loop()
        ready = loop.create_future()

        def wake() -> None:
            if not ready.done():
                ready.set_result(None)

        watched = (*readable, self._stderr) if self._read_stderr() else readable
        for descriptor in watched:
            loop.add_reader(descriptor, wake)
        for descriptor in writable:
            loop.add_writer(descriptor, wake)
        try:
            await ready
        finally:
            for descriptor in watched:
                loop.remove_reader(descriptor)
            for descriptor in writable:
                loop.remove_writer(descriptor)

    async def kill(self) -> None:
        """Kill the process group and reap the process; shielded, and safe to call again."""
        self.broken = True
        if not self._killed:
            self._killed = True
            try:
                os.killpg(self.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                pass  # the whole group is gone already
        with anyio.move_on_after(_REAP_S, shield=True):
            await self._process.wait()
        for descriptor in self._exit:
            os.close(descriptor)
        self._exit = ()


@asynccontextmanager
async def open_repl(spec: ReplSpec, header: str) -> AsyncIterator[ReplProcess]:
    """Start a process, load the header, and kill the process at the end, whatever happens.

    Raises:
        VerifierError: The program cannot be started.
        ReplFailure: It started but did not load the header.
    """
    pipes: list[int] = []
    try:
        child_in, stdin = os.pipe()
        pipes += [child_in, stdin]
        stdout, child_out = os.pipe()
        pipes += [stdout, child_out]
        stderr, child_err = os.pipe()
        pipes += [stderr, child_err]
        for descriptor in (stdin, stdout, stderr):
            os.set_blocking(descriptor, False)
        process = await _start(spec, child_in, child_out, child_err)
        for descriptor in (child_in, child_out, child_err):
            os.close(descriptor)
            pipes.remove(descriptor)
        repl = ReplProcess(process, stdin, stdout, stderr, spec)
        try:
            await repl.load_header(header)
            yield repl
        finally:
            await repl.kill()
    finally:
        for descriptor in pipes:
            os.close(descriptor)


def _exit_descriptor(pid: int) -> tuple[int, ...]:
    """Return a descriptor that becomes readable when the process ends; none where the system has no such thing."""
    try:
        return (os.pidfd_open(pid),)
    except (AttributeError, OSError):
        return ()


async def _start(spec: ReplSpec, stdin: int, stdout: int, stderr: int) -> anyio.abc.Process:
    scope = CancelScope(shield=True)  # a cancelled spawn would leave a child that nobody knows
    try:
        with scope:
            process = await anyio.open_process(
                spec.command,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                cwd=spec.cwd,
                env=dict(spec.env),
                start_new_session=True,
            )
    except OSError as error:
        raise VerifierError(f"cannot start {' '.join(spec.argv)}: {error}") from error
    return process
