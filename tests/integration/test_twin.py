"""A prepared set of weights, on modules of vLLM's kind, without an engine."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterable

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


def test_too_little_memory_leaves_the_loading_to_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """No twin is built beside the live weights; a container's limit counts."""
    from fd_async.policy import transfer

    def prepare() -> object:
        preparation = object.__new__(transfer.Preparation)
        preparation.rows, preparation._stopped, preparation._model = [], threading.Event(), nn.Module()
        return preparation._build_twin(1000)

    for free, is_built in ((1249, False), (1250, True)):
        monkeypatch.setattr(transfer, "free_bytes", lambda machine, free=free: free)
        assert (prepare() is not None) == is_built
