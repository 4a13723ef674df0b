"""Counts of a running engine. Imports vllm: only `local` imports it, when an engine opens."""

from __future__ import annotations

from typing import Any

from vllm.v1.metrics.loggers import PrometheusStatLogger


class Counters:
    """The newest figures of every engine process, added up."""

    def __init__(self) -> None:
        self._newest: dict[int, Any] = {}
        self._tokens_generated = 0

    def record(self, scheduler: Any, iteration: Any, engine: int) -> None:
        if scheduler is not None:
            self._newest[engine] = scheduler
        if iteration is not None:
            self._tokens_generated += iteration.num_generation_tokens

    def read(self) -> dict[str, float]:
        """Return the figures of `Engine.statistics`."""
        newest = list(self._newest.values())
        return {
            "running": float(sum(stats.num_running_reqs for stats in newest)),
            "waiting": float(sum(stats.num_waiting_reqs for stats in newest)),
            "kv_usage": max((stats.kv_cache_usage for stats in newest), default=0.0),
            "tokens_generated": float(self._tokens_generated),
        }


def recorder(counters: Counters) -> type[PrometheusStatLogger]:
    """Make the stat logger that feeds `counters`.

    vLLM adds its Prometheus logger, which costs time at every engine step, unless it is given one of that type; this
    one replaces it.
    """

    class Recorder(PrometheusStatLogger):
        def __init__(self, vllm_config: Any, engine_indexes: list[int] | None = None) -> None:
            self.engine_indexes = engine_indexes or [0]

        def record(
            self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int = 0
        ) -> None:
            counters.record(scheduler_stats, iteration_stats, engine_idx)

        def log_engine_initialized(self) -> None:
            """Say nothing."""

        def record_sleep_state(self, sleep: int = 0, level: int = 0) -> None:
            """Say nothing."""

    return Recorder
