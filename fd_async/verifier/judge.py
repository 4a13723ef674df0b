"""The judging ladder: gate, reconstruction, compilation, probe. Every rung gives a typed verdict.

A file is proved only when the text that Lean compiled has our header and our statement, Lean reports no error and
no `sorry`, and a second command, which the model's text cannot touch, finds that the constant has exactly the
stated type and rests on allowed axioms alone. Nothing is judged by the wording of a message, except errors in
which the small checker says that it does not know a feature. Failures of the infrastructure are never verdicts
about the proof.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeVar

from anyio import current_time, to_thread

from fd_async.errors import VerifierError
from fd_async.types import Statement, Verdict, VerdictKind
from fd_async.verifier.accounting import Accountant
from fd_async.verifier.backend import (
    CheckCrash,
    CheckFailed,
    CheckOutOfMemory,
    CheckTimeout,
    HeaderRefused,
    LeanAnswer,
    LeanBackend,
    LeanRequest,
)
from fd_async.verifier.canaries import Canary
from fd_async.verifier.messages import UNSUPPORTED, cut, read_axioms, render_messages
from fd_async.verifier.source.gate import Violation, inspect_source
from fd_async.verifier.source.lexer import LexError, Token, lex
from fd_async.verifier.source.reconstruct import Goal, Rebuilt, StatementError, read_statement, rebuild

_T = TypeVar("_T")
_FAILURES: tuple[tuple[type[CheckFailed], VerdictKind, str], ...] = (
    (CheckTimeout, "timeout", "did not finish in time"),
    (CheckOutOfMemory, "out_of_memory", "ran out of memory"),
    (CheckCrash, "crash", "crashed"),
)
MAX_CODE_CHARS = 64_000
_LONG_CHARS = 4_000
"""Texts longer than this are worked on in a thread, so that the event loop never waits for them."""


class StatementFault(Exception):
    """A statement that does not compile by itself; `args[0]` is one line."""

    def __init__(self, message: str, output: str = "") -> None:
        super().__init__(message)
        self.output = output
        """Lean's words, all of them."""


@dataclass(frozen=True)
class Prepared:
    """A file that passed the gate, and what is left to find out."""

    goal: Goal
    rebuilt: Rebuilt
    has_sorry: bool
    believe_probe: bool = False
    """Ask the probe whatever the rungs before it say, and judge by it alone; for canaries."""


