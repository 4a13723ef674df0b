"""The values that rooms exchange. No torch, no I/O, no behaviour beyond derived properties.

Suffixes: _P prompt, _G group, _T token, _K top-K, _V vocabulary. Positions in `completion_ids` count from 0 at
the first token after the prompt and include tool output.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Literal

from msgspec import Struct, field, msgpack, structs

Purpose = Literal["train", "eval"]

VerdictKind = Literal[
    "proved",
    "failed",
    "sorry",
    "axiom",
    "statement_changed",
    "forbidden",
    "unsupported",
    "timeout",
    "out_of_memory",
    "crash",
    "infrastructure",
    "revoked",
    "missing",
    "bad_statement",
]
"""`missing`: the rollout never wrote a file. `infrastructure` says nothing about the proof and is never a reward.
`revoked`: proved, and then refused by the cold audit. `bad_statement`: the statement does not compile by itself, which
says nothing about the proof either."""

EndReason = Literal["solved", "token_budget", "turn_budget", "stopped", "failed"]
"""`stopped`: the model ended its turn without a tool call. `failed`: see `Rollout.failure`."""


class Statement(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One theorem to prove; a row of a JSONL data file."""

    name: str
    formal_statement: str
    """`theorem NAME ... :=` optionally followed by `by` and/or `sorry`; the verifier rebuilds it."""
    header: str = ""
    """Imports, opens and options; empty takes `verifier.header`."""
    proof: str | None = None
    """A known proof: the text after `:=`, e.g. `by\\n  omega`."""


class Ticket(Struct, frozen=True, kw_only=True):
    """The right to run one rollout. `ordinal` counts prompts from 0 over the whole run and is never reused."""

    ordinal: int
    sample: int
    """Index inside the group, 0 <= sample < rollout.samples_per_prompt."""
    purpose: Purpose
    statement: Statement
    suite: str = ""
    """Evaluation suite; empty for training."""

    @property
    def id(self) -> str:
        """Stable name: the same ticket has the same id after a resume."""
        return f"{self.purpose}{'-' + self.suite if self.suite else ''}-{self.ordinal:07d}-{self.sample:02d}"


class VersionSpan(Struct, frozen=True, array_like=True):
    """completion_ids[start:end] were sampled under this weight version."""

    version: int
    start: int
    end: int


class Completion(Struct, frozen=True, kw_only=True):
    """What one `generate` call sampled. Lengths agree; `spans` cover [0, len(token_ids))."""

    token_ids: list[int]
    logprobs: list[float]
    """Natural log, after temperature and top-p (`processed_logprobs`)."""
    spans: list[VersionSpan]
    finish_reason: Literal["stop", "length", "abort"]


class ToolCall(Struct, frozen=True, kw_only=True):
    """One parsed call, or a malformed one with the error the model will read."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    error: str | None = None


class ToolResult(Struct, frozen=True, kw_only=True):
    """What a tool answered; `text` is already cut to the model-facing budget."""

    text: str
    ok: bool
    seconds: float = 0.0
    verdict: Verdict | None = None
    """Set when the call judged a file (lean_check_file)."""


class Verdict(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A typed judgement with its provenance."""

    kind: VerdictKind
    reason: str = ""
    """One line for people: the first error, the forbidden word, the axiom."""
    output: str = ""
    """Compiler output as the model reads it, errors first, cut."""
    backend: str = ""
    toolchain: str = ""
    header_hash: str = ""
    file_hash: str = ""
    seconds: float = 0.0
    audit: str = ""
    """What confirmed or revoked it (`fresh`, `leanchecker`, `comparator`); empty while it is not audited."""
    lemmas: list[str] = field(default_factory=list)
    """Distinct theorems that an accepted proof cites, fully qualified and sorted."""
    tactics: list[str] = field(default_factory=list)
    """Distinct tactics of an accepted proof, sorted."""

    @property
    def is_infrastructure(self) -> bool:
        return self.kind == "infrastructure"

    @property
    def is_bad_statement(self) -> bool:
        return self.kind == "bad_statement"

    @property
    def is_proved(self) -> bool:
        return self.kind == "proved"


