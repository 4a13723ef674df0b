"""What is trained is what was generated: no bias to short attempts, however long the long ones take.

The project's controller on a virtual clock, with attempts whose lengths have a heavy tail and whose durations are
proportional to them. Trained lengths are compared with those of tickets that the run never saw, by the two-sample
Kolmogorov-Smirnov test. Left out are the first S + 1 steps, whose batches take what is quick to finish first, and the
last S + 1, which take what that left over (nothing new is admitted for versions that are never trained): both are
samples cut by time. In between as many long attempts arrive late from earlier steps as are left to later ones.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import pytest

from bench.simulation.engine import EngineFigures
from bench.simulation.plans import Turn
from bench.simulation.standins import FeedbackFigures, LeanFigures, LearnerFigures
from bench.simulation.world import Figures, Setting, Simulated, load_figures, simulate

BATCH, BOUND, STEPS = 32, 4, 46


class Pareto:
    """One turn of 256 tokens or more, P(longer than n) = (256 / n)^1.2, cut at 8,192."""

    max_response_tokens = 8192

    def prompt_tokens(self, ticket_id: str) -> int:
        return 64

    def turns(self, ticket_id: str) -> list[Turn]:
        tokens = 256 * random.Random(ticket_id).paretovariate(1.2)
        return [Turn(min(round(tokens), self.max_response_tokens))]


def run(**tables) -> Simulated:
    """Train on attempts of 0.5 to 16.4 s with steps of 1 s."""
    figures = Figures(
        attempts=load_figures().attempts,
        engine=EngineFigures(
            base_s=0.002, per_sequence_s=0.0, per_context_token_s=0.0, prefill_tokens_per_s=1e9, kv_tokens=10**9,
            max_num_seqs=1024, push_stall_s=0.01,
        ),
        lean=LeanFigures(workers=8),
        feedback=FeedbackFigures(min_s=0.0, max_s=0.0, input_tokens=1, output_tokens=1, tokens=16),
        learner=LearnerFigures(
            parameters=0.0, peak_flops=1.0, model_flops_utilisation=1.0, passes=1.0, grpo_passes=1.0, fixed_s=1.0,
            stage_s=0.0,
        ),
    )  # fmt: skip
    setting = Setting(
        name="heavy tail", max_staleness=BOUND, engine_gpus=1, learner_gpus=1, prompts_per_step=BATCH, steps=STEPS,
        grain=64, tables={"feedback": {"type": "constant", "text": ""}} | tables,
    )  # fmt: skip
    return simulate(setting, figures, plans=Pareto())


def middle(result: Simulated) -> list[int]:
    """Return what was trained while the pipeline was neither filling nor draining."""
    return result.trained[(BOUND + 1) * BATCH : -(BOUND + 1) * BATCH]


def others(grain: int = 64) -> list[int]:
    """Return the lengths of 20,000 tickets that no run has, in whole token ids as the runs count them."""
    plans = Pareto()
    return [max(1, round(plans.turns(f"other-{i}")[0].sampled_tokens / grain)) * grain for i in range(20_000)]


def kolmogorov_smirnov(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    """Return the two-sample statistic and its p-value (Stephens 1970; Numerical Recipes, 3rd edition, section 14.3.3).

    Ties make the p-value too large, never too small.
    """
    points = sorted(set(first) | set(second))
    ordered, shares = [sorted(first), sorted(second)], [0, 0]
    statistic = 0.0
    for point in points:
        for which, sample in enumerate(ordered):
            while shares[which] < len(sample) and sample[shares[which]] <= point:
                shares[which] += 1
        statistic = max(statistic, abs(shares[0] / len(first) - shares[1] / len(second)))
    root = math.sqrt(len(first) * len(second) / (len(first) + len(second)))
    x = (root + 0.12 + 0.11 / root) * statistic
    if x < 0.2:
        return statistic, 1.0
    return statistic, min(1.0, 2 * sum((-1) ** (k - 1) * math.exp(-2 * k * k * x * x) for k in range(1, 101)))


@pytest.fixture(scope="module")
def kept() -> Simulated:
    return run()


def test_trained_lengths_are_distributed_as_generated_ones(kept: Simulated) -> None:
    """Async with S = 4 trains long attempts as often as they are generated, within the bound."""
    statistic, p_value = kolmogorov_smirnov(middle(kept), others())
    assert kept.dropped == 0
    assert kept.max_staleness == BOUND
    assert p_value > 0.05, (statistic, p_value)


def test_every_admitted_attempt_is_trained(kept: Simulated) -> None:
    """Over the whole run the trained lengths are those of the first tickets, one by one."""
    plans = Pareto()
    tickets = [f"train-{ordinal:07d}-00" for ordinal in range(STEPS * BATCH)]
    assert sorted(kept.trained) == sorted(max(1, round(plans.turns(t)[0].sampled_tokens / 64)) * 64 for t in tickets)


def test_the_same_comparison_fails_where_stale_attempts_are_dropped() -> None:
    """`algorithm.max_age = 1` drops what runs longer than two steps: the test sees that bias."""
    dropping = run(algorithm={"type": "fd", "max_age": 1})
    statistic, p_value = kolmogorov_smirnov(middle(dropping), others())
    assert dropping.dropped > 100
    assert p_value < 1e-6, (statistic, p_value)
    assert max(middle(dropping)) < 8192 <= max(others())


def test_the_statistic_tells_equal_from_shifted_samples() -> None:
    """Known values: D of two shifted ramps is their shift; equal samples give p = 1."""
    ramp = [float(i) for i in range(100)]
    assert kolmogorov_smirnov(ramp, ramp) == (0.0, 1.0)
    statistic, p_value = kolmogorov_smirnov(ramp, [value + 10 for value in ramp])
    assert statistic == pytest.approx(0.10)
    assert p_value == pytest.approx(0.677, abs=0.03)
