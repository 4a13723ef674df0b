"""One frozen Struct per TOML table; the only place where a default stands.

Every field has a description with its unit. Units are in the names. `per_step` means global, over all ranks.
Secrets are named by environment variable, never written.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field


def _d(text: str, **limits: Any) -> Meta:
    """Describe a key; `limits` are gt, ge, lt, le."""
    return Meta(description=text, **limits)


class Table(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every table: immutable, keyword-only, unknown keys refused."""


class Run(Table, frozen=True):
    """The run as a whole."""

    name: Annotated[str, _d("Run name, the folder under `run.dir`; empty takes the config file's stem.")] = ""
    dir: Annotated[str, _d("Folder that holds all runs.")] = "runs"
    seed: Annotated[int, _d("Seed of statement order, sampling and the learner.", ge=0)] = 0
    mode: Annotated[
        Literal["async", "sync"],
        _d("`async` overlaps rollouts, feedback and learning; `sync` finishes one before the next (the baseline)."),
    ] = "async"
    max_steps: Annotated[int, _d("Gradient steps.", ge=0)] = 400
    stall_warn_s: Annotated[float, _d("Print the wait table after this long without progress, seconds.", gt=0)] = 120.0
    stall_abort_s: Annotated[float, _d("Dump stacks and exit 6 after this long without progress, seconds.", gt=0)] = (
        1800.0
    )
    shutdown_s: Annotated[
        float, _d("After a signal: time for the last checkpoint, half of it for paid calls in flight, seconds.", gt=0)
    ] = 120.0


class Model(Table, frozen=True):
    """The policy at step 0."""

    path: Annotated[str, _d("Hugging Face id or local folder of the starting model and tokenizer.")]
    init_from: Annotated[
        str,
        _d("Start from a checkpoint of another run: `runs/NAME` (newest) or `runs/NAME/checkpoints/step_000200`."),
    ] = ""
    dtype: Annotated[Literal["float32", "bfloat16"], _d("Precision of weights in the engine and the learner.")] = (
        "bfloat16"
    )
    tool_format: Annotated[
        Literal["qwen3", "qwen3_5"], _d("How the model writes tool calls: JSON (`qwen3`) or XML (`qwen3_5`).")
    ] = "qwen3"
    thinking: Annotated[bool, _d("Value of the chat template's `enable_thinking`, for student and teacher alike.")] = (
        True
    )


class Data(Table, frozen=True):
    """Statements: JSONL rows with `name`, `formal_statement`, optional `header` and `proof`."""

    train: Annotated[str, _d("JSONL file of training statements.")]
    eval: Annotated[
        list[str] | str, _d("JSONL file or files of held-out statements; the file's stem names the suite.")
    ] = field(default_factory=list)
    max_train: Annotated[int, _d("Use only the first N training statements by hash of the name; 0 uses all.", ge=0)] = 0


