"""The learner's start-up checks pass on a healthy model and catch broken ones."""

from __future__ import annotations

import pytest
import torch

from fd_async.errors import SelfAuditFailed
from fd_async.learner import audit
from fd_async.learner.batching import collate
from tests.fakes.tiny_policy import tiny_policy


def test_healthy_model_passes() -> None:
    """Gradient, rows and teacher checks accept the real code."""
    audit.check_loss_gradient()
    audit.check_rows(tiny_policy(), chunk_tokens=8)
    audit.check_teacher_equals_student(tiny_policy(), tiny_policy(), top_k=5, chunk_tokens=8)


def test_a_shift_by_one_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading the row of the token itself instead of the row before it fails the audit."""

    def shifted(*args: object) -> object:
        rows = collate(*args)  # type: ignore[arg-type]
        rows.rows_T.add_(1)
        return rows

    monkeypatch.setattr("fd_async.learner.batching.collate", shifted)
    with pytest.raises(SelfAuditFailed, match="padded batch"):
        audit.check_rows(tiny_policy(), chunk_tokens=8)


def test_a_teacher_with_other_weights_is_caught() -> None:
    """A teacher that is not the student's copy fails before training."""
    other = tiny_policy()
    with torch.no_grad():
        other.head_VH.add_(1e-3)
    with pytest.raises(SelfAuditFailed, match="teacher and student differ"):
        audit.check_teacher_equals_student(tiny_policy(), other, top_k=5, chunk_tokens=8)


def test_a_wrong_gradient_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss whose backward is off by a factor fails the audit."""
    add = audit.student_cross_entropy.__globals__["HeadGradients"].add
    monkeypatch.setattr(
        audit.student_cross_entropy.__globals__["HeadGradients"],
        "add",
        lambda self, rows, grad: add(self, rows, grad * 1.001),
    )
    with pytest.raises(SelfAuditFailed, match="autograd"):
        audit.check_loss_gradient()
