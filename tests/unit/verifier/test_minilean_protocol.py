"""The process: framing, environments, positions, and the REPL's own recordings."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fd_async.verifier.minilean.protocol import Repl, read_query, serve

ROOT = Path(__file__).parents[3]
CASES = ROOT.parent / "shared" / "data" / "repl_cases" / "core"
SAME_AS_RECORDED = {
    "assumption_proof": [0],
    "by_cases": [0],
    "dup_sorries": [0, 1],
    "have_by_sorry": [0, 1],
    "import_lean": [0],
    "invalid_line_break": [0, 1],
    "invalid_tactic": [0],
    "line_breaks": [0, 1, 2],
    "no_goal_sorry_2": [0],
    "proof_branching": [0],
    "proof_branching2": [0],
    "proof_transitivity": [0],
    "self_proof_apply_check": [0, 1],
    "self_proof_exact_check": [0, 1],
    "sorry_hypotheses": [0],
    "unknown_environment": [0],
}
"""Recorded answers that lie in the fragment, by case and position."""


def session(text: str) -> tuple[int, list[Any], str]:
    """Exit status, answers and standard error of one process's worth of input."""
    out, err = io.StringIO(), io.StringIO()
    status = serve(io.StringIO(text), out, err)
    blocks = out.getvalue().split("\n\n")
    assert blocks.pop() == ""
    return status, [json.loads(block) for block in blocks], err.getvalue()


def ask(*requests: dict[str, Any]) -> list[Any]:
    return session("".join(json.dumps(request) + "\n\n" for request in requests))[1]


def test_a_process_answers_and_ends_with_its_input() -> None:
    """The real command line: pretty JSON, a blank line after each answer, status 0 at the end of input."""
    requests = [
        {"cmd": ""},
        {"cmd": "theorem t (p : Prop) (h : p) : p := h", "env": 0},
        {"cmd": "#print axioms t", "env": 1},
    ]
    done = subprocess.run(
        [sys.executable, "-m", "fd_async.verifier.minilean"],
        input="".join(json.dumps(request) + "\n\n" for request in requests),
        capture_output=True,
        text=True,
        timeout=50,
        cwd=ROOT,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    answers = [json.loads(block) for block in done.stdout.split("\n\n")[:-1]]
    assert answers[:2] == [{"env": 0}, {"env": 1}]
    assert answers[2]["messages"][0]["data"] == "'t' does not depend on any axioms"
    assert done.stdout.startswith('{\n "env": 0\n}\n\n')


def test_the_checker_loads_nothing_heavy() -> None:
    """Importing the process needs neither torch, vllm nor the solver."""
    heavy = "('torch', 'vllm', 'z3', 'anyio')"
    code = f"import sys, fd_async.verifier.minilean.protocol; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=50, cwd=ROOT, check=True
    )
    assert done.stdout.strip() == "[]"


def test_lines_are_joined_without_a_line_break() -> None:
    """A raw line break inside a JSON string disappears, as in the REPL."""
    assert read_query(io.StringIO('{"cmd":  \n "a\nb"}\n\nrest')) == '{"cmd": "ab"}'
    assert read_query(io.StringIO("")) is None


def test_carriage_returns_end_lines_too() -> None:
    """A blank line with a carriage return counts as blank."""
    assert session('{"cmd": ""}\r\n\r\n')[1] == [{"env": 0}]


def test_comment_queries_get_no_answer() -> None:
    """Queries that begin with # or -- are skipped."""
    assert session('# x\n\n-- y\n\n{"cmd": ""}\n\n')[1] == [{"env": 0}]


@pytest.mark.parametrize("text", ["{bad\n\n", "\n\n", "[1]\n\n", '{"cmd": 3}\n\n', '{"cmd": "", "env": -1}\n\n'])
def test_unreadable_input_ends_the_process(text: str) -> None:
    """As in the real one: an uncaught exception on standard error, status 1, no answer."""
    status, answers, errors = session(text)
    assert (status, answers) == (1, [])
    assert errors.startswith('uncaught exception: {"message": "Could not parse') or "Natural number" in errors


def test_environments_are_kept_apart() -> None:
    """A name exists where it was declared and below, nowhere else."""
    answers = ask(
        {"cmd": ""},
        {"cmd": "theorem a : True := trivial", "env": 0},
        {"cmd": "example : True := a", "env": 1},
        {"cmd": "example : True := a", "env": 0},
        {"cmd": "example : True := a", "env": 9},
    )
    assert [answer.get("env") for answer in answers] == [0, 1, 2, 3, None]
    assert "messages" not in answers[2]
    assert answers[3]["messages"][0]["data"] == "Unknown identifier `a`"
    assert answers[4] == {"message": "Unknown environment."}


