"""The whole configuration: one frozen Struct per TOML table, the only place where a default stands.

Here are the tables of rollouts, verifier, feedback and the run itself; those of learning are in `learning`.
Every field has a description with its unit. Units are in the names. `per_step` means global, over all ranks.
Secrets are named by environment variable, never written.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import field

from fd_async.config.learning import Admission, Alarms, Algorithm, Checkpoint, Learner
from fd_async.config.table import Table
from fd_async.config.table import describe as _d


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
        float,
        _d(
            "After a signal: time to finish the step, write a checkpoint and close; paid calls get half, seconds.", gt=0
        ),
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
    """Statements. `source`, `train` and each of `eval` name one of the following; docs/data.md has the details.

    - a JSONL file, or a Parquet file: rows with `name`, `formal_statement`, optional `header` and `proof`
    - a folder of `.lean` files: `theorem NAME ... := by sorry`, one or several in each, below the file's header
    - `hub:OWNER/NAME@COMMIT/PATH/FILE.parquet`: a file of a Hugging Face data set at one commit
    - `leanworkbook` or `minif2f`: one pinned source each

    `#COLUMN=VALUE` behind a source keeps the rows with that value, e.g. `minif2f.jsonl#split=test`; `#train` and
    `#test` take a part of the split by hash.
    """

    source: Annotated[
        str,
        _d("One source for both: split by hash, it gives the training statements and, as a suite, the held-out ones."),
    ] = ""
    train: Annotated[
        str, _d("Training statements; empty takes the training part of `data.source`. One of the two must be set.")
    ] = ""
    eval: Annotated[
        list[str] | str, _d("Held-out statements, one source or a list; the stem of a source names its suite.")
    ] = field(default_factory=list)
    num_train: Annotated[
        int, _d("Statements in the training part of a split (`data.source`, `#train`); 0: all but the test part.", ge=0)
    ] = 10_000
    num_test: Annotated[int, _d("Statements in the test part of a split (`data.source`, `#test`).", gt=0)] = 256
    max_train: Annotated[int, _d("Use only the first N training statements by hash of the name; 0 uses all.", ge=0)] = 0
    columns: Annotated[
        list[str],
        _d('Where a data set names its columns otherwise: `["name=problem_id", "proof=full_proof"]`, ours first.'),
    ] = field(default_factory=list)
    headers: Annotated[
        Literal["keep", "normalise", "verifier"],
        _d(
            "Header of each statement: `normalise` takes comments, blank lines and repeated imports out, so that two"
            " spellings of one header share their Lean workers; `keep` leaves it byte for byte; `verifier` puts"
            " `verifier.header` in its place."
        ),
    ] = "normalise"
    offline: Annotated[
        bool, _d("Ask the Hugging Face hub for nothing and take what is cached; HF_HUB_OFFLINE=1 means the same.")
    ] = False
    hub_timeout_s: Annotated[float, _d("Longest download of one data file, seconds.", gt=0)] = 600.0


class Policy(Table, frozen=True):
    """Inference with vLLM."""

    engine: Annotated[
        Literal["local", "servers"],
        _d("`local` runs vLLM in this job; `servers` uses those that `policy.servers` lists. Docs: docs/servers.md."),
    ] = "local"
    servers: Annotated[list[str], _d("Addresses of `vllm serve` processes, e.g. http://node1:8000 (`servers`).")] = (
        field(default_factory=list)
    )
    servers_key_env: Annotated[str, _d("Environment variable with the servers' API key; empty: none (`servers`).")] = ""
    max_restarts: Annotated[
        int, _d("Restarts of a dead engine without a successful push between them; the next death ends the run.", ge=0)
    ] = 3
    heartbeat_s: Annotated[
        float,
        _d("An engine that does not answer for this long, pushes apart, is taken for dead, seconds; 0: never.", ge=0),
    ] = 120.0
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
    generate_timeout_s: Annotated[
        float, _d("Deadline of one generate call, seconds; begins anew when its engine was replaced.", gt=0)
    ] = 1800.0
    push_timeout_s: Annotated[float, _d("Deadline of each phase of a push, seconds.", gt=0)] = 300.0
    probe_tolerance: Annotated[
        float,
        _d("Largest log-prob difference between engine and learner on the probe prompt, nats; see docs/push.md.", gt=0),
    ] = 0.5


class RolloutTable(Table, frozen=True):
    """One attempt."""

    samples_per_prompt: Annotated[int, _d("Attempts per statement (the group of GRPO).", gt=0)] = 1
    concurrency: Annotated[int, _d("Rollout coroutines at once.", gt=0)] = 256
    max_prompt_tokens: Annotated[int, _d("Longest prompt, tokens; longer statements are dropped by name.", gt=0)] = 2048
    max_response_tokens: Annotated[int, _d("Response budget, tokens, tool output included.", gt=0)] = 8192
    max_turns: Annotated[int, _d("Assistant turns per attempt.", gt=0)] = 32
    tools: Annotated[
        bool,
        _d("Whether the model may write, check and search while it works; without, one answer holds one Lean file."),
    ] = True
    temperature: Annotated[float, _d("Sampling temperature in training.", gt=0)] = 1.0
    top_p: Annotated[float, _d("Nucleus in training; 1 keeps log-probs exact.", gt=0, le=1)] = 1.0
    timeout_s: Annotated[float, _d("Deadline of a whole attempt, seconds.", gt=0)] = 3600.0
    record_every_s: Annotated[
        float,
        _d("Tokens of attempts under way go to the ledger this often, seconds; 0: only at the end of a turn.", ge=0),
    ] = 60.0
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
    adapt_to_headers: Annotated[
        bool, _d("Slow down by what the provider's rate-limit headers say is left; limits set here stay upper bounds.")
    ] = True
    outage: Annotated[
        Literal["pause", "fallback", "end"],
        _d("A provider that is down: wait and ask now and then, take `[fallback]` meanwhile, or end the run."),
    ] = "pause"
    outage_after: Annotated[
        int,
        _d("Requests without an answer, one after another, before the provider is asked whether it is there.", gt=0),
    ] = 8
    outage_probe_s: Annotated[float, _d("Longest time between two questions during an outage, seconds.", gt=0)] = 30.0
    max_outage_s: Annotated[float, _d("An outage this long ends the run (`pause`), seconds.", gt=0)] = 3600.0
    max_usd: Annotated[float, _d("Spend that ends the run, US dollars; 0 sets none.", ge=0)] = 0.0
    usd_per_million_input_tokens: Annotated[float, _d("Price, US dollars.", ge=0)] = 0.0
    usd_per_million_output_tokens: Annotated[float, _d("Price, US dollars.", ge=0)] = 0.0
    usd_per_million_cache_read_tokens: Annotated[
        float, _d("Price of input that a cache had, where the usage tells, US dollars; 0: like other input.", ge=0)
    ] = 0.0
    usd_per_million_cache_write_tokens: Annotated[
        float, _d("Price of input that a cache took in, US dollars; 0: like other input.", ge=0)
    ] = 0.0
    max_feedback_tokens: Annotated[
        int, _d("Feedback longer than this is cut at a line or sentence before the teacher sees it, tokens.", gt=0)
    ] = 1024


class Fallback(FeedbackTable, frozen=True):
    """The provider asked during an outage of `[feedback]`; read where `feedback.outage = "fallback"`."""


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
    trace: Annotated[bool, _d("Write trace.json, which ui.perfetto.dev opens.")] = True
    trace_max_mib: Annotated[int, _d("Size at which the trace begins anew, keeping one older part, MiB.", gt=0)] = 256
    prometheus_port: Annotated[int, _d("Serve /metrics on this port; 0: do not.", ge=0, le=65535)] = 0
    prometheus_host: Annotated[str, _d("Address that /metrics listens on.")] = "127.0.0.1"
    sinks: Annotated[
        list[Literal["tensorboard", "wandb", "trackio"]],
        _d("Where metrics go too; the package must be installed. A sink that fails is left out, never the run."),
    ] = field(default_factory=list)
    project: Annotated[str, _d("Project that `wandb` and `trackio` file the run under.")] = "fd_async"
    ledger_max_gib: Annotated[
        float,
        _d("Size of ledger.db from which trained attempts lose their token ids, oldest first, GiB; 0: never.", ge=0),
    ] = 50.0
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
    fallback: Fallback = Fallback()
    algorithm: Algorithm = Algorithm()
    learner: Learner = Learner()
    admission: Admission = Admission()
    checkpoint: Checkpoint = Checkpoint()
    alarms: Alarms = Alarms()
    eval: Eval = Eval()
    telemetry: Telemetry = Telemetry()
