"""Lemmas and tactics of accepted proofs: from the elaborator's tree, and from tokens where there is none."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from msgspec import Raw

from fd_async.errors import VerifierError
from fd_async.types import Statement, Verdict
from fd_async.verifier.accounting import Accountant, Unreadable, question, read_theorems, read_tree
from fd_async.verifier.backend import CheckTimeout, LeanAnswer, LeanRequest
from fd_async.verifier.judge import Judge, Prepared, prepare
from fd_async.verifier.messages import Message
from fd_async.verifier.source.names import scan
from fd_async.verifier.source.reconstruct import Rebuilt
from tests.unit.verifier.conftest import AXIOMS

pytestmark = pytest.mark.anyio

RECORDED = Path(__file__).parents[4] / "shared/data/repl_cases/core"
ENVIRONMENT = ["Nat.add_comm", "LT.lt.le", "mul_pos", "Nat.lt_irrefl", "Real.sin_sq_add_cos_sq", "foo₀.bar'"]
STATEMENT = Statement(name="t", formal_statement="theorem t (x y : ℕ) (h₀ : x < y) : x ≤ y := by sorry")
CODE = "theorem t (x y : ℕ) (h₀ : x < y) : x ≤ y := by\n  have h_1 := h₀.le\n  rw [Nat.add_comm] <;> exact h_1\n"


def node(kind: str, stx: str, expr: str = "", *, line: int = 5, args: str = "", **more: Any) -> dict[str, Any]:
    """One node as the REPL writes it; `args` are the kinds of the syntax's children."""
    place = {"line": line, "column": 0}
    span = {"synthetic": more.pop("synthetic", False), "start": place, "finish": place}
    children = more.pop("children", [])
    syntax = {"range": span, "pp": stx, "kind": more.pop("stx_kind", "ident"), "argKinds": args.split()}
    body: dict[str, Any] = {"stx": syntax, **more}
    body |= {"expr": expr, "isBinder": more.get("isBinder", False)} if kind == "TermInfo" else {"goalsBefore": ["⊢ p"]}
    return {"kind": kind, "node": body, "children": children}


TREE = [
    node("CommandInfo", "theorem t ...", stx_kind="Parser.Command.declaration", children=[
        node("TermInfo", "Nat.le_refl", "@Nat.le_refl", line=3),
        node("TermInfo", "Nat.in_header", "@Nat.in_header", line=2),
        node("TermInfo", "h_1", "h_1", isBinder=True),
        {"kind": "CompletionInfo", "node": None, "children": []},
        {"goalState": "⊢ p"},
        node("TacticInfo", "by ...", args="by tacticSeq", stx_kind="Lean.Parser.Term.byTactic", children=[
            node("TacticInfo", "by", stx_kind="by"),
            node("TacticInfo", "have h_1 := h₀.le; rw [..]", args="null", stx_kind="Parser.seq"),
            node("TacticInfo", "have h_1 := h₀.le", args="have decl", stx_kind="Parser.have"),
            node("TermInfo", "h₀.le", "LT.lt.le h₀", children=[node("TermInfo", "le", "@LT.lt.le")]),
            node("TermInfo", "h_1", "h_1"),
            node("TacticInfo", "rw [Nat.add_comm]", args="rw cfg", stx_kind="Parser.Tactic.rwSeq", children=[
                node("TacticInfo", "rewrite [Nat.add_comm]", args="rewrite null", synthetic=True),
                node("TacticInfo", "Nat.add_comm", args="null ident", stx_kind="Parser.Tactic.rwRule"),
                node("TermInfo", "add_comm", "Nat.add_comm"),
                node("TermInfo", "rfl", "@Eq.refl", synthetic=True),
                node("TermInfo", "foo₀.bar'", "@foo₀.bar'.{u}"),
            ]),
            node("TacticInfo", "(nlinarith)", args="( null", stx_kind="Lean.Parser.Tactic.paren", children=[
                node("TacticInfo", "nlinarith", args="nlinarith null", stx_kind="Mathlib.Tactic.nlinarith")]),
            node("TacticInfo", "induction' x", args="«induction'» null", stx_kind="Mathlib.Tactic.induction'"),
        ]),
    ]),
]  # fmt: skip


class Environment:
    """A backend that answers the two requests of an account as Lean would; `fails` maps a request to a failure."""

    toolchain, root = "none", "_root_."

    def __init__(self, name: str, fails: Callable[[LeanRequest], Exception | None] = lambda request: None) -> None:
        self.name = name
        self.requests: list[LeanRequest] = []
        self._fails = fails

    async def run(self, request: LeanRequest) -> LeanAnswer:
        """Give the tree, name the theorems, or prove the file."""
        self.requests.append(request)
        failure = self._fails(request)
        if failure is not None:
            raise failure
        messages, infotree, probe = [], None, None
        if request.infotree:
            infotree = Raw(json.dumps(TREE).encode())
        elif request.body.startswith("#eval"):
            messages = [Message(data=_theorems(request.body), severity="info")]
        elif request.probe:
            name = request.probe.split()[1]
            probe = [Message(data=f"'{name}' depends on axioms: [propext]", severity="info")]
        return LeanAnswer(messages=messages, num_sorries=0, seconds=0.1, probe=probe, infotree=infotree)

    def statistics(self) -> Mapping[str, float]:
        """No counters."""
        return {}


