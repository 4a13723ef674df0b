"""How late the event loop is. A loop that is blocked serves no rollout, no tool and no push."""

from __future__ import annotations

import anyio
import structlog

from fd_async.telemetry.metrics import percentile

log = structlog.stdlib.get_logger(__name__)


class LoopLag:
    """Sleeps `interval_s` again and again and records how much later than asked it woke.

    A block of b seconds hides the samples that would have been taken during it. They are filled in (b, b - interval,
    b - 2 * interval, ...), so that percentiles tell what an event at a random moment would have waited.
    """

    def __init__(self, interval_s: float = 0.1, warn_ms: float = 200.0) -> None:
        self.interval_s = interval_s
        self.warn_ms = warn_ms
        self.last_ms = 0.0
        self._samples_ms: list[float] = []
        self._warned = False

    async def run(self) -> None:
        """Sample until cancelled."""
        while True:
            before = anyio.current_time()
            await anyio.sleep(self.interval_s)
            self.record(anyio.current_time() - before - self.interval_s)

    def record(self, lag_s: float) -> None:
        """Add one measured lag, seconds; warns once per step when it is long."""
        lag_ms = max(lag_s, 0.0) * 1000
        if lag_ms >= self.warn_ms and not self._warned:
            self._warned = True
            log.warning("event_loop_blocked", ms=round(lag_ms))
        self.last_ms = lag_ms
        self._samples_ms.append(lag_ms)
        while (lag_ms := lag_ms - self.interval_s * 1000) > 0:
            self._samples_ms.append(lag_ms)

    def p50_ms(self) -> float | None:
        """Return the median lag since the last reset, None without samples."""
        return percentile(self._samples_ms, 50)

    def p99_ms(self) -> float | None:
        """Return the 99th percentile of the lag since the last reset, None without samples."""
        return percentile(self._samples_ms, 99)

    def max_ms(self) -> float | None:
        """Return the longest lag since the last reset, None without samples."""
        return max(self._samples_ms, default=None)

    def reset(self) -> None:
        """Start the next step."""
        self._samples_ms.clear()
        self._warned = False
