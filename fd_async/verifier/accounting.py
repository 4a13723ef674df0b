"""Which theorems and tactics an accepted proof uses (paper figure 3: distinct lemmas over training).

Counted is what the model wrote, not what automation found: identifiers with original syntax that the elaborator
resolved to a constant (so `open`, dot notation and subscripts are seen through), of which the header's environment
has a theorem; and tactics with original syntax. Helper theorems of the file itself are none of the header's.
Costs two requests per accepted file: the file once more with the elaborator's tree, and one command of ours that
picks the theorems. Where there is no tree the tokens are read instead (`names`), and the command resolves them as
written. Nothing here changes whether a proof counts; a failure is counted and leaves the poorer reading.
"""

from __future__ import annotations

import re
import secrets
from collections import Counter
from collections.abc import Awaitable, Sequence
from functools import cache, partial
from typing import TypeVar

import msgspec
import structlog
from anyio import to_thread
from msgspec import Struct
from msgspec.structs import replace

from fd_async.errors import VerifierError
from fd_async.types import Verdict
from fd_async.verifier.backend import CheckFailed, LeanBackend, LeanRequest
from fd_async.verifier.messages import Message
from fd_async.verifier.source.lexer import LexError, lex
from fd_async.verifier.source.names import TextUse, scan
from fd_async.verifier.source.reconstruct import Rebuilt

MAX_TREE_S = 15.0
"""A proof that took longer is not elaborated a second time for the sake of a count."""
MAX_TREE_CHARS = 10_000
"""Nor is a longer file: its tree, with every goal in it, could be tens of megabytes."""
MAX_CANDIDATES = 400
_LEAN = frozenset(["repl", "kimina"])
"""Backends that run Lean, and so can give trees and answer questions."""
_LONG_CHARS = 4_000
"""Longer files are read in a thread."""
_TREE_OPTIONS = "set_option pp.fullNames true\nset_option pp.maxSteps 100\n"
_TREE_LINES = _TREE_OPTIONS.count("\n")
_TACTIC = re.compile(r"[A-Za-z_][\w'?!]*")
_NO_TACTIC = frozenset(["Lean.Parser.Term.byTactic", "Lean.Parser.Tactic.tacticSeq", "Lean.Parser.Tactic.paren"])
_NO_THEOREMS = frozenset(
    {
        *("And.intro", "Or.inl", "Or.inr", "Iff.intro", "Exists.intro", "True.intro", "Eq.refl"),
        *("rfl", "id", "absurd", "False.elim", "Not.elim", "propext"),
    }
)
"""Constructors, definitions and an axiom among the lemmas of the small checker."""
_T = TypeVar("_T")
_log = structlog.get_logger("fd_async.verifier")


class Uses(Struct, frozen=True):
    """Sorted and distinct. In a tree's answer `lemmas` are candidates until the environment has named the theorems."""

    lemmas: list[str]
    tactics: list[str]


class Unreadable(Exception):
    """An answer that does not tell what was asked."""


class Accountant:
    """Adds lemmas and tactics to accepted verdicts. `counts` says how each was read, and how often that failed."""

    def __init__(self) -> None:
        self.counts = Counter({"accounted_by_tree": 0, "accounted_by_text": 0, "accounting_errors": 0})

    async def account(self, verdict: Verdict, backend: LeanBackend, template: LeanRequest, rebuilt: Rebuilt) -> Verdict:
        """Return the verdict with what its proof uses; never fails it.

        Args:
            verdict: An accepted one.
            backend: What judged it.
            template: Header, caller and cost key of the requests to make.
            rebuilt: The file that was judged.
        """
        uses = None
        if backend.name in _LEAN and verdict.seconds <= MAX_TREE_S and len(rebuilt.body) <= MAX_TREE_CHARS:
            uses = await self._attempt(_by_tree(backend, template, rebuilt))
        if uses is not None:
            self.counts["accounted_by_tree"] += 1
        else:
            self.counts["accounted_by_text"] += 1
            text = scan(rebuilt) if len(rebuilt.body) < _LONG_CHARS else await to_thread.run_sync(scan, rebuilt)
            uses = await self._by_text(text, backend, template)
        return replace(verdict, lemmas=uses.lemmas, tactics=uses.tactics)

    async def _by_text(self, text: TextUse, backend: LeanBackend, template: LeanRequest) -> Uses:
        if backend.name == "minilean":
            if not minilean_theorems.cache_info().currsize:
                await to_thread.run_sync(minilean_theorems)  # the first call reads the checker's table
            return Uses([name for name in text.candidates if name in minilean_theorems()], text.tactics)
        if backend.name in _LEAN:
            found = await self._attempt(_theorems(backend, template, text.candidates, resolve=True))
            if found is not None:
                return Uses(found, text.tactics)
        return Uses(text.plausible, text.tactics)

    async def _attempt(self, reading: Awaitable[_T]) -> _T | None:
        """Await a reading; None, counted and logged, where the backend or its answer fails it."""
        try:
            return await reading
        except (CheckFailed, VerifierError, Unreadable) as error:
            self.counts["accounting_errors"] += 1
            _log.info("the uses of an accepted proof could not be read; a poorer reading is taken", cause=str(error))
            return None


async def _by_tree(backend: LeanBackend, template: LeanRequest, rebuilt: Rebuilt) -> Uses:
    answer = await backend.run(replace(template, body=_TREE_OPTIONS + rebuilt.body, infotree=True))
    if answer.errors or answer.infotree is None:
        raise Unreadable(answer.errors[0].data[:200] if answer.errors else "the backend gave no infotree")
    uses = await to_thread.run_sync(partial(read_tree, bytes(answer.infotree), rebuilt))
    return Uses(await _theorems(backend, template, uses.lemmas, resolve=False), uses.tactics)


