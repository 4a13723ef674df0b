"""The learner's end of `policy.push = "nccl"`, for rank 0 of the learner on a machine with GPUs.

The learner's room may not import this one: it is given the dotted name `fd_async.policy.nccl:Broadcaster` and resolves
it. One push goes like this:

1. Rank 0 answers the stage request with a `StagedWeights` whose `path` is `Broadcaster.path` and whose names, dtypes
   and shapes are those of the tensors to come, in that order; offsets, `num_bytes` and `sha256` stay empty.
2. In a daemon thread it calls `send` with the tensors. NCCL has no deadline of its own: the call blocks until the
   engine's workers join, which they do when the controller pushes.
3. The controller pushes; its `policy.push_timeout_s` bounds the wait. When that passes, the group is lost on both ends:
   the engine and rank 0 have to be started again.

Not run on the CPU build; written against vLLM 0.32's `nccl` weight-transfer backend.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch


class Broadcaster:
    """Sends all weights to all workers of an engine over one NCCL group.

    Args:
        host: address of this process that the workers can reach.
        port: free port on it.
        num_workers: tensor_parallel_size x data_parallel_size of the engine.
    """

    def __init__(self, host: str, port: int, num_workers: int) -> None:
        self._host = host
        self._port = port
        self._num_workers = num_workers
        self._group: Any = None

    @property
    def path(self) -> str:
        """What `StagedWeights.path` holds for this group."""
        return f"nccl://{self._host}:{self._port}"

    def send(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Join the workers at the first call, then broadcast. Blocks until they have received everything.

        Args:
            tensors: whole tensors, not shards, on this rank's current GPU, in the order of the manifest.
        """
        from vllm.distributed.weight_transfer.nccl_common import trainer_init
        from vllm.distributed.weight_transfer.packed_tensor import packed_nccl_broadcast_producer

        if self._group is None:
            address = {"master_address": self._host, "master_port": self._port, "world_size": 1 + self._num_workers}
            self._group = trainer_init(address)
        packed_nccl_broadcast_producer(
            iterator=iter(tensors), group=self._group, src=0, post_iter_func=lambda item: item[1].contiguous()
        )
        torch.cuda.current_stream().synchronize()

    def close(self) -> None:
        """Leave the group."""
        if self._group is not None:
            self._group.destroy()
            self._group = None
