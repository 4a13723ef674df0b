"""What a set of statements is like, for people: sizes, hash, headers, twins."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from msgspec import Struct

from fd_async.data.sources.canonical import canonical, stated, statements_hash
from fd_async.data.sources.headers import normalise
from fd_async.types import Statement


class Summary(Struct, frozen=True, kw_only=True):
    """Of one source."""

    num_statements: int
    num_proofs: int
    """Statements with a known proof."""
    sha256: str
    """See `canonical.statements_hash`."""
    spellings: int
    """Different headers as they are written."""
    headers: list[tuple[str, int]]
    """Different headers in their one spelling, the most frequent first; each costs Lean workers of its own."""
    longest: str
    """Name of the longest statement."""
    longest_bytes: int
    """Of its header and text in UTF-8; no tokenizer needs more tokens than bytes."""
    twins: list[list[str]]
    """Names of statements that are the same but for names, theirs and bound ones."""
    renamed: list[str]
    """Names that differ from the one in the statement, which is the one that counts for Lean."""
    unstated: list[str]
    """Names of rows without `theorem NAME`: no proof of them can be judged."""


def summarise(statements: Sequence[Statement]) -> Summary:
    """Look at every statement."""
    groups: dict[str, list[str]] = {}
    renamed, unstated = [], []
    for row in statements:
        groups.setdefault(canonical(row.formal_statement), []).append(row.name)
        name = stated(row.formal_statement)[0]
        if not name:
            unstated.append(row.name)
        elif name != row.name:
            renamed.append(row.name)
    longest = max(statements, key=num_bytes)
    return Summary(
        num_statements=len(statements),
        num_proofs=sum(row.proof is not None for row in statements),
        sha256=statements_hash(statements),
        spellings=len({row.header for row in statements}),
        headers=Counter(normalise(row.header) for row in statements).most_common(),
        longest=longest.name,
        longest_bytes=num_bytes(longest),
        twins=[names for names in groups.values() if len(names) > 1],
        renamed=renamed,
        unstated=unstated,
    )


def num_bytes(statement: Statement) -> int:
    """Bytes of what a prompt shows of a statement."""
    return len(statement.header.encode()) + len(statement.formal_statement.encode())
