"""Passes over a buffer of logits, row by row: statistics of a softmax, its gradient, the largest entries.

Portable code, in blocks of rows small enough for a cache, so that temporaries stay small beside the buffer. For
float32 on CUDA `statistics` and `softmax_gradient_` hand over to the Triton kernels of `rowwise_triton`.
Entries equal to MASKED take no part. Suffixes: _C rows, _V columns, _K chosen columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor

MASKED = -1e30
"""Finite, so that no difference of two of them is NaN."""

_BLOCK_ELEMENTS = {"cpu": 2**18, "cuda": 2**25}
_GROUP = 64


class Part(NamedTuple):
    """Log-sum-exp and entropy of some of each row's logits, float64; of nothing: -inf and 0."""

    logsumexp_C: Tensor
    entropy_C: Tensor


class RowStatistics(NamedTuple):
    """Of every row's softmax over what is not masked; a row with nothing left has a logsumexp of -inf."""

    max_C: Tensor
    """Largest logit; far below every logit where nothing is left."""
    logsumexp_C: Tensor
    """float64."""
    entropy_C: Tensor
    """Nats, float64."""
    tempered_logsumexp_C: Tensor
    """Of logits / temperature, float64."""

    @property
    def part(self) -> Part:
        """What joins with another part of the rows."""
        return Part(self.logsumexp_C, self.entropy_C)


def join(one: Part, other: Part) -> Part:
    """Join two disjoint parts of each row (chain rule of entropy); either may be empty."""
    total_C = torch.logaddexp(one.logsumexp_C, other.logsumexp_C)
    finite_C = torch.where(total_C > -torch.inf, total_C, 0.0)
    entropy_C = torch.zeros_like(total_C)
    for part in (one, other):
        share_C = (part.logsumexp_C - finite_C).exp()
        entropy_C = entropy_C + share_C * part.entropy_C + torch.special.entr(share_C)
    return Part(total_C, entropy_C)


def part_of(logits_CK: Tensor) -> Part:
    """Summarise a few logits of each row; those that are -inf take no part."""
    logits_CK = logits_CK.double()
    total_C = logits_CK.logsumexp(-1)
    finite_C = torch.where(total_C > -torch.inf, total_C, 0.0)
    return Part(total_C, torch.special.entr((logits_CK - finite_C[:, None]).exp()).sum(-1))


def activate(products: Tensor, scale: float, softcap: float) -> Tensor:
    """Turn products hidden @ head into logits: softcap * tanh(scale * x / softcap), 0 for no cap. Keeps MASKED."""
    if softcap:
        capped = (products * (scale / softcap)).tanh_().mul_(softcap)
        return torch.where(products > MASKED / 2, capped, MASKED)
    return products if scale == 1.0 else (products * scale).masked_fill_(products <= MASKED / 2, MASKED)


def activate_(products_CV: Tensor, scale: float, softcap: float) -> Tensor:
    """Do the same in place, where nothing is masked."""
    if softcap:
        return products_CV.mul_(scale / softcap).tanh_().mul_(softcap)
    return products_CV if scale == 1.0 else products_CV.mul_(scale)


def slope(logits: Tensor, scale: float, softcap: float) -> Tensor | float:
    """Differentiate `activate`, given what it returned."""
    return (logits / softcap).square_().neg_().add_(1.0).clamp_(min=0.0).mul_(scale) if softcap else scale


def statistics(products_CV: Tensor, *, scale: float, softcap: float, temperature: float = 1.0) -> RowStatistics:
    """Read each row's logits once and return what a loss needs of them."""
    if _has_triton(products_CV):
        from fd_async.algorithms import rowwise_triton

        return rowwise_triton.statistics(products_CV, scale=scale, softcap=softcap, temperature=temperature)
    columns_3C = products_CV.new_empty(3, len(products_CV), dtype=torch.float64)
    max_C = products_CV.new_empty(len(products_CV))
    for rows in blocks(products_CV):
        logits_CV = activate(products_CV[rows], scale, softcap)
        top_C = logits_CV.amax(-1).clamp_(min=MASKED / 10)
        shifted_CV = logits_CV - top_C[:, None]
        exp_CV = shifted_CV.exp()
        top_C, sum_C = top_C.double(), exp_CV.sum(-1).double()
        first_C = exp_CV.mul_(shifted_CV).sum(-1).double()
        columns_3C[0, rows] = top_C + sum_C.log()
        columns_3C[1, rows] = torch.where(sum_C > 0, sum_C.log() - first_C / sum_C, 0.0)
        columns_3C[2, rows] = columns_3C[0, rows]
        if temperature != 1.0:
            tempered_C = shifted_CV.div_(temperature).exp_().sum(-1).double()
            columns_3C[2, rows] = top_C / temperature + tempered_C.log()
        max_C[rows] = top_C
    return RowStatistics(max_C, *columns_3C)


