"""A REPL process without Lean that answers recorded checks with their recorded answers, after their recorded time.

Speaks the protocol of leanprover-community/repl. A header takes `--import-s`; a body takes what was recorded, and for
ever where the recording ended in a timeout. `--scale` shortens all times alike. Time counts in short slices, so that
a process stopped by SIGSTOP makes no progress; nothing is computed, so that many of them share a core. What it would
have computed stands in `--clock DIR/PID` for whoever needs a worker's processor time. Bodies are found by their
content in an index that `write_index` made; the judge's own questions (statement probe, accounting, the statement
alone) are answered as for an honest proof. Standard library only: it starts in about 10 ms.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import struct
import sys
import time
from _blake2 import blake2b  # hashlib would load OpenSSL, which costs more than all the rest of the start
from collections.abc import Iterable
from types import FrameType
from typing import Any, NamedTuple

SLICE_S = 0.01
STATEMENT_S = 0.1
"""A statement alone, `by sorry`, of which there is no recording."""
IDLE, COMPUTING, IMPORTING = range(3)
CLOCK = struct.Struct("<dd")
"""Simulated processor seconds; what the process does."""
_RECORD = struct.Struct("<16sQId")
_NO_IMPORT = "invalid 'import' command, it must be used in the beginning of the file"


class Entry(NamedTuple):
    """What to answer to a body. Positions count from its first line that is no header; seconds None: no answer."""

    body: str
    seconds: float | None
    messages: list[dict[str, Any]]
    sorries: list[dict[str, Any]]


def split_header(text: str) -> tuple[str, int, bool]:
    """Cut blank lines, `import`, `open` and `set_option` off the top.

    Returns:
        The rest without blanks at its end, the number of lines cut off, whether one of them was an import.
    """
    lines = text.split("\n")
    count, imports = 0, False
    for line in lines:
        if line.strip() and not line.startswith(("import ", "open ", "set_option ")):
            break
        imports = imports or line.startswith("import ")
        count += 1
    return "\n".join(lines[count:]).rstrip(), count, imports


def key_of(body: str) -> bytes:
    """Hash a body as `split_header` returns it."""
    return blake2b(body.encode(), digest_size=16).digest()


def write_index(path: str, entries: Iterable[Entry]) -> None:
    """Write the file that the stand-in looks its answers up in: sorted records of fixed size, then the answers."""
    found = {key_of(split_header(entry.body)[0]): entry for entry in entries}
    offset, records, blobs = 8 + len(found) * _RECORD.size, [], []
    for key in sorted(found):
        entry = found[key]
        blob = json.dumps({"messages": entry.messages, "sorries": entry.sorries}).encode()
        seconds = -1.0 if entry.seconds is None else entry.seconds
        records.append(_RECORD.pack(key, offset, len(blob), seconds))
        blobs.append(blob)
        offset += len(blob)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(found)) + b"".join(records) + b"".join(blobs))


class Index:
    """The file of `write_index`, mapped."""

    def __init__(self, path: str) -> None:
        with open(path, "rb") as file:
            self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._count = struct.unpack_from("<Q", self._data)[0]

    def find(self, body: str) -> tuple[float, dict[str, Any]] | None:
        """Return the seconds (negative: never answers) and the answer."""
        key, low, high = key_of(body), 0, self._count
        while low < high:
            middle = (low + high) // 2
            found, offset, length, seconds = _RECORD.unpack_from(self._data, 8 + middle * _RECORD.size)
            if found == key:
                return seconds, json.loads(self._data[offset : offset + length])
            if found < key:
                low = middle + 1
            else:
                high = middle
        return None


class Clock:
    """Simulated computing, published in a file that others map."""

    def __init__(self, folder: str | None) -> None:
        self._data: Any = bytearray(CLOCK.size)
        self._path = None if folder is None else os.path.join(folder, str(os.getpid()))
        self._seconds = 0.0
        self._continued = False
        if self._path is not None:
            with open(self._path, "w+b") as file:
                file.write(bytes(CLOCK.size))
                file.flush()
                self._data = mmap.mmap(file.fileno(), CLOCK.size)
        signal.signal(signal.SIGCONT, self._on_continue)

    def _on_continue(self, number: int, frame: FrameType | None) -> None:
        self._continued = True

    def compute(self, seconds: float, state: int) -> None:
        """Let simulated time pass; a slice in which the process was stopped counts as one slice at most."""
        left, before = seconds, time.monotonic()
        while left > 0:
            CLOCK.pack_into(self._data, 0, self._seconds, state)
            time.sleep(min(SLICE_S, left))
            now = time.monotonic()
            passed, before = now - before, now
            if self._continued:
                self._continued, passed = False, min(passed, SLICE_S)
            self._seconds += passed
            left -= passed
        CLOCK.pack_into(self._data, 0, self._seconds, IDLE)


class Repl:
    """One session: numbered environments, of which only the number counts."""

    def __init__(self, index: Index, clock: Clock, scale: float, import_s: float) -> None:
        self._index, self._clock = index, clock
        self._scale, self._import_s = scale, import_s
        self._environments = 0

    def answer(self, cmd: str, env: int | None, *, infotree: bool = False) -> dict[str, Any]:
        """Answer a command when its time has passed; an infotree is as good as empty."""
        if env is not None and not 0 <= env < self._environments:
            return {"message": "Unknown environment."}
        body, header_lines, imports = split_header(cmd)
        result: dict[str, Any] = {"env": self._environments}
        self._environments += 1
        if imports and env is not None:
            return {**result, "messages": [message("error", _NO_IMPORT)]}
        if imports:
            self._clock.compute(self._import_s * self._scale, IMPORTING)
        if not body:
            return result
        if body.startswith("theorem fd_probe_"):
            listed = f"'{body.split()[1]}' depends on axioms: [propext,\n Classical.choice,\n Quot.sound]"
            return {**result, "messages": [message("info", listed, body.count("\n") + 1)]}
        if body.startswith("#eval ") and "fd_theorems_" in body:  # which of these names are theorems: none is
            nonce = body[body.index("fd_theorems_") :].partition('"')[0]
            return {**result, "messages": [message("info", nonce)]}
        found = self._index.find(body)
        if found is None and body.endswith("by sorry"):
            warning = message("warning", "declaration uses `sorry`")
            sorry = {"proofState": 0, "pos": warning["pos"], "goal": "⊢ ?", "endPos": None}
            found = STATEMENT_S, {"messages": [warning], "sorries": [sorry]}
        if found is None:
            sys.exit(f"no recording of: {body[:200]!r}")
        seconds, recorded = found
        self._clock.compute(float("inf") if seconds < 0 else seconds * self._scale, COMPUTING)
        for item in (*recorded["messages"], *recorded["sorries"]):
            for position in (item["pos"], item["endPos"]):
                if position:
                    position["line"] += header_lines
        if infotree:
            result["infotree"] = [{"kind": "ContextInfo", "node": None, "children": []}]
        return {**result, **{name: items for name, items in recorded.items() if items}}


def message(severity: str, data: str, line: int = 1) -> dict[str, Any]:
    """One diagnostic at the beginning of a line."""
    return {"severity": severity, "pos": {"line": line, "column": 0}, "endPos": None, "data": data}


def option(name: str, default: str | None = None) -> str | None:
    """Read `NAME VALUE` from the command line; argparse would double the time of a start."""
    return sys.argv[sys.argv.index(name) + 1] if name in sys.argv else default


def main() -> None:
    """Serve requests: lines up to a blank one, joined."""
    scale, import_s = float(option("--scale", "1") or 1), float(option("--import-s", "0") or 0)
    repl = Repl(Index(sys.argv[1]), Clock(option("--clock")), scale, import_s)
    lines: list[bytes] = []
    for line in sys.stdin.buffer:
        if line.strip():
            lines.append(line.rstrip())
            continue
        try:
            request = json.loads(b"".join(lines))
        except ValueError:
            sys.exit('uncaught exception: {"message": "Could not parse JSON"}')
        lines = []
        answer = repl.answer(request["cmd"], request.get("env"), infotree="infotree" in request)
        text = json.dumps(answer, indent=1, ensure_ascii=False)
        sys.stdout.buffer.write(text.encode() + b"\n\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
