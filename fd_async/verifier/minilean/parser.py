"""Parse one command: tokens, layout, LALR grammar (lark), syntax tree."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any

from lark import Lark, Token, Transformer
from lark.exceptions import UnexpectedToken, VisitError
from lark.lexer import Lexer

from fd_async.verifier.minilean import syntax as s
from fd_async.verifier.minilean.errors import LeanError, Unsupported
from fd_async.verifier.minilean.layout import Layout
from fd_async.verifier.minilean.lexer import refuse_token, span_of

MAX_TOKENS = 20_000
Child = s.Node | Token


class _GivenTokens(Lexer):
    """Hands over tokens that were made elsewhere."""

    def __init__(self, _conf: Any) -> None:
        pass

    def lex(self, data: Any) -> Iterator[Token]:  # type: ignore[override]
        yield from data


def _span(*parts: Any) -> s.Span:
    """From the first to the last part that has a position."""
    spans: list[s.Span] = []
    for part in parts:
        if isinstance(part, Token):
            spans.append(span_of(part))
        elif isinstance(part, s.Node):
            spans.append(part.span)
    return (spans[0][0], spans[-1][1])


def _split(items: list[Any], kind: str) -> tuple[list[Any], list[Any]]:
    """Items before and after the first token of a kind."""
    at = next(i for i, item in enumerate(items) if isinstance(item, Token) and item.type == kind)
    return items[:at], items[at + 1 :]


class _TermBuilder(Transformer):
    """Grammar rules of terms and binders to nodes."""

    def ident(self, c: list[Any]) -> s.Ident:
        return s.Ident(_span(*c), str(c[0]))

    def explicit(self, c: list[Any]) -> s.Ident:
        return s.Ident(_span(*c), str(c[1]), explicit=True)

    def dot_ident(self, c: list[Any]) -> s.DotIdent:
        return s.DotIdent(_span(*c), str(c[0])[1:])

    def numeral(self, c: list[Any]) -> s.Numeral:
        if len(c[0]) > 18:
            raise Unsupported("numeral of more than 18 digits", _span(*c))
        return s.Numeral(_span(*c), int(c[0]))

    def hole(self, c: list[Any]) -> s.Hole:
        return s.Hole(_span(*c))

    def synthetic_hole(self, c: list[Any]) -> s.Hole:
        return s.Hole(_span(*c), synthetic=True, name=str(c[0])[1:].lstrip("_"))

    def prop(self, c: list[Any]) -> s.SortTerm:
        return s.SortTerm(_span(*c), 0)

    def type(self, c: list[Any]) -> s.SortTerm:
        return s.SortTerm(_span(*c), 1)

    def sorry(self, c: list[Any]) -> s.Sorry:
        return s.Sorry(_span(*c))

    def paren(self, c: list[Any]) -> s.Paren:
        return s.Paren(_span(*c), c[1])

    def ascription(self, c: list[Any]) -> s.Ascription:
        return s.Ascription(_span(*c), c[1], c[3])

    def anonymous(self, c: list[Any]) -> s.Anonymous:
        return s.Anonymous(_span(*c), [x for x in c[1:-1] if x is not None and not isinstance(x, Token)])

    def project(self, c: list[Any]) -> s.Project:
        return s.Project(_span(*c), c[0], [part for f in c[1:] for part in str(f)[1:].split(".")])

    def application(self, c: list[Any]) -> s.Apply:
        for before, after in pairwise(c):
            if before.span[1] == after.span[0]:
                raise LeanError("expected space", (after.span[0], after.span[0] + 1))
        return s.Apply(_span(*c), c[0], list(c[1:]))

    def binary(self, c: list[Any]) -> s.Binary:
        return s.Binary(_span(*c), c[1].type if c[1].type != "REL" else str(c[1]), c[0], c[2])

    def unary(self, c: list[Any]) -> s.Unary:
        return s.Unary(_span(*c), c[0].type, c[1])

    def pipe(self, c: list[Any]) -> s.Apply:
        if isinstance(c[0], s.Apply):
            return s.Apply(_span(*c), c[0].fn, [*c[0].args, c[2]])
        return s.Apply(_span(*c), c[0], [c[2]])

    def binders(self, c: list[Any]) -> list[s.Binder]:
        return [b for group in c for b in group]

    def paren_binder(self, c: list[Any]) -> list[s.Binder]:
        names, rest = _split(c[1:], "COLON")
        return [s.Binder(_span(n), str(n), rest[0]) for n in names]

    def brace_binder(self, c: list[Any]) -> list[s.Binder]:
        names, rest = _split(c[1:], "COLON")
        return [s.Binder(_span(n), str(n), rest[0], implicit=True) for n in names]

    def bname(self, c: list[Any]) -> Token:
        if "." in c[0]:
            raise LeanError(f"invalid binder name '{c[0]}', it must be atomic", _span(*c))
        return c[0]

    def bare_binder(self, c: list[Any]) -> list[s.Binder]:
        return [s.Binder(_span(*c), str(c[0]), None)]

    def pattern_binder(self, c: list[Any]) -> list[s.Binder]:
        return [s.Binder(_span(*c), "_", None, pattern=s.Pattern(_span(*c), "tuple", parts=c[1]))]

    def fbinder(self, c: list[Any]) -> list[s.Binder]:
        return c[0]

    def fbinders(self, c: list[Any]) -> list[s.Binder]:
        binders = [b for item in c if isinstance(item, list) for b in item]
        if len(c) >= 2 and isinstance(c[-2], Token):
            if any(b.type is not None or b.pattern for b in binders):
                raise LeanError("unexpected token ':'; expected '=>'", _span(c[-2]))
            return [s.Binder(b.span, b.name, c[-1]) for b in binders]
        return binders

    def names(self, c: list[Any]) -> list[s.Binder]:
        names = [t for t in c if isinstance(t, Token) and t.type != "COLON"]
        of = c[-1] if len(c) >= 2 and isinstance(c[-2], Token) and c[-2].type == "COLON" else None
        return [s.Binder(_span(t), str(t), of) for t in names]

    def groups(self, c: list[Any]) -> list[s.Binder]:
        return self.binders(c)

    def fun(self, c: list[Any]) -> s.Fun:
        return s.Fun(_span(*(c[0], c[-1])), c[1], c[3])

    def quantified(self, c: list[Any]) -> s.Quantified:
        return s.Quantified(_span(c[0], c[3]), c[0].type, c[1], c[3])

    def by(self, c: list[Any]) -> s.By:
        return s.By(_span(c[0], c[1] if c[1].tactics else None), c[1])

    def show(self, c: list[Any]) -> s.Show:
        return s.Show(_span(*c), c[1], c[3])

    def show_by(self, c: list[Any]) -> s.Show:
        return s.Show(_span(c[0], c[2]), c[1], self.by(c[2:]))

    def have_term(self, c: list[Any]) -> s.HaveTerm:
        return s.HaveTerm(_span(c[0], c[-1]), c[1], c[-1])

    def suffices_term(self, c: list[Any]) -> s.HaveTerm:
        raise Unsupported("`suffices` as a term", _span(c[0]))

    def haveid(self, c: list[Any]) -> Any:
        return c[0] if c else None

    def have_named(self, c: list[Any]) -> s.HaveDecl:
        before, after = _split(c, "ASSIGN")
        name = str(before[0]) if before[0] is not None else "this"
        binders = [b for group in before[1:] if isinstance(group, list) for b in group]
        of = before[-1] if len(before) >= 2 and isinstance(before[-2], Token) and before[-2].type == "COLON" else None
        return s.HaveDecl(_span(*before, *after), name, binders, of, after[0])

    def have_pattern(self, c: list[Any]) -> s.HaveDecl:
        before, after = _split(c, "ASSIGN")
        of = before[-1] if isinstance(before[-2], Token) and before[-2].type == "COLON" else None
        pattern = s.Pattern(_span(c[0], c[2]), "tuple", parts=c[1])
        return s.HaveDecl(_span(c[0], c[-1]), "", [], of, after[0], pattern)

    def patterns(self, c: list[Any]) -> list[s.Pattern]:
        return [x for x in c if x is not None and not isinstance(x, Token)]

    def altpattern(self, c: list[Any]) -> s.Pattern:
        parts = [x for x in c if not isinstance(x, Token)]
        return parts[0] if len(parts) == 1 else s.Pattern(_span(*c), "or", parts=parts)

    def pattern_name(self, c: list[Any]) -> s.Pattern:
        return s.Pattern(_span(*c), "rfl" if c[0] == "rfl" else "name", str(c[0]))

    def pattern_tuple(self, c: list[Any]) -> s.Pattern:
        return s.Pattern(_span(c[0], c[2]), "tuple", parts=c[1])

    def pattern_paren(self, c: list[Any]) -> s.Pattern:
        return c[1]


class _Builder(_TermBuilder):
    """Grammar rules of tactics and commands to nodes."""

    def block(self, c: list[Any]) -> s.Block:
        tactics = [x for x in c if not isinstance(x, Token)]
        return s.Block(_span(*tactics) if tactics else (0, 0), tactics)

    def then(self, c: list[Any]) -> s.Then:
        return s.Then(_span(*c), c[0], c[2])

    def simple(self, c: list[Any]) -> s.Simple:
        return s.Simple(_span(*c), str(c[0]), c[1])

    def sorry_tactic(self, c: list[Any]) -> s.Simple:
        return s.Simple(_span(*c), "sorry")

    def cases(self, c: list[Any]) -> s.Tactic:
        if c[0] != "cases":
            raise Unsupported(f"tactic `{c[0]} ... with`", _span(c[0]))
        return s.Cases(_span(*c), c[1], c[3:])

    def by_cases(self, c: list[Any]) -> s.Typed:
        return s.Typed(_span(*c), "by_cases", str(c[1]) if c[1] is not None else "", c[3])

    def have_tactic(self, c: list[Any]) -> s.HaveTactic:
        return s.HaveTactic(_span(*c), c[1])

    def show_tactic(self, c: list[Any]) -> s.ShowTactic:
        return s.ShowTactic(_span(*c), c[1])

    def show_from_tactic(self, c: list[Any]) -> s.Tactic:
        raise Unsupported("tactic `show ... from`", _span(c[0]))

    def show_by_tactic(self, c: list[Any]) -> s.Tactic:
        raise Unsupported("tactic `show ... by`", _span(c[0]))

    def suffices_tactic(self, c: list[Any]) -> s.SufficesTactic:
        proof = self.by(c[4:]) if c[4].type == "BY" else c[5]
        return s.SufficesTactic(_span(*c), str(c[1]), c[3], proof)

    def rcases(self, c: list[Any]) -> s.Destruct:
        return s.Destruct(_span(*c), c[1], c[3])

    def obtain(self, c: list[Any]) -> s.Destruct:
        term = c[-1] if c[3] is None else s.Ascription(_span(c[-1]), c[-1], c[3])
        return s.Destruct(_span(c[0], c[-1]), term, c[1])

    def rintro(self, c: list[Any]) -> s.Rintro:
        return s.Rintro(_span(*c), c[1:])

    def cdot(self, c: list[Any]) -> s.Focus:
        return s.Focus(_span(c[0], c[1] if c[1].tactics else None), "cdot", c[1])

    def braces(self, c: list[Any]) -> s.Focus:
        return s.Focus(_span(*(c[0], c[2])), "braces", c[1])

    def parens(self, c: list[Any]) -> s.Focus:
        return s.Focus(_span(*(c[0], c[2])), "parens", c[1])

    def case(self, c: list[Any]) -> s.Focus:
        return s.Focus(
            _span(c[0], c[-1] if c[-1].tactics else c[-2]), "case", c[-1], str(c[1]), [str(t) for t in c[2:-2]]
        )

    def next(self, c: list[Any]) -> s.Focus:
        return s.Focus(_span(c[0], c[-1] if c[-1].tactics else c[-2]), "next", c[-1], "", [str(t) for t in c[1:-2]])

    def repeater(self, c: list[Any]) -> s.Repeat:
        return s.Repeat(_span(c[0], c[1] if c[1].tactics else None), str(c[0]), c[1])

    def first(self, c: list[Any]) -> s.First:
        blocks = [x for x in c if isinstance(x, s.Block)]
        return s.First(_span(c[0], blocks[-1] if blocks[-1].tactics else None), blocks)

    def alternative(self, c: list[Any]) -> s.Alternative:
        explicit = c[1] is not None and c[1].type == "AT"
        names = [t for t in c[1:-2] if t is not None and t.type != "AT"]
        end = c[-1] if c[-1].tactics else c[-2]
        return s.Alternative(_span(c[0], end), str(names[0]), [str(t) for t in names[1:]], c[-1], explicit)

    def wildcard_alternative(self, c: list[Any]) -> s.Alternative:
        raise Unsupported("`| _ =>`", _span(c[0], c[1]))

    def theorem(self, c: list[Any]) -> s.Theorem:
        name = next(t for t in c if isinstance(t, Token) and t.type == "NAME")
        binders, of, proof = c[-5], c[-3], c[-1]
        return s.Theorem(_span(c[0] or c[1], proof), str(name), _span(name), binders, of, proof)

    def example(self, c: list[Any]) -> s.Theorem:
        keyword = next(t for t in c if isinstance(t, Token) and t.type == "EXAMPLE")
        return s.Theorem(_span(keyword, c[-1]), "", _span(keyword), c[-5], c[-3], c[-1])

    def open_(self, c: list[Any]) -> s.SimpleCommand:
        return s.SimpleCommand(_span(*c), "open", [str(t) for t in c[1:]], _span(*c[1:]))

    def set_option(self, c: list[Any]) -> s.SimpleCommand:
        return s.SimpleCommand(_span(*c), "set_option", [str(t) for t in c[1:]], _span(c[1]))

    def hash_(self, c: list[Any]) -> s.SimpleCommand:
        keyword, term = str(c[0]), c[1]
        if keyword == "#check":
            return s.SimpleCommand(_span(*c), "#check", [], _span(c[0]), term)
        if keyword == "#print" and isinstance(term, s.Apply) and len(term.args) == 1:
            what, name = term.fn, term.args[0]
            if isinstance(what, s.Ident) and what.name == "axioms" and isinstance(name, s.Ident):
                return s.SimpleCommand(_span(*c), "#print axioms", [name.name], name.span)
        raise Unsupported(f"command `{keyword}`", _span(c[0]))


_LARK: Lark | None = None


def _lark() -> Lark:
    global _LARK
    if _LARK is None:
        grammar = resources.files("fd_async.verifier.minilean").joinpath("grammar.lark").read_text(encoding="utf-8")
        # Tables are most of a start. Lark keeps them under the grammar's hash; it builds them where it cannot write.
        tables = str(Path(__file__).parent / "__pycache__" / "grammar.tables")
        _LARK = Lark(grammar, parser="lalr", lexer=_GivenTokens, start="command", maybe_placeholders=True, cache=tables)
    return _LARK


def warm_up() -> None:
    """Build the parser's tables before the first question."""
    _lark()


