"""status.json and result.json of a run folder, as they are replaced."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

_Stamp = tuple[int, int, int]


class Document:
    """A JSON object that is replaced as a whole; empty where there is none."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: _Stamp | None = None
        self.value: dict[str, Any] = {}
        self.error = ""

    def refresh(self) -> bool:
        """Read the file where it changed; say whether it did. What cannot be read leaves the value and an error."""
        try:
            stat = self._path.stat()
            stamp = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
            if stamp == self._stamp:
                return False
            value = msgspec.json.decode(self._path.read_bytes(), type=dict[str, Any])
            msgspec.json.encode(value)  # refuses what could not be sent on, as whole numbers beyond 64 bits
        except FileNotFoundError:
            return False
        except (msgspec.MsgspecError, OverflowError, RecursionError, OSError) as error:
            self.error = f"{self._path.name} cannot be read: {error}"
            return False
        self.value, self.error, self._stamp = value, "", stamp
        return True
