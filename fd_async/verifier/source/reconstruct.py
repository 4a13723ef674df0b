"""The second rung: put our header and our statement around the model's proof.

Owns the reading of statements and the splice. The model's copy of the statement is only compared, token for token,
and then thrown away; the text that Lean reads in its place is ours. Lines and columns of the model's proof keep
their positions (columns exactly, lines by a known shift), so layout-sensitive proofs survive and messages can be
pointed at the model's own file.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from fd_async.types import Statement
from fd_async.verifier.source.gate import CLOSING, MODIFIERS, OPENING, Gate, Violation
from fd_async.verifier.source.lexer import LexError, Token, lex


class StatementError(ValueError):
    """The statement of the data set cannot be read; nothing the model wrote is at fault."""


class Goal(NamedTuple):
    """A statement taken apart. `signature` is everything between the name and `:=`."""

    name: str
    signature: str
    universes: str
    """`.{u v}` or empty."""
    binders: str
    conclusion: str
    tokens: tuple[str, ...]
    """Texts of the signature's tokens."""

    @property
    def declaration(self) -> str:
        """`theorem NAME SIGNATURE :=`."""
        return f"theorem {self.name}{self.signature} :="

    def probe(self, probe_name: str, root: str = "_root_.") -> str:
        """State the theorem again in closed form and prove it by the constant NAME; print what it rests on."""
        closed = f"∀ {self.binders}, {self.conclusion}" if self.binders else self.conclusion
        stated = f"theorem {probe_name}{self.universes} : {closed} := @{root}{self.name}"
        return f"{stated}\n#print axioms {probe_name}"


class Rebuilt(NamedTuple):
    """The text for Lean, without the header, and the way back to the model's lines (1-based)."""

    body: str
    has_theorem: bool
    statement_line: int = 0
    """First line of our statement in `body`; the model's `theorem` stands on the same line of its own file."""
    statement_lines: int = 0
    """Lines of our statement in `body`."""
    shift: int = 0
    """Lines of `body` after the statement are this much further down than in the model's file."""

    def is_statement(self, line: int) -> bool:
        return self.has_theorem and self.statement_line <= line < self.statement_line + self.statement_lines

    def model_line(self, line: int) -> int:
        """Map a line of `body` to the model's file."""
        if not self.has_theorem or line < self.statement_line:
            return line
        if self.is_statement(line):
            return self.statement_line
        return line - self.shift


@lru_cache(4096)
def read_statement(statement: Statement) -> Goal:
    """Take `theorem NAME BINDERS : TYPE := by sorry` apart; the ending may be cut anywhere after TYPE."""
    source = statement.formal_statement.replace("\r\n", "\n")
    try:
        tokens = lex(source)
    except LexError as error:
        raise StatementError(f"statement {statement.name!r}: {error}") from error
    if len(tokens) < 3 or tokens[0].text not in ("theorem", "lemma") or tokens[1].kind != "word":
        raise StatementError(f"statement {statement.name!r} does not begin with `theorem NAME`")
    for ending in ("sorry", "by"):
        if tokens[-1].text == ending:
            tokens.pop()
    if len(tokens) > 3 and tokens[-2].text == ":" and tokens[-1].text == "=" and tokens[-2].end == tokens[-1].start:
        del tokens[-2:]
    signature = tokens[2:]
    if not signature:
        raise StatementError(f"statement {statement.name!r} states nothing")
    end = signature[-1].end
    split = 0
    if len(signature) > 2 and signature[0].text == "." and signature[1].text == "{":
        split = next((i + 1 for i, token in enumerate(signature) if token.text == "}"), 0)
    colon = _top_level_colon(signature, split)
    if colon is None:
        raise StatementError(f"statement {statement.name!r} has no `:` before its conclusion")
    universes = source[signature[0].start : signature[split - 1].end] if split else ""
    first_binder = signature[split].start
    return Goal(
        name=tokens[1].text,
        signature=source[tokens[1].end : end],
        universes=universes,
        binders=source[first_binder : signature[colon].start].strip(),
        conclusion=source[signature[colon].end : end].strip(),
        tokens=tuple(token.text for token in signature),
    )


