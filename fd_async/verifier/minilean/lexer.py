"""Tokens of the fragment, with Lean's reserved words; comments become blanks so that columns stay."""

from __future__ import annotations

import re

from lark import Token

from fd_async.verifier.minilean import known
from fd_async.verifier.minilean.errors import LeanError, Unsupported

SYMBOLS = {
    "<;>": "THEN", "<|": "PIPE", ":=": "ASSIGN", "=>": "DARROW", "↦": "MAPSTO", "->": "ARROW", "→": "ARROW",
    "<->": "IFF", "↔": "IFF", "/\\": "AND", "∧": "AND", "\\/": "OR", "∨": "OR", "¬": "NOT", "∀": "FORALL",
    "∃": "EXISTS", "≤": "REL", "<=": "REL", "≥": "REL", ">=": "REL", "≠": "REL", "=": "REL", "<": "REL", ">": "REL",
    "+": "PLUS", "-": "MINUS", "*": "TIMES", "(": "LPAR", ")": "RPAR", "{": "LBRACE", "}": "RBRACE", "⟨": "LANGLE",
    "⟩": "RANGLE", ",": "COMMA", "|": "BAR", ";": "SEMI", "·": "CDOT", "@": "AT", ":": "COLON", "λ": "FUN",
    # Tokens of Lean that are not of the fragment; without them `x<-y` would read as two operators.
    "<-": "UNKNOWN", "<$>": "UNKNOWN", "<*>": "UNKNOWN", "<*": "UNKNOWN", "*>": "UNKNOWN", "<|>": "UNKNOWN",
    ">>=": "UNKNOWN", ">>": "UNKNOWN", ">>>": "UNKNOWN", "<<<": "UNKNOWN", "||": "UNKNOWN", "|||": "UNKNOWN",
    "==": "UNKNOWN", "!=": "UNKNOWN", "++": "UNKNOWN", "::": "UNKNOWN", "..": "UNKNOWN", "|>": "UNKNOWN",
    "|>.": "UNKNOWN", "<&>": "UNKNOWN", "<=<": "UNKNOWN", ">=>": "UNKNOWN", "<~": "UNKNOWN", "<~>": "UNKNOWN",
    "*.": "UNKNOWN", "=>.": "UNKNOWN", "{}": "UNKNOWN", "{{": "UNKNOWN", "}}": "UNKNOWN", "()": "UNKNOWN",
    "(·": "UNKNOWN", "@&": "UNKNOWN", "-.": "UNKNOWN", "|-": "UNKNOWN", "->.": "UNKNOWN",
}  # fmt: skip
WORDS = {
    "theorem": "THEOREM", "example": "EXAMPLE", "open": "OPEN", "set_option": "SET_OPTION", "by": "BY", "fun": "FUN",
    "forall": "FORALL", "exists": "KEYWORD", "have": "HAVE", "show": "SHOW", "from": "FROM", "suffices": "SUFFICES",
    "with": "WITH", "sorry": "SORRY", "Prop": "PROP", "Type": "TYPE", "rcases": "RCASES", "obtain": "OBTAIN",
    "rintro": "RINTRO", "first": "FIRST", "case": "CASE", "next": "NEXT", "try": "REPEATER", "repeat": "REPEATER",
    "all_goals": "REPEATER", "any_goals": "REPEATER", "by_cases": "BY_CASES", "_": "UNDERSCORE",
}  # fmt: skip
COMMAND_TYPES = {"THEOREM", "EXAMPLE", "OPEN", "SET_OPTION", "HASH", "COMMAND", "DOC", "MODULE_DOC", "ATTRIBUTE"}

_START = "A-Za-z_α-κμ-ωΑ-ΠΡ-Ωϐ-ϖℂℕℤℚℝℵ𝓐-𝔃"
_REST = _START + "0-9'!?₀-₉ₐ-ₜᵢ-ᵪ"
_NAME = f"[{_START}][{_REST}]*"
_TOKEN = re.compile(
    rf"(?P<DOC>/--)|(?P<MODULE_DOC>/-!)|(?P<ATTRIBUTE>@\[)|(?P<HASH>\#[a-z_]+)|(?P<NAME>{_NAME}(?:\.{_NAME})*)|(?P<NUM>[0-9]+)"
    rf"|(?P<HOLE>\?(?:{_NAME}))|(?P<DOTNAME>\.{_NAME}(?:\.{_NAME})*)|(?P<DOTNUM>\.[1-9][0-9]*)"
    rf"|(?P<SYMBOL>{'|'.join(re.escape(symbol) for symbol in sorted(SYMBOLS, key=len, reverse=True))})"
)