def _theorems(command: str) -> str:
    """What our command logs; with `resolveGlobalName`, `open Nat` holds."""
    (nonce,) = re.findall(r'#\["(\w+)"\]', command)
    (table,) = re.findall(r"for parts in \((.*) : _root_.List", command)
    names = [".".join(parts) for parts in json.loads(table)]
    if "resolveGlobalName" in command:
        names = [full for name in names for full in (name, f"Nat.{name}")]
    return " ".join([nonce, *[name for name in names if name in ENVIRONMENT]])


def _rebuilt(code: str, statement: Statement = STATEMENT) -> Rebuilt:
    prepared = prepare(code, statement, "")
    assert isinstance(prepared, Prepared)
    return prepared.rebuilt


async def _account(backend: Environment, code: str = CODE) -> tuple[Verdict, Accountant]:
    accountant = Accountant()
    verdict = Verdict(kind="proved", seconds=0.2)
    return await accountant.account(verdict, backend, LeanRequest("import Mathlib", ""), _rebuilt(code)), accountant


def test_the_tree_tells_constants_and_tactics_that_the_model_wrote() -> None:
    """Dot notation and `open` are resolved; synthetic syntax, binders, sequences and rules of `rw` do not count."""
    uses = read_tree(json.dumps(TREE).encode(), Rebuilt("", has_theorem=True, statement_line=1, statement_lines=1))
    assert uses.lemmas == ["LT.lt.le", "Nat.add_comm", "foo₀.bar'"]
    assert uses.tactics == ["have", "induction'", "nlinarith", "rw"]


@pytest.mark.skipif(not RECORDED.exists(), reason="needs the recorded REPL answers in ../shared/data/repl_cases")
def test_recorded_trees_are_read() -> None:
    """What the REPL of Lean 4.33 sent: full, and without terms. `Prop` is left to the environment, `h` is bound."""
    found = {}
    for name in ("infotree_theorem", "infotree"):
        answer = json.JSONDecoder().raw_decode((RECORDED / f"{name}.expected.out").read_text(encoding="utf-8"))[0]
        found[name] = read_tree(json.dumps(answer["infotree"]).encode())
    assert (found["infotree_theorem"].lemmas, found["infotree_theorem"].tactics) == (["Prop"], ["exact"])
    assert (found["infotree"].lemmas, found["infotree"].tactics) == ([], ["constructor"])


@pytest.mark.parametrize("infotree", [b"{}", b"[1]", b"[" * 100_000, b'[{"children": ' * 5000, b"\xff"])
def test_an_unreadable_tree_is_an_error_of_its_own(infotree: bytes) -> None:
    """Wrong, cut or too deep JSON never escapes as another exception."""
    with pytest.raises(Unreadable):
        read_tree(infotree)


async def test_an_account_costs_two_requests_and_keeps_what_the_environment_calls_theorems() -> None:
    """One for the tree, one for the names; helpers and definitions are no theorems of the header."""
    backend = Environment("repl")
    verdict, accountant = await _account(backend)
    assert verdict.lemmas == ["LT.lt.le", "Nat.add_comm", "foo₀.bar'"]
    assert verdict.tactics == ["have", "induction'", "nlinarith", "rw"]
    assert [request.infotree for request in backend.requests] == [True, False]
    assert {request.header for request in backend.requests} == {"import Mathlib"}
    assert accountant.counts == {"accounted_by_tree": 1, "accounted_by_text": 0, "accounting_errors": 0}


@pytest.mark.parametrize("error", [CheckTimeout("slow"), VerifierError("no worker")])
async def test_a_failed_account_never_fails_the_verdict(error: Exception) -> None:
    """Without the tree the tokens are resolved; without any answer they are kept as written."""
    verdict, accountant = await _account(Environment("repl", lambda request: error if request.infotree else None))
    assert (verdict.kind, verdict.lemmas, verdict.tactics) == ("proved", ["Nat.add_comm"], ["exact", "have", "rw"])
    assert accountant.counts["accounting_errors"] == 1
    verdict, accountant = await _account(Environment("repl", lambda request: error))
    assert (verdict.kind, verdict.lemmas, verdict.tactics) == ("proved", ["Nat.add_comm"], ["exact", "have", "rw"])
    assert accountant.counts == {"accounted_by_tree": 0, "accounted_by_text": 1, "accounting_errors": 2}


