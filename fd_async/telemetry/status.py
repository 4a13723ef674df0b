"""status.json: where the run stands, for scripts and schedulers. Always a whole JSON object."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio
import msgspec
import structlog

from fd_async.telemetry.sinks import replace_file

log = structlog.stdlib.get_logger(__name__)


class StatusFile:
    """Replaces status.json atomically. A failed write is logged once per outage and never ends the run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._failing = False

    async def write(self, status: Mapping[str, Any]) -> None:
        """Write `status` plus `pid` and `updated_at` (Unix time, seconds)."""
        data = msgspec.json.format(
            msgspec.json.encode({**status, "pid": os.getpid(), "updated_at": round(time.time(), 3)})
        )
        try:
            await anyio.to_thread.run_sync(replace_file, self.path, data + b"\n")
        except OSError as error:
            if not self._failing:
                log.warning("status_not_written", path=str(self.path), error=error.strerror or str(error))
            self._failing = True
        else:
            self._failing = False