def rebuild(source: str, tokens: list[Token], gate: Gate, goal: Goal) -> Rebuilt | Violation:
    """Splice our statement into the model's file, or say what differs; without the theorem nothing is spliced."""
    text = _blank(source, tokens, gate)
    index = find_theorem(tokens, goal.name)
    if index is None:
        return Rebuilt(body=text, has_theorem=False)
    problem = _modified(tokens, index, gate) or _helper_clash(tokens, goal)
    if problem:
        return problem
    body_start = index + 2 + len(goal.tokens)
    found = [token.text for token in tokens[index + 2 : body_start]]
    if tuple(found) != goal.tokens:
        return Violation(_first_difference(found, goal.tokens), tokens[index].start)
    if [token.text for token in tokens[body_start : body_start + 2]] != [":", "="]:
        at = tokens[min(body_start, len(tokens) - 1)].start
        return Violation("the statement must be followed by `:=` and the proof", at)
    start, end = tokens[index].start, tokens[body_start + 1].end
    column = end - (source.rfind("\n", 0, end) + 1)
    declared = goal.declaration
    lines_ours, lines_theirs = declared.count("\n") + 1, source.count("\n", start, end)
    return Rebuilt(
        body=f"{text[:start]}{declared}\n{' ' * column}{text[end:]}",
        has_theorem=True,
        statement_line=source.count("\n", 0, start) + 1,
        statement_lines=lines_ours,
        shift=lines_ours - lines_theirs,
    )


def find_theorem(tokens: list[Token], name: str) -> int | None:
    """Return the index of the keyword of `theorem NAME`."""
    for index in range(len(tokens) - 1):
        if tokens[index].text in ("theorem", "lemma") and tokens[index + 1].text == name:
            return index
    return None


def _top_level_colon(tokens: list[Token], start: int) -> int | None:
    depth = 0
    for index in range(start, len(tokens)):
        token = tokens[index]
        if token.text in OPENING:
            depth += 1
        elif token.text in CLOSING:
            depth -= 1
        elif token.text == ":" and depth == 0:
            return index
    return None


def _blank(source: str, tokens: list[Token], gate: Gate) -> str:
    """Turn the model's imports and its plain `open`s, which the header covers, into spaces."""
    spans = [(tokens[first].start, tokens[last - 1].end) for first, last in gate.imports]
    spans += [
        (tokens[group.first].start, tokens[group.last - 1].end)
        for group in gate.groups
        if group.keyword == "open" and not group.scoped_in
    ]
    pieces, position = [], 0
    for start, end in sorted(spans):
        blank = "".join("\n" if char == "\n" else " " for char in source[start:end])
        pieces += [source[position:start], blank]
        position = end
    return "".join([*pieces, source[position:]])


def _modified(tokens: list[Token], index: int, gate: Gate) -> Violation | None:
    """Refuse anything in front of the theorem that could change its name or its meaning."""
    if [token.text for token in tokens[max(0, index - 4) : index]] == ["@", "[", "simp", "]"]:
        index -= 4
    before = tokens[index - 1].text if index else ""
    if before in MODIFIERS:
        return Violation(f"the theorem must be stated without `{before}`", tokens[index - 1].start)
    if before == "in":
        closing = {group.last: group for group in gate.groups if group.scoped_in}
        last = index
        while last in closing:
            group = closing[last]
            if group.keyword == "open":
                return Violation("`open ... in` before the theorem is not allowed", tokens[group.first].start)
            last = group.first
    return None


def _helper_clash(tokens: list[Token], goal: Goal) -> Violation | None:
    """Refuse helpers named like something in the statement: they could change what the statement resolves to."""
    used = {part for text in goal.tokens for part in text.split(".")}
    for keyword, name in pairwise(tokens):
        if keyword.text not in ("theorem", "lemma") or name.text == goal.name:
            continue
        if name.kind != "word":
            if name.text.isalpha():  # a letter that only newer releases of Lean allow in names
                return Violation("the name of a helper lemma must be a plain identifier", name.start)
            continue
        parts = name.text.split(".")
        if "_root_" in parts or used.intersection(parts):
            return Violation(f"rename the helper lemma `{name.text}`: the statement uses that name", name.start)
    return None


def _first_difference(found: list[str], wanted: tuple[str, ...]) -> str:
    for index, want in enumerate(wanted):
        got = found[index] if index < len(found) else "the end of the file"
        if got != want:
            before = " ".join(wanted[max(0, index - 4) : index])
            return f"the statement was changed: expected `{want}` after `{before}`, found `{got}`"
    return "the statement was changed"
