"""The teacher's moving average."""

from __future__ import annotations

import pytest
import torch

from fd_async.algorithms.ema import update_ema


def test_retention_is_the_share_that_stays() -> None:
    """mu = 0.9 * 1 + 0.1 * 3, in place."""
    average = [torch.ones(2)]
    kept = average[0]
    update_ema(average, [torch.full((2,), 3.0)], 0.9)
    torch.testing.assert_close(kept, torch.full((2,), 1.2))


def test_retention_one_freezes_and_zero_copies() -> None:
    """The two ends of the range are exact."""
    average, student = [torch.rand(3)], [torch.rand(3)]
    before = average[0].clone()
    update_ema(average, student, 1.0)
    assert torch.equal(average[0], before)
    update_ema(average, student, 0.0)
    assert torch.equal(average[0], student[0])


def test_hundred_updates_follow_the_closed_form_where_bfloat16_would_not_move() -> None:
    """Steps of 1e-5 on weights of 2e-2: float32 follows, a bfloat16 average stays where it was."""
    start, drift, retention = 0.02, 1e-5, 0.9
    average = [torch.tensor([start])]
    rounded = torch.tensor([start], dtype=torch.bfloat16)
    expected = start
    for update in range(1, 101):
        theta = start + drift * update / 20
        update_ema(average, [torch.tensor([theta])], retention)
        rounded = (retention * rounded + (1 - retention) * theta).to(torch.bfloat16)
        expected = retention * expected + (1 - retention) * theta
    assert average[0].item() == pytest.approx(expected, rel=1e-6)
    assert expected - start > 3e-5
    assert rounded.item() == torch.tensor(start, dtype=torch.bfloat16).item()


def test_another_number_of_tensors_is_refused() -> None:
    """An average of other parameters is no average."""
    with pytest.raises(ValueError, match="1 tensors, the student 2"):
        update_ema([torch.zeros(1)], [torch.zeros(1), torch.zeros(1)], 0.5)


def test_other_shapes_are_refused_before_anything_moves() -> None:
    """A mismatch in a later tensor leaves the earlier ones untouched."""
    average = [torch.zeros(1), torch.zeros(2)]
    with pytest.raises(ValueError, match="shape"):
        update_ema(average, [torch.ones(1), torch.ones(3)], 0.5)
    assert not average[0].any()


def test_a_narrow_average_is_refused() -> None:
    """An average below float32 would stall."""
    with pytest.raises(ValueError, match="float32"):
        update_ema([torch.zeros(1, dtype=torch.bfloat16)], [torch.ones(1)], 0.5)
