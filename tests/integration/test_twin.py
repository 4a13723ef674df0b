"""A prepared set of weights, on modules of vLLM's kind, without an engine."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

pytestmark = pytest.mark.slow


class Layer(nn.Module):
    """A layer whose parameter is loaded by a method of the layer, as vLLM's are."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4, 4), requires_grad=False)
        self.weight.weight_loader = self.load  # type: ignore[attr-defined]

    def load(self, parameter: nn.Parameter, loaded: Tensor) -> None:
        parameter.data.copy_(loaded)


class Model(nn.Module):
    """Two such layers."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = Layer(), Layer()

    def load_weights(self, rows: Iterable[tuple[str, Tensor]]) -> set[str]:
        parameters, seen = dict(self.named_parameters()), set()
        for name, tensor in rows:
            loader = parameters[name].weight_loader
            loader(parameters[name], tensor)
            seen.add(name)
        return seen


def test_the_old_weights_go_with_their_twin() -> None:
    """Their memory does not wait for the garbage collector, which an engine with a large heap rarely runs."""
    from fd_async.policy.twin import Twin

    model = Model()
    gc.collect()
    gc.disable()
    try:
        for value in (1.0, 2.0):
            twin = Twin(model)
            for name in ("one.weight", "other.weight"):
                twin.load([(name, torch.full((4, 4), value))])
            twin.require_whole()
            twin.unbind()
            layers = [weakref.ref(layer) for layer in twin._twins.values()]
            twin.commit()
            del twin
            assert [layer() for layer in layers] == [None] * 3
            assert {float(parameter.mean()) for parameter in model.parameters()} == {value}
    finally:
        gc.enable()


def test_too_little_memory_leaves_the_loading_to_vllm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No twin is built beside the live weights; a container's limit counts, its reclaimable file pages do not."""
    from fd_async.policy import transfer

    free_bytes = transfer._free_bytes

    def prepare() -> object:
        preparation = object.__new__(transfer.Preparation)
        preparation.rows, preparation._stopped, preparation._model = [], threading.Event(), nn.Module()
        return preparation._build_twin(1000)

    monkeypatch.setattr(transfer, "_free_bytes", lambda: 1249)
    assert prepare() is None
    monkeypatch.setattr(transfer, "_free_bytes", lambda: 1250)
    assert prepare() is not None

    whole = transfer.psutil.virtual_memory().total
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 300\n")
    (tmp_path / "memory.current").write_text("900\n")
    for limit, expected in (("1000\n", 400), ("max\n", None)):
        (tmp_path / "memory.max").write_text(limit)
        free = free_bytes(tmp_path)
        assert free == expected if expected is not None else 1000 < free <= whole
