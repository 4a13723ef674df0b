"""Passes over logits: blocks, groups and the Triton kernels give what plain torch gives."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from types import ModuleType

import pytest
import torch
from torch import Tensor

from fd_async.algorithms import rowwise

SETTINGS = [(1.0, 0.0, 1.0), (1.0, 0.0, 0.7), (0.5, 0.0, 1.0), (0.5, 3.0, 1.3)]


def products() -> Tensor:
    """Rows that are ordinary, partly masked, wholly masked, and dominated by one entry."""
    products_CV = torch.randn(5, 9001, generator=torch.Generator().manual_seed(0)) * 4
    products_CV[0, ::3] = rowwise.MASKED
    products_CV[1] = rowwise.MASKED
    products_CV[2, 5] = 90.0
    return products_CV


def check_against_torch(module: ModuleType, device: str) -> None:
    """Compare statistics and gradients of an implementation with softmax formulas in float64."""
    for scale, softcap, temperature in SETTINGS:
        raw_CV = products()
        kept_CV = raw_CV > rowwise.MASKED / 2
        logits_CV = scale * raw_CV.double()
        logits_CV = softcap * torch.tanh(logits_CV / softcap) if softcap else logits_CV
        slope_CV = scale * (1 - (logits_CV / softcap) ** 2) if softcap else torch.tensor(scale).double()
        logits_CV = logits_CV.masked_fill(~kept_CV, -torch.inf)
        found = module.statistics(raw_CV.to(device), scale=scale, softcap=softcap, temperature=temperature)
        some = [0, 2, 3, 4]
        logp_CV = logits_CV[some].log_softmax(-1)
        exact = {
            "max_C": logits_CV[some].amax(-1),
            "logsumexp_C": logits_CV[some].logsumexp(-1),
            "entropy_C": torch.special.entr(logp_CV.exp()).sum(-1),
            "tempered_logsumexp_C": (logits_CV[some] / temperature).logsumexp(-1),
        }
        for name, expected_C in exact.items():
            mine_C = getattr(found, name).cpu().double()
            torch.testing.assert_close(mine_C[some], expected_C, rtol=1e-6, atol=1e-6, msg=name)
        assert found.logsumexp_C[1].item() == -torch.inf
        assert found.entropy_C[1].item() == 0.0
        factor_C = torch.randn(5, generator=torch.Generator().manual_seed(1))
        for dtype, tolerance in ((torch.float32, 3e-6), (torch.bfloat16, 2**-7)):
            gradient_CV = module.softmax_gradient_(
                raw_CV.clone().to(device), found.max_C, factor_C.to(device), scale=scale, softcap=softcap, dtype=dtype
            )
            assert gradient_CV.dtype == dtype
            expected_CV = factor_C[:, None] * (logits_CV - found.max_C.cpu()[:, None].double()).exp() * slope_CV
            expected_CV = torch.where(kept_CV, expected_CV, 0.0)
            torch.testing.assert_close(gradient_CV.cpu().double(), expected_CV, rtol=tolerance, atol=1e-7)


def test_portable_passes_equal_softmax_formulas(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of one row or of all rows, masks, scale, cap and temperature change nothing but rounding."""
    for elements in (1, 2**20):
        monkeypatch.setitem(rowwise._BLOCK_ELEMENTS, "cpu", elements)
        check_against_torch(rowwise, "cpu")


@pytest.mark.slow
@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
def test_triton_kernels_equal_softmax_formulas_in_the_interpreter() -> None:
    """The kernels' own code, interpreted on the CPU; in a process of its own, since triton reads the switch once."""
    code = (
        "from tests.unit.algorithms.test_rowwise import check_against_torch as check\n"
        "from fd_async.algorithms import rowwise_triton\n"
        "check(rowwise_triton, 'cpu')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_triton_kernels_equal_softmax_formulas_on_the_gpu() -> None:
    """Compiled kernels, narrow results in the memory of the wide ones included."""
    from fd_async.algorithms import rowwise_triton

    check_against_torch(rowwise_triton, "cuda")


@pytest.mark.parametrize(("width", "num_ids"), [(40, 40), (40, 17), (9001, 9001), (9001, 8999), (9001, 9000)])
def test_largest_entries_are_found_and_masked(width: int, num_ids: int) -> None:
    """The k groups with the largest maxima hold the k largest entries, ties and rows of equal entries included."""
    logits_CV = torch.randn(6, width, generator=torch.Generator().manual_seed(2))
    logits_CV[1] = 0.0
    logits_CV[2] = logits_CV[2].round()
    logits_CV[3, num_ids - 1] = 50.0
    logits_CV[4, num_ids:] = 99.0
    before_CV = logits_CV.clone()
    expected_CK = before_CV[:, :num_ids].topk(7, dim=-1).values
    values_CK, ids_CK = rowwise.top_k_(logits_CV, 7, num_ids)
    torch.testing.assert_close(values_CK, expected_CK, rtol=0, atol=0)
    torch.testing.assert_close(before_CV.gather(1, ids_CK), values_CK, rtol=0, atol=0)
    assert all(len(set(row)) == 7 for row in ids_CK.tolist())
    assert torch.equal(logits_CV == rowwise.MASKED, torch.zeros_like(logits_CV).scatter(1, ids_CK, 1.0) > 0)
