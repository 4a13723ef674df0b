"""Alarms tell a run that falls apart from one that has learnt."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fd_async.config.schema import Alarms as AlarmTable
from fd_async.pipeline.alarms import Alarms

Row = dict[str, Any]
RECORDED = Path(__file__).parents[2] / "data" / "alarms"
HEALTHY: Row = {
    "loss": 0.5,
    "teacher/feedback_gain": 0.3,
    "policy/teacher_kl": 0.3,
    "policy/entropy": 0.4,
    "teacher/entropy": 0.3,
    "grad_norm": 1.0,
    "train/pass_rate": 0.4,
    "train/response_tokens": 500.0,
}


def recorded(name: str) -> list[Row]:
    """Return rows of a real run of the tiny world: lr 1e-3, 16 prompts per step, 300 steps."""
    keys, *rows = json.loads((RECORDED / f"{name}.json").read_text())
    return [dict(zip(keys, row, strict=True)) for row in rows]


def make(prompts_per_step: int = 128, **table: Any) -> Alarms:
    return Alarms(
        msgspec.convert({"warmup_steps": 10, "patience": 3} | table, AlarmTable),
        num_ids=1000,
        prompts_per_step=prompts_per_step,
    )


def rows(*parts: tuple[int, Row]) -> list[Row]:
    """Return numbered rows: how many, and what differs from a healthy one."""
    changes = [change for count, change in parts for _ in range(count)]
    return [{"step": step} | HEALTHY | change for step, change in enumerate(changes, start=1)]


def feed(alarms: Alarms, made: Iterable[Row]) -> list[tuple[int, str]]:
    """Return (step, name) of every alarm that was raised."""
    return [(row["step"], name) for row in made for name in alarms.update(row)]


def test_a_recorded_run_that_forgets_is_reported_long_before_its_pass_rate_falls() -> None:
    """EMA 0.9 without anchor: the pass rate fell from step 240 on; the gain says so a hundred steps earlier."""
    raised = feed(Alarms(AlarmTable(), num_ids=768, prompts_per_step=16), recorded("forgetting"))
    assert raised[0][1] == "gain"
    assert 100 <= raised[0][0] <= 150
    assert {"entropy growth", "pass rate", "length"} <= {name for _, name in raised}
    assert all(step > 240 for step, name in raised if name != "gain")
    assert [name for _, name in raised].count("gain") <= 2, "it does not flicker around its limit"


def test_a_recorded_run_that_learns_raises_nothing() -> None:
    """EMA 0.9 with the anchor: its gain falls to a tenth as well, for the best of reasons."""
    learning = recorded("learning")
    first, last = ([row["teacher/feedback_gain"] for row in part] for part in (learning[:20], learning[-20:]))
    assert sum(last) < 0.15 * sum(first)
    alarms = Alarms(AlarmTable(), num_ids=768, prompts_per_step=16)
    assert feed(alarms, learning) == []
    assert all(alarms.is_good(row["step"]) for row in learning)


def test_a_gain_that_vanishes_because_the_policy_follows_is_no_alarm() -> None:
    """Constant feedback that is learnt by heart: no gain is left, and nothing between teacher and policy either."""
    learnt = {"teacher/feedback_gain": 0.003, "policy/teacher_kl": 0.01}
    assert feed(make(), rows((60, {}), (300, learnt))) == []


def test_empty_feedback_has_no_gain_to_lose() -> None:
    """The control experiment: teacher and policy see the same prompt, and rounding is all that differs."""
    made = rows((200, {"policy/teacher_kl": 0.02}))
    for row in made:
        row["teacher/feedback_gain"] = 1e-12 * math.sin(row["step"])
    assert feed(make(), made) == []


@pytest.mark.parametrize(
    "evidence",
    [{"policy/teacher_kl": 0.2}, {"policy/teacher_kl": 0.01, "train/pass_rate": 0.25}],
    ids=["the policy is still far from the teacher", "the pass rate falls"],
)
def test_a_gain_that_vanishes_beside_signs_of_forgetting_is_an_alarm(evidence: Row) -> None:
    """The same gain, with either of the two things that learning does not bring."""
    raised = feed(make(), rows((60, {}), (300, {"teacher/feedback_gain": 0.003} | evidence)))
    assert [name for _, name in raised] == ["gain"]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("teacher entropy", {"teacher/entropy": 0.9 * math.log(1000)}),
        ("entropy", {"policy/entropy": 0.01}),
        ("entropy growth", {"policy/entropy": 2.0, "train/pass_rate": 0.25}),
        ("length", {"train/response_tokens": 2000.0, "train/pass_rate": 0.25}),
        ("length", {"train/response_tokens": 100.0, "train/pass_rate": 0.25}),
        ("gradient norm", {"grad_norm": 500.0}),
        ("pass rate", {"train/pass_rate": 0.05}),
    ],
)
def test_each_sign_raises_its_own_alarm_and_only_that(name: str, change: Row) -> None:
    """One line each, with the figure's key and the key of the limit, said once however long it lasts."""
    alarms = make()
    assert feed(alarms, rows((60, {}), (100, change))) == [(pytest.approx(73, abs=12), name)]
    (text,) = alarms.standing.values()
    assert "\n" not in text
    assert next(iter(change)) in text
    assert "alarms." in text


