"""Signs of collapse in the metrics of a run: rows in, alarms out. Pure; reads no clock, no file.

    row of a step ──▶ running means ──▶ signs (how far each is beyond its limit) ──▶ `patience` steps in a row ──▶ alarm

An alarm is raised once and stands until as many steps in a row were within its limit.

Invariants:
    * None and NaN are no data: they neither raise an alarm nor end one, and they never count as 0.
    * Everything follows from the rows. A resume gives the rows of metrics.jsonl to a new object (`replay`) and goes on.
    * A low gain from feedback is what learning ends in, too. So it is measured per failed attempt, and it is an alarm
      only while something else speaks for forgetting: the policy is still far from its teacher and feedback accounts
      for little of the distance, or the pass rate falls.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from statistics import fmean, median
from typing import Any, NamedTuple

from fd_async.config.schema import Alarms as AlarmTable

MEAN_STEPS = 10.0
"""Steps in a running mean of what is measured on few attempts of each step."""
MEAN_PROMPTS = 320.0
"""Prompts in the running mean of the pass rate: its standard error is at most 0.02."""
FALLING = 0.1
"""The pass rate falls when its running mean is this far below its best: five of those errors."""
SOLVED = 0.9
"""Above this pass rate a policy may well be certain of what it does."""
GAIN_OF_KL = 0.5
"""What the policy could still learn is not the feedback when the gain is less than this share of policy/teacher_kl."""
GAIN_RECOVERS = 2.0
"""An alarm of the gain, which is measured on few attempts, ends above this many times its limit."""
MIN_BEST_GAIN = 1e-3
"""Feedback that never moved the teacher by this much, nats/token, such as an empty one, cannot be forgotten."""
MIN_FAILED = 0.02
"""Share of failed attempts below which a gain per failed attempt says nothing."""
MEDIAN_STEPS = 50
GRAD_NORM = "gradient norm"
"""The one sign that may say more of a batch than of the weights."""


class Mean:
    """An exponential mean without the bias of its start; it says nothing before it has seen what it averages over."""

    def __init__(self, window: float) -> None:
        self._keep = math.exp(-1.0 / window)
        self._sum = self._weight = 0.0

    def add(self, value: float | None) -> None:
        """Take one more value; None changes nothing."""
        if value is not None:
            self._sum = self._keep * self._sum + (1 - self._keep) * value
            self._weight = self._keep * self._weight + (1 - self._keep)

    @property
    def value(self) -> float | None:
        return self._sum / self._weight if self._weight > 1 - math.exp(-1.0) - 1e-9 else None


class Sign(NamedTuple):
    """One sign of collapse in one row."""

    name: str
    is_over: bool
    text: str
    """What is seen, with figures; what limits it; what to do."""


class Alarms:
    """Fed with the row of every gradient step.

    Args:
        table: limits.
        num_ids: size of the vocabulary.
        prompts_per_step: sets over how many steps the pass rate is averaged.
    """

    def __init__(self, table: AlarmTable, *, num_ids: int, prompts_per_step: int) -> None:
        self._table = table
        self._uniform_entropy = math.log(num_ids)
        self._pass_rate_steps = max(1.0, MEAN_PROMPTS / prompts_per_step)
        self.num_rollbacks = 0
        self._doubtful: set[int] = set()
        self._restart()

    def _restart(self) -> None:
        """Forget what the running means and counts have seen."""
        self._num_rows = 0
        self._counts: dict[str, tuple[int, int]] = {}
        """Name -> steps in a row over the limit, and within it."""
        self.standing: dict[str, str] = {}
        """Name -> text of the alarms that are raised."""
        self._gain, self._kl, self._length = Mean(MEAN_STEPS), Mean(MEAN_STEPS), Mean(MEAN_STEPS)
        self._pass_rate = Mean(self._pass_rate_steps)
        self._best_gain = self._best_kl = self._best_pass_rate = 0.0
        self._failed_at_best_gain = 1.0
        self._first_entropies: list[float] = []
        self._first_lengths: list[float] = []
        self._grad_norms: deque[float] = deque(maxlen=MEDIAN_STEPS)

    def replay(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Take the rows of an earlier process, in their order; those of evaluations alone are skipped."""
        for row in rows:
            self.update(row)
            if (to_step := row.get("alarms/rollback_to")) is not None:
                self.rolled_back(int(row["step"]), int(to_step))

    def update(self, row: Mapping[str, Any]) -> dict[str, str]:
        """Take the row of a step and return name -> text of the alarms that it raises; those that stand stay silent."""
        if _number(row, "loss") is None:
            return {}
        self._num_rows += 1
        self._observe(row)
        if self._num_rows <= self._table.warmup_steps:
            return {}
        signs, step = list(self._signs(row)), int(row["step"])
        over = {sign.name for sign in signs if sign.is_over}
        if over or self._is_falling:
            self._doubtful.add(step)
        if over - {GRAD_NORM} or self._is_falling:
            self._doubtful.add(step - 1)  # a row measures the weights that its step began with
        return dict(raised for sign in signs for raised in self._count(sign))

    def _count(self, sign: Sign) -> Iterator[tuple[str, str]]:
        """Raise an alarm after `patience` steps over its limit, end it after as many within; yield it when new."""
        over, within = self._counts.get(sign.name, (0, 0))
        over, within = (over + 1, 0) if sign.is_over else (0, within + 1)
        self._counts[sign.name] = over, within
        if over >= self._table.patience:
            if sign.name not in self.standing:
                yield sign.name, sign.text
            self.standing[sign.name] = sign.text
        elif within >= self._table.patience:
            self.standing.pop(sign.name, None)

    def is_good(self, step: int) -> bool:
        """Say whether the weights after this step showed no sign of collapse and are not those of a history undone.

        The row of the next step is the first that measures them: until then nothing speaks against them.
        """
        return step not in self._doubtful

    def rolled_back(self, step: int, to_step: int) -> None:
        """Note that the weights after `step` are those after `to_step`: what lies between is undone."""
        self._doubtful.update(range(to_step + 1, step))
        self._doubtful.discard(step)
        self.num_rollbacks += 1
        self._restart()

    def _observe(self, row: Mapping[str, Any]) -> None:
        self._gain.add(_number(row, "teacher/feedback_gain"))
        self._kl.add(_number(row, "policy/teacher_kl"))
        self._length.add(_number(row, "train/response_tokens"))
        self._pass_rate.add(_number(row, "train/pass_rate"))
        if self._pass_rate.value is not None and (self._gain.value or 0.0) > self._best_gain:
            self._best_gain, self._failed_at_best_gain = self._gain.value or 0.0, self._failed
        self._best_kl = max(self._best_kl, self._kl.value or 0.0)
        self._best_pass_rate = max(self._best_pass_rate, self._pass_rate.value or 0.0)
        if self._num_rows <= max(1, self._table.warmup_steps):
            for values, key in (
                (self._first_entropies, "policy/entropy"),
                (self._first_lengths, "train/response_tokens"),
            ):
                if (value := _number(row, key)) is not None:
                    values.append(value)

    @property
    def _fall(self) -> float:
        """How far the running mean of the pass rate is below its best."""
        return self._best_pass_rate - self._pass_rate.value if self._pass_rate.value is not None else 0.0

    @property
    def _failed(self) -> float:
        """Share of failed attempts."""
        return max(1.0 - (self._pass_rate.value or 0.0), MIN_FAILED)

    @property
    def _is_falling(self) -> bool:
        return self._fall > FALLING

    def _signs(self, row: Mapping[str, Any]) -> Iterator[Sign]:
        """Yield the signs that this row has data for."""
        table = self._table
        yield from self._gain_sign()
        entropy = _number(row, "policy/entropy")
        if entropy is not None and self._first_entropies:
            yield from self._entropy_signs(entropy, fmean(self._first_entropies))
        teacher_entropy = _number(row, "teacher/entropy")
        if table.max_teacher_entropy and teacher_entropy is not None:
            share = teacher_entropy / self._uniform_entropy
            yield Sign(
                "teacher entropy",
                share > table.max_teacher_entropy,
                f"teacher/entropy = {teacher_entropy:.3g} nats/token is {share:.0%} of ln(vocabulary), more than "
                f"alarms.max_teacher_entropy = {table.max_teacher_entropy:g}: the teacher's weights are dead, or its "
                "prompt is not what the model was trained on; go back to an earlier checkpoint with --resume STEP",
            )
        yield from self._length_sign()
        yield from self._grad_norm_sign(_number(row, "grad_norm"))
        if table.max_pass_rate_drop:
            yield Sign(
                "pass rate",
                self._fall > table.max_pass_rate_drop,
                f"train/pass_rate has fallen from {self._best_pass_rate:.2f} to {self._pass_rate.value or 0.0:.2f} "
                f"(running means), more than alarms.max_pass_rate_drop = {table.max_pass_rate_drop:g}; go back to an "
                "earlier checkpoint with --resume STEP, with a lower learner.lr, algorithm.anchor_weight or a higher "
                "algorithm.ema_retention",
            )

    def _gain_sign(self) -> Iterator[Sign]:
        """Compare the gain with what its best would be for as many failed attempts as there are now."""
        gain, kl, limit = self._gain.value, self._kl.value, self._table.min_gain_share
        if not limit or gain is None or self._best_gain < MIN_BEST_GAIN:
            return
        share = gain / self._best_gain * self._failed_at_best_gain / self._failed
        is_far = kl is not None and kl > limit * self._best_kl and gain < GAIN_OF_KL * kl
        why = (
            f"train/pass_rate falls (by {self._fall:.2f})"
            if self._is_falling
            else f"policy/teacher_kl is {kl or 0:.3g}"
        )
        yield Sign(
            "gain",
            share < (GAIN_RECOVERS if "gain" in self.standing else 1.0) * limit and (is_far or self._is_falling),
            f"teacher/feedback_gain = {gain:.3g} nats/token is, per failed attempt, {share:.0%} of its best, below "
            f"alarms.min_gain_share = {limit:g}, while {why} (running means): the model forgets "
            "how to follow feedback; set algorithm.anchor_weight = 1 or raise algorithm.ema_retention",
        )

    def _entropy_signs(self, entropy: float, first: float) -> Iterator[Sign]:
        table, solved = self._table, (self._pass_rate.value or 0.0) > SOLVED
        if table.min_entropy_share:
            yield Sign(
                "entropy",
                entropy < table.min_entropy_share * first and not solved,
                f"policy/entropy = {entropy:.3g} nats/token is below alarms.min_entropy_share = "
                f"{table.min_entropy_share:g} of its first mean, {first:.3g}: the policy repeats itself; lower "
                "learner.lr, and see whether the feedback holds ready-made solutions",
            )
        if table.max_entropy_growth:
            yield Sign(
                "entropy growth",
                entropy > table.max_entropy_growth * first and self._is_falling,
                f"policy/entropy = {entropy:.3g} nats/token is above alarms.max_entropy_growth = "
                f"{table.max_entropy_growth:g} times its first mean, {first:.3g}, while train/pass_rate falls (by "
                f"{self._fall:.2f}): the policy falls apart; go back to an earlier checkpoint with --resume STEP",
            )

    def _length_sign(self) -> Iterator[Sign]:
        limit, length = self._table.max_length_change, self._length.value
        if not limit or length is None or not self._first_lengths:
            return
        first = max(fmean(self._first_lengths), 1e-9)
        yield Sign(
            "length",
            not 1 / limit <= length / first <= limit and self._is_falling,
            f"train/response_tokens = {length:.0f} against {first:.0f} at first, a change by more than "
            f"alarms.max_length_change = {limit:g}, while train/pass_rate falls (by {self._fall:.2f}): the policy "
            "rambles or breaks off; look at attempts in the report",
        )

    def _grad_norm_sign(self, norm: float | None) -> Iterator[Sign]:
        limit = self._table.max_grad_norm_growth
        if not limit or norm is None:
            return
        usual = median(self._grad_norms) if self._grad_norms else norm
        is_over = norm > limit * usual > 0
        if not is_over:
            self._grad_norms.append(norm)
        yield Sign(
            GRAD_NORM,
            is_over,
            f"grad_norm = {norm:.3g} is above alarms.max_grad_norm_growth = {limit:g} times its running median, "
            f"{usual:.3g}; lower learner.lr or learner.grad_clip, lengthen learner.warmup_steps",
        )


def _number(row: Mapping[str, Any], key: str) -> float | None:
    value = row.get(key)
    return float(value) if value is not None and math.isfinite(value) else None
