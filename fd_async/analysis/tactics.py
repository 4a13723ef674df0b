"""Tactics and lemmas that a proof uses, read from its text (paper figure 3).

This is syntax, not elaboration: `open` namespaces are not resolved, a lemma is a name that stands where one is cited,
and names that the proof or statement itself binds are not lemmas. Count only proofs that the verifier accepted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from msgspec import Struct

TACTICS = frozenset(
    """
    abel ac_rfl aesop all_goals any_goals apply apply_fun apply_mod_cast apply_rules assumption assumption_mod_cast
    bound bv_decide by_cases by_contra calc case cases cases' change choose clear congr congrm constructor
    continuity contradiction contrapose conv convert convert_to decide delta discrete_cases dsimp eapply ediscard
    erw eta_expand exact exact_mod_cast exacts exfalso exists ext ext1 fail_if_success field_simp filter_upwards
    fin_cases first focus fun_cases fun_induction fun_prop funext gcongr generalize grind group have haveI hint
    induction induction' inhabit injection injections interval_cases intro intros itauto iterate left let letI lia
    lift linarith linear_combination match measurability mod_cases module monotonicity next nlinarith nofun nomatch
    noncomm_ring norm_cast norm_num nth_rewrite nth_rw obtain omega on_goal pick_goal plausible polyrith positivity
    pull push_cast push_neg qify rcases refine refine' rename rename_i repeat repeat' replace revert rewrite rfl
    right ring ring1 ring_nf rintro rsuffices rw rwa set show simp simp_all simp_arith simp_rw simpa sleep slice_lhs
    solve_by_elim specialize split split_ifs subsingleton subst subst_vars suffices swap symm tauto tfae_finish
    tfae_have trans transitivity trivial try unfold unhygienic use wlog zify
    """.split()  # noqa: SIM905 - 150 words read better than 150 strings
)

_LETTER = r"A-Za-z_\u0370-\u03ba\u03bc-\u03ff\u1f00-\u1ffe\u2100-\u214f\U0001d49c-\U0001d59f"
_PART = rf"(?:[{_LETTER}][{_LETTER}0-9'!?\u2080-\u2089\u2090-\u209c\u1d62-\u1d6a]*|«[^»\n]*»)"
_NAME = re.compile(rf"(?<![\w'.«»\u2080-\u209c])@?({_PART}(?:\.{_PART})*)")
"""A Lean identifier with its namespaces: Greek, letter-like and script letters, subscripts, primes, «quoted»."""

_TACTIC_PLACE = re.compile(
    rf"(?:^[ \t]*(?:[·•.]\s*)*|\bby\s+|;\s*|<;>\s*|=>\s*|[·•]\s*|[({{]\s*|\|\s*"
    rf"|\b(?:try|repeat'?|first|all_goals|any_goals|focus|iterate)\s+)(?=({_PART}))",
    re.MULTILINE,
)
_CITING = re.compile(
    r"(?:\b(?:exact|apply|refine'?|use|from|eapply|exact_mod_cast|convert|simpa using)|:=|[\[,(←⟨])\s*$"
)
_BINDING = re.compile(
    rf"\b(?:have|haveI|let|letI|set|obtain|rcases|cases'?|induction'?|intros?|rintro|rename_i|fun|suffices|choose"
    rf"|generalize|theorem|lemma|with|at|∃|∀)\b([^:=\n]*)|[λ∃∀]([^,:\n]*)|[({{\[⟨]\s*((?:{_PART}\s+)*{_PART})\s*:(?!=)"
)
_NOISE = re.compile(r'--[^\n]*|"(?:\\.|[^"\\])*"')
_WORDS_OF_LEAN = frozenset(
    ("by", "fun", "from", "at", "with", "in", "do", "then", "else", "if", "this", "id", "absurd")
)


class ProofUse(Struct, frozen=True, kw_only=True):
    """Distinct tactics and cited lemmas of one proof."""

    tactics: frozenset[str]
    lemmas: frozenset[str]


def read_proof(proof: str, statement: str = "") -> ProofUse:
    """Return what `proof` uses; `statement` tells which names are hypotheses."""
    text = _without_comments(proof)
    tactics = frozenset(name for name in _TACTIC_PLACE.findall(text) if name in TACTICS)
    bound = _bound_names(text) | _bound_names(_without_comments(statement))
    lemmas = set()
    for match in _NAME.finditer(text):
        name = match.group(1)
        cited = _CITING.search(text, max(0, match.start() - 40), match.start()) is not None
        if _is_lemma(name, cited) and name.split(".")[0] not in bound:
            lemmas.add(name)
    return ProofUse(tactics=tactics, lemmas=frozenset(lemmas))


class Discovery:
    """Cumulative distinct tactics and lemmas of a run."""

    def __init__(self, tactics: Iterable[str] = (), lemmas: Iterable[str] = ()) -> None:
        self.tactics = set(tactics)
        self.lemmas = set(lemmas)

    def add(self, use: ProofUse) -> None:
        """Count one more accepted proof."""
        self.tactics |= use.tactics
        self.lemmas |= use.lemmas


def _is_lemma(name: str, cited: bool) -> bool:
    """A lemma ends in a lower-case part; it is dotted under a capital, or has an underscore and is cited."""
    parts = name.split(".")
    last = parts[-1]
    if last in _WORDS_OF_LEAN or last in TACTICS or last[0].isupper():
        return len(parts) > 1 and last in TACTICS and parts[0][0].isupper() and cited
    if len(parts) > 1:
        return parts[0][0].isupper() and (cited or "_" in last)
    return cited and "_" in last.strip("_")


def _bound_names(text: str) -> set[str]:
    names: set[str] = set()
    for match in _BINDING.finditer(text):
        names.update(part for group in match.groups() if group for part in _NAME.findall(group))
    return {name for name in names if "." not in name}


def _without_comments(text: str) -> str:
    """Blank nested block comments, line comments and strings."""
    out: list[str] = []
    depth = 0
    for piece in re.split(r"(/-|-/)", text):
        if piece == "/-":
            depth += 1
        elif piece == "-/" and depth:
            depth -= 1
        elif depth == 0:
            out.append(piece)
    return _NOISE.sub(" ", "".join(out))