class Policy(Table, frozen=True):
    """Inference with vLLM."""

    engine: Annotated[Literal["local", "servers"], _d("`local` runs vLLM in this job; `servers` is not there yet.")] = (
        "local"
    )
    max_num_seqs: Annotated[int, _d("Sequences that vLLM batches at once.", gt=0)] = 256
    max_model_len: Annotated[int, _d("Longest prompt + response, tokens.", gt=0)] = 10240
    max_num_batched_tokens: Annotated[int, _d("Tokens per engine step; 0 leaves it to vLLM.", ge=0)] = 0
    kv_cache_gib: Annotated[float, _d("KV cache on CPU, GiB.", gt=0)] = 4.0
    gpu_memory_utilization: Annotated[float, _d("Share of GPU memory for vLLM.", gt=0, le=1)] = 0.85
    tensor_parallel_size: Annotated[int, _d("GPUs per engine.", gt=0)] = 1
    data_parallel_size: Annotated[int, _d("Engines.", gt=0)] = 1
    gpus: Annotated[list[int], _d("GPU indices for vLLM; empty on CPU.")] = field(default_factory=list)
    cpu_threads: Annotated[int, _d("Threads of the CPU engine; 0 leaves it to vLLM.", ge=0)] = 0
    enforce_eager: Annotated[bool, _d("No graph capture or compilation: quick start, slower steady state.")] = False
    prefix_caching: Annotated[bool, _d("Reuse KV of shared prefixes; salted by weight version.")] = True
    in_flight: Annotated[
        Literal["keep", "recompute", "drain"],
        _d("Requests that run when weights arrive: keep their KV, recompute it, or finish first."),
    ] = "keep"
    push: Annotated[
        Literal["shm", "file", "nccl"], _d("How weights reach the engine: shared memory, a folder, or NCCL.")
    ] = "shm"
    push_dir: Annotated[str, _d("Folder for staged weights, seen by learner and engine alike (`file`).")] = ""
    push_ahead: Annotated[
        bool, _d("Prepare new weights beside the serving ones, in host memory: a short stall for one more copy.")
    ] = True
    start_timeout_s: Annotated[float, _d("Engine start-up deadline, seconds.", gt=0)] = 900.0
    generate_timeout_s: Annotated[float, _d("Deadline of one generate call, seconds.", gt=0)] = 1800.0
    push_timeout_s: Annotated[float, _d("Deadline of each phase of a push, seconds.", gt=0)] = 300.0
    probe_tolerance: Annotated[
        float, _d("Largest log-prob difference between engine and learner on the probe prompt, nats.", gt=0)
    ] = 0.05


class RolloutTable(Table, frozen=True):
    """One attempt."""

    samples_per_prompt: Annotated[int, _d("Attempts per statement (the group of GRPO).", gt=0)] = 1
    concurrency: Annotated[int, _d("Rollout coroutines at once.", gt=0)] = 256
    max_prompt_tokens: Annotated[int, _d("Longest prompt, tokens; longer statements are dropped by name.", gt=0)] = 2048
    max_response_tokens: Annotated[int, _d("Response budget, tokens, tool output included.", gt=0)] = 8192
    max_turns: Annotated[int, _d("Assistant turns per attempt.", gt=0)] = 32
    temperature: Annotated[float, _d("Sampling temperature in training.", gt=0)] = 1.0
    top_p: Annotated[float, _d("Nucleus in training; 1 keeps log-probs exact.", gt=0, le=1)] = 1.0
    timeout_s: Annotated[float, _d("Deadline of a whole attempt, seconds.", gt=0)] = 3600.0
    tool_output_chars: Annotated[int, _d("Longest tool output the model sees, characters.", gt=0)] = 2400
    max_failed_fraction: Annotated[
        float,
        _d("End the run when more than this share of the last 256 attempts failed by infrastructure.", gt=0, le=1),
    ] = 0.5


