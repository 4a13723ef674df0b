"""What a resume may not change: refused at once, with one line, and nothing of the run is touched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from fd_async.app import running
from fd_async.app.resuming import (
    FIXED,
    Past,
    read_past,
    recognise,
    refuse_changed_keys,
    refuse_other_contents,
    write_identity,
)
from fd_async.config.load import flat
from fd_async.config.schema import RunConfig
from fd_async.data.ledger import open_ledger
from fd_async.errors import ConfigError
from fd_async.types import PartialRollout, Statement
from tests.fakes.checkpoints import write_checkpoint
from tests.fakes.control_plane import make_config

pytestmark = pytest.mark.anyio

OTHER = {
    "run.seed": 1,
    "model.dtype": "float32",
    "model.thinking": False,
    "rollout.tools": False,
    "rollout.temperature": 0.9,
    "algorithm.type": "grpo",
}
TRAIN = [Statement(name=name, formal_statement=f"theorem {name} : True := by sorry") for name in "abc"]


class Prompts:
    """A renderer as far as prompts are compared."""

    stop_token_ids = (7,)

    def __init__(self, opening: int = 1) -> None:
        self._opening = opening

    def student_prompt(self, statement: Statement) -> list[int]:
        return [self._opening, len(statement.formal_statement)]

    def tool_result_ids(self, results: list[str], *, closed: bool) -> list[int]:
        return [len(results), closed]


def changed(key: str, value: object) -> RunConfig:
    table, _, name = key.partition(".")
    return make_config(**{table: {name: value}})


async def begun(run_dir: Path, config: RunConfig) -> Path:
    """Make a run with one checkpoint."""
    (run_dir / "checkpoints").mkdir()
    (run_dir / "config.toml").write_text(running.dump_toml(config))
    return await write_checkpoint(run_dir / "checkpoints", 2)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("key", sorted(FIXED))
async def test_a_key_that_decides_what_was_recorded_is_refused_at_once(tmp_path: Path, key: str) -> None:
    """Before data, model and engine, none of which is there; `rollout.tools` used to end a run an hour later."""
    await begun(tmp_path, make_config())
    before = contents(tmp_path)
    with pytest.raises(ConfigError) as refused:
        await running.run_experiment(changed(key, OTHER[key]), tmp_path, True)
    assert str(refused.value).startswith(f"{key} was ")
    assert str(refused.value).endswith("; set it back, or start a new run with --run NAME")
    assert "\n" not in str(refused.value)
    assert refused.value.exit_code == 2
    assert contents(tmp_path) == before


def test_every_changed_key_gets_its_line() -> None:
    """Who corrects one should not meet the next one then."""
    config = make_config(**{"run": {"seed": 3}, "rollout": {"tools": False}, "learner": {"lr": 1e-3}})
    with pytest.raises(ConfigError) as refused:
        refuse_changed_keys(config, Past(flat(msgspec.to_builtins(make_config()))))
    assert [line.split()[0] for line in str(refused.value).splitlines()] == ["run.seed", "rollout.tools"]


def test_all_other_keys_may_change() -> None:
    """Hyperparameters hold from the next step on; the rest says how, where and how fast."""
    now = flat(msgspec.to_builtins(make_config()))
    before = {key: value if key in FIXED else "another" for key, value in now.items()}
    refuse_changed_keys(make_config(), Past(before))
    refuse_changed_keys(make_config(), Past({}))


async def test_a_run_without_attempts_and_checkpoints_has_nothing_to_keep(tmp_path: Path) -> None:
    """Its first start was refused, or it was stopped while the model was loading; one attempt under way is enough."""
    (tmp_path / "config.toml").write_text(running.dump_toml(make_config()))
    assert read_past(tmp_path, None) == Past()
    async with open_ledger(tmp_path / "ledger.db") as ledger:
        assert read_past(tmp_path, None) == Past()
        partial = PartialRollout(
            id="a", ordinal=0, sample=0, admitted_version=0, prompt_ids=[1], completion_ids=[2], logprobs=[-1.0],
            spans=[], turns=[],
        )  # fmt: skip
        await ledger.put_partials([partial])
    assert read_past(tmp_path, None).keys["run.seed"] == 0


@pytest.mark.parametrize(("name", "text"), [("config.toml", "[run"), ("config.toml", "\x00"), ("identity.json", "{]")])
async def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, text: str) -> None:
    """Nobody knows what such a run began with."""
    folder = await begun(tmp_path, make_config())
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=rf"{name}: cannot be read \(.*put back a copy"):
        read_past(tmp_path, folder)


def model(folder: Path, weights: bytes = b"weights") -> str:
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(weights)
    return str(folder)


def seen(path: str, train: list[Statement] = TRAIN, prompts: Any = None) -> tuple[RunConfig, dict[str, str]]:
    config = make_config(model={"path": path})
    return config, recognise(config, train, prompts or Prompts())


async def test_files_may_move_but_not_change(tmp_path: Path) -> None:
    """They are compared by what is in them, so a mount under another name is the same model."""
    config, found = seen(model(tmp_path / "a"))
    folder = await begun(tmp_path, config)
    write_identity(tmp_path, Past(), found)
    past = read_past(tmp_path, folder)
    assert past.found == found
    moved, same = seen(model(tmp_path / "b"))
    refuse_other_contents(moved, past, same)
    changes = {
        r'model\.path = ".*/c": other weights.*\(model\.path was ".*/a" and is ".*/c"\); set': seen(
            model(tmp_path / "c", b"trained")
        ),
        r'model\.path = ".*/a": tokenizer or chat template': seen(str(tmp_path / "a"), prompts=Prompts(2)),
        r'data\.train = "none": other statements, or another order of them': seen(str(tmp_path / "a"), TRAIN[::-1]),
    }
    for line, (other, contents) in changes.items():
        with pytest.raises(ConfigError, match=f"^{line}"):
            refuse_other_contents(other, past, contents)
        write_identity(tmp_path, past, contents)
        assert read_past(tmp_path, folder).found == found, "what the first life found stands"


def test_every_part_of_a_statement_and_their_order_count(tmp_path: Path) -> None:
    """The order of a run is drawn over positions, so one row more gives every ordinal another statement."""
    path = model(tmp_path / "a")
    lists = [TRAIN, TRAIN[:2], TRAIN[1:] + TRAIN[:1]]
    lists += [[msgspec.structs.replace(TRAIN[0], **{key: "x"}), *TRAIN[1:]] for key in ("formal_statement", "header")]
    assert len({seen(path, train)[1]["data.train"] for train in lists}) == len(lists)


def test_a_model_that_is_not_here_yet_is_not_compared(tmp_path: Path) -> None:
    """Weights of a hub's id may come with the engine; they are noted by the first life that finds them."""
    config, found = seen(str(tmp_path / "nowhere"))
    past = Past({}, {"model.path": "before"})
    assert "model.path" not in found
    refuse_other_contents(config, past, found)


async def test_a_start_is_known_by_its_manifest(tmp_path: Path) -> None:
    """Another checkpoint in the same place is another start, although nobody changed a key."""
    start = tmp_path / "fd" / "step_000020"
    start.mkdir(parents=True)
    (start / "manifest.json").write_text("one")
    config = make_config(model={"path": model(tmp_path / "a"), "init_from": str(start)})
    found = recognise(config, TRAIN, Prompts())
    folder = await begun(tmp_path, config)
    write_identity(tmp_path, Past(), found)
    past = read_past(tmp_path, folder)
    refuse_other_contents(config, past, recognise(config, TRAIN, Prompts()))
    (start / "manifest.json").write_text("two")
    with pytest.raises(ConfigError, match=r"model\.init_from = .*: another checkpoint than the one that the run began"):
        refuse_other_contents(config, past, recognise(config, TRAIN, Prompts()))
