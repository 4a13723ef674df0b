"""Names and tactics in the text of a proof: where no elaborator tells what the model cited, its tokens must.

This is syntax. Subscripts, primes and Greek letters belong to a name as in Lean; names that the text itself binds
(hypotheses, variables, helper lemmas) are left out, and so is everything inside the given statement.
"""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct

from fd_async.verifier.source.lexer import Token, lex
from fd_async.verifier.source.reconstruct import Rebuilt


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


TACTICS = _words(
    """
    abel ac_rfl aesop all_goals any_goals apply apply_fun apply_mod_cast apply_rules assumption assumption_mod_cast
    bound bv_decide by_cases by_contra calc case cases cases' change choose clear congr congrm constructor
    continuity contradiction contrapose contrapose! conv convert convert_to decide delta dsimp eapply
    erw eta_expand exact exact_mod_cast exacts exfalso exists ext ext1 fail_if_success field_simp filter_upwards
    fin_cases first focus fun_cases fun_induction fun_prop funext gcongr generalize grind group have haveI hint
    induction induction' infer_instance inhabit injection injections interval_cases intro intros itauto iterate left
    let letI lia lift linarith linear_combination match measurability mod_cases module monotonicity native_decide next
    nlinarith nofun nomatch noncomm_ring norm_cast norm_num norm_num1 nth_rewrite nth_rw obtain omega on_goal
    pick_goal plausible polyrith positivity pull push_cast push_neg qify rcases refine refine' rename rename_i repeat
    repeat' replace revert rewrite rfl right ring ring1 ring_nf rintro rsuffices rw rw_mod_cast rwa set show simp
    simp_all simp_arith simp_rw simpa sleep solve_by_elim specialize split split_ifs stop subsingleton subst
    subst_vars substs suffices swap symm tauto tfae_finish tfae_have trans transitivity trivial try unfold use wlog
    zify simp! simp_all! simp? exact? apply? rw?
    """
)
_ALSO_TERMS = _words("calc decide exists have haveI left let letI match nofun nomatch rfl right show symm trans")
"""Tactics whose name may also begin a term, so that a bracket or an arrow before it proves nothing."""
_BEFORE_TACTIC = _words("by ; · • try repeat repeat' first all_goals any_goals focus")
_BEFORE_EITHER = _words("( { | => <;> then else")
_WORDS = _words(
    """
    Prop Sort Type at by do else example forall from fun if in lemma let_fun nomatch only open set_option sorry
    termination_by decreasing_by then theorem this using where with namespace end section
    """
)
_BINDS = _words(
    """
    by_cases by_contra choose ext fun funext generalize have haveI intro intros let letI obtain rename_i replace rintro
    set suffices with wlog λ ∀ ∃
    """
)
_ENDS_BINDING = _words(": = ∈ < > ≤ ≥ ← => ↦ ; <;> with using at by")
_OPENS = frozenset("({⦃[")
_CITING = _words(
    "exact apply refine refine' use from eapply exact_mod_cast convert using rcases cases cases' = ← [ , ( ⟨"
)


class TextUse(Struct, frozen=True):
    """What a proof seems to use. `plausible` are the candidates that look like theorems when nobody can tell."""

    candidates: list[str]
    plausible: list[str]
    tactics: list[str]


def scan(rebuilt: Rebuilt) -> TextUse:
    """Read the names and tactics that the model wrote in a file that passed the gate."""
    tokens = list(_joined(lex(rebuilt.body)))
    lines = _line_numbers(rebuilt.body, tokens)
    bound = set(_bound(tokens, lines))
    candidates: set[str] = set()
    plausible: set[str] = set()
    tactics: set[str] = set()
    for index, token in enumerate(tokens):
        if token.kind != "word" or rebuilt.is_statement(lines[index]):
            continue
        before = tokens[index - 1].text if index else ""
        starts_line = index == 0 or lines[index - 1] != lines[index]
        if token.text in TACTICS and _is_tactic_place(token.text, before, starts_line):
            tactics.add(token.text)
        elif token.text not in TACTICS and token.text not in _WORDS and before not in (".", "set_option"):
            name = token.text.removeprefix("_root_.")
            if name.split(".")[0] not in bound:
                candidates.add(name)
                if _looks_like_theorem(name, before in _CITING):
                    plausible.add(name)
    return TextUse(sorted(candidates), sorted(plausible), sorted(tactics))


def _joined(tokens: list[Token]) -> Iterator[Token]:
    """Join the characters of `=>` and `<;>`, which the lexer keeps apart."""
    index = 0
    while index < len(tokens):
        for operator in ("<;>", "=>"):
            group = tokens[index : index + len(operator)]
            adjacent = len(group) == len(operator) and group[-1].end - group[0].start == len(operator)
            if adjacent and "".join(token.text for token in group) == operator:
                yield Token(operator, group[0].start, group[-1].end, "symbol")
                index += len(operator)
                break
        else:
            yield tokens[index]
            index += 1


def _line_numbers(source: str, tokens: list[Token]) -> list[int]:
    lines, line, position = [], 1, 0
    for token in tokens:
        line += source.count("\n", position, token.start)
        position = token.start
        lines.append(line)
    return lines


def _is_tactic_place(word: str, before: str, starts_line: bool) -> bool:
    if starts_line or before in _BEFORE_TACTIC:
        return True
    return before in _BEFORE_EITHER and (word not in _ALSO_TERMS or before == "<;>")


def _bound(tokens: list[Token], lines: list[int]) -> Iterator[str]:
    """Yield names that stand where one is bound: `have h`, `fun x`, `obtain ⟨x, h⟩`, `| succ n ih =>`, `(x y : T)`."""
    for index, token in enumerate(tokens):
        if token.text in _BINDS:
            yield from _names_until_end(tokens, lines, index + 1)[0]
        elif token.text == "|":
            names, end = _names_until_end(tokens, lines, index + 1)
            if end == "=>":
                yield from names
        elif token.text in ("theorem", "lemma"):
            yield from (name.text for name in tokens[index + 1 : index + 2])
        elif token.text in _OPENS:
            names = []
            for later in tokens[index + 1 :]:
                if later.kind != "word" or "." in later.text:
                    break
                names.append(later.text)
            stop = index + 1 + len(names)
            follows = [token.text for token in tokens[stop : stop + 2]]
            if follows[:1] == [":"] and follows != [":", "="]:
                yield from names


def _names_until_end(tokens: list[Token], lines: list[int], start: int) -> tuple[list[str], str]:
    """Return the undotted names of a pattern and what ended it; a comma ends it outside of brackets."""
    names: list[str] = []
    depth = 0
    for index in range(start, len(tokens)):
        token = tokens[index]
        depth += (token.text in "⟨({[") - (token.text in "⟩)}]")
        ends = token.text in _ENDS_BINDING or depth < 0 or (token.text == "," and depth == 0)
        if ends or (index > start and lines[index] != lines[index - 1]):
            return names, token.text
        if token.kind == "word" and "." not in token.text:
            names.append(token.text)
    return names, ""


def _looks_like_theorem(name: str, cited: bool) -> bool:
    """Say whether a name follows Mathlib's rules for theorems; a guess."""
    *spaces, last = name.split(".")
    if last[0].isupper():
        return False
    if spaces:
        return spaces[0][0].isupper() and (cited or "_" in last)
    return cited and "_" in last.strip("_")
