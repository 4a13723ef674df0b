"""The first rung of the judge: read the model's file as tokens and refuse what no honest proof needs.

Owns the list of what may stand in a file: `theorem`, `lemma` and `example` with their proofs, `#check`, `#print`,
`open ... in`, a few options and `@[simp]`. Definitions, instances, notation, attributes, metaprogramming and
anything that runs code at compile time are refused with the word that was found, before Lean sees the file.
Only theorems can be helpers, because a theorem cannot change what the statement means.
"""

from __future__ import annotations

from typing import NamedTuple

from fd_async.verifier.source.lexer import Token


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


FORBIDDEN_COMMANDS = _words(
    """
    abbrev add_aesop_rules add_decl_doc alias assert_exists assert_imported assert_no_cyclic assert_not_exists
    assert_not_imported attribute aux_def axiom binder_predicate class coinductive compile_def compile_inductive
    constant count_heartbeats def deprecate deprecated_module deriving docs_to_verso dsimproc dsimproc_decl
    dsimproc_pattern elab elab_rules elab_stx_quot end erase_aesop_rules export extend_docs gen_injective_theorems
    grind_pattern guard_min_heartbeats import include inductive infix infixl infixr init_grind_norm init_quot
    initialize initialize_simps_projections insert_to_additive_translation instance irreducible_def library_note
    local lrat_proof macro macro_rules meta mk_iff_of_inductive_prop module mutual namespace noncomputable
    norm_cast_add_elim notation notation3 omit opaque partial postfix prefix prelude proof_wanted public recall
    recommended_spelling reset_grind_attrs restate_axiom run_cmd run_elab run_meta scoped seal section
    set_library_suggestions set_premise_selector show_panel_widgets simproc simproc_decl simproc_pattern structure
    suppress_compilation syntax tactic_extension test_extern unif_hint universe unseal unsafe
    unsuppress_compilation variable variables whatsnew with_weak_namespace
    """
)
FORBIDDEN_PREFIXES = ("builtin_", "declare_", "register_")
"""Commands that set up tactics and options; there are many, and new ones with each release."""
FORBIDDEN_TERMS = _words(
    """
    run_tac by_elab include_str native_decide polyrith eval_expr implemented_by extern csimp skipKernelTC
    unsafeCast ofReduceBool ofReduceNat reduceBool reduceNat trustCompiler sorryAx lcProof lcUnreachable where
    mkSorry native bv_decide bv_check sleep sleep_heartbeats
    """
)
"""Refused as any component of a name. `where` and `let rec` make definitions inside a theorem's namespace; `bv_`
tactics and `polyrith` start programs or read files; `native` is an option of `decide`."""
FORBIDDEN_NAMESPACES = _words("Lean Lake ProofWidgets Jsx Qq Elab Meta Parser Tactic Command")
"""Never opened: their scoped syntax is for programs, and that of `ProofWidgets.Jsx` has tokens of its own, so that
`/-` need not begin a comment."""

_NEVER_GLUED = (FORBIDDEN_COMMANDS | FORBIDDEN_TERMS | {"open", "set_option"}) - {"end"}
"""Not even after one or two letters that follow an operator: `→o`, `∘L` and `≃SL` are tokens of Mathlib."""
MODIFIERS = frozenset({"private", "protected", "nonrec"})
COMMAND_STARTS = MODIFIERS | {"theorem", "lemma", "example", "open", "set_option"}
_ENDS_A_GROUP = COMMAND_STARTS | {"in"} | (FORBIDDEN_COMMANDS - {"scoped"})
ALLOWED_HASH = frozenset({"check", "print", "check_failure"})
HASH_COMMANDS = _words(
    """
    eval eval! exit reduce guard guard_msgs guard_expr synth simp norm_num conv whnf whnfR unfold help where find
    find_home find_syntax search loogle leansearch leanfinder min_imports redundant_imports import_path lint
    list_linters instances version time html widget sample test plausible discr_tree_key discr_tree_simp_key
    adaptation_note long_names long_instances show_kind show_term parse import_diff import_bumps unicode_linter
    string_diagram explode rpc unlang count_heartbeats count_heartbeats! push_discr_tree symmetry trans aesop_rules
    aesop_stats dump_async_env_state eval_meta exprTree grind_lint guard_panic info_trees kerodon_tags leanexplore
    moogle png print_equations premisesearch stacks_tags statesearch mkTest with_exporting where_open aliases
    """
)
"""`#NAME` that is a command wherever it stands; at the start of a line every `#NAME` is one."""
ALLOWED_ATTRIBUTES = frozenset({"simp"})
ALLOWED_OPTIONS = ("maxHeartbeats", "maxRecDepth", "synthInstance.maxHeartbeats", "synthInstance.maxSize")
SCOPED_OPTION_PREFIXES = ("linter.", "pp.", "trace.")
"""Allowed as `set_option ... in` only, but for the profiler, which writes files."""
SORRY_WORDS = frozenset({"sorry", "admit", "stop"})
"""`stop` gives up the rest of a tactic block; as a keyword it cannot be a name."""
OPENING, CLOSING = frozenset("([{⟨⦃⟦"), frozenset(")]}⟩⦄⟧")
MAX_NESTING = 400
"""Brackets nested deeper than this make the parser run out of stack, and a worker die."""


