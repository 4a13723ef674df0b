"""Syntax trees. A span is (start, end) in codepoints of the command's text."""

from __future__ import annotations

from msgspec import Struct

Span = tuple[int, int]


class Node(Struct, frozen=True):
    """Base of all nodes."""

    span: Span


class Ident(Node, frozen=True):
    """`name`, possibly dotted; `explicit` for `@name`."""

    name: str
    explicit: bool = False


class DotIdent(Node, frozen=True):
    """`.inl`, resolved from the expected type."""

    name: str


class Numeral(Node, frozen=True):
    """A natural number literal."""

    value: int


class Hole(Node, frozen=True):
    """`_`, or `?_` / `?name` when `synthetic`."""

    synthetic: bool = False
    name: str = ""


class SortTerm(Node, frozen=True):
    """`Prop` (0) or `Type` (1)."""

    level: int


class Apply(Node, frozen=True):
    """Application to one or more arguments."""

    fn: Term
    args: list[Term]


class Project(Node, frozen=True):
    """`e.1` or `e.name`."""

    term: Term
    fields: list[str]


class Binary(Node, frozen=True):
    """Infix operator by its symbol."""

    op: str
    left: Term
    right: Term


class Unary(Node, frozen=True):
    """`¬ e` or `-e`."""

    op: str
    term: Term


class Binder(Node, frozen=True):
    """One variable; `type` None when not written; `pattern` for `fun ⟨a, b⟩`."""

    name: str
    type: Term | None
    implicit: bool = False
    pattern: Pattern | None = None


class Fun(Node, frozen=True):
    """`fun binders => body`."""

    binders: list[Binder]
    body: Term


class Quantified(Node, frozen=True):
    """`∀` or `∃`."""

    op: str
    binders: list[Binder]
    body: Term


class Anonymous(Node, frozen=True):
    """`⟨a, b⟩`."""

    args: list[Term]


class Ascription(Node, frozen=True):
    """`(e : T)`."""

    term: Term
    type: Term


class Paren(Node, frozen=True):
    """`(e)`."""

    term: Term


class By(Node, frozen=True):
    """`by tactics`."""

    block: Block


class Sorry(Node, frozen=True):
    """`sorry` as a term."""


class Show(Node, frozen=True):
    """`show T from e`."""

    type: Term
    term: Term


class HaveTerm(Node, frozen=True):
    """`have name binders : T := e; body`."""

    decl: HaveDecl
    body: Term


class HaveDecl(Node, frozen=True):
    """Shared by the tactic and the term; `pattern` for `have ⟨a, b⟩ := e`."""

    name: str
    binders: list[Binder]
    type: Term | None
    value: Term
    pattern: Pattern | None = None


Term = (
    Ident
    | DotIdent
    | Numeral
    | Hole
    | SortTerm
    | Apply
    | Project
    | Binary
    | Unary
    | Fun
    | Quantified
    | Anonymous
    | Ascription
    | Paren
    | By
    | Sorry
    | Show
    | HaveTerm
)


class Pattern(Node, frozen=True):
    """`x`, `_`, `rfl`, `⟨p, q⟩` (tuple) or `p | q` (alternatives)."""

    kind: str
    name: str = ""
    parts: list[Pattern] = []


class Block(Node, frozen=True):
    """Tactics in sequence."""

    tactics: list[Tactic]


class Simple(Node, frozen=True):
    """`name`, or `name term`: most tactics."""

    name: str
    term: Term | None = None


class Typed(Node, frozen=True):
    """`by_cases h : p`."""

    name: str
    var: str
    term: Term


class HaveTactic(Node, frozen=True):
    """`have ...`; `show` for `show T` (then only `decl.type` counts)."""

    decl: HaveDecl


class ShowTactic(Node, frozen=True):
    """`show T`."""

    type: Term


class SufficesTactic(Node, frozen=True):
    """`suffices h : T from e` or `suffices h : T by tactics`."""

    name: str
    type: Term
    term: Term


class Alternative(Node, frozen=True):
    """`| ctor names => block`."""

    ctor: str
    names: list[str]
    block: Block
    explicit: bool = False


class Cases(Node, frozen=True):
    """`cases e with alternatives`."""

    term: Term
    alternatives: list[Alternative]


class Destruct(Node, frozen=True):
    """`rcases e with p`, `obtain p := e`."""

    term: Term
    pattern: Pattern


class Rintro(Node, frozen=True):
    """`rintro p q`."""

    patterns: list[Pattern]


class Focus(Node, frozen=True):
    """`· block`, `{ block }`, `(block)`, `case tag names => block`, `next names => block`, by `kind`."""

    kind: str
    block: Block
    tag: str = ""
    names: list[str] = []


class Repeat(Node, frozen=True):
    """`try`, `repeat`, `all_goals`, `any_goals` with a block."""

    kind: str
    block: Block


class First(Node, frozen=True):
    """`first | a | b`."""

    blocks: list[Block]


class Then(Node, frozen=True):
    """`a <;> b`."""

    first: Tactic
    second: Tactic


Tactic = (
    Simple
    | Typed
    | HaveTactic
    | ShowTactic
    | SufficesTactic
    | Cases
    | Destruct
    | Rintro
    | Focus
    | Repeat
    | First
    | Then
)


class Theorem(Node, frozen=True):
    """`theorem` or, with an empty name, `example`; `name_span` is where Lean reports on the declaration."""

    name: str
    name_span: Span
    binders: list[Binder]
    type: Term
    proof: Term


class SimpleCommand(Node, frozen=True):
    """`open`, `set_option`, `#print axioms`, `#check`, by `kind`."""

    kind: str
    words: list[str]
    word_span: Span
    term: Term | None = None


Command = Theorem | SimpleCommand