class Verifier(Table, frozen=True):
    """The judge of proofs."""

    backend: Annotated[
        Literal["repl", "kimina", "minilean"],
        _d("Lean REPL processes, a Kimina Lean Server, or the project's small checker for the tiny world."),
    ] = "repl"
    workers: Annotated[int, _d("Verifier processes.", gt=0)] = 32
    project_dir: Annotated[str, _d("Lake project that has Mathlib and the REPL (`repl`).")] = "lean"
    command: Annotated[
        list[str], _d("Argv of a REPL process; empty resolves it from `verifier.project_dir` (`repl`).")
    ] = field(default_factory=list)
    header: Annotated[str, _d("Lean header for statements that bring none.")] = ""
    check_timeout_s: Annotated[float, _d("Deadline of one check in the worker, seconds.", gt=0)] = 60.0
    queue_timeout_s: Annotated[float, _d("Longest wait for a worker, seconds.", gt=0)] = 600.0
    import_timeout_s: Annotated[float, _d("Deadline of a worker's start and import, seconds.", gt=0)] = 180.0
    spares: Annotated[
        int,
        _d(
            "Processes beyond `verifier.workers`: ready to replace a broken one, or holding a stopped check; "
            "-1: as many as workers.",
            ge=-1,
        ),
    ] = -1
    first_budget_s: Annotated[
        float, _d("A check that runs longer is set aside while shorter ones wait and a spare is ready; 0: never.", ge=0)
    ] = 8.0
    starts_at_once: Annotated[int, _d("Workers that may load their header at the same time.", gt=0)] = 4
    max_uses: Annotated[int, _d("Checks before a worker is replaced.", gt=0)] = 500
    max_age_s: Annotated[float, _d("Age at which a worker is replaced, seconds; 0: never.", ge=0)] = 3600.0
    recycle_gib: Annotated[
        float, _d("Memory of its own at which a worker is replaced after its check, GiB; 0: never.", ge=0)
    ] = 4.0
    resident_limit_gib: Annotated[
        float, _d("Memory of its own at which a worker is killed during a check, GiB; 0 sets no limit.", ge=0)
    ] = 8.0
    memory_limit_gib: Annotated[float, _d("Address-space limit of a worker, GiB; 0 sets none.", ge=0)] = 16.0
    nice: Annotated[int, _d("Niceness of workers, so that they never starve the event loop.", ge=0, le=19)] = 10
    sandbox: Annotated[
        Literal["bubblewrap", "bubblewrap_if_it_works", "unsandboxed"],
        _d("How workers are locked in. `bubblewrap_if_it_works` lets `minilean` run without; Lean never."),
    ] = "bubblewrap"
    sandbox_read: Annotated[list[str], _d("More folders that workers may read (`bubblewrap`).")] = field(
        default_factory=list
    )
    sandbox_scratch_mib: Annotated[int, _d("Size of a worker's private scratch in memory, MiB.", gt=0)] = 256
    audit: Annotated[
        Literal["auto", "off", "fresh", "leanchecker", "comparator"],
        _d("Second, cold judgement of accepted proofs; `auto` takes the strictest one that is installed."),
    ] = "auto"
    audit_share: Annotated[float, _d("Share of accepted proofs that is audited.", ge=0, le=1)] = 1.0
    audit_workers: Annotated[int, _d("Audits at the same time.", gt=0)] = 4
    audit_timeout_s: Annotated[float, _d("Deadline of one audit once its turn has come, seconds.", gt=0)] = 600.0
    allowed_axioms: Annotated[list[str], _d("Axioms that a proof may use.")] = field(
        default_factory=lambda: ["propext", "Classical.choice", "Quot.sound"]
    )
    search_dir: Annotated[str, _d("Folder that `rg_in_mathlib` searches; empty takes Mathlib of the project.")] = ""
    search_timeout_s: Annotated[float, _d("Deadline of a search, seconds.", gt=0)] = 10.0
    url: Annotated[str, _d("Base address of the Kimina Lean Server (`kimina`).")] = "http://127.0.0.1:8000"
    api_key_env: Annotated[str, _d("Environment variable with the Kimina key (`kimina`).")] = "LEAN_SERVER_API_KEY"


