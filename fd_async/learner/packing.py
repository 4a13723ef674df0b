"""Sequences that stand one after another in one row, and what must not cross their borders.

Attention and gated delta layers (a causal convolution and a recurrence) are the only layers of a decoder in which
tokens meet. `prepare` puts both under our control: attention through transformers' registry, the other two by
wrapping the functions that transformers' model file calls. Each gets the borders as the keyword `packing`, which
transformers hands from the model's `forward` to every layer, recomputation of activations included. Layers
of other kinds are not known here, and a model that has one is padded as a whole.

Invariants: every submodule runs once per forward pass on the packed row, so ranks under ZeRO 3 gather the same
parameters in the same order whatever their samples; nothing of size [S, S] exists.
Suffixes: _S tokens of the packed row, _B sequences, _L padded length, _H heads or channels, _D head size.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

ATTENTION = "fd_async"
"""Name of our attention in transformers' registry."""

_CONVOLUTION, _RECURRENCE = "causal_conv1d_fn", "torch_chunk_gated_delta_rule"
_NOT_COMPUTED = ("sliding_window", "softcap", "s_aux", "position_bias")
_SIMILAR = 0.8
"""Sequences at least this long, as a share of the longest of a block, are padded together."""


class Block(NamedTuple):
    """Sequences of similar length; padding repeats a sequence's own last token."""

    tokens: Tensor
    """Index into the packed row of every cell, [B * L]."""
    shape: tuple[int, int]
    """B, L."""


@dataclass(frozen=True, eq=False)
class Packing:
    """Borders of the sequences of a packed row, and the row as right-padded blocks."""

    borders: Tensor
    """Where sequences start, and the end; int32 [number of sequences + 1]."""
    longest: int
    blocks: tuple[Block, ...]
    cells_S: Tensor
    """Where each token of the row stands in the blocks, flattened and one after another."""


def pack(lengths: Sequence[int], device: torch.device) -> Packing:
    """Describe sequences of the given lengths that stand one after another."""
    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + length)
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if groups and lengths[index] >= _SIMILAR * lengths[groups[-1][0]]:
            groups[-1].append(index)
        else:
            groups.append([index])
    blocks, cells_S, num_cells = [], torch.empty(starts[-1], dtype=torch.long), 0
    for group in groups:
        first_B = torch.tensor([starts[index] for index in group])
        last_B = torch.tensor([starts[index + 1] - 1 for index in group])
        longest = lengths[group[0]]
        tokens_BL = torch.minimum(first_B[:, None] + torch.arange(longest), last_B[:, None])
        for place, index in enumerate(group):
            cell = num_cells + place * longest
            cells_S[starts[index] : starts[index + 1]] = torch.arange(cell, cell + lengths[index])
        num_cells += tokens_BL.numel()
        blocks.append(Block(tokens_BL.flatten().to(device), (len(group), longest)))
    borders = torch.tensor(starts, dtype=torch.int32, device=device)
    return Packing(borders, max(lengths), tuple(blocks), cells_S.to(device))


def in_blocks(function: Callable[..., Tensor], packing: Packing, *packed: Tensor) -> Tensor:
    """Apply a causal function of [B, L, ...] tensors to packed [S, ...] tensors, sequences apart."""
    results = [
        function(*(tensor.index_select(0, tokens).unflatten(0, shape) for tensor in packed)).flatten(0, 1)
        for tokens, shape in packing.blocks
    ]
    return torch.cat(results).index_select(0, packing.cells_S)