def test_the_statement_probe_of_the_judge_works() -> None:
    """Closed form with `@`, the theorem's own binders, implicit binders, and a wrong statement."""
    theorem = "theorem t {p q : Prop} (h : p ∧ q) (n : Nat) : q ∧ p ∧ n = n := ⟨h.2, h.1, rfl⟩"
    right = "{p q : Prop} (h : p ∧ q) (n : Nat)"
    answers = ask(
        {"cmd": "set_option autoImplicit false"},
        {"cmd": theorem, "env": 0},
        {"cmd": f"theorem probe : ∀ {right}, q ∧ p ∧ n = n := @_root_.t\n#print axioms _root_.probe", "env": 1},
        {"cmd": f"example {right} : q ∧ p ∧ n = n := t h n", "env": 1},
        {"cmd": f"example {right} : q ∧ p ∧ n = n := @t p q h n", "env": 1},
        {"cmd": f"example : ∀ {right}, p ∧ q ∧ n = n := @_root_.t", "env": 1},
        {"cmd": "example : ∀ {p q : Prop} (h : p ∧ q) (n : Int), q ∧ p ∧ n = n := @_root_.t", "env": 1},
        {"cmd": "example : ∀ {p q : Prop} (n : Nat) (h : p ∧ q), q ∧ p ∧ n = n := @_root_.t", "env": 1},
        {"cmd": f"example {right} : q ∧ p ∧ n = n := t p q h n", "env": 1},
    )
    severities = [[message["severity"] for message in answer.get("messages", [])] for answer in answers]
    assert severities == [[], [], ["info"], [], [], ["error"], ["error"], ["error"], ["error"]]
    assert answers[2]["messages"][0]["data"] == "'probe' does not depend on any axioms"


def test_positions_count_lines_from_one_and_codepoints_from_zero() -> None:
    """Symbols outside ASCII count as one column."""
    (answer,) = ask({"cmd": "-- ∀∀\n\n  theorem α₁ (p : Prop) :\n    p ∨ ¬p := foo"})
    message = answer["messages"][0]
    assert (message["pos"], message["endPos"]) == ({"line": 4, "column": 14}, {"line": 4, "column": 17})


def test_imports_are_those_of_core_lean() -> None:
    """`Init`, `Lean` and `Std` exist; Mathlib does not; an import is only allowed at the start of the first command."""
    ok, mathlib, late, below = ask(
        {"cmd": "import Lean\n\nexample : 1 = 1 := rfl"},
        {"cmd": "import Mathlib"},
        {"cmd": "example : 1 = 1 := rfl\nimport Lean"},
        {"cmd": "import Lean", "env": 0},
    )
    assert ok == {"env": 0}
    assert mathlib["message"].startswith("unknown module prefix 'Mathlib'")
    assert late["messages"][0]["severity"] == below["messages"][0]["severity"] == "error"


def test_other_requests_are_refused_in_words() -> None:
    """Tactic mode, files, pickles and info trees get a message, not a wrong answer."""
    answers = ask(
        {"cmd": "theorem t : 1 = 2 := by sorry"},
        {"tactic": "rfl", "proofState": 0},
        {"tactic": "rfl", "proofState": 1},
        {"path": "x.lean"},
        {"pickleTo": "x", "env": 0},
        {"cmd": "", "allTactics": True},
    )
    assert answers[2] == {"message": "Unknown proof state."}
    for index in (1, 3, 4, 5):
        assert answers[index]["message"].startswith("minilean: unsupported: ")


@pytest.mark.skipif(not CASES.is_dir(), reason="the recorded transcripts (../shared/data/repl_cases) are not here")
def test_recorded_transcripts_are_answered_alike_or_refused() -> None:
    """In the fragment the answer equals the recording; outside it is an error, never another success."""
    same: dict[str, list[int]] = {}
    for path in sorted(CASES.glob("*.in")):
        output = path.with_suffix(".expected.out")
        if not output.exists():
            continue
        recorded = [json.loads(block) for block in output.read_text(encoding="utf-8").split("\n\n") if block.strip()]
        stream, repl = io.StringIO(path.read_text(encoding="utf-8")), Repl()
        queries = [query for query in iter(lambda stream=stream: read_query(stream), None) if query]
        for index, (query, expected) in enumerate(zip(queries, recorded, strict=True)):
            answer = repl.answer(query)
            if answer == expected:
                same.setdefault(path.stem, []).append(index)
                continue
            refused = "message" in answer or any(m["severity"] == "error" for m in answer.get("messages", []))
            assert refused or answer.get("sorries"), (path.stem, index)
    for name, indices in SAME_AS_RECORDED.items():
        assert set(indices) <= set(same.get(name, [])), name


def test_a_text_is_answered_alike_whatever_was_answered_before() -> None:
    """Also the numbers of its metavariables: a resumed evaluation must show the model the same messages."""
    texts = [f"theorem t{i} (P D : Prop) : (P ↔ D) := by exact Nat.mul_add _ _ _" for i in range(3)]
    repl = Repl()
    before = [repl.answer(json.dumps({"cmd": text}))["messages"] for text in texts]
    after = [repl.answer(json.dumps({"cmd": text}))["messages"] for text in reversed(texts)]
    assert "?m.1 " in before[0][0]["data"]
    assert before == after[::-1]
