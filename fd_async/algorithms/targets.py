"""What the teacher says of every row: its top-K, the rest as one number, and how far a student agrees.

The vocabulary passes by in tiles, so that tall and narrow pieces [rows, W] of the logits exist, never [T, V]. Each
row keeps its K largest logits so far and log-sum-exp and entropy of everything else; all of it is exact.
Suffixes: _T rows, _H hidden, _K top-K, _V vocabulary, _W vocabulary tile, _C rows of a chunk.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fd_async.algorithms import rowwise
from fd_async.algorithms.chunking import chunk_rows, chunks
from fd_async.algorithms.lm_head import Head, project_, wide_dtype
from fd_async.algorithms.rowwise import Part, join, part_of

_TILE_ROWS = 2048
_MIN_TILE = 4096


class TeacherTargets(NamedTuple):
    """What the student needs of the teacher; rows are sampled tokens."""

    ids_TK: Tensor
    logprobs_TK: Tensor
    """Of the full softmax, at least float32; -inf marks padding."""
    mass_T: Tensor
    """Probability on the top-K, exact."""
    entropy_T: Tensor
    """Nats, over the whole vocabulary."""
    sampled_logprobs_T: Tensor
    """Of the token that the student sampled."""
    log_tail_T: Tensor
    """Log of the probability outside the top-K, summed there; -inf when nothing is outside."""

    @property
    def negative_entropy_T(self) -> Tensor:
        """Sum over the top-K of p log p: what the teacher expects of its own targets."""
        return -torch.special.entr(self.logprobs_TK.exp()).sum(-1)


@torch.no_grad()
def teacher_top_k(
    hidden_TH: Tensor, head: Head, sampled_ids_T: Tensor, *, top_k: int, chunk_tokens: int
) -> TeacherTargets:
    """Take the teacher's top-K log-probs of every row.

    Args:
        hidden_TH: the teacher's last hidden states [T, H]; row t predicts `sampled_ids_T[t]`.
        head: weight [V, H] and what turns products into logits; ids past `num_ids` stay in the softmax only.
        sampled_ids_T: the tokens that the student sampled [T].
        top_k: size of the support; more than there are known ids takes all of them.
        chunk_tokens: as many logits as that many whole rows have exist at once; 0 chooses.
    """
    num_rows, vocab = len(sampled_ids_T), len(head.weight_VH)
    top_k, wide = min(top_k, head.known_ids), wide_dtype(head.weight_VH)
    ids_TK = torch.empty(num_rows, top_k, dtype=torch.long, device=hidden_TH.device)
    logprobs_TK = hidden_TH.new_empty(num_rows, top_k, dtype=wide)
    columns_4T = hidden_TH.new_empty(4, num_rows, dtype=wide)
    elements = min(chunk_rows(num_rows, chunk_tokens, vocab), max(num_rows, 1)) * vocab
    width = min(vocab, max(_MIN_TILE, elements // max(1, min(num_rows, _TILE_ROWS))))
    buffer = hidden_TH.new_empty(elements, dtype=wide)
    for rows in chunks(num_rows, max(1, elements // width)):
        logits_CK, ids_TK[rows], rest, sampled_C = _pass_vocabulary(
            hidden_TH[rows], head, sampled_ids_T[rows], top_k, width, buffer
        )
        whole = join(part_of(logits_CK), rest)
        logp_CK = logits_CK.double() - whole.logsumexp_C[:, None]
        logprobs_TK[rows] = logp_CK.to(wide)
        columns_4T[0, rows] = logp_CK.exp().sum(-1).to(wide)
        columns_4T[1, rows] = whole.entropy_C.to(wide)
        columns_4T[2, rows] = (sampled_C.double() - whole.logsumexp_C).to(wide)
        columns_4T[3, rows] = (rest.logsumexp_C - whole.logsumexp_C).to(wide)
    return TeacherTargets(ids_TK, logprobs_TK, *columns_4T)


def _pass_vocabulary(
    hidden_CH: Tensor, head: Head, sampled_ids_C: Tensor, top_k: int, width: int, buffer: Tensor
) -> tuple[Tensor, Tensor, Part, Tensor]:
    """Return top-K logits and ids, the rest of the softmax, and the sampled tokens' logits, tile by tile."""
    num_rows = len(hidden_CH)
    best_CK, ids_CK = buffer.new_empty(num_rows, 0), sampled_ids_C.new_empty(num_rows, 0)
    sampled_C = buffer.new_empty(num_rows)
    nothing_C = torch.full((num_rows,), -torch.inf, dtype=torch.float64, device=buffer.device)
    rest = Part(nothing_C, torch.zeros_like(nothing_C))
    for tile in chunks(len(head.weight_VH), width):
        size = tile.stop - tile.start
        products_CW = project_(buffer[: num_rows * size].view(num_rows, size), hidden_CH, head.weight_VH[tile])
        logits_CW = rowwise.activate_(products_CW, head.scale, head.softcap)
        inside_C = (sampled_ids_C >= tile.start) & (sampled_ids_C < tile.stop)
        own_C = logits_CW.gather(1, (sampled_ids_C - tile.start).clamp(0, size - 1)[:, None])[:, 0]
        sampled_C = torch.where(inside_C, own_C, sampled_C)
        known = min(size, head.known_ids - tile.start)
        if known > 0:
            found_CK, columns_CK = rowwise.top_k_(logits_CW, min(top_k, known), known)
            best_CK, ids_CK = torch.cat([best_CK, found_CK], 1), torch.cat([ids_CK, columns_CK + tile.start], 1)
            if best_CK.shape[1] > found_CK.shape[1]:
                candidates_CN = best_CK
                best_CK, positions_CK = candidates_CN.topk(min(top_k, candidates_CN.shape[1]), dim=-1)
                ids_CK = ids_CK.gather(1, positions_CK)
                rest = join(rest, part_of(candidates_CN.scatter(1, positions_CK, -torch.inf)))
        stats = rowwise.statistics(logits_CW, scale=1.0, softcap=0.0)
        rest = join(rest, stats.part)
    return best_CK, ids_CK, rest, sampled_C


@torch.no_grad()
def top_k_overlap(hidden_TH: Tensor, head: Head, targets: TeacherTargets, *, chunk_tokens: int) -> Tensor:
    """Return the share of the teacher's top-K that is in the student's own top-K [T]; for a subsample of rows."""
    top_k = targets.ids_TK.shape[1]
    own = teacher_top_k(hidden_TH, head, targets.ids_TK[:, 0], top_k=top_k, chunk_tokens=chunk_tokens)
    shared_TKK = own.ids_TK[:, :, None] == targets.ids_TK[:, None, :]
    return shared_TKK.any(1).to(own.mass_T.dtype).mean(-1)
