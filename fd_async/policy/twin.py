"""New weights beside the live ones: loaded and packed while the engine serves, swapped in while it holds still.

A twin is a copy of vLLM's module tree without weights. vLLM's own loaders fill it (they split for tensor parallelism
and fuse q, k, v), and vLLM's own post-processing packs its matrices where the CPU build computes with packed ones.
The live model is only read until `commit`, which exchanges what the two hold and cannot fail half-way on a CPU; on an
accelerator it copies into the live tensors, whose addresses captured graphs keep.

Only layers that compute from nothing but their own pushed tensors can have a twin: plain linear layers, embeddings,
norms and bare parameters. For anything else, quantised or unknown, `NoTwin` is raised and nothing has happened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.attention import Attention, is_deferred_attention_layer
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info
from vllm.model_executor.model_loader.reload.meta import materialize_meta_tensor, to_meta_tensor
from vllm.model_executor.model_loader.reload.sanitize import layer_ref_sentinel

_PLAIN_METHODS = (UnquantizedLinearMethod, UnquantizedEmbeddingMethod)
_MODULE_FIELDS = ("_parameters", "_buffers", "_modules")


class NoTwin(Exception):
    """The model has a layer whose weights cannot be prepared beside it; the message names it."""


class Twin:
    """Weights of one push for one live model.

    Raises:
        NoTwin: a layer of the model needs more than its own tensors.
    """

    def __init__(self, model: nn.Module) -> None:
        self._names = {module: name for name, module in model.named_modules()}
        for module in self._names:
            self._require_plain(module)
        self._twins: dict[nn.Module, nn.Module] = {}
        self._root = _without_weights(model, self._twins, {})
        self._filled: dict[nn.Module, nn.Module] = {}

    @torch.no_grad()
    def load(self, rows: list[tuple[str, Tensor]]) -> None:
        """Load tensors under checkpoint names and pack their layers.

        All tensors of a layer must come in one call, so that no more than one call's tensors are held unpacked.

        Raises:
            NoTwin: they fill a layer in part, or the filled layer looks different from the live one.
        """
        load_weights: Callable[[Iterable[tuple[str, Tensor]]], set[str] | None] = self._root.load_weights  # type: ignore[assignment]
        # Without storage this only tells which parameters the rows belong to. vLLM leaves marks on what it loads.
        touched = load_weights((name, tensor.detach()) for name, tensor in rows)
        _give_storage(self._root, touched or set())
        load_weights(rows)
        for live, twin in self._twins.items():
            if live not in self._filled and any(not tensor.is_meta for tensor in _parameters(twin).values()):
                self._finish(live, twin)

    def require_whole(self) -> None:
        """Raise NoTwin if a layer got no weights at all."""
        for live, name in self._names.items():
            if _parameters(live) and live not in self._filled:
                raise NoTwin(f"{name} got no weights")

    def unbind(self) -> None:
        """Take the loaders off, after the last `load`.

        A parameter holds its loader, the loader its layer, the layer the parameter: the old weights, which the twin
        has after the swap, would wait for the garbage collector.
        """
        for twin in self._twins.values():
            for tensor in _parameters(twin).values():
                vars(tensor).clear()

    def commit(self) -> None:
        """Swap everything in. On a CPU the twin holds the old weights afterwards: drop it when there is time."""
        tensors: dict[Tensor, Tensor] = {}  # a tied one once: swapped twice it would be back where it was
        for live, twin in self._filled.items():
            beside = _parameters(twin)
            tensors |= {old: beside[name] for name, old in _parameters(live).items()}
            for name in _derived(live, twin):
                live.__dict__[name], twin.__dict__[name] = twin.__dict__[name], live.__dict__.get(name)
        for old, new in tensors.items():
            if old.device.type == "cpu":
                old.data, new.data = new.data, old.data
            else:
                old.data.copy_(new.data)
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    def _finish(self, live: nn.Module, twin: nn.Module) -> None:
        """Let vLLM pack a layer that has been filled."""
        if any(tensor.is_meta for tensor in _parameters(twin).values()):
            raise NoTwin(f"{self._names[live]} got only a part of its weights")
        method: Any = getattr(twin, "quant_method", None)
        if method is not None:
            method.process_weights_after_loading(twin)
        old, new = _parameters(live), _parameters(twin)
        looks = [{name: (tensor.shape, tensor.dtype) for name, tensor in side.items()} for side in (old, new)]
        if looks[0] != looks[1]:
            raise NoTwin(f"{self._names[live]} looks different after loading")
        self._filled[live] = twin

    def _require_plain(self, module: nn.Module) -> None:
        if is_deferred_attention_layer(module):
            plain = type(module) is Attention  # others derive matrices from their neighbours' weights
        else:
            method = getattr(module, "quant_method", None)
            plain = not _parameters(module) or method is None or type(method) in _PLAIN_METHODS
        if not plain:
            raise NoTwin(f"{self._names[module]} is a {type(module).__name__} that vLLM must load itself")


def _parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in module._parameters.items() if parameter is not None}


def _derived(live: nn.Module, twin: nn.Module) -> list[str]:
    """Return the attributes that post-processing set on the twin: packed matrices and what computes with them."""
    return [
        name
        for name, value in twin.__dict__.items()
        if name not in _MODULE_FIELDS and value is not live.__dict__.get(name)
    ]


def _without_weights(
    module: nn.Module, twins: dict[nn.Module, nn.Module], shared: dict[int, nn.Parameter]
) -> nn.Module:
    """Copy a module tree whose tensors have no storage; tied parameters stay tied."""
    if module in twins:
        return twins[module]
    twin: Any = object.__new__(type(module))
    twins[module] = twin
    twin.__dict__.update(module.__dict__)
    twin._parameters = dict(module._parameters)
    for name, live in _parameters(module).items():
        if id(live) not in shared:
            # As vLLM made it: packing has left an empty parameter in its place.
            recorded = get_layerwise_info(module).restore_metadata[0].get(name, live)
            shared[id(live)] = _bind_loaders(to_meta_tensor(recorded), module, twin)
        twin._parameters[name] = shared[id(live)]
    twin._buffers = {name: None if buffer is None else buffer.to("meta") for name, buffer in module._buffers.items()}
    twin._modules = {
        name: None if child is None else _without_weights(child, twins, shared)
        for name, child in module._modules.items()
    }
    return twin


def _bind_loaders(tensor: Any, module: nn.Module, twin: nn.Module) -> Any:
    """Turn the loaders that hang on a tensor into methods of the twin."""
    for key, value in vars(tensor).items():
        while getattr(value, "__name__", "") == "online_process_loader":  # left by a reload of vLLM's
            value = value.__wrapped__
        if isinstance(value, MethodType) and (value.__self__ is module or value.__self__ is layer_ref_sentinel):
            value = MethodType(value.__func__, twin)
        elif isinstance(value, MethodType) and isinstance(value.__self__, nn.Module):
            raise NoTwin(f"a parameter of {type(module).__name__} is loaded by {type(value.__self__).__name__}")
        vars(tensor)[key] = value
    return tensor


def _give_storage(root: nn.Module, names: set[str]) -> None:
    """Give the named parameters memory on the host, wherever they are tied to."""
    made: dict[int, Any] = {}
    modules = dict(root.named_modules())
    for path in names:
        owner, _, name = path.rpartition(".")
        empty = modules[owner]._parameters.get(name) if owner in modules else None
        if empty is None:
            raise NoTwin(f"{path} is no parameter")
        if empty.is_meta:
            made[id(empty)] = materialize_meta_tensor(empty)
    for module in modules.values():
        for name, parameter in _parameters(module).items():
            if id(parameter) in made:
                module._parameters[name] = made[id(parameter)]
