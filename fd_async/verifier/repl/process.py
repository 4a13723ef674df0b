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
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import msgspec
from anyio import CancelScope, to_thread

from fd_async.verifier.messages import Answer, decode_answer
from fd_async.verifier.repl.launch import (
    HeaderRejected,
    ReplDesync,
    ReplExited,
    ReplFailure,
    ReplSpec,
    ReplTimeout,
    Started,
    clean_environment,
    exit_descriptor,
    reap,
    start_process,
)
from fd_async.verifier.repl.tree import continue_tree, kill_group, kill_tree, process_tree, stop_tree
from fd_async.verifier.sandbox.room import signal_or_code

_BLOCK_END = re.compile(rb"\r?\n[ \t]*\r?\n")
_STDERR_TAIL_BYTES = 4096
_READ_BYTES = 1 << 16
_DECODE_IN_THREAD_BYTES = 1 << 18
_REAP_S = 10.0
_LAST_WORDS_S = 1.0
__all__ = ["HeaderRejected", "ReplDesync", "ReplExited", "ReplFailure", "ReplProcess", "ReplSpec", "ReplTimeout"]
__all__ += ["clean_environment", "open_repl"]


class ReplProcess:
    """A running REPL with its header loaded. Made by `open_repl`.

    Its pipes and its end are watched from start to end, so an exchange neither registers nor polls anything: what
    arrives is gathered in `_buffer`, and `_wake` is called when there is something to decide.
    """

    def __init__(self, started: Started, spec: ReplSpec) -> None:
        self._process, self._stdin, self._stdout, self._stderr = started
        self._spec = spec
        self._loop = asyncio.get_running_loop()
        self._watched: set[int] = set()
        self._exit = exit_descriptor(self.pid)
        self._ready: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._left_s = 0.0
        self._expired = False
        self._is_open = True
        self._buffer = bytearray()
        self._searched = 0
        self._end: re.Match[bytes] | None = None
        self._stderr_tail = bytearray()
        self._next_env = 0
        self._busy = False
        self._killed = False
        self._stopped_at: float | None = None
        self._stopped_s = 0.0
        self.header_env: int | None = None
        self.tree: list[int] = []
        """Its processes at the time when the header was loaded."""
        self.uses = 0
        self.is_worn = False
        """Too old or too large: to be replaced after the check that runs."""
        self.started_at = self._loop.time()
        self.condemned = ""
        """Why we killed it during a check; empty when we did not."""
        self.broken = False
        """True as soon as an exchange did not end cleanly; the process must not be used again."""
        self._watch(self._stdout, self._on_output)
        self._watch(self._stderr, self._on_stderr)
        for descriptor in self._exit:
            self._watch(descriptor, self._on_exit)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.poll()

    @property
    def stderr_tail(self) -> str:
        return self._stderr_tail.decode("utf-8", "replace")

    @property
    def running_s(self) -> float:
        """Seconds since the start, without those for which it was stopped."""
        now = self._loop.time() if self._stopped_at is None else self._stopped_at
        return now - self.started_at - self._stopped_s

    @property
    def is_answering(self) -> bool:
        """True while a request is in flight and an answer may still come."""
        return self._busy and not self._killed and not self.condemned

    @property
    def left_s(self) -> float:
        """Seconds until the deadline of the request in flight; 0 without one."""
        if self._timer is None:
            return self._left_s
        return max(0.0, self._timer.when() - self._loop.time())

    def is_usable(self) -> bool:
        """Tell whether an idle process may get another request; reads away nothing that belongs to an answer."""
        if self.broken or self._busy or self._killed:
            return False
        try:
            self._demand_empty_pipe()
        except (ReplDesync, EOFError):
            self.broken = True
        return not self.broken

    def pause(self) -> None:
        """Stop the process and its deadline; the request in flight stays in flight."""
        if self._stopped_at is not None or self._killed:
            return
        stop_tree(self.pid)
        self._stopped_at = self._loop.time()
        self._left_s = self.left_s
        self._stop_timer()

    def resume(self) -> None:
        """Let a stopped process and its deadline run on."""
        if self._stopped_at is None or self._killed:
            return
        self._stopped_s += self._loop.time() - self._stopped_at
        self._stopped_at = None
        if self._busy:
            self._start_timer(self._left_s)
        continue_tree(self.pid)

    def condemn(self, reason: str) -> None:
        """Kill the process now; whoever waits for its answer gets the reason."""
        self.condemned = reason
        self.broken = True
        if self.returncode is None:
            kill_tree(self.pid)

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
        self.tree = process_tree(self.pid)

    async def command(
        self, cmd: str, *, env: int | None = None, timeout_s: float, infotree: str | None = None
    ) -> Answer:
        """Run Lean commands on an environment; `env=None` starts from nothing.

        Raises:
            ReplFailure: The process is broken and has to be replaced.
        """
        payload: dict[str, object] = {"cmd": cmd}
        if env is not None:
            payload["env"] = env
        if infotree is not None:
            payload["infotree"] = infotree
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
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            self.broken = True
            raise ReplDesync(f"unreadable answer ({error}): {block[:200]!r}") from error
        except BaseException:
            self.broken = True
            raise
        return answer

    async def exchange(self, payload: Mapping[str, object], *, timeout_s: float) -> bytes:
        """Send one request and return the one block that answers it, within one deadline for both.

        The deadline counts the seconds for which the process is not paused. Cancellation leaves the process marked
        broken, because the answer would come later.
        """
        if self._busy or self.broken:
            raise ReplDesync("request to a process that is busy or broken")
        self._busy = self.broken = True
        request = msgspec.json.encode(payload) + b"\n\n"
        try:
            self._demand_empty_pipe()
            self._left_s, self._expired = timeout_s, False
            if self._stopped_at is None:
                self._start_timer(timeout_s)
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
            self._stop_timer()
        self.broken = bool(self.condemned)
        return block

    def _demand_empty_pipe(self) -> None:
        self._on_output()
        if self._buffer:
            raise ReplDesync(f"{len(self._buffer)} bytes that no request asked for: {bytes(self._buffer[:80])!r}")
        if not self._is_open:
            raise EOFError

    async def _write(self, request: bytes) -> None:
        view = memoryview(request)
        while view:
            try:
                view = view[os.write(self._stdin, view) :]
            except BlockingIOError:
                self._loop.add_writer(self._stdin, self._wake)
                try:
                    await self._woken()
                finally:
                    self._loop.remove_writer(self._stdin)

    async def _read_block(self) -> bytes:
        while self._end is None:
            if len(self._buffer) > self._spec.max_answer_bytes:
                raise ReplDesync(f"answer longer than {self._spec.max_answer_bytes} bytes")
            if not self._is_open:
                raise await self._exited("the process closed its output")
            if self._exit and self._process.returncode is not None:
                while self._end is None and len(self._buffer) <= self._spec.max_answer_bytes and self._on_output():
                    pass  # what it still wrote
                if self._end is None and self._is_open:  # a grandchild holds the pipe
                    raise await self._exited("the process ended before it answered")
                continue
            await self._woken()
        block, rest = bytes(self._buffer[: self._end.start()]), bytes(self._buffer[self._end.end() :])
        self._end, self._searched = None, 0
        if rest:
            raise ReplDesync(f"bytes after the answer: {rest[:80]!r}")
        self._buffer.clear()
        return block

    async def _woken(self) -> None:
        """Wait for bytes, room for bytes, the end of the process, or the deadline.

        Raises:
            TimeoutError: The deadline has passed.
        """
        if not self._expired:
            self._ready = self._loop.create_future()
            try:
                await self._ready
            finally:
                self._ready = None
        if self._killed:  # its descriptors may be somebody else's by now
            raise ReplExited("the process was ended while it computed", None, self.stderr_tail)
        if self._expired:
            raise TimeoutError

    def _wake(self) -> None:
        if self._ready is not None and not self._ready.done():
            self._ready.set_result(None)

    def _start_timer(self, seconds: float) -> None:
        self._timer = self._loop.call_later(seconds, self._expire)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expire(self) -> None:
        self._timer = None
        self._left_s = 0.0
        self._expired = True
        self._wake()

    def _on_output(self) -> bool:
        """Move what waits on stdout into the buffer; False when nothing came."""
        if not self._is_open:
            return False
        try:
            chunk = os.read(self._stdout, _READ_BYTES)
        except BlockingIOError:
            return False
        buffer = self._buffer
        buffer += chunk
        if not chunk or len(buffer) > self._spec.max_answer_bytes + _READ_BYTES:
            self._is_open = bool(chunk)
            self._unwatch(self._stdout)
            self._wake()
        if chunk and self._end is None:
            self._end = _BLOCK_END.search(buffer, self._searched)
            self._searched = max(0, len(buffer) - 64)
            if self._end is not None or not self._busy or len(buffer) > self._spec.max_answer_bytes:
                self._wake()
        return bool(chunk)

    def _on_stderr(self) -> None:
        """Move what waits on stderr into the bounded tail, so that the process never blocks on it."""
        try:
            chunk = os.read(self._stderr, _READ_BYTES)
        except BlockingIOError:
            return
        if not chunk:
            self._unwatch(self._stderr)
        self._stderr_tail += chunk
        del self._stderr_tail[:-_STDERR_TAIL_BYTES]

    def _on_exit(self) -> None:
        for descriptor in self._exit:
            self._unwatch(descriptor)
        self._process.poll()
        self._wake()

    def _watch(self, descriptor: int, callback: Callable[[], object]) -> None:
        self._watched.add(descriptor)
        self._loop.add_reader(descriptor, callback)

    def _unwatch(self, descriptor: int) -> None:
        if descriptor in self._watched:
            self._watched.remove(descriptor)
            self._loop.remove_reader(descriptor)

    async def _exited(self, what: str) -> ReplExited:
        """Collect the exit status and the last words of a process whose pipes are closed."""
        await reap(self._process, self._exit, _LAST_WORDS_S)
        if not self._killed:
            self._on_stderr()
        code = None if self.returncode is None else signal_or_code(self.returncode, self._spec.wrapper)
        how = "still running" if code is None else f"signal {-code}" if code < 0 else f"exit code {code}"
        lines = self.stderr_tail.strip().splitlines()
        last = f": {lines[-1][:300]}" if lines else ""
        if self.condemned:
            return ReplExited(f"out of memory: {self.condemned}", code, self.condemned, is_condemned=True)
        return ReplExited(f"{what} ({how}){last}", code, self.stderr_tail)

    async def kill(self) -> None:
        """Kill the process and all below it, reap it and close its pipes; shielded, and safe to call again."""
        self.broken = True
        if self._killed:
            return
        self._killed = True
        if self.returncode is None:
            kill_tree(self.pid)
        else:  # its number may be another process's by now; its group is not, as long as anybody is in it
            kill_group(self.pid)
        for descriptor in list(self._watched):
            self._unwatch(descriptor)
        self._wake()
        with CancelScope(shield=True):
            await reap(self._process, self._exit, _REAP_S)
        for descriptor in (*self._exit, self._stdin, self._stdout, self._stderr):
            os.close(descriptor)
        self._exit = ()


@asynccontextmanager
async def open_repl(spec: ReplSpec, header: str) -> AsyncIterator[ReplProcess]:
    """Start a process, load the header, and kill the process at the end, whatever happens.

    Raises:
        VerifierError: The program cannot be started.
        ReplFailure: It started but did not load the header.
    """
    repl = ReplProcess(start_process(spec), spec)
    try:
        await repl.load_header(header)
        yield repl
    finally:
        await repl.kill()
