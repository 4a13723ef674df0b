"""What each figure of the paper shows, and which columns of metrics.jsonl that is.

A key may name a suite by its part: `{test}` is the held-out suite, `{minif2f}` is MiniF2F.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from fd_async.telemetry.metrics import EPISTEMIC_WORDS

Transform = Literal["as it is", "per step"]
"""`per step`: divided by the run's own step, which makes a rate of a total."""


class Panel(Struct, frozen=True):
    """One pair of axes: a curve over steps for each label."""

    title: str
    key: str
    unit: str
    transform: Transform = "as it is"

    @property
    def is_evaluated(self) -> bool:
        """Say whether the values are evaluations: few points, marked and never smoothed."""
        return self.key.startswith("eval/")


class Figure(Struct, frozen=True, kw_only=True):
    """One figure. `number` is the paper's, or a name of ours."""

    number: str
    title: str
    panels: tuple[Panel, ...]
    compares: tuple[str, ...]
    """Keys of the configuration in which the paper's curves differ; the first is what the figure is about."""
    paper: str
    """What the paper reports."""
    about: tuple[str, str] | None = None
    """A key and the value that one of the paper's runs has; without such a run it is another comparison."""
    has_scaling: bool = False
    """Ends with pass@k of two checkpoints."""
    shares_y: bool = False
    """The panels are to be compared with each other."""

    @property
    def name(self) -> str:
        """Name of its files without the ending."""
        return f"figure_{int(self.number):02d}" if self.number.isdecimal() else self.number


TEST = Panel("Test accuracy", "eval/{test}/pass@1", "share")
MINIF2F = Panel("MiniF2F accuracy", "eval/{minif2f}/pass@1", "share")
TRAIN = Panel("Train accuracy", "train/pass_rate", "share")
ENTROPY = Panel("Policy entropy", "policy/entropy", "nats per token")
LENGTH = Panel("Response length", "train/response_tokens", "tokens, tool output included")
TEACHER_KL = Panel("KL of teacher and student", "policy/teacher_kl", "nats per token")

FIGURES: tuple[Figure, ...] = (
    Figure(
        number="2",
        title="Feedback Distillation, GRPO, and GRPO over Feedback Distillation",
        panels=(TEST, TRAIN, ENTROPY, MINIF2F),
        compares=("algorithm.type", "model.init_from"),
        paper="GRPO started from a Feedback Distillation checkpoint ends above either method alone; Feedback "
        "Distillation learns faster at first and keeps a higher entropy than GRPO.",
    ),
    Figure(
        number="3",
        title="Discovery of lemmas and tactics; pass@k at the same pass@1",
        panels=(
            Panel("Lemmas discovered", "proofs/lemmas_total", "distinct lemmas per step", "per step"),
            Panel("Tactics discovered", "proofs/tactics_total", "distinct tactics per step", "per step"),
        ),
        compares=("algorithm.type",),
        paper="Feedback Distillation finds new lemmas faster, and from the same pass@1 its pass@k rises further with "
        "k than GRPO's.",
        has_scaling=True,
    ),
    Figure(
        number="4",
        title="Sources of feedback",
        panels=(TEST, MINIF2F, ENTROPY),
        compares=("feedback.type", "algorithm.type", "model.init_from"),
        paper="Claude and the ground truth beat Lean's output, also as a start for GRPO; Claude keeps a higher entropy "
        "than the ground truth.",
    ),
    Figure(
        number="5",
        title="GRPO over Self-Feedback Distillation",
        panels=(TEST, MINIF2F, ENTROPY),
        compares=("algorithm.type", "feedback.type", "model.init_from"),
        about=("feedback.type", "self"),
        paper="With the model as its own tutor, GRPO over Self-Feedback Distillation peaks above GRPO alone, and below "
        "Lean's output as feedback.",
    ),
    Figure(
        number="6",
        title="Retention of the teacher's average (EMA)",
        panels=(TEST, TRAIN),
        compares=("algorithm.ema_retention", "algorithm.anchor_weight"),
        paper="A lower retention learns faster and then falls; 1, a frozen teacher, is stable and slow; 0.9 is the "
        "best trade.",
    ),
    Figure(
        number="7",
        title="Constant feedback under a frozen teacher",
        panels=(LENGTH, ENTROPY, TEACHER_KL),
        compares=("feedback.text", "algorithm.ema_retention"),
        paper="Told to think, responses grow; told to be concise, they shrink. The KL of teacher and student goes to "
        "0: the feedback is in the weights.",
    ),
    Figure(
        number="8",
        title="With and without tools",
        panels=(MINIF2F, TRAIN),
        compares=("rollout.tools", "algorithm.type"),
        paper="Tools raise MiniF2F accuracy and training reward for Feedback Distillation and for GRPO (Qwen3-8B).",
    ),
    Figure(
        number="9",
        title="Learning rate of GRPO",
        panels=(TEST, MINIF2F),
        compares=("learner.lr",),
        paper="3e-7, 1e-7 and 3e-8 reach about the same peak.",
    ),
    Figure(
        number="10",
        title="The comparison of figure 2 for a second model",
        panels=(MINIF2F, ENTROPY),
        compares=("algorithm.type", "model.init_from", "model.path"),
        paper="With Qwen3-8B too, GRPO over Feedback Distillation beats either method alone; training is more stable.",
    ),
    Figure(
        number="11",
        title="Retention of the teacher's average (EMA) for a second model",
        panels=(MINIF2F, TRAIN),
        compares=("algorithm.ema_retention", "model.path"),
        paper="With Qwen3-8B as in figure 6: lower retention is faster at first, less stable, and ends lower.",
    ),
    Figure(
        number="12",
        title="Prompts of the feedback model",
        panels=(TEST, MINIF2F, TRAIN),
        compares=("feedback.prompt",),
        paper="More structured prompts learn slower at first, more stably, and peak higher; (3) and (4) are best.",
    ),
    Figure(
        number="13",
        title="Epistemic words",
        panels=(
            Panel("“check”", "words/check", "words per attempt"),
            Panel("“wait”", "words/wait", "words per attempt"),
            Panel("All ten words", "words/total", "words per attempt"),
        ),
        compares=("feedback.type",),
        paper="Under ground-truth feedback all three counts fall early; under a critique, by Claude or by the model "
        "itself, they do not (Qwen3-8B).",
    ),
    Figure(
        number="14",
        title="Response length",
        panels=(LENGTH,),
        compares=("feedback.type",),
        paper="A critique as feedback goes with longer responses than ground-truth feedback (Qwen3-8B).",
    ),
    Figure(
        number="words",
        title="The ten words of figure 13 one by one",
        panels=tuple(Panel(f"“{word}”", f"words/{word}", "words per attempt") for word in EPISTEMIC_WORDS),
        compares=("feedback.type",),
        paper="Draws two of them, and their sum.",
    ),
    Figure(
        number="causality",
        title="KL(teacher ‖ policy) under three feedbacks",
        panels=(
            Panel("The attempt's own feedback", "causality/kl_true", "nats per token"),
            Panel("Feedback of another attempt", "causality/kl_shuffled", "nats per token"),
            Panel("Empty feedback", "causality/kl_empty", "nats per token"),
        ),
        compares=("feedback.type",),
        shares_y=True,
        paper="Nothing. The more an attempt's own feedback differs here from another attempt's and from none, the more "
        "of what is learned is the feedback's doing.",
    ),
)
