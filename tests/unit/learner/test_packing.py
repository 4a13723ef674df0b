"""Packed rows: what a sequence computes does not depend on its neighbours, and nothing is padded or masked."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OlmoHybridConfig,
    OlmoHybridForCausalLM,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
)

from fd_async.errors import PreflightError
from fd_async.learner import packing
from fd_async.learner.batching import MicroBatch, collate
from fd_async.learner.model import Policy
from fd_async.types import TrainingSample
from tests.fakes.tiny_policy import VOCAB, tiny_hybrid, tiny_policy, tiny_samples

CPU = torch.device("cpu")
LENGTHS = [(7, 20), (3, 1), (9, 4), (12, 70), (4, 6), (40, 30)]
"""Prompt and completion; one completion of a single token, two sequences longer than a chunk of the recurrence."""


def samples_of(lengths: list[tuple[int, int]]) -> list[TrainingSample]:
    """Return random samples; every fifth completion token came from a tool."""
    rng = random.Random(0)
    return [
        TrainingSample(
            rollout_id=str(index),
            prompt_ids=[rng.randrange(VOCAB) for _ in range(prompt)],
            completion_ids=[rng.randrange(VOCAB) for _ in range(completion)],
            sampled_mask=[position % 5 != 3 for position in range(completion)],
            logprobs=[-1.0] * completion,
        )
        for index, (prompt, completion) in enumerate(lengths)
    ]


def hidden(policy: Policy, samples: list[TrainingSample], packed: bool = True) -> Tensor:
    """Return the hidden states of the sampled tokens."""
    return policy(MicroBatch(samples, CPU, packed).student(), lambda hidden_TH, head: hidden_TH)


def loss(hidden_TH: Tensor) -> Tensor:
    """A sum over tokens in which every coordinate has its own weight."""
    return (hidden_TH.square() * torch.linspace(0.5, 1.5, hidden_TH.shape[1])).sum() / 100


def gradients(policy: Policy, *totals: Tensor) -> dict[str, Tensor]:
    """Backpropagate the sum and return gradients by name."""
    policy.zero_grad()
    for total in totals:
        total.backward()
    return {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


def worst_relative(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """Return the largest relative distance of two gradients."""
    assert ours.keys() == theirs.keys()
    return max(float((ours[n] - theirs[n]).norm() / theirs[n].norm().clamp(min=1e-12)) for n in theirs)


@pytest.mark.parametrize("make", [tiny_policy, tiny_hybrid])
@pytest.mark.parametrize("lengths", [LENGTHS, LENGTHS[3:4], [(5, 8)] * 3])
def test_packed_and_separate_agree(make: Callable[[], Policy], lengths: list[tuple[int, int]]) -> None:
    """Hidden states and gradients are those of one forward pass per sequence."""
    policy, samples = make(), samples_of(lengths)
    single = torch.cat([hidden(policy, [sample]) for sample in samples])
    assert (hidden(policy, samples) - single).abs().max() < 1e-5
    policy.double()
    together, apart = hidden(policy, samples), [hidden(policy, [sample]) for sample in samples]
    ours, theirs = gradients(policy, loss(together)), gradients(policy, *map(loss, apart))
    assert len(ours) == len(list(policy.parameters()))
    assert worst_relative(ours, theirs) < 1e-6


@pytest.mark.parametrize("make", [tiny_policy, tiny_hybrid])
def test_packed_and_padded_give_the_same_loss_and_gradients(make: Callable[[], Policy]) -> None:
    """`learner.packing` changes the order of sums and nothing else."""
    policy, samples = make().double(), samples_of(LENGTHS)
    packed, padded = loss(hidden(policy, samples, True)), loss(hidden(policy, samples, False))
    assert packed.item() == pytest.approx(padded.item(), rel=1e-6)
    assert worst_relative(gradients(policy, packed), gradients(policy, padded)) < 1e-6


@pytest.mark.parametrize("make", [tiny_policy, tiny_hybrid])
@pytest.mark.parametrize("changed", range(len(LENGTHS)))
def test_a_token_reaches_no_other_sequence(make: Callable[[], Policy], changed: int) -> None:
    """Other ids in one sequence leave every bit of the others, and change its own."""
    policy, samples = make(), samples_of(LENGTHS)
    other = [(token + 1) % VOCAB for token in samples[changed].prompt_ids]
    altered = [*samples]
    altered[changed] = msgspec.structs.replace(samples[changed], prompt_ids=other)
    counts = MicroBatch(samples, CPU).num_sampled
    before, after = hidden(policy, samples).split(counts), hidden(policy, altered).split(counts)
    assert [torch.equal(x, y) for x, y in zip(before, after, strict=True)] == [
        i != changed for i in range(len(LENGTHS))
    ]


@pytest.mark.parametrize("make", [tiny_policy, tiny_hybrid])
def test_recomputed_activations_keep_the_borders(make: Callable[[], Policy], monkeypatch: pytest.MonkeyPatch) -> None:
    """Activation checkpointing runs every layer again, packed, and gives the same gradients."""
    policy, samples, calls = make().train(), samples_of(LENGTHS), []

    def counted(function: Any, borders: packing.Packing, *tensors: Tensor) -> Tensor:
        calls.append(borders)
        return in_blocks(function, borders, *tensors)

    in_blocks = packing.in_blocks
    monkeypatch.setattr(packing, "in_blocks", counted)
    plain = gradients(policy, loss(hidden(policy, samples)))
    num_calls = len(calls)
    policy.lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})  # type: ignore[operator]
    again = gradients(policy, loss(hidden(policy, samples)))
    assert len(calls) - num_calls == 2 * num_calls > 0
    assert worst_relative(again, plain) < 1e-6


@pytest.mark.parametrize("packed", [True, False])
def test_rows_point_before_the_sampled_tokens(packed: bool) -> None:
    """With ids that tell sequence and place, row and position are those of the token before a sampled one."""
    prompts = [[100, 101, 102], [200], [300, 301]]
    completions = [[103, 104], [201, 202, 203], [302]]
    masks = [[True, True], [True, False, True], [True]]
    rows = collate(prompts, completions, masks, CPU, packed)
    assert rows.sampled_ids_T.tolist() == [103, 104, 201, 203, 302]
    assert rows.input_ids_BL.flatten()[rows.rows_T].tolist() == [102, 103, 200, 202, 301]
    assert rows.position_ids_BL.flatten()[rows.rows_T].tolist() == [2, 3, 0, 2, 1]
    assert rows.input_ids_BL.shape == ((1, 12) if packed else (3, 5))


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("make", [tiny_policy, tiny_hybrid])
def test_prompt_and_tool_tokens_get_exactly_no_gradient(make: Callable[[], Policy], packed: bool) -> None:
    """The last hidden states have a gradient at the rows of sampled tokens and zero elsewhere."""
    policy, outputs = make(), []
    rows = MicroBatch(samples_of(LENGTHS), CPU, packed).student()

    def keep(module: nn.Module, args: Any, output: Tensor) -> None:
        output.retain_grad()
        outputs.append(output)

    norm: Any = policy.lm.get_submodule("model.norm")
    norm.register_forward_hook(keep)
    policy(rows, lambda hidden_TH, head: loss(hidden_TH)).backward()
    learned = outputs[0].grad.flatten(0, 1).ne(0).any(-1)
    assert learned.nonzero().flatten().tolist() == sorted(rows.rows_T.tolist())


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("make", [tiny_policy, tiny_hybrid])
def test_an_empty_micro_batch_takes_part_with_zero_gradients(make: Callable[[], Policy], packed: bool) -> None:
    """Every parameter of the body gets a gradient of zeros, so that ranks reduce the same tensors."""
    policy = make()
    rows = MicroBatch([], CPU, packed).student()
    empty = policy(rows, lambda hidden_TH, head: hidden_TH.sum() + 0 * head.weight_VH.sum())
    found = gradients(policy, empty)
    assert len(rows.rows_T) == 0
    assert len(found) == len(list(policy.parameters()))
    assert not any(gradient.any() for gradient in found.values())


def test_attention_is_causal_per_sequence_without_a_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing longer than the longest sequence is attended to, and no mask is made."""
    seen: list[tuple[int, int, bool, object]] = []
    attend = F.scaled_dot_product_attention

    def recorded(query: Tensor, key: Tensor, value: Tensor, **kwargs: Any) -> Tensor:
        seen.append((query.shape[2], key.shape[2], kwargs["is_causal"], kwargs.get("attn_mask")))
        return attend(query, key, value, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", recorded)
    hidden(tiny_policy(), samples_of(LENGTHS))
    assert max(query for query, *_ in seen) == max(sum(pair) for pair in LENGTHS)
    assert all(query == key and causal and mask is None for query, key, causal, mask in seen)


def test_the_variable_length_kernel_gets_the_same_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layout, borders, scale, window and head groups of the CUDA path describe what the portable path computes."""

    def literal(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        starts_q, starts_k, longest_q, longest_k = args
        assert starts_q.dtype == torch.int32
        assert torch.equal(starts_q, starts_k)
        assert longest_q == longest_k == int(starts_q.diff().max())
        assert kwargs["window_size"] == (-1, 0)
        assert kwargs["enable_gqa"]
        out = torch.empty_like(query)
        for start, end in zip(starts_q.tolist(), starts_q.tolist()[1:], strict=False):
            for head in range(query.shape[1]):
                group = head // (query.shape[1] // key.shape[1])
                scores = query[start:end, head] @ key[start:end, group].T * kwargs["scale"]
                future = torch.ones_like(scores).triu(1).bool()
                out[start:end, head] = scores.masked_fill(future, float("-inf")).softmax(-1) @ value[start:end, group]
        return out

    policy, samples = tiny_policy(), samples_of(LENGTHS)
    portable = hidden(policy, samples)
    monkeypatch.setattr(packing, "_has_varlen", lambda query: True)
    monkeypatch.setattr(packing, "varlen_attn", literal)
    with torch.no_grad():
        assert (hidden(policy, samples) - portable).abs().max() < 1e-5


@pytest.mark.parametrize("make", [tiny_policy, tiny_hybrid])
def test_every_submodule_runs_once_whatever_the_lengths(make: Callable[[], Policy]) -> None:
    """Ranks with other samples call the same modules in the same order, which ZeRO 3's gathering needs."""
    policy, calls = make(), []
    for name, module in policy.lm.named_modules():
        module.register_forward_hook(lambda *_, name=name: calls.append(name))
    orders = []
    for samples in (samples_of(LENGTHS), samples_of([(5, 5)]), []):
        hidden(policy, samples)
        orders.append([*calls])
        calls.clear()
    assert orders[0] == orders[1] == orders[2]
    assert len(orders[0]) == len(set(orders[0]))


DELTA: dict[str, Any] = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
EXPERTS: dict[str, Any] = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}