@dataclass(frozen=True)
class Judge:
    """Judges files with one backend. `header` is for statements that bring none."""

    backend: LeanBackend
    header: str
    allowed_axioms: frozenset[str]
    output_chars: int
    accountant: Accountant = field(default_factory=Accountant)
    accepted: set[str] = field(default_factory=set)
    """Headers under which Lean has compiled something: refused later, they are no statement's fault."""

    def header_of(self, statement: Statement) -> str:
        return (statement.header or self.header).replace("\r\n", "\n").strip()

    async def judge(self, code: str, statement: Statement, *, caller: str = "") -> Verdict:
        """Judge one file for one statement; infrastructure failures are a verdict of that kind.

        Args:
            code: The file.
            statement: What it is to prove.
            caller: Who asks; the scheduler is fair between callers.
        """
        judged, prepared = await self._climb(code, statement, caller)
        if prepared is None or not judged.is_proved:
            return judged
        template = LeanRequest(self.header_of(statement), "", caller=caller, cost_key=statement.name)
        return await self.accountant.account(judged, self.backend, template, prepared.rebuilt)

    async def rejudge(self, code: str, statement: Statement) -> Verdict:
        """Judge a file once more, for an audit: the whole ladder, and nothing that only counts."""
        return (await self._climb(code, statement, "audit"))[0]

    async def _climb(self, code: str, statement: Statement, caller: str) -> tuple[Verdict, Prepared | None]:
        """Climb the ladder; None beside the verdict when the first two rungs already decided."""
        verdict = _Verdicts(self, code, statement)
        try:
            prepared = await _maybe_in_thread(len(code), prepare, code, statement, self.header_of(statement))
        except StatementError as error:
            return verdict.make("bad_statement", str(error)), None
        if isinstance(prepared, Verdict):
            return verdict.make(prepared.kind, prepared.reason, prepared.output), None
        return await self._judge_prepared(prepared, statement, verdict, caller), prepared

    async def judge_canary(self, canary: Canary) -> Verdict:
        """Judge a check whose answer is known; beneath the gate, its code alone with what the probe says of it."""
        if not canary.beneath_the_gate:
            return await self.judge(canary.code, canary.statement, caller="canary")
        statement = canary.statement
        lines = canary.code.count("\n") + 1
        rebuilt = Rebuilt(canary.code, has_theorem=True, statement_line=1, statement_lines=lines)
        prepared = Prepared(read_statement(statement), rebuilt, has_sorry=False, believe_probe=True)
        return await self._judge_prepared(prepared, statement, _Verdicts(self, canary.code, statement), "canary")

    async def _judge_prepared(
        self, prepared: Prepared, statement: Statement, verdict: _Verdicts, caller: str
    ) -> Verdict:
        try:
            return await self._compile(prepared, statement, verdict, caller)
        except CheckFailed as error:
            return verdict.of_failure(error)
        except StatementFault as error:
            return verdict.make("bad_statement", str(error))
        except VerifierError as error:
            return self._unanswered(error, statement, verdict)

    async def _compile(self, prepared: Prepared, statement: Statement, verdict: _Verdicts, caller: str) -> Verdict:
        rebuilt, goal = prepared.rebuilt, prepared.goal
        wants_probe = rebuilt.has_theorem and not prepared.has_sorry
        probe_name = f"fd_probe_{secrets.token_hex(8)}"
        answer = await self.backend.run(
            LeanRequest(
                verdict.header,
                rebuilt.body,
                goal.probe(probe_name, self.backend.root) if wants_probe else "",
                caller=caller,
                cost_key=statement.name,
                probe_always=prepared.believe_probe,
            )
        )
        self.accepted.add(verdict.header)
        verdict.seconds = answer.seconds
        output = await _maybe_in_thread(
            40 * len(answer.messages), render_messages, answer.messages, rebuilt.model_line, self.output_chars
        )
        errors = answer.errors
        if errors:
            if any(rebuilt.is_statement(error.pos.line) for error in errors):
                await self._blame_the_statement(goal, verdict.header, caller)
            known = self.backend.name == "minilean"  # on a real Lean a proof could say so itself
            unsupported = known and all(error.data.startswith(UNSUPPORTED) for error in errors)
            return verdict.make("unsupported" if unsupported else "failed", _one_line(errors[0].data), output)
        if prepared.believe_probe:
            return await self._read_probe(answer, probe_name, goal, verdict, output, caller)
        if prepared.has_sorry or answer.num_sorries:
            return verdict.make("sorry", "the file contains `sorry`", output or "error: the file contains `sorry`")
        if not rebuilt.has_theorem:
            reason = f"the file does not state `theorem {goal.name}`"
            return verdict.make("statement_changed", reason, f"error: {reason}\n{output}".strip())
        return await self._read_probe(answer, probe_name, goal, verdict, output, caller)

    async def _read_probe(
        self, answer: LeanAnswer, probe_name: str, goal: Goal, verdict: _Verdicts, output: str, caller: str
    ) -> Verdict:
        probe = answer.probe
        if probe is None:
            raise VerifierError("the verifier did not answer the statement probe")
        errors = [message for message in probe if message.is_error]
        if errors:
            await self._blame_the_statement(goal, verdict.header, caller)
            reason = f"`{goal.name}` does not have the given statement: {_one_line(errors[0].data)}"
            return verdict.make("statement_changed", reason, f"error: {reason}")
        axioms = read_axioms(probe, probe_name)
        if axioms is None:
            raise VerifierError(f"unreadable answer to `#print axioms`: {_one_line(str([m.data for m in probe]))}")
        foreign = sorted(set(axioms) - self.allowed_axioms)
        if "sorryAx" in foreign:
            return verdict.make("sorry", "the proof rests on `sorry`", "error: the proof rests on `sorry`")
        if foreign:
            reason = f"the proof rests on the axiom `{foreign[0]}`"
            return verdict.make("axiom", reason, f"error: {reason}")
        return verdict.make("proved", "", output)

    async def examine(self, statement: Statement, *, caller: str = "") -> Verdict:
        """Judge a statement alone, with `sorry` for its proof.

        Returns:
            A verdict of kind `sorry` where it compiles, `bad_statement` with Lean's words where it does not; where Lean
            did not get through it `timeout`, `out_of_memory` or `crash`, and `infrastructure` where nobody answered.
        """
        verdict = _Verdicts(self, "", statement)
        try:
            goal = read_statement(statement)
            _lex_header(verdict.header)
            await self._demand_statement(goal, verdict.header, caller)
        except CheckFailed as error:
            return verdict.of_failure(error)
        except (StatementError, StatementFault) as error:
            return verdict.make("bad_statement", str(error), getattr(error, "output", "") or None)
        except LexError as error:
            return verdict.make("bad_statement", f"header of {statement.name!r}: {error}")
        except VerifierError as error:
            return self._unanswered(error, statement, verdict)
        return verdict.make("sorry", "")

    def _unanswered(self, error: VerifierError, statement: Statement, verdict: _Verdicts) -> Verdict:
        """Blame infrastructure, or the statement where Lean refuses its own header and has never taken it."""
        is_theirs = isinstance(error, HeaderRefused) and statement.header and verdict.header not in self.accepted
        return verdict.make("bad_statement" if is_theirs else "infrastructure", str(error))

    async def _blame_the_statement(self, goal: Goal, header: str, caller: str) -> None:
        """Find out whether the statement is at fault and not the model.

        Only Lean's own words are held against a statement, never that Lean did not get through it: what is blamed on
        the statement is dropped instead of counted, so time or memory, which other files can take away, must not do.

        Raises:
            StatementFault: The statement is.
            VerifierError: Lean could not be asked.
        """
        with contextlib.suppress(CheckFailed):
            await self._demand_statement(goal, header, caller)

    async def _demand_statement(self, goal: Goal, header: str, caller: str) -> None:
        """Make sure that the statement alone compiles and can be probed.

        Raises:
            StatementFault: Lean says that it does not.
            CheckFailed: Lean did not get through it.
            VerifierError: Lean could not be asked.
        """
        probe_name = f"fd_probe_{secrets.token_hex(8)}"
        probe = goal.probe(probe_name, self.backend.root)
        body = f"{goal.declaration} by sorry"
        answer = await self.backend.run(LeanRequest(header, body, probe, caller=caller, probe_always=True))
        self.accepted.add(header)
        errors = answer.errors + [message for message in answer.probe or () if message.is_error]
        if errors:
            first = _one_line(errors[0].data)
            output = render_messages(errors, lambda line: line, self.output_chars)
            raise StatementFault(
                f"the statement `{goal.name}` alone does not compile under its header: {first}", output
            )


