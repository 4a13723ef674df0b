"""A REPL that answers its n-th request with the n-th recorded block of the files named on the command line."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def blocks_of(text: str) -> list[str]:
    """Cut a transcript at its blank lines."""
    blocks: list[list[str]] = [[]]
    for line in text.splitlines():
        if line.strip():
            blocks[-1].append(line)
        elif blocks[-1]:
            blocks.append([])
    return ["\n".join(block) for block in blocks if block]


def main() -> None:
    """Replay, in pieces of 61 bytes so that every border is met."""
    answers = ['{"env": 0}']
    for name in sys.argv[1:]:
        answers += blocks_of(Path(name).read_text(encoding="utf-8"))
    waiting = False
    for line in sys.stdin:
        if line.strip():
            waiting = True
        elif waiting:
            waiting = False
            data = (answers.pop(0) + "\n\n").encode()
            for start in range(0, len(data), 61):
                os.write(1, data[start : start + 61])


if __name__ == "__main__":
    main()
