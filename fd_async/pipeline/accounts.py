"""The accounts of a run, which close: where its tokens, dollars and seconds went.

    tokens    generated = trained + queued + dropped, by cause; beside them those on record of attempts under way
    dollars   spent = feedback of attempts trained, queued and dropped + wasted + unrecorded (calls in flight)
    seconds   what the learner does sums to the wall time, and so does what the engine does
    slots     sequences of vLLM, verifier workers, feedback calls: used + idle = all

Seconds and slots are those of this process; tokens and dollars those of the run.
"""

from __future__ import annotations

from typing import Any

import anyio
import anyio.to_thread
import structlog

from fd_async.config.schema import RunConfig
from fd_async.data.totals import Totals, read_totals
from fd_async.errors import LedgerError
from fd_async.pipeline.state import Parts, RunState
from fd_async.telemetry.accounts import SlotAccount
from fd_async.telemetry.lag import LoopLag
from fd_async.types import PushReport

log = structlog.get_logger(__name__)

Row = dict[str, float | int | None]

_BRIEF_S = 0.5
"""Sums of the ledger that take no longer are read for every row; those of a long run, 50 times less often than that."""


class Accounts:
    """Keeps what no other part counts; `snapshot` is to be called some times a second, `row` once a step."""

    def __init__(self, parts: Parts, state: RunState, lag: LoopLag) -> None:
        self._parts, self._state, self._lag = parts, state, lag
        now = anyio.current_time()
        self._slots = {side: SlotAccount(slots, now) for side, slots in num_slots(parts.config).items()}
        self._totals = Totals(usd={}, tokens_under_way=0)
        self._read_again_at = now
        self._is_down = False

    def snapshot(self) -> dict[str, Any]:
        """Return what status.json, the endpoint and the trace show, and sample who is busy."""
        now, board = anyio.current_time(), self._state.board
        engine = self._parts.engine.statistics()
        self._heed(engine)
        self._sample(engine, now)
        learner, serving = board.learner.total(now), board.engine.total(now)
        return {
            "engine": engine,
            "lag_ms": self._lag.last_ms,
            "accounts": {
                "tokens": {
                    "generated": self._state.tokens_generated,
                    **{outcome: tokens for outcome, tokens in self._state.tokens.items() if tokens},
                    "under_way": self._totals.tokens_under_way,
                },
                "usd": self._usd(),
                "seconds": {"learner": _rounded(learner), "engine": _rounded(serving)},
                "idle": _rounded(
                    {"learner": _learner_idle(learner), "engine": _engine_idle(serving)}
                    | {side: account.idle() for side, account in self._slots.items()}
                ),
            },
        }

    async def row(self, push: PushReport | None) -> Row:
        """Return the columns of the step that ends; seconds and shares are those since the row before.

        Args:
            push: of the step; its stall is charged to the engine as `push`.
        """
        await self._read_ledger()
        now, board, state = anyio.current_time(), self._state.board, self._state
        if push is not None:
            board.engine.shift(push.stall_s, "push", from_states=("generating", "idle"), now=now)
        engine = self._parts.engine.statistics()
        self._sample(engine, now)
        learner, serving = board.learner.step(now), board.engine.step(now)
        row: Row = {f"learner/{name}_s": seconds for name, seconds in learner.items()}
        row |= {f"engine/{name}_s": seconds for name, seconds in serving.items()}
        row |= {"idle/learner": _learner_idle(learner), "idle/engine": _engine_idle(serving)}
        row |= {f"idle/{side}": account.step_idle() for side, account in self._slots.items()}
        row["engine/restarts"] = engine.get("restarts")
        row["learner/restarts"] = state.restarts
        row["loop/lag_max_ms"] = self._lag.max_ms()
        row["tokens/under_way"] = self._totals.tokens_under_way
        row["disk/ledger_mib"] = self._parts.ledger.statistics()["bytes"] / 2**20
        provider = self._parts.provider.statistics()
        if self._parts.config.feedback.outage == "fallback":
            row["feedback/fallback_usd"] = provider.get("fallback_usd")
        row["feedback/outage_s"] = provider.get("outages_s")
        row |= {f"usd/{name}": usd for name, usd in _usd_columns(self._usd()).items()}
        return {key: value for key, value in row.items() if value is not None}

    async def _read_ledger(self) -> None:
        """Read the sums, unless that would hold up every step: what they miss then counts as unrecorded."""
        began = anyio.current_time()
        if began < self._read_again_at:
            return
        try:
            self._totals = await anyio.to_thread.run_sync(read_totals, self._parts.run_dir / "ledger.db")
        except LedgerError as error:  # who writes the ledger ends the run if it has to; these are only sums
            log.warning("totals_not_read", reason=str(error))
        now = anyio.current_time()
        self._read_again_at = now + 50 * (now - began) if now - began > _BRIEF_S else now

    def _usd(self) -> dict[str, float]:
        """Return the dollars of the last row, and what was spent beyond them until now."""
        spent = self._parts.provider.statistics()["usd"]
        rest = spent - sum(self._totals.usd.values())
        usd = {"spent": spent, **self._totals.usd, "unrecorded": rest}
        return {name: round(value, 9) for name, value in usd.items()}  # sums of floats; prices are exact

    def _heed(self, engine: dict[str, float]) -> None:
        """Put an engine that does not serve on the board, where people see who waits for it."""
        is_down = engine.get("serving", 1.0) == 0.0
        if is_down != self._is_down:
            self._is_down = is_down
            self._state.board.move("engine", "reviving" if is_down else "")

    def _sample(self, engine: dict[str, float], now: float) -> None:
        busy = {
            "engine_slots": engine.get("running"),
            "verifier": self._parts.verifier.statistics().get("busy"),
            "feedback": self._parts.provider.statistics().get("in_flight"),
        }
        for side, account in self._slots.items():
            account.sample(busy[side] or 0.0, now)


def num_slots(config: RunConfig) -> dict[str, float]:
    """Return how much each side can do at once; free feedback has no slots."""
    engines = len(config.policy.servers) if config.policy.engine == "servers" else config.policy.data_parallel_size
    sequences = config.policy.max_num_seqs * max(engines, 1)
    slots: dict[str, float] = {"engine_slots": sequences, "verifier": config.verifier.workers}
    if config.algorithm.type == "fd" and config.feedback.type in ("anthropic", "openai", "self"):
        slots["feedback"] = config.feedback.concurrency
    return slots


def _learner_idle(seconds: dict[str, float]) -> float | None:
    wall = sum(seconds.values())
    return seconds["waiting"] / wall if wall > 0 else None


def _engine_idle(seconds: dict[str, float]) -> float | None:
    wall = sum(seconds.values())
    return seconds["idle"] / wall if wall > 0 else None


def _usd_columns(usd: dict[str, float]) -> dict[str, float]:
    """Sum what the ledger tells by cause; the parts sum to `feedback/usd`."""
    columns = dict.fromkeys(("trained", "queued", "dropped", "wasted", "unrecorded"), 0.0)
    for name, value in usd.items():
        if name != "spent":
            part = name.split(":")[0]
            columns[part if part in columns else "wasted"] += value
    return columns


def _rounded(values: dict[str, float | None] | dict[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in values.items() if value is not None}
