"""Seconds that close: at every moment each side of a run does exactly one thing, so its seconds sum to the wall time.

    TimeAccount   what a side does (learning, waiting, ...), charged as it changes
    SlotAccount   how much of a side's room is in use (sequences of vLLM, Lean workers, feedback calls), from samples

Times are given by the caller, so that a simulated clock serves as well.
"""

from __future__ import annotations

from collections.abc import Sequence

LEARNER = ("restarting", "rollback", "checkpoint", "pushing", "learning", "evaluating", "waiting", "other")
"""What the learner does. Where several stages are occupied at once, the first of these is charged."""

ENGINE = ("down", "push", "generating", "idle")
"""What the engine does. `push`: it sampled nothing because weights changed."""


class TimeAccount:
    """Charges every second to exactly one state."""

    def __init__(self, states: Sequence[str], state: str, now: float) -> None:
        self.state = state
        self._seconds = dict.fromkeys(states, 0.0)
        self._since = now
        self._at_step = dict(self._seconds)

    def enter(self, state: str, now: float) -> None:
        """Go over to `state`; what passed since the last call belongs to the state before."""
        self._seconds[self.state] += max(0.0, now - self._since)
        self._since = max(now, self._since)
        self.state = state

    def shift(self, seconds: float, into: str, *, from_states: Sequence[str], now: float) -> None:
        """Charge `seconds` of this step to another state than at the time; never more than there is."""
        self.enter(self.state, now)
        for state in from_states:
            part = min(seconds, self._seconds[state] - self._at_step[state])
            if part > 0.0:
                self._seconds[state] -= part
                self._seconds[into] += part
                seconds -= part

    def total(self, now: float) -> dict[str, float]:
        """Return the seconds of each state since the start."""
        self.enter(self.state, now)
        return dict(self._seconds)

    def step(self, now: float) -> dict[str, float]:
        """Return the seconds of each state since the last call."""
        total, before = self.total(now), self._at_step
        self._at_step = total
        return {state: seconds - before[state] for state, seconds in total.items()}


class SlotAccount:
    """Integrates how many of a side's slots are in use."""

    def __init__(self, slots: float, now: float) -> None:
        self._slots = max(slots, 1.0)
        self._in_use = 0.0
        self._used = self._wall = self._used_at_step = self._wall_at_step = 0.0
        self._since = now

    def sample(self, in_use: float, now: float) -> None:
        """Take what is in use now; the value before held until now."""
        passed = max(0.0, now - self._since)
        self._used += passed * self._in_use / self._slots
        self._wall += passed
        self._since = max(now, self._since)
        self._in_use = min(max(in_use, 0.0), self._slots)

    def idle(self) -> float | None:
        """Return the unused share since the start, up to the last sample; None before any time has passed."""
        return 1.0 - self._used / self._wall if self._wall > 0.0 else None

    def step_idle(self) -> float | None:
        """Return the unused share between the last call and the last sample."""
        used, wall = self._used - self._used_at_step, self._wall - self._wall_at_step
        self._used_at_step, self._wall_at_step = self._used, self._wall
        return min(max(1.0 - used / wall, 0.0), 1.0) if wall > 0.0 else None
