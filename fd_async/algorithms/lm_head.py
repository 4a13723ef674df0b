"""The output projection: logits from hidden states, a chunk of rows at a time, and gradients back through it.

Logits of all rows never exist together: one buffer of [C, V] is filled, read, turned into its own gradient and
filled again. Everything between the two projections is at least float32, whatever the dtype of the model; numbers
of a row (log-sum-exps, log-probs) are float64 until they are returned. Rows are positions whose next token matters.
Suffixes: _T rows, _H hidden, _V vocabulary, _C rows of one chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fd_async.algorithms import rowwise
from fd_async.algorithms.chunking import chunk_rows, chunks

_FEW_ROWS = 128
"""Up to here a CPU multiplies faster with the head on the left, and best with rows in steps of 32: 1.3 times."""
_FLIP_IDS = 4096
_CAST_ELEMENTS = 2**22
"""Elements of a narrow head that are widened at once where the device cannot multiply into float32."""


class Head(NamedTuple):
    """How hidden states become logits: softcap * tanh(scale * hidden @ weight.T / softcap)."""

    weight_VH: Tensor
    scale: float = 1.0
    """Positive."""
    softcap: float = 0.0
    """0: none."""
    num_ids: int = 0
    """Ids that the tokenizer knows; a padded vocabulary has more rows. 0: all of them."""

    @property
    def known_ids(self) -> int:
        """Number of leading rows that a support may hold."""
        return min(self.num_ids or len(self.weight_VH), len(self.weight_VH))

    def at(self, temperature: float) -> Head:
        """Return the head whose logits are divided by a temperature."""
        return self._replace(scale=self.scale / temperature, softcap=self.softcap / temperature)

    def logits(self, products: Tensor) -> Tensor:
        """Apply scale and cap to products of hidden states and weight; float64."""
        return rowwise.activate(products.double(), self.scale, self.softcap)

    def slope(self, logits: Tensor) -> Tensor | float:
        """Differentiate logits with respect to products, at given logits."""
        return rowwise.slope(logits, self.scale, self.softcap)


class TokenLogprobs(NamedTuple):
    """Log-probs of given tokens (differentiable) and the entropy of their distributions (not)."""

    logprobs_T: Tensor
    entropy_T: Tensor


def wide_dtype(tensor: Tensor) -> torch.dtype:
    """Return the dtype of arithmetic on such a tensor: float32, or its own where that is wider."""
    return torch.promote_types(tensor.dtype, torch.float32)


def multiply_(out: Tensor, left: Tensor, right: Tensor, *, add: bool = False) -> None:
    """Write the product of two matrices to `out` (or add it), keeping the wide accumulator of narrow factors."""
    if left.dtype == right.dtype == out.dtype:
        torch.addmm(out, left, right, out=out) if add else torch.mm(left, right, out=out)
    elif left.is_cuda and left.dtype == right.dtype:
        if add:
            torch.addmm(out, left, right, out_dtype=out.dtype, out=out)
        else:
            torch.mm(left, right, out_dtype=out.dtype, out=out)
    else:
        multiply_(out, left.to(out.dtype), right.to(out.dtype), add=add)


def _casts(weight_VH: Tensor, wide: torch.dtype) -> list[slice]:
    """Cut the head's rows so that a widened piece stays small; in one piece where nothing must be widened."""
    if weight_VH.is_cuda or weight_VH.dtype == wide:
        return [slice(0, len(weight_VH))]
    return chunks(len(weight_VH), max(256, _CAST_ELEMENTS // weight_VH.shape[1]))


def _is_flipped(rows: Tensor, weight_VH: Tensor, wide: torch.dtype) -> bool:
    """Tell whether a product of few rows with the head is faster the other way round."""
    return rows.device.type == "cpu" and len(rows) <= _FEW_ROWS and rows.dtype == weight_VH.dtype == wide


def project_(out_CV: Tensor, hidden_CH: Tensor, weight_VH: Tensor) -> Tensor:
    """Fill `out_CV` with hidden @ weight.T in its own, wide dtype and return it."""
    pieces = _casts(weight_VH, out_CV.dtype)
    if _is_flipped(hidden_CH, weight_VH, out_CV.dtype):
        buffer_VC = out_CV.new_empty(min(_FLIP_IDS, len(weight_VH)), len(hidden_CH))
        for piece in chunks(len(weight_VH), _FLIP_IDS):
            flipped_VC = buffer_VC[: piece.stop - piece.start]
            out_CV[:, piece] = torch.mm(weight_VH[piece], hidden_CH.T, out=flipped_VC).T
        return out_CV
    hidden_CH = hidden_CH if len(pieces) == 1 else hidden_CH.to(out_CV.dtype)
    for piece in pieces:
        multiply_(out_CV[:, piece], hidden_CH, weight_VH[piece].T)
    return out_CV


@torch.no_grad()
def logits_of(hidden_CH: Tensor, head: Head) -> Tensor:
    """Compute the logits [C, V] of a few rows, at least float32, without gradient."""
    wide = wide_dtype(head.weight_VH)
    out_CV = hidden_CH.new_empty(len(hidden_CH), len(head.weight_VH), dtype=wide)
    return rowwise.activate(project_(out_CV, hidden_CH, head.weight_VH), head.scale, head.softcap)


def projected_chunks(hidden_TH: Tensor, head: Head, chunk_tokens: int) -> Iterator[tuple[slice, Tensor]]:
    """Yield rows and their products with the head [C, V], always in the same memory, which the caller may spoil."""
    vocab = len(head.weight_VH)
    chunk = chunk_rows(len(hidden_TH), chunk_tokens, vocab)
    buffer_CV = hidden_TH.new_empty(min(chunk, len(hidden_TH)), vocab, dtype=wide_dtype(head.weight_VH))
    for rows in chunks(len(hidden_TH), chunk):
        yield rows, project_(buffer_CV[: rows.stop - rows.start], hidden_TH[rows], head.weight_VH)


class HeadGradients:
    """Collects gradients of hidden states and lm_head from chunks of the products' gradients.

    The sum over chunks is kept in float32 and rounded once, in its own memory.
    """

    def __init__(self, hidden_TH: Tensor, weight_VH: Tensor, *, needs_hidden: bool, needs_weight: bool) -> None:
        self._hidden_TH, self._weight_VH = hidden_TH, weight_VH
        wide = wide_dtype(weight_VH)
        make = torch.empty_like if len(hidden_TH) else torch.zeros_like
        self._hidden_grad_TH = make(hidden_TH) if needs_hidden else None
        self._weight_grad_VH = make(weight_VH, dtype=wide) if needs_weight else None
        self._is_first = True

    def add(self, rows: slice, grad_CV: Tensor) -> None:
        """Push the gradient of one chunk's products through the projection."""
        hidden_CH = self._hidden_TH[rows]
        wide = wide_dtype(self._weight_VH)
        pieces = _casts(self._weight_VH, wide)
        if self._hidden_grad_TH is not None and _is_flipped(hidden_CH, self._weight_VH, grad_CV.dtype):
            self._hidden_grad_TH[rows] = (self._weight_VH.T @ grad_CV.T).T
        elif self._hidden_grad_TH is not None:
            direct = self._hidden_grad_TH.dtype == wide
            hidden_grad_CH = self._hidden_grad_TH[rows] if direct else hidden_CH.new_empty(hidden_CH.shape, dtype=wide)
            for piece in pieces:
                multiply_(hidden_grad_CH, grad_CV[:, piece], self._weight_VH[piece], add=piece.start > 0)
            if not direct:
                self._hidden_grad_TH[rows] = hidden_grad_CH
        if self._weight_grad_VH is not None:
            hidden_CH = hidden_CH if len(pieces) == 1 else hidden_CH.to(wide)
            for piece in pieces:
                multiply_(self._weight_grad_VH[piece], grad_CV[:, piece].T, hidden_CH, add=not self._is_first)
        self._is_first = False

    def take(self, factor: Tensor | None = None) -> tuple[Tensor | None, Tensor | None]:
        """Return gradients of (hidden_TH, weight_VH) in their own dtypes, times a factor; once."""
        hidden_grad_TH, weight_grad_VH = self._hidden_grad_TH, self._weight_grad_VH
        self._hidden_grad_TH = self._weight_grad_VH = None
        if factor is not None:
            for grad in (hidden_grad_TH, weight_grad_VH):
                if grad is not None:
                    grad.mul_(factor)
        if weight_grad_VH is not None:
            weight_grad_VH = round_in_place(weight_grad_VH, self._weight_VH.dtype)
        return hidden_grad_TH, weight_grad_VH


def round_in_place(wide: Tensor, dtype: torch.dtype) -> Tensor:
    """Round a contiguous tensor to a narrower dtype in the first part of its own memory. Spoils `wide`."""
    if wide.dtype == dtype:
        return wide
    source, target = wide.view(-1), wide.view(-1).view(dtype)[: wide.numel()]
    for piece in chunks(wide.numel(), _CAST_ELEMENTS):
        target[piece] = source[piece].to(dtype)
    return target.view(wide.shape)


class _TokenLogprobs(torch.autograd.Function):
    """log softmax(logits)[token]; the backward pass computes the logits again, since it comes with row weights."""

    @staticmethod
    def forward(
        ctx: Any, hidden_TH: Tensor, weight_VH: Tensor, head: Head, ids_T: Tensor, chunk_tokens: int
    ) -> tuple[Tensor, Tensor]:
        columns_4T = hidden_TH.new_empty(4, len(ids_T), dtype=torch.float64)
        for rows, products_CV in projected_chunks(hidden_TH, head, chunk_tokens):
            # The token itself joins in float64, so that the log-prob of a sure one is not lost to rounding.
            own_C1 = head.logits(products_CV.gather(1, ids_T[rows, None]))
            products_CV.scatter_(1, ids_T[rows, None], rowwise.MASKED)
            rest = rowwise.statistics(products_CV, scale=head.scale, softcap=head.softcap)
            whole = rowwise.join(rowwise.part_of(own_C1), rest.part)
            columns_4T[0, rows] = own_C1[:, 0] - whole.logsumexp_C
            columns_4T[1, rows] = whole.entropy_C
            columns_4T[2, rows] = whole.logsumexp_C
            columns_4T[3, rows] = rest.max_C.double()
        ctx.save_for_backward(hidden_TH, weight_VH, ids_T, columns_4T)
        ctx.head, ctx.chunk_tokens = head._replace(weight_VH=weight_VH.new_empty(0)), chunk_tokens
        logprobs_T, entropy_T = (column.to(wide_dtype(weight_VH)) for column in columns_4T[:2])
        ctx.mark_non_differentiable(entropy_T)
        return logprobs_T, entropy_T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        hidden_TH, weight_VH, ids_T, columns_4T = ctx.saved_tensors
        head = ctx.head._replace(weight_VH=weight_VH)
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        collected = HeadGradients(hidden_TH, weight_VH, needs_hidden=needs_hidden, needs_weight=needs_weight)
        for rows, products_CV in projected_chunks(hidden_TH, head, ctx.chunk_tokens):
            ids_C1, grad_C1 = ids_T[rows, None], grad_outputs[0][rows, None].double()
            slope_C1 = head.slope(head.logits(products_CV.gather(1, ids_C1)))
            products_CV.scatter_(1, ids_C1, rowwise.MASKED)
            logsumexp_C, max_C = columns_4T[2:, rows]
            grad_CV = rowwise.softmax_gradient_(
                products_CV,
                max_C,
                -grad_C1[:, 0] * (max_C - logsumexp_C).exp(),
                scale=head.scale,
                softcap=head.softcap,
                dtype=gradient_dtype(weight_VH),
            )
            own_C1 = -columns_4T[0, rows, None].expm1() * grad_C1 * slope_C1
            grad_CV.scatter_(1, ids_C1, own_C1.to(grad_CV.dtype))
            collected.add(rows, grad_CV)
        return (*collected.take(), None, None, None)


def gradient_dtype(weight_VH: Tensor) -> torch.dtype:
    """Return the dtype in which the products' gradient is multiplied: the head's on CUDA, wide elsewhere."""
    return weight_VH.dtype if weight_VH.is_cuda else wide_dtype(weight_VH)


def token_logprobs(
    hidden_TH: Tensor, head: Head, ids_T: Tensor, *, temperature: float, chunk_tokens: int
) -> TokenLogprobs:
    """Compute the log-prob of `ids_T[t]` under the softmax of row t.

    Args:
        hidden_TH: last hidden states [T, H]; row t predicts `ids_T[t]`.
        head: weight [V, H] and what turns products into logits.
        ids_T: token ids [T].
        temperature: divides the logits, as the engine did when it sampled.
        chunk_tokens: rows of logits that exist at once; 0 chooses.

    Returns:
        Natural logs [T], differentiable, and entropies [T] in nats, not differentiable.
    """
    return TokenLogprobs(*_TokenLogprobs.apply(hidden_TH, head.weight_VH, head.at(temperature), ids_T, chunk_tokens))
