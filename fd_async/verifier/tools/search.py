"""`rg_in_mathlib`: one ripgrep run with a fixed argv, bounded in time, processor, memory and output.

The pattern is an argument after `--`, never an option; the folder is fixed, links in it are not followed, and ripgrep
sees none of our variables. Results are sorted by path, so the same pattern gives the same answer, which is remembered.
What the pattern is to blame for is told to the model; what it is not raises `VerifierError`.
"""

from __future__ import annotations

import math
import os
import shutil
import signal
import sys
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import DEVNULL, PIPE

import anyio
import anyio.abc
from anyio import CancelScope, fail_after

from fd_async.config.files import project_of
from fd_async.config.schema import Verifier as VerifierTable
from fd_async.errors import PreflightError, VerifierError
from fd_async.verifier.sandbox.room import Limits, launch_argv, unsandboxed_wrapper

_ARGV = [
    "--no-config",
    "--no-messages",
    "--no-heading",
    "--color=never",
    "--line-number",
    "--sort=path",
    "--no-ignore",
    "--no-follow",
    "--engine=default",
    "--glob=*.lean",
    "--max-filesize=4M",
    "--max-count=5",
    "--max-columns=240",
    "--max-columns-preview",
    "--regex-size-limit=10M",
    "--dfa-size-limit=10M",
]
_MAX_LINES = 20
_MAX_BYTES = 1 << 16
_MAX_PATTERN_CHARS = 500
_MEMORY_GIB = 4.0
_CONCURRENT = 4
_QUEUE_FACTOR = 10
"""Waiting for other searches may take this many times the time of one."""
_REMEMBERED = 2048
_REAP_S = 10.0


class Search:
    """Searches one folder; without a folder it says that no Mathlib is installed. Made by `open_search`."""

    def __init__(self, folder: Path | None, program: str = "rg", timeout_s: float = 10.0, nice: int = 0) -> None:
        self._folder = folder
        self._program = program
        self._timeout_s = timeout_s
        self._limits = Limits(nice=nice, memory_gib=_MEMORY_GIB, cpu_s=math.ceil(timeout_s) + 1, file_mib=1)
        self._limit = anyio.Semaphore(_CONCURRENT)
        self._known: OrderedDict[str, tuple[bool, str]] = OrderedDict()

    async def find(self, pattern: str) -> tuple[bool, str]:
        """Return (the search ran, text for the model).

        Raises:
            VerifierError: ripgrep could not be run, or not in time because too many others were.
        """
        if self._folder is None:
            return False, "No Mathlib is installed here, so there is nothing to search. Use core Lean only."
        if not pattern or len(pattern) > _MAX_PATTERN_CHARS or "\0" in pattern:
            return False, f"The pattern must have 1 to {_MAX_PATTERN_CHARS} characters."
        if any("\ud800" <= letter <= "\udfff" for letter in pattern):
            return False, "The pattern contains characters that are not valid Unicode."
        known = self._known.get(pattern)
        if known is None:
            known = await self._find(pattern, self._folder)
            self._known[pattern] = known
            if len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        self._known.move_to_end(pattern)
        return known

    async def _find(self, pattern: str, folder: Path) -> tuple[bool, str]:
        wait_s = _QUEUE_FACTOR * self._timeout_s
        try:
            with fail_after(wait_s):
                await self._limit.acquire()
        except TimeoutError:
            raise VerifierError(
                f"rg_in_mathlib: no turn within {wait_s:g} s; raise verifier.search_timeout_s"
            ) from None
        try:
            with fail_after(self._timeout_s):
                return await self._run(pattern, folder)
        except TimeoutError:
            return False, f"The search took longer than {self._timeout_s:g} s. Use a more specific pattern."
        finally:
            self._limit.release()

    async def _run(self, pattern: str, folder: Path) -> tuple[bool, str]:
        argv = launch_argv(
            [self._program, *_ARGV, "--", pattern, "."], limits=self._limits, wrapper=unsandboxed_wrapper()
        )
        async with _open(argv, folder) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            output, complete = await _read(process.stdout, _MAX_BYTES, _MAX_LINES)
            if not complete:
                _kill_group(process)
            problem, _ = await _read(process.stderr, 4096, 50)
            code = await process.wait()
        if complete and not output and code not in (0, 1):
            return _refused(problem.decode("utf-8", "replace").strip(), code, pattern)
        if not output:
            return True, f"No matches found for pattern: {pattern}"
        lines = output.decode("utf-8", "replace").splitlines()[:_MAX_LINES]
        text = "\n".join(line.removeprefix("./") for line in lines)
        return True, text if complete else f"{text}\n(more matches not shown)"


def _refused(problem: str, code: int, pattern: str) -> tuple[bool, str]:
    """Tell an expression that ripgrep does not take from a ripgrep that does not work."""
    if code == 2 and not problem:  # files that it could not read, which --no-messages keeps quiet about
        return True, f"No matches found for pattern: {pattern}"
    if code == 2 and "os error" not in problem:
        # Behind an empty line is advice about options that the model does not have.
        reason = problem.removeprefix("rg: ").partition("\n\n")[0]
        return False, f"Invalid regular expression: {reason}"
    last = problem.splitlines()[-1][:300] if problem else "it said nothing"
    raise VerifierError(f"rg_in_mathlib: ripgrep ended with exit code {code} ({last})")


@asynccontextmanager
async def _open(argv: list[str], folder: Path) -> AsyncIterator[anyio.abc.Process]:
    """Run a program in a process group of its own, which is killed and reaped on every way out."""
    try:
        with CancelScope(shield=True):  # a cancelled spawn would leave a child that nobody knows
            process = await anyio.open_process(
                argv,
                cwd=folder,
                stdin=DEVNULL,
                stdout=PIPE,
                stderr=PIPE,
                env={"PATH": "/usr/bin:/bin"},
                start_new_session=True,
            )
    except OSError as error:
        raise VerifierError(f"rg_in_mathlib: cannot run {argv[0]} in {folder}: {error}") from error
    try:
        yield process
    finally:
        _kill_group(process)
        with anyio.move_on_after(_REAP_S, shield=True):
            await process.wait()
            await process.aclose()


def _kill_group(process: anyio.abc.Process) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass  # nobody is left in it


def open_search(config: VerifierTable) -> Search:
    """Find the folder and ripgrep.

    Raises:
        PreflightError: There is a folder to search and no ripgrep, or the configured folder does not exist.
    """
    if config.search_dir:
        folder = Path(config.search_dir)
        if not folder.is_dir():
            raise PreflightError(
                f"verifier.search_dir: there is no folder {config.search_dir!r}; name one that is there"
            )
    else:
        folder = project_of(config) / ".lake" / "packages" / "mathlib"
        if config.backend == "minilean" or not folder.is_dir():
            return Search(None)
    program = shutil.which("rg", path=str(Path(sys.executable).parent)) or shutil.which("rg")
    if program is None:
        raise PreflightError(
            "ripgrep (`rg`) is needed for rg_in_mathlib and is not installed: "
            "`pip install ripgrep`, or the system package `ripgrep`"
        )
    return Search(folder.resolve(), os.path.abspath(program), config.search_timeout_s, config.nice)


async def _read(stream: anyio.abc.ByteReceiveStream, max_bytes: int, max_lines: int) -> tuple[bytes, bool]:
    """Read up to a limit; False when there was more."""
    data = bytearray()
    while True:
        try:
            data += await stream.receive()
        except anyio.EndOfStream:
            return bytes(data), True
        if len(data) > max_bytes or data.count(b"\n") > max_lines:
            return bytes(data[:max_bytes]), False