@pytest.mark.parametrize(
    "change",
    [
        {"policy/entropy": 0.01, "train/pass_rate": 0.97},
        {"policy/entropy": 2.0},
        {"train/response_tokens": 5000.0},
        {"train/response_tokens": 50.0, "train/pass_rate": 0.8},
        {"train/pass_rate": 0.97},
    ],
    ids=["certain because solved", "explores", "thinks longer", "is brief and right", "solved under a frozen teacher"],
)
def test_a_change_that_costs_nothing_is_no_alarm(change: Row) -> None:
    """Entropy and length may move as they like while attempts succeed, and the gain may stay."""
    assert (
        feed(make(), rows((50, {}), (10, {"train/pass_rate": change.get("train/pass_rate", 0.4)}), (100, change))) == []
    )


@pytest.mark.parametrize(
    "off",
    [
        "min_gain_share",
        "min_entropy_share",
        "max_entropy_growth",
        "max_teacher_entropy",
        "max_length_change",
        "max_grad_norm_growth",
        "max_pass_rate_drop",
    ],
)
def test_zero_turns_a_single_alarm_off(off: str) -> None:
    """The worst imaginable row raises everything else."""
    worst = {
        "teacher/feedback_gain": 0.0,
        "policy/teacher_kl": 3.0,
        "teacher/entropy": 6.9,
        "grad_norm": 1e6,
        "train/pass_rate": 0.0,
        "train/response_tokens": 9000.0,
    }
    low, high = worst | {"policy/entropy": 0.0}, worst | {"policy/entropy": 6.0}
    raised = [
        {name for _, name in feed(make(**limits), rows((60, {}), (60, low), (60, high)))} for limits in ({}, {off: 0.0})
    ]
    assert len(raised[0]) == 7
    assert len(raised[0] - raised[1]) == 1


def test_what_was_not_measured_is_no_data() -> None:
    """None, NaN and missing keys neither raise an alarm nor end one, and evaluations alone are no step."""
    alarms = make()
    empty: Row = dict.fromkeys(HEALTHY) | {"loss": 0.5, "policy/entropy": math.nan}
    assert feed(alarms, rows((60, {}), (60, empty))) == []
    assert [name for _, name in feed(alarms, rows((30, {"train/pass_rate": 0.0})))] == ["pass rate"]
    assert feed(alarms, rows((30, {"train/pass_rate": None}))) == []
    assert "pass rate" in alarms.standing
    assert feed(alarms, [{"step": 500, "loss": None, "train/pass_rate": 1.0}]) == []


