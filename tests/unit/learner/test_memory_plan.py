"""The memory plan: exact where it counts, monotone where it estimates, and its advice really fits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from transformers import Qwen3_5TextConfig, Qwen3Config, Qwen3ForCausalLM
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5ForCausalLM

from fd_async.config.schema import Algorithm, Checkpoint, RunConfig
from fd_async.errors import PreflightError
from fd_async.learner import measuring
from fd_async.learner.memory_plan import GIB, activation_bytes, advice, changes, plan_of, refusal, table
from fd_async.learner.model_shape import Shape, read_shape, shape_of_config
from tests.fakes.tiny_policy import tiny_config, tiny_policy
from tests.fakes.tiny_qwen35 import tiny_qwen35

QWEN3_8B = {
    "model_type": "qwen3",
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "tie_word_embeddings": False,
}


def shape_8b() -> Shape:
    shape = shape_of_config(QWEN3_8B)
    assert shape is not None
    return shape


def config(ranks: int = 8, **learner: Any) -> RunConfig:
    """Qwen3-8B in bfloat16 on GPUs."""
    tables = {"ranks": ranks, "gpus": list(range(ranks)), "zero_stage": 3} | learner
    return tiny_config(model={"dtype": "bfloat16"}, learner=tables)


def test_the_8b_model_on_eight_gpus_takes_what_the_arithmetic_of_zero_says() -> None:
    """8.19 B parameters, ZeRO 3: 18 bytes each for the student over 8 ranks, 4 more for the teacher."""
    shape, plan = shape_8b(), plan_of(config(), shape_8b())
    assert shape.num_params == 8_190_735_360  # the published number of Qwen3-8B
    student = sum(plan.bytes_of(name) for name in ("weights", "gradients", "float32 master", "Adam moments"))
    assert 16e9 <= student <= 18.5e9
    assert student == pytest.approx(18 * shape.num_params / 8, rel=1e-6)
    assert plan.bytes_of("EMA teacher") == pytest.approx(4.1e9, rel=0.01)
    fitting = config(activation_checkpointing=True)
    assert plan_of(fitting, shape).device < 141e9
    assert advice(fitting, shape, int(141e9)) == ""


@pytest.mark.parametrize(
    ("stage", "bytes_per_param"),
    [(1, 2 + 4 + (4 + 8 + 4) / 8), (2, 2 + (4 + 4 + 8 + 4) / 8), (3, (2 + 4 + 4 + 8 + 4) / 8)],
)
def test_each_zero_stage_splits_one_thing_more(stage: int, bytes_per_param: float) -> None:
    """Optimizer and teacher from stage 1, gradients from 2, weights at 3."""
    names = ("weights", "gradients", "float32 master", "Adam moments", "EMA teacher")
    plan = plan_of(config(zero_stage=stage), shape_8b())
    assert sum(map(plan.bytes_of, names)) == pytest.approx(bytes_per_param * shape_8b().num_params, rel=1e-6)


def test_stage_0_holds_everything_and_no_master() -> None:
    """In float32 the weights are their own master; bfloat16 is never at stage 0."""
    whole = tiny_config(learner={"ranks": 4, "zero_stage": 0})
    plan = plan_of(whole, shape_8b())
    assert plan.bytes_of("float32 master") == 0
    assert plan.bytes_of("weights") == plan.bytes_of("EMA teacher") == 4 * shape_8b().num_params
    assert plan_of(config(zero_stage=0), shape_8b()) == plan_of(config(zero_stage=1), shape_8b())


def test_offload_moves_bytes_to_the_host_and_loses_none() -> None:
    """Optimizer, teacher and summed gradients, or weights too, leave the device."""
    plans = [
        plan_of(config(offload=offload), shape_8b()) for offload in ("none", "optimizer", "optimizer_and_parameters")
    ]
    for name in ("weights", "gradients", "float32 master", "Adam moments", "EMA teacher"):
        assert len({plan.bytes_of(name) for plan in plans}) == 1
    assert plans[0].device > plans[1].device > plans[2].device
    assert plans[0].host < plans[1].host < plans[2].host


def test_grpo_has_a_reference_in_the_teachers_place() -> None:
    """Only where the KL to it counts."""
    grpo = replace(config(), algorithm=Algorithm(type="grpo"))
    assert plan_of(grpo, shape_8b()).bytes_of("reference") == plan_of(config(), shape_8b()).bytes_of("EMA teacher")
    without = replace(config(), algorithm=Algorithm(type="grpo", kl_weight=0.0))
    assert plan_of(without, shape_8b()).bytes_of("reference") == 0


@pytest.mark.parametrize("tied", [True, False])
def test_parameters_are_counted_exactly_from_files_and_from_the_configuration(tied: bool, tmp_path: Path) -> None:
    """The plan's weight bytes are the true ones; a stale copy of a tied head in the file does not count."""
    policy = tiny_policy()
    if not tied:
        policy.lm = Qwen3ForCausalLM(Qwen3Config(**{**policy.lm.config.to_dict(), "tie_word_embeddings": False}))
    policy.lm.save_pretrained(tmp_path)
    true = sum(parameter.numel() for parameter in policy.lm.parameters())
    read = read_shape(str(tmp_path))
    counted = shape_of_config(json.loads((tmp_path / "config.json").read_text()))
    assert read is not None
    assert counted is not None
    assert read.num_params == counted.num_params == true
    assert read[1:-1] == counted[1:-1]
    bytes_of = plan_of(tiny_config(), read).bytes_of
    assert bytes_of("weights") == sum(parameter.nbytes for parameter in policy.lm.parameters())


