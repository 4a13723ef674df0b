"""Backends for audits: every request is compiled by a process that nobody used before.

`FreshBackend` has the warm backend start one. `ReplayBackend` needs no REPL: Lean compiles header, body and probe as
one module, and `leanchecker`, part of Lean since 4.28, puts every declaration of that module before a kernel that has
seen nothing but its imports. What tricked the elaborator or the environment of the first process is not there.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import anyio
import msgspec
from anyio import CancelScope, current_time, to_thread
from msgspec import Struct

from fd_async.errors import VerifierError
from fd_async.scratch import make_folder, remove_folder
from fd_async.verifier.audit.audits import AuditRefused
from fd_async.verifier.audit.program import Ended, run_program, with_folder
from fd_async.verifier.backend import CheckTimeout, LeanAnswer, LeanBackend, LeanRequest
from fd_async.verifier.messages import Message, Position
from fd_async.verifier.repl.process import ReplSpec

_FOUND = "found a problem in"
"""What `leanchecker` says of a declaration that its kernel refuses; anything else it says is about itself."""


class AuditableBackend(LeanBackend, Protocol):
    """A backend that can also lend a process of its own, and let go of all that others have used."""

    def distrust(self) -> None:
        """Use none of the present processes for another check."""
        ...

    async def run_fresh(self, request: LeanRequest) -> LeanAnswer:
        """Compile in a process that nobody used before and nobody uses afterwards."""
        ...


class FreshBackend:
    """A LeanBackend whose every request has a new worker."""

    def __init__(self, warm: AuditableBackend) -> None:
        self.name, self.toolchain, self.root = warm.name, warm.toolchain, warm.root
        self._warm = warm

    async def run(self, request: LeanRequest) -> LeanAnswer:
        return await self._warm.run_fresh(request)

    def statistics(self) -> Mapping[str, float]:
        return {}


@dataclass(frozen=True)
class ReplaySpec:
    """How to start the two programs; `spec` has the limits, the sandbox and the environment of a worker."""

    spec: ReplSpec
    lean: str
    leanchecker: str
    toolchain: str
    timeout_s: float
    """Of each of the two programs, its import of the header included."""


class ReplayBackend:
    """A LeanBackend that compiles to a module and has `leanchecker` replay it."""

    name = "repl"
    root = "_root_."

    def __init__(self, spec: ReplaySpec) -> None:
        self.toolchain = spec.toolchain
        self._spec = spec

    def statistics(self) -> Mapping[str, float]:
        return {}

    async def run(self, request: LeanRequest) -> LeanAnswer:
        """Compile; replay what compiled without an error.

        Raises:
            AuditRefused: `leanchecker` refuses the module.
            CheckTimeout: One of the two did not finish.
            VerifierError: One of them failed for a reason of its own.
        """
        started = current_time()
        async with scratch_folder() as folder:
            module = f"FdAudit{secrets.token_hex(8)}"
            text, body_line, probe_line = join(request)
            file = folder / f"{module}.lean"
            await to_thread.run_sync(file.write_text, text, "utf-8")
            lean = [self._spec.lean, "--json", f"--root={folder}", "-o", str(folder / f"{module}.olean"), str(file)]
            ended = await self._run(folder, lean, {})
            answer = divide(read_messages(ended), body_line, probe_line, current_time() - started, bool(request.probe))
            if ended.returncode not in (0, 1) or (ended.returncode == 1) != bool(answer.errors or _errors(answer)):
                raise VerifierError(f"lean ended with code {ended.returncode}: {ended.last_line}")
            if ended.returncode == 0:
                path = os.pathsep.join(filter(None, [str(folder), self._spec.spec.env.get("LEAN_PATH", "")]))
                replayed = await self._run(folder, [self._spec.leanchecker, module], {"LEAN_PATH": path})
                _demand_replay(replayed, module)
        return answer

    async def _run(self, folder: Path, argv: list[str], env: Mapping[str, str]) -> Ended:
        try:
            with anyio.fail_after(self._spec.timeout_s):
                return await run_program(with_folder(self._spec.spec, tuple(argv), str(folder), env))
        except TimeoutError:
            raise CheckTimeout(f"{Path(argv[0]).name} did not end within {self._spec.timeout_s:g} s") from None


class _JsonMessage(Struct):
    """One line of `lean --json`."""

    data: str
    severity: str
    pos: Position


_LINE = msgspec.json.Decoder(_JsonMessage)


def read_messages(ended: Ended) -> list[Message]:
    """Read `lean --json`: one message per line, and nothing else.

    Raises:
        VerifierError: There is something else.
    """
    messages = []
    for line in ended.stdout.split("\n"):
        if not line.strip():
            continue
        try:
            found = _LINE.decode(line)
        except msgspec.DecodeError as error:
            raise VerifierError(f"lean wrote what is not a message ({error}): {line[:200]!r}") from error
        severity = "info" if found.severity == "information" else found.severity
        messages.append(Message(found.data, severity, found.pos))
    return messages


def join(request: LeanRequest) -> tuple[str, int, int]:
    """Return one file of header, body and probe, and the lines before the body and before the probe."""
    head = f"{request.header}\n\n" if request.header else ""
    body_line = head.count("\n")
    return f"{head}{request.body}\n\n{request.probe}\n", body_line, body_line + request.body.count("\n") + 2


def divide(messages: list[Message], body_line: int, probe_line: int, seconds: float, wants_probe: bool) -> LeanAnswer:
    """Give every message to the part it belongs to.

    Raises:
        VerifierError: The header was rejected.
    """
    for message in messages:
        if message.is_error and message.pos.line <= body_line:
            raise VerifierError(f"the Lean header was rejected: {message.data[:500]}")
    body = [_shift(m, body_line) for m in messages if body_line < m.pos.line <= probe_line]
    probe = [_shift(m, probe_line) for m in messages if m.pos.line > probe_line]
    failed = any(message.is_error for message in body)
    return LeanAnswer(body, 0, seconds, probe if wants_probe and not failed else None)


@asynccontextmanager
async def scratch_folder() -> AsyncIterator[Path]:
    """Make a private folder and remove it at the end."""
    folder = await to_thread.run_sync(make_folder, "audit")
    try:
        yield folder
    finally:
        with CancelScope(shield=True):
            await to_thread.run_sync(remove_folder, folder)


def _demand_replay(ended: Ended, module: str) -> None:
    if ended.returncode == 0:
        return
    if ended.returncode == 1 and any(_FOUND in line and module in line for line in ended.stderr.splitlines()):
        raise AuditRefused(f"replay: {ended.last_line}")
    raise VerifierError(f"leanchecker ended with code {ended.returncode}: {ended.last_line}")


def _errors(answer: LeanAnswer) -> list[Message]:
    return [message for message in answer.probe or () if message.is_error]


def _shift(message: Message, lines: int) -> Message:
    return Message(message.data, message.severity, Position(message.pos.line - lines, message.pos.column))
