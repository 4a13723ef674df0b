"""Weight transfer inside vLLM's worker processes: one staged file, prepared beside the live weights, then swapped in.

    fd_prepare ▸ a thread maps the file, checks it and builds a `Twin`; the engine goes on
    fd_is_prepared ▸ asked again and again between two engine steps
    fd_commit ▸ the engine holds still: the twin is swapped in, or vLLM's own reload runs

vLLM mixes `WorkerExtension` into its workers. Its own order of an update (start, update, finish) is three calls, and a
failure between them leaves layers without weights; here one call does everything, and whatever can be wrong has been
found before it.
"""

from __future__ import annotations

import logging
import mmap
import os
import re
import threading
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import msgspec
import psutil
import torch
from torch import Tensor, nn
from vllm.config import VllmConfig, get_current_vllm_config, set_current_vllm_config
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.platforms import current_platform

from fd_async.errors import PushRefused
from fd_async.memory import free_bytes
from fd_async.policy.contract import TIED_HEAD, Contract, fingerprint, read_contract
from fd_async.policy.manifest import REFUSED, FileStamp, check_manifest
from fd_async.policy.twin import NoTwin, Twin
from fd_async.types import StagedWeights

_LAYER = re.compile(r"^(.*?\.\d+\.)?")
"""Tensors of one decoder layer share this part of their names."""
_SPARE = 1.25
"""Free memory that a twin needs, in sizes of the staged weights."""
_NICENESS = 10
_log = logging.getLogger("vllm.fd_async")


class Preparation:
    """One push on its way in: a thread that maps and checks the staged file and, if it can, builds the twin."""

    def __init__(
        self, model: nn.Module, contract: Contract, staged: StagedWeights, stamp: FileStamp, *, twin_bytes: int | None
    ) -> None:
        self.version = staged.version
        self.error: BaseException | None = None
        self.twin: Twin | None = None
        self.rows: list[tuple[str, Tensor]] = []
        self._model, self._contract = model, contract
        self._stopped = threading.Event()
        self._thread = threading.Thread(
            target=self._run, args=(staged, stamp, twin_bytes), daemon=True, name=f"prepare-{staged.version}"
        )
        self._thread.start()

    @property
    def is_over(self) -> bool:
        return not self._thread.is_alive()

    def wait(self) -> None:
        """Wait for the thread and raise what it raised."""
        self._thread.join()
        if self.error is not None:
            kind = "" if isinstance(self.error, PushRefused) else f"{type(self.error).__name__}: "
            raise ValueError(f"{REFUSED}: {kind}{self.error}") from self.error

    def stop(self) -> None:
        """Have the thread end soon; nothing comes of it."""
        self._stopped.set()

    @torch.no_grad()
    def commit(self) -> None:
        """Replace the model's weights, all in one go."""
        if self.twin is not None:
            self.twin.commit()
            _log.info("push: version %d was prepared beside the live weights and swapped in", self.version)
            # To free a gigabyte takes time that requests need not wait for.
            threading.Thread(target=vars(self).clear, daemon=True, name="free-old-weights").start()
            return
        initialize_layerwise_reload(self._model)
        load_weights: Any = self._model.load_weights
        load_weights(self.rows)
        finalize_layerwise_reload(self._model, get_current_vllm_config().model_config)
        if self._contract.tied and current_platform.is_cpu():
            _repack_heads(self._model)

    def _run(self, staged: StagedWeights, stamp: FileStamp, twin_bytes: int | None) -> None:
        thread = threading.get_native_id()
        niceness = max(_NICENESS, os.getpriority(os.PRIO_PROCESS, thread))  # only root may lower it
        os.setpriority(os.PRIO_PROCESS, thread, niceness)  # requests go first
        try:
            self._prepare(staged, stamp, twin_bytes)
        except BaseException as error:  # raised again by `wait`, in the thread that answers the controller
            self.error = error

    def _prepare(self, staged: StagedWeights, stamp: FileStamp, twin_bytes: int | None) -> None:
        what = f"push of version {staged.version}"
        check_manifest(staged, self._contract)
        with open(staged.path, "rb") as file:
            _require_same(file, stamp, what, staged.path)
            data = torch.frombuffer(mmap.mmap(file.fileno(), stamp.size, access=mmap.ACCESS_COPY), dtype=torch.uint8)
            self.rows = sorted(_tensors(staged, data, self._contract), key=lambda row: _layer(row[0]))
            for name, tensor in self.rows:
                self._require_wanted()
                # Reads every page as well: they are there when the engine is held.
                if tensor.numel() and not all(bound.isfinite() for bound in tensor.aminmax()):
                    raise PushRefused(f"{what}: {name} holds a value that is not finite")
            if twin_bytes is not None:
                self.twin = self._build_twin(twin_bytes)
            _require_same(file, stamp, what, staged.path)

    def _build_twin(self, num_bytes: int) -> Twin | None:
        free = free_bytes(psutil.virtual_memory().available)
        if free < _SPARE * num_bytes:
            _log.warning("push: %d bytes of memory free, too few for a second set of %d; loading while held",
                         free, num_bytes)  # fmt: skip
            return None
        try:
            twin = Twin(self._model)
            try:
                for _, rows in groupby(self.rows, key=lambda row: _layer(row[0])):
                    self._require_wanted()
                    twin.load(list(rows))
                twin.require_whole()
            finally:
                twin.unbind()
        except NoTwin as reason:
            _log.warning("push: the engine is held while vLLM reloads: %s", reason)
            return None
        return twin

    def _require_wanted(self) -> None:
        if self._stopped.is_set():
            raise PushRefused(f"push of version {self.version}: given up by the controller")


