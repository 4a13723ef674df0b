"""Files, folders and rows: what is read byte for byte, and what is refused with one line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fd_async.config.schema import Data
from fd_async.data.sources import Sources, files, read_selection
from fd_async.data.statements import read_statements
from fd_async.errors import PreflightError
from fd_async.types import Statement
from tests.fakes.control_plane import make_config

ODD = "theorem odd (x : ℝ) :\r\n  x = x \ufeff  :=  by  "
"""CRLF, a mark of byte order inside, two spaces before `by`, and two behind it."""


def rows_of(path: Path, **keys: object) -> list[Statement]:
    return Sources(Data(headers="keep", **keys)).read(str(path))  # type: ignore[arg-type]


def write_parquet(path: Path, **columns: list[object]) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def test_the_text_of_a_statement_is_kept_byte_for_byte(tmp_path: Path) -> None:
    """JSONL, Parquet and Lean sources give the same bytes."""
    row = {"name": "odd", "formal_statement": ODD, "header": "open Nat  \r\n"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    write_parquet(tmp_path / "rows.parquet", **{name: [value] for name, value in row.items()})
    (tmp_path / "lean").mkdir()
    (tmp_path / "lean" / "odd.lean").write_bytes((row["header"] + ODD).encode())
    for name in ("rows.jsonl", "rows.parquet", "lean"):
        (found,) = rows_of(tmp_path / name)
        assert (found.name, found.formal_statement, found.header) == ("odd", ODD, row["header"]), name


def test_a_lean_file_gives_each_of_its_statements_the_header_above_all(tmp_path: Path) -> None:
    """Doc comments, attributes and proofs belong to their statement; all pieces together are the file."""
    source = (
        "import Mathlib\n-- theorem not_me : False := by\n/- nor\ntheorem me -/\nopen Nat\n\n"
        "/-- The first. -/\n@[simp]\ntheorem one(s : String := \"theorem x :=\") : 1 = 1 := by sorry\n\n"
        "lemma two : let y := 2; y = 2 := by\n  -- sorry, no\n  rfl\n"
    )  # fmt: skip
    (tmp_path / "a.lean").write_text(source)
    (tmp_path / "all.lean").write_text("import a\n-- nothing else\n")
    one, two = rows_of(tmp_path)
    assert (one.name, two.name, one.proof, two.proof) == ("one", "two", None, "by\n  -- sorry, no\n  rfl")
    assert one.formal_statement.startswith("/-- The first. -/")
    assert two.formal_statement.endswith("y = 2 :=")
    assert one.header == two.header
    assert (one.header + one.formal_statement + two.formal_statement) == source[: source.index(" by\n  -- sorry")]


def test_columns_are_mapped_and_whole_files_in_them_taken_apart(tmp_path: Path) -> None:
    """A data set that only has full proofs gives header, statement and known proof."""
    text = "import Mathlib\n/- words -/\ntheorem t (h : 1 = 1) : True := by\n  trivial"
    path = write_parquet(tmp_path / "x.parquet", problem_id=["t", "u"], full_proof=[text, text], split=["a", "b"])
    columns = ["name=problem_id", "formal_statement=full_proof", "proof=full_proof"]
    (found,) = Sources(Data(columns=columns)).read(f"{path}#split=b")
    assert found == Statement(
        name="u", formal_statement="theorem t (h : 1 = 1) : True :=", header="import Mathlib", proof="by\n  trivial"
    )
    with pytest.raises(PreflightError, match="none of its 2 rows has #split=c"):
        rows_of(Path(f"{path}#split=c"), columns=columns)
    with pytest.raises(PreflightError, match=r"x.parquet:1: not a statement \(no column `name`; it has `problem_id`"):
        rows_of(path)


def test_a_statement_that_cannot_be_taken_apart_is_left_to_the_verifier(tmp_path: Path) -> None:
    """It is reported there; two theorems in one row are refused at once."""
    odd = "open Real in theorem t : True := by sorry"
    (found,) = rows_of(write_parquet(tmp_path / "x.parquet", name=["t"], formal_statement=[odd]))
    assert (found.formal_statement, found.header) == (odd, "")
    two = "import Mathlib\nlemma a : True := trivial\ntheorem t : True := by sorry"
    with pytest.raises(PreflightError, match=r"x.parquet:1: `formal_statement` has 2 theorems, expected one"):
        rows_of(write_parquet(tmp_path / "x.parquet", name=["t"], formal_statement=[two]))


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ({"name": ["a", "a"], "formal_statement": ["x", "x"]}, r"x.parquet:2: name 'a' stands in line 1 too"),
        ({"name": ["a", None], "formal_statement": ["x", "x"]}, r"x.parquet:2: not a statement \(no column `name`"),
        ({"name": ["a", "b"], "formal_statement": [1, 2]}, r"is no text but int\) \(2 of 2 rows are bad, this is"),
        ({"name": ["a"], "formal_statement": [" "]}, "x.parquet:1: `formal_statement` is empty"),
        ({"name": [], "formal_statement": []}, "holds no statements"),
    ],
)
def test_a_bad_row_is_named_by_its_number_and_all_are_counted(
    tmp_path: Path, rows: dict[str, list[object]], said: str
) -> None:
    """Nothing is dropped silently."""
    with pytest.raises(PreflightError, match=said):
        rows_of(write_parquet(tmp_path / "x.parquet", **rows))


def test_damaged_parquet_files_are_one_line(tmp_path: Path) -> None:
    """Rubbish, a file cut anywhere, and single bytes changed."""
    good = write_parquet(
        tmp_path / "good.parquet", name=[f"t{i}" for i in range(300)], formal_statement=["theorem"] * 300
    ).read_bytes()
    bad = tmp_path / "bad.parquet"
    damaged = [b"", b"PAR1", os.urandom(5000), b"PAR1" + os.urandom(500) + b"PAR1"]
    damaged += [good[:cut] for cut in range(0, len(good), len(good) // 40)]
    damaged += [good[:at] + bytes([good[at] ^ 0xFF]) + good[at + 1 :] for at in range(0, len(good), len(good) // 150)]
    refused: list[str] = []
    for content in damaged:
        bad.write_bytes(content)
        try:
            rows_of(bad)
        except PreflightError as error:
            refused.append(str(error))
    assert len(refused) > 50
    assert not [line for line in refused if "\n" in line]


def test_what_is_no_data_is_refused_with_one_line(tmp_path: Path) -> None:
    """A folder without Lean sources, a pipe, what is not Lean, and what is not there."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").mkdir()
    lean = tmp_path / "lean"
    lean.mkdir()
    (lean / "open.lean").write_text("theorem a : True := by sorry /- for ever")
    (lean / "def.lean").write_text("theorem b : True := by sorry\ndef c := 1\n")
    (lean / "nothing.lean").write_text("open Nat\n")
    (lean / "bytes.lean").write_bytes(b"\xff")
    os.mkfifo(lean / "pipe.lean")
    for path, said in (
        ("pipe", "not a regular file"),
        ("empty", "holds no .lean files"),
        ("gone", "No such file"),
        ("x\0y", "null byte"),
        ("lean/open.lean", "line 1: a comment does not end"),
        ("lean/def.lean", "line 2: `def` stands below the first statement"),
        ("lean/nothing.lean", "states no theorem"),
        ("lean", r"bytes.lean: not Lean source.* \(5 of 5 rows are bad"),
    ):
        with pytest.raises(PreflightError, match=said) as caught:
            rows_of(tmp_path / path)
        assert "\n" not in str(caught.value)


