"""The /metrics endpoint: the last row of metrics.jsonl and the present state, for Prometheus.

`prometheus_client` serves it from threads of its own: a scrape takes nothing from the event loop, and is answered even
while the loop is blocked, which is when it is wanted most.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from fd_async.errors import PreflightError
from fd_async.telemetry.metrics import METRICS
from fd_async.telemetry.observers import Observer

CLOSE_S = 5.0
_BASE_UNITS = {"s": ("seconds", 1.0), "ms": ("seconds", 1e-3), "MiB": ("bytes", 2.0**20), "share": ("ratio", 1.0)}
"""Unit of a column -> base unit of Prometheus, and what to multiply values with."""

_TOTALS = {metric.key for metric in METRICS if metric.total}
_UNITS = {metric.key: metric.unit for metric in METRICS}
_EVAL = re.compile(r"eval/([^/]+)/(?:pass@(\d+)|(\w+))")
_STATE = (
    ("outstanding", "groups", "Groups of attempts between admission and the batch."),
    ("capacity", "groups", "Groups that may start now."),
    ("tokens_per_s", "", "Tokens per second of the engine over the last ten seconds."),
    ("elapsed_s", "seconds", "Since this process began."),
    ("max_steps", "", "Gradient steps that the run is to take."),
)


class Endpoint(Observer, Collector):
    """Serves /metrics until it is closed.

    Raises:
        PreflightError: the port cannot be had.
    """

    def __init__(self, run: str, host: str, port: int) -> None:
        self._run = run
        self._row: dict[str, float] = {}
        self._snapshot: Mapping[str, Any] = {}
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        try:
            self._server, self._thread = start_http_server(port, host, registry)
        except OSError as error:
            raise PreflightError(
                f"telemetry.prometheus_host = {host!r}, telemetry.prometheus_port = {port}: cannot listen there "
                f"({error.strerror or error}); take another port, or 0 for none"
            ) from error
        self.port = self._server.server_port

    def row(self, row: Mapping[str, float | int | None]) -> None:
        """Keep the newest value of each column."""
        self._row = self._row | {key: value for key, value in row.items() if value is not None}

    def snapshot(self, snapshot: Mapping[str, Any]) -> None:
        """Keep the present state."""
        self._snapshot = snapshot

    def collect(self) -> Iterable[Metric]:
        """Yield everything, on the thread of a scrape; both sources are replaced, never changed."""
        yield InfoMetricFamily("fd_async_run", "The run.", {"run": self._run})
        yield from _columns(self._row)
        yield from _state(self._snapshot)

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(CLOSE_S)


def _columns(row: Mapping[str, float]) -> Iterator[Metric]:
    families: dict[str, GaugeMetricFamily] = {}
    for key, value in row.items():
        if match := _EVAL.fullmatch(key):
            suite, k, what = match.groups()
            name = "fd_async_eval_pass_ratio" if k else f"fd_async_eval_{what}"
            labels = ["suite", "k"] if k else ["suite"]
            text = f"eval/SUITE/{'pass@K' if k else what} of docs/metrics.md."
            family = families.setdefault(name, GaugeMetricFamily(name, text, labels=labels))
            family.add_metric([suite, k] if k else [suite], value)
            continue
        name, factor = metric_name(key)
        family = CounterMetricFamily if key in _TOTALS else GaugeMetricFamily
        yield family(name, f"{key} of docs/metrics.md.", value * factor)
    yield from families.values()


def metric_name(key: str) -> tuple[str, float]:
    """Return the name of a column for Prometheus, in its base unit, and what to multiply values with."""
    unit = _UNITS.get(key, "")
    words = re.sub(r"\W+", "_", key)
    if unit in _BASE_UNITS:
        base, factor = _BASE_UNITS[unit]
        return f"fd_async_{words.removesuffix(f'_{unit.lower()}')}_{base}", factor
    suffix = "" if unit.startswith("per ") else re.sub(r"\W+", "_", unit.replace("/", " per ")).lower()
    named = not suffix or suffix.rstrip("s") in words
    return f"fd_async_{words}" if named else f"fd_async_{words}_{suffix}", 1.0


def _state(snapshot: Mapping[str, Any]) -> Iterator[Metric]:
    items = GaugeMetricFamily("fd_async_stage_items", "Items in a stage.", labels=["stage"])
    for stage, count in (snapshot.get("stages") or {}).items():
        items.add_metric([stage], count)
    yield items
    oldest = GaugeMetricFamily("fd_async_stage_oldest_seconds", "Age of a stage's oldest item.", labels=["stage"])
    for wait in snapshot.get("waits") or ():
        oldest.add_metric([wait["stage"]], wait["seconds"])
    yield oldest
    engine = GaugeMetricFamily("fd_async_engine_state", "Statistics of the engine.", labels=["of"])
    for name, value in (snapshot.get("engine") or {}).items():
        engine.add_metric([name], value)
    yield engine
    dropped = CounterMetricFamily("fd_async_attempts_dropped", "Attempts dropped, by cause.", labels=["cause"])
    for cause, count in (snapshot.get("dropped") or {}).items():
        dropped.add_metric([cause], count)
    yield dropped
    for key, unit, text in _STATE:
        if snapshot.get(key) is not None:
            name = key.removesuffix("_s") if unit == "seconds" else key.replace("_per_s", "_per_second")
            yield GaugeMetricFamily(f"fd_async_state_{name}{f'_{unit}' if unit else ''}", text, snapshot[key])
    if snapshot.get("lag_ms") is not None:
        yield GaugeMetricFamily("fd_async_state_lag_seconds", "Last event-loop lag.", snapshot["lag_ms"] * 1e-3)
