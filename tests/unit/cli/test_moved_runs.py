"""Runs that lie elsewhere than their own files say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

from fd_async.cli import main


def test_a_run_that_was_moved_resumes_where_it_lies(config: Path, app: Callable[..., None]) -> None:
    """Its file says what the folders were called in a container; where it starts from is looked for later."""
    seen: list[object] = []
    app(run=lambda *given: seen.extend(given) or 0)
    folder = Path("kept/mine")
    (folder / "checkpoints").mkdir(parents=True)
    moved = '[run]\ndir = "/app/runs"\nname = "grpo"\n'
    text = config.read_text().replace("[model]\n", '[model]\ninit_from = "/app/runs/fd/checkpoints/step_000020"\n')
    (folder / "config.toml").write_text(text + moved)
    assert main(["run", "--run", "kept/mine", "--resume"]) == 0
    resolved, run_dir, _ = seen
    assert (run_dir, resolved.run.dir, resolved.run.name) == (folder, "kept", "mine")
    assert resolved.model.init_from == "/app/runs/fd/checkpoints/step_000020"
    Path("other/mine/checkpoints").mkdir(parents=True)
    assert main(["run", "--run", "kept/mine", "--resume", "--set", "run.dir=other"]) == 0
    assert seen[4] == Path("other/mine"), "what is said by --set is the last word"
    assert main(["run", "--config", str(folder / "config.toml")]) == 2, "a fresh start needs it there"


def test_a_replay_lies_beside_the_run_that_was_moved(config: Path, app: Callable[..., None]) -> None:
    """The folder of another machine, which its file names, is neither needed nor made."""
    seen: list[object] = []
    app(replay=lambda *given: seen.extend(given) or SimpleNamespace(text="equal", difference=""))
    folder = Path("kept/mine")
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(config.read_text() + '[run]\ndir = "/app/runs"\nname = "grpo"\n')
    assert main(["run", "--replay", str(folder)]) == 0
    _, recorded, run_dir = seen
    assert (recorded, run_dir) == (folder, folder.resolve().parent / "mine-replay")