def prepare(lm: nn.Module) -> str:
    """Make a transformers model accept packed rows, in place; return why it cannot, or nothing."""
    model: Any = lm
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    modeling = sys.modules[type(lm).__module__]
    if getattr(config, "attn_logit_softcapping", None):
        # Stock SDPA leaves this soft-cap out without a word.
        model.set_attn_implementation("eager")
        return "its attention has a soft-cap"
    if kinds - {"full_attention", "linear_attention"} or (not kinds and getattr(lm, "_is_stateful", False)):
        return f"it has layers of other kinds ({', '.join(sorted(kinds)) or 'recurrent'})"
    if not kinds and getattr(config, "sliding_window", None):
        return "its attention has a sliding window"
    if "linear_attention" in kinds and not _wrap_gated_delta(modeling):
        return "its recurrent layers are not gated delta layers"
    if not hasattr(modeling, "ALL_ATTENTION_FUNCTIONS"):
        return "its attention is not transformers' replaceable one"
    model.set_attn_implementation(ATTENTION)
    return ""


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    packing: Packing | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attend causally inside each sequence; tensors are [B, H, L, D], and [1, H, S, D] when packed.

    Raises:
        NotImplementedError: the layer asks for something that this attention does not compute.
    """
    unknown = [name for name in _NOT_COMPUTED if others.get(name) is not None]
    if attention_mask is not None or unknown or key.shape[2] != query.shape[2]:
        raise NotImplementedError(f"{type(module).__name__}: no attention with {unknown or 'a mask or a cache'} here")
    query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    if packing is None:
        return _causal(query, key, value, scaling).contiguous(), None
    if _has_varlen(query):
        # A window without anything to the right is causal.
        out = varlen_attn(
            query[0],
            key[0],
            value[0],
            packing.borders,
            packing.borders,
            packing.longest,
            packing.longest,
            scale=scaling,
            window_size=(-1, 0),
            enable_gqa=key.shape[2] != query.shape[2],
        )
        assert isinstance(out, Tensor)
        return out[None], None
    return in_blocks(functools.partial(_causal, scaling=scaling), packing, query[0], key[0], value[0])[None], None


def _causal(query_BLHD: Tensor, key_BLHD: Tensor, value_BLHD: Tensor, scaling: float | None) -> Tensor:
    query, key, value = (tensor.transpose(1, 2) for tensor in (query_BLHD, key_BLHD, value_BLHD))
    ratio = query.shape[1] // key.shape[1]
    # CUDA's float32 kernels would fall back to [L, L] scores for grouped heads.
    if ratio > 1 and query.device.type == "cuda" and query.dtype == torch.float32:
        key, value, ratio = key.repeat_interleave(ratio, 1), value.repeat_interleave(ratio, 1), 1
    out = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=ratio > 1)
    return out.transpose(1, 2)


def _has_varlen(query: Tensor) -> bool:
    if query.device.type != "cuda" or query.dtype not in (torch.bfloat16, torch.float16) or query.shape[-1] > 256:
        return False
    return torch.cuda.get_device_capability(query.device) >= (8, 0)


def _wrap_gated_delta(modeling: Any) -> bool:
    """Let the convolution and the recurrence of a model file see borders; False where it does not have both."""
    convolution, recurrence = getattr(modeling, _CONVOLUTION, None), getattr(modeling, _RECURRENCE, None)
    if convolution is None or recurrence is None:
        return False
    if not hasattr(convolution, "sees_borders"):
        setattr(modeling, _CONVOLUTION, _bordered_convolution(convolution))
        setattr(modeling, _RECURRENCE, _bordered_recurrence(recurrence))
    return True


def _bordered_convolution(convolution: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(convolution)
    def run(inputs_1HS: Tensor, *args: Any, packing: Packing | None = None, **kwargs: Any) -> Tensor:
        if packing is None:
            return convolution(inputs_1HS, *args, **kwargs)

        def one_block(inputs_BLH: Tensor) -> Tensor:
            return convolution(inputs_BLH.transpose(1, 2), *args, **kwargs).transpose(1, 2)

        return in_blocks(one_block, packing, inputs_1HS[0].T).T[None]

    run.sees_borders = True  # type: ignore[attr-defined]
    return run


def _bordered_recurrence(recurrence: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(recurrence)
    def run(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        g: Tensor,
        beta: Tensor,
        packing: Packing | None = None,
        **kwargs: Any,
    ) -> Any:
        if packing is None:
            return recurrence(query, key, value, g=g, beta=beta, **kwargs)

        def one_block(query: Tensor, key: Tensor, value: Tensor, g: Tensor, beta: Tensor) -> Tensor:
            return recurrence(query, key, value, g=g, beta=beta, **kwargs)[0]

        rows = (tensor[0] for tensor in (query, key, value, g, beta))
        return in_blocks(one_block, packing, *rows)[None], None

    return run


def _no_mask(*args: Any, attention_mask: Tensor | None = None, **kwargs: Any) -> None:
    """Make no mask: order and borders are the attention's own business."""
    if attention_mask is not None:
        raise NotImplementedError("the learner's attention takes no mask; pad on the right, or pack")


AttentionInterface.register(ATTENTION, packed_attention)
AttentionMaskInterface.register(ATTENTION, _no_mask)
