"""Print terms and goals as Lean does by default."""

from __future__ import annotations

from fd_async.verifier.minilean.expr import (
    App,
    Const,
    Decided,
    Expr,
    FVar,
    Lam,
    MVar,
    Num,
    Pi,
    SorryProof,
    Sort,
    occurs,
    shown_uid,
    spine,
)
from fd_async.verifier.minilean.meta import Context, Local, Meta

MAX_CHARS = 4000
MAX_NODES = 2000
_INFIX = {
    "Iff": ("↔", 20, 21, 21), "Or": ("∨", 30, 31, 30), "And": ("∧", 35, 36, 35), "Eq": ("=", 50, 51, 51),
    "Ne": ("≠", 50, 51, 51), "LE": ("≤", 50, 51, 51), "LT": ("<", 50, 51, 51), "GE": ("≥", 50, 51, 51),
    "GT": (">", 50, 51, 51), "HAdd": ("+", 65, 65, 66), "HSub": ("-", 65, 65, 66), "HMul": ("*", 70, 70, 71),
}  # fmt: skip
_ARITY = {"Eq": 3, "Ne": 3}


class Printer:
    """Prints under one context; names of locals come from the elaborator's state."""

    def __init__(self, meta: Meta, context: Context = ()) -> None:
        self.meta = meta
        self.names = display_names(context)
        self.left = MAX_NODES

    def term(self, expr: Expr, precedence: int = 0) -> str:
        """Print with parentheses where the surroundings bind tighter than the term."""
        self.left -= 1
        if self.left < 0:
            return "⋯"
        text, own = self._term(self.meta.whnf_core(expr))
        return f"({text})" if own < precedence else text

    def _term(self, expr: Expr) -> tuple[str, int]:
        match expr:
            case Sort(level):
                return ("Prop", 1024) if level == 0 else ("Type", 1024)
            case Const(name):
                return name, 1024
            case FVar(uid):
                return self.names.get(uid) or self.meta.locals[uid].name, 1024
            case MVar(uid):
                return f"?m.{shown_uid(uid)}", 1024
            case Num(value, _):
                return str(value), 1024
            case Decided() | SorryProof():
                return "sorry" if isinstance(expr, SorryProof) else "of_decide_eq_true", 1024
            case Pi():
                return self._pi(expr)
            case Lam():
                return f"fun {self._name(expr)} => {self.term(expr.body)}", 0
            case App():
                return self._app(expr)
        return "?", 1024

    def _name(self, binder: Pi | Lam) -> str:
        self.names[binder.uid] = binder.name
        self.meta.locals.setdefault(binder.uid, Local(binder.uid, binder.name, binder.type))
        return binder.name

    def _pi(self, expr: Pi) -> tuple[str, int]:
        independent = not expr.implicit and not occurs(expr.uid, self.meta.instantiate(expr.body))
        if independent and (expr.name.endswith("✝") or self._is_prop(expr.type)):
            return f"{self.term(expr.type, 26)} → {self.term(expr.body, 25)}", 25
        opening, closing = ("{", "}") if expr.implicit else ("(", ")")
        domain = self.term(expr.type)
        return f"∀ {opening}{self._name(expr)} : {domain}{closing}, {self.term(expr.body)}", 0

    def _is_prop(self, of: Expr) -> bool:
        return self.meta.whnf(self.meta.infer(of)) == Sort(0)

    def _app(self, expr: App) -> tuple[str, int]:
        head, args = spine(expr)
        if isinstance(head, Const):
            name = head.name.split(".")[0]
            if (name in _INFIX and len(args) == _ARITY.get(name, 2) and head.name in _INFIX) or self._typed_operator(
                head
            ):
                if name in _INFIX and len(args) >= 2:
                    symbol, own, left, right = _INFIX[name]
                    return f"{self.term(args[-2], left)} {symbol} {self.term(args[-1], right)}", own
                if name == "Neg":
                    return f"-{self.term(args[0], 75)}", 75
            if head.name == "Not" and len(args) == 1:
                return f"¬{self.term(args[0], 40)}", 1024
            if head.name == "Exists" and len(args) == 2:
                return self._exists(args[1])
            args = self._explicit(head, args)
        if not args:
            return self.term(head, 1024), 1024
        return " ".join([self.term(head, 1024), *[self.term(arg, 1024) for arg in args]]), 1023

    def _typed_operator(self, head: Const) -> bool:
        return head.name.endswith((".Nat", ".Int"))

    def _explicit(self, head: Const, args: list[Expr]) -> list[Expr]:
        shown: list[Expr] = []
        of = self.meta.constant_type(head.name)
        for arg in args:
            if not isinstance(of, Pi):
                return args
            if not of.implicit:
                shown.append(arg)
            of = of.body
        return shown

    def _exists(self, predicate: Expr) -> tuple[str, int]:
        predicate = self.meta.whnf_core(predicate)
        if isinstance(predicate, Lam):
            return f"∃ {self._name(predicate)}, {self.term(predicate.body)}", 0
        return f"∃ x, {self.term(predicate, 1023)} x", 0


def display_names(context: Context) -> dict[int, str]:
    """Names as shown: a shadowed or inaccessible one gets a dagger."""
    names: dict[int, str] = {}
    seen: set[str] = set()
    for local in reversed(context):
        name = local.name
        if local.name in seen or not local.accessible:
            name = name if name.endswith("✝") else name + "✝"
        seen.add(local.name)
        names[local.uid] = name
    return names


def goal_text(meta: Meta, context: Context, target: Expr, tag: str = "") -> str:
    """A goal as in Lean's messages; equal neighbours are grouped (`p q : Prop`)."""
    printer = Printer(meta, context)
    lines: list[tuple[list[str], str]] = []
    for local in context:
        of = printer.term(local.type)
        if lines and lines[-1][1] == of:
            lines[-1][0].append(printer.names[local.uid])
        else:
            lines.append(([printer.names[local.uid]], of))
    text = [f"case {tag}"] if tag else []
    text += [f"{' '.join(names)} : {of}" for names, of in lines]
    text.append(f"⊢ {printer.term(target)}")
    joined = "\n".join(text)
    return joined if len(joined) <= MAX_CHARS else joined[:MAX_CHARS] + " ⋯"