async def _theorems(backend: LeanBackend, template: LeanRequest, names: Sequence[str], *, resolve: bool) -> list[str]:
    """Return, fully qualified, the theorems of the header's environment among the names."""
    if not names:
        return []
    nonce = f"fd_theorems_{secrets.token_hex(8)}"
    command = question(names[:MAX_CANDIDATES], nonce, resolve=resolve)
    answer = await backend.run(replace(template, body=command, cost_key="which names are theorems"))
    found = read_theorems(answer.messages, nonce)
    if not resolve and not set(found) <= set(names):
        raise Unreadable("the answer names theorems that were not asked for")
    return found


def question(names: Sequence[str], nonce: str, *, resolve: bool) -> str:
    """Write the Lean command that logs NONCE and then every name of a theorem, in one message.

    Args:
        names: Identifiers; others must not get here, for they are written between quotes.
        nonce: What the message begins with.
        resolve: Take names as the header's namespaces would, instead of as full names.
    """
    if not all(map(_is_name, names)):
        raise ValueError("only plain identifiers can be asked for")
    parts = ", ".join("[" + ", ".join(f'"{part}"' for part in name.split(".")) + "]" for name in names)
    full = "(← Lean.resolveGlobalName name).map Prod.fst" if resolve else "[name]"
    return f"""\
#eval show Lean.Elab.Command.CommandElabM _root_.Unit from do
  let env ← Lean.getEnv
  let mut found : _root_.Array _root_.String := #["{nonce}"]
  for parts in ([{parts}] : _root_.List (_root_.List _root_.String)) do
    let name : Lean.Name := parts.foldl Lean.Name.mkStr Lean.Name.anonymous
    let fulls : _root_.List Lean.Name := {full}
    for full in fulls do
      if let Option.some (Lean.ConstantInfo.thmInfo _) := env.find? full then
        found := found.push full.toString
  let line : _root_.String := _root_.String.intercalate " " found.toList
  Lean.logInfo m!"{{line}}\""""


def read_theorems(messages: Sequence[Message], nonce: str) -> list[str]:
    """Read the answer to `question`: sorted, distinct.

    Raises:
        Unreadable: Lean could not run the command, or something else speaks.
    """
    errors = [message.data for message in messages if message.is_error]
    lines = [words[1:] for message in messages if (words := message.data.split())[:1] == [nonce]]
    if errors or len(lines) != 1:
        raise Unreadable(errors[0][:200] if errors else "no answer to the question which names are theorems")
    return sorted(set(lines[0]))


class _Place(Struct, frozen=True):
    line: int


class _Range(Struct, frozen=True):
    synthetic: bool
    start: _Place


class _Syntax(Struct, frozen=True, rename="camel"):
    range: _Range
    kind: str = ""
    arg_kinds: list[str] = []


class _Node(Struct, frozen=True, rename="camel"):
    stx: _Syntax | None = None
    expr: str = ""
    is_binder: bool = False


class _Tree(Struct, frozen=True):
    kind: str = ""
    node: _Node | None = None
    children: list[_Tree] = []


_DECODER = msgspec.json.Decoder(list[_Tree])


def read_tree(infotree: bytes, rebuilt: Rebuilt | None = None) -> Uses:
    """Read names and tactics with original syntax from the REPL's `infotree`; bound names are left out.

    Args:
        infotree: JSON of `infotree: full`.
        rebuilt: The file; its given statement, which stands `_TREE_LINES` further down, does not count.

    Raises:
        Unreadable: It is not such JSON, or too deep.
    """
    try:
        stack = _DECODER.decode(infotree)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise Unreadable(f"unreadable infotree: {error}") from error
    names: set[str] = set()
    bound: set[str] = set()
    tactics: set[str] = set()
    while stack:
        tree = stack.pop()
        stack += tree.children
        node = tree.node
        if node is None or node.stx is None or node.stx.range.synthetic:
            continue
        name = _constant(node.expr)
        if node.is_binder:
            bound.add(name)
        elif rebuilt is not None and not _is_models(node.stx.range.start.line - _TREE_LINES, rebuilt):
            continue
        elif tree.kind == "TacticInfo":
            tactics |= _tactic(node.stx)
        elif tree.kind == "TermInfo" and name:
            names.add(name)
    return Uses(sorted(names - bound), sorted(tactics))


def _is_models(line: int, rebuilt: Rebuilt) -> bool:
    """Whether the model wrote what stands on this line: not the header, nor the given statement."""
    return line > 0 and not rebuilt.is_statement(line)


def _constant(expr: str) -> str:
    """Return the identifier that a printed expression is (`@Nat.lt_irrefl`), or nothing."""
    name = re.sub(r"\.\{[^}]*\}$", "", expr.removeprefix("@").removeprefix("_root_."))
    return name if _is_name(name) else ""


def _is_name(text: str) -> bool:
    """Whether this is one identifier without escaped parts."""
    try:
        return [(token.text, token.kind) for token in lex(text)] == [(text, "word")]
    except LexError:
        return False


def _tactic(stx: _Syntax) -> set[str]:
    """Return the keyword that a tactic begins with; sequences, brackets and rules of `rw` begin with none."""
    if stx.kind in _NO_TACTIC or not stx.arg_kinds:
        return set()
    word = stx.arg_kinds[0].strip("«»")
    return {word} if _TACTIC.fullmatch(word) and "." not in word and word not in ("null", "ident", "by") else set()


@cache
def minilean_theorems() -> frozenset[str]:
    """Return the theorems that the small checker knows; constructors, definitions and axioms are none."""
    from fd_async.verifier.minilean.prelude import is_nameable, lemma_names  # only needed with that backend

    return frozenset(name for name in lemma_names() if is_nameable(name)) - _NO_THEOREMS
