"""How much memory a learner rank needs, part by part, and which change of the configuration would make it fit.

    kept through a step   weights, gradients, float32 master, Adam's moments, teacher or reference, teacher's targets
    for a moment          the larger of: forward and backward of a micro-batch; the update

Plain arithmetic without torch, so that `fd-check` and `--dry-run` answer at once. The rank compares it with what it
measures after the model is built. n: parameters; R: ranks; b: bytes of `model.dtype`; T: `learner.micro_batch_tokens`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from fd_async.algorithms.chunking import chunk_rows
from fd_async.config.schema import RunConfig
from fd_async.learner.model_shape import Shape

GIB = 2**30
_RUNTIME_BYTES = {True: int(1.5 * GIB), False: int(0.65 * GIB)}
"""Python, torch and DeepSpeed, with the CUDA context and NCCL's buffers on a GPU, before a model is loaded."""
_BUCKET = 200_000_000
"""Elements of DeepSpeed's reduction buffers at most (`engine.zero_settings`)."""
_LIVE_PARAMS = 1_000_000_000
"""Whole parameters that DeepSpeed keeps under ZeRO 3 (its default `stage3_max_live_parameters`)."""
_MAX_RANKS = 64


class Part(NamedTuple):
    """A line of the plan: bytes on the device and in host memory, per rank."""

    name: str
    device: int
    host: int = 0
    moment: str = ""
    """Empty for what stays; else the moment, of which only the largest counts."""


class Plan(NamedTuple):
    """What one rank needs."""

    parts: list[Part]

    @property
    def device(self) -> int:
        """Bytes on the device at the worst moment."""
        moments: dict[str, int] = {}
        for part in self.parts:
            moments[part.moment] = moments.get(part.moment, 0) + part.device
        return moments.pop("", 0) + max(moments.values(), default=0)

    @property
    def host(self) -> int:
        """Bytes in host memory, beside those of a device that is the host."""
        return sum(part.host for part in self.parts)

    def bytes_of(self, name: str) -> int:
        """Return a part's bytes, wherever they are."""
        return sum(part.device + part.host for part in self.parts if part.name == name)


class Change(NamedTuple):
    """One change of the configuration and what a rank needs with it."""

    text: str
    device: int


def plan_of(config: RunConfig, shape: Shape) -> Plan:
    """Add up what a rank of this configuration needs."""
    return Plan([part for part in (*_kept(config, shape), *_for_a_moment(config, shape)) if part.device or part.host])


def effective_zero_stage(config: RunConfig) -> int:
    """Stage 0 has no float32 master weights in bfloat16, so bfloat16 runs at stage 1 or higher."""
    return max(config.learner.zero_stage, 1) if config.model.dtype == "bfloat16" else config.learner.zero_stage


def _width(config: RunConfig) -> int:
    return 2 if config.model.dtype == "bfloat16" else 4