class Violation(NamedTuple):
    """What was refused, and where it starts in the source."""

    reason: str
    position: int


class Group(NamedTuple):
    """An `open` or `set_option` with its arguments: tokens[first:last]; `scoped_in` when it ends in `in`."""

    keyword: str
    words: tuple[str, ...]
    first: int
    last: int
    scoped_in: bool


class Gate(NamedTuple):
    """What the gate found. `violation` is None for a file that may be compiled."""

    violation: Violation | None
    has_sorry: bool
    groups: tuple[Group, ...]
    imports: tuple[tuple[int, int], ...]
    """Token ranges of `import` lines at the head of the file."""


def inspect_source(source: str, tokens: list[Token], header: list[Token]) -> Gate:
    """Judge a file by its tokens; `header` are the tokens of the header that the file will be compiled under."""
    imports = _leading_imports(tokens)
    start = imports[-1][1] if imports else 0
    groups = _groups(tokens, start)
    opened, options = header_scope(header)
    violation = (
        _forbidden_word(source, tokens, start)
        or _forbidden_group(tokens, groups, opened, options)
        or _forbidden_shape(tokens)
    )
    has_sorry = any(token.kind == "word" and token.text in SORRY_WORDS for token in tokens)
    return Gate(violation, has_sorry, tuple(groups), tuple(imports))


def header_scope(header: list[Token]) -> tuple[frozenset[str], frozenset[tuple[str, ...]]]:
    """Return the namespaces that the header opens and the (option, value) pairs that it sets."""
    opened: set[str] = set()
    options: set[tuple[str, ...]] = set()
    for group in _groups(header, 0):
        if group.keyword == "open":
            opened.update(group.words)
        else:
            options.add(group.words)
    return frozenset(opened), frozenset(options)


def _leading_imports(tokens: list[Token]) -> list[tuple[int, int]]:
    imports: list[tuple[int, int]] = []
    index = 0
    while index + 1 < len(tokens) and tokens[index].text == "import" and tokens[index + 1].kind == "word":
        imports.append((index, index + 2))
        index += 2
    return imports


def _groups(tokens: list[Token], start: int) -> list[Group]:
    """Collect every `open` and `set_option`; an `open` runs to `in` or to the next command."""
    groups: list[Group] = []
    index = start
    while index < len(tokens):
        keyword = tokens[index]
        if keyword.kind != "word" or keyword.text not in ("open", "set_option"):
            index += 1
            continue
        last = index + 1
        limit = len(tokens) if keyword.text == "open" else min(len(tokens), index + 3)
        while last < limit and _continues(tokens[last]):
            last += 1
        scoped_in = last < len(tokens) and tokens[last].text == "in"
        words = tuple(token.text for token in tokens[index + 1 : last])
        groups.append(Group(keyword.text, words, index, last + scoped_in, scoped_in))
        index = last + scoped_in
    return groups


def _continues(token: Token) -> bool:
    if token.kind == "word":
        return token.text not in _ENDS_A_GROUP
    return token.kind != "symbol" or token.text not in "@#"


def _forbidden_word(source: str, tokens: list[Token], start: int) -> Violation | None:
    for index in range(start, len(tokens)):
        token = tokens[index]
        found = ""
        if token.kind == "word":
            found = _word_violation(tokens, index)
        elif token.text in "#@%":
            found = _symbol_violation(source, tokens, index)
        if found:
            return Violation(f"{found} is not allowed", token.start)
    return None


