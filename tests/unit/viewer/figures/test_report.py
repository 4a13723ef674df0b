"""fd-report: files, page and images; safe, repeatable, and honest about what is missing."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fd_async.analysis.passk import Z_95, wilson
from fd_async.cli.main import main
from fd_async.viewer.figures.report import unlike_the_paper, write_figures
from fd_async.viewer.figures.runs import read_group
from fd_async.viewer.figures.table import FIGURES
from tests.fakes import run_folder
from tests.fakes.paper_runs import make_rows, write_result, write_run

EVIL = "<script>alert(1)</script>&\"' $x_1$ \\frac 定理 ∀ 🙂"


class Page(HTMLParser):
    """Collects tags with their attributes, and the text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.text = re.sub(r"\s+", " ", self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seeds of Feedback Distillation, GRPO, and GRPO over the first; two evaluated checkpoints."""
    root = tmp_path_factory.mktemp("runs")
    for seed in range(3):
        write_run(root / f"fd_{seed}", make_rows(80, seed=seed))
    write_run(root / "grpo", make_rows(80, seed=9, peak=0.5, entropy=0.2), {"algorithm": {"type": "grpo"}})
    (root / "fd_0" / "checkpoints" / "step_000040").mkdir(parents=True)
    origin = {"init_from": str(root / "fd_0" / "checkpoints" / "step_000040")}
    write_run(root / "over", make_rows(40), {"algorithm": {"type": "grpo"}, "model": origin})
    write_result(root / "fd_1", "a", 40, 0.4, 0.09)
    write_result(root / "grpo", "a", 60, 0.42, 0.04)
    return root


@pytest.fixture(scope="module")
def report(runs: Path) -> Path:
    """The report of all of them."""
    named = [("FD", [runs / f"fd_{seed}" for seed in range(3)]), ("", [runs / "grpo"]), ("", [runs / "over"])]
    return write_figures(named, runs / "out").index.parent


def rows_of(path: Path) -> list[dict[str, str]]:
    """Read a CSV file."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_every_figure_is_a_picture_with_its_numbers_beside_it(report: Path) -> None:
    """Figures 2 to 14, well-formed, with every label in the legend as text."""
    for number in range(2, 15):
        root = ElementTree.parse(report / f"figure_{number:02d}.svg").getroot()
        texts = {"".join(node.itertext()).strip() for node in root.iter("{http://www.w3.org/2000/svg}text")}
        assert {"FD, 3 runs", "grpo"} <= texts
        assert rows_of(report / f"figure_{number:02d}.csv")


def test_the_numbers_beside_a_figure_are_the_mean_and_the_ends_of_the_seeds(report: Path, runs: Path) -> None:
    """Compared with the rows themselves, unaveraged."""
    found = [
        row for row in rows_of(report / "figure_02.csv") if row["key"] == "policy/entropy" and row["label"] == "FD"
    ]
    assert len(found) == 80
    seeds = [make_rows(80, seed=seed)[7]["policy/entropy"] for seed in range(3)]
    row = next(row for row in found if row["x"] == "7")
    assert float(row["value"]) == pytest.approx(sum(seeds) / 3)  # type: ignore[arg-type]
    assert (float(row["low"]), float(row["high"])) == (min(seeds), max(seeds))  # type: ignore[type-var]
    assert row["num_runs"] == "3"


def test_grpo_over_feedback_distillation_begins_where_its_checkpoint_was_taken(report: Path) -> None:
    """Step 0 of that run is step 40 of the figure; rates count the steps of its own, and say so."""
    over = [row for row in rows_of(report / "figure_02.csv") if row["label"] == "over"]
    assert min(int(row["x"]) for row in over) == 40
    rate = [row for row in rows_of(report / "figure_03.csv") if row["label"] == "over" and "lemmas" in row["key"]]
    assert (rate[0]["x"], float(rate[0]["value"])) == ("1", float(make_rows(40)[1]["proofs/lemmas_total"] or 0))


def test_pass_at_k_is_drawn_for_the_matched_pair_and_names_it(report: Path) -> None:
    """Five values of k for each of the two."""
    found = [row for row in rows_of(report / "figure_03.csv") if row["panel"].startswith("pass@k")]
    assert [(row["label"], row["x"]) for row in found] == [(n, str(2**i)) for n in ("FD", "grpo") for i in range(5)]
    assert "FD (fd_1, step 40): pass@1 40.0%" in Page(report / "index.html").text


def test_the_page_holds_its_pictures_and_runs_nothing(report: Path) -> None:
    """Images are data, links stay in the folder, and there is no script."""
    page = Page(report / "index.html")
    assert "default-src 'none'" in (report / "index.html").read_text(encoding="utf-8")
    images = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert len(images) == len(FIGURES)
    assert all(str(source).startswith("data:image/svg+xml;base64,") for source in images)
    links = [str(attributes["href"]) for tag, attributes in page.tags if tag == "a"]
    assert all(link.startswith("#") or (report / link).is_file() for link in links)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}


