"""Weight transfer inside vLLM's worker processes: one staged file, loaded in one step.

vLLM imports this module in every worker because `worker_extension_cls` names a class of it; the import registers the
engine `fd_shm`. vLLM's own order (start, update, finish) is three calls, and a failure between them leaves layers
without weights. Here the update does everything: it checks, and only then touches a layer.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.platforms import current_platform

from fd_async.errors import PushRefused
from fd_async.policy.manifest import REFUSED, TIED_HEAD, Contract, FileStamp, check_manifest, read_contract
from fd_async.types import StagedWeights

BACKEND = "fd_shm"


@dataclass
class InitInfo(WeightTransferInitInfo):
    """Nothing to agree on."""


@dataclass
class UpdateInfo(WeightTransferUpdateInfo):
    """One push: the manifest and the identity of the checked file, as built-in values."""

    staged: dict[str, Any]
    stamp: dict[str, int]


class SharedFileEngine(WeightTransferEngine[InitInfo, UpdateInfo]):
    """Loads a memory-mapped file of checkpoint tensors through vLLM's layerwise reload."""

    init_info_cls = InitInfo
    update_info_cls = UpdateInfo
    supports_draft_weight_update = False
    contract: Contract

    def init_transfer_engine(self, init_info: InitInfo) -> None:
        """Read the contract from the checkpoint that this worker loaded."""
        self.contract = read_contract(self.model_config.model)

    def start_weight_update(self) -> None:
        """Touch nothing: see the module docstring."""

    def finish_weight_update(self) -> None:
        """Everything was done in `receive_weights`."""

    def shutdown(self) -> None:
        """Nothing is held between pushes."""

    def receive_weights(self, update_info: UpdateInfo) -> None:
        """Check the manifest and the file's identity, then replace all weights."""
        try:
            staged = msgspec.convert(update_info.staged, StagedWeights)
            check_manifest(staged, self.contract)
            data = _map_file(staged, msgspec.convert(update_info.stamp, FileStamp))
        except (PushRefused, OSError, msgspec.ValidationError) as error:
            raise ValueError(f"{REFUSED}: {error}") from error
        with torch.no_grad():
            initialize_layerwise_reload(self.model)
            self.model.load_weights(_tensors(staged, data, self.contract))  # pyright: ignore[reportCallIssue]
            finalize_layerwise_reload(self.model, self.model_config)
            if self.contract.tied and current_platform.is_cpu():
                _repack_heads(self.model)


class WorkerExtension:
    """Named as vLLM's `worker_extension_cls` so that workers import this module."""


def _map_file(staged: StagedWeights, stamp: FileStamp) -> torch.Tensor:
    """Map the file privately, as bytes; the mapping lives as long as a tensor that views it."""
    with open(staged.path, "rb") as file:
        if FileStamp.of(file) != stamp:
            raise PushRefused(f"push of version {staged.version}: {staged.path} changed after it was checked")
        return torch.frombuffer(mmap.mmap(file.fileno(), stamp.size, access=mmap.ACCESS_COPY), dtype=torch.uint8)


def _tensors(staged: StagedWeights, data: torch.Tensor, contract: Contract) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield views of the bytes under checkpoint names; a tied output matrix is left out, it is the embedding."""
    for name, dtype_name, shape, offset in zip(staged.names, staged.dtypes, staged.shapes, staged.offsets, strict=True):
        if contract.tied and name == TIED_HEAD:
            continue
        dtype: torch.dtype = getattr(torch, dtype_name)
        num_bytes = torch.Size(shape).numel() * dtype.itemsize
        yield contract.name(name), data[offset : offset + num_bytes].view(dtype).view(shape)


def _repack_heads(model: torch.nn.Module) -> None:
    """Pack tied output matrices again.

    On the CPU a linear layer computes with a packed copy of its matrix. The layerwise reload renews the copy of the
    layer whose name was loaded, the embedding, and leaves the tied head's copy at the old weights.
    """
    for head in model.modules():
        if isinstance(head, ParallelLMHead):
            head.quant_method.process_weights_after_loading(head)


if BACKEND not in WeightTransferEngineFactory._registry:
    WeightTransferEngineFactory.register_engine(BACKEND, SharedFileEngine)