def test_a_line_without_end_is_not_read_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gigabyte of anything is refused after the longest row there can be."""
    monkeypatch.setattr(files, "MAX_ROW_BYTES", 1000)
    with (tmp_path / "big.jsonl").open("wb") as file:
        file.write(b'{"name": "a", "formal_statement": "x"}\n')
        file.truncate(2**30)
    with pytest.raises(PreflightError, match=r"big.jsonl:2: the line is longer than"):
        read_statements(tmp_path / "big.jsonl")


def test_one_source_gives_training_and_held_out_statements(tmp_path: Path) -> None:
    """Their hashes are printed, and statements on both sides are named."""
    path = tmp_path / "all.jsonl"
    rows = [{"name": f"t{i}", "formal_statement": f"theorem t{i} : {i} = {i} := by"} for i in range(50)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "own.jsonl").write_text(json.dumps({**rows[0], "name": "again"}) + "\n")
    data = {"source": str(path), "train": "", "eval": [str(tmp_path / "own.jsonl")], "num_train": 40, "num_test": 5}
    found = read_selection(make_config(data=data))
    assert (len(found.train), list(found.suites), len(found.suites["all"])) == (40, ["own", "all"], 5)
    assert not {row.name for row in found.train} & {row.name for row in found.suites["all"]}
    assert [line.split(": ")[1].split(" = ")[0] for line in found.lines[:2]] == ["train", "suite own"]
    assert all(len(line.rpartition("sha256 ")[2]) == 64 for line in found.lines if "sha256" in line)
    assert any("stand in the suite own too (t0)" in line for line in found.lines) == any(
        row.name == "t0" for row in found.train
    )
    twice = {**data, "eval": [f"{path}#test"]}
    with pytest.raises(PreflightError, match="two sources are called all"):
        read_selection(make_config(data=twice))
