"""Where DeepSpeed keeps this rank's float32 weights and moments, and how weights get from there into the module.

    ZeRO 0      every rank holds every parameter; the module computes with the float32 weights themselves
    ZeRO 1, 2   a rank holds one slice of the flattened parameters; the module has all, rounded, after an all-gather
    ZeRO 3      a rank holds a slice of every parameter, in the module too

A *flat* is one of the float32 tensors that DeepSpeed's optimizer updates. Whatever follows the same layout (the
teacher, the reference) is a list of tensors like the flats, so that averaging needs no communication, and the module
can compute with it: `publish` puts any such list where the module's weights are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from deepspeed.runtime.utils import all_gather_dp_groups
from torch import Tensor, nn


class Fragment(NamedTuple):
    """Elements [start, start + len(values)) of a flattened parameter; `values` is float32, flat and live."""

    start: int
    values: Tensor


class Piece(NamedTuple):
    """Where a fragment lies: `length` elements at `offset` of flat number `flat`."""

    name: str
    start: int
    flat: int
    offset: int
    length: int


class Shards(Protocol):
    """This rank's share of the weights."""

    flats: list[Tensor]
    """Float32 master weights, live."""
    keys: list[Tensor]
    """What the optimizer's state is kept under, one per flat."""
    pieces: list[Piece]

    def publish(self, flats: Sequence[Tensor]) -> None:
        """Let the module compute with these weights, rounded to its own type. Collective."""
        ...


class WholeShards:
    """ZeRO 0: the parameters themselves, in float32."""

    def __init__(self, parameters: dict[str, nn.Parameter]) -> None:
        self._parameters = list(parameters.values())
        self.keys: list[Tensor] = list(self._parameters)
        self.flats: list[Tensor] = [parameter.detach().view(-1) for parameter in self._parameters]
        self.pieces = [
            Piece(name, 0, index, 0, parameter.numel()) for index, (name, parameter) in enumerate(parameters.items())
        ]

    def publish(self, flats: Sequence[Tensor]) -> None:
        """Point the module at these tensors; nothing is copied."""
        for parameter, flat in zip(self._parameters, flats, strict=True):
            parameter.data = flat.view(parameter.shape)


class SlicedShards:
    """ZeRO 1 and 2: one slice of each group of flattened parameters."""

    def __init__(self, parameters: dict[str, nn.Parameter], optimizer: Any) -> None:
        self._optimizer = optimizer
        if hasattr(optimizer, "bf16_groups_flat"):  # stage 1 in bfloat16 has an optimizer class of its own
            flats, self._whole, self._slices = (
                optimizer.fp32_groups_flat_partition,
                optimizer.bf16_groups_flat,
                optimizer.bf16_partitioned_groups,
            )
        else:
            flats, self._whole, self._slices = (
                optimizer.single_partition_of_fp32_groups,
                optimizer.bit16_groups_flat,
                optimizer.parallel_partitioned_bit16_groups,
            )
        self.flats = self.keys = list[Tensor](flats)
        self.pieces: list[Piece] = []
        for name, parameter in parameters.items():
            mapping: Any = parameter._hp_mapping  # type: ignore[attr-defined]
            if mapping is not None:
                here, there = mapping.lp_fragment_address, mapping.hp_fragment_address
                self.pieces.append(Piece(name, here.start, mapping.param_group_index, there.start, here.numel))

    @torch.no_grad()
    def publish(self, flats: Sequence[Tensor]) -> None:
        """Round this rank's slice into the module and gather the others'."""
        inner = self._optimizer
        for slices, group, flat in zip(self._slices, inner.real_dp_process_group, flats, strict=True):
            slices[torch.distributed.get_rank(group)].data.copy_(flat)
        all_gather_dp_groups(
            groups_flat=self._whole,
            partitioned_param_groups=self._slices,
            dp_process_group=inner.real_dp_process_group,
            start_alignment_factor=inner.nccl_start_alignment_factor,
            allgather_bucket_size=inner.allgather_bucket_size,
        )


class ScatteredShards:
    """ZeRO 3: a slice of every parameter, in groups of parameters."""

    def __init__(self, parameters: dict[str, nn.Parameter], optimizer: Any) -> None:
        self._optimizer = optimizer
        self.flats = self.keys = list[Tensor](optimizer.fp32_partitioned_groups_flat)
        self.pieces: list[Piece] = []
        rank = torch.distributed.get_rank()
        for name, parameter in parameters.items():
            shard: Any = parameter
            flat, offset, length = optimizer.grad_position[optimizer.get_param_id(parameter)]
            start = rank * length
            held = max(0, min(length, shard.ds_numel - start))  # the last slices are padded
            if held:
                self.pieces.append(Piece(name, start, flat, offset, held))

    @torch.no_grad()
    def publish(self, flats: Sequence[Tensor]) -> None:
        """Round this rank's slices into the module, after it has let go of whole parameters."""
        self._optimizer._partition_all_parameters()
        for module_flat, flat in zip(self._optimizer.fp16_partitioned_groups_flat, flats, strict=True):
            module_flat.data.copy_(flat)


def find_shards(stage: int, parameters: dict[str, nn.Parameter], optimizer: Any) -> Shards:
    """Read the layout from DeepSpeed's optimizer; `parameters` by name, shared ones once."""
    if stage == 0:
        return WholeShards(parameters)
    return ScatteredShards(parameters, optimizer) if stage == 3 else SlicedShards(parameters, optimizer)


def fragments(pieces: Sequence[Piece], flats: Sequence[Tensor]) -> dict[str, Fragment]:
    """Cut flats into named fragments, views of the same memory. A parameter has at most one on a rank."""
    return {
        piece.name: Fragment(piece.start, flats[piece.flat].detach().narrow(0, piece.offset, piece.length))
        for piece in pieces
    }