def small(**changes: Any) -> dict[str, Any]:
    """Return sizes that most configurations of transformers share."""
    return {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 256,
        "initializer_range": 0.1,
        "pad_token_id": 0,
    } | changes


@pytest.mark.parametrize(
    "lm",
    [
        lambda: LlamaForCausalLM(LlamaConfig(**small())),
        lambda: OlmoHybridForCausalLM(OlmoHybridConfig(**small(num_hidden_layers=4), **DELTA)),
        lambda: Qwen3NextForCausalLM(Qwen3NextConfig(**small(num_hidden_layers=4), **DELTA, **EXPERTS)),
    ],
    ids=["llama", "olmo_hybrid", "qwen3_next"],
)
@torch.no_grad()
def test_other_families_pack_too(lm: Callable[[], nn.Module]) -> None:
    """The borders reach the layers of every model file that is built the same way."""
    torch.manual_seed(0)
    policy, samples = Policy(lm()), samples_of(LENGTHS[:3])
    apart = torch.cat([hidden(policy, [sample]) for sample in samples])
    assert not policy.why_padded
    assert (hidden(policy, samples) - apart).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("lm", "reason"),
    [
        (lambda: Gemma2ForCausalLM(Gemma2Config(**small(sliding_window=8))), "soft-cap"),
        (lambda: MistralForCausalLM(MistralConfig(**small(sliding_window=8))), "sliding window"),
        (lambda: MambaForCausalLM(MambaConfig(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=1)), "gated delta"),
    ],
    ids=["gemma2", "mistral", "mamba"],
)
def test_a_model_with_other_layers_is_padded(lm: Callable[[], nn.Module], reason: str) -> None:
    """It names the reason, refuses packed rows, and its padded rows agree with separate ones."""
    torch.manual_seed(0)
    policy, samples = Policy(lm()), samples_of(LENGTHS[:3])
    assert reason in policy.why_padded
    with pytest.raises(PreflightError, match="cannot be packed"):
        hidden(policy, samples)
    if reason != "gated delta":
        apart = torch.cat([hidden(policy, [sample]) for sample in samples])
        assert (hidden(policy, samples, packed=False) - apart).abs().max() < 1e-5