@pytest.mark.parametrize("tied", [True, False])
def test_the_text_model_of_a_qwen35_checkpoint_is_counted_alone(tied: bool, tmp_path: Path) -> None:
    """Vision tower and multi-token head stay out; gated delta layers are counted from the configuration too."""
    tiny_qwen35(tmp_path, tied=tied)
    text = json.loads((tmp_path / "config.json").read_text())["text_config"] | {"tie_word_embeddings": tied}
    with torch.device("meta"):
        true = sum(parameter.numel() for parameter in Qwen3_5ForCausalLM(Qwen3_5TextConfig(**text)).parameters())
    read, counted = read_shape(str(tmp_path)), shape_of_config(text)
    assert read is not None
    assert counted is not None
    assert read.num_params == counted.num_params == true


def test_a_cached_hub_id_is_found_and_another_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is downloaded for a plan."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert read_shape("Qwen/Qwen3-8B") is None
    model = tmp_path / "models--Qwen--Qwen3-8B"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text("abc\n")
    (model / "snapshots" / "abc").mkdir(parents=True)
    (model / "snapshots" / "abc" / "config.json").write_text(json.dumps(QWEN3_8B))
    assert read_shape("Qwen/Qwen3-8B") == shape_8b()
    (model / "snapshots" / "abc" / "config.json").write_text('{"model_type": "other"')
    assert read_shape("Qwen/Qwen3-8B") is None
    (model / "snapshots" / "abc" / "config.json").write_text('{"model_type": "other"}')
    assert read_shape("Qwen/Qwen3-8B") is None


@given(
    ranks=st.integers(1, 16),
    stage=st.integers(0, 3),
    tokens=st.sampled_from([12288, 16384, 32768, 65536]),
    available=st.integers(4, 200),
    checkpointing=st.booleans(),
)
def test_advice_names_only_changes_that_help_and_says_truly_which_fit(
    ranks: int, stage: int, tokens: int, available: int, checkpointing: bool
) -> None:
    """Every change lowers the need; those that fit come first; without advice the plan fits."""
    made = config(ranks, zero_stage=stage, micro_batch_tokens=tokens, activation_checkpointing=checkpointing)
    budget, now = available * GIB, plan_of(made, shape_8b()).device
    found = changes(made, shape_8b(), budget)
    assert all(change.device < now for change in found)
    fitting = [change.device <= budget for change in found]
    assert fitting == sorted(fitting, reverse=True)
    assert (refusal(made, shape_8b(), budget) == "") == (now <= budget)


def test_advice_is_ordered_by_effect_and_applies() -> None:
    """Too little for activations of 64k tokens: checkpointing or a smaller micro-batch fit, and are named."""
    made = config(micro_batch_tokens=65536)
    budget = 160 * GIB
    words = refusal(made, shape_8b(), budget)
    assert words.startswith("a learner rank needs about ")
    assert "learner.activation_checkpointing = true" in words
    tokens = int(words.split("learner.micro_batch_tokens = ")[1].split()[0])
    smaller = replace(made, learner=replace(made.learner, micro_batch_tokens=tokens))
    assert plan_of(smaller, shape_8b()).device <= budget
    larger = replace(made, learner=replace(made.learner, micro_batch_tokens=tokens + 256))
    assert plan_of(larger, shape_8b()).device > budget


def test_more_ranks_are_no_advice_where_nothing_is_split() -> None:
    """At ZeRO 0 another rank holds everything again."""
    whole = tiny_config(learner={"zero_stage": 0})
    assert all("ranks" not in change.text for change in changes(whole, shape_8b(), 20 * GIB))
    assert "no single change is enough" in advice(whole, shape_8b(), GIB)


def test_checkpointing_keeps_a_layers_input_only() -> None:
    """36 layers keep 36 hidden states, and one layer everything."""
    without, with_it = config(), config(activation_checkpointing=True)
    saved = activation_bytes(without, shape_8b()) - activation_bytes(with_it, shape_8b())
    inputs = with_it.learner.micro_batch_tokens * 36 * 4096 * 2
    assert activation_bytes(with_it, shape_8b()) > inputs
    assert saved > 0.85 * activation_bytes(without, shape_8b())


def test_the_table_adds_up() -> None:
    """The last line is what stays plus the worst moment; what the device has stands beside it."""
    plan = plan_of(replace(config(), checkpoint=Checkpoint(every_steps=0)), shape_8b())
    moments = {part.moment for part in plan.parts if part.moment}
    worst = max(sum(part.device for part in plan.parts if part.moment == moment) for moment in moments)
    assert plan.device == sum(part.device for part in plan.parts if not part.moment) + worst
    lines = table(plan, 141 * GIB)
    assert len(lines) == len(plan.parts) + 1
    assert lines[-1].endswith("of 141.0 GiB")
    assert "host" not in lines[-1]


def test_a_rank_refuses_warns_or_keeps_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """`learner.memory_check` decides; the line says what to change."""
    policy = tiny_policy()
    shapes = {name: parameter.shape for name, parameter in policy.lm.named_parameters()}
    arguments: Any = (policy.lm.config.to_dict(), shapes, torch.device("cpu"))
    shape = measuring.check_memory(tiny_config(), *arguments)
    assert shape is not None
    assert shape.num_params == sum(parameter.numel() for parameter in policy.lm.parameters())
    monkeypatch.setattr(measuring, "available_bytes", lambda device: 2**28)
    with pytest.raises(PreflightError, match=r"a learner rank needs about .* has 0\.2 GiB.*learner\.memory_check"):
        measuring.check_memory(tiny_config(), *arguments)
    for choice in ("warn", "off"):
        measuring.check_memory(tiny_config(learner={"memory_check": choice}), *arguments)
