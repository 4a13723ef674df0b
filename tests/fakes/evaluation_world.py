"""Everything around an evaluation, without vLLM and Lean: an engine that draws by its seed alone, and a judge."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from fd_async.app import Evaluated, evaluate, evaluating, find_subject
from fd_async.app.subject import evaluation_folder
from fd_async.config.load import dump_toml
from fd_async.config.schema import RunConfig
from fd_async.data.ledger import read_attempts
from fd_async.errors import EngineDied
from fd_async.rollouts import RolloutRunner
from fd_async.types import Completion, Rollout, Statement, ToolCall, Verdict, VersionSpan
from tests.fakes.control_plane import make_config

STOP = 9


class SeededEngine:
    """Its tokens are a function of seed and prompt; how long it takes is not."""

    def __init__(self) -> None:
        self.num_calls = 0
        self.dies_after: int | None = None
        self._clock = random.Random()

    async def generate(self, prompt_ids: list[int], *, seed: int | None = None, **_: Any) -> Completion:
        self.num_calls += 1
        if self.dies_after is not None and self.num_calls > self.dies_after:
            raise EngineDied("killed by the test")
        await anyio.sleep(self._clock.random() * 0.004)
        assert seed is not None
        draw = random.Random(f"{seed} {prompt_ids}")
        ids = [draw.randrange(10, 200) for _ in range(draw.randrange(1, 6))] + [STOP]
        logprobs = [-draw.randrange(1, 64) / 16 for _ in ids]
        return Completion(token_ids=ids, logprobs=logprobs, spans=[VersionSpan(0, 0, len(ids))], finish_reason="stop")

    def partial(self, request_id: str) -> None:
        return None


class NumberRenderer:
    """Ids of a text are its bytes; a turn writes its own ids as a file and checks it, or just ends."""

    stop_token_ids = (STOP,)
    template = "v1"

    def student_prompt(self, statement: Statement) -> list[int]:
        return list(hashlib.sha256(f"{self.template}{statement.formal_statement}".encode()).digest()[:6])

    def tool_result_ids(self, results: list[str], *, closed: bool) -> list[int]:
        return [7]

    def decode(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))

    def parse_tool_calls(self, text: str) -> list[ToolCall]:
        if int(text.split()[0]) % 3 == 0:
            return []
        file = {"file_name": "a.lean", "code": text}
        return [
            ToolCall(name="lean_write_file", arguments=file),
            ToolCall(name="lean_check_file", arguments={"file_name": "a.lean"}),
        ]


class NumberJudge:
    """Proved is what has an even sum of squares of digits; what `failure` names is not judged."""

    def __init__(self) -> None:
        self.toolchain = "leanprover/lean4:v4.9.0"
        self.failure: Callable[[str], bool] = lambda caller: False
        self.bad = Verdict(kind="bad_statement", reason="unknown constant")
        self.bad_names: set[str] = set()

    async def check(self, code: str, statement: Statement, *, caller: str = "") -> Verdict:
        await anyio.lowlevel.checkpoint()
        if self.failure(caller):
            return Verdict(kind="infrastructure", reason="no worker")
        digits = sum(int(digit) ** 2 for digit in code + statement.name if digit.isdigit())
        return Verdict(kind="proved") if digits % 4 == 0 else Verdict(kind="failed", reason="no")

    def known_fault(self, statement: Statement) -> Verdict | None:
        return self.bad if statement.name in self.bad_names else None

    async def examine(self, statement: Statement, *, caller: str = "") -> Verdict:
        await anyio.lowlevel.checkpoint()
        return self.bad if statement.name in self.bad_names else Verdict(kind="failed")

    async def audit(self, code: str, statement: Statement, verdict: Verdict) -> Verdict:
        return verdict


class World:
    """A model folder, suites, and the call."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = tmp_path
        self.engine, self.renderer, self.judge = SeededEngine(), NumberRenderer(), NumberJudge()
        self.said: list[str] = []
        self.num_starts = 0
        self.model = tmp_path / "model"
        self.model.mkdir()
        for name in ("config.json", "model.safetensors", "tokenizer.json"):
            (self.model / name).write_text(name)
        self.write_suite("s", 6)
        monkeypatch.setattr(evaluating, "serve", self._serve)
        monkeypatch.setattr(evaluating, "open_verifier", self._verifier)
        monkeypatch.setattr(evaluating, "load_renderer", lambda config: self.renderer)
        monkeypatch.setattr(evaluating, "make_runner", self._runner)

    def write_suite(self, name: str, size: int) -> Path:
        path = self.root / f"{name}.jsonl"
        rows = [{"name": f"{name}{i}", "formal_statement": f"theorem {name}{i} : {i} = {i} :="} for i in range(size)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    def make_run(self, **tables: dict[str, Any]) -> Path:
        """Return a run folder with the model as its checkpoint of step 3."""
        run = self.root / "runs/a"
        checkpoint = run / "checkpoints/step_000003"
        checkpoint.mkdir(parents=True)
        shutil.copytree(self.model, checkpoint / "model")
        manifest = {"step": 3, "algorithm": "fd", "ranks": 1, "config_hash": "", "written": 0.0, "files": {}}
        (checkpoint / "manifest.json").write_text(json.dumps(manifest))
        (run / "config.toml").write_text(dump_toml(self.config(**tables)))
        return run

    def config(self, **tables: dict[str, Any]) -> RunConfig:
        base: dict[str, dict[str, Any]] = {
            "run": {"name": "x"},
            "model": {"path": str(self.model)},
            "data": {"train": "none", "eval": [str(self.root / "s.jsonl")]},
            "rollout": {"concurrency": 4, "max_turns": 3},
            "eval": {"samples": 4, "k": [1, 2, 4]},
        }
        for table, keys in tables.items():
            base.setdefault(table, {}).update(keys)
        return make_config(**base)

    def evaluate(
        self, out: str = "out", *, source: Path | None = None, retry_failed: bool = False, **tables: dict[str, Any]
    ) -> Evaluated:
        config = self.config(**tables)
        subject = find_subject(config, source, None)
        folder = evaluation_folder(config, subject, self.root / out)
        return evaluate(config, subject, folder, retry_failed=retry_failed, say=self.said.append)

    def rollouts(self, out: str = "out") -> dict[str, tuple[Any, ...]]:
        """Return what was sampled and judged, by ticket; times left out."""
        records = read_attempts(self.root / out / "ledger.db", 10_000)
        return {record.rollout.id: essence(record.rollout) for record in records}

    @asynccontextmanager
    async def _serve(self, *_: Any, **__: Any) -> AsyncIterator[SeededEngine]:
        self.num_starts += 1
        yield self.engine

    @asynccontextmanager
    async def _verifier(self, *_: Any, **__: Any) -> AsyncIterator[NumberJudge]:
        yield self.judge

    def _runner(self, config: RunConfig, engine: Any, renderer: Any, verifier: Any) -> RolloutRunner:
        return RolloutRunner(
            engine=engine,
            renderer=renderer,
            verifier=verifier,
            search=None,  # type: ignore[arg-type]
            config=config.rollout,
        )


def essence(rollout: Rollout) -> tuple[Any, ...]:
    """Return all of an attempt but its times."""
    turns = [(turn.role, turn.start, turn.end, turn.text) for turn in rollout.turns]
    return (
        rollout.prompt_ids, rollout.completion_ids, rollout.logprobs, rollout.sampled_mask, turns,
        rollout.verdict.kind, rollout.end_reason, rollout.failure, rollout.final_file,
    )  # fmt: skip
