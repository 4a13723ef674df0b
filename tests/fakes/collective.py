"""A transfer of weights between threads, for both ends of a push without a file, and a vLLM that receives it."""

from __future__ import annotations

import sys
import threading
from collections import defaultdict
from collections.abc import Iterable
from types import ModuleType, SimpleNamespace
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from torch import Tensor

SENDER = "tests.fakes.collective:FakeSender"


class FakeGroup:
    """Where sender and receiver meet: each waits for the other."""

    def __init__(self) -> None:
        self.receiving, self.arrived = threading.Event(), threading.Event()
        self.tensors: dict[str, Tensor] = {}
        self.num_workers = 0
        self.opened = 0
        self.failure = ""


GROUPS: defaultdict[str, FakeGroup] = defaultdict(FakeGroup)


class FakeSender:
    """Stands where the NCCL broadcaster stands; blocks like it."""

    def __init__(self, address: str, num_workers: int) -> None:
        self._group = GROUPS[address]
        self._group.num_workers = num_workers
        self._group.opened += 1

    def send(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        if self._group.failure:
            raise RuntimeError(self._group.failure)
        self._group.receiving.wait()
        self._group.receiving.clear()
        self._group.tensors = {name: tensor.clone() for name, tensor in tensors}
        self._group.arrived.set()


class FakeVllm:
    """The calls of `AsyncLLM` that a push makes, written down in `calls`."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.group = FakeGroup()
        self.info: dict[str, Any] = {}
        self.update: dict[str, Any] = {}
        self.failure = ""
        self.deaf = False
        self.engine_core = SimpleNamespace(
            pause_scheduler_async=self._pause, call_utility_all_async=self._call_utility_of_all
        )

    async def _pause(self, mode: str, clear_cache: bool) -> None:
        self.calls.append("pause")

    async def _call_utility_of_all(self, method: str, *args: Any) -> list[Any]:
        """Return what each engine answers; here is one."""
        return [await getattr(self, method)(args[0])]

    async def resume_generation(self) -> None:
        self.calls.append("resume")

    async def init_weight_transfer_engine(self, request: Any) -> None:
        self.calls.append("join")
        self.info = request.init_info
        self.group = GROUPS[f"nccl://{self.info['master_address']}:{self.info['master_port']}"]

    async def start_weight_update(self) -> None:
        self.calls.append("start")

    async def update_weights(self, request: Any) -> None:
        self.calls.append("update")
        self.update = request.update_info
        if self.failure:
            raise RuntimeError(self.failure)
        if not self.deaf:
            self.group.receiving.set()
        while not self.group.arrived.is_set():  # noqa: ASYNC110  # set by a thread that knows no event loop
            await anyio.sleep(0.001)
        self.group.arrived.clear()

    async def finish_weight_update(self, version: str) -> None:
        await anyio.lowlevel.checkpoint()
        self.calls.append(f"finish {version}")


def without_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put small modules where a push looks for vLLM's request and error types."""
    base, errors = ModuleType("base"), ModuleType("exceptions")
    base.__dict__.update(WeightTransferUpdateRequest=SimpleNamespace, WeightTransferInitRequest=SimpleNamespace)
    errors.__dict__.update(EngineDeadError=type("EngineDeadError", (Exception,), {}))
    monkeypatch.setitem(sys.modules, "vllm.distributed.weight_transfer.base", base)
    monkeypatch.setitem(sys.modules, "vllm.v1.engine.exceptions", errors)
