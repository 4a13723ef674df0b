"""What makes two statements the same, and in which order a split takes them.

The rule is published (docs/data.md) and anyone can recompute it: `SALT` names its version, and nothing here may change
without a new one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence

from fd_async.data.sources.headers import normalise
from fd_async.data.sources.lean_text import NotLean, without_comments
from fd_async.errors import PreflightError
from fd_async.types import Statement

SALT = "fd_async/split/2"
_ENDING = re.compile(r":=(by)?(sorry)?$")
_NAMED = re.compile(r"\b(?:theorem|lemma)\s+((?:«[^»]*»|[^\s:({\[⦃«])+)")
_WORD = r"(?!(?:fun|in)\b)[^\W\d][\w'!?]*"
_BINDERS = re.compile(
    rf"[({{\[⦃]\s*({_WORD}(?:\s+{_WORD})*)\s*:(?!=)"
    rf"|(?:[∀∃λ∑∏∫⋃⋂]['!]?|\bfun\b)\s*({_WORD}(?:\s+{_WORD})*)\s*(?::|,|=>|↦|∈|\bin\b|[<>≤≥≠])"
)
_HEAD = re.compile(rf"(?<![\w.'!?]){_WORD}")


def stated(formal_statement: str) -> tuple[str, str]:
    """Return the name that a statement states, empty where it states none, and all that follows; without comments."""
    try:
        text = without_comments(formal_statement)
    except NotLean:
        text = formal_statement
    named = _NAMED.search(text)
    return (named[1].rstrip("."), text[named.end() :]) if named else ("", text)


def canonical(formal_statement: str) -> str:
    """Reduce a statement to what it states: no name, no comments, no ending, no white space, bound names numbered.

    What stands in front of the name goes with it (attributes). Names are those that a binder introduces anywhere in the
    statement (`(x y : ℝ)`, `∀ x,`), numbered as they first occur; scopes are not looked at, so two statements that come
    out equal differ in a one-to-one renaming.
    """
    rest = stated(formal_statement)[1]
    bound = {name for group in _BINDERS.finditer(rest) for name in (group[1] or group[2]).split()}
    numbers: dict[str, str] = {}

    def numbered(word: re.Match[str]) -> str:
        return numbers.setdefault(word[0], f"#{len(numbers)}") if word[0] in bound else word[0]

    rest = _HEAD.sub(numbered, rest)
    return _ENDING.sub("", "".join(rest.split()))


def place(formal_statement: str) -> str:
    """Return a statement's place in the order of every split: 64 hex digits."""
    return hashlib.sha256(f"{SALT}\n{canonical(formal_statement)}".encode("utf-8", "surrogatepass")).hexdigest()


def split(
    statements: Sequence[Statement], num_train: int, num_test: int, source: str
) -> tuple[list[Statement], list[Statement]]:
    """Cut a source into (train, test).

    Of statements that are the same but for names, theirs and bound ones, the one with the smallest name counts. Test
    takes the smallest places, train the largest, so a source that grows moves nothing from one into the other as long
    as something is left between them. Both come back in the order of their places.

    Args:
        statements: of the source, in any order.
        num_train: 0 takes all that test leaves.
        num_test: statements of the test part.
        source: for the message.

    Raises:
        PreflightError: there are not enough different statements.
    """
    first: dict[str, Statement] = {}
    for statement in statements:
        where = place(statement.formal_statement)
        known = first.get(where)
        if known is None or statement.name < known.name:
            first[where] = statement
    ordered = [first[where] for where in sorted(first)]
    needed = num_test + (num_train or 1)
    if len(ordered) < needed:
        raise PreflightError(
            f"{source}: has {len(ordered)} different statements, data.num_test + data.num_train need {needed}: "
            f"lower them (data.num_train = 0 takes all that the test part leaves)"
        )
    return ordered[len(ordered) - num_train :] if num_train else ordered[num_test:], ordered[:num_test]


def statements_hash(statements: Iterable[Statement]) -> str:
    """Name a set of statements, whatever their order: sha256 over the sorted sha256 of each.

    Of each: name, header in its one spelling and statement, joined by NUL. Proofs do not count.
    """
    rows = ("\0".join([row.name, normalise(row.header), row.formal_statement]) for row in statements)
    each = sorted(hashlib.sha256(row.encode("utf-8", "surrogatepass")).hexdigest() for row in rows)
    return hashlib.sha256("\n".join(each).encode()).hexdigest()


def shared(statements: Iterable[Statement], others: Iterable[Statement]) -> list[str]:
    """Name the statements of the first that stand among the second too, under whatever name."""
    known = {canonical(other.formal_statement) for other in others}
    return [row.name for row in statements if canonical(row.formal_statement) in known]