class FeedbackTable(Table, frozen=True):
    """Where feedback on an attempt comes from."""

    type: Annotated[
        Literal["anthropic", "openai", "self", "ground_truth", "lean_output", "constant"],
        _d("Claude, any OpenAI-compatible model, a frozen copy of the starting model, or text made without a model."),
    ] = "anthropic"
    model: Annotated[str, _d("Model name at the provider (`anthropic`, `openai`).")] = ""
    base_url: Annotated[str, _d("Address of the API; empty takes the SDK's own (`anthropic`, `openai`).")] = ""
    api_key_env: Annotated[str, _d("Environment variable with the key; empty takes the SDK's usual one.")] = ""
    prompt: Annotated[int, _d("Tutor prompt (1) to (4) of the paper, appendix C.3.", ge=1, le=4)] = 4
    text: Annotated[str, _d("The feedback itself (`constant`); empty text is the control experiment.")] = ""
    check_answers: Annotated[
        bool, _d("Demand 1 to 3 numbered items of 10 to 50 words without second person; ask again once, then drop.")
    ] = True
    max_output_tokens: Annotated[int, _d("Longest answer, tokens; includes hidden thinking.", gt=0)] = 2048
    max_attempt_chars: Annotated[int, _d("Longest transcript sent to the provider, characters.", gt=0)] = 60000
    deadline_s: Annotated[float, _d("Total time for one feedback, retries included, seconds.", gt=0)] = 300.0
    request_timeout_s: Annotated[float, _d("Time for one request, seconds.", gt=0)] = 120.0
    max_retry_after_s: Annotated[float, _d("Longest Retry-After that is obeyed, seconds.", gt=0)] = 60.0
    concurrency: Annotated[int, _d("Feedback calls in flight.", gt=0)] = 64
    requests_per_minute: Annotated[int, _d("Request limit; 0 sets none.", ge=0)] = 0
    input_tokens_per_minute: Annotated[int, _d("Input token limit; 0 sets none.", ge=0)] = 0
    output_tokens_per_minute: Annotated[int, _d("Output token limit; 0 sets none.", ge=0)] = 0
    max_usd: Annotated[float, _d("Spend that ends the run, US dollars; 0 sets none.", ge=0)] = 0.0
    usd_per_million_input_tokens: Annotated[float, _d("Price, US dollars.", ge=0)] = 0.0
    usd_per_million_output_tokens: Annotated[float, _d("Price, US dollars.", ge=0)] = 0.0
    max_feedback_tokens: Annotated[
        int, _d("Feedback longer than this is cut at a line or sentence before the teacher sees it, tokens.", gt=0)
    ] = 1024


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
        int, _d("Rows of logits that exist at once, tokens; 0: 3.5 % of the micro-batch's, at least 64 and 4 MiB.", ge=0)
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
    score_tokens: Annotated[
        int, _d("Attempts per step whose log p_teacher - log p_student is kept for the report.", ge=0)
    ] = 4


class Admission(Table, frozen=True):
    """How far rollouts may run ahead of the learner."""

    max_staleness: Annotated[
        int, _d("Weight versions between sampling and training; capacity = (S + v + 1) * B - outstanding.", ge=0)
    ] = 2


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
    ] = 0.3


class Eval(Table, frozen=True):
    """Held-out evaluation."""

    every_steps: Annotated[int, _d("Gradient steps between evaluations; 0 evaluates only at start and end.", ge=0)] = 50
    at_start: Annotated[bool, _d("Evaluate before the first step.")] = True
    at_end: Annotated[bool, _d("Evaluate after the last step, over every statement.")] = True
    limit: Annotated[int, _d("Statements per suite between start and end; 0 uses all.", ge=0)] = 0
    k: Annotated[list[int], _d("pass@k to report.")] = field(default_factory=lambda: [1])
    samples: Annotated[int, _d("Attempts per statement, at least max(k).", gt=0)] = 1
    temperature: Annotated[float, _d("Sampling temperature.", ge=0)] = 1.0


class Telemetry(Table, frozen=True):
    """What is shown and kept."""

    console: Annotated[
        Literal["auto", "live", "lines", "quiet"], _d("`auto`: a live view on a terminal, one line per step elsewhere.")
    ] = "auto"
    log_level: Annotated[Literal["debug", "info", "warning", "error"], _d("Level of the project's own log.")] = "info"
    status_every_s: Annotated[float, _d("Seconds between updates of status.json.", gt=0)] = 2.0
    report: Annotated[bool, _d("Write report.html at the end.")] = True
    report_attempts: Annotated[int, _d("Attempts shown in report.html.", gt=0)] = 300


class RunConfig(Table, frozen=True, kw_only=True):
    """The whole configuration; one attribute per TOML table."""

    run: Run = Run()
    model: Model
    data: Data
    policy: Policy = Policy()
    rollout: RolloutTable = RolloutTable()
    verifier: Verifier = Verifier()
    feedback: FeedbackTable = FeedbackTable()
    algorithm: Algorithm = Algorithm()
    learner: Learner = Learner()
    admission: Admission = Admission()
    checkpoint: Checkpoint = Checkpoint()
    alarms: Alarms = Alarms()
    eval: Eval = Eval()
    telemetry: Telemetry = Telemetry()