class Turn(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """completion_ids[start:end]: either sampled by the model or appended tool output."""

    role: Literal["assistant", "tool"]
    start: int
    end: int
    text: str
    """Decoded for people; never encoded again."""
    tool: str = ""
    ok: bool = True
    seconds: float = 0.0


class Rollout(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Prompt, all turns and the verdict of one ticket.

    len(completion_ids) == len(sampled_mask) == len(logprobs). sampled_mask is True where the model sampled the
    token; logprobs is 0.0 elsewhere.
    """

    id: str
    ordinal: int
    sample: int
    purpose: Purpose
    statement: Statement
    prompt_ids: list[int]
    completion_ids: list[int]
    sampled_mask: list[bool]
    logprobs: list[float]
    spans: list[VersionSpan]
    turns: list[Turn]
    verdict: Verdict
    end_reason: EndReason
    suite: str = ""
    failure: str = ""
    """Named cause when end_reason is `failed`: `engine`, `infrastructure`, `timeout`, `prompt_too_long`,
    `bad_statement`."""
    final_file: str = ""
    """The Lean file that the verdict judged, as the model wrote it; empty when there was none."""
    seconds: float = 0.0
    generate_s: float = 0.0
    tool_s: float = 0.0

    @property
    def reward(self) -> float:
        return 1.0 if self.verdict.kind == "proved" else 0.0

    @property
    def num_sampled_tokens(self) -> int:
        return sum(self.sampled_mask)

    @property
    def oldest_version(self) -> int:
        return min((span.version for span in self.spans), default=0)

    @property
    def newest_version(self) -> int:
        """Version that wrote the last token, about which feedback was asked."""
        return max((span.version for span in self.spans), default=0)


class ToolState(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the tools of an attempt remember between two turns."""

    files: dict[str, str] = field(default_factory=dict)
    """Name -> content, as written."""
    last_written: str = ""
    """Name of the newest file; empty when there is none."""
    last_judged: str = ""
    last_output: str = ""


class PartialRollout(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An attempt under way: all that it needs to go on in another process.

    `completion_ids` beyond the end of the last turn are an open turn: its sampling was cut. A last turn of the
    assistant is one whose tool calls are not answered yet. `spans` cover what was sampled, the rest is tool output.
    """

    id: str
    ordinal: int
    sample: int
    admitted_version: int
    prompt_ids: Sequence[int]
    completion_ids: Sequence[int]
    logprobs: Sequence[float]
    spans: list[VersionSpan]
    turns: list[Turn]
    tools: ToolState = ToolState()
    finish: Literal["", "stop", "length"] = ""
    """How the last turn that was sampled to its end ended."""
    seconds: float = 0.0
    """Spent on the attempt so far, in all processes."""
    open_s: float = 0.0
    """Part of it spent on the open turn."""

    @property
    def num_sampled_tokens(self) -> int:
        return sum(span.end - span.start for span in self.spans)


class Feedback(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Privileged text about one rollout, with where it came from and what it cost."""

    rollout_id: str
    text: str
    provider: str
    model: str = ""
    prompt_hash: str = ""
    """sha256 over provider, model, system prompt and user message: the key that prevents a second purchase."""
    input_tokens: int = 0
    output_tokens: int = 0
    usd: float = 0.0
    fallback_usd: float = 0.0
    """Part of `usd`: what the provider of `[fallback]` was paid."""
    request_ids: list[str] = field(default_factory=list)
    asked: int = 1
    """Answers bought, including rejected ones."""
    seconds: float = 0.0
    asked_unix_s: float = 0.0
    """Wall clock when the first request was sent; 0 where nobody was asked."""
    answered_unix_s: float = 0.0
    """Wall clock of the usable answer."""


class TrainingSample(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a learner rank needs of one rollout. Ids are the sampled ids, verbatim."""

    rollout_id: str
    prompt_ids: list[int]
    completion_ids: list[int]
    sampled_mask: list[bool]
    logprobs: list[float]
    teacher_prompt_ids: list[int] = field(default_factory=list)
    """Feedback Distillation: prompt + feedback, rendered like the student's prompt. Empty for GRPO."""
    shuffled_prompt_ids: list[int] | None = None
    """Prompt + another attempt's feedback, where feedback causality is measured; empty where none is fit. Never learned
    from; None where nothing is measured."""
    advantage: float = 0.0
    """GRPO: group advantage, the same for every token of the rollout."""
    age: int = 0
    """Staleness at consumption, in weight versions."""

    @property
    def num_tokens(self) -> int:
        """Tokens of the longer of the two sequences that the learner runs."""
        return max(len(self.prompt_ids), len(self.teacher_prompt_ids)) + len(self.completion_ids)


class StepReport(Struct, frozen=True, kw_only=True):
    """What a gradient step returned."""

    step: int
    metrics: dict[str, float]
    token_deltas: dict[str, list[float]] = field(default_factory=dict)
    """rollout id -> log p_teacher - log p_student of each completion token, 0.0 where not sampled (Figure 1)."""
    teacher_choices: dict[str, dict[int, list[tuple[int, float]]]] = field(default_factory=dict)
    """rollout id -> completion token at which the two differ most -> what the teacher would write there instead: token
    ids with its probabilities, the likeliest first (Figure 1)."""


class TokenScores(Struct, frozen=True):
    """What the learner said of the tokens of one attempt, as people read it."""

    texts: list[str]
    """Of each completion token."""
    deltas: list[float]
    """As `StepReport.token_deltas`."""
    choices: dict[int, list[tuple[str, float]]] = field(default_factory=dict)
    """As `StepReport.teacher_choices`, ids as text."""


class StagedWeights(Struct, frozen=True, kw_only=True):
    """A full set of weights written aside, ready to be pushed; names are Hugging Face checkpoint names."""

    version: int
    path: str
    names: list[str]
    dtypes: list[str]
    shapes: list[list[int]]
    offsets: list[int]
    num_bytes: int
    block_bytes: int
    sha256: list[str]
    """Of each block of `block_bytes` bytes, the last one shorter; empty when the weights are in no file."""
    probe_ids: list[int]
    probe_logprobs: list[float]
    """Learner's log-probs of probe_ids[1:] given their prefixes, natural log, temperature 1."""
    seal: str = ""
    """`checksum` of everything above: rows that were exchanged or altered on the way are found before a push."""

    @property
    def checksum(self) -> str:
        """sha256 of all fields but `seal`."""
        return hashlib.sha256(msgpack.encode(structs.replace(self, seal=""))).hexdigest()

    def sealed(self) -> StagedWeights:
        """Return the same manifest with its seal."""
        return structs.replace(self, seal=self.checksum)


class PushReport(Struct, frozen=True, kw_only=True):
    """Seconds of each phase of a push, and the probe's largest disagreement in nats."""

    version: int
    stage_s: float
    """Checking and preparing, while requests went on."""
    stall_s: float
    """From the request to hold until the engine was let go: nothing new was sampled."""
    commit_s: float
    """Part of the stall in which weights changed."""
    probe_s: float
    probe_max_abs: float
