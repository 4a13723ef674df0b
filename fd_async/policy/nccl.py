"""The learner's end of `policy.push = "nccl"`: it runs in the learner's rank 0, on its GPU.

The learner's room does not import this one: `push` names the class below in its request to send. vLLM's `nccl`
backend is the other end, in the engine's workers. Written against vLLM 0.32; it has not run on GPUs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from fd_async.errors import LearnerError
from fd_async.policy.manifest import group_address


class Broadcaster:
    """Sends all weights to all workers of an engine over one NCCL group.

    Args:
        address: nccl://HOST:PORT; HOST is this machine as the workers see it, PORT is free.
        num_workers: tensor_parallel_size x data_parallel_size of the engine.
    """

    def __init__(self, address: str, num_workers: int) -> None:
        self._host, self._port = group_address(address)
        self._num_workers = num_workers
        self._group: Any = None

    def send(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Join the workers at the first call, then broadcast. Blocks until all have arrived, without a deadline.

        Args:
            tensors: whole tensors, not shards, on this process's current GPU, in the order of the manifest.

        Raises:
            LearnerError: NCCL cannot be used in this process.
        """
        from vllm.distributed.weight_transfer.nccl_common import trainer_init
        from vllm.distributed.weight_transfer.packed_tensor import packed_nccl_broadcast_producer

        if self._group is None:
            self._group = trainer_init(
                {"master_address": self._host, "master_port": self._port, "world_size": 1 + self._num_workers}
            )
            if self._group.disabled:
                raise LearnerError(
                    'policy.push = "nccl": vLLM found no NCCL library in the learner\'s process; take "shm"'
                )
        # The broadcast packs on streams of its own, which do not wait for the one that wrote the weights.
        torch.cuda.current_stream().synchronize()
        packed_nccl_broadcast_producer(
            iterator=iter(tensors), group=self._group, src=0, post_iter_func=lambda item: item[1].contiguous()
        )
