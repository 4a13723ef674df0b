"""Layout of tactic blocks: insert block tokens into the token stream, by Lean's column rules.

A block starts at the column of its first tactic; a later line at that column starts the next tactic, one further left
ends the block, one further right continues the tactic. A nested block must be indented more than its surroundings.
Where Lean accepts an odder layout we report a syntax error instead.
"""

from __future__ import annotations

from collections.abc import Iterable

from lark import Token
from msgspec import Struct

from fd_async.verifier.minilean.lexer import column_of

OPENERS = {"LPAR": "RPAR", "LBRACE": "RBRACE", "LANGLE": "RANGLE"}
CLOSERS = set(OPENERS.values())
BLOCK_WORDS = {"try", "repeat", "all_goals", "any_goals"}


class Context(Struct):
    """An open construct: `block`, `alts`, `first`, `quant`, `have`, or a bracket by its closing token type."""

    kind: str
    column: int
    bracket: bool = False


class Layout:
    """One pass over the tokens of a command."""

    def __init__(self, tokens: Iterable[Token]) -> None:
        self.tokens = list(tokens)
        self.out: list[Token] = []
        self.stack: list[Context] = []
        self.open_next = False
        """The next token is the first of a tactic block."""
        self.arrow_opens = False
        """The next `=>` belongs to an alternative or a `case`, and opens a block."""
        self.alts_next = ""
        """The next `|` opens this list: `alts` after `with`, `first` after `first`."""
        self.pattern = False
        """Inside an rcases pattern, where `|` separates patterns."""

    def run(self) -> list[Token]:
        """Return the tokens with _OPEN, _CLOSE, _SEP and _HSEP inserted."""
        line = 0
        for token in self.tokens:
            first = token.line != line
            line = token.line
            self._place(token, first)
        if self.open_next:
            self._insert("_OPEN", self.tokens[-1])
            self._insert("_CLOSE", self.tokens[-1])
        while self.stack:
            self._pop(self.tokens[-1])
        return self.out

    def _insert(self, kind: str, near: Token) -> None:
        self.out.append(Token.new_borrow_pos(kind, "", near))

    def _pop(self, near: Token) -> None:
        if self.stack.pop().kind == "block":
            self.pattern = False
            self._insert("_CLOSE", near)

    def _column_floor(self) -> int:
        """Column that a new block on a new line must exceed."""
        return max((c.column for c in self.stack if c.kind in ("block", "alts", "first")), default=1)

    def _place(self, token: Token, first: bool) -> None:
        if self.open_next:
            self.open_next = False
            self._insert("_OPEN", token)
            if (first and column_of(token) <= self._column_floor()) or token.type in CLOSERS:
                self._insert("_CLOSE", token)
            else:
                self.stack.append(Context("block", column_of(token)))
                first = False
        if first:
            self._new_line(token)
        self._close_for(token)
        self._emit(token)

    def _new_line(self, token: Token) -> None:
        while self.stack and not self.stack[-1].bracket:
            top = self.stack[-1]
            if top.kind == "have":
                if column_of(token) <= top.column:
                    self.stack.pop()
                    self._insert("_HSEP", token)
                return
            elif top.kind in ("alts", "first"):
                if token.type == "BAR" and column_of(token) >= top.column:
                    return
                self.stack.pop()
            elif top.kind == "block":
                if column_of(token) > top.column:
                    return
                if column_of(token) == top.column:
                    if token.type not in ("BAR", "THEN") and token.type not in CLOSERS and not self.alts_next:
                        self.pattern = False
                        if self.out[-1].type not in ("SEMI", "THEN"):
                            self._insert("_SEP", token)
                    return
                self._pop(token)
            else:
                return

    def _close_for(self, token: Token) -> None:
        """Close the blocks that a bracket, comma or bar ends on the same line."""
        if token.type in CLOSERS:
            while self.stack and not self.stack[-1].bracket:
                self._pop(token)
            if self.stack and self.stack[-1].kind == token.type:
                self.stack.pop()
        elif token.type == "COMMA":
            while self.stack and not self.stack[-1].bracket and self.stack[-1].kind != "quant":
                self._pop(token)
            if self.stack and self.stack[-1].kind == "quant":
                self.stack.pop()
        elif token.type == "BAR" and not self.alts_next and not self.pattern:
            owner = self._bar_owner(token)
            while owner is not None and self.stack[-1] is not owner:
                self._pop(token)
        elif token.type == "SEMI" and self.stack and self.stack[-1].kind == "have":
            self.stack.pop()
            token.type = "_HSEP"

    def _bar_owner(self, token: Token) -> Context | None:
        for context in reversed(self.stack):
            if context.bracket:
                return None
            if context.kind in ("alts", "first") and column_of(token) >= context.column:
                return context
        return None

    def _at_tactic_start(self) -> bool:
        return bool(self.out) and self.out[-1].type in ("_OPEN", "_SEP", "SEMI", "THEN")

    def _emit(self, token: Token) -> None:
        starts = self._at_tactic_start()
        word = str(token)
        if token.type == "BAR" and self.alts_next:
            self.stack.append(Context(self.alts_next, column_of(token)))
            self.alts_next = ""
        self.out.append(token)
        owner = self.stack[-1].kind if self.stack else ""
        if token.type == "BAR" and not self.pattern:
            self.arrow_opens = owner == "alts"
            self.open_next = owner == "first"
        elif token.type == "DARROW" and self.arrow_opens:
            self.arrow_opens = False
            self.open_next = True
        elif token.type in ("FORALL", "EXISTS"):
            self.stack.append(Context("quant", column_of(token)))
        elif token.type in OPENERS:
            self.stack.append(Context(OPENERS[token.type], column_of(token), bracket=True))
            self.open_next = starts and token.type != "LANGLE"
        elif token.type in ("BY", "CDOT"):
            self.open_next = True
        elif token.type == "HAVE" and not starts:
            self.stack.append(Context("have", column_of(token)))
        elif token.type == "WITH":
            self.alts_next = "" if self.pattern else "alts"
        elif token.type in ("RCASES", "OBTAIN", "RINTRO"):
            self.pattern = True
        elif token.type in ("ASSIGN", "SEMI", "THEN"):
            self.pattern = False
        elif starts:
            self._tactic_word(token, word)

    def _tactic_word(self, token: Token, word: str) -> None:
        if token.type == "FIRST":
            self.alts_next = "first"
        elif token.type in ("CASE", "NEXT"):
            self.arrow_opens = True
        elif token.type == "REPEATER" and word in BLOCK_WORDS:
            self.open_next = True
