"""Reading, merging and refusing configurations."""

from __future__ import annotations

from pathlib import Path

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from fd_async.config.load import dump_toml, load_config, parse_value
from fd_async.errors import ConfigError

BASE = """\
[model]
path = "Qwen/Qwen3-8B"
[data]
train = "train.jsonl"
[feedback]
type = "constant"
[learner]
lr = 1e-5
"""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A small correct file."""
    file = tmp_path / "base.toml"
    file.write_text(BASE)
    return file


def problems(file: Path, *sets: str, overlay: str = "", check_files: bool = False) -> list[str]:
    """Load what must fail and return its lines."""
    overlays = []
    if overlay:
        overlays = [file.with_name("overlay.toml")]
        overlays[0].write_text(overlay)
    with pytest.raises(ConfigError) as caught:
        load_config(file, overlays, sets, check_files=check_files)
    return str(caught.value).splitlines()


def test_later_files_replace_keys_and_keep_the_rest_of_the_table(base: Path, tmp_path: Path) -> None:
    """Overlays are merged by table, `--set` comes last."""
    overlay = tmp_path / "more.toml"
    overlay.write_text('[learner]\nwarmup_steps = 7\n[feedback]\ntext = "try omega"\n')
    config = load_config(base, [overlay], ["learner.warmup_steps=9"], check_files=False)
    assert (config.learner.lr, config.learner.warmup_steps, config.feedback.text) == (1e-5, 9, "try omega")


def test_the_run_takes_the_name_of_the_first_file(base: Path) -> None:
    """An empty run.name is filled from the file's stem."""
    assert load_config(base, check_files=False).run.name == "base"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("1e-5", 1e-5),
        ("true", True),
        ('""', ""),
        ("", ""),
        ("async", "async"),
        ("[1, 2]", [1, 2]),
        ("a=b", "a=b"),
    ],
)
def test_a_set_value_is_toml_or_text(text: str, value: object) -> None:
    """What TOML does not know is text."""
    assert parse_value(text) == value


@given(st.text())
def test_any_text_is_some_value(text: str) -> None:
    """No right side of `--set` raises, and a TOML string is read as what it spells."""
    parse_value(text)
    assert parse_value(tomli_w.dumps({"value": text}).removeprefix("value = ").rstrip("\n")) == text


def test_set_empties_a_text(base: Path) -> None:
    """`feedback.text=""` is the control experiment."""
    assert load_config(base, [], ['feedback.text=""'], check_files=False).feedback.text == ""


def test_set_takes_numbers_as_text_where_text_is_wanted(base: Path) -> None:
    """A run may be called 7."""
    assert load_config(base, [], ["run.name=7"], check_files=False).run.name == "7"


def test_every_problem_comes_at_once_with_its_line(base: Path) -> None:
    """Unknown keys, wrong types, ranges, choices and combinations are all reported, each with its place."""
    overlay = '[learner]\nlr = "fast"\nlearning_rate = 1\n[run]\nmode = "asink"\nseed = -1\n[eval]\nk = [8]\n[learnr]\n'
    lines = problems(base, "algorithm.top_k=0", "feedback.typ=x", overlay=overlay)
    expected = [
        'overlay.toml:2: learner.lr = "fast": expected a number > 0',
        "overlay.toml:3: learner.learning_rate = 1: unknown key",
        'overlay.toml:5: run.mode = "asink": expected one of "async", "sync"; did you mean "async"?',
        "overlay.toml:6: run.seed = -1: expected an integer >= 0",
        "overlay.toml:8: eval.k = [8]: pass@8 (eval.k) needs at least 8 attempts",
        "overlay.toml:9: [learnr] is not a table; did you mean [learner]?",
        "--set: algorithm.top_k = 0: expected an integer > 0",
        '--set: feedback.typ = "x": unknown key; did you mean feedback.type?',
    ]
    for line in expected:
        assert any(line in found for found in lines), (line, lines)
    assert len(lines) == len(expected)


def test_a_key_in_the_wrong_table_names_the_right_one(base: Path) -> None:
    """People remember the key and forget its table."""
    assert problems(base, "algorithm.lr=1e-5") == ["--set: algorithm.lr = 1e-05: unknown key; did you mean learner.lr?"]


@pytest.mark.parametrize("given", ["learner.lr", "lr=1", "=", "a.b.c=1"])
def test_a_set_without_table_and_key_is_refused(base: Path, given: str) -> None:
    """The form is table.key=value."""
    assert [line[:7] for line in problems(base, given)] == ["--set: "]


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "true", '"1"'])
def test_numbers_are_finite_numbers(base: Path, value: str) -> None:
    """TOML allows nan and inf, training does not."""
    assert "expected a number > 0" in problems(base, f"learner.lr={value}")[0]


def test_missing_required_keys_are_named(tmp_path: Path) -> None:
    """An empty file lacks a model and data."""
    file = tmp_path / "empty.toml"
    file.write_text("")
    lines = problems(file)
    assert [line.split(": ")[1].split()[0] for line in lines[:2]] == ["model.path", "data.train"]


def test_broken_toml_names_the_line(tmp_path: Path) -> None:
    """The parser's message keeps its line, and nothing else is reported."""
    file = tmp_path / "broken.toml"
    file.write_text("[run]\nseed = \n")
    assert problems(file) == [f"{file}:2: not valid TOML: Invalid value"]


def test_a_missing_file_suggests_its_neighbour(base: Path) -> None:
    """A typo in a file name is the usual reason."""
    assert problems(base.with_name("bsae.toml")) == [
        f"{base.with_name('bsae.toml')}: no such file; did you mean {base}?"
    ]


def test_missing_data_and_model_folders_are_problems(base: Path) -> None:
    """Local paths must exist, Hugging Face ids are not looked up."""
    lines = problems(base, "model.path=./nowhere", "data.eval=gone.jsonl", check_files=True)
    assert [line.split(" = ")[0].split(": ")[-1] for line in lines] == ["data.train", "data.eval", "model.path"]


def test_a_secret_in_place_of_its_name_is_never_printed(base: Path) -> None:
    """People paste keys into api_key_env."""
    (line,) = problems(base, "feedback.api_key_env=sk-ant-123")
    assert "sk-ant" not in line
    assert "NAME of an environment variable" in line


def test_a_written_configuration_reads_back_equal(base: Path, tmp_path: Path) -> None:
    """config.toml of a run is the run."""
    config = load_config(
        base, [], ["policy.gpus=[]", "run.name=a", "feedback.text=\"line\\n'quote'\""], check_files=False
    )
    copy = tmp_path / "config.toml"
    copy.write_text(dump_toml(config, header="resolved\nby a test"))
    assert load_config(copy, check_files=False) == config
