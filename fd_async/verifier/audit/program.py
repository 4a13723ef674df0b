"""One program, run to its end with what it needs for that: limits, sandbox, one folder, a deadline, a cap.

For the programs of an audit, which answer once and end, unlike a REPL. The process has a group of its own, which is
killed whole on every way out, so that nothing it left behind outlives the answer.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from subprocess import DEVNULL, PIPE

import anyio
from anyio import CancelScope
from anyio.abc import ByteReceiveStream, Process

from fd_async.errors import VerifierError
from fd_async.verifier.repl.process import ReplSpec
from fd_async.verifier.repl.tree import kill_group, kill_tree
from fd_async.verifier.sandbox.room import signal_or_code

_BEFORE_READ_ONLY = "--remount-ro"
_REAP_S = 10.0


@dataclass(frozen=True)
class Ended:
    """How a program ended and what it wrote, each stream up to the cap."""

    returncode: int
    stdout: str
    stderr: str

    @property
    def last_line(self) -> str:
        """The last thing it said, for people."""
        lines = (self.stderr.strip() or self.stdout.strip()).splitlines()
        return lines[-1].strip()[:300] if lines else "it said nothing"


def with_folder(
    spec: ReplSpec,
    argv: tuple[str, ...],
    folder: str,
    env: Mapping[str, str],
    *,
    read: Sequence[str] = (),
    may_fork: bool = False,
) -> ReplSpec:
    """Return how to start another program in the sandbox of the workers, with one folder that it may write.

    Args:
        spec: Of a worker.
        argv: The program.
        folder: Shown writable; also the working directory.
        env: Variables that the worker does not have.
        read: More folders to show.
        may_fork: Lifts the filter of system calls, for a program that has to start others.
    """
    wrapper = spec.wrapper
    if _BEFORE_READ_ONLY in wrapper:
        at = wrapper.index(_BEFORE_READ_ONLY)
        more = [word for name, value in env.items() for word in ("--setenv", name, value)]
        more += [word for path in read for word in ("--ro-bind", path, path)]
        wrapper = (*wrapper[:at], *more, "--bind", folder, folder, _BEFORE_READ_ONLY, "/", "--chdir", folder, "--")
        if may_fork and "--seccomp" in wrapper:
            at = wrapper.index("--seccomp")
            wrapper = (*wrapper[:at], *wrapper[at + 2 :])
    return replace(spec, argv=argv, wrapper=wrapper, cwd=folder, env={**spec.env, **env})


async def run_program(spec: ReplSpec) -> Ended:
    """Run to the end; the caller sets the deadline.

    Raises:
        VerifierError: It cannot be started, or writes more than `spec.max_answer_bytes`.
    """
    async with _open(spec) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        written: dict[str, bytes] = {}

        async def read(name: str, stream: ByteReceiveStream) -> None:
            data = bytearray()
            async for chunk in stream:
                data += chunk
                if len(data) > spec.max_answer_bytes:
                    raise VerifierError(f"{spec.argv[0]} wrote more than {spec.max_answer_bytes} bytes")
            written[name] = bytes(data)

        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(read, "stdout", process.stdout)
                tasks.start_soon(read, "stderr", process.stderr)
                await process.wait()
                kill_group(process.pid)  # a grandchild may hold the pipes open
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None
        assert process.returncode is not None
        code = signal_or_code(process.returncode, spec.wrapper)
        return Ended(code, *(written[name].decode("utf-8", "replace") for name in ("stdout", "stderr")))


@asynccontextmanager
async def _open(spec: ReplSpec) -> AsyncIterator[Process]:
    process: Process | None = None
    try:
        with CancelScope(shield=True):  # a cancelled spawn would leave a child that nobody knows
            process = await anyio.open_process(
                spec.command,
                stdin=DEVNULL,
                stdout=PIPE,
                stderr=PIPE,
                cwd=spec.cwd,
                env=dict(spec.env),
                start_new_session=True,
            )
    except OSError as error:
        raise VerifierError(f"cannot start {' '.join(spec.argv)}: {error}") from error
    assert process is not None
    try:
        yield process
    finally:
        if process.returncode is None:
            kill_tree(process.pid)
        with anyio.move_on_after(_REAP_S, shield=True):
            await process.wait()
        with CancelScope(shield=True):
            await process.aclose()
