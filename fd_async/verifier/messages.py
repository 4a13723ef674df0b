"""Answers of the REPL as values, and the text that the model reads of them.

The verdict is decided on `severity` and on the presence of `sorries`, never on the wording of a message.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import msgspec
from msgspec import Struct

UNSUPPORTED = "minilean: unsupported"
"""How the small checker begins an error about Lean that it does not know."""

_AXIOMS = re.compile(
    r"['`](?P<name>[^'`]+)['`] (?:depends on axioms: \[(?P<axioms>[^\]]*)\]|does not depend on any axioms)"
)
_LATER_ERROR_CHARS = 500


class Position(Struct, frozen=True):
    """Line from 1, column from 0 in code points."""

    line: int
    column: int


class Message(Struct, frozen=True):
    """One diagnostic."""

    data: str
    severity: str = "error"
    pos: Position = Position(0, 0)

    @property
    def is_error(self) -> bool:
        return self.severity == "error"


class Answer(Struct, frozen=True):
    """The answer to a command; `env` is None and `message` set when the REPL refused the request itself."""

    env: int | None = None
    messages: list[Message] = []
    sorries: list[msgspec.Raw] = []
    message: str | None = None
    infotree: msgspec.Raw = msgspec.Raw()
    """Empty when the answer has none; `Raw | None` would refuse everything but null."""

    @property
    def errors(self) -> list[Message]:
        return [message for message in self.messages if message.is_error]


_DECODER = msgspec.json.Decoder(Answer)


def decode_answer(block: bytes) -> Answer:
    """Decode one block; raises msgspec.DecodeError when it is not an answer."""
    answer = _DECODER.decode(block)
    if answer.env is None and answer.message is None:
        raise msgspec.ValidationError("neither `env` nor `message` in the answer")
    return answer


def read_axioms(messages: list[Message], name: str) -> list[str] | None:
    """Return what `#print axioms NAME` listed, or None unless exactly one message is that list and nothing else."""
    found: list[list[str]] = []
    for message in messages:
        match = _AXIOMS.fullmatch(message.data.strip()) if message.severity == "info" else None
        if match and match["name"] == name:
            axioms = (match["axioms"] or "").split(",")
            found.append([axiom.strip() for axiom in axioms if axiom.strip()])
    return found[0] if len(found) == 1 else None


def render_messages(messages: list[Message], model_line: Callable[[int], int], max_chars: int) -> str:
    """Write compiler output for the model: errors first, the first one in full, the rest as room allows.

    Args:
        messages: In the order of the compiler.
        model_line: Maps a line of the compiled text to the model's own file.
        max_chars: Hard limit of the result.
    """
    entries = _collapse(messages, model_line)
    errors = [text for is_error, text in entries if is_error]
    others = [text for is_error, text in entries if not is_error]
    shown: list[str] = []
    room = max_chars
    for index, text in enumerate([*errors, *others]):
        reserve = len(_tail(len(errors) - index - 1)) if index < len(errors) else 0
        if index and index < len(errors):
            text = cut(text, _LATER_ERROR_CHARS)
        if not shown:
            text = cut(text, room - reserve)
        elif len(text) + 1 > room - reserve:
            break
        shown.append(text)
        room -= len(text) + 1
    hidden = len(errors) - len(shown)
    if hidden > 0:
        shown.append(_tail(hidden).strip())
    return cut("\n".join(shown), max_chars)


def cut(text: str, max_chars: int) -> str:
    """Shorten to max_chars, saying so."""
    if len(text) <= max_chars:
        return text
    mark = " ... (cut)"
    return text[: max(0, max_chars - len(mark))] + mark[:max_chars]


def _tail(hidden: int) -> str:
    return f"\n(+{hidden} more error{'s' if hidden > 1 else ''})" if hidden > 0 else ""


def _collapse(messages: list[Message], model_line: Callable[[int], int]) -> list[tuple[bool, str]]:
    """Format messages; one that repeats word for word is shown once with its count."""
    counts: dict[tuple[str, str], int] = {}
    first: dict[tuple[str, str], Message] = {}
    for message in messages:
        key = (message.severity, message.data)
        counts[key] = counts.get(key, 0) + 1
        first.setdefault(key, message)
    entries = []
    for key, message in first.items():
        where = f"{model_line(message.pos.line)}:{message.pos.column}: " if message.pos.line > 0 else ""
        times = f" (repeated {counts[key]} times)" if counts[key] > 1 else ""
        entries.append((message.is_error, f"{where}{message.severity}: {message.data.strip()}{times}"))
    return entries
