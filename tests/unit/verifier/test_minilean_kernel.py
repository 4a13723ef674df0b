"""The trusted core against hand-made terms."""

from __future__ import annotations

from typing import Literal

import pytest

from fd_async.verifier.minilean import prelude
from fd_async.verifier.minilean.errors import Budget, OutOfSteps
from fd_async.verifier.minilean.expr import (
    FALSE,
    INT,
    NAT,
    PROP,
    TRUE,
    TYPE,
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
    alpha_equal,
    app,
    arrow,
    fresh_uid,
    substitute,
)
from fd_async.verifier.minilean.kernel import Kernel, KernelError

P, Q, H = fresh_uid(), fresh_uid(), fresh_uid()
ONE, TWO = Num(1, "Nat"), Num(2, "Nat")


def kernel(steps: int = 10_000) -> Kernel:
    return Kernel(prelude.constant_type, Budget(steps))


def eq(left: Expr, right: Expr, of: Expr = NAT) -> Expr:
    return app("Eq", of, left, right)


IDENTITY = Pi(P, "p", PROP, arrow(FVar(P), FVar(P)))
IDENTITY_PROOF = Lam(P, "p", PROP, Lam(H, "h", FVar(P), FVar(H)))


def test_a_proof_is_accepted() -> None:
    """The identity on a proposition."""
    kernel().check_proof(IDENTITY_PROOF, IDENTITY)


def hidden(method: Literal["omega", "decide"]) -> tuple[Expr, Expr]:
    """∀ x, x = 1 → ∀ x, x = 1, in which both binders carry the same number; false."""
    inner = Pi(P, "x", NAT, eq(FVar(P), ONE))
    prop = Pi(P, "x", NAT, arrow(eq(FVar(P), ONE), inner))
    return Decided(method, prop), prop


def taken_from_outside() -> tuple[Expr, Expr]:
    """∀ x, x = 1 → ∀ x, x = 1 again, with the outer `x` free in what is decided."""
    inner = Decided("omega", arrow(eq(FVar(P), ONE), Pi(P, "x", NAT, eq(FVar(P), ONE))))
    return Lam(P, "x", NAT, inner), Pi(P, "x", NAT, inner.prop)