def span_of(token: Token) -> tuple[int, int]:
    """Start and end of a token; ours always have them."""
    return (token.start_pos or 0, token.end_pos or 0)


def column_of(token: Token) -> int:
    """Column of a token, from 1."""
    return token.column or 1


def blank_comments(text: str) -> str:
    """Replace `-- ...` and nested `/- ... -/` by spaces; documentation comments stay recognisable as `/--`."""
    out: list[str] = []
    depth, index = 0, 0
    while index < len(text):
        pair = text[index : index + 2]
        if pair == "/-":
            mark = text[index : index + 3]
            keep = depth == 0 and mark in ("/--", "/-!") and text[index : index + 4] not in ("/--/", "/---")
            depth += 1
            out.append(mark if keep else "  ")
            index += 3 if keep else 2
        elif depth and pair == "-/":
            depth -= 1
            out.append("  ")
            index += 2
        elif depth:
            out.append("\n" if text[index] == "\n" else " ")
            index += 1
        elif pair == "--":
            end = text.find("\n", index)
            end = len(text) if end < 0 else end
            out.append(" " * (end - index))
            index = end
        else:
            out.append(text[index])
            index += 1
    if depth:
        raise LeanError("unterminated comment", (len(text), len(text)))
    return "".join(out)


def tokenize(text: str) -> list[Token]:
    """Tokens of a text whose comments are blanked; a character we do not know becomes an UNKNOWN token and ends it."""
    tokens: list[Token] = []
    line, line_start, index = 1, 0, 0
    while index < len(text):
        char = text[index]
        if char == "\n":
            line, line_start, index = line + 1, index + 1, index + 1
            continue
        if char == " " or text[index : index + 2] == "\r\n":
            index += 1
            continue
        match = _TOKEN.match(text, index)
        value = match.group() if match else char
        kind = _kind(match, value, tokens, index)
        end = index + len(value)
        column = index - line_start + 1
        tokens.append(Token(kind, value, index, line, column, line, column + len(value), end))
        if kind == "UNKNOWN":
            break
        index = end
    return tokens


def _kind(match: re.Match[str] | None, value: str, before: list[Token], index: int) -> str:
    if match is None:
        return "UNKNOWN"
    group = match.lastgroup or "UNKNOWN"
    adjacent = bool(before) and before[-1].end_pos == index
    if group == "SYMBOL":
        return SYMBOLS[value]
    if group == "NAME":
        return "UNKNOWN" if adjacent and before[-1].type in ("NUM", "NAME") else _word_kind(value)
    if group in ("DOTNAME", "DOTNUM"):
        follows_term = adjacent and before[-1].type in ("NAME", "RPAR", "RANGLE", "FIELD")
        if follows_term:
            return "FIELD"
        return "DOTIDENT" if group == "DOTNAME" and not adjacent_to_number(before, index) else "UNKNOWN"
    return group


def adjacent_to_number(before: list[Token], index: int) -> bool:
    """Whether the token before index is a number that ends there (a decimal, or a field of a numeral)."""
    return bool(before) and before[-1].type == "NUM" and before[-1].end_pos == index


def _word_kind(value: str) -> str:
    if value in WORDS:
        return WORDS[value]
    if value in known.words("commands"):
        return "COMMAND"
    if any(part in known.words("keywords") or part in known.words("commands") for part in value.split(".")):
        return "KEYWORD"
    if any(WORDS.get(part, "KEYWORD") != "KEYWORD" for part in value.split(".")):
        return "KEYWORD"
    return "NAME"


def split_commands(tokens: list[Token]) -> list[list[Token]]:
    """One list per command; tokens before the first command form a list of their own."""
    groups: list[list[Token]] = []
    for token in tokens:
        follows_doc = bool(groups) and [t.type for t in groups[-1]] == ["DOC"]
        if (token.type in COMMAND_TYPES and not follows_doc) or not groups:
            groups.append([])
        groups[-1].append(token)
    return groups


def refuse_token(token: Token) -> LeanError:
    """The error for a token at which parsing cannot go on."""
    span = span_of(token)
    if token.type in ("UNKNOWN", "KEYWORD", "COMMAND", "ATTRIBUTE", "HASH"):
        return Unsupported(f"`{token}`", span)
    if token.type == "NAME":
        return LeanError("unexpected identifier; expected command", span)
    return LeanError(f"unexpected token '{token}'; expected command", span)