class WorkerExtension:
    """What the controller may call in a worker, through `collective_rpc`."""

    vllm_config: VllmConfig
    model_runner: Any
    fd_contract: Contract | None = None
    fd_preparation: Preparation | None = None

    def fd_describe(self) -> dict[str, Any]:
        """Return what a controller that did not start this engine must know of it."""
        model, parallel = self.vllm_config.model_config, self.vllm_config.parallel_config
        return {
            "fingerprint": fingerprint(model.model),
            "model": model.model,
            "dtype": str(model.dtype).removeprefix("torch."),
            "max_model_len": model.max_model_len,
            "logprobs_mode": model.logprobs_mode,
            "data_parallel_size": parallel.data_parallel_size,
        }

    def fd_prepare(self, message: dict[str, Any]) -> None:
        """Start to prepare a push; one that was being prepared is given up."""
        self.fd_discard()
        if self.fd_contract is None:
            self.fd_contract = read_contract(self.vllm_config.model_config.model)
        staged = msgspec.convert(message["staged"], StagedWeights)
        stamp = msgspec.convert(message["stamp"], FileStamp)
        # All workers of this machine together hold this much beside the live weights. vLLM tells those of a dense model
        # that theirs is the only engine.
        num_bytes = staged.num_bytes * message.get("engines", 1)
        self.fd_preparation = Preparation(
            self.model_runner.get_model(),
            self.fd_contract,
            staged,
            stamp,
            twin_bytes=num_bytes if message["ahead"] else None,
        )

    def fd_is_prepared(self) -> bool:
        """Tell whether the preparation is over.

        Raises:
            ValueError: it failed; the weights that serve are untouched.
        """
        if self.fd_preparation is None:
            raise ValueError(f"{REFUSED}: nothing is being prepared")
        if not self.fd_preparation.is_over:
            return False
        self.fd_preparation.wait()
        return True

    def fd_commit(self, version: int) -> None:
        """Replace all weights by the prepared ones.

        Raises:
            ValueError: this version was not prepared; the weights that serve are untouched.
        """
        ready, self.fd_preparation = self.fd_preparation, None
        if ready is None or ready.version != version:
            raise ValueError(f"{REFUSED}: version {version} was not prepared")
        ready.wait()
        with set_current_vllm_config(self.vllm_config):
            ready.commit()

    def fd_discard(self) -> None:
        """Give up what is being prepared."""
        if self.fd_preparation is not None:
            self.fd_preparation.stop()
            self.fd_preparation = None


def _layer(name: str) -> str:
    match = _LAYER.match(name)
    return match[0] if match else ""


def _require_same(file: Any, stamp: FileStamp, what: str, path: str) -> None:
    if FileStamp.of(file) != stamp:
        raise PushRefused(f"{what}: {path} changed after it was checked")


def _tensors(staged: StagedWeights, data: Tensor, contract: Contract) -> Iterator[tuple[str, Tensor]]:
    """Yield views of the bytes under checkpoint names; a tied output matrix is left out, it is the embedding."""
    for name, dtype_name, shape, offset in zip(staged.names, staged.dtypes, staged.shapes, staged.offsets, strict=True):
        if contract.tied and name == TIED_HEAD:
            continue
        dtype: torch.dtype = getattr(torch, dtype_name)
        num_bytes = torch.Size(shape).numel() * dtype.itemsize
        yield contract.name(name), data[offset : offset + num_bytes].view(dtype).view(shape)


def _repack_heads(model: nn.Module) -> None:
    """Pack tied output matrices again.

    On the CPU a linear layer computes with a packed copy of its matrix. vLLM's reload renews the copy of the layer
    whose name was loaded, the embedding, and leaves the tied head's copy at the old weights.
    """
    for head in model.modules():
        if isinstance(head, ParallelLMHead):
            head.quant_method.process_weights_after_loading(head)
