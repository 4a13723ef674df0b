"""A REPL that expects the recorded requests of the `.in` files on its command line and gives the recorded answers.

A request that differs from the recording, as a JSON value, ends the process with exit code 1. With the option
`renumber` environments count from 1, because the header, which no transcript has, is environment 0.
"""

from __future__ import annotations

import os
import sys

from tests.fakes.repl_fake import decode, encode, requests

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

RENUMBER = "renumber"


def blocks_of(text: str) -> list[str]:
    """Cut a transcript at its blank lines."""
    blocks: list[list[str]] = [[]]
    for line in text.splitlines():
        if line.strip():
            blocks[-1].append(line.rstrip())
        elif blocks[-1]:
            blocks.append([])
    return ["\n".join(block) for block in blocks if block]


def recorded(path: str) -> list[tuple[Any, str]]:
    """Return the requests of an `.in` file with the text of their answers."""
    with open(path, encoding="utf-8") as file:
        asked = [decode(block.replace("\n", "")) for block in blocks_of(file.read())]
    with open(path.removesuffix(".in") + ".expected.out", encoding="utf-8") as file:
        return list(zip(asked, blocks_of(file.read()), strict=True))


def after_header(value: Any) -> Any:
    """Renumber the environment of a request or an answer."""
    return {**value, "env": value["env"] + 1} if "env" in value else value


def _expected() -> Iterator[tuple[Any, str]]:
    yield {"cmd": ""}, '{"env": 0}'
    for path in sys.argv[1:]:
        for request, text in recorded(path) if path != RENUMBER else ():
            if RENUMBER in sys.argv:
                request, text = after_header(request), encode(after_header(decode(text)))
            yield request, text


def main() -> None:
    """Replay, in pieces of 61 bytes so that every border is met."""
    for (wanted, text), got in zip(_expected(), requests(), strict=False):
        if decode(got) != wanted:
            sys.exit(f"expected {wanted}, got {got}")
        data = (text + "\n\n").encode()
        for start in range(0, len(data), 61):
            os.write(1, data[start : start + 61])


if __name__ == "__main__":
    main()
