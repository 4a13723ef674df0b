"""A fleet over fake servers, for the tests of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from msgspec.structs import replace

from fd_async.config.schema import RunConfig
from fd_async.policy.contract import fingerprint
from fd_async.policy.servers import open_servers, pushing, watching
from fd_async.policy.servers.fleet import Fleet
from fd_async.types import Completion, StagedWeights, VersionSpan
from tests.fakes.vllm_server import VOCAB, FakeServer, logprob, sample, scores
from tests.unit.policy.test_contract import write_checkpoint
from tests.unit.policy.test_manifest import staged as small

__all__ = ["small"]
SHAPES = {"model.embed_tokens.weight": [VOCAB, 2], "model.norm.weight": [2]}
PROMPT = [9, 10, 11]
PROBE = [3, 4, 5, 6]


@pytest.fixture(autouse=True)
def _in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look and retry every few milliseconds."""
    monkeypatch.setattr(watching, "_LOOK_S", 0.01)
    monkeypatch.setattr(watching, "_FIRST_RETRY_S", 0.01)
    monkeypatch.setattr(watching, "_LONGEST_RETRY_S", 0.02)
    monkeypatch.setattr(pushing, "_DISCARD_S", 0.1)
    monkeypatch.setattr(pushing, "_RESUME_S", 0.2)


class World:
    """Fake servers, the checkpoint that they serve, and a fleet over them."""

    def __init__(self, folder: Path, small: StagedWeights, servers: list[FakeServer]) -> None:
        self.folder = folder
        self.servers = servers
        self.events: list[tuple[str, str]] = []
        self.fleet: Fleet
        self._small = small
        self._ids = 0

    def config(self, **policy: Any) -> RunConfig:
        tables = {
            "model": {"path": str(self.folder), "dtype": "float32"},
            "data": {"train": "none"},
            "policy": {
                "engine": "servers",
                "servers": [server.url for server in self.servers],
                "max_model_len": 512,
                "start_timeout_s": 5.0,
                "push_timeout_s": 2.0,
                "generate_timeout_s": 20.0,
                "heartbeat_s": 5.0,
                "probe_tolerance": 1e-6,
            }
            | policy,
        }
        return msgspec.convert(tables, RunConfig)

    @asynccontextmanager
    async def open(self, stop_token_ids: tuple[int, ...] = (), **policy: Any) -> AsyncIterator[Fleet]:
        opened = open_servers(
            self.config(**policy),
            stop_token_ids=list(stop_token_ids),
            log_dir=self.folder,
            on_event=lambda kind, text: self.events.append((kind, text)),
        )
        async with opened as self.fleet:
            yield self.fleet

    def stage(self, version: int) -> StagedWeights:
        """Stage weights that the fake knows by their version."""
        data = bytes(VOCAB * 8 + 8)
        (self.folder / "weights.bin").write_bytes(data)
        return replace(
            self._small,
            version=version,
            shapes=list(SHAPES.values()),
            offsets=[0, VOCAB * 8],
            num_bytes=len(data),
            block_bytes=4096,
            sha256=[sha256(data).hexdigest()],
            probe_ids=PROBE,
            probe_logprobs=scores(PROBE, version),
        ).sealed()

    async def generate(self, max_tokens: int = 20, name: str = "", **options: Any) -> Completion:
        self._ids += 1
        return await self.fleet.generate(
            PROMPT,
            max_tokens=max_tokens,
            temperature=1.0,
            top_p=1.0,
            request_id=name or f"train-{self._ids:07d}-00-t0",
            **options,
        )

    async def until(self, condition: Callable[[], object]) -> None:
        with anyio.fail_after(10):
            while not condition():  # noqa: ASYNC110
                await anyio.sleep(0.002)

    def said(self, kind: str) -> list[str]:
        return [text for what, text in self.events if what == kind]


@pytest.fixture
async def world(tmp_path: Path, small: StagedWeights) -> AsyncIterator[World]:
    """Two servers of a tiny checkpoint."""
    write_checkpoint(tmp_path, SHAPES)
    description = {
        "fingerprint": fingerprint(str(tmp_path)),
        "model": "m",
        "dtype": "float32",
        "max_model_len": 512,
        "logprobs_mode": "processed_logprobs",
        "data_parallel_size": 1,
    }
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(FakeServer(dict(description))) for _ in range(2)]
        yield World(tmp_path, small, servers)


def is_whole(completion: Completion, max_tokens: int, weights: int = 0) -> None:
    """Demand the tokens and log-probs of an undisturbed server."""
    assert completion.token_ids == sample(PROMPT, max_tokens, weights)
    ids = PROMPT + completion.token_ids
    assert completion.logprobs == [logprob(ids[:end], ids[end], weights) for end in range(len(PROMPT), len(ids))]
    assert completion.spans == [VersionSpan(weights, 0, max_tokens)]
    assert completion.finish_reason == "length"