def softmax_gradient_(
    products_CV: Tensor, shift_C: Tensor, factor_C: Tensor, *, scale: float, softcap: float, dtype: torch.dtype
) -> Tensor:
    """Overwrite products with factor * exp(logit - shift) * d logit / d product; masked entries become 0.

    Returns:
        The gradient [C, V] in the buffer's own memory; in a narrower `dtype` on CUDA, one rounding.
    """
    if _has_triton(products_CV):
        from fd_async.algorithms import rowwise_triton

        return rowwise_triton.softmax_gradient_(
            products_CV, shift_C, factor_C, scale=scale, softcap=softcap, dtype=dtype
        )
    shift_C1, factor_C1 = shift_C[:, None].to(products_CV.dtype), factor_C[:, None].to(products_CV.dtype)
    for rows in blocks(products_CV):
        block_CV = products_CV[rows]
        logits_CV = activate(block_CV, scale, softcap)
        slope_CV = slope(logits_CV, scale, softcap)
        torch.sub(logits_CV, shift_C1[rows], out=block_CV)
        block_CV.exp_().mul_(factor_C1[rows])
        if softcap or scale != 1.0:
            block_CV.mul_(slope_CV)
    return products_CV.to(dtype)


def top_k_(logits_CV: Tensor, top_k: int, num_ids: int) -> tuple[Tensor, Tensor]:
    """Return values and columns of each row's `top_k` largest entries below column `num_ids`, and mask them.

    The k largest entries lie in the k groups of columns with the largest maxima, so that only those are sorted.
    """
    values_CK = logits_CV.new_empty(len(logits_CV), top_k)
    ids_CK = torch.empty(values_CK.shape, dtype=torch.long, device=logits_CV.device)
    for rows in blocks(logits_CV):
        block_CV = logits_CV[rows, :num_ids]
        values_CK[rows], ids_CK[rows] = _top_k(block_CV, top_k)
        block_CV.scatter_(1, ids_CK[rows], MASKED)
    return values_CK, ids_CK


def _top_k(block_CV: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    num_groups = block_CV.shape[1] // _GROUP
    if num_groups < 4 * top_k:
        return block_CV.topk(top_k, dim=-1)
    grouped = num_groups * _GROUP
    maxima_CG = block_CV[:, :grouped].unflatten(1, (num_groups, _GROUP)).amax(-1)
    best_CK = maxima_CG.topk(top_k, dim=-1, sorted=False).indices
    inside = torch.arange(_GROUP, device=block_CV.device)
    candidates_CN = (best_CK[:, :, None] * _GROUP + inside).flatten(1)
    rest = torch.arange(grouped, block_CV.shape[1], device=block_CV.device).expand(len(block_CV), -1)
    candidates_CN = torch.cat([candidates_CN, rest], 1)
    values_CK, positions_CK = block_CV.gather(1, candidates_CN).topk(top_k, dim=-1)
    return values_CK, candidates_CN.gather(1, positions_CK)


def blocks(buffer_CV: Tensor) -> Iterator[slice]:
    """Cut rows into blocks that fit a cache."""
    size = max(1, _BLOCK_ELEMENTS.get(buffer_CV.device.type, 2**20) // max(1, buffer_CV.shape[1]))
    for start in range(0, len(buffer_CV), size):
        yield slice(start, min(start + size, len(buffer_CV)))


def _has_triton(tensor: Tensor) -> bool:
    return tensor.is_cuda and tensor.dtype == torch.float32 and _triton_is_installed()


@cache
def _triton_is_installed() -> bool:
    return find_spec("triton") is not None
