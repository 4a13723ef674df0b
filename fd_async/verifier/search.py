"""`rg_in_mathlib`: one ripgrep run with a fixed argv, bounded in time and output.

The pattern is an argument after `--`, never an option; the folder is fixed. Results are sorted by path, so the
same pattern gives the same answer.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import anyio
from anyio import fail_after

from fd_async.config.schema import Verifier as VerifierTable
from fd_async.errors import PreflightError

_ARGV = [
    "--no-config",
    "--no-messages",
    "--no-heading",
    "--color=never",
    "--line-number",
    "--sort=path",
    "--no-ignore",
    "--glob=*.lean",
    "--max-count=5",
    "--max-columns=240",
    "--max-columns-preview",
    "--regex-size-limit=10M",
    "--dfa-size-limit=10M",
]
_MAX_LINES = 20
_MAX_BYTES = 1 << 16
_MAX_PATTERN_CHARS = 500
_CONCURRENT = 4
_QUEUE_FACTOR = 10
"""Waiting for other searches may take this many times the time of one."""


class Search:
    """Searches one folder; without a folder it says that no Mathlib is installed. Made by `open_search`."""

    def __init__(self, folder: Path | None, program: str = "rg", timeout_s: float = 10.0) -> None:
        self._folder = folder
        self._program = program
        self._timeout_s = timeout_s
        self._limit = anyio.Semaphore(_CONCURRENT)

    async def find(self, pattern: str) -> tuple[bool, str]:
        """Return (the search ran, text for the model)."""
        if self._folder is None:
            return False, "No Mathlib is installed here, so there is nothing to search. Use core Lean only."
        if not pattern or len(pattern) > _MAX_PATTERN_CHARS or "\0" in pattern:
            return False, f"The pattern must have 1 to {_MAX_PATTERN_CHARS} characters."
        argv = [self._program, *_ARGV, "--", pattern, "."]
        try:
            with fail_after(_QUEUE_FACTOR * self._timeout_s):
                async with self._limit:
                    with fail_after(self._timeout_s):
                        return await self._run(argv, pattern, self._folder)
        except TimeoutError:
            return False, f"The search took longer than {self._timeout_s:g} s. Use a more specific pattern."

    async def _run(self, argv: list[str], pattern: str, folder: Path) -> tuple[bool, str]:
        async with await anyio.open_process(
            argv, cwd=folder, stdin=None, env={"PATH": os.environ.get("PATH", "")}, start_new_session=True
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            output, complete = await _read(process.stdout, _MAX_BYTES, _MAX_LINES)
            if not complete:
                process.kill()
            problem, _ = await _read(process.stderr, 4096, 50)
            code = await process.wait()
        if code == 2 and not output:
            reason = problem.decode("utf-8", "replace").strip() or "ripgrep refused it"
            return False, f"Invalid regular expression: {reason}"
        if not output:
            return True, f"No matches found for pattern: {pattern}"
        lines = output.decode("utf-8", "replace").splitlines()[:_MAX_LINES]
        text = "\n".join(line.removeprefix("./") for line in lines)
        return True, text if complete else f"{text}\n(more matches not shown)"


def open_search(config: VerifierTable) -> Search:
    """Find the folder and ripgrep.

    Raises:
        PreflightError: There is a folder to search and no ripgrep, or the configured folder does not exist.
    """
    if config.search_dir:
        folder = Path(config.search_dir)
        if not folder.is_dir():
            raise PreflightError(f"verifier.search_dir: there is no folder {config.search_dir!r}")
    else:
        folder = Path(config.project_dir) / ".lake" / "packages" / "mathlib"
        if config.backend == "minilean" or not folder.is_dir():
            return Search(None)
    program = shutil.which("rg", path=str(Path(sys.executable).parent)) or shutil.which("rg")
    if program is None:
        raise PreflightError(
            "ripgrep (`rg`) is needed for rg_in_mathlib and is not installed: "
            "`pip install ripgrep`, or the system package `ripgrep`"
        )
    return Search(folder.resolve(), program, config.search_timeout_s)


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