BAD: dict[str, tuple[Expr, Expr]] = {
    "a free variable": (FVar(H), TRUE),
    "a hole": (MVar(1), TRUE),
    "omega with a hidden variable": hidden("omega"),
    "decide with a hidden variable": hidden("decide"),
    "omega with a hidden variable of the context": taken_from_outside(),
    "an unknown constant": (Const("magic"), FALSE),
    "a proof of something else": (Const("True.intro"), FALSE),
    "the proof of another proposition": (
        Lam(P, "p", PROP, Lam(Q, "q", PROP, Lam(H, "h", FVar(P), FVar(H)))),
        Pi(P, "p", PROP, Pi(Q, "q", PROP, arrow(FVar(P), FVar(Q)))),
    ),
    "a decision of a falsehood": (Decided("decide", eq(ONE, TWO)), eq(ONE, TWO)),
    "a decision of False": (Decided("decide", FALSE), FALSE),
    "an omega step for a falsehood": (Decided("omega", FALSE), FALSE),
    "an omega step for an open claim": (
        Decided("omega", Pi(P, "x", NAT, eq(FVar(P), Num(0, "Nat")))),
        Pi(P, "x", NAT, eq(FVar(P), Num(0, "Nat"))),
    ),
    "a decision by an unknown method": (Decided("magic", TRUE), TRUE),  # type: ignore[arg-type]
    "a decision of a value": (Decided("decide", ONE), ONE),
    "reflexivity for different numbers": (app("Eq.refl", NAT, ONE), eq(ONE, TWO)),
    "reflexivity at another type": (app("Eq.refl", NAT, ONE), eq(Num(1, "Int"), Num(1, "Int"), INT)),
    "an ill-typed equality": (app("Eq.refl", NAT, ONE), eq(ONE, Num(1, "Int"))),
    "applying what is no function": (App(Const("True.intro"), ONE), TRUE),
    "applying to the wrong type": (app("False.elim", FALSE, Const("True.intro")), FALSE),
    "a statement that is no proposition": (ONE, NAT),
    "a negative numeral": (app("Eq.refl", NAT, Num(-1, "Nat")), eq(Num(-1, "Nat"), Num(-1, "Nat"))),
    "a universe too high": (app("Eq.refl", Sort(5), Sort(4)), eq(Sort(4), Sort(4), Sort(5))),
    "Type in Type": (Lam(P, "t", TYPE, Const("True.intro")), Pi(P, "t", Sort(2), TRUE)),
    "an inner variable of the same number": (
        Lam(P, "p", PROP, Lam(Q, "q", PROP, Lam(H, "h", FVar(P), Lam(H, "g", FVar(Q), FVar(H))))),
        Pi(P, "p", PROP, Pi(Q, "q", PROP, arrow(FVar(P), arrow(FVar(Q), FVar(P))))),
    ),
    "a variable outside its binder": (
        App(Lam(H, "h", TRUE, FVar(H)), FVar(H)),
        TRUE,
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_forged_terms_are_refused(name: str) -> None:
    """Each would prove something false or ill typed."""
    proof, statement = BAD[name]
    with pytest.raises(KernelError):
        kernel().check_proof(proof, statement)


def test_a_sorry_is_recorded_as_an_axiom() -> None:
    """It type-checks, and the theorem depends on `sorryAx`."""
    checker = kernel()
    checker.check_proof(SorryProof(FALSE), FALSE)
    assert checker.axioms == {"sorryAx"}


def test_shadowed_binders_are_scoped_correctly() -> None:
    """Binders that share a number behave as nested scopes."""
    inner = Lam(H, "g", FVar(Q), FVar(H))
    proof = Lam(P, "p", PROP, Lam(Q, "q", PROP, Lam(H, "h", FVar(P), inner)))
    kernel().check_proof(proof, Pi(P, "p", PROP, Pi(Q, "q", PROP, arrow(FVar(P), arrow(FVar(Q), FVar(Q))))))
    assert substitute(inner, H, ONE) == inner
    assert not alpha_equal(Lam(P, "x", NAT, Lam(Q, "y", NAT, FVar(P))), Lam(P, "x", NAT, Lam(Q, "y", NAT, FVar(Q))))
    assert not alpha_equal(Lam(P, "x", NAT, Lam(Q, "y", NAT, FVar(P))), Lam(P, "x", NAT, Lam(P, "y", NAT, FVar(P))))
    assert alpha_equal(Lam(P, "x", NAT, Lam(P, "y", NAT, FVar(P))), Lam(P, "x", NAT, Lam(Q, "y", NAT, FVar(Q))))


def test_definitions_unfold_and_arithmetic_computes() -> None:
    """`¬p` is `p → False`, `a < b` is `a + 1 ≤ b`, `2 + 2` is `4`, `n + 1 + 1` is `n + 2`; `1 + n` is not `n + 1`."""
    check = kernel()
    n = FVar(P)
    add = lambda a, b: app("HAdd.Nat", a, b)  # noqa: E731
    assert check.is_defeq(app("Not", TRUE), arrow(TRUE, FALSE))
    assert check.is_defeq(app("LT.Nat", n, TWO), app("LE.Nat", add(n, ONE), TWO))
    assert check.is_defeq(app("GT.Int", n, n), app("LT.Int", n, n))
    assert check.is_defeq(add(TWO, TWO), Num(4, "Nat"))
    assert check.is_defeq(add(add(n, ONE), ONE), add(n, TWO))
    assert not check.is_defeq(add(ONE, n), add(n, ONE))
    assert not check.is_defeq(add(n, ONE), n)
    assert not check.is_defeq(app("LT.Nat", n, TWO), app("LE.Nat", n, TWO))
    assert not check.is_defeq(app("HSub.Int", Num(1, "Int"), Num(2, "Int")), Num(0, "Int"))


def test_checking_stops_when_the_budget_is_spent() -> None:
    """A large term ends in the timeout error, which nothing catches as a success."""
    term: Expr = Const("True.intro")
    for _ in range(200):
        term = App(Lam(fresh_uid(), "h", TRUE, Const("True.intro")), term)
    with pytest.raises(OutOfSteps):
        kernel(steps=100).check_proof(term, TRUE)
