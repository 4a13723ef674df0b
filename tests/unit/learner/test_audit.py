"""The learner's start-up checks pass on a healthy model and each catches what it is there for."""

from __future__ import annotations

from contextlib import contextmanager
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from msgspec.structs import replace

from fd_async.algorithms.lm_head import HeadGradients
from fd_async.errors import SelfAuditFailed
from fd_async.learner import audit
from fd_async.learner.batching import Rows, collate
from tests.fakes.plain_engine import PlainEngine, shadow_of
from tests.fakes.tiny_policy import VOCAB, tiny_config, tiny_policy


def engine() -> PlainEngine:
    return PlainEngine(tiny_policy())


def audited(made: PlainEngine, **tables: dict[str, Any]) -> None:
    audit.run(tiny_config(**tables), made, shadow_of(made.policy))


@pytest.mark.parametrize("kind", ["fd", "grpo"])
@pytest.mark.parametrize("packing", [True, False])
def test_healthy_model_passes(kind: str, packing: bool) -> None:
    """All checks accept the real code, packed or padded."""
    audited(engine(), algorithm={"type": kind}, learner={"packing": packing})


@pytest.mark.parametrize(
    ("loss", "importance", "capped"),
    list(
        product(
            ["truncated", "renormalised", "both_renormalised", "tail_bucket"],
            ["none", "token", "prefix"],
            [(1.0, 0.0), (0.25, 0.0), (2.0, 3.0)],
        )
    ),
)
def test_every_variant_agrees_with_autograd(loss: str, importance: str, capped: tuple[float, float]) -> None:
    """Loss, importance weights, logit scale and soft-cap, as they are configured, at another temperature than 1."""
    config = tiny_config(algorithm={"loss": loss, "importance": importance})
    config = replace(config, rollout=replace(config.rollout, temperature=0.7))
    audit.check_loss_gradient(config, *capped)


@pytest.mark.parametrize("kind", ["fd", "grpo"])
def test_a_wrong_gradient_is_caught(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """A backward pass that is off by a thousandth fails the audit."""
    add = HeadGradients.add
    monkeypatch.setattr(HeadGradients, "add", lambda self, rows, grad: add(self, rows, grad * 1.001))
    with pytest.raises(SelfAuditFailed, match=f"the {kind} loss or its gradient disagrees with autograd"):
        audited(engine(), algorithm={"type": kind})


def test_forgotten_importance_weights_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss that ignores the ratio it was asked to weigh by fails the audit."""
    real = audit.student_cross_entropy
    monkeypatch.setattr(
        audit,
        "student_cross_entropy",
        lambda *args, weights, **keys: real(*args, weights=weights._replace(importance="none"), **keys),
    )
    audited(engine())
    with pytest.raises(SelfAuditFailed, match="importance = 'token'"):
        audited(engine(), algorithm={"importance": "token"})


@pytest.mark.parametrize("packing", [True, False])
def test_a_shift_by_one_is_caught(monkeypatch: pytest.MonkeyPatch, packing: bool) -> None:
    """Reading the row of the token itself instead of the row before it fails the audit."""

    def shifted(*args: Any) -> Rows:
        rows = collate(*args)
        if bool(args[4]) == packing:
            rows.rows_T.add_(1).clamp_(max=rows.input_ids_BL.numel() - 1)
        return rows

    monkeypatch.setattr("fd_async.learner.batching.collate", shifted)
    with pytest.raises(SelfAuditFailed, match="packed batch differ" if packing else "padded batch differ"):
        audited(engine(), learner={"packing": packing})


def test_a_mask_that_counts_tool_output_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens that nobody sampled must not be scored."""

    def unmasked(prompts: Any, completions: Any, masks: Any, *rest: Any) -> Rows:
        return collate(prompts, completions, [[True] * len(mask) for mask in masks], *rest)

    monkeypatch.setattr("fd_async.learner.batching.collate", unmasked)
    with pytest.raises(SelfAuditFailed, match="its masks say"):
        audited(engine())


def test_packed_sequences_that_see_their_neighbours_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without borders attention leaks from one sequence into the next; the padded batch cannot show it."""

    def leaky(*args: Any) -> Rows:
        rows = collate(*args)
        return Rows(rows.input_ids_BL, rows.position_ids_BL, rows.rows_T, rows.sampled_ids_T)

    monkeypatch.setattr("fd_async.learner.batching.collate", leaky)
    audited(engine(), learner={"packing": False})
    with pytest.raises(SelfAuditFailed, match=r"packed batch differ .* learner\.packing = false"):
        audited(engine(), learner={"packing": True})


def test_a_teacher_with_other_weights_is_caught() -> None:
    """A shadow that is not the student's copy fails before training."""
    made = engine()
    shadow = shadow_of(made.policy)
    shadow.flats[0].add_(1e-3)
    with pytest.raises(SelfAuditFailed, match="teacher and student differ"):
        audit.run(tiny_config(), made, shadow)


def test_a_teacher_with_dropout_is_caught() -> None:
    """Noise in the teacher's pass alone is a difference between teacher and student."""

    class Noisy(PlainEngine):
        @contextmanager
        def wearing(self, shadow: Any) -> Any:
            layer = self.policy.lm.base_model.layers[0]
            hook = layer.register_forward_hook(lambda module, inputs, output: F.dropout(output, 0.1))
            with super().wearing(shadow):
                yield
            hook.remove()

    with pytest.raises(SelfAuditFailed, match="teacher and student differ"):
        audited(Noisy(tiny_policy()))


def test_a_teacher_that_stays_on_is_caught() -> None:
    """The student's weights must be back after a look at the teacher."""

    class Forgetful(PlainEngine):
        @contextmanager
        def wearing(self, shadow: Any) -> Any:
            yield
            shadow.flats[0].add_(1e-2)
            self.shards.publish(shadow.flats)

    with pytest.raises(SelfAuditFailed, match="after a look at the teacher the student differs"):
        audited(Forgetful(tiny_policy()))


def test_a_support_beyond_the_vocabulary_is_caught() -> None:
    """K is bounded by the ids that model and tokenizer know, a padded vocabulary excluded."""
    with pytest.raises(SelfAuditFailed, match=rf"algorithm\.top_k = 65, but model and tokenizer know {VOCAB} tokens"):
        audited(engine(), algorithm={"top_k": 65})
    made = engine()
    made.policy.num_ids = 20
    with pytest.raises(SelfAuditFailed, match=r"algorithm\.top_k = 25, but model and tokenizer know 20 tokens"):
        audited(made)
    audited(made, algorithm={"type": "grpo"})


def test_a_tokenizer_larger_than_the_model_is_caught() -> None:
    """An id without a row of the output matrix cannot be learned."""
    made = engine()
    made.policy.num_ids = VOCAB + 1
    with pytest.raises(SelfAuditFailed, match=f"the tokenizer knows {VOCAB + 1} ids"):
        audited(made)


def test_embeddings_that_are_not_tied_as_stated_are_caught() -> None:
    """config.json and the module must agree, both ways."""
    made = engine()
    lm: Any = made.policy.lm
    lm.lm_head.weight = torch.nn.Parameter(lm.lm_head.weight.detach().clone())
    with pytest.raises(SelfAuditFailed, match=r"tie_word_embeddings = true, but .* two parameters"):
        audited(made)
    lm.config.tie_word_embeddings = False
    audited(PlainEngine(made.policy))
    lm.lm_head.weight = lm.get_input_embeddings().weight
    with pytest.raises(SelfAuditFailed, match=r"tie_word_embeddings = false, but .* one parameter"):
        audited(made)
