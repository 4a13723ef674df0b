"""The honest half of a REPL without Lean: what it answers to a command, and how requests and answers look as bytes.

Words in the command decide the answer: `fake_error_X` (an error that names X), `fake_sorry`, `fake_axiom_X`,
`fake_hidden_sorry`, `fake_changed_X`, `fake_echo_X` (a message that names X); `import Nowhere` is an error too.
Only modules that Python has loaded anyway are imported, because tests and benchmarks start thousands of these.
Run as a program, it is the REPL that misbehaves where a command asks for it (`repl_faulty.py`).
"""

from __future__ import annotations

import os
import sys
from _json import encode_basestring, make_scanner  # the package `json` costs as much as all of the start

TYPE_CHECKING = False  # of `typing`, which takes longer to import than all the rest
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

ENVIRONMENTS: list[str] = []
"""The text that each environment was made of, the text of its parents included."""

_WIDTH = 120
_WRONG = ("import Nowhere", "exact fd_bogus", "fake_error")
_CHANGED = ("fd_easier", "fake_changed")
_HIDDEN = ("fd_canary_hidden", "fake_hidden_sorry")


class _Plain:
    """What the C scanner of the standard library wants to know."""

    strict = True
    object_hook = object_pairs_hook = None
    parse_int, parse_float, parse_constant = int, float, float


_scan = make_scanner(_Plain)  # type: ignore[arg-type]


def decode(text: str) -> Any:
    """Read one JSON value; raises ValueError when there is anything else."""
    try:
        value, end = _scan(text.strip(), 0)
    except StopIteration:
        raise ValueError("not JSON") from None
    if end != len(text.strip()):
        raise ValueError("not JSON")
    return value


def encode(value: Any, indent: int = 0) -> str:
    """Write JSON as Lean prints it: on one line where it fits, else one entry per line, indented by one space."""
    if isinstance(value, str):
        return encode_basestring(value)
    if not isinstance(value, dict | list):
        return "null" if value is None else str(value).lower()
    if isinstance(value, dict):
        opening, closing = "{}"
        parts = [f"{encode_basestring(key)}: {encode(item, indent + 1)}" for key, item in value.items()]
    else:
        opening, closing = "[]"
        parts = [encode(item, indent + 1) for item in value]
    fits = sum(map(len, parts)) + 2 * len(parts) < _WIDTH - indent and not any("\n" in part for part in parts)
    return opening + (", " if fits else ",\n" + " " * (indent + 1)).join(parts) + closing


def block(result: dict[str, Any]) -> bytes:
    """One answer, the blank line included."""
    return (encode(result) + "\n\n").encode()


def send(data: bytes) -> None:
    """Write all of it."""
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]


def requests() -> Iterator[str]:
    """Yield what arrives before each blank line, as the REPL reads it: lines joined without a line break."""
    lines: list[bytes] = []
    for line in sys.stdin.buffer:
        if line.strip():
            lines.append(line.rstrip())
        else:
            yield b"".join(lines).decode()
            lines = []


def message(severity: str, data: str, line: int = 1, column: int = 0) -> dict[str, Any]:
    """One diagnostic."""
    return {"severity": severity, "pos": {"line": line, "column": column}, "endPos": None, "data": data}


def words(text: str, start: str) -> Iterator[tuple[int, str]]:
    """Find the words that begin so, with their offsets."""
    at = text.find(start)
    while at >= 0:
        end = at + len(start)
        while _in_word(text[end : end + 1]):
            end += 1
        if not _in_word(text[max(0, at - 1) : at]):
            yield at, text[at:end]
        at = text.find(start, end)


def _in_word(char: str) -> bool:
    return char.isalnum() or char == "_"


def answer(cmd: str, env: int | None) -> dict[str, Any]:
    """Answer a command."""
    if env is not None and env >= len(ENVIRONMENTS):
        return {"message": "Unknown environment."}
    text = (ENVIRONMENTS[env] if env is not None else "") + "\n" + cmd
    ENVIRONMENTS.append(text)
    result: dict[str, Any] = {"env": len(ENVIRONMENTS) - 1}
    messages = []
    for at, word in [found for start in _WRONG for found in words(cmd, start)]:
        line, column = cmd.count("\n", 0, at) + 1, at - (cmd.rfind("\n", 0, at) + 1)
        messages.append(message("error", f"unknown identifier '{word}'", line, column))
    messages += [message("info", word) for _, word in words(cmd, "fake_echo")]
    messages += _probe(cmd, text)
    if messages:
        result["messages"] = messages
    if any(word in ("sorry", "fake_sorry") for start in ("sorry", "fake_sorry") for _, word in words(cmd, start)):
        result["sorries"] = [{"proofState": 0, "pos": {"line": 1, "column": 0}, "goal": "⊢ p", "endPos": None}]
    return result


def probed(cmd: str) -> tuple[str, str] | None:
    """Return the names of the probe and of the constant when the command is the judge's probe."""
    stated, _, asked = cmd.partition("\n#print axioms ")
    if not (asked and stated.startswith("theorem fd_probe_")):
        return None
    return asked.strip(), stated.rpartition("@")[2].strip().removeprefix("_root_.")


def _probe(cmd: str, text: str) -> list[dict[str, Any]]:
    names = probed(cmd)
    if names is None:
        return []
    body = text[: -len(cmd)]
    changed = next((word for start in _CHANGED for _, word in words(body, start)), "")
    if changed or f"theorem {names[1]}" not in body:
        return [message("error", f"type mismatch {changed}".strip())]
    axioms = ["propext", *("cheat" + word.removeprefix("fake_axiom") for _, word in words(body, "fake_axiom"))]
    axioms += ["sorryAx"] * any(word in body for word in _HIDDEN)
    listed = f"depends on axioms: [{f',{chr(10)} '.join(axioms)}]" if axioms[1:] else "does not depend on any axioms"
    return [message("info", f"'{names[0]}' {listed}")]


if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    from tests.fakes.repl_faulty import main

    main()