def _word_violation(tokens: list[Token], index: int) -> str:
    text = tokens[index].text
    if text in FORBIDDEN_COMMANDS or text.startswith(FORBIDDEN_PREFIXES):
        scoped_open = text == "scoped" and index and tokens[index - 1].text == "open"
        return "" if scoped_open else f"`{text}`"
    if text == "let" and _text(tokens, index + 1) == "rec":
        return "`let rec`"
    if text.rstrip("!?") in FORBIDDEN_TERMS:
        return f"`{text}`"
    if index and tokens[index - 1].end == tokens[index].start and tokens[index - 1].kind == "symbol":
        glued = next((text[cut:] for cut in (1, 2) if text[cut:] in _NEVER_GLUED), "")
        if glued:
            return f"`{text}` directly after `{tokens[index - 1].text}` (it hides `{glued}`)"
    if "." in text:
        return next((f"`{part}`" for part in text.split(".") if part in FORBIDDEN_TERMS), "")
    return ""


def _symbol_violation(source: str, tokens: list[Token], index: int) -> str:
    symbol, after = tokens[index].text, _text(tokens, index + 1)
    if symbol == "@" and after == "[":
        name = _text(tokens, index + 2)
        allowed = name in ALLOWED_ATTRIBUTES and _text(tokens, index + 3) == "]"
        return "" if allowed else f"the attribute `@[{name}]`"
    if symbol == "#" and _is_command(source, tokens, index) and after not in ALLOWED_HASH:
        return f"`#{after}`"
    if symbol == "%" and index and tokens[index - 1].text == "eval":
        return "`eval%`"
    return ""


def _is_command(source: str, tokens: list[Token], index: int) -> bool:
    """Tell `#eval` from the notation `#s` (cardinality), which stands inside a line."""
    token = tokens[index]
    if index + 1 >= len(tokens) or tokens[index + 1].start != token.end or tokens[index + 1].kind != "word":
        return False
    before = tokens[index - 1].end if index else 0
    return tokens[index + 1].text in HASH_COMMANDS or not before or "\n" in source[before : token.start]


def _text(tokens: list[Token], index: int) -> str:
    return tokens[index].text if index < len(tokens) else ""


def _forbidden_group(
    tokens: list[Token], groups: list[Group], opened: frozenset[str], options: frozenset[tuple[str, ...]]
) -> Violation | None:
    for group in groups:
        position = tokens[group.first].start
        if group.keyword == "set_option":
            name = group.words[0] if group.words else ""
            scoped = group.scoped_in and name.startswith(SCOPED_OPTION_PREFIXES) and "profiler" not in name
            if not (name in ALLOWED_OPTIONS or scoped or group.words in options):
                return Violation(f"`set_option {name}` is not allowed", position)
            continue
        reason = _open_violation(tokens, group, opened)
        if reason:
            return Violation(reason, position)
    return None


def _open_violation(tokens: list[Token], group: Group, opened: frozenset[str]) -> str:
    if not group.words:
        return "`open` must be followed by a namespace"
    if "renaming" in group.words:
        return "`open ... renaming` is not allowed"
    extra = [word for word in group.words if word not in opened and word != "scoped"]
    if not group.scoped_in and extra:
        return f"`open {extra[0]}` is not part of the given header; write the full name or `open {extra[0]} in`"
    for word in extra:
        if not FORBIDDEN_NAMESPACES.isdisjoint(word.split(".")):
            return f"`open {word}` is not allowed"
    before = _prefix_before(tokens, group.first)
    if not group.scoped_in and before:
        return f"`open` without `in` cannot stand after `{before}`"
    return ""


def _prefix_before(tokens: list[Token], index: int) -> str:
    """Return the word before `index` that needs a command after it, or nothing."""
    before = tokens[index - 1].text if index else ""
    if before == "in" or before in MODIFIERS:
        return before
    attribute = [token.text for token in tokens[max(0, index - 4) : index]]
    return "@[simp]" if attribute == ["@", "[", "simp", "]"] else ""


def _forbidden_shape(tokens: list[Token]) -> Violation | None:
    """Refuse a file that would change the command after it, or that no parser has the stack for."""
    unfinished = _prefix_before(tokens, len(tokens))
    if unfinished:
        return Violation(f"the file ends after `{unfinished}`, in the middle of a command", tokens[-1].start)
    depth = 0
    for token in tokens:
        if token.text in OPENING:
            depth += 1
            if depth > MAX_NESTING:
                return Violation(f"brackets are nested more than {MAX_NESTING} deep", token.start)
        elif depth and token.text in CLOSING:
            depth -= 1
    return None