def test_the_table_has_final_and_best_values_with_intervals(report: Path) -> None:
    """Seeds give lowest and highest, one run gives Wilson's interval."""
    found = {(row["label"], row["quantity"], row["statistic"]): row for row in rows_of(report / "numbers.csv")}
    seeds = found["FD", "MiniF2F accuracy", "final"]
    assert seeds["interval"] == "seeds"
    assert float(seeds["low"]) <= float(seeds["value"]) <= float(seeds["high"])
    alone = found["grpo", "Test accuracy", "best"]
    assert alone["interval"] == "Wilson 95 %, statements"
    assert float(alone["value"]) >= float(found["grpo", "Test accuracy", "final"]["value"])
    train = found["grpo", "Train accuracy", "mean of the last 20"]
    assert train["interval"] == "Wilson 95 %, statements"
    statements = 20 * 128 / 8  # eight attempts at one statement are no independent evidence
    ends = wilson(float(train["value"]), statements, Z_95)
    assert (float(train["low"]), float(train["high"])) == pytest.approx(ends)


def test_the_same_runs_give_the_same_bytes_in_another_process(report: Path, runs: Path, tmp_path: Path) -> None:
    """Whatever the hash seed, and whatever matplotlib settings the user has."""
    (tmp_path / "matplotlibrc").write_text("axes.facecolor: red\nsvg.fonttype: path\n")
    env = {**os.environ, "PYTHONHASHSEED": "7", "MATPLOTLIBRC": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    seeds = ",".join(str(runs / f"fd_{seed}") for seed in range(3))
    names = [f"FD={seeds}", str(runs / "grpo"), str(runs / "over")]
    command = [sys.executable, "-m", "fd_async.cli", "report", *names, "--to", str(tmp_path / "out")]
    subprocess.run(command, env=env, check=True, capture_output=True, timeout=50)
    first, second = (
        {path.name: path.read_bytes() for path in folder.iterdir()} for folder in (report, tmp_path / "out")
    )
    assert first == second


def test_labels_are_text_whatever_is_in_them(tmp_path: Path) -> None:
    """Neither markup nor formulas nor a leading underscore change what a legend or a page says."""
    folder = write_run(tmp_path / "a", make_rows(3))
    written = write_figures(
        [(EVIL, [folder]), ("_hidden", [write_run(tmp_path / "b", make_rows(3))])], tmp_path / "out"
    )
    page = Page(written.index)
    assert not {"script"} & {tag for tag, _ in page.tags}
    assert EVIL in page.text
    root = ElementTree.parse(tmp_path / "out" / "figure_14.svg").getroot()
    texts = ["".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert EVIL[:43] in "".join(texts)
    assert "_hidden" in texts


def test_a_figure_without_data_is_said_and_not_drawn(tmp_path: Path) -> None:
    """By run and key; an older picture of it goes away."""
    rows = [{"step": step, "policy/entropy": 0.5} for step in range(5)]
    out = tmp_path / "out"
    out.mkdir()
    (out / "figure_13.png").write_bytes(b"old")
    written = write_figures([("x", [write_run(tmp_path / "a", rows)])], out, "png")
    assert "13" in written.empty
    assert not (out / "figure_13.png").exists()
    assert (out / "figure_02.png").read_bytes().startswith(b"\x89PNG")
    text = Page(written.index).text
    assert "x: no words/check in metrics.jsonl (“check”)" in text
    assert "x: evaluates no suite that is MiniF2F" in text
    assert "Not the comparison of the title" not in text
    assert "no comparison of it" not in text  # a label alone is none


def texts(path: Path) -> str:
    """Return all text of an image."""
    root = ElementTree.parse(path).getroot()
    return " ".join("".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text"))


def test_an_image_says_itself_what_it_lacks_and_what_it_is_not(tmp_path: Path) -> None:
    """It may be shown without the page: bands, panels without data, runs that do not differ in what the title says."""
    rows = [{"step": step, "policy/entropy": 0.5, "policy/teacher_kl": 0.1} for step in range(1, 5)]
    folders = {name: write_run(tmp_path / name, rows) for name in ("a", "b", "c")}
    write_run(tmp_path / "c", rows, {"feedback": {"type": "self"}})
    written = write_figures([("one", [folders["a"], folders["b"]]), ("two", [folders["c"]])], tmp_path / "out")
    out = tmp_path / "out"
    assert "Lines: means over runs. Bands: lowest to highest run." in texts(out / "figure_05.svg")
    assert "Nothing to draw of: Test accuracy, MiniF2F accuracy." in texts(out / "figure_05.svg")
    assert texts(out / "figure_05.svg").count("gradient step") == 1  # no empty axes
    assert "Not the comparison of the title: these runs do not differ in feedback.text." in texts(out / "figure_07.svg")
    assert "Not the comparison" not in texts(out / "figure_04.svg")  # they differ in feedback.type
    text = Page(written.index).text
    assert "one, two: evaluates no suite that is MiniF2F (MiniF2F accuracy)" in text
    alone = write_figures([("one", [folders["a"]])], tmp_path / "alone").index.parent
    assert "Not the comparison" not in texts(alone / "figure_07.svg")
    assert "Bands" not in texts(alone / "figure_05.svg")


@pytest.mark.parametrize(
    ("number", "first", "second", "said"),
    [
        ("5", {"feedback.type": "anthropic"}, {"algorithm.type": "grpo"}, "no run here has feedback.type = self"),
        ("5", {"feedback.type": "self"}, {"algorithm.type": "grpo"}, ""),
        ("12", {"feedback.prompt": 4}, {"algorithm.type": "grpo"}, "do not differ in feedback.prompt"),
        ("12", {"feedback.prompt": 4}, {"feedback.prompt": 1}, ""),
        ("9", {"learner.lr": 1e-7}, {"learner.lr": 1e-7}, "do not differ in learner.lr"),
    ],
)
def test_a_figure_that_is_another_comparison_than_the_papers_says_why(
    number: str, first: dict[str, object], second: dict[str, object], said: str, tmp_path: Path
) -> None:
    """GRPO has no feedback, which is not another prompt."""
    groups = []
    for name, values in (("a", first), ("b", second)):
        tables = [{key.partition(".")[0]: {key.partition(".")[2]: value}} for key, value in values.items()]
        groups.append(read_group(name, [write_run(tmp_path / name, make_rows(1), tables[0])]))
    figure = next(figure for figure in FIGURES if figure.number == number)
    found = unlike_the_paper(figure, groups)
    assert (said in found) if said else not found


def test_labels_that_lack_the_same_are_named_together(tmp_path: Path) -> None:
    """One line, not one for each."""
    rows = [{"step": 1, "policy/entropy": 0.5}]
    named = [(name, [write_run(tmp_path / name, rows)]) for name in ("a", "b", "c")]
    text = Page(write_figures(named, tmp_path / "out").index).text
    assert "a, b, c: evaluates no suite that is MiniF2F (MiniF2F accuracy)" in text


def test_axes_of_the_same_name_begin_and_end_alike(tmp_path: Path) -> None:
    """An evaluation at step 20 stands right of the first of 40 steps, and under the twentieth of them."""
    rows: list[dict[str, float | int | None]] = [{"step": step, "policy/entropy": 0.5} for step in range(1, 41)]
    rows[19] |= {"eval/test/pass@1": 0.25}
    rows[29] |= {"eval/test/pass@1": 0.5}
    out = write_figures([("x", [write_run(tmp_path / "a", rows)])], tmp_path / "out").index.parent
    image = (out / "figure_05.svg").read_text(encoding="utf-8")
    ticks = [re.findall(r">(\d+)</text>", part) for part in re.split(r'id="axes_\d"', image)[1:]]
    assert "10" in ticks[0]
    assert set(ticks[0]) & {"10", "20", "30", "40"} == set(ticks[1]) & {"10", "20", "30", "40"}


def test_leaks_are_measured_where_there_is_feedback_and_named_where_not(tmp_path: Path) -> None:
    """The ledger of a real run, a missing one and a broken one."""
    real = run_folder.write_run(tmp_path / "real", num_steps=4, num_attempts=12)
    broken = write_run(tmp_path / "broken", make_rows(3))
    (broken / "ledger.db").write_bytes(b"rubbish" * 1000)
    none = write_run(tmp_path / "none", make_rows(3))
    text = Page(write_figures([("", [real]), ("", [broken]), ("", [none])], tmp_path / "out").index).text
    assert "real: nothing to measure for “given away”" in text
    assert "none: there is no ledger.db" in text
    assert re.search(r"broken: .*the ledger is damaged", text)


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Run fd-report and return its exit code and what it says on stderr."""
    code = main(["report", *arguments])
    return code, capsys.readouterr().err


def test_wrong_arguments_are_named_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2 for arguments, 3 for files."""
    run, empty = str(write_run(tmp_path / "a", make_rows(1))), str(write_run(tmp_path / "e", []))
    assert answer(capsys, "nowhere")[0] == 2
    assert answer(capsys, f"={run}") == (
        2,
        f"fd-report: {f'={run}'!r}: the label before = is empty; write LABEL=RUN or RUN\n",
    )
    assert answer(capsys, f"x={run},")[0] == 2
    assert "given twice" in answer(capsys, f"x={run}", f"x={empty}")[1]
    code, said = answer(capsys, empty, "--to", str(tmp_path / "out"))
    assert (code, "there is nothing to draw yet" in said) == (3, True)
    (tmp_path / "file").write_text("")
    code, said = answer(capsys, run, "--to", str(tmp_path / "file" / "out"))
    assert (code, said.count("\n")) == (3, 1)
    assert "--to" in said
    assert "Traceback" not in said


def test_a_missing_matplotlib_is_said_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What to install stands in the line."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    from fd_async.errors import PreflightError

    with pytest.raises(PreflightError, match="figures need matplotlib"):
        write_figures([("", [write_run(tmp_path / "a", make_rows(1))])], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_figure_1_of_an_attempt_shows_its_tokens_feedback_and_probabilities(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One page without a script, also for text that looks like markup."""
    evil = f"{EVIL}\u202e"
    run = run_folder.write_run(tmp_path / "run", num_steps=2, num_attempts=4, proof=evil, feedback=evil)
    assert answer(capsys, str(run), "--attempt", "train-0000000-00")[0] == 0
    page = Page(run / "figures" / "attempt_train-0000000-00.html")
    assert page.text.count("alert(1)") >= 2
    assert page.text.count("⟨U+202E⟩") >= 2  # a proof that would look like another one
    assert "\u202e" not in page.text
    assert "script" not in {tag for tag, _ in page.tags}
    titles = [str(attributes["title"]) for tag, attributes in page.tags if tag == "span" and "title" in attributes]
    assert any(title.startswith("+") for title in titles)
    assert "student" in page.text
    assert "Real 98.1%" in " ".join(page.text.split())  # what the teacher would write
    assert "the ledger of" in answer(capsys, str(run), "--attempt", "../../x")[1]
    assert answer(capsys, str(run), "--attempt", "train-0000001-00")[0] == 0
    assert "tokens have no colour" in Page(run / "figures" / "attempt_train-0000001-00.html").text
