"""The first rung of the judge: read the model's file as tokens and refuse what no honest proof needs.

Owns the list of what may stand in a file: `theorem`, `lemma` and `example` with their proofs, `#check`, `#print`,
`open ... in`, a few options and `@[simp]`. Definitions, instances, notation, attributes, metaprogramming and
anything that runs code at compile time are refused with the word that was found, before Lean sees the file.
Only theorems can be helpers, because a theorem cannot change what the statement means.
"""

from __future__ import annotations

from typing import NamedTuple

from fd_async.verifier.lexer import Token


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


FORBIDDEN_COMMANDS = _words(
    """
    abbrev add_aesop_rules add_decl_doc alias assert_exists assert_not_exists assert_not_imported attribute axiom
    binder_predicate builtin_dsimproc builtin_initialize builtin_simproc builtin_simproc_decl class coinductive
    compile_def compile_inductive count_heartbeats declare_aesop_rule_sets declare_config_elab
    declare_command_config_elab declare_simp_like_tactic declare_syntax_cat declare_sint_simprocs
    declare_uint_simprocs def deprecated_module deriving docs_to_verso dsimproc dsimproc_decl elab elab_rules
    elab_stx_quot end erase_aesop_rules export gen_injective_theorems grind_pattern import include
    inductive infix infixl infixr init_quot initialize initialize_simps_projections insert_to_additive_translation
    instance irreducible_def library_note local macro macro_rules meta mk_iff_of_inductive_prop module mutual
    namespace noncomputable notation notation3 omit opaque partial postfix prefix prelude proof_wanted public
    recall recommended_spelling register_builtin_option register_error_explanation register_label_attr
    register_linter_set register_option register_parser_alias register_simp_attr register_tactic_tag restate_axiom
    reset_grind_attrs run_cmd run_elab run_meta scoped seal section show_panel_widgets simproc simproc_decl
    structure suppress_compilation syntax tactic_extension unif_hint universe unseal unsafe unsuppress_compilation
    variable
    """
)
FORBIDDEN_TERMS = _words(
    """
    run_tac by_elab include_str native_decide polyrith eval_expr implemented_by extern csimp skipKernelTC
    unsafeCast ofReduceBool ofReduceNat reduceBool reduceNat trustCompiler sorryAx lcProof lcUnreachable where
    mkSorry
    """
)
"""Refused as any component of a name. `where` and `let rec` make definitions inside a theorem's namespace."""

COMMAND_STARTS = frozenset({"theorem", "lemma", "example", "private", "protected", "nonrec", "open", "set_option"})
_ENDS_A_GROUP = COMMAND_STARTS | {"in"} | (FORBIDDEN_COMMANDS - {"scoped"})
ALLOWED_HASH = frozenset({"check", "print", "check_failure"})
HASH_COMMANDS = _words(
    """
    eval eval! exit reduce guard guard_msgs guard_expr synth simp norm_num conv whnf whnfR unfold help where find
    find_home find_syntax search loogle leansearch leanfinder min_imports redundant_imports import_path lint
    list_linters instances version time html widget sample test plausible discr_tree_key discr_tree_simp_key
    adaptation_note long_names long_instances show_kind show_term parse import_diff import_bumps unicode_linter
    string_diagram explode rpc unlang count_heartbeats count_heartbeats! push_discr_tree symmetry trans
    """
)
"""`#NAME` that is a command wherever it stands; at the start of a line every `#NAME` is one."""
ALLOWED_ATTRIBUTES = frozenset({"simp"})
ALLOWED_OPTIONS = ("maxHeartbeats", "maxRecDepth", "synthInstance.maxHeartbeats", "synthInstance.maxSize")
SCOPED_OPTION_PREFIXES = ("linter.", "pp.", "trace.")
"""Allowed as `set_option ... in` only."""
SORRY_WORDS = frozenset({"sorry", "admit"})


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
    violation = _forbidden_word(source, tokens, start) or _forbidden_group(tokens, groups, opened, options)
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
        after = tokens[index + 1] if index + 1 < len(tokens) else Token("", token.end, token.end, "symbol")
        if token.kind == "word":
            found = _word_violation(tokens, index, after)
            if found:
                return Violation(f"`{found}` is not allowed", token.start)
        elif token.text == "#" and after.kind == "word" and after.start == token.end:
            if _is_command(source, token, after.text) and after.text not in ALLOWED_HASH:
                return Violation(f"`#{after.text}` is not allowed", token.start)
        elif token.text == "@" and after.text == "[":
            name = tokens[index + 2].text if index + 2 < len(tokens) else ""
            closed = index + 3 < len(tokens) and tokens[index + 3].text == "]"
            if name not in ALLOWED_ATTRIBUTES or not closed:
                return Violation(f"the attribute `@[{name}]` is not allowed", token.start)
        elif token.text == "+" and after.text == "native":
            return Violation("`+native` is not allowed", token.start)
        elif token.text == "%" and index and tokens[index - 1].text == "eval":
            return Violation("`eval%` is not allowed", token.start)
    return None


def _word_violation(tokens: list[Token], index: int, after: Token) -> str:
    text = tokens[index].text
    if text in FORBIDDEN_COMMANDS:
        scoped_open = text == "scoped" and index and tokens[index - 1].text == "open"
        return "" if scoped_open else text
    if text == "let" and after.text == "rec":
        return "let rec"
    return next((part for part in text.split(".") if part in FORBIDDEN_TERMS), "")


def _is_command(source: str, token: Token, word: str) -> bool:
    """Tell `#eval` from the notation `#s` (cardinality), which stands inside a line."""
    line = source[source.rfind("\n", 0, token.start) + 1 : token.start]
    return word in HASH_COMMANDS or not line.strip()


def _forbidden_group(
    tokens: list[Token], groups: list[Group], opened: frozenset[str], options: frozenset[tuple[str, ...]]
) -> Violation | None:
    for group in groups:
        position = tokens[group.first].start
        if group.keyword == "set_option":
            name = group.words[0] if group.words else ""
            scoped = group.scoped_in and name.startswith(SCOPED_OPTION_PREFIXES)
            if not (name in ALLOWED_OPTIONS or scoped or group.words in options):
                return Violation(f"`set_option {name}` is not allowed", position)
            continue
        if not group.words:
            return Violation("`open` must be followed by a namespace", position)
        if "renaming" in group.words:
            return Violation("`open ... renaming` is not allowed", position)
        extra = [word for word in group.words if word not in opened and word != "scoped"]
        if not group.scoped_in and extra:
            return Violation(
                f"`open {extra[0]}` is not part of the given header; write the full name or `open {extra[0]} in`",
                position,
            )
    return None