def test_a_mask_or_a_window_is_refused() -> None:
    """What this attention does not compute is an error, never left out."""
    policy = tiny_policy()
    ids = torch.ones(2, 4, dtype=torch.long)
    with pytest.raises(NotImplementedError, match="takes no mask"):
        policy.lm(input_ids=ids, attention_mask=torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]]))
    query = torch.zeros(1, 2, 4, 8)
    with pytest.raises(NotImplementedError, match="sliding_window"):
        packing.packed_attention(policy, query, query, query, None, sliding_window=2)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=30))
def test_blocks_hold_every_token_once_and_little_padding(lengths: list[int]) -> None:
    """A round trip gives the row back; padding stays below a quarter of the tokens."""
    borders, row = packing.pack(lengths, CPU), torch.arange(sum(lengths))
    assert torch.equal(packing.in_blocks(lambda x: x, borders, row), row)
    assert sum(len(block.tokens) for block in borders.blocks) <= 1.25 * sum(lengths)
    assert borders.borders.diff().tolist() == lengths


def test_a_teacher_row_is_packed_like_the_students() -> None:
    """Feedback in the prompt shifts rows, never which tokens are learned."""
    batch = MicroBatch(tiny_samples(5), CPU, packed=True)
    student, teacher = batch.student(), batch.teacher()
    assert teacher.packing is not None
    assert torch.equal(student.sampled_ids_T, teacher.sampled_ids_T)
    expected = [len(s.teacher_prompt_ids) + len(s.completion_ids) for s in batch.samples]
    assert teacher.packing.borders.diff().tolist() == expected
