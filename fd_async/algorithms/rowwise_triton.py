"""The passes of `rowwise` over float32 logits on CUDA as Triton kernels: one read, or one read and one write.

One program per row walks over its columns. Masked entries need no test: the running maximum starts far above them,
so that their exponential is exactly 0. Suffixes: _C rows, _V columns.
"""

# ruff: noqa: ANN001, ANN202 - arguments of a kernel have no Python types
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fd_async.algorithms.rowwise import MASKED, RowStatistics

_BLOCK = 4096
_WARPS = 8
_NO_LOGIT: tl.constexpr = tl.constexpr(MASKED)
_LEAST_MAXIMUM: tl.constexpr = tl.constexpr(MASKED / 10)


@triton.jit
def _tanh(x):
    return 1.0 - 2.0 / (tl.exp(2.0 * x) + 1.0)


@triton.jit
def _activate(products, scale, softcap, CAPPED: tl.constexpr):
    logits = products * scale
    if CAPPED:
        logits = softcap * _tanh(logits / softcap)
    return tl.where(products > _NO_LOGIT / 2, logits, _NO_LOGIT)


@triton.jit
def _statistics_kernel(
    products_ptr,
    sums_ptr,
    row_stride,
    num_columns,
    num_rows,
    scale,
    softcap,
    temperature,
    CAPPED: tl.constexpr,
    TEMPERED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write maximum, sum exp(z - max), sum exp(z - max) (z - max) and sum exp((z - max) / temperature) of a row."""
    row = tl.program_id(0).to(tl.int64)
    top = tl.full((), _LEAST_MAXIMUM, tl.float32)
    total = tl.zeros((), tl.float32)
    first = tl.zeros((), tl.float32)
    tempered = tl.zeros((), tl.float32)
    for start in range(0, num_columns, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        products = tl.load(products_ptr + row * row_stride + columns, columns < num_columns, other=_NO_LOGIT)
        logits = _activate(products, scale, softcap, CAPPED)
        higher = tl.maximum(top, tl.max(logits, 0))
        step = top - higher
        shifted = logits - higher
        exps = tl.exp(shifted)
        first = tl.exp(step) * (first + step * total) + tl.sum(exps * shifted, 0)
        total = tl.exp(step) * total + tl.sum(exps, 0)
        if TEMPERED:
            tempered = tl.exp(step / temperature) * tempered + tl.sum(tl.exp(shifted / temperature), 0)
        top = higher
    tl.store(sums_ptr + row, top)
    tl.store(sums_ptr + num_rows + row, total)
    tl.store(sums_ptr + 2 * num_rows + row, first)
    tl.store(sums_ptr + 3 * num_rows + row, tempered)


@triton.jit
def _gradient_kernel(
    products_ptr,
    out_ptr,
    shift_ptr,
    factor_ptr,
    row_stride,
    out_stride,
    num_columns,
    scale,
    softcap,
    CAPPED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write factor * exp(z - shift) * dz/dproduct of a row over the row itself, narrow numbers into its first half.

    A block's narrow numbers lie where this or an earlier block was read, so a barrier after the read is enough.
    """
    row = tl.program_id(0).to(tl.int64)
    shift = tl.load(shift_ptr + row)
    factor = tl.load(factor_ptr + row) * scale
    for start in range(0, num_columns, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < num_columns
        products = tl.load(products_ptr + row * row_stride + columns, inside, other=_NO_LOGIT)
        logits = _activate(products, scale, softcap, CAPPED)
        gradient = factor * tl.exp(logits - shift)
        if CAPPED:
            share = logits / softcap
            gradient = gradient * tl.maximum(1.0 - share * share, 0.0)
        tl.debug_barrier()
        tl.store(out_ptr + row * out_stride + columns, gradient.to(out_ptr.dtype.element_ty), inside)


def statistics(products_CV: Tensor, *, scale: float, softcap: float, temperature: float = 1.0) -> RowStatistics:
    """Do what `rowwise.statistics` does."""
    num_rows, num_columns = products_CV.shape
    sums_4C = products_CV.new_empty(4, num_rows)
    if num_rows:
        launch: Any = _statistics_kernel[(num_rows,)]
        launch(
            products_CV,
            sums_4C,
            products_CV.stride(0),
            num_columns,
            num_rows,
            scale,
            softcap,
            temperature,
            CAPPED=softcap != 0.0,
            TEMPERED=temperature != 1.0,
            BLOCK=_BLOCK,
            num_warps=_WARPS,
        )
    top_C, total_C, first_C, tempered_C = sums_4C.double()
    logsumexp_C = top_C + total_C.log()
    entropy_C = torch.where(total_C > 0, total_C.log() - first_C / total_C, 0.0)
    tempered_C = logsumexp_C if temperature == 1.0 else top_C / temperature + tempered_C.log()
    return RowStatistics(sums_4C[0], logsumexp_C, entropy_C, tempered_C)


def softmax_gradient_(
    products_CV: Tensor, shift_C: Tensor, factor_C: Tensor, *, scale: float, softcap: float, dtype: torch.dtype
) -> Tensor:
    """Do what `rowwise.softmax_gradient_` does; a narrower result lies in the first half of every row's memory."""
    num_rows, num_columns = products_CV.shape
    out_CV = products_CV if dtype == products_CV.dtype else products_CV.view(dtype)[:, :num_columns]
    if num_rows:
        launch: Any = _gradient_kernel[(num_rows,)]
        launch(
            products_CV,
            out_CV,
            shift_C.float().contiguous(),
            factor_C.float().contiguous(),
            products_CV.stride(0),
            out_CV.stride(0),
            num_columns,
            scale,
            softcap,
            CAPPED=softcap != 0.0,
            BLOCK=_BLOCK,
            num_warps=_WARPS,
        )
    return out_CV
