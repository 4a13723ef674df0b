"""The teacher's targets by tiles of the vocabulary, the student's overlap, and what both never allocate."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fd_async.algorithms import chunking
from fd_async.algorithms import targets as targets_module
from fd_async.algorithms.distillation import student_cross_entropy, teacher_top_k, top_k_overlap
from fd_async.algorithms.lm_head import Head, token_logprobs
from tests.unit.algorithms.cases import HIDDEN, make_case, targets_of


@pytest.mark.parametrize(("tile", "rows"), [(1, 1), (3, 4), (7, 13), (100, 5)])
@pytest.mark.parametrize(("top_k", "num_ids"), [(1, 0), (5, 0), (5, 11), (28, 0), (29, 0), (40, 17)])
def test_tiles_of_the_vocabulary_do_not_change_the_targets(
    monkeypatch: pytest.MonkeyPatch, tile: int, rows: int, top_k: int, num_ids: int
) -> None:
    """Tiles narrower than K, padded ids in tiles of their own, one tile: always the whole softmax's top-K and tail."""
    monkeypatch.setattr(targets_module, "_MIN_TILE", tile)
    monkeypatch.setattr(targets_module, "_TILE_ROWS", rows)
    case = make_case(num_ids=num_ids, softcap=3.0)
    found = targets_of(case, top_k=top_k, chunk_tokens=1)
    logits_TV = 3.0 * torch.tanh(case.teacher_TH @ case.teacher.weight_VH.T / 3.0)
    logp_TV = logits_TV.log_softmax(-1)
    known = num_ids or logp_TV.shape[1]
    logprobs_TK, ids_TK = logp_TV[:, :known].topk(min(top_k, known), dim=-1)
    assert torch.equal(found.ids_TK, ids_TK)
    torch.testing.assert_close(found.logprobs_TK, logprobs_TK)
    torch.testing.assert_close(found.mass_T, logprobs_TK.exp().sum(-1))
    torch.testing.assert_close(found.entropy_T, -(logp_TV.exp() * logp_TV).sum(-1))
    torch.testing.assert_close(found.sampled_logprobs_T, logp_TV.gather(1, case.sampled_T[:, None])[:, 0])
    tail_T = logp_TV.scatter(1, ids_TK, -torch.inf).logsumexp(-1)
    torch.testing.assert_close(found.log_tail_T, tail_T)


def test_a_tail_below_float32_rounding_of_the_mass_is_kept() -> None:
    """The tail is summed where it is: 1 - mass would be 0 or noise."""
    logits_TV = torch.full((2, 50), -30.0)
    logits_TV[:, 3] = 10.0
    eye, sampled_T = Head(torch.eye(50)), torch.zeros(2, dtype=torch.long)
    found = teacher_top_k(logits_TV, eye, sampled_T, top_k=1, chunk_tokens=0)
    assert found.mass_T.tolist() == [1.0, 1.0]
    exact = torch.tensor(49.0, dtype=torch.float64).log() - 40.0
    torch.testing.assert_close(found.log_tail_T.double(), exact.expand(2), rtol=1e-6, atol=0)


def test_overlap_is_the_shared_part_of_both_supports() -> None:
    """Equal students share everything, others what sets say."""
    case = make_case()
    targets = targets_of(case, top_k=6)
    same_T = top_k_overlap(case.teacher_TH, case.teacher, targets, chunk_tokens=4)
    assert same_T.tolist() == [1.0] * len(case.sampled_T)
    other_T = top_k_overlap(case.student_TH, case.student, targets, chunk_tokens=4)
    own_TK = (case.student_TH @ case.student.weight_VH.T).topk(6, dim=-1).indices
    expected = [len(set(a) & set(b)) / 6 for a, b in zip(own_TK.tolist(), targets.ids_TK.tolist(), strict=True)]
    assert other_T.tolist() == pytest.approx(expected)


class Largest(TorchDispatchMode):
    """Remembers the largest memory behind any tensor that an operation returns, bytes."""

    num_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.num_bytes = max(self.num_bytes, leaf.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_tensor_of_the_size_of_all_logits_is_made(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    """Forward and backward of teacher, loss and log-probs make nothing above 4 % of one float32 [T, V]."""
    monkeypatch.setattr(chunking, "_MIN_BYTES", 0)
    tokens, vocab = 2048, 4096
    generator = torch.Generator().manual_seed(0)
    weight_VH = torch.randn(vocab, HIDDEN, generator=generator).to(dtype).requires_grad_()
    hidden_TH = torch.randn(tokens, HIDDEN, generator=generator).to(dtype).requires_grad_()
    ids_T, head = torch.zeros(tokens, dtype=torch.long), Head(weight_VH)
    with Largest() as largest:
        targets = teacher_top_k(hidden_TH, head, ids_T, top_k=25, chunk_tokens=0)
        student_cross_entropy(hidden_TH, head, ids_T, targets, loss="tail_bucket", chunk_tokens=0).loss.backward()
        token_logprobs(hidden_TH, head, ids_T, temperature=0.8, chunk_tokens=0).logprobs_T.sum().backward()
    assert 0 < largest.num_bytes <= 0.04 * 4 * tokens * vocab
