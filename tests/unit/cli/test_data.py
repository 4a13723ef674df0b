"""fd-data, as a person types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fd_async.cli.main import main

CHECKOUT = Path(__file__).parents[3]
TINY = str(CHECKOUT / "configs" / "tiny_fd.toml")


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Twenty statements of the tiny world, two of them twins, and one that is none."""
    path = tmp_path / "rows.jsonl"
    stated = {f"t{i}": f"theorem t{i} (x : Nat) : x + {i} = x + {i} := by sorry" for i in range(18)}
    stated |= {"twin": stated["t0"].replace("t0", "twin"), "bad": "theorem bad (x : Nat) : x = nowhere := by sorry"}
    path.write_text("".join(json.dumps({"name": n, "formal_statement": text}) + "\n" for n, text in stated.items()))
    return path


def test_what_a_source_holds_is_printed(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Number, hash, headers, longest and twins; no configuration is needed."""
    assert main(["data", str(rows)]) == 0
    out = capsys.readouterr().out
    assert "statements  20, 0 with a known proof" in out
    assert "headers     1: 20 x none (verifier.header)" in out
    assert "twins       1 under other names: t0 = twin" in out


def test_the_split_is_written_and_read_back_with_the_same_hashes(
    rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A second time it is the same, and nothing else is overwritten."""
    call = ["data", str(rows), "--num-train", "10", "--num-test", "4", "--write", str(tmp_path / "out")]
    assert main(call) == main(call) == 0
    said = [line.split()[-1] for line in capsys.readouterr().out.splitlines() if "statements, sha256" in line][:2]
    for part, digest in zip(("train", "test"), said, strict=True):
        assert main(["data", str(tmp_path / "out" / f"rows.{part}.jsonl")]) == 0
        assert digest in capsys.readouterr().out
    call[3] = "9"
    assert main(call) == 3
    assert "rows.train.jsonl: holds something else already" in capsys.readouterr().err


def test_statements_that_do_not_compile_are_reported_with_the_checkers_words(
    rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The exit code says so, and nothing is dropped."""
    report = tmp_path / "report.jsonl"
    call = ["data", str(rows), "--config", TINY, "--set", "model.path=some/model", "--check"]
    call += ["--report", str(report)]
    assert main(call) == 1
    out = capsys.readouterr().out
    assert "19 compile with `sorry`, 1 do not" in out
    (row,) = [json.loads(line) for line in report.read_text().splitlines()]
    assert (row["name"], row["kind"], row["source"]) == ("bad", "bad_statement", str(rows))
    assert "nowhere" in row["output"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "no SOURCE needs --config FILE"),
        (["x.jsonl", "--check"], 2, "--check needs --config FILE"),
        (["gone.jsonl"], 3, "gone.jsonl: cannot read the statements: No such file"),
        (["gone.jsonl#half"], 2, "#half is unknown; write #train, #test or #COLUMN=VALUE"),
        (["minif2f", "--offline"], 3, "is not in the cache"),
        (["x.jsonl", "--columns", "statement=x"], 2, "--columns: 'statement=x' is not OURS=THEIRS"),
        (["x.jsonl", "--num-test", "0"], 2, "--num-test: give at least 1"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What happened, and which argument or file."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", "nowhere")
    assert main(["data", *arguments]) == code
    lines = [line for line in capsys.readouterr().err.splitlines() if "--debug" not in line]
    assert len(lines) == 1
    assert said in lines[0]
