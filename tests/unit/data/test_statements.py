"""Reading statements and the stateless order."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fd_async.data.statements import StatementOrder, limit_by_hash, read_statements
from fd_async.errors import PreflightError
from fd_async.types import Statement


def make_statements(count: int) -> list[Statement]:
    return [Statement(name=f"t{index}", formal_statement=f"theorem t{index} : True :=") for index in range(count)]


def test_every_epoch_contains_every_statement_once() -> None:
    """Any window of one epoch is a permutation."""
    order = StatementOrder(make_statements(7), seed=3)
    epochs = [[order[epoch * 7 + i].name for i in range(7)] for epoch in range(3)]
    assert all(sorted(names) == [f"t{i}" for i in range(7)] for names in epochs)
    assert epochs[0] != epochs[1]


def test_order_depends_on_the_seed_alone() -> None:
    """The same seed gives the same statement at an ordinal, whatever was asked before."""
    first, second = StatementOrder(make_statements(50), 1), StatementOrder(make_statements(50), 1)
    assert first[120] == second[120]
    assert [first[i].name for i in range(50)] != [StatementOrder(make_statements(50), 2)[i].name for i in range(50)]


def test_bad_row_is_named_by_file_and_line(tmp_path: Path) -> None:
    """A row without a statement says where it stands."""
    path = tmp_path / "train.jsonl"
    path.write_text('{"name": "a", "formal_statement": "theorem a : True :="}\n{"name": "b"}\n')
    with pytest.raises(PreflightError, match=r"train\.jsonl:2: not a statement"):
        read_statements(path)


def test_repeated_name_is_refused(tmp_path: Path) -> None:
    """Names are identities."""
    path = tmp_path / "train.jsonl"
    path.write_text('{"name": "a", "formal_statement": "theorem a : True :="}\n' * 2)
    with pytest.raises(PreflightError, match="stands in line 1 too"):
        read_statements(path)


def test_limit_does_not_depend_on_the_order_of_the_file() -> None:
    """The subset is chosen by hash."""
    statements = make_statements(30)
    assert limit_by_hash(statements, 5) == limit_by_hash(statements[::-1], 5)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"name": "\xff", "formal_statement": "x"}', "utf-8"),
        (b'{"name": "a", "formal_statement": "x", "q": ' + b"[" * 9000 + b"]" * 9000 + b"}", "recursion"),
        (b'{"name": " ", "formal_statement": "x"}', "`name` is empty"),
        (b'{"name": "a", "formal_statement": ""}', "`formal_statement` is empty"),
        (b'{"name": "a\\nb", "formal_statement": "x"}', "control characters"),
        (b"\x00", "malformed"),
    ],
    ids=["latin-1", "deep", "no-name", "no-statement", "line-break", "nul"],
)
def test_whatever_stands_in_a_row_is_named_with_its_line(tmp_path: Path, line: bytes, said: str) -> None:
    """One line for people, never a traceback."""
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'{"name": "good", "formal_statement": "x"}\n' + line + b"\n")
    with pytest.raises(PreflightError, match=rf"rows\.jsonl:2: .*{said}") as caught:
        read_statements(file)
    assert "\n" not in str(caught.value)


def test_a_mark_of_byte_order_is_no_part_of_the_first_row(tmp_path: Path) -> None:
    """Editors of some systems write one."""
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"name": "a", "formal_statement": "x"}\r\n')
    assert [statement.name for statement in read_statements(file)] == ["a"]


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    """Nobody may ever write to it."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(PreflightError, match="not a regular file"):
        read_statements(tmp_path / "pipe")


def test_a_file_without_statements_is_named(tmp_path: Path) -> None:
    """Empty lines are none; a file that is not there is told with the system's words."""
    path = tmp_path / "train.jsonl"
    path.write_text("\n  \n")
    with pytest.raises(PreflightError, match=r"train\.jsonl: holds no statements"):
        read_statements(path)
    with pytest.raises(PreflightError, match=r"none\.jsonl: cannot read the statements: No such file"):
        read_statements(tmp_path / "none.jsonl")


def test_no_limit_and_a_limit_beyond_the_file_keep_the_order() -> None:
    """A limit chooses by hash; without one nothing moves."""
    statements = make_statements(5)
    assert limit_by_hash(statements, 0) == limit_by_hash(statements, 5) == limit_by_hash(statements, 9) == statements