def test_a_run_without_feedback_columns_is_watched_all_the_same() -> None:
    """GRPO has no teacher."""
    grpo = [
        {key: value for key, value in row.items() if "teacher" not in key}
        for row in rows((60, {}), (30, {"train/pass_rate": 0.0}))
    ]
    assert [name for _, name in feed(make(), grpo)] == ["pass rate"]


def test_fewer_steps_than_patience_are_no_alarm_and_warm_up_is_not_judged() -> None:
    """A spike passes; the start of a run is its yardstick."""
    spike = {"grad_norm": 1e4}
    assert feed(make(), rows((60, {}), (2, spike), (60, {}), (2, spike), (60, {}))) == []
    assert feed(make(warmup_steps=50), rows((3, {}), (40, {"teacher/entropy": 6.9}), (60, {}))) == []


def test_an_alarm_is_said_again_only_after_it_had_ended() -> None:
    """It stands through a good step or two, and ends after `patience` of them."""
    bad = {"grad_norm": 1e4}
    made = rows((60, {}), (5, bad), (2, {}), (5, bad), (3, {}), (5, bad))
    assert feed(make(), made) == [(63, "gradient norm"), (78, "gradient norm")]


def test_small_batches_are_averaged_over_more_steps() -> None:
    """Sixteen attempts that all fail by chance are no fall of the pass rate."""
    unlucky = rows((60, {"train/pass_rate": 0.4}), (4, {"train/pass_rate": 0.0}), (60, {"train/pass_rate": 0.4}))
    assert feed(make(prompts_per_step=16), unlucky) == []
    assert feed(make(prompts_per_step=640), unlucky) != []


def test_a_checkpoint_is_good_only_before_the_first_sign() -> None:
    """The steps that count towards an alarm are not good, nor is a falling pass rate that is no alarm yet."""
    alarms = make()
    feed(alarms, rows((60, {}), (10, {"grad_norm": 1e4}), (10, {}), (20, {"train/pass_rate": 0.25})))
    assert alarms.is_good(60)
    assert not alarms.is_good(61)
    assert alarms.is_good(75)
    assert not alarms.is_good(95)


def test_weights_are_judged_by_the_row_of_the_step_that_begins_with_them() -> None:
    """A dead teacher in row 61 is the teacher that step 60 left; a spike of the gradient may be the batch's doing."""
    for change, is_good in (({"teacher/entropy": 99.0}, False), ({"grad_norm": 1e4}, True)):
        alarms = make()
        feed(alarms, rows((60, {}), (1, change)))
        assert [alarms.is_good(step) for step in (59, 60, 61)] == [True, is_good, False]


def test_after_a_rollback_the_undone_steps_are_not_good_and_the_means_start_anew() -> None:
    """What was usual before is learnt again; the alarm that stood is gone."""
    alarms = make()
    feed(alarms, rows((60, {}), (30, {"train/pass_rate": 0.0})))
    alarms.rolled_back(90, 50)
    assert not alarms.standing
    assert [alarms.is_good(step) for step in (50, 51, 89, 90)] == [True, False, False, True]
    assert feed(alarms, [row | {"step": row["step"] + 90} for row in rows((40, {"train/pass_rate": 0.05}))]) == []


def test_replaying_the_rows_gives_the_same_alarms_as_having_lived_through_them() -> None:
    """metrics.jsonl is the whole state, rollbacks included."""
    lived, made = make(), rows((60, {}), (20, {"train/pass_rate": 0.0}), (50, {}), (9, {"grad_norm": 1e4}))
    for row in made:
        lived.update(row)
        if row["step"] == 75:
            lived.rolled_back(75, 50)
            row["alarms/rollback_to"] = 50
    resumed = make()
    resumed.replay(made)
    assert resumed.num_rollbacks == 1
    assert resumed.standing == lived.standing != {}
    assert [resumed.is_good(step) for step in range(140)] == [lived.is_good(step) for step in range(140)]
    more = [row | {"step": row["step"] + 139} for row in rows((40, {"policy/entropy": 0.001}))]
    assert feed(resumed, more) == feed(lived, more) != []
