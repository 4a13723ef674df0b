"""Run the commands of a text in an environment: theorems, examples, queries, options."""

from __future__ import annotations

import bisect
import re

from lark import Token
from msgspec import Struct

from fd_async.verifier.minilean import known, prelude
from fd_async.verifier.minilean import syntax as s
from fd_async.verifier.minilean.elaborator import Elaborator
from fd_async.verifier.minilean.errors import RECURSION, Budget, LeanError, OutOfSteps, Unsupported
from fd_async.verifier.minilean.expr import Expr, Lam, forget_shown
from fd_async.verifier.minilean.goals import Message
from fd_async.verifier.minilean.kernel import STANDARD_AXIOMS, Kernel, KernelError
from fd_async.verifier.minilean.lexer import blank_comments, refuse_token, span_of, split_commands, tokenize
from fd_async.verifier.minilean.meta import Context
from fd_async.verifier.minilean.parser import parse_command
from fd_async.verifier.minilean.statements import check_statement, close_over, elab_signature
from fd_async.verifier.minilean.tactics import Tactics

MAX_CHARS = 200_000
COMMAND_COST = 100
NAMESPACES = {"Nat", "Int", "Classical"}
BOOLEAN_OPTIONS = {"autoImplicit", "relaxedAutoImplicit", "pp.all", "pp.explicit", "pp.proofs",
                   "pp.unicode.fun", "pp.fvars.anonymous", "linter.all", "linter.unusedVariables",
                   "linter.unusedVariables.funArgs"}  # fmt: skip
NUMBER_OPTIONS = {"maxHeartbeats": 200_000, "maxRecDepth": 512}
"""Options with their defaults; a lower limit could make Lean refuse what minilean accepts."""
IMPORTABLE = {"Init", "Lean", "Std"}


class Entry(Struct, frozen=True):
    """A theorem of the environment."""

    type: Expr
    axioms: frozenset[str]


class Environment(Struct, frozen=True):
    """Theorems so far, and opened namespaces. Never changed in place."""

    theorems: dict[str, Entry] = {}
    opened: frozenset[str] = frozenset()


class Sorry(Struct, frozen=True):
    """A `sorry` in the text with the goal at it."""

    span: s.Span
    goal: str


class Result(Struct):
    """What a text did."""

    environment: Environment
    messages: list[Message]
    sorries: list[Sorry]


class Positions:
    """Offsets to line (from 1) and column (from 0), in codepoints."""

    def __init__(self, text: str) -> None:
        self.starts = [0, *(m.end() for m in re.finditer("\n", text))]

    def of(self, offset: int) -> dict[str, int]:
        """The JSON object for a position."""
        line = bisect.bisect_right(self.starts, offset)
        return {"line": line, "column": offset - self.starts[line - 1]}


