"""The three tools of one rollout: write a file, check it, search Mathlib.

Owns the rollout's files, which are in memory alone: no path leads out of them, and nothing can change one between its
writing and its judgement. The SHA-256 in the verdict is that of the bytes written; text that cannot be written byte for
byte is refused. The final verdict is that of the last file written.
"""

from __future__ import annotations

import re
from typing import Any

from anyio import current_time

from fd_async.errors import VerifierError
from fd_async.types import Statement, ToolCall, ToolResult, ToolState, Verdict
from fd_async.verifier.judge import MAX_CODE_CHARS
from fd_async.verifier.messages import cut
from fd_async.verifier.tools.schemas import TOOL_SCHEMAS
from fd_async.verifier.tools.search import Search
from fd_async.verifier.verifier import Verifier

_NAME = re.compile(r"[A-Za-z0-9_]{1,64}\.lean")
_RESERVED = frozenset(["lakefile.lean"])
"""Lake would run it as a program."""
_MAX_FILES = 64
_MAX_BYTES = 4 << 20
_REQUIRED: dict[str, list[str]] = {
    schema["function"]["name"]: schema["function"]["parameters"]["required"] for schema in TOOL_SCHEMAS
}


class Toolbox:
    """Runs tool calls for one rollout, one at a time."""

    def __init__(
        self,
        statement: Statement,
        verifier: Verifier,
        search: Search,
        output_chars: int,
        *,
        caller: str = "",
    ) -> None:
        self._statement = statement
        self._verifier = verifier
        self._search = search
        self._output_chars = output_chars
        self._caller = caller
        self._files: dict[str, str] = {}
        self._sizes: dict[str, int] = {}
        self._last_written: str | None = None
        self.last_output = ""
        """Compiler output of the newest check, for feedback made of it."""
        self.last_judged = ""
        """The file that the newest verdict is about."""

    async def call(self, call: ToolCall) -> ToolResult:
        """Run one call; whatever is wrong with it is told to the model."""
        started = current_time()
        problem = call.error or _problem(call)
        if problem:
            return ToolResult(text=cut(problem, self._output_chars), ok=False, seconds=0.0)
        if call.name == "lean_write_file":
            result = self._write(call.arguments["file_name"], call.arguments["code"])
        elif call.name == "lean_check_file":
            result = await self._check(call.arguments["file_name"])
        else:
            found, text = await self._search.find(call.arguments["pattern"])
            result = ToolResult(text=text, ok=found)
        return ToolResult(
            text=cut(result.text, self._output_chars),
            ok=result.ok,
            seconds=current_time() - started,
            verdict=result.verdict,
        )

    @property
    def state(self) -> ToolState:
        """What another toolbox needs to go on from here."""
        return ToolState(
            files=dict(self._files),
            last_written=self._last_written or "",
            last_judged=self.last_judged,
            last_output=self.last_output,
        )

    def restore(self, state: ToolState) -> None:
        """Take the files of an earlier toolbox and go on where it was.

        Raises:
            VerifierError: A file is none that a toolbox writes.
        """
        for name, code in state.files.items():
            result = self._write(name, code)
            if not result.ok:
                raise VerifierError(f"a file of the ledger is refused: {result.text}")
        self._last_written = state.last_written or None
        self.last_judged, self.last_output = state.last_judged, state.last_output

    async def final_verdict(self) -> Verdict:
        """Return the verdict of the last file written; judged now if nobody did."""
        if self._last_written is None:
            return Verdict(kind="missing", reason="no file was written")
        return await self._judge(self._files[self._last_written])

    async def judge_answer(self, code: str | None) -> Verdict:
        """Return the verdict of an attempt that had no tools, from the file that its answer holds."""
        if code is None:
            return Verdict(kind="missing", reason="the answer holds no complete Lean file: no closed ```lean block")
        return await self._judge(code)

    def _write(self, name: str, code: str) -> ToolResult:
        if not _NAME.fullmatch(name) or name.lower() in _RESERVED:
            text = f"Invalid file name {name[:80]!r}: use letters, digits and underscores, ending in .lean."
            return ToolResult(text=text, ok=False)
        problem = self._problem_of(name, code)
        if problem:
            return ToolResult(text=problem, ok=False)
        size = len(code.encode("utf-8"))
        others = sum(num for other, num in self._sizes.items() if other != name)
        if others + size > _MAX_BYTES:
            return ToolResult(text=f"All files together are too long: at most {_MAX_BYTES} bytes.", ok=False)
        self._files[name] = code
        self._sizes[name] = size
        self._last_written = name
        return ToolResult(text=f"Wrote {name}.", ok=True)

    def _problem_of(self, name: str, code: str) -> str:
        """Say why a file is not written, or nothing."""
        if len(code) > MAX_CODE_CHARS:
            return f"The file is too long: at most {MAX_CODE_CHARS} characters."
        if "\0" in code or any("\ud800" <= letter <= "\udfff" for letter in code):
            return "The file contains characters that are not valid in a Lean file (NUL or half a Unicode character)."
        if name not in self._files and len(self._files) >= _MAX_FILES:
            return f"Too many files: at most {_MAX_FILES}."
        return ""

    async def _check(self, name: str) -> ToolResult:
        code = self._files.get(name)
        if code is None:
            text = f"There is no file {name[:80]!r}. Write it with lean_write_file first."
            return ToolResult(text=text, ok=False)
        verdict = await self._judge(code)
        if verdict.is_proved:
            return ToolResult(text=f"{name} compiles and proves the theorem.", ok=True, verdict=verdict)
        if verdict.is_infrastructure or verdict.is_bad_statement:
            text = "The checker did not answer. The file was not judged."
            return ToolResult(text=text, ok=False, verdict=verdict)
        return ToolResult(text=verdict.output or f"error: {verdict.reason}", ok=False, verdict=verdict)

    async def _judge(self, code: str) -> Verdict:
        self.last_judged = code
        verdict = await self._verifier.check(code, self._statement, caller=self._caller)
        if not verdict.is_infrastructure:
            self.last_output = verdict.output
        return verdict


def _problem(call: ToolCall) -> str:
    """Say what is wrong with a call, or nothing."""
    required = _REQUIRED.get(call.name)
    if required is None:
        return f"Unknown tool {call.name[:80]!r}. The tools are: {', '.join(_REQUIRED)}."
    arguments: dict[str, Any] = call.arguments
    for key in required:
        if key not in arguments:
            return f"{call.name}: the argument {key!r} is missing."
        if not isinstance(arguments[key], str):
            return f"{call.name}: the argument {key!r} must be a string."
    unknown = sorted(set(arguments) - set(required))
    if unknown:
        return f"{call.name}: unknown argument {str(unknown[0])[:80]!r}."
    return ""