def _kept(config: RunConfig, shape: Shape) -> Iterator[Part]:
    """Yield what stays: 2 + 4 + 4 + 8 bytes per parameter in bfloat16, 4 more for teacher or reference.

    Gradients are summed in float32, whole at stage 0 and 1. Master, moments and teacher are split from stage 1 on
    (ZeRO, Rajbhandari et al. 2020, section 5), gradients from 2, weights at 3. Stage 0 updates the weights themselves.
    """
    stage, ranks, num, width = effective_zero_stage(config), config.learner.ranks, shape.num_params, _width(config)
    algorithm, is_gpu = config.algorithm, bool(config.learner.gpus)
    share = -(-num // ranks)
    optimizer_off = config.learner.offload != "none" and stage > 0
    weights_off = config.learner.offload == "optimizer_and_parameters" and stage == 3

    def part(name: str, size: int, off: bool) -> Part:
        return Part(name, 0, size) if off and is_gpu else Part(name, size)

    yield Part("runtime", _RUNTIME_BYTES[is_gpu])
    yield part("weights", width * (share if stage == 3 else num), weights_off)
    yield part("gradients", 4 * (share if stage >= 2 else num), optimizer_off and stage >= 2)
    held = share if stage else num
    if stage:
        yield part("float32 master", 4 * held, optimizer_off)
    yield part("Adam moments", 8 * held, optimizer_off)
    if algorithm.type == "fd":
        yield part("EMA teacher", 4 * held, optimizer_off)
        yield Part("teacher targets", _target_bytes(config))
    elif algorithm.kl_weight > 0:
        yield part("reference", 4 * held, optimizer_off)
    if config.checkpoint.background and config.checkpoint.every_steps:
        copied = 12 * held + (4 * held if algorithm.type == "fd" else 0)
        yield Part("checkpoint copy", 0, copied) if is_gpu else Part("checkpoint copy", copied)


def _target_bytes(config: RunConfig) -> int:
    """Return the size of targets [T, K] of a whole step: ids of 8 bytes, log-probs of 4, and three rows of 4."""
    sequences = config.learner.prompts_per_step * config.rollout.samples_per_prompt
    tokens = -(-sequences // config.learner.ranks) * config.rollout.max_response_tokens
    return tokens * (12 * config.algorithm.top_k + 12)


def _for_a_moment(config: RunConfig, shape: Shape) -> Iterator[Part]:
    stage, width, tokens = effective_zero_stage(config), _width(config), config.learner.micro_batch_tokens
    share, work = -(-shape.num_params // config.learner.ranks), "forward and backward"
    bucket = min(shape.num_params, _BUCKET)
    yield Part("activations", activation_bytes(config, shape), moment=work)
    rows = chunk_rows(tokens, config.learner.lm_head_chunk_tokens, shape.vocab)
    yield Part("logits of a chunk", 5 * min(rows, tokens) * shape.vocab, moment=work)
    yield Part("lm_head gradient", (4 * shape.vocab + width * tokens) * shape.hidden, moment=work)
    if stage:
        yield Part("gradient bucket", 4 * bucket, moment=work)
    if stage == 3:
        live = _LIVE_PARAMS + max(shape.largest, bucket)
        yield Part("gathered weights", width * min(shape.num_params, live), moment=work)
    off = config.learner.offload != "none" and stage > 0 and bool(config.learner.gpus)
    yield Part("update", (0 if off else 4 * share) if stage else 0, moment="update")


def activation_bytes(config: RunConfig, shape: Shape) -> int:
    """Estimate what the layers keep for backward.

    The count follows Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer Models",
    section 4.1, without dropout and with an attention that keeps no scores (their 5as/h term), for the modules of
    transformers: per token and layer, in elements
        two norms         input and normalised value in float32, output            2 H (2 float32 + 1)
        query, key        projected, normed in float32, rotated                    (Q + KV) (2 float32 + 2)
        value, attention  v, attention's output, input of the gate or projection   KV + 2 Q
        MLP               gate, up, activation, product                            4 I
    With checkpointing a layer keeps its input, and one layer at a time has the rest. A gated delta layer counts as
    attention, which is about right for its fused kernels and low for its portable path.
    """
    width, tokens = _width(config), config.learner.micro_batch_tokens
    norms = 2 * shape.hidden * (8 + width)
    attention = (shape.query + shape.key_value) * (8 + 2 * width) + (shape.key_value + 2 * shape.query) * width
    layer = norms + attention + 4 * shape.intermediate * width
    outside = shape.hidden * (8 + 2 * width)
    if config.learner.activation_checkpointing:
        return tokens * (shape.layers * shape.hidden * width + layer + outside)
    return tokens * (shape.layers * layer + outside)


def changes(config: RunConfig, shape: Shape, available: int) -> list[Change]:
    """Return single changes that help, those that make it fit first, each group by effect."""
    now = plan_of(config, shape).device
    found = [Change(text, plan_of(other, shape).device) for text, other in _alternatives(config, shape, available)]
    helpful = [change for change in found if change.device < now]
    return sorted(helpful, key=lambda change: (change.device > available, change.device))


def _alternatives(config: RunConfig, shape: Shape, available: int) -> Iterator[tuple[str, RunConfig]]:
    learner = config.learner

    def changed(**keys: object) -> RunConfig:
        return replace(config, learner=replace(learner, **keys))

    for stage in range(effective_zero_stage(config) + 1, 4):
        yield f"learner.zero_stage = {stage}", changed(zero_stage=stage)
    if not learner.activation_checkpointing:
        yield "learner.activation_checkpointing = true", changed(activation_checkpointing=True)
    for offload in ("optimizer", "optimizer_and_parameters"):
        if (
            learner.gpus
            and offload != learner.offload
            and effective_zero_stage(config) >= (1 if offload == "optimizer" else 3)
        ):
            yield f'learner.offload = "{offload}"', changed(offload=offload)
    tokens = _fewer_tokens(config, shape, available)
    if tokens < learner.micro_batch_tokens:
        yield f"learner.micro_batch_tokens = {tokens}", changed(micro_batch_tokens=tokens)
    ranks = next((n for n in range(learner.ranks + 1, _MAX_RANKS + 1) if _fits(changed(ranks=n), shape, available)), 0)
    if ranks:
        yield f"learner.ranks = {ranks}", changed(ranks=ranks)


def _fewer_tokens(config: RunConfig, shape: Shape, available: int) -> int:
    """Return the largest micro-batch that fits, in steps of 256 tokens, but no less than the longest attempt."""
    rollout = config.rollout
    longest = rollout.max_prompt_tokens + rollout.max_response_tokens
    longest += config.feedback.max_feedback_tokens if config.algorithm.type == "fd" else 0
    low, high = -(-longest // 256), config.learner.micro_batch_tokens // 256
    while low < high:
        middle = (low + high + 1) // 2
        other = replace(config, learner=replace(config.learner, micro_batch_tokens=middle * 256))
        low, high = (middle, high) if _fits(other, shape, available) else (low, middle - 1)
    return low * 256


def _fits(config: RunConfig, shape: Shape, available: int) -> bool:
    return plan_of(config, shape).device <= available


def advice(config: RunConfig, shape: Shape, available: int) -> str:
    """Say in one line what to change when the plan does not fit `available` bytes; empty when it fits."""
    if _fits(config, shape, available):
        return ""
    found = changes(config, shape, available)
    enough = [f"{change.text} ({gib(change.device)})" for change in found if change.device <= available]
    if enough:
        return f"one of these makes it fit: {'; '.join(enough)}"
    if not found:
        return "no setting makes it fit: take a smaller model or a larger device"
    best = "; ".join(f"{change.text} ({gib(change.device)})" for change in found[:3])
    return f"no single change is enough; the most helpful: {best}"


def gib(size: float) -> str:
    """Format bytes."""
    return f"{size / GIB:.1f} GiB" if size >= GIB / 10 else f"{size / 2**20:.1f} MiB"


def table(plan: Plan, available: int | None = None) -> list[str]:
    """Return the plan as lines, two columns where host memory is used too."""
    lines = []
    for part in plan.parts:
        host = f"  + {gib(part.host)} in host memory" if part.host else ""
        when = f"  (during {part.moment})" if part.moment else ""
        lines.append(f"{part.name:<18}{gib(part.device) if part.device else '-':>11}{host}{when}")
    total = f"{'a rank, at worst':<18}{gib(plan.device):>11}"
    if plan.host:
        total += f"  + {gib(plan.host)} in host memory"
    return [*lines, total + (f"  of {gib(available)}" if available is not None else "")]


def refusal(config: RunConfig, shape: Shape, available: int, *, beside: Sequence[str] = ()) -> str:
    """Return the line for a plan that does not fit; empty when it does."""
    words = advice(config, shape, available)
    if not words:
        return ""
    needed = gib(plan_of(config, shape).device)
    note = f" ({', '.join(beside)})" if beside else ""
    return f"a learner rank needs about {needed} and has {gib(available)}{note}; {words}"