class Runner:
    """Runs one text."""

    def __init__(self, environment: Environment, text: str) -> None:
        self.environment = environment
        self.text = text
        self.messages: list[Message] = []
        self.sorries: list[Sorry] = []
        self.budget = Budget()

    def run(self) -> Result:
        """Run every command; errors become messages."""
        forget_shown()
        try:
            if len(self.text) > MAX_CHARS:
                raise Unsupported(f"text of more than {MAX_CHARS} characters", (0, 0))
            groups = split_commands(tokenize(blank_comments(self.text)))
        except LeanError as error:
            self._error(error, (0, 0))
            groups = []
        for tokens in groups:
            self._command(tokens)
        return Result(self.environment, self.messages, self.sorries)

    def _error(self, error: LeanError, span: s.Span) -> None:
        self.messages.append(Message("error", error.span or span, error.message))

    def _info(self, span: s.Span, data: str, severity: str = "info") -> None:
        self.messages.append(Message(severity, span, data))

    def _command(self, tokens: list[Token]) -> None:
        span = span_of(tokens[0])
        try:
            self.budget.tick(COMMAND_COST)
        except OutOfSteps as error:
            self._error(error, span)
            return
        if [token.type for token in tokens] == ["MODULE_DOC"]:
            return
        if tokens[0].type not in ("THEOREM", "EXAMPLE", "OPEN", "SET_OPTION", "HASH", "DOC"):
            self._error(refuse_token(tokens[0]), span)
            return
        try:
            command, error = parse_command(tokens)
            if command is not None:
                self._run_command(command)
            if error is not None:
                self._error(error, span)
        except RecursionError:
            self._error(LeanError(RECURSION), span)
        except LeanError as error:
            self._error(error, span)
        except (
            KeyError,
            ValueError,
            TypeError,
            AttributeError,
            IndexError,
            AssertionError,
            NotImplementedError,
        ) as bug:
            self._error(Unsupported(f"internal error {type(bug).__name__}: {bug}"), span)

    def _run_command(self, command: s.Command) -> None:
        if isinstance(command, s.Theorem):
            self._theorem(command)
        elif command.kind == "open":
            self._open(command)
        elif command.kind == "set_option":
            self._set_option(command)
        elif command.kind == "#print axioms":
            self._print_axioms(command)
        else:
            raise Unsupported(f"command `{command.kind}`", command.span)

    # ---------------------------------------------------------------- theorems

    def constant_type(self, name: str) -> Expr | None:
        """Type of a theorem of the environment or a prelude constant."""
        entry = self.environment.theorems.get(name)
        return entry.type if entry is not None else prelude.constant_type(name)

    def _check_name(self, command: s.Theorem) -> None:
        name = command.name
        if not name:
            return
        if name in self.environment.theorems or prelude.is_nameable(name) or name in known.core_names():
            raise LeanError(f"`{name}` has already been declared", command.name_span)
        if "." in name:
            raise Unsupported("a theorem name with a dot", command.name_span)

    def _theorem(self, command: s.Theorem) -> None:
        self._check_name(command)
        elab = Elaborator(self.constant_type, set(self.environment.theorems), self.budget, self.text)
        engine = Tactics(elab)
        elab.run_block = engine.run_block
        elab.own_name, elab.own_span = command.name, command.name_span
        context, target = elab_signature(elab, command.binders, command.type)
        closed = close_over(context, command.binders, target)
        check_statement(closed, self.constant_type, self.budget, command.type.span)
        axioms: frozenset[str] | None = None
        try:
            proof = self._elab_proof(elab, engine, command, target)
            if proof is not None:
                axioms = self._check_proof(proof, context, command, closed)
        except (LeanError, RecursionError) as error:
            found = error if isinstance(error, LeanError) else LeanError(RECURSION)
            engine.messages.append(Message("error", found.span or command.name_span, found.message))
        self.messages += engine.messages
        self.sorries += [Sorry(span, goal) for span, goal in elab.sorries]
        failed = axioms is None or any(message.severity == "error" for message in engine.messages)
        if not failed and axioms is not None and "sorryAx" in axioms:
            self._info(command.name_span, "declaration uses `sorry`", "warning")
        if command.name:
            entry = Entry(closed, frozenset({"sorryAx"}) if failed or axioms is None else axioms)
            self.environment = Environment({**self.environment.theorems, command.name: entry}, self.environment.opened)

    def _elab_proof(self, elab: Elaborator, engine: Tactics, command: s.Theorem, target: Expr) -> Expr | None:
        try:
            proof = elab.complete(command.proof, target)
        except OutOfSteps:
            raise
        except LeanError as error:
            engine.log(error, command.proof.span)
            return None
        return None if engine.messages else elab.meta.instantiate(proof)

    def _check_proof(self, proof: Expr, context: Context, command: s.Theorem, closed: Expr) -> frozenset[str]:
        """Kernel check; returns the axioms."""
        for local, binder in zip(reversed(context), reversed(command.binders), strict=True):
            proof = Lam(local.uid, local.name, local.type, proof, binder.implicit)
        kernel = Kernel(self.constant_type, self.budget)
        try:
            kernel.check_proof(proof, closed)
        except KernelError as error:
            raise Unsupported(f"proof term refused by the kernel ({error})", command.name_span) from None
        axioms = set(kernel.axioms)
        for name in kernel.constants:
            axioms |= self._axioms_of(name)
        return frozenset(axioms)

    def _axioms_of(self, name: str) -> frozenset[str]:
        entry = self.environment.theorems.get(name)
        return entry.axioms if entry is not None else prelude.axioms_of(name)

    # ---------------------------------------------------------------- other commands

    def _print_axioms(self, command: s.SimpleCommand) -> None:
        name = command.words[0].removeprefix("_root_.")
        if name not in self.environment.theorems and not prelude.is_nameable(name):
            raise LeanError(f"Unknown constant `{name}`", command.word_span)
        axioms = self._axioms_of(name)
        ordered = [axiom for axiom in (*STANDARD_AXIOMS, "sorryAx") if axiom in axioms]
        span = (command.span[0], command.span[0] + len("#print"))
        if ordered:
            self._info(span, f"'{name}' depends on axioms: [{', '.join(ordered)}]")
        else:
            self._info(span, f"'{name}' does not depend on any axioms")

    def _open(self, command: s.SimpleCommand) -> None:
        unknown = [word for word in command.words if word not in NAMESPACES]
        if unknown:
            raise Unsupported(f"`open {unknown[0]}`", command.word_span)
        opened = self.environment.opened | set(command.words)
        self.environment = Environment(self.environment.theorems, opened)

    def _set_option(self, command: s.SimpleCommand) -> None:
        name, value = command.words
        if name in BOOLEAN_OPTIONS:
            fits = value in ("true", "false")
        else:
            unlimited = (name, value) == ("maxHeartbeats", "0")
            enough = value.isdigit() and int(value) >= NUMBER_OPTIONS.get(name, 0)
            fits = name in NUMBER_OPTIONS and (enough or unlimited)
        if not fits:
            raise Unsupported(f"`set_option {name} {value}`", command.word_span)


def split_imports(text: str) -> tuple[list[str], str]:
    """Imported modules, and the text with the import lines blanked."""
    blanked = blank_comments(text)
    modules: list[str] = []
    position = 0
    while match := re.compile(r"\s*import[ \t]+([A-Za-z_][\w.]*)").match(blanked, position):
        modules.append(match.group(1))
        position = match.end()
    kept = "".join(char if char == "\n" else " " for char in text[:position])
    return modules, kept + text[position:]