async def test_names_as_written_are_resolved_in_the_headers_namespaces() -> None:
    """A server that gives no tree: `add_comm` under `open Nat` is `Nat.add_comm`."""
    backend = Environment("kimina", lambda request: VerifierError("no tree") if request.infotree else None)
    verdict, _ = await _account(backend, CODE.replace("Nat.add_comm", "add_comm"))
    assert verdict.lemmas == ["Nat.add_comm"]
    assert len(backend.requests) == 2


async def test_minilean_knows_its_own_theorems_without_a_request() -> None:
    """Constructors, definitions and unknown names are left out."""
    backend = Environment("minilean")
    code = "theorem t (x y : ℕ) (h₀ : x < y) : x ≤ y := by\n  exact Nat.le_of_lt (id (And.intro h₀ Nat.foo).left)\n"
    verdict, _ = await _account(backend, code)
    assert (verdict.lemmas, verdict.tactics, backend.requests) == (["Nat.le_of_lt"], ["exact"], [])


async def test_only_proved_files_are_accounted_for() -> None:
    """The judge asks after acceptance; a refused file costs nothing more."""
    backend = Environment("repl")
    judge = Judge(backend, "", frozenset(AXIOMS), 400)
    assert (await judge.judge(CODE, STATEMENT)).lemmas == ["LT.lt.le", "Nat.add_comm", "foo₀.bar'"]
    assert len(backend.requests) == 3
    refused = await judge.judge(CODE.replace("exact h_1", "sorry"), STATEMENT)
    assert (refused.kind, refused.lemmas, len(backend.requests)) == ("sorry", [], 4)


def test_the_question_takes_plain_identifiers_only() -> None:
    """Nothing that a proof contains can leave the quotes."""
    for name in ('a"', "a b", "a]", "", "a\n", "a..b", "«a»"):
        with pytest.raises(ValueError, match="plain identifiers"):
            question([name], "nonce", resolve=False)
    assert '["Nat", "foo₀\'"]' in question(["Nat.foo₀'"], "nonce", resolve=False)


def test_an_answer_counts_only_with_the_nonce_and_without_errors() -> None:
    """Everything else is unreadable, not an empty account."""
    good = Message(data="n Nat.b Nat.a Nat.b", severity="info")
    assert read_theorems([good], "n") == ["Nat.a", "Nat.b"]
    bad = [[], [good, good], [good, Message(data="unknown identifier")], [Message(data="m Nat.a", severity="info")]]
    for messages in bad:
        with pytest.raises(Unreadable):
            read_theorems(messages, "n")


PROOFS = {
    "a step on every kind of place": (
        "by\n  constructor\n  · exact le_of_lt (lt_trans h₀ h₁)\n  · (simp only [foo_bar, ← Set.mem_def] <;> try ring)",
        {"le_of_lt", "lt_trans", "foo_bar", "Set.mem_def"},
        {"constructor", "exact", "simp", "try", "ring"},
    ),
    "patterns bind": (
        "by\n  obtain ⟨x₁, hx_1⟩ := exists_nat_gt 2\n  rcases lt_or_ge a b with h_l | h_g\n  all_goals exact h_l.ne 1",
        {"exists_nat_gt", "lt_or_ge"},
        {"obtain", "rcases", "all_goals", "exact"},
    ),
    "cases bind, alternatives of first do not": (
        "by\n  induction n with\n  | zero => simp\n  | succ n_1 ih_1 => first | exact n_pos n_1 | rw [ih_1, two_mul]",
        {"n_pos", "two_mul"},
        {"induction", "simp", "first", "exact", "rw"},
    ),
    "functions bind": (
        "fun (h_x : x < 1) h_y => (mul_pos h_x h_y).le.trans (Real.εδ_bound₀' fun z_z ↦ z_z)",
        {"mul_pos", "Real.εδ_bound₀'"},
        set(),
    ),
    "comments and strings are silent": (
        'by\n  -- nlinarith [Nat.not_me]\n  /- omega /- Nat.nor_me -/ -/\n  trace "exact Nat.said_so"\n  linarith',
        set(),
        {"linarith"},
    ),
    "a helper is not a lemma": ("by\n  exact help_me x", set(), {"exact"}),
}


@pytest.mark.parametrize("case", PROOFS)
def test_tokens_tell_names_and_tactics(case: str) -> None:
    """Without Lean: what is bound, commented out or part of the statement does not count."""
    proof, lemmas, tactics = PROOFS[case]
    helper = "theorem help_me (k : ℕ) : k = k := Eq.refl_x k\n"
    statement = Statement(name="t", formal_statement="theorem t (h₀ : Nat.in_statement x) (h₁ : p) : Foo.bar_baz := by")
    use = scan(_rebuilt(f"{helper}theorem t (h₀ : Nat.in_statement x) (h₁ : p) : Foo.bar_baz := {proof}\n", statement))
    assert set(use.plausible) == lemmas | {"Eq.refl_x"}
    assert set(use.tactics) == tactics
    assert set(use.plausible) <= set(use.candidates)
