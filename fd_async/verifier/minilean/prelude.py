"""The constants that exist before the first theorem: connectives, Nat, Int, and the lemma table. Trusted.

Types of lemmas are elaborated from `lemmas.txt` when they are first used, so a start costs nothing.
"""

from __future__ import annotations

import functools
from importlib import resources

from fd_async.verifier.minilean.errors import Budget
from fd_async.verifier.minilean.expr import INT, NAT, PROP, TYPE, Expr, FVar, Pi, arrow, fresh_uid
from fd_async.verifier.minilean.kernel import STANDARD_AXIOMS

_ELIMINATORS = """
#And.elim {a b c : Prop} (h : a ∧ b) (f : a → b → c) : c
#Iff.elim {a b c : Prop} (h : a ↔ b) (f : (a → b) → (b → a) → c) : c
#Exists.elim {α : Type} {p : α → Prop} {c : Prop} (h : Exists p) (f : ∀ (w : α), p w → c) : c
#True.elim {c : Prop} (h : True) (f : c) : c
#Eq.subst {α : Type} {a b : α} (p : α → Prop) (h : a = b) (m : p a) : p b
"""
"""Eliminators that only tactics can name; consequences of the recursors of these types."""


def _base() -> dict[str, Expr]:
    table: dict[str, Expr] = {"Nat": TYPE, "Int": TYPE, "True": PROP, "False": PROP, "Not": arrow(PROP, PROP)}
    for name in ("And", "Or", "Iff"):
        table[name] = arrow(PROP, arrow(PROP, PROP))
    for name in ("Eq", "Ne"):
        uid = fresh_uid()
        table[name] = Pi(uid, "α", TYPE, arrow(FVar(uid), arrow(FVar(uid), PROP)), implicit=True)
    uid = fresh_uid()
    table["Exists"] = Pi(uid, "α", TYPE, arrow(arrow(FVar(uid), PROP), PROP), implicit=True)
    for kind, of in (("Nat", NAT), ("Int", INT)):
        for operation in ("HAdd", "HSub", "HMul"):
            table[f"{operation}.{kind}"] = arrow(of, arrow(of, of))
        for relation in ("LE", "LT", "GE", "GT"):
            table[f"{relation}.{kind}"] = arrow(of, arrow(of, PROP))
    table["Neg.Int"] = arrow(INT, INT)
    table["Nat.succ"] = arrow(NAT, NAT)
    return table


BASE = _base()
NAMEABLE_BASE = frozenset({"Nat", "Int", "True", "False", "Not", "And", "Or", "Iff", "Eq", "Ne", "Exists", "Nat.succ"})


@functools.cache
def _table() -> dict[str, tuple[str, frozenset[str]]]:
    """Name -> (signature text, axioms)."""
    text = resources.files("fd_async.verifier.minilean").joinpath("lemmas.txt").read_text(encoding="utf-8")
    table: dict[str, tuple[str, frozenset[str]]] = {}
    for line in [*text.splitlines(), *("! " + line for line in _ELIMINATORS.strip().splitlines())]:
        if not line or line.startswith("# "):
            continue
        axioms = frozenset({"propext"})
        if line[:2] in ("! ", "* "):
            axioms = frozenset(STANDARD_AXIOMS) if line[0] == "*" else frozenset()
            line = line[2:]
        name, _, signature = line.partition(" ")
        table[name] = (signature, axioms)
    return table


def lemma_names() -> list[str]:
    """Every lemma in the table."""
    return list(_table())


def is_nameable(name: str) -> bool:
    """Whether a user may write this name."""
    return name in NAMEABLE_BASE or (not name.startswith("#") and name in _table())


@functools.cache
def constant_type(name: str) -> Expr | None:
    """Type of a prelude constant, or None."""
    if name in BASE:
        return BASE[name]
    entry = _table().get(name)
    if entry is None:
        return None
    from fd_async.verifier.minilean.statements import signature_type  # imports this module

    return signature_type(entry[0], Budget())


def axioms_of(name: str) -> frozenset[str]:
    """Axioms that a prelude constant is reported to depend on."""
    entry = _table().get(name)
    return entry[1] if entry is not None else frozenset()
