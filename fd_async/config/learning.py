"""The tables of learning: loss, learner ranks, admission, checkpoints, alarms. Part of `schema`."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import field

from fd_async.config.table import Table
from fd_async.config.table import describe as _d


class Algorithm(Table, frozen=True):
    """The loss. Docs: docs/learner.md."""

    type: Annotated[Literal["fd", "grpo"], _d("Feedback Distillation or GRPO.")] = "fd"
    loss: Annotated[
        Literal["truncated", "renormalised", "both_renormalised", "tail_bucket"],
        _d("What becomes of probability outside the teacher's top K; `truncated` is the paper's (fd)."),
    ] = "truncated"
    top_k: Annotated[int, _d("Teacher tokens per position (fd).", gt=0)] = 25
    normalisation: Annotated[
        Literal["token_mean", "sequence_sum", "sequence_mean"],
        _d(
            "Mean over all sampled tokens; sum over each sequence, mean over sequences; or mean over both. "
            "Counts are global."
        ),
    ] = "token_mean"
    importance: Annotated[
        Literal["none", "token", "prefix"],
        _d("Weigh tokens by the learner/engine ratio of the token, or of all before it, up to `importance_cap` (fd)."),
    ] = "none"
    importance_cap: Annotated[
        float, _d("Truncation of the learner/engine ratio of stale tokens; 0 turns it off (grpo, fd).", ge=0)
    ] = 2.0
    max_age: Annotated[
        int,
        _d(
            "Attempts older than this when they are consumed, in weight versions, are dropped (`too_old`); -1: never."
            " Works below `admission.max_staleness`, at the price of a bias to short attempts.",
            ge=-1,
        ),
    ] = -1
    ema_retention: Annotated[
        float, _d("mu <- ema_retention * mu + (1 - ema_retention) * theta; 1 freezes the teacher (fd).", ge=0, le=1)
    ] = 0.9
    ema_every: Annotated[int, _d("Gradient steps between teacher updates (fd).", gt=0)] = 5
    ema_min_gain: Annotated[
        float,
        _d("The teacher waits while its gain from feedback, a running mean, is below this, nats/token; 0: off.", ge=0),
    ] = 0.0
    gain_samples: Annotated[
        int, _d("Attempts per step on which the gain from feedback is measured; one teacher forward each (fd).", gt=0)
    ] = 8
    causality_every: Annotated[
        int,
        _d(
            "Every n-th step measures how far the teacher follows true, another attempt's and no feedback; 0: never"
            " (fd).",
            ge=0,
        ),
    ] = 0
    causality_samples: Annotated[
        int, _d("Attempts of such a step on which that is measured; two more teacher forwards each (fd).", gt=0)
    ] = 16
    anchor_weight: Annotated[
        float,
        _d("Weight of CE(teacher, student) under feedback, which keeps the teacher able to follow it (fd).", ge=0),
    ] = 0.0
    anchor_every: Annotated[int, _d("The anchor is computed on every n-th step (fd).", gt=0)] = 5
    anchor_share: Annotated[float, _d("Share of a step's attempts that the anchor uses (fd).", gt=0, le=1)] = 1.0
    clip_low: Annotated[float, _d("Lower clip of the ratio (grpo).", gt=0, lt=1)] = 0.2
    clip_high: Annotated[float, _d("Upper clip of the ratio (grpo).", gt=0)] = 0.2
    kl_weight: Annotated[float, _d("Weight of the KL to the frozen reference (grpo).", ge=0)] = 0.001
    kl_estimator: Annotated[
        Literal["k1", "k2", "k3"], _d("Per-token estimator of that KL, as a loss; k3 is never negative (grpo).")
    ] = "k3"
    advantage_std: Annotated[bool, _d("Divide group advantages by the group's standard deviation (grpo).")] = True


class Learner(Table, frozen=True):
    """DeepSpeed ranks."""

    ranks: Annotated[int, _d("Learner processes.", gt=0)] = 1
    gpus: Annotated[list[int], _d("GPU index per rank; empty on CPU.")] = field(default_factory=list)
    prompts_per_step: Annotated[int, _d("Statements per gradient step, over all ranks.", gt=0)] = 128
    lr: Annotated[float, _d("Peak learning rate.", gt=0)] = 1e-5
    warmup_steps: Annotated[int, _d("Linear warm-up, gradient steps.", ge=0)] = 50
    decay: Annotated[
        Literal["none", "cosine"],
        _d("After warm-up the rate stays, or falls along half a cosine to 0 at `run.max_steps`."),
    ] = "none"
    betas: Annotated[tuple[float, float], _d("Adam betas.")] = (0.9, 0.999)
    eps: Annotated[float, _d("Adam epsilon.", gt=0)] = 1e-8
    weight_decay: Annotated[float, _d("AdamW weight decay.", ge=0)] = 0.0
    grad_clip: Annotated[float, _d("Global gradient norm limit.", gt=0)] = 1.0
    zero_stage: Annotated[int, _d("DeepSpeed ZeRO stage.", ge=0, le=3)] = 0
    micro_batch_tokens: Annotated[
        int, _d("Tokens per forward pass and rank; without packing, padding included.", gt=0)
    ] = 16384
    lm_head_chunk_tokens: Annotated[
        int,
        _d("Rows of logits that exist at once, tokens; 0: 3.5 % of the micro-batch's, at least 64 and 4 MiB.", ge=0),
    ] = 0
    packing: Annotated[
        bool, _d("Sequences of a micro-batch stand one after another without padding; attention does not cross them.")
    ] = True
    activation_checkpointing: Annotated[bool, _d("Recompute activations in the backward pass.")] = False
    offload: Annotated[
        Literal["none", "optimizer", "optimizer_and_parameters"],
        _d("Keep optimizer state and teacher, or parameters too (ZeRO 3), in CPU memory."),
    ] = "none"
    gather_bucket_mib: Annotated[
        int, _d("Whole parameters that exist at once when weights leave ZeRO 3, MiB.", gt=0)
    ] = 512
    memory_check: Annotated[
        Literal["refuse", "warn", "off"], _d("What to do when the memory plan of a rank does not fit its device.")
    ] = "refuse"
    hostfile: Annotated[
        str, _d("DeepSpeed hostfile (`HOST slots=N` lines) of ranks on several nodes; empty: all on this one.")
    ] = ""
    launcher: Annotated[
        Literal["pdsh", "ssh", "openmpi", "mpich", "slurm"], _d("How DeepSpeed reaches the hosts of the hostfile.")
    ] = "pdsh"
    controller_address: Annotated[
        str, _d("HOST or HOST:PORT where ranks of other nodes reach this process; needed with `learner.hostfile`.")
    ] = ""
    cpu_threads: Annotated[int, _d("Torch threads per rank on CPU; 0 leaves it to torch.", ge=0)] = 0
    start_timeout_s: Annotated[float, _d("Start-up deadline, seconds.", gt=0)] = 900.0
    step_timeout_s: Annotated[float, _d("Deadline of one gradient step, seconds.", gt=0)] = 1500.0
    max_restarts: Annotated[
        int,
        _d(
            "Restarts from the newest checkpoint after a rank died, without a newer one between; the next ends it.",
            ge=0,
        ),
    ] = 2
    score_tokens: Annotated[
        int, _d("Attempts per step whose log p_teacher - log p_student is kept for the report.", ge=0)
    ] = 4


class Admission(Table, frozen=True):
    """How far rollouts may run ahead of the learner."""

    max_staleness: Annotated[
        int, _d("Weight versions between sampling and training; capacity = (S + v + 1) * B - outstanding.", ge=0)
    ] = 2
    max_kv_usage: Annotated[
        float, _d("Attempts wait to start above this share of the engine's KV cache; 1: never.", gt=0, le=1)
    ] = 0.9
    max_checks_waiting: Annotated[
        float, _d("Attempts wait to start above this many waiting checks per verifier worker; 0: never.", ge=0)
    ] = 4.0
    max_feedback_wait_s: Annotated[
        float,
        _d("Attempts wait to start while feedback already queued takes longer than this at its pace; 0: never.", ge=0),
    ] = 900.0


class Checkpoint(Table, frozen=True):
    """What survives."""

    every_steps: Annotated[int, _d("Gradient steps between checkpoints; 0 writes one only at the end.", ge=0)] = 50
    keep_last: Annotated[int, _d("Checkpoints kept.", gt=0)] = 2
    min_free_gib: Annotated[float, _d("Refuse to write below this much free disk, GiB.", ge=0)] = 1.0
    background: Annotated[bool, _d("Training goes on while a checkpoint is written from a copy in memory.")] = True
    timeout_s: Annotated[float, _d("Deadline for writing one checkpoint, seconds.", gt=0)] = 1500.0
    shard_gib: Annotated[float, _d("Largest file of exported weights, GiB.", gt=0)] = 5.0


class Alarms(Table, frozen=True):
    """Signs of collapse, and what is done about them. 0 turns a single alarm off. Docs: docs/metrics.md."""

    action: Annotated[
        Literal["warn", "stop", "rollback"],
        _d(
            "Say it once; end the run after a checkpoint, exit code 7; or take model, optimizer and teacher of the last"
            " good checkpoint and go on."
        ),
    ] = "warn"
    patience: Annotated[int, _d("Steps in a row over its limit before an alarm is raised.", gt=0)] = 5
    warmup_steps: Annotated[
        int, _d("Steps without alarms at the start, and after a rollback; what is usual is measured in them.", ge=0)
    ] = 20
    max_rollbacks: Annotated[int, _d("Rollbacks of one run; the next alarm ends it.", gt=0)] = 2
    min_gain_share: Annotated[
        float,
        _d(
            "`teacher/feedback_gain` per failed attempt below this share of its best, while `policy/teacher_kl` is not"
            " low or the pass rate falls (fd).",
            ge=0,
            lt=1,
        ),
    ] = 0.2
    min_entropy_share: Annotated[
        float, _d("`policy/entropy` below this share of its first mean, while attempts still fail.", ge=0, lt=1)
    ] = 0.1
    max_entropy_growth: Annotated[
        float, _d("`policy/entropy` above this many times its first mean, with a falling pass rate.", ge=0)
    ] = 2.0
    max_teacher_entropy: Annotated[
        float, _d("`teacher/entropy` above this share of ln(vocabulary): dead weights (fd).", ge=0, le=1)
    ] = 0.5
    max_length_change: Annotated[
        float,
        _d("`train/response_tokens` this many times longer or shorter than at first, with a falling pass rate.", ge=0),
    ] = 3.0
    max_grad_norm_growth: Annotated[float, _d("`grad_norm` above this many times its running median.", ge=0)] = 100.0
    max_pass_rate_drop: Annotated[
        float, _d("Running mean of `train/pass_rate` below its best by more than this.", ge=0, le=1)
    ] = 0.2