class _Verdicts:
    """Makes verdicts with their provenance."""

    def __init__(self, judge: Judge, code: str, statement: Statement) -> None:
        self.header = judge.header_of(statement)
        self.seconds: float | None = None
        """In Lean; None until an answer came, and then the time since the check began counts."""
        self._started = current_time()
        self._judge = judge
        self._file_hash = sha256(code)

    def make(self, kind: VerdictKind, reason: str, output: str | None = None) -> Verdict:
        text = f"error: {reason}" if output is None and reason else output or ""
        return Verdict(
            kind=kind,
            reason=_one_line(reason),
            output=cut(text, self._judge.output_chars),
            backend=self._judge.backend.name,
            toolchain=self._judge.backend.toolchain,
            header_hash=sha256(self.header),
            file_hash=self._file_hash,
            seconds=current_time() - self._started if self.seconds is None else self.seconds,
        )

    def of_failure(self, error: CheckFailed) -> Verdict:
        """Tell how Lean did not get through."""
        for cause, kind, words in _FAILURES:
            if isinstance(error, cause):
                return self.make(kind, str(error), f"error: Lean {words}")
        raise error


def prepare(code: str, statement: Statement, header: str) -> Prepared | Verdict:
    """Climb the first two rungs, which need no Lean; a refusal is a verdict without provenance.

    Raises:
        StatementError: The statement or its header cannot be read.
    """
    goal = read_statement(statement)
    if len(code) > MAX_CODE_CHARS:
        return Verdict(kind="forbidden", reason=f"the file is longer than {MAX_CODE_CHARS} characters")
    source = code.replace("\r\n", "\n")
    try:
        header_tokens = _lex_header(header)
    except LexError as error:
        raise StatementError(f"header of {statement.name!r}: {error}") from error
    try:
        tokens = lex(source)
    except LexError as error:
        return _refused("forbidden", Violation(str(error), error.position), source)
    gate = inspect_source(source, tokens, header_tokens)
    if gate.violation is not None:
        return _refused("forbidden", gate.violation, source)
    rebuilt = rebuild(source, tokens, gate, goal)
    if isinstance(rebuilt, Violation):
        return _refused("statement_changed", rebuilt, source)
    return Prepared(goal, rebuilt, gate.has_sorry)


def sha256(text: str) -> str:
    """Hex digest of UTF-8 text; lone surrogates are kept apart instead of failing."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def content_key(header: str, statement: Statement, code: str) -> str:
    """Return the name of a check: the same one means the same verdict."""
    return sha256("\0".join([header, statement.formal_statement, code]))


@lru_cache(256)
def _lex_header(header: str) -> list[Token]:
    return lex(header)


def _refused(kind: VerdictKind, violation: Violation, source: str) -> Verdict:
    line = source.count("\n", 0, violation.position) + 1
    column = violation.position - (source.rfind("\n", 0, violation.position) + 1)
    return Verdict(kind=kind, reason=violation.reason, output=f"{line}:{column}: error: {violation.reason}")


async def _maybe_in_thread(num_chars: int, function: Callable[..., _T], *arguments: Any) -> _T:
    if num_chars > _LONG_CHARS:
        return await to_thread.run_sync(function, *arguments)
    return function(*arguments)


def _one_line(text: str, max_chars: int = 200) -> str:
    return cut(" ".join(text.split()), max_chars)