def parse_command(tokens: list[Token]) -> tuple[s.Command | None, LeanError | None]:
    """Parse one command. With a syntax error after a complete command both parts come back, as Lean does."""
    if len(tokens) > MAX_TOKENS:
        return None, Unsupported(f"command of more than {MAX_TOKENS} tokens", _span(tokens[0]))
    placed = Layout(tokens).run()
    try:
        return _build(placed), None
    except UnexpectedToken as error:
        return _recover(placed, error, tokens)
    except LeanError as error:
        return None, error


def _recover(
    placed: list[Token], error: UnexpectedToken, tokens: list[Token]
) -> tuple[s.Command | None, LeanError | None]:
    culprit = error.token
    if culprit.type == "$END" or not culprit.value:
        near = culprit if culprit.type != "$END" else tokens[-1]
        later = [t for t in tokens if near.type != "$END" and span_of(t) >= span_of(near)]
        failure = refuse_token(later[0]) if later and culprit.type != "$END" else _at_end(tokens[-1])
    else:
        failure = refuse_token(culprit)
    at = next((i for i, token in enumerate(placed) if token is culprit), None)
    if at is None or isinstance(failure, Unsupported):
        return None, failure
    try:
        return _build(placed[:at]), failure
    except (UnexpectedToken, LeanError):
        return None, failure


def _at_end(last: Token) -> LeanError:
    return LeanError("unexpected end of input", (span_of(last)[1], span_of(last)[1]))


def _build(placed: list[Token]) -> s.Command:
    tree = _lark().parse(placed)  # type: ignore[arg-type]
    try:
        return _Builder().transform(tree)
    except VisitError as error:
        raise error.orig_exc from None
